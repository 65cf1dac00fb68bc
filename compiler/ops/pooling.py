"""Pooling over windows and over whole images, 1 to 3 spatial axes, channels first or last.

References walk the taps of the window, row-major; each tap is a strided view of the padded image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..ir import NAMES, Array, Type, op, require
from .elementwise import Example, Rng, draw
from .lowering import TVM_DTYPES, const, dtype_of, rank_of, shape_of, te, wide
from .numeric import FLOATS, rounded
from .reducers import INDEX, Place, Value, extreme, identity, reduced, walk
from .shapes import (
    NUMBERS,
    channel_axis,
    image,
    image_shape,
    of_kind,
    per_axis,
    spatial_axes,
    window_sizes,
)

Ints = tuple[int, ...]


class Window:
    """A pooling window over sizes [spatial], every attribute spelled out."""

    def __init__(
        self,
        name: str,
        sizes: Sequence[int],
        kernel: Ints,
        strides: Ints,
        pads: Ints,
        dilations: Ints,
        ceil_mode: int,
    ) -> None:
        n = len(sizes)
        require(
            len(kernel) == n,
            f"{name}: kernel_shape {tuple(kernel)} has {len(kernel)} values, expected {n}",
        )
        self.sizes, self.kernel = tuple(sizes), kernel
        self.strides = per_axis(name, "strides", strides, 1, n)
        self.pads = per_axis(name, "pads", pads, 0, 2 * n)
        self.dilations = per_axis(name, "dilations", dilations, 1, n)
        self.out = window_sizes(
            name, sizes, kernel, self.strides, self.pads, self.dilations, bool(ceil_mode)
        )

    @property
    def all_pads(self) -> Ints:
        """Pads, the ends grown to what the last window of ceil_mode reaches."""
        n = len(self.sizes)
        reach = [
            (o - 1) * s + d * (k - 1) + 1
            for o, s, d, k in zip(self.out, self.strides, self.dilations, self.kernel, strict=True)
        ]
        ends = [max(self.pads[n + i], reach[i] - self.sizes[i] - self.pads[i]) for i in range(n)]
        return (*self.pads[:n], *ends)

    def taps(self, x: Array, fill: Any, pads: Ints | None = None) -> Iterator[Array]:
        """For each tap the strided view [N,…out,C] of x[N,…,C], padded with `fill`."""
        n, pads = len(self.sizes), pads or self.all_pads
        padded = np.pad(
            x, [(0, 0), *zip(pads[:n], pads[n:], strict=True), (0, 0)], constant_values=fill
        )
        for tap in np.ndindex(*self.kernel):
            starts = [t * d for t, d in zip(tap, self.dilations, strict=True)]
            ends = [
                a + (o - 1) * s + 1 for a, o, s in zip(starts, self.out, self.strides, strict=True)
            ]
            yield padded[(slice(None), *map(slice, starts, ends, self.strides))]

    def counts(self, include_pad: bool) -> Array:
        """Elements in each window [1,…out,1]; the padding counts if asked for, the reach of ceil_mode never."""
        n = len(self.sizes)
        inside = np.ones((1, *self.sizes, 1))
        if include_pad:
            inside = np.pad(
                inside,
                [(0, 0), *zip(self.pads[:n], self.pads[n:], strict=True), (0, 0)],
                constant_values=1,
            )
            rest = [a - b for a, b in zip(self.all_pads[n:], self.pads[n:], strict=True)]
            return np.asarray(sum(self.taps(inside, 0, (*(0,) * n, *rest))))
        return np.asarray(sum(self.taps(inside, 0)))


def _window(
    name: str, shape: Sequence[int], layout: str, kernel_shape: Ints, attrs: dict[str, Any]
) -> Window:
    """The window of attributes as declared, over an image tensor's shape."""
    sizes = [shape[i] for i in spatial_axes(layout, len(shape))]
    strides, pads, dilations = (attrs.get(k, ()) for k in ("strides", "pads", "dilations"))
    return Window(name, sizes, kernel_shape, strides, pads, dilations, attrs.get("ceil_mode", 0))


def _pooled(name: str, x: Type, layout: str, kernel_shape: Ints, **attrs: Any) -> Type:
    image(name, x, layout)
    w = _window(name, x.shape, layout, kernel_shape, attrs)
    return Type(
        x.dtype, image_shape(layout, x.shape[0], w.out, x.shape[channel_axis(layout, x.rank)])
    )


def _last(x: Array, layout: str) -> Array:
    return np.moveaxis(x, 1, -1) if layout == "NCHW" else x


def _unlast(y: Array, layout: str) -> Array:
    return np.moveaxis(y, -1, 1) if layout == "NCHW" else y


