"""Level 2, the Plan: what runs, in which order, how it is tiled, and where every value lies.

    Graph ─ groups ─► schedule (kind and options of each launch) ─ liveness, placement ─► Plan ─ assemble ─► Program

A plan is the graph, one `Step` a launch and one `Buffer` a value in memory; everything else that it shows (number formats,
epilogue, predicted cycles, lifetimes) is derived. Text is in `plan_text.py`; `evaluate` runs the steps one by one in numpy over
real bytes, each tile by tile as its generator does, so that a mistake in the memory plan is a wrong result here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from knapper.isa.errors import CompileError, IRError, KnapperError, raise_all
from knapper.isa.machine import Machine
from knapper.isa.program import ALIGN, Offload
from knapper.isa.rows import trimmed
from knapper.isa.verify import MODES

from .codegen.generator import GENERATORS, Generator, Group, Options, modes_of
from .codegen.generator import MODES as OPTION
from .codegen.update import UPDATE
from .groups import groups, homes, known, overwriting, roots
from .ir import DTYPES, Array, Graph, Type
from .link import crossings
from .memory import Buffer, collisions, lower_bound, peak, place
from .text import show_attrs
from .work import group_macs

POISON = 0xFF
"""What an arena byte holds before anything is written: NaN in every float format."""
SHOWN = 3
"""Ways to launch that an error shows."""


@dataclass(frozen=True)
class Step:
    """One launch: a group, the kind of generator that serves it, and the options it was given."""

    group: Group
    kind: str
    options: Options

    @property
    def name(self) -> str:
        return self.group.name

    @property
    def modes(self) -> tuple[str, str]:
        """The SM's modes when the launch starts and when it ends."""
        return modes_of(self.options)

    @property
    def generator(self) -> Generator:
        return GENERATORS[self.kind]

    @property
    def macs(self) -> int:
        """Useful multiply-accumulates of its convolutions and matrix products."""
        return group_macs(self.group)

    @property
    def formats(self) -> str:
        """Number formats in and out: `f16 f16 f32 -> f16`."""
        return " -> ".join(
            " ".join(t.dtype for t in side.values())
            for side in (self.group.inputs, self.group.outputs)
        )


