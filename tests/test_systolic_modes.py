"""The two modes of an SM: what is legal in which, how kernels and launches go from one to the other, what a command may name."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from systolic_programs import (
    EXIT,
    INPUT,
    LSMA_ACC,
    ONE,
    PLAIN,
    RZ,
    SIMD,
    SYSTOLIC,
    ZERO,
    begin,
    both,
    end,
    lsma,
    matrix,
    plain,
    program,
    sum_of,
    swap,
    wait,
)

from knapper.isa import asm, generate, image
from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import IsaError, KnapperError
from knapper.isa.machine import Machine
from knapper.isa.modifiers import FloatType, Half, IntType, Mode
from knapper.isa.operands import Label, Reg, Src
from knapper.isa.program import Kernel, Launch, Program
from knapper.isa.systolic import MOST
from knapper.isa.verify import code_problems, problems, verify
from knapper.runtime.session import Session

ADD = i.FADD(FloatType.F32, Reg(8), RZ, Src.of(RZ))
SMA2 = Machine.load("sma2")


def told(code: list[Instr], machine: Machine = SMA2, **settings: Any) -> list[str]:
    """What the verifier says of a kernel, which the engines refuse as well."""
    p = program(code, target=machine.to_dict(), **settings)
    found = [str(e) for e in code_problems(p.kernels["k"], machine)]
    with pytest.raises(KnapperError, match="E601"):
        Session(p).run({"x": np.zeros(INPUT, np.uint8)})
    return found


@pytest.mark.parametrize(
    "i_",
    [ADD, i.FADD(FloatType.F64, Reg(8), RZ, Src.of(RZ)), i.HADD2(Half.F16, Reg(8), RZ, Src.of(RZ)), i.IDIV(IntType.S32, Reg(8), RZ, Src.of(1))],
    ids=str,
)  # fmt: skip
def test_what_the_array_displaces_is_illegal_in_systolic_mode(i_: Instr) -> None:
    (problem,) = told([i.NOP(), SYSTOLIC, i_, SIMD, EXIT])
    assert f"kernel k: instruction 2: {i_}: {i_.mnemonic} is illegal in mode 'systolic'" in problem


@pytest.mark.parametrize("i_", [*PLAIN, wait()], ids=str)
def test_systolic_commands_are_illegal_in_simd_mode(i_: Instr) -> None:
    (problem,) = told([SYSTOLIC, SIMD, i_, EXIT])
    assert f"instruction 2: {i_}: {i_.mnemonic} is illegal in mode 'simd'" in problem


def test_integers_memory_and_branches_run_in_both_modes() -> None:
    legal = {
        cls.unit for cls in vars(i).values() if isinstance(cls, type) and "systolic" in cls.modes
    }
    assert legal == {
        "control", "barrier", "sreg", "uniform", "alu", "imul", "cvt", "lsu_global", "lsu_shared", "lsu_local", "mode", "systolic", "dma", "bitmap",
    }  # fmt: skip


def test_an_instruction_has_one_mode_on_all_paths() -> None:
    code = [i.BRA(Label(2), guard=ZERO), SYSTOLIC, i.NOP(), SIMD, EXIT]
    assert any("instruction 2: NOP: it is reached in both modes" in t for t in told(code))
    loop = [SYSTOLIC, *PLAIN, wait(), SIMD, ADD, i.BRA(Label(0), guard=ZERO), EXIT]
    assert not [*code_problems(program(loop).kernels["k"], SMA2)]
    unreachable = [i.BRA(Label(2)), *PLAIN[:1], EXIT]
    assert not [*code_problems(program(unreachable).kernels["k"], SMA2)]


def test_a_kernel_ends_in_the_mode_that_it_declares() -> None:
    (problem,) = told([SYSTOLIC, EXIT])
    assert "it ends in mode 'systolic', but the kernel is to end in 'simd'" in problem
    assert told([EXIT], mode_exit="systolic")
    assert not [
        *code_problems(
            program([EXIT], mode_entry="systolic", mode_exit="systolic").kernels["k"], SMA2
        )
    ]


def launches(grid: int, *kernels: tuple[str, str], machine: Machine = SMA2) -> list[str]:
    """What the verifier says of launches of kernels that go from mode to mode."""
    made = {
        f"k{n}": Kernel(f"k{n}", Kernel.encode([i.MODE(Mode[leave.upper()]), EXIT]), (0, 0), (32, 1, 1), 8, mode_entry=entry, mode_exit=leave)
        for n, (entry, leave) in enumerate(kernels)
    }  # fmt: skip
    p = Program(
        machine.to_dict(), made, tuple(Launch(k, (grid, 1, 1), (), ()) for k in made), (), ()
    )
    return [str(e) for e in problems(p)]


def test_launches_find_the_mode_that_the_one_before_left() -> None:
    assert not launches(
        SMA2.sms, ("simd", "systolic"), ("systolic", "systolic"), ("systolic", "simd")
    )
    (problem,) = launches(1, ("simd", "systolic"), ("simd", "simd"))
    assert "launch 1 of k1: it starts in mode simd, but finds systolic" in problem
    assert "starts in mode systolic, but finds simd" in launches(1, ("systolic", "systolic"))[0]


def test_more_blocks_than_sms_need_one_mode() -> None:
    (problem,) = launches(SMA2.sms + 1, ("simd", "systolic"))
    assert (
        f"{SMA2.sms + 1} blocks on {SMA2.sms} SMs: a block starts in the mode in which another ends"
        in problem
    )
    assert not launches(SMA2.sms + 1, ("simd", "simd"))


def test_a_machine_without_arrays_knows_one_mode() -> None:
    volta = Machine.load("volta-8tc")
    assert (
        "modes 'simd' and 'systolic', expected simd"
        in launches(1, ("simd", "systolic"), machine=volta)[0]
    )
    assert "has no extension 'systolic'" in next(
        map(str, code_problems(program([SYSTOLIC, SIMD, EXIT]).kernels["k"], volta))
    )


def test_c_has_to_fit() -> None:
    assert MOST * 32 == 384 * 16
    lsma(ONE, 384).encode()
    for m, units in ((385, 1), (193, 2), (0, 1)):
        with pytest.raises(IsaError, match="E505"):
            lsma(ONE, m, units).encode()
    with pytest.raises(IsaError, match="reach past R254"):
        lsma(ONE, 384, c=64).encode()
    with pytest.raises(IsaError, match="RZ stands for 8 registers at most, not for 9"):
        lsma(ONE, 18, c=255).encode()
    k = program([SYSTOLIC, lsma(ONE, 384, c=32), SIMD, EXIT], threads=320, registers=224)
    assert "10 warps of 224 registers exceed the SM's 65536" in next(
        map(str, problems(Program(**{**k.__dict__, "target": SMA2.to_dict()})))
    )


def test_units_are_the_machines() -> None:
    (problem,) = told([SYSTOLIC, swap(3), SIMD, EXIT])
    assert "the machine has 2 systolic units" in problem
    (problem,) = told([SYSTOLIC, LSMA_ACC, SIMD, EXIT])
    assert "the machine has no accumulator memory" in problem


def test_a_kernel_may_live_in_systolic_mode() -> None:
    o = plain()
    code = [*begin(), *PLAIN, wait(), *end(8, 8)]
    y = both(code, o.x, mode_entry="systolic", mode_exit="systolic")
    assert (matrix(y) == sum_of(o)).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", ["sma2", "sma3", "systolic-ws"])
def test_random_programs_survive_image_and_assembly(target: str, seed: int) -> None:
    p = generate.program(Random(seed), target=target)
    verify(p)
    data = image.write(p)
    assert image.write(image.read(data, "again")) == data
    assert image.write(asm.assemble(*asm.disassemble(p), "text")) == data
