"""Check a subject: compile, run, compare; and where values are wrong, which level is the first to make them so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from knapper.compiler.ir import Array
from knapper.isa.errors import KnapperError

from ..compare import ORACLE, Difference, differences, failures
from .finding import Cut, Finding
from .instructions import Site, locate
from .launches import Bad, Walk, walk
from .nodes import at_import
from .passes import at_pass, largest
from .subject import LIMITS, Levels, Subject, Way, held, values

Run = Callable[[Levels, Mapping[str, Array]], Mapping[str, Array]]
"""Runs a program on inputs; gives its outputs."""


@dataclass(frozen=True)
class Verdict:
    """What came out of a check."""

    subject: Subject
    levels: Levels
    outputs: Mapping[str, Array]
    found: list[Difference] = field(default_factory=list)
    problems: list[KnapperError] = field(default_factory=list)
    """Nothing is wrong if there are none."""
    tolerance: float | None = None


def check(
    subject: Subject,
    way: Way,
    run: Run,
    tolerance: float | None = None,
    levels: Levels | None = None,
) -> Verdict:
    """Compile (unless `levels` has it done), run and compare."""
    levels = levels or way.levels(subject.graph)
    made = run(levels, held(levels.fused, subject.feed))
    outputs = {n: _as(a, subject.expected.get(n), levels) for n, a in made.items()}
    try:
        found = differences(outputs, subject.expected, subject.whose, levels.stored)
    except KnapperError as e:
        if not any(a.size for a in subject.expected.values()):
            raise  # nothing can be compared anywhere
        return Verdict(subject, levels, outputs, problems=[e])
    if subject.fused and tolerance is None:
        tolerance = max([LIMITS.get(a.dtype.name, 0.0) for a in subject.expected.values()]) or None
    exact = levels.exact or subject.fused
    problems = list(failures(found, tolerance, exact, subject.name, subject.whose))
    return Verdict(subject, levels, outputs, found, problems, tolerance)


def _as(ours: Array, theirs: Array | None, levels: Levels) -> Array:
    """A state in the type that the model has it in."""
    if theirs is None or not levels.fused.state or ours.dtype.kind in "biu":
        return ours
    return ours.astype(theirs.dtype)


def first_divergence(v: Verdict) -> Finding:
    """The first level at which values go wrong, with pass, node and instruction as far as that level has them."""
    subject, levels = v.subject, v.levels
    found = at_import(subject) or (at_pass(subject, levels) if levels.passes else None)
    if found is None:
        found = at_launch(subject, levels)
    return found or _within(v)


def at_launch(subject: Subject, levels: Levels) -> Finding | None:
    """The first launch that goes wrong, and the instruction in it."""
    walked = walk(levels)
    bad = walked.first_bad(subject.feed)
    if bad is None:
        return None
    group = bad.step.group
    node = next((n for n in group.nodes if bad.value in n.outputs), group.nodes[-1])
    env = values(group.graph(), {v: a for v, a in bad.inputs.items() if v not in group.constants})
    cut = Cut(levels.fused, env, bad.value, group=bad.step.name)
    if bad.kind == "memory":
        who = walked.overwriter(subject.feed, bad) or "another"
        text = (
            f"launch {bad.step.name} is the first that goes wrong: launch {who} has written over %{bad.value}, "
            f"which it reads: {bad.of}; the memory plan gives two values one place"
        )
        return Finding("memory", text, node.loc, node.op, launch=bad.step.name)
    site = locate(walked, dict(subject.feed), bad)
    return _placed(bad, site, walked, cut, node.loc, node.op)


def _placed(bad: Bad, site: Site, walked: Walk, cut: Cut, loc: str, op: str) -> Finding:
    """A launch that goes wrong, as far as its instructions tell why."""
    place = site.place
    where = (
        f"element {list(site.index)} of %{bad.value} is {site.ours}, its reference {site.theirs}"
    )
    begin = f"launch {bad.step.name} ({bad.step.kind}) is the first that goes wrong: {where}"
    if site.apart:
        level, why = "emulator", f"the engines part at {site.apart.place}: {site.apart.what}"
    elif place is None:
        level, why = "program", "no instruction of the launch stores it"
    else:
        level = bad.kind
        why = f"both engines agree; it was stored by {place}"
        if bad.kind == "plan":
            why += "; the generator's own tiling gives the same, and the graph does not"
    if place is not None and place.node:
        loc = place.node
        op = next((n.op for n in bad.step.group.nodes if n.loc == loc), op)
    return Finding(
        level, f"{begin}; {why}", loc, op,
        launch=bad.step.name,
        kernel=place.kernel.name if place else "",
        pc=place.pc if place else None,
        instruction=str(place.instr) if place else "",
        cut=cut,
    )  # fmt: skip


def _within(v: Verdict) -> Finding:
    """Every level does what it may: which of them changes most, or whether onnxruntime does not agree with itself."""
    subject, levels = v.subject, v.levels
    begin = "every level is within what its precision allows"
    if v.problems and (apart := _fusions(v)) is not None:
        text = (
            f"{begin}; onnxruntime, asked for every value between, gives these outputs, too: "
            f"its own fusions change {apart.name!r}: {apart}"
        )
        return Finding("none", text)
    most = largest(subject, levels) if levels.passes else None
    if most is None or most[1].max_rel == 0:
        return Finding("none", f"{begin}; what is left is sums in another order, in launches")
    change, d = most
    return Finding("none", f"{begin}; most comes of pass {change.text}: {d}", step=change.text)


def _fusions(v: Verdict) -> Difference | None:
    """How far onnxruntime's outputs are from those it has without fusions, if these are ours."""
    own = {n: v.subject.values[n] for n in v.subject.expected if n in v.subject.values}
    if own.keys() != v.subject.expected.keys() or v.subject.whose != ORACLE:
        return None
    try:
        if not all(d.fits(v.tolerance, v.levels.exact) for d in differences(v.outputs, own)):
            return None
        return max(differences(own, v.subject.expected), key=lambda d: d.max_rel)
    except KnapperError:
        return None


def fp32_hint(v: Verdict, found: Finding, way: Way, run: Run, tolerance: float | None) -> str:
    """Whether float32 in place of 16 bits would pass, known by trying it; "" where that is not the question."""
    if way.pipeline is not None or v.levels.exact or found.level not in ("pass", "none"):
        return ""
    try:
        passes = not check(v.subject, way.with_(precision="fp32"), run, tolerance).problems
    except KnapperError:
        return ""
    return "--precision fp32 passes" if passes else "--precision fp32 does not pass either"
