"""SIMD kernels: what TVM lowers computes what the ops' references say, and the translation from TIR is right by itself.

The first half writes TIR by hand, as `compiler/tvm/tir.py` describes it, and needs no TVM. The second half sends groups through
the worker: every op's examples, fused chains, reductions at batch 1 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.codegen.simd.generator import SIMD
from knapper.compiler.codegen.simd.intrinsics import INTRINSICS
from knapper.compiler.codegen.simd.translate import Translated, translate
from knapper.compiler.driver import Options, finish
from knapper.compiler.groups import groups
from knapper.compiler.ir import DTYPES, OPS, Array, Graph, Node, Type, evaluate, infer
from knapper.compiler.ops.table import examples
from knapper.compiler.tvm import client
from knapper.isa.errors import CompileError
from knapper.isa.instructions import BRA, BSSY, EXIT, HMNMX2, ISETP, LDG, LDL, STG
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Width
from knapper.isa.program import ALIGN, BASE, Launch, Operand, Port, Program
from knapper.runtime.session import EngineName, Session

MACHINE = Machine.load("volta-8tc")
EPSILON = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-23, "f64": 2.0**-52}
Json = Any

# --- TIR by hand: a kernel over one row of threads, t, that reads i0, i1, … and writes out --------


def var(n: int, dtype: str = "i32") -> Json:
    return ["var", dtype, n]


def num(n: int, dtype: str = "i32") -> Json:
    return ["int", dtype, n]


def op(name: str, a: Json, b: Json, dtype: str = "i32") -> Json:
    return [name, dtype, a, b]


T, BX = 0, 1
"""Variables: the thread, the block."""
THREAD = op("add", op("mul", var(BX), num(64)), var(T))
"""The number of a thread in blocks of 64."""


def kernel(
    body: Json,
    inputs: list[Array],
    out: tuple[str, int],
    blocks: int = 1,
    extra: Sequence[Json] = (),
) -> Json:
    """Buffers 0 … are the inputs, then the output, then `extra` ones."""
    rows = [(f"i{i}", Type.of(a).dtype, a.size) for i, a in enumerate(inputs)] + [("out", *out)]
    table = [{"role": r, "scope": "global", "dtype": d, "lanes": 1, "count": n} for r, d, n in rows]
    return {
        "grid": [blocks, 1, 1],
        "block": [64, 1, 1],
        "axes": {str(T): "threadIdx.x", str(BX): "blockIdx.x"},
        "buffers": [*table, *extra],
        "body": body,
    }


def local(dtype: str, count: int, scope: str = "local") -> Json:
    return {"role": "", "scope": scope, "dtype": dtype, "lanes": 1, "count": count}


def program(t: Translated, grid: list[int], arrays: dict[str, Type]) -> Program:
    """One launch over buffers that follow each other in the arena."""
    at, address = BASE, {}
    for name, type_ in arrays.items():
        address[name] = at
        at += -(-type_.bytes // ALIGN) * ALIGN
    operands = tuple(Operand(v, address[v], arrays[v].bytes, use) for v, use in t.uses.items())
    params = tuple(address[v] for v in t.params)
    launch = Launch(t.kernel.name, (grid[0], grid[1], grid[2]), params, ("node",), operands)
    ports = {v: Port(v, type_.dtype, type_.shape, address[v]) for v, type_ in arrays.items()}
    ins = tuple(p for v, p in ports.items() if v != "out")
    return Program(MACHINE.to_dict(), {t.kernel.name: t.kernel}, (launch,), ins, (ports["out"],), arena_bytes=at - BASE)  # fmt: skip


def run(k: Json, inputs: list[Array], engine: EngineName = "reference") -> Array:
    t = translate(k, "k", MACHINE)
    rows = {b["role"]: Type(b["dtype"], (b["count"],)) for b in k["buffers"] if b["role"]}
    feeds = {f"i{i}": a.reshape(-1) for i, a in enumerate(inputs)}
    return Session(program(t, k["grid"], rows)).run(feeds, engine=engine).outputs["out"]


def code(k: Json) -> list[type]:
    return [type(i) for i in translate(k, "k", MACHINE).kernel.code]


def each(value: Json, *inputs: Array, dtype: str) -> Array:
    """out[t] = value for 64 threads."""
    return run(
        kernel(["store", len(inputs), var(T), value], list(inputs), (dtype, 64)), list(inputs)
    )


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


# --- control flow

ENGINES: tuple[EngineName, ...] = ("reference", "fast")
ACC = 1
"""The local variable of the kernels below is buffer 1, after the output."""


def read(i: Json = num(0)) -> Json:  # noqa: B008
    return ["load", "i32", ACC, i]


def assign(value: Json, i: Json = num(0)) -> Json:  # noqa: B008
    return ["store", ACC, i, value]


def both(body: Json, count: int = 1, blocks: int = 1) -> list[int]:
    """What 64 threads a block store, the same on both engines."""
    k = kernel(
        ["seq", ["alloc", ACC], *body], [], ("i32", 64 * blocks), blocks, [local("i32", count)]
    )
    first, second = (run(k, [], engine).tolist() for engine in ENGINES)
    assert first == second
    return [int(v) for v in first]


def result(value: Json = read()) -> Json:  # noqa: B008
    return ["store", 0, THREAD, value]


def loop(n: Json, *body: Json, variable: int = 5) -> Json:
    return ["for", variable, num(0), n, ["seq", *body]]


def test_a_long_loop_has_a_uniform_counter() -> None:
    body = [
        assign(num(0)),
        loop(num(1000), assign(op("add", read(), op("mul", var(5), var(T))))),
        result(),
    ]
    assert both(body) == [499500 * t for t in range(64)]


def test_a_loop_of_another_length_in_each_lane() -> None:
    body = [assign(num(0)), loop(var(T), assign(op("add", read(), var(5)))), result()]
    assert both(body) == [t * (t - 1) // 2 for t in range(64)]


def test_a_while_loop() -> None:
    """Collatz steps from t + 1."""
    n, odd = read(num(1)), op("eq", op("floormod", read(num(1)), num(2)), num(1), "bool")
    next_ = [
        "select",
        "i32",
        odd,
        op("add", op("mul", n, num(3)), num(1)),
        op("floordiv", n, num(2)),
    ]
    step = ["seq", assign(next_, num(1)), assign(op("add", read(), num(1)))]
    body = [
        assign(num(0)),
        assign(op("add", var(T), num(1)), num(1)),
        ["while", op("ne", n, num(1), "bool"), step],
        result(),
    ]

    def collatz(x: int) -> int:
        return 0 if x == 1 else 1 + collatz(3 * x + 1 if x % 2 else x // 2)

    assert both(body, count=2) == [collatz(t + 1) for t in range(64)]


def test_a_small_branch_is_predicated() -> None:
    body = [
        assign(num(7)),
        ["if", op("lt", var(T), num(20), "bool"), assign(var(T)), assign(num(-1))],
        result(),
    ]
    assert both(body) == [t if t < 20 else -1 for t in range(64)]
    assert not {BRA, BSSY} & set(
        code(kernel(["seq", *body], [], ("i32", 64), 1, [local("i32", 1)]))
    )


def test_a_branch_with_a_loop_diverges_and_meets_again() -> None:
    inside = loop(num(500), assign(op("add", read(), var(T))))
    body = [
        assign(num(0)),
        ["if", op("lt", var(T), num(20), "bool"), inside, assign(num(-1))],
        result(op("add", read(), num(1))),
    ]
    assert both(body) == [500 * t + 1 if t < 20 else 0 for t in range(64)]


def test_a_branch_of_whole_blocks_is_a_jump() -> None:
    body = [
        assign(num(3)),
        ["if", op("lt", var(BX), num(2), "bool"), assign(var(T)), ["seq"]],
        result(),
    ]
    assert both(body, blocks=4) == [t if b < 2 else 3 for b in range(4) for t in range(64)]


def test_lanes_without_work_leave_at_once() -> None:
    """If all that a kernel does is under one condition, nothing after it is predicated."""
    x = np.arange(50, dtype=np.float32)
    inside = op("lt", var(T), num(50), "bool")
    store = ["store", 1, var(T), ["load", "f32", 0, var(T)]]
    k = kernel(["if", inside, store, ["seq"]], [x], ("f32", 50))
    assert run(k, [x]).tolist() == x.tolist()
    guarded = [i for i in translate(k, "k", MACHINE).kernel.code if i.guard != 7]
    assert [type(i) for i in guarded] == [EXIT]


def test_a_condition_that_the_loop_changes_stays_in_the_loop() -> None:
    early = op("lt", var(5), var(T), "bool")
    body = [loop(num(600), ["if", early, ["store", 0, THREAD, var(5)], ["seq"]])]
    k = kernel(
        ["seq", ["if", op("lt", num(0), var(T), "bool"), body[0], ["store", 0, THREAD, num(-1)]]],
        [],
        ("i32", 64),
    )
    assert run(k, []).tolist() == [-1, *range(63)]


def test_what_a_guard_leaves_out_is_not_loaded() -> None:
    """if_then_else evaluates one branch: the other one's address may lie outside the buffer."""
    x = np.arange(4, dtype=np.float32)
    inside = op("lt", op("floormod", var(T), num(8)), num(4), "bool")
    value = [
        "call",
        "f32",
        "if_then_else",
        inside,
        ["load", "f32", 0, op("floormod", var(T), num(8))],
        ["float", "f32", (-1.0).hex()],
    ]
    for engine in ENGINES:
        got = run(kernel(["store", 1, var(T), value], [x], ("f32", 64)), [x], engine)
        assert got.tolist() == [0.0, 1.0, 2.0, 3.0, -1.0, -1.0, -1.0, -1.0] * 8


