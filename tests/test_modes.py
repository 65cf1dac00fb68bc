"""The SM's modes over a network: which launches may start and end in which, what a plan chooses, what runs, what is counted, what is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrix_cases import same

from knapper.compiler import ops as _ops  # noqa: F401  declares the op set
from knapper.compiler import plan_text, text
from knapper.compiler.codegen.generator import GENERATORS
from knapper.compiler.driver import Options, generate
from knapper.compiler.groups import groups
from knapper.compiler.ir import DTYPES, Array, Graph, Node, Type, evaluate, infer
from knapper.compiler.plan import Plan
from knapper.compiler.schedule import Choice, Choices, Modes, cheapest, schedule
from knapper.isa.core import SIMD, SYSTOLIC
from knapper.isa.errors import CompileError
from knapper.isa.instructions import MODE
from knapper.isa.machine import Machine
from knapper.isa.program import Kernel
from knapper.isa.verify import mode_problems
from knapper.runtime.session import Result, Session

SMA2 = Machine.load("sma2")
FEW = SMA2.with_(sms=2)
"""Of two SMs: more blocks than SMs without large operands."""
RNG = np.random.default_rng(0)


class Net:
    """A graph written launch by launch."""

    def __init__(self, **inputs: Array) -> None:
        self.inputs, self.constants = inputs, dict[str, Array]()
        self.types, self.nodes = {v: Type.of(a) for v, a in inputs.items()}, list[Node]()

    def known(self, data: Array) -> str:
        name = f"w{len(self.constants)}"
        self.constants[name], self.types[name] = data, Type.of(data)
        return name

    def op(self, group: str, name: str, *operands: str, **attrs: Any) -> str:
        made = infer(name, [self.types[v] for v in operands], attrs)
        outputs = tuple(f"v{len(self.types) + i}" for i in range(len(made)))
        self.types |= zip(outputs, made, strict=True)
        self.nodes.append(Node(name, operands, outputs, made, attrs, loc=outputs[0], group=group))
        return outputs[0]

    def graph(self, out: str) -> Graph:
        types = {v: self.types[v] for v in self.inputs}
        return Graph("net", types, {"y": out}, tuple(self.nodes), self.constants).verify()


def chain(*after: str, rows: int = 24) -> tuple[Graph, dict[str, Array]]:
    """Products of x by known weights in a row, a launch each; `after` are the ops that follow each one: "" or an activation."""
    x = RNG.standard_normal((rows, 32)).astype(np.float16)
    net, v = Net(x=x), "x"
    for i, op in enumerate(after):
        w = net.known((RNG.standard_normal((32, 32)) / 6).astype(np.float16))
        v = net.op(f"g{i}", "MatMul", v, w, out="f32")
        v = net.op(f"g{i}", op, v) if op else v
        v = net.op(f"g{i}", "Cast", v, to="f16")
    return net.graph(v), {"x": x}


def modes(plan: Plan) -> list[Modes]:
    return [s.modes for s in plan.steps]


def run(plan: Plan, inputs: Mapping[str, Array], cache: Path, **how: Any) -> Result:
    return Session(generate(plan, Options(cache=cache))).run(inputs, **how)


def switches(plan: Plan, result: Result) -> int:
    """Changes of mode that blocks make: into systolic mode, back before fp32, and into the mode in which they end."""
    total = 0
    for step, launch in zip(plan.steps, result.stats.launches, strict=True):
        stays = all(n.op in ("MatMul", "Cast") for n in step.group.nodes)
        seen = [step.modes[0], SYSTOLIC, SYSTOLIC if stays else SIMD, step.modes[1]]
        total += sum(a != b for a, b in itertools.pairwise(seen)) * math.prod(launch.launch.grid)
    return total


def switched_to(kernel: Kernel) -> list[str]:
    """The modes into which a kernel switches, on whichever path."""
    return sorted({i.mode.name.lower() for i in kernel.code if isinstance(i, MODE)})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


# --- what is offered, and that it runs


SMALL: dict[str, Any] = {"tile": (8, 32, 32), "units": 2}
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
        told = got.stats.to_dict()
        assert told["mode_switches"] == switches(plan, got)
        assert told["mode_switches"] == sum(k["mode_switches"] for k in told["kernels"])


def test_a_launch_that_stays_in_systolic_mode_has_no_switch_at_all(cache: Path) -> None:
    graph, inputs = chain("", "", "", "Relu")
    plan = schedule(graph, SMA2, {"g*": {"kind": "systolic"}})
    assert modes(plan) == [(SIMD, SYSTOLIC), (SYSTOLIC, SYSTOLIC), (SYSTOLIC, SYSTOLIC), (SYSTOLIC, SIMD)]  # fmt: skip
    program = generate(plan, Options(cache=cache))
    kernels = [program.kernels[launch.kernel] for launch in program.launches]
    assert [(k.mode_entry, k.mode_exit) for k in kernels] == modes(plan)
    assert list(map(switched_to, kernels)) == [[SYSTOLIC], [], [], [SIMD]]
    result = Session(program).run(inputs)
    assert same(result.outputs["y"], evaluate(graph, inputs)["y"])
    first, *_, last = (math.prod(launch.grid) for launch in program.launches)
    assert result.stats.mode_switches == first + last


def test_elided_switches_are_cheaper_than_those_of_each_launch_by_itself() -> None:
    graph, _ = chain("", "", "Relu")
    free = schedule(graph, SMA2)
    alone = schedule(graph, SMA2, {"g*": {"modes": (SIMD, SIMD)}})
    assert modes(alone) == [(SIMD, SIMD)] * 3
    saved = sum(map(alone.cycles, alone.steps)) - sum(map(free.cycles, free.steps))
    assert saved == 4 * SMA2.mode_switch_cycles


# --- copies


COPIES: dict[str, dict[str, Any]] = {
    "Transpose": {"perm": (2, 0, 1)},
    "Slice": {"starts": (1, 2), "ends": (3, 11), "axes": (0, 2), "steps": (1, 3)},
    "Expand": {"shape": (2, 5, 7, 12)},
    "Tile": {"repeats": (2, 1, 3)},
    "Concat": {"axis": 1},
    "Split": {"axis": 2, "split": (5, 7)},
}


@pytest.mark.parametrize("dtype", ["f16", "f32", "i8", "i64"])
@pytest.mark.parametrize("name", COPIES)
def test_copies_run_in_systolic_mode(name: str, dtype: str, cache: Path) -> None:
    """Between two launches in systolic mode nothing is switched, whatever the sizes and types."""
    x = (RNG.standard_normal((5, 7, 12)) * 9).astype(DTYPES[dtype])
    net = Net(x=x, a=RNG.standard_normal((8, 8)).astype(np.float16))
    y = net.op("g0", name, *("x",) * (2 if name == "Concat" else 1), **COPIES[name])
    plan = schedule(net.graph(y), SMA2)
    (step,) = plan.steps
    offered = [dict(o) for o in step.generator.candidates(step.group, SMA2)]
    assert offered == [{}, {"modes": (SYSTOLIC, SYSTOLIC)}]
    lowered = step.generator.lower(step.group, offered[1], SMA2)
    kernels = [e.kernel for e in lowered.launches]
    assert kernels
    for k in kernels:
        assert (k.mode_entry, k.mode_exit) == (SYSTOLIC, SYSTOLIC)
        assert list(mode_problems(k)) == []


def test_a_copy_between_products_saves_two_switches(cache: Path) -> None:
    x = RNG.standard_normal((24, 32)).astype(np.float16)
    net = Net(x=x)
    w = [net.known((RNG.standard_normal((32, n)) / 6).astype(np.float16)) for n in (32, 8)]
    y = net.op("g0", "Cast", net.op("g0", "MatMul", "x", w[0], out="f32"), to="f16")
    y = net.op("g1", "Cast", net.op("g1", "Transpose", y, perm=(1, 0)), to="f32")
    y = net.op("g2", "Cast", net.op("g2", "Transpose", y, perm=(1, 0)), to="f16")
    y = net.op("g3", "Cast", net.op("g3", "MatMul", y, w[1], out="f32"), to="f16")
    graph = net.graph(y)
    plan = schedule(graph, SMA2).verify()
    assert [s.kind for s in plan.steps] == ["systolic", "simd", "simd", "systolic"]
    assert modes(plan)[1:3] == [(SYSTOLIC, SYSTOLIC)] * 2
    result = run(plan, {"x": x}, cache)
    assert same(result.outputs["y"], evaluate(graph, {"x": x})["y"])
    assert [switched_to(s.kernel) for s in result.stats.launches] == [[SYSTOLIC], [], [], []]


def test_what_calculates_does_not_run_in_systolic_mode() -> None:
    net = Net(x=RNG.standard_normal((5, 7, 12)).astype(np.float16))
    for op, attrs in (("Relu", {}), ("Sigmoid", {}), ("Cast", {"to": "i64"})):
        net.op(op, op, "x", **attrs)
    for group in groups(net.graph("v1")):
        assert [dict(o) for o in GENERATORS["simd"].candidates(group, SMA2)] == [{}]


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
