"""Passes keep the meaning of graphs; real networks come out as few launches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from random_graphs import SMOOTH, graphs

from knapper.compiler import launches, pipeline, text
from knapper.compiler.codegen.scalar import SCALAR
from knapper.compiler.ir import OPS, Array, Attr, Graph, Node, Type, evaluate
from knapper.compiler.passes.idioms import RULES as IDIOMS
from knapper.compiler.rewrite import Bound, Const, Pattern, Rule, Var, Writer


def run(g: Graph, passes: str) -> Graph:
    return pipeline.run(g, pipeline.parse(passes))


def inputs_of(g: Graph, seed: int = 0) -> dict[str, Array]:
    """Small integers: their sums and products are exact, whatever the order."""
    rng = np.random.default_rng(seed)
    return {v: rng.integers(-3, 4, t.shape).astype(np.float32) for v, t in g.inputs.items()}


# --- every pass on random graphs ------------------------------------------------------------------


def assert_same(g: Graph, h: Graph) -> None:
    """Same signature and, value for value, same results."""
    x = inputs_of(g)
    want, got = evaluate(g, x), evaluate(h, x)
    assert list(want) == list(got)
    assert h.inputs == g.inputs
    for name in want:
        assert Type.of(want[name]) == Type.of(got[name])
        np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize(
    "passes", ["fold", "dead", "simplify", "layout", "fuse", "simplify,layout,simplify,fuse"]
)
def test_a_pass_keeps_every_value(passes: str) -> None:
    @given(graphs())
    @settings(max_examples=60 if "layout" in passes else 30)
    def holds(g: Graph) -> None:
        h = run(g, passes)
        assert_same(g, h)
        assert len(run(h, passes).nodes) <= len(h.nodes)

    holds()


@given(graphs(SMOOTH))
def test_folding_into_weights_costs_roundings_only(g: Graph) -> None:
    x = inputs_of(g)
    want, got = evaluate(g, x), evaluate(run(g, "bn,idioms"), x)
    for name in want:
        np.testing.assert_allclose(
            got[name], want[name], rtol=1e-5, atol=1e-5 * np.abs(want[name]).max()
        )


@pytest.mark.parametrize("op", ["Mul", "Div", "Add"])
@pytest.mark.parametrize(
    ("x", "w", "y", "c"),
    [
        ("[3,3]", "[3]", "[3]", "[3]"),
        ("[4,3]", "[3]", "[4]", "[]"),
        ("[2,4,3]", "[3]", "[2,4]", "[4]"),
        ("[3]", "[3]", "[]", "[]"),
        ("[3]", "[3,5]", "[5]", "[5]"),
    ],
)
def test_a_vector_of_weights_has_no_columns_to_fold_into(
    op: str, x: str, w: str, y: str, c: str
) -> None:
    g = text.parse(f"""graph @g(%x: f32{x}, %w: f32{w}, %c: f32{c}) {{
        %0: f32{y} = MatMul %x, %w
        %1: f32{y} = {op} %0, %c
        return %1 }}""")
    values = inputs_of(g)
    constants = {n: np.abs(values[n]) + 1 for n in ("w", "c")}
    fixed = replace(g, inputs={"x": g.inputs["x"]}, constants=constants)
    want, got = (evaluate(h, {"x": values["x"]})["1"] for h in (fixed, run(fixed, "bn")))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# --- launches and precision ---------------------------------------------------------------------


def groups(g: Graph) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for n in g.nodes:
        found.setdefault(n.group, []).append(n)
    views = found.pop("", [])
    assert all(n.op in launches.VIEWS for n in views)
    return found


def kernels(g: Graph) -> list[list[str]]:
    """What each launch computes, not counting Casts."""
    return sorted(sorted(n.op for n in ns if n.op != "Cast") for ns in groups(g).values())


@given(graphs())
def test_launches_have_one_sink_and_an_order(g: Graph) -> None:
    h = run(g, "simplify,layout,fuse")
    assert Counter(n.op for n in h.nodes) == Counter(n.op for n in run(g, "simplify,layout").nodes)
    found = groups(h)
    outputs = set(h.outputs.values())
    for name, nodes in found.items():
        assert sum(n.op in launches.MATRIX for n in nodes) <= 1
        read = {v for n in h.nodes if n.group != name for v in n.inputs} | outputs
        assert len([n for n in nodes if read & set(n.outputs)]) == 1
    order = [n.group for n in h.nodes if n.group]
    assert len([1 for a, b in zip(["", *order], order, strict=False) if a != b]) == len(found)


@given(graphs())
@settings(max_examples=60)
def test_casts_stand_at_the_boundaries_of_launches_and_move_none(g: Graph) -> None:
    f32 = run(g, "simplify,layout")
    f16 = run(f32, "precision,fuse")
    moved = Counter(map(tuple, kernels(f16))) - Counter(map(tuple, kernels(run(f32, "fuse"))))
    assert set(moved) <= {()}  # Casts alone: of network inputs and outputs
    made = {v: n for n in f16.nodes for v in n.outputs}
    outputs = set(f16.outputs.values())
    for n in f16.nodes:
        for v in n.inputs:
            if v in made and f16.types()[v].dtype == "f32" and v not in outputs:
                stored = made[v].group != n.group
                from_input = made[v].op in launches.VIEWS or n.op in launches.VIEWS
                assert not stored or from_input, f"%{v} is stored as f32"
        if n.op in launches.MATRIX:
            assert n.types[0].dtype == "f32"
            assert {f16.types()[v].dtype for v in n.inputs[:2]} == {"f16"}


def test_what_a_launch_reads_twice_leaves_no_wide_copy() -> None:
    """The Cast before a BatchNormalization is part of it: each reader of %c widens for itself."""
    g = text.parse("""graph @g(%x: f32[1,2,4,4], %s: f32[2]) {
        const %w: f32[2,2,1,1] = [1.0,2.0,3.0,4.0]
        %c: f32[1,2,4,4] = Conv %x, %w
        %n: f32[1,2,4,4] = BatchNormalization %c, %s, %s, %s, %s
        %r: f32[1,2,4,4] = Add %n, %c
        %y: f32[1,2,4,4] = Conv %r, %w
        return %y }""")
    h = run(g, "layout,precision,fuse")
    (norm,) = (ns for ns in groups(h).values() if "BatchNormalization" in {n.op for n in ns})
    assert [n.op for n in norm] == ["Cast", "BatchNormalization", "Cast", "Add", "Cast"]


@given(graphs(SMOOTH))
def test_fp16_stays_within_its_rounding(g: Graph) -> None:
    x = inputs_of(g)
    h = run(g, "simplify,layout,precision,fuse")
    want, got = evaluate(g, x), evaluate(h, x)
    for name in want:
        assert got[name].dtype == np.float32
        assume(np.abs(want[name]).max(initial=0) < 2048)  # integers up to here are f16 numbers
    bound = 2.0**-11 * (len(h.nodes) + 1)
    for name in want:
        scale = max(1, *(float(np.abs(a).max(initial=0)) for a in want.values()))
        assert np.abs(got[name] - want[name]).max(initial=0) <= 64 * bound * scale


def test_fp32_adds_no_cast() -> None:
    g = text.parse("""graph @g(%x: f32[2,2]) {
        const %w: f32[2,2] = [1.0,2.0,3.0,4.0]
        %0: f32[2,2] = MatMul %x, %w
        %1: f32[2,2] = Exp %0
        return %1 }""")
    assert run(g, 'precision{type="fp32"}') == g


def test_a_model_in_f16_gets_the_rounding_of_its_products_as_a_cast() -> None:
    g = text.parse("""graph @g(%x: f16[2,2], %w: f16[2,2]) {
        %0: f16[2,2] = MatMul %x, %w
        %1: f16[2,2] = Exp %0
        return %1 }""")
    assert [n.op for n in run(g, "precision").nodes] == ["MatMul", "Cast", "Exp"]
    x = {k: v.astype(np.float16) for k, v in inputs_of(g).items()}
    np.testing.assert_array_equal(evaluate(run(g, "precision,fuse"), x)["1"], evaluate(g, x)["1"])


def test_matrix_kernels_have_every_epilogue_op() -> None:
    assert launches.EPILOGUE - {"Cast"} <= SCALAR.keys()


def test_kinds_of_ops_are_kinds_of_ops() -> None:
    kinds = [
        launches.ELEMENTWISE,
        launches.MATRIX,
        launches.VIEWS,
        launches.MOVES,
        launches.ANCHORS,
    ]
    known = set[str]().union(*kinds)
    assert sum(map(len, kinds)) == len(known)
    assert known <= OPS.keys()


# --- rules --------------------------------------------------------------------------------------

SHAPES = {"scale": (4,), "bias": (4,), "epsilon": ()}
BOUND: dict[str, Attr] = {
    "axes": (1,), "a": 1 / 6, "b": 0.75, "low": 0.5, "high": 2.0, "epsilon": 1e-3,
}  # fmt: skip


class Operands(Writer):
    """A graph built from a rule's pattern: its left side."""

    def __init__(self) -> None:
        super().__init__(Graph("g", {"x": Type("f32", (3, 4))}, {}))
        self.rng = np.random.default_rng(0)
        self.bindings: dict[str, str] = {}

    def build(self, p: Any) -> str:
        if isinstance(p, Pattern):
            attrs: dict[str, Attr] = {
                k: BOUND[v.name] if isinstance(v, Bound) else v for k, v in p.attrs
            }
            if p.op in ("Softmax", "RMSNormalization", "LayerNormalization"):
                attrs["axis"] = 1
            return self.op(p.op, *map(self.build, p.operands), **attrs)
        if isinstance(p, Const):
            made = self.rng.uniform(0.1, 1, SHAPES.get(p.name, ())).astype(np.float32)
            return self.bindings.setdefault(p.name, self.constant(made))
        return "x" if isinstance(p, Var) else self.number(p, "f32")


