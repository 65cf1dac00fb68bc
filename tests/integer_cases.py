"""Products of integers for tests of kernels: sums, and all that makes 8 bits of them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matrix_cases import RNG, Case, Writer, draw


def integers(
    x: Sequence[int], o: int, k: int, *, stride: int = 1, pad: int = 0, dilation: int = 1, group: int = 1, types: tuple[str, str] = ("u8", "i8"),
    known: bool = True, after: str = "relu", out: str = "u8", pad_value: int = 0,
) -> Case:  # fmt: skip
    """Conv of x[N, H, W, C] with k × k taps and an i32 bias; `after`: sums, relu, or zero points and a residual."""
    w = Writer()
    data = draw(x, types[0]), draw((k, k, x[-1] // group, o), types[1])
    bias = w.value(RNG.integers(-1000, 1000, (o,), np.int32), True)
    operands = w.value(data[0]), w.value(data[1], known), bias
    y = w.op(
        "Conv", *operands, strides=(stride,) * 2, pads=(pad,) * 4, dilations=(dilation,) * 2, group=group, layout="NHWC", out="i32",
        pad_value=pad_value,
    )  # fmt: skip
    return w.case(y if after == "sums" else requantized(w, y, o, after, out))


def matmul_of(
    a: Sequence[int], b: Sequence[int], *, types: tuple[str, str] = ("u8", "i8"), known: bool = False, after: str = "sums",
    out: str = "u8", **attrs: Any,
) -> Case:  # fmt: skip
    """MatMul with i32 sums."""
    w = Writer()
    y = w.op(
        "MatMul",
        w.value(draw(a, types[0])),
        w.value(draw(b, types[1]), known),
        out="i32",
        **attrs,
    )
    n = w.types[y].shape[-1] if w.types[y].shape else 1
    return w.case(y if after == "sums" else requantized(w, y, n, after, out))


def requantized(w: Writer, sums: str, channels: int, after: str, out: str) -> str:
    """Scaled by channel, offset, perhaps added to 8 bits with a zero point, rounded, clipped, stored as 8 bits."""
    y = w.op("Cast", sums, to="f32")
    y = w.op("Mul", y, known(w, (RNG.random(channels) + 0.1) * 1e-3))
    y = w.op("Add", y, known(w, RNG.standard_normal(channels)))
    if after == "residual":
        r = w.op("Cast", w.value(draw(w.types[y].shape, out)), to="f32")
        y = w.op("Add", y, w.op("Mul", w.op("Sub", r, known(w, 3)), known(w, 0.1)))
    y = w.op("Round", w.op("Relu", y) if after == "relu" else y)
    if after != "relu":
        y = w.op("Add", y, known(w, 7))
    low, high = (0.0, 255.0) if out == "u8" else (-128.0, 127.0)
    return w.op("Cast", w.op("Clip", y, min=low, max=high), to=out)


def known(w: Writer, numbers: Any) -> str:
    return w.value(np.asarray(numbers, np.float32), True)
