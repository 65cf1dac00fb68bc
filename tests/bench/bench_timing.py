"""What cycles cost: the simulation of an SM, a network run with timing beside without, its record on many machines, a MAC. Not part of the
test run.

    python tests/bench/bench_timing.py [MODEL.onnx] [-t volta-8tc …] [--variants 100] [--runs 5] [--json]

Without a model: resnet50 of `$KNAPPER_DATA/models` (or `../models` beside it). All times are CPU seconds of all threads; ratios are of one
process and taken in turns, the least of some runs each.

    ratio, first    a run with timing by one without, nothing known from runs before: the budget is 1.5
    ratio, again    the same once the session has timed such a run: equal launches are not simulated again
    simulated       warp instructions that the simulation issues in a second, on one core, with and without jumping over steady states
    variants        as many machines as asked, each with some numbers moved by up to 30 %, from one record: the budget is 60 s for 100;
                    three of them are compared with full runs, which must be equal
    MAC a second    values and cycles of a GEMM on the systolic arrays, beside STONNE's 2.9 million (16 × 16, output stationary, 784 ×
                    128 × 1152, measured once on a machine like this one): the budget is 1,000 times that
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: idle threads would spin on our clock

import numpy as np
import onnx
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parents[2] / ".ns"))

import knapper
from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.runtime.session import Session
from knapper.runtime.stats import Stats
from knapper.runtime.timing import launch as launches
from knapper.runtime.timing.record import Record, time_record

TIMING: Any = launches
"""Its `run` simulates an SM; compiled functions have no type."""
STONNE = 2.9e6
"""Multiply-accumulates a CPU second."""
GEMM = (784, 1152, 128)
"""Its largest: rows, k, columns."""
CHECKED = 3
"""Variants compared with full runs."""
MOVED = ("l2_latency", "dram_latency", "dram_bytes_per_second", "l2_bytes_per_second", "clock_hz", "launch_cycles",
         "units.alu.latency", "units.alu.interval", "units.lsu_shared.latency", "units.imul.latency")  # fmt: skip
"""Numbers that variants differ in; all targets have them."""
Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A network on a target; CPU seconds."""

    target: str
    cycles: int
    plain: float
    first: float
    again: float
    ratio_first: float
    ratio_again: float


@dataclass(frozen=True)
class Simulation:
    """Its launches, simulated alone."""

    target: str
    issued: int
    """Warp instructions of the simulated SMs."""
    million_a_second: float
    """Without jumps: every one is simulated."""
    million_a_second_jumped: float


@dataclass(frozen=True)
class Replay:
    """Its record on other machines."""

    target: str
    variants: int
    seconds: float
    checked: int
    """Equal to full runs; a difference ends the benchmark."""


@dataclass(frozen=True)
class Product:
    """A GEMM on an array; useful multiply-accumulates a CPU second."""

    target: str
    macs: int
    cycles: int
    first: float
    again: float
    times_stonne: float
    """Of the first."""


# --- a network


def network(program: Program, runs: int) -> tuple[Network, Record]:
    """Runs without, with, and with timing again, in turns."""
    session, x = Session(program), inputs(program)
    session.run(x)
    stats = session.run(x, timing=True).stats
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: session.run(x),
        "first": lambda: first(session, x),
        "again": lambda: session.run(x, timing=True),
    }
    t = least(ways, runs)
    ratios = t["first"] / t["plain"], t["again"] / t["plain"]
    row = Network(stats.target, stats.cycles, t["plain"], t["first"], t["again"], *ratios)
    return row, Record.of(program, stats)


def first(session: Session, x: Inputs) -> Stats:
    """A run as if the session had timed none."""
    assert session._meter is not None
    session._meter.known.clear()
    return session.run(x, timing=True).stats


def simulation(record: Record, runs: int) -> Simulation:
    """The simulated SMs of a record, each alone."""
    calls = list(simulated(record))
    issued = sum(issue(arrays, False) for arrays in calls)
    spent = {j: sum(of_calls(arrays, j, runs) for arrays in calls) for j in (False, True)}
    target = str(record.program.target["name"])
    return Simulation(target, issued, *(issued / spent[j] * 1e-6 for j in (False, True)))


def simulated(record: Record) -> Iterator[list[Any]]:
    """The arguments of every simulation of an SM that a replay makes."""
    kept: list[list[Any]] = []
    real = TIMING.run

    def noted(*arguments: Any) -> int:
        kept.append([a.copy() for a in arguments[:-1]])
        return int(real(*arguments))

    TIMING.run = noted
    try:
        record.time(Machine.from_dict(record.program.target))
    finally:
        TIMING.run = real
    return iter(kept)


