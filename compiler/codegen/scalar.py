"""The one table of scalar lowerings: op name → instructions on fp32 registers, and beside it one for integers of 32 bits.

Epilogues of matrix kernels and the SIMD translator both look functions up here, so that an op has the same bits wherever it runs.

    y = SCALAR["HardSigmoid"](b, x, alpha=0.2, beta=0.5)            n = INTEGER["Add"](b, i, j)

A function takes the builder, operand registers and the op's attributes, and gives a new register. Every multiply and add rounds by itself.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

from knapper.isa.instructions import (
    CVT,
    FADD,
    FDIV,
    FMNMX,
    FMUL,
    FRND,
    FSETP,
    IADD,
    IMNMX,
    IMUL,
    ISUB,
    LOP,
    MOV,
    MUFU,
    SEL,
)
from knapper.isa.modifiers import (
    Bits32,
    Cmp,
    FloatType,
    Fn,
    IntType,
    Logic,
    MinMax,
    Rounding,
    Scalar,
)

from .builder import RZ, KernelBuilder, VPred, VReg

Lowering = Callable[..., VReg]
SCALAR: dict[str, Lowering] = {}
INTEGER: dict[str, Lowering] = {}
"""On i32, wrapping. Ops of `CHOOSING` serve narrower types as well, whose registers hold the extended number."""
INTEGERS = {
    "i8": Scalar.S8,
    "u8": Scalar.U8,
    "i16": Scalar.S16,
    "u16": Scalar.U16,
    "i32": Scalar.S32,
}
"""Types that have the low bits of a register, and the rest as the number's sign says."""
CHOOSING = frozenset({"Clip", "Identity", "Max", "Min", "Relu"})
"""Ops whose result is one of the numbers that they are given."""
F32, S32 = FloatType.F32, IntType.S32


def lowers(name: str, table: dict[str, Lowering] = SCALAR) -> Callable[[Lowering], Lowering]:
    """Enter a function into the table."""

    def enter(f: Lowering) -> Lowering:
        table[name] = f
        return f

    return enter


def f32(x: float) -> int:
    """The bits of a number as fp32, rounded to nearest even.

    >>> hex(f32(1.0))
    '0x3f800000'
    """
    try:
        return int.from_bytes(struct.pack("<f", x), "little")
    except OverflowError:
        return f32(math.copysign(math.inf, x))


def arith(b: KernelBuilder, cls: Any, x: Any, *more: Any) -> VReg:
    """A new register = cls(x, …) in fp32."""
    d = b.reg()
    b.emit(cls, F32, d, x, *more)
    return d


def constant(b: KernelBuilder, x: float) -> VReg:
    """A register that holds a number."""
    d = b.reg()
    b.emit(MOV, d, f32(x))
    return d


def extreme(b: KernelBuilder, op: MinMax, x: VReg, y: Any) -> VReg:
    """The smaller or the larger of two."""
    d = b.reg()
    b.emit(FMNMX, op, F32, d, x, y)
    return d


def compare(b: KernelBuilder, cmp: Cmp, x: VReg, y: Any) -> VPred:
    """A predicate: x cmp y."""
    p = b.pred()
    b.emit(FSETP, cmp, F32, p, x, y)
    return p


def choose(b: KernelBuilder, p: VPred, x: Any, y: Any) -> VReg:
    """x where p holds, else y."""
    d = b.reg()
    b.emit(SEL, Bits32._32, d, x, y, p)
    return d


def special(b: KernelBuilder, fn: Fn, x: VReg) -> VReg:
    """fn(x) on the special-function unit."""
    d = b.reg()
    b.emit(MUFU, fn, F32, d, x)
    return d


def convert(
    b: KernelBuilder, x: VReg, to: Scalar, frm: Scalar, rounding: Rounding = Rounding.RN
) -> VReg:
    """x as another type of at most 32 bits."""
    d = b.reg()
    b.emit(CVT, to, frm, rounding, d, x)
    return d


def scaled(b: KernelBuilder, x: VReg, factor: float) -> VReg:
    """x · factor."""
    return arith(b, FMUL, x, f32(factor))


def plus(b: KernelBuilder, x: VReg, y: float) -> VReg:
    """x + y."""
    return arith(b, FADD, x, f32(y))


def less_one(b: KernelBuilder, x: VReg) -> VReg:
    """e^x - 1."""
    return plus(b, special(b, Fn.EXP, x), -1)


