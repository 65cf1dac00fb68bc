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

ADDRESSES = 90
"""Instructions of a warp before its first load and for its stores' addresses."""
WEIGHT = 0.01
"""Cycles that an executed instruction counts beside its time: of plans that are about as fast, the one with less work is taken."""


@dataclass(frozen=True)
class Work:
    """What one block does. `shared` and `loads` are a k step's traffic in units of 128 bytes, `chain` the multiplies of a step that wait
    for one another, `others` its remaining instructions a warp; `results` are a thread's, each costing `epilogue` instructions."""

    blocks: int
    warps: int
    steps: int
    multiplies: int
    chain: int
    unit: str
    shared: int
    loads: int
    others: int
    results: int
    epilogue: int
    registers: int
    shared_bytes: int

    @property
    def instructions(self) -> float:
        """Executed in a launch, by all warps."""
        moves = (self.shared + self.loads) / (4 * self.warps)
        step = self.multiplies + moves + self.others
        return (
            self.blocks
            * self.warps
            * (self.steps * step + self.results * self.epilogue + ADDRESSES)
        )


def cycles(w: Work, machine: Machine) -> float:
    """The launch's cycles."""
    resident = max(1, min(
        machine.registers_per_sm // (32 * w.warps * w.registers), machine.warps_per_sm // w.warps,
        machine.shared_bytes_per_sm // max(w.shared_bytes, 1), machine.blocks_per_sm, math.ceil(w.blocks / machine.sms),
    ))  # fmt: skip
    rounds = math.ceil(w.blocks / (machine.sms * resident))
    step = max(resident * _busy(w, machine), _alone(w, machine))
    share = max(1.0, resident * w.warps / machine.subcores)
    epilogue = w.results * share * max(machine.units["cvt"].interval, 2 * w.epilogue)
    first = machine.l2_latency + 2 * machine.units["lsu_shared"].latency + 2 * ADDRESSES * share
    computing = rounds * (first + w.steps * step + epilogue)
    through_l2 = w.blocks * w.steps * w.loads * 128 * machine.clock_hz / machine.l2_bytes_per_second
    return machine.launch_cycles + max(computing, through_l2) + WEIGHT * w.instructions


def _busy(w: Work, machine: Machine) -> float:
    """Cycles a k step if only throughput counted."""
    share, units = math.ceil(w.warps / machine.subcores), machine.units
    moves = (w.shared + w.loads) / (4 * w.warps)
    return max(
        share * w.multiplies * units[w.unit].interval,
        (w.shared + w.loads) * units["lsu_shared"].interval,
        share * (w.multiplies + w.others + moves),
    )


def _alone(w: Work, machine: Machine) -> float:
    """Cycles a k step of one warp by itself: its multiplies, in a row or waiting for each other, the barrier, the next fragments."""
    units = machine.units
    multiply, shared = units[w.unit], units["lsu_shared"]
    working = max(w.multiplies * multiply.interval, w.chain * multiply.latency)
    return working + multiply.latency + shared.latency + units["barrier"].latency


def hmma(
    p: Product, t: Any, packed: bool, way: str, machine: Machine, nodes: int, registers: int
) -> float:
    """A Tensor Core launch with tiling `t`."""
    blocks = -(-p.m // t.bm) * -(-p.n // t.bn) * p.batch
    tile_a, tile_b = t.bm * t.bk * 2 // 128, t.bn * t.bk * 2 // 128
    gathers = 4 * tile_a if way == "gather" else 0
    direct = t.wm * tile_b if packed else 0  # every row of warps loads the weights for itself
    staged = tile_a + gathers + (0 if packed else tile_b)
    fragments = t.warps * (t.fm + (0 if packed else t.fn)) * t.kk * 4
    work = Work(
        blocks, t.warps, -(-p.k // t.bk), t.fm * t.fn * t.kk, t.kk, "tensor",
        shared=staged + fragments, loads=staged + direct, others=12, results=t.fm * t.fn * 8, epilogue=2 + nodes,
        registers=min(registers, 255), shared_bytes=2 * (t.bm + (0 if packed else t.bn)) * t.bk * 2,
    )  # fmt: skip
    return cycles(work, machine)


def ffma(p: Product, t: Any, words: int, way: str, machine: Machine, nodes: int) -> float:
    """A launch on the SIMD lanes with tiling `t`."""
    blocks = -(-p.m // t.bm) * -(-p.n // t.bn) * p.batch
    warps = -(-t.threads // 32)
    tiles = (t.bm + t.bn) * t.bk * 4 * words // 128
    reads = warps * t.bk * (t.tm + t.tn) * words // 4 * 4
    gathers = t.bm * t.bk * words // 32 if way == "gather" else 0
    work = Work(
        blocks, warps, -(-p.k // t.bk), t.tm * t.tn * t.bk, t.bk, "fp64" if words == 2 else "fma",
        shared=tiles + reads + gathers, loads=tiles + gathers, others=8 * t.bk // 4, results=t.tm * t.tn, epilogue=2 + nodes,
        registers=min((t.tm * t.tn + 4 * (t.tm + t.tn)) * words + 40, 255), shared_bytes=2 * (t.bm + t.bn) * t.bk * 4 * words,
    )  # fmt: skip
    return cycles(work, machine)


def direct(p: Product, pixels: int, machine: Machine, nodes: int) -> float:
    """A depthwise launch: `pixels` outputs a thread. Loads, conversions and multiplies share the issue slots."""
    w = p.window
    assert w is not None
    warps = -(-w.images * w.oh * -(-w.ow // pixels) * p.n // 32)
    inputs = w.kh * ((pixels - 1) * w.sx + (w.kw - 1) * w.dx + 1)
    converted = 0 if p.dtype == "f32" else inputs + w.taps + pixels
    issued = inputs + w.taps * (1 + pixels) + converted + pixels * (2 + nodes) + ADDRESSES // 2
    share = math.ceil(warps / (machine.sms * machine.subcores))
    busy = share * max(2 * issued, converted * machine.units["cvt"].interval)
    return machine.launch_cycles + 2 * machine.l2_latency + busy + WEIGHT * warps * issued
