"""Which model an image is of, whoever compiled it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

    from .onnx.file import Model


def origin(model: str | Path | ModelProto | Model | None) -> Mapping[str, str]:
    """{"model": the SHA-256 of the model's file, or of the bytes that a loaded one is written as}; {} if there is no such file.

    What PyTorch exported in memory has no bytes of its own, and may be longer than protobuf writes: it is hashed part by part.
    """
    if not isinstance(model, str | Path | None):
        from .onnx.file import Model

        if isinstance(model, Model):
            return {"model": _digest(model.proto.graph)}
        data = model.SerializeToString(deterministic=True)
        return {"model": hashlib.sha256(data).hexdigest()}
    if model is None or not Path(model).is_file():
        return {}
    with Path(model).open("rb") as f:
        return {"model": hashlib.file_digest(f, "sha256").hexdigest()}


def _digest(g: GraphProto) -> str:
    found = hashlib.sha256()
    for part in (*g.input, *g.initializer, *g.node, *g.output):
        found.update(part.SerializeToString(deterministic=True))
    return found.hexdigest()
