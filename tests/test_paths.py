"""What an execution leaves for timing: paths, their classes, wavefronts, sectors, what a block reads first. Both engines alike."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import Writer, numbers

from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import Graph
from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Cmp, Direction, IntType, Trans, Width
from knapper.isa.operands import Guard, Label, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE, Kernel, Launch, Port, Program
from knapper.runtime import paths
from knapper.runtime.counters import Counts
from knapper.runtime.fast import engine as fast
from knapper.runtime.fast import recording
from knapper.runtime.fast.engine import FastEngine
from knapper.runtime.paths import END, Trail
from knapper.runtime.session import LIMIT, Session
from tests.test_engines import differences
from tests.test_faults import B0, EXIT, P0, RZ, URZ, base, fault, lanes_below, load, program
from tests.test_footprint import gaps

INPUT = 1024  # words
TARGET = Machine.load("volta-8tc").to_dict()
LANES = np.arange(32)


def run(
    code: list[Instr],
    x: Sequence[int] = (),
    threads: int = 32,
    grid: int = 1,
    workers: int = 2,
    **kernel: Any,
) -> Counts:
    """What both engines count. The input's address is the only parameter."""
    k = {"registers": 32, "shared_bytes": 1 << 14, "local_bytes": 256, **kernel}
    p = Program(
        TARGET,
        {"k": Kernel("k", Kernel.encode(code), (0,) * len(code), (threads, 1, 1), **k)},
        (Launch("k", (grid, 1, 1), (BASE,), ("n",)),),
        (Port("x", "u32", (INPUT,), BASE),),
        (),
        arena_bytes=4 * INPUT,
    )
    session, words = Session(p), np.zeros(INPUT, np.uint32)
    words[: len(x)] = x
    reference = session.run({"x": words}, engine="reference", timing=True)
    for checked in (False, True):
        other = session.run({"x": words}, threads=workers, checked=checked, timing=True)
        assert not differences(reference, other)
    return reference.stats.launches[0].counts


# --- paths

NEVER = Guard(15)
TRIPS = [
    i.ISUB(IntType.S32, Reg(0), Reg(0), Src.of(1)),
    i.ISETP(Cmp.GT, IntType.S32, Pred(0), Reg(0), Src.of(0)),
]

