"""What is kept of a value over batches: extremes, moments, and a histogram that any later choice of a range starts from.

Bins are [i·w, (i+1)·w), w a power of two, so that the histogram of a wider range is made exactly: neighbours are added. What is kept does
not depend on the order of batches, nor on how the data was cut into them (but for the moving extremes, which are meant to).

    s = Statistics.of(x)                  a batch
    s = s.with_(y)                        and another
    s.low, s.high, s.std, s.counts        [s.first · s.width, …)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from knapper.isa.errors import PassError

from ..ir import Array

BINS = 2048
"""At least half as many bins, at most as many, lie between zero and the greatest magnitude."""
SMALLEST = 2.0**-140
LONGEST = 1 << 14
CONSTANT = 0.01
"""What a batch weighs in the moving extremes (onnxruntime's averaging constant)."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of one value, or of one channel of it. `counts[i]` elements lie in bin first + i; `positive` is the sum of squares of those above zero."""

    low: float
    high: float
    moving: tuple[float, float]
    count: int
    sum: float
    squares: float
    positive: tuple[int, float, float]
    width: float
    first: int
    counts: Array
    sums: tuple[Array, Array] = (np.zeros(0), np.zeros(0))
    """Along axis 1 (channels of images) and along the last; empty where batches differ in them, or are too long."""

    @staticmethod
    def of(x: Array) -> Statistics:
        """Of a batch; PassError E306 for what is empty or not finite."""
        flat = np.asarray(x, np.float32).ravel()
        low, high = (float(flat.min()), float(flat.max())) if flat.size else (math.nan, math.nan)
        if not math.isfinite(low) or not math.isfinite(high):
            raise PassError("E306", "a value to be observed is empty or not finite")
        width = _width(max(-low, high))
        bins = np.floor(flat * np.float64(1 / width)).astype(np.int64)
        first = int(bins.min())
        above = flat[flat > 0].astype(np.float64)
        moments = (
            float(flat.sum(dtype=np.float64)),
            float(np.square(flat, dtype=np.float64).sum()),
        )
        return Statistics(
            low, high, (low, high), flat.size, *moments,
            (above.size, float(above.sum()), float(np.square(above).sum())), width, first, np.bincount(bins - first),
            (_sums(x, 1), _sums(x, -1)),
        )  # fmt: skip

    def with_(self, x: Array) -> Statistics:
        """With one batch more."""
        return self.merged(Statistics.of(x))

    def merged(self, other: Statistics) -> Statistics:
        """Of both; the other one is the later batch."""
        width = max(self.width, other.width)
        a, b = self._of_width(width), other._of_width(width)
        first = min(a.first, b.first)
        end = max(a.first + len(a.counts), b.first + len(b.counts))
        counts = np.zeros(end - first, np.int64)
        for s in (a, b):
            counts[s.first - first : s.first - first + len(s.counts)] += s.counts
        low, high = (m + CONSTANT * (n - m) for m, n in zip(self.moving, other.moving, strict=True))
        mine, its = self.positive, other.positive
        return Statistics(
            min(self.low, other.low), max(self.high, other.high), (low, high), self.count + other.count,
            self.sum + other.sum, self.squares + other.squares,
            (mine[0] + its[0], mine[1] + its[1], mine[2] + its[2]), width, first, counts,
            (_added(self.sums[0], other.sums[0]), _added(self.sums[1], other.sums[1])),
        )  # fmt: skip

    def _of_width(self, width: float) -> Statistics:
        factor = round(width / self.width) if width / self.width < 1 << 60 else 1 << 60
        if factor == 1:
            return self
        bins = (self.first + np.arange(len(self.counts))) // factor
        first = int(bins[0])
        counts = np.zeros(int(bins[-1]) - first + 1, np.int64)
        np.add.at(counts, bins - first, self.counts)
        return replace(self, width=width, first=first, counts=counts)

    @property
    def mean(self) -> float:
        return self.sum / self.count

    @property
    def std(self) -> float:
        return math.sqrt(max(self.squares / self.count - self.mean**2, 0.0))

    @property
    def positive_std(self) -> float:
        """Of the elements above zero; 0 if there are none."""
        n, total, squares = self.positive
        return math.sqrt(max(squares / n - (total / n) ** 2, 0.0)) if n else 0.0

    def means(self, axis: int) -> Array | None:
        """Of each slice along axis 1, or along the last one (-1), if they are known."""
        found = self.sums[0 if axis == 1 else 1]
        return found * len(found) / self.count if len(found) else None

    @property
    def centres(self) -> Array:
        """The middle of each bin; bins at the ends, and the one that a Relu's zeros are in, count as what is in them."""
        c = (self.first + np.arange(len(self.counts)) + 0.5) * self.width
        if self.low == 0:
            c[0] = 0.0  # almost all of that bin, where there is a Relu
        inside: Array = np.clip(c, self.low, self.high)
        return inside


def _sums(x: Array, axis: int) -> Array:
    """Of each slice along an axis."""
    if x.ndim <= 1 or x.shape[axis] > LONGEST:
        return np.zeros(0)
    found: Array = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).sum(1, np.float64)
    return found


def _added(a: Array, b: Array) -> Array:
    return a + b if a.shape == b.shape else np.zeros(0)


def _width(top: float) -> float:
    """The power of two of which BINS/2 to BINS make up the greatest magnitude."""
    return max(2.0 ** math.ceil(math.log2(top)) / BINS if top > SMALLEST else 0.0, SMALLEST)


def by_channel(x: Array, axis: int) -> list[Statistics]:
    """Of each channel of a batch."""
    return [Statistics.of(c) for c in np.moveaxis(x, axis, 0)]
