"""The scale of a grid that loses least: mean squared errors of many scales at once, exactly, without quantizing anything.

A grid cuts the line into cells; what an element loses depends on its cell's value only. With a row sorted once and summed up
from the left, the loss of a scale is a few differences of sums, at the cells' borders, which a binary search finds:

    Σ (x - g)²  =  Σ x²  -  2 Σ_cells g·(Σ x in the cell)  +  Σ_cells g²·(number in the cell)

So hundreds of scales cost about as much as one rounding of all elements. Short rows on long grids are cheaper rounded, scale by scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir import Array

BLOCK = 1 << 20
"""Elements of a temporary."""


@dataclass(frozen=True)
class Bounds:
    """Which scales are tried: the grid's greatest value is put at low, low + step, … below high percent of the greatest magnitude."""

    low: float = 75
    high: float = 150
    step: float = 1

    @property
    def fractions(self) -> Array:
        """Of the greatest magnitude."""
        return np.arange(self.low, self.high, self.step) / 100


ANT, FREE, EXACT = Bounds(), Bounds(5, 151), Bounds(100, 101)
"""The authors'; from so low that no optimum of a distribution is cut off; the greatest magnitude itself."""


def best(x: Array, values: Array, bounds: Bounds = FREE) -> tuple[Array, Array]:
    """For rows x [rows, n] and a grid's sorted values: (scales, mean squared errors), both [rows] float64.

    A row of zeros has scale 1.
    """
    rows, n = x.shape
    tried = bounds.fractions
    step = max(1, BLOCK // (n + len(tried) * len(values)))
    scale, error = np.empty(rows), np.empty(rows)
    for i in range(0, rows, step):
        scale[i : i + step], error[i : i + step] = _best(x[i : i + step], values, tried)
    return scale, error


def _best(x: Array, values: Array, tried: Array) -> tuple[Array, Array]:
    top = np.abs(x).max(1).astype(np.float64) if x.size else np.zeros(len(x))
    unit = np.where(top > 0, top, 1.0)
    even = bool((np.diff(values) == 1).all())
    losses_of = _rounded if even and x.shape[1] < 4 * len(values) else _losses
    losses = losses_of(x / unit[:, None], values, tried / values[-1])
    k = losses.argmin(1)
    scale = np.where(top > 0, unit * (tried / values[-1])[k], 1.0)
    return scale, losses[np.arange(len(x)), k] * unit**2 * (top > 0)


def _rounded(x: Array, values: Array, scales: Array) -> Array:
    """What `_losses` gives, for consecutive integers, by rounding."""
    losses = np.empty((len(x), len(scales)))
    for k, scale in enumerate(scales):
        off = np.rint(x / scale)
        np.clip(off, values[0], values[-1], out=off)
        off *= scale
        off -= x
        losses[:, k] = np.einsum("ij,ij->i", off, off) / x.shape[1]
    return losses


def _losses(x: Array, values: Array, scales: Array) -> Array:
    """Mean squared errors [rows, scales] of rows within [-1, 1]."""
    rows, n = x.shape
    s = np.sort(x.astype(np.float64), axis=1)
    sums = np.zeros((rows, n + 1))
    np.cumsum(s, axis=1, out=sums[:, 1:])
    borders = np.clip(np.multiply.outer(scales, (values[1:] + values[:-1]) / 2), -1.5, 1.5)
    apart = 4.0 * np.arange(rows)  # rows end to end: one search for all
    where = np.searchsorted((s + apart[:, None]).ravel(), apart[:, None] + borders.ravel())
    where -= n * np.arange(rows)[:, None]
    edges = np.zeros((rows, len(scales), len(values) + 1), np.int64)
    edges[..., 1:-1] = where.reshape(rows, *borders.shape)
    edges[..., -1] = n
    inside = np.diff(np.take_along_axis(sums, edges.reshape(rows, -1), 1).reshape(edges.shape))
    count = np.diff(edges)
    losses = (count @ values**2) * scales**2 - 2 * (inside @ values) * scales
    mean: Array = np.maximum(losses + np.square(s).sum(1)[:, None], 0) / max(n, 1)
    return mean
