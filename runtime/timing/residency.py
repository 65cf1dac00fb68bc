"""What L2 holds from one launch to the next: least recently used, by buffer.

A launch names its operands. All of one that it reads or writes counts as touched, in the order in which they are named, and is then the
most recent; what no longer fits leaves L2, the least recent first, and if it was written its bytes go to DRAM.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from knapper.isa.program import Operand


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses of which `held` bytes are in L2, changed or not."""

    start: int
    end: int
    held: int
    dirty: bool

    def cut(self, start: int, end: int) -> Range:
        """What lies between two addresses: its share of what is held."""
        start, end = max(start, self.start), min(end, self.end)
        if start >= end:
            return Range(start, start, 0, self.dirty)
        held = self.held * (end - start) // (self.end - self.start)
        return Range(start, end, held, self.dirty)

    def without(self, start: int, end: int) -> tuple[Range, ...]:
        """What lies before and after two addresses, as far as any of it is held."""
        parts = self.cut(self.start, start), self.cut(end, self.end)
        return tuple(p for p in parts if p.held > 0)


@dataclass
class Residency:
    """L2 of `capacity` bytes between launches."""

    capacity: int
    ranges: list[Range] = field(default_factory=list)
    """The least recent first."""

    def launch(self, operands: Iterable[Operand]) -> tuple[float, int]:
        """A launch touches its operands: the share of what it reads that was held, and the bytes it makes L2 write back."""
        operands = list(operands)
        read = [o for o in operands if "r" in o.use]
        held = sum(self.held(o.address, o.address + o.bytes) for o in read)
        asked = sum(o.bytes for o in read)
        for o in operands:
            self.touch(o)
        return min(1.0, held / asked) if asked else 0.0, self.evict()

    def held(self, start: int, end: int) -> int:
        """Bytes between two addresses that are in L2."""
        return sum(r.cut(start, end).held for r in self.ranges if start < r.end and r.start < end)

    def touch(self, o: Operand) -> None:
        """An operand becomes the most recent range; what lay there before is part of it."""
        start, end = o.address, o.address + o.bytes
        under = [r for r in self.ranges if start < r.end and r.start < end]
        dirty = "w" in o.use or any(r.dirty for r in under)
        if under:
            apart = (
                (r,) if r.end <= start or end <= r.start else r.without(start, end)
                for r in self.ranges
            )
            self.ranges = [r for parts in apart for r in parts]
        self.ranges.append(Range(start, end, o.bytes, dirty))

    def evict(self) -> int:
        """Keep the most recent ranges that fit; bytes written back."""
        room, kept, written = self.capacity, list[Range](), 0
        for r in reversed(self.ranges):
            stays = min(r.held, room)
            room -= stays
            written += (r.held - stays) * r.dirty
            if stays:
                kept.append(r if stays == r.held else Range(r.start, r.end, stays, r.dirty))
        self.ranges = kept[::-1]
        return written
