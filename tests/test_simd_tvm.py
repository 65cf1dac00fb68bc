"""SIMD kernels through TVM: every op's examples, fused chains, reductions at batch 1 and 8 compute what the references say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tir import EPSILON, MACHINE, compiled

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.codegen.simd.generator import SIMD
from knapper.compiler.groups import groups
from knapper.compiler.ir import DTYPES, OPS, Array, Graph, IRError, Node, Type, evaluate, infer
from knapper.compiler.ops.table import examples
from knapper.compiler.tvm import client
from knapper.isa.instructions import BRA, HMNMX2
from knapper.runtime.session import Session

pytestmark = pytest.mark.usefixtures("cache")

Case = tuple[Graph, dict[str, Array]]


class Writer:
    """A graph of one group, written op by op."""

    def __init__(self) -> None:
        self.inputs: dict[str, Array] = {}
        self.types: dict[str, Type] = {}
        self.nodes: list[Node] = []

    def value(self, data: Array) -> str:
        name = f"x{len(self.types)}"
        self.inputs[name], self.types[name] = data, Type.of(data)
        return name

    def op(self, name: str, *operands: str, results: int = 1, **attrs: Any) -> str:
        types = infer(name, [self.types[v] if v else None for v in operands], attrs)[:results]
        outs = tuple(f"v{len(self.types) + i}" for i in range(len(types)))
        self.types |= dict(zip(outs, types, strict=True))
        self.nodes.append(
            Node(name, operands, outs, types, attrs, loc=f"{name}_{outs[0]}", group="g")
        )
        return outs[0]

    def case(self) -> Case:
        outputs = {v: v for v in self.nodes[-1].outputs}
        inputs = {v: Type.of(a) for v, a in self.inputs.items()}
        return Graph("g", inputs, outputs, tuple(self.nodes)).verify(), self.inputs


def wrong(got: Array, want: Array) -> str:
    """Empty if integers are equal and floats within four units of the last place, or two of the largest value's."""
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"{got.dtype}{got.shape} where {want.dtype}{want.shape} was expected"
    epsilon = EPSILON.get(Type.of(want).dtype)
    if epsilon is None:
        return (
            "" if np.array_equal(got, want) else f"{int((got != want).sum())} of {want.size} differ"
        )
    a, b = got.astype(np.float64), want.astype(np.float64)
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0))
    close = np.isclose(a, b, rtol=4 * epsilon, atol=2 * epsilon * largest, equal_nan=True)
    return (
        ""
        if close.all()
        else f"{int((~close).sum())} of {want.size} differ, by up to {np.abs(a - b).max()}"
    )


RESULTS = {"MaxPool": 1, "Dropout": 1}
"""Ops with results that nobody lowers: how many are."""


def op_cases(name: str) -> Iterator[Case]:
    for operands, attrs in examples(OPS[name]):
        w = Writer()
        names = [w.value(a) if a is not None else "" for a in operands]
        w.op(name, *names, results=RESULTS.get(name, 99), **attrs)
        yield w.case()


def served(name: str) -> bool:
    return all(
        SIMD.serves(g, MACHINE) is None for graph, _ in op_cases(name) for g in groups(graph)
    )


OPS_BY_TVM = [n for n in sorted(OPS) if {"example", "relax"} <= OPS[n].facets.keys() and served(n)]


@pytest.mark.parametrize("name", OPS_BY_TVM)
def test_every_op_computes_its_reference(name: str, cache: Path) -> None:
    """All examples of the op, in all their types; sent to the worker at once, as a compile does it."""
    cases = list(op_cases(name))
    client.prefetch(g for graph, _ in cases for g in groups(graph))
    for i, (graph, inputs) in enumerate(cases):
        got = Session(compiled(graph, cache)).run(inputs, checked=True).outputs
        for v, want in evaluate(graph, inputs).items():
            assert not (problem := wrong(got[v], want)), f"example {i}: {v}: {problem}"


def single(name: str) -> Case | None:
    """The op's first example with all that is as long as its first operand cut to one row; None if it has no such form."""
    operands, attrs = examples(OPS[name])[0]
    if not operands or operands[0] is None or not operands[0].ndim:
        return None
    n = len(operands[0])
    w = Writer()
    try:
        cut = [a[:1] if a is not None and a.ndim and len(a) == n else a for a in operands]
        names = [w.value(a) if a is not None else "" for a in cut]
        w.op(name, *names, results=RESULTS.get(name, 99), **attrs)
        evaluate(*w.case())
    except (
        IRError,
        ValueError,
        IndexError,
    ):  # an attribute counts what is cut, an index lies in it
        return None
    return w.case()


def test_most_ops_have_a_form_of_one_row() -> None:
    assert sum(single(name) is not None for name in OPS_BY_TVM) > 100


@pytest.mark.parametrize("name", OPS_BY_TVM)
def test_every_op_computes_a_single_row(name: str, cache: Path) -> None:
    """An axis of length 1 has no loop, and a reduction to one row no parallel axis."""
    if (case := single(name)) is None:
        pytest.skip("has no form of one row")
    graph, inputs = case
    got = Session(compiled(graph, cache)).run(inputs, checked=True).outputs
    for v, want in evaluate(graph, inputs).items():
        assert not (problem := wrong(got[v], want)), f"{v}: {problem}"


