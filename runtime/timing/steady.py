"""Steady state: when an SM's state recurs, with every time counted from now, what follows recurs too, and is not simulated again.

All that the simulation does is take the later of two times and add a constant, so a state that recurs after P cycles goes on
recurring as long as the warps' paths do. The state is compared when the oldest warp goes back to the start of a loop, and when a
block begins, with one kept earlier (after 1, 2, 4, … such moments: Brent's rule finds any period).

Between the two moments a warp either went on in its block: then its events must go on repeating, or its place got other
blocks: then it must be where it was, and the sequence of blocks must go on repeating.
"""

from __future__ import annotations

from typing import Any

from .jit import compiled
from .state import ARRIVAL, ENTRY, NEVER, PC, SERIAL, TICK, WARP


@compiled
def steady(
    events: Any,
    sequence: Any,
    sms: Any,
    boards: Any,
    gathered: Any,
    lines: Any,
    dones: Any,
    blames: Any,
    k: int,
) -> None:
    """If state 0 is state k, go on by as many periods as the paths allow; keep it as state k if it is time to."""
    sm, seen = sms[0], sms[k]
    seen.moments += 1
    if seen.moments > 1 and _same(sm, seen, boards, gathered, lines, dones, k):
        periods = _periods(events, sequence, sm, seen)
        if periods > 0:
            _advance(sm, seen, periods)
            shift = periods * (sm.now - seen.now) * TICK
            _shift(boards, 2 * shift)
            _shift(dones, 2 * shift)
            _shift_arrivals(sm, lines, shift)
            for i in range(blames.shape[1]):
                blames[0, i] += periods * (blames[0, i] - blames[k, i])
            sm.now += periods * (sm.now - seen.now)
            seen.moments, seen.due = 0, 0
    elif seen.moments > seen.due:
        moments, due = seen.moments, 2 * seen.due + 1
        sms[k] = sms[0]
        seen.moments, seen.due = moments, due
        _keep(boards, k)
        _keep(gathered, k)
        _keep_lines(sm, lines, k)
        _keep(dones, k)
        for i in range(blames.shape[1]):
            blames[k, i] = blames[0, i]


@compiled
def _keep(arrays: Any, k: int) -> None:
    """Array k becomes a copy of array 0. (Loops, here and below: numba takes seconds to compile an expression of arrays.)"""
    for i in range(arrays.shape[1]):
        for j in range(arrays.shape[2]):
            arrays[k, i, j] = arrays[0, i, j]


@compiled
def _shift(arrays: Any, ticks: int) -> None:
    """The times in array 0 move on."""
    for i in range(arrays.shape[1]):
        for j in range(arrays.shape[2]):
            arrays[0, i, j] += ticks


@compiled
def _keep_lines(sm: Any, lines: Any, k: int) -> None:
    """As `_keep`, of what is in the queues."""
    for e in range(2):
        for row in range(ENTRY * e, ENTRY * e + ENTRY):
            for i in range(sm.head[e], sm.tail[e]):
                lines[k, row, i] = lines[0, row, i]


@compiled
def _shift_arrivals(sm: Any, lines: Any, ticks: int) -> None:
    """Groups in the queues arrive later."""
    for e in range(2):
        for i in range(sm.head[e], sm.tail[e]):
            lines[0, ENTRY * e + ARRIVAL, i] += ticks


# --- is it the same state?


@compiled
def _same(sm: Any, seen: Any, boards: Any, gathered: Any, lines: Any, dones: Any, k: int) -> bool:  # fmt: skip
    """Whether two states are the same: cheap questions first."""
    if not (_same_places(sm, seen) and _same_times(sm, seen) and _same_lines(sm, seen, lines, k)):
        return False
    now, then = sm.now * TICK, seen.now * TICK
    for s in range(sm.subcores):
        for i in range(sm.warps[s]):
            w = sm.order[s, i]
            for r in range(boards.shape[2]):
                if _rest(boards[0, w, r], 2 * now + 1) != _rest(boards[k, w, r], 2 * then + 1):
                    return False
            for g in range(sm.groups):
                if _rest(dones[0, w, g], 2 * now + 1) != _rest(dones[k, w, g], 2 * then + 1):
                    return False
            for g in range(sm.gathers[w]):
                if gathered[0, w, g] != gathered[k, w, g]:
                    return False
    return True


