"""From plan and kernels to the Program: equal kernels and constants are merged, data gets addresses, names become numbers.

BASE ─ constants, in order of first use ─┬─ the plan's buffers ─ scratch, in holes of the moment or on top ─┐
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from knapper.isa.errors import CompileError, raise_all
from knapper.isa.program import ALIGN, BASE, Kernel, Launch, Object, Offload, Operand, Port, Program

from .codegen.generator import Emitted, Lowered
from .ir import Array
from .lower import Job, names
from .memory import Buffer, aligned, peak, place
from .plan import Plan
from .plan_text import step_line
from .structure import content_hash

Made = Sequence[tuple[Job, Lowered]]


@dataclass
class Names:
    """Names given out, each once."""

    given: set[str] = field(default_factory=set)
    last: dict[str, int] = field(default_factory=dict)
    """The number that a name got behind it most recently."""

    def take(self, name: str) -> str:
        """The name, with a number if others have it.

        >>> names = Names()
        >>> [names.take(n) for n in ("w", "w_2", "w", "w")]
        ['w', 'w_2', 'w_3', 'w_4']
        """
        free = name
        while free in self.given:
            self.last[name] = self.last.get(name, 1) + 1
            free = f"{name}_{self.last[name]}"
        self.given.add(free)
        return free


@dataclass
class Rodata:
    """Constants laid out one after the other, each content once."""

    objects: list[Object] = field(default_factory=list)
    chunks: list[Array] = field(default_factory=list)
    at: dict[str, int] = field(default_factory=dict)
    """Content hash → address."""
    end: int = BASE
    names: Names = field(default_factory=Names)

    def add(self, name: str, a: Array) -> int:
        """The address of an array's bytes; they are appended if no equal ones are there."""
        key = content_hash(a)
        if key not in self.at:
            self.at[key] = self.end
            self.objects.append(Object(self.names.take(name), self.end, a.nbytes))
            self.chunks.append(a)
            self.end += max(aligned(a.nbytes), ALIGN)
        return self.at[key]

    def data(self) -> memoryview:
        """The section, padded to whole alignment units."""
        room = np.zeros(self.end - BASE, np.uint8)
        for o, a in zip(self.objects, self.chunks, strict=True):
            start = o.address - BASE
            room[start : start + a.nbytes] = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
        return room.data.toreadonly()


@dataclass
class Kernels:
    """Kernels by name, each content once."""

    by_name: dict[str, Kernel] = field(default_factory=dict)
    name_of: dict[Kernel, str] = field(default_factory=dict)
    names: Names = field(default_factory=Names)

    def add(self, kernel: Kernel) -> str:
        """The name under which a kernel goes: its own, or with a number if another kernel has it."""
        key = replace(kernel, name="")
        if key not in self.name_of:
            name = self.names.take(kernel.name)
            self.by_name[name] = replace(kernel, name=name)
            self.name_of[key] = name
        return self.name_of[key]


@dataclass(frozen=True)
class Place:
    """Where a name of a launch is, and under which name people know it."""

    value: str
    address: int
    bytes: int


def assemble(plan: Plan, made: Made, meta: Mapping[str, str]) -> Program:
    """The program; CompileError E414 if a generator names what the plan does not know, or counts wrongly."""
    rodata = Rodata()
    constants = [_constants(plan, job, lowered, rodata) for job, lowered in made]
    ports = _constant_outputs(plan, rodata)
    arena = rodata.end
    scratch = _scratch(plan, made)
    kernels, launches = Kernels(), list[Launch]()
    problems = [p for job, lowered in made for p in _problems(job, lowered)]
    raise_all(problems)
    for i, (job, lowered) in enumerate(made):
        places = (
            _places(plan, job, arena) | constants[i] | _scratch_places(job, lowered, scratch, arena)
        )
        made_of = zip(
            lowered.launches, _macs(job, lowered), _hosts(plan, job, lowered), strict=True
        )
        launches += (
            _launch(plan, job, e, macs, host, places, kernels) for e, macs, host in made_of
        )
    return Program(
        target=plan.machine.to_dict(),
        kernels=kernels.by_name,
        launches=tuple(launches),
        inputs=tuple(_port(plan, name, name, arena, ports) for name in plan.graph.inputs),
        outputs=tuple(_port(plan, name, v, arena, ports) for name, v in plan.graph.outputs.items()),
        rodata=rodata.data(),
        objects=tuple(rodata.objects),
        arena_bytes=peak([*plan.buffers.values(), *scratch.values()]),
        meta=dict(meta),
        state=tuple(plan.graph.state.items()),
    )


