"""Vector memory: every hazard and fault that there is, told alike by both checking engines; and machines that refuse its commands."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from vector_programs import (
    ADD,
    BAR,
    BEGIN,
    COMMIT,
    DONE,
    ENGINES,
    EXIT,
    F16,
    FILLED,
    INPUT,
    OUTPUT,
    PLAIN,
    PUSH,
    ROW,
    SET,
    SHARED,
    SMALL,
    URZ,
    WEIGHED,
    WEIGHTS,
    agreed,
    copy,
    describe,
    fill,
    program,
    push,
    run,
    umov,
)

from knapper.isa import asm, generate, image
from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import KnapperError
from knapper.isa.machine import Machine
from knapper.isa.modifiers import (
    SR,
    Cmp,
    Element,
    FloatType,
    IntType,
    Width,
)
from knapper.isa.operands import Extent, Guard, Label, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE, Operand
from knapper.isa.vector_memory import ConvDesc
from knapper.isa.verify import code_problems, verify


def fault(code: list[Instr], engines: tuple[str, ...] = ENGINES[::2], **settings: Any) -> str:
    """The fault of a program."""
    told = []
    x = np.arange(INPUT, dtype=np.uint32).astype(np.uint8)
    for engine in engines:
        with pytest.raises(KnapperError) as e:
            run(program(code, **settings), x, engine)
        told.append(f"{e.value} {e.value.hint}")
    assert {*told} == {told[0]}
    return told[0]


def lds(at: int) -> Instr:
    return i.LDS(Width._32, Reg(4), URZ, Reg(255), Signed(at))


def sts(at: int) -> Instr:
    return i.STS(Width._32, URZ, Reg(255), Signed(at), Reg(255))


PENDING = "which a pending systolic command"
HAZARDS: dict[str, tuple[list[Instr], str]] = {
    "a load of what a fill writes": (
        [*BEGIN, *fill(1, 1), COMMIT, lds(64 + ROW)],
        f"lane 0 reads 4 bytes of shared memory at {64 + ROW:#x}, {PENDING} writes",
    ),
    "a store into what a transfer writes": (
        [*copy(512, 0, 64), COMMIT, sts(512)],
        f"lane 0 writes 4 bytes of shared memory at 0x200, {PENDING} writes",
    ),
    "a store into what a push reads": (
        [*FILLED, *WEIGHED, *PUSH, COMMIT, sts(64)],
        f"lane 0 writes 4 bytes of shared memory at 0x40, {PENDING} reads",
    ),
    "a push of what a fill of its own group writes": (
        [*FILLED, *WEIGHED, *fill(0, 1), *PUSH, *DONE],
        f"lane 0 reads 128 bytes of shared memory at 0x40, {PENDING} writes",
    ),
    "a fill of what a push reads": (
        [*FILLED, *WEIGHED, *PUSH, COMMIT, *fill(0, 1), *DONE],
        f"lane 0 writes 128 bytes of shared memory at 0x40, {PENDING} reads",
    ),
    "two fills of a row": (
        [*BEGIN, *fill(0, 2), *fill(1, 1), *DONE],
        f"lane 0 writes 128 bytes of shared memory at {64 + ROW:#x}, {PENDING} writes",
    ),
    "two transfers to a place": (
        [*copy(0, 0, 64), *copy(48, 0, 32), *DONE],
        f"lane 0 writes 16 bytes of shared memory at 0x30, {PENDING} writes",
    ),
    "weights that a transfer writes": (
        [*copy(WEIGHTS, 0, 256), umov(27, WEIGHTS), i.SMA_LDB(F16, Extent(1), UReg(27), Signed(0), Unsigned(32)), *DONE],
        f"lane 0 reads 32 bytes of shared memory at {WEIGHTS:#x}, {PENDING} writes",
    ),
    "sums of a push": (
        [*FILLED, *WEIGHED, *PUSH, COMMIT, i.ACC_LD(Extent(1), Reg(1), URZ, Signed(0))],
        f"accumulator memory at 0x0, {PENDING} writes",
    ),
    "a descriptor that a fill uses": (
        [*BEGIN, *fill(0, 1), *BEGIN],
        "AsyncHazard: descriptor 0 changes, which a pending command uses",
    ),
    "a fill at the end": ([*BEGIN, *fill(0, 1), COMMIT], "the warp ends with 1 groups pending"),
    "a transfer without a group": ([*copy(0, 0, 16)], "1 commands that no SMA.COMMIT follows"),
    "a push of rows that nobody filled": (
        [*BEGIN, *fill(0, 2), *DONE, *WEIGHED, *push(F16, SET, 0, 2 << 8, 0, 32), *DONE],
        f"lane 0 reads 128 bytes of shared memory at {64 + 2 * ROW:#x}, where nothing wrote",
    ),
    "a push without weights": ([*FILLED, *PUSH, *DONE], "weights of unit 0 are used"),
    "a push on sums that nobody set": (
        [*FILLED, *WEIGHED, *push(F16, ADD, 0, 0, 0, 32), *DONE],
        "lane 0 reads 4 bytes of accumulator memory at 0x0, where nothing wrote",
    ),
    "a transfer of what nobody wrote": (
        [*copy(0, INPUT, 32), *DONE],
        f"lane 0 reads 16 bytes of global memory at {BASE + INPUT:#x}, where nothing wrote",
    ),
    "a fill of what nobody wrote": (
        [*describe(replace(PLAIN, image=BASE + INPUT - 16)), *fill(0, 6), *DONE],
        f"lane 0 reads 16 bytes of global memory at {BASE + INPUT:#x}, where nothing wrote",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HAZARDS)
def test_hazards_are_found(name: str) -> None:
    code, expected = HAZARDS[name]
    assert expected in fault([*code, EXIT])


def parted(first: list[Instr], second: list[Instr], between: list[Instr]) -> list[Instr]:
    """Warp 0 does one thing, warp 1 another, one after the other if a barrier lies between."""
    p, zero, other = Pred(0), Guard(0), Guard(8)
    code: list[Instr] = [i.S2R(SR.WARPID, Reg(0)), i.ISETP(Cmp.EQ, IntType.U32, p, Reg(0), Src.of(0))]  # fmt: skip
    code += [i.BRA(Label(len(code) + 1 + len(first)), guard=other), *first, *between]
    code += [i.BRA(Label(len(code) + 1 + len(second)), guard=zero), *second]
    return [*code, EXIT]


SHARING: dict[str, tuple[list[Instr], list[Instr], str]] = {
    "a descriptor of another warp": (
        BEGIN, [*fill(0, 1), *DONE],
        "a race: descriptor 0, with which warp 0 had to do since the last barrier",
    ),
    "a descriptor that another warp uses": (
        [*BEGIN, *fill(0, 1), *DONE], BEGIN,
        "a race: descriptor 0, with which warp 0 had to do since the last barrier",
    ),
    "two warps' transfers to a place": (
        [*copy(0, 0, 16), *DONE], [*copy(0, 0, 16), *DONE],
        "a race: lane 0 writes shared memory at 0x0, which warp 0 wrote since the last barrier",
    ),
    "a load of what another warp transferred": (
        [*copy(0, 0, 16), *DONE], [lds(0)],
        "a race: lane 0 reads shared memory at 0x0, which warp 0 wrote since the last barrier",
    ),
    "a transfer to what another warp loads": (
        [*copy(0, 0, 16), *DONE, lds(0)], [*copy(16, 0, 16), *copy(0, 0, 16), *DONE],
        "a race: lane 0 writes shared memory at 0x0, which warp 0 wrote since the last barrier",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARING)
def test_warps_share_vector_memory_and_descriptors_across_barriers(name: str) -> None:
    first, second, expected = SHARING[name]
    assert expected in fault(parted(first, second, []), threads=64)
    agreed(program(parted(first, second, [BAR]), threads=64), np.zeros(INPUT, np.uint8))


# --- what contradicts itself: found in unchecked runs as well

BAD: dict[str, list[int]] = {}
for text, changes in {
    "an element has 2 or 4 bytes": {"bytes": 3},
    "sizes, strides and dilations are at least 1": {"stride_w": 0},
    "wn · wx is the number of elements in a word": {"wx_log2": 1},
    "T is at most S, and T copies of the channels fit the banks": {"t": 2},
    "the windows lie in the padded image": {"out_h": 5},
    "the pitch is at least the channels": {"pitch": 7},
    "the image begins at a multiple of its element": {"image": BASE + 1},
    "a stored row fits shared memory": {"width": 65535, "pad_l": 255},
    "the ring begins at a multiple of 16 and fits shared memory": {"ring": 1000},
}.items():
    BAD[text] = replace(PLAIN, **changes).words()  # type: ignore[arg-type]  # numbers


@pytest.mark.parametrize("text", BAD)
def test_a_descriptor_that_contradicts_itself_is_a_fault(text: str) -> None:
    told = fault([*describe(BAD[text]), EXIT], ENGINES)
    assert f"a descriptor breaks a rule: {text}" in told
    assert ConvDesc.from_words(BAD[text], 8).check(SHARED).startswith(text)
    assert not PLAIN.check(SHARED)


ASKED: dict[str, tuple[list[Instr], str]] = {
    "a fill beyond the stored rows": ([*BEGIN, *fill(5, 2)], "0x5 breaks a rule: a fill begins"),
    "a fill of more than the ring": (
        [*describe(replace(PLAIN, ring=3)), *fill(0, 4)],
        "0x0 breaks a rule: a fill begins and ends among the stored rows, and has at most a ring of them",
    ),
    "a push beyond the patch matrix": (
        [*FILLED, *push(F16, SET, 0, 0, 100, 29)], "0x64 breaks a rule: a push begins",
    ),
    "a tap beyond the filter": ([*FILLED, *push(F16, SET, 0, 3, 0, 1)], "0x3 breaks a rule: a tap"),
    "channels beyond the image": (
        [*FILLED, *push(F16, SET, 0, 1 << 16, 0, 1)], "0x10000 breaks a rule: a tap",
    ),
    "elements of another size": (
        [*FILLED, *push(Element.F32, SET, 0, 0, 0, 1)], "0x4 breaks a rule: a push has elements",
    ),
    "a transfer of half a line": ([*copy(0, 0, 24)], "0x18 breaks a rule: a transfer is a multiple"),
    "a transfer to half a line": (
        [*copy(8, 0, 16)], "writes 16 bytes of shared memory at 0x8, which is not a multiple of 16",
    ),
    "a transfer out of shared memory": (
        [*copy(SHARED - 16, 0, 32)], f"shared memory at {SHARED:#x}, which lies outside it",
    ),
    "a transfer from behind global memory": (
        [*copy(0, INPUT + OUTPUT - 16, 32)],
        f"global memory at {BASE + INPUT + OUTPUT:#x}, which lies outside it",
    ),
    "an image before global memory": (
        [*describe(replace(PLAIN, image=BASE - 32)), *fill(1, 1)],
        f"lane 0 reads 16 bytes of global memory at {BASE - 32:#x}, which lies outside it",
    ),
    "an image that ends behind global memory": (
        [*describe(replace(PLAIN, image=BASE + INPUT + OUTPUT - 16)), *fill(1, 1)],
        f"global memory at {BASE + INPUT + OUTPUT:#x}, which lies outside it",
    ),
    "sums out of accumulator memory": (
        [*FILLED, *push(F16, SET, SMALL.accumulator_bytes // 4 - 16, 0, 0, 2)],
        "writes 128 bytes of accumulator memory",
    ),
    "a descriptor that nobody loaded": ([*fill(0, 1, cd=3)], "descriptor 3 is used"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_a_command_that_asks_for_what_is_not_there_is_a_fault(name: str) -> None:
    code, expected = ASKED[name]
    assert expected in fault([*code, *DONE, EXIT], ENGINES)


def test_a_part_of_a_warp_cannot_send() -> None:
    code = [i.S2R(SR.LANEID, Reg(0)), i.ISETP(Cmp.EQ, IntType.U32, Pred(0), Reg(0), Src.of(0)), i.EXIT(guard=Guard(0))]  # fmt: skip
    for command in (BEGIN, copy(0, 0, 16)):
        assert "lane 0 is not active" in fault([*code, *command, EXIT], ENGINES)


def test_a_launch_declares_what_its_copies_read() -> None:
    allowed = (Operand("x", BASE, 256, "r"), Operand("y", BASE + INPUT, OUTPUT, "w"))
    for code in ([*BEGIN, *fill(1, 1)], copy(0, 240, 32)):
        told = fault([*code, *DONE, EXIT], operands=allowed)
        assert f"global memory at {BASE + 256:#x}, which is no operand" in told


# --- machines

VOLTA = Machine.load("volta-8tc")


def refusals(code: list[Instr], machine: Machine) -> list[str]:
    (kernel,) = program([*code, EXIT], machine).kernels.values()
    return [p.message for p in code_problems(replace(kernel, shared_bytes=0), machine)]


def test_a_machine_without_vector_memory_refuses_its_commands() -> None:
    plain = SMALL.with_(vector_word=0)
    for command in (BEGIN[-1], fill(0, 1)[-1], copy(0, 0, 16)[-1], PUSH[-1]):
        (told,) = refusals([command], plain)
        assert "the machine has no vector memory" in told
        assert any("extension" in t for t in refusals([command], VOLTA))
    (told,) = refusals([PUSH[-1]], SMALL.with_(accumulator_bytes=0))
    assert "no accumulator memory" in told
    (told,) = refusals([PUSH[-1]], SMALL.with_(vector_word=4))
    assert "words of 4 elements: only 8 are emulated" in told


def test_beside_an_array_of_its_own_no_instruction_is_illegal() -> None:
    code = [PUSH[-1], i.FADD(FloatType.F32, Reg(1), Reg(2), Src.of(Reg(3)))]
    assert not refusals(code, SMALL)
    (told,) = refusals(code, SMALL.with_(separate_array=0))
    assert "IM2COL.PUSH is illegal in mode 'simd'" in told


def test_random_programs_for_it_verify_and_survive_assembly() -> None:
    for seed in range(4):
        p = generate.program(Random(seed), kernels=2, length=40, target="tpu-v2")
        verify(p)
        data = image.write(p)
        assert image.write(asm.assemble(*asm.disassemble(p), "text")) == data
