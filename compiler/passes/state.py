"""Where the states of a network live: the new value is made in the memory of the old one.

    state %past = %present

A session keeps what a run leaves at `past`, so that every run has to end with the value of `present` there. There are three ways,
the first that is possible is taken:

    update     present is a scatter into past, and nobody reads past afterwards: only what is new is written
    direct     another launch makes present, which does not read past, and nobody reads past afterwards: it writes there
    copy       a launch of its own copies present to where past was, behind everything that reads past

"Afterwards" is what the pass decides: whoever reads past shall run before it is overwritten (`groups` orders them so), unless it
needs what is made in its place. The plan gives both values one buffer (`groups.homes`), and verifies that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from knapper.isa.errors import PassError
from knapper.isa.machine import Machine
from knapper.isa.parameters import HOST

from ..codegen.update import OPS, UPDATE
from ..groups import is_view, roots
from ..ir import Graph, Node
from .base import Pass


@dataclass(frozen=True)
class State(Pass):
    """Make new values of states in the memory of the old ones; copy where that is not possible."""

    name = "state"
    update: bool = True
    """Whether scatters may write into the old value."""
    served: bool = field(default=True, repr=False)
    """Whether the machine's lanes compute launches of their own."""

    def on(self, machine: Machine) -> State:
        """The host computes no update in place: its memory is another one."""
        return replace(self, served=machine.nonmatrix != HOST)

    def run(self, g: Graph) -> Graph:
        """One state after the other."""
        if g.state and not all(n.group or is_view(n) for n in g.nodes):
            raise PassError("E304", "there are no launches yet", hint="put fuse before state")
        placing = _Placing(g)
        for name in g.outputs:
            placing.stored(name)
        for past, present in g.state.items():
            placing.place(past, present, self.update and self.served)
        return placing.graph()


class _Placing:
    """The graph, and which launches must run before which."""

    def __init__(self, g: Graph) -> None:
        self.g, self.roots = g, roots(g)
        self.nodes, self.outputs = list(g.nodes), dict(g.outputs)
        self.types = g.types()
        self.maker = {v: n for n in g.nodes if n.group for v in n.outputs}
        self.followers: dict[str, set[str]] = {}
        self.readers: dict[str, set[str]] = {}
        self.taken = set[str]()
        for n in g.nodes:
            self._know(n)

    def _know(self, n: Node) -> None:
        """Note what a launch's node reads."""
        if not n.group:
            return
        self.followers.setdefault(n.group, set())
        for v in filter(None, n.inputs):
            root = self.roots[v]
            self.readers.setdefault(root, set()).add(n.group)
            if root in self.maker and self.maker[root].group != n.group:
                self.followers[self.maker[root].group].add(n.group)

    def graph(self) -> Graph:
        """The result."""
        return self.g.with_(nodes=tuple(self.nodes), outputs=self.outputs)

    def stored(self, name: str) -> None:
        """An output gets a launch that makes it if there is none: a new value, and an old one that will be overwritten."""
        root = self.roots[self.outputs[name]]
        changes = root in self.g.state and self.roots[self.outputs[self.g.state[root]]] != root
        new = name in self.g.state.values() and self.g.state.get(root) != name
        if root not in self.maker and (changes or new):
            self._copy(name, "store")

    def _copy(self, present: str, why: str) -> str:
        """A launch that copies an output's value; the copy takes its place."""
        v = self.outputs[present]
        name = _fresh(f"{v}.{why}", self.types)
        group = _fresh(f"{why}_{present}", self.followers)
        n = Node("Identity", (v,), (name,), (self.types[v],), loc=f"{why} {present}", group=group)
        self.nodes.append(n)
        self.types[name], self.roots[name], self.maker[name] = self.types[v], name, n
        self.outputs[present] = name
        self._know(n)
        return name

    def place(self, past: str, present: str, update: bool) -> None:
        """Have the output made where the input is."""
        made = self.roots[self.outputs[present]]
        if made == past:
            return
        n, readers = self.maker[made], self.readers.get(past, set())
        own = n.group in readers
        if (
            made in self.taken
            or self._behind(n.group) & readers
            or (own and not self._updates(n, past, update))
        ):
            n = self.maker[self._copy(present, "keep")]
        elif own:
            self.nodes[self.nodes.index(n)] = n.with_(place=UPDATE)
        self.taken.add(n.outputs[0])
        for r in readers - {n.group}:
            self.followers[r].add(n.group)

    def _behind(self, group: str) -> set[str]:
        """The launches that can run only after one."""
        found, todo = set[str](), [group]
        while todo:
            new = self.followers[todo.pop()] - found
            found |= new
            todo += new
        return found

    def _updates(self, n: Node, past: str, allowed: bool) -> bool:
        """Whether a node, alone in its launch, writes a part of `past` and leaves the rest as it is."""
        return (
            allowed
            and n.op in OPS
            and not n.place
            and sum(m.group == n.group for m in self.nodes) == 1
            and [self.roots[v] == past for v in n.inputs] == [True] + [False] * (len(n.inputs) - 1)
        )


def _fresh(stem: str, taken: Iterable[str]) -> str:
    """A name that nothing has."""
    name, i = stem, 1
    while name in taken:
        i += 1
        name = f"{stem}.{i}"
    return name
