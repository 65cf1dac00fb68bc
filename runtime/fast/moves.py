"""Movers: the compiled functions that bring up to 32 lanes' worth of bytes from memory to register rows, or back.

    status load.global.16(state, record, mask, addresses, rows)

A mover checks alignment and bounds for all lanes at once, counts what the coalescer sends, and then moves without looking at the
mask: lanes that are not active are pointed at a line of zeros (loads) or waste (stores). 16-byte accesses are transposed between
lanes and rows in 128-bit blocks:

    Z0 = lanes 0 4 8 12   a 4×4 transpose of words inside     row w, lanes 0 … 15
    Z1 = lanes 1 5 9 13   each 128-bit block turns the   ──►  = word w of each lane
    Z2 = …                four Z into four rows

Checked movers (`checked.load…`) go on to look at every byte's shadow.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from knapper.isa.program import BASE

from ..decode import RECORD, ROW
from ..faults import READS, WRITES, Kind, access
from ..memory import SECTOR
from . import accesses
from .emit import FULL, I8, I32, I64, PTR, Code, Num, Require, Struct, constant_vector, vector
from .layout import BYTE, COUNTS, FAULT, STATE, WORD
from .queues import touch_page

SHADOWS = {
    "global": "has_memory",
    "shared": "has_shared",
    "local": "has_local",
    "accumulator": "has_sum",
}
MOVER = ir.FunctionType(I32, [PTR, PTR, I32, PTR, PTR])
"""status mover(state, record, mask, addresses, rows): 32 64-bit addresses, rows of words."""
TOUCH = ir.FunctionType(ir.VoidType(), [PTR, PTR, I64])
SIZES = (1, 2, 4, 8, 16)
LIMITS = {
    "global": "memory_end",
    "shared": "shared_bytes",
    "local": "local_bytes",
    "param": "param_bytes",
    "accumulator": "accumulator_bytes",
}
BASES = {
    "global": "memory",
    "shared": "shared",
    "local": "local",
    "param": "params",
    "accumulator": "accumulators",
}
UNCOUNTED = ("param", "accumulator")
"""Spaces whose traffic no counter tells: it follows from the instructions."""


def mover(op: str, space: str, size: int, checked: bool = False) -> str:
    """The name of a mover; `op` is load or store."""
    return f"{'checked.' * checked}{op}.{space}.{size}"


@dataclass
class Move:
    """A mover being written."""

    code: Code
    op: str
    space: str
    size: int
    checked: bool
    require: Require

    def __post_init__(self) -> None:
        state, record, mask, self.addresses, self.rows = self.code.arguments
        self.state, self.record = Struct(self.code, STATE, state), Struct(self.code, RECORD, record)
        self.mask = self.code.of(mask)
        self.use = READS if self.op == "load" else WRITES
        self.address = self.code.load(self.addresses, vector(I64), 8)

    def write(self) -> None:
        """Check, count, move."""
        self.check()
        if self.space == "global":
            coalesce(self)
        elif self.space not in UNCOUNTED:
            count(self)
        if self.space not in UNCOUNTED:
            with self.code.when(self.state.timing != 0):
                self.time()
        if self.checked:
            self.shadows()
        self.transfer()
        self.code.give(0)

    def time(self) -> None:
        """Count what timing needs. Sectors of global memory are counted anyway, as bytes."""
        code, state, record = self.code, self.state, self.record.pointer
        if self.space == "shared":
            n = accesses.wavefronts(code, self.require, self.size, self.addresses, self.mask)
            accesses.add(code, state, record, "wavefronts", n)
        elif self.space == "local":
            n = accesses.local_sectors(code, self.mask, self.at, self.size)
            accesses.add(code, state, record, "sectors", n)
        elif self.use == READS:
            accesses.fetch_lanes(code, state, self.mask & runs(self), self.at)

    # --- checks

    def check(self) -> None:
        b, size = self.code.b, self.size
        if size > 1:
            self.refuse(
                b.icmp_unsigned("!=", b.and_(self.address, self.all(size - 1)), self.all(0)),
                Kind.MISALIGNED,
            )
        last = self.state.get(LIMITS[self.space]).wide() - size
        outside = b.icmp_signed(">", self.address, self.code.splat(last.value))
        if self.space == "global":
            outside = b.or_(outside, b.icmp_signed("<", self.address, self.all(BASE)))
        self.refuse(outside, Kind.OUTSIDE)
        if self.space == "global" and self.use == WRITES:
            self.refuse(
                b.icmp_signed("<", self.address, self.code.splat(self.state.writable.value)),
                Kind.READ_ONLY,
            )
        if self.space == "global" and self.checked:
            self.declared()

    def all(self, x: int) -> Any:
        return constant_vector(I64, [x] * 32)

    def refuse(self, bad: Any, kind: Kind) -> None:
        lanes = self.code.bits(bad) & self.mask
        with self.code.when(lanes != 0, likely=False):
            self.fault(kind, lanes.lowest())

    def fault(
        self, kind: Kind, lane: Num, value: Num | None = None, aux: Num | int | None = None
    ) -> None:
        self.state.fault_lane = lane
        self.state.fault_value = self.at(lane) if value is None else value
        self.state.fault_aux = access(self.space, self.size, self.use) if aux is None else aux
        self.code.give(FAULT + kind)

    def at(self, lane: Num) -> Num:
        """A lane's address."""
        return self.code.of(self.code.load(self.code.at(self.addresses, lane.wide() * 8), I64, 8))

    # --- shadows of the checked engine

    def byte(self, shadow: str, index: Num) -> Struct:
        return Struct(self.code, BYTE, self.code.at(self.state.pointer_to(shadow), index))

    def declared(self) -> None:
        """Bit 0 of `operands`: the launch declares to read the byte; bit 1: to write it."""
        with (
            self.code.when(self.state.operands != 0),
            self.code.lanes(self.mask) as lane,
            self.each_byte(lane) as byte,
        ):
            allowed = self.byte("operands", byte).get("x") & (1 << self.use)
            with self.code.when(allowed == 0, likely=False):
                self.fault(Kind.UNDECLARED, lane)

    def each_byte(self, lane: Num) -> Any:
        """The addresses of a lane's bytes."""
        return _Bytes(self, lane)

    def shadows(self) -> None:
        if self.space == "shared":
            self.races()
        if self.space == "shared":
            self.unclaimed("claimed_filled", WRITES)
        if self.space == "shared" and self.use == WRITES:
            self.unclaimed("claimed_shared", READS)
        if self.space == "accumulator":
            self.unclaimed("claimed_sum", READS)
        if self.space == "param":
            return
        with self.code.lanes(self.mask) as lane, self.each_byte(lane) as byte:
            shadow = self.byte(
                SHADOWS[self.space],
                self.shadowed(byte, lane),
            )
            if self.use == WRITES:
                shadow.x = 1
            else:
                with self.code.when(shadow.get("x") == 0, likely=False):
                    self.fault(Kind.UNWRITTEN_MEMORY, lane)

    def shadowed(self, byte: Num, lane: Num) -> Num:
        return byte * 32 + lane.wide() if self.space == "local" else byte

    def unclaimed(self, claims: str, claim: int) -> None:
        """No pending command reads, writes, or sums up, what lies here."""
        with (
            self.code.when(self.state.get(claims) != 0),
            self.code.lanes(self.mask) as lane,
            self.each_byte(lane) as byte,
        ):
            place = self.code.at(self.state.pointer_to(claims), byte * 4)
            with self.code.when(Struct(self.code, WORD, place).get("x") != 0, likely=False):
                aux = access(self.space, self.size, self.use, claim)
                self.fault(Kind.ASYNC_MEMORY, lane, aux=aux)

    def races(self) -> None:
        """As `RefWarp.races`: a bit a warp, for readers and for writers of every byte."""
        me = self.code.num(1) << self.state.get("warp")
        with self.code.lanes(self.mask) as lane, self.each_byte(lane) as byte:
            written, read = (
                Struct(self.code, WORD, self.code.at(self.state.pointer_to(n), byte * 4))
                for n in ("writers", "readers")
            )
            self.clash(written.get("x") & ~me, WRITES, lane, byte)
            if self.use == WRITES:
                self.clash(read.get("x") & ~me, READS, lane, byte)
            mine = written if self.use == WRITES else read
            mine.x = mine.get("x") | me
            touch_page(self.code, self.state, byte)

    def clash(self, others: Num, before: int, lane: Num, byte: Num) -> None:
        with self.code.when(others != 0, likely=False):
            flags = (self.use == READS) | (before == READS) << 1
            self.fault(Kind.RACE, lane, byte, others.lowest() << 2 | flags)

    # --- the move itself

    def transfer(self) -> None:
        """All lanes active: addresses come as scalars from memory. Else idle lanes' pointers are replaced."""
        if self.space == "local":
            return self.words(self.hosts())
        with self.code.either(self.mask == FULL) as (full, partial):
            with full:
                base = self.state.pointer_to(BASES[self.space])
                self.words([self.code.at(base, self.at(self.code.num(i, I64))) for i in range(32)])
            with partial:
                self.words(self.hosts())
        return None

    def words(self, hosts: Sequence[Any]) -> None:
        move = load_rows if self.use == READS else store_rows
        if self.space == "local" and self.size > 4:
            for word in range(self.size // 4):  # a thread's consecutive words lie a row apart
                move(
                    self.code,
                    [self.code.at(h, word * ROW) for h in hosts],
                    4,
                    self.code.at(self.rows, word * ROW),
                )
        else:
            move(self.code, hosts, self.size, self.rows)

    def hosts(self) -> list[Any]:
        """A host pointer for each lane, if need be to nowhere."""
        code, b = self.code, self.code.b
        address = self.interleaved() if self.space == "local" else self.address
        host = b.add(address, code.splat(self.state.get(BASES[self.space]).value))
        idle = b.ptrtoint(self.state.address("zeros" if self.use == READS else "waste"), I64)
        place = code.stack(256)
        code.store(b.select(code.lane_mask(self.mask), host, code.splat(idle)), place, 64)
        return [b.inttoptr(code.load(code.at(place, 8 * i), I64, 8), PTR) for i in range(32)]

    def interleaved(self) -> Any:
        """Local memory keeps the lanes' words side by side: byte x of lane l lies at (x & ~3) · 32 + 4 l + (x & 3)."""
        b = self.code.b
        word, byte = (
            b.and_(self.address, self.all(~3 & (1 << 64) - 1)),
            b.and_(self.address, self.all(3)),
        )
        lanes = constant_vector(I64, range(0, ROW, 4))
        return b.add(b.shl(word, self.all(5)), b.add(lanes, byte))


class _Bytes:
    """Context: for every byte of a lane's access, its address."""

    def __init__(self, move: Move, lane: Num) -> None:
        self.start = move.at(lane)
        self.loop = move.code.each(move.code.num(move.size, I64))

    def __enter__(self) -> Num:
        return self.start + self.loop.__enter__()

    def __exit__(self, *problem: Any) -> None:
        self.loop.__exit__(*problem)


def counter(code: Code, state: Struct, record: Any) -> Struct:
    """The counters of the instruction that runs."""
    return Struct(code, COUNTS, code.at(record, state.get("counters")))


def count(move: Move) -> None:
    """Bytes of shared or local memory: the active lanes' sizes."""
    column = "local" if move.space == "local" else ("smem_read", "smem_write")[move.use]
    total = counter(move.code, move.state, move.record.pointer)
    total.set(column, total.get(column) + move.mask.popcount().wide() * move.size)


# --- global memory as the coalescer sees it


def coalesce(move: Move) -> None:
    """Count a request for every run of lanes in one sector; mark the sectors as touched."""
    code, shift = move.code, SECTOR.bit_length() - 1
    requests = code.variable(0)
    with code.either(move.mask == FULL) as (full, partial):
        with full:
            starts = runs(move)
            requests.x = starts.popcount()
            with (
                untold(code, move.state, move.use),
                code.either(starts & 0xAAAAAAAA == 0) as (pairs, single),
            ):
                with pairs:
                    fresh_any(move, 2)
                with single:
                    fresh_any(move, 1)
        with partial:
            last = code.variable((1 << 64) - 1, I64)
            with code.lanes(move.mask) as lane:
                this = move.at(lane) >> shift
                requests.x = requests.x + (this != last.x).flag()
                last.x = this
                with untold(code, move.state, move.use):
                    touch(code, move.state, move.use, this)
    add_requests(code, move.state, move.record.pointer, move.use, requests.x)


def runs(move: Move) -> Num:
    """Lanes that want another sector than the lane before, or whose lane before is idle: where requests begin."""
    code, b, shift = move.code, move.code.b, SECTOR.bit_length() - 1
    sector = b.lshr(move.address, move.all(shift))
    before = code.shuffle(sector, sector, [0, *range(31)])
    return code.bits(b.icmp_unsigned("!=", sector, before)) | ~(move.mask << 1)


def add_requests(code: Code, state: Struct, record: Any, use: int, requests: Num) -> None:
    """Count requests of a sector each."""
    total, column = counter(code, state, record), ("l2_read", "l2_write")[use]
    total.set(column, total.get(column) + requests.wide() * SECTOR)


def untold(code: Code, state: Struct, use: int) -> Any:
    """Context: whether sectors must be marked. With timing, the log of what blocks read first tells what is read."""
    return code.when(state.timing == 0) if use == READS else nullcontext()


def fresh_any(move: Move, step: int) -> None:
    """Most sectors were touched before: look at those of every `step`-th lane at once, and mark one by one only if some were not."""
    code, b, shift = move.code, move.code.b, SECTOR.bit_length() - 1
    touched, seen = (
        move.state.pointer_to(("touched_read", "touched_write")[move.use]),
        ir.Constant(I8, 0),
    )
    epoch = move.state.get("epoch").low(I8).value
    for i in range(0, 32, step):
        place = code.at(touched, move.at(code.num(i, I64)) >> shift)
        seen = b.or_(seen, b.xor(code.load(place, I8), epoch))
    with code.when(code.of(seen) != 0, likely=False), code.lanes(move.mask) as lane:
        touch(code, move.state, move.use, move.at(lane) >> shift)


def touch(code: Code, state: Struct, use: int, sector: Num) -> None:
    """Mark a sector; whoever marks it first in a launch counts it."""
    place = code.at(state.pointer_to(("touched_read", "touched_write")[use]), sector)
    epoch = state.get("epoch").low(I8)
    with code.when(code.of(code.load(place, I8)) != epoch, likely=False):
        old = code.of(code.b.atomic_rmw("xchg", place, epoch.value, "monotonic"))
        name = ("dram_read", "dram_write")[use]
        state.set(name, state.get(name) + (old != epoch).flag(I64))


# --- lanes ↔ rows


def load_rows(code: Code, hosts: Sequence[Any], size: int, rows: Any) -> None:
    """`size` bytes from each lane's pointer to rows of words; 1 and 2 bytes are zero-extended."""
    b = code.b
    if size == 16:
        for half in (0, 16):
            for word, row in enumerate(gather_blocks(code, hosts[half : half + 16])):
                code.store(row, code.at(rows, word * ROW + half * 4), 64)
        return
    element, wide = ir.IntType(8 * size), I64 if size == 8 else I32
    lanes = ir.Constant(vector(wide), ir.Undefined)
    for i, host in enumerate(hosts):
        value = code.load(host, element, size)
        lanes = b.insert_element(
            lanes,
            value if element is wide or size in (4, 8) else b.zext(value, wide),
            ir.Constant(I32, i),
        )
    if size == 8:
        code.store(
            b.trunc(b.lshr(lanes, constant_vector(I64, [32] * 32)), vector(I32)),
            code.at(rows, ROW),
            64,
        )
        lanes = b.trunc(lanes, vector(I32))
    code.store(lanes, rows, 64)


def store_rows(code: Code, hosts: Sequence[Any], size: int, rows: Any) -> None:
    """The reverse, lanes in order: the highest wins where several meet."""
    if size == 16:
        for half in (0, 16):
            words = [
                code.load(code.at(rows, w * ROW + half * 4), vector(I32, 16), 64) for w in range(4)
            ]
            scatter_blocks(code, words, hosts[half : half + 16])
        return
    for i, host in enumerate(hosts):
        for w in range(max(size // 4, 1)):
            value = code.load(
                code.at(rows, w * ROW + 4 * i), ir.IntType(8 * min(size, 4)), min(size, 4)
            )
            code.store(value, code.at(host, 4 * w), min(size, 4))


def gather_blocks(code: Code, hosts: Sequence[Any]) -> list[Any]:
    """16 lanes' 16-byte blocks → four rows of 16 words."""
    blocks = [code.load(h, vector(I32, 4), 16) for h in hosts]
    joined = []
    for j in range(4):
        pairs = [code.shuffle(blocks[j + 8 * h], blocks[j + 8 * h + 4], range(8)) for h in (0, 1)]
        joined.append(code.shuffle(pairs[0], pairs[1], range(16)))
    return transposed(code, joined)


def scatter_blocks(code: Code, words: Sequence[Any], hosts: Sequence[Any]) -> None:
    """Four rows of 16 words → 16 lanes' 16-byte blocks."""
    joined = transposed(code, words)
    for lane, host in enumerate(hosts):
        block = code.shuffle(
            joined[lane % 4], joined[lane % 4], range(lane // 4 * 4, lane // 4 * 4 + 4)
        )
        code.store(block, host, 16)


def transposed(code: Code, rows: Sequence[Any]) -> list[Any]:
    """A 4×4 transpose of words inside each 128-bit block of four <16 x i32>."""
    low, high = [0, 16, 1, 17], [2, 18, 3, 19]
    pair_low, pair_high = [0, 1, 16, 17], [2, 3, 18, 19]

    def blocks(order: Sequence[int]) -> list[int]:
        return [i + 4 * k for k in range(4) for i in order]

    a, c = (code.shuffle(rows[0], rows[1], blocks(o)) for o in (low, high))
    b, d = (code.shuffle(rows[2], rows[3], blocks(o)) for o in (low, high))
    return [
        code.shuffle(x, y, blocks(o)) for x, y in ((a, b), (c, d)) for o in (pair_low, pair_high)
    ]
