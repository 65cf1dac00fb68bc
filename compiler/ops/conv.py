"""Convolutions of 1 to 3 spatial axes, channels first or last.

The reference walks K in the contract's order, one fma a step, the padding being zeros that multiply like any other:

    for tap in taps (row-major):            acc[n, y, x, g, o] = fma(X[n, y·s + i·d - p, x·s + j·d - p, g, c],
        for c in channels of the group:                              W[i, j, c, g, o], acc)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import DTYPES, Array, Attr, Type, infer, op, require
from .elementwise import Example, Rng, draw
from .linear import accumulating, product_type, stored
from .lowering import emit, rank_of
from .numeric import accumulate, accumulator, finish
from .shapes import INTEGERS, channel_axis, image, image_shape, per_axis, window_sizes

Ints = tuple[int, ...]


def weight_parts(w: Type | Array, layout: str) -> tuple[Ints, int, int]:
    """(kernel sizes, channels of a group, output channels) of OI… or …IO weights."""
    s = tuple(w.shape)
    return (s[2:], s[1], s[0]) if layout == "NCHW" else (s[:-2], s[-2], s[-1])


@op
def Conv(
    x: Type,
    w: Type,
    b: Type | None = None,
    *,
    strides: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    group: int = 1,
    layout: str = "NCHW",
    out: str = "",
    pad_value: int = 0,
) -> Type:
    """Convolution of x[N,C,…] by w[O,C/group,…] plus b[O]; "NHWC": x[N,…,C], w[…,C/group,O].

    `pads` are begins then ends. `out` is the result's dtype, as in MatMul. b may be f32 beside narrower operands. `pad_value` is
    what lies around an image of integers: its zero point.
    """
    sizes = image("Conv", x, layout)
    dtype = product_type("Conv", x, w, out)
    info = np.iinfo(DTYPES[x.dtype]) if x.dtype in INTEGERS else None
    require(
        pad_value == 0 or (info is not None and info.min <= pad_value <= info.max),
        f"Conv: pad_value {pad_value} around {x}",
        "only integers are padded by a number, one of theirs",
    )
    require(w.rank == x.rank, f"Conv: x is {x} but the weights are {w}: ranks differ")
    kernel, per_group, o = weight_parts(w, layout)
    c, n = x.shape[channel_axis(layout, x.rank)], len(sizes)
    require(
        group >= 1 and c == per_group * group,
        f"Conv: {x} has {c} channels, weights {w} with group={group} take {per_group * group}",
    )
    require(o % group == 0, f"Conv: {o} output channels do not divide into {group} groups")
    require(b is None or b.shape == (o,), f"Conv: bias is {b}, expected [{o}]")
    out_sizes = window_sizes(
        "Conv",
        sizes,
        kernel,
        per_axis("Conv", "strides", strides, 1, n),
        per_axis("Conv", "pads", pads, 0, 2 * n),
        per_axis("Conv", "dilations", dilations, 1, n),
    )
    return Type(dtype, image_shape(layout, x.shape[0], out_sizes, o))


def _walk(
    out: Sequence[int], kernel: Ints, strides: Ints, dilations: Ints
) -> Callable[[Array, Array], Iterator[tuple[Array, Array]]]:
    """K order over x[N,…,g,C/g] (padded) and w[…,C/g,g,O/g]: operands that broadcast to [N,…,g,O/g]."""

    def pairs(x: Array, w: Array) -> Iterator[tuple[Array, Array]]:
        for tap in np.ndindex(*kernel):
            window = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, s, n in zip(tap, dilations, strides, out, strict=True)
            )
            pixels = x[(slice(None), *window)]
            for c in range(x.shape[-1]):
                yield pixels[..., c, None], w[(*tap, c)]

    return pairs


def convolve(
    x: Array, w: Array, strides: Ints, pads: Ints, dilations: Ints, group: int, around: int = 0
) -> Array:
    """The accumulator [N,…,O] of x[N,…,C] by w[…,C/group,O]; `around` it lies that number."""
    n, kernel = x.ndim - 2, w.shape[:-2]
    strides, dilations, pads = strides or (1,) * n, dilations or (1,) * n, pads or (0,) * 2 * n
    out = window_sizes("Conv", x.shape[1:-1], kernel, strides, pads, dilations)
    edges = [(0, 0), *zip(pads[:n], pads[n:], strict=True), (0, 0)]
    padded = np.pad(x, edges, constant_values=around)
    grouped = padded.reshape(*padded.shape[:-1], group, -1)
    weights = w.reshape(*w.shape[:-1], group, -1)
    shape = (x.shape[0], *out, group, w.shape[-1] // group)
    acc = accumulate(shape, grouped, weights, _walk(out, kernel, strides, dilations))
    return acc.reshape(*shape[:-2], -1)


def to_channels_last(x: Array) -> Array:
    """[N,C,…] → [N,…,C]."""
    return np.moveaxis(x, 1, -1)


@Conv.reference
def _(
    x: Array,
    w: Array,
    b: Array | None = None,
    strides: Ints = (),
    pads: Ints = (),
    dilations: Ints = (),
    group: int = 1,
    layout: str = "NCHW",
    out: str = "",
    pad_value: int = 0,
) -> Array:
    first = layout == "NCHW"
    if first:
        x, w = to_channels_last(x), np.moveaxis(w, (0, 1), (-1, -2))
    y = finish(convolve(x, w, strides, pads, dilations, group, pad_value), b, out, x.dtype)
    return np.moveaxis(y, -1, 1) if first else y


def relax_convolution(R: Any, x: Any, w: Any, layout: str, **attrs: Any) -> Any:
    """The Relax convolution of the operands' rank."""
    n = rank_of(x) - 2
    axes = {1: "W", 2: "HW", 3: "DHW"}[n]
    data, kernel = (f"NC{axes}", f"OI{axes}") if layout == "NCHW" else (f"N{axes}C", f"{axes}IO")
    f = {1: R.op.nn.conv1d, 2: R.op.nn.conv2d, 3: R.op.nn.conv3d}[n]
    return f(x, w, data_layout=data, kernel_layout=kernel, **attrs)


