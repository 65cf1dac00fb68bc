"""The passes, one by one: the graph behind each against the graph before it, both by the references of their ops.

A pass may change values as much as what is stored may: behind `precision` in 16 bits by a cosine, before it by sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from knapper.compiler.ir import Array, Graph, Node
from knapper.isa.errors import KnapperError

from ..compare import Difference, difference
from .finding import Cut, Finding
from .subject import Levels, Subject, outputs, precise, values


@dataclass(frozen=True)
class Change:
    """What one pass does to the network's outputs."""

    index: int
    text: str
    """The pass with its options."""
    before: Graph
    after: Graph
    was: Mapping[str, Any]
    """All values before it."""
    env: Mapping[str, Any]
    """All values behind it."""

    def worst(self) -> tuple[Difference | None, str]:
        """How far its outputs are from those before it, and what is wrong with them beyond that."""
        ours, theirs = outputs(self.after, self.env), outputs(self.before, self.was)
        worst: Difference | None = None
        for name, r in theirs.items():
            try:
                d = difference(name, ours[name], r, "the graph before it")
            except KnapperError as e:
                return None, e.message
            if not d.count:
                continue
            if not d.fits(None, precise(self.after)):
                return d, f"output {name!r}: {d}"
            if worst is None or d.max_rel > worst.max_rel:
                worst = d
        return worst, ""


def changes(subject: Subject, levels: Levels) -> Iterator[Change]:
    """What each pass changes, in order; what leaves the graph as it is is left out."""
    was = values(subject.graph, subject.feed)
    for i, step in enumerate(levels.passes):
        if step.after is step.before or step.after == step.before:
            continue
        env = values(step.after, subject.feed)
        yield Change(i, levels.texts[i], step.before, step.after, was, env)
        was = env


def at_pass(subject: Subject, levels: Levels) -> Finding | None:
    """The first pass that changes outputs beyond what its precision allows."""
    for c in changes(subject, levels):
        _, problem = c.worst()
        if problem:
            return _finding(c, levels, problem)
    return None


def largest(subject: Subject, levels: Levels) -> tuple[Change, Difference] | None:
    """The pass that changes outputs most, though no more than it may."""
    found = [(c, d) for c in changes(subject, levels) if (d := c.worst()[0]) is not None]
    return max(found, key=lambda f: f[1].max_rel, default=None)


def _finding(c: Change, levels: Levels, problem: str) -> Finding:
    node, value = first_node(c)
    place = f" at node {node.loc or node.outputs[0]} ({node.op})" if node else ""
    text = f"pass {c.text} is the first that changes values{place}; {problem}"
    rest = ",".join(levels.texts[c.index :])
    cut = Cut(c.before, c.was, value, rest) if value else None
    loc, op = (node.loc, node.op) if node else ("", "")
    return Finding("pass", text, loc, op, step=c.text, cut=cut)


def first_node(c: Change) -> tuple[Node | None, str]:
    """The first node, in the order of the graph before the pass, whose value is another one behind it; and that value.

    Values are matched by name, where that and the shape stayed, else by the last value of the model's node that they are of.
    """
    makers = c.before.producers()
    last = {n.loc: v for n in c.after.nodes if n.loc for v in n.outputs[:1]}
    final = {n.loc: n for n in c.before.nodes if n.loc}
    for n in c.before.nodes:
        for v in n.outputs:
            if not v:
                continue
            match = v if v in c.env else last.get(n.loc, "") if final.get(n.loc) is n else ""
            if match and _apart(c, v, match):
                return n, v
    for name, v in c.before.outputs.items():
        after = c.after.outputs[name]
        if v in makers and _differs(np.asarray(c.env[after]), np.asarray(c.was[v]), c):
            return makers[v], v
    return None, ""


def _apart(c: Change, before: str, after: str) -> bool:
    return before in c.was and _differs(np.asarray(c.env[after]), np.asarray(c.was[before]), c)


def _differs(ours: Array, theirs: Array, c: Change) -> bool:
    """Whether a value is beyond what the pass allows; another layout or type of it says nothing."""
    if ours.dtype != theirs.dtype or sorted(ours.shape) != sorted(theirs.shape):
        return False
    looks = [ours] if ours.shape == theirs.shape else []
    if ours.ndim == 4:
        looks += [x for x in (ours.transpose(0, 3, 1, 2), ours.transpose(2, 3, 0, 1)) if x.shape == theirs.shape]  # fmt: skip
    found = [difference("", x, theirs) for x in looks]
    return bool(found) and not any(not d.count or d.fits(None, precise(c.after)) for d in found)
