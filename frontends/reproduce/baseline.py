"""The dense baseline beside hardware: V100 boards, each row on the board and with the accumulators that it was measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .claims import Claim, Lab
from .cutlass import CutlassGemm
from .microbench import (
    UNROLL,
    Copy,
    GlobalChase,
    HmmaLoop,
    SharedChase,
    bandwidth,
    last,
    per_turn,
)
from .simulators import references

PCIE, SXM2 = "v100-pcie", "v100-sxm2"
GIB = 2**30
MT4G = "MT4G report on a V100-PCIE-16GB"
RAIHAN = "Raihan et al. 2019, fig. on WMMA timing"
SETS = 4
"""Sets of HMMA.884 steps in a 16×16×16 product."""
STEPS = 8192
"""Loads of a chase."""


def rows() -> Iterator[Claim]:
    """All of them."""
    yield from gemms()
    yield hmma_rate()
    yield from tensor_latencies()
    yield from latencies()
    yield from bandwidths()
    yield from arrays()


# --- matrix products


def gemms() -> Iterator[Claim]:
    """B-1."""
    measured = {
        (768, 768): (252.7, 252.7),
        (768, 3072): (832.0, 874.0),
        (3072, 768): (850.0, 921.0),
    }
    for (n, k), paper in measured.items():

        def ours(lab: Lab, n: int = n, k: int = k) -> float:
            return 1e6 * lab.run(CutlassGemm(lab.sizes.rows, n, k), PCIE).seconds

        yield Claim(
            f"B-1.{n}x{k}", f"12800×{n}×{k} (m×n×k), fp16 accumulators, µs", paper, "silicon", 0.2, ours,
            "the authors' CUTLASS 1.3 volta884 kernels on a V100-PCIE; ours: a kernel with their tile (128×128×32, warps 64×64×32), executed",
            "units.tensor_f16.interval",
        )  # fmt: skip


def hmma_rate() -> Claim:
    """B-3."""
    return Claim(
        "B-3", "HMMA on registers only, whole chip, TFLOPS", (91.0, 93.0), "silicon", 0.2, teraflops,
        "HMMA microbenchmark on a V100-SXM2; ours: 8 warps an SM, 4 independent HMMAs a turn, 80 SMs. The interval of 40 cycles is from another source",
        "units.tensor.interval",
    )  # fmt: skip


def teraflops(lab: Lab) -> float:
    """2 · 4,096 operations an HMMA."""
    machine = lab.machine(SXM2)
    loop = HmmaLoop(machine.sms, warps=8, chains=4, turns=lab.sizes.loop)
    operations = per_turn(
        lab, loop, SXM2, lambda r: 2 * sum(s.macs_executed for s in r.recording.launches)
    )
    return operations * machine.clock_hz / per_turn(lab, loop, SXM2) / 1e12


def tensor_latencies() -> Iterator[Claim]:
    """WMMA latency and set pitch."""

    def alone(half: bool, chains: int) -> Callable[[Lab], float]:
        return lambda lab: (
            per_turn(lab, HmmaLoop(1, 1, chains, lab.sizes.loop, half), SXM2) / chains
        )

    for name, half, cycles, key in (
        ("latency-f32", False, 54, "units.tensor.latency"),
        ("latency-f16", True, 64, "units.tensor_f16.latency"),
    ):
        yield Claim(
            f"wmma.{name}", "16×16×16 product, cycles to its last result", (cycles, cycles), "calibrated", 0.02,
            alone(half, 1), f"{RAIHAN}; sets {key}; ours: a chain of dependent HMMAs", key,
        )  # fmt: skip
    yield Claim(
        "wmma.pitch", "cycles from one set of HMMA.884 steps to the next", (10, 10), "calibrated", 0.02,
        lambda lab: alone(False, 8)(lab) / SETS,
        f"{RAIHAN}; sets units.tensor.interval, 4 sets; ours: independent HMMAs of one warp", "units.tensor.interval",
    )  # fmt: skip


# --- memory


def latencies() -> Iterator[Claim]:
    """Pointer chases."""

    def cold(lab: Lab) -> float:
        r = lab.run(GlobalChase(2 * STEPS, 2 * STEPS, 2), PCIE)
        return (r.launches[0].timing.cycles - r.machine.launch_cycles) / (2 * STEPS)

    ways: tuple[tuple[str, float, str, Callable[[Lab], float], str], ...] = (
        ("shared", 23.5, "units.lsu_shared.latency",
         lambda lab: per_turn(lab, SharedChase(lab.sizes.loop), PCIE) / UNROLL, "a word of shared memory over and over"),
        ("l1", 30.1, "l1_latency",
         lambda lab: last(lab.run(GlobalChase(UNROLL, STEPS), PCIE)) / STEPS, "a ring of 512 bytes"),
        ("l2", 214, "l2_latency",
         lambda lab: last(lab.run(GlobalChase(2 * STEPS, 2 * STEPS, 2), PCIE)) / (2 * STEPS), "a ring of 512 KB, in L2 from the launch before"),
        ("dram", 408, "dram_latency", cold, "a ring of 512 KB that nothing has read yet"),
    )  # fmt: skip
    for name, paper, key, ours, what in ways:
        yield Claim(
            f"latency.{name}", "cycles of a load", (paper, paper), "calibrated", 0.1, ours,
            f"{MT4G}; sets {key}; ours: a pointer chase over {what}", key,
        )  # fmt: skip


def bandwidths() -> Iterator[Claim]:
    """Copies by the whole chip."""
    for name, gib, writes, far, key in (
        ("dram-read", 647, False, True, "dram_bytes_per_second"),
        ("dram-write", 600, True, True, "dram_bytes_per_second"),
        ("l2-read", 958, False, False, "l2_bytes_per_second"),
        ("l2-write", 1087, True, False, "l2_bytes_per_second"),
    ):
        chunks, launches = (2560, 1) if far else (64, 2)
        copy = Copy(2560 if far else 1280, chunks, writes, launches)
        paper = gib * GIB / 1e9
        yield Claim(
            f"bandwidth.{name}", "GB/s, whole chip", (paper, paper), "silicon", 0.2,
            lambda lab, copy=copy: bandwidth(lab, copy, PCIE) / 1e9,
            f"{MT4G}, {gib} GiB/s; ours: every warp moves 16 bytes a lane, {chunks * 64 // 1024} MB in all; {key} is from another source", key,
        )  # fmt: skip


# --- simulators of systolic arrays


def arrays() -> Iterator[Claim]:
    """B-4."""

    def worst(simulator: str) -> Callable[[Lab], float]:
        return lambda lab: 1 + max((r.difference(lab) for r in references(simulator)), key=abs)

    for simulator, kind, why in (
        ("scale-sim", "derived", "its 2R + C + m - 2 cycles a fold are our rule for this dataflow"),
        ("stonne", "calibrated", "its k + 35 cycles a tile set lsma_fill"),
    ):
        found = list(references(simulator))
        yield Claim(
            f"B-4.{simulator}", f"array's cycles by {simulator}'s, the worst of {len(found)} products", (1.0, 1.0), kind, found[0].tolerance,
            worst(simulator), f"stored numbers of {simulator}, which {found[0].target} is made after ({why}); ours: compiled and executed, cycles in which the array worked",
            "lsma_fill",
        )  # fmt: skip
