"""Synthetic 20-inch photomultipliers: the truth, and the waveforms that follow from it. The estimator never sees this module.

Means of a type's tubes. PDE: published by IHEP (28.7 % of all, 28.9 % of the MCP tubes; the dynode's follows). Gain and the one
percent of overshoot: published. All else is recalled or assumed, and stands for itself: a synthetic tube. Left out: afterpulses,
which come later than a waveform lasts, and transit times of several peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np
from numpy.typing import NDArray

from .conditions import PHOTO_ELECTRON, VALLEY, Conditions, Run
from .pulses import Floats, Shape

TAIL = 0.6
"""Mean of the additional charge of a pulse in an MCP's tail, photo-electrons. Assumed."""
LATEST = 64
"""A pulse is written up to this many ns past its maximum … and starts 32 before it."""


@dataclass(frozen=True)
class Tube:
    """A photomultiplier's parameters."""

    name: str
    pde: float
    """Pulses of at least a quarter of a photo-electron per photon, the mean of the test stand's spots."""
    gain: float
    tts: float
    """Standard deviation of the transit time, ns."""
    dark: float
    """Such pulses in the dark, Hz."""
    resolution: float
    """Standard deviation of a photo-electron's charge by its mean, of the amplified ones."""
    valley: float
    """P/V: the charge spectrum at its peak by its mean in the valley."""
    rise: float
    fall: float
    """ns"""
    tail: float = 0.0
    """Part of the pulses that has additional charge."""
    overshoot: float = 0.01
    noise: float = 0.3
    """mV, each sample. Assumed."""
    transit: float = 18.0
    """From flash to pulse, ns. Assumed."""
    edge: float = 0.9
    """PDE at the photocathode's edge by that on its axis; between them it falls with the square of the distance. Assumed."""

    @property
    def partial(self) -> float:
        """The part of the photo-electrons that are amplified in part: charges between 0 and 1 that get linearly rarer.

        It follows from P/V: full/(peak of a Gaussian) = valley · (partial's mean + full's mean over the valley).
        """
        a, b = VALLEY
        line = 2 - a - b
        bell = (_below(b, self.resolution) - _below(a, self.resolution)) / (b - a)
        peak = 1 / (self.resolution * np.sqrt(2 * np.pi))
        ratio = (peak / self.valley - bell) / line
        return float(ratio / (1 + ratio))

    def over(self, spots: Sequence[float]) -> Floats:
        """PDE where the spots are, whose mean is `pde`. [spots]"""
        profile = 1 - (1 - self.edge) * np.square(spots)
        return np.asarray(self.pde * profile / profile.mean())

    @property
    def counted(self) -> float:
        """The part of the photo-electrons that counts: those of at least a quarter."""
        line = (1 - PHOTO_ELECTRON) ** 2
        return self.partial * line + (1 - self.partial) * (
            1 - _below(PHOTO_ELECTRON, self.resolution)
        )


HPK = Tube("HPK dynode", 0.281, 1e7, 1.3, 17.0e3, resolution=0.28, valley=3.8, rise=7.0, fall=10.0)
NNVT = Tube(
    "NNVT MCP", 0.289, 1e7, 7.0, 31.0e3, resolution=0.33, valley=3.9, rise=5.0, fall=17.0, tail=0.03,
    transit=21.0, edge=0.85,
)  # fmt: skip
TYPES = HPK, NNVT


def measure(tube: Tube, flashes: int, seed: int, conditions: Conditions | None = None) -> Run:
    """Put the tube into the test stand: a run of so many flashes."""
    c = conditions or Conditions()
    rng = np.random.default_rng(seed)
    which, times = _photo_electrons(tube, c, flashes, rng)
    charges = _charges(tube, len(times), rng) * c.charge(tube.gain)
    volts = rng.standard_normal((flashes, c.samples), np.float32) * np.float32(tube.noise)
    _write(volts, Shape(tube.rise, tube.fall, tube.overshoot), which, times, charges)
    pedestal = rng.integers(500, 1500)
    counts = np.rint(volts / c.millivolt + pedestal).clip(0, 2**14 - 1)
    return Run(c, counts.astype(np.int16))


def _photo_electrons(
    tube: Tube, c: Conditions, flashes: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Floats]:
    """The flash and the time, ns, of every photo-electron."""
    pde = np.resize(tube.over(c.spots), flashes)
    lit = rng.poisson(c.photons * pde / tube.counted)
    ns = 1e-9 * tube.dark / tube.counted
    begin, end = -LATEST, c.samples + LATEST
    dark = rng.poisson(ns * (end - begin), flashes)
    which = np.concatenate([np.repeat(np.arange(flashes), n) for n in (lit, dark)])
    flash = c.flash + tube.transit + tube.tts * rng.standard_normal(lit.sum())
    return which, np.concatenate([flash, rng.uniform(begin, end, dark.sum())])


def _charges(tube: Tube, n: int, rng: np.random.Generator) -> Floats:
    """In photo-electrons. [n]"""
    full = np.abs(1 + tube.resolution * rng.standard_normal(n))
    full += (rng.random(n) < tube.tail) * rng.exponential(TAIL, n)
    line = 1 - np.sqrt(rng.random(n))
    return np.where(rng.random(n) < tube.partial, line, full)


def _write(
    volts: NDArray[np.float32], shape: Shape, which: NDArray[np.int64], times: Floats, area: Floats
) -> None:
    """Add pulses to the waveforms; what is outside of them is cut."""
    at = np.floor(times).astype(np.int64)[:, None] + np.arange(-32, LATEST + 128)
    pulses = area[:, None] * shape(at - times[:, None])
    inside = (at >= 0) & (at < volts.shape[1])
    rows = np.broadcast_to(which[:, None], at.shape)
    np.add.at(volts, (rows[inside], at[inside]), pulses[inside].astype(np.float32))


def _below(q: float, resolution: float) -> float:
    """The part of the fully amplified charges below q."""
    return 0.5 * (1 + erf((q - 1) / resolution / sqrt(2)))
