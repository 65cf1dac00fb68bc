"""What tiled products share, whatever unit multiplies: the grid of blocks, parameters, and how each operand is reached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from knapper.isa.errors import CompileError
from knapper.isa.modifiers import SR
from knapper.isa.program import Kernel

from ...ir import DTYPES, Array
from ..builder import KernelBuilder, VUReg
from ..generator import Emitted, Group
from . import access as ways
from .access import Bounded, Edges, Gathered, Image
from .code import Number, block_index, move_base, mul, param, udivmod, umin, umul, usub
from .epilogue import Frame, operands
from .geometry import Geometry
from .product import Product, product_of

FURTHEST = 0x7FFF
"""The conv unit's coordinates have 16 bits, signed."""


def product(group: Group) -> Product:
    """The group's product; CompileError if it has none (the plan asks `serves` first)."""
    p = product_of(group)
    if isinstance(p, str):
        raise CompileError("E410", p, where=f"group {group.name}")
    return p


def access(p: Product, bk: int) -> str:
    """How A is read."""
    w = p.window
    if p.listed:
        return "tilewise"
    if w is None or (w.pointwise and w.sy == w.sx == 1):
        return "dense"
    return "im2col" if p.channels % bk == 0 else "gather"


def divisor(most: int, numbers: Iterable[int]) -> int:
    """The longest vector, a power of two up to `most`, that divides all of them."""
    v = most
    while any(n % v for n in numbers):
        v //= 2
    return v


def vector_a(p: Product, most: int) -> int:
    """Elements of A that a load may take at once."""
    along = p.m if p.trans_a else 1 if p.listed else p.channels
    return divisor(most, [p.a_pitch, along, *(x.a for x in p.axes)])


def vector_b(p: Product, most: int) -> int:
    """Elements of B that a load may take at once."""
    return divisor(most, [p.b_pitch, p.k if p.trans_b else p.n, *(x.b for x in p.axes)])


