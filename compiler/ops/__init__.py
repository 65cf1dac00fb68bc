"""The op set. Importing this package declares every op in `ir.OPS`.

One file a family, one declaration an op. Names and semantics are ONNX's, with three additions: `layout` ("NCHW" channels
first, "NHWC" channels last, whatever the rank), `out` (the stored type of a matrix product, "" for the operands'), and
`trans_a`/`trans_b` of MatMul. Two ops are not ONNX's: `Im2col` and `BitmapEncode`. What ONNX passes as a tensor though it
decides a shape (axes, pads, starts, repeats, sizes) is an attribute here.

Every op has a reference and examples. Every op has a lowering to TVM Relax, except

    Shape, Size             always folded: shapes are static
    NonZero                 folded by the importer, or made of running sums
    NonMaxSuppression, RoiAlign, BitmapEncode   kernels of our own
    MaxPool, second result  where the maxima are: TVM pools values only; asking for it is a compile error that names the node
"""

from __future__ import annotations

from . import (  # noqa: F401  importing is declaring
    activation,
    binary,
    bitmap,
    constant,
    conv,
    detection,
    einsum,
    gather,
    im2col,
    linear,
    movement,
    normalisation,
    pooling,
    quantize,
    recurrent,
    reduction,
    resize,
    unary,
    views,
)
