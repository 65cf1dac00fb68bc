"""Which model an image is of, whoever compiled it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto


def origin(model: str | Path | ModelProto | None) -> Mapping[str, str]:
    """{"model": the SHA-256 of the model's file, or of the bytes that a loaded one is written as}; {} if there is no such file."""
    if not isinstance(model, str | Path | None):
        data = model.SerializeToString(deterministic=True)
        return {"model": hashlib.sha256(data).hexdigest()}
    if model is None or not Path(model).is_file():
        return {}
    with Path(model).open("rb") as f:
        return {"model": hashlib.file_digest(f, "sha256").hexdigest()}
