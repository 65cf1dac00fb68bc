"""Rewriting by rules: one walk forward over the graph, every node simplified as it is made.

A rule is a pattern and a function. Calling an op on `P` builds the pattern; its `Var`s, `Const`s
and `Bound`s are the function's arguments:

    x, a, b = Var("x"), Bound("a"), Bound("b")
    TWICE = P.Transpose(P.Transpose(x, perm=a), perm=b) >> (
        lambda w, x, a, b: w.op("Transpose", x, perm=tuple(a[i] for i in b))
    )

The function gets the `Writer`, makes nodes with it and returns the value that takes the matched
node's place, or None: the rule does not apply. Since operands come before their users, a pattern
finds everything below its root already rewritten, and since `Writer.op` applies the rules to what a
rule makes, one walk reaches the fixed point. What nothing uses any more is dropped at the end. A
value of another type never takes a node's place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any

import numpy as np

from .ir import DTYPES, OPS, Array, Attr, Graph, Node, Type, infer

# --- patterns -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Var:
    """Any value; the same name twice means the same value."""

    name: str


@dataclass(frozen=True)
class Const(Var):
    """A constant."""


@dataclass(frozen=True)
class Bound:
    """An attribute's value, as an argument of the rule's function."""

    name: str


@dataclass(frozen=True)
class Pattern:
    """A node of this op, with operands and attributes that match."""

    op: str
    operands: tuple[Pattern | Var | float | EllipsisType, ...]
    attrs: tuple[tuple[str, Attr | Bound], ...] = ()

    def __rshift__(self, build: Callable[..., str | None]) -> Rule:
        return Rule(self, build)


@dataclass(frozen=True)
class Rule:
    """Where the pattern matches, `build(writer, **bindings)` gives the value to use instead."""

    pattern: Pattern
    build: Callable[..., str | None]


class _Ops:
    """`P.Relu(x)`: the pattern of a Relu.

    A number stands for a constant of that one value, `...` for any further operands.
    """

    def __getattr__(self, op: str) -> Callable[..., Pattern]:
        return lambda *operands, **attrs: Pattern(op, operands, tuple(attrs.items()))


P = _Ops()
COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "Sum"})
Bindings = dict[str, Any]


Any_ = Pattern | Var | float | EllipsisType


def _matches(p: Any_, v: str, w: Writer, env: Bindings) -> Iterator[Bindings]:
    """Every way in which a value fits a pattern."""
    if isinstance(p, Const) and w.array(v) is None:
        return
    if isinstance(p, Var):
        if env.get(p.name, v) == v and v:
            yield {**env, p.name: v}
    elif isinstance(p, Pattern):
        n = w.maker(v)
        if n is not None and n.outputs[0] == v:
            yield from _matches_node(p, n, w, env)
    elif isinstance(p, float) and w.is_number(v, p):
        yield env


def _matches_node(p: Pattern, n: Node, w: Writer, env: Bindings) -> Iterator[Bindings]:
    if n.op != p.op:
        return
    for name, want in p.attrs:
        if isinstance(want, Bound):
            env = {**env, want.name: n.attr(name)}
        elif n.attr(name) != want:
            return
    yield from _matches_all(p.operands, n.inputs, w, env)
    if n.op in COMMUTATIVE and len(n.inputs) == 2:
        yield from _matches_all(p.operands, n.inputs[::-1], w, env)


def _matches_all(
    ps: Sequence[Any_], vs: Sequence[str], w: Writer, env: Bindings
) -> Iterator[Bindings]:
    if [*ps] == [...] or not (ps or vs):
        yield env
    elif ps and vs:
        for found in _matches(ps[0], vs[0], w, env):
            yield from _matches_all(ps[1:], vs[1:], w, found)


# --- writing ------------------------------------------------------------------------------------


class Writer:
    """A graph under construction, from a graph that is walked.

    `op`, `constant` and `emit` add to it; `type`, `array`, `maker` and `once` ask what is there.
    While a rule runs, `root` is the node that matched.
    """

    def __init__(self, g: Graph, rules: Sequence[Rule] = ()) -> None:
        self.old = g = prune(g)
        self.constants = dict(g.constants)
        self.nodes: dict[str, Node] = {}  # by first result
        self._types = dict(g.inputs) | {v: Type.of(a) for v, a in g.constants.items()}
        self._makers: dict[str, Node] = {}
        self._now: dict[str, str] = {"": ""}  # old value → new value
        self._uses = Counter(v for n in g.nodes for v in n.inputs) + Counter(g.outputs.values())
        self._left = self._uses.copy()
        self._taken = {*self._types, *(v for n in g.nodes for v in n.outputs)}
        self._last: Node | None = None
        self._copies: dict[str, str] = {}
        self._rules: dict[str, list[Rule]] = {}
        self.at = self.root = Node("", (), ("",), ())
        for r in rules:
            self._rules.setdefault(r.pattern.op, []).append(r)

    # asking

    def now(self, v: str) -> str:
        """What stands for the old graph's value v."""
        return self._now.get(v, v)

    def type(self, v: str) -> Type:
        """A new value's type."""
        return self._types[v]

    def array(self, v: str) -> Array | None:
        """A constant's content; None for anything else."""
        return self.constants.get(v)

    def known(self, v: str) -> Array:
        """A constant's content."""
        return self.constants[v]

    def is_number(self, v: str, x: float) -> bool:
        """Whether a value is a constant of one element, and that is x as far as f32 can tell."""
        a = self.array(v)
        return a is not None and a.size == 1 and bool(np.isclose(float(a.item()), x, 1e-6, 0))

    def maker(self, v: str) -> Node | None:
        """The node that makes a new value; None for inputs and constants."""
        return self._makers.get(v)

    def once(self, v: str) -> bool:
        """Whether a value has one use only, counting the network's outputs."""
        return self._left[v] <= 1

    # adding

    def op(self, name: str, *operands: str, **attrs: Attr) -> str:
        """Add a node (or what the rules make of it) with one result.

        Attributes that equal their declared defaults are left out, trailing absent operands too.
        """
        return self.ops(1, name, *operands, **attrs)[0]

    def again(self, n: Node, *operands: str, **changes: Attr) -> str:
        """A node once more, on other operands and with some attributes changed; keeps its place."""
        outer, self.at = self.at, replace(self.at, loc=n.loc)
        v = self.op(n.op, *operands, **{**n.attrs, **changes})
        self.at = outer
        return v

    def ops(self, results: int, name: str, *operands: str, **attrs: Attr) -> tuple[str, ...]:
        """`op` with several results."""
        while operands and not operands[-1]:
            operands = operands[:-1]
        declared = OPS[name].attrs
        attrs = {k: v for k, v in attrs.items() if k not in declared or v != declared[k].default}
        types = infer(name, [self._types[v] if v else None for v in operands], attrs)[:results]
        names = tuple(self.fresh(self.at.outputs[0]) for _ in types)
        self._left.update(v for v in operands if v)
        return self.emit(Node(name, operands, names, types, attrs, self.at.loc))

    def constant(self, a: Array, near: str = "", tag: str = "") -> str:
        """Add a constant; `near` is the value whose name it takes after."""
        v = self.fresh(near or self.at.outputs[0], tag)
        self.constants[v] = a
        self._types[v] = Type.of(a)
        return v

    def number(self, value: float, dtype: str) -> str:
        """Add a scalar constant."""
        return self.constant(np.array(value, DTYPES[dtype]))

    def fresh(self, near: str, tag: str = "") -> str:
        """A name that nothing has, after another and with a tag that says what became of it."""
        stem = f"{near or 'v'}.{tag}".rstrip(".")
        name, i = (stem, 1) if tag else (f"{stem}.1", 1)
        while name in self._taken:
            i += 1
            name = f"{stem}.{i}"
        self._taken.add(name)
        return name

    def emit(self, n: Node) -> tuple[str, ...]:
        """Add a node whose operands are new values, unless a rule has something better."""
        for rule in self._rules.get(n.op, ()) if len(n.outputs) == 1 else ():
            for env in _matches_node(rule.pattern, n, self, {}):
                v = self._build(rule, n, env)
                if v is not None and self._types[v] == n.types[0]:
                    return (v,)
        self._add(n)
        return n.outputs

    def _build(self, rule: Rule, n: Node, env: Bindings) -> str | None:
        outer, self.root = self.root, n
        v = rule.build(self, **env)
        self.root = outer
        return v

    def _add(self, n: Node) -> None:
        self.nodes[n.outputs[0]] = n
        for v, t in zip(n.outputs, n.types, strict=True):
            self._makers[v] = n
            self._types[v] = t

    # walking

    def begin(self, n: Node) -> None:
        """From now on nodes are made for an old one, and take its place in the model."""
        self.at, self._last = n, self._newest()

    def _newest(self) -> Node | None:
        return next(reversed(self.nodes.values()), None)

    def visit(self, n: Node) -> None:
        """Carry over a node of the old graph."""
        self.begin(n)
        new = self.emit(replace(n, inputs=tuple(map(self.now, n.inputs))))
        self.let(n, new)

    def store(self, n: Node, arrays: Sequence[Array]) -> None:
        """Constants stand for an old node's results."""
        for old, a in zip(n.outputs, arrays, strict=False):
            if old:
                self.constants[old] = a
                self._types[old] = Type.of(a)

    def let(self, n: Node, new: Sequence[str]) -> None:
        """The values `new` stand for an old node's results; keeps the old names if it can."""
        for old, v in zip(n.outputs, self.named(new, n.outputs), strict=True):
            self._now[old] = v
            if old != v:
                self._left[v] += self._uses[old] - 1

    def named(self, new: Sequence[str], old: Sequence[str]) -> tuple[str, ...]:
        """Give the results of the node that was just made the names of those they stand for."""
        n = self._newest()
        if n is None or n is self._last or n.outputs != tuple(new):
            return tuple(new)
        if not self._types.keys().isdisjoint(old):
            return tuple(new)
        del self.nodes[n.outputs[0]]
        for v in new:
            del self._makers[v], self._types[v]
        self._add(replace(n, outputs=tuple(old)))
        self._left.update({v: self._uses[v] - self._left[v] for v in old})
        return tuple(old)

    def graph(self, outputs: Mapping[str, str] | None = None) -> Graph:
        """The new graph, without what its outputs do not need.

        An output that came to be an input or a constant gets an Identity: something must store it.
        """
        outputs = outputs or {name: self.now(v) for name, v in self.old.outputs.items()}
        stored = {name: self._stored(name, v) for name, v in outputs.items()}
        nodes = tuple(self.nodes.values())
        kept, old = self.constants, self.old.constants
        same = {v: e for v, e in self.old.encodings.items() if kept.get(v) is old[v]}
        return prune(replace(self.old, nodes=nodes, outputs=stored, constants=kept, encodings=same))

    def _stored(self, name: str, v: str) -> str:
        if v in self._makers or self.old.outputs[name] == v:
            return v
        if v not in self._copies:
            old = self.old.outputs[name]
            self._copies[v] = old if old not in self._types else self.fresh(v)
            self._add(Node("Identity", (v,), (self._copies[v],), (self._types[v],)))
        return self._copies[v]


def rewrite(g: Graph, rules: Sequence[Rule]) -> Graph:
    """Apply rules everywhere, to the fixed point."""
    w = Writer(g, rules)
    for n in w.old.nodes:
        w.visit(n)
    return w.graph()


def prune(g: Graph) -> Graph:
    """Drop the nodes and constants that no output needs. Network inputs stay: the signature."""
    live = set(g.outputs.values())
    nodes = []
    for n in reversed(g.nodes):
        if not live.isdisjoint(n.outputs):
            nodes.append(n)
            live.update(n.inputs)
    constants = {v: a for v, a in g.constants.items() if v in live}
    encodings = {v: e for v, e in g.encodings.items() if v in constants}
    return replace(g, nodes=tuple(reversed(nodes)), constants=constants, encodings=encodings)
