"""Engines that work beside the warps on one vector memory: against the scoreboard that visits every cycle, and by hand."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from scoreboard import Command, Scoreboard, Step
from timing_cases import Case, Program, accesses, agrees, jumps_alike, path, random_machine

from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import Graph
from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.machine import Machine, known
from knapper.isa.modifiers import Element, Space, Start, Width
from knapper.isa.operands import Extent, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import Kernel
from knapper.runtime.counters import Counts, counters
from knapper.runtime.decode import decode
from knapper.runtime.paths import Paths
from knapper.runtime.session import Session
from knapper.runtime.timing.launch import Run
from knapper.runtime.timing.report import Timing
from knapper.runtime.timing.state import sm_type
from knapper.runtime.timing.tables import Costs, Structure

TPU = Machine.load("tpu-v2")
TICK = 256
REGISTERS = 64
LONGEST = 1000
"""Instructions of a random case: the oracle is slow."""


def dma(rng: random.Random) -> Instr:
    """A transfer: an image's rows, or plain bytes."""
    if rng.random() < 0.5:
        return i.FILL_DUP(cd=Unsigned(0), v0=UReg(2), rows=UReg(3))
    return i.DMA_LD(s=UReg(4), offset=Signed(0), base=UReg(6), bytes=Src.of(4096))


def push(start: Start = Start.ADD) -> Instr:
    return i.IM2COL_PUSH(
        type=Element.BF16, start=start, c=Src.of(0), units=Extent(1), cd=Unsigned(0), tap=Src.of(0), m0=UReg(8), m=UReg(9)
    )  # fmt: skip


def gathered(start: Start) -> Instr:
    """A push of kept rows of a tile."""
    return i.GATHK_PUSH(
        type=Element.BF16, start=start, c=Src.of(0), units=Extent(1), cd=Unsigned(0), tap=Src.of(UReg(10)), m0=UReg(8), m=UReg(9)
    )  # fmt: skip


def lsma(m: int, start: Start = Start.ADD) -> Instr:
    return i.LSMA(
        type=Element.BF16, start=start, space=Space.ACC, c=Src.of(0), units=Extent(1), m=Extent(m), base=UReg(0), offset=Signed(0),
        pitch=Unsigned(256),
    )  # fmt: skip


def weights() -> list[Instr]:
    """The next weights are loaded, and take the place of the last ones."""
    load = i.SMA_LDB(
        type=Element.BF16, units=Extent(1), base=UReg(0), offset=Signed(0), pitch=Unsigned(256)
    )
    return [load, i.SMA_SWAP(units=Extent(1))]


# --- random programs


class Engines(Program):
    """Groups of transfers, of passes, and of both, between instructions of the warps."""

    def groups(self) -> None:
        rng = self.rng
        kind = rng.choice(("dma", "dma", "array", "array", "both"))
        for _ in range(rng.randrange(0, 4)):
            if kind == "dma" or (kind == "both" and rng.random() < 0.5):
                self.emit(dma(rng))
                continue
            for command in weights() if rng.random() < 0.7 else []:
                self.emit(command)
            start = rng.choice((Start.ADD, Start.SET))
            if rng.random() < 0.3:
                self.emit(lsma(rng.choice((1, 100, 200)), start))
                continue
            if rng.random() < 0.3:
                self.emit(i.TWDESC(td=Src.of(1), u=UReg(32)))
            self.emit(rng.choice((push, gathered))(start))
        self.emit(i.SMA_COMMIT())
        if rng.random() < 0.5:
            self.emit(i.SMA_WAIT(n=Unsigned(rng.randrange(3))))


def random_program(rng: random.Random) -> Engines:
    """Loops around instructions and groups, with barriers in some; every warp waits for its groups before it ends."""
    p = Engines(rng, tensor=False)

    def inside() -> None:
        for _ in range(rng.randrange(1, 3)):
            rng.choice((p.some, p.groups, p.groups))()

    for _ in range(rng.randrange(1, 4)):
        trips, barrier = rng.choice((1, 2, 2, 7)), rng.random() < 0.4

        def body(barrier: bool = barrier) -> None:
            inside()
            if barrier:
                p.emit(i.BAR(id=Unsigned(0)))

        p.loop(body, lambda walk, trips=trips: trips)  # type: ignore[misc]
    p.emit(i.SMA_WAIT(n=Unsigned(0)))
    p.emit(i.EXIT())
    return p


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    machine = random_machine(rng, "tpu-v2").with_(
        array_rows=rng.choice((16, 128)), weight_double_buffer=rng.choice((0, 1, 1)),
        lsma_fill=rng.choice((0, 255)), lsma_queue=rng.choice((1, 2, 8)), dram_bytes_per_second=rng.choice((100, 350)) * 10**9,
    )  # fmt: skip
    p = random_program(rng)
    warps = rng.choice((1, 2, 3, 6))
    kinds = [[p.walk(rng) for _ in range(warps)] for _ in range(2)]
    blocks = [rng.choice(kinds) for _ in range(rng.choice((1, 2, 4)))]
    if sum(len(steps) for block in blocks for steps in block) > LONGEST:
        return random_case(seed + 1000)
    kernel = Kernel("k", Kernel.encode(p.code), (0,) * len(p.code), (32 * warps, 1, 1), REGISTERS)
    return Case(machine, kernel, blocks, count(list(kernel.code), blocks, rng))


