"""Numbers as integers and back: QuantizeLinear, DequantizeLinear.

    x f32 ─► QuantizeLinear(scale, zero_point) ─► q u8 ─► DequantizeLinear(scale, zero_point) ─► f32

An array of integers holds the *values* of its format, never codes: with `format="uflint4"` and to="u8" it holds 0 … 64. Scales and
zero points belong to the whole tensor ([] or [1]), to each place of an axis ([C]), or to each block of `block_size` along it (the shape
of x, the axis divided by the block's size, rounded up).

Every step is one f32 operation, in this order, the same in the reference, in TVM's lowering and in an epilogue:

    v = f32(x) / f32(scale)
    integers                   q = f32(rint(v)) + f32(zero_point)          rint: ties to even
    with a border b            q = floor(((v - ((b2·v + b1)·v)) - b0) + 1) + f32(zero_point)        each product and sum rounded
    on another format's grid   q = the nearest value to v + f32(zero_point); ties up for flint and powers of two, even for small floats
    saturation                 q = min(max(q, the least), the greatest), of `format` and of `to`
    to an integer              NaN gives 0, as in Cast; stored as f32 (small floats) it stays NaN

The border (AQuant's) moves what is rounded up: b = (½, 0, 0) is rounding half up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from knapper.isa.formats import FORMATS, Format

from ..ir import DTYPES, NAMES, Array, Type, op, require
from .elementwise import Example, Rng, draw
from .lowering import TVM_DTYPES, dtype_of, emit, shape_of
from .shapes import axis_of, of_kind

REAL = ("f32", "f16", "bf16")
QUANTIZED = ("i8", "u8", "i16", "u16")
Runs = tuple[tuple[float, float], ...]


# --- what scales, zero points and borders there are


def parameter_shape(name: str, x: Type, p: Type, axis: int, block: int) -> None:
    """Require the shape of a scale or zero point."""
    if p.count == 1 and p.rank <= 1 and not block:
        return
    axis = axis_of(name, axis, x.rank)
    n = x.shape[axis]
    want: tuple[int, ...] = (n,)
    if block:
        want = (*x.shape[:axis], -(-n // block), *x.shape[axis + 1 :])
    require(
        p.shape == want,
        f"{name}: a parameter is {p}, expected [{','.join(map(str, want))}]",
        "one number, one a place of the axis, or one a block",
    )


def _parameters(
    name: str, x: Type, scale: Type, zero: Type | None, axis: int, block: int, stored: str
) -> None:
    of_kind(name, REAL, scale)
    require(block >= 0, f"{name}: block_size {block} is negative")
    parameter_shape(name, x, scale, axis, block)
    if zero is not None:
        require(
            zero.dtype == stored and zero.count == scale.count,
            f"{name}: the zero point is {zero}, the scale {scale}, integers are {stored}",
        )
        parameter_shape(name, x, zero, axis, block)


def spread(p: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """A scale or zero point so that it broadcasts to a tensor of this shape."""
    if block:
        return np.repeat(p, block, axis).take(np.arange(shape[axis]), axis)
    if p.size == 1:
        return p.reshape(())
    return p.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])


def _spread(R: Any, p: Any, shape: tuple[int, ...], axis: int, block: int) -> Any:
    """`spread`, lowered."""
    rank = len(shape)
    if block:
        axis %= rank
        p = emit(R, R.op.repeat(p, block, axis))
        return p if shape_of(p) == shape else R.op.strided_slice(p, [axis], [0], [shape[axis]])
    count = shape_of(p)[0] if shape_of(p) else 1
    wanted = [1] * rank if count == 1 else [-1 if i == axis % rank else 1 for i in range(rank)]
    return R.op.reshape(p, wanted)


def bounds(to: str, format: str) -> tuple[float, float]:
    """The least and the greatest value of what is stored."""
    if format:
        f = FORMATS[format]
        return f.smallest, f.largest
    info = np.iinfo(DTYPES[to])
    return float(info.min), float(info.max)


def on_grid(format: str) -> Format | None:
    """The format whose grid is no range of integers; None for those and for no format."""
    f = FORMATS[format] if format else None
    return None if f is None or f.kind == "int" else f


def runs(f: Format) -> Runs:
    """Where magnitudes of a format lie how far apart: (from which on, step), ascending. Values from there are multiples of the step.

    >>> runs(FORMATS["uflint4"])
    ((0.0, 1.0), (8.0, 2.0), (16.0, 8.0), (32.0, 32.0))
    """
    values = f.values[f.values >= 0]
    found: list[tuple[float, float]] = []
    for low, step in zip(values[:-1].tolist(), np.diff(values).tolist(), strict=True):
        if not found or found[-1][1] != step:
            found.append((low, step))
    return tuple(found)


def ties(f: Format) -> str:
    """Where a number half way between two values goes: ANT's formats round it up, integers and small floats to even."""
    return "up" if f.kind in ("pot", "flint") or f.name == "ufloat4" else "even"


