"""One operand, element by element: arithmetic, special functions, tests, conversion."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from ..ir import DTYPES, NAMES, Array, Type, op, require
from .elementwise import Example, Rng, draw, floating, unary
from .lowering import TVM_DTYPES, const, dtype_of, is_float, te
from .numeric import FLOATS, round_to_odd_f32
from .shapes import INTEGERS, NUMBERS, SIGNED, of_kind


@op
def Identity(x: Type) -> Type:
    """The operand itself."""
    return x


unary(Identity, lambda x: x, lambda R, x: x, dtypes="f32 f16 i64 bool")


@op
def Abs(x: Type) -> Type:
    """Magnitude."""
    of_kind("Abs", NUMBERS, x)
    return x


unary(Abs, np.abs, lambda R, x: R.op.abs(x), dtypes="f32 f16 f64 i32 i64")


@op
def Neg(x: Type) -> Type:
    """Negation; the least integer stays as it is."""
    of_kind("Neg", SIGNED, x)
    return x


unary(Neg, np.negative, lambda R, x: R.op.negative(x), dtypes="f32 f16 f64 i32 i64")


@op
def Sign(x: Type) -> Type:
    """-1, 0 or 1; NaN of NaN."""
    of_kind("Sign", NUMBERS, x)
    return x


def _sign(R: Any, x: Any) -> Any:
    zero, one = const(R, 0, x), const(R, 1, x)
    neither = R.op.where(R.op.isnan(x), x, zero) if is_float(x) else zero
    signed = not str(dtype_of(x)).startswith("uint")
    below = R.op.where(R.op.less(x, zero), const(R, -1, x), neither) if signed else neither
    return R.op.where(R.op.greater(x, zero), one, below)


unary(Sign, np.sign, _sign, dtypes="f32 f16 f64 i32 u8")


@op
def Floor(x: Type) -> Type:
    """Largest integer not above x."""
    return floating("Floor", x)


unary(Floor, np.floor, lambda R, x: R.op.floor(x), dtypes="f32 f16 f64")


@op
def Ceil(x: Type) -> Type:
    """Smallest integer not below x."""
    return floating("Ceil", x)


unary(Ceil, np.ceil, lambda R, x: R.op.ceil(x), dtypes="f32 f16 f64")


@op
def Round(x: Type) -> Type:
    """Nearest integer, ties to even."""
    return floating("Round", x)


Round.reference(lambda x: np.rint(x))
Round.relax(lambda R, x: R.op.round(x))


@Round.example
def _(rng: Rng) -> Iterator[Example]:
    ties = np.arange(-3.5, 4, 0.5)
    for d in ("f32", "f16", "f64"):
        yield [np.concatenate([ties, rng.uniform(-9, 9, 9)]).astype(DTYPES[d])], {}


@op
def Exp(x: Type) -> Type:
    """e to the x."""
    return floating("Exp", x)


unary(Exp, np.exp, lambda R, x: R.op.exp(x), dtypes="f32 f16 f64")


@op
def Log(x: Type) -> Type:
    """Natural logarithm."""
    return floating("Log", x)


unary(Log, np.log, lambda R, x: R.op.log(x), low=0.01, high=9, dtypes="f32 f16 f64")


@op
def Sqrt(x: Type) -> Type:
    """Square root, correctly rounded."""
    return floating("Sqrt", x)


unary(Sqrt, np.sqrt, lambda R, x: R.op.sqrt(x), low=0, high=9, dtypes="f32 f16 f64")


@op
def Reciprocal(x: Type) -> Type:
    """1/x, correctly rounded."""
    return floating("Reciprocal", x)


unary(
    Reciprocal,
    lambda x: 1 / x,
    lambda R, x: R.op.divide(const(R, 1, x), x),
    low=0.1,
    dtypes="f32 f16 f64",
)


@op
def Sin(x: Type) -> Type:
    """Sine of x in radians."""
    return floating("Sin", x)


unary(Sin, np.sin, lambda R, x: R.op.sin(x), dtypes="f32 f16 f64")


@op
def Cos(x: Type) -> Type:
    """Cosine of x in radians."""
    return floating("Cos", x)


unary(Cos, np.cos, lambda R, x: R.op.cos(x), dtypes="f32 f16 f64")


@op
def Tan(x: Type) -> Type:
    """Tangent of x in radians."""
    return floating("Tan", x)


unary(Tan, np.tan, lambda R, x: R.op.divide(R.op.sin(x), R.op.cos(x)), low=-1.4, high=1.4)


@op
def Erf(x: Type) -> Type:
    """Error function."""
    return floating("Erf", x)


def erf(x: Array) -> Array:
    """Error function in float64, from the C library through `math`."""
    y: Array = np.vectorize(math.erf, otypes=[np.float64])(x)
    return y


unary(Erf, erf, lambda R, x: R.op.erf(x))


@op
def Not(x: Type) -> Type:
    """Logical negation."""
    of_kind("Not", {"bool"}, x)
    return x


unary(Not, np.logical_not, lambda R, x: R.op.logical_not(x), dtypes="bool")


@op
def BitwiseNot(x: Type) -> Type:
    """Every bit inverted."""
    of_kind("BitwiseNot", INTEGERS, x)
    return x


unary(BitwiseNot, np.invert, lambda R, x: R.op.bitwise_not(x), dtypes="i32 u8 i64")


@op
def IsNaN(x: Type) -> Type:
    """Whether x is not a number."""
    return Type("bool", floating("IsNaN", x).shape)


def _specials(rng: Rng) -> Iterator[Example]:
    for d in ("f32", "f64"):
        x = draw(rng, (3, 4), d)
        x[0] = [np.nan, np.inf, -np.inf, 0]
        yield [x], {}


IsNaN.reference(lambda x: np.isnan(x))
IsNaN.relax(lambda R, x: R.op.isnan(x))  # TVM simplifies x != x to false
IsNaN.example(_specials)


@op
def IsInf(x: Type, *, detect_negative: int = 1, detect_positive: int = 1) -> Type:
    """Whether x is an infinity of a sign that is asked for."""
    return Type("bool", floating("IsInf", x).shape)


@IsInf.reference
def _(x: Array, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    return (np.isposinf(x) & bool(detect_positive)) | (np.isneginf(x) & bool(detect_negative))


@IsInf.relax
def _(R: Any, x: Any, detect_negative: int = 1, detect_positive: int = 1) -> Any:
    infinities = [-math.inf] * detect_negative + [math.inf] * detect_positive
    tests = [R.op.equal(x, const(R, v, x)) for v in infinities]
    if not tests:
        return R.op.not_equal(x, x) if not is_float(x) else R.op.less(x, const(R, -math.inf, x))
    return tests[0] if len(tests) == 1 else R.op.logical_or(*tests)


@IsInf.example
def _(rng: Rng) -> Iterator[Example]:
    yield from _specials(rng)
    operands, _ = next(_specials(rng))
    yield operands, {"detect_negative": 0}
    yield operands, {"detect_positive": 0}
    yield operands, {"detect_negative": 0, "detect_positive": 0}


@op
def Clip(x: Type, *, min: float = -math.inf, max: float = math.inf) -> Type:
    """min(max(x, min), max): the upper bound wins. Infinite bounds of an integer operand are none."""
    of_kind("Clip", NUMBERS, x)
    return x


def clip_bounds(dtype: str, min: float, max: float) -> tuple[float, float]:
    """The bounds as values of the dtype: rounded for floats, clamped to the type's range for integers."""
    if dtype in FLOATS:
        return float(DTYPES[dtype](min)), float(DTYPES[dtype](max))
    info = np.iinfo(DTYPES[dtype])
    low, high = (_clamp(v, info.min, info.max) for v in (min, max))
    return low, high


