"""How the test stand is set up: what its operator knows, and all that generator and estimator share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ELECTRON = 1.602176634e-19
"""Coulomb."""
PHOTO_ELECTRON = 0.25
"""A pulse counts, for PDE and dark rate, from this part of the mean charge of a photo-electron on (assumed convention)."""
VALLEY = 0.25, 0.45
"""Between the pedestal and the peak of the charge spectrum, photo-electrons: P/V takes the mean over it (assumed convention)."""


@dataclass(frozen=True)
class Conditions:
    """A run with a faint LED, one waveform a flash. The digitiser takes 1 GS/s at 14 bits; all else is assumed."""

    samples: int = 512
    """Of a waveform, one a nanosecond."""
    ohm: float = 50.0
    millivolt: float = 0.1
    """Of an ADC count."""
    photons: float = 0.35
    """That reach the photocathode in a flash, on average: a Poisson mean of about 0.1 photo-electrons."""
    flash: float = 400.0
    """When the LED flashes, ns."""
    dark: tuple[int, int] = (40, 360)
    """No light is there: begin and end, ns."""
    light: tuple[int, int] = (370, 470)
    """Where pulses of the flash are, ns; dark ones are there too."""
    spots: tuple[float, ...] = (0.0, 0.4, 0.7, 1.0)
    """Where on the photocathode a flash lands, one after the other: distance from the axis, as a part of the edge's."""

    def gain(self, charge: float) -> float:
        """Electrons per photo-electron from a charge in mV·ns."""
        return charge * 1e-12 / self.ohm / ELECTRON

    def charge(self, gain: float) -> float:
        """mV·ns per photo-electron from a gain."""
        return gain * ELECTRON * self.ohm * 1e12


@dataclass(frozen=True)
class Run:
    """What a test stand delivers: nothing else reaches the estimator."""

    conditions: Conditions
    waveforms: NDArray[np.int16]
    """ADC counts. [flashes, samples]"""
