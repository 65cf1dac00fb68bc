"""Vector memory: convolution from an image that is stored once, channel first, in words that hold neighbours; no im2col anywhere.

On a machine with `vector_word` (8) a block's shared memory is vector memory: as many banks as the array has rows (P), each with words of
w = 8 elements, one word address for all banks. So one port access brings P channels of w neighbouring pixels, and the array is fed with
them one pixel a cycle: the port is needed once in w cycles, or once in w / stride.

      image in global memory [N, H, W, C]             vector memory: one word, address (v, x / wx, cb)
                                                        bank   0      1     …    P − 1
      ┌──────────┐    FILL.DUP, with the halo         ┌──────┬──────┬─────┬──────┐
      │ H × W    │ ───────────────────────────►       │ c 0  │ c 1  │  …  │ c P−1│   e = (x mod wx) · wn + n mod wn
      └──────────┘    of zeros around it              │ 0…w−1│ 0…w−1│     │ 0…w−1│   wx neighbours of wn images
                                                      └──┬───┴──┬───┴─────┴──┬───┘
      IM2COL.PUSH: rows m0 … of the                      ▼      ▼            ▼
      patch matrix, one tap, cb                         row 0 … P − 1 of the array

**A descriptor** says what convolution it is: CONVDESC reads it from 12 uniform registers into one of the block's four.

| register | bits | field |
|---|---|---|
| 0, 1 | | address of the image in global memory |
| 2 | | base: byte address of slot 0 in vector memory |
| 3 | 15:0, 31:16 | H, W |
| 4 | 15:0, 31:16 | C, N |
| 5 | 7:0, 15:8, 23:16, 31:24 | padding: top, left, bottom, right |
| 6 | 7:0, 15:8, 23:16, 31:24 | stride of H, of W; dilation of H, of W |
| 7 | 7:0, 15:8, 23:16, 27:24, 31:28 | R, S, T, log2 of wn, log2 of wx |
| 8 | 15:0, 31:16 | output: height, width |
| 9 | | ring: stored rows that vector memory holds |
| 10 | | elements from pixel to pixel |
| 11 | | bytes of an element, 2 or 4 |

w = wn · wx; images go in groups of wn; Hp × Wp is the image with its padding. Stored row v = g · Hp + y (image group g, padded line y) lies in
slot v mod ring, so a ring of fewer rows than there are holds a window that moves. A stored row is ⌈Wp / wx⌉ · ⌈C / P⌉ words of P · w elements.

**Few channels.** With T > 1 (T · C ≤ P) the banks hold T copies of the channels, copy t shifted by t taps to the left: one pass does T taps of a
line, which is what fills an array of 128 rows with 3 channels. The image is fetched once, and written T times.

**A pass.** Row M = m0 + i of the patch matrix is an output pixel: image n mod wn runs fastest, then the output's x, its y, and the image group.
The tap (cb, r, q) moves it: v = g · Hp + y · sH + r · dH, x = x · sW + q · dW; element k of the row is bank k's. Passes in the order r, q, cb are
one chain of fused multiply-adds in the order (r, q, c): the numbers of every other convolution here, bit for bit.

Steps are those of the filter and no others: k = 0 … min(T, S - q) · min(P, C - cb · P) - 1. In banks that hold no channel, and in copies whose
tap q + t lies behind the line of S, the array's rows hand the sum on as it is, whatever bank and weight hold: 0 · Inf would make a NaN of it,
and 0 · 0 turn -0 into +0.

**Asynchrony.** FILL.DUP and IM2COL.PUSH join the warp's queue like systolic commands. What a pending FILL.DUP (or DMA.LD) will write is claimed:
nobody may read, write or claim it. Words that a pending push reads may not be written, nor claimed for that. A descriptor that a pending command
uses may not change, and warps that share one need a barrier after the CONVDESC. All of these are AsyncHazards or races in a checked run.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import Any

from .errors import IsaError
from .lanes import U32
from .modifiers import Element, Pair, Start
from .operands import READ, Extent, Src, Unsigned, UReg, bits
from .systolic import ACCUMULATORS, SOME, VECTORS, Command

DESCRIPTORS = 4
"""Descriptors of a block."""
REGISTERS = 12
"""Uniform registers that one is read from."""
PITCH = 1 << 20
"""Elements from pixel to pixel, at most."""
PIXELS = 1 << 40
"""Pixels of all images, at most."""
ADDRESSES = 1 << 41
"""Where an image can begin; device memory ends before."""
ALIGN = 16
"""The ring begins at a multiple of it."""
MOST = 65535
"""Rows that one push streams, at most."""

FIELDS: dict[str, tuple[int, int, int]] = {
    "base": (2, 0, 32),
    "height": (3, 0, 16), "width": (3, 16, 16),
    "channels": (4, 0, 16), "images": (4, 16, 16),
    "pad_t": (5, 0, 8), "pad_l": (5, 8, 8), "pad_b": (5, 16, 8), "pad_r": (5, 24, 8),
    "stride_h": (6, 0, 8), "stride_w": (6, 8, 8), "dilation_h": (6, 16, 8), "dilation_w": (6, 24, 8),
    "r": (7, 0, 8), "s": (7, 8, 8), "t": (7, 16, 8), "wn_log2": (7, 24, 4), "wx_log2": (7, 28, 4),
    "out_h": (8, 0, 16), "out_w": (8, 16, 16),
    "ring": (9, 0, 32),
    "pitch": (10, 0, 32),
    "bytes": (11, 0, 32),
}  # fmt: skip
"""Where a field lies: register, lowest bit, bits. Registers 0 and 1 are the image's address, low half first."""


