"""Tiles of a weight matrix: what is left of it after columns and, in each tile, rows are gone.

    columns 0…6, G = 2            tile 0   columns 0, 2   rows 0, 3, 4       a dense 3×2 product
    x . x x . . x                 tile 1   columns 3, 6   rows 1, 3
    (x: not all zero)             tile 2   columns 1, 4   no rows            its outputs are zero, but written
                                  tile 3   column 5       no rows

Zeros decide: a column or row is gone if nothing but zeros is left in it. Every column is in exactly one tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir import Array


@dataclass(frozen=True, eq=False)
class Tile:
    """Rows (k) and columns (n) of the matrix, each ascending."""

    rows: Array
    columns: Array

    @property
    def count(self) -> int:
        """Elements that are computed with."""
        return len(self.rows) * len(self.columns)


def tiles(matrix: Array, tile: int) -> list[Tile]:
    """The tiles of matrix [K, N]: the columns that have a non-zero cut every `tile`, then those that have none."""
    nonzero = matrix != 0
    kept = nonzero.any(axis=0)
    found = [
        Tile(np.flatnonzero(nonzero[:, columns].any(axis=1)), columns)
        for columns in cut(np.flatnonzero(kept), tile)
    ]
    return found + [Tile(np.arange(0), columns) for columns in cut(np.flatnonzero(~kept), tile)]


def cut(columns: Array, tile: int) -> list[Array]:
    """Consecutive parts of `tile` columns; the last may be shorter.

    >>> cut(np.arange(5), 2)
    [array([0, 1]), array([2, 3]), array([4])]
    """
    return [columns[i : i + tile] for i in range(0, len(columns), tile)]


def held(found: list[Tile]) -> int:
    """Elements that tiles compute with."""
    return sum(t.count for t in found)


def split(matrix: Array, tile: int) -> tuple[Array, Array]:
    """A matrix [K, N] as its tile-wise part and the residue, which sum to it: element by element one of the two is zero.

    A column is of the tile-wise part if it has at least half as many non-zeros as one that non-zeros typically lie in, a row of
    a tile if at least half of its elements are non-zero: what pruning left is nearly full, a residue is thin.
    """
    nonzero = matrix != 0
    share = nonzero.mean(axis=0) if len(matrix) else np.zeros(matrix.shape[1])
    typical = (
        float((share**2).sum() / share.sum()) if share.any() else 0.0
    )  # thin columns hardly count
    kept = np.zeros(matrix.shape, bool)
    for columns in cut(np.flatnonzero(share > typical / 2), tile):
        kept[:, columns] = (nonzero[:, columns].mean(axis=1) >= 0.5)[:, None]
    return np.where(kept, matrix, 0).astype(matrix.dtype), np.where(kept, 0, matrix).astype(
        matrix.dtype
    )
