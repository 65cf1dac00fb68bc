"""The two networks compiled by knapper for a target, and run on its emulator, batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import knapper
from knapper.isa.machine import Machine

from . import network
from .conditions import Conditions, Run
from .network import CHARGE_UNIT, WAVE_UNIT, Weights
from .pulses import Floats

BATCH, VALUES, BINS, MEANS = 512, 4096, 200, 8
"""Waveforms a run of the finder; values and bins of a run of the histogram; means of a run of the logarithm."""

UNITS = {"IM2COL": "systolic array", "LSMA": "systolic array", "HMMA": "Tensor Cores"}
"""What multiplies, by the first word of an instruction that has it multiply."""


@dataclass(frozen=True)
class Pulses:
    """The largest pulse of each waveform's gate; where there is none, a charge near 0."""

    charge: Floats
    """mV·ns. [flashes]"""
    time: Floats
    """Of the maximum, ns from the waveform's start. [flashes]"""

    def __getitem__(self, kept: slice | NDArray[np.bool_]) -> Pulses:
        return Pulses(self.charge[kept], self.time[kept])


@dataclass
class Work:
    """What the accelerator did: executed, not estimated."""

    runs: int = 0
    macs: int = 0
    macs_executed: int = 0
    units: Counter[str] = field(default_factory=Counter)
    """Launches by what computed in them."""
    cycles: int = 0
    joule: float = 0.0
    """Of the first run. The others execute the same instructions on other waveforms."""

    def add(self, stats: Any) -> None:
        if stats.timed:
            self.cycles, self.joule = stats.cycles, stats.energy_pj["total"] * 1e-12
        self.runs += 1
        self.macs += stats.macs
        self.macs_executed += stats.macs_executed
        self.units.update(unit(launch.mnemonics()) for launch in stats.launches)


def unit(mnemonics: Iterable[str]) -> str:
    """What multiplies in a launch that executed these instructions."""
    roots = {m.split(".")[0] for m in mnemonics}
    return next((name for root, name in UNITS.items() if root in roots), "SIMD lanes")


def pipeline(machine: Machine) -> str:
    """The passes for the finder: where there is vector memory, all products go to its array; the lanes are wide there, too."""
    return "fp16,place{kind=channel_first}" if machine.vector_word else "fp16"


class Accelerator:
    """A target with the finder and the histogram.

    Args:
        target: the name of a built-in target, or the path of a .toml file.
        conditions: of the runs that will come.
        weights: of the finder.
        batch: waveforms a run of the finder.
        engine: "fast" or "reference".
    """

    def __init__(
        self,
        target: str,
        conditions: Conditions,
        weights: Weights,
        batch: int = BATCH,
        engine: Any = "fast",
    ) -> None:
        self.target, self.batch, self.engine = target, batch, engine
        self.conditions, self.weights = conditions, weights
        found = network.finder(weights, conditions, batch)
        self.finder = knapper.compile(found, target, pipeline=pipeline(Machine.load(target)))
        self.counter = knapper.compile(network.histogram(VALUES, BINS), target, "fp32")
        self.logarithm = knapper.compile(network.poisson(MEANS), target, "fp32")
        self.charge = network.Error.of(weights, 0, CHARGE_UNIT)
        self.time = network.Error.of(weights, 1, 1.0)
        self.finding, self.counting, self.taking_logs = Work(), Work(), Work()

    def find(self, run: Run) -> tuple[Pulses, Pulses]:
        """The largest pulse of every waveform's dark gate, and of its light gate."""
        parts = [self._batch(wave) for wave in self._waves(run)]
        charge, time = (
            np.concatenate(a, axis=1)[:, : len(run.waveforms)] for a in zip(*parts, strict=True)
        )
        dark, light = (Pulses(charge[i] * CHARGE_UNIT, time[i]) for i in range(2))
        return dark, light

    def _waves(self, run: Run) -> Iterator[NDArray[np.float32]]:
        """Batches as the network takes them; the last one is filled up with zeros. The pedestal is the median of them all."""
        pedestal = np.median(run.waveforms[:1000])
        scale = run.conditions.millivolt / WAVE_UNIT
        for i in range(0, len(run.waveforms), self.batch):
            some = run.waveforms[i : i + self.batch]
            wave = np.zeros((self.batch, 1, run.conditions.samples), np.float32)
            wave[: len(some), 0] = (some - pedestal) * scale
            yield wave

    def _batch(self, wave: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Charges (in units of the network) and times (ns), by gate. [2, batch] each"""
        first = self.finding.runs == 0
        result = self.finder.run({"wave": wave}, engine=self.engine, timing=first)
        self.finding.add(result.stats)
        y = {name: a.astype(np.float64).reshape(2, -1) for name, a in result.outputs.items()}
        return y["charge"], y["start"] + y["offset"]

    def histogram(
        self, values: Floats, low: float, high: float, bins: int = BINS
    ) -> NDArray[np.int64]:
        """Counts of `bins` equal bins between low and high; [0] is what is below, [-1] what is not. [bins + 2]

        A bin holds its lower edge. Values are compared as float32.
        """
        filled = np.full(-(-len(values) // VALUES) * VALUES, -np.inf, np.float32)
        filled[: len(values)] = values
        edges = {"low": low, "per_bin": bins / (high - low)}
        given = {name: np.array([a], np.float32) for name, a in edges.items()}
        total = np.zeros(BINS + 2, np.int64)
        for chunk in filled.reshape(-1, VALUES):
            result = self.counter.run({"values": chunk, **given}, engine=self.engine)
            self.counting.add(result.stats)
            total += result.outputs["counts"]
        total[0] -= len(filled) - len(values)
        return np.append(total[: bins + 1], total[bins + 1 :].sum())

    def poisson(self, hits: Sequence[int], cases: Sequence[int]) -> list[float]:
        """The means of Poisson distributions that are above 0 in so many of their cases; of any number of them."""
        given = np.ones((2, -(-len(hits) // MEANS) * MEANS), np.int32)
        given[:, : len(hits)] = hits, cases
        means: list[float] = []
        for some in np.split(given, given.shape[1] // MEANS, axis=1):
            result = self.logarithm.run({"hits": some[0], "of": some[1]}, engine=self.engine)
            self.taking_logs.add(result.stats)
            means += result.outputs["means"].astype(np.float64).tolist()
        return means[: len(hits)]
