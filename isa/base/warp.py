"""Between the lanes of a warp: shuffles and votes."""

from __future__ import annotations

from typing import Any

from ..core import Instr
from ..lanes import U32, Value, select
from ..modifiers import Shuffle, Vote
from ..operands import READ, WRITE, Guard, Pred, Reg, Src, Unsigned, bits

SEGMENTS = tuple(map(Unsigned, (1, 2, 4, 8, 16, 32)))


class SHFL(Instr, opcode=0x070, unit="lsu_shared"):
    """d = a of another lane of the segment: lane b (IDX), b below (UP), b above (DOWN), or with the bits of b flipped (BFLY).

    A segment is `segment` lanes, a power of two. IDX takes b modulo the segment; where the other modes would leave the
    segment a lane gets its own a. A source lane need not be active: its register is read all the same.
    """

    mode: Shuffle = bits(15, 14)
    d: Reg = bits(33, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ)
    b: Src = bits(97, 64, use=READ)
    segment: Unsigned = bits(109, 104, only=SEGMENTS, default=Unsigned(32))

    def execute(self, m: Any) -> None:
        m.write(
            self.d, m.shuffle(m.read(self.a, U32), self.origin(m.lane(), m.source(self.b, U32)))
        )

    def origin(self, lane: Value, b: Value) -> Value:
        """The lane that each lane reads."""
        last = int(self.segment) - 1
        place = lane & last
        if self.mode is Shuffle.IDX:
            return (lane - place) | (b & last)
        if self.mode is Shuffle.UP:
            return select(b <= place, lane - b, lane)
        if self.mode is Shuffle.DOWN:
            return select(b <= last - place, lane + b, lane)
        return select(b <= last, lane ^ b, lane)


class VOTE(Instr, opcode=0x071, unit="alu"):
    """d = whether p holds in all, or in any, of the active lanes."""

    mode: Vote = bits(14)
    d: Pred = bits(28, 26, use=WRITE)
    p: Guard = bits(37, 34, use=READ)

    def execute(self, m: Any) -> None:
        votes = m.ballot(m.predicate(self.p))
        m.set_predicate(
            self.d, votes == m.ballot(m.active()) if self.mode is Vote.ALL else votes != 0
        )


class BALLOT(Instr, opcode=0x072, unit="alu"):
    """d = the active lanes where p holds, bit i for lane i."""

    d: Reg = bits(33, 26, use=WRITE)
    p: Guard = bits(37, 34, use=READ)

    def execute(self, m: Any) -> None:
        m.write(self.d, m.ballot(m.predicate(self.p)))
