"""The nine classic topologies that ship inside the onnx package as test data: as they are stored, and with weights drawn anew.

A stored one makes most of its weights by `ConstantOfShape`, one number a tensor, and has the outputs beside it for the dummy input
of ONNX's own runner, numbers that grow evenly from 0 to 1. All channels of a layer then hold the same values, and a compiler that
confuses channels, or the operands of a Concat, computes the same outputs. So `drawn` gives them weights that differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from knapper.isa.errors import UsageError

from .sketch import IR_VERSION, Array, he

FOLDER = Path(onnx.__file__).parent / "backend/test/data/light"
NAMES = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50",
    "shufflenet", "squeezenet", "vgg19", "zfnet512",
)  # fmt: skip
SCALES = {("BatchNormalization", 1), ("Mul", 0), ("Mul", 1)}
VARIANCES = {("BatchNormalization", 4)}
"""Operators and operands; a Mul is what older exporters wrote behind a normalization."""
SUMS, THIRD = {"Add", "Sum"}, 0.35
"""What is added to a shortcut is scaled down, or sums would grow from block to block until one class has all the probability."""
BEFORE = ("Unsqueeze", "Reshape")
"""What may stand between a tensor and who multiplies by it."""


def topology(name: str) -> ModelProto:
    """As stored; UsageError E707 if the onnx package has no such file."""
    path = FOLDER / f"light_{name}.onnx"
    if not path.is_file():
        raise UsageError("E707", f"this onnx package has no {path.name} in its test data")
    return onnx.load(path)


def stored(name: str) -> Array:
    """The outputs that lie beside it."""
    data = (FOLDER / f"light_{name}_output_0.pb").read_bytes()
    return numpy_helper.to_array(TensorProto.FromString(data))


def dummy(model: ModelProto) -> dict[str, Array]:
    """The input that ONNX's runner makes for the stored outputs."""
    known = {t.name for t in model.graph.initializer}
    (port,) = (i for i in model.graph.input if i.name not in known)
    shape = [d.dim_value for d in port.type.tensor_type.shape.dim]
    n = math.prod(shape)
    return {port.name: (np.arange(n).reshape(shape) / n).astype(np.float32)}


def drawn(name: str) -> ModelProto:
    """With random weights, the same each time."""
    model = topology(name)
    draw(model, np.random.default_rng(0))
    model.graph.name, model.ir_version = name, IR_VERSION
    return model


def draw(model: ModelProto, rng: np.random.Generator) -> None:
    """Replace every tensor that ConstantOfShape makes, and every float initializer, by random numbers."""
    graph = model.graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = [n for n in graph.node if n.op_type == "ConstantOfShape"]
    shapes = {n.output[0]: tuple(map(int, known[n.input[0]])) for n in made}
    shapes |= {name: a.shape for name, a in known.items() if a.dtype == np.float32}
    roles = dict(_roles(graph))
    weights = {name: _weight(shape, roles.get(name, ""), rng) for name, shape in shapes.items()}
    sizes = {n.input[0] for n in made}
    kept = [
        t for t in graph.initializer if known[t.name].dtype != np.float32 and t.name not in sizes
    ]
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in weights.items())
    inputs = [i for i in graph.input if i.name not in known]
    del graph.input[:]
    graph.input.extend(inputs)


def _roles(graph: GraphProto) -> Iterator[tuple[str, str]]:
    """Tensor → what it is for, where that is no filter, matrix or bias."""
    behind = {n.output[0]: n.input[0] for n in graph.node if n.op_type in BEFORE}
    added = {value for n in graph.node if n.op_type in SUMS for value in n.input}
    for n in graph.node:
        for i, value in enumerate(n.input):
            if (n.op_type, i) in SCALES:
                role = "sum" if n.output[0] in added else "scale"
                yield behind.get(value, value), role
            elif (n.op_type, i) in VARIANCES:
                yield value, "variance"


def _weight(shape: tuple[int, ...], role: str, rng: np.random.Generator) -> Array:
    """A filter or matrix [outputs, …] He-scaled; a bias small; scales and variances around 1, less before a sum."""
    if role:
        spread = rng.uniform(0.7, 1.3, shape).astype(np.float32)
        return spread * np.float32(THIRD if role == "sum" else 1)
    if len(shape) == 1:
        return rng.standard_normal(shape, np.float32) * np.float32(0.05)
    return he(rng, shape, math.prod(shape[1:]))
