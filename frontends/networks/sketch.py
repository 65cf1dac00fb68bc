"""An ONNX model being written: nodes that are named after what they do, weights that are drawn from a seed.

Weights are He-scaled, N(0, 2 / fan-in), so that activations keep their size through a hundred layers and stay far inside
fp16's range; they differ from element to element, so that an order mixed up anywhere shows in the outputs. A network is the
same for the same seed, on every machine: numpy's PCG64 and its float32 normals are what the seed names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
OPSET = 20
"""Has LayerNormalization (17) and Gelu (20); RoiAlign is that of opset 16."""
IR_VERSION = 10
DOMAIN = "knapper"
"""Of the functions that a network brings along."""
Shape = Sequence[int | str]


def he(rng: np.random.Generator, shape: Sequence[int], fan_in: int, gain: float = 1.0) -> Array:
    """Normal numbers of variance gain² · 2 / fan_in, f32."""
    drawn = rng.standard_normal(tuple(shape), np.float32)
    drawn *= np.float32(gain * math.sqrt(2 / fan_in))
    return drawn


def windows(size: int, kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> int:
    """How many windows fit on an axis.

    >>> windows(227, 11, 4)
    55
    """
    return (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1


class Sketch:
    """Collects nodes and weights; values are their ONNX names."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name, self.rng = name, np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.functions: list[FunctionProto] = []
        self._counts: dict[str, int] = {}

    # --- nodes

    def node(self, op: str, *inputs: str, domain: str = "", name: str = "", **attrs: Any) -> str:
        """A node with one result, which has the node's name."""
        name = name or self._numbered(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [name], name, domain=domain, **attrs))
        return name

    def two(self, op: str, *inputs: str, **attrs: Any) -> tuple[str, str]:
        """A node with two results."""
        name = self._numbered(op.lower())
        results = (f"{name}.0", f"{name}.1")
        self.nodes.append(helper.make_node(op, inputs, results, name, **attrs))
        return results

    def _numbered(self, stem: str) -> str:
        self._counts[stem] = self._counts.get(stem, 0) + 1
        return f"{stem}{self._counts[stem]}"

    def constant(self, a: Array, name: str = "") -> str:
        """A tensor of the model."""
        name = name or self._numbered("constant")
        self.weights.append(numpy_helper.from_array(a, name))
        return name

    def ints(self, *values: int) -> str:
        """A list of integers: a shape, axes, indices."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """One number, f32."""
        return self.constant(np.array(value, np.float32))

    # --- layers

    def conv(
        self,
        x: str,
        channels: tuple[int, int],
        kernel: int,
        stride: int = 1,
        pad: int = 0,
        dilation: int = 1,
        bias: bool = True,
        gain: float = 1.0,
    ) -> str:
        """A convolution from channels[0] to channels[1]."""
        c, o = channels
        name = self._numbered("conv")
        operands = [x, self.constant(self._drawn((o, c, kernel, kernel), gain), f"{name}.w")]
        if bias:
            operands.append(self.constant(self._bias(o), f"{name}.b"))
        return self.node(
            "Conv",
            *operands,
            name=name,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            dilations=[dilation] * 2,
        )

    def dense(self, x: str, sizes: tuple[int, int], gain: float = 1.0) -> str:
        """x [rows, sizes[0]] · W + b."""
        name = self._numbered("dense")
        k, n = sizes
        w = self.constant(he(self.rng, (k, n), k, gain), f"{name}.w")
        return self.node("Gemm", x, w, self.constant(self._bias(n), f"{name}.b"), name=name)

    def norm(self, x: str, channels: int) -> str:
        """BatchNormalization with statistics near those of its input."""
        name, rng = self._numbered("norm"), self.rng
        rows = {
            "scale": rng.uniform(0.5, 1, channels),
            "shift": rng.normal(0, 0.1, channels),
            "mean": rng.normal(0, 0.1, channels),
            "var": rng.uniform(0.8, 1.2, channels),
        }
        statistics = [self.constant(a.astype(np.float32), f"{name}.{k}") for k, a in rows.items()]
        return self.node("BatchNormalization", x, *statistics, name=name, epsilon=1e-5)

    def relu(self, x: str) -> str:
        """Relu."""
        return self.node("Relu", x)

    def max_pool(self, x: str, kernel: int, stride: int, pad: int = 0) -> str:
        """Maxima of windows."""
        return self.node(
            "MaxPool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
        )

    def _drawn(self, shape: tuple[int, ...], gain: float) -> Array:
        return he(self.rng, shape, math.prod(shape[1:]), gain)

    def _bias(self, n: int) -> Array:
        return self.rng.standard_normal(n, np.float32) * np.float32(0.05)

    # --- the model

    def model(
        self,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, tuple[str, int, Shape]],
        element: int = TensorProto.FLOAT,
    ) -> ModelProto:
        """The model. `inputs`: name → shape, of `element`s; `outputs`: name → (value, element type, shape)."""
        for name, (value, _, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name], f"output.{name}"))
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info(n, element, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, t, s) for n, (_, t, s) in outputs.items()],
            self.weights,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if self.functions:
            opsets.append(helper.make_opsetid(DOMAIN, 1))
        return helper.make_model(
            graph, opset_imports=opsets, functions=self.functions, ir_version=IR_VERSION
        )
