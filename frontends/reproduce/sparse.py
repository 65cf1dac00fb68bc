"""Products and networks with zeros as workloads: what is pruned when compiling, and what a ReLU leaves when running.

`SparseGemm` is a layer as the dual-side sparse Tensor Core finds it: activations come out of a ReLU whose threshold gives their density, weights are
pruned element by element. `TileGemm` is one as tile-wise pruning leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.compiler.driver import Options, compile_graph, finish, optimize
from knapper.compiler.encoding import Encoding
from knapper.compiler.ir import Graph, Node, Type, infer
from knapper.compiler.pipeline import parse
from knapper.compiler.pipeline import run as run_passes
from knapper.compiler.sparsity import View, masks
from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.runtime.session import Session

from ..inputs import randoms
from .claims import Workload
from .recording import Replay
from .workloads import Network, Tile

SEED = 0
BERT = ((768, 768),) * 4 + ((768, 3072), (3072, 768))
"""[K, N] of a layer's products."""
SPREAD = 0.5
"""Of the logarithm of the scale of rows, and of columns."""
TAIL = 4
"""Degrees of freedom of Student's t, as which weights are drawn: trained ones have heavier tails than a normal distribution."""


@cache
def weights(k: int, n: int) -> NDArray[np.float32]:
    """Random weights of a product, with heavy tails."""
    drawn = np.random.default_rng(SEED).standard_t(TAIL, (k, n))
    return np.asarray(drawn / np.sqrt(k), np.float32)


def product(
    x: Type, w: NDArray[np.float32], threshold: float | None = None, trans_a: bool = False
) -> Graph:
    """x · w in float32, or max(x - threshold, 0) · w."""
    nodes, value, t = list[Node](), "x", x
    constants: dict[str, NDArray[Any]] = {"w": w}

    def add(op: str, *operands: str, **attrs: Any) -> None:
        nonlocal value, t
        kinds: list[Type | None] = [t, *(Type.of(constants[v]) for v in operands)]
        name = f"v{len(nodes)}"
        (t,) = infer(op, kinds, attrs)
        nodes.append(Node(op, (value, *operands), (name,), (t,), attrs, loc=op.lower()))
        value = name

    if threshold is not None:
        constants["threshold"] = np.full((1,), threshold, np.float32)
        add("Sub", "threshold")
        add("Relu")
    add("MatMul", "w", **({"trans_a": True} if trans_a else {}))
    return Graph("product", {"x": x}, {"y": value}, tuple(nodes), constants).verify()


@dataclass(frozen=True)
class SparseGemm:
    """[m, k] · [k, n] in fp16, of whose values so many are not zero: `a` of the activations, `b` of the weights."""

    m: int
    n: int
    k: int
    a: float
    b: float

    def program(self, machine: Machine) -> Program:
        threshold = NormalDist().inv_cdf(1 - self.a) if self.a < 1 else None
        graph = product(Type("f32", (self.m, self.k)), weights(self.k, self.n), threshold)
        prune = f"prune{{pattern=ew,sparsity={1 - self.b:.6f}}}," if self.b < 1 else ""
        encode = (
            f",bitmap{{density={self.a:.6f},force=true}}" if "sparse" in machine.extensions else ""
        )
        return compile_graph(graph, machine, f"{prune}fp16{encode}")


@dataclass(frozen=True)
class TileGemm:
    """[m, k] · [k, n] in fp16, its weights pruned by a pattern; `transposed`: A lies as [k, m], as tile-wise kernels like it."""

    m: int
    n: int
    k: int
    sparsity: float
    pattern: str = "tw"
    granularity: int = 128
    transposed: bool = False
    options: Tile = ()

    def program(self, machine: Machine) -> Program:
        shape = (self.k, self.m) if self.transposed else (self.m, self.k)
        graph = product(Type("f32", shape), weights(self.k, self.n), trans_a=self.transposed)
        how = f"pattern={self.pattern},sparsity={self.sparsity:.6f},granularity={self.granularity}"
        forced = {"*matmul*": dict(self.options)} if self.options else {}
        prune = f"prune{{{how}}}," if self.pattern else ""
        options = Options(f"{prune}fp16", forced=forced, machine=machine)
        made = optimize(graph, options)
        if (
            self.pattern == "tw" and not made.encodings
        ):  # so few zeros are not worth a name otherwise
            tiles = Encoding("tw", {"tile": self.granularity})
            made = made.with_(
                encodings={v: tiles for v, w in made.constants.items() if w.ndim == 2}
            )
        return finish(made, machine, options)


@dataclass(frozen=True)
class PrunedNetwork:
    """One of our networks with weights pruned by a pattern, in fp16; kernels are as the planner chooses."""

    network: Network
    sparsity: float
    pattern: str = "ew"
    granularity: int = 64

    def program(self, machine: Machine) -> Program:
        return compile_graph(_pruned(self), machine, "fp16")


@lru_cache(1)
def _pruned(one: PrunedNetwork) -> Graph:
    """The network after pruning, which is the same for all machines and takes longer than all that follows."""
    how = f"pattern={one.pattern},sparsity={one.sparsity},granularity={one.granularity}"
    graph = one.network.graph()
    return run_passes(graph, parse(f"prune{{{how}}}")) if one.sparsity else graph


def equal(one: Workload, other: Workload, target: str) -> float:
    """The share of results that have the same bits, of two workloads that make one tensor of the same inputs."""
    machine = Machine.load(target)
    mine, theirs = (_result(w.program(machine)) for w in (one, other))
    return float(np.mean(mine == theirs))


def _result(program: Program) -> NDArray[np.uint8]:
    """The bytes of what a program makes of seeded inputs."""
    session = Session(program)
    try:
        outputs = session.run(randoms(program.inputs, SEED)).outputs
    finally:
        session.close()
    (y,) = outputs.values()
    return np.frombuffer(y.tobytes(), np.uint8)


@cache
def kept(pattern: str, sparsity: float, seed: int, mode: str = "exact") -> tuple[float, float]:
    """What a pattern keeps of the weights of a layer of BERT, random ones with heavy tails: share of the elements, share of the sum of squares."""
    rng = np.random.default_rng(seed)
    drawn = {
        str(i): rng.standard_t(TAIL, shape) * np.exp(rng.normal(0, SPREAD, (shape[0], 1))) * np.exp(rng.normal(0, SPREAD, shape[1]))
        for i, shape in enumerate(BERT)
    }  # fmt: skip
    views = dict.fromkeys(drawn, View((0, 1)))
    found = masks(drawn, pattern=pattern, sparsity=sparsity, mode=mode, views=views)
    sizes = [(m.sum(), m.size) for m in found.values()]
    squares = [(np.square(drawn[n][m]).sum(), np.square(drawn[n]).sum()) for n, m in found.items()]
    (elements, energy) = (sum(a for a, _ in x) / sum(b for _, b in x) for x in (sizes, squares))
    return float(elements), float(energy)


def products(run: Replay) -> int:
    """Cycles of the launches that multiply."""
    return sum(
        m.timing.cycles
        for s, m in zip(run.stats.launches, run.launches, strict=True)
        if s.launch.macs
    )
