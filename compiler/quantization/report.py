"""What quantization costs each layer, as a table: signal to noise of its weights and of its input, in dB.

    layer       weights     dB   activation     dB        range
    conv1            i8   41.2           u8   38.9   -2.1…2.6
    conv2            i4   19.8           u4   20.5    0.0…5.9

The first is of the weights as they are; the second is estimated from the histogram of what was observed, and `-` without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..ir import Array, Graph, Node, compute
from .layers import decibels, products
from .ranges import Ranges
from .statistics import Statistics


@dataclass(frozen=True)
class Row:
    """A layer. `activation` is "" where its input is not rounded; figures are None where they are not known."""

    name: str
    weights: str
    weights_db: float
    activation: str
    activation_db: float | None
    range: tuple[float, float] | None
    border: bool = False


def layers(before: Graph, after: Graph, ranges: Ranges | None = None) -> Iterator[Row]:
    """Rows of the products of a float network that `after` computes on integers."""
    makers = after.producers()
    by_result = {n.outputs[0]: n for n in after.nodes} | {
        n.loc: n for n in after.nodes if n.loc and n.op in ("Conv", "MatMul", "Gemm")
    }
    for p in products(before):
        n = by_result.get(p.node.loc) or by_result.get(p.node.outputs[0])
        w = makers.get(n.inputs[1]) if n is not None and len(n.inputs) > 1 else None
        if n is None or w is None or w.op != "DequantizeLinear":
            continue
        env = {v: after.constants.get(v) for v in w.inputs}
        (real,) = compute(w, env)
        fmt = w.inputs[0].rpartition(".")[2]
        x = makers.get(n.inputs[0])
        q = makers.get(x.inputs[0]) if x is not None and x.op == "DequantizeLinear" else None
        seen = (
            ranges[p.node.inputs[0]] if ranges is not None and p.node.inputs[0] in ranges else None
        )
        yield Row(
            p.name,
            fmt,
            decibels(p.weights, real),
            *_activation(after, q, seen),
            border=q is not None and len(q.inputs) > 3,
        )


def _activation(
    g: Graph, q: Node | None, seen: Statistics | None
) -> tuple[str, float | None, tuple[float, float] | None]:
    """(format, dB, range) of a rounded input."""
    if q is None or q.op != "QuantizeLinear":
        return "", None, None
    fmt = str(q.attrs.get("format") or q.attr("to"))
    if seen is None:
        return fmt, None, None
    scale = float(g.constants[q.inputs[1]].reshape(-1)[0])
    zero = (
        float(g.constants[q.inputs[2]].reshape(-1)[0]) if len(q.inputs) > 2 and q.inputs[2] else 0.0
    )
    env = {q.inputs[0]: seen.centres.astype(np.float32)} | {
        v: g.constants.get(v) for v in q.inputs[1:3]
    }
    (codes,) = compute(q.with_(inputs=q.inputs[:3]), env)
    return fmt, _weighed(seen, (codes.astype(np.float64) - zero) * scale), (seen.low, seen.high)


def _weighed(s: Statistics, rounded: Array) -> float:
    root = np.sqrt(s.counts)
    return decibels(s.centres * root, rounded * root)


def report(before: Graph, after: Graph, ranges: Ranges | None = None) -> str:
    """The table."""
    rows = list(layers(before, after, ranges))
    width = max([len(r.name) for r in rows] + [5])
    lines = [f"{'layer':<{width}}  weights     dB   activation     dB   range"]
    for r in rows:
        db = "-" if r.activation_db is None else f"{r.activation_db:.1f}"
        span = "-" if r.range is None else f"{r.range[0]:.3g}…{r.range[1]:.3g}"
        kind = (r.activation or "float") + (" border" if r.border else "")
        lines.append(
            f"{r.name:<{width}}  {r.weights:>7} {r.weights_db:6.1f}   {kind:>10} {db:>6}   {span}"
        )
    return "\n".join(lines) + "\n"
