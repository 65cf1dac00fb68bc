"""The plan: groups in order, the cheapest launch, memory that holds, text that comes back.

A generator of slabs stands in for the real ones: it computes a group by the ops' references, `rows` rows at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from knapper.compiler import driver, plan_text
from knapper.compiler.codegen.generator import Group, Lowered, Options, generators, register
from knapper.compiler.groups import groups, roots
from knapper.compiler.ir import OPS, Array, Attr, Graph, Node, Type, evaluate, infer, op
from knapper.compiler.memory import Buffer, lower_bound, peak, place
from knapper.compiler.plan import Plan, Step, lifetimes
from knapper.compiler.schedule import schedule
from knapper.compiler.structure import Canonical
from knapper.compiler.text import blobs
from knapper.compiler.work import group_macs, node_macs
from knapper.isa.errors import CompileError, KnapperError, Problems, UsageError
from knapper.isa.machine import Machine

GOLDEN = Path(__file__).parent / "plan"


@pytest.fixture(scope="module", autouse=True)
def ops() -> Iterator[None]:
    """Two ops of this test's own."""

    @op
    def Twice(x: Type) -> Type:
        """2x."""
        return x

    @Twice.reference
    def _(x: Array) -> Array:
        return x + x

    @op
    def Plus(x: Type, y: Type) -> Type:
        """x + y."""
        return x

    @Plus.reference
    def _(x: Array, y: Array) -> Array:
        return x + y

    yield
    del OPS["Twice"], OPS["Plus"]


@dataclass(frozen=True)
class Slabs:
    """Serves anything that holds only `ops`; `rows` at a time, the cheaper the more."""

    kind: str
    ops: tuple[str, ...]
    price: float = 1000.0

    def serves(self, group: Group, machine: Machine) -> str | None:
        strange = [n.op for n in group.nodes if n.op not in self.ops]
        return f"it does not know {strange[0]}" if strange else None

    def candidates(self, group: Group, machine: Machine) -> Iterator[Options]:
        for rows in (1, 2, 4):
            yield {"rows": rows}

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        return self.price / int(options["rows"])

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None: ...

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        return Lowered(())

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        rows = int(options["rows"])
        out = {v: np.zeros(t.shape, np.float32) for v, t in group.outputs.items()}
        height = next(iter(out.values())).shape[0]
        for y in range(0, height, rows):
            slab = {v: a[y : y + rows] for v, a in env.items()}
            for n in group.nodes:
                slab[n.outputs[0]] = OPS[n.op].facets["reference"](*(slab[v] for v in n.inputs))
            for v in out:
                out[v][y : y + rows] = slab[v]
        return out


@pytest.fixture(autouse=True)
def slabs() -> Iterator[None]:
    """Only this test's generators."""
    table = generators()
    real = dict(table)
    table.clear()
    for g in (
        Slabs("slow", ("Twice", "Plus"), 9000),
        Slabs("slabs", ("Twice", "Plus")),
        Slabs("cheap", ("Twice",), 500),
    ):
        register(g)
    yield
    table.clear()
    table.update(real)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.load("volta-8tc")


T = Type("f32", (8, 64))


def twice(x: str, y: str, group: str = "", loc: str = "") -> Node:
    return Node("Twice", (x,), (y,), (T,), loc=loc, group=group or y)


def plus(x: str, y: str, z: str, group: str = "") -> Node:
    return Node("Plus", (x, y), (z,), (T,), group=group or z)


def view(x: str, y: str, *shape: int) -> Node:
    return Node("Reshape", (x,), (y,), (Type("f32", shape),), {"shape": shape})


def net(*nodes: Node, outputs: str = "y") -> Graph:
    weights = {"w": np.arange(512, dtype=np.float32).reshape(8, 64)}
    return Graph("net", {"x": T}, {v: v for v in outputs.split()}, nodes, weights)


RESIDUAL = net(
    twice("x", "a"),
    twice("a", "b", "b"),
    plus("b", "w", "c", "b"),
    twice("c", "d"),
    plus("a", "d", "y"),
)


def inputs(g: Graph) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {v: rng.standard_normal(t.shape).astype(np.float32) for v, t in g.inputs.items()}


# --- groups -------------------------------------------------------------------------------------------------------------


