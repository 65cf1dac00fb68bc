"""Random programs drawn from the instruction table, legal for every engine, and inputs that are hard to get right.

A program starts by giving every register, predicate and byte of memory a value, so that it is legal also for the checked engine, then
runs random code (regions that diverge, loops, barriers, every addressing form), and ends by storing everything it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from random_operands import (
    ADDRESS,
    FREE,
    GRID,
    IN_BASE,
    INPUT,
    LOCAL,
    MINE,
    NEXT,
    OUT,
    OUT_BASE,
    POOL,
    PREDS,
    REGION,
    REGISTERS,
    SHARED,
    SPECIAL,
    TARGET,
    THREADS,
    TID,
    UPOOL,
    WARPS,
)
from random_products import Products

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.modifiers import (
    SR,
    Bits32,
    Cmp,
    Direction,
    IntType,
    Logic,
    Memory,
    Trans,
    Width,
)
from knapper.isa.operands import Convergence, Guard, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE, Kernel, Launch, Operand, Port, Program


class Writer(Products):
    """Writes one random program."""

    def memory(self, cls: type[Instr]) -> None:
        w = self.width(cls in (i.STG, i.STS, i.STL))
        d, guard = self.reg(w.words), self.some()
        off = Signed(self.rng.choice([0, w.bytes, -w.bytes]))
        if cls is i.LDG:
            a = self.address(INPUT // 2, w.bytes)
            self.emit(i.LDG(w, d, IN_BASE, a, Signed(off + INPUT // 4), guard=guard))
        elif cls in (i.LDG_IM2COL, i.LDG_IM2COL_FILL):
            a, size = self.address(INPUT // 2, w.bytes), self.ureg()
            pix = self.reg()
            self.emit(
                i.UMOV(size, Src.of(self.rng.randrange(1, 9) << 16 | self.rng.randrange(1, 9)))
            )
            self.emit(i.LOP(Logic.AND, Bits32._32, pix, pix, Src.of(0x00070007)))
            tap = self.rng.choice(
                [
                    Src.of(self.rng.choice([0, 0xFFFF, 0xFFFF0000, 0xFFFEFFFE, 0x20003])),
                    Src.of(self.reg()),
                ]
            )
            operands = w, d, IN_BASE, a, Signed(off + INPUT // 4), pix, tap, size
            fill = self.rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            filled = i.LDG_IM2COL_FILL(*operands, Unsigned(fill), guard=guard)
            plain = i.LDG_IM2COL(*operands, guard=guard)
            self.emit(plain if cls is i.LDG_IM2COL else filled)
        elif cls is i.STG:
            self.emit(i.LOP(Logic.AND, Bits32._32, ADDRESS, self.reg(), Src.of(0x7F & -w.bytes)))
            self.emit(i.IADD(IntType.S32, ADDRESS, ADDRESS, Src.of(OUT)))
            self.emit(i.STG(w, OUT_BASE, ADDRESS, Signed(off + 32), d, guard=guard))
        elif cls is i.BMENC:
            self.encode(d, guard)
        elif cls in (i.LDS, i.STS):
            a, off = self.address(SHARED // 2, w.bytes), Signed(off + SHARED // 4)
            shared: dict[type[Instr], Callable[[], Instr]] = {
                i.LDS: lambda: i.LDS(w, d, MINE, a, off, guard=guard),
                i.STS: lambda: i.STS(w, MINE, a, off, d, guard=guard),
            }
            self.emit(shared[cls]())
        else:
            a, off = self.address(LOCAL // 2, w.bytes), Signed(off + LOCAL // 4)
            local: dict[type[Instr], Callable[[], Instr]] = {
                i.LDL: lambda: i.LDL(w, d, a, off, guard=guard),
                i.STL: lambda: i.STL(w, a, off, d, guard=guard),
            }
            self.emit(local[cls]())

    def encode(self, d: Reg, guard: Guard) -> None:
        """Each lane stores within its thread's part of the output, or anywhere in the warp's part of shared memory."""
        memory, off = self.rng.choice(list(Memory)), self.rng.choice((0, 2))
        if memory is Memory.S:
            a, base, off = self.address(SHARED // 2, 2), MINE, off + SHARED // 4
        else:
            self.emit(i.LOP(Logic.AND, Bits32._32, ADDRESS, self.reg(), Src.of(0x7E)))
            self.emit(i.IADD(IntType.S32, ADDRESS, ADDRESS, Src.of(OUT)))
            a, base = ADDRESS, OUT_BASE
        self.emit(i.BMENC(memory, d, base, a, Signed(off), self.reg(), guard=guard))

    def ldsm(self) -> None:
        trans = self.rng.choice(list(Trans))
        pitch = self.rng.choice([32, 36, 48]) - (trans is Trans.T) * self.rng.choice([0, 2])
        self.emit(
            i.LDSM(
                trans,
                self.reg(4),
                MINE,
                Signed(self.rng.choice([0, 4, 64])),
                Unsigned(pitch),
                guard=self.some(),
            )
        )

    # --- control

    def item(self) -> None:
        """One random instruction, with what makes it legal."""
        cls = self.rng.choice(self.free + SPECIAL)
        if cls in FREE:
            self.emit(self.draw(cls))
        elif cls is i.LDSM:
            self.ldsm()
        elif cls is i.ULDC:
            width = self.rng.choice(list(Bits32))
            self.emit(i.ULDC(width, self.ureg(2), Unsigned(self.rng.choice([0, 8]))))
        else:
            self.memory(cls)

    def body(self, length: int) -> None:
        for _ in range(length):
            kind = self.rng.random()
            if kind < 0.06 and self.depth < 3:
                self.branch()
            elif kind < 0.1 and self.depth < 3:
                self.loop()
            elif kind < 0.13 and self.depth == 0:
                self.meet()
            elif kind < 0.19 and self.depth == 0 and self.free is FREE:
                self.rng.choice((self.systolic, self.sparse))()
            else:
                self.item()

    def region(self, inside: Callable[[], None]) -> None:
        end, barrier = object(), Convergence(self.depth)
        self.emit(lambda: i.BSSY(barrier, self.at(end)))
        self.depth += 1
        inside()
        self.depth -= 1
        self.mark(end)
        self.emit(i.BSYNC(barrier))

    def branch(self) -> None:
        """if … else …"""
        other, end, guard = object(), object(), self.guard()

        def inside() -> None:
            self.emit(lambda: i.BRA(self.at(other), guard=guard))
            self.body(self.rng.randrange(4))
            self.emit(lambda: i.BRA(self.at(end)))
            self.mark(other)
            self.body(self.rng.randrange(4))
            self.mark(end)

        self.region(inside)

    def loop(self) -> None:
        """A loop that lanes leave at different times. Its counter lives in local memory's neighbour: a register of its own depth."""
        trips, head = Reg(5 + self.depth), object()

        def inside() -> None:
            self.emit(i.LOP(Logic.AND, Bits32._32, trips, self.reg(), Src.of(3)))
            self.mark(head)
            self.body(self.rng.randrange(1, 4))
            self.emit(i.ISUB(IntType.S32, trips, trips, Src.of(1)))
            self.emit(i.ISETP(Cmp.GT, IntType.S32, Pred(6), trips, Src.of(0)))
            self.emit(lambda: i.BRA(self.at(head), guard=Guard(6)))

        self.region(inside)

    def meet(self) -> None:
        """Read what another warp wrote, between barriers."""
        self.emit(i.BAR(Unsigned(self.rng.randrange(16))))
        w = self.width()
        self.emit(i.LDS(w, self.reg(w.words), NEXT, self.address(SHARED, w.bytes), Signed(0)))
        self.emit(i.BAR(Unsigned(self.rng.randrange(16))))

    # --- beginning and end

    def prologue(self) -> None:
        self.emit(i.ULDC(Bits32._64, IN_BASE, Unsigned(0)))
        self.emit(i.ULDC(Bits32._64, OUT_BASE, Unsigned(8)))
        self.emit(i.S2R(SR.TID_X, TID))
        for name, d in ((SR.CTAID_X, UReg(6)), (SR.WARPID, MINE)):
            self.emit(i.S2UR(name, d))
        self.emit(i.IMAD(IntType.U32, OUT, Reg(255), Src.of(0), TID))
        self.emit(i.MOV(ADDRESS, Src.of(UReg(6))))
        self.emit(i.IMAD(IntType.U32, OUT, ADDRESS, Src.of(THREADS), OUT))
        self.emit(i.SHF(Direction.L, IntType.U32, OUT, OUT, Src.of(REGION.bit_length() - 1)))
        self.emit(i.UIADD(Bits32._32, NEXT, MINE, Src.of(1)))
        self.emit(i.UIREM(NEXT, NEXT, Src.of(WARPS)))
        for u in (MINE, NEXT):
            self.emit(i.UIMAD(u, u, Src.of(SHARED), UReg(63)))
        self.emit(i.IMUL(IntType.U32, ADDRESS, TID, Src.of(4)))
        for n, r in enumerate(POOL):
            self.emit(i.LDG(Width._32, Reg(r), IN_BASE, ADDRESS, Signed(64 * n)))
        for uniform in UPOOL:
            self.emit(i.UMOV(UReg(uniform), Src.of(self.immediate())))
        for p in PREDS:
            self.emit(i.ISETP(Cmp.GT, IntType.S32, Pred(p), self.reg(), Src.of(self.immediate())))
        self.memories()

    def memories(self) -> None:
        """Fill shared memory and the threads' own; every byte of the region that a thread may not store to later, too."""
        self.emit(i.S2R(SR.LANEID, ADDRESS))
        self.emit(i.SHF(Direction.L, IntType.U32, ADDRESS, ADDRESS, Src.of(4)))
        for n in range(0, LOCAL, 16):
            self.emit(i.STL(Width._128, Reg(255), Signed(n), self.reg(4)))
        # lanes that do not exist leave their share to lane 0 … of the same warp: each stores two
        self.emit(i.IMUL(IntType.U32, Reg(5), ADDRESS, Src.of(1)))
        for n in (0, 256, 512, 768):
            self.emit(i.LOP(Logic.AND, Bits32._32, Reg(5), ADDRESS, Src.of(0xFF)))
            self.emit(i.STS(Width._128, MINE, Reg(5), Signed(n), self.reg(4)))

    def epilogue(self) -> None:
        self.emit(i.EXIT(guard=self.guard()))
        for n, p in enumerate(PREDS):
            self.emit(i.SEL(Bits32._32, Reg(5), Reg(n + 8), Src.of(0), Guard(p)))
            self.emit(i.STG(Width._32, OUT_BASE, OUT, Signed(480 + 4 * n), Reg(5)))
        for n, r in enumerate(range(8, 56, 4)):
            self.emit(i.STG(Width._128, OUT_BASE, OUT, Signed(192 + 16 * n), Reg(r)))
        for n, uniform in enumerate(UPOOL):
            self.emit(i.MOV(Reg(8 + n), Src.of(UReg(uniform))))
        for n in range(6):
            self.emit(i.STG(Width._128, OUT_BASE, OUT, Signed(384 + 16 * n), Reg(8 + 4 * n)))
        self.emit(i.EXIT())

    def program(self, length: int, window: int = 0) -> Program:
        """`window`: of the collector of the machine."""
        self.prologue()
        self.body(length)
        self.epilogue()
        code = [make() for make in self.code]
        kernel = Kernel(
            "random", Kernel.encode(code), tuple(n % 2 for n in range(len(code))), (THREADS, 1, 1), REGISTERS,
            shared_bytes=SHARED * WARPS, local_bytes=LOCAL, matrix=True,
        )  # fmt: skip
        out_bytes, out = GRID[0] * THREADS * REGION, BASE + INPUT
        launch = Launch(
            "random", GRID, (BASE, out), ("a", "b"),
            (Operand("x", BASE, INPUT, "r"), Operand("y", out, out_bytes, "w")), macs=7,
        )  # fmt: skip
        x, y = Port("x", "u32", (INPUT // 4,), BASE), Port("y", "u32", (out_bytes // 4,), out)
        return Program(
            {**TARGET, "collector_window": {"value": window, "provenance": "assumed"}},
            {"random": kernel},
            (launch,),
            (x,),
            (y,),
            arena_bytes=INPUT + out_bytes,
        )


def numbers(seed: int) -> np.ndarray[Any, Any]:
    """Inputs: random bits, small integers, and floats that are hard to get right."""
    rng = np.random.default_rng(seed)
    floats = (
        (rng.standard_normal(INPUT // 4) * 10.0 ** rng.integers(-40, 38, INPUT // 4))
        .astype(np.float32)
        .view(np.uint32)
    )
    halves = rng.standard_normal(INPUT // 2).astype(np.float16).view(np.uint32)
    hard = [
        0,
        1 << 31,
        0x7F800000,
        0xFF800000,
        0x7FC00000,
        1,
        0x7F7FFFFF,
        0x3F800000,
        0x7FF00000,
        0xFC007C00,
    ]
    edge = rng.choice(np.array(hard, np.uint32), INPUT // 4)
    choices = np.stack(
        [
            rng.integers(0, 1 << 32, INPUT // 4, np.uint32),
            rng.integers(0, 64, INPUT // 4).astype(np.uint32),
            floats,
            halves,
            edge,
        ]
    )
    return choices[rng.integers(0, len(choices), INPUT // 4), np.arange(INPUT // 4)]
