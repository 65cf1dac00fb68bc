"""Operands of bytes that lie across: k runs down the rows in memory, and must run along them in a fragment.

    memory, 4 rows of k          a lane: four words,                   its fragment, 16 rows of 32 bytes
    n n n n … │ k                4 × 4 bytes turned in registers         row n: k k k k …
    n n n n … │ k + 1            ────────────────────────────►           row n + 1: k k k k …

A warp carries a fragment in four loads and four stores: lane l has k 4 (l % 8) … + 3 of rows 4 (l // 8) … + 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from knapper.isa.instructions import LOP, PACK2, SHF
from knapper.isa.modifiers import Bits32, Direction, Logic

from ..builder import PT, KernelBuilder, VReg, VUReg
from .code import U32, add, divmod_, lane_id, mul, udivmod, umul
from .geometry import FRAGMENT, ROW, Geometry, Move, dealt, short

FOUR = 4
"""Bytes of a word, and words that are turned together."""
EVEN, ODD, HIGH = 0x00FF00FF, 0xFF00FF00, 0xFFFF0000
OPERATIONS = 22
"""Instructions that turn four words."""


def geometry(
    b: KernelBuilder, rows: int, cols: int, warps: int, warp: VUReg | int
) -> tuple[Geometry, Geometry]:
    """Loads and stores of rows × cols fragments, fragment (r, c) at place c · rows + r. Of a load the row is k."""
    chunk, group = divmod_(b, lane_id(b), ROW // FOUR)
    across, down = mul(b, chunk, FOUR), mul(b, group, FOUR)
    place = mul(b, chunk, FOUR * ROW, down)
    height, width = dealt(rows, cols, warps)
    c, r = (0, 0) if isinstance(warp, int) else udivmod(b, warp, height) if width > 1 else (0, warp)
    across, down = add(b, across, umul(b, r, 16)), add(b, down, umul(b, c, ROW))
    place = add(b, place, umul(b, umul(b, c, rows, r), FRAGMENT))
    last_r, last_c = short(b, rows, height, r), short(b, cols, width, c)
    loads, stores = list[Move](), list[Move]()
    for j in range(0, cols, width):
        for i in range(0, rows, height):
            guard = last_r if i + height > rows else last_c if j + width > cols else None
            first = (j * rows + i) * FRAGMENT
            for n in range(FOUR):
                loads.append(Move(ROW * j + n, 16 * i, first, guard))
                stores.append(Move(16 * i + n, ROW * j, first + ROW * n, guard))
    return (
        Geometry(FOUR, tuple(loads), down, across, place),
        Geometry(FOUR, tuple(stores), across, down, place),
    )


def turned(b: KernelBuilder, moves: Sequence[Move], words: list[VReg]) -> list[VReg]:
    """Byte j of word i as byte i of word j, four words at a time, by those who move them."""
    found = list[VReg]()
    for i in range(0, len(words), FOUR):
        with b.under(moves[i].guard or PT):
            found += _four(b, words[i : i + FOUR])
    return found


def _four(b: KernelBuilder, words: list[VReg]) -> list[VReg]:
    """Bytes 0 and 2, 1 and 3 of two words side by side; then halves of these."""
    pairs = [_pair(b, *words[:2]), _pair(b, *words[2:])]
    low = [_packed(b, x, y) for x, y in zip(*pairs, strict=True)]
    high = [
        _or(b, _shifted(b, Direction.R, x, 16), _masked(b, y, HIGH))
        for x, y in zip(*pairs, strict=True)
    ]
    return [low[0], low[1], high[0], high[1]]


def _pair(b: KernelBuilder, x: VReg, y: VReg) -> tuple[VReg, VReg]:
    """Bytes x0 y0 x2 y2, and x1 y1 x3 y3."""
    even = mul(b, _masked(b, y, EVEN), 1 << 8, _masked(b, x, EVEN))
    odd = _or(b, _masked(b, _shifted(b, Direction.R, x, 8), EVEN), _masked(b, y, ODD))
    return even, odd


def _masked(b: KernelBuilder, x: VReg, mask: int) -> VReg:
    d = b.reg()
    b.emit(LOP, Logic.AND, Bits32._32, d, x, mask)
    return d


def _or(b: KernelBuilder, x: VReg, y: VReg) -> VReg:
    d = b.reg()
    b.emit(LOP, Logic.OR, Bits32._32, d, x, y)
    return d


def _shifted(b: KernelBuilder, way: Direction, x: VReg, by: int) -> VReg:
    d = b.reg()
    b.emit(SHF, way, U32, d, x, by)
    return d


def _packed(b: KernelBuilder, x: VReg, y: VReg) -> VReg:
    """The low half of x, and that of y above it."""
    d = b.reg()
    b.emit(PACK2, d, x, y)
    return d
