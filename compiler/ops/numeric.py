"""Arithmetic that the references stand on: fused multiply-add with one rounding, and the rounding rules of stored types.

The numeric contract in two sentences. A matrix product is a chain acc = fma(a_k, b_k, acc) in k order, one rounding to
nearest even a step, in f32 for f16, bf16 and f32 operands, in f64 for f64, exact and wrapping for integers. Every other
float function is computed in float64 and rounded to f32, then to the stored type: for add, subtract, multiply, divide and
square root that is exactly the correctly rounded f32 operation (53 >= 2*24 + 2 bits, Figueroa 1995), for the rest it is the
true value within half an ulp and a bit, on every host.

numpy has no fma, so it is built from exact pieces:

    fma32   product of two f32 is exact in f64; TwoSum gives sum and error; round-to-odd keeps the error in the last bit;
            the cast to f32 then rounds once (Boldo and Melquiond 2008)
    fma64   the same idea one level up, with Dekker's exact product; operands near the ends of the exponent range,
            where the pieces are not exact, go one by one through `fractions.Fraction`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import wraps
from typing import Any

import ml_dtypes
import numpy as np

from ..ir import DTYPES, NAMES, Array

BF16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = frozenset({"f16", "bf16", "f32", "f64"})


def is_float(a: Array) -> bool:
    """Whether the array's element type is one of f16, bf16, f32, f64."""
    return NAMES[a.dtype] in FLOATS


def narrow(a: Array, dtype: np.dtype[Any]) -> Array:
    """Round float64 to f32 and that to `dtype`; f64 stays as it is."""
    with np.errstate(all="ignore"):
        return a if dtype == np.float64 else a.astype(np.float32).astype(dtype)


def rounded(f: Callable[..., Any]) -> Callable[..., Any]:
    """Reference in float64: widens float operands, rounds float64 results to the first float operand's type.

    >>> float(rounded(np.exp)(np.array(1, np.float16)))
    2.71875
    """

    @wraps(f)
    def reference(*operands: Array | None, **attrs: Any) -> Any:
        floats = [a.dtype for a in operands if a is not None and is_float(a)]
        wide = [a.astype(np.float64) if a is not None and is_float(a) else a for a in operands]
        with np.errstate(all="ignore"):
            result = f(*wide, **attrs)
        stored = floats[0] if floats else np.dtype(np.float64)
        if isinstance(result, tuple):
            return tuple(_stored(r, stored) for r in result)
        return _stored(result, stored)

    return reference


def _stored(result: Any, dtype: np.dtype[Any]) -> Array:
    a = np.asarray(result)
    return narrow(a, dtype) if a.dtype == np.float64 else a


def _round_to_odd(s: Array, e: Array) -> Array:
    """The neighbour of s + e whose last bit is odd, s = fl(s + e) in f64; e = 0 or NaN leaves s."""
    bits = s.view(np.int64)
    inexact = (e != 0) & (e == e) & ((bits & 1) == 0)
    outward = np.signbit(e) == np.signbit(s)
    odd: Array = (bits + np.where(inexact, np.where(outward, 1, -1), 0)).view(np.float64)
    return odd


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """s = fl(a + b) and the exact error e = a + b - s (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """Elementwise a*b + c of f32 arrays with a single rounding to f32, subnormals kept; broadcasts.

    The f64 sum rounded again is right unless it lies halfway between two f32: those few take the exact way.

    >>> x = np.float32(1 + 2**-12)
    >>> float(fma32(x, x, np.float32(-1))) - 2**-11     # the last bit of the product survives
    5.960464477539063e-08
    """
    with np.errstate(all="ignore"):
        product = np.asarray(np.multiply(a, b, dtype=np.float64))
        s = np.asarray(product + c)
        result = np.asarray(s.astype(np.float32))
        halfway = (s.view(np.int64) & 0x1FFFFFFF) == 0x10000000
        tiny = np.abs(result) <= np.float32(
            2.0**-126
        )  # subnormals have other halves; zeros are exact
        if tiny.any():
            halfway |= tiny & (s != 0)
        if halfway.any():
            terms = (np.broadcast_to(t, s.shape)[halfway].astype(np.float64) for t in (product, c))
            result[halfway] = _round_to_odd(*_two_sum(*terms)).astype(np.float32)
    return result


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """p = fl(a * b) and the exact error, by Dekker's splitting; exact while nothing over- or underflows."""

    def split(x: Array) -> tuple[Array, Array]:
        t = x * 134217729.0  # 2**27 + 1
        high = t - (t - x)
        return high, x - high

    p = a * b
    (ah, al), (bh, bl) = split(a), split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _exact_fma64(a: float, b: float, c: float) -> float:
    if not np.isfinite([a, b, c]).all() or a == 0 or b == 0:
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c  # the sign of an exact zero is that of the rounded sum
    sign = -1.0 if exact < 0 else 1.0
    try:
        return sign * abs(float(exact))
    except OverflowError:
        return sign * float("inf")


