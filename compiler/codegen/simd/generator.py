"""The generator of kind "simd": whatever TVM can lower.

Kernels do not depend on the contents of constants, but for single numbers, which are written into the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from knapper.isa.core import SYSTOLIC
from knapper.isa.machine import Machine
from knapper.isa.program import Kernel

from ...ir import OPS, Array, Node, evaluate
from ...launches import MATRIX
from ...structure import Canonical
from ...tvm.schedule import AT_ONCE
from ..generator import (
    MODES,
    Emitted,
    Group,
    Lowered,
    Options,
    lanes_refuse,
    modes_of,
    register,
)
from .reduced import serial
from .translate import Translated, translate

Json = Any

COSTLY = frozenset(
    {"Div", "Erf", "Exp", "Gelu", "LayerNormalization", "Log", "LogSoftmax", "Pow", "Sigmoid"}
    | {"Softmax", "Sqrt", "Swish", "Tanh"}
)
"""Ops that spend time on the special-function unit."""
COPIES = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Identity", "Im2col", "Slice", "SpaceToDepth", "Split"}
    | {"Tile", "Transpose"}
)
"""Ops that need integers, loads and stores only. Their sizes are known, so indices are divided by multiplying, not on the
special-function unit."""
CONVERTED = frozenset({"f16", "bf16", "f32"})
"""Types between which one conversion leads."""
ADDRESSING, ARITHMETIC, FUNCTION = 2, 2, 8
"""Instructions an element: to address it, for a cheap op, for a costly one; measured by tests/bench/bench_simd.py."""


@dataclass(frozen=True)
class Simd:
    """Elementwise, reductions, data movement, gathers, sorting: all that has a `relax` facet."""

    kind: str = "simd"

    def serves(self, group: Group, machine: Machine) -> str | None:
        if why := lanes_refuse(machine):
            return why
        if _is_empty(group):
            return None  # nothing to write, whatever the ops
        if matrix := sorted({n.op for n in group.nodes} & MATRIX):
            return f"{', '.join(matrix)} must add in the order of k, which TVM does not promise"
        missing = sorted({n.op for n in group.nodes if "relax" not in OPS[n.op].facets})
        return f"{', '.join(missing)} cannot be lowered by TVM" if missing else None

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        """Copies can run in systolic mode too, where the arrays have the fp32 lanes: between two products that saves switches."""
        yield {}
        if "systolic" in machine.extensions and _copies(group):
            yield {MODES: (SYSTOLIC, SYSTOLIC)}

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        """Cycles by the busiest of issue slots, special functions, memory, and a thread's own chain of loads and sums.

        It is made of types alone: the plan must not depend on what a cache happens to hold, or ask a worker.
        """
        lanes = 32 * machine.subcores * machine.sms
        results = max(t.count for t in group.outputs.values())
        instructions = ADDRESSING * results + sum(_instructions(n, group) for n in group.nodes)
        special = sum(t.count for n in group.nodes if n.op in COSTLY for t in n.types)
        moved = sum(t.bytes for t in (*group.inputs.values(), *group.outputs.values()))
        busy = max(
            instructions * machine.units["alu"].interval / lanes,
            special * machine.units["sfu"].interval / lanes,
            moved * machine.clock_hz / machine.dram_bytes_per_second,
            *(_chain(n, group, machine) for n in group.nodes),
        )
        return float(machine.launch_cycles + busy)

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None:
        from ...tvm import client

        client.prefetch(g for g in groups if not _is_empty(g))

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        """One launch for each kernel that TVM made of the group; CompileError E440 to E443."""
        from ...tvm import client
        from ...tvm.tir import array_in

        if _is_empty(group):
            return Lowered(())
        canonical = Canonical.of(group)
        made = client.fetch(group)
        entry, leave = modes_of(options)
        kernels = [
            translate(k, f"{canonical.group.name.lower()}{i or ''}", machine)
            for i, k in enumerate(made["kernels"])
        ]
        names = canonical.values | {
            v: f"{group.name}.{v}" for v in (*made["scratch"], *made["constants"])
        }
        nodes = tuple(n.loc or n.outputs[0] for n in group.nodes)
        launches = tuple(
            _launch(t, replace(t.kernel, mode_entry=entry, mode_exit=leave), k, names, nodes)
            for t, k in zip(kernels, made["kernels"], strict=True)
        )
        return Lowered(
            launches,
            {names[v]: array_in(a) for v, a in made["constants"].items()},
            {
                names[v]: n
                for v, n in made["scratch"].items()
                if any(names[v] in e.uses for e in launches)
            },
        )

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        inputs = {v: np.asarray(env[v]) for v in group.inputs if v not in group.constants}
        return evaluate(group.graph(), inputs)


def _is_empty(group: Group) -> bool:
    """Whether there is nothing to write."""
    return not any(t.count for t in group.outputs.values())


def _copies(group: Group) -> bool:
    """Whether a group does nothing that systolic mode forbids."""
    types = group.graph().types()
    return all(
        {types[n.inputs[0]].dtype, n.types[0].dtype} <= CONVERTED if n.op == "Cast" else n.op in COPIES
        for n in group.nodes
    )  # fmt: skip


def _launch(
    t: Translated, kernel: Kernel, made: Json, names: dict[str, str], nodes: tuple[str, ...]
) -> Emitted:
    x, y, z = made["grid"]
    uses = {names[v]: use for v, use in t.uses.items()}
    return Emitted(kernel, (x, y, z), tuple(names[v] for v in t.params), uses, nodes)


def _instructions(n: Node, group: Group) -> float:
    """Roughly what a node costs a thread: its work is over its operands if it reduces, else over its results."""
    types = group.graph().types()
    elements = max([t.count for t in n.types] + [types[v].count for v in n.inputs if v])
    return float(elements * (FUNCTION if n.op in COSTLY else ARITHMETIC))


def _chain(n: Node, group: Group, machine: Machine) -> float:
    """Cycles of the thread that adds up most: loads pass some at a time, sums one after the other."""
    elements = serial(n, group.graph().types())
    rounds = -(-elements // AT_ONCE)
    return rounds * machine.l2_latency + elements * machine.units["fma"].latency


SIMD = register(Simd())
