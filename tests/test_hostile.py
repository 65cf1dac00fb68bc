"""Images that are sealed and well-formed, and mean harm: every one ends soon, in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from knapper.frontends import cli
from knapper.isa import image
from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import MachineFault
from knapper.isa.machine import Machine
from knapper.isa.operands import Label, Reg, Src
from knapper.isa.program import ALIGN, Kernel, Launch, Port, Program
from knapper.isa.verify import GRID
from knapper.runtime import budget
from knapper.runtime.session import EngineName, Session

ENGINES: tuple[EngineName, ...] = ("fast", "reference")
LOOP: list[Instr] = [i.BRA(Label(0)), i.EXIT()]
STRAIGHT: list[Instr] = [*[i.MOV(Reg(0), Src.of(1))] * 1000, i.EXIT()]


def program(
    code: list[Instr], *grids: tuple[int, int, int], threads: int = 32, local_bytes: int = 0
) -> Program:
    kernel = Kernel("k", Kernel.encode(code), (0,) * len(code), (threads, 1, 1), 4, 0, local_bytes)
    launches = tuple(Launch("k", grid, (), ("n",)) for grid in grids)
    target = Machine.load("volta-8tc").to_dict()
    return Program(target, {"k": kernel}, launches, (), (), arena_bytes=ALIGN)


def harmful() -> dict[str, tuple[Program, str]]:
    """What there is to fear, and the beginning of what is said."""
    one = program(LOOP[1:], (1, 1, 1))
    arena = replace(one, arena_bytes=1 << 40)
    port = Port("x", "u8", (1 << 39,), arena.arena_address)
    return {
        "a giant grid": (program(LOOP[1:], GRID), "E613: launch 0 of kernel k: 9,223,"),
        "a wide grid": (program(LOOP[1:], (GRID[0], 1, 1)), "E613: launch 0 of kernel k: 2,147,"),
        "a thousand large grids": (
            program(LOOP[1:], (1, 1, 1), *[(65535, 2000, 1)] * 1000), "E613: launch 1 of kernel k: 131,070,000 blocks, 131,070,000,001 in"),
        "blocks of a gigabyte": (
            program(LOOP[1:], (65535, 1, 1), local_bytes=1 << 24, threads=64), "E613: launch 0 of kernel k: 65,535 blocks"),
        "a giant arena": (arena, "E612: emulating the network's 1,099,511,627,776 bytes of memory takes"),
        "a giant input": (replace(arena, inputs=(port,)), "E612: emulating the network's"),
        "giant local memory": (program(LOOP[1:], (1, 1, 1), local_bytes=1 << 24, threads=1024), "E612: a block's local memory, in 64 threads"),
    }  # fmt: skip


@pytest.mark.parametrize("what", harmful())
def test_what_would_never_end_does_not_begin(
    what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, message = harmful()[what]
    path = tmp_path / "bad.elf"
    path.write_bytes(image.write(bad))
    start = time.monotonic()
    assert cli.run(["run", str(path), "--threads", "64", "--input", "random:0"]) == 1
    assert time.monotonic() - start < 3
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error {message}")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_endless_loop_meets_the_limit(engine: EngineName) -> None:
    with pytest.raises(MachineFault, match=r"E611: kernel k, block \(0, 0, 0\), warp 0, pc 0 `BRA"):
        Session(program(LOOP, (1, 1, 1))).run({}, engine=engine, limit=1000)


@pytest.mark.parametrize("engine", ENGINES)
def test_blocks_and_launches_share_the_runs_work(engine: EngineName) -> None:
    """Two launches of seven blocks; one instruction is missing, or none."""
    session = Session(program(STRAIGHT, (7, 1, 1), (7, 1, 1)))
    each = 7 * len(STRAIGHT)
    with pytest.raises(MachineFault, match=r"E613: kernel k: .* 7,007 warp .* 7,006 were left"):
        session.run({}, engine=engine, work=2 * each - 1)
    assert session.run({}, engine=engine, work=2 * each).stats.instructions["EXIT"] == 14


def test_an_honest_network_is_far_from_the_limit() -> None:
    """A gigabyte of floats in blocks of 1,024 elements are 2^18 blocks; the fast engine's limit is near 2^28."""
    budget.check(program(LOOP[1:], (1 << 18, 1, 1)), budget.WORK["reference"])
    with pytest.raises(MachineFault, match="E613"):
        budget.check(program(LOOP[1:], (1 << 29, 1, 1)), budget.WORK["fast"])


@pytest.mark.parametrize("option", ["--limit", "--threads"])
def test_a_number_that_is_none_is_refused(
    option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "good.elf"
    path.write_bytes(image.write(program(LOOP[1:], (1, 1, 1))))
    assert cli.run(["run", str(path), option, "0"]) == 2
    assert capfd.readouterr().err == f"error E704: {option} 0: expected 1 or more\n"
    assert cli.run(["run", str(path), option, "1000"]) == 0


@pytest.mark.parametrize("code", [LOOP, STRAIGHT], ids=["a loop", "blocks without a branch"])
def test_ctrl_c_ends_a_run_at_once(code: list[Instr], tmp_path: Path) -> None:
    path = tmp_path / "long.elf"
    path.write_bytes(image.write(program(code, (1 << 27, 1, 1))))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / ".ns")}
    command = [sys.executable, "-m", "knapper", "run", str(path), "-o", "out.npz", "--stats", "s.json"]  # fmt: skip
    Session(program(code, (1, 1, 1))).engine("fast", False, 1, 1)  # compile first
    running = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    time.sleep(1.5)
    start = time.monotonic()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert time.monotonic() - start < 2
    assert (running.returncode, err) == (130, "interrupted\n")
    assert [p.name for p in tmp_path.iterdir()] == ["long.elf"]
