"""What a node reduces, told by its types alone, and how many elements a thread takes one after the other.

GlobalAveragePool [16,28,28,128], NHWC     784 elements a result, which lie apart: 16 threads share them, 49 each
Softmax [12,128]                           128 elements a result, side by side: a warp shares them, 4 each
MaxPool 3×3                                9 elements a result, one thread
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ...ir import OPS, Node, Type
from ...launches import OFTEN, ONCE, WINDOWS
from ...ops.shapes import spatial_axes
from ...tvm.schedule import steps

TO_THE_END = frozenset({"LayerNormalization", "RMSNormalization"})
"""Ops that reduce from `axis` on."""


def serial(n: Node, types: Mapping[str, Type]) -> int:
    """Elements that a thread adds up one after the other; 1 if the node reduces nothing."""
    x = types[n.inputs[0]] if n.inputs and n.inputs[0] else n.types[0]
    if "kernel_shape" in OPS[n.op].attrs and n.op in WINDOWS:
        return prod(n.attr("kernel_shape"))
    if n.op == "GroupNormalization":
        length = x.count // max(x.shape[0] * n.attr("num_groups"), 1)
        return steps(length, side_by_side=n.attr("layout") == "NCHW")
    axes = _axes(n, x)
    long = [i for i, size in enumerate(x.shape) if size > 1]
    return steps(prod(x.shape[i] for i in axes), side_by_side=not long or long[-1] in axes)


def _axes(n: Node, x: Type) -> tuple[int, ...]:
    attrs = OPS[n.op].attrs
    if n.op in ONCE | OFTEN and "axes" in attrs:
        named = n.attr("axes") or (() if n.attr("noop_with_empty_axes") else range(x.rank))
        return tuple(a % x.rank for a in named)
    if n.op in ONCE or n.op == "InstanceNormalization":
        return tuple(spatial_axes(n.attr("layout"), x.rank))
    if n.op in TO_THE_END:
        return tuple(range(n.attr("axis") % x.rank, x.rank))
    return (
        (n.attr("axis") % x.rank,) if n.op in ("LogSoftmax", "LpNormalization", "Softmax") else ()
    )
