"""Random graphs of the Graph's ops, on small integers, so that sums are exact whatever the order."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from knapper.compiler.ir import Array, Graph, Node, Type, infer


class Net:
    """A graph that grows by drawn nodes of real ops."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        shape = (draw(st.integers(1, 2)), *(draw(st.integers(1, 5)) for _ in range(3)))
        self.inputs = {"x": Type("f32", shape)}
        self.constants: dict[str, Array] = {}
        self.nodes: list[Node] = []
        self.types = dict(self.inputs)

    def pick(self, *ranks: int) -> str:
        fits = [
            v
            for v, t in self.types.items()
            if v not in self.constants and t.dtype == "f32" and t.rank in (ranks or range(9))
        ]
        assume(fits)
        return self.draw(st.sampled_from(fits[-4:]))

    def constant(self, *shape: int) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = self.rng.integers(-2, 3, shape).astype(np.float32)
        self.types[name] = Type("f32", shape)
        return name

    def add(self, op: str, *operands: str, **attrs: Any) -> None:
        types = infer(op, [self.types[v] for v in operands], attrs)
        types = types if op in ("Split", "TopK") else types[:1]
        names = tuple(f"{len(self.nodes)}.{i}" for i in range(len(types)))
        self.nodes.append(Node(op, operands, names, types, attrs, f"node {len(self.nodes)}"))
        self.types |= zip(names, types, strict=True)

    def graph(self) -> Graph:
        made = [v for n in self.nodes for v in n.outputs]
        chosen = self.draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
        outputs = {f"out{i}": v for i, v in enumerate([*chosen, made[-1]])}
        return Graph("g", self.inputs, outputs, tuple(self.nodes), self.constants).verify()


