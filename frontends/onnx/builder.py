"""Grow a Graph node by node, with every type known and small constants computed at once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto
from onnx.defs import OpSchema

from knapper.compiler.ir import DTYPES, OPS, Array, Attr, Graph, Node, Type, compute, infer
from knapper.isa.errors import FrontendError

from ..names import unique
from .schemas import defaults
from .tensors import DTYPE_OF, FEW_ARRAYS, Value

FOLD_LIMIT = 1 << 16
"""Elements up to which a constant is computed here: shapes and indices are below, weights are the fold pass's."""
OPS_HINT = "`knapper ops` lists those that are"
NODE_LIMIT = 1_000_000
"""Nodes at which a model is taken for hostile (nested functions grow exponentially)."""


@dataclass(frozen=True)
class Call:
    """One ONNX node on its way into the Graph: operands and attributes by their ONNX names."""

    op: str
    inputs: dict[str, str]
    """Formal name → graph value, "" for absent; the i-th of a variadic has `#i` behind its name."""
    attrs: dict[str, Value]
    outputs: tuple[str, ...]
    """ONNX names of the results; the graph's values are named after them."""
    loc: str
    version: int = 0
    schema: OpSchema | None = None

    def now(self, op: str = "", drop: Sequence[str] = (), **attrs: Value) -> Call:
        """The same call as another op, without the operands and attributes in `drop`, with `attrs` set."""
        return replace(
            self,
            op=op or self.op,
            inputs={n: v for n, v in self.inputs.items() if n not in drop and n not in attrs},
            attrs={n: v for n, v in self.attrs.items() if n not in drop} | attrs,
        )

    def operand(self, position: int) -> str:
        """The graph value of an operand by position, "" if absent."""
        values = list(self.inputs.values())
        return values[position] if position < len(values) else ""

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute that is an integer."""
        value = self.attrs.get(name, default)
        if not isinstance(value, int):
            raise FrontendError("E206", f"attribute {name!r} should be an integer")
        return value

    def integers(self, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        value = self.attrs.get(name)
        if value is None:
            return tuple(default)
        if not isinstance(value, tuple):
            raise FrontendError("E206", f"attribute {name!r} should be a list of integers")
        return value


def symbol(name: str) -> str:
    """A name as a plain word of graph text."""
    return re.sub(r"[^A-Za-z0-9_./-]+", "_", name) or "v"


@dataclass(frozen=True)
class Sized:
    """Results of a node that have as many rows as the data decides."""

    number: str
    """The value that says how many are meant."""
    bound: int
    """How many there can be."""
    axes: Mapping[str, int]
    """Value → the axis that its rows are along."""


@dataclass
class Builder:
    """The graph so far."""

    nodes: list[Node] = field(default_factory=list)
    inputs: dict[str, Type] = field(default_factory=dict)
    types: dict[str, Type] = field(default_factory=dict)
    known: dict[str, Array] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    locs: set[str] = field(default_factory=set)
    formats: dict[str, str] = field(default_factory=dict)
    """Value → its format, where the model has elements of a few bits: the Graph's are wider."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Node name → the boxes that a NonMaxSuppression keeps, or the rows that there can be, in place of what the model says."""
    sized: dict[str, Sized] = field(default_factory=dict)
    """Node name → its results whose number of rows the data decides."""

    def fresh(self, hint: str) -> str:
        """A value name that is not taken yet: the hint, as a plain word of graph text, numbered if it must be."""
        return unique(symbol(hint), self.taken)

    def location(self, hint: str) -> str:
        """A node name that no other node has."""
        return unique(hint, self.locs)

    def input(self, name: str, type: Type) -> str:
        """A network input: it keeps its name, since users write it."""
        self.taken.add(name)
        self.inputs[name] = self.types[name] = type
        return name

    def constant(self, a: Array, hint: str = "const") -> str:
        """A constant's value name."""
        name = self.fresh(hint)
        if few := FEW_ARRAYS.get(a.dtype):
            self.formats[name] = few[1]
            a = a.astype(DTYPES[few[0]])
        self.known[name], self.types[name] = a, Type.of(a)
        return name

    def type(self, value: str) -> Type:
        """The type of a value that must be present."""
        if not value:
            raise FrontendError("E206", "an operand that is not optional is missing")
        return self.types[value]

    def shape(self, value: str) -> tuple[int, ...]:
        return self.type(value).shape

    def decided(self, call: Call, formal: str) -> Array | None:
        """The constant given for an operand that decides a shape, None if absent; FrontendError E204 if it is computed from data."""
        value = call.inputs.get(formal, "")
        if not value:
            return None
        if value not in self.known and (a := self._dequantized(value)) is not None:
            return a
        if value not in self.known:
            raise FrontendError(
                "E204",
                f"operand {formal!r} decides a shape or an attribute, but is computed from the network's inputs",
                hint="if one of them is fixed in your use, bind it: --const NAME=VALUE",
            )
        return self.known[value]

    def _dequantized(self, value: str) -> Array | None:
        """What constants are dequantized to, which is no constant of the graph."""
        n = next((n for n in reversed(self.nodes) if value in n.outputs), None)
        if n is None or n.op != "DequantizeLinear" or not all(v in self.known for v in n.inputs):
            return None
        return compute(n, self.known)[0]

    def ints(self, call: Call, formal: str) -> tuple[int, ...] | None:
        """A list of integers that newer opsets pass as an operand and older ones as an attribute."""
        if formal in call.attrs:
            return call.integers(formal)
        a = self.decided(call, formal)
        return None if a is None else tuple(map(int, a.ravel()))

    def emit(
        self,
        op: str,
        operands: Sequence[str],
        attrs: Mapping[str, Attr] | None = None,
        outputs: Sequence[str] = ("",),
        loc: str = "",
    ) -> list[str]:
        """Add a node, or its value if that is known; gives a graph value for each of `outputs` that the op makes."""
        attrs = attrs or {}
        operands = tuple(operands)
        while operands and not operands[-1]:
            operands = operands[:-1]
        types = infer(op, [self.types[v] if v else None for v in operands], attrs)[: len(outputs)]
        if self._foldable(op, operands, types):
            return self._fold(op, operands, attrs, outputs)
        if len(self.nodes) >= NODE_LIMIT:
            raise FrontendError("E209", f"the model has more than {NODE_LIMIT} nodes")
        names = tuple(
            self.fresh(o or f"{op}.{i}")
            for i, (o, _) in enumerate(zip(outputs, types, strict=False))
        )
        self.types |= zip(names, types, strict=True)
        self.nodes.append(Node(op, operands, names, types, dict(attrs), loc or names[0]))
        return list(names)

    def _foldable(self, op: str, operands: tuple[str, ...], types: tuple[Type, ...]) -> bool:
        small = all(
            t.count <= FOLD_LIMIT for t in (*types, *(self.types[v] for v in operands if v))
        )
        return (
            small
            and op != "DequantizeLinear"  # integers and scales apart: what a product reads
            and all(v in self.known or not v for v in operands)
            and "reference" in OPS[op].facets
        )

    def _fold(
        self, op: str, operands: tuple[str, ...], attrs: Mapping[str, Attr], outputs: Sequence[str]
    ) -> list[str]:
        with np.errstate(all="ignore"):
            result = OPS[op].facets["reference"](
                *(self.known[v] if v else None for v in operands), **attrs
            )
        arrays = result if isinstance(result, tuple) else (result,)
        return [
            self.constant(np.asarray(a), o or op) for a, o in zip(arrays, outputs, strict=False)
        ]

    def graph(self, name: str, outputs: Mapping[str, str]) -> Graph:
        """The finished graph, with the constants that something reads."""
        read = {v for n in self.nodes for v in n.inputs} | set(outputs.values())
        constants = {n: a for n, a in self.known.items() if n in read}
        return Graph(name, dict(self.inputs), dict(outputs), tuple(self.nodes), constants)


