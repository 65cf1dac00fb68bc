"""From a fused graph to the groups that become launches, in an order in which they can run.

A node's `group` names its launch. Nodes without one must be views: they move no data, so their result is the same memory
as their operand, its *root*:

The new value of a state is made in the memory of the old one, its *home*, behind all that read the old one (`passes/state.py`).

    conv0 ──► %y [1,64,7,7] ──► Reshape ──► %z [1,3136] ──► matmul0        root of %z is %y, one buffer serves both
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence

from knapper.isa.errors import CompileError, raise_all

from .codegen.generator import Group
from .ir import Array, Graph, Node, Type
from .launches import VIEWS


def is_view(node: Node) -> bool:
    """Whether the node is no launch: ungrouped and without an effect on the bytes."""
    return not node.group and node.op in VIEWS


def roots(graph: Graph) -> dict[str, str]:
    """Value → the value whose memory it is: itself, or for a view its operand's root."""
    root = {v: v for v in graph.types()}
    for n in graph.nodes:
        if is_view(n):
            root[n.outputs[0]] = root[n.inputs[0]]
    return root


def homes(graph: Graph) -> dict[str, str]:
    """Value → the value whose buffer it lies in: its root, or for the new value of a state the old one."""
    root = roots(graph)
    home = {root[graph.outputs[present]]: past for past, present in graph.state.items()}
    return {v: home.get(r, r) for v, r in root.items()}


def known(graph: Graph) -> dict[str, Array]:
    """The constants and the views of constants."""
    values, types = dict(graph.constants), graph.types()
    for n in graph.nodes:
        if is_view(n) and n.inputs[0] in values:
            values[n.outputs[0]] = values[n.inputs[0]].reshape(types[n.outputs[0]].shape)
    return values


def groups(graph: Graph) -> tuple[Group, ...]:
    """The groups in an order in which each finds its inputs written; CompileError E411 if there is none.

    Among those that are ready, the one whose first node comes first in the graph goes first. Groups that make nothing
    that is needed are left out.
    """
    raise_all(_ungrouped(graph))
    members: dict[str, list[Node]] = {}
    for n in graph.nodes:
        if n.group:
            members.setdefault(n.group, []).append(n)
    types, constants, outside = graph.types(), known(graph), _needed_outside(graph)
    found = {
        name: _group(name, nodes, types, constants, outside) for name, nodes in members.items()
    }
    found = {name: g for name, g in found.items() if g.outputs}
    return _ordered(found, roots(graph), overwriting(graph, found))


def overwriting(graph: Graph, found: Mapping[str, Group]) -> dict[str, set[str]]:
    """Name of a group that overwrites a state → those that read its old value, and so come first."""
    root = roots(graph)
    maker = {v: name for name, g in found.items() for v in g.outputs}
    readers: dict[str, set[str]] = {}
    for name, g in found.items():
        for v in g.inputs:
            readers.setdefault(root[v], set()).add(name)
    waits: dict[str, set[str]] = {}
    for past, present in graph.state.items():
        writer = maker.get(root[graph.outputs[present]])
        if writer is not None:
            waits.setdefault(writer, set()).update(readers.get(past, set()) - {writer})
    return waits


def _ungrouped(graph: Graph) -> Iterator[CompileError]:
    for n in graph.nodes:
        if not n.group and not is_view(n):
            where = f"{graph.name}: %{n.outputs[0]}" + (f" (node {n.loc})" if n.loc else "")
            yield CompileError(
                "E411",
                f"{n.op} is in no group and is not a view",
                where=where,
                hint="end the pipeline with the fuse pass",
            )


def _needed_outside(graph: Graph) -> dict[str, set[str]]:
    """Value → who reads it: names of groups, "" for a view or the network's outputs."""
    readers: dict[str, set[str]] = {}
    for n in graph.nodes:
        for v in n.inputs:
            readers.setdefault(v, set()).add(n.group)
    for v in graph.outputs.values():
        readers.setdefault(v, set()).add("")
    return readers


def _group(
    name: str,
    nodes: Sequence[Node],
    types: dict[str, Type],
    constants: dict[str, Array],
    readers: dict[str, set[str]],
) -> Group:
    made = [v for n in nodes for v in n.outputs]
    inputs = {v: types[v] for n in nodes for v in n.inputs if v and v not in made}
    outputs = {v: types[v] for v in made if readers.get(v, set()) - {name}}
    return Group(
        name, tuple(nodes), inputs, outputs, {v: constants[v] for v in inputs if v in constants}
    )


def _ordered(
    found: dict[str, Group], root: dict[str, str], more: Mapping[str, set[str]]
) -> tuple[Group, ...]:
    """Topological order, first come first served among the ready ones; a group waits for `more` than what it reads."""
    rank = {name: i for i, name in enumerate(found)}
    maker = {v: name for name, g in found.items() for v in g.outputs}
    waits = {
        name: {maker[root[v]] for v in g.inputs if root[v] in maker} | more.get(name, set())
        for name, g in found.items()
    }
    followers: dict[str, list[str]] = {}
    for name, before in waits.items():
        for b in before:
            followers.setdefault(b, []).append(name)
    missing = {name: len(before) for name, before in waits.items()}
    ready = [rank[name] for name, n in missing.items() if not n]
    names, order = list(found), list[Group]()
    while ready:
        name = names[heapq.heappop(ready)]
        order.append(found[name])
        for f in followers.get(name, []):
            missing[f] -= 1
            if not missing[f]:
                heapq.heappush(ready, rank[f])
    if stuck := [name for name, n in missing.items() if n]:
        raise CompileError(
            "E411",
            f"groups wait for each other: {', '.join(stuck)}",
            hint="a group must not read, not even through others, what it makes itself",
        )
    return tuple(order)