@pytest.mark.parametrize("rule", IDIOMS, ids=lambda r: f"{r.pattern.op}")
def test_an_idiom_means_what_it_is_named(rule: Rule) -> None:
    w = Operands()
    y = w.build(rule.pattern)
    g = w.graph({"y": y})
    h = run(g, "idioms")
    assert len(h.nodes) == 1
    assert [n.op for n in h.nodes] != [n.op for n in g.nodes]
    x = {"x": np.random.default_rng(1).uniform(-4, 4, (3, 4)).astype(np.float32)}
    if rule.pattern.op == "Log" or rule.pattern.op == "Sqrt":
        x = {"x": np.abs(x["x"])}
    np.testing.assert_allclose(evaluate(h, x)["y"], evaluate(g, x)["y"], rtol=2e-6, atol=2e-6)


def test_a_number_in_a_pattern_is_that_number_only() -> None:
    g = text.parse("""graph @g(%x: f32[2,2]) {
        const %c: f32[] = 1.0001
        const %two: f32[2] = [1.0,1.0]
        %0: f32[2,2] = Mul %x, %c
        %1: f32[2,2] = Mul %0, %two
        return %1 }""")
    assert run(g, "simplify") == g


# --- real networks ------------------------------------------------------------------------------

NETS = [
    ("resnet_tiny.onnx", 10, 1),
    ("resnet20_cifar10.onnx", 24, 1),
    ("efficientnet_lite0.onnx", 52, 1),
    ("resnet18.onnx", 24, 1),
    ("resnet50.onnx", 57, 1),
]


