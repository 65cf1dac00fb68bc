"""Idioms: formulas that exporters spell out become the one op that they mean.

    x · min(max(x + 3, 0), 6) / 6   → HardSwish          x · sigmoid(x)                     → Swish
    min(max(x, 0), 6)               → Clip               x · (1 + erf(x / √2)) / 2          → Gelu
    exp(x - max x) / Σ exp(…)       → Softmax            (x - mean) / √(var + ε) · γ + β    → LayerNormalization

One op is one launch and rounds once, so the result is at least as near to the formula as the model's
own, but not the same to the last bit; the rules for Clip, Relu and LeakyRelu are exact. A rule's
comment is its algebra.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..ir import Graph
from ..rewrite import Bound, Const, P, Pattern, Rule, Var, Writer, rewrite
from .base import Pass

x, c, scale, bias, epsilon = Var("x"), Const("c"), Const("scale"), Const("bias"), Const("epsilon")
a, b, low, high, axes = Bound("a"), Bound("b"), Bound("low"), Bound("high"), Bound("axes")
INF = math.inf


@dataclass(frozen=True)
class Idioms(Pass):
    """Name what spelled-out formulas mean: Clip, HardSwish, Gelu, Softmax, LayerNormalization, …"""

    name = "idioms"

    def run(self, g: Graph) -> Graph:
        """Apply the rules everywhere."""
        return rewrite(g, RULES)


def scalar(w: Writer, c: str) -> float | None:
    """A constant's value, if it has one."""
    return float(w.known(c).item()) if w.known(c).size == 1 else None


# --- clipping -----------------------------------------------------------------------------------


def maximum(w: Writer, x: str, c: str) -> str | None:
    """max(x, c) = Clip(x, c, ∞)"""
    bound = scalar(w, c)
    return None if bound is None or math.isnan(bound) else w.op("Clip", x, min=bound)


def minimum(w: Writer, x: str, c: str) -> str | None:
    """min(x, c) = Clip(x, -∞, c)"""
    bound = scalar(w, c)
    return None if bound is None or math.isnan(bound) else w.op("Clip", x, max=bound)


def clip_clip(w: Writer, x: str, a: float, b: float, low: float, high: float) -> str | None:
    """Of two clippings to ranges that meet, what is left is the range in both."""
    low, high = max(a, low), min(b, high)
    return w.op("Clip", x, min=low, max=high) if low <= high else None


def relu_clip(w: Writer, x: str, low: float, high: float) -> str | None:
    """max(Clip(x, low, high), 0) = Clip(x, max(low, 0), high) for a range that reaches above zero"""
    return w.op("Clip", x, min=max(low, 0.0), max=high) if high >= 0 else None


CLIPPING = [
    P.Max(x, c) >> maximum,
    P.Min(x, c) >> minimum,
    P.Clip(P.Clip(x, min=a, max=b), min=low, max=high) >> clip_clip,
    P.Relu(P.Clip(x, min=low, max=high)) >> relu_clip,
    P.Clip(P.Relu(x), min=low, max=high) >> relu_clip,
    P.Clip(x, min=0.0, max=INF) >> (lambda w, x: w.op("Relu", x)),  # max(x, 0)
    P.Clip(x, min=-INF, max=INF) >> (lambda w, x: x),
]


# --- activations --------------------------------------------------------------------------------


def leaky(w: Writer, x: str, c: str) -> str | None:
    """max(x, c·x) is x above zero and c·x below, for 0 <= c <= 1"""
    slope = scalar(w, c)
    return None if slope is None or not 0 <= slope <= 1 else w.op("LeakyRelu", x, alpha=slope)


def prelu(w: Writer, x: str, c: str) -> str | None:
    """PRelu with one slope for all."""
    slope = scalar(w, c)
    return None if slope is None else w.op("LeakyRelu", x, alpha=slope)


def swish(w: Writer, x: str, c: str) -> str | None:
    """x · sigmoid(c·x)"""
    alpha = scalar(w, c)
    return None if alpha is None else w.op("Swish", x, alpha=alpha)


def hard_sigmoid(w: Writer, x: str) -> str:
    """min(max(x + 3, 0), 6) / 6 = min(max(x/6 + 1/2, 0), 1)"""
    return w.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def hard_swish(w: Writer, x: str, a: float) -> str | None:
    """x · min(max(x/6 + 1/2, 0), 1)"""
    return w.op("HardSwish", x) if math.isclose(a, 1 / 6, rel_tol=1e-6) else None


relu6 = P.Clip(P.Add(x, 3.0), min=0.0, max=6.0)
ACTIVATIONS = [
    P.Max(x, P.Mul(x, c)) >> leaky,
    P.PRelu(x, c) >> prelu,
    P.Mul(x, P.Sigmoid(x)) >> (lambda w, x: w.op("Swish", x)),
    P.Mul(x, P.Sigmoid(P.Mul(x, c))) >> swish,
    P.Div(relu6, 6.0) >> hard_sigmoid,
    P.Mul(relu6, 1 / 6) >> hard_sigmoid,
    P.Mul(x, P.HardSigmoid(x, alpha=a, beta=0.5)) >> hard_swish,
    P.Div(P.Mul(x, relu6), 6.0) >> (lambda w, x: w.op("HardSwish", x)),
    P.Mul(P.Mul(x, relu6), 1 / 6) >> (lambda w, x: w.op("HardSwish", x)),
    P.Log(P.Add(P.Exp(x), 1.0)) >> (lambda w, x: w.op("Softplus", x)),  # ln(e^x + 1)
    P.Mul(x, P.Tanh(P.Softplus(x))) >> (lambda w, x: w.op("Mish", x)),
]