@dataclass(frozen=True)
class Plan:
    """A scheduled network. `buffers` are keyed by home: a root value, the old one of a state; constants are not in them."""

    graph: Graph
    machine: Machine
    steps: tuple[Step, ...]
    buffers: Mapping[str, Buffer]

    @staticmethod
    def build(graph: Graph, machine: Machine, steps: Iterable[Step]) -> Plan:
        """Place the values that the steps read and write."""
        steps = tuple(steps)
        wanted = lifetimes(graph, [s.group for s in steps])
        return Plan(graph, machine, steps, {b.name: b for b in place(wanted)})

    @property
    def arena_bytes(self) -> int:
        return peak(self.buffers.values())

    @property
    def bound(self) -> int:
        """Bytes of arena that no placement can undercut."""
        return lower_bound(list(self.buffers.values()))

    @cached_property
    def roots(self) -> dict[str, str]:
        """Value → the value whose content it has."""
        return roots(self.graph)

    @cached_property
    def homes(self) -> dict[str, str]:
        """Value → the value whose memory it lies in."""
        return homes(self.graph)

    @cached_property
    def known(self) -> dict[str, Array]:
        """Constants, and views of constants."""
        return known(self.graph)

    @cached_property
    def crossings(self) -> dict[str, Offload]:
        """What crosses the link to the host, by launch that the host computes."""
        results = frozenset(self.roots[v] for v in self.graph.outputs.values())
        return crossings([(s.kind, s.group) for s in self.steps], self.roots, self.known, results)

    def buffer(self, value: str) -> Buffer | None:
        """Where a value lies in the arena; None for constants."""
        return self.buffers.get(self.homes[value])

    def cycles(self, step: Step) -> float:
        """Predicted cycles of a launch."""
        return step.generator.cost(step.group, step.options, self.machine)

    def verify(self, places: Mapping[str, str] | None = None) -> Plan:
        """Check order, memory and options against the graph and the machine; raises every problem at once.

        `places` says where a launch or buffer stands in a text: `{"launch conv0": "net.plan:12:1"}`.
        """
        raise_all(_at(p, places or {}) for p in self._problems())
        return self

    def _problems(self) -> Iterator[KnapperError]:
        yield from self._launch_problems()
        yield from self._mode_problems()
        yield from self._order_problems()
        yield from self._memory_problems()

    def _launch_problems(self) -> Iterator[KnapperError]:
        wanted = {g.name: g for g in groups(self.graph)}
        given = [s.name for s in self.steps]
        for name in sorted(wanted.keys() - set(given)):
            yield IRError("E111", f"no launch computes group {name}", where=self.graph.name)
        for name in sorted({n for n in given if given.count(n) > 1 or n not in wanted}):
            problem = "is launched twice" if name in wanted else "is not in the graph"
            yield IRError("E111", f"group {name} {problem}", where=self.graph.name)
        for s in self.steps:
            if (wrong := illegal(s, self.machine)) is not None:
                yield wrong

    def _mode_problems(self) -> Iterator[KnapperError]:
        mode = MODES[0]
        for s in self.steps:
            where = f"launch {s.name}"
            if unknown := {*s.modes} - {*MODES}:
                known = ", ".join(MODES)
                yield CompileError(
                    "E412", f"no mode {min(unknown)!r}; there are {known}", where=where
                )
            elif s.modes[0] != mode:
                yield CompileError("E412", f"starts in {s.modes[0]}, but finds {mode}", where=where)
            mode = s.modes[1]

    def _order_problems(self) -> Iterator[KnapperError]:
        written = {*self.graph.inputs, *self.known}
        for s in self.steps:
            for v in s.group.inputs:
                if self.roots[v] not in written:
                    yield IRError(
                        "E111", f"reads %{v} before any launch writes it", where=f"launch {s.name}"
                    )
            written |= s.group.outputs.keys()
        for name, v in self.graph.outputs.items():
            if self.roots[v] not in written:
                yield IRError(
                    "E111", f"no launch writes output {name!r} (%{v})", where=self.graph.name
                )
        yield from self._state_problems()

    def _state_problems(self) -> Iterator[KnapperError]:
        """Old values of states that are read once the new ones are there, or while another kernel than an update writes them."""
        given = {s.name: s.group for s in self.steps}
        place = {name: i for i, name in enumerate(given)}
        kinds = {s.name: s.kind for s in self.steps}
        pass_ = "the pass state, behind fuse, sees to it"
        for writer, before in overwriting(self.graph, given).items():
            for reader in sorted(before):
                if place[reader] > place[writer]:
                    why = f"reads a state's old value, which {writer} has overwritten"
                    yield IRError("E111", why, where=f"launch {reader}", hint=pass_)
        for past, present in self.graph.state.items():
            made = self.roots[self.graph.outputs[present]]
            for name, v in self.graph.outputs.items():
                if self.roots[v] == past != made:
                    why = f"is the state's old value %{past}, which is overwritten"
                    yield IRError("E111", why, where=f"output {name!r}", hint=pass_)
            for name, g in given.items():
                reads = any(self.roots[v] == past for v in g.inputs)
                if made in g.outputs and reads and kinds[name] != UPDATE:
                    why = f"reads %{past} while it overwrites it"
                    yield IRError("E111", why, where=f"launch {name}", hint=pass_)
            if made != past and made in {*self.graph.inputs, *self.known}:
                why = f"no launch makes %{made}, the state's new value"
                yield IRError("E111", why, where=f"state {past}={present}", hint=pass_)

    def _memory_problems(self) -> Iterator[KnapperError]:
        wanted = {b.name: b for b in lifetimes(self.graph, [s.group for s in self.steps])}
        for name in sorted(wanted.keys() ^ self.buffers.keys()):
            problem = "has no buffer" if name in wanted else "needs no buffer"
            yield IRError("E111", f"%{name} {problem}", where=self.graph.name)
        for name in sorted(wanted.keys() & self.buffers.keys()):
            b, need = self.buffers[name], wanted[name].bytes
            if b.bytes < need or b.offset % ALIGN or b.offset < 0:
                why = f"needs {need} bytes at a multiple of {ALIGN}, has {b.bytes} at {b.offset:#x}"
                yield CompileError("E413", why, where=f"buffer %{name}")
        for a, b in collisions(list(self.buffers.values())):
            both = f"launches {max(a.first, b.first)} to {min(a.last, b.last)}"
            why = f"overlaps %{b.name} while both are needed, in {both}"
            yield CompileError(
                "E413",
                why,
                where=f"buffer %{a.name}",
                hint="without buffer lines, memory is planned anew",
            )

    def evaluate(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The network's outputs: every launch in order, tile by tile, over one byte array.

        What kernels store under bitmaps lies here element by element, at the start of its buffer, which is larger.
        """
        arena = np.full(self.arena_bytes, POISON, np.uint8)
        types = self.graph.types()
        for name, t in self.graph.inputs.items():
            self._store(arena, name, t, inputs[name])
        for s in self.steps:
            env = {v: self._load(arena, v, t) for v, t in s.group.inputs.items()}
            results = s.generator.evaluate(s.group, s.options, env)
            for v, t in s.group.outputs.items():
                self._store(arena, v, t, results[v])
        outputs = self.graph.outputs.items()
        return trimmed({name: self._load(arena, v, types[v]) for name, v in outputs})

    def _load(self, arena: Array, value: str, t: Type) -> Array:
        if value in self.known:
            return self.known[value]
        b = self.buffers[self.homes[value]]
        raw: Array = arena[b.offset : b.offset + t.dense.bytes].copy()
        return np.reshape(raw.view(DTYPES[t.dtype]), t.shape)

    def _store(self, arena: Array, value: str, t: Type, data: Array) -> None:
        if Type.of(data) != t.dense:
            raise IRError("E111", f"%{value} is {t}, got {Type.of(data)}", where=self.graph.name)
        b = self.buffers[self.homes[value]]
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        arena[b.offset : b.offset + flat.size] = flat


def illegal(step: Step, machine: Machine) -> CompileError | None:
    """Why a step cannot be, or None: an unknown kind, a generator that does not serve it, options that it does not offer."""
    where = f"launch {step.name}"
    if step.kind not in GENERATORS:
        return CompileError(
            "E412",
            f"no generator of kind {step.kind!r}; there are {', '.join(GENERATORS)}",
            where=where,
        )
    if (why := step.generator.serves(step.group, machine)) is not None:
        return CompileError("E412", f"{step.kind} does not serve it: {why}", where=where)
    offered = [dict(o) for o in step.generator.candidates(step.group, machine)]
    if dict(step.options) not in offered:
        problem = f"{step.kind} has no options {show_attrs(step.options)}"
        hint = legal(described(step.kind, step.options), [(step.kind, o) for o in offered])
        return CompileError("E412", problem, where=where, hint=hint)
    return None


def described(kind: str, options: Options) -> Options:
    """All that can be wished of a launch: options, modes in any case, and the kind."""
    return {OPTION: modes_of(options), **options, "kind": kind}


def legal(wanted: Options, ways: Sequence[tuple[str, Options]]) -> str:
    """A hint that shows the first few of the ways that come nearest to a wish, and says how many more there are: often hundreds."""
    near = sorted(ways, key=lambda way: -len(wanted.items() & described(*way).items()))
    shown = "; ".join(f"{kind} {show_attrs(options)}" for kind, options in near[:SHOWN])
    more = f"; and {len(near) - SHOWN:,} more" if len(near) > SHOWN else ""
    return f"legal are {shown}{more}"


def _at(problem: KnapperError, places: Mapping[str, str]) -> KnapperError:
    """The problem, with its place in a text if that is known."""
    if problem.where not in places:
        return problem
    where = f"{places[problem.where]}: {problem.where}"
    return type(problem)(problem.code, problem.message, where=where, hint=problem.hint)


def lifetimes(graph: Graph, launched: list[Group]) -> list[Buffer]:
    """The buffers that the launches need, unplaced. Inputs and outputs of the network keep their place from first to last."""
    root, types, constants = homes(graph), graph.types(), known(graph)
    end = len(launched)
    life: dict[str, tuple[int, int]] = dict.fromkeys(graph.inputs, (0, end))
    for i, group in enumerate(launched):
        for v in (*group.inputs, *group.outputs):
            first, last = life.get(root[v], (i, i))
            life[root[v]] = first, max(last, i)
    life |= {root[v]: (0, end) for v in graph.outputs.values()}
    return [Buffer(v, types[v].bytes, *span) for v, span in life.items() if v not in constants]
