"""What products of condensed vectors take, in numbers that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sparse_programs import kernel as sparse_kernel
from sparse_programs import program as sparse_program
from sparse_programs import record as operands
from sparse_programs import spwmma
from timing_cases import random_case

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import UsageError
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Half, Width
from knapper.isa.operands import Extent, Guard, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import Kernel, Launch
from knapper.isa.systolic import Array
from knapper.runtime.counters import NO_GAPS, Counts, counters
from knapper.runtime.decode import decode
from knapper.runtime.paths import END, EVENT, Paths, work
from knapper.runtime.session import Session
from knapper.runtime.stats import Stats
from knapper.runtime.timing.launch import Residents, Timer
from knapper.runtime.timing.outer import priced
from knapper.runtime.timing.record import Record, time_record
from knapper.runtime.timing.report import Timing

DSTC = Machine.load("dstc").with_(sms=1)
PITCHES = pytest.mark.parametrize("interval", [32, 40], ids=["ideal", "measured"])
VECTORS: Any = {"type": Half.F16, "c": Src.of(0), "start": Reg(2), "bm": Reg(4)}
DENSE = (128, 128)


def timed(
    machine: Machine, code: list[Instr], events: Callable[[int], list[tuple[int, int, int]]] = lambda n: [],
    skipped: bool = False, blocks: int = 1, jump: bool = True,
) -> Timing:  # fmt: skip
    """Straight code on one warp a sub-core, with the events of block n beside its end."""
    code, warps = [*code, i.EXIT()], 4
    kernel = Kernel("k", Kernel.encode(code), (0,) * len(code), (32 * warps, 1, 1), 248)
    c = counters(len(code))
    c["executed"] = warps * blocks
    c["skipped"][:-1] = skipped * warps * blocks
    ends = [(len(code) - 1, END, 1)]
    paths = Paths.of((np.array([*events(n), *ends], EVENT),) * warps for n in range(blocks))
    decoded = decode([kernel], machine.extensions, Array.of(machine.to_dict()))
    timer = Timer.of(machine, decoded, {"k": kernel}, jump)
    counts = Counts(c, 0, 0, NO_GAPS, paths)
    return timer.launch(Launch("k", (blocks, 1, 1), (), ()), counts)


def each(machine: Machine, make: Callable[[], Instr], work_of: tuple[int, ...] | None = None, skipped: bool = False) -> float:  # fmt: skip
    """Cycles that one more of an instruction takes."""

    def run(n: int) -> int:
        to = [(pc, pc + 1 if skipped else work(*work_of or (0, 0)), 1) for pc in range(n)]
        return timed(
            machine, [make() for _ in range(n)], lambda _: to if skipped or work_of else [], skipped
        ).cycles

    return (run(72) - run(8)) / 64


@PITCHES
def test_dense_outer_products_are_as_fast_as_dense_inner_ones(interval: int) -> None:
    """8×16×1 a cycle, 16 for 8×16×16, 32 for 16×16×16, at the ideal pitch; whatever the pitch, an SPWMMA of 32×32×16 is four HMMAs."""
    m = DSTC.with_(**{"units.tensor.interval": interval})
    fragments: dict[str, Any] = {"type": Half.F16, "a": Reg(100), "b": Reg(104), "c": Reg(255)}
    registers = iter(8 * (n % 8) for n in range(10_000))
    inner = each(m, lambda: i.HMMA(d=Reg(next(registers)), **fragments))
    assert inner == interval
    assert each(m, lambda: i.OWMMA(d=Reg(next(registers)), **fragments)) == inner
    assert each(m, lambda: i.SPWMMA(**VECTORS), DENSE) == 4 * inner
    ohmma = each(m, lambda: i.OHMMA(**VECTORS, k=Unsigned(0), i=Unsigned(0), j=Unsigned(0)))
    assert ohmma == pytest.approx(interval / 32, abs=0.02)


@PITCHES
@pytest.mark.parametrize(
    ("cycles", "ohmmas", "numbers", "expected"),
    [
        (0, 0, {}, 0),
        (30, 48, {}, 48),
        (50, 48, {}, 50),
        (50, 48, {"pred_off_percent": 50}, 48 + 40),
        (50, 48, {"pred_off_percent": 100}, 128),
        (50, 48, {"bohmma_percent": 25}, 50 + 4),
        (50, 48, {"pred_off_percent": 50, "bohmma_percent": 100}, 48 + 40 + 16),
    ],
)
def test_an_spwmma_takes_the_slower_of_products_and_banks(
    interval: int, cycles: int, ohmmas: int, numbers: dict[str, int], expected: float
) -> None:
    m = DSTC.with_(**{"units.tensor.interval": interval}, **numbers)
    (event,) = priced(np.array([(0, work(cycles, ohmmas), 1)], EVENT), m)
    assert int(event["next"]) - (1 << 31) == expected * interval * 256 // 32
    got = each(m, lambda: i.SPWMMA(**VECTORS), (cycles, ohmmas))
    assert got == pytest.approx(max(expected * interval / 32, 1), abs=0.02)


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize(
    ("passes", "expected"), [(0, 20), (4, 20), (5, 20), (6, 24), (16, 64)], ids=str
)
def test_values_come_through_the_port_of_shared_memory(
    passes: int, interval: int, expected: int
) -> None:
    """Four sub-cores, each with an SPWMMA of 16 OHMMAs, 20 cycles: five passes each are what shared memory delivers meanwhile."""
    m = DSTC.with_(**{"units.lsu_shared.interval": interval})
    got = each(m, lambda: i.SPWMMA(**VECTORS), (16, 16, passes))
    assert got == pytest.approx(max(20, 4 * passes * interval), abs=0.02)
    assert interval > 1 or got == pytest.approx(expected, abs=0.02)


def test_products_and_loads_share_the_port() -> None:
    """Each sub-core's product needs 4 of 20 cycles; with two LDS each beside it all that is 24, and the port is never idle."""
    events = [(pc, work(16, 16, 4), 1) for pc in range(0, 192, 3)]
    loads = [i.LDS(width=Width._32, d=Reg(10 + n), base=UReg(0), a=Reg(1), offset=Signed(0)) for n in range(2)]  # fmt: skip
    code: list[Instr] = [i.SPWMMA(**VECTORS), *loads] * 64
    timing = timed(DSTC, code, lambda _: events)
    assert timing.busy["lsu_shared"] == pytest.approx(1, abs=0.03)
    alone = timed(DSTC, [i.SPWMMA(**VECTORS)] * 64, lambda _: [(n, work(16, 16, 4), 1) for n in range(64)])  # fmt: skip
    assert alone.busy["lsu_shared"] == pytest.approx(16 / 20, abs=0.03)


