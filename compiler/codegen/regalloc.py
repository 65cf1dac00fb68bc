"""Linear scan: every group of virtual words gets consecutive physical registers for the whole of its life.

    position of instruction i:   2i (it reads)   2i + 1 (it writes)

so a result may take the register of an operand that dies there. Groups of 2 and of more words are aligned to 2 and 4. Small groups first fill quads
that are broken already: whole quads are what fragments and 128-bit loads need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from knapper.isa.errors import CompileError

from .liveness import Block, Live, divergent, members
from .virtual import PREDICATE, UNIFORM, VECTOR, Record

FILE_NAMES = {VECTOR: "vector registers", UNIFORM: "uniform registers", PREDICATE: "predicates"}
MOVES = ("MOV", "UMOV")
ALIGNED = {n: sum(1 << i for i in range(0, 256, n)) for n in (1, 2, 4)}


@dataclass
class Groups:
    """What was asked for. `owner[word]` is the group that a word belongs to."""

    owner: list[int] = field(default_factory=list)
    base: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    file: list[int] = field(default_factory=list)

    def add(self, file: int, words: int) -> int:
        """A new group; gives its first word."""
        base = len(self.owner)
        self.owner += [len(self.base)] * words
        self.base.append(base)
        self.words.append(words)
        self.file.append(file)
        return base


@dataclass(frozen=True)
class Places:
    """`at[word]` is the physical register; `used[file]` is how many registers of a file the kernel touches."""

    at: list[int]
    used: dict[int, int]


def allocate(
    code: list[Record],
    order: list[int],
    blocks: list[Block],
    live: Live,
    groups: Groups,
    limits: tuple[int, int, int],
    where: str,
) -> Places:
    """Place every group; CompileError E432 if a file of registers does not suffice."""
    start, end = intervals(code, order, blocks, live, groups)
    _widen(code, groups, start, end)
    at = [0] * len(groups.owner)
    free = [(1 << n) - 1 for n in limits]
    used = dict.fromkeys(FILE_NAMES, 0)
    active: list[tuple[int, int, int]] = []  # (end, file, bits)
    copied = _copies(code, groups)
    alive = [g for g in range(len(start)) if end[g] >= 0]
    for g in sorted(alive, key=lambda g: (start[g], -groups.words[g])):
        while active and active[0][0] < start[g]:
            _, file, bits = heappop(active)
            free[file] |= bits
        file, words = groups.file[g], groups.words[g]
        first = _inherited(copied.get(g), groups, at, free[file], words)
        if first < 0:
            first = _fit(free[file], words, limits[file])
        if first < 0:
            raise CompileError(
                "E432",
                f"needs more than {limits[file]} {FILE_NAMES[file]}",
                where=f"kernel {where}",
                hint="use a smaller tile",
            )
        bits = ((1 << words) - 1) << first
        free[file] ^= bits
        heappush(active, (end[g], file, bits))
        used[file] = max(used[file], first + words)
        at[groups.base[g] : groups.base[g] + words] = range(first, first + words)
    return Places(at, used)


def _copies(code: list[Record], groups: Groups) -> dict[int, int]:
    """Group → the group that a move fills it from: with its register, if that falls free, the move would do nothing."""
    found: dict[int, int] = {}
    for r in code:
        if r.name in MOVES and r.reads and len(r.reads) == len(r.writes):
            a, d = groups.owner[r.reads[0]], groups.owner[r.writes[0]]
            if groups.file[a] == groups.file[d] and groups.words[a] == groups.words[d]:
                found[d] = a
    return found


def _inherited(source: int | None, groups: Groups, at: list[int], free: int, words: int) -> int:
    """The source's registers if they are free by now, or −1."""
    if source is None:
        return -1
    first = at[groups.base[source]]
    bits = ((1 << words) - 1) << first
    return first if free & bits == bits else -1


def intervals(
    code: list[Record], order: list[int], blocks: list[Block], live: Live, groups: Groups
) -> tuple[list[int], list[int]]:
    """First and last position of each group's life; an end of −1 means that it is never touched."""
    owner = groups.owner
    start, end = [1 << 60] * len(groups.base), [-1] * len(groups.base)
    for k, b in enumerate(blocks):
        for w in members(live.into[k]):
            start[owner[w]] = min(start[owner[w]], 2 * b.first)
        for w in members(live.out[k]):
            end[owner[w]] = max(end[owner[w]], 2 * b.last - 1)
    for at, i in enumerate(order):
        r = code[i]
        reads = 2 * at + r.shape.wide
        for w in r.reads:
            g = owner[w]
            if reads > end[g]:
                end[g] = reads
            if reads < start[g]:
                start[g] = reads
        writes = 2 * at + 1
        for w in r.writes:
            g = owner[w]
            if writes > end[g]:
                end[g] = writes
            if writes < start[g]:
                start[g] = writes
    return start, end


def _widen(code: list[Record], groups: Groups, start: list[int], end: list[int]) -> None:
    """Values that parked lanes do not protect live through every divergent region that they touch."""
    regions = divergent(code)
    if not regions:
        return
    exposed = {groups.owner[w] for r in code if r.shape.uniform for w in r.writes}
    for g in exposed:
        for a, z in regions:
            if start[g] <= 2 * z + 1 and end[g] >= 2 * a:
                start[g], end[g] = min(start[g], 2 * a), max(end[g], 2 * z + 1)


def _fit(free: int, words: int, limit: int) -> int:
    """The first register of a free, aligned run of `words`, or −1."""
    whole = free | 15 << limit  # a last quad that the limit cuts short is not broken
    quads = whole & whole >> 1
    quads = (quads & quads >> 2) & ALIGNED[4]
    if words <= 2:
        runs = free if words == 1 else free & free >> 1 & ALIGNED[2]
        broken = runs & ~(quads * 15)
        runs = broken or runs
    else:
        runs, have = free, 1
        while have < words:
            step = min(have, words - have)
            runs &= runs >> step
            have += step
        runs &= ALIGNED[4]
    return (runs & -runs).bit_length() - 1
