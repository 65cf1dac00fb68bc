"""The SM's modes over a network: which launches may start and end in which, what a plan chooses, what runs, what is counted, what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_matrix_kernels import same

from knapper.compiler import ops as _ops  # noqa: F401  declares the op set
from knapper.compiler import plan_text, text
from knapper.compiler.codegen.generator import GENERATORS
from knapper.compiler.driver import Options, generate
from knapper.compiler.groups import groups
from knapper.compiler.ir import Array, Graph, Node, Type, evaluate, infer
from knapper.compiler.plan import Plan
from knapper.compiler.schedule import Choice, Choices, Modes, cheapest, schedule
from knapper.isa.core import SIMD, SYSTOLIC
from knapper.isa.errors import CompileError
from knapper.isa.instructions import MODE
from knapper.isa.machine import Machine
from knapper.runtime.session import Result, Session

SMA2 = Machine.load("sma2")
FEW = SMA2.with_(sms=2)
"""Of two SMs: more blocks than SMs without large operands."""
RNG = np.random.default_rng(0)


def chain(*after: str, rows: int = 24) -> tuple[Graph, dict[str, Array]]:
    """Products of x by known weights in a row, a launch each; `after` are the ops that follow each one: "" or an activation."""
    x = RNG.standard_normal((rows, 32)).astype(np.float16)
    types, constants, nodes, v = {"x": Type.of(x)}, dict[str, Array](), list[Node](), "x"
    for i, op in enumerate(after):
        w = f"w{i}"
        constants[w] = (RNG.standard_normal((32, 32)) / 6).astype(np.float16)
        types[w] = Type.of(constants[w])
        steps: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [("MatMul", (v, w), {"out": "f32"})]  # fmt: skip
        steps += [(op, (), {})] if op else []
        for name, operands, attrs in [*steps, ("Cast", (), {"to": "f16"})]:
            read = operands or (v,)
            made = infer(name, [types[o] for o in read], attrs)
            v = f"v{len(types)}"
            types[v] = made[0]
            nodes.append(Node(name, read, (v,), made, attrs, loc=v, group=f"g{i}"))
    return Graph("net", {"x": types["x"]}, {"y": v}, tuple(nodes), constants).verify(), {"x": x}


def modes(plan: Plan) -> list[Modes]:
    return [s.modes for s in plan.steps]


def run(plan: Plan, inputs: Mapping[str, Array], cache: Path, **how: Any) -> Result:
    return Session(generate(plan, Options(cache=cache))).run(inputs, **how)


def switches(plan: Plan) -> int:
    """Changes of mode that the SMs see between and outside of launches."""
    seen = [SIMD, *itertools.chain.from_iterable(modes(plan))]
    return sum(a != b for a, b in itertools.pairwise(seen))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


# --- what is offered, and that it runs


SMALL = {"tile": (8, 32, 32), "units": 2}
"""Three blocks for 24 rows."""


def offered(graph: Graph, machine: Machine, launch: int) -> list[Modes]:
    """The modes that the arrays' generator offers a launch of small tiles."""
    found = GENERATORS["systolic"].candidates(groups(graph)[launch], machine)
    found = [o for o in found if SMALL.items() <= o.items()]
    return sorted({Choice(0, "systolic", o).described["modes"] for o in found})  # type: ignore[misc]


BOTH = [(a, b) for a in (SIMD, SYSTOLIC) for b in (SIMD, SYSTOLIC)]


@pytest.mark.parametrize(
    ("machine", "op", "pairs"),
    [
        (SMA2, "", BOTH),
        (SMA2, "Relu", [(SIMD, SIMD), (SYSTOLIC, SIMD)]),
        (FEW, "", [(SIMD, SIMD), (SYSTOLIC, SYSTOLIC)]),
        (FEW, "Relu", [(SIMD, SIMD), (SYSTOLIC, SYSTOLIC)]),
    ],
    ids=["conversion", "fp32 follows", "conversion, more blocks than SMs", "fp32, more blocks than SMs"],
)  # fmt: skip
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_every_pair_of_modes_that_is_offered_runs(
    machine: Machine, op: str, pairs: Sequence[Modes], engine: Any, cache: Path
) -> None:
    """Between two launches that are free to end and to start as it needs; the values are the same in any mode."""
    graph, inputs = chain("", op, "", rows=24)
    assert offered(graph, machine, 1) == pairs
    want = evaluate(graph, inputs)["y"]
    for pair in pairs:
        plan = schedule(graph, machine, {"g1": {**SMALL, "modes": pair}}).verify()
        assert plan.steps[1].modes == pair
        got = run(plan, inputs, cache, engine=engine)
        assert same(got.outputs["y"], want)
        assert got.stats.mode_switches == got.stats.to_dict()["mode_switches"] == switches(plan)


