"""Where a launch's global accesses hit: expected values over the launch, from what it counted and what L2 still holds.

L1. Of R sectors that loads ask for, U are the first of their block (summed over blocks). The repetitions, R − U, hit as far as the
resident blocks' footprints fit into what shared memory leaves of L1:

    misses  T = U + (R − U) · max(0, 1 − capacity / (32 · U per block · resident blocks))

L2. Of U, F are the first of the launch; of N(g) more the last reader was the block g before, in launch order (`Counts.gaps`). The first
of the launch go to DRAM unless an earlier launch left them (`residency.py`). The others hit if no more has passed through L2 since
their last reader than it holds. Of B blocks, a wave of w is resident on the chip at once: they start together and advance together.

    passed while n blocks ran  f(n) = min(F, (F · n + Σ N(g) · min(g, n)) / B) + n / B of what is written
    last read in the same wave hit: the blocks ask for it within a short while, and one fetch serves all
    in an earlier one          hit if 32 · f(max(g, w)) ≤ l2_bytes. Of pairs g apart so many lie in two waves, wherever in the launch
                               they are: x(g) = 1 − Σ max(0, blocks of a wave − g) / (B − g)
    by the same block, T − U   hit if 32 · f(w) ≤ l2_bytes; else one fetch serves as many blocks as one of the first reads does:
                               W / U of them miss, W = F + Σ N(g) · x(g), the distinct sectors of a wave, summed over waves

    from DRAM  D = F · (1 − held) + Σ N(g) · x(g) · [32 · f(max(g, w)) > l2_bytes] + (T − U) · W / U · [32 · f(w) > l2_bytes]

f(n) is the mean over windows of n blocks: a block adds to a window what it reads and no block of the window has read before. Blocks that
drift apart, by more than L2 holds of what the wave reads meanwhile, would fetch again: that is not modelled.

Stores pass L1. What they write stays in L2 until something evicts it, and that launch then takes it to DRAM.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import fsum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knapper.isa.machine import Machine

from .state import TICK

SECTOR = 32


@dataclass(frozen=True)
class Traffic:
    """What a launch asked for, in sectors of 32 bytes."""

    loads: int
    """Sectors of all loads, after coalescing in the warp."""
    stores: int
    written: int
    """Distinct sectors stored."""
    gaps: NDArray[np.uint64]
    """As in `Counts`."""


@dataclass(frozen=True)
class Footprint:
    """Shares of accesses that miss, and what a sector costs an SM."""

    l1_misses: float
    """Of sectors that loads ask for."""
    l2_misses: float
    """Of those that miss L1."""
    written_back: float
    """Sectors that go to DRAM per sector stored."""
    latency: float
    """Cycles of a load, on average."""
    l2_ticks: float
    """Ticks that a sector takes of the SM's share of L2."""
    dram_ticks: float


def footprint(
    machine: Machine, traffic: Traffic, *, blocks: int, resident: int, active: int, shared_bytes: int, held: float, evicted: int
) -> Footprint:  # fmt: skip
    """Of a launch of `blocks` blocks, `resident` at a time on each of `active` SMs.

    `shared_bytes`: a block's shared memory; `held`: the share of what it reads that L2 holds already; `evicted`: bytes that it makes L2
    write back.
    """
    capacity = max(0, machine.l1_bytes - resident * shared_bytes)
    unique = int(traffic.gaps.sum())
    again = max(0, traffic.loads - unique) * spilled(capacity, unique * resident / blocks)
    reuse = Reuse.of(traffic, blocks, min(blocks, resident * active))
    missed = unique + again
    from_dram = reuse.first * (1 - held) + reuse.misses(machine.l2_bytes, again)
    l1, l2 = share(missed, traffic.loads), share(from_dram, missed)
    latency = (
        machine.l1_latency
        + l1 * (machine.l2_latency - machine.l1_latency)
        + l1 * l2 * (machine.dram_latency - machine.l2_latency)
    )
    a_cycle = machine.clock_hz * active
    l2_bytes = min(machine.l2_bytes_per_second / a_cycle, machine.sm_bytes_per_cycle)
    return Footprint(
        l1, l2, share(evicted / SECTOR, traffic.stores), latency,
        TICK * SECTOR / l2_bytes, TICK * SECTOR * a_cycle / machine.dram_bytes_per_second,
    )  # fmt: skip


@dataclass(frozen=True)
class Reuse:
    """Which reads of a launch L2 has seen before, and how much passed through it since. Sums are exact, so all computers agree."""

    first: int
    """Sectors that no block has read yet."""
    pairs: NDArray[np.int64]
    """Sectors that a block reads and that the block so many before it read last."""
    written: int
    blocks: int
    wave: int
    """Blocks resident on the chip at once."""

    @staticmethod
    def of(traffic: Traffic, blocks: int, wave: int) -> Reuse:
        """Of a launch."""
        pairs = traffic.gaps.astype(np.int64)
        first = int(pairs[:1].sum())
        pairs[:1] = 0
        return Reuse(first, pairs, traffic.written, blocks, wave)

    @cached_property
    def apart(self) -> NDArray[np.int64]:
        """How many blocks apart those pairs are."""
        return np.arange(len(self.pairs))

    def misses(self, capacity: int, again: float) -> float:
        """Sectors fetched more than once: those that an earlier wave read, and of those that a block asks for `again`."""
        if not capacity:
            return int(self.pairs.sum()) + again
        crossing = self.pairs * self.across()
        since = self.passed(np.maximum(self.apart, self.wave))
        missed = fsum(crossing[SECTOR * since > capacity].tolist())
        if again and SECTOR * self.passed(self.wave) > capacity:
            of_waves = self.first + fsum(crossing.tolist())
            missed += again * of_waves / (self.first + int(self.pairs.sum()))
        return missed

    def passed(self, window: ArrayLike) -> NDArray[np.float64]:
        """Sectors that a window of some blocks reads, as a mean over windows, and that it writes."""
        n = np.minimum(np.asarray(window), self.blocks)
        pairs, near = (np.append(0, np.cumsum(x)) for x in (self.pairs, self.pairs * self.apart))
        at = np.minimum(n + 1, len(self.pairs))  # those at most n apart
        fresh = self.first * n + near[at] + n * (pairs[-1] - pairs[at])
        read = np.minimum(self.first, fresh / self.blocks)
        return np.asarray(read + self.written * n / self.blocks)

    def across(self) -> NDArray[np.float64]:
        """The share of pairs, by how far apart they are, that lie in two waves, if they are anywhere in the launch alike."""
        waves, rest = divmod(self.blocks, self.wave)
        whole, last = (np.maximum(0, size - self.apart) for size in (self.wave, rest))
        return np.asarray(1 - (waves * whole + last) / (self.blocks - self.apart))


def spilled(capacity: int, sectors: float) -> float:
    """The share of so many sectors that does not fit."""
    return max(0.0, 1 - capacity / (SECTOR * sectors)) if sectors else 0.0


def share(part: float, whole: float) -> float:
    """part / whole, 0 of nothing."""
    return part / whole if whole else 0.0
