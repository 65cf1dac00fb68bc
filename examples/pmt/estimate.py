"""From a run's waveforms to the tube's parameters, each with its statistical error. Knows the test stand, not the tube.

    pulses in the dark    ── P(hit) ───────────── dark rate = −ln(1 − P) / Δt
    pulses of the flash   ── P(hit) ───────────── PDE = (μ − dark) / photons,  μ = −ln(1 − P)
      by spot             ── P(hit) ── fit ────── PDE at the edge by that on the axis
      their charges       ── histogram ── fit ─── gain, charge resolution, P/V
      their times         ── histogram ── fit ─── transit time, TTS

Histograms and logarithms are the accelerator's, on its SIMD lanes; fits are maximum likelihood, the errors are those of Fisher's
information.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot, inf, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from .accelerator import Accelerator, Pulses
from .conditions import PHOTO_ELECTRON, VALLEY, Conditions, Run
from .pulses import Floats

Counts = NDArray[np.int64]

PER_PE, UP_TO = 20, 4
"""Bins of the charge histogram per photo-electron, and where it ends: one edge is at a quarter."""
SPECTRUM = 0.25, 1.6
"""Where the charge spectrum is fitted, photo-electrons."""
TIMED = 0.5, 1.4
"""Pulses whose times are used, photo-electrons: below, noise moves them; above there were two, and the time is that of neither."""
TIME_BIN = 0.5
"""ns"""
FLOOR = 1e-3
"""Counts in a bin that the fit of the times expects at least, of dark pulses."""
COARSE = 4.0, 80
"""mV·ns a bin, and bins, of the histogram that the peak is first looked for in; it is above the fifth."""
ENOUGH = 10, 200
"""Pulses of dark and light gate without which no fit is worth its error."""


class EstimationError(Exception):
    """A run from which a parameter cannot be estimated."""


@dataclass(frozen=True)
class Value:
    """A number with its standard deviation."""

    value: float
    error: float

    def __mul__(self, factor: float) -> Value:
        return Value(self.value * factor, self.error * abs(factor))

    def __sub__(self, other: Value) -> Value:
        return Value(self.value - other.value, hypot(self.error, other.error))

    def without(self, blur: float) -> Value:
        """A standard deviation from which a known one is taken out."""
        rest = sqrt(max(self.value**2 - blur**2, 1e-12))
        return Value(rest, self.error * self.value / rest)


@dataclass(frozen=True)
class Histogram:
    """Counts, and what was fitted to them."""

    edges: Floats
    """Photo-electrons, or ns. [bins + 1]"""
    counts: Counts
    """[bins]"""
    fitted: Floats
    """[bins]"""


@dataclass(frozen=True)
class Estimate:
    """What was found out about a tube, in the units of `tubes.Tube`; a parameter has the same name."""

    pde: Value
    edge: Value
    gain: Value
    resolution: Value
    valley: Value
    tts: Value
    transit: Value
    dark: Value
    charges: Histogram
    times: Histogram


@dataclass(frozen=True)
class _Charges:
    """The charge spectrum: the mean of a photo-electron is `unit` mV·ns; other charges are in photo-electrons."""

    unit: Value
    deviation: Value
    valley: Value
    hits: int
    histogram: Histogram


def estimate(run: Run, on: Accelerator) -> Estimate:
    """Characterise the tube that a run was taken with; EstimationError if it has too few pulses."""
    c, flashes = run.conditions, len(run.waveforms)
    dark, light = on.find(run)
    lit = _inside(light, c.light)
    spectrum = _charges(lit, flashes, on)
    per_pe = 1 / spectrum.unit.value
    in_the_dark = _hits(_inside(dark, c.dark).charge * per_pe, on)
    if in_the_dark < ENOUGH[0]:
        raise EstimationError(
            f"{in_the_dark} dark pulses, {ENOUGH[0]} are wanted: take more flashes"
        )
    spots = [slice(i, flashes, len(c.spots)) for i in range(len(c.spots))]
    hits = [_hits(_inside(light[s], c.light).charge * per_pe, on) for s in spots]
    cases = [len(range(flashes)[s]) for s in spots]
    in_dark, in_light, *by_spot = _means(
        [in_the_dark, spectrum.hits, *hits], [flashes, flashes, *cases], on
    )
    rate = in_dark * (1 / (c.dark[1] - c.dark[0]))
    not_flash = rate * (c.light[1] - c.light[0])
    tts, transit, times = _times(lit, lit.charge * per_pe, c, on)
    return Estimate(
        pde=(in_light - not_flash) * (1 / c.photons),
        edge=_uniformity([mean - not_flash for mean in by_spot], c.spots),
        gain=spectrum.unit * (c.gain(spectrum.unit.value) * per_pe),
        resolution=spectrum.deviation,
        valley=spectrum.valley,
        tts=tts,
        transit=transit,
        dark=rate * 1e9,
        charges=spectrum.histogram,
        times=times,
    )


def _inside(pulses: Pulses, gate: tuple[int, int]) -> Pulses:
    """The pulses whose maximum is in the gate: the filter's may be at its edge, of a pulse outside."""
    return pulses[(pulses.time >= gate[0]) & (pulses.time < gate[1])]


