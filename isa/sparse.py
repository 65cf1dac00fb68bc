"""The sparse extension: products of condensed vectors, of which zeros on either side take no part.

A warp tile is 32×32 elements of C in accumulator memory. A step of k is the outer product of a column of A (32 rows) and a row of B (32
columns). Both lie condensed: a bitmap says which elements are not zero, and only those are stored, in the order of their bits.

                     B, row k    bitmap 0b…10110, values b1 b2 b4 …
                                     ┌──────┬──────┐            n = number of bits
      A, column k                    │16 val│16 val│
      bitmap 0b…1001    ┌─────┐      └──────┴──────┘
      values a0 a3 …    │8 val│ ─▶   │ 8×16 products = one OHMMA
                        ├─────┤      │ for every 8 values of A and 16 of B:
                        │8 val│ ─▶   │ ceil(nA / 8) · ceil(nB / 16) of at most 8
                        └─────┘
    C, 32×32: element (i, j) is word c + 32 j + i, so that an ACC.LD of 32 registers gives lane = row i, register = column j

**Where values lie.** `bm` is one register: lane k (0 to 15) holds the bitmap of A's column k (bit i: row i), lane 16 + k that of B's row k (bit j:
column j). `start` is a pair of registers, per lane likewise: values are 2 bytes each, in shared memory, in up to two runs.

    word 0: bits 23:0 byte address of the first run, bits 31:24 n0, how many values lie there
    word 1: byte address of the second run         value v is element v of the first run if v < n0, else element v - n0 of the second

Two runs, because a window over a stream of condensed segments (an image under a tap of a convolution) spans two of them: `BMSLICE`.

**Numbers.** For k = 0 … 15, where A has a bit i and B has a bit j: C[i, j] = fma(a, b, C[i, j]), rounded to fp32. Where either has none C stays as it
is. That differs from the dense product, in which zero takes part, in two cases only: an Inf or NaN that would meet a zero makes no NaN;
and C = -0, which from a start at +0 only an underflow leaves (two bf16 numbers can), stays -0 where adding +0 makes it +0. A bit whose value
is zero is legal: that product is computed. NaNs in the tile become the canonical one.

**C is the tile**, whatever the bitmaps say: all of it must have been written. The tile's first word is a multiple of 1,024, and counts from the
block's own share of accumulator memory: the kernel says how many words a block has (`.accumulators`); all that the SM has, if it says nothing.
These products are the whole warp's: 32 lanes are active, or the guard leaves none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.algebra import nth
from .base.memory import global_address, shared_address
from .base.uniform import Uniform
from .core import Instr
from .lanes import LANES, U16, U32, LaneType, canonical, convert, popc, select, shl, shr, type_of
from .modifiers import Half, Memory
from .operands import READ, WRITE, Pred, Reg, Signed, Src, Unsigned, UReg, bits
from .systolic import ACCUMULATORS, WORD, Needy
from .tensor import HMMA

TILE = 32
"""Rows and columns of a warp tile."""
WORDS = TILE * TILE
"""Words of it."""
STEPS = 16
"""Steps of k of an SPWMMA."""
ROWS, COLUMNS = 8, 16
"""Condensed values of A and of B that an OHMMA multiplies."""
PASS = 64
"""Values that a pass over shared memory delivers: 128 bytes."""
ADDRESS = (1 << 24) - 1
"""The bits of `start` that are the first run's address."""