def clipped(b: KernelBuilder, x: VReg, low: float, high: float) -> VReg:
    """x, but not below `low` or above `high`."""
    if low != -math.inf:
        x = extreme(b, MinMax.MAX, x, f32(low))
    return extreme(b, MinMax.MIN, x, f32(high)) if high != math.inf else x


# --- two operands


@lowers("Add")
def _(b: KernelBuilder, x: VReg, y: VReg) -> VReg:
    return arith(b, FADD, x, y)


@lowers("Sub")
def _(b: KernelBuilder, x: VReg, y: VReg) -> VReg:
    return arith(b, FADD, x, SCALAR["Neg"](b, y))


@lowers("Mul")
def _(b: KernelBuilder, x: VReg, y: VReg) -> VReg:
    return arith(b, FMUL, x, y)


@lowers("Div")
def _(b: KernelBuilder, x: VReg, y: VReg) -> VReg:
    return arith(b, FDIV, x, y)


@lowers("Min")
def _(b: KernelBuilder, x: VReg, *more: VReg) -> VReg:
    for y in more:
        x = extreme(b, MinMax.MIN, x, y)
    return x


@lowers("Max")
def _(b: KernelBuilder, x: VReg, *more: VReg) -> VReg:
    for y in more:
        x = extreme(b, MinMax.MAX, x, y)
    return x


@lowers("PRelu")
def _(b: KernelBuilder, x: VReg, slope: VReg) -> VReg:
    return choose(b, compare(b, Cmp.LT, x, f32(0)), arith(b, FMUL, slope, x), x)


# --- one operand, exact


@lowers("Identity")
def _(b: KernelBuilder, x: VReg) -> VReg:
    return x


@lowers("Neg")
def _(b: KernelBuilder, x: VReg) -> VReg:
    d = b.reg()
    b.emit(LOP, Logic.XOR, Bits32._32, d, x, 0x80000000)
    return d


@lowers("Abs")
def _(b: KernelBuilder, x: VReg) -> VReg:
    d = b.reg()
    b.emit(LOP, Logic.AND, Bits32._32, d, x, 0x7FFFFFFF)
    return d


@lowers("Relu")
def _(b: KernelBuilder, x: VReg) -> VReg:
    return extreme(b, MinMax.MAX, x, f32(0))


@lowers("Clip")
def _(b: KernelBuilder, x: VReg, *, min: float = -math.inf, max: float = math.inf) -> VReg:
    return clipped(b, x, min, max)


@lowers("LeakyRelu")
def _(b: KernelBuilder, x: VReg, *, alpha: float = 0.01) -> VReg:
    return choose(b, compare(b, Cmp.LT, x, f32(0)), scaled(b, x, alpha), x)


@lowers("ThresholdedRelu")
def _(b: KernelBuilder, x: VReg, *, alpha: float = 1.0) -> VReg:
    return choose(b, compare(b, Cmp.GT, x, f32(alpha)), x, f32(0))


def _rounding(name: str, mode: Rounding) -> None:
    def lower(b: KernelBuilder, x: VReg) -> VReg:
        d = b.reg()
        b.emit(FRND, mode, F32, d, x)
        return d

    SCALAR[name] = lower


for _name, _mode in {
    "Floor": Rounding.RM,
    "Ceil": Rounding.RP,
    "Round": Rounding.RN,
    "Trunc": Rounding.RZ,
}.items():
    _rounding(_name, _mode)

# --- one operand, by special functions


def _function(name: str, fn: Fn) -> None:
    SCALAR[name] = lambda b, x: special(b, fn, x)


for _name, _fn in {
    "Exp": Fn.EXP, "Log": Fn.LOG, "Exp2": Fn.EX2, "Log2": Fn.LG2, "Sqrt": Fn.SQRT, "Rsqrt": Fn.RSQ, "Reciprocal": Fn.RCP,
    "Sin": Fn.SIN, "Cos": Fn.COS, "Tanh": Fn.TANH, "Erf": Fn.ERF,
}.items():  # fmt: skip
    _function(_name, _fn)


@lowers("Sigmoid")
def _(b: KernelBuilder, x: VReg) -> VReg:
    return arith(b, FDIV, constant(b, 1), plus(b, special(b, Fn.EXP, SCALAR["Neg"](b, x)), 1))


@lowers("Swish")
def _(b: KernelBuilder, x: VReg, *, alpha: float = 1.0) -> VReg:
    inner = x if alpha == 1 else scaled(b, x, alpha)
    return arith(b, FMUL, x, SCALAR["Sigmoid"](b, inner))


