"""The timing pass against a scoreboard that visits every cycle, and against numbers that can be worked out by hand."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from scoreboard import Step
from timing_cases import (
    REGISTERS,
    Case,
    agrees,
    count,
    jumps_alike,
    oracle,
    path,
    random_case,
    random_machine,
    random_program,
)

from knapper.isa import instructions as i
from knapper.isa import program as isa
from knapper.isa.core import Instr
from knapper.isa.errors import MachineFault
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Element, FloatType, Half, Space, Start, Width
from knapper.isa.operands import Extent, Guard, Label, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import Kernel, Launch
from knapper.isa.systolic import Array
from knapper.runtime.counters import NO_GAPS, Counts, counters
from knapper.runtime.decode import decode
from knapper.runtime.paths import END, EVENT, Paths
from knapper.runtime.timing.launch import Timer
from knapper.runtime.timing.residency import Residency


@pytest.mark.parametrize("seed", range(40))
def test_cycles_are_those_of_the_scoreboard(seed: int) -> None:
    agrees(random_case(seed), oracle)


@pytest.mark.parametrize("seed", range(60))
def test_a_jump_changes_nothing(seed: int) -> None:
    jumps_alike(random_case(seed))


@pytest.mark.parametrize("seed", range(16))
def test_products_of_condensed_vectors_take_what_the_scoreboard_says(seed: int) -> None:
    agrees(random_case(seed, sparse=True), oracle)


@pytest.mark.parametrize("seed", range(16))
def test_a_jump_changes_nothing_where_each_product_takes_its_own_time(seed: int) -> None:
    jumps_alike(random_case(seed, sparse=True))


def test_paths_that_never_end_are_a_fault() -> None:
    """Two warps, of which one leaves before the barrier: no engine records that."""
    code = [i.BAR(id=Unsigned(0)), i.EXIT()]
    walks = [[[Step(0, False, False), Step(1, False, False)], [Step(1, False, False)]]]
    kernel = Kernel("k", Kernel.encode(code), (0, 0), (64, 1, 1), 8)
    counts = Counts(counters(2), 0, 0, NO_GAPS, Paths.of(tuple(map(path, b)) for b in walks))
    early = np.array([(0, 1, 1), (1, END, 1)], EVENT)  # it skips the barrier and ends
    assert counts.paths is not None
    paths = Paths(((counts.paths.warps[0][0], early),), np.zeros(1, np.uint32))
    case = Case(Machine.load("volta-8tc"), kernel, walks, dataclasses.replace(counts, paths=paths))
    with pytest.raises(MachineFault, match=r"E617"):
        case.run().timing()


# --- numbers that can be worked out by hand


def straight(
    code: list[Any], warps: int = 1, loops: dict[int, int] | None = None
) -> tuple[list[Step], Kernel]:
    """A kernel of straight code, or of one loop over it, and what each of its warps comes to."""
    mode = "systolic" if any(isinstance(instr, i.SMA_COMMIT) for instr in code) else "simd"
    kernel = Kernel(
        "k", Kernel.encode(code), (0,) * len(code), (32 * warps, 1, 1), 248, mode_entry=mode, mode_exit=mode
    )  # fmt: skip
    steps = []
    pc, left = 0, dict(loops or {})
    while pc < len(code):
        back = left.get(pc, 0) > 0
        ends = isinstance(code[pc], i.BRA) and not back
        steps.append(Step(pc, ends, back))
        if back:
            left[pc] -= 1
        pc = int(code[pc].target) if back else pc + 1
    return steps, kernel


def cycles(
    machine: Machine, code: list[Any], warps: int = 1, blocks: int = 1, loops: dict[int, int] | None = None,
    sectors: dict[int, int] | None = None, distinct: int = 0,
) -> int:  # fmt: skip
    """Cycles after the launch. Each of the `distinct` sectors is read once by one block, and as many are written."""
    steps, kernel = straight(code, warps, loops)
    walk = path(steps)
    c = counters(len(code))
    for step in steps:
        c["executed"][step.pc] += warps * blocks
        c["skipped"][step.pc] += step.skipped * warps * blocks
    for pc, n in (sectors or {}).items():
        c["sectors"][pc] = n * c["executed"][pc]
    counts = Counts(
        c,
        32 * distinct,
        32 * distinct,
        np.array([distinct], np.uint64),
        Paths(((walk,) * warps,), np.zeros(blocks, np.uint32)),
    )
    timer = Timer.of(
        machine, decode([kernel], machine.extensions, Array.of(machine.to_dict())), {"k": kernel}
    )
    launch = Launch("k", (blocks, 1, 1), (), ())
    return timer.launch(launch, counts).cycles - machine.launch_cycles


def lsma(m: int, space: Space = Space.REG, start: Start = Start.ADD) -> Instr:
    c = Src.of(Reg(0)) if space is Space.REG else Src.of(0)
    return i.LSMA(
        type=Element.F16, start=start, space=space, c=c, units=Extent(1), m=Extent(m), base=UReg(0), offset=Signed(0), pitch=Unsigned(16)
    )  # fmt: skip


def passes(n: int, m: int, space: Space = Space.REG) -> list[Any]:
    """n groups, each loads weights and streams m rows, and a wait for all."""
    load = i.SMA_LDB(
        type=Element.F16, units=Extent(1), base=UReg(0), offset=Signed(0), pitch=Unsigned(32)
    )
    group = [load, i.SMA_SWAP(units=Extent(1)), lsma(m, space), i.SMA_COMMIT()]
    return [*group * n, i.SMA_WAIT(n=Unsigned(0)), i.EXIT()]


@pytest.mark.parametrize(("buffers", "bubble", "each"), [(0, 5, 141), (1, 5, 133), (1, 0, 128)])
def test_an_lsma_of_128_rows(buffers: int, bubble: int, each: int) -> None:
    machine = Machine.load("sma2").with_(weight_double_buffer=buffers, lsma_bubble=bubble)
    assert cycles(machine, passes(5, 128)) - cycles(machine, passes(4, 128)) == each


@pytest.mark.parametrize("m", [1, 16, 100, 333])
@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (16, 64), (128, 128)])
def test_a_weight_stationary_fold_is_what_scale_sim_counts(m: int, rows: int, columns: int) -> None:
    machine = Machine.load("systolic-ws").with_(
        array_rows=rows, array_columns=columns, lsma_fill=rows + columns - 2
    )
    five, four = (cycles(machine, passes(n, m, Space.ACC)) for n in (5, 4))
    assert five - four == 2 * rows + columns + m - 2


STONNE = [(64, 64, 64, 1584), (128, 128, 128, 10432), (256, 256, 256, 74496), (784, 128, 1152, 465304)]  # fmt: skip


@pytest.mark.parametrize(("m", "n", "k", "stonne"), STONNE)
def test_output_stationary_tiles_are_near_stonne(m: int, n: int, k: int, stonne: int) -> None:
    machine = Machine.load("systolic-os")
    tile = [lsma(16, Space.ACC, Start.SET), *[lsma(16, Space.ACC)] * (k // 16 - 1), i.SMA_COMMIT()]
    end = [i.SMA_WAIT(n=Unsigned(0)), i.EXIT()]
    each = cycles(machine, [*tile * 3, *end]) - cycles(machine, [*tile * 2, *end])
    assert each * (m // 16) * (n // 16) == pytest.approx(stonne, rel=0.05)


def test_the_tpu_dataflow_waits_for_the_banks_of_shared_memory() -> None:
    """Two units: 8 words of A and 32 of C a cycle on 32 banks."""
    sma, tpu = (
        Machine.load("sma2").with_(dataflow=d, lsma_bubble=0, weight_double_buffer=1)
        for d in ("sbws", "ws")
    )
    wide = dataclasses.replace(lsma(128), units=Extent(2))  # type: ignore[type-var]
    each = [
        cycles(machine, [wide, i.SMA_COMMIT()] * 9 + [i.SMA_WAIT(n=Unsigned(0)), i.EXIT()])
        - cycles(machine, [wide, i.SMA_COMMIT()] * 8 + [i.SMA_WAIT(n=Unsigned(0)), i.EXIT()])
        for machine in (sma, tpu)
    ]
    assert each == [128, 160]


def looped(body: list[Any]) -> list[Any]:
    return [*body, i.BRA(target=Label(0), guard=Guard(0)), i.EXIT()]


def test_a_loop_of_hmmas_on_a_v100() -> None:
    """Silicon: 91 to 93 TFLOPS. The measured pitch of the sets, which is the machine's interval, allows 100.3."""
    machine = Machine.load("v100-sxm2")
    body = [
        i.HMMA(type=Half.F16, d=Reg(8 * n), a=Reg(200), b=Reg(204), c=Reg(8 * n)) for n in range(8)
    ]
    t = cycles(machine, looped(body), warps=8, blocks=80, loops={8: 999})
    assert 2 * 4096 * 8 * 1000 * 8 * 80 / (t / machine.clock_hz) == pytest.approx(
        100.3e12, rel=0.01
    )


