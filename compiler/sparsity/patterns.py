"""The patterns: from score matrices [K, N] of several layers, ranked together, to masks of the same shapes.

    ew     single elements                              vw    the best `keep` of each 16 along K
    bw     blocks of 32×32                              nm    the best n of each m along K
    tw     columns, then rows of each G columns left    tw1   rows of each G columns
    tew    tw at more than asked for, then the best single elements outside it come back
    tvw    tw, then 2 of 4 along the rows that each tile kept

`tw` splits density evenly: both steps keep √(1-s). The second step is ranked to meet what was asked for in all. A recipe says
which pattern, how much, and how.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from knapper.isa.errors import UsageError

from ..encoding import Encoding
from ..ir import Array
from .ranking import (
    EXACT,
    REPO,
    choose,
    norm_by_length,
    percentile,
    root_mean_square,
    single,
)
from .tilewise import cut, tiles

Matrices = Sequence[Array]


@dataclass(frozen=True)
class Recipe:
    """What to prune, how much, how. `sparsity` is the share of zeros; `granularity` the columns of a tile.

    `delta` is what tew keeps beside its tiles, as a share of all elements. `apriori` (assumed, the authors' code has none):
    that share of units in which single-element pruning leaves least goes first, and that share in which it leaves most stays.
    """

    pattern: str = "tw"
    sparsity: float = 0.75
    granularity: int = 128
    mode: str = EXACT
    delta: float = 0.05
    vector: int = 16
    block: tuple[int, int] = (32, 32)
    n: int = 2
    m: int = 4
    apriori: float = 0.0

    def __post_init__(self) -> None:
        for wrong, message in self._problems():
            if wrong:
                raise UsageError("E305", message)

    def _problems(self) -> list[tuple[bool, str]]:
        known = ", ".join(PATTERNS)
        sizes = (self.granularity, self.vector, self.n, self.m, *self.block)
        room = {"tew": self.sparsity + self.delta < 1, "tvw": self.sparsity >= 0.5}
        return [
            (self.pattern not in PATTERNS, f"no pattern {self.pattern!r}: there are {known}"),
            (self.mode not in (EXACT, REPO), f"no mode {self.mode!r}: there are exact and repo"),
            (not 0 <= self.sparsity < 1, f"sparsity {self.sparsity} is not in [0, 1)"),
            (not 0 <= self.delta < 1, f"delta {self.delta} is not in [0, 1)"),
            (not 0 <= self.apriori <= 0.5, f"apriori {self.apriori} is not in [0, 0.5]"),
            (min(sizes) < 1 or len(self.block) != 2, "sizes of units must be at least 1"),
            (self.n > self.m, f"cannot keep {self.n} of {self.m}"),
            (
                not room.get(self.pattern, True),
                {
                    "tew": f"tew prunes delta more than asked for, then gives it back: {self.sparsity} + {self.delta} must be below 1",
                    "tvw": "tvw has half of its zeros from 2:4: sparsity must be at least 0.5",
                }.get(self.pattern, ""),
            ),
        ]

    @property
    def density(self) -> float:
        """The share of elements that stay."""
        return 1 - self.sparsity

    @property
    def keep(self) -> int:
        """Elements of a vector that vw keeps."""
        return max(1, round(self.density * self.vector))

    @property
    def encoding(self) -> Encoding:
        """What a weight with such a mask is."""
        options: dict[str, dict[str, object]] = {
            "vw": {"vector": self.vector, "keep": self.keep},
            "nm": {"n": self.n, "m": self.m},
            "bw": {"block": self.block},
            "ew": {},
        }
        name = "tw" if self.pattern == "tw1" else self.pattern
        return Encoding(name, options.get(name, {"tile": self.granularity}))


# --- patterns without tiles ---------------------------------------------------------------------------------------------


def elementwise(scores: Matrices, r: Recipe) -> list[Array]:
    """ew: the best elements of all layers."""
    if r.mode == REPO:
        return percentile(scores, r.sparsity)
    return single(scores, r.density * sum(s.size for s in scores))


def vectorwise(scores: Matrices, r: Recipe) -> list[Array]:
    """vw: the nearest that a vector can keep."""
    return [best(s, r.keep, r.vector) for s in scores]


def n_of_m(scores: Matrices, r: Recipe) -> list[Array]:
    """nm: density is n/m, whatever sparsity says."""
    return [best(s, r.n, r.m) for s in scores]


def best(scores: Array, n: int, m: int) -> Array:
    """The best n of each m along K, the first where they are equal; of a shorter last run its share, rounded up.

    >>> best(np.array([[1.0], [3.0], [2.0], [0.0], [5.0], [6.0]]), 2, 4)[:, 0]
    array([False,  True,  True, False, False,  True])
    """
    k, columns = scores.shape
    full = np.full((-(-k // m) * m, columns), -np.inf)  # what fills up is below any score
    full[:k] = scores
    filled = full.reshape(-1, m, columns)
    rank = np.argsort(np.argsort(-filled, axis=1, kind="stable"), axis=1, kind="stable")
    quota = np.full((len(filled), 1, 1), n)
    if k % m:
        quota[-1] = -(-(k % m) * n // m)
    return (rank < quota).reshape(-1, columns)[:k]


def blockwise(scores: Matrices, r: Recipe) -> list[Array]:
    """bw: blocks by their root mean square; those at the edges are smaller."""
    if not any(s.size for s in scores):
        return [np.ones(s.shape, bool) for s in scores]
    squares = [_block_sums(np.square(s.astype(np.float64)), r.block) for s in scores]
    sizes = [_block_sums(np.ones(s.shape), r.block) for s in scores]
    if r.mode == REPO:
        kept = percentile([np.sqrt(q) / n for q, n in zip(squares, sizes, strict=True)], r.sparsity)
    else:
        worth = [np.sqrt(q / n).reshape(-1) for q, n in zip(squares, sizes, strict=True)]
        elements = r.density * sum(s.size for s in scores)
        kept = choose(worth, [n.reshape(-1) for n in sizes], elements)
    grown = (
        np.repeat(np.repeat(k.reshape(q.shape), r.block[0], axis=0), r.block[1], axis=1)
        for k, q in zip(kept, squares, strict=True)
    )
    return [g[: s.shape[0], : s.shape[1]] for g, s in zip(grown, scores, strict=True)]


def _block_sums(a: Array, block: tuple[int, int]) -> Array:
    rows = np.add.reduceat(a, np.arange(0, a.shape[0], block[0]), axis=0)
    return np.add.reduceat(rows, np.arange(0, a.shape[1], block[1]), axis=1)


# --- tiles --------------------------------------------------------------------------------------------------------------


def tilewise(scores: Matrices, r: Recipe) -> list[Array]:
    """tw: columns, then rows of tiles, each step keeping the root of the density."""
    prior = elementwise(scores, r) if r.apriori else None
    if r.mode == REPO:
        share = 1 - math.sqrt(r.density)
        columns = percentile([norm_by_length(s, 0, len(s)) for s in scores], share)
        return _rows_of_repo(scores, columns, share, r.granularity)
    sizes = [np.full(s.shape[1], s.shape[0]) for s in scores]
    worth = [root_mean_square(s, 0) for s in scores]
    if prior:
        worth = _tuned(worth, [1 - p.mean(axis=0) for p in prior], r.apriori)
    whole = sum(s.size for s in scores)
    return _rows(scores, choose(worth, sizes, math.sqrt(r.density) * whole), r, prior)


def rows_only(scores: Matrices, r: Recipe) -> list[Array]:
    """tw1: all columns, rows of tiles."""
    columns = [np.ones(s.shape[1], bool) for s in scores]
    if r.mode == REPO:
        return _rows_of_repo(scores, columns, r.sparsity, r.granularity)
    return _rows(scores, columns, r, elementwise(scores, r) if r.apriori else None)


def _rows(scores: Matrices, columns: Matrices, r: Recipe, prior: Matrices | None) -> list[Array]:
    """Rows of the tiles of the columns that are left, so many that the recipe's density is met."""
    parts = [cut(np.flatnonzero(c), r.granularity) for c in columns]
    worth = [
        _by_tile([root_mean_square(s[:, c], 1) for c in p])
        for s, p in zip(scores, parts, strict=True)
    ]
    if prior:
        gone = [
            _by_tile([1 - e[:, c].mean(axis=1) for c in p])
            for e, p in zip(prior, parts, strict=True)
        ]
        worth = _tuned(worth, gone, r.apriori)
    sizes = [
        np.repeat([len(c) for c in p], len(s)).astype(np.int64)
        for s, p in zip(scores, parts, strict=True)
    ]
    kept = choose(worth, sizes, r.density * sum(s.size for s in scores))
    return [_mask(s.shape, p, k) for s, p, k in zip(scores, parts, kept, strict=True)]


def _by_tile(rows: list[Array]) -> Array:
    return np.concatenate(rows) if rows else np.zeros(0)


def _mask(shape: tuple[int, ...], parts: list[Array], kept: Array) -> Array:
    """A mask from which rows each tile keeps, tile after tile."""
    mask = np.zeros(shape, bool)
    for columns, rows in zip(parts, kept.reshape(len(parts), shape[0]), strict=True):
        mask[:, columns] = rows[:, None]
    return mask


def _rows_of_repo(scores: Matrices, columns: Matrices, share: float, tile: int) -> list[Array]:
    """As the authors' code: pruned columns stay within tiles, and a row's norm is divided by a width that counts them."""
    parts = [_extents(c, tile) for c in columns]
    worth = [
        _by_tile([norm_by_length(s[:, a:b] * c[a:b], 1, b - a) for a, b in p])
        for s, c, p in zip(scores, columns, parts, strict=True)
    ]
    kept = percentile(worth, share)
    tiles_of = [[np.arange(a, b) for a, b in p] for p in parts]
    masks = [_mask(s.shape, t, k) for s, t, k in zip(scores, tiles_of, kept, strict=True)]
    return [m & c for m, c in zip(masks, columns, strict=True)]


def _extents(columns: Array, tile: int) -> list[tuple[int, int]]:
    """Where tiles begin and end if a cut follows each `tile`-th column that is left."""
    ends = np.flatnonzero(columns)[tile - 1 :: tile] + 1
    cuts = [0, *ends.tolist(), len(columns)]
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]


