"""What a matrix kernel computes: Conv and MatMul as one batched product with addressed operands.

    out[z, m, n] = Σ_k A[z, m, k] · B[z, k, n]        k increasing, one rounding a step

A convolution is such a product without a matrix: row m is an output pixel, k = (tap row, tap column, channel), and A[m, k] is a pixel of
the image or zero (`Window`). z runs over groups of a convolution or the batch axes of a MatMul; an axis that broadcasts has stride 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...ir import Node, Type
from ..generator import Group

PRODUCTS = frozenset({"Conv", "MatMul"})
BYTES = frozenset({"i8", "u8"})
"""Types that may multiply each other."""


@dataclass(frozen=True)
class Axis:
    """A batch axis: its size, and how far A, B and the result move a step, in elements."""

    size: int
    a: int
    b: int
    out: int


@dataclass(frozen=True)
class Window:
    """The geometry of a 2-D convolution over x[N, H, W, C]; pads are the top and left ones."""

    images: int
    h: int
    w: int
    oh: int
    ow: int
    kh: int
    kw: int
    sy: int
    sx: int
    py: int
    px: int
    dy: int
    dx: int
    fill: int = 0
    """What lies outside of the image."""

    @property
    def pointwise(self) -> bool:
        """One tap, always inside the image: rows of A are rows in memory."""
        inside = (self.oh - 1) * self.sy < self.h and (self.ow - 1) * self.sx < self.w
        return self.kh == self.kw == 1 and self.py == self.px == 0 and inside

    @property
    def taps(self) -> int:
        return self.kh * self.kw


@dataclass(frozen=True)
class Product:
    """A group seen as a product. `dtype` is A's type, and B's unless both are bytes. Pitches are elements from one row in memory to the next."""

    node: Node
    dtype: str
    m: int
    n: int
    k: int
    axes: tuple[Axis, ...]
    a: str
    b: str
    a_type: Type
    b_type: Type
    a_pitch: int
    b_pitch: int
    out_type: Type
    out_pitch: int
    trans_a: bool = False
    trans_b: bool = False
    window: Window | None = None
    bias: str = ""
    lead: int = 0
    """How many of the result's axes are batch axes, …"""
    rows: int = 0
    """… and how many after them m runs over; the rest is n."""
    listed: float = 0.0
    """The part of k that there is, if a list says which (`tilewise`): elements of a run of k then lie apart in memory. 0: there is no list."""

    @property
    def batch(self) -> int:
        return math.prod(axis.size for axis in self.axes)

    @property
    def macs(self) -> int:
        return self.batch * self.m * self.n * self.k

    @property
    def channels(self) -> int:
        """The length of a run of k whose elements lie side by side in memory (for an untransposed A)."""
        return self.k // self.window.taps if self.window else self.k


def product_of(group: Group) -> Product | str:
    """The group's product, or why it has none."""
    if "product" not in group.found:
        group.found["product"] = _product(group)
    known: Product | str = group.found["product"]
    return known


def _product(group: Group) -> Product | str:
    found = [n for n in group.nodes if n.op in PRODUCTS]
    if len(found) != 1:
        return f"has {len(found)} convolutions and matrix products, expected 1"
    node = found[0]
    types = dict(group.inputs)
    for n in group.nodes:
        types |= zip(n.outputs, n.types, strict=True)
    made = {v for n in group.nodes for v in n.outputs}
    if made & set(node.inputs):
        return f"{node.op} reads a value made in the same launch"
    a, b = (types[v].dtype for v in node.inputs[:2])
    if a != b and not {a, b} <= BYTES:
        return f"operands of different types: {a} and {b}"
    p = _conv(node, types) if node.op == "Conv" else _matmul(node, types)
    if isinstance(p, Product) and 0 in (p.batch, p.m, p.n, p.k):
        return f"{node.op} has nothing to multiply: {p.batch} times {p.m} by {p.k} by {p.n}"
    return p


