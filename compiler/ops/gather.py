"""Indexed reads and writes. Negative indices count from the end; an index out of range is undefined, as in ONNX.

Scatters with a reduction run in index order, so that equal indices give the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..ir import Array, Type, op, require
from .elementwise import Example, Rng, draw
from .lowering import dtype_of, emit, rank_of, shape_of
from .shapes import INDICES, INTEGERS, axis_of, of_kind, same_dtype

REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}
RELAX_REDUCTIONS = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def _from_start(R: Any, indices: Any, size: int) -> Any:
    """Indices with the negative ones counted from the start."""
    d = dtype_of(indices)
    wrapped = R.op.add(indices, R.const(size, d))
    return emit(R, R.op.where(R.op.less(indices, R.const(0, d)), wrapped, indices))


def _wrapped(R: Any, indices: Any, size: int) -> Any:
    """The same in one operation, for those whose kernels are ready-made: nothing is fused with them."""
    return emit(R, R.op.floor_mod(indices, R.const(size, dtype_of(indices))))


def _index(rng: Rng, shape: tuple[int, ...], size: int, dtype: Any = np.int64) -> Array:
    return rng.integers(-size, size, shape, dtype)


@op
def Gather(x: Type, indices: Type, *, axis: int = 0) -> Type:
    """Slices of x along an axis, one for each index."""
    of_kind("Gather", INDICES, indices)
    a = axis_of("Gather", axis, x.rank)
    return Type(x.dtype, (*x.shape[:a], *indices.shape, *x.shape[a + 1 :]))


Gather.reference(lambda x, indices, axis=0: np.take(x, indices, axis))


@Gather.relax
def _(R: Any, x: Any, indices: Any, axis: int = 0) -> Any:
    axis %= rank_of(x)
    return R.op.take(x, _from_start(R, indices, shape_of(x)[axis]), axis)


@Gather.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (5, 4), "f32"), _index(rng, (2, 3), 5)], {}
    yield [draw(rng, (2, 5, 3), "f16"), _index(rng, (4,), 5, np.int32)], {"axis": 1}
    yield [draw(rng, (6,), "i64"), np.array(-2, np.int64)], {}


@op
def GatherElements(x: Type, indices: Type, *, axis: int = 0) -> Type:
    """out[i][j] = x[indices[i][j]][j] for axis 0, and likewise for others."""
    of_kind("GatherElements", INDICES, indices)
    a = axis_of("GatherElements", axis, x.rank)
    fits = indices.rank == x.rank and all(
        m <= n or i == a for i, (m, n) in enumerate(zip(indices.shape, x.shape, strict=True))
    )
    require(fits, f"GatherElements: indices {indices} do not fit {x}")
    return Type(x.dtype, indices.shape)


@GatherElements.reference
def _(x: Array, indices: Array, axis: int = 0) -> Array:
    where: list[Any] = list(np.indices(indices.shape, sparse=True))
    where[axis] = indices
    return np.asarray(x[tuple(where)])


@GatherElements.relax
def _(R: Any, x: Any, indices: Any, axis: int = 0) -> Any:
    axis %= rank_of(x)
    return R.op.gather_elements(x, _from_start(R, indices, shape_of(x)[axis]), axis)


@GatherElements.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (4, 5), "f32"), _index(rng, (2, 5), 4)], {}
    yield [draw(rng, (2, 3, 4), "f16"), _index(rng, (2, 3, 6), 4)], {"axis": -1}


def _nd(name: str, x: Type, indices: Type, batch_dims: int) -> int:
    """Length of an index tuple."""
    of_kind(name, {"i64"}, indices)
    fits = (
        indices.rank > batch_dims
        and x.rank > batch_dims
        and x.shape[:batch_dims] == indices.shape[:batch_dims]
    )
    require(fits, f"{name}: {x} and indices {indices} do not share {batch_dims} batch axes")
    n = indices.shape[-1]
    require(
        1 <= n <= x.rank - batch_dims,
        f"{name}: index tuples of {n} for {x} with {batch_dims} batch axes",
    )
    return n


@op
def GatherND(x: Type, indices: Type, *, batch_dims: int = 0) -> Type:
    """Slices of x at index tuples, the last axis of indices; the first batch_dims axes go together."""
    n = _nd("GatherND", x, indices, batch_dims)
    return Type(x.dtype, (*indices.shape[:-1], *x.shape[batch_dims + n :]))


def _tuples(indices: Array, batch_dims: int) -> tuple[Array, ...]:
    """Index arrays for numpy: the batch axes' own positions, then the columns of `indices`."""
    batch = np.indices(indices.shape[:-1], sparse=True)[:batch_dims]
    return (*batch, *np.moveaxis(indices, -1, 0))


