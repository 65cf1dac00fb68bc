"""Activation functions: one operand, element by element, most with a slope or a bound as attribute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..ir import Array, Type, op, require
from .elementwise import Example, Rng, draw, floating, unary
from .lowering import const, wide
from .numeric import rounded
from .shapes import SIGNED, broadcast, of_kind, same_dtype
from .unary import erf


@op
def Relu(x: Type) -> Type:
    """max(x, 0)."""
    of_kind("Relu", SIGNED, x)
    return x


unary(
    Relu,
    lambda x: np.maximum(x, 0),
    lambda R, x: R.op.maximum(x, const(R, 0, x)),
    dtypes="f32 f16 f64 i32",
)


@op
def LeakyRelu(x: Type, *, alpha: float = 0.01) -> Type:
    """x, or alpha·x where x is negative."""
    return floating("LeakyRelu", x)


unary(
    LeakyRelu,
    lambda x, alpha=0.01: np.where(x < 0, np.float64(np.float32(alpha)) * x, x),
    lambda R, x, alpha=0.01: R.op.where(
        R.op.less(x, const(R, 0, x)), R.op.multiply(x, const(R, alpha, x)), x
    ),
    attrs=({}, {"alpha": 0.25}),
)


@op
def PRelu(x: Type, slope: Type) -> Type:
    """x, or slope·x where x is negative; slope broadcasts to x."""
    same_dtype("PRelu", floating("PRelu", x), slope)
    require(
        broadcast("PRelu", x, slope) == x.shape, f"PRelu: slope {slope} does not broadcast to {x}"
    )
    return x


PRelu.reference(rounded(lambda x, slope: np.where(x < 0, slope * x, x)))
PRelu.relax(wide(lambda R, x, s: R.op.where(R.op.less(x, const(R, 0, x)), R.op.multiply(s, x), x)))


@PRelu.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3, 4), "f32"), draw(rng, (3, 1), "f32")], {}
    yield [draw(rng, (2, 3, 4), "f16"), draw(rng, (2, 3, 4), "f16")], {}


@op
def Elu(x: Type, *, alpha: float = 1.0) -> Type:
    """x, or alpha·(e^x - 1) where x is negative."""
    return floating("Elu", x)


def _negative_exp(R: Any, x: Any, inner: float, outer: float) -> Any:
    """outer·(e^(min(x, 0)·inner) - 1): the minimum keeps e^x of a large positive x from overflowing in vain."""
    low = R.op.multiply(R.op.minimum(x, const(R, 0, x)), const(R, inner, x))
    return R.op.multiply(const(R, outer, x), R.op.subtract(R.op.exp(low), const(R, 1, x)))


def _where_positive(R: Any, x: Any, positive: Any, negative: Any) -> Any:
    return R.op.where(R.op.greater(x, const(R, 0, x)), positive, negative)


unary(
    Elu,
    lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    lambda R, x, alpha=1.0: _where_positive(R, x, x, _negative_exp(R, x, 1, alpha)),
    attrs=({}, {"alpha": 0.5}),
)


@op
def Celu(x: Type, *, alpha: float = 1.0) -> Type:
    """max(0, x) + min(0, alpha·(e^(x/alpha) - 1))."""
    require(alpha != 0, "Celu: alpha is 0")
    return floating("Celu", x)


unary(
    Celu,
    lambda x, alpha=1.0: np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha)),
    lambda R, x, alpha=1.0: _where_positive(R, x, x, _negative_exp(R, x, 1 / alpha, alpha)),
    attrs=({}, {"alpha": 2.0}),
)

SELU_ALPHA, SELU_GAMMA = 1.6732631921768188, 1.0507010221481323


@op
def Selu(x: Type, *, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA) -> Type:
    """gamma·x, or gamma·alpha·(e^x - 1) where x is not positive."""
    return floating("Selu", x)


def _selu(R: Any, x: Any, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA) -> Any:
    positive = R.op.multiply(x, const(R, gamma, x))
    return _where_positive(R, x, positive, _negative_exp(R, x, 1, gamma * alpha))


unary(
    Selu,
    lambda x, alpha=SELU_ALPHA, gamma=SELU_GAMMA: (
        gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))
    ),
    _selu,
    attrs=({}, {"alpha": 2.0, "gamma": 3.0}),
)


@op
def Sigmoid(x: Type) -> Type:
    """1 / (1 + e^-x)."""
    return floating("Sigmoid", x)


unary(Sigmoid, lambda x: 1 / (1 + np.exp(-x)), lambda R, x: R.op.sigmoid(x))


@op
def HardSigmoid(x: Type, *, alpha: float = 0.2, beta: float = 0.5) -> Type:
    """min(1, max(0, alpha·x + beta))."""
    return floating("HardSigmoid", x)


def _hard_sigmoid(R: Any, x: Any, alpha: float = 0.2, beta: float = 0.5) -> Any:
    line = R.op.add(R.op.multiply(x, const(R, alpha, x)), const(R, beta, x))
    return R.op.minimum(R.op.maximum(line, const(R, 0, x)), const(R, 1, x))


unary(
    HardSigmoid,
    lambda x, alpha=0.2, beta=0.5: np.minimum(1, np.maximum(0, alpha * x + beta)),
    _hard_sigmoid,
    attrs=({}, {"alpha": 1 / 6, "beta": 0.5}),
)


@op
def HardSwish(x: Type) -> Type:
    """x·HardSigmoid(x) with alpha 1/6, beta 1/2."""
    return floating("HardSwish", x)


unary(
    HardSwish,
    lambda x: x * np.minimum(1, np.maximum(0, x / 6 + 0.5)),
    lambda R, x: R.op.multiply(x, _hard_sigmoid(R, x, 1 / 6, 0.5)),
    low=-5,
    high=5,
)


@op
def Swish(x: Type, *, alpha: float = 1.0) -> Type:
    """x·Sigmoid(alpha·x)."""
    return floating("Swish", x)


unary(
    Swish,
    lambda x, alpha=1.0: x / (1 + np.exp(-alpha * x)),
    lambda R, x, alpha=1.0: R.op.multiply(x, R.op.sigmoid(R.op.multiply(x, const(R, alpha, x)))),
    attrs=({}, {"alpha": 1.5}),
)


@op
def Tanh(x: Type) -> Type:
    """Hyperbolic tangent."""
    return floating("Tanh", x)


unary(Tanh, np.tanh, lambda R, x: R.op.tanh(x), dtypes="f32 f16 f64")


@op
def Softplus(x: Type) -> Type:
    """ln(1 + e^x)."""
    return floating("Softplus", x)


def _softplus(R: Any, x: Any) -> Any:
    """max(x, 0) + ln(1 + e^-|x|), which cannot overflow."""
    small = R.op.exp(R.op.negative(R.op.abs(x)))
    return R.op.add(R.op.maximum(x, const(R, 0, x)), R.op.log(R.op.add(const(R, 1, x), small)))


unary(Softplus, lambda x: np.logaddexp(x, 0), _softplus)


@op
def Softsign(x: Type) -> Type:
    """x / (1 + |x|)."""
    return floating("Softsign", x)


unary(
    Softsign,
    lambda x: x / (1 + np.abs(x)),
    lambda R, x: R.op.divide(x, R.op.add(const(R, 1, x), R.op.abs(x))),
)


@op
def Mish(x: Type) -> Type:
    """x·tanh(ln(1 + e^x))."""
    return floating("Mish", x)


unary(
    Mish,
    lambda x: x * np.tanh(np.logaddexp(x, 0)),
    lambda R, x: R.op.multiply(x, R.op.tanh(_softplus(R, x))),
)


@op
def Gelu(x: Type, *, approximate: str = "none") -> Type:
    """x·Φ(x), the normal distribution; approximate="tanh": x/2·(1 + tanh(sqrt(2/pi)·(x + 0.044715·x³)))."""
    require(
        approximate in ("none", "tanh"),
        f"Gelu: approximate is {approximate!r}, expected none or tanh",
    )
    return floating("Gelu", x)


def _gelu_reference(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return np.asarray(x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
    return np.asarray(x / 2 * (1 + erf(x / np.sqrt(2))))


def _gelu(R: Any, x: Any, approximate: str = "none") -> Any:
    def c(v: float) -> Any:
        return const(R, v, x)

    if approximate == "tanh":
        cubic = R.op.multiply(c(0.044715), R.op.multiply(x, R.op.multiply(x, x)))
        inner = R.op.tanh(R.op.multiply(c(float(np.sqrt(2 / np.pi))), R.op.add(x, cubic)))
    else:
        inner = R.op.erf(R.op.multiply(x, c(float(np.sqrt(0.5)))))
    return R.op.multiply(R.op.multiply(x, c(0.5)), R.op.add(c(1), inner))


unary(Gelu, _gelu_reference, _gelu, attrs=({}, {"approximate": "tanh"}))


@op
def ThresholdedRelu(x: Type, *, alpha: float = 1.0) -> Type:
    """x where it exceeds alpha, else 0."""
    return floating("ThresholdedRelu", x)


unary(
    ThresholdedRelu,
    lambda x, alpha=1.0: np.where(x > alpha, x, 0),
    lambda R, x, alpha=1.0: R.op.where(R.op.greater(x, const(R, alpha, x)), x, const(R, 0, x)),
    attrs=({}, {"alpha": 0.25}),
)


@op
def Shrink(x: Type, *, bias: float = 0.0, lambd: float = 0.5) -> Type:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    return floating("Shrink", x)


def _shrink(R: Any, x: Any, bias: float = 0.0, lambd: float = 0.5) -> Any:
    low = R.op.where(
        R.op.less(x, const(R, -lambd, x)), R.op.add(x, const(R, bias, x)), const(R, 0, x)
    )
    return R.op.where(R.op.greater(x, const(R, lambd, x)), R.op.subtract(x, const(R, bias, x)), low)


unary(
    Shrink,
    lambda x, bias=0.0, lambd=0.5: np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)),
    _shrink,
    attrs=({}, {"bias": 0.5, "lambd": 1.5}),
)
