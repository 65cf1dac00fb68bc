"""How long systolic commands take of the array, by dataflow: what the emulator's timing and the compiler's predictions both ask.

R, C are the rows and columns of a unit, u the units side by side, m the rows of A.

sbws  (SMA) A[r, k] is broadcast along row k of the array, sums move down, a row of C leaves each cycle: an LSMA streams m cycles and
      sets its addresses up (`lsma_bubble`). Weights come row by row, R cycles: before the stream, or beside the last one where there is a
      second buffer. The pipeline (`lsma_fill`) empties while the next LSMA fills it.
      m = 128, R = 8: 128 + 8 + 5 = 141 cycles; 133 with the second buffer; 128 are work.

ws    A is passed from column to column, so C leaves diagonally: words of u · C columns of as many rows. Where C lies in registers, it must
      go through the banks of shared memory with the R words of A: m · max(1, (R + u · C) / banks) cycles. Where it lies in accumulators of
      the array's own, weights of the next fold wait until the last sum has left: R + m + (R - 1) + (C - 1) = 2R + C + m - 2, SCALE-Sim's
      count, of which `lsma_fill` is (R - 1) + (C - 1). With a second buffer (TPU) passes follow each other, and the pipeline empties once, behind
      the last: max(m, R) cycles, since the next weights take R to load, and a pass on the same sums finds the first of them R cycles after it
      went in. P × P: 9 passes of m ≥ P rows take P + 9 m + (2P - 1); P = 128, m = 25,088: 226,175.

os    Sums stand still, one an element: an LSMA streams R steps of k for each R rows of C. The chain of LSMAs that a `.SET` begins is a
      tile. Its last operands reach the far corner (R - 1) + (C - 1) cycles after the first ones (`lsma_fill`), and one cycle later
      the tile is done: k + R + C - 1. STONNE counts k + 2 · 16 + 3 on 16 × 16: 64³ 1,584, 128³ 10,432, 256³ 74,496.
"""

from __future__ import annotations

from collections.abc import Callable

from .machine import Machine


def load(machine: Machine) -> int:
    """Cycles that an `SMA.LDB` takes: a row of weights a cycle. With `os`, weights stream with A."""
    return 0 if machine.dataflow == "os" else machine.array_rows


def stream(machine: Machine, m: int, units: int, *, accumulators: bool, first: bool) -> int:
    """Cycles that an LSMA takes of the array; `first`: it begins the chain (`.SET`)."""
    return DATAFLOWS[machine.dataflow](machine, m, units, accumulators, first) + machine.lsma_bubble


def drains(machine: Machine) -> bool:
    """Whether an LSMA's own cycles contain the emptying of the pipeline; else a group's results take `lsma_fill` more."""
    alone = machine.accumulator_bytes > 0 and not machine.weight_double_buffer
    return machine.dataflow == "os" or (machine.dataflow == "ws" and alone)


def _sbws(machine: Machine, m: int, units: int, accumulators: bool, first: bool) -> int:
    return m


def _ws(machine: Machine, m: int, units: int, accumulators: bool, first: bool) -> int:
    if accumulators:
        return max(m, machine.array_rows) if machine.weight_double_buffer else m + machine.lsma_fill
    words = machine.array_rows + machine.array_columns * units
    return -(-m * max(words, machine.shared_banks) // machine.shared_banks)


def _os(machine: Machine, m: int, units: int, accumulators: bool, first: bool) -> int:
    begins = machine.lsma_fill + 1 if first else 0
    return -(-m // machine.array_rows) * (machine.array_rows + begins)


DATAFLOWS: dict[str, Callable[[Machine, int, int, bool, bool], int]] = {
    "sbws": _sbws,
    "ws": _ws,
    "os": _os,
}
"""Cycles of a stream."""
