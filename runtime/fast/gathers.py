"""TWDESC and GATHK.PUSH as they are sent. `kept.py` says what a list tells, and executes a push.

`runtime/systolic.py` and `runtime/vector_memory.py` are the specification, and read better.
"""

from __future__ import annotations

from knapper.isa import gather
from knapper.isa.instructions import GATHK_PUSH, TWDESC
from knapper.isa.modifiers import Space, Start
from knapper.isa.vector_memory import DESCRIPTORS, MOST, RULES, Broken

from ..faults import Kind
from . import accesses
from .descriptors import clash, descriptor, me, refuse, use
from .emit import I64, Num, Struct
from .kept import column, kept, run
from .moves import counter
from .patches import larger, smaller, words_of_push
from .queues import GATHERED, LIST, fault
from .shadows import LOOK
from .systolic import call, joining, put, take, whole
from .trace import TraceWarp
from .vectors import slot


def describe(m: TraceWarp, i: TWDESC) -> None:
    """TWDESC."""
    code, state = m.code, m.state
    words = [m.uniform_word(i.u + k).wide() for k in range(gather.REGISTERS)]
    number = (m.uniform_scalar(i.td) & (DESCRIPTORS - 1)) + DESCRIPTORS
    whole(m)
    d = descriptor(code, state, number)
    with code.when(d.pending != 0, likely=False):
        fault(code, state, Kind.ASYNC_DESCRIPTOR, 0, number)
    if m.checked:
        clash(code, state, d.changers | d.users, number)
    k_len, at = words[gather.WORDS["k_len"]], words[gather.WORDS["at"]]
    for rule, broken in enumerate(gather.contradictions(k_len, at, state.shared_bytes.wide())):
        with code.when(broken, likely=False):
            fault(code, state, Kind.BAD_DESCRIPTOR, 0, len(RULES) + rule)
    d.kept, d.at = k_len, at
    d.known, d.changers = 1, d.changers | me(code, state)


def push(m: TraceWarp, i: GATHK_PUSH) -> None:
    """GATHK.PUSH joins the queue."""
    code, state, record = m.code, m.state, m.record.pointer
    c, which = m.uniform_scalar(i.c), m.uniform_scalar(i.tap)
    first, rows, cd = m.uniform_word(i.m0), m.uniform_word(i.m), slot(m, "cd")
    size = i.type.lane.bits // 8
    with joining(m) as (queue, command):
        d = use(m, cd)
        refuse(code, state, which >= DESCRIPTORS << 16, Broken.KEPT, which)
        td, begin = (which >> 16) + DESCRIPTORS, (which & 0xFFFF).wide()
        tile = use(m, td)
        refuse(code, state, begin > tile.kept, Broken.KEPT, which)
        refuse(code, state, d.bytes != size, Broken.TYPE, code.num(size))
        outside = (first.wide() + rows.wide() > d.get("rows")) | (rows > MOST)
        refuse(code, state, outside, Broken.PUSH, first)
        steps = smaller(code, tile.kept - begin, state.array_rows.wide())
        put(
            command, kind=LIST, type=i.type.number, units=i.units, m=rows, first=first, c=c, cd=cd, td=td,
            fresh=int(i.start is Start.SET), space=Space.ACC, steps=steps.low(), pitch=begin.low(),
            source=tile.at + begin * gather.ENTRY.itemsize,
        )  # fmt: skip
        if m.checked:
            for name in ("visit", "operands"):
                call(m, name, LOOK, command.pointer)
        with code.each(command.steps) as j:
            row = kept(code, state, command, j)
            beyond = row >= d.r * d.s * d.channels
            refuse(code, state, beyond, Broken.ENTRY, row.low())
        command.kind = GATHERED
        if m.checked:
            call(m, "visit", LOOK, command.pointer)
        total = counter(code, state, record)
        each = rows.wide() * size + gather.ENTRY.itemsize
        total.smem_read = total.smem_read + each * steps
        with code.when(state.timing != 0):
            words = conflicts(m, d, command) * size >> 1
            accesses.add(code, state, record, "vector_reads", words)
            accesses.add(code, state, record, "rows", rows)
        take(m, queue, command)


def conflicts(m: TraceWarp, d: Struct, command: Struct) -> Num:
    """Words of the bank that is asked for most; banks are counted where a push turns words over."""
    code, state = m.code, m.state
    cell = 8
    with code.each(state.array_rows) as bank:
        place = code.at(state.pointer_to("turned"), bank.wide() * cell)
        code.store(code.num(0, I64).value, place, cell)
    j, most = code.variable(0), code.variable(0, I64)
    with code.loop(lambda: j.x < command.steps):
        end = run(code, state, command, j.x)
        words = words_of_push(code, d, command)
        with code.loop(lambda: j.x < end):
            _, bank = column(code, state, d, kept(code, state, command, j.x))
            place = code.at(state.pointer_to("turned"), bank * cell)
            asked = code.of(code.load(place, I64, cell)) + words
            code.store(asked.value, place, cell)
            most.x = larger(code, most.x, asked)
            j.x = j.x + 1
    return most.x
