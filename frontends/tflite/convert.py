"""A file's operators as nodes of ONNX, in their order; problems are collected, not stopped at.

An operator's converter (`@converts("CONV_2D")`) takes a `Call`, which has its operands, and gives its results back:

    call.stored(i)   what TFLite stores: q i8, f32, …       call.keep(v, i)   the same of a result
    call.real(i)     what it stands for: (q - zero) · scale  call.give(v, i)   the same of a result, which is quantized if TFLite stores integers

Both take an order of axes: images go through ONNX's operators with channels first. The Transposes are of what is stored, outside of
QuantizeLinear and DequantizeLinear; the pass `layout` takes them out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from knapper.compiler.ir import Array
from knapper.isa.errors import FrontendError, KnapperError, raise_all

from ..names import unique
from .file import DAMAGED, Contents, Operator, Scales, Tensor, enumerated

OPSET = 21
"""The oldest opset in which 16-bit integers are quantized, which onnxruntime runs since 1.20."""
IR_VERSION = 10
LIST = "`python -m knapper.frontends.tflite` lists those that are"
BIG = 1 << 31
"""Elements of a result beyond which a model is taken for damaged."""

Converter = Callable[["Call"], None]
CONVERTERS: dict[str, Converter] = {}
"""TFLite's operators, custom ones by their own names, and what converts them."""
INSTEAD: dict[str, str] = {
    "IF": "branches are chosen when a model is converted",
    "WHILE": "a loop of known length can be unrolled before it is converted (Keras: unroll=True)",
    "CALL": "the graph of the file must have no others inside",
    "HASHTABLE": "look words up outside of the network",
    "WHERE": "how many places it gives depends on the data; with three operands (SELECT) it does not",
    "UNIQUE": "how many elements it gives depends on the data",
}
"""Hints for operators that are refused."""
ONNX_TYPE: Mapping[str, int] = {
    "FLOAT16": TensorProto.FLOAT16, "FLOAT32": TensorProto.FLOAT, "FLOAT64": TensorProto.DOUBLE, "BFLOAT16": TensorProto.BFLOAT16,
    "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "INT4": TensorProto.INT8, "INT2": TensorProto.INT8, "UINT4": TensorProto.UINT8,
    "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16, "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64,
    "BOOL": TensorProto.BOOL,
}  # fmt: skip
"""TFLite's element types as ONNX's; those of a few bits are constants, one a byte."""
QUANTIZED = frozenset(["INT8", "UINT8", "INT16", "INT32", "INT4", "INT2", "UINT4", "INT64"])
HELPERS = frozenset(["Transpose", "Cast", "Reshape", "QuantizeLinear", "DequantizeLinear"])
"""Nodes that an operator is seldom named for."""


class Unreadable(Exception):
    """An operand that an earlier problem left undefined."""


def converts(*names: str) -> Callable[[Converter], Converter]:
    """Register a converter for operators."""

    def register(f: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(names, f))
        return f

    return register


@dataclass
class Model:
    """The ONNX model so far."""

    contents: Contents
    where: str
    names: list[str]
    """Tensor → its name in the model, which no other has."""
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    arrays: dict[int, Array] = field(default_factory=dict)
    """Tensors that are known."""
    values: dict[int, str] = field(default_factory=dict)
    """Tensor → the value that stands for it, as it is stored; "" if it could not be converted."""
    made: dict[tuple[Any, ...], str] = field(default_factory=dict)
    """What has been derived from tensors already."""
    taken: set[str] = field(default_factory=set)
    locs: set[str] = field(default_factory=set)
    states: list[tuple[str, Tensor, str]] = field(default_factory=list)
    """(input, its tensor, the value that it has behind the run) of what is kept between runs."""
    problems: list[KnapperError] = field(default_factory=list)

    def fresh(self, near: str) -> str:
        """A name that nothing has."""
        return unique(near, self.taken)

    def constant(self, a: Array, near: str) -> str:
        """A new constant."""
        name = self.fresh(near)
        self.initializers[name] = numpy_helper.from_array(np.asarray(a, order="C"), name)
        return name


