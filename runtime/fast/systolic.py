"""Systolic commands in compiled code: the handlers, which check a command and put it into its warp's ring.

`runtime/systolic.py` is the specification, and reads better. `groups.py` executes what is in the ring.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from knapper.isa.instructions import LSMA, SMA_LDB, SMA_SWAP
from knapper.isa.modifiers import Space, Start
from knapper.isa.systolic import QUEUE, WORD

from ..faults import READS, TOLD, WRITES, Kind, access
from . import accesses
from .emit import FULL, I32, I64, Code, Num, Struct
from .groups import DRAIN, pend
from .layout import BARRIER, COMMAND, CONTEXT
from .moves import counter
from .queues import COMMIT, LDB, PRODUCTS, SWAP, closed, columns_of, entry, fault, ring, rows_of
from .shadows import CLAIM, LOOK
from .trace import TraceWarp


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


def put(command: Struct, **fields: Num | int) -> None:
    """Write a command; what is not said is 0."""
    for name in COMMAND.names or ():
        value = fields.get(name, 0)
        command.set(name, value if isinstance(value, Num) else int(value))


def origin(m: TraceWarp, i: Any) -> Num:
    """Where a command's first row is."""
    return m.uniform_word(i.base) + m.record.get("slot", m.variant.slots["offset"])


def ldb(m: TraceWarp, i: SMA_LDB) -> None:
    """SMA.LDB joins the queue."""
    address = origin(m, i)
    with joining(m) as (queue, command):
        pitch = m.record.get("slot", m.variant.slots["pitch"])
        put(command, kind=LDB, type=i.type.number, units=i.units, first=address, pitch=pitch)
        send(m, queue, command)


def swap(m: TraceWarp, i: SMA_SWAP) -> None:
    """SMA.SWAP joins the queue."""
    with joining(m) as (queue, command):
        put(command, kind=SWAP, units=i.units)
        queue.open = queue.open + 1


def lsma(m: TraceWarp, i: LSMA) -> None:
    """LSMA joins the queue."""
    c = m.uniform_scalar(i.c) if i.space is Space.ACC else m.slot(i.c.payload)[0]
    address = origin(m, i)
    with joining(m) as (queue, command):
        put(
            command, kind=PRODUCTS, type=i.type.number, units=i.units, m=i.m, first=address, c=c,
            fresh=int(i.start is Start.SET), space=i.space, pitch=m.record.get("slot", m.variant.slots["pitch"]),
            steps=m.state.array_rows,
        )  # fmt: skip
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
        call(m, "visit", LOOK, command.pointer)
    total = counter(code, state, m.record.pointer)
    total.smem_read = total.smem_read + (rows * size).wide()
    with code.when((state.timing != 0) & (state.vector_bytes != 0)):
        words = (rows * size + state.vector_bytes - 1) // state.vector_bytes
        accesses.add(code, state, m.record.pointer, "vector_reads", words)
    take(m, queue, command)


def take(m: TraceWarp, queue: Struct, command: Struct) -> None:
    """A command that nothing is wrong with."""
    code, state = m.code, m.state
    with code.when(command.space == int(Space.ACC)):
        sums_inside(code, state, command)
    queue.open = queue.open + 1
    pend(code, state, command, 1)
    if m.checked:
        m.require("checked.systolic.claim")
        one = ir.Constant(I32, 1)
        code.call("checked.systolic.claim", CLAIM, state.pointer, command.pointer, one)


def sums_inside(code: Code, state: Struct, command: Struct) -> None:
    """C in accumulator memory lies inside it."""
    size = (command.m * columns_of(state, command)).wide() * WORD
    start = command.c.wide() * WORD
    with code.when(start + size > state.accumulator_bytes.wide(), likely=False):
        told = code.b.select((size < TOLD).value, size.value, code.num(TOLD, I64).value)
        aux = code.of(told).low() << 8 | access("accumulator", 0, WRITES)
        fault(code, state, Kind.OUTSIDE, 0, start, aux)


def commit(m: TraceWarp, i: Any) -> None:
    """SMA.COMMIT ends a group."""
    with joining(m) as (queue, command):
        put(command, kind=COMMIT)
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
