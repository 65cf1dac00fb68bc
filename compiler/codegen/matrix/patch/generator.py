"""Convolutions on the Tensor Core whose blocks fetch each pixel once: a tile's patch of the image stays in shared memory.

`hmma` carries the pixels under every tap into shared memory anew. Here a block computes th × tw neighbouring output pixels, fetches the pixels
that some tap of them reads, with all channels, and then walks over k = (tap row, tap column, channel) without a load of the image:

    fetch the patch ─ BAR ─┬─► HMMA on fragments of the patch; the next weights are under way ─┬─►
                           └───────────────────────────────────────────────────────────────────┘

Only the loads change, not the order of k, so the bits are those of `hmma`. Where no patch fits the engine does not serve, and `hmma` fetches
pixels for every tap again. Where which pixel lies is in `shape`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from knapper.isa.instructions import (
    IADD,
    ISETP,
    LDG,
    LDG_IM2COL,
    LDSM,
    SEL,
    STS,
    ULOP,
    UMOV,
    USHF,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, Direction, Logic, Trans, Width

from ....ir import Array
from ...builder import PT, URZ, KernelBuilder, VPred, VReg, VUReg
from ...generator import Group, Options, register
from .. import blocks
from ..access import Dim
from ..blocks import Block
from ..code import (
    S32,
    Number,
    add,
    block_index,
    divmod_,
    lane_id,
    move_base,
    mul,
    param,
    uadd,
    ucompare,
    udivmod,
    umin,
    umov,
    umul,
    usub,
)
from ..engine import TiledEngine
from ..epilogue import Frame, Line, Spot
from ..hmma import PREDICATES, Fragmented, wrong_type
from ..pipeline import Buffers, Tile
from ..product import Product
from . import cost as patch_cost
from .shape import PLACE, Patch, Phases
from .tiles import FLIGHT, Patches, patch_of, tilings, unfit, work

ENTRY = 8
"""Bytes of an entry of the table of places."""
NOWHERE = 1 << 30
"""A bound that no limit exceeds."""


class Places(Block):
    """The block's place in the grid: an image, and a tile of its output. Rows of its product are counted from its first."""

    m0 = 0

    def __init__(self, group: Group, p: Product, t: Patches, element: int) -> None:
        super().__init__(group, p, (t.bm, t.bn, t.bk), element, "patch")
        self.patch, (self.th, self.tw) = patch_of(p, t.pixels), t.pixels
        down, across = self.patch.tiles
        self.grid = (self.patch.window.images * down * across, *self.grid[1:])
        self.table_name = f"{p.b}.patch"
        self.names = (*self.names, self.table_name)

    def begin(self, b: KernelBuilder) -> None:
        """Read the block's coordinates."""
        down, across = self.patch.tiles
        rest, tx = _split(b, block_index(b, SR.CTAID_X, self.grid[0]), across)
        self.image, ty = _split(b, rest, down)
        self.y, self.x = umul(b, ty, self.th), umul(b, tx, self.tw)
        self.nt = block_index(b, SR.CTAID_Y, self.grid[1])
        self.z = block_index(b, SR.CTAID_Z, self.grid[2])
        self.n0 = umul(b, self.nt, self.bn)
        self.axes = self._axes(b)

    def lines(self, b: KernelBuilder) -> Number:
        """Lines of the tile that exist."""
        w = self.patch.window
        return umin(b, usub(b, w.oh, self.y), self.th) if w.oh % self.th else self.th

    @property
    def fewest(self) -> int:
        """Lines of the tiles that have the fewest."""
        return self.patch.window.oh % self.th or self.th

    def columns(self, b: KernelBuilder) -> Number:
        """Columns likewise."""
        w = self.patch.window
        return umin(b, usub(b, w.ow, self.x), self.tw) if w.ow % self.tw else self.tw

    def first(self, b: KernelBuilder) -> Number:
        """The row of the tile's first pixel in the result."""
        w = self.patch.window
        line = uadd(b, umul(b, self.image, w.oh), self.y)
        return uadd(b, umul(b, line, w.ow), self.x)

    def source(self, b: KernelBuilder) -> VUReg:
        """Where the patch begins in memory, be it outside the image."""
        w, pitch = self.patch.window, self.p.a_pitch * self.element
        base = self._base(b, 0, (x.a for x in self.p.axes))
        move_base(b, base, umul(b, self.image, w.h * w.w * pitch))
        move_base(b, base, umul(b, self.y, w.sy * w.w * pitch))
        move_base(b, base, umul(b, self.x, w.sx * pitch))
        move_base(b, base, -(w.py * w.w + w.px) * pitch)
        return base

    def corner(self, b: KernelBuilder) -> VUReg:
        """The patch's first pixel, packed for the conv unit."""
        w = self.patch.window
        y, x = uadd(b, umul(b, self.y, w.sy), -w.py), uadd(b, umul(b, self.x, w.sx), -w.px)
        return umov(b, uadd(b, umul(b, y, 1 << 16), _low(b, x)))


