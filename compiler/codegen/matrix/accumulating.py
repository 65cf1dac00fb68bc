"""Matrix products on systolic arrays of any shape that have accumulator memory: C lies there, not in registers.

    block tile bm × bn × bk            C: strip after strip, each bm rows of `width` words; bm · bn words fit the memory
    ┌────────┬────────┬────┐
    │strip 0 │strip 1 │ 2  │           per array_rows of k and strip:  SMA.LDB, SMA.SWAP, LSMA.ACC, all from warp 0
    │ bm × w │        │    │           per bk:                         one COMMIT; the other buffer is filled meanwhile
    └────────┴────────┴────┘           at the end:                     every warp takes its rows of C, ACC.LD, epilogue

Operands come into shared memory as for `systolic`, whose loop this is. Rows of a tile are as many as the product has where they fit: an array
with accumulators pays its fill for each fold of weights, so a fold should stream all of A.

The dataflow does not show here. Weight stationary or output stationary, an LSMA continues the chain of each element of C, and what
differs is how long it takes (`knapper.isa.dataflow`). Output stationary, C is one tile of the array: its memory has room for no more, and a
chain begins with `.SET`. That is why the first step is not made of cleared accumulators: whether it is the first is asked in the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd
from typing import Any

from knapper.isa import dataflow
from knapper.isa.core import SIMD, SYSTOLIC
from knapper.isa.instructions import (
    ACC_LD,
    BAR,
    BRA,
    MODE,
    SMA_COMMIT,
    SMA_SWAP,
    SMA_WAIT,
    UMOV,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Cmp, Mode, Nibble, Space, Start
from knapper.isa.systolic import LANES, UNITS, WORD
from knapper.isa.systolic import QUEUE as COMMANDS
from knapper.isa.systolic import Array as Units

from ..builder import VReg, VUReg
from ..generator import Group, Options, register
from . import cost
from .blocks import access, product, vector_a, vector_b
from .code import add, divmod_, lane_id, special, uadd, ucompare, umov, umul
from .cuts import widths
from .engine import TiledEngine
from .epilogue import Frame, Spot
from .pipeline import Buffers, Tile
from .product import Product
from .systolic import (
    ELEMENTS,
    SIZES,
    SKEW,
    Strip,
    Strips,
    converts_only,
    mode_pairs,
    size_b,
    strips,
)
from .systolic import Kernel as SystolicKernel

WARPS = 8
CHUNK = 32
"""Registers of C that a warp holds at once."""
HEIGHTS = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
"""Bounds on the rows of a block tile, before it is cut evenly."""
DEPTHS = (1280, 512, 256, 128, 64, 32)
"""Bounds on k a step, before it is made a multiple of the array's rows."""
VECTOR = 16
"""Bytes of the widest access."""
PREFETCHED = 160
"""Registers in which a thread carries its part of the next step."""


def column_of(p: Product, machine: Machine) -> int:
    """Columns of one unit for this type."""
    across = Nibble.S4.across if size_b(p) == 1 else ELEMENTS[p.dtype].across
    return units_of(machine).columns_of(across)


def units_of(machine: Machine) -> Units:
    """The machine's arrays, as the ISA sees them."""
    return Units(
        machine.array_rows,
        machine.array_columns,
        machine.systolic_units,
        machine.accumulator_bytes // WORD,
        machine.vector_word,
    )


# --- tiles


def tilings(p: Product, machine: Machine) -> Iterator[Strips]:
    """Block tiles that may pay for this product, without their modes."""
    column = column_of(p, machine)
    for units in range(min(machine.systolic_units, UNITS), 0, -1):
        for bn in breadths(p, column, units, machine):
            for bm in heights(p, bn, column, machine):
                for bk in depths(p, machine):
                    t = Strips(bm, bn, bk, units, WARPS)
                    if fits(p, t, column, machine):
                        yield t


