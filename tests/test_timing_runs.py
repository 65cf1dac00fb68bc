"""Whole programs timed: what a run, its record and the command line say of cycles, and what they refuse."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import Graph
from knapper.frontends import cli
from knapper.frontends.commands import timing
from knapper.isa import image as elf
from knapper.isa import program as isa
from knapper.isa.errors import IsaError, UsageError
from knapper.isa.machine import Machine
from knapper.runtime.counters import Counts
from knapper.runtime.paths import Paths
from knapper.runtime.session import Result, Session
from knapper.runtime.stats import Stats
from knapper.runtime.timing.launch import Run, digest
from knapper.runtime.timing.record import Record, time_record


@pytest.fixture(scope="module")
def network(read_onnx: Callable[[str], Graph]) -> isa.Program:
    """A trained network of 20 layers."""
    return compile_graph(
        read_onnx("resnet20_cifar10.onnx"), Machine.load("volta-8tc"), None, "fp16"
    )


@pytest.fixture(scope="module")
def timed(network: isa.Program) -> Result:
    return Session(network).run(pictures(network), timing=True)


def pictures(program: isa.Program) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    return {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in program.inputs}


def numbers(stats: Stats) -> dict[str, Any]:
    """All that is no provenance."""
    return {k: v for k, v in stats.to_dict().items() if k not in ("provenance", "target")}


def test_timing_changes_no_value_and_a_jump_no_cycle(network: isa.Program, timed: Result) -> None:
    session, inputs = Session(network), pictures(network)
    plain, slow = session.run(inputs), session.run(inputs, timing=True, jump=False)
    for name, value in timed.outputs.items():
        assert (plain.outputs[name] == value).all()
    assert numbers(slow.stats) == numbers(timed.stats)
    assert plain.stats.to_dict()["cycles"] is None


def test_only_launches_like_one_before_are_not_simulated_again(
    network: isa.Program, timed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated: list[str] = []
    real = Run.timing

    def noted(run: Run) -> Any:
        simulated.append(run.launch.kernel)
        return real(run)

    monkeypatch.setattr(Run, "timing", noted)
    session, inputs = Session(network), pictures(network)
    first = session.run(inputs, timing=True)
    distinct = len(simulated)
    assert len(network.kernels) <= distinct < len(network.launches)  # repeated layers
    again = session.run(inputs, timing=True)
    assert len(simulated) == distinct
    assert numbers(first.stats) == numbers(again.stats) == numbers(timed.stats)
    session.run(inputs, timing=True, jump=False)
    assert len(simulated) == 2 * distinct  # what checks a jump does not ask for its result


@pytest.mark.parametrize(
    "change",
    [
        lambda x, c: (dataclasses.replace(x, macs=x.macs + 1), c, 0.0, 0, True),
        lambda x, c: (dataclasses.replace(x, grid=(1, x.grid[0], 1)), c, 0.0, 0, True),
        lambda x, c: (x, dataclasses.replace(c, gaps=c.gaps + np.uint64(1)), 0.0, 0, True),
        lambda x, c: (x, dataclasses.replace(c, dram_read=c.dram_read + 32), 0.0, 0, True),
        lambda x, c: (x, dataclasses.replace(c, instructions=once_more(c)), 0.0, 0, True),
        lambda x, c: (x, dataclasses.replace(c, paths=longer(c)), 0.0, 0, True),
        lambda x, c: (x, c, 0.5, 0, True),
        lambda x, c: (x, c, 0.0, 32, True),
        lambda x, c: (x, c, 0.0, 0, False),
    ],
)
def test_launches_that_differ_are_told_apart(timed: Result, change: Callable[..., Any]) -> None:
    s = timed.stats.launches[1]
    assert digest(s.launch, s.counts, 0.0, 0, True) == digest(s.launch, s.counts, 0.0, 0, True)
    assert digest(*change(s.launch, s.counts)) != digest(s.launch, s.counts, 0.0, 0, True)


def once_more(c: Counts) -> Any:
    """Counters with one more pass over shared memory."""
    more = c.instructions.copy()
    more["wavefronts"][-1] += 1
    return more


def longer(c: Counts) -> Paths:
    """Paths in which one event happened once more."""
    assert c.paths is not None
    (first, *warps), *classes = c.paths.warps
    more = first.copy()
    more["count"][0] += 1
    return Paths(((more, *warps), *classes), c.paths.of_block)


def test_both_engines_take_the_same_cycles(read_onnx: Callable[[str], Graph]) -> None:
    program = compile_graph(read_onnx("resnet_tiny.onnx"), Machine.load("volta-8tc"), None, "fp16")
    session, inputs = Session(program), pictures(program)
    fast = session.run(inputs, timing=True)
    slow = session.run(inputs, engine="reference", timing=True)
    assert fast.stats.cycles == slow.stats.cycles > 0
    assert numbers(fast.stats) == numbers(slow.stats)


def test_cycles_and_energy_of_nodes_add_up(timed: Result) -> None:
    stats = timed.stats.to_dict()
    nodes = stats["nodes"].values()
    assert (
        sum(n["cycles"] for n in nodes)
        == stats["cycles"]
        == sum(k["cycles"] for k in stats["kernels"])
    )
    assert sum(n["energy_pj"] for n in nodes) == pytest.approx(stats["energy_pj"]["total"])
    assert stats["seconds_at_clock"] == pytest.approx(stats["cycles"] / 1.53e9)


def test_a_record_gives_what_a_run_gives(
    network: isa.Program, timed: Result, tmp_path: Path
) -> None:
    Record.of(network, timed.stats).save(tmp_path / "run.npz")
    record = Record.load(tmp_path / "run.npz")
    assert numbers(time_record(record, Machine.load("volta-8tc"))) == numbers(timed.stats)
    other = Machine.load("volta-8tc").with_(
        **{"units.tensor.interval": 64, "l2_latency": 500, "sms": 40}
    )
    again = Session(dataclasses.replace(network, target=other.to_dict())).run(
        pictures(network), timing=True
    )
    assert numbers(time_record(record, other)) == numbers(again.stats)
    assert again.stats.cycles > timed.stats.cycles


def test_a_record_replaces_a_file_rather_than_writing_over_it(
    network: isa.Program, timed: Result, tmp_path: Path
) -> None:
    """Whoever has the old file open, or another name for it, keeps it whole."""
    place, other = tmp_path / "run.npz", tmp_path / "other.npz"
    place.write_bytes(b"before")
    other.hardlink_to(place)
    Record.of(network, timed.stats).save(place)
    assert other.read_bytes() == b"before"
    assert len(Record.load(place).counts) == len(network.launches)


def test_what_is_no_record_is_said(network: isa.Program, timed: Result, tmp_path: Path) -> None:
    good = Record.of(network, timed.stats).to_bytes()
    place = tmp_path / "bad.npz"
    with np.load(io.BytesIO(good)) as file:
        columns = {name: file[name] for name in file}
    wild = columns["events"].copy()
    wild["pc"][0] = 1 << 30
    short = columns["events"][:-1]
    for bad in (wild, short):
        np.savez(place, **(columns | {"events": bad}))
        with pytest.raises(IsaError, match="E524"):
            Record.load(place)
    for content in (b"", b"no zip at all", good[: len(good) // 2]):
        place.write_bytes(content)
        with pytest.raises(IsaError, match="E524"):
            Record.load(place)


def test_a_run_without_timing_has_no_record(network: isa.Program) -> None:
    with pytest.raises(UsageError, match="E725"):
        Record.of(network, Session(network).run(pictures(network)).stats)


def test_a_machine_must_have_what_the_program_uses(network: isa.Program, timed: Result) -> None:
    with pytest.raises(UsageError, match=r"E726.*tensor"):
        Record.of(network, timed.stats).time(Machine.load("sma2"))


def test_the_command_line_times_a_run_and_its_record(
    timed: Result, network: isa.Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, record = tmp_path / "net.elf", tmp_path / "net.npz"
    image.write_bytes(elf.write(network))
    run = ["run", str(image), "--input", "random:0"]
    assert cli.run([*run, "--record", str(record), "--json"]) == 0
    cycles = json.loads(capsys.readouterr().out)["cycles"]
    assert cli.run(["time", str(record), "-t", "volta-8tc", "-t", "volta-4tc", "--json"]) == 0
    same, half = json.loads(capsys.readouterr().out)
    assert same["cycles"] == cycles < half["cycles"]
    assert cli.run(["time", str(image), "--no-jump", "-q"]) == 0
    assert f"{cycles:,}" in capsys.readouterr().out
    assert cli.run([*run, "--no-timing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cycles"] is None
    assert cli.run([*run, "--no-timing", "--record", str(record)]) == 2
    assert cli.run(["time", str(record), "-t", "sma2"]) == 2


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF"])
def test_nothing_is_compiled_for_a_file_that_cannot_be_timed(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "timing_core", lambda: pytest.fail("the core is compiled"))
    if content is not None:
        (tmp_path / "net.elf").write_bytes(content)
    assert cli.run(["time", str(tmp_path / "net.elf")]) in (1, 2)


def test_a_file_of_another_kind_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "net.txt").write_text("cycles: 7\n")
    with pytest.raises(IsaError, match=r"E524.*not a record of a run: no archive of numpy's"):
        Record.load(tmp_path / "net.txt")
