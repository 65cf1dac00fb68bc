"""The pruning example: what ships is tile-wise, classifies, and runs on the emulator with the answers that are stored."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

import knapper
from knapper.compiler.sparsity.fits import fits
from knapper.compiler.sparsity.tilewise import held, tiles
from knapper.frontends import demo

sys.path.append(str(Path(__file__).parent.parent))  # examples are no part of the package

from examples.prune import patterns
from examples.prune.patterns import PATTERNS, Pattern
from examples.train_demo import idx

HERE = Path(patterns.__file__).parent
NAMES = "tw-16-75", "tw-64-75"
FULL = [Path(p) / "usr/share/datasets/fashion-mnist" for p in ("/", "build/prune/data")]
"""Where all 10,000 images are, if they are anywhere."""
SHAPES = (288, 64), (576, 64), (32, 64), (576, 128)


def scores(name: str, target: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    shape = {"image": (len(images), 1, 28, 28)}
    image = knapper.compile(HERE / f"{name}.onnx", target, "fp16", shapes=shape)
    x = np.concatenate([demo.batch(pixels) for pixels in images])
    return np.asarray(image.run({"image": x}).outputs["scores"])


def matrices(name: str) -> dict[str, NDArray[np.float16]]:
    """The convolutions' weights [K, N], K in the order row, column, channel."""
    found = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(HERE / f"{name}.onnx").graph.initializer
    }
    return {
        n.removesuffix(".f16"): w.transpose(2, 3, 1, 0).reshape(-1, len(w))
        for n, w in found.items()
        if n.startswith("block") and w.ndim == 4
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["volta-8tc", "sma3"])
def test_the_binary_gives_the_stored_answers(name: str, target: str) -> None:
    shown, stored = np.load(demo.HERE / "fashion.npz"), np.load(HERE / "answers.npz")
    found = scores(name, target, shown["images"])
    assert found.tobytes() == stored[f"{name}.scores"].tobytes()
    assert (found.argmax(1) == shown["labels"]).mean() >= 0.85


@pytest.mark.skipif(
    not any(f.exists() for f in FULL), reason="dataset-fashion-mnist is not installed"
)
@pytest.mark.parametrize("name", NAMES)
def test_the_binary_gives_the_stored_classes_of_test_images(name: str) -> None:
    images, labels = idx(next(f for f in FULL if f.exists()), "t10k")
    stored = np.load(HERE / "answers.npz")[f"{name}.classes"]
    assert (stored == labels).mean() > 0.89
    assert scores(name, "volta-8tc", images[:400]).argmax(1).tolist() == stored[:400].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_networks_are_small_and_tile_wise(name: str) -> None:
    """Tiles cover the masks exactly, and as few elements as were to be kept."""
    g, of = int(name.split("-")[1]), matrices(name)
    assert sum(held(tiles(w, g)) for w in of.values()) <= 0.2501 * sum(w.size for w in of.values())
    assert (HERE / f"{name}.onnx").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_masks_beside_the_network_are_its_zeros(name: str) -> None:
    sidecar = json.loads((HERE / f"{name}.masks.json").read_text())["weights"]
    of = matrices(name)
    assert set(sidecar) == set(of)
    for n, w in of.items():
        bits = np.frombuffer(bytes.fromhex(sidecar[n]["mask"]), np.uint8)
        mask = np.unpackbits(bits, count=w.size).reshape(sidecar[n]["shape"])
        assert not w[mask == 0].any()
        assert (
            w[mask == 1] != 0
        ).mean() > 0.9  # weights of inputs that are always zero decay until fp16 has none


def random_scores(seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    heavy = rng.standard_cauchy
    return {str(i): (heavy(s) * heavy(s[1])).astype(np.float32) ** 2 for i, s in enumerate(SHAPES)}


@given(st.integers(0, 1000), st.sampled_from([1 / 2, 1 / 4, 1 / 8]), st.sampled_from(PATTERNS))
def test_masks_have_the_density_that_was_asked_for(
    seed: int, keep: float, pattern: Pattern
) -> None:
    """Up to a unit: the largest are blocks of 32 x 32, and columns."""
    found = patterns.density(patterns.masks(pattern, random_scores(seed), keep))
    unit = 2 * 32 * 32 / sum(k * n for k, n in SHAPES)
    assert found == pytest.approx(keep, abs=unit)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_masks_are_what_their_file_says(pattern: Pattern) -> None:
    drawn = [patterns.masks(pattern, random_scores(seed), 1 / 8) for seed in range(5)]
    said = [pattern.of(m, 7 / 8) for found in drawn for m in found.values()]
    masks = [m for found in drawn for m in found.values()]
    assert all(fits(m, e) for m, e in zip(masks, said, strict=True))
    assert sum(e == pattern.encoding(7 / 8) for e in said) > 0.9 * len(said)


def test_freer_patterns_keep_more() -> None:
    """The order of the paper, in what is kept of the scores, wherever large weights are."""
    s = random_scores(5)
    total = sum(a.sum() for a in s.values())
    kept = {
        str(p): sum((s[n] * m).sum() for n, m in patterns.masks(p, s, 0.25).items()) / total
        for p in PATTERNS
    }
    assert kept["EW"] >= kept["VW"]
    assert kept["EW"] >= kept["TEW-64"] > kept["TW-64"]
    assert kept["TW-16"] > kept["TW-64"]
    assert kept["BW-16"] > kept["BW-32"]


def test_a_vector_keeps_its_best_however_small_scores_are() -> None:
    a = np.arange(36, dtype=np.float32).reshape(18, 2) * np.float32(1e-20)
    kept = patterns.masks(Pattern("VW"), {"w": a}, 0.25)["w"]
    assert np.flatnonzero(kept[:, 0]).tolist() == [12, 13, 14, 15, 17]
