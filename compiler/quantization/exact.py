"""Exact sums of products of integers with zero points, in i32, as nodes of a graph.

    Σ(x - zx)(w - zw) + b  =  Σx·w  +  (b - zx·Σ(w - zw))  -  zw·Σx
                              Conv     a constant            only if no 8 bits hold w - zw

The constant is the bias. What is computed of two values needs the sums of both: -zy·Σx - zx·Σy + K·zx·zy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import DTYPES, Array, Node, Type
from ..ops.quantize import QUANTIZED
from ..rewrite import Writer

LIMIT = 1 << 31
BYTES = frozenset({"i8", "u8"})
"""Types that kernels multiply with each other; others only with themselves."""


@dataclass(frozen=True)
class Held:
    """A float value of the model: (q - zero) · scale. `scale` and `zero` are of one element, or one a place of `axis`."""

    q: str
    scale: Array
    zero: Array
    axis: int
    span: tuple[int, int]
    """The least and the greatest that q can be."""

    @property
    def single(self) -> bool:
        """Whether there is one scale."""
        return self.scale.size == 1

    def as_before(self, other: Held) -> bool:
        """Whether another value's integers mean the same."""
        same = self.scale.size == other.scale.size == 1 and self.scale == other.scale
        return bool(same and self.zero == other.zero)


def unfit(g: Writer, n: Node, a: Held, b: Held) -> str | None:
    """Why the scales, zero points or attributes of a product forbid integers."""
    types = [g.type(h.q).dtype for h in (a, b)]
    if not set(types) <= set(QUANTIZED) or not _multiply(g, a, b):
        return f"operands are {' and '.join(types)}"
    if not a.single:
        return f"%{n.inputs[0]} has a scale for each place of axis {a.axis}"
    if not b.single and b.axis != _columns(n, len(g.type(b.q).shape)):
        return f"%{n.inputs[1]} has scales along axis {b.axis}, which is summed over"
    if n.op == "Gemm" and (n.attr("alpha") != 1 or n.attr("beta") != 1):
        return "alpha or beta"
    if n.op == "Conv" and g.array(b.q) is None:
        return "its weights are computed"
    if n.op == "MatMul" and min(len(g.type(h.q).shape) for h in (a, b)) < 2:
        return "a vector"
    return None


def _multiply(g: Writer, a: Held, b: Held) -> bool:
    """Whether kernels multiply two types: bytes, or equal ones, which constants may become."""
    x, w, known = g.type(a.q).dtype, g.type(b.q).dtype, g.array(b.q)
    if x == w or {x, w} <= BYTES:
        return True
    return x not in BYTES and known is not None and holds(DTYPES[x], _centred(known, b))


def _centred(w: Array, b: Held) -> Array:
    """Constants less their zero points."""
    less: Array = w.astype(np.int64) - along(b.zero, b.axis, w.ndim)
    return less