# --- QuantizeLinear


@op
def QuantizeLinear(
    x: Type,
    scale: Type,
    zero_point: Type | None = None,
    border: Type | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    to: str = "u8",
    format: str = "",
) -> Type:
    """Nearest integers, or values of `format`, to x / scale + zero_point, saturated: see the module for each step."""
    of_kind("QuantizeLinear", (*REAL, "i32"), x)
    require(
        format == "" or format in FORMATS,
        f"QuantizeLinear: no format {format!r}",
        "those that isa/formats has",
    )
    require(
        to in QUANTIZED or (to == "f32" and format != ""),
        f"QuantizeLinear: to={to!r}",
        f"one of {' '.join(QUANTIZED)}; f32 holds values of a format",
    )
    if format and to != "f32":
        info, f = np.iinfo(DTYPES[to]), FORMATS[format]
        require(
            f.integral and info.min <= f.smallest and f.largest <= info.max,
            f"QuantizeLinear: {to} does not hold the values of {format}: {f.smallest:g} to {f.largest:g}",
        )
    _parameters("QuantizeLinear", x, scale, zero_point, axis, block_size, to)
    if border is not None:
        of_kind("QuantizeLinear", {"f32"}, border)
        require(on_grid(format) is None, f"QuantizeLinear: a border, and {format} has no integers")
        wanted = (3,) if border.rank < 2 else (3, x.shape[axis_of("QuantizeLinear", axis, x.rank)])
        require(
            border.shape == wanted, f"QuantizeLinear: the border is {border}, expected f32{wanted}"
        )
    return Type(to, x.shape)


def _rounded_on(f: Format, v: Array) -> Array:
    """Nearest values of a format, in f32; NaN stays."""
    nan = np.isnan(v)
    return np.where(nan, np.float32(np.nan), f.round(np.where(nan, 0, v), ties(f))).astype(
        np.float32
    )


def _bordered(v: Array, border: Array, rank: int, axis: int) -> Array:
    """The integer that v is rounded to by a border."""
    b0, b1, b2 = (spread(b.reshape(-1), (1,) * rank, axis, 0) for b in border)
    q: Array = np.floor(((v - ((b2 * v + b1) * v)) - b0) + np.float32(1))
    return q


@QuantizeLinear.reference
def _(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    border: Array | None = None,
    axis: int = 1,
    block_size: int = 0,
    to: str = "u8",
    format: str = "",
) -> Array:
    f32 = np.float32
    zero = np.zeros((), f32)
    if zero_point is not None:
        zero = spread(zero_point.astype(f32), x.shape, axis, block_size)
    low, high = bounds(to, format)
    with np.errstate(all="ignore"):
        v = x.astype(f32) / spread(scale.astype(f32), x.shape, axis, block_size)
        if (grid := on_grid(format)) is not None:
            q = _rounded_on(grid, v + zero)
        elif border is not None:
            q = _bordered(v, border, x.ndim, axis) + zero
        else:
            q = np.rint(v) + zero
        q = np.minimum(np.maximum(q, f32(low)), f32(high))
        whole = q if to == "f32" else np.nan_to_num(q, nan=0.0)
        stored: Array = np.asarray(whole, f32).astype(DTYPES[to])
    return stored


