"""Choice: which generator serves a group, and with which options, by least predicted cost of the whole network.

The cost is asked of the generator, which asks the machine's unit table, the one that the emulator's timing uses. Equal groups
get equal answers, so each is asked once.

On a machine that changes its mode, launches are not chosen one by one: one that leaves the SM in systolic mode saves the next a
switch. A kernel's switches and drains are in its own cost, so the cheapest network is the cheapest path through this graph, found
launch by launch:

    simd ──►●──────►●──────►●        an edge: the cheapest launch of the group
             ╲     ╱ ╲               with these modes at entry and exit
    systolic  ●───►●   ●────●
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from knapper.isa.core import SIMD
from knapper.isa.errors import CompileError, raise_all
from knapper.isa.machine import Machine, known

from . import narrow
from .codegen.generator import Group, Options, generators, modes_of
from .codegen.update import UPDATE
from .groups import groups, homes
from .ir import Attr, Graph
from .plan import Plan, Step, described, legal
from .structure import Canonical
from .text import show_attrs

Forced = Mapping[str, Mapping[str, Attr]]
"""Group name pattern (`conv*`) → what its launches must have: `kind` and options, any part of them."""


@dataclass(frozen=True)
class Choice:
    """One way to launch a group."""

    cost: float
    kind: str
    options: Options

    @property
    def described(self) -> Options:
        """All that can be wished for: options, modes in any case, and the kind."""
        return described(self.kind, self.options)


Modes = tuple[str, str]
"""Of the SM, at entry and exit."""


@dataclass(frozen=True)
class Choices:
    """The ways to launch a group that are worth a thought: by modes the cheapest one, and what each kind would cost at best."""

    best: Mapping[Modes, Choice]
    kinds: Mapping[str, float]

    @staticmethod
    def of(offered: Sequence[Choice]) -> Choices:
        """`offered` in order of preference if costs are equal."""
        best: dict[Modes, Choice] = {}
        kinds: dict[str, float] = {}
        for c in sorted(offered, key=lambda c: c.cost):
            best.setdefault(modes_of(c.options), c)
            kinds.setdefault(c.kind, c.cost)
        return Choices(best, kinds)

    def why(self, cost: float) -> str:
        """What each kind would cost at best, and what a launch of `cost` cycles pays beyond that; "" if there is one kind."""
        if len(self.kinds) == 1:
            return ""
        ranking = " < ".join(f"{kind} {best:,.0f}" for kind, best in self.kinds.items())
        beyond = cost - min(self.kinds.values())
        return ranking + (f"; {beyond:,.0f} more than the least" if beyond >= 1 else "")


def cheapest(launches: Sequence[Choices]) -> list[Choice]:
    """Of each launch the choice that makes the sum of costs least, where each starts in the mode in which the last one ended.

    The SMs start in SIMD mode and may end in any. Empty if launches can only start in a mode that nothing before them leaves.
    """
    paths: dict[str, tuple[float, list[Choice]]] = {SIMD: (0.0, [])}
    for choices in launches:
        longer: dict[str, tuple[float, list[Choice]]] = {}
        for (entry, leave), choice in choices.best.items():
            if entry not in paths:
                continue
            cost, path = paths[entry]
            if leave not in longer or cost + choice.cost < longer[leave][0]:
                longer[leave] = (cost + choice.cost, [*path, choice])
        paths = longer
    return min(paths.values(), key=lambda p: p[0])[1] if paths else []


SINGLE = "ew"
"""Zeros one by one: they matter to a kernel only beside an operand that has a bitmap, which is an encoding too."""
MOST = 1 << 31
"""Bytes of a tensor that no kernel goes through."""


@dataclass
class Scheduler:
    """Finds choices for groups, remembering what it decided for equal ones."""

    machine: Machine
    forced: Forced = field(default_factory=dict)
    _made: dict[str, Choices] = field(default_factory=dict)

    def choices(self, group: Group) -> Choices:
        """The ways to launch a group; CompileError E410, E415 or E416 if no generator serves it, E412 if none does as forced."""
        wanted = self._wanted(group)
        canonical = Canonical.of(group)
        structured = any(t.encoding and t.encoding.name != SINGLE for t in group.inputs.values())
        structure = canonical.content() if structured else canonical.text  # zeros decide what pays
        formats = [*narrow.of(canonical.group).items()]  # so does what four bits hold
        key = f"{structure}\n{formats}\n{sorted(wanted.items())}"
        if key not in self._made:
            self._made[key] = Choices.of(self._fitting(group, wanted))
        return self._made[key]

    def _wanted(self, group: Group) -> dict[str, Attr]:
        """What the group must have: as its nodes are placed, and as the caller forces it, who is the last to say."""
        found = self._placed(group)
        for pattern, wish in self.forced.items():
            if fnmatchcase(group.name, pattern):
                found |= wish
        return found

    def _placed(self, group: Group) -> dict[str, Attr]:
        places = sorted({n.place for n in group.nodes if n.place})
        if len(places) > 1:
            problem = f"its nodes are placed as {' and '.join(places)}"
            raise CompileError("E412", problem, where=f"launch {group.name}")
        if not places or (places[0].endswith("?") and not self._can(places[0][:-1], group)):
            return {}
        return {"kind": places[0].removesuffix("?")}

    def _can(self, kind: str, group: Group) -> bool:
        return generators()[kind].serves(group, self.machine) is None

    def _fitting(self, group: Group, wanted: dict[str, Attr]) -> list[Choice]:
        refusals = {kind: g.serves(group, self.machine) for kind, g in generators().items()}
        serving = [kind for kind, why in refusals.items() if why is None]
        if not serving:
            raise unserved(group, refusals, self._elsewhere(group))
        if (kind := wanted.get("kind", serving[0])) not in serving:
            raise misplaced(group, str(kind), refusals)
        offered = [c for kind in serving for c in self._offers(kind, group)]
        fit = [c for c in offered if wanted.items() <= c.described.items()]
        if not fit:
            raise unoffered(group, wanted, offered)
        return fit

    def _elsewhere(self, group: Group) -> list[str]:
        """The other machines that have a kernel for a group."""
        others = (Machine.load(name) for name in sorted(known()) if name != self.machine.name)
        return [
            m.name for m in others if any(g.serves(group, m) is None for g in generators().values())
        ]

    def _offers(self, kind: str, group: Group) -> Iterator[Choice]:
        generator = generators()[kind]
        for options in generator.candidates(group, self.machine):
            yield Choice(generator.cost(group, options, self.machine), kind, options)


def unserved(
    group: Group, refusals: Mapping[str, str | None], elsewhere: Sequence[str]
) -> CompileError:
    """The error for a group that no generator takes: its nodes, and each reason with the generators that have it.

    E415 if it is the machine's fault, E416 if a tensor is too large for any, E410 else: each asks for something else to be done.
    """
    kinds: dict[str, list[str]] = {}
    for kind, why in refusals.items():
        kinds.setdefault(str(why), []).append(kind)
    reasons = "; ".join(f"{', '.join(of)}: {why}" for why, of in kinds.items())
    problem = f"no generator serves {_nodes(group)} ({reasons or 'there are no generators'})"
    code, hint = "E410", ""
    large = [v for v, t in (group.inputs | group.outputs).items() if t.bytes >= MOST]
    if elsewhere:
        code, hint = "E415", f"another target has a kernel for it: {', '.join(elsewhere)}"
    elif large:
        code, hint = (
            "E416",
            f"%{large[0]} has 2 GiB or more: fewer samples at once, or the layer in parts",
        )
    elif any(n.op == "Conv" for n in group.nodes):
        hint = 'one that no unit addresses may run as im2col and a product: --pipeline "fp16,im2col{mode=explicit}"'
    return CompileError(code, problem, where=f"group {group.name}", hint=hint)


def misplaced(group: Group, kind: str, refusals: Mapping[str, str | None]) -> CompileError:
    """The error for a group that shall be of a kind that does not serve it: its nodes, the reason, and what would serve."""
    problem = f"{kind} does not serve {_nodes(group)}: {refusals[kind]}"
    others = [other for other, why in refusals.items() if why is None]
    return CompileError(
        "E412", problem, where=f"launch {group.name}", hint=f"{', '.join(others)} would"
    )


def unoffered(group: Group, wanted: Options, offered: Sequence[Choice]) -> CompileError:
    """The error for a wish that no way to launch a group fulfils: what it is, and ways that come near."""
    problem = f"nothing offers {show_attrs(wanted)}"
    hint = legal(wanted, [(c.kind, c.options) for c in sorted(offered, key=lambda c: c.cost)])
    return CompileError("E412", problem, where=f"launch {group.name}", hint=hint)


def _nodes(group: Group) -> str:
    return ", ".join(f"{n.op} {n.loc or '%' + n.outputs[0]}" for n in group.nodes)


def _strangers(graph: Graph, forced: Forced) -> Iterator[CompileError]:
    """An E412 for every kind that is asked for and that there is not."""
    kinds = [n.place.removesuffix("?") for n in graph.nodes if n.place]
    kinds += [str(wish["kind"]) for wish in forced.values() if "kind" in wish]
    for kind in dict.fromkeys(kinds):
        if kind not in generators():
            problem = f"no generator of kind {kind!r}; there are {', '.join(generators())}"
            yield CompileError("E412", problem, where=graph.name)


def _loose(graph: Graph) -> Iterator[CompileError]:
    """An E412 for every update whose result is in another place than what it updates."""
    home = homes(graph)
    for n in graph.nodes:
        if n.place == UPDATE and home[n.outputs[0]] != home[n.inputs[0]]:
            problem = f"%{n.outputs[0]} is not in the memory of %{n.inputs[0]}, so it is no update"
            hint = "the pass state says which nodes are; leave them to it"
            yield CompileError("E412", problem, where=f"launch {n.group}", hint=hint)


def _idle(graph: Graph, steps: Sequence[Step], machine: Machine) -> Iterator[CompileError]:
    """An E412 for every kind that was to take all it serves, and serves nothing."""
    asked = {n.place[:-1] for n in graph.nodes if n.place.endswith("?")}
    for kind in sorted(asked - {s.kind for s in steps}):
        reasons = dict.fromkeys(str(generators()[kind].serves(s.group, machine)) for s in steps)
        shown = "; ".join([*reasons][:3])
        yield CompileError("E412", f"{kind} serves no launch: {shown}", where=graph.name)


def schedule(graph: Graph, machine: Machine, forced: Forced | None = None) -> Plan:
    """A plan for a fused graph; raises every group that cannot be launched at once."""
    raise_all([*_strangers(graph, forced or {}), *_loose(graph)])
    scheduler = Scheduler(machine, forced or {})
    found, problems = list[Choices](), list[CompileError]()
    launched = groups(graph)
    for group in launched:
        try:
            found.append(scheduler.choices(group))
        except CompileError as e:
            problems.append(e)
    raise_all(problems)
    if len(path := cheapest(found)) < len(launched):
        problem = "the modes that launches are forced to do not follow each other"
        raise CompileError("E412", problem, where=graph.name)
    steps = [
        Step(group, choice.kind, choice.options)
        for group, choice in zip(launched, path, strict=True)
    ]
    raise_all(_idle(graph, steps, machine))
    return Plan.build(graph, machine, steps)
