"""How a product lies in vector memory, and how a kernel walks over it: the numbers behind `channel_first`.

A convolution is what it is. A MatMul is a convolution by one tap: each row of A is an image of one pixel, so eight rows share a word and
any number of them can be a strip. More rows than a descriptor has images are the pixels of eight large ones.

    job     (block of array columns, strip of output pixels of one image group): its sums fill at most half the accumulators
    pass    one tap (or T taps side by side) of up to P channels: a tile of weights, P × columns
    tick    a job's passes, or `chunk` of them if weights come in pieces: what is fetched while the array does the tick before

    order     jobs                        image                       weights
    image     columns outside, strips in  resident, fetched once      two blocks of columns, fetched once; or two chunks, fetched a strip
    weights   strips outside, columns in  ring of rows, fetched once  resident, fetched once
    neither   strips outside, columns in  ring of rows, fetched once  two chunks, fetched a strip

Images with one output pixel each are one section, whose pixels they are; else each group of images is a section.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from math import gcd, prod
from typing import Any

import numpy as np

from knapper.isa.machine import Machine
from knapper.isa.systolic import LANES, QUEUE, WORD
from knapper.isa.vector_memory import ALIGN, FIELDS, ConvDesc

from ....ir import DTYPES, Array
from ...generator import Options
from ..accumulating import column_of
from ..product import Product

ORDERS = ("image", "weights", "neither")
WORDS = ("batch", "width")
"""Neighbours that share a word: images, or pixels of a line."""
ROLES = 2
"""Warps before those of the epilogue: array and DMA."""
PIECE = 32
"""Registers of sums that a warp takes at once, if a pixel does not need more."""
IMAGES = 0xFFFF
"""Images of a descriptor, at most."""
WIDTH = 512
"""Pixels of a line where the rows of a matrix are cut into lines, at most: about a strip."""
COMMANDS = 3
"""Commands of a pass: load weights, swap, push."""
CHUNK = (QUEUE // 2 - 1) // COMMANDS
"""Passes of a tick, at most: two ticks are pending, and a group is committed whole."""
EVEN = 0.75
"""Of a tick's passes, those that a job's last one must have."""
PASSES = 4
"""Numbers of passes along a line that are thought of, from the fewest on."""
UNROLLED = 200
"""Passes of a job whose code is written out: VGG-16's first product has 196. A loop takes a warp some sixty cycles a pass."""


@dataclass(frozen=True)
class Walk:
    """The numbers that a plan chooses: the options by their names.

    `strip` is output pixels, `ring` stored rows, `chunk` passes a tick, `multi_tile` taps that share a pass, `word` whose neighbours share a word.
    """

    order: str
    strip: int
    ring: int
    chunk: int
    multi_tile: int
    word: str
    warps: int

    @classmethod
    def of(cls, options: Options) -> Walk:
        """What a plan's options say."""
        own: dict[str, Any] = {f.name: options[f.name] for f in fields(cls)}
        return cls(**own)


