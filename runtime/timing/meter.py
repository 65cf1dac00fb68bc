"""Time and energy of a run's launches, one after the other.

meter = Meter.of(machine, kernels, decoded)       once a program and machine
run = meter.start()                               once a run: L2 is empty
run.launch(launch, counts) -> Measured
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from knapper.isa import caches
from knapper.isa.machine import Machine
from knapper.isa.program import Kernel, Launch

from ..counters import Counts
from ..decode import Decoded
from ..energy import Rates, Usage, energy
from ..stats import Measured
from . import host
from .jit import present
from .launch import Timer
from .report import Timing
from .tables import Costs, Structure


@dataclass(frozen=True)
class Meter:
    """A program on a machine."""

    costs: Costs
    rates: Rates
    known: dict[bytes, Timing] = field(default_factory=dict)
    """Timings that runs share."""

    @staticmethod
    def of(
        machine: Machine,
        kernels: Mapping[str, Kernel],
        decoded: Decoded,
        structure: Structure | None = None,
    ) -> Meter:
        """For decoded kernels; `structure` if another machine's meter has it already."""
        structure = structure or Structure.of(decoded, kernels)
        rates = Rates.of(machine, list(kernels.values()), decoded)
        return Meter(Costs(structure, machine, kernels), rates)

    def start(self, jump: bool = True, notice: Callable[[], None] = lambda: None) -> Metering:
        """Ready for the first launch. `notice` is called if code must be compiled first, which takes some seconds."""
        if not present():
            notice()
            caches.tidy(caches.folder("timing"), caches.limit())
        return Metering(self, Timer(self.costs, jump, self.known))


@dataclass(frozen=True)
class Metering:
    """A run being measured."""

    meter: Meter
    timer: Timer

    def launch(self, launch: Launch, counts: Counts) -> Measured:
        """The next launch. What the host made lies in L2, as if the accelerator had."""
        if launch.host is not None:
            self.timer.residency.launch(launch.operands)
            return host.measured(self.meter.costs, launch, launch.host, counts)
        timing = self.timer.launch(launch, counts)
        kernel = self.timer.costs.kernels[launch.kernel]
        roles = self.meter.rates.roles[kernel.name]
        by_node = np.bincount(roles, timing.by_pc, max(1, len(launch.nodes)))
        usage = Usage(
            timing.cycles,
            timing.active_sms,
            timing.l2_sectors,
            timing.dram_sectors,
            by_node.tolist(),
        )
        return Measured(
            timing, energy(self.meter.rates, kernel, launch.nodes, counts, usage), by_node
        )
