"""Integers: sums of terms, division by constants, and the uniform unit for what all lanes agree on.

sum of terms      lanes' part (IMAD chain) + uniform part (UIMAD chain) + constant; prefixes are shared between sums
floordiv by c     shift; or multiply high by a magic number that the interval proves exact; or divide and correct
floormod by c     mask, or x − c·(x // c)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from knapper.isa.instructions import (
    IADD,
    IDIV,
    IMAD,
    IMNMX,
    IMUL,
    IMULHI,
    IREM,
    ISETP,
    LOP,
    SHF,
    UIADD,
    UIDIV,
    UIMAD,
    UIMNMX,
    UIREM,
    UISETP,
    ULOP,
    UMOV,
    USHF,
)
from knapper.isa.modifiers import Bits32, Cmp, Direction, IntType, Logic, MinMax

from ..builder import URZ, VReg, VUReg
from .expr import INTEGERS, Expr
from .scopes import Scopes
from .values import INTS, Value, known, size, words

EXTREMES = {"min": MinMax.MIN, "max": MinMax.MAX}
BITWISE = {
    "bitand": Logic.AND,
    "bitor": Logic.OR,
    "bitxor": Logic.XOR,
    "and": Logic.AND,
    "or": Logic.OR,
}


class Integers(Scopes):
    """Evaluates integer expressions."""

    def _integer(self, x: Expr, into: VReg | None) -> Value:
        if (
            words(x.dtype) == 2
            and x.fits32
            and x.op in ("sum", "mul", "floordiv", "floormod", "min", "max")
        ):
            small = self.pool.narrow(x)
            if small.op != "low":
                return self.e.convert(self.value(small), x.dtype, into)
        if x.uniform and words(x.dtype) == 1 and (v := self._on_uniform_unit(x)) is not None:
            return v
        match x.op:
            case "sum":
                return self._wrapped(x, self._sum(x, into))
            case "mul":
                return self._wrapped(x, self._two(IMUL, x, into))
            case "floordiv" | "floormod":
                return self._division(x, into)
            case "div":
                return self._wrapped(x, self._two(IDIV, x, into))
            case "mod":
                return self._two(IREM, x, into)
            case "min" | "max":
                return self._extreme(x, into)
            case "bitand" | "bitor" | "bitxor":
                return self._bitwise(BITWISE[x.op], x, into)
            case "bitnot":
                return self._bitwise(Logic.XOR, x, into, known(x.dtype, -1))
            case "shl" | "shr":
                return self._wrapped(x, self._shift(x, into))
            case "low":
                return Value("i32", self.e.register(self.value(x.args[0]))[0])
        return self._common(x, into)

    def _wrapped(self, x: Expr, v: Value) -> Value:
        """A result brought back into a type under 32 bits."""
        if (
            size(x.dtype) == 4
            or words(x.dtype) == 2
            or (x.range is not None and x.range != INTEGERS[x.dtype])
        ):
            return v
        full = "i32" if x.dtype[0] == "i" else "u32"
        return self.e.convert(Value(full, v.at), x.dtype)

    def _operand(self, x: Expr, dtype: str) -> Value:
        """An atom of a sum in the sum's type, modulo its width."""
        if words(dtype) == 1:
            return self.value(self.pool.narrow(x))
        return self.e.convert(self.value(x), dtype)

    def _two(self, cls: Any, x: Expr, into: VReg | None) -> Value:
        a, b = (self.value(y) for y in x.args)
        d = self.e.new(x.dtype, into)
        self.e.emit(cls, INTS[x.dtype], d, self.e.register(a), self.e.source(b))
        return Value(x.dtype, d)

    def _sum(self, x: Expr, into: VReg | None) -> Value:
        """The uniform terms and the constant are one number a warp; what remains is a chain over its prefixes."""
        terms, offset = x.terms, x.offset
        lanes = {a: c for a, c in terms.items() if not (a.uniform and words(x.dtype) == 1)}
        if len(lanes) < len(terms) or offset:
            uniform = self.pool.sum(
                x.dtype, offset, {a: c for a, c in terms.items() if a not in lanes}
            )
            v = (
                self.value(self.pool.sum(x.dtype, 0, lanes))
                if len(lanes) > 1 or words(x.dtype) == 2
                else self._term(x.dtype, lanes)
            )
            d = self.e.new(x.dtype, into)
            self.e.emit(
                IADD, INTS[x.dtype], d, self.e.register(v), self.e.source(self.value(uniform))
            )
            return Value(x.dtype, d)
        *before, last = lanes
        if not before:
            return self._term(x.dtype, lanes, into)
        prefix = self.value(self.pool.sum(x.dtype, 0, {a: lanes[a] for a in before}))
        return self._multiply_add(x.dtype, self._operand(last, x.dtype), lanes[last], prefix, into)

    def _term(self, dtype: str, terms: dict[Expr, int], into: VReg | None = None) -> Value:
        """One atom times a constant."""
        ((atom, factor),) = terms.items()
        single = self.pool.sum(dtype, 0, terms)
        if (found := self.known(single)) is not None:
            return found
        v = self._operand(atom, dtype)
        if factor == 1:
            return v
        d = self.e.new(dtype, into)
        if factor > 0 and factor & (factor - 1) == 0:
            self.e.emit(
                SHF, Direction.L, INTS[dtype], d, self.e.register(v), factor.bit_length() - 1
            )
        else:
            self.e.emit(
                IMUL, INTS[dtype], d, self.e.register(v), self.e.source(known(dtype, factor))
            )
        return self.keep(single, Value(dtype, d)) if single.op == "sum" else Value(dtype, d)

    def _multiply_add(
        self, dtype: str, a: Value, factor: int, c: Value, into: VReg | None
    ) -> Value:
        d = self.e.new(dtype, into)
        if factor == 1:
            self.e.emit(IADD, INTS[dtype], d, self.e.register(a), self.e.source(c))
        else:
            self.e.emit(
                IMAD,
                INTS[dtype],
                d,
                self.e.register(a),
                self.e.source(known(dtype, factor)),
                self.e.register(c),
            )
        return Value(dtype, d)

    def _extreme(self, x: Expr, into: VReg | None) -> Value:
        a, b = (self.value(y) for y in x.args)
        a, b = (b, a) if a.is_known else (a, b)
        d = self.e.new(x.dtype, into)
        self.e.emit(IMNMX, EXTREMES[x.op], INTS[x.dtype], d, self.e.register(a), self.e.source(b))
        return Value(x.dtype, d)

    def _bitwise(self, op: Logic, x: Expr, into: VReg | None, second: Value | None = None) -> Value:
        a = self.value(x.args[0])
        b = second or self.value(x.args[1])
        a, b = (b, a) if a.is_known else (a, b)
        d = self.e.new(x.dtype, into)
        width = Bits32._64 if words(x.dtype) == 2 else Bits32._32
        self.e.emit(LOP, op, width, d, self.e.register(a), self.e.source(b))
        clean = op is Logic.XOR and x.dtype in ("u8", "u16") and second is not None
        return self.e.convert(Value("u32", d), x.dtype) if clean else Value(x.dtype, d)

    def _shift(self, x: Expr, into: VReg | None) -> Value:
        a, amount = self.value(x.args[0]), self.value(self.pool.narrow(x.args[1]))
        d = self.e.new(x.dtype, into)
        self.e.emit(
            SHF,
            Direction.L if x.op == "shl" else Direction.R,
            INTS[x.dtype],
            d,
            self.e.register(a),
            self.e.source(amount),
        )
        return Value(x.dtype, d)

    # --- comparison

    def _integer_comparison(self, cmp: Cmp, a: Expr, b: Expr, dtype: str) -> Value:
        p = self.e.pred()
        if a.uniform and b.uniform and words(dtype) == 1:
            self.e.emit(UISETP, cmp, INTS[dtype], p, self.uniform(a), self.e.source(self.value(b)))
        else:
            u, v = (
                self.e.convert(self.value(y), dtype) if y.dtype != dtype else self.value(y)
                for y in (a, b)
            )
            self.e.emit(ISETP, cmp, INTS[dtype], p, self.e.register(u), self.e.source(v))
        return Value("bool", p)

    # --- division

    def _division(self, x: Expr, into: VReg | None) -> Value:
        a, b = x.args
        if b.op == "int" and b.offset > 0 and words(x.dtype) == 1:
            c = b.offset
            if c & (c - 1) == 0:
                return self._by_power_of_two(x, a, c, into)
            if a.range is not None and a.range[0] >= 0:
                return self._by_magic(x, a, b, into)
        return self._floored(x)

    def _by_power_of_two(self, x: Expr, a: Expr, c: int, into: VReg | None) -> Value:
        v, d = self.value(a), self.e.new(x.dtype, into)
        if x.op == "floormod":
            self.e.emit(LOP, Logic.AND, Bits32._32, d, self.e.register(v), c - 1)
        else:
            self.e.emit(SHF, Direction.R, INTS[x.dtype], d, self.e.register(v), c.bit_length() - 1)
        return Value(x.dtype, d)

    def _by_magic(self, x: Expr, a: Expr, b: Expr, into: VReg | None) -> Value:
        """n // c for 0 ≤ n ≤ high: (n·m) >> (32 + s) with m = ⌈2^(32+s) / c⌉, exact as long as (m·c − 2^(32+s))·high < 2^(32+s)."""
        assert a.range is not None
        c, high = b.offset, a.range[1]
        if x.op == "floormod":
            quotient = self.pool.floordiv(a, b)
            return self.value(self.pool.sum(x.dtype, a.offset, self._less(a, quotient, c)), into)
        found = next(
            (
                s
                for s in range(32)
                if (-(-(1 << 32 + s) // c) * c - (1 << 32 + s)) * high < 1 << 32 + s
            ),
            None,
        )
        magic = -(-(1 << 32 + found) // c) if found is not None else 1 << 32
        if found is None or magic >= 1 << 32:
            return self._two(IDIV, x, into)
        product = self.e.new(x.dtype, None if found else into)
        self.e.emit(IMULHI, IntType.U32, product, self.e.register(self.value(a)), magic)
        if not found:
            return Value(x.dtype, product)
        d = self.e.new(x.dtype, into)
        self.e.emit(SHF, Direction.R, IntType.U32, d, product, found)
        return Value(x.dtype, d)

    def _less(self, a: Expr, quotient: Expr, c: int) -> dict[Expr, int]:
        """The terms of a − c·quotient."""
        terms = a.terms
        for atom, k in quotient.terms.items():
            terms[atom] = terms.get(atom, 0) - c * k
        return terms

    def _floored(self, x: Expr) -> Value:
        """Divide towards zero, then correct: a remainder with another sign than the divisor's means one too many."""
        e, t = self.e, INTS[x.dtype]
        a, b = (self.value(y) for y in x.args)
        q, r, ra, sb = e.new(x.dtype), e.new(x.dtype), e.register(a), e.source(b)
        if x.op == "floordiv":
            e.emit(IDIV, t, q, ra, sb)
        e.emit(IREM, t, r, ra, sb)
        if x.dtype[0] == "u":
            return Value(x.dtype, q if x.op == "floordiv" else r)
        wrong = self._signs_differ(r, b, t)
        if x.op == "floormod":
            e.emit(IADD, t, r, r, sb, guard=wrong)
            return self._wrapped(x, Value(x.dtype, r))
        e.emit(IADD, t, q, q, e.source(known(x.dtype, -1)), guard=wrong)
        return self._wrapped(x, Value(x.dtype, q))

    def _signs_differ(self, r: VReg, b: Value, t: IntType) -> Any:
        """A guard: r is not 0 and has another sign than b."""
        e = self.e
        mixed, nonzero, opposite = e.new(b.dtype), e.pred(), e.pred()
        width = Bits32._64 if words(b.dtype) == 2 else Bits32._32
        e.emit(ISETP, Cmp.NE, t, nonzero, r, 0)
        e.emit(LOP, Logic.XOR, width, mixed, r, e.source(b))
        e.emit(ISETP, Cmp.LT, t, opposite, mixed, 0)
        return e.logic(Logic.AND, Value("bool", nonzero), Value("bool", opposite)).at

    # --- the uniform unit

    def uniform(self, x: Expr) -> VUReg:
        """A uniform expression in a uniform register."""
        v = self.value(x)
        if isinstance(v.at, VUReg):
            return v.at
        d = self.e.ureg()
        self.e.emit(UMOV, d, v.at)
        return d

    def _on_uniform_unit(self, x: Expr) -> Value | None:
        """The value, if the unit has the operation."""
        if x.op == "sum":
            return self._uniform_sum(x)
        emit: Callable[[VUReg], None] | None = self._uniform_operation(x)
        if emit is None:
            return None
        d = self.e.ureg()
        emit(d)
        return Value(x.dtype, d)

    def _uniform_operation(self, x: Expr) -> Callable[[VUReg], None] | None:
        e, args = self.e, x.args
        natural = all(a.range is not None and a.range[0] >= 0 for a in args) and len(args) == 2
        power = args[1].offset if len(args) == 2 and args[1].op == "int" else 0
        if power > 0 and power & (power - 1) == 0 and natural and x.op in ("floordiv", "floormod"):
            a, shift = self.uniform(args[0]), power.bit_length() - 1
            if x.op == "floordiv":
                return lambda d: e.emit(USHF, Direction.R, d, a, shift)
            return lambda d: e.emit(ULOP, Logic.AND, d, a, power - 1)
        if x.op in ("floordiv", "floormod") and natural:
            a, b = self.uniform(args[0]), e.source(self.value(args[1]))
            return lambda d: e.emit(UIDIV if x.op == "floordiv" else UIREM, d, a, b)
        if x.op in EXTREMES and all(a.fits32 for a in args):
            a, b = self.uniform(args[0]), e.source(self.value(args[1]))
            return lambda d: e.emit(UIMNMX, EXTREMES[x.op], d, a, b)
        if x.op == "mul":
            a, b = self.uniform(args[0]), e.source(self.value(args[1]))
            return lambda d: e.emit(UIMAD, d, a, b, URZ)
        return None

    def _uniform_sum(self, x: Expr) -> Value | None:
        """A UIMAD chain over prefixes."""
        if size(x.dtype) < 4:
            return None
        e, terms = self.e, x.terms
        if x.offset:
            rest = self.pool.sum(x.dtype, 0, terms)
            a = self.uniform(rest if rest.op == "sum" else next(iter(terms)))
            d = e.ureg()
            e.emit(UIADD, Bits32._32, d, a, x.offset & 0xFFFFFFFF)
            return Value(x.dtype, d)
        *before, last = terms
        a, factor, d = self.uniform(self.pool.narrow(last)), terms[last], e.ureg()
        if before:
            prefix = self.uniform(self.pool.sum(x.dtype, 0, {k: terms[k] for k in before}))
            e.emit(UIMAD, d, a, factor & 0xFFFFFFFF, prefix)
        elif factor == 1:
            return Value(x.dtype, a)
        else:
            e.emit(UIMAD, d, a, factor & 0xFFFFFFFF, URZ)
        return Value(x.dtype, d)
