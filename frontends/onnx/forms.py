"""Where an ONNX operator differs from the Graph's op of that name: older opsets, and spellings that mean the same.

A form takes the Builder and a Call and gives either another Call, which the default rule (`builder.bind`) or another form
takes on, or the values of the results. The Graph's ops have the newest opset's meaning; shapes, axes and pads reach them
complete and explicit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from knapper.compiler.ir import DTYPES
from knapper.isa.errors import FrontendError

from .builder import Builder, Call, bind
from .tensors import dtype_of

Form = Callable[[Builder, Call], Call | list[str]]
FORMS: dict[str, Form] = {}
COMPLETE: set[str] = set()
"""Operators that a form imports whether or not the Graph has an op of that name."""
SIZE_LIMIT = 1 << 31
"""Elements of a tensor beyond which a model is taken for damaged."""


def form(*ops: str, needs_op: bool = True) -> Callable[[Form], Form]:
    """Register a form for operators; `needs_op=False`: it serves without a Graph op of that name."""

    def register(f: Form) -> Form:
        FORMS.update(dict.fromkeys(ops, f))
        if not needs_op:
            COMPLETE.update(ops)
        return f

    return register


def adapted(b: Builder, call: Call) -> list[str]:
    """Apply the forms until one gives values, or none is left and the default rule serves."""
    while one := FORMS.get(call.op):
        result = one(b, call)
        if isinstance(result, list):
            return result
        if result.op == call.op:
            return bind(b, result)
        call = result
    return bind(b, call)


def only(call: Call) -> str:
    """What the first result is called."""
    return call.outputs[0] if call.outputs else ""


# --- constants ----------------------------------------------------------------------------------------------------------


@form("Constant", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    if len(call.attrs) != 1:
        raise FrontendError("E209", f"Constant takes one attribute, got {len(call.attrs)}")
    ((kind, value),) = call.attrs.items()
    dtype = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}.get(
        kind
    )
    if isinstance(value, np.ndarray):
        return [b.constant(value, only(call))]
    if dtype is None:
        raise FrontendError("E202", f"a Constant of kind {kind} is not supported")
    return [b.constant(np.asarray(value, dtype), only(call))]


@form("Shape", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    shape = b.shape(call.operand(0))
    shape = shape[call.integer("start") : call.integer("end", len(shape))]
    return [b.constant(np.array(shape, np.int64), only(call))]


@form("Size", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    return [b.constant(np.array(prod(b.shape(call.operand(0))), np.int64), only(call))]


@form("ConstantOfShape", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    value = np.asarray(call.attrs.get("value", np.zeros(1, np.float32)))
    shape = b.ints(call, "input") or ()
    if value.size != 1 or any(n < 0 for n in shape) or prod(shape) > SIZE_LIMIT:
        raise FrontendError(
            "E206", f"cannot fill a tensor of shape {shape} with {value.size} values"
        )
    # Zero strides: a weight of zeros takes no memory until somebody writes it out.
    return [b.constant(np.broadcast_to(value.reshape(()), shape), only(call))]


@form("EyeLike", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    like = b.type(call.operand(0))
    dtype = DTYPES[dtype_of(call.integer("dtype")) if "dtype" in call.attrs else like.dtype]
    if like.rank != 2:
        raise FrontendError("E206", f"EyeLike takes a matrix, got {like}")
    rows, columns = like.shape
    return [b.constant(np.eye(rows, columns, call.integer("k"), dtype), only(call))]


@form("Range", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    start, limit, delta = (_number(b, call, n) for n in ("start", "limit", "delta"))
    count = max(int(np.ceil((limit - start) / delta)) if delta else 0, 0)
    if count > SIZE_LIMIT:
        raise FrontendError("E206", f"Range of {count} elements")
    return [b.constant(np.asarray(start + delta * np.arange(count), start.dtype), only(call))]


def _number(b: Builder, call: Call, formal: str) -> Any:
    a = b.decided(call, formal)
    if a is None or a.size != 1:
        raise FrontendError("E206", f"operand {formal!r} should be one number")
    return a.ravel()[0]


# --- what inference does not do -----------------------------------------------------------------------------------------


@form("Identity", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    return [call.operand(0)]


@form("OptionalGetElement", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """A tensor is an optional that is there."""
    b.type(call.operand(0))
    return [call.operand(0)]


@form("OptionalHasElement", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    return [b.constant(np.array(bool(call.operand(0))), only(call))]


@form("Dropout", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    training = b.decided(call, "training_mode")
    ratio = b.decided(call, "ratio")
    if training is not None and training.any() and (ratio is None or ratio.any()):
        raise FrontendError(
            "E203", "Dropout in training mode is not supported", hint="export for inference"
        )
    mask = np.broadcast_to(np.True_, b.shape(call.operand(0)))
    return [call.operand(0), *(b.constant(mask, o) for o in call.outputs[1:])]


@form("GroupNormalization")
def _(b: Builder, call: Call) -> Call:
    """Before opset 21 scale and bias had one element a group."""
    shape, groups = b.shape(call.operand(0)), call.integer("num_groups")
    if call.version >= 21 or len(shape) < 2 or groups < 1 or shape[1] % groups:
        return call

    def per_channel(v: str) -> str:
        if b.shape(v) != (groups,):
            raise FrontendError(
                "E206", f"scale and bias should have {groups} elements, one a group"
            )
        (column,) = b.emit("Reshape", [v], {"shape": (groups, 1)}, loc=call.loc)
        full = (groups, shape[1] // groups)
        (spread,) = b.emit("Expand", [column], {"shape": full}, loc=call.loc)
        return b.emit("Reshape", [spread], {"shape": shape[1:2]}, loc=call.loc)[0]

    x, *vectors = call.inputs.items()
    return replace(call, inputs=dict([x, *((name, per_channel(v)) for name, v in vectors)]))


# --- axes ---------------------------------------------------------------------------------------------------------------


def counted(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Axes from the front; those outside the rank stay, for the op to refuse."""
    return tuple(a % rank if -rank <= a < rank else a for a in axes)


REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


@form(*(f"Reduce{r}" for r in REDUCTIONS))
def _(b: Builder, call: Call) -> Call | list[str]:
    """Without axes all are reduced, or each element by itself."""
    axes = b.ints(call, "axes")
    if not axes and call.attrs.get("noop_with_empty_axes", 0):
        return call.now(axes=())
    rank = b.type(call.operand(0)).rank
    call = call.now(
        drop=["noop_with_empty_axes"], axes=counted(axes, rank) if axes else tuple(range(rank))
    )
    return _of_booleans(b, call) or _of_nothing(b, call) or call


def _of_booleans(b: Builder, call: Call) -> list[str] | None:
    """The greatest or least of booleans is that of bytes."""
    if call.op not in ("ReduceMax", "ReduceMin") or b.type(call.operand(0)).dtype != "bool":
        return None
    (x,) = b.emit("Cast", [call.operand(0)], {"to": "u8"}, loc=call.loc)
    bytes_ = replace(call, inputs={"data": x}, outputs=("",))
    (y,) = _of_nothing(b, bytes_) or bind(b, bytes_)
    return b.emit("Cast", [y], {"to": "bool"}, call.outputs, call.loc)


EMPTY = {"ReduceMax": -np.inf, "ReduceMin": np.inf, "ReduceLogSumExp": -np.inf}
"""What of no elements is; for integers the type's own extreme."""


def _of_nothing(b: Builder, call: Call) -> list[str] | None:
    """A reduction of no elements, where that is not for the op to say."""
    t = b.type(call.operand(0))
    axes = call.integers("axes")
    if call.op not in EMPTY or not any(t.shape[a] == 0 for a in axes if a < t.rank):
        return None
    kept = call.integer("keepdims", 1)
    shape = [1 if i in axes else n for i, n in enumerate(t.shape) if kept or i not in axes]
    dtype, value = np.dtype(DTYPES[t.dtype]), EMPTY[call.op]
    if dtype.kind in "iu":
        value = np.iinfo(dtype).min if value < 0 else np.iinfo(dtype).max
    return [b.constant(np.full(shape, value, dtype), only(call))]


@form("Squeeze")
def _(b: Builder, call: Call) -> Call:
    shape = b.shape(call.operand(0))
    axes = b.ints(call, "axes")
    if axes is None:
        axes = tuple(i for i, n in enumerate(shape) if n == 1)
    return call.now(axes=counted(axes, len(shape)))


@form("Unsqueeze")
def _(b: Builder, call: Call) -> Call:
    axes = b.ints(call, "axes") or ()
    return call.now(axes=counted(axes, b.type(call.operand(0)).rank + len(axes)))


@form("Slice")
def _(b: Builder, call: Call) -> Call:
    starts, ends = b.ints(call, "starts") or (), b.ints(call, "ends") or ()
    axes = b.ints(call, "axes") or tuple(range(len(starts)))
    steps = b.ints(call, "steps") or (1,) * len(starts)
    axes = counted(axes, b.type(call.operand(0)).rank)
    return call.now(starts=starts, ends=ends, axes=axes, steps=steps)


@form("Softmax", "LogSoftmax", "Hardmax")
def _(b: Builder, call: Call) -> Call | list[str]:
    """Before opset 13 these flattened: everything from `axis` on was one row."""
    if call.version >= 13:
        return call
    shape = b.shape(call.operand(0))
    axis = call.integer("axis", 1) % max(len(shape), 1)
    if prod(shape[axis + 1 :]) == 1:
        return call.now(axis=axis)
    rows = (prod(shape[:axis]), prod(shape[axis:]))
    (flat,) = b.emit("Reshape", [call.operand(0)], {"shape": rows}, loc=call.loc)
    (result,) = b.emit(call.op, [flat], {"axis": 1}, loc=call.loc)
    return b.emit("Reshape", [result], {"shape": shape}, call.outputs, call.loc)


