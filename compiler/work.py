"""Useful work of a node: its multiply-accumulates, from types alone. Padding, tiles and zeros do not count."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from .codegen.generator import Group
from .ir import Node, Type


def node_macs(node: Node, types: Mapping[str, Type]) -> int:
    """Multiply-accumulates of a convolution or a matrix product; 0 for anything else."""
    count = _COUNTS.get(node.op)
    return count(node, *(types[v] for v in node.inputs[:2])) if count else 0


def group_macs(group: Group) -> int:
    """Multiply-accumulates of all its nodes."""
    types = group.graph().types()
    return sum(node_macs(n, types) for n in group.nodes)


def _conv(node: Node, x: Type, w: Type) -> int:
    """N·OH·OW·O outputs, each over a filter's taps and channels; filters are OIHW, or HWIO in layout NHWC."""
    filters = w.shape[-1 if node.attrs.get("layout") == "NHWC" else 0]
    return node.types[0].count * (w.count // max(filters, 1))


def _conv_transpose(node: Node, x: Type, w: Type) -> int:
    """Every input element meets a filter's taps and output channels; filters are IOHW."""
    return x.count * prod(w.shape[1:])


def _matmul(node: Node, a: Type, b: Type) -> int:
    """Every output element over K, the dimension of `a` that the result does not have."""
    transposed = bool(node.attrs.get("trans_a", node.attrs.get("transA", 0)))
    return node.types[0].count * a.shape[-2 if transposed and a.rank > 1 else -1]


_COUNTS = {"Conv": _conv, "ConvTranspose": _conv_transpose, "MatMul": _matmul, "Gemm": _matmul}
