"""What two groups have in common when they need the same kernels: everything but names and the contents of weights.

A group is lowered in canonical form, in which values are called `i0`, `i1`, … (inputs), `v0`, … (made), and nodes `n0`, … after
their place. Equal groups become equal kernels that way, whatever network they come from, and one cache serves all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .codegen.generator import Group
from .ir import Array, Node


@dataclass(frozen=True)
class Canonical:
    """A group in canonical form, and the way back."""

    group: Group
    values: dict[str, str]
    """Canonical value name → the graph's."""
    nodes: dict[str, str]
    """Canonical node name or value name → the graph's node name."""

    @staticmethod
    def of(group: Group) -> Canonical:
        """Rename a group."""
        inputs = {v: f"i{i}" for i, v in enumerate(group.inputs)}
        made = {v: f"v{i}" for i, v in enumerate(v for n in group.nodes for v in n.outputs)}
        name = {"": "", **inputs, **made}
        nodes = tuple(_renamed(n, f"n{i}", name) for i, n in enumerate(group.nodes))
        label = "_".join(dict.fromkeys(n.op for n in nodes))
        renamed = Group(
            label,
            nodes,
            {name[v]: t for v, t in group.inputs.items()},
            {name[v]: t for v, t in group.outputs.items()},
            {name[v]: a for v, a in group.constants.items()},
        )
        back = {f"n{i}": _label(n) for i, n in enumerate(group.nodes)}
        back |= {name[v]: _label(n) for n in group.nodes for v in n.outputs}
        return Canonical(renamed, {new: old for old, new in name.items() if old}, back)

    @cached_property
    def text(self) -> str:
        """The structure, spelled out: equal if and only if the groups are equal up to names and weights."""
        g = self.group
        lines = [f"{v}: {t}{' constant' * (v in g.constants)}" for v, t in g.inputs.items()]
        lines += [
            f"{n.outputs}: {[*map(str, n.types)]} = {n.op}{n.inputs} {sorted(n.attrs.items())}"
            for n in g.nodes
        ]
        return "\n".join([*lines, f"return {', '.join(g.outputs)}"])

    def content(self) -> str:
        """The structure with a hash of each constant."""
        return "\n".join(
            [self.text, *(f"{v} {content_hash(a)}" for v, a in self.group.constants.items())]
        )


def content_hash(a: Array) -> str:
    """Hex hash of an array's bytes."""
    return hashlib.blake2b(
        np.ascontiguousarray(a).reshape(-1).view(np.uint8).data, digest_size=16
    ).hexdigest()


def _renamed(n: Node, loc: str, name: dict[str, str]) -> Node:
    inputs = tuple(name[v] for v in n.inputs)
    return replace(n, inputs=inputs, outputs=tuple(name[v] for v in n.outputs), loc=loc, group="g")


def _label(n: Node) -> str:
    return n.loc or n.outputs[0]
