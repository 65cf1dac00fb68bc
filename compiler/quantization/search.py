"""The scale of a grid that loses least: mean squared errors of many scales at once, exactly, without quantizing anything.

A grid cuts the line into cells; what an element loses depends on its cell's value only. With a row sorted once and summed up
from the left, the loss of a scale is a few differences of sums, at the cells' borders, which a binary search finds:

    Σ (x - g)²  =  Σ x²  -  2 Σ_cells g·(Σ x in the cell)  +  Σ_cells g²·(number in the cell)

So hundreds of scales cost about as much as one rounding of all elements. Short rows on long grids are cheaper rounded, scale by scale; on
short grids most scales are ruled out first, by a histogram: which side of a border the elements of the border's own bin are on changes the
loss by so little that it is known to within a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir import Array

BLOCK = 1 << 17
"""Elements of a temporary: what the second-level cache holds."""
BINS = 1024
"""Of the histogram, over [-1, 1]."""
FEW = 32
"""Values of a grid for which the histogram's bound is narrow."""
LEFT = 8
"""Scales that may be left for a row; if there are more, all of them are tried."""


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
    x, scales = x / unit[:, None], tried / values[-1]
    if even and x.shape[1] < 4 * len(values):
        k, loss = _least(_rounded(x, values, scales))
    elif len(scales) > LEFT and len(values) <= FEW and x.size:
        k, loss = _among_few(x, values, scales)
    else:
        k, loss = _least(_losses(x, values, scales))
    return np.where(top > 0, unit * scales[k], 1.0), loss * unit**2 * (top > 0)


def _least(losses: Array) -> tuple[Array, Array]:
    """(which scale, its loss), a row."""
    k = losses.argmin(1)
    return k, losses[np.arange(len(losses)), k]


def _among_few(x: Array, values: Array, scales: Array) -> tuple[Array, Array]:
    """`_least` of all losses, of which few are computed."""
    possible = _possible(x, values, scales)
    some = possible.sum(1) <= LEFT
    k, loss = np.empty(len(x), np.int64), np.empty(len(x))
    if some.any():
        most = int(possible[some].sum(1).max())
        few = np.argsort(~possible[some], axis=1, kind="stable")[:, :most]
        at, loss[some] = _least(_losses(x[some], values, scales[few]))
        k[some] = few[np.arange(len(few)), at]
    if not some.all():
        k[~some], loss[~some] = _least(_losses(x[~some], values, scales))
    return k, loss


def _possible(x: Array, values: Array, scales: Array) -> Array:
    """[rows, scales]: whether a scale can be a row's best, as far as its histogram tells.

    An element x in the bin of a border b, taken to be above it, costs 2·(step at b)·|x - b| too much at most, which is at most a bin's width.
    """
    rows, n = x.shape
    place = np.minimum(((x + 1) * (BINS / 2)).astype(np.int64), BINS - 1)
    place += BINS * np.arange(rows)[:, None]
    count = np.zeros((rows, BINS + 1))
    count[:, :BINS] = np.bincount(place.ravel(), minlength=rows * BINS).reshape(rows, BINS)
    below, sums = np.zeros((rows, BINS + 1)), np.zeros((rows, BINS + 1))
    np.cumsum(count[:, :BINS], axis=1, out=below[:, 1:])
    total = np.bincount(place.ravel(), x.ravel(), rows * BINS).reshape(rows, BINS)
    np.cumsum(total, axis=1, out=sums[:, 1:])
    borders = np.multiply.outer(scales, (values[1:] + values[:-1]) / 2)
    at = np.clip((borders + 1) * (BINS / 2), 0, BINS).astype(np.int64)
    step, wider = np.diff(values), np.diff(values**2)
    linear = values[-1] * sums[:, -1:] - sums[:, at] @ step
    square = values[-1] ** 2 * n - below[:, at] @ wider
    loss = np.square(x).sum(1)[:, None] - 2 * scales * linear + scales**2 * square
    slack = (count[:, at] @ step) * scales * (4 / BINS) + 1e-9 * n
    found: Array = loss - slack <= loss.min(1)[:, None]
    return found


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
    """Mean squared errors [rows, scales] of rows within [-1, 1], by scales or each row's own [rows, scales]."""
    rows, n = x.shape
    shape = (rows, scales.shape[-1], len(values) + 1)
    s = np.sort(x.astype(np.float64), axis=1)
    sums = np.zeros((rows, n + 1))
    np.cumsum(s, axis=1, out=sums[:, 1:])
    borders = np.clip(np.multiply.outer(scales, (values[1:] + values[:-1]) / 2), -1.5, 1.5)
    apart = 4.0 * np.arange(rows)  # rows end to end: one search for all
    flat = borders.reshape(-1, shape[1] * (shape[2] - 2))
    where = np.searchsorted((s + apart[:, None]).ravel(), apart[:, None] + flat)
    where -= n * np.arange(rows)[:, None]
    edges = np.zeros(shape, np.int64)
    edges[..., 1:-1] = where.reshape(*shape[:2], shape[2] - 2)
    edges[..., -1] = n
    inside = np.diff(np.take_along_axis(sums, edges.reshape(rows, -1), 1).reshape(edges.shape))
    count = np.diff(edges)
    losses = (count @ values**2) * scales**2 - 2 * (inside @ values) * scales
    mean: Array = np.maximum(losses + np.square(s).sum(1)[:, None], 0) / max(n, 1)
    return mean
