"""What commands to engines cost: a row a command. How long the array takes is `isa.dataflow`'s matter.

`MODE` drains (see `sm.arrive`), costs its unit's latency and, if the mode changes, `mode_switch_cycles`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from knapper.isa import dataflow
from knapper.isa.core import Instr
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Space, Start

from .state import (
    BARRIER,
    COMMIT,
    DRAIN,
    LOAD_WEIGHTS,
    PLAIN,
    STREAM,
    SWAP_WEIGHTS,
    TICK,
    TRANSFER,
    WAIT,
)

Work = tuple[int, int]
"""The kind of an instruction, and its `work`."""


def _load(i: Any, machine: Machine) -> Work:
    beside = machine.weight_double_buffer and machine.dataflow != "os"
    return LOAD_WEIGHTS if beside else STREAM, TICK * dataflow.load(machine)


def _swap(i: Any, machine: Machine) -> Work:
    return SWAP_WEIGHTS if machine.weight_double_buffer else STREAM, 0


def _stream(i: Any, machine: Machine) -> Work:
    accumulators, first = i.space is Space.ACC, i.start is Start.SET
    cycles = dataflow.stream(
        machine, int(i.m), int(i.units), accumulators=accumulators, first=first
    )
    return STREAM, TICK * cycles


def streams(i: Any, machine: Machine, rows: float) -> int:
    """Ticks of an IM2COL.PUSH of so many rows, an average."""
    whole = int(rows)
    few, more = (
        dataflow.stream(machine, m, int(i.units), accumulators=True, first=i.start is Start.SET)
        for m in (whole, whole + 1)
    )
    return round(TICK * (few + (rows - whole) * (more - few)))


def _commit(i: Any, machine: Machine) -> Work:
    return COMMIT, 0 if dataflow.drains(machine) else TICK * machine.lsma_fill


def _transfer(i: Any, machine: Machine) -> Work:
    return TRANSFER, TICK * (machine.dram_latency + machine.units[i.resource()].latency)


ROWS: dict[str, Callable[[Any, Machine], Work]] = {
    "BAR": lambda i, machine: (BARRIER, 0),
    "MODE": lambda i, machine: (DRAIN, 0),
    "SMA.LDB": _load,
    "SMA.SWAP": _swap,
    "LSMA": _stream,
    "ISMA.LDB": _load,
    "ILSMA": _stream,
    "ISMA.LDB.N": _load,
    "ILSMA.N": _stream,
    "IM2COL.PUSH": lambda i, machine: (STREAM, 0),  # by its rows: `streams`
    "IM2COL.IPUSH": lambda i, machine: (STREAM, 0),
    "GATHK.PUSH": lambda i, machine: (STREAM, 0),
    "FILL.DUP": _transfer,
    "DMA.LD": _transfer,
    "SMA.COMMIT": _commit,
    "SMA.WAIT": lambda i, machine: (WAIT, int(i.n)),
}
"""Instructions that are more than work for a unit, by mnemonic."""
ASYNCHRONOUS = ("SMA.LDB", "SMA.SWAP", "LSMA", "ISMA.LDB", "ILSMA", "ISMA.LDB.N", "ILSMA.N")
"""Commands whose results nobody waits for by register: the scoreboard sees only what they read."""


def work(i: Instr, machine: Machine) -> Work:
    """The kind of an instruction, and what its kind says of it."""
    row = ROWS.get(i.mnemonic)
    return (PLAIN, 0) if row is None else row(i, machine)