@lowers("HardSigmoid")
def _(b: KernelBuilder, x: VReg, *, alpha: float = 0.2, beta: float = 0.5) -> VReg:
    return clipped(b, plus(b, scaled(b, x, alpha), beta), 0, 1)


@lowers("HardSwish")
def _(b: KernelBuilder, x: VReg) -> VReg:
    return arith(b, FMUL, x, SCALAR["HardSigmoid"](b, x, alpha=1 / 6, beta=0.5))


@lowers("Elu")
def _(b: KernelBuilder, x: VReg, *, alpha: float = 1.0) -> VReg:
    return choose(b, compare(b, Cmp.GT, x, f32(0)), x, scaled(b, less_one(b, x), alpha))


@lowers("Softplus")
def _(b: KernelBuilder, x: VReg) -> VReg:
    """max(x, 0) + log(1 + e^-|x|): no overflow."""
    small = special(
        b, Fn.LOG, plus(b, special(b, Fn.EXP, SCALAR["Neg"](b, SCALAR["Abs"](b, x))), 1)
    )
    return arith(b, FADD, SCALAR["Relu"](b, x), small)


@lowers("Mish")
def _(b: KernelBuilder, x: VReg) -> VReg:
    return arith(b, FMUL, x, special(b, Fn.TANH, SCALAR["Softplus"](b, x)))


@lowers("Softsign")
def _(b: KernelBuilder, x: VReg) -> VReg:
    return arith(b, FDIV, x, plus(b, SCALAR["Abs"](b, x), 1))


@lowers("Gelu")
def _(b: KernelBuilder, x: VReg, *, approximate: str = "none") -> VReg:
    if approximate == "tanh":
        cubic = arith(b, FMUL, arith(b, FMUL, x, x), scaled(b, x, 0.044715))
        gate = special(b, Fn.TANH, scaled(b, arith(b, FADD, x, cubic), math.sqrt(2 / math.pi)))
    else:
        gate = special(b, Fn.ERF, scaled(b, x, math.sqrt(0.5)))
    return arith(b, FMUL, scaled(b, x, 0.5), plus(b, gate, 1))


# --- integers


def _wrapping(name: str, cls: Any) -> None:
    def lower(b: KernelBuilder, x: VReg, y: VReg) -> VReg:
        return whole(b, cls, x, y)

    INTEGER[name] = lower


def whole(b: KernelBuilder, cls: Any, x: Any, y: Any) -> VReg:
    """A new register = cls(x, y) in 32 bits."""
    d = b.reg()
    b.emit(cls, S32, d, x, y)
    return d


for _name, _cls in {"Add": IADD, "Sub": ISUB, "Mul": IMUL}.items():
    _wrapping(_name, _cls)


def _least(b: KernelBuilder, op: MinMax, x: VReg, y: Any) -> VReg:
    d = b.reg()
    b.emit(IMNMX, op, S32, d, x, y)
    return d


@lowers("Min", INTEGER)
def _(b: KernelBuilder, x: VReg, *more: VReg) -> VReg:
    for y in more:
        x = _least(b, MinMax.MIN, x, y)
    return x


@lowers("Max", INTEGER)
def _(b: KernelBuilder, x: VReg, *more: VReg) -> VReg:
    for y in more:
        x = _least(b, MinMax.MAX, x, y)
    return x


@lowers("Identity", INTEGER)
def _(b: KernelBuilder, x: VReg) -> VReg:
    return x


@lowers("Neg", INTEGER)
def _(b: KernelBuilder, x: VReg) -> VReg:
    return whole(b, ISUB, RZ, x)


@lowers("Abs", INTEGER)
def _(b: KernelBuilder, x: VReg) -> VReg:
    """The least integer is its own, as numpy has it."""
    return _least(b, MinMax.MAX, x, INTEGER["Neg"](b, x))


@lowers("Relu", INTEGER)
def _(b: KernelBuilder, x: VReg) -> VReg:
    return _least(b, MinMax.MAX, x, 0)


@lowers("Clip", INTEGER)
def _(b: KernelBuilder, x: VReg, *, min: int, max: int) -> VReg:
    """Bounds are values of the operand's type."""
    return _least(b, MinMax.MIN, _least(b, MinMax.MAX, x, min & 0xFFFFFFFF), max & 0xFFFFFFFF)
