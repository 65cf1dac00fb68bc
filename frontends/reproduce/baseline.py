"""The dense baseline beside hardware: V100 boards, each row on the board and with the accumulators that it was measured with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

from .claims import Claim, Lab
from .cutlass import CutlassGemm
from .microbench import (
    UNROLL,
    Copy,
    GlobalChase,
    HmmaLoop,
    SharedChase,
    Sweeps,
    after_launch,
    bandwidth,
    per_turn,
)
from .simulators import references

PCIE, SXM2 = "v100-pcie", "v100-sxm2"
GIB = 2**30
MT4G = "MT4G report on a V100-PCIE-16GB"
BENCHES = "gpu-benches (github.com/te42kyfo/gpu-benches) on a V100 at 1,380 MHz"
RAIHAN = "Raihan et al. 2019, timing of WMMA"
SETS = 4
"""Sets of HMMA.884 steps in a 16×16×16 product."""
STEPS = 8192
"""Loads of a chase over L1."""
FAR = 16384
"""Loads of one over L2 or DRAM, each of another sector."""


def rows() -> Iterator[Claim]:
    """All of them."""
    yield from gemms()
    yield from loops()
    yield from latencies()
    yield from bandwidths()
    yield from arrays()


# --- Tensor Cores


def microseconds(lab: Lab, n: int, k: int) -> float:
    """A product of B-1."""
    return 1e6 * lab.run(CutlassGemm(lab.sizes.rows, n, k), PCIE).seconds


def gemms() -> Iterator[Claim]:
    """B-1."""
    for n, k, paper in (
        (768, 768, (252.7, 252.7)),
        (768, 3072, (832.0, 874.0)),
        (3072, 768, (850.0, 921.0)),
    ):
        yield Claim(
            f"B-1.{n}x{k}", f"12800×{n}×{k} (m×n×k), fp16 accumulators, µs", paper, "silicon", 0.2, partial(microseconds, n=n, k=k),
            "the authors' CUTLASS 1.3 volta884 kernels on a V100-PCIE; ours: a kernel with their tile (128×128×32, warps 64×64×32), executed",
            "units.tensor_f16.interval",
        )  # fmt: skip


def teraflops(lab: Lab) -> float:
    """Of HMMAs, two operations a multiply-accumulate."""
    machine = lab.machine(SXM2)
    loop = HmmaLoop(machine.sms, warps=8, chains=4, turns=lab.sizes.loop)
    operations = per_turn(lab, loop, SXM2, lambda r: 2 * r.macs)
    return operations * machine.clock_hz / per_turn(lab, loop, SXM2) / 1e12


def alone(lab: Lab, chains: int, half: bool = False) -> float:
    """Cycles of an HMMA of one warp that has the chip to itself, in so many independent chains."""
    return per_turn(lab, HmmaLoop(1, 1, chains, lab.sizes.loop, half), SXM2) / chains


def pitch(lab: Lab) -> float:
    """Cycles of a set of steps, of four that an HMMA stands for."""
    return alone(lab, 8) / SETS


def loops() -> Iterator[Claim]:
    """B-3, and what one warp sees."""
    yield Claim(
        "B-3", "HMMA on registers only, whole chip, TFLOPS", (91.0, 93.0), "silicon", 0.2, teraflops,
        "HMMA microbenchmark on a V100-SXM2; ours: 8 warps an SM, 4 independent HMMAs a turn; the interval of 40 cycles is from another source",
        "units.tensor.interval",
    )  # fmt: skip
    for name, half, cycles, key in (
        ("latency-f32", False, 54, "units.tensor.latency"),
        ("latency-f16", True, 64, "units.tensor_f16.latency"),
    ):
        yield Claim(
            f"wmma.{name}", "16×16×16 product, cycles to its last result", (cycles, cycles), "calibrated", 0.02,
            partial(alone, chains=1, half=half), f"{RAIHAN}; sets {key}; ours: a chain of dependent HMMAs", key,
        )  # fmt: skip
    yield Claim(
        "wmma.pitch", "cycles from one set of HMMA.884 steps to the next", (10, 10), "calibrated", 0.02, pitch,
        f"{RAIHAN}; sets units.tensor.interval, 4 sets; ours: independent HMMAs of one warp", "units.tensor.interval",
    )  # fmt: skip


# --- memory


def in_shared(lab: Lab) -> float:
    """Over a word of shared memory."""
    return per_turn(lab, SharedChase(lab.sizes.loop), PCIE) / UNROLL


def in_l1(lab: Lab) -> float:
    """Over a few sectors, again and again."""
    return after_launch(lab.run(GlobalChase(UNROLL, STEPS), PCIE)) / STEPS


def in_l2(lab: Lab, launch: int) -> float:
    """Over a ring once: in the first launch nobody has read it yet, in the next L2 has it."""
    return after_launch(lab.run(GlobalChase(FAR, FAR, 2), PCIE), launch) / FAR


def latencies() -> Iterator[Claim]:
    """Pointer chases."""
    for name, paper, key, ours, what in (
        ("shared", 23.5, "units.lsu_shared.latency", in_shared, "a word of shared memory"),
        ("l1", 30.1, "l1_latency", in_l1, "a ring of 512 bytes"),
        ("l2", 214, "l2_latency", partial(in_l2, launch=1), "512 KB, in L2 from the launch before"),
        ("dram", 408, "dram_latency", partial(in_l2, launch=0), "512 KB that nothing has read yet"),
    ):
        yield Claim(
            f"latency.{name}", "cycles of a load", (paper, paper), "calibrated", 0.1, ours,
            f"{MT4G}; sets {key}; ours: a pointer chase over {what}", key,
        )  # fmt: skip


def gigabytes(lab: Lab, far: bool, writes: bool) -> float:
    """A second, by a copy far beyond L2 or, in a second launch, within it."""
    chunks = lab.sizes.chunks
    copy = Copy(chunks, chunks, writes) if far else Copy(1280, 64, writes, launches=2)
    return bandwidth(lab, copy, PCIE) / 1e9


def bandwidths() -> Iterator[Claim]:
    """Copies by the whole chip. Where two tools measured one board, theirs is the range."""
    for name, gib, other, far, writes in (
        ("dram-read", 647, 891.0, True, False),
        ("dram-write", 600, 834.1, True, True),
        ("l2-read", 958, 2438.0, False, False),
        ("l2-write", 1087, None, False, True),
    ):
        key, paper = f"{'dram' if far else 'l2'}_bytes_per_second", gib * GIB / 1e9
        kind, sets = ("silicon", "") if writes else ("calibrated", f", sets {key}")
        beside = f"; {BENCHES}, {other:,} GB/s{sets}" if other else ""
        yield Claim(
            f"bandwidth.{name}", "GB/s, whole chip", (paper, other or paper), kind, 0.2, partial(gigabytes, far=far, writes=writes),
            f"{MT4G}, {gib} GiB/s{beside}; ours: 16 bytes a lane, {'160 MB once' if far else '4 MB, in L2 from the launch before'}",
            key,
        )  # fmt: skip
    yield Claim(
        "reuse.wave", "DRAM's bytes by L2's, 80 blocks that read the same 7.9 MB again and again", (FETCHED, FETCHED), "calibrated", 0.2, fetched,
        f"{BENCHES}: 29 of 2,313 GB/s at 7.6 MB, and so up to 68 MB; sets that L2 is taken to drop the least recent; ours: two sweeps, counted",
        "l2_bytes",
    )  # fmt: skip


FETCHED = 29 / 2313


def fetched(lab: Lab) -> float:
    """What DRAM gives of what blocks get that run at once."""
    timing = lab.run(Sweeps(80, 120, 2), PCIE).launches[0].timing
    return timing.dram_sectors / timing.l2_sectors


# --- simulators of systolic arrays


def worst(lab: Lab, simulator: str) -> float:
    """Our cycles by a simulator's, of the product where they differ most."""
    chosen = islice(references(simulator), lab.sizes.products)
    return 1 + max((r.difference(lab) for r in chosen), key=abs)


def arrays() -> Iterator[Claim]:
    """B-4."""
    for simulator, kind, why in (
        (
            "scale-sim",
            "derived",
            "its 2R + C + m - 2 cycles a fold are our rule for this dataflow; it numbers the last cycle from 0, so each of its counts is "
            "one less than ours, which is 1.06 % of the shortest",
        ),
        ("stonne", "calibrated", "its k + 35 cycles a tile set lsma_fill"),
    ):
        found = list(references(simulator))
        yield Claim(
            f"B-4.{simulator}", f"array's cycles by {simulator}'s, the worst of {len(found)} products", (1.0, 1.0), kind,
            found[0].tolerance, partial(worst, simulator=simulator),
            f"stored numbers of {simulator}, which {found[0].target} is made after ({why}); ours: executed, cycles in which the array worked",
            "lsma_fill",
        )  # fmt: skip
