"""Commands to engines: gathered by warp, committed as a group, worked off in the order in which groups arrive at the array, or at the DMA engine.

The array streams one pass after another. Loading weights is either part of that stream (without a second buffer the array
stands still) or goes on beside it: then it begins when the group has arrived and the buffer is empty, that is after the last swap,
and a swap waits for its end. A group's results are there when the last rows have left the array's pipeline.

The DMA engine takes one transfer after another: as long as the slowest of L2, DRAM and the vector memory's port, and what it moves is there
`OP.work` later. Groups of nothing but transfers are its; one that mixes is the array's, and what follows a transfer in it waits for what was moved.

The vector memory has one port, never idle while something waits. What the array reads is reserved: a pass asks as it begins for all that it
will read, and is late only if that alone takes longer than its rows. Transfers, and what warps load and store, are served behind whatever asked
before them, so what they need beyond the cycles that passes leave makes those late who come later. Hence an engine takes a command up when its
time has come and not before (`advance`). Without a vector memory nobody meets anybody there, and all that a group does is known as it is committed.
"""

from __future__ import annotations

from typing import Any

from .jit import compiled
from .shares import memory, vector_port
from .state import (
    ARRAY,
    ARRIVAL,
    COMMIT,
    DMA,
    ENTRY,
    FETCHING,
    LOAD_WEIGHTS,
    NEVER,
    PC,
    QUEUE,
    SERIAL,
    STREAM,
    SWAP_WEIGHTS,
    SYSTOLIC,
    TICK,
    TRANSFER,
    WARP,
)


@compiled
def gather(sm: Any, gathered: Any, w: int, pc: int, kind: int) -> None:
    """Remember a command until the warp commits; other instructions are none. (More than the array holds no engine executes.)"""
    if LOAD_WEIGHTS <= kind <= TRANSFER and sm.gathers[w] < gathered.shape[1] - 1:
        gathered[w, sm.gathers[w]] = pc
        sm.gathers[w] += 1
        sm.others[w] += int(kind != TRANSFER)


@compiled
def engine(sm: Any, w: int) -> int:
    """Whose queue the group that the warp gathers will join."""
    return DMA if sm.gathers[w] > 0 and sm.others[w] == 0 else ARRAY


@compiled
def commit(ops: Any, sm: Any, lines: Any, gathered: Any, done: Any, w: int, pc: int, arrival: int) -> None:  # fmt: skip
    """The warp's commands become a group, which its engine has at tick `arrival`."""
    e = engine(sm, w)
    gathered[w, sm.gathers[w]] = pc
    make_room(sm, lines, e, sm.gathers[w] + 1)
    for i in range(sm.gathers[w] + 1):
        at = sm.tail[e]
        lines[ENTRY * e + PC, at], lines[ENTRY * e + WARP, at] = gathered[w, i], w
        lines[ENTRY * e + ARRIVAL, at], lines[ENTRY * e + SERIAL, at] = arrival, sm.commits[w]
        sm.tail[e] += 1
    sm.gathers[w], sm.others[w] = 0, 0
    sm.commits[w] += 1
    for i in range(sm.groups - 1, 0, -1):
        done[w, i] = done[w, i - 1]
    if not sm.shared_port:
        advance(ops, sm, lines, done, NEVER)
    queue_room(ops, sm, lines, e)


@compiled
def make_room(sm: Any, lines: Any, e: int, entries: int) -> None:
    """An engine's queue begins at 0 again where it would not fit otherwise."""
    head = sm.head[e]
    if sm.tail[e] + entries <= lines.shape[1]:
        return
    for i in range(head, sm.tail[e]):
        for row in range(ENTRY * e, ENTRY * e + ENTRY):
            lines[row, i - head] = lines[row, i]
    sm.head[e], sm.tail[e] = 0, sm.tail[e] - head


