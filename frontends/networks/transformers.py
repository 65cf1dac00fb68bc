"""The encoder of BERT-base: twelve layers of attention and feed-forward, hidden size 768, twelve heads.

It begins at the embedded tokens, since a table look-up is no work for an accelerator's matrix units, and every position is
attended to: a batch of sequences of full length needs no padding mask.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, TensorProto

from .sketch import Sketch, he

HIDDEN, HEADS, INNER = 768, 12, 3072


def bert_base(batch: int = 1, size: int = 128, layers: int = 12) -> ModelProto:
    """f32[batch, size, 768] to the same; `size` is the length of the sequences."""
    s = Sketch("bert_base")
    x = "input"
    for _ in range(layers):
        x = _normalized(s, s.node("Add", x, _attention(s, x, batch, size)))
        x = _normalized(s, s.node("Add", x, _feed_forward(s, x)))
    shape = (batch, size, HIDDEN)
    return s.model({"input": shape}, {"output": (x, TensorProto.FLOAT, shape)})


def _linear(s: Sketch, x: str, sizes: tuple[int, int]) -> str:
    """x · W + b over the last axis; half of He's variance, since nothing is rectified behind most of them."""
    k, n = sizes
    w = s.constant(he(s.rng, (k, n), k, math.sqrt(0.5)))
    b = s.constant(s.rng.standard_normal(n, np.float32) * np.float32(0.02))
    return s.node("Add", s.node("MatMul", x, w), b)


def _attention(s: Sketch, x: str, batch: int, size: int) -> str:
    """softmax(Q Kᵀ / √64) V of every head."""
    width = HIDDEN // HEADS

    def heads(perm: list[int]) -> str:
        split = s.ints(batch, size, HEADS, width)
        projected = s.node("Reshape", _linear(s, x, (HIDDEN, HIDDEN)), split)
        return s.node("Transpose", projected, perm=perm)

    q, k, v = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    scores = s.node("Mul", s.node("MatMul", q, k), s.scalar(1 / math.sqrt(width)))
    mixed = s.node("MatMul", s.node("Softmax", scores, axis=-1), v)
    joined = s.node("Transpose", mixed, perm=[0, 2, 1, 3])
    return _linear(s, s.node("Reshape", joined, s.ints(batch, size, HIDDEN)), (HIDDEN, HIDDEN))


def _feed_forward(s: Sketch, x: str) -> str:
    inner = s.node("Gelu", _linear(s, x, (HIDDEN, INNER)))
    return _linear(s, inner, (INNER, HIDDEN))


def _normalized(s: Sketch, x: str) -> str:
    scale = s.constant(s.rng.uniform(0.8, 1.2, HIDDEN).astype(np.float32))
    shift = s.constant(s.rng.normal(0, 0.05, HIDDEN).astype(np.float32))
    return s.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-12)
