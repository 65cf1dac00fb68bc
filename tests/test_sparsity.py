"""Masks: what each pattern keeps, how much, how well; and which pattern zeros are recognised as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from knapper.compiler.encoding import Encoding
from knapper.compiler.sparsity import PATTERNS, Recipe, View, masks, schedule, sidecar
from knapper.compiler.sparsity.fits import at_most
from knapper.compiler.sparsity.recognise import recognise
from knapper.compiler.sparsity.tilewise import held, tiles
from knapper.isa.errors import KnapperError

Array = NDArray[Any]
BERT = [(768, 768)] * 4 + [(768, 3072), (3072, 768)]
PLAIN = View((0, 1))


def heavy(shapes: list[tuple[int, int]], seed: int = 0) -> dict[str, Array]:
    """Random matrices [K, N] with heavy tails, whose rows and columns differ in scale as trained ones do."""
    rng = np.random.default_rng(seed)
    return {
        str(i): (
            rng.standard_t(3, (k, n)) * np.exp(rng.normal(0, 0.5, (k, 1))) * np.exp(rng.normal(0, 0.5, (1, n)))
        ).astype(np.float32)
        for i, (k, n) in enumerate(shapes)
    }  # fmt: skip


def made(weights: dict[str, Array], **options: Any) -> dict[str, Array]:
    return masks(weights, views=dict.fromkeys(weights, PLAIN), **options)


def density(kept: dict[str, Array]) -> float:
    return sum(int(m.sum()) for m in kept.values()) / sum(m.size for m in kept.values())


def energy(weights: dict[str, Array], kept: dict[str, Array]) -> float:
    squares = {n: np.square(w, dtype=np.float64) for n, w in weights.items()}
    return sum(float(squares[n][m].sum()) for n, m in kept.items()) / sum(
        float(s.sum()) for s in squares.values()
    )


@pytest.fixture(scope="module")
def bert() -> dict[str, Array]:
    return heavy(BERT)


def test_exact_gives_what_is_asked_for_and_repo_overshoots(bert: dict[str, Array]) -> None:
    assert density(made(bert, sparsity=0.75)) == pytest.approx(0.25, abs=2.5e-4)
    assert density(made(bert, sparsity=0.75, mode="repo")) == pytest.approx(0.2, abs=0.01)


def test_finer_patterns_keep_more_energy(bert: dict[str, Array]) -> None:
    ew, vw, tew, tw, bw = (
        energy(bert, made(bert, pattern=p, sparsity=0.75)) for p in ("ew", "vw", "tew", "tw", "bw")
    )
    assert ew > vw > tw > bw
    assert ew > tew > tw
    assert tw > 1.5 * bw


def test_narrower_tiles_keep_more_energy(bert: dict[str, Array]) -> None:
    kept = [energy(bert, made(bert, sparsity=0.75, granularity=g)) for g in (8, 16, 32, 64, 128)]
    assert kept == sorted(kept, reverse=True)


shapes = st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=3)


@given(
    shapes=shapes,
    sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.75, 0.94]),
    pattern=st.sampled_from(sorted(PATTERNS)),
    g=st.sampled_from([4, 16, 32]),
)
def test_masks_are_of_their_pattern(shapes: list[tuple[int, int]], sparsity: float, pattern: str, g: int) -> None:  # fmt: skip
    if (pattern == "tvw" and sparsity < 0.5) or (pattern == "tew" and sparsity > 0.9):
        return
    weights = heavy(shapes)
    kept = made(weights, pattern=pattern, sparsity=sparsity, granularity=g, block=(8, 8))
    for name, m in kept.items():
        assert m.shape == weights[name].shape
        assert m.dtype == bool
        if pattern == "nm":
            assert at_most(m, 2, 4)
        if pattern == "vw":
            assert at_most(m, Recipe("vw", sparsity).keep, 16)
        if pattern == "tw":
            assert held(tiles(m, g)) == m.sum()
        if pattern == "tvw":
            assert all(at_most(m[np.ix_(t.rows, t.columns)], 2, 4) for t in tiles(m, g))


def test_what_a_stage_drops_counts_for_nothing_in_the_next() -> None:
    weights = heavy([(64, 96), (96, 64)])
    views = dict.fromkeys(weights, PLAIN)
    first = masks(weights, sparsity=0.5, granularity=16, views=views)
    both = schedule(weights, (0.5, 0.8), granularity=16, views=views)
    back = sum(int((both[n] & ~first[n]).sum()) for n in weights)
    assert back < 0.1 * sum(int(m.sum()) for m in both.values())
    assert density(both) == pytest.approx(0.2, abs=0.02)


def test_layers_are_ranked_within_their_groups() -> None:
    weights = heavy([(64, 64), (64, 64)])
    weights["1"] *= 100
    together = made(weights, pattern="ew", sparsity=0.5)
    apart = made(weights, pattern="ew", sparsity=0.5, groups=[["0"], ["1"]])
    assert together["0"].mean() < 0.05
    assert apart["0"].mean() == apart["1"].mean() == 0.5


def test_scores_decide_instead_of_magnitudes() -> None:
    weights = heavy([(16, 16)])
    scores = {"0": 1 / (np.abs(weights["0"]) + 1)}
    small = made(weights, pattern="ew", sparsity=0.5, scores=scores)["0"]
    large = made(weights, pattern="ew", sparsity=0.5)["0"]
    assert (small ^ large).all()


@pytest.mark.parametrize(
    "options",
    [{"pattern": "wt"}, {"sparsity": 1.0}, {"mode": "fast"}, {"granularity": 0}, {"groups": [["no"]]}, {"scores": {}}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_asked_for(options: dict[str, Any]) -> None:
    with pytest.raises(KnapperError) as e:
        made(heavy([(8, 8)]), **options)
    assert e.value.code == "E305"


# --- recognised


@pytest.mark.parametrize(
    ("pattern", "options", "found"),
    [
        ("tw", {"granularity": 16}, Encoding("tw", {"tile": 16})),
        ("tw", {"granularity": 64}, Encoding("tw", {"tile": 64})),
        ("tew", {"granularity": 16, "delta": 0.01}, Encoding("tew", {"tile": 16})),
        ("tvw", {"granularity": 64}, Encoding("tvw", {"tile": 64})),
        ("nm", {}, Encoding("nm", {"n": 2, "m": 4})),
        ("ew", {}, Encoding("ew")),
        ("bw", {"block": (32, 32)}, Encoding("tw", {"tile": 32})),
    ],
    ids=lambda x: str(x),
)  # fmt: skip
def test_zeros_are_recognised(pattern: str, options: dict[str, Any], found: Encoding) -> None:
    weights = heavy([(256, 256), (256, 512)])
    kept = made(weights, pattern=pattern, **{"sparsity": 0.75, **options})
    assert {recognise(np.where(kept[n], w, 0)) for n, w in weights.items()} == {found}


def test_dense_weights_are_dense() -> None:
    assert recognise(heavy([(64, 64)])["0"]) is None


# --- the file


def test_masks_come_back_from_their_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = {
        "a/b": sidecar.Mask(rng.random((7, 5)) < 0.5, Encoding("tw", {"tile": 16})),
        "c": sidecar.Mask(rng.random((32, 32)) < 0.1, Encoding("bw", {"block": (8, 8)})),
    }
    file = tmp_path / "masks.json"
    file.write_text(sidecar.show(masks))
    back = sidecar.read(file)
    assert back.keys() == masks.keys()
    for name, m in masks.items():
        assert (back[name].mask == m.mask).all()
        assert back[name].encoding == m.encoding


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "x"}', '{"format": "knapper.masks/1", "weights": {"a": {}}}']
)
def test_what_is_no_file_of_masks(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(KnapperError, match="no masks"):
        sidecar.read(tmp_path / "m.json")


@pytest.mark.parametrize(
    "encoding", ["nm{n=1,m=4}", "vw{vector=8,keep=2}", "tw", "tw{tile=0}", "bitmap{pad=1}", "ew|tw", ""]
)  # fmt: skip
def test_a_mask_is_what_it_says(encoding: str, tmp_path: Path) -> None:
    text = sidecar.show({"a": sidecar.Mask(np.ones((8, 8), bool), Encoding("ew"))})
    (tmp_path / "m.json").write_text(text.replace('"ew"', f'"{encoding}"'))
    with pytest.raises(KnapperError, match="no masks"):
        sidecar.read(tmp_path / "m.json")
