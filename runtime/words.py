"""How values sit in registers, immediates and thread numbers, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.lanes import BY_DTYPE, U32, LaneType, Value, canonical


def coordinate(linear: Value, size: tuple[int, int, int], axis: str) -> Value:
    """x, y or z of a linear number, x fastest."""
    x, y, _ = size
    return {"X": linear % x, "Y": linear // x % y, "Z": linear // (x * y)}[axis].astype(np.uint32)


def immediate(payload: int, type: LaneType) -> Any:
    """The value of a 32-bit immediate: the high word of an F64, sign-extended to 64-bit integers, else its low bits."""
    if type.bits == 64:
        signed = payload - (payload >> 31 << 32)
        payload = payload << 32 if type.kind == "f" else signed & (1 << 64) - 1
    return np.array(payload & (1 << type.bits) - 1, f"u{type.bits // 8}").view(type.dtype)[()]


def words_of(value: Value) -> list[NDArray[np.uint32]]:
    """A value as it sits in registers: low word first, narrow signed integers sign-extended, all else zero-extended."""
    type, value = BY_DTYPE[value.dtype], canonical(value)
    if type.bits == 64:
        bits = value.view(np.uint64)
        return [bits.astype(np.uint32), (bits >> np.uint64(32)).astype(np.uint32)]
    if type.kind == "s":
        return [value.astype(np.int32).view(np.uint32)]
    raw = (
        value.astype(U32.dtype)
        if type.kind in "ub"
        else value.view(f"u{type.bits // 8}").astype(U32.dtype)
    )
    return [raw]
