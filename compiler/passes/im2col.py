"""Convolution with or without the lowered matrix in memory.

    implicit    Conv %x, %w                     the matrix kernels' loads walk the image; nothing is made
    explicit    %m = Im2col %x                  a SIMD kernel writes a row of taps·C for each pixel of the result
                MatMul %m, %w [taps·C, O]       a plain product reads it
    auto        for each Conv whichever the cost model says is faster on the machine

Columns are in the order of k, (tap row, tap column, channel), so explicit has the bits of implicit. With groups, depthwise
included, columns are (group, taps, channel) and the product is a Conv by one tap with the same groups, since a MatMul over groups
would lay the result out by group. A Conv by one tap, one pixel apart and without padding, reads its image as such a matrix already
and stays. Beside a MatMul a bias is an Add to the accumulator, which is what it is in a Conv.

`layout="channel_last"` lowers in the order (channel, tap row, tap column), as over planes: the chain is another, and so may be the
last bits; no kernel walks an image in that order, so it is explicit only.

The pass may stand anywhere; behind `fuse` (`fp16,im2col{mode=explicit}`) launches are found anew. `auto` needs launches, and asks
what `schedule` asks: each launch's cheapest way on the machine, starting in SIMD mode, the explicit ones one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import inf, prod

import numpy as np

from knapper.isa.errors import CompileError, PassError, raise_all
from knapper.isa.machine import Machine

from ..axes import channels_last, identity, inverse
from ..codegen.generator import Group
from ..groups import groups
from ..ir import Graph, Node, Type
from ..ops.conv import weight_parts
from ..ops.im2col import ORDERS
from ..rewrite import Writer
from ..schedule import Scheduler, cheapest
from .base import Pass
from .fuse import Fuse

MODES = ("explicit", "implicit", "auto")
WIDE = {"f16": "f32", "bf16": "f32", "i8": "i32", "u8": "i32", "i16": "i32", "u16": "i32"}
"""Stored type → what its products accumulate in, where that is another."""


@dataclass(frozen=True)
class Im2col(Pass):
    """Make the lowered matrices of Convs, of all or of `nodes` (names, values, launches, patterns with *, between |)."""

    name = "im2col"
    mode: str = "implicit"
    nodes: str = ""
    layout: str = ORDERS[0]
    machine: Machine | None = field(default=None, repr=False)

    def on(self, machine: Machine) -> Pass:
        """Ask this machine's cost model."""
        return replace(self, machine=machine)

    def run(self, g: Graph) -> Graph:
        """Lower the convolutions that are to be explicit."""
        self._check()
        chosen = self._chosen(g)
        if self.mode == "explicit":
            return self._lowered(g, chosen)
        return self._faster(g, chosen) if self.mode == "auto" else g

    def _check(self) -> None:
        for option, known in (("mode", MODES), ("layout", ORDERS)):
            if (value := getattr(self, option)) not in known:
                raise PassError("E302", f"im2col has no {option} {value!r}", hint=" ".join(known))
        if self.layout != ORDERS[0] and self.mode != "explicit":
            problem = f"im2col: no kernel walks an image in the order {self.layout}"
            raise PassError("E302", problem, hint="mode=explicit has both layouts")

    def _chosen(self, g: Graph) -> set[str]:
        """The results of the Convs that are meant."""
        convs = {n.outputs[0]: n for n in g.nodes if n.op == "Conv"}
        names = {v: {n.loc, n.op, n.group, v} for v, n in convs.items()}
        patterns = [p for p in self.nodes.split("|") if p]
        found = {p: {v for v in names if _meant(names[v], p)} for p in patterns or ["*"]}
        raise_all(_unknown(names, p) for p in patterns if not found[p])
        meant = set().union(*found.values())
        types = g.types()
        return {v for v in meant if not is_matrix(convs[v], types[convs[v].inputs[1]])}

    def _lowered(self, g: Graph, chosen: set[str]) -> Graph:
        """With the matrices of the chosen ones, in launches again if it was."""
        if not chosen:
            return g
        w = Writer(g)
        for n in w.old.nodes:
            if n.outputs[0] in chosen:
                w.begin(n)
                w.let(n, (_explicit(w, n, self.layout),))
            else:
                w.visit(n)
        return Fuse().run(w.graph()) if any(n.group for n in g.nodes) else w.graph()

    # --- auto

    def _faster(self, g: Graph, chosen: set[str]) -> Graph:
        """With the matrices of those that are faster so."""
        if self.machine is None:
            hint = "compile for a target, or say explicit or implicit"
            raise PassError("E302", "im2col: mode auto needs a machine to ask", hint=hint)
        if not any(n.group for n in g.nodes):
            problem = "im2col: mode auto asks what launches cost, and there are none yet"
            raise PassError("E304", problem, hint="put fuse before im2col")
        ways = [_Priced(h, self.machine, g.types()) for h in (g, self._lowered(g, chosen))]
        return self._lowered(g, {v for v in chosen if ways[1].cycles(v) < ways[0].cycles(v)})


