"""Products of condensed vectors: SPWMMA and OHMMA by hand.

The values of a column of A and a row of B are spread out to 32 lanes each. A column of C, 32 sums side by side, then takes a multiply-add for each
bit of B, in which the bits of A are the mask:

    A's values a0 a1 a2 ─┬─ bits 0b…1011 ─▶ a0 a1 ·  a2 ·  …       32 lanes: rows
    B's values b0 b1    ─┴─ bits 0b…0110 ─▶ ·  b0 b1 ·  …          scratch: columns
                                               C[:, 1] += b0 · A     where A has a bit
                                               C[:, 2] += b1 · A

If both runs of all 32 vectors lie inside shared memory, values are spread straight from there. Else, and in the checked engine, and for an
OHMMA's part of a vector, they are loaded lane by lane as `execute` does, by a mover, which finds the fault.

For timing every SPWMMA is an event of the warp's path: `paths.WORK`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from knapper.isa.lanes import LaneType
from knapper.isa.sparse import COLUMNS, PASS, ROWS, STEPS, TILE, WORDS
from knapper.isa.systolic import WORD

from ..decode import ROW
from ..faults import WRITES, Kind, access
from ..paths import EVENT, MOST, WORK
from . import accesses
from .emit import FLOAT, FULL, I16, I32, I64, PTR, Code, Num, Struct, constant_vector, vector
from .layout import CONTEXT, FAULT, STATE
from .matrix import multiply_add, quiet, single
from .moves import counter, mover
from .trace import TraceWarp

EVENT_UNIT = "event"
RECORD_EVENT = ir.FunctionType(I32, [PTR, I32, I32])
"""status event(state, pc, next): an event of the path of the warp that runs."""
BANK_CYCLES = ir.FunctionType(I32, [PTR, I32])
"""cycles bank_cycles(bitmaps, window): `timing.banks`."""
IOTA = range(TILE)


def spwmma(m: TraceWarp, i: Any) -> None:
    """SPWMMA."""
    code, c = m.code, prepared(m, i)
    bitmaps = code.load(m.row(i.bm), vector(I32), 64)
    issued, values = work(m, bitmaps)
    if m.checked:
        slowly(m, i, c)
    else:
        with code.either(inside(m, i, bitmaps), likely=True) as (fast, slow):
            with fast:
                quickly(m, i, c, values)
            with slow:
                slowly(m, i, c)
    settle(m, c)
    with code.when(m.state.timing != 0):
        cycles = bank_cycles(m, m.row(i.bm), bitmaps, issued)
        passes = (values + (PASS - 1)) >> (PASS.bit_length() - 1)
        event(m, (passes << 24) | (cycles << 8) | issued | WORK)


def ohmma(m: TraceWarp, i: Any) -> None:
    """OHMMA."""
    code, c = m.code, prepared(m, i)
    slot, slots = m.record.get, m.variant.slots
    k, first, second = (slot("slot", slots[n]) for n in ("k", "i", "j"))
    with untimed(m):
        a = Part(m, i, k, first * ROWS, ROWS).loaded()
        b = Part(m, i, k + STEPS, second * COLUMNS, COLUMNS).loaded()
    step(m, i.type.lane, c, a, b)
    settle(m, c)
    add(m, "ohmma", code.num(1))
    add(m, "products", a[1].popcount() * b[1].popcount())


def prepared(m: TraceWarp, i: Any) -> Any:
    """What `execute` asks first, in its order; where the tile lies."""
    code = m.code
    with code.when(m.mask != FULL, likely=False):
        m.fault(Kind.WARP_SPLIT, (~m.mask).lowest())
    start = m.uniform_scalar(i.c).wide() * WORD
    aux, size = access("accumulator", WORD * WORDS, WRITES), WORD * WORDS
    with code.when(start & (size - 1) != 0, likely=False):
        m.fault(Kind.MISALIGNED, 0, start, aux)
    with code.when(start + size > m.state.accumulator_bytes.wide(), likely=False):
        m.fault(Kind.OUTSIDE, 0, start, aux)
    if m.checked:
        with code.each(code.num(TILE)) as j:
            lanes = constant_vector(I64, [WORD * n for n in IOTA])
            column = code.splat((start + j.wide() * (WORD * TILE)).value)
            place, rows = code.stack(8 * TILE), code.stack(ROW)
            code.store(code.b.add(column, lanes), place, 64)
            m.move(mover("load", "accumulator", WORD, True), m.mask, place, rows)
        for number in (i.start, i.start + 1, i.bm):
            m.word(number)
    return code.at(m.state.pointer_to("accumulators"), start)


def inside(m: TraceWarp, i: Any, bitmaps: Any) -> Num:
    """Whether both runs of every vector are aligned and inside."""
    code, b = m.code, m.code.b
    head, tail = (code.load(m.row(i.start + w), vector(I32), 64) for w in (0, 1))
    count = code.intrinsic("llvm.ctpop", vector(I32), [bitmaps])
    split = b.lshr(head, all_(24))
    first = code.intrinsic("llvm.umin", vector(I32), [split, count])
    head = b.and_(head, all_((1 << 24) - 1))
    fine = code.num(FULL)
    for start, n in ((head, first), (tail, b.sub(count, first))):
        wide = b.zext(start, vector(I64))
        end = b.add(wide, b.shl(b.zext(n, vector(I64)), constant_vector(I64, [1] * TILE)))
        out = b.icmp_unsigned(">", end, code.splat(m.state.shared_bytes.wide().value))
        odd = b.icmp_unsigned("!=", b.and_(start, all_(1)), all_(0))
        some = b.icmp_unsigned("!=", n, all_(0))
        fine = fine & ~code.bits(b.and_(some, b.or_(out, odd)))
    return fine == FULL


def quickly(m: TraceWarp, i: Any, c: Any, values: Num) -> None:
    """All steps, values spread straight from shared memory. `values`: how many take part."""
    code = m.code
    shared = m.state.pointer_to("shared")
    rows = [m.row(i.start), m.row(i.start + 1), m.row(i.bm)]
    total = counter(code, m.state, m.record.pointer)
    total.smem_read = total.smem_read + values.wide() * 2
    with code.each(code.num(STEPS)) as k:
        a, b = (word(code, rows[2], n) for n in (k, k + STEPS))
        with code.when((a != 0) & (b != 0), likely=True):
            sides = [
                (spread(m, shared, word(code, rows[0], n), word(code, rows[1], n), bits), bits)
                for n, bits in ((k, a), (k + STEPS, b))
            ]
            step(m, i.type.lane, c, *sides)


def word(code: Code, row: Any, n: Num) -> Num:
    """Lane n of a row of registers."""
    return code.of(code.load(code.at(row, n * WORD), I32, 4))


def spread(m: TraceWarp, shared: Any, head: Num, tail: Num, bits: Num) -> Any:
    """The values of a vector at the places of their bits: of the first run at the lowest ones. [32] of 16 bits"""
    code, b = m.code, m.code.b
    split = code.of(code.intrinsic("llvm.umin", I32, [(head >> 24).value, code.num(TILE).value]))
    low = ((code.num(1, I64) << split.wide()) - 1).low()
    first = deposited(m, low, bits)
    places = [
        code.at(shared, (head & ((1 << 24) - 1)).wide()),
        code.at(shared, tail.wide()),
    ]
    nothing = constant_vector(I16, [0] * TILE)
    parts = [
        code.intrinsic(
            "llvm.masked.expandload",
            vector(I16),
            [place, code.lane_mask(mask), nothing],
            [vector(I16)],
        )
        for place, mask in zip(places, (first, bits & ~first), strict=True)
    ]
    return b.or_(*parts)


def deposited(m: TraceWarp, low: Num, bits: Num) -> Num:
    """The bits of `bits` whose rank's bit in `low` is set; `low` is a run of ones from bit 0."""
    code, b = m.code, m.code.b
    if "bmi2" in m.algebra.features:
        type = ir.FunctionType(I32, [I32, I32])
        return code.of(code.call("llvm.x86.bmi.pdep.32", type, low.value, bits.value))
    least = b.icmp_unsigned("<", ranks(code, bits), code.splat(low.popcount().value))
    return code.bits(least) & bits


