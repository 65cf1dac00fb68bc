"""One SM, from its first block to its last: which warp issues when, and what the others wait for.

In each cycle the sub-cores look, in order, for a warp that can issue: the one that issued last, else the oldest (greedy, then
oldest; a block's warps are older than those of blocks that started after it). A warp issues in order. Its instruction needs

    registers   every one that it reads or writes is ready: no result is in flight to it
    a port      the unit comes free within this cycle; it then works from the later of issue and free on
    a turn      no barrier, no branch, no WAIT holds the warp

Nothing that happens later changes when a result is ready, so a warp's wait for registers is known when it comes to an
instruction (`fetch`), and the simulation goes from one cycle in which something may issue to the next such.

A product of condensed vectors needs two ports: it takes its own until shared memory, from its start on, has delivered its last value. A warp's
accumulators are two slots of its scoreboard more: of what it stored there, for which products wait, and of its products, for which what loads
sums waits. Products do not wait for each other.

Memory: an access takes the port of its unit, by how many sectors miss the SM's share of L2 and of DRAM, and a vector memory's port, each a
queue that is busy until some time. Its latency begins when the slowest of them has taken it in. Stores do the same and are forgotten.

Commands to engines are in `systolic.py`. What engines do at a vector memory's port depends on who comes first, so there time goes on at
each command that one takes up, and what a WAIT waits for is known only then.

Functions take arrays and no tuples of them, and what happens at every instruction is compiled into `run`: passing arrays costs as much as
simulating an instruction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import compiled, inlined
from .shares import memory, vector_port
from .state import (
    ALU,
    ARRAY,
    AT_BARRIER,
    AT_MODE,
    BANKS,
    BARRIER,
    BLOCK,
    BRANCH,
    COMMIT,
    DMA,
    DRAIN,
    END,
    FETCHING,
    FREE,
    ISSUED,
    LEAVES,
    LOOP,
    MEMORY,
    NEVER,
    NO_WARP,
    ORDINARY,
    PASSES,
    PLAIN,
    QUEUE,
    SYSTOLIC,
    TICK,
    UNIT,
    WAIT,
    WORK,
)
from .steady import steady
from .systolic import advance, commit, engine, gather, next_command, settled


@compiled
def run(
    ops: Any, spans: Any, events: Any, path: Any, sequence: Any, sms: Any, boards: Any, gathered: Any, lines: Any, dones: Any, blames: Any, jump: bool
) -> int:  # fmt: skip
    """Run an SM's blocks; the tick at which all is over, or -1 if warps wait for ever.

    `events` are those of all classes, warp w of class c begins at `path[c, w]`; `sequence`: the classes of the SM's blocks, in the
    order in which they start. What follows are the arrays of `State`; entries 1 and 2 hold earlier states, with which `steady`
    tells that the first one repeats itself: as the oldest warp comes back to the start of a loop, as a block begins.
    """
    sm, board, line, done, blame = sms[0], boards[0], lines[0], dones[0], blames[0]
    for place in range(sm.places):
        begin(ops, spans, events, path, sequence, sm, board, line, done, place, 0)
    while sm.live > 0:
        t = NEVER
        for s in range(sm.subcores):
            t = min(t, sm.next[s])
        if sm.shared_port:
            t = min(t, (next_command(ops, sm, line) + TICK - 1) // TICK)
        if t >= NEVER // TICK:
            return -1
        sm.occupied += sm.live * (t - sm.now)
        sm.now = t
        if sm.shared_port:
            advance(ops, sm, line, done, t * TICK)
        moment = ORDINARY
        for s in range(sm.subcores):
            if sm.next[s] <= t:
                w = choose(sm, s, t)
                if w >= 0:
                    moment = max(
                        moment,
                        issue(
                            ops, spans, events, sm, board, gathered[0], line, done, blame, w, s, t
                        ),
                    )
        for i in range(sm.vacancies):
            begin(ops, spans, events, path, sequence, sm, board, line, done, sm.vacant[i], t + 1)
        sm.vacancies = 0
        if jump and moment != ORDINARY:
            steady(events, sequence, sms, boards, gathered, lines, dones, blames, moment)
    advance(ops, sm, line, done, NEVER)
    for s in range(sm.subcores):
        sm.slots[NO_WARP] += max(0, sm.now + 1 - sm.idle[s])
    end: int = max((sm.now + 1) * TICK, sm.l2, sm.dram, sm.vector)
    return end


@compiled
def begin(
    ops: Any, spans: Any, events: Any, path: Any, sequence: Any, sm: Any, board: Any, line: Any, done: Any, place: int, t: int
) -> None:  # fmt: skip
    """Start the next block, if there is one, in a place."""
    sm.block[place] = -1
    if sm.started == len(sequence):
        return
    block, warps = sm.started, sm.block_warps
    sm.started += 1
    sm.block[place], sm.arrived[place], sm.living[place] = block, 0, warps
    for i in range(warps):
        w = place * warps + i
        s = w % sm.subcores
        sm.pc[w], sm.event[w] = 0, path[sequence[block], i]
        sm.left[w] = events[sm.event[w]].count
        for r in range(board.shape[1]):
            board[w, r] = 0
        for g in range(sm.groups):
            done[w, g] = 0
        sm.drained[w], sm.gathers[w], sm.others[w], sm.commits[w], sm.awaits[w] = 0, 0, 0, 0, 0
        if sm.warps[s] == 0 and t > sm.idle[s]:
            sm.slots[NO_WARP] += t - sm.idle[s]
            sm.idle[s] = t
        sm.order[s, sm.warps[s]] = w
        sm.warps[s] += 1
        fetch(ops, spans, events, sm, board, line, done, w, t, NO_WARP)
    sm.live += warps


@inlined
def fetch(
    ops: Any, spans: Any, events: Any, sm: Any, board: Any, line: Any, done: Any, w: int, after: int, reason: int
) -> None:  # fmt: skip
    """The warp has come to an instruction: from when on its registers let it issue, not before cycle `after`."""
    pc, event, s = sm.pc[w], events[sm.event[w]], w % sm.subcores
    op, ready = ops[pc], after * TICK
    if event.pc == pc and event.next == pc + 1:
        sm.port[w] = FREE if op.skip == 0 else op.port + s * op.spread
        latest = board[w, op.guard] if op.guard >= 0 else 0
    else:
        sm.port[w] = op.port + (engine(sm, w) if op.kind == COMMIT else s * op.spread)
        latest = 0
        for i in range(op.first, op.last):
            if spans[i].write != LEAVES:
                for r in range(spans[i].slot, spans[i].slot + spans[i].words):
                    latest = max(latest, board[w, r])
        if op.kind == WAIT:
            if not settled(sm, line, w, op.work):
                sm.awaits[w], sm.after[w] = op.work + 1, after
                sm.ready[w], sm.reason[w] = NEVER, SYSTOLIC
                return
            if done[w, op.work] >> 1 > ready:
                ready, reason = done[w, op.work] >> 1, waits_for(done[w, op.work])
    if latest >> 1 > ready:
        ready, reason = latest >> 1, MEMORY if latest & 1 else ALU
    sm.ready[w], sm.reason[w] = (ready + TICK - 1) // TICK, reason
    sm.next[s] = min(sm.next[s], max(after, sm.idle[s]))


@inlined
def waits_for(done: int) -> int:
    """Which engine is the last of a time in `State.done`."""
    return FETCHING if done & 1 else SYSTOLIC


@inlined
def opens(sm: Any, w: int) -> int:
    """The first cycle in which the warp can issue, as far as is known now: others may take the port before."""
    at: int = max(sm.ready[w], sm.free[sm.port[w]] // TICK)
    return at


@inlined
def choose(sm: Any, s: int, t: int) -> int:
    """The warp of a sub-core that issues now, or -1: then `next` says before which cycle none can."""
    w: int = sm.greedy[s]
    if w >= 0 and opens(sm, w) <= t:
        return w
    soonest = NEVER
    for i in range(sm.warps[s]):
        w = sm.order[s, i]
        at = opens(sm, w)
        if at <= t:
            return w
        soonest = min(soonest, at)
    sm.next[s] = soonest
    return -1


@inlined
def issue(
    ops: Any, spans: Any, events: Any, sm: Any, board: Any, gathered: Any, line: Any, done: Any, blame: Any, w: int, s: int, t: int
) -> int:  # fmt: skip
    """Issue the warp's instruction. LOOP if the oldest warp went back, BLOCK if a block ended, else ORDINARY."""
    pc = sm.pc[w]
    op, event = ops[pc], events[sm.event[w]]
    skipped, leaves, to, longer = False, False, pc + 1, 0
    if event.pc == pc:
        to = np.int64(event.next)
        if WORK <= to < END:
            to, longer = pc + 1, to - WORK
        else:
            skipped, leaves = to == pc + 1, to != pc + 1
        sm.left[w] -= 1
        if sm.left[w] == 0 and to != END:
            sm.event[w] += 1
            sm.left[w] = events[sm.event[w]].count
    extra = 0 if skipped else op.extra
    account(sm, blame, w, s, t, extra)
    sm.greedy[s], sm.pc[w] = w, to
    after, reason = t + 1 + extra, ISSUED
    if skipped:
        occupy(sm, sm.port[w], t * TICK, op.skip)
    else:
        result = execute(ops, spans, sm, board, gathered, line, done, w, t, pc, longer)
        if to == END:
            return leave(sm, w, s)
        if op.kind == BARRIER or op.kind == DRAIN:
            arrive(ops, spans, events, sm, board, line, done, w, t, pc)
            return ORDINARY
        if leaves:
            after, reason = max(after, (result + TICK - 1) // TICK), BRANCH
    fetch(ops, spans, events, sm, board, line, done, w, after, reason)
    return LOOP if leaves and to <= pc and oldest(sm, w) else ORDINARY


@inlined
def full(port: int) -> int:
    """Why a warp waits for a port."""
    if port == QUEUE + DMA:
        return FETCHING
    return SYSTOLIC if port == QUEUE + ARRAY else UNIT


@inlined
def account(sm: Any, blame: Any, w: int, s: int, t: int, extra: int) -> None:
    """The issue slots since the sub-core's last one: this instruction's, and those that it kept waiting."""
    gap = t - sm.idle[s]
    if gap > 0:
        reason = sm.reason[w]
        if sm.ready[w] < t:
            reason = full(sm.port[w])
        sm.slots[reason] += gap
    sm.slots[ISSUED] += 1
    sm.slots[BANKS] += extra
    blame[sm.pc[w]] += gap + 1 + extra
    sm.idle[s] = sm.next[s] = t + 1 + extra


@inlined
def occupy(sm: Any, port: int, at: int, ticks: int) -> int:
    """Take a port for some ticks, not before a tick; when it begins."""
    start: int = max(at, sm.free[port])
    if ticks > 0:
        sm.free[port] = start + ticks
        sm.busy[port] += ticks
    return start


@inlined
def execute(
    ops: Any, spans: Any, sm: Any, board: Any, gathered: Any, line: Any, done: Any, w: int, t: int, pc: int, longer: int
) -> int:  # fmt: skip
    """Take the port and the queues, and say when registers will be ready; the tick of the result."""
    op = ops[pc]
    start = occupy(sm, sm.port[w], (t + op.extra) * TICK, op.occupy + longer % PASSES)
    read = op.reads + longer // PASSES * op.a_pass
    if read > 0:
        read += occupy(sm, op.other, start, read)
        sm.free[sm.port[w]] = max(sm.free[sm.port[w]], read)
    taken = start
    if op.kind == PLAIN:
        taken = max(memory(sm, op, start), vector_port(sm, start, op.vector))
    result: int = (taken if op.memory > 0 else start) + op.latency
    if op.other > 0:
        result = sm.free[sm.port[w]] + op.latency
    for i in range(op.first, op.last):
        if spans[i].write:
            for r in range(spans[i].slot, spans[i].slot + spans[i].words):
                board[w, r] = 2 * result + op.memory
            sm.drained[w] = max(sm.drained[w], result)
    if op.kind == COMMIT:
        commit(ops, sm, line, gathered, done, w, pc, start + op.latency)
    elif op.kind != PLAIN:
        gather(sm, gathered, w, pc, op.kind)
    return result


@compiled
def arrive(
    ops: Any, spans: Any, events: Any, sm: Any, board: Any, line: Any, done: Any, w: int, t: int, pc: int
) -> None:  # fmt: skip
    """The warp waits at a barrier; if it is the last one of its block, all go on."""
    op, place, warps = ops[pc], w // sm.block_warps, sm.block_warps
    sm.ready[w] = NEVER
    sm.arrived[place] += 1
    if sm.arrived[place] < sm.living[place]:
        return
    sm.arrived[place] = 0
    at, reason = t, AT_BARRIER
    if op.kind == DRAIN:
        reason = AT_MODE
        advance(ops, sm, line, done, NEVER)
        for v in range(place * warps, (place + 1) * warps):
            at = max(at, (max(sm.drained[v], done[v, 0] >> 1) + TICK - 1) // TICK)
    at = max(t + 1, at + op.latency // TICK)
    for v in range(place * warps, (place + 1) * warps):
        fetch(ops, spans, events, sm, board, line, done, v, at, reason)


@compiled
def leave(sm: Any, w: int, s: int) -> int:
    """The warp has ended. If it was its block's last one, the next block begins in the next cycle: BLOCK, else ORDINARY."""
    at = 0
    while sm.order[s, at] != w:
        at += 1
    sm.warps[s] -= 1
    for i in range(at, sm.warps[s]):
        sm.order[s, i] = sm.order[s, i + 1]
    sm.greedy[s] = -1
    sm.live -= 1
    place = w // sm.block_warps
    sm.living[place] -= 1
    if sm.living[place] > 0:
        return ORDINARY
    sm.vacant[sm.vacancies] = place
    sm.vacancies += 1
    return BLOCK


@compiled
def oldest(sm: Any, w: int) -> bool:
    """Whether no live warp is older: of the oldest block, the first."""
    mine = sm.block[w // sm.block_warps]
    for s in range(sm.subcores):
        if sm.warps[s] > 0:
            v = sm.order[s, 0]
            its = sm.block[v // sm.block_warps]
            if its < mine or (its == mine and v < w):
                return False
    return True