def test_a_loop_of_ffmas_on_a_v100() -> None:
    machine = Machine.load("v100-sxm2")
    body = [
        i.FFMA(type=FloatType.F32, d=Reg(4 * n), a=Reg(101), b=Src.of(Reg(103)), c=Reg(4 * n))
        for n in range(24)
    ]
    t = cycles(machine, looped(body), warps=8, blocks=80, loops={24: 999})
    assert 2 * 32 * 24 * 1000 * 8 * 80 / (t / machine.clock_hz) == pytest.approx(15.67e12, rel=0.03)


def test_registers_of_one_bank_cost_a_cycle() -> None:
    """Three operands in one bank of two, each of which delivers two registers an issue: 3 cycles instead of 2."""
    machine = Machine.load("v100-sxm2")

    def loop(a: int) -> int:
        body = [
            i.FFMA(type=FloatType.F32, d=Reg(2 * n), a=Reg(a), b=Src.of(Reg(102)), c=Reg(2 * n))
            for n in range(24)
        ]
        return cycles(machine, looped(body), warps=8, loops={24: 499})

    assert loop(100) / loop(101) == pytest.approx(1.5, rel=0.02)


def test_a_copy_takes_the_bandwidth_of_dram() -> None:
    machine, n = Machine.load("v100-sxm2"), 64
    body = [
        *(
            i.LDG(width=Width._128, d=Reg(4 * r), base=UReg(0), a=Reg(101), offset=Signed(0))
            for r in range(4)
        ),
        *(
            i.STG(width=Width._128, base=UReg(2), a=Reg(101), offset=Signed(0), s=Reg(4 * r))
            for r in range(4)
        ),
    ]
    sectors = n * 4 * 16 * 4 * 160
    t = cycles(
        machine,
        looped(body),
        warps=4,
        blocks=160,
        loops={8: n - 1},
        sectors=dict.fromkeys(range(8), 16),
        distinct=sectors,
    )
    assert 64 * sectors / (t / machine.clock_hz) == pytest.approx(
        machine.dram_bytes_per_second, rel=0.03
    )


