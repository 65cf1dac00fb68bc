"""Bitmap-encoded activations and weights in numpy: what the kernels read and write, byte by byte.

    an image, pad 1, seen as one stream of positions:            records of 32 positions × 32 channels:

    lead        zeros, one row and one position                  0     32 × u32   bitmaps, bit i: position i
    row 0       x x x … x 0                                      128   16 × u16   the byte at which an even channel's values begin
    row 1       x x x … x 0                                      160   values of channel 0, of channel 1, …, without a gap
    …           0 0 0 … 0 0   pad rows between the images
                                                                 entries, u32 a record: where it begins, in 32 bytes, << 8
                                                                                        | 16s of bytes that its values fill

A row has `pad` zeros behind it, a plane `pad` rows, so a tap of a convolution is a shift of the stream: what lies left of a row is
the zeros behind the one before. Weights have the same records, of 32 columns × 32 rows of one tap, so that one loader serves both sides.
Whoever has an entry knows which bytes are used, and no others are ever touched: of a record without values not even the header.

Activations are written by kernels, into a slot for the worst case; weights lie packed. An odd channel's values begin where those of the
channel before end, a bit count further: all 32 starts would be another 32 bytes, an eighth of a record with 95 % zeros, and none would
cost a sum over lanes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoding import CHANNELS as CHANNELS
from ..encoding import HEADER as HEADER
from ..encoding import SEGMENT as SEGMENT
from ..encoding import SLOT as SLOT
from ..encoding import bitmap_sections

STARTS = 4 * CHANNELS
"""The byte of a record where it says where values begin."""
LINE = 32
"""Records begin at multiples of it: so do their values, and no sector of memory is fetched for two."""
CHUNK = 16
"""Bytes of values that an entry counts, and that a lane loads at once."""
LINES = 1 << 24
"""What an entry can say: 512 MiB."""
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Where the elements of a value of `shape`, channels last, lie: of a matrix, or an image with `pad`.

    >>> x = Layout((1, 2, 3, 5), 1)
    >>> x.lead, x.pitch, x.channels, x.segments
    (5, 4, 32, 2)
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
        return self.groups * CHANNELS

    @property
    def groups(self) -> int:
        """Records of a segment."""
        return -(-self.shape[-1] // CHANNELS)

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
    def sections(self) -> tuple[int, int]:
        """Bytes of records and of entries."""
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

    def tiles(self, x: NDArray[Any]) -> NDArray[Any]:
        """What the records hold. [segments · groups, channel, position]"""
        parts = self.stream(x).reshape(self.segments, SEGMENT, self.groups, CHANNELS)
        return np.ascontiguousarray(parts.transpose(0, 2, 3, 1)).reshape(-1, CHANNELS, SEGMENT)

    def encode(self, x: NDArray[Any]) -> Bytes:
        """The buffer; bytes that no kernel reads are 0."""
        tiles = self.tiles(x)
        begins = SLOT * np.arange(len(tiles))
        out = np.zeros(self.bytes, np.uint8)
        entries = write(out, begins, tiles)
        at = self.sections[0]
        out[at : at + entries.nbytes] = entries.view(np.uint8)
        return out

    def decode(self, buffer: Bytes, dtype: Any) -> NDArray[Any]:
        """The value; of each record as much is looked at as its entry says."""
        at, count = self.sections[0], self.segments * self.groups
        tiles = read(buffer, buffer[at : at + 4 * count].view(np.uint32), dtype)
        parts = tiles.reshape(self.segments, self.groups, CHANNELS, SEGMENT)
        stream = parts.transpose(0, 3, 1, 2).reshape(-1, self.channels)
        return stream[self.positions, : self.shape[-1]].reshape(self.shape)


def packed(bits: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Bits of the last axis, 32 of them, as a word: bit i is element i."""
    return np.packbits(bits, axis=-1, bitorder="little").view(np.uint32)[..., 0]


