"""How the operands of a sparse product get into shared memory: one loader, for records of activations and of weights.

    step t   entries   asked for at step t - 8      where the records begin, how many bytes they use; 0 outside of the operand
             records   asked for at step t - 5      header, and values as far as there are any
             stored    at step t - 2                values as they are; descriptors: the address of a channel's values, its bitmap
             computed  at step t

Half a warp carries a record: a lane two channels' bitmaps, and 16 bytes of values a load. Which operand a warp carries is settled before
the first step, in registers: an address, the sizes that the conv unit compares with. From then on there is no difference. Most of the eight
loads for a record without zeros are jumped over, one of 256 bytes is always there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from knapper.isa.instructions import (
    BALLOT,
    BAR,
    BRA,
    BTST,
    IADD,
    IMAD,
    ISETP,
    LDG,
    LDG_IM2COL,
    LOP,
    MOV,
    POPC,
    R2UR,
    SEL,
    SHF,
    STS,
    UIADD,
    UIMAD,
    ULOP,
    UMOV,
    USHF,
)
from knapper.isa.modifiers import Bits32, Cmp, Direction, Logic, Width

from ....sparsity.bitmap import CHUNK, HEADER, LINE, SEGMENT, STARTS
from ...builder import RZ, URZ, KernelBuilder, Not, VPred, VReg, VUReg
from ..access import FAR, Dim, Walk
from ..code import (
    S32,
    U32,
    Number,
    add,
    divmod_,
    fixed,
    move_base,
    mul,
    param,
    uadd,
    ucompare,
    umov,
    umul,
)
from .shape import BUFFERS, DESCRIPTORS, VALUES, Shape

TIERS = ((0, 1), (1, 2), (2, 4), (4, 8))
"""Loads of 256 bytes that are made, or jumped over, together."""
HALF = 16
"""Lanes that carry a record."""
LOADED = 2 * BUFFERS - 1
"""Steps from when records are asked for until the product."""
AHEAD = LOADED + BUFFERS
"""The same of their entries."""
ONE_RUN = 63 << 24
"""n0 of a start whose values all lie in one run."""


@dataclass
class Carried:
    """A step on its way from global to shared memory: entries, headers, values.

    `left`: how many 16s of bytes there are from a lane's first on. `some`: bit i, whether either record has any from byte 256 i on.
    """

    entry: VReg
    bitmaps: VReg
    start: VReg
    left: VReg
    data: list[VReg]
    some: VUReg


@dataclass
class Moved:
    """What the walk over k moves: a place, and a shift in positions."""

    base: VUReg
    tap: VUReg | None
    dims: tuple[Dim, ...]


class Loader:
    """What the warps that load do, numbered from 0. The block begins at the tile of C (row0, col0), its buffers at `base` in shared memory."""

    def __init__(
        self, b: KernelBuilder, s: Shape, base: int, lane: VReg, warp: Number, row0: Number, col0: Number
    ) -> None:  # fmt: skip
        self.b, self.s, self.base = b, s, base
        self.half, self.l16 = divmod_(b, lane, HALF)
        self.l16x16 = mul(b, self.l16, HALF)
        assert not isinstance(warp, int)  # there is one a side, at least
        self.is_b = ucompare(b, Cmp.GE, warp, s.slots_a)
        self._places(warp)
        self._addresses(row0, col0)
        self.sets = [self._set() for _ in range(s.buffers)]

    def emit(self) -> None:
        """The whole walk."""
        b, steps = self.b, self.s.steps
        walk = self._walk()

        def ask(step: int) -> None:
            if step < steps:
                if step:
                    walk.first(step)
                self._ask(step)

        for step in range(BUFFERS):
            ask(step)
        for step in range(LOADED):
            if BUFFERS <= step < steps + BUFFERS:
                self._store(step - BUFFERS)
            if step < steps:
                self._load(step)
            ask(step + BUFFERS)
        b.emit(BAR, 0)
        times = max(steps - AHEAD, 0)
        if times:
            walk.first(AHEAD)
            threes(b, walk, times, lambda phase: self._step(phase, phase + AHEAD + 1))
        for step in range(times, steps):
            self._step(step, steps)

    def _step(self, step: int, steps: int) -> None:
        """What is due at a step of so many."""
        due: tuple[tuple[int, Callable[[int], None]], ...] = (
            (BUFFERS - 1, self._store), (LOADED, self._load), (AHEAD, self._ask),
        )  # fmt: skip
        for ahead, what in due:
            if step + ahead < steps:
                what(step + ahead)
        self.b.emit(BAR, 0)

    def _set(self) -> Carried:
        b = self.b
        data = [b.reg(4) for _ in range(8)]
        return Carried(b.reg(), b.reg(2), b.reg(), b.reg(), data, b.ureg())

    def _places(self, warp: Number) -> None:
        """Where in a buffer the lane's record lies: its values, its descriptors."""
        b, s = self.b, self.s
        unit = add(b, self.half, umul(b, warp, 2))
        values = mul(b, unit, VALUES, fixed(b, self.base))
        one_run = 0 if s.halo else ONE_RUN
        self.starts = [add(b, values, i * s.buffer + one_run) for i in range(s.buffers)]
        """By buffer: where the record's values begin, and that all lie in one run."""
        self.values = mul(b, self.l16, CHUNK, values)
        words = mul(b, unit, DESCRIPTORS, fixed(b, self.base + s.places * VALUES))
        self.words = mul(b, self.l16, CHUNK, words)
        self.unit = unit

    def _addresses(self, row0: Number, col0: Number) -> None:
        """Bases, sizes and pixels of the operand that the warp carries."""
        b, s, op = self.b, self.s, self.s.op
        layout, depth = op.layout, s.t.depth
        per = op.taps * s.rows
        first = uadd(b, row0, op.first - self.bias)
        unit = self._of_b(self.unit, add(b, self.unit, -2 * s.slots_a))
        place, d = divmod_(b, unit, depth)
        count = self._of_b(fixed(b, s.units_a), fixed(b, s.units_b))
        line = self._of_b(fixed(b, layout.groups), fixed(b, per))
        inside, far = b.pred(), b.reg()
        origin = self._of_b(fixed(b, first), fixed(b, col0))
        b.emit(ISETP, Cmp.LT, S32, inside, unit, count)
        pix = mul(b, add(b, place, origin), 1 << 16, d)
        b.emit(SEL, Bits32._32, far, pix, FAR, inside)
        self.pix = far
        at = b.reg()
        b.emit(IMAD, S32, at, place, line, d)
        self.lane_entry = mul(b, at, 4)
        self.size = self._either(
            layout.segments << 16 | layout.groups, min(op.columns, 0x7FFF) << 16 | 0x7FFF
        )
        entries_a, records_b, entries_b = param(b, 0), param(b, 1), param(b, 2)
        records_a = param(b, 0)
        move_base(b, entries_a, layout.sections[0])
        move_base(b, entries_a, umul(b, row0, 4 * layout.groups))
        move_base(b, entries_a, 4 * layout.groups * (op.first - self.bias))
        move_base(b, entries_b, umul(b, col0, 4 * per))
        self.records = self._pair(records_a, records_b)
        self.entries = self._pair(entries_a, entries_b)

    def _pair(self, a: VUReg, b: VUReg) -> VUReg:
        d = self.b.ureg(2)
        for i in range(2):
            self.b.emit(UMOV, d[i], self._either(a[i], b[i]))
        return d

    def _of_b(self, a: VReg, b: VReg) -> VReg:
        d = self.b.reg()
        self.b.emit(SEL, Bits32._32, d, b, a, self.is_b)
        return d

    def _either(self, a: Number, b: Number) -> VUReg:
        """A uniform number: `a` in warps that carry A, `b` in the others."""
        d = self.b.ureg()
        self.b.emit(R2UR, d, self._of_b(fixed(self.b, a), fixed(self.b, b)))
        return d

    @property
    def bias(self) -> int:
        """Segments by which shifts are raised, so that none is negative."""
        return max(0, -(min(self.s.op.shifts) // SEGMENT))

    # --- the walk over k

    def _walk(self) -> Walk:
        """All operands', at step 0."""
        b, s, op = self.b, self.s, self.s.op
        w, depth = op.p.window, s.t.depth
        self.tap: VUReg = umov(b, 0)
        if op.taps == 1 or w is None:
            self.at = Moved(self.entries, self.tap, (Dim(s.steps, 4 * depth, depth),))
            return Walk(b, [self.at])
        self.at = shifts(b, s, self.bias * SEGMENT)
        self.at.dims = (Dim(s.steps_of_tap, depth), *self.at.dims[1:])
        self.channels, self.steps = self.at.base, b.ureg(2)
        for u in (self.channels, self.steps):
            b.emit(UMOV, u[0], 0)
            b.emit(UMOV, u[1], 0)
        self.here, self.wide = b.ureg(2), b.ureg(2)
        b.emit(UMOV, self.wide[1], 0)
        # what A's part counts for, and B's
        self.factors = {n: self._either(n, 0) for n in (1, 4, 4 * op.layout.groups, 1 << 16)}
        self.linear = self._either(0, 1)
        return Walk(b, [self.at, Moved(self.steps, None, (Dim(s.steps, 4 * depth),))])

    def _derive(self) -> VUReg:
        """From where the walk is: the address of entries, and what is added to pixels."""
        b, op = self.b, self.s.op
        if op.taps == 1:
            return self.entries
        assert self.at.tap is not None
        segments, at, tap = b.ureg(), b.ureg(), b.ureg()
        b.emit(USHF, Direction.R, segments, self.at.tap, 5)
        b.emit(UIMAD, at, self.steps[0], self.linear, URZ)
        b.emit(UIMAD, at, self.channels[0], self.factors[4], at)
        b.emit(UIMAD, self.wide[0], segments, self.factors[4 * op.layout.groups], at)
        b.emit(UIADD, Bits32._64, self.here, self.entries, self.wide)
        b.emit(UIMAD, tap, self.channels[0], self.factors[1], URZ)
        b.emit(UIMAD, self.tap, segments, self.factors[1 << 16], tap)
        return self.here

    # --- the stations

    def _ask(self, step: int) -> None:
        """Where the records of a step lie."""
        b, c = self.b, self.sets[step % BUFFERS]
        base = self._derive()
        b.emit(LDG_IM2COL, Width._32, c.entry, base, self.lane_entry, 0, self.pix, self.tap, self.size)  # fmt: skip

    def _load(self, step: int) -> None:
        """The records of a step: headers, and values as far as there are any."""
        b, c = self.b, self.sets[step % BUFFERS]
        chunks, at, some = b.reg(), b.reg(), b.pred()
        b.emit(LOP, Logic.AND, Bits32._32, chunks, c.entry, 0xFF)
        b.emit(SHF, Direction.R, U32, at, c.entry, 8 - LINE.bit_length() + 1)
        b.emit(LOP, Logic.AND, Bits32._32, at, at, -LINE & 0xFFFFFFFF)
        b.emit(ISETP, Cmp.NE, S32, some, chunks, 0)
        b.emit(IMAD, S32, c.left, self.l16, -1, chunks)
        head, values = b.reg(), b.reg()
        b.emit(IMAD, S32, head, self.l16, 8, at)
        b.emit(IMAD, S32, values, self.l16, CHUNK, at)
        for i in range(2):
            b.emit(MOV, c.bitmaps[i], RZ)
        b.emit(LDG, Width._64, c.bitmaps, self.records, head, 0, guard=some)
        b.emit(IMAD, S32, at, self.l16, 2, at)
        b.emit(MOV, c.start, RZ)
        b.emit(LDG, Width.U16, c.start, self.records, at, STARTS, guard=some)

        self._extent(c, chunks)

        def move(i: int, p: VPred) -> None:
            b.emit(LDG, Width._128, c.data[i], self.records, values, HEADER + 256 * i, guard=p)

        self._tiers(c, move)

    def _extent(self, c: Carried, chunks: VReg) -> None:
        """Lane i of a half asks whether there are bytes from 256 i on; both halves' answers in one."""
        b = self.b
        p, d, high = b.pred(), b.reg(), b.ureg()
        b.emit(ISETP, Cmp.GT, S32, p, chunks, self.l16x16)
        b.emit(BALLOT, d, p)
        b.emit(R2UR, c.some, d)
        b.emit(USHF, Direction.R, high, c.some, HALF)
        b.emit(ULOP, Logic.OR, c.some, c.some, high)

    def _tiers(self, c: Carried, move: Any) -> None:
        """`move` for all 256 bytes of which there are any, in lanes that have some."""
        b = self.b
        end = b.label()
        for first, last in TIERS:
            if first:
                go = b.pred()
                b.emit(BTST, go, c.some, first)
                b.emit(BRA, end, guard=Not(go))
            for i in range(first, last):
                p = b.pred()
                b.emit(ISETP, Cmp.GT, S32, p, c.left, HALF * i)
                move(i, p)
        b.place(end)

    def _store(self, step: int) -> None:
        """Descriptors and values of a step."""
        b, c = self.b, self.sets[step % BUFFERS]
        offset = step % BUFFERS * self.s.buffer
        four, count = b.reg(4), b.reg()
        b.emit(POPC, count, c.bitmaps[0])
        b.emit(IADD, S32, four[0], c.start, self.starts[step % BUFFERS])
        b.emit(IMAD, S32, four[2], count, 2, four[0])
        b.emit(MOV, four[1], c.bitmaps[0])
        b.emit(MOV, four[3], c.bitmaps[1])
        b.emit(STS, Width._128, URZ, self.words, offset, four)

        def move(i: int, p: VPred) -> None:
            b.emit(STS, Width._128, URZ, self.values, offset + 256 * i, c.data[i], guard=p)

        self._tiers(c, move)


def shifts(b: KernelBuilder, s: Shape, start: int = 0) -> Moved:
    """The walk over taps: by how many positions each is ahead, from that of the first tap plus `start` on."""
    w = s.op.p.window
    inner = Dim(s.steps_of_tap, 0)
    if w is None or s.op.taps == 1:
        return Moved(b.ureg(2), None, (inner,))
    dims = (inner, Dim(w.kw, 0, w.dx), Dim(w.kh, 0, w.dy * s.op.layout.pitch))
    return Moved(b.ureg(2), umov(b, s.op.shifts[0] + start), dims)


def threes(b: KernelBuilder, walk: Walk, times: int, body: Callable[[int], None]) -> None:
    """The rest of a walk, `times` steps, in a loop over three of them: there are three buffers, and three sets of registers."""
    labels, end = [b.label() for _ in range(BUFFERS)], b.label()
    for phase, label in enumerate(labels):
        b.place(label)
        if phase >= times:
            continue
        body(phase)
        again = labels[(phase + 1) % BUFFERS]
        walk.again(lambda c, to=again: b.emit(BRA, to, guard=ucompare(b, Cmp.NE, c, 0)))  # type: ignore[misc]  # a lambda's default has no type
        if times % BUFFERS == (phase + 1) % BUFFERS:  # the last one can only be here
            b.emit(BRA, end)
    b.place(end)
