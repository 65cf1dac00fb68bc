"""Quantized operators as the Graph's own: QuantizeLinear, DequantizeLinear, and exact arithmetic of integers between them.

| operator | becomes |
|---|---|
| ConvInteger, MatMulInteger | Conv, MatMul of i32, each operand less its zero point |
| QLinearConv, QLinearMatMul, QGemm | the same, then times x's scale · w's scale / y's scale, and QuantizeLinear |
| QLinearAdd, QLinearSigmoid, … (com.microsoft) | DequantizeLinear ─► the plain operator ─► QuantizeLinear |
| IntQuant, Quant, BipolarQuant, FloatQuant, Trunc (QONNX) | QuantizeLinear ─► DequantizeLinear, or arithmetic where it rounds otherwise |

The pass `integers` makes products of bytes of what is written here with i32.

Elements of 2 and 4 bits are values in i8 and u8, small floats values in f32; `Builder.formats` has what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from knapper.compiler.ir import DTYPES, Array, Attr
from knapper.isa.errors import FrontendError
from knapper.isa.formats import FORMATS

from .builder import Builder, Call
from .forms import adapted, explicit_window, form
from .tensors import FEW, Value, dtype_of

Contrib = Callable[[Builder, Call], list[str]]
CONTRIB: dict[tuple[str, str], Contrib] = {}
"""(domain, operator) → how it is imported."""
MICROSOFT = "com.microsoft"
QONNX = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")


def contrib(*ops: str, domains: Sequence[str] = (MICROSOFT,)) -> Callable[[Contrib], Contrib]:
    """Register the import of operators that are not ONNX's own."""

    def register(f: Contrib) -> Contrib:
        CONTRIB.update({(d, op): f for d in domains for op in ops})
        return f

    return register


# --- ONNX


@form("QuantizeLinear")
def _(b: Builder, call: Call) -> list[str]:
    x, scale, zero = (call.operand(i) for i in range(3))
    to, few = _target(b, call, zero)
    if few.startswith("f") and not call.integer("saturate", 1):
        raise FrontendError("E203", f"QuantizeLinear to {few} with saturate=0 is not supported")
    attrs = {"to": to, "format": few, **_axes(call, b, scale)}
    return _emit(b, call, "QuantizeLinear", [x, scale, zero], attrs)


@form("DequantizeLinear")
def _(b: Builder, call: Call) -> list[str]:
    x, scale, zero = (call.operand(i) for i in range(3))
    given = call.integer("output_dtype")
    to = dtype_of(given) if given else b.type(scale).dtype
    return _emit(b, call, "DequantizeLinear", [x, scale, zero], {"to": to, **_axes(call, b, scale)})


def _target(b: Builder, call: Call, zero: str) -> tuple[str, str]:
    """(dtype that is stored, format) of what QuantizeLinear makes."""
    given = call.integer("output_dtype")
    if zero:
        return b.type(zero).dtype, b.formats.get(zero, "")
    if given in FEW:
        return FEW[given]
    return (dtype_of(given) if given else "u8"), ""


def _axes(call: Call, b: Builder, scale: str) -> dict[str, Attr]:
    """The attributes that say where scales belong."""
    if b.type(scale).count == 1 and not call.integer("block_size"):
        return {}
    axis = call.integer("axis", 1)
    rank = b.type(call.operand(0)).rank
    return {"axis": axis % rank if rank else axis, "block_size": call.integer("block_size")}


def _emit(
    b: Builder, call: Call, op: str, operands: Sequence[str], attrs: dict[str, Attr]
) -> list[str]:
    """A node; attributes at their defaults are left out."""
    default = {"to": "u8" if op == "QuantizeLinear" else "f32", "axis": 1}
    default |= {"block_size": 0, "format": ""}
    kept = {k: v for k, v in attrs.items() if v != default[k]}
    return b.emit(op, operands, kept, call.outputs or ("",), call.loc)


# --- exact arithmetic


def _wide(b: Builder, call: Call, x: str, zero: str, shape: tuple[int, ...] = ()) -> str:
    """An operand in i32, less its zero point; `shape`: to spread one a channel."""
    (wide,) = b.emit("Cast", [x], {"to": "i32"}, loc=call.loc)
    if not zero or (zero in b.known and not b.known[zero].any()):
        return wide
    (less,) = b.emit("Cast", [zero], {"to": "i32"}, loc=call.loc)
    less = _shaped(b, call, less, shape)
    return b.emit("Sub", [wide, less], {}, loc=call.loc)[0]


