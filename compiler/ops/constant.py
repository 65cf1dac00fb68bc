"""Ops whose value follows from types and attributes alone, so that constant folding can compute them.

Shape and Size have no relax facet: they are always folded. NonZero has none either and is of the family because its size must
be known: the importer folds it over a constant operand and says how many it found, or makes it of other ops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..ir import DTYPES, Array, Type, op, require
from .elementwise import Example, Rng, draw
from .lowering import TVM_DTYPES, dtype_of, shape_of, te


def _known(name: str, dtype: str) -> None:
    require(dtype in DTYPES, f"{name}: no dtype {dtype!r}", f"one of {' '.join(DTYPES)}")


@op
def Shape(x: Type, *, start: int = 0, end: int = 2**31 - 1) -> Type:
    """The operand's sizes, those of axes start to end."""
    return Type("i64", (len(x.shape[start:end]),))


Shape.reference(lambda x, start=0, end=2**31 - 1: np.array(x.shape[start:end], np.int64))


@Shape.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3, 4), "f32")], {}
    yield [draw(rng, (2, 3, 4), "f32")], {"start": 1}
    yield [draw(rng, (2, 3, 4), "f32")], {"start": -3, "end": -1}


@op
def Size(x: Type) -> Type:
    """How many elements the operand has."""
    return Type("i64", ())


Size.reference(lambda x: np.array(x.size, np.int64))


@Size.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3, 4), "f32")], {}


@op
def ConstantOfShape(*, shape: tuple[int, ...], value: float = 0.0, dtype: str = "f32") -> Type:
    """A tensor filled with one value."""
    _known("ConstantOfShape", dtype)
    require(min(shape, default=0) >= 0, f"ConstantOfShape: negative size in {shape}")
    return Type(dtype, tuple(shape))


ConstantOfShape.reference(
    lambda shape, value=0.0, dtype="f32": np.full(shape, value, DTYPES[dtype])
)


@ConstantOfShape.relax
def _(R: Any, shape: tuple[int, ...], value: float = 0.0, dtype: str = "f32") -> Any:
    return R.op.full(shape, R.const(value, TVM_DTYPES[dtype]), TVM_DTYPES[dtype])


@ConstantOfShape.example
def _(rng: Rng) -> Iterator[Example]:
    yield [], {"shape": (2, 3)}
    yield [], {"shape": (4,), "value": 7, "dtype": "i64"}
    yield [], {"shape": (), "value": 1.5}


@op
def Range(*, start: float, limit: float, delta: float, dtype: str = "i64") -> Type:
    """start, start + delta, … before limit."""
    _known("Range", dtype)
    require(delta != 0, "Range: delta is 0")
    return Type(dtype, (max(0, math.ceil((limit - start) / delta)),))


@Range.reference
def _(start: float, limit: float, delta: float, dtype: str = "i64") -> Array:
    n = max(0, math.ceil((limit - start) / delta))
    t = np.float64 if DTYPES[dtype] in (np.float32, np.float64) else np.int64
    return (t(start) + np.arange(n).astype(t) * t(delta)).astype(DTYPES[dtype])


@Range.relax
def _(R: Any, start: float, limit: float, delta: float, dtype: str = "i64") -> Any:
    """Relax's arange comes without a fusion pattern, so the formula it is."""
    from tvm import te as expression

    d = TVM_DTYPES[dtype]
    n = max(0, math.ceil((limit - start) / delta))
    first, step = (R.const(v, d).value.numpy().item() for v in (start, delta))
    return te(R, lambda: expression.compute((n,), lambda i: i.astype(d) * step + first, "range"))


@Range.example
def _(rng: Rng) -> Iterator[Example]:
    yield [], {"start": 2, "limit": 11, "delta": 3}
    yield [], {"start": 5, "limit": -2, "delta": -2, "dtype": "i32"}
    yield [], {"start": 0.0, "limit": 1.0, "delta": 0.25, "dtype": "f32"}


@op
def EyeLike(x: Type, *, k: int = 0, dtype: str = "") -> Type:
    """Ones on diagonal k of a zero matrix of the operand's shape; dtype "": the operand's."""
    require(x.rank == 2, f"EyeLike: {x} is no matrix")
    _known("EyeLike", dtype or x.dtype)
    return Type(dtype or x.dtype, x.shape)


@EyeLike.reference
def _(x: Array, k: int = 0, dtype: str = "") -> Array:
    rows, columns = x.shape
    return np.eye(rows, columns, k).astype(DTYPES[dtype] if dtype else x.dtype)


@EyeLike.relax
def _(R: Any, x: Any, k: int = 0, dtype: str = "") -> Any:
    rows, columns = shape_of(x)
    return R.op.eye(rows, columns, k, TVM_DTYPES[dtype] if dtype else dtype_of(x))


@EyeLike.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (3, 4), "f32")], {}
    yield [draw(rng, (4, 3), "f32")], {"k": -1, "dtype": "i64"}


@op
def NonZero(x: Type, *, count: int) -> Type:
    """Indices [rank, count] of the elements that are not zero, row-major; the importer says how many there are."""
    require(0 <= count <= x.count, f"NonZero: count is {count} for {x}")
    return Type("i64", (x.rank, count))


@NonZero.reference
def _(x: Array, count: int) -> Array:
    found = np.array(np.nonzero(x), np.int64)
    require(
        found.shape[1] == count,
        f"NonZero: {found.shape[1]} elements are not zero, the graph says {count}",
    )
    return found


@NonZero.example
def _(rng: Rng) -> Iterator[Example]:
    x = draw(rng, (3, 4), "bool")
    yield [x], {"count": int(x.sum())}