def _clamp(v: float, low: int, high: int) -> int:
    """v as an integer of low … high."""
    return low if v <= low else high if v >= high else int(v)


@Clip.reference
def _(x: Array, min: float = -math.inf, max: float = math.inf) -> Array:
    low, high = clip_bounds(NAMES[x.dtype], min, max)
    y: Array = np.minimum(np.maximum(x, x.dtype.type(low)), x.dtype.type(high))
    return y


@Clip.relax
def _(R: Any, x: Any, min: float = -math.inf, max: float = math.inf) -> Any:
    d = {v: k for k, v in TVM_DTYPES.items()}[dtype_of(x)]
    low, high = clip_bounds(d, min, max)
    if min > -math.inf:
        x = R.op.maximum(x, R.const(low, TVM_DTYPES[d]))
    return R.op.minimum(x, R.const(high, TVM_DTYPES[d])) if max < math.inf else x


@Clip.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (3, 5), "f32", -9, 9)], {"min": 0.0, "max": 6.0}
    yield [draw(rng, (3, 5), "f16", -9, 9)], {"min": -1.1}
    yield [draw(rng, (3, 5), "f64", -9, 9)], {"max": 0.5}
    yield [draw(rng, (3, 5), "i64", -9, 9)], {"min": -2.0, "max": 3.0}
    yield [draw(rng, (3, 5), "f32", -9, 9)], {"min": 2.0, "max": -2.0}
    yield [draw(rng, (3, 5), "i32", -9, 9)], {}


@op
def Cast(x: Type, *, to: str) -> Type:
    """Convert to dtype `to`.

    Float to float rounds once to nearest even. Float to integer truncates, saturates at the type's ends and takes NaN to 0
    (ONNX leaves these open; this is what the machine's CVT does). Integer to integer wraps. Anything but zero is true.
    """
    require(to in DTYPES, f"Cast: no dtype {to!r}", f"one of {' '.join(DTYPES)}")
    return Type(to, x.shape)