@dataclass(frozen=True)
class Given:
    """The fields of a descriptor. Numbers may be Python's, or those of an engine that compiles: only operators are used on them."""

    image: Any
    """Address of the image in global memory: [images, height, width, pitch], of which `channels` are read."""
    base: Any
    """Byte address of slot 0 in vector memory."""
    height: Any
    width: Any
    channels: Any
    images: Any
    pad_t: Any
    pad_l: Any
    pad_b: Any
    pad_r: Any
    stride_h: Any
    stride_w: Any
    dilation_h: Any
    dilation_w: Any
    r: Any
    """Taps along the height."""
    s: Any
    """Taps along the width."""
    t: Any
    """Taps that lie side by side in the banks."""
    wn_log2: Any
    wx_log2: Any
    out_h: Any
    out_w: Any
    ring: Any
    """Stored rows that vector memory holds."""
    pitch: Any
    """Elements from pixel to pixel."""
    bytes: Any
    """Of an element."""


def given(words: Sequence[Any]) -> Given:
    """A descriptor's fields from its registers, as numbers of at least 64 bits."""
    parts = {
        name: words[word] >> low & (1 << width) - 1 for name, (word, low, width) in FIELDS.items()
    }
    return Given(image=words[0] | words[1] << 32, **parts)


@dataclass(frozen=True)
class Layout:
    """What follows from a descriptor on a machine: the sizes of its layout. Likewise numbers of either kind."""

    wn: Any
    """Images in a word."""
    wx: Any
    """Neighbours in a word."""
    groups: Any
    """Groups of images."""
    padded_h: Any
    padded_w: Any
    columns: Any
    """Words along a stored row: WX."""
    blocks: Any
    """Words for the channels of a pixel: CB."""
    word_bytes: Any
    """Of a word, all banks."""
    row_bytes: Any
    """Of a stored row."""
    stored: Any
    """Stored rows in all; a ring of as many holds the image whole."""
    rows: Any
    """Of the patch matrix, images that fill up the last group included."""

    @staticmethod
    def of(d: Given, one: Any, banks: Any, word: int) -> Layout:
        """`one`: the number 1 of the kind wanted; `banks`: rows of the array; `word`: elements of a word."""
        wn, wx = one << d.wn_log2, one << d.wx_log2
        groups = d.images + wn - 1 >> d.wn_log2
        padded_h, padded_w = d.height + d.pad_t + d.pad_b, d.width + d.pad_l + d.pad_r
        columns, blocks = padded_w + wx - 1 >> d.wx_log2, (d.channels + banks - 1) // banks
        size = banks * d.bytes * word
        return Layout(
            wn, wx, groups, padded_h, padded_w, columns, blocks, size, columns * blocks * size, groups * padded_h,
            groups * d.out_h * d.out_w * wn,
        )  # fmt: skip


