"""The accumulation buffer's banks: how many cycles the sums of one SPWMMA take there.

The buffer of a 32×32 tile has 128 banks of 8 sums; sum (i, j) lies in bank (i mod 8, j mod 16), and a bank serves one sum a cycle. A dense
OHMMA adds 8 neighbouring rows times 16 neighbouring columns: one sum in each bank. A sparse one adds condensed rows and columns, and what they
were may collide:

    A's column: rows 0, 8, 9, 17, …       rows 0 and 8 are both in bank row 0: those sums take two cycles,
                ▲  ▲                      and the bank rows that nobody wants stand idle

A collector in front of the buffer therefore combines the accesses of `window` OHMMAs, in the order in which the sequencer issues them: k ascending,
then the eight rows, then the sixteen columns. Groups of `window` OHMMAs follow each other; a group may span steps of k, and takes the larger
of how many OHMMAs it has and how many accesses its busiest bank has. Window 0 takes all of the SPWMMA as one group: the bound that an
ideal collector reaches. So defined, random tiles reproduce the ablation that the facts tabulate (tests/test_collector.py). What a real collector
would do is not known: that groups do not overlap is assumed.

    bank_cycles(bitmaps, window)    one SPWMMA, plain Python over numpy: what the reference engine calls

`timing.banks` is the same as machine code, for the fast engine.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

STEPS = 16
"""Steps of k of an SPWMMA: bitmap k is A's column, bitmap 16 + k is B's row."""
ROWS, COLUMNS = 8, 16
"""Condensed values of A and of B that an OHMMA multiplies; also how the buffer is banked."""
SIDE = 32
"""Rows and columns of a tile."""
DENSE = SIDE // ROWS * (SIDE // COLUMNS)
"""OHMMAs of a step of k without zeros."""
Ints = NDArray[np.int64]


def ohmma_counts(bitmaps: NDArray[np.uint32]) -> Ints:
    """OHMMAs that the sequencer issues at each step of k. [32] → [16]"""
    ones = np.bitwise_count(bitmaps).astype(np.int64)
    counts: Ints = -(-ones[:STEPS] // ROWS) * -(-ones[STEPS:] // COLUMNS)
    return counts


def bank_cycles(bitmaps: NDArray[np.uint32], window: int) -> int:
    """Cycles of the accumulation buffer for an SPWMMA's bitmaps [32] with a collector window; never less than its OHMMAs."""
    if window == 0:
        return max(int(ohmma_counts(bitmaps).sum()), int(_loads(bitmaps).max()))
    loads = [np.outer(rows, columns) for rows, columns in _ohmmas(bitmaps)]
    groups = (loads[i : i + window] for i in range(0, len(loads), window))
    return sum(max(len(g), int(sum(g, np.zeros((ROWS, COLUMNS), int)).max())) for g in groups)


def _bits(bitmaps: NDArray[np.uint32]) -> Ints:
    """[n] → [n, 32]"""
    bits: Ints = (bitmaps[:, None] >> np.arange(SIDE, dtype=np.uint32) & 1).astype(np.int64)
    return bits


def _loads(bitmaps: NDArray[np.uint32]) -> Ints:
    """Accesses to each bank, all steps of k. [8, 16]"""
    bits = _bits(bitmaps)
    rows = bits[:STEPS].reshape(STEPS, -1, ROWS).sum(axis=1)
    loads: Ints = rows.T @ bits[STEPS:].reshape(STEPS, -1, COLUMNS).sum(axis=1)
    return loads


def _ohmmas(bitmaps: NDArray[np.uint32]) -> Iterator[tuple[Ints, Ints]]:
    """What each OHMMA asks of the bank rows [8] and bank columns [16], in order."""
    bits = _bits(bitmaps)
    for k in range(STEPS):
        rows, columns = np.flatnonzero(bits[k]) % ROWS, np.flatnonzero(bits[STEPS + k]) % COLUMNS
        for i in range(0, len(rows), ROWS):
            for j in range(0, len(columns), COLUMNS):
                yield (
                    np.bincount(rows[i : i + ROWS], minlength=ROWS),
                    np.bincount(columns[j : j + COLUMNS], minlength=COLUMNS),
                )
