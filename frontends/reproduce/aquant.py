"""AQuant (arXiv 2208.11945), borders of rounding that depend on what is rounded: rows AQ1 … AQ3.

    AQ1   the border of one product is the best there is      AQ3   labels that networks get right, and errors of their outputs
    AQ2   what learned borders save of a layer's error

Of the paper the abstracts were read, and there is no public code. Its number is ResNet-18's accuracy on ImageNet, which is not here: it is
published, and no row of ours is beside it. The rows below compare with another implementation of the same rules. Nothing executes on a
target: borders are learned when compiling.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import numpy as np

from knapper.compiler.quantization import squant
from knapper.compiler.quantization.aquant import Grid, Options, Task, learn
from knapper.compiler.quantization.search import best
from knapper.isa.formats import FORMATS

from . import accuracy
from .claims import Claim, Lab

LEARNED = ((3, 3), (2, 4))
"""Bits at which networks learn."""
OTHER = "another implementation of the same rules"


def rows() -> Iterator[Claim]:
    """All of them."""
    yield from single()
    yield from layers()
    yield from accuracy.rows("AQ3", accuracy.LEARNING, LEARNED)
    yield from accuracy.errors("AQ3", accuracy.LEARNING, LEARNED)
    yield from accuracy.emulations("AQ3", 3, 3, "aquant")


# --- AQ1

PAIRS, POINTS = 256, 800


def optimal(lab: Lab) -> float:
    """The share of products w·x for which the border ½ + (wq - w)/wq · x picks the integer q with the least |w·x - wq·q|."""
    rng = np.random.default_rng(0)
    w = rng.uniform(0.2, 1, PAIRS)
    wq = w * rng.uniform(0.7, 1.3, PAIRS)
    x = rng.uniform(0, 12, (POINTS, PAIRS))
    border = np.stack([np.full(PAIRS, 0.5), (wq - w) / wq, np.zeros(PAIRS)])
    chosen = Grid(1.0, 0, 0, 255).round(x.astype(np.float32)[..., None], border)[..., 0]
    integers = np.arange(32)
    errors = np.abs((w * x)[..., None] - wq[:, None] * integers)
    return float((chosen == errors.argmin(axis=2)).mean())


def single() -> Iterator[Claim]:
    """Of one weight."""
    yield Claim(
        "AQ1", f"share of {PAIRS * POINTS:,} products for which the border picks the best integer", (1.0, 1.0), "derived", 1e-4, optimal,
        f"arithmetic, and {OTHER}: 100 %; ours: compared with every integer; the rest are ties but for float32", "", swept=False,
    )  # fmt: skip


# --- AQ2

SIDE, SAMPLES, SEEDS = 64, 2048, (0, 1)
DEGREES = ("constant", "linear", "quadratic")
SAVED = {
    (2, 2, "quadratic"): (0.80, 0.84), (2, 4, "constant"): (0.74, 0.76), (2, 4, "linear"): (0.65, 0.68),
    (2, 4, "quadratic"): (0.65, 0.68), (3, 3, "quadratic"): (0.90, 0.95),
}  # fmt: skip
"""Bits of weights and activations, border a channel → held-out error by that of rounding to the nearest."""


@cache
def ratio(weights: int, activations: int, degree: str, seed: int) -> float:
    """Of a product of a matrix with what a Relu leaves; asymmetric weights, the activation's scale that loses least."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, SIDE**-0.5, (SIDE, SIDE)).astype(np.float32)
    x = np.maximum(rng.normal(size=(SAMPLES, SIDE)), 0).astype(np.float32)
    (scale,), _ = best(x.reshape(1, -1), FORMATS[f"u{activations}"].values)
    rounded = squant.quantize(w, weights, "e").real
    task = Task(x[:, :, None], x @ w.T, rounded[:, :, None])
    grid = Grid(float(scale), 0, 0, (1 << activations) - 1)
    return learn([task], grid, Options(degree=DEGREES.index(degree))).ratio


def saved(lab: Lab, weights: int, activations: int, degree: str) -> float:
    """Mean of the seeds."""
    return float(np.mean([ratio(weights, activations, degree, s) for s in SEEDS]))


def layers() -> Iterator[Claim]:
    """Of one product each."""
    for (weights, activations, degree), pair in SAVED.items():
        yield Claim(
            f"AQ2.w{weights}a{activations}.{degree}",
            f"W{weights}A{activations}, {degree} border a channel: held-out squared error by that of rounding to the nearest", pair, "derived", 0.1,
            partial(saved, weights=weights, activations=activations, degree=degree),
            f"{OTHER}, two or three seeds; ours: {SIDE}×{SIDE}, {SAMPLES:,} samples behind a Relu, a quarter of them held out, two seeds", "",
            swept=False,
        )  # fmt: skip
