"""Golden plans (`tests/plan`, `pytest --bless`) of a pruned network: what the text says of zeros, and which kernels they choose.

Three products of a residual network in fp16. The same weights are tiles on `volta-8tc`, two of four on `ampere`, gathered on `tpu-v2`; single
weights, with the zeros of ReLUs, are outer products on `dstc`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from knapper.compiler import plan_text
from knapper.compiler.driver import Options, optimize, plan
from knapper.frontends.networks.sketch import Sketch
from knapper.frontends.onnx import read
from knapper.isa.machine import Machine

GOLDEN = Path(__file__).parent / "plan"
ROWS, WIDTH = 512, 1024
CASES = {
    "tilewise": ("volta-8tc", "pattern=tw,sparsity=0.75,granularity=64"),
    "tilewise_gather": ("tpu-v2", "pattern=tw,sparsity=0.75,granularity=64"),
    "two_of_four": ("ampere", "pattern=nm"),
    "two_sides": ("dstc", "pattern=ew,sparsity=0.9"),
}
"""File → target, and how weights are pruned."""


def network() -> ModelProto:
    """Two products and a sum, then a narrower one. Weights are whole numbers over 64: the same on every computer."""
    s, rng = Sketch("pruned"), np.random.default_rng(0)

    def dense(x: str, k: int, n: int) -> str:
        w = (rng.integers(-64, 65, (k, n)) / 64).astype(np.float32)
        b = (rng.integers(-64, 65, n) / 64).astype(np.float32)
        return s.node("Add", s.node("MatMul", x, s.constant(w)), s.constant(b))

    x = s.node("Relu", dense("input", WIDTH, WIDTH))
    y = s.node("Relu", s.node("Add", dense(x, WIDTH, WIDTH), x))
    z = dense(y, WIDTH, 128)
    return s.model({"input": (ROWS, WIDTH)}, {"output": (z, TensorProto.FLOAT, (ROWS, 128))})


@pytest.mark.parametrize("name", CASES)
def test_the_plan_of_a_pruned_network(name: str, request: pytest.FixtureRequest) -> None:
    target, how = CASES[name]
    machine = Machine.load(target)
    options = Options(f"prune{{{how}}},fp16", machine=machine)
    text = plan_text.show(plan(optimize(read(network()), options), machine, options))
    golden = GOLDEN / f"{name}.plan"
    if request.config.getoption("--bless"):
        golden.write_text(text)
    assert text == golden.read_text()
