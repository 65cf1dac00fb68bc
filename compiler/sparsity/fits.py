"""Whether a weight's zeros are what an encoding promises.

`vw`, `nm` and `tvw` promise how many non-zeros a run of K may have, and kernels rely on it. The others only say along which
lines to look for zeros: any content fits them, and is computed right.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..encoding import Encoding
from ..ir import Array, Node
from .tilewise import tiles
from .view import views


def misfit(w: Array, encoding: Encoding, name: str, users: Iterable[Node]) -> str:
    """Why a constant's zeros do not fit its encoding as the products among its users read it; "" if they do."""
    if encoding.name in ("ew", "bw", "tw", "tew"):
        return ""
    for view in views(name, w.ndim, users):
        if not fits(view.matrix(w), encoding):
            return f"its zeros do not fit {encoding}"
    return ""


def fits(matrix: Array, encoding: Encoding) -> bool:
    """Whether the zeros of matrix [K, N] fit."""
    if encoding.name == "tvw":
        return all(
            at_most(matrix[np.ix_(t.rows, t.columns)], 2, 4)
            for t in tiles(matrix, encoding["tile"])
        )
    if encoding.name == "nm":
        return at_most(matrix, encoding["n"], encoding["m"])
    if encoding.name == "vw":
        return at_most(matrix, encoding["keep"], encoding["vector"])
    return True


def at_most(matrix: Array, n: int, m: int) -> bool:
    """Whether no run of m rows, from a multiple of m on, has more than n non-zeros in a column.

    >>> at_most(np.array([[1, 0], [0, 2], [0, 0], [3, 0], [0, 4]]), 1, 4), at_most(np.eye(4), 1, 4)
    (False, True)
    """
    return bool((runs(matrix != 0, m).sum(axis=1) <= n).all())


def runs(matrix: Array, m: int) -> Array:
    """Matrix [K, N] as [runs, m, N], the last run filled up with zeros."""
    k, n = matrix.shape
    full = np.zeros((-(-k // m) * m, n), matrix.dtype)
    full[:k] = matrix
    return full.reshape(-1, m, n)
