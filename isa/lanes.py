"""The lane algebra: what instructions are written in.

A value is one number a lane, 32 lanes. In the reference engine a value is a numpy array of shape (32,); in the fast engine
it is a handle on an LLVM vector (`runtime/trace.py`). Both take `+ - * & | ^ ~`, unary `-`, comparisons (which give booleans), and
the functions below; Python numbers beside a value take the value's type. An `execute` body must therefore not branch on a
value (use `select`), only on the instruction's own fields.

Rules, the same in both engines: integers wrap; shifts by the width or more give 0 (arithmetic right: the sign); float `+ - * /` and `sqrt`
round once to nearest even, subnormals kept; `fma` rounds once; nothing contracts or splits. Any two NaNs are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

LANES = 32
Value = Any
"""A numpy array of 32 lanes, or the fast engine's handle on one."""


@dataclass(frozen=True)
class LaneType:
    """The type of one lane: `kind` is f, s, u or b (bool)."""

    name: str
    kind: str
    bits: int
    dtype: Any
    """The numpy dtype."""

    def __repr__(self) -> str:
        return self.name


F16 = LaneType("F16", "f", 16, np.float16)
BF16 = LaneType("BF16", "f", 16, ml_dtypes.bfloat16)
F32 = LaneType("F32", "f", 32, np.float32)
F64 = LaneType("F64", "f", 64, np.float64)
S8, S16, S32, S64 = (LaneType(f"S{n}", "s", n, np.dtype(f"i{n // 8}").type) for n in (8, 16, 32, 64))
U8, U16, U32, U64 = (LaneType(f"U{n}", "u", n, np.dtype(f"u{n // 8}").type) for n in (8, 16, 32, 64))
B1 = LaneType("B1", "b", 1, np.bool_)
TYPES: dict[str, LaneType] = {t.name: t for t in (F16, BF16, F32, F64, S8, S16, S32, S64, U8, U16, U32, U64, B1)}


class Warp(Protocol):
    """What `execute(m)` may ask of a warp. Writes, stores and predicate writes touch only the lanes that are active (guard included).

    A type narrower than 32 bits sits in the low bits of its register: floats with zeros above, signed integers sign-extended,
    unsigned ones zero-extended. 64-bit types take two registers, low word first.
    """

    def read(self, reg: Any, type: LaneType) -> Value: ...
    def source(self, src: Any, type: LaneType) -> Value:
        """A Src: register, uniform register (every lane the same) or immediate.

        An immediate is 32 raw bits. For a 64-bit integer type it is sign-extended, for F64 it is the high word with zeros below.
        """
    def write(self, reg: Any, value: Value) -> None: ...
    def predicate(self, p: Any) -> Value:
        """A Pred or Guard, as booleans."""
    def set_predicate(self, p: Any, value: Value) -> None: ...
    def uniform(self, reg: Any, type: LaneType) -> Value:
        """A uniform register, or a Src that is one or an immediate; the value is the same in every lane."""
    def set_uniform(self, reg: Any, value: Value) -> None:
        """Write a uniform register from lane 0 of a value that is the same in every lane; the guard does not matter."""
    def set_uniform_predicate(self, p: Any, value: Value) -> None:
        """Write a predicate in all 32 lanes, active or not, from lane 0 of a uniform value."""
    def load(self, space: str, address: Value, type: LaneType, words: int = 1, where: Value | None = None) -> list[Value]:
        """`words` consecutive values of `type` from byte `address` on; inactive lanes give 0 and touch nothing.

        space: "global" (U64 addresses), "shared", "local" (U32), "param" (U32, uniform). `where` narrows the active lanes; a
        lane outside it gives 0. The address must be a multiple of the access's size (words × type).
        """
    def store(self, space: str, address: Value, values: list[Value]) -> None: ...
    def lane(self) -> Value:
        """0 … 31, as U32."""
    def active(self) -> Value:
        """The lanes that this instruction acts on, as booleans (the guard included)."""
    def special(self, name: str) -> Value:
        """A special register as U32: TID_X …, CTAID_X …, NCTAID_X …, NTID_X …, LANEID, WARPID."""
    def shuffle(self, value: Value, lane: Value) -> Value:
        """Each lane gets `value` of lane number `lane` (0 … 31), whether that lane is active or not."""
    def ballot(self, value: Value) -> Value:
        """Booleans → one U32, bit i from lane i, the same in every lane; inactive lanes give 0."""
    def first(self, value: Value) -> Value:
        """The lowest active lane's value, in every lane."""
    # control: `runtime` implements these natively in both engines
    def branch(self, target: int) -> None: ...
    def push_convergence(self, barrier: int, target: int) -> None: ...
    def converge(self, barrier: int) -> None: ...
    def barrier(self, number: int) -> None: ...
    def exit(self) -> None: ...


# --- functions of values: numpy here, or whatever algebra the operand brings -------------------------------------------


def _traced(*values: Value) -> Any:
    """The algebra of the first operand that brings one, or None for numpy."""
    return next((v.algebra for v in values if hasattr(v, "algebra")), None)


def constant(like: Value, x: Any, type: LaneType) -> Value:
    """A number in every lane, in the algebra of `like`."""
    if t := _traced(like):
        return t.constant(x, type)
    return np.full(LANES, x, type.dtype)


def select(condition: Value, a: Value, b: Value) -> Value:
    """`a` where the condition holds, else `b`."""
    if t := _traced(condition, a, b):
        return t.select(condition, a, b)
    a, b = np.asarray(a), np.asarray(b)
    kind = a.dtype if a.ndim else b.dtype
    return np.where(condition, a.astype(kind), b.astype(kind))


def bitcast(x: Value, type: LaneType) -> Value:
    """The same bits under another type of the same width."""
    if t := _traced(x):
        return t.bitcast(x, type)
    return x.view(type.dtype)
