"""What the simulation of one SM works on: flat arrays, so that compiled code can read them and a state can be copied.

Times are whole numbers of ticks, 1/256 of a core cycle, so that shares of a bandwidth are exact to half a percent; instructions
issue at whole cycles. A time that is over is as good as any other that is over: the simulation only ever asks for the later of
two times, or whether one has come.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

TICK = 256
"""Ticks a cycle."""
NEVER = 1 << 60
"""A cycle that does not come: the warp waits for another one."""
END = 0xFFFFFFFF
"""`next` of a warp's last event."""
WORK = 1 << 31
"""From this number on, END excepted, `next` says what an SPWMMA takes, and the warp goes on behind it: WORK + passes · PASSES + ticks more that
it occupies its port. `passes`: over shared memory, for its values."""
PASSES = 1 << 26
"""One of them."""

OP = np.dtype(
    [
        (name, "i8")
        for name in (
            "kind", "port", "spread", "extra", "occupy", "latency", "l2", "dram", "vector", "guard", "memory", "work", "skip",
            "other", "reads", "a_pass", "first", "last",
        )
    ]
)  # fmt: skip
"""What an instruction costs. `port`: the first port of its unit, of which sub-core s uses number port + s · spread; `extra`: cycles that
reading registers takes beyond the issue; `occupy`: ticks that the port is taken; `latency`: ticks from the start to the result; `l2`,
`dram`: ticks that it takes of the SM's share of their bandwidths; `vector`: ticks of the vector memory's port; `guard`: the slot of its
predicate, or -1; `memory`: 1 if its result comes from memory; `work`: ticks that a systolic command takes of the array, from the last byte of a
transfer to its arrival, that the pipeline takes to empty after a group; the n of a WAIT; `skip`: ticks that the
port is taken when its guard leaves it out; `other`: the port of shared memory, where a product of condensed vectors reads; `reads`: ticks of
it, and `a_pass`: ticks of it for each pass that an event says; `first`, `last`: its entries in `spans`, last excluded."""
SPAN = np.dtype([("slot", "i4"), ("words", "i4"), ("write", "i4")])
"""Scoreboard slots that an instruction names: the first, how many, and what it does to them: READS, WRITES or LEAVES."""
READS, WRITES, LEAVES = range(3)
"""Wait for a slot; wait for it and make it late by the result; make it late without a wait, as what comes after it in its unit's own order."""
STORED, SUMMED = range(2)
"""Scoreboard slots of accumulators, behind those of registers: what a warp's ACC.STs brought there, and what its products of condensed vectors."""

PLAIN, BARRIER, DRAIN, LOAD_WEIGHTS, SWAP_WEIGHTS, STREAM, TRANSFER, COMMIT, WAIT = range(9)
"""Kinds of instruction: what computes or moves data; BAR; MODE; the three kinds of systolic command; a command to the DMA engine; COMMIT; WAIT."""
ARRAY, DMA = range(2)
"""Engines that work groups off, each with a queue."""

REASONS = (
    "issued", "scoreboard_alu", "scoreboard_memory", "unit_busy", "register_banks", "branch", "barrier", "mode_drain",
    "systolic_wait", "dma_wait", "no_warp",
)  # fmt: skip
"""What an issue slot (a sub-core in a cycle) did, or what the warp that issued next was waiting for."""
(ISSUED, ALU, MEMORY, UNIT, BANKS, BRANCH, AT_BARRIER, AT_MODE, SYSTOLIC, FETCHING, NO_WARP) = (
    range(len(REASONS))
)

FREE = 0
"""The port of instructions that need none: it is never busy."""
QUEUE = 1
"""The port that a COMMIT passes: free when its engine's queue has room; the port QUEUE + engine."""

ORDINARY, LOOP, BLOCK = range(3)
"""Moments: nothing special; the oldest warp went back to the start of a loop; a block began."""

