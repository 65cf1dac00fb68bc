"""One op with the Casts around it: where its operands lie in memory, as which type, and where its results go.

%x f16 ─ Cast f32 ─┐
                   ├─ RoiAlign ─ Cast f16 ─► %y f16            loads convert, stores convert, all between is f32
%rois f32 ─────────┘        └──────────────► %z f32
"""

from __future__ import annotations

from dataclasses import dataclass

from knapper.isa.instructions import LDG, MOV, STG
from knapper.isa.modifiers import Scalar, Width
from knapper.isa.operands import Reg

from ...ir import Node
from ..builder import RZ, KernelBuilder, VPred, VReg, VUReg
from ..generator import Group
from ..scalar import convert

TYPES = {"f16": Scalar.F16, "bf16": Scalar.BF16, "f32": Scalar.F32}
FAR = 1 << 31
"""Bytes that a signed 32-bit offset reaches."""
OPS = ("NonMaxSuppression", "RoiAlign")


@dataclass(frozen=True)
class Place:
    """A float tensor in memory: its value name and stored type."""

    value: str
    dtype: str

    @property
    def bytes(self) -> int:
        """Of an element."""
        return 4 if self.dtype == "f32" else 2

    def load(
        self,
        b: KernelBuilder,
        base: VUReg,
        at: VReg | Reg = RZ,
        offset: int = 0,
        guard: VPred | None = None,
    ) -> VReg:
        """The element at a byte offset, as f32; 0 in lanes that the guard leaves out."""
        d = b.reg()
        if guard is not None:
            b.emit(MOV, d, 0)
        b.emit(LDG, self._width(Width.U16), d, base, at, offset, guard=guard)
        return d if self.dtype == "f32" else convert(b, d, Scalar.F32, TYPES[self.dtype])

    def store(self, b: KernelBuilder, base: VUReg, at: VReg, x: VReg) -> None:
        """Round an f32 and store it."""
        if self.dtype != "f32":
            x = convert(b, x, TYPES[self.dtype], Scalar.F32)
        b.emit(STG, self._width(Width.U16), base, at, 0, x)

    def _width(self, narrow: Width) -> Width:
        return Width._32 if self.dtype == "f32" else narrow


def core_of(group: Group) -> Node | str:
    """The one node that is no Cast, or why the group is none of ours."""
    cores = [n for n in group.nodes if n.op != "Cast"]
    if len(cores) != 1 or cores[0].op not in OPS:
        return f"computes {' and '.join(OPS)} alone"
    made = {v for n in group.nodes for v in n.outputs}
    for n in group.nodes:
        read_here = n.op == "Cast" and n.inputs[0] in made
        if read_here and n.inputs[0] not in cores[0].outputs:
            return "a Cast of a Cast"
    floats = [t.dtype for v, t in (group.inputs | group.outputs).items() if t.dtype[0] not in "iu"]
    other = [d for d in floats if d not in TYPES]
    return f"operands are {other[0]}" if other else cores[0]


def source(group: Group, value: str) -> Place:
    """Where an operand of the core node comes from."""
    cast = next((n for n in group.nodes if n.op == "Cast" and value in n.outputs), None)
    v = cast.inputs[0] if cast else value
    return Place(v, group.inputs[v].dtype)


def targets(group: Group, value: str) -> list[Place]:
    """The group's outputs that a result of the core node becomes: itself, its Casts."""
    names = [value, *(n.outputs[0] for n in group.nodes if n.op == "Cast" and n.inputs[0] == value)]
    return [Place(v, group.outputs[v].dtype) for v in names if v in group.outputs]
