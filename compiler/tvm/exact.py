"""Arithmetic on data, hidden from TVM's simplifier. Runs in the worker.

    y[i] = x[i] + x[i] < x[i]        ─►     y[i] = knapper.lt(knapper.add(x[i], x[i]), x[i])

TVM proves things about indices, which are small: there `4·i / 4` is `i`, and `i < i + 1` holds. It simplifies values of tensors by
the same rules, as if they were real numbers. But `x − x` of an infinity is NaN, NaN ≠ NaN, and integers wrap (README, numeric
contract); besides, what is simplified would depend on what is fused. So between scheduling and the first simplification every
operation on a loaded value, and every one on floats, becomes a call of an operator that TVM knows nothing of but that it is pure
and may be vectorized. The export writes it as what it was. Arithmetic on loop variables alone stays TVM's, and so do `and`, `or`,
`not` and selections, whose laws hold.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from .export import BINARY, PREFIX, kind

LAWFUL = ("And", "Or")
"""Operations with two operands whose laws hold for data too."""
HIDDEN = {name: PREFIX + op for name, op in BINARY.items() if name not in LAWFUL} | {
    "Cast": PREFIX + "cast"
}
"""TIR node → our operator."""
NUMBER = PREFIX + "number"
FOLDED = (
    "add", "subtract", "multiply", "divide", "power", "mod", "floor_mod", "minimum", "maximum",
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
)  # fmt: skip
"""Relax operators of which TVM writes a scalar constant into the expression, where `x · 0` is 0 at once, and `x / 0` an error."""


def legalization() -> dict[str, Any]:
    """How to legalize those: a constant is an operand as any other, and gets into the code when it is inlined."""

    def as_tensors(name: str) -> Any:
        return lambda builder, call: builder.call_te(getattr(tvm.topi, name), *call.args)

    return {f"relax.{name}": as_tensors(name) for name in FOLDED}


def number(value: float, dtype: str) -> Any:
    """A constant that TVM does not compute with."""
    return tirx.call_intrin(dtype, NUMBER, tirx.const(value, dtype))


def register() -> None:
    """Tell TVM about the operators."""
    for name in (*HIDDEN.values(), NUMBER):
        tvm.ir.register_op_attr(name, "TCallEffectKind", tirx.CallEffectKind.Pure.value)
        tvm.ir.register_op_attr(name, "TVectorizable", True)
        tvm.ir.register_op_attr(name, "TScriptPrinterName", name)


def hidden(f: Any) -> Any:
    """The PrimFunc with calls for its arithmetic on data."""
    return tvm_ffi.structural_mutate(f, [(s, _inside) for s in (*STATEMENTS, tirx.CommReducer)])


def _inside(s: Any, mutator: Any) -> Any:
    """A statement that computes, with calls; a reduction's combiner as it is, since passes look for it."""
    return s if kind(s) == "CommReducer" else tvm_ffi.structural_mutate(s, OPERATIONS)


def _hidden(e: Any, mutator: Any) -> Any:
    e = mutator.default_mutate(e)
    parts = _operands(e)
    if kind(e) == "Cast" and e.ty == e.value.ty:
        return e.value
    if not any(map(_is_data, (e, *parts))):
        return e
    return tirx.call_intrin(e.ty, HIDDEN[kind(e)], *parts)


STATEMENTS = (tirx.BufferStore, tirx.Bind, tirx.Evaluate)
OPERATIONS = [(getattr(tirx, name), _hidden) for name in HIDDEN]


def _is_data(e: Any) -> bool:
    """Whether an expression has something of a tensor in it, or is a float."""
    return (
        kind(e) == "TensorLoad"
        or "float" in str(e.ty.dtype)
        or _name(e).startswith(PREFIX)
        or any(map(_is_data, _operands(e)))
    )


def _operands(e: Any) -> tuple[Any, ...]:
    match kind(e):
        case "Call":
            return tuple(e.args)
        case "Cast":
            return (e.value,)
        case "Select":
            return (e.condition, e.true_value, e.false_value)
        case "Let":
            return (e.value, e.body)
        case "Not" | "BitwiseNot":
            return (e.a,)
        case name if name in BINARY:
            return (e.a, e.b)
    return ()


def _name(e: Any) -> str:
    return str(getattr(e.op, "name", "")) if kind(e) == "Call" else ""
