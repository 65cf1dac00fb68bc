"""Outputs that have as many rows as NonMaxSuppression chooses boxes: which ones they are, and what says how many.

Inside a Graph every size is fixed: NonMaxSuppression gives all rows that there can be, and their number as a second result.
Whether an output has one row for each of them is seen by importing the model again with another limit: it does if its first
size follows. No rules about operators are needed, and what a Reshape or a Gather in between does to the rows is seen too.

Such an output `y` gets a companion, an output `y#rows`; a run gives `y` without the rows that are not meant (`isa.rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from knapper.compiler.ir import Graph, Node
from knapper.isa.errors import KnapperError
from knapper.isa.rows import ROWS

OP = "NonMaxSuppression"
Import = Callable[[Mapping[str, int]], Graph]
"""Imports the model with other limits: node name → boxes that a list keeps at most."""


def with_rows(g: Graph, again: Import) -> Graph:
    """The graph with a companion for every output whose number of rows the data decides."""
    outputs = dict(g.outputs)
    for n in g.nodes:
        if n.op == OP:
            outputs |= {f"{name}{ROWS}": n.outputs[1] for name in _followers(g, n, again)}
    return g if outputs == dict(g.outputs) else g.with_(outputs=outputs)


def _followers(g: Graph, n: Node, again: Import) -> Iterator[str]:
    """Names of the outputs whose first size is this node's number of rows."""
    try:
        other = again({n.loc: _another_limit(g, n)})
    except KnapperError:
        return  # a shape inside is fixed to the limit: then all rows are meant
    rows, changed = (_rows(x, n.loc) for x in (g, other))
    now, then = g.types(), other.types()
    for name, v in g.outputs.items():
        was, becomes = now[v].shape, then[other.outputs[name]].shape
        if was[:1] == (rows,) and becomes[:1] == (changed,) and was[1:] == becomes[1:]:
            yield name


def _another_limit(g: Graph, n: Node) -> int:
    """One box less; one more where nothing would be left."""
    boxes: int = g.types()[n.inputs[1]].shape[2]
    limit: Any = n.attr("max_output_boxes_per_class")
    kept = min(int(limit), boxes)
    return kept - 1 if kept > 1 or boxes == 1 else 2


def _rows(g: Graph, loc: str) -> int:
    return next((n.types[0].shape[0] for n in g.nodes if n.loc == loc and n.op == OP), 0)
