"""A sparse product being emitted: records of activations and weights through shared memory into SPWMMA.

    step s    SPWMMA ─ store s+2 ─ load s+5, ask for s+8 ─ SPWMMA ─ … ─ descriptors of s+1 ─ BAR      (`Loader`)

In shared memory a record of 32 channels takes 2 KB for its values, at worst, and 32 descriptors of 8 bytes: where a channel's values begin, and
its bitmap. So a lane of SPWMMA reads all it needs at once: lanes 0 to 15 a column of A each, the others a row of B. There are three
buffers. The one after a step's is complete when the step begins, so descriptors are read before the barrier, and no warp waits for them behind it.

Under a tap the 32 rows of a tile are a window over two neighbouring segments. A lane then reads the second's descriptor, too, and BMSLICE
makes the window: the bitmap, and how many values of the first are skipped, how many taken.
"""

from __future__ import annotations

from collections.abc import Callable

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
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, Half, Logic, Width
from knapper.isa.sparse import STEPS, WORDS

from ...ir import Array
from ...sparsity.bitmap import SEGMENT, Weights
from ..builder import RZ, URZ, KernelBuilder, VLabel, VReg, VUReg
from ..generator import Emitted, Group
from . import blocks
from .access import Walk
from .code import (
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
from .engine import Emitter
from .epilogue import operands
from .spwmma_epilogue import finish
from .spwmma_loader import Loader
from .spwmma_shape import BUFFERS, DESCRIPTORS, HALVES, VALUES, Shape, weights

LOADED = 2 * BUFFERS - 1
"""Steps from when records are asked for until the product."""
AHEAD = LOADED + BUFFERS
"""Steps from when entries are asked for until the product."""


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
        self.loader = Loader(b, self.s, self.lane, self.warp, self.row0, self.col0)
        self.stage = self.loader.base
        self._consumer()
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
        self.warp = special(b, SR.WARPID)
        self.j, self.i = udivmod(b, self.warp, t.wm)
        self.row0 = umul(b, block_index(b, SR.CTAID_X, x), t.wm)
        self.col0 = umul(b, block_index(b, SR.CTAID_Y, y), t.wn)
        self.row, self.col = uadd(b, self.row0, self.i), uadd(b, self.col0, self.j)

    def _consumer(self) -> None:
        """Where in a buffer the lane's descriptors lie, and those of the segment after."""
        b, s, t = self.b, self.s, self.t
        low = b.pred()
        b.emit(ISETP, Cmp.LT, S32, low, self.lane, STEPS)
        words = self.loader.base + s.places * VALUES
        a = umul(b, self.i, t.depth * DESCRIPTORS, words)
        other = umul(b, self.j, t.depth * DESCRIPTORS, words + 2 * s.slots_a * DESCRIPTORS)
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

    def _multiply(self, step: int, k: int) -> None:
        b = self.b
        d = self.words[k][0]
        start, bitmap = d, d[1]  # one run: nobody asks where the second is
        if self.s.halo:
            after = self.words[k][1]
            pair, window, start, by = b.reg(2), b.reg(2), b.reg(2), b.reg()
            b.emit(LOP, Logic.AND, Bits32._32, by, self.of_a, self.loader.shifts[step % BUFFERS])
            b.emit(MOV, pair[0], d[1])
            b.emit(MOV, pair[1], after[1])
            b.emit(BMSLICE, window, pair, by)
            b.emit(IADD, S32, start[0], d[0], window[1])
            b.emit(MOV, start[1], after[0])
            bitmap = window[0]
        b.emit(SPWMMA, Half[self.p.dtype.upper()], self.tile, start, bitmap)

    def _product(self) -> None:
        """The whole walk."""
        b, steps, loader = self.b, self.s.steps, self.loader
        loader.prepare()
        walk = loader.walk()

        def ask(step: int) -> None:
            if step < steps:
                if step:
                    walk.first(step)
                loader.ask(step)

        for step in range(BUFFERS):
            ask(step)
        self._clear()
        for step in range(LOADED):
            if step >= BUFFERS and step - BUFFERS < steps:
                loader.store_words(step - BUFFERS)
                loader.store_values(step - BUFFERS)
            if step < steps:
                loader.load(step)
            ask(step + BUFFERS)
        b.emit(BAR, 0)
        for k in range(self.products):
            self._descriptors(0, k)
        times = max(steps - AHEAD, 0)
        if times:
            walk.first(AHEAD)
            self._loop(walk, times)
        for step in range(times, steps):
            self._step(step, steps)

    def _loop(self, walk: Walk, times: int) -> None:
        """Steps by threes, since there are three buffers and three sets of registers; which of the three is the last one is known."""
        b = self.b
        labels, end = [b.label() for _ in range(BUFFERS)], b.label()
        for phase, label in enumerate(labels):
            b.place(label)
            if phase >= times:
                continue
            self._step(phase, phase + AHEAD + 1)
            walk.again(self._while(labels[(phase + 1) % BUFFERS]))
            if times % BUFFERS == phase + 1:
                b.emit(BRA, end)
        b.place(end)

    def _while(self, label: VLabel) -> Callable[[VUReg], None]:
        return lambda counter: self.b.emit(BRA, label, guard=ucompare(self.b, Cmp.NE, counter, 0))

    def _step(self, step: int, steps: int) -> None:
        """Compute a step of so many, and do what is due for later ones between its products."""
        b, loader = self.b, self.loader
        due: list[tuple[int, Callable[[int], None]]] = [
            (BUFFERS - 1, loader.store_words),
            (BUFFERS - 1, loader.store_values),
            (LOADED, loader.load),
            (AHEAD, loader.ask),
        ]
        for k in range(self.products):
            self._multiply(step, k)
            if step + 1 < steps:
                self._descriptors(step + 1, k)
            here, until = (len(due) * n // self.products for n in (k, k + 1))
            for ahead, what in due[here:until]:
                if step + ahead < steps:
                    what(step + ahead)
        b.emit(BAR, 0)