def contradictions(d: Given, x: Layout, banks: Any, word: int, limit: Any) -> Iterator[Any]:
    """Whether a descriptor breaks each of RULES, in their order; a later one counts on the ones before. `limit`: bytes of shared memory."""
    yield (d.bytes != 2) & (d.bytes != 4)
    sizes = (d.height, d.width, d.channels, d.images, d.out_h, d.out_w, d.r, d.s, d.t, d.ring)
    steps = (d.stride_h, d.stride_w, d.dilation_h, d.dilation_w)
    yield reduce(or_, (n == 0 for n in (*sizes, *steps)))
    yield x.wn * x.wx != word
    yield (d.t > d.s) | ((d.t > 1) & (d.t * d.channels > banks))
    yield (
        ((d.out_h - 1) * d.stride_h + (d.r - 1) * d.dilation_h >= x.padded_h)
        | ((d.out_w - 1) * d.stride_w + (d.s - 1) * d.dilation_w >= x.padded_w)
    )  # fmt: skip
    yield (d.pitch < d.channels) | (d.pitch > PITCH)
    yield (
        ((d.image & (d.bytes - 1)) != 0)
        | (d.image > ADDRESSES)
        | (d.images * d.height * d.width > PIXELS)
    )
    yield x.row_bytes > limit
    yield ((d.base & (ALIGN - 1)) != 0) | (d.ring > limit) | (d.base + d.ring * x.row_bytes > limit)


RULES = (
    "an element has 2 or 4 bytes",
    "sizes, strides and dilations are at least 1",
    "wn · wx is the number of elements in a word",
    "T is at most S, and T copies of the channels fit the banks",
    "the windows lie in the padded image",
    f"the pitch is at least the channels, and at most {PITCH}",
    "the image begins at a multiple of its element, and lies in the address space",
    "a stored row fits shared memory",
    f"the ring begins at a multiple of {ALIGN} and fits shared memory",
)
"""What a descriptor keeps; a fault tells the first that it breaks."""


