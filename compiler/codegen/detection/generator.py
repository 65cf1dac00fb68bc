"""The generator of kind "detection": RoiAlign and NonMaxSuppression, with the Casts around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from knapper.isa.machine import Machine

from ...ir import Array, evaluate
from ..generator import Group, Lowered, Options, lanes_refuse, register
from . import roi_align, suppress
from .operands import FAR, core_of


@dataclass(frozen=True)
class Detection:
    """The generator."""

    kind: str = "detection"

    def serves(self, group: Group, machine: Machine) -> str | None:
        node = core_of(group)
        if isinstance(node, str):
            return node
        if why := lanes_refuse(machine):
            return why
        if far := [v for v, t in (group.inputs | group.outputs).items() if t.bytes >= FAR]:
            return f"{far[0]} is larger than 2 GiB"
        return suppress.refusal(group, machine) if node.op == "NonMaxSuppression" else None

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        yield {}

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        """Cycles by issue slots alone: the launches are small, and what they read was just written."""
        if _suppresses(group):
            return suppress.cost(group, machine)
        return roi_align.cost(group, machine)

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None:
        """Nothing is slow enough to start early."""

    def pack(self, group: Group, options: Options, machine: Machine) -> dict[str, Array]:
        """Constants are read as they are."""
        return {}

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        """One launch for RoiAlign, up to four for NonMaxSuppression."""
        if _suppresses(group):
            return suppress.lower(group, machine)
        results = any(t.count for t in group.outputs.values())
        return Lowered((roi_align.emit(group, machine),) if results else ())

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        inputs = {v: np.asarray(env[v]) for v in group.inputs if v not in group.constants}
        return evaluate(group.graph(), inputs)


def _suppresses(group: Group) -> bool:
    node = core_of(group)
    return not isinstance(node, str) and node.op == "NonMaxSuppression"


DETECTION = register(Detection())