def issue(arrays: list[Any], jump: bool) -> int:
    """Simulate; warp instructions issued."""
    own = [a.copy() for a in arrays]
    TIMING.run(*own, jump)
    return int(own[5]["slots"][0][0])


def of_calls(arrays: list[Any], jump: bool, runs: int) -> float:
    """The least CPU time of one simulation; copies of its arguments are not counted."""
    spent = []
    for _ in range(runs):
        own = [a.copy() for a in arrays]
        began = time.process_time()
        TIMING.run(*own, jump)
        spent.append(time.process_time() - began)
    return min(spent)


# --- many machines


def replay(record: Record, count: int) -> Replay:
    """Variants of the machine, and full runs of the program on some."""
    own, rng = Machine.from_dict(record.program.target), random.Random(0)
    machines = [variant(own, rng) for _ in range(count)]
    began = time.process_time()
    timed = [time_record(record, machine) for machine in machines]
    seconds = time.process_time() - began
    for stats, machine in list(zip(timed, machines, strict=True))[:CHECKED]:
        program = replace(record.program, target=machine.to_dict())
        full = Session(program).run(inputs(program), timing=True).stats
        if numbers(full) != numbers(stats):
            raise SystemExit(f"a replay on {machine.name} differs from a run")
    return Replay(own.name, count, seconds, min(CHECKED, count))


def variant(own: Machine, rng: random.Random) -> Machine:
    """Some numbers moved."""
    flat = own.to_dict()

    def value(key: str) -> int:
        at: Any = flat
        for part in key.split("."):
            at = at[part]
        return int(at["value"])

    keys = rng.sample(MOVED, 4)
    return own.with_(**{k: max(1, round(value(k) * rng.uniform(0.7, 1.3))) for k in keys})


def numbers(stats: Stats) -> dict[str, Any]:
    return {k: v for k, v in stats.to_dict().items() if k != "provenance"}


# --- a product


def product(target: str, runs: int) -> Product:
    """Values and cycles of a GEMM."""
    m, k, n = GEMM
    session = Session(knapper.compile(gemm(m, k, n), target=target).program)
    x = inputs(session.program)
    result = session.run(x, timing=True)
    t = least(
        {"first": lambda: first(session, x), "again": lambda: session.run(x, timing=True)}, runs
    )
    macs = m * k * n
    speeds = macs / t["first"], macs / t["again"]
    return Product(target, macs, result.stats.cycles, *speeds, speeds[0] / STONNE)


def gemm(m: int, k: int, n: int) -> onnx.ModelProto:
    """y = a · b, b a weight."""
    weights = np.random.default_rng(1).standard_normal((k, n)).astype(np.float32)
    b = helper.make_tensor("b", TensorProto.FLOAT, (k, n), weights.tobytes(), raw=True)
    a, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("a", (m, k)), ("y", (m, n)))
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "gemm", [a], [y], [b])  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# --- measuring


def inputs(program: Program) -> Inputs:
    rng = np.random.default_rng(0)
    return {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in program.inputs}


def least(ways: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """The least CPU time of each of some calls, taken in turns."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, f in ways.items():
            began = time.process_time()
            f()
            spent[name].append(time.process_time() - began)
    return {name: min(times) for name, times in spent.items()}


def resnet50() -> Path:
    data = Path(os.environ.get("KNAPPER_DATA", Path(__file__).parents[3] / "shared"))
    places = [data / "models" / "resnet50.onnx", data.parent / "models" / "resnet50.onnx"]
    return next((p for p in places if p.is_file()), places[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=resnet50())
    parser.add_argument("-t", "--target", action="append", default=[])
    parser.add_argument("--product", action="append", default=[], help="targets of the GEMM")
    parser.add_argument("--variants", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    rows: list[Any] = []
    for target in a.target or ["volta-8tc", "sma2", "sma3"]:
        row, record = network(knapper.compile(str(a.model), target=target).program, a.runs)
        rows += [row, simulation(record, a.runs), replay(record, a.variants)]
    rows += [product(target, a.runs) for target in a.product or ["sma2", "sma3", "systolic-os"]]
    if a.json:
        print(json.dumps([{"kind": type(r).__name__, **asdict(r)} for r in rows]))
        return
    for r in rows:
        shown = (f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v:,}" if isinstance(v, int) else v for k, v in asdict(r).items())  # fmt: skip
        print(f"{type(r).__name__:11}", "  ".join(shown))


if __name__ == "__main__":
    main()
