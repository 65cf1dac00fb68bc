"""Which weights stay, by pattern: the best units of all layers together, until the share to keep is reached.

EW     single weights                                   TW-G   whole columns of [K, N]; then, in tiles of G surviving columns, rows
VW     the best of each 16 along K                      TEW-G  TW with a fifth fewer, and as many of the best of the others
BW-b   blocks of b x b                                  TVW-G  TW that keeps twice as much, and 2 of each 4 along a tile's rows

A unit is worth the mean score of its weights, and ranked by it with its size as weight: then the density is what was asked for,
up to a unit. Scores are squares (of a weight, or Taylor's), so the mean is the squared norm by length.

`knapper.compiler.sparsity`, which `knapper prune` uses, ranks EW and VW here. Of the scores of the networks in docs/prune.md it would make
other masks of the other patterns, though by the same scores and with the same density up to a unit, and what is stored was trained with these:

TW, BW  the unit that the density is reached in goes here, and stays there if more than half of it fits; and there the best unit of each
        layer stays, which moves blocks of 32 where an eighth is kept
TEW     the residue fills up to the weight what was asked for; there it is a share that is given, whatever tiles came out at
TVW     a last run of two or three keeps two, and halving a tile may empty a row of it; there a short run keeps its share, tiles are made
        without such rows, and cut until density is what was asked for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.compiler import sparsity
from knapper.compiler.encoding import Encoding
from knapper.compiler.sparsity import Recipe, View
from knapper.compiler.sparsity.fits import fits
from knapper.compiler.sparsity.patterns import best as best_of_runs

Scores = Mapping[str, NDArray[np.float32]]
Masks = dict[str, NDArray[np.bool_]]
Floats = NDArray[np.float64]
VECTOR, RESIDUE = 16, 0.2
"""Weights of a vector along K; what the residue has of all that TEW keeps."""


@dataclass(frozen=True)
class Pattern:
    """A kind of mask and its unit: G of tiles, or the block's side."""

    kind: str
    size: int = 0

    def __str__(self) -> str:
        return f"{self.kind}-{self.size}" if self.size else self.kind

    def encoding(self, sparsity: float) -> Encoding:
        """As the type of a masked weight names it."""
        size = self.size or 1
        return Recipe(self.kind.lower(), sparsity, size, block=(size, size)).encoding

    def of(self, mask: NDArray[np.bool_], sparsity: float) -> Encoding:
        """The encoding, if the mask is one. Halving may empty a row of a TVW tile, and then other rows make fours: single weights."""
        named = self.encoding(sparsity)
        return named if fits(mask, named) else Encoding("ew")


PATTERNS = (
    Pattern("EW"),
    Pattern("VW"),
    Pattern("TEW", 64),
    Pattern("TW", 16),
    Pattern("TW", 64),
    Pattern("TVW", 64),
    Pattern("BW", 16),
    Pattern("BW", 32),
)


def masks(pattern: Pattern, scores: Scores, keep: float) -> Masks:
    """Masks by name that keep this share of all weights."""
    s = [a.astype(np.float64) for a in scores.values()]
    match pattern.kind:
        case "EW" | "VW":
            return ranked(scores, pattern=pattern.kind.lower(), sparsity=1 - keep)
        case "BW":
            found = blocks(s, pattern.size, keep)
        case "TW":
            found = tiles(s, pattern.size, keep)[0]
        case "TEW":
            found = with_residue(s, pattern.size, keep)
        case "TVW":
            found = two_of_four(s, pattern.size, keep)
        case kind:
            raise ValueError(kind)
    return dict(zip(scores, found, strict=True))


def ranked(scores: Scores, **how: Any) -> Masks:
    """The compiler's masks of these scores."""
    views = dict.fromkeys(scores, View((0, 1)))
    return sparsity.masks(scores, scores=scores, views=views, vector=VECTOR, **how)


def best(units: Sequence[Floats], sizes: Sequence[int], keep: float) -> list[NDArray[np.bool_]]:
    """The best units until this share of the weights is kept; sizes are weights a unit, for each array of units."""
    value = np.concatenate([u.ravel() for u in units])
    size = np.repeat(sizes, [u.size for u in units])
    order = np.argsort(-value, kind="stable")
    kept = np.zeros(len(value), bool)
    kept[order] = np.cumsum(size[order]) <= keep * size.sum() + 1e-6
    ends = np.cumsum([u.size for u in units])[:-1]
    return [k.reshape(u.shape) for k, u in zip(np.split(kept, ends), units, strict=True)]


def blocks(s: Sequence[Floats], b: int, keep: float) -> list[NDArray[np.bool_]]:
    means = [a.reshape(a.shape[0] // b, b, a.shape[1] // b, b).mean((1, 3)) for a in s]
    kept = best(means, [b * b] * len(s), keep)
    return [np.repeat(np.repeat(k, b, 0), b, 1) for k in kept]


@dataclass(frozen=True, eq=False)
class Tile:
    """Surviving columns of a layer, and rows of theirs."""

    layer: int
    columns: NDArray[np.int64]
    rows: NDArray[np.int64]


def tiles(s: Sequence[Floats], g: int, keep: float) -> tuple[list[NDArray[np.bool_]], list[Tile]]:
    """Tile-wise masks: the square root of the density by columns, what is still too much by rows."""
    columns = best([a.mean(0) for a in s], [len(a) for a in s], keep**0.5)
    cut = [(i, np.flatnonzero(c)) for i, c in enumerate(columns)]
    places = [(i, c[j : j + g]) for i, c in cut for j in range(0, len(c), g)]
    means = [s[i][:, c].mean(1) for i, c in places]
    left = sum(len(s[i]) * len(c) for i, c in places)
    rows = best(means, [len(c) for _, c in places], keep * sum(a.size for a in s) / left)
    found = [Tile(i, c, np.flatnonzero(r)) for (i, c), r in zip(places, rows, strict=True)]
    kept = [np.zeros(a.shape, bool) for a in s]
    for t in found:
        kept[t.layer][np.ix_(t.rows, t.columns)] = True
    return kept, found


def with_residue(s: Sequence[Floats], g: int, keep: float) -> list[NDArray[np.bool_]]:
    tiled, _ = tiles(s, g, keep * (1 - RESIDUE))
    share = keep - sum(m.sum() for m in tiled) / sum(a.size for a in s)
    outside = [np.where(m, -1, a) for m, a in zip(tiled, s, strict=True)]
    residue = best(outside, [1] * len(s), share)
    return [m | r for m, r in zip(tiled, residue, strict=True)]


def two_of_four(s: Sequence[Floats], g: int, keep: float) -> list[NDArray[np.bool_]]:
    kept = [np.zeros(a.shape, bool) for a in s]
    for t in tiles(s, g, 2 * keep)[1]:
        at = np.ix_(t.rows, t.columns)
        kept[t.layer][at] = two_of_each_four(s[t.layer][at])
    return kept


def two_of_each_four(a: Floats) -> NDArray[np.bool_]:
    """The best 2 of each 4 rows, in every column; of a shorter last run 2 as well."""
    filled = np.pad(a, ((0, -len(a) % 4), (0, 0)), constant_values=-np.inf)
    return best_of_runs(filled, 2, 4)[: len(a)]


def density(masks: Masks) -> float:
    """What is kept of all weights that may go."""
    return float(sum(m.sum() for m in masks.values()) / sum(m.size for m in masks.values()))
