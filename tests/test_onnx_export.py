"""Graphs as ONNX models: they read back as they were, and onnxruntime computes what they say."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from quantized_models import NETWORKS, by_onnxruntime, quantized

from knapper.compiler import ops, pipeline  # noqa: F401  declares the ops
from knapper.compiler.ir import OPS, Graph, Node, Type, evaluate, infer
from knapper.compiler.ops import table
from knapper.compiler.passes.quantize import Quantize
from knapper.compiler.quantization.ranges import Ranges
from knapper.frontends.onnx import read
from knapper.frontends.onnx.export import to_onnx
from knapper.isa.errors import KnapperError

F32 = np.float32
CASES = [(name, i) for name in sorted(OPS) for i in range(len(table.examples(OPS[name])))]
NOT_ONNX = {"BitmapEncode", "Im2col"}
AT_COMPILE_TIME = {"ConstantOfShape", "NonMaxSuppression", "NonZero", "Range"}
"""The door knows them only with known operands, and a graph has none of them behind `fold`."""


def one(name: str, operands: list[Any], attrs: dict[str, Any]) -> tuple[Graph, dict[str, Any]]:
    inputs = tuple(f"x{k}" if a is not None else "" for k, a in enumerate(operands))
    types = infer(name, [None if a is None else Type.of(a) for a in operands], attrs)
    outputs = tuple(f"y{k}" for k in range(len(types)))
    feed = {v: a for v, a in zip(inputs, operands, strict=True) if v}
    node = Node(name, inputs, outputs, types, attrs, loc=name)
    shapes = {v: Type.of(a) for v, a in feed.items()}
    return Graph(name, shapes, {v: v for v in outputs}, (node,)), feed


def test_every_example_of_every_op_reads_back() -> None:
    """All but those in which a graph says what ONNX cannot."""
    refused = Counter[str]()
    for name, i in CASES:
        if name in NOT_ONNX | AT_COMPILE_TIME:
            continue
        operands, attrs = table.examples(OPS[name])[i]
        graph, feed = one(name, operands, attrs)
        try:
            model = to_onnx(graph)
        except KnapperError:
            refused[name] += 1
            continue
        onnx.checker.check_model(model)
        back = evaluate(read(model), feed)
        for y, want in evaluate(graph, feed).items():
            got = back[y]  # attributes are f32 in the model
            assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{name}[{i}]"
            a, b = (v.astype(float) for v in (got, want))
            np.testing.assert_allclose(
                a, b, 1e-6 if want.itemsize > 2 else 1e-2, 1e-7, err_msg=f"{name}[{i}]"
            )
    assert set(refused) <= {n for n in OPS if "layout" in OPS[n].attrs} | {"MatMul", "QuantizeLinear"}  # fmt: skip
    assert sum(refused.values()) < 40


def test_what_onnx_has_not_is_refused() -> None:
    operands, attrs = table.examples(OPS["Im2col"])[0]
    with pytest.raises(KnapperError, match=r"E203: .*ONNX has no operator Im2col"):
        to_onnx(one("Im2col", operands, attrs)[0])
    layout = next(e for e in table.examples(OPS["Conv"]) if e[1].get("layout") == "NHWC")
    with pytest.raises(KnapperError, match="from before `integers` and `layout`"):
        to_onnx(one("Conv", *layout)[0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("weights", ["QInt8", "QInt4"])
def test_quantized_models_come_out_as_they_went_in(name: str, weights: str) -> None:
    model = quantized(name, weights=weights, per_channel=True)
    again = to_onnx(read(model))
    onnx.checker.check_model(again, full_check=True)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": np.random.default_rng(3).standard_normal(shape).astype(F32)}
    mine, theirs = (by_onnxruntime(m, feed, plain=True) for m in (again, model))
    np.testing.assert_array_equal(mine, theirs)
    few = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    assert (weights == "QInt4") == any(
        t.data_type in few for t in again.graph.initializer if t.dims
    )


WEIGHTS = {
    "flint4": [0, 1, -2, 3, 4, -6, 8, -16],
    "uflint4": [0, 5, 7, 10, 14, 24, 32, 64],
    "pot4": [0, 1, -2, 4, -8, 16, -32, 64],
    "i4": [0, 1, -2, 5, -8, 7, 3, -7],
}


def layer(weights: str, activations: dict[str, Any], border: Any = None) -> Graph:
    """x rounded, by weights that only one format holds."""
    rng = np.random.default_rng(0)
    w = rng.choice(WEIGHTS[weights], (8, 6, 3, 3))
    w.flat[:8] = WEIGHTS[weights]
    constants: dict[str, Any] = {"w": w.astype(np.uint8 if weights[0] == "u" else np.int8)}
    constants |= {"sw": rng.uniform(0.01, 0.1, 8).astype(F32), "sx": F32(0.3) * np.ones((), F32)}
    constants |= {} if border is None else {"b": np.asarray(border, F32)}
    x, types = Type("f32", (1, 6, 5, 5)), {}
    steps: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
        ("QuantizeLinear", ("x", "sx") if border is None else ("x", "sx", "", "b"), activations),
        ("DequantizeLinear", ("v0", "sx"), {}),
        ("DequantizeLinear", ("w", "sw"), {"axis": 0}),
        ("Conv", ("v1", "v2"), {"pads": (1, 1, 1, 1)}),
    ]
    types = {"x": x} | {v: Type.of(a) for v, a in constants.items()}
    nodes = []
    for i, (name, operands, attrs) in enumerate(steps):
        made = infer(name, [types[v] if v else None for v in operands], attrs)
        nodes.append(Node(name, operands, (f"v{i}",), made, attrs))
        types[f"v{i}"] = made[0]
    return Graph("layer", {"x": x}, {"y": "v3"}, tuple(nodes), constants).verify()


ACTIVATIONS: dict[str, dict[str, Any]] = {
    "u8": {},
    "i6": {"to": "i8", "format": "i6"},
    "uflint4": {"format": "uflint4"},
    "flint4": {"to": "i8", "format": "flint4"},
    "pot4": {"to": "i8", "format": "pot4"},
    "border": {"format": "u4"},
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_formats_run_unmodified_in_onnxruntime(weights: str, activations: str) -> None:
    """Sums of integers below 2^24 in steps of one scale: nothing but the last rounding can differ."""
    border = [0.4, 0.01, -0.002] if activations == "border" else None
    graph = layer(weights, ACTIVATIONS[activations], border)
    model = to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    assert {n.domain for n in model.graph.node} == {""}
    made = Counter(n.op_type for n in model.graph.node)
    assert made["Gather"] == (weights != "i4")
    feed = {"x": np.random.default_rng(1).uniform(-9, 9, (1, 6, 5, 5)).astype(F32)}
    (said,) = evaluate(graph, feed).values()
    np.testing.assert_allclose(by_onnxruntime(model, feed), said, 2e-6, 2e-5)
    back = pipeline.run(read(model), pipeline.parse("fold"))
    (again,) = evaluate(back, feed).values()
    np.testing.assert_allclose(again, said, 2e-6, 2e-5)


@pytest.mark.parametrize(
    ("weights", "activations"), [("i8", "i8"), ("i4", "u4"), ("i4", "i4"), ("i4", "ant4")]
)
def test_onnxruntime_optimizes_rounded_rows(weights: str, activations: str) -> None:
    """A MatMul and an Add of rank 3, which onnxruntime makes a Gemm behind a Reshape: signed bytes there did not load."""
    rng = np.random.default_rng(2)
    constants = {"w": rng.normal(size=(8, 6)).astype(F32), "b": rng.normal(size=6).astype(F32)}
    rows = Type("f32", (1, 5, 6))
    nodes = (Node("MatMul", ("x", "w"), ("p",), (rows,)), Node("Add", ("p", "b"), ("s",), (rows,)))
    g = Graph("rows", {"x": Type("f32", (1, 5, 8))}, {"y": "s"}, nodes, constants).verify()
    feed = {"x": rng.normal(size=(1, 5, 8)).astype(F32)}
    seen = Ranges.observe([feed])
    rounded = Quantize(weights, activations, observed=seen).run(g)
    model = to_onnx(rounded)
    assert onnx.TensorProto.INT8 not in {t.data_type for t in model.graph.initializer if not t.dims}
    (want,) = evaluate(rounded, feed).values()
    for plain in (True, False):
        np.testing.assert_allclose(by_onnxruntime(model, feed, plain=plain), want, 2e-6, 2e-5)
