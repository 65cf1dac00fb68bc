"""A sparse product being emitted: records of activations and weights through shared memory into SPWMMA.

    warps that multiply     SPWMMA, descriptors of step s + 1, SPWMMA, …                  BAR
    warps that load         store step s + 2, load step s + 5, ask for step s + 8         BAR      (`Loader`)

The former are as many as accumulator memory has tiles, too few to hide what loads take; the others have registers for it. In shared
memory a record of 32 channels takes 2 KB for its values, at worst, and 32 descriptors of 8 bytes: where a channel's values begin, and
its bitmap. So a lane of SPWMMA reads all it needs at once: lanes 0 to 15 a column of A each, the others a row of B. There are three
buffers. The one after a step's is complete when the step begins, so descriptors are read before the barrier, and no warp waits for them behind it.

Under a tap the 32 rows of a tile are a window over two neighbouring segments. A lane then reads the second's descriptor, too, and BMSLICE
makes the window: the bitmap, and how many values of the first are skipped, how many taken.
"""

from __future__ import annotations

from knapper.isa.instructions import (
    ACC_ST,
    BAR,
    BMSLICE,
    BRA,
    EXIT,
    IADD,
    ISETP,
    LDS,
    LOP,
    MOV,
    SEL,
    SPWMMA,
    ULOP,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, Half, Logic, Width
from knapper.isa.sparse import STEPS, WORDS

from ....ir import Array
from ....sparsity.bitmap import SEGMENT, Weights
from ...builder import RZ, URZ, KernelBuilder, VReg, VUReg
from ...generator import Emitted, Group
from .. import blocks
from ..access import Walk
from ..code import (
    S32,
    block_index,
    divmod_,
    fixed,
    lane_id,
    mul,
    special,
    uadd,
    ucompare,
    udivmod,
    umov,
    umul,
)
from ..engine import Emitter
from ..epilogue import operands
from .epilogue import finish
from .loader import Loader, shifts, threes
from .shape import BUFFERS, DESCRIPTORS, HALVES, VALUES, Shape, weights


class SparseKernel(Emitter):
    """One launch being emitted."""

    def __init__(self, group: Group, shape: Shape, machine: Machine) -> None:
        self.group, self.s, self.machine = group, shape, machine
        self.op, self.t, self.p = shape.op, shape.t, shape.op.p
        name = f"{self.p.b}.{shape.rows}"
        self.packed = {part: f"{name}.{part}" for part in ("records", "entries")}
        self.tail = operands(self.op.plain, self.p)
        self.names = (self.p.a, *self.packed.values(), *self.tail, *group.outputs)
        self.parameters = {v: 3 + i for i, v in enumerate((*self.tail, *group.outputs))}

    def constants(self) -> dict[str, Array]:
        values = weights(self.op, self.group.constants[self.p.b])
        made = Weights.of(values, self.op.taps, self.s.rows)
        return {self.packed["records"]: made.records, self.packed["entries"]: made.entries}

    def emit(self) -> Emitted:
        t, s = self.t, self.s
        b = self.b = KernelBuilder(
            self.group.name,
            (32 * s.warps, 1, 1),
            self.machine,
            matrix=True,
            accumulators=WORDS * t.warps,
        )
        b.role(self.group.nodes.index(self.p.node))
        self._begin()
        self.stage = b.shared(s.shared_bytes, 128)
        multiplies, over = b.label(), b.label()
        b.emit(BRA, multiplies, guard=ucompare(b, Cmp.LT, self.warp, t.warps))
        warp = uadd(b, self.warp, -t.warps)
        Loader(b, s, self.stage, self.lane, warp, self.row0, self.col0).emit()
        b.emit(EXIT)
        b.place(multiplies)
        self._consumer()
        self._product()
        for here, last, count in (
            (self.row, self.op.count, t.wm),
            (self.col, self.op.columns, t.wn),
        ):
            if last % count and not isinstance(here, int):
                b.emit(BRA, over, guard=ucompare(b, Cmp.GE, here, last))
        finish(self)
        b.place(over)
        b.emit(EXIT)
        return blocks.launched(b.finish(), self.group, self.p, s.grid, self.names)

    # --- where things are

    def _begin(self) -> None:
        """The block's tile of C, `row0` and `col0`, counted from the first that has rows."""
        b, t = self.b, self.t
        x, y, _ = self.s.grid
        self.lane = lane_id(b)
        self.warp = special(b, SR.WARPID)
        self.row0 = umul(b, block_index(b, SR.CTAID_X, x), t.wm)
        self.col0 = umul(b, block_index(b, SR.CTAID_Y, y), t.wn)

    def _consumer(self) -> None:
        """The warp's tile of C; where in a buffer the lane's descriptors lie, and those of the segment after."""
        b, s, t = self.b, self.s, self.t
        j, i = udivmod(b, self.warp, t.wm)
        self.row, self.col = uadd(b, self.row0, i), uadd(b, self.col0, j)
        low = b.pred()
        b.emit(ISETP, Cmp.LT, S32, low, self.lane, STEPS)
        words = self.stage + s.places * VALUES
        a = umul(b, i, t.depth * DESCRIPTORS, words)
        other = umul(b, j, t.depth * DESCRIPTORS, words + 2 * s.slots_a * DESCRIPTORS)
        at = b.reg()
        b.emit(SEL, Bits32._32, at, fixed(b, a), other, low)
        _, l16 = divmod_(b, self.lane, STEPS)
        self.first = mul(b, l16, 8, at)
        if s.halo:
            self.second, self.of_a, more = b.reg(), b.reg(), b.reg()
            b.emit(SEL, Bits32._32, self.of_a, fixed(b, SEGMENT - 1), 0, low)
            b.emit(SEL, Bits32._32, more, fixed(b, t.depth * DESCRIPTORS), 0, low)
            b.emit(IADD, S32, self.second, self.first, more)
        self.products = HALVES * t.depth
        self.words = [[b.reg(2) for _ in range(1 + s.halo)] for _ in range(self.products)]

    # --- the product

    def _clear(self) -> None:
        """The warp's tile of C = +0."""
        b = self.b
        zero = b.reg(32)
        for r in range(32):
            b.emit(MOV, zero[r], RZ)
        self.tile = umov(b, umul(b, self.warp, WORDS))
        b.emit(ACC_ST, 32, self.tile, 0, zero)

    def _descriptors(self, step: int, k: int) -> None:
        """Read what product k of a step needs."""
        offset = step % BUFFERS * self.s.buffer + k * DESCRIPTORS // HALVES
        for d, at in zip(self.words[k], (self.first, *self._seconds()), strict=True):
            self.b.emit(LDS, Width._64, d, URZ, at, offset)

    def _seconds(self) -> tuple[VReg, ...]:
        return (self.second,) if self.s.halo else ()

    def _multiply(self, k: int) -> None:
        b = self.b
        d = self.words[k][0]
        start, bitmap = d, d[1]  # one run: nobody asks where the second is
        if self.s.halo:
            after = self.words[k][1]
            pair, window, start, by = b.reg(2), b.reg(2), b.reg(2), b.reg()
            b.emit(LOP, Logic.AND, Bits32._32, by, self.of_a, self.shift)
            b.emit(MOV, pair[0], d[1])
            b.emit(MOV, pair[1], after[1])
            b.emit(BMSLICE, window, pair, by)
            b.emit(IADD, S32, start[0], d[0], window[1])
            b.emit(MOV, start[1], after[0])
            bitmap = window[0]
        b.emit(SPWMMA, Half[self.p.dtype.upper()], self.tile, start, bitmap)

    def _product(self) -> None:
        """The whole walk, of which only the tap's shift matters here."""
        b, steps = self.b, self.s.steps
        self.shift = b.ureg()
        moved = shifts(b, self.s)
        walk = Walk(b, [moved])
        self._clear()
        if self.s.halo:
            b.emit(ULOP, Logic.AND, self.shift, moved.tap, SEGMENT - 1)
        b.emit(BAR, 0)
        for k in range(self.products):
            self._descriptors(0, k)
        if steps > 1:
            walk.first()
            threes(b, walk, steps - 1, lambda phase: self._step(phase, moved.tap, last=False))
        self._step(steps - 1, moved.tap, last=True)

    def _step(self, step: int, tap: VUReg | None, last: bool) -> None:
        b = self.b
        for k in range(self.products):
            self._multiply(k)
            if not last:
                self._descriptors(step + 1, k)
        if self.s.halo and not last:
            b.emit(ULOP, Logic.AND, self.shift, tap, SEGMENT - 1)
        b.emit(BAR, 0)
