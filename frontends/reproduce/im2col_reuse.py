"""C7 of arXiv 2110.03901's notes: image pixels that blocks load under every tap, and those that they load once for all taps.

Both are counted by executed loads: `hmma` carries a tile's pixels into shared memory anew for each tap, `patch` the distinct ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import DTYPES, Attr, Graph
from knapper.isa.instructions import LDG_IM2COL
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

PIXELS = (8, 16)
"""The tile of the table: lines and columns of output pixels."""


@dataclass(frozen=True)
class Reuse:
    """Pixels that a convolution's blocks load."""

    naive: int
    fetched: int

    @property
    def reduction(self) -> float:
        return self.naive / self.fetched


def closed_form(stride: int, taps: int, pixels: tuple[int, int] = PIXELS) -> Reuse:
    """Of an interior tile under taps × taps: each tap reads every output's pixel; distinct are those on some tap's lines and columns."""
    lines, columns = (
        len({output * stride + tap for output in range(size) for tap in range(taps)})
        for size in pixels
    )
    return Reuse(taps**2 * pixels[0] * pixels[1], lines * columns)


def measured(graph: Graph, machine: Machine, pixels: tuple[int, int] = PIXELS) -> Reuse:
    """Of a graph of one convolution of 16-bit x[N, H, W, C] in layout NHWC, run on zeros: all of its tiles of `pixels` outputs.

    CompileError E412 where such a tile's patch does not fit.
    """
    ways: tuple[dict[str, Attr], ...] = ({"kind": "hmma"}, {"kind": "patch", "pixels": pixels})
    return Reuse(*(loads(graph, machine, way) for way in ways))


def loads(graph: Graph, machine: Machine, way: dict[str, Attr]) -> int:
    """Pixels that the kernel with these options loads: bytes that the conv unit read, by those of a pixel."""
    program = compile_graph(graph, machine, "im2col{mode=implicit},fuse", forced={"*": way})
    ((x, t),) = graph.inputs.items()
    (launch,) = Session(program).run({x: np.zeros(t.shape, DTYPES[t.dtype])}).stats.launches
    own = launch.facts.opcodes == LDG_IM2COL.opcode
    nbytes = int(launch.counts.instructions["l2_read"][own].sum())
    return nbytes // (t.bytes // t.count * t.shape[-1])
