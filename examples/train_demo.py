"""Train the network that `knapper demo` ships, from nothing but numpy, and write it as ONNX.

    python examples/train_demo.py DATA OUT

DATA holds Fashion-MNIST's four files (`train-images-idx3-ubyte.gz`, …): from the Debian package `dataset-fashion-mnist`
(/usr/share/datasets/fashion-mnist), or from https://github.com/zalandoresearch/fashion-mnist. OUT gets `fashion.onnx` and `fashion.npz`: the
network, and 100 test images with their labels, ten of each class. Seed and order of operations are fixed; on one
machine two runs write the same bytes, and elsewhere the accuracy differs by tenths of a point.

    image 28x28 ─ conv 16 ─ pool ─ conv 32 ─ pool ─┬─ conv 32 ─ conv 32 ─(+)─ mean ─ fully connected ─ 10 classes
                                                   └────────────────────┘          each conv: 3x3, batch norm, ReLU

Arrays are NHWC while training and NCHW in the ONNX file.
"""

from __future__ import annotations

import gzip
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
EPOCHS, BATCH, RATE, DECAY, SEED = 12, 128, 0.1, 5e-4, 0
PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530
EPSILON = 1e-5


class Parameter:
    def __init__(self, value: Array) -> None:
        self.value = value.astype(np.float32)
        self.grad = np.zeros_like(self.value)
        self.speed = np.zeros_like(self.value)


class Exporter:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, a: Array, name: str) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(a, np.float32), name))
        return name

    def node(self, op: str, inputs: list[str], **attrs: Any) -> str:
        name = f"{op.lower()}{sum(n.op_type == op for n in self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attrs))
        return f"{name}_out"