def ranks(code: Code, bits: Num) -> Any:
    """How many bits lie below each lane's. [32]"""
    below = constant_vector(I32, [(1 << n) - 1 for n in IOTA])
    return code.intrinsic("llvm.ctpop", vector(I32), [code.b.and_(code.splat(bits.value), below)])


Side = tuple[Any, Num]
"""A vector at its places, [32] of 16 bits, and which places take part."""


def step(m: TraceWarp, type: LaneType, c: Any, a: Side, b: Side) -> None:
    """An outer product: the columns of C that b has take a multiply-add in the rows that a has."""
    code = m.code
    rows, mask = single(m.algebra, a[0], type), code.lane_mask(a[1])
    scratch = code.stack(WORD * TILE)
    code.store(single(m.algebra, b[0], type), scratch, 64)
    with code.lanes(b[1]) as j:
        column = code.at(c, j.wide() * (WORD * TILE))
        sums = code.load(column, vector(FLOAT), 64)
        one = code.splat(code.load(code.at(scratch, j.wide() * WORD), FLOAT, 4))
        total = multiply_add(m, type, rows, one, sums)
        code.store(code.b.select(mask, total, sums), column, 64)


def settle(m: TraceWarp, c: Any) -> None:
    """NaNs of the tile become the canonical one."""
    code = m.code
    places = [code.at(c, 64 * n) for n in range(WORDS // 16)]
    quiet(code, [code.load(p, vector(FLOAT, 16), 64) for p in places], places)


def slowly(m: TraceWarp, i: Any, c: Any) -> None:
    """All steps, values loaded lane by lane."""
    code, row = m.code, m.row(i.bm)
    with untimed(m), code.each(code.num(STEPS)) as k:
        a, b = (word(code, row, n) for n in (k, k + STEPS))
        with code.when((a != 0) & (b != 0)):
            sides = [Part(m, i, n).loaded() for n in (k, k + STEPS)]
            step(m, i.type.lane, c, *sides)


class Part:
    """Condensed values `first` … `first + most - 1` of vector n."""

    def __init__(
        self, m: TraceWarp, i: Any, n: Num, first: Num | None = None, most: int = TILE
    ) -> None:
        self.m, code = m, m.code
        self.head, self.tail, bits = (word(code, m.row(r), n) for r in (i.start, i.start + 1, i.bm))
        self.ranks = ranks(code, bits)
        self.bits = bits if first is None else bits & self.between(first, most)

    def between(self, first: Num, most: int) -> Num:
        """Lanes whose rank is meant."""
        code, b = self.m.code, self.m.code.b
        from_first = b.sub(self.ranks, code.splat(first.value))
        return code.bits(b.icmp_unsigned("<", from_first, all_(most)))

    def loaded(self) -> Side:
        """The values at their places."""
        m, code, b = self.m, self.m.code, self.m.code.b
        split = code.splat((self.head >> 24).value)
        twice = b.shl(self.ranks, all_(1))
        ahead = b.add(code.splat((self.head & ((1 << 24) - 1)).value), twice)
        behind = b.add(code.splat(self.tail.value), b.sub(twice, b.shl(split, all_(1))))
        address = b.select(b.icmp_unsigned("<", self.ranks, split), ahead, behind)
        place, rows = code.stack(8 * TILE), code.stack(ROW)
        code.store(b.zext(address, vector(I64)), place, 64)
        m.move(mover("load", "shared", 2, m.checked), self.bits, place, rows)
        return b.trunc(code.load(rows, vector(I32), 64), vector(I16)), self.bits


def all_(x: int) -> Any:
    """A number in every lane."""
    return constant_vector(I32, [x] * TILE)


# --- counters and events


def work(m: TraceWarp, bitmaps: Any) -> tuple[Num, Num]:
    """Count an SPWMMA's OHMMAs and products; the OHMMAs, and the values that take part (`sparse.Work`)."""
    code, b, half = m.code, m.code.b, vector(I32, STEPS)
    count = code.intrinsic("llvm.ctpop", vector(I32), [bitmaps])
    sides = [code.shuffle(count, count, range(n, n + STEPS)) for n in (0, STEPS)]
    sets = [
        b.lshr(
            b.add(side, constant_vector(I32, [n - 1] * STEPS)),
            constant_vector(I32, [n.bit_length() - 1] * STEPS),
        )
        for side, n in zip(sides, (ROWS, COLUMNS), strict=True)
    ]
    products, none = b.mul(*sides), constant_vector(I32, [0] * STEPS)
    values = b.select(b.icmp_unsigned("!=", products, none), b.add(*sides), none)
    issued, made, used = (
        code.of(code.intrinsic("llvm.vector.reduce.add", I32, [column], [half]))
        for column in (b.mul(*sets), products, values)
    )
    add(m, "ohmma", issued)
    add(m, "products", made)
    return issued, used


def add(m: TraceWarp, column: str, amount: Num) -> None:
    """Count."""
    accesses.add(m.code, m.state, m.record.pointer, column, amount)


@contextmanager
def untimed(m: TraceWarp) -> Iterator[None]:
    """The loads inside have no wavefronts of their own."""
    code, state, before = m.code, m.state, m.code.variable(0, I64)
    count = accesses.counter(code, state, m.record.pointer)
    before.x = count.wavefronts
    yield
    count.wavefronts = before.x


def event(m: TraceWarp, to: Num) -> None:
    """The instruction is an event; stop if there is no room for it."""
    m.require(EVENT_UNIT)
    arguments = [m.state.pointer, m.record.get("pc").value, to.value]
    status = m.code.of(m.code.call(EVENT_UNIT, RECORD_EVENT, *arguments))
    with m.code.when(status != 0, likely=False):
        m.code.give(status)


class Event:
    """The function `event` being written: `interpreter.Warp.record` for handlers."""

    def __init__(self, code: Code) -> None:
        self.code = code
        state, pc, to = code.arguments
        self.state, self.pc, self.to = Struct(code, STATE, state), code.of(pc), code.of(to)

    def write(self) -> None:
        code, pc, to = self.code, self.pc, self.to
        place = self.state.get("warp").wide() * CONTEXT.itemsize
        w = Struct(code, CONTEXT, code.at(self.state.pointer_to("warps"), place))
        with code.when(w.event != 0):
            last = Struct(code, EVENT, code.pointer(w.event))
            again = (last.pc == pc) & (last.get("next") == to) & (last.get("count") != MOST)
            with code.either(again) as (same, new):
                with same:
                    last.count = last.get("count") + 1
                with new:
                    with code.when(w.event == w.last_event, likely=False):
                        most = self.state.event_bytes // EVENT.itemsize - 1
                        self.state.fault_lane, self.state.fault_aux = 0, 0
                        self.state.fault_value = most.wide()
                        code.give(FAULT + Kind.PATH)
                    w.event = w.event + EVENT.itemsize
                    new_event = Struct(code, EVENT, code.pointer(w.event))
                    new_event.pc = pc
                    new_event.set("next", to)
                    new_event.set("count", 1)
        code.give(0)


def bank_cycles(m: TraceWarp, row: Any, bitmaps: Any, issued: Num) -> Num:
    """Cycles of the accumulation buffer's banks (`runtime.collector`); without a window, here."""
    code, cycles = m.code, m.code.variable(0)
    with code.either(m.state.collector_window == 0, likely=True) as (all, grouped):
        with all:
            busiest = most_accesses(code, bitmaps)
            both = [busiest.value, issued.value]
            cycles.x = code.of(code.intrinsic("llvm.umax", I32, both))
        with grouped:
            callee = _Pointed(m.state.pointer_to("bank_cycles"), BANK_CYCLES)
            cycles.x = code.of(code.b.call(callee, [row, m.state.collector_window.value]))
    return cycles.x


def most_accesses(code: Code, bitmaps: Any) -> Num:
    """The most that a bank has of all steps. Turned, a row of A is a bit a step, and so is a column of B: of two, ones in common are sums.

    A bank's four rows are one 64-bit word, each of its two columns four times in another.
    """
    b, wide = code.b, vector(I64, ROWS)
    a, c = (turned(code, bitmaps, n) for n in (0, STEPS))
    quads = range(0, TILE, ROWS)
    rows = b.bitcast(code.shuffle(a, a, [r + q for r in range(ROWS) for q in quads]), wide)
    columns = [
        b.bitcast(code.shuffle(c, c, [s for s in range(q, q + ROWS) for _ in quads]), wide)
        for q in quads
    ]
    most = constant_vector(I64, [0] * ROWS)
    for r in range(ROWS):
        row = code.splat(code.element(rows, r), ROWS)
        for near, far in zip(columns[:2], columns[2:], strict=True):
            sums = [code.intrinsic("llvm.ctpop", wide, [b.and_(row, x)]) for x in (near, far)]
            most = code.intrinsic("llvm.umax", wide, [most, b.add(*sums)])
    return code.of(code.intrinsic("llvm.vector.reduce.umax", I64, [most], [wide])).low()


def turned(code: Code, bitmaps: Any, first: int) -> Any:
    """16 bitmaps as 32 words of 16 bits."""
    b, none = code.b, constant_vector(I16, [0] * TILE)
    total = none
    for k in range(STEPS):
        mask = code.lane_mask(code.of(code.element(bitmaps, first + k)))
        total = b.or_(total, b.select(mask, constant_vector(I16, [1 << k] * TILE), none))
    return total


class _Pointed:
    """What `IRBuilder.call` needs of a function, for a pointer loaded at run time."""

    def __init__(self, pointer: Any, type: Any) -> None:
        self.pointer, self.function_type, self.type = pointer, type, pointer.type

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(self.function_type.args)

    def get_reference(self) -> str:
        return str(self.pointer.get_reference())