@pytest.mark.parametrize(("name", "count", "transposes"), NETS)
def test_a_real_network_becomes_few_launches(
    read_onnx: Any, name: str, count: int, transposes: int
) -> None:
    g = pipeline.run(read_onnx(name), pipeline.preset("fp16"))
    found = groups(g)
    assert len(found) == count
    assert sum(n.op == "Transpose" for n in g.nodes) == transposes
    assert "BatchNormalization" not in {n.op for n in g.nodes}
    assert all(a.flags.c_contiguous for a in g.constants.values())
    heavy = {
        v for n in g.nodes if n.op in launches.MATRIX for v in n.inputs[:2]
    } & g.constants.keys()
    assert {g.constants[v].dtype for v in heavy} == {np.dtype(np.float16)}


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 4e-2)])
@pytest.mark.parametrize("name", ["resnet_tiny.onnx"])
def test_a_real_network_keeps_its_answer(
    read_onnx: Any, name: str, precision: str, bound: float
) -> None:
    g = read_onnx(name)
    rng = np.random.default_rng(0)
    x = {v: rng.uniform(0, 1, t.shape).astype(np.float32) for v, t in g.inputs.items()}
    want = evaluate(g, x)
    got = evaluate(pipeline.run(g, pipeline.preset(precision)), x)
    for name in want:
        assert np.abs(got[name] - want[name]).max() <= bound * np.abs(want[name]).max()
