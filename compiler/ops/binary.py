"""Two or more operands with numpy broadcasting: arithmetic, comparison, logic, bits, selection."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np

from ..ir import DTYPES, Array, Type, op, require
from .elementwise import Example, Rng, binary, binary_type, draw
from .lowering import const, dtype_of, emit, is_float, wide
from .numeric import FLOATS, rounded
from .shapes import INTEGERS, NUMBERS, broadcast, of_kind, same_dtype


@op
def Add(a: Type, b: Type) -> Type:
    """a + b; integers wrap."""
    of_kind("Add", NUMBERS, a, b)
    return binary_type("Add", a, b)


binary(Add, np.add, lambda R, a, b: R.op.add(a, b))


@op
def Sub(a: Type, b: Type) -> Type:
    """a - b; integers wrap."""
    of_kind("Sub", NUMBERS, a, b)
    return binary_type("Sub", a, b)


binary(Sub, np.subtract, lambda R, a, b: R.op.subtract(a, b))


@op
def Mul(a: Type, b: Type) -> Type:
    """a · b; integers wrap."""
    of_kind("Mul", NUMBERS, a, b)
    return binary_type("Mul", a, b)


binary(Mul, np.multiply, lambda R, a, b: R.op.multiply(a, b))


@op
def Div(a: Type, b: Type) -> Type:
    """a / b; integers truncate toward zero as in C, and n/0 is all ones as on the machine."""
    of_kind("Div", NUMBERS, a, b)
    return binary_type("Div", a, b)


def _truncated(a: Array, b: Array) -> tuple[Array, Array]:
    """Quotient and remainder toward zero of integers; n/0 gives -1 (all ones) and n."""
    zero = b == 0
    safe = np.where(zero, np.ones_like(b), b)
    q = np.floor_divide(a, safe)
    r = a - q * safe
    short = (r != 0) & ((r < 0) != (a < 0))
    q, r = q + short.astype(a.dtype), np.where(short, r - safe, r)
    return np.where(zero, np.array(-1).astype(a.dtype), q), np.where(zero, a, r)


def _div(a: Array, b: Array) -> Array:
    return np.asarray(a / b) if a.dtype == np.float64 else _truncated(a, b)[0]


Div.reference(rounded(_div))


@Div.relax
@wide
def _(R: Any, a: Any, b: Any) -> Any:
    """TVM's integer divide truncates."""
    return R.op.divide(a, b)


def _nonzero(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    b = draw(rng, shape, dtype, -5, 5)
    b[np.abs(b) < 1] = 2
    return b


@Div.example
def _(rng: Rng) -> Iterator[Example]:
    for d in ("f32", "f16", "f64", "i32", "i64", "u8"):
        yield [draw(rng, (2, 3, 4), d, -100, 100), _nonzero(rng, (3, 1), d)], {}


@op
def Pow(a: Type, b: Type) -> Type:
    """a to the b, of a's dtype; an integer base is computed in float64 and truncated."""
    of_kind("Pow", NUMBERS, a, b)
    return Type(a.dtype, broadcast("Pow", a, b))


@Pow.reference
@rounded
def _(a: Array, b: Array) -> Array:
    y = np.power(a.astype(np.float64), b.astype(np.float64))
    return y.astype(a.dtype)


@Pow.relax
@wide
def _(R: Any, a: Any, b: Any) -> Any:
    if is_float(a):
        return R.op.power(a, b if dtype_of(b) == dtype_of(a) else R.op.astype(b, dtype_of(a)))
    y = R.op.power(*(R.op.astype(v, "float64") for v in (a, b)))
    return R.op.astype(R.op.round(y), dtype_of(a))


@Pow.example
def _(rng: Rng) -> Iterator[Example]:
    for d in ("f32", "f16", "f64"):
        yield [draw(rng, (2, 3), d, 0.1, 4), draw(rng, (2, 3), d)], {}
    yield [draw(rng, (2, 3), "f32"), np.array(2, np.float32)], {}
    yield [draw(rng, (2, 3), "f32"), np.array([[3], [2]], np.int64)], {}
    yield [draw(rng, (2, 3), "i64", -9, 9), np.array(2, np.int64)], {}


@op
def Mod(a: Type, b: Type, *, fmod: int = 0) -> Type:
    """Remainder: fmod=0 has the sign of b, fmod=1 the sign of a as C's fmod."""
    of_kind("Mod", NUMBERS, a, b)
    return binary_type("Mod", a, b)


@Mod.reference
@rounded
def _(a: Array, b: Array, fmod: int = 0) -> Array:
    r = np.asarray(np.fmod(a, b)) if a.dtype == np.float64 else _truncated(a, b)[1]
    opposite = (r != 0) & (b != 0) & ((r < 0) != (b < 0))
    return r if fmod else np.where(opposite, r + b, r)


@Mod.relax
@wide
def _(R: Any, a: Any, b: Any, fmod: int = 0) -> Any:
    if fmod:
        return R.op.mod(a, b)
    if not is_float(a):
        return R.op.floor_mod(a, b)
    r, zero = emit(R, R.op.mod(a, b)), R.const(0.0, dtype_of(a))
    below = (emit(R, R.op.less(v, zero)) for v in (r, b))
    opposite = emit(R, R.op.logical_and(R.op.not_equal(r, zero), R.op.logical_xor(*below)))
    return R.op.where(opposite, R.op.add(r, b), r)


@Mod.example
def _(rng: Rng) -> Iterator[Example]:
    for d in ("i32", "i64", "u8", "f32", "f64"):
        yield [draw(rng, (3, 4), d, -50, 50), _nonzero(rng, (3, 1), d)], {}
    for d in ("i32", "f32", "f64"):
        yield [draw(rng, (3, 4), d, -50, 50), _nonzero(rng, (3, 4), d)], {"fmod": 1}


def _variadic_type(name: str, xs: tuple[Type, ...]) -> Type:
    require(len(xs) >= 1, f"{name}: needs at least one operand")
    of_kind(name, NUMBERS, *xs)
    return Type(same_dtype(name, *xs), broadcast(name, *xs))


def _variadic_examples(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, s, "f32") for s in ((2, 3, 4), (3, 1), (4,))], {}
    yield [draw(rng, (2, 3), "f16") for _ in range(2)], {}
    yield [draw(rng, (2, 3), "f64")], {}


