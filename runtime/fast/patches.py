"""IM2COL.PUSH in vector code: rows of the patch matrix, gathered from the words of vector memory.

    systolic.gather.f16(state, command, first, rows, target)      rows of A as fp32, as an LSMA's stream makes them

A word holds one element of w rows of A a bank, bank by bank. It is turned over once, eight banks at a time: out come w rows of A. If they are the
next ones, that is all; else those are taken that follow, until the stream comes to another word.
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
from .matrix import single

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
    with code.loop(lambda: line.x * line_rows < end):
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

    def step(self) -> None:
        """To the next row."""
        code, d = self.code, self.d
        self.image.x = self.image.x + 1
        with code.when(self.image.x == d.wn):
            self.image.x = 0
            self.advance(code.num(1, I64))

    def advance(self, columns: Num) -> None:
        """So many columns of the output on, at most to the line's end."""
        code = self.code
        self.x.x = self.x.x + columns
        with code.when(self.x.x == self.d.out_w):
            self.x.x, self.line.x = code.num(0, I64), self.line.x + 1
            self.enter()

    @property
    def whole(self) -> Num:
        """Whether the word's elements are the next rows, one after the other."""
        d = self.d
        neighbours = (d.wx == 1) | ((d.stride_w == 1) & (self.x.x + d.wx <= d.out_w))
        return (self.element == 0) & neighbours

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
    first, rows, target = code.of(code.arguments[2]), code.of(code.arguments[3]), code.arguments[4]
    walk, turned = Walk(code, state, command), state.pointer_to("turned")
    size, here = (state.array_rows * 4).wide(), code.variable(NOWHERE, I64)
    walk.begin(command.first.wide() + first)
    i = code.variable(0)
    with code.loop(lambda: i.x < rows):
        word, place = walk.word, code.at(target, i.x.wide() * size)
        source = code.at(state.pointer_to("shared"), word)
        whole = (rows - i.x >= VECTOR) & walk.whole
        with code.either(whole, likely=True) as (all_of_it, some):
            with all_of_it:
                turn(algebra, type, source, place, state.array_rows)
                walk.advance(walk.d.wx)
                i.x = i.x + VECTOR
            with some:
                with code.when(word != here.x):
                    here.x = word
                    turn(algebra, type, source, turned, state.array_rows)
                move_row(code, code.at(turned, walk.element * size), place, state.array_rows)
                walk.step()
                i.x = i.x + 1
    code.b.ret_void()


def turn(algebra: Algebra, type: LaneType, word: Any, target: Any, banks: Num) -> None:
    """A word as rows of fp32, [w, banks]."""
    code, size = algebra.code, type.bits // 8
    element = I16 if size == 2 else FLOAT
    pitch = (banks * 4).wide()
    with code.each(banks // BANKS) as part:
        place = code.at(word, part.wide() * (BANKS * VECTOR * size))
        raw = code.load(place, vector(element, BANKS * VECTOR), size)
        rows = code.shuffle(raw, raw, TURN)
        out = code.at(target, part.wide() * (4 * BANKS))
        for e in range(VECTOR):
            one = code.shuffle(rows, rows, range(BANKS * e, BANKS * (e + 1)))
            wide = single(algebra, one, type) if size == 2 else one
            code.store(wide, code.at(out, pitch * e), 32)


def move_row(code: Code, source: Any, target: Any, banks: Num) -> None:
    """A row of fp32."""
    with code.each(banks // BANKS) as part:
        place = part.wide() * (4 * BANKS)
        strip = code.load(code.at(source, place), vector(FLOAT, BANKS), 32)
        code.store(strip, code.at(target, place), 32)
