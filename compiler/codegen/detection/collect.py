"""The rows of the result: (image, class, box) of every list one after the other, zeros behind, and how many they are."""

from __future__ import annotations

from knapper.isa.instructions import EXIT, IADD, ISETP, MOV, STG
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Cmp, Width

from ..builder import KernelBuilder, VPred, VReg, VUReg
from ..generator import Emitted
from ..matrix.code import S32, add, block_index, divmod_, fixed, mul, param, thread_id, umul
from .boxes import Suppression, counting, lane_compare, load_word

THREADS = 128
ROW = 24
"""Bytes of three i64."""


def emit(p: Suppression, name: str, machine: Machine, role: int) -> Emitted:
    """A thread for each row that there can be: the k-th box of a list, and what stands in that row if nothing does."""
    return _Rows(p, name, machine, role).emit()


class _Rows:
    """One launch being emitted."""

    def __init__(self, p: Suppression, name: str, machine: Machine, role: int) -> None:
        self.p, self.s, self.name = p, p.sizes, name
        self.b = KernelBuilder("nms_collect", (THREADS, 1, 1), machine)
        self.b.role(role)

    def emit(self) -> Emitted:
        b, s = self.b, self.s
        read = [f"{self.name}.{k}" for k in ("chosen", "counts")] if s.bound else []
        written = [v for v in (self.p.rows if s.bound else "", self.p.number) if v]
        names = [*read, *written]
        bases = dict(zip(names, (param(b, i) for i in range(len(names))), strict=True))
        blocks = max(-(-s.bound // THREADS), 1)
        thread = add(b, thread_id(b), umul(b, block_index(b, SR.CTAID_X, blocks), THREADS))
        total = self._rows(thread, bases) if s.bound else fixed(b, 0)
        if self.p.number:
            self._store(
                bases[self.p.number], fixed(b, 0), 0, total, lane_compare(b, Cmp.EQ, thread, 0)
            )
        b.emit(EXIT)
        uses = dict.fromkeys(read, "r") | dict.fromkeys(written, "w")
        return Emitted(b.finish(), (blocks, 1, 1), tuple(names), uses, ())

    def _rows(self, thread: VReg, bases: dict[str, VUReg]) -> VReg:
        """Store the thread's two rows, each if it is to be; gives the number of all."""
        b, s = self.b, self.s
        row_list, k = divmod_(b, thread, s.kept)
        before, own, total = self._counted(row_list, bases[f"{self.name}.counts"])
        if self.p.rows:
            there, inside = b.pred(), lane_compare(b, Cmp.LT, thread, s.bound)
            b.emit(ISETP, Cmp.LT, S32, there, k, own)
            box = load_word(b, bases[f"{self.name}.chosen"], mul(b, thread, 4), there)
            at = mul(b, add(b, before, k), ROW)
            image, kind = divmod_(b, row_list, s.classes)
            for i, x in enumerate((image, kind, box)):
                self._store(bases[self.p.rows], at, 8 * i, x, there)
            b.emit(ISETP, Cmp.GE, S32, inside, thread, total, guard=inside)
            for i in range(3):
                self._store(bases[self.p.rows], mul(b, thread, ROW), 8 * i, fixed(b, 0), inside)
        return total

    def _counted(self, row_list: VReg, counts: VUReg) -> tuple[VReg, VReg, VReg]:
        """Boxes of the lists before the thread's, of its own, of all."""
        b = self.b
        before, own, total = (fixed(b, 0) for _ in range(3))
        with counting(b, self.s.lists) as i:
            count = load_word(b, counts, fixed(b, umul(b, i, 4)))
            b.emit(IADD, S32, total, total, count)
            b.emit(IADD, S32, before, before, count, guard=lane_compare(b, Cmp.GT, row_list, i))
            b.emit(MOV, own, count, guard=lane_compare(b, Cmp.EQ, row_list, i))
        return before, own, total

    def _store(self, base: VUReg, at: VReg, offset: int, x: VReg, guard: VPred) -> None:
        """A number that is not negative, as i64."""
        b, wide = self.b, self.b.reg(2)
        with b.under(guard):
            b.emit(MOV, wide[0], x)
            b.emit(MOV, wide[1], 0)
            b.emit(STG, Width._64, base, at, offset, wide)
