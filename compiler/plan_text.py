"""Plans as text: the graph's text, then one line a launch and one line a buffer.

    graph @net(%x: f16[1,8,8,64]) { … }
    // plan for volta-8tc: 2 launches, 5,310 cycles predicted, arena 16,384 bytes (at least 16,384)
    launch @conv_0 = hmma {stages=2,tile=[64,64,32],warps=4} simd..simd  // Conv Relu Cast: f16 f16 -> f16, 3,120 cycles
    buffer %x at 0x0 bytes 8192  // launches 0 to 1

What stands in comments is derived, and not read back. A launch may be edited: `parse` checks its options against what the
generator offers on the given machine, and says so with file, line and column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from knapper.isa.core import SIMD
from knapper.isa.errors import IRError, raise_all
from knapper.isa.machine import Machine

from . import text
from .codegen.generator import MODES, Group, generators
from .groups import groups
from .ir import Array, Graph
from .memory import Buffer, place
from .plan import Plan, Step, lifetimes
from .schedule import Scheduler

TARGET = "target"
"""What the file's head calls the machine."""


def show(plan: Plan) -> str:
    """The plan as text; large constants appear by hash (`text.blobs`)."""
    choosing = Scheduler(plan.machine)
    lines = [_headline(plan)]
    for s in plan.steps:
        why = choosing.choices(s.group).why(plan.cycles(s))
        lines.append(f"launch {step_line(plan, s)}" + (f" ({why})" if why else ""))
    lines += [
        _buffer_line(b) for b in sorted(plan.buffers.values(), key=lambda b: (b.offset, b.first))
    ]
    return text.show(plan.graph) + "\n".join(lines) + "\n"


def save(plan: Plan, path: Path | str) -> Path | None:
    """Write the plan's text to `path`, and its larger constants beside it, in a file whose path this gives (`text.save_text`)."""
    meta = {**plan.graph.meta, TARGET: plan.machine.name}
    return text.save_text(text.headed(show(plan), meta), plan.graph, path)


def load(path: Path | str, machine: Machine) -> Plan:
    """Read what `save` wrote, or an edited version of it."""
    source = text.read(path)
    return parse(source, machine, str(path), text.load_blobs(path, source))


def target(path: Path | str) -> str:
    """The name of the machine that a plan's file was written for; "" if it does not say so."""
    return text.provenance(text.read(path), "plan").get(TARGET, "")


def step_line(plan: Plan, s: Step) -> str:
    """All that was decided about a launch, and in a comment what follows from it."""
    ops = " ".join(n.op for n in s.group.nodes)
    options = {name: value for name, value in s.options.items() if name != MODES}
    decided = (
        f"{text.name(s.name, '@')} = {s.kind}{text.show_attrs(options, ' ')} {'..'.join(s.modes)}"
    )
    return f"{decided}  // {ops}: {s.formats}, {plan.cycles(s):,.0f} cycles{_crossing(plan, s)}"


def _crossing(plan: Plan, s: Step) -> str:
    """What crosses the link, for a launch of the host."""
    if (x := plan.crossings.get(s.name)) is None:
        return ""
    return f", link {x.sent:,} and back {x.received:,} bytes" + (", asked" if x.asked else "")


def _headline(plan: Plan) -> str:
    cycles = sum(map(plan.cycles, plan.steps))
    arena = f"arena {plan.arena_bytes:,} bytes (at least {plan.bound:,})"
    launches = f"{len(plan.steps)} launch{'es' * (len(plan.steps) != 1)}"
    return f"// plan for {plan.machine.name}: {launches}, {cycles:,.0f} cycles predicted, {arena}"


def _buffer_line(b: Buffer) -> str:
    return f"buffer {text.name(b.name)} at {b.offset:#x} bytes {b.bytes}  // launches {b.first} to {b.last}"


# --- parsing ------------------------------------------------------------------------------------------------------------


def parse(
    source: str, machine: Machine, where: str = "<text>", blobs: Mapping[str, Array] | None = None
) -> Plan:
    """Read a plan and verify it on a machine.

    Errors: those of the graph's text; E110 for a line that cannot be read; E111, E412 and E413 for a plan that does not fit its
    graph or the machine, all at once, each with its place.
    """
    graph_text, plan_text = _split(source)
    graph = text.parse(graph_text, where, blobs or {})
    meta = text.provenance(source, "plan")
    meta.pop(TARGET, None)  # the caller's machine is another matter
    graph = graph.with_(meta=meta)
    launches, buffers = _read(plan_text, where)
    found = {g.name: g for g in groups(graph)}
    raise_all(_strangers(launches, found))
    generators()
    steps = tuple(Step(found[x.name], x.kind, x.options) for x in launches)
    places = {f"launch {x.name}": x.where for x in launches} | {
        f"buffer %{x.name}": x.where for x in buffers
    }
    return Plan(graph, machine, steps, _placed(graph, steps, buffers)).verify(places)


