"""Predicted cycles of a launch, from the unit table of the machine.

A step takes as long as its busiest unit, all of its loads, a warp by itself, or the way of the next step's loads into shared memory, whichever
is slowest; what does not overlap is the first load and the epilogue. Blocks go round by round over the SMs, whose loads share L2:

    cycles = launch + rounds · (first load + steps · max(units, bytes, warp, load) + epilogue)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from knapper.isa import dataflow
from knapper.isa.machine import Machine

from .product import Product

ADDRESSES = 90
"""Instructions of a warp before its first load and for its stores' addresses."""
WEIGHT = 0.01
"""Cycles that an executed instruction counts beside its time: of plans that are about as fast, the one with less work is taken. Chosen, not
measured: from 0.001 to 0.01 networks differ by 2 % in either direction, and with the largest least is executed."""


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
    the block's traffic in units of 128 bytes; each part of B is loaded `loads_b` times, by warps for themselves. A thread has `results`
    accumulators and `registers` in all.
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
    loads_b: int = 1
    narrow: float = 1.0
    """Bytes of an element of B as it is loaded, by those of A."""


@dataclass(frozen=True)
class Work:
    """A launch: blocks of so many warps that take so many k steps; a result costs `epilogue` instructions, `converts` of them conversions.
    `weights` are bytes of B that come from DRAM, no launch having made them."""

    product: Product
    tile: Tile
    blocks: int
    warps: int
    steps: int
    epilogue: int
    weights: float
    step: Step
    converts: int = 1

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
    resident = residency(w.blocks, w.warps, s.registers, s.shared_bytes, machine)
    computing = in_rounds(w.blocks, resident, machine, lambda n: _round(w, n, machine))
    return machine.launch_cycles + computing + WEIGHT * w.instructions


