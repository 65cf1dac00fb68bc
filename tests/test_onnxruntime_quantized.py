"""Models that onnxruntime has quantized: a step at most in each layer, whole networks in integers, the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from quantized_models import NETWORKS, by_onnxruntime, layers, quantized

from knapper.compiler import pipeline
from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import Graph, evaluate
from knapper.frontends.onnx import read
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

PASSES = pipeline.parse("fold,dead,simplify,bn,idioms,products,fold,simplify,integers,dead")
SCHEMES: dict[str, dict[str, Any]] = {
    "u8 i8": {},
    "u8 i8 per channel": {"per_channel": True},
    "u8 u8": {"weights": "QUInt8"},
    "i8 i8 symmetric": {"activations": "QInt8", "symmetric": True, "per_channel": True},
    "u8 i4 per channel": {"weights": "QInt4", "per_channel": True},
    "operators": {"format": "QOperator"},
    "operators per channel": {"format": "QOperator", "per_channel": True},
    "operators u8 u8": {"format": "QOperator", "weights": "QUInt8"},
}


def integers(model: onnx.ModelProto) -> Graph:
    return pipeline.run(read(model), PASSES)


def drawn(model: onnx.ModelProto, seed: int) -> dict[str, Any]:
    """Inputs at random: normal numbers, or all bytes."""
    rng, feed = np.random.default_rng(seed), dict[str, Any]()
    for i in model.graph.input:
        t = i.type.tensor_type
        shape = [d.dim_value for d in t.shape.dim]
        signed = t.elem_type == TensorProto.INT8
        if t.elem_type == TensorProto.FLOAT:
            feed[i.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            whole = rng.integers(-128 if signed else 0, 128 if signed else 256, shape)
            feed[i.name] = whole.astype(np.int8 if signed else np.uint8)
    return feed


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_layer_is_a_step_off_at_most(name: str, scheme: str) -> None:
    """The same bytes in; onnxruntime's integer kernels, or its float ones as the model is written."""
    seen = set[str]()
    for what, part in layers(quantized(name, **SCHEMES[scheme])):
        feed, graph = drawn(part, 1), integers(part)
        (ours,) = (np.asarray(y) for y in evaluate(graph, feed).values())
        plain = by_onnxruntime(part, feed, plain=True)
        off = np.abs(ours.astype(int) - plain.astype(int))
        assert off.max() <= 1, what
        ties = 0.12 if "AveragePool" in what else 0.02  # four bytes' mean is half a step off often
        assert (off > 0).mean() <= ties, what
        seen.add(what)
    assert len(seen) >= 3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_in_integers_and_run(name: str, scheme: str) -> None:
    """Every product is exact, and the emulator gives what the graph says."""
    model = quantized(name, **SCHEMES[scheme])
    graph, feed = integers(model), drawn(model, 2)
    products = [n for n in graph.nodes if n.op in ("Conv", "MatMul", "Gemm")]
    assert products
    assert {n.types[0].dtype for n in products} == {"i32"}
    types = graph.types()
    assert {types[v].dtype for n in products for v in n.inputs[:2]} <= {"i8", "u8"}
    (said,) = evaluate(graph, feed).values()
    image = compile_graph(read(model), Machine.load("volta-8tc"), precision="fp32")
    (y,) = Session(image).run(feed, threads=1).outputs.values()
    np.testing.assert_allclose(y, said, 1e-6, 1e-6)
    theirs = by_onnxruntime(model, feed)
    assert (y.argmax(-1) == theirs.argmax(-1)).mean() > 0.9
    assert np.corrcoef(y.ravel(), theirs.ravel())[0, 1] > 0.999


def test_zero_points_that_are_computed(tmp_path: Path) -> None:
    """Dynamic quantization: rows of bytes by constant ones, the zero point behind the product."""
    onnx.save(NETWORKS["attention"](), tmp_path / "float.onnx")
    quantize_dynamic(
        tmp_path / "float.onnx", tmp_path / "dynamic.onnx", weight_type=QuantType.QInt8
    )
    model = onnx.load(tmp_path / "dynamic.onnx")
    graph, feed = integers(model), drawn(model, 2)
    types = graph.types()
    products = [n for n in graph.nodes if n.op == "MatMul"]
    narrow = [n for n in products if {types[v].dtype for v in n.inputs} <= {"i8", "u8"}]
    assert len(narrow) >= 4
    image = compile_graph(read(model), Machine.load("volta-8tc"), precision="fp32")
    (y,) = Session(image).run(feed, threads=1).outputs.values()
    np.testing.assert_allclose(y, by_onnxruntime(model, feed, plain=True), 1e-4, 1e-2)


# --- a trained network

MEAN, DEVIATION = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def pictures(images: Any) -> Any:
    return ((images / np.float32(255) - MEAN) / DEVIATION).transpose(0, 3, 1, 2).astype(np.float32)


class Pictures(CalibrationDataReader):
    def __init__(self, images: Any) -> None:
        self.left = iter([{"input": pictures(images[i : i + 1])} for i in range(len(images))])

    def get_next(self) -> Any:
        return next(self.left, None)


@pytest.mark.parametrize("format", ["QDQ", "QOperator"])
def test_a_trained_network_gives_the_same_answers(format: str, data: Path, tmp_path: Path) -> None:
    """64 pictures; all of the first 500 do."""
    images, path, number = np.load(data / "data" / "cifar10_small.npz"), tmp_path / "q.onnx", 64
    quantize_static(
        data / "models" / "resnet20_cifar10.onnx",
        path,
        Pictures(images["train_images"][:32]),
        quant_format=QuantFormat[format],
        per_channel=format == "QDQ",
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    x = pictures(images["test_images"][:number])
    graph = read(path, {"input": x.shape}, replace_fixed=True)
    (y,) = Session(compile_graph(graph, Machine.load("volta-8tc"), precision="fp32")).run({"input": x}).outputs.values()  # fmt: skip
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = np.concatenate([session.run(None, {"input": p[None]})[0] for p in x])
    assert (y.argmax(1) == theirs.argmax(1)).all()
    assert (y.argmax(1) == images["test_labels"][:number]).mean() > 0.8