def count(code: list[Instr], blocks: list[list[list[Step]]], rng: random.Random) -> Counts:
    """What an engine would have counted, with made-up sizes, the same each time."""
    c = counters(len(code))
    for step in (step for block in blocks for steps in block for step in steps):
        c["executed"][step.pc] += 1
        c["skipped"][step.pc] += step.skipped
    issued = c["executed"] - c["skipped"]
    for pc, instr in enumerate(code):
        sizes = {
            "lsu_global": {"sectors": (1, 4, 16)},
            "lsu_shared": {"wavefronts": (1, 2, 5)},
            "dma": {"sectors": (8, 128, 1000), "vector_writes": (2, 30, 400)},
            "systolic": {"vector_reads": (0, 16, 100)},
        }.get(instr.unit, {})
        for name, some in sizes.items():
            c[name][pc] = rng.choice(some) * issued[pc]
        if isinstance(instr, i.IM2COL_PUSH):
            c["rows"][pc] = rng.choice((1, 100, 128, 500)) * issued[pc]
    c["vector_reads"][[isinstance(x, (i.SMA_COMMIT, i.SMA_WAIT, i.SMA_SWAP)) for x in code]] = 0
    loads = sum(
        int(c["sectors"][pc]) for pc, x in enumerate(code) if x.unit in ("dma", "lsu_global")
    )
    gaps = np.array([rng.randrange(loads + 1)], np.uint64)
    paths = Paths.of(tuple(map(path, b)) for b in blocks)
    return Counts(c, 32 * int(gaps[0]), 32 * rng.randrange(50), gaps, paths)


def takes(case: Case, run: Run) -> dict[int, Command]:
    """Per instruction what it takes of shared things, worked out from sizes and the machine's numbers."""
    m, c, out = case.machine, case.counts.instructions, {}
    for pc, instr in enumerate(case.code):
        n = max(int(c["executed"][pc] - c["skipped"][pc]), 1)
        sectors, wavefronts, words, rows = (
            int(sum(c[name][pc] for name in names)) // n
            for names in (
                ("sectors",),
                ("wavefronts",),
                ("vector_reads", "vector_writes"),
                ("rows",),
            )
        )
        moved = 32 * sectors if instr.unit == "lsu_global" else 128 * wavefronts
        transfer = instr.unit == "dma"
        misses, to_dram = run.foot.l1_misses, run.foot.l2_misses
        out[pc] = Command(
            work=TICK * (max(rows, m.array_rows) + m.lsma_bubble)
            if m.weight_double_buffer
            else TICK * (rows + m.lsma_fill + m.lsma_bubble),
            dram=round(sectors * misses * to_dram * run.foot.dram_ticks) if transfer else 0,
            l2=round(sectors * misses * run.foot.l2_ticks) if transfer else 0,
            port=round(
                TICK * (words + (0 if transfer else moved / (2 * m.vector_word * m.array_rows)))
            ),
        )
    return out


def oracle(case: Case, run: Run) -> Scoreboard:
    resident = min(run.residents.blocks, len(case.blocks))
    return Scoreboard(
        case.machine, case.code, case.blocks, resident, *accesses(case, run), takes=takes(case, run)
    )


@pytest.mark.parametrize("seed", range(30))
def test_cycles_are_those_of_the_scoreboard(seed: int) -> None:
    agrees(random_case(seed), oracle)


@pytest.mark.parametrize("seed", range(40))
def test_a_jump_changes_nothing(seed: int) -> None:
    jumps_alike(random_case(seed))


def test_compiled_code_is_made_once_for_all_known_machines() -> None:
    """Two sizes of one record, each from the cache of another process, would call each other's code."""
    kernel = Kernel("k", Kernel.encode([i.EXIT()]), (0,), (32, 1, 1), 8)
    types = set()
    for machine in map(Machine.load, known()):
        ports = Costs(
            Structure.of(decode([kernel], machine.extensions), {"k": kernel}), machine, {}
        ).port_count
        types.add(sm_type(machine.warps_per_sm, machine.subcores, ports, machine.lsma_queue or 1))
    assert len(types) == 1


