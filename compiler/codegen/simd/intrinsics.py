"""The one table intrinsic → instructions. Functions take the emitter and values of one float type, f32 or f64, and give a value.

f16 and bf16 go through f32. What the special-function unit has is one instruction, with the accuracy that the manual states; in f32 it is
what `codegen/scalar.py` makes of it, so that epilogues of matrix kernels have the same bits. The rest is composed in f64, where the
composition's error (a few units of 2⁻⁵²) vanishes when the result is rounded to f32:

    pow(x, y)    2^(y·log2|x|), with the sign of an odd y and the special cases of C; error below 1 ulp of f32 as long as
                 |y·log2 x| < 2¹⁰, which every finite result satisfies; y = 2 is x·x
    atan(x)      two halvings of the angle, then the series to x²¹
    log1p(x)     log(u)·x/(u − 1) with u = 1 + x
"""

from __future__ import annotations

import math
from collections.abc import Callable

from knapper.isa.instructions import (
    FADD,
    FDIV,
    FFMA,
    FLO,
    FMUL,
    FRND,
    FSETP,
    ISETP,
    ISUB,
    LOP,
    MOV,
    MUFU,
    POPC,
)
from knapper.isa.modifiers import Bits32, Cmp, Fn, IntType, Logic, Rounding

from ..scalar import SCALAR
from .values import FLOATS, HALVES, Emitter, Value, known, words

Lowering = Callable[..., Value]
INTRINSICS: dict[str, Lowering] = {}
"""Name in TIR → f(emitter, *values)."""

SIGN, REST = 0x80000000, 0x7FFFFFFF


def intrinsic(*names: str) -> Callable[[Lowering], Lowering]:
    """Enter a function under these names."""

    def enter(f: Lowering) -> Lowering:
        for name in names:
            INTRINSICS[name] = f
        return f

    return enter


def call(e: Emitter, name: str, dtype: str, args: list[Value]) -> Value:
    """A call's value; KeyError for a name that is not in the table."""
    f = INTRINSICS[name]
    if not any(a.dtype in HALVES for a in args):
        return f(e, *args)
    result = f(e, *(e.convert(a, "f32") for a in args))
    return e.convert(result, dtype)


# --- one instruction


def _unit(name: str, fn: Fn, scalar: str) -> None:
    def lower(e: Emitter, x: Value) -> Value:
        if x.dtype == "f32":
            return Value("f32", SCALAR[scalar](e, e.register(x)))
        return special(e, fn, x)

    INTRINSICS[name] = lower


for _name, _fn, _scalar in (
    ("exp", Fn.EXP, "Exp"), ("exp2", Fn.EX2, "Exp2"), ("log", Fn.LOG, "Log"), ("log2", Fn.LG2, "Log2"), ("sqrt", Fn.SQRT, "Sqrt"),
    ("rsqrt", Fn.RSQ, "Rsqrt"), ("sin", Fn.SIN, "Sin"), ("cos", Fn.COS, "Cos"), ("tanh", Fn.TANH, "Tanh"), ("erf", Fn.ERF, "Erf"),
):  # fmt: skip
    _unit(_name, _fn, _scalar)


def special(e: Emitter, fn: Fn, x: Value) -> Value:
    """fn(x) on the special-function unit."""
    d = e.new(x.dtype)
    e.emit(MUFU, fn, FLOATS[x.dtype], d, e.register(x))
    return Value(x.dtype, d)


def integral(e: Emitter, mode: Rounding, x: Value) -> Value:
    """x rounded to an integral value."""
    d = e.new(x.dtype)
    e.emit(FRND, mode, FLOATS[x.dtype], d, e.register(x))
    return Value(x.dtype, d)


INTRINSICS["floor"] = lambda e, x: integral(e, Rounding.RM, x)
INTRINSICS["ceil"] = lambda e, x: integral(e, Rounding.RP, x)
INTRINSICS["trunc"] = lambda e, x: integral(e, Rounding.RZ, x)
INTRINSICS["nearbyint"] = INTRINSICS["rint"] = lambda e, x: integral(e, Rounding.RN, x)


# --- arithmetic shorthands, in the type of the first operand


def add(e: Emitter, x: Value, y: Value | float) -> Value:
    """x + y."""
    return e.float_op(FADD, x.dtype, x, _constant(x, y))


def mul(e: Emitter, x: Value, y: Value | float) -> Value:
    """x · y."""
    return e.float_op(FMUL, x.dtype, x, _constant(x, y))


def div(e: Emitter, x: Value | float, y: Value) -> Value:
    """x / y."""
    return e.float_op(FDIV, y.dtype, _constant(y, x), y)


