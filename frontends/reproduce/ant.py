"""ANT (arXiv 2208.14286), adaptive types of few bits: rows AN1 … AN8, the first five by the paper's analytic model (`ant_model`).

    AN1   time of eight networks on six designs      AN5   ANT-OS against the others
    AN2   where their energy goes                    AN6   what each type loses of a distribution
    AN3   cycles, to the last one                    AN7   which type is chosen
    AN4   means over the networks                   AN8   labels that networks get right

The table is the authors' repository's; the abstract says 2.8 times as fast as BitFusion, at a 2.5th of its energy. Nothing executes for
these rows: that ours agree shows that the model is the one they used, and nothing about a machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from knapper.compiler.quantization import ant
from knapper.isa.formats import FORMATS

from . import accuracy
from .ant_model import DATA, DESIGNS, NETWORKS, PARTS, Cost, network_cost
from .claims import Claim, Lab
from .sma import geometric_mean

ANT, BASE = "ant-os", "adafloat"
"""The design that others are compared with, and the one whose time and energy are 1."""
DIGIT = 0.005
"""Half of the last digit that is published."""
TABLE = "the authors' repository, results/ant_res.csv, two digits"
OURS = "ours: the same model, written again, with their layers; nothing executes"
MEAN = "an arithmetic mean, though they call it geometric"


def rows() -> Iterator[Claim]:
    """All of them."""
    yield from times()
    yield from energies()
    yield from cycles()
    yield from means()
    yield from gains()
    yield from losses()
    yield from choices()
    yield from accuracy.rows("AN8", ("ant",), [pair for pair in accuracy.BITS if pair[0] > 2])
    yield from accuracy.emulations("AN8", 4, 4, "ant")


# --- what rows ask


def published(what: str, network: str) -> dict[str, float]:
    """A line of their table: design → two digits. BiScaled was run on two networks, and is in the means."""
    found = DATA["published"][what][network]
    ran = [d for d in DESIGNS if d != "biscaled" or len(found) == len(DESIGNS)]
    return dict(zip(ran, found, strict=True))


def digits(value: float) -> tuple[float, float]:
    """What is two digits when it is rounded."""
    return value - DIGIT, value + DIGIT


def time(network: str, design: str) -> float:
    """By AdaFloat's."""
    return network_cost(network, design).cycles / network_cost(network, BASE).cycles


def energy(network: str, design: str, part: int) -> float:
    """A part of the energy by all of AdaFloat's."""
    return network_cost(network, design).parts[part] / network_cost(network, BASE).energy


def mean(values: Iterator[float]) -> float:
    """Arithmetic."""
    every = list(values)
    return sum(every) / len(every)


# --- AN1, AN2, AN3


def times() -> Iterator[Claim]:
    """Of each network on each design."""
    for network in NETWORKS:
        for design, theirs in published("time", network).items():
            if design != BASE:
                yield Claim(
                    f"AN1.{network}.{design}", f"{network} on {design}: time by {BASE}'s", digits(theirs), "analytic", 0.0,
                    partial(_time, network=network, design=design), f"{TABLE}; {OURS}", "", swept=False,
                )  # fmt: skip


def _time(lab: Lab, network: str, design: str) -> float:
    return time(network, design)


def apart(lab: Lab, network: str) -> float:
    """The largest difference from what is published of any part on any design."""
    return max(
        abs(energy(network, design, i) - theirs)
        for i, part in enumerate(PARTS)
        for design, theirs in published(part, network).items()
    )


def energies() -> Iterator[Claim]:
    """Static, DRAM, buffers, array: by all of AdaFloat's."""
    for network in NETWORKS:
        yield Claim(
            f"AN2.{network}", f"{network}: {', '.join(PARTS)} energy by {BASE}'s, largest difference on any design", (0.0, DIGIT), "analytic", 0.0,
            partial(apart, network=network), f"{TABLE}, so half of the last; {OURS}", "", swept=False,
        )  # fmt: skip


def cycles() -> Iterator[Claim]:
    """That nothing is off by one."""
    for network, counts in DATA["cycles"].items():
        for design, theirs in counts.items():
            yield Claim(
                f"AN3.{network}.{design}", f"{network} on {design}: cycles, batch 64", (theirs, theirs), "analytic", 0.0,
                partial(_cycles, network=network, design=design),
                f"a second implementation of the same rules; {OURS}", "", swept=False,
            )  # fmt: skip


def _cycles(lab: Lab, network: str, design: str) -> float:
    return network_cost(network, design).cycles


# --- AN4, AN5


def mean_time(lab: Lab, design: str) -> float:
    """Over the networks."""
    return mean(time(n, design) for n in NETWORKS)


def means() -> Iterator[Claim]:
    """Over the networks, as published."""
    for design, theirs in published("time", "mean").items():
        if design != BASE:
            yield Claim(
                f"AN4.{design}", f"mean time on {design} by {BASE}'s", digits(theirs), "analytic", 0.0,
                partial(mean_time, design=design), f"{TABLE}, {MEAN}; {OURS}", "", swept=False,
            )  # fmt: skip


GAINS = {
    "bitfusion": (2.83, 2.49),
    "olaccel": (3.30, 1.91),
    "biscaled": (1.50, 1.51),
    "adafloat": (4.10, 3.27),
}
"""Time and energy of ANT-OS's, geometric means over eight networks, by a second implementation of the same rules."""