def test_two_cores_have_the_operations_that_are_published_of_a_chip() -> None:
    """45 TFLOPS, within what a clock of 700 MHz rounds."""
    timing = timed(passes(1, 128))
    assert 2 * timing.roofline.peak_flops_per_second == pytest.approx(45e12, rel=0.025)


# --- numbers that can be worked out by hand


def timed(
    code: list[tuple[Instr, dict[str, int]]], machine: Machine = TPU, warps: int = 1
) -> Timing:
    """One block of straight code; beside each instruction what one execution of it counts."""
    instrs = [instr for instr, _ in code]
    c = counters(len(code))
    c["executed"] = warps
    for pc, (_, each) in enumerate(code):
        for name, n in each.items():
            c[name][pc] = n * warps
    steps = [Step(pc, False, False) for pc in range(len(code))]
    kernel = Kernel("k", Kernel.encode(instrs), (0,) * len(code), (32 * warps, 1, 1), REGISTERS)
    loads = int(c["sectors"].sum())
    counts = Counts(
        c, 32 * loads, 0, np.array([loads], np.uint64), Paths(((path(steps),) * warps,), np.zeros(1, np.uint32))
    )  # fmt: skip
    return Case(machine, kernel, [[steps] * warps], counts).run().timing()


def passes(n: int, rows: int, reads: int = 0) -> list[tuple[Instr, dict[str, int]]]:
    """One chain of n passes in a group, each with weights of its own."""
    code: list[tuple[Instr, dict[str, int]]] = []
    for k in range(n):
        code += [(command, {}) for command in weights()]
        code.append(
            (push(Start.SET if k == 0 else Start.ADD), {"rows": rows, "vector_reads": reads})
        )
    return [*code, (i.SMA_COMMIT(), {}), *end()]


P = TPU.array_rows