def test_swapping_variables_in_a_loop() -> None:
    """Fibonacci: the new value of one is the old value of the other."""
    step = [
        ["let", 6, op("add", read(), read(num(1)))],
        assign(read(num(1))),
        assign(var(6), num(1)),
    ]
    body = [assign(num(0)), assign(num(1), num(1)), loop(num(300), *step), result()]
    a, b = 0, 1
    for _ in range(300):
        a, b = b, (a + b + 2**31) % 2**32 - 2**31
    assert both(body, count=2) == [a] * 64


def test_an_array_with_constant_indices_is_registers() -> None:
    fill = loop(num(8), assign(op("mul", var(5), var(T)), var(5)))
    body = [fill, result(op("add", read(num(3)), read(num(7))))]
    assert both(body, count=8) == [10 * t for t in range(64)]
    assert LDL not in code(kernel(["seq", *body], [], ("i32", 64), 1, [local("i32", 8)]))


def test_an_array_that_lanes_index_is_local_memory() -> None:
    fill = loop(num(8), assign(op("mul", var(5), num(10)), var(5)))
    body = [["alloc", ACC], fill, result(read(op("floormod", var(T), num(8))))]
    assert both(body, count=8) == [10 * (t % 8) for t in range(64)]
    assert LDL in code(kernel(["seq", *body], [], ("i32", 64), 1, [local("i32", 8)]))


