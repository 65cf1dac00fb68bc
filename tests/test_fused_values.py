"""Fusion changes no value: a chain of elementwise ops that became one kernel has the bits of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tir import compiled

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.ir import DTYPES, Array, Graph, Node, Type
from knapper.runtime.session import Session

pytestmark = pytest.mark.usefixtures("cache")

ENDS: dict[str, list[float]] = {
    "f32": [0.0, -0.0, 1.0, -1.5, 1e-45, 3e38, -3e38, math.inf, -math.inf, math.nan],
    "f16": [0.0, -0.0, 1.0, -1.5, 6e-8, 65504.0, -65504.0, math.inf, -math.inf, math.nan],
}
INTEGRAL = ("i8", "i32", "i64")


def ends(dtype: str) -> Array:
    """What arithmetic of real numbers gets wrong: no numbers, infinities, signed zeros, the ends of integer types."""
    if dtype in ENDS:
        return np.array(ENDS[dtype], DTYPES[dtype])
    low, high = (getattr(np.iinfo(DTYPES[dtype]), end) for end in ("min", "max"))
    return np.array([0, 1, -1, 3, high, high - 2, low, low + 1, high // 2 + 1, low // 4], DTYPES[dtype])  # fmt: skip


def extreme(f: Callable[[Array, Array], Array], sign: int) -> Callable[[Array, Array], Array]:
    """numpy's, with -0 below 0, which numpy leaves open."""

    def g(a: Array, b: Array) -> Array:
        zero = sign * (sign * a + sign * b)
        return np.where((a == 0) & (b == 0), zero, f(a, b)).astype(a.dtype)

    return g


def quotient(a: Array, b: Array) -> Array:
    """Of floats, or of integers toward zero."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    exact = [abs(int(x)) // abs(int(y)) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b, strict=True)]  # fmt: skip
    return np.array(exact, object).astype(a.dtype)


STEPS: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": quotient,
    "Max": extreme(np.maximum, 1), "Min": extreme(np.minimum, -1),
}  # fmt: skip
TESTS: dict[str, Callable[[Array, Array], Array]] = {
    "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater, "Equal": np.equal,
}  # fmt: skip


@st.composite
def chains(draw: st.DrawFn, dtype: str) -> tuple[list[tuple[str, int, int]], list[int]]:
    """(op, operand, operand) each; operands: 0 and 1 the inputs, 2 and 3 constants (as places in `ends`), then results."""
    steps: list[tuple[str, int, int]] = []
    for i in range(draw(st.integers(2, 5))):
        last, other = 3 + i if i else 0, draw(st.integers(0, 3 + i))
        name = draw(st.sampled_from([*STEPS, *TESTS]))
        if name == "Div" and dtype in INTEGRAL:  # n / 0 is the machine's own
            steps.append((name, last, 2))
            continue
        pair = (last, other) if draw(st.booleans()) else (other, last)
        steps.append((name, *pair))
        if name in TESTS:
            break
    return steps, draw(st.lists(st.integers(0, 9), min_size=2, max_size=2))


def stepwise(steps: list[tuple[str, int, int]], values: list[Array]) -> Array:
    """What numpy makes of a chain, one rounding a step."""
    with np.errstate(all="ignore"):
        for name, a, b in steps:
            values.append((STEPS | TESTS)[name](values[a], values[b]))
    return values[-1]


def chain_graph(steps: list[tuple[str, int, int]], dtype: str, constants: list[Array]) -> Graph:
    t = Type(dtype, (100,))
    names = ["x0", "x1", "c0", "c1", *(f"v{i}" for i in range(len(steps)))]
    nodes = []
    for i, (name, a, b) in enumerate(steps):
        made = Type("bool" if name in TESTS else dtype, (100,))
        nodes.append(Node(name, (names[a], names[b]), (f"v{i}",), (made,), loc=name, group="g"))
    used = {v for n in nodes for v in n.inputs}
    inputs = dict.fromkeys(("x0", "x1"), t)
    numbers = {v: c for v, c in zip(("c0", "c1"), constants, strict=True) if v in used}
    return Graph("g", inputs, {"y": names[-1]}, tuple(nodes), numbers).verify()


def same(got: Array, want: Array) -> bool:
    """Bit for bit, any NaN like any other."""
    number = want == want
    return (
        bool((np.isnan(got) == ~number).all()) and got[number].tobytes() == want[number].tobytes()
    )


def check_chain(
    dtype: str, steps: list[tuple[str, int, int]], places: list[int], cache: Path
) -> None:
    every = ends(dtype)
    x0, x1 = np.repeat(every, 10), np.tile(every, 10)
    constants = [every[i : i + 1] for i in places]
    if dtype in INTEGRAL and constants[0] == 0:
        constants[0] = every[3:4]
    program = compiled(chain_graph(steps, dtype, constants), cache)
    assert len(program.launches) == 1
    (got,) = Session(program).run({"x0": x0, "x1": x1}).outputs.values()
    want = stepwise(steps, [x0, x1, *(np.resize(c, 100) for c in constants)])
    assert same(got, want), (got, want)


@pytest.mark.parametrize("dtype", [*ENDS, *INTEGRAL])
@given(st.data())
@settings(deadline=None, max_examples=10)
def test_what_is_fused_has_the_bits_of_its_steps(
    dtype: str, cache: Path, data: st.DataObject
) -> None:
    """Chains on the ends of the type, in one launch, against numpy one step at a time."""
    check_chain(dtype, *data.draw(chains(dtype)), cache)


REAL_LAWS: dict[str, tuple[list[tuple[str, int, int]], list[int]]] = {
    "x = x": ([("Equal", 0, 0)], [0, 0]),
    "x - x = 0": ([("Sub", 0, 0)], [0, 0]),
    "x c - x c = 0": ([("Mul", 0, 2), ("Sub", 4, 4)], [3, 0]),
    "x 0 = 0": ([("Mul", 0, 3)], [3, 0]),
    "x + 0 = x": ([("Add", 0, 3)], [3, 0]),
    "max(x, c)": ([("Max", 0, 3)], [3, 9]),
    "x < x + 1": ([("Add", 0, 2), ("Less", 0, 4)], [1, 0]),
    "x c / c = x": ([("Mul", 0, 2), ("Div", 4, 2)], [3, 0]),
}
"""What holds for real numbers and not here: (steps, constants)."""


@pytest.mark.parametrize("dtype", [*ENDS, *INTEGRAL])
@pytest.mark.parametrize("law", REAL_LAWS)
def test_laws_of_real_numbers_are_not_used(law: str, dtype: str, cache: Path) -> None:
    check_chain(dtype, *REAL_LAWS[law], cache)


def test_a_quotient_by_a_constant_zero_is_infinite(cache: Path) -> None:
    check_chain("f32", [("Div", 0, 3)], [2, 0], cache)
