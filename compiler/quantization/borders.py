"""AQuant over a network: layer by layer in the order of computation, each on what the rounded network so far gives it.

    float network  ──► windows of outputs (the targets), at random places of each product's result
    rounded network ─► windows of inputs at the same places ─► `aquant.learn` ─► border, roundings ─► go on with them

Learned are the borders of activations of at most six bits that only products read, and the weights' roundings if asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from knapper.isa.formats import FORMATS

from ..ir import Array, Graph, Node, compute
from .aquant import Grid, Learned, Options, Rounding, Task, learn
from .layers import Product, products
from .quantized import from_rows, rows
from .simulate import Simulation, windows

log = logging.getLogger("knapper")
MOST_BITS = 6
"""Above, rounding to the nearest loses too little for anything to be learned."""
Batch = Mapping[str, Array]
Places = list[Array]
"""For each batch, places in a product's result, flat over all but its channels."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A product in both networks: the float one, and the node that computes it on integers."""

    product: Product
    node: Node

    @property
    def channels(self) -> int:
        """The axis of the input's channels, for the border."""
        return self.product.channels


def learn_borders(
    before: Graph,
    after: Graph,
    batches: Sequence[Batch],
    options: Options,
    samples: int = 2048,
) -> tuple[Graph, dict[str, Learned]]:
    """(`after` with borders, what was learned by layer) from inputs of a float network `before` that `after` is the rounded form of."""
    learner = _Learner(before, after, batches, options, samples)
    for n in after.nodes:
        learner.step(n)
    nodes = tuple(learner.changed.get(n.outputs[0], n) for n in after.nodes)
    return after.with_(nodes=nodes, constants=learner.constants), learner.learned


