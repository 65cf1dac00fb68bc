"""Which encoding a weight's zeros fit, whoever made them: a pass here, somebody's training, or chance.

Tried in this order, and the first is taken that spares at least `LEAST` of the elements:

    nm     2 of 4 along K everywhere         for sparse tensor cores
    tvw    tiles, and 2 of 4 in them         tiles spare more than half
    tw     tiles of the width that computes with fewest elements; of widths that do as well the largest, since wide tiles reuse more
    tew    tiles and a thin residue
    ew     anything else

`vw` and `bw` are patterns of pruning: what is left of them runs as `nm`, `tw` or `ew`, so they are not looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..encoding import Encoding
from ..ir import Array
from .fits import at_most
from .tilewise import held, split, tiles

WIDTHS = (16, 32, 64, 128, 256)
LEAST = 0.1
"""The share of elements that an encoding must spare to be worth a name."""
FULL = 0.95
"""The share of elements of tiles beside a residue that are not zero, at least."""
BESIDE = 0.8
"""Elements of tiles and residue by those of tiles alone, at most."""
AS_WELL = 1.02
"""Elements of a wider tile by those of the best one, at most."""


def recognise(matrix: Array) -> Encoding | None:
    """The encoding of matrix [K, N], or None if it is as good as dense."""
    size, zeros = matrix.size, matrix.size - np.count_nonzero(matrix)
    if zeros < LEAST * size:
        return None
    if at_most(matrix, 2, 4):
        return _tiles_of_four(matrix) or Encoding("nm", {"n": 2, "m": 4})
    tiled, beside = _tiled(matrix), _best(matrix, lambda w: _with_residue(matrix, w))
    if beside.cost < min(BESIDE * tiled.cost, (1 - LEAST) * size):
        return Encoding("tew", {"tile": beside.width})
    if tiled.cost <= (1 - LEAST) * size:
        fours = _in_tiles(matrix, tiled.width)
        return Encoding("tvw" if fours else "tw", {"tile": tiled.width})
    return Encoding("ew")


@dataclass(frozen=True)
class Tiling:
    """A width of tiles, and the elements that they compute with."""

    width: int
    cost: int


def _tiled(matrix: Array) -> Tiling:
    return _best(matrix, lambda w: held(tiles(matrix, w)))


def _tiles_of_four(matrix: Array) -> Encoding | None:
    """A matrix that is 2 of 4 as it lies is better off in tiles if these alone spare more than half of it."""
    tiled = _tiled(matrix)
    if 2 * tiled.cost > matrix.size:
        return None
    return Encoding("tvw" if _in_tiles(matrix, tiled.width) else "tw", {"tile": tiled.width})


def _in_tiles(matrix: Array, width: int) -> bool:
    """Whether tiles have at most 2 of 4 along the rows they keep."""
    found = [t for t in tiles(matrix, width) if t.count]
    return all(at_most(matrix[np.ix_(t.rows, t.columns)], 2, 4) for t in found)


def _best(matrix: Array, cost: Callable[[int], int]) -> Tiling:
    """The width of tile that computes with fewest elements, or the widest that does about as well."""
    narrow, *wider = _widths(matrix.shape[1])
    costs = {narrow: cost(narrow)}
    if costs[narrow] <= (1 - LEAST) * matrix.size:  # wider tiles spare less
        costs |= {w: cost(w) for w in wider}
    most = AS_WELL * min(costs.values())
    width = max(w for w, c in costs.items() if c <= most)
    return Tiling(width, costs[width])


def _widths(columns: int) -> Sequence[int]:
    """Those that are not wider than need be."""
    return [w for w in WIDTHS if w < 2 * columns] or WIDTHS[:1]


def _with_residue(matrix: Array, width: int) -> int:
    """Elements that tiles compute with that have the rows of their residue as well; all if they are no tiles but what is thick by chance."""
    own, rest = split(matrix, width)
    found = tiles(own, width)
    if np.count_nonzero(own) < FULL * held(found):
        return matrix.size
    return held(found) + sum(
        int(np.delete((rest[:, t.columns] != 0).any(axis=1), t.rows).sum()) * len(t.columns)
        for t in found
    )
