"""What the sparse extension costs: products of condensed vectors on the Tensor Cores, bitmaps, accumulation buffers.

The Tensor Cores' clock of outer products is an OHMMA, 8×16×1. A product of 16×16×16 is 32 of them and takes as long as the machine's HMMA
does (`units.tensor.interval`): dense outer products are as fast as dense inner ones, at whatever pitch the machine issues these.

    OHMMA     1 OHMMA; left out by its guard: pred_off_percent of one, beside the issue
    SPWMMA    max(OHMMAs issued + pred_off_percent of those left out, cycles of the buffer's banks) + bohmma_percent a step of k,
              from what the engine recorded in the warp's path, so that every one takes what its own bitmaps take
    OWMMA     32
    BOHMMA    bohmma_percent of one: 0 if it goes on beside the products
    ACC.LD    a register each interval of its unit, and ACC.ST likewise; it waits for the warp's products before it, as these for its ACC.STs
    BMENC     its unit twice: to compare, and to place what is stored

Values come from shared memory, through the port that LDSM, LDS and STS of all sub-cores take, at 128 bytes each of its intervals:

    SPWMMA    2 bytes for each value of A_k and B_k of steps k in which both have some, in whole passes: 0 to 16, recorded beside the rest
    OHMMA     an eighth of a pass, its share of a step's 64 values; nothing if its guard leaves it out

The port is asked as the product begins, and products and reading overlap: the tensor port is free again when both are done. Assumed: a
value is read once and held for all OHMMAs of its step (at most 8), and for no other step or SPWMMA; a pass gathers 128 bytes
whichever banks they lie in; nothing is read ahead of the product before.

Bank cycles are recorded for the collector's window of the machine that ran, and only SPWMMAs have them: an OHMMA that a warp issues itself is
assumed to find a collector that hides its conflicts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import Instr
from knapper.isa.instructions import ACC_LD, ACC_ST
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Memory
from knapper.isa.sparse import BMENC, DENSE, OHMMA, OWMMA, PASS, SPWMMA, STEPS, TILE

from ..collector import COLUMNS, ROWS
from .state import END, LEAVES, PASSES, READS, STORED, SUMMED, TICK, WORK

SHARED = "lsu_shared"
"""The unit whose port values come through."""
PRODUCT = 32
"""OHMMAs of a product of 16×16×16."""
MOST = PASSES - 1
"""Ticks that an event can say."""
ALL = -(-2 * STEPS * TILE // PASS)
"""Passes over shared memory of an SPWMMA without zeros."""


class Turn(NamedTuple):
    """Ticks that an instruction takes its port, until its result is there, and that it takes the port if its guard leaves it out."""

    occupy: int
    latency: int
    skip: int = 0


def pitch(machine: Machine) -> int:
    """Ticks of an OHMMA; a whole number, as a cycle has 256. Without Tensor Cores for inner products: a cycle."""
    interval = machine.units["tensor"].interval if "tensor" in machine.units else PRODUCT
    return TICK * interval * machine.units["outer"].interval // PRODUCT


def _percent(ticks: int, percent: int) -> int:
    return (ticks * percent + 50) // 100


def _latency(i: Any, machine: Machine) -> int:
    return TICK * machine.units[i.resource()].latency


def _transfer(i: Any, machine: Machine) -> Turn:
    interval = TICK * machine.units[i.resource()].interval
    return Turn(int(i.count) * interval, _latency(i, machine) + (int(i.count) - 1) * interval)


def _encode(i: Any, machine: Machine) -> Turn:
    return Turn(2 * TICK * machine.units[i.resource()].interval, 2 * _latency(i, machine))


ROWS_OF: dict[str, Callable[[Any, Machine], Turn]] = {
    SPWMMA.mnemonic: lambda i, m: Turn(0, _latency(i, m)),
    OHMMA.mnemonic: lambda i, m: Turn(
        pitch(m), _latency(i, m), _percent(pitch(m), m.pred_off_percent)
    ),
    OWMMA.mnemonic: lambda i, m: Turn(PRODUCT * pitch(m), _latency(i, m) + PRODUCT * pitch(m)),
    "BOHMMA.32321": lambda i, m: Turn(_percent(pitch(m), m.bohmma_percent), _latency(i, m)),
    "ACC.LD": _transfer,
    "ACC.ST": _transfer,
    "BMENC": _encode,
}
"""Instructions that do not simply take what the table of units says, by mnemonic."""


def turn(i: Instr, machine: Machine) -> Turn | None:
    """What an instruction takes, if the table of units does not say it."""
    row = ROWS_OF.get(i.mnemonic) if "sparse" in machine.extensions else None
    return row(i, machine) if row else None


def reads(i: Instr, machine: Machine) -> tuple[int, int]:
    """Ticks of shared memory's port that an instruction takes for its values, and those for each pass that an event says."""
    if not isinstance(i, (SPWMMA, OHMMA)):
        return 0, 0
    a_pass = TICK * machine.units[SHARED].interval
    return (0, a_pass) if isinstance(i, SPWMMA) else (a_pass * ALL // DENSE, 0)


def accumulators(i: Instr) -> tuple[tuple[int, int], ...]:
    """The scoreboard's slots of accumulators that an instruction names, and what it does to them (`state.SPAN`).

    Products do not wait for each other, nor does what the port brings in order: they follow each other through one pipeline.
    """
    if isinstance(i, (SPWMMA, OHMMA)):
        return (STORED, READS), (SUMMED, LEAVES)
    if isinstance(i, ACC_LD):
        return ((SUMMED, READS),)
    return ((STORED, LEAVES),) if isinstance(i, ACC_ST) else ()


def dense(i: Instr, machine: Machine) -> tuple[int, int]:
    """Multiply-accumulates of an instruction at most, and the ticks that these take; no ticks for what the table of units says."""
    if isinstance(i, (SPWMMA, OHMMA)):
        ohmmas = DENSE if isinstance(i, SPWMMA) else 1
        return ROWS * COLUMNS * ohmmas, ohmmas * pitch(machine)
    return 0, 0


def encodes(i: Instr) -> bool:
    """Whether it stores to global memory though it has a result."""
    return isinstance(i, BMENC) and i.memory is Memory.G


def priced(events: NDArray[Any], machine: Machine) -> NDArray[Any]:
    """Events whose WORK is in ticks instead of OHMMAs and bank cycles, as `state` has it."""
    to = events["next"].astype(np.int64)
    done = (to >= WORK) & (to != END)
    if not done.any():
        return events
    cycles, ohmmas = to[done] >> 8 & 0xFFFF, to[done] & 0xFF
    passes = np.minimum(to[done] - WORK >> 24, ALL)
    issued = 100 * ohmmas + machine.pred_off_percent * np.maximum(DENSE - ohmmas, 0)
    percent = np.maximum(issued, 100 * cycles) + STEPS * machine.bohmma_percent
    out = events.copy()
    ticks = np.minimum((pitch(machine) * percent + 50) // 100, MOST)
    out["next"][done] = WORK + passes * PASSES + ticks
    return out
