"""What systolic commands cost: a row a command, and how it follows from the dataflow.

R, C are the rows and columns of a unit, u the units side by side, m the rows of A.

sbws  (SMA) A[r, k] is broadcast along row k of the array, sums move down, a row of C leaves each cycle: an LSMA streams m cycles and
      sets its addresses up (`lsma_bubble`). Weights come row by row, R cycles: before the stream, or beside the last one where there is a
      second buffer. The pipeline (`lsma_fill`) empties while the next LSMA fills it.
      m = 128, R = 8: 128 + 8 + 5 = 141 cycles; 133 with the second buffer; 128 are work.

ws    A is passed from column to column, so C leaves diagonally: words of u · C columns of as many rows. Where C lies in registers, it must
      go through the banks of shared memory with the R words of A: m · max(1, (R + u · C) / banks) cycles. Where it lies in accumulators of
      the array's own, weights of the next fold wait until the last sum has left: R + m + (R - 1) + (C - 1) = 2R + C + m - 2, SCALE-Sim's
      count, of which `lsma_fill` is (R - 1) + (C - 1).

os    Sums stand still, one an element: an LSMA streams R steps of k for each R rows of C. The chain of LSMAs that a `.SET` begins is a
      tile. Its last operands reach the far corner (R - 1) + (C - 1) cycles after the first ones (`lsma_fill`), and one cycle later
      the tile is done: k + R + C - 1. STONNE counts k + 2 · 16 + 3 on 16 × 16: 64³ 1,584, 128³ 10,432, 256³ 74,496.

`MODE` drains (see `sm.arrive`), costs its unit's latency and, if the mode changes, `mode_switch_cycles`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from knapper.isa.core import Instr
from knapper.isa.machine import Machine

from .state import BARRIER, COMMIT, DRAIN, LOAD_WEIGHTS, PLAIN, STREAM, SWAP_WEIGHTS, WAIT

Work = tuple[int, int]
"""The kind of an instruction, and its `work`."""


def _load(i: Any, machine: Machine) -> Work:
    if machine.dataflow == "os":  # weights stream with A
        return STREAM, 0
    return LOAD_WEIGHTS if machine.weight_double_buffer else STREAM, machine.array_rows


def _swap(i: Any, machine: Machine) -> Work:
    return SWAP_WEIGHTS if machine.weight_double_buffer else STREAM, 0


def _stream(i: Any, machine: Machine) -> Work:
    return STREAM, DATAFLOWS[machine.dataflow](i, machine) + machine.lsma_bubble


def _sbws(i: Any, machine: Machine) -> int:
    return int(i.m)


def _ws(i: Any, machine: Machine) -> int:
    if i.space.name == "ACC":
        return int(i.m) + machine.lsma_fill
    words = machine.array_rows + machine.array_columns * int(i.units)
    return -(-int(i.m) * max(words, machine.shared_banks) // machine.shared_banks)


def _os(i: Any, machine: Machine) -> int:
    tiles = -(-int(i.m) // machine.array_rows)
    begins = machine.lsma_fill + 1 if i.start.name == "SET" else 0
    return tiles * (machine.array_rows + begins)


def _commit(i: Any, machine: Machine) -> Work:
    drained = machine.dataflow == "os" or (machine.dataflow == "ws" and machine.accumulator_bytes)
    return COMMIT, 0 if drained else machine.lsma_fill


DATAFLOWS: dict[str, Callable[[Any, Machine], int]] = {"sbws": _sbws, "ws": _ws, "os": _os}
"""Cycles that an LSMA takes of the array."""
ROWS: dict[str, Callable[[Any, Machine], Work]] = {
    "BAR": lambda i, machine: (BARRIER, 0),
    "MODE": lambda i, machine: (DRAIN, 0),
    "SMA.LDB": _load,
    "SMA.SWAP": _swap,
    "LSMA": _stream,
    "SMA.COMMIT": _commit,
    "SMA.WAIT": lambda i, machine: (WAIT, int(i.n)),
}
"""Instructions that are more than work for a unit, by mnemonic."""
ASYNCHRONOUS = ("SMA.LDB", "SMA.SWAP", "LSMA")
"""Commands whose results nobody waits for by register: the scoreboard sees only what they read."""


def work(i: Instr, machine: Machine) -> Work:
    """The kind of an instruction, and what its kind says of it."""
    row = ROWS.get(i.mnemonic)
    return (PLAIN, 0) if row is None else row(i, machine)