@compiled
def _same_lines(sm: Any, seen: Any, lines: Any, k: int) -> bool:
    """The queues of both engines."""
    now, then = sm.now * TICK, seen.now * TICK
    for e in range(2):
        if sm.open[e] != seen.open[e] or sm.tail[e] - sm.head[e] != seen.tail[e] - seen.head[e]:
            return False
        for n in range(sm.tail[e] - sm.head[e]):
            i, j = sm.head[e] + n, seen.head[e] + n
            pc, warp, arrival, serial = ENTRY * e + PC, ENTRY * e + WARP, ENTRY * e + ARRIVAL, ENTRY * e + SERIAL  # fmt: skip
            w = lines[0, warp, i]
            if (
                lines[0, pc, i] != lines[k, pc, j]
                or w != lines[k, warp, j]
                or _rest(lines[0, arrival, i], now) != _rest(lines[k, arrival, j], then)
                or sm.commits[w] - lines[0, serial, i] != seen.commits[w] - lines[k, serial, j]
            ):
                return False
    return True


@compiled
def _rest(time: int, now: int) -> int:
    """How long it is until a time, 0 if it is over: all times that are over are the same."""
    return max(time - now, 0)


@compiled
def _same_places(sm: Any, seen: Any) -> bool:
    """Which warps there are, in which order, at which instructions."""
    for s in range(sm.subcores):
        if sm.warps[s] != seen.warps[s] or sm.greedy[s] != seen.greedy[s]:
            return False
        for i in range(sm.warps[s]):
            w = sm.order[s, i]
            if (
                w != seen.order[s, i]
                or sm.pc[w] != seen.pc[w]
                or sm.port[w] != seen.port[w]
                or sm.reason[w] != seen.reason[w]
                or sm.gathers[w] != seen.gathers[w]
                or sm.others[w] != seen.others[w]
                or sm.awaits[w] != seen.awaits[w]
            ):
                return False
    same = True
    for b in range(sm.places):
        same &= sm.arrived[b] == seen.arrived[b] and sm.living[b] == seen.living[b]
    return same


@compiled
def _same_times(sm: Any, seen: Any) -> bool:
    """Everything but registers and groups."""
    now, then = sm.now, seen.now
    for s in range(sm.subcores):
        if sm.idle[s] - now != seen.idle[s] - then:
            return False
        for i in range(sm.warps[s]):
            w = sm.order[s, i]
            if (sm.ready[w] >= NEVER) != (seen.ready[w] >= NEVER):
                return False
            if sm.ready[w] < NEVER and _rest(sm.ready[w], now) != _rest(seen.ready[w], then):
                return False
            if sm.awaits[w] > 0 and _rest(sm.after[w], now) != _rest(seen.after[w], then):
                return False
            if _rest(sm.drained[w], now * TICK) != _rest(seen.drained[w], then * TICK):
                return False
    now, then = now * TICK, then * TICK
    for p in range(sm.ports):
        if (sm.free[p] >= NEVER) != (seen.free[p] >= NEVER):
            return False
        if sm.free[p] < NEVER and _rest(sm.free[p], now) != _rest(seen.free[p], then):
            return False
    for e in range(2):
        for q in range(sm.queue):
            if _rest(sm.begun[e, q], now) != _rest(seen.begun[e, q], then):
                return False
    return (
        _rest(sm.l2, now) == _rest(seen.l2, then)
        and _rest(sm.dram, now) == _rest(seen.dram, then)
        and _rest(sm.vector, now) == _rest(seen.vector, then)
        and _rest(sm.dma, now) == _rest(seen.dma, then)
        and _rest(sm.landed, now) == _rest(seen.landed, then)
        and _rest(sm.array, now) == _rest(seen.array, then)
        and _rest(sm.weights, now) == _rest(seen.weights, then)
        and _rest(sm.swapped, now) == _rest(seen.swapped, then)
    )


