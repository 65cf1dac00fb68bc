"""Which boxes of a list overlap too much: one bit for each pair, 32 pairs a word.

    a warp: 32 rows × 32 columns        lane = column, its box in registers;    rows one after the other, handed round by SHFL
            row i ── ballot ──► word of row i, kept by lane i ──► 32 words stored at once

Rows and columns follow the order of scores. A word left of the diagonal would say what is known already: it is not made.
"""

from __future__ import annotations

from dataclasses import dataclass

from knapper.isa.instructions import BALLOT, EXIT, FADD, FDIV, FMUL, FSETP, MOV, SEL, SHFL, UIDIV
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, FloatType, MinMax, Shuffle

from ..builder import KernelBuilder, VPred, VReg, VUReg
from ..generator import Emitted
from ..matrix.code import (
    Number,
    add,
    block_index,
    fixed,
    lane_id,
    move_base,
    mul,
    param,
    special,
    uadd,
    ucompare,
    umov,
    umul,
)
from ..scalar import SCALAR, arith, compare, constant, extreme, f32
from .boxes import NOBODY, Suppression, counting, lane_compare, load_word, store_word

WARPS = 4
"""Of a block; they are neighbouring columns of words."""
PAIR = 32
"""Instructions a pair of boxes, counted in the code below."""


minus = SCALAR["Sub"]


@dataclass(frozen=True)
class Extent:
    """A lane's box: where it begins and ends on two axes, and its area. Without a box all are 0, and nothing overlaps it."""

    low: tuple[VReg, VReg]
    high: tuple[VReg, VReg]
    area: VReg

    def of_lane(self, b: KernelBuilder, lane: VUReg) -> Extent:
        """The box of another lane, in all lanes."""
        (a, c), (d, e), f = self.low, self.high, self.area
        a, c, d, e, f = (_from(b, x, lane) for x in (a, c, d, e, f))
        return Extent((a, c), (d, e), f)


def emit(p: Suppression, name: str, machine: Machine, role: int) -> Emitted:
    """A block is four words of 32 rows of a list."""
    s = p.sizes
    b = KernelBuilder("nms_overlap", (32 * WARPS, 1, 1), machine)
    b.role(role)
    names = [f"{name}.order", p.boxes.value, f"{name}.bits", *([p.iou.value] if p.iou else [])]
    order, boxes, bits, *more = (param(b, i) for i in range(len(names)))
    columns = -(-s.words // WARPS)
    word = uadd(b, umul(b, block_index(b, SR.CTAID_X, columns), WARPS), special(b, SR.WARPID))
    rows, row_list = block_index(b, SR.CTAID_Y, s.words), block_index(b, SR.CTAID_Z, s.lists)
    _leave(b, umov(b, word), rows, s.words)
    move_base(b, order, umul(b, row_list, 4 * s.boxes))
    move_base(b, boxes, umul(b, _image(b, row_list, s.classes), 4 * p.boxes.bytes * s.boxes))
    move_base(b, bits, umul(b, row_list, 4 * s.boxes * s.words))
    lane = lane_id(b)
    row = add(b, lane, umul(b, rows, 32))
    column = add(b, lane, umul(b, word, 32))
    most = p.iou.load(b, more[0]) if p.iou else constant(b, 0.0)
    mine = _words(
        b, _extent(b, p, order, boxes, row), _extent(b, p, order, boxes, column), most, lane
    )
    at = add(b, mul(b, row, 4 * s.words), umul(b, word, 4))
    store_word(b, bits, at, mine, lane_compare(b, Cmp.LT, row, s.boxes))
    b.emit(EXIT)
    uses = dict.fromkeys(names, "r") | {names[2]: "w"}
    return Emitted(b.finish(), (columns, s.words, s.lists), tuple(names), uses, ())


def _leave(b: KernelBuilder, word: VUReg, rows: Number, words: int) -> None:
    """Warps beside the matrix, and left of its diagonal, have nothing to do."""
    for cmp, limit in ((Cmp.GE, words), (Cmp.LT, rows)):
        if limit != 0 or cmp is not Cmp.LT:
            b.emit(EXIT, guard=ucompare(b, cmp, word, limit))


def _image(b: KernelBuilder, row_list: Number, classes: int) -> Number:
    """The image whose boxes a list has."""
    if isinstance(row_list, int) or classes == 1:
        return row_list
    d = b.ureg()
    b.emit(UIDIV, d, row_list, classes)
    return d


def _extent(b: KernelBuilder, p: Suppression, order: VUReg, boxes: VUReg, place: VReg) -> Extent:
    """The box at a place of the order."""
    index = fixed(b, NOBODY)
    inside = lane_compare(b, Cmp.LT, place, p.sizes.boxes)
    b.emit(MOV, index, load_word(b, order, mul(b, place, 4), inside), guard=inside)
    there = lane_compare(b, Cmp.NE, index, NOBODY)
    at = mul(b, index, 4 * p.boxes.bytes)
    raw = [p.boxes.load(b, boxes, at, i * p.boxes.bytes, there) for i in range(4)]
    sides = [(_centered if p.centered else _cornered)(b, raw[i], raw[i + 2]) for i in (0, 1)]
    (low, high), (low2, high2) = sides
    area = arith(b, FMUL, minus(b, high, low), minus(b, high2, low2))
    return Extent((low, low2), (high, high2), area)


def _cornered(b: KernelBuilder, x: VReg, y: VReg) -> tuple[VReg, VReg]:
    """Begin and end of a side between two corners."""
    return extreme(b, MinMax.MIN, x, y), extreme(b, MinMax.MAX, x, y)


def _centered(b: KernelBuilder, middle: VReg, size: VReg) -> tuple[VReg, VReg]:
    """Begin and end of a side of a size around a middle."""
    half = arith(b, FMUL, size, f32(0.5))
    return minus(b, middle, half), arith(b, FADD, middle, half)


def _words(b: KernelBuilder, rows: Extent, column: Extent, most: VReg, lane: VReg) -> VReg:
    """Row by row the ballot of the columns; lane i keeps row i's."""
    mine, found = fixed(b, 0), b.reg()
    with counting(b, 32) as i:
        b.emit(BALLOT, found, _overlaps(b, rows.of_lane(b, i), column, most))
        b.emit(SEL, Bits32._32, mine, found, mine, lane_compare(b, Cmp.EQ, lane, i))
    return mine


def _overlaps(b: KernelBuilder, x: Extent, y: Extent, most: VReg) -> VPred:
    """Whether two boxes share more than `most` of their union; one without area shares nothing."""
    low = [extreme(b, MinMax.MAX, u, v) for u, v in zip(x.low, y.low, strict=True)]
    high = [extreme(b, MinMax.MIN, u, v) for u, v in zip(x.high, y.high, strict=True)]
    shared = arith(b, FMUL, minus(b, high[0], low[0]), minus(b, high[1], low[1]))
    union = minus(b, arith(b, FADD, x.area, y.area), shared)
    p = compare(b, Cmp.GT, arith(b, FDIV, shared, union), most)
    zero = f32(0.0)
    for u, v in (
        (high[0], low[0]),
        (high[1], low[1]),
        (shared, zero),
        (x.area, zero),
        (y.area, zero),
        (union, zero),
    ):
        b.emit(FSETP, Cmp.GT, FloatType.F32, p, u, v, guard=p)
    return p


def _from(b: KernelBuilder, x: VReg, lane: VUReg) -> VReg:
    d = b.reg()
    b.emit(SHFL, Shuffle.IDX, d, x, lane)
    return d
