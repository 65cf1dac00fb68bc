"""SMA (arXiv 2002.08326): rows S-1 … S-7 and S-9, on volta-4tc, sma2 and sma3.

Of the paper the abstract was at hand, and its two numbers are the `published` rows: up to 63 % more performance, 23 % less energy, both
against Volta with TensorCore. What else is known of its experiments is recalled, and so are the rows that compare with it.

Three baselines stand for "Volta with TensorCore" in matrix products, since the gain depends on what it is compared with:

    loop     HMMAs on registers and nothing else: what the unit can do at most, given its interval
    cutlass  our kernel with CUTLASS's tile: blocks of 128×128×32, warps of 64×64×32
    best     the fastest of our kernels: those that the planner would take, and `TILES`

and `ideal` is the unit's peak, which no program reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from knapper.isa.machine import Machine

from .claims import Claim, Lab
from .microbench import DEPTH, ROWS, HmmaLoop, LsmaLoop, per_turn
from .recording import Replay
from .workloads import CUTLASS, Gemm, Network, Tile, square

VOLTA, SMA2, SMA3 = "volta-4tc", "sma2", "sma3"
TENSOR_MACS = 256
"""A cycle of an SM of volta-4tc, at peak: 4 units of 4×4×4."""
LOOP, CUTLASS_LIKE, BEST, IDEAL = "loop", "cutlass", "best", "ideal"
TILES: tuple[Tile, ...] = ((), CUTLASS, (("tile", (64, 128, 64)), ("warps", (2, 4))))
"""Of which `best` is the fastest; () is the planner's choice."""
BLOCK: Tile = (("tile", (128, 128, 64)),)
"""The block tile of SMA's kernel, recalled: 128×128."""
TABLES = ("horowitz", "aladdin", "accelwattch")
RECALLED = "recalled from the paper"


def rows() -> Iterator[Claim]:
    """All of them."""
    yield from speedups()
    yield from gemm_speedups()
    yield from energies()
    yield from efficiency()
    yield from iso_flop()
    yield from dataflow()
    yield from units()
    yield from hybrid()
    yield from registers()


def peak(machine: Machine) -> int:
    """Multiply-accumulates a cycle of the chip, in 16 bits."""
    array = machine.systolic_units * machine.array_rows * machine.array_columns
    return machine.sms * (array or TENSOR_MACS)


def product(lab: Lab, target: str, tile: Tile = (), side: int = 0) -> Replay:
    """A square product."""
    return lab.run(square(side or lab.sizes.gemm[-1], tile), target)


# --- S-1


def networks(lab: Lab, batch: int) -> list[Network]:
    """The regular networks that are run at a batch size."""
    names = lab.sizes.networks if batch < lab.sizes.large else lab.sizes.few
    return [Network(n, batch, lab.sizes.image) for n in names]


def speedup(lab: Lab, n: Network) -> float:
    """Of 3 units against Tensor Cores."""
    return lab.run(n, VOLTA).cycles / lab.run(n, SMA3).cycles


def fastest(lab: Lab, batch: int) -> float:
    """The speed-up of the network that gains most. If numbers are moved it is that network's, whichever gains most then."""
    still = lab.still()
    best = max(networks(lab, batch), key=partial(speedup, still))
    lab.asked |= still.asked
    return speedup(lab, best)


def speedups() -> Iterator[Claim]:
    """Against our own kernels, both sides as the planner chooses."""
    for batch in (1, 16, 64):
        yield Claim(
            f"S-1.batch{batch}", f"speed-up of the network that gains most, batch {batch}", (1.63, 1.63), "published", 0.15,
            partial(fastest, batch=batch),
            "abstract: up to 63 %; ours: T(volta-4tc) / T(sma3), all launches of each network executed on both, kernels as the planner chooses; interval: of that network",
            "units.tensor.interval",
        )  # fmt: skip


def baseline(lab: Lab, how: str, side: int = 0) -> float:
    """Cycles of a square product on volta-4tc by one of the baselines."""
    side = side or lab.sizes.gemm[-1]
    machine = lab.machine(VOLTA)
    if how == IDEAL:
        return side**3 / peak(machine)
    if how == LOOP:
        return side**3 / hmma_rate(lab)
    tiles = TILES if how == BEST else (CUTLASS,)
    return min(product(lab, VOLTA, t, side).cycles for t in tiles)


def hmma_rate(lab: Lab) -> float:
    """Multiply-accumulates a cycle of the chip in a loop of HMMAs."""
    loop = HmmaLoop(lab.machine(VOLTA).sms, warps=8, chains=4, turns=lab.sizes.loop)
    return per_turn(lab, loop, VOLTA, macs) / per_turn(lab, loop, VOLTA)


def macs(r: Replay) -> float:
    """Executed ones."""
    return sum(s.macs_executed for s in r.recording.launches)