def test_a_pointer_chase_sees_the_latencies() -> None:
    """One warp, one sector a load, each load's address the last one's value."""
    machine = Machine.load("v100-sxm2")
    chase = [i.LDG(width=Width._32, d=Reg(0), base=UReg(0), a=Reg(0), offset=Signed(0))] * 101 + [
        i.EXIT()
    ]
    hit = cycles(machine, chase, sectors=dict.fromkeys(range(101), 1), distinct=0)
    miss = cycles(machine, chase, sectors=dict.fromkeys(range(101), 1), distinct=101)
    assert hit / 100 == pytest.approx(machine.l1_latency, rel=0.01)
    assert miss / 100 == pytest.approx(machine.dram_latency, rel=0.05)


def test_what_l2_keeps() -> None:
    l2 = Residency(100)
    assert l2.launch([isa.Operand("a", 0, 60, "r"), isa.Operand("b", 1000, 40, "w")]) == (0.0, 0)
    assert l2.launch([isa.Operand("a", 0, 60, "r")]) == (1.0, 0)
    assert l2.launch([isa.Operand("c", 2000, 30, "r")]) == (0.0, 30)  # b is the oldest, and changed
    assert l2.launch([isa.Operand("b", 1000, 40, "r")]) == (0.25, 0 + 0)
    assert l2.launch([isa.Operand("d", 0, 60, "w")])[0] == 0.0  # in place of a


def test_l2_holds_what_was_touched() -> None:
    """Of a buffer for the worst case the kernel that fills it writes a part, which is all that there is to read."""
    l2, slot, x = Residency(100), isa.Operand("slot", 0, 1000, "w"), isa.Operand("x", 2000, 90, "r")
    assert l2.launch([slot], 0, 50) == (0.0, 0)
    assert l2.launch([dataclasses.replace(slot, use="r")], 50, 0) == (1.0, 0)
    assert l2.launch([x], 90, 0) == (0.0, 40)  # 10 of the 50 stay, and were written
    assert l2.launch([dataclasses.replace(slot, use="r")], 50, 0) == (
        0.2,
        0,
    )  # of x goes what does not fit


def test_a_row_that_is_written_leaves_a_caches_others_clean() -> None:
    l2, cache = Residency(1000), isa.Operand("cache", 0, 800, "r")
    assert l2.launch([cache]) == (0.0, 0)
    assert l2.launch([dataclasses.replace(cache, use="w")], 0, 8) == (0.0, 0)
    assert l2.launch([cache]) == (1.0, 0)
    assert l2.launch([isa.Operand("x", 2000, 1000, "r")]) == (0.0, 8)


@pytest.mark.parametrize("seed", range(12))
def test_one_warp_is_never_faster_with_a_longer_latency(seed: int) -> None:
    """A theorem for one warp: all it does is wait for the later of two times. With several, another may go first (GTO)."""
    rng = random.Random(seed)
    machine = random_machine(rng, "volta-8tc")
    p = random_program(rng, systolic=False)
    kernel = Kernel("k", Kernel.encode(p.code), (0,) * len(p.code), (32, 1, 1), REGISTERS)
    blocks = [[p.walk(rng)]]
    counts = count(p.code, blocks, rng)
    base = Case(machine, kernel, blocks, counts).run().timing().cycles
    for name, unit in machine.units.items():
        slower = machine.with_(**{f"units.{name}.latency": 2 * unit.latency})
        assert Case(slower, kernel, blocks, counts).run().timing().cycles >= base
