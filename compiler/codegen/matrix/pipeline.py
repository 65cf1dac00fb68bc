"""The main loop of every tiled product: two operands, double-buffered through registers into shared memory.

load 0 ─ clear ─ store 0 ─┬─► load s+1 ─ compute s ─ store s+1 ─ BAR ─┬─► compute last
                          └───────────────────────────────────────────┘

Where no other block of the SM computes meanwhile, what a step waits for its loads is lost. Such a unit loads `ahead`: what is stored
is loaded anew at once, so that memory always has as many loads to serve as registers hold.

load 0 ─ clear ─ store 0, load 1 ─┬─► compute s ─ store s+1, load s+2 ─ BAR ─┬─► compute ─ store ─ BAR ─ compute last
                                  └──────────────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from knapper.isa.instructions import BAR, BRA, STS, ULOP
from knapper.isa.modifiers import Cmp, Logic

from ..builder import PT, KernelBuilder, VReg, VUReg
from .access import WIDTHS, Walk, several
from .code import Number, uadd, ucompare, umov, uxor
from .geometry import Geometry, Move


@dataclass(frozen=True)
class Tile:
    """One operand's tile in shared memory: how it is read from global memory, who carries it, where it begins in a buffer.

    `element` is the bytes of an element in shared memory; `convert` makes stored registers of loaded ones, `turn` all of them together.
    """

    access: Any
    geometry: Geometry
    start: int
    element: int
    convert: Callable[[KernelBuilder, VReg], VReg] | None = None
    turn: Callable[[KernelBuilder, Sequence[Move], list[VReg]], list[VReg]] | None = None


@dataclass
class Buffers:
    """Two buffers of `nbytes` in shared memory, and the uniform registers that point into them, each with its toggle."""

    b: KernelBuilder
    nbytes: int
    steps: Number

    def __post_init__(self) -> None:
        self.base = self.b.shared(self.nbytes * (2 if several(self.steps) else 1), 128)
        self.toggles: list[tuple[VUReg, Number]] = []
        self.private: list[VUReg] = []
        self.write = self.pointer(0)

    def pointer(self, offset: Number, private: bool = False) -> VUReg:
        """A register that points `offset` bytes into the buffer that is current for it; at first buffer 0.

        A `private` one is swapped by who asked for it, when it is named.
        """
        here = uadd(self.b, offset, self.base)
        u = umov(self.b, here)
        if several(self.steps):
            self.toggles.append((u, self._toggle(here)))
            self.private += [u] if private else []
        return u

    def _toggle(self, here: Number) -> Number:
        """What turns an address in one buffer into that in the other, and back."""
        if isinstance(here, int):
            return here ^ (here + self.nbytes)
        return uxor(self.b, here, uadd(self.b, here, self.nbytes))

    def swap(self, which: list[VUReg] | None = None) -> None:
        """Point into the other buffer: all pointers but the private ones, or those named."""
        for u, mask in self.toggles:
            if u in which if which is not None else u not in self.private:
                self.b.emit(ULOP, Logic.XOR, u, u, mask)


class Multiplier(Protocol):
    """What consumes tiles. `peel` says that `compute` can start the chains by itself; `beside` are operands that bypass shared memory;
    `ahead` (without such operands): load two steps ahead."""

    peel: bool
    ahead: bool
    beside: Sequence[Any]

    def clear(self) -> None:
        """Set the accumulators to +0."""

    def compute(self, first: bool, last: bool) -> None:
        """Multiply the current buffer into the accumulators; `first`: they start at +0, `last`: no step follows."""


def run(
    b: KernelBuilder, tiles: list[Tile], buffers: Buffers, steps: Number, unit: Multiplier
) -> None:
    """Emit the whole walk over k.

    From three steps on the loop's body is the only copy beside the last step's, so accumulators are set beforehand, while the first
    loads are on their way. Steps that only the kernel counts may be any number, none included.
    """
    walk = Walk(b, [*(t.access for t in tiles), *unit.beside])
    if not isinstance(steps, int):
        _counted(b, tiles, buffers, steps, unit, walk)
        return
    (_ahead if unit.ahead else _alternating)(b, tiles, buffers, steps, unit, walk)
    unit.compute(unit.peel and steps == 1, last=True)


def _alternating(
    b: KernelBuilder, tiles: list[Tile], buffers: Buffers, steps: int, unit: Multiplier, walk: Walk
) -> None:
    """All steps but the last: a step's loads are under way while the one before is computed."""
    fetched = _load(b, tiles)
    if steps > 2 or not unit.peel:
        unit.clear()
    _store(b, tiles, fetched, buffers)
    if steps > 1:
        walk.first()
        buffers.swap([buffers.write])
    b.emit(BAR, 0)

    def step(first: bool) -> None:
        fetched = _load(b, tiles)
        unit.compute(first, last=False)
        _pass(b, tiles, fetched, buffers, again=False)

    if steps == 2:
        step(unit.peel)
    elif steps > 2:
        _loop(b, walk, lambda: step(False))