def test_shared_memory_between_warps() -> None:
    shared = local("i32", 64, "shared")
    mirror = ["load", "i32", ACC, op("sub", num(63), var(T))]
    body = [
        "seq",
        ["alloc", ACC],
        assign(op("mul", var(T), num(2)), var(T)),
        ["sync", "shared"],
        result(mirror),
    ]
    for engine in ENGINES:
        assert run(kernel(body, [], ("i32", 64), 1, [shared]), [], engine).tolist() == list(
            range(126, -2, -2)
        )


@pytest.mark.parametrize("dtype", ["i32", "f32", "i64", "f64", "f16", "bool"])
def test_shuffles_move_every_type(dtype: str) -> None:
    x = np.arange(64).astype(DTYPES[dtype]) if dtype != "bool" else np.arange(64) % 3 == 0
    down = [
        "call",
        dtype,
        "tvm_warp_shuffle_down",
        num(-1, "u32"),
        ["load", dtype, 0, var(T)],
        num(1),
        num(32),
        num(32),
    ]
    want = np.array([x[t + 1] if t % 32 < 31 else x[t] for t in range(64)])
    assert each(down, x, dtype=dtype).tolist() == want.tolist()


def test_more_booleans_than_predicates() -> None:
    """Ten bits of a number, read before a barrier and used after it: the second attempt at the kernel keeps them in registers."""
    x = np.arange(64, dtype=np.int32) * 13
    loaded = ["load", "i32", 0, var(T)]
    bits = [op("floormod", op("floordiv", loaded, num(1 << i)), num(2)) for i in range(10)]
    lets = [["let", 10 + i, op("ne", bit, num(0), "bool")] for i, bit in enumerate(bits)]
    mirrored = num(0)
    for i in range(10):
        bit = ["cast", "i32", var(10 + i, "bool")]
        mirrored = op("add", mirrored, op("mul", bit, num(1 << (9 - i))))
    body = ["seq", *lets, ["sync", "shared"], ["store", 1, var(T), mirrored]]
    k = kernel(body, [x], ("i32", 64))
    assert run(k, [x]).tolist() == [int(f"{v:010b}"[::-1], 2) for v in x]
    predicates = [i for i in translate(k, "k", MACHINE).kernel.code if isinstance(i, ISETP)]
    assert len(predicates) == 20  # each is tested twice: when it is put away, and when it is wanted


