"""Outputs that have as many rows as the data decides: which ones they are, and what says how many.

Inside a Graph every size is fixed: NonMaxSuppression, NonZero, Compress and Unique give all rows that there can be, and their number as a
second result. What follows from it is seen by importing the model again with another limit: whatever differs has to do with it. No rules
about shapes are needed, and what a Reshape or a Gather in between does to the rows is seen too.

Such an output `y` gets a companion, an output `y#rows`, or `y#rows1` for rows along axis 1; a run gives `y` without the rows that are not
meant (`isa.rows`). What reads a NonMaxSuppression inside the network sees all rows, zeros behind those that are meant. What reads the others
may only be an operator that keeps rows apart (`APART`): anything else would see rows that are not there, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

from knapper.compiler.ir import Graph, Node, Type, same
from knapper.isa.errors import FrontendError, KnapperError
from knapper.isa.rows import companion

from .builder import Sized

OP = "NonMaxSuppression"
NAMES = """
Identity Cast BitCast Abs Neg Not Sign Floor Ceil Round Sqrt Exp Log Reciprocal Erf Sin Cos Tanh Sigmoid Relu
LeakyRelu Elu Selu Gelu Softplus Softsign HardSigmoid HardSwish Clip IsNaN IsInf Add Sub Mul Div Mod Pow Min Max And
Or Xor Equal Less LessOrEqual Greater GreaterOrEqual BitwiseAnd BitwiseOr BitwiseXor BitShift Where QuantizeLinear
DequantizeLinear Gather GatherND GatherElements Transpose Reshape Squeeze Unsqueeze Flatten Slice Split Concat Expand
"""
APART = frozenset(NAMES.split())
"""Operators whose result has rows where an operand has them, each made of that row alone, if its shape says so too."""
Import = Callable[[Mapping[str, int]], tuple[Graph, Mapping[str, Sized]]]
"""Imports the model with other limits: node name → boxes that a list keeps at most, or rows that there are."""


def with_rows(again: Import) -> Graph:
    """The graph with a companion for every output whose number of rows the data decides."""
    g, sized = again({})
    outputs = dict(g.outputs)
    for n in g.nodes:
        if n.op == OP:
            outputs |= {companion(name): n.outputs[1] for name in _followers(g, n, again)}
    for loc, s in sized.items():
        _, other = _reimported(again, loc, s)
        for name, axis in _Follower(loc, s, g, other).outputs():
            if any(
                companion(name, i) in outputs for i in range(len(g.types()[g.outputs[name]].shape))
            ):
                raise _refused(loc, f"output {name!r} has rows of another one too")
            outputs[companion(name, axis)] = s.number
    return g if outputs == dict(g.outputs) else g.with_(outputs=outputs)


# --- boxes --------------------------------------------------------------------------------------------------------------


def _followers(g: Graph, n: Node, again: Import) -> Iterator[str]:
    """Names of the outputs whose first size is this node's number of rows."""
    try:
        other, _ = again({n.loc: _another_limit(g, n)})
    except KnapperError:
        return  # a shape inside is fixed to the limit: then all rows are meant
    rows, changed = (_rows(x, n.loc) for x in (g, other))
    now, then = g.types(), other.types()
    for name, v in g.outputs.items():
        was, becomes = now[v].shape, then[other.outputs[name]].shape
        if was[:1] == (rows,) and becomes[:1] == (changed,) and was[1:] == becomes[1:]:
            yield name


def _another_limit(g: Graph, n: Node) -> int:
    """One box less; one more where nothing would be left."""
    boxes: int = g.types()[n.inputs[1]].shape[2]
    limit: Any = n.attr("max_output_boxes_per_class")
    kept = min(int(limit), boxes)
    return kept - 1 if kept > 1 or boxes == 1 else 2


def _rows(g: Graph, loc: str) -> int:
    return next((n.types[0].shape[0] for n in g.nodes if n.loc == loc and n.op == OP), 0)


# --- rows that nothing may look at --------------------------------------------------------------------------------------


def _refused(loc: str, what: str) -> FrontendError:
    """An E204 for what asks how many rows there are."""
    hint = "an output may have them, through operators that keep rows apart; inside, keep the shape and mask with Where"
    return FrontendError(
        "E204", f"node {loc!r} has as many rows as the data decides: {what}", hint=hint
    )


def _reimported(again: Import, loc: str, s: Sized) -> tuple[Mapping[str, Sized], Graph]:
    """The model with one row more."""
    try:
        other, sized = again({loc: s.bound + 1})
    except KnapperError as e:
        raise _refused(loc, f"with one more: {e.message}") from e
    return sized, other


class _Follower:
    """Follows the rows of one node through two imports, the second of which has one row more."""

    def __init__(self, loc: str, s: Sized, g: Graph, other: Graph) -> None:
        self.loc, self.s, self.g, self.other = loc, s, g, other
        self.now, self.then = g.types(), other.types()
        self.along: dict[str, int] = dict(s.axes)
        """Value → the axis of its rows."""

    def outputs(self) -> Iterator[tuple[str, int]]:
        """Outputs that have the rows, and along which axis. FrontendError E204 for whatever else depends on how many there are."""
        if [n.op for n in self.g.nodes] != [n.op for n in self.other.nodes]:
            raise _refused(self.loc, "it decides which operators there are")
        for a, b in zip(self.g.nodes, self.other.nodes, strict=True):
            if a.loc != self.loc:
                self._node(a, b)
        for name, v in self.g.outputs.items():
            if v in self.along:
                yield name, self.along[v]
            elif self._differ(v, self.other.outputs[name]):
                raise _refused(self.loc, f"output {name!r} depends on how many there are")

    def _node(self, a: Node, b: Node) -> None:
        """What a node makes of the rows."""
        rows = [v for v in a.inputs if v in self.along]
        for v, w in zip(a.inputs, b.inputs, strict=True):
            if v and v not in self.along and self._differ(v, w):
                raise _refused(self.loc, f"{a.loc} ({a.op}) depends on how many there are")
        for v, w in zip(a.outputs, b.outputs, strict=True):
            if rows:
                self.along[v] = self._axis(a, rows, self.now[v], self.then[w])
            elif v and self.now[v] != self.then[w]:
                raise _refused(self.loc, f"{a.loc} ({a.op}) has a shape that depends on it")

    def _axis(self, n: Node, rows: list[str], now: Type, then: Type) -> int:
        """The axis of a result's rows."""
        changed = [i for i, (k, m) in enumerate(zip(now.shape, then.shape, strict=False)) if k != m]
        fits = n.op in APART and now.rank == then.rank and len(changed) == 1
        fits = fits and all(int(s) > 0 for s in n.attrs.get("steps", ()))  # type: ignore[union-attr]
        if not fits or (now.shape[changed[0]], then.shape[changed[0]]) != (
            self.s.bound,
            self.s.bound + 1,
        ):
            raise _refused(self.loc, f"{n.loc} ({n.op}) does not keep them apart")
        (axis,) = changed
        before = {prod(self.now[v].shape[: self.along[v]]) for v in rows}
        if n.op in ("Reshape", "Flatten") and before != {prod(now.shape[:axis])}:
            raise _refused(self.loc, f"{n.loc} ({n.op}) puts them in another order")
        return axis

    def _differ(self, v: str, w: str) -> bool:
        """Whether a value that has no rows is another one in the second import."""
        if v in self.g.constants or w in self.other.constants:
            a, b = self.g.constants.get(v), self.other.constants.get(w)
            return a is None or b is None or not same(a, b)
        return self.now[v] != self.then[w]
