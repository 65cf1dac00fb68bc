"""GridSample and DeformConv: values of an image at places that are computed, for any number of spatial axes.

    grid[n, …, (x, y)] in [-1, 1] ──► coordinate of a pixel ──► neighbours and weights, axis by axis ──► Σ weight · image[neighbour]
                                      border, reflection         1 (nearest), 2 (linear) or 4 (cubic) an axis

The image becomes rows of channels, so that one GatherND with the batch finds a neighbour of all places and channels.

DeformConv samples the pixel under each tap of its kernel, moved by an offset, and is a matrix product of the kernel with what it found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from knapper.compiler.ir import DTYPES, Array, Attr
from knapper.isa.errors import FrontendError

from .builder import Builder, Call
from .forms import form

CUBIC = -0.75
"""The coefficient of ONNX's cubic interpolation."""
MODES = {"bilinear": "linear", "bicubic": "cubic"}
"""What modes were called before opset 20."""


@dataclass(frozen=True)
class Sampler:
    """One GridSample being written."""

    b: Builder
    call: Call
    mode: str
    padding: str
    corners: bool
    dtype: str

    def op(self, name: str, *operands: str, **attrs: Attr) -> str:
        """The result of an op."""
        return self.b.emit(name, operands, attrs, loc=self.call.loc)[0]

    def number(self, value: float) -> str:
        """A constant of the grid's type."""
        return self.b.constant(np.array(value, DTYPES[self.dtype]), "grid")

    def plus(self, v: str, value: float) -> str:
        return self.op("Add", v, self.number(value))

    def times(self, v: str, value: float) -> str:
        return self.op("Mul", v, self.number(value))

    # --- where

    def span(self, size: int) -> tuple[float, float]:
        """The first and the last coordinate of an axis: centres of pixels, or their outer edges."""
        return (0.0, size - 1.0) if self.corners else (-0.5, size - 0.5)

    def coordinate(self, g: str, size: int) -> str:
        """From [-1, 1] to pixels."""
        low, high = self.span(size)
        return self.plus(self.times(self.plus(g, 1.0), (high - low) / 2), low)

    def kept(self, v: str, size: int) -> str:
        """A coordinate or the index of a neighbour, brought back into the image where the padding says so."""
        if self.padding == "border":
            return self.op("Clip", v, min=0.0, max=size - 1.0)
        if self.padding != "reflection":
            return v
        low, high = self.span(size)
        if high == low:
            return self.times(v, 0.0)
        turn = self.number(2 * (high - low))
        along = self.op("Mod", self.plus(v, -low), turn)
        return self.plus(self.op("Min", along, self.op("Sub", turn, along)), low)

    def neighbours(self, g: str, size: int) -> Iterator[tuple[str, str]]:
        """Indices, still as floats, and weights along an axis; "" for a weight of one."""
        at = self.coordinate(g, size)
        if self.mode == "nearest":
            yield self.op("Round", at), ""
            return
        at = self.kept(at, size) if self.mode == "linear" else at
        first = self.op("Floor", at)
        part = self.op("Sub", at, first)
        if self.mode == "linear":
            yield first, self.op("Sub", self.number(1.0), part)
            yield self.plus(first, 1.0), part
            return
        for i in range(-1, 3):
            yield self.plus(first, float(i)), self.cubic(part, i)

    def cubic(self, part: str, i: int) -> str:
        """The weight of the neighbour i of a place `part` behind neighbour 0."""
        away = self.op("Abs", self.plus(part, -float(i)))
        near = (CUBIC + 2, -(CUBIC + 3), 0.0, 1.0)
        far = (CUBIC, -5 * CUBIC, 8 * CUBIC, -4 * CUBIC)
        y = self.number(0.0)
        for c in near if i in (0, 1) else far:
            y = self.plus(self.op("Mul", y, away), c)
        return y

    # --- what

    def sampled(self, x: str, grid: str) -> str:
        """[N, C, L] of x[N, C, …] and grid[N, …, axes]."""
        shape, places = self.b.shape(x), self.b.shape(grid)
        n, c, sizes = shape[0], shape[1], shape[2:]
        length = prod(places[1:-1])
        rows = self.op("Reshape", x, shape=(n, c, prod(sizes)))
        flat = self.op("Reshape", grid, shape=(n, length, len(sizes)))
        at = [self.axis(flat, len(sizes) - 1 - i) for i in range(len(sizes))]
        return self.op("Transpose", self.at(rows, sizes, at), perm=(0, 2, 1))

    def at(self, x: str, sizes: tuple[int, ...], places: list[str]) -> str:
        """[N, L, C] of x[N, C, pixels] at coordinates [N, L], one tensor an axis."""
        rows = self.op("Transpose", x, perm=(0, 2, 1))
        axes = [list(self.neighbours(v, size)) for v, size in zip(places, sizes, strict=True)]
        total = ""
        for chosen in product(*axes):
            term = self.term(rows, sizes, [v for v, _ in chosen], [w for _, w in chosen if w])
            total = self.op("Add", total, term) if total else term
        return total

    def axis(self, flat: str, i: int) -> str:
        """One coordinate of all places. [N, L]"""
        column = self.op("Slice", flat, starts=(i,), ends=(i + 1,), axes=(2,), steps=(1,))
        return self.op("Squeeze", column, axes=(2,))

    def term(
        self, rows: str, sizes: tuple[int, ...], indices: list[str], weights: list[str]
    ) -> str:
        """weight · image[neighbour] of all places. [N, L, C]"""
        at, inside = "", ""
        for v, size in zip(indices, sizes, strict=True):
            kept = self.kept(v, size)
            if self.padding == "zeros":
                within = self.op("Equal", kept, self.op("Clip", kept, min=0.0, max=size - 1.0))
                inside = self.op("And", inside, within) if inside else within
            kept = self.op("Clip", kept, min=0.0, max=size - 1.0)
            whole = self.op("Cast", self.op("Round", kept), to="i64")
            stride = self.b.constant(np.array(size, np.int64), "size")
            at = self.op("Add", self.op("Mul", at, stride), whole) if at else whole
        values = self.op("GatherND", rows, self.op("Unsqueeze", at, axes=(2,)), batch_dims=1)
        for w in weights:
            values = self.op("Mul", values, self.op("Unsqueeze", w, axes=(2,)))
        if not inside:
            return values
        return self.op("Where", self.op("Unsqueeze", inside, axes=(2,)), values, self.number(0.0))


