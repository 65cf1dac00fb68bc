"""The special functions of MUFU, defined to the bit: IEEE additions, products, fused multiply-adds, divisions and roots only.

Every function is an algorithm on F64 values. The F32 function is the F64 one rounded to F32, so that its error is within
0.501 units in the last place (ulp), and overflow, underflow and subnormal results come out as rounding leaves them. Polynomials
are written down as formulas of their coefficients (Taylor series; one Chebyshev fit, in ERF). NaN gives NaN. No host library is
asked, so results are the same on every machine and in both engines.

    fn      F64 error, ulp     ±0          ±inf          else
    RCP     0.5                ±inf        ±0
    RSQ     1.5                ±inf        +0, NaN       x < 0: NaN
    SQRT    0.5                ±0          +inf, NaN     x < 0: NaN
    EX2     1                  1           +inf, +0
    EXP     1                  1           +inf, +0
    LG2     1                  -inf        +inf, NaN     x < 0: NaN
    LOG     1                  -inf        +inf, NaN     x < 0: NaN
    SIN     1                  ±0          NaN
    COS     1                  1           NaN
    TANH    2                  ±0          ±1
    ERF     2.5                ±0          ±1

The errors are bounds on what tests/test_functions.py measures, for arguments of any size. Next to a multiple of π/2, where SIN or COS
is nearly zero, the error of the F64 function is bounded by 1e-19·|x| for |x| < 2**20, by 2**-100 beyond; F32 results there keep their bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, partial

from .lanes import (
    F32,
    F64,
    S64,
    LaneType,
    Value,
    absolute,
    bitcast,
    constant,
    convert,
    fma,
    isnan,
    rint,
    select,
    shl,
    shr,
    sqrt,
)

Function = Callable[[Value], Value]
INF = math.inf

LN2_HI, LN2_LO = float.fromhex("0x1.62e42fefa3800p-1"), float.fromhex("0x1.ef35793c76730p-45")
"""ln 2 in two parts; n times the first is exact for |n| < 2**11."""
LOG2E_HI, LOG2E_LO = float.fromhex("0x1.71547652b82fep+0"), float.fromhex("0x1.777d0ffda0d24p-56")
HALF_PI = tuple(
    map(float.fromhex, ("0x1.921fb54442d18p+0", "0x1.1a62633145c07p-54", "-0x1.f1976b7ed8fbcp-110"))
)
"""π/2 in three parts."""


def horner(x: Value, coefficients: Sequence[float]) -> Value:
    """c0 + x·(c1 + x·(c2 + …)), one fused multiply-add a coefficient."""
    *rest, last = coefficients
    total = fma(x, last, rest.pop())
    for c in reversed(rest):
        total = fma(total, x, c)
    return total


def taylor(terms: int, derivative: Callable[[int], Fraction | int]) -> tuple[float, ...]:
    """Coefficients derivative(k) / k!, rounded to F64."""
    return tuple(float(Fraction(derivative(k)) / math.factorial(k)) for k in range(terms))


def power_of_two(n: Value) -> Value:
    """2**n for S64 n in [-1022, 1023]."""
    return bitcast(shl(n + 1023, 52), F64)


def scale(x: Value, n: Value) -> Value:
    """x·2**n with one rounding; n is integral and S64. The first factor leaves a normal number, so only the second can round."""
    half = shr(n, 1)
    return (x * power_of_two(half)) * power_of_two(n - half)


def clamp(x: Value, limit: float) -> Value:
    """x within ±limit; NaN stays."""
    return select(x > limit, limit, select(x < -limit, -limit, x))


def with_sign(x: Value, sign: Value) -> Value:
    """|x| with the sign of another."""
    bit = bitcast(sign, S64) & (-1 << 63)
    return bitcast((bitcast(x, S64) & ((1 << 63) - 1)) | bit, F64)


def rcp(x: Value) -> Value:
    """1 / x."""
    return 1.0 / x


def rsq(x: Value) -> Value:
    """1 / √x."""
    return 1.0 / sqrt(x)


EXP_TERMS = taylor(14, lambda k: 1)
"""e**r for |r| ≤ ln 2 / 2: the next term is below 2**-57."""


def ex2(x: Value) -> Value:
    """2**x: x = n + f with |f| ≤ 1/2; e**(f·ln 2) by Taylor to degree 13, f·ln 2 with its rounding error carried along."""
    x = clamp(x, 1100.0)
    n = rint(x)
    f = x - n
    r = f * (LN2_HI + LN2_LO)
    error = fma(f, LN2_HI + LN2_LO, -r)
    p = horner(r, EXP_TERMS)
    return scale(fma(p, error, p), convert(n, S64))


def exp(x: Value) -> Value:
    """e**x: x = n·ln 2 + r with |r| ≤ ln 2 / 2, r as a rounded number and its error; Taylor to degree 13."""
    x = clamp(x, 760.0)
    n = rint(x * LOG2E_HI)
    high = fma(-n, LN2_HI, x)
    r = fma(-n, LN2_LO, high)
    error = fma(-n, LN2_LO, high - r)
    p = horner(r, EXP_TERMS)
    return scale(fma(p, error, p), convert(n, S64))


LOG_TERMS = tuple(float(Fraction(2, 2 * k + 3)) for k in range(11))
"""ln((1 + s) / (1 - s)) = 2s + s³·(2/3 + 2/5 s² + …)."""
SQRT_HALF = 0x3FE6A09E667F3BCD
"""The bits of √½."""


def mantissa(x: Value) -> tuple[Value, Value]:
    """m in [√½, √2) and e, F64, with x = m·2**e, for finite x > 0. Subnormals are scaled up by 2**54 first."""
    tiny = x < 2.0**-1022
    bits = bitcast(select(tiny, x * 2.0**54, x), S64) - SQRT_HALF
    exponent = shr(bits, 52)
    m = bitcast((bits & ((1 << 52) - 1)) + SQRT_HALF, F64)
    return m, convert(exponent, F64) - select(tiny, 54.0, constant(x, 0.0, F64))


def log_parts(x: Value) -> tuple[Value, Value, Value]:
    """(e, f, c): ln x = e·ln 2 + f - c, where f = m - 1 and c = f²/2 - s·(f²/2 + R), s = f/(2 + f), |c| < |f| / 4."""
    m, e = mantissa(x)
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    square = 0.5 * f * f
    return e, f, square - s * (square + z * horner(z, LOG_TERMS))


def log_limits(x: Value, y: Value) -> Value:
    """y, or what a logarithm is where x is not a positive finite number."""
    y = select(x == INF, INF, y)
    return select(x == 0.0, -INF, select((x < 0.0) | isnan(x), math.nan, y))


def log(x: Value) -> Value:
    """ln x by an odd series in s = (m - 1) / (m + 1)."""
    e, f, c = log_parts(x)
    return log_limits(x, fma(e, LN2_HI, f - (c - e * LN2_LO)))


def lg2(x: Value) -> Value:
    """log2 x: f and c as in LOG, times log2 e in two parts; exact for powers of two."""
    e, f, c = log_parts(x)
    high = f - c
    low = (f - high) - c
    y = high * LOG2E_HI
    error = fma(high, LOG2E_HI, -y) + fma(high, LOG2E_LO, low * LOG2E_HI)
    return log_limits(x, e + (y + error))


SIN_TERMS = taylor(9, lambda k: Fraction((-1) ** k * math.factorial(k), math.factorial(2 * k + 1)))[
    1:
]
COS_TERMS = taylor(10, lambda k: Fraction((-1) ** k * math.factorial(k), math.factorial(2 * k)))[2:]
FAR = 20
"""From |x| = 2**20 on, the multiple of π/2 comes from the product with the digits of 2/π that matter."""
SPAN = 50
"""Powers of two that share one piece of 2/π."""


def near_quadrant(x: Value) -> tuple[Value, Value, Value]:
    """(n, r, t), n as F64, for |x| < 2**FAR: π/2 is subtracted in three parts (Cody and Waite)."""
    n = rint(x * (2.0 / math.pi))
    a = fma(-n, HALF_PI[0], x)
    r = fma(-n, HALF_PI[1], a)
    product = n * HALF_PI[1]
    tail = fma(-n, HALF_PI[1], product)  # minus what rounding took from the product
    b = a - r
    t = (b - product) + tail
    return n, r, fma(-n, HALF_PI[2], t)


def two_sum(a: Value, b: Value) -> tuple[Value, Value]:
    """a + b as a rounded number and its error (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@cache
def pieces(exponent: int) -> tuple[tuple[float, ...], ...]:
    """2**(SPAN·j)·2/π in four parts of 53 bits, for each j that reaches an |x| below 2**exponent.

    It is modulo 2**(54 - FAR): times a number from 2**FAR on, whose last place is 2**(FAR - 52), what is left out is a multiple of 4.
    2/π to as many bits as that takes, from Machin's π = 16 arctan 1/5 - 4 arctan 1/239.
    """
    bits = exponent + 200
    one = 1 << bits

    def arctan_of_reciprocal(n: int) -> int:
        terms = (one // (n ** (2 * k + 1) * (2 * k + 1)) * (-1) ** k for k in range(bits))
        return sum(itertools.takewhile(bool, terms))

    pi = 16 * arctan_of_reciprocal(5) - 4 * arctan_of_reciprocal(239)
    two_over_pi = (one * one << 1) // pi
    shifts = range(0, exponent - FAR, SPAN)
    return tuple(in_parts((two_over_pi << n) % (one << 54 - FAR), bits) for n in shifts)


def in_parts(number: int, bits: int) -> tuple[float, ...]:
    """number / 2**bits as the sum of four F64, each the rounded rest."""
    parts = []
    for _ in range(4):
        parts.append(float(Fraction(number, 1 << bits)))
        number -= int(Fraction(parts[-1]) * (1 << bits))
    return tuple(parts)


def modulo_4(x: Value) -> Value:
    """x less a multiple of 4, within ±2, exactly."""
    return x - 4.0 * rint(0.25 * x)


def far_quadrant(x: Value, exponent: int) -> tuple[Value, Value, Value]:
    """(n, r, t) for 2**FAR ≤ |x| < 2**exponent, n modulo 4 as F64 (Payne and Hanek).

    x = y·2**(SPAN·j) with 2**FAR ≤ |y| < 2**(FAR + SPAN), so that x·2/π modulo 4 is y times piece j. The products with the first two
    parts are exact in two numbers each; the sum of all, modulo 4, carries its rounding errors along, and 2**-104 remains.
    """
    first, *more = pieces(exponent)
    y, parts = x, [constant(x, p, F64) for p in first]
    for j, piece in enumerate(more, 1):
        there = absolute(x) >= 2.0 ** (FAR + SPAN * j)
        y = select(there, x * 2.0 ** (-SPAN * j), y)
        parts = [select(there, p, old) for p, old in zip(piece, parts, strict=True)]
    products = [y * p for p in parts]
    errors = [fma(y, p, -product) for p, product in zip(parts[:3], products, strict=False)]
    total, rest = modulo_4(products[0]), errors[2] + products[3]
    for term in (modulo_4(errors[0]), modulo_4(products[1]), errors[1], products[2]):
        total, error = two_sum(total, term)
        rest = rest + error
    n = rint(total)
    f, g = two_sum(total - n, rest)
    r = f * HALF_PI[0]
    return n, r, fma(f, HALF_PI[0], -r) + fma(f, HALF_PI[1], g * HALF_PI[0])


def quadrant(x: Value, exponent: int) -> tuple[Value, Value, Value]:
    """(n, r, t): x = n·π/2 + r + t modulo 2π with |r| ≤ π/4 and a small t; n as S64; |x| < 2**exponent."""
    far = absolute(x) >= 2.0**FAR
    near, away = near_quadrant(select(far, 0.0, x)), far_quadrant(x, exponent)
    n, r, t = (select(far, a, b) for a, b in zip(away, near, strict=True))
    return convert(n, S64), r, t


def sin_near(r: Value, t: Value) -> Value:
    """sin(r + t) for |r| ≤ π/4, Taylor to degree 17; the tail enters with cos r ≈ 1 - r²/2."""
    z = r * r
    return r + fma(r * z, horner(z, SIN_TERMS), fma(-0.5 * z, t, t))


def cos_near(r: Value, t: Value) -> Value:
    """cos(r + t) for |r| ≤ π/4, Taylor to degree 18; 1 - r²/2 with its rounding error."""
    z = r * r
    half = 0.5 * z
    w = 1.0 - half
    return w + (((1.0 - w) - half) + fma(z * z, horner(z, COS_TERMS), -(r * t)))


def circular(x: Value, shift: int, exponent: int) -> Value:
    """sin(x + shift·π/2) for |x| < 2**exponent."""
    n, r, t = quadrant(x, exponent)
    n = n + shift
    y = select((n & 1) == 1, cos_near(r, t), sin_near(r, t))
    return select((n & 2) == 2, -y, y)


def sin(x: Value, exponent: int = 1024) -> Value:
    """sin x: reduce to |r| ≤ π/4, then one of two Taylor polynomials by quadrant."""
    return select(x == 0.0, x, circular(x, 0, exponent))


def cos(x: Value, exponent: int = 1024) -> Value:
    """cos x, as SIN a quarter turn on."""
    return circular(x, 1, exponent)


SINH_TERMS = taylor(9, lambda k: Fraction(math.factorial(k), math.factorial(2 * k + 1)))[1:]
COSH_TERMS = taylor(9, lambda k: Fraction(math.factorial(k), math.factorial(2 * k)))


def tanh(x: Value) -> Value:
    """|x| < 0.55: sinh / cosh, both by Taylor. Beyond: 1 - 2 / (e**2|x| + 1)."""
    z, a = x * x, clamp(absolute(x), 40.0)
    c = horner(z, COSH_TERMS)
    near = x + x * ((horner(z, SINH_TERMS) * z - (c - 1.0)) / c)
    far = with_sign(1.0 - 2.0 / (exp(a + a) + 1.0), x)
    return select(x == 0.0, x, select(a < 0.55, near, select(isnan(x), x, far)))


ERF_TERMS = tuple(float(Fraction((-1) ** k, math.factorial(k) * (2 * k + 1))) for k in range(1, 20))
TWO_OVER_ROOT_PI_HI, TWO_OVER_ROOT_PI_LO = (
    float.fromhex("0x1.20dd750429b6dp+0"),
    float.fromhex("0x1.1ae3a914fed80p-56"),
)
ERFCX_TERMS = (
    0.2214295402299318,
    0.16189356804102495,
    0.038560570425182406,
    0.005588816281841378,
    0.00019713917772835564,
    -8.079220428770654e-05,
    -7.340517941470624e-06,
    1.979561974691787e-06,
    1.6349938636339256e-07,
    -7.005371491880312e-08,
    -5.886321053854852e-10,
    2.6250035432507722e-09,
    -2.6866682864095234e-10,
    -7.46844869131507e-11,
    2.211621110863333e-11,
    4.768762673351584e-13,
    -9.32059013818178e-13,
)
"""e**x²·(1 - erf x) for 1 ≤ x ≤ 6 as a polynomial in t = 48 / (5·(x + 2)) - 11/5: interpolated in Chebyshev points with 90 digits."""


def erf(x: Value) -> Value:
    """|x| < 1: Maclaurin series to degree 39. 1 ≤ |x| < 6: 1 - e**-x² times a polynomial. Beyond: ±1."""
    z, a = x * x, clamp(absolute(x), 6.0)
    series = x + x * (z * horner(z, ERF_TERMS))
    near = fma(series, TWO_OVER_ROOT_PI_HI, series * TWO_OVER_ROOT_PI_LO)
    t = 9.6 / (a + 2.0) - 2.2
    far = with_sign(1.0 - exp(-(a * a)) * horner(t, ERFCX_TERMS), x)
    return select(x == 0.0, x, select(a < 1.0, near, select(isnan(x), x, far)))


def narrowed(f: Function) -> Function:
    """The F32 function of an F64 one."""

    def g(x: Value) -> Value:
        return convert(f(convert(x, F64)), F32)

    g.__doc__ = f.__doc__
    return g


ALGORITHMS: dict[str, Function] = {
    "RCP": rcp, "RSQ": rsq, "SQRT": sqrt, "EX2": ex2, "LG2": lg2, "EXP": exp, "LOG": log, "SIN": sin, "COS": cos, "TANH": tanh, "ERF": erf,
}  # fmt: skip
OWN = {"RCP": rcp, "SQRT": sqrt}
"""One IEEE operation in the type itself."""
ENDING = {"SIN": partial(sin, exponent=128), "COS": partial(cos, exponent=128)}
"""What F32 needs of a function that takes more, and gives the same, for F64's exponents."""

MUFU: dict[tuple[str, LaneType], Function] = (
    {(n, F64): f for n, f in ALGORITHMS.items()}
    | {(n, F32): narrowed(f) for n, f in (ALGORITHMS | ENDING).items()}
    | {(n, F32): f for n, f in OWN.items()}
)
"""The function of a name and a type."""
