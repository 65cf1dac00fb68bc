"""Writes random ONNX models, a node at a time: what is drawn, and what is known of each value.

`exact`: every correct implementation has the same bits (operators with steps, like Floor, TopK or a comparison, take no other value).
`bound`: the largest magnitude (no overflow, and nothing that cancels more than float32 holds).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
DIMS = (1, 1, 2, 3, 3, 4, 7, 8, 17, 33)
LARGEST = 1 << 12
"""Elements of a value, at most."""
OPSETS = range(7, 29)
FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
INTS = (TensorProto.INT32, TensorProto.INT64)


@dataclass(frozen=True)
class Value:
    """A value of the graph, and what is known of its numbers."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    bound: float = 4.0
    exact: bool = True

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Writer:
    """Writes one random model; a node that ONNX's inference does not accept is not written."""

    rng: random.Random
    smooth: bool = False
    """No operators with steps: where what is stored is rounded, they fall elsewhere."""
    opset: int = 17
    nodes: list[NodeProto] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, Array] = field(default_factory=dict)
    ports: list[Value] = field(default_factory=list)
    finals: list[Any] = field(default_factory=list)
    """Outputs that nothing reads, as their ValueInfoProto: their sizes are the data's."""
    reads: set[str] = field(default_factory=set)
    """What graphs inside nodes read."""
    count: int = 0

    # --- drawing ------------------------------------------------------------------------------------------------------------

    def name(self, stem: str = "v") -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def flip(self, one_in: int = 2) -> bool:
        return self.rng.randrange(one_in) == 0

    def shape(self, rank: int | None = None) -> tuple[int, ...]:
        rank = self.rng.choice((0, 1, 2, 2, 3, 3, 4, 4, 4, 5)) if rank is None else rank
        dims: list[int] = []
        for _ in range(rank):
            room = LARGEST // max(1, int(np.prod(dims)))
            dims.append(self.rng.choice([d for d in DIMS if d <= room] or [1]))
        self.rng.shuffle(dims)
        return tuple(dims)

    def numbers(self, dtype: int, shape: Sequence[int]) -> Array:
        """Eighths from -4 to 4, small integers, or booleans: exact also in 16 bits."""
        rng, made = np.random.default_rng(self.rng.getrandbits(32)), helper.tensor_dtype_to_np_dtype(dtype)  # fmt: skip
        if made.kind == "f":
            return np.asarray(rng.integers(-32, 33, shape) / 8).astype(made)
        if dtype == BOOL:
            return rng.integers(0, 2, shape).astype(np.bool_)
        return np.asarray(rng.integers(0 if made.kind == "u" else -9, 10, shape)).astype(made)

    def input(self, dtype: int, shape: Sequence[int]) -> Value:
        value = Value(self.name("in"), dtype, tuple(shape), 9.0 if dtype in INTS else 4.0)
        self.inputs[value.name] = self.numbers(dtype, value.shape)
        self.ports.append(value)
        self.values.append(value)
        return value

    def const(self, a: Array, *, hold: bool = False) -> Value:
        """An initializer, or a Constant."""
        dtype = helper.np_dtype_to_tensor_dtype(a.dtype)
        bound = float(np.abs(a.astype(np.float64)).max(initial=0))
        value = Value(self.name("c"), dtype, a.shape, bound)
        if self.flip(4) and self.opset >= 9:  # before, constants were floats
            tensor = numpy_helper.from_array(a, value.name)
            self.nodes.append(helper.make_node("Constant", [], [value.name], value=tensor))
        else:
            self.weights[value.name] = a
        if hold:
            self.values.append(value)
        return value

    def given(self, a: Array) -> Value:
        """An input that holds these numbers, and that no other node takes."""
        dtype = helper.np_dtype_to_tensor_dtype(a.dtype)
        value = Value(self.name("in"), dtype, a.shape, float(np.abs(a).max(initial=0)))
        self.inputs[value.name] = a
        self.ports.append(value)
        return value

    def number(self, value: float) -> Value:
        return self.const(np.array(value, np.float32))

    def ints(self, *values: int) -> Value:
        return self.const(np.array(values, np.int64))

    def weight(self, *shape: int, positive: bool = False) -> Value:
        a = self.numbers(FLOAT, shape)
        return self.const(np.abs(a) / 4 + 0.5 if positive else a / 4)

    def pick(
        self,
        dtype: int = FLOAT,
        ranks: Sequence[int] = range(6),
        bound: float = 1e4,
        exact: bool = False,
        size: int = LARGEST,
    ) -> Value:
        """A value that fits: one that is there, the later the likelier, else a new input."""
        found = [
            v for v in self.values
            if v.dtype == dtype and v.rank in ranks and v.bound <= bound and (v.exact or not exact) and np.prod(v.shape) <= size
        ]  # fmt: skip
        if found and not self.flip(8):
            return found[-1] if self.flip() else self.rng.choice(found)
        ranks = [r for r in ranks if r > 0] or [0]
        shape = self.shape(self.rng.choice(ranks))
        while np.prod(shape) > size:
            shape = self.shape(len(shape))
        if self.flip(4):
            return self.const(self.numbers(dtype, shape), hold=True)
        return self.input(dtype, shape)

    def partner(self, x: Value) -> Value:
        """A value that x broadcasts with."""
        found = [
            v
            for v in self.values
            if v.dtype == x.dtype and joint(v.shape, x.shape) and v.bound <= 1e3
        ]
        if found and self.flip():
            return self.rng.choice(found)
        dims = [1 if self.flip(3) else d for d in x.shape][self.rng.randrange(x.rank + 1) :]
        a = self.numbers(x.dtype, dims)
        return self.const(a, hold=True) if self.flip() else self.input(x.dtype, dims)

    # --- nodes --------------------------------------------------------------------------------------------------------------

    def emit(
        self, op: str, operands: Sequence[Value | None], bound: float, exact: bool = False, outputs: int = 1, **attributes: Any
    ) -> Value | None:  # fmt: skip
        """Write a node, if its results have shapes; the first of them."""
        names = [self.name() for _ in range(outputs)]
        node = helper.make_node(op, [v.name if v else "" for v in operands], names, **attributes)
        given = [v for v in operands if v]
        types = {v.name: helper.make_tensor_type_proto(v.dtype, v.shape) for v in given}
        data = {n: numpy_helper.from_array(self.weights[n], n) for n in types if n in self.weights}
        for n in self.nodes:
            if n.op_type == "Constant" and n.output[0] in types:
                data[n.output[0]] = n.attribute[0].t
        opsets = [helper.make_opsetid("", self.opset)]
        try:
            schema = onnx.defs.get_schema(op, self.opset)
            if not schema.min_input <= len(operands) <= schema.max_input:
                return None
            if not attributes.keys() <= schema.attributes.keys():
                return None
            inferred = onnx.shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=opsets, ir_version=10
            )
        except (
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            onnx.defs.SchemaError,
        ):
            return None
        made = []
        for name in names:
            if name not in inferred or not inferred[name].tensor_type.HasField("shape"):
                return None
            tensor = inferred[name].tensor_type
            shape = tuple(d.dim_value for d in tensor.shape.dim)
            if 0 in shape or any(not d.HasField("dim_value") for d in tensor.shape.dim):
                return None
            if np.prod(shape) > 4 * LARGEST:
                return None
            made.append(Value(name, tensor.elem_type, shape, bound, exact))
        self.nodes.append(node)
        self.values.extend(made)
        return made[0]

    def add(self, op: str, operands: Sequence[Value], made: Sequence[Value], **attributes: Any) -> None:  # fmt: skip
        """Write a node whose results are known."""
        self.nodes.append(helper.make_node(op, [v.name for v in operands], [v.name for v in made], **attributes))  # fmt: skip
        self.values.extend(made)

    def final(self, op: str, operands: Sequence[Value], dtype: int, shape: Sequence[int | str], **attributes: Any) -> None:  # fmt: skip
        """Write a node whose result is an output, of a size that the data decides."""
        if not self.knows(op):
            return
        info = helper.make_tensor_value_info(self.name(), dtype, shape)
        self.nodes.append(helper.make_node(op, [v.name for v in operands], [info.name], **attributes))  # fmt: skip
        self.finals.append(info)

    def knows(self, op: str) -> bool:
        """Whether the opset has the operator."""
        try:
            onnx.defs.get_schema(op, self.opset)
        except onnx.defs.SchemaError:
            return False
        return True

    def axis(self, x: Value) -> int:
        """An axis, from the front or the back."""
        return self.rng.randrange(-x.rank, x.rank)

    def step(self) -> None:
        self.rng.choice(KINDS)(self)


def joint(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether shapes broadcast to one that is small enough."""
    try:
        return int(np.prod(np.broadcast_shapes(tuple(a), tuple(b)))) <= LARGEST
    except ValueError:
        return False


Kind = Callable[[Writer], object]
KINDS: list[Kind] = []


def kind(share: int = 1) -> Callable[[Kind], Kind]:
    """A way to write a node, that is chosen `share` times as often as the rarest."""

    def register(f: Kind) -> Kind:
        KINDS.extend([f] * share)
        return f

    return register
