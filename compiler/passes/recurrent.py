"""Recurrent layers, written out: RNN, GRU and LSTM become the products and elementwise ops of their steps.

    %y = LSTM %x[T,B,I], …   ──►   one MatMul of all rows of x by W, then T times: MatMul by R, gates, new h and c

The steps are the op's own definition (`ops/recurrent.py`). T steps are T sets of launches: a layer of very many steps makes a
long program, and each of its launches is small.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import Graph
from ..ops.recurrent import CELLS, operands_of, unrolled
from ..rewrite import Writer
from .base import Pass


@dataclass(frozen=True)
class Recurrent(Pass):
    """Write RNN, GRU and LSTM out, step by step."""

    name = "recurrent"

    def run(self, g: Graph) -> Graph:
        """Expand every recurrent node."""
        if not any(n.op in CELLS for n in g.nodes):
            return g
        w = Writer(g)
        for n in w.old.nodes:
            if n.op not in CELLS:
                w.visit(n)
                continue
            w.begin(n)
            operands = operands_of(n.op, [w.now(v) for v in n.inputs])
            attrs = {name: n.attr(name) for name in ("direction", *n.attrs)}
            results = unrolled(w, CELLS[n.op], operands, attrs)
            w.let(n, [*results][: len(n.outputs)])
        return w.graph()
