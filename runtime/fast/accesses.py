"""What timing needs to know of memory accesses, counted in compiled code: bank conflicts, sectors, what a block reads first.

`counters.wavefronts` and its neighbours are the definition, and read better. Most accesses are told by a quick check. Handlers know that
theirs is one run of neighbours, or one address in all lanes; others ask

    passes wavefronts.16(addresses, mask)

A place is an access's width of shared memory, at least a word; a phase is as many lanes as a pass has places (32 words). Lanes that
want what their neighbour wants are left out; if each of the rest has its place's bank to itself, every phase is one pass. Only
else are places compared one by one.

Which sectors a block reads first is told by a map of stamps, a thread's own, and logged. Which block read them before is a question of
launch order, of which a thread knows nothing: `tally` answers it from the logs of all threads, sorted (`recording.Reads`).

All this stands behind a test of `State.timing`, which costs less than could be measured; a second set of handlers would double
what is compiled on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir

from knapper.isa.lanes import LANES

from ..counters import BANKS, ROW_WORDS, ROWS, WORD
from ..memory import SECTOR
from .emit import I32, I64, PTR, Code, Num, Require, Struct, constant_vector, vector
from .layout import PASSES

WAVEFRONTS = ir.FunctionType(I32, [PTR, I32])
"""passes wavefronts(addresses, mask): 32 64-bit addresses."""
TALLY = ir.FunctionType(I32, [PTR, PTR, I64, I64, I32])
"""0 tally(readers, gaps, begin, end, base): the map (biased), the counts, the log from an address to another, the mark of block 0."""
SHIFT = SECTOR.bit_length() - 1
ENTRY = 8
"""Bytes of the log's entries: a sector, and in the upper half which of it and those that follow it are meant."""
WIDE = 8
"""Sectors that an entry can mean."""


def counter(code: Code, state: Struct, record: Any) -> Struct:
    """The counters for timing of the instruction that runs; they exist while `timing` is set."""
    return Struct(code, PASSES, code.at(record, state.get("passes")))


def add(code: Code, state: Struct, record: Any, column: str, amount: Num | int) -> None:
    """Add to one of them."""
    total = counter(code, state, record)
    total.set(column, total.get(column) + (amount.wide() if isinstance(amount, Num) else amount))


# --- shared memory


def wavefronts(code: Code, require: Require, size: int, addresses: Any, mask: Num) -> Num:
    """Passes of an access whose addresses lie in memory, of `size` bytes a lane."""
    name = f"wavefronts.{max(size, WORD)}"
    require(name)
    return code.of(code.call(name, WAVEFRONTS, addresses, mask.value))


