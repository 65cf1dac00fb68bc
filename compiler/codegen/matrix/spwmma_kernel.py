"""A sparse product being emitted: encoded activations and weights through shared memory into SPWMMA.

    bitmaps s+3 ─┐                                            where values lie, and what the conv unit finds outside is zero
    values  s+2 ─┼─► compute s ─► store s+1 ─ BAR ─┐          loads guarded by bit counts: only bytes that are used are touched
                 └─────────────────────────────────┘

In shared memory a unit, which is 16 channels of a segment of A or a tile of B, takes 1 KB for its values and 16 descriptors of 8 bytes,
where values begin and their bitmap. So a lane of SPWMMA reads all it needs at once: lanes 0 to 15 a column of A each, the others a row
of B. Under a tap the 32 rows of a tile are a window over two neighbouring segments. A lane then reads the second bitmap, too, and
BMSLICE makes the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from knapper.isa.instructions import (
    ACC_ST,
    BAR,
    BMSLICE,
    BRA,
    EXIT,
    IADD,
    ISETP,
    LDG,
    LDG_IM2COL,
    LDS,
    LOP,
    MOV,
    POPC,
    SEL,
    SHFL,
    SPWMMA,
    STS,
    UIADD,
    ULOP,
    UMOV,
    USHF,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, Direction, Half, Logic, Shuffle, Width
from knapper.isa.sparse import WORDS

from ...ir import Array
from ...sparsity.bitmap import GROUP, HEADER, SEGMENT, SLOT, Weights
from ..builder import PT, RZ, KernelBuilder, Not, VLabel, VPred, VReg, VUReg
from ..generator import Emitted, Group
from . import blocks
from .access import FAR, Dim, Walk
from .code import (
    S32,
    Number,
    add,
    block_index,
    divmod_,
    fixed,
    lane_id,
    move_base,
    mul,
    param,
    special,
    uadd,
    ucompare,
    udivmod,
    umin,
    umov,
    umul,
)
from .engine import Emitter
from .epilogue import operands
from .pipeline import Buffers
from .spwmma_epilogue import finish
from .spwmma_shape import DESCRIPTORS, VALUES, Shape, weights

ONE_RUN = 63 << 24
"""n0 of a start whose values all lie in one run."""


@dataclass
class Moved:
    """What the walk over k moves: a place, and a shift in positions."""

    base: VUReg
    tap: VUReg | None
    dims: tuple[Dim, ...]


@dataclass
class Carried:
    """What a unit brings from global to shared memory. `marks` tell, half by half, which lanes take part."""

    descriptor: VReg
    data: list[VReg]
    marks: list[VReg]
    start: VReg


@dataclass
class UnitA:
    """A round of A's units: this warp's one. Offsets of a lane from the step's base, and its segment and channels as a pixel."""

    values: VReg
    bitmaps: VReg
    pix: VReg
    word: VReg
    """The address of its slot, without the buffer's."""
    fetched: VReg
    """The bitmap of channel lane % 16, of the step after the one that is loaded."""
    sets: list[Carried]


@dataclass
class UnitB:
    """A round of B's units. `ends`: where its record begins, and that plus the bytes of its values, of the step after."""

    tile: VReg
    ends: VReg
    sets: list[Carried]


