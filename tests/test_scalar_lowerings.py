"""Scalar lowerings: numpy's bits where an operation is exact, near the true value where it is a function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from thread_programs import Threads

from knapper.compiler.codegen.builder import PT
from knapper.compiler.codegen.scalar import SCALAR, f32
from knapper.compiler.ir import Array
from knapper.isa.operands import Src

X = np.linspace(-6, 6, 256).astype(np.float32).reshape(32, 8)
EXACT: dict[str, tuple[dict[str, Any], Any]] = {
    "Relu": ({}, lambda x: np.maximum(x, 0)),
    "Clip": ({"min": -1.0, "max": 2.0}, lambda x: np.clip(x, -1, 2)),
    "Neg": ({}, np.negative),
    "Abs": ({}, np.abs),
    "Floor": ({}, np.floor),
    "Ceil": ({}, np.ceil),
    "Round": ({}, np.rint),
    "LeakyRelu": ({"alpha": 0.25}, lambda x: np.where(x < 0, x * np.float32(0.25), x)),
    "ThresholdedRelu": ({"alpha": 1.5}, lambda x: np.where(x > 1.5, x, 0)),
    "HardSigmoid": (
        {"alpha": 0.25, "beta": 0.5},
        lambda x: np.clip(x * np.float32(0.25) + np.float32(0.5), 0, 1),
    ),
}
CLOSE: dict[str, Any] = {
    "Exp": np.exp,
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Swish": lambda x: x / (1 + np.exp(-x)),
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "Mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}


def lowered(op: str, **attrs: Any) -> Array:
    t = Threads(8)
    for i in range(8):
        t.store(i, SCALAR[op](t.b, t.load(i), **attrs))
    return t.run(X.view(np.uint32))[0].view(np.float32)


@pytest.mark.parametrize("op", EXACT)
def test_an_exact_lowering_has_numpys_bits(op: str) -> None:
    attrs, f = EXACT[op]
    assert (lowered(op, **attrs) == f(X)).all()


@pytest.mark.parametrize("op", CLOSE)
def test_a_function_is_near_the_true_value(op: str) -> None:
    true = CLOSE[op](X.astype(np.float64))
    np.testing.assert_allclose(lowered(op), true, rtol=3e-6, atol=3e-7)


def test_immediates_are_fp32_bits() -> None:
    assert [f32(x) for x in (1.0, -2.0, 1e99)] == [0x3F800000, 0xC0000000, 0x7F800000]
    assert Src.of(f32(1.0)).value == 0x3F800000
    assert PT == 7
