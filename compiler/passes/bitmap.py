"""Which products run on the dual-side sparse Tensor Core, and where what they read is put under bitmaps.

    Conv %x, %w ─ Relu ─ Cast ─► %y             Conv %x.bits, %w ─ Relu ─ Cast ─ BitmapEncode ─► %y.bits      place("spwmma")
    Conv %y, %v …                       ──►     Conv %y.bits, %v …

A product may be sparse if its weights are known and a kernel serves it so. It is if that is predicted to pay: what zeros of the weights,
as they are, and of activations, of an assumed density, spare must exceed what the encoding takes. A sparse product encodes its own
result, and readers of both forms get both; after any other launch BitmapEncode is a launch of its own, so that the
choice of one product touches its neighbours:

    total = 1.1 · (Σ sparse, with or without encoding + Σ encode launches) + Σ dense

From all sparse, and from all dense, single choices are turned over while that lowers the total; the lower end is taken, and nothing is
changed if that is all dense. A value has one pad: the largest that a sparse reader needs, and along a chain of products that
encode for each other that of the chain.

    bitmap{layers="conv*|!conv1"}       only these (names, values, operators, launches; ! leaves out)
    bitmap{force=true}                  whatever the prediction
    bitmap{densities="d.json"}          measured: {"relu1": 0.43}, by value; others that a ReLU made have `density`, all others 1
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from knapper.isa.errors import CompileError, PassError
from knapper.isa.machine import Machine

from ..codegen.generator import Group, generators
from ..codegen.matrix.spwmma.generator import cheapest as cheapest_sparse
from ..encoding import DENSITY
from ..groups import groups, known
from ..ir import Attr, Graph, Node, infer
from ..launches import ENCODE, MATRIX, SPARSE
from ..ops.bitmap import NARROW
from ..schedule import Scheduler, cheapest
from .base import Pass
from .fuse import Fuse

THROUGH = frozenset({"Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose"})
"""Their results have the zeros of their operands."""
MARGIN = 1.1
"""Predicted cycles of launches that are sparse, or encode, count so much: they are off by a tenth (a standard deviation over 280 launches), and what
is dense is certain to be no worse. Chosen: with 1.05 one layer of those networks is sparse and slower, with 1.1 none."""
Pads = Mapping[str, int]
"""Value → the pad with which it is encoded."""


@dataclass(frozen=True)
class Bitmap(Pass):
    """Run products on the sparse Tensor Core where that pays."""

    name = "bitmap"
    density: float = DENSITY
    layers: str = "*"
    force: bool = False
    densities: str = ""
    machine: Machine | None = field(default=None, repr=False)

    def on(self, machine: Machine) -> Pass:
        """Ask this machine's cost model."""
        return replace(self, machine=machine)

    def run(self, g: Graph) -> Graph:
        """Choose, then rewrite."""
        if not 0 <= self.density <= 1:
            raise PassError("E302", f"bitmap: density is {self.density}, not between 0 and 1")
        if any(n.op in MATRIX and not n.group for n in g.nodes):
            raise PassError("E304", "there are no launches yet", hint="put fuse before bitmap")
        if self.machine is None or "sparse" not in self.machine.extensions:
            return g
        found = _Layers(g, self.machine, self.density, self._measured(g), self.layers)
        chosen = frozenset(found.by_result) if self.force else found.choice()
        return found.rewritten(chosen) if chosen else g

    def _measured(self, g: Graph) -> dict[str, float]:
        """By value. PassError E302 for what are no densities, E304 if they are another network's."""
        if not self.densities:
            return {}
        try:
            read = json.loads(Path(self.densities).read_text())
            found = {str(v): float(d) for v, d in read.items()}
        except (OSError, ValueError, TypeError, AttributeError) as e:
            raise PassError("E302", f"bitmap: {e}", where=self.densities) from None
        if wrong := [v for v, d in found.items() if not 0 <= d <= 1]:
            problem = f"bitmap: density of {wrong[0]} is {found[wrong[0]]}, not between 0 and 1"
            raise PassError("E302", problem, where=self.densities)
        if found and not found.keys() & g.types().keys():
            problem = f"bitmap: there are densities of {next(iter(found))}, which is no value here"
            raise PassError("E304", problem, where=self.densities)
        return found


@dataclass(frozen=True)
class _Layer:
    """A product that may be sparse, in its launch."""

    node: Node
    group: Group
    a: str
    need: int
    result: str
    """The value that leaves the launch; "" if that is none that can be encoded."""

    @property
    def name(self) -> str:
        return self.node.outputs[0]


