"""Encoders of BERT's kind, layers of attention and feed-forward: BERT-base, and MiniLM, which is half as wide and half as deep.

It begins at the embedded tokens, since a table look-up is no work for an accelerator's matrix units, and every position is
attended to: a batch of sequences of full length needs no padding mask. `sentences` has a trained one, with both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from onnx import ModelProto, TensorProto

from .sketch import Array, Sketch, he

HEADS = 12
EPSILON = 1e-12
"""Of BERT's layer normalizations."""


class Weights(Protocol):
    """Where the numbers come from; names are those of BERT's layers, `encoder.layer.0.output.dense`."""

    def dense(self, name: str, sizes: tuple[int, int]) -> tuple[Array, Array]:
        """W, f32[sizes], and b of x · W + b."""
        ...

    def norm(self, name: str, hidden: int) -> tuple[Array, Array]:
        """Scale and shift of a layer normalization."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Random ones: half of He's variance, since nothing is rectified behind most of them."""

    rng: np.random.Generator

    def dense(self, name: str, sizes: tuple[int, int]) -> tuple[Array, Array]:
        w = he(self.rng, sizes, sizes[0], math.sqrt(0.5))
        return w, self.rng.standard_normal(sizes[1], np.float32) * np.float32(0.02)

    def norm(self, name: str, hidden: int) -> tuple[Array, Array]:
        scale = self.rng.uniform(0.8, 1.2, hidden).astype(np.float32)
        return scale, self.rng.normal(0, 0.05, hidden).astype(np.float32)


def bert_base(batch: int = 1, size: int = 128, layers: int = 12) -> ModelProto:
    """f32[batch, size, 768] to the same; `size` is the length of the sequences."""
    return encoder("bert_base", 768, layers, batch, size)


def minilm(batch: int = 1, size: int = 128, layers: int = 6) -> ModelProto:
    """MiniLM-L6: f32[batch, size, 384] to the same; `size` is the length of the sequences."""
    return encoder("minilm", 384, layers, batch, size)


def encoder(name: str, hidden: int, layers: int, batch: int, size: int) -> ModelProto:
    """Layers whose feed-forward part is four times as wide, with random weights."""
    s, shape = Sketch(name), (batch, size, hidden)
    x = Encoder(s, Drawn(s.rng), shape).layers("input", layers)
    return s.model({"input": shape}, {"output": (x, TensorProto.FLOAT, shape)})


@dataclass(frozen=True)
class Encoder:
    """Writes layers for sequences of shape [batch, size, hidden]; `mask`, if any, is added to the scores."""

    s: Sketch
    weights: Weights
    shape: tuple[int, int, int]
    mask: str = ""

    def layers(self, x: str, count: int) -> str:
        """Each a sum with attention and a sum with the feed-forward part, both normalized."""
        for i in range(count):
            at = f"encoder.layer.{i}"
            mixed = self.s.node("Add", x, self._attention(f"{at}.attention", x))
            x = self.normalized(f"{at}.attention.output.LayerNorm", mixed)
            grown = self.s.node("Add", x, self._feed_forward(at, x))
            x = self.normalized(f"{at}.output.LayerNorm", grown)
        return x

    def normalized(self, name: str, x: str) -> str:
        """Over the last axis."""
        operands = map(self.s.constant, self.weights.norm(name, self.shape[2]))
        return self.s.node("LayerNormalization", x, *operands, axis=-1, epsilon=EPSILON)

    def _linear(self, name: str, x: str, sizes: tuple[int, int]) -> str:
        """x · W + b over the last axis."""
        w, b = map(self.s.constant, self.weights.dense(name, sizes))
        return self.s.node("Add", self.s.node("MatMul", x, w), b)

    def _attention(self, name: str, x: str) -> str:
        """softmax(Q Kᵀ / √width + mask) V of every head."""
        s, (batch, size, hidden) = self.s, self.shape
        width = hidden // HEADS

        def heads(part: str, perm: list[int]) -> str:
            split = s.ints(batch, size, HEADS, width)
            projected = self._linear(f"{name}.self.{part}", x, (hidden, hidden))
            return s.node("Transpose", s.node("Reshape", projected, split), perm=perm)

        q, k = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1])
        v = heads("value", [0, 2, 1, 3])
        scores = s.node("Mul", s.node("MatMul", q, k), s.scalar(1 / math.sqrt(width)))
        scores = s.node("Add", scores, self.mask) if self.mask else scores
        mixed = s.node("MatMul", s.node("Softmax", scores, axis=-1), v)
        joined = s.node("Transpose", mixed, perm=[0, 2, 1, 3])
        joined = s.node("Reshape", joined, s.ints(batch, size, hidden))
        return self._linear(f"{name}.output.dense", joined, (hidden, hidden))

    def _feed_forward(self, name: str, x: str) -> str:
        hidden = self.shape[2]
        inner = self._linear(f"{name}.intermediate.dense", x, (hidden, 4 * hidden))
        return self._linear(
            f"{name}.output.dense", self.s.node("Gelu", inner), (4 * hidden, hidden)
        )
