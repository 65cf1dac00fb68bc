"""Affine steps behind a convolution or a matrix product are folded into its weights.

A batch normalization at inference, like a product with or an addition of per-channel constants, is
one multiplication and one addition a channel:

    (x - mean) / sqrt(var + epsilon) · scale + bias  =  x · s + t        s = scale / sqrt(var + epsilon)
                                                                         t = bias - mean · s
    conv(x, W, b) · s + t                            =  conv(x, W · s, b · s + t)

s, t and the new weights are computed in float64 and rounded once to the weights' type, so the result
differs from the model's by roundings (about 1e-6 of the largest value), not by method. Narrow weights
(f16, bf16) are left alone: a rounding to their type costs more than a multiplication. What cannot be
folded becomes a Mul and an Add, which fuse with what is around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir import Array, Graph, Node, Type
from ..rewrite import Bound, Const, P, Var, Writer, rewrite
from .base import Pass

x, c = Var("x"), Const("c")
scale, bias, mean, var = Const("scale"), Const("bias"), Const("mean"), Const("var")
PRODUCTS = ("Conv", "ConvTranspose", "MatMul")


@dataclass(frozen=True)
class Bn(Pass):
    """Fold batch normalizations and per-channel Mul, Div, Add into weights."""

    name = "bn"

    def run(self, g: Graph) -> Graph:
        """Apply the rules everywhere."""
        return rewrite(g, RULES)


def normalization(w: Writer, x: str, epsilon: float, layout: str, **operands: str) -> str:
    """A BatchNormalization, folded if it can be."""
    a = {name: w.known(v).astype(np.float64) for name, v in operands.items()}
    s = a["scale"] / np.sqrt(a["var"] + epsilon)
    t = a["bias"] - a["mean"] * s
    axis = 1 if layout == "NCHW" else w.type(x).rank - 1
    n = w.maker(x)
    folds = n is not None and _has_columns(w, n) and _channel_axis(n) == axis
    return (_folded(w, x, s, t) if folds else None) or _affine(w, x, s, t, axis)


def mul(w: Writer, x: str, c: str) -> str | None:
    """x · c, where c is a vector along the channels."""
    s = _vector(w, x, c)
    return None if s is None else _folded(w, x, s, None)


def div(w: Writer, x: str, c: str) -> str | None:
    """x / c, likewise."""
    s = _vector(w, x, c)
    return None if s is None or not s.all() else _folded(w, x, 1 / s, None)


def add(w: Writer, x: str, c: str) -> str | None:
    """x + c, likewise; a matrix product has no bias and keeps its Add."""
    n, t = w.maker(x), _vector(w, x, c)
    return None if t is None or n is None or n.op == "MatMul" else _folded(w, x, None, t)


RULES = [
    P.BatchNormalization(
        x, scale, bias, mean, var, epsilon=Bound("epsilon"), layout=Bound("layout")
    )
    >> normalization,
    P.Mul(x, c) >> mul,
    P.Div(x, c) >> div,
    P.Add(x, c) >> add,
]


def _folded(w: Writer, x: str, s: Array | None, t: Array | None) -> str | None:
    """The product that makes x, with weights · s and bias · s + t; None if there is none or others read it."""
    n = w.maker(x)
    if n is None or not _has_columns(w, n) or not w.once(x) or w.array(n.inputs[1]) is None:
        return None
    weights = w.known(n.inputs[1])
    bias = _bias(w, n)
    if bias is None or weights.dtype not in (np.float32, np.float64) or n.attrs.get("out"):
        return None
    operands = [n.inputs[0], n.inputs[1] if s is None else _scaled(w, n, weights, s)]
    if t is not None or bias.any():
        total = (bias if s is None else bias * s) + (0 if t is None else t)
        operands += _new_bias(w, n, np.asarray(total, weights.dtype))
    y = w.again(n, *operands[:2] if n.op == "MatMul" else operands)
    return w.op("Add", y, operands[2]) if n.op == "MatMul" and len(operands) > 2 else y


def _bias(w: Writer, n: Node) -> Array | None:
    """The bias that a product has, in float64; zeros if it has none, None if it is not constant."""
    if len(n.inputs) < 3:
        return np.zeros(())
    a = w.array(n.inputs[2])
    return None if a is None else a.astype(np.float64)


def _new_bias(w: Writer, n: Node, total: Array) -> list[str]:
    channels = n.types[0].shape[_channel_axis(n)]
    near, tag = (n.inputs[2], "bn") if len(n.inputs) > 2 else (n.outputs[0], "bias")
    return [w.constant(np.ascontiguousarray(np.broadcast_to(total, channels)), near, tag)]


def _scaled(w: Writer, n: Node, weights: Array, s: Array) -> str:
    """The weights times s a channel, each product rounded once from float64."""
    s = np.broadcast_to(s, n.types[0].shape[_channel_axis(n)])
    made = np.empty_like(weights, order="C")
    if n.op == "ConvTranspose":  # [C, O/group, …]: channel o is column o mod O/group of its group
        group, per_group = n.attr("group"), weights.shape[1]
        shape = (group, -1, *weights.shape[1:])
        column = s.reshape(group, 1, per_group, *(1,) * (weights.ndim - 2))
        _multiply(weights.reshape(shape), column, made.reshape(shape))
    elif n.op == "Conv" and n.attr("layout") == "NCHW":  # [O, C/group, …]
        _multiply(weights, s.reshape(-1, *(1,) * (weights.ndim - 1)), made)
    else:  # […, C/group, O], [K, N]
        _multiply(weights, s, made)
    return w.constant(made, n.inputs[1], "bn")


def _multiply(a: Array, s: Array, into: Array) -> None:
    """into = a · s through float64, block by block inside numpy: no float64 copy of the weights."""
    np.multiply(a, s, out=into, dtype=np.float64, casting="same_kind")


def _affine(w: Writer, x: str, s: Array, t: Array, axis: int) -> str:
    """x · s + t with vectors along an axis."""
    kind = w.type(x)
    a, b = (_column(v, kind, axis) for v in (s, t))
    return w.op("Add", w.op("Mul", x, w.constant(a)), w.constant(b))


def _column(v: Array, like: Type, axis: int) -> Array:
    dtype = np.dtype({"f16": np.float16, "f64": np.float64}.get(like.dtype, np.float32))
    return v.astype(dtype).reshape(-1, *(1,) * (like.rank - 1 - axis))


def _vector(w: Writer, x: str, c: str) -> Array | None:
    """A constant in float64, if it is the same for all but the channels of the product that makes x."""
    n = w.maker(x)
    a = w.known(c)
    if n is None or not _has_columns(w, n) or a.ndim > n.types[0].rank:
        return None
    axis = _channel_axis(n)
    full = a.reshape((1,) * (n.types[0].rank - a.ndim) + a.shape)
    along = full.shape[axis]
    return full.reshape(along).astype(np.float64) if full.size == along else None


def _has_columns(w: Writer, n: Node) -> bool:
    """Whether a node is a product with a column of weights for each channel; a matrix times a vector has none."""
    return n.op in PRODUCTS and w.type(n.inputs[1]).rank > 1 and not n.attrs.get("trans_b")


def _channel_axis(n: Node) -> int:
    """The axis of a product's result that its weights' columns make."""
    first = n.op == "ConvTranspose" or (n.op == "Conv" and n.attr("layout") == "NCHW")
    return 1 if first else n.types[0].rank - 1
