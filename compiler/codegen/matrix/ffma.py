"""Matrix products on the SIMD lanes: fp32 by FFMA, fp64 likewise, integers by IMAD.

    a thread's tile of C: groups of four rows by groups of four columns          an operand in shared memory is either
       columns 4·tx …    4·tx + 4·TX …                                             [x][k]  as A lies in memory: a 16-byte read is 4 k of one x
    rows 4·ty …                                                                    [k][x]  as B lies in memory: a 16-byte read is 4 x of one k

64-bit types read two instead of four. The loop over a k tile takes one such step at a time, so code stays small. 16-bit and 8-bit operands
are widened on their way into shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from knapper.isa.instructions import BRA, FFMA, IMAD, LDS, UIADD, UMOV
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Bits32, Cmp, FloatType, IntType, Scalar, Width

from ...ir import Array, Type
from ..builder import KernelBuilder, VReg, VUReg
from ..generator import Group, lanes_refuse, register
from ..scalar import convert
from . import cost
from .access import WIDTHS, Packed
from .code import divmod_, mul, thread_id, ucompare
from .engine import TiledEngine, TiledKernel, Tiling
from .epilogue import Frame, Spot
from .geometry import grid
from .pipeline import Buffers, Tile
from .product import Product
from .requantize import conversions


@dataclass(frozen=True)
class Kind:
    """How operands of a type are multiplied: words in registers, the instruction, the type of packed weights."""

    words: int
    multiply: Any
    type: Any
    stored: str
    widen: Scalar | None = None


KINDS = {
    "f32": Kind(1, FFMA, FloatType.F32, "f32"),
    "f16": Kind(1, FFMA, FloatType.F32, "f32", widen=Scalar.F16),
    "bf16": Kind(1, FFMA, FloatType.F32, "f32", widen=Scalar.BF16),
    "f64": Kind(2, FFMA, FloatType.F64, "f64"),
    "i32": Kind(1, IMAD, IntType.U32, "i32"),
    "u32": Kind(1, IMAD, IntType.U32, "u32"),
    "i64": Kind(2, IMAD, IntType.S64, "i64"),
    "u64": Kind(2, IMAD, IntType.U64, "u64"),
    "i8": Kind(1, IMAD, IntType.U32, "i32"),
    "u8": Kind(1, IMAD, IntType.U32, "i32"),
    "i16": Kind(1, IMAD, IntType.U32, "i32"),
    "u16": Kind(1, IMAD, IntType.U32, "i32"),
}
"""The low half of a product is the same signed and unsigned; IMAD.S32 makes addresses and is not counted as a product."""


@dataclass(frozen=True)
class Threads(Tiling):
    """A block tile cut into threads of tm × tn."""

    thread: tuple[int, int]

    @property
    def tm(self) -> int:
        return self.thread[0]

    @property
    def tn(self) -> int:
        return self.thread[1]

    @property
    def threads(self) -> int:
        return self.bm // self.tm * (self.bn // self.tn)


SHAPES = (
    (128, 128, 8, 8), (128, 64, 8, 8), (64, 64, 8, 8), (64, 64, 8, 4), (128, 32, 8, 4),
    (32, 64, 4, 4), (32, 32, 4, 4), (16, 64, 4, 4), (4, 128, 4, 4),
)  # fmt: skip
WIDE_SHAPES = ((64, 64, 4, 4), (32, 32, 4, 4), (16, 32, 2, 4))
"""(bm, bn, rows and columns a thread): of 32-bit and of 64-bit types."""


def shared_bytes(p: Product, t: Threads) -> int:
    """Of a block: two buffers for a tile of each operand."""
    return 2 * (t.bm + t.bn) * t.bk * 4 * KINDS[p.dtype].words


def step(p: Product, t: Threads, way: str) -> cost.Step:
    """What a block does in a k step."""
    words, warps = KINDS[p.dtype].words, -(-t.threads // 32)
    tiles = (t.bm + t.bn) * t.bk * 4 * words // 128
    reads = warps * t.bk * (t.tm + t.tn) * words // 4 * 4
    gathers = t.bm * t.bk * words // 32 if way == "gather" else 0
    return cost.Step(
        "fp64" if words == 2 else "fma", t.tm * t.tn * t.bk, t.bk,
        shared=tiles + reads + gathers, loads=tiles + gathers, others=8 * t.bk // 4, results=t.tm * t.tn,
        registers=min((t.tm * t.tn + 4 * (t.tm + t.tn)) * words + 40, 255), shared_bytes=shared_bytes(p, t),
    )  # fmt: skip


@dataclass(frozen=True)
class _Operand:
    """One operand in shared memory. `across`: [k][x], else [x][k]; `per_thread` groups of `size` x lie `apart` bytes apart."""

    pointer: VUReg
    lane: VReg
    across: bool
    pitch: int
    groups: int
    size: int
    apart: int


class Lanes(TiledKernel[Threads]):
    """One launch being emitted."""

    @property
    def how(self) -> Kind:
        """How this launch multiplies."""
        return KINDS[self.p.dtype]

    @property
    def stored(self) -> str:
        return self.how.stored

    @property
    def size(self) -> int:
        """Bytes of an element in shared memory."""
        return 4 * self.how.words

    @property
    def run(self) -> int:
        """Elements of a 16-byte read."""
        return 4 // self.how.words

    @property
    def vector(self) -> int:
        """Narrow elements come alone, since each needs a register of its own."""
        return 16 // self.element if self.element >= 4 else 1

    def packed_weights(self, padded: Array) -> Array:
        """[z, n tile, k step, k, n]"""
        t, (z, k, n) = self.t, padded.shape
        parts = padded.reshape(z, k // t.bk, t.bk, n // t.bn, t.bn)
        return parts.transpose(0, 3, 1, 2, 4).copy()

    def begin(self) -> None:
        t = self.t
        self.tx_count, self.ty_count = t.bn // t.tn, t.bm // t.tm
        self.ty, self.tx = divmod_(self.b, thread_id(self.b), self.tx_count)

    def connect(self, buffers: Buffers, tiles: list[Tile]) -> None:
        t, p, (a, b) = self.t, self.p, tiles
        self.left = self._operand(buffers, a, p.trans_a, t.bm, t.tm, self.ty, self.ty_count)
        self.right = self._operand(
            buffers, b, self.block.packed or not p.trans_b, t.bn, t.tn, self.tx, self.tx_count
        )
        self.acc = [[self.b.reg(self.how.words) for _ in range(t.tn)] for _ in range(t.tm)]

    # --- operands

    def tile_a(self, start: int) -> tuple[Tile, int]:
        v = self.block.vector_a(self.vector)
        return self._tile(self.p.trans_a, self.t.bm, start, v, self.block.a_access, self.p.a_type)

    def tile_b(self, start: int) -> tuple[Tile, int]:
        if self.block.packed:
            return self._packed(start)
        v = self.block.vector_b(self.vector)
        return self._tile(
            not self.p.trans_b, self.t.bn, start, v, self.block.b_access, self.p.b_type
        )

    def _pitch(self, across: bool, extent: int) -> int:
        """Bytes from row to row of a tile; rows of [x][k] are set off by 16 bytes, which spreads them over the banks."""
        return extent * self.size if across else self.t.bk * self.size + 16

    def _tile(
        self, across: bool, extent: int, start: int, v: int, reach: Any, type: Type
    ) -> tuple[Tile, int]:
        rows, cols = (self.t.bk, extent) if across else (extent, self.t.bk)
        pitch = self._pitch(across, extent)
        g = grid(self.b, rows, cols, v, self.t.threads, pitch, self.size)
        access, end = reach(self.b, g, type.dtype[0] == "i"), start + rows * pitch
        return Tile(access, g, start, self.size, self._widened()), end

    def _widened(self) -> Callable[[KernelBuilder, VReg], VReg] | None:
        narrow = self.how.widen
        return None if narrow is None else lambda b, x: convert(b, x, Scalar.F32, narrow)

    def _packed(self, start: int) -> tuple[Tile, int]:
        t, v = self.t, self.run
        g = grid(self.b, t.bk, t.bn, v, t.threads, t.bn * self.size, self.size)
        nbytes = t.bk * t.bn * self.size
        base = self.block.packed_base(self.b)
        access = Packed(base, g, nbytes, self.block.steps, Width._128)
        return Tile(access, g, start, self.size), start + nbytes

    def _operand(
        self,
        buffers: Buffers,
        tile: Tile,
        across: bool,
        extent: int,
        per_thread: int,
        place: VReg,
        count: int,
    ) -> _Operand:
        size = min(self.run, per_thread)
        pitch = self._pitch(across, extent)
        step = self.size if across else pitch
        lane = mul(self.b, place, size * step)
        return _Operand(
            buffers.pointer(tile.start),
            lane,
            across,
            pitch,
            per_thread // size,
            size,
            size * count * step,
        )

    # --- the product

    def accumulators(self) -> Iterable[VReg]:
        return (acc for row in self.acc for acc in row)

    def compute(self, first: bool, last: bool) -> None:
        """A loop over the k tile, as many k a turn as one read of [x][k] brings."""
        b = self.b
        turns, counter, loop = self.t.bk // self.run, b.ureg(), b.label()
        pointers = [b.ureg(), b.ureg()]
        for pointer, o in zip(pointers, (self.left, self.right), strict=True):
            b.emit(UMOV, pointer, o.pointer)
        b.emit(UMOV, counter, turns)
        b.place(loop)
        xs, ys = (
            self._read(o, pointer)
            for o, pointer in zip((self.left, self.right), pointers, strict=True)
        )
        for k in range(self.run):
            for x, row in zip(xs, self.acc, strict=True):
                for y, acc in zip(ys, row, strict=True):
                    b.emit(self.how.multiply, self.how.type, acc, x[k], y[k], acc)
        for pointer, o in zip(pointers, (self.left, self.right), strict=True):
            b.emit(
                UIADD, Bits32._32, pointer, pointer, self.run * (o.pitch if o.across else self.size)
            )
        b.emit(UIADD, Bits32._32, counter, counter, -1)
        b.emit(BRA, loop, guard=ucompare(b, Cmp.NE, counter, 0))

    def _read(self, o: _Operand, pointer: VUReg) -> list[list[VReg]]:
        """The thread's elements of an operand, [x][k]."""
        if o.across:
            rows = [
                self._vectors(
                    o, pointer, [k * o.pitch + g * o.apart for g in range(o.groups)], o.size
                )
                for k in range(self.run)
            ]
            return [[row[x] for row in rows] for x in range(o.groups * o.size)]
        places = [g * o.apart + i * o.pitch for g in range(o.groups) for i in range(o.size)]
        flat = self._vectors(o, pointer, places, self.run)
        return [flat[i : i + self.run] for i in range(0, len(flat), self.run)]

    def _vectors(self, o: _Operand, pointer: VUReg, places: list[int], count: int) -> list[VReg]:
        found, w = list[VReg](), self.how.words
        for place in places:
            d = self.b.reg(count * w)
            self.b.emit(LDS, WIDTHS[4 * count * w], d, pointer, o.lane, place)
            found += [d[i * w : (i + 1) * w] for i in range(count)]
        return found

    def results(self) -> Iterable[tuple[Frame, list[Spot]]]:
        b, t = self.b, self.t
        gm, gn = self.left.size, self.right.size
        row, col = mul(b, self.ty, gm), mul(b, self.tx, gn)
        spots = [
            Spot(
                self.acc[i][j],
                i // gm * gm * self.ty_count + i % gm,
                j // gn * gn * self.tx_count + j % gn,
            )
            for i in range(t.tm)
            for j in range(t.tn)
        ]
        yield self.frame(self.block.m0, self.block.n0, row, col), spots