@Conv.relax
def _(
    R: Any,
    x: Any,
    w: Any,
    b: Any = None,
    strides: Ints = (),
    pads: Ints = (),
    dilations: Ints = (),
    group: int = 1,
    layout: str = "NCHW",
    out: str = "",
    pad_value: int = 0,
) -> Any:
    n = rank_of(x) - 2
    wide_x, wide_w = accumulating(R, x), accumulating(R, w)
    if pad_value and pads:
        edges = [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)]
        edges = edges if layout == "NCHW" else [edges[0], *edges[2:], edges[1]]
        wide_x = emit(R, R.op.nn.pad(wide_x, [k for e in edges for k in e], pad_value=pad_value))
        pads = ()
    attrs = {
        "strides": strides or (1,) * n,
        "padding": pads or (0,) * 2 * n,
        "dilation": dilations or (1,) * n,
    }
    y = relax_convolution(R, wide_x, wide_w, layout, groups=group, **attrs)
    if b is not None:
        shape = (-1, *(1,) * n) if layout == "NCHW" else (-1,)
        y = R.op.add(y, R.op.reshape(accumulating(R, b), shape))
    return stored(R, y, out, x)


@Conv.example
def _(rng: Rng) -> Iterator[Example]:
    def xwb(x: Ints, w: Ints, d: str = "f32") -> list[Array | None]:
        return [draw(rng, x, d), draw(rng, w, d), draw(rng, w[:1] if w[0] > w[-1] else w[-1:], d)]

    yield xwb((2, 3, 7, 6), (4, 3, 3, 3)), {"strides": (2, 1), "pads": (1, 0, 1, 2)}
    yield xwb((2, 3, 7, 6), (4, 3, 3, 3))[:2], {"dilations": (2, 2), "pads": (2, 2, 2, 2)}
    yield xwb((1, 6, 5, 5), (9, 2, 3, 3), "f16"), {"group": 3, "out": "f32"}
    yield xwb((1, 6, 5, 5), (6, 1, 3, 3), "f16"), {"group": 6, "pads": (1, 1, 1, 1)}
    yield xwb((2, 7, 6, 3), (3, 3, 3, 4)), {"layout": "NHWC", "strides": (2, 2)}
    yield (
        xwb((1, 5, 5, 6), (3, 3, 1, 6), "f16"),
        {"layout": "NHWC", "group": 6, "pads": (1, 1, 1, 1)},
    )
    yield xwb((1, 5, 5, 4), (1, 1, 2, 6)), {"layout": "NHWC", "group": 2}
    yield xwb((2, 4, 9), (5, 4, 3)), {"strides": (2,), "pads": (1, 1)}
    yield xwb((2, 9, 4), (3, 4, 5)), {"layout": "NHWC", "pads": (1, 1)}
    yield xwb((1, 2, 4, 5, 6), (3, 2, 2, 3, 1)), {"pads": (0, 1, 0, 0, 1, 0)}
    yield xwb((1, 4, 5, 6, 2), (2, 3, 1, 2, 3)), {"layout": "NHWC"}
    yield xwb((1, 2, 4, 4), (3, 2, 2, 2), "bf16"), {}
    around = {"out": "i32", "pads": (1, 0, 2, 1), "pad_value": 77}
    bytes_ = [draw(rng, (2, 4, 5, 6), "u8", 0, 255), draw(rng, (4, 2, 3, 2), "i8", -128, 127)]
    (x, w), b = bytes_, draw(rng, (4,), "i32", -9999, 9999)
    yield [x, w, b], {**around, "group": 2}
    images, taps = np.moveaxis(x, 1, -1).copy(), np.moveaxis(w, (0, 1), (-1, -2)).copy()
    yield [images, taps, b], {**around, "group": 2, "layout": "NHWC"}


