"""What the fast engine costs: nanoseconds an instruction, GMAC/s of the matrix loop beside numpy's sgemm, start-up times.

PYTHONPATH=.ns python tests/bench/bench_engine.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.modifiers import (
    SR,
    Bits32,
    Byte,
    Cmp,
    Direction,
    Element,
    Few,
    FloatType,
    Fn,
    Half,
    IntType,
    Logic,
    MinMax,
    Nibble,
    Pair,
    Rounding,
    Scalar,
    Shuffle,
    Space,
    Start,
    Trans,
    Width,
)
from knapper.isa.operands import Extent, Guard, Label, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE, Kernel, Launch, Port, Program
from knapper.runtime.session import Session

TRIPS, REGISTERS, ARENA = 10000, 200, 1 << 16
F, S = FloatType.F32, IntType.S32
GLOBAL, SHARED, COUNT, IMAGE = UReg(0), UReg(2), UReg(4), UReg(30)
LANE, LINE, ROWS = (
    Reg(0),
    Reg(1),
    Reg(2),
)  # lane; 16 · lane; 64 · (lane / 2) + 16 · (lane % 2): pairs of lanes share a row


def program(
    body: Sequence[Instr], trips: int = TRIPS, warps: int = 1, mode: str = "simd"
) -> Program:
    """A kernel that runs the body `trips` times."""
    code: list[Instr] = [
        i.ULDC(Bits32._64, GLOBAL, Unsigned(0)), i.UMOV(SHARED, Src.of(0)), i.UMOV(IMAGE, Src.of(8 << 16 | 8)),
        i.UMOV(COUNT, Src.of(trips)), i.S2R(SR.LANEID, LANE),
        i.SHF(Direction.L, IntType.U32, LINE, LANE, Src.of(4)), i.SHF(Direction.R, IntType.U32, ROWS, LANE, Src.of(1)),
        i.SHF(Direction.L, IntType.U32, ROWS, ROWS, Src.of(6)), i.LOP(Logic.AND, Bits32._32, Reg(3), LANE, Src.of(1)),
        i.SHF(Direction.L, IntType.U32, Reg(3), Reg(3), Src.of(4)), i.IADD(S, ROWS, ROWS, Src.of(Reg(3))),
        i.SHF(Direction.L, IntType.U32, Reg(4), LANE, Src.of(2)),
    ]  # fmt: skip
    head = len(code)
    code += [
        *body,
        i.UIADD(Bits32._32, COUNT, COUNT, Src.of(-1)),
        i.UISETP(Cmp.GT, S, Pred(0), COUNT, Src.of(0)),
    ]
    code += [i.BRA(Label(head), guard=Guard(0)), i.EXIT()]
    kernel = Kernel(
        "loop",
        Kernel.encode(code),
        (0,) * len(code),
        (32 * warps, 1, 1),
        REGISTERS,
        shared_bytes=32768,
        mode_entry=mode,
        mode_exit=mode,
        matrix=True,
    )
    launch = Launch("loop", (1, 1, 1), (BASE,), ("n",))
    port = Port("x", "u8", (ARENA,), BASE)
    return Program(
        {"name": "bench", "extensions": ("tensor", "types", "conv", "systolic")},
        {"loop": kernel},
        (launch,),
        (port,),
        (),
        arena_bytes=ARENA,
    )


def seconds(p: Program, repeat: int = 5) -> float:
    """CPU seconds of one run."""
    session, x = Session(p), {"x": np.zeros(ARENA, np.uint8)}
    session.run(x, threads=1)
    best = 1e9
    for _ in range(repeat):
        start = time.process_time()
        session.run(x, threads=1)
        best = min(best, time.process_time() - start)
    return best


def nanoseconds(make: Callable[[int], Instr], copies: int = 16) -> float:
    """Of one instruction in a row of different ones: the loop with it less the loop without."""
    return (
        (seconds(program([make(n) for n in range(copies)])) - seconds(program([])))
        / (TRIPS * copies)
        * 1e9
    )


def r(n: int, base: int = 8, step: int = 1) -> Reg:
    return Reg(base + step * n)


def fragments(n: int) -> tuple[Reg, Reg, Reg, Reg]:
    """Registers of d, a, b, c."""
    return r(n % 8, 64, 8), r(n % 4, 8, 4), r(n // 4, 32, 4), r(n % 8, 64, 8)


ONE: dict[str, Callable[[int], Instr]] = {
    "NOP": lambda n: i.NOP(),
    "UIADD": lambda n: i.UIADD(Bits32._32, UReg(8 + n), UReg(8 + n), Src.of(1)),
    "MOV": lambda n: i.MOV(r(n), Src.of(r(n, 40))),
    "MOV imm": lambda n: i.MOV(r(n), Src.of(5)),
    "IADD": lambda n: i.IADD(S, r(n), r(n, 40), Src.of(r(n, 60))),
    "IMAD": lambda n: i.IMAD(S, r(n), r(n, 40), Src.of(r(n, 60)), r(n, 80)),
    "SHF": lambda n: i.SHF(Direction.L, IntType.U32, r(n), r(n, 40), Src.of(3)),
    "ISETP": lambda n: i.ISETP(Cmp.LT, S, Pred(1 + n % 6), r(n, 40), Src.of(r(n, 60))),
    "SEL": lambda n: i.SEL(Bits32._32, r(n), r(n, 40), Src.of(r(n, 60)), Guard(0)),
    "FADD": lambda n: i.FADD(F, r(n), r(n, 40), Src.of(r(n, 60))),
    "FFMA": lambda n: i.FFMA(F, r(n), r(n, 40), Src.of(r(n, 60)), r(n)),
    "FMNMX": lambda n: i.FMNMX(MinMax.MAX, F, r(n), r(n, 40), Src.of(0)),
    "FADD @P": lambda n: i.FADD(F, r(n), r(n, 40), Src.of(r(n, 60)), guard=Guard(0)),
    "CVT f16 f32": lambda n: i.CVT(Scalar.F16, Scalar.F32, Rounding.RN, r(n), r(n, 40)),
    "CVT f32 f16": lambda n: i.CVT(Scalar.F32, Scalar.F16, Rounding.RN, r(n), r(n, 40)),
    "PACK2": lambda n: i.PACK2(r(n), r(n, 40), r(n, 60)),
    "IADD s64": lambda n: i.IADD(IntType.S64, r(n, 8, 2), r(n, 40, 2), Src.of(r(n, 80, 2))),
    "FADD f64": lambda n: i.FADD(FloatType.F64, r(n, 8, 2), r(n, 40, 2), Src.of(r(n, 80, 2))),
    "IDIV": lambda n: i.IDIV(IntType.U32, r(n), r(n, 40), Src.of(r(n, 60))),
    "SHFL": lambda n: i.SHFL(Shuffle.BFLY, r(n), r(n, 40), Src.of(1)),
    "MUFU.EXP": lambda n: i.MUFU(Fn.EXP, F, r(n), r(n, 40)),
    "MUFU.RCP": lambda n: i.MUFU(Fn.RCP, F, r(n), r(n, 40)),
    "MUFU.TANH": lambda n: i.MUFU(Fn.TANH, F, r(n), r(n, 40)),
    "LDG.32": lambda n: i.LDG(Width._32, r(n), GLOBAL, Reg(4), Signed(128 * n)),
    "LDG.U16": lambda n: i.LDG(Width.U16, r(n), GLOBAL, Reg(255), Signed(128 * n)),
    "LDG.128": lambda n: i.LDG(Width._128, r(n % 8, 8, 4), GLOBAL, LINE, Signed(512 * n)),
    "LDG.128 rows": lambda n: i.LDG(Width._128, r(n % 8, 8, 4), GLOBAL, ROWS, Signed(512 * n)),
    "LDG.IM2COL.128": lambda n: i.LDG_IM2COL(Width._128, r(n % 8, 8, 4), GLOBAL, ROWS, Signed(512 * n), Reg(180), Src.of(0), IMAGE),
    "STG.32": lambda n: i.STG(Width._32, GLOBAL, Reg(4), Signed(128 * n), r(n)),
    "STG.128": lambda n: i.STG(Width._128, GLOBAL, LINE, Signed(512 * n), r(n % 8, 8, 4)),
    "STG.128 rows": lambda n: i.STG(Width._128, GLOBAL, ROWS, Signed(512 * n), r(n % 8, 8, 4)),
    "LDS.32": lambda n: i.LDS(Width._32, r(n), SHARED, Reg(4), Signed(128 * n)),
    "LDS.32 one": lambda n: i.LDS(Width._32, r(n), SHARED, Reg(255), Signed(128 * n)),
    "LDS.128": lambda n: i.LDS(Width._128, r(n % 8, 8, 4), SHARED, LINE, Signed(512 * n)),
    "STS.128": lambda n: i.STS(Width._128, SHARED, LINE, Signed(512 * n), r(n % 8, 8, 4)),
    "STS.128 rows": lambda n: i.STS(Width._128, SHARED, ROWS, Signed(512 * n), r(n % 8, 8, 4)),
    "LDSM.N": lambda n: i.LDSM(Trans.N, r(n % 8, 8, 4), SHARED, Signed(512 * n), Unsigned(48)),
    "LDSM.T": lambda n: i.LDSM(Trans.T, r(n % 8, 8, 4), SHARED, Signed(512 * n), Unsigned(48)),
    "HMMA": lambda n: i.HMMA(Half.F16, *fragments(n)),
    "IMMA u8 s8": lambda n: i.IMMA(Byte.U8, Few.S8, *fragments(n)),
    "IMMA s8 s8": lambda n: i.IMMA(Byte.S8, Few.S8, *fragments(n)),
    "IMMA u8 flint4": lambda n: i.IMMA(Byte.U8, Few.FLINT4, *fragments(n)),
    "IMMA u4 s4": lambda n: i.IMMA_4(Nibble.U4, Nibble.S4, *fragments(n)),
    "IMMA flint4": lambda n: i.IMMA_4(Nibble.FLINT4, Nibble.FLINT4, *fragments(n)),
}  # fmt: skip


def matrix() -> list[Instr]:
    """A k step of a 64 × 64 warp tile: 8 LDSM, 16 HMMA."""
    loads: list[Instr] = [
        i.LDSM(Trans.N, r(n, 136, 4), SHARED, Signed(512 * n), Unsigned(32)) for n in range(8)
    ]
    return loads + [
        i.HMMA(Half.F16, r(4 * m + n, 8, 8), r(m, 136, 4), r(n, 152, 4), r(4 * m + n, 8, 8))
        for m in range(4)
        for n in range(4)
    ]


def strip(type: Element | Pair, units: int, m: int = 128) -> list[Instr]:
    """A k step of 32, or of 64 bytes, on a column strip, C[m, 16 units]: four groups of weights and rows."""
    pitch = 32 * type.lane.bits // 8 + 16
    width = Unsigned(64 * units)  # bytes of a row of B, at most
    pairs = isinstance(type, Pair)
    load, product = (i.ISMA_LDB, i.ILSMA) if pairs else (i.SMA_LDB, i.LSMA)
    code: list[Instr] = []
    for k in range(4):
        b = Signed(16384 + 8 * k * int(width))
        a = Signed(8 * k * type.lane.bits // 8)
        code += [
            load(type, Extent(units), SHARED, b, width),
            i.SMA_SWAP(Extent(units)),
            product(type, Start.ADD, Space.REG, Src.of(r(0)), Extent(units), Extent(m), SHARED, a, Unsigned(pitch)),
        ]  # fmt: skip
    return [*code, i.SMA_COMMIT(), i.SMA_WAIT(Unsigned(0))]


def systolic() -> None:
    """Multiply-accumulates a second of LSMA, weights and widening included."""
    for type, units, m in (
        (t, u, m) for t in (*Element, *Pair) for u in (1, 2, 3) for m in (64, 128)
    ):
        body = strip(type, units, m)
        macs = sum(x.macs(32) for x in body)
        cpu = seconds(program(body, mode="systolic"))
        print(
            f"{body[2].mnemonic}.{type} {units} × {m:<4} {macs * TRIPS / cpu / 1e9:7.1f} GMAC/s",
            flush=True,
        )


def sgemm() -> float:
    """numpy's GMAC a CPU second, one thread's worth."""
    x = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    best = 1e9
    for _ in range(4):
        start = time.process_time()
        x @ x
        best = min(best, time.process_time() - start)
    return 1024**3 / best / 1e9


def startup() -> None:
    """First compile and warm start, in fresh processes."""
    script = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import bench_engine as b, time; p = b.program(b.matrix(), 1)\n"
    script += "t = time.process_time(); b.seconds(p, 1); print(time.process_time() - t)"
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "KNAPPER_CACHE": cache}
        for what in ("first compile", "warm start"):
            done = subprocess.run(
                [sys.executable, "-c", script], env=env, check=True, capture_output=True, text=True
            )
            print(f"{what:16} {float(done.stdout):6.3f} s CPU")


def main() -> None:
    chosen = sys.argv[1:]
    for name, make in ONE.items():
        if not chosen or any(c in name for c in chosen):
            ns, macs = nanoseconds(make), make(0).macs(32)
            rate = f" {macs / ns:7.1f} GMAC/s" if macs > 32 else ""
            print(f"{name:16} {ns:7.1f} ns{rate}", flush=True)
    if not chosen:
        cpu = seconds(program(matrix()))
        print(
            f"{'k step':16} {16 * 4096 * TRIPS / cpu / 1e9:7.1f} GMAC/s with LDSM; numpy sgemm {sgemm():.1f}"
        )
        systolic()
        startup()


if __name__ == "__main__":
    main()