def test_a_buffer_beyond_32_bits_is_an_error() -> None:
    k = kernel(["store", 0, var(T), num(1)], [], ("i32", 1 << 30))
    with pytest.raises(CompileError, match="E443: kernel k: a buffer of 1073741824 elements"):
        translate(k, "k", MACHINE)


def test_more_shared_memory_than_a_block_has_is_an_error() -> None:
    shared = local("i32", 1 << 20, "shared")
    k = kernel(["seq", ["alloc", 1], ["store", 1, var(T), num(1)]], [], ("i32", 1), 1, [shared])
    with pytest.raises(CompileError, match="E443: kernel k: needs 4194304 bytes of shared memory"):
        translate(k, "k", MACHINE)


# --- memory: neighbours travel together


def vector(dtype: str, lanes: int, first: Json) -> Json:
    return ["ramp", f"i32x{lanes}", first, num(1)], f"{dtype}x{lanes}"


WIDE = [("f32", 4), ("f16", 8), ("bf16", 8), ("f64", 2), ("i64", 2), ("i32", 4)]
NARROW = [("i16", 8), ("u16", 4), ("i8", 4), ("u8", 2)]


@pytest.mark.parametrize(("dtype", "lanes"), WIDE)
def test_aligned_neighbours_are_one_access(dtype: str, lanes: int) -> None:
    x = np.arange(64 * lanes).astype(DTYPES[dtype])
    index, kind = vector(dtype, lanes, op("mul", var(T), num(lanes)))
    k = kernel(
        ["store", 1, index, op("add", ["load", kind, 0, index], ["load", kind, 0, index], kind)],
        [x],
        (dtype, x.size),
    )
    assert run(k, [x]).tolist() == (x + x).tolist()
    moves = [i for i in translate(k, "k", MACHINE).kernel.code if isinstance(i, LDG | STG)]
    assert [i.width for i in moves] == [Width._128] * 2


@pytest.mark.parametrize(("dtype", "lanes"), NARROW)
def test_narrow_integers_travel_alone(dtype: str, lanes: int) -> None:
    """Each has a register of its own, extended to 32 bits."""
    x = np.arange(-32 * lanes, 32 * lanes).astype(DTYPES[dtype])
    index, kind = vector(dtype, lanes, op("mul", var(T), num(lanes)))
    load = ["load", kind, 0, index]
    k = kernel(["store", 1, index, op("add", load, load, kind)], [x], (dtype, x.size))
    assert run(k, [x]).tolist() == (x + x).tolist()


