"""The TFLite door: a .tflite file becomes an opened ONNX model, and goes in where those do.

    model.tflite ─ file ─► tensors, operators ─ convert ─► Model ─ frontends/onnx ─► Graph

To ONNX and not to the Graph: then types and shapes are inferred, constants folded, calibration, pruning and comparisons done by what does it
for every model, and onnxruntime can say whether a conversion means what the operator does. Nothing is lost: what TFLite has
and ONNX has not (images with channels last, integers with scales, sparse constants) the passes make again of Transposes, QuantizeLinear
and zeros.

Files are read by the schema in `ai-edge-litert`, Google's package of the interpreter itself (22 MB). It is the newest, so that it knows what
files of today have (INT2, INT4, 210 operators), and whoever reads models has the interpreter to compare with. `tflite`, the same schema as
a package of its own, is of TensorFlow 2.18.

What integers give: QuantizeLinear and DequantizeLinear around each operator, of which the pass `integers` makes exact sums and one scaling
in float32. XNNPACK, by which the interpreter computes unless it is told not to, scales convolutions in float32 too: the same bits
in tests. TFLite's own kernels scale by an integer of 31 bits, and sums, means and average pools of integers round ties their own way:
one step, an operator. Moving, comparing and choosing elements is exact. Weights of 8 bits with activations in float ("dynamic range") are
computed in float, from the weights' exact values, where TFLite rounds the activations to 8 bits first.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ..onnx.file import Model
from . import elementwise, moves, quantized, reductions, spatial, state  # noqa: F401  their converters
from .convert import convert
from .file import ENDING, read

log = logging.getLogger("knapper")
__all__ = ["ENDING", "opened"]


def opened(path: Path) -> Model:
    """A file as an opened ONNX model; FrontendError with everything that is wrong with it."""
    where = str(path)
    contents = read(path)
    if contents.graphs > 1:
        log.warning(
            "%s has %d graphs; this is the first, %s", where, contents.graphs, contents.name
        )
    return Model(convert(contents, where), where)
