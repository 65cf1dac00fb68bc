"""The gather extension: tile-wise sparse products from vector memory; a tile's rows of weights are packed, and the rows of A that meet them gathered.

Tile-wise pruning (Guo et al. 2020) removes whole columns of B[K, N], cuts those that survive into tiles, and removes whole rows of each tile. What
is left of a tile is a dense product of kLen rows and nLen columns. Which rows and columns of B they were is told by two lists, in delta form: the
j-th kept row is j + k[j], so that k[j] says how many were skipped, 16 bits each.

      B[K, N]           ▓ kept                          packed B        k: 0 0 1 3 …
      ┌────────────┐                        array row   ┌──────┐
      │▓ ▓▓·▓·▓▓·▓ │  row 0, 1, 3, 6, …          0      │ row 0│ ◄── K-row 0 = tap (0, 0), channel 0
      │▓ ▓▓·▓·▓▓·▓ │                             1      │ row 1│ ◄── K-row 1
      │· ··…       │                             2      │ row 3│ ◄── K-row 3: bank 3 feeds row 2 of the array
      └────────────┘                             ⋮      └──────┘

**A tile's descriptor** is 64 bytes in memory (`TILE`), which kernels load as they load anything, and 16 uniform registers when TWDESC reads it into
one of the block's four. TWDESC reads kLen and `at`; the rest is for kernels. In a table that a compiler writes, pointers are offsets from its
beginning.

| register | field | |
|---|---|---|
| 0, 1 | b | packed B |
| 2, 3 | k | list of kept rows, kLen entries |
| 4, 5 | n | list of columns, nLen entries: column j of the tile is column nBase + j + n[j] of C |
| 6 | kLen | kept rows; 0: a tile of columns that were pruned, whose sums are +0 |
| 7 | nLen | columns |
| 8 | nBase | what the list of columns counts from |
| 9 | flags | bit 0: a residue follows the tile's chain |
| 10 | at | where the list of rows lies in shared memory, at a multiple of 2 |
| 11 … 15 | | free |

**A gathered push** feeds row j of the array with K-row kept[j0 + j] of the patch matrix of a convolution's descriptor (`IM2COL.PUSH`), for as many
rows as the list has from j0 on, at most the array's. K-row ((r · S) + q) · C + c is channel c at tap (r, q): bank c mod P of the word that
IM2COL.PUSH reads at tap (c / P, r, q); with T > 1 that of copy t = q mod T, which lies in bank t · C + c at tap q - t. The list is read as the push
is executed, like A. Passes in the order of the list are one chain of fused multiply-adds, k increasing where the list is: a dense product's
numbers, bit for bit, but for what 0 · x would have done: Inf and NaN, and the sign of a zero.

**What it takes** (assumed: the papers describe a gather on GPUs, no array). Each bank has an address of its own, and a crossbar lies between banks
and rows of the array. A bank delivers one word an access, and rows that one bank feeds have words of their own: so a push takes the port for as
many accesses as the bank that has most, and is late only if that is more than its rows. Without conflicts, that is one access in w rows, as
IM2COL.PUSH; where whole taps were pruned, no bank has two rows in a pass.

**Asynchrony.** Tile descriptors and lists have the rules of convolutions' descriptors and of A: a descriptor that a pending command uses may not
change, and the list may not be written. A push claims the whole words that its rows come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .lanes import U32
from .operands import READ, Src, UReg, bits
from .vector_memory import IM2COL_PUSH, Vector

TILE = np.dtype(
    [("b", "<u8"), ("k", "<u8"), ("n", "<u8")]
    + [(f, "<u4") for f in ("k_len", "n_len", "n_base", "flags", "at")]
    + [("free", "<u4", 5)]
)
"""A tile's descriptor in memory. A kernel that needs more than it says may use what is free."""
REGISTERS = TILE.itemsize // 4
"""Uniform registers that TWDESC reads."""
WORDS: dict[str, int] = {
    name: int(TILE.fields[name][1]) // 4 for name in TILE.names or () if TILE.fields
}
"""The register of each field, of two the lower."""
RESIDUE = 1
"""Flag: a residue follows the tile's chain."""
ENTRY = np.dtype("<u2")
"""Of a list."""
MOST = 0xFFFF
"""Rows of a tile, at most; the number that a push begins with has 16 bits."""

TILE_RULES = (
    f"a tile has at most {MOST} kept rows",
    "the list of kept rows begins at a multiple of 2 and fits shared memory",
)
"""What a tile's descriptor keeps; a fault tells the first that it breaks."""


def contradictions(k_len: Any, at: Any, limit: Any) -> tuple[Any, ...]:
    """Whether a descriptor breaks each of TILE_RULES: Python's numbers, or those of an engine that compiles."""
    size = ENTRY.itemsize
    return k_len > MOST, ((at & (size - 1)) != 0) | (at + k_len * size > limit)


def delta(kept: Any) -> Any:
    """Numbers in increasing order as a list has them: kept[j] - j.

    >>> delta([0, 1, 3, 6]).tolist()
    [0, 0, 1, 3]
    """
    numbers = np.asarray(kept, np.int64)
    return (numbers - np.arange(len(numbers))).astype(ENTRY)


class TWDESC(Vector, opcode=0x1A0, unit="control", extension="gather"):
    """Tile descriptor td of the block = the 16 uniform registers from u on. It takes effect at once; what contradicts itself is a fault.

    td is a uniform register or an immediate, and counts modulo 4.
    """

    td: Src = bits(97, 64, use=READ)
    u: UReg = bits(63, 58, use=READ, words=REGISTERS)

    syntax = "{td}, {u}"

    def refusal(self) -> str:
        return f"td is no register, but {self.td}" if self.td.kind == Src.REG else super().refusal()

    def execute(self, m: Any) -> None:
        words = [int(m.uniform(UReg(self.u + k), U32)[0]) for k in range(REGISTERS)]
        m.describe_tile(int(m.uniform(self.td, U32)[0]), words)


class GATHK_PUSH(IM2COL_PUSH, opcode=0x1A1, name="GATHK.PUSH", unit="systolic", extension="gather"):
    """C[m, n] (+)= A[m, steps] · W[steps, n] as IM2COL.PUSH does, column j of A being K-row kept[j0 + j] of the patch matrix.

    `tap` is td << 16 | j0: the tile's descriptor, and how many of its rows came before. steps = min(rows of the array, kLen - j0); with none,
    C is +0 or stays.
    """
