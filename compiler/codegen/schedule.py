"""List scheduling inside basic blocks: long-latency instructions early, their users late.

Among the instructions whose operands have arrived, the one at the head of the longest latency path goes first. That stretches lives, so a
guard watches the pressure on each register file: at the limit the oldest waiting instruction goes, which is the order that the kernel was written in.

Dependences are words read and written, and memory: loads of one space pass each other, nothing passes a store of its space.
"""

from __future__ import annotations

from collections import defaultdict
from heapq import heappop, heappush

from .liveness import Block, Live, members
from .regalloc import Groups
from .virtual import Record

FLOORS = (64, 32, 4)
"""Pressure a file that is always allowed: occupancy does not gain below it."""


def schedule(
    code: list[Record],
    blocks: list[Block],
    live: Live,
    groups: Groups,
    limits: tuple[int, int, int],
) -> list[int]:
    """A permutation of the instructions that stays inside blocks and respects dependences."""
    order: list[int] = []
    files = [groups.file[g] for g in groups.owner]
    for k, b in enumerate(blocks):
        if b.last - b.first < 4:
            order += range(b.first, b.last)
            continue
        body = code[b.first : b.last]
        pressure = _Pressure(body, files, members(live.into[k]), set(members(live.out[k])), limits)
        order += [b.first + i for i in _block(body, pressure)]
    return order


def _block(body: list[Record], pressure: _Pressure) -> list[int]:
    after, waits = _dependences(body)
    n = len(body)
    height = [r.shape.latency if pressure.leaves(r) else 0 for r in body]
    for i in range(n - 1, -1, -1):
        for j, latency in after[i]:
            height[i] = max(height[i], latency + height[j])
    earliest, done = [0] * n, [False] * n
    order: list[int] = []
    ready: list[tuple[int, int]] = []
    pending: list[tuple[int, int]] = [(0, i) for i in range(n) if not waits[i]]
    now = oldest = 0
    while len(order) < n:
        while pending and (pending[0][0] <= now or done[pending[0][1]]):
            i = heappop(pending)[1]
            heappush(ready, (-height[i], i))
        while ready and done[ready[0][1]]:
            heappop(ready)
        if pressure.high:
            while done[oldest]:
                oldest += 1
            i = oldest
        elif ready:
            i = heappop(ready)[1]
        else:
            now = pending[0][0]
            continue
        done[i] = True
        order.append(i)
        pressure.issue(i)
        now = max(now, earliest[i]) + 1
        for j, latency in after[i]:
            earliest[j] = max(earliest[j], now - 1 + latency)
            waits[j] -= 1
            if not waits[j]:
                heappush(pending, (earliest[j], j))
    return order


def _dependences(body: list[Record]) -> tuple[list[list[tuple[int, int]]], list[int]]:
    """(for each instruction those that must follow it, with the cycles between; how many each one waits for)."""
    after: list[list[tuple[int, int]]] = [[] for _ in body]
    waits = [0] * len(body)
    writer: dict[int, int] = {}
    readers: dict[int, list[int]] = defaultdict(list)
    stores: dict[str, int] = {}
    loads: dict[str, list[int]] = defaultdict(list)
    for j, r in enumerate(body):
        before: dict[int, int] = {}
        for w in r.reads:
            if (i := writer.get(w)) is not None:
                before[i] = body[i].shape.latency
        for w in r.writes:
            if (i := writer.get(w)) is not None:
                before.setdefault(i, 1)
            for i in readers[w]:
                before.setdefault(i, 0)
        if space := r.shape.space:
            if (i := stores.get(space)) is not None:
                before.setdefault(i, 1)
            if r.shape.stores:
                for i in loads.pop(space, ()):
                    before.setdefault(i, 0)
                stores[space] = j
            else:
                loads[space].append(j)
        if space := r.shape.operands:
            if (i := stores.get(space)) is not None:
                before.setdefault(i, 1)
            loads[space].append(j)
        if r.shape.fence:
            before = dict.fromkeys(range(j), 0) | before
        for i, latency in before.items():
            after[i].append((j, latency))
        waits[j] = len(before)
        for w in r.reads:
            readers[w].append(j)
        for w in r.writes:
            writer[w] = j
            readers[w].clear()
    return after, waits


class _Pressure:
    """Words alive in each file while a block is being ordered. `high` says that some file is at its limit."""

    def __init__(
        self,
        body: list[Record],
        files: list[int],
        into: list[int],
        out: set[int],
        limits: tuple[int, int, int],
    ) -> None:
        self.body, self.files, self.out = body, files, out
        self.start = frozenset(into)
        self.limit = [1 << 30] * 3
        self._reset()
        peak = list(self.count)
        for i in range(len(body)):
            self.issue(i)
            peak = [max(p, c) for p, c in zip(peak, self.count, strict=True)]
        margins = (8, 4, 1)
        self.limit = [
            min(top - margin, max(p, floor))
            for top, margin, p, floor in zip(limits, margins, peak, FLOORS, strict=True)
        ]
        self._reset()

    def _reset(self) -> None:
        self.alive, self.count, self.high = set(self.start), [0, 0, 0], False
        for w in self.start:
            self.count[self.files[w]] += 1
        self.left: dict[int, int] = defaultdict(int)
        for r in self.body:
            for w in r.reads:
                self.left[w] += 1

    def leaves(self, r: Record) -> bool:
        """Whether a result is wanted after the block, so that it had better begin early."""
        return any(w in self.out for w in r.writes)

    def issue(self, i: int) -> None:
        """Account for one instruction: its results begin, operands without a later use end."""
        r = self.body[i]
        for w in r.writes:
            if w not in self.alive:
                self.alive.add(w)
                self.count[self.files[w]] += 1
        for w in r.reads:
            self.left[w] -= 1
        for w in (*r.reads, *r.writes):
            if not self.left[w] and w not in self.out and w in self.alive:
                self.alive.discard(w)
                self.count[self.files[w]] -= 1
        self.high = any(c >= top for c, top in zip(self.count, self.limit, strict=True))