@op
def ConvTranspose(
    x: Type,
    w: Type,
    b: Type | None = None,
    *,
    strides: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    output_padding: tuple[int, ...] = (),
    group: int = 1,
) -> Type:
    """Transposed convolution of x[N,C,…] by w[C,O/group,…] plus b[O].

    Outputs that lie a stride apart are a Conv of stride 1 by the taps that meet pixels there (`phases`), and that is its K order:
    (tap row, tap column, channel), taps in the order of the pixels that they meet. No zeros are put between pixels.
    """
    sizes = image("ConvTranspose", x, "NCHW")
    dtype, n = product_type("ConvTranspose", x, w, ""), len(sizes)
    require(w.rank == x.rank, f"ConvTranspose: x is {x} but the weights are {w}: ranks differ")
    c, o = x.shape[1], w.shape[1] * group
    require(
        w.shape[0] == c and c % group == 0,
        f"ConvTranspose: {x} by {w} with group={group}: channels do not fit",
    )
    require(b is None or b.shape == (o,), f"ConvTranspose: bias is {b}, expected [{o}]")
    s, extra = (
        per_axis("ConvTranspose", "strides", strides, 1, n),
        per_axis("ConvTranspose", "output_padding", output_padding, 0, n),
    )
    d, p = (
        per_axis("ConvTranspose", "dilations", dilations, 1, n),
        per_axis("ConvTranspose", "pads", pads, 0, 2 * n),
    )
    out = [
        s[i] * (sizes[i] - 1) + extra[i] + d[i] * (w.shape[2 + i] - 1) + 1 - p[i] - p[n + i]
        for i in range(n)
    ]
    require(min(out) >= 1, f"ConvTranspose: pads {p} leave nothing of sizes {sizes}")
    return Type(dtype, (x.shape[0], o, *out))


@dataclass(frozen=True)
class Phase:
    """What outputs r, r + stride, … of an axis are: a Conv of stride 1 by every so-manieth tap."""

    taps: Ints
    """Of the weights, in the order of the pixels that they meet; none: no pixel is met."""
    dilation: int = 1
    begin: int = 0
    end: int = 0
    """Pads; negative ones crop."""