def _shaped(b: Builder, call: Call, v: str, shape: tuple[int, ...]) -> str:
    """A vector with other axes around it; one number as a scalar."""
    count = b.type(v).count
    wanted = shape if count > 1 and shape else () if count == 1 else b.shape(v)
    if b.shape(v) == wanted:
        return v
    return b.emit("Reshape", [v], {"shape": tuple(count if n < 0 else n for n in wanted)})[0]


def _conv(b: Builder, call: Call, x: str, xz: str, w: str, wz: str, bias: str) -> str:
    """The exact sums of a convolution."""
    rank = b.type(x).rank
    attrs: dict[str, Any] = {
        k: v for k, v in call.attrs.items() if k in ("strides", "pads", "dilations", "group")
    }
    attrs = {k: v for k, v in attrs.items() if v != 1 or k != "group"}
    weights = _wide(b, call, w, wz, (-1, *(1,) * (rank - 1)))
    return b.emit("Conv", [_wide(b, call, x, xz), weights, bias], attrs, loc=call.loc)[0]


def _matmul(b: Builder, call: Call, x: str, xz: str, y: str, yz: str) -> str:
    """The exact sums of a matrix product; zero points one a row of the first, one a column of the second."""
    rows = (-1, 1) if b.type(x).rank > 1 and xz and b.type(xz).rank == 1 else ()
    return b.emit("MatMul", [_wide(b, call, x, xz, rows), _wide(b, call, y, yz)], {}, loc=call.loc)[
        0
    ]


def _times(b: Builder, call: Call, sums: str, scales: Sequence[str], over: str, shape: Any) -> str:
    """Sums in f32, times scales, over one: (a · b) / c, each rounded, as onnxruntime has it."""
    factor = scales[0]
    for s in scales[1:]:
        (factor,) = b.emit("Mul", [factor, s], {}, loc=call.loc)
    if over:
        (factor,) = b.emit("Div", [factor, over], {}, loc=call.loc)
    (real,) = b.emit("Cast", [sums], {"to": "f32"}, loc=call.loc)
    return b.emit("Mul", [real, _shaped(b, call, factor, shape)], {}, loc=call.loc)[0]


def _stored(b: Builder, call: Call, v: str, scale: str, zero: str) -> list[str]:
    """Results in y's integers. `scale` "": they are in its steps already."""
    scale = scale or b.constant(np.array(1, np.float32), "one")
    attrs: dict[str, Attr] = {"to": b.type(zero).dtype if zero else "u8"}
    return _emit(b, call, "QuantizeLinear", [v, _scalar(b, call, scale), zero], attrs)


def _scalar(b: Builder, call: Call, v: str) -> str:
    return _shaped(b, call, v, ())


def _real(b: Builder, call: Call, x: str, scale: str, zero: str) -> str:
    """What integers stand for."""
    return b.emit("DequantizeLinear", [x, scale, zero], {}, loc=call.loc)[0]


