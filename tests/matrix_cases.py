"""Convolutions and matrix products for tests of kernels: graphs of one group, and their bits, whatever the tile.

Every case goes through plan and program like a network's, with a tile that the test forces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.codegen.generator import GENERATORS, Group, Options
from knapper.compiler.codegen.matrix.blocks import product
from knapper.compiler.driver import Options as CompileOptions
from knapper.compiler.driver import finish
from knapper.compiler.groups import groups
from knapper.compiler.ir import DTYPES, Array, Graph, Node, Type, evaluate, infer
from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.runtime.session import EngineName, Session

MACHINE = Machine.load("volta-8tc")
RNG = np.random.default_rng(0)
Case = tuple[Graph, dict[str, Array]]


def draw(shape: Sequence[int], dtype: str) -> Array:
    if dtype[0] in "iu":
        limits = np.iinfo(DTYPES[dtype])
        return RNG.integers(limits.min, limits.max, shape, DTYPES[dtype], endpoint=True)
    return RNG.standard_normal(shape).astype(DTYPES[dtype])


class Writer:
    """A graph of one group, written op by op."""

    def __init__(self) -> None:
        self.inputs: dict[str, Array] = {}
        self.constants: dict[str, Array] = {}
        self.types: dict[str, Type] = {}
        self.nodes: list[Node] = []

    def value(self, data: Array, known: bool = False) -> str:
        name = f"v{len(self.types)}"
        (self.constants if known else self.inputs)[name] = data
        self.types[name] = Type.of(data)
        return name

    def op(self, name: str, *operands: str, **attrs: Any) -> str:
        types = infer(name, [self.types[v] if v else None for v in operands], attrs)
        out = f"v{len(self.types)}"
        self.types[out] = types[0]
        self.nodes.append(
            Node(name, operands, (out,), types, attrs, loc=f"{name}_{out}", group="g")
        )
        return out

    def case(self, *outputs: str) -> Case:
        inputs = {v: Type.of(a) for v, a in self.inputs.items()}
        graph = Graph("g", inputs, {v: v for v in outputs}, tuple(self.nodes), self.constants)
        return graph.verify(), self.inputs


def conv(
    x: Sequence[int], o: int, k: int, stride: int = 1, pad: int = 0, dilation: int = 1, group: int = 1, dtype: str = "f16",
    after: str = "relu", known: bool = True,
) -> Case:  # fmt: skip
    """Conv of x[N, H, W, C] with k × k taps and a bias; `after`: relu, or residual and relu."""
    w = Writer()
    weights = draw((k, k, x[-1] // group, o), dtype)
    operands = w.value(draw(x, dtype)), w.value(weights, known), w.value(draw((o,), "f32"), True)
    y = w.op(
        "Conv", *operands, strides=(stride,) * 2, pads=(pad,) * 4, dilations=(dilation,) * 2, group=group, layout="NHWC", out="f32"
    )  # fmt: skip
    if after == "residual":
        r = w.value(draw(w.types[y].shape, dtype))
        y = w.op("Add", y, w.op("Cast", r, to="f32") if dtype != "f32" else r)
    y = w.op("Relu", y)
    return w.case(w.op("Cast", y, to=dtype) if dtype != "f32" else y)


def matmul(
    a: Sequence[int],
    b: Sequence[int],
    plus: Sequence[int] | None = None,
    dtype: str = "f16",
    known: bool = False,
    **attrs: Any,
) -> Case:
    """MatMul, then an addition of `plus`, stored as the operands' type."""
    w = Writer()
    floating = dtype in ("f16", "bf16", "f32")
    out = {"out": "f32"} if floating else {"out": "i32"} if DTYPES[dtype]().itemsize < 4 else {}
    y = w.op("MatMul", w.value(draw(a, dtype)), w.value(draw(b, dtype), known), **out, **attrs)
    if plus is not None:
        y = w.op("Add", y, w.value(draw(plus, "f32")))
    return w.case(w.op("Cast", y, to=dtype) if dtype in ("f16", "bf16") else y)


def same(got: Array, want: Array) -> bool:
    return got.dtype == want.dtype and bool(((got == want) | ((got != got) & (want != want))).all())


def group_of(graph: Graph) -> Group:
    (group,) = groups(graph)
    return group


def offers(graph: Graph, kind: str) -> list[dict[str, Any]]:
    generator = GENERATORS[kind]
    assert generator.serves(group_of(graph), MACHINE) is None
    return [dict(o) for o in generator.candidates(group_of(graph), MACHINE)]