@dataclass(frozen=True)
class Work:
    """What a product of condensed vectors is: OHMMAs, multiplications of two values, and the values that take part, each counted once."""

    issued: int
    macs: int
    values: int

    @staticmethod
    def of(bitmaps: NDArray[np.uint32]) -> Work:
        """Of an SPWMMA. [32]"""
        counts = np.bitwise_count(bitmaps).astype(np.int64)
        a, b = counts[:STEPS], counts[STEPS:]
        values = int((a + b)[(a > 0) & (b > 0)].sum())
        return Work(int((-(-a // ROWS)) @ (-(-b // COLUMNS))), int(a @ b), values)


DENSE = STEPS * (TILE // ROWS) * (TILE // COLUMNS)
"""OHMMAs of an SPWMMA without zeros."""


class Outer(Needy, unit="outer"):
    """A product of condensed vectors that adds to a warp tile."""

    type: Half
    c: Src
    start: Reg
    bm: Reg

    def needs(self) -> tuple[str, ...]:
        return (ACCUMULATORS,)

    def refusal(self) -> str:
        if self.c.kind == Src.REG:
            return f"c is a uniform register or a number, not {self.c}"
        if self.c.kind == Src.IMM and self.c.payload % WORDS:
            return f"c is a multiple of {WORDS:,}, not {self.c}"
        return ""

    def work(self, bitmaps: NDArray[np.uint32]) -> Work:
        """What it does with these bitmaps. [32]"""
        raise NotImplementedError


class SPWMMA(Outer, opcode=0x180, name="SPWMMA.323216.F32", extension="sparse"):
    """C[32, 32] += A[32, 16] · B[16, 32], zeros left out.

    For k = 0 … 15 the sequencer issues ceil(nA / 8) · ceil(nB / 16) OHMMAs of the 8 that a step without zeros takes. If nA or nB is 0 it issues
    none, and reads no value of the other. c is the word in accumulator memory where the tile begins.
    """

    type: Half = bits(14)
    c: Src = bits(97, 64, use=READ)
    start: Reg = bits(49, 42, use=READ, words=2)
    bm: Reg = bits(41, 34, use=READ)

    def execute(self, m: Any) -> None:
        m.whole()
        tile = Tile.load(m, self.c)
        starts, bitmaps = _starts(m, self.start), m.read(self.bm, U32)
        for k in range(STEPS):
            if bitmaps[k] and bitmaps[STEPS + k]:
                a, b = (_vector(m, self.type.lane, starts, bitmaps, n) for n in (k, STEPS + k))
                tile.add(a, b)
        tile.store(m)

    def work(self, bitmaps: NDArray[np.uint32]) -> Work:
        return Work.of(bitmaps)


class OHMMA(Outer, opcode=0x181, name="OHMMA.8161.F32", extension="sparse"):
    """One of an SPWMMA's: condensed values 8 i … 8 i + 7 of A's column k, and 16 j … 16 j + 15 of B's row k.

    Beyond the last value there is no product.
    """

    type: Half = bits(14)
    c: Src = bits(97, 64, use=READ)
    start: Reg = bits(49, 42, use=READ, words=2)
    bm: Reg = bits(41, 34, use=READ)
    k: Unsigned = bits(18, 15)
    i: Unsigned = bits(20, 19)
    j: Unsigned = bits(21)

    def execute(self, m: Any) -> None:
        m.whole()
        tile = Tile.load(m, self.c)
        starts, bitmaps, k = _starts(m, self.start), m.read(self.bm, U32), int(self.k)
        a = _vector(m, self.type.lane, starts, bitmaps, k, ROWS * int(self.i), ROWS)
        b = _vector(m, self.type.lane, starts, bitmaps, STEPS + k, COLUMNS * int(self.j), COLUMNS)
        tile.add(a, b)
        tile.store(m)

    def work(self, bitmaps: NDArray[np.uint32]) -> Work:
        a, b = (int(np.bitwise_count(bitmaps[n])) for n in (int(self.k), STEPS + int(self.k)))
        rows = min(max(a - ROWS * int(self.i), 0), ROWS)
        columns = min(max(b - COLUMNS * int(self.j), 0), COLUMNS)
        return Work(1, rows * columns, rows + columns)


class BOHMMA(Instr, opcode=0x182, name="BOHMMA.32321", unit="outer", extension="sparse"):
    """The outer product of two bitmaps: lane i of d = the bitmap of B's row k if bit i of A's column k is set, else 0.

    Which elements of C a step of k touches; the lanes of `bm` that it reads need not be active.
    """

    d: Reg = bits(33, 26, use=WRITE)
    bm: Reg = bits(41, 34, use=READ)
    k: Unsigned = bits(18, 15)

    def execute(self, m: Any) -> None:
        bitmaps, lane = m.read(self.bm, U32), m.lane()
        a, b = (m.shuffle(bitmaps, (lane & 0) + n) for n in (int(self.k), STEPS + int(self.k)))
        m.write(self.d, select((shr(a, lane) & 1) != 0, b, 0))


class OWMMA(HMMA, opcode=0x183, name="OWMMA.161616.F32", unit="outer", extension="sparse"):
    """d = a @ b + c, as HMMA.161616.F32 and with its bits, on the wiring for outer products: zeros are multiplied."""


def base_words(i: Any) -> int:
    """Uniform registers of the base address."""
    return 2 if i.memory is Memory.G else 1


class BMENC(Instr, opcode=0x184, unit="bitmap", extension="sparse"):
    """Condense: d = bitmap of the active lanes whose low 16 bits of v are not zero, and those lanes' 16 bits, packed, go to memory.

    A lane stores at its own base + a + offset, plus 2 for each lane below it that stores. A sign alone is zero: -0 is left out. `.G`: global
    memory, base is a pair; `.S`: shared memory.
    """

    memory: Memory = bits(14)
    d: Reg = bits(33, 26, use=WRITE)
    base: UReg = bits(63, 58, use=READ, words=base_words)
    a: Reg = bits(41, 34, use=READ)
    offset: Signed = bits(127, 104)
    v: Reg = bits(49, 42, use=READ)

    syntax = "{d}, [{base}+{a}+{offset}], {v}"

    def execute(self, m: Any) -> None:
        value = m.read(self.v, U32)
        stored = m.active() & ((value & 0x7FFF) != 0)
        bitmap = m.ballot(stored)
        below = shl(popc(bitmap & (shl((m.lane() & 0) + 1, m.lane()) - 1)), 1)
        if self.memory is Memory.G:
            space, address = "global", global_address(m, self.base, self.a, self.offset)
        else:
            space, address = "shared", shared_address(m, self.base, self.a, self.offset)
        m.store(space, address + convert(below, type_of(address)), [convert(value, U16)], stored)
        m.write(self.d, bitmap)


class BMSLICE(Instr, opcode=0x185, unit="bitmap", extension="sparse"):
    """A window of 32 positions from bit s (0 to 31; modulo 32) of two adjacent segments' bitmaps a, a + 1.

    d = (a + 1 : a) >> s, the window's bitmap. d + 1 = 2 · popc(bits of a below s), that many bytes into the first segment's values the window
    begins, | popc(a >> s) << 24, so many of its values lie there. With the address of the first segment's values added to it, and the
    second's beside it, that is the `start` of a product.
    """

    d: Reg = bits(33, 26, use=WRITE, words=2)
    a: Reg = bits(41, 34, use=READ, words=2)
    s: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        low, high, s = m.read(self.a, U32), m.read(nth(self.a, 1), U32), m.source(self.s, U32) & 31
        first = shr(low, s)
        skipped = popc(low) - popc(first)
        m.write(self.d, first | shl(high, (s ^ (LANES - 1)) + 1))
        m.write(nth(self.d, 1), shl(skipped, 1) | shl(popc(first), 24))


class BTST(Uniform, opcode=0x186, extension="sparse"):
    """p = bit `bit` (0 to 31; modulo 32) of a, in all 32 lanes, active or not."""

    p: Pred = bits(28, 26, use=WRITE)
    a: UReg = bits(39, 34, use=READ)
    bit: Src = bits(97, 64, use=READ)

    def execute(self, m: Any) -> None:
        shifted = shr(m.uniform(self.a, U32), m.uniform(self.bit, U32) & 31)
        m.set_uniform_predicate(self.p, (shifted & 1) != 0)


# --- what the products are made of: numpy, as in the reference engine -----------------------------------------------------------


@dataclass
class Tile:
    """A warp tile: `columns[j, i]` is element (i, j)."""

    first: NDArray[np.uint32]
    """The byte address of each lane's element in column 0."""
    columns: NDArray[np.float32]

    @staticmethod
    def load(m: Any, c: Src) -> Tile:
        word = m.uniform(c, U32)
        m.tile(int(word[0]))
        first = (word + m.lane()) * WORD
        columns = [
            m.load("accumulator", first + WORD * TILE * j, U32)[0].view(np.float32)
            for j in range(TILE)
        ]
        return Tile(first, np.stack(columns))

    def add(self, a: Vector, b: Vector) -> None:
        """The outer product of two vectors; a product is exact in float64, and its sum rounds once (`tensor.chain`)."""
        where = b.there[:, None] & a.there
        with np.errstate(all="ignore"):
            total = self.columns.astype(np.float64) + b.values[:, None] * a.values
            self.columns = np.where(where, total.astype(np.float32), self.columns)

    def store(self, m: Any) -> None:
        for j, column in enumerate(canonical(self.columns)):
            m.store("accumulator", self.first + WORD * TILE * j, [column])


@dataclass(frozen=True)
class Vector:
    """A column of A or a row of B, spread out: 32 values, and which of them take part."""

    values: NDArray[np.float64]
    there: NDArray[np.bool_]


def _starts(m: Any, start: Reg) -> NDArray[np.uint32]:
    """[2, 32]"""
    return np.stack([m.read(nth(start, i), U32) for i in range(2)])


def _vector(
    m: Any,
    type: LaneType,
    starts: NDArray[np.uint32],
    bitmaps: NDArray[np.uint32],
    n: int,
    first: int = 0,
    most: int = LANES,
) -> Vector:
    """Condensed values `first` … `first + most - 1` of vector n, at their places."""
    there = (bitmaps[n] >> np.arange(LANES, dtype=np.uint32) & 1).astype(np.bool_)
    place = np.cumsum(there) - 1
    there &= (place >= first) & (place < first + most)
    head, run = int(starts[0, n]), place.astype(np.uint32)
    split, tail = np.uint32(head >> 24), starts[1, n]
    address = np.where(run < split, (head & ADDRESS) + 2 * run, tail + 2 * (run - split))
    raw = m.load("shared", address.astype(np.uint32), U16, where=there)[0]
    return Vector(raw.view(type.dtype).astype(np.float64), there)
