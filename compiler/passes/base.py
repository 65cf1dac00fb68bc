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

from dataclasses import dataclass, fields
from typing import ClassVar

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

    @property
    def options(self) -> dict[str, int | float | str | bool | tuple[object, ...]]:
        """The options that differ from their defaults."""
        every = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {name: value for name, (value, default) in every.items() if value != default}

    def __str__(self) -> str:
        return self.name + show_attrs(self.options)