def gemm_speedups() -> Iterator[Claim]:
    """The same gain in one product, against each baseline."""
    for how, paper, of in (
        (IDEAL, 1.21, "3/2 units, 88.9 % of slots, 90.8 % of cycles"),
        (LOOP, 1.64, "1.21 by 74 %, an HMMA loop on a V100"),
        (CUTLASS_LIKE, 2.09, "1.21 by 58 %, CUTLASS on a V100"),
        (BEST, 1.55, "1.21 by 78 %, cuBLAS on a V100"),
    ):
        yield Claim(
            f"S-1.gemm.{how}", f"speed-up of a square product, against the baseline `{how}`", (paper, paper), "derived", 0.2,
            lambda lab, how=how: baseline(lab, how) / product(lab, SMA3).cycles,
            f"derived: {of}; ours: executed, the largest of `sizes.gemm`", "lsma_bubble",
        )  # fmt: skip


# --- S-2


def energy_ratio(lab: Lab, n: Network, table: str) -> float:
    """Energy on 3 units by energy on Tensor Cores."""
    mine, theirs = (lab.run(n, t) for t in (SMA3, VOLTA))
    return joules(lab, mine, table) / joules(lab, theirs, table)


def joules(lab: Lab, r: Replay, table: str) -> float:
    """A run's energy at a table's prices; prices that are moved stay moved."""
    return r.joules(lab.priced(r.machine, table))


def mean_energy(lab: Lab, table: str, batch: int) -> float:
    """Geometric mean over networks."""
    return geometric_mean([energy_ratio(lab, n, table) for n in networks(lab, batch)])


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def energies() -> Iterator[Claim]:
    """By table."""
    for table in TABLES:
        yield Claim(
            f"S-2.{table}", "energy by that of volta-4tc, mean of networks, batch 1", (0.77, 0.77), "published", 0.1,
            partial(mean_energy, table=table, batch=1),
            f"abstract: 23 % less; ours: E(sma3) / E(volta-4tc), geometric mean over the networks of S-1, energy table {table}", "energy.dram",
        )  # fmt: skip


# --- S-3, S-4


def efficiency() -> Iterator[Claim]:
    """Of 2 units."""

    def of_loop(lab: Lab) -> float:
        return ROWS / lsma(lab, SMA2, 2)

    def of_product(lab: Lab, i: int) -> float:
        side = lab.sizes.gemm[min(i, len(lab.sizes.gemm) - 1)]
        return side**3 / peak(lab.machine(SMA2)) / product(lab, SMA2, BLOCK, side).cycles

    yield Claim(
        "S-3.oracle", "share of the array's cycles that stream, 128 rows", (128 / 141, 128 / 141), "derived", 0.0, of_loop,
        "128 of 128 + 8 (weights) + 5 (bubble); ours: a loop of LSMAs, executed", "lsma_bubble",
    )  # fmt: skip
    for i, side in enumerate(FULL_SIDES):
        yield Claim(
            f"S-3.gemm{side}", f"efficiency of 2 units, {side}³", (0.9, 0.9), "recalled", 0.1, partial(of_product, i=i),
            f"{RECALLED}: about 90 %; ours: macs / cycles / peak, launch included, blocks of 128×128×64", "lsma_bubble",
        )  # fmt: skip


FULL_SIDES = (1024, 2048, 4096)


