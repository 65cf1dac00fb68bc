"""Weights that are already sparse say so: their types get the encoding that their zeros fit.

    const %w: f16[768,768] = #…      ──►      const %w: f16[768,768] tw{tile=128} = #…

Zeros are what pruning left, here or in somebody's training. Kernels that skip them are offered by the types; whether one is taken is
the scheduler's choice, and results are the same. Encodings that are there already stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import Graph
from ..sparsity.recognise import recognise
from ..sparsity.view import views
from .base import Pass


@dataclass(frozen=True)
class Sparsity(Pass):
    """Name the zeros of weights."""

    name = "sparsity"

    def run(self, g: Graph) -> Graph:
        """Look at the constants that products have as weights."""
        users, found = g.users(), dict(g.encodings)
        for name, w in g.constants.items():
            if name in found or not w.size or not 2 <= w.ndim <= 4 or w.dtype.kind not in "fV":
                continue
            looks = views(name, w.ndim, users.get(name, ()))
            if len(looks) == 1 and (encoding := recognise(looks[0].matrix(w))):
                found[name] = encoding
        return g.with_(encodings=found)