def breadths(p: Product, column: int, units: int, machine: Machine) -> list[int]:
    """Widths that cut n into equal tiles. Output stationary, C is what the units hold at once."""
    if machine.dataflow != "os":
        return widths(p.n, column, (4 * units, 2 * units, units))
    return [column * min(units, -(-p.n // column))]


def heights(p: Product, bn: int, column: int, machine: Machine) -> list[int]:
    """Rows that cut m evenly, and fill whole registers."""
    room = machine.accumulator_bytes // WORD // bn
    if machine.dataflow == "os":
        room = min(room, machine.array_rows)
    whole = LANES // gcd(column, LANES)
    cut = (-(-p.m // -(-p.m // top)) for top in (room, *(h for h in HEIGHTS if h < room)) if top)
    return [h for h in dict.fromkeys(-(-h // whole) * whole for h in cut) if h <= room]


def depths(p: Product, machine: Machine) -> list[int]:
    """Multiples of the array's rows that cut the channels of a tap evenly; if there are none, what is filled up with zeros."""
    rows = machine.array_rows
    cuts = (p.channels // n for n in range(1, p.channels // rows + 1) if p.channels % n == 0)
    even = [bk for bk in cuts if bk % rows == 0]
    found = {max((bk for bk in even if bk <= d), default=0) for d in DEPTHS} - {0}
    filled = {-(-min(d, p.k) // rows) * rows for d in DEPTHS}
    return sorted(found or filled, reverse=True)


def fits(p: Product, t: Strips, column: int, machine: Machine) -> bool:
    """Whether buffers fit shared memory, the next step's loads the registers, commands the queue."""
    size, buffers = SIZES[p.dtype], 2 if p.k > t.bk else 1
    nbytes = buffers * (t.bk * (t.bm * size + t.bn * size_b(p)) + SKEW * (t.bk + t.bm))
    folds = passes(t, column) * t.bk // machine.array_rows
    return (
        nbytes <= machine.shared_bytes_per_block
        and buffers * (3 * folds + 1) <= COMMANDS
        and carried(p, t, size) <= PREFETCHED
        and not (p.trans_a and t.bm > t.threads and t.bm % t.threads)
    )


def carried(p: Product, t: Strips, size: int) -> int:
    """Registers that a thread needs for its loads of a step, the places of mixed taps included."""
    places = 3 if access(p, t.bk) == "gather" else 1
    a, b = loads(p, t, size)
    sizes = ((a, size), (b, size_b(p)))
    return sum(n * -(-v * each // WORD) for (n, v), each in sizes) + places * a[0]


def loads(p: Product, t: Strips, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of A and of B: loads of a thread in a step, and elements that each takes."""
    a = 1 if p.trans_a else vector_a(p, VECTOR // size)
    b = 1 if p.trans_b else vector_b(p, VECTOR // size_b(p))
    of_a, of_b = (-(-t.bk * n // (v * t.threads)) for n, v in ((t.bm, a), (t.bn, b)))
    return (of_a, a), (of_b, b)


def passes(t: Strips, column: int) -> int:
    """Strips of a block tile."""
    return strips(t, column)[-1].last


# --- the kernel


@dataclass(frozen=True)
class Share:
    """`warps` warps from number `first` on take `rows` rows of a strip each; warp w begins at row w · pitch."""

    first: int
    warps: int
    rows: int
    pitch: int


class Kernel(SystolicKernel):
    """One launch being emitted."""

    fresh: VUReg | None = None
    """1 until the first step of a loop has begun the chains."""

    def begin(self) -> None:
        self.warp = special(self.b, SR.WARPID)
        found = strips(self.t, column_of(self.p, self.machine))
        self.strips = [
            replace(s, first=i, last=i + 1) for s in found for i in range(s.first, s.last)
        ]

    def connect(self, buffers: Buffers, tiles: list[Tile]) -> None:
        self.a_at, self.b_at = (buffers.pointer(tile.start) for tile in tiles)

    def accumulators(self) -> list[VReg]:
        return []

    def clear(self) -> None:
        """Nothing is cleared: the first step sets."""
        self.fresh = umov(self.b, 1)

    def origin(self, s: Strip) -> int:
        """Where a strip begins in accumulator memory, and in bytes of a row of B."""
        return s.first * self.strips[0].width

    def _tile(
        self, rows: int, cols: int, v: int, transposed: bool, start: int, reach: Any
    ) -> tuple[Tile, int, int]:
        """Rows may be any number: what lies behind the tile begins where vectors can."""
        tile, pitch, end = super()._tile(rows, cols, v, transposed, start, reach)
        return tile, pitch, -(-end // VECTOR) * VECTOR

    # --- the product

    def compute(self, first: bool, last: bool) -> None:
        b = self.b
        with self._warps(0, 1):
            for s in self.strips:
                self._folds(s, first, last)
            if self.fresh is not None:
                b.emit(UMOV, self.fresh, 0)
            b.emit(SMA_COMMIT)
        if not last:
            b.emit(SMA_WAIT, 1)
            b.emit(BAR, 0)

    @contextmanager
    def _warps(self, first: int, count: int) -> Iterator[None]:
        """What is emitted inside is for some warps."""
        b, over, last = self.b, self.b.label(), first + count
        if first:
            b.emit(BRA, over, guard=ucompare(b, Cmp.LT, self.warp, first))
        if last < self.t.warps:
            b.emit(BRA, over, guard=ucompare(b, Cmp.GE, self.warp, last))
        yield
        b.place(over)

    def _folds(self, s: Strip, first: bool, last: bool) -> None:
        """The strip's part of one k step."""
        b, rows, right = self.b, self.machine.array_rows, self.origin(s) * self.element_b
        for i in range(self.t.bk // rows):
            at = right + i * rows * self.pitch_b
            b.emit(self.ldb, self.types[1], s.units, self.b_at, at, self.pitch_b)
            b.emit(SMA_SWAP, s.units)
            if first or last or i or self.fresh is None:
                self._stream(s, i, Start.SET if first and not i else Start.ADD)
            else:
                self._begin_or_continue(s, self.fresh)

    def _begin_or_continue(self, s: Strip, fresh: VUReg) -> None:
        """The first LSMA of a loop's step."""
        b, more, over = self.b, self.b.label(), self.b.label()
        b.emit(BRA, more, guard=ucompare(b, Cmp.EQ, fresh, 0))
        self._stream(s, 0, Start.SET)
        b.emit(BRA, over)
        b.place(more)
        self._stream(s, 0, Start.ADD)
        b.place(over)

    def _stream(self, s: Strip, i: int, start: Start) -> None:
        at = i * self.machine.array_rows * self.element
        self.b.emit(
            self.lsma, self.types[0], start, Space.ACC, self.t.bm * self.origin(s), s.units, self.t.bm,
            self.a_at, at, self.pitch_a,
        )  # fmt: skip

    # --- the epilogue

    def results(self) -> Iterator[tuple[Frame, list[Spot]]]:
        """Every warp takes some rows of each strip: chunk by chunk into registers, whose lanes lie alike in all chunks."""
        b, stays = self.b, converts_only(self.group, self.p)
        lanes = {s.width: [*self._lanes(s.width)] for s in self.strips}
        if stays:
            b.emit(SMA_WAIT, 0)
            b.emit(BAR, 0)
        else:
            b.emit(MODE, Mode.SIMD)
        for s in self.strips:
            for share in self._shares(s.width):
                with self._warps(share.first, share.warps):
                    yield from self._rows(s, share, lanes[s.width])
        if (self.t.modes[1] == SYSTOLIC) != stays:
            b.emit(MODE, Mode.SIMD if stays else Mode.SYSTOLIC)

    def _lanes(self, width: int) -> Iterator[tuple[VReg, VReg]]:
        """Row and column of each lane in the registers of a period, after which they repeat some rows further down."""
        for i in range(width // gcd(width, LANES)):
            yield divmod_(self.b, add(self.b, lane_id(self.b), i * LANES), width)

    def _shares(self, width: int) -> list[Share]:
        """How a strip's rows are dealt to warps: in whole periods, evenly, the last one what is left."""
        step = LANES // gcd(width, LANES)
        each = step * -(-self.t.bm // (step * self.t.warps))
        whole, rest = divmod(self.t.bm, each)
        found = [Share(0, whole, each, each)] if whole else []
        return found + ([Share(whole, 1, rest, each)] if rest else [])

    def _rows(
        self, s: Strip, share: Share, lanes: list[tuple[VReg, VReg]]
    ) -> Iterator[tuple[Frame, list[Spot]]]:
        """A warp's rows of a strip."""
        b, width = self.b, s.width
        step, first = LANES // gcd(width, LANES), umul(b, self.warp, share.pitch)
        words = umov(b, umul(b, first, width, self.t.bm * self.origin(s)))
        col0 = uadd(b, self.block.n0, self.origin(s))
        chunk = max(1, CHUNK // len(lanes)) * step
        for row in range(0, share.rows, chunk):
            height = min(chunk, share.rows - row)
            registers = height * width // LANES
            acc = b.reg(registers)
            b.emit(ACC_LD, registers, acc, words, row * width)
            row0 = uadd(b, self.block.m0, uadd(b, first, row))
            for i, (down, across) in enumerate(lanes):
                spots = [
                    Spot(acc[r], r // len(lanes) * step, 0) for r in range(i, registers, len(lanes))
                ]
                yield self.frame(row0, col0, down, across), spots


# --- the generator


class Accumulating(TiledEngine[Strips]):
    """The generator."""

    kind = "accumulating"
    extensions = frozenset({"systolic", "conv"})
    tiling, kernel = Strips, Kernel

    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        if not machine.accumulator_bytes:
            return f"{machine.name} has no accumulator memory"
        if why := units_of(machine).unfit:
            return f"{machine.name} has {why}"
        if p.dtype not in ELEMENTS or p.a_type.dtype != p.b_type.dtype:
            return f"operands are {p.a_type.dtype} and {p.b_type.dtype}, the arrays take f16, bf16 and f32"
        return None

    def tilings(self, group: Group, p: Product, machine: Machine) -> Iterator[Strips]:
        for t in tilings(p, machine):
            for modes in mode_pairs(group, p, t, machine):
                yield replace(t, modes=modes)

    def cycles(self, group: Group, p: Product, t: Strips, way: str, machine: Machine) -> float:
        modes = [t.modes[0], SYSTOLIC, SYSTOLIC if converts_only(group, p) else SIMD, t.modes[1]]
        switches = sum(a != b for a, b in pairwise(modes))
        return predicted(p, t, way, machine, len(group.nodes), switches)

    def streaming(self, group: Group, options: Options, machine: Machine) -> int:
        """Cycles that a launch takes of the arrays, of all SMs."""
        return streaming(product(group), Strips.of(options), machine)


def predicted(
    p: Product, t: Strips, way: str, machine: Machine, nodes: int, switches: int
) -> float:
    """Cycles of a launch of `nodes` nodes. A step takes as long as the array, or from one load to the next: over L2's port or that of shared
    memory, and a load's latency, which nothing hides from the loads of the same step."""
    size, units, steps, count = SIZES[p.dtype], machine.units, -(-p.k // t.bk), blocks(p, t)
    array = streaming(p, t, machine) / count
    tile = (t.bm * size + t.bn * size_b(p)) * t.bk
    accesses = sum(n for n, _ in loads(p, t, size)) * t.warps * (2 if way == "gather" else 1)
    latency = machine.l2_latency + 2 * units["barrier"].latency
    ports = max(accesses, tile // 128) * units["lsu_shared"].interval
    fetch = max(ports, tile / machine.sm_bytes_per_cycle) + latency
    results = -(-t.bm * t.bn // (LANES * machine.subcores))
    epilogue = results * max(units["cvt"].interval, 2 * (2 + nodes)) + latency
    block = fetch + max(array, (steps - 1) * fetch + array / steps) + epilogue
    drains = switches * machine.mode_switch_cycles + machine.lsma_fill
    instructions = count * (steps * 20 * t.warps + results * machine.subcores * (2 + nodes))
    total = -(-count // machine.sms) * (block + drains)
    return float(machine.launch_cycles + total + cost.WEIGHT * instructions)


def streaming(p: Product, t: Strips, machine: Machine) -> int:
    """Cycles of the arrays: for each strip of each block the folds of its chain, the first of which begins it."""
    begins, goes_on = (fold(t, machine, first) for first in (True, False))
    folds = -(-p.k // t.bk) * t.bk // machine.array_rows
    return blocks(p, t) * passes(t, column_of(p, machine)) * (begins + (folds - 1) * goes_on)


def blocks(p: Product, t: Strips) -> int:
    """Blocks of a launch."""
    return -(-p.m // t.bm) * -(-p.n // t.bn) * p.batch


def fold(t: Strips, machine: Machine, first: bool) -> int:
    """Cycles of the array for one LDB and its LSMA."""
    one = dataflow.stream(machine, t.bm, t.units, accumulators=True, first=first)
    return one + (0 if machine.weight_double_buffer else dataflow.load(machine))


register(Accumulating())