def phases(size: int, taps: int, stride: int, dilation: int, begin: int, out: int) -> list[Phase]:
    """The phases r = 0 … stride-1 of an axis of a ConvTranspose, each of ceil(out / stride) outputs.

    Output o meets pixel i through tap t where o + begin = i·stride + t·dilation, so that the taps of a phase are those with
    t·dilation ≡ r + begin modulo stride.

    >>> phases(4, 3, 2, 1, 1, 8)
    [Phase(taps=(1,), dilation=1, begin=0, end=0), Phase(taps=(2, 0), dilation=1, begin=0, end=1)]
    """
    return [
        _phase(size, taps, stride, dilation, r + begin, -(-out // stride)) if r < out else Phase(())
        for r in range(stride)
    ]


def _phase(size: int, taps: int, stride: int, dilation: int, offset: int, outputs: int) -> Phase:
    """The phase whose first output o has o + begin = offset."""
    common = math.gcd(dilation, stride)
    every = stride // common
    if offset % common:
        return Phase(())
    first = offset // common * pow(dilation // common, -1, every) % every
    met = range(first, taps, every)
    if not met:
        return Phase(())
    low = (offset - met[-1] * dilation) // stride
    high = (offset - met[0] * dilation) // stride + outputs - 1
    if low >= size or high < 0:
        return Phase(())
    return Phase(tuple(reversed(met)), dilation // common, -low, high - size + 1)


def phase_axes(
    x: Sequence[int],
    kernel: Sequence[int],
    strides: Ints,
    pads: Ints,
    dilations: Ints,
    out: Sequence[int],
) -> list[list[Phase]]:
    """The phases of each spatial axis: sizes x, `kernel` and `out`, attributes as in ConvTranspose, absent ones empty."""
    n = len(kernel)
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    begins = pads[:n] or (0,) * n
    return [phases(*axis) for axis in zip(x, kernel, strides, dilations, begins, out, strict=True)]


def _crop(x: Array, pads: Ints) -> tuple[Array, Ints]:
    """Cut what negative pads cut; gives the pads that are left."""
    n = len(pads) // 2
    keep = tuple(slice(max(0, -pads[i]), x.shape[1 + i] + min(0, pads[n + i])) for i in range(n))
    return x[(slice(None), *keep)], tuple(max(0, p) for p in pads)


def _by_group(w: Array, group: int) -> Array:
    """w[C,O/g,…] as […,C/g,O], the output channels of a group together."""
    c, per_group, *kernel = w.shape
    parts = w.reshape(group, c // group, per_group, *kernel)
    return np.moveaxis(parts, (1, 0, 2), (-3, -2, -1)).reshape(
        *kernel, c // group, group * per_group
    )


@ConvTranspose.reference
def _(
    x: Array,
    w: Array,
    b: Array | None = None,
    strides: Ints = (),
    pads: Ints = (),
    dilations: Ints = (),
    output_padding: Ints = (),
    group: int = 1,
) -> Array:
    attrs: dict[str, Attr] = {"strides": strides, "pads": pads, "dilations": dilations}
    attrs |= {"output_padding": output_padding, "group": group}
    images, channels, *out = infer("ConvTranspose", [Type.of(x), Type.of(w)], attrs)[0].shape
    axes = phase_axes(x.shape[2:], w.shape[2:], strides, pads, dilations, out)
    whole = [-(-n // len(axis)) * len(axis) for n, axis in zip(out, axes, strict=True)]
    acc = np.zeros((images, *whole, channels), accumulator(x.dtype))
    image, weights = to_channels_last(x), _by_group(w, group)
    for r in np.ndindex(*map(len, axes)):
        ps = [axis[i] for axis, i in zip(axes, r, strict=True)]
        if all(p.taps for p in ps):
            part, rest = _crop(image, (*(p.begin for p in ps), *(p.end for p in ps)))
            taps = weights[np.ix_(*(p.taps for p in ps))]
            places = (slice(i, None, len(axis)) for i, axis in zip(r, axes, strict=True))
            acc[(slice(None), *places)] = convolve(
                part, taps, (), rest, tuple(p.dilation for p in ps), group
            )
    made = acc[(slice(None), *map(slice, out))]
    return np.moveaxis(finish(made, b, "", x.dtype), -1, 1)


@ConvTranspose.example
def _(rng: Rng) -> Iterator[Example]:
    yield (
        [draw(rng, (1, 3, 4, 5), "f32"), draw(rng, (3, 2, 3, 3), "f32"), draw(rng, (2,), "f32")],
        {"strides": (2, 2), "pads": (1, 1, 1, 1)},
    )
    yield (
        [draw(rng, (2, 4, 3, 3), "f16"), draw(rng, (4, 3, 2, 2), "f16")],
        {"strides": (2, 2), "group": 2},
    )
    yield (
        [draw(rng, (1, 2, 4, 4), "f32"), draw(rng, (2, 2, 3, 3), "f32")],
        {"dilations": (2, 1), "strides": (3, 2), "output_padding": (1, 1)},
    )
    yield [draw(rng, (1, 2, 4, 4), "f32"), draw(rng, (2, 2, 2, 2), "f32")], {"pads": (2, 1, 0, 3)}
    yield (
        [draw(rng, (1, 2, 3, 4), "f16"), draw(rng, (2, 2, 2, 1), "f16"), draw(rng, (2,), "f16")],
        {"strides": (3, 2), "pads": (4, 0, 0, 1)},
    )
    yield (
        [draw(rng, (2, 3, 6), "f32"), draw(rng, (3, 2, 4), "f32")],
        {"strides": (2,), "pads": (1, 1)},
    )