@form("GridSample", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    x, grid = call.operand(0), call.operand(1)
    shape, places = b.shape(x), b.shape(grid)
    mode = str(call.attrs.get("mode", "linear"))
    mode = MODES.get(mode, mode)
    padding = str(call.attrs.get("padding_mode", "zeros"))
    if mode not in ("linear", "nearest", "cubic") or padding not in (
        "zeros",
        "border",
        "reflection",
    ):
        raise FrontendError("E206", f"GridSample has no mode {mode!r} with padding {padding!r}")
    if len(shape) < 3 or len(places) != len(shape) or places[-1] != len(shape) - 2:
        raise FrontendError("E206", f"GridSample of {b.type(x)} at {b.type(grid)}")
    if b.type(x).dtype != b.type(grid).dtype:
        (grid,) = b.emit("Cast", [grid], {"to": b.type(x).dtype}, loc=call.loc)
    corners = bool(call.integer("align_corners"))
    sampler = Sampler(b, call, mode, padding, corners, b.type(x).dtype)
    final = (*shape[:2], *places[1:-1])
    return b.emit("Reshape", [sampler.sampled(x, grid)], {"shape": final}, call.outputs, call.loc)


# --- DeformConv ---------------------------------------------------------------------------------------------------------


class Deformed(Sampler):
    """One whose places are pixels already."""

    def coordinate(self, g: str, size: int) -> str:
        return g


@form("DeformConv", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    """X [N, C, …], W [M, C/group, taps…], offset [N, groups · taps · axes, out…], B [M], mask [N, groups · taps, out…]."""
    x, w, offset, bias, mask = (call.operand(i) for i in range(5))
    shape, kernel = b.shape(x), b.shape(w)[2:]
    n, c, sizes, out = *shape[:2], shape[2:], b.shape(offset)[2:]
    d, taps, length = len(sizes), prod(kernel), prod(out)
    group, parts = call.integer("group", 1), call.integer("offset_group", 1)
    m = b.shape(w)[0]
    fits = len(kernel) == d > 0 < min(group, parts) and c % parts == c % group == m % group == 0
    fits = fits and b.shape(w)[1] == c // group and b.shape(offset)[1] == parts * taps * d
    if not fits or (mask and b.shape(mask) != (n, parts * taps, *out)) or not n * length:
        problem = f"DeformConv of {b.type(x)} by {b.type(w)}, moved by {b.type(offset)}"
        raise FrontendError("E206", problem)
    s = Deformed(b, call, "linear", "zeros", True, b.type(x).dtype)
    base = b.constant(_taps(call, kernel, out).astype(DTYPES[s.dtype]), "taps")
    moved = s.op("Add", s.op("Reshape", offset, shape=(n * parts, taps, d, length)), base)
    places = []
    for i in range(d):
        one = s.op("Slice", moved, starts=(i,), ends=(i + 1,), axes=(2,), steps=(1,))
        places.append(s.op("Reshape", one, shape=(n * parts, taps * length)))
    pixels = s.op("Reshape", x, shape=(n * parts, c // parts, prod(sizes)))
    found = s.at(pixels, sizes, places)
    if mask:
        found = s.op("Mul", found, s.op("Reshape", mask, shape=(n * parts, taps * length, 1)))
    found = s.op("Reshape", found, shape=(n, parts, taps, length, c // parts))
    found = s.op("Transpose", found, perm=(0, 1, 4, 2, 3))
    depth = c // group * taps
    columns = s.op("Reshape", found, shape=(n, group, depth, length))
    rows = s.op("Reshape", w, shape=(1, group, m // group, depth))
    y = s.op("Reshape", s.op("MatMul", rows, columns), shape=(n, m, *out))
    if bias:
        y = s.op("Add", y, s.op("Reshape", bias, shape=(m, *[1] * d)))
    return [y]


def _taps(call: Call, kernel: tuple[int, ...], out: tuple[int, ...]) -> Array:
    """The pixel under each tap of each place, before it is moved. [taps, axes, places]"""
    d = len(kernel)
    strides, dilations = (call.integers(k, (1,) * d) for k in ("strides", "dilations"))
    pads = call.integers("pads", (0,) * 2 * d)
    steps = zip(strides, dilations, pads, strict=False)
    axes = [
        np.arange(k)[:, None] * dilation + np.arange(o) * stride - pad
        for k, o, (stride, dilation, pad) in zip(kernel, out, steps, strict=True)
    ]
    grids = []
    for i, a in enumerate(axes):
        spread = a.reshape([n for j in range(d) for n in (a.shape if j == i else (1, 1))])
        full = np.broadcast_to(
            spread, [n for k, o in zip(kernel, out, strict=True) for n in (k, o)]
        )
        order = (*range(0, 2 * d, 2), *range(1, 2 * d, 2))
        grids.append(full.transpose(order).reshape(prod(kernel), 1, prod(out)))
    return np.concatenate(grids, 1)
