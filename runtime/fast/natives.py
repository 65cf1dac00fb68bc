"""Handlers written by hand: memory and matrix instructions, where the last factor of speed is, and control flow.

A memory handler reads its operands in the order in which `execute` does, tries the case that kernels are full of (every lane active,
consecutive addresses), and leaves all others to a mover. The tests hold each equal to `execute` on the reference engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from knapper.isa.core import Instr
from knapper.isa.instructions import (
    HMMA,
    LDG,
    LDG_IM2COL,
    LDL,
    LDS,
    LDSM,
    STG,
    STL,
    STS,
    ULDC,
)
from knapper.isa.lanes import S32, U32, LaneType
from knapper.isa.program import BASE

from ..decode import ROW
from ..faults import READS, WRITES
from ..memory import SECTOR
from .algebra import Traced
from .emit import FULL, I8, I32, I64, Num, constant_vector, vector
from .matrix import hmma, ldsm
from .moves import add_requests, counter, gather_blocks, mover, scatter_blocks, touch
from .trace import TraceWarp

Native = Callable[[TraceWarp, Any], None]
IOTA = range(32)


def loaded(m: TraceWarp, d: int, type: LaneType, count: int, rows: Any) -> None:
    """Write rows that a mover left to the registers from d on, as words of `type`."""
    for i in range(count):
        word = Traced(m.algebra, m.code.load(m.code.at(rows, i * ROW), vector(I32), 64), U32)
        m.write(d + i, m.narrow(word, type))
    m.flush()


def stored(m: TraceWarp, s: int, type: LaneType, count: int) -> list[Any]:
    """The words of the registers from s on."""
    return [m.words_of(m.read(s + i, type))[0] for i in range(count)]


def lay(m: TraceWarp, words: list[Any]) -> Any:
    """Words as rows in memory, for a mover."""
    rows = m.code.stack(len(words) * ROW)
    for i, word in enumerate(words):
        m.code.store(word, m.code.at(rows, i * ROW), 64)
    return rows


def spill(m: TraceWarp, addresses: Any) -> Any:
    """64-bit addresses in memory, for a mover."""
    place = m.code.stack(256)
    m.code.store(addresses, place, 64)
    return place


class Place:
    """Where a memory instruction goes: a scalar start, and a 32-bit offset in each lane."""

    def __init__(self, m: TraceWarp, space: str, start: Num, lane: Any, size: int, use: int) -> None:
        self.m, self.space, self.start, self.lane, self.size, self.use = m, space, start, lane, size, use

    def addresses(self) -> Any:
        """One 64-bit address a lane."""
        b, code = self.m.code.b, self.m.code
        if self.space == "global":
            return b.add(code.splat(self.start.value), b.sext(self.lane, vector(I64)))
        return b.zext(b.add(code.splat(self.start.value), self.lane), vector(I64))

    def first(self) -> Num:
        """Lane 0's address."""
        lane = self.m.code.of(self.m.code.element(self.lane, 0))
        if self.space == "global":
            return self.start + lane.wide(signed=True)
        return (self.start + lane).wide()

    def quick(self) -> Num:
        """Whether the fast path serves."""
        return self.uniform() if self.space == "local" else self.consecutive()

    def consecutive(self) -> Num:
        """Whether all lanes are active and their accesses lie side by side, aligned, inside their space."""
        code, b = self.m.code, self.m.code.b
        first, lane = self.first(), code.element(self.lane, 0)
        step = b.add(code.splat(lane), constant_vector(I32, [i * self.size for i in IOTA]))
        fine = (self.m.mask == FULL) & (code.bits(b.icmp_unsigned("==", self.lane, step)) == FULL)
        fine = fine & (first & (self.size - 1) == 0)
        end = first + 32 * self.size
        if self.space == "global":  # as signed offsets they must not wrap either
            low = self.m.state.writable if self.use == WRITES else code.num(BASE, I64)
            unwrapped = code.of(b.icmp_signed("<=", lane, ir.Constant(I32, (1 << 31) - 1 - 31 * self.size)))
            return fine & unwrapped & (first >= low) & (end <= self.m.state.memory_end)
        return fine & (end <= self.m.state.shared_bytes.wide())

    def uniform(self) -> Num:
        """Local memory: whether all lanes are active at the same aligned address inside."""
        code, b = self.m.code, self.m.code.b
        first = self.first()
        same = code.bits(b.icmp_unsigned("==", self.lane, code.splat(code.element(self.lane, 0)))) == FULL
        inside = first + self.size <= self.m.state.local_bytes.wide()
        return (self.m.mask == FULL) & same & (first & (self.size - 1) == 0) & inside

    def host(self, base: str) -> Any:
        return self.m.code.at(self.m.state.pointer_to(base), self.first())

    def count(self) -> None:
        """The counters of 32 consecutive accesses."""
        m, size = self.m, self.size
        if self.space != "global":
            column = "local" if self.space == "local" else ("smem_read", "smem_write")[self.use]
            total = counter(m.code, m.state, m.record.pointer)
            total.set(column, total.get(column) + 32 * size)
            return
        shift = SECTOR.bit_length() - 1
        first, last = self.first() >> shift, (self.first() + 32 * size - 1) >> shift
        add_requests(m.code, m.state, m.record.pointer, self.use, (last - first + 1).low())
        self.touch_range(first, last)

    def touch_range(self, first: Num, last: Num) -> None:
        """Mark consecutive sectors: one look tells whether they all were marked before."""
        code, b, count = self.m.code, self.m.code.b, max(self.size, 1)
        place = code.at(self.m.state.pointer_to(("touched_read", "touched_write")[self.use]), first)
        epoch = self.m.state.get("epoch").low(I8).value
        seen = b.icmp_unsigned("!=", code.load(place, vector(I8, count)), code.splat(epoch, count))
        fresh = code.of(b.bitcast(seen, ir.IntType(count)) if count > 1 else b.extract_element(seen, ir.Constant(I32, 0))) != 0
        with code.when(fresh | (last - first >= count), likely=False), code.each(last - first + 1) as i:
            touch(code, self.m.state, self.use, first + i)