@compiled
def queue_room(ops: Any, sm: Any, lines: Any, e: int) -> None:
    """When an engine's queue has room for a group: the one as many groups ago as it holds has begun. NEVER: none knows yet."""
    waiting = -sm.open[e]
    for i in range(sm.head[e], sm.tail[e]):
        waiting += int(ops[lines[ENTRY * e + PC, i]].kind == COMMIT)
    known = sm.queue - 1 - waiting
    if known < 0:
        sm.free[QUEUE + e] = NEVER
        return
    sm.free[QUEUE + e] = sm.begun[e, known]
    for s in range(sm.subcores):
        sm.next[s] = min(sm.next[s], max(sm.begun[e, known] // TICK, sm.idle[s]))


# --- engines at work


@compiled
def upcoming(ops: Any, sm: Any, lines: Any, e: int) -> int:
    """The tick at which an engine takes up what is first in its queue; NEVER if nothing is."""
    if sm.head[e] == sm.tail[e]:
        return NEVER
    at: int = lines[ENTRY * e + ARRIVAL, sm.head[e]]
    kind = ops[lines[ENTRY * e + PC, sm.head[e]]].kind
    if kind == LOAD_WEIGHTS:
        at = max(at, sm.weights, sm.swapped)
    elif kind == STREAM:
        at = max(at, sm.array)
    elif kind == TRANSFER:
        at = max(at, sm.dma)
    return at


@compiled
def next_command(ops: Any, sm: Any, lines: Any) -> int:
    """The tick at which some engine takes something up."""
    return min(upcoming(ops, sm, lines, ARRAY), upcoming(ops, sm, lines, DMA))


@compiled
def advance(ops: Any, sm: Any, lines: Any, done: Any, until: int) -> None:
    """Engines take up what they come to up to a tick, in the order of time; at the same tick the array is first."""
    while True:
        array, dma = upcoming(ops, sm, lines, ARRAY), upcoming(ops, sm, lines, DMA)
        if min(array, dma) >= NEVER or min(array, dma) > until:
            return
        e = ARRAY if array <= dma else DMA
        take(ops, sm, lines, done, e, min(array, dma))


@compiled
def take(ops: Any, sm: Any, lines: Any, done: Any, e: int, start: int) -> None:
    """An engine takes up the first command of its queue at tick `start`."""
    at = sm.head[e]
    op, w = ops[lines[ENTRY * e + PC, at]], lines[ENTRY * e + WARP, at]
    if sm.open[e] == 0:
        begin_group(sm, e, lines[ENTRY * e + ARRIVAL, at])
        queue_room(ops, sm, lines, e)
    sm.head[e] += 1
    if op.kind == LOAD_WEIGHTS:
        vector_port(sm, start, op.vector)
        sm.weights = start + max(op.work, op.vector)
    elif op.kind == SWAP_WEIGHTS:
        sm.array = max(sm.array, sm.weights)
        sm.swapped = sm.array
    elif op.kind == STREAM:
        vector_port(sm, start, op.vector)
        sm.array = start + max(op.work, op.vector)
        sm.stalled += max(op.vector - op.work, 0)
    elif op.kind == TRANSFER:
        transfer(sm, op, e, start)
    else:
        sm.open[e] = 0
        queue_room(ops, sm, lines, e)
        finished = sm.array + op.work if e == ARRAY else sm.landed
        finish(sm, lines, done, e, w, lines[ENTRY * e + SERIAL, at], 2 * finished + e)


@compiled
def begin_group(sm: Any, e: int, arrival: int) -> None:
    """An engine comes to a group."""
    sm.open[e] = 1
    if e == ARRAY:
        sm.array = max(sm.array, arrival)
    for i in range(sm.queue - 1, 0, -1):
        sm.begun[e, i] = sm.begun[e, i - 1]
    sm.begun[e, 0] = sm.array if e == ARRAY else max(sm.dma, arrival)


@compiled
def transfer(sm: Any, op: Any, e: int, start: int) -> None:
    """The DMA engine moves something."""
    end = max(start + op.occupy, memory(sm, op, start))
    served = vector_port(sm, start, op.vector)
    sm.stalled += max(served - end, 0)
    end = max(end, served)
    sm.dma, sm.landed = end, end + op.work
    if e == ARRAY:
        sm.array, sm.weights = max(sm.array, sm.landed), max(sm.weights, sm.landed)


# --- who waits for groups


@compiled
def finish(sm: Any, lines: Any, done: Any, e: int, w: int, serial: int, at: int) -> None:
    """An engine knows when a group is done: so may be what its warp waits for."""
    for i in range(min(sm.commits[w] - serial, sm.groups)):
        done[w, i] = max(done[w, i], at)
    if sm.awaits[w] > 0 and settled(sm, lines, w, sm.awaits[w] - 1):
        n, s = sm.awaits[w] - 1, w % sm.subcores
        sm.awaits[w] = 0
        sm.ready[w] = max(sm.after[w], (done[w, n] // 2 + TICK - 1) // TICK)
        sm.reason[w] = FETCHING if done[w, n] & 1 else SYSTOLIC
        sm.next[s] = min(sm.next[s], max(sm.ready[w], sm.idle[s]))


@compiled
def settled(sm: Any, lines: Any, w: int, n: int) -> bool:
    """Whether engines have come to the end of all groups of a warp but its newest n."""
    for e in range(2):
        for i in range(sm.head[e], sm.tail[e]):
            if lines[ENTRY * e + WARP, i] == w:
                if lines[ENTRY * e + SERIAL, i] < sm.commits[w] - n:
                    return False
                break
    return True
