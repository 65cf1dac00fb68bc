"""Handlers written by hand: memory and matrix instructions, where the last factor of speed is, and control flow.

A memory handler reads its operands in the order in which `execute` does, tries the case that kernels are full of (every lane active,
consecutive addresses in each half warp), and leaves all others to a mover. The tests hold each equal to `execute` on the reference engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from knapper.isa.core import Instr
from knapper.isa.instructions import (
    CONVDESC,
    DMA_LD,
    EXIT,
    FILL_DUP,
    GATHK_PUSH,
    HMMA,
    HMMA_F16,
    HMMA_SP,
    ILSMA,
    ILSMA_N,
    IM2COL_IPUSH,
    IM2COL_PUSH,
    IMMA,
    IMMA_4,
    ISMA_LDB,
    ISMA_LDB_N,
    LDG,
    LDG_IM2COL,
    LDG_IM2COL_FILL,
    LDL,
    LDS,
    LDSM,
    LSMA,
    MODE,
    OHMMA,
    OWMMA,
    SMA_COMMIT,
    SMA_LDB,
    SMA_SWAP,
    SMA_WAIT,
    SPWMMA,
    STG,
    STL,
    STS,
    TWDESC,
    ULDC,
)
from knapper.isa.lanes import S32, U32, LaneType, select
from knapper.isa.program import BASE

from ..counters import WORD
from ..decode import ROW
from ..faults import READS, WRITES
from ..memory import SECTOR
from . import accesses, gathers, sparse, systolic, vectors
from .algebra import Traced
from .emit import FULL, I1, I8, I32, I64, Num, constant_vector, vector
from .integer_matrix import imma
from .matrix import hmma, hmma_f16, hmma_sp, ldsm
from .moves import (
    BASES,
    LIMITS,
    add_requests,
    counter,
    gather_blocks,
    mover,
    scatter_blocks,
    touch,
    untold,
)
from .trace import TraceWarp

Native = Callable[[TraceWarp, Any], None]
IOTA, HALF = range(32), 16
SECTORS = 32 * WORD // SECTOR
"""Sectors that hold a word of each lane's local memory."""


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

    def __init__(
        self, m: TraceWarp, space: str, start: Num, lane: Any, size: int, use: int
    ) -> None:
        self.m, self.space, self.start, self.lane, self.size, self.use = (
            m,
            space,
            start,
            lane,
            size,
            use,
        )

    def addresses(self) -> Any:
        """One 64-bit address a lane."""
        b, code = self.m.code.b, self.m.code
        if self.space == "global":
            return b.add(code.splat(self.start.value), b.sext(self.lane, vector(I64)))
        return b.zext(b.add(code.splat(self.start.value), self.lane), vector(I64))

    def at(self, lane: int) -> Num:
        """A lane's address, 64 bits."""
        offset = self.m.code.of(self.m.code.element(self.lane, lane))
        if self.space == "global":
            return self.start + offset.wide(signed=True)
        return (self.start + offset).wide()

    def quick(self) -> Num:
        """Whether the fast path serves."""
        return self.one() if self.space == "local" else self.runs()

    def runs(self) -> Num:
        """Whether all lanes are active and each half warp's accesses lie side by side, aligned, inside their space."""
        code, b, size = self.m.code, self.m.code.b, self.size
        heads = code.shuffle(self.lane, self.lane, [i // HALF * HALF for i in IOTA])
        expected = b.add(heads, constant_vector(I32, [i % HALF * size for i in IOTA]))
        fine = (self.m.mask == FULL) & (
            code.bits(b.icmp_unsigned("==", self.lane, expected)) == FULL
        )
        for head in (0, HALF):
            fine = fine & self.inside(head, HALF * self.size)
        return fine

    def one(self) -> Num:
        """Whether all lanes are active at the same aligned address inside."""
        return (self.m.mask == FULL) & self.same() & self.inside(0, self.size)

    def inside(self, head: int, span: int) -> Num:
        """Whether `span` bytes from a lane's address on are aligned and inside."""
        code, b = self.m.code, self.m.code.b
        first = self.at(head)
        fine = first & (self.size - 1) == 0
        if self.space != "global":
            return fine & (first + span <= self.m.state.get(LIMITS[self.space]).wide())
        low = self.m.state.writable if self.use == WRITES else code.num(BASE, I64)
        # as signed offsets they must not wrap either
        highest = ir.Constant(I32, (1 << 31) - span)
        unwrapped = code.of(b.icmp_signed("<=", code.element(self.lane, head), highest))
        return fine & unwrapped & (first >= low) & (first + span <= self.m.state.memory_end)

    def same(self) -> Num:
        """Whether all lanes have one address."""
        code, b = self.m.code, self.m.code.b
        return (
            code.bits(b.icmp_unsigned("==", self.lane, code.splat(code.element(self.lane, 0))))
            == FULL
        )

    def host(self, head: int) -> Any:
        """Where the run that begins with a lane lies."""
        return self.m.code.at(self.m.state.pointer_to(BASES[self.space]), self.at(head))

    def count(self) -> None:
        """The counters of two runs."""
        m = self.m
        with m.code.when(m.state.timing != 0):
            self.time()
        if self.space != "global":
            return self.count_bytes()
        spans = self.spans()
        requests = [last - first + 1 for first, last in spans]
        joined = (spans[0][1] == spans[1][0]).flag(I64)
        add_requests(
            m.code, m.state, m.record.pointer, self.use, (requests[0] + requests[1] - joined).low()
        )
        with untold(m.code, m.state, self.use):
            for first, last in spans:
                self.touch_range(first, last)
        return None

    def count_bytes(self) -> None:
        """The bytes that all lanes move."""
        m = self.m
        column = "local" if self.space == "local" else ("smem_read", "smem_write")[self.use]
        total = counter(m.code, m.state, m.record.pointer)
        total.set(column, total.get(column) + 32 * self.size)

    def spans(self) -> list[tuple[Num, Num]]:
        """The first and the last sector of each run."""
        shift, last = SECTOR.bit_length() - 1, HALF * self.size - 1
        return [(self.at(h) >> shift, (self.at(h) + last) >> shift) for h in (0, HALF)]

    def time(self) -> None:
        """What timing needs to know of two runs."""
        m, size = self.m, self.size
        if self.space == "local":
            self.add("sectors", SECTORS * accesses.phases(size))
        elif self.space == "shared":
            a, b, bytes = self.at(0), self.at(HALF), HALF * size
            alone = size > WORD  # a run is a phase
            self.add("wavefronts", size // WORD if alone else accesses.of_two_runs(a, b, bytes))
        elif self.use == READS:
            least = max(HALF * size // SECTOR, 1)
            for first, last in self.spans():
                accesses.fetch_range(m.code, m.state, first, last, least)

    def time_one(self) -> None:
        """What timing needs to know of one address in all lanes."""
        m = self.m
        if self.space == "shared":
            self.add("wavefronts", accesses.phases(self.size))
        elif self.use == READS:
            sector = self.at(0) >> SECTOR.bit_length() - 1
            accesses.fetch_range(m.code, m.state, sector, sector, 1)

    def add(self, column: str, amount: Num | int) -> None:
        accesses.add(self.m.code, self.m.state, self.m.record.pointer, column, amount)

    def count_one(self) -> None:
        """The counters of one address in all lanes."""
        with self.m.code.when(self.m.state.timing != 0):
            self.time_one()
        if self.space != "global":
            return self.count_bytes()
        add_requests(self.m.code, self.m.state, self.m.record.pointer, self.use, self.m.code.num(1))
        with untold(self.m.code, self.m.state, self.use):
            touch(self.m.code, self.m.state, self.use, self.at(0) >> SECTOR.bit_length() - 1)
        return None

    def touch_range(self, first: Num, last: Num) -> None:
        """Mark consecutive sectors: one look tells whether they all were marked before."""
        code, b, count = self.m.code, self.m.code.b, -(-HALF * self.size // SECTOR) + 1
        place = code.at(self.m.state.pointer_to(("touched_read", "touched_write")[self.use]), first)
        epoch = self.m.state.get("epoch").low(I8)
        fresh = code.num(0, I1)
        if count > 2:
            seen = b.icmp_unsigned(
                "!=", code.load(place, vector(I8, count - 1)), code.splat(epoch.value, count - 1)
            )
            fresh = code.of(b.bitcast(seen, ir.IntType(count - 1))) != 0
        else:
            fresh = code.of(code.load(place, I8)) != epoch
        tail = (
            code.of(
                code.load(
                    code.at(
                        self.m.state.pointer_to(("touched_read", "touched_write")[self.use]), last
                    ),
                    I8,
                )
            )
            != epoch
        )
        with code.when(fresh | tail, likely=False), code.each(last - first + 1) as i:
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
            for n, row in enumerate(
                fast_local_rows(place, words) if place.space == "local" else fast_rows(place)
            ):
                code.store(extended(m, row, i.width.lane), m.row(i.d + n), 64)
            place.count()
        with slow:
            if place.space == "local":
                slow_load(m, i, place, m.mask)
            else:
                same_load(m, i, place)
    return None


def same_load(m: TraceWarp, i: Any, place: Place) -> None:
    """One address in all lanes: load once; else by a mover."""
    code, type = m.code, i.width.lane
    with code.either(place.one()) as (one, many):
        with one:
            for n in range(i.width.words):
                word = code.load(
                    code.at(place.host(0), 4 * n), ir.IntType(type.bits), type.bits // 8
                )
                code.store(extended(m, code.splat(word), type), m.row(i.d + n), 64)
            place.count_one()
        with many:
            slow_load(m, i, place, m.mask)


def slow_load(m: TraceWarp, i: Any, place: Place, mask: Num) -> None:
    """By a mover, whatever the addresses are."""
    words = i.width.words
    rows = m.code.stack(words * ROW)
    m.move(
        mover("load", place.space, i.width.bytes, m.checked),
        mask,
        spill(m, place.addresses()),
        rows,
    )
    loaded(m, i.d, i.width.lane, words, rows)


def extended(m: TraceWarp, row: Any, type: LaneType) -> Any:
    """A row of narrow elements as words."""
    if type.bits == 32:
        return row
    return (m.code.b.sext if type.kind == "s" else m.code.b.zext)(row, vector(I32))


def fast_rows(place: Place) -> list[Any]:
    """Two runs of 16 elements as rows."""
    code, size = place.m.code, place.size
    hosts = [place.host(h) for h in (0, HALF)]
    if size == 16:
        halves = [gather_blocks(code, [code.at(h, 16 * i) for i in range(HALF)]) for h in hosts]
        return [code.shuffle(a, b, IOTA) for a, b in zip(*halves, strict=True)]
    if size == 8:
        pairs = [code.load(h, vector(I32, 2 * HALF), 8) for h in hosts]
        return [code.shuffle(pairs[0], pairs[1], range(w, 64, 2)) for w in (0, 1)]
    parts = [code.load(h, vector(ir.IntType(8 * size), HALF), size) for h in hosts]
    return [code.shuffle(parts[0], parts[1], IOTA)]


def fast_local_rows(place: Place, words: int) -> list[Any]:
    """One local address in all lanes: words of all lanes side by side."""
    code = place.m.code
    host = code.at(place.m.state.pointer_to("local"), place.at(0) << 5)
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
                host = code.at(m.state.pointer_to("local"), place.at(0) << 5)
                for w, word in enumerate(words):
                    code.store(word, code.at(host, w * ROW), 64)
            else:
                fast_store(place, words)
            place.count()
        with slow:
            m.move(name, m.mask, spill(m, place.addresses()), lay(m, words))


def fast_store(place: Place, words: list[Any]) -> None:
    """Rows as two runs of 16 elements."""
    code, size = place.m.code, place.size
    for head in (0, HALF):
        host = place.host(head)
        part = [code.shuffle(w, w, range(head, head + HALF)) for w in words]
        if size == 16:
            scatter_blocks(code, part, [code.at(host, 16 * n) for n in range(HALF)])
        elif size == 8:
            mixed = [n + HALF * w for n in range(HALF) for w in (0, 1)]
            code.store(code.shuffle(part[0], part[1], mixed), host, 8)
        else:
            element = vector(ir.IntType(8 * size), HALF)
            code.store(part[0] if size == 4 else code.b.trunc(part[0], element), host, size)


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


def im2col_fill(m: TraceWarp, i: Any) -> None:
    """LDG.IM2COL.FILL: the same, then the lanes outside take the byte."""
    place = global_place(m, i, READS)
    inside, type = i.inside(m), i.width.lane
    load(m, i, place, m.mask & m.code.bits(inside.v))
    byte = m.record.get("slot", m.variant.slots["fill"])
    outside = Traced(m.algebra, m.code.splat(byte.value), U32) * 0x01010101
    for n in range(i.width.words):
        m.write(i.d + n, m.narrow(select(inside, m.read(i.d + n, U32), outside), type))


def uldc(m: TraceWarp, i: Any) -> None:
    """ULDC: one address for all lanes."""
    words = i.width.lane.bits // 32
    address = offset(m, i).wide()
    rows = m.code.stack(words * ROW)
    m.move(
        mover("load", "param", 4 * words),
        m.code.num(FULL),
        spill(m, m.code.splat(address.value)),
        rows,
    )
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
    LDG_IM2COL_FILL: im2col_fill,
    ULDC: uldc,
    LDSM: ldsm,
    HMMA: hmma,
    OWMMA: hmma,
    SPWMMA: sparse.spwmma,
    OHMMA: sparse.ohmma,
    HMMA_F16: hmma_f16,
    HMMA_SP: hmma_sp,
    IMMA: imma,
    IMMA_4: imma,
    EXIT: systolic.leave,
    MODE: systolic.switch,
    SMA_LDB: systolic.ldb,
    ISMA_LDB: systolic.ldb,
    ISMA_LDB_N: systolic.ldb,
    SMA_SWAP: systolic.swap,
    LSMA: systolic.lsma,
    ILSMA: systolic.lsma,
    ILSMA_N: systolic.lsma,
    SMA_COMMIT: systolic.commit,
    SMA_WAIT: systolic.wait,
    CONVDESC: vectors.describe,
    FILL_DUP: vectors.fill,
    DMA_LD: vectors.copy,
    IM2COL_PUSH: vectors.push,
    IM2COL_IPUSH: vectors.push,
    TWDESC: gathers.describe,
    GATHK_PUSH: gathers.push,
}