def _grid(R: Any, f: Format, v: Any) -> Any:
    """v on a format's grid: rounded to a multiple of the step of its magnitude's run."""

    def number(n: float) -> Any:
        return R.const(n, "float32")

    v = emit(R, R.op.minimum(R.op.maximum(v, number(f.smallest)), number(f.largest)))
    size = emit(R, R.op.abs(v))
    (_, first), *rest = runs(f)
    step = number(first)
    for start, width in rest:
        step = R.op.where(R.op.greater_equal(size, number(start)), number(width), step)
    step = emit(R, step)
    t = emit(R, R.op.divide(v, step))  # exact: a power of two
    r = emit(R, R.op.round(t))
    if ties(f) == "up":
        up = R.op.equal(R.op.subtract(t, r), number(0.5))
        r = R.op.where(up, R.op.add(r, number(1)), r)
    return R.op.multiply(r, step)


def _border(R: Any, v: Any, border: Any, shape: tuple[int, ...], axis: int) -> Any:
    rank, sizes = len(shape), shape_of(border)
    wanted = [1] * rank
    if len(sizes) == 2 and sizes[1] > 1:
        wanted[axis % rank] = sizes[1]

    def coefficient(i: int) -> Any:
        return R.op.reshape(R.op.strided_slice(border, [0], [i], [i + 1]), wanted)

    v = emit(R, v)
    slope = R.op.add(R.op.multiply(coefficient(2), v), coefficient(1))
    moved = R.op.subtract(R.op.subtract(v, R.op.multiply(slope, v)), coefficient(0))
    return R.op.floor(R.op.add(moved, R.const(1.0, "float32")))


@QuantizeLinear.relax
def _(
    R: Any,
    x: Any,
    scale: Any,
    zero_point: Any = None,
    border: Any = None,
    axis: int = 1,
    block_size: int = 0,
    to: str = "u8",
    format: str = "",
) -> Any:
    shape = shape_of(x)

    def f32(a: Any) -> Any:
        return a if dtype_of(a) == "float32" else emit(R, R.op.astype(a, "float32"))

    v = R.op.divide(f32(x), _spread(R, f32(scale), shape, axis, block_size))
    zero = None
    if zero_point is not None:
        zero = _spread(R, f32(zero_point), shape, axis, block_size)
    grid = on_grid(format)
    if grid is None:
        v = R.op.round(v) if border is None else _border(R, v, border, shape, axis)
    q = v if zero is None else R.op.add(v, zero)
    if grid is not None:
        q = _grid(R, grid, q)
    low, high = bounds(to, format)
    q = R.op.minimum(R.op.maximum(q, R.const(low, "float32")), R.const(high, "float32"))
    return q if to == "f32" else R.op.astype(q, TVM_DTYPES[to])


def _halves(rng: Rng, shape: tuple[int, ...], dtype: str = "f32") -> Array:
    """Numbers of which many lie half way between integers."""
    return np.asarray(rng.integers(-40, 600, shape) / 2, DTYPES[dtype])


@QuantizeLinear.example
def _(rng: Rng) -> Iterator[Example]:
    def zero(dtype: str, low: int, high: int, shape: tuple[int, ...] = ()) -> Array:
        return draw(rng, shape, dtype, low, high)

    def scales(*shape: int) -> Array:
        return draw(rng, shape, "f32", 0.2, 2)

    one = np.float32(1)
    x = _halves(rng, (2, 3, 5))
    yield [x, np.array(one), zero("u8", 3, 9)], {}
    yield [x, scales()], {"to": "i8"}
    yield [x, scales(3), zero("i8", -9, 9, (3,))], {"to": "i8"}
    yield [x * 200, scales(5), zero("u16", 0, 999, (5,))], {"to": "u16", "axis": -1}
    yield [x * 200, scales(), zero("i16", -9, 9)], {"to": "i16"}
    yield [x.astype(np.float16), scales(), zero("u8", 0, 9)], {}
    yield [draw(rng, (2, 7), "i32", -999, 999), scales(), zero("i8", -9, 9)], {"to": "i8"}
    yield (
        [_halves(rng, (3, 7)), scales(3, 3), zero("u8", 0, 9, (3, 3))],
        {"block_size": 3},
    )
    yield [_halves(rng, (4, 6)), scales(2, 6)], {"block_size": 2, "axis": 0, "to": "i8"}
    yield [_halves(rng, (4, 6)), np.array(one), zero("i8", 0, 3)], {"to": "i8", "format": "i4"}
    yield [_halves(rng, (4, 6)), np.array(one)], {"to": "u8", "format": "uflint4"}
    yield [_halves(rng, (4, 6)) - 150, scales(4)], {"to": "i8", "format": "flint4", "axis": 0}
    yield [_halves(rng, (4, 6)), np.array(one)], {"to": "u8", "format": "upot3"}
    yield [_halves(rng, (4, 6)) / 4, scales()], {"to": "f32", "format": "f4e2m1"}
    yield [_halves(rng, (4, 6)), scales()], {"to": "f32", "format": "f8e4m3"}
    border = np.array([0.4, 0.01, -0.001], np.float32)
    yield [_halves(rng, (2, 6)) / 8, scales(), None, border], {"format": "u4"}
    yield (
        [
            _halves(rng, (2, 6)) / 8,
            scales(),
            zero("u8", 0, 9),
            border[:, None] * np.ones((3, 6), np.float32),
        ],
        {"format": "u4"},
    )


