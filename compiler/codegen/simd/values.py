"""Typed emission: values that sit in registers, and the instructions on them. One layer above KernelBuilder, below expressions.

    dtype            where it is
    i8 … u32, f32    a register (integers under 32 bits sign- or zero-extended), a uniform register, or an immediate
    i64 u64 f64      a pair
    f16 bf16         the low or the high half of a register
    bool             a predicate, perhaps negated, or known

Arithmetic on f16 and bf16 is done in f32 and rounded back: for + − × ÷ and the square root that is the correctly rounded result
(24 ≥ 2·11 + 2 bits). Two neighbours in one register take the packed instructions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from knapper.isa.instructions import CVT, FFMA, ISETP, LOP, MOV, PACK2, PLOP, SEL, SHF
from knapper.isa.machine import Machine
from knapper.isa.modifiers import (
    Bits32,
    Cmp,
    Direction,
    FloatType,
    IntType,
    Logic,
    Rounding,
    Scalar,
)

from ..builder import PT, RZ, KernelBuilder, VPred, VReg, VUReg
from ..scalar import f32

HALVES = {"f16": Scalar.F16, "bf16": Scalar.BF16}
SCALARS = HALVES | {
    "f32": Scalar.F32, "f64": Scalar.F64, "i8": Scalar.S8, "u8": Scalar.U8, "i16": Scalar.S16, "u16": Scalar.U16,
    "i32": Scalar.S32, "u32": Scalar.U32, "i64": Scalar.S64, "u64": Scalar.U64, "bool": Scalar.U32,
}  # fmt: skip
INTS = {"i64": IntType.S64, "u64": IntType.U64, "u8": IntType.U32, "u16": IntType.U32, "u32": IntType.U32,
        "i8": IntType.S32, "i16": IntType.S32, "i32": IntType.S32}  # fmt: skip
FLOATS = {"f32": FloatType.F32, "f64": FloatType.F64}


def size(dtype: str) -> int:
    """Bytes in memory."""
    return 1 if dtype == "bool" else int(dtype.lstrip("bfiu")) // 8


def words(dtype: str) -> int:
    """Registers a value takes."""
    return 2 if size(dtype) == 8 else 1


@dataclass(frozen=True)
class Value:
    """A value and where it is: `at` is a register, a predicate, or the raw bits of what is known now."""

    dtype: str
    at: VReg | VUReg | VPred | int
    high: bool = False
    """Of a 16-bit float: in the upper half."""

    @property
    def is_known(self) -> bool:
        return isinstance(self.at, int)


def known(dtype: str, number: float) -> Value:
    """A constant."""
    if dtype == "f64":
        return Value(dtype, int.from_bytes(struct.pack("<d", number), "little"))
    if dtype == "f32":
        return Value(dtype, f32(number))
    if dtype in HALVES:
        kind = np.float16 if dtype == "f16" else ml_dtypes.bfloat16
        with np.errstate(over="ignore"):
            return Value(dtype, int(np.array(number, kind).view(np.uint16)))
    return Value(dtype, int(number) & ((1 << 8 * max(size(dtype), 4)) - 1))


def number(v: Value) -> float:
    """What a constant of a float type stands for."""
    assert isinstance(v.at, int)
    if v.dtype == "f64":
        return float(struct.unpack("<d", v.at.to_bytes(8, "little"))[0])
    if v.dtype == "f32":
        return float(struct.unpack("<f", v.at.to_bytes(4, "little"))[0])
    return float(
        np.array(v.at, np.uint16).view(np.float16 if v.dtype == "f16" else ml_dtypes.bfloat16)
    )


class Emitter(KernelBuilder):
    """KernelBuilder with values. `weight` is how often the code that is being written runs, for the cost model."""

    def __init__(self, name: str, block: tuple[int, int, int], machine: Machine) -> None:
        super().__init__(name, block, machine)
        self.weight = 1.0
        self.busy: dict[str, float] = {}
        """Unit → instructions that a warp will execute."""

    def emit(self, cls: Any, *operands: Any, guard: Any = PT, **more: Any) -> None:
        """As KernelBuilder does, counted."""
        super().emit(cls, *operands, guard=guard, **more)
        self.busy[cls.unit] = self.busy.get(cls.unit, 0) + self.weight

    # --- operands

    def register(self, v: Value) -> VReg:
        """The value in vector registers, for operands that take nothing else."""
        if isinstance(v.at, VReg):
            return v.at
        d = self.reg(words(v.dtype))
        if isinstance(v.at, VUReg) or words(v.dtype) == 1:
            self.emit(MOV, d, v.at)
        else:
            assert isinstance(v.at, int)
            self.emit(MOV, d[0], v.at & 0xFFFFFFFF)
            self.emit(MOV, d[1], v.at >> 32)
        return d

    def zero_or(self, v: Value) -> Any:
        """Like `register`, but the constant 0 of 32 bits is RZ."""
        return (
            RZ if v.at == 0 and isinstance(v.at, int) and words(v.dtype) == 1 else self.register(v)
        )

    def source(self, v: Value) -> Any:
        """The value as a source operand: a register, a uniform register or an immediate."""
        if not isinstance(v.at, int):
            return v.at if not isinstance(v.at, VUReg) or words(v.dtype) == 1 else self.register(v)
        if words(v.dtype) == 1:
            return v.at
        if v.dtype == "f64":
            return v.at >> 32 if not v.at & 0xFFFFFFFF else self.register(v)
        small = v.at & 0xFFFFFFFF
        return small if v.at == (small - (small >> 31 << 32)) & (1 << 64) - 1 else self.register(v)

    def new(self, dtype: str, into: VReg | None = None) -> VReg:
        """A register for a result of that type, or the one that was asked for."""
        return into if into is not None else self.reg(words(dtype))

    def move(self, d: VReg, v: Value, guard: Any = PT) -> None:
        """d = v."""
        if isinstance(v.at, VReg) and words(v.dtype) == 2:
            for i in (0, 1):
                self.emit(MOV, d[i], v.at[i], guard=guard)
        elif isinstance(v.at, int) and words(v.dtype) == 2:
            for i in (0, 1):
                self.emit(MOV, d[i], v.at >> 32 * i & 0xFFFFFFFF, guard=guard)
        else:
            self.emit(MOV, d, self.low(v).at if v.high else v.at, guard=guard)

    # --- predicates

    def predicate(self, v: Value) -> Any:
        """A boolean as a guard."""
        if isinstance(v.at, int):
            return PT if v.at else self.never()
        return v.at

    def never(self) -> VPred:
        """A predicate that does not hold."""
        p = self.pred()
        self.emit(ISETP, Cmp.NE, IntType.U32, p, RZ, 0)
        return p

    def logic(self, op: Logic, a: Value, b: Value) -> Value:
        """a op b of booleans."""
        for x, y in ((a, b), (b, a)):
            if isinstance(x.at, int):
                if op is Logic.XOR:
                    return self.inverse(y) if x.at else y
                return y if bool(x.at) == (op is Logic.AND) else x
        p = self.pred()
        self.emit(PLOP, op, p, a.at, b.at)
        return Value("bool", p)

    def inverse(self, v: Value) -> Value:
        """Not v."""
        if isinstance(v.at, int):
            return Value("bool", 1 - v.at)
        assert isinstance(v.at, VPred)
        return Value("bool", ~v.at)

    def select(self, p: Value, a: Value, b: Value, into: VReg | None = None) -> Value:
        """a where p holds, else b."""
        if isinstance(p.at, int):
            return a if p.at else b
        if a.dtype == "bool":
            yes, no = self.logic(Logic.AND, p, a), self.logic(Logic.AND, self.inverse(p), b)
            return self.logic(Logic.OR, yes, no)
        a, b = self.low(a), self.low(b)
        if isinstance(a.at, int) and not (a.at == 0 and words(a.dtype) == 1):
            p, a, b = self.inverse(p), b, a
        d = self.new(a.dtype, into)
        width = Bits32._64 if words(a.dtype) == 2 else Bits32._32
        wide = words(a.dtype) == 2
        self.emit(
            SEL,
            width,
            d,
            self.register(a) if wide else self.zero_or(a),
            self.register(b) if wide else self.source(b),
            p.at,
        )
        return Value(a.dtype, d)

    # --- 16-bit floats

    def low(self, v: Value) -> Value:
        """A value in the low half of its register."""
        if not v.high:
            return v
        d = self.reg()
        self.emit(SHF, Direction.R, IntType.U32, d, v.at, 16)
        return Value(v.dtype, d)

    def pack(self, a: Value, b: Value, into: VReg | None = None) -> VReg:
        """A register with a below and b above."""
        if a.at is b.at and not a.high and b.high and into is None and isinstance(a.at, VReg):
            return a.at
        d = self.new("f32", into)
        if isinstance(a.at, int) and isinstance(b.at, int):
            self.emit(MOV, d, a.at | b.at << 16)
        elif a.at is b.at and not a.high and b.high:
            self.emit(MOV, d, a.at)
        else:
            self.emit(PACK2, d, self.zero_or(self.low(a)), self.zero_or(self.low(b)))
        return d

    # --- conversions

    def convert(self, v: Value, dtype: str, into: VReg | None = None) -> Value:
        """The same number in another type: integers wrap, floats round to nearest even, float to integer truncates and saturates."""
        if v.dtype == dtype:
            return v
        if v.dtype == "bool":
            return self._from_bool(v, dtype)
        if dtype == "bool":
            return self._to_bool(v)
        v = self.low(v)
        if v.is_known and v.dtype in (*FLOATS, *HALVES) and dtype in (*FLOATS, *HALVES):
            return known(dtype, number(v))
        source, to = SCALARS[v.dtype], SCALARS[dtype]
        cuts = dtype in INTS and v.dtype not in INTS
        if words(v.dtype) == 2 and dtype in INTS and v.dtype in INTS and size(dtype) == 4:
            return Value(dtype, self.register(v)[0])
        d = self.new(dtype, into)
        if (
            words(dtype) == words(v.dtype) == 1
            and dtype in INTS
            and v.dtype in INTS
            and size(dtype) >= 4
        ):
            self.emit(MOV, d, v.at)  # an extension that is there already, or the same bits
        else:
            self.emit(CVT, to, source, Rounding.RZ if cuts else Rounding.RN, d, self.register(v))
        return Value(dtype, d)

    def _from_bool(self, v: Value, dtype: str) -> Value:
        if isinstance(v.at, int):
            return known(dtype, v.at)
        if words(dtype) == 2:
            return self.convert(self._from_bool(v, "i32"), dtype)
        return self.select(v, known(dtype, 1), known(dtype, 0))

    def _to_bool(self, v: Value) -> Value:
        p = self.pred()
        if v.dtype in HALVES or v.dtype in FLOATS:
            from knapper.isa.instructions import FSETP

            wide = self.convert(v, "f32") if v.dtype in HALVES else v
            self.emit(FSETP, Cmp.NE, FLOATS[wide.dtype], p, self.register(wide), 0)
        else:
            self.emit(ISETP, Cmp.NE, INTS[v.dtype], p, self.register(v), 0)
        return Value("bool", p)

    def reinterpret(self, v: Value, dtype: str) -> Value:
        """The same bits as another type of the same size."""
        v = self.low(v)
        return Value(dtype, v.at)

    # --- arithmetic that several places want

    def float_op(self, cls: Any, dtype: str, *operands: Value, into: VReg | None = None) -> Value:
        """cls on floats; the first operand is a register, the second any source, a third a register."""
        first, *rest = operands
        d = self.new(dtype, into)
        sources = [self.source(x) if i == 0 else self.register(x) for i, x in enumerate(rest)]
        self.emit(cls, FLOATS[dtype], d, self.register(first), *sources)
        return Value(dtype, d)

    def difference(self, a: Value, b: Value, into: VReg | None = None) -> Value:
        """a − b as −1·b + a: the product is exact, so there is one rounding."""
        d = self.new(a.dtype, into)
        minus = known(a.dtype, -1.0)
        self.emit(FFMA, FLOATS[a.dtype], d, self.register(b), self.source(minus), self.register(a))
        return Value(a.dtype, d)

    def sign_bits(self, op: Logic, v: Value, mask: int) -> Value:
        """The sign of a float cleared (AND with 0x7fffffff) or flipped (XOR with 0x80000000)."""
        v = self.low(v)
        if v.dtype == "f64":
            source = self.register(v)
            d = self.reg(2)
            self.emit(MOV, d[0], source[0])
            self.emit(LOP, op, Bits32._32, d[1], source[1], mask)
            return Value(v.dtype, d)
        d = self.reg()
        self.emit(
            LOP, op, Bits32._32, d, self.register(v), mask if v.dtype == "f32" else mask >> 16
        )
        return Value(v.dtype, d)
