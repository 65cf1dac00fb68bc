"""What is known where: values of expressions, in scopes, one for each region of code that may run less often than what follows it.

What involves no load is computed for all lanes, guard or not, and so belongs to the innermost region; a load under a guard belongs
to its guard.

There are seven predicates. The first attempt at a kernel keeps booleans there; if they do not suffice, a second one is `frugal` and keeps
them in registers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from knapper.isa.modifiers import Logic

from ..builder import VReg
from .expr import EVERYWHERE, Expr, Pool
from .values import Emitter, Value

KEPT_PREDICATES = 3
"""Predicates that are remembered for another use: there are seven, and some are needed to compute with."""


class Scopes(ABC):
    """An emitter, expressions, and what is known of them."""

    def __init__(self, emitter: Emitter, frugal: bool = False) -> None:
        self.e, self.frugal = emitter, frugal
        self.pool = Pool()
        self.leaves: dict[Expr, Value] = {}
        """Variables: what they are at the moment."""
        self.scopes: list[dict[Expr, Value]] = [{}]
        self.guarded = [False]
        """For each scope, whether it is only a guard."""
        self.guards: list[Value] = []
        self.predicates: list[Expr] = []
        self.neighbours: dict[Expr, tuple[Expr, ...]] = {}
        """Load in the loop that is being unrolled → those of all iterations, which one wide access can do."""

    def open(self, guard: Value | None = None) -> None:
        """Begin a region; with a guard, one in which loads and stores are predicated."""
        self.scopes.append({})
        self.guarded.append(guard is not None)
        if guard is not None:
            both = self.e.logic(Logic.AND, self.condition, guard)
            self.guards.append(self.put_away(both))

    def close(self) -> None:
        """End the innermost region."""
        self.scopes.pop()
        if self.guarded.pop():
            self.guards.pop()

    @property
    def condition(self) -> Value:
        """Where loads and stores take place."""
        return self.taken_out(self.guards[-1]) if self.guards else Value("bool", 1)

    @property
    def guard(self) -> Any:
        """The same as a guard."""
        return self.e.predicate(self.condition)

    def put_away(self, v: Value) -> Value:
        """A boolean that will be wanted later: where predicates are scarce, as 0 or 1 in a register."""
        return self.e.convert(v, "u32") if self.frugal and not v.is_known else v

    def taken_out(self, v: Value) -> Value:
        """A boolean that was put away."""
        return self.e.convert(v, "bool") if v.dtype == "u32" else v

    def is_held(self, x: Expr) -> bool:
        """Whether something is known of an expression."""
        return x in self.leaves or any(x in scope for scope in self.scopes)

    def known(self, x: Expr) -> Value | None:
        """What is known of an expression."""
        found = self.leaves.get(x)
        if found is None:
            found = next((s[x] for s in reversed(self.scopes) if x in s), None)
        return self.taken_out(found) if found is not None and x.dtype == "bool" else found

    def keep(self, x: Expr, v: Value) -> Value:
        """Remember a value in the innermost region in which it holds."""
        i = len(self.scopes) - 1
        while self.guarded[i] and x.depth < EVERYWHERE:
            i -= 1
        self.scopes[i][x] = self.put_away(v) if x.dtype == "bool" else v
        if x.dtype == "bool" and not v.is_known and not self.frugal:
            self.predicates.append(x)
            if len(self.predicates) > KEPT_PREDICATES:
                old = self.predicates.pop(0)
                for scope in self.scopes:
                    scope.pop(old, None)
        return v

    @abstractmethod
    def value(self, x: Expr, into: VReg | None = None) -> Value:
        """The value of an expression; `into` is where a result that is computed now should go, if that costs nothing."""

    @abstractmethod
    def _common(self, x: Expr, into: VReg | None) -> Value:
        """Operations of every type."""
