"""A decoder of GPT's kind, as language models are now: RMS norms, rotary positions, grouped-query attention, SwiGLU, a tied head.

    tokens ─► embedding ─►┬─ norm ─ attention ─►(+)─┬─ norm ─ SwiGLU ─►(+)─► … ─ norm ─► · embeddingᵀ ─► logits
                          └─────────────────────┘   └────────────────┘
    past.k0, past.v0 ─► TensorScatter of the new rows at `position` ─► present.k0, present.v0

`step` reads some tokens and continues a cache: a prompt at once (prefill) or a token at a time (decode), two models of the same
weights. The cache is as long as the network's room from the beginning; `position` says how much of it is full. An accelerator
keeps it where it is (`knapper.compile(…, state=decoder.state)`), so that a step writes the new rows and no others. `whole` is the
same network over a whole text, without a cache: what the steps must agree with.

All operators are ONNX's own of opset 24. Weights are random and seeded, so that what is generated is no language.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper

from .sketch import Sketch, he

OPSET = 24
"""Has Attention with `nonpad_kv_seqlen`, TensorScatter and Swish."""
IR_VERSION = 11
THETA = 10_000.0
"""The slowest rotation's wavelength, divided by 2π."""


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder; heads of queries share those of keys and values in groups."""

    width: int = 256
    layers: int = 2
    heads: int = 8
    kv_heads: int = 2
    inner: int = 704
    vocabulary: int = 512
    room: int = 128
    """Tokens that the cache holds."""
    seed: int = 0

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @property
    def state(self) -> dict[str, str]:
        """Cache input → the output that is its next value."""
        names = [f"{part}{i}" for i in range(self.layers) for part in "kv"]
        return {f"past.{n}": f"present.{n}" for n in names}

    def step(self, tokens: int = 1, batch: int = 1) -> ModelProto:
        """tokens i64[batch, tokens], position i64[batch] and the cache → logits f32[batch, tokens, vocabulary] and the cache."""
        return _Writing(self, batch, tokens, cached=True).model()

    def whole(self, tokens: int, batch: int = 1) -> ModelProto:
        """tokens i64[batch, tokens] → logits f32[batch, tokens, vocabulary], from the first position on."""
        return _Writing(self, batch, tokens, cached=False).model()


class _Writing:
    """A model being written."""

    def __init__(self, of: Decoder, batch: int, tokens: int, cached: bool) -> None:
        self.of, self.batch, self.tokens, self.cached = of, batch, tokens, cached
        self.s = Sketch("decoder", of.seed)
        self.present: dict[str, str] = {}

    def model(self) -> ModelProto:
        """The whole network."""
        s, of = self.s, self.of
        embedding = s.constant(he(s.rng, (of.vocabulary, of.width), 2 * of.width), "embedding")
        self._positions()
        x = s.node("Gather", embedding, "tokens", name="embedded")
        for layer in range(of.layers):
            x = s.node("Add", x, self._attention(layer, self._norm(x)))
            x = s.node("Add", x, self._feed_forward(self._norm(x)))
        head = s.node("Transpose", embedding, perm=[1, 0], name="head")
        s.node("MatMul", self._norm(x), head, name="logits")
        return self._declared()

    def _positions(self) -> None:
        """Where the tokens are, how full the cache is behind them, and what each may look at."""
        s, of = self.s, self.of
        ruler = s.constant(np.arange(self.tokens, dtype=np.int64)[None])
        if self.cached:
            first = s.node("Unsqueeze", "position", s.ints(1))
            at = s.node("Add", first, ruler, name="positions")
            self.length = s.node("Add", "position", s.ints(self.tokens), name="length")
            rows = s.node("Unsqueeze", at, s.ints(1, 3))
            places = s.constant(np.arange(of.room, dtype=np.int64))
            alone = self.tokens == 1  # sees all that is there
            self.mask = "" if alone else s.node("LessOrEqual", places, rows, name="mask")
        else:
            at = s.node("Expand", ruler, s.ints(self.batch, self.tokens), name="positions")
        speed = THETA ** (-np.arange(of.head // 2) * 2 / of.head)
        angle = np.arange(of.room)[:, None] * speed
        self.at = at
        self.turns = [
            s.constant(f(angle).astype(np.float32), n)
            for f, n in ((np.cos, "cos"), (np.sin, "sin"))
        ]

    def _linear(self, x: str, n: int, k: int, gain: float = math.sqrt(0.5)) -> str:
        """x · W, f32[k, n]."""
        return self.s.node("MatMul", x, self.s.constant(he(self.s.rng, (k, n), k, gain)))

    def _norm(self, x: str) -> str:
        scale = self.s.constant(self.s.rng.uniform(0.8, 1.2, self.of.width).astype(np.float32))
        return self.s.node("RMSNormalization", x, scale, axis=-1, epsilon=1e-5)

    def _heads(self, x: str, heads: int) -> str:
        """[batch, tokens, heads · head] → [batch, heads, tokens, head]."""
        split = self.s.ints(self.batch, self.tokens, heads, self.of.head)
        return self.s.node("Transpose", self.s.node("Reshape", x, split), perm=[0, 2, 1, 3])

    def _attention(self, layer: int, x: str) -> str:
        s, of = self.s, self.of
        k_width = of.kv_heads * of.head
        q, k, v = (self._linear(x, n, of.width) for n in (of.width, k_width, k_width))
        q, k, v = self._heads(q, of.heads), self._heads(k, of.kv_heads), self._heads(v, of.kv_heads)
        q, k = (s.node("RotaryEmbedding", t, *self.turns, self.at) for t in (q, k))
        if self.cached:
            k, v = self._kept(f"k{layer}", k), self._kept(f"v{layer}", v)
            mixed = s.node("Attention", q, k, v, self.mask, "", "", self.length)
        else:
            mixed = s.node("Attention", q, k, v, is_causal=1)
        joined = s.node("Transpose", mixed, perm=[0, 2, 1, 3])
        flat = s.node("Reshape", joined, s.ints(self.batch, self.tokens, of.width))
        return self._linear(flat, of.width, of.width)

    def _kept(self, name: str, new: str) -> str:
        """The cache with the new rows."""
        self.present[f"present.{name}"] = f"past.{name}"
        return self.s.node(
            "TensorScatter", f"past.{name}", new, "position", name=f"present.{name}", axis=2
        )

    def _feed_forward(self, x: str) -> str:
        """SwiGLU: (swish(x · A) ⊙ x · B) · C."""
        s, of = self.s, self.of
        gate, up = (self._linear(x, of.inner, of.width) for _ in range(2))
        return self._linear(s.node("Mul", s.node("Swish", gate), up), of.width, of.inner)

    def _declared(self) -> ModelProto:
        of, info = self.of, helper.make_tensor_value_info
        inputs = [info("tokens", TensorProto.INT64, (self.batch, self.tokens))]
        shape = (self.batch, self.tokens, of.vocabulary)
        outputs = [info("logits", TensorProto.FLOAT, shape)]
        if self.cached:
            cache = (self.batch, of.kv_heads, of.room, of.head)
            inputs.append(info("position", TensorProto.INT64, (self.batch,)))
            inputs += [info(past, TensorProto.FLOAT, cache) for past in self.present.values()]
            outputs += [info(present, TensorProto.FLOAT, cache) for present in self.present]
        graph = helper.make_graph(self.s.nodes, "decoder", inputs, outputs, self.s.weights)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
