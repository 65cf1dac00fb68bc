"""Expressions → instructions: each evaluated once where its value is still known."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from knapper.isa.errors import CompileError
from knapper.isa.instructions import (
    FADD,
    FDIV,
    FMNMX,
    FMUL,
    FSETP,
    HADD2,
    HMNMX2,
    HMUL2,
    SHFL,
)
from knapper.isa.modifiers import Cmp, Half, Logic, Shuffle

from ..builder import VReg
from .expr import INTEGERS, Expr
from .integers import BITWISE, EXTREMES, Integers
from .intrinsics import INTRINSICS, call
from .values import FLOATS, HALVES, Value, known, number, words

COMPARISONS = {"lt": Cmp.LT, "le": Cmp.LE, "eq": Cmp.EQ, "ne": Cmp.NE}
MIRRORED = {Cmp.LT: Cmp.GT, Cmp.LE: Cmp.GE, Cmp.EQ: Cmp.EQ, Cmp.NE: Cmp.NE}
PACKED = ("add", "mul", "min", "max")
"""Operations that exist for two 16-bit floats at a time."""
SHUFFLES = {
    "tvm_warp_shuffle": Shuffle.IDX,
    "tvm_warp_shuffle_up": Shuffle.UP,
    "tvm_warp_shuffle_down": Shuffle.DOWN,
}


class Evaluator(Integers):
    """Evaluates expressions of every type into an Emitter."""

    def value(self, x: Expr, into: VReg | None = None) -> Value:
        """The value of an expression; `into` is where a result that is computed now should go, if that costs nothing."""
        if x.op == "int":
            return known(x.dtype, x.offset)
        if x.op == "float":
            return known(x.dtype, float.fromhex(x.data))
        if (found := self.known(x)) is not None:
            return found
        if x in self.neighbours:
            self.load_together(self.neighbours[x])
            return self.value(x)
        return self.keep(x, self._compute(x, into))

    def values(self, lanes: Sequence[Expr]) -> list[Value]:
        """The values of a vector's lanes."""
        self.together(lanes)
        return [self.value(x) for x in lanes]

    def _compute(self, x: Expr, into: VReg | None) -> Value:
        if x.dtype in INTEGERS:
            return self._integer(x, into)
        if x.dtype == "bool":
            return self._boolean(x)
        return self._float(x, into)

    def _common(self, x: Expr, into: VReg | None) -> Value:
        """Operations of every type."""
        match x.op:
            case "load":
                return self.load(x)
            case "cast":
                return self._cast(x, into)
            case "select":
                yes, no = (self.value(a) for a in x.args[1:])  # first: predicates are few
                return self.e.select(self.value(x.args[0]), yes, no, into=into)
            case "ite":
                return self._conditional((x,))[0]
            case "reinterpret":
                return self.e.reinterpret(self.value(x.args[0]), x.dtype)
            case "shuffle":
                return self._shuffle(x)
            case "call" if x.data in INTRINSICS:
                return call(self.e, x.data, x.dtype, [self.value(a) for a in x.args])
        raise CompileError(
            "E441",
            f"TIR has {x.data if x.op == 'call' else x.op} on {x.dtype}",
            where=f"kernel {self.e.name}",
        )

    @abstractmethod
    def load(self, x: Expr) -> Value:
        """A value from memory."""

    @abstractmethod
    def load_together(self, lanes: tuple[Expr, ...], otherwise: list[Value] | None = None) -> None:
        """Neighbours in memory, with as few accesses as their alignment allows; they are kept."""

    def _cast(self, x: Expr, into: VReg | None) -> Value:
        a = x.args[0]
        if a.dtype == "i64" and a.fits32 and x.dtype != "bool":
            a = self.pool.narrow(a)
        return self.e.convert(self.value(a), x.dtype, into)

    def _shuffle(self, x: Expr) -> Value:
        mode, segment = x.data
        v = self.e.low(self.value(x.args[0]))
        v = self.e.convert(v, "u32") if v.dtype == "bool" else v
        lane = self.value(
            self.pool.narrow(
                self.pool.floormod(x.args[1], self.pool.integer(segment, x.args[1].dtype))
            )
        )
        source, d = self.e.register(v), self.e.reg(words(v.dtype))
        for i in range(words(v.dtype)):
            self.e.emit(SHFL, SHUFFLES[mode], d[i], source[i], self.e.source(lane), segment)
        return self.e.convert(Value(v.dtype, d), x.dtype)

    # --- conditionals with loads

    def _conditional(self, lanes: tuple[Expr, ...]) -> list[Value]:
        """if_then_else, which does not evaluate what it does not choose: loads in its branches are predicated."""
        p = self.value(lanes[0].args[0])
        if isinstance(p.at, int):
            return [self.value(x.args[1 if p.at else 2]) for x in lanes]
        yes, no = [x.args[1] for x in lanes], [x.args[2] for x in lanes]
        fresh = all(a.op == "load" and self.known(a) is None for a in yes)
        if fresh and all(b.is_constant for b in no) and lanes[0].dtype != "bool":
            return self._filled(p, yes, [self.value(b) for b in no])
        p = self.put_away(p)
        chosen = []
        for branch, inverted in ((yes, False), (no, True)):
            condition = self.taken_out(p)
            self.open(self.e.inverse(condition) if inverted else condition)
            chosen.append(self.values(branch))
            self.close()
        return self._merged(self.taken_out(p), *chosen)

    def _filled(self, p: Value, loads: list[Expr], otherwise: list[Value]) -> list[Value]:
        """Loads over registers that hold the other values already."""
        self.open(p)
        self.load_together(tuple(loads), otherwise)
        values = [self.value(x) for x in loads]
        self.close()
        return values

    def _merged(self, p: Value, yes: list[Value], no: list[Value]) -> list[Value]:
        """Selects, two 16-bit lanes at a time where they share a register."""
        done: list[Value] = []
        while len(done) < len(yes):
            i = len(done)
            if i + 1 < len(yes) and all(_paired(v[i], v[i + 1]) for v in (yes, no)):
                a, b = (Value("u32", self.e.pack(v[i], v[i + 1])) for v in (yes, no))
                both = self.e.select(p, a, b)
                done += [Value(yes[i].dtype, both.at), Value(yes[i].dtype, both.at, high=True)]
            else:
                done.append(self.e.select(p, yes[i], no[i]))
        return done

    # --- vectors

    def together(self, lanes: Sequence[Expr]) -> None:
        """Evaluate what the lanes of a vector can do better together: neighbouring loads, conditionals, 16-bit arithmetic.

        This goes by where the vector stands and not by what its lanes are: a lane may also be part of another vector, under
        another condition, and what stands beside it there must not be loaded here.
        """
        first = lanes[0]
        alike = all(
            (x.op, x.dtype, len(x.args)) == (first.op, first.dtype, len(first.args)) for x in lanes
        )
        if not alike or len(set(lanes)) < 2 or any(self.is_held(x) for x in lanes):
            return
        if first.op == "load":
            self.load_together(tuple(lanes))
        elif first.op == "ite":
            if len({x.args[0] for x in lanes}) == 1:
                for x, v in zip(lanes, self._conditional(tuple(lanes)), strict=True):
                    self.keep(x, v)
        elif first.dtype in HALVES and first.op in PACKED and _in_pairs(lanes):
            self._packed_arithmetic(lanes)
        else:
            for column in zip(*(x.args for x in lanes), strict=True):
                self.together(column)

    def _packed_arithmetic(self, lanes: Sequence[Expr]) -> None:
        """16-bit floats, two at a time."""
        e, half = self.e, Half[lanes[0].dtype.upper()]
        a, b = (self.values([x.args[i] for x in lanes]) for i in (0, 1))
        if all(v.is_known for v in a):
            a, b = b, a
        for i in range(0, len(lanes), 2):
            x, d = e.pack(a[i], a[i + 1]), e.reg()
            left, right = b[i].at, b[i + 1].at
            y: Any = (
                left | right << 16
                if isinstance(left, int) and isinstance(right, int)
                else e.pack(b[i], b[i + 1])
            )
            match lanes[i].op:
                case "add":
                    e.emit(HADD2, half, d, x, y)
                case "mul":
                    e.emit(HMUL2, half, d, x, y)
                case op:
                    e.emit(HMNMX2, EXTREMES[op], half, d, x, y)
            self.keep(lanes[i], Value(lanes[i].dtype, d))
            self.keep(lanes[i + 1], Value(lanes[i].dtype, d, high=True))

    # --- floats

    def _float(self, x: Expr, into: VReg | None) -> Value:
        if x.op not in ("add", "sub", "mul", "div", "min", "max"):
            return self._common(x, into)
        a, b = (self.value(y) for y in x.args)
        if x.dtype in HALVES:
            wide = self._arithmetic(x.op, self.e.convert(a, "f32"), self.e.convert(b, "f32"), None)
            return self.e.convert(wide, x.dtype, into)
        return self._arithmetic(x.op, a, b, into)

    def _arithmetic(self, op: str, a: Value, b: Value, into: VReg | None) -> Value:
        e = self.e
        if a.is_known and op in ("add", "mul", "min", "max"):
            a, b = b, a
        if op == "sub":
            return (
                e.float_op(FADD, a.dtype, a, known(b.dtype, -number(b)), into=into)
                if b.is_known
                else e.difference(a, b, into)
            )
        if op in EXTREMES:
            d = e.new(a.dtype, into)
            e.emit(FMNMX, EXTREMES[op], FLOATS[a.dtype], d, e.register(a), e.source(b))
            return Value(a.dtype, d)
        return e.float_op({"add": FADD, "mul": FMUL, "div": FDIV}[op], a.dtype, a, b, into=into)

    # --- booleans

    def _boolean(self, x: Expr) -> Value:
        if x.op in COMPARISONS:
            return self._comparison(x)
        if x.op == "not":
            return self.e.inverse(self.value(x.args[0]))
        if x.op in BITWISE:
            return self.e.logic(BITWISE[x.op], *self._two_booleans(*x.args))
        return self._common(x, None)

    def _two_booleans(self, a: Expr, b: Expr) -> tuple[Value, Value]:
        first = self.put_away(self.value(a))
        second = self.value(b)
        return self.taken_out(first), second

    def _comparison(self, x: Expr) -> Value:
        cmp, (a, b) = COMPARISONS[x.op], x.args
        if a.dtype == "bool":
            unequal = self.e.logic(Logic.XOR, *self._two_booleans(a, b))
            return unequal if cmp is Cmp.NE else self.e.inverse(unequal)
        if a.is_constant:
            a, b, cmp = b, a, MIRRORED[cmp]
        if a.dtype in INTEGERS and a.fits32 and b.fits32:
            return self._integer_comparison(cmp, self.pool.narrow(a), self.pool.narrow(b), "i32")
        if a.dtype in INTEGERS:
            return self._integer_comparison(cmp, a, b, a.dtype)
        p = self.e.pred()
        u, v = (self.value(y) for y in (a, b))
        if a.dtype in HALVES:
            u, v = self.e.convert(u, "f32"), self.e.convert(v, "f32")
        self.e.emit(FSETP, cmp, FLOATS[u.dtype], p, self.e.register(u), self.e.source(v))
        return Value("bool", p)


def _in_pairs(lanes: Sequence[Expr]) -> bool:
    return len(lanes) % 2 == 0 and len(set(lanes)) == len(lanes)


def _paired(a: Value, b: Value) -> bool:
    """Whether two 16-bit floats are one register, or constants."""
    return a.dtype in HALVES and (
        (a.at is b.at and not a.high and b.high) or (a.is_known and b.is_known)
    )
