"""A program executed once, and what it takes on any machine that could have executed it.

    executed(program) ─ every instruction of it ─► Record ─ Replay.of(record, machine) ─► cycles, energy, events

What is recorded does not depend on a machine's numbers, only on its instructions, so a number can be moved without executing again.
What was decided with those numbers, the plan, stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.runtime.energy import NAMES, prices
from knapper.runtime.session import Session
from knapper.runtime.stats import LaunchStats, Measured, Stats
from knapper.runtime.timing.record import Record, time_record

from ..inputs import randoms

SEED = 0
"""Of inputs. Times do not depend on them where no operator's work does."""
REGISTER = 4
"""Bytes of a register of a lane."""


def executed(program: Program) -> Record:
    """A program run on seeded inputs, every instruction of it; of its weights zeros are kept, which take no memory."""
    session = Session(program)
    try:
        inputs = randoms(program.inputs, SEED)
        stats = session.run(inputs, timing=True).stats
    finally:
        session.close()
    record = Record.of(program, stats)
    return replace(record, program=replace(program, rodata=bytes(len(program.rodata))))


@dataclass(frozen=True)
class Replay:
    """A recorded run on a machine. Events are those of `runtime.energy`."""

    machine: Machine
    stats: Stats

    @staticmethod
    def of(record: Record, machine: Machine) -> Replay:
        """The run on a machine with the same instructions."""
        return Replay(machine, time_record(record, machine))

    @cached_property
    def launches(self) -> tuple[Measured, ...]:
        """What each took."""
        return tuple(m for _, m in self._timed())

    def _timed(self) -> Iterator[tuple[LaunchStats, Measured]]:
        for s in self.stats.launches:
            assert s.measured is not None  # a replay is timed
            yield s, s.measured

    @property
    def cycles(self) -> int:
        """Of all launches, one after the other."""
        assert self.stats.cycles is not None  # a replay is timed
        return self.stats.cycles

    @property
    def seconds(self) -> float:
        """At the machine's clock."""
        return self.cycles / self.machine.clock_hz

    @property
    def beside_matrices(self) -> float:
        """Seconds of launches that multiply no matrices."""
        cycles = sum(m.timing.cycles for s, m in self._timed() if not s.launch.macs)
        return cycles / self.machine.clock_hz

    @property
    def products(self) -> int:
        """Launches that multiply matrices."""
        return sum(s.launch.macs > 0 for s in self.stats.launches)

    @property
    def useful_macs(self) -> int:
        """Multiply-accumulates of the network, padding left out."""
        return self.stats.macs

    @property
    def macs(self) -> int:
        """Executed multiply-accumulates of matrix kernels."""
        return self.stats.macs_executed

    @cached_property
    def events(self) -> dict[str, float]:
        """How often each event of energy happened."""
        each = [m.energy.counts.sum(axis=0) for m in self.launches]
        total: NDArray[np.float64] = np.sum(each, axis=0)
        return dict(zip(NAMES, total.tolist(), strict=True))

    @property
    def register_bytes(self) -> float:
        """Bytes read from and written to the register file."""
        return REGISTER * (self.events["rf_read"] + self.events["rf_write"])

    def joules(self, machine: Machine) -> float:
        """Energy at a machine's prices."""
        return float(np.array([self.events[name] for name in NAMES]) @ prices(machine)) * 1e-12
