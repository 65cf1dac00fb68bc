"""The walk down a list: the best box that nothing chosen suppresses is chosen, until there are enough.

A warp a list. Which boxes are out is a bit set in shared memory, a word for 32 boxes of the order:

    for each word k:    alive = boxes there ∧ ¬out[k]
        while alive:    i = lowest bit;  choose it;  out ∨= its row of bits;  alive ∧= ¬out[k], without i

Lowest first, and a row strikes out later boxes only, so nothing is looked at twice.
"""

from __future__ import annotations

from knapper.isa.instructions import BALLOT, BRA, BREV, EXIT, FLO, IADD, LOP, SHF, SHFL
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, Direction, Logic, Shuffle

from ..builder import KernelBuilder, VLabel, VPred, VReg, VUReg
from ..generator import Emitted
from ..matrix.code import S32, U32, add, block_index, fixed, lane_id, move_base, mul, param, umul
from .boxes import (
    NOBODY,
    Suppression,
    both,
    counting,
    lane_compare,
    load_shared,
    load_word,
    store_shared,
    store_word,
)

STEP = 60
"""Cycles of a step beside its load: the dependent instructions below, at their latencies."""


def emit(p: Suppression, name: str, machine: Machine, role: int) -> Emitted:
    """A warp a list."""
    return _Walk(p, name, machine, role).emit()


class _Walk:
    """One launch being emitted."""

    def __init__(self, p: Suppression, name: str, machine: Machine, role: int) -> None:
        self.s, self.name = p.sizes, name
        self.b = KernelBuilder("nms_pick", (32, 1, 1), machine)
        self.b.role(role)
        self.b.shared(4 * self.s.words)

    def emit(self) -> Emitted:
        b, s = self.b, self.s
        names = [f"{self.name}.{k}" for k in ("order", "bits", "chosen", "counts")]
        self.order, self.bits, self.chosen, self.counts = (param(b, i) for i in range(4))
        row_list = block_index(b, SR.CTAID_X, s.lists)
        sizes = (s.boxes, s.boxes * s.words, s.kept, 1)
        for base, n in zip((self.order, self.bits, self.chosen, self.counts), sizes, strict=True):
            move_base(b, base, umul(b, row_list, 4 * n))
        self.lane, self.count = lane_id(b), fixed(b, 0)
        self.first = lane_compare(b, Cmp.EQ, self.lane, 0)
        for first in range(0, s.words, 32):
            at, inside = self._word(first)
            store_shared(b, mul(b, at, 4), fixed(b, 0), inside)
        end = b.label()
        with counting(b, s.words) as k:
            self._boxes(k, end)
        b.place(end)
        store_word(b, self.counts, fixed(b, 0), self.count, self.first)
        b.emit(EXIT)
        uses = dict(zip(names, ("r", "r", "w", "w"), strict=True))
        return Emitted(b.finish(), (s.lists, 1, 1), tuple(names), uses, ())

    def _word(self, first: int) -> tuple[VReg, VPred]:
        """The lane's word from the first on, and whether there is one."""
        at = add(self.b, self.lane, first)
        return at, lane_compare(self.b, Cmp.LT, at, self.s.words)

    def _boxes(self, k: VUReg, end: VLabel) -> None:
        """The 32 boxes of one word."""
        b, s = self.b, self.s
        place, index = b.reg(), fixed(b, NOBODY)
        b.emit(IADD, S32, place, self.lane, umul(b, k, 32))
        inside = lane_compare(b, Cmp.LT, place, s.boxes)
        b.emit(
            IADD, S32, index, load_word(b, self.order, mul(b, place, 4), inside), 0, guard=inside
        )
        alive = b.reg()
        b.emit(BALLOT, alive, lane_compare(b, Cmp.NE, index, NOBODY))
        self._strike(alive, k)
        loop, done = b.label(), b.label()
        b.place(loop)
        b.emit(BRA, done, guard=lane_compare(b, Cmp.EQ, alive, 0))
        self._choose(alive, index, k)
        b.emit(BRA, end, guard=lane_compare(b, Cmp.GE, self.count, s.kept))
        b.emit(BRA, loop)
        b.place(done)

    def _strike(self, alive: VReg, k: VUReg) -> None:
        """alive ∧= ¬out[k]."""
        b, out = self.b, load_shared(self.b, fixed(self.b, umul(self.b, k, 4)))
        b.emit(LOP, Logic.XOR, Bits32._32, out, out, -1)
        b.emit(LOP, Logic.AND, Bits32._32, alive, alive, out)

    def _choose(self, alive: VReg, index: VReg, k: VUReg) -> None:
        """Take the lowest box that is alive."""
        b, turned, i, box = self.b, self.b.reg(), self.b.reg(), self.b.reg()
        b.emit(BREV, turned, alive)
        b.emit(FLO, i, turned)
        b.emit(SHFL, Shuffle.IDX, box, index, i)
        store_word(b, self.chosen, mul(b, self.count, 4), box, self.first)
        b.emit(IADD, S32, self.count, self.count, 1)
        self._mark(i, k)
        one, bit = fixed(b, 1), b.reg()
        b.emit(SHF, Direction.L, U32, bit, one, i)
        b.emit(LOP, Logic.XOR, Bits32._32, alive, alive, bit)
        self._strike(alive, k)

    def _mark(self, i: VReg, k: VUReg) -> None:
        """out ∨= the bits of box i of word k: those words that are on and right of the diagonal."""
        b, row = self.b, self.b.reg()
        b.emit(IADD, S32, row, i, umul(b, k, 32))
        start = mul(b, row, 4 * self.s.words)
        for first in range(0, self.s.words, 32):
            at, inside = self._word(first)
            right = lane_compare(b, Cmp.GE, at, k)
            made = both(b, inside, right)
            offset = mul(b, at, 4)
            bits = load_word(b, self.bits, add(b, start, offset), made)
            out = load_shared(b, offset, guard=made)
            b.emit(LOP, Logic.OR, Bits32._32, out, out, bits, guard=made)
            store_shared(b, offset, out, made)
