"""A weight as the matrix [K, N] of its product, and back: the shape in which every pattern is defined.

Conv    [O, C, KH, KW] or [KH, KW, C, O]     →  [KH·KW·C, O]      K in the order tap row, tap column, channel
Gemm, MatMul    [K, N], or [N, K] transposed →  [K, N]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..ir import Array, Node


@dataclass(frozen=True)
class View:
    """How a product reads its weight: axes in the order of K, then the one of N."""

    axes: tuple[int, ...]

    @staticmethod
    def of(node: Node, rank: int) -> View | None:
        """The view of the weights of `rank` axes that a node has as its second operand; None if it is no product of them."""
        if node.op == "Conv":
            return (
                View.outputs_first(rank)
                if node.attr("layout") == "NCHW"
                else View.outputs_last(rank)
            )
        if node.op in ("MatMul", "Gemm") and rank == 2:
            swapped = node.attr("trans_b" if node.op == "MatMul" else "transB")
            return View((1, 0)) if swapped else View((0, 1))
        return None

    @staticmethod
    def outputs_first(rank: int) -> View:
        """Of [N, K] and [O, C, …]."""
        return View((*range(2, rank), 1, 0))

    @staticmethod
    def outputs_last(rank: int) -> View:
        """Of [K, N] and […, C, O]."""
        return View(tuple(range(rank)))

    def matrix(self, w: Array) -> Array:
        """The weight as [K, N]; no copy where numpy needs none."""
        return w.transpose(self.axes).reshape(-1, w.shape[self.axes[-1]])

    def back(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """From [K, N] to the weight's own shape."""
        moved = matrix.reshape([shape[a] for a in self.axes])
        return moved.transpose(np.argsort(self.axes))


def views(name: str, rank: int, users: Iterable[Node]) -> list[View]:
    """The different views that the products among a constant's users have of it."""
    found = (View.of(n, rank) for n in users if len(n.inputs) > 1 and n.inputs[1] == name)
    return list(dict.fromkeys(v for v in found if v))
