"""Which kernel generator a launch gets, where that is not to be left to the cost model.

    place{kind=ffma,nodes="conv1|fc*"}      these launches, or an error that says why not
    place{kind=systolic}                    every launch that the kind serves

A launch is meant by its own name, or by the name or operator of a node in it; not by the name of a node that it only prepares,
such as the convolution whose layout it makes. The pass only notes the wish, in the text too;
the scheduler knows the machine, and either follows it or says which nodes the kind does not serve, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from knapper.isa.errors import PassError, raise_all

from ..ir import Graph
from ..launches import INJECTIVE, MOVES, VIEWS
from .base import Pass

PREPARE = INJECTIVE | MOVES | VIEWS | {"Cast"}
"""What passes put in front of a node, under its name."""


@dataclass(frozen=True)
class Place(Pass):
    """Give launches a kind of kernel: those of `nodes` (names, operators, patterns with *, between |), or all that it serves."""

    name = "place"
    kind: str = ""
    nodes: str = ""

    def run(self, g: Graph) -> Graph:
        """Note the kind at every node of the launches."""
        if not self.kind:
            raise PassError("E302", "place needs a kind", hint="place{kind=ffma,nodes=conv1|fc}")
        if not any(n.group for n in g.nodes):
            raise PassError("E304", "there are no launches yet", hint="put fuse before place")
        names = _names(g)
        patterns = [p for p in self.nodes.split("|") if p]
        chosen = [{group for group in names if _meant(names[group], p)} for p in patterns]
        raise_all(
            _unknown(names, p) for p, found in zip(patterns, chosen, strict=True) if not found
        )
        launches, wish = (
            (set().union(*chosen), self.kind) if patterns else ({*names}, f"{self.kind}?")
        )
        return g.with_(
            nodes=tuple(n.with_(place=wish) if n.group in launches else n for n in g.nodes)
        )


def _names(g: Graph) -> dict[str, set[str]]:
    """What each launch may be called."""
    own = {n.loc for n in g.nodes if n.op not in PREPARE}
    names: dict[str, set[str]] = {n.group: {n.group} for n in g.nodes if n.group}
    for n in g.nodes:
        if n.group:
            names[n.group] |= {n.op} if n.op in PREPARE and n.loc in own else {n.op, n.loc or n.op}
    return names


def _meant(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _unknown(names: Mapping[str, set[str]], pattern: str) -> PassError:
    known = sorted(set().union(*names.values()))
    close = get_close_matches(pattern, known, 3) or known[:8]
    problem = f"place: no launch has a node {pattern!r}"
    return PassError("E304", problem, hint=f"there are {', '.join(close)}, …")