def phases(size: int) -> int:
    """Phases of an access by all lanes."""
    return max(size // WORD, 1)


def of_two_runs(first: Num, second: Num, bytes: int) -> Num:
    """Passes of an access of one phase whose lanes form two runs of `bytes`, at most 64, from two addresses.

    A run has a word a bank at most. Two words, one of each run, lie b − a apart, which takes every value from `low` to `high`; they are
    in one bank if it is a multiple of 32, and are not one word if it is not 0.
    """
    shift, code = WORD.bit_length() - 1, first.code
    (a, a_end), (b, b_end) = ((x >> shift, (x + bytes - 1) >> shift) for x in (first, second))
    low, high = b - a_end, b_end - a
    multiple = high & -BANKS
    inside = code.of(code.b.icmp_signed(">=", multiple.value, low.value))
    return ((multiple != 0) & inside).flag() + 1


class Wavefronts:
    """The function `wavefronts` being written."""

    def __init__(self, code: Code, width: int) -> None:
        self.code, self.group = code, BANKS * WORD // width
        """Lanes of a phase; places of a pass."""
        addresses, mask = code.arguments
        self.mask = code.of(mask)
        wide = code.load(addresses, vector(I64), 8)
        shift = constant_vector(I64, [width.bit_length() - 1] * LANES)
        self.places = code.b.trunc(code.b.lshr(wide, shift), vector(I32))

    def write(self) -> None:
        """Try the quick check, else compare."""
        code, starts = self.code, self.starts()
        with code.when(self.banks(starts).popcount() == starts.popcount(), likely=True):
            code.give(total(((self.mask & phase) != 0).flag() for phase in self.phases()))
        rows = code.stack(LANES * WORD)
        code.store(self.places, rows, 64)
        code.give(total(self.passes(rows, self.mask & phase) for phase in self.phases()))

    def phases(self) -> list[int]:
        """The lanes of each phase."""
        return [((1 << self.group) - 1) << p for p in range(0, LANES, self.group)]

    def starts(self) -> Num:
        """Active lanes that want another place than the lane before, if that is active and of their phase."""
        code, b = self.code, self.code.b
        before = code.shuffle(self.places, self.places, [0, *range(LANES - 1)])
        heads = sum(phase & -phase for phase in self.phases())
        other = code.bits(b.icmp_unsigned("!=", self.places, before))
        return self.mask & (other | ~(self.mask << 1) | heads)

    def banks(self, lanes: Num) -> Num:
        """The places' banks as bits, each phase's beside the one before."""
        code, b = self.code, self.code.b
        bank = b.and_(self.places, constant_vector(I32, [self.group - 1] * LANES))
        phase = constant_vector(I32, [i // self.group * self.group for i in range(LANES)])
        bits = b.shl(constant_vector(I32, [1] * LANES), b.or_(bank, phase))
        taken = b.select(code.lane_mask(lanes), bits, constant_vector(I32, [0] * LANES))
        return code.of(code.intrinsic("llvm.vector.reduce.or", I32, [taken], [taken.type]))

    def passes(self, rows: Any, lanes: Num) -> Num:
        """The most distinct places of a phase in one bank. Of lanes that want one place the first stands for all."""
        code, distinct, most = self.code, self.code.variable(0), self.code.variable(0)
        with code.lanes(lanes) as lane:
            same = self.equal(self.places, rows, lane, 0xFFFFFFFF) & lanes
            distinct.x = distinct.x | same & ~(same - 1)
        with code.lanes(distinct.x) as lane:
            rivals = self.equal(self.places, rows, lane, self.group - 1) & distinct.x
            both = [most.x.value, rivals.popcount().value]
            most.x = code.of(code.intrinsic("llvm.umax", I32, both))
        return most.x

    def equal(self, places: Any, rows: Any, lane: Num, bits: int) -> Num:
        """Lanes whose place is that of `lane`, in some bits."""
        code, b = self.code, self.code.b
        one = code.splat(code.load(code.at(rows, lane * WORD), I32, 4))
        apart = b.and_(b.xor(places, one), constant_vector(I32, [bits] * LANES))
        return code.bits(b.icmp_unsigned("==", apart, constant_vector(I32, [0] * LANES)))


def total(numbers: Iterable[Num]) -> Num:
    """Their sum."""
    first, *rest = numbers
    for n in rest:
        first = first + n
    return first


def row_wavefronts(code: Code, require: Require, origin: Num, pitch: Num) -> Num:
    """Passes of an LDSM."""
    passes = code.variable(ROWS * ROW_WORDS // BANKS)
    aligned = (origin & (WORD - 1)) == 0
    with code.when(~(aligned & (pitch == ROW_WORDS * WORD)), likely=False):
        b, place = code.b, code.stack(LANES * 8)
        row = constant_vector(I32, [i // ROW_WORDS for i in range(LANES)])
        word = constant_vector(I32, [i % ROW_WORDS * WORD for i in range(LANES)])
        passes.x = 0
        with code.each(code.num(ROWS * ROW_WORDS // BANKS)) as phase:
            start = origin + phase * (BANKS // ROW_WORDS) * pitch
            offset = b.add(b.mul(row, code.splat(pitch.value)), word)
            where = b.zext(b.add(code.splat(start.value), offset), vector(I64))
            code.store(where, place, 64)
            passes.x = passes.x + wavefronts(code, require, WORD, place, code.num(0xFFFFFFFF))
    return passes.x


# --- local memory


def local_sectors(code: Code, mask: Num, at: Callable[[Num], Num], size: int) -> Num:
    """Requests of an access; `at` gives a lane's address."""
    requests, last = code.variable(0), code.variable((1 << 64) - 1, I64)
    words = SECTOR // WORD
    with code.lanes(mask) as lane:
        this = (at(lane) >> WORD.bit_length() - 1) * (LANES // words) + (lane // words).wide()
        requests.x = requests.x + (this != last.x).flag()
        last.x = this
    return requests.x * phases(size)


# --- global memory


def fetched(code: Code, state: Struct, sector: Num) -> Any:
    """Where the map says which block read a sector last."""
    return code.at(state.pointer_to("fetched"), sector.wide() * 4)


def fetch(code: Code, state: Struct, sector: Num) -> None:
    """Log a sector if its block reads it for the first time."""
    place = fetched(code, state, sector)
    note(code, state, sector, (code.of(code.load(place, I32, 4)) != state.stamp).flag(I64))
    code.store(state.stamp.value, place, 4)


def fetch_lanes(code: Code, state: Struct, mask: Num, at: Callable[[Num], Num]) -> None:
    """Likewise of the sectors of some lanes."""
    with code.lanes(mask) as lane:
        fetch(code, state, at(lane) >> SHIFT)


def fetch_range(code: Code, state: Struct, first: Num, last: Num, least: int) -> None:
    """Likewise of the sectors from `first` to `last`, which are `least` (at most `WIDE`) or one more."""
    stamp = state.stamp
    for sector, count in ((first, least), (last, 1)):
        place = fetched(code, state, sector)
        new = code.splat(stamp.value, count)
        old = code.b.icmp_unsigned("!=", code.load(place, vector(I32, count), 4), new)
        bits = code.of(code.b.bitcast(old, ir.IntType(count)))
        note(code, state, sector, code.of(code.b.zext(bits.value, I64)))
        code.store(new, place, 4)


def note(code: Code, state: Struct, sector: Num, bits: Num) -> None:
    """Log that the block reads the sectors sector + i for each bit i; the next entry overwrites one without bits."""
    entry = state.log
    code.store((sector | bits << 32).value, code.pointer(entry), 8)
    state.log = entry + (bits != 0).flag(I64) * ENTRY


def note_block(code: Code, state: Struct, number: Num) -> None:
    """Log that what follows is of another block: an entry without bits."""
    entry = state.log
    code.store(number.wide().value, code.pointer(entry), 8)
    state.log = entry + ENTRY


class Tally:
    """The function `tally` being written: logs of blocks, in launch order, become `Counts.gaps`."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.readers, self.gaps, begin, end, base = code.arguments
        self.begin, self.end, self.base = code.of(begin), code.of(end), code.of(base)
        self.block = code.variable(0)
        """Of the entry, and `base` more: what it marks in the map."""

    def write(self) -> None:
        """One entry after the other."""
        code, at = self.code, self.code.variable(self.begin, I64)
        with code.loop(lambda: at.x != self.end):
            entry = code.of(code.load(code.pointer(at.x), I64, 8))
            bits = (entry >> 32).low()
            with code.either(bits == 0, likely=False) as (block, sectors):
                with block:
                    self.block.x = entry.low() + self.base
                with sectors:
                    self.sectors(code.at(self.readers, entry.low().wide() * 4), bits)
            at.x = at.x + ENTRY
        code.give(0)

    def sectors(self, place: Any, bits: Num) -> None:
        """Some sectors from a place of the map on: as a rule one, or eight whose last reader was one block."""
        code = self.code
        with code.either(bits == 1) as (single, several):
            with single:
                self.one(place)
            with several, code.either(self.whole(place, bits), likely=True) as (together, apart):
                with together:
                    self.count(code.of(code.load(place, I32, 4)), WIDE)
                    code.store(code.splat(self.block.x.value, WIDE), place, 4)
                with apart, code.lanes(bits) as lane:
                    self.one(code.at(place, lane * 4))

    def whole(self, place: Any, bits: Num) -> Num:
        """Whether they are eight with one mark."""
        code, b = self.code, self.code.b
        old = code.load(place, vector(I32, WIDE), 4)
        alike = b.icmp_unsigned("==", old, code.splat(code.element(old, 0), WIDE))
        same = code.of(b.zext(b.bitcast(alike, ir.IntType(WIDE)), I32))
        return (same & bits) == (1 << WIDE) - 1

    def one(self, place: Any) -> None:
        """A sector."""
        self.count(self.code.of(self.code.load(place, I32, 4)), 1)
        self.code.store(self.block.x.value, place, 4)

    def count(self, last: Num, sectors: int) -> None:
        """Sectors whose last reader made this mark; marks below `base` are of earlier launches."""
        code, b = self.code, self.code.b
        gap = b.select((last < self.base).value, code.num(0).value, (self.block.x - last).value)
        place = code.at(self.gaps, code.of(gap).wide() * 8)
        code.store((code.of(code.load(place, I64, 8)) + sectors).value, place, 8)
