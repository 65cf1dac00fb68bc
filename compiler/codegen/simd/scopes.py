"""What is known where: values of expressions, in scopes, one for each region of code that may run less often than what follows it.

What involves no load is computed for all lanes, guard or not, and so belongs to the innermost region; a load under a guard belongs
to its guard.
"""

from __future__ import annotations

from typing import Any

from knapper.isa.modifiers import Logic

from ..builder import VReg
from .expr import EVERYWHERE, Expr, Pool
from .values import Emitter, Value

KEPT_PREDICATES = 3
"""Predicates that are remembered for another use: there are seven, and some are needed to compute with."""


class Scopes:
    """An emitter, expressions, and what is known of them."""

    def __init__(self, emitter: Emitter) -> None:
        self.e = emitter
        self.pool = Pool()
        self.leaves: dict[Expr, Value] = {}
        """Variables: what they are at the moment."""
        self.scopes: list[dict[Expr, Value]] = [{}]
        self.guarded = [False]
        """For each scope, whether it is only a guard."""
        self.guards: list[Value] = []
        self.predicates: list[Expr] = []
        self.packs: dict[Expr, tuple[Expr, ...]] = {}
        """Lane of a vector → all its lanes, of operations that are better done together."""

    def open(self, guard: Value | None = None) -> None:
        """Begin a region; with a guard, one in which loads and stores are predicated."""
        self.scopes.append({})
        self.guarded.append(guard is not None)
        if guard is not None:
            self.guards.append(
                self.e.logic(Logic.AND, self.guards[-1], guard) if self.guards else guard
            )

    def close(self) -> None:
        """End the innermost region."""
        self.scopes.pop()
        if self.guarded.pop():
            self.guards.pop()

    @property
    def guard(self) -> Any:
        """The guard of loads and stores."""
        return self.e.predicate(self.guards[-1] if self.guards else Value("bool", 1))

    def _known(self, x: Expr) -> Value | None:
        if x in self.leaves:
            return self.leaves[x]
        return next((s[x] for s in reversed(self.scopes) if x in s), None)

    def keep(self, x: Expr, v: Value) -> Value:
        """Remember a value in the innermost region in which it holds."""
        i = len(self.scopes) - 1
        while self.guarded[i] and x.depth < EVERYWHERE:
            i -= 1
        self.scopes[i][x] = v
        if x.dtype == "bool" and not v.is_known:
            self.predicates.append(x)
            if len(self.predicates) > KEPT_PREDICATES:
                old = self.predicates.pop(0)
                for scope in self.scopes:
                    scope.pop(old, None)
        return v

    def value(self, x: Expr, into: VReg | None = None) -> Value:
        """The value of an expression; `into` is where a result that is computed now should go, if that costs nothing."""
        raise NotImplementedError

    def _common(self, x: Expr, into: VReg | None) -> Value:
        """Operations of every type."""
        raise NotImplementedError
