"""Pruned weights tile by tile: what the kernels read beside A, and in which order blocks take their work.

A tile is some columns of B that share the rows they keep (`sparsity.tilewise`): inside it B is dense, outside it there is nothing to multiply.

    B, k × n                 compact B of a tile          a block: one tile, bm rows of C
    ┌──────────────┐         ┌──────┐
    │ ■   ■ · ■    │ rows    │ ■■■  │ kLen × nLen         A's columns: rows[j] = j + list[j]         (gather)
    │ ■   ■ · ■    │ ─────►  │ ■■■  │                     C's columns: columns[j] = j + list[j]      (scatter)
    │ ·   · · ·    │         └──────┘
    └──────────────┘         pruned columns are tiles with kLen = 0: C starts and stays at +0, and the epilogue treats it as any other

All that depends on the weights lies in one buffer, so kernels do not: they find their tile by an entry of the work table, and the number of
k steps in the tile's descriptor. Pointers are 64-bit offsets from the buffer's begin.

    work table    ITEM a block: which descriptor, which rows of C, which batch index
    descriptors   `knapper.isa.gather.TILE`, 64 bytes a tile; kernels here read b, k, n and kLen, and have lists of 32 bits
    lists         of k: DELTA for a matrix; for an image OFFSET, a byte offset and a tap, as `access.gather_table`; of n: DELTA
    weights       k step by k step, each in the engine's own order

Lists of k are filled up to whole steps, and by one step that is fetched and not used, with rows that lie outside: A is +0 there, and weights
are filled with -0, which leaves every sum as it is. A list of n is filled with columns that are not stored.

Block i runs on SM i mod (active SMs), so the order of the work table is the balance: see `balanced`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knapper.isa.gather import TILE

from ....ir import Array

ITEM = np.dtype([("tile", "<u4"), ("rows", "<u4"), ("batch", "<u4"), ("spare", "<u4")])
"""A block's work: byte offset of its descriptor, number of its block of rows, batch index."""

DELTA = np.dtype("<i4")
"""Entry j of an offset list: how many rows (or columns) before the j-th kept one were dropped; the row itself is j + list[j]."""

OFFSET = np.dtype("<i4")
"""Two of them are an entry of an image's list."""

ALIGN = 256
"""Bytes at which sections and tiles begin."""


def deltas(kept: Array, length: int, outside: int) -> Array:
    """kept[j] - j, filled up to `length` entries that mean row `outside`."""
    rows = np.full(length, outside, np.int64)
    rows[: len(kept)] = kept
    return (rows - np.arange(length)).astype(DELTA)


# --- tiles of a product


@dataclass(frozen=True, eq=False)
class Chunk:
    """What a block computes, for all rows of C: up to bn columns of one tile."""

    batch: Sequence[int]
    """The batch indices that it is for."""
    rows: Array
    """Of B, ascending: the order of the chain."""
    columns: Array
    weights: Array
    """[rows, columns]"""

    def steps(self, bk: int) -> int:
        """k steps."""
        return -(-len(self.rows) // bk)


# --- balance

FIXED = 64
"""What a block does beside its k steps, in columns of A: addresses, epilogue. Chosen, not measured."""


def balanced(weights: Sequence[int], sms: int) -> list[int]:
    """The order in which items shall lie so that SMs finish together, each getting as many as another, or one more.

    Longest first, each to the SM that has least to do and a place left (LPT). Item i of the order runs on SM i mod (active SMs), and an SM takes
    its items in order, the long ones first.

    >>> balanced([5, 1, 1, 5], 2)
    [0, 3, 1, 2]
    """
    active = min(sms, len(weights))
    places = [len(weights) // active + (s < len(weights) % active) for s in range(active)]
    free = [(0, s) for s in range(active)]
    taken: list[list[int]] = [[] for _ in free]
    for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
        load, s = heapq.heappop(free)
        taken[s].append(i)
        if len(taken[s]) < places[s]:
            heapq.heappush(free, (load + weights[i], s))
    return [taken[i % active][i // active] for i in range(len(weights))]


# --- the buffer


class Buffer:
    """Sections one behind the other."""

    def __init__(self) -> None:
        self.parts, self.end = list[tuple[int, Array]](), 0

    def add(self, a: Array, align: int = 16) -> int:
        """Append an array's bytes; gives where they begin."""
        at = -(-self.end // align) * align
        self.parts.append((at, np.ascontiguousarray(a).reshape(-1).view(np.uint8)))
        self.end = at + a.nbytes
        return at

    def bytes(self, room: int) -> Array:
        """All of it, and `room` bytes more that may be read."""
        found = np.zeros(-(-(self.end + room) // ALIGN) * ALIGN, np.uint8)
        for at, part in self.parts:
            found[at : at + len(part)] = part
        return found


@dataclass(frozen=True)
class Layout:
    """How a launch's buffer is filled: the block tile, blocks of rows, and the engine's and the operand's own parts."""

    bk: int
    bn: int
    columns: int
    """Of the product: the number that means none."""
    blocks: int
    """Of rows."""
    sms: int
    dtype: np.dtype[np.generic]
    row_list: Callable[[Array, int], Array]
    """(kept rows, length) → the list of k, filled up to that length."""
    packed: Callable[[Array], Array]
    """Weights [1, k, n] of whole steps → as the engine reads them."""

    def filled(self, c: Chunk) -> Array:
        """Weights [1, steps · bk, bn], filled up with -0."""
        padded = np.full((1, c.steps(self.bk) * self.bk, self.bn), -0.0, self.dtype)
        padded[0, : len(c.rows), : len(c.columns)] = c.weights
        return padded

    def buffer(self, chunks: Sequence[Chunk]) -> Array:
        """The bytes that kernels read."""
        first = -(-len(self.items(chunks)) * ITEM.itemsize // ALIGN) * ALIGN
        made, tiles = Buffer(), np.zeros(len(chunks), TILE)
        made.add(self.table(chunks, first))
        at = made.add(tiles, ALIGN)
        assert at == first
        for tile, c in zip(tiles, chunks, strict=True):
            steps = c.steps(self.bk)
            tile["k_len"], tile["n_len"] = len(c.rows), len(c.columns)
            tile["k"] = made.add(self.row_list(c.rows, (steps + 1) * self.bk))
            tile["n"] = made.add(deltas(c.columns, self.bn, self.columns))
        for tile, c in zip(tiles, chunks, strict=True):
            tile["b"] = made.add(self.packed(self.filled(c)), ALIGN)
        made.parts[1] = (at, tiles.view(np.uint8))
        return made.bytes(self.bk * self.bn * self.dtype.itemsize)

    def items(self, chunks: Sequence[Chunk]) -> list[tuple[int, int, int]]:
        """(chunk, block of rows, batch index) of every block, unordered: rows fastest, as in dense launches."""
        return [
            (i, m, z) for i, c in enumerate(chunks) for z in c.batch for m in range(self.blocks)
        ]

    def table(self, chunks: Sequence[Chunk], first: int) -> Array:
        """The work table; descriptors begin at `first`."""
        items = self.items(chunks)
        cost = [c.steps(self.bk) * self.bk + FIXED for c in chunks]
        found = np.zeros(len(items), ITEM)
        for entry, i in zip(found, balanced([cost[c] for c, _, _ in items], self.sms), strict=True):
            c, m, z = items[i]
            entry["tile"], entry["rows"], entry["batch"] = first + TILE.itemsize * c, m, z
        return found
