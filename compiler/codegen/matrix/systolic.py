"""Matrix products on systolic arrays (SMA's LSMA): C in registers, A streamed from shared memory, weights standing in the units.

    block tile bm × bn × bk            a strip: the columns that `units` arrays hold at once, C of one warp
    ┌────────┬────────┬────┐
    │ warp 0 │ warp 1 │ 2  │           per 8 of k and strip:  SMA.LDB, SMA.SWAP, LSMA; all warps carry tiles
    │ bm × w │        │    │           per bk:                one COMMIT; the other buffer is filled meanwhile
    └────────┴────────┴────┘

A step's commands are sent, then the warp waits for those of the step before, so that its buffer can be filled while the array
works:

    load s+1 ─ commands s ─ COMMIT ─ WAIT 1 ─ BAR ─ store s+1 ─ BAR

The epilogue's fp32 needs SIMD mode; addresses are made before the switch, while the array still works. A product that is
only converted and stored stays in systolic mode, and a kernel that finds or leaves the mode it needs switches less (`modes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd
from typing import Any, ClassVar, Self

from knapper.isa.core import SIMD, SYSTOLIC, Instr
from knapper.isa.instructions import (
    BAR,
    BRA,
    LSMA,
    MODE,
    MOV,
    SMA_COMMIT,
    SMA_LDB,
    SMA_SWAP,
    SMA_WAIT,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Cmp, Element, Mode, Space, Start, Width
from knapper.isa.operands import Modifier
from knapper.isa.systolic import ARRAY, LANES, MOST
from knapper.isa.systolic import Array as Units

from ...ir import Array, Attr
from ..builder import RZ, KernelBuilder, VPred, VReg
from ..generator import MODES, Group, Options, modes_of, register
from . import cost
from .access import Packed
from .blocks import packs, vector_a, vector_b
from .code import add, divmod_, lane_id, mul, special, uadd, ucompare, umul
from .cuts import heights, widths
from .engine import TiledEngine, TiledKernel, Tiling
from .epilogue import BYTES, Epilogue, Frame, Spot, varying_operands
from .geometry import Geometry, grid, turns
from .pipeline import Buffers, Tile
from .product import Product

ELEMENTS = {"f16": Element.F16, "bf16": Element.BF16, "f32": Element.F32}
SIZES = {"f16": 2, "bf16": 2, "f32": 4}
"""Bytes of an element."""
PAIRS = "u8"
"""The type of an operand B whose elements are two codes of 4 bits."""
VECTOR = 16
"""Bytes of a lane's longest access: tiles begin at multiples of it."""
SKEW = 4
"""Bytes that set the rows of a transposed tile off, so that a column of it touches all banks."""
WARPS = (4, 8)
"""Of a block. Few execute less; many have registers for large operands that are on their way to shared memory."""
ROOM = 40
"""Registers beside C and what is on its way: addresses, the epilogue."""
ROW, PIXEL = 1, 3
"""Registers for the row of a load: which one it is; of a convolution also where its first pixel lies, and the sum of an address."""
DEPTHS = (256, 128, 64, 32, 16)
"""k of a step of 16-bit elements. The shallow ones leave registers to large tiles."""
MIXED = 32
"""The same where a step mixes taps of a convolution."""
HEIGHTS = (128, 96, 64, 32, 16, 8)
"""Rows of C of a block, about. In steps whose C fills registers."""


@dataclass(frozen=True)
class Strips(Tiling):
    """A block tile cut into strips of columns: the units that a command uses, warps, the SM's modes at entry and exit."""

    units: int
    warps: int
    modes: tuple[str, str] = (SIMD, SIMD)

    @classmethod
    def of(cls, options: Options) -> Self:
        return super().of({**options, MODES: modes_of(options)})

    @property
    def options(self) -> dict[str, Attr]:
        own = super().options
        return own if self.modes != (SIMD, SIMD) else {n: v for n, v in own.items() if n != MODES}

    @property
    def threads(self) -> int:
        return LANES * self.warps


