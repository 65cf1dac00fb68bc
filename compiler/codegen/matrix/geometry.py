"""Which thread carries which piece of a tile from global to shared memory.

A move is one load and one store a thread: `v` neighbouring elements of a row. Its place in the tile is a part that depends on the thread, kept in
registers, plus a part that is known now, so that addresses of all moves follow from a handful of registers.

    row = thread's row + move.row        col = thread's col + move.col        shared address = thread's place + move.place
"""

from __future__ import annotations

from dataclasses import dataclass

from knapper.isa.instructions import ISETP
from knapper.isa.modifiers import Cmp

from ..builder import KernelBuilder, VPred, VReg, VUReg
from .code import S32, add, divmod_, lane_id, mul, thread_id, ucompare, udivmod, umul

FRAGMENT = 512
"""Bytes of a 16×16 fragment of 16-bit elements. In shared memory its rows lie without a gap, so no access conflicts."""


@dataclass(frozen=True)
class Move:
    """The fixed part of a move: row, first column, bytes in the shared tile. `guard` names who takes part; None: everyone."""

    row: int
    col: int
    place: int
    guard: VPred | None = None


@dataclass(frozen=True)
class Geometry:
    """All moves of a thread for one tile of one operand, and the parts that depend on the thread."""

    v: int
    moves: tuple[Move, ...]
    row: VReg
    col: VReg
    place: VReg


def spread(rows: int, cols: int, warps: int) -> bool:
    """Whether `warps` warps can carry rows × cols fragments as `fragments` does it."""
    return rows % warps == 0 or warps % rows == 0


def fragments(
    b: KernelBuilder, rows: int, cols: int, v: int, warps: int, warp: VUReg | int
) -> Geometry:
    """rows × cols fragments of 16 × 16, one a warp at a time, fragment (r, c) at place c · rows + r; v of 16 bits a lane.

    A warp carries a fragment in 8 / v moves: lane l takes chunk l % (16 / v) of row l // (16 / v), then 2v rows further down.
    """
    lane = lane_id(b)
    chunks = 16 // v
    row, chunk = divmod_(b, lane, chunks)
    col = mul(b, chunk, v)
    place = mul(b, lane, 2 * v)
    if not isinstance(warp, int):
        down, across = (warp, 0) if rows % warps == 0 else udivmod(b, warp, rows)[::-1]
        row, col = add(b, row, umul(b, down, 16)), add(b, col, umul(b, across, 16))
        place = add(b, place, umul(b, warp, FRAGMENT))
    turns = max(rows // warps, 1)
    last = _short(b, rows * cols, warps, warp)
    moves = []
    for i in range(-(-rows * cols // warps)):
        r, c = 16 * warps * (i % turns), 16 * (i // turns) * max(warps // rows, 1)
        guard = last if (i + 1) * warps > rows * cols else None
        moves += [
            Move(r + 2 * v * s, c, i * warps * FRAGMENT + 64 * v * s, guard) for s in range(8 // v)
        ]
    return Geometry(v, tuple(moves), row, col, place)


def _short(b: KernelBuilder, count: int, warps: int, warp: VUReg | int) -> VPred | None:
    """The warps that have a fragment left in the last turn, if not all have."""
    if count % warps == 0 or isinstance(warp, int):
        return None
    return ucompare(b, Cmp.LT, warp, count % warps)


def _below(b: KernelBuilder, row: VReg, limit: int) -> VPred:
    """The threads whose row is one of the first `limit`."""
    p = b.pred()
    b.emit(ISETP, Cmp.LT, S32, p, row, limit)
    return p


def turns(rows: int, cols: int, v: int, threads: int) -> int:
    """Moves of a thread that `grid` makes."""
    chunks = cols // v
    return rows * (chunks // threads) if chunks >= threads else -(-rows // (threads // chunks))


def grid(
    b: KernelBuilder, rows: int, cols: int, v: int, threads: int, pitch: int, size: int
) -> Geometry:
    """A tile in plain rows of `pitch` bytes, threads side by side along the columns; elements take `size` bytes in shared memory."""
    tid, chunks = thread_id(b), cols // v
    if chunks >= threads:
        row, chunk = mul(b, tid, 0), tid
        across, step = chunks // threads, 1
    else:
        row, chunk = divmod_(b, tid, chunks)
        across, step = 1, threads // chunks
    col = mul(b, chunk, v)
    place = mul(b, row, pitch, mul(b, col, size))
    moves = []
    most = _below(b, row, step) if threads % chunks and chunks < threads else None
    last = _below(b, row, rows % step) if rows % step else None
    for r in range(0, rows, step):
        guard = last if r + step > rows else most
        moves += [
            Move(r, c * threads * v, r * pitch + c * threads * v * size, guard)
            for c in range(across)
        ]
    return Geometry(v, tuple(moves), row, col, place)
