"""How an operand's tiles are read from global memory: each way knows its addresses and how they move from one k step to the next.

    packed    weights laid out at compile time in the order in which threads fetch them
    dense     a matrix in memory, its edges watched by the conv unit: what lies outside is zero
    im2col    pixels of an image; all lanes are at the same tap, which moves by additions only
    gather    pixels of an image; each lane looks up tap and offset of its own k: for channel counts that do not fill a k step

A matrix is an image too: for `dense` the unit's y is the row and its x is the column, counted in vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from knapper.isa.instructions import (
    IADD,
    ISETP,
    LDG,
    LDG_IM2COL,
    LDG_IM2COL_FILL,
    LOP,
    SEL,
    UIADD,
    UMOV,
    USHF,
)
from knapper.isa.modifiers import Bits32, Cmp, Direction, Logic, Width
from knapper.isa.operands import Guard

from ...ir import Array
from ..builder import PT, KernelBuilder, VPred, VReg, VUReg
from .code import S32, Number, add, divmod_, fixed, move_base, mul, uadd, umov
from .geometry import Geometry, Move
from .product import Window

WIDTHS = {1: Width.U8, 2: Width.U16, 4: Width._32, 8: Width._64, 16: Width._128}
SIGNED = {1: Width.S8, 2: Width.S16}
FAR = 0xC000_0000
"""A pixel far outside of every image: y = -0x4000."""
EVERYWHERE = 0x7FFF


@dataclass(frozen=True)
class Dim:
    """One level of the walk over k: `count` steps, each moving the base by `bytes` and the tap by `tap` (y << 16 | x)."""

    count: Number
    bytes: int
    tap: int = 0


def several(steps: Number) -> bool:
    """Whether there may be more than one."""
    return not isinstance(steps, int) or steps > 1


class Access(Protocol):
    """One operand's loads. `dims` are the walk's levels, innermost first; `base` and `tap` are what it moves."""

    base: VUReg
    tap: VUReg | None
    dims: tuple[Dim, ...]

    def load(self, b: KernelBuilder, into: Sequence[VReg] = ()) -> list[VReg]:
        """Emit the loads of the current tile; gives the registers of each move: new ones, or `into`, those of an earlier load."""


def targets(b: KernelBuilder, g: Geometry, width: Width, into: Sequence[VReg]) -> list[VReg]:
    """The registers of each move."""
    return list(into) or [b.reg(width.words) for _ in g.moves]


def width_of(nbytes: int, signed: bool = False) -> Width:
    """The load of so many bytes a lane."""
    return SIGNED[nbytes] if signed and nbytes in SIGNED else WIDTHS[nbytes]


@dataclass
class Packed:
    """Tiles that lie in memory as they will lie in shared memory."""

    base: VUReg
    geometry: Geometry
    tile_bytes: int
    steps: Number
    width: Width
    tap: VUReg | None = None

    @property
    def dims(self) -> tuple[Dim, ...]:
        return (Dim(self.steps, self.tile_bytes),)

    def load(self, b: KernelBuilder, into: Sequence[VReg] = ()) -> list[VReg]:
        found = targets(b, self.geometry, self.width, into)
        for m, d in zip(self.geometry.moves, found, strict=True):
            b.emit(LDG, self.width, d, self.base, self.geometry.place, m.place, guard=m.guard or PT)
        return found


@dataclass
class Bounded:
    """Loads through the conv unit: an address and a pixel for each move, a tap and a size for all."""

    base: VUReg
    geometry: Geometry
    width: Width
    dims: tuple[Dim, ...]
    tap: VUReg | None
    size: VUReg
    places: dict[Move, tuple[VReg, int, VReg]] = field(default_factory=dict)
    """Move → (address register, fixed offset, pixel register)."""
    fill: int = 0
    """What lies outside, in each byte."""

    def load(self, b: KernelBuilder, into: Sequence[VReg] = ()) -> list[VReg]:
        found = targets(b, self.geometry, self.width, into)
        for m, d in zip(self.geometry.moves, found, strict=True):
            a, offset, pix = self.places[m]
            tap = 0 if self.tap is None else self.tap
            with b.under(m.guard or PT):
                load_pixel(b, self.fill, self.width, d, self.base, a, offset, pix, tap, self.size)
        return found


def load_pixel(b: KernelBuilder, fill: int, *operands: Any) -> None:
    """LDG.IM2COL; what lies outside of the image is zero, or `fill` in each byte."""
    if fill:
        b.emit(LDG_IM2COL_FILL, *operands, fill & 0xFF)
    else:
        b.emit(LDG_IM2COL, *operands)


@dataclass(frozen=True)
class Edges:
    """What a dense tile may run over: rows and columns that exist, counted from the tile's first; None: no edge is near.

    `along` says which of them k runs along: "col" or "row".
    """

    rows: Number | None
    cols: Number | None
    along: str


def dense(
    b: KernelBuilder,
    base: VUReg,
    g: Geometry,
    pitch: int,
    element: int,
    edges: Edges,
    steps: Number,
    bk: int,
    signed: bool = False,
) -> Bounded:
    """Tiles of a matrix whose rows are `pitch` bytes apart. Column edges are multiples of the vector."""
    row = mul(b, g.row, pitch, mul(b, g.col, element))
    pix = _pixel(
        b,
        g.row if edges.rows is not None else fixed(b, 0),
        divmod_(b, g.col, g.v)[0] if edges.cols is not None else fixed(b, 0),
    )
    rows = EVERYWHERE if edges.rows is None else edges.rows
    cols: Number = EVERYWHERE if edges.cols is None else edges.cols
    watched = (edges.cols if edges.along == "col" else edges.rows) is not None
    move = (
        Dim(steps, bk * element, bk // g.v)
        if edges.along == "col"
        else Dim(steps, bk * pitch, bk << 16)
    )
    access = Bounded(
        base,
        g,
        width_of(g.v * element, signed),
        (move,),
        umov(b, 0) if watched else None,
        size_of(b, rows, cols),
    )
    addresses, pixels = Sums(b, row), Sums(b, pix)
    for m in g.moves:
        step = (m.row << 16 if edges.rows is not None else 0) + (
            m.col // g.v if edges.cols is not None else 0
        )
        access.places[m] = (*addresses.near(m.row * pitch + m.col * element), pixels.at(step))
    return access


class Sums:
    """register + number, each made once. The conv unit adds up to 15 bits by itself."""

    def __init__(self, b: KernelBuilder, register: VReg) -> None:
        self.b, self.made = b, {0: register}

    def at(self, n: int) -> VReg:
        if n not in self.made:
            self.made[n] = add(self.b, self.made[0], n)
        return self.made[n]

    def near(self, n: int) -> tuple[VReg, int]:
        """(a register, an offset that fits the instruction)."""
        fits = n & 0x7FFF if n > 0x7FFF else n
        return self.at(n - fits), fits


def _pixel(b: KernelBuilder, y: VReg, x: VReg) -> VReg:
    """(y << 16) | (x & 0xffff)."""
    low = b.reg()
    b.emit(LOP, Logic.AND, Bits32._32, low, x, 0xFFFF)
    return mul(b, y, 1 << 16, low)


def size_of(b: KernelBuilder, rows: Number, cols: Number) -> VUReg:
    """(H << 16) | W."""
    if isinstance(rows, int):
        return umov(b, uadd(b, rows << 16, cols))
    d = b.ureg()
    b.emit(USHF, Direction.L, d, rows, 16)
    return umov(b, uadd(b, d, cols))


# --- images


@dataclass(frozen=True)
class Image:
    """What a convolution reads: the window, bytes a pixel, bytes an element, channels of a group."""

    window: Window
    pitch: int
    element: int
    channels: int


Pixels = dict[int, tuple[VReg, VReg]]
"""Row of a move → (byte offset, packed pixel)."""


def pixels(
    b: KernelBuilder,
    g: Geometry,
    image: Image,
    first: Number,
    count: int | None,
    lane: VReg | None = None,
) -> Pixels:
    """For each distinct row of the moves: output pixel `first` + row, far outside from `count` on; offsets begin at `lane`."""
    found: Pixels = {}
    origin = add(b, g.row, first)
    for m in g.moves:
        if m.row not in found:
            found[m.row] = pixel_of(b, add(b, origin, m.row), image, lane, count)
    return found


def pixel_of(
    b: KernelBuilder, m: VReg, image: Image, lane: VReg | None, count: int | None
) -> tuple[VReg, VReg]:
    """Row m of the product: where its top left input pixel lies in memory, and that pixel, packed."""
    w = image.window
    n, rest = divmod_(b, m, w.oh * w.ow) if w.images > 1 else (None, m)
    oy, ox = divmod_(b, rest, w.ow) if w.oh > 1 else (fixed(b, 0), rest)
    y, x = add(b, mul(b, oy, w.sy), -w.py), add(b, mul(b, ox, w.sx), -w.px)
    line = mul(b, n, w.h, y) if n is not None else y
    offset = mul(b, mul(b, line, w.w, x), image.pitch, lane)
    pix = _pixel(b, y, x)
    if count is None:
        return offset, pix
    p, inside = b.pred(), b.reg()
    b.emit(ISETP, Cmp.LT, S32, p, m, count)
    b.emit(SEL, Bits32._32, inside, pix, FAR, p)
    return offset, inside


def im2col(
    b: KernelBuilder,
    base: VUReg,
    g: Geometry,
    image: Image,
    rows: Pixels,
    bk: int,
    signed: bool = False,
) -> Bounded:
    """Tiles whose k step lies within one tap: bk divides the channels of a group."""
    w = image.window
    dims = (
        Dim(image.channels // bk, bk * image.element),
        Dim(w.kw, w.dx * image.pitch, w.dx),
        Dim(w.kh, w.dy * w.w * image.pitch, w.dy << 16),
    )
    tap = umov(b, 0) if w.taps > 1 else None
    width = width_of(g.v * image.element, signed)
    access = Bounded(base, g, width, dims, tap, umov(b, w.h << 16 | w.w), fill=w.fill)
    for m in g.moves:
        offset, pix = rows[m.row]
        access.places[m] = (offset, m.col * image.element, pix)
    return access


@dataclass
class Gathered:
    """Each lane's k has its own tap: `entries` holds (byte offset, tap) of the current step, read from a table one step ahead."""

    image_base: VUReg
    base: VUReg
    """The table's."""
    geometry: Geometry
    width: Width
    steps: Number
    stride: int
    lane: VReg
    size: VUReg
    rows: Pixels
    entries: dict[int, VReg]
    tap: VUReg | None = None
    fill: int = 0
    """What lies outside, in each byte."""

    @property
    def dims(self) -> tuple[Dim, ...]:
        return (Dim(self.steps, self.stride),)

    def fetch(self, b: KernelBuilder, ahead: int) -> None:
        """Read the table's entries for the current step, or the one after."""
        for col, e in self.entries.items():
            b.emit(
                LDG,
                Width._64,
                e,
                self.base,
                self.lane,
                ahead * self.stride + col // self.geometry.v * 8,
                guard=self._guard(col),
            )

    def _guard(self, col: int) -> VPred | Guard:
        """Who needs a column's entry: columns that only some threads move may lie behind the table for the others."""
        first, *others = {m.guard for m in self.geometry.moves if m.col == col}
        return PT if others or first is None else first

    def load(self, b: KernelBuilder, into: Sequence[VReg] = ()) -> list[VReg]:
        found = targets(b, self.geometry, self.width, into)
        for m, d in zip(self.geometry.moves, found, strict=True):
            (offset, pix), e = self.rows[m.row], self.entries[m.col]
            a = b.reg()
            b.emit(IADD, S32, a, offset, e[0], guard=m.guard or PT)
            with b.under(m.guard or PT):
                load_pixel(b, self.fill, self.width, d, self.image_base, a, 0, pix, e[1], self.size)
        self.fetch(b, 1)
        return found


