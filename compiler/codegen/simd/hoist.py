"""Loop-invariant code: before a loop is written, what its body computes without its counter is computed.

The body is read ahead with stand-ins for the counters of inner loops. Of each expression the largest parts that do not depend on the loop
are evaluated, and of sums the invariant terms; when the body is written, it finds them known.
"""

from __future__ import annotations

import contextlib

from .expr import EVERYWHERE, Expr
from .parse import Json, NeedsMemory
from .tree import nodes
from .values import size
from .variables import Variables

LEAVES = frozenset({"int", "float", "axis", "counter", "value"})


class Hoisting(Variables):
    """Variables, and a look ahead into loops."""

    def counter(self, bounds: tuple[int, int], *, uniform: bool, depth: int) -> Expr:
        """An expression for a loop's counter."""
        self.fresh += 1
        return self.pool.make(
            "counter", "i32", data=self.fresh, range=bounds, uniform=uniform, depth=depth
        )

    def hoist(self, variable: int, counter: Expr, body: Json) -> None:
        """Evaluate what the body of the loop that is about to begin has in common between iterations."""
        saved = dict(self.p.variables)
        self.p.variables[variable] = [counter]
        self._ahead(body)
        self.p.variables = saved

    def _ahead(self, s: Json) -> None:
        match s[0]:
            case "seq":
                for x in s[1:]:
                    self._ahead(x)
            case "for":
                bounds = (0, s[3][2] - 1) if s[3][0] == "int" and s[2][0] == "int" else None
                inner = self.counter(bounds or (0, 1 << 30), uniform=True, depth=self.depth + 1)
                self.p.variables[s[1]] = [inner]
                self._ahead(s[4])
            case "let":
                self._read(s[2])
                self.p.variables.pop(s[1], None)
                if self.is_known(s[2]) and not any(x[0] == "load" for x in nodes(s[2])):
                    self.p.variables[s[1]] = self.p.expr(s[2])
            case "if":
                self._read(s[1])
                self._ahead(s[2])
                self._ahead(s[3])
            case "store":
                b = self.buffers[s[1]]
                self._read(s[3])
                if b.scope != "local" and self.is_known(s[2]):
                    for place in self.p.elements(b, s[2]):
                        self._address_ahead(b.number, place)

    def is_known(self, j: Json) -> bool:
        """Whether all variables of an expression are."""
        return all(x[0] != "var" or x[2] in self.p.variables for x in nodes(j)) and not any(
            x[0] == "bind" for x in nodes(j)
        )

    def _read(self, j: Json) -> None:
        if self.is_known(j):
            with contextlib.suppress(NeedsMemory):  # an inner loop's counter may become a constant
                for x in self.p.expr(j):
                    self._invariant(x)

    def _invariant(self, x: Expr) -> None:
        """Evaluate what of x the loop does not change. Booleans are left: predicates are few."""
        if x.op in LEAVES:
            return
        if x.depth < self.depth and x.dtype != "bool":
            self.value(x)
            return
        if x.op == "sum":
            self._invariant_terms(x)
        if (
            x.op == "load"
            and isinstance(x.data[0], int)
            and self.buffers[x.data[0]].scope != "local"
        ):
            self._address_ahead(x.data[0], x.args[0])
            return
        for a in x.args:
            self._invariant(a)

    def _invariant_terms(self, x: Expr) -> None:
        for uniform in (False, True):
            still = {
                a: c for a, c in x.terms.items() if a.depth < self.depth and a.uniform == uniform
            }
            if still:
                self.value(self.pool.sum(x.dtype, 0, still))

    def _address_ahead(self, b: int, place: Expr) -> None:
        scaled = self.pool.scale(self.pool.narrow(place), size(self.buffers[b].dtype))
        if scaled.depth < EVERYWHERE:
            self._invariant(self.pool.sum("i32", 0, scaled.terms))
