"""Running a program: inputs are checked, outputs and statistics come out, compiled code is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import KnapperError, Problems, UsageError
from knapper.isa.modifiers import SR, Bits32, Cmp, Direction, FloatType, Half, IntType, Width
from knapper.isa.operands import Guard, Label, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import ALIGN, BASE, Kernel, Launch, Port, Program
from knapper.runtime.decode import decode
from knapper.runtime.session import EngineName, Session

ENGINES: tuple[EngineName, ...] = ("reference", "fast")
THREADS = 64
X, Y, Z = (BASE + n * ALIGN for n in range(3))


def scale(factor: Src) -> Kernel:
    """y = x · factor, one element a thread; the second instruction half works for the second node."""
    code: list[Instr] = [
        i.S2R(SR.TID_X, Reg(0)), i.SHF(Direction.L, IntType.U32, Reg(0), Reg(0), Src.of(2)),
        i.ULDC(Bits32._64, UReg(0), Unsigned(0)), i.ULDC(Bits32._64, UReg(2), Unsigned(8)),
        i.LDG(Width._32, Reg(1), UReg(0), Reg(0), Signed(0)), i.FMUL(FloatType.F32, Reg(1), Reg(1), factor),
        i.STG(Width._32, UReg(2), Reg(0), Signed(0), Reg(1)), i.EXIT(),
    ]  # fmt: skip
    return Kernel("scale", Kernel.encode(code), (0, 0, 0, 0, 0, 1, 1, 1), (THREADS, 1, 1), 2)


def twice() -> Program:
    """y = 4 x, in two launches of one kernel: x → z → y."""
    kernel = scale(Src.of(0x40000000))
    launches = (
        Launch("scale", (1, 1, 1), (X, Z), ("load", "double"), note="first"), Launch("scale", (1, 1, 1), (Z, Y), ("again", "more"), note="second"),
    )  # fmt: skip
    ports = Port("x", "f32", (8, 8), X), Port("y", "f32", (4, 16), Y)
    return Program(
        {"name": "tiny"},
        {"scale": kernel},
        launches,
        (ports[0],),
        (ports[1],),
        arena_bytes=3 * ALIGN,
        meta={"model": "abc"},
    )


INPUT = np.arange(64, dtype=np.float32).reshape(8, 8)


@pytest.mark.parametrize("engine", ENGINES)
def test_launches_run_in_order_and_ports_have_their_types(engine: EngineName) -> None:
    seen: list[tuple[int, int, str]] = []
    result = Session(twice()).run({"x": INPUT}, engine=engine, progress=lambda *p: seen.append(p))
    assert result.outputs["y"].dtype == np.float32
    np.testing.assert_array_equal(result.outputs["y"], 4 * INPUT.reshape(4, 16))
    assert seen[-2:] == [(0, 2, "first"), (1, 2, "second")]


@pytest.mark.parametrize("engine", ENGINES)
def test_statistics(engine: EngineName) -> None:
    stats = Session(twice()).run({"x": INPUT}, engine=engine).stats.to_dict()
    assert stats["target"] == "tiny"
    assert stats["instructions"] == {
        "ULDC": 8,
        "S2R": 4,
        "SHF": 4,
        "LDG": 4,
        "FMUL": 4,
        "STG": 4,
        "EXIT": 4,
    }
    assert stats["dram_bytes"] == stats["l2_bytes"] == {"read": 512, "write": 512}
    assert stats["smem_bytes"] == {"read": 0, "write": 0}
    assert [k["nodes"] for k in stats["kernels"]] == [["load", "double"], ["again", "more"]]
    assert {n: row["instructions"] for n, row in stats["nodes"].items()} == {
        "load": 10,
        "double": 6,
        "again": 10,
        "more": 6,
    }
    assert stats["provenance"]["model"] == "abc"
    assert stats["mode_switches"] == 0
    assert json.loads(json.dumps(stats)) == stats


@pytest.mark.parametrize("engine", ENGINES)
def test_the_coalescer_merges_neighbours_in_a_sector(engine: EngineName) -> None:
    """Lanes 4 bytes apart share sectors; 32 bytes apart they do not; one address is one request."""

    def requests(shift: int) -> tuple[int, int]:
        code: list[Instr] = [
            i.S2R(SR.LANEID, Reg(0)), i.SHF(Direction.L, IntType.U32, Reg(0), Reg(0), Src.of(shift)),
            i.ULDC(Bits32._64, UReg(0), Unsigned(0)), i.LDG(Width._32, Reg(1), UReg(0), Reg(0), Signed(0)), i.EXIT(),
        ]  # fmt: skip
        kernel = Kernel("k", Kernel.encode(code), (0,) * 5, (32, 1, 1), 2)
        port = Port("x", "u8", (2048,), BASE)
        program = Program(
            {},
            {"k": kernel},
            (Launch("k", (3, 1, 1), (BASE,), ("n",)),),
            (port,),
            (),
            arena_bytes=2048,
        )
        stats = Session(program).run({"x": np.zeros(2048, np.uint8)}, engine=engine).stats
        return stats.bytes("l2_bytes")["read"], stats.bytes("dram_bytes")["read"]

    assert requests(2) == (3 * 128, 128)
    assert requests(4) == (3 * 512, 512)
    assert requests(5) == (3 * 1024, 1024)
    assert requests(32) == (3 * 32, 32)  # a shift by the width gives 0: one address


def matrix_program(steps: int) -> Program:
    code: list[Instr] = [i.MOV(Reg(n), Src.of(0)) for n in range(8)]
    code += [i.HMMA(Half.F16, Reg(8), Reg(0), Reg(4), Reg(255)) for _ in range(steps)] + [i.EXIT()]
    kernel = Kernel(
        "mm", Kernel.encode(code), (1,) * 8 + (0,) * (steps + 1), (32, 1, 1), 16, matrix=True
    )
    launch = Launch("mm", (2, 1, 1), (), ("conv", "relu"), macs=8000)
    return Program(
        {"extensions": ("tensor",)}, {"mm": kernel}, (launch,), (), (), arena_bytes=ALIGN
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_macs_executed_follow_the_instructions(engine: EngineName) -> None:
    for steps in (3, 2):
        stats = Session(matrix_program(steps)).run({}, engine=engine).stats
        assert (stats.macs, stats.macs_executed) == (8000, 2 * steps * 4096)
        assert stats.nodes["conv"]["macs"] == 8000  # the useful ones go to the node that multiplies
        assert stats.nodes["relu"]["macs_executed"] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_do_not_see_each_other(engine: EngineName) -> None:
    session = Session(twice())
    first = session.run({"x": INPUT}, engine=engine)
    session.run({"x": 7 * INPUT}, engine=engine)
    again = session.run({"x": INPUT}, engine=engine)
    np.testing.assert_array_equal(first.outputs["y"], again.outputs["y"])
    assert first.stats.to_dict() == again.stats.to_dict()


def test_all_that_is_wrong_with_inputs_is_told_at_once() -> None:
    with pytest.raises(Problems) as e:
        Session(twice()).run({"x": np.zeros((8, 9)), "w": INPUT})
    assert [p.code for p in e.value.problems] == ["E720", "E722"]  # one an input: its type in whole
    assert "there is no input 'w' (hint: the network has x: f32[8,8])" in str(e.value)
    assert (
        "input 'x': expected f32[8,8], got float64[8,9] (hint: convert it: x.astype('float32'))"
        in str(e.value)
    )
    with pytest.raises(KnapperError, match=r"E720: input 'x' is missing"):
        Session(twice()).run({})


# --- compiled code


def endless() -> Program:
    code: list[Instr] = [
        i.UMOV(UReg(0), Src.of(1)), i.UISETP(Cmp.NE, IntType.U32, Pred(0), UReg(0), Src.of(0)), i.BRA(Label(0), guard=Guard(0)), i.EXIT(),
    ]  # fmt: skip
    kernel = Kernel("spin", Kernel.encode(code), (0,) * 4, (32, 1, 1), 1)
    return Program(
        {}, {"spin": kernel}, (Launch("spin", (1, 1, 1), (), ("n",)),), (), (), arena_bytes=ALIGN
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_keyboard_interrupt_stops_a_run(threads: int) -> None:
    session = Session(endless())
    session.engine("fast", False, threads, 1 << 62)  # compile first
    threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        session.run({}, threads=threads, limit=1 << 62)
    assert time.monotonic() - start < 5


COUNT = """
import logging, sys
from importlib.util import module_from_spec, spec_from_file_location
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
spec = spec_from_file_location("session", sys.argv[1])
session = sys.modules["session"] = module_from_spec(spec)
spec.loader.exec_module(session)
session.Session(session.twice()).run({"x": session.INPUT}, progress=lambda done, total, what: print(what))
"""


def run_with(cache: Path) -> str:
    env = {
        **os.environ,
        "KNAPPER_CACHE": str(cache),
        "PYTHONPATH": str(Path(__file__).parent.parent / ".ns"),
    }
    done = subprocess.run(
        [sys.executable, "-c", COUNT, __file__], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_compiled_code_is_announced_kept_and_checked(tmp_path: Path) -> None:
    cold = run_with(tmp_path)
    assert "compiling the emulator core (" in cold  # the progress callback
    assert "parts of the emulator core in" in cold  # the log
    assert run_with(tmp_path).split("\n") == ["first", "second", ""]
    for code in tmp_path.rglob("*.units"):
        code.write_bytes(code.read_bytes()[:-100])
    assert "compiling the emulator core" in run_with(tmp_path)


def test_no_cache_directory_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = run_with(tmp_path / "file")
    assert "cannot keep compiled code in" in out
    assert out.rstrip().endswith("second")


def test_sixty_kernels_of_a_thousand_instructions_decode_quickly() -> None:
    code = [
        i.FFMA(FloatType.F32, Reg(n % 40), Reg(n % 39), Src.of(Reg(n % 38)), Reg(n % 37))
        for n in range(1000)
    ]
    kernels = [Kernel(f"k{n}", Kernel.encode(code), (0,) * 1000, (32, 1, 1), 64) for n in range(60)]
    decode(kernels, ())
    start = time.process_time()
    decode(kernels, ())
    assert (
        time.process_time() - start < 0.25
    )  # 0.02 s on a quiet machine: no object per instruction


def test_an_engine_that_does_not_exist_is_said() -> None:
    with pytest.raises(
        UsageError, match=r"E723: no engine is called 'slow' \(hint: there are fast and reference\)"
    ):
        Session(twice()).run({"x": INPUT}, engine="slow")  # type: ignore[arg-type]


def test_threads_that_share_a_session_get_their_own_outputs() -> None:
    session = Session(twice())
    wrong: list[int] = []

    def work(k: int) -> None:
        x = INPUT + k
        outputs = [session.run({"x": x}).outputs["y"] for _ in range(20)]
        wrong.extend(k for y in outputs if not np.array_equal(y, 4 * x.reshape(4, 16)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_memory_that_no_computer_has_is_one_fault() -> None:
    with pytest.raises(KnapperError, match="E612: emulating the network's"):
        Session(replace(twice(), arena_bytes=1 << 60))
