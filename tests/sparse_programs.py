"""Kernels of sparse products for tests: each warp multiplies condensed vectors that a record of the input holds.

record   bitmaps u32[32] | starts u32[2][32] | C f32[1024] | shared memory of the warp, `SHARED` bytes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from knapper.compiler.codegen.builder import URZ, KernelBuilder
from knapper.isa import instructions as i
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Direction, Half, IntType, Width
from knapper.isa.program import BASE, Kernel, Launch, Operand, Port, Program

DSTC = Machine.load("dstc")
SHARED = 2048
BITMAPS, STARTS, SUMS, VALUES = 0, 128, 384, 384 + 4096
RECORD = VALUES + SHARED
TILE = 4096
U32, WARP = IntType.U32, 32
DTYPES: dict[Half, Any] = {Half.F16: np.float16, Half.BF16: ml_dtypes.bfloat16}
Body = Callable[[KernelBuilder, Any, Any, Any], None]
"""Emits what happens between loading C and storing it: (builder, c, start, bm)."""


def kernel(body: Body, warps: int = 1, stored: bool = True, machine: Machine = DSTC) -> Kernel:
    """Load the warp's record, run the body, store its C."""
    b = KernelBuilder(
        "sparse", (WARP * warps, 1, 1), machine, matrix=True, accumulators=1024 * warps
    )
    x, y, number, block, c, mine = b.ureg(2), b.ureg(2), b.ureg(), b.ureg(), b.ureg(), b.ureg()
    b.emit(i.ULDC, Bits32._64, x, 0)
    b.emit(i.ULDC, Bits32._64, y, 8)
    b.emit(i.S2UR, SR.CTAID_X, block)
    b.emit(i.S2UR, SR.WARPID, c)
    b.emit(i.UIMAD, number, block, warps, c)
    shared = b.shared(SHARED * warps)
    assert shared == 0
    b.emit(i.UIMAD, mine, c, SHARED, URZ)
    b.emit(i.UIMAD, c, c, 1024, URZ)
    lane, at, out = b.reg(), b.reg(), b.reg()
    b.emit(i.S2R, SR.LANEID, lane)
    b.emit(i.SHF, Direction.L, U32, lane, lane, 2)
    for register, size in ((at, RECORD), (out, TILE)):
        b.emit(i.MOV, register, number)
        b.emit(i.IMAD, U32, register, register, size, lane)
    word = b.reg()
    for n in range(0, SHARED, 128):
        b.emit(i.LDG, Width._32, word, x, at, VALUES + n)
        b.emit(i.STS, Width._32, mine, lane, n, word)
    sums = b.reg(32)
    if stored:
        for j in range(32):
            value = b.reg()
            b.emit(i.LDG, Width._32, value, x, at, SUMS + 128 * j)
            b.emit(i.ACC_ST, 1, c, 32 * j, value)
    bm, start = b.reg(), b.reg(2)
    b.emit(i.LDG, Width._32, bm, x, at, BITMAPS)
    for w in (0, 1):
        b.emit(i.LDG, Width._32, start[w], x, at, STARTS + 128 * w)
    body(b, c, start, bm)
    b.emit(i.ACC_LD, 32, sums, c, 0)
    for j in range(32):
        b.emit(i.STG, Width._32, y, out, 128 * j, sums[j])
    b.emit(i.EXIT)
    return b.finish()


def program(kernel: Kernel, blocks: int, machine: Machine = DSTC, table: int = 0) -> Program:
    """One launch. Behind the records lie `table` bytes, to which a third parameter points."""
    records = blocks * kernel.warps
    size = records * RECORD + table
    at = BASE + -(-size // 256) * 256
    x, y = Port("x", "u8", (size,), BASE), Port("y", "u32", (records, 32, 32), at)
    operands = (Operand("x", BASE, size, "r"), Operand("y", at, records * TILE, "w"))
    params = (BASE, at, BASE + records * RECORD)
    launch = Launch(kernel.name, (blocks, 1, 1), params, ("n",), operands)
    return Program(
        machine.to_dict(), {kernel.name: kernel}, (launch,), (x,), (y,), arena_bytes=at - BASE + records * TILE
    )  # fmt: skip


def record(
    rng: np.random.Generator, a: Any, b: Any, c: Any, type: Half, base: int = 0
) -> np.ndarray[Any, Any]:
    """A record: A[32, 16] and B[16, 32] condensed where not NaN-masked. `a`, `b` are (values, mask) pairs."""
    out = np.zeros(RECORD, np.uint8)
    bits = np.uint64(1) << np.arange(32, dtype=np.uint64)
    masks = np.concatenate([a[1].T, b[1]])  # [32 vectors, 32 places]
    values = np.concatenate([a[0].T, b[0]])
    out[BITMAPS:STARTS].view(np.uint32)[:] = (masks * bits).sum(axis=1).astype(np.uint32)
    starts, memory = out[STARTS:SUMS].view(np.uint32).reshape(2, 32), out[VALUES:].view(np.uint16)
    at = 0
    for n in range(32):
        packed = values[n][masks[n]].astype(DTYPES[type]).view(np.uint16)
        split = int(rng.choice([63, rng.integers(0, 33)]))
        cut = min(split, len(packed))
        first, second = at, at + cut
        memory[first : first + len(packed)] = packed
        starts[:, n] = (base + 2 * first) | split << 24, base + 2 * second
        at += len(packed)
        assert at <= SHARED // 2
    out[SUMS:VALUES].view(np.float32)[:] = c.T.ravel()
    return out


def spwmma(type: Half) -> Body:
    """One SPWMMA."""
    return lambda b, c, start, bm: b.emit(i.SPWMMA, type, c, start, bm)


def ohmmas(type: Half) -> Body:
    """What an SPWMMA does, OHMMA by OHMMA, those that do nothing as well."""

    def body(b: KernelBuilder, c: Any, start: Any, bm: Any) -> None:
        for k in range(16):
            for n in range(8):
                b.emit(i.OHMMA, type, c, start, bm, k, n >> 1, n & 1)

    return body
