"""Where a launch's global accesses hit: expected values over the launch, from what it counted and what L2 still holds.

L1. Of R sectors that loads ask for, U are the first of their block (summed over blocks). The repetitions, R − U, hit as far as the
resident blocks' footprints fit into what shared memory leaves of L1:

    misses  T = U + (R − U) · max(0, 1 − capacity / (32 · U per block · resident blocks))

L2. F distinct sectors are read in all. The first read of each goes to DRAM unless an earlier launch left it (`residency.py`); the
others, T − F, hit as far as F fits:

    from DRAM  D = F · (1 − held) + (T − F) · max(0, 1 − l2_bytes / (32 · F))

Stores pass L1. What they write stays in L2 until something evicts it, and that launch then takes it to DRAM.
"""

from __future__ import annotations

from dataclasses import dataclass

from knapper.isa.machine import Machine

from .state import TICK

SECTOR = 32


@dataclass(frozen=True)
class Traffic:
    """What a launch asked for, in sectors of 32 bytes."""

    loads: int
    """Sectors of all loads, after coalescing in the warp."""
    stores: int
    l1_unique: int
    """Distinct sectors a block reads, summed over blocks."""
    distinct: int
    """Distinct sectors that the launch reads."""


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
    missed = repeated(
        traffic.loads, traffic.l1_unique, capacity, SECTOR * traffic.l1_unique * resident / blocks
    )
    first = traffic.distinct
    again = repeated(max(missed, first), first, machine.l2_bytes, SECTOR * first) - first
    from_dram = first * (1 - held) + again
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


def repeated(asked: float, unique: float, capacity: float, footprint: float) -> float:
    """Misses of `asked` accesses to `unique` places: the first of each, and what does not fit of the others."""
    return unique + (asked - unique) * max(0.0, 1 - capacity / footprint if footprint else 0.0)


def share(part: float, whole: float) -> float:
    """part / whole, 0 of nothing."""
    return part / whole if whole else 0.0
