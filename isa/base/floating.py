"""Float arithmetic. Every result is rounded once to nearest even, subnormals are kept, nothing contracts; any NaN is the NaN."""

from __future__ import annotations

import operator
from typing import Any

from .. import functions
from ..core import Instr, by_type
from ..lanes import U16, U32, ceil, convert, floor, fma, rint, shl, trunc
from ..modifiers import Cmp, FloatType, Fn, Half, MinMax, Rounding, Scalar
from ..operands import READ, WRITE, Pred, Reg, Src, bits
from .algebra import compare, extreme, packed

INTEGRAL = {Rounding.RN: rint, Rounding.RM: floor, Rounding.RP: ceil, Rounding.RZ: trunc}


class Float(Instr, unit="fma"):
    """Float instructions of type F64 run on the `fp64` unit."""

    def resource(self) -> str:
        return (
            "fp64"
            if getattr(self, "type", None) is FloatType.F64 and self.unit == "fma"
            else self.unit
        )


class FADD(Float, opcode=0x040):
    """d = a + b."""

    type: FloatType = bits(14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, m.read(self.a, t) + m.source(self.b, t))


class FMUL(Float, opcode=0x041):
    """d = a * b."""

    type: FloatType = bits(14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, m.read(self.a, t) * m.source(self.b, t))


class FDIV(Float, opcode=0x042, unit="sfu"):
    """d = a / b."""

    type: FloatType = bits(14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, m.read(self.a, t) / m.source(self.b, t))


class FFMA(Float, opcode=0x043):
    """d = a * b + c with one rounding."""

    type: FloatType = bits(14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)
    c: Reg = bits(49, 42, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, fma(m.read(self.a, t), m.source(self.b, t), m.read(self.c, t)))

    def macs(self, lanes: int) -> int:
        return lanes


class FMNMX(Float, opcode=0x044):
    """d = the smaller or the larger of a and b. NaN if either is NaN, so that no NaN is lost; -0 is smaller than +0."""

    op: MinMax = bits(14)
    type: FloatType = bits(15)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, extreme(self.op, m.read(self.a, t), m.source(self.b, t)))


class FSETP(Float, opcode=0x045):
    """p = a cmp b. With a NaN only `.NE` holds; -0 equals +0."""

    cmp: Cmp = bits(16, 14)
    type: FloatType = bits(17)
    p: Pred = bits(28, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.set_predicate(self.p, compare(self.cmp, m.read(self.a, t), m.source(self.b, t)))


class FRND(Float, opcode=0x046, unit="cvt"):
    """d = a rounded to an integral float: nearest even, down, up or toward zero. A zero keeps its sign."""

    rounding: Rounding = bits(15, 14)
    type: FloatType = bits(16)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        m.write(self.d, INTEGRAL[self.rounding](m.read(self.a, self.type.lane)))


class MUFU(Float, opcode=0x047, unit="sfu"):
    """d = fn(a): the algorithm in the chapter on special functions, to the bit."""

    fn: Fn = bits(17, 14)
    type: FloatType = bits(18)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, functions.MUFU[self.fn.name, t](m.read(self.a, t)))


def to_words(i: Any) -> int:
    """Registers of CVT's result."""
    return 2 if i.to.lane.bits == 64 else 1


def from_words(i: Any) -> int:
    """Registers of CVT's operand."""
    return 2 if i.frm.lane.bits == 64 else 1


class CVT(Instr, opcode=0x048, unit="cvt"):
    """d = a as another type: `CVT.F16.F32.RN R1, R2` is float32 to float16.

    Float to integer rounds as told, then saturates; NaN gives 0. Integer to integer wraps. All other conversions round to
    nearest even, so `.RN` is the only rounding they take. A type under 32 bits sits in the low bits of its register:
    floats and unsigned integers with zeros above, signed integers sign-extended; what lies above in `a` is not read.
    """

    to: Scalar = bits(17, 14)
    frm: Scalar = bits(21, 18)
    rounding: Rounding = bits(23, 22)
    d: Reg = bits(33, 26, use=WRITE, words=to_words)
    a: Reg = bits(41, 34, use=READ, words=from_words)

    def refusal(self) -> str:
        rounds = self.frm.lane.kind == "f" and self.to.lane.kind != "f"
        return (
            ""
            if rounds or self.rounding is Rounding.RN
            else "only float to integer takes another rounding than RN"
        )

    def execute(self, m: Any) -> None:
        m.write(self.d, convert(m.read(self.a, self.frm.lane), self.to.lane, self.rounding.name))


class HADD2(Instr, opcode=0x050, unit="fma"):
    """d = a + b, in each 16-bit half."""

    type: Half = bits(14)
    d: Reg = bits(33, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        m.write(self.d, packed(m, self.type.lane, self.a, self.b, operator.add))


class HMUL2(Instr, opcode=0x051, unit="fma"):
    """d = a * b, in each 16-bit half."""

    type: Half = bits(14)
    d: Reg = bits(33, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        m.write(self.d, packed(m, self.type.lane, self.a, self.b, operator.mul))


class HMNMX2(Instr, opcode=0x052, unit="fma"):
    """d = the smaller or the larger of a and b, in each 16-bit half; NaN and zeros as in FMNMX."""

    op: MinMax = bits(14)
    type: Half = bits(15)
    d: Reg = bits(33, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        m.write(
            self.d, packed(m, self.type.lane, self.a, self.b, lambda x, y: extreme(self.op, x, y))
        )


class PACK2(Instr, opcode=0x053, unit="alu"):
    """d = the low half of a, and the low half of b above it."""

    d: Reg = bits(33, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ)
    b: Reg = bits(57, 50, use=READ)

    def execute(self, m: Any) -> None:
        low, high = (convert(convert(m.read(r, U32), U16), U32) for r in (self.a, self.b))
        m.write(self.d, low | shl(high, 16))