# --- Gelu ---------------------------------------------------------------------------------------


def halves(one_plus: Pattern) -> list[Pattern]:
    """x · one_plus / 2, with the half at each of its places."""
    return [
        P.Mul(P.Mul(x, one_plus), 0.5),
        P.Mul(P.Mul(x, 0.5), one_plus),
        P.Mul(x, P.Mul(one_plus, 0.5)),
        P.Div(P.Mul(x, one_plus), 2.0),
    ]


def gelu(approximate: str) -> Callable[..., str]:
    """The rule's function: what is matched is all that it needs."""
    return lambda w, x: w.op("Gelu", x, approximate=approximate)


erfs = [P.Erf(P.Div(x, math.sqrt(2))), P.Erf(P.Mul(x, math.sqrt(0.5)))]
cubes = [P.Pow(x, 3.0), P.Mul(x, P.Mul(x, x)), P.Mul(P.Mul(x, x), x)]
tanhs = [P.Tanh(P.Mul(P.Add(x, P.Mul(cube, 0.044715)), math.sqrt(2 / math.pi))) for cube in cubes]
GELU = [
    *(p >> gelu("none") for e in erfs for p in halves(P.Add(e, 1.0))),
    *(p >> gelu("tanh") for t in tanhs for p in halves(P.Add(t, 1.0))),
]


# --- normalizations -----------------------------------------------------------------------------


def softmax(w: Writer, x: str, axes: tuple[int, ...]) -> str | None:
    """exp(x - m) / Σ exp(x - m) is the same for every m"""
    return w.op("Softmax", x, axis=axes[0]) if len(axes) == 1 else None


def trailing(w: Writer, x: str, axes: tuple[int, ...]) -> int | None:
    """The first of some axes, if they are the last ones of x."""
    rank = w.type(x).rank
    found = sorted(i % rank for i in axes)
    return found[0] if found and found == [*range(found[0], rank)] else None


def whole(w: Writer, v: str, x: str, axis: int) -> str | None:
    """A scale or bias in the shape of the normalized axes; None if it varies along others."""
    shape, array = w.type(x).shape[axis:], w.known(v)
    if math.prod(array.shape[: max(0, array.ndim - len(shape))]) != 1 or array.size == 1:
        return None
    small = array.reshape(array.shape[max(0, array.ndim - len(shape)) :])
    return w.constant(small, v) if small.shape == shape else None


def centred_norm(
    w: Writer, x: str, axes: tuple[int, ...], a: int, scale: str, epsilon: float
) -> str | None:
    """The RMSNormalization of x - mean is (x - mean) / √(variance + ε) · γ"""
    same = trailing(w, x, axes) == a % w.type(x).rank
    return w.op("LayerNormalization", x, scale, axis=a, epsilon=epsilon) if same else None


def biased_norm(w: Writer, x: str, a: int, scale: str, bias: str, epsilon: float) -> str | None:
    """… + β"""
    beta = whole(w, bias, x, a % w.type(x).rank)
    if beta is None:
        return None
    return w.op("LayerNormalization", x, scale, beta, axis=a, epsilon=epsilon)


def rms_norm(w: Writer, x: str, axes: tuple[int, ...], epsilon: str, scale: str) -> str | None:
    """x / √(mean of x² + ε) · γ"""
    axis, eps = trailing(w, x, axes), scalar(w, epsilon)
    gamma = None if axis is None else whole(w, scale, x, axis)
    if axis is None or gamma is None or eps is None:
        return None
    return w.op("RMSNormalization", x, gamma, axis=axis - w.type(x).rank, epsilon=eps)


def squares(v: Pattern | Var) -> list[Pattern]:
    """v², in both spellings."""
    return [P.Pow(v, 2.0), P.Mul(v, v)]


def roots(v: Pattern | Var, square: Pattern) -> list[Pattern]:
    """v / √(mean of square + ε), as a quotient and as a product."""
    root = P.Sqrt(P.Add(P.ReduceMean(square, axes=axes, keepdims=1), epsilon))
    return [P.Div(v, root), P.Mul(v, P.Reciprocal(root)), P.Mul(v, P.Div(1.0, root))]


centred = P.Sub(x, P.ReduceMean(x, axes=axes, keepdims=1))
shifted = P.Exp(P.Sub(x, P.ReduceMax(x, axes=axes, keepdims=1)))
NORMS = [
    P.Div(shifted, P.ReduceSum(shifted, axes=axes, keepdims=1)) >> softmax,
    P.Div(P.Exp(x), P.ReduceSum(P.Exp(x), axes=axes, keepdims=1)) >> softmax,
    P.Log(P.Softmax(x, axis=a)) >> (lambda w, x, a: w.op("LogSoftmax", x, axis=a)),
    *(P.Mul(r, scale) >> rms_norm for q in squares(x) for r in roots(x, q)),
    P.RMSNormalization(centred, scale, axis=a, epsilon=Bound("epsilon")) >> centred_norm,
    P.Add(P.LayerNormalization(x, scale, axis=a, epsilon=Bound("epsilon")), bias) >> biased_norm,
]

RULES: list[Rule] = [*CLIPPING, *ACTIVATIONS, *GELU, *NORMS]
