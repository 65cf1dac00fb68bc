"""ant-ws, ant-os and bitfusion: arrays that multiply bytes by bytes, and bytes by codes of four bits at twice the rate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_cases import integers, matmul_of
from integer_networks import residual
from matrix_cases import Case, cache, group_of, same

from knapper.compiler.codegen.generator import GENERATORS
from knapper.compiler.codegen.matrix.blocks import product
from knapper.compiler.driver import Options, finish
from knapper.compiler.ir import evaluate
from knapper.compiler.pipeline import preset, run
from knapper.isa.formats import FORMATS
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Nibble
from knapper.runtime.session import EngineName, Session

__all__ = ["cache"]  # the fixture

TARGETS = ("ant-ws", "ant-os", "bitfusion")
KIND = "iaccumulating"
CASES: dict[str, Case] = {
    "1x1": integers((1, 7, 7, 32), 72, 1),
    "3x3, a zero point around": integers((2, 9, 7, 16), 24, 3, stride=2, pad=1, pad_value=77),
    "groups, residual": integers((1, 6, 5, 24), 140, 3, pad=1, group=2, after="residual"),
    "mixed taps": integers((1, 6, 6, 10), 24, 3, pad=1, out="i8"),
    "odd rows": matmul_of((33, 42), (42, 21), known=True, after="relu"),
    "transposed weights": matmul_of((17, 64), (65, 64), trans_b=True, known=True),
}


def few(case: Case, format: str, seed: int = 3) -> Case:
    """A case whose weights are values of a format."""
    graph, inputs = case
    values, rng = FORMATS[format].values, np.random.default_rng(seed)
    constants = {
        v: rng.choice(values, a.shape).astype(a.dtype) if a.dtype == np.int8 else a
        for v, a in graph.constants.items()
    }
    return type(graph)(**{**vars(graph), "constants": constants}), inputs


def offered(case: Case, machine: Machine) -> Iterator[dict[str, Any]]:
    return (dict(o) for o in GENERATORS[KIND].candidates(group_of(case[0]), machine))


def check(case: Case, target: str, cache: Path, b: str, engine: EngineName = "fast") -> int:
    """Runs the first options with weights stored so; cycles."""
    (graph, inputs), machine = case, Machine.load(target)
    options = next(o for o in offered(case, machine) if o["b"] == b)
    made = Options(forced={"g": {"kind": KIND, **options}}, cache=cache)
    result = Session(finish(graph, machine, made)).run(inputs, engine=engine, timing=True)
    assert all(same(result.outputs[v], y) for v, y in evaluate(graph, inputs).items()), options
    assert result.stats.macs == product(group_of(graph)).macs
    return int(result.stats.cycles)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_arrays_multiply_bytes_by_codes(name: str, target: str, cache: Path) -> None:
    for b in ("i8", "i4"):
        check(few(CASES[name], "i4"), target, cache, b)


@pytest.mark.parametrize("format", ["u4", "flint4", "uflint4", "pot4"])
def test_codes_of_every_format(format: str, cache: Path) -> None:
    for target in TARGETS[:2]:
        check(few(CASES["3x3, a zero point around"], format), target, cache, format)


def test_the_checking_engine_finds_nothing_to_complain_of(cache: Path) -> None:
    check(few(CASES["groups, residual"], "flint4"), "ant-ws", cache, "flint4", "reference")


@pytest.mark.parametrize("target", TARGETS)
def test_codes_take_fewer_cycles_than_bytes(target: str, cache: Path) -> None:
    case = few(integers((1, 12, 12, 64), 128, 3, pad=1), "i4")
    narrow, wide = (check(case, target, cache, b) for b in ("i4", "i8"))
    assert narrow < wide
    machine, group, g = Machine.load(target), group_of(case[0]), GENERATORS[KIND]
    best = min(offered(case, machine), key=lambda o: g.cost(group, o, machine))
    assert best["b"] == "i4"


def test_bitfusion_has_integers_alone() -> None:
    ant, bitfusion = Machine.load("ant-os"), Machine.load("bitfusion")
    assert set(bitfusion.extensions) < set(ant.extensions)
    for name, plain in CASES.items():
        for format in (t.format.name for t in Nibble if t is not Nibble.UPOT4):
            case = few(plain, format)
            theirs, ours = ({o.get("b", "i8") for o in offered(case, m)} for m in (bitfusion, ant))
            assert theirs == ({"i8", format} if format in ("i4", "u4") else {"i8"}), name
            assert ours == {"i8", format}, name


@pytest.mark.parametrize("format", ["i8", "i4", "flint4"])
def test_a_network_has_the_same_bits_everywhere(format: str, cache: Path) -> None:
    graph = run(residual((1, 48, 8, 8), format), preset("fp16"))
    rng = np.random.default_rng(1)
    inputs = {
        v: rng.integers(0, 256, t.shape).astype(np.uint8) if t.dtype == "u8" else rng.random(t.shape).astype(t.dtype.replace("f32", "float32"))
        for v, t in graph.inputs.items()
    }  # fmt: skip
    want, cycles = None, {}
    for target in ("volta-8tc", *TARGETS):
        program = finish(graph, Machine.load(target), Options(cache=cache))
        result = Session(program).run(inputs, timing=True)
        want = result.outputs if want is None else want
        assert all(same(result.outputs[v], y) for v, y in want.items()), target
        cycles[target] = int(result.stats.cycles)
        used = {i.mnemonic for k in program.kernels.values() for i in k.code}
        if target != "volta-8tc":
            assert ("ILSMA.N" in used) == (
                format == "i4" or (format == "flint4" and target != "bitfusion")
            ), (target, used)
            assert "ILSMA" in used or "ILSMA.N" in used