def unaddressable(p: Product, element: int, way_b: str) -> str | None:
    """Why the conv unit cannot reach an operand, or None."""
    most = 16 // element
    runs = (
        [("k" if p.trans_a else "k in vectors", p.k if p.trans_a else p.k // vector_a(p, most))]
        if p.window is None
        else []
    )
    if way_b == "dense":
        runs.append(("k", p.k // vector_b(p, most) if p.trans_b else p.k))
    long = [f"{name} is {n}, up to {FURTHEST} can be addressed" for name, n in runs if n > FURTHEST]
    return long[0] if long else None


def packs(group: Group, p: Product) -> bool:
    """Whether B is known now, and one matrix a group of channels: then it is laid out at compile time."""
    return p.b in group.constants and (p.window is not None or all(x.b == 0 for x in p.axes))


class Block:
    """The block's place in the grid, and the operands' accesses. Parameters: A, B, the gather table if any, then the epilogue's.

    `element` is the bytes of an operand's element in memory, `stored` the dtype of packed weights.
    """

    def __init__(
        self,
        group: Group,
        p: Product,
        tile: tuple[int, int, int],
        element: int,
        way: str,
        stored: str = "",
    ) -> None:
        self.group, self.p, self.element, self.way = group, p, element, way
        self.bm, self.bn, self.bk = bm, bn, bk = tile
        self.stored = np.dtype(DTYPES[stored or p.dtype])
        self.steps = self.whole = -(-p.k // bk)
        self.packed = packs(group, p)
        self.packed_name = f"{p.b}.{bn}x{bk}"
        self.table_name = f"{p.b}.taps{bk}"
        self.grid = (-(-p.m // bm), -(-p.n // bn), p.batch)
        names = [p.a, self.packed_name if self.packed else p.b]
        names += [self.table_name] if way == "gather" else []
        self.tail = operands(group, p)
        self.parameters = {v: len(names) + i for i, v in enumerate((*self.tail, *group.outputs))}
        self.names = (*names, *self.tail, *group.outputs)
        self.packed_columns = self.grid[1] * bn
        """Of packed weights that lie side by side."""

    def pack_as(self, way: str) -> None:
        """Weights are packed in a way that has a name."""
        plain, self.packed_name = self.packed_name, f"{self.packed_name}.{way}"
        self.names = tuple(self.packed_name if n == plain else n for n in self.names)

    # --- in the kernel

    steps: Number
    mt: Number
    nt: Number
    z: Number
    n0: Number

    def begin(self, b: KernelBuilder) -> None:
        """Read the block's coordinates."""
        self.mt = block_index(b, SR.CTAID_X, self.grid[0])
        self.nt = block_index(b, SR.CTAID_Y, self.grid[1])
        self.z = block_index(b, SR.CTAID_Z, self.grid[2])
        self.m0, self.n0 = umul(b, self.mt, self.bm), umul(b, self.nt, self.bn)
        self.axes = self._axes(b)

    def _axes(self, b: KernelBuilder) -> tuple[Number, ...]:
        rest, found = self.z, list[Number]()
        for axis in reversed(self.p.axes[1:]):
            if isinstance(rest, int):
                found.append(0)
                continue
            rest, coordinate = udivmod(b, rest, axis.size)
            found.append(coordinate)
        return tuple(reversed([*found, rest][: len(self.p.axes)]))

    def _base(self, b: KernelBuilder, i: int, strides: Iterable[int]) -> VUReg:
        base = param(b, i)
        for coordinate, stride in zip(self.axes, strides, strict=True):
            move_base(b, base, umul(b, coordinate, stride * self.element))
        return base

    def vector_a(self, most: int) -> int:
        return vector_a(self.p, most)

    def vector_b(self, most: int) -> int:
        return vector_b(self.p, most)

    def a_access(self, b: KernelBuilder, g: Geometry, signed: bool = False) -> Bounded | Gathered:
        """A's tiles of bm × bk, or bk × bm if it lies transposed."""
        p, base = self.p, self._base(b, 0, (x.a for x in self.p.axes))
        if self.way == "dense":
            return self._dense(b, base, g, p.a_pitch, p.trans_a, p.m, self.mt, self.bm, signed)
        assert p.window is not None
        image = Image(p.window, p.a_pitch * self.element, self.element, p.channels)
        count = p.m if p.m % self.bm else None
        if self.way == "im2col":
            rows = ways.pixels(b, g, image, self.m0, count, mul(b, g.col, self.element))
            return ways.im2col(b, base, g, image, rows, self.bk, signed)
        rows = ways.pixels(b, g, image, self.m0, count)
        return ways.gather(b, base, param(b, 2), g, image, rows, self.bk, self.steps, signed)

    def b_access(self, b: KernelBuilder, g: Geometry, signed: bool = False) -> Bounded:
        """B's tiles of bk × bn, or bn × bk if it lies transposed."""
        p, base = self.p, self._base(b, 1, (x.b for x in self.p.axes))
        return self._dense(b, base, g, p.b_pitch, not p.trans_b, p.n, self.nt, self.bn, signed)

    def _dense(
        self,
        b: KernelBuilder,
        base: VUReg,
        g: Geometry,
        pitch: int,
        k_down: bool,
        length: int,
        tile: Number,
        size: int,
        signed: bool,
    ) -> Bounded:
        """`length` is the operand's own axis (m or n), `tile` the block's number on it; `k_down`: k runs down the rows."""
        k = self.p.k if self.p.k % self.bk else None
        ragged = length % size != 0
        if k_down:
            move_base(b, base, umul(b, tile, size * self.element))
            cols = (
                umin(b, usub(b, length // g.v, umul(b, tile, size // g.v)), FURTHEST)
                if ragged
                else None
            )
            edges = Edges(k, cols, "row")
        else:
            move_base(b, base, umul(b, tile, size * pitch * self.element))
            rows = umin(b, usub(b, length, umul(b, tile, size)), size) if ragged else None
            edges = Edges(rows, None if k is None else k // g.v, "col")
        return ways.dense(
            b, base, g, pitch * self.element, self.element, edges, self.steps, self.bk, signed
        )

    def packed_base(self, b: KernelBuilder) -> VUReg:
        """Where this block's packed weights begin, if they are cut into whole tiles."""
        tile = self.whole * self.bk * self.bn * self.stored.itemsize
        return self.weights(
            b, umul(b, self.nt, tile), self.bk * self.packed_columns * self.stored.itemsize
        )

    def weights(self, b: KernelBuilder, at: Number, step: int) -> VUReg:
        """A pointer `at` bytes into the packed weights of the block's group; `step` is the bytes of a k step of them."""
        base = param(b, 1)
        move_base(b, base, at)
        if self.p.window is not None and self.p.axes:
            move_base(b, base, umul(b, self.z, step * self.whole))
        return base

    def scattered(self, b: KernelBuilder, frame: Frame) -> Frame:
        """Where spots of the product lie in C: as they are."""
        return frame

    # --- beside the kernel

    def constants(self, most: int, packed: Callable[[Array], Array]) -> dict[str, Array]:
        """What the kernel reads beside the group's values; `most` is the bytes of the longest vector, `packed` puts weights in its order."""
        found = self.tables(most)
        if self.packed:
            padded = self.padded_weights(self.group.constants[self.p.b])
            found[self.packed_name] = packed(padded)
        return found

    def padded_weights(self, weights: Array) -> Array:
        """B as [z, k, n], k and n filled up to whole tiles with -0: A's fill is +0, and +0 · -0 leaves every sum as it is, even -0."""
        p = self.p
        if p.window is not None:
            parts = weights.reshape(p.k, p.batch, p.n).transpose(1, 0, 2)
        else:
            parts = weights.reshape((1, p.n, p.k) if p.trans_b else (1, p.k, p.n))
            parts = parts.swapaxes(1, 2) if p.trans_b else parts
        k, n = self.whole * self.bk, self.packed_columns
        padded = np.full((parts.shape[0], k, n), -0.0, self.stored)
        padded[:, : p.k, : p.n] = parts
        return padded

    def tables(self, most: int) -> dict[str, Array]:
        """The gather table, if A is gathered; `most` is the bytes of the longest vector."""
        if self.way != "gather" or self.p.window is None:
            return {}
        image = Image(self.p.window, self.p.a_pitch * self.element, self.element, self.p.channels)
        v = self.vector_a(most // self.element)
        return {self.table_name: ways.gather_table(image, v, self.bk, self.whole)}

    def launch(self, kernel: Kernel) -> Emitted:
        """The launch of the finished kernel."""
        return launched(kernel, self.group, self.p, self.grid, self.names)


def launched(
    kernel: Kernel, group: Group, p: Product, grid: tuple[int, int, int], names: tuple[str, ...]
) -> Emitted:
    """A launch of a kernel, which gets a name that says its content."""
    digest = hashlib.sha256(
        kernel.words + repr((kernel.block, kernel.shared_bytes)).encode()
    ).hexdigest()[:12]
    kernel = replace(kernel, name=f"{p.node.op.lower()}_{digest}")
    uses = dict.fromkeys(names, "r") | dict.fromkeys(group.outputs, "w")
    nodes = tuple(n.loc or n.outputs[0] for n in group.nodes)
    return Emitted(kernel, grid, names, uses, nodes, p.macs)
