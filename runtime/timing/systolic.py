"""Systolic commands: gathered by warp, committed as a group, worked off in the order in which groups arrive.

The array streams one LSMA after another. Loading weights is either part of that stream (without a second buffer the array
stands still) or goes on beside it: then it begins when the group has arrived and the buffer is empty, that is after the last swap,
and a swap waits for its end. A group's results are there when the last rows have left the array's pipeline.
"""

from __future__ import annotations

from typing import Any

from .jit import compiled
from .state import LOAD_WEIGHTS, QUEUE, STREAM, SWAP_WEIGHTS, TICK


@compiled
def gather(sm: Any, gathered: Any, w: int, pc: int, kind: int) -> None:
    """Remember a command until the warp commits; other instructions are none. (More than the array holds no engine executes.)"""
    if kind in (LOAD_WEIGHTS, SWAP_WEIGHTS, STREAM) and sm.gathers[w] < gathered.shape[1]:
        gathered[w, sm.gathers[w]] = pc
        sm.gathers[w] += 1


@compiled
def commit(ops: Any, sm: Any, gathered: Any, done: Any, w: int, arrival: int, fill: int) -> None:
    """The warp's commands become a group, which the controller has at tick `arrival`; `fill`: cycles of the array's pipeline."""
    start = max(arrival, sm.array)
    now = start
    for i in range(sm.gathers[w]):
        op = ops[gathered[w, i]]
        if op.kind == LOAD_WEIGHTS:
            sm.weights = max(arrival, sm.weights, sm.swapped) + op.work * TICK
        elif op.kind == SWAP_WEIGHTS:
            now = max(now, sm.weights)
            sm.swapped = now
        else:
            now += op.work * TICK
    sm.gathers[w] = 0
    sm.array = now
    for i in range(sm.queue - 1, 0, -1):
        sm.begun[i] = sm.begun[i - 1]
    sm.begun[0] = start
    for i in range(sm.groups - 1, 0, -1):
        done[w, i] = done[w, i - 1]
    done[w, 0] = now + fill * TICK
    sm.free[QUEUE] = sm.begun[sm.queue - 1]