@dataclass
class Call:
    """One operator on its way into the model."""

    model: Model
    op: Operator
    loc: str
    first: int
    """How many nodes there were before it."""

    # --- operands

    def has(self, i: int) -> bool:
        """Whether an optional operand is there."""
        return i < len(self.op.inputs) and self.op.inputs[i] >= 0

    def tensor(self, i: int) -> Tensor:
        """An operand's tensor; FrontendError E206 if it is missing."""
        if not self.has(i):
            raise FrontendError("E206", f"operand {i} is missing")
        return self.model.contents.tensors[self.op.inputs[i]]

    def result(self, i: int = 0) -> Tensor:
        """A result's tensor."""
        return self.model.contents.tensors[self.op.outputs[i]]

    def shape(self, i: int) -> tuple[int, ...]:
        """An operand's usual shape."""
        return self.tensor(i).shape

    def rank(self, i: int) -> int:
        return len(self.tensor(i).shape)

    def known(self, i: int, *axes: int) -> bool:
        """Whether these axes of an operand have the sizes that its shape says."""
        return not self.tensor(i).open & {*axes}

    def axis(self, value: int, i: int = 0, extra: int = 0) -> int:
        """An axis of operand i, counted from its first; `extra` axes more are allowed."""
        rank = self.rank(i) + extra
        if not -rank <= value < max(rank, 1):
            raise FrontendError("E206", f"axis {value} of a tensor of {rank} axes")
        return value % rank if rank else 0

    def array(self, i: int) -> Array:
        """What is known of an operand; FrontendError E204 if it is computed."""
        self.tensor(i)
        if (found := self.model.arrays.get(self.op.inputs[i])) is None:
            problem = f"operand {i} decides a shape or an attribute, but is computed by the network"
            hint = "convert the model with static shapes"
            raise FrontendError("E204", problem, hint=hint)
        return found

    def ints(self, i: int) -> tuple[int, ...]:
        """A list of integers that is known."""
        return tuple(map(int, self.array(i).ravel()))

    def is_known(self, i: int) -> bool:
        return self.has(i) and self.op.inputs[i] in self.model.arrays

    def stored(self, i: int, perm: Sequence[int] = ()) -> str:
        """An operand as TFLite stores it, with its axes in another order."""
        t, at = self.tensor(i), self.op.inputs[i]
        key = (at, *perm)
        if key in self.model.made:
            return self.model.made[key]
        if perm and sorted(perm) != list(range(len(t.shape))):
            raise FrontendError("E206", f"operand {i} has {len(t.shape)} axes, not {len(perm)}")
        if t.type not in ONNX_TYPE:
            raise FrontendError("E202", f"operand {i} has elements of type {t.type}")
        name = self.model.names[at]
        if (a := self.model.arrays.get(at)) is not None:
            found = self.model.constant(np.transpose(a, perm) if perm else a, name)
        elif not self.model.values.get(at):
            if at in self.model.values:
                raise Unreadable
            raise FrontendError("E209", f"reads {t.name!r}, which nothing before it computes")
        else:
            found = self.model.values[at]
            found = self.node("Transpose", found, perm=list(perm)) if perm else found
        self.model.made[key] = found
        return found

    def real(self, i: int, perm: Sequence[int] = ()) -> str:
        """What an operand stands for: itself, if it is not quantized."""
        s = scales_of(self.tensor(i))
        if s is None:
            return self.stored(i, perm)
        key = ("real", self.op.inputs[i], *perm)
        if key not in self.model.made:
            axis = list(perm).index(s.axis) if perm else s.axis
            self.model.made[key] = self.dequantized(self.stored(i, perm), s, self.tensor(i), axis)
        return self.model.made[key]

    def real_array(self, i: int) -> Array:
        """What a known operand stands for, in float."""
        a, s = self.array(i), scales_of(self.tensor(i))
        if s is None:
            return a.astype(np.float32) if a.dtype.kind == "f" else a
        shape = [-1 if k == s.axis else 1 for k in range(a.ndim)] if s.scale.size > 1 else []
        zero, scale = s.zero.reshape(shape), s.scale.reshape(shape)
        return np.asarray((a.astype(np.int64) - zero).astype(np.float32) * scale)

    def dequantized(self, v: str, s: Scales, t: Tensor, axis: int) -> str:
        """(v - zero) · scale"""
        return self.node("DequantizeLinear", v, *self._scales(s, t), **_along(s, axis))

    def _scales(self, s: Scales, t: Tensor) -> list[str]:
        """A tensor's scale and zero point; none if it is zero, where the type has no need to be said."""
        kind: Any = np.dtype(helper.tensor_dtype_to_np_dtype(ONNX_TYPE[t.type]))
        info = np.iinfo(kind)
        if s.zero.min() < info.min or s.zero.max() > info.max:
            raise FrontendError("E206", f"{t.name!r}: its zero point is outside of {t.type}")
        shape = s.scale.shape if s.scale.size > 1 else ()
        scale = self.constant(s.scale.reshape(shape), "scale")
        if t.type == "INT32":
            return [scale]
        return [scale, self.constant(s.zero.astype(kind).reshape(shape), "zero")]

    # --- nodes

    def option(self, name: str, default: Any = None) -> Any:
        """An option, with the schema's default if it was not written."""
        found = self.op.options
        if found is None:
            if default is None:
                raise FrontendError("E206", f"has no option {name!r}", hint="is the file damaged?")
            return default
        return getattr(found, name)

    def named(self, table: str, option: str) -> str:
        """The name that an option has in one of the schema's enumerations."""
        return enumerated(table, int(self.option(option)))

    def constant(self, a: Any, near: str = "") -> str:
        """A new constant."""
        return self.model.constant(np.asarray(a), f"{self.loc}.{near}" if near else self.loc)

    def number(self, value: float) -> str:
        """A float constant."""
        return self.constant(np.float32(value), "number")

    def int64(self, *values: int) -> str:
        """A constant list of integers."""
        return self.constant(np.array(values, np.int64), "ints")

    def nodes(self, op: str, operands: Sequence[str], count: int, **attrs: Any) -> list[str]:
        """A node of several results."""
        results = [self.model.fresh(f"{self.loc}.{op}") for _ in range(count)]
        self.model.nodes.append(helper.make_node(op, operands, results, **attrs))
        return results

    def node(self, op: str, *operands: str, **attrs: Any) -> str:
        """A node of one result."""
        return self.nodes(op, operands, 1, **attrs)[0]

    def cast(self, v: str, type: str) -> str:
        """A value in another of TFLite's types."""
        if type not in ONNX_TYPE:
            raise FrontendError("E202", f"elements of type {type} are not supported")
        return self.node("Cast", v, to=ONNX_TYPE[type])

    def as_int64(self, i: int) -> str:
        """An operand that is a list of integers, as ONNX wants those."""
        if self.is_known(i):
            return self.int64(*self.ints(i))
        return self.cast(self.stored(i), "INT64")

    # --- results

    def give(self, v: str, i: int = 0, perm: Sequence[int] = ()) -> None:
        """The result is what v stands for, with its axes in that order."""
        t = self.result(i)
        if (s := scales_of(t)) is not None:
            if t.type not in ("INT8", "UINT8", "INT16"):
                raise FrontendError("E203", f"a result that is quantized to {t.type}")
            axis = list(perm).index(s.axis) if perm else s.axis
            v = self.node("QuantizeLinear", v, *self._scales(s, t), **_along(s, axis))
        self.keep(v, i, perm)

    def keep(self, v: str, i: int = 0, perm: Sequence[int] = ()) -> None:
        """The result is stored as v, with its axes in that order."""
        if perm:
            v = self.node("Transpose", v, perm=list(perm))
        self.model.values[self.op.outputs[i]] = v

    def keep_array(self, a: Array, i: int = 0) -> None:
        """The result is known."""
        self.model.arrays[self.op.outputs[i]] = a

    def same_scales(self, *operands: int) -> bool:
        """Whether these operands and the result mean the same by their integers."""
        wanted, kind = scales_of(self.result()), self.result().type
        found = [self.tensor(i) for i in operands]
        return all(scales_of(t) == wanted and t.type == kind for t in found)