def bind(b: Builder, call: Call) -> list[str]:
    """The default rule: an ONNX node becomes the op of the same name.

    What ONNX passes as an operand and the op declares as an attribute must be constant; an attribute of an older opset
    that the op takes as an operand becomes a constant. Attributes that say what the op does anyway are left out.
    """
    if call.op not in OPS:
        raise FrontendError("E203", f"operator {call.op} is not supported", hint=OPS_HINT)
    op = OPS[call.op]
    names = {n.lower(): n for n in op.attrs}
    positional = [n.lower() for n, p in op.parameters.items() if p.kind is not p.KEYWORD_ONLY]
    attrs: dict[str, Attr] = {}
    operands: list[str] = []
    for formal, value in call.inputs.items():
        if (name := names.get(formal.lower())) is None:
            operands.append(value)
        elif (a := b.decided(call, formal)) is not None:
            attrs[name] = plain(a, op.attrs[name])
    for attribute, given in (_defaults(call) | call.attrs).items():
        if (name := names.get(attribute.lower())) is not None:
            attrs.setdefault(name, plain(given, op.attrs[name]))
        elif attribute not in call.attrs:
            continue
        elif attribute.lower() in positional:
            _place(
                operands,
                positional.index(attribute.lower()),
                _scalar(b, operands, given, attribute),
            )
        elif not _says_nothing(call, attribute, given):
            raise FrontendError("E203", f"attribute {attribute}={_show(given)} is not supported")
    attrs = {n: v for n, v in attrs.items() if op.attrs[n].default != v}
    return b.emit(call.op, operands, attrs, call.outputs or ("",), call.loc)


