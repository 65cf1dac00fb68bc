"""GATHK.PUSH in compiled code: what a list tells, and the rows of A that it takes from vector memory.

    systolic.listed(state, command)                   each kept row: where its word and bank are, seen from a row of the patch matrix
    systolic.kept.2(state, command, first, rows)      rows of A, as many elements as the list has, one after the other

Eight images in a word are eight rows of A: eight kept rows of them are turned over at a time, as `patches.py` does. Else element by element.
`runtime/vector_memory.py` is the specification, and reads better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from knapper.isa.gather import ENTRY
from knapper.isa.systolic import VECTOR

from .descriptors import descriptor
from .emit import I16, I32, I64, PTR, VOID, Code, Num, Struct, vector
from .layout import COMMAND, KEPT, STATE
from .patches import BANKS, TURN, Walk
from .queues import CHUNK, GATHERED

LISTED = ir.FunctionType(VOID, [PTR, PTR])
ROWS = ir.FunctionType(VOID, [PTR, PTR, I64, I32])
PLACE = np.dtype([("row", "u8"), ("x", "u8")])
"""A row of A: the address of its image's element in the stored row under tap row 0, and the column there."""


def kept(code: Code, state: Struct, command: Struct, j: Num) -> Num:
    """The j-th kept row of a push."""
    place = code.at(state.pointer_to("shared"), command.source + j.wide() * ENTRY.itemsize)
    entry = code.of(code.load(place, I16, ENTRY.itemsize))
    return entry.wide() + command.pitch.wide() + j.wide()


