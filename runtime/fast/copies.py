"""FILL.DUP and DMA.LD in compiled code: what they fetch from global memory, and how an image becomes words of vector memory.

    status systolic.bounds(state, command)          all pixels, or lines, lie in global memory
    status checked.systolic.declared(…)             the launch declares to read them
    status checked.systolic.present(…)              something was written there
    systolic.fetched(state, command, record)        what a copy counts
    systolic.fill.2(state, command)                 stored rows
    systolic.copy(state, command)                   bytes

A word is made from w pixels at a time, eight channels of each turned over at once. What lies outside the image comes from a place with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from knapper.isa.dma import LINE
from knapper.isa.program import BASE
from knapper.isa.systolic import VECTOR

from ..faults import READS, Kind, access
from ..memory import SECTOR
from . import accesses
from .descriptors import descriptor
from .emit import I8, I32, I64, PTR, VOID, Code, Num, Struct, vector
from .layout import BYTE, COMMAND, STATE
from .moves import add_requests, touch
from .patches import BANKS, NOWHERE, TURN, larger, smaller
from .queues import FILL, fault

FETCH = ir.FunctionType(VOID, [PTR, PTR, PTR])
"""fetched(state, command, record)"""
EXECUTE = ir.FunctionType(VOID, [PTR, PTR])
"""fill(state, command)"""
SHIFT = SECTOR.bit_length() - 1


@dataclass
class Source:
    """What a command fetches."""

    code: Code
    state: Struct
    command: Struct

    def __post_init__(self) -> None:
        self.d = descriptor(self.code, self.state, self.command.cd)

    @staticmethod
    def of(code: Code) -> Source:
        """From the arguments of the function that is being written."""
        state, command = code.arguments[:2]
        return Source(code, Struct(code, STATE, state), Struct(code, COMMAND, command))

    @contextmanager
    def pieces(self) -> Iterator[tuple[Num, Num, Num]]:
        """Rows of pieces: where one begins, how far apart they are, how many; `size` is that of one."""
        code, command = self.code, self.command
        start, step, count = (code.variable(0, I64) for _ in range(3))
        filling = command.kind == FILL
        # a transfer is one line of its own
        total = code.variable(1, I64)
        with code.when(filling):
            total.x = command.m.wide() << self.d.wn_log2
        with code.each(total.x) as number:
            count.x = 0
            with code.either(filling) as (fill, copy):
                with fill:
                    self.line(number, start, step, count)
                with copy:
                    start.x, step.x = command.source, code.num(LINE, I64)
                    count.x = command.m.wide() // LINE
            with code.when(count.x != 0):
                yield start.x, step.x, count.x

    def line(self, number: Num, start: Struct, step: Struct, count: Struct) -> None:
        """The pixels of a fill's `number`-th line; none if it is outside the image."""
        code, d = self.code, self.d
        v = self.command.first.wide() + (number >> d.wn_log2)
        group, y = v // d.padded_h, v % d.padded_h - d.pad_t
        n = (group << d.wn_log2) + (number & (d.wn - 1))
        with code.when((y < d.height) & (n < d.images)):
            step.x = d.pitch * d.bytes
            start.x = d.image + (n * d.height + y) * d.width * step.x
            count.x = d.width

    @property
    def size(self) -> Num:
        """Of a piece."""
        code = self.code
        pixel = self.d.channels * self.d.bytes
        filling = (self.command.kind == FILL).value
        return code.of(code.b.select(filling, pixel.value, code.num(LINE, I64).value))

    def fault(self, kind: Kind, where: Num) -> None:
        aux = self.size.low() << 8 | access("global", 0, READS)
        fault(self.code, self.state, kind, 0, where, aux)


def emit_bounds(code: Code) -> None:
    """All pieces lie in global memory. Lines are looked at as wholes, and only a bad one piece by piece."""
    s = Source.of(code)
    with s.pieces() as (start, step, count):
        end, size = s.state.memory_end, s.size
        bad = (start < BASE) | (start > end) | (start + (count - 1) * step + size > end)
        with code.when(bad, likely=False), code.each(count) as i:
            where = start + i * step
            with code.when((where < BASE) | (where > end - size)):
                s.fault(Kind.OUTSIDE, where)
    code.give(0)


def emit_declared(code: Code) -> None:
    """The launch declares to read every byte."""
    s = Source.of(code)
    with code.when(s.state.operands != 0):
        each_byte(s, "operands", Kind.UNDECLARED, 1 << READS)
    code.give(0)


def emit_present(code: Code) -> None:
    """Every byte was written."""
    each_byte(Source.of(code), "has_memory", Kind.UNWRITTEN_MEMORY, 1)
    code.give(0)


def each_byte(s: Source, shadow: str, kind: Kind, bit: int) -> None:
    """Fault at a piece with a byte whose shadow lacks a bit."""
    code, size = s.code, s.size
    with s.pieces() as (start, step, count), code.each(count) as i, code.each(size) as byte:
        where = start + i * step
        cell = Struct(code, BYTE, code.at(s.state.pointer_to(shadow), where + byte))
        with code.when(cell.get("x") & bit == 0, likely=False):
            s.fault(kind, where)


def emit_fetched(code: Code) -> None:
    """Count requests; mark sectors as touched, and as read by the block."""
    s, requests, last = Source.of(code), code.variable(0), code.variable(NOWHERE, I64)
    record, size = code.arguments[2], s.size
    with s.pieces() as (start, step, count):
        # neighbours are one run
        whole = step == size
        runs = code.of(code.b.select(whole.value, code.num(1, I64).value, count.value))
        bytes_ = code.of(code.b.select(whole.value, (count * size).value, size.value))
        with code.each(runs) as i:
            first = start + i * step >> SHIFT
            sectors = (start + i * step + bytes_ - 1 >> SHIFT) - first + 1
            requests.x = requests.x + (sectors - (first == last.x).flag(I64)).low()
            last.x = first + sectors - 1
            with code.each(sectors) as n:
                touch(code, s.state, READS, first + n)
                with code.when(s.state.timing != 0):
                    accesses.fetch(code, s.state, first + n)
    add_requests(code, s.state, record, READS, requests.x)
    code.b.ret_void()


