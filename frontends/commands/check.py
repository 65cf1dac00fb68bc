"""check: does the emulator compute what onnxruntime computes, and if not, where does it start.

model ─ import ─► graph ─ passes ─► graph ─ schedule ─► plan ─ generate ─► program
                    │                 │                                       │
                evaluate          evaluate                                   run       each against onnxruntime
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knapper.compiler.ir import DTYPES, OPS, Array, Graph, evaluate
from knapper.isa.errors import KnapperError, raise_all

from ..api import Image
from ..compare import EXACT, as_table, difference, differences, failures
from ..inputs import gather, needed
from ..onnx.rows import OP as CHOOSES
from ..oracle import Oracle
from .build import read_model, refuse_both
from .execute import run
from .options import TARGET, consts, states


def check_model(a: argparse.Namespace) -> None:
    """`knapper check`."""
    from knapper.compiler import driver
    from knapper.isa.machine import Machine

    refuse_both(a)
    machine = Machine.load(a.target or TARGET)
    graph = read_model(a)
    levels: dict[str, Any] = {}
    precision = a.precision or "fp16"
    state = states(a.state)
    image = Image(
        driver.compile_graph(
            graph, machine, a.pipeline, precision, levels.__setitem__, state=state
        )
    )
    arrays = gather(needed(image.program), a.input or ["random:0"])
    feed = {**consts(a.const), **_begun(graph, state, arrays)}
    made = run(image, arrays, a).outputs
    made |= {v: made[v].astype(DTYPES[graph.types()[graph.outputs[v]].dtype]) for v in state.values()}
    expected = Oracle(a.model).run(feed)
    if problems := _compared(made, expected, a):
        fused = [level for level in levels.values() if isinstance(level, Graph)][-1]
        reason = first_divergence(Path(a.model), graph, fused, feed)
        problems[-1] = KnapperError("E706", problems[-1].message, where=a.model, hint=reason)
    raise_all(problems)


def _begun(
    graph: Graph, state: Mapping[str, str], arrays: Mapping[str, Array]
) -> dict[str, Array]:
    """What the model is fed: states as the model stores them, which begin as zeros."""
    types = {past: graph.inputs[past] for past in state}
    begun = {v: np.zeros(t.shape, DTYPES[t.dtype]) for v, t in types.items()}
    return begun | {v: a.astype(begun[v].dtype) if v in begun else a for v, a in arrays.items()}


def _compared(
    ours: Mapping[str, Array], theirs: Mapping[str, Array], a: argparse.Namespace
) -> list[KnapperError]:
    """Print how far outputs are apart; what is too far, or not of one shape: the data may decide how many rows there are."""
    try:
        found = differences(ours, theirs)
    except KnapperError as e:
        return [e]
    print(json.dumps([asdict(d) for d in found], indent=1) if a.json else as_table(found))
    return list(failures(found, a.tolerance, a.precision == "fp32", a.model))


def first_divergence(model: Path, graph: Graph, fused: Graph, feed: Mapping[str, Array]) -> str:
    """In words: which node of the import, or which side of the passes, starts to differ."""
    inputs = {name: feed[name] for name in graph.inputs}
    for d in node_by_node(model, graph, feed):
        if d.max_rel > EXACT:
            return (
                f"the first node that differs as imported is {d.loc} ({d.op}), by {d.max_rel:.3g}"
            )
    ours, imported = evaluate(fused, inputs), evaluate(graph, inputs)
    if [a.shape for a in ours.values()] != [imported[v].shape for v in ours]:
        return "the import agrees with onnxruntime; the passes change how many boxes are chosen, as --precision may"
    worst = max(d.max_rel for d in differences(ours, imported))
    if worst > EXACT:
        return f"the import agrees with onnxruntime; the passes change outputs by {worst:.3g}, as --precision may"
    return "the graph agrees with onnxruntime before and after the passes; code generation or the emulator differs"


@dataclass(frozen=True)
class NodeDifference:
    """One imported node against onnxruntime."""

    loc: str
    op: str
    max_rel: float


def node_by_node(model: Path, graph: Graph, feed: Mapping[str, Array]) -> Iterator[NodeDifference]:
    """Each node's results against onnxruntime's, every node computed from onnxruntime's operands.

    Where the data decides how many rows there are, onnxruntime has fewer than the graph: those are compared, and operands have ours behind.
    """
    theirs = _intermediates(model, graph, feed)
    env: dict[str, Any] = {"": None, **graph.constants, **feed, **theirs}
    for n in graph.nodes:
        result = OPS[n.op].facets["reference"](*(env[v] for v in n.inputs), **n.attrs)
        results = result if isinstance(result, tuple) else (result,)
        chosen = theirs.get(n.outputs[0]) if n.op == CHOOSES else None
        if chosen is not None and len(chosen) != results[1]:
            yield NodeDifference(n.loc, n.op, math.inf)
        for name, y in zip(n.outputs, map(np.asarray, results), strict=False):
            if name in theirs and (filled := _filled(theirs[name], y)) is not None:
                yield NodeDifference(n.loc, n.op, difference(name, y, filled).max_rel)
                y = filled
            env[name] = y


def _filled(theirs: Array, ours: Array) -> Array | None:
    """Theirs, with our rows behind those that it has; None if the two are not of one kind."""
    if theirs.dtype != ours.dtype or theirs.ndim != ours.ndim:
        return None
    if theirs.shape == ours.shape:
        return theirs
    alike = theirs.shape[1:] == ours.shape[1:] and len(theirs) < len(ours)
    return np.concatenate([theirs, ours[len(theirs) :]]) if alike else None


def _intermediates(model: Path, graph: Graph, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Every value that the model and the graph both name, as onnxruntime computes it."""
    import onnx

    from ..pytorch import proto as opened

    proto = opened(model)
    made = {v for n in graph.nodes for v in n.outputs}
    declared = {o.name for o in proto.graph.output}
    for n in proto.graph.node:
        for name in n.output:
            if name in made and name not in declared:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return Oracle(proto.SerializeToString()).run(feed)