class _Layers:
    """The products of a fused graph that may be sparse, and what that costs."""

    def __init__(
        self,
        g: Graph,
        machine: Machine,
        density: float,
        measured: Mapping[str, float],
        patterns: str,
    ) -> None:
        self.g, self.machine, self.types = g, machine, g.types()
        self.density, self.measured = density, measured
        self.makers, self.users = g.producers(), g.users()
        self.scheduler = Scheduler(machine)
        self.costs: dict[tuple[str, int, bool], float | None] = {}
        constants = known(g)
        found = (self._layer(group) for group in groups(g) if _meant(group, patterns))
        layers = [x for x in found if x and x.node.inputs[1] in constants]
        self.by_result = {x.name: x for x in layers if self.sparse(x, x.need, False) is not None}
        self.maker = {x.result: x for x in self.by_result.values() if x.result}

    def _layer(self, group: Group) -> _Layer | None:
        nodes = [n for n in group.nodes if n.op in MATRIX]
        if len(nodes) != 1 or any(n.place or n.op == ENCODE for n in group.nodes):
            return None
        (node,) = nodes
        a = node.inputs[0]
        t = self.types[a]
        if a not in group.inputs or a in group.constants or t.encoding or t.dtype not in NARROW:
            return None
        if t.rank < 2 or not t.count:  # BitmapEncode has no rows of it
            return None
        pads: Any = node.attrs.get("pads") or (0,)
        need = max(pads) if node.op == "Conv" and t.rank == 4 else 0
        made = [v for v, t in group.outputs.items() if t.dtype in NARROW and t.rank >= 2]
        return _Layer(node, group, a, need, made[0] if len(group.outputs) == 1 and made else "")

    # --- costs

    def density_of(self, v: str) -> float:
        """How many of a value's elements are not zero: measured, assumed of a ReLU's, or all."""
        while v not in self.measured:
            n = self.makers.get(v)
            if n is None:
                return 1.0
            if n.op == "Relu" or (n.op == "Clip" and n.attrs.get("min") == 0):
                return self.density
            if n.op not in THROUGH:
                return 1.0
            v = n.inputs[0]
        return self.measured[v]

    def dense(self, group: Group) -> float:
        """Cycles of a launch as it is; infinite if nothing serves it."""
        try:
            return sum(c.cost for c in cheapest([self.scheduler.choices(group)]))
        except CompileError:
            return math.inf

    def sparse(self, x: _Layer, pad: int, encodes: bool) -> float | None:
        """Cycles of a sparse launch; None if it cannot be."""
        key = x.name, pad, encodes
        if key not in self.costs:
            group = self._sparse_group(x, pad, encodes)
            self.costs[key] = cheapest_sparse(group, self.machine)
        return self.costs[key]

    def _sparse_group(self, x: _Layer, pad: int, encodes: bool) -> Group:
        """The launch with its operand under bitmaps, and its result if it `encodes`."""
        bits = _bits(x.a)
        nodes = [n.with_(inputs=(bits, *n.inputs[1:])) if n is x.node else n for n in x.group.nodes]
        read = {v for n in nodes for v in n.inputs}
        inputs = {bits: self._encode(x.a, pad).types[1]}
        inputs |= {v: t for v, t in x.group.inputs.items() if v in read}
        outputs = dict(x.group.outputs)
        if encodes:
            last = self._encode(x.result, pad)
            nodes.append(last.with_(group=x.group.name))
            both = dict(zip(last.outputs, last.types, strict=True))
            outputs = both if self._read_dense(x.result) else {last.outputs[1]: last.types[1]}
        return replace(x.group, nodes=tuple(nodes), inputs=inputs, outputs=outputs)

    def _read_dense(self, v: str) -> bool:
        """Whether anybody reads a value who cannot read it under bitmaps, whatever is chosen."""
        readers = self.users.get(v, [])
        may = [n.outputs[0] in self.by_result and n.inputs[0] == v for n in readers]
        return v in self.g.outputs.values() or not all(may)

    def encode(self, v: str, pad: int) -> float:
        """Cycles of a launch that encodes a value."""
        n = self._encode(v, pad)
        group = Group(ENCODE, (n,), {v: self.types[v]}, {n.outputs[1]: n.types[1]})
        return generators()["encode"].cost(group, {}, self.machine)

    @cached_property
    def as_they_are(self) -> dict[str, float]:
        """Cycles of the launches that may be sparse, dense."""
        return {v: self.dense(x.group) for v, x in self.by_result.items()}

    # --- choosing

    def pads(self, chosen: frozenset[str]) -> dict[str, int]:
        """The values that are encoded, and how."""
        found: dict[str, int] = {}
        for v in chosen:
            x = self.by_result[v]
            found[x.a] = max(found.get(x.a, 0), x.need)
        changed = True
        while changed:
            changed = False
            for v in chosen:
                x = self.by_result[v]
                if x.result in found and self._stays(x) and found[x.a] != found[x.result]:
                    found[x.a] = found[x.result] = max(found[x.a], found[x.result])
                    changed = True
        return found

    def _stays(self, x: _Layer) -> bool:
        """Whether a product's result has the positions of its operand."""
        return self.types[x.result].shape[:-1] == self.types[x.a].shape[:-1]

    def joined(self, v: str, chosen: frozenset[str], pads: Pads) -> bool:
        """Whether an encoded value is encoded by the product that makes it."""
        x = self.maker.get(v)
        if x is None or x.name not in chosen or not self._stays(x) or pads[x.a] != pads[v]:
            return False
        return self.sparse(x, pads[v], True) is not None

    def total(self, chosen: frozenset[str]) -> float:
        """Cycles of all launches that a choice touches."""
        pads = self.pads(chosen)
        alone = {v for v in pads if not self.joined(v, chosen, pads)}
        cycles = MARGIN * sum(self.encode(v, pads[v]) for v in alone)
        for v, x in self.by_result.items():
            if v not in chosen:
                cycles += self.as_they_are[v]
                continue
            encodes = x.result in pads and x.result not in alone
            cost = self.sparse(x, pads[x.a], encodes)
            cycles += math.inf if cost is None else MARGIN * cost
        return cycles

    def choice(self) -> frozenset[str]:
        """The results of the products that are to be sparse."""
        ends = [self._improved(c) for c in (frozenset(self.by_result), frozenset[str]())]
        best = min(ends, key=self.total)
        return best if self.total(best) < self.total(frozenset()) else frozenset()

    def _improved(self, chosen: frozenset[str]) -> frozenset[str]:
        """Single choices turned over while that helps."""
        least, helped = self.total(chosen), True
        while helped:
            helped = False
            for v in self.by_result:
                other = chosen ^ {v}
                if (cost := self.total(other)) < least:
                    chosen, least, helped = other, cost, True
        return chosen

    # --- rewriting

    def rewritten(self, chosen: frozenset[str]) -> Graph:
        """The graph with these products placed, what they read encoded, and launches found anew."""
        pads = self.pads(chosen)
        own = {v for v in pads if self.joined(v, chosen, pads)}
        now = {v: _dense(v) for v in own}
        given = [v for v in pads if v not in self.makers]
        nodes = [self._encode(v, pads[v]) for v in given]
        for n in self.g.nodes:
            nodes.append(self._placed(n, now) if n.outputs[0] in chosen else _reading(n, now))
            nodes += [self._encode(v, pads[v]) for v in n.outputs if v in pads]
        outputs = {name: now.get(v, v) for name, v in self.g.outputs.items()}
        return Fuse().run(self.g.with_(nodes=tuple(nodes), outputs=outputs))

    def _encode(self, v: str, pad: int) -> Node:
        """The node that encodes a value."""
        density = round(self.density_of(v), 2)  # equal kernels are made once
        attrs: dict[str, Attr] = {"pad": pad} if pad else {}
        attrs |= {"density": density} if density != DENSITY else {}
        types = infer(ENCODE, [self.types[v]], attrs)
        return Node(ENCODE, (v,), (_dense(v), _bits(v)), types, attrs)

    def _placed(self, n: Node, now: Mapping[str, str]) -> Node:
        rest = tuple(now.get(v, v) for v in n.inputs[1:])
        return n.with_(inputs=(_bits(n.inputs[0]), *rest), place=SPARSE)


def _reading(n: Node, now: Mapping[str, str]) -> Node:
    return n.with_(inputs=tuple(now.get(v, v) for v in n.inputs))


def _bits(v: str) -> str:
    return f"{v}.bits"


def _dense(v: str) -> str:
    return f"{v}.dense"


def _meant(group: Group, patterns: str) -> bool:
    """Whether a launch's product is one of those that are named, and none that is left out."""
    names = {group.name}
    names |= {x for n in group.nodes if n.op in MATRIX for x in (n.op, n.loc, *n.outputs)}
    names |= {x.removesuffix(".f16").removesuffix(".bf16") for x in group.outputs}
    every = [p for p in patterns.split("|") if p]
    asked = [p for p in every if p[0] != "!"] or ["*"]
    return _any(names, asked) and not _any(names, (p[1:] for p in every if p[0] == "!"))


def _any(names: Iterable[str], patterns: Iterable[str]) -> bool:
    wanted = [*patterns]
    return any(fnmatchcase(name, p) for name in names for p in wanted)


__all__ = ["Bitmap"]
