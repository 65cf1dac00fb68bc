"""The time of launches: blocks dealt to SMs, one SM simulated for each distinct sequence of block classes.

Block i runs on SM i mod (active SMs), in order; as many as fit are resident, and when one ends the next begins. The launch takes
`launch_cycles`, and then as long as the slowest SM.

    Timer(machine, decoded, kernels).launch(launch, counts) -> Timing      launches in program order: L2 keeps what they leave

A launch's time depends on earlier ones only through L2's contents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.errors import MachineFault
from knapper.isa.machine import Machine
from knapper.isa.program import Kernel, Launch

from ..counters import Counts
from ..decode import Decoded
from ..paths import Paths
from .footprint import Footprint, Traffic, footprint
from .report import Roofline, Timing
from .residency import Residency
from .sm import run
from .state import REASONS, STREAM, TICK, State, blank
from .tables import PREDICATES, SECTOR, UNIFORMS, Costs, Structure


@dataclass(frozen=True)
class Residents:
    """How many blocks of a kernel an SM holds, and what allows no more."""

    blocks: int
    limit: str

    @staticmethod
    def of(machine: Machine, kernel: Kernel, systolic: bool) -> Residents:
        """The least of what registers, warps, shared memory and block slots allow; a kernel with modes has the SM to itself."""
        allowed = {
            "blocks": machine.blocks_per_sm,
            "warps": machine.warps_per_sm // kernel.warps,
            "registers": machine.registers_per_sm // max(1, 32 * kernel.registers * kernel.warps),
            "shared": machine.shared_bytes_per_sm // max(1, kernel.shared_bytes),
        }
        if systolic:
            allowed["mode"] = 1
        limit = min(allowed, key=lambda name: allowed[name])
        return Residents(max(1, allowed[limit]), limit)


@dataclass
class Timer:
    """Times the launches of a program on a machine, one after the other."""

    costs: Costs
    jump: bool = True
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
        held, evicted = self.residency.launch(launch.operands)
        return Run(self, launch, counts, held, evicted).timing()


class Run:
    """One launch being timed."""

    def __init__(
        self, timer: Timer, launch: Launch, counts: Counts, held: float, evicted: int
    ) -> None:
        assert counts.paths is not None
        self.timer, self.launch, self.counts, self.paths = timer, launch, counts, counts.paths
        self.costs, self.machine = timer.costs, timer.costs.machine
        self.kernel = self.costs.kernels[launch.kernel]
        self.blocks = prod(launch.grid)
        self.active = min(self.blocks, self.machine.sms)
        systolic = self.costs.systolic(self.kernel.name)
        self.residents = Residents.of(self.machine, self.kernel, systolic)
        if not launch.operands:  # nothing is known of what L2 holds: all that is written goes out
            evicted = counts.dram_write
        self.foot = self.footprint(held, evicted)
        self.ops = self.costs.operations(self.kernel.name, counts.instructions, self.foot)

    def footprint(self, held: float, evicted: int) -> Footprint:
        """Where its accesses hit."""
        span = self.costs.structure.spans[self.kernel.name]
        sectors = self.counts.instructions["sectors"].astype(np.int64)
        costs = self.costs
        self.traffic = Traffic(
            int(sectors[costs.global_loads[span]].sum()),
            int(sectors[costs.global_stores[span]].sum()),
            self.counts.l1_unique,
            self.counts.dram_read // SECTOR,
        )
        return footprint(
            self.machine, self.traffic, blocks=self.blocks, resident=min(self.residents.blocks, -(-self.blocks // self.active)),
            active=self.active, shared_bytes=self.kernel.shared_bytes, held=held, evicted=evicted,
        )  # fmt: skip

    def sequences(self) -> Counter[bytes]:
        """The distinct sequences of block classes that SMs get, and how many get each."""
        of_block = np.ascontiguousarray(self.paths.of_block, np.int64)
        return Counter(of_block[sm :: self.active].tobytes() for sm in range(self.active))

    def timing(self) -> Timing:
        spans, first, last = self.costs.spans(self.kernel.name)
        self.ops["first"], self.ops["last"] = first, last
        code = (self.ops, spans, *flatten(self.paths))
        runs = [
            (times, self.simulate(code, np.frombuffer(s, np.int64)))
            for s, times in self.sequences().items()
        ]
        slowest = max(end for _, (end, _) in runs)
        return self.report(-(-slowest // TICK), [(times, sm) for times, (_, sm) in runs])

    def simulate(self, code: tuple[Any, ...], sequence: NDArray[np.int64]) -> tuple[int, State]:
        """An SM that gets a sequence of blocks: the tick at which it is done, and its state then."""
        kernel, machine, ops = self.kernel, self.machine, self.ops
        state = blank(
            places=min(self.residents.blocks, len(sequence)), warps=kernel.warps,
            slots=kernel.registers + UNIFORMS + PREDICATES, subcores=machine.subcores,
            ports=self.costs.port_count, code=len(ops), **self.costs.queues(kernel.name),
        )  # fmt: skip
        ops_, spans, events, path = code
        end = run(ops_, spans, events, path, sequence, *state, self.timer.jump)
        if end < 0:
            raise MachineFault(
                "E617",
                "the recorded paths never end: warps wait for others for ever",
                where=f"kernel {kernel.name}",
            )
        return end, state

    def report(self, cycles: int, runs: list[tuple[int, State]]) -> Timing:
        """From the SMs' final states, each with how many SMs went that way."""
        slots, busy, by_pc, occupied = (
            sum(times * column for times, column in zip((t for t, _ in runs), columns, strict=True))
            for columns in zip(
                *(
                    (s.sm["slots"][0], s.sm["busy"][0], s.blame[0], s.sm["occupied"][0])
                    for _, s in runs
                ),
                strict=True,
            )
        )
        total = self.active * max(cycles, 1)
        utilisation = self.utilisation(busy, total)
        array = self.streamed()
        if array:
            utilisation["array"] = array / total
        l1_missed = self.traffic.loads * self.foot.l1_misses
        l2, from_dram = l1_missed + self.traffic.stores, l1_missed * self.foot.l2_misses
        return Timing(
            cycles=self.machine.launch_cycles + cycles,
            stalls={name: int(n) for name, n in zip(REASONS, slots, strict=True)},
            busy=utilisation,
            occupancy=float(occupied) / (total * self.machine.warps_per_sm),
            blocks_per_sm=self.residents.blocks,
            limited_by=self.residents.limit,
            active_sms=self.active,
            l2_sectors=round(l2),
            dram_sectors=round(from_dram + self.traffic.stores * self.foot.written_back),
            array_cycles=array,
            by_pc=by_pc,
            roofline=self.roofline(cycles, utilisation),
        )  # fmt: skip

    def streamed(self) -> int:
        """Cycles that the arrays streamed, of all SMs: every command that takes the array, as often as it was executed."""
        times = self.counts.instructions["executed"] - self.counts.instructions["skipped"]
        streams = self.ops["kind"] == STREAM
        return int((self.ops["work"] * times.astype(np.int64))[streams].sum())

    def utilisation(self, busy: NDArray[np.int64], total: int) -> dict[str, float]:
        """Per unit that worked, and of the shares of L2 and DRAM."""
        out: dict[str, float] = {}
        for name, (first, spread) in self.costs.ports.items():
            if self.machine.units[name].port not in ("", name):
                continue
            ports = self.machine.subcores if spread else 1
            out[name] = float(busy[first : first + ports].sum()) / (TICK * total * ports)
        out = {name: share for name, share in out.items() if share > 0}
        times = self.counts.instructions["executed"] - self.counts.instructions["skipped"]
        for name in ("l2", "dram"):
            out[name] = float((self.ops[name] * times.astype(np.int64)).sum()) / (TICK * total)
        return out

    def roofline(self, cycles: int, utilisation: Mapping[str, float]) -> Roofline:
        """Useful operations by DRAM bytes and by time."""
        flops = 2 * self.launch.macs
        moved = self.counts.dram_read + self.counts.dram_write
        seconds = max(cycles, 1) / self.machine.clock_hz
        return Roofline(
            flops / moved if moved else 0.0, flops / seconds, self.costs.peak(self.kernel.name),
            max(utilisation, key=lambda name: utilisation[name]),
        )  # fmt: skip


def flatten(paths: Paths) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The events of all classes in one array, and where each warp of each class begins. [events], [classes, warps]"""
    lengths = [[len(w) for w in c] for c in paths.warps]
    ends = np.cumsum(np.array(lengths, np.int64)).reshape(len(lengths), -1)
    return np.concatenate([w for c in paths.warps for w in c]), ends - lengths