def _split(source: str) -> tuple[str, str]:
    """The graph's part and the rest, each with its lines where they were."""
    lines = source.splitlines()
    end = next((i + 1 for i, line in enumerate(lines) if line.rstrip() == "}"), len(lines))
    return "\n".join(lines[:end]) + "\n", "\n" * end + "\n".join(lines[end:]) + "\n"


@dataclass(frozen=True)
class _Launch:
    name: str
    kind: str
    options: dict[str, Any]
    where: str


@dataclass(frozen=True)
class _Placed:
    name: str
    offset: int
    bytes: int
    where: str


def _strangers(launches: list[_Launch], found: Mapping[str, Group]) -> Iterator[IRError]:
    for x in launches:
        if x.name not in found:
            yield IRError(
                "E111",
                f"no group @{x.name} in the graph; there are {', '.join(found)}",
                where=x.where,
            )


def _placed(graph: Graph, steps: tuple[Step, ...], given: list[_Placed]) -> dict[str, Buffer]:
    """Buffers as given, with the lifetimes that follow from the steps; placed anew if none are given."""
    wanted = lifetimes(graph, [s.group for s in steps])
    if not given:
        return {b.name: b for b in place(wanted)}
    life = {b.name: b for b in wanted}
    unknown = Buffer("", 0, 0, len(steps))
    return {
        x.name: replace(life.get(x.name, unknown), name=x.name, offset=x.offset, bytes=x.bytes)
        for x in given
    }


def _read(source: str, where: str) -> tuple[list[_Launch], list[_Placed]]:
    from lark.exceptions import UnexpectedInput

    try:
        tree = _parser().parse(source)
    except UnexpectedInput as e:
        context = e.get_context(source).rstrip()
        raise IRError(
            "E110", f"cannot read this\n{context}", where=f"{where}:{e.line}:{e.column}"
        ) from None
    reader = _Reader(where)
    for item in tree.children:
        reader.take(item)
    raise_all(reader.problems)
    return reader.launches, reader.buffers


@cache
def _parser() -> Any:
    from lark import Lark

    grammar = Path(__file__).with_name("plan.lark")
    return Lark(
        grammar.read_text(),
        start="plan",
        parser="lalr",
        import_paths=[str(grammar.parent)],
        propagate_positions=True,
    )


@dataclass
class _Reader:
    """Collects the lines; a name given twice is a problem."""

    where: str
    launches: list[_Launch] = field(default_factory=list)
    buffers: list[_Placed] = field(default_factory=list)
    problems: list[IRError] = field(default_factory=list)

    def take(self, tree: Any) -> None:
        place = f"{self.where}:{tree.meta.line}:{tree.meta.column}"
        getattr(self, tree.data)(place, tree.children)

    def launch(self, place: str, items: list[Any]) -> None:
        name, kind, *rest = items
        options = dict(map(_attr, rest[0].children)) if len(rest) == 3 else {}
        if (modes := (str(rest[-2]), str(rest[-1]))) != (SIMD, SIMD):
            options[MODES] = modes
        self.launches.append(_Launch(_unquoted(name), str(kind), options, place))

    def buffer(self, place: str, items: list[Any]) -> None:
        name, offset, size = items
        if any(b.name == _unquoted(name) for b in self.buffers):
            self.problems.append(IRError("E111", f"buffer {name} is given twice", where=place))
        self.buffers.append(_Placed(_unquoted(name), int(offset, 0), int(size, 0), place))


def _attr(tree: Any) -> tuple[str, Any]:
    name, value = tree.children
    return str(name), _value(value)


def _value(item: Any) -> Any:
    if hasattr(item, "children"):
        return tuple(_value(x) for x in item.children if x is not None)
    return float(item) if item.type == "FLOAT" else json.loads(item)


def _unquoted(token: str) -> str:
    return str(json.loads(token[1:])) if token[1] == '"' else str(token[1:])
