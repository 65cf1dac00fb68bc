"""Metrics by what a type can mean: bits of integers, distances of floats, NaNs that are the same or are not."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapper.frontends.compare import difference, differences, failures, ulps
from knapper.isa.errors import KnapperError


def test_integers_are_equal_or_not() -> None:
    a = np.array([1, 2, 3, 2**62 + 1])
    assert difference("y", a, a).fits(None, True)
    other = difference("y", a, np.array([1, 2, 3, 2**62]))  # as float64 the two would be the same
    assert (other.equal, other.fits(1e9, False), str(other)) == (
        0.75,
        False,
        "25.00% of its elements differ",
    )


def test_distances_of_floats() -> None:
    r = np.array([1.0, -2.0, 0.5, 4.0], np.float32)
    y = r + np.array([0, 0, 0, 2**-21], np.float32)
    d = difference("y", y, r)
    assert (d.equal, d.ulp, d.max_abs, d.max_rel) == (0.75, 1.0, 2**-21, 2**-23)
    assert math.isclose(d.sqnr, 10 * math.log10(float(np.sum(r**2)) / 2**-42))
    assert difference("y", y, r, stored=np.float16).ulp == 2**-13
    same = difference("y", r, r)
    assert (same.sqnr, same.cosine, same.ulp) == (math.inf, 1.0, 0.0)
    assert same.to_dict()["sqnr"] is None
    json.loads(json.dumps(same.to_dict()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
@given(bits=st.integers(0, 0x7BFE))
def test_neighbours_are_one_ulp_apart(dtype: type, bits: int) -> None:
    word = np.uint32 if dtype is np.float32 else np.uint16
    pair = np.array([bits, bits + 1], word).view(dtype).astype(np.float64)
    up = ulps(pair[1:], pair[:1], dtype)[0]
    assert up == 1


def test_a_nan_is_a_nan() -> None:
    nan, inf = np.nan, np.inf
    r = np.array([nan, inf, 1, 2], np.float32)
    assert difference("y", r, r.copy()).fits(None, True)
    for y in ([1, inf, 1, 2], [nan, -inf, 1, 2], [nan, inf, nan, 2], [nan, inf, inf, 2]):
        d = difference("y", np.array(y, np.float32), r)
        assert (d.strays, d.fits(1e9, False)) == (1, False), y
        assert "NaN or Inf on one side" in str(d)


def test_nothing_compared_is_no_success() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert not difference("y", empty, empty).fits(None, False)
    for outputs in ({}, {"y": empty}):
        with pytest.raises(KnapperError, match="E706: nothing was compared"):
            differences(outputs, outputs)
    with pytest.raises(KnapperError, match="E706: output 'y' was not computed"):
        differences({}, {"y": empty})


def test_an_output_that_is_too_far_off_is_told() -> None:
    y, r = np.array([1.0, 2.0], np.float32), np.array([1.0, 2.001], np.float32)
    found = differences({"y": y}, {"y": r})
    assert not list(failures(found, None, False, "net"))
    (problem,) = failures(found, None, True, "net")
    assert "net: output 'y' differs from onnxruntime's: max |y-r| / max |r| is 0.0005" in str(
        problem
    )