def conv(n: Net) -> None:
    x = n.pick(4)
    _, c, h, w = n.types[x].shape
    group = n.draw(st.sampled_from([1, c]))
    kernel = [min(n.draw(st.integers(1, 3)), size) for size in (h, w)]
    o = group * n.draw(st.integers(1, 3))
    bias = [n.constant(o)] if n.draw(st.booleans()) else []
    pads = n.draw(st.sampled_from([(0,) * 4, (1, 0, 0, 1), (1,) * 4]))
    strides = n.draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    weights = n.constant(o, c // group, *kernel)
    n.add("Conv", x, weights, *bias, group=group, pads=pads, strides=strides)


def matmul(n: Net) -> None:
    x = n.pick(2, 3, 4)
    k = n.types[x].shape[-1]
    n.add("MatMul", x, n.constant(k, n.draw(st.integers(1, 4))))


def pool(n: Net) -> None:
    x = n.pick(4)
    op = n.draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalMaxPool"]))
    if op == "GlobalMaxPool":
        n.add(op, x)
    elif min(n.types[x].shape[2:]) >= 2:
        n.add(op, x, kernel_shape=(2, 2), strides=(n.draw(st.integers(1, 2)),) * 2)


def unary(n: Net) -> None:
    op = n.draw(st.sampled_from(["Relu", "Neg", "Abs", "Identity", "Clip", "LeakyRelu"]))
    n.add(
        op, n.pick(), **{"Clip": {"min": -1.0, "max": 2.0}, "LeakyRelu": {"alpha": 0.5}}.get(op, {})
    )


def binary(n: Net) -> None:
    x = n.pick()
    t = n.types[x]
    same = [v for v, u in n.types.items() if u == t and v not in n.constants]
    channels = n.constant(*(t.shape[1:2] + (1,) * (t.rank - 2)))
    other = n.draw(st.sampled_from([*same, channels, n.constant(*t.shape), n.constant()]))
    op = n.draw(st.sampled_from(["Add", "Sub", "Mul", "Max"]))
    n.add(op, *n.draw(st.permutations([x, other])))


def norm(n: Net) -> None:
    x = n.pick(2, 4)
    c = n.types[x].shape[1]
    scale, bias, mean = (n.constant(c) for _ in range(3))
    n.constants[f"v{len(n.nodes)}"] = np.full(c, 4, np.float32)
    n.types[f"v{len(n.nodes)}"] = Type("f32", (c,))
    n.add("BatchNormalization", x, scale, bias, mean, f"v{len(n.nodes)}", epsilon=0.0)


def join(n: Net) -> None:
    x = n.pick(2, 3, 4)
    axis = n.draw(st.integers(-1, n.types[x].rank - 1))
    n.add("Concat", x, x, axis=axis)


def cut(n: Net) -> None:
    x = n.pick(2, 3, 4)
    t = n.types[x]
    axis = n.draw(st.integers(0, t.rank - 1))
    size = t.shape[axis]
    at = n.draw(st.integers(0, size - 1))
    kind = n.draw(st.sampled_from(["Slice", "Split", "Pad", "Gather"]))
    if kind == "Slice":
        n.add(kind, x, starts=(at,), ends=(size,), axes=(axis,), steps=(1,))
    elif kind == "Split" and at:
        n.add(kind, x, split=(at, size - at), axis=axis)
    elif kind == "Pad":
        n.add(kind, x, pads=tuple(int(i == axis) for i in range(t.rank)) + (0,) * t.rank)
    elif kind == "Gather":
        i = f"i{len(n.nodes)}"
        n.constants[i] = np.array(at if n.draw(st.booleans()) else [at, 0], np.int64)
        n.types[i] = Type.of(n.constants[i])
        n.add(kind, x, i, axis=axis)


def stretch(n: Net) -> None:
    x = n.pick(2, 3, 4)
    t = n.types[x]
    kind = n.draw(st.sampled_from(["Tile", "Expand", "Resize", "ArgMax", "TopK", "CumSum"]))
    axis = n.draw(st.integers(0, t.rank - 1))
    if kind == "Tile":
        n.add(kind, x, repeats=tuple(1 + (i == axis) for i in range(t.rank)))
    elif kind == "Expand":
        n.add(kind, x, shape=tuple(2 if size == 1 else size for size in t.shape))
    elif kind == "Resize":
        n.add(kind, x, scales=tuple(1.0 + (i == axis) for i in range(t.rank)))
    elif kind == "ArgMax":
        n.add(kind, x, axis=axis, keepdims=n.draw(st.integers(0, 1)))
        n.add("Cast", n.nodes[-1].outputs[0], to="f32")
    elif kind == "TopK":
        n.add(kind, x, k=1, axis=axis)
        del n.types[n.nodes[-1].outputs[1]]  # indices are not for arithmetic
    else:
        n.add(kind, x, axis=axis)


def shuffle(n: Net) -> None:
    x = n.pick(2, 3, 4)
    n.add("Transpose", x, perm=tuple(n.draw(st.permutations(range(n.types[x].rank)))))


def reshape(n: Net) -> None:
    x = n.pick()
    shape = list(n.types[x].shape)
    for _ in range(n.draw(st.integers(0, 2))):
        if len(shape) > 1:
            i = n.draw(st.integers(0, len(shape) - 2))
            shape[i : i + 2] = [shape[i] * shape[i + 1]]
    if n.draw(st.booleans()) and len(shape) < 4:
        shape.insert(n.draw(st.integers(0, len(shape))), 1)
    n.add("Reshape", x, shape=tuple(shape))


def reduce_(n: Net) -> None:
    x = n.pick(2, 3, 4)
    axes = tuple(
        n.draw(st.lists(st.integers(0, n.types[x].rank - 1), min_size=1, max_size=2, unique=True))
    )
    op = n.draw(st.sampled_from(["ReduceSum", "ReduceMax"]))
    n.add(op, x, axes=axes, keepdims=n.draw(st.integers(0, 1)))


STEPS = [
    conv,
    conv,
    conv,
    matmul,
    pool,
    unary,
    unary,
    binary,
    binary,
    norm,
    join,
    cut,
    stretch,
    shuffle,
    shuffle,
    reshape,
    reshape,
    reduce_,
]


SMOOTH = [s for s in STEPS if s is not stretch]  # nothing that turns on a last bit, as ArgMax does


@st.composite
def graphs(draw: st.DrawFn, steps: Any = tuple(STEPS)) -> Graph:
    """A small network of real ops on small integers."""
    n = Net(draw)
    for step in draw(st.lists(st.sampled_from(steps), min_size=1, max_size=9)):
        step(n)
    assume(n.nodes)
    assume(sum(t.count for t in n.types.values()) < 20_000)
    return n.graph()
