"""Networks that others wrote, or their exporters: small ones here, all of them in docs/networks.md; and old and new opsets of the classics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import version_converter

from knapper.compiler.ir import evaluate
from knapper.frontends.compare import EXACT
from knapper.frontends.networks import exports, light, suite
from knapper.frontends.onnx import read
from knapper.isa.errors import UsageError

PAGE = Path(__file__).parent.parent / "docs" / "networks.md"
HEAVY = ("light/", "drawn/", "bert_base")
QUICK = ("light/squeezenet", "light/shufflenet", "drawn/squeezenet", "drawn/shufflenet")
"""Of the heavy ones those that take a second."""


def row(name: str) -> suite.Row:
    try:
        return suite.measured(name)
    except UsageError as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("name", [n for n in suite.CASES if not n.startswith(HEAVY) or n in QUICK])
def test_a_real_network_computes_what_it_should(name: str) -> None:
    assert row(name).fits


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in suite.CASES if n.startswith(HEAVY) and n not in QUICK])
def test_a_large_network_computes_what_it_should(name: str) -> None:
    assert row(name).fits


# --- what the suite rests on


def test_the_page_has_every_network_within_its_limits() -> None:
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    rows = {c[0]: dict(zip(suite.HEAD, c, strict=True)) for c in cells if len(c) == len(suite.HEAD)}
    assert [n for n in rows if n in suite.CASES] == list(suite.CASES)
    for name in suite.CASES:
        assert float(rows[name]["fp32"]) <= EXACT
        assert float(rows[name]["cosine"]) >= suite.COSINE


def test_what_is_no_number_does_not_agree() -> None:
    one = np.ones(4, np.float32)
    for bad in (np.nan, np.inf):
        assert suite.apart({"y": np.where([0, 0, 0, 1], bad, one)}, {"y": one}) == (np.inf, 0)
    assert suite.apart({"y": one, "z": -one}, {"y": one, "z": one}) == (2, -1)


def test_stored_weights_overflow_fp16() -> None:
    assert row("light/squeezenet").narrow == "bf16"
    assert row("drawn/squeezenet").narrow == "fp16"


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_drawn_weights_tell_every_class_from_the_others(name: str) -> None:
    """So that a confusion of channels shows, which it would not in the stored outputs."""
    assert len(np.unique(light.stored(name))) == 1
    model = light.drawn(name)
    onnx.checker.check_model(model)
    (y,) = suite.Given(model, light.dummy(model)).reference().values()
    assert len(np.unique(y)) > 0.8 * y.size


# --- opsets


@pytest.mark.parametrize("name", ["shufflenet", "inception_v2"])
def test_an_opset_changes_nothing_of_a_network(name: str) -> None:
    """Stored in opset 9; converted to each from 7 to the newest it is the same Graph."""
    model = light.drawn(name)
    want = _nodes(model)
    for opset in range(7, onnx.defs.onnx_opset_version() + 1):
        try:
            converted = version_converter.convert_version(model, opset)
        except RuntimeError:
            continue  # the converter's own gaps
        assert _nodes(converted) == want, opset


def _nodes(model: onnx.ModelProto) -> list[tuple[object, ...]]:
    """Its nodes. A Softmax says its axis or leaves it out: of a matrix, the first and only one is the last."""
    graph = read(model)
    return [
        (n.op, n.inputs, n.outputs, n.types, n.attrs if n.op != "Softmax" else n.types)
        for n in graph.nodes
    ]


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 16, 17])
@pytest.mark.parametrize("name", ["deeplab_head", "swin", "unet", "gru"])
def test_torchscript_s_exports_in_old_opsets_are_read(name: str, opset: int) -> None:
    if opset < {"unet": 11, "swin": 10}.get(name, 9):
        pytest.skip("PyTorch does not export it to this opset")
    try:
        model, feeds = exports.exported(name, dynamo=False, opset=opset)
    except UsageError as e:
        pytest.skip(str(e))
    (want,) = suite.Given(model, feeds).reference().values()
    (got,) = evaluate(read(model), feeds).values()
    assert model.opset_import[0].version == opset
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
