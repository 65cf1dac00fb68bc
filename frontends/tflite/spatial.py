"""Convolutions, pools, resizing: images with channels last, weights with output channels first (depthwise: last).

TFLite's padding SAME takes ceil(n / stride) places, and puts the odd pixel of padding behind: ONNX's SAME_UPPER, written out where sizes are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from knapper.isa.errors import FrontendError

from .convert import Call, converts
from .elementwise import activated
from .file import enumerated

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)
"""Axes of an image: to channels first, and back."""
C_SAME = 1
"""kTfLitePaddingSame, in options that are a struct of C."""


def pads(call: Call, i: int, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int] = (1, 1, 1)) -> dict[str, Any]:  # fmt: skip
    """ONNX's attributes for TFLite's padding of operand i."""
    if (padding := call.named("Padding", "padding")) == "VALID":
        return {}
    axes = range(1, 1 + len(kernel))
    if not call.known(i, *axes):
        return {"auto_pad": f"{padding}_UPPER"}
    before, after = [], []
    for axis, k, s, d in zip(axes, kernel, strides, dilations, strict=False):
        n = call.shape(i)[axis]
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return {"pads": before + after} if any(before + after) else {}


def positive(*values: int) -> list[int]:
    """FrontendError E206 for strides, sizes or dilations that are none."""
    if min(values) < 1:
        raise FrontendError("E206", f"a stride, size or dilation of {min(values)}")
    return [int(v) for v in values]


def bias(call: Call, i: int, x: int, w: int) -> str:
    """A bias in what it stands for: integers of it are in steps of x's scale times w's, whatever else is said of them."""
    if not call.has(i):
        return ""
    sx, sw = call.tensor(x).scales, call.tensor(w).scales
    t = call.tensor(i)
    if t.type not in ("INT32", "INT64") or sx is None or sw is None:
        return call.real(i)
    scale = np.asarray(sx.scale * sw.scale, np.float32)
    if t.type == "INT64":
        real = call.array(i).astype(np.float64) * scale
        return call.constant(real.astype(np.float32), "bias")
    many = scale.size > 1
    step = call.constant(scale if many else scale.reshape(()), "scale")
    along = {"axis": 0} if many else {}
    return call.node("DequantizeLinear", call.stored(i), step, **along)


def image_rank(call: Call, i: int, rank: int) -> None:
    """FrontendError E206 for an operand of another number of axes."""
    if call.rank(i) != rank:
        raise FrontendError("E206", f"operand {i} has {call.rank(i)} axes, not {rank}")


def _convolution(call: Call, w: str, kernel: Sequence[int], group: int) -> None:
    strides = positive(call.option("strideH"), call.option("strideW"))
    dilations = positive(call.option("dilationHFactor", 1), call.option("dilationWFactor", 1))
    attrs = pads(call, 0, kernel, strides, dilations)
    operands = [call.real(0, FIRST), w, bias(call, 2, 0, 1)]
    y = call.node(
        "Conv", *operands[: 3 if operands[2] else 2],
        strides=strides, dilations=dilations, group=group, **attrs,
    )  # fmt: skip
    call.give(activated(call, y), perm=LAST)


@converts("CONV_2D")
def _(call: Call) -> None:
    image_rank(call, 0, 4)
    image_rank(call, 1, 4)
    _, *kernel, channels = call.shape(1)
    every = call.shape(0)[3]
    if channels < 1 or every % channels:
        raise FrontendError("E206", f"weights of {channels} channels for an image of {every}")
    _convolution(call, call.real(1, FIRST), kernel, every // channels)


@converts("DEPTHWISE_CONV_2D")
def _(call: Call) -> None:
    image_rank(call, 0, 4)
    image_rank(call, 1, 4)
    group = call.shape(0)[3]
    if group < 1 or call.shape(1)[3] % group or call.shape(1)[0] != 1:
        raise FrontendError(
            "E206", f"weights {list(call.shape(1))} for an image of {group} channels"
        )
    _convolution(call, call.real(1, (3, 0, 1, 2)), call.shape(1)[1:3], group)


@converts("CONV_3D")
def _(call: Call) -> None:
    image_rank(call, 0, 5)
    image_rank(call, 1, 5)
    strides = positive(*(call.option(f"stride{a}") for a in "DHW"))
    dilations = positive(*(call.option(f"dilation{a}Factor", 1) for a in "DHW"))
    attrs = pads(call, 0, call.shape(1)[:3], strides, dilations)
    operands = [call.real(0, (0, 4, 1, 2, 3)), call.real(1, (4, 3, 0, 1, 2)), bias(call, 2, 0, 1)]
    operands = operands[: 3 if operands[2] else 2]
    y = call.node("Conv", *operands, strides=strides, dilations=dilations, **attrs)
    call.give(activated(call, y), perm=(0, 2, 3, 4, 1))


@converts("TRANSPOSE_CONV")
def _(call: Call) -> None:
    strides = positive(call.option("strideH"), call.option("strideW"))
    _transposed(call, (2, 1, 3), strides, same=call.named("Padding", "padding") == "SAME")


@converts("Convolution2DTransposeBias")
def _(call: Call) -> None:
    """MediaPipe's: its options are a struct of C, (padding, stride of columns, stride of rows)."""
    if len(call.op.blob) < 12:
        raise FrontendError("E206", "has no options", hint="is the file damaged?")
    padding, across, down = map(int, np.frombuffer(call.op.blob, np.int32, 3))
    _transposed(call, (0, 1, 2), positive(down, across), same=padding == C_SAME)


