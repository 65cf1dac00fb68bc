"""Random instructions: operands drawn from the instruction table, and the code that is being written.

Registers 8 … 55 hold anything. What addresses, loops and products need is below, and uniform registers, likewise, below 8.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from knapper.isa import instructions as i
from knapper.isa.core import CUSTOM, TABLE, Instr
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Direction, IntType, Logic, Width
from knapper.isa.operands import Guard, Label, Modifier, Pred, Reg, Src, Unsigned, UReg, alignment

EXTENSIONS = ("tensor", "types", "sparse24", "conv", "systolic", "fusion", "sparse")
VOLTA, SMA, DSTC = (Machine.load(name).to_dict() for name in ("volta-8tc", "sma3", "dstc"))
ACCUMULATORS = 5 * 1024  # words of accumulator memory
TARGET = {
    **VOLTA,
    **DSTC,
    **SMA,
    "extensions": ["base", *EXTENSIONS],
    "units": {**VOLTA["units"], **DSTC["units"], **SMA["units"]},
    "accumulator_bytes": {"value": 4 * ACCUMULATORS, "provenance": "assumed"},
}
"""A machine with all that the programs use."""
WARPS, THREADS, GRID = 3, 84, (2, 1, 1)  # the last warp has 20 threads
INPUT, REGION = 4096, 512  # bytes of input; bytes of output a thread
SHARED = 1024  # bytes of shared memory a warp
LOCAL = 64
POOL, UPOOL, PREDS = range(8, 56), range(8, 32), range(6)
TID, OUT, TRIPS, ADDRESS = Reg(0), Reg(2), Reg(3), Reg(4)
IN_BASE, OUT_BASE, MINE, NEXT = (
    UReg(0),
    UReg(2),
    UReg(4),
    UReg(5),
)  # MINE: this warp's part of shared memory, NEXT: another's
REGISTERS = 56


SPECIAL: list[type[Instr]] = [
    i.LDG,
    i.STG,
    i.LDS,
    i.STS,
    i.LDL,
    i.STL,
    i.LDG_IM2COL,
    i.LDG_IM2COL_FILL,
    i.LDSM,
    i.ULDC,
    i.BMENC,
]
CONTROL = {i.EXIT, i.BRA, i.BSSY, i.BSYNC, i.BAR}
SYSTOLIC = [cls for cls in TABLE.values() if cls.extension in ("systolic", "fusion")]
BUILT_IN = [
    cls for op, cls in TABLE.items() if op not in CUSTOM and cls.extension in ("base", *EXTENSIONS)
]
WHOLE: list[type[Instr]] = [*SYSTOLIC, i.SPWMMA, i.OHMMA]
"""What whole warps do in stretches of their own."""
FREE = [cls for cls in BUILT_IN if cls not in CONTROL and cls not in SPECIAL + WHOLE]
CALM = [cls for cls in FREE if "systolic" in cls.modes]
SCALAR = [cls for cls in FREE if cls.unit == "uniform" and cls is not i.R2UR]


class Operands:
    """Code being written, and what instructions of it may name."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.code: list[Callable[[], Instr]] = []
        self.marks: dict[object, int] = {}
        self.depth = 0
        self.free = FREE

    def emit(self, instr: Instr | Callable[[], Instr]) -> None:
        self.code.append(instr if callable(instr) else lambda: instr)

    def mark(self, name: object) -> None:
        self.marks[name] = len(self.code)

    def at(self, name: object) -> Label:
        return Label(self.marks[name])

    # --- operands

    def reg(self, words: int = 1) -> Reg:
        return Reg(
            self.rng.choice(
                [r for r in POOL if r % alignment(words) == 0 and r + words <= REGISTERS]
            )
        )

    def ureg(self, words: int = 1) -> UReg:
        return UReg(self.rng.choice([r for r in UPOOL if r % words == 0]))

    def guard(self) -> Guard:
        return Guard(self.rng.choice(PREDS) + 8 * self.rng.randrange(2))

    def immediate(self) -> int:
        edge = [
            0,
            1,
            31,
            32,
            0x80000000,
            0x7F800000,
            0x3F800000,
            0xFFFFFFFF,
            0x7FC00000,
            0x00800000,
        ]
        return self.rng.choice([self.rng.getrandbits(32), self.rng.choice(edge)])

    def operand(self, cls: type[Instr], name: str, kind: Any, b: Any, words: int) -> Any:
        """A random value for a field."""
        if b.only:
            return self.rng.choice(b.only)
        if kind is Src:
            kinds = [UReg, UReg, int] if cls.unit == "uniform" else [Reg, Reg, UReg, int]
            return Src.of(self.operand(cls, name, self.rng.choice(kinds), b, words))
        if kind is int:
            return self.immediate()
        if kind is Reg:
            return Reg(255) if self.rng.random() < 0.03 else self.reg(words)
        if kind is UReg:
            return UReg(63) if self.rng.random() < 0.03 else self.ureg(words)
        if kind is Pred:
            return Pred(7) if self.rng.random() < 0.03 else Pred(self.rng.choice(PREDS))
        if kind is Guard:
            return self.guard()
        if kind is Unsigned:
            return Unsigned(self.rng.randrange(1 << b.width))
        assert issubclass(kind, Modifier), (cls, name)
        return self.rng.choice(list(kind))

    def draw(self, cls: type[Instr]) -> Instr:
        """A random instruction of a class whose fields are free."""
        while True:
            values: dict[str, Any] = {"guard": Guard(7)}
            if cls.unit != "uniform" and self.rng.random() < 0.3:
                values["guard"] = self.guard()
            for name, (kind, b) in cls.layout.items():
                if issubclass(kind, Modifier):
                    values[name] = self.operand(cls, name, kind, b, 1)
            for name, (kind, b) in cls.layout.items():
                if name not in values:
                    words = b.words if isinstance(b.words, int) else b.words(type("I", (), values))
                    values[name] = self.operand(cls, name, kind, b, words)
            instr = cls(**values)
            if not instr.refusal():
                return instr

    # --- memory: an address register first

    def address(self, space: int, size: int) -> Reg:
        """ADDRESS = a random multiple of `size` below `space` in each lane; sometimes consecutive, sometimes the same."""
        form = self.rng.randrange(4)
        if form == 0 and 32 * size <= space:
            self.emit(i.S2R(SR.LANEID, ADDRESS))
            self.emit(
                i.SHF(Direction.L, IntType.U32, ADDRESS, ADDRESS, Src.of(size.bit_length() - 1))
            )
        elif form == 1:
            self.emit(i.MOV(ADDRESS, Src.of(self.rng.randrange(space // size) * size)))
        else:
            self.emit(
                i.LOP(Logic.AND, Bits32._32, ADDRESS, self.reg(), Src.of((space - 1) & -size))
            )
        return ADDRESS

    def width(self, store: bool = False) -> Width:
        return self.rng.choice([w for w in Width if not (store and w.name.startswith("S"))])

    def some(self) -> Guard:
        return self.guard() if self.rng.random() < 0.3 else Guard(7)
