"""SQuant: the examples worked by hand, the bounds that its stages promise, and what cancelling errors is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from knapper.compiler.quantization import squant
from knapper.compiler.quantization.quantized import from_rows, rows

Array = NDArray[Any]
A = [[5.68, -1.8, 3.65, 1.17], [-2.63, 5.41, 4.73, -1.74], [6.06, -3.53, 3.91, 2.32]]
B = [[5.37, -5.48, 5.42, -5.94], [-5.28, -4.79, -0.29, -1.6], [-5.08, 1.55, 0.15, 1.52]]
C = [
    [0.30, 1.40, -2.45, 3.20, -0.40, 0.10, 2.35, -1.30, 0.45],
    [1.60, -0.55, 0.70, 2.90, -3.80, 0.62, -1.75, 4.55, 0.20],
]
WORKED = {
    "A-e": (A, "e", [[6, -2, 4, 1], [-3, 5, 5, -2], [6, -4, 4, 2]], [0.30, -0.77, -0.76]),
    "A-ek": (A, "ek", [[6, -2, 4, 1], [-3, 6, 5, -2], [6, -3, 4, 2]], [0.30, 0.23, 0.24]),
    "A-ekc": (A, "ekc", [[6, -2, 4, 1], [-3, 5, 5, -2], [6, -3, 4, 2]], [0.30, -0.77, 0.24]),
    "B-e": (B, "e", [[5, -5, 5, -6], [-5, -5, 0, -2], [-5, 2, 0, 2]], [-0.37, -0.04, 0.86]),
    "B-ek": (B, "ek", [[5, -5, 5, -6], [-5, -5, 0, -2], [-5, 2, 0, 1]], [-0.37, -0.04, -0.14]),
    "B-ekc": (B, "ekc", [[5, -5, 5, -6], [-5, -5, 0, -2], [-5, 2, 0, 2]], [-0.37, -0.04, 0.86]),
    "C-e": (C, "e", [[0, 1, -2, 3, 0, 0, 2, -1, 0], [2, -1, 1, 3, -4, 1, -2, 5, 0]], [-0.65, 0.53]),
    "C-ek": (C, "ek", [[0, 1, -2, 3, 0, 0, 2, -1, 1], [2, -1, 1, 3, -4, 1, -2, 4, 0]], [0.35, -0.47]),
    "C-ekc": (C, "ekc", [[0, 1, -2, 3, 0, 0, 2, -1, 1], [2, -1, 1, 3, -4, 1, -2, 4, 0]], [0.35, -0.47]),
}  # fmt: skip


@pytest.mark.parametrize(("x", "mode", "q", "sums"), WORKED.values(), ids=WORKED)
def test_worked_by_hand(x: Any, mode: str, q: Any, sums: Any) -> None:
    made = squant.flip(np.array([x]), -8, 7, mode)[0]
    assert made.tolist() == q
    assert (made - np.array(x)).sum(1) == pytest.approx(sums)


def test_from_weights_to_integers() -> None:
    w = np.array([[.12, -.07, .33, -.21, .05, .18, -.30, .02], [-.4, .25, .1, .6, .15, -.05, .35, -.2]], np.float32)  # fmt: skip
    w = w.reshape(2, 2, 2, 2)
    e, ekc = (squant.quantize(w, 4, mode) for mode in ("e", "ekc"))
    assert 1 / e.scale == pytest.approx([23.8095, 15.0], rel=1e-5)
    assert e.zero_point.tolist() == [-1, -2]
    assert e.values.reshape(2, 8).tolist() == [
        [2, -3, 7, -6, 0, 3, -8, -1],
        [-8, 2, 0, 7, 0, -3, 3, -5],
    ]
    assert ekc.values.reshape(2, 8).tolist() == [[2, -3, 7, -6, 0, 3, -8, 0], [-8, 2, -1, 7, 1, -3, 3, -5]]  # fmt: skip
    assert e.real == pytest.approx(w, abs=0.5 / 15 + 1e-6)


weights = arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 12)),
    elements=st.floats(-7.5, 6.5).map(lambda v: round(v, 3)),
)


@given(x=weights)
def test_bounds(x: Array) -> None:
    """Elements less than 1 off, kernels at most 1, channels at most 1/2; after K alone, kernels at most 1/2."""
    e = squant.flip(x, -8, 7, "ekc") - x
    assert np.abs(e).max() < 1
    if x.shape[2] > 1:
        assert np.abs(e.sum(2)).max() <= 1 + 1e-9
        k = squant.flip(x, -8, 7, "ek") - x
        assert np.abs(k.sum(2)).max() <= 0.5 + 1e-9
    assert np.abs((squant.flip(x, -8, 7, "ec") - x).sum((1, 2))).max() <= 0.5 + 1e-9


@given(seed=st.integers(0, 1 << 32), taps=st.sampled_from([1, 4, 9, 25]), bits=st.integers(3, 8))
def test_bounds_of_random_weights(seed: int, taps: int, bits: int) -> None:
    x, _ = squant.asymmetric(np.random.default_rng(seed).normal(size=(4, 24, taps)), bits)
    low, high = squant.bounds(bits)
    x = np.clip(x, low, high)
    e = squant.flip(x, low, high) - x
    assert np.abs(e).max() < 1
    assert taps == 1 or np.abs(e.sum(2)).max() <= 1 + 1e-9
    assert np.abs(e.sum((1, 2))).max() <= 0.5 + 1e-9


@given(x=weights)
def test_the_stages_as_loops(x: Array) -> None:
    for mode in squant.MODES:
        assert squant.flip(x, -8, 7, mode).tolist() == [looped(m, -8, 7, mode) for m in x]


def looped(x: Array, low: int, high: int, mode: str) -> list[list[int]]:
    """One output channel, in the words of the description."""
    q = np.rint(x)
    e = q - x
    candidates = []
    for n, kernel in enumerate(x):
        if "k" not in mode or x.shape[1] == 1:
            for t, v in enumerate(kernel):
                way = 1 if e[n, t] < 0 and v < high else -1 if e[n, t] > 0 and v > low else 0
                candidates.append((n, t, way, abs(e[n, t])))
            continue
        s = e[n].sum()
        d, k = (1 if s < 0 else -1), round(abs(s))
        free = [t for t in range(len(kernel)) if e[n, t] * d < 0 and (kernel[t] < high if d > 0 else kernel[t] > low)]  # fmt: skip
        free.sort(key=lambda t: -abs(e[n, t]))
        for t in free[:k]:
            q[n, t] += d
            e[n, t] += d
        if k >= abs(s) and k > 0:
            candidates.append((n, free[k - 1], -d, abs(e[n, free[k - 1]])))
        elif k < abs(s) and k < len(free):
            candidates.append((n, free[k], d, abs(e[n, free[k]])))
    if "c" in mode:
        s = e.sum()
        d = 1 if s < 0 else -1
        meant = sorted((c for c in candidates if c[2] == d), key=lambda c: -c[3])
        for n, t, _, _ in meant[: round(abs(s))]:
            q[n, t] += d
    return np.clip(q, low, high).astype(int).tolist()  # type: ignore[no-any-return]


def output_errors(seed: int, bits: int) -> Array:
    """Mean squared output errors of the four modes, the first one 1; inputs behind a Relu, correlated within a channel."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.05, (64, 32, 3, 3))
    x = np.maximum(0.6 * rng.normal(size=(2000, 32, 9)) + 0.8 * rng.normal(size=(2000, 32, 1)), 0)
    off = [(squant.quantize(w, bits, m).real - w).reshape(64, -1) for m in squant.MODES]
    errors = np.array([np.square(x.reshape(2000, -1) @ d.T).mean() for d in off])
    return errors / errors[0]


