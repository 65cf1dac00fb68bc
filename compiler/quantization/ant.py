"""ANT (MICRO 2022): the number format that a tensor's distribution asks for, and the scale that serves it best.

    int     0 1 2 3 4 5 6 7          even steps: for what has no tails (uniform, clipped)
    flint   0 1 2 3 4 6 8 16         even near zero, wide far off: for heavy tails
    pot     0 1 2 4 8 16 32 64       powers of two

The scale is searched between `low` and `high` percent of the greatest magnitude; weights have one a channel, activations one a tensor. The type with
the least sum of errors is the tensor's (the first of equals: int, flint, pot). The authors search 75…150, which decides between types: with
the scale free, 4-bit int has the least error on a Gaussian (19.26 dB against flint's 18.25); with at least 75 % of a maximum of many
elements it is flint. So the bounds are an option and part of every artifact. Layers of 8 bits are always int.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from knapper.isa.errors import PassError
from knapper.isa.formats import FORMATS, Format

from ..ir import Array
from ..ops.quantize import ties
from .quantized import Quantized, rows, storage
from .search import ANT, Bounds, best

TYPES = ("int", "flint", "pot")
"""The authors' default, and its order."""
WIDE = Bounds(95, 150)
"""What they search above six bits, where the type is int."""


def format_of(kind: str, bits: int, signed: bool = True) -> Format:
    """The format of a type: `flint` of 4 bits is flint4 or uflint4; PassError E306 if there is none of so many bits."""
    signs = ("u", "i") if kind == "int" else (f"u{kind}", kind)
    f = FORMATS.get(name := f"{signs[signed]}{bits}")
    if f is None:
        raise PassError("E306", f"ant: no format {name}", hint="flint and pot have 3 bits or more")
    return f


@dataclass(frozen=True, eq=False)
class Choice:
    """A type with its scales [rows] and mean squared errors [rows]; `scores` has every candidate's sum of errors."""

    format: Format
    scale: Array
    error: Array
    scores: dict[str, float]


def select(
    x: Array,
    bits: int = 4,
    *,
    signed: bool = True,
    types: Sequence[str] = TYPES,
    bounds: Bounds = ANT,
) -> Choice:
    """The type for rows [rows, n], a scale a row."""
    if bits > 6:
        types, bounds = ("int",), (WIDE if bounds == ANT else bounds)
    found = {
        t: (format_of(t, bits, signed), *best(x, _values(t, bits, signed), bounds)) for t in types
    }
    scores = {t: float(error.sum()) for t, (_, _, error) in found.items()}
    f, scale, error = found[min(scores, key=lambda t: scores[t])]
    return Choice(f, scale, error, scores)


def _values(kind: str, bits: int, signed: bool) -> Array:
    return format_of(kind, bits, signed).values


def quantize(
    w: Array, bits: int = 4, axis: int = 0, *, types: Sequence[str] = TYPES, bounds: Bounds = ANT
) -> Quantized:
    """Weights, output channels along `axis`: one type, a scale a channel."""
    r = rows(w, axis)
    chosen = select(r.reshape(len(r), -1), bits, types=types, bounds=bounds)
    return on_grid(w, chosen.format, chosen.scale, axis)


def on_grid(w: Array, f: Format, scale: Array, axis: int) -> Quantized:
    """Weights rounded to a format's nearest values, equals upwards (ANT) or to even (integers)."""
    s = scale.astype(np.float32)
    like = [1] * w.ndim
    like[axis] = -1
    nearest = f.round(np.asarray(w, np.float32) / s.reshape(like), ties(f))
    values = nearest.astype(storage(float(f.values[0]), float(f.values[-1])))
    return Quantized(values, s, np.zeros(len(s), np.int64), axis, w.shape, f.name)


def activation(
    x: Array, bits: int = 4, *, types: Sequence[str] = TYPES, bounds: Bounds = ANT
) -> Choice:
    """The type and the one scale of an activation (the authors take the first batch); unsigned if nothing is negative."""
    return select(x.reshape(1, -1), bits, signed=bool((x < 0).any()), types=types, bounds=bounds)


def promoted(weights: Sequence[float], activations: Sequence[float]) -> list[int]:
    """ANT4-8: layers in the order in which they get 8 bits, by the sum of both operands' errors."""
    total = np.add(weights, activations)
    return [int(i) for i in np.argsort(-total, kind="stable")]
