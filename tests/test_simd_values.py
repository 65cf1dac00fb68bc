"""TIR → instructions, values: indices are exact, integers wrap, conversions and functions are what they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tir import (
    BX,
    EPSILON,
    MACHINE,
    THREAD,
    Json,
    T,
    each,
    kernel,
    num,
    op,
    run,
    var,
)

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.codegen.simd.intrinsics import INTRINSICS
from knapper.compiler.codegen.simd.translate import translate
from knapper.compiler.ir import DTYPES, Array
from knapper.isa.errors import CompileError
from knapper.isa.instructions import LDG
from knapper.isa.modifiers import Width

# --- indices: linear forms, intervals, division by constants

CONSTANTS = st.sampled_from([1, 2, 3, 5, 7, 8, 12, 49, 64, 100, 1000, 3136])


def indices() -> st.SearchStrategy[Json]:
    """Index arithmetic as TVM writes it, on the thread (0 … 63) and the block (0 … 4)."""
    leaves = st.one_of(st.just(var(T)), st.just(var(BX)), st.integers(-50, 500).map(num))

    def grow(x: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
        plain = st.builds(op, st.sampled_from(["add", "sub", "min", "max"]), x, x)
        by_constant = st.builds(
            op, st.sampled_from(["mul", "floordiv", "floormod"]), x, CONSTANTS.map(num)
        )
        return plain | by_constant

    return st.recursive(leaves, grow, max_leaves=10)


PYTHON: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "min": min, "max": max,
    "floordiv": lambda a, b: a // b, "floormod": lambda a, b: a % b,
}  # fmt: skip


def value_of(e: Json, t: int, block: int) -> int:
    """The expression in Python; OverflowError beyond 32 bits, which indices never are."""
    if e[0] == "int":
        return int(e[2])
    if e[0] == "var":
        return (t, block)[e[2]]
    v = PYTHON[e[0]](value_of(e[2], t, block), value_of(e[3], t, block))
    if not -(2**31) <= v < 2**31:
        raise OverflowError
    return v


@given(st.lists(indices(), min_size=1, max_size=6))
@example([op("floordiv", op("sub", num(-1), var(BX)), num(2))])  # uniform, not for its unit
@settings(deadline=None)
def test_index_arithmetic_is_exact(expressions: list[Json]) -> None:
    """Every rewriting of sums and divisions, on lanes and on the uniform unit, against Python's integers."""
    try:
        want = [[value_of(e, t, b) for b in range(5) for t in range(64)] for e in expressions]
    except OverflowError:
        return
    stores = [["store", 0, op("add", THREAD, num(320 * i)), e] for i, e in enumerate(expressions)]
    got = run(kernel(["seq", *stores], [], ("i32", 320 * len(stores)), blocks=5), [])
    assert got.reshape(len(want), 320).tolist() == want


