"""ANT: scales and types against trying everything, the authors' choices, and what grids lose on known distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from knapper.compiler.quantization import ant, search
from knapper.isa.formats import FORMATS

Array = NDArray[Any]


@given(
    seed=st.integers(0, 1 << 32),
    rows=st.integers(1, 4),
    n=st.integers(1, 40),
    name=st.sampled_from(["i3", "i4", "u4", "i8", "flint4", "uflint4", "pot4", "upot3", "flint6"]),
    bounds=st.sampled_from([search.ANT, search.FREE, search.EXACT]),
)
def test_the_search_finds_what_trying_finds(seed: int, rows: int, n: int, name: str, bounds: search.Bounds) -> None:  # fmt: skip
    x = np.random.default_rng(seed).standard_t(3, (rows, n))
    f = FORMATS[name]
    scales, errors = search.best(x, f.values, bounds)
    for row, scale, error in zip(x, scales, errors, strict=True):
        tried = bounds.fractions * np.abs(row).max() / f.values[-1]
        losses = [np.square(f.round(row / s, "up") * s - row).mean() for s in tried]
        assert error == pytest.approx(min(losses), rel=1e-6, abs=1e-12)
        k = int(np.abs(tried - scale).argmin())
        assert losses[k] == pytest.approx(error, rel=1e-6, abs=1e-12)


def test_a_row_of_zeros_has_a_scale() -> None:
    scale, error = search.best(np.zeros((2, 5)), FORMATS["i4"].values)
    assert (scale.tolist(), error.tolist()) == ([1, 1], [0, 0])


def test_types_by_distribution() -> None:
    rng = np.random.default_rng(1)
    drawn = {
        "gauss": rng.standard_normal((16, 256)),
        "uniform": rng.uniform(-1, 1, (16, 256)),
        "laplace": rng.laplace(size=(16, 256)),
        "t3": rng.standard_t(3, (16, 256)),
    }
    weights = {n: ant.select(x).format.name for n, x in drawn.items()}
    assert weights == {"gauss": "i4", "uniform": "i4", "laplace": "flint4", "t3": "flint4"}
    rng = np.random.default_rng(1)
    behind = {n: ant.activation(np.maximum(x, 0)).format.name for n, x in drawn.items() if n != "laplace"}  # fmt: skip
    assert behind == {"gauss": "u4", "uniform": "u4", "t3": "uflint4"}


def test_signed_flint_by_hand() -> None:
    w = np.array([[.9, -.35, .12, .05, -1.6, .61, 0, -.049, .72, -1.25, .449, 2.0]])  # fmt: skip
    q = ant.on_grid(w, FORMATS["flint4"], np.array([0.1]), 0)
    expected = [[.8, -.3, .1, .1, -1.6, .6, 0, 0, .8, -1.6, .4, 1.6]]  # fmt: skip
    assert q.real == pytest.approx(np.array(expected))
    assert q.values.dtype == np.int8
    assert q.values.tolist() == [[8, -3, 1, 1, -16, 6, 0, 0, 8, -16, 4, 16]]


GAUSS = {  # bits and type → mean squared error in variances, greatest magnitude in deviations
    "i4": (0.01186, 2.375), "flint4": (0.01495, 5.03), "pot4": (0.03775, None),
    "i3": (0.04064, None), "flint3": (0.04756, None), "pot3": (0.04756, None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), GAUSS.items(), ids=GAUSS)
def test_least_errors_on_a_gaussian(name: str, expected: tuple[float, float | None]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 400_000))
    values = FORMATS[name].values
    scale, error = search.best(x, values, search.Bounds(20, 150, 0.25))
    assert error[0] == pytest.approx(expected[0], rel=0.01)
    if expected[1]:
        # integers keep one more below zero, which the scale does not count
        assert scale[0] * values[-1] == pytest.approx(expected[1], rel=0.02)


def test_the_lower_bound_decides_for_flint_where_maxima_are_far_out() -> None:
    rng = np.random.default_rng(0)
    short, long = rng.standard_normal((200, 4608)), rng.standard_normal((14, 65536))
    assert [ant.select(x).format.name for x in (short, long)] == ["i4", "flint4"]
    assert ant.select(long, bounds=search.FREE).format.name == "i4"
    errors = {n: search.best(long, FORMATS[n].values, search.ANT)[1].mean() for n in ("i4", "flint4")}  # fmt: skip
    assert errors == pytest.approx({"i4": 0.0190, "flint4": 0.0152}, rel=0.05)


def test_wide_layers_are_integers_and_searched_above_95() -> None:
    x = np.random.default_rng(0).standard_t(3, (4, 500))
    chosen = ant.select(x, 8)
    assert chosen.format.name == "i8"
    assert (chosen.scale * 127 >= 0.95 * np.abs(x).max(1) - 1e-9).all()


def test_weights_along_another_axis() -> None:
    w = np.random.default_rng(0).standard_t(3, (40, 6)).astype(np.float32)
    a, b = ant.quantize(w, 4, axis=1), ant.quantize(w.T, 4, axis=0)
    assert (a.values == b.values.T).all()
    assert (a.scale == b.scale).all()
    assert a.format == b.format


def test_layers_get_eight_bits_by_what_they_lose() -> None:
    assert ant.promoted([1, 3, 2, 0], [0, 0, 2, 1]) == [2, 1, 0, 3]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 16),
    rows=st.integers(1, 6),
    n=st.integers(1, 300),
    name=st.sampled_from(["i2", "i3", "i4", "i5", "flint4", "pot4", "uflint4"]),
    kind=st.sampled_from(["normal", "laplace", "few", "zeros"]),
)
def test_scales_that_a_histogram_rules_out_are_not_the_best(
    seed: int, rows: int, n: int, name: str, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    x = {
        "normal": lambda: rng.normal(size=(rows, n)),
        "laplace": lambda: rng.laplace(size=(rows, n)),
        "few": lambda: rng.choice([-1.0, 0.25, 0.5], (rows, n)),
        "zeros": lambda: np.zeros((rows, n)),
    }[kind]()
    x /= np.maximum(np.abs(x).max(1, keepdims=True), 1e-9)
    values = FORMATS[name].values
    scales = search.FREE.fractions / values[-1]
    every = search._losses(x, values, scales)
    k, loss = search._among_few(x, values, scales)
    np.testing.assert_allclose(loss, every.min(1), 1e-9, 1e-15)
    np.testing.assert_allclose(every[np.arange(rows), k], every.min(1), 1e-9, 1e-15)