@op
def MaxPool(
    x: Type,
    *,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    ceil_mode: int = 0,
    storage_order: int = 0,
    layout: str = "NCHW",
) -> tuple[Type, Type]:
    """Greatest element of each window, and where it is: its flat index in [N,C,…] order, the first of equals.

    With storage_order=1 the spatial part of the index is column-major. A window of -inf alone gives -inf (in onnxruntime -inf or
    the least finite number, by which of its kernels runs), a window with a NaN gives NaN and its place.
    """
    of_kind("MaxPool", NUMBERS, x)
    require(storage_order in (0, 1), f"MaxPool: storage_order is {storage_order}, expected 0 or 1")
    y = _pooled(
        "MaxPool",
        x,
        layout,
        kernel_shape,
        strides=strides,
        pads=pads,
        dilations=dilations,
        ceil_mode=ceil_mode,
    )
    return y, Type("i64", y.shape)


def _flat_indices(shape: Sequence[int], storage_order: int = 0) -> Array:
    """Flat [N,C,…] indices, the spatial axes in C order or in Fortran's, laid out as x[N,…,C]."""
    n, *spatial, c = shape
    inside = np.arange(math.prod(spatial)).reshape(spatial, order="F" if storage_order else "C")
    first = np.arange(n * c).reshape(n, *(1,) * len(spatial), c) * inside.size
    return np.asarray(first + inside[None, ..., None])


@MaxPool.reference
def _(
    x: Array, kernel_shape: Ints, layout: str = "NCHW", storage_order: int = 0, **attrs: Any
) -> tuple[Array, Array]:
    w = _window("MaxPool", x.shape, layout, kernel_shape, attrs)
    x = _last(x, layout)
    values = list(w.taps(x, x.dtype.type(identity(TVM_DTYPES[NAMES[x.dtype]], greatest=True))))
    places = list(w.taps(_flat_indices(x.shape, storage_order), -1))
    best, where = values[0], places[0]
    for v, i in zip(values[1:], places[1:], strict=True):
        better = (v > best) | ((v != v) & (best == best)) | ((where < 0) & (i >= 0))
        best, where = np.where(better, v, best), np.where(better, i, where)
    return _unlast(best, layout), _unlast(where.astype(np.int64), layout)


def _axes_letters(n: int, layout: str) -> str:
    axes = {1: "W", 2: "HW", 3: "DHW"}[n]
    return f"NC{axes}" if layout == "NCHW" else f"N{axes}C"


def _relax_pool(R: Any, kind: str, x: Any, w: Window, layout: str, **attrs: Any) -> Any:
    """max_pool or avg_pool of the operand's rank, ceil_mode spelled out as padding."""
    n = len(w.sizes)
    f = getattr(R.op.nn, f"{kind}_pool{n}d")
    return f(
        x, w.kernel, w.strides, w.all_pads, w.dilations, layout=_axes_letters(n, layout), **attrs
    )


def _relax_max(t: Any, w: Window, layout: str, kind: Value | Place) -> Any:
    """Reduce the windows of t: the greatest values, or the spatial indices in C order and the values."""
    from tvm import te, tirx

    axes = spatial_axes(layout, len(t.shape))
    walks = [walk(k, f"k{i}") for i, k in enumerate(w.kernel)]
    least = tirx.const(identity(str(t.dtype), greatest=True), t.dtype)
    shape = [int(n) for n in t.shape]
    shape[axes.start : axes.stop] = w.out

    def element(*out: Any) -> Any:
        at = list(out)
        for i, a in enumerate(axes):
            at[a] = out[a] * w.strides[i] + walks[i].var * w.dilations[i] - w.pads[i]
        tests = [tirx.all(at[a] >= 0, at[a] < n) for a, n in zip(axes, w.sizes, strict=True)]

        def or_outside(value: Any, other: Any) -> Any:
            return tirx.if_then_else(tirx.all(*tests), value, other) if any(w.all_pads) else value

        value = or_outside(t[tuple(at)], least)
        if isinstance(kind, Value):
            return reduced(kind, [value], walks)
        index = _flat([at[a].astype(INDEX) for a in axes], w.sizes)
        return reduced(kind, [or_outside(index, tirx.max_value(INDEX)), value], walks)

    return te.compute(shape, element, "max_pool")


def _flat(coordinates: Sequence[Any], sizes: Sequence[int]) -> Any:
    """The index of coordinates in C order."""
    total = coordinates[0]
    for c, n in zip(coordinates[1:], sizes[1:], strict=True):
        total = total * n + c
    return total