def gather(
    b: KernelBuilder, base: VUReg, table: VUReg, g: Geometry, image: Image, rows: Pixels, bk: int, steps: Number,
    signed: bool = False,
) -> Gathered:  # fmt: skip
    """Tiles whose k step may mix taps: v divides the channels of a group."""
    w = image.window
    entries = {m.col: b.reg(2) for m in g.moves}
    lane = mul(b, divmod_(b, g.col, g.v)[0], 8)
    size = umov(b, w.h << 16 | w.w)
    made = Gathered(
        base,
        table,
        g,
        width_of(g.v * image.element, signed),
        steps,
        bk // g.v * 8,
        lane,
        size,
        rows,
        entries,
        fill=w.fill,
    )
    made.fetch(b, 0)
    return made


def gather_table(image: Image, v: int, bk: int, steps: int) -> Array:
    """i32[steps + 1, bk / v, 2]: byte offset and tap of each vector of k; past the end a tap that is outside."""
    return gather_entries(image, np.arange((steps + 1) * bk // v) * v).reshape(
        steps + 1, bk // v, 2
    )


def gather_entries(image: Image, k: Array) -> Array:
    """i32[k, 2]: byte offset and tap of some k; from the last tap on one that is outside."""
    w = image.window
    tap, c = k // image.channels, k % image.channels
    y, x = tap // w.kw * w.dy, tap % w.kw * w.dx
    inside = tap < w.taps
    offset = (y * w.w + x) * image.pitch + c * image.element
    entries = np.stack(
        [np.where(inside, offset, 0), np.where(inside, y << 16 | x, FAR - (1 << 32))], -1
    )
    return entries.astype(np.int32)


# --- the walk over k


class Walk:
    """Moves all operands to the next k step: additions only, a branch a level of the deepest operand.

    A level may have a number of steps that only the kernel knows (`tilewise`); then there is no other.
    """

    def __init__(self, b: KernelBuilder, operands: list[Any]) -> None:
        self.b = b
        deep = max(operands, key=lambda o: len(self.levels(o)))
        self.rest = [o for o in operands if o is not deep]
        self.deep, self.dims = deep, self.levels(deep)
        self.counters = [b.ureg() for _ in self.dims]

    @staticmethod
    def levels(operand: Any) -> list[Dim]:
        """The levels that take more than one step."""
        return [d for d in operand.dims if several(d.count)]

    def first(self, step: int = 1) -> None:
        """Straight to `step` from the one before, before the loop, which goes on from there."""
        here, before = self._digits(step), self._digits(step - 1)
        for c, d, digit in zip(self.counters, self.dims, here, strict=True):
            if isinstance(d.count, int):
                self.b.emit(UMOV, c, d.count - digit)
            else:
                self.b.emit(UIADD, Bits32._32, c, d.count, -digit)
        self._straight()
        moved = [(d, x - y) for d, x, y in zip(self.dims, here, before, strict=True)]
        self._move(self.deep, sum(d.bytes * n for d, n in moved), sum(d.tap * n for d, n in moved))

    def _digits(self, step: int) -> list[int]:
        """How far each level is at a step."""
        found = []
        for d in self.dims:
            step, digit = divmod(step, d.count) if isinstance(d.count, int) else (0, step)
            found.append(digit)
        return found

    def again(self, repeat: Callable[[VUReg], None]) -> None:
        """From step to step; `repeat(counter)` emits the branch back that is taken while the counter is not zero."""
        self._straight()
        spent, steps = Dim(0, 0), 0
        for i, (c, d) in enumerate(zip(self.counters, self.dims, strict=True)):
            if i:
                self.b.emit(UMOV, self.counters[i - 1], steps)
            self._move(self.deep, d.bytes - steps * spent.bytes, d.tap - steps * spent.tap)
            self.b.emit(UIADD, Bits32._32, c, c, -1)
            repeat(c)
            spent, steps = d, d.count if isinstance(d.count, int) else 0

    def _straight(self) -> None:
        for o in self.rest:
            for d in self.levels(o)[:1]:
                self._move(o, d.bytes, d.tap)

    def _move(self, operand: Any, nbytes: int, tap: int) -> None:
        move_base(self.b, operand.base, nbytes)
        if tap and operand.tap is not None:
            self.b.emit(UIADD, Bits32._32, operand.tap, operand.tap, tap)
