"""The smallest graph that still shows a fault, as `.ir` text that `knapper check` reads back.

    all of it ─ cut to the node that is wrong; else with one more layer of what it reads ─► halve axes ─► random inputs, or the real ones
                     └────── every step is checked: the same level, pass and kind of instruction must be found ──────┘

Weights stay constants, what other nodes computed becomes inputs. Where the op itself is what is wrong, the graph has an output
`y#expected` beside `y`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from knapper.compiler import text
from knapper.compiler.ir import Array, Graph, Node, Type, infer
from knapper.isa.errors import KnapperError
from knapper.isa.program import Port

from .. import files
from ..inputs import randoms
from .finding import Cut, Finding
from .search import Run, check, first_divergence
from .subject import EXPECTED, Subject, Way

LAYERS = 6
"""How far back a reproducer reaches, before it takes all."""
TRIES = 48
"""Graphs that are tried on the way to smaller ones."""


@dataclass(frozen=True)
class Case:
    """A graph and its inputs."""

    graph: Graph
    feed: Mapping[str, Array]

    @property
    def size(self) -> int:
        """Elements of inputs and constants."""
        return sum(t.count for t in self.graph.inputs.values()) + sum(a.size for a in self.graph.constants.values())  # fmt: skip


@dataclass(frozen=True)
class Reproducer:
    """What was written, and what shows the fault with it."""

    path: Path
    beside: tuple[Path, ...]
    """Files that belong to it: large constants, inputs."""
    command: str
    nodes: int


@dataclass
class Shrink:
    """Looks for a smaller case that shows the same."""

    found: Finding
    way: Way
    run: Run
    tries: int = TRIES
    near: bool = False
    """Whether the outputs of the last case that showed it are near enough all the same."""

    def shows(self, case: Case) -> bool:
        """Whether a case shows the fault."""
        if self.tries <= 0:
            return False
        self.tries -= 1
        subject = Subject.alone("reproducer", case.graph, case.feed)
        try:
            verdict = check(subject, self.way, self.run)
            shown = self.found.same(first_divergence(verdict))
        except (KnapperError, ArithmeticError, LookupError, ValueError, TypeError):
            return False  # cut like this, or with these sizes, it is no network
        if shown:
            self.near = not verdict.problems
        return shown

    def smallest(self, cut: Cut) -> Case | None:
        """The smallest case; None if none shows it."""
        case = next((c for c in candidates(cut) if self.shows(c)), None)
        return None if case is None else self.plain(self.halved(case))

    def halved(self, case: Case) -> Case:
        """Sizes halved, alone or with others that are equal, as long as that shows the fault."""
        smaller = True
        while smaller and self.tries > 0:
            smaller = False
            for other in halves(case):
                if self.shows(other):
                    case, smaller = other, True
                    break
        return case

    def plain(self, case: Case) -> Case:
        """With random inputs, if they do; what is expected is known for these only."""
        if any(n.endswith(EXPECTED) for n in case.graph.outputs):
            return case
        self.tries = max(self.tries, 1)
        ports = [Port(n, t.dtype, t.shape, 0) for n, t in case.graph.inputs.items()]
        other = replace(case, feed=randoms(ports, 0))
        return other if ports and self.shows(other) else case


# --- cutting ------------------------------------------------------------------------------------------------------------


def candidates(cut: Cut) -> Iterator[Case]:
    """Graphs around a value that is wrong, from its own node alone to everything before it."""
    if cut.group:
        members = [n for n in cut.graph.nodes if n.group == cut.group]
        for n in members:
            yield from _case(cut, [n], n.outputs[0])
        yield from _case(cut, members, cut.value)
        return
    nodes: list[Node] = []
    for _ in range(LAYERS):
        more = behind(cut.graph, cut.value, nodes)
        if len(more) == len(nodes):
            return
        nodes = more
        yield from _case(cut, nodes, cut.value)
    whole = [n for n in cut.graph.nodes if _reaches(cut.graph, n, cut.value)]
    if len(whole) > len(nodes):
        yield from _case(cut, whole, cut.value)


def behind(g: Graph, value: str, nodes: Sequence[Node]) -> list[Node]:
    """The nodes, and one more layer of what makes what they read; of none: the node that makes the value."""
    makers = g.producers()
    if not nodes:
        return [makers[value]] if value in makers else []
    wanted = {id(makers[v]) for n in nodes for v in n.inputs if v in makers} | {id(n) for n in nodes}  # fmt: skip
    return [n for n in g.nodes if id(n) in wanted]


def _reaches(g: Graph, n: Node, value: str) -> bool:
    """Whether a node comes before the one that makes the value, or is it."""
    order = {v: i for i, x in enumerate(g.nodes) for v in x.outputs}
    return order[n.outputs[0]] <= order.get(value, -1)


def _case(cut: Cut, nodes: Sequence[Node], value: str) -> Iterator[Case]:
    """The nodes as a graph, if its inputs are tensors with values that are known."""
    g, types = cut.graph, cut.graph.types()
    made = {v for n in nodes for v in n.outputs}
    read = list(dict.fromkeys(v for n in nodes for v in n.inputs if v and v not in made))
    constants = {v: g.constants[v] for v in read if v in g.constants}
    inputs = {v: types[v] for v in read if v not in constants}
    env = dict(cut.env)
    if any(v not in env for v in inputs) or any(t.encoding for t in inputs.values()):
        return
    outputs = {value: value}
    if cut.expected is not None and value == cut.value:
        name = f"{value}{EXPECTED}"
        constants[name], outputs[name] = cut.expected, name
    encodings = {v: e for v, e in g.encodings.items() if v in constants}
    meta = {k: v for k, v in g.meta.items() if k == "precision"}
    graph = Graph("reproducer", inputs, outputs, tuple(nodes), constants, meta, encodings)
    yield Case(graph, {v: np.asarray(env[v]) for v in inputs})


# --- halving ------------------------------------------------------------------------------------------------------------


def halves(case: Case) -> Iterator[Case]:
    """The case with a size halved: along one axis of one tensor, or all axes of that size at once."""
    if any(n.endswith(EXPECTED) for n in case.graph.outputs):
        return  # what is expected is known for these sizes only
    shapes = {v: t.shape for v, t in case.graph.inputs.items()} | {v: a.shape for v, a in case.graph.constants.items()}  # fmt: skip
    axes = [(v, i) for v, shape in shapes.items() for i, n in enumerate(shape) if n > 1]
    for size in sorted({shapes[v][i] for v, i in axes}, reverse=True):
        of_size = [(v, i) for v, i in axes if shapes[v][i] == size]
        for chosen in ([of_size] if len(of_size) > 1 else []) + [[a] for a in of_size]:
            if (other := _halved(case, chosen)) is not None:
                yield other


def _halved(case: Case, axes: Sequence[tuple[str, int]]) -> Case | None:
    """The first half along these axes; None if the nodes do not take that."""
    g = case.graph
    tensors: dict[str, Array] = {**g.constants, **case.feed}
    for v, i in axes:
        tensors[v] = np.ascontiguousarray(
            np.take(tensors[v], range(-(-tensors[v].shape[i] // 2)), i)
        )
    constants = {v: tensors[v] for v in g.constants}
    inputs = {v: Type.of(tensors[v]) for v in g.inputs}
    known: dict[str, Type] = {**inputs, **{v: Type.of(a) for v, a in constants.items()}}
    nodes = []
    for n in g.nodes:
        try:
            types = infer(n.op, [known[v] if v else None for v in n.inputs], n.attrs)
        except (KnapperError, ArithmeticError, LookupError, ValueError, TypeError):
            return None
        nodes.append(n.with_(types=types[: len(n.outputs)]))
        known |= zip(n.outputs, types, strict=False)
    graph = g.with_(inputs=inputs, constants=constants, nodes=tuple(nodes), encodings={})
    return Case(graph, {v: tensors[v] for v in g.inputs})


# --- writing ------------------------------------------------------------------------------------------------------------


def write(
    path: Path,
    found: Finding,
    way: Way,
    run: Run,
    options: Sequence[str],
) -> Reproducer | None:
    """Write the smallest case that shows a finding; None if there is none. `options`: what the command has beside the file."""
    cut = found.cut
    if cut is None:
        return None
    shrink = Shrink(found, way if cut.pipeline is None else way.with_(pipeline=cut.pipeline), run)
    case = shrink.smallest(cut)
    if case is None:
        return None
    with files.told(path):
        data = text.save(case.graph, path)
    beside = [data] if data else []
    words = ["knapper", "check", str(path), *options]
    if shrink.way.pipeline is not None:
        words += ["--pipeline", shrink.way.pipeline]
    words += ["--levels"] if shrink.near else []
    if case.feed and not _random(case):
        inputs = Path(f"{path}.npz")
        packed = BytesIO()
        arrays: dict[str, Any] = {n: np.asarray(a) for n, a in case.feed.items()}
        np.savez(packed, **arrays)
        files.write(inputs, packed.getvalue())
        beside.append(inputs)
        words += ["--input", str(inputs)]
    return Reproducer(path, tuple(beside), shlex.join(words), len(case.graph.nodes))


def _random(case: Case) -> bool:
    ports = [Port(n, t.dtype, t.shape, 0) for n, t in case.graph.inputs.items()]
    drawn = randoms(ports, 0)
    return all(np.array_equal(drawn[n], a) for n, a in case.feed.items())
