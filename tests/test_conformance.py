"""ONNX's own suite on the emulator: docs/conformance.md is what it gives, and no value is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shop import Knapper

from knapper.frontends.commands.conformance import measured, page
from knapper.frontends.conformance import Outcome, bound, cases, core, outcome, summary
from knapper.frontends.tally import RESULTS, dumps, results, tally
from knapper.isa.machine import Machine

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"


@pytest.fixture(scope="module")
def found() -> list[Outcome]:
    return measured(cases(), Machine.load("volta-8tc"), "fp32", quiet=1)


@pytest.mark.slow
def test_no_value_is_wrong(found: list[Outcome]) -> None:
    bad = {o.name: o.why for o in found if o.verdict in ("wrong", "crashed")}
    assert not bad


@pytest.mark.slow
def test_the_stored_results_are_what_the_suite_gives(
    found: list[Outcome], request: pytest.FixtureRequest
) -> None:
    made = dumps(tally(found))
    if request.config.getoption("--bless"):
        RESULTS.write_text(made)
        PAGE.write_text(page(tally(found)))
    assert RESULTS.read_text() == made, "`pytest --bless tests/test_conformance.py` accepts this"


def test_the_page_is_what_is_stored() -> None:
    stored = [*results().values()]
    assert PAGE.read_text() == page(stored)
    assert dumps(stored) == RESULTS.read_text()


def test_the_core_list_names_cases_of_the_suite() -> None:
    assert core() <= {c.name for c in cases()}


def test_only_inputs_that_decide_shapes_become_constants() -> None:
    (case,) = cases(["test_reshape_reordered_all_dims"])
    assert list(bound(case.model, case.given).inputs) == ["data"]
    (case,) = cases(["test_add"])
    assert list(bound(case.model, case.given).inputs) == ["x", "y"]


def test_a_wrong_value_is_told() -> None:
    (case,) = cases(["test_abs"])
    lied = replace(case, outputs=(case.outputs[0] + 1,))
    told = outcome(lied, Machine.load("volta-8tc"))
    assert told.verdict == "wrong"
    assert (
        told.why == f"y: {np.size(case.outputs[0])} of {np.size(case.outputs[0])} elements differ"
    )


def test_what_contradicts_onnxs_text_is_disputed_if_the_values_are_onnxruntimes() -> None:
    (case,) = cases(["test_resize_downsample_scales_linear_align_corners"])
    told = outcome(case, Machine.load("volta-8tc"))
    assert (told.verdict, "length_resized" in told.why) == ("disputed", True)
    other = replace(case, name="test_something_else")
    assert outcome(other, Machine.load("volta-8tc")).verdict == "wrong"


def test_what_leaves_nothing_to_run_is_folded() -> None:
    (case,) = cases(["test_shape"])
    assert outcome(case, Machine.load("volta-8tc")).verdict == "folded"


UNITS = {
    "sma3": "fp16,place{kind=systolic}",
    "tpu-v2": "fp16,place{kind=accumulating}",
    "dstc": "fp16,place{kind=hmma}",
}


@pytest.mark.slow
@pytest.mark.parametrize("target", UNITS)
def test_matrix_products_run_on_the_targets_own_unit(target: str) -> None:
    """In 16 bits, as far as the unit serves them; each case says which matrix instruction ran."""
    machine, products = Machine.load(target), cases(["MatMul", "Gemm", "Conv", "Attention"])
    found = [outcome(c, machine, UNITS[target]) for c in products]
    assert {o.verdict for o in found} == {"passed"}, summary(found)
    assert sum(o.matrix != "" for o in found) > len(found) / 2


def test_the_command_prints_a_line_a_case(run: Knapper) -> None:
    code, out, _ = run("conformance", "--select", "Relu", "--json")
    assert (code, {o["verdict"] for o in json.loads(out)}) == (0, {"passed"})
    code, _, err = run("conformance", "--select", "NoSuchOp")
    assert (code != 0, "E704" in err) == (True, True)
