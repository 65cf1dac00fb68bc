"""What several families share: modifiers turned into functions of lanes, operand sizes, register arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from ..lanes import U16, U32, LaneType, Value, bitcast, convert, maximum, minimum, shl, shr
from ..modifiers import Cmp, Logic, MinMax
from ..operands import Reg, Src

COMPARE: dict[Cmp, Callable[[Value, Value], Value]] = {
    Cmp.EQ: operator.eq,
    Cmp.NE: operator.ne,
    Cmp.LT: operator.lt,
    Cmp.LE: operator.le,
    Cmp.GT: operator.gt,
    Cmp.GE: operator.ge,
}
LOGIC: dict[Logic, Callable[[Value, Value], Value]] = {
    Logic.AND: operator.and_,
    Logic.OR: operator.or_,
    Logic.XOR: operator.xor,
}


def compare(cmp: Cmp, a: Value, b: Value) -> Value:
    """Booleans: a cmp b. With a NaN only NE holds."""
    return COMPARE[cmp](a, b)


def logic(op: Logic, a: Value, b: Value) -> Value:
    """a op b, bit by bit."""
    return LOGIC[op](a, b)


def extreme(op: MinMax, a: Value, b: Value) -> Value:
    """The smaller or the larger."""
    return minimum(a, b) if op is MinMax.MIN else maximum(a, b)


def by_width(i: Any) -> int:
    """Registers that an operand of a `.32` or `.64` instruction takes."""
    return int(i.width.lane.bits) // 32


def by_access(i: Any) -> int:
    """Registers that a load or store moves."""
    return int(i.width.words)


def nth(reg: Reg, i: int) -> Reg:
    """The i-th register of a tuple; RZ stays RZ."""
    return reg if reg == 255 else Reg(reg + i)


def halves(word: Value, type: LaneType) -> tuple[Value, Value]:
    """The low and the high 16 bits of each U32."""
    return bitcast(convert(word, U16), type), bitcast(convert(shr(word, 16), U16), type)


def join(low: Value, high: Value) -> Value:
    """Two 16-bit values → one U32."""
    low, high = (convert(bitcast(x, U16), U32) for x in (low, high))
    return low | shl(high, 16)


def packed(m: Any, type: LaneType, a: Reg, b: Src, f: Callable[[Value, Value], Value]) -> Value:
    """f on both halves of a and b."""
    (a0, a1), (b0, b1) = halves(m.read(a, U32), type), halves(m.source(b, U32), type)
    return join(f(a0, b0), f(a1, b1))