def fma(e: Emitter, x: Value, y: Value | float, z: Value | float) -> Value:
    """x·y + z with one rounding."""
    return e.float_op(FFMA, x.dtype, x, _constant(x, y), _constant(x, z))


def _constant(like: Value, x: Value | float) -> Value:
    return x if isinstance(x, Value) else known(like.dtype, x)


def test(e: Emitter, cmp: Cmp, x: Value, y: Value | float) -> Value:
    """Whether x cmp y."""
    p = e.pred()
    e.emit(FSETP, cmp, FLOATS[x.dtype], p, e.register(x), e.source(_constant(x, y)))
    return Value("bool", p)


def choose(e: Emitter, p: Value, x: Value | float, y: Value | float) -> Value:
    """x where p holds, else y; one of them is a value."""
    like = x if isinstance(x, Value) else y
    assert isinstance(like, Value)
    return e.select(p, _constant(like, x), _constant(like, y))


def magnitude(e: Emitter, x: Value) -> Value:
    """|x|."""
    return e.sign_bits(Logic.AND, x, REST)


def negative(e: Emitter, x: Value) -> Value:
    """−x."""
    return e.sign_bits(Logic.XOR, x, SIGN)


def with_sign(e: Emitter, x: Value, sign: Value) -> Value:
    """x, not negative, with the sign of another value."""
    source, target = e.register(sign), e.register(x)
    n = words(x.dtype)
    bit, d = e.reg(), e.reg(n)
    e.emit(LOP, Logic.AND, Bits32._32, bit, source[n - 1], SIGN)
    if n == 2:
        e.emit(MOV, d[0], target[0])
    e.emit(LOP, Logic.OR, Bits32._32, d[n - 1], target[n - 1], bit)
    return Value(x.dtype, d)


def in_f64(f: Lowering) -> Lowering:
    """Compute in f64, and round to f32 if that is what came in."""

    def lower(e: Emitter, *args: Value) -> Value:
        if args[0].dtype == "f64":
            return f(e, *args)
        return e.convert(f(e, *(e.convert(a, "f64") for a in args)), args[0].dtype)

    return lower


# --- composed


@intrinsic("fabs", "abs")
def _(e: Emitter, x: Value) -> Value:
    return magnitude(e, x)


@intrinsic("sigmoid")
def _(e: Emitter, x: Value) -> Value:
    if x.dtype == "f32":
        return Value("f32", SCALAR["Sigmoid"](e, e.register(x)))
    return div(e, 1.0, add(e, special(e, Fn.EXP, negative(e, x)), 1.0))


@intrinsic("tan")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    return div(e, special(e, Fn.SIN, x), special(e, Fn.COS, x))


@intrinsic("log10")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    return mul(e, special(e, Fn.LG2, x), math.log10(2))


@intrinsic("exp10")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    return special(e, Fn.EX2, mul(e, x, math.log2(10)))


@intrinsic("log1p")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    u = add(e, x, 1.0)
    exact = div(e, mul(e, special(e, Fn.LOG, u), x), add(e, u, -1.0))
    usual = e.logic(Logic.AND, test(e, Cmp.NE, u, 1.0), test(e, Cmp.LT, u, math.inf))
    return choose(e, usual, exact, choose(e, test(e, Cmp.EQ, u, 1.0), x, u))


@intrinsic("round")
def _(e: Emitter, x: Value) -> Value:
    """Ties away from zero: |x| and its whole part differ by exactly half, or not."""
    size = magnitude(e, x)
    whole = integral(e, Rounding.RZ, size)
    up = test(e, Cmp.GE, e.difference(size, whole), 0.5)
    return with_sign(e, choose(e, up, add(e, whole, 1.0), whole), x)


@intrinsic("copysign")
def _(e: Emitter, x: Value, sign: Value) -> Value:
    return with_sign(e, magnitude(e, x), sign)


@intrinsic("isnan")
def _(e: Emitter, x: Value) -> Value:
    return test(e, Cmp.NE, x, x)


@intrinsic("isinf")
def _(e: Emitter, x: Value) -> Value:
    return test(e, Cmp.EQ, magnitude(e, x), math.inf)


@intrinsic("isfinite")
def _(e: Emitter, x: Value) -> Value:
    return test(e, Cmp.LT, magnitude(e, x), math.inf)


@intrinsic("fma")
def _(e: Emitter, x: Value, y: Value, z: Value) -> Value:
    return fma(e, x, y, z)


SPAN = {"f32": 277, "f64": 2098}
"""Bits between the greatest finite number and the least, so in a quotient at most."""
STEP = 50
"""Bits of the quotient that one step of a long division takes: fewer than f64 has."""


