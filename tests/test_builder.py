"""KernelBuilder: what is written on virtual registers runs on physical ones, whatever was allocated and reordered in between."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thread_programs import MACHINE, S32, U32, Threads

from knapper.compiler.codegen import liveness, schedule
from knapper.compiler.codegen.builder import RZ, KernelBuilder, Not, VPred, VReg
from knapper.compiler.codegen.scalar import f32
from knapper.compiler.ir import Array
from knapper.isa.errors import CompileError
from knapper.isa.instructions import (
    BAR,
    BRA,
    BSSY,
    BSYNC,
    EXIT,
    FADD,
    HMMA,
    IADD,
    IMUL,
    ISETP,
    LDG,
    LDS,
    LOP,
    MOV,
    S2R,
    SEL,
    SHF,
    STG,
    STS,
    UIADD,
    UISETP,
    ULDC,
    UMOV,
)
from knapper.isa.modifiers import SR, Bits32, Cmp, Direction, FloatType, Half, IntType, Logic, Width
from knapper.isa.operands import Label, Reg


def column(x: Array, i: int) -> Array:
    return x[:, i].astype(np.uint32)


RANDOM = np.random.default_rng(0).integers(0, 1 << 32, (32, 8), np.uint32)


def test_a_value_survives_until_its_last_use() -> None:
    t = Threads(8)
    xs = [t.load(i) for i in range(8)]
    total = xs[0]
    for x in xs[1:]:
        new = t.b.reg()
        t.b.emit(IADD, S32, new, total, x)
        total = new
    t.store(0, total)
    t.store(1, xs[0])
    y, kernel = t.run(RANDOM)
    assert (y[:, 0] == RANDOM.sum(1, dtype=np.uint32)).all()
    assert (y[:, 1] == RANDOM[:, 0]).all()
    assert kernel.registers <= 12


def test_a_loop_keeps_what_it_needs_again() -> None:
    t = Threads(8)
    b = t.b
    factor, total, count, more, loop = t.load(0), b.reg(), b.ureg(), b.pred(), b.label()
    b.emit(MOV, total, 0)
    b.emit(UMOV, count, 5)
    b.place(loop)
    product = (
        b.reg()
    )  # its register must not be factor's, though factor has no later use in the text
    b.emit(IMUL, S32, product, factor, count)
    b.emit(IADD, S32, total, total, product)
    b.emit(UIADD, Bits32._32, count, count, -1)
    b.emit(UISETP, Cmp.NE, S32, more, count, 0)
    b.emit(BRA, loop, guard=more)
    t.store(0, total)
    y, _ = t.run(RANDOM)
    assert (y[:, 0] == column(RANDOM, 0) * np.uint32(15)).all()


def test_a_guarded_write_keeps_the_other_lanes() -> None:
    t = Threads(8)
    b, low, d = t.b, t.b.pred(), t.b.reg()
    b.emit(ISETP, Cmp.LT, U32, low, t.tid, 9)
    b.emit(MOV, d, 7)
    fill = [
        t.load(i) for i in range(6)
    ]  # would take d's register if the guarded write ended the first value's life
    b.emit(MOV, d, 8, guard=low)
    for i, x in enumerate(fill):
        t.store(i + 1, x)
    t.store(0, d)
    y, _ = t.run(RANDOM)
    assert y[:, 0].tolist() == [8] * 9 + [7] * 23


def test_a_value_made_and_used_under_one_guard_does_not_live_before() -> None:
    """Else every predicated load would hold a register from the kernel's start."""
    t = Threads(8)
    b, p = t.b, t.b.pred()
    b.emit(ISETP, Cmp.LT, U32, p, t.tid, 9)
    with b.under(p):
        for i in range(64):
            x, y = b.reg(), b.reg()
            b.emit(LDG, Width._32, x, t.x, t.at, 4 * (i % 8))
            b.emit(IADD, S32, y, x, i)
            b.emit(STG, Width._32, t.y, t.at, 4 * (i % 8), y)
    code = b.records
    blocks = liveness.blocks(code, b.labels)
    assert liveness.live(code, blocks).into[0] == 0


