"""What L2 holds from one launch to the next: least recently used, by buffer.

A launch names its operands, and counts the bytes that it reads and writes, of all of them together: each operand counts as touched by the
same share of it. It is then the most recent one; what no longer fits leaves L2, the least recent first, and as far as it was written
its bytes go to DRAM. A buffer of which only a part was ever touched (a worst-case slot, a cache that gets one row) has no more to give
than that: who reads it later finds all of it if that part is held. Touched parts of one buffer lie in each other as far as they can.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from knapper.isa.program import Operand


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses, and how many of their bytes were `touched` since they came to L2, are `held` there, and are `dirty`: not yet in DRAM."""

    start: int
    end: int
    touched: int
    held: int
    dirty: int

    def cut(self, start: int, end: int) -> Range:
        """What lies between two addresses: its share of everything."""
        start, end = max(start, self.start), min(end, self.end)
        if start >= end:
            return Range(start, start, 0, 0, 0)
        part, whole = end - start, self.end - self.start
        return Range(
            start, end, *(n * part // whole for n in (self.touched, self.held, self.dirty))
        )

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

    def launch(
        self, operands: Iterable[Operand], read: int | None = None, written: int | None = None
    ) -> tuple[float, int]:
        """A launch touches its operands: the share of what it reads that was held, and the bytes it makes L2 write back.

        `read` and `written` are the distinct bytes that it counted; None: all of its operands.
        """
        operands = list(operands)
        reads, writes = ([o for o in operands if use in o.use] for use in "rw")
        of_reads, of_writes = _share(reads, read), _share(writes, written)
        before = [(o, self.under(o)) for o in reads]
        asked = sum(max(b.touched, int(o.bytes * of_reads)) for o, b in before)
        held = sum(b.held for _, b in before)
        for o in operands:
            self.touch(
                o,
                int(o.bytes * of_reads) if "r" in o.use else 0,
                int(o.bytes * of_writes) if "w" in o.use else 0,
            )
        return min(1.0, held / asked) if asked else 0.0, self.evict()

    def under(self, o: Operand) -> Range:
        """What is known of an operand's addresses."""
        start, end = o.address, o.address + o.bytes
        parts = [r.cut(start, end) for r in self.ranges if start < r.end and r.start < end]
        sums = (sum(getattr(p, n) for p in parts) for n in ("touched", "held", "dirty"))
        return Range(start, end, *sums)

    def touch(self, o: Operand, read: int, written: int) -> None:
        """An operand becomes the most recent range, with what was known of its addresses before."""
        start, end = o.address, o.address + o.bytes
        old, now = self.under(o), max(read, written)
        apart = (
            (r,) if r.end <= start or end <= r.start else r.without(start, end) for r in self.ranges
        )
        self.ranges = [r for parts in apart for r in parts]
        new = Range(start, end, max(old.touched, now), max(old.held, now), max(old.dirty, written))
        self.ranges.append(new)

    def evict(self) -> int:
        """Keep the most recent ranges that fit; bytes written back."""
        room, back, kept = self.capacity, 0, []
        for r in reversed(self.ranges):
            stays = min(r.held, room)
            room -= stays
            gone = r.dirty * (r.held - stays) // r.held if r.held else 0
            back += gone
            if stays:
                kept.append(Range(r.start, r.end, r.touched, stays, r.dirty - gone))
        self.ranges = kept[::-1]
        return back


def _share(operands: Iterable[Operand], counted: int | None) -> float:
    """The part of its operands that a launch touches."""
    whole = sum(o.bytes for o in operands)
    return 1.0 if counted is None or not whole else min(1.0, counted / whole)
