"""Networks as PyTorch's exporters to ONNX write them: the one that walks an exported program, and the older one that traces TorchScript.

The first gives normalizations and recurrences as one node and sizes as numbers; the second sizes as Shape, Gather and Concat, masks as
a hundred assignments by ScatterND, and any opset from 7 on. Both are files that people have.
"""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout

import onnx
from onnx import ModelProto

from .packages import require
from .sketch import Array

NAMES = ("vit", "swin", "unet", "deeplab_head", "gru")
"""Those of `modules.MODULES`, for who has no PyTorch."""


def exported(
    name: str, dynamo: bool = True, opset: int | None = None
) -> tuple[ModelProto, dict[str, Array]]:
    """A module of `modules` as ONNX, and an input; UsageError E707 without PyTorch.

    `dynamo`: by the exporter of that name, as `torch.onnx.export` calls it; else by TorchScript's.
    """
    require("torch", "onnxscript")
    import torch

    from .modules import made

    module, x = made(name)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # an operator that TorchScript's exporter lacks
    before, quiet = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(quiet), redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            model = _program(module, x, opset) if dynamo else _script(module, x, opset)
    finally:
        logging.disable(before)
        torch.backends.mha.set_fastpath_enabled(fast)
    return model, {model.graph.input[0].name: x.numpy()}


def _program(module: object, x: object, opset: int | None) -> ModelProto:
    import torch

    made = torch.onnx.export(
        module, (x,), dynamo=True, external_data=False, verbose=False, opset_version=opset
    )
    proto: ModelProto = made.model_proto
    return proto


def _script(module: object, x: object, opset: int | None) -> ModelProto:
    import torch

    data = io.BytesIO()
    torch.onnx.export(module, (x,), data, dynamo=False, opset_version=opset)
    return onnx.load_from_string(data.getvalue())
