"""Where the pixels of a convolution's tile lie in shared memory, sorted by phases of the stride.

Taps that differ by a multiple of the stride read the same pixels, others read none in common. So pixels of one residue lie together, and
those that neighbouring outputs read under one tap are neighbours, whatever the stride:

    stride 2, 3 taps    image    0 1 2 3 4 5 6 7 8        tap 0, 2:  0 2 4 6 8      a tap moves by one place within its phase,
                                                          tap 1:     1 3 5 7        or to another phase

A place holds 16 channels of a pixel, 32 bytes; 16 places in a row are a fragment, and channels follow plane by plane. Rows of fragments run
over the tile as it lies in a phase: line by line of 16 · n outputs, or straight on over the places between two lines (`Patch.width`), what
comes of those being stored nowhere. Of the two the one with fewer fragments is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from ....ir import Array
from ..access import FAR
from ..product import Window

PLACE = 32
"""Bytes of a place."""


@dataclass(frozen=True)
class Phases:
    """One axis of a patch: `size` outputs, and the pixels that their taps read, counted from the first.

    Taps `period` apart read the same phase, `shift` places on.
    """

    size: int
    taps: int
    stride: int
    dilation: int

    @property
    def period(self) -> int:
        return self.stride // math.gcd(self.stride, self.dilation)

    @property
    def shift(self) -> int:
        return self.dilation // math.gcd(self.stride, self.dilation)

    @property
    def count(self) -> int:
        """Phases that are read."""
        return min(self.period, self.taps)

    @property
    def extent(self) -> int:
        """Places of a phase."""
        return self.size + (self.taps - 1) // self.period * self.shift

    def place(self, tap: int) -> tuple[int, int]:
        """The phase that a tap reads, and where in it the first output's pixel lies."""
        return tap % self.period, tap // self.period * self.shift

    def pixels(self) -> Array:
        """i64[count, extent]: the pixel at each place, -1 where no tap reads one."""
        found = np.full((self.count, self.extent), -1, np.int64)
        for tap in range(self.taps):
            phase, first = self.place(tap)
            outputs = np.arange(self.size)
            found[phase, first + outputs] = tap * self.dilation + outputs * self.stride
        return found


@dataclass(frozen=True)
class Patch:
    """A block's patch of the image in shared memory: `rows` and `cols` of th × tw outputs, `channels` of a group."""

    window: Window
    rows: Phases
    cols: Phases
    channels: int

    @staticmethod
    @cache
    def of(window: Window, channels: int, pixels: tuple[int, int]) -> Patch:
        """The patch under th × tw output pixels."""
        w, (th, tw) = window, pixels
        return Patch(w, Phases(th, w.kh, w.sy, w.dy), Phases(tw, w.kw, w.sx, w.dx), channels)

    @property
    def tiles(self) -> tuple[int, int]:
        """Blocks down and across an image."""
        return -(-self.window.oh // self.rows.size), -(-self.window.ow // self.cols.size)

    @property
    def pitch(self) -> int:
        """Places from a line of a phase to the next."""
        return self.cols.extent

    @cached_property
    def width(self) -> int:
        """Rows of the block's product from a line of outputs to the next: a multiple of 16, or `pitch`."""
        whole = -(-self.cols.size // 16) * 16
        return whole if self.rows.size * whole <= 16 * self._fragments(self.pitch) else self.pitch

    def _fragments(self, width: int) -> int:
        return -(-((self.rows.size - 1) * width + self.cols.size) // 16)

    @cached_property
    def fragments(self) -> int:
        """That hold all outputs."""
        return self._fragments(self.width)

    def fragment(self, f: int) -> int:
        """The place of a fragment's first row under the first tap."""
        line, across = divmod(16 * f, self.width)
        return line * self.pitch + across

    @property
    def across(self) -> int:
        """Places from a phase of the columns to the next."""
        return self.rows.extent * self.pitch

    @property
    def down(self) -> int:
        """Places from a phase of the rows to the next."""
        return self.cols.count * self.across

    def tap(self, r: int, q: int) -> int:
        """How many places a tap lies behind the first."""
        (py, y), (px, x) = self.rows.place(r), self.cols.place(q)
        return py * self.down + px * self.across + y * self.pitch + x

    def places(self, fragments: int) -> int:
        """Of a plane that is read as so many fragments under every tap."""
        return self._last + self.fragment(fragments - 1) + 16

    @cached_property
    def _last(self) -> int:
        """Where the tap that lies last does."""
        w = self.window
        return max(self.tap(r, q) for r in range(w.kh) for q in range(w.kw))

    def pixels(self) -> Array:
        """i64[rows.count, cols.count, rows.extent, cols.extent, 2]: (y, x) at each place, -1 where no tap reads a pixel."""
        y, x = self.rows.pixels()[:, None, :, None], self.cols.pixels()[None, :, None, :]
        both = np.stack(np.broadcast_arrays(y, x), -1)
        return np.where((both < 0).any(-1, keepdims=True), -1, both)

    @cached_property
    def distinct(self) -> int:
        """Pixels that are fetched, if all lie in the image."""
        down, across = (int((axis.pixels() >= 0).sum()) for axis in (self.rows, self.cols))
        return down * across

    def table(self, count: int, pitch: int) -> Array:
        """i32[count, 2]: for each place the byte offset of its pixel from the patch's first, pixels `pitch` bytes apart, and the pixel
        packed for the conv unit; far outside of any image where there is none."""
        y, x = self.pixels().reshape(-1, 2).T
        entries = np.stack([(y * self.window.w + x) * pitch, y << 16 | x], -1)
        entries[y < 0] = 0, FAR - (1 << 32)
        table = np.tile(np.array([0, FAR - (1 << 32)]), (count, 1))
        table[: len(entries)] = entries[:count]
        return table.astype(np.int32)
