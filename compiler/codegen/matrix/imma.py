"""Products of bytes on the Tensor Core: i8 and u8 in any pair, exact sums in i32, 16×16×32 at a time.

All is as in `hmma`, for two bytes are as long as an f16: a fragment is 16 rows of 32 bytes. What differs is B, of which IMMA wants columns as
rows. Weights known at compile time are packed so, keys of an attention lie so in memory; another B is turned on its way into shared memory.

Weights whose values a format of four bits holds are stored as its codes, and IMMA decodes them: half the bytes.

    packed B, 32 of k, 16 columns, lane l              bytes (512)                 nibbles (256, low ones first)
    word r                                             column 4r + l // 8          column 8r + l // 4
                                                       k from 4 (l % 8) on         k from 8 (l % 4) on
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from knapper.isa.formats import FORMATS
from knapper.isa.instructions import IMMA
from knapper.isa.integer_tensor import NIBBLES
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Byte, Few
from knapper.isa.tensor import OPERAND

from ... import narrow
from ...ir import Array
from ..builder import VReg
from ..generator import Group, register
from . import blocks, cost, turned
from .engine import TiledEngine
from .hmma import Fragmented, Fragments, step, tilings
from .pipeline import Tile
from .product import BYTES, Product
from .requantize import conversions

LEFT = {t.format.name: t for t in Byte}
RIGHT = {t.format.name: t for t in Few}


@dataclass(frozen=True)
class Bytes(Fragments):
    """A block tile of bytes; `b` is the format in which B is stored."""

    b: str
    resource: ClassVar[str] = "tensor_int"
    unit: ClassVar[int] = 32
    element: ClassVar[int] = 1
    depths: ClassVar[tuple[int, ...]] = (256, 128, 64, 32)
    shallow: ClassVar[tuple[int, ...]] = (64, 32)

    @property
    def of_b(self) -> int:
        return OPERAND // 2 if RIGHT[self.b] in NIBBLES else OPERAND


class Whole(Fragmented[Bytes]):
    """One launch being emitted."""

    turns_a = turns_b = False

    def __init__(self, group: Group, t: Bytes, way: str, machine: Machine) -> None:
        super().__init__(group, t, way, machine)
        self.block.pack_as(t.b)

    @property
    def stored(self) -> str:
        return self.p.b_type.dtype

    def tile_a(self, start: int) -> tuple[Tile, int]:
        if not self.p.trans_a:
            return super().tile_a(start)
        self.stride_a = 1
        return self._turned(start, self.t.bm, self.block.a_access)

    def tile_b(self, start: int) -> tuple[Tile, int] | None:
        if self.block.packed or self.p.trans_b:
            return super().tile_b(start)
        self.stride_b = 1
        return self._turned(start, self.t.bn, self.block.b_access)

    def _turned(self, start: int, size: int, reach: Any) -> tuple[Tile, int]:
        """A tile of `size` rows whose k runs down in memory."""
        t = self.t
        loads, stores = turned.geometry(self.b, size // 16, t.kk, t.count, self.warp)
        tile = Tile(reach(self.b, loads), stores, start, t.element, turn=turned.turned)
        return tile, start + size * t.bk

    def packed_weights(self, padded: Array) -> Array:
        """[z, k, n, lane, 16 or 8 bytes]"""
        stored = coded(padded, self.t.b) if RIGHT[self.t.b] in NIBBLES else padded
        (z, k, n), registers = padded.shape, self.t.of_b
        shape = (z, k // 32, 2 * registers, 4, n // 16, registers, 16 // registers)
        parts = stored.reshape(shape)  # z, k, word of a row, byte, n, register, row of it
        made = parts.transpose(0, 1, 4, 6, 2, 5, 3)
        return made.reshape(z, k // 32, n // 16, 32, 4 * registers).copy()

    def hmma(self, d: VReg, a: VReg, b: Any, c: Any, guard: Any) -> None:
        types = LEFT[self.p.a_type.dtype], RIGHT[self.t.b]
        self.b.emit(IMMA, *types, d, a, b, c, guard=guard)


def coded(weights: Array, name: str) -> Array:
    """Weights [z, k, n] as codes of a format of four bits, two of k in a byte: [z, k / 2, n].

    >>> coded(np.array([1, -2], np.int8).reshape(1, 2, 1), "i4").item()
    225
    """
    every = np.arange(256, dtype=np.uint8)
    codes = FORMATS[name].encode(every.view(weights.dtype)).astype(np.uint8)[weights.view(np.uint8)]
    return codes[:, ::2] | codes[:, 1::2] << 4


def across(group: Group, p: Product) -> bool:
    """Whether B's k runs down the rows in memory when the kernel loads it."""
    return not p.trans_b and not blocks.packs(group, p)


class Imma(TiledEngine[Bytes]):
    """The generator."""

    kind = "imma"
    extensions = frozenset({"tensor", "conv"})
    tiling = Bytes
    kernel = Whole

    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        if not {p.a_type.dtype, p.b_type.dtype} <= BYTES:
            return f"operands are {p.a_type.dtype} and {p.b_type.dtype}, IMMA takes i8 and u8"
        if p.trans_a and blocks.vector_a(p, turned.FOUR) < turned.FOUR:
            return "A lies transposed, and its rows are no words"
        if across(group, p) and blocks.vector_b(p, turned.FOUR) < turned.FOUR:
            return "B is not known and lies row by row, and its rows are no words"
        return None

    def tilings(self, group: Group, p: Product, machine: Machine) -> Iterable[Bytes]:
        packed = blocks.packs(group, p)
        for name in self._formats(group, p, machine) if packed else (p.b_type.dtype,):
            yield from tilings(Bytes, p, packed, machine, b=name)

    def _formats(self, group: Group, p: Product, machine: Machine) -> Iterable[str]:
        """Of B: one of four bits, if it holds all weights and the machine decodes it, and that of its type."""
        four = narrow.of(group)[p.b]
        known = [n for n in four if RIGHT[n].extension in ("", *machine.extensions)]
        return (*known[:1], p.b_type.dtype)

    def cycles(self, group: Group, p: Product, t: Bytes, way: str, machine: Machine) -> float:
        each, known = step(p, t, blocks.packs(group, p), way), p.b in group.constants
        bytes_ = t.bm * p.trans_a + t.bn * across(group, p)
        turns = bytes_ // 16 * t.kk // t.count * turned.OPERATIONS
        each = replace(each, others=each.others + turns)
        return cost.tiled(each, p, t, len(group.nodes), known, machine, conversions(group, p))


IMMA_GENERATOR = register(Imma())