@form("ConvInteger", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    call = explicit_window(b, call)
    x, w, xz, wz = (call.operand(i) for i in range(4))
    return [_conv(b, call, x, xz, w, wz, "")]


@form("MatMulInteger", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    x, y, xz, yz = (call.operand(i) for i in range(4))
    return [_matmul(b, call, x, xz, y, yz)]


@form("QLinearConv", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    call = explicit_window(b, call)
    x, xs, xz, w, ws, wz, ys, yz, bias = (call.operand(i) for i in range(9))
    sums = _conv(b, call, x, xz, w, wz, bias)
    shape = (-1, *(1,) * (b.type(x).rank - 2))
    return _stored(b, call, _times(b, call, sums, [xs, ws], ys, shape), "", yz)


@form("QLinearMatMul", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    x, xs, xz, y, ys, yz, zs, zz = (call.operand(i) for i in range(8))
    sums = _matmul(b, call, x, xz, y, yz)
    if b.type(xs).count > 1 and b.type(xs).rank == 1:
        xs = _shaped(b, call, xs, (-1, 1))
    factor = _f32(b, call, xs), _f32(b, call, ys)
    return _stored(b, call, _times(b, call, sums, factor, _f32(b, call, zs), None), "", zz)


def _f32(b: Builder, call: Call, v: str) -> str:
    if b.type(v).dtype == "f32":
        return v
    return b.emit("Cast", [v], {"to": "f32"}, loc=call.loc)[0]


# --- onnxruntime's own


def _plain(b: Builder, call: Call, op: str, operands: dict[str, str], **attrs: Value) -> str:
    """The value of a standard operator."""
    inner = Call(op, operands, dict(attrs), ("",), call.loc, call.version, None)
    return adapted(b, inner)[0]


@contrib("QLinearAdd", "QLinearMul")
def _(b: Builder, call: Call) -> list[str]:
    x, xs, xz, y, ys, yz, zs, zz = (call.operand(i) for i in range(8))
    operands = {"A": _real(b, call, x, xs, xz), "B": _real(b, call, y, ys, yz)}
    made = _plain(b, call, call.op.removeprefix("QLinear"), operands)
    return _stored(b, call, made, zs, zz)


@contrib("QLinearSigmoid", "QLinearLeakyRelu", "QLinearAveragePool", "QLinearGlobalAveragePool")
def _(b: Builder, call: Call) -> list[str]:
    if call.integer("channels_last"):
        raise FrontendError("E203", f"{call.op} with channels_last=1 is not supported")
    x, xs, xz, ys, yz = (call.operand(i) for i in range(5))
    op = call.op.removeprefix("QLinear")
    attrs = {k: v for k, v in call.attrs.items() if k != "channels_last"}
    made = _plain(b, call, op, {"X": _real(b, call, x, xs, xz)}, **attrs)
    return _stored(b, call, made, ys, yz)


@contrib("QLinearSoftmax")
def _(b: Builder, call: Call) -> list[str]:
    x, xs, xz, ys, yz = (call.operand(i) for i in range(5))
    opset = call.integer("opset", 13)
    axis = call.integer("axis", -1 if opset >= 13 else 1)
    real = Call(
        "Softmax", {"input": _real(b, call, x, xs, xz)}, {"axis": axis}, ("",), call.loc, opset
    )
    return _stored(b, call, adapted(b, real)[0], ys, yz)


@contrib("QLinearConcat")
def _(b: Builder, call: Call) -> list[str]:
    scale, zero, *rest = call.inputs.values()
    parts = [_real(b, call, *rest[i : i + 3]) for i in range(0, len(rest), 3)]
    operands = {f"inputs#{i}": v for i, v in enumerate(parts)}
    return _stored(
        b, call, _plain(b, call, "Concat", operands, axis=call.integer("axis")), scale, zero
    )


@contrib("QLinearWhere")
def _(b: Builder, call: Call) -> list[str]:
    which, x, xs, xz, y, ys, yz, zs, zz = (call.operand(i) for i in range(9))
    operands = [which, _real(b, call, x, xs, xz), _real(b, call, y, ys, yz)]
    (made,) = b.emit("Where", operands, {}, loc=call.loc)
    return _stored(b, call, made, zs, zz)


@contrib("QGemm")
def _(b: Builder, call: Call) -> list[str]:
    a, sa, za, w, sw, zw, c, sy, zy = (call.operand(i) for i in range(9))
    alpha: Any = call.attrs.get("alpha", 1.0)
    a = _turned(b, call, a, call.integer("transA"))
    w = _turned(b, call, w, call.integer("transB"))
    sums = _matmul(b, call, a, za, w, zw)
    if c:
        (sums,) = b.emit("Add", [sums, c], {}, loc=call.loc)
    scales = [sa, sw] if alpha == 1 else [b.constant(np.asarray(alpha, np.float32)), sa, sw]
    real = _times(b, call, sums, scales, sy, None)
    return _stored(b, call, real, "", zy) if sy else [real]


def _turned(b: Builder, call: Call, v: str, turn: int) -> str:
    return b.emit("Transpose", [v], {"perm": (1, 0)}, loc=call.loc)[0] if turn else v


@contrib("QuantizeLinear", "DequantizeLinear")
def _(b: Builder, call: Call) -> list[str]:
    """Those of onnxruntime, which had 16 bits before ONNX did."""
    names = ("x", "scale", "zero_point")
    inputs = dict(zip(names, call.inputs.values(), strict=False))
    return adapted(b, Call(call.op, inputs, call.attrs, call.outputs, call.loc, 21))


# --- QONNX


def _number(b: Builder, call: Call, i: int, what: str) -> Array:
    v = call.operand(i)
    if v not in b.known:
        raise FrontendError("E204", f"{call.op}: the {what} is computed from the network's inputs")
    return b.known[v]


def _per_place(b: Builder, call: Call, x: str, p: Array) -> tuple[Array, dict[str, Attr]]:
    """A scale or zero point as numpy broadcasts it, as QuantizeLinear has it: (it, the axis)."""
    if p.size == 1:
        return p.reshape(()), {}
    shape = b.shape(x)
    full = (1,) * (len(shape) - p.ndim) + p.shape
    axes = [i for i, n in enumerate(full) if n > 1]
    if len(axes) != 1 or full[axes[0]] != shape[axes[0]]:
        raise FrontendError(
            "E203", f"{call.op}: a scale of shape {list(p.shape)} for {b.type(x)} is not supported"
        )
    return p.reshape(-1), {"axis": axes[0]}


def _pair(
    b: Builder, call: Call, scale: Array, zero: Array, to: str, format: str
) -> list[str] | None:
    """QuantizeLinear and DequantizeLinear of the call's operand; None if the zero point is no integer of this type, or not along the scale's axis.

    QONNX rounds after it has added the zero point: an odd one sends ties to the other side.
    """
    x = call.operand(0)
    info = np.iinfo(DTYPES[to])
    if (zero != np.rint(zero)).any() or zero.min() < info.min or zero.max() > info.max:
        return None
    if zero.size > 1 and zero.shape != scale.shape:
        return None
    s, where = _per_place(b, call, x, np.asarray(scale, np.float32))
    z = np.broadcast_to(zero, scale.shape) if zero.size == 1 else zero
    operands = [b.constant(s, "scale")]
    if zero.any():
        operands.append(b.constant(np.asarray(z, info.dtype).reshape(s.shape), "zero"))
    attrs: dict[str, Attr] = {"to": to, "format": format, **where}
    inner = Call(call.op, {}, {}, ("",), call.loc)
    (q,) = _emit(b, inner, "QuantizeLinear", [x, *operands], attrs)
    return _emit(b, call, "DequantizeLinear", [q, *operands], where)


@contrib("IntQuant", "Quant", domains=QONNX)
def _(b: Builder, call: Call) -> list[str]:
    scale, zero, width = (
        _number(b, call, i, what) for i, what in ((1, "scale"), (2, "zero point"), (3, "bit width"))
    )
    if width.size != 1:
        raise FrontendError("E203", f"{call.op}: one bit width a tensor, got {width.size}")
    bits, signed = float(width.item()), bool(call.integer("signed", 1))
    low = -(2 ** (bits - 1)) if signed else 0.0
    high = 2 ** (bits - 1) - 1 if signed else 2.0**bits - 1
    if call.integer("narrow"):
        low, high = (low + 1, high) if signed else (low, high - 1)
    mode = str(call.attrs.get("rounding_mode", "ROUND")).upper()
    name = f"{'i' if signed else 'u'}{int(bits)}"
    if mode == "ROUND" and name in FORMATS and not call.integer("narrow"):
        to = f"{name[0]}{8 if bits <= 8 else 16}"
        made = _pair(b, call, scale, zero, to, "" if name == to else name)
        if made is not None:
            return made
    return _written_out(b, call, scale, zero, (low, high), mode)


ROUNDINGS = {"ROUND": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}


def _written_out(
    b: Builder, call: Call, scale: Array, zero: Array, ends: tuple[float, float], mode: str
) -> list[str]:
    """(round(clip(x / scale + zero)) - zero) · scale, in f32."""

    def step(op: str, *operands: str, **attrs: Attr) -> str:
        return b.emit(op, operands, attrs, loc=call.loc)[0]

    def number(a: Any) -> str:
        return b.constant(np.asarray(a, np.float32), "number")

    s, z = number(scale), number(zero)
    v = step("Add", step("Div", call.operand(0), s), z)
    v = step("Clip", v, min=ends[0], max=ends[1])
    v = _rounded(step, number, v, mode)
    real = step("Sub", v, z)
    return b.emit("Mul", [real, s], {}, call.outputs, call.loc)


def _rounded(step: Any, number: Any, v: str, mode: str) -> str:
    if mode in ROUNDINGS:
        return str(step(ROUNDINGS[mode], v))
    sign, size = step("Sign", v), step("Abs", v)
    if mode in ("DOWN", "ROUND_TO_ZERO"):
        return str(step("Mul", sign, step("Floor", size)))
    if mode == "UP":
        return str(step("Mul", sign, step("Ceil", size)))
    if mode == "HALF_UP":
        return str(step("Mul", sign, step("Floor", step("Add", size, number(0.5)))))
    if mode == "HALF_DOWN":
        return str(step("Mul", sign, step("Ceil", step("Sub", size, number(0.5)))))
    raise FrontendError("E203", f"rounding_mode {mode!r} is not supported")


@contrib("BipolarQuant", domains=QONNX)
def _(b: Builder, call: Call) -> list[str]:
    """±scale, by the sign."""
    scale = np.asarray(_number(b, call, 1, "scale"), np.float32)
    zero = b.constant(np.array(0, np.float32), "zero")
    (up,) = b.emit("GreaterOrEqual", [call.operand(0), zero], {}, loc=call.loc)
    ends = [b.constant(s, "scale") for s in (scale, -scale)]
    return b.emit("Where", [up, *ends], {}, call.outputs, call.loc)


FLOATS = {(2, 1): "f4e2m1", (2, 3): "f6e2m3", (3, 2): "f6e3m2", (4, 3): "f8e4m3", (5, 2): "f8e5m2"}


@contrib("FloatQuant", domains=QONNX)
def _(b: Builder, call: Call) -> list[str]:
    """Those small floats that isa/formats has, rounded to even and saturated."""
    what = ("scale", "exponent width", "mantissa width", "exponent bias", "largest value")
    known = [_number(b, call, i + 1, w) for i, w in enumerate(what[: len(call.inputs) - 1])]
    scale, e, m, *rest = known
    f = FORMATS.get(FLOATS.get((int(e.item()), int(m.item())), ""))
    bias = float(rest[0].item()) if rest else 2 ** (int(e.item()) - 1) - 1
    largest = float(rest[1].item()) if len(rest) > 1 else None
    fits = (
        f is not None
        and bias == 2 ** (int(e.item()) - 1) - 1
        and (largest is None or largest >= f.largest)
        and call.integer("has_subnormal", 1)
        and call.integer("saturation", 1)
        and call.attrs.get("rounding_mode", "ROUND") == "ROUND"
    )
    if f is None or not fits:
        raise FrontendError(
            "E203",
            f"FloatQuant with {int(e.item())} bits of exponent, {int(m.item())} of mantissa, bias {bias:g} is not supported",
            hint=f"those of {' '.join(FLOATS.values())} are, with subnormals and saturation",
        )
    s, where = _per_place(b, call, call.operand(0), np.asarray(scale, np.float32))
    factor = b.constant(s, "scale")
    attrs: dict[str, Attr] = {"to": "f32", "format": f.name, **where}
    inner = Call(call.op, {}, {}, ("",), call.loc)
    (q,) = _emit(b, inner, "QuantizeLinear", [call.operand(0), factor], attrs)
    return _emit(b, call, "DequantizeLinear", [q, factor], where)


@contrib("Trunc", domains=QONNX)
def _(b: Builder, call: Call) -> list[str]:
    """Bits cut off from below: of the integer x / scale + zero, in place (version 1) or to a scale that is given (version 2)."""
    scale, zero, before, *rest = (
        _number(b, call, i, "scale or width") for i in range(1, len(call.inputs))
    )
    after = rest.pop()
    cut = 2.0 ** float(before.item() - after.item())
    if rest:
        cut = float(2.0 ** np.rint(np.log2(np.ravel(rest[0])[0] / np.ravel(scale)[0])))
    signed, narrow = call.integer("signed", 1), call.integer("narrow")
    bits = float(after.item())
    low = -(2 ** (bits - 1)) + narrow if signed else 0.0
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow

    def step(op: str, *operands: str, **attrs: Attr) -> str:
        return b.emit(op, operands, attrs, loc=call.loc)[0]

    def number(a: Any) -> str:
        return b.constant(np.asarray(a, np.float32), "number")

    whole = step("Round", step("Add", step("Div", call.operand(0), number(scale)), number(zero)))
    mode = str(call.attrs.get("rounding_mode", "FLOOR")).upper()
    part = _rounded(step, number, step("Div", whole, number(cut)), mode)
    if rest:
        part = step("Clip", part, min=low, max=high)
        real = step("Sub", part, number(np.asarray(zero, np.float32) / np.float32(cut)))
        return b.emit("Mul", [real, number(rest[0])], {}, call.outputs, call.loc)
    real = step("Sub", part, number(zero))
    return b.emit("Mul", [real, number(scale)], {}, call.outputs, call.loc)
