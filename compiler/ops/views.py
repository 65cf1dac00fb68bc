"""Ops that only rename the shape of contiguous data: the plan aliases their buffers, no launch computes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..ir import Type, op, require
from .elementwise import Example, Rng, draw
from .lowering import shape_of
from .shapes import axes_of

Ints = tuple[int, ...]
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})


def reshaped(name: str, x: Type, shape: Ints, allowzero: int = 0) -> Ints:
    """ONNX's target shape: 0 copies a size (unless allowzero), one -1 takes what is left."""
    if not allowzero:
        require(
            all(n != 0 or i < x.rank for i, n in enumerate(shape)),
            f"{name}: 0 in {shape} has no size of {x} to copy",
        )
        shape = tuple(x.shape[i] if n == 0 else n for i, n in enumerate(shape))
    require(shape.count(-1) <= 1, f"{name}: more than one -1 in {shape}")
    known = math.prod(n for n in shape if n != -1)
    if -1 in shape:
        require(
            known > 0 and x.count % known == 0,
            f"{name}: {x} has {x.count} elements, which do not fit {shape}",
        )
        shape = tuple(x.count // known if n == -1 else n for n in shape)
    require(
        math.prod(shape) == x.count,
        f"{name}: {x} has {x.count} elements, {shape} has {math.prod(shape)}",
    )
    return shape


@op
def Reshape(x: Type, *, shape: tuple[int, ...], allowzero: int = 0) -> Type:
    """The same elements in row-major order in another shape; 0 copies a size, -1 takes what is left."""
    return Type(x.dtype, reshaped("Reshape", x, tuple(shape), allowzero))


Reshape.reference(
    lambda x, shape, allowzero=0: x.reshape(
        reshaped("Reshape", Type.of(x), tuple(shape), allowzero)
    )
)


@Reshape.relax
def _(R: Any, x: Any, shape: Ints, allowzero: int = 0) -> Any:
    return R.op.reshape(x, reshaped("Reshape", Type("f32", shape_of(x)), tuple(shape), allowzero))


@Reshape.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3, 4), "f32")], {"shape": (0, -1)}
    yield [draw(rng, (2, 6), "f16")], {"shape": (3, 2, 2)}
    yield [draw(rng, (1,), "i64")], {"shape": ()}


@op
def Flatten(x: Type, *, axis: int = 1) -> Type:
    """A matrix: the axes before `axis` are its rows, the others its columns."""
    require(-x.rank <= axis <= x.rank, f"Flatten: axis {axis} is outside {x}")
    a = axis % x.rank if axis < 0 else axis
    return Type(x.dtype, (math.prod(x.shape[:a]), math.prod(x.shape[a:])))


def _flat(shape: Ints, axis: int) -> Ints:
    a = axis % len(shape) if axis < 0 else axis
    return math.prod(shape[:a]), math.prod(shape[a:])


Flatten.reference(lambda x, axis=1: x.reshape(_flat(x.shape, axis)))
Flatten.relax(lambda R, x, axis=1: R.op.reshape(x, _flat(shape_of(x), axis)))


@Flatten.example
def _(rng: Rng) -> Iterator[Example]:
    for axis in (1, 0, 3, -1):
        yield [draw(rng, (2, 3, 4), "f32")], {"axis": axis}


@op
def Squeeze(x: Type, *, axes: tuple[int, ...] = ()) -> Type:
    """Drop axes of size 1: those named, or all."""
    found = axes_of("Squeeze", axes, x.rank)
    require(
        all(x.shape[a] == 1 for a in found), f"Squeeze: axes {axes} of {x} are not all of size 1"
    )
    return Type(x.dtype, _squeezed(x.shape, axes))


def _squeezed(shape: Ints, axes: Ints) -> Ints:
    drop = {a % len(shape) for a in axes} if axes else {i for i, n in enumerate(shape) if n == 1}
    return tuple(n for i, n in enumerate(shape) if i not in drop)


Squeeze.reference(lambda x, axes=(): x.reshape(_squeezed(x.shape, axes)))
Squeeze.relax(lambda R, x, axes=(): R.op.reshape(x, _squeezed(shape_of(x), axes)))


@Squeeze.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 1, 3, 1), "f32")], {}
    yield [draw(rng, (2, 1, 3, 1), "i64")], {"axes": (-1,)}


@op
def Unsqueeze(x: Type, *, axes: tuple[int, ...]) -> Type:
    """Insert axes of size 1 at these places of the result."""
    axes_of("Unsqueeze", axes, x.rank + len(axes))
    return Type(x.dtype, _unsqueezed(x.shape, axes))


def _unsqueezed(shape: Ints, axes: Ints) -> Ints:
    rank = len(shape) + len(axes)
    new, old = {a % rank for a in axes}, iter(shape)
    return tuple(1 if i in new else next(old) for i in range(rank))


Unsqueeze.reference(lambda x, axes: x.reshape(_unsqueezed(x.shape, axes)))
Unsqueeze.relax(lambda R, x, axes: R.op.reshape(x, _unsqueezed(shape_of(x), axes)))


@Unsqueeze.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3), "f32")], {"axes": (0, -1)}
    yield [np.array(7, np.int64)], {"axes": (0,)}


@op
def Dropout(x: Type) -> tuple[Type, Type]:
    """Inference: the operand itself, and a mask that is true everywhere."""
    return x, Type("bool", x.shape)


Dropout.reference(lambda x: (x, np.ones(x.shape, np.bool_)))
Dropout.relax(lambda R, x: [x, R.op.ones(shape_of(x), "bool")])


@Dropout.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3), "f32")], {}
