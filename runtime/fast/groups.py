"""Groups of systolic commands, executed when a wait completes them; and what the checked engine looks after.

    status systolic.drain(state, n)                 all groups of the warp but the newest n
      └ systolic.product.f16(state, command, c)         one LSMA: `passes.py`

`checked.systolic.drain` also has the commands looked at (`shadows.py`): whether their operands were written, and by whom.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from knapper.isa.lanes import LANES, TYPES
from knapper.isa.modifiers import BYTES, NIBBLES, Beside, Element, Nibble, Pair, Space
from knapper.isa.systolic import UNITS, WORD

from ..decode import ROW
from ..faults import KIND_BITS, READS, Kind, access
from . import copies, kept
from .algebra import Algebra
from .descriptors import descriptor
from .emit import FULL, I32, PTR, Code, Num, Require, Struct
from .layout import BYTE, STATE
from .layout import WORD as CELL
from .passes import (
    PASS,
    PRODUCT,
    STEPS,
    STREAM,
    Left,
    Right,
    emit_nibbles,
    emit_pass,
    emit_product,
    emit_stream,
    stream,
    unit_of,
)
from .patches import GATHER, emit_gather
from .queues import (
    COMMIT,
    COPY,
    FILL,
    GATHERED,
    LDB,
    PATCHES,
    PRODUCTS,
    SWAP,
    arrays,
    closed,
    columns_of,
    entry,
    fault,
    ring,
    row_words,
    weights,
)
from .shadows import CLAIM, LOOK, Look, emit_claim, emit_pieces

DRAIN = ir.FunctionType(I32, [PTR, I32])


LEFT: dict[str, Left] = {unit_of(e): e for e in (*Element, *Pair, *Beside)}
"""Types of A, as units are named."""
RIGHT: dict[str, Right] = {unit_of(e): e for e in (*Element, *Pair, *Nibble)}
"""Types of B."""


def build(
    name: str, module: ir.Module, features: frozenset[str], require: Require, checked: bool
) -> None:
    """Write a unit: its name without `systolic.`."""
    head, _, rest = name.partition(".")
    symbol = f"{'checked.' * checked}systolic.{name}"
    if head == "drain":
        Drain(Code(module, symbol, DRAIN), require, checked).write()
    elif head == "product":
        emit_product(Code(module, symbol, PRODUCT), LEFT[rest], require)
    elif head == "stream":
        code = Code(module, symbol, STREAM, inline="noinline")
        if isinstance(type_ := RIGHT[rest], Nibble):
            emit_nibbles(code, type_.format)
        else:
            emit_stream(Algebra(code, features), TYPES[rest.upper()])
    elif head in ("pass", "step"):
        code = Code(module, symbol, PASS, inline="noinline")
        columns, _, bytes_ = rest.partition(".")
        emit_pass(code, features, int(columns), STEPS if head == "pass" else 1, bool(bytes_))
    elif head == "gather":
        code = Code(module, symbol, GATHER, inline="noinline")
        emit_gather(Algebra(code, features), TYPES[rest.upper()])
    elif head == "listed":
        kept.emit_listed(Code(module, symbol, kept.LISTED, inline="noinline"))
    elif head == "kept":
        kept.emit_rows(Code(module, symbol, kept.ROWS, inline="noinline"), int(rest))
    elif head == "fill":
        copies.Filling(Code(module, symbol, copies.EXECUTE), int(rest)).write()
    elif head in copies.WRITERS:
        type, write = copies.WRITERS[head]
        write(Code(module, symbol, type))
    elif head == "claim":
        emit_claim(Code(module, symbol, CLAIM), require)
    elif head == "pieces":
        emit_pieces(Code(module, symbol, LOOK))
    else:
        Look(Code(module, symbol, LOOK), require).write(head)


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
            acts = {
                LDB: self.load, SWAP: self.swap, PRODUCTS: self.multiply, COMMIT: self.done,
                PATCHES: self.multiply, GATHERED: self.multiply, FILL: self.fill, COPY: self.copy,
            }  # fmt: skip
            pend(code, self.state, command, -1)
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
        pitch = (row_words(state.array_columns) * 4).wide().value
        for element in RIGHT.values():
            with code.when(command.type == element.number), code.each(command.units) as unit:
                columns = step // (element.lane.bits // 8)
                place = code.at(source, unit * step)
                target = self.weights(unit, code.num(1))
                name = stream(element, self.require)
                code.call(
                    name, STREAM, place, command.pitch.wide().value, state.array_rows.value,
                    columns.value, target, pitch,
                )  # fmt: skip
        units, flipped = self.units(command), self.arrays.flipped
        sets = (units & ~flipped) << UNITS | units & flipped
        bytes_, nibbles = (self.code.num(0) - x for x in self.kind_of(command, Nibble.S4.number))
        self.arrays.pairs = (self.arrays.pairs & ~sets) | (sets & bytes_)
        self.arrays.nibbles = (self.arrays.nibbles & ~sets) | (sets & nibbles)
        if self.checked:
            self.arrays.loaded = self.arrays.loaded | sets
            self.shadow.x = self.shadow.x | units

    def kind_of(self, command: Struct, nibbles: int) -> tuple[Num, Num]:
        """Whether a command works on weights that are bytes, and nibbles, whose types are `nibbles` and more."""
        few = ~(command.type < nibbles)
        return (~(command.type < len(Element)) & ~few).flag(), few.flag()

    def held(self, mask: Num) -> Num:
        """A bit for each unit whose active weights a mask has."""
        flipped = self.arrays.flipped
        return (mask & ~flipped) | (mask >> UNITS & flipped)

    def same_kind(self, command: Struct) -> None:
        """A product's units hold weights of its kind."""
        code, none = self.code, self.code.num(0)
        held = self.held(self.arrays.pairs), self.held(self.arrays.nibbles)
        mine = self.kind_of(command, Beside.S8.number)
        differ = (h ^ (none - x) for h, x in zip(held, mine, strict=True))
        other = self.units(command) & (next(differ) | next(differ))
        with code.when(other != 0, likely=False):
            unit = other.lowest()
            theirs = (h >> unit & 1 for h in held)
            kinds = [x * BYTES + y * NIBBLES for x, y in (theirs, mine)]
            aux = kinds[0] << KIND_BITS | kinds[1]
            fault(code, self.state, Kind.OTHER_WEIGHTS, 0, unit, aux)

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
        self.same_kind(command)
        if self.checked:
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
        for name, element in LEFT.items():
            with code.when(command.type == element.number):
                name = f"systolic.product.{name}"
                self.require(name)
                code.call(name, PRODUCT, state.pointer, command.pointer, c)

    def fill(self, command: Struct) -> None:
        """FILL.DUP."""
        self.writing(command)
        code = self.code
        size = descriptor(code, self.state, command.cd).bytes
        for bytes_ in sorted({element.lane.bits // 8 for element in Element}):
            with code.when(size == bytes_):
                self.do(f"systolic.fill.{bytes_}", command)

    def copy(self, command: Struct) -> None:
        """DMA.LD."""
        self.writing(command)
        self.do("systolic.copy", command)

    def do(self, name: str, command: Struct) -> None:
        self.require(name)
        self.code.call(name, copies.EXECUTE, self.state.pointer, command.pointer)

    # --- the checked engine

    def writing(self, command: Struct) -> None:
        """A copy's pieces are written from now on, if what it fetches is there."""
        if self.checked:
            for name in ("targets", "present", "mark"):
                self.look(name, command)

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


def pend(code: Code, state: Struct, command: Struct, by: int) -> None:
    """One more command waits with its descriptor, or one less."""
    gathered = command.kind == GATHERED
    with code.when((command.kind == PATCHES) | gathered | (command.kind == FILL)):
        d = descriptor(code, state, command.cd)
        d.pending = d.pending + by % (1 << 64)
    with code.when(gathered):
        d = descriptor(code, state, command.td)
        d.pending = d.pending + by % (1 << 64)
