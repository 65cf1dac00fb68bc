"""Where values go wrong first, as the search found it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from knapper.compiler.ir import Array, Graph

LEVELS = ("import", "pass", "plan", "memory", "program", "emulator", "none")
"""In the order in which a network goes through them; none: every level is within what it may be."""


@dataclass(frozen=True)
class Cut:
    """Where a reproducer begins: a graph, all its values, which of them is wrong, and the passes that it still has to go through."""

    graph: Graph
    env: Mapping[str, Any]
    value: str
    pipeline: str | None = None
    """None: it goes on as it is."""
    expected: Array | None = None
    """What the value should be, where the graph's own reference is what is wrong."""
    group: str = ""
    """The launch that it is of."""


@dataclass(frozen=True)
class Finding:
    """The first level, pass, node and instruction at which values go wrong."""

    level: str
    text: str
    """A sentence."""
    node: str = ""
    op: str = ""
    step: str = ""
    """The pass, with its options."""
    launch: str = ""
    kernel: str = ""
    pc: int | None = None
    instruction: str = ""
    hint: str = ""
    cut: Cut | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For --json: what is known."""
        names = ("level", "text", "step", "node", "op", "launch", "kernel", "pc", "instruction", "hint")  # fmt: skip
        found = {n: getattr(self, n) for n in names}
        shown = {"pass" if n == "step" else n: v for n, v in found.items()}
        return {n: v for n, v in shown.items() if v not in ("", None)}

    def same(self, other: Finding | None) -> bool:
        """Whether another finding is of the same fault: the same level, the same pass, the same kind of instruction."""
        if other is None or (self.level, self.step) != (other.level, other.step):
            return False
        return self.mnemonic == other.mnemonic

    @property
    def mnemonic(self) -> str:
        """What the instruction is called, without its guard and operands."""
        words = [w for w in self.instruction.split(" ") if not w.startswith("@")]
        return words[0] if words else ""