def lsma(lab: Lab, target: str, units: int, rows: int = ROWS) -> float:
    """Cycles that an LSMA takes in a loop of them."""
    return per_turn(lab, LsmaLoop((units,), lab.sizes.loop // DEPTH, rows), target) / DEPTH


def iso_flop() -> Iterator[Claim]:
    """2 units against 4 Tensor Cores: the same peak."""
    for how in (LOOP, CUTLASS_LIKE, BEST):
        yield Claim(
            f"S-4.{how}", f"2 units by 4 Tensor Cores, square product, baseline `{how}`", (1.3, 1.5), "recalled", 0.1,
            lambda lab, how=how: baseline(lab, how) / product(lab, SMA2, BLOCK).cycles,
            f"{RECALLED}, with little confidence: 1.3 to 1.5; ours: executed, the largest of `sizes.gemm`", "units.tensor.interval" if how == LOOP else "lsma_bubble",
        )  # fmt: skip


# --- S-5, S-6


def dataflow() -> Iterator[Claim]:
    """The TPU's dataflow on the same SM."""

    def streaming(lab: Lab, target: str, count: int) -> float:
        """Cycles that a row of A takes."""
        return (lsma(lab, target, count) - lsma(lab, target, count, ROWS // 2)) / (ROWS // 2)

    for target, count, slower in ((SMA2, 2, 1.25), (SMA3, 3, 1.75)):
        yield Claim(
            f"S-5.oracle{count}", f"a row of A by ws and by sbws, {count} units", (slower, slower), "derived", 0.0,
            lambda lab, t=target, n=count: streaming(lab, f"{t}-ws", n) / streaming(lab, t, n),
            f"(8 + 16 · {count}) words by 32 banks; ours: loops of LSMAs of 128 and of 64 rows, executed", "shared_banks",
        )  # fmt: skip
        yield Claim(
            f"S-5.gemm{count}", f"a square product by ws and by sbws, {count} units", (1.2, 1.4), "recalled", 0.1,
            lambda lab, t=target: product(lab, f"{t}-ws", BLOCK).cycles / product(lab, t, BLOCK).cycles,
            f"{RECALLED}: 20 to 40 % slower; ours: executed, blocks of 128×128×64 on both", "shared_banks",
        )  # fmt: skip


def units() -> Iterator[Claim]:
    """3 units by 2."""

    def turn(lab: Lab, target: str, strips: tuple[int, ...]) -> float:
        return per_turn(lab, LsmaLoop(strips, lab.sizes.loop // DEPTH), target)

    for columns, two, three in ((128, (2,) * 4, (3, 3, 2)), (192, (2,) * 6, (3,) * 4)):
        gain = len(two) / len(three)
        yield Claim(
            f"S-6.tn{columns}", f"3 units by 2, a tile of 128×{columns}", (gain, gain), "derived", 0.0,
            lambda lab, a=two, b=three: turn(lab, SMA2, a) / turn(lab, SMA3, b),
            f"{len(two)} strips of columns by {len(three)}; ours: a warp a strip, LSMAs in a loop, executed", "sma3:lsma_bubble",
        )  # fmt: skip
    yield Claim(
        "S-6.gemm", "3 units by 2, square product", (4 / 3, 3 / 2), "derived", 0.1,
        lambda lab: product(lab, SMA2).cycles / product(lab, SMA3).cycles,
        "as above; ours: executed, tiles as the planner chooses", "sma3:lsma_bubble",
    )  # fmt: skip


# --- S-7


def hybrid() -> Iterator[Claim]:
    """Networks of which a part is no matrix product."""

    def network(lab: Lab, name: str) -> Network:
        return Network(name, 1, lab.sizes.hybrid_image)

    def switching(lab: Lab, name: str) -> float:
        n = network(lab, name)
        free = lab.moving("mode_switch_cycles", 0.0).run(n, SMA3).cycles
        return 1 - free / lab.run(n, SMA3).cycles

    for name in ("detector", "segmentation"):
        yield Claim(
            f"S-7.{name}.switches", "share of the time that switches of the mode take, sma3", (0.0, 0.01), "derived", 0.0,
            partial(switching, name=name),
            "a switch is 8 cycles, a launch thousands; ours: the network executed, cycles without the switches' beside", "mode_switch_cycles",
        )  # fmt: skip
        yield Claim(
            f"S-7.{name}", "speed-up of sma3 against volta-4tc", (1.0, math.inf), "recalled", 0.0,
            lambda lab, name=name: speedup(lab, network(lab, name)),
            f"{RECALLED}: hybrid networks gain too; ours: executed on both, kernels as the planner chooses", "launch_cycles",
        )  # fmt: skip


# --- S-9


def registers() -> Iterator[Claim]:
    """Register-file bytes a multiply-accumulate."""

    def each(lab: Lab, loop: HmmaLoop | LsmaLoop, target: str) -> float:
        return per_turn(lab, loop, target, lambda r: r.register_bytes) / per_turn(
            lab, loop, target, macs
        )

    yield Claim(
        "S-9.tensor", "bytes of registers a MAC, Tensor Cores", (2.5, 2.5), "derived", 0.0,
        lambda lab: each(lab, HmmaLoop(1, 4, 4, lab.sizes.loop), VOLTA),
        "a set of HMMA.884 steps: 512 B of A and B, 2 KB of C and D, 1,024 MAC; ours: events of executed HMMAs", "tensor_operand_words",
    )  # fmt: skip
    yield Claim(
        "S-9.systolic", "bytes of registers a MAC, systolic mode", (1.0, 1.0), "derived", 0.0,
        lambda lab: each(lab, LsmaLoop((2,), lab.sizes.loop // DEPTH), SMA2),
        "a row of C in and out: 128 B, 128 MAC; ours: events of executed LSMAs", "array_columns",
    )  # fmt: skip
    for target, bytes_, of in ((VOLTA, 2.5, "HMMA"), (SMA2, 1.0, "LSMA")):
        yield Claim(
            f"S-9.gemm.{target}", "bytes of registers a MAC, a square product as a whole", (bytes_, math.inf), "derived", 0.0,
            lambda lab, t=target: product(lab, t).register_bytes / product(lab, t).macs,
            f"{of}s as above, and what loads, addresses and the epilogue add; ours: all events of the executed product", "tensor_operand_words" if target == VOLTA else "array_columns",
        )  # fmt: skip
