"""From accumulators to memory: the nodes after the product, in fp32 and in graph order, then the stores.

A generator hands over its accumulators as spots of a grid: a spot's place in the result is a part that depends on the thread, the same for all
spots, plus a row and a column known now. So one address register serves all loads and stores of a tensor, values that depend on
the column only are made once a column, and so on.

No load passes a store, which might write what it reads. So operands of many spots are loaded before the first of them is stored,
as many as there is `room` for in registers: their latencies pass together.

Integers are in registers as 32 bits, narrower ones extended, so only a Cast tells them apart. One from fp32 to 8 bits is a conversion that
rounds and saturates, which takes in the Round and the Clip before it.

    row = thread's row + spot.row        col = thread's col + spot.col
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from knapper.isa.instructions import FADD, IADD, IMNMX, ISETP, LDG, SEL, STG
from knapper.isa.modifiers import Bits32, Cmp, MinMax, Scalar, Width

from ...ir import DTYPES, Node, Type
from ...ops.unary import clip_bounds
from ..builder import PT, KernelBuilder, VPred, VReg, VUReg
from ..generator import Group
from ..scalar import CHOOSING, INTEGER, INTEGERS, SCALAR, arith, convert, whole
from . import requantize
from .access import WIDTHS, width_of
from .code import S32, Number, add, fixed, move_base, mul, param, uadd, umul
from .product import Broadcast, Product, broadcast_of
from .requantize import BORDER, QUANTIZE, border_of, from_float

TYPES = {"f16": Scalar.F16, "bf16": Scalar.BF16, "f32": Scalar.F32}
BYTES: dict[str, int] = {
    dtype: np.dtype(DTYPES[dtype]).itemsize
    for dtype in (*TYPES, *INTEGERS, "f64", "u32", "i64", "u64")
}
NUMBER = "number"
"""The form of a value in which it is computed with, …"""
REAL = "real"
"""… and in which it is if it shall be fp32, also an integer."""
EXACT = frozenset({"Relu", "Max", "Min", "Abs", "Neg", "Identity"})
"""Ops whose result is one of the operands or its negation: nothing to round."""


def loading(dtype: str) -> Width:
    """How an element is loaded: narrow integers are extended."""
    return width_of(BYTES[dtype], signed=dtype[0] == "i")


@dataclass(frozen=True)
class Spot:
    """One accumulator and the fixed part of its place."""

    acc: VReg
    row: int
    col: int


Line = tuple[VReg, VReg | None]
"""The lane part of a row in the result, and its bound."""


@dataclass(frozen=True)
class Frame:
    """Where the thread's spots begin in the result: uniform parts in `row0`, `col0`, lane parts in `row`, `col`.

    `bound` is what must stay below `limit` minus the spot's row (None: all rows exist); `cols` is the number of columns if some
    spots lie beyond it, else 0. `axes` are the block's coordinates on the batch axes.

    Where rows are not evenly spaced, `lines` tells for a spot's row the thread's row in the result and its bound, instead of `row`
    and `bound`; then the spot's row adds nothing. Likewise `columns` for a spot's column, instead of `col0` and `col`; where it gives `cols`
    or more, there is no column.
    """

    row0: Number
    col0: Number
    row: VReg
    col: VReg
    bound: VReg | None
    limit: int
    cols: int
    axes: tuple[Number, ...]
    lines: Callable[[int], Line] | None = None
    columns: Callable[[int], VReg] | None = None


def refusal(group: Group, p: Product) -> str | None:
    """Why the nodes around the product cannot be an epilogue, or None."""
    types = dict(group.inputs)
    for n in group.nodes:
        types |= zip(n.outputs, n.types, strict=True)
    for n in group.nodes:
        if n is p.node:
            continue
        if why := requantize.refusal(n, types) if n.op == QUANTIZE else _unlowered(n, types):
            return why
        for v in (*filter(None, n.inputs), *n.outputs):
            if isinstance(over := _over(p, n, v, types[v]), str):
                return over
    if p.bias and p.out_type.dtype in INTEGERS and types[p.bias].dtype != p.out_type.dtype:
        return f"a bias of {types[p.bias].dtype} on sums of {p.out_type.dtype}"
    stored = [v for v in group.outputs if types[v].shape != p.out_type.shape]
    return f"result %{stored[0]} is smaller than the product" if stored else None


def _over(p: Product, n: Node, v: str, t: Type) -> Broadcast | str:
    """How an operand of a node lies over the result: of a border one of its numbers."""
    return broadcast_of(p, requantize.part(t) if v == border_of(n) else t)


def _unlowered(n: Node, made: Mapping[str, Type]) -> str | None:
    """Why a node has no instructions on its operands and results, or None."""
    if n.op not in SCALAR and n.op not in INTEGER and n.op != "Cast":
        return f"{n.op} has no scalar lowering"
    for t in (made[v] for v in (*n.inputs, *n.outputs)):
        known = SCALAR if t.dtype in TYPES else _integer(t.dtype)
        if known is None or (n.op != "Cast" and n.op not in known):
            return f"{n.op} works on {t}"
    return None


def _integer(dtype: str) -> Container[str] | None:
    return INTEGER if dtype == "i32" else CHOOSING if dtype in INTEGERS else None


def operands(group: Group, p: Product) -> list[str]:
    """The values in memory that the epilogue reads, in the order of their parameters."""
    found = [p.bias] if p.bias else []
    found += [v for n in group.nodes if n is not p.node for v in n.inputs if v in group.inputs]
    return list(dict.fromkeys(found))


def varying_operands(group: Group, p: Product) -> list[str]:
    """Those of them that differ from row to row."""
    ways = {v: broadcast_of(p, group.inputs[v]) for v in operands(group, p)}
    return [v for v, way in ways.items() if isinstance(way, Broadcast) and way.row]


ROOM = 32
"""Registers that operands take at a time, if a kernel does not say otherwise: about what the main loop had for its own."""


def in_order(spots: list[Spot]) -> list[Spot]:
    """By rows, then by columns."""
    return sorted(spots, key=lambda s: (s.row, s.col))


class Epilogue:
    """Emits the epilogue of one kernel. `parameters` maps values in memory to their parameter's number; operands take up to `room`
    registers."""

    def __init__(
        self,
        b: KernelBuilder,
        group: Group,
        p: Product,
        frame: Frame,
        parameters: dict[str, int],
        room: int = ROOM,
    ) -> None:
        self.b, self.group, self.p, self.frame, self.parameters = b, group, p, frame, parameters
        self.maker = {v: n for n in group.nodes for v in n.outputs}
        self.role = {n.outputs[0]: i for i, n in enumerate(group.nodes)}
        self.types = dict(group.inputs)
        for n in group.nodes:
            self.types |= zip(n.outputs, n.types, strict=True)
        self.values: dict[tuple[Any, ...], VReg] = {}
        self.bases: dict[str, VUReg] = {}
        self.lanes: dict[tuple[Any, ...], VReg] = {}
        self.lines: dict[int, Line] = {}
        self.guards: dict[tuple[int, int], VPred | Any] = {}
        self.read = operands(group, p)
        self.borders = {border_of(n) for n in group.nodes}
        ways = {
            v: broadcast_of(p, requantize.part(t) if v in self.borders else t)
            for v, t in self.types.items()
            if v in self.maker or v in self.read
        }
        self.ways = {v: way for v, way in ways.items() if isinstance(way, Broadcast)}
        self.own = self._dependent()
        varying = len(varying_operands(group, p))
        self.at_once = max(room // varying, 1) if varying else None
        """Spots whose operands are loaded together; None: the operands are the same in all rows."""

    def _dependent(self) -> set[str]:
        """The values that depend on the product: one a spot, whatever their shape."""
        found = set(self.p.node.outputs)
        for n in self.group.nodes:
            if found & set(n.inputs):
                found |= set(n.outputs)
        return found

    def begin(self, spots: list[Spot]) -> None:
        """Do what needs no accumulator yet: addresses, and loads for the first spots."""
        for v in self.group.outputs:
            self._base(v)
            self._address(v, spots[0])
        self._load(in_order(spots)[: self.at_once])

    def emit(self, spots: list[Spot]) -> None:
        """Compute and store every spot, a row of spots at a time."""
        spots, step = in_order(spots), self.at_once or len(spots)
        for some in (spots[i : i + step] for i in range(0, len(spots), step)):
            self._load(some)
            for s in some:
                guard = self._guard(s)
                for v in self.group.outputs:
                    self._store(v, s, guard)
                self._forget(s)

    def _load(self, spots: list[Spot]) -> None:
        """Load the operands of spots as they are stored."""
        for s in spots if self.read else ():
            for v in self.read:
                for form in BORDER if v in self.borders else ("raw",):
                    self._value(v, s, form)
            self._forget_guards(s)

    def _forget(self, s: Spot) -> None:
        """A spot is done: forget what no later one needs."""
        self.values = {
            k: r
            for k, r in self.values.items()
            if k[1] is None or k[1] > s.row or (k[1] == s.row and (k[2] is None or k[2] > s.col))
        }
        self._forget_guards(s)

    def _forget_guards(self, s: Spot) -> None:
        """There are few predicates: those of other rows are made again."""
        self.guards = {k: g for k, g in self.guards.items() if k[0] == s.row}

    # --- who takes part

    def _guard(self, s: Spot) -> VPred | Any:
        """The predicate of the lanes whose spot exists."""
        f = self.frame
        key = (s.row, s.col if f.cols else 0)
        if key not in self.guards:
            self.guards[key] = self._inside(s)
        return self.guards[key]

    def _inside(self, s: Spot) -> VPred | Any:
        f, (_, bound), step = self.frame, self._line(s), self._step(s)
        if bound is None and not f.cols:
            return PT
        if bound is None:
            return self._below(self._column(s), f.cols - self._across(s))
        inside = bound if not f.cols else self._bound(s, bound)
        return self._below(inside, f.limit - step)

    def _line(self, s: Spot) -> Line:
        """The lane part of a spot's row, and its bound."""
        f = self.frame
        if f.lines is None:
            return f.row, f.bound
        if s.row not in self.lines:
            with self.b.under(PT):
                self.lines[s.row] = f.lines(s.row)
        return self.lines[s.row]

    def _step(self, s: Spot) -> int:
        """What a spot's row adds to the lane part."""
        return s.row if self.frame.lines is None else 0

    def _below(self, x: VReg, limit: int) -> VPred:
        p = self.b.pred()
        self.b.emit(ISETP, Cmp.LT, S32, p, x, limit)
        return p

    def _column(self, s: Spot) -> VReg:
        """The lane part of a spot's column in the result, …"""
        f, columns = self.frame, self.frame.columns
        if columns is not None:
            return self._once(("column", s.col), lambda: columns(s.col))
        return self._once(("column",), lambda: add(self.b, f.col, f.col0))

    def _across(self, s: Spot) -> int:
        """… and what the spot's own adds to it."""
        return s.col if self.frame.columns is None else 0

    def _bound(self, s: Spot, bound: VReg) -> VReg:
        """The row bound, raised out of reach in lanes whose column does not exist."""

        def make() -> VReg:
            d = self.b.reg()
            inside = self._below(self._column(s), self.frame.cols - self._across(s))
            self.b.emit(SEL, Bits32._32, d, bound, 0x7FFFFFFF, inside)
            return d

        return self._once(("bound", s.col, s.row - self._step(s)), make)

    def _once(self, key: tuple[Any, ...], make: Any) -> VReg:
        if key not in self.lanes:
            with self.b.under(PT):
                self.lanes[key] = make()
        return self.lanes[key]

    # --- addresses

    def _base(self, value: str) -> VUReg:
        """The parameter, moved to where the thread's spots begin."""
        if value not in self.bases:
            with self.b.under(PT):
                self.bases[value] = self._new_base(value)
        return self.bases[value]

    def _new_base(self, value: str) -> VUReg:
        b, f, way = self.b, self.frame, self.ways[value]
        base, size = param(b, self.parameters[value]), BYTES[self.types[value].dtype]
        at = umul(b, f.row0, way.row * size)
        apart = self._clamped(way) or f.columns is not None
        at = at if apart else uadd(b, at, umul(b, f.col0, way.col * size))
        for axis, stride in zip(f.axes, way.axes, strict=True):
            at = uadd(b, at, umul(b, axis, stride * size))
        move_base(b, base, at)
        return base

    def _clamped(self, way: Broadcast) -> bool:
        """A vector along the columns is read in every lane, so lanes beyond its end read its last element."""
        return self.frame.cols > 0 and way.col == 1 and not way.row

    def _address(self, value: str, s: Spot) -> tuple[VReg, int]:
        b, way, size = self.b, self.ways[value], BYTES[self.types[value].dtype]
        if self._clamped(way):
            return self._once(("clamped", s.col, size), lambda: self._last(s, size)), 0
        (row, _), step, across = self._line(s), self._step(s), self._across(s)
        lane = self._once(
            (
                "lane",
                way.row,
                way.col,
                size,
                (s.row - step) if way.row else 0,
                (s.col - across) * way.col,
            ),
            lambda: self._lane(row, s, way.row * size, way.col * size),
        )
        offset = (step * way.row + across * way.col) * size
        return (lane, offset) if offset < 1 << 23 else (add(b, lane, offset), 0)

    def _lane(self, line: VReg, s: Spot, row: int, col: int) -> VReg:
        across = self.frame.col if self.frame.columns is None or not col else self._column(s)
        if not row:
            return mul(self.b, across, col) if col else fixed(self.b, 0)
        return mul(self.b, line, row, mul(self.b, across, col) if col else None)

    def _last(self, s: Spot, size: int) -> VReg:
        d, column = self.b.reg(), add(self.b, self._column(s), self._across(s))
        self.b.emit(IMNMX, MinMax.MIN, S32, d, column, self.frame.cols - 1)
        return mul(self.b, d, size)

    # --- values

    def _rowwise(self, value: str) -> bool:
        return value in self.own or self.ways[value].row > 0

    def _key(self, value: str, s: Spot, form: str) -> tuple[Any, ...]:
        by_col = value in self.own or self.ways[value].col > 0
        return (value, s.row if self._rowwise(value) else None, s.col if by_col else None, form)

    def _value(self, value: str, s: Spot, form: str = NUMBER) -> VReg:
        """A value's register: as a number in fp32 or of 32 bits, `real`, or `raw`, in its stored type; of a border one of its numbers."""
        dtype = self.types[value].dtype
        if form == REAL if dtype not in INTEGERS else form == "raw":
            form = NUMBER
        form = NUMBER if dtype == "f32" and form == "raw" else form
        key = self._key(value, s, form)
        if key not in self.values:
            with self.b.under(self._guard(s) if self._rowwise(value) else PT):
                self.values[key] = self._make(value, s, form, dtype)
        return self.values[key]

    def _make(self, value: str, s: Spot, form: str, dtype: str) -> VReg:
        node = self.maker.get(value)
        if node is not None:
            self.b.role(self.role[node.outputs[0]])
        if form == REAL:
            return convert(self.b, self._value(value, s), Scalar.F32, Scalar.S32)
        if form in BORDER:
            return self._fetch(value, s, BORDER.index(form))
        if dtype in INTEGERS or dtype == "f32":
            return self._fetch(value, s) if node is None else self._number(node, s)
        if dtype not in TYPES:
            return s.acc
        if form == "raw":
            return self._fetch(value, s) if node is None else self._rounded(node, s)
        if node is not None and node.op in EXACT:
            return self._number(node, s)
        return self.widened(self._value(value, s, "raw"), dtype)

    def widened(self, raw: VReg, dtype: str) -> VReg:
        """The number in a register that was loaded."""
        if dtype == "f32" or dtype in INTEGERS:
            return raw
        return convert(self.b, raw, Scalar.F32, TYPES[dtype])

    def _fetch(self, value: str, s: Spot, part: int = 0) -> VReg:
        base, t = self._base(value), self.types[value]
        a, offset = self._address(value, s)
        offset += part * requantize.part(t).bytes if part else 0
        d = self.b.reg()
        self.b.emit(LDG, loading(t.dtype), d, base, a, offset)
        return d

    def _rounded(self, node: Node, s: Spot) -> VReg:
        """The node's result in its stored type of 16 bits."""
        to = TYPES[node.types[0].dtype]
        if node.op == "Cast" and self.types[node.inputs[0]].dtype in INTEGERS:
            return convert(self.b, self._value(node.inputs[0], s), to, Scalar.S32)
        return convert(self.b, self._number(node, s), to, Scalar.F32)

    def _number(self, node: Node, s: Spot) -> VReg:
        """The node's result as a number, before a float is rounded to its stored type."""
        if node is self.p.node:
            return self._product(s)
        dtype = node.types[0].dtype
        if node.op == "Cast":
            return self._cast(node, s, dtype)
        if node.op == QUANTIZE:
            return self._quantized(node, s)
        xs, attrs = [self._value(v, s) for v in node.inputs], node.attrs
        self.b.role(self.role[node.outputs[0]])
        if dtype not in INTEGERS:
            return SCALAR[node.op](self.b, *xs, **attrs)
        if node.op == "Clip":
            bounds: Any = (node.attr("min"), node.attr("max"))
            attrs = dict(zip(("min", "max"), clip_bounds(dtype, *bounds), strict=True))
        return INTEGER[node.op](self.b, *xs, **attrs)

    def _cast(self, node: Node, s: Spot, to: str) -> VReg:
        """A Cast's result as a number."""
        source = node.inputs[0]
        if self.types[source].dtype in INTEGERS:
            x = self._value(source, s)
            self.b.role(self.role[node.outputs[0]])
            same = to in ("i32", self.types[source].dtype)
            return x if same else convert(self.b, x, INTEGERS.get(to, Scalar.F32), Scalar.S32)
        source, rounding = from_float(node, self.maker) if to in INTEGERS else (source, None)
        x = self._value(source, s)
        self.b.role(self.role[node.outputs[0]])
        return x if rounding is None else convert(self.b, x, INTEGERS[to], Scalar.F32, rounding)

    def _quantized(self, node: Node, s: Spot) -> VReg:
        x, scale, *more = node.inputs
        zero = self._value(more[0], s, REAL) if more and more[0] else None
        border = [self._value(more[1], s, part) for part in BORDER] if border_of(node) else []
        v = SCALAR["Div"](self.b, self._value(x, s, REAL), self._value(scale, s, REAL))
        self.b.role(self.role[node.outputs[0]])
        return requantize.quantized(self.b, node, v, zero, border)

    def _product(self, s: Spot) -> VReg:
        if not self.p.bias:
            return s.acc
        bias = self._value(self.p.bias, s)
        if self.p.out_type.dtype in INTEGERS:
            return whole(self.b, IADD, s.acc, bias)
        return arith(self.b, FADD, s.acc, bias)

    def _store(self, value: str, s: Spot, guard: Any) -> None:
        register = self._value(value, s, "raw")
        base = self._base(value)
        a, offset = self._address(value, s)
        self.b.role(self.role[self.maker[value].outputs[0]])
        self.b.emit(
            STG, WIDTHS[BYTES[self.types[value].dtype]], base, a, offset, register, guard=guard
        )