class Ffma(TiledEngine[Threads]):
    """The generator."""

    kind = "ffma"
    tiling = Threads
    kernel = Lanes

    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        if why := lanes_refuse(machine):
            return why
        if p.dtype not in KINDS:
            return f"operands are {p.a_type.dtype} and {p.b_type.dtype}"
        narrow = p.dtype in ("f32", "f16", "bf16") or p.out_type.dtype == "i32"
        if not narrow and (len(group.nodes) > 1 or p.bias):
            return f"a product of {p.dtype} takes no epilogue"
        return None

    def tilings(self, group: Group, p: Product, machine: Machine) -> Iterable[Threads]:
        wide = KINDS[p.dtype].words == 2
        tiles = [
            Threads(bm, bn, 8 if wide else 16, (tm, tn))
            for bm, bn, tm, tn in (WIDE_SHAPES if wide else SHAPES)
        ]
        held = [t for t in tiles if shared_bytes(p, t) <= machine.shared_bytes_per_block]
        near = [
            t for t in held if (t.bm < 2 * p.m or t.bm <= 16) and (t.bn < 2 * p.n or t.bn <= 32)
        ]
        return near or held[-1:]

    def cycles(self, group: Group, p: Product, t: Threads, way: str, machine: Machine) -> float:
        known = p.b in group.constants
        converts = conversions(group, p)
        return cost.tiled(step(p, t, way), p, t, len(group.nodes), known, machine, converts)


FFMA_GENERATOR = register(Ffma())