def load(m: TraceWarp, i: Any, place: Place, mask: Num | None = None) -> None:
    """Bring a `width` to the registers from i.d on; lanes outside `mask` get zeros."""
    code, size, words = m.code, i.width.bytes, i.width.words
    if mask is not None or m.checked:
        return slow_load(m, i, place, m.mask if mask is None else mask)
    if place.space == "local" and size < 4:
        return slow_load(m, i, place, m.mask)
    with code.either(place.quick()) as (fast, slow):
        with fast:
            for n, row in enumerate(fast_local_rows(place, words) if place.space == "local" else fast_rows(place)):
                code.store(extended(m, row, i.width.lane), m.row(i.d + n), 64)
            place.count()
        with slow:
            slow_load(m, i, place, m.mask)
    return None


def slow_load(m: TraceWarp, i: Any, place: Place, mask: Num) -> None:
    """By a mover, whatever the addresses are."""
    words = i.width.words
    rows = m.code.stack(words * ROW)
    m.move(mover("load", place.space, i.width.bytes, m.checked), mask, spill(m, place.addresses()), rows)
    loaded(m, i.d, i.width.lane, words, rows)


def extended(m: TraceWarp, row: Any, type: LaneType) -> Any:
    """A row of narrow elements as words."""
    if type.bits == 32:
        return row
    return (m.code.b.sext if type.kind == "s" else m.code.b.zext)(row, vector(I32))


def fast_rows(place: Place) -> list[Any]:
    """32 consecutive elements as rows."""
    code, size = place.m.code, place.size
    host = place.host("memory" if place.space == "global" else "shared")
    if size == 16:
        halves = [gather_blocks(code, [code.at(host, 16 * i) for i in range(h, h + 16)]) for h in (0, 16)]
        return [code.shuffle(a, b, IOTA) for a, b in zip(*halves, strict=True)]
    if size == 8:
        pairs = [code.load(code.at(host, 128 * h), vector(I32, 32), 8) for h in (0, 1)]
        return [code.shuffle(pairs[0], pairs[1], range(w, 64, 2)) for w in (0, 1)]
    return [code.load(host, vector(ir.IntType(8 * size)), size)]


def fast_local_rows(place: Place, words: int) -> list[Any]:
    """One local address in all lanes: words of all lanes side by side."""
    code = place.m.code
    host = code.at(place.m.state.pointer_to("local"), place.first() << 5)
    return [code.load(code.at(host, w * ROW), vector(I32), 64) for w in range(words)]