def _transposed(
    call: Call, operands: tuple[int, int, int], strides: Sequence[int], *, same: bool
) -> None:
    """The result's size says how much is cut off: half of it before, the odd one behind."""
    x, w, b = operands
    image_rank(call, x, 4)
    image_rank(call, w, 4)
    size, source = call.result().shape[1:3], call.shape(x)[1:3]
    if len(call.result().shape) != 4 or not call.known(x, 1, 2):
        raise FrontendError("E204", "the size of the result is open")
    kernel = call.shape(w)[1:3]
    begin, end, more = [], [], []
    for n, m, k, s in zip(size, source, kernel, strides, strict=True):
        cut = max((-(-n // s) - 1) * s + k - n, 0) // 2 if same else 0
        rest = (m - 1) * s + k - cut - n
        begin.append(cut)
        end.append(max(rest, 0))
        more.append(max(-rest, 0))
    given = [call.real(x, FIRST), call.real(w, (3, 0, 1, 2)), bias(call, b, x, w)]
    y = call.node(
        "ConvTranspose", *given[: 3 if given[2] else 2],
        strides=list(strides), pads=begin + end, output_padding=more,
    )  # fmt: skip
    y = activated(call, y) if hasattr(call.op.options, "fusedActivationFunction") else y
    call.give(y, perm=LAST)


# --- products


@converts("FULLY_CONNECTED")
def _(call: Call) -> None:
    image_rank(call, 1, 2)
    kind = enumerated("FullyConnectedOptionsWeightsFormat", int(call.option("weightsFormat", 0)))
    if kind != "DEFAULT":
        raise FrontendError("E203", f"weights in the order {kind} are not supported")
    x, depth = call.real(0), call.shape(1)[1]
    flat = not call.option("keepNumDims", False) or call.shape(0)[-1:] != (depth,)
    if (flat and call.rank(0) != 2) or call.shape(0)[-1:] != (depth,):
        x = call.node("Reshape", x, call.int64(-1, depth))
    y = call.node("MatMul", x, call.real(1, (1, 0)))
    if b := bias(call, 2, 0, 1):
        y = call.node("Add", y, b)
    y = activated(call, y)
    wanted = call.result().shape
    if not flat or len(wanted) == 2:
        return call.give(y)
    return call.give(call.node("Reshape", y, call.int64(-1, *wanted[1:])))


@converts("BATCH_MATMUL")
def _(call: Call) -> None:
    found = []
    for i, option in enumerate(("adjX", "adjY")):
        rank = call.rank(i)
        if rank < 2:
            raise FrontendError("E206", f"operand {i} has {rank} axes")
        turned = (*range(rank - 2), rank - 1, rank - 2)
        found.append(call.real(i, turned if call.option(option, False) else ()))
    call.give(call.node("MatMul", *found))


# --- pools


def _window(call: Call) -> dict[str, Any]:
    image_rank(call, 0, 4)
    kernel = positive(call.option("filterHeight"), call.option("filterWidth"))
    strides = positive(call.option("strideH"), call.option("strideW"))
    return {"kernel_shape": kernel, "strides": strides, **pads(call, 0, kernel, strides)}


@converts("MAX_POOL_2D")
def _(call: Call) -> None:
    plain = call.named("ActivationFunctionType", "fusedActivationFunction") == "NONE"
    if plain and call.same_scales(0) and call.tensor(0).type in ("INT8", "UINT8"):
        call.keep(call.node("MaxPool", call.stored(0, FIRST), **_window(call)), perm=LAST)
    else:
        y = call.node("MaxPool", call.real(0, FIRST), **_window(call))
        call.give(activated(call, y), perm=LAST)


@converts("AVERAGE_POOL_2D")
def _(call: Call) -> None:
    y = call.node("AveragePool", call.real(0, FIRST), **_window(call))
    call.give(activated(call, y), perm=LAST)


@converts("L2_POOL_2D")
def _(call: Call) -> None:
    x = call.real(0, FIRST)
    y = call.node("AveragePool", call.node("Mul", x, x), **_window(call))
    call.give(activated(call, call.node("Sqrt", y)), perm=LAST)


# --- sizes


def _resized(call: Call, mode: str, how: dict[str, Any], *, exact: bool) -> None:
    image_rank(call, 0, 4)
    size = call.result().shape[1:3] if not call.is_known(1) else call.ints(1)
    if len(size) != 2:
        raise FrontendError("E206", f"a size of {len(size)} numbers")
    if not call.is_known(1) and call.result().open & {1, 2}:
        raise FrontendError("E204", "the size of the result is open")
    operands = ["", "", call.int64(*positive(*size))]
    x = call.stored(0, FIRST) if exact else call.real(0, FIRST)
    y = call.node("Resize", x, *operands, mode=mode, axes=[2, 3], **how)
    (call.keep if exact else call.give)(y, perm=LAST)


@converts("RESIZE_BILINEAR")
def _(call: Call) -> None:
    corners, half = call.option("alignCorners", False), call.option("halfPixelCenters", False)
    way = "align_corners" if corners else "half_pixel" if half else "asymmetric"
    _resized(call, "linear", {"coordinate_transformation_mode": way}, exact=False)


@converts("RESIZE_NEAREST_NEIGHBOR")
def _(call: Call) -> None:
    corners, half = call.option("alignCorners", False), call.option("halfPixelCenters", False)
    way = "align_corners" if corners else "half_pixel" if half else "asymmetric"
    nearest = "floor" if way == "asymmetric" else "round_prefer_ceil"
    how = {"coordinate_transformation_mode": way, "nearest_mode": nearest}
    exact = call.same_scales(0) and call.tensor(0).type in ("FLOAT32", "INT8", "UINT8", "INT32")
    _resized(call, "nearest", how, exact=exact)


@converts("DEPTH_TO_SPACE", "SPACE_TO_DEPTH")
def _(call: Call) -> None:
    image_rank(call, 0, 4)
    (block,) = positive(call.option("blockSize"))
    op = "DepthToSpace" if call.op.name == "DEPTH_TO_SPACE" else "SpaceToDepth"
    x = call.stored(0, FIRST)
    call.keep(call.node(op, x, blocksize=block), perm=LAST)
