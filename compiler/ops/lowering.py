"""What relax facets share. Nothing here imports tvm when loaded: `R` is `tvm.relax`, handed in by the worker.

A facet is called inside an active `R.BlockBuilder` function scope, with operands that have a type (Vars, or emitted
expressions), and gives an expression or a list of them, one for each result it can make.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

TVM_DTYPES = {
    "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "bool": "bool",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
}  # fmt: skip


def dtype_of(x: Any) -> str:
    """The operand's dtype in TVM's spelling."""
    return str(x.ty.dtype)


def shape_of(x: Any) -> tuple[int, ...]:
    """The operand's static shape."""
    return tuple(int(n) for n in x.ty.shape)


def rank_of(x: Any) -> int:
    """The operand's rank."""
    return len(shape_of(x))


def is_float(x: Any) -> bool:
    """Whether the operand is of a float type."""
    return "float" in dtype_of(x)


def const(R: Any, value: float, like: Any) -> Any:
    """A scalar constant of an operand's dtype."""
    return R.const(value, dtype_of(like))


def emit(R: Any, expr: Any) -> Any:
    """Bind an expression in the function being built, so that its type is known."""
    return R.BlockBuilder.current().emit(expr)


def te(R: Any, f: Callable[..., Any], *operands: Any) -> Any:
    """An operator that Relax lacks, written as a tensor expression `f(*te_tensors)`; bound."""
    return R.BlockBuilder.current().emit_te(f, *operands)


def wide(f: Callable[..., Any]) -> Callable[..., Any]:
    """Facet that computes in f32: casts f16 and bf16 operands up, the result back down, as the reference does."""

    @wraps(f)
    def facet(R: Any, *operands: Any, **attrs: Any) -> Any:
        stored = next((dtype_of(x) for x in operands if x is not None and is_float(x)), "")
        if stored not in ("float16", "bfloat16"):
            return f(R, *operands, **attrs)
        y = f(R, *(_up(R, x) for x in operands), **attrs)
        return [_down(R, v, stored) for v in y] if isinstance(y, list) else _down(R, y, stored)

    return facet


def _up(R: Any, x: Any) -> Any:
    if x is None or dtype_of(x) not in ("float16", "bfloat16"):
        return x
    return emit(R, R.op.astype(x, "float32"))


def _down(R: Any, x: Any, stored: str) -> Any:
    x = emit(R, x)
    return R.op.astype(x, stored) if is_float(x) else x  # not what a comparison gives, or an index
