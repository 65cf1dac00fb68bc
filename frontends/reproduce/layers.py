"""Single convolutions as workloads, and what the instructions of their launches counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import Attr, Graph, Node, Type, infer
from knapper.isa.core import Instr
from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.runtime.stats import LaunchStats

from .workloads import Tile

SEED = 0
"""Of weights."""


@dataclass(frozen=True)
class Layer:
    """A square convolution over x[batch, image, image, channels] in fp16, its weights known when compiling; rounded and stored.

    `explicit`: by a lowered matrix in memory. `options` is what its kernel must have, as pairs; the cheapest that has it is taken.
    """

    batch: int
    image: int
    channels: int
    outputs: int
    taps: int = 1
    stride: int = 1
    pad: int = 0
    explicit: bool = False
    options: Tile = ()

    @property
    def side(self) -> int:
        """Of the result."""
        return (self.image + 2 * self.pad - self.taps) // self.stride + 1

    @property
    def rows(self) -> int:
        """Of the product: pixels of the result."""
        return self.batch * self.side**2

    @property
    def k(self) -> int:
        """Of the product."""
        return self.taps**2 * self.channels

    def program(self, machine: Machine) -> Program:
        mode = "explicit" if self.explicit else "implicit"
        forced = {"*": dict(self.options)} if self.options else {}
        return compile_graph(self.graph(), machine, f"im2col{{mode={mode}}},fuse", forced=forced)

    def graph(self) -> Graph:
        """The product and its rounding."""
        drawn = np.random.default_rng(SEED).standard_normal(
            (self.taps, self.taps, self.channels, self.outputs)
        )
        weights = drawn.astype(np.float16)
        attrs: dict[str, Attr] = {
            "layout": "NHWC", "out": "f32", "pads": (self.pad,) * 4, "strides": (self.stride,) * 2, "dilations": (1, 1),
        }  # fmt: skip
        x = Type("f16", (self.batch, self.image, self.image, self.channels))
        y = infer("Conv", [x, Type.of(weights)], attrs)
        z = infer("Cast", [*y], {"to": "f16"})
        nodes = (
            Node("Conv", ("x", "w"), ("y",), y, attrs),
            Node("Cast", ("y",), ("z",), z, {"to": "f16"}),
        )
        return Graph("layer", {"x": x}, {"z": "z"}, nodes, {"w": weights}).verify()


def total(launches: Iterable[LaunchStats], instr: type[Instr], column: str) -> int:
    """A counter of one instruction, over launches."""
    return sum(
        int(s.counts.instructions[column][s.facts.opcodes == instr.opcode].sum()) for s in launches
    )
