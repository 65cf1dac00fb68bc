"""What every quantizer of weights returns: integers that mean themselves, and scales.

    w ≈ (values - zero_point) · scale        scale and zero_point along `axis`, or one for all

`values` are decoded: flint's 16 is 16, not its code. `format` is the narrowest that holds them (`isa/formats.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from knapper.isa.formats import FORMATS

from ..ir import Array


@dataclass(frozen=True, eq=False)
class Quantized:
    """Integers with scales [channels] along `axis`; `zero_point` is all zeros for symmetric grids."""

    values: Array
    scale: Array
    zero_point: Array
    axis: int
    shape: tuple[int, ...]
    format: str

    @property
    def real(self) -> Array:
        """The weights that the integers stand for, float32."""
        like = [1] * len(self.shape)
        like[self.axis] = -1
        zero, scale = self.zero_point.reshape(like), self.scale.reshape(like)
        return (self.values.astype(np.float32) - zero.astype(np.float32)) * scale

    def with_rows(self, q: Array) -> Quantized:
        """With values from [channels, …] rows (`rows`)."""
        return replace(self, values=from_rows(q, self.shape, self.axis))

    def stored(self) -> Quantized:
        """With values of the format's own storage type."""
        f = FORMATS[self.format]
        return replace(self, values=self.values.astype(storage(f.smallest, f.largest)))


def rows(w: Array, axis: int) -> Array:
    """Weights [O, C, taps] with the output channels first: [O, C, kh, kw] as they lie, matrices [K, N] as [N, K, 1]."""
    moved = np.moveaxis(w, axis, 0)
    taps = prod(moved.shape[2:])
    return moved.reshape(len(moved), -1, taps) if moved.ndim > 1 else moved.reshape(-1, 1, 1)


def from_rows(r: Array, shape: tuple[int, ...], axis: int) -> Array:
    """`rows` undone."""
    moved = [shape[axis], *shape[:axis], *shape[axis + 1 :]]
    return np.ascontiguousarray(np.moveaxis(r.reshape(moved), 0, axis))


def storage(low: float, high: float) -> type[np.generic]:
    """The narrowest of i8, u8, i16, u16, i32 that holds an interval."""
    kinds = (np.int8, np.uint8, np.int16, np.uint16, np.int32)
    return next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
