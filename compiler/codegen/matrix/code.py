"""Short spellings for the address arithmetic of kernels: uniform values, 64-bit bases, lane-wise integers."""

from __future__ import annotations

from typing import Any

from knapper.isa.instructions import (
    IADD,
    IMAD,
    IMUL,
    IMULHI,
    LOP,
    MOV,
    S2R,
    S2UR,
    SHF,
    UIADD,
    UIDIV,
    UIMAD,
    UIMNMX,
    UIREM,
    UISETP,
    UISUB,
    ULDC,
    ULOP,
    UMOV,
)
from knapper.isa.modifiers import SR, Bits32, Cmp, Direction, IntType, Logic, MinMax

from ..builder import URZ, KernelBuilder, VPred, VReg, VUReg

S32, U32 = IntType.S32, IntType.U32
Number = VUReg | int
"""A uniform value: known now, or in a register."""


# --- uniform


def umov(b: KernelBuilder, x: Number) -> VUReg:
    """A uniform register of its own that holds x."""
    d = b.ureg()
    b.emit(UMOV, d, x)
    return d


def uadd(b: KernelBuilder, x: Number, y: Number) -> Number:
    """x + y."""
    if isinstance(x, int):
        if isinstance(y, int):
            return x + y
        x, y = y, x
    if isinstance(y, int) and y == 0:
        return x
    d = b.ureg()
    b.emit(UIADD, Bits32._32, d, x, y)
    return d


def umul(b: KernelBuilder, x: Number, factor: int, plus: Number = 0) -> Number:
    """x · factor + plus."""
    if isinstance(x, int) or not factor:
        return uadd(b, x * factor if isinstance(x, int) else 0, plus)
    if factor == 1:
        return uadd(b, x, plus)
    d = b.ureg()
    b.emit(UIMAD, d, x, factor, URZ if isinstance(plus, int) else plus)
    return uadd(b, d, plus) if isinstance(plus, int) else d


def usub(b: KernelBuilder, x: int, y: Number) -> Number:
    """x - y."""
    if isinstance(y, int):
        return x - y
    d = b.ureg()
    b.emit(UISUB, d, umov(b, x), y)
    return d


def umin(b: KernelBuilder, x: Number, y: int) -> Number:
    """The smaller, signed."""
    if isinstance(x, int):
        return min(x, y)
    d = b.ureg()
    b.emit(UIMNMX, MinMax.MIN, d, x, y)
    return d


def udivmod(b: KernelBuilder, x: VUReg, by: int) -> tuple[Number, Number]:
    """Quotient and remainder, unsigned."""
    if by == 1:
        return x, 0
    q, r = b.ureg(), b.ureg()
    b.emit(UIDIV, q, x, by)
    b.emit(UIREM, r, x, by)
    return q, r


def uxor(b: KernelBuilder, x: VUReg, y: Number) -> VUReg:
    """x ^ y."""
    d = b.ureg()
    b.emit(ULOP, Logic.XOR, d, x, y)
    return d


def ucompare(b: KernelBuilder, cmp: Cmp, x: VUReg, y: Number) -> VPred:
    """A predicate, the same in every lane: x cmp y, signed."""
    p = b.pred()
    b.emit(UISETP, cmp, S32, p, x, y)
    return p


def special(b: KernelBuilder, sr: SR) -> VUReg:
    """A uniform special register."""
    d = b.ureg()
    b.emit(S2UR, sr, d)
    return d


def block_index(b: KernelBuilder, sr: SR, blocks: int) -> Number:
    """The block's coordinate; 0 where the grid is one block wide."""
    return special(b, sr) if blocks > 1 else 0


# --- 64-bit bases


def param(b: KernelBuilder, i: int) -> VUReg:
    """The i-th launch parameter, a 64-bit word."""
    d = b.ureg(2)
    b.emit(ULDC, Bits32._64, d, 8 * i)
    return d


def move_base(b: KernelBuilder, base: VUReg, by: Number) -> None:
    """base += by, in place; a register is unsigned, a number signed."""
    if isinstance(by, int):
        if by:
            b.emit(UIADD, Bits32._64, base, base, by)
        return
    wide = b.ureg(2)
    b.emit(UMOV, wide[0], by)
    b.emit(UMOV, wide[1], 0)
    b.emit(UIADD, Bits32._64, base, base, wide)


# --- lanes


def lane_id(b: KernelBuilder) -> VReg:
    """0 … 31."""
    d = b.reg()
    b.emit(S2R, SR.LANEID, d)
    return d


def thread_id(b: KernelBuilder) -> VReg:
    """The thread's number in a one-dimensional block."""
    d = b.reg()
    b.emit(S2R, SR.TID_X, d)
    return d


def add(b: KernelBuilder, x: VReg, y: Any) -> VReg:
    """x + y."""
    if isinstance(y, int) and y == 0:
        return x
    d = b.reg()
    b.emit(IADD, S32, d, x, y)
    return d


def mul(b: KernelBuilder, x: VReg, y: int, plus: VReg | None = None) -> VReg:
    """x · y + plus."""
    if y == 1:
        return x if plus is None else add(b, x, plus)
    d = b.reg()
    if plus is not None:
        b.emit(IMAD, S32, d, x, y, plus)
    elif y & (y - 1) == 0 and y > 0:
        b.emit(SHF, Direction.L, U32, d, x, y.bit_length() - 1)
    else:
        b.emit(IMUL, S32, d, x, y)
    return d


def divmod_(b: KernelBuilder, x: VReg, by: int) -> tuple[VReg, VReg]:
    """Quotient and remainder of x, 0 <= x < 2**31, by a number known now.

    A multiplication by ⌈2**(31 + s) / by⌉ with 2**(s - 1) < by <= 2**s: its error stays below 2**s, so 31 bits of x are exact (Granlund and
    Montgomery 1994). IDIV would take the special function unit, which systolic mode does not have.
    """
    q, r = b.reg(), b.reg()
    if by & (by - 1) == 0:
        b.emit(SHF, Direction.R, U32, q, x, by.bit_length() - 1)
        b.emit(LOP, Logic.AND, Bits32._32, r, x, by - 1)
    else:
        s = by.bit_length()
        b.emit(IMULHI, U32, q, x, -(-(1 << 31 + s) // by))
        b.emit(SHF, Direction.R, U32, q, q, s - 1)
        b.emit(IMAD, S32, r, q, -by, x)
    return q, r


def fixed(b: KernelBuilder, x: Any) -> VReg:
    """A vector register that holds a number or a uniform value."""
    d = b.reg()
    b.emit(MOV, d, x)
    return d