def unpacked(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """The inverse of `packed`."""
    return (words[..., None] >> np.arange(SEGMENT, dtype=np.uint32) & 1).astype(np.bool_)


def write(out: Bytes, begins: NDArray[np.int64], tiles: NDArray[Any]) -> NDArray[np.uint32]:
    """Put tiles [count, channel, position] where their records begin, those with values; gives the entries. A -0 is zero."""
    there = tiles != 0
    flat = there.reshape(len(tiles), -1)
    count = flat.sum(-1)
    each = there.sum(-1)
    starts = 2 * (np.cumsum(each, -1) - each)[:, ::2].astype(np.uint16)
    some = count > 0
    for part, at in ((packed(there), 0), (starts, STARTS)):
        raw = np.ascontiguousarray(part[some]).view(np.uint8).reshape(-1, part[0].nbytes)
        out[begins[some][:, None] + at + np.arange(raw.shape[1])] = raw
    place = begins[:, None] + HEADER + 2 * (np.cumsum(flat, -1) - 1)
    out.view(np.uint16)[place[flat] // 2] = tiles.reshape(flat.shape)[flat].view(np.uint16)
    return np.asarray(begins // LINE << 8 | -(-2 * count // CHUNK), np.uint32)


def read(buffer: Bytes, entries: NDArray[np.uint32], dtype: Any) -> NDArray[Any]:
    """The tiles of records. [count, channel, position]"""
    begins = (entries.astype(np.int64) >> 8) * LINE
    words = np.where(
        (entries & 0xFF)[:, None, None] > 0,
        buffer[begins[:, None, None] + np.arange(STARTS).reshape(CHANNELS, 4)],
        np.uint8(0),
    )
    there = unpacked(np.ascontiguousarray(words).view(np.uint32)[..., 0])
    flat = there.reshape(len(entries), -1)
    place = begins[:, None] + HEADER + 2 * (np.cumsum(flat, -1) - 1)
    out = np.zeros(flat.shape, dtype)
    out[flat] = buffer[: len(buffer) // 2 * 2].view(np.dtype(dtype))[place[flat] // 2]
    return out.reshape(there.shape)


# --- weights


@dataclass(frozen=True)
class Weights:
    """Weights by tiles of 32 rows of one tap and 32 columns, packed.

    A column of tiles has `rows` entries a tap, so that steps of several rows need not divide what a tap has.
    """

    records: Bytes
    entries: NDArray[np.uint32]
    """[columns of tiles, taps · rows]"""

    @staticmethod
    def of(matrix: NDArray[Any], taps: int, rows: int) -> Weights:
        """Of B [taps · channels, columns]."""
        tiles = tiled(matrix, taps)
        columns, count = tiles.shape[:2]
        flat = tiles.reshape(columns * count, CHANNELS, SEGMENT)
        nnz = (flat != 0).sum((-1, -2))
        sizes = np.where(nnz > 0, -(-(HEADER + 2 * nnz) // LINE) * LINE, 0)
        ends = np.cumsum(sizes)
        # a lane loads 16 bytes: as many lie behind the last value
        out = np.zeros(max(int(ends[-1]), LINE), np.uint8)
        entries = write(out, np.where(nnz > 0, ends - sizes, 0), flat)
        table = np.zeros((columns, taps, rows), np.uint32)
        table[..., : count // taps] = entries.reshape(columns, taps, -1)
        return Weights(out, table.reshape(columns, -1))


def tiled(matrix: NDArray[Any], taps: int) -> NDArray[Any]:
    """B [taps · channels, columns] cut into tiles. [columns of tiles, rows of tiles, 32 rows, 32 columns]"""
    channels, n = matrix.shape[0] // taps, matrix.shape[1]
    groups, columns = -(-channels // CHANNELS), -(-n // SEGMENT)
    full = np.zeros((taps, groups * CHANNELS, columns * SEGMENT), matrix.dtype)
    full[:, :channels, :n] = matrix.reshape(taps, channels, n)
    parts = full.reshape(taps * groups, CHANNELS, columns, SEGMENT)
    return np.ascontiguousarray(parts.transpose(2, 0, 1, 3))
