"""Values of a float graph that are integers times a scale, while a graph in integers is written: times any factor, when somebody asks.

    held        (q - zero) · scale             integers in bytes                  Cast ─► Sub ─► Mul
    sums        (Σ …) · factor + bias          a product's                        Cast ─► Mul ─► Add
    deferred    what is linear of such         nobody knows yet by which factor   Add, Mul, Relu, … of operands times the factor

`build(v, c)` makes c·v, with c in the constants: so a QuantizeLinear gets its operand in steps of its own scale without a division.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..ir import Array, Graph, Node
from ..rewrite import Writer
from .exact import Held, along, ones_behind

PRODUCTS = ("Conv", "MatMul", "Gemm")
ONE = np.ones(())
MOVERS = frozenset(
    ["Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Expand", "Tile", "Gather", "DepthToSpace", "SpaceToDepth"]
)  # fmt: skip
"""Ops whose results are elements of their first operand."""
AVERAGES = frozenset(("AveragePool", "GlobalAveragePool"))
LINEAR = (
    frozenset(["Add", "Sub", "Mul", "Relu", "LeakyRelu", "Clip", "Cast"])
    | MOVERS
    | AVERAGES
    | set(PRODUCTS)
)
"""Ops f with f(c·x) = c·f(x) for a positive c, once their constants are scaled too."""
ONE_FACTOR = MOVERS | AVERAGES | {"Clip", *PRODUCTS}
"""Those for which c has to be one number: c of each element is where the element goes to."""
SMALLEST = float(np.finfo(np.float32).tiny)
"""The least scale that is divided by as a factor: its inverse is a float."""


@dataclass(frozen=True)
class Sums:
    """A product in integers: its value is sums · factor + bias."""

    value: str
    factor: Array
    bias: Array | str | None
    """A constant; or a value of the old graph."""


class Values(Writer):
    """The new graph. A float value of the old one is `held` as integers, `deferred` until a QuantizeLinear says its scale, or there."""

    def __init__(self, g: Graph) -> None:
        super().__init__(g)
        self.makers = self.old.producers()
        self.old_types = self.old.types()
        self.held: dict[str, Held] = {}
        self.sums: dict[str, Sums] = {}
        self.deferred: dict[str, Node] = {}
        self.spans: dict[str, tuple[int, int]] = {}

    def need(self, v: str) -> str:
        """The value itself, in float."""
        if v in self.held or v in self.deferred or v in self.sums:
            outer, last = self.at, self._last
            self.begin(self.makers[v])
            made = self.build(v, ONE)
            self.at, self._last = outer, last
            return made
        return self.now(v)

    def span_of(self, q: str) -> tuple[int, int]:
        """The least and the greatest of a value of integers."""
        if (a := self.array(q)) is not None and a.size:
            return int(a.min()), int(a.max())
        if q not in self.spans:
            info = np.iinfo(self.type(q).dtype.replace("i", "int").replace("u", "uint"))
            return int(info.min), int(info.max)
        return self.spans[q]

    def reaches(self, v: str) -> bool:
        """Whether integers are behind a value."""
        if v in self.sums or (v in self.held and self.array(self.held[v].q) is None):
            return True
        n = self.deferred.get(v)
        return n is not None and (n.op == "Cast" or any(map(self.reaches, n.inputs)))

    # --- values times a factor

    def build(self, v: str, f: Array) -> str:
        """c·v in float, for a positive c that broadcasts to it."""
        if v in self.held:
            return self._dequantized(self.held[v], f)
        if v in self.sums:
            return self._scaled_sums(v, f)
        n = self.deferred.get(v)
        if n is None or (f.size > 1 and n.op in ONE_FACTOR):
            return self._times(self.now(v) if n is None else self.build(v, ONE), f)
        x = n.inputs[0]
        if n.op in ("Add", "Sub"):
            return self.op(n.op, *(self.build(x, f) for x in n.inputs))
        if n.op == "Mul":
            return self._multiplied(n, f)
        if n.op in AVERAGES and x in self.held and self.held[x].single:
            h = self.held[x]  # sums of integers are exact
            whole = self._dequantized(replace(h, scale=np.ones((), np.float32)), ONE)
            return self._times(self.op(n.op, whole, **n.attrs), f * h.scale.astype(np.float64))
        if n.op == "Cast":
            return self._times(self.op("Cast", self.now(x), to="f32"), f)
        if n.op == "Clip":
            low, high = (float(n.attr(k)) * float(f) for k in ("min", "max"))
            return self.op("Clip", self.build(x, f), min=low, max=high)
        operands = [self.build(x, f), *(self.need(o) if o else "" for o in n.inputs[1:2])]
        biases = [self.build(o, f) if o else "" for o in n.inputs[2:]]
        return self.op(n.op, *operands, *biases, **n.attrs)

    def _multiplied(self, n: Node, f: Array) -> str:
        for x, c in (n.inputs, n.inputs[::-1]):
            a = self.old.constants.get(c)
            if a is not None and (a > 0).all() and len(self.old_types[x].shape) >= a.ndim:
                return self.build(x, f * a.astype(np.float64))
        return self.op("Mul", self.build(n.inputs[0], f), self.need(n.inputs[1]))

    def _times(self, v: str, f: Array) -> str:
        if (f == 1).all():
            return v
        if (a := self.array(v)) is not None:
            return self.constant((a.astype(np.float64) * f).astype(np.float32), v, "scaled")
        return self.op("Mul", v, self._number(f))

    def _number(self, f: Array) -> str:
        return self.constant(f.astype(np.float32), tag="factor")

    def _dequantized(self, h: Held, f: Array) -> str:
        shape = self.type(h.q).shape
        zero, scale = (along(p, h.axis, len(shape)) for p in (h.zero, h.scale))
        factor = scale.astype(np.float64) * f
        if (a := self.array(h.q)) is not None:
            real = (a.astype(np.int64) - zero).astype(np.float32) * factor.astype(np.float32)
            return self.constant(np.asarray(real, np.float32), h.q, "real")
        v = self.op("Cast", h.q, to="f32")
        if zero.any():
            v = self.op("Sub", v, self.constant(zero.astype(np.float32), tag="zero"))
        return self._times(v, factor)

    def _scaled_sums(self, v: str, f: Array) -> str:
        s = self.sums[v]
        y = self.op(
            "Mul", self.op("Cast", s.value, to="f32"), self._number(np.asarray(s.factor * f))
        )
        if s.bias is None:
            return y
        if isinstance(s.bias, str):
            return self.op("Add", y, self._times(self._bias_value(v, s.bias), f))
        return self.op("Add", y, self._number(np.asarray(s.bias * f)))

    def _bias_value(self, v: str, bias: str) -> str:
        b, n = self.need(bias), self.makers[v]
        if n.op != "Conv":
            return b
        return self.op("Reshape", b, shape=(self.type(b).count, *ones_behind(n)))
