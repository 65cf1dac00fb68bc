"""Products of quantized values in exact integers, everything between two of them in one epilogue.

    q u8 ─► DequantizeLinear ─► Conv ─► Add ─► Relu ─► QuantizeLinear ─► u8              what a quantized model says
    w i8 ─► DequantizeLinear ───┘       │
    r u8 ─► DequantizeLinear ───────────┘

    Conv(q, w, bias) i32 ─► Cast f32 ─► Mul m ─► Add ─► Relu ─► Round ─► Add ─► Clip ─► Cast u8      what is computed
    r ─► Cast f32 ─► Sub ─► Mul ─────────────────┘

The result's scale is divided into the constants m, so there is no division: with one product, two roundings less. What comes out is at most one
step from what the model says, at a tie or next to one; the same bits where scales are powers of two and sums below 2^24.

  * Zero points: Σ(x - zx)(w - zw) = Σx·w - zx·Σ(w - zw) - zw·Σx. The second term is part of the bias; weights take their own zero point in
    if 8 bits hold what is left, else the third term is computed, a sum of x. An image is padded with its zero point.
  * Sums are exact: the weights themselves, or the number of terms, say that none reaches 2^31. Products for which they do not stay in float.
  * Biases in steps of the sums are added there, others in float.
  * Averages are of integers, and scaled then: their sums are exact.
  * What moves or selects elements does so with integers: Reshape, Transpose, MaxPool, Concat of equal scales, Pad, Slice, Gather, …
  * A value that is quantized as it was is what it was. One that goes to a format's grid, or by a border, keeps QuantizeLinear, of scale 1.
  * Products of i32 that are bytes less zero points (ConvInteger, MatMulInteger and their kin) are the same thing said otherwise; of rows
    by constants also with a zero point that is computed.

What is quantized and stays in float is said in the log with the reason; dequantized weights of such products are computed here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from ..ir import Array, Graph, Node, compute
from ..ops.quantize import bounds, on_grid
from ..quantization.exact import (
    Held,
    along,
    by_channel,
    bytes_behind,
    exact,
    ones_behind,
    unfit,
)
from ..rewrite import Writer
from .base import Pass

log = logging.getLogger("knapper")
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
class Integers(Pass):
    """Compute products of quantized values in integers."""

    name = "integers"

    def run(self, g: Graph) -> Graph:
        """One walk forward; a graph without quantization comes back as it is."""
        if not any(_concerns(n, g) for n in g.nodes):
            return g
        w = _Integers(g)
        for n in w.old.nodes:
            w.convert(n)
        return w.finish()


def _concerns(n: Node, g: Graph) -> bool:
    wide = n.op in PRODUCTS and n.types[0].dtype == "i32"
    return wide or n.op in ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Sums:
    """A product in integers: its value is sums · factor + bias."""

    value: str
    factor: Array
    bias: Array | str | None
    """A constant; or a value of the old graph."""


class _Integers(Writer):
    """The new graph. A float value of the old one is `held` as integers, `deferred` until a QuantizeLinear says its scale, or there."""

    def __init__(self, g: Graph) -> None:
        super().__init__(g)
        self.makers = self.old.producers()
        self.old_types = self.old.types()
        self.held: dict[str, Held] = {}
        self.sums: dict[str, Sums] = {}
        self.deferred: dict[str, Node] = {}
        self.spans: dict[str, tuple[int, int]] = {}
        self.waits = self._waiting()

    def _waiting(self) -> set[str]:
        """Values that go to one QuantizeLinear of one scale, through nothing but what is linear."""
        users, outputs, found = self.old.users(), set(self.old.outputs.values()), set[str]()
        for n in reversed(self.old.nodes):
            v, seen = n.outputs[0], users.get(n.outputs[0], [])
            if n.op not in LINEAR or len(seen) != 1 or v in outputs or n.types[0].dtype != "f32":
                continue
            (u,) = seen
            if self._plain_quantizer(u, v) or (u.op in LINEAR and u.outputs[0] in found):
                found.add(v)
        return found

    def _plain_quantizer(self, n: Node, v: str) -> bool:
        """Whether a node rounds v in steps of one known scale, which is positive."""
        if n.op != "QuantizeLinear" or n.inputs[0] != v or n.attr("block_size"):
            return False
        known = [self.old.constants.get(x) for x in n.inputs[1:]]
        scale, zero = known[0], known[1] if len(known) > 1 else None
        given = len(n.inputs) > 2 and n.inputs[2] != ""
        return (
            scale is not None
            and scale.size == 1
            and bool(SMALLEST <= scale.item() < np.inf)
            and (not given or zero is not None)
            and self.old_types[v].dtype == "f32"
        )

    # --- the walk

    def convert(self, n: Node) -> None:
        """Carry a node over, hold its result, or wait."""
        self.begin(n)
        v = n.outputs[0]
        if n.op == "DequantizeLinear" and self._hold(n):
            return None
        if n.op == "QuantizeLinear" and self._plain_quantizer(n, n.inputs[0]):
            return self._quantize(n)
        if n.op in PRODUCTS and (n.types[0].dtype == "i32" or self._product(n)):
            return self._emit_product(n)
        if (moved := self._moved(n)) is not None:
            self.held[v] = moved
            return None
        if v in self.waits:
            self.deferred[v] = n
            return None
        self._visit(n)
        return None

    def _visit(self, n: Node) -> None:
        """The node as it is, on values that are there."""
        operands = [self.need(v) if v else "" for v in n.inputs]
        self.begin(n)
        made = self.emit(replace(n, inputs=tuple(operands)))
        self.let(n, made)

    def finish(self) -> Graph:
        """The graph, its outputs made."""
        outputs = {}
        for name, v in self.old.outputs.items():
            if n := self.makers.get(v):
                self.begin(n)
            outputs[name] = self.need(v)
        return self.graph(outputs)

    def need(self, v: str) -> str:
        """The value itself, in float."""
        if v in self.held or v in self.deferred or v in self.sums:
            outer, last = self.at, self._last
            self.begin(self.makers[v])
            made = self.build(v, ONE)
            self.at, self._last = outer, last
            return made
        return self.now(v)

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

    # --- quantization's own nodes

    def _hold(self, n: Node) -> bool:
        """Keep a dequantized value as what it was; compute what is constant and has scales a block."""
        x, scale = n.inputs[0], self.old.constants.get(n.inputs[1])
        given = len(n.inputs) > 2 and n.inputs[2] != ""
        zero = self.old.constants.get(n.inputs[2]) if given else np.zeros((), np.int64)
        t = self.old_types[x]
        if scale is None or zero is None or n.types[0].dtype != "f32" or t.dtype == "f32":
            return False
        known = self.array(self.now(x))
        if n.attr("block_size"):
            if known is None:
                return False
            env = {v: self.old.constants.get(v) for v in n.inputs if v} | {x: known, "": None}
            self.store(n, compute(n, env))
            return True
        span = self._span(self.now(x))
        if scale.size == 1:
            scale, zero = scale.reshape(()), zero.reshape(())
        axis = n.attr("axis") % max(t.rank, 1)
        self.held[n.outputs[0]] = Held(self.now(x), scale, zero.astype(np.int64), axis, span)
        return True

    def _span(self, q: str) -> tuple[int, int]:
        """The least and the greatest of a value of integers."""
        if (a := self.array(q)) is not None and a.size:
            return int(a.min()), int(a.max())
        if q not in self.spans:
            info = np.iinfo(self.type(q).dtype.replace("i", "int").replace("u", "uint"))
            return int(info.min), int(info.max)
        return self.spans[q]

    def _quantize(self, n: Node) -> None:
        x, to, format = n.inputs[0], n.attr("to"), n.attr("format")
        scale = self.old.constants[n.inputs[1]].astype(np.float64).reshape(())
        named = n.inputs[2] if len(n.inputs) > 2 else ""
        zero = self.old.constants[named].reshape(()) if named else np.zeros((), np.int64)
        border = n.inputs[3] if len(n.inputs) > 3 else ""
        low, high = bounds(to, format)
        h = self.held.get(x)
        if h is not None and not border and on_grid(format) is None and self._is_same(n, h):
            self.let(n, (h.q,))
            return
        if self._reaches(x):
            v = self.build(x, 1 / scale)
        else:
            v = self.need(x)
            divisor = self.constant(scale.astype(np.float32), tag="scale")
            v = v if scale == 1 else self.op("Div", v, divisor)
        if border or on_grid(format) is not None or to == "f32":
            one = self.constant(np.array(1, np.float32), tag="one")
            made = self.op("QuantizeLinear", v, one, named, border, **n.attrs)
        else:
            v = self.op("Round", v)
            if zero:
                v = self.op("Add", v, self.constant(zero.astype(np.float32), tag="zero"))
            made = self.op("Cast", self.op("Clip", v, min=low, max=high), to=to)
        self.let(n, (made,))
        if to != "f32":
            self.spans[self.now(n.outputs[0])] = int(low), int(high)

    def _is_same(self, n: Node, h: Held) -> bool:
        """Whether a QuantizeLinear gives back the integers that its operand was made of."""
        low, high = bounds(n.attr("to"), n.attr("format"))
        scale, *given = (self.old.constants[v].reshape(()) for v in n.inputs[1:3] if v)
        zero = given[0] if given else np.zeros(())
        return bool(
            h.single
            and self.type(h.q).dtype == n.attr("to")
            and np.float32(h.scale) == np.float32(scale)
            and h.zero == zero
            and low <= h.span[0]
            and h.span[1] <= high
        )

    def _reaches(self, v: str) -> bool:
        """Whether integers are behind a value."""
        if v in self.sums or (v in self.held and self.array(self.held[v].q) is None):
            return True
        n = self.deferred.get(v)
        return n is not None and (n.op == "Cast" or any(map(self._reaches, n.inputs)))

    # --- what moves elements

    def _moved(self, n: Node) -> Held | None:
        """The integers of a result whose elements are those of a held value; None: compute in float."""
        h = self.held.get(n.inputs[0]) if n.inputs else None
        if h is None or len(n.outputs) > 1:
            return None
        if n.op == "Concat":
            rest = [self.held.get(v) for v in n.inputs]
            if not all(r is not None and r.as_before(h) and self._alike(r, h) for r in rest):
                return None
            q = self.op("Concat", *(r.q for r in rest if r), **n.attrs)
            low, high = (f(r.span[i] for r in rest if r) for i, f in enumerate((min, max)))
            return self._as(h, q, (low, high))
        if not h.single:
            return self._turned_weights(n, h)
        if n.op in MOVERS:
            return self._as(h, self._elements(n, h), h.span)
        if n.op == "MaxPool" and h.scale > 0:
            return self._as(h, self.op("MaxPool", h.q, **n.attrs), h.span)
        zero = int(h.zero)
        if n.op == "Pad" and n.attr("mode") == "constant" and not n.attr("value"):
            if not h.span[0] <= zero <= h.span[1] and self.array(h.q) is None:
                return None
            q = self.op("Pad", h.q, *n.inputs[1:], **{**n.attrs, "value": float(zero)})
            return self._as(h, q, (min(h.span[0], zero), max(h.span[1], zero)))
        if n.op == "Relu" and h.scale > 0:
            q = h.q if zero <= h.span[0] else self.op("Clip", h.q, min=float(zero))
            return self._as(h, q, (max(h.span[0], zero), max(h.span[1], zero)))
        return None

    def _elements(self, n: Node, h: Held) -> str:
        """The integers that a node picks from those of its first operand; of constants, constants."""
        a, rest = self.array(h.q), n.inputs[1:]
        known = {v: self.old.constants.get(v) for v in rest}
        if a is not None and all(known[v] is not None for v in rest if v):
            (made,) = compute(n, {n.inputs[0]: a, "": None, **known})
            return self.constant(np.ascontiguousarray(made), n.outputs[0], "bytes")
        return self.op(n.op, h.q, *(self.need(v) if v else "" for v in rest), **n.attrs)

    def _alike(self, a: Held, b: Held) -> bool:
        return self.type(a.q).dtype == self.type(b.q).dtype

    def _as(self, h: Held, q: str, span: tuple[int, int]) -> Held:
        if self.array(q) is None:
            self.spans[q] = span
        return replace(h, q=q, span=span)

    def _turned_weights(self, n: Node, h: Held) -> Held | None:
        """Constants with a scale for each place of an axis, transposed."""
        a = self.array(h.q)
        if a is None or n.op not in ("Transpose", "Identity"):
            return None
        perm = tuple(n.attr("perm")) if n.op == "Transpose" else tuple(range(a.ndim))
        perm = perm or tuple(reversed(range(a.ndim)))
        q = self.constant(np.ascontiguousarray(a.transpose(perm)), h.q, "turned")
        return replace(h, q=q, axis=perm.index(h.axis))

    # --- products

    def _product(self, n: Node) -> bool:
        """Sums of a product of held values, if they are exact; says why where they are not."""
        a, b = (self.held.get(v) for v in n.inputs[:2])
        if a is None or b is None or n.types[0].dtype != "f32":
            if a is not None and self.array(a.q) is None:
                self._remark(n, f"%{n.inputs[1]} is not quantized")
            return False
        why = unfit(self, n, a, b)
        if why is None:
            step = a.scale.astype(np.float64) * b.scale.astype(np.float64)
            bias, rest = self._bias(n, a, b)
            made = exact(self, n, a, b, bias) or "!"
            if made.startswith("!") and bias is not None:  # of a channel of tiny scale
                made, rest = exact(self, n, a, b, None) or "!", by_channel(bias * step, n)
            if not made.startswith("!"):
                self.sums[n.outputs[0]] = Sums(made, by_channel(step, n), rest)
                return True
            why = made.lstrip("!")
        self._remark(n, why)
        return False

    def _remark(self, n: Node, why: str) -> None:
        log.info("integers: %s %s stays in float: %s", n.op, n, why)

    def _bias(self, n: Node, a: Held, b: Held) -> tuple[Array | None, Array | str | None]:
        """(what is added to the sums, what is added to the result)."""
        v = n.inputs[2] if len(n.inputs) > 2 else ""
        if not v:
            return None, None
        h = self.held.get(v)
        step = a.scale.astype(np.float64) * b.scale.astype(np.float64)
        if h is not None and (q := self.array(h.q)) is not None and q.dtype == np.int32:
            mine = np.broadcast_to(h.scale, q.shape) if q.ndim == 1 else h.scale
            if not h.zero.any() and q.ndim == 1 and np.allclose(mine, step, 1e-5, 0):
                return q.astype(np.int64), None
        if h is not None or self.old.constants.get(v) is not None:
            c = self.array(self.need(v))
            if c is not None:
                return None, by_channel(c.astype(np.float64), n) if n.op == "Conv" else c
        return None, v

    def _emit_product(self, n: Node) -> None:
        """A product whose sums are there, unless a QuantizeLinear is waited for; or one of i32 on bytes."""
        v = n.outputs[0]
        if v in self.sums:
            if v not in self.waits:
                self.let(n, (self.build(v, ONE),))
                del self.sums[v]
            return None
        a, b = (self._behind(x) for x in n.inputs[:2])
        if a is None and b is not None and n.op == "MatMul" and self._moving(n, b):
            return None
        bias = n.inputs[2] if len(n.inputs) > 2 else ""
        known = self.old.constants.get(bias)
        if a is None or b is None or (bias and known is None) or n.op == "Gemm":
            return self._visit(n)
        why = unfit(self, n, a, b)
        made = (
            None if why else exact(self, n, a, b, None if known is None else known.astype(np.int64))
        )
        if made is None or made.startswith("!"):
            self._remark(n, why or str(made).lstrip("!"))
            return self._visit(n)
        self.let(n, (made,))
        return None

    def _moving(self, n: Node, b: Held) -> bool:
        """A product of rows whose zero point is computed, by constants: Σx·w - zx·Σw."""
        less, w = self.makers.get(n.inputs[0]), self.array(b.q)
        if (
            w is None
            or less is None
            or less.op != "Sub"
            or self.old_types[less.inputs[1]].count > 1
        ):
            return False
        x = self._behind(less.inputs[0])
        if (
            x is None
            or n.attr("trans_a")
            or n.attr("trans_b")
            or w.ndim != 2
            or unfit(self, n, x, b)
        ):
            return False
        made = exact(self, n, x, b, None)
        if made is None or made.startswith("!"):
            return False
        sums = (w.astype(np.int64) - along(b.zero, b.axis, 2)).sum(0)
        offset = self.constant(sums.astype(np.int32), tag="sums")
        moved = self.op("Mul", self.need(less.inputs[1]), offset)
        self.let(n, (self.op("Sub", made, moved),))
        return True

    def _behind(self, v: str) -> Held | None:
        h = bytes_behind(self, self.makers, self.old_types, v)
        return h and replace(h, span=self._span(h.q))
