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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from knapper.isa.instructions import (
    ACC_LD,
    BAR,
    BRA,
    CONVDESC,
    DMA_LD,
    EXIT,
    FILL_DUP,
    IM2COL_PUSH,
    ISETP,
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

from ...ir import Array
from ..builder import KernelBuilder, VLabel, VPred, VReg, VUReg
from ..generator import Emitted, Group
from . import blocks
from .channel_first_epilogue import Pieces, Place
from .channel_first_shape import ROLES, Tiles, Walk
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
    usub,
)
from .engine import Emitter
from .epilogue import Frame, Spot, operands
from .systolic import ELEMENTS

DMA = 1
"""The second warp. The first one is the array's, those after `ROLES` the epilogue's."""
UNIT = 1
"""Arrays that a command uses."""
DESCRIPTOR = 0
FILLS = 64
"""Fills that are on their way at once, at most."""


@dataclass(frozen=True)
class Job:
    """Where a nest stands."""

    block: Number
    section: Number
    strip: Number


@dataclass(frozen=True)
class Run:
    """A warp's share of a job: every `step` pixels a piece, from `pixel` up to `last` if there are `some`, whose sums are at `words`."""

    epilogue: Pieces
    acc: VReg
    spots: list[Spot]
    pixel: VUReg
    last: VUReg
    some: VPred
    words: VUReg
    step: int


# --- control flow


@contextmanager
def loop(b: KernelBuilder, times: int) -> Iterator[Number]:
    """What is emitted inside happens so often; gives which time it is."""
    if times == 1:
        yield 0
        return
    i, again = umov(b, 0), b.label()
    b.place(again)
    yield i
    b.emit(UIADD, Bits32._32, i, i, 1)
    b.emit(BRA, again, guard=ucompare(b, Cmp.LT, i, times))


@contextmanager
def where_zero(b: KernelBuilder, *counters: Number) -> Iterator[None]:
    """What is emitted inside is for the first time of all these loops."""
    over = b.label()
    for i in counters:
        if not isinstance(i, int):
            b.emit(BRA, over, guard=ucompare(b, Cmp.NE, i, 0))
    yield
    b.place(over)


def barriers(b: KernelBuilder, count: int) -> None:
    """So many in a row."""
    with loop(b, count):
        b.emit(BAR, 0)