def test_uniform_values_keep_their_register_while_lanes_are_parked() -> None:
    """A uniform write on one path reaches lanes that wait on the other, so both paths' values need registers of their own."""
    t = Threads(8)
    b, low, d = t.b, t.b.pred(), t.b.reg()
    other, end = b.label(), b.label()
    b.emit(ISETP, Cmp.LT, U32, low, t.tid, 9)
    early = b.ureg()
    b.emit(UMOV, early, 100)
    b.emit(BSSY, 0, end)
    b.emit(BRA, other, guard=low)
    late = b.ureg()
    b.emit(UMOV, late, 200)
    b.emit(MOV, d, late)
    b.emit(BRA, end)
    b.place(other)
    b.emit(MOV, d, early)
    b.place(end)
    b.emit(BSYNC, 0)
    t.store(0, d)
    y, _ = t.run(RANDOM)
    assert y[:, 0].tolist() == [100] * 9 + [200] * 23


def test_groups_are_aligned_and_consecutive() -> None:
    b = KernelBuilder("k", (32, 1, 1), MACHINE, matrix=True)
    singles = [b.reg() for _ in range(3)]
    a, c = b.reg(4), b.reg(8)
    for r in singles:
        b.emit(MOV, r, 1)
    for i in range(4):
        b.emit(MOV, a[i], i)
    b.emit(HMMA, Half.F16, c, a, a, RZ)
    base, at = b.ureg(2), singles[0]
    b.emit(ULDC, Bits32._64, base, 0)
    for i in range(8):
        b.emit(STG, Width._32, base, at, 4 * i, c[i])
    for r in singles:
        b.emit(STG, Width._32, base, at, 64, r)
    b.emit(EXIT)
    (mma,) = [i for i in b.finish().code if isinstance(i, HMMA)]
    assert mma.a % 4 == mma.d % 4 == 0
    assert {*range(mma.d, mma.d + 8)}.isdisjoint(range(mma.a, mma.a + 4))


def test_loads_go_early_and_stores_keep_their_order() -> None:
    b = KernelBuilder("k", (32, 1, 1), MACHINE)
    zero, u, base = b.reg(), b.ureg(), b.ureg(2)
    b.emit(ULDC, Bits32._64, base, 0)
    b.emit(MOV, zero, 0)
    b.emit(UMOV, u, 0)
    b.emit(STS, Width._32, u, zero, 0, zero)
    x, y, z = b.reg(), b.reg(), b.reg()
    b.emit(LDS, Width._32, x, u, zero, 0)
    b.emit(STS, Width._32, u, zero, 4, x)
    b.emit(LDG, Width._32, y, base, zero, 0)
    b.emit(FADD, FloatType.F32, z, y, f32(1))
    b.emit(STS, Width._32, u, zero, 8, z)
    b.emit(BAR, 0)
    b.emit(EXIT)
    code = [i.mnemonic for i in b.finish().code]
    assert [m for m in code if m in ("STS", "LDS")] == ["STS", "LDS", "STS", "STS"]
    assert code.index("LDG") < code.index("LDS")
    assert code[-2:] == ["BAR", "EXIT"]


def test_labels_stand_where_they_were_placed() -> None:
    b = KernelBuilder("k", (32, 1, 1), MACHINE)
    end, p = b.label(), b.pred()
    r = b.reg()
    b.emit(MOV, r, 3)
    b.emit(ISETP, Cmp.EQ, S32, p, r, 3)
    b.emit(BRA, end, guard=Not(p))
    b.emit(MOV, r, 4)
    b.place(end)
    b.emit(EXIT)
    code = b.finish().code
    (jump,) = [i for i in code if isinstance(i, BRA)]
    assert jump.target == Label(len(code) - 1)
    assert jump.guard.negated


def test_a_move_between_values_that_can_share_a_register_is_dropped() -> None:
    t = Threads(8)
    b, end = t.b, t.b.label()
    x, y, p = t.load(0), t.b.reg(), t.b.pred()
    b.emit(ISETP, Cmp.LT, U32, p, t.tid, 9)
    b.emit(BRA, end, guard=p)
    b.place(end)  # the move is the label's instruction
    b.emit(MOV, y, x)
    t.store(0, y)
    result, kernel = t.run(RANDOM)
    assert (result[:, 0] == RANDOM[:, 0]).all()
    assert "MOV" not in [i.mnemonic for i in kernel.code]
    (jump,) = [i for i in kernel.code if isinstance(i, BRA)]
    assert kernel.code[jump.target].mnemonic == "STG"


