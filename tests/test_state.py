"""States: what a session keeps on the device from run to run, in place where that is possible, copied by a launch where not."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from state_models import ROOM, ROW, WIDTH, cache, rows

import knapper
from knapper.compiler import driver, plan_text, text
from knapper.compiler.ir import Array, Graph, evaluate
from knapper.compiler.plan import Plan
from knapper.frontends.api import Image
from knapper.frontends.oracle import Oracle
from knapper.isa import asm
from knapper.isa import image as elf
from knapper.isa.errors import IRError, IsaError, KnapperError, UsageError
from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.runtime.session import EngineName, Session
from knapper.runtime.timing.record import Record

MACHINE = Machine.load("volta-8tc")
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


def parsed(body: str, inputs: str, outputs: str, *states: str) -> Graph:
    kept = "".join(f"  state {s}\n" for s in states)
    return text.parse(f"graph @net({inputs}) {{\n{body}\n  return {outputs}\n{kept}}}\n")


def compiled(g: Graph, precision: str = "fp32", machine: Machine = MACHINE) -> Program:
    return driver.compile_graph(g, machine, precision=precision)


def kinds(g: Graph, precision: str = "fp32", machine: Machine = MACHINE) -> dict[str, str]:
    """Group → kind of its launch, of those that scatter or copy."""
    options = driver.Options(precision=precision, machine=machine)
    plan = driver.plan(driver.optimize(g, options), machine)
    ops = {"ScatterElements", "ScatterND", "Identity"}
    return {
        s.group.nodes[0].loc or s.group.nodes[0].outputs[0]: s.kind
        for s in plan.steps
        if s.group.nodes[0].op in ops
    }


@pytest.fixture(scope="module")
def kept() -> Image:
    return knapper.compile(cache(), "volta-8tc", "fp32", state={"past": "present"})


# --- sessions


@pytest.mark.parametrize("engine", ENGINES)
def test_a_session_keeps_what_a_run_leaves(kept: Image, engine: EngineName) -> None:
    expected = np.zeros((2, ROOM, WIDTH), np.float32)
    with kept.session() as session:
        assert dict(session.state).keys() == {"past"}
        assert not session.state["past"].any()
        for i, result in enumerate(
            session.run_many(map(rows, range(4)), engine=engine, checked=True)
        ):
            expected[0, i] = expected[1, i + 3] = i + 1
            np.testing.assert_array_equal(result.outputs["y"], expected.sum(1))
            assert result.outputs.keys() == {"y"}
        np.testing.assert_array_equal(session.state["past"], expected)
        session.reset()
        assert not session.state["past"].any()


def test_feeding_a_state_sets_it(kept: Image) -> None:
    past = np.random.default_rng(0).standard_normal((2, ROOM, WIDTH), np.float32)
    with kept.session() as session:
        session.run(rows(0) | {"past": past})
        after = session.state["past"]
    assert np.array_equal(after[:, 8:], past[:, 8:])
    assert (after[0, 0] == 1).all()
    assert "past" in session.state
    assert "present" not in session.state
    assert repr(session.state) == f"Kept(past: f32[2,{ROOM},{WIDTH}])"


def test_a_recurrent_network_keeps_its_vectors() -> None:
    """The cell is made from its old value, so it is copied; what a record says of it can be timed again."""
    rng = np.random.default_rng(0)
    w, r = (rng.standard_normal((1, 64, n)).astype(np.float32) * 0.3 for n in (8, 16))
    info = helper.make_tensor_value_info
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "", "", "h", "c"], ["y", "hn", "cn"], hidden_size=16
    )
    ports = [info("x", 1, (1, 1, 8)), info("h", 1, (1, 1, 16)), info("c", 1, (1, 1, 16))]
    outputs = [info("y", 1, (1, 1, 1, 16)), info("hn", 1, (1, 1, 16)), info("cn", 1, (1, 1, 16))]
    weights = [numpy_helper.from_array(a, n) for a, n in ((w, "w"), (r, "r"))]
    graph = helper.make_graph([node], "lstm", ports, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    image = knapper.compile(model, "volta-8tc", "fp32", state={"h": "hn", "c": "cn"})
    theirs, h, c = Oracle(model.SerializeToString()), *(np.zeros((1, 1, 16), np.float32),) * 2
    with image.session() as session:
        for _ in range(4):
            x = rng.standard_normal((1, 1, 8)).astype(np.float32)
            want = theirs.run({"x": x, "h": h, "c": c})
            h, c = want["hn"], want["cn"]
            result = session.run({"x": x}, timing=True)
            np.testing.assert_allclose(result.outputs["y"], want["y"], atol=1e-6)
            np.testing.assert_allclose(session.state["c"], c, atol=1e-6)
    assert result.stats.to_dict()["provenance"]["kept"] == ["h", "c"]
    record = Record.of(image.program, result.stats)
    assert record.time(MACHINE).cycles == result.stats.cycles


def test_sessions_do_not_share_their_states(kept: Image) -> None:
    with kept.session() as one, kept.session() as other:
        one.run(rows(0))
        assert one.state["past"].any()
        assert not other.state["past"].any()


def test_run_of_an_image_is_a_function_of_its_inputs(kept: Image) -> None:
    first, again = kept.run(rows(0)), kept.run(rows(0))
    assert first.outputs.keys() == {"present", "y"}
    for name, y in first.outputs.items():
        np.testing.assert_array_equal(y, again.outputs[name])


def test_results_are_computed_when_they_are_asked_for(kept: Image) -> None:
    asked = list[int]()
    with kept.session() as session:
        results = session.run_many(rows(asked.append(i) or i) for i in range(3))
        assert asked == []
        next(results)
        assert asked == [0]


def test_other_inputs_are_needed_and_wrong_ones_refused(kept: Image) -> None:
    with kept.session() as session:
        for feed, code in (
            ({"new": rows(0)["new"]}, "E720"),
            (rows(0) | {"present": np.zeros(3)}, "E720"),
            (rows(0) | {"past": np.zeros((2, 3), np.float32)}, "E721"),
            (rows(0) | {"past": np.zeros((2, ROOM, WIDTH))}, "E722"),
        ):
            with pytest.raises(UsageError) as e:
                session.run(feed)
            assert e.value.code == code


# --- in place


def test_an_update_writes_the_new_rows_and_no_others(kept: Image) -> None:
    with kept.session() as session:
        stats = session.run(rows(0)).stats
    writers = [s for s in stats.launches if any(o.value == "present" and "w" in o.use for o in s.launch.operands)]  # fmt: skip
    assert [s.counts.dram_write for s in writers] == [ROW]
    assert stats.bytes("dram_bytes")["write"] < 2 * ROOM * WIDTH * 4 / 2


def test_what_a_step_moves_does_not_grow_with_the_cache_but_by_reading_it() -> None:
    body = """
  const %rows: i64[1] = [0]
  %i: i64[1,1] = Reshape %at {{shape=[1,1]}}
  %present: f32[{n},32] = ScatterND %past, %i, %new
  %y: f32[32] = Gather %present, %first {{axis=0}}"""
    written = list[int]()
    for n in (64, 4096):
        g = parsed(
            body.format(n=n).replace("const %rows: i64[1] = [0]", "const %first: i64[] = 0"),
            f"%past: f32[{n},32], %new: f32[1,32], %at: i64[1]", "%present, %y", "%past = %present",
        )  # fmt: skip
        with Session(compiled(g)) as session:
            stats = session.run({"new": np.ones((1, 32), np.float32), "at": np.array([5])}).stats
            assert session.state["past"][5].all()
        written.append(sum(stats.bytes("dram_bytes").values()))
    assert written[0] == written[1]


def test_the_stored_type_is_that_of_the_precision() -> None:
    image = knapper.compile(cache(), "volta-8tc", "fp16", state={"past": "present"})
    assert {p.name: p.dtype for p in image.program.inputs} == {
        "past": "f16",
        "new": "f32",
        "at": "i64",
    }
    with image.session() as session:
        stats = session.run(rows(0)).stats
        assert session.state["past"].dtype == np.float16
    writers = [s for s in stats.launches if any(o.value == "present" and "w" in o.use for o in s.launch.operands)]  # fmt: skip
    assert [s.counts.dram_write for s in writers] == [ROW // 2]


SCATTER = "  %present: f32[8,4] = ScatterND %past, %at, %new"
INPUTS = "%past: f32[8,4], %at: i64[2,1], %new: f32[2,4]"
CASES: dict[str, tuple[Graph, dict[str, str]]] = {
    "update": (parsed(SCATTER, INPUTS, "%present", "%past = %present"), {"present": "update"}),
    "elements": (
        parsed(
            "  %present: f32[8,4] = ScatterElements %past, %at, %new {axis=0}",
            "%past: f32[8,4], %at: i64[2,4], %new: f32[2,4]", "%present", "%past = %present",
        ),
        {"present": "update"},
    ),
    "read before": (
        parsed(f"{SCATTER}\n  %y: f32[8,4] = Relu %past", INPUTS, "%present, %y", "%past = %present"),
        {"present": "update"},
    ),
    "read behind": (
        parsed(f"{SCATTER}\n  %y: f32[8,4] = Sub %present, %past", INPUTS, "%present, %y", "%past = %present"),
        {"present": "simd", "keep present": "simd"},
    ),
    "through views": (
        parsed(
            "  %flat: f32[8,2,2] = Reshape %past {shape=[8,2,2]}\n  %new_: f32[2,2,2] = Reshape %new {shape=[2,2,2]}\n"
            "  %there: f32[8,2,2] = ScatterND %flat, %at, %new_\n  %present: f32[8,4] = Reshape %there {shape=[8,4]}",
            INPUTS, "%present", "%past = %present",
        ),
        {"there": "update"},
    ),
    "direct": (
        parsed("  %h: f32[4] = Exp %x\n  %y: f32[4] = Add %past, %x", "%past: f32[4], %x: f32[4]", "%h, %y", "%past = %h"),
        {},
    ),
    "copy": (
        parsed("  %h: f32[4] = Add %past, %x", "%past: f32[4], %x: f32[4]", "%h", "%past = %h"),
        {"keep h": "simd"},
    ),
    "window": (
        parsed(
            "  %rest: f32[7,4] = Slice %past {axes=[0],ends=[8],starts=[1]}\n  %h: f32[8,4] = Concat %rest, %x {axis=0}",
            "%past: f32[8,4], %x: f32[1,4]", "%h", "%past = %h",
        ),
        {"keep h": "simd"},
    ),
    "swapped": (
        parsed(
            "  %c: f32[4] = Identity %b\n  %d: f32[4] = Identity %a\n  %y: f32[4] = Sub %a, %x",
            "%a: f32[4], %b: f32[4], %x: f32[4]", "%c, %d, %y", "%a = %c", "%b = %d",
        ),
        {"c": "simd", "d": "simd", "keep d": "simd"},
    ),
    "an input": (parsed("", "%a: f32[4], %x: f32[4]", "%x as %next", "%a = %next"), {"store next": "simd"}),
    "itself": (parsed("  %y: f32[4] = Exp %a", "%a: f32[4]", "%a as %same, %y", "%a = %same"), {}),
    "a constant": (
        parsed("  const %k: f32[2] = [1.0,2.0]\n  %y: f32[2] = Exp %a", "%a: f32[2]", "%k, %y", "%a = %k"),
        {"store k": "simd"},
    ),
    "one value twice": (
        parsed("  %h: f32[4] = Exp %x", "%a: f32[4], %b: f32[4], %x: f32[4]", "%h as %p, %h as %q", "%a = %p", "%b = %q"),
        {"keep q": "simd"},
    ),
    "index of itself": (
        parsed(
            "  %i: i64[8,1] = Reshape %past {shape=[8,1]}\n  %present: i64[8] = ScatterND %past, %i, %past",
            "%past: i64[8]", "%present", "%past = %present",
        ),
        {"present": "simd", "keep present": "simd"},
    ),
}  # fmt: skip


def feeds(g: Graph, seed: int) -> dict[str, Array]:
    """One value for each input; indices are different ones."""
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for name, t in g.inputs.items():
        if t.dtype == "i64":
            made[name] = np.stack([rng.permutation(8)[: t.shape[0]] for _ in range(t.count // t.shape[0])], -1).reshape(t.shape)  # fmt: skip
        else:
            made[name] = rng.standard_normal(t.shape, np.float32)
    return made


def follow(g: Graph, program: Program, engine: EngineName, runs: int = 3) -> None:
    """A session against the graph's references, the states carried by hand."""
    with Session(program) as session:
        past = {v: np.zeros_like(a) for v, a in feeds(g, 0).items() if v in g.state}
        for seed in range(runs):
            new = {v: a for v, a in feeds(g, seed).items() if v not in g.state}
            got = session.run(new, engine=engine, checked=True).outputs
            want = evaluate(g, new | past)
            past = {v: want[present] for v, present in g.state.items()}
            for name in got:
                np.testing.assert_array_equal(got[name], want[name], name)
            for v, a in past.items():
                np.testing.assert_array_equal(session.state[v], a, v)