@op
def Min(*xs: Type) -> Type:
    """Least of the operands; NaN if one is."""
    return _variadic_type("Min", xs)


@op
def Max(*xs: Type) -> Type:
    """Greatest of the operands; NaN if one is."""
    return _variadic_type("Max", xs)


@op
def Sum(*xs: Type) -> Type:
    """Sum of the operands, left to right, rounded to f32 at each step."""
    of_kind("Sum", FLOATS, *xs)
    return _variadic_type("Sum", xs)


@op
def Mean(*xs: Type) -> Type:
    """Mean of the operands: their sum, divided by their number."""
    of_kind("Mean", FLOATS, *xs)
    return _variadic_type("Mean", xs)


def _total(*xs: Array) -> Array:
    step = np.float64 if xs[0].dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        return np.asarray(reduce(np.add, (x.astype(step) for x in xs)))


Min.reference(rounded(lambda *xs: reduce(np.minimum, xs)))
Max.reference(rounded(lambda *xs: reduce(np.maximum, xs)))
Sum.reference(lambda *xs: _total(*xs).astype(xs[0].dtype))
Mean.reference(lambda *xs: (_total(*xs) / _total(*xs).dtype.type(len(xs))).astype(xs[0].dtype))
Min.relax(wide(lambda R, *xs: reduce(R.op.minimum, xs)))
Max.relax(wide(lambda R, *xs: reduce(R.op.maximum, xs)))
Sum.relax(wide(lambda R, *xs: reduce(R.op.add, xs)))
Mean.relax(wide(lambda R, *xs: R.op.divide(reduce(R.op.add, xs), const(R, len(xs), xs[0]))))
for _o in (Min, Max, Sum, Mean):
    _o.example(_variadic_examples)


@op
def And(a: Type, b: Type) -> Type:
    """Both."""
    of_kind("And", {"bool"}, a, b)
    return binary_type("And", a, b)


@op
def Or(a: Type, b: Type) -> Type:
    """Either or both."""
    of_kind("Or", {"bool"}, a, b)
    return binary_type("Or", a, b)


@op
def Xor(a: Type, b: Type) -> Type:
    """One but not both."""
    of_kind("Xor", {"bool"}, a, b)
    return binary_type("Xor", a, b)


binary(And, np.logical_and, lambda R, a, b: R.op.logical_and(a, b), dtypes="bool bool")
binary(Or, np.logical_or, lambda R, a, b: R.op.logical_or(a, b), dtypes="bool bool")
binary(Xor, np.logical_xor, lambda R, a, b: R.op.logical_xor(a, b), dtypes="bool bool")


@op
def Equal(a: Type, b: Type) -> Type:
    """a = b; a NaN equals nothing."""
    return binary_type("Equal", a, b, "bool")


@op
def Less(a: Type, b: Type) -> Type:
    """a < b."""
    of_kind("Less", NUMBERS, a, b)
    return binary_type("Less", a, b, "bool")


@op
def LessOrEqual(a: Type, b: Type) -> Type:
    """a <= b."""
    of_kind("LessOrEqual", NUMBERS, a, b)
    return binary_type("LessOrEqual", a, b, "bool")


@op
def Greater(a: Type, b: Type) -> Type:
    """a > b."""
    of_kind("Greater", NUMBERS, a, b)
    return binary_type("Greater", a, b, "bool")


@op
def GreaterOrEqual(a: Type, b: Type) -> Type:
    """a >= b."""
    of_kind("GreaterOrEqual", NUMBERS, a, b)
    return binary_type("GreaterOrEqual", a, b, "bool")


