"""Encoders of BERT's kind, layers of attention and feed-forward: BERT-base, and MiniLM, which is half as wide and half as deep.

It begins at the embedded tokens, since a table look-up is no work for an accelerator's matrix units, and every position is
attended to: a batch of sequences of full length needs no padding mask.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, TensorProto

from .sketch import Sketch, he

HEADS = 12


def bert_base(batch: int = 1, size: int = 128, layers: int = 12) -> ModelProto:
    """f32[batch, size, 768] to the same; `size` is the length of the sequences."""
    return encoder("bert_base", 768, layers, batch, size)


def minilm(batch: int = 1, size: int = 128, layers: int = 6) -> ModelProto:
    """MiniLM-L6: f32[batch, size, 384] to the same; `size` is the length of the sequences."""
    return encoder("minilm", 384, layers, batch, size)


def encoder(name: str, hidden: int, layers: int, batch: int, size: int) -> ModelProto:
    """Layers whose feed-forward part is four times as wide."""
    s = Sketch(name)
    x = "input"
    for _ in range(layers):
        x = _normalized(s, s.node("Add", x, _attention(s, x, batch, size, hidden)), hidden)
        x = _normalized(s, s.node("Add", x, _feed_forward(s, x, hidden)), hidden)
    shape = (batch, size, hidden)
    return s.model({"input": shape}, {"output": (x, TensorProto.FLOAT, shape)})


def _linear(s: Sketch, x: str, sizes: tuple[int, int]) -> str:
    """x · W + b over the last axis; half of He's variance, since nothing is rectified behind most of them."""
    k, n = sizes
    w = s.constant(he(s.rng, (k, n), k, math.sqrt(0.5)))
    b = s.constant(s.rng.standard_normal(n, np.float32) * np.float32(0.02))
    return s.node("Add", s.node("MatMul", x, w), b)


def _attention(s: Sketch, x: str, batch: int, size: int, hidden: int) -> str:
    """softmax(Q Kᵀ / √width) V of every head."""
    width = hidden // HEADS

    def heads(perm: list[int]) -> str:
        split = s.ints(batch, size, HEADS, width)
        projected = s.node("Reshape", _linear(s, x, (hidden, hidden)), split)
        return s.node("Transpose", projected, perm=perm)

    q, k, v = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    scores = s.node("Mul", s.node("MatMul", q, k), s.scalar(1 / math.sqrt(width)))
    mixed = s.node("MatMul", s.node("Softmax", scores, axis=-1), v)
    joined = s.node("Transpose", mixed, perm=[0, 2, 1, 3])
    return _linear(s, s.node("Reshape", joined, s.ints(batch, size, hidden)), (hidden, hidden))


def _feed_forward(s: Sketch, x: str, hidden: int) -> str:
    inner = s.node("Gelu", _linear(s, x, (hidden, 4 * hidden)))
    return _linear(s, inner, (4 * hidden, hidden))


def _normalized(s: Sketch, x: str, hidden: int) -> str:
    scale = s.constant(s.rng.uniform(0.8, 1.2, hidden).astype(np.float32))
    shift = s.constant(s.rng.normal(0, 0.05, hidden).astype(np.float32))
    return s.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-12)