@pytest.mark.parametrize("case", CASES)
def test_ways_to_keep_a_state(case: str) -> None:
    g, ways = CASES[case]
    assert kinds(g) == ways
    follow(g, compiled(g), "fast")


@pytest.mark.parametrize("case", ["read behind", "swapped", "window", "elements"])
def test_the_reference_engine_keeps_states_too(case: str) -> None:
    g, _ = CASES[case]
    follow(g, compiled(g), "reference", runs=2)


def test_the_host_updates_nothing_in_place() -> None:
    """Its memory is another one: what it makes of a cache comes back whole."""
    machine = Machine.load("systolic-host")
    g, _ = CASES["update"]
    assert kinds(g, machine=machine) == {"present": "host", "keep present": "host"}
    follow(g, compiled(g, machine=machine), "fast")


def test_a_copy_is_a_launch_that_is_counted() -> None:
    g, _ = CASES["window"]
    stats = Session(compiled(g)).run({"x": np.ones((1, 4), np.float32)}).stats
    last = stats.launches[-1]
    assert last.launch.nodes == ("keep h",)
    assert last.counts.dram_read == last.counts.dram_write == 8 * 4 * 4


STEPS = (
    "Add {0}, {1}",
    "Sub {0}, {1}",
    "Relu {0}",
    "Neg {0}",
    "Identity {0}",
    "ScatterND {0}, %at, {2}",
)


