"""A decoder generates text a token at a time from a cache on the device: what it says is what onnxruntime says, who reads the whole text."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import knapper
from knapper.compiler.ir import Array
from knapper.frontends.api import Image
from knapper.frontends.compare import EXACT
from knapper.frontends.networks.decoder import Decoder

DECODER = Decoder(seed=3)
PROMPT = np.random.default_rng(0).integers(0, DECODER.vocabulary, (1, 8))
TEXT = [158, 403, 88, 91, 403, 72, 495, 211]
"""What comes next."""
COSINE = 0.999
TARGET = "sma3"
CACHE = DECODER.kv_heads * DECODER.room * DECODER.head
"""Elements of one cache."""


def read(model: onnx.ModelProto, inputs: Mapping[str, Any]) -> Array:
    """The logits in onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that it copies caches
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    logits: Array = np.asarray(session.run(["logits"], dict(inputs))[0])
    return logits


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def prefill(precision: str) -> Image:
    return step(PROMPT.shape[1], precision)


@pytest.fixture(scope="module")
def decode(precision: str) -> Image:
    return step(1, precision)


def step(tokens: int, precision: str, of: Decoder = DECODER, target: str = TARGET) -> Image:
    return knapper.compile(of.step(tokens), target, precision, state=of.state)


def agree(ours: Array, theirs: Array, precision: str) -> None:
    y, r = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    assert y @ r / np.sqrt((y @ y) * (r @ r)) >= COSINE
    if precision == "fp32":
        assert np.abs(y - r).max() <= EXACT * np.abs(r).max()


def follow(text: Array, precision: str, logits: Iterator[Array]) -> Array:
    """The text that greedy choice makes of logits, each against those of the whole text."""
    for last in logits:
        theirs = read(DECODER.whole(text.shape[1]), {"tokens": text})[:, -1]
        agree(last, theirs, precision)
        assert last.argmax() == theirs.argmax()
        text = np.append(text, last.argmax(-1)[:, None], 1)
    return text


def test_what_is_generated_is_what_the_whole_text_says(
    prefill: Image, decode: Image, precision: str
) -> None:
    def steps() -> Iterator[Array]:
        with prefill.session() as first, decode.session() as rest:
            logits = first.run({"tokens": PROMPT, "position": np.array([0])}).outputs["logits"]
            cache = dict(first.state)  # the other image has a device of its own
            for at in range(8, 8 + len(TEXT)):
                yield logits[:, -1]
                token = logits[:, -1].argmax(-1)[:, None]
                logits = rest.run({"tokens": token, "position": np.array([at]), **cache}).outputs["logits"]  # fmt: skip
                cache = {}

    text = follow(PROMPT, precision, steps())
    assert text[0, 8:].tolist() == TEXT


def test_a_prompt_token_by_token_says_the_same(
    prefill: Image, decode: Image, precision: str
) -> None:
    """And leaves the same cache behind: nothing ever leaves the device but logits."""
    feeds = ({"tokens": PROMPT[:, i : i + 1], "position": np.array([i])} for i in range(8))
    with prefill.session() as whole, decode.session() as one:
        at_once = whole.run({"tokens": PROMPT, "position": np.array([0])}, checked=True)
        *_, last = one.run_many(feeds, checked=True)
        agree(last.outputs["logits"][:, -1], at_once.outputs["logits"][:, -1], precision)
        for name, a in whole.state.items():
            agree(one.state[name], a, precision)
            assert not a[:, :, 8:].any()
            assert a[:, :, :8].all(2).any()


def test_a_step_writes_its_rows_and_copies_no_cache(decode: Image, precision: str) -> None:
    size = 4 if precision == "fp32" else 2
    with decode.session() as session:
        stats = [
            session.run({"tokens": np.array([[7]]), "position": np.array([at])}).stats
            for at in (0, 100)
        ]
    for s in stats:
        wrote = {
            o.value: x.counts.dram_write
            for x in s.launches
            for o in x.launch.operands
            if o.value in DECODER.state.values() and "w" in o.use
        }
        rows = DECODER.kv_heads * DECODER.head * size
        assert wrote == dict.fromkeys(DECODER.state.values(), rows)
        assert max(x.counts.dram_write for x in s.launches) < CACHE * size
        assert not any("keep" in n for x in s.launches for n in x.launch.nodes)
    assert stats[0].bytes("dram_bytes") == stats[1].bytes("dram_bytes")


def test_a_longer_cache_is_read_and_not_written(precision: str) -> None:
    """What a step writes for each further place are scores and masks, a few bytes a head."""
    moved = list[dict[str, int]]()
    for room in (64, 256):
        of = Decoder(layers=1, room=room)
        image = step(1, precision, of)
        moved.append(image.run({"tokens": np.array([[7]]), "position": np.array([9])}).stats.bytes("dram_bytes"))  # fmt: skip
    size, more = (4 if precision == "fp32" else 2), 256 - 64
    read_, wrote = (moved[1][use] - moved[0][use] for use in ("read", "write"))
    cache = 2 * of.kv_heads * of.head * size
    assert wrote <= more * (2 * of.heads + 4) * size < more * cache / 3
    assert more * cache <= read_ <= more * cache * 1.5


def test_sequences_of_a_batch_are_at_places_of_their_own(precision: str) -> None:
    """Two texts of 5 and 3 tokens go on together."""
    of = Decoder(layers=1, seed=3)
    model, rng = of.step(1, batch=2), np.random.default_rng(1)
    image = knapper.compile(model, TARGET, precision, state=of.state)
    texts = [rng.integers(0, of.vocabulary, (1, n)) for n in (6, 4)]
    with image.session() as session:
        for i in range(6):
            at = np.array([min(i, t.shape[1] - 1) for t in texts])
            tokens = np.array([[t[0, a]] for t, a in zip(texts, at, strict=True)])
            logits = session.run({"tokens": tokens, "position": at}).outputs["logits"]
    for text, ours in zip(texts, logits, strict=True):
        agree(ours[-1], read(of.whole(text.shape[1]), {"tokens": text})[0, -1], precision)


@pytest.mark.parametrize("target", ["volta-8tc", "tpu-v2", "systolic-host"])
def test_every_target_says_it_in_the_same_bits(target: str, decode: Image, precision: str) -> None:
    if precision == "fp32":
        pytest.skip("once is enough")
    other = step(1, precision, target=target)
    feeds = [{"tokens": np.array([[t]]), "position": np.array([i])} for i, t in enumerate((7, 11))]
    with decode.session() as ours, other.session() as theirs:
        for a, b in zip(ours.run_many(feeds), theirs.run_many(feeds), strict=True):
            np.testing.assert_array_equal(a.outputs["logits"], b.outputs["logits"])
        for name, cache in ours.state.items():
            np.testing.assert_array_equal(cache, theirs.state[name])


def test_the_example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["decoder", "--tokens", "2"])
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "decoder"), run_name="__main__")
    *_, last, rows = capsys.readouterr().out.splitlines()
    assert last.split()[0] == "3"
    assert rows == "4 rows of each cache are full"


def test_the_model_is_valid_onnx_and_onnxruntime_continues_its_cache_alike() -> None:
    model = DECODER.step(8)
    onnx.checker.check_model(model, full_check=True)
    past = {p: np.zeros((1, 2, DECODER.room, DECODER.head), np.float32) for p in DECODER.state}
    cached = read(model, {"tokens": PROMPT, "position": np.array([0]), **past})
    agree(cached, read(DECODER.whole(8), {"tokens": PROMPT}), "fp32")