def test_an_ohmma_reads_its_share_of_a_step() -> None:
    """Four sub-cores: half a pass; the issue pitch hides it until a pass takes 2.5 cycles."""
    m = DSTC.with_(**{"units.lsu_shared.interval": 4})
    ohmma = each(m, lambda: i.OHMMA(**VECTORS, k=Unsigned(0), i=Unsigned(0), j=Unsigned(0)))
    assert ohmma == pytest.approx(4 / 8 * 4, abs=0.05)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (100, 1.25), (400, 5)])
def test_an_ohmma_that_is_left_out(percent: int, expected: float) -> None:
    """Its issue in any case, and the port if the machine says so."""
    m = DSTC.with_(pred_off_percent=percent)
    guarded = i.OHMMA(**VECTORS, k=Unsigned(0), i=Unsigned(0), j=Unsigned(0), guard=Guard(0))
    assert each(m, lambda: guarded, skipped=True) == pytest.approx(expected, abs=0.02)


def test_registers_and_accumulation_buffer_exchange_a_register_a_cycle() -> None:
    at: dict[str, Any] = {"count": Extent(32), "base": UReg(0), "offset": Signed(0)}
    assert each(DSTC, lambda: i.ACC_ST(s=Reg(0), **at)) == 32


@pytest.mark.parametrize("cycles", [20, 128])
def test_sums_are_read_when_the_products_before_are_in_them(cycles: int) -> None:
    """The last of 32 registers is there a latency after the 31st cycle, and the last sums a latency after the product; products follow each other."""
    at: dict[str, Any] = {"count": Extent(32), "base": UReg(0), "offset": Signed(0)}
    store, load = i.ACC_ST(s=Reg(0), **at), i.ACC_LD(d=Reg(64), **at)
    product = i.SPWMMA(type=Half.F16, c=Src.of(0), start=Reg(40), bm=Reg(42))
    m = DSTC.with_(**{"units.tensor.interval": 32}, launch_cycles=0)
    outer, systolic = m.units["outer"].latency, m.units["systolic"].latency

    def took(*code: Instr) -> int:
        events = [(pc, work(cycles, 4), 1) for pc, x in enumerate(code) if x is product]
        use = i.MOV(Reg(100), Src.of(Reg(95)))  # the last register that comes
        return timed(m, [*code, use], lambda _: events).cycles

    apart = took(store, load)
    assert took(store, product, load) - apart == systolic - 1 + cycles + outer
    assert took(store, product, product, load) - took(store, product, load) == cycles


