"""Random models have onnxruntime's values, and damaged models and images end in errors that have a code. `make fuzz` runs an hour of it."""

from __future__ import annotations

import random

import fuzz
import numpy as np
import onnx
import pytest
import random_models
from hypothesis import given
from hypothesis import strategies as st


@given(st.randoms(use_true_random=False))
def test_random_models_have_onnxruntimes_values(rng: random.Random) -> None:
    fuzz.agrees(random_models.draw(rng), rng.choice(fuzz.TARGETS), "fp32")


@given(st.randoms(use_true_random=False))
def test_random_models_in_half_precision_are_near(rng: random.Random) -> None:
    fuzz.agrees(random_models.draw(rng, smooth=True), rng.choice(fuzz.TARGETS), "fp16")


@given(st.integers(0, (1 << 32) - 1))
def test_damaged_models_compile_or_say_why_not(seed: int) -> None:
    fuzz.damaged_model(seed)


@given(st.integers(0, (1 << 32) - 1))
def test_damaged_images_run_or_say_why_not(seed: int) -> None:
    fuzz.damaged_image(seed)


def test_random_models_are_valid_of_every_opset_and_many_operators() -> None:
    cases = [random_models.draw(random.Random(seed)) for seed in range(150)]
    for case in cases:
        onnx.checker.check_model(case.model, full_check=True)
    assert {c.model.opset_import[0].version for c in cases} == set(range(13, 22))
    assert len({n.op_type for c in cases for n in c.model.graph.node}) > 85


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