def store(m: TraceWarp, i: Any, place: Place) -> None:
    """Bring the registers from i.s on to memory."""
    code, size, words = m.code, i.width.bytes, stored(m, i.s, i.width.lane, i.width.words)
    name = mover("store", place.space, size, m.checked)
    if m.checked or (place.space == "local" and size < 4):
        m.move(name, m.mask, spill(m, place.addresses()), lay(m, words))
        return
    with code.either(place.quick()) as (fast, slow):
        with fast:
            if place.space == "local":
                host = code.at(m.state.pointer_to("local"), place.first() << 5)
                for w, word in enumerate(words):
                    code.store(word, code.at(host, w * ROW), 64)
            else:
                fast_store(place, words)
            place.count()
        with slow:
            m.move(name, m.mask, spill(m, place.addresses()), lay(m, words))


def fast_store(place: Place, words: list[Any]) -> None:
    """Rows as 32 consecutive elements."""
    code, size = place.m.code, place.size
    host = place.host("memory" if place.space == "global" else "shared")
    if size == 16:
        for h in (0, 16):
            part = [code.shuffle(w, w, range(h, h + 16)) for w in words]
            scatter_blocks(code, part, [code.at(host, 16 * n) for n in range(h, h + 16)])
    elif size == 8:
        for h in (0, 1):
            mixed = [n + 32 * w for n in range(16 * h, 16 * h + 16) for w in (0, 1)]
            code.store(code.shuffle(words[0], words[1], mixed), code.at(host, 128 * h), 8)
    else:
        element = vector(ir.IntType(8 * size))
        code.store(words[0] if size == 4 else code.b.trunc(words[0], element), host, size)


# --- addresses, as in isa/base/memory.py


def global_place(m: TraceWarp, i: Any, use: int) -> Place:
    """A uniform 64-bit base and an offset."""
    lane = m.read(i.a, S32).v
    base = m.uniform_word(i.base).wide() | m.uniform_word(i.base + 1).wide() << 32
    return Place(m, "global", base + offset(m, i).wide(signed=True), lane, i.width.bytes, use)


def shared_place(m: TraceWarp, i: Any, use: int) -> Place:
    """A uniform 32-bit base and an offset; wraps."""
    base = m.uniform_word(i.base)
    lane = m.read(i.a, U32).v
    return Place(m, "shared", base + offset(m, i), lane, i.width.bytes, use)


def local_place(m: TraceWarp, i: Any, use: int) -> Place:
    """An offset."""
    return Place(m, "local", offset(m, i), m.read(i.a, U32).v, i.width.bytes, use)


def offset(m: TraceWarp, i: Any) -> Num:
    """The record's offset."""
    return m.record.get("slot", m.variant.slots["offset"])


def im2col(m: TraceWarp, i: Any) -> None:
    """LDG.IM2COL: the lanes inside the image load."""
    place = global_place(m, i, READS)
    inside = i.inside(m)
    load(m, i, place, m.mask & m.code.bits(inside.v))


def uldc(m: TraceWarp, i: Any) -> None:
    """ULDC: one address for all lanes."""
    words = i.width.lane.bits // 32
    address = offset(m, i).wide()
    rows = m.code.stack(words * ROW)
    m.move(mover("load", "param", 4 * words), m.code.num(FULL), spill(m, m.code.splat(address.value)), rows)
    for w in range(words):
        value = m.code.load(m.code.at(rows, w * ROW), vector(I32), 64)
        m.set_uniform(i.d + w, Traced(m.algebra, m.code.splat(m.code.element(value, 0)), U32))


NATIVE: dict[type[Instr], Native] = {
    LDG: lambda m, i: load(m, i, global_place(m, i, READS)),
    STG: lambda m, i: store(m, i, global_place(m, i, WRITES)),
    LDS: lambda m, i: load(m, i, shared_place(m, i, READS)),
    STS: lambda m, i: store(m, i, shared_place(m, i, WRITES)),
    LDL: lambda m, i: load(m, i, local_place(m, i, READS)),
    STL: lambda m, i: store(m, i, local_place(m, i, WRITES)),
    LDG_IM2COL: im2col,
    ULDC: uldc,
    LDSM: ldsm,
    HMMA: hmma,
}