def exact(g: Writer, n: Node, a: Held, b: Held, bias: Array | None) -> str | None:
    """The sums Σ(x - zx)(w - zw) + bias in i32, or "!why not"."""
    x, zx = a.q, int(a.zero)
    w = g.array(b.q)
    if w is None:
        return _of_values(g, n, a, b)
    rank = w.ndim
    others = tuple(i for i in range(rank) if i not in _kept(n, rank))
    less, stored_as = _centred(w, b), g.type(x).dtype
    kinds = (np.int8, np.uint8) if stored_as in BYTES else (DTYPES[stored_as],)
    size = max(map(abs, (*a.span, zx)))
    sums = less.sum(others)  # [O], or [batch…, N]
    zw = np.zeros((), np.int64)
    name = b.q
    if b.zero.any() or w.dtype not in kinds:
        held = next((d for d in kinds if holds(d, less)), None)
        if held is None:
            zw, stored = b.zero, w.astype(np.int64)
        else:
            stored, name = less, g.constant(less.astype(held), b.q, "centred")
    else:
        stored = less
    offset = -zx * sums + (0 if bias is None else bias)
    reach = int((np.abs(stored).sum(others) * size + np.abs(offset)).max())
    taps = less.size // max(sums.size, 1)
    reach += int(np.abs(zw).max()) * taps * size
    if reach >= LIMIT:
        return f"!its sums may reach {reach}, beyond 32 bits"
    if n.op == "Conv" and zx and any(n.attr("pads")) and stored_as not in BYTES:
        n, x = _padded(g, n, x, zx)
    attrs = {k: v for k, v in n.attrs.items() if k not in ("alpha", "beta")} | {"out": "i32"}
    if n.op == "Conv":
        named = _whole(g, offset) if np.any(offset) else ""
        around = zx if any(n.attr("pads")) else 0
        y = g.op("Conv", x, name, named, **{**attrs, "pad_value": around})
        if zw.any():
            y = g.op("Sub", y, _image_sums(g, n, x, zw, w.shape, around))
        return y
    y = g.op("MatMul", x, name, **_matmul(n, attrs))
    if np.any(offset):
        y = g.op("Add", y, _whole(g, _row(offset, rank)))
    if zw.any():
        total = _sum(g, x, -2 if _turned(n, 0) else -1, _turned(n, 0))
        y = g.op("Sub", y, g.op("Mul", total, _whole(g, zw)))
    return y


def _padded(g: Writer, n: Node, x: str, around: int) -> tuple[Node, str]:
    """A convolution without pads, and its image with them: kernels load nothing but bytes from outside of an image."""
    pads, axes = n.attr("pads"), tuple(range(2, n.types[0].rank))
    whole = g.op("Pad", x, pads=tuple(pads), axes=axes, value=float(around))
    return n.with_(attrs={**n.attrs, "pads": (0,) * len(pads)}), whole


def _whole(g: Writer, a: Array) -> str:
    return g.constant(np.asarray(a, np.int32), tag="sums")


