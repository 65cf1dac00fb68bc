"""Products with weights that keep two of four elements along k: `hmma` with half the multiplies, on machines that have HMMA.SP.

Weights are compressed and packed at compile time; a lane loads its 16 bytes of a fragment, and 4 bytes of metadata for two of them:

    32 of k, 32 columns:   fragment j   512 B │ fragment j + 1   512 B │ e of both   128 B

A is what `hmma` has, two fragments to a product. Tiles of pruned weights that keep two of four among a tile's rows (`tvw`) are followed by
their lists, `tilewise`. A zero that is not kept meets no Inf or NaN of A; else the bits are the dense product's (`isa.sparse24`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from knapper.isa.instructions import HMMA_SP, LDG
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Half, Width
from knapper.isa.sparse24 import DEPTH, KEPT, OF, shift
from knapper.isa.tensor import SIZE

from ...ir import Array
from ..builder import KernelBuilder, VReg, VUReg
from ..generator import Group, Options, register
from . import blocks, cost
from .code import Number, lane_id, mul, uadd, umul
from .engine import TILEWISE
from .geometry import FRAGMENT
from .hmma import Fragmented, Fragments, Hmma, Weights, step, tilings
from .product import Product

METADATA = 128
"""Bytes of a register of it."""
PAIR = 2 * FRAGMENT + METADATA
"""Bytes of two fragments and their metadata."""


def compressed(w: Array) -> tuple[Array, Array]:
    """Weights [z, k, n], k a multiple of 4, as the two of each four that differ from zero, zeros if there are less, and which these are.

    [z, k / 2, n] each.

    >>> [x.ravel().tolist() for x in compressed(np.array([0, 5, 0, 6, 0, 0, 7, 0]).reshape(1, 8, 1))]
    [[5, 6, 0, 7], [1, 3, 0, 2]]
    """
    z, k, n = w.shape
    fours = w.reshape(z, k // OF, OF, n)
    chosen = np.argsort(fours == 0, axis=2, kind="stable")[:, :, :KEPT]
    index = np.sort(chosen, axis=2)
    values = np.take_along_axis(fours, index, axis=2)
    return values.reshape(z, k // 2, n), index.reshape(z, k // 2, n)


def metadata(index: Array) -> Array:
    """Indices [z, k, n] of compressed elements as words [z, k / 16, n / 32, 32], low halves for the first of two fragments; n: a multiple of 32."""
    z, k, n = index.shape
    s, j = np.mgrid[:SIZE, :SIZE]
    parts = index.reshape(z, k // SIZE, SIZE, n // 32, 2, SIZE).transpose(0, 1, 3, 4, 2, 5)
    found = np.zeros((z, k // SIZE, n // 32, 32), np.uint32)
    for half in (0, 1):
        bits = parts[:, :, :, half].astype(np.uint32) << shift(s, j, half).astype(np.uint32)
        for row in range(SIZE):
            at = 8 * (row % 4)
            found[..., at : at + 8] |= bits[..., row, ::2] | bits[..., row, 1::2]
    return found


class Compressed(Weights):
    """B's compressed fragments, with their metadata, straight from global memory to registers."""

    def __init__(
        self, b: KernelBuilder, base: VUReg, lane: VReg, kk: int, fn: int, row: int, steps: Number
    ) -> None:
        self.words = mul(b, lane_id(b), 4)
        self.metadata = [[b.reg() for _ in range(0, fn, 2)] for _ in range(kk)]
        super().__init__(b, base, lane, kk, fn, row, steps)

    def fragments(self, kk: int) -> list[Any]:
        """Fragment, metadata, and which half of that."""
        return [(d, self.metadata[kk][j // 2], j % 2) for j, d in enumerate(self.registers[kk])]

    def refill(self, kk: int) -> None:
        at = kk * self.row
        for j, d in enumerate(self.registers[kk]):
            place = at + j // 2 * PAIR + j % 2 * FRAGMENT
            self.b.emit(LDG, Width._128, d, self.base, self.lane, place)
        for j, d in enumerate(self.metadata[kk]):
            place = at + j * PAIR + 2 * FRAGMENT
            self.b.emit(LDG, Width._32, d, self.base, self.words, place)


class Compressing(Fragmented[Fragments]):
    """One launch being emitted."""

    def __init__(self, group: Group, t: Fragments, way: str, machine: Machine) -> None:
        super().__init__(group, t, way, machine)
        self.block.pack_as("2of4")

    @property
    def depth(self) -> int:
        return self.t.bk // DEPTH

    @property
    def pairs(self) -> int:
        """Pairs of fragments of a block's columns; the last may be half."""
        return -(-self.t.bn // 32)

    def packed_weights(self, padded: Array) -> Array:
        """[z, k / 32, blocks of columns, pairs, bytes of a pair]"""
        z, k, n = padded.shape
        tiles = padded.reshape(z, k, n // self.t.bn, self.t.bn)
        width = 32 * self.pairs
        whole = np.pad(tiles, ((0, 0), (0, 0), (0, 0), (0, width - self.t.bn)))
        whole = whole.reshape(z, k, n // self.t.bn * width)
        values, index = compressed(whole)
        shape = (z, k // DEPTH, n // self.t.bn, self.pairs)
        fragments = super().packed_weights(values).view(np.uint8).reshape(*shape, 2 * FRAGMENT)
        words = metadata(index).view(np.uint8).reshape(*shape, METADATA)
        return np.concatenate([fragments, words], axis=-1)

    def _weights(self) -> Weights:
        b, t = self.b, self.t
        row = self.block.packed_columns // t.bn * self.pairs * PAIR
        mine = umul(b, self.wn, t.fn // 2 * PAIR) if t.wn > 1 else 0
        at = uadd(b, umul(b, self.block.nt, self.pairs * PAIR), mine)
        base = self.block.weights(b, at, self.depth * row)
        return Compressed(b, base, mul(b, lane_id(b), 16), self.depth, t.fn, row, self.block.steps)

    def left(self, kk: int, f: int) -> VReg:
        """Two fragments of A, one behind the other."""
        d = self.b.reg(8)
        for n in (0, 1):
            self.fragment(
                self.read_a, self.p.trans_a, 2 * kk + n, f, self.stride_a, self.t.bm, d[4 * n : 4 * n + 4]
            )  # fmt: skip
        return d

    def hmma(self, d: VReg, a: VReg, b: Any, c: Any, guard: Any) -> None:
        weights, e, half = b
        kind = Half[self.p.dtype.upper()]
        self.b.emit(HMMA_SP, kind, d, a, weights, c, e, half, guard=guard)


class HmmaSp(Hmma):
    """The generator."""

    kind = "hmma_sp"
    extensions = frozenset({"tensor", "conv", "sparse24"})
    kernel = Compressing

    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        e = p.b_type.encoding
        if not blocks.packs(group, p):
            return "its weights are not known"
        if e is None or not (
            e.name == "tvw" or (e.name == "nm" and e["m"] == OF and e["n"] <= KEPT)
        ):
            return f"nothing says that its weights keep {KEPT} of {OF}"
        if e.name == "tvw" and p.window is not None and p.batch > 1:
            return "a type's tiles are cut across groups of channels, a kernel's within each"
        return super().refuses(group, p, machine)

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        """Of `tvw` only tiles keep two of four; of `nm` there are none."""
        encoding = blocks.product(group).b_type.encoding
        tiles = encoding is not None and encoding.name == "tvw"
        return (o for o in super().candidates(group, machine) if (o["access"] == TILEWISE) == tiles)

    def tilings(self, group: Group, p: Product, machine: Machine) -> Iterable[Fragments]:
        """Whole products in a step, and whole pairs of fragments in a warp unless it is the only one."""
        return (
            t for t in tilings(Fragments, p, True, machine, DEPTH) if t.wn == 1 or t.fn % 2 == 0
        )

    def cycles(self, group: Group, p: Product, t: Fragments, way: str, machine: Machine) -> float:
        dense = step(p, t, True, way)
        saved = t.wm * t.bn * t.bk * 2 // 128 * (4 * FRAGMENT - PAIR) // (4 * FRAGMENT)
        each = replace(
            dense,
            multiplies=dense.multiplies // 2,
            chain=dense.chain // 2,
            loads=dense.loads - saved,
        )
        return cost.tiled(each, p, t, len(group.nodes), True, machine)


HMMA_SP_GENERATOR = register(HmmaSp())