def _launch(
    plan: Plan,
    job: Job,
    e: Emitted,
    macs: int,
    host: Offload | None,
    places: Mapping[str, Place],
    kernels: Kernels,
) -> Launch:
    touched = [(places[name], use) for name, use in e.uses.items()]
    return Launch(
        kernel=kernels.add(e.kernel),
        grid=e.grid,
        params=tuple(places[p].address if isinstance(p, str) else p for p in e.params),
        nodes=names(job, e.nodes),
        operands=tuple(Operand(p.value, p.address, p.bytes, use) for p, use in touched),
        macs=macs,
        note=step_line(plan, job.step),
        host=host,
    )


def _macs(job: Job, lowered: Lowered) -> list[int]:
    """Useful multiply-accumulates a launch: as the generator splits them, or all in the first one."""
    split = [e.macs for e in lowered.launches]
    return split if any(split) or not split else [job.step.macs, *split[1:]]


def _hosts(plan: Plan, job: Job, lowered: Lowered) -> list[Offload | None]:
    """If the host computes the step: what crosses before its first launch, and after its last one."""
    count = len(lowered.launches)
    if (whole := plan.crossings.get(job.step.name)) is None:
        return [None] * count
    return [
        Offload(whole.sent * (i == 0), whole.received * (i == count - 1), whole.asked and i == 0)
        for i in range(count)
    ]


def _problems(job: Job, lowered: Lowered) -> Iterator[CompileError]:
    where = f"launch {job.step.name} ({job.step.kind})"
    values = job.group.inputs.keys() | job.group.outputs.keys()
    for e in lowered.launches:
        named = {p for p in e.params if isinstance(p, str)} | e.uses.keys()
        for name in sorted(named - values - lowered.constants.keys() - lowered.scratch.keys()):
            yield CompileError(
                "E414",
                f"kernel {e.kernel.name} takes the address of {name!r}, which is nothing in its group",
                where=where,
            )
        for name in sorted(named - e.uses.keys()):
            yield CompileError(
                "E414",
                f"kernel {e.kernel.name} takes {name!r} without saying how it uses it",
                where=where,
            )
    if (total := sum(e.macs for e in lowered.launches)) not in (0, job.step.macs):
        yield CompileError(
            "E414",
            f"its kernels count {total:,} multiply-accumulates, the graph {job.step.macs:,}",
            where=where,
        )


# --- data ---------------------------------------------------------------------------------------------------------------


def _constants(plan: Plan, job: Job, lowered: Lowered, rodata: Rodata) -> dict[str, Place]:
    """Places of the constants that the step's kernels name, the packed ones first."""
    found: dict[str, Place] = {}
    for name in dict.fromkeys(n for e in lowered.launches for n in e.uses):
        value = job.canonical.values.get(name, "")
        if name in lowered.constants:
            found[name] = _put(rodata, f"{job.step.name}.{name}", lowered.constants[name])
        elif value in plan.known:
            found[name] = _put(rodata, value, plan.known[value])
    return found


def _put(rodata: Rodata, name: str, a: Array) -> Place:
    return Place(name, rodata.add(name, a), a.nbytes)


def _constant_outputs(plan: Plan, rodata: Rodata) -> dict[str, int]:
    """Addresses of the network's outputs that are constants."""
    return {v: rodata.add(v, plan.known[v]) for v in plan.graph.outputs.values() if v in plan.known}


def _places(plan: Plan, job: Job, arena: int) -> dict[str, Place]:
    """Places of the group's values that lie in the arena, by canonical name."""
    types = job.step.group.inputs | job.step.group.outputs
    found: dict[str, Place] = {}
    for name, value in job.canonical.values.items():
        if value in types and (b := plan.buffer(value)) is not None:
            found[name] = Place(value, arena + b.offset, types[value].bytes)
    return found


def _scratch(plan: Plan, made: Made) -> dict[str, Buffer]:
    """Scratch buffers, each needed during one step only, placed around the plan's buffers."""
    wanted = [
        Buffer(f"{job.step.name}.{name}", size, i, i)
        for i, (job, lowered) in enumerate(made)
        for name, size in lowered.scratch.items()
    ]
    return {b.name: b for b in place(wanted, list(plan.buffers.values()))}


def _scratch_places(
    job: Job, lowered: Lowered, scratch: Mapping[str, Buffer], arena: int
) -> dict[str, Place]:
    found = {name: scratch[f"{job.step.name}.{name}"] for name in lowered.scratch}
    return {name: Place(b.name, arena + b.offset, b.bytes) for name, b in found.items()}


def _port(plan: Plan, name: str, value: str, arena: int, constants: Mapping[str, int]) -> Port:
    """An input or output. One that is a view, or another port's value, shares its root's address."""
    t = plan.graph.types()[value]
    b = plan.buffer(value)
    address = constants[value] if value in constants else arena + b.offset if b else BASE
    return Port(name, t.dtype, t.shape, address)
