"""What the checked engine looks after: whether a command's operands were written, by whom, and what pending commands claim.

Every byte of shared memory has shadows: who wrote it, who read it, whether it was written, how many pending commands claim it
(`claimed_shared`, `claimed_filled`); accumulators and registers have claims. `Queue` of `runtime/systolic.py` is the specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from knapper.isa.dma import LINE
from knapper.isa.lanes import LANES
from knapper.isa.modifiers import Space
from knapper.isa.systolic import WORD

from ..decode import ROW, SPARE
from ..faults import READS, USE, WRITES, Kind, access, race
from . import kept
from .descriptors import descriptor
from .emit import I1, I32, I64, PTR, VOID, Code, Num, Require, Struct
from .layout import BYTE, COMMAND, STATE
from .layout import WORD as CELL
from .patches import NOWHERE, Walk
from .queues import (
    COPY,
    FILL,
    GATHERED,
    LDB,
    LIST,
    PATCHES,
    PRODUCTS,
    SWAP,
    columns_of,
    fault,
    rows_of,
    touch_page,
)

LOOK = ir.FunctionType(I32, [PTR, PTR])
"""status(state, command)"""
CLAIM = ir.FunctionType(VOID, [PTR, PTR, I32])
"""claim(state, command, 1 or -1)"""


def emit_pieces(code: Code) -> None:
    """Where the pieces of shared memory begin that a command reads or writes, in its order; gives their number.

    They are as `Queue.reads` and `Queue.writes` have them: rows of an LSMA or LDB, words of a push or fill, lines of a transfer.
    """
    state, command = (
        Struct(code, STATE, code.arguments[0]),
        Struct(code, COMMAND, code.arguments[1]),
    )
    kind, total = command.kind, code.variable(0)

    def piece(start: Num) -> None:
        place = code.at(state.pointer_to("pieces"), total.x.wide() * 4)
        code.store(start.value, place, 4)
        total.x = total.x + 1

    with code.when((kind == LDB) | (kind == PRODUCTS)):
        rows, size = rows_of(code, state, command)
        state.piece_bytes = size
        with code.each(rows) as r:
            piece(command.first + r * command.pitch)
    with code.when((kind == GATHERED) | (kind == LIST)):
        kept.emit_part(code, state, command, piece)
    with code.when((kind == PATCHES) | ((kind == GATHERED) & (command.part != 0))):
        walk = Walk(code, state, command)
        word, line = code.variable(NOWHERE, I64), code.variable(NOWHERE, I64)
        state.piece_bytes = walk.d.word_bytes.low()
        walk.begin(command.first.wide())
        with code.each(command.m):
            here = walk.word
            with code.when((here != word.x) | (walk.line.x != line.x)):
                word.x, line.x = here, walk.line.x
                piece(here.low())
            walk.advance(1)
    with code.when(kind == FILL):
        d = descriptor(code, state, command.cd)
        state.piece_bytes = d.word_bytes.low()
        with code.each(command.m) as row:
            slot = d.base + (command.first.wide() + row.wide()) % d.ring * d.row_bytes
            with code.each(d.columns * d.blocks) as word_:
                piece((slot + word_ * d.word_bytes).low())
    with code.when(kind == COPY):
        state.piece_bytes = LINE
        with code.each(command.m // LINE) as n:
            piece(command.first + n * LINE)
    code.give(total.x)


@contextmanager
def bytes_of(
    code: Code, state: Struct, command: Struct, require: Require
) -> Iterator[tuple[Num, Num, Num]]:
    """For every byte of a command's pieces: its address, its piece's, and the bytes of a piece."""
    name = "checked.systolic.pieces"
    require(name)
    command.part, more = 0, code.variable(1)
    with code.loop(lambda: more.x != 0):
        count = code.of(code.call(name, LOOK, state.pointer, command.pointer))
        size = state.piece_bytes
        with code.each(count) as n:
            start = code.of(code.load(code.at(state.pointer_to("pieces"), n.wide() * 4), I32, 4))
            with code.each(size) as x:
                yield start + x, start, size
        command.part = more.x = command.after


def emit_claim(code: Code, require: Require) -> None:
    """What a command reads and writes is claimed once more, or once less."""
    state, command = (
        Struct(code, STATE, code.arguments[0]),
        Struct(code, COMMAND, code.arguments[1]),
    )
    by, kind = code.of(code.arguments[2]), command.kind

    def add(shadow: Any, index: Num) -> None:
        cell = Struct(code, CELL, code.at(shadow, index.wide() * 4))
        cell.x = cell.get("x") + by

    writes = ((kind == FILL) | (kind == COPY)).value
    shadow = code.b.select(writes, state.claimed_filled.value, state.claimed_shared.value)
    with code.when(kind != SWAP), bytes_of(code, state, command, require) as (byte, _, _):
        add(code.pointer(code.of(shadow)), byte)
    product = (kind == PRODUCTS) | (kind == PATCHES) | (kind == GATHERED)
    with code.when(product):
        words = command.m * columns_of(state, command)
        with code.when(command.space == int(Space.ACC)), code.each(words * WORD) as byte:
            add(state.pointer_to("claimed_sum"), command.c * WORD + byte)
        real = command.c.wide() < state.reg_bytes - 2 * SPARE * ROW  # RZ is nobody's
        with code.when((command.space == int(Space.REG)) & real):
            mine = code.at(
                state.pointer_to("claimed_reg"), state.get("warp").wide() * state.has_reg_bytes
            )
            with code.each((words + LANES - 1) // LANES) as n:
                add(mine, command.c // ROW + n)
    code.b.ret_void()


class Look:
    """What the checked engine looks at: `visit` as a command is sent, `operands` or `targets`, then `mark`, as it is executed."""

    def __init__(self, code: Code, require: Require) -> None:
        self.code, self.require = code, require
        self.state = Struct(code, STATE, code.arguments[0])
        self.command = Struct(code, COMMAND, code.arguments[1])
        self.writes = self.command.kind >= FILL

    def write(self, what: str) -> None:
        """`visit`: races and claims; `operands`: races, and whether it was written; `targets`: races; `mark`: it is written."""
        if what != "mark":
            self.races()
        if what == "visit":
            self.unclaimed("claimed_filled", WRITES, self.code.num(1, I1))
            self.unclaimed("claimed_shared", READS, self.writes)
        elif what in ("operands", "mark"):
            self.written(what == "mark")
        self.code.give(0)

    def bytes(self) -> Any:
        return bytes_of(self.code, self.state, self.command, self.require)

    def cell(self, shadow: str, byte: Num) -> Struct:
        return Struct(self.code, CELL, self.code.at(self.state.pointer_to(shadow), byte.wide() * 4))

    def races(self) -> None:
        """Whether another warp wrote what is read, or had to do with what is written."""
        code, state = self.code, self.state
        me = code.num(1) << state.get("warp")
        with self.bytes() as (byte, _, _):
            written, read = self.cell("writers", byte), self.cell("readers", byte)
            touch_page(code, state, byte)
            with code.either(self.writes) as (write, plain):
                with write:
                    self.clash(written.get("x") & ~me, WRITES, WRITES, byte)
                    self.clash(read.get("x") & ~me, WRITES, READS, byte)
                    written.x = written.get("x") | me
                with plain:
                    self.clash(written.get("x") & ~me, READS, WRITES, byte)
                    read.x = read.get("x") | me

    def clash(self, others: Num, now: int, before: int, byte: Num) -> None:
        with self.code.when(others != 0, likely=False):
            aux = others.lowest() << 2 | race(now, before, 0)
            fault(self.code, self.state, Kind.RACE, 0, byte, aux)

    def unclaimed(self, shadow: str, claim: int, concerned: Num) -> None:
        """No pending command claims a piece for what `claim` says."""
        code, state = self.code, self.state
        use = code.of(code.b.select(self.writes.value, code.num(WRITES << USE).value, code.num(READS << USE).value))  # fmt: skip
        with (
            code.when(concerned),
            self.bytes() as (byte, start, size),
            code.when(self.cell(shadow, byte).get("x") != 0, likely=False),
        ):
            aux = size << 8 | use | access("shared", 0, READS, claim)
            fault(code, state, Kind.ASYNC_MEMORY, 0, start, aux)

    def written(self, now: bool) -> None:
        """Whether a piece was written; or that it is."""
        code, state = self.code, self.state
        with self.bytes() as (byte, start, size):
            have = Struct(code, BYTE, code.at(state.pointer_to("has_shared"), byte))
            if now:
                have.x = 1
            else:
                with code.when(have.get("x") == 0, likely=False):
                    aux = size << 8 | access("shared", 0, READS)
                    fault(code, state, Kind.UNWRITTEN_MEMORY, 0, start, aux)
