"""The import, node by node: each computed from onnxruntime's operands, and compared with onnxruntime's results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from knapper.compiler.ir import Array, Graph, Node, compute

from ..compare import Difference, difference
from ..onnx.rows import OP as CHOOSES
from ..oracle import Oracle
from .finding import Cut, Finding
from .subject import Subject, close

STEPS = ("QuantizeLinear", "DynamicQuantizeLinear")
TIES = 0.99
"""Share of a quantizing node's results that are the same where others round a tie, or divide, in another way: the rest is one step apart."""


@dataclass(frozen=True)
class NodeDifference:
    """One value of an imported node against onnxruntime."""

    node: Node
    value: str
    theirs: Array
    of: Difference
    tie: bool = False
    """Apart by a step of a quantized grid, here and there."""
    rows: bool = True
    """Whether as many rows are chosen, where the data decides how many."""

    @property
    def ok(self) -> bool:
        """Whether the node does what onnxruntime's does."""
        return self.rows and (self.tie or close(self.of, self.theirs))


def node_by_node(
    graph: Graph, feed: Mapping[str, Array], theirs: Mapping[str, Array]
) -> Iterator[NodeDifference]:
    """Each node's results against onnxruntime's, every node computed from onnxruntime's operands.

    Where the data decides how many rows there are, onnxruntime has fewer than the graph: those are compared, and operands have ours behind.
    """
    env: dict[str, Any] = {"": None, **graph.constants, **feed, **theirs}
    for n in graph.nodes:
        results = compute(n, env)
        chosen = theirs.get(n.outputs[0]) if n.op == CHOOSES else None
        rows = chosen is None or len(chosen) == results[1]
        for name, y in zip(n.outputs, map(np.asarray, results), strict=False):
            if name in theirs and (filled := _filled(theirs[name], y)) is not None:
                d = difference(name, y, filled)
                yield NodeDifference(n, name, filled, d, _tie(n, y, filled, d), rows)
                y = filled
            env[name] = y


def at_import(subject: Subject) -> Finding | None:
    """The first node that is not imported as what it is."""
    for d in node_by_node(subject.graph, subject.feed, subject.values):
        if d.ok:
            continue
        n = d.node
        env = {**subject.graph.constants, **subject.feed, **subject.values}
        missing = [v for v in n.inputs if v and v not in env]
        if missing:
            env |= _ours(subject)
        what = str(d.of) if d.rows else "another number of boxes is chosen"
        text = (
            f"the first node that differs as imported is {n.loc or n.outputs[0]} ({n.op}): {what}"
        )
        cut = Cut(subject.graph, env, d.value, expected=d.theirs)
        return Finding("import", text, n.loc, n.op, cut=cut)
    return None


def _ours(subject: Subject) -> dict[str, Any]:
    """What nodes compute that onnxruntime has no name for, each from its operands."""
    env: dict[str, Any] = {"": None, **subject.graph.constants, **subject.feed, **subject.values}
    for n in subject.graph.nodes:
        for name, y in zip(n.outputs, compute(n, env), strict=False):
            env.setdefault(name, y)
    return env


def intermediates(model: str | Path, graph: Graph, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Every value that the model and the graph both name, as onnxruntime computes it."""
    from ..doors import source

    found = source(model)
    if isinstance(found, bytes):
        proto, folder = onnx.ModelProto.FromString(found), ""
    else:  # what lies beside a model stays there
        proto, folder = onnx.load(found, load_external_data=False), str(Path(found).resolve().parent)  # fmt: skip
    made = {v for n in graph.nodes for v in n.outputs}
    declared = {o.name for o in proto.graph.output}
    for n in proto.graph.node:
        for name in n.output:
            if name in made and name not in declared:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return Oracle(proto.SerializeToString(), folder=folder).run(feed)


def _filled(theirs: Array, ours: Array) -> Array | None:
    """Theirs, with our rows behind those that it has; None if the two are not of one kind."""
    if theirs.dtype != ours.dtype or theirs.ndim != ours.ndim:
        return None
    if theirs.shape == ours.shape:
        return theirs
    alike = theirs.shape[1:] == ours.shape[1:] and len(theirs) < len(ours)
    return np.concatenate([theirs, ours[len(theirs) :]]) if alike else None


def _tie(n: Node, ours: Array, theirs: Array, d: Difference) -> bool:
    if n.op not in STEPS or d.numeric or d.equal < TIES:
        return False
    return bool(np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max(initial=0) <= 1)