def test_misaligned_neighbours_are_single_accesses() -> None:
    x = np.arange(130, dtype=np.float32)
    index, kind = vector("f32", 2, op("add", op("mul", var(T), num(2)), num(1)))
    k = kernel(["store", 1, index, ["load", kind, 0, index]], [x], ("f32", 130))
    assert run(k, [x])[1:129].tolist() == x[1:129].tolist()
    assert {
        i.width for i in translate(k, "k", MACHINE).kernel.code if isinstance(i, LDG | STG)
    } == {Width._32}


def test_a_load_does_not_bring_what_stands_beside_it_elsewhere() -> None:
    """x[8t + 1] is loaded by itself, and beside x[8t - 3] under a condition that keeps that from being read at t = 0."""
    x = np.arange(600, dtype=np.float32)

    def pair(offset: int) -> Json:
        first = op("add", op("mul", var(T), num(8)), num(offset))
        return ["load", "f32x2", 0, ["ramp", "i32x2", first, num(4)]]

    none = ["broadcast", "f32x2", ["float", "f32", (0.0).hex()]]
    guarded = ["call", "f32x2", "if_then_else", op("lt", num(0), var(T), "bool"), pair(-3), none]
    index, kind = vector("f32", 2, op("mul", var(T), num(2)))
    k = kernel(["store", 1, index, op("add", pair(1), guarded, kind)], [x], ("f32", 128))
    want = [
        [8 * t + 1 + (8 * t - 3) * (t > 0), 8 * t + 5 + (8 * t + 1) * (t > 0)] for t in range(64)
    ]
    assert run(k, [x]).reshape(64, 2).tolist() == want


def test_lanes_of_a_variable_change_at_once() -> None:
    """acc = acc[1], acc[0] in a loop: each lane takes the other's old value."""
    x = np.arange(128, dtype=np.float32)
    acc = {**local("f32", 1), "lanes": 2}
    lanes, kind = vector("f32", 2, op("mul", var(T), num(2)))
    current = ["load", kind, 2, num(0)]
    swapped = ["shuffle", kind, [current], [1, 0]]
    turn = loop(num(301), ["store", 2, num(0), swapped])
    body = [
        "seq",
        ["store", 2, num(0), ["load", kind, 0, lanes]],
        turn,
        ["store", 1, lanes, current],
    ]
    got = run(kernel(body, [x], ("f32", 128), 1, [acc]), [x])
    assert got.reshape(64, 2).tolist() == x.reshape(64, 2)[:, ::-1].tolist()


def test_loads_of_an_unrolled_loop_are_merged() -> None:
    x = np.arange(256, dtype=np.float32)
    place = op("add", op("mul", var(T), num(4)), var(5))
    total = [
        "store",
        2,
        num(0),
        op("add", ["load", "f32", 2, num(0)], ["load", "f32", 0, place], "f32"),
    ]
    body = ["seq", loop(num(4), total), ["store", 1, var(T), ["load", "f32", 2, num(0)]]]
    k = kernel(body, [x], ("f32", 64), 1, [local("f32", 1)])
    assert run(k, [x]).tolist() == x.reshape(64, 4).sum(1).tolist()
    assert [i.width for i in translate(k, "k", MACHINE).kernel.code if isinstance(i, LDG)] == [
        Width._128
    ]


def test_an_old_load_is_not_taken_for_a_new_one() -> None:
    """x[0] is read, written, and read again."""
    shared = local("i32", 64, "shared")
    again = ["store", ACC, var(T), op("add", ["load", "i32", ACC, var(T)], num(1))]
    body = [
        "seq",
        ["alloc", ACC],
        assign(var(T), var(T)),
        again,
        again,
        result(["load", "i32", ACC, var(T)]),
    ]
    assert run(kernel(body, [], ("i32", 64), 1, [shared]), []).tolist() == list(range(2, 66))


# --- through TVM ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache for this file, and one worker."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNAPPER_CACHE", str(folder))
        yield folder
    client.stop()


Case = tuple[Graph, dict[str, Array]]