def _conv(node: Node, types: dict[str, Type]) -> Product | str:
    x, w, y = types[node.inputs[0]], types[node.inputs[1]], node.types[0]
    at: Any = dict(node.attrs)
    if at.get("layout", "NCHW") != "NHWC":
        return "Conv is not in layout NHWC"
    if x.rank not in (3, 4):
        return f"Conv over {x.rank - 2} axes"
    (images, h, width, c), (kh, kw, per_group, o) = (
        _square(x.shape),
        (1, *w.shape) if x.rank == 3 else w.shape,
    )
    lead = 4 - x.rank
    strides, dilations = (
        (1,) * lead + tuple(at.get(name) or (1,) * (2 - lead)) for name in ("strides", "dilations")
    )
    begins = (0,) * lead + tuple(at.get("pads") or (0,) * 4)[: 2 - lead]
    oh, ow = _square(y.shape)[1:3]
    window = Window(images, h, width, oh, ow, kh, kw, *strides, *begins, *dilations)
    if at.get("pad_value", 0) and x.dtype not in BYTES:
        return f"around {x.dtype} lies {at['pad_value']}: LDG.IM2COL fills bytes"
    window = replace(window, fill=int(at.get("pad_value", 0)))
    if max(h, width) + max(kh * dilations[0], kw * dilations[1]) >= 1 << 14:
        return f"image of {h} by {width} pixels: the conv unit addresses up to 16,383"
    groups = int(at.get("group", 1))
    n, k = o // groups, kh * kw * per_group
    axes = (Axis(groups, per_group, n, n),) if groups > 1 else ()
    return Product(
        node, x.dtype, images * oh * ow, n, k, axes, node.inputs[0], node.inputs[1], x, w, c, o, y, o,
        window=window, bias=node.inputs[2] if len(node.inputs) > 2 else "", rows=y.rank - 1,
    )  # fmt: skip


def _square(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """[N, W, C] seen as [N, 1, W, C]."""
    return (shape[0], 1, *shape[1:]) if len(shape) == 3 else shape  # type: ignore[return-value]  # ranks 3 and 4 only


def _matmul(node: Node, types: dict[str, Type]) -> Product | str:
    a, b, y = types[node.inputs[0]], types[node.inputs[1]], node.types[0]
    trans_a, trans_b = (
        bool(node.attrs.get("trans_a", False)),
        bool(node.attrs.get("trans_b", False)),
    )
    sa = a.shape if a.rank > 1 else (1, *a.shape)
    sb, trans_b = (b.shape, trans_b) if b.rank > 1 else ((1, *b.shape), True)
    m, k = sa[:-3:-1] if trans_a else sa[-2:]
    n = sb[-2] if trans_b else sb[-1]
    lead = y.shape[: y.rank - (a.rank > 1) - (b.rank > 1)]
    batch_a, batch_b = ((1,) * (len(lead) - len(s) + 2) + s[:-2] for s in (sa, sb))
    folds = not trans_a and math.prod(batch_b) == 1 and a.rank > 1
    axes = () if folds else _axes(lead, batch_a, batch_b, m * k, k * n, m * n)
    shape: dict[str, Any] = {
        "lead": 0 if folds else len(lead),
        "rows": (a.rank > 1) + (len(lead) if folds else 0),
    }
    m = math.prod(lead) * m if folds else m
    return Product(
        node, a.dtype, m, n, k, axes, node.inputs[0], node.inputs[1], a, b, sa[-1], sb[-1], y, n, trans_a, trans_b, **shape,
    )  # fmt: skip


def _axes(
    lead: Sequence[int], batch_a: Sequence[int], batch_b: Sequence[int], a: int, b: int, out: int
) -> tuple[Axis, ...]:
    """The batch axes that are longer than 1, outermost first; `a`, `b`, `out` are the sizes of one matrix."""
    found: list[Axis] = []
    for size, na, nb in reversed(list(zip(lead, batch_a, batch_b, strict=True))):
        if size > 1:
            found.append(Axis(size, a if na > 1 else 0, b if nb > 1 else 0, out))
        a, b, out = a * na, b * nb, out * size
    return tuple(reversed(found))


@dataclass(frozen=True)
class Broadcast:
    """How an epilogue operand lies over the result: elements a row, a column and a step of each batch axis."""

    row: int
    col: int
    axes: tuple[int, ...]


def broadcast_of(p: Product, t: Type) -> Broadcast | str:
    """The strides of an operand of type `t` over the result, or why it has none: m must run over all of its rows or over one."""
    y = p.out_type.shape
    s = (1,) * (len(y) - len(t.shape)) + t.shape
    if len(s) != len(y) or any(a not in (1, b) for a, b in zip(s, y, strict=True)):
        return f"{t} does not broadcast to {p.out_type}"
    lead, rows, cols = s[: p.lead], s[p.lead : p.lead + p.rows], s[p.lead + p.rows :]
    height, width = math.prod(rows), math.prod(cols)
    if height not in (1, math.prod(y[p.lead : p.lead + p.rows])):
        return f"{t} broadcasts along some of the rows of {p.out_type}"
    row, col = width if height > 1 else 0, 1 if width > 1 else 0
    if p.window:  # groups cut the columns
        return Broadcast(row, col, tuple(axis.out * col for axis in p.axes))
    strides, step = list[int](), width * height
    for n, full in reversed(list(zip(lead, y, strict=False))):
        if full > 1:
            strides.append(step if n > 1 else 0)
        step *= n
    return Broadcast(row, col, tuple(reversed(strides)))
