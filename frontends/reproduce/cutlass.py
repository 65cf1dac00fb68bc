"""A matrix product as CUTLASS 1.3 did it on Volta: blocks of 128×128×32, warps of 64×64×32, fp16 accumulators.

The authors' measurements took such kernels (their README names the tile as the fastest). Ours goes through the compiler's own tiled engine: both
operands pass through shared memory, double-buffered; only the accumulators differ, and C is stored as it lies in registers. No
graph means such accumulators, which round to fp16 every 16 steps of k, so no plan ever chooses this kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from knapper.compiler.codegen.builder import VReg
from knapper.compiler.codegen.generator import Emitted, Group
from knapper.compiler.codegen.matrix.code import divmod_, lane_id, move_base, mul, param, uadd, umul
from knapper.compiler.codegen.matrix.epilogue import Frame, Spot
from knapper.compiler.codegen.matrix.hmma import Fragmented, Fragments
from knapper.compiler.ir import Node, Type
from knapper.isa.instructions import HMMA_F16, STG
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Width
from knapper.isa.program import ALIGN, BASE, Launch, Operand, Port, Program
from knapper.isa.tensor import OPERAND, SIZE

TILE = Fragments(128, 128, 32, (2, 2))
ELEMENT = 2


class HalfKernel(Fragmented[Fragments]):
    """One launch being emitted. m and n are multiples of the tile's."""

    accumulator = OPERAND

    def hmma(self, d: VReg, a: VReg, b: VReg, c: Any, guard: Any) -> None:
        self.b.emit(HMMA_F16, d, a, b, c, guard=guard)

    def results(self) -> Iterator[tuple[Frame, list[Spot]]]:
        """Store the fragments, two elements a lane: register r of one is its rows 4r … 4r + 3. Nothing is left for an epilogue."""
        b, t, pitch = self.b, self.t, self.p.n * ELEMENT
        row, pair = divmod_(b, lane_id(b), SIZE // 2)
        lane = mul(b, row, pitch, mul(b, pair, 2 * ELEMENT))
        base = param(b, self.block.parameters[self.p.node.outputs[0]])
        row0 = uadd(b, self.block.m0, umul(b, self.wm, SIZE * t.fm))
        col0 = uadd(b, self.block.n0, umul(b, self.wn, SIZE * t.fn))
        move_base(b, base, umul(b, row0, pitch))
        move_base(b, base, umul(b, col0, ELEMENT))
        for f in self.rows:
            for j, acc in enumerate(self.acc[f]):
                for r in range(OPERAND):
                    at = (SIZE * f + SIZE // OPERAND * r) * pitch + SIZE * j * ELEMENT
                    b.emit(STG, Width._32, base, lane, at, acc[r])
        yield from ()


@dataclass(frozen=True)
class CutlassGemm:
    """C[m, n] = A[m, k] · B[k, n] in fp16 throughout."""

    m: int
    n: int
    k: int

    def program(self, machine: Machine) -> Program:
        emitted = self.emit(machine)
        ports, end = self.ports()
        at = {p.name: p for p in ports}
        params = tuple(at[v].address for v in emitted.params if isinstance(v, str))
        operands = tuple(
            Operand(v, at[v].address, ELEMENT * at[v].count, use) for v, use in emitted.uses.items()
        )
        kernel = emitted.kernel
        launch = Launch(kernel.name, emitted.grid, params, emitted.nodes, operands, emitted.macs)
        return Program(
            machine.to_dict(), {kernel.name: kernel}, (launch,), ports[:2], ports[2:], arena_bytes=end - BASE
        )  # fmt: skip

    def emit(self, machine: Machine) -> Emitted:
        """The kernel."""
        types = {"a": Type("f16", (self.m, self.k)), "b": Type("f16", (self.k, self.n))}
        result = Type("f16", (self.m, self.n))
        node = Node("MatMul", ("a", "b"), ("c",), (result,), {}, group="gemm")
        return HalfKernel(
            Group("gemm", (node,), types, {"c": result}, {}), TILE, "dense", machine
        ).emit()

    def ports(self) -> tuple[tuple[Port, ...], int]:
        """A, B and C one behind the other, and where they end."""
        ports, end = list[Port](), BASE
        for name, shape in (
            ("a", (self.m, self.k)),
            ("b", (self.k, self.n)),
            ("c", (self.m, self.n)),
        ):
            ports.append(Port(name, "f16", shape, end))
            end += -(-ELEMENT * ports[-1].count // ALIGN) * ALIGN
        return tuple(ports), end