def test_a_group_takes_what_others_make_and_gives_what_others_need() -> None:
    b = next(g for g in groups(RESIDUAL) if g.name == "b")
    assert list(b.inputs) == ["a", "w"]
    assert list(b.outputs) == ["c"]
    assert list(b.constants) == ["w"]


def test_groups_come_in_an_order_in_which_they_can_run() -> None:
    late = net(twice("x", "a", "first"), twice("x", "b", "second"), plus("a", "b", "y", "first"))
    assert [g.name for g in groups(late)] == ["second", "first"]


def test_a_view_is_the_memory_of_what_it_shows() -> None:
    g = net(
        twice("x", "a"), view("a", "flat", 512), view("flat", "back", 8, 64), twice("back", "y")
    )
    assert [x.name for x in groups(g)] == ["a", "y"]
    assert roots(g)["back"] == "a"


def test_groups_that_wait_for_each_other_are_refused() -> None:
    tangled = net(twice("x", "a", "one"), twice("a", "b", "two"), twice("b", "y", "one"))
    with pytest.raises(CompileError, match=r"E411.*wait for each other: one, two"):
        groups(tangled)


def test_a_group_that_reads_its_own_result_through_a_view_is_refused() -> None:
    g = net(twice("x", "a", "one"), view("a", "v", 8, 64), twice("v", "y", "one"))
    with pytest.raises(CompileError, match="wait for each other: one"):
        groups(g)


def test_every_node_without_a_group_is_named() -> None:
    loose = net(
        replace(twice("x", "a"), group=""), replace(twice("a", "y"), group="", loc="relu_7")
    )
    with pytest.raises(Problems) as e:
        groups(loose)
    assert [p.where for p in e.value.problems] == ["net: %a", "net: %y (node relu_7)"]


# --- choice -------------------------------------------------------------------------------------------------------------


def test_the_cheapest_launch_is_taken(machine: Machine) -> None:
    p = schedule(RESIDUAL, machine)
    assert [(s.name, s.kind, s.options["rows"]) for s in p.steps] == [
        ("a", "cheap", 4), ("b", "slabs", 4), ("d", "cheap", 4), ("y", "slabs", 4),
    ]  # fmt: skip


def test_kind_and_options_can_be_forced_by_name(machine: Machine) -> None:
    p = schedule(RESIDUAL, machine, {"*": {"rows": 2}, "[ab]": {"kind": "slow"}})
    assert [s.kind for s in p.steps] == ["slow", "slow", "cheap", "slabs"]
    assert {s.options["rows"] for s in p.steps} == {2}


def test_forcing_what_nobody_offers_says_what_is_offered(machine: Machine) -> None:
    with pytest.raises(
        CompileError,
        match=r"E412: launch b: nothing offers \{rows=3\} \(hint: legal are \w+ \{rows=\d\};.* more",
    ):
        schedule(RESIDUAL, machine, {"b": {"rows": 3}})


def test_every_group_that_nobody_serves_is_named_with_all_reasons(machine: Machine) -> None:
    exp = Node("Exp", ("x",), ("e",), (T,), group="e", loc="exp_0")
    log = Node("Log", ("e",), ("y",), (T,), group="y")
    with pytest.raises(Problems) as e:
        schedule(net(exp, log), machine)
    first, second = map(str, e.value.problems)
    assert first == (
        "E410: group e: no generator serves Exp exp_0 (slow, slabs, cheap: it does not know Exp)"
    )
    assert "Log %y" in second


def test_a_tensor_that_is_too_large_for_all_is_an_error_of_its_own(machine: Machine) -> None:
    huge = Type("f32", (1 << 29,))
    exp = Node("Exp", ("x",), ("y",), (huge,), group="y", loc="exp_0")
    graph = Graph("g", {"x": huge}, {"y": "y"}, (exp,))
    with pytest.raises(CompileError, match=r"E416: group y: .*hint: %x has 2 GiB or more: fewer"):
        schedule(graph, machine)


# --- memory -------------------------------------------------------------------------------------------------------------


def test_evaluate_is_the_graphs_result_whatever_the_tiles(machine: Machine) -> None:
    want = evaluate(RESIDUAL, inputs(RESIDUAL))
    for rows in (1, 2, 4):
        got = schedule(RESIDUAL, machine, {"*": {"rows": rows}}).verify().evaluate(inputs(RESIDUAL))
        assert np.array_equal(got["y"], want["y"])