class Writer:
    """A graph of one group, written op by op."""

    def __init__(self) -> None:
        self.inputs: dict[str, Array] = {}
        self.types: dict[str, Type] = {}
        self.nodes: list[Node] = []

    def value(self, data: Array) -> str:
        name = f"x{len(self.types)}"
        self.inputs[name], self.types[name] = data, Type.of(data)
        return name

    def op(self, name: str, *operands: str, results: int = 1, **attrs: Any) -> str:
        types = infer(name, [self.types[v] if v else None for v in operands], attrs)[:results]
        outs = tuple(f"v{len(self.types) + i}" for i in range(len(types)))
        self.types |= dict(zip(outs, types, strict=True))
        self.nodes.append(
            Node(name, operands, outs, types, attrs, loc=f"{name}_{outs[0]}", group="g")
        )
        return outs[0]

    def case(self) -> Case:
        outputs = {v: v for v in self.nodes[-1].outputs}
        inputs = {v: Type.of(a) for v, a in self.inputs.items()}
        return Graph("g", inputs, outputs, tuple(self.nodes)).verify(), self.inputs


def compiled(graph: Graph, cache: Path) -> Program:
    return finish(graph, MACHINE, Options(cache=cache))


def wrong(got: Array, want: Array) -> str:
    """Empty if integers are equal and floats within four units of the last place, or two of the largest value's."""
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"{got.dtype}{got.shape} where {want.dtype}{want.shape} was expected"
    epsilon = EPSILON.get(Type.of(want).dtype)
    if epsilon is None:
        return (
            "" if np.array_equal(got, want) else f"{int((got != want).sum())} of {want.size} differ"
        )
    a, b = got.astype(np.float64), want.astype(np.float64)
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0))
    close = np.isclose(a, b, rtol=4 * epsilon, atol=2 * epsilon * largest, equal_nan=True)
    return (
        ""
        if close.all()
        else f"{int((~close).sum())} of {want.size} differ, by up to {np.abs(a - b).max()}"
    )


RESULTS = {"MaxPool": 1, "Dropout": 1}
"""Ops with results that nobody lowers: how many are."""


def op_cases(name: str) -> Iterator[Case]:
    for operands, attrs in examples(OPS[name]):
        w = Writer()
        names = [w.value(a) if a is not None else "" for a in operands]
        w.op(name, *names, results=RESULTS.get(name, 99), **attrs)
        yield w.case()


def served(name: str) -> bool:
    return all(
        SIMD.serves(g, MACHINE) is None for graph, _ in op_cases(name) for g in groups(graph)
    )


OPS_BY_TVM = [n for n in sorted(OPS) if "example" in OPS[n].facets and served(n)]


@pytest.mark.parametrize("name", OPS_BY_TVM)
def test_every_op_computes_its_reference(name: str, cache: Path) -> None:
    """All examples of the op, in all their types; sent to the worker at once, as a compile does it."""
    cases = list(op_cases(name))
    client.prefetch(g for graph, _ in cases for g in groups(graph))
    for i, (graph, inputs) in enumerate(cases):
        got = Session(compiled(graph, cache)).run(inputs, checked=True).outputs
        for v, want in evaluate(graph, inputs).items():
            assert not (problem := wrong(got[v], want)), f"example {i}: {v}: {problem}"


def test_most_ops_are_served() -> None:
    assert len(OPS_BY_TVM) > 100


def draw(*shape: int, dtype: str = "f16") -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(DTYPES[dtype])


def swish() -> Case:
    w = Writer()
    x = w.op("Cast", w.value(draw(2, 7, 9, 24)), to="f32")
    w.op("Cast", w.op("Mul", x, w.op("Sigmoid", x)), to="f16")
    return w.case()


def residual_norm() -> Case:
    w = Writer()
    a, b = (w.op("Cast", w.value(draw(5, 96)), to="f32") for _ in range(2))
    s = w.op("Cast", w.op("Add", a, b), to="f16")
    w.op("LayerNormalization", s, w.value(draw(96)), w.value(draw(96)))
    return w.case()


