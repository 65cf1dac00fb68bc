"""What moves or selects elements does so with integers, as long as all of them mean the same: Reshape, Transpose, MaxPool, Concat, Pad, Gather, …"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..ir import Node, compute
from .exact import Held
from .values import MOVERS, Values


def moved(w: Values, n: Node) -> Held | None:
    """The integers of a result whose elements are those of a held value; None: compute in float."""
    h = w.held.get(n.inputs[0]) if n.inputs else None
    if h is None or len(n.outputs) > 1:
        return None
    if n.op == "Concat":
        rest = [w.held.get(v) for v in n.inputs]
        if not all(r is not None and r.as_before(h) and _alike(w, r, h) for r in rest):
            return None
        q = w.op("Concat", *(r.q for r in rest if r), **n.attrs)
        low, high = (f(r.span[i] for r in rest if r) for i, f in enumerate((min, max)))
        return _as(w, h, q, (low, high))
    if not h.single:
        return _turned_weights(w, n, h)
    if n.op in MOVERS:
        return _as(w, h, _elements(w, n, h), h.span)
    if n.op == "MaxPool" and h.scale > 0:
        return _as(w, h, w.op("MaxPool", h.q, **n.attrs), h.span)
    zero = int(h.zero)
    if n.op == "Pad" and n.attr("mode") == "constant" and not n.attr("value"):
        if not h.span[0] <= zero <= h.span[1] and w.array(h.q) is None:
            return None
        q = w.op("Pad", h.q, *n.inputs[1:], **{**n.attrs, "value": float(zero)})
        return _as(w, h, q, (min(h.span[0], zero), max(h.span[1], zero)))
    if n.op == "Relu" and h.scale > 0:
        q = h.q if zero <= h.span[0] else w.op("Clip", h.q, min=float(zero))
        return _as(w, h, q, (max(h.span[0], zero), max(h.span[1], zero)))
    return None


def _elements(w: Values, n: Node, h: Held) -> str:
    """The integers that a node picks from those of its first operand; of constants, constants."""
    a, rest = w.array(h.q), n.inputs[1:]
    known = {v: w.old.constants.get(v) for v in rest}
    if a is not None and all(known[v] is not None for v in rest if v):
        (made,) = compute(n, {n.inputs[0]: a, "": None, **known})
        return w.constant(np.ascontiguousarray(made), n.outputs[0], "bytes")
    return w.op(n.op, h.q, *(w.need(v) if v else "" for v in rest), **n.attrs)


def _alike(w: Values, a: Held, b: Held) -> bool:
    return w.type(a.q).dtype == w.type(b.q).dtype


def _as(w: Values, h: Held, q: str, span: tuple[int, int]) -> Held:
    if w.array(q) is None:
        w.spans[q] = span
    return replace(h, q=q, span=span)


def _turned_weights(w: Values, n: Node, h: Held) -> Held | None:
    """Constants with a scale for each place of an axis, transposed."""
    a = w.array(h.q)
    if a is None or n.op not in ("Transpose", "Identity"):
        return None
    perm = tuple(n.attr("perm")) if n.op == "Transpose" else tuple(range(a.ndim))
    perm = perm or tuple(reversed(range(a.ndim)))
    q = w.constant(np.ascontiguousarray(a.transpose(perm)), h.q, "turned")
    return replace(h, q=q, axis=perm.index(h.axis))
