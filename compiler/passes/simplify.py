"""Algebraic simplification: the same values (to the sign of a zero) from fewer and more regular nodes.

Three groups of rules. What does nothing goes (Identity, a Cast to its own type, a product with 1).
What is done twice is done once (Transpose of a Transpose, Cast of an exact Cast, Pad before a window).
What has several spellings gets one, so that later passes know fewer ops:

    Squeeze, Unsqueeze, Flatten                    → Reshape
    Transpose that moves only axes of size 1       → Reshape
    Gemm                                           → MatMul, Mul, Add
    Sub by a constant, Div by a power of two       → Add, Mul
    Sum of float32                                 → Adds
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ..ir import Attr, Graph
from ..rewrite import Bound, Const, P, Rule, Var, Writer, rewrite
from .base import Pass

Ints = tuple[int, ...]
x, c = Var("x"), Const("c")
a, b = Bound("a"), Bound("b")

LOSSLESS = {
    "f16": {"f32", "f64"}, "bf16": {"f32", "f64"}, "f32": {"f64"},
    "i8": {"i16", "i32", "i64"}, "i16": {"i32", "i64"}, "i32": {"i64"},
    "u8": {"u16", "u32", "u64", "i16", "i32", "i64"}, "u16": {"u32", "u64", "i32", "i64"},
    "u32": {"u64", "i64"},
}  # fmt: skip
"""dtype → those that hold all its values, within floats and within integers."""


# --- nothing is done ----------------------------------------------------------------------------


def same(w: Writer, x: str, **_: object) -> str:
    """The operand itself; the writer keeps the node where their types differ (broadcasting)."""
    return x


def if_zero(w: Writer, x: str, a: Ints) -> str | None:
    """The operand, if all numbers of an attribute are zero."""
    return None if any(a) else x


def if_forward(w: Writer, x: str, a: Ints) -> str | None:
    """The operand: a slice of its type whose steps are forward is the whole, in order."""
    return x if all(step > 0 for step in a) else None


def without_empty(w: Writer, **_: object) -> str | None:
    """Only operands that have elements, unless none has."""
    n = w.root
    filled = [v for v in n.inputs if w.type(v).count]
    return w.again(n, *filled) if filled and len(filled) < len(n.inputs) else None


NOTHING = [
    P.Identity(x) >> same,
    P.Dropout(x) >> same,
    P.Add(x, 0.0) >> same,  # x + 0 = x
    P.Sub(x, 0.0) >> same,  # x - 0 = x
    P.Mul(x, 1.0) >> same,  # x · 1 = x
    P.Div(x, 1.0) >> same,  # x / 1 = x
    P.Pow(x, 1.0) >> same,  # x ^ 1 = x
    *(P.__getattr__(name)(x) >> same for name in ("Concat", "Sum", "Mean", "Max", "Min")),
    P.Concat(...) >> without_empty,
    P.Split(x) >> same,
    P.Expand(x) >> same,
    P.Tile(x) >> same,
    P.Cast(x) >> same,
    P.Slice(x, steps=a) >> if_forward,
    P.Pad(x, pads=a) >> if_zero,
]


# --- once instead of twice ----------------------------------------------------------------------


def cast_cast(w: Writer, x: str, a: str, b: str) -> str | None:
    """Nothing is lost on the way to `a`, so it is x itself that is converted to `b`."""
    return w.op("Cast", x, to=b) if a in LOSSLESS.get(w.type(x).dtype, ()) else None


def transpose_transpose(w: Writer, x: str, a: Ints, b: Ints) -> str:
    """Axis i of the result is axis b[i] of the middle, which is axis a[b[i]] of x."""
    rank = w.type(x).rank
    a, b = (p or tuple(reversed(range(rank))) for p in (a, b))
    return w.op("Transpose", x, perm=tuple(a[i] for i in b))


def view(w: Writer, x: str, **_: object) -> str:
    """Any view is a Reshape to its type; of several in a row only the last counts."""
    return w.op("Reshape", x, shape=w.root.types[0].shape)


def transpose(w: Writer, x: str, a: Ints) -> str | None:
    """Where the axes longer than 1 keep their order, the elements keep theirs in memory."""
    shape = w.type(x).shape
    perm = a or tuple(reversed(range(len(shape))))
    moved = [i for i in perm if shape[i] != 1]
    return view(w, x) if moved == sorted(moved) else None


def view_of_constant(w: Writer, c: str, **_: object) -> str:
    """A view of a constant is a constant."""
    return w.constant(w.known(c).reshape(w.root.types[0].shape))


VIEWS = [
    P.Reshape(x) >> same,
    P.Reshape(c) >> view_of_constant,
    P.Reshape(P.Reshape(x)) >> view,
    P.Transpose(x, perm=a) >> transpose,
]
ONCE = [
    P.Relu(P.Relu(x)) >> (lambda w, x: w.op("Relu", x)),  # max(max(x, 0), 0) = max(x, 0)
    P.Cast(P.Cast(x, to=a), to=b) >> cast_cast,
    P.Transpose(P.Transpose(x, perm=a), perm=b) >> transpose_transpose,
    P.Squeeze(x) >> view,
    P.Unsqueeze(x) >> view,
    P.Flatten(x) >> view,
]


# --- padding into the window --------------------------------------------------------------------

padded = P.Pad(x, mode="constant", value=0.0, pads=a, axes=b)
lowest = P.Pad(x, mode="constant", value=-math.inf, pads=a, axes=b)


def pad_window(w: Writer, x: str, a: Ints, b: Ints) -> str | None:
    """The padding of a convolution is zeros too, that of a maximum minus infinity."""
    return _with_pads(w, x, a, b)


def pad_average(w: Writer, x: str, a: Ints, b: Ints) -> str | None:
    """Zeros that were put there count as elements, so now the padding has to count."""
    n = w.root
    if any(n.attr("pads")) and not n.attr("count_include_pad"):
        return None
    return _with_pads(w, x, a, b, count_include_pad=1)


def _with_pads(w: Writer, x: str, pads: Ints, axes: Ints, **more: Attr) -> str | None:
    """The root on x, its pads enlarged; None if there are pads that it cannot have."""
    n, rank = w.root, w.type(x).rank
    half = len(pads) // 2
    begins, ends = (_per_axis(p, axes, rank) for p in (pads[:half], pads[half:]))
    outside = (*begins[:2], *ends[:2])  # batch and channels
    if min(pads) < 0 or any(outside) or n.attr("layout") != "NCHW" or n.attrs.get("ceil_mode"):
        return None
    own = n.attr("pads") or (0,) * (2 * rank - 4)
    total = tuple(p + q for p, q in zip(own, (*begins[2:], *ends[2:]), strict=True))
    return w.again(n, x, *n.inputs[1:], **more, pads=total)


def _per_axis(widths: Ints, axes: Ints, rank: int) -> Ints:
    """Widths given for `axes` (for all if none are named), for every axis."""
    given = dict(zip((i % rank for i in axes or range(rank)), widths, strict=True))
    return tuple(given.get(i, 0) for i in range(rank))


PADDING = [
    P.Conv(padded, ...) >> pad_window,
    P.MaxPool(lowest) >> pad_window,
    P.AveragePool(padded) >> pad_average,
]


# --- one spelling -------------------------------------------------------------------------------


def gemm(w: Writer, **_: object) -> str:
    """alpha·A·B + beta·C step by step, in the type that A·B accumulates in, rounded at the end."""
    n = w.root
    operand = n.types[0].dtype
    wide = "f32" if operand in ("f16", "bf16") else ""
    flips = {"trans_a": bool(n.attr("transA")), "trans_b": bool(n.attr("transB"))}
    acc = w.op("MatMul", *n.inputs[:2], out=wide, **flips)
    dtype = w.type(acc).dtype
    if n.attr("alpha") != 1:
        acc = w.op("Mul", acc, w.number(n.attr("alpha"), dtype))
    if len(n.inputs) > 2:
        bias = w.op("Cast", n.inputs[2], to=dtype)
        scaled = bias if n.attr("beta") == 1 else w.op("Mul", bias, w.number(n.attr("beta"), dtype))
        acc = w.op("Add", acc, scaled)
    return w.op("Cast", acc, to=operand)


def transposed_constant(w: Writer, c: str, operand: int) -> str:
    """A·Bᵀ = A·(Bᵀ), transposed now."""
    n = w.root
    turned = w.constant(w.known(c).swapaxes(-1, -2), c, "t")  # a view: copied when it is stored
    operands = [turned if i == operand else v for i, v in enumerate(n.inputs)]
    return w.again(n, *operands, **{("trans_a", "trans_b")[operand]: False})


def sub(w: Writer, x: str, c: str) -> str:
    """x - c = x + (-c), exactly; of integers too, which wrap."""
    return w.op("Add", x, w.constant(-w.known(c), c, "neg"))


def div(w: Writer, x: str, c: str) -> str | None:
    """x / c = x · (1/c), exactly where c is a power of two whose inverse is one as well."""
    divisor = w.known(c)
    if w.type(x).dtype not in ("f32", "f64"):
        return None
    with np.errstate(all="ignore"):
        inverse = 1 / divisor
    exact = (np.abs(np.frexp(divisor)[0]) == 0.5) & np.isfinite(inverse) & (inverse * divisor == 1)
    if not exact.all():
        return None
    return w.op("Mul", x, w.constant(inverse.astype(divisor.dtype), c, "inv"))


def sum_of_many(w: Writer, **_: object) -> str | None:
    """Left to right with a rounding at each step, which is what Adds do (in f16 only for two)."""
    xs = w.root.inputs
    exact = w.type(xs[0]).dtype in ("f32", "f64") or len(xs) == 2
    return reduce(lambda a, b: w.op("Add", a, b), xs) if exact else None


SPELLING = [
    P.Gemm(...) >> gemm,
    P.MatMul(x, c, trans_b=True) >> (lambda w, x, c: transposed_constant(w, c, 1)),
    P.MatMul(c, x, trans_a=True) >> (lambda w, x, c: transposed_constant(w, c, 0)),
    P.Sub(x, c) >> sub,
    P.Div(x, c) >> div,
    P.Sum(...) >> sum_of_many,
]


RULES: list[Rule] = [*NOTHING, *VIEWS, *ONCE, *PADDING, *SPELLING]


@dataclass(frozen=True)
class Simplify(Pass):
    """Drop what does nothing, do once what is done twice, spell in one way what has several."""

    name = "simplify"

    def run(self, g: Graph) -> Graph:
        """Apply the rules everywhere."""
        return rewrite(g, RULES)
