"""Commands that work on vector memory, as they are sent: CONVDESC, FILL.DUP, DMA.LD, IM2COL.PUSH. `copies.py` and `patches.py` execute them.

`runtime/systolic.py` and `runtime/vector_memory.py` are the specification, and read better.
"""

from __future__ import annotations

from knapper.isa.dma import LINE
from knapper.isa.instructions import CONVDESC, DMA_LD, FILL_DUP, IM2COL_PUSH
from knapper.isa.modifiers import Space, Start
from knapper.isa.systolic import VECTOR
from knapper.isa.vector_memory import MOST, REGISTERS, Broken, Layout, contradictions, given

from ..faults import READS, WRITES, Kind, access
from . import accesses
from .copies import FETCH
from .descriptors import clash, descriptor, me, refuse, use
from .emit import I64, Num, Struct
from .moves import counter
from .patches import larger, smaller, words_of_push
from .queues import COPY, FILL, PATCHES, fault
from .shadows import LOOK
from .systolic import call, joining, put, take, whole
from .trace import TraceWarp


def slot(m: TraceWarp, name: str) -> Num:
    """An immediate."""
    return m.record.get("slot", m.variant.slots[name])


def describe(m: TraceWarp, i: CONVDESC) -> None:
    """CONVDESC."""
    code, state = m.code, m.state
    words = [m.uniform_word(i.u + k).wide() for k in range(REGISTERS)]
    whole(m)
    number = slot(m, "cd")
    d = descriptor(code, state, number)
    with code.when(d.pending != 0, likely=False):
        fault(code, state, Kind.ASYNC_DESCRIPTOR, 0, number)
    if m.checked:
        clash(code, state, d.changers | d.users, number)
    fields, banks = given(words), state.array_rows.wide()
    layout = Layout.of(fields, code.num(1, I64), banks, VECTOR)
    limit = state.shared_bytes.wide()
    for rule, broken in enumerate(contradictions(fields, layout, banks, VECTOR, limit)):
        with code.when(broken, likely=False):
            fault(code, state, Kind.BAD_DESCRIPTOR, 0, rule)
    for name, value in (vars(fields) | vars(layout)).items():
        d.set(name, value)
    d.known, d.changers = 1, d.changers | me(code, state)


def fill(m: TraceWarp, i: FILL_DUP) -> None:
    """FILL.DUP joins the queue."""
    code, state = m.code, m.state
    first, rows, cd = m.uniform_word(i.v0), m.uniform_word(i.rows), slot(m, "cd")
    with joining(m) as (queue, command):
        d = use(m, cd)
        outside = (first.wide() + rows.wide() > d.stored) | (rows.wide() > d.ring)
        refuse(code, state, outside, Broken.FILL, first)
        put(command, kind=FILL, first=first, m=rows, cd=cd)
        words = rows.wide() * d.columns * d.blocks
        copied(m, command, words * d.word_bytes, d.t * words * d.bytes >> 1)
        take(m, queue, command)


def copy(m: TraceWarp, i: DMA_LD) -> None:
    """DMA.LD joins the queue."""
    code, state = m.code, m.state
    target = m.uniform_word(i.s) + slot(m, "offset")
    source = m.uniform_word(i.base).wide() | m.uniform_word(i.base + 1).wide() << 32
    size = m.uniform_scalar(i.bytes)
    with joining(m) as (queue, command):
        refuse(code, state, size % LINE != 0, Broken.SIZE, size)
        for address, told in ((target, access("shared", LINE, WRITES)), (source, access("global", LINE, READS))):  # fmt: skip
            with code.when(address & (LINE - 1) != 0, likely=False):
                fault(code, state, Kind.MISALIGNED, 0, address, told)
        limit = state.shared_bytes.wide()
        with code.when((size != 0) & (target.wide() + size.wide() > limit), likely=False):
            first = larger(code, target.wide(), limit // LINE * LINE)
            fault(code, state, Kind.OUTSIDE, 0, first, access("shared", LINE, WRITES))
        put(command, kind=COPY, first=target, m=size, source=source)
        word = state.vector_bytes
        copied(m, command, size.wide(), ((size + word - 1) // word).wide())
        take(m, queue, command)


def copied(m: TraceWarp, command: Struct, size: Num, accesses_: Num) -> None:
    """What a command that writes vector memory fetches, and what it counts."""
    code, state, record = m.code, m.state, m.record.pointer
    call(m, "bounds", LOOK, command.pointer)
    if m.checked:
        call(m, "declared", LOOK, command.pointer)
        call(m, "visit", LOOK, command.pointer)
    total = counter(code, state, record)
    total.smem_write = total.smem_write + size
    with code.when(state.timing != 0):
        accesses.add(code, state, record, "vector_writes", accesses_)
    m.require("systolic.fetched")
    code.call("systolic.fetched", FETCH, state.pointer, command.pointer, record)


def steps(m: TraceWarp, d: Struct, block: Num, s: Num) -> Num:
    """`ConvDesc.steps`"""
    banks = m.state.array_rows.wide()
    channels = smaller(m.code, banks, d.channels - block * banks)
    return (smaller(m.code, d.t, d.s - s) * channels).low()


def push(m: TraceWarp, i: IM2COL_PUSH) -> None:
    """IM2COL.PUSH joins the queue."""
    code, state, record = m.code, m.state, m.record.pointer
    c, tap = m.uniform_scalar(i.c), m.uniform_scalar(i.tap)
    first, rows, cd = m.uniform_word(i.m0), m.uniform_word(i.m), slot(m, "cd")
    size = i.type.lane.bits // 8
    with joining(m) as (queue, command):
        d = use(m, cd)
        refuse(code, state, d.bytes != size, Broken.TYPE, code.num(size))
        block, r, s = (tap >> 16).wide(), (tap >> 8 & 255).wide(), (tap & 255).wide()
        refuse(code, state, (block >= d.blocks) | (r >= d.r) | (s >= d.s), Broken.TAP, tap)
        outside = (first.wide() + rows.wide() > d.get("rows")) | (rows > MOST)
        refuse(code, state, outside, Broken.PUSH, first)
        put(
            command, kind=PATCHES, type=i.type.number, units=i.units, m=rows, first=first, c=c, cd=cd, tap=tap,
            fresh=int(i.start is Start.SET), space=Space.ACC, steps=steps(m, d, block, s),
        )  # fmt: skip
        if m.checked:
            call(m, "visit", LOOK, command.pointer)
        total = counter(code, state, record)
        total.smem_read = total.smem_read + (rows * state.array_rows).wide() * size
        with code.when(state.timing != 0):
            words = words_of_push(code, d, command) * size >> 1
            accesses.add(code, state, record, "vector_reads", words)
            accesses.add(code, state, record, "rows", rows)
        take(m, queue, command)
