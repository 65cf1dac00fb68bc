"""What the launches of NonMaxSuppression agree on: sizes, operands, and short spellings for their loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from knapper.isa.instructions import BRA, ISETP, LDG, LDS, PLOP, STG, STS, UIADD
from knapper.isa.modifiers import Bits32, Cmp, Logic, Width

from ..builder import URZ, KernelBuilder, VPred, VReg, VUReg
from ..matrix.code import S32, ucompare, umov
from .operands import Place

NOBODY = -1
"""In an order: no box, since its score is not enough."""


@dataclass(frozen=True)
class Sizes:
    """A list is the boxes of one image with their scores for one class."""

    batch: int
    classes: int
    boxes: int
    kept: int
    """Boxes that a list keeps at most."""

    @property
    def lists(self) -> int:
        return self.batch * self.classes

    @property
    def words(self) -> int:
        """Of 32 boxes each, a list."""
        return -(-self.boxes // 32)

    @property
    def bound(self) -> int:
        """Rows of the result."""
        return self.lists * self.kept


@dataclass(frozen=True)
class Suppression:
    """The node, read: operands, and the names of the results that are wanted ("" for none)."""

    sizes: Sizes
    boxes: Place
    scores: Place
    iou: Place | None
    least: Place | None
    centered: bool
    rows: str
    number: str


# --- short spellings


def lane_compare(b: KernelBuilder, cmp: Cmp, x: VReg, y: Any) -> VPred:
    """A predicate: x cmp y, signed, lane by lane."""
    p = b.pred()
    b.emit(ISETP, cmp, S32, p, x, y)
    return p


def both(b: KernelBuilder, x: VPred, y: VPred) -> VPred:
    """A predicate: x and y."""
    p = b.pred()
    b.emit(PLOP, Logic.AND, p, x, y)
    return p


def load_word(b: KernelBuilder, base: VUReg, at: VReg, guard: VPred | None = None) -> VReg:
    """A 32-bit word of global memory."""
    d = b.reg()
    b.emit(LDG, Width._32, d, base, at, 0, guard=guard)
    return d


def store_word(
    b: KernelBuilder, base: VUReg, at: VReg, x: VReg, guard: VPred | None = None
) -> None:
    """Store a 32-bit word."""
    b.emit(STG, Width._32, base, at, 0, x, guard=guard)


def load_shared(b: KernelBuilder, at: VReg, words: int = 1, guard: VPred | None = None) -> VReg:
    """One or two words of shared memory."""
    d = b.reg(words)
    b.emit(LDS, _width(words), d, URZ, at, 0, guard=guard)
    return d


def store_shared(b: KernelBuilder, at: VReg, x: VReg, guard: VPred | None = None) -> None:
    """Store one or two words."""
    b.emit(STS, _width(x.words), URZ, at, 0, x, guard=guard)


def _width(words: int) -> Width:
    return Width._64 if words == 2 else Width._32


@contextmanager
def counting(b: KernelBuilder, count: int) -> Iterator[VUReg]:
    """A loop over 0 … count - 1, at least once, with its counter in a uniform register."""
    i, loop = umov(b, 0), b.label()
    b.place(loop)
    yield i
    b.emit(UIADD, Bits32._32, i, i, 1)
    b.emit(BRA, loop, guard=ucompare(b, Cmp.LT, i, count))
