"""Predicted cycles of a `channel_first` launch: of each tick the slowest of array, DMA and epilogue.

launch + the first fetch + Σ max(array, fetch of the tick after, sums of the tick before) + the last sums
"""

from __future__ import annotations

from ..generator import Group
from .channel_first_shape import Tiles
from .cost import WEIGHT
from .epilogue import BYTES, varying_operands


def predicted(group: Group, t: Tiles) -> float:
    """Cycles of a launch."""
    machine, p = t.machine, t.p
    full = t.walk.strip * t.wn
    array = _array(t, full)
    weights = min(t.walk.chunk, t.passes) * t.tile_bytes
    speed = machine.dram_bytes_per_second / machine.clock_hz
    latency = machine.dram_latency + machine.units["dma"].latency
    rows = t.stored / (t.sections * t.strips) * _row_bytes(t)
    sums = _sums(group, t, full)
    again, first = _fetches(t)
    tick = max(array / t.chunks, sums / t.chunks, weights / speed + latency if again else 0)
    fresh = max(array / t.chunks, sums / t.chunks, (weights * first + rows) / speed + latency)
    visits = t.sections * t.strips
    ticks = t.ticks - visits
    begin = latency + (weights + rows) / speed
    block = begin + visits * fresh + ticks * tick + machine.lsma_fill + sums
    executed = t.ticks * 40 * t.walk.warps + t.jobs * full * t.columns / 32 * (3 + len(group.nodes))
    return float(machine.launch_cycles + p.batch * block + WEIGHT * executed)


def _array(t: Tiles, rows: int) -> float:
    """Cycles of a job's passes: a pass of few rows waits for the one before."""
    return float(t.passes * (max(rows, t.rows) + t.machine.lsma_bubble))


def _row_bytes(t: Tiles) -> float:
    """Bytes of global memory that a stored row comes from."""
    d = t.descriptor
    return float(d.width * d.channels * t.size * t.wn * d.height / d.layout.padded_h)


def _fetches(t: Tiles) -> tuple[bool, bool]:
    """Whether ticks after a strip's first fetch weights, and whether that one does."""
    again = t.kept == "chunk" and t.ticks > 1
    return again, again or t.blocks == 1


def _sums(group: Group, t: Tiles, rows: int) -> float:
    """Cycles of the epilogue for a job."""
    machine = t.machine
    varying = varying_operands(group, t.p)
    each = -(-rows * t.columns // 32) / min(machine.subcores, t.walk.warps - 2)
    converts = sum(n.op == "Cast" for n in group.nodes)
    issue = 3 + len(group.nodes) + len(varying)
    nbytes = rows * t.columns * sum(BYTES[group.inputs[v].dtype] for v in varying)
    nbytes += rows * t.columns * sum(BYTES[x.dtype] for x in group.outputs.values())
    work = each * max(converts * machine.units["cvt"].interval, issue)
    return (
        max(work, nbytes * machine.clock_hz / machine.dram_bytes_per_second) + machine.dram_latency
    )
