"""The lane algebra on LLVM vectors: what `execute` computes with when the fast engine traces it.

F16 and BF16 values are carried as their 16 bits and computed in float32 with one rounding back, which for + - × ÷ and √ equals
rounding the exact result (24 ≥ 2·11 + 2 bits). Hosts without half-precision conversions get them in integer arithmetic, so
that no result depends on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from knapper.isa.lanes import B1, BF16, F16, F32, F64, S32, S64, U16, U32, U64, LaneType

from .emit import DOUBLE, FLOAT, HALF, I1, I16, I32, Code, constant_vector, vector

Number = int | float
INTEGRAL = {"RN": "llvm.rint", "RM": "llvm.floor", "RP": "llvm.ceil", "RZ": "llvm.trunc"}


def element_type(type: LaneType) -> Any:
    """The LLVM type that carries one lane."""
    return {F32: FLOAT, F64: DOUBLE, B1: I1}.get(type) or ir.IntType(type.bits)


@dataclass(frozen=True, eq=False)
class Traced:
    """A value: an LLVM vector of 32 lanes, and what it means."""

    algebra: Algebra
    v: Any
    type: LaneType

    def _both(self, other: Any, op: str) -> Traced:
        return self.algebra.arithmetic(op, self, self.algebra.lift(other, self.type))

    def _flipped(self, other: Any, op: str) -> Traced:
        return self.algebra.arithmetic(op, self.algebra.lift(other, self.type), self)

    def __add__(self, other: Any) -> Traced:
        return self._both(other, "add")

    def __radd__(self, other: Any) -> Traced:
        return self._flipped(other, "add")

    def __sub__(self, other: Any) -> Traced:
        return self._both(other, "sub")

    def __rsub__(self, other: Any) -> Traced:
        return self._flipped(other, "sub")

    def __mul__(self, other: Any) -> Traced:
        return self._both(other, "mul")

    def __rmul__(self, other: Any) -> Traced:
        return self._flipped(other, "mul")

    def __truediv__(self, other: Any) -> Traced:
        return self._both(other, "div")

    def __rtruediv__(self, other: Any) -> Traced:
        return self._flipped(other, "div")

    def __and__(self, other: Any) -> Traced:
        return self._both(other, "and_")

    __rand__ = __and__

    def __or__(self, other: Any) -> Traced:
        return self._both(other, "or_")

    __ror__ = __or__

    def __xor__(self, other: Any) -> Traced:
        return self._both(other, "xor")

    __rxor__ = __xor__

    def __invert__(self) -> Traced:
        return Traced(self.algebra, self.algebra.b.not_(self.v), self.type)

    def __neg__(self) -> Traced:
        return self.algebra.negate(self)

    def __eq__(self, other: Any) -> Traced:  # type: ignore[override]  # lane by lane, as in numpy
        return self.algebra.compare("==", self, other)

    def __ne__(self, other: Any) -> Traced:  # type: ignore[override]  # likewise
        return self.algebra.compare("!=", self, other)

    __hash__ = None  # type: ignore[assignment]  # like a numpy array

    def __lt__(self, other: Any) -> Traced:
        return self.algebra.compare("<", self, other)

    def __le__(self, other: Any) -> Traced:
        return self.algebra.compare("<=", self, other)

    def __gt__(self, other: Any) -> Traced:
        return self.algebra.compare(">", self, other)

    def __ge__(self, other: Any) -> Traced:
        return self.algebra.compare(">=", self, other)


class Algebra:
    """The functions of `knapper.isa.lanes`, emitted into a function being written."""

    def __init__(self, code: Code, features: frozenset[str]) -> None:
        self.code, self.b, self.features = code, code.b, features

    def lift(self, x: Any, type: LaneType) -> Traced:
        """A value as it is; a Python number as a value of `type`."""
        return x if isinstance(x, Traced) else self.number(x, type)

    def constant(self, like: Traced, x: Number, type: LaneType) -> Traced:
        return self.number(x, type)

    def number(self, x: Number, type: LaneType) -> Traced:
        """A number in every lane."""
        if type.kind in "su":
            return Traced(self, self._ints(type, int(x)), type)
        if type.bits == 16:
            return Traced(
                self, self._ints(type, int(np.array(x, type.dtype).view(np.uint16))), type
            )
        return Traced(self, constant_vector(element_type(type), [x] * 32), type)

    def _ints(self, type: LaneType, x: int) -> Any:
        return constant_vector(ir.IntType(type.bits), [x & (1 << type.bits) - 1] * 32)

    def alike(self, *xs: Any) -> list[Traced]:
        """Operands of one type, some of them perhaps Python numbers."""
        type = next(x.type for x in xs if isinstance(x, Traced))
        return [self.lift(x, type) for x in xs]

    def _unary(self, intrinsic: str, x: Traced) -> Traced:
        """A float intrinsic of one operand."""
        wide = self.single(x)
        return self.shrink(
            Traced(self, self.code.intrinsic(intrinsic, wide.v.type, [wide.v]), wide.type), x.type
        )

    # --- 16-bit floats

    def single(self, x: Traced) -> Traced:
        """A 16-bit float as F32; others as they are."""
        if x.type is BF16:
            bits = self.b.shl(self.b.zext(x.v, vector(I32)), self._ints(U32, 16))
            return Traced(self, self.b.bitcast(bits, vector(FLOAT)), F32)
        if x.type is not F16:
            return x
        if "f16c" in self.features:
            return Traced(self, self.b.fpext(self.b.bitcast(x.v, vector(HALF)), vector(FLOAT)), F32)
        return self._widen_half(self.convert(Traced(self, x.v, U16), U32))

    def _widen_half(self, h: Traced) -> Traced:
        """Scale by 2**112 to move the exponent bias from 15 to 127; exact, subnormals included."""
        magnitude, sign = h & 0x7FFF, self.shl(h & 0x8000, 16)
        scaled = self.bitcast(self.bitcast(self.shl(magnitude, 13), F32) * 2.0**112, U32)
        special = self.shl(magnitude, 13) | 0x7F800000
        return self.bitcast(self.select(magnitude >= 0x7C00, special, scaled) | sign, F32)

    def shrink(self, x: Traced, type: LaneType) -> Traced:
        """F32 rounded to a 16-bit float; to F32 or F64 as it is."""
        if type.bits != 16:
            return x
        if type is F16 and "f16c" in self.features:
            return Traced(self, self.b.bitcast(self.b.fptrunc(x.v, vector(HALF)), vector(I16)), F16)
        bits = self.bits(x)
        narrow = self._round_half(x, bits) if type is F16 else self._round_brain(bits)
        return Traced(self, self.convert(narrow, U16).v, type)

    def _round_brain(self, bits: Traced) -> Traced:
        rounded = self.shr(bits + 0x7FFF + (self.shr(bits, 16) & 1), 16)
        return self.select((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded)

    def _round_half(self, x: Traced, bits: Traced) -> Traced:
        magnitude, sign = bits & 0x7FFFFFFF, self.shr(bits, 16) & 0x8000
        normal = self.minimum(
            self.shr(magnitude - 0x38000000 + 0xFFF + (self.shr(magnitude, 13) & 1), 13), 0x7C00
        )
        # 0.5 has the last place of a half subnormal, so the float adder rounds for us
        subnormal = self.bits(self.bitcast(magnitude, F32) + 0.5) - 0x3F000000
        number = self.select(magnitude < 0x38800000, subnormal, normal)
        return self.select(magnitude > 0x7F800000, 0x7E00, number | sign)

    # --- bits

    def bits(self, x: Traced) -> Traced:
        """The raw bits, NaNs as they are."""
        return self._raw(x, {16: U16, 32: U32, 64: U64}[x.type.bits])

    def _raw(self, x: Traced, type: LaneType) -> Traced:
        return Traced(self, self.b.bitcast(x.v, vector(element_type(type))), type)

    def canonical(self, x: Traced) -> Traced:
        """A float whose NaNs are the canonical one."""
        if x.type.kind != "f":
            return x
        quiet = self._ints(
            x.type,
            {16: 0x7E00 if x.type is F16 else 0x7FC0, 32: 0x7FC00000, 64: 0x7FF8 << 48}[
                x.type.bits
            ],
        )
        chosen = self.b.select(self.isnan(x).v, quiet, self.bits(x).v)
        return self._raw(Traced(self, chosen, x.type), x.type)

    def bitcast(self, x: Traced, type: LaneType) -> Traced:
        return self._raw(self.canonical(x), type)

    def isnan(self, x: Traced) -> Traced:
        return self.compare("!=", x, x)

    # --- arithmetic

    def arithmetic(self, op: str, x: Traced, y: Traced) -> Traced:
        """x op y; `op` is a method of the IR builder."""
        if x.type.kind != "f":
            return Traced(self, getattr(self.b, op)(x.v, y.v), x.type)
        a, b = self.single(x), self.single(y)
        return self.shrink(Traced(self, getattr(self.b, f"f{op}")(a.v, b.v), a.type), x.type)

    def negate(self, x: Traced) -> Traced:
        if x.type.kind != "f":
            return self.number(0, x.type) - x
        if x.type.bits == 16:
            return Traced(self, self.b.xor(x.v, self._ints(x.type, 0x8000)), x.type)
        return Traced(self, self.b.fneg(x.v), x.type)

    def compare(self, op: str, x: Traced, other: Any) -> Traced:
        """Booleans; with a NaN only != holds."""
        y = self.lift(other, x.type)
        if x.type.kind == "f":
            compare = self.b.fcmp_unordered if op == "!=" else self.b.fcmp_ordered
            return Traced(self, compare(op, self.single(x).v, self.single(y).v), B1)
        compare = self.b.icmp_signed if x.type.kind == "s" else self.b.icmp_unsigned
        return Traced(self, compare(op, x.v, y.v), B1)

    def select(self, condition: Traced, a: Any, b: Any) -> Traced:
        a, b = self.alike(a, b)
        return Traced(self, self.b.select(condition.v, a.v, b.v), a.type)

    def fma(self, a: Any, b: Any, c: Any) -> Traced:
        a, b, c = self.alike(a, b, c)
        if a.type.bits == 16:  # exact product, one rounding to odd, one to the type
            wide = [self.convert(x, F64) for x in (a, b, c)]
            return self.convert(self._add_to_odd(wide[0] * wide[1], wide[2]), a.type)
        return Traced(self, self.code.intrinsic("llvm.fma", a.v.type, [a.v, b.v, c.v]), a.type)

    def _add_to_odd(self, a: Traced, b: Traced) -> Traced:
        """a + b in F64 rounded to odd, as in `lanes`."""
        s = a + b
        t = s - a
        error = (a - (s - t)) + (b - t)
        return self._odd(s, error > 0, error < 0, self.absolute(s) < float("inf"))

    def _odd(self, x: Traced, above: Traced, below: Traced, finite: Traced) -> Traced:
        """x, or where the exact value is above or below it and x is even, its odd neighbour on that side."""
        bits = self._raw(x, {32: S32, 64: S64}[x.type.bits])
        away = self.select(
            bits < 0, -1, self.number(1, bits.type)
        )  # one unit further from zero, for a value above x
        zero = self.absolute(x) == 0  # the least subnormal, of the exact value's sign
        step = self.select(above, away, self.select(below, -away, 0))
        even = ((bits & 1) == 0) & finite & ~zero
        moved = self._raw(bits + self.select(even, step, 0), x.type)
        tiny = self._raw(self.number(1, bits.type), x.type)
        return self.select(zero & above, tiny, self.select(zero & below, -tiny, moved))

    def sqrt(self, x: Traced) -> Traced:
        return self._unary("llvm.sqrt", x)

    def rint(self, x: Traced) -> Traced:
        return self._unary("llvm.rint", x)

    def floor(self, x: Traced) -> Traced:
        return self._unary("llvm.floor", x)

    def ceil(self, x: Traced) -> Traced:
        return self._unary("llvm.ceil", x)

    def trunc(self, x: Traced) -> Traced:
        return self._unary("llvm.trunc", x)

    def absolute(self, x: Traced) -> Traced:
        if x.type.kind == "f":
            return self._unary("llvm.fabs", x)
        return self.select(x < 0, -x, x) if x.type.kind == "s" else x

    def minimum(self, a: Any, b: Any) -> Traced:
        return self._extreme("<", self.b.or_, a, b)

    def maximum(self, a: Any, b: Any) -> Traced:
        return self._extreme(">", self.b.and_, a, b)

    def _extreme(self, op: str, join: Callable[[Any, Any], Any], a: Any, b: Any) -> Traced:
        """Equal floats differ at most in a zero's sign, which `join` settles."""
        a, b = self.alike(a, b)
        better = self.select(self.compare(op, a, b), a, b)
        if a.type.kind != "f":
            return better
        joined = self._raw(
            Traced(self, join(self.bits(a).v, self.bits(b).v), self.bits(a).type), a.type
        )
        best = self.select(a == b, joined, better)
        return self.select(self.isnan(a), a, best)  # no order holds with a NaN b, so best is b

    # --- conversion

    def convert(self, x: Traced, type: LaneType, rounding: str = "RN") -> Traced:
        if type.kind == "b":
            return x != 0
        if type.kind == "f":
            return self._to_float(x, type)
        if x.type.kind == "f":
            return self._to_int(x, type, rounding)
        return Traced(self, self._resize(x, type), type)

    def _resize(self, x: Traced, type: LaneType) -> Any:
        if type.bits == x.type.bits:
            return x.v
        if type.bits < x.type.bits:
            return self.b.trunc(x.v, vector(element_type(type)))
        return (self.b.sext if x.type.kind == "s" else self.b.zext)(x.v, vector(element_type(type)))

    def _to_int(self, x: Traced, type: LaneType, rounding: str) -> Traced:
        wide = self._unary(INTEGRAL[rounding], self.single(x))
        result = vector(element_type(type))
        name = "llvm.fptosi.sat" if type.kind == "s" else "llvm.fptoui.sat"
        return Traced(
            self, self.code.intrinsic(name, result, [wide.v], [result, wide.v.type]), type
        )

    def _to_float(self, x: Traced, type: LaneType) -> Traced:
        if x.type is type:
            return x
        if x.type.kind == "f":
            return self._between_floats(self.single(x), type)
        if type.bits == 16:
            return self._between_floats(self._exact64(x), type)
        cast = self.b.sitofp if x.type.kind == "s" else self.b.uitofp
        return Traced(self, cast(x.v, vector(element_type(type))), type)

    def _exact64(self, x: Traced) -> Traced:
        """An integer as F64; beyond 2**53 with its low bits folded into a sticky one, which is all that rounding to 16 bits sees."""
        if x.type.bits == 64:
            sticky = self.shl(self.select((x & 0x7FF) != 0, 1, self.number(0, x.type)), 11)
            rough = self.absolute(self._to_float(x, F64))
            x = self.select(rough >= 2.0**53, self.shl(self.shr(x, 11), 11) | sticky, x)
        return self._to_float(x, F64)

    def _between_floats(self, x: Traced, type: LaneType) -> Traced:
        """From F32 or F64."""
        if x.type.bits < type.bits:
            return Traced(self, self.b.fpext(x.v, vector(element_type(type))), type)
        if x.type is F32:
            return self.shrink(x, type)
        near = Traced(self, self.b.fptrunc(x.v, vector(FLOAT)), F32)
        if type is F32:
            return near
        back = self._to_float(near, F64)
        return self.shrink(
            self._odd(near, x > back, x < back, self.absolute(x) < float("inf")), type
        )

    # --- integers

    def _amount(self, n: Any, type: LaneType) -> tuple[Traced, Traced]:
        """A shift amount in the value's own width, clamped, and whether it is less than the width."""
        n = self.lift(n, U32)
        fits = n < type.bits
        clamped = self.select(fits, n, type.bits - 1)
        return self.convert(clamped, type), fits

    def shl(self, x: Traced, n: Any) -> Traced:
        amount, fits = self._amount(n, x.type)
        return self.select(fits, Traced(self, self.b.shl(x.v, amount.v), x.type), 0)

    def shr(self, x: Traced, n: Any) -> Traced:
        amount, fits = self._amount(n, x.type)
        if x.type.kind == "s":
            return Traced(self, self.b.ashr(x.v, amount.v), x.type)
        return self.select(fits, Traced(self, self.b.lshr(x.v, amount.v), x.type), 0)

    def mulhi(self, a: Any, b: Any) -> Traced:
        a, b = self.alike(a, b)
        double = vector(ir.IntType(2 * a.type.bits))
        extend = self.b.sext if a.type.kind == "s" else self.b.zext
        product = self.b.mul(extend(a.v, double), extend(b.v, double))
        high = self.b.lshr(product, constant_vector(double.element, [a.type.bits] * 32))
        return Traced(self, self.b.trunc(high, a.v.type), a.type)

    def idiv(self, a: Any, b: Any) -> Traced:
        a, b = self.alike(a, b)
        unsigned = {32: U32, 64: U64}[a.type.bits]
        x, y = (self._raw(self.absolute(v), unsigned) for v in (a, b))
        quotient = self._raw(self._divide(x, self.select(y == 0, 1, y)), a.type)
        signed = (
            quotient if a.type.kind == "u" else self.select((a < 0) ^ (b < 0), -quotient, quotient)
        )
        return self.select(b == 0, self.number(-1, a.type), signed)

    def _divide(self, x: Traced, y: Traced) -> Traced:
        """Unsigned. 32-bit quotients come from float64 division, whose rounding error is too small to carry over an integer."""
        if x.type is U64:
            return Traced(self, self.b.udiv(x.v, y.v), U64)
        quotient = self.b.fdiv(self._to_float(x, F64).v, self._to_float(y, F64).v)
        return Traced(self, self.b.fptoui(quotient, vector(I32)), U32)

    def irem(self, a: Any, b: Any) -> Traced:
        a, b = self.alike(a, b)
        return self.select(b == 0, a, a - b * self.idiv(a, b))

    def _count(self, name: str, x: Traced, *more: Any) -> Traced:
        counted = self.code.intrinsic(name, x.v.type, [x.v, *more], [x.v.type])
        return self.convert(
            Traced(self, counted, {8: U32, 16: U16, 32: U32, 64: U64}[x.type.bits]), U32
        )

    def popc(self, x: Traced) -> Traced:
        return self._count("llvm.ctpop", x)

    def clz(self, x: Traced) -> Traced:
        return self._count("llvm.ctlz", x, ir.Constant(I1, 0))

    def brev(self, x: Traced) -> Traced:
        return Traced(self, self.code.intrinsic("llvm.bitreverse", x.v.type, [x.v]), x.type)