def column(code: Code, state: Struct, d: Struct, row: Num) -> tuple[Num, Num]:
    """The tap that has a K-row's word, and its bank."""
    pixel, c = row // d.channels, row % d.channels
    r, q = pixel // d.s, pixel % d.s
    t, banks = q % d.t, state.array_rows.wide()
    tap = (c // banks) << 16 | r << 8 | (q - t)
    return tap.low(), (t * d.channels + c) % banks


def run(code: Code, state: Struct, command: Struct, begin: Num) -> Num:
    """Make a push's tap that of a kept row; where rows begin that have another."""
    d = descriptor(code, state, command.cd)
    tap, _ = column(code, state, d, kept(code, state, command, begin))
    command.tap = tap
    j, goes_on = code.variable(begin), code.variable(1)
    with code.loop(lambda: goes_on.x != 0):
        j.x, goes_on.x = j.x + 1, 0
        with code.when(j.x < command.steps):
            other, _ = column(code, state, d, kept(code, state, command, j.x))
            goes_on.x = (other == command.tap).flag()
    return j.x


def emit_part(code: Code, state: Struct, command: Struct, piece: Callable[[Num], None]) -> None:
    """The list's pieces, or the tap of rows one after the other; and what comes after."""
    with code.either(command.part == 0) as (listed, rows):
        with listed:
            state.piece_bytes = ENTRY.itemsize
            with code.each(command.steps) as j:
                piece(command.source.low() + j * ENTRY.itemsize)
            command.after = ((command.kind == GATHERED) & (command.steps != 0)).flag()
        with rows:
            j = run(code, state, command, command.part - 1)
            command.after = code.of(
                code.b.select((j < command.steps).value, (j + 1).value, code.num(0).value)
            )


def emit_listed(code: Code) -> None:
    """The function `listed`."""
    state, command = (
        Struct(code, STATE, code.arguments[0]),
        Struct(code, COMMAND, code.arguments[1]),
    )
    d = descriptor(code, state, command.cd)
    with code.each(command.steps) as j:
        tap, bank = column(code, state, d, kept(code, state, command, j))
        entry = entry_of(code, state, j)
        r, q, block = (tap >> 8 & 255).wide(), (tap & 255).wide(), (tap >> 16).wide()
        entry.down = r * d.dilation_h % d.ring * d.row_bytes
        entry.along = q * d.dilation_w
        entry.offset = block * d.word_bytes + bank * d.bytes * VECTOR
    code.b.ret_void()


def entry_of(code: Code, state: Struct, j: Num) -> Struct:
    """What `listed` found of a kept row."""
    return Struct(code, KEPT, code.at(state.pointer_to("kept"), j.wide() * KEPT.itemsize))


class Rows:
    """The function `kept` being written."""

    def __init__(self, code: Code, size: int) -> None:
        self.code, self.size = code, size
        self.state = Struct(code, STATE, code.arguments[0])
        self.command = Struct(code, COMMAND, code.arguments[1])
        self.first, self.rows = code.of(code.arguments[2]), code.of(code.arguments[3])
        self.d = descriptor(code, self.state, self.command.cd)
        self.places = code.stack(CHUNK * PLACE.itemsize)
        self.pitch = (self.state.array_rows * size).wide()
        self.element = I16 if size == 2 else I32

    def write(self) -> None:
        code, d = self.code, self.d
        self.find()
        whole = (
            (d.wn == VECTOR)
            & ((self.command.first.wide() + self.first) % VECTOR == 0)
            & (self.rows % VECTOR == 0)
        )
        with code.either(whole) as (turned, single):
            with turned, code.each((self.command.steps + (BANKS - 1)) // BANKS) as j:
                self.turn(j)
            with single, code.each(self.command.steps) as j:
                self.one(j)
        code.b.ret_void()

    def find(self) -> None:
        """Where rows of A are."""
        code, d = self.code, self.d
        self.command.tap = 0
        walk = Walk(code, self.state, self.command)
        walk.begin(self.command.first.wide() + self.first)
        with code.each(self.rows) as i:
            place = self.place(i)
            place.row = walk.row.x + walk.image.x * self.size
            place.x = walk.x.x * d.stride_w
            walk.advance(1)

    def place(self, i: Num) -> Struct:
        return Struct(self.code, PLACE, self.code.at(self.places, i.wide() * PLACE.itemsize))

    def word(self, place: Struct, entry: Struct) -> tuple[Num, Num]:
        """The address of a row's element of a bank in the word's first column, and that column's number in the stored row."""
        code, d = self.code, self.d
        ring = d.ring * d.row_bytes
        down, x = place.row + entry.down, place.x + entry.along
        behind = (down >= d.base + ring).value
        wrapped = code.of(code.b.select(behind, (down - ring).value, down.value))
        across = (x >> d.wx_log2) * d.blocks * d.word_bytes
        return wrapped + across + entry.offset, x

    def one(self, j: Num) -> None:
        """An element of every row."""
        code, d = self.code, self.d
        entry = entry_of(code, self.state, j)
        target = code.at(self.state.pointer_to("gathered"), j.wide() * self.size)
        shared = self.state.pointer_to("shared")
        with code.each(self.rows) as i:
            at, x = self.word(self.place(i), entry)
            at = at + ((x & (d.wx - 1)) << d.wn_log2) * self.size
            value = code.load(code.at(shared, at), self.element, self.size)
            code.store(value, code.at(target, i.wide() * self.pitch), self.size)

    def turn(self, part: Num) -> None:
        """Eight elements of all rows; those behind the list's end are its last one's, and nobody's."""
        code, last = self.code, self.command.steps - 1
        entries = []
        for n in range(BANKS):
            j = part * BANKS + n
            inside = code.of(code.b.select((j < last).value, j.value, last.value))
            entries.append(entry_of(code, self.state, inside))
        shared = self.state.pointer_to("shared")
        target = code.at(self.state.pointer_to("gathered"), part.wide() * (BANKS * self.size))
        with code.each(self.rows // VECTOR) as block:
            place = self.place(block * VECTOR)
            parts: list[Any] = [
                code.load(code.at(shared, self.word(place, e)[0]), vector(self.element, VECTOR), self.size)
                for e in entries
            ]  # fmt: skip
            while len(parts) > 1:
                width = VECTOR * BANKS // len(parts)
                parts = [
                    code.shuffle(a, b, range(2 * width))
                    for a, b in zip(parts[::2], parts[1::2], strict=True)
                ]
            rows = code.shuffle(parts[0], parts[0], TURN)
            for e in range(VECTOR):
                one = code.shuffle(rows, rows, range(BANKS * e, BANKS * (e + 1)))
                row = code.at(target, (block * VECTOR + e).wide() * self.pitch)
                code.store(one, row, self.size)


def emit_rows(code: Code, size: int) -> None:
    """The function `kept`, for elements of so many bytes."""
    Rows(code, size).write()