def taps_side_by_side(p: Product, machine: Machine) -> int:
    """T: the taps of a line that fit the array's rows together."""
    s = p.window.kw if p.window else 1
    return max(1, min(machine.array_rows // p.channels, s))


def images_in_word(images: int, word: str, machine: Machine) -> int:
    """wn: the largest power of two that there are images for; 1 if a word holds neighbours along the width."""
    most = min(images, machine.vector_word) if word == "batch" else 1
    return 1 << most.bit_length() - 1


def rows_as_images(m: int, machine: Machine) -> tuple[int, int, int]:
    """A's rows as images, lines, pixels: images of a pixel, or if they are too many a word's worth of large ones."""
    if m <= IMAGES:
        return m, 1, 1
    images = gcd(m, machine.vector_word)
    pixels = m // images
    width = max(n for n in range(1, min(WIDTH, pixels) + 1) if pixels % n == 0)
    return images, pixels // width, width


def descriptor(p: Product, machine: Machine, t: int, word: str, ring: int = 1) -> ConvDesc:
    """The convolution as the ISA sees it, with its image at address 0 and its ring at byte 0."""
    size = np.dtype(DTYPES[p.dtype]).itemsize
    w = p.window
    images, height, width = (w.images, w.h, w.w) if w else rows_as_images(p.m, machine)
    common: dict[str, Any] = {
        "image": 0, "base": 0, "channels": p.channels, "images": images, "t": t, "pitch": p.a_pitch, "ring": ring,
        "wn": images_in_word(images, word, machine), "bytes": size, "banks": machine.array_rows, "word": machine.vector_word,
    }  # fmt: skip
    if w is None:
        return ConvDesc.of(height=height, width=width, **common)
    below = (w.oh - 1) * w.sy + (w.kh - 1) * w.dy + 1 - w.h - w.py
    right = (w.ow - 1) * w.sx + (w.kw - 1) * w.dx + 1 - w.w - w.px
    return ConvDesc.of(
        height=height, width=width, r=w.kh, s=w.kw, pad=(w.py, w.px, max(below, 0), max(right, 0)),
        stride=(w.sy, w.sx), dilation=(w.dy, w.dx), **common,
    )  # fmt: skip


def unaddressable(d: ConvDesc) -> str | None:
    """Why a descriptor cannot say this convolution, or None."""
    for name, (_, _, width) in FIELDS.items():
        if getattr(d, name) >= 1 << width:
            return f"{name} is {getattr(d, name)}, which {width} bits of a descriptor do not hold"
    return d.check() or None


@dataclass(frozen=True)
class Tiles:
    """A product on a machine, walked in one way."""

    p: Product
    walk: Walk
    machine: Machine

    # --- the array

    @cached_property
    def descriptor(self) -> ConvDesc:
        return descriptor(self.p, self.machine, self.taps, self.walk.word, self.walk.ring)

    @property
    def taps(self) -> int:
        return self.walk.multi_tile

    @property
    def rows(self) -> int:
        """Of the array."""
        return self.machine.array_rows

    @cached_property
    def columns(self) -> int:
        """Of the array, for elements of this type."""
        return column_of(self.p, self.machine)

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return int(self.descriptor.bytes)

    @property
    def wn(self) -> int:
        return int(self.descriptor.layout.wn)

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        return -(-self.p.n // self.columns)

    @cached_property
    def pass_shape(self) -> tuple[int, int, int]:
        """Passes of a job: taps down, steps of T taps along, blocks of channels."""
        d = self.descriptor
        return int(d.r), -(-int(d.s) // self.taps), int(d.layout.blocks)

    @property
    def passes(self) -> int:
        return prod(self.pass_shape)

    @property
    def chunk(self) -> int:
        """Passes of a tick, of a job's last one maybe fewer."""
        return min(self.walk.chunk, self.passes)

    @property
    def chunks(self) -> int:
        """Ticks of a job."""
        return -(-self.passes // self.walk.chunk)

    @property
    def unrolled(self) -> bool:
        """Whether the code of a job's passes is written out."""
        return self.passes <= UNROLLED

    def tap(self, n: int) -> int:
        """The tap of a job's n-th pass: cb << 16 | r << 8 | q."""
        _, along, blocks = self.pass_shape
        rest, cb = divmod(n, blocks)
        r, step = divmod(rest, along)
        return cb << 16 | r << 8 | step * self.taps

    # --- output pixels

    @cached_property
    def single(self) -> bool:
        """Whether images have one output pixel each."""
        return int(self.descriptor.out_h * self.descriptor.out_w) == 1

    @property
    def sections(self) -> int:
        return 1 if self.single else int(self.descriptor.layout.groups)

    @property
    def line(self) -> int:
        """Pixels of a line of a section."""
        return 1 if self.single else int(self.descriptor.out_w)

    @property
    def lines(self) -> int:
        """Of a section."""
        return int(self.descriptor.layout.groups if self.single else self.descriptor.out_h)

    @property
    def pixels(self) -> int:
        """Of a section."""
        return self.lines * self.line

    @property
    def strips(self) -> int:
        """Of a section."""
        return -(-self.pixels // self.walk.strip)

    @property
    def steps(self) -> tuple[int, int, int]:
        """Rows of the result from one section to the next, from a pixel to the next, from an image to the next."""
        if self.single:
            return 0, self.wn, 1
        return self.wn * self.pixels, 1, self.pixels

    @property
    def jobs(self) -> int:
        return self.blocks * self.sections * self.strips

    @property
    def ticks(self) -> int:
        return self.jobs * self.chunks

    # --- stored rows

    @property
    def down(self) -> int:
        """Stored rows from a line to the next."""
        d = self.descriptor
        return int(d.layout.padded_h if self.single else d.stride_h)

    @property
    def span(self) -> int:
        """Stored rows under a line."""
        d = self.descriptor
        return int((d.r - 1) * d.dilation_h + 1)

    def under(self, section: int, strip: int) -> tuple[int, int]:
        """First stored row that a strip reads, and the one behind its last."""
        first = strip * self.walk.strip
        last = min(first + self.walk.strip, self.pixels) - 1
        begin = section * int(self.descriptor.layout.padded_h)
        return (
            begin + first // self.line * self.down,
            begin + last // self.line * self.down + self.span,
        )

    @cached_property
    def stored(self) -> int:
        """Stored rows up to the last one that is read."""
        return self.under(self.sections - 1, self.strips - 1)[1]

    @cached_property
    def held(self) -> int:
        """Stored rows that are there together: of all strips, or of two in a row."""
        if self.walk.order == "image":
            return self.stored
        edges = [self.under(g, s) for g in range(self.sections) for s in range(self.strips)]
        pairs = zip(edges, [*edges[1:], edges[-1]], strict=True)
        return max(after - first for (first, _), (_, after) in pairs)

    # --- vector memory

    @property
    def tile_bytes(self) -> int:
        """Of a pass's weights."""
        return self.rows * self.columns * self.size

    @property
    def kept(self) -> str:
        """What weights stay for: `all`, a `block` of columns, or one tick (`chunk`)."""
        if self.walk.order == "weights" or self.blocks * self.chunks == 1:
            return "all"
        return "block" if self.walk.order == "image" and self.chunks == 1 else "chunk"

    @property
    def weight_bytes(self) -> int:
        """Of vector memory."""
        if self.kept == "all":
            return self.blocks * self.passes * self.tile_bytes
        changes = self.blocks > 1 or self.chunks > 1
        return (2 if changes else 1) * self.chunk * self.tile_bytes

    @property
    def weights_at(self) -> int:
        """Where weights begin in vector memory."""
        return -(-self.descriptor.ring_bytes // ALIGN) * ALIGN

    @property
    def shared_bytes(self) -> int:
        return self.weights_at + self.weight_bytes

    # --- accumulators

    @property
    def half(self) -> int:
        """Words of the accumulators that a job may have."""
        return self.machine.accumulator_bytes // WORD // 2

    def fits(self) -> bool:
        """Whether sums fit the accumulators, rows and weights vector memory."""
        return (
            self.walk.strip * self.wn * self.columns <= self.half
            and self.walk.ring >= min(self.held, self.stored)
            and self.shared_bytes <= self.machine.shared_bytes_per_block
        )

    # --- the epilogue

    @property
    def workers(self) -> int:
        """Warps of the epilogue."""
        return self.walk.warps - ROLES

    @property
    def least(self) -> int:
        """Pixels whose sums fill whole registers, if there are as many."""
        return max(1, LANES // (self.columns * self.wn))

    @property
    def piece(self) -> int:
        """Pixels that a warp takes at once."""
        return max(self.least, PIECE * LANES // (self.columns * self.wn))

    # --- beside the kernel

    def packed(self, weights: Array) -> Array:
        """B as [z, block, pass, row of the array, column], filled up with zeros; passes in the order tap row, tap step, block of channels."""
        p, (r, steps, blocks) = self.p, self.pass_shape
        if p.window is not None:
            parts = weights.reshape(p.k, p.batch, p.n).transpose(1, 0, 2)
        else:
            parts = (weights.reshape(p.n, p.k).T if p.trans_b else weights.reshape(p.k, p.n))[None]
        s, c = int(self.descriptor.s), p.channels
        padded = np.zeros(
            (p.batch, r, steps * self.taps, c, self.blocks * self.columns), DTYPES[p.dtype]
        )
        padded[:, :, :s, :, : p.n] = parts.reshape(p.batch, r, s, c, p.n)
        side_by_side = padded.reshape(p.batch, r, steps, self.taps * c, self.blocks, self.columns)
        rows = np.zeros(
            (p.batch, r, steps, blocks * self.rows, self.blocks, self.columns), padded.dtype
        )
        rows[:, :, :, : self.taps * c] = side_by_side
        cut = rows.reshape(p.batch, r, steps, blocks, self.rows, self.blocks, self.columns)
        return cut.transpose(0, 5, 1, 2, 3, 4, 6).copy()


# --- what may pay


def walks(p: Product, machine: Machine, warps: int) -> Iterator[Walk]:
    """Ways that fit: all for the fewest taps side by side that do with as many passes, of other numbers, and of words along the width,
    one an order. Few copies of an image may be better than many: each is written by itself."""
    most = taps_side_by_side(p, machine)
    s = p.window.kw if p.window else 1
    useful = {-(-s // n) for n in range(-(-s // most), -(-s // most) + PASSES)}
    for word in WORDS if p.window else WORDS[:1]:
        for t in range(most, 0, -1):
            usual = (t in useful or t == most) and word == WORDS[0]
            for order in ORDERS:
                found = _ways(p, machine, order, t, word, warps)
                if usual:
                    yield from found
                elif (first := next(found, None)) is not None:
                    yield first


def _ways(
    p: Product, machine: Machine, order: str, t: int, word: str, warps: int
) -> Iterator[Walk]:
    """Long strips first, large chunks first."""
    any_ = Tiles(p, Walk(order, 1, 1, 1, t, word, warps), machine)
    for strip in _strips(any_):
        for chunk in _chunks(any_.passes):
            walk = Walk(order, strip, 1, chunk, t, word, warps)
            walk = Walk(order, strip, Tiles(p, walk, machine).held, chunk, t, word, warps)
            tiles = Tiles(p, walk, machine)
            if tiles.fits() and (order != "neither" or tiles.kept == "chunk"):
                yield walk


def _strips(t: Tiles) -> list[int]:
    """Pixels of a strip: whole lines, dealt evenly, or parts of one where a line's sums are too many."""
    most = t.half // (t.wn * t.columns)
    if not most:
        return []
    if most < t.line:
        parts = -(-t.line // most)
        return [-(-t.line // parts)]
    lines = min(most // t.line, t.lines)
    cuts = (-(-t.lines // lines) * n for n in (1, 2, 4, 8))
    return list(dict.fromkeys(t.line * -(-t.lines // n) for n in cuts))


def _chunks(passes: int) -> list[int]:
    """Passes of a tick, dealt evenly: what is fetched beside a job's last tick must find time in it."""
    first = -(-passes // CHUNK)
    cuts = [-(-passes // n) for n in (first, 2 * first, 4 * first, 8 * first)]
    even = [c for c in cuts[1:] if (passes - 1) % c + 1 >= EVEN * c]
    return list(dict.fromkeys([cuts[0], *even]))
