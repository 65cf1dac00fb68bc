"""ANT (arXiv 2208.14286), adaptive types of few bits: rows AN1 … AN5, by the paper's analytic model, of which `ant_model` is our own version.

    AN1   time of eight networks on six designs      AN4   means over the networks
    AN2   where their energy goes                    AN5   ANT-OS against the others
    AN3   cycles, to the last one

The table is the authors' repository's; the abstract says 2.8 times as fast as BitFusion, at a 2.5th of its energy. Nothing executes for
these rows: that ours agree shows that the model is the one they used, and nothing about a machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

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
