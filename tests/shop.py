"""A small model to try commands on, and what their tests have in common. The fixtures `shop` and `run` are in conftest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
ROOT = Path(__file__).parent.parent
SHAPE = ("--shape", "image=1,3,8,8")
Knapper = Callable[..., tuple[int, str, str]]


def small_model() -> onnx.ModelProto:
    """Two inputs, one of them an index; three outputs; a symbolic batch."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3), np.float32),
        "t": rng.standard_normal((5, 4), np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"], "relu"),
        node("GlobalAveragePool", ["r"], ["g"], "gap"),
        node("Flatten", ["g"], ["mean"], "flatten"),
        node("Gather", ["t", "token"], ["row"], "embed"),
        node("Add", ["mean", "row"], ["sum"], "add"),
        node("ArgMax", ["sum"], ["best"], "argmax", axis=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("image", TensorProto.FLOAT, ["N", 3, 8, 8]), value("token", TensorProto.INT64, [1])],
        [value("sum", TensorProto.FLOAT, ["N", 4]), value("row", TensorProto.FLOAT, [1, 4]),
         value("best", TensorProto.INT64, ["N", 1])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".ns")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def outputs(path: Path) -> dict[str, Array]:
    with np.load(path) as z:
        return {n: z[n] for n in z.files}
