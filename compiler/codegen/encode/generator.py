"""The generator of kind "encode": BitmapEncode by itself, from a dense value to one under bitmaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from knapper.isa.machine import Machine

from ...ir import Array
from ...sparsity.bitmap import Layout
from ..generator import Group, Lowered, Options, lanes_refuse, register
from . import kernel

FAR = 1 << 31
"""Bytes that a signed 32-bit offset reaches."""


@dataclass(frozen=True)
class Encode:
    """The generator."""

    kind: str = "encode"

    def serves(self, group: Group, machine: Machine) -> str | None:
        if [n.op for n in group.nodes] != ["BitmapEncode"]:
            return "encodes alone"
        if "sparse" not in machine.extensions:
            return f"{machine.name} has no extension sparse"
        if why := lanes_refuse(machine):
            return why
        (node,) = group.nodes
        if node.outputs[0] in group.outputs:
            return f"%{node.outputs[0]} would be a copy of %{node.inputs[0]}"
        if far := [v for v, t in (group.inputs | group.outputs).items() if t.bytes >= FAR]:
            return f"{far[0]} is larger than 2 GiB"
        return None

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        yield {}

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        """Cycles by issue slots, the unit of bitmaps and memory, whichever is busiest."""
        return kernel.cost(layout_of(group), machine)

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None:
        """Nothing is slow enough to start early."""

    def pack(self, group: Group, options: Options, machine: Machine) -> dict[str, Array]:
        """There are no weights."""
        return {}

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        (node,) = group.nodes
        return Lowered((kernel.emit(node, layout_of(group), machine),))

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        (node,) = group.nodes
        return {v: np.asarray(env[node.inputs[0]]) for v in group.outputs}


def layout_of(group: Group) -> Layout:
    """How the result lies in memory."""
    (node,) = group.nodes
    return Layout(node.types[1].shape, node.attr("pad"))


ENCODE = register(Encode())
