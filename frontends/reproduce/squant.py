"""SQuant (arXiv 2202.07471), rounding without data: rows SQ1 … SQ4.

    SQ1   what cancelled errors save at the outputs, stage by stage      SQ3   how long a network takes
    SQ2   what each stage leaves of them                                 SQ4   labels that networks get right, beside rounding to the nearest

The paper's tables are accuracies on ImageNet, which is not here: they are published, and no row of ours is beside them. What can be shown
without is what the method does to a layer's outputs, with random weights and inputs; the figures it is compared with are of another
implementation, which followed the authors' on every element. Nothing executes on a target: rounding is done when compiling.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from knapper.compiler.quantization import squant

from . import accuracy, agreement
from .ant_model import DATA
from .claims import Claim, Lab

Floats = NDArray[np.float32]

SHAPE = (64, 32, 3, 3)
"""Of the weights: outputs, inputs, kernel."""
SAMPLES = 2000
SEEDS = range(5)
AFTER_RELU = {
    (3, "ek"): 0.472, (3, "ec"): 0.644, (3, "ekc"): 0.434,
    (4, "ek"): 0.456, (4, "ec"): 0.615, (4, "ekc"): 0.416,
}  # fmt: skip
"""Bits and stages → mean squared error at the outputs by that of rounding to nearest, inputs from a Relu."""
AROUND_ZERO = {3: (1.084, 1.088), 4: (1.084, 1.088)}
"""The same of all stages, inputs independent and around zero."""
OTHER = "another implementation, which agrees with the authors' on 45,792 of 45,792 elements"
OURS = f"ours: weights {'×'.join(map(str, SHAPE))}, normal, {SAMPLES:,} inputs, mean of five seeds, computed when compiling"


def rows() -> Iterator[Claim]:
    """All of them."""
    yield from savings()
    yield from left()
    yield from duration()
    yield from accuracy.rows("SQ4", ("nearest", "squant", "minmax"))
    yield from accuracy.gaps("SQ4", ("squant", "minmax"))
    yield from accuracy.peers("SQ4")
    yield from accuracy.emulations("SQ4", 4, 8, "squant")
    yield from agreement.rows("SQ4", ("nearest", "squant"))


# --- SQ1


def weights(seed: int) -> Floats:
    """Random ones."""
    return np.random.default_rng(seed).normal(0, 0.05, SHAPE).astype(np.float32)


def inputs(seed: int, relu: bool) -> Floats:
    """[samples, channels, taps]. Behind a Relu, half of a value's variance before it is its channel's: neighbouring pixels are alike."""
    rng = np.random.default_rng((seed, 1))
    _, channels, *taps = SHAPE
    own = rng.normal(size=(SAMPLES, channels, np.prod(taps)))
    if relu:
        own = np.maximum(own + rng.normal(size=(SAMPLES, channels, 1)), 0)
    return own.reshape(SAMPLES, -1).astype(np.float32)


@cache
def lost(bits: int, mode: str, seed: int, relu: bool) -> float:
    """Mean squared error at the outputs."""
    w = weights(seed)
    change = squant.quantize(w, bits, mode).real - w
    return float(np.square(inputs(seed, relu) @ change.reshape(len(w), -1).T).mean())


def saved(lab: Lab, bits: int, mode: str, relu: bool) -> float:
    """By rounding to nearest, stage E."""
    return float(np.mean([lost(bits, mode, s, relu) / lost(bits, "e", s, relu) for s in SEEDS]))


def savings() -> Iterator[Claim]:
    """After a Relu less is lost; around zero more."""
    for (bits, mode), theirs in AFTER_RELU.items():
        yield Claim(
            f"SQ1.relu.{bits}.{mode}", f"{bits} bits, stages {mode.upper()} by E: squared error at the outputs, inputs from a Relu", (theirs, theirs),
            "derived", 0.15, partial(saved, bits=bits, mode=mode, relu=True),
            f"{OTHER}; how alike its inputs were within a channel is not known, ours: half; {OURS}", "", swept=False,
        )  # fmt: skip
    for bits, pair in AROUND_ZERO.items():
        yield Claim(
            f"SQ1.signed.{bits}", f"{bits} bits, stages EKC by E: squared error at the outputs, inputs around zero", pair, "derived", 0.02,
            partial(saved, bits=bits, mode="ekc", relu=False), f"{OTHER}: it costs where nothing has a mean; {OURS}", "", swept=False,
        )  # fmt: skip


# --- SQ2

BOUNDS = {
    ("e", "element"): 0.5, ("ek", "element"): 1.0, ("ek", "kernel"): 0.5,
    ("ekc", "element"): 1.0, ("ekc", "kernel"): 1.0, ("ekc", "channel"): 0.5,
}  # fmt: skip
"""Stages and what is summed → the most that may be left, in units of the grid."""
AXES: dict[str, tuple[int, ...]] = {"element": (), "kernel": (2,), "channel": (1, 2)}


def most_left(lab: Lab, mode: str, summed: str) -> float:
    """The largest sum of rounding errors, 4 bits."""
    found = 0.0
    for seed in SEEDS:
        x, _ = squant.asymmetric(weights(seed), 4)
        errors = squant.flip(x, *squant.bounds(4), mode) - x.astype(np.float64)
        found = max(found, float(np.abs(errors.sum(axis=AXES[summed])).max()))
    return found


def left() -> Iterator[Claim]:
    """Of rounding errors."""
    for (mode, summed), bound in BOUNDS.items():
        yield Claim(
            f"SQ2.{mode}.{summed}", f"stages {mode.upper()}, 4 bits: largest error summed over a {summed}", (0.0, bound), "derived", 1e-5,
            partial(most_left, mode=mode, summed=summed), f"the constraint that flips keep; {OURS}", "", swept=False,
        )  # fmt: skip


# --- SQ3


def seconds(lab: Lab) -> float:
    """To quantize all weights of ResNet-18 to 4 bits; the fastest of three times."""
    rng = np.random.default_rng(0)
    shapes = [
        (s[2], s[1]) if len(s) == 3 else (s[5], s[4], s[2], s[3])
        for s in DATA["networks"]["resnet18"]["layers"]
    ]
    every = [rng.normal(0, 0.05, s).astype(np.float32) for s in shapes]

    def once() -> float:
        start = time.perf_counter()
        for w in every:
            squant.quantize(w, 4)
        return time.perf_counter() - start

    return min(once() for _ in range(3))


def duration() -> Iterator[Claim]:
    """Of ResNet-18."""
    yield Claim(
        "SQ3.resnet18", "seconds to quantize ResNet-18's 21 layers to 4 bits on the machine that writes this", (0.0, 1.0), "input", 0.0, seconds,
        "a budget of ours for two cores; the authors publish 0.084 s on an A100; ours: shapes of theirs, random weights", "", swept=False,
    )  # fmt: skip
