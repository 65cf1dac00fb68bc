"""Bitmap-encoded activations in numpy: what the kernels read and write, byte by byte.

    an image, pad 1, seen as one stream of positions:            a segment of 32 positions, channel by channel:

    lead        zeros, one row and one position                  values   V [segment][channel]   64 bytes, up to 32 values packed
    row 0       x x x … x 0                                      bitmaps  BM[segment][channel]   32 bits, one a position
    row 1       x x x … x 0                                      flags    WB[segment][channel/32] bit j: any non-zero in channels
    …           0 0 0 … 0 0   pad rows between the images                 16 j … 16 j + 15 of these 32

A row has `pad` zeros behind it, a plane `pad` rows, so a tap of a convolution is a shift of the stream: what lies left of a row is
the zeros behind the one before. Each segment has a slot for its worst case; only the bytes that are used are ever touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoding import SEGMENT as SEGMENT
from ..encoding import bitmap_sections

GROUP = 16
"""Channels of a warp tile: their number is filled up to a multiple."""
SLOT = 2 * SEGMENT
"""Bytes of a segment's values of a channel."""
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Where the elements of a value of `shape`, channels last, lie: of a matrix, or an image with `pad`.

    >>> x = Layout((1, 2, 3, 5), 1)
    >>> x.lead, x.pitch, x.channels, x.segments
    (5, 4, 16, 2)
    """

    shape: tuple[int, ...]
    pad: int

    @property
    def image(self) -> tuple[int, int, int]:
        """Images, rows and columns; a matrix is one row a plane."""
        if len(self.shape) == 4:
            return self.shape[0], self.shape[1], self.shape[2]
        return 1, 1, math.prod(self.shape[:-1])

    @property
    def inset(self) -> int:
        """`pad` of an image; a matrix has none."""
        return self.pad if len(self.shape) == 4 else 0

    @property
    def channels(self) -> int:
        """In memory."""
        return -(-self.shape[-1] // GROUP) * GROUP

    @property
    def groups(self) -> int:
        """Of 16 channels."""
        return self.channels // GROUP

    @property
    def flags(self) -> int:
        """Bytes of flags of a segment."""
        return -(-self.channels // 32)

    @property
    def pitch(self) -> int:
        """Positions from a row to the next."""
        return self.image[2] + self.inset

    @property
    def rows(self) -> int:
        """Rows from a plane to the next."""
        return self.image[1] + self.inset

    @property
    def lead(self) -> int:
        """Zeros before the first element."""
        return self.inset * self.pitch + self.inset

    @property
    def end(self) -> int:
        """The position behind the last one that an element can have."""
        return self.lead + self.image[0] * self.rows * self.pitch

    @property
    def segments(self) -> int:
        return -(-self.end // SEGMENT) + 1

    @property
    def sections(self) -> tuple[int, int, int]:
        """Bytes of values, of bitmaps, of flags."""
        return bitmap_sections(self.shape, self.inset)

    @property
    def bytes(self) -> int:
        return sum(self.sections)

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Of each row of the value seen as a matrix [rows, channels]."""
        n, h, w = self.image
        i, y, x = np.ogrid[:n, :h, :w]
        return np.asarray(self.lead + (i * self.rows + y) * self.pitch + x).reshape(-1)

    def stream(self, x: NDArray[Any]) -> NDArray[Any]:
        """The value spread over all positions and channels, zeros between. [segments · 32, channels]"""
        out = np.zeros((self.segments * SEGMENT, self.channels), x.dtype)
        out[self.positions, : self.shape[-1]] = x.reshape(-1, self.shape[-1])
        return out

    def bitmaps(self, x: NDArray[Any]) -> NDArray[np.uint32]:
        """[segments, channels]; a -0 is zero."""
        there = self.stream(x).reshape(self.segments, SEGMENT, -1) != 0
        return packed(there.transpose(0, 2, 1))

    def encode(self, x: NDArray[Any]) -> Bytes:
        """The buffer."""
        values = self.stream(x).reshape(self.segments, SEGMENT, -1).transpose(0, 2, 1)
        there = values != 0
        order = np.argsort(~there, axis=-1, kind="stable")
        slots = np.where(
            np.take_along_axis(there, order, -1),
            np.take_along_axis(values, order, -1),
            np.zeros((), x.dtype),
        )
        bitmaps = packed(there)
        any_ = (bitmaps.reshape(self.segments, -1, GROUP) != 0).any(-1)
        any_ = np.pad(any_, ((0, 0), (0, self.groups % 2))).reshape(self.segments, -1, 2)
        flags = (any_ @ np.array([1, 2], np.uint8)).astype(np.uint8)
        out = np.zeros(self.bytes, np.uint8)
        at = 0
        for part, size in zip((slots, bitmaps, flags), self.sections, strict=True):
            raw = np.ascontiguousarray(part).view(np.uint8).reshape(-1)
            out[at : at + raw.size] = raw
            at += size
        return out

    def decode(self, buffer: Bytes, dtype: Any) -> NDArray[Any]:
        """The value; what lies in slots behind the last value is not looked at."""
        size = np.dtype(dtype).itemsize
        count = self.segments * self.channels
        slots = buffer[: count * SLOT].view(dtype).reshape(count, SLOT // size)
        first = self.sections[0]
        bitmaps = buffer[first : first + 4 * count].view(np.uint32)
        there = unpacked(bitmaps)
        place = np.where(there, np.cumsum(there, -1) - 1, 0)
        values = np.where(there, np.take_along_axis(slots, place, -1), np.zeros((), dtype))
        stream = values.reshape(self.segments, self.channels, SEGMENT).transpose(0, 2, 1)
        flat = stream.reshape(-1, self.channels)[self.positions, : self.shape[-1]]
        return flat.reshape(self.shape)


def packed(bits: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Bits of the last axis, 32 of them, as a word: bit i is element i."""
    return np.packbits(bits, axis=-1, bitorder="little").view(np.uint32)[..., 0]


def unpacked(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """The inverse of `packed`."""
    return (words[..., None] >> np.arange(SEGMENT, dtype=np.uint32) & 1).astype(np.bool_)


# --- weights


HEADER = 16 * 4 + 16 * 2
"""Bytes of a record before its values: bitmaps, and where each row's values begin among them."""
LINE = 32
"""Records begin at multiples of it: so do their values, and no sector of memory is fetched for two."""


@dataclass(frozen=True)
class Weights:
    """Weights by tiles of 16 rows of one tap and 32 columns: how many rows and columns of tiles there are.

    record: [16 × u32 bitmap, bit j: column j][16 × u16 byte at which a row's values begin][values, row by row]
    """

    records: Bytes
    tiles: NDArray[np.uint32]
    """[columns of tiles, rows of tiles + `spare`, 2]: the byte where a record begins, and that plus the bytes of its values; tiles without
    any share one record."""
    warp: NDArray[np.uint32]
    """[columns of tiles, words]: a bit a row of tiles, whether it has any."""

    @staticmethod
    def of(matrix: NDArray[Any], taps: int, rows: int, spare: int) -> Weights:
        """Of B [taps · channels, columns]; `rows` of tiles are to be there, and `spare` more to read past the end."""
        values = tiled(matrix, taps)
        columns, count = values.shape[:2]
        there = values.reshape(columns, count, -1) != 0
        nnz = there.sum(-1)
        sizes = np.where(nnz > 0, -(-(HEADER + 2 * nnz) // LINE) * LINE, 0)
        ends = HEADER + np.cumsum(sizes.reshape(-1)).reshape(sizes.shape)
        begins = np.where(nnz > 0, ends - sizes, 0)
        out = np.zeros(int(ends.max(initial=HEADER)), np.uint8)
        bitmaps = packed(values != 0)
        each = (values != 0).sum(-1)
        starts = (2 * (np.cumsum(each, -1) - each)).astype(np.uint16)
        some = nnz > 0
        for part, width, at in ((bitmaps, 4, 0), (starts, 2, 64)):
            where = begins[some][:, None] + at + np.arange(16 * width)
            out[where] = np.ascontiguousarray(part[some]).view(np.uint8).reshape(-1, 16 * width)
        place = begins[..., None] + HEADER + 2 * (np.cumsum(there, -1) - 1)
        out.view(np.uint16)[place[there] // 2] = values.reshape(there.shape)[there].view(np.uint16)
        table = np.zeros((columns, rows + spare, 2), np.uint32)
        table[:, :count] = np.stack([begins, begins + 2 * nnz], -1)
        bits = np.zeros((columns, -(-(rows + spare) // 32) * 32), np.bool_)
        bits[:, :count] = some
        return Weights(out, table, packed(bits.reshape(columns, -1, 32)))


def tiled(matrix: NDArray[Any], taps: int) -> NDArray[Any]:
    """B [taps · channels, columns] cut into tiles. [columns of tiles, rows of tiles, 16, 32]"""
    channels, n = matrix.shape[0] // taps, matrix.shape[1]
    groups, columns = -(-channels // GROUP), -(-n // SEGMENT)
    full = np.zeros((taps, groups * GROUP, columns * SEGMENT), matrix.dtype)
    full[:, :channels, :n] = matrix.reshape(taps, channels, n)
    parts = full.reshape(taps * groups, GROUP, columns, SEGMENT)
    return np.ascontiguousarray(parts.transpose(2, 0, 1, 3))
