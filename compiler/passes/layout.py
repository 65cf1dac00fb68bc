"""Channels last inside: every image is stored as [N,H,W,C], weights as [KH,KW,C,O].

The walk keeps, for each of the model's values, where it is stored and by which permutation it comes
from there (`Held`), and makes a Transpose only when an op needs another order than the one in store:

    model                         stored                            held by
    %x [1,3,8,8]                  %x    [1,3,8,8]  (the model's)    -
    Conv %x, %w → %0 [1,4,8,8]    %0    [1,8,8,4]                   (0,3,1,2)   %x transposed: the one
    Relu %0     → %1              %1    [1,8,8,4]                   (0,3,1,2)   nothing to do
    Transpose   → %2 [1,8,8,4]    %1                                -           no node at all
    Softmax axis=1 of %1          axis=3 of what is stored

So a Transpose travels with the values through all that can be done on another order (elementwise ops,
concatenation, reductions, slices, padding, many reshapes) and cancels against its opposite on the
way; one that moves only axes of size 1 is a Reshape. Constants are transposed now. Network inputs and
outputs keep the model's order. All values stay the same, bit for bit: the order of summation of a
convolution is defined by taps and channels, whatever the layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ..axes import (
    Ints,
    arranged,
    channels_last,
    compose,
    identity,
    inverse,
    moves_nothing,
    permuted,
    reshaped,
    without,
)
from ..ir import OPS, Attr, Graph, Node
from ..launches import ELEMENTWISE
from ..rewrite import Writer
from .base import Pass
from .simplify import VIEWS

Handler = Callable[["_Layout", Node], "list[Held] | None"]
REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
HANDLERS: dict[str, Handler] = {}
"""Op → how it is done on operands in another order: what its results are held by, None if not."""


@dataclass(frozen=True)
class Layout(Pass):
    """Store images channels last, and let Transposes cancel."""

    name = "layout"

    def run(self, g: Graph) -> Graph:
        """One walk forward."""
        w = _Layout(g)
        for n in w.old.nodes:
            w.convert(n)
        return w.finish()


@dataclass(frozen=True)
class Held:
    """A value of the model: Transpose(stored, perm)."""

    stored: str
    perm: Ints

    @property
    def plain(self) -> bool:
        """Whether it is stored in the model's order."""
        return self.perm == identity(len(self.perm))


def handles(*ops: str) -> Callable[[Handler], Handler]:
    """Declare a handler for some ops."""

    def declare(f: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(ops, f))
        return f

    return declare


