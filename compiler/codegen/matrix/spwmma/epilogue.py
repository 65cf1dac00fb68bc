"""From accumulator memory to results, dense or encoded.

    ACC.LD           lane = row (position of the stream), register = column
    through shared   lane = column, register = row                             a row of C is a run of memory: loads and stores of the epilogue
    through shared   lane = row, register = column again, in 16 bits           a record, as `encode` packs one

A position between rows of an image has no pixel: nothing is loaded or stored there, and the encoded value has zeros.
"""

from __future__ import annotations

from typing import Any

from knapper.isa.instructions import (
    ACC_LD,
    IMNMX,
    ISETP,
    LDS,
    MOV,
    SEL,
    SHF,
    SHFL,
    STS,
)
from knapper.isa.modifiers import (
    Bits32,
    Cmp,
    Direction,
    IntType,
    MinMax,
    Shuffle,
    Width,
)
from knapper.isa.sparse import TILE

from ....sparsity.bitmap import SEGMENT, Layout
from ...builder import RZ, VReg, VUReg
from ...encode import record
from ..code import (
    S32,
    Number,
    add,
    divmod_,
    fixed,
    move_base,
    mul,
    param,
    uadd,
    umov,
    umul,
)
from ..epilogue import Epilogue, Frame, Line, Spot
from .shape import STAGE, Encoded

PITCH = 144
"""Bytes from row to row of a tile being turned: 16 bytes beyond its 128, so that neither way conflicts."""
NARROW = 80
"""The same of a tile of 16-bit elements."""
BEYOND = 0x7FFFFFFF


class Encoding(Epilogue):
    """Stores results, and puts the value that is to be encoded into a tile in shared memory besides."""

    value = ""
    stored: frozenset[str] = frozenset()
    stage: VUReg
    column: VReg

    def _store(self, value: str, s: Spot, guard: Any) -> None:
        if value in self.stored:
            super()._store(value, s, guard)
        if value == self.value:
            raw = self._value(value, s, "raw")
            self.b.emit(STS, Width.U16, self.stage, self.column, s.row * NARROW, raw, guard=guard)


def finish(k: Any) -> None:
    """The epilogue of a kernel (`SparseKernel`) whose products are complete."""
    b, op, p = k.b, k.op, k.p
    tile = uadd(b, k.row, op.first)
    stage = umov(b, umul(b, k.warp, STAGE, k.stage))
    acc = _turned(k, stage)
    frame = _frame(k, tile)
    e = Encoding(b, op.plain, p, frame, k.parameters)
    e.stored = frozenset(v for v in op.plain.outputs if v in k.parameters)
    if op.encoded:
        e.value, e.stage, e.column = op.encoded.value, stage, mul(b, k.lane, 2)
        _zeros(k, stage)
    e.emit([Spot(acc[r], r, 0) for r in range(TILE)])
    if op.encoded:
        _encode(k, op.encoded, stage, tile)


def _turned(k: Any, stage: VUReg) -> list[VReg]:
    """The warp's tile of C, a row a register."""
    b = k.b
    acc = b.reg(TILE)
    b.emit(ACC_LD, TILE, acc, k.tile, 0)
    row = mul(b, k.lane, PITCH)
    for c in range(0, TILE, 4):
        four = b.reg(4)
        for i in range(4):
            b.emit(MOV, four[i], acc[c + i])
        b.emit(STS, Width._128, stage, row, 4 * c, four)
    across = mul(b, k.lane, 4)
    rows = [b.reg() for _ in range(TILE)]
    for r, d in enumerate(rows):
        b.emit(LDS, Width._32, d, stage, across, r * PITCH)
    return rows


def _frame(k: Any, tile: Number) -> Frame:
    """Where the tile's rows and columns lie in the result."""
    b, op, p = k.b, k.op, k.p
    layout: Layout = op.layout
    col0 = umul(b, k.col, SEGMENT)
    cols = p.n if p.n % SEGMENT else 0
    if not layout.inset:
        row0 = umul(b, tile, SEGMENT)
        return Frame(row0, col0, fixed(b, 0), k.lane, fixed(b, row0), p.m, cols, ())
    pixel = _pixel(k, layout, umul(b, tile, SEGMENT))

    def line(row: int) -> Line:
        d = b.reg()
        b.emit(SHFL, Shuffle.IDX, d, pixel, row)
        return d, d

    return Frame(0, col0, pixel, k.lane, pixel, p.m, cols, (), line)


def _pixel(k: Any, layout: Layout, first: Number) -> VReg:
    """Of the lane's position: its pixel, or a number beyond all."""
    b = k.b
    images, h, w = layout.image
    at = add(b, add(b, k.lane, first), -layout.lead)
    safe = b.reg()
    b.emit(IMNMX, MinMax.MAX, IntType.S32, safe, at, 0)
    line, x = divmod_(b, safe, layout.pitch)
    n, y = divmod_(b, line, layout.rows)
    pixel = mul(b, mul(b, n, h, y), w, x)
    # outside: before the first pixel, right of a row, below a plane, behind the last
    for value, cmp, limit in ((at, Cmp.GE, 0), (x, Cmp.LT, w), (y, Cmp.LT, h), (n, Cmp.LT, images)):
        p, d = b.pred(), b.reg()
        b.emit(ISETP, cmp, S32, p, value, limit)
        b.emit(SEL, Bits32._32, d, pixel, BEYOND, p)
        pixel = d
    return pixel


# --- encoded


def _zeros(k: Any, stage: VUReg) -> None:
    """Zeros where nothing will be put: the tile of 16-bit values."""
    b = k.b
    zero = b.reg(4)
    for i in range(4):
        b.emit(MOV, zero[i], RZ)
    row = mul(b, k.lane, 16)
    for i in range(TILE * NARROW // 512):
        b.emit(STS, Width._128, stage, row, 512 * i, zero)


def _encode(k: Any, encoded: Encoded, stage: VUReg, tile: Number) -> None:
    """Pack the tile: 32 positions of 32 channels are a record."""
    b, layout = k.b, encoded.layout
    records, entries = (param(b, k.parameters[encoded.bitmap]) for _ in range(2))
    move_base(b, entries, layout.sections[0])
    row = mul(b, k.lane, NARROW)
    values = list[VReg | None]()
    for c in range(0, TILE, 8):
        eight = b.reg(4)
        b.emit(LDS, Width._128, eight, stage, row, 2 * c)
        for j in range(8):
            v = eight[j // 2]
            if j % 2:
                v = b.reg()
                b.emit(SHF, Direction.R, IntType.U32, v, eight[j // 2], 16)
            values.append(v)
    number = umul(b, tile, layout.groups, k.col)
    record.pack(b, k.lane, values, (stage, TILE * NARROW), (records, entries), number)
