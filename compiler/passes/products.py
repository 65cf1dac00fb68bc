"""Products in other clothes become the two that matrix kernels compute: Conv over one or two axes, and MatMul.

    ConvTranspose     a Conv of stride 1 for each phase of the stride, then the phases interleaved:

                      stride 2:   outputs 0 2 4 …  by taps 2, 0        [N, 2·2·O, H, W] ─► [N, 2, 2, O, H, W] ─► [N, O, 2H, 2W]
                                  outputs 1 3 5 …  by tap 1             (one Concat)         (one Transpose)

    Conv over 3 axes  the pixels under each tap side by side as channels, then a Conv by one tap
    k = 0             the bias, or zeros: nothing is summed
    Einsum            a MatMul over [batch, m, k] and [batch, k, n]; several operands as a chain of two; a product that
                      sums nothing is a Mul, a sum of one operand a ReduceSum
    heads that share  keys and values are rows of one product (`grouped`)

So every chain of multiply-adds keeps its order, k = (tap row, tap column, channel) or the summed letters in order of appearance,
and no product is left to TVM, which promises none. Letters that only one operand has are broadcast to the other before they are
summed, for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod

from ..ir import Graph, Node
from ..ops.conv import Phase, phase_axes
from ..ops.einsum import distinct, letter_sizes, next_pair, terms
from ..rewrite import P, Rule, Writer, rewrite
from . import grouped
from .base import Pass

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Products(Pass):
    """Make Convs and MatMuls of ConvTranspose, Einsum and convolutions over three axes."""

    name = "products"

    def run(self, g: Graph) -> Graph:
        """Apply the rules everywhere."""
        return rewrite(g, RULES)


# --- ConvTranspose ------------------------------------------------------------------------------


def conv_transpose(w: Writer, **_: object) -> str:
    """Convs of stride 1, interleaved, cut to size."""
    n, shape = w.root, w.root.types[0].shape
    kernel = w.type(n.inputs[1]).shape[2:]
    strides, pads, dilations = (n.attr(name) for name in ("strides", "pads", "dilations"))
    image = w.type(n.inputs[0]).shape[2:]
    axes = phase_axes(image, kernel, strides, pads, dilations, shape[2:])
    sizes = tuple(-(-size // len(axis)) for size, axis in zip(shape[2:], axes, strict=True))
    made = [_phase(w, n, phases, (*shape[:2], *sizes)) for phases in product(*axes)]
    whole = made[0] if len(made) == 1 else _interleaved(w, made, tuple(map(len, axes)))
    if w.type(whole).shape == shape:
        return whole
    ends = shape[2:]
    return w.op("Slice", whole, starts=(0,) * len(ends), ends=ends, axes=_spatial(n))


def _phase(w: Writer, n: Node, phases: Sequence[Phase], shape: Ints) -> str:
    """One phase of all axes, of this shape."""
    bias = n.inputs[2:]
    if not all(p.taps for p in phases):
        return _nothing(w, n, shape)
    group: int = n.attr("group")
    begins, ends = ([getattr(p, side) for p in phases] for side in ("begin", "end"))
    x = _cropped(w, n, begins, ends)
    pads = tuple(max(0, p) for p in (*begins, *ends))
    dilations = tuple(p.dilation for p in phases)
    return w.op("Conv", x, _taps(w, n, phases), *bias, pads=pads, dilations=dilations, group=group)


def _nothing(w: Writer, n: Node, shape: Ints) -> str:
    """The bias where no pixel is met."""
    dtype = n.types[0].dtype
    value = w.number(0, dtype)
    if len(n.inputs) > 2:
        column = w.op("Reshape", n.inputs[2], shape=(1, -1, *(1,) * (len(shape) - 2)))
        value = w.op("Cast", column, to=dtype)
    return w.op("Expand", value, shape=shape)


def _cropped(w: Writer, n: Node, begins: Sequence[int], ends: Sequence[int]) -> str:
    """The operand without the pixels that negative pads cut off."""
    x = n.inputs[0]
    if min(*begins, *ends) >= 0:
        return x
    sizes = w.type(x).shape[2:]
    starts = tuple(max(0, -p) for p in begins)
    stops = tuple(size + min(0, p) for size, p in zip(sizes, ends, strict=True))
    return w.op("Slice", x, starts=starts, ends=stops, axes=_spatial(n))


def _taps(w: Writer, n: Node, phases: Sequence[Phase]) -> str:
    """The weights [C,O/g,…] of a phase's taps, as [O,C/g,…]."""
    weights, group = n.inputs[1], n.attr("group")
    c, per_group, *kernel = w.type(weights).shape
    taps = [p.taps for p in phases]
    if any(t != (*range(k),) for t, k in zip(taps, kernel, strict=True)):
        weights = w.op(
            "Slice",
            weights,
            starts=tuple(t[0] for t in taps),
            ends=tuple(t[-1] - 1 if t[-1] else -k - 1 for t, k in zip(taps, kernel, strict=True)),
            steps=tuple(t[1] - t[0] if len(t) > 1 else -1 for t in taps),
            axes=_spatial(n),
        )
    counts = tuple(map(len, taps))
    parts = w.op("Reshape", weights, shape=(group, c // group, per_group, *counts))
    turned = w.op("Transpose", parts, perm=(0, 2, 1, *range(3, 3 + len(counts))))
    return w.op("Reshape", turned, shape=(group * per_group, c // group, *counts))


def _interleaved(w: Writer, made: Sequence[str], strides: Ints) -> str:
    """The phases, of one shape, row-major: element q of phase r goes to place q · stride + r of each axis."""
    images, channels, *sizes = w.type(made[0]).shape
    n = len(strides)
    beside = w.op("Concat", *made, axis=1)
    apart = w.op("Reshape", beside, shape=(images, *strides, channels, *sizes))
    places = (i for axis in range(n) for i in (n + 2 + axis, 1 + axis))
    turned = w.op("Transpose", apart, perm=(0, n + 1, *places))
    whole = (size * s for size, s in zip(sizes, strides, strict=True))
    return w.op("Reshape", turned, shape=(images, channels, *whole))


def _spatial(n: Node) -> Ints:
    """The axes of an image, or of weights, that are no channels."""
    return tuple(range(2, n.types[0].rank))


# --- nothing to sum -----------------------------------------------------------------------------


def empty_sum(w: Writer, **_: object) -> str | None:
    """The bias, or zeros, where a Conv has no channels or a MatMul's inner size is 0."""
    n = w.root
    if n.op == "Conv" and n.attr("layout") != "NCHW":
        return None
    axis = 1 if n.op == "Conv" else -2 if n.attr("trans_a") else -1
    return None if w.type(n.inputs[0]).shape[axis] else _nothing(w, n, n.types[0].shape)


# --- Conv over three axes -----------------------------------------------------------------------


def conv_3d(w: Writer, **_: object) -> str | None:
    """The taps become channels [g, taps, C/g] of an image of two axes, which one tap reads."""
    n = w.root
    if n.types[0].rank != 5 or n.attr("layout") != "NCHW":
        return None
    images, o, depth, *image = n.types[0].shape
    per_group, *kernel = w.type(n.inputs[1]).shape[1:]
    group: int = n.attr("group")
    x = n.inputs[0]
    if any(n.attr("pads")):
        x = w.op("Pad", x, pads=n.attr("pads"), axes=_spatial(n))
    x = w.op("Reshape", x, shape=(images, group, per_group, *w.type(x).shape[2:]))
    found = [_under(w, n, x, tap) for tap in product(*(range(size) for size in kernel))]
    beside = found[0] if len(found) == 1 else w.op("Concat", *found, axis=2)
    k = len(found) * per_group
    pixels = w.op("Reshape", beside, shape=(images, group * k, depth * image[0], image[1]))
    last = w.op("Transpose", n.inputs[1], perm=(0, 2, 3, 4, 1))
    weights = w.op("Reshape", last, shape=(o, k, 1, 1))
    y = w.op("Conv", pixels, weights, *n.inputs[2:], group=group, out=n.attr("out"))
    return w.op("Reshape", y, shape=n.types[0].shape)


def _under(w: Writer, n: Node, x: str, tap: Ints) -> str:
    """The pixels of x[N,g,C/g,…] that a tap meets."""
    strides, dilations = (n.attr(name) or (1,) * 3 for name in ("strides", "dilations"))
    starts = tuple(t * d for t, d in zip(tap, dilations, strict=True))
    sizes = n.types[0].shape[2:]
    ends = tuple(a + (m - 1) * s + 1 for a, m, s in zip(starts, sizes, strides, strict=True))
    return w.op("Slice", x, starts=starts, ends=ends, steps=strides, axes=(3, 4, 5))


# --- Einsum -------------------------------------------------------------------------------------


def einsum(w: Writer, **_: object) -> str:
    """Diagonals, then two operands at a time."""
    n = w.root
    operands, result = terms(n.attr("equation"), [w.type(v).rank for v in n.inputs])
    sizes = letter_sizes(operands, [w.type(v).shape for v in n.inputs])
    left = [_diagonal(w, _Term(v, t, sizes)) for v, t in zip(n.inputs, operands, strict=True)]
    while len(left) > 2:
        partner, made = next_pair([t.letters for t in left], result)
        left[0] = _pair(w, left[0], left.pop(partner), made)
    if len(left) == 1:
        return _summed(w, left[0], result).value
    return _pair(w, left[0], left[1], result).value


@dataclass(frozen=True)
class _Term:
    """A value, the letters of its axes, and how long they are."""

    value: str
    letters: str
    sizes: dict[str, int] = field(repr=False)

    def turned(self, w: Writer, letters: str) -> _Term:
        """With the axes in this order."""
        if letters == self.letters:
            return self
        perm = tuple(self.letters.index(c) for c in letters)
        return _Term(w.op("Transpose", self.value, perm=perm), letters, self.sizes)

    def shaped(self, w: Writer, *parts: str) -> str:
        """As one axis for each group of letters."""
        return w.op("Reshape", self.value, shape=tuple(self.count(p) for p in parts))

    def count(self, letters: str) -> int:
        """How many elements axes have."""
        return prod(self.sizes[c] for c in letters)

    def over(self, w: Writer, order: str) -> str:
        """With the axes in this order and axes of one for the letters that it lacks."""
        turned = self.turned(w, "".join(c for c in order if c in self.letters))
        shape = tuple(self.sizes[c] if c in self.letters else 1 for c in order)
        return w.op("Reshape", turned.value, shape=shape)


def _diagonal(w: Writer, t: _Term) -> _Term:
    """Where a letter names two axes of m, every (m+1)-th element of both as one axis."""
    repeated = next((c for c in t.letters if t.letters.count(c) > 1), None)
    if repeated is None:
        return t
    here = [i for i, c in enumerate(t.letters) if c == repeated][:2]
    rest = [i for i in range(len(t.letters)) if i not in here]
    letters, m = "".join(t.letters[i] for i in rest), t.sizes[repeated]
    turned = w.op("Transpose", t.value, perm=(*rest, *here))
    flat = w.op("Reshape", turned, shape=(*(t.sizes[c] for c in letters), m * m))
    last = (len(rest),)
    value = w.op("Slice", flat, starts=(0,), ends=(m * m,), axes=last, steps=(m + 1,))
    return _diagonal(w, _Term(value, letters + repeated, t.sizes))


def _summed(w: Writer, t: _Term, result: str) -> _Term:
    """One operand: its sum over the letters that the result lacks."""
    axes = tuple(i for i, c in enumerate(t.letters) if c not in result)
    if axes:
        value = w.op("ReduceSum", t.value, axes=axes, keepdims=0)
        t = _Term(value, "".join(c for c in t.letters if c in result), t.sizes)
    return t.turned(w, result)


def _pair(w: Writer, a: _Term, b: _Term, result: str) -> _Term:
    """Two operands: a MatMul, or a Mul if nothing is summed."""
    k = "".join(c for c in distinct(a.letters + b.letters) if c not in result)
    if not k:
        return _Term(w.op("Mul", a.over(w, result), b.over(w, result)), result, a.sizes)
    a, b = _with(w, a, k), _with(w, b, k)
    batch = "".join(c for c in result if c in a.letters and c in b.letters)
    free = "".join(c for c in result if c not in batch)
    if free and free[0] in b.letters:
        a, b = b, a  # so that the result's rows come first
    m, n = ("".join(c for c in free if c in t.letters) for t in (a, b))
    left, trans_a = _operand(w, a, batch, m, k, swapped=batch + k + m)
    right, trans_b = _operand(w, b, batch, k, n, swapped=batch + n + k)
    made = w.op("MatMul", left, right, trans_a=trans_a, trans_b=trans_b)
    letters = batch + m + n
    value = w.op("Reshape", made, shape=tuple(a.sizes[c] for c in letters))
    return _Term(value, letters, a.sizes).turned(w, result)


def _with(w: Writer, t: _Term, k: str) -> _Term:
    """Broadcast along the summed letters that it lacks."""
    lacking = "".join(c for c in k if c not in t.letters)
    if not lacking:
        return t
    letters = t.letters + lacking
    value = w.op("Expand", t.over(w, letters), shape=tuple(t.sizes[c] for c in letters))
    return _Term(value, letters, t.sizes)


def _operand(
    w: Writer, t: _Term, batch: str, rows: str, cols: str, *, swapped: str
) -> tuple[str, bool]:
    """[batch, rows, cols], or as it lies if that is `swapped`: then MatMul swaps the last two."""
    outer = [batch] if batch else []
    if t.letters == swapped != batch + rows + cols:
        return t.shaped(w, *outer, cols, rows), True
    return t.turned(w, batch + rows + cols).shaped(w, *outer, rows, cols), False


RULES: list[Rule] = [
    P.ConvTranspose(...) >> conv_transpose,
    P.Conv(...) >> empty_sum,
    P.MatMul(...) >> empty_sum,
    P.Conv(...) >> conv_3d,
    P.Einsum(...) >> einsum,
    *grouped.RULES,
]
