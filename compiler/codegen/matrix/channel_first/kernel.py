"""The kernel of `channel_first`: one block whose warps have roles, and two barriers a phase.

    phase k          DMA warp              array warp                          epilogue warps
                     fetch tick k          (ticks up to k - 1 run)             sums of tick k - 2, if a job ends there
    ── barrier ──
                     addresses of k + 1    commands of tick k; wait for k - 1  operands of the next job
    ── barrier ──

So the array always has a tick in its queue, and never drains: rows and weights of tick k go where those of tick k - 2 were, and so do
its sums. Loops over jobs and pixels are rolled in uniform registers, over passes if there are very many; each role has its own
copy of the nest, and all come to as many barriers.
"""

from __future__ import annotations

from collections.abc import Iterator

from knapper.isa.instructions import (
    BAR,
    BRA,
    CONVDESC,
    DMA_LD,
    EXIT,
    FILL_DUP,
    IM2COL_PUSH,
    SMA_COMMIT,
    SMA_LDB,
    SMA_SWAP,
    SMA_WAIT,
    UIADD,
    UIMNMX,
    UISUB,
    ULOP,
    UMOV,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, Logic, MinMax, Start
from knapper.isa.systolic import LANES
from knapper.isa.vector_memory import REGISTERS

from ....ir import Array
from ...builder import KernelBuilder, VLabel, VUReg
from ...generator import Emitted, Group
from .. import blocks
from ..code import (
    Number,
    block_index,
    move_base,
    param,
    special,
    uadd,
    ucompare,
    udivmod,
    umin,
    umov,
    umul,
    usub,
)
from ..engine import Emitter
from ..epilogue import operands
from ..systolic import ELEMENTS
from .epilogue import Sums
from .nest import Job, Nest, barriers, loop, where_zero
from .shape import Tiles, Walk

DMA = 1
"""The second warp. The first one is the array's, those after `ROLES` the epilogue's."""
UNIT = 1
"""Arrays that a command uses."""
DESCRIPTOR = 0
FILLS = 64
"""Fills that are on their way at once, at most."""


class Kernel(Emitter):
    """One launch being emitted."""

    def __init__(self, group: Group, walk: Walk, machine: Machine) -> None:
        self.group, self.machine = group, machine
        self.p = blocks.product(group)
        self.t = Tiles(self.p, walk, machine)
        self.type = ELEMENTS[self.p.dtype]
        tail = (*operands(group, self.p), *group.outputs)
        self.names = (self.p.a, self.packed_name, *tail)
        self.parameters = {v: 2 + i for i, v in enumerate(tail)}

    @property
    def packed_name(self) -> str:
        turned = "T" if self.p.trans_b else ""
        return f"{self.p.b}{turned}.{self.t.rows}x{self.t.columns}x{self.t.taps}"

    def constants(self) -> dict[str, Array]:
        return {self.packed_name: self.t.packed(self.group.constants[self.p.b])}

    def emit(self) -> Emitted:
        t = self.t
        threads = LANES * t.walk.warps
        b = self.b = KernelBuilder(self.group.name, (threads, 1, 1), self.machine, matrix=True)
        b.role(self.group.nodes.index(self.p.node))
        b.shared(t.shared_bytes)
        self.nest = Nest(b, t)
        self.z = block_index(b, SR.CTAID_Z, self.p.batch)
        self.warp = special(b, SR.WARPID)
        dma, epilogue = b.label(), b.label()
        b.emit(BRA, dma, guard=ucompare(b, Cmp.EQ, self.warp, DMA))
        b.emit(BRA, epilogue, guard=ucompare(b, Cmp.GT, self.warp, DMA))
        self._array()
        self._begin(dma)
        self._dma()
        self._begin(epilogue)
        self._sums().emit()
        b.emit(EXIT)
        return blocks.launched(b.finish(), self.group, self.p, (1, 1, self.p.batch), self.names)

    def _sums(self) -> Sums:
        """The epilogue's warps."""
        return Sums(self.b, self.group, self.t, self.parameters, self.z, self.warp)

    def _begin(self, role: VLabel) -> None:
        self.b.emit(EXIT)
        self.b.place(role)
        self.b.role(self.group.nodes.index(self.p.node))

    # --- ticks

    def _weights(self, j: Job, chunk: Number, turn: VUReg | None) -> Number:
        """Where a tick's weights begin in vector memory; `turn` changes between 0 and 1 with each chunk that comes."""
        b, t = self.b, self.t
        tile, each = t.tile_bytes, t.chunk * t.tile_bytes
        if t.kept == "all":
            inside = umul(b, chunk, each, t.weights_at)
            return umul(b, j.block, t.passes * tile, inside)
        if t.kept == "block":
            return umul(b, self._parity(j.block), each, t.weights_at)
        return t.weights_at if turn is None else umul(b, turn, each, t.weights_at)

    def _parity(self, x: Number) -> Number:
        if isinstance(x, int):
            return x & 1
        d = self.b.ureg()
        self.b.emit(ULOP, Logic.AND, d, x, 1)
        return d

    def _turn(self) -> VUReg | None:
        return umov(self.b, 0) if self.t.kept == "chunk" and self.t.ticks > 1 else None

    def _chunk_passes(self, chunk: Number) -> Number:
        """Passes of a tick."""
        t, b = self.t, self.b
        if t.passes % t.chunk == 0:
            return t.chunk
        return umin(b, usub(b, t.passes, umul(b, chunk, t.chunk)), t.chunk)

    # --- DMA

    def _dma(self) -> None:
        """Each fetch is a group: one of nothing would be the array's, and wait for it. Addresses are made while the array works."""
        b, t = self.b, self.t
        self._describe()
        weights = param(b, 1)
        move_base(b, weights, umul(b, self.z, t.blocks * t.passes * t.tile_bytes))
        fetched, turn = umov(b, 0), self._turn()
        with self.nest.jobs() as j, loop(b, t.chunks) as chunk:
            tile, rows = self._tile(j, chunk, turn, weights), self._rows(j, fetched)
            self.nest.flip(turn)
            b.emit(BAR, 0)
            with where_zero(b, *(() if t.kept == "chunk" else (j.section, j.strip))):
                b.emit(DMA_LD, *tile)
                b.emit(SMA_COMMIT)
            with where_zero(b, j.block, chunk):
                self._fill(*rows, fetched)
            b.emit(SMA_WAIT, 0)
            b.emit(BAR, 0)
        barriers(b, 3)

    def _describe(self) -> None:
        """The descriptor, whose address is a parameter."""
        b, u = self.b, self.b.ureg(REGISTERS)
        image = param(b, 0)
        move_base(b, image, umul(b, self.z, (self.p.axes[0].a if self.p.axes else 0) * self.t.size))
        for i, word in enumerate(self.t.descriptor.words()):
            b.emit(UMOV, u[i], word if i > 1 else image[i])
        b.emit(CONVDESC, DESCRIPTOR, u)

    def _tile(
        self, j: Job, chunk: Number, turn: VUReg | None, weights: VUReg
    ) -> tuple[VUReg, int, VUReg, Number]:
        """The operands of the transfer of a tick's weights."""
        b, t = self.b, self.t
        each, source = t.chunk * t.tile_bytes, b.ureg(2)
        b.emit(UIADD, Bits32._64, source, weights, 0)
        move_base(b, source, umul(b, j.block, t.passes * t.tile_bytes, umul(b, chunk, each)))
        nbytes = umul(b, self._chunk_passes(chunk), t.tile_bytes)
        return umov(b, self._weights(j, chunk, turn)), 0, source, nbytes

    def _rows(self, j: Job, fetched: VUReg) -> tuple[VUReg, VUReg]:
        """Stored rows of a strip that are not there yet: the first one, and the one behind the last."""
        b, t = self.b, self.t
        first, count = self.nest.pixels(j)
        begin = umul(b, j.section, int(t.descriptor.layout.padded_h))
        last = self._line(uadd(b, uadd(b, first, count), -1))
        start = umov(b, umul(b, self._line(first), t.down, begin))
        end = umov(b, umul(b, last, t.down, uadd(b, begin, t.span)))
        if t.down > t.span:  # a strip that begins in a line which is there begins with the next one
            fresh = b.label()
            b.emit(BRA, fresh, guard=ucompare(b, Cmp.GE, start, fetched))
            b.emit(UIADD, Bits32._32, start, start, t.down)
            b.place(fresh)
        else:
            b.emit(UIMNMX, MinMax.MAX, start, start, fetched)
        return start, end

    def _fill(self, start: VUReg, end: VUReg, fetched: VUReg) -> None:
        """Fill rows from start to end, without those that lie between two lines' rows."""
        b, t, over = self.b, self.t, self.b.label()
        rows, again = umov(b, t.span), b.label()
        if t.down <= t.span:
            b.emit(UISUB, rows, end, start)
        b.emit(BRA, over, guard=ucompare(b, Cmp.GE, start, end))
        b.place(again)
        b.emit(FILL_DUP, DESCRIPTOR, start, rows)
        b.emit(SMA_COMMIT)
        if t.down > t.span:
            b.emit(SMA_WAIT, FILLS)
            b.emit(UIADD, Bits32._32, start, start, t.down)
            b.emit(BRA, again, guard=ucompare(b, Cmp.LT, start, end))
        b.emit(UMOV, fetched, end)
        b.place(over)

    def _line(self, pixel: Number) -> Number:
        if isinstance(pixel, int):
            return pixel // self.t.line
        return udivmod(self.b, pixel, self.t.line)[0]

    # --- array

    def _array(self) -> None:
        b = self.b
        turn, tap = self._turn(), b.ureg()
        self.sums = umov(b, 0)
        b.emit(BAR, 0)
        with self.nest.jobs() as j:
            self._strip(j)
            b.emit(UMOV, tap, 0)
            for chunk in self._each_chunk():
                at = umov(b, self._weights(j, chunk, turn))
                b.emit(BAR, 0)
                self._passes(at, chunk, tap)
                self._tick_ends(turn)
            self._job_ends()
        self._drained()

    def _strip(self, j: Job) -> None:
        """The rows of a job that its pushes are for: the first one, and how many."""
        b, t = self.b, self.t
        first, count = self.nest.pixels(j)
        begin = uadd(b, umul(b, j.section, t.pixels), first)
        self.m0, self.m = umov(b, umul(b, begin, t.wn)), umov(b, umul(b, count, t.wn))

    def _tick_ends(self, turn: VUReg | None) -> None:
        """A tick's commands are queued; those of the one before it must be done."""
        self.nest.flip(turn)
        self.b.emit(SMA_COMMIT)
        self.b.emit(SMA_WAIT, 1)
        self.b.emit(BAR, 0)

    def _job_ends(self) -> None:
        """The next job's sums go to the other half."""
        self.nest.flip(self.sums if self.t.jobs > 1 else None, self.t.half)

    def _drained(self) -> None:
        """The phase after the last one: no command is left, and the epilogue may take the last sums."""
        self.b.emit(BAR, 0)
        self.b.emit(SMA_WAIT, 0)
        self.b.emit(BAR, 0)

    def _each_chunk(self) -> Iterator[Number]:
        if self.t.unrolled:
            yield from range(self.t.chunks)
            return
        with loop(self.b, self.t.chunks) as chunk:
            yield chunk

    def _passes(self, at: VUReg, chunk: Number, tap: VUReg) -> None:
        """The commands of a tick, whose weights begin at `at`; `tap` is that of the next pass if the code does not know."""
        t, count = self.t, self._chunk_passes(chunk)
        if not t.unrolled or not isinstance(count, int) or not isinstance(chunk, int):
            self._rolled(at, count, tap)
            return
        for i in range(count):
            n = chunk * t.chunk + i
            self._load_weights(at, i * t.tile_bytes)
            self._push(Start.ADD if n else Start.SET, t.tap(n))

    def _rolled(self, at: VUReg, count: Number, tap: VUReg) -> None:
        """The same in a loop. The tap of a job's first pass is 0, and begins its chains."""
        b, left, again = self.b, umov(self.b, count), self.b.label()
        goes_on, over = b.label(), b.label()
        b.place(again)
        self._load_weights(at, 0)
        b.emit(BRA, goes_on, guard=ucompare(b, Cmp.NE, tap, 0))
        self._push(Start.SET, tap)
        b.emit(BRA, over)
        b.place(goes_on)
        self._push(Start.ADD, tap)
        b.place(over)
        self._next_tap(tap)
        b.emit(UIADD, Bits32._32, at, at, self.t.tile_bytes)
        b.emit(UIADD, Bits32._32, left, left, -1)
        b.emit(BRA, again, guard=ucompare(b, Cmp.GT, left, 0))

    def _load_weights(self, at: VUReg, offset: int) -> None:
        self.b.emit(SMA_LDB, self.type, UNIT, at, offset, self.t.columns * self.t.size)
        self.b.emit(SMA_SWAP, UNIT)

    def _push(self, start: Start, tap: Number) -> None:
        self.b.emit(
            IM2COL_PUSH, self.type, start, self.sums, UNIT, DESCRIPTOR, tap, self.m0, self.m
        )

    def _next_tap(self, tap: VUReg) -> None:
        """cb << 16 | r << 8 | q: blocks of channels run fastest, then T taps along a line, then down."""
        b, (down, along, blocks_) = self.b, self.t.pass_shape
        over = b.label()
        if blocks_ > 1:
            b.emit(UIADD, Bits32._32, tap, tap, 1 << 16)
            b.emit(BRA, over, guard=ucompare(b, Cmp.LT, tap, blocks_ << 16))
            b.emit(ULOP, Logic.AND, tap, tap, 0xFFFF)
        b.emit(UIADD, Bits32._32, tap, tap, self.t.taps)
        if down > 1:
            q = b.ureg()
            b.emit(ULOP, Logic.AND, q, tap, 0xFF)
            b.emit(BRA, over, guard=ucompare(b, Cmp.LT, q, along * self.t.taps))
            b.emit(ULOP, Logic.AND, tap, tap, 0xFF00)
            b.emit(UIADD, Bits32._32, tap, tap, 1 << 8)
        b.place(over)
