"""A machine whose arrays do nothing but matrix products: the rest runs on a modelled host, with the bits that it has everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from knapper.compiler import driver, plan_text
from knapper.compiler import ops as _ops  # noqa: F401  declares the op set
from knapper.compiler.ir import Graph, Node, Type, infer
from knapper.compiler.plan import Plan
from knapper.compiler.schedule import schedule
from knapper.isa import asm, image, verify
from knapper.isa.errors import KnapperError, UsageError
from knapper.isa.machine import Machine
from knapper.isa.program import Offload, Program
from knapper.runtime.session import Result, Session
from knapper.runtime.stats import LaunchStats
from knapper.runtime.timing.record import Record

HOST, ARRAY, VOLTA = (Machine.load(name) for name in ("systolic-host", "systolic-ws", "volta-8tc"))
RNG = np.random.default_rng(0)
X = {"x": RNG.standard_normal((4, 32), np.float32)}
SIZE = 4 * 32 * 2
"""Bytes of the values between: f16[4, 32]."""


def network() -> Graph:
    """Softmax, TopK, product, Softmax: %p is read by the launch behind it and by the product, %i by nobody but the network."""
    weights = {"w": RNG.standard_normal((32, 32), np.float32), "k": np.array([32])}
    types = {"x": Type("f32", (4, 32))} | {n: Type.of(a) for n, a in weights.items()}
    nodes = []
    for op, inputs, outputs, attrs in (
        ("Softmax", ("x",), ("p",), {"axis": -1}),
        ("TopK", ("p",), ("v", "i"), {"axis": -1, "k": 32}),
        ("MatMul", ("p", "w"), ("m",), {}),
        ("Add", ("m", "v"), ("s",), {}),
        ("Softmax", ("s",), ("y",), {"axis": -1}),
    ):
        made = infer(op, [types[v] for v in inputs], attrs)
        types |= zip(outputs, made, strict=True)
        nodes.append(Node(op, inputs, outputs, made, attrs, f"{op.lower()}_{outputs[0]}"))
    del weights["k"]
    return Graph("net", {"x": types["x"]}, {"y": "y", "i": "i"}, tuple(nodes), weights).verify()


@pytest.fixture(scope="module")
def graph() -> Graph:
    return driver.optimize(network(), driver.Options(precision="fp16"))


@pytest.fixture(scope="module")
def plan(graph: Graph) -> Plan:
    return schedule(graph, HOST)


@pytest.fixture(scope="module")
def program(graph: Graph) -> Program:
    return driver.finish(graph, HOST)


@pytest.fixture(scope="module")
def result(program: Program) -> Result:
    return Session(program).run(X, timing=True)


def offloaded(result: Result) -> list[LaunchStats]:
    return [s for s in result.stats.launches if s.launch.host]


# --- where what runs


def test_products_stay_on_the_array_and_all_else_goes_to_the_host(plan: Plan) -> None:
    kinds = {n.op: s.kind for s in plan.steps for n in s.group.nodes if n.op != "Cast"}
    assert kinds.pop("MatMul") == kinds.pop("Add") == "accumulating"  # the sum is its epilogue
    assert kinds == {"Softmax": "host", "TopK": "host"}


def test_the_host_takes_no_product_that_the_array_can_compute(graph: Graph) -> None:
    with pytest.raises(KnapperError, match=r"E412.*host does not serve .*accumulating serves it"):
        schedule(graph, HOST, {"matmul*": {"kind": "host"}})


def test_the_lanes_around_the_array_compute_no_launch(graph: Graph) -> None:
    with pytest.raises(KnapperError, match=r"E412.*simd does not serve .*to the host"):
        schedule(graph, HOST, {"softmax*": {"kind": "simd"}})


def test_machines_without_a_host_are_as_they_were(graph: Graph) -> None:
    assert {s.kind for s in schedule(graph, ARRAY).steps} == {"simd", "accumulating"}
    with pytest.raises(KnapperError, match="volta-8tc has no host"):
        schedule(graph, VOLTA, {"softmax*": {"kind": "host"}})


def test_values_are_those_of_other_machines(graph: Graph, result: Result, plan: Plan) -> None:
    for machine in (ARRAY, VOLTA):
        other = Session(driver.finish(graph, machine)).run(X).outputs
        assert {n: a.tobytes() for n, a in other.items()} == {
            n: a.tobytes() for n, a in result.outputs.items()
        }
    assert plan.evaluate(X)["i"].tobytes() == result.outputs["i"].tobytes()


# --- what crosses the link


def test_what_the_host_has_is_not_sent_again_and_what_only_it_needs_stays(
    plan: Plan, result: Result
) -> None:
    """%p crosses back for the product, not for TopK behind it; %x, an input, lies with the accelerator."""
    first, second, last = (plan.crossings[s.name] for s in plan.steps if s.kind == "host")
    sizes = {v: t.bytes for s in plan.steps for v, t in s.group.outputs.items()}
    (summed,) = next(s.group.outputs for s in plan.steps if s.kind == "accumulating")
    rows = result.outputs["i"].nbytes
    assert first == Offload(X["x"].nbytes, SIZE, True)
    assert second == Offload(0, SIZE + rows, False)
    assert last == Offload(sizes[summed], result.outputs["y"].nbytes, True)


def test_launches_of_one_step_share_its_crossing(program: Program, plan: Plan) -> None:
    """A step that takes several kernels sends before the first and receives after the last."""
    hosts = [x.host for x in program.launches if x.host]
    wanted = [*plan.crossings.values()]
    for of in ("sent", "received", "asked"):
        assert sum(getattr(h, of) for h in hosts) == sum(getattr(w, of) for w in wanted)


# --- where it shows


def test_plan_text_shows_the_host_and_is_read_back(plan: Plan, tmp_path: Path) -> None:
    shown = plan_text.show(plan)
    assert 'host {code="simd"} simd..simd' in shown
    assert f"link {X['x'].nbytes:,} and back {SIZE:,} bytes, asked" in shown
    plan_text.save(plan, tmp_path / "net.plan")
    back = plan_text.load(tmp_path / "net.plan", HOST)
    assert [(s.kind, s.options) for s in back.steps] == [(s.kind, s.options) for s in plan.steps]


def test_image_and_assembly_keep_the_host(program: Program, tmp_path: Path) -> None:
    back = image.read(image.write(program))
    assert [x.host for x in back.launches] == [x.host for x in program.launches]
    asm.save(program, tmp_path / "p.s")
    again = asm.load(tmp_path / "p.s")
    assert [x.host for x in again.launches] == [x.host for x in program.launches]
    assert image.write(again) == image.write(program)


def test_a_machine_must_have_the_host_that_a_launch_names(program: Program) -> None:
    elsewhere = replace(program, target=HOST.with_(nonmatrix="simt").to_dict())
    assert any("has none" in str(p) for p in verify.problems(elsewhere))
    lost = tuple(replace(x, host=Offload(-1, 0, False)) for x in program.launches)
    assert any("-1 bytes" in str(p) for p in verify.problems(replace(program, launches=lost)))


def test_stats_name_the_host(result: Result) -> None:
    modes = [k["mode"] for k in result.stats.to_dict()["kernels"]]
    assert modes.count("host") == len(offloaded(result)) > 0
    assert result.stats.macs == 4 * 32 * 32


# --- what it costs


def test_time_is_asking_link_and_operations(result: Result) -> None:
    for s in offloaded(result):
        assert s.measured
        assert s.launch.host
        host = s.launch.host
        asking, link = 1e-5 * host.asked, (host.sent + host.received) / 12e9  # the target's numbers
        seconds = asking + link + operations(s) / (3e9 * 32)
        assert s.measured.timing.cycles == pytest.approx(seconds * HOST.clock_hz, abs=1)
        assert s.measured.timing.active_sms == 0
        assert sum(s.measured.timing.busy.values()) == pytest.approx(1)
        assert sum(s.measured.node_cycles) == s.measured.timing.cycles


def operations(s: LaunchStats) -> int:
    """Lanes of executed arithmetic, addresses included; loads, stores and what a warp does as a whole are none."""
    lanes = s.counts.instructions["lanes"].tolist()
    units = [i.resource() for i in s.kernel.code]
    arithmetic = ("alu", "imul", "fma", "fp64", "sfu", "cvt")
    return sum(n for n, unit in zip(lanes, units, strict=True) if unit in arithmetic)


def test_energy_is_operations_link_and_the_waiting_chip(result: Result) -> None:
    for s in offloaded(result):
        assert s.measured
        assert s.launch.host
        events = s.measured.energy.events
        assert events.keys() <= {"host_flop", "link_byte", "constant"}
        moved = s.launch.host.sent + s.launch.host.received
        assert events.get("link_byte", 0.0) == pytest.approx(moved * HOST.energy["link_byte"])
        assert events["host_flop"] == pytest.approx(operations(s) * HOST.energy["host_flop"])
        milliwatts = HOST.constant_milliwatts
        waiting = s.measured.timing.cycles / HOST.clock_hz * milliwatts * 1e9
        assert events["constant"] == pytest.approx(waiting)


def test_a_faster_link_and_a_faster_host_take_less(program: Program) -> None:
    def seconds(**numbers: int) -> float:
        own = replace(program, target=HOST.with_(**numbers).to_dict())
        return sum(s.measured.timing.cycles for s in offloaded(Session(own).run(X, timing=True)) if s.measured)  # fmt: skip

    assert seconds(host_microseconds=1) < seconds()
    assert seconds(link_bytes_per_second=HOST.link_bytes_per_second * 4) < seconds()
    assert seconds(host_clock_hz=HOST.host_clock_hz // 8) > seconds()


def test_a_recorded_run_needs_a_host_as_well(program: Program, result: Result) -> None:
    record = Record.of(program, result.stats)
    again = record.time(HOST)
    assert again.to_dict()["cycles"] == result.stats.to_dict()["cycles"]
    with pytest.raises(UsageError, match=r"E726.*has no host"):
        record.time(HOST.with_(nonmatrix="simt"))
