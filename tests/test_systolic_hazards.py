"""The systolic extension's hazards and faults: a few instructions that meet one, within a warp and between warps."""

from __future__ import annotations

from typing import Any

import pytest
from systolic_programs import (
    COMMIT,
    EXIT,
    IN,
    LANE,
    ONE,
    OTHERS,
    PLAIN,
    RZ,
    SHARED,
    SIMD,
    STORE,
    SYSTOLIC,
    THREAD,
    URZ,
    ZERO,
    A,
    B,
    begin,
    both,
    group,
    hazard,
    ldb,
    lsma,
    matrix,
    plain,
    run,
    swap,
    systolic,
    wait,
)

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import KnapperError
from knapper.isa.modifiers import SR, Cmp, IntType, Start, Width
from knapper.isa.operands import Guard, Label, Pred, Reg, Signed, Src, Unsigned
from knapper.isa.systolic import QUEUE

P0 = Pred(0)
WARP_ZERO = [
    i.S2R(SR.WARPID, THREAD),
    i.ISETP(Cmp.EQ, IntType.U32, P0, THREAD, Src.of(0)),
]
BAR = i.BAR(Unsigned(0))
LOAD = [ldb(ONE), swap(), COMMIT, wait()]
USE = [lsma(ONE, 16), COMMIT, wait()]


def only(warp: Guard, commands: list[Instr], at: int) -> list[Instr]:
    """Commands of the warps that the guard picks, to be placed at an index of the code."""
    other = ZERO if warp == OTHERS else OTHERS
    return [i.BRA(Label(at + 1 + len(commands)), guard=other), *commands]


def parted(
    first: list[Instr], second: list[Instr], between: list[Instr] | None = None
) -> list[Instr]:
    """Warp 0 does one thing, warp 1 another, after shared memory was filled."""
    code = [*WARP_ZERO, *begin(filler=ZERO), BAR, SYSTOLIC]
    code += only(ZERO, first, len(code))
    code += between or []
    code += only(OTHERS, second, len(code))
    return [*code, SIMD, EXIT]


HAZARDS: dict[str, tuple[list[Instr], str, dict[str, Any]]] = {
    "read of C": ([*PLAIN, i.MOV(Reg(30), Src.of(Reg(15))), wait()], "reads R15, which a pending LSMA writes", {}),
    "write of C": ([*PLAIN, i.MOV(Reg(9), Src.of(1)), wait()], "writes R9, which a pending LSMA writes", {}),
    "uncommitted C": ([*PLAIN[:3], i.MOV(Reg(9), Src.of(1)), COMMIT, wait()], "writes R9", {}),
    "load into C": ([*PLAIN, i.LDG(Width._32, Reg(8), IN, LANE, Signed(0)), wait()], "writes R8", {}),
    "write of B": ([*PLAIN, i.STS(Width._32, URZ, LANE, Signed(B), RZ), wait()], f"at {B:#x}, which a pending systolic command reads", {}),
    "no commit": ([*PLAIN[:3], wait()], "AsyncHazard: 3 commands that no SMA.COMMIT follows", {}),
    "no commit before a switch": (PLAIN[:3], "AsyncHazard: 3 commands that no SMA.COMMIT follows", {}),
    "weights never loaded": (USE, "E606: kernel k, block (0, 0, 0), warp 0, pc", {}),
    "shadows only": ([ldb(ONE), *USE], "weights of unit 0 are used, where no SMA.LDB and SMA.SWAP put any", {}),
    "too few units loaded": ([ldb(ONE, 1), swap(2), lsma(ONE, 8, 2), COMMIT, wait()], "weights of unit 1 are used", {}),
    "C never written": ([*group(ONE, 3, start=Start.ADD), wait()], "R8 is read in lane 0, where nothing wrote it", {}),
    "C half written": (
        [i.MOV(Reg(8), Src.of(1)), i.MOV(Reg(9), Src.of(1)), *group(ONE, 5, start=Start.ADD), wait()], "R10 is read in lane 0", {}),
    "misaligned": ([ldb(ONE, at=2)], "E602: kernel k, block (0, 0, 0), warp 0", {}),
    "misaligned pitch": ([ldb(ONE, pitch=18)], "4 bytes of shared memory at 0x4000, which is not a multiple of 4", {}),
    "outside": ([ldb(ONE, at=SHARED - 480, pitch=64)], "reads 32 bytes of shared memory at 0x7fe0, which lies outside", {"shared_bytes": SHARED - 8}),
    "far outside": ([lsma(ONE, 200, pitch=65532)], "reads 16 bytes of shared memory at 0xc6fce4", {}),
    "too many": ([ldb(ONE)] * QUEUE + [COMMIT], "E616: kernel k, block (0, 0, 0), warp 0, pc", {}),
    "part of a warp": ([COMMIT], "lane 20 is not active, but a systolic command is the whole warp's", {"threads": 20}),
}  # fmt: skip
ALWAYS = {"misaligned", "misaligned pitch", "outside", "far outside", "too many", "part of a warp"}
"""Found without `checked` as well."""


