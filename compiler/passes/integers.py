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
    unfit,
)
from ..quantization.moves import moved
from ..quantization.values import LINEAR, ONE, PRODUCTS, SMALLEST, Sums, Values
from .base import Pass

log = logging.getLogger("knapper")


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


class _Integers(Values):
    """The walk: `waits` are values that one QuantizeLinear will ask for in steps of its scale."""

    def __init__(self, g: Graph) -> None:
        super().__init__(g)
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
        if (held := moved(self, n)) is not None:
            self.held[v] = held
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
        span = self.span_of(self.now(x))
        if scale.size == 1:
            scale, zero = scale.reshape(()), zero.reshape(())
        axis = n.attr("axis") % max(t.rank, 1)
        self.held[n.outputs[0]] = Held(self.now(x), scale, zero.astype(np.int64), axis, span)
        return True

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
        if self.reaches(x):
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
        return h and replace(h, span=self.span_of(h.q))
