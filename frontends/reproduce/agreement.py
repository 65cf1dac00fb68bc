"""What quantization changes of a network that has no labels: which sentence is nearest to which, in all-MiniLM-L6-v2.

    sentences ─► tokens ─► embeddings f32[n, 384] ─┬─ of floats ────────► the nearest other sentence ─┐
                                                   └─ in integers ──────► the nearest other sentence ─┴─► the share that agree

The sentences are those that explain error codes (`isa/errors.py`): each second one calibrates, the others are compared. The network is
there where its package is (`frontends/networks/sentences.py`). Products by weights are rounded; those of attention, of two computed values,
stay in floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec

import numpy as np

from knapper.compiler import pipeline
from knapper.compiler.ir import Array
from knapper.compiler.passes.quantize import Quantize
from knapper.compiler.quantization.datafree import observe
from knapper.isa.errors import CODES

from ..calibrate import split
from ..networks.sentences import PACKAGE, sentence_encoder, tokens
from ..onnx.door import read
from .accuracy import TARGET, Batch, Bench
from .claims import Claim, Lab

BATCH, SIZE = 8, 32
"""Sentences at once, and word pieces of each."""
NEEDS = (PACKAGE, "safetensors", "tokenizers")
BITS = ((8, 8), (4, 8))


def here() -> bool:
    """Whether there is anything to measure."""
    return all(find_spec(p) for p in NEEDS)


@cache
def bench() -> Bench:
    """The network, its batches and ranges."""
    before, _ = split(pipeline.preset("fp32"))
    g = pipeline.run(read(sentence_encoder(BATCH, SIZE)), before)
    training, tests = (_batches([*CODES.values()][i::2]) for i in (1, 0))
    ranges = observe(g, training, Quantize().wanted(g))
    return Bench(g, tests, np.zeros(0), training, ranges)


def _batches(sentences: Sequence[str]) -> list[Batch]:
    """Whole batches."""
    starts = range(0, len(sentences) - BATCH + 1, BATCH)
    return [tokens(sentences[i : i + BATCH], SIZE) for i in starts]


def nearest(y: Array) -> Array:
    """Which other row each row has the largest product with."""
    alike = y @ y.T
    np.fill_diagonal(alike, -np.inf)
    found: Array = alike.argmax(axis=1)
    return found


def agreement(lab: Lab, weights: int, activations: int, method: str) -> float:
    """The share of sentences whose nearest one is that of the float network."""
    at = bench()
    y = at.emulated(at.quantized(weights, activations, method))
    return float((nearest(y) == nearest(at.floats)).mean())


def cosine(lab: Lab, weights: int, activations: int, method: str) -> float:
    """Mean cosine of a sentence's two embeddings, which have length 1."""
    at = bench()
    y = at.emulated(at.quantized(weights, activations, method))
    return float((y * at.floats).sum(axis=1).mean())


def rows(prefix: str, methods: Sequence[str]) -> Iterator[Claim]:
    """Where the network is."""
    for weights, activations in BITS if here() else ():
        for method in methods:
            what = f"all-MiniLM-L6-v2 at W{weights}A{activations}, {method}"
            for name, ask, told in (
                ("agreement", agreement, "share of sentences whose nearest other one is that of floats"),
                ("cosine", cosine, "mean cosine of embeddings and those of floats"),
            ):  # fmt: skip
                yield Claim(
                    f"{prefix}.minilm.w{weights}a{activations}.{method}.{name}", f"{what}: {told}", (1.0, 1.0), "input",
                    0.01 if name == "cosine" else 0.1, partial(ask, weights=weights, activations=activations, method=method),
                    f"floats on the same sentences; ours: {len(CODES) // 2 // BATCH * BATCH} sentences, {len(CODES) // 2 // BATCH * BATCH} others to "
                    f"calibrate, emulated in integers on {TARGET}", "", swept=False,
                )  # fmt: skip