def gain(lab: Lab, design: str, what: str) -> float:
    """Geometric mean of how much more a design takes than ANT-OS."""

    def of(cost: Cost) -> float:
        return cost.cycles if what == "time" else cost.energy

    return geometric_mean(
        [of(network_cost(n, design)) / of(network_cost(n, ANT)) for n in NETWORKS]
    )


def gains() -> Iterator[Claim]:
    """Of ANT-OS."""
    for what, theirs in (("time", 2.8), ("energy", 2.5)):
        yield Claim(
            f"AN5.{what}", f"{what} on bitfusion by {ANT}'s, geometric mean of eight networks", (theirs - 0.05, theirs + 0.05), "analytic", 0.0,
            partial(gain, design="bitfusion", what=what), f"abstract: {theirs} times; {OURS}", "", swept=False,
        )  # fmt: skip
    for design, pair in GAINS.items():
        for what, theirs in zip(("time", "energy"), pair, strict=True):
            yield Claim(
                f"AN5.{design}.{what}", f"{what} on {design} by {ANT}'s, geometric mean of eight networks", digits(theirs), "analytic", 0.0,
                partial(gain, design=design, what=what),
                f"a second implementation of the same rules; {OURS}", "", swept=False,
            )  # fmt: skip


# --- AN6

Floats = NDArray[np.float64]
GAUSSIAN = {"i4": 0.01186, "flint4": 0.01495, "pot4": 0.03775, "i3": 0.04064, "flint3": 0.04756}
"""Format → mean squared error on a Gaussian of variance 1, with the best scale."""
STEPS = np.arange(0.5, 12, 0.005)
"""Where a format's largest value is put."""


def moments(border: Floats) -> Floats:
    """[3, …]: integrals of φ(x), x φ(x), x² φ(x) up to a border, for the density φ of a Gaussian."""
    density = np.exp(-np.square(border) / 2) / math.sqrt(2 * math.pi)
    below = np.array([(1 + math.erf(b / math.sqrt(2))) / 2 for b in border.flat])
    below = below.reshape(border.shape)
    edge = np.where(np.isfinite(border), border, 0)
    return np.stack([below, -density, below - edge * density])


@cache
def least_error(name: str) -> float:
    """Of a format on the Gaussian: the integral of the squared error, at the best scale; no sample is drawn."""
    values = np.multiply.outer(STEPS / FORMATS[name].largest, FORMATS[name].values)
    ends = np.full((len(values), 1), np.inf)
    borders = np.hstack([-ends, (values[:, 1:] + values[:, :-1]) / 2, ends])
    mass, first, second = np.diff(moments(borders))
    return float((second - 2 * values * first + values**2 * mass).sum(axis=1).min())


def _error(lab: Lab, name: str) -> float:
    return least_error(name)


def losses() -> Iterator[Claim]:
    """Of a Gaussian."""
    for name, theirs in GAUSSIAN.items():
        yield Claim(
            f"AN6.{name}", f"mean squared error of {name} on a Gaussian of variance 1, best scale", (theirs, theirs), "derived", 0.001,
            partial(_error, name=name),
            "another implementation, on samples; ours: integrated over the format's cells, computed when compiling", "", swept=False,
        )  # fmt: skip


# --- AN7

SEED, ROWS = 1, (16, 256)
DRAWN: dict[str, Callable[[np.random.Generator], Floats]] = {
    "gaussian": lambda rng: rng.normal(size=ROWS),
    "uniform": lambda rng: rng.uniform(-1, 1, ROWS),
    "laplace": lambda rng: rng.laplace(size=ROWS),
    "student": lambda rng: rng.standard_t(3, ROWS),
}
CHOSEN = {
    "gaussian": ("i4", "u4"), "uniform": ("i4", "u4"), "laplace": ("flint4", "u4"), "student": ("flint4", "uflint4"),
}  # fmt: skip
"""Distribution → types of weights, a scale a row, and of activations that are what a Relu leaves of them, one scale."""
MANY = 65536


def agreed(lab: Lab) -> float:
    """How many types are those of the authors' code."""
    count = 0
    for name, pair in CHOSEN.items():
        x = DRAWN[name](np.random.default_rng(SEED))
        found = ant.select(x, 4), ant.activation(np.maximum(x, 0), 4)
        count += sum(f.format.name == theirs for f, theirs in zip(found, pair, strict=True))
    return count


def bounded(lab: Lab) -> float:
    """Error of int by flint's where the lower bound of the authors' search binds."""
    scores = ant.select(np.random.default_rng(SEED).normal(size=(32, MANY)), 4).scores
    return scores["int"] / scores["flint"]


def choices() -> Iterator[Claim]:
    """By the least error, within 75 … 149 % of the greatest magnitude."""
    yield Claim(
        "AN7.types", "types chosen at 4 bits as by the authors' code: four distributions, as weights and behind a Relu", (8, 8), "derived", 0.0,
        agreed, f"the authors' code, run on {ROWS[0]}×{ROWS[1]} numbers of the same seed; ours: chosen when compiling", "", swept=False,
    )  # fmt: skip
    yield Claim(
        "AN7.bound", f"error of int4 by flint4's on a Gaussian, {MANY} numbers a scale, scales as the authors search them", (0.0190 / 0.0152,) * 2,
        "derived", 0.1, bounded,
        "another implementation, other numbers: 0.0190 and 0.0152; ours: chosen when compiling, 32 scales; with a free scale int4 wins (AN6)", "",
        swept=False,
    )  # fmt: skip
