"""The generator of kind "update": a scatter into memory that it owns, which writes what is new and nothing else.

    out of place    copy x to y ─ find the places ─ write the updates to y       y is as large as x
    in place                      find the places ─ write the updates to x       x and y are one place in memory

The kernels are those that "simd" makes of the same node, without the one that copies. Which nodes may be updated in place is no
matter of cost: the pass `state` marks them, since it knows that nobody needs the old content any more, and the plan gives operand
and result one buffer (`groups.homes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from knapper.isa.errors import CompileError
from knapper.isa.machine import Machine

from ..ir import Array
from .generator import Emitted, Group, Lowered, Options, lanes_refuse, register
from .simd.generator import SIMD

UPDATE = "update"
OPS = frozenset({"ScatterElements", "ScatterND"})
"""Ops whose result is their first operand, but for what they write."""


@dataclass(frozen=True)
class Update:
    """The generator."""

    kind: str = UPDATE

    def serves(self, group: Group, machine: Machine) -> str | None:
        if why := lanes_refuse(machine):
            return why
        if [n.op for n in group.nodes if n.op in OPS] != [n.op for n in group.nodes]:
            return f"only {' and '.join(sorted(OPS))} write a part of what they return"
        if len(group.nodes) != 1 or group.nodes[0].place != self.kind:
            return (
                "it is not known that the old content is needed no more; the pass state finds out"
            )
        return None

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        """One."""
        yield {}

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        """Cycles to launch it, and to move the updates and where they go."""
        touched = 2 * sum(group.inputs[v].bytes for v in group.nodes[0].inputs[1:])
        return machine.launch_cycles + touched * machine.clock_hz / machine.dram_bytes_per_second

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None:
        SIMD.prefetch(groups, machine)

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        """The kernels of "simd" without the copy; CompileError E440 if the old content takes part in another way."""
        made = SIMD.lower(group, {}, machine)
        (node,) = group.nodes
        old, new = node.inputs[0], node.outputs[0]
        kept = tuple(e for e in made.launches if not _copies(e, old, new))
        if len(kept) + 1 != len(made.launches) or any(old in e.uses for e in kept):
            problem = f"the kernels of {node.op} do not begin with a copy that could be left out"
            raise CompileError("E440", problem, where=f"launch {group.name}")
        return Lowered(kept, made.constants, made.scratch)

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        return SIMD.evaluate(group, options, env)


def _copies(e: Emitted, old: str, new: str) -> bool:
    return e.uses == {old: "r", new: "w"}


register(Update())
