"""TensorProto and AttributeProto as numpy and Python values."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper

from knapper.compiler.ir import DTYPES, Array
from knapper.isa.errors import FrontendError

DTYPE_OF: dict[int, str] = {
    TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16", TensorProto.FLOAT: "f32", TensorProto.DOUBLE: "f64",
    TensorProto.INT8: "i8", TensorProto.INT16: "i16", TensorProto.INT32: "i32", TensorProto.INT64: "i64",
    TensorProto.UINT8: "u8", TensorProto.UINT16: "u16", TensorProto.UINT32: "u32", TensorProto.UINT64: "u64",
    TensorProto.BOOL: "bool",
}  # fmt: skip

FEW: dict[int, tuple[str, str]] = {
    TensorProto.INT2: ("i8", "i2"), TensorProto.UINT2: ("u8", "u2"),
    TensorProto.INT4: ("i8", "i4"), TensorProto.UINT4: ("u8", "u4"),
    TensorProto.FLOAT4E2M1: ("f32", "f4e2m1"), TensorProto.FLOAT6E2M3: ("f32", "f6e2m3"),
    TensorProto.FLOAT6E3M2: ("f32", "f6e3m2"), TensorProto.FLOAT8E4M3FN: ("f32", "f8e4m3"),
    TensorProto.FLOAT8E5M2: ("f32", "f8e5m2"), TensorProto.FLOAT8E8M0: ("f32", "f8e8m0"),
    TensorProto.FLOAT8E4M3FNUZ: ("f32", "f8e4m3fnuz"), TensorProto.FLOAT8E5M2FNUZ: ("f32", "f8e5m2fnuz"),
}  # fmt: skip
"""Element types of a few bits → (dtype that holds the values, format): only quantization's operators make them."""
FEW_ARRAYS = {np.dtype(helper.tensor_dtype_to_np_dtype(code)): few for code, few in FEW.items()}

Value = int | float | str | Array | GraphProto | tuple[Any, ...]
"""What an attribute can be."""


def dtype_of(code: int) -> str:
    """ONNX's element type number → the Graph's name; FrontendError E202 for those that knapper lacks."""
    if code in DTYPE_OF:
        return DTYPE_OF[code]
    known = code in TensorProto.DataType.values()
    name = TensorProto.DataType.Name(code).lower() if known else f"number {code}"
    raise FrontendError(
        "E202", f"element type {name} is not supported; knapper has {', '.join(DTYPES)}"
    )


def array_of(t: TensorProto, raw: memoryview | None = None, folder: Path | None = None) -> Array:
    """A tensor's values, read-only and where possible a view; `raw` is its data if that was left in the file."""
    if t.data_type in FEW:
        return _few(t, raw, folder)
    dtype = np.dtype(DTYPES[dtype_of(t.data_type)])
    shape = tuple(t.dims)
    if t.data_location == TensorProto.EXTERNAL:
        raw = _external(t, folder)
    elif raw is None and t.HasField("raw_data"):
        raw = memoryview(t.raw_data)
    try:
        if raw is None:
            return np.asarray(numpy_helper.to_array(t), dtype)
        return np.frombuffer(raw, dtype).reshape(shape)
    except (ValueError, TypeError):
        have = "its values" if raw is None else f"{len(raw)} bytes of data"
        raise FrontendError(
            "E209",
            f"tensor {t.name!r}: {have} do not fill {dtype.name}[{','.join(map(str, shape))}]",
        ) from None


def _few(t: TensorProto, raw: memoryview | None, folder: Path | None) -> Array:
    """Values in ml_dtypes' type of them; several lie in a byte."""
    if t.data_location == TensorProto.EXTERNAL:
        raw = _external(t, folder)
    if raw is not None:
        copy = TensorProto(data_type=t.data_type, dims=t.dims, raw_data=bytes(raw))
        return np.asarray(numpy_helper.to_array(copy))
    return np.asarray(numpy_helper.to_array(t))


def _external(t: TensorProto, folder: Path | None) -> memoryview:
    """The tensor's bytes in the file beside the model that it names; nothing outside the model's folder is opened."""
    entry = {e.key: e.value for e in t.external_data}
    name = entry.get("location", "")
    if folder is None:
        raise FrontendError(
            "E207",
            f"tensor {t.name!r} is in the file {name!r}, but the model was given without one",
        )
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise FrontendError(
            "E207", f"tensor {t.name!r} points outside the model's folder: {name!r}"
        )
    try:
        with path.open("rb") as f:
            data = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
        offset = int(entry.get("offset", 0))
        length = int(entry.get("length", len(data) - offset))
    except (OSError, ValueError) as e:
        raise FrontendError("E207", f"tensor {t.name!r}: cannot read {path}: {e}") from None
    if offset < 0 or length < 0 or offset + length > len(data):
        raise FrontendError(
            "E207",
            f"tensor {t.name!r}: {path} has {len(data)} bytes, not {length} from {offset} on",
        )
    return data[offset : offset + length]


def attribute(a: AttributeProto) -> Value:
    """An attribute's value; strings are text, lists are tuples, tensors are arrays."""
    match a.type:
        case AttributeProto.FLOAT:
            return float(a.f)
        case AttributeProto.INT:
            return int(a.i)
        case AttributeProto.STRING:
            return a.s.decode("utf-8", "replace")
        case AttributeProto.TENSOR:
            return array_of(a.t)
        case AttributeProto.GRAPH:
            return a.g
        case AttributeProto.FLOATS:
            return tuple(map(float, a.floats))
        case AttributeProto.INTS:
            return tuple(map(int, a.ints))
        case AttributeProto.STRINGS:
            return tuple(s.decode("utf-8", "replace") for s in a.strings)
    kind = AttributeProto.AttributeType.Name(a.type).lower()
    raise FrontendError("E202", f"attribute {a.name!r} is of kind {kind}, which is not supported")