class _Layout(Writer):
    """The new graph, and how each value of the old one is held."""

    def __init__(self, g: Graph) -> None:
        super().__init__(g, VIEWS)
        self.sizes = {v: t.shape for v, t in self.old.types().items()}
        self.held = {v: Held(v, identity(len(self.sizes[v]))) for v in (*g.inputs, *self.constants)}
        self.made: dict[tuple[str, Ints], str] = {}

    def convert(self, n: Node) -> None:
        """Carry a node over, on what is stored if it can be."""
        self.begin(n)
        channels_first = "layout" in OPS[n.op].attrs and n.attr("layout") == "NCHW"
        handler = image if channels_first else HANDLERS.get(n.op)
        results = handler(self, n) if handler else None
        if results is None:
            operands = [self.plain(v) for v in n.inputs]
            results = self.put(n, operands, n.attrs, [identity(t.rank) for t in n.types])
        self.held.update(zip(n.outputs, results, strict=True))

    def put(
        self, n: Node, operands: Iterable[str], attrs: Mapping[str, Attr], perms: list[Ints]
    ) -> list[Held]:
        """The node on other operands, with other attributes; its results are held by `perms`."""
        stored = self.ops(len(n.outputs), n.op, *operands, **attrs)
        return [Held(v, p) for v, p in zip(self.named(stored, n.outputs), perms, strict=True)]

    def plain(self, v: str) -> str:
        """A value in the model's order."""
        return self.by(v, identity(len(self.sizes[v]))) if v else ""

    def by(self, v: str, perm: Ints) -> str:
        """What is stored, or is made now, such that v = Transpose(it, perm)."""
        h = self.held[v]
        change = compose(h.perm, inverse(perm))
        if change == identity(len(perm)):
            return h.stored
        if (h.stored, change) not in self.made:
            self.made[h.stored, change] = self._transposed(h.stored, change)
        return self.made[h.stored, change]

    def _transposed(self, v: str, perm: Ints) -> str:
        if (a := self.array(v)) is not None:
            return self.constant(a.transpose(perm), v, "last")  # a view: `precision` copies it once
        t = self.type(v)
        shape = tuple(t.shape[i] for i in perm)
        op, attrs = "Transpose", {"perm": perm}
        if moves_nothing(perm, shape):
            op, attrs = "Reshape", {"shape": shape}
        types = (replace(t, shape=shape),)
        return self.emit(Node(op, (v,), (self.fresh(v, "t"),), types, attrs, self.at.loc))[0]

    def common(self, n: Node) -> Ints | None:
        """The order for a node whose operands need the same one; None: the model's.

        Channels last if one of them is held so, else what most bytes are held in. Constants have
        no say: they can be turned now.
        """
        rank, votes = n.types[0].rank, Counter[Ints]()
        for h in map(self.held.__getitem__, n.inputs):
            if len(h.perm) == rank and self.array(h.stored) is None:
                votes[h.perm] += self.type(h.stored).bytes
        last, model = channels_last(rank), identity(rank)
        best = max(votes, key=lambda p: (p == last, votes[p], p == model), default=model)
        return None if best == model else best

    def broadcast(self, v: str, perm: Ints) -> str:
        """An operand of an elementwise op in the order `perm` of the result."""
        sizes, h = self.sizes[v], self.held[v]
        full = (1,) * (len(perm) - len(sizes)) + sizes
        if len(sizes) == len(perm) and self.array(h.stored) is None:
            return self.by(v, perm)
        if max(sizes, default=1) == 1:
            return self.plain(v)
        if (a := self.array(h.stored)) is not None:
            turned = a.transpose(h.perm).reshape(full).transpose(inverse(perm))
            return self.constant(turned.reshape(_trimmed(turned.shape)), h.stored, "last")
        whole = self.op("Reshape", self.plain(v), shape=full)
        return self.op("Transpose", whole, perm=inverse(perm))

    def finish(self) -> Graph:
        """The graph; outputs in the model's order."""
        self.at = Node("", (), ("output",), ())
        outputs = {name: self.plain(v) for name, v in self.old.outputs.items()}
        return self.graph(outputs)


def _trimmed(shape: Ints) -> Ints:
    """A shape without leading ones: [1,1,1,C] broadcasts as [C]."""
    first = next((i for i, n in enumerate(shape) if n != 1), len(shape))
    return shape[first:]


# --- images -------------------------------------------------------------------------------------


def image(w: _Layout, n: Node) -> list[Held] | None:
    """An op with a layout: channels last. (The second result of MaxPool counts in the model's order.)"""
    rank = len(w.sizes[n.inputs[0]])
    if rank < 3 or len(n.outputs) > 1:
        return None
    last = channels_last(rank)
    operands = [w.by(n.inputs[0], last), *map(w.plain, n.inputs[1:])]
    if n.op == "Conv":
        operands[1] = w.by(n.inputs[1], (rank - 1, rank - 2, *range(rank - 2)))
    return w.put(n, operands, {**n.attrs, "layout": "NHWC"}, [last])


# --- ops for which the order of axes means nothing, or something that can be said otherwise ------


@handles(*ELEMENTWISE)
def elementwise(w: _Layout, n: Node) -> list[Held] | None:
    """Operands in one order, small ones broadcast into it."""
    perm = w.common(n)
    if perm is None:
        return None
    return w.put(n, [w.broadcast(v, perm) for v in n.inputs], n.attrs, [perm])


@handles("Concat")
def concat(w: _Layout, n: Node) -> list[Held] | None:
    """Operands in one order, joined along the stored axis."""
    perm = w.common(n)
    if perm is None:
        return None
    attrs = {**n.attrs, "axis": _axis(n, perm)}
    return w.put(n, [w.by(v, perm) for v in n.inputs], attrs, [perm])


@handles("Softmax", "LogSoftmax", "CumSum", "LpNormalization", "Split", "TopK")
def along_axis(w: _Layout, n: Node) -> list[Held] | None:
    """One axis means something, and stays."""
    h = w.held[n.inputs[0]]
    if h.plain:
        return None
    attrs = {**n.attrs, "axis": _axis(n, h.perm)}
    return w.put(n, [h.stored], attrs, [h.perm] * len(n.outputs))