def test_most_ops_are_served() -> None:
    assert len(OPS_BY_TVM) > 100


def draw(*shape: int, dtype: str = "f16") -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(DTYPES[dtype])


def swish() -> Case:
    w = Writer()
    x = w.op("Cast", w.value(draw(2, 7, 9, 24)), to="f32")
    w.op("Cast", w.op("Mul", x, w.op("Sigmoid", x)), to="f16")
    return w.case()


def residual_norm() -> Case:
    w = Writer()
    a, b = (w.op("Cast", w.value(draw(5, 96)), to="f32") for _ in range(2))
    s = w.op("Cast", w.op("Add", a, b), to="f16")
    w.op("LayerNormalization", s, w.value(draw(96)), w.value(draw(96)))
    return w.case()


def scores() -> Case:
    w = Writer()
    x = w.op("Cast", w.value(draw(2, 3, 5, 40)), to="f32")
    w.op(
        "Cast",
        w.op("Softmax", w.op("Add", x, w.value(draw(1, 1, 1, 40, dtype="f32"))), axis=-1),
        to="f16",
    )
    return w.case()


def pooled() -> Case:
    w = Writer()
    x = w.op("Cast", w.value(draw(1, 7, 7, 40)), to="f32")
    w.op("Cast", w.op("GlobalAveragePool", x, layout="NHWC"), to="f16")
    return w.case()


def image() -> Case:
    w = Writer()
    w.op(
        "Cast",
        w.op("Transpose", w.value(draw(1, 3, 14, 15, dtype="f32")), perm=(0, 2, 3, 1)),
        to="f16",
    )
    return w.case()


def heads() -> Case:
    w = Writer()
    w.op("Transpose", w.value(draw(1, 24, 3, 8)), perm=(0, 2, 3, 1))
    return w.case()


def gelu() -> Case:
    w = Writer()
    w.op("Cast", w.op("Gelu", w.op("Cast", w.value(draw(3, 100)), to="f32")), to="f16")
    return w.case()


def branches() -> Case:
    """Two results, one of which the other needs."""
    w = Writer()
    x = w.value(draw(4, 33, dtype="f32"))
    w.op("LayerNormalization", w.op("Tanh", x), w.value(draw(33, dtype="f32")), results=3)
    return w.case()


CHAINS = (swish, residual_norm, scores, pooled, image, heads, gelu, branches)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda f: f.__name__)
def test_a_fused_chain_is_one_kernel_with_the_same_bits_on_both_engines(
    chain: Callable[[], Case], cache: Path
) -> None:
    graph, inputs = chain()
    session = Session(compiled(graph, cache))
    fast, reference = (session.run(inputs, engine=e).outputs for e in ("fast", "reference"))
    for v, want in evaluate(graph, inputs).items():
        assert not (problem := wrong(reference[v], want)), problem
        assert fast[v].tobytes() == reference[v].tobytes()
    assert chain is branches or len(session.program.launches) == 1


def test_a_max_pool_computes_two_lanes_at_a_time_and_does_not_branch(cache: Path) -> None:
    w = Writer()
    w.op(
        "MaxPool",
        w.value(draw(1, 12, 12, 64)),
        kernel_shape=(3, 3),
        strides=(2, 2),
        pads=(1, 1, 1, 1),
        layout="NHWC",
    )
    graph, _ = w.case()
    (k,) = compiled(graph, cache).kernels.values()
    kinds = [type(i) for i in k.code]
    assert kinds.count(HMNMX2) == 9
    assert BRA not in kinds


# --- reductions

