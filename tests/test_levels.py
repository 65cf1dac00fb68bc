"""One network, three levels, four ways to compute it: the graph, the plan tile by tile, and the program on both engines.

The numeric contract: matrix products, elementwise arithmetic, rounding and maxima are the same bits at every level. A sum or a mean
over SIMD lanes (softmax, norms, average pools) has the order of its kernel, the same on both engines; against the graph it is
compared by a bound. Whatever follows such a sum inherits the bound.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from knapper.compiler import driver, plan_text
from knapper.compiler.ir import DTYPES, Array, Attr, Graph, Node, Type, evaluate, infer
from knapper.compiler.plan import Plan
from knapper.compiler.text import show_attrs
from knapper.compiler.tvm import client
from knapper.isa import asm, image
from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.runtime.session import Session

PRECISIONS = ("fp16", "bf16", "fp32")
STEP = {"fp16": 2.0**-10, "bf16": 2.0**-7, "fp32": 2.0**-23}
"""The distance of neighbouring numbers just above 1, in the stored type."""
ULPS = 4
"""How far, in steps at the greatest element's size, a sum over SIMD lanes and what follows may be from the graph's."""


@dataclass
class Net:
    """Builds a graph op by op; every weight is drawn from one seed."""

    name: str
    inputs: dict[str, Type]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    types: dict[str, Type] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        self.types |= self.inputs

    def op(self, op: str, *operands: str, **attrs: Attr) -> str:
        """Add a node; gives its first result."""
        types = infer(op, [self.types[v] for v in operands], attrs)[:1]
        v = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(Node(op, operands, (v,), types, attrs, v))
        self.types[v] = types[0]
        return v

    def weight(self, *shape: int, mean: float = 0, spread: float = 1) -> str:
        """A constant of normally distributed numbers."""
        v = f"w{len(self.constants)}"
        self.constants[v] = (mean + spread * self.rng.standard_normal(shape)).astype(np.float32)
        self.types[v] = Type.of(self.constants[v])
        return v

    def conv(self, x: str, filters: int, size: int, group: int = 1, **attrs: Attr) -> str:
        """A convolution with a batch norm."""
        channels = self.types[x].shape[1] // group
        w = self.weight(filters, channels, size, size, spread=(channels * size * size) ** -0.5)
        pad = size // 2
        y = self.op("Conv", x, w, group=group, pads=(pad,) * 4, **attrs)
        scale, bias, mean = (
            self.weight(filters, mean=1, spread=0.1),
            self.weight(filters),
            self.weight(filters),
        )
        var = self.weight(filters, mean=1, spread=0)
        return self.op("BatchNormalization", y, scale, bias, mean, var)

    def graph(self, **outputs: str) -> Graph:
        """The finished network."""
        return Graph(self.name, self.inputs, outputs, tuple(self.nodes), self.constants).verify()


def residual(batch: int = 1) -> Graph:
    """Convolutions, batch norms, a residual, pools and a classifier."""
    n = Net("residual", {"image": Type("f32", (batch, 3, 14, 14))})
    x = n.op("Relu", n.conv("image", 24, 3, strides=(2, 2)))
    y = n.op("Relu", n.conv(x, 24, 3))
    x = n.op("Relu", n.op("Add", n.conv(y, 24, 3), x))
    x = n.op("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    pooled = n.op("Flatten", n.op("GlobalAveragePool", x))
    return n.graph(
        features=x,
        logits=n.op("Gemm", pooled, n.weight(10, 24, spread=0.2), n.weight(10), transB=1),
    )


def separable(batch: int = 1) -> Graph:
    """An inverted residual: expand, depthwise with a stride, project; clipped activations, a grouped convolution."""
    n = Net("separable", {"image": Type("f32", (batch, 8, 9, 11))})
    x = n.op("Clip", n.conv("image", 48, 1), min=0.0, max=6.0)
    x = n.op("Clip", n.conv(x, 48, 3, group=48, strides=(2, 2)), min=0.0, max=6.0)
    x = n.op("Clip", n.conv(x, 48, 5, group=48), min=0.0, max=6.0)
    return n.graph(features=n.conv(n.conv(x, 16, 1), 32, 3, group=4, dilations=(1, 1)))


def attention(batch: int = 1) -> Graph:
    """One head of attention, a norm and a feed-forward layer."""
    n = Net("attention", {"x": Type("f32", (batch, 12, 32))})
    q, k, v = (n.op("MatMul", "x", n.weight(32, 16, spread=0.3)) for _ in range(3))
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=(0, 2, 1)))
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), v)
    y = n.op("Add", n.op("MatMul", mixed, n.weight(16, 32, spread=0.3)), "x")
    y = n.op("LayerNormalization", y, n.weight(32, mean=1, spread=0.1), n.weight(32), axis=-1)
    return n.graph(scores=scores, y=n.op("Relu", n.op("MatMul", y, n.weight(32, 64, spread=0.2))))


NETS = {f.__name__: f for f in (residual, separable, attention)}
EXACT = {"residual": ("features",), "separable": ("features",), "attention": ("scores",)}
"""Outputs before which no sum over SIMD lanes lies."""


@dataclass(frozen=True)
class Levels:
    """A network compiled, with what every level computes of one input."""

    graph: dict[str, Array]
    plan: dict[str, Array]
    fast: dict[str, Array]
    reference: dict[str, Array]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def compiled(name: str, precision: str, folder: Path, batch: int = 1) -> tuple[Plan, Program]:
    options = driver.Options(precision=precision, cache=folder)
    plan = driver.schedule(driver.optimize(NETS[name](batch), options), Machine.load("volta-8tc"))
    return plan.verify(), driver.generate(plan, options)


def inputs(g: Graph, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {v: rng.standard_normal(t.shape).astype(np.float32) for v, t in g.inputs.items()}


@pytest.fixture(scope="module")
def levels(kernels: Path) -> object:
    @cache
    def get(name: str, precision: str) -> Levels:
        plan, program = compiled(name, precision, kernels)
        x = inputs(plan.graph)
        fast, reference = (Session(program).run(x, engine=e).outputs for e in ("fast", "reference"))
        return Levels(evaluate(plan.graph, x), plan.evaluate(x), fast, reference)

    return get


def distance(got: Array, want: Array, precision: str) -> float:
    """The greatest difference, in steps of the stored type at the greatest element."""
    error = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
    return float(error / (np.abs(want).max() * STEP[precision]))


def equal(a: Mapping[str, Array], b: Mapping[str, Array], names: tuple[str, ...]) -> bool:
    return all(a[v].tobytes() == b[v].tobytes() for v in names)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETS)
def test_both_engines_compute_the_same_bits(levels, name: str, precision: str) -> None:
    it = levels(name, precision)
    assert equal(it.fast, it.reference, tuple(it.fast))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETS)
def test_the_levels_compute_the_same_bits_where_no_lanes_are_summed(
    levels, name: str, precision: str
) -> None:
    it = levels(name, precision)
    assert equal(it.plan, it.graph, EXACT[name])
    assert equal(it.fast, it.graph, EXACT[name])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETS)
def test_the_levels_agree_within_the_bound_everywhere(levels, name: str, precision: str) -> None:
    it = levels(name, precision)
    for v, want in it.graph.items():
        assert distance(it.plan[v], want, precision) <= ULPS
        assert distance(it.fast[v], want, precision) <= ULPS


@pytest.mark.parametrize("name", NETS)
def test_a_batch_of_eight_is_eight_runs_of_one(name: str, kernels: Path) -> None:
    _, one = compiled(name, "fp16", kernels)
    _, eight = compiled(name, "fp16", kernels, batch=8)
    x = inputs(NETS[name](8))
    alone = [Session(one).run({v: a[i : i + 1] for v, a in x.items()}).outputs for i in range(8)]
    together = Session(eight).run(x).outputs
    for v, got in together.items():
        assert got.tobytes() == np.concatenate([o[v] for o in alone]).tobytes()


@pytest.mark.parametrize("kind", ["hmma", "ffma"])
def test_every_tile_computes_the_same_bits(kind: str, kernels: Path) -> None:
    """Accumulation goes along k, whatever the tile; so the choice of a tile is a matter of time alone."""
    precision = {"hmma": "fp16", "ffma": "fp32"}[kind]
    plan, program = compiled("residual", precision, kernels)
    x = inputs(plan.graph)
    want = Session(program).run(x).outputs
    step = next(s for s in plan.steps if s.kind == kind)
    for options in list(step.generator.candidates(step.group, plan.machine))[::3]:
        forced = driver.schedule(plan.graph, plan.machine, {step.name: options}).verify()
        got = Session(driver.generate(forced, driver.Options(cache=kernels))).run(x).outputs
        assert equal(got, want, tuple(want)), options


def test_a_warm_compile_asks_tvm_nothing(kernels: Path) -> None:
    """Importing it takes a second; and what comes from the disk is the same."""
    _, first = compiled("attention", "fp16", kernels)
    client.stop()
    _, second = compiled("attention", "fp16", kernels)
    assert second == first
    assert not client.is_running()


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dumped(kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every level of a compile."""
    folder = tmp_path_factory.mktemp("dump")
    machine = Machine.load("volta-8tc")
    driver.compile_graph(residual(), machine, cache=kernels, dump=driver.Files(folder))
    return folder


