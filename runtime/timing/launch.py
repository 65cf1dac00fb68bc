"""The time of launches: blocks dealt to SMs, one SM simulated for each distinct sequence of block classes.

Block i runs on SM i mod (active SMs), in order; as many as fit are resident, and when one ends the next begins. The launch takes
`launch_cycles`, and then as long as the slowest SM.

    Timer(machine, decoded, kernels).launch(launch, counts) -> Timing      launches in program order: L2 keeps what they leave

A launch's time depends on earlier ones only through L2's contents. So one that counted the same, took the same paths and found the same in
L2 as a launch before, in this run or an earlier one of the session, takes the same time, and is not simulated again.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.errors import MachineFault
from knapper.isa.machine import Machine
from knapper.isa.program import Kernel, Launch

from ..counters import WORD, Counts
from ..decode import Decoded
from .footprint import Footprint, Traffic, footprint
from .outer import priced
from .report import Roofline, Timing
from .residency import Residency
from .sm import run
from .state import REASONS, STREAM, TICK, TRANSFER, State, blank
from .tables import ACCUMULATORS, PREDICATES, SECTOR, UNIFORMS, Costs, Structure

KEPT = 4096
"""Launches whose timing is kept, of a program on a machine."""
MANY = 8
"""Distinct sequences of blocks from which on threads share them: fewer are over before threads have begun."""
PROCESSORS = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)
NO_BLOCK = -1
"""In place of the last block of SMs that get one less than others."""


@dataclass(frozen=True)
class Residents:
    """How many blocks of a kernel an SM holds, and what allows no more."""

    blocks: int
    limit: str

    @staticmethod
    def of(machine: Machine, kernel: Kernel, systolic: bool) -> Residents:
        """The least of what registers, warps, shared memory, accumulators and block slots allow; a kernel with modes has the SM to itself."""
        allowed = {
            "blocks": machine.blocks_per_sm,
            "warps": machine.warps_per_sm // kernel.warps,
            "registers": machine.registers_per_sm // max(1, 32 * kernel.registers * kernel.warps),
            "shared": machine.shared_bytes_per_sm // max(1, kernel.shared_bytes),
        }
        if kernel.accumulators:
            allowed["accumulators"] = machine.accumulator_bytes // (WORD * kernel.accumulators)
        if systolic:
            allowed["mode"] = 1
        limit = min(allowed, key=lambda name: allowed[name])
        return Residents(max(1, allowed[limit]), limit)


@dataclass
class Timer:
    """Times the launches of a program on a machine, one after the other."""

    costs: Costs
    jump: bool = True
    known: dict[bytes, Timing] = field(default_factory=dict)
    """By all that it depends on, see `digest`; of this machine and program, and of either value of `jump`."""
    residency: Residency = field(init=False)

    def __post_init__(self) -> None:
        self.residency = Residency(self.costs.machine.l2_bytes)

    @staticmethod
    def of(
        machine: Machine, decoded: Decoded, kernels: Mapping[str, Kernel], jump: bool = True
    ) -> Timer:
        """For decoded kernels."""
        return Timer(Costs(Structure.of(decoded, kernels), machine, kernels), jump)

    def launch(self, launch: Launch, counts: Counts) -> Timing:
        """The next launch."""
        held, evicted = self.residency.launch(launch.operands, counts.dram_read, counts.dram_write)
        key = digest(launch, counts, held, evicted, self.jump)
        if key not in self.known:
            while len(self.known) >= KEPT:
                del self.known[next(iter(self.known))]
            self.known[key] = Run(self, launch, counts, held, evicted).timing()
        return self.known[key]


def digest(launch: Launch, counts: Counts, held: float, evicted: int, jump: bool) -> bytes:
    """All that the time of a launch depends on, beside program and machine."""
    assert counts.paths is not None
    numbers = (
        launch.kernel, launch.grid, launch.macs, bool(launch.operands), held, evicted, jump,
        counts.dram_read, counts.dram_write,
    )  # fmt: skip
    key = hashlib.blake2b(repr(numbers).encode(), digest_size=32)
    key.update(counts.gaps.tobytes())
    key.update(counts.instructions.tobytes())
    key.update(counts.paths.of_block.tobytes())
    for array in counts.paths.flat:
        key.update(array.tobytes())
    return key.digest()


@dataclass(frozen=True)
class Went:
    """SMs that all got one sequence of block classes, when they were done."""

    sms: int
    """How many."""
    end: int
    """The tick of it."""
    state: State


class Run:
    """One launch being timed."""

    def __init__(
        self, timer: Timer, launch: Launch, counts: Counts, held: float, evicted: int
    ) -> None:
        assert counts.paths is not None
        self.timer, self.launch, self.counts, self.paths = timer, launch, counts, counts.paths
        self.costs, self.machine = timer.costs, timer.costs.machine
        self.kernel, self.fixed = self.costs.kernels[launch.kernel], self.costs.of(launch.kernel)
        self.blocks = prod(launch.grid)
        self.active = min(self.blocks, self.machine.sms)
        self.residents = Residents.of(self.machine, self.kernel, self.fixed.systolic)
        if not launch.operands:  # nothing is known of what L2 holds: all that is written goes out
            evicted = counts.dram_write
        self.foot = self.footprint(held, evicted)
        self.ops = self.costs.operations(self.kernel.name, counts.instructions, self.foot)
        executed, skipped = (counts.instructions[name] for name in ("executed", "skipped"))
        self.times = executed.astype(np.int64) - skipped.astype(np.int64)

    def footprint(self, held: float, evicted: int) -> Footprint:
        """Where its accesses hit."""
        sectors = self.counts.instructions["sectors"].astype(np.int64)
        self.traffic = Traffic(
            int(sectors[self.fixed.loads].sum()),
            int(sectors[self.fixed.stores].sum()),
            self.counts.dram_write // SECTOR,
            self.counts.gaps,
        )
        return footprint(
            self.machine, self.traffic, blocks=self.blocks, resident=min(self.residents.blocks, -(-self.blocks // self.active)),
            active=self.active, shared_bytes=self.kernel.shared_bytes, held=held, evicted=evicted,
        )  # fmt: skip

    def sequences(self) -> Counter[bytes]:
        """The distinct sequences of block classes that SMs get, and how many get each. An SM's ends in NO_BLOCK if others get one more."""
        rounds = -(-self.blocks // self.active)
        dealt = np.full((rounds, self.active), NO_BLOCK, np.int64)
        dealt.reshape(-1)[: self.blocks] = self.paths.of_block
        rows = np.ascontiguousarray(dealt.T).view(f"V{rounds * dealt.itemsize}")
        return Counter(rows[:, 0].tolist())

    def timing(self) -> Timing:
        events, path = self.paths.flat
        events = priced(events, self.machine)
        dealt, sms = zip(*self.sequences().items(), strict=True)
        threads = min(len(dealt), PROCESSORS) if len(dealt) >= MANY else 1
        simulate = partial(self.simulate, events, path)
        if threads == 1:
            return self.report(list(map(simulate, dealt, sms)))
        with ThreadPoolExecutor(threads) as pool:  # compiled code runs without Python's lock
            return self.report(list(pool.map(simulate, dealt, sms)))

    def simulate(
        self, events: NDArray[Any], path: NDArray[np.int64], dealt: bytes, sms: int
    ) -> Went:
        """SMs that get a sequence of blocks."""
        kernel, machine, ops = self.kernel, self.machine, self.ops
        sequence = np.frombuffer(dealt, np.int64)
        sequence = sequence[sequence != NO_BLOCK]
        state = blank(
            places=min(self.residents.blocks, len(sequence)), warps=kernel.warps,
            slots=kernel.registers + UNIFORMS + PREDICATES + ACCUMULATORS, subcores=machine.subcores,
            ports=self.costs.port_count, code=len(ops), **self.fixed.queues,
        )  # fmt: skip
        end = run(ops, self.fixed.spans, events, path, sequence, *state, self.timer.jump)
        if end < 0:
            raise MachineFault(
                "E617",
                "the recorded paths never end: warps wait for others for ever",
                where=f"kernel {kernel.name}",
            )
        return Went(sms, end, state)

    def report(self, all: list[Went]) -> Timing:
        """What the SMs came to."""
        cycles = -(-max(w.end for w in all) // TICK)
        sms = np.array([w.sms for w in all], np.int64)
        states = [(w.state.sm[0], w.state.blame[0]) for w in all]
        slots, busy, by_pc, occupied, stalled = (
            sms @ np.array(column)
            for column in zip(
                *((sm["slots"], sm["busy"], blame, sm["occupied"], sm["stalled"]) for sm, blame in states), strict=True
            )
        )  # fmt: skip
        total = self.active * max(cycles, 1)
        utilisation = self.utilisation(busy, total)
        array = self.streamed()
        if array:
            utilisation["array"] = array / total
        for name, ticks in self.shared_ports():
            utilisation[name] = ticks / (TICK * total)
        l1_missed = self.traffic.loads * self.foot.l1_misses
        l2, from_dram = l1_missed + self.traffic.stores, l1_missed * self.foot.l2_misses
        return Timing(
            cycles=self.machine.launch_cycles + cycles,
            stalls=dict(zip(REASONS, slots.tolist(), strict=True)),
            busy=utilisation,
            occupancy=float(occupied) / (total * self.machine.warps_per_sm),
            blocks_per_sm=self.residents.blocks,
            limited_by=self.residents.limit,
            active_sms=self.active,
            l2_sectors=round(l2),
            dram_sectors=round(from_dram + self.traffic.stores * self.foot.written_back),
            array_cycles=array,
            port_stalls=int(stalled) // TICK,
            by_pc=by_pc,
            roofline=self.roofline(cycles, utilisation),
        )

    def streamed(self) -> int:
        """Cycles that the arrays streamed, of all SMs: every command that takes the array, as often as it was executed."""
        streams = self.ops["kind"] == STREAM
        return int((self.ops["work"] * self.times)[streams].sum()) // TICK

    def shared_ports(self) -> Iterator[tuple[str, int]]:
        """Ticks that the DMA engine's transfers and the vector memory's port were busy, if they were."""
        ops, transfers = self.ops, self.ops["kind"] == TRANSFER
        slowest = np.max([ops[name] for name in ("occupy", "l2", "dram", "vector")], axis=0)
        for name, ticks in (("dma", slowest * transfers), ("port", ops["vector"])):
            if busy := int(ticks @ self.times):
                yield name, busy

    def utilisation(self, busy: NDArray[np.int64], total: int) -> dict[str, float]:
        """Per unit that worked, and of the shares of L2 and DRAM."""
        owners = self.costs.owners
        ticks = np.add.reduceat(busy, [first for first, _ in owners.values()]).tolist()
        out = {
            name: n / (TICK * total * ports)
            for (name, (_, ports)), n in zip(owners.items(), ticks, strict=True)
            if n > 0
        }
        for name in ("l2", "dram"):
            out[name] = int(self.ops[name] @ self.times) / (TICK * total)
        return out

    def roofline(self, cycles: int, utilisation: Mapping[str, float]) -> Roofline:
        """Useful operations by DRAM bytes and by time."""
        flops = 2 * self.launch.macs
        moved = self.counts.dram_read + self.counts.dram_write
        seconds = max(cycles, 1) / self.machine.clock_hz
        return Roofline(
            flops / moved if moved else 0.0, flops / seconds, self.fixed.peak,
            max(utilisation, key=lambda name: utilisation[name]),
        )  # fmt: skip
