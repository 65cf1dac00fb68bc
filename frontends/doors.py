"""What a model can be: each kind of file, and of object, becomes what `frontends/onnx` reads. So there is one set of operators and of errors.

net.onnx, ModelProto ─────────────────────────┐
net.pt2, nn.Module, ExportedProgram ─ pytorch ┼─► opened ONNX model ─ frontends/onnx ─► Graph
net.tflite ─────────────────────────── tflite ┘
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from knapper.isa.errors import UsageError
from knapper.isa.files import unreadable

from . import pytorch
from .onnx.file import Model


def _tflite(path: Path) -> Model:
    from .tflite import opened

    return opened(path)


DOORS = {pytorch.ENDING: pytorch.exported_file, ".tflite": _tflite}
"""Endings of files that are no ONNX models, and what makes such of them."""


def opened(model: Any, example: Any = None) -> Any:
    """A PyTorch or TFLite model as an opened ONNX model; a path, ModelProto or opened model of ONNX as it is.

    Args:
        model: also a `torch.nn.Module`, a `torch.export.ExportedProgram`, or the path of a file of `torch.export.save`.
        example: a module's inputs: a tensor, a tuple of them, or a dict by argument; their sizes are what is compiled for.

    Raises FrontendError E201, E203, E210, E211 for what cannot be opened or exported, UsageError E704 for what is no model, or an example
    in the wrong place.
    """
    if isinstance(model, str | Path):
        _refuse(example, str(model))
        return _file(Path(model)) if Path(model).suffix in DOORS else model
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        return pytorch.of_module(model, example)
    _refuse(example, type(model).__name__)
    if torch is not None and isinstance(model, torch.export.ExportedProgram):
        return pytorch.converted(model, "model")
    if isinstance(model, ModelProto | Model):
        return model
    hint = "a path, an onnx.ModelProto, a torch.nn.Module or a torch.export.ExportedProgram is; a state_dict is loaded into its module first"
    raise UsageError("E704", "this is no model", where=type(model).__name__, hint=hint)


def _file(path: Path) -> Model:
    try:
        stat = path.stat()
    except OSError as e:
        raise unreadable(path, e) from None
    return _converted(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _converted(path: Path, modified: int, size: int) -> Model:
    """What was converted last: commands open a model for several things, and PyTorch's exporter takes seconds."""
    return DOORS[path.suffix](path)


def source(model: Any) -> str | bytes:
    """What onnxruntime opens of a model: a path, or bytes."""
    if isinstance(model, bytes):
        return model
    found = opened(model)
    if isinstance(found, Model):
        found = found.proto
    return bytes(found.SerializeToString()) if isinstance(found, ModelProto) else str(found)


def proto(model: str | Path | bytes) -> ModelProto:
    """A model's structure and weights, for who adds outputs to it."""
    found = source(model)
    return ModelProto.FromString(found) if isinstance(found, bytes) else onnx.load(found)


def _refuse(example: Any, what: str) -> None:
    if example is not None:
        raise UsageError("E704", "example inputs are for a torch.nn.Module", where=what)
