"""The greatest and the least of a reduction, and where they are, as tensor expressions.

TVM's own start at the least finite number and at index -1, so that -inf alone gives what is not among the operands, and its
arg-reductions take a NaN or not by where it stands. These start at what changes nothing:

    value    max or min from ±inf or the end of the integer type: IEEE 754-2019's maximum, NaN if one is
    place    (index, value) from index 0: a NaN before any number, then the greater (or the lesser), then the lower index (or
             the higher). Of several NaNs the first (or the last), as in numpy

onnxruntime does not define NaN here: its ReduceMax, MaxPool and ArgMax keep one or pass over it by where it stands in the row.
Nothing here imports tvm when loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from .lowering import te

INDEX = "int64"
"""The type of places."""


def identity(dtype: str, greatest: bool) -> float:
    """What changes no maximum (or minimum) of this type in TVM's spelling: -inf (or inf), or the integer type's end."""
    if "float" in dtype:
        return -math.inf if greatest else math.inf
    info = np.iinfo(dtype)
    return int(info.min if greatest else info.max)


def _start(like: Any, greatest: bool) -> Any:
    from tvm import tirx

    dtype = str(like.ty.dtype)
    return tirx.const(identity(dtype, greatest), dtype)


@dataclass(frozen=True)
class Value:
    """The greatest or the least. `combine` and `start` are what TVM's reducer registry asks."""

    greatest: bool
    results = 1

    def combine(self, left: Any, right: Any) -> list[Any]:
        """The reduced value of two."""
        from tvm import tirx

        return [(tirx.max if self.greatest else tirx.min)(left[0], right[0])]

    def start(self, values: Any) -> list[Any]:
        """The value that changes nothing."""
        return [_start(values[0], self.greatest)]


@dataclass(frozen=True)
class Place:
    """The index of the greatest or the least, and the value: the first of equals, or the last."""

    greatest: bool
    last: bool
    results = 2

    def combine(self, left: Any, right: Any) -> list[Any]:
        """The better of two (index, value)."""
        from tvm import tirx

        taken = self._is_before(left, right)
        return [tirx.Select(taken, a, b) for a, b in zip(left, right, strict=True)]

    def start(self, values: Any) -> list[Any]:
        """A pair that no other loses to: were it chosen, all values are the identity, and 0 is their first."""
        from tvm import tirx

        return [tirx.const(0, INDEX), _start(values[1], self.greatest)]

    def _is_before(self, left: Any, right: Any) -> Any:
        from tvm import tirx

        (i, a), (j, b) = left, right
        better = a > b if self.greatest else a < b
        same, nearer = a.equal(b), i > j if self.last else i < j
        if "float" in str(a.ty.dtype):
            better = tirx.Or(better, tirx.And(tirx.isnan(a), tirx.Not(tirx.isnan(b))))
            same = tirx.Or(same, tirx.And(tirx.isnan(a), tirx.isnan(b)))
        return tirx.Or(better, tirx.And(same, nearer))


Reducer = Value | Place
REDUCERS: tuple[Reducer, ...] = (
    *map(Value, (True, False)),
    *(Place(*p) for p in product((True, False), repeat=2)),
)


def register() -> None:
    """Tell TVM's cross-thread reduction of these reducers; it takes only those that it knows."""
    import tvm

    enter = tvm.get_global_func("s_tir.schedule.RegisterReducer")
    for r in REDUCERS:
        enter(r.results, r.combine, r.start)


def extreme(R: Any, x: Any, axes: Sequence[int], keepdims: bool, *, greatest: bool) -> Any:
    """The greatest (or least) element of x over axes; bound."""
    kind = Value(greatest)
    return te(R, lambda t: _over(t, axes, keepdims, lambda at, _: [t[at]], kind), x)


def place(R: Any, x: Any, axis: int, keepdims: bool, *, greatest: bool, last: bool) -> Any:
    """The index along an axis of the greatest (or least) element of x, int64; bound."""
    from tvm import te as expression

    kind = Place(greatest, last)

    def f(t: Any) -> Any:
        index, _ = _over(t, [axis], keepdims, lambda at, k: [k[0], t[at]], kind)
        return expression.compute(index.shape, lambda *at: index[at], "place")

    return te(R, f, x)


def walk(n: int, name: str) -> Any:
    """The iterator of a reduced axis of n elements, of the type of places: a cast inside would hide the reducer from TVM."""
    from tvm import te, tirx

    return te.reduce_axis((tirx.const(0, INDEX), tirx.const(n, INDEX)), name)


def _over(
    t: Any, axes: Sequence[int], keepdims: bool, parts: Callable[..., list[Any]], kind: Reducer
) -> Any:
    """Reduce axes of t: `parts(index, reduced)` at each place, `reduced` the variables of the axes."""
    from tvm import te as expression

    shape = [int(n) for n in t.shape]
    walks = [walk(shape[a], f"k{a}") for a in axes]
    kept = [(i, 1 if i in axes else n) for i, n in enumerate(shape) if keepdims or i not in axes]
    variables = [w.var for w in walks]

    def element(*out: Any) -> Any:
        at = {i: v for (i, _), v in zip(kept, out, strict=True)} | dict(
            zip(axes, variables, strict=True)
        )
        return reduced(kind, parts(tuple(at[i] for i in range(len(shape))), variables), walks)

    return expression.compute([n for _, n in kept], element, "extreme")


def reduced(kind: Reducer, parts: list[Any], axes: list[Any]) -> Any:
    """TVM's Reduce expressions over the parts of a pair (or one value), one for each result."""
    from tvm import tirx

    parts = tirx.convert(parts)  # one list for all results: TVM compares them by identity
    left, right = ([tirx.Var(f"{s}{i}", p.ty.dtype) for i, p in enumerate(parts)] for s in "lr")
    reducer = tirx.CommReducer(left, right, kind.combine(left, right), kind.start(parts))
    found = [tirx.Reduce(reducer, parts, axes, tirx.const(True), i, []) for i in range(len(parts))]
    return found[0] if len(found) == 1 else tuple(found)
