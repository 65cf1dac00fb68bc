"""Groups of systolic commands, executed when a wait completes them; and what the checked engine looks after.

    status systolic.drain(state, n)                 all groups of the warp but the newest n
      └ systolic.product.f16(state, command, c)         one LSMA: `passes.py`

`checked.systolic.drain` goes on to ask whether a command's operands were written, and by whom (`operands`, `race`), and counts the pending
commands that claim a register or a byte (`claim`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from knapper.isa.lanes import LANES, TYPES
from knapper.isa.modifiers import Element, Space
from knapper.isa.systolic import UNITS, WORD

from ..decode import ROW, SPARE
from ..faults import READS, WRITES, Kind, access, race
from .algebra import Algebra
from .emit import FULL, I32, PTR, VOID, Code, Num, Struct
from .layout import BYTE, COMMAND, STATE
from .layout import WORD as CELL
from .passes import PASS, PRODUCT, STREAM, emit_pass, emit_product, emit_stream, stream
from .queues import (
    COMMIT,
    LDB,
    PRODUCTS,
    SWAP,
    arrays,
    closed,
    columns_of,
    entry,
    fault,
    ring,
    rows_of,
    weights,
)

DRAIN = ir.FunctionType(I32, [PTR, I32])
LOOK = ir.FunctionType(I32, [PTR, PTR])
"""status(state, command)"""
CLAIM = ir.FunctionType(VOID, [PTR, PTR, I32])
"""claim(state, command, 1 or -1)"""
Require = Callable[[str], None]


def build(
    name: str, module: ir.Module, features: frozenset[str], require: Require, checked: bool
) -> None:
    """Write a unit: its name without `systolic.`."""
    head, _, rest = name.partition(".")
    symbol = f"{'checked.' * checked}systolic.{name}"
    if head == "drain":
        Drain(Code(module, symbol, DRAIN), require, checked).write()
    elif head == "product":
        emit_product(Code(module, symbol, PRODUCT), Element[rest.upper()], require)
    elif head == "stream":
        code = Code(module, symbol, STREAM, inline="noinline")
        emit_stream(Algebra(code, features), TYPES[rest.upper()])
    elif head == "pass":
        emit_pass(Code(module, symbol, PASS, inline="noinline"), int(rest))
    elif head == "claim":
        emit_claim(Code(module, symbol, CLAIM))
    else:
        Look(Code(module, symbol, LOOK), head == "operands").write()


class Drain:
    """`drain` being written."""

    def __init__(self, code: Code, require: Require, checked: bool) -> None:
        self.code, self.require, self.checked = code, require, checked
        state, n = code.arguments
        self.state, self.n = Struct(code, STATE, state), code.of(n)
        self.queue, self.arrays = ring(code, self.state), arrays(code, self.state)
        # units whose weights the group brought itself: active ones, and shadows
        self.active, self.shadow = code.variable(0), code.variable(0)

    def write(self) -> None:
        code, queue = self.code, self.queue
        if self.checked:
            closed(code, self.state, queue)
        with code.loop(lambda: queue.groups > self.n):
            command = entry(code, self.state, queue.head)
            acts = {LDB: self.load, SWAP: self.swap, PRODUCTS: self.multiply, COMMIT: self.done}
            if self.checked:
                self.release(command)
            kind = command.kind
            for number, act in acts.items():
                with code.when(kind == number):
                    act(command)
            queue.head = queue.head + 1
        code.give(0)

    def done(self, command: Struct) -> None:
        """A group ends."""
        self.queue.groups = self.queue.groups - 1
        self.active.x = self.shadow.x = 0

    def units(self, command: Struct) -> Num:
        """A bit for each unit that a command names."""
        return (self.code.num(1) << command.units) - 1

    def weights(self, unit: Num, half: Num) -> Any:
        """Where a unit's active (half = 0) or shadow (1) weights are."""
        return weights(self.code, self.state, unit, half)

    def load(self, command: Struct) -> None:
        """SMA.LDB."""
        code, state = self.code, self.state
        if self.checked:
            self.change()
            self.look("operands", command)
        source = code.at(state.pointer_to("shared"), command.first)
        step = state.array_columns * 2
        pitch = (state.array_columns * 4).wide().value
        for element in Element:
            with code.when(command.type == int(element)), code.each(command.units) as unit:
                columns = step // (element.lane.bits // 8)
                place = code.at(source, unit * step)
                target = self.weights(unit, code.num(1))
                name = stream(element, self.require)
                code.call(
                    name, STREAM, place, command.pitch.wide().value, state.array_rows.value,
                    columns.value, target, pitch,
                )  # fmt: skip
        if self.checked:
            units, flipped = self.units(command), self.arrays.flipped
            self.arrays.loaded = self.arrays.loaded | (units & ~flipped) << UNITS | units & flipped
            self.shadow.x = self.shadow.x | units

    def swap(self, command: Struct) -> None:
        """SMA.SWAP."""
        units = self.units(command)
        self.arrays.flipped = self.arrays.flipped ^ units
        if self.checked:
            self.change()
            differ = (self.active.x ^ self.shadow.x) & units
            self.active.x, self.shadow.x = self.active.x ^ differ, self.shadow.x ^ differ

    def multiply(self, command: Struct) -> None:
        """LSMA."""
        code, state = self.code, self.state
        if self.checked:
            self.use(command)
            self.look("operands", command)
            self.sums(command)
        base, start = (
            code.b.select((command.space == int(Space.ACC)).value, a.value, b.value)
            for a, b in (
                (state.accumulators, state.regs),
                (command.c.wide() * WORD, command.c.wide()),
            )
        )
        c = code.at(code.pointer(code.of(base)), code.of(start))
        for element in Element:
            with code.when(command.type == int(element)):
                name = f"systolic.product.{element.name.lower()}"
                self.require(name)
                code.call(name, PRODUCT, state.pointer, command.pointer, c)

    # --- the checked engine

    def release(self, command: Struct) -> None:
        self.require("checked.systolic.claim")
        with self.code.when((command.kind != COMMIT) & (command.kind != SWAP)):
            minus = ir.Constant(I32, -1)
            self.code.call(
                "checked.systolic.claim", CLAIM, self.state.pointer, command.pointer, minus
            )

    def look(self, name: str, command: Struct) -> None:
        name = f"checked.systolic.{name}"
        self.require(name)
        status = self.code.of(self.code.call(name, LOOK, self.state.pointer, command.pointer))
        with self.code.when(status != 0, likely=False):
            self.code.give(status)

    @property
    def me(self) -> Num:
        return self.code.num(1) << self.state.get("warp")

    def change(self) -> None:
        """The warp loads or swaps weights."""
        self.clash(self.arrays.users & ~self.me)
        self.arrays.loaders = self.arrays.loaders | self.me
        self.arrays.owner = self.me

    def use(self, command: Struct) -> None:
        """The warp computes with weights, maybe of an earlier group."""
        code, named = self.code, self.units(command)
        with code.when(named & ~self.active.x != 0):
            self.clash(self.arrays.loaders & ~self.me)
            self.clash(self.arrays.owner & ~self.me)
            self.arrays.users = self.arrays.users | self.me
        flipped, loaded = self.arrays.flipped, self.arrays.loaded
        missing = named & ~((loaded & ~flipped) | (loaded >> UNITS & flipped))
        with code.when(missing != 0, likely=False):
            fault(code, self.state, Kind.UNWRITTEN_WEIGHTS, 0, missing.lowest())

    def clash(self, others: Num) -> None:
        with self.code.when(others != 0, likely=False):
            fault(self.code, self.state, Kind.ASYNC_WEIGHTS, 0, 0, others.lowest())

    def sums(self, command: Struct) -> None:
        """C is written if it is read, and after that in any case."""
        code, state = self.code, self.state
        words = command.m * columns_of(state, command)
        with code.either(command.space == int(Space.ACC)) as (memory, registers):
            with memory, code.each(words * WORD) as byte:
                at = (command.c * WORD + byte).wide()
                have = Struct(code, BYTE, code.at(state.pointer_to("has_sum"), at))
                with code.when((have.get("x") | command.fresh.low(have.get("x").value.type)) == 0):
                    aux = access("accumulator", WORD, READS)
                    fault(code, state, Kind.UNWRITTEN_MEMORY, 0, at & ~(WORD - 1), aux)
                have.x = 1
            with registers, code.each((words + LANES - 1) // LANES) as n:
                rest, row = words - n * LANES, command.c // ROW + n
                some = (code.num(1) << (rest & (LANES - 1))) - 1
                need = code.of(
                    code.b.select((rest >= LANES).value, code.num(FULL).value, some.value)
                )
                have = Struct(code, CELL, code.at(state.pointer_to("has_reg"), row.wide() * 4))
                missing = need & ~have.get("x")
                with code.when((missing != 0) & (command.fresh == 0), likely=False):
                    fault(code, state, Kind.UNWRITTEN_REGISTER, missing.lowest(), row)
                have.x = have.get("x") | need


# --- shadows of the checked engine -------------------------------------------------------------------------------------------


@contextmanager
def bytes_of(code: Code, state: Struct, command: Struct) -> Iterator[tuple[Num, Num, Num]]:
    """For every byte that a command reads from shared memory: its address, its row's, and the bytes of a row."""
    rows, size = rows_of(code, state, command)
    with code.each(rows) as r:
        start = command.first + r * command.pitch
        with code.each(size) as x:
            yield start + x, start, size


def emit_claim(code: Code) -> None:
    """What a command reads and writes is claimed once more, or once less."""
    state, command = (
        Struct(code, STATE, code.arguments[0]),
        Struct(code, COMMAND, code.arguments[1]),
    )
    by = code.of(code.arguments[2])

    def add(shadow: Any, index: Num) -> None:
        cell = Struct(code, CELL, code.at(shadow, index.wide() * 4))
        cell.x = cell.get("x") + by

    with bytes_of(code, state, command) as (byte, _, _):
        add(state.pointer_to("claimed_shared"), byte)
    words = command.m * columns_of(state, command)
    product = command.kind == PRODUCTS
    with code.when(product & (command.space == int(Space.ACC))), code.each(words * WORD) as byte:
        add(state.pointer_to("claimed_sum"), command.c * WORD + byte)
    real = command.c.wide() < state.reg_bytes - 2 * SPARE * ROW  # RZ is nobody's
    with code.when(product & (command.space == int(Space.REG)) & real):
        mine = code.at(
            state.pointer_to("claimed_reg"), state.get("warp").wide() * state.has_reg_bytes
        )
        with code.each((words + LANES - 1) // LANES) as n:
            add(mine, command.c // ROW + n)
    code.b.ret_void()


class Look:
    """`race`: whether another warp wrote what a command reads; `operands`: that, and whether anybody did."""

    def __init__(self, code: Code, operands: bool) -> None:
        self.code, self.operands = code, operands
        self.state = Struct(code, STATE, code.arguments[0])
        self.command = Struct(code, COMMAND, code.arguments[1])

    def write(self) -> None:
        code, state = self.code, self.state
        me = code.num(1) << state.get("warp")
        with bytes_of(code, state, self.command) as (byte, _, _):
            written, read = (
                Struct(code, CELL, code.at(state.pointer_to(n), byte.wide() * 4))
                for n in ("writers", "readers")
            )
            others = written.get("x") & ~me
            with code.when(others != 0, likely=False):
                aux = others.lowest() << 2 | race(READS, WRITES, 0)
                fault(code, state, Kind.RACE, 0, byte, aux)
            read.x = read.get("x") | me
        if self.operands:
            self.written()
        code.give(0)

    def written(self) -> None:
        code, state = self.code, self.state
        with bytes_of(code, state, self.command) as (byte, row, size):
            have = Struct(code, BYTE, code.at(state.pointer_to("has_shared"), byte))
            with code.when(have.get("x") == 0, likely=False):
                aux = size << 8 | access("shared", 0, READS)
                fault(code, state, Kind.UNWRITTEN_MEMORY, 0, row, aux)
