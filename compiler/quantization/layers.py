"""The products of a network that can be quantized, and what each of them becomes.

First and last layers are those with no other product before or behind them. With `promote` and a budget of bits a weight, the layers that lose
most get more bits: in the order of their weights' signal to noise ratio, while the mean over all weights stays within the budget (ANT4-8
is this with i4 and i8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from knapper.isa.formats import FORMATS

from ..ir import Array, Graph, Node
from .quantized import Quantized
from .recipe import ANT, FLOAT, STAYS, Layer, Override, named
from .weights import quantize

PRODUCTS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True, eq=False)
class Product:
    """A product with constant weights. `axis` is that of its weights' output channels, `channels` that of its input's."""

    node: Node
    weights: Array
    axis: int
    channels: int

    @property
    def name(self) -> str:
        """In the model, or its result's."""
        return self.node.loc or self.node.outputs[0]


def products(g: Graph) -> Iterator[Product]:
    """Those of floats."""
    for n in g.nodes:
        w = g.constants.get(n.inputs[1]) if n.op in PRODUCTS else None
        if w is not None and w.dtype == np.float32 and n.types[0].dtype == "f32":
            yield from _product(n, w)


def _product(n: Node, w: Array) -> Iterator[Product]:
    if n.op == "Conv":
        first = n.attr("layout") == "NCHW"
        yield Product(n, w, 0 if first else w.ndim - 1, 1 if first else -1)
    elif w.ndim == 2 and n.op == "MatMul" and not n.attr("trans_a"):
        yield Product(n, w, 0 if n.attr("trans_b") else 1, -1)
    elif n.op == "Gemm" and (n.attr("alpha"), n.attr("beta"), n.attr("transA")) == (1, 1, 0):
        yield Product(n, w, 0 if n.attr("transB") else 1, -1)


def fingerprint(g: Graph) -> str:
    """Whose weights they are, in letters: of all products, in order; batches and names do not count."""
    h = blake2b(digest_size=16)
    for p in products(g):
        h.update(repr((p.node.op, p.weights.shape)).encode())
        h.update(np.ascontiguousarray(p.weights).data)
    return h.hexdigest()


@dataclass(frozen=True)
class Plan:
    """Which layers there are, and what is asked for each."""

    usual: Layer
    include: str = "*"
    exclude: str = ""
    ends: str = ""
    overrides: Sequence[Override] = ()

    def layers(self, g: Graph, found: Sequence[Product]) -> dict[str, Layer]:
        """By a node's result. Overrides are stronger than first and last."""
        ends = _ends(g, found) if self.ends else set()
        return {p.node.outputs[0]: self._layer(p.node, p.node.outputs[0] in ends) for p in found}

    def _layer(self, n: Node, end: bool) -> Layer:
        if not named(n, self.include) or named(n, self.exclude):
            return STAYS
        layer = wider(self.usual, self.ends) if end else self.usual
        for o in self.overrides:
            layer = o.apply(layer) if named(n, o.pattern) else layer
        return layer


def wider(layer: Layer, name: str) -> Layer:
    """A layer in another format, its activations as wide and in integers; `float` leaves it alone. PassError E306 for what is none."""
    if name == FLOAT:
        return STAYS
    bits = FORMATS[name].bits
    activations = layer.activations
    if layer.activations not in (FLOAT, *ANT):
        activations = f"{'i' if FORMATS[layer.activations].signed else 'u'}{bits}"
    elif layer.activations != FLOAT:
        activations = f"ant{bits}"
    method = "nearest" if layer.weight_method == "ant" else layer.weight_method
    return replace(layer, weights=name, activations=activations, weight_method=method).checked()


def _ends(g: Graph, found: Sequence[Product]) -> set[str]:
    """Results of products that have none before them, or none behind."""
    makers = {p.node.outputs[0] for p in found}
    behind, before = set[str](), set[str]()
    for n in g.nodes:
        if any(v in behind or v in makers for v in n.inputs):
            behind.update(n.outputs)
    for n in reversed(g.nodes):
        if any(v in before or v in makers for v in n.outputs):
            before.update(v for v in n.inputs if v)
    return {v for v in makers if v not in behind or v not in before}


def promoted(
    layers: Mapping[str, Layer],
    found: Sequence[Product],
    to: str,
    budget: float,
    *,
    per_channel: bool = True,
) -> dict[str, Layer]:
    """Layers with the worst ones made wider, while weights have at most `budget` bits on average."""
    some = [p for p in found if layers[p.node.outputs[0]].weights != FLOAT]
    total = sum(p.weights.size for p in some)
    spent = sum(p.weights.size * layers[p.node.outputs[0]].format.bits for p in some)
    made, extra = dict(layers), FORMATS[to].bits
    noise = {
        p.node.outputs[0]: sqnr(
            p.weights,
            quantize(p.weights, p.axis, layers[p.node.outputs[0]], per_channel=per_channel),
        )
        for p in some
    }
    for p in sorted(some, key=lambda p: noise[p.node.outputs[0]]):
        v = p.node.outputs[0]
        more = p.weights.size * (extra - layers[v].format.bits)
        if more > 0 and spent + more <= budget * total:
            spent += more
            made[v] = wider(layers[v], to)
    return made


def sqnr(w: Array, q: Quantized) -> float:
    """Signal to quantization noise of weights, in dB."""
    return decibels(w, q.real)


def decibels(signal: Array, other: Array) -> float:
    """10 · log10(Σ signal² / Σ (signal - other)²); infinite where nothing differs."""
    s = np.asarray(signal, np.float64)
    noise = float(np.square(s - other).sum())
    power = float(np.square(s).sum())
    return (
        float(10 * np.log10(power / noise))
        if noise and power
        else float("-inf" if noise else "inf")
    )
