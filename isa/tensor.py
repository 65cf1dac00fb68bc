"""The tensor extension: 16-bit operands, fp32 accumulators, one warp a tile.

A fragment is a matrix in registers, row-major over (register, lane, half): a register is 128 bytes, that is two rows of
a 16-column fp32 matrix or four rows of a 16-column fp16 one.

    A, B: 16×16 fp16, 4 registers                     C, D: 16×16 fp32, 8 registers (or fp16, 4, as A and B)
    register r, lane l, half h                        register r, lane l
    = row 4r + l // 8, column 2 (l % 8) + h           = row 2r + l // 16, column l % 16

The layout is ours, not silicon's: there the elements of a tile are spread over lanes in an order that suits its wires.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.algebra import nth
from .core import Instr
from .lanes import F16, U16, U32, LaneType, Value, convert, shl, shr
from .modifiers import Half, Trans
from .operands import READ, WRITE, Reg, Signed, Unsigned, UReg, bits

SIZE = 16
"""M, N and K of HMMA."""
OPERAND, ACCUMULATOR = 4, 8
"""Registers of a 16-bit and of an fp32 fragment."""


class LDSM(Instr, opcode=0x100, unit="lsu_shared", extension="tensor"):
    """d = a 16×16 fragment of 16-bit elements from shared memory, row i at base + offset + i * pitch.

    `.T` transposes: element (i, j) of the fragment is the one that lies in row j, column i in memory. Each lane fetches its
    own elements: as 32-bit words for `.N`, so rows begin at multiples of 4, as 16-bit ones for `.T`.
    """

    trans: Trans = bits(14)
    d: Reg = bits(33, 26, use=WRITE, words=OPERAND)
    base: UReg = bits(63, 58, use=READ)
    offset: Signed = bits(127, 104)
    pitch: Unsigned = bits(79, 64)

    syntax = "{d}, [{base}+{offset}], {pitch}"

    def execute(self, m: Any) -> None:
        origin = m.uniform(self.base, U32) + (int(self.offset) & 0xFFFFFFFF)
        for r in range(OPERAND):
            row, column = shr(m.lane(), 3) + 4 * r, shl(m.lane() & 7, 1)
            m.write(nth(self.d, r), self.word(m, origin, row, column))

    def word(self, m: Any, origin: Value, row: Value, column: Value) -> Value:
        """Elements (row, column) and (row, column + 1) of the fragment, in one word."""
        pitch = int(self.pitch)
        if self.trans is Trans.N:
            return m.load("shared", origin + row * pitch + column * 2, U32)[0]
        low, high = (
            m.load("shared", origin + (column + i) * pitch + row * 2, U16)[0] for i in (0, 1)
        )
        return convert(low, U32) | shl(convert(high, U32), 16)


class HMMA(Instr, opcode=0x101, name="HMMA.161616.F32", unit="tensor", extension="tensor"):
    """d = a @ b + c: a[16, 16] and b[16, 16] in fp16 or bf16, c and d in fp32; 4,096 multiply-accumulates.

    Each element of d: acc = c; for k = 0 … 15: acc = fma(a[i, k], b[k, j], acc), rounded to fp32 at each step. With c = RZ the
    chain starts at +0. Lanes that are not active contribute their registers but get no result. V100 silicon adds in another order.
    """

    type: Half = bits(14)
    d: Reg = bits(33, 26, use=WRITE, words=ACCUMULATOR)
    a: Reg = bits(41, 34, use=READ, words=OPERAND)
    b: Reg = bits(57, 50, use=READ, words=OPERAND)
    c: Reg = bits(49, 42, use=READ, words=ACCUMULATOR)

    def execute(self, m: Any) -> None:
        a, b = (operand(m, r, self.type.lane) for r in (self.a, self.b))
        c = fragment(m, self.c, ACCUMULATOR).view(np.float32).reshape(SIZE, SIZE)
        d = chain(a, b, c).view(np.uint32).reshape(ACCUMULATOR, -1)
        for r in range(ACCUMULATOR):
            m.write(nth(self.d, r), d[r])

    def macs(self, lanes: int) -> int:
        return lanes * SIZE * SIZE * SIZE // 32


class HMMA_F16(Instr, opcode=0x102, name="HMMA.161616.F16", unit="tensor_f16", extension="tensor"):
    """d = a @ b + c, all of them 16×16 in fp16; 4,096 multiply-accumulates.

    Each element of d: acc = c; for k = 0 … 15: acc = fma(a[i, k], b[k, j], acc), rounded to fp32 at each step; then one rounding to fp16. Of
    a longer chain every sixteenth step is thus rounded to fp16 (assumed; V100 silicon adds in another order).
    """

    d: Reg = bits(33, 26, use=WRITE, words=OPERAND)
    a: Reg = bits(41, 34, use=READ, words=OPERAND)
    b: Reg = bits(57, 50, use=READ, words=OPERAND)
    c: Reg = bits(49, 42, use=READ, words=OPERAND)

    def execute(self, m: Any) -> None:
        a, b, c = (operand(m, r, F16) for r in (self.a, self.b, self.c))
        with np.errstate(over="ignore"):
            d = chain(a, b, c.astype(np.float32)).astype(np.float16)
        words = d.view(np.uint32).reshape(OPERAND, -1)
        for r in range(OPERAND):
            m.write(nth(self.d, r), words[r])

    def macs(self, lanes: int) -> int:
        return lanes * SIZE * SIZE * SIZE // 32


def fragment(m: Any, first: Reg, registers: int) -> NDArray[np.uint32]:
    """The words of consecutive registers, [registers · 32]."""
    return np.concatenate([m.read(nth(first, r), U32) for r in range(registers)])


def operand(m: Any, first: Reg, type: LaneType) -> NDArray[np.float64]:
    """A 16-bit fragment, [16, 16], widened."""
    wide: NDArray[np.float64] = fragment(m, first, OPERAND).view(type.dtype).astype(np.float64)
    return wide.reshape(SIZE, SIZE)


def chain(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float32]
) -> NDArray[np.float32]:
    """c + a @ b, k strictly increasing, each step one fused multiply-add in fp32.

    A product of two 16-bit floats is exact in float64. Adding it to an fp32 number in float64 and rounding the sum to fp32 gives
    the fused result: of a sum of a 24-bit and a 16-bit significand, float64's 53 bits hold all that fp32's rounding can
    see. (For fp16 even an fp32 product would be exact; a bf16 product can leave fp32's range.)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(SIZE):
            c = (c.astype(np.float64) + a[:, k : k + 1] * b[k : k + 1]).astype(np.float32)
    return np.where(np.isnan(c), np.float32(np.nan), c)
