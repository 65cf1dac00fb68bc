"""Constant folding: what depends on constants only is computed now, by the ops' references.

Exported networks carry hundreds of shape computations (Shape, Gather, Concat, ConstantOfShape, …).
Shapes are static here, so Shape of anything is a constant, and one walk in the order of the nodes
folds whole chains. What would grow the program is left to run: a result larger than its operands
and than `limit` bytes, such as a ConstantOfShape that makes a megabyte out of two numbers.

What has no elements is a constant whatever it depends on: x[:, 0:0], which TorchScript's exporter makes of a roll by nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir import DTYPES, Array, Graph, Node, Type, compute
from ..rewrite import Writer
from .base import Pass

KEPT = "DequantizeLinear"  # integers and scales apart, for `integers` to read
SHAPE_ONLY = frozenset({"Shape", "Size", "EyeLike"})  # the content of their operand is not read


@dataclass(frozen=True)
class Fold(Pass):
    """Compute what depends on constants only, unless it is large and grows."""

    name = "fold"
    limit: int = 1 << 20

    def run(self, g: Graph) -> Graph:
        """One walk forward."""
        w = Writer(g)
        kept = set(g.outputs.values())  # a constant output is an Identity, which stores it
        for n in w.old.nodes:
            if (n.op == "Identity" and n.outputs[0] in kept) or not self._folds(n, w):
                w.visit(n)
            else:
                w.store(n, _values(n, w))
        return w.graph()

    def _folds(self, n: Node, w: Writer) -> bool:
        operands = [w.array(w.now(v)) for v in n.inputs if v]
        if n.op == KEPT:
            return False
        if not any(t.count for t in n.types):
            return True
        if n.op not in SHAPE_ONLY and any(a is None for a in operands):
            return False
        made = sum(t.bytes for t in n.types)
        return made <= max(self.limit, sum(a.nbytes for a in operands if a is not None))


def _values(n: Node, w: Writer) -> list[Array]:
    if not any(t.count for t in n.types):
        return [np.zeros(t.shape, DTYPES[t.dtype]) for t in n.types]
    env = {v: _known(w, w.now(v)) for v in n.inputs}
    results = compute(n, env)
    return [_stored(a, t) for a, t in zip(results, n.types, strict=False)]


def _known(w: Writer, v: str) -> Array | None:
    """A constant; for Shape's operand an array that has its type and takes no memory."""
    if not v or (a := w.array(v)) is not None:
        return a if v else None
    t = w.type(v)
    return np.broadcast_to(np.zeros((), DTYPES[t.dtype]), t.shape)


def _stored(a: Array, t: Type) -> Array:
    """In the order of memory that everything after expects; a scalar stays a scalar."""
    return np.asarray(a, DTYPES[t.dtype], order="C")
