"""Operators that are a few of the Graph's ops one after the other, and need no op of their own.

DFT           two products by matrices of sines and cosines       MaxUnpool    ScatterElements into zeros
STFT          Gather of overlapping frames, times a window, DFT   Col2Im       ConvTranspose by a kernel of ones and zeros
TensorScatter ScatterElements at rows from an index on            OneHot       of numbers that are whole, but floats
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from math import prod

import numpy as np

from knapper.compiler.ir import DTYPES, Array, Attr
from knapper.isa.errors import FrontendError

from .builder import Builder, Call
from .forms import form, only
from .quantized import contrib
from .tensors import dtype_of

Ints = tuple[int, ...]


# --- spectra ------------------------------------------------------------------------------------------------------------


@form("DFT", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """x[…, n, …, 1 or 2] along an axis; the last axis holds real and imaginary parts."""
    shape = b.shape(call.operand(0))
    axis = _decided_integer(b, call, "axis", 1 if call.version < 20 else -2)
    axis = axis % len(shape)
    inverse, onesided = call.integer("inverse"), call.integer("onesided")
    natural = 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    length = _decided_integer(b, call, "dft_length", natural)
    if axis == len(shape) - 1 or shape[-1] not in (1, 2):
        raise FrontendError("E206", f"DFT along axis {axis} of {b.type(call.operand(0))}")
    if length < 1:
        raise FrontendError("E206", f"DFT of {b.type(call.operand(0))} has the length {length}")
    return _dft(b, call, axis, length, bool(inverse), bool(onesided))


def _dft(
    b: Builder, call: Call, axis: int, length: int, inverse: bool, onesided: bool
) -> list[str]:
    x, shape = call.operand(0), b.shape(call.operand(0))
    if inverse and onesided:  # the other half is the mirror of the first
        return _irfft(b, call, x, axis, length)
    x = _cut(b, x, axis, length, call.loc)
    used, made = min(length, shape[axis]), length // 2 + 1 if onesided else length
    dtype = DTYPES[b.type(x).dtype]
    cos, sin = _waves(used, made, length, inverse, dtype)
    real, imaginary = _parts(b, x, call.loc)
    moved = [_last(b, v, axis, call.loc) for v in (real, *([imaginary] if imaginary else []))]
    c, s = b.constant(cos, "dft.cos"), b.constant(sin, "dft.sin")
    re = _multiplied(b, moved[0], c, call.loc)
    im = _multiplied(b, moved[0], s, call.loc)
    if imaginary:
        re = b.emit("Sub", [re, _multiplied(b, moved[1], s, call.loc)], loc=call.loc)[0]
        im = b.emit("Add", [im, _multiplied(b, moved[1], c, call.loc)], loc=call.loc)[0]
    return _joined(b, call, re, im, axis)


def _irfft(b: Builder, call: Call, x: str, axis: int, length: int) -> list[str]:
    """From the half that a onesided transform of real numbers keeps, back to the real numbers."""
    half = min(b.shape(x)[axis], length // 2 + 1)
    x = _cut(b, x, axis, half, call.loc)
    cos, sin = _waves(half, length, length, True, DTYPES[b.type(x).dtype])
    mirrored = np.full(half, 2.0)
    mirrored[0] = 1
    if length % 2 == 0 and half == length // 2 + 1:
        mirrored[-1] = 1
    real, imaginary = _parts(b, x, call.loc)
    weighted = [(a * mirrored[:, None]).astype(a.dtype) for a in (cos, sin)]
    c, s = (b.constant(a, "dft") for a in weighted)
    y = _multiplied(b, _last(b, real, axis, call.loc), c, call.loc)
    if imaginary:
        other = _multiplied(b, _last(b, imaginary, axis, call.loc), s, call.loc)
        y = b.emit("Sub", [y, other], loc=call.loc)[0]
    return _placed(b, call, y, axis)


def _cut(b: Builder, x: str, axis: int, length: int, loc: str) -> str:
    """The first elements along an axis, as many as a transform of that length takes."""
    if length >= b.shape(x)[axis]:
        return x
    span = {"starts": (0,), "ends": (length,), "axes": (axis,), "steps": (1,)}
    return b.emit("Slice", [x], span, loc=loc)[0]


def _waves(used: int, made: int, length: int, inverse: bool, dtype: Array) -> tuple[Array, Array]:
    """Matrices [used, made] of cosines and signed sines, scaled by the length if inverse."""
    turns = np.outer(np.arange(used), np.arange(made)) % length
    angle = 2 * np.pi * turns / length
    scale = 1 / length if inverse else 1
    return (
        (np.cos(angle) * scale).astype(dtype),
        (np.sin(angle) * (scale if inverse else -scale)).astype(dtype),
    )


def _parts(b: Builder, x: str, loc: str) -> tuple[str, str]:
    """Real and imaginary parts without their axis; "" for an imaginary part that is not there."""
    last = len(b.shape(x)) - 1
    found = []
    for i in range(b.shape(x)[-1]):
        span = {"starts": (i,), "ends": (i + 1,), "axes": (last,), "steps": (1,)}
        (part,) = b.emit("Slice", [x], span, loc=loc)
        found.append(b.emit("Squeeze", [part], {"axes": (last,)}, loc=loc)[0])
    return found[0], found[1] if len(found) > 1 else ""


def _order(rank: int, axis: int) -> Ints:
    """The permutation that exchanges an axis and the last one: its own inverse."""
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    return tuple(order)


def _last(b: Builder, x: str, axis: int, loc: str) -> str:
    """The axis and the last one exchanged."""
    order = _order(len(b.shape(x)), axis)
    return b.emit("Transpose", [x], {"perm": order}, loc=loc)[0] if axis != order[axis] else x


def _multiplied(b: Builder, x: str, matrix: str, loc: str) -> str:
    """Rows times a matrix: one product of two axes, whatever the rank."""
    shape = b.shape(x)
    rows = (prod(shape[:-1]), shape[-1])
    flat = x if len(shape) == 2 else b.emit("Reshape", [x], {"shape": rows}, loc=loc)[0]
    (y,) = b.emit("MatMul", [flat, matrix], loc=loc)
    final = (*shape[:-1], b.shape(y)[1])
    return y if len(shape) == 2 else b.emit("Reshape", [y], {"shape": final}, loc=loc)[0]


def _joined(b: Builder, call: Call, re: str, im: str, axis: int) -> list[str]:
    """Real and imaginary parts side by side, the axis back in its place."""
    rank = len(b.shape(re))
    columns = []
    for part in (re, im):
        back = _last(b, part, axis, call.loc)
        columns.append(b.emit("Unsqueeze", [back], {"axes": (rank,)}, loc=call.loc)[0])
    return b.emit("Concat", columns, {"axis": rank}, call.outputs, call.loc)


def _placed(b: Builder, call: Call, y: str, axis: int) -> list[str]:
    back = _last(b, y, axis, call.loc)
    rank = len(b.shape(back))
    return b.emit("Unsqueeze", [back], {"axes": (rank,)}, call.outputs, call.loc)


@form("STFT", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """signal[batch, n, 1 or 2] in frames of frame_length every frame_step, times the window: [batch, frames, bins, 2]."""
    signal, window = call.inputs["signal"], call.inputs.get("window", "")
    shape = b.shape(signal)
    length = b.shape(window)[0] if window else shape[1]
    length = _decided_integer(b, call, "frame_length", length)
    step = _decided_integer(b, call, "frame_step", 0)
    if step < 1 or not 1 <= length <= shape[1]:
        raise FrontendError("E206", f"STFT in frames of {length} every {step} of {shape[1]}")
    count = (shape[1] - length) // step + 1
    where = np.arange(count)[:, None] * step + np.arange(length)
    indices = b.constant(where.astype(np.int64), "stft.frames")
    (frames,) = b.emit("Gather", [signal, indices], {"axis": 1}, loc=call.loc)
    if window:
        (column,) = b.emit("Reshape", [window], {"shape": (length, 1)}, loc=call.loc)
        (frames,) = b.emit("Mul", [frames, column], loc=call.loc)
    framed = replace(call, inputs={"input": frames})
    return _dft(b, framed, 2, length, False, bool(call.integer("onesided", 1)))


@form("MelWeightMatrix", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """[bins, mels], triangles that are evenly spaced in mel; all of it is known when compiling."""
    mels, length, rate, low, high = (
        float(np.ravel(b.decided(call, name))[0])  # type: ignore[arg-type]  # none is optional
        for name in ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    )  # fmt: skip
    bins = int(length) // 2 + 1
    low_mel, high_mel = (2595 * np.log10(1 + f / 700) for f in (low, high))
    step = (high_mel - low_mel) / (mels + 2)
    points = np.arange(int(mels) + 2) * step + low_mel
    edges = (700 * (10 ** (points / 2595) - 1) * (length + 1) / rate).astype(np.int64)
    out = np.zeros((bins, int(mels)))
    for i in range(int(mels)):
        first, peak, last = (int(e) for e in edges[i : i + 3])
        if peak == first:
            out[peak, i] = 1
        else:
            out[first : peak + 1, i] = np.arange(peak - first + 1) / (peak - first)
        if last != peak:
            out[peak:last, i] = (last - np.arange(peak, last)) / (last - peak)
    dtype = DTYPES[dtype_of(call.integer("output_datatype", 1))]
    return [b.constant(out.astype(dtype), only(call))]


def _decided_integer(b: Builder, call: Call, name: str, default: int) -> int:
    """An integer that newer opsets pass as an operand and older ones as an attribute."""
    if name in call.attrs:
        return call.integer(name)
    a = b.decided(call, name)
    return default if a is None else int(a.ravel()[0])


# --- places -------------------------------------------------------------------------------------------------------------


@form("MaxUnpool", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """Values go back to where MaxPool found them; with an output_shape, zeros follow."""
    x, places = call.operand(0), call.operand(1)
    shape, kernel = b.shape(x), call.integers("kernel_shape")
    n = len(kernel)
    strides, pads = call.integers("strides", (1,) * n), call.integers("pads", (0,) * 2 * n)
    sizes = tuple(
        (size - 1) * s + k - p - q
        for size, s, k, p, q in zip(shape[2:], strides, kernel, pads[:n], pads[n:], strict=True)
    )
    full = (*shape[:2], *sizes)
    dtype = DTYPES[b.type(x).dtype]
    zeros = b.constant(np.zeros(prod(full), dtype), "unpooled")
    flat, where = (
        b.emit("Reshape", [v], {"shape": (prod(shape),)}, loc=call.loc)[0] for v in (x, places)
    )
    (y,) = b.emit("ScatterElements", [zeros, where, flat], {"axis": 0}, loc=call.loc)
    wanted = b.ints(call, "output_shape")
    if wanted is None or tuple(wanted) == full:
        return b.emit("Reshape", [y], {"shape": full}, call.outputs, call.loc)
    (image,) = b.emit("Reshape", [y], {"shape": full}, loc=call.loc)
    more = tuple(w - f for w, f in zip(wanted, full, strict=True))
    return b.emit("Pad", [image], {"pads": (0,) * len(full) + more}, call.outputs, call.loc)


@form("Col2Im", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """Columns [N, C · block, L] add up to an image: each column is a pixel of a transposed convolution, whose kernel only places it."""
    x, shape = call.operand(0), b.shape(call.operand(0))
    size, block = b.ints(call, "image_shape") or (), b.ints(call, "block_shape") or ()
    n, taps = len(size), prod(block)
    strides, dilations = call.integers("strides", (1,) * n), call.integers("dilations", (1,) * n)
    pads = call.integers("pads", (0,) * 2 * n)
    grid = tuple(
        (i + p + q - (k - 1) * d - 1) // s + 1
        for i, k, s, d, p, q in zip(
            size, block, strides, dilations, pads[:n], pads[n:], strict=True
        )
    )
    if shape[1] % taps or prod(grid) != shape[2]:
        raise FrontendError("E206", f"Col2Im of {b.type(x)}: expected [N, C·{taps}, {prod(grid)}]")
    channels = shape[1] // taps
    (image,) = b.emit("Reshape", [x], {"shape": (*shape[:2], *grid)}, loc=call.loc)
    dtype = DTYPES[b.type(x).dtype]
    place = np.tile(np.eye(taps, dtype=dtype).reshape(taps, 1, *block), (channels, *(1,) * (n + 1)))
    covered = [
        (g - 1) * s + (k - 1) * d + 1 - p - q
        for g, s, k, d, p, q in zip(
            grid, strides, block, dilations, pads[:n], pads[n:], strict=True
        )
    ]
    attrs: dict[str, Attr] = {
        "strides": strides, "dilations": dilations, "pads": pads, "group": channels,
        "output_padding": tuple(i - c for i, c in zip(size, covered, strict=True)),
    }  # fmt: skip
    kernel = b.constant(place, "col2im")
    return b.emit("ConvTranspose", [image, kernel], attrs, call.outputs, call.loc)


@form("OneHot")
def _(b: Builder, call: Call) -> Call:
    """Indices that are floats are whole numbers all the same."""
    indices = call.inputs["indices"]
    if not b.type(indices).dtype.startswith(("f", "bf")):
        return call
    (whole,) = b.emit("Cast", [indices], {"to": "i64"}, loc=call.loc)
    return replace(call, inputs=call.inputs | {"indices": whole})


@form("TensorScatter", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """A cache [batch, …, length, …] with the rows of `update` at an index for each batch element."""
    cache, update = call.inputs["past_cache"], call.inputs["update"]
    shape, rows = b.shape(cache), b.shape(update)
    axis = call.integer("axis", -2) % len(shape)
    start = call.inputs.get("write_indices") or b.constant(np.zeros(shape[0], np.int64), "begin")
    spread = tuple(-1 if i == 0 else 1 for i in range(len(rows)))
    (first,) = b.emit("Reshape", [start], {"shape": (shape[0], *spread[1:])}, loc=call.loc)
    ruler = np.arange(rows[axis]).reshape([-1 if i == axis else 1 for i in range(len(rows))])
    (at,) = b.emit("Add", [first, b.constant(ruler.astype(np.int64), "rows")], loc=call.loc)
    if call.attrs.get("mode", "linear") == "circular":
        (at,) = b.emit(
            "Mod", [at, b.constant(np.array(shape[axis], np.int64), "length")], loc=call.loc
        )
    (at,) = b.emit("Expand", [at], {"shape": rows}, loc=call.loc)
    return b.emit("ScatterElements", [cache, at, update], {"axis": axis}, call.outputs, call.loc)


@form("Det", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """By Laplace's rule along the first row, for matrices of up to four rows."""
    x, shape = call.operand(0), b.shape(call.operand(0))
    n = shape[-1]
    if len(shape) < 2 or shape[-2] != n or not 1 <= n <= 4:
        hint = "larger ones need pivots, which depend on data"
        raise FrontendError(
            "E203", f"Det of {b.type(x)}: served are square matrices of up to 4 rows", hint=hint
        )
    lead = len(shape) - 2

    def element(i: int, j: int) -> str:
        span = {"starts": (i, j), "ends": (i + 1, j + 1), "axes": (lead, lead + 1), "steps": (1, 1)}
        (part,) = b.emit("Slice", [x], span, loc=call.loc)
        return b.emit("Squeeze", [part], {"axes": (lead, lead + 1)}, loc=call.loc)[0]

    def minor(rows: Ints, columns: Ints) -> str:
        if len(rows) == 1:
            return element(rows[0], columns[0])
        terms = [
            b.emit(
                "Mul",
                [element(rows[0], c), minor(rows[1:], columns[:i] + columns[i + 1 :])],
                loc=call.loc,
            )[0]
            for i, c in enumerate(columns)
        ]
        signed = [(v, "Sub" if i % 2 else "Add") for i, v in enumerate(terms)]
        return reduce(
            lambda total, v: b.emit(v[1], [total, v[0]], loc=call.loc)[0], signed[1:], terms[0]
        )

    rows = tuple(range(n))
    return b.emit("Identity", [minor(rows, rows)], {}, call.outputs, call.loc)