def _split(b: KernelBuilder, x: Number, by: int) -> tuple[Number, Number]:
    """Quotient and remainder of a uniform value."""
    return divmod(x, by) if isinstance(x, int) else udivmod(b, x, by)


def _low(b: KernelBuilder, x: Number) -> Number:
    """The low 16 bits."""
    if isinstance(x, int):
        return x & 0xFFFF
    d = b.ureg()
    b.emit(ULOP, Logic.AND, d, x, 0xFFFF)
    return d


def _high(b: KernelBuilder, x: VUReg) -> VUReg:
    """The high 16 bits."""
    d = b.ureg()
    b.emit(USHF, Direction.R, d, x, 16)
    return d


class Fetch:
    """The patch's way into shared memory: two lanes carry a place's 16 channels, a plane at a time.

    Which pixel lies at a place is looked up once, so that a load takes no arithmetic whatever the window.
    """

    def __init__(self, b: KernelBuilder, block: Places, t: Patches, warp: Number) -> None:
        self.b, self.block = b, block
        self.turns, self.lanes = t.turns(block.patch), t.lanes
        self.plane = block.patch.places(t.bm // 16) * PLACE
        lane, half = divmod_(b, lane_id(b), 2)
        place = add(b, lane, umul(b, warp, 16))
        side = mul(b, half, PLACE // 2)
        self.place = mul(b, place, PLACE, side)
        self.entries = self._look_up(mul(b, place, ENTRY), side)
        self.last = self._last(place)
        self.source, self.corner = block.source(b), block.corner(b)
        w = block.patch.window
        self.size = umov(b, w.h << 16 | w.w)

    def _look_up(self, at: VReg, side: VReg) -> list[VReg]:
        """Of each turn the byte offset of the lane's part of its pixel, and the pixel."""
        b, table = self.b, param(self.b, len(self.block.names) - 1)
        entries = [b.reg(2) for _ in range(self.turns)]
        for turn, e in enumerate(entries):
            b.emit(LDG, Width._64, e, table, at, turn * self.lanes * ENTRY)
        for e in entries:
            b.emit(IADD, S32, e[0], e[0], side)
        return entries

    def _last(self, place: VReg) -> VPred | Any:
        """Who has a place left in the last turn."""
        left = self.plane // PLACE - (self.turns - 1) * self.lanes
        if left == self.lanes:
            return PT
        p = self.b.pred()
        self.b.emit(ISETP, Cmp.LT, S32, p, place, left)
        return p

    def emit(self, start: int, planes: int) -> None:
        """All moves, FLIGHT at a time: those of one batch are stored while the next is under way."""
        moves = [(turn, plane) for turn in range(self.turns) for plane in range(planes)]
        waiting: list[tuple[tuple[int, int], VReg]] = []
        for i in range(0, len(moves), FLIGHT):
            loaded = [(m, self._load(*m)) for m in moves[i : i + FLIGHT]]
            self._store(start, waiting)
            waiting = loaded
        self._store(start, waiting)

    def _guard(self, turn: int) -> VPred | Any:
        return self.last if turn == self.turns - 1 else PT

    def _load(self, turn: int, plane: int) -> VReg:
        d, e = self.b.reg(4), self.entries[turn]
        self.b.emit(
            LDG_IM2COL, Width._128, d, self.source, e[0], plane * PLACE, e[1], self.corner, self.size, guard=self._guard(turn)
        )  # fmt: skip
        return d

    def _store(self, start: int, loaded: list[tuple[tuple[int, int], VReg]]) -> None:
        for (turn, plane), d in loaded:
            at = start + plane * self.plane + turn * self.lanes * PLACE
            self.b.emit(STS, Width._128, URZ, self.place, at, d, guard=self._guard(turn))


@dataclass
class Taps:
    """The patch as an operand of the walk over k: `base` is the byte of the current channels, `tap` the tap (row << 16 | column)."""

    base: VUReg
    tap: VUReg
    dims: tuple[Dim, ...]

    @staticmethod
    def of(b: KernelBuilder, patch: Patch, planes: int, plane: int) -> Taps:
        """Steps of so many planes, each of `plane` bytes."""
        base, w = b.ureg(2), patch.window
        for word in (base[0], base[1]):
            b.emit(UMOV, word, 0)
        channels = Dim(patch.channels // (16 * planes), planes * plane)
        return Taps(base, umov(b, 0), (channels, Dim(w.kw, 0, 1), Dim(w.kh, 0, 1 << 16)))

    def offset(self, b: KernelBuilder, patch: Patch) -> Number:
        """How many bytes the current channels of the current tap lie behind the first ones."""
        row, col = _high(b, self.tap), _low(b, self.tap)
        down = phase(b, row, patch.rows, patch.down * PLACE, patch.pitch * PLACE)
        across = phase(b, col, patch.cols, patch.across * PLACE, PLACE)
        return uadd(b, uadd(b, down, across), self.base[0])


def phase(b: KernelBuilder, tap: Number, axis: Phases, each: int, place: int) -> Number:
    """Bytes to where a tap's first pixel lies: phases are `each` apart, places of one `place`."""
    if axis.taps == 1:
        return 0
    rest, found = _split(b, tap, axis.period) if axis.taps > axis.period else (0, tap)
    return umul(b, found, each, umul(b, rest, axis.shift * place))


class Patched(Fragmented[Patches]):
    """One launch being emitted."""

    block: Places

    def __init__(self, group: Group, t: Patches, way: str, machine: Machine) -> None:
        super().__init__(group, t, way, machine)
        self.block = Places(group, self.p, t, self.element)
        self.patch = self.block.patch
        self.plane = self.patch.places(t.bm // 16) * PLACE

    def constants(self) -> dict[str, Array]:
        count = self.t.turns(self.patch) * self.t.lanes
        table = self.patch.table(count, self.p.a_pitch * self.element)
        return {**super().constants(), self.block.table_name: table}

    def _tiles(self) -> tuple[list[Tile], int]:
        """Only B comes in tiles, if it is not packed."""
        b = self.tile_b(0)
        return ([], 0) if b is None else ([b[0]], b[1])

    def _left(self, buffers: Buffers) -> VUReg:
        """The warp's first fragment under the first tap; later where `compute` will read next."""
        planes = self.p.channels // 16
        self.patch_start = self.b.shared(self.plane * planes, 128)
        step = self.patch.fragment(self.t.fm) * PLACE
        self.first = uadd(self.b, umul(self.b, self.wm, step), self.patch_start)
        return umov(self.b, self.first)

    def multiply(self, tiles: list[Tile], buffers: Buffers) -> None:
        """Fetch the patch, then walk over taps and channels."""
        fetch = Fetch(self.b, self.block, self.t, self.warp)
        fetch.emit(self.patch_start, self.p.channels // 16)
        self.taps = Taps.of(self.b, self.patch, self.t.kk, self.plane)
        self.beside = [self.taps, *self.beside]
        super().multiply(tiles, buffers)

    def left(self, kk: int, f: int) -> VReg:
        d = self.b.reg(4)
        at = kk * self.plane + self.patch.fragment(f) * PLACE
        self.b.emit(LDSM, Trans.N, d, self.read_a, at, PLACE)
        return d

    def compute(self, first: bool, last: bool) -> None:
        super().compute(first, last)
        if not last:  # the walk is a step ahead
            offset = self.taps.offset(self.b, self.patch)
            self.b.emit(UMOV, self.read_a, uadd(self.b, offset, self.first))

    # --- its rows

    def _exists(self, row0: VUReg | int, f: int) -> VPred | Any:
        """Rows end with the last line of the tile that lies in the image."""
        t, lines = self.t, self.block.lines(self.b)
        end = umul(self.b, lines, self.patch.width)
        if isinstance(row0, int) and isinstance(end, int):
            return PT if 16 * f < end else None
        surely = 16 * (f + t.fm * (t.wm - 1)) < self.block.fewest * self.patch.width
        if surely or f >= PREDICATES:
            return PT
        return ucompare(self.b, Cmp.LT, umov(self.b, uadd(self.b, row0, 16 * f)), end)

    def results(self) -> Iterable[tuple[Frame, list[Spot]]]:
        b, block = self.b, self.block
        row, col = divmod_(b, lane_id(b), 16)
        self.row = add(b, row, umul(b, self.wm, 16 * self.t.fm))
        self.columns, lines = block.columns(b), block.lines(b)
        self.past = 0 if isinstance(lines, int) else usub(b, 0, lines)
        limit = lines if isinstance(lines, int) else 0
        cols = self.p.n if self.p.n % self.t.bn else 0
        first, col0 = block.first(b), self.column()
        frame = Frame(first, col0, row, col, None, limit, cols, block.axes, self._line)
        yield frame, self.spots()

    def _line(self, row: int) -> Line:
        """A row of fragments as a pixel of the result, and as a line of the tile."""
        b = self.b
        y, x = divmod_(b, add(b, self.row, row), self.patch.width)
        return mul(b, y, self.patch.window.ow, x), self._bound(y, x)

    def _bound(self, y: VReg, x: VReg) -> VReg:
        """The line, or NOWHERE for what lies between lines."""
        b, bound = self.b, y
        if self.columns != self.patch.width:
            p, bound = b.pred(), b.reg()
            b.emit(ISETP, Cmp.LT, S32, p, x, self.columns)
            b.emit(SEL, Bits32._32, bound, y, NOWHERE, p)
        return add(b, bound, self.past)


class PatchEngine(TiledEngine[Patches]):
    """The generator."""

    kind = "patch"
    extensions = frozenset({"tensor", "conv"})
    tiling = Patches
    kernel = Patched

    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        if why := wrong_type(p):
            return why
        if p.window is None or p.window.taps == 1:
            return "has one tap: no pixel is read twice"
        if p.channels % 16:
            return f"{p.channels} channels of a group fill no fragments of 16"
        if why := unfit(p, machine):
            return why
        offered = any(True for _ in self.tilings(group, p, machine))
        return None if offered else "no tile's patch is one that the threads of a block can carry"

    def tilings(self, group: Group, p: Product, machine: Machine) -> Iterable[Patches]:
        return tilings(p, machine, blocks.packs(group, p))

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        return ({**o, "access": "patch"} for o in super().candidates(group, machine))

    def cycles(self, group: Group, p: Product, t: Patches, way: str, machine: Machine) -> float:
        packed, known = blocks.packs(group, p), p.b in group.constants
        return patch_cost.cycles(work(p, t, packed, known, 2 + len(group.nodes)), machine)


PATCH_GENERATOR = register(PatchEngine())
