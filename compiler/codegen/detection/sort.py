"""The order of the boxes of a list: best score first, of equal ones the lower index.

A block holds a list in shared memory as 64-bit keys and sorts them with Batcher's bitonic network, so that the work does not
depend on the data. A key orders as an unsigned number:

    63        the score, turned so that a greater float is a smaller number       32 31        index of the box         0
    a box that may not be chosen has all bits of the upper half set: it comes last
"""

from __future__ import annotations

from knapper.isa.instructions import (
    BAR,
    BRA,
    EXIT,
    FADD,
    FSETP,
    IADD,
    ISETP,
    ISUB,
    LOP,
    MOV,
    PLOP,
    SEL,
    SHF,
    UIADD,
    USHF,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, Direction, FloatType, IntType, Logic

from ..builder import KernelBuilder, VPred, VReg, VUReg
from ..generator import Emitted
from ..matrix.code import (
    S32,
    U32,
    add,
    block_index,
    move_base,
    mul,
    param,
    thread_id,
    ucompare,
    umov,
    umul,
)
from ..scalar import arith, f32
from .boxes import (
    NOBODY,
    Sizes,
    Suppression,
    both,
    lane_compare,
    load_shared,
    store_shared,
    store_word,
)

KEY = 8
"""Bytes of a key."""
THREADS = 512
"""Of a block, at most."""
EXCHANGE, BARRIER = 24, 30
"""Instructions of a compare-exchange with its addresses; cycles to wait for the slowest warp (counted in the code below, estimated)."""
SIGN = 0x80000000


def length(s: Sizes) -> int:
    """Keys of a list: a power of two, so many that each of 32 lanes has a pair."""
    return max(64, 1 << (s.boxes - 1).bit_length())


def passes(s: Sizes) -> int:
    """Steps of the network: log₂ n (log₂ n + 1) / 2.

    >>> passes(Sizes(1, 1, 1000, 1))
    55
    """
    depth = length(s).bit_length() - 1
    return depth * (depth + 1) // 2


def shared_bytes(s: Sizes) -> int:
    """Of a list's keys."""
    return KEY * length(s)


def emit(p: Suppression, name: str, machine: Machine, role: int) -> Emitted:
    """A block a list."""
    s = p.sizes
    threads = min(THREADS, length(s) // 2)
    b = KernelBuilder("nms_sort", (threads, 1, 1), machine)
    b.role(role)
    b.shared(shared_bytes(s))
    names = [p.scores.value, f"{name}.order", *([p.least.value] if p.least else [])]
    bases = [param(b, i) for i in range(len(names))]
    row = block_index(b, SR.CTAID_X, s.lists)
    for base, size in zip(bases[:2], (p.scores.bytes, 4), strict=True):
        move_base(b, base, umul(b, row, size * s.boxes))
    thread = thread_id(b)
    least = p.least.load(b, bases[2]) if p.least else None
    for first in range(0, length(s), threads):
        _fill(b, p, bases[0], add(b, thread, first), least)
    _network(b, length(s), thread, threads)
    for first in range(0, s.boxes, threads):
        _put(b, s, bases[1], add(b, thread, first))
    b.emit(EXIT)
    uses = dict.fromkeys(names, "r") | {names[1]: "w"}
    return Emitted(b.finish(), (s.lists, 1, 1), tuple(names), uses, ())


def _fill(b: KernelBuilder, p: Suppression, scores: VUReg, i: VReg, least: VReg | None) -> None:
    """The i-th key."""
    inside = lane_compare(b, Cmp.LT, i, p.sizes.boxes)
    score = p.scores.load(b, scores, mul(b, i, p.scores.bytes), guard=inside)
    score = arith(b, FADD, score, f32(0.0))  # -0 becomes +0: they are equal scores
    may = _may(b, score, inside, least)
    key = b.reg(2)
    b.emit(MOV, key[0], i)
    b.emit(SEL, Bits32._32, key[1], _falling(b, score), NOBODY, may)
    store_shared(b, mul(b, i, KEY), key)


def _may(b: KernelBuilder, score: VReg, inside: VPred, least: VReg | None) -> VPred:
    """Whether a box may be chosen: it is there, and its score is a number, or above the threshold."""
    enough = b.pred()
    if least is None:
        b.emit(FSETP, Cmp.EQ, FloatType.F32, enough, score, score)
    else:
        b.emit(FSETP, Cmp.GT, FloatType.F32, enough, score, least)
    return both(b, enough, inside)


def _falling(b: KernelBuilder, score: VReg) -> VReg:
    """A float's bits such that unsigned numbers fall as floats rise: negative ones as they are, of others all but the sign flipped."""
    negative, flips, d = b.reg(), b.reg(), b.reg()
    b.emit(SHF, Direction.R, IntType.S32, negative, score, 31)
    b.emit(LOP, Logic.OR, Bits32._32, flips, negative, SIGN)
    b.emit(LOP, Logic.XOR, Bits32._32, flips, flips, -1)
    b.emit(LOP, Logic.XOR, Bits32._32, d, score, flips)
    return d


def _network(b: KernelBuilder, n: int, thread: VReg, threads: int) -> None:
    """For runs of 2, 4, … n keys: compare and exchange at half that distance, a quarter, … 1."""
    run, distance = umov(b, 2), b.ureg()
    outer, inner = b.label(), b.label()
    b.place(outer)
    b.emit(USHF, Direction.R, distance, run, 1)
    b.place(inner)
    b.emit(BAR, 0)
    for first in range(0, n // 2, threads):
        _exchange(b, add(b, thread, first), run, distance)
    b.emit(USHF, Direction.R, distance, distance, 1)
    b.emit(BRA, inner, guard=ucompare(b, Cmp.GT, distance, 0))
    b.emit(USHF, Direction.L, run, run, 1)
    b.emit(BRA, outer, guard=ucompare(b, Cmp.LE, run, n))
    b.emit(BAR, 0)


def _exchange(b: KernelBuilder, pair: VReg, run: VUReg, distance: VUReg) -> None:
    """Put the two keys of a pair in the order of their run: rising where bit `run` of their place is 0."""
    mask, low, place, other = b.ureg(), b.reg(), b.reg(), b.reg()
    b.emit(UIADD, Bits32._32, mask, distance, -1)
    b.emit(LOP, Logic.AND, Bits32._32, low, pair, mask)
    b.emit(ISUB, S32, place, mul(b, pair, 2), low)
    b.emit(IADD, S32, other, place, distance)
    x, y = (load_shared(b, mul(b, at, KEY), 2) for at in (place, other))
    bit, wrong, falls, swap = b.reg(), b.pred(), b.pred(), b.pred()
    b.emit(LOP, Logic.AND, Bits32._32, bit, place, run)
    b.emit(ISETP, Cmp.NE, U32, falls, bit, 0)
    b.emit(ISETP, Cmp.GT, IntType.U64, wrong, x, y)
    b.emit(PLOP, Logic.XOR, swap, wrong, falls)
    store_shared(b, mul(b, place, KEY), y, swap)
    store_shared(b, mul(b, other, KEY), x, swap)


def _put(b: KernelBuilder, s: Sizes, order: VUReg, i: VReg) -> None:
    """The i-th of the order: a box, or nobody."""
    inside = lane_compare(b, Cmp.LT, i, s.boxes)
    key = load_shared(b, mul(b, i, KEY), 2)
    box = b.reg()
    b.emit(SEL, Bits32._32, box, key[0], NOBODY, lane_compare(b, Cmp.NE, key[1], NOBODY))
    store_word(b, order, mul(b, i, 4), box, inside)
