"""Predicted cycles of a launch, from the unit table of the machine.

A block's time is that of its busiest unit, or of a warp by itself if that is longer, plus what does not overlap: the first loads, the
epilogue. Blocks go round by round over the SMs, and all of them share L2:

    cycles = launch + max(rounds · (first load + steps · max over units + epilogue), bytes loaded / L2 bandwidth)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from knapper.isa import dataflow
from knapper.isa.machine import Machine

from .product import Product

ADDRESSES = 90
"""Instructions of a warp before its first load and for its stores' addresses."""
WEIGHT = 0.01
"""Cycles that an executed instruction counts beside its time: of plans that are about as fast, the one with less work is taken."""


class Tile(Protocol):
    """A block's tile."""

    @property
    def bm(self) -> int: ...
    @property
    def bn(self) -> int: ...
    @property
    def bk(self) -> int: ...
    @property
    def threads(self) -> int: ...


@dataclass(frozen=True)
class Step:
    """What a block does in a k step, and what it holds.

    A warp multiplies `multiplies` times on `unit`, `chain` of which wait for one another, and executes `others` besides; `shared` and `loads` are
    the block's traffic in units of 128 bytes. A thread has `results` accumulators and `registers` in all.
    """

    unit: str
    multiplies: int
    chain: int
    shared: int
    loads: int
    others: int
    results: int
    registers: int
    shared_bytes: int


@dataclass(frozen=True)
class Work:
    """A launch: blocks of so many warps that take so many k steps; a result costs `epilogue` instructions."""

    blocks: int
    warps: int
    steps: int
    epilogue: int
    step: Step

    @property
    def instructions(self) -> float:
        """Executed in a launch, by all warps."""
        s = self.step
        step = s.multiplies + self.moves + s.others
        each = self.steps * step + s.results * self.epilogue + ADDRESSES
        return self.blocks * self.warps * each

    @property
    def moves(self) -> float:
        """Loads and stores of a warp in a step."""
        return (self.step.shared + self.step.loads) / (4 * self.warps)


def cycles(w: Work, machine: Machine) -> float:
    """The launch's cycles."""
    s = w.step
    resident = max(1, min(
        machine.registers_per_sm // (32 * w.warps * s.registers), machine.warps_per_sm // w.warps,
        machine.shared_bytes_per_sm // max(s.shared_bytes, 1), machine.blocks_per_sm, math.ceil(w.blocks / machine.sms),
    ))  # fmt: skip
    rounds = math.ceil(w.blocks / (machine.sms * resident))
    step = max(resident * _busy(w, machine), _alone(w, machine))
    share = max(1.0, resident * w.warps / machine.subcores)
    epilogue = s.results * share * max(machine.units["cvt"].interval, 2 * w.epilogue)
    first = machine.l2_latency + 2 * machine.units["lsu_shared"].latency + 2 * ADDRESSES * share
    computing = rounds * (first + w.steps * step + epilogue)
    through_l2 = w.blocks * w.steps * s.loads * 128 * machine.clock_hz / machine.l2_bytes_per_second
    return machine.launch_cycles + max(computing, through_l2) + WEIGHT * w.instructions


def _busy(w: Work, machine: Machine) -> float:
    """Cycles a k step if only throughput counted."""
    s, share, units = w.step, math.ceil(w.warps / machine.subcores), machine.units
    return max(
        share * s.multiplies * units[s.unit].interval,
        (s.shared + s.loads) * units["lsu_shared"].interval,
        share * (s.multiplies + s.others + w.moves),
    )


def _alone(w: Work, machine: Machine) -> float:
    """Cycles a k step of one warp by itself: its multiplies, in a row or waiting for each other, the barrier, the next fragments."""
    s, units = w.step, machine.units
    multiply, shared = units[s.unit], units["lsu_shared"]
    working = max(s.multiplies * multiply.interval, s.chain * multiply.latency)
    return working + multiply.latency + shared.latency + units["barrier"].latency


def tiled(step: Step, p: Product, t: Tile, nodes: int, machine: Machine) -> float:
    """Cycles of a launch of `nodes` nodes whose blocks compute tiles `t` of a product."""
    count = -(-p.m // t.bm) * -(-p.n // t.bn) * p.batch
    return cycles(Work(count, -(-t.threads // 32), -(-p.k // t.bk), 2 + nodes, step), machine)


def systolic(
    p: Product,
    t: Any,
    passes: int,
    size: int,
    way: str,
    machine: Machine,
    nodes: int,
    switches: int,
) -> float:
    """A launch on the systolic arrays: `passes` strips take turns on the units; operands are of `size` bytes; each of `switches`
    changes of mode drains the SM."""
    blocks = -(-p.m // t.bm) * -(-p.n // t.bn) * p.batch
    steps, folds = -(-p.k // t.bk), t.bk // machine.array_rows
    tiles = (t.bm + t.bn) * t.bk * size // 128
    gathers = 4 * t.bm * t.bk * size // 128 if way == "gather" else 0
    one = dataflow.stream(machine, t.bm, t.units, accumulators=False, first=False)
    array = passes * folds * (one + (0 if machine.weight_double_buffer else dataflow.load(machine)))
    moves = (2 * tiles + gathers) * machine.units["lsu_shared"].interval
    share = t.warps / machine.subcores
    alone = machine.l2_latency + 2 * machine.units["barrier"].latency
    step = max(
        array,
        moves * machine.shared_banks // (machine.shared_banks - machine.systolic_banks),
        alone,
    )
    results = -(-t.bm * t.bn // (32 * machine.subcores))
    epilogue = results * max(machine.units["cvt"].interval, 2 * (2 + nodes))
    first = machine.l2_latency + ADDRESSES * share + array + machine.lsma_fill
    computing = -(-blocks // machine.sms) * (
        first + (steps - 1) * step + epilogue + switches * machine.mode_switch_cycles
    )
    through_l2 = blocks * steps * tiles * 128 * machine.clock_hz / machine.l2_bytes_per_second
    instructions = blocks * (
        steps * (3 * folds * passes + 20 * t.warps) + results * machine.subcores * (2 + nodes)
    )
    total: float = machine.launch_cycles + max(computing, through_l2) + WEIGHT * instructions
    return total