@st.composite
def networks(draw: st.DrawFn) -> Graph:
    """Some nodes over two states and an input; two of all values are the next states."""
    values, rows_, body = ["%a", "%b", "%x"], ["%r"], list[str]()
    for i in range(draw(st.integers(1, 6))):
        one, other = (draw(st.sampled_from(values)) for _ in range(2))
        body.append(
            f"  %v{i}: f32[8,4] = " + draw(st.sampled_from(STEPS)).format(one, other, *rows_)
        )
        values.append(f"%v{i}")
    a, b, y = (draw(st.sampled_from(values)) for _ in range(3))
    inputs = "%a: f32[8,4], %b: f32[8,4], %x: f32[8,4], %at: i64[2,1], %r: f32[2,4]"
    return parsed("\n".join(body), inputs, f"{a} as %p, {b} as %q, {y} as %y", "%a = %p", "%b = %q")


@settings(max_examples=10)
@given(networks())
def test_states_of_any_network_are_what_they_would_be_if_carried_by_hand(g: Graph) -> None:
    follow(g, compiled(g), "fast")


# --- texts and files


@pytest.mark.parametrize("case", ["update", "swapped"])
def test_graphs_plans_and_programs_keep_their_states_as_text(case: str) -> None:
    g, _ = CASES[case]
    assert text.parse(text.show(g)) == g
    fused = driver.optimize(g, driver.Options(precision="fp32", machine=MACHINE))
    plan = driver.plan(fused, MACHINE)
    again = plan_text.parse(plan_text.show(plan), MACHINE)
    assert again.buffers == plan.buffers
    assert again.graph == fused
    program = driver.generate(again)
    raw = elf.write(program)
    assert elf.read(raw).state == tuple(g.state.items()) == program.state
    assert elf.write(asm.assemble(*asm.disassemble(program))) == raw


