"""The facets that all one-operand and two-operand elementwise ops share, so that a declaration says only what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from ..ir import DTYPES, Array, Op, Type
from .lowering import wide
from .numeric import FLOATS, rounded
from .shapes import broadcast, of_kind, same_dtype

Example = tuple[list[Array | None], dict[str, Any]]
Rng: TypeAlias = "np.random.Generator"  # numpy.random costs 18 ms to import


def floating(name: str, x: Type) -> Type:
    """Result type of a float function: the operand's."""
    of_kind(name, FLOATS, x)
    return x


def draw(rng: Rng, shape: tuple[int, ...], dtype: str, low: float = -3, high: float = 3) -> Array:
    """Uniform random values in [low, high); integers include both ends, bool is a coin."""
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype in FLOATS:
        return np.asarray(rng.uniform(low, high, shape), DTYPES[dtype])
    least = 0 if dtype[0] == "u" else int(low)
    return np.asarray(rng.integers(least, int(high), shape, DTYPES[dtype], endpoint=True))


def unary(
    o: Op,
    f: Callable[..., Any],
    lowering: Callable[..., Any] | None,
    low: float = -3,
    high: float = 3,
    dtypes: str = "f32 f16 bf16",
    attrs: tuple[dict[str, Any], ...] = ({},),
) -> None:
    """Give a one-operand op its facets; examples are drawn from [low, high) in each dtype, and with each of `attrs`."""
    o.reference(rounded(f))
    if lowering is not None:
        o.relax(wide(lowering))

    @o.example
    def _(rng: Rng) -> Iterator[Example]:
        for d in dtypes.split():
            yield [draw(rng, (2, 3, 5), d, low, high)], attrs[0]
        for a in attrs[1:]:
            yield [draw(rng, (2, 9), dtypes.split()[0], low, high)], a


def binary_type(name: str, a: Type, b: Type, result: str = "") -> Type:
    """Result type of a broadcasting op on two operands of one dtype."""
    d = same_dtype(name, a, b)
    return Type(result or d, broadcast(name, a, b))


def binary(
    o: Op,
    f: Callable[..., Any],
    lowering: Callable[..., Any],
    low: float = -3,
    high: float = 3,
    dtypes: str = "f32 f16 f64 i32 i64",
    attrs: dict[str, Any] | None = None,
) -> None:
    """Give a two-operand op its facets; one example a dtype, plain and broadcasting in turn."""
    o.reference(rounded(f))
    o.relax(wide(lowering))
    shapes = [((2, 3, 4), (2, 3, 4)), ((2, 1, 4), (3, 1)), ((3, 4), ()), ((5,), (2, 1, 5))]

    @o.example
    def _(rng: Rng) -> Iterator[Example]:
        for i, d in enumerate(dtypes.split()):
            sa, sb = shapes[i % len(shapes)]
            yield [draw(rng, sa, d, low, high), draw(rng, sb, d, low, high)], dict(attrs or {})
