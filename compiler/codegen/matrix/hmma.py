"""Matrix products on the Tensor Core: 16-bit operands, fp32 accumulators, 16×16×16 at a time.

    block tile bm × bn × bk                 a warp: fm × fn fragments of C
    ┌───────────┬───────────┐
    │ warp 0    │ warp 2    │               per 16 of k:  fm + fn LDSM, fm · fn HMMA
    ├───────────┼───────────┤               per bk:       the next tiles' loads and stores, a dozen uniform instructions
    │ warp 1    │ warp 3    │
    └───────────┴───────────┘

Weights known at compile time are packed in the order of registers, and go from global memory straight into them.
Other tiles lie in shared memory as whole fragments, 512 bytes each without a gap: a warp's load of 16 bytes a lane, its store and
LDSM all move one fragment and touch every bank equally.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product as pairs
from typing import Any, ClassVar, TypeVar

from knapper.isa.instructions import HMMA, LDG, LDSM
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Cmp, Half, Trans
from knapper.isa.tensor import ACCUMULATOR, OPERAND

from ...ir import Array
from ..builder import PT, RZ, KernelBuilder, VPred, VReg, VUReg
from ..generator import Group, register
from . import blocks, cost
from .access import Dim, width_of
from .code import Number, divmod_, lane_id, mul, special, uadd, ucompare, udivmod, umul
from .cuts import heights, widths
from .engine import TiledEngine, TiledKernel, Tiling
from .epilogue import Frame, Spot
from .geometry import FRAGMENT, Geometry, dealt, fragments
from .pipeline import Buffers, Tile
from .product import Product

ELEMENT = 2
VECTOR = 16
"""Bytes that a load takes at most."""
WARPS = (1, 2, 4, 8)
"""Of a block, along m and along n."""
HEIGHTS = (192, 128, 96, 64, 48, 32, 16)
"""Rows of C of a block, about."""
WIDTHS = (16, 12, 8, 6, 4, 2, 1)
"""Fragments of columns of a block, at most."""
DEPTHS = (128, 64, 32, 16)
"""k of a step."""
PREDICATES = 4
"""At most so many rows of fragments are watched: a thread has seven predicates."""


@dataclass(frozen=True)
class Fragments(Tiling):
    """A block tile cut into warps along m and n; each computes fm × fn fragments, kk deep."""

    warps: tuple[int, int]
    resource: ClassVar[str] = "tensor"
    """The unit that multiplies."""
    unit: ClassVar[int] = 16
    """k of a fragment, …"""
    element: ClassVar[int] = ELEMENT
    """… and bytes of an element, so that a row of it has 32."""
    depths: ClassVar[tuple[int, ...]] = DEPTHS
    """k of a step, …"""
    shallow: ClassVar[tuple[int, ...]] = (32,)
    """… and where taps are mixed."""

    @property
    def wm(self) -> int:
        return self.warps[0]

    @property
    def wn(self) -> int:
        return self.warps[1]

    @property
    def count(self) -> int:
        """Warps of a block."""
        return self.wm * self.wn

    @property
    def threads(self) -> int:
        return 32 * self.count

    @property
    def fm(self) -> int:
        return self.bm // self.wm // 16

    @property
    def fn(self) -> int:
        return self.bn // self.wn // 16

    @property
    def kk(self) -> int:
        return self.bk // self.unit

    @property
    def of_b(self) -> int:
        """Registers of a fragment of B, 128 bytes each."""
        return OPERAND


F = TypeVar("F", bound=Fragments)


def tilings(
    cls: type[F], p: Product, packed: bool, machine: Machine, unit: int = 0, **more: Any
) -> Iterator[F]:
    """Block tiles that may pay for this product, whose steps are multiples of `unit` (0: a fragment's); `more` are their other options."""
    for bn in widths(p.n, 16, WIDTHS):
        for bm in heights(p, bn, 16, HEIGHTS, machine):
            for wm, wn in pairs(WARPS, WARPS):
                if bm // 16 % wm or bn // 16 % wn:
                    continue
                for bk in _depths(cls, p, unit or cls.unit):
                    t = cls(bm, bn, bk, (wm, wn), **more)
                    if _fits(p, t, packed, machine):
                        yield t


def _depths(cls: type[F], p: Product, unit: int) -> Sequence[int]:
    """k a step: as deep as the channels of a tap allow, or for mixed taps two fragments or so."""
    dense = blocks.access(p, cls.unit) not in ("gather", "tilewise")
    depths = [bk for bk in cls.depths if bk % unit == 0]
    deep = [bk for bk in depths if p.channels % bk == 0 and 2 * bk <= max(p.k, 2 * cls.unit)]
    return deep if dense and deep else cls.shallow


def _fits(p: Product, t: Fragments, packed: bool, machine: Machine) -> bool:
    """Whether a block has the warps, the registers and the shared memory."""
    return (
        t.count <= 8
        and t.fm * t.fn * 8 <= 200
        and _shared(t, packed) <= machine.shared_bytes_per_block
        and registers(p, t, packed) <= 232
    )


def _shared(t: Fragments, packed: bool) -> int:
    """Bytes of shared memory of a block: two buffers of each tile that goes through it."""
    return 2 * (t.bm + (0 if packed else t.bn)) * t.bk * t.element


def registers(p: Product, t: Fragments, packed: bool) -> int:
    """Roughly what a thread needs: accumulators, fragments, tiles in flight, and where those come from."""
    m, n, dense = t.bm // 16, t.bn // 16, blocks.access(p, t.bk) == "dense"
    a, b = (t.kk, m) if p.trans_a else (m, t.kk), (n, t.kk) if p.trans_b else (t.kk, n)
    most = VECTOR // t.element
    flight = _in_flight(*a, blocks.vector_a(p, most) * t.element, t.count, dense)
    flight += 0 if packed else _in_flight(*b, blocks.vector_b(p, most) * t.element, t.count, True)
    fragments = 4 * t.fm + t.of_b * t.fn * (t.kk if packed else 1)
    return t.fm * t.fn * 8 + fragments + flight + 16


def _in_flight(rows: int, cols: int, nbytes: int, warps: int, dense: bool) -> int:
    """Registers of one operand's moves, so many bytes each, with their addresses and pixels.

    An address and a pixel of an image serve a whole row.
    """
    down, across = dealt(rows, cols, warps)
    moves, own = -(-rows // down) * -(-cols // across), -(-rows // down)
    return VECTOR // nbytes * (moves * -(-nbytes // 4) + 2 * (moves if dense else own))


def step(p: Product, t: Fragments, packed: bool, way: str) -> cost.Step:
    """What a block does in a k step."""
    tile_a, tile_b = (
        t.bm * t.bk * t.element // 128,
        t.bn * t.bk * t.element * t.of_b // OPERAND // 128,
    )
    gathers = {"gather": 4, "tilewise": 1 if p.trans_a else 2}.get(way, 0) * tile_a
    direct = t.wm * tile_b if packed else 0  # every row of warps loads the weights for itself
    staged = tile_a + gathers + (0 if packed else tile_b)
    read = t.count * (t.fm + (0 if packed else t.fn)) * t.kk * 4
    return cost.Step(
        t.resource, t.fm * t.fn * t.kk, t.kk, shared=staged + read, loads=staged + direct, others=12, results=t.fm * t.fn * 8,
        registers=min(registers(p, t, packed), 255), shared_bytes=_shared(t, packed), loads_b=t.wm if packed else 1,
        narrow=t.of_b / OPERAND,
    )  # fmt: skip


class Weights:
    """B fragments straight from global memory to registers, one load each: weights are packed in the order of registers.

    A fragment's registers are loaded again, for the next step, as soon as its last HMMA of this step has read them.
    """

    def __init__(
        self,
        b: KernelBuilder,
        base: VUReg,
        lane: VReg,
        kk: int,
        fn: int,
        row: int,
        steps: Number,
        words: int = OPERAND,
    ) -> None:
        self.b, self.base, self.lane, self.row, self.length = b, base, lane, row, words
        self.tap: VUReg | None = None
        self.dims = (Dim(steps, kk * row),)
        self.registers = [[b.reg(words) for _ in range(fn)] for _ in range(kk)]
        for k in range(kk):
            self.refill(k)

    @property
    def accesses(self) -> list[Weights]:
        return [self]

    def fragments(self, kk: int) -> list[Any]:
        return self.registers[kk]

    def refill(self, kk: int) -> None:
        for j, d in enumerate(self.registers[kk]):
            place = kk * self.row + j * 128 * self.length
            self.b.emit(LDG, width_of(4 * self.length), d, self.base, self.lane, place)


class Shared:
    """B fragments from shared memory."""

    accesses: Sequence[Any] = ()

    def __init__(self, kernel: Fragmented[Any], pointer: VUReg) -> None:
        self.kernel, self.pointer = kernel, pointer

    def fragments(self, kk: int) -> list[VReg]:
        k, t = self.kernel, self.kernel.t
        return [k.fragment(self.pointer, k.turns_b, kk, j, k.stride_b, t.bn) for j in range(t.fn)]

    def refill(self, kk: int) -> None:
        """The tile's loads do it."""


class Fragmented(TiledKernel[F]):
    """One launch being emitted."""

    peel = True
    accumulator = ACCUMULATOR
    """Registers of a fragment of C."""

    @property
    def vector(self) -> int:
        return VECTOR // self.t.element

    @property
    def turns_a(self) -> bool:
        """Whether A's fragments are transposed as they are read from shared memory, …"""
        return self.p.trans_a

    @property
    def turns_b(self) -> bool:
        """… and B's."""
        return self.p.trans_b

    def packed_weights(self, padded: Array) -> Array:
        """[z, k, n, lane, 8]: a lane's 16 bytes are the four words of its registers, word r from row 4r + lane // 8."""
        z, k, n = padded.shape
        parts = padded.reshape(
            z, k // 16, 4, 4, n // 16, 8, 2
        )  # z, k, register, row of it, n, column, half
        return parts.transpose(0, 1, 4, 3, 5, 2, 6).reshape(z, k // 16, n // 16, 32, 8).copy()

    def begin(self) -> None:
        b, t = self.b, self.t
        self.warp = special(b, SR.WARPID) if t.count > 1 else 0
        self.wn, self.wm = udivmod(b, self.warp, t.wm) if not isinstance(self.warp, int) else (0, 0)

    def connect(self, buffers: Buffers, tiles: list[Tile]) -> None:
        b, t = self.b, self.t
        self.read_a = self._left(buffers)
        if self.block.packed:
            self.right: Weights | Shared = self._weights()
        else:
            offset = uadd(b, umul(b, self.wn, t.fn * self.stride_b * FRAGMENT), tiles[-1].start)
            self.right = Shared(self, buffers.pointer(offset))
        self.beside = self.right.accesses
        self.acc = [[b.reg(self.accumulator) for _ in range(t.fn)] for _ in range(t.fm)]
        self.guards = self._row_guards()
        self.rows = [f for f, guard in enumerate(self.guards) if guard is not None]

    # --- operands

    def _left(self, buffers: Buffers) -> VUReg:
        """A pointer to the warp's first fragment of A."""
        return buffers.pointer(umul(self.b, self.wm, self.t.fm * self.stride_a * FRAGMENT))

    def tile_a(self, start: int) -> tuple[Tile, int]:
        """(m, k) fragments, or (k, m) if A lies transposed in memory."""
        t, p = self.t, self.p
        rows, cols = (t.kk, t.bm // 16) if p.trans_a else (t.bm // 16, t.kk)
        self.stride_a = rows if p.trans_a else 1
        g = self._geometry(rows, cols, self.block.vector_a(self.vector))
        end = start + t.bm * t.bk * t.element
        return Tile(self.block.a_access(self.b, g), g, start, t.element), end

    def tile_b(self, start: int) -> tuple[Tile, int] | None:
        """(k, n) fragments, or (n, k) if B lies transposed in memory; packed weights go straight into registers."""
        if self.block.packed:
            return None
        t, p = self.t, self.p
        rows, cols = (t.bn // 16, t.kk) if p.trans_b else (t.kk, t.bn // 16)
        self.stride_b = 1 if p.trans_b else rows
        g = self._geometry(rows, cols, self.block.vector_b(self.vector))
        end = start + t.bn * t.bk * t.element
        return Tile(self.block.b_access(self.b, g), g, start, t.element), end

    def _geometry(self, rows: int, cols: int, v: int) -> Geometry:
        return fragments(self.b, rows, cols, v, self.t.count, self.warp, self.t.element)

    def _weights(self) -> Weights:
        """B from packed weights, which each warp loads for itself."""
        b, t, size = self.b, self.t, 128 * self.t.of_b
        row = self.block.packed_columns // 16 * size
        at = uadd(b, umul(b, self.block.nt, t.bn // 16 * size), umul(b, self.wn, t.fn * size))
        base, lane = self.block.weights(b, at, t.kk * row), mul(b, lane_id(b), 4 * t.of_b)
        return Weights(b, base, lane, t.kk, t.fn, row, self.block.steps, t.of_b)

    # --- the product

    def _row_guards(self) -> list[VPred | Any]:
        """For each row of fragments whether it exists: past the last row of C nothing is multiplied. None: it never does."""
        row0 = uadd(self.b, self.block.m0, umul(self.b, self.wm, 16 * self.t.fm))
        return [self._exists(row0, f) for f in range(self.t.fm)]

    def _exists(self, row0: VUReg | int, f: int) -> VPred | Any:
        t, tail = self.t, self.p.m % self.t.bm
        if isinstance(row0, int):
            return PT if 16 * f < self.p.m else None
        surely = not tail or 16 * (f + t.fm * (t.wm - 1)) < tail
        return (
            PT if surely or f >= PREDICATES else ucompare(self.b, Cmp.LT, row0, self.p.m - 16 * f)
        )

    def accumulators(self) -> Iterable[VReg]:
        return (acc for f in self.rows for acc in self.acc[f])

    def compute(self, first: bool, last: bool) -> None:
        for kk in range(self.depth):
            a = [self.left(kk, f) for f in self.rows]
            bs = self.right.fragments(kk)
            for f, x in zip(self.rows, a, strict=True):
                for y, acc in zip(bs, self.acc[f], strict=True):
                    c = RZ if first and not kk else acc
                    self.hmma(acc, x, y, c, self.guards[f])
            if not last:
                self.right.refill(kk)

    @property
    def depth(self) -> int:
        """Products of fragments of a step, one after the other."""
        return self.t.kk

    def hmma(self, d: VReg, a: VReg, b: Any, c: Any, guard: Any) -> None:
        """d = a · b + c, of fragments."""
        self.b.emit(HMMA, Half[self.p.dtype.upper()], d, a, b, c, guard=guard)

    def left(self, kk: int, f: int) -> VReg:
        """Fragment f of A at step kk of the tile."""
        return self.fragment(self.read_a, self.turns_a, kk, f, self.stride_a, self.t.bm)

    def fragment(
        self, base: VUReg, transposed: bool, kk: int, f: int, stride: int, width: int,
        into: VReg | None = None,
    ) -> VReg:  # fmt: skip
        """Fragment (f, kk) of an operand: neighbours along its own axis lie `stride` fragments apart."""
        d = into or self.b.reg(4)
        step = width // 16 if stride == 1 else 1
        self.b.emit(
            LDSM,
            Trans.T if transposed else Trans.N,
            d,
            base,
            (f * stride + kk * step) * FRAGMENT,
            32,
        )
        return d

    def results(self) -> Iterable[tuple[Frame, list[Spot]]]:
        b, t = self.b, self.t
        row, col = divmod_(b, lane_id(b), 16)
        row0 = uadd(b, self.block.m0, umul(b, self.wm, 16 * t.fm))
        yield self.frame(row0, self.column(), row, col), self.spots()

    def column(self) -> Number:
        """The warp's first column of C."""
        return uadd(self.b, self.block.n0, umul(self.b, self.wn, 16 * self.t.fn))

    def spots(self) -> list[Spot]:
        """The warp's accumulators, in rows of its own."""
        return [
            Spot(acc[r], 16 * f + 2 * r, 16 * j)
            for f in self.rows
            for j, acc in enumerate(self.acc[f])
            for r in range(8)
        ]


def wrong_type(p: Product) -> str | None:
    """Why HMMA cannot take the operands, or None."""
    if p.dtype in ("f16", "bf16"):
        return None
    return f"operands are {p.dtype}, the Tensor Core takes f16 and bf16"


class Hmma(TiledEngine[Fragments]):
    """The generator."""

    kind = "hmma"
    extensions = frozenset({"tensor", "conv"})
    tiling = Fragments
    kernel = Fragmented[Fragments]
    tilewise = True

    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        return wrong_type(p)

    def tilings(self, group: Group, p: Product, machine: Machine) -> Iterable[Fragments]:
        return tilings(Fragments, p, blocks.packs(group, p), machine)

    def cycles(self, group: Group, p: Product, t: Fragments, way: str, machine: Machine) -> float:
        each = step(p, t, blocks.packs(group, p), way)
        return cost.tiled(each, p, t, len(group.nodes), p.b in group.constants, machine)


HMMA_GENERATOR = register(Hmma())