def fma64(a: Array, b: Array, c: Array) -> Array:
    """Elementwise a*b + c of f64 arrays with a single rounding; broadcasts.

    Operands outside 2**-400 … 2**400 take the slow exact path one element at a time.
    """
    a, b, c = np.broadcast_arrays(a, b, c)
    with np.errstate(all="ignore"):
        high, low = _two_product(a, b)
        t, e1 = _two_sum(c, low)
        s, e2 = _two_sum(high, t)
        result = np.asarray(s + _round_to_odd(*_two_sum(e2, e1)))
    for i in map(tuple, np.argwhere(~(_moderate(a) & _moderate(b) & _moderate(c)))):
        result[i] = _exact_fma64(float(a[i]), float(b[i]), float(c[i]))
    return result


def _moderate(x: Array) -> Array:
    size = np.abs(x)
    moderate: Array = (x == 0) | ((size > 2.0**-400) & (size < 2.0**400))
    return moderate


def _multiply_add(a: Array, b: Array, c: Array) -> Array:
    return np.asarray(c + a * b)


def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type a product of `dtype` operands accumulates in: f32, f64, or an integer of at least 32 bits."""
    name = NAMES[dtype]
    if name in FLOATS:
        return np.dtype(np.float64 if name == "f64" else np.float32)
    return np.dtype(np.int32) if dtype.itemsize < 4 else dtype


def _product_is_exact(a: Array, b: Array) -> bool:
    """Whether every product of these operands is exact in f32, so that multiply then add is a fused one.

    f16: always (22 bits, exponents far inside). bf16: 16 bits, but its exponents reach as far as f32's, so the range decides.
    """
    if a.dtype == np.float16:
        return True
    if a.dtype != BF16:
        return False
    low, high = 1.0, 1.0
    for x in (a, b):
        size = np.abs(x.astype(np.float64))
        high *= float(size.max(initial=0))
        low *= float(size.min(initial=np.inf, where=size > 0))
    return low >= 2.0**-126 and high < 2.0**127


def accumulate(
    shape: tuple[int, ...], a: Array, b: Array, pairs: Callable[[Array, Array], Iterable[Any]]
) -> Array:
    """The fma chain: `pairs(a, b)` yields the k-th operands in k order, broadcastable to `shape`; gives the accumulator."""
    kind = accumulator(a.dtype)
    step = _multiply_add
    if kind == np.float64:
        step = fma64
    elif kind == np.float32 and not _product_is_exact(a, b):
        step = fma32
    acc = np.zeros(shape, kind)
    with np.errstate(all="ignore"):
        for x, y in pairs(a.astype(kind), b.astype(kind)):
            acc = step(x, y, acc)
    return acc


def finish(acc: Array, bias: Array | None, out: str, operand: np.dtype[Any]) -> Array:
    """Add the bias in the accumulator's type and round once to `out` ("": the operands' type; integers stay wide)."""
    with np.errstate(all="ignore"):
        if bias is not None:
            acc = acc + bias.astype(acc.dtype)
        return acc.astype(DTYPES[out] if out else operand)


def round_to_odd_f32(a: Array) -> Array:
    """f64 to f32 rounding to odd: rounding the result again to a narrower type rounds `a` once."""
    near = np.asarray(a, np.float32)
    error = np.asarray(a, np.float64) - near
    bits = near.view(np.int32)
    inexact = (error != 0) & np.isfinite(error) & ((bits & 1) == 0)
    outward = np.signbit(error) == np.signbit(near)
    odd: Array = (bits + np.where(inexact, np.where(outward, 1, -1), 0).astype(np.int32)).view(
        np.float32
    )
    return odd
