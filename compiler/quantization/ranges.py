"""Ranges of activations: what was seen of each value, kept in a file, and the ways to make a range out of it.

    method        range
    minmax        all that was seen
    moving        extremes averaged over batches, the latest weighing 1 %
    percentile    without the outermost 0.001 %
    entropy       the distribution that is left tells most about the whole (Kullback and Leibler; TensorRT's search; a Relu's zeros do not count)
    mse           the least mean squared error on the format's grid: of ends that move in towards zero together, then each by itself
    gauss         a multiple of the deviation of positive values, by bits (SQuant's, which needs no data)

    r = Ranges.observe(batches)           batches: dicts of arrays, as a reader of calibration data gives them
    r.save("ranges.json")
    Ranges.load("ranges.json")["relu1"].range("mse", FORMATS["u8"])

The file has the statistics and not a method's result: layers may come to have other formats. It is JSON:

    {"schema": "knapper.ranges/2", "method": "mse", "weights": "8c1f…",
     "values": {"relu1": {"low": 0, "high": 7.2, "moving": [0, 6.9], "count": 4096, "sum": …, "squares": …, "positive": [1800, …, …],
                          "width": 0.00390625, "first": 0, "counts": [2200, 3, …],
                          "sums": [[…], […]]}}}

`weights` tells whose ranges they are: a network of the same names and other weights, trained further say, has others (`layers.fingerprint`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from knapper.isa.errors import PassError, reason
from knapper.isa.formats import FORMATS, Format
from knapper.isa.formats.format import INT

from ..ir import Array
from .statistics import BINS, LONGEST, SMALLEST, Statistics

SCHEMA = "knapper.ranges/2"
METHODS = ("minmax", "moving", "percentile", "entropy", "mse", "gauss")
PERCENTILE = 99.999
LARGEST_FILE = 1 << 28
FACTORS = tuple(k / 100 for k in range(80, 126, 2))
"""By which one end is moved, the other staying."""


@dataclass(frozen=True)
class Range:
    """An interval that holds zero."""

    low: float
    high: float

    def symmetric(self) -> Range:
        """As wide on both sides of zero."""
        top = max(-self.low, self.high)
        return Range(-top, top)

    def scale(self, f: Format) -> tuple[np.float32, int]:
        """(scale, zero point) that put it on a format's grid. Grids other than integers have no zero point: their greatest value is its end."""
        least, most = float(f.values[0]), float(f.values[-1])
        if f.kind != INT:
            top = max(self.high, -self.low if f.signed else 0.0)
            return np.float32(top / most) if top > 0 else np.float32(1), 0
        if self.low == -self.high and least < 0:
            return (np.float32(self.high / most), 0) if self.high > 0 else (np.float32(1), 0)
        scale = np.float32((self.high - self.low) / (most - least))
        if not scale > 0 or not np.isfinite(scale):
            return np.float32(1), 0 if least <= 0 else int(least)
        return scale, int(np.clip(np.rint(least - self.low / float(scale)), least, most))


def choose(
    s: Statistics,
    method: str,
    f: Format,
    *,
    symmetric: bool = False,
    percentile: float = PERCENTILE,
) -> Range:
    """A range by a method; PassError E306 if there is no such method."""
    if method not in METHODS:
        raise PassError(
            "E306", f"no method {method!r} to choose a range", hint=f"known: {', '.join(METHODS)}"
        )
    low, high = s.low, s.high
    if method == "moving":
        low, high = s.moving
    elif method == "percentile":
        low, high = _percentile(s, percentile)
    elif method == "entropy":
        low, high = _entropy(s, f)
    elif method == "gauss":
        low, high = _gauss(s, f)
    elif method == "mse":
        return _least_squares(s, f, symmetric)
    r = Range(min(low, 0.0), max(high, 0.0))
    return r.symmetric() if symmetric else r


def _percentile(s: Statistics, percentile: float) -> tuple[float, float]:
    if not 50 < percentile <= 100:
        raise PassError("E306", f"percentile {percentile} is not in (50, 100]")
    cut = (100 - percentile) / 200
    below = np.cumsum(s.counts) / s.count
    left, right = np.searchsorted(below, cut), np.searchsorted(below, 1 - cut)
    low, high = s.first * s.width + left * s.width, (s.first + right + 1) * s.width
    return float(max(low, s.low)), float(min(high, s.high))