def _meant(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _unknown(names: Mapping[str, set[str]], pattern: str) -> PassError:
    known = sorted(set().union(*names.values()) - {""})
    shown = f"there are {', '.join(known[:8])}" if known else "there are no Convs"
    return PassError("E304", f"im2col: no Conv is called {pattern!r}", hint=shown)


def is_matrix(n: Node, weights: Type) -> bool:
    """Whether a Conv's image is its lowered matrix already: one tap, one pixel apart, no padding."""
    kernel, _, _ = weight_parts(weights, n.attr("layout"))
    return prod(kernel) == 1 and not any(n.attr("pads")) and set(n.attr("strides")) <= {1}


# --- explicit -----------------------------------------------------------------------------------


def _explicit(w: Writer, n: Node, order: str) -> str:
    """Im2col, the product with the weights and the bias, the rounding."""
    x, weights = map(w.now, n.inputs[:2])
    first = n.attr("layout") == "NCHW"
    last = channels_last(n.types[0].rank)
    kernel, _, _ = weight_parts(w.type(weights), n.attr("layout"))
    window = {a: n.attr(a) for a in ("strides", "pads", "dilations", "group")}
    image = w.op("Transpose", x, perm=inverse(last)) if first else x
    matrix = w.op("Im2col", image, kernel_shape=kernel, order=order, **window)
    multiply = _product if n.attr("group") == 1 else _grouped_product
    y = _as(w, multiply(w, n, matrix, order), n.types[0].dtype)
    return w.op("Transpose", y, perm=last) if first else y


def _as(w: Writer, v: str, dtype: str) -> str:
    return v if w.type(v).dtype == dtype else w.op("Cast", v, to=dtype)


def _product(w: Writer, n: Node, matrix: str, order: str) -> str:
    """The accumulator [N,…,O] of the rows by the weights, plus the bias."""
    t = w.type(matrix)
    y = w.op("MatMul", matrix, _weights(w, n, order, (t.shape[-1], -1)), out=WIDE.get(t.dtype, ""))
    for b in filter(None, map(w.now, n.inputs[2:])):
        y = w.op("Add", y, _as(w, b, w.type(y).dtype))
    return y


def _grouped_product(w: Writer, n: Node, matrix: str, order: str) -> str:
    """The same by groups: a Conv by one tap, over two axes at most, since matrix kernels have no more."""
    t, group = w.type(matrix), n.attr("group")
    images, *sizes, k = t.shape
    short = (images, -1, *sizes[-1:], k) if len(sizes) > 2 else t.shape
    image = matrix if short == t.shape else w.op("Reshape", matrix, shape=short)
    tap = _weights(w, n, order, (*(1,) * (len(short) - 2), k // group, -1))
    operands = (image, tap, *map(w.now, n.inputs[2:]))
    y = w.op("Conv", *operands, group=group, layout="NHWC", out=WIDE.get(t.dtype, ""))
    return (
        y if short == t.shape else w.op("Reshape", y, shape=(images, *sizes, w.type(y).shape[-1]))
    )


def _weights(w: Writer, n: Node, order: str, shape: tuple[int, ...]) -> str:
    """A Conv's weights with rows in this order, [taps·C/group,O] in some shape; of a constant a constant."""
    v, rank = w.now(n.inputs[1]), n.types[0].rank
    taps, channel, o = (*range(2, rank),), 1, 0
    if n.attr("layout") == "NHWC":
        taps, channel, o = (*range(rank - 2),), rank - 2, rank - 1
    perm = (*taps, channel, o) if order == ORDERS[0] else (channel, *taps, o)
    if (a := w.array(v)) is not None:
        return w.constant(np.ascontiguousarray(a.transpose(perm)).reshape(shape), v, "columns")
    turned = v if perm == identity(rank) else w.op("Transpose", v, perm=perm)
    return w.op("Reshape", turned, shape=shape)


# --- auto ---------------------------------------------------------------------------------------


class _Priced:
    """A fused graph, and what its launches cost on a machine. `known` values are there before."""

    def __init__(self, g: Graph, machine: Machine, known: Iterable[str]) -> None:
        self.scheduler, self.known = Scheduler(machine), set(known)
        self.of = {v: group for group in groups(g) for n in group.nodes for v in n.outputs}

    def cycles(self, v: str) -> float:
        """From what is known to v, launch by launch; infinite if the machine cannot."""
        try:
            way = cheapest([self.scheduler.choices(group) for group in self._launches(v)])
        except CompileError:
            return inf
        return sum(choice.cost for choice in way)

    def _launches(self, v: str) -> list[Group]:
        """The launch that makes v, behind those that make what it reads and is not known."""
        group = self.of[v]
        made = [x for x in group.inputs if x not in self.known and x in self.of]
        return [*(before for x in made for before in self._launches(x)), group]
