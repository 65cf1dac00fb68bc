"""Products of bytes on systolic arrays: pairs of bytes, on both engines the integers of the ops' references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_cases import integers, matmul_of
from matrix_cases import Case, cache, group_of, same, some

from knapper.compiler.codegen.generator import GENERATORS, modes_of
from knapper.compiler.codegen.matrix.blocks import product
from knapper.compiler.codegen.matrix.pairs import paired, pairs
from knapper.compiler.driver import Options as CompileOptions
from knapper.compiler.driver import finish
from knapper.compiler.ir import evaluate
from knapper.compiler.schedule import schedule
from knapper.isa.core import SIMD
from knapper.isa.machine import Machine
from knapper.runtime.session import EngineName, Session

__all__ = ["cache"]  # the fixture

SUMS = {"sma2": "isystolic", "sma3": "isystolic"}
TARGETS = SUMS | dict.fromkeys(["systolic-ws", "systolic-os", "tpu-v2"], "iaccumulating")
CASES: dict[str, Case] = {
    "1x1": integers((1, 7, 7, 32), 48, 1),
    "3x3, a zero point around": integers((2, 9, 7, 16), 24, 3, stride=2, pad=1, pad_value=77),
    "groups, residual": integers((1, 6, 5, 24), 20, 3, pad=1, group=2, after="residual"),
    "mixed taps": integers((1, 6, 6, 10), 24, 3, pad=1, types=("i8", "u8"), out="i8"),
    "odd rows, known": matmul_of((33, 42), (42, 21), known=True, after="relu"),
    "columns of B, batch": matmul_of((3, 2, 17, 64), (2, 20, 64), trans_b=True),
    "transposed weights": matmul_of((17, 64), (20, 64), trans_b=True, known=True),
    "sums alone": integers((1, 6, 6, 32), 32, 1, after="sums", types=("u8", "u8")),
}


def check(case: Case, target: str, cache: Path, count: int, engine: EngineName = "fast") -> None:
    (graph, inputs), machine, kind = case, Machine.load(target), TARGETS[target]
    group, want = group_of(graph), evaluate(graph, inputs)
    assert GENERATORS[kind].serves(group, machine) is None
    offered = [dict(o) for o in GENERATORS[kind].candidates(group, machine)]
    from_simd = [o for o in offered if modes_of(o)[0] == SIMD]
    for options in some(from_simd, count):
        made = CompileOptions(forced={"g": {"kind": kind, **options}}, cache=cache)
        result = Session(finish(graph, machine, made)).run(inputs, engine=engine)
        assert all(same(result.outputs[v], y) for v, y in want.items()), (target, options)
        assert result.stats.macs == product(group).macs


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_arrays_multiply_bytes(name: str, target: str, cache: Path) -> None:
    check(CASES[name], target, cache, count=2)


@pytest.mark.parametrize("target", ["sma3", "systolic-ws"])
def test_the_checking_engine_finds_nothing_to_complain_of(target: str, cache: Path) -> None:
    check(CASES["groups, residual"], target, cache, count=1, engine="reference")


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (integers((1, 6, 6, 3), 8, 3, pad=1), "its runs of k are of 3 bytes"),
        (integers((1, 6, 6, 6), 8, 3, pad=1, group=2), "its runs of k are of 3 bytes"),
        (integers((1, 6, 6, 4), 8, 3, pad=1, known=False), "B is not known and lies row by row"),
        (matmul_of((8, 4), (8, 6), trans_a=True), "A lies transposed"),
        (matmul_of((4, 8), (8, 6), types=("i16", "i16")), "operands are i16 and i16, not bytes"),
    ],
)
def test_what_are_no_pairs(case: Case, why: str) -> None:
    graph, _ = case
    machine = Machine.load("sma3")
    assert why in str(GENERATORS["isystolic"].serves(group_of(graph), machine))
    assert schedule(graph, machine).steps[0].kind in ("ffma", "direct")


def test_a_pair_has_the_first_of_two_k_below() -> None:
    graph, _ = integers((1, 4, 4, 4), 2, 1, after="sums")
    p = product(group_of(graph))
    w = np.array([[1, 2], [3, 4], [5, -1], [7, -2]], np.int8).reshape(1, 1, 4, 2)
    low_first = [[0x0301, 0x0402], [0x0705, 0xFEFF]]
    assert pairs(w, p).view(np.uint16).tolist() == low_first
    halved: Any = paired(group_of(graph))
    assert (product(halved).k, product(halved).a_pitch, halved.found["product"].n) == (2, 2, 2)


@pytest.mark.parametrize("target", ["sma3", "systolic-ws"])
def test_arrays_take_fewer_cycles_than_lanes(target: str) -> None:
    machine, cycles = Machine.load(target), {}
    whole, _ = integers((1, 14, 14, 256), 256, 3, pad=1)
    group = group_of(whole)
    for kind in (TARGETS[target], "ffma"):
        g = GENERATORS[kind]
        cycles[kind] = min(g.cost(group, o, machine) for o in g.candidates(group, machine))
    assert 3 * cycles[TARGETS[target]] < cycles["ffma"]
