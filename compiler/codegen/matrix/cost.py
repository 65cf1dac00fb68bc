"""Predicted cycles of a launch, from the unit table of the machine.

A block's time is that of its busiest unit, or of a warp by itself if that is longer, plus what does not overlap: the first loads, the
epilogue. Blocks go round by round over the SMs, and all of them share L2:

    cycles = launch + max(rounds · (first load + steps · max over units + epilogue), bytes loaded / L2 bandwidth)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from knapper.isa.machine import Machine

from .product import Product

EPILOGUE = 6
"""Instructions a result and warp beside its arithmetic: addresses, conversion, store."""


@dataclass(frozen=True)
class Work:
    """What one block does: k steps; for each step instructions a warp of the multiplying unit, shared-memory and global traffic in
    units of 128 bytes, other instructions; results a thread; registers a thread."""

    blocks: int
    warps: int
    steps: int
    multiplies: int
    unit: str
    shared: int
    loads: int
    others: int
    results: int
    registers: int
    shared_bytes: int


def cycles(w: Work, nodes: int, machine: Machine) -> float:
    """The launch's cycles."""
    resident = max(1, min(
        machine.registers_per_sm // (32 * w.warps * w.registers), machine.warps_per_sm // w.warps,
        machine.shared_bytes_per_sm // max(w.shared_bytes, 1), machine.blocks_per_sm, math.ceil(w.blocks / machine.sms),
    ))  # fmt: skip
    rounds = math.ceil(w.blocks / (machine.sms * resident))
    busy = resident * _step(w, machine)
    alone = _chain(w, machine)
    first = machine.l2_latency + 2 * machine.units["lsu_shared"].latency
    epilogue = (
        w.results * (EPILOGUE + 2 * nodes) * max(1.0, resident * w.warps / machine.subcores) * 2
    )
    through_l2 = w.blocks * w.steps * w.loads * 128 * machine.clock_hz / machine.l2_bytes_per_second
    computing = rounds * (first + w.steps * max(busy, alone) + epilogue)
    return machine.launch_cycles + max(computing, through_l2)


def _step(w: Work, machine: Machine) -> float:
    """Cycles a k step if only throughput counted."""
    share = math.ceil(w.warps / machine.subcores)
    units = machine.units
    return max(
        share * w.multiplies * units[w.unit].interval,
        (w.shared + w.loads) * units["lsu_shared"].interval,
        share * (w.multiplies + w.others + 2 * (w.shared + w.loads) / (4 * w.warps)),
    )


def _chain(w: Work, machine: Machine) -> float:
    """Cycles a k step of one warp by itself: its multiplies in a row, then the barrier and the next fragments."""
    units = machine.units
    return (
        w.multiplies * units[w.unit].interval
        + units["lsu_shared"].latency
        + units["barrier"].latency
        + units[w.unit].latency
    )


def hmma(p: Product, t: Any, packed: bool, way: str, machine: Machine, nodes: int, registers: int) -> float:
    """A Tensor Core launch with tiling `t`."""
    blocks = -(-p.m // t.bm) * -(-p.n // t.bn) * p.batch
    tile_a, tile_b = t.bm * t.bk * 2 // 128, t.bn * t.bk * 2 // 128
    gathers = 4 * tile_a if way == "gather" else 0
    direct = t.wm * tile_b if packed else 0  # every row of warps loads the weights for itself
    staged = tile_a + gathers + (0 if packed else tile_b)
    fragments = t.warps * (t.fm + (0 if packed else t.fn)) * t.kk * 4
    work = Work(
        blocks, t.warps, -(-p.k // t.bk), t.fm * t.fn * t.kk, "tensor",
        shared=staged + fragments, loads=staged + direct, others=12, results=t.fm * t.fn * 8,
        registers=min(registers, 255), shared_bytes=2 * (t.bm + (0 if packed else t.bn)) * t.bk * 2,
    )  # fmt: skip
    return cycles(work, nodes, machine)


def ffma(p: Product, t: Any, words: int, way: str, machine: Machine, nodes: int) -> float:
    """A launch on the SIMD lanes with tiling `t`."""
    blocks = -(-p.m // t.bm) * -(-p.n // t.bn) * p.batch
    warps = -(-t.threads // 32)
    tiles = (t.bm + t.bn) * t.bk * 4 * words // 128
    reads = warps * t.bk * (t.tm + t.tn) * words // 4 * 4
    gathers = t.bm * t.bk * words // 32 if way == "gather" else 0
    work = Work(
        blocks, warps, -(-p.k // t.bk), t.tm * t.tn * t.bk, "fp64" if words == 2 else "fma",
        shared=tiles + reads + gathers, loads=tiles + gathers, others=8 * t.bk // 4, results=t.tm * t.tn,
        registers=min((t.tm * t.tn + 4 * (t.tm + t.tn)) * words + 40, 255), shared_bytes=2 * (t.bm + t.bn) * t.bk * 4 * words,
    )  # fmt: skip
    return cycles(work, nodes, machine)


def direct(p: Product, pixels: int, threads: int, machine: Machine, nodes: int) -> float:
    """A depthwise launch: `pixels` outputs a thread. Loads, conversions and multiplies share the issue slots."""
    w = p.window
    assert w is not None
    groups = w.images * w.oh * -(-w.ow // pixels) * p.n
    inputs = w.kh * ((pixels - 1) * w.sx + (w.kw - 1) * w.dx + 1)
    issue = 2 * inputs + 2 * w.taps + w.taps * pixels
    warps = -(-groups // 32)
    share = math.ceil(warps / (machine.sms * machine.subcores))
    results = pixels * (EPILOGUE + 2 * nodes)
    return machine.launch_cycles + 2 * machine.l2_latency + share * 2 * (issue + results)