# --- shapes -------------------------------------------------------------------------------------------------------------


@form("Reshape")
def _(b: Builder, call: Call) -> Call:
    old = b.shape(call.operand(0))
    new = list(b.ints(call, "shape") or ())
    if not call.attrs.get("allowzero", 0):
        new = [old[i] if n == 0 and i < len(old) else n for i, n in enumerate(new)]
    if new.count(-1) == 1 and (known := -prod(new)) > 0 and prod(old) % known == 0:
        new[new.index(-1)] = prod(old) // known
    if any(n < 0 for n in new) or prod(new) != prod(old):
        raise FrontendError("E206", f"cannot reshape {b.type(call.operand(0))} to {new}")
    return call.now(shape=tuple(new), allowzero=int(0 in new))


@form("Split")
def _(b: Builder, call: Call) -> Call:
    shape = b.shape(call.operand(0))
    (axis,) = counted((call.integer("axis"),), len(shape))
    size = shape[axis] if axis in range(len(shape)) else 0
    sizes = b.ints(call, "split")
    if sizes is None:
        parts = call.integer("num_outputs", len(call.outputs))
        chunk = -(-size // parts) if parts > 0 else size
        sizes = tuple(min(chunk, size - at) for at in range(0, size, chunk)) if chunk else ()
    return call.now(drop=["num_outputs"], split=sizes, axis=axis)


@form("Pad")
def _(b: Builder, call: Call) -> Call:
    """Pads for every axis, begins before ends."""
    rank = len(b.shape(call.operand(0)))
    pads = b.ints(call, "pads") or ()
    axes = b.ints(call, "axes") or tuple(range(rank))
    if len(pads) != 2 * len(axes) or any(not -rank <= a < rank for a in axes):
        raise FrontendError(
            "E206", f"{len(pads)} pads for {len(axes)} axes of a tensor of rank {rank}"
        )
    full = [0] * (2 * rank)
    for i, a in enumerate(axes):
        full[a % rank], full[rank + a % rank] = pads[i], pads[len(axes) + i]
    value = b.decided(call, "constant_value")
    if value is not None:
        call = call.now(drop=["constant_value"], value=value)
    return call.now(drop=["axes"], pads=tuple(full))


@form("Clip")
def _(b: Builder, call: Call) -> Call | list[str]:
    """Bounds that are computed make it Max and Min."""
    bounds = [call.inputs.get(n, "") for n in ("min", "max")]
    if all(v in b.known for v in bounds if v):
        return call
    value = call.operand(0)
    for op, bound in zip(("Max", "Min"), bounds, strict=True):
        if bound:
            (value,) = b.emit(op, [value, bound], {}, call.outputs, call.loc)
    return [value]


@form("Upsample", needs_op=False)
def _(b: Builder, call: Call) -> Call:
    """Resize as it was before it had coordinate modes."""
    return call.now("Resize", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@form("Resize")
def _(b: Builder, call: Call) -> Call:
    shape = b.shape(call.operand(0))
    if call.version < 11 and call.op == "Resize":
        call = call.now(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    axes = call.integers("axes", range(len(shape)))
    scales = call.attrs.get("scales") or b.decided(call, "scales")
    sizes = b.ints(call, "sizes")
    if call.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        call = call.now(roi=_whole_roi(b, call, axes, len(shape)))
    else:
        call = call.now(drop=["roi"])
    drop = ["axes", "keep_aspect_ratio_policy"]
    if sizes:
        sizes = _kept_aspect(call, shape, axes, sizes)
        full = [
            dict(zip((a % len(shape) for a in axes), sizes, strict=False)).get(i, n)
            for i, n in enumerate(shape)
        ]
        return call.now(drop=[*drop, "scales"], sizes=tuple(full))
    factors = dict(
        zip(
            (a % len(shape) for a in axes), np.ravel(() if scales is None else scales), strict=False
        )
    )
    return call.now(
        drop=[*drop, "sizes"], scales=tuple(float(factors.get(i, 1)) for i in range(len(shape)))
    )


def _whole_roi(b: Builder, call: Call, axes: tuple[int, ...], rank: int) -> tuple[float, ...]:
    """The region of interest for every axis, starts before ends: all of those that it does not name."""
    given = b.decided(call, "roi")
    values = [] if given is None else given.ravel().tolist()
    starts, ends = [0.0] * rank, [1.0] * rank
    for a, start, end in zip(counted(axes, rank), values, values[len(axes) :], strict=False):
        starts[a], ends[a] = start, end
    return tuple(starts + ends)


def _kept_aspect(
    call: Call, shape: tuple[int, ...], axes: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[int, ...]:
    """The sizes that an aspect ratio policy makes of those asked for."""
    policy = call.attrs.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return sizes
    factors = [n / shape[a] for n, a in zip(sizes, axes, strict=False)]
    factor = min(factors) if policy == "not_larger" else max(factors)
    return tuple(int(np.floor(factor * shape[a] + 0.5)) for a in axes)


# --- windows ------------------------------------------------------------------------------------------------------------


def explicit_window(b: Builder, call: Call) -> Call:
    """Explicit strides, dilations and pads; `kernel_shape` of a convolution is its weight's."""
    image = b.shape(call.operand(0))[2:]
    call, kernel = _kernel(b, call, len(image))
    strides = call.integers("strides", (1,) * len(image))
    dilations = call.integers("dilations", (1,) * len(image))
    pads = call.integers("pads", (0,) * (2 * len(image)))
    mode = call.attrs.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        lost = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, s, k, d in zip(image, strides, kernel, dilations, strict=True)
        ]
        pads = _shared(lost, more_first=mode == "SAME_LOWER")
    elif mode == "VALID":
        pads = (0,) * (2 * len(image))
    return call.now(drop=["auto_pad"], strides=strides, dilations=dilations, pads=pads)


form("Conv", "MaxPool", "AveragePool", "LpPool")(explicit_window)


@form("ConvTranspose")
def _(b: Builder, call: Call) -> Call:
    """`output_shape` and `auto_pad` are two ways to say the pads; the second never makes the result larger."""
    image = b.shape(call.operand(0))[2:]
    call, kernel = _kernel(b, call, len(image))
    ones, zeros = (1,) * len(image), (0,) * len(image)
    strides, dilations = call.integers("strides", ones), call.integers("dilations", ones)
    extra = call.integers("output_padding", zeros)
    mode = call.attrs.get("auto_pad", "NOTSET")
    target = call.integers("output_shape")[-len(image) :]
    same = not target and mode in ("SAME_UPPER", "SAME_LOWER")
    if same:
        target = tuple(n * s for n, s in zip(image, strides, strict=True))
    pads = call.integers("pads", zeros * 2)
    if target:
        full = [
            s * (n - 1) + e + (k - 1) * d + 1
            for n, s, e, k, d in zip(image, strides, extra, kernel, dilations, strict=True)
        ]
        lost = [max(f - t, 0) if same else f - t for f, t in zip(full, target, strict=True)]
        pads = _shared(lost, more_first=mode != "SAME_UPPER")
    drop = ["auto_pad", "output_shape"]
    return call.now(
        drop=drop, strides=strides, dilations=dilations, output_padding=extra, pads=pads
    )


def _kernel(b: Builder, call: Call, rank: int) -> tuple[Call, tuple[int, ...]]:
    """The window's size, and the call without `kernel_shape` if its op does not ask for it."""
    given = call.integers("kernel_shape")
    if call.op.endswith("Pool"):
        kernel = given
    else:
        kernel = b.shape(call.operand(3 if call.op == "QLinearConv" else 1))[2:]
        call = call.now(drop=["kernel_shape"])
    if len(kernel) != rank or (given and given != kernel):
        raise FrontendError(
            "E206", f"kernel_shape {given} does not fit a window over {rank} axes of {kernel}"
        )
    return call, kernel


def _shared(lost: list[int], *, more_first: bool) -> tuple[int, ...]:
    """Padding split between begin and end; the odd one goes first or last."""
    small, large = [n // 2 for n in lost], [n - n // 2 for n in lost]
    return tuple(large + small if more_first else small + large)


# --- detectors ----------------------------------------------------------------------------------------------------------


@form("NonMaxSuppression")
def _(b: Builder, call: Call) -> list[str]:
    """The Graph's op has a second result: how many rows of the first are meant. Rows that are known now are cut here."""
    if call.loc in b.limits:
        call = call.now(max_output_boxes_per_class=b.limits[call.loc])
    rows, number = bind(b, replace(call, outputs=(only(call), f"{only(call)}.rows")))
    if rows not in b.known:
        return [rows]
    return [b.constant(b.known[rows][: int(b.known[number])], only(call))]


@form("RoiAlign")
def _(b: Builder, call: Call) -> Call:
    """Before opset 16 it had no attribute for the half pixel that newer ones shift by."""
    if call.version >= 16:
        return call
    return call.now(coordinate_transformation_mode="output_half_pixel")


# --- names --------------------------------------------------------------------------------------------------------------


@form("Scatter", needs_op=False)
def _(b: Builder, call: Call) -> Call:
    return call.now("ScatterElements")
