"""The matrix that a convolution multiplies by its weights, as a tensor in memory.

    x [N,H,W,C], 3×3 taps   ──►   [N,OH,OW,9·C]   a row for each pixel of the result: all that its window covers

Columns are in the contract's order of k, so that a MatMul of the rows has the bits of the convolution:

    channel_first   (group, tap row, tap column, channel)      what lies under one tap is a strided view of the image
    channel_last    (group, channel, tap row, tap column)      the order of im2col over planes; another chain, other last bits
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..ir import Array, Type, op, require
from .elementwise import Example, Rng, draw
from .lowering import rank_of, shape_of, te
from .pooling import Window
from .shapes import image

Ints = tuple[int, ...]
ORDERS = ("channel_first", "channel_last")


def _window(x: tuple[int, ...], kernel: Ints, strides: Ints, pads: Ints, dilations: Ints) -> Window:
    return Window("Im2col", x[1:-1], kernel, strides, pads, dilations, 0)


@op
def Im2col(
    x: Type,
    *,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    group: int = 1,
    order: str = "channel_first",
) -> Type:
    """The pixels of x[N,…,C] under every tap of a window, side by side: [N,…out,taps·C]; zeros in the padding.

    Columns are (group, taps row-major, channel), or (group, channel, taps) in the order "channel_last".
    """
    image("Im2col", x, "NHWC")
    require(order in ORDERS, f"Im2col: order {order!r}, expected {' or '.join(ORDERS)}")
    channels = x.shape[-1]
    require(
        group >= 1 and channels % group == 0,
        f"Im2col: {channels} channels of {x} do not divide into {group} groups",
    )
    w = _window(x.shape, kernel_shape, strides, pads, dilations)
    return Type(x.dtype, (x.shape[0], *w.out, math.prod(kernel_shape) * channels))


@Im2col.reference
def _(
    x: Array,
    kernel_shape: Ints,
    strides: Ints = (),
    pads: Ints = (),
    dilations: Ints = (),
    group: int = 1,
    order: str = "channel_first",
) -> Array:
    w = _window(x.shape, kernel_shape, strides, pads, dilations)
    taps = np.stack([*w.taps(x, 0)], -2)
    parts = taps.reshape(*taps.shape[:-1], group, x.shape[-1] // group)
    turned = np.moveaxis(parts, -3, -2 if order == "channel_first" else -1)
    return np.ascontiguousarray(turned.reshape(x.shape[0], *w.out, taps.shape[-2] * x.shape[-1]))


def _place(column: Any, kernel: Ints, per_group: int, order: str) -> tuple[list[Any], Any]:
    """The tap and the channel of x that a column is about."""
    taps = math.prod(kernel)
    group, rest = column // (taps * per_group), column % (taps * per_group)
    if order == "channel_first":
        tap, channel = rest // per_group, rest % per_group
    else:
        tap, channel = rest % taps, rest // taps
    behind = [math.prod(kernel[i + 1 :]) for i in range(len(kernel))]
    return [tap // b % k for b, k in zip(behind, kernel, strict=True)], group * per_group + channel


@Im2col.relax
def _(
    R: Any,
    x: Any,
    kernel_shape: Ints,
    strides: Ints = (),
    pads: Ints = (),
    dilations: Ints = (),
    group: int = 1,
    order: str = "channel_first",
) -> Any:
    n, shape = rank_of(x) - 2, shape_of(x)
    w = _window(shape, kernel_shape, strides, pads, dilations)
    columns = math.prod(kernel_shape) * shape[-1]

    def compute(t: Any) -> Any:
        from tvm import te as tensor
        from tvm import tirx

        def element(image: Any, *out: Any) -> Any:
            tap, channel = _place(out[n], kernel_shape, shape[-1] // group, order)
            at = [out[i] * w.strides[i] + tap[i] * w.dilations[i] - w.pads[i] for i in range(n)]
            value = t[(image, *at, channel)]
            if not any(w.pads):
                return value
            inside = [tirx.all(a >= 0, a < size) for a, size in zip(at, w.sizes, strict=True)]
            return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, t.dtype))

        return tensor.compute((shape[0], *w.out, columns), element, "im2col")

    return te(R, compute, x)


@Im2col.example
def _(rng: Rng) -> Iterator[Example]:
    yield (
        [draw(rng, (2, 7, 6, 3), "f16")],
        {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 2)},
    )
    yield (
        [draw(rng, (1, 6, 5, 4), "f32")],
        {"kernel_shape": (2, 3), "dilations": (2, 1), "group": 2},
    )
    yield (
        [draw(rng, (1, 5, 5, 4), "f32")],
        {"kernel_shape": (3, 3), "group": 4, "pads": (1, 1, 1, 1), "order": "channel_last"},
    )
    yield [draw(rng, (2, 9, 5), "bf16")], {"kernel_shape": (4,), "strides": (3,)}
    yield [draw(rng, (1, 3, 4, 5, 2), "f32")], {"kernel_shape": (2, 3, 1), "pads": (0, 1, 0) * 2}
    yield [draw(rng, (1, 4, 4, 3), "i8", -9, 9)], {"kernel_shape": (2, 2)}
