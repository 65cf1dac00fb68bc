"""Level 1, the Graph: SSA over tensors. Ops are declared once; graphs print, parse and evaluate.

A declaration is the op's shape inference. Its signature is the schema: positional parameters are
operands (`T | None` with default None: optional; `*xs`: variadic), keyword-only ones are
attributes, with their types and defaults.

    @op
    def Relu(x: Type) -> Type:
        '''Elementwise max(x, 0).'''
        return x

    @Relu.reference                            # slow, obvious numpy: an array, or a tuple
    def _(x): return np.maximum(x, 0)

    @Relu.example                              # operands and attributes for tests
    def _(rng): return [rng.standard_normal((2, 3), np.float32)], {}

    @Relu.relax                                # SIMD lowering; R is tvm.relax, only in the worker
    def _(R, x): return R.op.nn.relu(x)

Names and semantics are ONNX's. Operands that ONNX makes tensors but that decide a shape (axes,
pads, starts, repeats, sizes) are attributes here; the ONNX door turns constants into them. Nothing
mutates: passes build new graphs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from knapper.isa.errors import IRError, KnapperError, raise_all
from knapper.isa.rows import trimmed

from .encoding import Encoding as Encoding
from .encoding import bitmap_sections

Array = NDArray[Any]
DTYPES: dict[str, Any] = {
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64,
    "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "bool": np.bool_,
}  # fmt: skip
NAMES = {np.dtype(d): n for n, d in DTYPES.items()}


@dataclass(frozen=True)
class Type:
    """A tensor type: dtype, static shape, and how it is encoded if it is (`Encoding`)."""

    dtype: str
    shape: tuple[int, ...]
    encoding: Encoding | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the tensor in memory: dense, but for a bitmap's buffer. (Where a weight's zeros are does not change how it is stored.)"""
        if self.encoding and self.encoding.name == "bitmap":
            return sum(bitmap_sections(self.shape, self.encoding["pad"]))
        return self.count * int(np.dtype(DTYPES[self.dtype]).itemsize)

    @property
    def dense(self) -> Type:
        """The type without its encoding."""
        return Type(self.dtype, self.shape) if self.encoding else self

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @staticmethod
    def of(a: Array) -> Type:
        """The type of a numpy array."""
        return Type(NAMES[a.dtype], tuple(map(int, a.shape)))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]" + (
            f" {self.encoding}" if self.encoding else ""
        )


Infer = Callable[..., Type | tuple[Type, ...]]