WAYS: dict[str, tuple[list[Instr], list[tuple[int, int, int]]]] = {
    "straight on": ([i.NOP(), EXIT], [(1, END, 1)]),
    "an instruction is skipped": ([i.NOP(), i.NOP(guard=NEVER), EXIT], [(1, 2, 1), (2, END, 1)]),
    "a jump": ([i.BRA(Label(2)), i.NOP(), EXIT], [(0, 2, 1), (2, END, 1)]),
    "a jump to the next instruction is none": ([i.BRA(Label(1)), EXIT], [(1, END, 1)]),
    "a loop is one entry, and its last jump is skipped": (
        [i.MOV(Reg(0), Src.of(5)), *TRIPS, i.BRA(Label(1), guard=P0), EXIT],
        [(3, 1, 4), (3, 4, 1), (4, END, 1)],
    ),
    "events that take turns are entries of their own": (
        [i.MOV(Reg(0), Src.of(3)), *TRIPS, i.NOP(guard=NEVER), i.BRA(Label(1), guard=P0), EXIT],
        [(3, 4, 1), (4, 1, 1), (3, 4, 1), (4, 1, 1), (3, 4, 1), (4, 5, 1), (5, END, 1)],
    ),
    "lanes part and come together": (
        [*lanes_below(5), i.BSSY(B0, Label(7)), i.BRA(Label(6), guard=P0), i.NOP(), i.NOP(), i.BSYNC(B0), EXIT],
        [(4, 6, 1), (7, 5, 1), (8, END, 1)],
    ),
    "lanes part for good": (
        [*lanes_below(5), i.BRA(Label(5), guard=P0), EXIT, EXIT],
        [(3, 5, 1), (5, 4, 1), (4, END, 1)],
    ),
    "some lanes end, the others go on": ([*lanes_below(5), i.EXIT(guard=P0), EXIT], [(4, END, 1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_the_way_of_a_warp(name: str) -> None:
    code, events = WAYS[name]
    found = run(code).paths
    assert found is not None
    assert found.of_block.tolist() == [0]
    assert [w.tolist() for w in found.warps[0]] == [events]


def test_a_barrier_is_no_event_and_warps_have_ways_of_their_own() -> None:
    first = [i.S2R(SR.WARPID, Reg(1)), i.ISETP(Cmp.EQ, IntType.U32, Pred(0), Reg(1), Src.of(0))]
    counts = run([*first, i.BAR(Unsigned(0)), i.NOP(guard=P0), EXIT], threads=64)
    assert counts.paths is not None
    ways = [w.tolist() for w in counts.paths.warps[0]]
    assert ways == [[(4, END, 1)], [(3, 4, 1), (4, END, 1)]]


def turns(modulo: int) -> list[Instr]:
    """A block goes round a loop (its number) % `modulo` + 1 times."""
    return [
        i.S2R(SR.CTAID_X, Reg(0)),
        i.IREM(IntType.U32, Reg(0), Reg(0), Src.of(modulo)),
        i.IADD(IntType.S32, Reg(0), Reg(0), Src.of(1)),
        *TRIPS,
        i.BRA(Label(3), guard=P0),
        EXIT,
    ]


@pytest.mark.parametrize("modulo", [1, 3, 500])
def test_blocks_that_go_alike_are_a_class(modulo: int) -> None:
    found = run(turns(modulo), grid=200).paths
    assert found is not None
    assert found.of_block.tolist() == [b % modulo for b in range(200)]
    for number, (way,) in enumerate(found.warps):
        assert way.tolist() == [(5, 3, number)] * (number > 0) + [(5, 6, 1), (6, END, 1)]


def test_a_path_that_is_too_long_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "EVENTS", 2)
    p = program([i.MOV(Reg(0), Src.of(5)), *TRIPS, i.BRA(Label(1), guard=P0), EXIT])
    told = fault(p, "reference", timing=True)
    assert (told.code, told.hint[:22]) == ("E614", "run without timing: --")
    assert "pc 4 `EXIT`" in str(told)
    assert str(fault(p, "fast", timing=True)) == str(told)
    Session(p).run({"x": np.zeros(256, np.uint8)})  # without timing it runs


def test_an_entry_that_is_full_is_followed_by_another() -> None:
    trail = Trail(4)
    trail.add(3, 1)
    trail.entries[-1][2] = paths.MOST
    assert trail.add(3, 1)
    assert trail.events().tolist() == [(3, 1, paths.MOST), (3, 1, 1)]


class Wanderer(Writer):
    """Writes programs that mostly branch."""

    def body(self, length: int) -> None:
        for _ in range(length):
            kinds: list[Callable[[], None]] = [self.step] * 4
            kinds += [self.branch, self.loop] if self.depth < 3 else []
            kinds += [self.meet] if self.depth == 0 else []
            self.rng.choice(kinds)()

    def step(self) -> None:
        self.emit(self.draw(self.rng.choice([i.IADD, i.ISETP, i.NOP])))


@settings(max_examples=8)
@given(st.integers(0, 1 << 32))
def test_random_ways_are_the_same_in_both_engines(seed: int) -> None:
    session, x = Session(Wanderer(seed).program(8)), {"x": numbers(seed)}
    reference = session.run(x, engine="reference", timing=True)
    assert not differences(reference, session.run(x, timing=True))


def test_a_network_is_recorded_alike(read_onnx: Callable[[str], Graph]) -> None:
    graph = read_onnx("resnet_tiny.onnx")
    session = Session(compile_graph(graph, Machine.load("volta-8tc")))
    rng = np.random.default_rng(0)
    x = {p.name: rng.standard_normal(p.shape).astype("f4") for p in session.program.inputs}
    fast = session.run(x, timing=True)
    assert not differences(session.run(x, engine="reference", timing=True), fast)
    for launch in fast.stats.launches:
        counts = launch.counts.instructions
        assert counts["wavefronts"].sum() >= counts["smem_read"].sum() // 128


def test_without_timing_nothing_is_recorded() -> None:
    session = Session(Writer(1).program(40))
    for engine in ("reference", "fast"):
        counts = session.run({"x": numbers(1)}, engine=engine).stats.launches[0].counts
        assert (counts.paths, counts.l1_unique) == (None, 0)
        assert not counts.instructions["sectors"].any()
        assert not counts.instructions["wavefronts"].any()


# --- wavefronts


def conflicts(addresses: Sequence[int], active: Sequence[int], size: int) -> int:
    """Passes by brute force: bank by bank, a phase's distinct words."""
    words = max(size // 4, 1)
    group, total = 32 // words, 0
    for first in range(0, 32, group):
        banks: dict[int, set[int]] = defaultdict(set)
        for lane in {*range(first, first + group)} & {*active}:
            for word in range(addresses[lane] // 4, addresses[lane] // 4 + words):
                banks[word % 32].add(word)
        total += max(map(len, banks.values()), default=0)
    return total


def passes(addresses: Sequence[int], active: Sequence[int], size: int) -> tuple[int, int]:
    """What a store and then a load of shared memory count."""
    width = {1: Width.U8, 2: Width.U16, 4: Width._32, 8: Width._64, 16: Width._128}[size]
    code = [
        *lane_words(2),
        i.ISETP(Cmp.NE, IntType.U32, Pred(0), Reg(2), Src.of(0)),
        i.STS(width, URZ, Reg(1), Signed(0), Reg(4), guard=P0),
        i.LDS(width, Reg(8), URZ, Reg(1), Signed(0), guard=P0),
        EXIT,
    ]
    clear = [i.MOV(Reg(r), Src.of(0)) for r in range(4, 8)]
    counts = run([*clear, *code], [*addresses, *(int(lane in active) for lane in range(32))])
    store, load = (int(counts.instructions["wavefronts"][-n]) for n in (3, 2))
    return store, load


def lane_words(count: int) -> list[Instr]:
    """R1 …: words 0, 32, … of the input, a lane each."""
    code = [
        base(0),
        i.S2R(SR.LANEID, Reg(0)),
        i.SHF(Direction.L, IntType.U32, Reg(0), Reg(0), Src.of(2)),
    ]
    loads = [i.LDG(Width._32, Reg(1 + n), UReg(0), Reg(0), Signed(128 * n)) for n in range(count)]
    return [*code, *loads]


ALL = range(32)
# name: size, addresses, passes
PATTERNS: dict[str, tuple[int, list[int], int]] = {
    "stride 1": (4, [4 * n for n in ALL], 1),
    "stride 1, not at bank 0": (4, [4 * n + 100 for n in ALL], 1),
    "stride 1, backwards": (4, [4 * (31 - n) for n in ALL], 1),
    "stride 2": (4, [8 * n for n in ALL], 2),
    "stride 3": (4, [12 * n for n in ALL], 1),
    "stride 32": (4, [128 * n for n in ALL], 32),
    "stride 33": (4, [132 * n for n in ALL], 1),
    "broadcast": (4, [64] * 32, 1),
    "two words of one bank": (4, [n % 2 * 128 for n in ALL], 2),
    "bytes": (1, list(ALL), 1),
    "halves": (2, [2 * n for n in ALL], 1),
    "halves, two apart": (2, [4 * n + 2 for n in ALL], 1),
    "half warps 128 bytes apart": (4, [n % 16 * 4 + n // 16 * 128 for n in ALL], 2),
    "half warps 64 bytes apart": (4, [n % 16 * 4 + n // 16 * 64 for n in ALL], 1),
    "half warps 68 bytes apart": (4, [n % 16 * 4 + n // 16 * 68 for n in ALL], 2),
    "half warps on the same": (4, [n % 16 * 4 for n in ALL], 1),
    "half warps overlap": (4, [n % 16 * 4 + n // 16 * 20 for n in ALL], 1),
    "8 bytes": (8, [8 * n for n in ALL], 2),
    "8 bytes, stride 2": (8, [16 * n for n in ALL], 4),
    "8 bytes, broadcast": (8, [8] * 32, 2),
    "16 bytes": (16, [16 * n for n in ALL], 4),
    "16 bytes, stride 2": (16, [32 * n for n in ALL], 8),
    "16 bytes, rows of 64 in 80": (16, [n // 4 * 80 + n % 4 * 16 for n in ALL], 8),
    "16 bytes, rows of 64 in 192": (16, [n // 4 * 192 + n % 4 * 16 for n in ALL], 4),
    "16 bytes, all in one bank": (16, [128 * n for n in ALL], 32),
    "16 bytes, broadcast": (16, [48] * 32, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_wavefronts(name: str) -> None:
    size, addresses, expected = PATTERNS[name]
    assert conflicts(addresses, ALL, size) == expected
    assert passes(addresses, ALL, size) == (expected, expected)


@pytest.mark.parametrize("seed", range(12))
def test_wavefronts_of_random_accesses(seed: int) -> None:
    """Few places, many places; all lanes, some, or one."""
    rng = random.Random(seed)
    size = rng.choice([1, 2, 4, 8, 16])
    reach = rng.choice([64, 1024, 1 << 14])
    addresses = [rng.randrange(reach // size) * size for _ in ALL]
    active = [lane for lane in ALL if rng.random() < rng.choice([0.5, 1])] or [7]
    expected = conflicts(addresses, active, size)
    assert passes(addresses, active, size) == (expected, expected)


@settings(max_examples=15)
@given(st.sampled_from([1, 2, 4]), st.integers(0, 400), st.integers(0, 400))
def test_wavefronts_of_two_runs(size: int, a: int, b: int) -> None:
    """Half warps anywhere: the fast engine computes this case."""
    addresses = [((a, b)[n // 16] + n % 16) * size for n in ALL]
    expected = conflicts(addresses, ALL, size)
    assert passes(addresses, ALL, size) == (expected, expected)


@pytest.mark.parametrize(
    ("trans", "offset", "pitch", "expected"),
    [
        (Trans.N, 0, 32, 4), (Trans.T, 64, 32, 4), (Trans.N, 16, 48, 8), (Trans.N, 0, 160, 4), (Trans.T, 0, 64, 8),
        (Trans.N, 0, 128, 16), (Trans.T, 4, 36, 8), (Trans.T, 2, 34, 8), (Trans.N, 0, 0, 4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("some", [False, True])
def test_wavefronts_of_a_fragment(
    trans: Trans, offset: int, pitch: int, expected: int, some: bool
) -> None:
    """Four rows of 32 bytes at a time, transposed or not, whichever lanes are active."""
    fill = [i.STS(Width._128, URZ, Reg(1), Signed(512 * n), RZ) for n in range(5)]
    place = [i.S2R(SR.LANEID, Reg(0)), i.IMUL(IntType.U32, Reg(1), Reg(0), Src.of(16)), *fill]
    guard = P0 if some else Guard(7)
    fetch = i.LDSM(trans, Reg(4), URZ, Signed(offset), Unsigned(pitch), guard=guard)
    counts = run([*lanes_below(9), *place, fetch, EXIT])
    rows = [
        [(offset + pitch * (4 * phase + n // 8)) + n % 8 * 4 for n in ALL] for phase in range(4)
    ]
    assert sum(conflicts(r, ALL, 4) for r in rows) == int(counts.instructions["wavefronts"][-2])
    assert expected == int(counts.instructions["wavefronts"][-2])


# --- sectors


def test_sectors_of_global_memory_are_requests() -> None:
    """A load of random words by some lanes, a store of neighbours."""
    rng = np.random.default_rng(0)
    where = rng.integers(0, 64, 32) * 4
    code = [
        *lane_words(1),
        i.LDG(Width._32, Reg(3), UReg(0), Reg(1), Signed(0)),
        i.STG(Width._32, UReg(0), Reg(0), Signed(1040), RZ, guard=P0),
        EXIT,
    ]
    counts = run([*lanes_below(8), *code], where.tolist())
    runs = 1 + np.count_nonzero(np.diff(where // 32))
    assert counts.instructions["sectors"][-3:-1].tolist() == [runs, 2]


@pytest.mark.parametrize(
    ("size", "words", "expected"),
    [(4, [0] * 32, 4), (16, [4] * 32, 16), (1, [3] * 32, 4), (4, [n // 16 for n in ALL], 4), (4, [n % 2 for n in ALL], 32)],
)  # fmt: skip
def test_sectors_of_local_memory(size: int, words: list[int], expected: int) -> None:
    """A word of eight neighbouring lanes is a sector."""
    width = {1: Width.U8, 4: Width._32, 16: Width._128}[size]
    store = i.STL(width, Reg(1), Signed(0), RZ)
    counts = run([*lane_words(1), store, EXIT], [4 * w for w in words])
    assert int(counts.instructions["sectors"][-2]) == expected


@pytest.mark.parametrize("width", [Width.U8, Width._32, Width._64, Width._128])
@pytest.mark.parametrize("form", ["neighbours", "one", "anywhere", "some"])
def test_what_a_block_reads_first_is_counted_once_a_block(width: Width, form: str) -> None:
    """Two warps of two blocks load twice: a warp's loads overlap, and so do the warps'."""
    rng = np.random.default_rng(width.bytes)
    size, guard = width.bytes, P0 if form == "some" else Guard(7)
    places = {"neighbours": LANES, "one": LANES * 0 + 3}.get(form, rng.integers(0, 40, 32))
    loads = [i.LDG(width, Reg(8), UReg(0), Reg(1), Signed(o), guard=guard) for o in (256, 272)]
    counts = run(
        [*lanes_below(20), *lane_words(1), *loads, EXIT], (places * size).tolist(), 64, grid=2
    )
    active = places[:20] if form == "some" else places
    sectors = {(p * size + o) // 32 for p in active.tolist() for o in (256, 272)}
    assert counts.l1_unique == 2 * len(sectors | set(range(4)))


def test_stamps_of_blocks_begin_again_when_they_are_used_up() -> None:
    """A map says which block read a sector last; blocks are numbered through all launches, in 32 bits."""
    p = program([base(0), load(), EXIT])
    session = Session(replace(p, launches=(replace(p.launches[0], grid=(9, 1, 1)),) * 3))
    engine = session.engine("fast", checked=False, threads=1, limit=LIMIT)
    assert isinstance(engine, FastEngine)
    engine.scratch[0].state["stamp"] = engine.readers.next = (1 << 32) - 12
    result = session.run({"x": np.zeros(256, np.uint8)}, threads=1, timing=True)
    assert [s.counts.gaps.tolist() for s in result.stats.launches] == [[1, 8]] * 3
    assert engine.scratch[0].state["stamp"] == 18
    assert engine.readers.next == 19


# --- who read what before

GATHER = [
    base(0),
    i.S2R(SR.CTAID_X, Reg(0)),
    i.S2R(SR.LANEID, Reg(1)),
    i.IMAD(IntType.U32, Reg(0), Reg(0), Src.of(32), Reg(1)),
    i.SHF(Direction.L, IntType.U32, Reg(0), Reg(0), Src.of(2)),
    i.LDG(Width._32, Reg(1), UReg(0), Reg(0), Signed(0)),
    i.LDG(Width._32, Reg(2), UReg(0), Reg(1), Signed(0)),
    EXIT,
]
"""A block loads 32 words of its own, and then from where they say."""


@settings(max_examples=15)
@given(st.integers(0, 1 << 32), st.sampled_from([1, 2, 7, 24]), st.integers(1, 3))
def test_how_many_blocks_ago_a_sector_was_read(seed: int, grid: int, workers: int) -> None:
    """Counted by whoever runs the blocks, as if they ran in order."""
    rng = np.random.default_rng(seed)
    places = 4 * rng.integers(0, rng.choice([8, 64, INPUT]), (grid, 32))
    counts = run(GATHER, places.reshape(-1).tolist(), grid=grid, workers=workers)
    expected = gaps(
        [{4 * b + n for n in range(4)} | {*(p // 32).tolist()} for b, p in enumerate(places)]
    )
    assert np.trim_zeros(expected, "b").tolist() == counts.gaps.tolist()
    assert (counts.dram_read, counts.l1_unique) == (32 * expected[0], expected.sum())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_log_without_room_for_a_block_is_counted_at_once(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks in few chunks, of which some leave too little room for another."""
    monkeypatch.setattr(recording, "LEAST", 8)
    monkeypatch.setattr(fast, "CHUNKS", 1)
    taken = list[tuple[int, int]]()
    take = recording.Recorder.take

    def noted(self: recording.Recorder, first: int, end: int) -> None:
        taken.append((first, end))
        take(self, first, end)

    monkeypatch.setattr(recording.Recorder, "take", noted)
    grid = 32
    places = np.random.default_rng(0).integers(0, INPUT, 32 * grid) * 4
    counts = run(GATHER, places.tolist(), grid=grid, workers=workers)
    blocks = [
        {4 * b + n for n in range(4)} | {*(p // 32).tolist()}
        for b, p in enumerate(places.reshape(grid, 32))
    ]
    assert counts.gaps.tolist() == np.trim_zeros(gaps(blocks), "b").tolist()
    assert len(taken) > 2 * 2 * workers