def _means(hits: Sequence[int], cases: Sequence[int], on: Accelerator) -> list[Value]:
    """The means of Poisson distributions that are above 0 in so many of their cases: μ = −ln(1 − P)."""
    values = on.poisson(hits, cases)
    return [
        Value(mean, sqrt(h / (n - h) / n)) for mean, h, n in zip(values, hits, cases, strict=True)
    ]


def _uniformity(means: Sequence[Value], spots: Sequence[float]) -> Value:
    """At the edge by on the axis: a parabola around the axis through the means of the spots, by least squares."""
    to_line = np.linalg.pinv(np.stack([np.ones(len(spots)), np.square(spots)], 1))
    axis, fall = to_line @ [m.value for m in means]
    slope = np.array([-fall / axis**2, 1 / axis]) @ to_line
    return Value(1 + fall / axis, float(np.hypot.reduce(slope * [m.error for m in means])))


def _hits(charges: Floats, on: Accelerator) -> int:
    """How many pulses count, of charges in photo-electrons."""
    return int(on.histogram(charges, 0, UP_TO, UP_TO * PER_PE)[_bin(PHOTO_ELECTRON) + 1 :].sum())


def _bin(charge: float) -> int:
    """The bin that begins at a charge, photo-electrons."""
    return round(charge * PER_PE)


# --- charges ------------------------------------------------------------------------------------


def _charges(pulses: Pulses, flashes: int, on: Accelerator) -> _Charges:
    """Fit the spectrum in bins of a twentieth of the peak; then again, now that the peak is known better."""
    unit = _peak(pulses, on)
    for _ in range(2):
        all_counts = on.histogram(pulses.charge / unit, 0, UP_TO, UP_TO * PER_PE)
        counts = all_counts[1:-1]
        hits = int(all_counts[_bin(PHOTO_ELECTRON) + 1 :].sum())
        fit = _fit_charges(counts, on.poisson([hits], [flashes])[0])
        found, unit = fit[1] * unit, unit * fit[1].value
    blur = hypot(on.charge.blur / unit, 1 / PER_PE / sqrt(12))
    deviation = fit.ratio(2, 1).without(blur)
    edges = np.arange(len(counts) + 1) / PER_PE
    bias = Value(on.charge.bias, on.charge.spread)
    return _Charges(
        found - bias, deviation, _valley(counts, fit), hits, Histogram(edges, counts, fit.curve)
    )


def _peak(pulses: Pulses, on: Accelerator) -> float:
    """Where most charges are, mV·ns, above the pedestal."""
    width, bins = COARSE
    counts = on.histogram(pulses.charge, 0, width * bins, bins)[1:-1]
    if counts[5:].sum() < ENOUGH[1]:
        raise EstimationError(
            f"{counts[5:].sum()} pulses of the flash, {ENOUGH[1]} are wanted: take more flashes"
        )
    smooth = np.convolve(counts, np.ones(5), "same")
    return float((5 + smooth[5:].argmax() + 0.5) * width)


def _fit_charges(counts: Counts, mean: float) -> Fit:
    """Fit photo-electrons (a Gaussian), partly amplified ones (a line), and pairs: height, mean, deviation, line."""
    q = (np.arange(len(counts)) + 0.5) / PER_PE
    parts = (np.arange(5) + 0.5) / 5

    def spectrum(p: Floats) -> Floats:
        height, unit, deviation, line = p

        def bell(at: float, wider: float = 1) -> Floats:
            return np.asarray(height / wider * np.exp(-0.5 * ((q - at) / (wider * deviation)) ** 2))

        partial = line * unit / 2 / (line * unit / 2 + height * deviation * sqrt(2 * pi))
        whole_and_part = sum((0.4 * (1 - u) * bell(unit * (1 + u)) for u in parts), 0 * q)
        two = (1 - partial) * bell(2 * unit, sqrt(2)) + 2 * partial * whole_and_part
        return np.asarray(bell(unit) + mean / 2 * two + line * np.clip(1 - q / unit, 0, None))

    top = float(counts[_bin(0.8) : _bin(1.2)].mean())
    kept = slice(_bin(SPECTRUM[0]), _bin(SPECTRUM[1]))
    return maximise(spectrum, counts, np.array([top, 1.0, 0.3, top / 5]), kept)


