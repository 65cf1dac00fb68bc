"""A program executed once, and what it takes on any machine that could have executed it.

    Recording.of(program)  ─ executed with every instruction ─►  launches with counts and paths
    recording.on(machine)  ─ timed and priced ─►                 Replay: cycles, energy, events

What is recorded does not depend on a machine's numbers, only on its instructions, so a number can be moved without executing again.
What was decided with those numbers, the plan, stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from knapper.isa.machine import Machine
from knapper.isa.program import Kernel, Program
from knapper.runtime.decode import Decoded
from knapper.runtime.energy import NAMES, prices
from knapper.runtime.session import Progress, Session
from knapper.runtime.stats import LaunchStats, Measured
from knapper.runtime.timing.meter import Meter
from knapper.runtime.timing.tables import Structure

from ..inputs import randoms

SEED = 0
"""Of inputs. Times do not depend on them where no operator's work does."""
REGISTER = 4
"""Bytes of a register of a lane."""


@dataclass(frozen=True)
class Replay:
    """A recorded run on a machine. Events are those of `runtime.energy`."""

    machine: Machine
    recording: Recording
    launches: tuple[Measured, ...]

    @property
    def cycles(self) -> int:
        """Of all launches, one after the other."""
        return sum(m.timing.cycles for m in self.launches)

    @property
    def seconds(self) -> float:
        """At the machine's clock."""
        return self.cycles / self.machine.clock_hz

    @property
    def macs(self) -> int:
        """Useful multiply-accumulates."""
        return self.recording.macs

    @cached_property
    def events(self) -> dict[str, float]:
        """How often each event of energy happened."""
        total: NDArray[np.float64] = np.sum(
            [m.energy.counts.sum(axis=0) for m in self.launches], axis=0
        )
        return dict(zip(NAMES, total.tolist(), strict=True))

    @property
    def register_bytes(self) -> float:
        """Bytes read from and written to the register file."""
        return REGISTER * (self.events["rf_read"] + self.events["rf_write"])

    def joules(self, machine: Machine | None = None) -> float:
        """Energy, at this or at another machine's prices."""
        each = prices(machine or self.machine)
        return float(np.array([self.events[name] for name in NAMES]) @ each) * 1e-12


@dataclass(frozen=True)
class Recording:
    """An executed program, without its data."""

    kernels: Mapping[str, Kernel]
    decoded: Decoded
    structure: Structure
    launches: tuple[LaunchStats, ...]

    @staticmethod
    def of(program: Program, progress: Progress | None = None) -> Recording:
        """Execute a program on seeded inputs, every instruction of it."""
        session = Session(program)
        try:
            inputs = randoms(program.inputs, SEED)
            stats = session.run(inputs, timing=True, progress=progress).stats
        finally:
            session.close()
        structure = Structure.of(session.decoded, program.kernels)
        return Recording(program.kernels, session.decoded, structure, stats.launches)

    @property
    def macs(self) -> int:
        """Useful multiply-accumulates."""
        return sum(s.launch.macs for s in self.launches)

    def on(self, machine: Machine) -> Replay:
        """The run on a machine with the same instructions."""
        meter = Meter.of(machine, self.kernels, self.decoded, self.structure).start()
        launches = tuple(meter.launch(s.launch, s.counts) for s in self.launches)
        return Replay(machine, self, launches)
