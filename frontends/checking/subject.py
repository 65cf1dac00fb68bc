"""What is checked: a network, what goes in, and what should come out; and the way through the compiler's levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from knapper.compiler import driver
from knapper.compiler.ir import DTYPES, OPS, Array, Graph, evaluate
from knapper.compiler.pipeline import Step as Pass
from knapper.compiler.plan import Plan
from knapper.isa.errors import UsageError
from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.isa.rows import trimmed

from ..compare import EXACT, ORACLE, Difference

EXPECTED = "#expected"
"""What the name of an output ends in that says what another one should be: a constant of a graph."""
REFERENCE = "the graph's own reference"
LIMITS = {"float16": 2.0**-7, "bfloat16": 2.0**-4}
"""What max |y-r| / max |r| a few roundings to 16 bits leave; else EXACT."""


@dataclass(frozen=True)
class Subject:
    """A network with inputs, and what should come out of it."""

    name: str
    """Of its file."""
    graph: Graph
    feed: Mapping[str, Array]
    """The graph's inputs."""
    expected: Mapping[str, Array]
    """What should come out, by output."""
    whose: str = ORACLE
    values: Mapping[str, Array] = field(default_factory=dict)
    """What others compute between, by the graph's value names."""

    @staticmethod
    def alone(name: str, graph: Graph, feed: Mapping[str, Array]) -> Subject:
        """A graph that nobody else computes: its outputs `y#expected` say what `y` should be, else its own reference does."""
        known = {n: v for n, v in graph.outputs.items() if n.endswith(EXPECTED)}
        expected = {n.removesuffix(EXPECTED): graph.constants[v] for n, v in known.items()}
        outputs = {n: v for n, v in graph.outputs.items() if n not in known}
        constants = {n: a for n, a in graph.constants.items() if n not in known.values()}
        graph = graph.with_(outputs=outputs, constants=constants)
        values = {outputs[n]: a for n, a in expected.items() if n in outputs}
        inputs = {n: feed[n] for n in graph.inputs}
        if expected:
            return Subject(name, graph, inputs, expected, "what is expected", values)
        try:
            return Subject(name, graph, inputs, evaluate(graph, inputs), REFERENCE)
        except (ArithmeticError, LookupError, ValueError) as e:  # an index that is outside, say
            problem = f"the references of its ops do not take these inputs: {e}"
            raise UsageError("E706", problem, where=name) from None

    @cached_property
    def fused(self) -> bool:
        """Whether it is behind the passes already."""
        return driver.is_fused(self.graph)


@dataclass(frozen=True)
class Way:
    """How a network is compiled."""

    machine: Machine
    pipeline: str | None = None
    precision: str = "fp16"
    state: Mapping[str, str] = field(default_factory=dict)
    """Input → the output that is its next value."""

    def levels(self, graph: Graph) -> Levels:
        """Compile, keeping everything on the way."""
        passes = _Passes()
        found: dict[str, Any] = {}
        options = driver.Options(
            self.pipeline, self.precision, hooks=[passes], machine=self.machine, state=self.state
        )
        if self.pipeline is not None or not driver.is_fused(graph):
            graph = driver.optimize(graph, options)
        program = driver.finish(graph, self.machine, options, found.__setitem__)
        steps, texts = passes.steps[1:], [str(p) for p in driver.passes(options)]
        texts += [s.name for s in steps[len(texts) :]]  # the driver adds one for states
        return Levels(tuple(steps), tuple(texts), graph, found["plan"], program)

    def with_(self, **changes: Any) -> Way:
        """A copy with fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Levels:
    """What a network became on its way."""

    passes: tuple[Pass, ...]
    """Each with the graph before and after."""
    texts: tuple[str, ...]
    """The passes as text."""
    fused: Graph
    plan: Plan
    program: Program

    @property
    def exact(self) -> bool:
        """Whether float32 stays float32."""
        return precise(self.fused)

    @property
    def stored(self) -> Any:
        """The type that float32 is stored in; None if that is its own."""
        name = self.fused.meta.get("precision", "fp32")
        return None if self.exact else DTYPES[name.replace("fp", "f")]


@dataclass
class _Passes:
    """A pipeline's hook that keeps every step."""

    steps: list[Pass] = field(default_factory=list)

    def after(self, step: Pass) -> None:
        self.steps.append(step)

    def failed(self, g: Graph, rest: Any) -> None:
        """The error says it."""


def precise(g: Graph) -> bool:
    """Whether a graph's float32 tensors are stored as they are."""
    return g.meta.get("precision", "fp32") == "fp32"


def close(d: Difference, a: Array) -> bool:
    """Whether a tensor is what one node or one launch may make of its operands: integers the same, floats but for a few roundings."""
    if not d.count:
        return True
    return d.fits(LIMITS.get(a.dtype.name, EXACT), True)


def values(g: Graph, inputs: Mapping[str, Array]) -> dict[str, Any]:
    """Every value of a graph, by the references of its ops."""
    env: dict[str, Any] = {"": None, **g.constants, **held(g, inputs)}
    for n in g.nodes:
        result = OPS[n.op].facets["reference"](*(env[v] for v in n.inputs), **n.attrs)
        results = result if isinstance(result, tuple) else (result,)
        env |= {v: a for v, a in zip(n.outputs, results, strict=False) if v}
    return env


def held(g: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """A graph's inputs in the types that it has them in: 16 bits may be what a state is stored in."""
    return {v: np.asarray(inputs[v], DTYPES[t.dtype]) for v, t in g.inputs.items()}


def outputs(g: Graph, env: Mapping[str, Any]) -> dict[str, Array]:
    """The network's outputs among all values, with the rows that are meant."""
    return trimmed({name: env[v] for name, v in g.outputs.items()})
