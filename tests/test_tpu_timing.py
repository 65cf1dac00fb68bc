"""Engines that work beside the warps on one vector memory: against the scoreboard that visits every cycle, and by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scoreboard import Command, Memory, Scoreboard, Step
from test_timing import Case, Program, path, random_machine

from knapper.isa import instructions as i
from knapper.isa.core import Extent, Instr, Signed, Src, Unsigned, UReg
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Element, Space, Start
from knapper.isa.program import Kernel
from knapper.runtime.counters import Counts, counters
from knapper.runtime.paths import Paths
from knapper.runtime.timing.launch import Run

TPU = Machine.load("tpu-v2")
TICK = 256
REGISTERS = 64
LONGEST = 1500
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
            self.emit(lsma(rng.choice((1, 100, 200)), start) if rng.random() < 0.3 else push(start))
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
        lsma_fill=rng.choice((0, 255)), lsma_queue=rng.choice((1, 2, 8)), dram_bytes_per_second=rng.choice((35, 350)) * 10**9,
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
    c, foot = case.counts.instructions, run.foot
    issued = np.maximum(c["executed"] - c["skipped"], 1)
    each = [{pc: int(n) for pc, n in enumerate(c[name] // issued)} for name in ("sectors", "wavefronts")]  # fmt: skip
    memory = Memory(foot.l1_misses, foot.l2_misses, foot.written_back, foot.l2_ticks, foot.dram_ticks)  # type: ignore[arg-type]  # fmt: skip
    resident = min(run.residents.blocks, len(case.blocks))
    return Scoreboard(
        case.machine, case.code, case.blocks, resident, *each, memory, takes=takes(case, run)
    )


@pytest.mark.parametrize("seed", range(40))
def test_cycles_are_those_of_the_scoreboard(seed: int) -> None:
    case = random_case(seed)
    run = case.run(jump=False)
    timing, expected = run.timing(), oracle(case, run)
    assert timing.cycles == expected.run()
    assert timing.stalls["issued"] == len(expected.issued)


@pytest.mark.parametrize("seed", range(60))
def test_a_jump_changes_nothing(seed: int) -> None:
    case = random_case(seed)
    fast, slow = (case.run(jump).timing() for jump in (True, False))
    assert fast.to_dict() == slow.to_dict()
    assert (fast.by_pc == slow.by_pc).all()
