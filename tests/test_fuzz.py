"""Random models against onnxruntime, and damaged ones against nothing but an error with a code.

`KNAPPER_PROFILE=deep pytest tests/test_fuzz.py` draws thousands.
"""

from __future__ import annotations

import random

import mutations
import pytest
import random_models
from hypothesis import given
from hypothesis import strategies as st

import knapper
from knapper.frontends.oracle import Oracle
from knapper.isa.errors import KnapperError

BOUNDS = {"fp32": 1e-4, "fp16": 3e-2}
"""Of the largest value of an output: sums in another order; 16 bits between launches."""
SEEDS = st.integers(0, 1 << 30)


def agrees(seed: int, target: str, precision: str) -> None:
    case = random_models.draw(random.Random(seed), smooth=precision != "fp32")
    try:
        want = Oracle(case.model.SerializeToString()).run(case.inputs)
    except (
        KnapperError
    ):  # onnxruntime has no kernel for everything that is valid: 3 % of the models
        return
    try:
        image = knapper.compile(case.model, target=target, precision=precision)
    except KnapperError as e:
        assert e.code  # noqa: PT017  what is refused is refused with a code; anything else is a failure
        return
    got = image.run(case.inputs).outputs
    found = random_models.differences(got, want, BOUNDS[precision])
    assert not found, f"seed {seed}: {found}\n{case!r}"


@given(seed=SEEDS)
def test_random_models_have_onnxruntimes_values(seed: int) -> None:
    agrees(seed, "volta-8tc", "fp32")


@pytest.mark.parametrize("target", ["volta-8tc", "sma3", "tpu-v2", "dstc"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_models_in_16_bits_are_close_on_every_machine(seed: int, target: str) -> None:
    agrees(seed, target, "fp16")


@given(seed=SEEDS)
def test_a_damaged_model_gets_an_error_with_a_code(seed: int) -> None:
    rng = random.Random(seed)
    case = random_models.draw(random.Random(rng.randrange(40)))
    try:
        knapper.compile(mutations.model(case.model, rng))
    except KnapperError as e:
        assert str(e)  # noqa: PT017  a change may leave a model whole, or be told; nothing else