@pytest.mark.parametrize("case", CASES)
def test_a_plan_computes_what_the_graph_computes_in_the_memory_that_it_plans(case: str) -> None:
    g, _ = CASES[case]
    plan = driver.plan(
        driver.optimize(g, driver.Options(precision="fp32", machine=MACHINE)), MACHINE
    )
    inputs = feeds(g, 3)
    want, got = evaluate(g, inputs), plan.evaluate(inputs)
    for name, a in want.items():
        np.testing.assert_array_equal(got[name], a, name)


def test_a_plan_that_reads_a_state_too_late_is_refused() -> None:
    g, _ = CASES["read before"]
    plan = driver.plan(
        driver.optimize(g, driver.Options(precision="fp32", machine=MACHINE)), MACHINE
    )
    late = Plan(plan.graph, MACHINE, plan.steps[::-1], plan.buffers)
    with pytest.raises(KnapperError) as e:
        late.verify()
    assert "has overwritten" in str(e.value)


def test_a_plan_without_the_pass_is_refused() -> None:
    """A copy is missing: the launch would read what it overwrites."""
    g, _ = CASES["copy"]
    fused = driver.optimize(replace(g, state={}), driver.Options(precision="fp32", machine=MACHINE))
    plan = driver.plan(replace(fused, state=g.state), MACHINE)
    with pytest.raises(IRError) as e:
        plan.verify()
    assert e.value.code == "E111"
    assert "while it overwrites it" in e.value.message