def test_a_launch_that_stays_in_systolic_mode_has_no_switch_at_all(cache: Path) -> None:
    graph, inputs = chain("", "", "", "Relu")
    plan = schedule(graph, SMA2, {"g*": {"kind": "systolic"}})
    assert modes(plan) == [(SIMD, SYSTOLIC), (SYSTOLIC, SYSTOLIC), (SYSTOLIC, SYSTOLIC), (SYSTOLIC, SIMD)]  # fmt: skip
    program = generate(plan, Options(cache=cache))
    kernels = [program.kernels[launch.kernel] for launch in program.launches]
    assert [(k.mode_entry, k.mode_exit) for k in kernels] == modes(plan)
    assert [sum(isinstance(i, MODE) for i in k.code) for k in kernels] == [1, 0, 0, 1]
    result = Session(program).run(inputs)
    assert same(result.outputs["y"], evaluate(graph, inputs)["y"])
    assert result.stats.mode_switches == 2


def test_elided_switches_are_cheaper_than_those_of_each_launch_by_itself() -> None:
    graph, _ = chain("", "", "Relu")
    free = schedule(graph, SMA2)
    alone = schedule(graph, SMA2, {"g*": {"modes": (SIMD, SIMD)}})
    assert modes(alone) == [(SIMD, SIMD)] * 3
    saved = sum(map(alone.cycles, alone.steps)) - sum(map(free.cycles, free.steps))
    assert saved == 4 * SMA2.mode_switch_cycles


# --- the choice is the best one

MODE_PAIRS = st.sampled_from(BOTH)
TABLES = st.lists(
    st.dictionaries(MODE_PAIRS, st.integers(0, 20).map(float), min_size=1), min_size=1, max_size=10
)


def table(costs: Mapping[Modes, float]) -> Choices:
    return Choices.of([Choice(c, "systolic", {"modes": pair}) for pair, c in costs.items()])


@given(TABLES)
def test_the_cheapest_path_is_that_of_brute_force(tables: list[dict[Modes, float]]) -> None:
    """Over all products of choices, of those whose modes follow each other from SIMD mode on."""
    possible = [
        sum(costs[pair] for costs, pair in zip(tables, path, strict=True))
        for path in itertools.product(*tables)
        if all(a[1] == b[0] for a, b in itertools.pairwise([(SIMD, SIMD), *path]))
    ]
    found = cheapest([table(costs) for costs in tables])
    assert bool(found) == bool(possible)
    if found:
        chosen = [c.described["modes"] for c in found]
        assert all(a[1] == b[0] for a, b in itertools.pairwise([(SIMD, SIMD), *chosen]))  # type: ignore[index]
        assert sum(c.cost for c in found) == min(possible)


@given(st.lists(st.tuples(MODE_PAIRS, st.integers(0, 20).map(float)), min_size=1))
def test_of_each_pair_of_modes_the_cheapest_launch_is_kept(offers: list[tuple[Modes, float]]) -> None:  # fmt: skip
    kept = Choices.of([Choice(c, "systolic", {"modes": pair}) for pair, c in offers]).best
    assert {pair: c.cost for pair, c in kept.items()} == {
        pair: min(c for p, c in offers if p == pair) for pair, _ in offers
    }


# --- what cannot be


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ({"g0": {"modes": (SYSTOLIC, SIMD)}}, r"E412: net: .* do not follow each other"),
        ({"g0": {"modes": (SIMD, SYSTOLIC)}, "g1": {"modes": (SIMD, SIMD)}}, r"E412: net: .* do not follow each other"),
        ({"g1": {"modes": (SIMD, SYSTOLIC)}}, r"E412: launch g1: nothing offers .*modes"),
        ({"g1": {"modes": (SIMD, "dreaming")}}, r"E412: launch g1: nothing offers .*dreaming"),
    ],
)  # fmt: skip
def test_modes_that_cannot_be_forced(forced: Any, message: str) -> None:
    graph, _ = chain("", "Relu")
    with pytest.raises(CompileError, match=message):
        schedule(graph, SMA2, forced)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("simd..systolic", "simd..simd", r"net.plan:\d+:\d+: launch g1: starts in systolic, but finds simd"),
        ("simd..systolic", "systolic..systolic", r"net.plan:\d+:\d+: launch g0: starts in systolic, but finds simd"),
        ("systolic..simd", "systolic..systolic", r"net.plan:\d+:\d+: launch g1: systolic has no options .*systolic.*legal are"),
        ("simd..systolic", "simd..dreaming", r"no mode 'dreaming'; there are simd, systolic"),
    ],
)  # fmt: skip
def test_modes_that_do_not_follow_each_other_in_a_plan(old: str, new: str, message: str) -> None:
    graph, _ = chain("", "Relu")
    shown = plan_text.show(schedule(graph, SMA2))
    assert shown.count(old) == 1
    with pytest.raises(Exception, match=message) as e:
        plan_text.parse(shown.replace(old, new), SMA2, "net.plan", text.blobs(graph))
    problems = getattr(e.value, "problems", [e.value])
    assert {p.code for p in problems} == {"E412"}
