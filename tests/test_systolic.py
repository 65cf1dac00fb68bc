"""The systolic extension: numbers against a chain of fused multiply-adds, and when they are there."""

from __future__ import annotations

import numpy as np
import pytest
from systolic_programs import (
    COMMIT,
    EXIT,
    LANE,
    ONE,
    PLAIN,
    RZ,
    SHARED,
    SIMD,
    STORE,
    SYSTOLIC,
    TYPES,
    URZ,
    A,
    B,
    Operands,
    begin,
    both,
    end,
    hazard,
    ldb,
    lsma,
    matrix,
    plain,
    run,
    sum_of,
    swap,
    systolic,
    wait,
)

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.lanes import F16, F32
from knapper.isa.modifiers import Element, Half, Start, Trans, Width
from knapper.isa.operands import Reg, Signed, Unsigned


def product(o: Operands, type: Element, units: int, start: Start) -> list[Instr]:
    """C (+)= A · B, in groups of eight steps."""
    size, code = o.type.bits // 8, []
    for s in range(o.steps):
        b, a = o.pitch(o.n), o.pitch(8 * o.steps)
        code += [
            ldb(type, units, B + 8 * s * b, b), swap(units),
            lsma(type, o.m, units, start=start if s == 0 else Start.ADD, at=A + 8 * s * size, pitch=a), COMMIT,
        ]  # fmt: skip
    return [*code, wait()]


