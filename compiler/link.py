"""What crosses the link to the host: the bytes of each launch that the host computes.

    conv0 ─► %a ─► [host: nms0 ─► %b ─► host: gather0] ─► %c ─► conv1        %a is sent, %c is received, %b stays

A value is sent when a launch of the host reads it and the host does not have it. It has what its launches since the accelerator's last one
read or made. Behind them it receives back what others need: launches that follow, its own later ones included, and the network's results.
Constants are on both sides. The network's inputs and results lie in the accelerator's memory, as on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from knapper.isa.program import Offload

from .codegen.generator import Group
from .ir import Type

HOST = "host"
"""The kind of its launches."""


def crossings(
    steps: Sequence[tuple[str, Group]],
    roots: Mapping[str, str],
    known: Mapping[str, object],
    results: frozenset[str],
) -> dict[str, Offload]:
    """Launch name → what crosses, for the host's; `steps` are kinds and groups, `results` the roots of the network's outputs."""
    last = {roots[v]: i for i, (_, g) in enumerate(steps) for v in g.inputs}
    found: dict[str, Offload] = {}
    for kind, run in groupby(range(len(steps)), key=lambda i: steps[i][0]):
        if kind != HOST:
            continue
        numbers = [i for i in run if any(t.count for t in steps[i][1].outputs.values())]
        there = set[str]()
        for i in numbers:
            group = steps[i][1]
            read = _by_root({v: t for v, t in group.inputs.items() if v not in known}, roots)
            made = _by_root(group.outputs, roots)
            sent = sum(size for v, size in read.items() if v not in there)
            needed = {v for v in made if v in results or last.get(v, -1) > numbers[-1]}
            received = sum(made[v] for v in needed)
            found[group.name] = Offload(sent, received, i == numbers[0])
            there |= {*read, *made}
    return found


def _by_root(types: Mapping[str, Type], roots: Mapping[str, str]) -> dict[str, int]:
    """Bytes of values, each place in memory once."""
    return {roots[v]: t.bytes for v, t in types.items()}