@handles("QuantizeLinear", "DequantizeLinear")
def quantization(w: _Layout, n: Node) -> list[Held] | None:
    """Scales belong to one axis, or to all; blocks of an axis lie in the model's order."""
    h = w.held[n.inputs[0]]
    if h.plain or n.attr("block_size"):
        return None
    attrs = {**n.attrs, "axis": _axis(n, h.perm)}
    return w.put(n, [h.stored, *map(w.plain, n.inputs[1:])], attrs, [h.perm])


@handles("ArgMax", "ArgMin")
def arg(w: _Layout, n: Node) -> list[Held] | None:
    """One axis means something, and goes."""
    h = w.held[n.inputs[0]]
    if h.plain:
        return None
    gone = () if n.attr("keepdims") else (n.attr("axis") % len(h.perm),)
    return w.put(n, [h.stored], {**n.attrs, "axis": _axis(n, h.perm)}, [without(h.perm, gone)])


@handles(*(f"Reduce{f}" for f in REDUCTIONS))
def reduce(w: _Layout, n: Node) -> list[Held] | None:
    """Some axes go."""
    h = w.held[n.inputs[0]]
    rank = len(h.perm)
    axes = tuple(a % rank for a in n.attr("axes")) or identity(rank)
    if h.plain or not n.attr("axes"):
        return None
    attrs = {**n.attrs, "axes": tuple(sorted(h.perm[a] for a in axes))}
    return w.put(n, [h.stored], attrs, [h.perm if n.attr("keepdims") else without(h.perm, axes)])


@handles("Slice", "Pad", "Resize")
def some_axes(w: _Layout, n: Node) -> list[Held] | None:
    """What is done to which axes is listed: list the stored ones."""
    h = w.held[n.inputs[0]]
    if h.plain:
        return None
    count = len(n.attr("starts")) if n.op == "Slice" else len(h.perm)
    axes = n.attr("axes") or range(count)
    attrs = {**n.attrs, "axes": tuple(h.perm[a % len(h.perm)] for a in axes)}
    return w.put(n, [h.stored], attrs, [h.perm])


@handles("Tile", "Expand")
def every_axis(w: _Layout, n: Node) -> list[Held] | None:
    """There is a number for every axis: put them in the stored order."""
    h, name = w.held[n.inputs[0]], "repeats" if n.op == "Tile" else "shape"
    if h.plain or len(n.attr(name)) != len(h.perm):
        return None
    return w.put(n, [h.stored], {name: permuted(n.attr(name), h.perm)}, [h.perm])


@handles("Gather")
def gather(w: _Layout, n: Node) -> list[Held] | None:
    """A list of indices keeps the axis, a single one drops it."""
    h, indices = w.held[n.inputs[0]], len(w.sizes[n.inputs[1]])
    if h.plain or indices > 1:
        return None
    gone = () if indices else (n.attr("axis") % len(h.perm),)
    attrs = {**n.attrs, "axis": _axis(n, h.perm)}
    return w.put(n, [h.stored, w.plain(n.inputs[1])], attrs, [without(h.perm, gone)])


@handles("Transpose")
def transpose(w: _Layout, n: Node) -> list[Held] | None:
    """Nothing is done: the same store, seen in another order."""
    h = w.held[n.inputs[0]]
    perm = n.attr("perm") or tuple(reversed(range(len(h.perm))))
    return [Held(h.stored, compose(h.perm, perm))]


@handles("Reshape")
def reshape(w: _Layout, n: Node) -> list[Held] | None:
    """On what is stored, if axes that are merged or split together lie together, or are put there."""
    x, new = n.inputs[0], n.types[0].shape
    old, perm = w.sizes[x], w.held[x].perm
    if w.held[x].plain:
        return None
    if reshaped(perm, old, new) is None:
        perm = arranged(perm, old, new) or identity(len(old))
    done = reshaped(perm, old, new)
    if done is None:
        return None
    sizes, result = done
    if moves_nothing(result, new):
        sizes, result = new, identity(len(new))
    return w.put(n, [w.by(x, perm)], {"shape": sizes}, [result])


def _axis(n: Node, perm: Ints) -> int:
    """The stored axis of a node's attribute `axis`."""
    axis: int = n.attr("axis")
    return perm[axis % len(perm)]