def again(file: Path, kernels: Path) -> Program:
    """The program, from a file of any level on."""
    machine, options = Machine.load("volta-8tc"), driver.Options(cache=kernels)
    if file.suffix == ".ir":
        return driver.from_ir(file, machine, options)
    if file.suffix == ".plan":
        return driver.from_plan(file, machine, options)
    return asm.load(file)


def test_a_dump_has_every_level(dumped: Path) -> None:
    names = [f.name for f in sorted(dumped.iterdir()) if f.suffix in (".ir", ".plan", ".s", ".elf")]
    assert names[0] == "00-import.ir"
    assert names[-4].endswith("-bitmap.ir")
    assert names[-3:] == ["plan.plan", "program.elf", "program.s"]


@pytest.mark.parametrize("name", ["00-import.ir", "*-bitmap.ir", "plan.plan", "program.s"])
def test_every_level_leads_to_the_same_program(dumped: Path, kernels: Path, name: str) -> None:
    want = image.read((dumped / "program.elf").read_bytes(), "program.elf")
    got = again(next(dumped.glob(name)), kernels)
    assert got == want


def test_a_hand_edited_plan_runs_with_its_tile(dumped: Path, kernels: Path, tmp_path: Path) -> None:
    """What the plan says of a launch is what the program does; what it computes stays."""
    plan = plan_text.load(dumped / "plan.plan", Machine.load("volta-8tc"))
    step = next(s for s in plan.steps if s.kind == "hmma")
    others = [o for o in step.generator.candidates(step.group, plan.machine) if o != step.options]
    old, new = show_attrs(step.options), show_attrs(others[-1])
    line = f"launch @{step.name} = hmma "
    edited = (dumped / "plan.plan").read_text().replace(f"{line}{old}", f"{line}{new}")
    (tmp_path / "edited.plan").write_text(edited)
    shutil.copy(dumped / "plan.plan.data", tmp_path / "edited.plan.data")
    before, after = again(dumped / "plan.plan", kernels), again(tmp_path / "edited.plan", kernels)
    index = plan.steps.index(step)
    assert new in after.launches[index].note
    assert (before.launches[index].grid, before.kernels) != (
        after.launches[index].grid,
        after.kernels,
    )
    x = inputs(plan.graph)
    assert equal(
        Session(after).run(x).outputs, Session(before).run(x).outputs, tuple(plan.graph.outputs)
    )