def test_values_share_memory_and_inputs_and_outputs_do_not(machine: Machine) -> None:
    chain = net(*(twice(a, b) for a, b in zip("xabcde", "abcdey", strict=True)))
    p = schedule(chain, machine)
    assert p.arena_bytes == p.bound == 4 * T.bytes
    inner = [b for v, b in p.buffers.items() if v not in "xy"]
    assert not any(p.buffers[v].covers(b) for v in "xy" for b in inner)


def test_a_wrong_memory_plan_is_refused_and_computes_something_else(machine: Machine) -> None:
    p = schedule(RESIDUAL, machine)
    wrong = replace(
        p, buffers=dict(p.buffers) | {"a": replace(p.buffers["a"], offset=p.buffers["c"].offset)}
    )
    with pytest.raises(CompileError, match=r"E413: buffer %[ac]: overlaps"):
        wrong.verify()
    assert not np.array_equal(
        wrong.evaluate(inputs(RESIDUAL))["y"], p.evaluate(inputs(RESIDUAL))["y"]
    )


OUTPUTS_OF_ALL_KINDS = net(
    twice("x", "a"),
    view("x", "xv", 512),
    view("w", "wv", 4, 128),
    view("a", "av", 512),
    outputs="x xv w wv a av",
)


def test_outputs_may_be_inputs_constants_and_views_of_anything(machine: Machine) -> None:
    g = OUTPUTS_OF_ALL_KINDS
    p = schedule(g, machine).verify()
    want, got = evaluate(g, inputs(g)), p.evaluate(inputs(g))
    assert {v: a.shape for v, a in got.items()} == {v: a.shape for v, a in want.items()}
    assert all(np.array_equal(got[v], want[v]) for v in want)
    assert set(p.buffers) == {"x", "a"}


def test_a_network_without_launches_is_a_plan(machine: Machine) -> None:
    p = schedule(net(outputs="x w"), machine).verify()
    assert p.steps == ()
    assert np.array_equal(p.evaluate(inputs(p.graph))["w"], p.known["w"])


def test_every_problem_of_a_plan_is_told(machine: Machine) -> None:
    p = schedule(RESIDUAL, machine)
    odd = Step(p.steps[0].group, "warp", {})
    buffers = {v: b for v, b in p.buffers.items() if v != "d"} | {
        "w": Buffer("w", 4, 0, 1),
        "a": replace(p.buffers["a"], offset=100),
    }
    with pytest.raises(Problems) as e:
        replace(p, steps=(p.steps[1], odd, *p.steps[3:]), buffers=buffers).verify()
    told = "\n".join(map(str, e.value.problems))
    for part in ("no launch computes group d", "no generator of kind 'warp'; there are slow, slabs, cheap", "launch b: reads %a before",
                 "%d has no buffer", "%w needs no buffer", "buffer %a: needs 2048 bytes at a multiple of 256, has 2048 at 0x64"):  # fmt: skip
        assert part in told


# --- text ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "g", [RESIDUAL, OUTPUTS_OF_ALL_KINDS, net(outputs="x w")], ids=["residual", "outputs", "empty"]
)
def test_text_comes_back(g: Graph, machine: Machine) -> None:
    p = schedule(g, machine)
    text = plan_text.show(p)
    back = plan_text.parse(text, machine, "net.plan", blobs(g))
    assert plan_text.show(back) == text
    assert back.buffers == p.buffers
    assert np.array_equal(
        back.evaluate(inputs(g))[next(iter(g.outputs))],
        p.evaluate(inputs(g))[next(iter(g.outputs))],
    )


@pytest.mark.parametrize(("name", "g"), [("residual", RESIDUAL), ("outputs", OUTPUTS_OF_ALL_KINDS)])
def test_the_text_of_a_plan(
    machine: Machine, request: pytest.FixtureRequest, name: str, g: Graph
) -> None:
    text, golden = plan_text.show(schedule(g, machine)), GOLDEN / f"{name}.plan"
    if request.config.getoption("--bless"):
        golden.write_text(text)
    assert text == golden.read_text()


