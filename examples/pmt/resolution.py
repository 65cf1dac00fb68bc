"""What the tubes make of JUNO's energy resolution at 1 MeV: 3 % is the experiment's aim (arXiv 2205.08629).

    σ/E = √(1/N + D/N² + s²/N + w² + v²)       N photo-electrons, D of them dark, s a charge's spread

PDE and numbers of tubes are published or derived, but for one assumption; light yield and charge window are recalled. The tubes'
parameters are estimates: PDE scales N, dark rate gives D, charge resolution s. What they make of the resolution is propagation of
those estimates; 3 % is what the experiment aims at.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from .estimate import Estimate, Value

TUBES = {"HPK dynode": 5_000, "NNVT MCP": 12_612}
"""Of 20 inches in the central detector: 17,612 (published); that all of HPK's 5,000 are among them is assumed."""
YIELD, PDE = 1345.0, 0.287
"""Photo-electrons per MeV (recalled), of tubes with the published mean PDE."""
WINDOW = 300e-9
"""In which charge is collected, s. Recalled."""
WAVEFORM, VERTEX = 0.0039, 0.0035
"""Published terms of the budget: reconstruction of waveforms and of the vertex."""
PUBLISHED = 0.0290, 0.0035, 0.0083, 0.0039, 0.0058
"""The published budget at 1.022 MeV: light, vertex, dark noise, waveforms, charges."""


def at_1_mev(pde: float, dark: float, spread: float) -> float:
    """σ/E for the tubes' mean PDE, dark rate (Hz) and the root mean square of their charge resolutions."""
    n = YIELD * pde / PDE
    dark_pe = sum(TUBES.values()) * dark * WINDOW
    return sqrt(1 / n + dark_pe / n**2 + spread**2 / n + WAVEFORM**2 + VERTEX**2)


EXPECTED, TOLERANCE = at_1_mev(PDE, 28e3, 0.28), 0.0015
"""σ/E of tubes with the published mean PDE and a recalled mean of dark rates and charge resolutions; how far an estimate may be off."""


def published() -> float:
    """The published budget's sum, at 1.022 MeV."""
    return sqrt(sum(term**2 for term in PUBLISHED))


def resolution(found: Mapping[str, Estimate]) -> Value:
    """σ/E from the estimates of each type, with the error that follows from theirs."""
    value, variance = _mixed(found, {}), 0.0
    for kind in TUBES:
        for name in ("pde", "dark", "resolution"):
            moved = _mixed(found, {(kind, name): getattr(found[kind], name).error})
            variance += (moved - value) ** 2
    return Value(value, sqrt(variance))


def _mixed(found: Mapping[str, Estimate], moved: Mapping[tuple[str, str], float]) -> float:
    """σ/E of the mixture of types, with some parameters moved."""

    def mean(name: str, power: int = 1) -> float:
        parts = (
            n * (getattr(found[kind], name).value + moved.get((kind, name), 0.0)) ** power
            for kind, n in TUBES.items()
        )
        return float(sum(parts)) / sum(TUBES.values())

    return at_1_mev(mean("pde"), mean("dark"), sqrt(mean("resolution", 2)))
