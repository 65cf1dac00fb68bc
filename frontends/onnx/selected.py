"""Operators whose results have as many rows as the data decides: NonZero, Compress, Unique.

Inside a Graph every size is fixed. Such a result has as many rows as there can be, and a number beside it says how many are meant
(`rows`: what may be done with them, and how outputs are trimmed):

    mask       0 1 1 0 1
    before     0 0 1 2 2      exclusive running sum: where each chosen one goes, the others go behind the end
    chosen     1 2 4 0 0      their places, then zeros
    number     3

Unique sorts (TopK; slices by comparing each with each), marks where a run of equals begins, and chooses those.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from knapper.compiler.ir import DTYPES, Attr
from knapper.isa.errors import FrontendError

from .builder import Builder, Call, Sized
from .forms import form, only

COMPARISONS = 1 << 22
"""Elements that are compared when slices are sorted, at most."""


@dataclass(frozen=True)
class Chooser:
    """One node being written."""

    b: Builder
    call: Call

    def op(self, name: str, *operands: str, **attrs: Attr) -> str:
        """The first result of an op."""
        return self.b.emit(name, operands, attrs, loc=self.call.loc)[0]

    def ints(self, *values: int) -> str:
        return self.b.constant(np.array(values, np.int64), "chosen")

    def number(self, value: int) -> str:
        return self.b.constant(np.array(value, np.int64), "chosen")

    def count_up(self, n: int) -> str:
        return self.b.constant(np.arange(n), "chosen")

    def cut(self, v: str, start: int, end: int, axis: int = 0) -> str:
        return self.op("Slice", v, starts=(start,), ends=(end,), axes=(axis,), steps=(1,))

    def scattered(self, n: int, where: str, what: str, reduction: str = "none") -> str:
        """n zeros with numbers at these places."""
        zeros = self.b.constant(np.zeros(n, np.int64), "chosen")
        return self.op("ScatterElements", zeros, where, what, axis=0, reduction=reduction)

    def chosen(self, mask: str, rows: int) -> tuple[str, str]:
        """Places where an i64 mask is 1, then zeros, [rows]; and how many there are."""
        before = self.op("CumSum", mask, axis=0, exclusive=1)
        end = self.number(rows)
        inside = self.op("And", self.op("Greater", mask, self.number(0)), self.op("Less", before, end))  # fmt: skip
        at = self.op("Where", inside, before, end)
        n = self.b.shape(mask)[0]
        found = self.cut(self.scattered(rows + 1, at, self.count_up(n)), 0, rows)
        return found, self.op("ReduceSum", mask, axes=(0,), keepdims=0)

    def rows(self, bound: int) -> int:
        """How many rows to make: as many as there can be, but where the model is imported a second time."""
        return self.b.limits.get(self.call.loc, bound)

    def sized(self, number: str, bound: int, results: list[tuple[str, int]]) -> list[str]:
        """Say which results have that number of rows, and along which axis; where the number is known they are cut now."""
        if number in self.b.known:
            n = int(self.b.known[number])
            return [self.cut(v, 0, n, axis) for v, axis in results]
        self.b.sized[self.call.loc] = Sized(number, bound, dict(results))
        return [v for v, _ in results]


@form("NonZero", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """[rank, number] indices, in C order."""
    x = call.operand(0)
    if x in b.known:
        found = np.stack(np.nonzero(np.atleast_1d(b.known[x])))
        return [b.constant(found.astype(np.int64), only(call))]
    c, shape = Chooser(b, call), b.shape(x) or (1,)
    n = prod(shape)
    if not n:
        return [b.constant(np.zeros((len(shape), 0), np.int64), only(call))]
    mask = c.op("Cast", c.op("Cast", x, to="bool"), to="i64")
    places, number = c.chosen(c.op("Reshape", mask, shape=(n,)), c.rows(n))
    columns = []
    for i, size in enumerate(shape):
        at = c.op("Div", places, c.number(prod(shape[i + 1 :])))
        columns.append(c.op("Unsqueeze", c.op("Mod", at, c.number(size)), axes=(0,)))
    (y,) = b.emit("Concat", columns, {"axis": 0}, call.outputs, call.loc)
    return c.sized(number, n, [(y, 1)])


@form("Compress", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """Slices along an axis, or elements, where a condition is true."""
    x, condition = call.operand(0), call.operand(1)
    c, shape = Chooser(b, call), b.shape(x)
    if "axis" not in call.attrs:
        shape = (prod(shape),)
        x = c.op("Reshape", x, shape=shape)
    axis = call.integer("axis") % max(len(shape), 1)
    (n,) = b.shape(condition) if len(b.shape(condition)) == 1 else (-1,)
    if not 0 <= n <= shape[axis]:
        raise FrontendError("E206", f"Compress of {b.type(x)} by {b.type(condition)}")
    if condition in b.known or not n:
        places = b.constant(np.flatnonzero(b.known.get(condition, [])), "chosen")
        return b.emit("Gather", [x, places], {"axis": axis}, call.outputs, call.loc)
    places, number = c.chosen(c.op("Cast", condition, to="i64"), c.rows(n))
    (y,) = b.emit("Gather", [x, places], {"axis": axis}, call.outputs, call.loc)
    return c.sized(number, n, [(y, axis)])


# --- Unique -------------------------------------------------------------------------------------------------------------


@form("Unique", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """Elements, or slices along an axis, once each: sorted, or as they first occur; where, which of them each one is, and how often."""
    x, c = call.operand(0), Chooser(b, call)
    shape = b.shape(x)
    whole = "axis" not in call.attrs
    axis = 0 if whole else call.integer("axis") % max(len(shape), 1)
    if not prod(shape):
        raise FrontendError("E203", f"Unique of {b.type(x)}, which is empty, is not supported")
    order = (axis, *(i for i in range(len(shape)) if i != axis))
    rest = () if whole else tuple(shape[i] for i in order[1:])
    n, m = (prod(shape), 1) if whole else (shape[axis], prod(rest))
    if not whole and axis:
        x = c.op("Transpose", x, perm=order)
    slices = c.op("Reshape", x, shape=(n, m))
    places = _by_value(c, slices) if m == 1 else _by_slices(c, slices)
    first, group, begins = _runs(c, slices, places)
    bound = c.rows(n)
    if call.integer("sorted", 1):
        at, number = c.chosen(begins, bound)
        indices = c.op("Gather", places, at)
        inverse = group
    else:
        leads = c.op("Equal", first, c.count_up(n))
        mask = c.op("Cast", leads, to="i64")
        indices, number = c.chosen(mask, bound)
        inverse = c.op("Gather", c.op("CumSum", mask, axis=0, exclusive=1), first)
    ones = b.constant(np.ones(n, np.int64), "chosen")
    counts = c.scattered(max(n, bound), inverse, ones, "add")
    y = c.op("Reshape", c.op("Gather", slices, indices, axis=0), shape=(bound, *rest))
    if not whole and axis:
        y = c.op("Transpose", y, perm=tuple(int(i) for i in np.argsort(order)))
    y, indices, counts = c.sized(number, n, [(y, axis), (indices, 0), (c.cut(counts, 0, bound), 0)])
    return [y, indices, inverse, counts][: len(call.outputs)]


def _by_value(c: Chooser, slices: str) -> str:
    """Places of single elements, the least first, of equals the first."""
    n = c.b.shape(slices)[0]
    flat = c.op("Reshape", slices, shape=(n,))
    if c.b.type(flat).dtype == "bool":
        flat = c.op("Cast", flat, to="u8")
    if not c.b.type(flat).dtype.startswith(("f", "bf")):
        return _ascending(c, flat)
    nan = _no_number(c, flat)  # which has no place in an order: behind all others
    end = c.b.constant(np.array(np.inf, DTYPES[c.b.type(flat).dtype]), "chosen")
    places = _ascending(c, c.op("Where", nan, end, flat))
    last = c.op("Gather", c.op("Cast", nan, to="u8"), places)
    return c.op("Gather", places, _ascending(c, last))


def _no_number(c: Chooser, v: str) -> str:
    """Whether elements are NaN; TVM asks no bf16."""
    return c.op("IsNaN", c.op("Cast", v, to="f32") if c.b.type(v).dtype == "bf16" else v)


def _ascending(c: Chooser, flat: str) -> str:
    """Places of elements, the least first, of equals the first."""
    attrs: dict[str, Attr] = {"k": c.b.shape(flat)[0], "axis": 0, "largest": 0}
    return c.b.emit("TopK", [flat], attrs, ("", ""), c.call.loc)[1]


def _by_slices(c: Chooser, slices: str) -> str:
    """Places of slices [n, m] in lexicographic order: each one's rank is how many are before it."""
    n, m = c.b.shape(slices)
    if n * n * m > COMPARISONS:
        problem = f"Unique along an axis compares each slice with each: {n:,} of {m:,} elements"
        raise FrontendError("E203", problem, hint=f"{COMPARISONS:,} comparisons are the limit")
    one, other = (c.op("Unsqueeze", slices, axes=(i,)) for i in (1, 0))
    above, below = (c.op("Cast", c.op(o, one, other), to="i64") for o in ("Greater", "Less"))
    order = c.op("Sub", above, below)
    earlier = c.op("CumSum", c.op("Add", above, below), axis=2, exclusive=1)
    decides = c.op("Where", c.op("Equal", earlier, c.number(0)), order, c.number(0))
    sign = c.op("ReduceSum", decides, axes=(2,), keepdims=0)
    lower = c.b.constant(np.tri(n, k=-1, dtype=np.bool_), "chosen")
    ties = c.op("And", c.op("Equal", sign, c.number(0)), lower)
    behind = c.op("Or", c.op("Greater", sign, c.number(0)), ties)
    rank = c.op("ReduceSum", c.op("Cast", behind, to="i64"), axes=(1,), keepdims=0)
    return c.scattered(n, rank, c.count_up(n))


def _runs(c: Chooser, slices: str, places: str) -> tuple[str, str, str]:
    """For each slice the first one that is equal and the number of its run; and where runs begin in the order of `places`. [n] each."""
    n = c.b.shape(slices)[0]
    ordered = c.op("Gather", slices, places, axis=0)
    begins = c.ints(1)
    if n > 1:
        here, before = c.cut(ordered, 1, n), c.cut(ordered, 0, n - 1)
        same = c.op("Equal", here, before)
        if c.b.type(ordered).dtype.startswith(("f", "bf")):  # a NaN is no other NaN's equal
            same = c.op("Or", same, c.op("And", *(_no_number(c, v) for v in (here, before))))
        new = c.op("ReduceMax", c.op("Cast", c.op("Not", same), to="i64"), axes=(1,), keepdims=0)
        begins = c.op("Concat", begins, new, axis=0)
    runs = c.op("Sub", c.op("CumSum", begins, axis=0), c.number(1))
    group = c.scattered(n, places, runs)
    starts, _ = c.chosen(begins, n)
    return c.op("Gather", c.op("Gather", places, starts), group), group, begins
