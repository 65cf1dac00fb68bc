"""Vector memory in the reference engine: descriptors of convolutions, what fills and transfers write, what pushes read.

A command touches vector memory in pieces: whole words (a port access brings all banks' elements), and 16 bytes at a time where it is plain
memory. Races, claims and what was written are looked at piece by piece, in the order in which the command comes to them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa import gather
from knapper.isa.dma import LINE
from knapper.isa.program import BASE
from knapper.isa.systolic import Array
from knapper.isa.vector_memory import DESCRIPTORS, MOST, RULES, Broken, ConvDesc

from .counters import requests
from .faults import READS, WRITES, Kind, Trap, access
from .memory import SECTOR

if TYPE_CHECKING:
    from .reference import RefWarp

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Runs of `size` bytes of shared memory, from `starts` on."""

    starts: Places
    size: int

    @property
    def index(self) -> Places:
        """The address of every byte, [pieces, bytes]."""
        every: Places = self.starts[:, None] + np.arange(self.size)
        return every


NOTHING = Pieces(np.zeros(0, np.int64), 0)


@dataclass(frozen=True)
class Tile:
    """A tile's descriptor: how many rows it keeps, and where in shared memory the list of them begins."""

    kept: int
    at: int

    @staticmethod
    def of(words: list[int], limit: int) -> Tile:
        """From its registers."""
        kept, at = words[gather.WORDS["k_len"]], words[gather.WORDS["at"]]
        for rule, broken in enumerate(gather.contradictions(kept, at, limit)):
            if broken:
                raise Trap(Kind.BAD_DESCRIPTOR, value=len(RULES) + rule)
        return Tile(kept, at)


@dataclass
class Descriptor:
    """One of a block's, and who has to do with it."""

    conv: ConvDesc | Tile | None = None
    pending: int = 0
    """Commands that use it."""
    changers: set[int] = field(default_factory=set)
    users: set[int] = field(default_factory=set)
    """Warps that changed and used it since the last barrier."""


class Descriptors:
    """The descriptors of a block: those of convolutions, then those of tiles."""

    def __init__(self, array: Array, limit: int) -> None:
        self.array, self.limit = array, limit
        self.all = [Descriptor() for _ in range(2 * DESCRIPTORS)]

    def meet(self) -> None:
        """A barrier."""
        for d in self.all:
            d.changers, d.users = set(), set()

    def change(self, number: int, words: list[int], warp: int) -> None:
        """CONVDESC by a warp."""
        d = self.changing(number, warp)
        conv = ConvDesc.from_words(words, self.array.rows, self.array.word)
        if broken := conv.check(self.limit):
            raise Trap(Kind.BAD_DESCRIPTOR, value=RULES.index(broken))
        d.conv = conv
        d.changers.add(warp)

    def change_tile(self, number: int, words: list[int], warp: int) -> None:
        """TWDESC by a warp."""
        d = self.changing(DESCRIPTORS + number % DESCRIPTORS, warp)
        d.conv = Tile.of(words, self.limit)
        d.changers.add(warp)

    def changing(self, number: int, warp: int) -> Descriptor:
        """A descriptor that may change."""
        d = self.all[number]
        if d.pending:
            raise Trap(Kind.ASYNC_DESCRIPTOR, value=number)
        self.clash(number, (d.changers | d.users) - {warp})
        return d

    def use(self, number: int, warp: int) -> ConvDesc | Tile:
        """A command by a warp names it."""
        d = self.all[number]
        self.clash(number, d.changers - {warp})
        if d.conv is None:
            raise Trap(Kind.NO_DESCRIPTOR, value=number)
        d.users.add(warp)
        return d.conv

    @staticmethod
    def clash(number: int, others: set[int]) -> None:
        if others:
            raise Trap(Kind.DESCRIPTOR_RACE, value=number, aux=min(others))


def refuse(bad: bool, rule: Broken, operand: int) -> None:
    """A command's operands break a rule."""
    if bad:
        raise Trap(Kind.BAD_COMMAND, value=rule, aux=operand)


# --- FILL.DUP