def test_blocks_share_the_accumulators_of_an_sm() -> None:
    """32 KB are 8 tiles: two blocks of four warps with one each."""
    code = Kernel.encode([i.EXIT()])
    kernel = Kernel("k", code, (0,), (128, 1, 1), 8, accumulators=4096)
    assert Residents.of(DSTC, kernel, False) == Residents(2, "accumulators")
    assert Residents.of(DSTC, replace(kernel, accumulators=8192), False).blocks == 1
    assert Residents.of(DSTC, replace(kernel, accumulators=0), False).limit != "accumulators"


def test_every_block_takes_its_own_time() -> None:
    """Blocks on one SM, each with other bitmaps; what repeats itself may be jumped over."""
    amounts = [(40, 40), (128, 128), (10, 8), (90, 70)] * 6

    def run(jump: bool) -> int:
        code: list[Instr] = [i.SPWMMA(**VECTORS)] * 64
        many = replace_blocks(DSTC)
        return timed(
            many, code, lambda n: [(pc, work(*amounts[n]), 1) for pc in range(64)],
            blocks=len(amounts), jump=jump,
        ).cycles  # fmt: skip

    expected = 64 * sum(c for c, _ in amounts) * 1.25
    assert run(True) == run(False)
    assert run(True) - DSTC.launch_cycles == pytest.approx(expected, rel=0.01)


def replace_blocks(machine: Machine) -> Machine:
    """With one resident block, so that blocks follow each other."""
    return machine.with_(blocks_per_sm=1)


def test_random_cases_have_products_of_their_own() -> None:
    """So that the scoreboard's agreement means something."""
    cases = [random_case(seed, sparse=True) for seed in range(16)]
    done = {step.work for c in cases for b in c.blocks for w in b for step in w if step.work}
    assert len(done) > 6


# --- from executed programs


def executed(machine: Machine, engine: str = "fast") -> tuple[Any, Stats]:
    """Sixteen blocks, each with a tile of its own density, as one engine ran them."""
    rng = np.random.default_rng(3)
    program = sparse_program(sparse_kernel(spwmma(Half.F16)), 16, replace_sms(machine))
    records = [
        operands(rng, *((rng.standard_normal(s), rng.random(s) < d) for s in ((32, 16), (16, 32))),
                 np.zeros((32, 32), np.float32), Half.F16)
        for d in np.linspace(0, 0.9, 16)
    ]  # fmt: skip
    done = Session(program).run({"x": np.concatenate(records)}, engine=engine, timing=True)
    return program, done.stats


def replace_sms(machine: Machine) -> Machine:
    """With four SMs, so that each runs several blocks."""
    return machine.with_(sms=4)


def figures(stats: Stats) -> dict[str, Any]:
    return {k: v for k, v in stats.to_dict().items() if k != "provenance"}


@pytest.mark.parametrize("window", [0, 4])
def test_both_engines_record_the_same_products(window: int) -> None:
    m = DSTC.with_(collector_window=window)
    assert figures(executed(m)[1]) == figures(executed(m, "reference")[1])


@pytest.mark.parametrize(
    "numbers",
    [
        {"pred_off_percent": 100}, {"bohmma_percent": 50}, {"units.tensor.interval": 32},
        {"collector_window": 16, "pred_off_percent": 30}, {"units.lsu_shared.interval": 16},
    ],
    ids=str,
)  # fmt: skip
def test_a_replay_is_what_a_run_would_have_been(numbers: dict[str, int]) -> None:
    own = DSTC.with_(collector_window=numbers.get("collector_window", 0))
    record, machine = Record.of(*executed(own)), own.with_(**numbers)
    there = executed(machine)[1]
    assert figures(time_record(record, replace_sms(machine))) == figures(there)
    assert there.launches[0].measured.timing.cycles != executed(own)[1].launches[0].measured.timing.cycles  # fmt: skip


def test_a_replay_with_another_window_is_refused() -> None:
    record = Record.of(*executed(DSTC))
    with pytest.raises(
        UsageError, match=r"E726: .*with a collector_window of 0, the machine's is 4"
    ):
        time_record(record, replace_sms(DSTC.with_(collector_window=4)))
