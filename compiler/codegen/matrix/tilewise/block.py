"""A block of a tile-wise kernel: its work from the table, A's rows by a list, C's columns by another.

    work[CTAID] ─► tile, rows, batch ─► descriptor ─► list of k ─► A           one after the other, once a block
                                                  └─► list of n ─► C

The list of the next k step is fetched with the tile of this one. Where A is a matrix and k runs down its rows (A lies transposed), a load takes a
vector of m; where k runs along a row, every element is a load of its own. An image's list says pixel offsets and taps, as for `gather`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from knapper.isa.gather import TILE
from knapper.isa.instructions import IADD, LDG, LDG_IM2COL, R2UR, UIADD, UIDIV
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Width

from ....ir import Array
from ...builder import PT, KernelBuilder, VReg, VUReg
from ...generator import Group
from .. import access as ways
from ..access import EVERYWHERE, Dim, Image, Sums, targets, width_of
from ..blocks import Block, vector_a
from ..code import (
    S32,
    Number,
    add,
    block_index,
    divmod_,
    fixed,
    move_base,
    mul,
    param,
    umin,
    umov,
    umul,
    usub,
)
from ..epilogue import Frame
from ..geometry import Geometry, Move
from ..product import Product
from . import plan as plan
from .tables import DELTA, ITEM, OFFSET, Layout, deltas

BUFFER = 1
"""The parameter: what `Layout.buffer` makes."""


class TilewiseBlock(Block):
    """A block's place in the work table, and the operands' accesses by the lists of its tile."""

    def __init__(
        self,
        group: Group,
        p: Product,
        tile: tuple[int, int, int],
        element: int,
        machine: Machine,
        stored: str = "",
    ) -> None:
        super().__init__(group, p, tile, element, "tilewise", stored)
        self.sms = machine.sms
        self.blocks = -(-p.m // self.bm)
        self.packed_columns = self.bn
        self.packed_name = f"{p.b}.tiles{self.bm}x{self.bn}x{self.bk}"
        self.names = (p.a, self.packed_name, *self.names[2:])
        chunks = plan.chunks(group, p, self.bn)
        self.grid = (self.blocks * sum(len(c.batch) for c in chunks), 1, 1)

    # --- in the kernel

    def begin(self, b: KernelBuilder) -> None:
        """Find the block's tile."""
        work = param(b, BUFFER)
        move_base(b, work, umul(b, block_index(b, SR.CTAID_X, self.grid[0]), ITEM.itemsize))
        zero = fixed(b, 0)
        item = self._words(b, work, zero, 0)
        self.mt = item[1] if self.blocks > 1 else 0
        self.nt = self.n0 = 0
        self.z = item[2] if self.p.batch > 1 else 0
        tile = param(b, BUFFER)
        move_base(b, tile, item[0])
        found = [w for i in range(0, 32, 16) for w in self._words(b, tile, zero, i)]
        self.found = {
            name: found[TILE.fields[name][1] // 4 :][:2]  # type: ignore[index]  # it has fields
            for name in ("b", "k", "n", "k_len")
        }
        steps = b.ureg()
        b.emit(UIADD, Bits32._32, steps, self.found["k_len"][0], self.bk - 1)
        b.emit(UIDIV, steps, steps, self.bk)
        self.steps = steps
        self.m0 = umul(b, self.mt, self.bm)
        self.axes = self._axes(b)

    def _words(self, b: KernelBuilder, base: VUReg, zero: VReg, at: int) -> list[VUReg]:
        """Four words of memory, the same for all lanes."""
        d, words = b.reg(4), [b.ureg() for _ in range(4)]
        b.emit(LDG, Width._128, d, base, zero, at)
        for i, u in enumerate(words):
            b.emit(R2UR, u, d[i])
        return words

    def _section(self, b: KernelBuilder, name: str) -> VUReg:
        """A pointer that the descriptor has."""
        base, offset = param(b, BUFFER), b.ureg(2)
        for i, word in enumerate(self.found[name]):
            b.emit(UIADD, Bits32._32, offset[i], word, 0)
        b.emit(UIADD, Bits32._64, base, base, offset)
        return base

    def weights(self, b: KernelBuilder, at: Number, step: int) -> VUReg:
        base = self._section(b, "b")
        move_base(b, base, at)
        return base

    def vector_a(self, most: int) -> int:
        return vector_a(plan.listed(self.p), most)

    def a_access(self, b: KernelBuilder, g: Geometry, signed: bool = False) -> Any:
        """A's tiles of bm × bk, or bk × bm if it lies transposed; k by the tile's list."""
        p, base, rows = self.p, self._base(b, 0, (x.a for x in self.p.axes)), self._section(b, "k")
        if p.window is None:
            return self._matrix(b, base, rows, g, signed)
        found = ways.pixels(b, g, self._image, self.m0, p.m if p.m % self.bm else None)
        return ways.gather(b, base, rows, g, self._image, found, self.bk, self.steps, signed)

    @property
    def _image(self) -> Image:
        p = self.p
        assert p.window is not None
        return Image(p.window, p.a_pitch * self.element, self.element, p.channels)

    def _matrix(
        self, b: KernelBuilder, base: VUReg, rows: VUReg, g: Geometry, signed: bool
    ) -> Listed:
        """Rows of k are the unit's x, m is its y, in vectors where they run along m."""
        p, ragged = self.p, self.p.m % self.bm != 0
        pitch = p.a_pitch * self.element
        along, down = (self.element, pitch) if p.trans_a else (pitch, self.element)
        move_base(b, base, umul(b, self.mt, self.bm * along))
        m, k = (g.col, g.row) if p.trans_a else (g.row, g.col)
        v = g.v if p.trans_a else 1
        left: Number = EVERYWHERE
        if ragged:
            left = umin(b, usub(b, p.m // v, umul(b, self.mt, self.bm // v)), self.bm // v)
        y = divmod_(b, m, v)[0] if ragged else fixed(b, 0)
        addresses, pixels = Sums(b, mul(b, m, along)), Sums(b, mul(b, y, 1 << 16))
        made = Listed(
            base, rows, g, width_of(g.v * self.element, signed), self.steps, self.bk, k, mul(b, k, DELTA.itemsize), down,
            umov(b, 0), ways.size_of(b, left, p.k),
        )  # fmt: skip
        for move in g.moves:
            at, kk = (move.col, move.row) if p.trans_a else (move.row, move.col)
            made.entries.setdefault(kk, b.reg())
            pixel = pixels.at((at // v) << 16 if ragged else 0)
            made.places[move] = (kk, *addresses.near(at * along), pixel)
        made.fetch(b, 0)
        return made

    def scattered(self, b: KernelBuilder, frame: Frame) -> Frame:
        """Columns by the tile's list."""
        base = self._section(b, "n")
        move_base(b, base, umul(b, frame.col0, DELTA.itemsize))
        lane, first = mul(b, frame.col, DELTA.itemsize), add(b, frame.col, frame.col0)

        def columns(col: int) -> VReg:
            d, found = b.reg(), b.reg()
            b.emit(LDG, Width._32, d, base, lane, col * DELTA.itemsize)
            b.emit(IADD, S32, found, d, add(b, first, col))
            return found

        return replace(frame, col0=0, cols=self.p.n, columns=columns)

    # --- beside the kernel

    def constants(self, most: int, packed: Callable[[Array], Array]) -> dict[str, Array]:
        layout = Layout(
            self.bk, self.bn, self.p.n, self.blocks, self.sms, self.stored, self._row_list, packed
        )
        chunks = plan.chunks(self.group, self.p, self.bn)
        return {self.packed_name: layout.buffer(chunks)}

    def _row_list(self, kept: Array, length: int) -> Array:
        """What the kernel reads of the rows of a tile."""
        if self.p.window is None:
            return deltas(kept, length, self.p.k)
        entries = ways.gather_entries(self._image, np.asarray(kept, np.int64))
        found = np.tile(np.array([0, ways.FAR - (1 << 32)], OFFSET), (length, 1))
        found[: len(kept)] = entries
        return found


@dataclass
class Listed:
    """Elements or vectors of a matrix's rows of k, whose numbers a list says: `entries` holds the current step's, read one step ahead."""

    matrix: VUReg
    base: VUReg
    """The list's."""
    geometry: Geometry
    width: Width
    steps: Number
    bk: int
    k: VReg
    """The lane's part of the entry's number, and …"""
    lane: VReg
    """… its bytes."""
    down: int
    """Bytes from one k to the next."""
    tap: VUReg
    """The step's first entry."""
    size: VUReg

    def __post_init__(self) -> None:
        self.entries: dict[int, VReg] = {}
        self.places: dict[Move, tuple[int, VReg, int, VReg]] = {}
        """Move → (entry, address register, fixed offset, pixel register)."""

    @property
    def dims(self) -> tuple[Dim, ...]:
        return (Dim(self.steps, self.bk * DELTA.itemsize, self.bk),)

    def fetch(self, b: KernelBuilder, ahead: int) -> None:
        """Read the list's entries for the current step, or the one after."""
        for k, e in self.entries.items():
            at = (ahead * self.bk + k) * DELTA.itemsize
            b.emit(LDG, Width._32, e, self.base, self.lane, at)

    def load(self, b: KernelBuilder, into: Sequence[VReg] = ()) -> list[VReg]:
        found = targets(b, self.geometry, self.width, into)
        first, rows = add(b, self.k, self.tap), dict[int, tuple[VReg, VReg]]()
        for k, e in self.entries.items():
            row = add(b, add(b, first, e), k)
            rows[k] = mul(b, row, self.down), row
        for m, d in zip(self.geometry.moves, found, strict=True):
            k, address, fixed_, pixel = self.places[m]
            offset, row = rows[k]
            a, guard = add(b, address, offset), m.guard or PT
            b.emit(
                LDG_IM2COL,
                self.width,
                d,
                self.matrix,
                a,
                fixed_,
                pixel,
                row,
                self.size,
                guard=guard,
            )
        self.fetch(b, 1)
        return found
