"""Accumulator memory, and systolic arrays of another shape than the ISA's: numbers and faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from systolic_programs import (
    COMMIT,
    EXIT,
    INPUT,
    ONE,
    TARGET,
    TYPES,
    URZ,
    Operands,
    begin,
    both,
    end,
    hazard,
    ldb,
    lsma,
    lsma_acc,
    program,
    run,
    swap,
    systolic,
    wait,
)

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import KnapperError
from knapper.isa.modifiers import Element, Start
from knapper.isa.operands import Extent, Reg, Signed, Src, UReg
from knapper.runtime.session import Session


def wide(rows: int, columns: int, words: int) -> dict[str, Any]:
    """A target with other arrays, and accumulators."""
    numbers = {"array_rows": rows, "array_columns": columns, "accumulator_bytes": 4 * words}
    return {
        **TARGET,
        **{key: {"value": n, "provenance": "assumed"} for key, n in numbers.items()},
    }


@pytest.mark.parametrize("type", Element)
@pytest.mark.parametrize("rows", [8, 32])
def test_accumulator_memory_holds_c_of_any_array(type: Element, rows: int) -> None:
    n, m = 32 * 16 // TYPES[type].bits, 21
    o = Operands(TYPES[type], m, n, steps=rows // 8)
    at, words, registers = 40, m * n, -(-m * n // 32)
    move = i.UMOV(UReg(8), Src.of(at))
    commands = [
        move, i.ACC_ST(Extent(registers), UReg(8), Signed(0), Reg(8)),
        ldb(type, 1, pitch=o.pitch(n)), swap(),
        lsma_acc(type, m, Src.of(UReg(8)), Start.ADD, o.pitch(rows)), COMMIT, wait(),
        i.ACC_LD(Extent(registers), Reg(100), UReg(8), Signed(0)),
    ]  # fmt: skip
    code = [*begin(range(8, 8 + registers)), *systolic(commands), *end(100, registers)]
    target = wide(rows, 32, at + 32 * registers)
    y = both(code, o.x, target=target)[: 4 * words]
    assert run(code, o.x, target=target).stats.macs_executed == m * n * rows
    assert (y.view(np.float32).reshape(m, n) == o.chain(False)).all()


ACCUMULATORS: dict[str, tuple[list[Instr], str]] = {
    "outside": ([i.ACC_LD(Extent(1), Reg(8), URZ, Signed(1000))], "reads 4 bytes of accumulator memory at 0xfa0, which lies outside"),
    "product outside": ([lsma_acc(ONE, 4, Src.of(950), Start.SET, 64)], "writes 512 bytes of accumulator memory at 0xed8, which lies outside"),
    "never written": ([i.ACC_LD(Extent(1), Reg(8), URZ, Signed(0))], "accumulator memory at 0x0, where nothing wrote"),
    "C never written": ([ldb(ONE), swap(), lsma_acc(ONE, 4, Src.of(8), Start.ADD, 64), COMMIT, wait()], "accumulator memory at 0x20, where nothing"),
    "pending": (
        [ldb(ONE), swap(), lsma_acc(ONE, 4, Src.of(8), Start.SET, 64), COMMIT, i.ACC_LD(Extent(1), Reg(8), URZ, Signed(0)), wait()],
        "lane 8 reads 4 bytes of accumulator memory at 0x20, which a pending systolic command writes"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_faults_of_accumulator_memory(name: str) -> None:
    commands, message = ACCUMULATORS[name]
    assert message in hazard([*begin(), *systolic(commands), EXIT], target=wide(8, 32, 1000))


def test_c_in_registers_needs_arrays_of_the_isas_shape() -> None:
    p = program([*systolic([lsma(ONE, 4)]), EXIT], target=wide(16, 16, 0))
    with pytest.raises(
        KnapperError, match="C in registers needs units of 8 × 16, the machine's have 16 × 16"
    ):
        Session(p).run({"x": np.zeros(INPUT, np.uint8)})