def _relax_places(t: Any, w: Window, layout: str, storage_order: int) -> Any:
    """Where the greatest of each window is, as MaxPool says."""
    from tvm import te

    index, _ = _relax_max(t, w, layout, Place(greatest=True, last=False))
    channels = channel_axis(layout, len(t.shape))
    strides = [math.prod(w.sizes[i + 1 :]) for i in range(len(w.sizes))]

    def element(*out: Any) -> Any:
        place = index[out]
        if storage_order:
            spatial = [place // s % n for s, n in zip(strides, w.sizes, strict=True)]
            place = _flat(spatial[::-1], w.sizes[::-1])
        image = out[0] * int(t.shape[channels]) + out[channels]
        return image.astype(INDEX) * math.prod(w.sizes) + place

    return te.compute(index.shape, element, "places")


@MaxPool.relax
def _(
    R: Any,
    x: Any,
    kernel_shape: Ints,
    layout: str = "NCHW",
    storage_order: int = 0,
    **attrs: Any,
) -> Any:
    w = _window("MaxPool", shape_of(x), layout, kernel_shape, attrs)
    values = te(R, lambda t: _relax_max(t, w, layout, Value(greatest=True)), x)
    return [values, te(R, lambda t: _relax_places(t, w, layout, storage_order), x)]


@MaxPool.example
def _(rng: Rng) -> Iterator[Example]:
    yield (
        [draw(rng, (2, 3, 8, 7), "f32")],
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    )
    yield (
        [draw(rng, (2, 3, 8, 7), "f16")],
        {"kernel_shape": (2, 3), "strides": (2, 2), "ceil_mode": 1},
    )
    yield (
        [draw(rng, (2, 8, 7, 3), "f32")],
        {"kernel_shape": (3, 2), "pads": (1, 0, 1, 1), "layout": "NHWC"},
    )
    yield [draw(rng, (1, 2, 9, 9), "f32")], {"kernel_shape": (3, 3), "dilations": (2, 2)}
    yield [draw(rng, (2, 2, 9, 6), "f32")], {"kernel_shape": (3, 2), "storage_order": 1}
    yield [draw(rng, (2, 3, 9), "f32")], {"kernel_shape": (2,), "strides": (2,)}
    yield [draw(rng, (1, 2, 4, 5, 6), "f32")], {"kernel_shape": (2, 2, 2), "strides": (2, 2, 2)}
    yield [draw(rng, (1, 2, 5, 5), "u8", 0, 99)], {"kernel_shape": (2, 2), "strides": (2, 2)}


@op
def AveragePool(
    x: Type,
    *,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    layout: str = "NCHW",
) -> Type:
    """Mean of each window, over the elements inside the image, or with count_include_pad over the padding too."""
    of_kind("AveragePool", FLOATS, x)
    return _pooled(
        "AveragePool",
        x,
        layout,
        kernel_shape,
        strides=strides,
        pads=pads,
        dilations=dilations,
        ceil_mode=ceil_mode,
    )


@AveragePool.reference
@rounded
def _(
    x: Array, kernel_shape: Ints, layout: str = "NCHW", count_include_pad: int = 0, **attrs: Any
) -> Array:
    w = _window("AveragePool", x.shape, layout, kernel_shape, attrs)
    total = sum(w.taps(_last(x, layout), 0))
    return _unlast(total / w.counts(bool(count_include_pad)), layout)


@AveragePool.relax
@wide
def _(
    R: Any,
    x: Any,
    kernel_shape: Ints,
    layout: str = "NCHW",
    count_include_pad: int = 0,
    **attrs: Any,
) -> Any:
    w = _window("AveragePool", shape_of(x), layout, kernel_shape, attrs)
    counts, size = w.counts(bool(count_include_pad)), math.prod(kernel_shape)
    y = _relax_pool(R, "avg", x, w, layout, count_include_pad=True)
    if (counts == size).all():
        return y
    if not count_include_pad:
        return _relax_pool(R, "avg", x, w, layout, count_include_pad=False)
    scale = (size / _unlast(counts, layout)).astype(dtype_of(x))
    return R.op.multiply(y, R.const(scale, dtype_of(x)))


@AveragePool.example
def _(rng: Rng) -> Iterator[Example]:
    yield (
        [draw(rng, (2, 3, 8, 7), "f32")],
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    )
    yield (
        [draw(rng, (2, 3, 8, 7), "f32")],
        {"kernel_shape": (3, 2), "pads": (1, 0, 1, 1), "count_include_pad": 1},
    )
    yield [draw(rng, (2, 3, 8, 7), "f16")], {"kernel_shape": (2, 2), "strides": (2, 2)}
    yield (
        [draw(rng, (2, 3, 8, 7), "f32")],
        {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1},
    )
    yield (
        [draw(rng, (1, 1, 6, 6), "f32")],
        {
            "kernel_shape": (3, 3),
            "strides": (2, 2),
            "pads": (1, 1, 1, 1),
            "ceil_mode": 1,
            "count_include_pad": 1,
        },
    )
    yield (
        [draw(rng, (2, 8, 7, 3), "f32")],
        {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "layout": "NHWC"},
    )
    yield [draw(rng, (2, 3, 9), "f32")], {"kernel_shape": (3,), "strides": (2,), "pads": (1, 1)}
    yield [draw(rng, (1, 2, 4, 5, 6), "f32")], {"kernel_shape": (2, 2, 3)}


@op
def LpPool(
    x: Type,
    *,
    kernel_shape: tuple[int, ...],
    p: int = 2,
    strides: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    ceil_mode: int = 0,
    layout: str = "NCHW",
) -> Type:
    """(Σ |x|^p)^(1/p) of each window."""
    of_kind("LpPool", FLOATS, x)
    require(p >= 1, f"LpPool: p is {p}, expected at least 1")
    return _pooled(
        "LpPool",
        x,
        layout,
        kernel_shape,
        strides=strides,
        pads=pads,
        dilations=dilations,
        ceil_mode=ceil_mode,
    )


@LpPool.reference
@rounded
def _(x: Array, kernel_shape: Ints, p: int = 2, layout: str = "NCHW", **attrs: Any) -> Array:
    w = _window("LpPool", x.shape, layout, kernel_shape, attrs)
    return _unlast(np.asarray(sum(w.taps(np.abs(_last(x, layout)) ** p, 0))) ** (1 / p), layout)


def relax_power(R: Any, x: Any, p: int) -> Any:
    """|x|^p by multiplication where p is 1 or 2."""
    if p == 2:
        return R.op.multiply(x, x)
    return R.op.abs(x) if p == 1 else R.op.power(R.op.abs(x), const(R, p, x))


def relax_root(R: Any, y: Any, p: int, like: Any) -> Any:
    """y^(1/p)."""
    if p == 2:
        return R.op.sqrt(y)
    return y if p == 1 else R.op.power(y, const(R, 1 / p, like))


@LpPool.relax
@wide
def _(R: Any, x: Any, kernel_shape: Ints, p: int = 2, layout: str = "NCHW", **attrs: Any) -> Any:
    w = _window("LpPool", shape_of(x), layout, kernel_shape, attrs)
    mean = _relax_pool(R, "avg", relax_power(R, x, p), w, layout, count_include_pad=True)
    return relax_root(R, R.op.multiply(mean, const(R, math.prod(kernel_shape), x)), p, x)


@LpPool.example
def _(rng: Rng) -> Iterator[Example]:
    yield (
        [draw(rng, (2, 3, 6, 5), "f32")],
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    )
    yield [draw(rng, (2, 3, 6, 5), "f32")], {"kernel_shape": (2, 2), "p": 1}
    yield [draw(rng, (2, 3, 6), "f16")], {"kernel_shape": (2,), "p": 3}


@op
def GlobalAveragePool(x: Type, *, layout: str = "NCHW") -> Type:
    """Mean over all spatial axes, which stay with size 1."""
    of_kind("GlobalAveragePool", FLOATS, x)
    return _global("GlobalAveragePool", x, layout)


@op
def GlobalMaxPool(x: Type, *, layout: str = "NCHW") -> Type:
    """Greatest element over all spatial axes, which stay with size 1."""
    of_kind("GlobalMaxPool", FLOATS, x)
    return _global("GlobalMaxPool", x, layout)


def _global(name: str, x: Type, layout: str) -> Type:
    sizes = image(name, x, layout)
    return Type(
        x.dtype,
        image_shape(layout, x.shape[0], (1,) * len(sizes), x.shape[channel_axis(layout, x.rank)]),
    )


def _all_spatial(x: Array, layout: str) -> Ints:
    return tuple(spatial_axes(layout, x.ndim))


def _global_examples(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3, 4, 5), "f32")], {}
    yield [draw(rng, (2, 4, 5, 3), "f16")], {"layout": "NHWC"}
    yield [draw(rng, (2, 3, 7), "f32")], {}
    yield [draw(rng, (2, 2, 3, 4, 3), "f32")], {"layout": "NHWC"}


GlobalAveragePool.reference(
    rounded(lambda x, layout="NCHW": x.mean(_all_spatial(x, layout), keepdims=True))
)
GlobalMaxPool.reference(lambda x, layout="NCHW": x.max(_all_spatial(x, layout), keepdims=True))
GlobalAveragePool.example(_global_examples)
GlobalMaxPool.example(_global_examples)


@GlobalAveragePool.relax
@wide
def _(R: Any, x: Any, layout: str = "NCHW") -> Any:
    return R.op.mean(x, list(spatial_axes(layout, rank_of(x))), keepdims=True)


@GlobalMaxPool.relax
@wide
def _(R: Any, x: Any, layout: str = "NCHW") -> Any:
    return extreme(R, x, list(spatial_axes(layout, rank_of(x))), True, greatest=True)
