"""A recorded run on another machine: what a full run of the same program gives there, or an error that says what does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import Graph
from knapper.isa import asm
from knapper.isa import program as isa
from knapper.isa.errors import KnapperError, UsageError
from knapper.isa.machine import Machine
from knapper.runtime.session import Session
from knapper.runtime.stats import Stats
from knapper.runtime.timing.record import Record, time_record

Recorded = Callable[[str], Record]


@pytest.fixture(scope="module")
def recorded(read_onnx: Callable[[str], Graph]) -> Recorded:
    """The run of a small network on a target, through a file."""

    @cache
    def of(target: str) -> Record:
        program = compile_graph(read_onnx("resnet_tiny.onnx"), Machine.load(target), None, "fp16")
        return Record.of(program, run(program))

    return of


def run(program: isa.Program) -> Stats:
    rng = np.random.default_rng(7)
    x = {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in program.inputs}
    return Session(program).run(x, timing=True).stats


def numbers(stats: Stats) -> dict[str, Any]:
    """All that is no provenance."""
    return {k: v for k, v in stats.to_dict().items() if k != "provenance"}


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ("volta-8tc", "v100-pcie"),
        ("volta-8tc", "v100-sxm2"),
        ("volta-8tc", "volta-4tc"),
        ("volta-4tc", "volta-8tc"),
        ("sma2", "sma2-ws"),
        ("sma2", "sma3"),
        ("sma3-ws", "sma3"),
    ],
)
def test_a_replay_is_a_full_run_of_the_same_program(
    recorded: Recorded, own: str, other: str
) -> None:
    record, machine = recorded(own), Machine.load(other)
    there = run(dataclasses.replace(record.program, target=machine.to_dict()))
    replayed = time_record(record, machine)
    assert numbers(replayed) == numbers(there)
    assert replayed.target == other


def test_other_numbers_give_other_cycles(recorded: Recorded) -> None:
    """Each of these is felt, so that equality above means something."""
    record, own = recorded("sma2"), Machine.load("sma2")
    cycles = record.time(own).cycles
    for key, value in {
        "sms": 10, "launch_cycles": 0, "dram_latency": 900, "l2_bytes_per_second": 10**11, "dram_bytes_per_second": 10**10, "lsma_fill": 99,
        "lsma_bubble": 50, "mode_switch_cycles": 500, "register_bank_reads": 1, "units.alu.latency": 20, "units.lsu_shared.interval": 8,
    }.items():  # fmt: skip
        assert record.time(own.with_(**{key: value})).cycles != cycles, key


MISFITS = [
    ("volta-8tc", "sma2", {}, "sma2 lacks tensor"),
    ("sma2", "volta-8tc", {}, "volta-8tc lacks systolic"),
    ("sma2", "systolic-ws", {}, r"commands are for units of 8 × 16, the machine's have 32 × 32"),
    ("sma2", "sma2", {"array_columns": 32}, r"for units of 8 × 16, the machine's have 8 × 32"),
    ("systolic-os", "systolic-os", {"accumulator_bytes": 512}, "256 words of accumulators to use"),
    ("volta-8tc", "volta-8tc", {"registers_per_thread": 20}, r"registers, expected 0 to 20"),
    ("volta-8tc", "volta-8tc", {"registers_per_sm": 1024}, "exceed the SM's 1024"),
    ("volta-8tc", "volta-8tc", {"shared_bytes_per_block": 256}, "bytes of shared memory, expected"),
    ("volta-8tc", "volta-8tc", {"shared_bytes_per_sm": 256}, "an SM 256"),
    ("volta-8tc", "volta-8tc", {"warps_per_sm": 1}, "a block has . warps, an SM 1"),
]


@pytest.mark.parametrize(("own", "other", "values", "text"), MISFITS)
def test_a_program_that_does_not_fit_is_not_timed(
    recorded: Recorded, own: str, other: str, values: dict[str, int], text: str
) -> None:
    machine = Machine.load(other).with_(**values) if values else Machine.load(other)
    with pytest.raises(KnapperError, match=f"E726.*{text}"):
        recorded(own).time(machine)


TWO_UNITS = """\
.target sma2
.arena 256
.input x f32[32] 0x10000000
.output y f32[32] 0x10000080

.kernel product
.block 32 1 1
.shared 4096
    MODE.SYSTOLIC
    SMA.LDB.F16 2, [URZ+2048], 64
    SMA.SWAP 2
    LSMA.F16.SET.REG R0, 2, 64, [URZ+0], 16
    SMA.COMMIT
    SMA.WAIT 0
    MODE.SIMD
    EXIT

.launch product 4 1 1
.node Gemm
"""


def test_commands_need_as_many_units_as_they_name() -> None:
    program = asm.assemble(TWO_UNITS)
    record = Record.of(program, run(program))
    assert record.time(Machine.load("sma3")).cycles == record.time(Machine.load("sma2")).cycles
    with pytest.raises(UsageError, match=r"E726.*the machine has 1 systolic units"):
        record.time(Machine.load("sma2").with_(systolic_units=1))


def test_all_that_does_not_fit_is_said_at_once(recorded: Recorded) -> None:
    small = Machine.load("sma2").with_(array_columns=32, registers_per_thread=20, warps_per_sm=1)
    with pytest.raises(KnapperError) as e:
        recorded("sma2").time(small)
    lines = str(e.value).splitlines()
    assert all(line.startswith("E726: the recorded program does not fit sma2") for line in lines)
    for text in ("8 × 32", "registers, expected 0 to 20", "warps, an SM 1"):
        assert any(text in line for line in lines), text


def test_an_array_that_no_command_uses_may_have_any_shape(recorded: Recorded) -> None:
    """Copies alone run on whatever array there is."""
    record = recorded("sma2")
    quiet = next(
        x for x in record.program.launches if record.program.kernels[x.kernel].mode_exit == "simd" and not x.macs
    )  # fmt: skip
    place = record.program.launches.index(quiet)
    kernels = {quiet.kernel: record.program.kernels[quiet.kernel]}
    program = dataclasses.replace(record.program, launches=(quiet,), kernels=kernels)
    alone = Record(program, (record.counts[place],), {})
    wide = Machine.load("sma2").with_(array_columns=32)
    assert alone.time(wide).cycles == alone.time(Machine.load("sma2")).cycles


def test_one_problem_is_a_usage_error(recorded: Recorded) -> None:
    with pytest.raises(UsageError):
        recorded("volta-8tc").time(Machine.load("sma2"))