def program(graph: Graph, kind: str, options: Options, cache: Path) -> Program:
    forced = {"g": {"kind": kind, **options}}
    return finish(graph, MACHINE, CompileOptions(forced=forced, cache=cache))


def some(options: list[dict[str, Any]], count: int) -> Iterator[Options]:
    """The first, the last, and a few between."""
    step = max(1, (len(options) - 1) // max(count - 1, 1))
    yield from options[::step][: count - 1] if len(options) > 1 else []
    yield options[-1]


def check(case: Case, kind: str, cache: Path, count: int = 6, engine: EngineName = "fast") -> None:
    graph, inputs = case
    want = evaluate(graph, inputs)
    for options in some(offers(graph, kind), count):
        result = Session(program(graph, kind, options, cache)).run(inputs, engine=engine)
        for name, y in want.items():
            assert same(result.outputs[name], y), (
                f"{kind} {options}: %{name} differs from the reference"
            )
        assert result.stats.macs == product(group_of(graph)).macs


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


CONVS: dict[str, dict[str, Any]] = {
    "1x1": {"x": (1, 7, 7, 32), "o": 48, "k": 1},
    "1x1, channels that fill no step": {"x": (1, 9, 9, 40), "o": 24, "k": 1},
    "1x1 with stride": {"x": (1, 9, 9, 48), "o": 40, "k": 1, "stride": 2},
    "3x3": {"x": (1, 9, 7, 32), "o": 32, "k": 3, "pad": 1, "after": "residual"},
    "3x3 with stride, batch": {"x": (2, 9, 7, 16), "o": 24, "k": 3, "stride": 2, "pad": 1},
    "3x3 dilated": {"x": (1, 9, 9, 16), "o": 24, "k": 3, "pad": 2, "dilation": 2},
    "RGB": {"x": (2, 12, 11, 3), "o": 20, "k": 7, "stride": 2, "pad": 3},
    "12 channels": {"x": (2, 6, 5, 12), "o": 20, "k": 3, "pad": 1},
    "groups": {"x": (1, 8, 8, 64), "o": 64, "k": 3, "pad": 1, "group": 4, "after": "residual"},
    "ragged groups": {"x": (1, 6, 5, 12), "o": 20, "k": 3, "pad": 1, "group": 2},
    "weights that are computed": {"x": (1, 6, 6, 24), "o": 24, "k": 3, "pad": 1, "known": False},
    "more taps than image": {"x": (1, 3, 2, 16), "o": 16, "k": 5, "pad": 2},
}
MATMULS: dict[str, dict[str, Any]] = {
    "plain": {"a": (33, 40), "b": (40, 24)},
    "A transposed": {"a": (40, 33), "b": (40, 24), "trans_a": True},
    "B transposed": {"a": (33, 40), "b": (24, 40), "trans_b": True},
    "both transposed": {"a": (40, 32), "b": (24, 40), "trans_a": True, "trans_b": True},
    "batch": {"a": (3, 2, 17, 16), "b": (2, 16, 20)},
    "batches that broadcast": {"a": (3, 1, 17, 16), "b": (2, 16, 20), "plus": (3, 1, 1, 20)},
    "rows folded": {"a": (3, 5, 16), "b": (16, 20), "plus": (20,), "known": True},
    "one row": {"a": (1, 320), "b": (320, 100), "plus": (100,), "known": True},
    "vector by matrix": {"a": (50,), "b": (50, 20)},
    "matrix by vector": {"a": (7, 50), "b": (50,)},
    "vector by vector": {"a": (50,), "b": (50,)},
    "odd everything, a column added": {"a": (35, 33), "b": (33, 21), "plus": (35, 1)},
    "a matrix and a scalar": {"a": (16, 16), "b": (16, 16), "plus": ()},
}
DEPTHWISE: dict[str, dict[str, Any]] = {
    "3x3": {"x": (1, 9, 9, 32), "o": 32, "k": 3, "pad": 1, "group": 32},
    "with stride, batch": {
        "x": (2, 10, 9, 24),
        "o": 24,
        "k": 3,
        "stride": 2,
        "pad": 1,
        "group": 24,
        "after": "residual",
    },
    "5x5": {"x": (1, 9, 9, 20), "o": 20, "k": 5, "pad": 2, "group": 20},
    "two outputs a channel, dilated": {
        "x": (1, 9, 9, 20),
        "o": 40,
        "k": 3,
        "pad": 1,
        "dilation": 2,
        "group": 20,
        "after": "residual",
    },
    "15x15": {"x": (1, 16, 16, 8), "o": 8, "k": 15, "pad": 7, "group": 8},
}