def test_roles_follow_their_instructions() -> None:
    t = Threads(8)
    x = t.load(0)
    t.b.role(1)
    t.store(0, x)
    t.b.role(0)
    _, kernel = t.run(RANDOM)
    assert [i.mnemonic for i, role in zip(kernel.code, kernel.roles, strict=True) if role == 1] == [
        "STG"
    ]


def test_too_many_values_are_one_clear_error() -> None:
    t = Threads(8)
    xs = [t.load(0) for _ in range(300)]
    for x in xs:
        t.store(0, x)
    t.b.emit(EXIT)
    with pytest.raises(
        CompileError, match="E432: kernel threads: needs more than 255 vector registers"
    ):
        t.b.finish()


def test_occupancy_bounds_registers_of_big_blocks() -> None:
    b = KernelBuilder("big", (1024, 1, 1), MACHINE)
    rs = [b.reg() for _ in range(65)]
    base, at = b.ureg(2), b.reg()
    b.emit(ULDC, Bits32._64, base, 0)
    b.emit(S2R, SR.TID_X, at)
    for r in rs:
        b.emit(LDG, Width._32, r, base, at, 0)
    for r in rs:
        b.emit(STG, Width._32, base, at, 0, r)
    b.emit(EXIT)
    with pytest.raises(CompileError, match="more than 64 vector registers"):
        b.finish()


def test_a_block_that_no_sm_can_hold_is_refused() -> None:
    wide = KernelBuilder("wide", (8, 32, 1), MACHINE.with_(warps_per_sm=4))
    with pytest.raises(
        CompileError, match=r"E433: kernel wide: a block has 8 warps, on .* at most 4"
    ):
        wide.finish()
    greedy = KernelBuilder("greedy", (32, 1, 1), MACHINE)
    greedy.shared(MACHINE.shared_bytes_per_block + 16)
    with pytest.raises(CompileError, match=r"E433: kernel greedy: .* bytes of shared memory"):
        greedy.finish()


@pytest.mark.parametrize(
    ("emit", "message"),
    [
        (lambda b: b.emit(MOV, b.ureg(), 1), "d takes 1 words of Reg, got VUReg"),
        (lambda b: b.emit(MOV, Reg(5), 1), "d takes 1 words of Reg, got R5"),
        (
            lambda b: b.emit(LDG, Width._128, b.reg(2), b.ureg(2), b.reg(), 0),
            "d takes 4 words of Reg",
        ),
        (
            lambda b: b.emit(LDG, Width._32, b.reg(), b.ureg(2), b.reg(), 1 << 23),
            r"offset takes a number in \[-8388608, 8388607\]",
        ),
        (
            lambda b: b.emit(UISETP, Cmp.EQ, IntType.S64, b.pred(), b.ureg(), 0),
            "type is one of S32, U32",
        ),
        (lambda b: b.emit(ISETP, Cmp.EQ, S32, ~b.pred(), b.reg(), 0), "p takes 1 words of Pred"),
    ],
)
def test_an_operand_that_does_not_fit_is_refused(emit: Any, message: str) -> None:
    with pytest.raises(CompileError, match=f"E430: k: {message}"):
        emit(KernelBuilder("k", (32, 1, 1), MACHINE))


def test_a_label_that_nobody_placed_is_an_error() -> None:
    b = KernelBuilder("k", (32, 1, 1), MACHINE)
    b.emit(BRA, b.label())
    with pytest.raises(CompileError, match="E431: k: a label was never placed"):
        b.finish()


