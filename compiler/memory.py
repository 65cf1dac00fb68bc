"""Memory planning: buffers that are never needed at the same time may lie at the same place.

    offset ▲   ┌──────────┐  ┌─────────┐
           │   │    a     │  │    c    │         a dies before c is born: one place serves both
           │ ┌─┴───────┬──┴──┴──┐──────┘
           │ │    b    │   d    │
           └─┴─────────┴────────┴──────► launches

Placing rectangles of given height and horizontal position so that the pile is low is NP-hard; greedy placement in a few
orders comes within some percent of the lower bound (what is live at the worst launch) on networks, and the best is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from knapper.isa.program import ALIGN


@dataclass(frozen=True)
class Buffer:
    """Bytes of the arena that are needed from launch `first` to launch `last`, both included."""

    name: str
    bytes: int
    first: int
    last: int
    offset: int = 0

    @property
    def room(self) -> int:
        """Bytes taken: whole alignment units, one at least, so that no two buffers share an address."""
        return max(aligned(self.bytes), ALIGN)

    @property
    def end(self) -> int:
        return self.offset + self.room

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at some launch."""
        return self.first <= other.last and other.first <= self.last

    def covers(self, other: Buffer) -> bool:
        """Whether both lie on some byte."""
        return self.offset < other.end and other.offset < self.end


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGN) * ALIGN


def peak(buffers: Iterable[Buffer]) -> int:
    """Bytes of arena that the buffers take."""
    return max((b.end for b in buffers), default=0)


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """No placement is lower: the bytes live at the worst launch."""
    changes: dict[int, int] = {}
    for b in buffers:
        changes[b.first] = changes.get(b.first, 0) + b.room
        changes[b.last + 1] = changes.get(b.last + 1, 0) - b.room
    live = worst = 0
    for _, change in sorted(changes.items()):
        live += change
        worst = max(worst, live)
    return worst


def collisions(buffers: Sequence[Buffer]) -> Iterator[tuple[Buffer, Buffer]]:
    """Pairs that are needed at the same time and overlap."""
    by_offset = sorted(buffers, key=lambda b: b.offset)
    for i, a in enumerate(by_offset):
        for b in by_offset[i + 1 :]:
            if b.offset >= a.end:
                break
            if a.meets(b):
                yield a, b


ORDERS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda b: (-b.bytes, b.first),
    lambda b: (-b.bytes * (b.last - b.first + 1), b.first),
    lambda b: (b.first - b.last, -b.bytes),
    lambda b: (b.first, -b.bytes),
)
"""Big first, big and long-lived first, long-lived first, in order of birth."""


def place(wanted: Sequence[Buffer], fixed: Sequence[Buffer] = ()) -> tuple[Buffer, ...]:
    """Give each buffer an offset that collides with none of the others nor with the `fixed` ones; in the given order.

    >>> [b.offset for b in place([Buffer("a", 100, 0, 1), Buffer("b", 300, 1, 2), Buffer("c", 200, 2, 3)])]
    [512, 0, 512]
    """
    bound = lower_bound([*wanted, *fixed])
    best: dict[str, Buffer] = {}
    for order in ORDERS:
        placed = _greedy(sorted(wanted, key=lambda b: (*order(b), b.name)), fixed)
        if not best or peak(placed) < peak(best.values()):
            best = {b.name: b for b in placed}
        if peak(placed) <= max(bound, peak(fixed)):
            break
    return tuple(best[b.name] for b in wanted)


def _greedy(ordered: Sequence[Buffer], fixed: Sequence[Buffer]) -> list[Buffer]:
    placed: list[Buffer] = []
    for b in ordered:
        around = [p for p in (*fixed, *placed) if p.meets(b)]
        placed.append(replace(b, offset=_best_fit(b.room, around)))
    return placed


def _best_fit(room: int, around: Iterable[Buffer]) -> int:
    """The smallest gap that is large enough, or the place after the last one."""
    found: tuple[int, int] | None = None
    top = 0
    for b in sorted(around, key=lambda b: b.offset):
        gap = b.offset - top
        if gap >= room and (found is None or (gap, top) < found):
            found = gap, top
        top = max(top, b.end)
    return found[1] if found else top
