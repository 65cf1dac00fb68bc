"""Integer, bitwise and predicate arithmetic. Integers wrap; 64-bit types take register pairs."""

from __future__ import annotations

from typing import Any

from ..core import Instr, by_type
from ..lanes import U32, brev, clz, idiv, irem, mulhi, popc, select, shl, shr
from ..modifiers import Bits32, Cmp, Direction, IntType, Logic, MinMax
from ..operands import READ, WRITE, Guard, Pred, Reg, Src, bits
from .algebra import by_width, compare, extreme, logic


class MOV(Instr, opcode=0x020, unit="alu"):
    """d = a: a register, a uniform register or an immediate."""

    d: Reg = bits(33, 26, use=WRITE)
    a: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        m.write(self.d, m.source(self.a, U32))


class IADD(Instr, opcode=0x021, unit="alu"):
    """d = a + b; wraps."""

    type: IntType = bits(15, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, m.read(self.a, t) + m.source(self.b, t))


class ISUB(Instr, opcode=0x022, unit="alu"):
    """d = a - b; wraps."""

    type: IntType = bits(15, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, m.read(self.a, t) - m.source(self.b, t))


class IMUL(Instr, opcode=0x023, unit="imul"):
    """d = a * b, the low half of the product."""

    type: IntType = bits(15, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, m.read(self.a, t) * m.source(self.b, t))


class IDIV(Instr, opcode=0x024, unit="sfu"):
    """d = a / b, truncated toward zero. x / 0 has all bits set; the least signed number / -1 is itself."""

    type: IntType = bits(15, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, idiv(m.read(self.a, t), m.source(self.b, t)))


class IREM(Instr, opcode=0x025, unit="sfu"):
    """d = a - b * (a / b), with the sign of a. x % 0 is x; x % -1 is 0."""

    type: IntType = bits(15, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, irem(m.read(self.a, t), m.source(self.b, t)))


class IMAD(Instr, opcode=0x026, unit="imul"):
    """d = a * b + c, the low half.

    The low halves of S32 and U32 are the same. So in a matrix kernel addresses are made by S32, and all other types count as
    multiply-accumulates.
    """

    type: IntType = bits(15, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)
    c: Reg = bits(49, 42, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, m.read(self.a, t) * m.source(self.b, t) + m.read(self.c, t))

    def macs(self, lanes: int) -> int:
        return 0 if self.type is IntType.S32 else lanes


class IMULHI(Instr, opcode=0x027, unit="imul"):
    """d = a * b, the high half of the double-width product."""

    type: IntType = bits(15, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, mulhi(m.read(self.a, t), m.source(self.b, t)))


class IMNMX(Instr, opcode=0x028, unit="alu"):
    """d = the smaller or the larger of a and b."""

    op: MinMax = bits(14)
    type: IntType = bits(16, 15)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.write(self.d, extreme(self.op, m.read(self.a, t), m.source(self.b, t)))


class IABS(Instr, opcode=0x029, unit="alu"):
    """d = |a|; the least number stays itself."""

    type: IntType = bits(15, 14, only=(IntType.S32, IntType.S64))
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        a = m.read(self.a, self.type.lane)
        m.write(self.d, select(a < 0, -a, a))


class LOP(Instr, opcode=0x02A, unit="alu"):
    """d = a op b, bit by bit."""

    op: Logic = bits(15, 14)
    width: Bits32 = bits(16)
    d: Reg = bits(33, 26, use=WRITE, words=by_width)
    a: Reg = bits(41, 34, use=READ, words=by_width)
    b: Src = bits(97, 64, use=READ, words=by_width)

    def execute(self, m: Any) -> None:
        t = self.width.lane
        m.write(self.d, logic(self.op, m.read(self.a, t), m.source(self.b, t)))


class SHF(Instr, opcode=0x02B, unit="alu"):
    """d = a shifted by b bits, b unsigned 32 bits. By the width or more: 0, or the sign for a signed right shift."""

    dir: Direction = bits(14)
    type: IntType = bits(16, 15)
    d: Reg = bits(33, 26, use=WRITE, words=by_type)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        shift = shl if self.dir is Direction.L else shr
        m.write(self.d, shift(m.read(self.a, self.type.lane), m.source(self.b, U32)))


class ISETP(Instr, opcode=0x02C, unit="alu"):
    """p = a cmp b."""

    cmp: Cmp = bits(16, 14)
    type: IntType = bits(18, 17)
    p: Pred = bits(28, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ, words=by_type)
    b: Src = bits(97, 64, use=READ, words=by_type)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.set_predicate(self.p, compare(self.cmp, m.read(self.a, t), m.source(self.b, t)))


class POPC(Instr, opcode=0x02D, unit="cvt"):
    """d = how many bits of a are set."""

    d: Reg = bits(33, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ)

    def execute(self, m: Any) -> None:
        m.write(self.d, popc(m.read(self.a, U32)))


class FLO(Instr, opcode=0x02E, unit="cvt"):
    """d = how many zeros lead a: 0 to 32."""

    d: Reg = bits(33, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ)

    def execute(self, m: Any) -> None:
        m.write(self.d, clz(m.read(self.a, U32)))


class BREV(Instr, opcode=0x02F, unit="cvt"):
    """d = the bits of a in reverse order."""

    d: Reg = bits(33, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ)

    def execute(self, m: Any) -> None:
        m.write(self.d, brev(m.read(self.a, U32)))


class SEL(Instr, opcode=0x030, unit="alu"):
    """d = a where p holds, else b."""

    width: Bits32 = bits(14)
    d: Reg = bits(33, 26, use=WRITE, words=by_width)
    a: Reg = bits(41, 34, use=READ, words=by_width)
    b: Src = bits(97, 64, use=READ, words=by_width)
    p: Guard = bits(107, 104, use=READ)

    def execute(self, m: Any) -> None:
        t = self.width.lane
        m.write(self.d, select(m.predicate(self.p), m.read(self.a, t), m.source(self.b, t)))


class PLOP(Instr, opcode=0x031, unit="alu"):
    """p = a op b, predicates that may each be negated. `PLOP.AND P0, P1, PT` copies."""

    op: Logic = bits(15, 14)
    p: Pred = bits(28, 26, use=WRITE)
    a: Guard = bits(37, 34, use=READ)
    b: Guard = bits(53, 50, use=READ)

    def execute(self, m: Any) -> None:
        m.set_predicate(self.p, logic(self.op, m.predicate(self.a), m.predicate(self.b)))
