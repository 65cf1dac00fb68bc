"""The sparse24 extension: HMMA over twice the k, for weights of which two of four survive.

The right operand, 32×16, keeps two of each four consecutive elements of a column. These lie in a 16×16 fragment; beside it two bits for each say
which of the four it is. A is 16×32, two fragments in consecutive registers.

    column j of b[32, 16]      compressed, [16, 16]     e
    k = 0   .                  row 0   x                1
        1   x                  row 1   y                3
        2   .                  row 2   z                0
        3   y                  …                        …
        4   z …

    element (s, j) of the fragment, in register s // 4 of lane 8 (s % 4) + j // 2, half j % 2 (`tensor`), belongs to the four k from 4 (s // 2) on.
    its index in e: bits 4 (s // 4) + 2 (j % 2) and the next, of the 16-bit half that the instruction names, in the same lane

so that one register of e serves two fragments. A100 silicon compresses the left operand and spreads the bits over lanes in another way.
Weights are the right operand here, so they are what is compressed.

**Numbers.** k strictly increasing over what is kept, one rounding a step. Kept elements are multiplied, zero or not; others are not. That differs
from the dense product in two cases only: an Inf or NaN that would meet a zero which is not kept makes no NaN; and c = -0, which from a start at
+0 only an underflow leaves (two bf16 numbers can), is not made +0 by such a zero. Where less than two of four differ from zero, zeros are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.algebra import nth
from .core import Instr
from .lanes import U32
from .modifiers import Half
from .operands import READ, WRITE, Reg, Unsigned, bits
from .tensor import ACCUMULATOR, OPERAND, SIZE, fragment, operand

DEPTH = 2 * SIZE
"""K."""
OF, KEPT = 4, 2
"""Of so many elements in a row, so many are kept."""


class HMMA_SP(Instr, opcode=0x103, name="HMMA.SP.161632.F32", unit="tensor", extension="sparse24"):
    """d = a @ b + c: a[16, 32], b[32, 16] with two of four kept, in fp16 or bf16, c and d in fp32; 4,096 multiply-accumulates, 8,192 dense ones.

    b holds the kept elements, `half` of e (0: low, 1: high) which they are. Each element of d: acc = c; for k = 0 … 31, if one of the two
    elements of its four says k (if both do, the first): acc = fma(a[i, k], b[k, j], acc), rounded to fp32. With c = RZ the chain starts at +0. Lanes
    that are not active contribute their registers but get no result.
    """

    type: Half = bits(14)
    d: Reg = bits(33, 26, use=WRITE, words=ACCUMULATOR)
    a: Reg = bits(41, 34, use=READ, words=2 * OPERAND)
    b: Reg = bits(57, 50, use=READ, words=OPERAND)
    c: Reg = bits(49, 42, use=READ, words=ACCUMULATOR)
    e: Reg = bits(65, 58, use=READ)
    half: Unsigned = bits(15)

    def execute(self, m: Any) -> None:
        lane = self.type.lane
        a = np.concatenate([operand(m, nth(self.a, n), lane) for n in (0, OPERAND)], axis=1)
        index = indices(m.read(self.e, U32), int(self.half))
        b, kept = expanded(operand(m, self.b, lane), index)
        c = fragment(m, self.c, ACCUMULATOR).view(np.float32).reshape(SIZE, SIZE)
        d = chain(a, b, kept, c).view(np.uint32).reshape(ACCUMULATOR, -1)
        for r in range(ACCUMULATOR):
            m.write(nth(self.d, r), d[r])

    def macs(self, lanes: int) -> int:
        return lanes * SIZE * SIZE * SIZE // 32


def indices(e: NDArray[np.uint32], half: int) -> NDArray[np.uint32]:
    """Which of its four each compressed element is, [16, 16], from a register of metadata. [32]"""
    s, j = np.mgrid[:SIZE, :SIZE].astype(np.uint32)
    found: NDArray[np.uint32] = e[8 * (s % 4) + j // 2] >> shift(s, j, half) & 3
    return found


def shift(s: Any, j: Any, half: int) -> Any:
    """The lower bit of element (s, j)'s index."""
    return SIZE * half + 4 * (s // 4) + 2 * (j % 2)


def metadata(index: NDArray[np.integer[Any]], half: int = 0) -> NDArray[np.uint32]:
    """A register of metadata with one half filled, the other 0: `indices` backwards. [16, 16] → [32]"""
    s, j = np.mgrid[:SIZE, :SIZE].astype(np.uint32)
    e = np.zeros(32, np.uint32)
    np.bitwise_or.at(e, 8 * (s % 4) + j // 2, index.astype(np.uint32) << shift(s, j, half))
    return e


def expanded(
    b: NDArray[np.float64], index: NDArray[np.uint32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The compressed fragment as b[32, 16], and which elements of it are kept."""
    place = OF * (np.arange(SIZE)[:, None] // KEPT) + index
    full, kept = np.zeros((DEPTH, SIZE)), np.zeros((DEPTH, SIZE), bool)
    for n in reversed(range(KEPT)):  # the first one comes last, and stays
        np.put_along_axis(full, place[n::KEPT], b[n::KEPT], axis=0)
        np.put_along_axis(kept, place[n::KEPT], True, axis=0)
    return full, kept


def chain(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    kept: NDArray[np.bool_],
    c: NDArray[np.float32],
) -> NDArray[np.float32]:
    """`tensor.chain`, where b is kept."""
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(DEPTH):
            total = (c.astype(np.float64) + a[:, k : k + 1] * b[k : k + 1]).astype(np.float32)
            c = np.where(kept[k], total, c)
    return np.where(np.isnan(c), np.float32(np.nan), c)
