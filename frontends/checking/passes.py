"""The passes, one by one: the graph behind each against the graph before it, both by the references of their ops.

A pass may change values as much as what is stored may: behind `precision` in 16 bits by a cosine, before it by sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from knapper.compiler.ir import Array, Graph, Node
from knapper.isa.errors import KnapperError

from ..compare import Difference, difference
from .finding import Cut, Finding
from .subject import Levels, Subject, outputs, precise, values

GRIDS = ("QuantizeLinear", "DynamicQuantizeLinear")


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

    @cached_property
    def exact(self) -> bool:
        """Whether it may change no more than the order of sums: nothing is stored in 16 bits, nor rounded to the steps of a grid."""
        return precise(self.after) and not any(n.op in GRIDS for n in self.before.nodes)

    def worst(self) -> tuple[Difference | None, str]:
        """How far its outputs are from those before it, and what is wrong with them beyond that."""
        ours, theirs = outputs(self.after, self.env), outputs(self.before, self.was)
        worst: Difference | None = None
        for name, r in theirs.items():
            try:
                d = difference(name, self._wide(ours[name], r), r, "the graph before it")
            except KnapperError as e:
                return None, e.message
            if not d.count:
                continue
            if not d.fits(None, self.exact):
                return d, f"output {name!r}: {d}"
            if worst is None or d.max_rel > worst.max_rel:
                worst = d
        return worst, ""

    def _wide(self, ours: Array, theirs: Array) -> Array:
        """A state, which may be stored in 16 bits, in the type that it had."""
        return ours.astype(theirs.dtype) if self.after.state and ours.dtype.kind not in "biu" else ours  # fmt: skip


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
    """The first pass that changes outputs, or values between that it leaves their names, beyond what its precision allows."""
    for c in changes(subject, levels):
        _, problem = c.worst()
        node, value = first_value(c)
        if problem and not node:
            node, value = first_node(c)
        if problem or node:
            return _finding(c, levels, problem, node, value)
    return None


def largest(subject: Subject, levels: Levels) -> tuple[Change, Difference] | None:
    """The pass that changes outputs most, though no more than it may."""
    found = [(c, d) for c in changes(subject, levels) if (d := c.worst()[0]) is not None]
    return max(found, key=lambda f: f[1].max_rel, default=None)


def _finding(c: Change, levels: Levels, problem: str, node: Node | None, value: str) -> Finding:
    place = f" at node {node.loc or node.outputs[0]} ({node.op})" if node else ""
    text = f"pass {c.text} is the first that changes values{place}"
    text += f"; {problem}" if problem else ""
    rest = ",".join(levels.texts[c.index :])
    cut = Cut(c.before, c.was, value, rest) if value else None
    loc, op = (node.loc, node.op) if node else ("", "")
    return Finding("pass", text, loc, op, step=c.text, cut=cut)


def first_value(c: Change) -> tuple[Node | None, str]:
    """The first value, in the order of the graph before the pass, that has its name, type and shape behind it, but is another one."""
    found = ((n, v) for n in c.before.nodes for v in n.outputs if v and v in c.env)
    return next(((n, v) for n, v in found if _apart(c, v, v)), (None, ""))


def first_node(c: Change) -> tuple[Node | None, str]:
    """The first node of the model whose last value is another one behind the pass, else that of an output that is."""
    makers = c.before.producers()
    last = {n.loc: v for n in c.after.nodes if n.loc for v in n.outputs[:1]}
    for n in {n.loc: n for n in c.before.nodes if n.loc}.values():
        if (match := last.get(n.loc)) and _apart(c, n.outputs[0], match):
            return n, n.outputs[0]
    for name, v in c.before.outputs.items():
        if v in makers and _differs(np.asarray(c.env[c.after.outputs[name]]), np.asarray(c.was[v]), c):  # fmt: skip
            return makers[v], v
    return None, ""


def _apart(c: Change, before: str, after: str) -> bool:
    return before in c.was and _differs(np.asarray(c.env[after]), np.asarray(c.was[before]), c)


def _differs(ours: Array, theirs: Array, c: Change) -> bool:
    """Whether a value is beyond what the pass allows. Another type of it says nothing, nor do its elements in another order: a layout."""
    if ours.dtype != theirs.dtype or ours.size != theirs.size:
        return False
    looks = [(ours, theirs)] if ours.shape == theirs.shape else []
    looks.append((np.sort(ours, axis=None), np.sort(theirs, axis=None)))
    return not any(_near(y, r, c) for y, r in looks)


def _near(ours: Array, theirs: Array, c: Change) -> bool:
    """Whether one value may be made of the other by the pass."""
    if not c.exact and ours.dtype.kind in "iu" and ours.dtype.itemsize < 4:
        step = np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max(initial=0)
        return bool(step <= 1)  # on a grid, a tie may go the other way
    d = difference("", ours, theirs)
    return not d.count or d.fits(None, c.exact)