GatherND.reference(lambda x, indices, batch_dims=0: x[_tuples(indices, batch_dims)])


def _relax_tuples(R: Any, indices: Any, sizes: tuple[int, ...]) -> Any:
    """Index tuples with the negative ones counted from the start, a column at a time."""
    last = rank_of(indices) - 1
    columns = [
        _from_start(R, emit(R, R.op.strided_slice(indices, [last], [i], [i + 1])), n)
        for i, n in enumerate(sizes)
    ]
    return columns[0] if len(columns) == 1 else emit(R, R.op.concat(columns, last))


@GatherND.relax
def _(R: Any, x: Any, indices: Any, batch_dims: int = 0) -> Any:
    n = shape_of(indices)[-1]
    found = _relax_tuples(R, indices, shape_of(x)[batch_dims : batch_dims + n])
    return R.op.gather_nd(x, found, batch_dims)


@GatherND.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (3, 4, 5), "f32"), _index(rng, (2, 6, 2), 3)], {}
    yield [draw(rng, (3, 4, 5), "f16"), _index(rng, (6, 3), 3)], {}
    yield [draw(rng, (2, 4, 5), "f32"), _index(rng, (2, 3, 1), 4)], {"batch_dims": 1}


def _scatter_check(name: str, x: Type, updates: Type, reduction: str) -> None:
    same_dtype(name, x, updates)
    require(
        reduction in REDUCTIONS,
        f"{name}: reduction {reduction!r}, expected one of {', '.join(REDUCTIONS)}",
    )


def _combine(y: Array, where: tuple[Any, ...], new: Array, reduction: str) -> None:
    with np.errstate(all="ignore"):
        y[where] = REDUCTIONS[reduction](y[where], new)


@op
def ScatterElements(
    x: Type, indices: Type, updates: Type, *, axis: int = 0, reduction: str = "none"
) -> Type:
    """x with y[indices[i][j]][j] = updates[i][j] for axis 0, likewise for others; or combined with what is there."""
    of_kind("ScatterElements", INDICES, indices)
    a = axis_of("ScatterElements", axis, x.rank)
    _scatter_check("ScatterElements", x, updates, reduction)
    fits = indices.shape == updates.shape and indices.rank == x.rank
    fits = fits and all(
        m <= n or i == a for i, (m, n) in enumerate(zip(indices.shape, x.shape, strict=True))
    )
    require(fits, f"ScatterElements: indices {indices} and updates {updates} do not fit {x}")
    return x


@ScatterElements.reference
def _(x: Array, indices: Array, updates: Array, axis: int = 0, reduction: str = "none") -> Array:
    y = x.copy()
    for place in np.ndindex(indices.shape):
        where = list(place)
        where[axis] = int(indices[place])
        _combine(y, tuple(where), updates[place], reduction)
    return y


@ScatterElements.relax
def _(R: Any, x: Any, indices: Any, updates: Any, axis: int = 0, reduction: str = "none") -> Any:
    if 0 in shape_of(indices):
        return x
    axis %= rank_of(x)
    found = _wrapped(R, indices, shape_of(x)[axis])
    # TVM takes indices for granted that cover x along every other axis: what they do not cover is set aside.
    aside = []
    for i, (n, full) in enumerate(zip(shape_of(indices), shape_of(x), strict=True)):
        if i != axis and n < full:
            aside.append((i, emit(R, R.op.strided_slice(x, [i], [n], [full]))))
            x = emit(R, R.op.strided_slice(x, [i], [0], [n]))
    y = R.op.scatter_elements(x, found, updates, axis, RELAX_REDUCTIONS[reduction])
    for i, rest in reversed(aside):
        y = R.op.concat([emit(R, y), rest], i)
    return y