class _Learner:
    def __init__(
        self, before: Graph, after: Graph, batches: Sequence[Batch], options: Options, samples: int
    ) -> None:
        self.after, self.options, self.samples = after, options, samples
        self.users, self.makers = after.users(), after.producers()
        self.constants = dict(after.constants)
        self.pairs = {p.node.outputs[0]: p for p in _pairs(before, after)}
        self.targets = self._sample(before, batches)
        self.sim = Simulation(after, batches)
        self.changed: dict[str, Node] = {}
        self.learned: dict[str, Learned] = {}
        self.before_users = before.users()

    def _sample(self, before: Graph, batches: Sequence[Batch]) -> dict[str, tuple[Places, Array]]:
        """By the product's result: (places, targets [N, O]) of the float network."""
        rng = np.random.default_rng(self.options.seed)
        by_float = {p.product.node.outputs[0]: p for p in self.pairs.values()}
        sim, found = Simulation(before, batches), {}
        each = -(-self.samples // len(batches))
        for n in before.nodes:
            sim.step(n)
            if p := by_float.get(n.outputs[0]):
                flat = [_outputs(p.product, y) for y in sim.values(n.outputs[0])]
                places = [rng.integers(0, len(y), each) for y in flat]
                found[p.node.outputs[0]] = (
                    places,
                    np.concatenate([y[at] for y, at in zip(flat, places, strict=True)]),
                )
            sim.forget(n)
        return found

    def step(self, n: Node) -> None:
        """Compute a node, after learning about it if it rounds what products read."""
        readers = self._readers(n)
        if readers:
            n = self._learn(n, readers)
        self.sim.step(n)
        self.sim.forget(n)

    def _readers(self, n: Node) -> list[Pair]:
        """The products that read a rounded activation, if nothing else does and there is something to learn."""
        if n.op != "QuantizeLinear" or len(n.inputs) != 3:
            return []
        f = FORMATS[str(n.attrs.get("format") or n.attr("to"))]
        through = [
            u for q in self.users.get(n.outputs[0], ()) for u in self.users.get(q.outputs[0], ())
        ]
        pairs = [self.pairs.get(u.outputs[0]) for u in through]
        found = [p for p in pairs if p is not None]
        alike = len({p.channels for p in found}) == 1
        learnable = f.kind == "int" and f.bits <= MOST_BITS and alike and len(found) == len(pairs)
        return (
            found
            if learnable and all(u.inputs[0] in _results(self.users[n.outputs[0]]) for u in through)
            else []
        )

    def _learn(self, n: Node, readers: list[Pair]) -> Node:
        tasks = [self._task(n, p) for p in readers]
        rounding = [self._rounding(p) for p in readers] if self.options.weights else []
        own = [r for r in rounding if r is not None]
        options = self.options if len(own) == len(readers) else replace(self.options, weights=False)
        found = learn(tasks, self._grid(n), options, own)
        for p in readers:
            self.learned[p.product.name] = found
            log.info("aquant: %s: error %.3f of the nearest's", p.product.name, found.ratio)
        if found.rounding:
            for p, r in zip(readers, own, strict=True):
                self._store(p, r)
        if found.border is None:
            return n
        name = f"{n.outputs[0]}.border"
        self.constants[name] = found.border
        for env in self.sim.envs:
            env[name] = found.border
        attrs = n.attrs if readers[0].channels == 1 else {**n.attrs, "axis": readers[0].channels}
        self.changed[n.outputs[0]] = n.with_(inputs=(*n.inputs, name), attrs=attrs)
        return self.changed[n.outputs[0]]

    def _grid(self, n: Node) -> Grid:
        f = FORMATS[str(n.attrs.get("format") or n.attr("to"))]
        scale, zero = (self.constants[v] for v in n.inputs[1:3])
        return Grid(float(scale.item()), int(zero.item()), int(f.smallest), int(f.largest))

    def _task(self, n: Node, p: Pair) -> Task:
        """Windows of the value that n rounds, as a product reads them."""
        places, y = self.targets[p.node.outputs[0]]
        seen = [
            _windows(p, x, at) for x, at in zip(self.sim.values(n.inputs[0]), places, strict=True)
        ]
        inside = [
            _inside(p, x, at) for x, at in zip(self.sim.values(n.inputs[0]), places, strict=True)
        ]
        padded = not all(i.all() for i in inside)
        bias = (
            self._known(p.node.inputs[2])
            if len(p.node.inputs) > 2 and p.node.op != "MatMul"
            else None
        )
        group = p.node.attr("group") if p.node.op == "Conv" else 1
        w = rows(self._real(p), p.product.axis)
        return Task(
            np.concatenate(seen), y, w, np.concatenate(inside) if padded else None, group, self._clip(p), bias
        )  # fmt: skip

    def _clip(self, p: Pair) -> tuple[float, float]:
        """The bounds of an activation right behind."""
        users = self.before_users.get(p.product.node.outputs[0], [])
        behind = users[0] if len(users) == 1 else None
        if behind is not None and behind.op == "Relu":
            return (0.0, np.inf)
        if behind is not None and behind.op == "Clip":
            return (float(behind.attr("min")), float(behind.attr("max")))
        return (-np.inf, np.inf)

    def _known(self, v: str) -> Array | None:
        """A constant, or one that is dequantized."""
        if v in self.constants:
            return self.constants[v]
        n = self.makers.get(v)
        if (
            n is None
            or n.op != "DequantizeLinear"
            or any(x and x not in self.constants for x in n.inputs)
        ):
            return None
        return compute(n, {"": None, **{x: self.constants[x] for x in n.inputs if x}})[0]

    def _real(self, p: Pair) -> Array:
        w = self._known(p.node.inputs[1])
        assert w is not None  # `_pairs` has only products whose weights are dequantized constants
        return w

    def _rounding(self, p: Pair) -> Rounding | None:
        """The weights as something to learn; None where other products have them too, or they are no integers of few bits."""
        d = self.makers[p.node.inputs[1]]
        f = FORMATS.get(d.inputs[0].rpartition(".")[2])
        alone = len(self.users[d.outputs[0]]) == 1
        if f is None or f.kind != "int" or f.bits > MOST_BITS or not alone:
            return None
        scale = self.constants[d.inputs[1]]
        zero = self.constants[d.inputs[2]] if len(d.inputs) > 2 else np.zeros(len(scale))
        return Rounding(
            rows(p.product.weights, p.product.axis), scale, zero, int(f.smallest), int(f.largest)
        )

    def _store(self, p: Pair, r: Rounding) -> None:
        """Put learned integers in the place of the weights', and of what has been made of them."""
        d = self.makers[p.node.inputs[1]]
        old = self.constants[d.inputs[0]]
        new = from_rows(r.integers(), old.shape, p.product.axis).astype(old.dtype)
        self.constants[d.inputs[0]] = new
        for env in self.sim.envs:
            env[d.inputs[0]] = new
            if d.outputs[0] in env:
                env[d.outputs[0]] = compute(d, env)[0]


def _pairs(before: Graph, after: Graph) -> list[Pair]:
    """Products that became ones on integers, in the order that both networks have them in."""
    makers = after.producers()
    integer = [
        n
        for n in after.nodes
        if n.op in ("Conv", "MatMul", "Gemm") and _dequantized(after, makers.get(n.inputs[1]))
    ]
    names = {n.outputs[0]: n for n in integer} | {n.loc: n for n in integer if n.loc}
    found = ((p, names.get(p.node.loc) or names.get(p.node.outputs[0])) for p in products(before))
    return [Pair(p, n) for p, n in found if n is not None and n.op == p.node.op and _served(p)]


def _dequantized(g: Graph, n: Node | None) -> bool:
    return n is not None and n.op == "DequantizeLinear" and n.inputs[0] in g.constants


def _served(p: Product) -> bool:
    """Whether windows of it can be sampled."""
    return p.node.op != "Conv" or (p.weights.ndim == 4 and p.node.attr("layout") == "NCHW")


def _results(nodes: Sequence[Node]) -> set[str]:
    return {v for n in nodes for v in n.outputs}


def _outputs(p: Product, y: Array) -> Array:
    """A product's result as [places, O]."""
    return (
        np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])
        if p.node.op == "Conv"
        else y.reshape(-1, y.shape[-1])
    )


def _windows(p: Pair, x: Array, at: Array) -> Array:
    """[places, C, taps] of an input."""
    if p.node.op != "Conv":
        return x.reshape(-1, x.shape[-1])[at][:, :, None]
    seen = windows(p.node, x, p.product.weights.shape[2:])  # [N, C, OH, OW, kh, kw]
    n, _, high, wide = seen.shape[:4]
    i, y, z = np.unravel_index(at, (n, high, wide))
    return seen[i, :, y, z].reshape(len(at), x.shape[1], -1)


def _inside(p: Pair, x: Array, at: Array) -> Array:
    """What of `_windows` is no padding."""
    return _windows(p, np.ones_like(x), at) > 0
