"""Systolic commands in compiled code. `runtime/systolic.py` is their specification, and reads better.

A handler checks a command and puts it into its warp's ring; `systolic.drain` executes groups when a wait completes them:

    status systolic.drain(state, n)             all groups of the warp but the newest n
      └ systolic.product.f16(state, command, c)     64 rows of A at a time, widened once for all units
          └ systolic.pass.16(…)                         8 steps of k on 16 columns of C: 8 rows at a time, 8 multiply-adds a load and store

C in registers is just the matrix: rows of C follow each other over (register, lane). The weights of 8 steps stay in vector registers, an element of
A is broadcast by the multiply-add itself. `checked.systolic.…` look after claims, races and what was never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from knapper.isa.core import TABLE
from knapper.isa.instructions import LSMA, SMA_LDB, SMA_SWAP
from knapper.isa.lanes import LANES, TYPES, LaneType
from knapper.isa.modifiers import Element, Space, Start
from knapper.isa.program import Kernel
from knapper.isa.systolic import QUEUE, UNITS, WORD, Array

from ..decode import ROW, SPARE
from ..faults import READS, WRITES, Kind, access, race
from .algebra import Algebra
from .emit import FLOAT, FULL, I16, I32, I64, PTR, VOID, Code, Num, Struct, constant_vector, vector
from .layout import ARRAYS, BARRIER, BYTE, COMMAND, CONTEXT, FAULT, RING, STATE
from .layout import WORD as CELL
from .matrix import single
from .moves import counter
from .trace import TraceWarp

DRAIN = ir.FunctionType(I32, [PTR, I32])
LOOK = ir.FunctionType(I32, [PTR, PTR])
"""status(state, command)"""
CLAIM = ir.FunctionType(VOID, [PTR, PTR, I32])
PRODUCT = ir.FunctionType(VOID, [PTR, PTR, PTR])
STREAM = ir.FunctionType(VOID, [PTR, I64, I32, I32, PTR, I64])
"""stream(source, pitch, rows, elements, target, pitch): rows of elements as fp32; a multiple of 8 elements."""
PASS = ir.FunctionType(VOID, [PTR, I64, PTR, I64, PTR, I64, PTR, I64, I32])
"""pass(sums, pitch, c, pitch, weights, pitch, a, pitch, rows): c = sums + a · weights."""
STEPS = 8
"""Steps of k in one pass."""
BLOCK = 8
"""Rows of C that a pass keeps in vector registers."""
CHUNK = 64
"""Rows of A that are widened at a time."""
COMMIT, LDB, SWAP, PRODUCTS = range(4)
"""What a command is: the end of a group, an SMA.LDB, an SMA.SWAP, an LSMA."""
POINTERS = (
    "systolic", "systolic_bytes", "claimed_reg", "claimed_shared", "claimed_sum",
)  # fmt: skip
"""Of a state, what says that a launch has no systolic commands by being 0."""
OWN = [cls.opcode for cls in TABLE.values() if cls.extension == "systolic"]
Require = Callable[[str], None]


# --- what a launch needs ---------------------------------------------------------------------------------------------------


def concerns(records: NDArray[Any]) -> bool:
    """Whether a kernel has anything to do with the systolic units."""
    return bool(np.isin(records["kind"], OWN).any())


def prepare(
    state: Any, kernel: Kernel, array: Array, buffer: Callable[[str, int], int], checked: bool
) -> None:
    """Lay out what a block's systolic commands need: one piece that is cleared when a block begins, rings, a buffer for A."""
    size = kernel.warps, 4 * (kernel.registers + 2 * SPARE)
    sums = WORD * array.accumulators
    parts = {
        "queues": RING.itemsize * kernel.warps,
        "weights": 2 * UNITS * array.rows * array.columns * 4,
        "accumulators": sums,
    }
    if checked:
        parts |= {
            "claimed_reg": size[0] * size[1],
            "claimed_shared": 4 * kernel.shared_bytes,
            "claimed_sum": 4 * sums,
            "has_sum": sums,
        }
    starts = np.cumsum([ARRAYS.itemsize, *(-(-n // 64) * 64 for n in parts.values())])
    state["systolic"] = buffer("systolic", int(starts[-1]))
    state["systolic_bytes"] = int(starts[-1])
    for name, start in zip(parts, starts.tolist(), strict=False):
        state[name] = state["systolic"] + start
    state["commands"] = buffer("commands", kernel.warps * QUEUE * COMMAND.itemsize)
    state["stream"] = buffer("stream", CHUNK * array.rows * 4)
    state["array_rows"], state["array_columns"] = array.rows, array.columns
    state["accumulator_bytes"] = sums


# --- structs -----------------------------------------------------------------------------------------------------------------


def arrays(code: Code, state: Struct) -> Struct:
    """The units."""
    return Struct(code, ARRAYS, state.pointer_to("systolic"))


def ring(code: Code, state: Struct) -> Struct:
    """The queue of the warp that runs."""
    place = code.at(state.pointer_to("queues"), state.get("warp").wide() * RING.itemsize)
    return Struct(code, RING, place)


def entry(code: Code, state: Struct, number: Num) -> Struct:
    """The n-th command of the warp that runs, since it began."""
    index = (state.get("warp") * QUEUE + (number & (QUEUE - 1))).wide()
    return Struct(code, COMMAND, code.at(state.pointer_to("commands"), index * COMMAND.itemsize))


def element_bytes(command: Struct) -> Num:
    """Of A, B: 2 or 4."""
    return (command.type == int(Element.F32)).flag() * 2 + 2


def rows_of(code: Code, state: Struct, command: Struct) -> tuple[Num, Num]:
    """Rows that an LDB or LSMA reads, and bytes of one. A unit's row of W has the same bytes in every type."""
    product = command.kind == PRODUCTS
    rows = code.of(code.b.select(product.value, command.m.value, state.array_rows.value))
    size = code.b.select(
        product.value,
        (state.array_rows * element_bytes(command)).value,
        (command.units * state.array_columns * 2).value,
    )
    return rows, code.of(size)


def columns_of(state: Struct, command: Struct) -> Num:
    """Columns of C."""
    return command.units * state.array_columns * 2 // element_bytes(command)


def fault(
    code: Code, state: Struct, kind: Kind, lane: Num | int = 0, value: Any = 0, aux: Any = 0
) -> None:
    """Stop here."""
    state.fault_lane, state.fault_aux = lane, aux
    state.fault_value = value.wide() if isinstance(value, Num) else value
    code.give(FAULT + kind)


# --- handlers ----------------------------------------------------------------------------------------------------------------


def whole(m: TraceWarp) -> None:
    """A command is the whole warp's."""
    with m.code.when(m.mask != FULL, likely=False):
        m.fault(Kind.COMMAND_SPLIT, (~m.mask).lowest())


def call(m: TraceWarp, name: str, type: Any, *arguments: Any) -> None:
    """Call a unit; stop if it faults."""
    name = f"{'checked.' * m.checked}systolic.{name}"
    m.require(name)
    status = m.code.of(m.code.call(name, type, m.state.pointer, *arguments))
    with m.code.when(status != 0, likely=False):
        m.code.give(status)


@contextmanager
def joining(m: TraceWarp) -> Iterator[tuple[Struct, Struct]]:
    """The warp's queue and its next entry, which is taken when the context ends."""
    whole(m)
    queue = ring(m.code, m.state)
    with m.code.when(queue.tail - queue.head == QUEUE, likely=False):
        m.fault(Kind.QUEUE_FULL, 0, QUEUE)
    yield queue, entry(m.code, m.state, queue.tail)
    queue.tail = queue.tail + 1


def fill(command: Struct, **fields: Num | int) -> None:
    """Write fields."""
    for name, value in fields.items():
        command.set(name, value if isinstance(value, Num) else int(value))


def origin(m: TraceWarp, i: Any) -> Num:
    """Where a command's first row is."""
    return m.uniform_word(i.base) + m.record.get("slot", m.variant.slots["offset"])


def ldb(m: TraceWarp, i: SMA_LDB) -> None:
    """SMA.LDB joins the queue."""
    address = origin(m, i)
    with joining(m) as (queue, command):
        fill(command, kind=LDB, type=i.type, units=i.units, first=address)
        command.pitch = m.record.get("slot", m.variant.slots["pitch"])
        send(m, queue, command)


def swap(m: TraceWarp, i: SMA_SWAP) -> None:
    """SMA.SWAP joins the queue."""
    with joining(m) as (queue, command):
        fill(command, kind=SWAP, units=i.units)
        queue.open = queue.open + 1


def lsma(m: TraceWarp, i: LSMA) -> None:
    """LSMA joins the queue."""
    c = m.uniform_scalar(i.c) if i.space is Space.ACC else m.slot(i.c.payload)[0]
    address = origin(m, i)
    with joining(m) as (queue, command):
        fill(command, kind=PRODUCTS, type=i.type, units=i.units, m=i.m, first=address, c=c)
        fill(command, fresh=int(i.start is Start.SET), space=i.space)
        command.pitch = m.record.get("slot", m.variant.slots["pitch"])
        send(m, queue, command)


def send(m: TraceWarp, queue: Struct, command: Struct) -> None:
    """Bounds, counters, and what the checked engine looks at."""
    code, state = m.code, m.state
    rows, size = rows_of(code, state, command)
    with code.when((command.first | command.pitch) & (WORD - 1) != 0, likely=False):
        fault(code, state, Kind.MISALIGNED, 0, command.first, access("shared", WORD, READS))
    last = command.first.wide() + (rows - 1).wide() * command.pitch.wide()
    with code.when(last + size.wide() > state.shared_bytes.wide(), likely=False):
        fault(code, state, Kind.OUTSIDE, 0, last, size << 8 | access("shared", 0, READS))
    if m.checked:
        call(m, "race", LOOK, command.pointer)
    total = counter(code, state, m.record.pointer)
    total.smem_read = total.smem_read + (rows * size).wide()
    with code.when(command.space == int(Space.ACC)):
        sums_inside(code, state, command)
    queue.open = queue.open + 1
    if m.checked:
        m.require("checked.systolic.claim")
        one = ir.Constant(I32, 1)
        code.call("checked.systolic.claim", CLAIM, state.pointer, command.pointer, one)


def sums_inside(code: Code, state: Struct, command: Struct) -> None:
    """C in accumulator memory lies inside it."""
    size = (command.m * columns_of(state, command)).wide() * WORD
    start = command.c.wide() * WORD
    with code.when(start + size > state.accumulator_bytes.wide(), likely=False):
        aux = size.low() << 8 | access("accumulator", 0, WRITES)
        fault(code, state, Kind.OUTSIDE, 0, start, aux)


def commit(m: TraceWarp, i: Any) -> None:
    """SMA.COMMIT ends a group."""
    with joining(m) as (queue, command):
        command.kind = COMMIT
        queue.groups, queue.open = queue.groups + 1, 0


def wait(m: TraceWarp, i: Any) -> None:
    """SMA.WAIT executes."""
    whole(m)
    call(m, "drain", DRAIN, ir.Constant(I32, int(i.n)))


def context(m: TraceWarp) -> Struct:
    """Of the warp that runs."""
    place = m.state.get("warp").wide() * CONTEXT.itemsize
    return Struct(m.code, CONTEXT, m.code.at(m.state.pointer_to("warps"), place))


def switch(m: TraceWarp, i: Any) -> None:
    """MODE: a barrier that drains first. If lanes are missing, the interpreter says so."""
    with m.code.when(context(m).live & ~m.mask == 0, likely=True):
        call(m, "drain", DRAIN, ir.Constant(I32, 0))
    m.status = BARRIER


def leave(m: TraceWarp, i: Any) -> None:
    """EXIT: a checked warp may not end with commands pending."""
    if m.checked:
        last = (m.state.systolic_bytes != 0) & (context(m).live & ~m.mask == 0)
        with m.code.when(last, likely=False):
            queue = ring(m.code, m.state)
            closed(m.code, m.state, queue)
            with m.code.when(queue.groups != 0, likely=False):
                m.fault(Kind.ASYNC_EXIT, 0, queue.groups)
    m.exit()


def closed(code: Code, state: Struct, queue: Struct) -> None:
    """No command waits for a COMMIT."""
    with code.when(queue.open != 0, likely=False):
        fault(code, state, Kind.ASYNC_OPEN, 0, queue.open)


# --- units -------------------------------------------------------------------------------------------------------------------


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


def weights(code: Code, state: Struct, unit: Num, half: Num) -> Any:
    """Where a unit's active (half = 0) or shadow (1) weights are."""
    which = (arrays(code, state).flipped >> unit & 1) ^ half
    size = (state.array_rows * state.array_columns * 4).wide()
    return code.at(state.pointer_to("weights"), (which * UNITS + unit).wide() * size)


def stream(element: Element, require: Require) -> str:
    """The unit that widens rows."""
    name = f"systolic.stream.{element.name.lower()}"
    require(name)
    return name


def emit_stream(algebra: Algebra, type: LaneType) -> None:
    """Rows of elements as fp32, eight at a time."""
    code = algebra.code
    source, pitch, rows, elements, target, step = code.arguments
    size = type.bits // 8
    with code.each(code.of(rows)) as r, code.each(code.of(elements) >> 3) as block:
        place = code.at(code.at(source, r.wide() * code.of(pitch)), block.wide() * (8 * size))
        raw = code.load(place, vector(I16 if type.bits == 16 else FLOAT, 8), 4)
        wide = single(algebra, raw, type) if type.bits == 16 else raw
        code.store(wide, code.at(code.at(target, r.wide() * code.of(step)), block.wide() * 32), 32)
    code.b.ret_void()


def emit_product(code: Code, element: Element, require: Require) -> None:
    """C (+)= A · W, units and columns in strips as wide as a vector, k in steps of a pass."""
    state, command = (
        Struct(code, STATE, code.arguments[0]),
        Struct(code, COMMAND, code.arguments[1]),
    )
    size = element.lane.bits // 8
    strip = 32 // size
    name, widen = f"systolic.pass.{strip}", stream(element, require)
    require(name)
    width = state.array_columns * 2 // size
    pitch = (command.units * width * 4).wide()
    source = code.at(state.pointer_to("shared"), command.first)
    depth, a = (state.array_rows * 4).wide(), state.pointer_to("stream")
    with code.each((command.m + (CHUNK - 1)) // CHUNK) as chunk:
        first = (chunk * CHUNK).wide()
        rows = smaller(code, command.m - chunk * CHUNK, CHUNK)
        place = code.at(source, first * command.pitch.wide())
        code.call(widen, STREAM, place, command.pitch.wide().value, rows.value, state.array_rows.value, a, depth.value)  # fmt: skip
        block = code.at(code.arguments[2], first * pitch)
        with code.each(command.units) as unit, code.each(width // strip) as column:
            c = code.at(block, (unit * width + column * strip).wide() * 4)
            w = code.at(weights(code, state, unit, code.num(0)), column.wide() * (4 * strip))
            with code.each(state.array_rows // STEPS) as step:
                fresh = ((command.fresh != 0) & (step == 0)).value
                sums = code.b.select(fresh, state.address("zeros"), c)
                stride = code.b.select(fresh, ir.Constant(I64, 0), pitch.value)
                row = (state.array_columns * 4).wide()
                code.call(
                    name, PASS, sums, stride, c, pitch.value, code.at(w, step.wide() * STEPS * row), row.value,
                    code.at(a, step.wide() * (4 * STEPS)), depth.value, rows.value,
                )  # fmt: skip
    code.b.ret_void()


def smaller(code: Code, x: Num, most: int) -> Num:
    """x, but at most so much."""
    return code.of(code.b.select((x < most).value, x.value, code.num(most).value))


def emit_pass(code: Code, n: int) -> None:
    """Eight steps of k for a strip of n columns."""
    sums, stride, c, pitch, w, row, a, depth, rows = code.arguments
    strip = vector(FLOAT, n)
    right = [code.load(code.at(w, code.of(row) * k), strip, 4 * n) for k in range(STEPS)]

    def some(first: Num, count: int) -> None:
        """`count` rows of C."""
        at = [first.wide() + r for r in range(count)]
        total = [code.load(code.at(sums, r * code.of(stride)), strip, 4) for r in at]
        left = [code.at(a, r * code.of(depth)) for r in at]
        for k in range(STEPS):
            for r in range(count):
                one = code.splat(code.load(code.at(left[r], 4 * k), FLOAT, 4), n)
                total[r] = code.intrinsic("llvm.fma", strip, [one, right[k], total[r]])
        places = [code.at(c, r * code.of(pitch)) for r in at]
        for value, place in zip(total, places, strict=True):
            code.store(value, place, 4)
        quiet(code, total, places)

    whole_blocks = code.of(rows) // BLOCK
    with code.each(whole_blocks) as block:
        some(block * BLOCK, BLOCK)
    with code.each(code.of(rows) % BLOCK) as r:
        some(whole_blocks * BLOCK + r, 1)
    code.b.ret_void()


def quiet(code: Code, total: list[Any], places: list[Any]) -> None:
    """If any sum is NaN, write the canonical one over it."""
    b, n = code.b, total[0].type.count
    nan = None
    for x, y in zip(total[::2], total[1::2] or total, strict=True):
        either = b.fcmp_unordered("uno", x, y)
        nan = either if nan is None else b.or_(nan, either)
    with code.when(code.of(b.bitcast(nan, ir.IntType(n))) != 0, likely=False):
        for value, place in zip(total, places, strict=True):
            bits = b.bitcast(value, vector(I32, n))
            canonical = constant_vector(I32, [0x7FC00000] * n)
            code.store(b.select(b.fcmp_unordered("uno", value, value), canonical, bits), place, 4)


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