@ScatterElements.example
def _(rng: Rng) -> Iterator[Example]:
    unique = np.array([[1, 0, -1], [0, -1, 1]], np.int64)
    yield [draw(rng, (4, 3), "f32"), unique, draw(rng, (2, 3), "f32")], {}
    yield (
        [draw(rng, (4, 3), "f32"), _index(rng, (4, 3), 3), draw(rng, (4, 3), "f32")],
        {"axis": 1, "reduction": "add"},
    )
    yield (
        [draw(rng, (4, 3), "f32"), _index(rng, (4, 2), 3), draw(rng, (4, 2), "f32")],
        {"axis": -1, "reduction": "max"},
    )
    yield (
        [
            draw(rng, (2, 5, 4, 3), "f32"),
            _index(rng, (1, 2, 4, 2), 5),
            draw(rng, (1, 2, 4, 2), "f32"),
        ],
        {"axis": 1, "reduction": "add"},
    )


@op
def ScatterND(x: Type, indices: Type, updates: Type, *, reduction: str = "none") -> Type:
    """x with slices at index tuples replaced by updates, or combined with them."""
    n = _nd("ScatterND", x, indices, 0)
    _scatter_check("ScatterND", x, updates, reduction)
    want = (*indices.shape[:-1], *x.shape[n:])
    require(
        updates.shape == want,
        f"ScatterND: updates is {updates}, expected [{','.join(map(str, want))}]",
    )
    return x


@ScatterND.reference
def _(x: Array, indices: Array, updates: Array, reduction: str = "none") -> Array:
    y = x.copy()
    for place in np.ndindex(indices.shape[:-1]):
        _combine(y, tuple(int(i) for i in indices[place]), updates[place], reduction)
    return y


@ScatterND.relax
def _(R: Any, x: Any, indices: Any, updates: Any, reduction: str = "none") -> Any:
    if 0 in shape_of(updates):
        return x
    found = _relax_tuples(R, indices, shape_of(x)[: shape_of(indices)[-1]])
    return R.op.scatter_nd(x, found, updates, RELAX_REDUCTIONS[reduction])


@ScatterND.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (4, 5), "f32"), np.array([[1], [-1]], np.int64), draw(rng, (2, 5), "f32")], {}
    yield (
        [draw(rng, (4, 5), "f32"), _index(rng, (6, 2), 4), draw(rng, (6,), "f32")],
        {"reduction": "add"},
    )
    yield (
        [draw(rng, (4, 5), "f32"), np.array([[0, 1], [2, 3]], np.int64), draw(rng, (2,), "f32")],
        {"reduction": "mul"},
    )


@op
def OneHot(indices: Type, values: Type, *, depth: int, axis: int = -1) -> Type:
    """values[1] where the new axis of size depth meets the index, values[0] elsewhere."""
    of_kind("OneHot", INTEGERS, indices)
    require(values.shape == (2,), f"OneHot: values is {values}, expected (off, on)")
    a = axis_of("OneHot", axis, indices.rank + 1)
    return Type(values.dtype, (*indices.shape[:a], depth, *indices.shape[a:]))


@OneHot.reference
def _(indices: Array, values: Array, depth: int, axis: int = -1) -> Array:
    column = np.expand_dims(np.where(indices < 0, indices + depth, indices), axis)
    ruler = np.arange(depth).reshape(
        [-1 if i == axis % column.ndim else 1 for i in range(column.ndim)]
    )
    return np.asarray(np.where(column == ruler, values[1], values[0]))


@OneHot.relax
def _(R: Any, indices: Any, values: Any, depth: int, axis: int = -1) -> Any:
    n = rank_of(indices) + 1
    column = R.op.expand_dims(_from_start(R, indices, depth), axis % n)
    numbers = emit(R, R.op.arange(0, depth, 1, dtype_of(indices)))
    ruler = R.op.reshape(numbers, [depth if i == axis % n else 1 for i in range(n)])
    off, on = (R.op.strided_slice(values, [0], [i], [i + 1]) for i in (0, 1))
    shape = [1] * n
    return R.op.where(R.op.equal(column, ruler), R.op.reshape(on, shape), R.op.reshape(off, shape))


@OneHot.example
def _(rng: Rng) -> Iterator[Example]:
    values = np.array([-1, 5], np.float32)
    yield [_index(rng, (2, 3), 4), values], {"depth": 4}
    yield [_index(rng, (5,), 4), values.astype(np.int64)], {"depth": 4, "axis": 0}
