"""Read a .tflite file: its first graph, every index inside its list, every constant as long as its tensor, dense.

A flatbuffer is offsets all through, and what reads it follows them wherever they point. So nothing of it is kept but
what was checked here:

    ModelT ─ subgraphs[0] ─┬─ tensors ──► Tensor   dtype, shape, constant data, scales
                           └─ operators ► Operator name, operands by number (-1: absent), options
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from knapper.compiler.ir import Array
from knapper.isa.errors import FrontendError
from knapper.isa.files import unreadable

from .sparse import dense

ENDING = ".tflite"
EXTRA = "pip install 'knapper[tflite]'"
MAGIC = b"TFL3"
DAMAGED = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError, struct.error)  # fmt: skip
"""What reading a flatbuffer raises whose offsets point anywhere."""
DTYPES: Mapping[str, Any] = {
    "FLOAT16": np.float16, "FLOAT32": np.float32, "FLOAT64": np.float64, "BFLOAT16": ml_dtypes.bfloat16,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "INT4": np.int8, "INT2": np.int8,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "UINT4": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""TFLite's element types that a tensor of the Graph can hold."""
FEW = {"INT4": 4, "UINT4": 4, "INT2": 2}
"""Those that a byte holds several of, the first in its low bits."""
LARGEST = 1 << 40
"""Elements of a tensor beyond which a model is taken for damaged."""


@dataclass(frozen=True)
class Scales:
    """What the integers of a tensor stand for: (q - zero) · scale, along an axis if there are several."""

    scale: Array
    zero: Array
    axis: int

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Scales)
            and self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have none


@dataclass(frozen=True)
class Tensor:
    """One tensor of the graph."""

    name: str
    type: str
    """TFLite's name of its elements."""
    shape: tuple[int, ...]
    open: frozenset[int]
    """Axes whose size the caller chooses; `shape` has the usual one."""
    data: Array | None
    """A constant's values; those of INT4 one a byte."""
    scales: Scales | None
    variable: bool
    """Whether it is kept from one run to the next."""


@dataclass(frozen=True)
class Operator:
    """One operator; operands and results are numbers of tensors, -1 for an absent operand."""

    name: str
    """As TFLite calls it; a custom one by its own name."""
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any
    """The options table that its kind has, None if it has none."""
    blob: bytes
    """The options of a custom one, a flexbuffer."""


@dataclass(frozen=True)
class Contents:
    """The first graph of a file."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    graphs: int
    """How many the file has."""


def read(path: Path) -> Contents:
    """FrontendError E201 for what is no TFLite file or not all of one, E209 for one whose parts do not fit each other."""
    where = str(path)
    data = _bytes_of(path)
    schema = _schema(where)
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        return _checked(model, data, schema, where)
    except DAMAGED as e:
        problem = "this is no TFLite model, or not all of one"
        hint = "is the download complete?"
        raise FrontendError("E201", problem, where=where, hint=hint) from e


def _bytes_of(path: Path) -> bytes:
    where = str(path)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise unreadable(path, e) from None
    if not data:
        raise FrontendError("E201", "the file is empty", where=where)
    if data[4:8] != MAGIC:
        problem = f"this is no TFLite model ({len(data)} bytes)"
        raise FrontendError("E201", problem, where=where)
    return data


def _schema(where: str) -> Any:
    """TFLite's schema in Python; FrontendError E210 without the package that has it."""
    try:
        return import_module("ai_edge_litert.schema_py_generated")
    except ImportError as e:
        problem = f"TFLite models need {e.name or 'ai_edge_litert'}, which is not installed"
        raise FrontendError("E210", problem, where=where, hint=EXTRA) from None


@cache
def _names(table: Any) -> Mapping[int, str]:
    """An enumeration of the schema, by value."""
    return {v: k for k, v in vars(table).items() if isinstance(v, int)}


def enumerated(table: str, value: int) -> str:
    """The name of a value of one of the schema's enumerations; FrontendError E209 if it has none."""
    names = _names(getattr(_schema(""), table))
    if value not in names:
        raise FrontendError("E209", f"{value} is no {table}", hint="is the file damaged?")
    return names[value]


def _checked(model: Any, data: bytes, schema: Any, where: str) -> Contents:
    if not model.subgraphs:
        raise FrontendError("E209", "the model has no graph", where=where)
    graph = model.subgraphs[0]
    buffers = [_buffer(b, data) for b in model.buffers or ()]
    types = _names(schema.TensorType)
    tensors = tuple(
        _tensor(t, buffers, types, f"{where}: tensor {i}")
        for i, t in enumerate(_all(graph.tensors))
    )
    codes = [_code(c, _names(schema.BuiltinOperator)) for c in _all(model.operatorCodes)]
    count = len(tensors)
    operators = tuple(
        Operator(
            *codes[_inside(o.opcodeIndex, len(codes), where, "operator code")],
            _numbers(o.inputs, count, where, least=-1),
            _numbers(o.outputs, count, where),
            o.builtinOptions if o.builtinOptions is not None else o.builtinOptions2,
            bytes(bytearray(_all(o.customOptions))),
        )
        for o in _all(graph.operators)
    )
    inputs, outputs = (_numbers(i, count, where) for i in (graph.inputs, graph.outputs))
    name = _text(graph.name) or Path(where).stem
    return Contents(name, tensors, operators, inputs, outputs, len(model.subgraphs))


