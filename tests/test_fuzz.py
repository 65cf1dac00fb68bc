"""Random models have the oracle's values, damaged ones end in errors with a code; so do the cases that failed once. `make fuzz` runs an hour.

`KNAPPER_PROFILE=deep pytest tests/test_fuzz.py` draws thousands.
"""

from __future__ import annotations

import random
from pathlib import Path

import fuzz
import numpy as np
import onnx
import pytest
import random_models
from hypothesis import given, settings
from hypothesis import strategies as st
from random_writer import OPSETS

FOUND = sorted((Path(__file__).parent / "fuzzed").glob("*.npz"))
"""Cases that failed once."""
SEEDS = st.integers(0, 1 << 30)
DRAWN = settings.default.max_examples
FEW = settings(max_examples=DRAWN if DRAWN > 1000 else 25)
"""Cases of each kind, unless thousands are asked for: a model is compiled for each."""


def check(s: fuzz.Specimen) -> None:
    what, why = fuzz.verdict(s)
    text = "" if s.kind != "graph" else onnx.printer.to_text(onnx.ModelProto.FromString(s.data))
    assert what not in fuzz.BAD, f"{what}: {why}\n{text}"


@FEW
@given(seed=SEEDS)
def test_random_models_have_the_oracles_values(seed: int) -> None:
    check(fuzz.graph(seed))


@FEW
@given(seed=SEEDS)
def test_a_damaged_model_gets_an_error_with_a_code(seed: int) -> None:
    check(fuzz.damaged_model(seed))


@FEW
@given(seed=SEEDS)
def test_a_damaged_image_runs_to_an_end_or_gets_an_error_with_a_code(seed: int) -> None:
    check(fuzz.damaged_image(seed))


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.stem)
def test_what_was_found_once_is_mended(path: Path) -> None:
    check(fuzz.Specimen.load(path))


def test_random_models_are_valid_of_every_opset_and_many_operators() -> None:
    cases = [random_models.draw(random.Random(seed)) for seed in range(150)]
    for case in cases:
        onnx.checker.check_model(case.model, full_check=True)
    assert {c.model.opset_import[0].version for c in cases} == set(OPSETS)
    assert len({n.op_type for c in cases for n in c.model.graph.node}) > 110


def test_a_case_is_the_same_from_its_seed_and_from_its_file(tmp_path: Path) -> None:
    for draw in fuzz.DRAW.values():
        made = draw(7)
        made.save(tmp_path / "case.npz")
        for other in (draw(7), fuzz.Specimen.load(tmp_path / "case.npz")):
            assert (made.kind, made.data, made.options) == (other.kind, other.data, other.options)
            assert {n: a.tobytes() for n, a in made.inputs.items()} == {n: a.tobytes() for n, a in other.inputs.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.float32([1, 2]), ""),
        (np.float32([1, 2.5]), "error 2.50e-01 of the largest"),
        (np.float32([1, np.nan]), "error inf of the largest"),
        (np.float64([1, 2]), "float64[2], not float32[2]"),
    ],
)
def test_what_differs_is_said(y: random_models.Array, said: str) -> None:
    found = random_models.differences({"y": y}, {"y": np.float32([1, 2])}, 1e-4)
    assert found == ([f"y: {said}"] if said else [])


# --- the command --------------------------------------------------------------------------------------------------------

CHILD = """import json, os, time
print(json.dumps([5, "right", ""]), flush=True)
{then}
"""


@pytest.mark.parametrize(
    ("then", "verdict"),
    [("os.abort()", "crash"), ("time.sleep(60)", "hang"), ("print(json.dumps([6, 'ran', '']))", "")],
)  # fmt: skip
def test_a_case_that_ends_its_process_or_never_does_is_told(
    then: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(then=then))
    monkeypatch.setattr(fuzz, "__file__", str(script))
    monkeypatch.setattr(fuzz, "HANG", 1.0)
    told = list(fuzz.slice_("graph", 5, 2))
    assert [f.seed for f in told] == [5, 6]
    assert told[1].verdict == (verdict or "ran")