@dataclass(frozen=True)
class Fill:
    """Stored rows `first` … `first + rows - 1`."""

    conv: ConvDesc
    first: int
    rows: int

    def check(self) -> None:
        most = min(self.conv.layout.stored - self.first, self.conv.ring)
        refuse(self.rows > most, Broken.FILL, self.first)

    @property
    def pieces(self) -> Pieces:
        """The words that it writes."""
        d, x = self.conv, self.conv.layout
        slots = (self.first + np.arange(self.rows)) % d.ring
        words = np.arange(x.columns * x.blocks)
        starts = d.base + slots[:, None] * x.row_bytes + words * x.word_bytes
        return Pieces(starts.ravel(), x.word_bytes)

    @property
    def writes(self) -> int:
        """Accesses of the port: each copy has banks of its own, and is written by itself."""
        accesses: int = self.conv.t * len(self.pieces.starts) * self.conv.bytes // 2
        return accesses

    def lines(self) -> list[tuple[int, int, int, int]]:
        """Lines of the image that it fetches: (row of the fill, image within its group, image, line)."""
        d, x = self.conv, self.conv.layout
        found = []
        for row in range(self.rows):
            group, y = divmod(self.first + row, x.padded_h)
            if 0 <= y - d.pad_t < d.height:
                images = range(group * x.wn, min(d.images, (group + 1) * x.wn))
                found += [(row, n % x.wn, n, y - d.pad_t) for n in images]
        return found

    @property
    def pixels(self) -> Places:
        """Addresses of the pixels that it fetches, [lines · width]."""
        d = self.conv
        lines = np.array([n * d.height + y for _, _, n, y in self.lines()], np.int64)
        pixels = lines[:, None] * d.width + np.arange(d.width)
        addresses: Places = (d.image + pixels * (d.pitch * d.bytes)).ravel()
        return addresses

    def stored(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the pieces become, [pieces, bytes], from the pixels, [pixels, bytes]."""
        d, x = self.conv, self.conv.layout
        out = np.zeros((self.rows, x.columns, x.blocks, d.banks, d.word, d.bytes), np.uint8)
        lines = pixels.reshape(-1, d.width, d.channels, d.bytes)
        for (row, image, _, _), line in zip(self.lines(), lines, strict=True):
            for column in range(x.columns * x.wx):
                word, e = column // x.wx, column % x.wx * x.wn + image
                for t in range(d.t):
                    if 0 <= (pixel := column - d.pad_l + t * d.dilation_w) < d.width:
                        banks = out[row, word].reshape(-1, d.word, d.bytes)
                        banks[t * d.channels :][: d.channels, e] = line[pixel]
        return out.reshape(-1, x.word_bytes)


# --- IM2COL.PUSH


@dataclass(frozen=True)
class Push:
    """Rows `first` … `first + rows - 1` of the patch matrix at a tap."""

    conv: ConvDesc
    tap: int
    first: int
    rows: int

    @property
    def parts(self) -> tuple[int, int, int]:
        """(channels' word, tap along the height, along the width)."""
        return self.tap >> 16, self.tap >> 8 & 255, self.tap & 255

    @property
    def steps(self) -> int:
        """Of a row: what A has columns."""
        block, _, s = self.parts
        return self.conv.steps(block, s)

    def check(self, bytes_: int) -> None:
        d, (block, r, s) = self.conv, self.parts
        refuse(bytes_ != d.bytes, Broken.TYPE, bytes_)
        refuse(block >= d.layout.blocks or r >= d.r or s >= d.s, Broken.TAP, self.tap)
        most = min(d.layout.rows - self.first, MOST)
        refuse(self.rows > most, Broken.PUSH, self.first)

    def places(self) -> tuple[Places, Places]:
        """For each row the address of its word, and the number of the output line it belongs to."""
        d, x, (block, r, s) = self.conv, self.conv.layout, self.parts
        pixel = (self.first + np.arange(self.rows)) // x.wn
        line, ow = pixel // d.out_w, pixel % d.out_w
        v = line // d.out_h * x.padded_h + line % d.out_h * d.stride_h + r * d.dilation_h
        column = (ow * d.stride_w + s * d.dilation_w) // x.wx
        index = (v % d.ring * x.columns + column) * x.blocks + block
        return d.base + index * x.word_bytes, line

    @property
    def pieces(self) -> Pieces:
        """The words that it reads: a word is kept until the next one is needed, and asked for again in the next output line."""
        words, line = self.places()
        fresh = np.ones(len(words), np.bool_)
        fresh[1:] = (np.diff(words) != 0) | (np.diff(line) != 0)
        return Pieces(words[fresh], self.conv.layout.word_bytes)

    @property
    def elements(self) -> Places:
        """The address of every element of A, [rows, steps]."""
        lanes = np.arange(self.steps) * self.conv.word * self.conv.bytes
        every: Places = self.lane(0)[:, None] + lanes
        return every

    def lane(self, bank: int) -> Places:
        """The address of a bank's element in each row."""
        d, x, (_, _, s) = self.conv, self.conv.layout, self.parts
        patch = self.first + np.arange(self.rows)
        column = patch // x.wn % d.out_w * d.stride_w + s * d.dilation_w
        e = column % x.wx * x.wn + patch % x.wn
        every: Places = self.places()[0] + (bank * d.word + e) * d.bytes
        return every


# --- GATHK.PUSH


@dataclass(frozen=True)
class Gathered:
    """Rows `first` … `first + rows - 1` of the patch matrix, of which K-rows `kept` are taken; `listed` is where the list tells them."""

    conv: ConvDesc
    listed: Pieces
    kept: tuple[int, ...]
    first: int
    rows: int

    @property
    def columns(self) -> list[tuple[int, int]]:
        """Of each kept row the tap that has its word, and the bank."""
        d = self.conv
        found = []
        for row in self.kept:
            pixel, c = divmod(row, d.channels)
            r, q = divmod(pixel, d.s)
            t = q % d.t
            tap = (c // d.banks) << 16 | r << 8 | q - t
            found.append((tap, (t * d.channels + c) % d.banks))
        return found

    @property
    def runs(self) -> list[tuple[Push, list[int]]]:
        """Rows one after the other whose words are those of one tap, and their banks."""
        pairs = itertools.groupby(self.columns, lambda pair: pair[0])
        return [
            (Push(self.conv, tap, self.first, self.rows), [bank for _, bank in some])
            for tap, some in pairs
        ]

    @property
    def steps(self) -> int:
        """Of a row: what A has columns."""
        return len(self.kept)

    @property
    def pieces(self) -> list[Pieces]:
        """What it reads."""
        return [self.listed, *(push.pieces for push, _ in self.runs)]

    @property
    def accesses(self) -> int:
        """Words of the bank that is asked for most."""
        asked = np.zeros(self.conv.banks, np.int64)
        for push, banks in self.runs:
            np.add.at(asked, banks, len(push.pieces.starts))
        return int(asked.max())

    @property
    def elements(self) -> Places:
        """The address of every element of A, [rows, steps]."""
        every = np.zeros((self.rows, self.steps), np.int64)
        for j, (tap, bank) in enumerate(self.columns):
            every[:, j] = Push(self.conv, tap, self.first, self.rows).lane(bank)
        return every


# --- global memory as the DMA engine fetches it


class Fetch:
    """Pieces of global memory that a DMA command reads: each of `size` bytes, one after the other in its order."""

    def __init__(self, warp: RefWarp, starts: Places, size: int) -> None:
        self.warp, self.starts, self.size = warp, starts, size
        self.aux = access("global", size, READS)

    def check(self) -> None:
        """Bounds, and whether the launch declares to read them."""
        context = self.warp.context
        end = BASE + len(context.memory.data)
        self.refuse((self.starts < BASE) | (self.starts > end - self.size), Kind.OUTSIDE)
        if context.allowed is not None:
            self.refuse(~context.allowed[READS][self.index].all(axis=1), Kind.UNDECLARED)

    @property
    def index(self) -> Places:
        every: Places = (self.starts - BASE)[:, None] + np.arange(self.size)
        return every

    def refuse(self, bad: Any, kind: Kind) -> None:
        if bad.any():
            raise Trap(kind, value=int(self.starts[bad][0]), aux=self.aux)

    def count(self) -> None:
        """As loads are counted; neighbours in one sector share a request."""
        context, block = self.warp.context, self.warp.block
        last = (self.starts - BASE + self.size - 1) // SECTOR
        runs = [
            np.arange(a, b + 1) for a, b in zip((self.starts - BASE) // SECTOR, last, strict=True)
        ]
        sectors = np.concatenate(runs) if runs else np.zeros(0, np.int64)
        context.touched[READS][sectors] = True
        sent, counts = requests(sectors), context.counts[self.warp.pc]
        counts["l2_read"] += sent * SECTOR
        if context.timing:
            counts["sectors"] += sent
            block.sectors.update(sectors.tolist())

    def read(self) -> NDArray[np.uint8]:
        """[pieces, bytes]"""
        memory = self.warp.context.memory
        self.refuse(~memory.written[self.index].all(axis=1), Kind.UNWRITTEN_MEMORY)
        data: NDArray[np.uint8] = memory.data[self.index]
        return data


def aligned(target: int, source: int, size: int) -> None:
    """Trap if a transfer is not made of whole lines."""
    refuse(size % LINE != 0, Broken.SIZE, size)
    for space, address, use in (("shared", target, WRITES), ("global", source, READS)):
        if address % LINE:
            raise Trap(Kind.MISALIGNED, value=address, aux=access(space, LINE, use))


def lines(start: int, size: int) -> Places:
    """The addresses of the lines of a transfer."""
    return start + np.arange(0, size, LINE, dtype=np.int64)
