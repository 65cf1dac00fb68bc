"""Microscaling formats (OCP MX 1.0): blocks of 32 elements of few bits that share a power of two.

    value of element i of a block = 2^(s - 127) · element(code i),      s: the block's byte in E8M0

The shared exponent is that of the block's largest number less that of the element's largest, so the largest number may saturate. Elements are
of any format in `FORMATS`; `i8` is MXINT8: its codes count 1/64, and -128 is not used. The nearest element is taken, ties go to the even one.
Blocks lie along the last axis; the last one of a row may be short.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .format import FLOAT, Format

BLOCK = 32
BIAS = 127
"""Of an E8M0 scale."""
NAN = 255
"""The scale of a block that has a NaN or an infinity."""


def encode(
    x: ArrayLike, element: Format, block: int = BLOCK
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """[…, n] numbers → (scales […, ceil(n / block)], codes […, n])."""
    numbers = np.asarray(x, np.float64)
    count = numbers.shape[-1]
    blocks = -(-count // block)
    padded = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, blocks * block - count)])
    split = padded.reshape(*numbers.shape[:-1], blocks, block)
    largest = np.abs(split).max(axis=-1)
    finite = np.isfinite(largest)
    exponent = np.frexp(np.where(finite, largest, 1))[1] - 1 - _emax(element)
    exponent = np.clip(np.where(largest == 0, -BIAS, exponent), -BIAS, BIAS)
    scaled = np.ldexp(np.where(finite[..., None], split, 0), -exponent[..., None]) / unit(element)
    codes = element.encode(np.maximum(scaled, -element.largest), "even")
    scales = np.where(finite, exponent + BIAS, NAN).astype(np.uint8)
    return scales, codes.reshape(*numbers.shape[:-1], -1)[..., :count]


def decode(
    scales: NDArray[np.uint8], codes: NDArray[Any], element: Format, block: int = BLOCK
) -> NDArray[np.float64]:
    """The numbers, […, n]."""
    each = np.repeat(np.asarray(scales), block, axis=-1)[..., : codes.shape[-1]]
    values = np.ldexp(element.decode(codes) * unit(element), each.astype(np.int64) - BIAS)
    return np.where(each == NAN, np.nan, values)


def unit(element: Format) -> float:
    """The value of 1 in an element: integers have all bits but the first two behind the point."""
    return 1.0 if element.kind == FLOAT else 2.0 ** (2 - element.bits)


def _emax(element: Format) -> int:
    """The exponent of the element's largest value."""
    return math.frexp(element.largest * unit(element))[1] - 1