def test_an_update_in_place_is_not_to_be_had_by_asking() -> None:
    g, _ = CASES["read behind"]
    with pytest.raises(KnapperError) as e:
        driver.compile_graph(g, MACHINE, "fp32,place{kind=update,nodes=ScatterND}")
    assert e.value.code == "E412"


def test_images_whose_states_are_none_are_refused(kept: Image) -> None:
    p = kept.program
    moved = replace(p.inputs[0], address=p.inputs[0].address + 256)
    for broken, words in (
        (replace(p, inputs=(moved, *p.inputs[1:])), "is another place"),
        (replace(p, state=(("past", "y"),)), "of another type"),
        (replace(p, state=(("past", "nothing"),)), "there is no output"),
        (replace(p, state=(("past", "present"), ("past", "present"))), "two of that name"),
    ):
        with pytest.raises(KnapperError) as e:
            elf.write(broken)
        assert words in str(e.value)


@pytest.mark.parametrize(
    "other", [b'["past",123456789]', b'["past","absent_"]', b'{"past":"present"}']
)
def test_states_in_a_strangers_image(kept: Image, other: bytes) -> None:
    raw = elf.write(kept.program)
    assert raw.count(b'["past","present"]') == 1
    with pytest.raises(IsaError) as e:
        elf.read(bytes(elf.seal(bytearray(raw.replace(b'["past","present"]', other)))))
    assert e.value.code == "E522"
