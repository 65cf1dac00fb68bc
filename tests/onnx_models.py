"""ONNX models for tests: nodes and weights in a line each, and the Graph they become, once its values are onnxruntime's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from knapper.compiler.ir import Graph, evaluate
from knapper.frontends.onnx import read
from knapper.frontends.oracle import Oracle

Array = NDArray[Any]
RNG = np.random.default_rng(0)
node = helper.make_node


def f32(*shape: int) -> Array:
    return RNG.standard_normal(shape, np.float32)


def number(value: float | bool) -> Array:
    return np.array(value, np.bool_ if isinstance(value, bool) else np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, dtype, s) for n, s in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def ops(g: Graph) -> list[str]:
    return [n.op for n in g.nodes]


def agrees(proto: ModelProto, tolerance: float = 1e-5, **inputs: Array) -> Graph:
    """The imported graph, once its reference values are onnxruntime's."""
    graph = read(proto).verify()
    expected = Oracle(proto.SerializeToString()).run(inputs)
    for name, y in evaluate(graph, inputs).items():
        assert y.shape == expected[name].shape
        np.testing.assert_allclose(y, expected[name], rtol=tolerance, atol=tolerance)
    return graph


IMAGE = (1, 2, 5, 6)