BY_WARP = (
    "pc", "event", "left", "ready", "reason", "port", "drained", "gathers", "others", "commits", "awaits", "after",
)  # fmt: skip
"""Of each warp: the instruction it comes to, the event it runs to, and how often that is still to happen; the cycle from which registers
and barriers let it issue, and which of them decided that; the port that it needs; the tick at which all its results are ready;
commands since its last COMMIT, and those that are no transfers; its COMMITs; if it waits for groups that no engine has come to, 1 + the n
of the WAIT, and a cycle before which it cannot go on anyway. Warps are numbered by place: place of the block · warps a block + warp."""
BY_SUBCORE = ("warps", "greedy", "next", "idle")
"""Of each sub-core: how many warps live there; the one that issued last, or -1; a cycle before which nothing can issue; the cycle up to
which issue slots are accounted for."""
BY_PLACE = ("block", "arrived", "living")
"""Of each place for a block: which block runs there, by its number in the SM's sequence, or -1; warps at the barrier; warps not ended."""
BY_PORT = ("free", "busy")
"""Of each port: the tick from which it is free; the ticks that it was busy."""
BY_ENGINE = ("head", "tail", "open")
"""Of each engine: where its queue begins in `State.lines`, and ends; whether it has begun the first group there."""
UNTIL = ("l2", "dram", "vector", "array", "weights", "swapped", "dma", "landed")
"""Ticks until which the SM's shares of L2 and DRAM, the vector memory's port, the array, and the path of its weights are busy; when weights last
changed places; until when the DMA engine is busy, and until what it moved last has arrived."""
COUNTS = ("now", "live", "started", "occupied", "stalled")
"""The cycle; live warps; blocks started; warps times cycles, summed; ticks that engines waited for the vector memory's port."""
SIZES = (
    "shared_port",
    "subcores",
    "places",
    "block_warps",
    "warp_places",
    "ports",
    "queue",
    "groups",
    "vacancies",
)
"""Whether engines and warps meet at a vector memory, so that the order in which they come to it matters. Then how much of each array is in
use: sub-cores, places, warps a block, warps in all, ports, entries of `begun`, groups that a warp's `done` keeps; and `vacant` ones."""
REMEMBERED = ("moments", "due")
"""Of a state kept for comparison: how many moments were compared since, and after how many the next one is kept."""


@lru_cache
def sm_type(warps: int, subcores: int, ports: int, queue: int) -> np.dtype[Any]:
    """The state of an SM as one record, which compiled code takes as one pointer.

    Compiled code is made for its sizes, so they are rounded up: all known machines have one. (They must: numba names what it compiles for a
    record by a number that the next process gives to another one, and code for two sizes that comes from two processes' caches mixes.)
    """
    w, s, p, q = (
        max(1 << (n - 1).bit_length(), least)
        for n, least in ((warps, 64), (subcores, 32), (ports, 512), (queue, 16))
    )
    return np.dtype(
        [(name, "i8", (w,)) for name in BY_WARP]
        + [(name, "i8", (s,)) for name in BY_SUBCORE]
        + [(name, "i8", (w,)) for name in BY_PLACE]
        + [(name, "i8", (p,)) for name in BY_PORT]
        + [(name, "i8", (2,)) for name in BY_ENGINE]
        + [(name, "i8") for name in UNTIL + COUNTS + SIZES + REMEMBERED]
        + [("order", "i8", (s, w)), ("vacant", "i8", (w,)), ("begun", "i8", (2, q)), ("slots", "i8", (len(REASONS),))]
    )  # fmt: skip


PC, WARP, ARRIVAL, SERIAL = range(4)
ENTRY = 4
"""An entry of an engine's queue: a command, or the COMMIT that ends its group; its warp; the tick at which the group arrives; the group's number
among its warp's."""


class State(NamedTuple):
    """An SM, and room for two earlier states of it (`steady.py`): every array has three entries."""

    sm: Any
    """`sm_type` records. `order[s]`: the live warps of sub-core s, the oldest first; `vacant`: places whose block ended in this cycle; `begun`:
    the ticks at which each engine began its last groups, the newest first; `slots`: issue slots by reason."""
    board: Any
    """i8[3, warps, slots]: the tick at which each register is ready, times 2, and 1 if it comes from memory."""
    gathered: Any
    """i8[3, warps, commands]: instructions since each warp's last COMMIT."""
    lines: Any
    """i8[3, 2 · ENTRY, entries]: what the engines' queues hold, in order; the rows of an engine are those of ENTRY, from ENTRY · engine on."""
    done: Any
    """i8[3, warps, groups]: the ticks at which each warp's last groups and all before them are done, as far as engines have come to them,
    the newest first; times 2, and 1 if the DMA engine is last."""
    blame: Any
    """i8[3, instructions]: the issue slots that each took, or that were lost before it issued."""


def blank(
    *,
    places: int,
    warps: int,
    slots: int,
    subcores: int,
    ports: int,
    code: int,
    queue: int,
    groups: int,
    commands: int,
    shared_port: int,
) -> State:
    """An SM on which nothing has started. `warps`: of one block; `slots`: of one warp's scoreboard; `commands`: that a warp can have pending."""
    n = places * warps
    sm = np.zeros(3, sm_type(n, subcores, ports, queue))
    sm["greedy"], sm["next"], sm["block"] = -1, NEVER, -1
    for name, size in zip(
        SIZES, (shared_port, subcores, places, warps, n, ports, queue, groups, 0), strict=True
    ):
        sm[name] = size
    return State(
        sm,
        *(
            np.zeros((3, *shape), np.int64)
            for shape in (
                (n, slots),
                (n, commands),
                (2 * ENTRY, (n if shared_port else 1) * commands),
                (n, groups),
                (code,),
            )
        ),
    )
