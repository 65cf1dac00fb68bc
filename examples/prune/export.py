"""The pruned network as ONNX: batch norm folded into the convolutions (zeros stay zeros), weights stored in fp16, as they will run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .network import Conv, Network

OPSET, IR_VERSION = 17, 8


class _Writer:
    """Nodes and weights in order."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, name: str, *inputs: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attrs))
        return name

    def weight(self, name: str, value: NDArray[np.float32]) -> str:
        """Stored in 16 bits and cast to 32, the type of everything between the layers in the model."""
        self.weights.append(numpy_helper.from_array(value.astype(np.float16), f"{name}.f16"))
        return self.node("Cast", name, f"{name}.f16", to=TensorProto.FLOAT)

    def bias(self, name: str, value: NDArray[np.float32]) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, name: str, layer: Conv, x: str) -> str:
        weight, bias = (t.detach().contiguous().numpy() for t in layer.folded())
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        given = self.weight(f"{name}.weight", weight), self.bias(f"{name}.bias", bias)
        return self.node("Conv", name, x, *given, pads=[kernel // 2] * 4, strides=[stride] * 2)

    def relu(self, x: str) -> str:
        return self.node("Relu", f"{x}.relu", x)


def model(network: Network) -> onnx.ModelProto:
    """image f32[1, 1, 28, 28] → scores f32[1, 10]; the convolutions have the names of the network's parts."""
    w = _Writer()
    x = w.relu(w.conv("stem", network.stem, "image"))
    for name, block in (("block1", network.block1), ("block2", network.block2)):
        y = w.relu(w.conv(f"{name}.first", block.first, x))
        y = w.conv(f"{name}.second", block.second, y)
        short = w.conv(f"{name}.shortcut", block.shortcut, x)
        x = w.relu(w.node("Add", f"{name}.add", y, short))
    mean = w.node("Flatten", "flat", w.node("GlobalAveragePool", "mean", x), axis=1)
    weight, bias = (p.detach().numpy() for p in network.classes.parameters())
    given = w.weight("classes.weight", weight), w.bias("classes.bias", bias)
    w.node("Gemm", "scores", mean, *given, transB=1)
    image = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 28, 28])]
    scores = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])]
    graph = helper.make_graph(w.nodes, "fashion", image, scores, w.weights)
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(made, full_check=True)
    return made
