"""What a pass is: a frozen dataclass from graph to graph. Its fields are its options.

    @dataclass(frozen=True)
    class Fold(Pass):
        '''Compute what depends on constants only.'''

        name = "fold"
        limit: int = 1 << 22

        def run(self, g: Graph) -> Graph: ...

A subclass is registered by its name; text such as `fold{limit=1024}` makes an instance
(`compiler/pipeline.py`). A pass never changes its argument and returns a graph that verifies.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar

from knapper.isa.machine import Machine

from ..ir import Graph
from ..text import show_attrs

PASSES: dict[str, type[Pass]] = {}


@dataclass(frozen=True)
class Pass:
    """A named function from graph to graph, with options as fields."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if cls.name in PASSES:
            raise ValueError(f"pass {cls.name!r} is declared twice")
        PASSES[cls.name] = cls

    def run(self, g: Graph) -> Graph:
        """The rewritten graph."""
        raise NotImplementedError(type(self))

    def on(self, machine: Machine) -> Pass:
        """The pass where the graph is compiled for a machine; most passes ask nothing of it."""
        return self

    @classmethod
    def declared(cls) -> dict[str, Field[Any]]:
        """Its options by name: the fields that a text can give. One without a repr is not for texts."""
        return {f.name: f for f in fields(cls) if f.repr}

    @property
    def options(self) -> dict[str, int | float | str | bool | tuple[object, ...]]:
        """The options that differ from their defaults."""
        given = {name: getattr(self, name) for name in self.declared()}
        return {name: v for name, v in given.items() if v != self.declared()[name].default}

    def __str__(self) -> str:
        return self.name + show_attrs(self.options)
