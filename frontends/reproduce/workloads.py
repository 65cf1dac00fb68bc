"""What rows execute: networks and matrix products, compiled as a user would; loops and pointer chases are in `microbench`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from knapper.compiler.driver import Options as CompileOptions
from knapper.compiler.driver import compile_graph, finish, optimize
from knapper.compiler.footprint import closed_form
from knapper.compiler.ir import Attr, Graph, Node, Type, infer
from knapper.isa.machine import Machine
from knapper.isa.program import Program

from ..networks import build
from ..onnx import read


@dataclass(frozen=True)
class Network:
    """One of our networks with random weights, in fp16; `size` 0: as large as papers have it.

    `explicit`: convolutions by lowered matrices in memory. `forced`: what launches must have, by patterns of their names.
    """

    name: str
    batch: int = 1
    size: int = 0
    explicit: bool = False
    forced: tuple[tuple[str, Tile], ...] = ()

    def program(self, machine: Machine) -> Program:
        pipeline = "fp16,im2col{mode=explicit}" if self.explicit else None
        forced = {pattern: dict(options) for pattern, options in self.forced}
        return compile_graph(self.graph(), machine, pipeline, precision="fp16", forced=forced)

    def graph(self) -> Graph:
        """As imported."""
        return read(build(self.name, self.batch, self.size or None))

    def images(self) -> int:
        """Bytes of the images that its convolutions read, in fp16."""
        return closed_form(optimize(self.graph(), CompileOptions(precision="fp16"))).image


@dataclass(frozen=True)
class Gemm:
    """C[m, n] = A[m, k] · B[k, n], all in fp16 and none known when compiling; accumulators are fp32.

    `options` is what the kernel must have, as pairs: kind, tile, warps, …; the cheapest that has it is taken.
    """

    m: int
    n: int
    k: int
    options: Tile = ()

    def program(self, machine: Machine) -> Program:
        kind = "systolic" if "systolic" in machine.extensions else "hmma"
        forced: dict[str, Mapping[str, Attr]] = {"*": {"kind": kind, **dict(self.options)}}
        return finish(self.graph(), machine, CompileOptions(forced=forced))

    def graph(self) -> Graph:
        """One launch: product, rounding, store."""
        types = {"a": Type("f16", (self.m, self.k)), "b": Type("f16", (self.k, self.n))}
        nodes = []
        for op, operands, out, attrs in (
            ("MatMul", ("a", "b"), "y", {"out": "f32"}),
            ("Cast", ("y",), "c", {"to": "f16"}),
        ):
            types[out] = infer(op, [types[v] for v in operands], attrs)[0]
            nodes.append(Node(op, operands, (out,), (types[out],), attrs, group="gemm"))
        return Graph("gemm", {v: types[v] for v in "ab"}, {"c": "c"}, tuple(nodes), {})


def square(n: int, options: Tile = ()) -> Gemm:
    """A product of two n × n matrices."""
    return Gemm(n, n, n, options)


Tile = tuple[tuple[str, Attr], ...]
"""What a kernel must have, as pairs of an option and its value; () leaves all to the planner."""
CUTLASS: Tile = (("tile", (128, 128, 32)), ("warps", (2, 2)))
"""CUTLASS's Volta tile that its authors' users found fastest: blocks of 128×128×32, warps of 64×64×32."""