def scores() -> Case:
    w = Writer()
    x = w.op("Cast", w.value(draw(2, 3, 5, 40)), to="f32")
    w.op(
        "Cast",
        w.op("Softmax", w.op("Add", x, w.value(draw(1, 1, 1, 40, dtype="f32"))), axis=-1),
        to="f16",
    )
    return w.case()


def pooled() -> Case:
    w = Writer()
    x = w.op("Cast", w.value(draw(1, 7, 7, 40)), to="f32")
    w.op("Cast", w.op("GlobalAveragePool", x, layout="NHWC"), to="f16")
    return w.case()


def image() -> Case:
    w = Writer()
    w.op(
        "Cast",
        w.op("Transpose", w.value(draw(1, 3, 14, 15, dtype="f32")), perm=(0, 2, 3, 1)),
        to="f16",
    )
    return w.case()


def heads() -> Case:
    w = Writer()
    w.op("Transpose", w.value(draw(1, 24, 3, 8)), perm=(0, 2, 3, 1))
    return w.case()


def gelu() -> Case:
    w = Writer()
    w.op("Cast", w.op("Gelu", w.op("Cast", w.value(draw(3, 100)), to="f32")), to="f16")
    return w.case()


def branches() -> Case:
    """Two results, one of which the other needs."""
    w = Writer()
    x = w.value(draw(4, 33, dtype="f32"))
    w.op("LayerNormalization", w.op("Tanh", x), w.value(draw(33, dtype="f32")), results=3)
    return w.case()


CHAINS = (swish, residual_norm, scores, pooled, image, heads, gelu, branches)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda f: f.__name__)
def test_a_fused_chain_is_one_kernel_with_the_same_bits_on_both_engines(
    chain: Callable[[], Case], cache: Path
) -> None:
    graph, inputs = chain()
    session = Session(compiled(graph, cache))
    fast, reference = (session.run(inputs, engine=e).outputs for e in ("fast", "reference"))
    for v, want in evaluate(graph, inputs).items():
        assert not (problem := wrong(reference[v], want)), problem
        assert fast[v].tobytes() == reference[v].tobytes()
    assert chain is branches or len(session.program.launches) == 1


def test_a_max_pool_computes_two_lanes_at_a_time_and_does_not_branch(cache: Path) -> None:
    w = Writer()
    w.op(
        "MaxPool",
        w.value(draw(1, 12, 12, 64)),
        kernel_shape=(3, 3),
        strides=(2, 2),
        pads=(1, 1, 1, 1),
        layout="NHWC",
    )
    graph, _ = w.case()
    (k,) = compiled(graph, cache).kernels.values()
    kinds = [type(i) for i in k.code]
    assert kinds.count(HMNMX2) == 9
    assert BRA not in kinds


