"""The epilogue of `channel_first`: a warp's loop over pieces of a strip, on what all kernels share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from knapper.isa.instructions import ACC_LD, BAR, BRA, IADD, ISETP, LDG, UIADD, UISUB, ULOP
from knapper.isa.modifiers import Bits32, Cmp, Logic
from knapper.isa.systolic import LANES

from ...builder import PT, KernelBuilder, VPred, VReg, VUReg
from ...generator import Group
from ..code import (
    S32,
    Number,
    add,
    divmod_,
    fixed,
    lane_id,
    move_base,
    mul,
    uadd,
    ucompare,
    umov,
    umul,
)
from ..epilogue import BYTES, NUMBER, Epilogue, Frame, Spot, loading, varying_operands
from .nest import Job, Nest, barriers
from .shape import ROLES, Tiles


@dataclass(frozen=True)
class Place(Spot):
    """A spot, and how many pixels and images it is away from the thread's first one."""

    pixel: int
    image: int


class Pieces(Epilogue):
    """The epilogue of pieces of one job: what does not change from piece to piece is done before the loop over them.

    `pixels` and `images` are the lanes' numbers minus how many there are, so negative where there is something; None: everywhere. Where
    all there is is everywhere, operands that differ by row are loaded a piece ahead (`ahead`): while results are computed, the next
    piece's are on their way.
    """

    pixels: VReg | None = None
    images: VReg | None = None
    ahead: dict[tuple[str, int, int], VReg] | None = None

    def begin_all(self, columns: Iterable[int]) -> None:
        """Bases, addresses, and operands that are alike in all rows, for spots at these columns."""
        for s in (Place(self.frame.col, 0, col, 0, 0) for col in columns):
            for v in (*self.group.outputs, *self.read):
                self._base(v)
                self._address(v, s)
            for v in self.read:
                if not self._rowwise(v):
                    self._value(v, s)

    def fetch_first(self, spots: Sequence[Spot], some: VPred) -> None:
        """Load the operands of the first piece, if there is one and they can be loaded ahead at all."""
        whole = self.pixels is None and self.images is None and not self.frame.cols
        if whole and len(varying_operands(self.group, self.p)) == 1:
            self.ahead = {}
            self._fetch_all(spots, some)

    def fetch_next(self, spots: Sequence[Spot], rows: int, more: VPred) -> None:
        """The operands that have come are those of this piece; load those of the next one, if there is one, `rows` away."""
        if self.ahead is None:
            return
        for s in spots:
            for v in self._varying():
                own = self.ahead[v, s.row, s.col]
                dtype = self.types[v].dtype
                number = self.widened(own, dtype)
                self.values[self._key(v, s, NUMBER)] = (
                    fixed(self.b, own) if number is own else number
                )
        self._move(self._varying(), rows)
        self._fetch_all(spots, more)

    def _fetch_all(self, spots: Sequence[Spot], guard: Any) -> None:
        assert self.ahead is not None
        for s in spots:
            for v in self._varying():
                d = self.ahead.setdefault((v, s.row, s.col), self.b.reg())
                a, offset = self._address(v, s)
                how = loading(self.types[v].dtype)
                self.b.emit(LDG, how, d, self._base(v), a, offset, guard=guard)

    def _varying(self) -> list[str]:
        return [v for v in self.read if self._rowwise(v)]

    def _load(self, spots: list[Spot]) -> None:
        """What is loaded ahead is there."""
        if self.ahead is None:
            super()._load(spots)

    def _move(self, which: Iterable[str], rows: int) -> None:
        for v in which:
            by = rows * self.ways[v].row * BYTES[self.types[v].dtype]
            move_base(self.b, self.bases[v], by)

    def advance(self, rows: int, pixels: int, images: int) -> None:
        """The next piece lies so far away."""
        self._move((v for v in self.bases if self.ahead is None or v not in self.read), rows)
        for bound, by in ((self.pixels, pixels), (self.images, images)):
            if bound is not None and by:
                self.b.emit(IADD, S32, bound, bound, by)

    def _inside(self, s: Spot) -> VPred | Any:
        assert isinstance(s, Place)
        tests = [(self.pixels, -s.pixel), (self.images, -s.image)]
        if self.frame.cols:
            tests.append((self._column(s), self.frame.cols - self._across(s)))
        found: VPred | None = None
        for x, limit in tests:
            if x is not None:
                found = self._both(found, x, limit)
        return PT if found is None else found

    def _both(self, p: VPred | None, x: VReg, limit: int) -> VPred:
        """x below the limit, and p."""
        if p is None:
            return self._below(x, limit)
        self.b.emit(ISETP, Cmp.LT, S32, p, x, limit, guard=p)
        return p


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


class Sums:
    """What the epilogue's warps do."""

    def __init__(
        self,
        b: KernelBuilder,
        group: Group,
        t: Tiles,
        parameters: dict[str, int],
        z: Number,
        warp: VUReg,
    ) -> None:
        self.b, self.group, self.t, self.parameters, self.z = b, group, t, parameters, z
        self.nest = Nest(b, t)
        self.number = uadd(b, warp, -ROLES)

    def emit(self) -> None:
        """What a job's pieces need beside its sums is made ready while others work, not in the time that the array waits for."""
        b, t = self.b, self.t
        self._lanes()
        sums = umov(b, 0)
        barriers(b, 3)
        with self.nest.jobs() as j:
            b.emit(BAR, 0)
            runs = [self._ready(j, sums, *extent) for extent in self._extents(j)]
            barriers(b, 2 * t.chunks - 1)
            for run in runs:
                self._pieces(run)
            self.nest.flip(sums if t.jobs > 1 else None, t.half)

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
        _, count = self.nest.pixels(j)
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
        e = self._begun(j, uadd(b, self.nest.pixels(j)[0], pixel))
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
            if col < self.t.p.n:
                yield Place(acc[i], pixel * down + image * across, col, pixel, away)

    def _begun(self, j: Job, first: Number) -> Pieces:
        """The epilogue of pieces, the first of which begins at pixel `first` of the section."""
        b, t, p = self.b, self.t, self.t.p
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
        return self.t.p.n % columns > 0

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