@pytest.mark.parametrize("divisor", [3, 7, 10, 49, 112, 641, 3136, 65535])
def test_a_multiplication_divides_exactly(divisor: int) -> None:
    """n // c for all that 31 bits may hold: around every multiple at both ends of the range."""
    edges = [
        m * divisor + d
        for m in (0, 1, 2**30 // divisor, (2**31 - 2) // divisor)
        for d in (-1, 0, 1)
    ]
    n = np.array([e for e in edges if 0 <= e < 2**31], np.int32)
    n = np.pad(n, (0, 64 - n.size))
    natural = op("max", ["load", "i32", 0, var(T)], num(0))
    assert (
        each(op("floordiv", natural, num(divisor)), n, dtype="i32").tolist()
        == (n // divisor).tolist()
    )
    assert (
        each(op("floormod", natural, num(divisor)), n, dtype="i32").tolist()
        == (n % divisor).tolist()
    )


@pytest.mark.parametrize("divisor", [-7, -1, 2, 5])
def test_division_of_any_sign_rounds_down(divisor: int) -> None:
    n = np.arange(-32, 32, dtype=np.int32)
    x = ["load", "i32", 0, var(T)]
    assert each(op("floordiv", x, num(divisor)), n, dtype="i32").tolist() == (n // divisor).tolist()
    assert each(op("floormod", x, num(divisor)), n, dtype="i32").tolist() == (n % divisor).tolist()


def test_a_64_bit_index_costs_32_bits() -> None:
    """A gather by int64 indices reads only the low word of each."""
    table, at = np.arange(100, dtype=np.float32), np.arange(99, 35, -1, dtype=np.int64)
    row = op("add", ["load", "i64", 1, ["cast", "i64", var(T)]], num(-1, "i64"), "i64")
    k = kernel(["store", 2, var(T), ["load", "f32", 0, row]], [table, at], ("f32", 64))
    assert run(k, [table, at]).tolist() == list(range(98, 34, -1))
    loads = [i for i in translate(k, "k", MACHINE).kernel.code if isinstance(i, LDG)]
    assert {i.width for i in loads} == {Width._32}


# --- integers of every width wrap

NUMPY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum, "floordiv": np.floor_divide,
    "floormod": np.mod, "bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor, "lt": np.less, "le": np.less_equal,
    "eq": np.equal, "ne": np.not_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"])
def test_integer_operations_wrap_as_numpys(dtype: str) -> None:
    rng, kind = np.random.default_rng(1), np.dtype(DTYPES[dtype])
    limits = np.iinfo(kind)
    a, b = (rng.integers(limits.min, limits.max, 64, kind, endpoint=True) for _ in range(2))
    b[:16] = a[:16]
    b[b == 0] = 3
    x, y = (["load", dtype, i, var(T)] for i in (0, 1))
    for name, f in NUMPY.items():
        compares = name in ("lt", "le", "eq", "ne", "gt", "ge")
        result = "bool" if compares else dtype
        with np.errstate(all="ignore"):
            want = f(a, b)
        assert each(op(name, x, y, result), a, b, dtype=result).tolist() == want.tolist(), name


@pytest.mark.parametrize("dtype", ["i8", "u8", "i16", "i32", "u32", "i64", "u64"])
def test_what_wraps_is_no_sum_of_its_terms(dtype: str) -> None:
    """At the end of the type x + 1 is less than x, and x·4 / 4 is not x: algebra is for indices."""
    kind = np.dtype(DTYPES[dtype])
    limits = np.iinfo(kind)
    ends = np.array(
        [limits.min, limits.min + 1, limits.max, limits.max - 9, limits.max // 4 + 1, 7], kind
    )
    x = np.resize(ends, 64)
    loaded, one, four = ["load", dtype, 0, var(T)], num(1, dtype), num(4, dtype)
    more, fourfold = op("add", loaded, one, dtype), op("mul", loaded, four, dtype)
    with np.errstate(over="ignore"):
        above, product = x + kind.type(1), x * kind.type(4)
    for name in ("lt", "le", "eq", "ne", "gt", "ge"):
        got = each(op(name, loaded, more, "bool"), x, dtype="bool")
        assert got.tolist() == NUMPY[name](x, above).tolist(), name
    for name in ("floordiv", "floormod"):
        got = each(op(name, fourfold, four, dtype), x, dtype=dtype)
        assert got.tolist() == NUMPY[name](product, kind.type(4)).tolist(), name


@pytest.mark.parametrize("source", list(DTYPES))
@pytest.mark.parametrize("to", list(DTYPES))
def test_conversions_are_those_of_the_cast_op(source: str, to: str) -> None:
    values = np.array([0, 1, -1, 2, 100, -100, 0.5, 1.5, 65504, 300, -129], np.float64)
    natural = source[0] == "u" or source == "bool" or to[0] == "u" or to == "bool"
    x = np.resize(np.abs(values) if natural else values, 64)
    with np.errstate(all="ignore"):
        x = x.astype(DTYPES[source]) if source != "bool" else x > 0
    if (
        to[0] in "iu" and source in EPSILON
    ):  # what saturates here wraps in numpy: the ops' references decide, not this test
        x = np.clip(x.astype(np.float64), 0, 100).astype(DTYPES[source])
    loaded = ["load", source, 0, var(T)]
    zero = ["float", source, "0x0p0"] if source in EPSILON else num(0, source)
    converted = op("ne", loaded, zero, "bool") if to == "bool" else ["cast", to, loaded]
    with np.errstate(all="ignore"):
        want = x.astype(bool) if to == "bool" else x.astype(DTYPES[to])
    assert each(converted, x, dtype=to).tobytes() == want.tobytes()


# --- functions

REAL = np.linspace(-6, 6, 64)
UNIT, POSITIVE, ABOVE_ONE = (
    np.linspace(-0.99, 0.99, 64),
    np.geomspace(1e-6, 1e6, 64),
    np.linspace(1.001, 50, 64),
)
FUNCTIONS: dict[str, tuple[Callable[..., float], Array]] = {
    "exp": (math.exp, REAL), "exp2": (lambda x: 2.0**x, REAL), "exp10": (lambda x: 10.0**x, REAL),
    "log": (math.log, POSITIVE), "log2": (math.log2, POSITIVE), "log10": (math.log10, POSITIVE), "log1p": (math.log1p, POSITIVE),
    "sqrt": (math.sqrt, POSITIVE), "rsqrt": (lambda x: 1 / math.sqrt(x), POSITIVE),
    "sin": (math.sin, REAL), "cos": (math.cos, REAL), "tan": (math.tan, UNIT), "asin": (math.asin, UNIT), "acos": (math.acos, UNIT),
    "atan": (math.atan, REAL), "sinh": (math.sinh, REAL), "cosh": (math.cosh, REAL), "tanh": (math.tanh, REAL),
    "asinh": (math.asinh, REAL), "acosh": (math.acosh, ABOVE_ONE), "atanh": (math.atanh, UNIT), "erf": (math.erf, REAL),
    "sigmoid": (lambda x: 1 / (1 + math.exp(-x)), REAL), "floor": (math.floor, REAL), "ceil": (math.ceil, REAL),
    "trunc": (math.trunc, REAL), "nearbyint": (round, REAL), "rint": (round, REAL),
    "round": (lambda x: math.copysign(math.floor(abs(x) + 0.5), x), REAL), "fabs": (abs, REAL), "abs": (abs, REAL),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_close_to_the_true_value(name: str, dtype: str) -> None:
    """In f32 within two units of the last place; in f64 within 2⁻⁴⁷, since what has no instruction is composed of those that do."""
    f, domain = FUNCTIONS[name]
    x = domain.astype(DTYPES[dtype])
    want = np.array([f(float(v)) for v in x])
    got = each(["call", dtype, name, ["load", dtype, 0, var(T)]], x, dtype=dtype).astype(np.float64)
    bound = 2 * EPSILON["f32"] if dtype == "f32" else 2.0**-47
    assert np.all(np.abs(got - want) <= bound * np.maximum(np.abs(want), 2.0**-20))


SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    2.0,
    -2.0,
    3.0,
    -3.0,
    0.5,
    -0.5,
    math.inf,
    -math.inf,
    math.nan,
    1e20,
    -1e20,
    1e-20,
]


def pairs() -> tuple[Array, Array]:
    a, b = np.meshgrid(np.array(SPECIAL, np.float32), np.array(SPECIAL, np.float32))
    return a.reshape(-1), b.reshape(-1)


def binary_call(name: str) -> Array:
    a, b = pairs()
    call = ["call", "f32", name, ["load", "f32", 0, THREAD], ["load", "f32", 1, THREAD]]
    return run(kernel(["store", 2, THREAD, call], [a, b], ("f32", 256), blocks=4), [a, b])


def test_powers_of_special_numbers_are_those_of_c() -> None:
    a, b = pairs()
    with np.errstate(all="ignore"):
        want = np.power(a, b)
    got = binary_call("pow")
    assert np.array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=2e-7)
    assert np.array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(want[~np.isnan(want)]))


def test_remainders_of_special_numbers_are_those_of_c() -> None:
    """Exact for quotients below 2⁵², which one division in f64 gives to the unit."""
    a, b = pairs()
    with np.errstate(all="ignore"):
        want, quotient = np.fmod(a, b), np.abs(a.astype(np.float64) / b)
    usual = ~(np.isfinite(quotient) & (quotient > 2.0**52))
    np.testing.assert_array_equal(binary_call("fmod")[usual], want[usual])


def test_predicates_of_floats() -> None:
    x = np.resize(np.array(SPECIAL, np.float32), 64)
    for name, f in (("isnan", np.isnan), ("isinf", np.isinf), ("isfinite", np.isfinite)):
        got = each(["call", "bool", name, ["load", "f32", 0, var(T)]], x, dtype="bool")
        assert got.tolist() == f(x).tolist()


def test_bits_are_counted() -> None:
    x = np.array([1 << i for i in range(32)] + [(1 << i) - 1 for i in range(32)], np.uint32)
    assert each(
        ["call", "u32", "popcount", ["load", "u32", 0, var(T)]], x, dtype="u32"
    ).tolist() == [int(v).bit_count() for v in x]
    assert each(["call", "i32", "clz", ["load", "u32", 0, var(T)]], x, dtype="i32").tolist() == [
        32 - int(v).bit_length() for v in x
    ]


def test_a_function_without_translation_is_named() -> None:
    with pytest.raises(CompileError, match="E441: kernel k: TIR has frobnicate on f32"):
        each(
            ["call", "f32", "frobnicate", ["load", "f32", 0, var(T)]],
            np.zeros(64, np.float32),
            dtype="f32",
        )


def test_every_function_is_tested() -> None:
    elsewhere = {
        "pow",
        "powf",
        "fmod",
        "truncmod",
        "isnan",
        "isinf",
        "isfinite",
        "popcount",
        "clz",
        "copysign",
        "fma",
    }
    assert set(INTRINSICS) - elsewhere - {"fmax", "fmin"} == set(FUNCTIONS)