def _tuned(worth: list[Array], gone: list[Array], share: float) -> list[Array]:
    """Apriori tuning: units that single-element pruning empties go first, those that it hardly touches stay."""
    every = np.concatenate(gone)
    low, high = np.quantile(every, [share, 1 - share]) if every.size else (0.0, 1.0)
    return [
        np.where(g > high, 0.0, np.where(g < low, np.inf, w))
        for w, g in zip(worth, gone, strict=True)
    ]


def with_residue(scores: Matrices, r: Recipe) -> list[Array]:
    """tew: tiles at sparsity + delta, then the best elements outside of them."""
    masks = tilewise(scores, replace(r, pattern="tw", sparsity=r.sparsity + r.delta))
    outside = [np.where(m, -1.0, s) for m, s in zip(masks, scores, strict=True)]
    whole = sum(s.size for s in scores)
    room = whole - sum(int(m.sum()) for m in masks)
    back = single(outside, min(r.delta * whole, room))
    return [m | b for m, b in zip(masks, back, strict=True)]


def with_two_of_four(scores: Matrices, r: Recipe) -> list[Array]:
    """tvw: tiles at 1-(1-s)/0.5, then 2 of 4 along the compacted K of each.

    A short last run keeps more than half, so tiles are pruned a little more until the density is met.
    """
    whole = sum(s.size for s in scores)
    wanted = share = min(1.0, 2 * r.density)
    for _ in range(6):
        tiled = tilewise(scores, replace(r, pattern="tw", sparsity=1 - share))
        masks = [_halved(m, s, r.granularity) for m, s in zip(tiled, scores, strict=True)]
        found = sum(int(m.sum()) for m in masks) / max(whole, 1)
        if r.mode == REPO or abs(found - r.density) < 2e-4 or not found:
            break
        share = min(wanted, share * r.density / found)
    return masks


def _halved(mask: Array, scores: Array, tile: int) -> Array:
    """2 of 4 along the rows that each tile kept. A row that lost all its elements is no row of the tile: then once more."""
    while True:
        halved = np.zeros_like(mask)
        for t in tiles(mask, tile):
            where = np.ix_(t.rows, t.columns)
            halved[where] = best(np.where(mask[where], scores[where], -1), 2, 4)
        halved &= mask
        again = _full_tiles(halved, mask, tile)
        if (again == mask).all():
            return halved
        mask = again


def _full_tiles(halved: Array, mask: Array, tile: int) -> Array:
    """The mask without rows of tiles, and columns, that halving emptied."""
    rest = np.zeros_like(mask)
    for t in tiles(halved, tile):
        rest[np.ix_(t.rows, t.columns)] = True
    return rest & mask


PATTERNS: dict[str, Callable[[Matrices, Recipe], list[Array]]] = {
    "ew": elementwise,
    "vw": vectorwise,
    "bw": blockwise,
    "tw": tilewise,
    "tw1": rows_only,
    "tew": with_residue,
    "tvw": with_two_of_four,
    "nm": n_of_m,
}