@Cast.reference
def cast(x: Array, to: str) -> Array:
    """Convert an array as the op Cast does."""
    target = np.dtype(DTYPES[to])
    with np.errstate(all="ignore"):
        if x.dtype == np.float64 and target == np.dtype(ml_dtypes.bfloat16):
            return round_to_odd_f32(x).astype(target)
        if NAMES[x.dtype] in FLOATS and to in INTEGERS:
            return _saturate(x.astype(np.float64), target)
        return x.astype(target)


def _saturate(x: Array, target: np.dtype[Any]) -> Array:
    info = np.iinfo(target)
    whole = np.trunc(np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf))
    inside = (whole > float(info.min)) & (whole < float(info.max))
    y = np.where(inside, whole, 0).astype(target)
    y[whole >= float(info.max)] = info.max
    y[whole <= float(info.min)] = info.min
    return y


@Cast.relax
def _(R: Any, x: Any, to: str) -> Any:
    if to == "bool":
        return R.op.not_equal(x, const(R, 0, x))
    return R.op.astype(x, TVM_DTYPES[to])


@Cast.example
def _(rng: Rng) -> Iterator[Example]:
    pairs = "f32>f16 f16>f32 f32>bf16 bf16>f32 f64>f32 f32>f64 f32>i32 f32>i64 i64>f32 i64>i32 i32>i8 u8>f32 f32>bool bool>f32 bool>i64"
    for pair in pairs.split():
        a, b = pair.split(">")
        yield [draw(rng, (3, 4), a, -100, 100)], {"to": b}


@op
def BitCast(x: Type, *, to: str) -> Type:
    """The same bits as another dtype of the same size."""
    require(to in DTYPES, f"BitCast: no dtype {to!r}", f"one of {' '.join(DTYPES)}")
    size = np.dtype(DTYPES[to]).itemsize
    require(size == np.dtype(DTYPES[x.dtype]).itemsize, f"BitCast: {x} has not the size of {to}")
    return Type(to, x.shape)


@BitCast.reference
def _(x: Array, to: str) -> Array:
    bits: Array = np.ascontiguousarray(x).view(DTYPES[to])
    return bits.reshape(x.shape)


@BitCast.relax
def _(R: Any, x: Any, to: str) -> Any:
    if "bool" in (to, dtype_of(x)):
        return R.op.astype(x, TVM_DTYPES[to]) if to != "bool" else R.op.not_equal(x, const(R, 0, x))

    def bits(t: Any) -> Any:
        from tvm import te as tensors
        from tvm import tirx

        return tensors.compute(t.shape, lambda *at: tirx.reinterpret(TVM_DTYPES[to], t(*at)))

    return te(R, bits, x)


@BitCast.example
def _(rng: Rng) -> Iterator[Example]:
    pairs = "f32>i32 i32>f32 f64>u64 i64>f64 i8>u8 u16>i16 u32>i32 f16>u16 bf16>i16"
    for pair in pairs.split():
        a, b = pair.split(">")
        yield [draw(rng, (3, 4), a, -100 if a[0] != "u" else 0, 100)], {"to": b}
    yield [draw(rng, (3, 4), "bool")], {"to": "u8"}


@op
def Asin(x: Type) -> Type:
    """Angle in radians whose sine is x."""
    return floating("Asin", x)


@op
def Acos(x: Type) -> Type:
    """Angle in radians whose cosine is x."""
    return floating("Acos", x)


@op
def Atan(x: Type) -> Type:
    """Angle in radians whose tangent is x."""
    return floating("Atan", x)


@op
def Sinh(x: Type) -> Type:
    """Hyperbolic sine."""
    return floating("Sinh", x)


@op
def Cosh(x: Type) -> Type:
    """Hyperbolic cosine."""
    return floating("Cosh", x)


@op
def Asinh(x: Type) -> Type:
    """Inverse hyperbolic sine."""
    return floating("Asinh", x)


@op
def Acosh(x: Type) -> Type:
    """Inverse hyperbolic cosine."""
    return floating("Acosh", x)


@op
def Atanh(x: Type) -> Type:
    """Inverse hyperbolic tangent."""
    return floating("Atanh", x)


unary(Asin, np.arcsin, lambda R, x: R.op.asin(x), low=-1, high=1)
unary(Acos, np.arccos, lambda R, x: R.op.acos(x), low=-1, high=1)
unary(Atan, np.arctan, lambda R, x: R.op.atan(x))
unary(Sinh, np.sinh, lambda R, x: R.op.sinh(x))
unary(Cosh, np.cosh, lambda R, x: R.op.cosh(x))
unary(Asinh, np.arcsinh, lambda R, x: R.op.asinh(x))
unary(Acosh, np.arccosh, lambda R, x: R.op.acosh(x), low=1, high=9)
unary(Atanh, np.arctanh, lambda R, x: R.op.atanh(x), low=-0.95, high=0.95)