# --- ai.onnx.ml ---------------------------------------------------------------------------------------------------------


@contrib("Binarizer", domains=("ai.onnx.ml",))
def _(b: Builder, call: Call) -> list[str]:
    x = call.operand(0)
    dtype = b.type(x).dtype
    least = b.constant(np.array(call.attrs.get("threshold", 0.0), DTYPES[dtype]), "threshold")
    (above,) = b.emit("Greater", [x, least], loc=call.loc)
    return b.emit("Cast", [above], {"to": dtype}, call.outputs, call.loc)


@contrib("ArrayFeatureExtractor", domains=("ai.onnx.ml",))
def _(b: Builder, call: Call) -> list[str]:
    """Columns of x by their numbers; a vector is a row."""
    x, columns = call.operand(0), call.operand(1)
    if len(b.shape(x)) == 1:
        (x,) = b.emit("Unsqueeze", [x], {"axes": (0,)}, loc=call.loc)
    count = (prod(b.shape(columns)),)
    (flat,) = b.emit("Reshape", [columns], {"shape": count}, loc=call.loc)
    return b.emit("Gather", [x, flat], {"axis": len(b.shape(x)) - 1}, call.outputs, call.loc)


# --- training -----------------------------------------------------------------------------------------------------------


def batch_statistics(b: Builder, call: Call) -> list[str]:
    """BatchNormalization in training mode: by the batch's own mean and variance, which move the running ones."""
    x, scale, bias, mean, variance = list(call.inputs.values())[:5]
    rank = len(b.shape(x))
    axes: Ints = (0, *range(2, rank))
    momentum = call.attrs.get("momentum", 0.9)
    over: dict[str, Attr] = {"axes": axes, "keepdims": 1}
    (centre,) = b.emit("ReduceMean", [x], over, loc=call.loc)
    (apart,) = b.emit("Sub", [x, centre], loc=call.loc)
    (square,) = b.emit("Mul", [apart, apart], loc=call.loc)
    (spread,) = b.emit("ReduceMean", [square], over, loc=call.loc)
    own = [
        b.emit("Reshape", [v], {"shape": b.shape(mean)}, loc=call.loc)[0] for v in (centre, spread)
    ]
    attrs: dict[str, Attr] = {"epsilon": float(str(call.attrs.get("epsilon", 1e-5)))}
    y = b.emit("BatchNormalization", [x, scale, bias, *own], attrs, call.outputs[:1], call.loc)
    return [
        *y,
        *(
            _moved(b, old, new, float(str(momentum)), call)
            for old, new in zip((mean, variance), own, strict=True)
        ),
    ]


def _moved(b: Builder, old: str, new: str, momentum: float, call: Call) -> str:
    """old · momentum + new · (1 - momentum)."""
    dtype = DTYPES[b.type(old).dtype]
    shares = [b.constant(np.array(m, dtype), "momentum") for m in (momentum, 1 - momentum)]
    parts = [
        b.emit("Mul", [v, m], loc=call.loc)[0] for v, m in zip((old, new), shares, strict=True)
    ]
    return b.emit("Add", parts, loc=call.loc)[0]


@form("BatchNormalization")
def _(b: Builder, call: Call) -> Call | list[str]:
    if not call.attrs.get("spatial", 1):
        hint = "export it with opset 9 or newer"
        raise FrontendError("E203", "BatchNormalization with spatial=0 is not supported", hint=hint)
    if call.attrs.get("training_mode", 0):
        return batch_statistics(b, call)
    return replace(call, outputs=call.outputs[:1])
