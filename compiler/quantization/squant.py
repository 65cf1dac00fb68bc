"""SQuant (ICLR 2022): rounding without data. Errors of one kernel, and of one output channel, are made to cancel.

The loss of a layer is ΔW·E[x·xᵀ]·ΔWᵀ a channel. With E[x·xᵀ] ≈ a diagonal + a constant a kernel + a constant a channel, what is
to be small are |ΔW| of each element (stage E: round to nearest), |Σ ΔW| of each kernel (K) and |Σ ΔW| of each channel (C):

    x      5.68 -1.80  3.65  1.17      -2.63  5.41  4.73 -1.74       6.06 -3.53  3.91  2.32
    E      6    -2     4     1         -3     5     5    -2          6    -4     4     2         Σ   .30  -.77  -.76
    K      6    -2     4     1         -3     6     5    -2          6    -3     4     2         Σ   .30   .23   .24    .77
    C      6    -2     4     1         -3     5     5    -2          6    -3     4     2         Σ   .30  -.77   .24   -.23

K rounds elements the other way, those first that are nearest to the middle, until a kernel's error is at most a half. Each kernel keeps
one candidate for C: the next to flip, or the last one that was, to be flipped back. So |ΔW| < 1 for every element, |Σ| ≤ 1 for every
kernel and |Σ| ≤ 1/2 for every channel. Products of kernels of one element (1x1, matrices) have no K: every element is a candidate, as
it is where K is left out (mode ec).

It pays where inputs have a mean, as behind a Relu; for inputs around zero it is worse than rounding to nearest.

Everything is vectorised over kernels, [taps, kernels] by blocks that stay in the cache, on two threads if the machine has them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..ir import Array
from .quantized import Quantized, rows

MODES = ("e", "ek", "ec", "ekc")
BLOCK = 1 << 15
"""Elements that one step works on: a dozen arrays of so many floats fit the second-level cache."""


def quantize(
    w: Array, bits: int = 4, mode: str = "ekc", axis: int = 0, *, zero: bool = False
) -> Quantized:
    """Weights whose output channels are along `axis`, each on the asymmetric grid from its least to its greatest element.

    With `zero` that interval contains 0, so that the zero point is one of the integers.
    """
    x, made = asymmetric(w, bits, axis, zero=zero)
    return made.with_rows(flip(x, *bounds(bits), mode))


def bounds(bits: int) -> tuple[int, int]:
    """The least and the greatest signed integer."""
    return -(1 << bits - 1), (1 << bits - 1) - 1


def asymmetric(
    w: Array, bits: int, axis: int = 0, *, zero: bool = False
) -> tuple[Array, Quantized]:
    """(weights in units of their channel's grid [O, C, taps], scales and zero points): w = (x - zero_point) · scale.

    inv = (2^b - 1) / (max - min)       zero_point = -(rne(inv · min) + 2^(b-1))       x = inv · w + zero_point
    """
    r = rows(w, axis)
    r = r if r.dtype == np.float64 else r.astype(np.float32)
    flat = r.reshape(len(r), -1)
    low, high = flat.min(1), flat.max(1)
    if zero:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    inv = ((1 << bits) - 1) / np.maximum(high - low, 1e-8).astype(r.dtype)
    zp = -(np.rint(inv * low) + (1 << bits - 1))
    x = r * inv[:, None, None] + zp[:, None, None]
    return x, Quantized(
        np.empty(0, np.int8),
        (1 / inv).astype(np.float32),
        zp.astype(np.int64),
        axis,
        w.shape,
        f"i{bits}",
    )


def flip(x: Array, low: int, high: int, mode: str = "ekc") -> Array:
    """Integers in [low, high] for x [O, C, taps] float64, by stages."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
    o, c, taps = x.shape
    step = max(1, BLOCK // max(1, c * taps))
    pieces = [slice(i, i + step) for i in range(0, o, step)]
    q = np.empty(x.shape, np.int32)

    def work(piece: slice) -> None:
        q[piece] = _channels(x[piece], low, high, mode)

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(pool.map(work, pieces))
    return q


def _channels(x: Array, low: int, high: int, mode: str) -> Array:
    """Some output channels [O, C, taps]."""
    o, c, taps = x.shape
    t = np.ascontiguousarray(x.reshape(o * c, taps).T)  # [taps, kernels]
    q = np.rint(t)
    np.clip(q, low, high, out=q)
    e = q - t
    whole = "k" not in mode or taps == 1
    candidates = None if whole else _kernels(t, q, e, low, high)
    if "c" in mode:
        (candidates or _everything(t, e, low, high)).choose(q, e, o)
    made: Array = np.clip(q, low, high).T.reshape(o, c, taps).astype(np.int32)
    return made


@dataclass(frozen=True, eq=False)
class _Candidates:
    """What stage C may flip: element [row, kernel] by `direction` (0: nothing), the greatest priority first; all [kernels] or [kernels · n]."""

    row: Array
    column: Array
    direction: Array
    priority: Array

    def choose(self, q: Array, e: Array, channels: int) -> None:
        """Flip in place until each channel's error is at most a half, or nothing is left."""
        total = e.reshape(len(e), channels, -1).sum((0, 2), np.float64)
        wanted = np.where(total < 0, 1, -1)
        count = np.rint(np.abs(total)).astype(np.int64)
        direction, priority = (a.reshape(channels, -1) for a in (self.direction, self.priority))
        row, column = (a.reshape(channels, -1) for a in (self.row, self.column))
        for m in np.flatnonzero(count):
            free = np.flatnonzero(direction[m] == wanted[m])
            best = free[np.argsort(-priority[m, free], kind="stable")[: count[m]]]
            at = row[m, best], column[m, best]
            q[at] += wanted[m]
            e[at] += wanted[m]


def _everything(x: Array, e: Array, low: int, high: int) -> _Candidates:
    """Every element that may still move towards where it came from, as candidates [kernels · taps]."""
    taps, kernels = x.shape
    direction = _allowed(x, e, low, high)
    row = np.broadcast_to(np.arange(taps), (kernels, taps))
    column = np.broadcast_to(np.arange(kernels)[:, None], (kernels, taps))
    return _Candidates(row, column, direction.T, np.abs(e).T)


def _allowed(x: Array, e: Array, low: int, high: int) -> Array:
    """The way each element may be flipped: 1 up, -1 down, 0 not at all."""
    up: Array = (e < 0) & (x < high)
    return up.astype(np.int8) - ((e > 0) & (x > low)).astype(np.int8)


def _kernels(x: Array, q: Array, e: Array, low: int, high: int) -> _Candidates:
    """Stage K in place; a candidate a kernel is left."""
    kernels = x.shape[1]
    total = e.sum(0, np.float64)
    size = np.abs(total)
    d = np.where(total < 0, 1, -1).astype(e.dtype)
    count = np.rint(size).astype(np.int64)
    signed = e * d
    p = np.where(
        (signed < 0) & np.where(d > 0, x < high, x > low), -signed, 0
    )  # priorities; 0: not eligible
    row, direction, priority = np.zeros(kernels, np.int64), np.zeros(kernels), np.zeros(kernels)
    for rank, (at, best, first) in enumerate(_ranked(p, count + (count < size))):
        flipped = count[at] > rank
        now, where = at[flipped], first[flipped]
        q[where, now] += d[now]
        e[where, now] += d[now]
        last = flipped & (count[at] == rank + 1) & (count[at] >= size[at])
        back, home = at[last], first[last]
        row[back], direction[back], priority[back] = home, -d[back], np.abs(e[home, back])
        ahead, there = at[~flipped], first[~flipped]
        row[ahead], direction[ahead], priority[ahead] = there, d[ahead], best[~flipped]
    return _Candidates(row, np.arange(kernels), direction, priority)


def _ranked(p: Array, count: Array) -> Iterator[tuple[Array, Array, Array]]:
    """For rank 0, 1, …: (columns of p that want so many, their greatest priority left, its row). Consumes p; equals: the first."""
    at = np.flatnonzero(count > 0)
    while len(at):
        part = p[:, at]
        best, first = part[0].copy(), np.zeros(len(at), np.int64)
        for i in range(1, len(part)):
            better = part[i] > best
            np.copyto(best, part[i], where=better)
            first[better] = i
        some = best > 0
        at, best, first = at[some], best[some], first[some]
        yield at, best, first
        p[first, at] = 0
        count[at] -= 1
        at = at[count[at] > 0]
