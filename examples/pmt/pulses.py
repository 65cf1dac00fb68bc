"""What one photo-electron looks like at the digitiser: the family of pulses, without any tube's numbers.

The generator (`tubes`) draws a tube's pulses from it; the training script (`train`) draws pulses of every shape that a tube
may have, so that the network knows the family and no tube. The estimator takes nothing from here but a name for arrays of float64.

    mV    rise  fall
     |      _
     |     / \\_          overshoot
     |____/    \\___     _______
     |             \\___/
     +------------------------- ns
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EDGE = 1.6867
"""10 % to 90 % of a Gaussian's flank, in standard deviations: √(2 ln 10) − √(2 ln 10/9)."""
UNDERSHOOT_RISE, UNDERSHOOT_FALL = 10.0, 80.0
"""How the overshoot of the base's capacitors comes and goes, ns. Assumed."""


@dataclass(frozen=True)
class Shape:
    """A pulse of unit area; fields may be arrays, one a pulse."""

    rise: Floats | float
    """10 % to 90 %, ns."""
    fall: Floats | float
    """90 % to 10 %, ns."""
    overshoot: Floats | float
    """Of the other sign, behind the pulse, as a part of its height."""

    def __call__(self, t: Floats) -> Floats:
        """The pulse at `t` ns after its maximum, 1/ns; the area of the pulse proper, without overshoot, is 1."""
        left, right = np.asarray(self.rise) / EDGE, np.asarray(self.fall) / EDGE
        height = 2 / (np.sqrt(2 * np.pi) * (left + right))
        flank = np.where(t < 0, left, right)
        behind = np.clip(t, 0, None)
        back = -np.expm1(-behind / UNDERSHOOT_RISE) * np.exp(-behind / UNDERSHOOT_FALL)
        return np.asarray(height * (np.exp(-0.5 * (t / flank) ** 2) - self.overshoot * back))
