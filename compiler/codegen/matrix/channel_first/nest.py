"""The loops that every role of a `channel_first` kernel walks, rolled in uniform registers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from knapper.isa.instructions import BAR, BRA, UIADD, ULOP
from knapper.isa.modifiers import Bits32, Cmp, Logic

from ...builder import KernelBuilder, VUReg
from ..code import Number, ucompare, umin, umov, umul, usub
from .shape import Tiles


@dataclass(frozen=True)
class Job:
    """Where a nest stands."""

    block: Number
    section: Number
    strip: Number


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


@dataclass(frozen=True)
class Nest:
    """The walk over jobs, as one role emits it."""

    b: KernelBuilder
    t: Tiles

    @contextmanager
    def jobs(self) -> Iterator[Job]:
        """What is emitted inside happens for each job."""
        t, found = self.t, dict[str, Number]()
        times = {"block": t.blocks, "section": t.sections, "strip": t.strips}
        outside = ("block", "section", "strip")
        order = outside if t.walk.order == "image" else (*outside[1:], outside[0])
        with ExitStack() as stack:
            for name in order:
                found[name] = stack.enter_context(loop(self.b, times[name]))
            yield Job(**found)

    def pixels(self, j: Job) -> tuple[Number, Number]:
        """The first pixel of the section that a job takes, and how many."""
        t, first = self.t, umul(self.b, j.strip, self.t.walk.strip)
        if t.pixels % t.walk.strip == 0:
            return first, t.walk.strip
        return first, umin(self.b, usub(self.b, t.pixels, first), t.walk.strip)

    def flip(self, turn: VUReg | None, mask: int = 1) -> None:
        """Change a register between two values; None: there is one."""
        if turn is not None:
            self.b.emit(ULOP, Logic.XOR, turn, turn, mask)
