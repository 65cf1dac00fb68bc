"""Inception v1 (GoogLeNet), with the topology that ships inside the onnx package as test data.

Its weights there are made by `ConstantOfShape`: one number a tensor. All channels of a layer then hold the same values, and
a compiler that confuses channels, or the operands of a Concat, computes the same outputs. So they are drawn anew here.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from knapper.isa.errors import UsageError

from .sketch import IR_VERSION, Array, he

TOPOLOGY = Path(onnx.__file__).parent / "backend/test/data/light/light_inception_v1.onnx"
SIZE = 224


def inception_v1(batch: int = 1, size: int = SIZE) -> ModelProto:
    """The network for 224×224 images, the only size that its last pooling window fits.

    Raises UsageError E707 for another size, or if the onnx package has no such file.
    """
    if size != SIZE:
        raise UsageError("E707", f"inception_v1 takes images of {SIZE}×{SIZE}, not {size}×{size}")
    if not TOPOLOGY.is_file():
        raise UsageError(
            "E707", "this onnx package has no light_inception_v1.onnx in its test data"
        )
    model = onnx.load(TOPOLOGY)
    _draw_weights(model, np.random.default_rng(0))
    _set_batch(model, batch)
    model.graph.name, model.ir_version = "inception_v1", IR_VERSION
    return model


def _draw_weights(model: ModelProto, rng: np.random.Generator) -> None:
    """Replace every tensor that ConstantOfShape makes, and every bias, by random numbers."""
    graph = model.graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = [n for n in graph.node if n.op_type == "ConstantOfShape"]
    drawn = {n.output[0]: _weight(known[n.input[0]], rng) for n in made}
    drawn |= {name: _weight(a.shape, rng) for name, a in known.items() if a.dtype == np.float32}
    kept = [
        t
        for t in graph.initializer
        if known[t.name].dtype != np.float32 and t.name not in _shapes(made)
    ]
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in drawn.items())
    inputs = [i for i in graph.input if i.name not in known]
    del graph.input[:]
    graph.input.extend(inputs)


def _shapes(made: list[NodeProto]) -> set[str]:
    return {n.input[0] for n in made}


def _weight(shape: Array | tuple[int, ...], rng: np.random.Generator) -> Array:
    """A filter or matrix [outputs, …] He-scaled; a bias small."""
    sizes = tuple(map(int, shape))
    if len(sizes) == 1:
        return rng.standard_normal(sizes, np.float32) * np.float32(0.05)
    return he(rng, sizes, math.prod(sizes[1:]))


def _set_batch(model: ModelProto, batch: int) -> None:
    """Another number of images: in the input, the output, and the Reshape before the classifier."""
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = batch
    reshape = next(n for n in model.graph.node if n.op_type == "Reshape")
    target = next(t for t in model.graph.initializer if t.name == reshape.input[1])
    shape = numpy_helper.to_array(target).copy()
    shape[0] = batch
    target.CopyFrom(numpy_helper.from_array(shape, target.name))