@pytest.mark.parametrize(
    ("n", "rows", "chain"),
    [(9, 25_088, 226_175), (9, 8_192, 74_111), (1, 128, 511), (4, 500, 2_383)],
)
def test_a_chain_of_passes_takes_its_rows_and_one_pipeline(n: int, rows: int, chain: int) -> None:
    """P for the first weights, all rows, 2P - 1 until the pipeline is empty. What it takes to send the commands comes on top."""
    machine = TPU.with_(accumulator_bytes=4 * P * 25_088)
    timing = timed(passes(n, rows, rows // 8), machine)
    assert 0 < timing.cycles - machine.launch_cycles - chain < 40
    assert (timing.array_cycles, timing.port_stalls) == (n * rows, 0)
    assert timing.busy["port"] == pytest.approx(timing.busy["array"] / 8, rel=0.05)


def test_a_dependent_pass_of_few_rows_waits_for_the_first_sum() -> None:
    """16 rows occupy the array as long as 128: the next weights take that long, and so does the sum of row 0."""
    few, many = (timed(passes(9, rows)).array_cycles for rows in (16, P))
    assert few == many == 9 * P


def test_passes_of_a_machine_without_a_second_buffer_are_scale_sims() -> None:
    """2R + C + m - 2 a fold, weights included, whoever sends the pass."""
    machine = TPU.with_(weight_double_buffer=0, lsma_fill=2 * P - 2)
    five, four = (timed(passes(n, 300), machine).array_cycles for n in (5, 4))
    assert five - four == 2 * P + P + 300 - 2


@pytest.mark.parametrize("reads", [64, 400])
def test_a_transfer_has_the_port_when_passes_leave_it(reads: int) -> None:
    """4 passes of 512 rows read `reads` words each. Of three transfers of 700 words, those that come while a pass begins are late by its reads."""
    transfer = (i.DMA_LD(s=UReg(4), offset=Signed(0), base=UReg(6), bytes=Src.of(16)), {"vector_writes": 700, "sectors": 1})  # fmt: skip
    fetch = [transfer, (i.SMA_COMMIT(), {})] * 3
    alone, both = timed([*fetch, *end()]), timed([*fetch, *passes(4, 512, reads)])
    assert alone.port_stalls == pytest.approx(3 * 700, abs=3)
    assert both.array_cycles == 4 * 512  # what it reads is reserved
    most = 3 * 700 + 4 * reads
    assert alone.port_stalls + reads <= both.port_stalls <= most
    fits = most < 4 * 512 + P
    assert (both.cycles <= timed(passes(4, 512, reads)).cycles + 20) == fits


def test_a_pass_that_reads_more_words_than_it_has_rows_waits_for_them() -> None:
    """A stride of 8 and more: a word for each row, of elements twice as wide two."""
    timing, plain = timed(passes(3, 512, 1024)), timed(passes(3, 512, 512))
    assert timing.cycles - plain.cycles == timing.port_stalls == 3 * 512


def end() -> list[tuple[Instr, dict[str, int]]]:
    return [(i.SMA_WAIT(n=Unsigned(0)), {}), (i.EXIT(), {})]


def test_transfers_take_the_bandwidth_of_hbm_and_arrive_a_latency_later() -> None:
    """350 GB/s are 500 bytes a cycle."""
    fill = i.FILL_DUP(cd=Unsigned(0), v0=UReg(2), rows=UReg(3))

    def of(n: int) -> Timing:
        group = [(fill, {"sectors": 5_000, "vector_writes": 100}), (i.SMA_COMMIT(), {})]
        return timed([*group * n, *end()])

    four, three = of(4), of(3)
    assert four.cycles - three.cycles == pytest.approx(32 * 5_000 / 500, abs=1)
    latency = TPU.dram_latency + TPU.units["dma"].latency
    assert three.cycles - TPU.launch_cycles == pytest.approx(3 * 320 + latency, abs=20)
    assert four.busy["dma"] == pytest.approx(four.busy["dram"]) == pytest.approx(1, abs=0.2)
    assert four.roofline.bound in ("dma", "dram")
    assert four.stalls["dma_wait"] > 1_000
    assert four.stalls["systolic_wait"] == 0


def test_copies_make_the_port_slower_than_hbm() -> None:
    """Seven copies of a row: the engine waits for its writes, not for the bytes."""
    fill = i.FILL_DUP(cd=Unsigned(0), v0=UReg(2), rows=UReg(3))
    group = [(fill, {"sectors": 5_000, "vector_writes": 7 * 79}), (i.SMA_COMMIT(), {})]
    four, three = (timed([*group * n, *end()]) for n in (4, 3))
    assert four.cycles - three.cycles == 7 * 79
    assert four.roofline.bound in ("dma", "port")


def test_a_group_of_transfers_and_a_group_of_passes_run_at_once() -> None:
    """2,000 cycles of HBM beside 2,048 of the array."""
    fill = (i.FILL_DUP(cd=Unsigned(0), v0=UReg(2), rows=UReg(3)), {"sectors": 31_250})
    both, array = timed([fill, (i.SMA_COMMIT(), {}), *passes(4, 512)]), timed(passes(4, 512))
    assert both.cycles - array.cycles < 150
    mixed = timed([fill, *passes(4, 512)])  # in one group, what follows a transfer waits for it
    assert mixed.cycles - array.cycles == pytest.approx(2_000 + 237, abs=150)


def test_what_warps_store_passes_the_port() -> None:
    store = i.STG(width=Width._128, base=UReg(0), a=Reg(0), offset=Signed(0), s=Reg(4))
    timing = timed([(store, {"sectors": 16})] * 16 + [(i.EXIT(), {})], warps=32)
    words = 32 * 16 * 512 / TPU.vector_bytes
    assert timing.busy["port"] * (timing.cycles - TPU.launch_cycles) == pytest.approx(words)


def test_commands_of_a_network_are_counted_priced_and_reported(
    read_onnx: Callable[[str], Graph],
) -> None:
    """Energy and statistics of a run: words of vector memory, the port, and multiply-accumulates by rows."""
    program = compile_graph(read_onnx("resnet_tiny.onnx"), TPU, None, "fp16")
    rng = np.random.default_rng(7)
    inputs = {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in program.inputs}
    fast, slow, whole = (
        Session(program).run(inputs, engine=engine, timing=True, jump=jump).stats
        for engine, jump in (("fast", True), ("reference", True), ("fast", False))
    )
    assert fast.cycles == slow.cycles == whole.cycles > 0
    assert fast.energy_pj == slow.energy_pj
    rows = [k for k in fast.to_dict()["kernels"] if k.get("vector_writes")]
    assert rows
    for k in rows:
        assert k["utilisation"]["port"] > 0
        assert k["utilisation"]["dma"] > 0
        assert k["macs_executed"] >= k["macs"]
        words = k["energy_pj"]["vector_read"] / TPU.energy["vector_read"]
        commands = k["vector_reads"] * TPU.vector_bytes / 4
        assert (
            commands < words < commands + k["l2_bytes"]["read"] / 4
        )  # warps load biases, not the image
        written = k["energy_pj"]["vector_write"] / TPU.energy["vector_write"]
        assert written == k["smem_bytes"]["write"] / 4 + k["l2_bytes"]["write"] / 4
        assert "l1" not in k["energy_pj"]
        assert "l2" not in k["energy_pj"]