REDUCTIONS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "softmax of a row": ("Softmax", (3, 128), {"axis": -1}),
    "softmax of a long row": ("Softmax", (2500,), {"axis": -1}),
    "softmax over channels": ("Softmax", (21, 5, 9), {"axis": 1}),
    "layer norm": ("LayerNormalization", (5, 200), {}),
    "layer norm of a matrix": ("LayerNormalization", (3, 40), {"axis": 1}),
    "mean of a row": ("ReduceMean", (6, 49), {"axes": (2,), "keepdims": 0}),
    "mean over channels": ("ReduceMean", (49, 6), {"axes": (1,), "keepdims": 0}),
    "mean of all": ("ReduceMean", (7, 8, 50), {"axes": (1, 2, 3), "keepdims": 1}),
    "mean of separate axes": ("ReduceMean", (3, 5, 60), {"axes": (1, 3), "keepdims": 1}),
    "global average, NHWC": ("GlobalAveragePool", (7, 7, 24), {"layout": "NHWC"}),
    "global average, NCHW": ("GlobalAveragePool", (24, 7, 7), {"layout": "NCHW"}),
    "max pool": ("MaxPool", (9, 9, 8), {"layout": "NHWC", "kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "average pool": ("AveragePool", (9, 9, 6), {"layout": "NHWC", "kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "wide average pool": ("AveragePool", (4, 9, 9), {"kernel_shape": (7, 7), "pads": (3, 3, 3, 3)}),
    "instance norm": ("InstanceNormalization", (5, 13, 7), {}),
    "group norm": ("GroupNormalization", (6, 13, 7), {"num_groups": 2}),
    "running sum": ("CumSum", (5, 60), {"axis": 2}),
    "log-sum-exp": ("ReduceLogSumExp", (50, 3), {"axes": (1,), "keepdims": 0}),
}  # fmt: skip
CHANNELS: dict[str, Callable[[tuple[int, ...], dict[str, Any]], tuple[int, ...]]] = {
    "LayerNormalization": lambda shape, attrs: shape[attrs.get("axis", len(shape)) - 1 :],
    "InstanceNormalization": lambda shape, attrs: shape[:1],
    "GroupNormalization": lambda shape, attrs: shape[:1],
}


def reduction(name: str, batch: int, images: Array) -> Case:
    kind, shape, attrs = REDUCTIONS[name]
    w = Writer()
    operands = [w.value(images[:batch])]
    if kind in CHANNELS:
        operands += [w.value(draw(*CHANNELS[kind](shape, attrs), dtype="f32")) for _ in range(2)]
    w.op(kind, *operands, **attrs)
    return w.case()


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_order_of_a_sum_does_not_depend_on_the_batch(name: str, cache: Path) -> None:
    """Eight at once have the bits of eight runs of one; so a schedule may look at what is reduced, and at nothing else."""
    images = draw(8, *REDUCTIONS[name][1], dtype="f32")
    (eight, inputs), (one, _) = (reduction(name, batch, images) for batch in (8, 1))
    (together,) = Session(compiled(eight, cache)).run(inputs).outputs.values()
    alone = Session(compiled(one, cache))
    first = next(iter(inputs))
    for i in range(8):
        (got,) = alone.run(inputs | {first: images[i : i + 1]}).outputs.values()
        assert got.tobytes() == together[i : i + 1].tobytes()


def test_a_pad_of_four_axes_needs_more_than_seven_predicates(cache: Path) -> None:
    w = Writer()
    w.op("Pad", w.value(draw(3, 5, 7, 9)), pads=(2, 3, 3, 2, 2, 3, 2, 3), mode="edge")
    graph, inputs = w.case()
    got = Session(compiled(graph, cache)).run(inputs).outputs
    for v, want in evaluate(graph, inputs).items():
        assert np.array_equal(got[v], want)


def test_an_empty_result_is_no_launch(cache: Path) -> None:
    w = Writer()
    w.op("Slice", w.value(draw(3, 4)), starts=(1,), ends=(1,), axes=(0,))
    graph, inputs = w.case()
    program = compiled(graph, cache)
    assert not program.launches
    (got,) = Session(program).run(inputs).outputs.values()
    assert got.shape == (0, 4)


def test_a_single_number_is_written_into_the_code(cache: Path) -> None:
    """A constant of one element is an immediate, so only the input and the result are parameters; a vector is a third one."""

    def parameters(constant: Array) -> int:
        x = Type("f32", (2, 8))
        node = Node("Mul", ("x", "c"), ("y",), (x,), loc="scale", group="g")
        graph = Graph("g", {"x": x}, {"y": "y"}, (node,), {"c": constant})
        (launch,) = compiled(graph, cache).launches
        return len(launch.params)

    assert parameters(np.full((1,), 3, np.float32)) == 2
    assert parameters(np.arange(8, dtype=np.float32)) == 3


def test_the_generator_says_why_it_does_not_serve() -> None:
    w = Writer()
    w.op("NonZero", w.value(draw(3, 4)), count=12)
    (group,) = groups(w.case()[0])
    assert SIMD.serves(group, MACHINE) == "NonZero cannot be lowered by TVM"


def test_cost_grows_with_the_tensor() -> None:
    def cost(n: int) -> float:
        w = Writer()
        w.op("Relu", w.value(np.zeros((n, 4096), np.float32)))
        (group,) = groups(w.case()[0])
        return SIMD.cost(group, {}, MACHINE)

    assert cost(64) < cost(512) < cost(4096)