def edited(machine: Machine, old: str, new: str) -> Plan:
    text = plan_text.show(schedule(RESIDUAL, machine))
    assert old in text
    return plan_text.parse(text.replace(old, new), machine, "net.plan", blobs(RESIDUAL))


def test_an_edited_tile_is_taken(machine: Machine) -> None:
    p = edited(machine, "@b = slabs {rows=4}", "@b = slow {rows=1}")
    assert (p.steps[1].kind, p.steps[1].options) == ("slow", {"rows": 1})
    assert np.array_equal(
        p.evaluate(inputs(RESIDUAL))["y"], evaluate(RESIDUAL, inputs(RESIDUAL))["y"]
    )


def test_without_buffer_lines_memory_is_planned_anew(machine: Machine) -> None:
    p = schedule(RESIDUAL, machine)
    text = "\n".join(
        line for line in plan_text.show(p).splitlines() if not line.startswith("buffer")
    )
    assert plan_text.parse(text, machine, blobs=blobs(RESIDUAL)).buffers == p.buffers


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@b = slabs {rows=4}", "@b = slabs {rows=3}", r"E412: net.plan:12:1: launch b: slabs has no options {rows=3} .*{rows=2}"),
        ("@b = slabs", "@b = cheap", "E412: net.plan:12:1: launch b: cheap does not serve it: it does not know Plus"),
        ("@b = slabs", "@b = slbs", "E412: net.plan:12:1: launch b: no generator of kind 'slbs'; there are slow, slabs, cheap"),
        ("{rows=4} simd..simd  // Twice P", "simd..tensor  // Twice P", "E412: net.plan:12:1: launch b: no mode 'tensor'; there are simd"),
        ("launch @b", "launch @bb", "E111: net.plan:12:1: no group @bb in the graph; there are a, b, d, y"),
        ("launch @b", "lunch @b", "E110: net.plan:12:1: cannot read this"),
        ("buffer %a at 0x0 ", "buffer %a at 0x10 ", "E413: net.plan:15:1: buffer %a: needs 2048 bytes at a multiple of 256"),
    ],
)  # fmt: skip
def test_an_edit_that_cannot_be_is_told_with_its_place(
    machine: Machine, old: str, new: str, message: str
) -> None:
    with pytest.raises(KnapperError) as e:
        edited(machine, old, new)
    assert any(re.search(message, line) for line in str(e.value).splitlines()), str(e.value)


def test_a_plan_and_its_weights_are_two_files(machine: Machine, tmp_path: Path) -> None:
    p = schedule(RESIDUAL, machine)
    plan_text.save(p, tmp_path / "net.plan")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["net.plan", "net.plan.data"]
    assert np.array_equal(plan_text.load(tmp_path / "net.plan", machine).known["w"], p.known["w"])


@pytest.mark.parametrize("junk", [b"junk", b"", b"PK\3\4", b"\x93NUMPY\1\0"])
def test_damaged_weights_are_one_clear_error(machine: Machine, tmp_path: Path, junk: bytes) -> None:
    plan_text.save(schedule(RESIDUAL, machine), tmp_path / "net.plan")
    (tmp_path / "net.plan.data").write_bytes(junk)
    with pytest.raises(KnapperError, match=r"E705: .*net.plan.data: cannot read the constants"):
        plan_text.load(tmp_path / "net.plan", machine)


def test_a_plan_that_was_renamed_without_its_weights_names_the_file_that_it_wants(
    machine: Machine, tmp_path: Path
) -> None:
    plan_text.save(schedule(RESIDUAL, machine), tmp_path / "net.plan")
    (tmp_path / "net.plan").rename(tmp_path / "my.plan")
    with pytest.raises(UsageError, match=r"E705: .*my.plan.data: .*hint: it belongs to .*my.plan:"):
        plan_text.load(tmp_path / "my.plan", machine)


@pytest.mark.parametrize("content", [b"", b"a diary", b"npz"])
def test_a_file_that_is_not_a_plans_is_not_written_over(
    machine: Machine, tmp_path: Path, content: bytes
) -> None:
    place = tmp_path / "net.plan.data"
    if content == b"npz":
        np.savez(tmp_path / "mine.npz", x=np.zeros(3))
        content = (tmp_path / "mine.npz").read_bytes()
    place.write_bytes(content)
    with pytest.raises(UsageError, match=r"E709: .*net.plan.data"):
        plan_text.save(schedule(RESIDUAL, machine), tmp_path / "net.plan")
    assert place.read_bytes() == content
    assert not (tmp_path / "net.plan").exists()


