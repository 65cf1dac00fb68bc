"""The stored type of float32 tensors. Every rounding is a Cast node, and there is one a stored value.

Between launches a tensor lies in memory in the stored type, inside a launch it is float32 in
registers. So the Casts go to the boundaries of the launches, which `launches` finds on the graph as
it is (and `fuse` finds again: the Casts move no boundary).

    f16 operands ─► Conv out=f32 ─► Add ─► Relu ─► Cast f16 ═══ memory ═══► Cast f32 ─► Softmax ─► …
                    └─────────── f32, one launch ─────────┘                └── f32, another ──┘

  * Conv and MatMul read stored operands and give their float32 accumulators; their constant operands
    are rounded now, biases and other constants stay float32.
  * A launch that only moves elements works on the stored type itself.
  * Network inputs and outputs keep the model's types: what a launch reads of an input, or what it
    makes for outputs only, is not rounded at all. Nor are the boxes and scores of a detector, nor what TopK orders.
  * A state is no input and no output: it stays on the machine, in the stored type.
  * What is kept from zero by less than the stored type has, Clip(1e-12) or + 1e-8, stays float32 in
    memory: rounded to 0 it would be divided by.
  * float64, integers and bool are not touched. A product in f16 or bf16 (a model in that type) gets
    its rounding as a Cast as well.

The constants leave this pass as they will be stored, in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import or_
from typing import Any

import numpy as np

from knapper.isa.errors import PassError

from ..ir import Graph, Node
from ..launches import INJECTIVE, MATRIX, MOVES, launches
from ..ops.unary import cast
from ..rewrite import Writer
from .base import Pass

TYPES = {"fp16": "f16", "bf16": "bf16", "fp32": "f32"}
MOVERS = (INJECTIVE | MOVES) - {"Trilu"}
WRITERS = {"ScatterElements", "ScatterND"}
"""Ops that move elements unless they combine them with others."""
COPIES = MOVERS | {"GatherElements", "GatherND"}
POSITIONS = {"NonMaxSuppression": range(4), "RoiAlign": range(1, 2), "TopK": range(1)}
"""Op → operands that are places in an image, or compared with others: f16 has no quarter of a pixel beyond 512; near scores become equal."""
FLOORS: Mapping[str, Callable[[float], float]] = {"Sqrt": math.sqrt, **dict.fromkeys(COPIES, float)}
"""Op → the least value of its result, from that of its first operand."""


@dataclass(frozen=True)
class Precision(Pass):
    """Store float32 tensors as another type."""

    name = "precision"
    type: str = "fp16"

    def run(self, g: Graph) -> Graph:
        """One walk forward."""
        if self.type not in TYPES:
            raise PassError("E302", f"precision has no type {self.type!r}", hint=" ".join(TYPES))
        w = _Precision(g, TYPES[self.type])
        for n in w.old.nodes:
            w.convert(n)
        return w.finish()


class _Precision(Writer):
    """The new graph. A value of the old one is in `inside` (a register) or `stored` (memory) or both."""

    def __init__(self, g: Graph, narrow: str) -> None:
        super().__init__(g)
        self.narrow, self.old_types = narrow, self.old.types()
        self.states = {v for v in g.state if g.inputs[v].dtype == "f32"}
        self._types |= {v: replace(g.inputs[v], dtype=narrow) for v in self.states}
        self.inside: dict[str, str] = {}
        self.stored = {v: v for v in (*g.inputs, *self.constants)}
        self.launch = {
            v: k
            for k, found in enumerate(launches(self.old))
            for i in found.nodes
            for v in self.old.nodes[i].outputs
            if v
        }
        self.readers = self._readers()
        self.kept = self._kept() | self._guarded()
        self.unrounded = self._unrounded()
        self.casts: dict[tuple[str, str, str], str] = {}
        self.moving = self._moving()

    # --- what is stored, and as what

    def _readers(self) -> dict[str, set[int]]:
        """Value → the launches that read it; -1 stands for views and network outputs."""
        found: dict[str, set[int]] = {v: {-1} for v in self.old.outputs.values()}
        for n in self.old.nodes:
            for v in n.inputs:
                found.setdefault(v, set()).add(self.launch.get(n.outputs[0], -1))
        return found

    def _kept(self) -> set[str]:
        """Values that only network outputs and positions read, through views and copies or not: they are stored as they are."""
        kept, positions = set[str](), set[str]()
        states = {self.old.outputs[present] for present in self.old.state.values()}
        outputs = set(self.old.outputs.values()) - states
        users = self.old.users()
        for n in reversed(self.old.nodes):
            for v in n.outputs:
                seen = users.get(v, [])
                exact = [self._position(u, v, positions) for u in seen]
                views = [self._is_view(u) and u.outputs[0] in kept for u in seen]
                if all(map(or_, exact, views)) and (seen or v in outputs) and v not in states:
                    kept.add(v)
                    positions.update([v] if any(exact) else [])
        return kept

    def _position(self, n: Node, v: str, positions: set[str]) -> bool:
        """Whether a node reads an operand as a position, or passes it on as one."""
        if n.op in POSITIONS:
            return all(i in POSITIONS[n.op] for i, x in enumerate(n.inputs) if x == v)
        passes_on = self._is_view(n) or n.op in COPIES
        return passes_on and positions.issuperset(n.outputs)

    def _guarded(self) -> set[str]:
        """Values that a constant keeps above zero, and that the stored type would round to it."""
        floors: dict[str, float] = {}
        for n in self.old.nodes:
            if (floor := self._floor(n, floors)) > 0:
                floors |= dict.fromkeys(n.outputs, floor)
        return {
            v for v, floor in floors.items() if not cast(np.array(floor, np.float32), self.narrow)
        }

    def _floor(self, n: Node, floors: dict[str, float]) -> float:
        """The least that a node's result can be, its author thinks: no norm or variance is negative. 0 if that is not known."""
        if n.op == "Clip":
            least: Any = n.attrs.get("min", 0.0)
            return max(float(least), floors.get(n.inputs[0], 0.0))
        if n.op == "Add":
            added = (self.old.constants.get(v) for v in n.inputs)
            return max(
                (float(a.item()) for a in added if a is not None and a.size == 1), default=0.0
            )
        if n.op in FLOORS or self._is_view(n):
            return FLOORS.get(n.op, float)(floors.get(n.inputs[0], 0.0))
        return 0.0

    def _unrounded(self) -> set[str]:
        """Values that are stored in the model's type: inputs, what is seen through views, `kept`."""
        found = {*self.old.inputs, *self.kept} - self.states
        for n in self.old.nodes:
            if self._is_view(n) and n.inputs[0] in found:
                found.add(n.outputs[0])
        return found

    def _is_view(self, n: Node) -> bool:
        return n.outputs[0] not in self.launch

    def _moving(self) -> set[int]:
        """Launches that only move elements, of tensors that are all stored narrow."""
        nodes: dict[int, list[Node]] = {}
        for n in self.old.nodes:
            if not self._is_view(n):
                nodes.setdefault(self.launch[n.outputs[0]], []).append(n)
        return {k for k, ns in nodes.items() if all(map(self._moves, ns))}

    def _moves(self, n: Node) -> bool:
        if n.op in WRITERS and n.attr("reduction") == "none":
            return self.unrounded.isdisjoint((n.inputs[0], *n.outputs))
        return n.op in MOVERS and self.unrounded.isdisjoint((*n.inputs, *n.outputs))

    # --- nodes

    def convert(self, n: Node) -> None:
        """Carry a node over."""
        self.begin(n)
        if self._is_view(n):
            self._view(n)
        elif n.op in MATRIX:
            self._matrix(n)
        elif self.launch[n.outputs[0]] in self.moving:
            self._node(n, tuple(self._narrow(v) for v in n.inputs))
        else:
            self._node(n, tuple(self._wide(v, n) for v in n.inputs))

    def _view(self, n: Node) -> None:
        operand = self.stored[n.inputs[0]]
        types = (replace(n.types[0], dtype=self.type(operand).dtype),)
        self._add(replace(n, inputs=(operand,), types=types))
        self.stored[n.outputs[0]] = n.outputs[0]

    def _matrix(self, n: Node) -> None:
        """Stored operands; the accumulator as it is."""
        factors, others = map(self._narrow, n.inputs[:2]), (self._wide(v, n) for v in n.inputs[2:])
        operands = (*factors, *others)
        out = n.types[0].dtype
        if self.type(operands[0]).dtype in ("f16", "bf16"):
            out = "f32"
        attrs = {**n.attrs, "out": out} if out != self.type(operands[0]).dtype else n.attrs
        accumulator = self.op(n.op, *operands, **attrs)
        if n.types[0].dtype != out:
            accumulator = self.op("Cast", accumulator, to=n.types[0].dtype)
        self._results(n, self.named((accumulator,), n.outputs))

    def _node(self, n: Node, operands: tuple[str, ...]) -> None:
        made = self.ops(len(n.outputs), n.op, *operands, **n.attrs)
        self._results(n, self.named(made, n.outputs))

    def _results(self, n: Node, new: tuple[str, ...]) -> None:
        """Round and store the results that others read."""
        for old, v in zip(n.outputs, new, strict=True):
            self.inside[old] = v
            if self.readers.get(old, set()) - {self.launch.get(old)}:
                self.stored[old] = v if old in self.kept else self._rounded(v)

    # --- operands

    def _wide(self, v: str, n: Node) -> str:
        """An operand in a register: made here, or read and widened where it is used.

        A Cast with one reader is part of it (`launches`), whatever else the launch does with the value.
        """
        if self.launch.get(v) == self.launch[n.outputs[0]]:
            return self.inside[v]
        if not v or v in self.old.constants:
            return v
        return self._cast(self.stored[v], self.old_types[v].dtype, n.outputs[0])

    def _narrow(self, v: str) -> str:
        """An operand in the stored type."""
        return self._rounded(self.stored[v] if v in self.stored else self.inside[v])

    def _rounded(self, v: str) -> str:
        return self._cast(v, self.narrow) if self.type(v).dtype == "f32" else v

    def _cast(self, v: str, to: str, reader: str = "") -> str:
        """A value as another type: one Cast for all that use it, or for one reader."""
        if self.type(v).dtype == to:
            return v
        if (v, to, reader) not in self.casts:
            a = self.array(v)
            made = self._cast_node(v, to) if a is None else self.constant(cast(a, to), v, to)
            self.casts[v, to, reader] = made
        return self.casts[v, to, reader]

    def _cast_node(self, v: str, to: str) -> str:
        """A Cast called after its operand: %x.f16, and %x.f32 of that."""
        name = self.fresh(v.removesuffix(f".{self.narrow}"), to)
        types = (replace(self.type(v), dtype=to),)
        self._add(Node("Cast", (v,), (name,), types, {"to": to}, self.at.loc))
        return name

    # --- the end

    def finish(self) -> Graph:
        """Outputs in the model's types, constants in row-major order."""
        self.at = Node("", (), ("output",), ())
        kept = {self.old.state[past] for past in self.states}
        outputs = {
            name: self._cast(
                self.stored[v], self.narrow if name in kept else self.old_types[v].dtype
            )
            for name, v in self.old.outputs.items()
        }
        g = self.graph(outputs)
        inputs = {v: self._types[v] for v in g.inputs}
        constants = {v: np.asarray(a, order="C") for v, a in g.constants.items()}
        return replace(g, inputs=inputs, constants=constants)