@pytest.mark.parametrize("name", HAZARDS)
def test_hazards_and_faults(name: str) -> None:
    commands, message, settings = HAZARDS[name]
    fill = [] if settings else begin()
    code = [*fill, *systolic(commands), EXIT]
    told = hazard(code, **settings)
    assert message in told
    if name in ALWAYS:
        with pytest.raises(KnapperError, match="E6"):
            run(code, **settings)
    else:
        run(code, **settings)


def test_a_warp_may_not_end_with_groups_pending() -> None:
    code = [*begin(), SYSTOLIC, *PLAIN, EXIT]
    assert "AsyncHazard: the warp ends with 1 groups pending" in hazard(code, mode_exit="systolic")
    code = [*begin(), SYSTOLIC, *PLAIN[:2], EXIT]
    assert "AsyncHazard: 2 commands that no SMA.COMMIT follows" in hazard(
        code, mode_exit="systolic"
    )


def test_operands_that_nobody_wrote() -> None:
    told = hazard([*systolic([*PLAIN, wait()]), EXIT])
    assert "lane 0 reads 32 bytes of shared memory at 0x4000, where nothing wrote" in told


CLASHES: dict[str, tuple[list[Instr], list[Instr], list[Instr], str]] = {
    "another warp loads, then this one computes": (LOAD, [*LOAD, *USE], [], "weights of an earlier group are used, but warp 0 may load others"),
    "this one computes, then another loads": ([*LOAD, *USE], LOAD, [], "warp 0 may load others"),
    "the load lies before a barrier": ([*LOAD], USE, [BAR], "warp 0 may load others"),
    "a store into another's A": (
        [BAR, i.STS(Width._32, URZ, LANE, Signed(A), RZ)], [*PLAIN, BAR, wait()], [], "which a pending systolic command reads"),
    "a store after another's wait": (
        [*PLAIN, wait()], [i.STS(Width._32, URZ, LANE, Signed(A), RZ)], [],
        "a race: lane 0 writes shared memory at 0x0, which warp 0 read since the last barrier"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASHES)
def test_clashes_between_warps(name: str) -> None:
    first, second, between, message = CLASHES[name]
    assert message in hazard(parted(first, second, between), threads=64)


def test_groups_that_bring_their_weights_do_not_clash() -> None:
    both(parted([*PLAIN, wait()], [*PLAIN, *PLAIN, wait()]), threads=64)


def test_rz_swallows_c() -> None:
    commands = [*group(ONE, 16, c=255, start=Start.ADD), i.MOV(RZ, Src.of(1)), wait(), *STORE]
    o = plain()
    assert (matrix(both([*begin(range(8, 16)), *systolic(commands), EXIT], o.x)) == o.c).all()


def lanes_part(then: list[Instr]) -> list[Instr]:
    """Nine lanes come to what follows by another way than the rest."""
    head = [i.S2R(SR.LANEID, LANE), i.ISETP(Cmp.LT, IntType.U32, P0, LANE, Src.of(9))]
    return [*head, i.BRA(Label(4), guard=ZERO), i.NOP(), *then, EXIT]


def test_a_switch_is_a_block_barrier() -> None:
    told = hazard(lanes_part([SYSTOLIC, SIMD]))
    assert "E608" in told
    assert "lane 9 is live but does not come to MODE.SYSTOLIC with the others" in told
    code = [*WARP_ZERO, i.BRA(Label(5), guard=ZERO), BAR, BAR, SYSTOLIC, SIMD, EXIT]
    told = hazard(code, threads=64)
    assert "waits at MODE.SYSTOLIC, but warp 1 of the block waits at another" in told


def test_lanes_that_parted_send_no_commands() -> None:
    told = hazard(lanes_part([swap()]), mode_entry="systolic", mode_exit="systolic")
    assert "E616" in told
    assert "lane 9 is not active, but a systolic command is the whole warp's" in told