@pytest.mark.parametrize("bits", [3, 4])
def test_what_it_is_worth_behind_a_relu(bits: int) -> None:
    e, ek, ec, ekc = np.mean([output_errors(seed, bits) for seed in range(3)], 0)
    assert ekc < ek < ec < e
    assert ekc == pytest.approx(0.42, abs=0.05)


def test_rows_and_back() -> None:
    w = np.arange(24.0).reshape(2, 3, 4)
    for axis in range(3):
        assert from_rows(rows(w, axis), w.shape, axis).tolist() == w.tolist()
    assert rows(np.ones((5, 7)), 1).shape == (7, 5, 1)
    assert rows(np.ones((8, 4, 3, 3)), 0).shape == (8, 4, 9)


def test_weights_of_positive_range_keep_a_zero_point_that_fits() -> None:
    w = np.random.default_rng(0).uniform(5, 5.1, (3, 40)).astype(np.float32)
    assert abs(squant.quantize(w, 4).zero_point).max() > 100
    q = squant.quantize(w, 4, zero=True)
    assert q.zero_point.tolist() == [-8, -8, -8]
    assert q.real == pytest.approx(w, abs=float(q.scale.max()))


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="none of e, ek, ec, ekc"):
        squant.flip(np.zeros((1, 1, 1)), -8, 7, "x")