@dataclass(frozen=True)
class Strip:
    """Warps `first` … `last` - 1 have C of `width` columns each, on `units` arrays."""

    first: int
    last: int
    units: int
    width: int


def strips(t: Strips, column: int) -> list[Strip]:
    """How bn is dealt to warps; `column` is the columns of one unit. The last strip may need fewer units."""
    whole, rest = divmod(t.bn, t.units * column)
    found = [Strip(0, whole, t.units, t.units * column)] if whole else []
    return found + ([Strip(whole, whole + 1, rest // column, rest)] if rest else [])


def size_b(p: Product) -> int:
    """Bytes of an element of B."""
    return 1 if p.b_type.dtype == PAIRS else SIZES[p.dtype]


def columns(p: Product) -> int:
    """Columns of one unit for this type."""
    return ARRAY.columns_of(ELEMENTS[p.dtype].lane)


def converts_only(group: Group, p: Product) -> bool:
    """Whether nothing but conversions follows the product: then no fp32 instruction does."""
    return not p.bias and all(n is p.node or n.op == "Cast" for n in group.nodes)


def mode_pairs(group: Group, p: Product, t: Strips, machine: Machine) -> Iterator[tuple[str, str]]:
    """Modes at entry and exit that the kernel can have. On an SM that runs several blocks one starts as another ends."""
    blocks_ = -(-p.m // t.bm) * -(-p.n // t.bn) * p.batch
    ends = (SIMD, SYSTOLIC) if converts_only(group, p) else (SIMD,)
    for entry in (SIMD, SYSTOLIC):
        for leave in ends if blocks_ <= machine.sms else (entry,):
            yield entry, leave


def tilings(p: Product, packed: bool, machine: Machine) -> Iterator[Strips]:
    """Block tiles that may pay for this product, without their modes; `packed`: B lies as the tiles need it."""
    column, element = columns(p), SIZES[p.dtype]
    for units in range(machine.systolic_units, 0, -1):
        for bn in widths(p.n, column, (4 * units, 2 * units, units)):
            for bm in heights(p, bn, LANES // gcd(column, LANES), HEIGHTS, machine):
                if bm * column * units // LANES > MOST:
                    continue
                for bk in depths(p, element):
                    sizes = (Strips(bm, bn, bk, units, warps) for warps in WARPS)
                    if t := next((t for t in sizes if fits(t, p, packed, machine)), None):
                        yield t


def depths(p: Product, element: int) -> list[int]:
    """k a step: as deep as the channels of a tap allow."""
    most, mixed = [bk * 2 // element for bk in DEPTHS], MIXED * 2 // element
    deep = [bk for bk in most if p.channels % bk == 0 and 2 * bk <= max(p.k, 2 * mixed)]
    return deep or [mixed]


def fits(t: Strips, p: Product, packed: bool, machine: Machine) -> bool:
    """Whether two buffers fit shared memory, strips the warps, and C and the next tiles a thread's registers."""
    element, column = SIZES[p.dtype], columns(p)
    nbytes = 2 * (t.bk * (t.bm * element + t.bn * element + SKEW) + t.bm * SKEW + VECTOR)
    c = t.bm * column * t.units // LANES
    return (
        nbytes <= machine.shared_bytes_per_block
        and strips(t, column)[-1].last <= t.warps
        and c + carried(t, p, packed) + ROOM <= registers(t, machine)
    )


def registers(t: Strips, machine: Machine) -> int:
    """What a thread may have."""
    return min(machine.registers_per_thread, machine.registers_per_sm // t.threads)


def vectors(p: Product, packed: bool) -> tuple[int, int]:
    """Elements of A and of B that a load takes."""
    most = VECTOR // SIZES[p.dtype]
    a = 1 if p.trans_a else vector_a(p, most)
    return a, most if packed else 1 if p.trans_b else vector_b(p, most)


def loads(t: Strips, p: Product, packed: bool) -> tuple[int, int]:
    """Loads of a thread for its part of the next tiles of A and B."""
    a, b = vectors(p, packed)
    tile_a = (t.bk, t.bm) if p.trans_a else (t.bm, t.bk)
    tile_b = (t.bn, t.bk) if p.trans_b and not packed else (t.bk, t.bn)
    return turns(*tile_a, a, t.threads), turns(*tile_b, b, t.threads)


def carried(t: Strips, p: Product, packed: bool) -> int:
    """Registers of a thread for that part on its way from load to store: data, and which row of the operand, or of pixels, each load reads."""
    a, b = (-(-v * SIZES[p.dtype] // 4) for v in vectors(p, packed))
    loads_a, loads_b = loads(t, p, packed)
    return loads_a * (a + (PIXEL if p.window else ROW)) + loads_b * (b + (0 if packed else ROW))


class Kernel(TiledKernel[Strips]):
    """One launch being emitted."""

    peel = ahead = True
    ldb: ClassVar[type[Instr]] = SMA_LDB
    lsma: ClassVar[type[Instr]] = LSMA

    def __init__(self, group: Group, t: Strips, way: str, machine: Machine) -> None:
        super().__init__(group, t, way, machine)
        self.begun: dict[Frame, Epilogue] = {}

    @property
    def types(self) -> tuple[Modifier, Modifier]:
        """The types of A and of B, as commands name them."""
        return (ELEMENTS[self.p.dtype],) * 2

    @property
    def vector(self) -> int:
        return VECTOR // int(self.element)

    @property
    def element_b(self) -> int:
        """Bytes of an element of B."""
        return size_b(self.p)

    def packed_weights(self, padded: Array) -> Array:
        """[z, n tile, k step, k, n]."""
        t, (z, k, n) = self.t, padded.shape
        parts: Array = padded.reshape(z, k // t.bk, t.bk, n // t.bn, t.bn)
        return parts.transpose(0, 3, 1, 2, 4).copy()

    def builder(self) -> KernelBuilder:
        b = KernelBuilder(
            self.group.name, (self.t.threads, 1, 1), self.machine, matrix=True, modes=self.t.modes
        )
        if self.t.modes[0] == SIMD:
            b.emit(MODE, Mode.SYSTOLIC)
        return b

    def begin(self) -> None:
        self.warp = special(self.b, SR.WARPID)
        self.strips = strips(self.t, columns(self.p))
        self.others = {s: self._others(s) for s in self.strips}

    def _others(self, s: Strip) -> VPred | None:
        """The warps that do not have the strip, None if there are none."""
        if s.last - s.first == self.t.warps:
            return None
        cmp, bound = (Cmp.NE, s.first) if s.last - s.first == 1 else (Cmp.GE, s.last)
        return ucompare(self.b, cmp, self.warp, bound)

    def connect(self, buffers: Buffers, tiles: list[Tile]) -> None:
        b, (a, right) = self.b, tiles
        wide = self.strips[0].width * self.element
        self.buffers = buffers
        self.a_at = buffers.pointer(a.start, private=True)
        self.b_at = buffers.pointer(uadd(b, umul(b, self.warp, wide), right.start), private=True)
        self.acc = b.reg(max(self._registers(s) for s in self.strips))

    def accumulators(self) -> list[VReg]:
        return [self.acc]

    def clear(self) -> None:
        for s in self.strips:
            with self._only(s):
                for r in range(self._registers(s)):
                    self.b.emit(MOV, self.acc[r], RZ)

    def _registers(self, s: Strip) -> int:
        return -(-self.t.bm * s.width // LANES)

    # --- operands

    def _tile(
        self, rows: int, cols: int, v: int, transposed: bool, start: int, reach: Any
    ) -> tuple[Tile, int, int]:
        """A tile that lies as in memory, or transposed element by element; with its pitch and its end."""
        down, across = (cols, rows) if transposed else (rows, cols)
        pitch = across * self.element + (SKEW if transposed else 0)
        g = grid(self.b, rows, cols, 1 if transposed else v, self.t.threads, pitch, self.element)
        g = _transposed(self.b, g, pitch, self.element) if transposed else g
        end = start + -(-down * pitch // VECTOR) * VECTOR
        return Tile(reach(self.b, g), g, start, self.element), pitch, end

    def tile_a(self, start: int) -> tuple[Tile, int]:
        """A as rows of bk."""
        t, p = self.t, self.p
        rows, cols = (t.bk, t.bm) if p.trans_a else (t.bm, t.bk)
        v, reach = self.block.vector_a(self.vector), self.block.a_access
        tile, self.pitch_a, end = self._tile(rows, cols, v, p.trans_a, start, reach)
        return tile, end

    def tile_b(self, start: int) -> tuple[Tile, int]:
        """B as rows of bn; packed weights lie in memory as they will lie here."""
        t, p = self.t, self.p
        if self.block.packed:
            return self._packed(start)
        rows, cols = (t.bn, t.bk) if p.trans_b else (t.bk, t.bn)
        v, reach = self.block.vector_b(self.vector), self.block.b_access
        tile, self.pitch_b, end = self._tile(rows, cols, v, p.trans_b, start, reach)
        return tile, end

    def _packed(self, start: int) -> tuple[Tile, int]:
        t = self.t
        size = self.element_b
        self.pitch_b = t.bn * size
        g = grid(self.b, t.bk, t.bn, VECTOR // size, t.threads, self.pitch_b, size)
        nbytes, base = t.bk * self.pitch_b, self.block.packed_base(self.b)
        access = Packed(base, g, nbytes, self.block.steps, Width._128)
        return Tile(access, g, start, size), start + nbytes

    # --- the product

    def compute(self, first: bool, last: bool) -> None:
        """Warps without a strip skip all of it in one branch."""
        for s in self.strips:
            with self._only(s):
                self._commands(s, first)
                self.b.emit(SMA_COMMIT)
                if not last:
                    self.b.emit(SMA_WAIT, 1)
                    self.buffers.swap([self.a_at, self.b_at])
        if not last:
            self.b.emit(BAR, 0)

    @contextmanager
    def _only(self, s: Strip) -> Iterator[None]:
        """What is emitted inside is for the strip's warps."""
        over = self.b.label()
        if (others := self.others[s]) is not None:
            self.b.emit(BRA, over, guard=others)
        yield
        self.b.place(over)

    def _commands(self, s: Strip, first: bool) -> None:
        """The strip's part of one k step."""
        b, rows = self.b, ARRAY.rows
        for i in range(self.t.bk // rows):
            start = Start.SET if first and not i else Start.ADD
            at = i * rows * self.pitch_b
            b.emit(self.ldb, self.types[1], s.units, self.b_at, at, self.pitch_b)
            b.emit(SMA_SWAP, s.units)
            b.emit(
                self.lsma, self.types[0], start, Space.REG, self.acc, s.units, self.t.bm,
                self.a_at, i * rows * self.element, self.pitch_a,
            )  # fmt: skip

    # --- the epilogue

    def results(self) -> Iterator[tuple[Frame, list[Spot]]]:
        """While the array works, places are computed and operands loaded; then systolic mode is left if fp32 follows; then C.

        Each kind of strip goes its own way to the end, so that what one has loaded takes no registers of another.
        """
        end, warps = self.b.label(), self.t.warps
        for s in self.strips:
            with self._only(s) if s.last < warps else nullcontext():
                frames = self._begun(s)
                self._finish_product()
                yield from frames
                self._leave()
                if s.last < warps:
                    self.b.emit(BRA, end)
        if self.strips[-1].last < warps:
            self._finish_product()
            self._leave()
        self.b.place(end)

    def _finish_product(self) -> None:
        """C is complete, and the SM is in the mode that the rest needs."""
        stays = converts_only(self.group, self.p)
        self.b.emit(*((SMA_WAIT, 0) if stays else (MODE, Mode.SIMD)))

    def _leave(self) -> None:
        """Into the mode in which the kernel ends."""
        stays, stay = converts_only(self.group, self.p), self.t.modes[1] == SYSTOLIC
        if stay != stays:
            self.b.emit(MODE, Mode.SYSTOLIC if stay else Mode.SIMD)

    def _begun(self, s: Strip) -> list[tuple[Frame, list[Spot]]]:
        """A strip's frames, with their epilogues begun as far as registers allow."""
        parts = list(self._parts(s))
        room = (registers(self.t, self.machine) - self.acc.words - ROOM) // len(parts)
        for frame, spots in parts:
            made = Epilogue(self.b, self.group, self.p, frame, self.block.parameters, max(room, 1))
            made.begin(spots)
            self.begun[frame] = made
        return parts

    def epilogue(self, frame: Frame) -> Epilogue:
        return self.begun.get(frame) or super().epilogue(frame)

    def _parts(self, s: Strip) -> Iterator[tuple[Frame, list[Spot]]]:
        """C's registers by the place of their lanes: every `period` registers it is the same, some rows further down."""
        b, count = self.b, self._registers(s)
        period, rows = s.width // gcd(s.width, LANES), LANES // gcd(s.width, LANES)
        col0 = uadd(b, self.block.n0, umul(b, self.warp, self.strips[0].width))
        for i in range(min(period, count)):
            row, col = divmod_(b, add(b, lane_id(b), i * LANES), s.width)
            spots = [Spot(self.acc[r], r // period * rows, 0) for r in range(i, count, period)]
            yield self.frame(self.block.m0, col0, row, col), spots


def _transposed(b: KernelBuilder, g: Geometry, pitch: int, size: int) -> Geometry:
    """The same moves, each to the transposed place: rows of the tile in memory are columns in shared memory."""
    place = mul(b, g.col, pitch, mul(b, g.row, size))
    moves = tuple(replace(m, place=m.col * pitch + m.row * size) for m in g.moves)
    return replace(g, moves=moves, place=place)


class Systolic(TiledEngine[Strips]):
    """The generator."""

    kind = "systolic"
    extensions = frozenset({"systolic", "conv"})
    tiling, kernel = Strips, Kernel
    tilewise = True

    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        if (machine.array_rows, machine.array_columns) != (ARRAY.rows, ARRAY.columns):
            units = f"{machine.array_rows} × {machine.array_columns}"
            return f"{machine.name} has units of {units}, not {ARRAY.rows} × {ARRAY.columns}"
        if why := Units.of(machine.to_dict()).unfit:
            return f"{machine.name} has {why}"
        if p.dtype not in ELEMENTS or p.a_type.dtype != p.b_type.dtype:
            return f"operands are {p.a_type.dtype} and {p.b_type.dtype}, the arrays take f16, bf16 and f32"
        return None

    def tilings(self, group: Group, p: Product, machine: Machine) -> Iterator[Strips]:
        for t in tilings(p, packs(group, p), machine):
            for modes in mode_pairs(group, p, t, machine):
                yield replace(t, modes=modes)

    def cycles(self, group: Group, p: Product, t: Strips, way: str, machine: Machine) -> float:
        modes = [t.modes[0], SYSTOLIC, SYSTOLIC if converts_only(group, p) else SIMD, t.modes[1]]
        results = -(-t.bm * strips(t, columns(p))[0].width // LANES)
        varying = varying_operands(group, p)
        size = SIZES[p.dtype]
        work = cost.Arrays(
            strips=strips(t, columns(p))[-1].last,
            moves=sum(loads(t, p, packs(group, p))),
            results=results,
            epilogue=2 + len(group.nodes),
            converts=sum(n.op == "Cast" for n in group.nodes),
            operands=max((registers(t, machine) - results - ROOM) // max(len(varying), 1), 1),
            nbytes=t.bm * t.bn * sum(BYTES[group.inputs[v].dtype] for v in varying),
            weights=p.batch * p.k * p.n * size if p.b in group.constants else 0,
            switches=sum(a != b for a, b in pairwise(modes)),
        )
        return cost.systolic(p, t, size, work, machine)


register(Systolic())
