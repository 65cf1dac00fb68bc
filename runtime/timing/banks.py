"""`runtime.collector` as machine code, for an engine that executes millions of SPWMMAs.

    address() -> int      of a C function: int32 bank_cycles(const uint32 bitmaps[32], int32 window)

What it returns is what `collector.bank_cycles` does (tests/test_collector.py). numba compiles it when it is first asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba as _numba
import numpy as np

from .jit import FOLDER, KEEP, allocating, compiled, inlined, kept_in

numba: Any = _numba

STEPS, ROWS, COLUMNS, SIDE = 16, 8, 16, 32
"""As in `collector`; spelled out, numba compiles them in."""


@cache
def address() -> int:
    """Where the function lies."""
    with kept_in(FOLDER):
        signature = numba.types.int32(numba.types.CPointer(numba.types.uint32), numba.types.int32)
        made: Any = numba.cfunc(signature, cache=KEEP)(_pointed)
    _kept.append(made)
    return int(made.address)


_kept: list[Any] = []
"""What Python must not collect."""


def _pointed(bitmaps: Any, window: int) -> int:
    return bank_cycles(numba.carray(bitmaps, 2 * STEPS, np.uint32), window)


@allocating
def bank_cycles(bitmaps: Any, window: int) -> int:
    """Cycles of the accumulation buffer for an SPWMMA. [32]"""
    return _all(bitmaps) if window == 0 else _grouped(bitmaps, window)


ONE, HIGH, SEVEN, DIAGONAL = (
    np.uint64(n) for n in (0x0101010101010101, 0x7F7F7F7F7F7F7F7F, 7, 0x8040201008040201)
)


@inlined
def _bytes(bits: Any) -> Any:
    """Eight bits, each in a byte of its own."""
    return ((bits & np.uint64(0xFF)) * ONE & DIAGONAL) + HIGH >> SEVEN & ONE


@allocating
def _all(bitmaps: Any) -> int:
    """All OHMMAs as one group. Eight banks are the bytes of a word: at most 16 steps · 4 rows · 2 columns come to one."""
    left, right = np.zeros(ROWS, np.uint64), np.zeros(ROWS, np.uint64)
    eight, byte = np.uint64(8), np.uint64(0xFF)
    ohmmas = 0
    for k in range(STEPS):
        a, b = np.uint64(bitmaps[k]), np.uint64(bitmaps[STEPS + k])
        if a == 0 or b == 0:
            continue
        a2, b2 = a >> eight, b >> eight
        a3, b3 = a2 >> eight, b2 >> eight
        a4, b4 = a3 >> eight, b3 >> eight
        rows = _bytes(a) + _bytes(a2) + _bytes(a3) + _bytes(a4)
        low, high = _bytes(b) + _bytes(b3), _bytes(b2) + _bytes(b4)
        ohmmas += (_sum(rows) + ROWS - 1) // ROWS * ((_sum(low + high) + COLUMNS - 1) // COLUMNS)
        for i in range(ROWS):
            left[i] += (rows & byte) * low
            right[i] += (rows & byte) * high
            rows >>= eight
    most: Any = 0
    for i in range(ROWS):
        for j in range(8):
            shift = np.uint64(8 * j)
            most = max(most, np.int64(left[i] >> shift & byte), np.int64(right[i] >> shift & byte))
    cycles: int = max(ohmmas, most)
    return cycles


@inlined
def _sum(bytes: Any) -> int:
    """Of a word's bytes."""
    return np.int64(bytes * ONE >> np.uint64(56))  # type: ignore[return-value]  # numba's int


@allocating
def _grouped(bitmaps: Any, window: int) -> int:
    """Groups of `window` OHMMAs."""
    loads = np.zeros((ROWS, COLUMNS), np.uint8)
    rows, columns = np.zeros(ROWS, np.uint8), np.zeros(COLUMNS, np.uint8)
    total, group = 0, 0
    for k in range(STEPS):
        a, i = bitmaps[k], 0
        while a >> i != 0 and i < SIDE:
            i = _condense(a, i, rows)
            b, j = bitmaps[STEPS + k], 0
            while b >> j != 0 and j < SIDE:
                j = _condense(b, j, columns)
                for r in range(ROWS):
                    for c in range(COLUMNS):
                        loads[r, c] += rows[r] * columns[c]
                group += 1
                if group == window:
                    total += max(group, _busiest(loads))
                    loads[:] = 0
                    group = 0
    return total + max(group, _busiest(loads))


@compiled
def _condense(bits: int, at: int, counts: Any) -> int:
    """Count the next ones of a bitmap, as many as there are counts, by their place mod that; where the ones behind them begin."""
    n, taken = len(counts), 0
    counts[:] = 0
    while at < SIDE and taken < n:
        bit = bits >> at & 1
        counts[at % n] += bit
        taken += bit
        at += 1
    return at


@compiled
def _busiest(loads: Any) -> int:
    """The most accesses of a bank."""
    most = 0
    for i in range(ROWS):
        for j in range(COLUMNS):
            most = max(most, loads[i, j])
    return most