def scales_of(t: Tensor) -> Scales | None:
    """How a tensor is quantized; None if it is not."""
    return t.scales if t.type in QUANTIZED else None


def _along(s: Scales, axis: int) -> dict[str, int]:
    return {"axis": axis} if s.scale.size > 1 else {}


# --- the walk


def convert(contents: Contents, where: str) -> ModelProto:
    """The model; every FrontendError at once."""
    taken = set[str]()
    names = [unique(t.name or f"tensor_{i}", taken) for i, t in enumerate(contents.tensors)]
    m = Model(contents, where, names, taken=taken)
    m.arrays = {i: t.data for i, t in enumerate(contents.tensors) if t.data is not None}
    m.values = {i: names[i] for i in contents.inputs}
    for i in contents.inputs:
        m.arrays.pop(i, None)
    for op in contents.operators:
        _convert(m, op)
    inputs = [_port(m, i) for i in contents.inputs]
    if not contents.outputs and not m.problems:
        m.problems.append(FrontendError("E209", "the model has no outputs", where=where))
    outputs = list(_outputs(m))
    raise_all(m.problems)
    return _model(m, inputs, outputs)


def _convert(m: Model, op: Operator) -> None:
    first = op.outputs[0] if op.outputs else None
    stem = m.names[first].partition(";")[0] if first is not None else op.name
    call = Call(m, op, unique(stem, m.locs), len(m.nodes))
    with _collect(m, f"node {call.loc!r} ({op.name})"):
        converter = CONVERTERS.get(op.name)
        if converter is None:
            raise _unknown(op)
        for i in range(len(op.outputs)):
            _check_size(call.result(i))
        converter(call)
        _label(m, m.nodes[call.first :], call.loc)
    for o in op.outputs:
        if o not in m.arrays:
            m.values.setdefault(o, "")