def test_a_plan_is_written_over_its_older_self_with_the_umasks_permissions(
    machine: Machine, tmp_path: Path
) -> None:
    for _ in range(2):
        plan_text.save(schedule(RESIDUAL, machine), tmp_path / "net.plan")
    (tmp_path / "plain").touch()
    assert len({f.stat().st_mode for f in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize(("name", "why"), [("no.plan", "No such file"), ("bin.plan", "not text")])
def test_a_plan_that_is_no_text_is_one_clear_error(
    machine: Machine, tmp_path: Path, name: str, why: str
) -> None:
    (tmp_path / "bin.plan").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KnapperError, match=rf"E705: .*{name}: cannot read: .*{why}"):
        plan_text.load(tmp_path / name, machine)


# --- work -----------------------------------------------------------------------------------------


def product(op: str, a: str, b: str, **attrs: Attr) -> int:
    """Multiply-accumulates of one node, from shapes such as `2x3x4`."""
    operands = [Type("f32", tuple(map(int, shape.split("x")))) for shape in (a, b)]
    types = infer(op, list(operands), attrs)
    node = Node(op, ("a", "b"), ("y",), types, attrs)
    return node_macs(node, {"a": operands[0], "b": operands[1]})


@pytest.mark.parametrize(
    ("macs", "wanted"),
    [
        (product("Conv", "2x6x9x9", "8x6x3x3"), 2 * 8 * 7 * 7 * 6 * 3 * 3),
        (product("Conv", "1x6x9x9", "12x2x3x3", group=3, strides=(2, 2)), 12 * 4 * 4 * 2 * 3 * 3),
        (product("Conv", "1x9x9x6", "3x3x2x12", group=3, layout="NHWC"), 12 * 7 * 7 * 2 * 3 * 3),
        (product("ConvTranspose", "1x6x4x5", "6x8x2x2"), 6 * 4 * 5 * 8 * 2 * 2),
        (product("MatMul", "5x2x3", "3x7"), 5 * 2 * 7 * 3),
        (product("MatMul", "5x3x2", "5x7x3", trans_a=True, trans_b=True), 5 * 2 * 7 * 3),
        (product("MatMul", "3", "3x7"), 7 * 3),
        (product("Gemm", "3x2", "3x7", transA=1), 2 * 7 * 3),
        (product("Add", "3x7", "3x7"), 0),
    ],
)
def test_useful_work_is_counted_from_shapes(macs: int, wanted: int) -> None:
    assert macs == wanted


@pytest.mark.parametrize(
    ("model", "macs"), [("resnet18.onnx", 1_814_073_344), ("resnet50.onnx", 4_089_184_256)]
)
def test_a_known_network_has_its_known_work_and_fits_its_memory(
    read_onnx: Callable[[str], Graph], model: str, macs: int
) -> None:
    """What no pass may change; and the greedy placement is at most 1.3 times the lower bound."""
    graph = driver.optimize(read_onnx(model))
    found = groups(graph)
    assert sum(map(group_macs, found)) == macs
    wanted = lifetimes(graph, list(found))
    assert peak(place(wanted)) <= 1.3 * lower_bound(wanted)


# --- structure ----------------------------------------------------------------------------------------------------------


def test_groups_that_differ_in_names_and_weights_have_one_structure() -> None:
    first = groups(net(twice("x", "a", "g"), plus("a", "w", "y", "g")))[0]
    other = replace(first, name="h", constants={"w": np.zeros((8, 64), np.float32)})
    assert Canonical.of(first).text == Canonical.of(other).text
    assert Canonical.of(first).content() != Canonical.of(other).content()


@pytest.mark.parametrize(
    "g",
    [
        net(plus("x", "x", "y")),
        net(plus("x", "w", "y")),
        net(plus("w", "x", "y")),
        net(twice("x", "y")),
    ],
)
def test_other_structures_differ(g: Graph) -> None:
    kept = Canonical.of(groups(RESIDUAL)[-1]).text
    assert Canonical.of(groups(g)[0]).text != kept
