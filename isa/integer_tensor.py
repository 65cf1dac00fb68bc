"""Integer products of the tensor extension: operands of 8 and 4 bits, exact sums in 32, one warp a tile.

A fragment is a matrix in registers, row-major over (register, lane, byte), of two nibbles in a byte the low one first. k is contiguous in both
operands, so B is held transposed, row by column of the product: LDSM.N loads either, 32 bytes a row.

    A: 16 (m) × K        B: 16 (n) × K        K = 32 of 8 bits, 64 of 4 bits: 512 bytes, 4 registers
    register r, lane l, byte b                = row 4r + l // 8, byte 4 (l % 8) + b of the row
    C, D: 16×16 S32, 8 registers              register r, lane l = row 2r + l // 16, column l % 16

of bytes by nibbles B is 16 × 32 nibbles: 256 bytes, 2 registers (row 8r + l // 4, byte 4 (l % 4) + b).

**Types** say what codes mean (Number formats). `S8`, `U8`, `S4` and `U4` are integers; `FLINT4`, `UFLINT4`, `POT4` and `UPOT4`, which machines of
extension `types` have, are decoded on the way to the multipliers: their value is base << exponent, so a multiplier of four bits and a shifter serve
all pairs, as in ANT. ANT's signed float of 4 bits is POT4.

**Numbers.** Sums are exact modulo 2^32: they wrap. A compiler proves from K and the formats that they do not, or does not offer the format.

**Time.** A machine's unit `tensor_int` takes an IMMA of either depth in one interval, whatever the types, also bytes by nibbles. In the built-in
targets it is that of an HMMA, so that 8 bits bring twice its multiply-accumulates, 4 bits four times: assumed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.algebra import nth
from .core import Instr
from .formats import Format, unpack
from .lanes import LANES
from .modifiers import Byte, Few, Nibble
from .operands import READ, WRITE, Reg, bits
from .tensor import ACCUMULATOR, OPERAND, SIZE, fragment

ROW = 32
"""Bytes of a row of a full fragment."""


NIBBLES = frozenset(t for t in Few if t.format.bits == 4)
"""Types of B that come two in a byte."""


def of_b(i: Any) -> int:
    """Registers of B: of nibbles beside an A of bytes half as many."""
    return OPERAND // 2 if i.b_type in NIBBLES else OPERAND


class IMMA(Instr, opcode=0x104, name="IMMA.161632.S32", unit="tensor_int", extension="tensor"):
    """d = a @ bᵀ + c: a[16, 32] of 8 bits, b[16, 32] of 8 or 4 bits, c and d in S32, which wraps; 8,192 multiply-accumulates.

    d[m, n] = c[m, n] + Σ a[m, k] · b[n, k]. With c = RZ it is the sum alone. Lanes that are not active contribute their registers but get no result.
    """

    a_type: Byte = bits(17, 14)
    b_type: Few = bits(21, 18)
    d: Reg = bits(33, 26, use=WRITE, words=ACCUMULATOR)
    a: Reg = bits(41, 34, use=READ, words=OPERAND)
    b: Reg = bits(57, 50, use=READ, words=of_b)
    c: Reg = bits(49, 42, use=READ, words=ACCUMULATOR)

    def needed(self) -> str:
        return self.b_type.extension

    def execute(self, m: Any) -> None:
        a = operand(m, self.a, OPERAND, self.a_type.format)
        deliver(self, m, a, operand(m, self.b, of_b(self), self.b_type.format))

    def macs(self, lanes: int) -> int:
        return lanes * SIZE * SIZE * ROW // LANES


class IMMA_4(Instr, opcode=0x105, name="IMMA.161664.S32", unit="tensor_int", extension="tensor"):
    """d = a @ bᵀ + c: a[16, 64] and b[16, 64] of 4 bits, c and d in S32, which wraps; 16,384 multiply-accumulates. Else as IMMA.161632."""

    a_type: Nibble = bits(17, 14)
    b_type: Nibble = bits(21, 18)
    d: Reg = bits(33, 26, use=WRITE, words=ACCUMULATOR)
    a: Reg = bits(41, 34, use=READ, words=OPERAND)
    b: Reg = bits(57, 50, use=READ, words=OPERAND)
    c: Reg = bits(49, 42, use=READ, words=ACCUMULATOR)

    def needed(self) -> str:
        return self.a_type.extension or self.b_type.extension

    def execute(self, m: Any) -> None:
        a, b = (
            operand(m, reg, OPERAND, t.format)
            for reg, t in ((self.a, self.a_type), (self.b, self.b_type))
        )
        deliver(self, m, a, b)

    def macs(self, lanes: int) -> int:
        return lanes * SIZE * SIZE * 2 * ROW // LANES


INTEGER = (IMMA, IMMA_4)
"""The integer products."""


def operand(m: Any, first: Reg, registers: int, format: Format) -> NDArray[np.int64]:
    """The values of a fragment, [16, K]."""
    rows = fragment(m, first, registers).view(np.uint8).reshape(SIZE, -1)
    return format.decode(unpack(rows, format.bits)).astype(np.int64)


def deliver(i: Any, m: Any, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
    """d = a @ bᵀ + c modulo 2^32. The sum of products is below 2^35 in size, so exact here."""
    c = fragment(m, i.c, ACCUMULATOR).reshape(SIZE, SIZE)
    d = (c + (a @ b.T)).astype(np.uint32).reshape(ACCUMULATOR, -1)
    for r in range(ACCUMULATOR):
        m.write(nth(i.d, r), d[r])