REDUCTIONS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "softmax of a row": ("Softmax", (3, 128), {"axis": -1}),
    "softmax of a long row": ("Softmax", (2500,), {"axis": -1}),
    "softmax over channels": ("Softmax", (21, 5, 9), {"axis": 1}),
    "layer norm": ("LayerNormalization", (5, 200), {}),
    "layer norm of a matrix": ("LayerNormalization", (3, 40), {"axis": 1}),
    "mean of a row": ("ReduceMean", (6, 49), {"axes": (2,), "keepdims": 0}),
    "mean over channels": ("ReduceMean", (49, 6), {"axes": (1,), "keepdims": 0}),
    "mean of all": ("ReduceMean", (7, 8, 50), {"axes": (1, 2, 3), "keepdims": 1}),
    "mean of separate axes": ("ReduceMean", (3, 5, 60), {"axes": (1, 3), "keepdims": 1}),
    "global average, NHWC": ("GlobalAveragePool", (7, 7, 24), {"layout": "NHWC"}),
    "global average, NCHW": ("GlobalAveragePool", (24, 7, 7), {"layout": "NCHW"}),
    "max pool": ("MaxPool", (9, 9, 8), {"layout": "NHWC", "kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "average pool": ("AveragePool", (9, 9, 6), {"layout": "NHWC", "kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "wide average pool": ("AveragePool", (4, 9, 9), {"kernel_shape": (7, 7), "pads": (3, 3, 3, 3)}),
    "instance norm": ("InstanceNormalization", (5, 13, 7), {}),
    "group norm": ("GroupNormalization", (6, 13, 7), {"num_groups": 2}),
    "sum of rows": ("ReduceSum", (96, 37), {"axes": (1,), "keepdims": 0}),
    "sum of a prime number of rows": ("ReduceSum", (131, 3), {"axes": (1,), "keepdims": 0}),
    "softmax over many channels": ("Softmax", (70, 5, 9), {"axis": 1}),
    "running sum": ("CumSum", (5, 60), {"axis": 2}),
    "log-sum-exp": ("ReduceLogSumExp", (50, 3), {"axes": (1,), "keepdims": 0}),
}  # fmt: skip
CHANNELS: dict[str, Callable[[tuple[int, ...], dict[str, Any]], tuple[int, ...]]] = {
    "LayerNormalization": lambda shape, attrs: shape[attrs.get("axis", len(shape)) - 1 :],
    "InstanceNormalization": lambda shape, attrs: shape[:1],
    "GroupNormalization": lambda shape, attrs: shape[:1],
}


def reduction(name: str, batch: int, images: Array) -> Case:
    kind, shape, attrs = REDUCTIONS[name]
    w = Writer()
    operands = [w.value(images[:batch])]
    if kind in CHANNELS:
        operands += [w.value(draw(*CHANNELS[kind](shape, attrs), dtype="f32")) for _ in range(2)]
    w.op(kind, *operands, **attrs)
    return w.case()


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_order_of_a_sum_does_not_depend_on_the_batch(name: str, cache: Path) -> None:
    """Eight at once have the bits of eight runs of one; so a schedule may look at what is reduced, and at nothing else."""
    images = draw(8, *REDUCTIONS[name][1], dtype="f32")
    (eight, inputs), (one, _) = (reduction(name, batch, images) for batch in (8, 1))
    (together,) = Session(compiled(eight, cache)).run(inputs).outputs.values()
    alone = Session(compiled(one, cache))
    first = next(iter(inputs))
    for i in range(8):
        (got,) = alone.run(inputs | {first: images[i : i + 1]}).outputs.values()
        assert got.tobytes() == together[i : i + 1].tobytes()


def test_a_global_pool_is_shared_by_threads_and_costs_about_what_it_takes(cache: Path) -> None:
    """Channels lie side by side, so a thread that summed a whole image would leave most of the machine idle."""
    w = Writer()
    w.op("GlobalAveragePool", w.value(draw(4, 28, 28, 64).astype(np.float16)), layout="NHWC")
    program = compiled(w.case()[0], cache)
    (launch,) = program.launches
    assert launch.grid[0] == 4 * 64 // 32
    assert program.kernels[launch.kernel].block == (32, 16, 1)


def test_a_pad_of_four_axes_needs_more_than_seven_predicates(cache: Path) -> None:
    w = Writer()
    w.op("Pad", w.value(draw(3, 5, 7, 9)), pads=(2, 3, 3, 2, 2, 3, 2, 3), mode="edge")
    graph, inputs = w.case()
    got = Session(compiled(graph, cache)).run(inputs).outputs
    for v, want in evaluate(graph, inputs).items():
        assert np.array_equal(got[v], want)


def test_an_empty_result_is_no_launch(cache: Path) -> None:
    w = Writer()
    w.op("Slice", w.value(draw(3, 4)), starts=(1,), ends=(1,), axes=(0,))
    graph, inputs = w.case()
    program = compiled(graph, cache)
    assert not program.launches
    (got,) = Session(program).run(inputs).outputs.values()
    assert got.shape == (0, 4)


def test_a_single_number_is_written_into_the_code(cache: Path) -> None:
    """A constant of one element is an immediate, so only the input and the result are parameters; a vector is a third one."""

    def parameters(constant: Array) -> int:
        x = Type("f32", (2, 8))
        node = Node("Mul", ("x", "c"), ("y",), (x,), loc="scale", group="g")
        graph = Graph("g", {"x": x}, {"y": "y"}, (node,), {"c": constant})
        (launch,) = compiled(graph, cache).launches
        return len(launch.params)

    assert parameters(np.full((1,), 3, np.float32)) == 2
    assert parameters(np.arange(8, dtype=np.float32)) == 3


def test_the_generator_says_why_it_does_not_serve() -> None:
    w = Writer()
    w.op("NonZero", w.value(draw(3, 4)), count=12)
    (group,) = groups(w.case()[0])
    assert SIMD.serves(group, MACHINE) == "NonZero cannot be lowered by TVM"


def test_cost_grows_with_the_tensor() -> None:
    def cost(n: int) -> float:
        w = Writer()
        w.op("Relu", w.value(np.zeros((n, 4096), np.float32)))
        (group,) = groups(w.case()[0])
        return SIMD.cost(group, {}, MACHINE)

    assert cost(64) < cost(512) < cost(4096)