def _equal(R: Any, a: Any, b: Any) -> Any:
    """TVM's LLVM backend compares i1 as if it were a float: booleans go as integers."""
    if dtype_of(a) == "bool":
        a, b = R.op.astype(a, "int32"), R.op.astype(b, "int32")
    return R.op.equal(a, b)


binary(Equal, np.equal, _equal, dtypes="i64 i32 bool f32")
binary(Less, np.less, lambda R, a, b: R.op.less(a, b), dtypes="f32 i64 i32 f64")
binary(LessOrEqual, np.less_equal, lambda R, a, b: R.op.less_equal(a, b), dtypes="i64 f32 i32")
binary(Greater, np.greater, lambda R, a, b: R.op.greater(a, b), dtypes="f32 i64 i32 f64")
binary(
    GreaterOrEqual, np.greater_equal, lambda R, a, b: R.op.greater_equal(a, b), dtypes="i64 f32 i32"
)


@op
def BitwiseAnd(a: Type, b: Type) -> Type:
    """Bits set in both."""
    of_kind("BitwiseAnd", INTEGERS, a, b)
    return binary_type("BitwiseAnd", a, b)


@op
def BitwiseOr(a: Type, b: Type) -> Type:
    """Bits set in either."""
    of_kind("BitwiseOr", INTEGERS, a, b)
    return binary_type("BitwiseOr", a, b)


@op
def BitwiseXor(a: Type, b: Type) -> Type:
    """Bits set in one."""
    of_kind("BitwiseXor", INTEGERS, a, b)
    return binary_type("BitwiseXor", a, b)


binary(BitwiseAnd, np.bitwise_and, lambda R, a, b: R.op.bitwise_and(a, b), -99, 99, "i32 u8 i64")
binary(BitwiseOr, np.bitwise_or, lambda R, a, b: R.op.bitwise_or(a, b), -99, 99, "i32 u8 i64")
binary(BitwiseXor, np.bitwise_xor, lambda R, a, b: R.op.bitwise_xor(a, b), -99, 99, "i32 u8 i64")


@op
def BitShift(a: Type, b: Type, *, direction: str) -> Type:
    """a shifted by b bits, LEFT or RIGHT; b negative, or at or above the width, leaves the sign alone: 0, or -1 right of a negative a."""
    of_kind("BitShift", INTEGERS, a, b)
    require(
        direction in ("LEFT", "RIGHT"), f"BitShift: direction {direction!r}, expected LEFT or RIGHT"
    )
    return binary_type("BitShift", a, b)


@BitShift.reference
def _(a: Array, b: Array, direction: str) -> Array:
    width = a.dtype.itemsize * 8
    inside = (b >= 0) & (b < width)
    shift = np.left_shift if direction == "LEFT" else np.right_shift
    sign = np.where((a < 0) & (direction == "RIGHT"), -1, 0)
    return np.where(inside, shift(a, np.where(inside, b, 0)), sign).astype(a.dtype)


@BitShift.relax
def _(R: Any, a: Any, b: Any, direction: str) -> Any:
    d = dtype_of(a)
    signed = not d.startswith("uint")
    width, left = int(d.removeprefix("u").removeprefix("int")), direction == "LEFT"
    most, zero = R.const(width - 1, d), R.const(0, d)
    beyond = emit(R, R.op.greater(b, most))
    if signed:  # a right shift of all bits but one is the sign everywhere
        beyond = emit(R, R.op.logical_or(beyond, R.op.less(b, zero)))
    safe = emit(R, R.op.where(beyond, most, b))
    y = emit(R, R.op.left_shift(a, safe) if left else R.op.right_shift(a, safe))
    return y if signed and not left else R.op.where(beyond, zero, y)


@BitShift.example
def _(rng: Rng) -> Iterator[Example]:
    for d, direction in (("u32", "LEFT"), ("u32", "RIGHT"), ("u8", "LEFT"), ("u64", "RIGHT")):
        yield [draw(rng, (3, 4), d, 0, 200), draw(rng, (4,), d, 0, 7)], {"direction": direction}
    for d in ("i8", "i16", "i32", "i64"):
        for direction in ("LEFT", "RIGHT"):
            yield (
                [draw(rng, (3, 4), d, -99, 99), draw(rng, (3, 4), d, -3, 70)],
                {"direction": direction},
            )


@op
def Where(condition: Type, a: Type, b: Type) -> Type:
    """a where the condition holds, else b."""
    of_kind("Where", {"bool"}, condition)
    return Type(same_dtype("Where", a, b), broadcast("Where", condition, a, b))


Where.reference(lambda condition, a, b: np.where(condition, a, b))
Where.relax(lambda R, condition, a, b: R.op.where(condition, a, b))


@Where.example
def _(rng: Rng) -> Iterator[Example]:
    for d in ("f32", "f16", "i64", "bool"):
        yield [draw(rng, (2, 3, 4), "bool"), draw(rng, (3, 1), d), draw(rng, (2, 1, 4), d)], {}
    yield [draw(rng, (4,), "bool"), np.array(1, DTYPES["f32"]), draw(rng, (3, 4), "f32")], {}