def _image_sums(g: Writer, n: Node, x: str, zw: Array, shape: tuple[int, ...], around: int) -> str:
    """zw · Σx of each window."""
    group = int(n.attr("group"))
    dtype = g.type(x).dtype
    one = np.int8 if dtype in BYTES else DTYPES[dtype]
    ones = g.constant(np.ones((group, *shape[1:]), one), tag="ones")
    attrs = {**n.attrs, "out": "i32", "pad_value": around}
    total = g.op("Conv", x, ones, **attrs)
    if group > 1:
        each = np.repeat(np.arange(group), shape[0] // group)
        total = g.op("Gather", total, g.constant(each.astype(np.int64)), axis=1)
    return g.op("Mul", total, _whole(g, zw.reshape(-1, *ones_behind(n)) if zw.ndim else zw))


def _sum(g: Writer, x: str, axis: int, turned: bool) -> str:
    """Σ over K of an operand in i32, as a column or a row of the result."""
    rank = len(g.type(x).shape)
    total = g.op("ReduceSum", g.op("Cast", x, to="i32"), axes=(axis % rank,), keepdims=1)
    if not turned:
        return total
    perm = (*range(rank - 2), rank - 1, rank - 2)
    return g.op("Transpose", total, perm=perm)


def _of_values(g: Writer, n: Node, a: Held, b: Held) -> str | None:
    """A product of two values: Σxy - zy·Σx - zx·Σy + K·zx·zy."""
    zx, zy = int(a.zero), int(b.zero)
    shape = g.type(a.q).shape
    k = shape[-2] if _turned(n, 0) else shape[-1]
    sizes = [max(map(abs, h.span)) for h in (a, b)]
    reach = k * (sizes[0] + abs(zx)) * (sizes[1] + abs(zy))
    if reach >= LIMIT:
        return f"!its sums may reach {reach}, beyond 32 bits"
    attrs = {k: v for k, v in n.attrs.items() if k not in ("alpha", "beta")} | {"out": "i32"}
    y = g.op("MatMul", a.q, b.q, **_matmul(n, attrs))
    if zy:
        total = _sum(g, a.q, -2 if _turned(n, 0) else -1, _turned(n, 0))
        y = g.op("Sub", y, g.op("Mul", total, _whole(g, np.array(zy))))
    if zx:
        total = _sum(g, b.q, -1 if _turned(n, 1) else -2, _turned(n, 1))
        total = g.op("Mul", total, _whole(g, np.array(zx)))
        if zy:
            total = g.op("Sub", total, _whole(g, np.array(k * zx * zy)))
        y = g.op("Sub", y, total)
    return y


def bytes_behind(
    g: Writer, makers: Mapping[str, Node], types: Mapping[str, Type], v: str
) -> Held | None:
    """What a value in i32 is: narrow integers less a zero point that is known."""
    one = np.ones((), np.float32)
    if types[v].dtype != "i32":
        return None
    if (a := g.old.constants.get(v)) is not None:
        held, low = next((d for d in (np.int8, np.uint8) if holds(d, a)), None), 0
        if held is None:  # an operand of zero point `low`
            held, low = np.uint8, -int(a.min())
        if not holds(held, a.astype(np.int64) + low):
            return None
        q = g.constant((a.astype(np.int64) + low).astype(held), v, "bytes")
        return Held(q, one, np.asarray(low), 0, (0, 0))
    n, axis = makers.get(v), 0
    zero: Array = np.zeros((), np.int64)
    if n is not None and n.op in ("Sub", "Add"):  # `simplify` adds what is subtracted
        z = g.old.constants.get(n.inputs[1])
        if z is None:
            return None
        z = z if n.op == "Sub" else -z
        places = [i for i, s in enumerate(z.shape) if s > 1]
        axis = places[0] + types[v].rank - z.ndim if places else 0
        zero = z.astype(np.int64).reshape(-1 if places else ())
        if len(places) > 1:
            return None
        n = makers.get(n.inputs[0])
    if n is None or n.op != "Cast" or types[n.inputs[0]].dtype not in QUANTIZED:
        return None
    q = g.now(n.inputs[0])
    scale = one if zero.ndim == 0 else np.ones(zero.shape, np.float32)
    return Held(q, scale, zero, axis, (0, 0))


# --- shapes


def _columns(n: Node, rank: int) -> int:
    """The axis of the second operand that is the result's channels."""
    if n.op == "Conv":
        return 0
    return rank - 2 if _turned(n, 1) else rank - 1


def _kept(n: Node, rank: int) -> tuple[int, ...]:
    """Axes of the second operand that are not summed over."""
    return (0,) if n.op == "Conv" else (*range(rank - 2), _columns(n, rank))


def _turned(n: Node, i: int) -> bool:
    """Whether an operand of a matrix product is transposed first."""
    if n.op == "Gemm":
        return bool(n.attr(("transA", "transB")[i]))
    return bool(n.attr(("trans_a", "trans_b")[i]))


def _matmul(n: Node, attrs: dict[str, Any]) -> dict[str, Any]:
    """The attributes of the MatMul that a product is."""
    kept = {k: v for k, v in attrs.items() if k not in ("transA", "transB")}
    return {**kept, "trans_a": _turned(n, 0), "trans_b": _turned(n, 1)}


def ones_behind(n: Node) -> tuple[int, ...]:
    """Axes behind the channels of a convolution's result."""
    return (1,) * (n.types[0].rank - 2)


def by_channel(p: Array, n: Node) -> Array:
    """One number a channel, so that it broadcasts to a product's result."""
    return p.reshape(-1, *ones_behind(n)) if n.op == "Conv" and p.ndim == 1 else p


def along(p: Array, axis: int, rank: int) -> Array:
    """Numbers along an axis, so that they broadcast."""
    return p.reshape([-1 if i == axis else 1 for i in range(rank)]) if p.ndim == 1 else p


def _row(offset: Array, rank: int) -> Array:
    """[batch…, N] as [batch…, 1, N]; [N] as it is."""
    return offset[..., None, :] if rank > 2 else offset


def holds(dtype: Any, a: Array) -> bool:
    """Whether all numbers are values of an integer type."""
    info = np.iinfo(dtype)
    return bool(a.size and info.min <= a.min() and a.max() <= info.max)
