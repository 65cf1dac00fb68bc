"""What the lowered matrices of a network's convolutions take: a closed form from types, and the buffers of a plan.

    net        images [MiB]   matrices [MiB]   ratio          f16, batch 1: an image counts once for each Conv that reads it
    VGG-16            17.3          155.9       9.00          (9 taps, stride 1: every pixel is stored nine times)

A Conv by one tap, one pixel apart and unpadded, reads its image as the matrix: it counts the same on both sides. Convs over three axes
are counted before the pass `products`, which makes Convs by one tap of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from .ir import Graph, Node, Type
from .ops.conv import weight_parts
from .passes.im2col import is_matrix
from .plan import Plan


@dataclass(frozen=True)
class Footprint:
    """Bytes of the images that convolutions read, and of their lowered matrices."""

    image: int = 0
    matrix: int = 0

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(self.image + other.image, self.matrix + other.matrix)

    @property
    def ratio(self) -> float:
        """How many times larger the matrices are; 1 of nothing."""
        return self.matrix / self.image if self.image else 1.0


def closed_form(graph: Graph) -> Footprint:
    """Of every Conv, from types alone: N·H·W·C and N·OH·OW·taps·C elements of the image's type."""
    types = graph.types()
    convs = (n for n in graph.nodes if n.op == "Conv")
    return _sum(_conv(n, types[n.inputs[0]], types[n.inputs[1]]) for n in convs)


def planned(plan: Plan) -> Footprint:
    """Of a plan with explicit matrices: bytes of the buffers that each Im2col reads and writes, and of what Convs by one tap read.

    Convs that walk their image have no matrix: their image counts, and nothing beside it.
    """
    made = {n.outputs[0] for n in plan.graph.nodes if n.op == "Im2col"}
    return _sum(_buffers(plan, n, made) for n in plan.graph.nodes)


def _sum(parts: Iterable[Footprint]) -> Footprint:
    return sum(parts, Footprint())


def _conv(n: Node, x: Type, weights: Type) -> Footprint:
    kernel, per_group, o = weight_parts(weights, n.attr("layout"))
    pixels = n.types[0].count // max(o, 1)
    columns = prod(kernel) * per_group * n.attr("group")
    return Footprint(x.bytes, pixels * columns * x.bytes // max(x.count, 1))


def _buffers(plan: Plan, n: Node, made: set[str]) -> Footprint:
    if n.op == "Im2col":
        return Footprint(_bytes(plan, n.inputs[0]), _bytes(plan, n.outputs[0]))
    if n.op != "Conv" or n.inputs[0] in made:
        return Footprint()
    image = _bytes(plan, n.inputs[0])
    weights = plan.graph.types()[n.inputs[1]]
    return Footprint(image, image if is_matrix(n, weights) else 0)


def _bytes(plan: Plan, value: str) -> int:
    buffer = plan.buffer(value)
    return buffer.bytes if buffer else 0