# --- what they do


def used(code: Code, state: Struct, end: Num) -> None:
    """Shared memory holds something up to there."""
    state.shared_used = larger(code, state.shared_used, end)


def emit_copy(code: Code) -> None:
    """DMA.LD."""
    s = Source.of(code)
    state, command = s.state, s.command
    source = code.at(state.pointer_to("memory"), command.source)
    target, size = code.at(state.pointer_to("shared"), command.first), command.m.wide()
    code.move(target, source, size)
    used(code, state, command.first.wide() + size)
    code.b.ret_void()


class Filling:
    """`fill` being written."""

    def __init__(self, code: Code, size: int) -> None:
        self.code, self.size, self.s = code, size, Source.of(code)
        self.d, self.element = self.s.d, ir.IntType(8 * size)
        # of each element of the word that is made: where its pixel is, and what offsets into it are masked with
        self.places, self.masks = code.stack(8 * VECTOR), code.stack(8 * VECTOR)

    def write(self) -> None:
        code, d, s = self.code, self.d, self.s
        shared = code.at(s.state.pointer_to("shared"), d.base)
        with code.each(s.command.m) as row:
            v = s.command.first.wide() + row.wide()
            slot = code.at(shared, v % d.ring * d.row_bytes)
            group, y = v // d.padded_h, v % d.padded_h - d.pad_t
            with code.each(d.columns) as column:
                place = code.at(slot, column * d.blocks * d.word_bytes)
                with code.each(d.t) as t:
                    self.look(group, y, (column << d.wx_log2) - d.pad_l + t * d.dilation_w)
                    with code.each(d.blocks) as block:
                        self.word(code.at(place, block * d.word_bytes), t, block)
        used(code, s.state, d.base + d.ring * d.row_bytes)
        code.b.ret_void()

    def look(self, group: Num, y: Num, x: Num) -> None:
        """Where the pixels of a word are, of which `x` is the first column. Columns left of the image wrap, and so are outside."""
        code, d, state = self.code, self.d, self.s.state
        zeros = code.of(code.b.ptrtoint(state.address("zeros"), I64))
        with code.each(code.num(VECTOR, I64)) as e:
            n, column = (group << d.wn_log2) + (e & (d.wn - 1)), x + (e >> d.wn_log2)
            inside = (y < d.height) & (column < d.width) & (n < d.images)
            pixel = ((n * d.height + y) * d.width + column) * d.pitch * d.bytes
            place = state.memory + d.image + pixel
            for table, yes, no in ((self.places, place, zeros), (self.masks, code.num(NOWHERE, I64), code.num(0, I64))):  # fmt: skip
                value = code.b.select(inside.value, yes.value, no.value)
                code.store(value, code.at(table, e * 8), 8)

    def pixel(self, e: Num | int, offset: Num) -> Any:
        """A pointer into the pixel of an element, so many bytes on; to a zero if there is none."""
        code = self.code
        place, mask = (
            code.of(code.load(code.at(t, e * 8), I64, 8)) for t in (self.places, self.masks)
        )
        return code.pointer(place + (offset & mask))

    def word(self, place: Any, t: Num, block: Num) -> None:
        """A word's banks that hold copy `t`; behind the last copy zeros."""
        code, d, size = self.code, self.d, self.size
        banks = self.s.state.array_rows.wide()
        channels = smaller(code, d.channels - block * banks, banks)
        first, bank = block * banks * size, VECTOR * size
        own = code.at(place, t * d.channels * bank)
        whole = channels // BANKS
        with code.each(whole) as part:
            self.turned(code.at(own, part * (BANKS * bank)), first + part * (BANKS * size))
        with code.each(channels % BANKS) as rest:
            channel = whole * BANKS + rest
            with code.each(code.num(VECTOR, I64)) as e:
                one = code.load(self.pixel(e, first + channel * size), self.element, size)
                code.store(one, code.at(own, (channel * VECTOR + e) * size), size)
        with code.when(t == d.t - 1):
            held = (t * d.channels + channels) * bank
            arguments = [code.at(place, held), ir.Constant(I8, 0), (d.word_bytes - held).value, ir.Constant(ir.IntType(1), 0)]  # fmt: skip
            code.intrinsic("llvm.memset", VOID, arguments, [PTR, I64])

    def turned(self, target: Any, offset: Num) -> None:
        """Eight channels of the word's pixels, bank by bank."""
        code, strip = self.code, vector(self.element, BANKS)
        rows = [code.load(self.pixel(e, offset), strip, self.size) for e in range(VECTOR)]
        while len(rows) > 1:
            n = rows[0].type.count * 2
            rows = [
                code.shuffle(a, b, range(n)) for a, b in zip(rows[::2], rows[1::2], strict=True)
            ]
        code.store(code.shuffle(rows[0], rows[0], TURN), target, self.size)


LOOKS = ir.FunctionType(I32, [PTR, PTR])
WRITERS: dict[str, tuple[Any, Callable[[Code], None]]] = {
    "bounds": (LOOKS, emit_bounds),
    "declared": (LOOKS, emit_declared),
    "present": (LOOKS, emit_present),
    "fetched": (FETCH, emit_fetched),
    "copy": (EXECUTE, emit_copy),
}
"""How to write each unit, and its type."""