def _check_size(t: Tensor) -> None:
    if np.prod(t.shape, dtype=np.float64) > BIG:
        raise FrontendError("E209", f"a result of shape {list(t.shape)}", hint="is it damaged?")


def _unknown(op: Operator) -> FrontendError:
    if op.custom:
        flex = "convert it for TFLITE_BUILTINS alone" if op.name.startswith("Flex") else ""
        return FrontendError(
            "E203", f"custom operator {op.name} is not supported", hint=flex or LIST
        )
    hint = INSTEAD.get(op.name, LIST)
    return FrontendError("E203", f"operator {op.name} is not supported", hint=hint)


def _label(m: Model, nodes: Sequence[NodeProto], loc: str) -> None:
    """Call the first node that computes something after the operator."""
    main = next((n for n in nodes if n.op_type not in HELPERS), nodes[0] if nodes else None)
    for n in nodes:
        n.name = loc if n is main else unique(f"{loc}/{n.op_type}", m.locs)


@contextmanager
def _collect(m: Model, place: str) -> Iterator[None]:
    where = f"{m.where}: {place}"
    try:
        yield
    except Unreadable:
        pass
    except KnapperError as e:
        m.problems.append(FrontendError(e.code, e.message, where=where, hint=e.hint))
    except DAMAGED as e:
        said = f"cannot be converted: {type(e).__name__}: {next(iter(str(e).splitlines()), '')}"
        found = FrontendError("E209", said, where=where, hint="is the file damaged?")
        found.__cause__ = e
        m.problems.append(found)


def _port(m: Model, i: int) -> ValueInfoProto:
    """An input of the network."""
    t = m.contents.tensors[i]
    if t.type not in ONNX_TYPE:
        problem = f"input {t.name!r} has elements of type {t.type}"
        m.problems.append(FrontendError("E202", problem, where=m.where))
        return ValueInfoProto()
    sizes = [f"{m.names[i]}.{k}" if k in t.open else n for k, n in enumerate(t.shape)]
    return helper.make_tensor_value_info(m.names[i], ONNX_TYPE[t.type], sizes)


def _outputs(m: Model) -> Iterator[tuple[str, str, int]]:
    """(name, value, ONNX type) of each output of the network."""
    for i in m.contents.outputs:
        t = m.contents.tensors[i]
        with _collect(m, f"output {t.name!r}"):
            if t.type not in ONNX_TYPE:
                raise FrontendError("E202", f"has elements of type {t.type}")
            if i in m.arrays:
                yield m.names[i], m.constant(m.arrays[i], m.names[i]), ONNX_TYPE[t.type]
            elif v := m.values.get(i, ""):
                yield m.names[i], v, ONNX_TYPE[t.type]
            elif i not in m.values:
                raise FrontendError("E209", "is computed by nothing")


def _model(m: Model, inputs: list[Any], outputs: Sequence[tuple[str, str, int]]) -> ModelProto:
    """What was converted, with tensors' names on the values that stand for them."""
    called = {v: v for v in (i.name for i in inputs)}
    for i, v in m.values.items():
        if v and v not in m.initializers:
            called.setdefault(v, m.names[i])
    called |= {v: v for v, _, _ in m.states}
    for n in m.nodes:
        n.input[:] = [called.get(v, v) for v in n.input]
        n.output[:] = [called.get(v, v) for v in n.output]
    ends, seen = [], set[str]()
    for name, v, type in outputs:
        if called.get(v, v) != name:
            m.nodes.append(helper.make_node("Identity", [called.get(v, v)], [name], name))
        if name not in seen:
            ends.append(helper.make_tensor_value_info(name, type, None))
        seen.add(name)
    for name, t, v in m.states:
        inputs.append(helper.make_tensor_value_info(name, ONNX_TYPE[t.type], t.shape))
        after = unique(f"{name}.next", m.taken)
        m.nodes.append(helper.make_node("Identity", [called.get(v, v)], [after], after))
        ends.append(helper.make_tensor_value_info(after, ONNX_TYPE[t.type], t.shape))
    read = {v for n in m.nodes for v in n.input}
    weights = [w for name, w in m.initializers.items() if name in read]
    graph = helper.make_graph(m.nodes, m.contents.name, inputs, ends, weights)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(
        graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="knapper"
    )
