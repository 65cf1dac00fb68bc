"""Local variables: values without a place until a loop or a branch writes one, which then gets a register of its own, its home.

    straight code     acc = acc + x        a new value; the old one stays what it was
    in a loop         home = home + x      one register, which every iteration changes

An expression that stands for a value never changes; one that stands for a home is made anew whenever the home is written.
"""

from __future__ import annotations

from typing import Any

from ..builder import VReg
from .expr import EVERYWHERE, Expr, walk
from .memory import Memory
from .parse import Buffer, Json, Parser
from .tree import buffers
from .values import Emitter, Value, words

Key = tuple[int, int]
"""(buffer, element)."""


class Variables(Memory):
    """A memory with local variables in registers."""

    def __init__(
        self, emitter: Emitter, rows: list[Buffer], in_memory: set[int], frugal: bool
    ) -> None:
        super().__init__(emitter, rows, frugal)
        where = f"kernel {emitter.name}"
        self.p = Parser(self.pool, rows, where, in_memory=in_memory)
        self.homes: dict[Key, VReg] = {}
        self.depth = 0
        """Loops around the code that is being written."""
        self.fresh = 0

    def settled(self, x: Expr) -> Expr:
        """An expression that stands for the value that x has now."""
        v = self.unaliased(self.value(x))
        if x.dtype == "bool":
            v = self.put_away(v)
        return x if x.is_constant else self._leaf(x.dtype, v, self.depth, x)

    def _leaf(self, dtype: str, v: Value, depth: int, like: Expr | None = None) -> Expr:
        """An expression that stands for what is in a register."""
        self.fresh += 1
        bounds = None if like is None else like.range
        leaf = self.pool.make(
            "value", dtype, data=self.fresh, range=bounds, uniform=False, depth=depth
        )
        self.leaves[leaf] = v
        return leaf

    def unaliased(self, v: Value) -> Value:
        """A copy, if the value sits in the home of a variable, which will change."""
        if not any(v.at is home for home in self.homes.values()):
            return v
        d = self.e.reg(words(v.dtype))
        self.e.move(d, v)
        return Value(v.dtype, d)

    def assign_all(self, keys: list[Key], dtype: str, values: list[Expr]) -> None:
        """Give variables values that may be made of what the variables have before."""
        self.together(values)
        homes = {self.p.registers[k]: k for k in keys if k in self.homes and len(keys) > 1}
        crossed = any(
            homes.get(y, key) != key for key, x in zip(keys, values, strict=True) for y in walk(x)
        )
        if crossed:
            values = [self.settled(x) for x in values]
        for key, x in zip(keys, values, strict=True):
            self.assign(key, dtype, x)

    def assign(self, key: Key, dtype: str, x: Expr) -> None:
        """Give a variable a value; under a guard, where it holds."""
        if key in self.homes:
            self._assign_home(key, dtype, x)
        elif self.guards:
            old = self.value(self.p.registers.get(key, self.p.zero(dtype)))
            v = self.e.select(self.condition, self.value(x), old)
            self.p.registers[key] = self._leaf(dtype, self.unaliased(v), self.depth)
        else:
            self.p.registers[key] = self.settled(x)

    def _assign_home(self, key: Key, dtype: str, x: Expr) -> None:
        """Write a variable's register. Booleans have no register of their own: they are kept as 0 and 1."""
        home = self.homes[key]
        if dtype == "bool" or self.guards:
            stored = "u32" if dtype == "bool" else dtype
            self.e.move(home, self.e.convert(self.value(x), stored), guard=self.guard)
        else:
            v = self.value(x, into=home)
            if v.at is not home:
                self.e.move(home, v)
            else:  # the home will change, so the expression must not be found there later
                for scope in self.scopes:
                    scope.pop(x, None)
        self._refresh(key, dtype)

    def _refresh(self, key: Key, dtype: str) -> None:
        """A new name for what a home holds now."""
        stored = "u32" if dtype == "bool" else dtype
        leaf: Any = self._leaf(stored, Value(stored, self.homes[key]), EVERYWHERE)
        if dtype == "bool":
            leaf = self.pool.make(
                "ne", "bool", leaf, self.pool.integer(0, stored), uniform=False, depth=EVERYWHERE
            )
        self.p.registers[key] = leaf

    def settle_homes(self, body: Json) -> None:
        """Before a region that may run more or less than once: its variables get homes, its stores make old loads stale."""
        for number in dict.fromkeys(buffers(body, "store")):
            b = self.buffers[number]
            if b.scope != "local" or number in self.p.in_memory:
                continue
            for i in range(b.elements):
                if (number, i) not in self.homes:
                    self._make_home((number, i), b.dtype)
        self.touched(buffers(body, "store"))

    def _make_home(self, key: Key, dtype: str) -> None:
        old = self.value(self.p.registers.get(key, self.p.zero(dtype)))
        home = self.e.reg(words(dtype))
        self.e.move(home, self.e.convert(old, "u32") if dtype == "bool" else old)
        self.homes[key] = home
        self._refresh(key, dtype)

    def touched(self, numbers: Any) -> None:
        """What was loaded from these buffers may have changed."""
        for b in numbers:
            self.p.versions[b] = self.p.versions.get(b, 0) + 1