# --- DequantizeLinear


@op
def DequantizeLinear(
    x: Type,
    scale: Type,
    zero_point: Type | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    to: str = "f32",
) -> Type:
    """f32(x - zero_point) · f32(scale), two roundings; a third to a narrower `to`. The difference is exact."""
    of_kind("DequantizeLinear", (*QUANTIZED, "i32", "f32"), x)
    require(to in REAL, f"DequantizeLinear: to={to!r}", f"one of {' '.join(REAL)}")
    _parameters("DequantizeLinear", x, scale, zero_point, axis, block_size, x.dtype)
    return Type(to, x.shape)


@DequantizeLinear.reference
def _(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    axis: int = 1,
    block_size: int = 0,
    to: str = "f32",
) -> Array:
    with np.errstate(all="ignore"):
        if zero_point is not None:
            wide = np.int32 if NAMES[x.dtype] != "f32" else np.float32
            zero = spread(zero_point.astype(wide), x.shape, axis, block_size)
            x = x.astype(wide) - zero
        factor = spread(scale.astype(np.float32), x.shape, axis, block_size)
        y: Array = (x.astype(np.float32) * factor).astype(DTYPES[to])
    return np.asarray(y)


@DequantizeLinear.relax
def _(
    R: Any,
    x: Any,
    scale: Any,
    zero_point: Any = None,
    axis: int = 1,
    block_size: int = 0,
    to: str = "f32",
) -> Any:
    shape = shape_of(x)

    def cast(a: Any, dtype: str) -> Any:
        return a if dtype_of(a) == dtype else emit(R, R.op.astype(a, dtype))

    if zero_point is not None:
        wide = "float32" if dtype_of(x) == "float32" else "int32"
        zero = _spread(R, cast(zero_point, wide), shape, axis, block_size)
        x = emit(R, R.op.subtract(cast(x, wide), zero))
    factor = _spread(R, cast(scale, "float32"), shape, axis, block_size)
    y = emit(R, R.op.multiply(cast(x, "float32"), factor))
    return cast(y, TVM_DTYPES[to])


@DequantizeLinear.example
def _(rng: Rng) -> Iterator[Example]:
    def scales(*shape: int) -> Array:
        return draw(rng, shape, "f32", 0.01, 2)

    for d in QUANTIZED:
        yield [draw(rng, (2, 3, 5), d, -99, 99), scales(), draw(rng, (), d, -9, 9)], {}
    yield [draw(rng, (2, 3, 5), "i8", -99, 99), scales(3)], {}
    yield [draw(rng, (2, 3, 5), "u8", 0, 255), scales(5), draw(rng, (5,), "u8", 0, 9)], {"axis": 2}
    yield [draw(rng, (3, 5), "i32", -(2**30), 2**30), scales(3)], {"axis": 0}
    yield (
        [draw(rng, (3, 7), "i8", -8, 7), scales(3, 3), draw(rng, (3, 3), "i8", -8, 7)],
        {"block_size": 3},
    )
    yield [draw(rng, (3, 5), "u8", 0, 255), scales().astype(np.float16)], {"to": "f16"}