@pytest.mark.parametrize(
    ("op", "attrs"),
    [("Relu", {}), ("Clip", {"min": 0.0, "max": 6.0}), ("ReduceMax", {"axes": (1,)})],
)
def test_a_nan_is_never_hidden(op: str, attrs: dict[str, Attr]) -> None:
    x = np.array([[np.nan, 1, -1, np.inf], [1, 2, 3, np.nan]], np.float32)
    made = infer(op, [Type.of(x)], attrs)
    g = Graph("nan", {"x": Type.of(x)}, {"y": "y"}, (Node(op, ("x",), ("y",), made, attrs),))
    machine = Machine.load("volta-8tc")
    got = Session(driver.compile_graph(g, machine, precision="fp32")).run({"x": x}).outputs["y"]
    np.testing.assert_array_equal(got, evaluate(g, {"x": x})["y"])
    assert np.isnan(got).sum() == 2


@pytest.mark.parametrize(
    "dtype", ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "f16", "f32", "f64"]
)
def test_elementwise_ops_of_every_type_and_size(dtype: str) -> None:
    """Odd sizes take elements one by one, even ones several in a word."""
    rng = np.random.default_rng(0)
    sizes, ops = (1, 7, 8, 64, 100), ("Add", "Sub", "Mul", "Less", "Equal", "Max")
    x: dict[str, Array] = {
        f"{v}{n}": rng.integers(0, 11, n).astype(DTYPES[dtype]) for n in sizes for v in "ab"
    }
    nodes = tuple(
        Node(op, (f"a{n}", f"b{n}"), (f"{op}{n}",), infer(op, [Type(dtype, (n,))] * 2, {}))
        for n in sizes
        for op in ops
    )
    names = [v for node in nodes for v in node.outputs]
    g = Graph("g", {v: Type.of(a) for v, a in x.items()}, {v: v for v in names}, nodes)
    program = driver.compile_graph(g, Machine.load("volta-8tc"), precision="fp32")
    got, want = Session(program).run(x).outputs, evaluate(g, x)
    for v in names:
        np.testing.assert_array_equal(got[v], want[v], err_msg=v)