@intrinsic("fmod", "truncmod")
def _(e: Emitter, x: Value, y: Value) -> Value:
    """x − trunc(x/y)·y, exactly, by long division in f64."""
    if x.dtype == "f64":
        return _remainder(e, x, y, SPAN["f64"])
    wide = _remainder(e, e.convert(x, "f64"), e.convert(y, "f64"), SPAN[x.dtype])
    return e.convert(wide, x.dtype)


def _remainder(e: Emitter, x: Value, y: Value, span: int) -> Value:
    """|x| less multiples of |y|·2^s, s falling; then what is no number, and the sign of x. x of an infinite y is x."""
    m, size = magnitude(e, y), magnitude(e, x)
    r = size
    for shift in range(span // STEP * STEP, -1, -STEP):
        r = _less_multiples(e, r, m, shift)
    finite = test(e, Cmp.LT, size, math.inf)
    infinite = choose(e, finite, size, choose(e, test(e, Cmp.EQ, size, math.inf), math.nan, size))
    r = choose(e, test(e, Cmp.EQ, m, math.inf), infinite, r)
    return choose(e, test(e, Cmp.NE, r, r), r, with_sign(e, magnitude(e, r), x))


def _less_multiples(e: Emitter, r: Value, m: Value, shift: int) -> Value:
    """r − trunc(r/d)·d with d = m·2^shift, for r < 2^STEP·d, exactly: it is a multiple of the last place of r or d, below 2d.

    The quotient may be off by one next to an integer; the remainder's sign or size tells. A d that overflows is above r.
    """
    d = scaled(e, m, shift)
    q = integral(e, Rounding.RZ, div(e, r, d))
    left = fma(e, negative(e, q), d, r)
    left = choose(e, test(e, Cmp.LT, left, 0.0), add(e, left, d), left)
    left = choose(e, test(e, Cmp.GE, left, d), e.difference(left, d), left)
    return choose(e, test(e, Cmp.EQ, d, math.inf), r, left)


def scaled(e: Emitter, x: Value, shift: int) -> Value:
    """x·2^shift, by factors that are numbers."""
    while shift > 0:
        x, shift = mul(e, x, 2.0 ** min(shift, 1000)), shift - 1000
    return x


@intrinsic("pow", "powf")
def _(e: Emitter, x: Value, y: Value) -> Value:
    if y == known(y.dtype, 2.0):
        return mul(e, x, x)
    if y == known(y.dtype, 1.0):
        return x
    return _power(e, x, y)


@in_f64
def _power(e: Emitter, x: Value, y: Value) -> Value:
    size = magnitude(e, x)
    result = special(e, Fn.EX2, mul(e, special(e, Fn.LG2, size), y))
    result = choose(e, test(e, Cmp.EQ, size, 1.0), 1.0, result)
    result = choose(e, _has_sign(e, x), _for_negative(e, size, y, result), result)
    return choose(
        e, e.logic(Logic.OR, test(e, Cmp.EQ, y, 0.0), test(e, Cmp.EQ, x, 1.0)), 1.0, result
    )


def _has_sign(e: Emitter, x: Value) -> Value:
    """Whether the sign bit of an f64 is set: x is below 0, or −0, whose powers by odd numbers are negative too."""
    p = e.pred()
    e.emit(ISETP, Cmp.LT, IntType.S32, p, e.register(x)[1], 0)
    return Value("bool", p)


def _for_negative(e: Emitter, size: Value, y: Value, result: Value) -> Value:
    """|x|^y for a negative x: negated for an odd y, NaN for one that is no integer (unless x is −0 or −infinity)."""
    half = mul(e, y, 0.5)
    integer = test(e, Cmp.EQ, integral(e, Rounding.RZ, y), y)
    even = test(e, Cmp.EQ, integral(e, Rounding.RZ, half), half)
    odd = e.logic(Logic.AND, integer, e.inverse(even))
    signed = choose(e, odd, negative(e, result), result)
    plain = e.logic(
        Logic.OR,
        integer,
        e.logic(Logic.OR, test(e, Cmp.EQ, size, 0.0), test(e, Cmp.EQ, size, math.inf)),
    )
    return choose(e, plain, signed, math.nan)


@intrinsic("sinh")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    """(e^x − e^−x)/2; by its series where that cancels."""
    wide = mul(e, e.difference(special(e, Fn.EXP, x), special(e, Fn.EXP, negative(e, x))), 0.5)
    return choose(
        e,
        test(e, Cmp.LT, magnitude(e, x), 0.3),
        _odd_series(e, x, [1 / math.factorial(n) for n in range(1, 16, 2)]),
        wide,
    )


@intrinsic("cosh")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    return mul(e, add(e, special(e, Fn.EXP, x), special(e, Fn.EXP, negative(e, x))), 0.5)


@intrinsic("atan")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    return _atan(e, x)


def _atan(e: Emitter, x: Value) -> Value:
    """Beyond 1 the reciprocal's complement; tan(a/2) = t/(1 + √(1 + t²)) twice; then the series, |t| ≤ 0.2."""
    size = magnitude(e, x)
    far = test(e, Cmp.GT, size, 1.0)
    t = choose(e, far, div(e, 1.0, size), size)
    for _ in range(2):
        t = div(e, t, add(e, special(e, Fn.SQRT, fma(e, t, t, 1.0)), 1.0))
    angle = mul(e, _odd_series(e, t, [(-1) ** n / (2 * n + 1) for n in range(11)]), 4.0)
    angle = choose(e, far, add(e, negative(e, angle), math.pi / 2), angle)
    return choose(e, test(e, Cmp.NE, x, x), x, with_sign(e, magnitude(e, angle), x))


def _odd_series(e: Emitter, x: Value, factors: list[float]) -> Value:
    """Σ factors[n]·x^(2n+1)."""
    square = mul(e, x, x)
    total = known(x.dtype, factors[-1])
    for c in reversed(factors[:-1]):
        total = fma(e, square, total, c)
    return mul(e, total, x)


@intrinsic("asin")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    return _asin(e, x)


def _asin(e: Emitter, x: Value) -> Value:
    """atan(x/√((1 − x)(1 + x)))."""
    rest = mul(e, add(e, x, 1.0), add(e, negative(e, x), 1.0))
    return _atan(e, div(e, x, special(e, Fn.SQRT, rest)))


@intrinsic("acos")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    """2·atan(√((1 − x)/(1 + x)))."""
    ratio = div(e, add(e, negative(e, x), 1.0), add(e, x, 1.0))
    return mul(e, _atan(e, special(e, Fn.SQRT, ratio)), 2.0)


@intrinsic("asinh")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    """log(|x| + √(x² + 1)) with the sign of x; by log1p's trick where |x| is small."""
    size = magnitude(e, x)
    root = special(e, Fn.SQRT, fma(e, x, x, 1.0))
    more = add(e, size, div(e, mul(e, x, x), add(e, root, 1.0)))
    small = INTRINSICS["log1p"](e, more)
    far = add(e, special(e, Fn.LOG, size), math.log(2))
    return with_sign(e, magnitude(e, choose(e, test(e, Cmp.GT, size, 1e100), far, small)), x)


@intrinsic("acosh")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    """log1p(t + √(2t + t²)) with t = x − 1; below x = 1 it is NaN, by the root or, where t² outweighs 2t, by a test."""
    t = add(e, x, -1.0)
    root = special(e, Fn.SQRT, mul(e, t, add(e, t, 2.0)))
    near = INTRINSICS["log1p"](e, add(e, t, root))
    far = add(e, special(e, Fn.LOG, x), math.log(2))
    y = choose(e, test(e, Cmp.GT, x, 1e100), far, near)
    return choose(e, test(e, Cmp.LT, x, 1.0), math.nan, y)


@intrinsic("atanh")
@in_f64
def _(e: Emitter, x: Value) -> Value:
    """log1p(2|x|/(1 − |x|))/2 with the sign of x."""
    size = magnitude(e, x)
    ratio = div(e, mul(e, size, 2.0), add(e, negative(e, size), 1.0))
    return with_sign(e, magnitude(e, mul(e, INTRINSICS["log1p"](e, ratio), 0.5)), x)


# --- bits


@intrinsic("popcount")
def _(e: Emitter, x: Value) -> Value:
    d = e.reg()
    e.emit(POPC, d, e.register(x))
    return Value(x.dtype, d)


@intrinsic("clz")
def _(e: Emitter, x: Value) -> Value:
    if words(x.dtype) == 1:
        d = e.reg()
        e.emit(FLO, d, e.register(x))
        return Value("i32", d)
    high, low, below = e.reg(), e.reg(), e.reg()
    source = e.register(x)
    e.emit(FLO, high, source[1])
    e.emit(FLO, low, source[0])
    e.emit(ISUB, IntType.U32, below, low, known("i32", -32).at)
    p = e.pred()

    e.emit(ISETP, Cmp.NE, IntType.U32, p, source[1], 0)
    return e.select(Value("bool", p), Value("i32", high), Value("i32", below))
