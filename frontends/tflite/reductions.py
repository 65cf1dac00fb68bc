"""Sums, means and what else makes fewer numbers of many, and normalizations."""

from __future__ import annotations

from typing import Any

import numpy as np

from knapper.isa.errors import FrontendError

from .convert import Call, converts
from .spatial import FIRST, LAST, image_rank

REDUCED = {
    "MEAN": "ReduceMean", "SUM": "ReduceSum", "REDUCE_PROD": "ReduceProd",
    "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin", "REDUCE_ANY": "ReduceMax", "REDUCE_ALL": "ReduceMin",
}  # fmt: skip


@converts(*REDUCED)
def _(call: Call) -> None:
    axes = sorted({call.axis(a) for a in call.ints(1)})
    how: dict[str, Any] = {"keepdims": int(bool(call.option("keepDims", False)))}
    logical = call.op.name in ("REDUCE_ANY", "REDUCE_ALL")
    x = call.cast(call.stored(0), "INT32") if logical else call.real(0)
    y = call.node(REDUCED[call.op.name], x, call.int64(*axes), **how) if axes else x
    call.give(call.cast(y, "BOOL") if logical else y)


@converts("ARG_MAX", "ARG_MIN")
def _(call: Call) -> None:
    (axis,) = call.ints(1)
    op = "ArgMax" if call.op.name == "ARG_MAX" else "ArgMin"
    y = call.node(op, call.stored(0), axis=call.axis(axis), keepdims=0)
    call.keep(y if call.result().type == "INT64" else call.cast(y, call.result().type))


@converts("CUMSUM")
def _(call: Call) -> None:
    (axis,) = call.ints(1)
    how = {n: int(bool(call.option(n, False))) for n in ("exclusive", "reverse")}
    call.give(call.node("CumSum", call.real(0), call.constant(np.int64(call.axis(axis))), **how))


@converts("SOFTMAX")
def _(call: Call) -> None:
    x, beta = call.real(0), float(call.option("beta", 1.0))
    x = x if beta == 1 else call.node("Mul", x, call.number(beta))
    call.give(call.node("Softmax", x, axis=-1))


@converts("LOG_SOFTMAX")
def _(call: Call) -> None:
    call.give(call.node("LogSoftmax", call.real(0), axis=-1))


@converts("L2_NORMALIZATION")
def _(call: Call) -> None:
    x = call.real(0)
    square = call.node("ReduceSum", call.node("Mul", x, x), call.int64(-1), keepdims=1)
    length = call.node("Sqrt", call.node("Max", square, call.number(1e-6)))
    call.give(call.node("Div", x, length))


@converts("LOCAL_RESPONSE_NORMALIZATION")
def _(call: Call) -> None:
    image_rank(call, 0, 4)
    size = 2 * int(call.option("radius")) + 1
    if size < 1:
        raise FrontendError("E206", f"a radius of {call.option('radius')}")
    alpha, beta, bias = (float(call.option(n)) for n in ("alpha", "beta", "bias"))
    how: dict[str, Any] = {"size": size, "alpha": alpha * size, "beta": beta, "bias": bias}
    call.give(call.node("LRN", call.real(0, FIRST), **how), perm=LAST)