def _all(items: Any) -> Any:
    """A vector, which is None if it is empty."""
    return () if items is None else items


def _text(name: bytes | str | None) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""


def _inside(i: int, count: int, where: str, what: str) -> int:
    if not 0 <= i < count:
        raise FrontendError("E209", f"there is no {what} {i}", where=where, hint="is it damaged?")
    return i


def _numbers(items: Any, count: int, where: str, least: int = 0) -> tuple[int, ...]:
    found = tuple(int(i) for i in _all(items))
    for i in found:
        if i != least or i >= 0:
            _inside(i, count, where, "tensor")
    return found


def _code(c: Any, names: Mapping[int, str]) -> tuple[str, bool]:
    """(operator, whether it is custom): files from before there were 128 operators have the code in a byte."""
    number = max(c.builtinCode, c.deprecatedBuiltinCode)
    name = names.get(number, f"{number}")
    return (_text(c.customCode) or name, True) if name == "CUSTOM" else (name, False)


def _buffer(b: Any, data: bytes) -> Array:
    """A buffer's bytes, in the flatbuffer or behind it."""
    if b.offset > 1:
        if b.offset + b.size > len(data):
            raise ValueError("a buffer behind the end of the file")
        return np.frombuffer(data, np.uint8, b.size, b.offset)
    return np.asarray(_all(b.data), np.uint8)


def _tensor(t: Any, buffers: Sequence[Array], types: Mapping[int, str], where: str) -> Tensor:
    name, shape = _text(t.name), tuple(int(n) for n in _all(t.shape))
    where = f"{where} {name!r}"
    if any(n < 0 for n in shape) or prod(shape) > LARGEST:
        raise FrontendError("E209", f"a shape of {list(shape)}", where=where)
    signature = tuple(int(n) for n in _all(t.shapeSignature))
    opened = {i for i, n in enumerate(signature) if n < 0}
    raw = buffers[_inside(t.buffer, len(buffers), where, "buffer")]
    kind = types.get(t.type, f"{t.type}")
    data = None
    if raw.size and kind in DTYPES:
        data = _values(raw, kind, shape, t.sparsity, where)
    elif t.buffer and not prod(shape) and kind in DTYPES and not raw.size and not t.isVariable:
        data = np.zeros(shape, DTYPES[kind])
    scales = _scales(t.quantization, shape, where)
    fits = len(signature) == len(shape)
    return Tensor(
        name, kind, shape, frozenset(opened if fits else ()), data, scales, bool(t.isVariable)
    )


def _values(raw: Array, kind: str, shape: tuple[int, ...], sparsity: Any, where: str) -> Array:
    """A constant's elements."""
    bits = FEW.get(kind, 0)
    stored = _unpacked(raw, bits, kind) if bits else raw[: len(raw) // _size(kind) * _size(kind)]
    flat = stored if bits else stored.view(DTYPES[kind])
    if sparsity is not None:
        flat = dense(flat, shape, sparsity)
    missing = prod(shape) - flat.size
    if missing > 0 or -missing >= max(8 // bits if bits else 1, 1):
        problem = f"has {flat.size} elements, its shape {list(shape)} says {prod(shape)}"
        raise FrontendError("E209", problem, where=where, hint="is the file damaged?")
    return flat[: prod(shape)].reshape(shape)


def _size(kind: str) -> int:
    return int(np.dtype(DTYPES[kind]).itemsize)


def _unpacked(raw: Array, bits: int, kind: str) -> Array:
    """Elements of a few bits, one a byte."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (raw[:, None] >> shifts & ((1 << bits) - 1)).astype(np.uint8).ravel()
    if kind.startswith("U"):
        return codes
    left = np.uint8(8 - bits)
    return np.asarray((codes << left).view(np.int8) >> np.int8(left))


def _scales(q: Any, shape: tuple[int, ...], where: str) -> Scales | None:
    """FrontendError E202 for what is quantized otherwise than by scales, E209 for scales that do not fit."""
    if q is None or not len(_all(q.scale)):
        return None
    if q.details is not None and not hasattr(q.details, "custom"):
        problem = f"is quantized by {type(q.details).__name__.removesuffix('T')}"
        raise FrontendError("E202", problem, where=where, hint="scales along an axis are served")
    scale = np.asarray(q.scale, np.float32)
    zero = np.asarray(_all(q.zeroPoint), np.int64)
    zero = np.zeros(scale.shape, np.int64) if not zero.size else zero
    axis = int(q.quantizedDimension)
    many = scale.size > 1
    if zero.shape != scale.shape or (many and not _fits(scale.size, axis, shape)):
        problem = f"{scale.size} scales and {zero.size} zero points, along axis {axis} of {list(shape)}"  # fmt: skip
        raise FrontendError("E209", problem, where=where, hint="is the file damaged?")
    if not (np.isfinite(scale) & (scale >= 0)).all():
        raise FrontendError("E209", "a scale that is no positive number", where=where)
    return Scales(scale, zero, axis if many else 0)


def _fits(count: int, axis: int, shape: Sequence[int]) -> bool:
    return 0 <= axis < len(shape) and shape[axis] == count


def shown(names: Iterable[str], most: int = 3) -> str:
    """A few names in words."""
    found = list(names)
    return ", ".join(map(repr, found[:most])) + (", …" if found[most:] else "")
