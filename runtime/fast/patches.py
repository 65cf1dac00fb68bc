"""IM2COL.PUSH in vector code: rows of the patch matrix, gathered from the words of vector memory.

    systolic.gather.f16(state, command, first, rows, target)      rows of A as fp32, as an LSMA's stream makes them

A word holds one element of w rows of A a bank, bank by bank. It is turned over once, eight banks at a time: out come w rows of A. If they are the
next ones, that is all; else a run of them is taken, again and again until the stream comes to another word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from knapper.isa.lanes import LaneType
from knapper.isa.systolic import VECTOR

from .algebra import Algebra
from .descriptors import descriptor
from .emit import FLOAT, I16, I32, I64, PTR, VOID, Code, Num, Struct, vector
from .layout import COMMAND, STATE
from .matrix import width_of, words

GATHER = ir.FunctionType(VOID, [PTR, PTR, I64, I32, PTR])
"""gather(state, command, first, rows, target): rows of A from the command's `first`-th on."""
NOWHERE = (1 << 64) - 1
"""No address."""
BANKS = 8
"""Banks that are turned over at a time."""
TURN = [bank * VECTOR + e for e in range(VECTOR) for bank in range(BANKS)]
"""A word's part, bank by bank, as rows."""


def words_of_push(code: Code, d: Struct, command: Struct) -> Num:
    """Words that a push reads: in each output line as many as its pixels touch, those of one step of the stride being neighbours or one."""
    first, end = command.first.wide(), command.first.wide() + command.m.wide()
    line_rows = d.out_w * d.wn
    total, line = code.variable(0, I64), code.variable(first // line_rows, I64)
    with code.loop(lambda: (line.x * line_rows < end) & (command.m != 0)):
        start = line.x * line_rows
        low = larger(code, first, start) - start >> d.wn_log2
        high = smaller(code, end, start + line_rows) - start - 1 >> d.wn_log2
        words = (high * d.stride_w + column(d, command) >> d.wx_log2) - (
            low * d.stride_w + column(d, command) >> d.wx_log2
        )
        total.x = total.x + smaller(code, high - low, words) + 1
        line.x = line.x + 1
    return total.x


def column(d: Struct, command: Struct) -> Num:
    """How far a tap moves along the width."""
    return (command.tap & 255).wide() * d.dilation_w


def smaller(code: Code, a: Num, b: Num) -> Num:
    """The smaller of two."""
    return code.of(code.b.select((a < b).value, a.value, b.value))


def larger(code: Code, a: Num, b: Num) -> Num:
    """The larger of two."""
    return code.of(code.b.select((a < b).value, b.value, a.value))


@dataclass
class Walk:
    """Rows of the patch matrix, one after the other: image in its word, output column, output line, where the stored row is."""

    code: Code
    state: Struct
    command: Struct

    def __post_init__(self) -> None:
        code = self.code
        self.d = descriptor(code, self.state, self.command.cd)
        self.image, self.x, self.line, self.row = (code.variable(0, I64) for _ in range(4))

    def begin(self, number: Num) -> None:
        """At a row of the patch matrix."""
        d, pixel = self.d, number >> self.d.wn_log2
        self.image.x = number & (d.wn - 1)
        self.x.x, self.line.x = pixel % d.out_w, pixel // d.out_w
        self.enter()

    def enter(self) -> None:
        """A new output line."""
        d, r = self.d, (self.command.tap >> 8 & 255).wide()
        y = self.line.x % d.out_h * d.stride_h + r * d.dilation_h
        v = self.line.x // d.out_h * d.padded_h + y
        self.row.x = d.base + v % d.ring * d.row_bytes

    def advance(self, rows: Num | int) -> None:
        """So many rows on, at most to the line's end."""
        code, d = self.code, self.d
        place = self.place + rows
        self.x.x, self.image.x = place >> d.wn_log2, place & (d.wn - 1)
        with code.when(self.x.x == d.out_w):
            self.x.x, self.line.x = code.num(0, I64), self.line.x + 1
            self.enter()

    @property
    def place(self) -> Num:
        """The row's number in its line."""
        return (self.x.x << self.d.wn_log2) + self.image.x

    def run(self, rows: Num) -> Num:
        """Rows from this one on, at most so many, that are the word's next elements."""
        code, d = self.code, self.d
        line = (d.out_w << d.wn_log2) - self.place
        run = smaller(code, smaller(code, rows, line), code.num(VECTOR, I64) - self.element)
        near = (d.wx == 1) | (d.stride_w == 1)
        return code.of(code.b.select(near.value, run.value, code.num(1, I64).value))

    @property
    def column(self) -> Num:
        """Of the stored row."""
        return self.x.x * self.d.stride_w + column(self.d, self.command)

    @property
    def word(self) -> Num:
        """The word's address in vector memory."""
        d, block = self.d, (self.command.tap >> 16).wide()
        return self.row.x + ((self.column >> d.wx_log2) * d.blocks + block) * d.word_bytes

    @property
    def element(self) -> Num:
        """Which one of the word."""
        return ((self.column & (self.d.wx - 1)) << self.d.wn_log2) + self.image.x


def emit_gather(algebra: Algebra, type: LaneType) -> None:
    """The function `gather`."""
    code = algebra.code
    state, command = (
        Struct(code, STATE, code.arguments[0]),
        Struct(code, COMMAND, code.arguments[1]),
    )
    first, rows, target = (
        code.of(code.arguments[2]),
        code.of(code.arguments[3]).wide(),
        code.arguments[4],
    )
    walk, turned = Walk(code, state, command), state.pointer_to("turned")
    size, here = (state.array_rows * 4).wide(), code.variable(NOWHERE, I64)
    walk.begin(command.first.wide() + first)
    left, place = (
        code.variable(rows, I64),
        code.variable(code.of(code.b.ptrtoint(target, I64)), I64),
    )
    with code.loop(lambda: left.x != 0):
        word, run = walk.word, walk.run(left.x)
        source = code.at(state.pointer_to("shared"), word)
        with code.either(run == VECTOR) as (whole, part):
            with whole:
                turn(algebra, type, source, code.pointer(place.x), state.array_rows)
            with part:
                with code.when(word != here.x):
                    here.x = word
                    turn(algebra, type, source, turned, state.array_rows)
                rows_of_it = code.at(turned, walk.element * size)
                code.move(code.pointer(place.x), rows_of_it, run * size)
        walk.advance(run)
        left.x, place.x = left.x - run, place.x + run * size
    code.b.ret_void()


def turn(algebra: Algebra, type: LaneType, word: Any, target: Any, banks: Num) -> None:
    """A word as rows of 32-bit words, [w, banks]."""
    code, size = algebra.code, width_of(type)
    element = I16 if size == 2 else FLOAT
    pitch = (banks * 4).wide()
    with code.each(banks // BANKS) as part:
        place = code.at(word, part.wide() * (BANKS * VECTOR * size))
        raw = code.load(place, vector(element, BANKS * VECTOR), size)
        rows = code.shuffle(raw, raw, TURN)
        out = code.at(target, part.wide() * (4 * BANKS))
        for e in range(VECTOR):
            one = code.shuffle(rows, rows, range(BANKS * e, BANKS * (e + 1)))
            code.store(words(algebra, one, type), code.at(out, pitch * e), 32)