def residency(blocks: int, warps: int, registers: int, shared: int, machine: Machine) -> int:
    """Blocks that an SM runs together, each of so many warps, registers a thread, and bytes of shared memory."""
    limits = (
        machine.registers_per_sm // (32 * warps * registers),
        machine.warps_per_sm // warps,
        machine.shared_bytes_per_sm // max(shared, 1),
        machine.blocks_per_sm,
        -(-blocks // machine.sms),
    )
    return max(1, min(limits))


def in_rounds(
    blocks: int, resident: int, machine: Machine, cycles: Callable[[int], float]
) -> float:
    """What the fullest SM takes for its blocks, `resident` at a time; the last ones may be fewer. `cycles` says it of blocks that run together."""
    whole, rest = divmod(-(-blocks // machine.sms), resident)
    return whole * cycles(resident) + (cycles(rest) if rest else 0)


def _round(w: Work, resident: int, machine: Machine) -> float:
    """Cycles of blocks that run on an SM together."""
    s, p, units = w.step, w.product, machine.units
    nbytes = from_l2(p, w.tile, resident * s.shared_bytes, machine, resident, s.loads_b, s.narrow)
    from_dram = w.weights + read_again(p, w.tile, machine.sms * resident, machine)
    missing = min(from_dram / (w.blocks * w.steps * nbytes), 1.0)
    speed = rate(w.blocks, machine, missing)
    load = latency(machine, missing) + min(nbytes, s.shared_bytes / 2) / speed
    busy = max(_busy(w, resident, machine), resident * nbytes / speed)
    step = max(busy, _alone(w, machine), load)
    share = max(1.0, resident * w.warps / machine.subcores)
    epilogue = s.results * share * max(w.converts * units["cvt"].interval, 2 * w.epilogue)
    first = load + 2 * units["lsu_shared"].latency + 2 * ADDRESSES * share
    return first + w.steps * step + epilogue


def latency(machine: Machine, missing: float) -> float:
    """Of a load, of which a part is `missing` in L2."""
    return machine.l2_latency + missing * (machine.dram_latency - machine.l2_latency)


def rate(blocks: int, machine: Machine, missing: float = 0.0) -> float:
    """Bytes a cycle that an SM gets of its port, of L2, and of DRAM for the part that is `missing` in L2: the others load as well."""
    each = machine.clock_hz * min(blocks, machine.sms)
    dram = missing * each / machine.dram_bytes_per_second
    return 1 / max(1 / machine.sm_bytes_per_cycle, each / machine.l2_bytes_per_second, dram)


def read_again(p: Product, t: Tile, at_once: int, machine: Machine) -> float:
    """Bytes of A and B that come from DRAM once more, while `at_once` blocks run: these find in L2 what each other reads.

    Blocks go down the rows of C, so a round of them reads some of A's rows and few of B's columns, and the next round reads the
    same again, which hits as far as A and B fit into L2.
    """
    down, across = -(-p.m // t.bm), -(-p.n // t.bn)
    a, b, together = p.a_type.bytes, p.b_type.bytes, min(at_once, down * across)
    rounds = -(-down * across // together)
    read = rounds * (a * min(together / down, 1.0) + b * min(-(-together // down) / across, 1.0))
    return max(read - a - b, 0.0) * max(0.0, 1 - machine.l2_bytes / (a + b))


def from_l2(
    p: Product,
    t: Tile,
    held: int,
    machine: Machine,
    blocks: int = 1,
    loads_b: int = 1,
    narrow: float = 1.0,
) -> float:
    """Bytes of A and B that a block loads from L2 in a step, while shared memory holds `held` bytes of an SM that runs `blocks` blocks.

    Taps of a convolution read pixels again, and warps B, `loads_b` times.
    """
    size, w = p.a_type.bytes // p.a_type.count, p.window
    a = float(t.bm * p.k)
    if w is not None:
        a = min(a, (t.bm * w.sy * w.sx + (w.kh - 1) * w.dy * w.w) * p.channels)
    a *= scattered(p)
    b = t.bn * p.k * narrow
    loaded, distinct = (t.bm * p.k * scattered(p) + b * loads_b) * size, (a + b) * size
    return beyond_l1(loaded, distinct, held, blocks, machine) / -(-p.k // t.bk)


def scattered(p: Product) -> float:
    """Bytes that come with each one that is used of A: of a row along which a list takes elements, whole sectors, and one more at an end."""
    return 1 / p.listed + 1 - p.listed if p.listed and not p.trans_a else 1.0


def beyond_l1(loaded: float, distinct: float, held: int, blocks: int, machine: Machine) -> float:
    """Of the bytes that a block loads those that come from L2: the distinct ones, and of repetitions those that L1 does not hold.

    Shared memory leaves L1 what it does not hold, and the distinct bytes of all `blocks` of an SM are in it as far as they fit.
    """
    hit = min(max(machine.l1_bytes - held, 0) / (blocks * distinct), 1.0)
    return distinct + (loaded - distinct) * (1 - hit)


def _busy(w: Work, resident: int, machine: Machine) -> float:
    """Cycles a k step of blocks that run together if only throughput counted."""
    s, share, units = w.step, -(-resident * w.warps // machine.subcores), machine.units
    return max(
        share * s.multiplies * units[s.unit].interval,
        resident * (s.shared + s.loads) * units["lsu_shared"].interval,
        share * (s.multiplies + s.others + w.moves),
    )


def _alone(w: Work, machine: Machine) -> float:
    """Cycles a k step of one warp by itself: its multiplies, in a row or waiting for each other, the barrier, the next fragments."""
    s, units = w.step, machine.units
    multiply, shared = units[s.unit], units["lsu_shared"]
    in_a_row = (s.multiplies - 1) * multiply.interval + multiply.latency
    working = max(in_a_row, s.chain * multiply.latency)
    return working + shared.latency + units["barrier"].latency


def tiled(
    step: Step, p: Product, t: Tile, nodes: int, known: bool, machine: Machine, converts: int = 1
) -> float:
    """Cycles of a launch of `nodes` nodes whose blocks compute tiles `t` of a product; `known`: B is, so no launch has just made it."""
    count, steps = -(-p.m // t.bm) * -(-p.n // t.bn) * p.batch, -(-p.k // t.bk)
    weights = p.b_type.bytes * step.narrow if known else 0
    warps = -(-t.threads // 32)
    return cycles(Work(p, t, count, warps, steps, 2 + nodes, weights, step, converts), machine)


@dataclass(frozen=True)
class Arrays:
    """A launch on systolic arrays.

    In a k step `strips` strips of a block take turns on the units, and a thread moves its part of the next tiles in `moves` loads and as
    many stores. A warp has `results` accumulators, each of which takes `epilogue`
    instructions, `converts` of them conversions; operands that differ by row, of `nbytes` a block, are loaded for `operands` results at a
    time. `weights` are the bytes of B, which no launch has made; the SM changes its mode `switches` times.
    """

    strips: int
    moves: int
    results: int
    epilogue: int
    converts: int
    operands: int
    nbytes: int
    weights: int
    switches: int


def systolic(p: Product, t: Any, size: int, w: Arrays, machine: Machine) -> float:
    """Cycles of a launch of tiles `t` whose operands are of `size` bytes. One block runs on an SM at a time.

    A block: addresses, the first load, a step for each other load (the array's work, or the load if that is longer), the last step,
    the results. Loads share L2 with those of the other SMs. They begin a step early, and as soon as a warp has its part it asks for the next
    one: what memory needs for the other warps passes meanwhile.
    """
    blocks, steps = -(-p.m // t.bm) * -(-p.n // t.bn) * p.batch, -(-p.k // t.bk)
    nbytes = from_l2(p, t, 2 * (t.bm + t.bn) * t.bk * size, machine)
    turns = -(-t.warps // machine.subcores)
    from_dram = w.weights + read_again(p, t, machine.sms, machine)
    missing = min(from_dram / (blocks * steps * nbytes), 1.0)
    speed = rate(blocks, machine, missing)
    wait = latency(machine, missing)
    one = dataflow.stream(machine, t.bm, t.units, accumulators=False, first=False)
    fold = one + (0 if machine.weight_double_buffer else dataflow.load(machine))
    array = w.strips * t.bk // machine.array_rows * fold
    banks = machine.shared_banks
    left = max(banks - machine.systolic_banks, 0) or banks  # who needs all has memory of its own
    stores = w.moves * t.warps * banks // left
    moving, storing = nbytes / speed, max(stores, 2 * w.moves * turns)
    load = max(moving, wait + moving / t.warps + storing)
    each = max(w.converts * machine.units["cvt"].interval, 2 * w.epilogue)
    results = -(-w.strips // machine.subcores) * w.results * each + w.nbytes / speed
    results += wait * -(-w.results // w.operands) if w.nbytes else 0
    block = (
        ADDRESSES * turns + wait + moving + storing
        + (steps - 1) * max(array, load + 2 * machine.units["barrier"].latency) + array
        + machine.lsma_fill + results + w.switches * machine.mode_switch_cycles
    )  # fmt: skip
    commands = 3 * w.strips * t.bk // machine.array_rows
    executed = steps * (commands + t.warps * (2 * w.moves + 12)) + w.strips * w.results * w.epilogue
    rounds = -(-blocks // machine.sms)
    return float(machine.launch_cycles + rounds * block + WEIGHT * blocks * executed)
