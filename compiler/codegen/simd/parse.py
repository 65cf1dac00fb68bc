"""Plain lists from TVM (`tvm/tir.py`) → shared scalar expressions, one for each lane of a vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from knapper.isa.errors import CompileError

from .evaluate import SHUFFLES
from .expr import EVERYWHERE, FLOATS, INTEGERS, Expr, Pool

Json = Any
Lanes = list[Expr]
COMPARE = {
    "lt": ("lt", False),
    "le": ("le", False),
    "gt": ("lt", True),
    "ge": ("le", True),
    "eq": ("eq", False),
    "ne": ("ne", False),
}


@dataclass(frozen=True)
class Buffer:
    """A row of the kernel's buffer table."""

    number: int
    role: str
    scope: str
    dtype: str
    lanes: int
    count: int

    @property
    def elements(self) -> int:
        return self.count * self.lanes


def split(dtype: str) -> tuple[str, int]:
    """`f16x4` → ("f16", 4)."""
    base, _, lanes = dtype.partition("x")
    return base, int(lanes or 1)


@dataclass
class Parser:
    """Parses with what variables and buffers stand for at the moment."""

    pool: Pool
    buffers: list[Buffer]
    where: str
    variables: dict[int, Lanes] = field(default_factory=dict)
    registers: dict[tuple[int, int], Expr] = field(default_factory=dict)
    """(local buffer, element) → its value."""
    versions: dict[int, int] = field(default_factory=dict)
    """Buffer → how often it was written: loads of different versions are different."""
    in_memory: set[int] = field(default_factory=set)
    """Local buffers that are in local memory and not in registers."""

    def expr(self, j: Json) -> Lanes:
        """The lanes of an expression."""
        f: Callable[[Json, str, int], Lanes] | None = getattr(self, f"_{j[0]}", None)
        dtype, lanes = split(j[1])
        if f is not None:
            return f(j, dtype, lanes)
        a, b = self.expr(j[2]), self.expr(j[3])
        return [self.binary(j[0], dtype, x, y) for x, y in zip(a, b, strict=True)]

    def scalar(self, j: Json) -> Expr:
        """An expression of one lane."""
        lanes = self.expr(j)
        if len(lanes) != 1:
            raise CompileError(
                "E441", f"TIR has a vector where a number belongs: {j[0]}", where=self.where
            )
        return lanes[0]

    # --- leaves

    def _int(self, j: Json, dtype: str, lanes: int) -> Lanes:
        return [
            self.pool.bool(bool(j[2])) if dtype == "bool" else self.pool.integer(j[2], dtype)
        ] * lanes

    def _float(self, j: Json, dtype: str, lanes: int) -> Lanes:
        return [self.pool.float(float.fromhex(j[2]), dtype)] * lanes

    def _var(self, j: Json, dtype: str, lanes: int) -> Lanes:
        if j[2] not in self.variables:
            raise CompileError(
                "E441", f"TIR has a variable of unknown origin, number {j[2]}", where=self.where
            )
        return [
            self.pool.cast(x, dtype) if dtype in INTEGERS and x.dtype != dtype else x
            for x in self.variables[j[2]]
        ]

    def _ramp(self, j: Json, dtype: str, lanes: int) -> Lanes:
        first, step = self.scalar(j[2]), self.scalar(j[3])
        return [self.pool.add(first, self.pool.scale(step, i)) for i in range(lanes)]

    def _broadcast(self, j: Json, dtype: str, lanes: int) -> Lanes:
        inner = self.expr(j[2])
        return inner * (lanes // len(inner))

    def _shuffle(self, j: Json, dtype: str, lanes: int) -> Lanes:
        every = [x for v in j[2] for x in self.expr(v)]
        return [every[i] for i in j[3]]

    def _bind(self, j: Json, dtype: str, lanes: int) -> Lanes:
        self.variables[j[2]] = self.expr(j[3])
        return self.expr(j[4])

    # --- loads

    def _load(self, j: Json, dtype: str, lanes: int) -> Lanes:
        b = self.buffers[j[2]]
        places = self.elements(b, j[3])
        if b.scope == "local" and b.number not in self.in_memory:
            return [self._register(b, x) for x in places]
        return [self.load(b, x) for x in places]

    def elements(self, b: Buffer, index: Json) -> Lanes:
        """Element numbers that an index means: a buffer of vectors counts in vectors."""
        places = self.expr(index)
        if b.lanes == 1:
            return places
        return [
            self.pool.add(self.pool.scale(x, b.lanes), self.pool.integer(i, x.dtype))
            for x in places
            for i in range(b.lanes)
        ]

    def load(self, b: Buffer, place: Expr) -> Expr:
        """A load of an element, as memory is now."""
        return self.pool.make(
            "load",
            b.dtype,
            place,
            data=(b.number, self.versions.get(b.number, 0)),
            uniform=False,
            depth=EVERYWHERE,
        )

    def _register(self, b: Buffer, place: Expr) -> Expr:
        if place.op != "int":
            raise NeedsMemory(b.number)
        found = self.registers.get((b.number, place.offset))
        return found if found is not None else self.zero(b.dtype)

    def zero(self, dtype: str) -> Expr:
        """What a local variable has before anything was stored: TVM reads some that only other lanes wrote."""
        return (
            self.pool.float(0.0, dtype)
            if dtype in FLOATS
            else self.pool.bool(False)
            if dtype == "bool"
            else self.pool.integer(0, dtype)
        )

    # --- operations

    def binary(self, op: str, dtype: str, a: Expr, b: Expr) -> Expr:
        """One lane of a two-operand operation."""
        if op in COMPARE:
            return self._compare(op, a, b)
        if dtype == "bool":
            return self._logic(op, a, b)
        if dtype in INTEGERS:
            return self._integer(op, a, b)
        if op not in ("add", "sub", "mul", "div", "min", "max"):
            return self._float_division(op, a, b)
        if op in ("mul", "div") and b is self.pool.float(1.0, dtype):
            return a  # of all the laws of real numbers one that floats have too
        return self.pool.make(op, dtype, a, b)

    def _float_division(self, op: str, a: Expr, b: Expr) -> Expr:
        """floordiv, floormod and mod of floats."""
        if op == "mod":
            return self.pool.make("call", a.dtype, a, b, data="truncmod")
        quotient = self.pool.make(
            "call", a.dtype, self.pool.make("div", a.dtype, a, b), data="floor"
        )
        if op == "floordiv":
            return quotient
        return self.pool.make("sub", a.dtype, a, self.pool.make("mul", a.dtype, quotient, b))

    def _integer(self, op: str, a: Expr, b: Expr) -> Expr:
        p = self.pool
        natural = a.range is not None and a.range[0] >= 0
        match op:
            case "add":
                return p.add(a, b)
            case "sub":
                return p.add(a, b, -1)
            case "mul":
                return p.mul(a, b)
            case "min" | "max":
                return p.extreme(op, a, b)
            case "floordiv":
                return p.floordiv(a, b)
            case "floormod":
                return p.floormod(a, b)
            case "div" | "mod" if natural and b.op == "int" and b.offset > 0:
                return p.floordiv(a, b) if op == "div" else p.floormod(a, b)
            case "shl" if b.op == "int":
                return p.scale(a, 1 << b.offset)
            case "shr" if b.op == "int" and a.dtype != "u64":
                return (
                    p.floordiv(a, p.integer(1 << b.offset, a.dtype))
                    if b.offset < 31
                    else p.make(op, a.dtype, a, b)
                )
            case "bitand" if (
                b.op == "int"
                and b.offset >= 0
                and b.offset & (b.offset + 1) == 0
                and b.offset < 1 << 30
            ):
                return p.floormod(a, p.integer(b.offset + 1, a.dtype))
        return p.make(op, a.dtype, a, b)

    def _compare(self, op: str, a: Expr, b: Expr) -> Expr:
        name, mirrored = COMPARE[op]
        a, b = (b, a) if mirrored else (a, b)
        if a.dtype in INTEGERS:
            return self.pool.compare(name, a, b)
        return self.pool.make(name, "bool", a, b, uniform=False)

    def _logic(self, op: str, a: Expr, b: Expr) -> Expr:
        op = {
            "bitand": "and",
            "bitor": "or",
            "bitxor": "ne",
            "min": "and",
            "max": "or",
            "mul": "and",
            "add": "or",
        }.get(op, op)
        for x, y in ((a, b), (b, a)):
            if x.op == "int" and op in ("and", "or"):
                return y if bool(x.data) == (op == "and") else x
        return self.pool.make(op, "bool", a, b, uniform=a.uniform and b.uniform)

    def _not(self, j: Json, dtype: str, lanes: int) -> Lanes:
        return [
            self.pool.bool(not x.data)
            if x.op == "int"
            else self.pool.make("not", "bool", x, uniform=x.uniform)
            for x in self.expr(j[2])
        ]

    def _bitnot(self, j: Json, dtype: str, lanes: int) -> Lanes:
        return (
            self._not(j, dtype, lanes)
            if dtype == "bool"
            else [self.pool.make("bitnot", dtype, x) for x in self.expr(j[2])]
        )

    def _cast(self, j: Json, dtype: str, lanes: int) -> Lanes:
        return [self.cast(x, dtype) for x in self.expr(j[2])]

    def cast(self, x: Expr, dtype: str) -> Expr:
        """A conversion, unless it changes nothing."""
        if x.dtype == dtype:
            return x
        if x.dtype in INTEGERS and dtype in INTEGERS:
            return self.pool.cast(x, dtype)
        if x.op == "int" and x.dtype != "bool" and dtype in FLOATS:
            return self.pool.float(float(x.offset), dtype)
        if (
            x.op == "cast"
            and x.args[0].dtype == dtype
            and dtype in ("f16", "bf16")
            and x.dtype in ("f32", "f64")
        ):
            return x.args[0]
        return self.pool.make("cast", dtype, x, uniform=False)

    def _select(self, j: Json, dtype: str, lanes: int) -> Lanes:
        c, a, b = (self.expr(k) for k in j[2:5])
        c = c * (lanes // len(c))
        return [self.choose("select", x, y, z) for x, y, z in zip(c, a, b, strict=True)]

    def choose(self, op: str, c: Expr, a: Expr, b: Expr) -> Expr:
        """a or b; `ite` evaluates only one of them, which matters where they load."""
        if c.op == "int":
            return a if c.data else b
        if a is b:
            return a
        ranges = [r for r in (a.range, b.range) if r is not None]
        bounds = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None
        op = op if a.loads or b.loads else "select"
        return self.pool.make(op, a.dtype, c, a, b, range=bounds, uniform=False)

    # --- calls

    def _call(self, j: Json, dtype: str, lanes: int) -> Lanes:
        name, operands = j[2], j[3:]
        if name == "if_then_else":
            return self._if_then_else(operands, lanes)
        if name in SHUFFLES:
            return self._warp_shuffle(name, dtype, operands)
        if name == "tvm_warp_activemask":
            return [self.pool.integer(-1, "u32")]
        if name == "large_uint_imm":
            low, high = (self.scalar(x).offset for x in operands)
            return [self.pool.integer(low + (high << 32), dtype)]
        if name == "likely":
            return self.expr(operands[0])
        args = [self.expr(x) for x in operands]
        return [
            self._intrinsic(name, dtype, lane)
            for lane in zip(*(a * (lanes // len(a)) for a in args), strict=True)
        ]

    def _intrinsic(self, name: str, dtype: str, args: tuple[Expr, ...]) -> Expr:
        if name == "reinterpret":
            return (
                args[0]
                if args[0].dtype == dtype
                else self.pool.make("reinterpret", dtype, *args, uniform=False)
            )
        if name in ("fabs", "abs") and dtype in INTEGERS:
            return self.pool.extreme("max", args[0], self.pool.scale(args[0], -1))
        return self.pool.make("call", dtype, *args, data=name, uniform=False)

    def _if_then_else(self, operands: list[Json], lanes: int) -> Lanes:
        c, a, b = (self.expr(k) for k in operands)
        c = c * (lanes // len(c))
        return [self.choose("ite", x, y, z) for x, y, z in zip(c, a, b, strict=True)]

    def _warp_shuffle(self, name: str, dtype: str, operands: list[Json]) -> Lanes:
        _, value, lane, segment, _ = (self.scalar(x) for x in operands)
        return [
            self.pool.make(
                "shuffle",
                dtype,
                value,
                lane,
                data=(name, segment.offset),
                uniform=False,
                depth=EVERYWHERE,
            )
        ]


class NeedsMemory(Exception):
    """A local buffer is indexed by something that only the running kernel knows."""

    def __init__(self, buffer: int) -> None:
        self.buffer = buffer
        super().__init__(buffer)
