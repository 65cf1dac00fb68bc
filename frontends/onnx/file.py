"""Open a model file without copying its weights.

A ResNet-50 is 100 MB of initializers around 30 KB of structure. The file is mapped, and before protobuf sees it the
`raw_data` of large initializers is cut out; the arrays are then views of the mapping:

    ModelProto ─ 7: GraphProto ─ 5: TensorProto ─ 9: raw_data      the path that the cut follows

Lengths are checked on the way, which is how a truncated file is told from a foreign one.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto

from knapper.isa.errors import FrontendError
from knapper.isa.files import unreadable

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Field numbers in ModelProto, GraphProto and TensorProto (onnx.proto)."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Protobuf wire types."""
LEAVE_IN_FILE = 4096
"""Bytes from which on an initializer's data stays in the mapping."""

FOREIGN = {
    (0, b"\x7fELF"): "an ELF file; `knapper run` and `knapper dis` take those",
    (0, b"PK\x03\x04"): "a zip archive (a .pt, .npz or .keras file?)",
    (4, b"TFL3"): "a TFLite model",
    (0, b"\x89HDF"): "an HDF5 file (Keras?)",
    (0, b"\x1f\x8b"): "gzip-compressed; unpack it first",
    (0, b"\x80\x02"): "a Python pickle (PyTorch?)",
    (8, b'{"'): "a safetensors file: weights without a network",
    (0, b"version https://git-lfs"): "a Git LFS pointer; run `git lfs pull`",
    (0, b"\x93NUMPY"): "a numpy array",
}


@dataclass(frozen=True)
class Model:
    """An opened model: its structure, and the data of large initializers by their position."""

    proto: ModelProto
    name: str
    """What error messages call it."""
    folder: Path | None = None
    """Where external data is looked for."""
    weights: dict[int, memoryview] = field(default_factory=dict)
    limits: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    """Symbolic dimension → the least and the greatest size that the model is for; None: no greatest."""
    fixed: bool = False
    """Whether sizes that the model fixes are in its numbers as well, so that no others can take their place."""


class Truncated(Exception):
    """A length in the file reaches past its end."""


def open_model(source: str | Path | ModelProto | Model) -> Model:
    """Open a path, or wrap a ModelProto; FrontendError E201 if it is no ONNX model."""
    if isinstance(source, Model):
        return source
    if isinstance(source, ModelProto):
        return Model(source, source.graph.name or "model")
    path = Path(source)
    data = _bytes_of(path)
    for (offset, magic), what in FOREIGN.items():
        if data[offset : offset + len(magic)] == magic:
            raise _not_a_model(path, f"this is {what}")
    weights: dict[int, memoryview] = {}
    try:
        proto = ModelProto.FromString(b"".join(_without_weights(data, weights)))
    except (Truncated, DecodeError):
        raise _not_a_model(path, _describe(data), "is the download complete?") from None
    if not proto.ir_version or not proto.HasField("graph"):
        raise _not_a_model(path, _describe(data))
    return Model(proto, str(path), path.parent, weights)


def _not_a_model(path: Path, reason: str, hint: str = "") -> FrontendError:
    return FrontendError("E201", reason, where=str(path), hint=hint)


def _bytes_of(path: Path) -> memoryview:
    try:
        with path.open("rb") as f:
            if path.stat().st_size == 0:
                raise _not_a_model(path, "the file is empty")
            return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as e:
        raise unreadable(path, e) from None


def _describe(data: memoryview) -> str:
    head = bytes(data[:256])
    if all(b in b"\t\r\n" or 32 <= b < 127 for b in head):
        return "this is a text file, not an ONNX model"
    return f"this is no ONNX model, or not all of one ({len(data)} bytes)"


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise Truncated


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """(field number, the field with its tag, its payload) of each field of a message."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        payload = at
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, payload = _varint(data, at)
                at = payload + size
            case 5:
                at += 4
            case _:
                raise Truncated
        if at > len(data):
            raise Truncated
        yield tag >> 3, data[start:at], data[payload:at]


def _message(number: int, parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """The parts as a length-delimited field."""
    size = sum(map(len, parts))
    head = bytearray([number << 3 | BYTES])
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return [bytes(head), *parts]


def _without_weights(
    data: memoryview, weights: dict[int, memoryview]
) -> Iterator[bytes | memoryview]:
    """The model's bytes with large `raw_data` taken out and put into `weights`."""
    position = 0
    for number, whole, payload in _fields(data):
        if number != GRAPH:
            yield whole
            continue
        graph: list[bytes | memoryview] = []
        for inner, whole_inner, tensor in _fields(payload):
            if inner != INITIALIZER:
                graph.append(whole_inner)
                continue
            parts: list[bytes | memoryview] = []
            for leaf, whole_leaf, raw in _fields(tensor):
                if leaf == RAW_DATA and len(raw) >= LEAVE_IN_FILE:
                    weights[position] = raw
                else:
                    parts.append(whole_leaf)
            graph += _message(INITIALIZER, parts)
            position += 1
        yield from _message(GRAPH, graph)
