"""A step of a cache, as a model, and what it is fed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from knapper.compiler.ir import Array

ROOM, WIDTH = 64, 16
ROW = 2 * WIDTH * 4
"""Bytes that a step of the cache below writes."""


def cache() -> onnx.ModelProto:
    """A step of a cache: two rows of `new` at `at`; y is the sum of all rows."""
    shape, info = (2, ROOM, WIDTH), helper.make_tensor_value_info
    nodes = [
        helper.make_node("TensorScatter", ["past", "new", "at"], ["present"], axis=1),
        helper.make_node("ReduceSum", ["present", "axes"], ["y"], keepdims=0),
    ]
    inputs = [info("past", 1, shape), info("new", 1, (2, 1, WIDTH)), info("at", 7, (2,))]
    outputs = [info("present", 1, shape), info("y", 1, (2, WIDTH))]
    axes = helper.make_tensor("axes", TensorProto.INT64, (1,), [1])
    graph = helper.make_graph(nodes, "cache", inputs, outputs, [axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def rows(i: int) -> dict[str, Array]:
    new = np.full((2, 1, WIDTH), i + 1, np.float32)
    return {"new": new, "at": np.array([i, i + 3])}