class Conv:
    """3x3, stride 1, padding 1, without bias: a batch norm follows."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int) -> None:
        scale = np.sqrt(2 / (9 * inputs))
        self.w = Parameter(rng.standard_normal((9 * inputs, outputs)) * scale)
        self.parameters = [self.w]

    def forward(self, x: Array, training: bool) -> Array:
        n, h, w, c = self.shape = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = sliding_window_view(padded, (3, 3), (1, 2))  # [n, h, w, c, 3, 3]
        self.columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(n * h * w, 9 * c)
        return (self.columns @ self.w.value).reshape(n, h, w, -1)

    def backward(self, dy: Array) -> Array:
        n, h, w, c = self.shape
        flat = dy.reshape(n * h * w, -1)
        self.w.grad = self.columns.T @ flat
        columns = (flat @ self.w.value.T).reshape(n, h, w, 3, 3, c)
        dx = np.zeros((n, h + 2, w + 2, c), np.float32)
        for i in range(3):
            for j in range(3):
                dx[:, i : i + h, j : j + w] += columns[:, :, :, i, j]
        return dx[:, 1:-1, 1:-1]

    def export(self, e: Exporter, x: str) -> str:
        k = len(e.nodes)
        oihw = self.w.value.reshape(3, 3, -1, self.w.value.shape[1]).transpose(3, 2, 0, 1)
        w = e.weight(oihw, f"weight{k}")
        return e.node("Conv", [x, w], kernel_shape=[3, 3], pads=[1, 1, 1, 1])


class BatchNorm:
    def __init__(self, channels: int) -> None:
        self.gain, self.bias = Parameter(np.ones(channels)), Parameter(np.zeros(channels))
        self.mean, self.var = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        self.parameters = [self.gain, self.bias]

    def forward(self, x: Array, training: bool) -> Array:
        mean, var = self.mean, self.var
        if training:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.mean = 0.9 * self.mean + 0.1 * mean
            self.var = 0.9 * self.var + 0.1 * var
        self.scale = 1 / np.sqrt(var + EPSILON)
        self.normed = (x - mean) * self.scale
        return self.normed * self.gain.value + self.bias.value

    def backward(self, dy: Array) -> Array:
        self.bias.grad = dy.sum((0, 1, 2))
        self.gain.grad = (dy * self.normed).sum((0, 1, 2))
        count = dy.size // dy.shape[-1]
        centred = dy - self.bias.grad / count - self.normed * (self.gain.grad / count)
        return centred * (self.gain.value * self.scale)

    def export(self, e: Exporter, x: str) -> str:
        k = len(e.nodes)
        values = {
            "gain": self.gain.value,
            "bias": self.bias.value,
            "mean": self.mean,
            "var": self.var,
        }
        inputs = [e.weight(a, f"{n}{k}") for n, a in values.items()]
        return e.node("BatchNormalization", [x, *inputs], epsilon=EPSILON)


class Relu:
    parameters: list[Parameter] = []  # noqa: RUF012  it has none and never will

    def forward(self, x: Array, training: bool) -> Array:
        self.on = x > 0
        return x * self.on

    def backward(self, dy: Array) -> Array:
        return dy * self.on

    def export(self, e: Exporter, x: str) -> str:
        return e.node("Relu", [x])


class MaxPool:
    """2x2, stride 2."""

    parameters: list[Parameter] = []  # noqa: RUF012

    def forward(self, x: Array, training: bool) -> Array:
        n, h, w, c = x.shape
        blocks = x.reshape(n, h // 2, 2, w // 2, 2, c)
        y = blocks.max((2, 4), keepdims=True)
        won = (blocks == y).astype(np.float32)
        self.winner = won / won.sum((2, 4), keepdims=True)
        return y[:, :, 0, :, 0]

    def backward(self, dy: Array) -> Array:
        n, h, w, c = dy.shape
        spread = self.winner * dy[:, :, None, :, None]
        return spread.reshape(n, 2 * h, 2 * w, c)

    def export(self, e: Exporter, x: str) -> str:
        return e.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])


class Residual:
    def __init__(self, *layers: Any) -> None:
        self.layers = layers
        self.parameters = [p for layer in layers for p in layer.parameters]

    def forward(self, x: Array, training: bool) -> Array:
        y = x
        for layer in self.layers:
            y = layer.forward(y, training)
        return x + y

    def backward(self, dy: Array) -> Array:
        dx = dy
        for layer in reversed(self.layers):
            dx = layer.backward(dx)
        return dy + dx

    def export(self, e: Exporter, x: str) -> str:
        y = x
        for layer in self.layers:
            y = layer.export(e, y)
        return e.node("Add", [y, x])


class MeanThenLinear:
    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int) -> None:
        self.w = Parameter(rng.standard_normal((inputs, outputs)) * np.sqrt(1 / inputs))
        self.b = Parameter(np.zeros(outputs))
        self.parameters = [self.w, self.b]

    def forward(self, x: Array, training: bool) -> Array:
        self.shape = x.shape
        self.mean = x.mean((1, 2))
        return self.mean @ self.w.value + self.b.value

    def backward(self, dy: Array) -> Array:
        self.w.grad, self.b.grad = self.mean.T @ dy, dy.sum(0)
        _, h, w, _ = self.shape
        dx = (dy @ self.w.value.T)[:, None, None] / (h * w)
        return np.broadcast_to(dx, self.shape).astype(np.float32)

    def export(self, e: Exporter, x: str) -> str:
        flat = e.node("Flatten", [e.node("GlobalAveragePool", [x])], axis=1)
        w, b = e.weight(self.w.value.T, "weight_fc"), e.weight(self.b.value, "bias_fc")
        return e.node("Gemm", [flat, w, b], transB=1)


def network(rng: np.random.Generator) -> list[Any]:
    inner = Residual(Conv(rng, 32, 32), BatchNorm(32), Relu(), Conv(rng, 32, 32), BatchNorm(32))
    return [
        *(Conv(rng, 1, 16), BatchNorm(16), Relu(), MaxPool()),
        *(Conv(rng, 16, 32), BatchNorm(32), Relu(), MaxPool()),
        *(inner, Relu(), MeanThenLinear(rng, 32, 10)),
    ]


def forward(layers: list[Any], x: Array, training: bool = False) -> Array:
    for layer in layers:
        x = layer.forward(x, training)
    return x


def step(layers: list[Any], x: Array, labels: Array, rate: float) -> float:
    """One step of SGD with momentum on the cross entropy; gives the loss."""
    scores = forward(layers, x, training=True)
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    picked = np.arange(len(labels)), labels
    loss = -np.log(p[picked] + 1e-12).mean()
    p[picked] -= 1
    dy = (p / len(labels)).astype(np.float32)
    for layer in reversed(layers):
        dy = layer.backward(dy)
    for parameter in (q for layer in layers for q in layer.parameters):
        decay = DECAY * parameter.value * (parameter.value.ndim > 1)
        parameter.speed = 0.9 * parameter.speed - rate * (parameter.grad + decay)
        parameter.value = parameter.value + parameter.speed
    return float(loss)


def augment(rng: np.random.Generator, x: Array) -> Array:
    """Mirror half of the images and shift all of them by up to two pixels."""
    mirrored = np.where(rng.random(len(x))[:, None, None, None] < 0.5, x[:, :, ::-1], x)
    dy, dx = rng.integers(0, 5, 2)
    edge = np.pad(mirrored, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    return edge[:, dy : dy + 28, dx : dx + 28]


def normal(images: Array) -> Array:
    """uint8 [n, 28, 28] → what the network takes, NHWC."""
    return ((images[..., None] / 255 - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)


def idx(folder: Path, kind: str) -> tuple[Array, Array]:
    """Images [n, 28, 28] and labels [n] from the MNIST file format."""
    found = []
    for name, head in ((f"{kind}-images-idx3-ubyte", 16), (f"{kind}-labels-idx1-ubyte", 8)):
        file = folder / f"{name}.gz"
        raw = gzip.decompress(file.read_bytes()) if file.exists() else (folder / name).read_bytes()
        found.append(np.frombuffer(raw, np.uint8, offset=head))
    return found[0].reshape(-1, 28, 28), found[1]


def train(images: Array, labels: Array) -> list[Any]:
    rng = np.random.default_rng(SEED)
    layers = network(rng)
    steps = len(images) // BATCH
    for epoch in range(EPOCHS):
        start, loss = time.time(), 0.0
        order = rng.permutation(len(images))
        for i in range(steps):
            done = (epoch * steps + i) / (EPOCHS * steps)
            rate = RATE * 0.5 * (1 + math.cos(math.pi * done))
            batch = order[i * BATCH : (i + 1) * BATCH]
            loss += step(layers, augment(rng, normal(images[batch])), labels[batch], rate)
        print(
            f"epoch {epoch + 1}: loss {loss / steps:.3f}, {time.time() - start:.0f} s", flush=True
        )
    return layers


def accuracy(layers: list[Any], images: Array, labels: Array) -> float:
    parts = range(0, len(images), 500)
    right = [
        (forward(layers, normal(images[i : i + 500])).argmax(1) == labels[i : i + 500]).sum()
        for i in parts
    ]
    return float(sum(right) / len(images))


def write(layers: list[Any], out: Path) -> None:
    e = Exporter()
    x = "image"
    for layer in layers:
        x = layer.export(e, x)
    e.nodes[-1].output[0] = "scores"
    batch = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 28, 28])]
    scores = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])]
    graph = helper.make_graph(e.nodes, "fashion", batch, scores, e.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)


def main() -> None:
    source, out = map(Path, sys.argv[1:3])
    layers = train(*idx(source, "train"))
    images, labels = idx(source, "t10k")
    print(f"accuracy on the 10,000 test images: {accuracy(layers, images, labels):.2%}")
    write(layers, out / "fashion.onnx")
    chosen = np.concatenate([np.flatnonzero(labels == c)[:10] for c in range(10)])
    chosen = np.random.default_rng(SEED).permutation(chosen)
    np.savez_compressed(out / "fashion.npz", images=images[chosen], labels=labels[chosen])
    print(
        f"accuracy on the {len(chosen)} that are kept: {accuracy(layers, images[chosen], labels[chosen]):.2%}"
    )


if __name__ == "__main__":
    main()
