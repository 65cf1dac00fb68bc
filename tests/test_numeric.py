"""The numeric contract of the references: one rounding a step, in k order, checked against rationals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapper.compiler import ops  # noqa: F401  declares the ops
from knapper.compiler.ir import DTYPES, OPS
from knapper.compiler.ops import numeric

F32 = st.floats(width=32) | st.floats(-(2.0**-120), 2.0**-120, width=32)
"""Floats of every kind, subnormal and huge ones often."""


def nearest(exact: Fraction, dtype: Any) -> Any:
    """A rational rounded to nearest even by comparison with the two floats around it."""
    if dtype == np.float64:
        return np.float64(float(exact))
    near = np.float32(float(exact))  # double rounding is off by at most one place
    with np.errstate(over="ignore"):
        around = [
            np.nextafter(near, np.float32(-np.inf)),
            near,
            np.nextafter(near, np.float32(np.inf)),
        ]
    even = [v for v in around if np.isfinite(v)]
    return min(even, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.int32)) & 1))


@given(F32, F32, F32)
def test_fma32_rounds_once(a: float, b: float, c: float) -> None:
    x, y, z = (np.array([v], np.float32) for v in (a, b, c))
    got = numeric.fma32(x, y, z)[0]
    if not np.isfinite([a, b, c]).all():
        with np.errstate(all="ignore"):
            np.testing.assert_equal(got, np.float32(np.float64(a) * b + c))
        return
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if abs(exact) >= Fraction(
        2**128 - 2**103
    ):  # halfway between the largest float and the next binade
        assert got == np.copysign(np.inf, float(exact > 0) - 0.5)
    else:
        assert got == nearest(exact, np.float32)


@pytest.mark.parametrize(
    ("a", "b", "c", "want"),
    [
        (1 + 2**-12, 1 + 2**-12, -1, 2**-11 + 2**-24),  # the product's last bit survives
        (
            2**-24 * (1 + 2**-23),
            1 - 2**-23,
            1 + 2**-23,
            1 + 2**-23,
        ),  # 2^-70 below a tie that would go up
        (
            -(2**-25) * (1 + 2**-23),
            1 - 2**-23,
            1 - 2**-24,
            1 - 2**-24,
        ),  # 2^-71 above a tie that would go down
        (2.0**-100, 2.0**-49, 0, 2**-149),  # the least subnormal
        (2.0**-100, 2.0**-50, 0, 0),  # half of it: to even, zero
        (2.0**-100, 2.0**-50, 2.0**-149, 2**-148),  # one and a half: to even, two
        (2.0**127, 2, -(2.0**127), 2.0**127),  # the product alone would overflow
        (2.0**127, 2, 0, np.inf),
    ],
)
def test_fma32_at_the_edges(a: float, b: float, c: float, want: float) -> None:
    assert numeric.fma32(*(np.array([v], np.float32) for v in (a, b, c)))[0] == want


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1e10, 1e10),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_fma64_rounds_once(a: float, b: float, c: float) -> None:
    got = numeric.fma64(*(np.array([v]) for v in (a, b, c)))[0]
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        assert got == float(exact)
    except OverflowError:
        assert np.isinf(got)


@given(st.floats(-1e5, 1e5))
def test_narrowing_f64_to_bf16_rounds_once(x: float) -> None:
    got = float(OPS["Cast"].facets["reference"](np.array(x), to="bf16"))
    step = Fraction(2) ** (max(int(np.frexp(x)[1]), -125) - 8)
    want = round(Fraction(x) / step) * step  # Python rounds ties to even
    assert got == float(want)


def exact_product(a: Any, b: Any, acc: Any) -> Any:
    """The chain acc = fma(a_k, b_k, acc), one element at a time in rationals."""
    for x, y in zip(a.ravel(), b.ravel(), strict=True):
        acc = nearest(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(acc)), np.float32)
    return acc


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_matmul_is_the_fma_chain(dtype: str) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(s).astype(DTYPES[dtype]) for s in ((3, 40), (40, 2)))
    got = OPS["MatMul"].facets["reference"](a, b, out="f32")
    want = [[exact_product(a[i], b[:, j], np.float32(0)) for j in range(2)] for i in range(3)]
    np.testing.assert_array_equal(got, np.array(want))


def test_bf16_products_beyond_f32_are_fused() -> None:
    """2^100 · 2^100 overflows f32 alone; with the addend it does not have to."""
    a = np.array([[2.0**64, 1]], ml_dtypes.bfloat16)
    b = np.array([[2.0**63], [1]], ml_dtypes.bfloat16)
    assert OPS["MatMul"].facets["reference"](a, b, out="f32") == 2.0**127
    a, b = (
        np.array([[2.0**127, 2.0**127]], ml_dtypes.bfloat16),
        np.array([[-1], [2]], ml_dtypes.bfloat16),
    )
    assert OPS["MatMul"].facets["reference"](a, b, out="f32") == 2.0**127


def test_convolution_walks_tap_rows_then_columns_then_channels() -> None:
    rng = np.random.default_rng(2)
    x, w = (
        rng.standard_normal((1, 4, 5, 3)).astype(np.float32),
        rng.standard_normal((3, 2, 3, 2)).astype(np.float32),
    )
    bias = np.array([0.5, -0.25], np.float32)
    got = OPS["Conv"].facets["reference"](x, w, bias, layout="NHWC")
    want = np.zeros_like(got)
    for row, column, o in np.ndindex(got.shape[1:]):
        window = x[0, row : row + 3, column : column + 2, :]
        want[0, row, column, o] = exact_product(window, w[..., o], np.float32(0)) + bias[o]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_layouts_give_the_same_bits(group: int) -> None:
    rng = np.random.default_rng(3)
    x, w = (
        rng.standard_normal((2, 4, 6, 5)).astype(np.float32),
        rng.standard_normal((8, 4 // group, 3, 3)).astype(np.float32),
    )
    attrs = {"strides": (2, 1), "pads": (1, 0, 1, 2), "group": group}
    conv = OPS["Conv"].facets["reference"]
    last = conv(x.transpose(0, 2, 3, 1), w.transpose(2, 3, 1, 0), layout="NHWC", **attrs)
    np.testing.assert_array_equal(conv(x, w, **attrs), last.transpose(0, 3, 1, 2))


def test_integer_arithmetic_wraps_and_truncates() -> None:
    i32 = np.iinfo(np.int32)
    big = np.array([i32.max, -7, 7, -7, 5], np.int32)
    by = np.array([1, 2, -2, -2, 0], np.int32)
    np.testing.assert_array_equal(OPS["Add"].facets["reference"](big, by)[:1], [i32.min])
    np.testing.assert_array_equal(OPS["Div"].facets["reference"](big, by), [i32.max, -3, -3, 3, -1])
    np.testing.assert_array_equal(
        OPS["Mod"].facets["reference"](big, by, fmod=1), [0, -1, 1, -1, 5]
    )
    np.testing.assert_array_equal(OPS["Mod"].facets["reference"](big, by), [0, 1, -1, -1, 5])


def test_cast_to_integers_saturates_and_takes_nan_to_zero() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3e9, -3e9, 2.9, -2.9], np.float32)
    i32 = np.iinfo(np.int32)
    want = [0, i32.max, i32.min, i32.max, i32.min, 2, -2]
    np.testing.assert_array_equal(OPS["Cast"].facets["reference"](x, to="i32"), want)
    assert OPS["Cast"].facets["reference"](np.array(1e30), to="i64") == 2**63 - 1
