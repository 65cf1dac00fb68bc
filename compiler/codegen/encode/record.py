"""A warp packs 32 positions × 32 channels into a record: lane = position, register = channel.

    ballot      a channel at a time: its bitmap, which the lane of that number keeps
    sums        over lanes: where each channel's values begin
    BMENC       a channel at a time into shared memory, each behind the one before
    copies      16 bytes a lane, as many as there are; header and entry

So memory sees whole sectors, and no more of them than values need.
"""

from __future__ import annotations

from collections.abc import Sequence

from knapper.isa.instructions import (
    BALLOT,
    BMENC,
    IMAD,
    ISETP,
    LDS,
    LOP,
    MOV,
    POPC,
    SEL,
    SHF,
    SHFL,
    STG,
    STS,
    UMOV,
)
from knapper.isa.modifiers import Bits32, Cmp, Direction, Logic, Memory, Shuffle, Width

from ...sparsity.bitmap import CHANNELS, CHUNK, HEADER, LINE, SEGMENT, SLOT, STARTS
from ..builder import RZ, KernelBuilder, VReg, VUReg
from ..matrix.code import S32, U32, Number, add, fixed, move_base, mul, umul

VALUES = SLOT - HEADER
"""Bytes in shared memory that a warp needs."""
STEP = 32 * CHUNK
"""Bytes that a warp moves at once."""
INSTRUCTIONS = 9 * CHANNELS + 60
"""Of a record, counted in the code below."""


def pack(
    b: KernelBuilder,
    lane: VReg,
    values: Sequence[VReg | None],
    stage: tuple[VUReg, int],
    buffer: tuple[VUReg, VUReg],
    record: Number,
) -> None:
    """Write record number `record` and its entry.

    `values`: by channel, in the low 16 bits; None: all are zero. `stage`: shared memory of the warp's own. `buffer`: the addresses of records
    and of entries.
    """
    word = _bitmaps(b, lane, values)
    starts, total = _starts(b, lane, word)
    base, offset = stage
    for i in range(VALUES // STEP):  # whole chunks are copied, the end of the last one, too
        b.emit(STS, Width._128, base, mul(b, lane, CHUNK), offset + STEP * i, _zeros(b))
    for c, v in enumerate(values):
        if v is not None:
            at, unused = b.reg(), b.reg()
            b.emit(SHFL, Shuffle.IDX, at, starts, c)
            b.emit(BMENC, Memory.S, unused, base, at, offset, v)
    _written(b, lane, word, starts, total, stage, buffer, record)


def _zeros(b: KernelBuilder) -> VReg:
    four = b.reg(4)
    for i in range(4):
        b.emit(MOV, four[i], RZ)
    return four


def _bitmaps(b: KernelBuilder, lane: VReg, values: Sequence[VReg | None]) -> VReg:
    """Lane c: the bitmap of channel c."""
    word = fixed(b, 0)
    for c, v in enumerate(values):
        if v is None:
            continue
        size, some, bitmap, mine, kept = b.reg(), b.pred(), b.reg(), b.pred(), b.reg()
        b.emit(LOP, Logic.AND, Bits32._32, size, v, 0x7FFF)
        b.emit(ISETP, Cmp.NE, S32, some, size, 0)
        b.emit(BALLOT, bitmap, some)
        b.emit(ISETP, Cmp.EQ, S32, mine, lane, c)
        b.emit(SEL, Bits32._32, kept, bitmap, word, mine)
        word = kept
    return word


def _starts(b: KernelBuilder, lane: VReg, word: VReg) -> tuple[VReg, VReg]:
    """Lane c: the byte where channel c's values begin. And in all lanes how many values there are."""
    count = b.reg()
    b.emit(POPC, count, word)
    until = count
    for n in (1, 2, 4, 8, 16):
        below, there, more = b.reg(), b.pred(), b.reg()
        b.emit(SHFL, Shuffle.UP, below, until, n)
        b.emit(ISETP, Cmp.GE, S32, there, lane, n)
        b.emit(SEL, Bits32._32, more, below, RZ, there)
        until = add(b, until, more)
    total, starts = b.reg(), b.reg()
    b.emit(SHFL, Shuffle.IDX, total, until, SEGMENT - 1)
    b.emit(IMAD, S32, starts, count, -1, until)
    return mul(b, starts, 2), total


def _written(
    b: KernelBuilder, lane: VReg, word: VReg, starts: VReg, total: VReg, stage: tuple[VUReg, int], buffer: tuple[VUReg, VUReg], record: Number
) -> None:  # fmt: skip
    records, entries = buffer
    base, offset = stage
    here, entry = b.ureg(2), b.ureg(2)
    _moved(b, here, records, umul(b, record, SLOT))
    _moved(b, entry, entries, umul(b, record, 4))
    b.emit(STG, Width._32, here, mul(b, lane, 4), 0, word)
    even, bit = b.pred(), b.reg()
    b.emit(LOP, Logic.AND, Bits32._32, bit, lane, 1)
    b.emit(ISETP, Cmp.EQ, S32, even, bit, 0)
    b.emit(STG, Width.U16, here, lane, STARTS, starts, guard=even)
    chunks, first, line = add(b, total, CHUNK // 2 - 1), b.pred(), umul(b, record, SLOT // LINE)
    b.emit(SHF, Direction.R, U32, chunks, chunks, (CHUNK // 2).bit_length() - 1)
    b.emit(ISETP, Cmp.EQ, S32, first, lane, 0)
    b.emit(STG, Width._32, entry, fixed(b, 0), 0, mul(b, fixed(b, line), 256, chunks), guard=first)
    at = mul(b, lane, CHUNK)
    for i in range(VALUES // STEP):
        p, d = b.pred(), b.reg(4)
        b.emit(ISETP, Cmp.LT, S32, p, lane, add(b, chunks, -32 * i))
        b.emit(LDS, Width._128, d, base, at, offset + STEP * i, guard=p)
        b.emit(STG, Width._128, here, at, HEADER + STEP * i, d, guard=p)


def _moved(b: KernelBuilder, d: VUReg, base: VUReg, by: Number) -> None:
    """d = base + by."""
    b.emit(UMOV, d[0], base[0])
    b.emit(UMOV, d[1], base[1])
    move_base(b, d, by)