# --- the kernel


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
        self.z = block_index(b, SR.CTAID_Z, self.p.batch)
        self.warp = special(b, SR.WARPID)
        dma, epilogue = b.label(), b.label()
        b.emit(BRA, dma, guard=ucompare(b, Cmp.EQ, self.warp, DMA))
        b.emit(BRA, epilogue, guard=ucompare(b, Cmp.GT, self.warp, DMA))
        self._array()
        self._begin(dma)
        self._dma()
        self._begin(epilogue)
        self._epilogue()
        b.emit(EXIT)
        return blocks.launched(b.finish(), self.group, self.p, (1, 1, self.p.batch), self.names)

    def _begin(self, role: VLabel) -> None:
        self.b.emit(EXIT)
        self.b.place(role)
        self.b.role(self.group.nodes.index(self.p.node))

    # --- the nest

    @contextmanager
    def _jobs(self) -> Iterator[Job]:
        t, found = self.t, dict[str, Number]()
        times = {"block": t.blocks, "section": t.sections, "strip": t.strips}
        outside = ("block", "section", "strip")
        order = outside if t.walk.order == "image" else (*outside[1:], outside[0])
        with ExitStack() as stack:
            for name in order:
                found[name] = stack.enter_context(loop(self.b, times[name]))
            yield Job(**found)

    def _pixels(self, j: Job) -> tuple[Number, Number]:
        """The first pixel of the section that a job takes, and how many."""
        t, first = self.t, umul(self.b, j.strip, self.t.walk.strip)
        if t.pixels % t.walk.strip == 0:
            return first, t.walk.strip
        return first, umin(self.b, usub(self.b, t.pixels, first), t.walk.strip)

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

    def _flip(self, turn: VUReg | None, mask: int = 1) -> None:
        if turn is not None:
            self.b.emit(ULOP, Logic.XOR, turn, turn, mask)

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
        with self._jobs() as j, loop(b, t.chunks) as chunk:
            tile, rows = self._tile(j, chunk, turn, weights), self._rows(j, fetched)
            self._flip(turn)
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
        first, count = self._pixels(j)
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
        b, t = self.b, self.t
        turn, tap = self._turn(), b.ureg()
        self.sums = umov(b, 0)
        b.emit(BAR, 0)
        with self._jobs() as j:
            first, count = self._pixels(j)
            begin = uadd(b, umul(b, j.section, t.pixels), first)
            self.m0, self.m = umov(b, umul(b, begin, t.wn)), umov(b, umul(b, count, t.wn))
            b.emit(UMOV, tap, 0)
            for chunk in self._each_chunk():
                at = umov(b, self._weights(j, chunk, turn))
                b.emit(BAR, 0)
                self._passes(at, chunk, tap)
                self._flip(turn)
                b.emit(SMA_COMMIT)
                b.emit(SMA_WAIT, 1)
                b.emit(BAR, 0)
            self._flip(self.sums if t.jobs > 1 else None, t.half)
        b.emit(BAR, 0)
        b.emit(SMA_WAIT, 0)
        b.emit(BAR, 0)

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

    # --- epilogue

    def _epilogue(self) -> None:
        """What a job's pieces need beside its sums is made ready while others work, not in the time that the array waits for."""
        b, t = self.b, self.t
        self.number = uadd(b, self.warp, -ROLES)
        self._lanes()
        sums = umov(b, 0)
        barriers(b, 3)
        with self._jobs() as j:
            b.emit(BAR, 0)
            runs = [self._ready(j, sums, *extent) for extent in self._extents(j)]
            barriers(b, 2 * t.chunks - 1)
            for run in runs:
                self._pieces(run)
            self._flip(sums if t.jobs > 1 else None, t.half)

    def _lanes(self) -> None:
        """A lane's place in a register of sums: pixel, image, column."""
        b, t, lane = self.b, self.t, lane_id(self.b)
        self.pixel = self.image = fixed(b, 0)
        self.column = lane
        if t.columns < LANES:
            row, self.column = divmod_(b, lane, t.columns)
            self.pixel, self.image = divmod_(b, row, t.wn)

    def _extents(self, j: Job) -> Iterator[tuple[Number, Number, int]]:
        """Pixels of a strip that warps take in turn, from and to, so many at once; then what is left, in the smallest pieces."""
        b, piece, least = self.b, self.t.piece, self.t.least
        _, count = self._pixels(j)
        if isinstance(count, int):
            whole: Number = count // piece * piece
        else:
            whole = b.ureg()
            b.emit(ULOP, Logic.AND, whole, count, -piece & 0xFFFFFFFF)
        if not isinstance(whole, int) or whole:
            yield 0, whole, piece
        if piece > 1 and (not isinstance(whole, int) or whole != count):
            yield whole, count, least

    def _ready(self, j: Job, sums: VUReg, begin: Number, end: Number, piece: int) -> Run:
        """A warp's share of a strip's pixels from `begin` to `end`, `piece` at once: all that needs no sums yet."""
        b, t = self.b, self.t
        pixel, last = umov(b, umul(b, self.number, piece, begin)), umov(b, end)
        some = ucompare(b, Cmp.LT, pixel, last)
        words = umov(b, umul(b, pixel, t.wn * t.columns, sums))
        acc = b.reg(piece * t.wn * t.columns // LANES)
        e = self._begun(j, uadd(b, self._pixels(j)[0], pixel))
        if piece == t.least > 1:
            e.pixels = self._missing(pixel, last)
        spots: list[Spot] = [*self._places(acc)]
        e.fetch_first(spots, some)
        return Run(e, acc, spots, pixel, last, some, words, piece * t.workers)

    def _pieces(self, r: Run) -> None:
        """The loop over a warp's pieces."""
        b, t, e, again, over = self.b, self.t, r.epilogue, self.b.label(), self.b.label()
        b.emit(BRA, over, guard=~r.some)
        b.place(again)
        self._load(r.acc, r.words, e.pixels)
        b.emit(UIADD, Bits32._32, r.pixel, r.pixel, r.step)
        more = ucompare(b, Cmp.LT, r.pixel, r.last)
        e.fetch_next(r.spots, r.step * t.steps[1], more)
        e.emit(r.spots)
        e.advance(r.step * t.steps[1], r.step, r.step * t.wn if t.single else 0)
        b.emit(UIADD, Bits32._32, r.words, r.words, r.step * t.wn * t.columns)
        b.emit(BRA, again, guard=more)
        b.place(over)

    def _missing(self, pixel: VUReg, last: VUReg) -> VReg:
        """The lane's pixel minus the strip's end: negative where there is one."""
        d = self.b.ureg()
        self.b.emit(UISUB, d, pixel, last)
        return add(self.b, self.pixel, d)

    def _load(self, acc: VReg, words: VUReg, pixels: VReg | None) -> None:
        """A piece's sums. Lanes whose pixel is missing leave the accumulators alone."""
        b = self.b
        if pixels is None:
            b.emit(ACC_LD, acc.words, acc, words, 0)
            return
        inside = b.pred()
        b.emit(ISETP, Cmp.LT, S32, inside, pixels, 0)
        b.emit(ACC_LD, acc.words, acc, words, 0, guard=inside)

    def _places(self, acc: VReg) -> Iterator[Place]:
        """Where a piece's sums lie, those left out whose columns no block has."""
        t = self.t
        _, down, across = t.steps
        for i in range(acc.words):
            row, col = divmod(i * LANES, t.columns)
            pixel, image = divmod(row, t.wn)
            away = pixel * t.wn + image if t.single else image
            if col < self.p.n:
                yield Place(acc[i], pixel * down + image * across, col, pixel, away)

    def _begun(self, j: Job, first: Number) -> Pieces:
        """The epilogue of pieces, the first of which begins at pixel `first` of the section."""
        b, t, p = self.b, self.t, self.p
        section, down, across = t.steps
        frame = Frame(
            row0=umul(b, j.section, section, umul(b, first, down)),
            col0=umul(b, j.block, t.columns),
            row=self._lane(down, across), col=self.column, bound=None, limit=0,
            cols=p.n if self._ragged else 0, axes=(self.z,) if p.axes else (),
        )  # fmt: skip
        made = Pieces(b, self.group, p, frame, self.parameters)
        if int(t.descriptor.images) % t.wn:
            made.images = self._beyond(j, first)
        made.begin_all(range(0, min(t.columns, p.n), LANES))
        return made

    @property
    def _ragged(self) -> bool:
        """Whether lanes have columns that do not exist."""
        columns = min(self.t.columns, LANES) if self.t.blocks == 1 else self.t.columns
        return self.p.n % columns > 0

    def _beyond(self, j: Job, first: Number) -> VReg:
        """The lane's first image minus how many there are."""
        b, t = self.b, self.t
        begin = umul(b, first if t.single else j.section, t.wn)
        lane = self._lane(t.wn if t.single else 0, 1)
        return add(b, add(b, lane, begin), -int(t.descriptor.images))

    def _lane(self, pixel: int, image: int) -> VReg:
        """The lane's pixel and image, weighted."""
        if self.t.columns >= LANES:
            return self.pixel  # 0, as the image
        part = mul(self.b, self.image, image)
        return mul(self.b, self.pixel, pixel, part) if pixel else part