class SparseKernel(Emitter):
    """One launch being emitted."""

    def __init__(self, group: Group, shape: Shape, machine: Machine) -> None:
        self.group, self.s, self.machine = group, shape, machine
        self.op, self.t, self.p = shape.op, shape.t, shape.op.p
        name = f"{self.p.b}.{shape.rows}x{self.t.depth}"
        self.packed = {part: f"{name}.{part}" for part in ("records", "tiles")}
        self.tail = operands(self.op.plain, self.p)
        self.names = (self.p.a, *self.packed.values(), *self.tail, *group.outputs)
        self.parameters = {v: 3 + i for i, v in enumerate((*self.tail, *group.outputs))}

    def constants(self) -> dict[str, Array]:
        values = weights(self.op, self.group.constants[self.p.b])
        made = Weights.of(values, self.op.taps, self.s.rows, self.t.depth)
        return {self.packed["records"]: made.records, self.packed["tiles"]: made.tiles}

    def emit(self) -> Emitted:
        words = WORDS * self.t.warps
        b = self.b = KernelBuilder(
            self.group.name,
            (32 * self.t.warps, 1, 1),
            self.machine,
            matrix=True,
            accumulators=words,
        )
        b.role(self.group.nodes.index(self.p.node))
        self._begin()
        self.buffers = Buffers(b, self.s.buffer, self.s.steps)
        self.read, self.written = self.buffers.pointer(0), self.buffers.write
        b.shared_bytes = max(b.shared_bytes, self.s.shared_bytes)
        self._units()
        self._walked()
        self._product()
        over = b.label()
        for here, last, count in (
            (self.row, self.op.count, self.t.wm),
            (self.col, self.op.columns, self.t.wn),
        ):
            if last % count and not isinstance(here, int):
                b.emit(BRA, over, guard=ucompare(b, Cmp.GE, here, last))
        finish(self)
        b.place(over)
        b.emit(EXIT)
        return blocks.launched(b.finish(), self.group, self.p, self.s.grid, self.names)

    # --- where things are

    def _begin(self) -> None:
        """The warp's tile: `row` and `col` count tiles of C, from the first that has rows."""
        b, t = self.b, self.t
        x, y, _ = self.s.grid
        self.lane = lane_id(b)
        self.warp: Number = special(b, SR.WARPID) if t.warps > 1 else 0
        j, i = udivmod(b, self.warp, t.wm) if not isinstance(self.warp, int) else (0, 0)
        self.i, self.j = i, j
        self.row0 = umul(b, block_index(b, SR.CTAID_X, x), t.wm)
        self.col0 = umul(b, block_index(b, SR.CTAID_Y, y), t.wn)
        self.row, self.col = uadd(b, self.row0, i), uadd(b, self.col0, j)
        self.low = b.pred()
        b.emit(ISETP, Cmp.LT, S32, self.low, self.lane, GROUP)

    def _units(self) -> None:
        b, s, t, op = self.b, self.s, self.t, self.op
        l16 = b.reg()
        b.emit(LOP, Logic.AND, Bits32._32, l16, self.lane, GROUP - 1)
        slot, quarter = divmod_(b, self.lane, 4)
        self.slots = [slot, add(b, slot, 8)]
        self.first = mul(b, quarter, 8)
        wide = mul(b, self.lane, 16)
        self.l4, self.l2 = mul(b, l16, 4), mul(b, l16, 2)
        self.wide = wide
        own = umul(b, self.warp, VALUES)
        self.place = add(b, wide, own)
        self.descriptors = add(
            b, mul(b, l16, 8), umul(b, self.warp, DESCRIPTORS, s.places * VALUES)
        )
        self.a = [self._unit_a(r, l16, own) for r in range(s.rounds_a)]
        self.b_units = [self._unit_b(r) for r in range(s.rounds_b)]
        consumer_a = umul(b, self.i, t.depth * DESCRIPTORS, s.places * VALUES)
        consumer_b = umul(
            b, self.j, t.depth * DESCRIPTORS, s.places * VALUES + s.rounds_a * t.warps * DESCRIPTORS
        )
        at = b.reg()
        b.emit(SEL, Bits32._32, at, fixed(b, consumer_a), consumer_b, self.low)
        self.consumer = mul(b, l16, 8, at)
        self.second = self.consumer
        if s.halo:
            more = b.reg()
            b.emit(SEL, Bits32._32, more, fixed(b, t.depth * DESCRIPTORS), 0, self.low)
            self.second = b.reg()
            b.emit(IADD, S32, self.second, self.consumer, more)
        self.tiles_of_b = op.columns

    def _unit_number(self, r: int) -> tuple[Number, Number]:
        """Of round r: (which segment or column of tiles, which 16 channels)."""
        u = uadd(self.b, self.warp, r * self.t.warps)
        return divmod(u, self.t.depth) if isinstance(u, int) else udivmod(self.b, u, self.t.depth)

    def _unit_a(self, r: int, l16: VReg, own: Number) -> UnitA:
        b, s, t = self.b, self.s, self.t
        segment, k = self._unit_number(r)
        slots = umul(b, segment, self.op.layout.channels, umul(b, k, GROUP))
        pix = fixed(b, uadd(b, umul(b, uadd(b, segment, self._origin()), 1 << 16), k))
        if (r + 1) * t.warps > s.units_a:
            u = uadd(b, self.warp, r * t.warps)
            if isinstance(u, int):
                there: Any = PT if u < s.units_a else Not(PT)  # type: ignore[arg-type]  # PT is a guard that can be negated, too
            else:
                there = ucompare(b, Cmp.LT, u, s.units_a)
            inside = b.reg()
            b.emit(SEL, Bits32._32, inside, pix, FAR, there)
            pix = inside
        word = mul(
            b, l16, SLOT, fixed(b, uadd(b, own, r * t.warps * VALUES + (0 if s.halo else ONE_RUN)))
        )
        return UnitA(
            mul(b, self.lane, 16, fixed(b, umul(b, slots, SLOT))),
            mul(b, l16, 4, fixed(b, umul(b, slots, 4))),
            pix, word, b.reg(), self._sets(),
        )  # fmt: skip

    def _origin(self) -> Number:
        """The first segment of the block under a shift of 0, less what makes every tap's shift positive."""
        return uadd(self.b, self.row0, self.op.first - self._bias)

    @property
    def _bias(self) -> int:
        """Segments by which shifts are raised."""
        return max(0, -(min(self.op.shifts) // SEGMENT))

    def _unit_b(self, r: int) -> UnitB:
        b, t = self.b, self.t
        column, k = self._unit_number(r)
        column = uadd(b, self.col0, column)
        if (r + 1) * t.warps > self.s.units_b or self.op.columns % t.wn:
            column = umin(b, column, self.op.columns - 1)  # there is no other one
        row = self.s.rows + t.depth
        tile = fixed(b, umul(b, umul(b, column, row, k), 8))
        return UnitB(tile, b.reg(2), self._sets())

    def _sets(self) -> list[Carried]:
        """Registers of two steps that are on their way."""
        b, found = self.b, list[Carried]()
        for _ in range(min(self.s.steps, 2)):
            c = Carried(b.reg(2), [b.reg(4), b.reg(4)], [b.reg(), b.reg()], b.reg())
            found.append(c)
        return found

    # --- the walk over k

    def _walked(self) -> None:
        b, s, t, op = self.b, self.s, self.t, self.op
        layout, w = op.layout, op.p.window
        self.base_a, self.records, tiles = (param(b, i) for i in range(3))
        rows = umul(b, self.row0, layout.channels * SLOT)
        self.base_bm = b.ureg(2)
        b.emit(UIADD, Bits32._64, self.base_bm, self.base_a, layout.sections[0])
        move_base(b, self.base_a, rows)
        move_base(b, self.base_bm, umul(b, self.row0, layout.channels * 4))
        back = (op.first - self._bias) * layout.channels
        move_base(b, self.base_a, back * SLOT)
        move_base(b, self.base_bm, back * 4)
        channels = b.ureg(2)
        b.emit(UMOV, channels[0], 0)
        b.emit(UMOV, channels[1], 0)
        inner = Dim(s.steps_of_tap, t.depth * GROUP)
        if w is None or w.taps == 1:
            self.walk_a = Moved(channels, None, (inner,))
        else:
            dims = (inner, Dim(w.kw, 0, w.dx), Dim(w.kh, 0, w.dy * layout.pitch))
            self.walk_a = Moved(channels, umov(b, op.shifts[0] + self._bias * SEGMENT), dims)
        # a level of one step is no level: channels then stand still
        self.walk_b = Moved(tiles, None, (Dim(s.steps, 8 * t.depth),))
        self.size = umov(b, size_of(layout.segments, layout.groups))
        self.values_at, self.bitmaps_at = b.ureg(2), b.ureg(2)
        self.pixel = b.ureg()
        self.next_shift = b.ureg()
        self.shifts = [b.ureg() for _ in range(3 if self.walk_a.tap is not None else 0)]
        self.wide0 = b.ureg(2)
        b.emit(UMOV, self.wide0[1], 0)

    def _derive(self) -> None:
        """From where the walk is: addresses, the pixel of the conv unit, the shift inside a segment."""
        b, a = self.b, self.walk_a
        at: Number = a.base[0]
        tap: Number = b.ureg()
        b.emit(USHF, Direction.R, tap, a.base[0], 4)
        if a.tap is not None:
            segments = b.ureg()
            b.emit(USHF, Direction.R, segments, a.tap, 5)
            b.emit(ULOP, Logic.AND, self.next_shift, a.tap, SEGMENT - 1)
            at = umul(b, segments, self.op.layout.channels, a.base[0])
            # channels of a tap never leave it: the unit is asked for segments only
            tap = umul(b, segments, 1 << 16, tap)
        b.emit(UMOV, self.pixel, tap)
        for base, target, size in (
            (self.base_a, self.values_at, SLOT),
            (self.base_bm, self.bitmaps_at, 4),
        ):
            b.emit(UMOV, self.wide0[0], umul(b, at, size))
            b.emit(UIADD, Bits32._64, target, base, self.wide0)

    # --- loads

    def _bitmaps(self) -> None:
        """Ask where the values of a step lie."""
        b = self.b
        self._derive()
        for u in self.a:
            b.emit(
                LDG_IM2COL,
                Width._32,
                u.fetched,
                self.bitmaps_at,
                u.bitmaps,
                0,
                u.pix,
                self.pixel,
                self.size,
            )
        for v in self.b_units:
            b.emit(LDG, Width._64, v.ends, self.walk_b.base, v.tile, 0)

    def _values(self, step: int) -> None:
        """Load the values of that step, each slot's and record's used bytes."""
        b = self.b
        if self.shifts:
            b.emit(UMOV, self.shifts[min(step, 2)], self.next_shift)
        for u in self.a:
            c = u.sets[step % 2]
            b.emit(MOV, c.descriptor[1], u.fetched)
            count = b.reg()
            b.emit(POPC, count, u.fetched)
            for half, (d, mark) in enumerate(zip(c.data, c.marks, strict=True)):
                b.emit(SHFL, Shuffle.IDX, mark, count, self.slots[half])
                p = self._used(c, half)
                b.emit(LDG, Width._128, d, self.values_at, u.values, 512 * half, guard=p)
        for v in self.b_units:
            c, begin, end = v.sets[step % 2], v.ends[0], v.ends[1]
            at = [add(b, lane, begin) for lane in (self.l4, self.l2)]
            b.emit(LDG, Width._32, c.descriptor[1], self.records, at[0], 0)
            b.emit(LDG, Width.U16, c.start, self.records, at[1], 64)
            b.emit(IADD, S32, c.marks[0], self.wide, begin)
            b.emit(MOV, c.marks[1], end)
            for half, d in enumerate(c.data):
                p = self._inside(c, half)
                b.emit(LDG, Width._128, d, self.records, c.marks[0], HEADER + 512 * half, guard=p)

    def _used(self, c: Carried, half: int) -> VPred:
        """The lanes whose quarter of a slot of A has values."""
        p = self.b.pred()
        self.b.emit(ISETP, Cmp.GT, S32, p, c.marks[half], self.first)
        return p

    def _inside(self, c: Carried, half: int) -> VPred:
        """The lanes whose 16 bytes of a record of B have values."""
        (at, end), p = c.marks, self.b.pred()
        self.b.emit(ISETP, Cmp.LT, S32, p, at, add(self.b, end, -512 * half))
        return p

    def _store(self, step: int) -> None:
        """What was loaded goes to shared memory."""
        b, s, t = self.b, self.s, self.t
        own = uadd(b, self.written, umul(b, self.warp, VALUES))
        for r, u in enumerate(self.a):
            c = u.sets[step % 2]
            b.emit(IADD, S32, c.descriptor[0], u.word, self.written)
            self._put(r * t.warps, c, self._used)
        for r, v in enumerate(self.b_units):
            c, at = v.sets[step % 2], (s.rounds_a + r) * t.warps
            b.emit(IADD, S32, c.descriptor[0], c.start, uadd(b, own, at * VALUES + ONE_RUN))
            self._put(at, c, self._inside)

    def _put(self, at: int, c: Carried, taking_part: Callable[[Carried, int], VPred]) -> None:
        """A unit's descriptors and values, `at` units from the warp's first place."""
        b = self.b
        place, word = at * VALUES, at * DESCRIPTORS
        b.emit(STS, Width._64, self.written, self.descriptors, word, c.descriptor, guard=self.low)
        for half, d in enumerate(c.data):
            p = taking_part(c, half)
            b.emit(STS, Width._128, self.written, self.place, place + 512 * half, d, guard=p)

    # --- the product

    def _clear(self) -> None:
        """The warp's tile of C = +0."""
        b = self.b
        zero = b.reg(32)
        for r in range(32):
            b.emit(MOV, zero[r], RZ)
        self.tile = umov(b, umul(b, self.warp, WORDS))
        b.emit(ACC_ST, 32, self.tile, 0, zero)

    def _compute(self) -> None:
        b, s, t = self.b, self.s, self.t
        by: VReg | None = None
        if s.halo:
            by = b.reg()
            b.emit(SEL, Bits32._32, by, RZ, self.shifts[0], Not(self.low))
        for k in range(t.depth):
            d = b.reg(2)
            b.emit(LDS, Width._64, d, self.read, self.consumer, k * DESCRIPTORS)
            start, bitmap = d, d[1]  # one run: nobody asks where the second is
            if by is not None:
                pair, window, start = b.reg(2), b.reg(2), b.reg(2)
                b.emit(MOV, pair[0], d[1])
                b.emit(LDS, Width._32, pair[1], self.read, self.second, k * DESCRIPTORS + 4)
                b.emit(BMSLICE, window, pair, by)
                b.emit(IADD, S32, start[0], d[0], window[1])
                b.emit(IADD, S32, start[1], d[0], t.depth * VALUES)
                bitmap = window[0]
            b.emit(SPWMMA, Half[self.p.dtype.upper()], self.tile, start, bitmap)

    def _product(self) -> None:
        """The whole walk: step s is computed, s + 1 waits in registers to be stored, s + 2 and where s + 3 lies are on their way."""
        b, steps = self.b, self.s.steps
        walk = Walk(b, [self.walk_a, self.walk_b])
        self._bitmaps()
        self._values(0)
        for step in range(1, min(steps, 3)):
            walk.first(step)
            self._bitmaps()
            if step < 2:
                self._values(step)
        self._clear()
        self._store(0)
        if steps > 1:
            self.buffers.swap([self.written])
        b.emit(BAR, 0)
        if steps > 3:
            walk.first(3)
            self._loop(walk, steps - 3)
        for step in range(max(0, steps - 3), steps - 1):
            self._step(step, steps)
        self._compute()
        b.emit(BAR, 0)

    def _loop(self, walk: Walk, times: int) -> None:
        """Steps by twos, since there are two sets of registers; which of the two is the last one is known."""
        b = self.b
        even, odd, end = b.label(), b.label(), b.label()
        b.place(even)
        self._step(0, 4)
        walk.again(self._while(odd))
        if times % 2:
            b.emit(BRA, end)
        b.place(odd)
        if times > 1:
            self._step(1, 5)
            walk.again(self._while(even))
        b.place(end)

    def _while(self, label: VLabel) -> Callable[[VUReg], None]:
        return lambda counter: self.b.emit(BRA, label, guard=ucompare(self.b, Cmp.NE, counter, 0))

    def _step(self, step: int, steps: int) -> None:
        """Compute a step of so many."""
        b = self.b
        if step + 2 < steps:
            self._values(step + 2)
        if step + 3 < steps:
            self._bitmaps()
        self._compute()
        self._store(step + 1)
        for here, later in pairwise(self.shifts):
            b.emit(UMOV, here, later)
        self.buffers.swap()
        b.emit(BAR, 0)


def size_of(segments: int, groups: int) -> int:
    """The size that the conv unit is told: segments down, groups of channels across."""
    return segments << 16 | groups
