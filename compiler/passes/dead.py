"""Dead code: what no output needs goes. Network inputs stay, they are the signature."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import Graph
from ..rewrite import prune
from .base import Pass


@dataclass(frozen=True)
class Dead(Pass):
    """Remove nodes and constants that no output needs."""

    name = "dead"

    def run(self, g: Graph) -> Graph:
        """One walk backwards."""
        return prune(g)
