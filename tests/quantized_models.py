"""Small networks, quantized by onnxruntime's own tools, for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

RNG = np.random.default_rng(0)
Nodes = list[onnx.NodeProto]


def weights(*shape: int) -> Any:
    fan = np.prod(shape[1:]) if len(shape) > 1 else 50
    return (RNG.standard_normal(shape) * 1.4 / np.sqrt(fan)).astype(np.float32)


def network(nodes: Nodes, shape: list[int], constants: dict[str, Any]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "net", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def node(op: str, operands: str, result: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, operands.split(), [result], result, **attrs)


def cnn() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("MaxPool", "r1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p1 w2 b2", "c2", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Clip", "c2 low high", "r2"),
        node("GlobalAveragePool", "r2", "g"),
        node("Flatten", "g", "f"),
        node("MatMul", "f w3", "m"),
        node("Add", "m b3", "y"),
    ]
    constants = {"w1": weights(8, 3, 3, 3), "b1": weights(8), "w2": weights(16, 8, 3, 3)}
    constants |= {"b2": weights(16), "w3": weights(16, 10), "b3": weights(10)}
    constants |= {"low": np.float32(0), "high": np.float32(6)}
    return network(nodes, [1, 3, 16, 16], constants)


def residual() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c2 r1", "a"),
        node("Relu", "a", "r2"),
        node("Conv", "r2 w3", "c3", group=8, pads=[1, 1, 1, 1]),
        node("Concat", "c3 r2", "both", axis=1),
        node("AveragePool", "both", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Slice", "p start end axes", "s"),
        node("GlobalAveragePool", "s", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w4 b4", "y", transB=1),
    ]
    constants = {"w1": weights(8, 3, 3, 3), "b1": weights(8), "w2": weights(8, 8, 3, 3)}
    constants |= {"b2": weights(8), "w3": weights(8, 1, 3, 3), "w4": weights(10, 8)}
    constants |= {"b4": weights(10), "start": [4], "end": [12], "axes": [1]}
    return network(nodes, [1, 3, 12, 12], constants)


def attention() -> onnx.ModelProto:
    nodes = [
        *(node("MatMul", f"x w{v}", v) for v in "qkv"),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "scores"),
        node("Mul", "scores quarter", "scaled"),
        node("Softmax", "scaled", "shares", axis=-1),
        node("MatMul", "shares v", "mixed"),
        node("MatMul", "mixed wo", "o"),
        node("Add", "o bo", "ob"),
        node("Add", "ob x", "y"),
    ]
    constants = {f"w{v}": weights(16, 16) for v in "qkvo"}
    return network(nodes, [1, 12, 16], constants | {"bo": weights(16), "quarter": np.float32(0.25)})


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "cnn": cnn,
    "residual": residual,
    "attention": attention,
}


class Samples(CalibrationDataReader):
    """Normal numbers."""

    def __init__(self, shape: list[int]) -> None:
        rng = np.random.default_rng(1)
        self.left = iter([{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(8)])

    def get_next(self) -> Any:
        return next(self.left, None)


@cache
def quantized(
    name: str,
    format: str = "QDQ",
    per_channel: bool = False,
    activations: str = "QUInt8",
    weights: str = "QInt8",
    symmetric: bool = False,
) -> onnx.ModelProto:
    """A network that onnxruntime has quantized."""
    model = NETWORKS[name]()
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        onnx.save(model, source)
        quantize_static(
            source,
            target,
            Samples(shape),
            quant_format=QuantFormat[format],
            per_channel=per_channel,
            activation_type=QuantType[activations],
            weight_type=QuantType[weights],
            extra_options={"ActivationSymmetric": symmetric},
        )
        return onnx.load(target)


def by_onnxruntime(model: onnx.ModelProto, feed: dict[str, Any], *, plain: bool = False) -> Any:
    """Its first output; `plain`: node by node as written, nothing fused."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


INTEGER = {TensorProto.UINT8, TensorProto.INT8}


def layers(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Each value in 8 bits, with the part of the model that makes it of other such values or the input."""
    inferred = onnx.shape_inference.infer_shapes(model)
    infos = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.input)}
    constants = {t.name: t for t in model.graph.initializer}
    makers = {o: n for n in model.graph.node for o in n.output}
    steps = {
        n.output[0]
        for n in model.graph.node
        if n.input[0] not in constants
        and n.output[0] in infos
        and infos[n.output[0]].type.tensor_type.elem_type in INTEGER
    }
    for y in sorted(steps):
        nodes, inputs, held, todo = [], dict[str, Any](), dict[str, Any](), [y]
        while todo:
            v = todo.pop()
            if v in constants:
                held[v] = constants[v]
            elif v != y and (v in steps or v not in makers):
                inputs[v] = infos[v]
            elif v and makers[v] not in nodes:
                nodes.append(makers[v])
                todo += makers[v].input
        ordered = [n for n in model.graph.node if n in nodes]
        graph = helper.make_graph(
            ordered, y, list(inputs.values()), [infos[y]], list(held.values())
        )
        yield (
            "+".join(n.op_type for n in ordered if "quantizeL" not in n.op_type.lower()) or "cast",
            helper.make_model(graph, opset_imports=model.opset_import, ir_version=10),
        )