def _ahead(
    b: KernelBuilder, tiles: list[Tile], buffers: Buffers, steps: int, unit: Multiplier, walk: Walk
) -> None:
    """The same, but a step's loads begin before the one before is computed."""
    fetched = _load(b, tiles)
    if steps > 2 or not unit.peel:
        unit.clear()
    if steps > 1:
        walk.first()
    _store(b, tiles, fetched, buffers)
    if steps > 1:
        _load(b, tiles, fetched)
        buffers.swap([buffers.write])
    if steps > 2:
        walk.first(2)
    b.emit(BAR, 0)

    def step(first: bool, again: bool) -> None:
        unit.compute(first, last=False)
        _pass(b, tiles, fetched, buffers, again)

    if steps > 2:
        _loop(b, walk, lambda: step(False, True))
    if steps > 1:
        step(unit.peel and steps == 2, False)


def _counted(
    b: KernelBuilder,
    tiles: list[Tile],
    buffers: Buffers,
    steps: VUReg,
    unit: Multiplier,
    walk: Walk,
) -> None:
    """The same for a number of steps in a register: branches around what there is no step for."""
    tail, last, done = b.label(), b.label(), b.label()
    left = walk.counters[0]
    unit.clear()
    b.emit(BRA, done, guard=ucompare(b, Cmp.EQ, steps, 0))
    fetched = _load(b, tiles)
    _store(b, tiles, fetched, buffers)
    walk.first()
    buffers.swap([buffers.write])
    b.emit(BAR, 0)
    b.emit(BRA, last, guard=ucompare(b, Cmp.EQ, left, 0))
    if unit.ahead:
        _load(b, tiles, fetched)
        walk.first(2)
        b.emit(BRA, tail, guard=ucompare(b, Cmp.EQ, left, 0))

    def step(again: bool) -> None:
        mine = fetched if unit.ahead else _load(b, tiles)
        unit.compute(False, last=False)
        _pass(b, tiles, mine, buffers, again)

    _loop(b, walk, lambda: step(unit.ahead))
    b.place(tail)
    if unit.ahead:
        step(False)
    b.place(last)
    unit.compute(False, last=True)
    b.place(done)


def _loop(b: KernelBuilder, walk: Walk, body: Callable[[], None]) -> None:
    """The steps that are left of the walk."""
    loop = b.label()
    b.place(loop)
    body()
    walk.again(lambda counter: b.emit(BRA, loop, guard=ucompare(b, Cmp.NE, counter, 0)))


def _load(
    b: KernelBuilder, tiles: list[Tile], into: Sequence[Sequence[VReg]] = ((), ())
) -> list[list[VReg]]:
    return [t.access.load(b, r) for t, r in zip(tiles, into, strict=False)]


def _pass(
    b: KernelBuilder, tiles: list[Tile], fetched: list[list[VReg]], buffers: Buffers, again: bool
) -> None:
    """Store, `again`: load the same registers anew, and go to the other buffer together."""
    _store(b, tiles, fetched, buffers)
    if again:
        _load(b, tiles, fetched)
    if tiles:
        buffers.swap()
        b.emit(BAR, 0)


def _store(
    b: KernelBuilder, tiles: list[Tile], fetched: list[list[VReg]], buffers: Buffers
) -> None:
    for t, registers in zip(tiles, fetched, strict=True):
        ready = t.turn(b, t.geometry.moves, registers) if t.turn else registers
        for m, r in zip(t.geometry.moves, ready, strict=True):
            with b.under(m.guard or PT):
                stored = t.convert(b, r) if t.convert else r
                b.emit(
                    STS,
                    WIDTHS[t.element * t.geometry.v],
                    buffers.write,
                    t.geometry.place,
                    t.start + m.place,
                    stored,
                )