class Writer:
    """Random code with its meaning in Python: straight lines, selects, guarded writes, regions that diverge, loops."""

    def __init__(self, seed: int) -> None:
        self.rng, self.t = random.Random(seed), Threads(8)
        self.values: list[tuple[VReg, Array]] = [
            (self.t.load(i), column(RANDOM, i)) for i in range(8)
        ]
        self.lanes = np.arange(32)

    def pick(self) -> tuple[VReg, Array]:
        return self.rng.choice(self.values)

    def fresh(self) -> None:
        (a, va), (b, vb) = self.pick(), self.pick()
        d, cls = self.t.b.reg(), self.rng.choice([IADD, IMUL, LOP])
        if cls is LOP:
            self.t.b.emit(LOP, Logic.XOR, Bits32._32, d, a, b)
        else:
            self.t.b.emit(cls, U32, d, a, b)
        self.values.append((d, {IADD: va + vb, IMUL: va * vb, LOP: va ^ vb}[cls]))

    def copy(self) -> None:
        (a, va), d = self.pick(), self.t.b.reg()
        self.t.b.emit(MOV, d, a)
        self.values.append((d, va))

    def condition(self) -> tuple[VPred, Array]:
        p, (a, va), limit = self.t.b.pred(), self.pick(), self.rng.getrandbits(32)
        self.t.b.emit(ISETP, Cmp.LT, U32, p, a, limit)
        return p, va < limit

    def guarded(self) -> None:
        p, holds = self.condition()
        i = self.rng.randrange(len(self.values))
        d, old = self.values[i]
        a, va = self.pick()
        self.t.b.emit(SHF, Direction.R, U32, d, a, 1, guard=p)
        self.values[i] = (d, np.where(holds, va >> np.uint32(1), old))

    def select(self) -> None:
        p, holds = self.condition()
        (a, va), (b, vb), d = self.pick(), self.pick(), self.t.b.reg()
        self.t.b.emit(SEL, Bits32._32, d, a, b, Not(p))
        self.values.append((d, np.where(holds, vb, va)))

    def diverge(self) -> None:
        """Both sides overwrite values of their own choice; temporaries on either side compete for registers."""
        p, holds = self.condition()
        b, other, end = self.t.b, self.t.b.label(), self.t.b.label()
        b.emit(BSSY, 1, end)
        b.emit(BRA, other, guard=p)
        self.overwrite(~holds)
        b.emit(BRA, end)
        b.place(other)
        self.overwrite(holds)
        b.place(end)
        b.emit(BSYNC, 1)

    def overwrite(self, active: Array) -> None:
        for _ in range(3):
            i = self.rng.randrange(len(self.values))
            (a, va), (c, vc), (d, old) = self.pick(), self.pick(), self.values[i]
            middle = self.t.b.reg()
            self.t.b.emit(IADD, U32, middle, a, c)
            self.t.b.emit(LOP, Logic.XOR, Bits32._32, d, middle, a)
            self.values[i] = (d, np.where(active, (va + vc) ^ va, old))

    def loop(self) -> None:
        b, count, more, top = self.t.b, self.t.b.ureg(), self.t.b.pred(), self.t.b.label()
        trips, i = self.rng.randint(1, 3), self.rng.randrange(len(self.values))
        (d, v), (a, va) = self.values[i], self.pick()
        b.emit(UMOV, count, trips)
        b.place(top)
        for _ in range(trips):
            v, va = v + va, (v + va if a is d else va)
        b.emit(IADD, U32, d, d, a)
        b.emit(UIADD, Bits32._32, count, count, -1)
        b.emit(UISETP, Cmp.NE, S32, more, count, 0)
        b.emit(BRA, top, guard=more)
        self.values[i] = (d, v)

    def write(self, steps: int) -> None:
        for _ in range(steps):
            kinds = [
                self.fresh,
                self.fresh,
                self.copy,
                self.guarded,
                self.select,
                self.diverge,
                self.loop,
            ]
            self.rng.choice(kinds)()


@given(st.integers(0, 1 << 32), st.integers(5, 60))
def test_random_code_means_what_it_says(seed: int, steps: int) -> None:
    w = Writer(seed)
    w.write(steps)
    chosen = [w.pick() for _ in range(8)]
    for i, (r, _) in enumerate(chosen):
        w.t.store(i, r)
    y, _ = w.t.run(RANDOM)
    for i, (_, v) in enumerate(chosen):
        assert (y[:, i] == v).all()


@given(st.integers(0, 1 << 32))
def test_a_schedule_is_a_permutation_that_respects_dependences(seed: int) -> None:
    w = Writer(seed)
    w.write(40)
    code = w.t.b.records
    blocks = liveness.blocks(code, w.t.b.labels)
    order = schedule.schedule(code, blocks, liveness.live(code, blocks), w.t.b.groups, (255, 63, 7))
    assert sorted(order) == list(range(len(code)))
    place = {i: n for n, i in enumerate(order)}
    for b in blocks:
        for j in range(b.first, b.last):
            assert b.first <= place[j] < b.last
            for i in range(b.first, j):
                hazard = {*code[i].writes} & {*code[j].reads, *code[j].writes} or {
                    *code[i].reads
                } & {*code[j].writes}
                assert not hazard or place[i] < place[j]
