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
from .code import S32, Number, add, divmod_, lane_id, mul, thread_id, ucompare, udivmod, umul

FRAGMENT = 512
"""Bytes of a 16×16 fragment of 16-bit elements, or of 16×32 bytes. In shared memory its rows lie without a gap, so no access conflicts."""
ROW = 32
"""Bytes of its rows."""


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


def dealt(rows: int, cols: int, warps: int) -> tuple[int, int]:
    """How many of `warps` warps take fragments below each other, and how many take columns of them, one fragment each at a time.

    Such that the tile takes the fewest turns, and of these the one with the fewest down the rows; not both are ragged.
    """
    ways = ((down, warps // down) for down in range(warps, 0, -1) if warps % down == 0)
    even = ((d, a) for d, a in ways if rows % d == 0 or cols % a == 0)
    return min(even, key=lambda way: -(-rows // way[0]) * -(-cols // way[1]))


def fragments(
    b: KernelBuilder, rows: int, cols: int, v: int, warps: int, warp: VUReg | int, size: int = 2
) -> Geometry:
    """rows × cols fragments of 16 rows, one a warp at a time, fragment (r, c) at place c · rows + r; v elements of `size` bytes a lane.

    With n = v · size bytes a lane a warp carries a fragment in 16 / n moves: lane l takes chunk l % (32 / n) of row l // (32 / n), then n
    rows further down.
    """
    lane, n, across = lane_id(b), v * size, ROW // size
    row, chunk = divmod_(b, lane, ROW // n)
    col = mul(b, chunk, v)
    place = mul(b, lane, n)
    down, side = dealt(rows, cols, warps)
    c, r = (0, 0) if isinstance(warp, int) else udivmod(b, warp, down) if side > 1 else (0, warp)
    row, col = add(b, row, umul(b, r, 16)), add(b, col, umul(b, c, across))
    first = warp if down == rows or side == 1 else umul(b, c, rows, r)
    place = add(b, place, umul(b, first, FRAGMENT))
    last_r, last_c = short(b, rows, down, r), short(b, cols, side, c)
    moves = []
    for j in range(0, cols, side):
        for i in range(0, rows, down):
            guard = last_r if i + down > rows else last_c if j + side > cols else None
            moves += [
                Move(16 * i + n * s, across * j, (j * rows + i) * FRAGMENT + ROW * n * s, guard)
                for s in range(16 // n)
            ]
    return Geometry(v, tuple(moves), row, col, place)


def short(b: KernelBuilder, count: int, at_once: int, number: Number) -> VPred | None:
    """Of warps that take `at_once` at a time those that have one left in the last turn, if not all have."""
    if count % at_once == 0 or isinstance(number, int):
        return None
    return ucompare(b, Cmp.LT, number, count % at_once)


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
