"""Which values are alive where: basic blocks, and the classic backward data flow over them, as bit sets in Python integers.

Registers are per lane and writes touch active lanes only, so the control-flow graph of one lane is enough for vector
registers and for predicates that lanes write: a lane parked on another path keeps what it had. Two kinds of write do touch
parked lanes: uniform registers, and predicates that the uniform unit sets. While lanes may be parked (`divergent`), such a
value keeps its register to itself (`regalloc`).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

from .virtual import Record, VLabel


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions [first, last), and the blocks that may follow."""

    first: int
    last: int
    successors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Live:
    """Bit sets over words, a block each."""

    into: list[int]
    out: list[int]


def blocks(code: list[Record], labels: list[VLabel]) -> list[Block]:
    """Cut the code at labels and after instructions that end a block."""
    n = len(code)
    cuts = (
        {0, n}
        | {label.at for label in labels}
        | {i + 1 for i, r in enumerate(code) if r.shape.fence}
    )
    edges = sorted(cuts)
    found = []
    for k, (first, last) in enumerate(pairwise(edges)):
        found.append(Block(first, last, _successors(code[last - 1], k, edges, n)))
    return found


def _successors(end: Record, k: int, edges: list[int], n: int) -> tuple[int, ...]:
    """A BRA goes to its label, and on if guarded; EXIT ends its lanes. BSSY's target is a place, not a jump."""
    on = (k + 1,) if edges[k + 1] < n else ()
    always = not end.guarded
    if end.name == "EXIT":
        return () if always else on
    if end.name == "BRA" and end.target is not None:
        to = () if end.target.at == n else (bisect_left(edges, end.target.at),)
        return to if always else to + on
    return on


def live(code: list[Record], found: list[Block]) -> Live:
    """Words alive at entry and exit of each block.

    A word has no value before the first instruction that names it, or before the loop around that. So a write under a guard, or on one
    side of a branch, does not keep a register from the kernel's start on only because a later read has another condition.
    """
    uses, kills = zip(*(_exposed(code, b) for b in found), strict=True) if found else ((), ())
    into, out = [0] * len(found), [0] * len(found)
    born = _born(code, found)
    changed = True
    while changed:
        changed = False
        for k in range(len(found) - 1, -1, -1):
            after = 0
            for s in found[k].successors:
                after |= into[s]
            before = (uses[k] | after & ~kills[k]) & born[k]
            if after != out[k] or before != into[k]:
                out[k], into[k], changed = after, before, True
    return Live(into, out)


def _born(code: list[Record], found: list[Block]) -> list[int]:
    """For each block the words that may have a value at its entry."""
    loops = [(found[s].first, b.last) for k, b in enumerate(found) for s in b.successors if s <= k]
    births: dict[int, int] = {}
    for i, r in enumerate(code):
        for w in (*r.reads, *r.writes):
            if w not in births:
                births[w] = min([i, *(first - 1 for first, last in loops if first <= i < last)])
    order = sorted(births, key=lambda w: births[w])
    born, bits, n = list[int](), 0, 0
    for b in found:
        while n < len(order) and births[order[n]] < b.first:
            bits |= 1 << order[n]
            n += 1
        born.append(bits)
    return born


def _exposed(code: list[Record], b: Block) -> tuple[int, int]:
    """(words whose value at the block's entry may be read, words that the block surely writes in every lane).

    A write under a guard kills only for reads under the same guard: `partly` remembers which, until its predicate changes.
    """
    read: set[int] = set()
    killed: set[int] = set()
    partly: dict[int, tuple[int, bool]] = {}
    predicates = {r.guard.base for r in code[b.first : b.last] if r.guarded}
    for r in code[b.first : b.last]:
        guard = r.condition
        for w in r.reads:
            if w not in killed and (guard is None or partly.get(w) != guard):
                read.add(w)
        for w in r.writes:
            if guard is None:
                killed.add(w)
            else:
                partly.setdefault(w, guard)
            if partly and w in predicates:
                partly = {v: g for v, g in partly.items() if g[0] != w}
    return _set(read), _set(killed)


def _set(words: set[int]) -> int:
    bits = 0
    for w in words:
        bits |= 1 << w
    return bits


def members(bits: int) -> list[int]:
    """The words in a set, ascending."""
    text = bin(bits)[:1:-1]
    found, at = [], text.find("1")
    while at >= 0:
        found.append(at)
        at = text.find("1", at + 1)
    return found


def divergent(code: list[Record]) -> list[tuple[int, int]]:
    """Instruction ranges in which some lanes may be parked: BSSY to its BSYNC, and from a lone lane-wise branch to the end.

    Small ones first, so that a value widened to an inner region is then seen by the outer one.
    """
    regions: list[tuple[int, int]] = []
    uniform = {w for r in code if r.shape.uniform for w in r.writes}
    uniform -= {w for r in code if not r.shape.uniform for w in r.writes}
    for i, r in enumerate(code):
        if r.name == "BSSY" and r.target is not None:
            regions.append((i, r.target.at))
        elif _diverges(r, uniform) and not any(a <= i <= z for a, z in regions):
            regions.append((i, len(code)))
    return sorted(regions, key=lambda region: region[1] - region[0])


def _diverges(r: Record, uniform: set[int]) -> bool:
    return r.name == "BRA" and r.guarded and r.guard.base not in uniform
