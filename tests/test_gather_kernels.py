"""Kernels that gather the rows of pruned weights' tiles: the bits of dense products, whatever the mask; and what that saves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_cases import CONVS, MATMULS, Case, conv, group_of, matmul, same, some
from test_channel_first import SMALL
from test_tilewise import pruned

from knapper.compiler.codegen.generator import GENERATORS
from knapper.compiler.driver import Options, finish
from knapper.compiler.ir import evaluate
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

KIND = "tilewise_channel_first"
CASES = [n for n, how in CONVS.items() if how.get("known", True) and n in ("3x3", "RGB", "3x3 with stride, batch", "1x1")]  # fmt: skip
PLAIN = [
    n
    for n, how in MATMULS.items()
    if not how.get("trans_a") and not how.get("batch") and "batch" not in n
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def check(case: Case, machine: Machine, cache: Path, count: int = 2) -> None:
    graph, inputs = case
    engine = GENERATORS[KIND]
    assert engine.serves(group_of(graph), machine) is None
    want = evaluate(graph, inputs)
    for options in some([dict(o) for o in engine.candidates(group_of(graph), machine)], count):
        forced = {"g": {"kind": KIND, **options}}
        program = finish(graph, machine, Options(forced=forced, cache=cache))
        for checked in (False, True):
            result = Session(program).run(inputs, checked=checked)
            for v, y in want.items():
                assert same(result.outputs[v], y), f"{options}: %{v}"


@pytest.mark.parametrize("name", CASES)
def test_convolutions_have_the_references_bits(name: str, cache: Path) -> None:
    check(pruned(conv(**CONVS[name], dtype="f16"), 16), SMALL, cache)


@pytest.mark.parametrize("name", PLAIN)
def test_products_have_the_references_bits(name: str, cache: Path) -> None:
    check(pruned(matmul(**{**MATMULS[name], "known": True}, dtype="f16"), 8), SMALL, cache)


@settings(max_examples=5, deadline=None)
@given(
    st.sampled_from([4, 16, 32]), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9)
)  # fmt: skip
def test_any_mask(cache: Path, tile: int, rows: float, columns: float, seed: int) -> None:
    case = conv(**CONVS["3x3"], dtype="f16")
    check(pruned(case, tile, rows, columns, seed=seed), SMALL, cache, 1)