def _valley(counts: Counts, fit: Fit) -> Value:
    """P/V: the fitted peak by the mean of the valley's bins."""
    low = counts[_bin(VALLEY[0]) : _bin(VALLEY[1])]
    ratio = fit[0].value / low.mean()
    return Value(ratio, ratio * hypot(fit[0].error / fit[0].value, 1 / sqrt(low.sum())))


# --- times --------------------------------------------------------------------------------------


def _times(
    pulses: Pulses, charges: Floats, c: Conditions, on: Accelerator
) -> tuple[Value, Value, Histogram]:
    """Spread and mean of the times of single photo-electrons, from the flash on, over a flat floor of dark pulses."""
    gate, used = c.light, pulses.time[(charges >= TIMED[0]) & (charges < TIMED[1])]
    bins = round((gate[1] - gate[0]) / TIME_BIN)
    counts = on.histogram(used, *gate, bins)[1:-1]
    t = gate[0] + (np.arange(bins) + 0.5) * TIME_BIN

    def line(p: Floats) -> Floats:
        total, at, deviation, floor = p
        bell = np.exp(-0.5 * ((t - at) / deviation) ** 2) / (deviation * sqrt(2 * pi))
        return np.asarray(total * TIME_BIN * bell + floor)

    low, middle, high = np.interp([0.2, 0.5, 0.8], counts.cumsum() / counts.sum(), t)
    start = np.array([counts.sum(), middle, (high - low) / 1.7, 0.1])
    fit = maximise(line, counts, start, least=FLOOR)
    spread = fit[2].without(hypot(on.time.blur, TIME_BIN / sqrt(12)))
    edges = np.append(t, t[-1] + TIME_BIN) - TIME_BIN / 2
    transit = fit[1] - Value(c.flash + on.time.bias, on.time.spread)
    return spread, transit, Histogram(edges, counts, fit.curve)


# --- maximum likelihood -------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A fit's parameters, their covariance, and the curve."""

    at: Floats
    covariance: Floats
    curve: Floats

    def __getitem__(self, i: int) -> Value:
        return Value(float(self.at[i]), sqrt(float(self.covariance[i, i])))

    def ratio(self, i: int, k: int) -> Value:
        """One parameter by another; their errors depend on each other."""
        ratio = float(self.at[i] / self.at[k])
        slope = np.array([1, -ratio]) / self.at[k]
        return Value(ratio, sqrt(float(slope @ self.covariance[np.ix_((i, k), (i, k))] @ slope)))


def maximise(
    curve: Callable[[Floats], Floats],
    counts: Counts,
    start: Floats,
    kept: slice = slice(None),
    least: float = -inf,
) -> Fit:
    """The parameters under which Poisson counts are likeliest: Fisher's scoring, with steps that never make them less likely.

    `start` is also the parameters' scale: a step is at most half of it. None gets below `least`. EstimationError if 100
    steps do not settle.
    """
    n, nudges = counts[kept], np.diag(1e-5 * start)

    def mean(p: Floats) -> Floats:
        return np.maximum(curve(p)[kept], 1e-9)

    def likelihood(p: Floats) -> float:
        return float((n * np.log(mean(p)) - mean(p)).sum())

    p = start
    try:
        for _ in range(100):
            slopes = np.stack([curve(p + d)[kept] - curve(p - d)[kept] for d in nudges])
            slopes /= 2e-5 * start[:, None]
            information = (slopes / mean(p)) @ slopes.T
            uphill = slopes @ (n / mean(p) - 1)
            free = (p > least) | (uphill > 0)
            step = np.zeros_like(p)
            step[free] = np.linalg.solve(information[np.ix_(free, free)], uphill[free])
            step = np.clip(step, -start / 2, start / 2)
            tried = [np.maximum(p + step / 2**i, least) for i in range(8)]
            moved = next((q for q in tried if likelihood(q) > likelihood(p)), p)
            if np.all(np.abs(moved - p) < 1e-6 * start):
                return Fit(p, np.asarray(np.linalg.inv(information)), curve(p))
            p = moved
    except np.linalg.LinAlgError:
        pass  # some parameter has left the counts behind
    raise EstimationError("a fit does not settle: take more flashes")
