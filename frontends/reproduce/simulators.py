"""How long the array works on a matrix product: ours beside what other simulators say, whose numbers are in `simulators.toml`.

Simulators of one array count what the array takes if its operands always come in time. So ours is `Timing.array_cycles` of a compiled and
executed kernel: every command that takes the array, as long as it takes it. What a whole launch takes beside that (loads, epilogue, the waits
in between) they do not model. The kernel's tile is the one that keeps the array busy the shortest: a fold of weights streams all of A, as
theirs do, where the accumulators have room.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from knapper.compiler.codegen.generator import MODES, Options, generators
from knapper.compiler.codegen.matrix.accumulating import Accumulating
from knapper.compiler.driver import Options as CompileOptions
from knapper.compiler.driver import finish
from knapper.compiler.groups import groups
from knapper.compiler.ir import Graph
from knapper.isa.machine import Machine
from knapper.isa.program import Program

from .claims import Lab
from .workloads import Gemm

DATA = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Streamed:
    """C[m, n] = A[m, k] · B[k, n] in fp16, with the tile that keeps the array busy the shortest."""

    m: int
    n: int
    k: int

    def program(self, machine: Machine) -> Program:
        graph = Gemm(self.m, self.n, self.k).graph()
        return finish(graph, machine, CompileOptions(forced={"*": shortest(graph, machine)}))


def shortest(graph: Graph, machine: Machine) -> Options:
    """The kind and the options of the launch whose commands take the array the fewest cycles; of equal ones the cheapest."""
    engine, (group,) = generators()["accumulating"], groups(graph)
    assert isinstance(engine, Accumulating)
    best = min(
        (o for o in engine.candidates(group, machine) if MODES not in o),
        key=lambda o: (engine.streaming(group, o, machine), engine.cost(group, o, machine)),
    )
    return {"kind": engine.kind, **best}


@dataclass(frozen=True)
class Reference:
    """What a simulator says of a product."""

    simulator: str
    target: str
    """Ours that it is compared with."""
    gemm: Streamed
    cycles: int
    tolerance: float
    source: str

    def ours(self, lab: Lab) -> int:
        """Cycles that our array worked."""
        (launch,) = lab.run(self.gemm, self.target).launches
        return launch.timing.array_cycles

    def difference(self, lab: Lab) -> float:
        """By how much ours is more, relative to theirs."""
        return self.ours(lab) / self.cycles - 1


def references(simulator: str = "") -> Iterator[Reference]:
    """The stored numbers: of `scale-sim`, of `stonne`, or of all."""
    for name, table in tomllib.loads(DATA.read_text()).items():
        if name != (simulator or name):
            continue
        for row in table["gemms"]:
            gemm = Streamed(row["m"], row["n"], row["k"])
            yield Reference(
                name, table["target"], gemm, row["cycles"], table["tolerance"], table["source"]
            )
