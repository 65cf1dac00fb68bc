"""Level 1, the Graph: SSA over tensors. Ops are declared once; graphs print and parse as text and evaluate in numpy.

A declaration is the op's shape inference. Its signature is the schema: positional parameters are operands (`T | None` with default None: optional;
`*xs`: variadic), keyword-only ones are attributes, with their types and defaults.

    @op
    def Relu(x: Type) -> Type:
        '''Elementwise max(x, 0).'''
        return x

    @Relu.reference
    def _(x): return np.maximum(x, 0)          # slow, obvious numpy; gives an array, or a tuple for several results

    @Relu.example
    def _(rng): return [rng.standard_normal((2, 3), np.float32)], {}      # operands and attributes for tests

    @Relu.relax
    def _(R, x): return R.op.nn.relu(x)        # SIMD lowering; R is tvm.relax, imported in the worker only

Names and semantics are ONNX's. Operands that ONNX makes tensors but that decide a shape (axes, pads, starts, repeats, sizes) are attributes
here; the ONNX door turns constants into them. Nothing mutates: passes build new graphs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from knapper.isa.errors import IRError, KnapperError, raise_all

Array = NDArray[Any]
DTYPES: dict[str, Any] = {
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64,
    "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "bool": np.bool_,
}  # fmt: skip
NAMES = {np.dtype(d): n for n, d in DTYPES.items()}


@dataclass(frozen=True)
class Type:
    """A tensor type: dtype and static shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        return self.count * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def rank(self) -> int:
        return len(self.shape)

    @staticmethod
    def of(a: Array) -> Type:
        """The type of a numpy array."""
        return Type(NAMES[a.dtype], tuple(map(int, a.shape)))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


Infer = Callable[..., Type | tuple[Type, ...]]


@dataclass(eq=False)
class Op:
    """One operator and its facets. Setting a facet twice is an error."""

    name: str
    infer: Infer
    domain: str = ""
    facets: dict[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.infer).parameters

    @property
    def attrs(self) -> dict[str, inspect.Parameter]:
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
        """Declare the example generator: `f(rng) -> (operands, attrs)`; may be a generator of several."""
        return self._facet("example", f)

    def relax(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Declare the lowering to TVM Relax: `f(R, *operands, **attrs) -> expr` (or a list); `R` is the module `tvm.relax`."""
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
    """An op application. `outputs` are value names; an absent optional operand is "". `loc` is the model's node name.

    `group` names the launch that computes it: set by the fuse pass, empty before.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[Type, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    loc: str = ""
    group: str = ""


@dataclass(frozen=True)
class Graph:
    """A network: nodes in topological order. `outputs` maps the network's output names to values."""

    name: str
    inputs: Mapping[str, Type]
    outputs: Mapping[str, str]
    nodes: tuple[Node, ...] = ()
    constants: Mapping[str, Array] = field(default_factory=dict)

    def types(self) -> dict[str, Type]:
        """Every value's type."""
        t = dict(self.inputs)
        t |= {name: Type.of(a) for name, a in self.constants.items()}
        for n in self.nodes:
            t |= zip(n.outputs, n.types, strict=True)
        return t

    def producers(self) -> dict[str, Node]:
        """Value name → the node that makes it."""
        return {v: n for n in self.nodes for v in n.outputs}

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

    def verify(self) -> Graph:
        """Check names, order, schemas and types; raises every problem at once."""
        raise_all(self._problems())
        return self

    def _problems(self) -> Iterator[KnapperError]:
        known = dict(self.inputs) | {k: Type.of(a) for k, a in self.constants.items()}
        for n in self.nodes:
            where = f"%{n.outputs[0] if n.outputs else '?'}" + (f" (node {n.loc})" if n.loc else "")
            missing = [v for v in n.inputs if v and v not in known]
            if n.op not in OPS:
                yield IRError("E102", f"no op named {n.op!r}", where=where)
            elif missing:
                yield IRError("E102", f"{n.op} uses %{missing[0]} before it is defined", where=where)
            else:
                try:
                    want = infer(n.op, [known[v] if v else None for v in n.inputs], n.attrs)
                    if want[: len(n.types)] != n.types:
                        yield IRError("E102", f"{n.op} makes {', '.join(map(str, want))}, but the graph says {', '.join(map(str, n.types))}", where=where)
                except IRError as e:
                    yield IRError(e.code, e.message, where=where, hint=e.hint)
            for v, t in zip(n.outputs, n.types, strict=True):
                if v in known:
                    yield IRError("E102", f"%{v} is defined twice", where=where)
                known[v] = t
        for name, v in self.outputs.items():
            if v not in known:
                yield IRError("E102", f"output {name!r} is %{v}, which nothing defines")


def infer(name: str, operands: list[Type | None], attrs: Mapping[str, Attr]) -> tuple[Type, ...]:
    """Result types of an op; IRError if operands or attributes do not fit its declaration."""
    o = OPS[name]
    if unknown := attrs.keys() - o.attrs.keys():
        raise IRError("E102", f"{name} has no attribute {sorted(unknown)[0]!r}; it has {', '.join(o.attrs) or 'none'}")
    try:
        inspect.signature(o.infer).bind(*operands, **attrs)
    except TypeError as e:
        raise IRError("E102", f"{name}: {e}") from None
    result = o.infer(*operands, **attrs)
    return result if isinstance(result, tuple) else (result,)


def require(condition: bool, message: str, hint: str = "") -> None:
    """Raise IRError E102 unless the condition holds: for use in shape inference."""
    if not condition:
        raise IRError("E102", message, hint=hint)


def evaluate(g: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the graph in numpy by the ops' references; gives the network's outputs by name."""
    env: dict[str, Any] = {"": None, **g.constants, **inputs}
    for n in g.nodes:
        result = OPS[n.op].facets["reference"](*(env[v] for v in n.inputs), **n.attrs)
        env |= zip(n.outputs, result if isinstance(result, tuple) else (result,), strict=False)
    return {name: env[v] for name, v in g.outputs.items()}