@pytest.mark.parametrize("start", Start)
@pytest.mark.parametrize("m", [1, 7, 16, 61])
@pytest.mark.parametrize("units", [1, 2, 3])
@pytest.mark.parametrize("type", Element)
def test_a_product_is_a_chain_of_fused_multiply_adds(
    type: Element, units: int, m: int, start: Start
) -> None:
    n = units * (8 if type is Element.F32 else 16)
    o = Operands(TYPES[type], m, n, seed=m, steps=2)
    words = -(-m * n // 32)
    code = [*begin(range(8, 8 + words)), *systolic(product(o, type, units, start)), *end(8, words)]
    y = both(code, o.x)[: 4 * m * n].view(np.float32).reshape(m, n)
    assert (y == o.chain(start is Start.SET)).all()


HARD = np.array([0, 1, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC12345, 0x7F7FFFFF], np.uint32)


@pytest.mark.parametrize("half", Half)
@pytest.mark.parametrize("hard", [False, True])
def test_two_commands_of_eight_steps_are_one_hmma(half: Half, hard: bool) -> None:
    element = Element[half.name]
    o = Operands(TYPES[element], 16, 16, steps=2)
    pitch = o.pitch(16)
    if hard:  # zeros, infinities, NaNs and the largest number among A, B and C
        o.x[A : A + 16 * pitch : 46] = 0x7C
        o.x[SHARED:][: 4 * o.c.size].view(np.uint32)[::5] = np.resize(HARD, 52)
    fragments = [
        i.LDSM(Trans.N, Reg(48), URZ, Signed(A), Unsigned(pitch)),
        i.LDSM(Trans.N, Reg(52), URZ, Signed(B), Unsigned(pitch)),
        i.HMMA(half, Reg(16), Reg(48), Reg(52), Reg(8)),
    ]
    chain = systolic(product(o, element, 1, Start.ADD))
    y = both([*begin(range(8, 16)), *fragments, *chain, *end(8, 16)], o.x)
    assert (y[:1024] == y[1024:2048]).all()
    assert len(np.unique(y[:1024].view(np.uint32))) > 50


def test_hmma_with_fp16_accumulators_rounds_once_at_the_end() -> None:
    o = Operands(F16, 16, 16, steps=2)
    c = o.c.astype(np.float16)
    o.x[SHARED:][:512] = c.view(np.uint8).ravel()
    fragments = [
        i.LDSM(Trans.N, Reg(48), URZ, Signed(A), Unsigned(o.pitch(16))),
        i.LDSM(Trans.N, Reg(52), URZ, Signed(B), Unsigned(o.pitch(16))),
        i.HMMA_F16(Reg(16), Reg(48), Reg(52), Reg(8)),
    ]
    y = both([*begin(range(8, 12)), *fragments, *end(16, 4)], o.x)[:512]
    o.c = c.astype(np.float32)
    assert (y.view(np.float16).reshape(16, 16) == o.chain(False).astype(np.float16)).all()


# --- asynchrony ---------------------------------------------------------------------------------------------------------------


def test_a_forgotten_wait_gives_stale_numbers_and_is_found_by_a_checked_run() -> None:
    o = plain()
    code = [*begin(range(8, 16)), SYSTOLIC, *PLAIN, *STORE, SIMD, EXIT]
    assert (matrix(run(code, o.x).outputs["y"]) == o.c).all()
    told = hazard(code, o.x)
    assert "E615" in told
    assert "AsyncHazard: the warp reads R8, which a pending LSMA writes" in told
    assert "SMA.WAIT" in told


def test_a_wait_for_all_but_n_leaves_the_newest_pending() -> None:
    o = plain()
    second = lsma(ONE, 16, c=16)
    commands = [*PLAIN, second, COMMIT, wait(1)]
    y = both([*begin(), *systolic([*commands, *STORE]), EXIT], o.x)
    assert (matrix(y) == sum_of(o)).all()
    stale = [*begin(range(8, 24)), *systolic([*commands, *end(16, 8)[:-1]]), EXIT]
    assert (matrix(run(stale, o.x).outputs["y"]) != sum_of(o)).any()
    assert "reads R16" in hazard(stale, o.x)


def test_a_mode_switch_completes_what_is_pending() -> None:
    o = plain()
    code = [*begin(range(8, 16)), SYSTOLIC, *PLAIN, SIMD, *end(8, 8)]
    assert (matrix(both(code, o.x)) == sum_of(o)).all()


def test_operands_are_read_when_the_group_is_executed() -> None:
    o = plain()
    overwrite = i.STS(Width._32, URZ, LANE, Signed(A), RZ)
    code = [*begin(), SYSTOLIC, *PLAIN, overwrite, wait(), SIMD, *end(8, 8)]
    o.a[:2] = 0  # 128 bytes are two rows
    assert (matrix(run(code, o.x).outputs["y"]) == sum_of(o)).all()
    told = hazard(code, o.x)
    assert (
        "AsyncHazard: lane 0 writes 4 bytes of shared memory at 0x0, which a pending systolic command reads"
        in told
    )


def test_weights_load_behind_the_ones_in_use() -> None:
    """Two sets of weights are loaded before either is used."""
    o = plain()
    o.put(B + 1024, -o.b, 64)
    commands = [
        ldb(ONE), swap(), ldb(ONE, at=B + 1024), lsma(ONE, 16), swap(), lsma(ONE, 16, c=16), COMMIT, wait(),
    ]  # fmt: skip
    y = both([*begin(), *systolic(commands), *end(8, 16)], o.x)
    assert (matrix(y) == sum_of(o)).all()
    assert (matrix(y, 1024) == -sum_of(o)).all()


def test_groups_may_reuse_their_own_warps_weights() -> None:
    o = plain()
    commands = [*PLAIN, lsma(ONE, 16, c=16), COMMIT, wait(1), wait(0)]
    y = both([*begin(), *systolic(commands), *end(8, 16)], o.x)
    assert (matrix(y, 1024) == sum_of(o)).all()


def test_empty_groups_count() -> None:
    o = plain()
    commands = [*PLAIN, COMMIT, COMMIT, wait(2)]
    y = both([*begin(), *systolic([*commands, *STORE]), EXIT], o.x)
    assert (matrix(y) == sum_of(o)).all()


def test_counters_tell_multiply_adds_and_traffic() -> None:
    o = Operands(F32, 5, 16)
    code = [*begin(), *systolic(product(o, Element.F32, 2, Start.SET)), EXIT]
    launch = run(code, o.x).stats.launches[0]
    assert launch.macs_executed == 5 * 8 * 16
    reads = launch.counts.instructions["smem_read"]
    assert {code[n].mnemonic: int(reads[n]) for n in np.flatnonzero(reads)} == {
        "SMA.LDB": 8 * 16 * 4,
        "LSMA": 5 * 8 * 4,
    }
