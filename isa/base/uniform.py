"""Uniform arithmetic: one value a warp, for addresses, loop counts and tile coordinates."""

from __future__ import annotations

from typing import Any

from ..core import Instr
from ..lanes import S32, U32, idiv, irem, shl, shr
from ..modifiers import Bits32, Cmp, Direction, IntType, Logic, MinMax
from ..operands import READ, WRITE, Pred, Reg, Src, UReg, bits
from .algebra import by_width, compare, extreme, logic


class Uniform(Instr, unit="uniform"):
    """A uniform instruction runs once a warp, whichever lanes are active; it takes no guard and no vector register."""

    def refusal(self) -> str:
        if self.guard != 7:
            return f"a uniform instruction takes no guard, got {self.guard}"
        sources = (getattr(self, n) for n, (kind, _) in self.layout.items() if kind is Src)
        return next((f"{s} is not uniform" for s in sources if s.kind == Src.REG), "")


class UMOV(Uniform, opcode=0x010):
    """d = a, a uniform register or an immediate."""

    d: UReg = bits(31, 26, use=WRITE)
    a: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        m.set_uniform(self.d, m.uniform(self.a, U32))


class UIADD(Uniform, opcode=0x011):
    """d = a + b; wraps. A 32-bit immediate is sign-extended for `.64`."""

    width: Bits32 = bits(14)
    d: UReg = bits(31, 26, use=WRITE, words=by_width)
    a: UReg = bits(39, 34, use=READ, words=by_width)
    b: Src = bits(97, 64, use=READ, words=by_width)

    def execute(self, m: Any) -> None:
        m.set_uniform(
            self.d, m.uniform(self.a, self.width.lane) + m.uniform(self.b, self.width.lane)
        )


class UISUB(Uniform, opcode=0x012):
    """d = a - b, 32 bits; wraps."""

    d: UReg = bits(31, 26, use=WRITE)
    a: UReg = bits(39, 34, use=READ)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        m.set_uniform(self.d, m.uniform(self.a, U32) - m.uniform(self.b, U32))


class UIMAD(Uniform, opcode=0x013):
    """d = a * b + c, the low 32 bits."""

    d: UReg = bits(31, 26, use=WRITE)
    a: UReg = bits(39, 34, use=READ)
    b: Src = bits(97, 64, use=READ)
    c: UReg = bits(47, 42, use=READ)

    def execute(self, m: Any) -> None:
        m.set_uniform(
            self.d, m.uniform(self.a, U32) * m.uniform(self.b, U32) + m.uniform(self.c, U32)
        )


class UIMNMX(Uniform, opcode=0x014):
    """d = the smaller or the larger of a and b, signed 32 bits."""

    op: MinMax = bits(14)
    d: UReg = bits(31, 26, use=WRITE)
    a: UReg = bits(39, 34, use=READ)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        m.set_uniform(self.d, extreme(self.op, m.uniform(self.a, S32), m.uniform(self.b, S32)))


class UIDIV(Uniform, opcode=0x015):
    """d = a / b, unsigned 32 bits; x / 0 is 0xffffffff."""

    d: UReg = bits(31, 26, use=WRITE)
    a: UReg = bits(39, 34, use=READ)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        m.set_uniform(self.d, idiv(m.uniform(self.a, U32), m.uniform(self.b, U32)))


class UIREM(Uniform, opcode=0x016):
    """d = the remainder of a / b, unsigned 32 bits; x % 0 is x."""

    d: UReg = bits(31, 26, use=WRITE)
    a: UReg = bits(39, 34, use=READ)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        m.set_uniform(self.d, irem(m.uniform(self.a, U32), m.uniform(self.b, U32)))


class ULOP(Uniform, opcode=0x017):
    """d = a op b, bit by bit, 32 bits."""

    op: Logic = bits(15, 14)
    d: UReg = bits(31, 26, use=WRITE)
    a: UReg = bits(39, 34, use=READ)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        m.set_uniform(self.d, logic(self.op, m.uniform(self.a, U32), m.uniform(self.b, U32)))


class USHF(Uniform, opcode=0x018):
    """d = a shifted by b, unsigned 32 bits; a shift by 32 or more gives 0."""

    dir: Direction = bits(14)
    d: UReg = bits(31, 26, use=WRITE)
    a: UReg = bits(39, 34, use=READ)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        shift = shl if self.dir is Direction.L else shr
        m.set_uniform(self.d, shift(m.uniform(self.a, U32), m.uniform(self.b, U32)))


class UISETP(Uniform, opcode=0x019):
    """p = a cmp b, in all 32 lanes, active or not."""

    cmp: Cmp = bits(16, 14)
    type: IntType = bits(18, 17, only=(IntType.S32, IntType.U32))
    p: Pred = bits(28, 26, use=WRITE)
    a: UReg = bits(39, 34, use=READ)
    b: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        t = self.type.lane
        m.set_uniform_predicate(
            self.p, compare(self.cmp, m.uniform(self.a, t), m.uniform(self.b, t))
        )


class R2UR(Instr, opcode=0x01A, unit="uniform"):
    """d = a of the lowest active lane. If the guard leaves no lane, d keeps its value."""

    d: UReg = bits(31, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ)

    def execute(self, m: Any) -> None:
        m.set_uniform(self.d, m.first(m.read(self.a, U32)))
