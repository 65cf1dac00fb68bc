"""The epilogue of `channel_first`: a warp's loop over pieces of a strip, on what all kernels share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from knapper.isa.instructions import IADD, ISETP, LDG
from knapper.isa.modifiers import Cmp, Scalar

from ..builder import PT, VPred, VReg
from ..scalar import convert
from .access import WIDTHS
from .code import S32, fixed, move_base
from .epilogue import BYTES, TYPES, Epilogue, Spot, varying_operands


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
                wide = fixed(self.b, own) if dtype == "f32" else convert(self.b, own, Scalar.F32, TYPES[dtype])  # fmt: skip
                self.values[self._key(v, s, "f32")] = wide
        self._move(self._varying(), rows)
        self._fetch_all(spots, more)

    def _fetch_all(self, spots: Sequence[Spot], guard: Any) -> None:
        assert self.ahead is not None
        for s in spots:
            for v in self._varying():
                d = self.ahead.setdefault((v, s.row, s.col), self.b.reg())
                a, offset = self._address(v, s)
                width = WIDTHS[BYTES[self.types[v].dtype]]
                self.b.emit(LDG, width, d, self._base(v), a, offset, guard=guard)

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
            tests.append((self._column(), self.frame.cols - s.col))
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
