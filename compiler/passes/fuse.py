"""Fusion: every node gets the name of the launch that computes it. No node comes or goes.

`compiler/launches.py` says which nodes go together; this pass writes it down in `Node.group` and
puts the nodes in the order of the launches. Views stay in no group: they cost nothing. The meaning
is the same by construction, since `evaluate` does not look at groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..ir import Graph, Node
from ..launches import launches
from .base import Pass


@dataclass(frozen=True)
class Fuse(Pass):
    """Name the launch of every node."""

    name = "fuse"

    def run(self, g: Graph) -> Graph:
        """Group, then order."""
        named = [replace(n, group="") for n in g.nodes]
        order: list[int] = []
        for i, found in enumerate(launches(g)):
            for k in found.nodes:
                named[k] = replace(named[k], group=f"{found.root.op.lower()}_{i}")
            order.extend(found.nodes)
        return replace(g, nodes=tuple(_sorted(named, order, g)))


def _sorted(nodes: list[Node], order: list[int], g: Graph) -> Iterator[Node]:
    """The nodes in the order of their launches, each view right after what it looks at."""
    views: dict[str, list[Node]] = {}
    for n in nodes:
        if not n.group:
            views.setdefault(n.inputs[0], []).append(n)
    known = [*g.inputs, *g.constants]
    for v in known:
        yield from _seen_through(v, views)
    for i in order:
        yield nodes[i]
        for v in nodes[i].outputs:
            yield from _seen_through(v, views)


def _seen_through(v: str, views: dict[str, list[Node]]) -> Iterator[Node]:
    for n in views.get(v, ()):
        yield n
        yield from _seen_through(n.outputs[0], views)