def _entropy(s: Statistics, f: Format) -> tuple[float, float]:
    """The end t of |x| such that the distribution up to t, told in as many values as the format has there, differs least from the whole."""
    place = s.first + np.arange(len(s.counts))
    bins = np.where(place < 0, -1 - place, place)  # of |x|
    counts = np.bincount(bins, s.counts)
    counts[0] = (
        min(counts[0], counts[1]) if len(counts) > 1 else counts[0]
    )  # a Relu's zeros are told exactly, whatever the end
    levels = max(len(f.values) // (1 if s.low >= 0 else 2), 2)
    ends = np.arange(levels, len(counts) + 1, max(1, len(counts) // 512))
    if not len(ends):
        return s.low, s.high
    if ends[-1] != len(counts):
        ends = np.append(ends, len(counts))
    best = ends[np.argmin([_divergence(counts, int(n), levels) for n in ends])]
    return float(max(-best * s.width, s.low)), float(min(best * s.width, s.high))


def _divergence(counts: Array, n: int, levels: int) -> float:
    """Σ p·log(p/q) of the first n bins with all that is outside in the last of them, and of the same in so many equal steps."""
    p = counts[:n].copy()
    group = np.arange(n) * levels // n
    filled = counts[:n] > 0
    share = np.bincount(group, counts[:n], levels) / np.maximum(
        np.bincount(group, filled, levels), 1
    )
    q = np.where(filled, share[group], 0.0)
    p[-1] += counts[n:].sum()
    both = (p > 0) & (q > 0)
    lost = (
        p[(p > 0) & (q == 0)].sum() / p.sum()
    )  # no step tells of them: as if they were one in a million there
    p, q = p[both] / p.sum(), q[both] / max(q.sum(), 1e-300)
    return float((p * np.log(p / q)).sum() + lost * math.log(1e6))


def _gauss(s: Statistics, f: Format) -> tuple[float, float]:
    """SQuant's: 12, 14 or 25 deviations of the positive values at 4, 6 or 8 bits; below six bits not beyond what was seen."""
    bits = f.bits
    top = float(np.interp(bits, [4, 6, 8], [12, 14, 25])) * s.positive_std
    if bits < 6:
        top = min(top, max(s.high, -s.low))
    return (-top / 1.25, top / 1.25) if s.low < 0 else (0.0, top)


def loss(s: Statistics, f: Format, r: Range) -> float:
    """Mean squared error of what was observed, rounded to a format on a range."""
    scale, zp = r.scale(f)
    x = s.centres
    v = x / float(scale) + zp
    q = np.clip(np.rint(v), f.values[0], f.values[-1]) if f.kind == INT else f.round(v, "up")
    return float((np.square((q - zp) * float(scale) - x) * s.counts).sum() / s.count)


def typed(s: Statistics, bits: int) -> Format:
    """ANT's choice for an activation: integers or flint of so many bits, signed if anything was negative, whichever loses less."""
    signed = s.low < 0
    names = (f"{'i' if signed else 'u'}{bits}", f"{'' if signed else 'u'}flint{bits}")
    formats = [FORMATS[n] for n in names if n in FORMATS and bits <= 6] or [FORMATS[names[0]]]
    return min(formats, key=lambda f: loss(s, f, _least_squares(s, f, symmetric=True)))


def _least_squares(s: Statistics, f: Format, symmetric: bool) -> Range:
    low, high = min(s.low, 0.0), max(s.high, 0.0)
    if symmetric or f.kind != INT:
        low, high = Range(low, high).symmetric().low if low < 0 else low, max(-low, high)
    key = partial(loss, s, f)
    found = min((Range(low * k, high * k) for k in (np.arange(100, 4, -1) / 100).tolist()), key=key)
    if f.kind != INT:
        found = min(
            (Range(low * k, high * k) for k in (np.arange(20, 150) / 100).tolist()), key=key
        )
    if low < 0 < high and not symmetric and f.kind == INT:
        for _ in range(2):
            found = min(
                (
                    Range(found.low * k, found.high)
                    for k in FACTORS
                    if found.low * k >= low or k <= 1
                ),
                key=key,
            )
            found = min(
                (
                    Range(found.low, found.high * k)
                    for k in FACTORS
                    if found.high * k <= high or k <= 1
                ),
                key=key,
            )
    return found


# --- the file -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ranges:
    """Statistics by value name, and the method that is meant where none is given."""

    values: Mapping[str, Statistics] = field(default_factory=dict)
    method: str = "mse"
    weights: str = ""
    """Of the network that was observed; "" where nobody says."""
    infinite: frozenset[str] = frozenset()
    """Values that have infinite elements, as masks of attention do: no scale reaches them, they stay floats."""

    @staticmethod
    def observe(batches: Iterable[Mapping[str, Array]], method: str = "mse") -> Ranges:
        """Of everything that batches have, floats only."""
        r = Ranges(method=method)
        for batch in batches:
            r = r.with_(batch)
        return r

    def with_(self, batch: Mapping[str, Array]) -> Ranges:
        """With one batch more; PassError E306 names the value that is empty or has a NaN."""
        values, infinite = dict(self.values), self.infinite
        for name, x in batch.items():
            if np.isinf(x).any():
                infinite |= {name}
                values.pop(name, None)
            elif np.asarray(x).dtype.kind == "f" and name not in infinite:
                try:
                    new = Statistics.of(x)
                except PassError as e:
                    raise PassError(e.code, e.message, where=f"%{name}") from None
                values[name] = values[name].merged(new) if name in values else new
        return replace(self, values=values, infinite=infinite)

    def __getitem__(self, name: str) -> Statistics:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    @property
    def digest(self) -> str:
        """What tells them from others, in letters."""
        h = blake2b(
            repr((self.method, self.weights, sorted(self.infinite))).encode(), digest_size=8
        )
        for name, s in self.values.items():
            plain = [getattr(s, n) for n in FIELDS if n not in ("counts", "sums")]
            h.update(repr((name, plain)).encode())
            for a in (s.counts, *s.sums):
                h.update(np.ascontiguousarray(a).data)
        return h.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the file."""
        Path(path).write_text(self.show())

    def show(self) -> str:
        """The file's text."""
        values = {
            name: {n: _plain(getattr(s, n)) for n in FIELDS} for name, s in self.values.items()
        }
        head = {"schema": SCHEMA, "method": self.method, "weights": self.weights}
        return json.dumps({**head, "infinite": sorted(self.infinite), "values": values}) + "\n"

    @staticmethod
    def load(path: str | Path) -> Ranges:
        """Read the file; PassError E306 says what is wrong with one that is damaged, or no such file."""
        try:
            if Path(path).stat().st_size > LARGEST_FILE:
                raise ValueError(f"larger than {LARGEST_FILE >> 20} MiB")
            return Ranges.parse(Path(path).read_text())
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
            OverflowError,
        ) as e:
            problem = f"no ranges: {reason(e)}"
            raise PassError(
                "E306",
                problem,
                where=str(path),
                hint="`knapper calibrate MODEL --data DATA` writes them",
            ) from None

    @staticmethod
    def parse(text: str) -> Ranges:
        """From the file's text; ValueError, TypeError or KeyError for anything else."""
        held = json.loads(text)
        if held["schema"] != SCHEMA:
            raise ValueError(f"schema is {held['schema']!r}, not {SCHEMA!r}")
        if held["method"] not in METHODS:
            raise ValueError(f"method is {held['method']!r}")
        if not isinstance(held["weights"], str):
            raise TypeError(f"weights are {held['weights']!r}")
        values = {str(name): _statistics(name, v) for name, v in held["values"].items()}
        return Ranges(
            values, held["method"], held["weights"], frozenset(map(str, held["infinite"]))
        )


FIELDS = tuple(f.name for f in fields(Statistics))


def _plain(v: Any) -> Any:
    if isinstance(v, np.ndarray):
        return v.tolist()
    return list(map(_plain, v)) if isinstance(v, tuple) else v


def _statistics(name: str, held: Mapping[str, Any]) -> Statistics:
    """One value's, checked: whatever is computed from it later is finite."""
    if held.keys() != set(FIELDS):
        raise ValueError(
            f"%{name} has {', '.join(sorted(held.keys() ^ set(FIELDS)))} too many or too few"
        )
    moving, positive, counts = (_list(held[n]) for n in ("moving", "positive", "counts"))
    if len(moving) != 2 or len(positive) != 3 or not 0 < len(counts) <= 4 * BINS:
        raise ValueError(f"%{name} has lists of wrong lengths")
    low, high, total, squares, width = (
        _number(held[n]) for n in ("low", "high", "sum", "squares", "width")
    )
    count, first = int(held["count"]), int(held["first"])
    bins = np.array([int(c) for c in counts], np.int64)
    sound = low <= high and count == bins.sum() > 0 and bins.min() >= 0 and abs(first) <= 4 * BINS
    if not sound or width < SMALLEST or math.frexp(width)[0] != 0.5 or squares < 0:
        raise ValueError(f"%{name} is inconsistent")
    above = (int(positive[0]), _number(positive[1]), _number(positive[2]))
    sums = tuple(np.array([_number(v) for v in _list(a)]) for a in _list(held["sums"]))
    if len(sums) != 2 or max(map(len, sums)) > LONGEST:
        raise ValueError(f"%{name} has sums of wrong lengths")
    ends = (_number(moving[0]), _number(moving[1]))
    return Statistics(low, high, ends, count, total, squares, above, width, first, bins, sums)


def _list(v: Any) -> list[Any]:
    if not isinstance(v, list):
        raise TypeError(f"{v!r} is no list")
    return v


def _number(v: Any) -> float:
    if isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v):
        raise ValueError(f"{v!r} is no number")
    return float(v)
