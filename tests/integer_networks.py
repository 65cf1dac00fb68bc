"""Small networks of integers, channels first as models are: a residual block between a first and a last layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.ir import Array, Graph, Node, Type, infer
from knapper.isa.formats import FORMATS


class Network:
    """A graph that grows node by node; its weights are values of a format."""

    def __init__(self, format: str) -> None:
        self.rng, self.values = np.random.default_rng(6), FORMATS[format].values
        self.types: dict[str, Type] = {}
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}

    def known(self, a: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name], self.types[name] = a, Type.of(a)
        return name

    def number(self, x: object) -> str:
        return self.known(np.asarray(x, np.float32))

    def op(self, name: str, *operands: str, **attrs: object) -> str:
        types = infer(name, [self.types[v] for v in operands], attrs)
        out = f"v{len(self.nodes)}"
        self.types[out] = types[0]
        self.nodes.append(Node(name, operands, (out,), types, attrs, loc=f"{name}_{out}"))
        return out

    def conv(self, x: str, o: int, k: int, stride: int = 1, group: int = 1, zero: int = 0) -> str:
        """Sums, scaled to numbers of about a hundred; what x is padded with is called 0."""
        c = self.types[x].shape[1] // group
        w = self.rng.choice(self.values, (o, c, k, k)).astype(np.int8)
        bias = self.known(self.rng.integers(-999, 999, o).astype(np.int32))
        sums = self.op(
            "Conv", x, self.known(w), bias, strides=(stride,) * 2, pads=(k // 2,) * 4, group=group, out="i32", pad_value=zero
        )  # fmt: skip
        scale = 50 / (abs(self.values).mean() * 70 * (c * k * k) ** 0.5)
        scales = (scale * (0.5 + self.rng.random((o, 1, 1)))).astype(np.float32)
        return self.op("Mul", self.op("Cast", sums, to="f32"), self.known(scales))

    def bytes_of(self, x: str, zero: int = 0) -> str:
        x = self.op("Round", x)
        x = self.op("Add", x, self.number(zero)) if zero else x
        return self.op("Cast", self.op("Clip", x, min=0.0, max=255.0), to="u8")

    def read(self, x: str, zero: int) -> str:
        x = self.op("Sub", self.op("Cast", x, to="f32"), self.number(zero))
        return self.op("Mul", x, self.number(0.7))


def residual(shape: Sequence[int] = (1, 16, 12, 12), format: str = "i8") -> Graph:
    """u8 → a strided block with a branch, each 8 bits in memory → a block of channels by themselves → f32 averages."""
    n = Network(format)
    n.types["x"] = Type("u8", tuple(shape))
    c = 2 * shape[1]
    y = n.bytes_of(n.op("Relu", n.conv("x", c, 3, 2, zero=9)))
    branch = n.bytes_of(n.conv("x", c, 1, 2), 113)
    y = n.conv(y, c, 3)
    y = n.bytes_of(n.op("Relu", n.op("Add", y, n.read(branch, 113))))
    z = n.bytes_of(n.op("Relu", n.conv(y, c, 3, group=c)))
    y = n.op("Relu", n.op("Add", n.conv(z, c, 1), n.read(y, 0)))
    out = n.op("GlobalAveragePool", y)
    return Graph("g", {"x": n.types["x"]}, {"y": out}, tuple(n.nodes), n.constants).verify()