@dataclass(eq=False)
class Op:
    """One operator and its facets. Setting a facet twice is an error."""

    name: str
    infer: Infer
    domain: str = ""
    facets: dict[str, Callable[..., Any]] = field(default_factory=dict)

    @cached_property
    def signature(self) -> inspect.Signature:
        """The schema, as Python sees it: `infer`'s signature."""
        return inspect.signature(self.infer)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Operands and attributes by name."""
        return self.signature.parameters

    @cached_property
    def attrs(self) -> dict[str, inspect.Parameter]:
        """The attributes by name; their defaults are `inspect.Parameter.empty` where required."""
        return {n: p for n, p in self.parameters.items() if p.kind is p.KEYWORD_ONLY}

    def _facet(self, name: str, f: Callable[..., Any]) -> Callable[..., Any]:
        if name in self.facets:
            raise ValueError(f"{self.name}.{name} is declared twice")
        self.facets[name] = f
        return f

    def reference(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Declare the numpy reference: `f(*operands, **attrs)`, absent optionals are None."""
        return self._facet("reference", f)

    def example(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Declare the examples: `f(rng) -> (operands, attrs)`, or a generator of several."""
        return self._facet("example", f)

    def relax(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Declare the lowering to Relax: `f(R, *operands, **attrs) -> expr`, or a list of them."""
        return self._facet("relax", f)

    def grad(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Declare the gradient (a later issue uses it)."""
        return self._facet("grad", f)


OPS: dict[str, Op] = {}


def op(infer: Infer) -> Op:
    """Declare an op by its shape inference."""
    o = Op(infer.__name__, infer)
    if o.name in OPS:
        raise ValueError(f"op {o.name} is declared twice")
    OPS[o.name] = o
    return o


Attr = int | float | str | bool | tuple[Any, ...]


@dataclass(frozen=True)
class Node:
    """An op application. `outputs` are value names; an absent optional operand or result is "".

    `loc` is the model's node name. `group` names the launch that computes the node: the fuse pass
    sets it; before, and for views (which cost nothing), it is "". `place` names the kind of kernel that its launch shall be:
    `ffma`, or `ffma?` for "if it serves it"; "" leaves it to the scheduler.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[Type, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    loc: str = ""
    group: str = ""
    place: str = ""

    def attr(self, name: str) -> Any:
        """An attribute's value: the node's, else the declared default."""
        return self.attrs[name] if name in self.attrs else OPS[self.op].attrs[name].default

    def with_(self, **changes: Any) -> Node:
        """A copy with fields replaced."""
        return replace(self, **changes)

    def __str__(self) -> str:
        return f"%{self.outputs[0]}" + (f" (node {self.loc})" if self.loc else "")


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: nodes in topological order. `outputs` maps the network's output names to values.

    Two graphs are equal if their texts are, and their constants bit for bit. `meta` is where the graph is from (the model's
    hash, the passes it went through): it goes with the graph into files and programs, and is no part of what is computed.
    """

    name: str
    inputs: Mapping[str, Type]
    outputs: Mapping[str, str]
    nodes: tuple[Node, ...] = ()
    constants: Mapping[str, Array] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    """Where the zeros of a constant are. Who writes other content under its name drops it; `Writer` does."""
    state: Mapping[str, str] = field(default_factory=dict)
    """Input → the output that is its next value: on the machine both are one place, which lives as long as the session."""

    def types(self) -> dict[str, Type]:
        """Every value's type."""
        t = dict(self.inputs)
        t |= {name: self.constant_type(name) for name in self.constants}
        for n in self.nodes:
            t |= zip(n.outputs, n.types, strict=True)
        return t

    def constant_type(self, name: str) -> Type:
        """A constant's type, with its encoding."""
        return replace(Type.of(self.constants[name]), encoding=self.encodings.get(name))

    def producers(self) -> dict[str, Node]:
        """Value name → the node that makes it."""
        return {v: n for n in self.nodes for v in n.outputs if v}

    def users(self) -> dict[str, list[Node]]:
        """Value name → the nodes that read it, in order (a node once a use)."""
        found: dict[str, list[Node]] = {}
        for n in self.nodes:
            for v in n.inputs:
                found.setdefault(v, []).append(n)
        return found

    def with_(self, **changes: Any) -> Graph:
        """A copy with fields replaced."""
        return replace(self, **changes)

    def verify(self, places: Mapping[str, str] = {}) -> Graph:
        """Check names, order, schemas and types; raises every problem at once.

        `places` maps value names to where a text defines them, for the messages.
        """
        raise_all(_problems(self, places))
        return self

    def __repr__(self) -> str:
        size = f"{len(self.nodes)} nodes, {len(self.constants)} constants"
        return f"Graph({self.name}: {', '.join(self.inputs)} -> {', '.join(self.outputs)}; {size})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        mine, its = self.constants, other.constants
        return (
            self.name == other.name
            and list(self.inputs.items()) == list(other.inputs.items())
            and list(self.outputs.items()) == list(other.outputs.items())
            and self.nodes == other.nodes
            and list(mine) == list(its)
            and all(same(mine[k], its[k]) for k in mine)
            and dict(self.encodings) == dict(other.encodings)
            and dict(self.state) == dict(other.state)
        )

    __hash__ = None  # type: ignore[assignment]  # holds dicts and arrays


def same(a: Array, b: Array) -> bool:
    """Whether two arrays have the same type and the same bits."""
    return a is b or (Type.of(a) == Type.of(b) and a.tobytes() == b.tobytes())


def _problems(g: Graph, places: Mapping[str, str]) -> Iterator[KnapperError]:
    known = dict(g.inputs)
    for name, a in g.constants.items():
        where = places.get(name, "") + f"%{name}"
        if name in known:
            yield IRError("E102", "an input and a constant have the same name", where=where)
        if a.dtype not in NAMES:
            yield IRError("E102", f"a constant cannot be {a.dtype}", where=where)
        else:
            known[name] = Type.of(a)
    for n in g.nodes:
        where = places.get(n.outputs[0] if n.outputs else "", "") + str(n)
        for e in _node_problems(n, known):
            yield IRError(e.code, e.message, where=where, hint=e.hint)
        for v, t in zip(n.outputs, n.types, strict=False):
            if v in known:
                yield IRError("E102", f"%{v} is defined twice", where=where)
            if v:
                known[v] = t
    for name, v in g.outputs.items():
        if v not in known:
            yield IRError("E102", f"output {name!r} is %{v}, which nothing defines")
        elif (encoding := known[v].encoding) is not None and encoding.name == "bitmap":
            hint = "read the first result of BitmapEncode, which is dense"
            yield IRError("E102", f"output {name!r} is {known[v]}", hint=hint)
    if g.encodings:
        yield from _encoding_problems(g, places)
    yield from state_problems(g, known)


def state_problems(g: Graph, types: Mapping[str, Type]) -> Iterator[IRError]:
    """States that are no input and output of one type, and outputs that are the next value of two inputs."""
    given = list(g.state.values())
    for past, present in g.state.items():
        where = f"state {past}={present}"
        if past not in g.inputs or present not in g.outputs:
            kind, name, known = (
                ("output", present, [*g.outputs])
                if past in g.inputs
                else ("input", past, [*g.inputs])
            )
            hint = f"there are {', '.join(known)}" if known else ""
            yield IRError("E104", f"the network has no {kind} {name!r}", where=where, hint=hint)
        elif given.count(present) > 1:
            yield IRError("E104", f"{present} is the next value of two inputs", where=where)
        elif g.outputs[present] in types and types[g.outputs[present]] != g.inputs[past]:
            made = types[g.outputs[present]]
            problem = f"the input is {g.inputs[past]}, the output {made}: a state has one type"
            yield IRError("E104", problem, where=where)


def _encoding_problems(g: Graph, places: Mapping[str, str]) -> Iterator[IRError]:
    """Encodings of what is no constant, that are none, or that promise zeros where the products that read it find others."""
    from .sparsity.fits import misfit  # which knows products, and so is above this module

    users = g.users()
    for name, encoding in g.encodings.items():
        where = places.get(name, "") + f"%{name}"
        if name not in g.constants:
            yield IRError("E103", "only constants are encoded by name", where=where)
        elif problem := encoding.problem:
            yield IRError("E103", problem, where=where)
        elif encoding.name == "bitmap":
            yield IRError("E103", "bitmap is an encoding of activations", where=where)
        elif problem := misfit(g.constants[name], encoding, name, users.get(name, ())):
            hint = "whoever changes a weight drops its encoding"
            yield IRError("E103", problem, where=where, hint=hint)


def _node_problems(n: Node, known: Mapping[str, Type]) -> Iterator[IRError]:
    missing = [v for v in n.inputs if v and v not in known]
    if n.op not in OPS:
        close = get_close_matches(n.op, OPS, 1)
        hint = f"did you mean {close[0]}?" if close else ""
        yield IRError("E102", f"no op named {n.op!r}", hint=hint)
    elif missing:
        yield IRError("E102", f"{n.op} uses %{missing[0]} before it is defined")
    elif not n.outputs or len(n.outputs) != len(n.types):
        yield IRError("E102", f"{n.op} has {len(n.outputs)} results and {len(n.types)} types")
    else:
        try:
            want = infer(n.op, [known[v] if v else None for v in n.inputs], n.attrs)
        except IRError as e:
            yield e
            return
        for v in encoded_wrongly(n, known):
            problem = f"{n.op} reads elements, but %{v} is {known[v]}"
            hint = "read the first result of BitmapEncode, which is dense"
            yield IRError("E102", problem, hint=hint)
        if want[: len(n.types)] != n.types:
            made, says = (", ".join(map(str, ts)) for ts in (want, n.types))
            yield IRError("E102", f"{n.op} makes {made}, but the graph says {says}")


def encoded_wrongly(n: Node, known: Mapping[str, Type]) -> Iterator[str]:
    """Operands that lie under bitmaps, where only the first one of a product may: not even a view can look through them."""
    for i, v in enumerate(n.inputs):
        under = v and (e := known[v].encoding) is not None and e.name == "bitmap"
        if under and not (i == 0 and n.op in ("Conv", "MatMul")):
            yield v


def infer(name: str, operands: list[Type | None], attrs: Mapping[str, Attr]) -> tuple[Type, ...]:
    """Result types of an op; IRError E102 if operands or attributes do not fit its declaration."""
    o = OPS[name]
    if unknown := attrs.keys() - o.attrs.keys():
        has = ", ".join(o.attrs) or "none"
        raise IRError("E102", f"{name} has no attribute {sorted(unknown)[0]!r}; it has {has}")
    try:
        o.signature.bind(*operands, **attrs)
    except TypeError as e:
        raise IRError("E102", f"{name}: {e}") from None
    for t, p in zip(operands, o.parameters.values(), strict=False):
        if t is None and p.default is p.empty and "None" not in str(p.annotation):
            raise IRError("E102", f"{name}: operand {p.name!r} is missing")
    result = o.infer(
        *(t and t.dense for t in operands), **attrs
    )  # results lie dense unless the op itself says otherwise
    return result if isinstance(result, tuple) else (result,)


def require(condition: bool, message: str, hint: str = "") -> None:
    """Raise IRError E102 unless the condition holds: for use in shape inference."""
    if not condition:
        raise IRError("E102", message, hint=hint)


def compute(n: Node, env: Mapping[str, Any]) -> tuple[Array, ...]:
    """A node's results by its op's reference; `env` maps value names to arrays, "" to None."""
    result = OPS[n.op].facets["reference"](*(env[v] for v in n.inputs), **n.attrs)
    return result if isinstance(result, tuple) else (result,)


def evaluate(g: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the graph in numpy by the ops' references; gives the network's outputs by name, with the rows that are meant."""
    env: dict[str, Any] = {"": None, **g.constants, **inputs}
    for n in g.nodes:
        env |= {v: a for v, a in zip(n.outputs, compute(n, env), strict=False) if v}
    return trimmed({name: env[v] for name, v in g.outputs.items()})