@dataclass(frozen=True)
class ConvDesc(Given):
    """A descriptor in Python's numbers, on a machine with `banks` rows in its array and words of `word` elements.

    >>> d = ConvDesc.of(image=0x10000000, base=0, height=56, width=56, channels=64, images=8, pad=(1, 1, 1, 1), r=3, s=3)
    >>> d.layout.wn, d.layout.wx, d.layout.row_bytes, d.layout.stored, d.layout.rows
    (8, 1, 118784, 58, 25088)
    """

    banks: int = 128
    word: int = 8

    @staticmethod
    def of(
        *,
        image: int,
        base: int,
        height: int,
        width: int,
        channels: int,
        images: int,
        r: int = 1,
        s: int = 1,
        t: int = 1,
        pad: tuple[int, int, int, int] = (0, 0, 0, 0),
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        wn: int | None = None,
        ring: int | None = None,
        pitch: int | None = None,
        bytes: int = 2,
        banks: int = 128,
        word: int = 8,
    ) -> ConvDesc:
        """A convolution with all its outputs. `pad`: top, left, bottom, right. None: images in a word as many as fit, all rows, no gap."""
        wn_log2 = (wn or min(images, word)).bit_length() - 1
        tall, wide = height + pad[0] + pad[2], width + pad[1] + pad[3]
        out_h = (tall - (r - 1) * dilation[0] - 1) // stride[0] + 1
        out_w = (wide - (s - 1) * dilation[1] - 1) // stride[1] + 1
        stored = -(-images >> wn_log2) * tall
        return ConvDesc(
            image, base, height, width, channels, images, *pad, *stride, *dilation, r, s, t,
            wn_log2, word.bit_length() - 1 - wn_log2, out_h, out_w, ring or stored, pitch or channels, bytes, banks, word,
        )  # fmt: skip

    @staticmethod
    def from_words(words: Sequence[int], banks: int = 128, word: int = 8) -> ConvDesc:
        """From 12 registers."""
        parts = given([int(w) for w in words])
        return ConvDesc(**vars(parts), banks=banks, word=word)

    def words(self) -> list[int]:
        """The 12 registers; IsaError E502 for a field that does not fit its bits."""
        words = [self.image & 0xFFFFFFFF, self.image >> 32, *[0] * (REGISTERS - 2)]
        for name, (word, low, width) in FIELDS.items():
            value = getattr(self, name)
            if not 0 <= value < 1 << width:
                raise IsaError("E502", f"a descriptor's {name} is {value}, which {width} bits do not hold")  # fmt: skip
            words[word] |= value << low
        return words

    @cached_property
    def layout(self) -> Layout:
        """The sizes that follow."""
        return Layout.of(self, 1, self.banks, self.word)

    def check(self, limit: int = 1 << 32) -> str:
        """The rule that it breaks, or "". `limit`: bytes of shared memory."""
        broken = contradictions(self, self.layout, self.banks, self.word, limit)
        return next((RULES[i] for i, bad in enumerate(broken) if bad), "")

    def steps(self, cb: int, q: int) -> int:
        """Multiply-accumulates of a pass to an element of C: one a bank that holds a channel at a tap of the filter."""
        found: int = min(self.t, self.s - q) * min(self.banks, self.channels - cb * self.banks)
        return found

    @property
    def ring_bytes(self) -> int:
        """Bytes of vector memory from `base` on."""
        size: int = self.ring * self.layout.row_bytes
        return size

    def word_offset(self, v: int, xs: int, cb: int) -> int:
        """The byte address of the word that holds column `xs` of stored row `v`, channels from cb · banks on."""
        x = self.layout
        index = (v % self.ring * x.columns + xs // x.wx) * x.blocks + cb
        where: int = self.base + index * x.word_bytes
        return where

    def element_offset(self, v: int, xs: int, cb: int, lane: int, n: int = 0) -> int:
        """The byte address of one element, of image `n`."""
        x = self.layout
        e = xs % x.wx * x.wn + n % x.wn
        where: int = self.word_offset(v, xs, cb) + (lane * self.word + e) * self.bytes
        return where


class Broken(enum.IntEnum):
    """What a command's operands break; a fault tells the number, the message is in COMMANDS."""

    FILL = 0
    PUSH = 1
    TAP = 2
    TYPE = 3
    SIZE = 4
    KEPT = 5
    ENTRY = 6


COMMANDS = {
    Broken.FILL: "a fill begins and ends among the stored rows, and has at most a ring of them",
    Broken.PUSH: f"a push begins and ends in the patch matrix, and has at most {MOST} rows",
    Broken.TAP: "a tap lies in the filter, and its channels in the image",
    Broken.TYPE: "a push has elements as large as the descriptor's",
    Broken.SIZE: "a transfer is a multiple of 16 bytes",
    Broken.KEPT: "a gathered push names one of four tiles and begins within its list",
    Broken.ENTRY: "a kept row is a row of B",
}


# --- instructions ------------------------------------------------------------------------------------------------------------


class Vector(Command):
    """A command that works on vector memory."""

    def needs(self) -> tuple[str, ...]:
        return (VECTORS,)


class CONVDESC(Vector, opcode=0x128, unit="control", extension="systolic"):
    """Descriptor cd of the block = the 12 uniform registers from u on. It takes effect at once; what contradicts itself is a fault."""

    cd: Unsigned = bits(15, 14)
    u: UReg = bits(63, 58, use=READ, words=REGISTERS)

    syntax = "{cd}, {u}"

    def execute(self, m: Any) -> None:
        words = [int(m.uniform(UReg(self.u + k), U32)[0]) for k in range(REGISTERS)]
        m.describe(int(self.cd), words)


class IM2COL_PUSH(Vector, opcode=0x129, name="IM2COL.PUSH", unit="systolic", extension="systolic"):
    """C[m, n] (+)= A[m, steps] · W[steps, n] as LSMA does, A being m rows of the patch matrix from row m0 on, at one tap.

    C is in accumulator memory from word c on. A row of A is one element of each bank of a word. `tap` is cb << 16 | r << 8 | q. c and tap are
    uniform registers or immediates.
    """

    type: Element = bits(15, 14)
    start: Start = bits(16)
    c: Src = bits(97, 64, use=READ)
    units: Extent = bits(20, 18, only=SOME)
    cd: Unsigned = bits(22, 21)
    tap: Src = bits(56, 23, use=READ)
    m0: UReg = bits(103, 98, use=READ)
    m: UReg = bits(109, 104, use=READ)

    def needs(self) -> tuple[str, ...]:
        return VECTORS, ACCUMULATORS

    def refusal(self) -> str:
        for name in ("c", "tap"):
            if getattr(self, name).kind == Src.REG:
                return f"{name} is no register, but {getattr(self, name)}"
        return super().refusal()

    def execute(self, m: Any) -> None:
        c, tap, m0, rows = (
            int(m.uniform(source, U32)[0]) for source in (self.c, self.tap, self.m0, self.m)
        )
        m.push(self, c, tap, m0, rows)


class IM2COL_IPUSH(IM2COL_PUSH, opcode=0x12C, name="IM2COL.IPUSH", extension="systolic"):
    """C[m, n] (+)= A[m, 2 · steps] · W[2 · steps, n] in S32 as ILSMA does it, A as IM2COL.PUSH has it: an element is two channels of bytes.

    To descriptors and fills an image of bytes is one of half the channels, of elements of 2 bytes.
    """

    type: Pair = bits(15, 14)  # type: ignore[assignment]  # another kind of elements
