"""Reductions over axes, arg-reductions, running sums and selection of the greatest.

Float references sum in float64 and round once; integers wrap in their own type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ..ir import Array, Op, Type, op, require
from .elementwise import Example, Rng, draw
from .lowering import const, dtype_of, emit, rank_of, shape_of, wide
from .numeric import FLOATS, rounded
from .reducers import extreme, place
from .shapes import NUMBERS, axes_of, axis_of, of_kind

Ints = tuple[int, ...]


def _axes(name: str, axes: Ints, rank: int, noop: int) -> Ints:
    """The axes to reduce: all where none are named, unless that means none."""
    return axes_of(name, axes, rank) if axes or noop else tuple(range(rank))


def _reduced(name: str, x: Type, axes: Ints, keepdims: int, noop: int) -> Type:
    of_kind(name, NUMBERS, x)
    found = _axes(name, axes, x.rank, noop)
    kept = [1 if i in found else n for i, n in enumerate(x.shape) if keepdims or i not in found]
    return Type(x.dtype, tuple(kept))


def _facets(
    o: Op,
    f: Callable[..., Array],
    lowering: Callable[..., Any],
    low: float = -3,
    dtypes: str = "f32 f16 f64 i32",
) -> None:
    """`f(x, axes, keepdims)` in float64 or the integer type; `lowering(R, x, axes, keepdims)` in Relax."""

    @o.reference
    @rounded
    def _(x: Array, axes: Ints = (), keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
        return f(x, _axes(o.name, axes, x.ndim, noop_with_empty_axes), bool(keepdims))

    @o.relax
    @wide
    def _(R: Any, x: Any, axes: Ints = (), keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        found = _axes(o.name, axes, rank_of(x), noop_with_empty_axes)
        return lowering(R, x, list(found), bool(keepdims))

    @o.example
    def _(rng: Rng) -> Iterator[Example]:
        choices: list[dict[str, Any]] = [
            {"axes": (1,)},
            {"axes": (-1, 0), "keepdims": 0},
            {},
            {"axes": (2,), "keepdims": 0},
        ]
        for d, attrs in zip(dtypes.split(), choices, strict=False):
            yield [draw(rng, (2, 3, 5), d, low, 3)], attrs
        yield [draw(rng, (2, 3), "f32", low, 3)], {"noop_with_empty_axes": 1}


@op
def ReduceSum(
    x: Type, *, axes: tuple[int, ...] = (), keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Type:
    """Sum over axes, all if none are named."""
    return _reduced("ReduceSum", x, axes, keepdims, noop_with_empty_axes)


@op
def ReduceMean(
    x: Type, *, axes: tuple[int, ...] = (), keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Type:
    """Mean over axes, all if none are named; 0 of no elements, as in onnxruntime."""
    of_kind("ReduceMean", FLOATS, x)
    return _reduced("ReduceMean", x, axes, keepdims, noop_with_empty_axes)


@op
def ReduceMax(
    x: Type, *, axes: tuple[int, ...] = (), keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Type:
    """Greatest element over axes, all if none are named."""
    return _reduced("ReduceMax", x, axes, keepdims, noop_with_empty_axes)


@op
def ReduceMin(
    x: Type, *, axes: tuple[int, ...] = (), keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Type:
    """Least element over axes, all if none are named."""
    return _reduced("ReduceMin", x, axes, keepdims, noop_with_empty_axes)


@op
def ReduceProd(
    x: Type, *, axes: tuple[int, ...] = (), keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Type:
    """Product over axes, all if none are named."""
    return _reduced("ReduceProd", x, axes, keepdims, noop_with_empty_axes)


@op
def ReduceL1(
    x: Type, *, axes: tuple[int, ...] = (), keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Type:
    """Σ |x| over axes, all if none are named."""
    return _reduced("ReduceL1", x, axes, keepdims, noop_with_empty_axes)


@op
def ReduceL2(
    x: Type, *, axes: tuple[int, ...] = (), keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Type:
    """sqrt(Σ x²) over axes, all if none are named."""
    of_kind("ReduceL2", FLOATS, x)
    return _reduced("ReduceL2", x, axes, keepdims, noop_with_empty_axes)


@op
def ReduceLogSum(
    x: Type, *, axes: tuple[int, ...] = (), keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Type:
    """ln(Σ x) over axes, all if none are named."""
    of_kind("ReduceLogSum", FLOATS, x)
    return _reduced("ReduceLogSum", x, axes, keepdims, noop_with_empty_axes)


@op
def ReduceLogSumExp(
    x: Type, *, axes: tuple[int, ...] = (), keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Type:
    """ln(Σ e^x) over axes, all if none are named."""
    of_kind("ReduceLogSumExp", FLOATS, x)
    return _reduced("ReduceLogSumExp", x, axes, keepdims, noop_with_empty_axes)


@op
def ReduceSumSquare(
    x: Type, *, axes: tuple[int, ...] = (), keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Type:
    """Σ x² over axes, all if none are named."""
    return _reduced("ReduceSumSquare", x, axes, keepdims, noop_with_empty_axes)


def _sum(x: Array, axes: Ints, keepdims: bool) -> Array:
    return np.asarray(x.sum(axes, x.dtype, keepdims=keepdims))


def _product(x: Array, axes: Ints, keepdims: bool) -> Array:
    return np.asarray(x.prod(axes, x.dtype, keepdims=keepdims))


def _log_sum_exp(x: Array, axes: Ints, keepdims: bool) -> Array:
    top = x.max(axes, keepdims=True)
    top = np.where(np.isinf(top), 0, top)  # inf - inf is no number
    return np.asarray(
        np.log(_sum(np.exp(x - top), axes, keepdims)) + top.reshape(_sum(x, axes, keepdims).shape)
    )


def _finite(R: Any, x: Any) -> Any:
    """x, or 0 for an infinity: what may be taken off before e^x."""
    size = R.op.abs(x)
    return emit(R, R.op.where(R.op.equal(size, const(R, math.inf, x)), const(R, 0, x), x))


def _relax_log_sum_exp(R: Any, x: Any, axes: list[int], keepdims: bool) -> Any:
    top = _finite(R, extreme(R, x, axes, True, greatest=True))
    total = R.op.log(R.op.sum(R.op.exp(R.op.subtract(x, top)), axes, keepdims=True))
    y = R.op.add(total, top)
    return y if keepdims else R.op.squeeze(y, axes)


def _mean(x: Array, axes: Ints, keepdims: bool) -> Array:
    return np.asarray(x.mean(axes, keepdims=keepdims) if x.size else _sum(x, axes, keepdims))


def _relax_mean(R: Any, x: Any, axes: list[int], keepdims: bool) -> Any:
    return (R.op.mean if math.prod(shape_of(x)) else R.op.sum)(x, axes, keepdims)


def _in_numpy(f: Callable[..., Any]) -> Callable[..., Array]:
    return lambda x, axes, keep: np.asarray(f(x, axis=axes, keepdims=keep))


def _relax_sum(before: Callable[..., Any], after: Callable[..., Any]) -> Callable[..., Any]:
    """after(R, Σ before(R, x))."""
    return lambda R, x, axes, keep: after(R, R.op.sum(before(R, x), axes, keep))


def _itself(R: Any, x: Any) -> Any:
    return x


def _square(R: Any, x: Any) -> Any:
    return R.op.multiply(x, x)


_facets(ReduceSum, _sum, _relax_sum(_itself, _itself))
_facets(ReduceMean, _mean, _relax_mean, dtypes="f32 f16 f64")
_facets(ReduceMax, _in_numpy(np.max), partial(extreme, greatest=True))
_facets(ReduceMin, _in_numpy(np.min), partial(extreme, greatest=False))
_facets(ReduceProd, _product, lambda R, *a: R.op.prod(*a), dtypes="f32 f16 f32 i32")
_facets(
    ReduceL1,
    lambda x, axes, keep: _sum(np.abs(x), axes, keep),
    _relax_sum(lambda R, x: R.op.abs(x), _itself),
)
_facets(
    ReduceL2,
    lambda x, axes, keep: np.sqrt(_sum(x * x, axes, keep)),
    _relax_sum(_square, lambda R, y: R.op.sqrt(y)),
    dtypes="f32 f16 f32",
)
_facets(
    ReduceLogSum,
    lambda x, axes, keep: np.log(_sum(x, axes, keep)),
    _relax_sum(_itself, lambda R, y: R.op.log(y)),
    low=0.1,
    dtypes="f32 f16 f32",
)
_facets(ReduceLogSumExp, _log_sum_exp, _relax_log_sum_exp, dtypes="f32 f16 f64")
_facets(
    ReduceSumSquare,
    lambda x, axes, keep: _sum(x * x, axes, keep),
    _relax_sum(_square, _itself),
)


def _arg_type(name: str, x: Type, axis: int, keepdims: int) -> Type:
    of_kind(name, NUMBERS, x)
    a = axis_of(name, axis, x.rank)
    require(x.shape[a] > 0, f"{name}: axis {a} of {x} is empty")
    return Type("i64", _reduced(name, x, (a,), keepdims, 0).shape)


@op
def ArgMax(x: Type, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Type:
    """Index of the greatest element along an axis: the first of equals, or the last."""
    return _arg_type("ArgMax", x, axis, keepdims)


@op
def ArgMin(x: Type, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Type:
    """Index of the least element along an axis: the first of equals, or the last."""
    return _arg_type("ArgMin", x, axis, keepdims)


def _arg_facets(o: Op, f: Callable[..., Array], *, greatest: bool) -> None:
    @o.reference
    def _(x: Array, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
        if select_last_index:
            return np.asarray(
                x.shape[axis] - 1 - f(np.flip(x, axis), axis=axis, keepdims=bool(keepdims))
            )
        return f(x, axis=axis, keepdims=bool(keepdims))

    @o.relax
    @wide
    def _(R: Any, x: Any, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Any:
        last = bool(select_last_index)
        return place(R, x, axis % rank_of(x), bool(keepdims), greatest=greatest, last=last)

    @o.example
    def _(rng: Rng) -> Iterator[Example]:
        yield [draw(rng, (3, 4, 5), "f32")], {}
        yield [draw(rng, (3, 9), "i32")], {"axis": -1, "keepdims": 0}
        yield [draw(rng, (3, 9), "i32")], {"axis": 1, "select_last_index": 1}
        yield [draw(rng, (3, 4), "f16")], {"axis": 1}


_arg_facets(ArgMax, np.argmax, greatest=True)
_arg_facets(ArgMin, np.argmin, greatest=False)


def _running(o: Op, f: Callable[..., Array], first: int) -> None:
    """The facets of a running sum or product; `first` is what comes before any element."""
    name = o.name.lower()

    @o.reference
    @rounded
    def _(x: Array, axis: int, exclusive: int = 0, reverse: int = 0) -> Array:
        y = np.flip(x, axis) if reverse else x
        y = f(y, axis, x.dtype)
        if exclusive:
            y = np.roll(y, 1, axis)
            np.moveaxis(y, axis, 0)[:1] = first
        return np.flip(y, axis) if reverse else y

    @o.relax
    @wide
    def _(R: Any, x: Any, axis: int, exclusive: int = 0, reverse: int = 0) -> Any:
        axis %= rank_of(x)
        y = emit(R, R.op.flip(x, axis)) if reverse else x
        y = getattr(R.op, name)(y, axis, dtype_of(x), exclusive=bool(exclusive))
        return R.op.flip(emit(R, y), axis) if reverse else y

    @o.example
    def _(rng: Rng) -> Iterator[Example]:
        yield [draw(rng, (3, 4, 5), "f32")], {"axis": 1}
        yield [draw(rng, (3, 4), "f32")], {"axis": -1, "exclusive": 1}
        yield [draw(rng, (3, 4), "i32")], {"axis": 0, "reverse": 1}
        yield [draw(rng, (3, 4), "i64")], {"axis": 1, "reverse": 1, "exclusive": 1}


@op
def CumSum(x: Type, *, axis: int, exclusive: int = 0, reverse: int = 0) -> Type:
    """Running sum along an axis, from the end if reverse; exclusive leaves out the element itself."""
    of_kind("CumSum", NUMBERS, x)
    axis_of("CumSum", axis, x.rank)
    return x


@op
def CumProd(x: Type, *, axis: int, exclusive: int = 0, reverse: int = 0) -> Type:
    """Running product along an axis, from the end if reverse; exclusive leaves out the element itself."""
    of_kind("CumProd", NUMBERS, x)
    axis_of("CumProd", axis, x.rank)
    return x


_running(CumSum, np.cumsum, 0)
_running(CumProd, np.cumprod, 1)


@op
def TopK(
    x: Type, *, k: int, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Type, Type]:
    """The k greatest (or least) elements along an axis in order, and their indices; of equals the lower index first."""
    of_kind("TopK", NUMBERS, x)
    a = axis_of("TopK", axis, x.rank)
    require(0 <= k <= x.shape[a], f"TopK: k is {k}, but axis {a} of {x} has {x.shape[a]} elements")
    shape = tuple(k if i == a else n for i, n in enumerate(x.shape))
    return Type(x.dtype, shape), Type("i64", shape)


@TopK.reference
def _(x: Array, k: int, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Array, Array]:
    order = np.argsort(np.flip(x, axis) if largest else x, axis, kind="stable")
    if largest:
        order = x.shape[axis] - 1 - np.flip(order, axis)
    order = np.take(order, np.arange(k), axis).astype(np.int64)
    return np.take_along_axis(x, order, axis), order


@TopK.relax
def _(R: Any, x: Any, k: int, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:
    both = emit(R, R.op.topk(x, k, axis % rank_of(x), "both", bool(largest), "int64"))
    return [both[0], both[1]]


@TopK.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (3, 9), "f32")], {"k": 4}
    yield [draw(rng, (3, 9, 2), "f32")], {"k": 3, "axis": 1, "largest": 0}
    yield [draw(rng, (2, 12), "i64")], {"k": 12}