# --- how often will it recur?


@compiled
def _periods(events: Any, sequence: Any, sm: Any, seen: Any) -> int:
    """Periods for which paths and blocks go on as they did between the two moments."""
    most, fresh = NEVER, sm.started - seen.started
    if fresh > 0:
        most = _blocks(sequence, sm.started, fresh)
    for s in range(sm.subcores):
        for i in range(sm.warps[s]):
            w = sm.order[s, i]
            place = w // sm.block_warps
            if sm.block[place] == seen.block[place]:
                most = min(
                    most, _repeats(events, seen.event[w], sm.event[w], seen.left[w], sm.left[w])
                )
            elif sm.event[w] != seen.event[w] or sm.left[w] != seen.left[w]:
                return 0
    return most if most < NEVER else 0


@compiled
def _blocks(sequence: Any, started: int, period: int) -> int:
    """Periods for which the blocks to come are those that came a period before."""
    n = started
    while n < len(sequence) and sequence[n] == sequence[n - period]:
        n += 1
    return (n - started) // period


@compiled
def _repeats(events: Any, first: int, second: int, left: int, still: int) -> int:
    """Periods for which a warp's events go on as they did from `first`, of which `left` were to come, to `second` and `still`."""
    if first == second:
        return (still - 1) // (left - still) if left > still else NEVER
    if left != still:
        return 0
    n = 0
    while (
        events[first + n].pc == events[second + n].pc
        and events[first + n].next == events[second + n].next
        and (n == 0 or events[first + n].count == events[second + n].count)
    ):
        n += 1
    return (n - 1) // (second - first) if n > 0 else 0


# --- go on


@compiled
def _advance(sm: Any, seen: Any, periods: int) -> None:
    """Every time moves on, every sum grows, by so many periods; `now` is left to the caller."""
    cycles, fresh = periods * (sm.now - seen.now), sm.started - seen.started
    for w in range(sm.warp_places):
        place = w // sm.block_warps
        if sm.block[place] == seen.block[place]:
            if sm.event[w] == seen.event[w]:
                sm.left[w] -= periods * (seen.left[w] - sm.left[w])
            else:
                sm.event[w] += periods * (sm.event[w] - seen.event[w])
        if sm.ready[w] < NEVER:
            sm.ready[w] += cycles
        sm.drained[w] += cycles * TICK
        sm.after[w] += cycles
    for place in range(sm.places):
        if sm.block[place] != seen.block[place]:
            sm.block[place] += periods * fresh
    for s in range(sm.subcores):
        sm.idle[s] += cycles
        if sm.next[s] < NEVER:
            sm.next[s] += cycles
    for p in range(sm.ports):
        if sm.free[p] < NEVER:
            sm.free[p] += cycles * TICK
        sm.busy[p] += periods * (sm.busy[p] - seen.busy[p])
    for e in range(2):
        for q in range(sm.queue):
            sm.begun[e, q] += cycles * TICK
    for r in range(len(sm.slots)):
        sm.slots[r] += periods * (sm.slots[r] - seen.slots[r])
    sm.l2 += cycles * TICK
    sm.dram += cycles * TICK
    sm.vector += cycles * TICK
    sm.dma += cycles * TICK
    sm.landed += cycles * TICK
    sm.array += cycles * TICK
    sm.weights += cycles * TICK
    sm.swapped += cycles * TICK
    sm.stalled += periods * (sm.stalled - seen.stalled)
    sm.occupied += periods * (sm.occupied - seen.occupied)
    sm.started += periods * fresh
