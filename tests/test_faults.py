"""Every fault: a few instructions that meet it, told alike by both engines, with its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import KnapperError, MachineFault
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, FloatType, IntType, Trans, Width
from knapper.isa.operands import Convergence, Guard, Label, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import ALIGN, BASE, Kernel, Launch, Operand, Port, Program
from knapper.runtime.session import LIMIT, EngineName, Session

RZ, URZ = Reg(255), UReg(63)
EXIT = i.EXIT()
IN, OUT = (
    BASE + ALIGN,
    BASE + 2 * ALIGN,
)  # behind 256 bytes of rodata; the scratch buffer follows at OUT + ALIGN


def program(
    code: list[Instr],
    threads: int = 32,
    operands: tuple[Operand, ...] = (),
    target: dict[str, Any] | None = None,
    **kernel: Any,
) -> Program:
    settings = {"registers": 16, "shared_bytes": 256, "local_bytes": 16, **kernel}
    k = Kernel("k", Kernel.encode(code), (0,) * len(code), (threads, 1, 1), **settings)
    launch = Launch("k", (1, 2, 1), (IN, OUT, OUT + ALIGN, BASE), ("conv0",), operands)
    x, y = Port("x", "u8", (ALIGN,), IN), Port("y", "u8", (ALIGN,), OUT)
    target = Machine.load("volta-8tc").to_dict() if target is None else target
    return Program(
        target, {"k": k}, (launch,), (x,), (y,), rodata=bytes(ALIGN), arena_bytes=3 * ALIGN
    )


def fault(
    p: Program,
    engine: EngineName,
    checked: bool = True,
    limit: int = LIMIT,
    timing: bool = False,
) -> KnapperError:
    x = {"x": np.zeros(ALIGN, np.uint8)}
    with pytest.raises(KnapperError) as e:
        Session(p).run(x, engine=engine, checked=checked, limit=limit, timing=timing)
    return e.value


def base(parameter: int, d: int = 0) -> Instr:
    """UR[d:d+1] = the address of the input (0), the output (1), the scratch buffer (2) or the weights (3)."""
    return i.ULDC(Bits32._64, UReg(d), Unsigned(8 * parameter))


def load(a: Reg = RZ, offset: int = 0, width: Width = Width._32) -> Instr:
    return i.LDG(width, Reg(8), UReg(0), a, Signed(offset))


def store(a: Reg = RZ, offset: int = 0) -> Instr:
    return i.STG(Width._32, UReg(0), a, Signed(offset), RZ)


def lanes_below(n: int, p: int = 0) -> list[Instr]:
    """P[p] = lane < n; the lane is in R0, the warp in R1."""
    return [
        i.S2R(SR.LANEID, Reg(0)),
        i.S2R(SR.WARPID, Reg(1)),
        i.ISETP(Cmp.LT, IntType.U32, Pred(p), Reg(0), Src.of(n)),
    ]


def warp_zero() -> list[Instr]:
    """P0 = this is warp 0."""
    return [i.S2R(SR.WARPID, Reg(1)), i.ISETP(Cmp.EQ, IntType.U32, Pred(0), Reg(1), Src.of(0))]


P0, NOT_P0, B0, B1 = Guard(0), Guard(8), Convergence(0), Convergence(1)
SHARED = i.STS(Width._32, URZ, RZ, Signed(0), RZ)

# name: (instructions, code, what the message says, kernel and launch settings); found without `checked`
ALWAYS: dict[str, tuple[list[Instr], str, str, dict[str, Any]]] = {
    "misaligned": ([base(0), load(offset=2), EXIT], "E602", "lane 0 reads 4 bytes of global memory at 0x10000102, which is not a multiple of 4", {}),
    "misaligned in one lane": (
        [base(0), *lanes_below(7), i.SEL(Bits32._32, Reg(2), RZ, Src.of(2), P0), load(Reg(2)), EXIT], "E602", "lane 7 reads", {}),
    "misaligned fragment": (
        [i.LDSM(Trans.N, Reg(4), URZ, Signed(0), Unsigned(2)), EXIT], "E602", "reads 4 bytes of shared memory", {"shared_bytes": 4096}),
    "below memory": ([i.UMOV(UReg(0), Src.of(0)), i.UMOV(UReg(1), Src.of(0)), load(), EXIT], "E603", "global memory at 0x0, which lies outside", {}),
    "past memory": ([base(0), load(offset=3 * ALIGN), EXIT], "E603", "global memory at 0x10000400, which lies outside", {}),
    "past memory, wide": ([base(0), load(offset=3 * ALIGN, width=Width._128), EXIT], "E603", "16 bytes of global memory at 0x10000400", {}),
    "far away": ([base(0), i.MOV(Reg(2), Src.of(0x80000000)), load(Reg(2)), EXIT], "E603", "at 0xffffffff90000100, which lies outside", {}),
    "past shared": ([i.LDS(Width._32, Reg(8), URZ, RZ, Signed(256)), EXIT], "E603", "shared memory at 0x100", {}),
    "shared wraps": ([i.LDS(Width._32, Reg(8), URZ, RZ, Signed(-4)), EXIT], "E603", "shared memory at 0xfffffffc", {}),
    "past local": ([i.STL(Width._32, RZ, Signed(16), RZ), EXIT], "E603", "writes 4 bytes of local memory at 0x10", {}),
    "past parameters": ([base(9), EXIT], "E603", "param memory at 0x48", {}),
    "weights": ([base(3), store(offset=8), EXIT], "E604", "writes 4 bytes of global memory at 0x10000008, which is read-only", {}),
    "barrier in a branch": ([*lanes_below(9), i.BAR(Unsigned(3), guard=P0), EXIT], "E608", "lane 9 is live but does not come to barrier 3", {}),
    "barrier after an exit": (
        [*warp_zero(), i.EXIT(guard=P0), i.BAR(Unsigned(1)), EXIT],
        "E608", "barrier 1, but warp 0 of the block has exited", {"threads": 64}),
    "two barriers": (
        [*warp_zero(), i.BAR(Unsigned(1), guard=P0), i.BAR(Unsigned(2)), EXIT],
        "E608", "waits at barrier 1, but warp 1 of the block waits at another", {"threads": 64}),
    "split region": ([*lanes_below(9), i.BSSY(B0, Label(4), guard=P0), i.BSYNC(B0), EXIT], "E609", "the guard leaves lane 9 out", {}),
    "region opened twice": ([i.BSSY(B0, Label(2)), i.BSSY(B0, Label(2)), i.BSYNC(B0), EXIT], "E609", "B0 is open already, since pc 0", {}),
    "region not opened": ([i.BSYNC(B0), EXIT], "E609", "no BSSY sends lane 0 here with B0", {}),
    "another region's end": ([i.BSSY(B0, Label(2)), i.BSYNC(B0), i.BSYNC(B0), EXIT], "E609", "no BSSY sends lane 0 here with B0", {}),
    "regions crossed": (
        [*lanes_below(9), i.BSSY(B0, Label(7)), i.BSSY(B1, Label(6)), i.BRA(Label(7), guard=P0), i.BSYNC(B1), i.BSYNC(B0), EXIT],
        "E609", "lanes wait at B0 for lane 9, which waits elsewhere", {}),
    "exit in a region": (
        [*lanes_below(9), i.BSSY(B0, Label(5)), i.EXIT(guard=P0), i.BSYNC(B0), EXIT], "E609", "lane 0 exits inside the region of B0", {}),
    "no exit": ([i.NOP()], "E610", "the code ends without EXIT", {}),
    "endless": ([i.BRA(Label(0)), EXIT], "E611", "the warp has executed 1000 instructions", {}),
}  # fmt: skip

# found by the reference engine, and by the fast one if asked to
CHECKED: dict[str, tuple[list[Instr], str, str, dict[str, Any]]] = {
    "register": ([i.MOV(Reg(1), Src.of(Reg(5))), EXIT], "E606", "R5 is read in lane 0, where nothing wrote it", {}),
    "half a register": (
        [*lanes_below(9), i.MOV(Reg(5), Src.of(0), guard=P0), i.MOV(Reg(1), Src.of(Reg(5))), EXIT], "E606", "R5 is read in lane 9", {}),
    "high half of a pair": (
        [i.MOV(Reg(4), Src.of(0)), i.IADD(IntType.S64, Reg(6), Reg(4), Src.of(1)), EXIT], "E606", "R5 is read", {}),
    "uniform register": ([i.UMOV(UReg(1), Src.of(UReg(7))), EXIT], "E606", "UR7 is read, and nothing wrote it", {}),
    "predicate": ([i.SEL(Bits32._32, Reg(1), RZ, Src.of(1), Guard(3)), EXIT], "E606", "P3 is read in lane 0", {}),
    "guard": ([i.NOP(guard=Guard(2)), EXIT], "E606", "P2 is read in lane 0", {}),
    "shared memory": (
        [i.LDS(Width._32, Reg(8), URZ, RZ, Signed(8)), EXIT],
        "E606", "lane 0 reads 4 bytes of shared memory at 0x8, where nothing wrote", {}),
    "local memory": (
        [i.STL(Width._32, RZ, Signed(0), RZ), i.LDL(Width._64, Reg(8), RZ, Signed(0)), EXIT],
        "E606", "8 bytes of local memory at 0x0", {}),
    "scratch buffer": ([base(2), load(), EXIT], "E606", "global memory at 0x10000300, where nothing wrote", {}),
    "fragment": ([i.HMMA(i.HMMA.layout["type"][0].F16, Reg(8), Reg(4), RZ, RZ), EXIT], "E606", "R4 is read", {}),
    "race: write after write": (
        [*warp_zero(), SHARED, EXIT],
        "E607", "lane 0 writes shared memory at 0x0, which warp 0 wrote since", {"threads": 64}),
    "race: read after write": (
        [*warp_zero(), i.STS(Width._32, URZ, RZ, Signed(0), RZ, guard=P0), i.LDS(Width.U8, Reg(8), URZ, RZ, Signed(3), guard=NOT_P0), EXIT],
        "E607", "lane 0 reads shared memory at 0x3, which warp 0 wrote since", {"threads": 64}),
    "race: write after read": (
        [*warp_zero(), i.STS(Width._32, URZ, RZ, Signed(0), RZ, guard=P0), i.BAR(Unsigned(0)),
         i.LDS(Width._32, Reg(8), URZ, RZ, Signed(0), guard=P0), i.STS(Width._32, URZ, RZ, Signed(0), RZ, guard=NOT_P0), EXIT],
        "E607", "lane 0 writes shared memory at 0x0, which warp 0 read since", {"threads": 64}),
    "undeclared read": (
        [base(1), load(), EXIT],
        "E605", "reads 4 bytes of global memory at 0x10000200", {"operands": (Operand("x", IN, ALIGN, "r"), Operand("y", OUT, ALIGN, "w"))}),
    "undeclared write": (
        [base(0), store(), EXIT],
        "E605", "writes 4 bytes of global memory at 0x10000100", {"operands": (Operand("x", IN, ALIGN, "r"),)}),
    "end of an operand": (
        [base(0), load(width=Width._128), load(offset=16), EXIT],
        "E605", "at 0x10000110", {"operands": (Operand("x", IN, 16, "r"),)}),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ALWAYS, *CHECKED])
def test_both_engines_tell_a_fault_alike(name: str) -> None:
    code, number, message, settings = {**ALWAYS, **CHECKED}[name]
    p = program(code, **settings)
    limit = 1000 if number == "E611" else LIMIT
    told = fault(p, "reference", limit=limit)
    assert isinstance(told, MachineFault)
    assert told.code == number
    assert message in told.message
    assert str(fault(p, "fast", limit=limit)) == str(told)
    if name in ALWAYS:
        assert str(fault(p, "fast", checked=False, limit=limit)) == str(told)


@pytest.mark.parametrize("name", CHECKED)
def test_unchecked_runs_do_not_look_for_what_needs_a_shadow(name: str) -> None:
    code, _, _, settings = CHECKED[name]
    Session(program(code, **settings)).run({"x": np.zeros(ALIGN, np.uint8)}, engine="fast")


def test_a_fault_names_its_place() -> None:
    code = [
        i.S2UR(SR.CTAID_Y, UReg(2)),
        base(0),
        i.UIMAD(UReg(0), UReg(2), Src.of(2), UReg(0)),
        load(),
        EXIT,
    ]
    told = str(fault(program(code, threads=64), "fast", checked=False))
    assert told.startswith(
        "E602: kernel k, block (0, 1, 0), warp 0, pc 3 `LDG.32 R8, [UR0+RZ+0]`, node conv0: lane 0 reads"
    )


def test_the_first_block_that_faults_is_told_whatever_the_threads_do() -> None:
    code = [
        base(0),
        *warp_zero(),
        i.S2R(SR.CTAID_X, Reg(2)),
        load(Reg(2)),
        EXIT,
    ]  # block 0 is aligned, 1, 2, 3, … are not
    p = program(code)
    wide = Program(
        **{**p.__dict__, "launches": (Launch("k", (64, 1, 1), p.launches[0].params, ("conv0",)),)}
    )
    assert {str(fault(wide, "fast", checked=False)).split(", warp")[0] for _ in range(5)} == {
        "E602: kernel k, block (1, 0, 0)"
    }


LEGAL = [i.NOP(), EXIT]
SUM = i.FADD(FloatType.F32, Reg(4), RZ, Src.of(RZ))


def refuse(code: list[Instr], **settings: Any) -> str:
    p = program(code, **settings)
    told = {engine: str(fault(p, engine)) for engine in ("reference", "fast")}
    assert told["reference"] == told["fast"]
    return told["fast"]


REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "extension": (
        lambda: refuse([i.LDSM(Trans.N, Reg(4), URZ, Signed(0), Unsigned(32)), EXIT], target={"name": "plain", "extensions": ()}),
        "E601: kernel k, pc 0: LDSM belongs to extension 'tensor', which the target lacks"),
    "mode": (lambda: refuse([i.NOP(), SUM, EXIT], mode_entry="systolic", mode_exit="systolic"), "pc 1: FADD is illegal in mode 'systolic'"),
    "registers": (
        lambda: refuse([i.MOV(Reg(16), Src.of(1)), EXIT]), "E601: kernel k, pc 0: d lies beyond the registers that the kernel declares"),
    "pair": (
        lambda: refuse([i.FADD(FloatType.F64, Reg(4), RZ, Src.of(Reg(14))), i.IADD(IntType.S64, Reg(16), RZ, Src.of(0)), EXIT]),
        "pc 1: d lies beyond"),
    "label": (lambda: refuse([i.BRA(Label(7)), EXIT]), "E601: kernel k, pc 0: target lies behind the end of the code"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_target_or_kernel_does_not_allow_is_refused_before_it_runs(name: str) -> None:
    make, message = REFUSED[name]
    assert message in make()


def test_damaged_words_are_refused_all_at_once() -> None:
    words = bytearray(Kernel.encode([i.NOP(), i.NOP(), EXIT]))
    words[15], words[16] = 0x80, 0xFF
    words[17] |= 3
    p = program(LEGAL)
    damaged = Program(
        **{**p.__dict__, "kernels": {"k": Kernel("k", bytes(words), (0,) * 3, (32, 1, 1), 16)}}
    )
    told = str(fault(damaged, "fast"))
    assert "E601: kernel k, pc 0: NOP: unused bits are set" in told
    assert "E601: kernel k, pc 1: not an instruction: opcode 0x3ff" in told