def plain(value: Value, parameter: inspect.Parameter) -> Attr:
    """A constant or an attribute as the kind of attribute that the op declares."""
    kind = (
        parameter.annotation if isinstance(parameter.annotation, str) else str(parameter.annotation)
    )
    flat = value.ravel().tolist() if isinstance(value, np.ndarray) else value
    if isinstance(flat, GraphProto):
        raise FrontendError("E203", f"attribute {parameter.name!r} is a subgraph")
    if "tuple" in kind:
        return tuple(flat) if isinstance(flat, (list, tuple)) else (flat,)
    if isinstance(flat, (list, tuple)):
        if len(flat) != 1:
            raise FrontendError("E206", f"{parameter.name!r} takes one number, got {len(flat)}")
        flat = flat[0]
    if "str" in kind and isinstance(flat, int):
        return DTYPE_OF.get(flat, "") if flat else ""
    if ("str" in kind) != isinstance(flat, str):
        what = "text" if "str" in kind else "a number"
        raise FrontendError("E206", f"{parameter.name!r} takes {what}, got {_show(value)}")
    for name, convert in (("bool", bool), ("int", int), ("float", float)):
        if name in kind and not isinstance(flat, str):
            return convert(flat)
    return flat


ANYTHING = object()
SAYS_NOTHING: dict[str, Any] = {
    "broadcast": ANYTHING,  # before opset 7; without its `axis` it means what numpy means
    "consumed_inputs": ANYTHING,  # a hint to opset-1 executors
    "is_test": ANYTHING,
    "momentum": ANYTHING,  # only training updates the running statistics
    "seed": ANYTHING,
    "sorted": ANYTHING,  # unsorted means any order, and sorted is one
    "training_mode": 0,
    "spatial": 1,
    "auto_pad": "NOTSET",
    "stash_type": TensorProto.FLOAT,
}
"""Attributes that change nothing in inference at these values. Those at their schema's default say nothing either."""


def _says_nothing(call: Call, name: str, value: Value) -> bool:
    harmless = SAYS_NOTHING.get(name)
    if harmless is ANYTHING or (harmless is not None and harmless == value):
        return True
    return name in (d := _defaults(call)) and d[name] == value


def _defaults(call: Call) -> dict[str, Value]:
    return {} if call.schema is None else defaults(call.schema)


def _scalar(b: Builder, operands: list[str], value: Value, hint: str) -> str:
    """A number as a constant of the first operand's dtype."""
    dtype = DTYPES[b.type(operands[0]).dtype] if operands and operands[0] else np.float32
    return b.constant(np.asarray(value, dtype), hint)


def _place(operands: list[str], position: int, value: str) -> None:
    operands += [""] * (position + 1 - len(operands))
    operands[position] = value


def _show(value: Value) -> str:
    return f"a tensor of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
