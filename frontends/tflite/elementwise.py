"""Operators on elements, with TFLite's fused activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from knapper.isa.errors import FrontendError

from .convert import ONNX_TYPE, Call, converts
from .file import DTYPES

Unary = Callable[[Call, str], str]


def clip(call: Call, v: str, low: float, high: float) -> str:
    """Between two numbers."""
    return call.node("Clip", v, call.number(low), call.number(high))


ACTIVATIONS: dict[str, Unary] = {
    "NONE": lambda _, v: v,
    "RELU": lambda c, v: c.node("Relu", v),
    "RELU_N1_TO_1": lambda c, v: clip(c, v, -1, 1),
    "RELU6": lambda c, v: clip(c, v, 0, 6),
    "TANH": lambda c, v: c.node("Tanh", v),
}
"""ActivationFunctionType: what an operator does to its result."""


def activated(call: Call, v: str) -> str:
    """A result behind the operator's fused activation. Integers are clipped in their own type."""
    if call.op.options is None:
        return v
    name = call.named("ActivationFunctionType", "fusedActivationFunction")
    if name not in ACTIVATIONS:
        raise FrontendError("E203", f"the fused activation {name} is not supported")
    if name == "NONE":
        return v
    if call.result().scales is None and call.result().type in ("INT32", "INT64"):
        kind = DTYPES[call.result().type]
        low, high = {"RELU": (0, None), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}[name]
        v = call.node("Max", v, call.constant(kind(low)))
        return v if high is None else call.node("Min", v, call.constant(kind(high)))
    return ACTIVATIONS[name](call, v)


def squared(call: Call, v: str) -> str:
    """v · v"""
    return call.node("Mul", v, v)


UNARY: dict[str, Unary] = {
    "RELU": ACTIVATIONS["RELU"],
    "RELU6": ACTIVATIONS["RELU6"],
    "RELU_N1_TO_1": ACTIVATIONS["RELU_N1_TO_1"],
    "RELU_0_TO_1": lambda c, v: clip(c, v, 0, 1),
    "ELU": lambda c, v: c.node("Elu", v),
    "LEAKY_RELU": lambda c, v: c.node("LeakyRelu", v, alpha=float(c.option("alpha"))),
    "LOGISTIC": lambda c, v: c.node("Sigmoid", v),
    "TANH": ACTIVATIONS["TANH"],
    "HARD_SWISH": lambda c, v: c.node("HardSwish", v),
    "GELU": lambda c, v: c.node("Gelu", v, approximate="tanh" if c.option("approximate", False) else "none"),
    "ABS": lambda c, v: c.node("Abs", v),
    "NEG": lambda c, v: c.node("Neg", v),
    "EXP": lambda c, v: c.node("Exp", v),
    "LOG": lambda c, v: c.node("Log", v),
    "SQRT": lambda c, v: c.node("Sqrt", v),
    "RSQRT": lambda c, v: c.node("Reciprocal", c.node("Sqrt", v)),
    "SQUARE": squared,
    "SIN": lambda c, v: c.node("Sin", v),
    "COS": lambda c, v: c.node("Cos", v),
    "FLOOR": lambda c, v: c.node("Floor", v),
    "CEIL": lambda c, v: c.node("Ceil", v),
    "ROUND": lambda c, v: c.node("Round", v),
    "SIGN": lambda c, v: c.node("Sign", v),
    "LOGICAL_NOT": lambda c, v: c.node("Not", v),
}  # fmt: skip


@converts(*UNARY)
def _(call: Call) -> None:
    call.give(UNARY[call.op.name](call, call.real(0)))


BINARY = {
    "ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "POW": "Pow",
    "EQUAL": "Equal", "LESS": "Less", "LESS_EQUAL": "LessOrEqual", "GREATER": "Greater", "GREATER_EQUAL": "GreaterOrEqual",
    "LOGICAL_AND": "And", "LOGICAL_OR": "Or", "BITWISE_XOR": "BitwiseXor",
}  # fmt: skip


@converts(*BINARY)
def _(call: Call) -> None:
    y = call.node(BINARY[call.op.name], call.real(0), call.real(1))
    fused = hasattr(call.op.options, "fusedActivationFunction")
    call.give(activated(call, y) if fused else y)


@converts("NOT_EQUAL")
def _(call: Call) -> None:
    call.give(call.node("Not", call.node("Equal", call.real(0), call.real(1))))


@converts("MAXIMUM", "MINIMUM")
def _(call: Call) -> None:
    op = "Max" if call.op.name == "MAXIMUM" else "Min"
    call.give(call.node(op, call.real(0), call.real(1)))


@converts("SQUARED_DIFFERENCE")
def _(call: Call) -> None:
    call.give(squared(call, call.node("Sub", call.real(0), call.real(1))))


@converts("ADD_N")
def _(call: Call) -> None:
    y = call.real(0)
    for i in range(1, len(call.op.inputs)):
        y = call.node("Add", y, call.real(i))
    call.give(y)


@converts("FLOOR_DIV", "FLOOR_MOD")
def _(call: Call) -> None:
    """The quotient is rounded down, so that the rest has the divisor's sign."""
    x, y = call.real(0), call.real(1)
    if call.result().type.startswith("FLOAT"):
        q = call.node("Floor", call.node("Div", x, y))
        rest = call.node("Sub", x, call.node("Mul", q, y))
        return call.give(q if call.op.name == "FLOOR_DIV" else rest)
    rest = call.node("Mod", x, y)
    whole = call.node("Div", call.node("Sub", x, rest), y)
    return call.give(whole if call.op.name == "FLOOR_DIV" else rest)


@converts("PRELU")
def _(call: Call) -> None:
    call.give(call.node("PRelu", call.real(0), call.real(1)))


@converts("SELECT", "SELECT_V2")
def _(call: Call) -> None:
    condition = call.stored(0)
    if call.op.name == "SELECT" and call.rank(0) == 1 and call.rank(1) > 1:
        shape = call.int64(-1, *(1,) * (call.rank(1) - 1))
        condition = call.node("Reshape", condition, shape)
    if call.same_scales(1, 2):
        call.keep(call.node("Where", condition, call.stored(1), call.stored(2)))
    else:
        call.give(call.node("Where", condition, call.real(1), call.real(2)))


@converts("CAST")
def _(call: Call) -> None:
    if call.result().type not in ONNX_TYPE:
        raise FrontendError("E202", f"casts to {call.result().type} are not supported")
    call.keep(call.cast(call.stored(0), call.result().type))


@converts("FAKE_QUANT")
def _(call: Call) -> None:
    """Rounded to integers of some bits and back; the range is moved so that zero is one of them."""
    low, high, bits = (float(call.option(n)) for n in ("min", "max", "numBits"))
    least = 1.0 if call.option("narrowRange", False) else 0.0
    most = 2.0**bits - 1
    if not (low <= 0 <= high and low < high and most > least):
        raise FrontendError("E206", f"a range from {low} to {high} in {bits:g} bits")
    scale = (high - low) / (most - least)
    zero = float(np.clip(np.floor(least - low / scale + 0.5), least, most))
    x = clip(call, call.real(0), (least - zero) * scale, (most - zero) * scale)
    steps = call.node("Div", x, call.number(scale))
    half = call.node("Floor", call.node("Add", steps, call.number(0.5)))
    call.give(call.node("Mul", half, call.number(scale)))
