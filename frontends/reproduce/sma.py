"""SMA (arXiv 2002.08326): rows S-1 … S-7 and S-9, on volta-4tc, sma2 and sma3.

Of the paper the abstract was at hand, and its two numbers are the `published` rows: up to 63 % more performance, 23 % less energy, both
against Volta with TensorCore. What else is known of its experiments is recalled, and so are the rows that compare with it.

Networks are compared with our own kernels on volta-4tc. For one product three baselines stand for "Volta with TensorCore" beside that, since
the gain depends on what it is compared with:

    loop     HMMAs on registers and nothing else: what the unit can do at most, given its interval
    cutlass  our kernel with CUTLASS's tile: blocks of 128×128×32, warps of 64×64×32
    best     the fastest of `TILES`, CUTLASS's among them, as a tuned library would find it

and `ideal` is the unit's peak, which no program reaches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from knapper.isa.machine import Machine
from knapper.isa.program import Program

from .claims import Claim, Lab, Workload
from .microbench import DEPTH, ROWS, HmmaLoop, LsmaLoop, per_turn
from .recording import Replay
from .workloads import CUTLASS, Network, Tile, square

VOLTA, SMA2, SMA3 = "volta-4tc", "sma2", "sma3"
HOSTED = "systolic-host"
TENSOR_MACS = 64
"""A cycle of a Tensor Core unit: 4×4×4."""
LOOP, CUTLASS_LIKE, BEST, IDEAL = "loop", "cutlass", "best", "ideal"
TILES: tuple[Tile, ...] = (
    (),
    CUTLASS,
    (("tile", (128, 128, 32)), ("warps", (1, 4))),
    (("tile", (128, 128, 32)), ("warps", (2, 4))),
    (("tile", (128, 256, 32)), ("warps", (2, 4))),
    (("tile", (64, 128, 64)), ("warps", (2, 4))),
)
"""() is the planner's choice, the others are tiles as tuned libraries have them: blocks of 64 to 128 rows, of 4 and 8 warps."""
BLOCK: Tile = (("tile", (128, 128, 64)),)
"""The block tile of SMA's kernel, recalled: 128×128. Strips of 3 units do not fit it, whose C would take 192 registers."""
WIDE: Tile = (("units", 3),)
"""The planner's tile whose strips take all 3 units."""
SIDES = (1024, 2048, 4096)
"""Of square products."""
TABLES = ("horowitz", "aladdin", "accelwattch")
RECALLED = "recalled from the paper"


def rows() -> Iterator[Claim]:
    """All of them."""
    yield from speedups()
    yield from efficient_speedups()
    yield from gemm_speedups()
    yield from energies()
    yield from efficiency()
    yield from iso_flop()
    yield from dataflow()
    yield from units()
    yield from hybrid()
    yield from registers()


# --- what rows ask


def peak(machine: Machine) -> int:
    """Multiply-accumulates a cycle of the chip, in 16 bits."""
    arrays = machine.systolic_units * machine.array_rows * machine.array_columns
    return machine.sms * (arrays or machine.tensor_units * TENSOR_MACS)


def product(lab: Lab, target: str, tile: Tile = (), side: int = SIDES[-1]) -> Replay:
    """A square product."""
    return lab.run(square(lab.sizes.side(side), tile), target)


@dataclass(frozen=True)
class CompiledFor:
    """A workload as it is compiled for `target`, to be timed on another machine with the same instructions."""

    target: str
    workload: Workload

    def program(self, machine: Machine) -> Program:
        return self.workload.program(Machine.load(self.target))


def lsma(lab: Lab, target: str, units: int, rows: int = ROWS) -> float:
    """Cycles that an LSMA takes in a loop of them."""
    return per_turn(lab, LsmaLoop((units,), lab.sizes.turns, rows), target) / DEPTH


def hmma_rate(lab: Lab) -> float:
    """Multiply-accumulates a cycle of the chip in a loop of HMMAs."""
    loop = HmmaLoop(lab.machine(VOLTA).sms, warps=8, chains=4, turns=lab.sizes.loop)
    return per_turn(lab, loop, VOLTA, macs) / per_turn(lab, loop, VOLTA)


def macs(r: Replay) -> float:
    """Executed multiply-accumulates."""
    return r.macs


def baseline(lab: Lab, how: str) -> float:
    """Cycles of a square product on volta-4tc by one of the baselines."""
    side = lab.sizes.side(SIDES[-1])
    if how == IDEAL:
        return side**3 / peak(lab.machine(VOLTA))
    if how == LOOP:
        return side**3 / hmma_rate(lab)
    return min(product(lab, VOLTA, t).cycles for t in (TILES if how == BEST else (CUTLASS,)))


# --- S-1


def speedup(lab: Lab, n: Network) -> float:
    """Of 3 units against Tensor Cores."""
    return lab.run(n, VOLTA).cycles / lab.run(n, SMA3).cycles


def named(lab: Lab, name: str, batch: int) -> Network:
    """One of the regular networks, as large as the lab has it."""
    return Network(lab.sizes.network or name, min(batch, lab.sizes.batch), lab.sizes.image)


def one(lab: Lab, name: str, batch: int) -> float:
    """A network's speed-up."""
    return speedup(lab, named(lab, name, batch))


def fastest(lab: Lab, names: tuple[str, ...], batch: int) -> float:
    """The speed-up of the network that gains most. If numbers are moved it is that network's, whichever gains most then."""
    still = lab.still()
    best = max(names, key=lambda name: one(still, name, batch))
    return one(lab, best, batch)


NETWORKS = {
    1: ("alexnet", "vgg16", "inception_v1", "resnet50"),
    16: ("alexnet", "vgg16", "inception_v1", "resnet50"),
    64: ("alexnet", "resnet50"),
}
"""By batch. VGG-16 and Inception v1 at 64 would take longer than all other rows."""


def speedups() -> Iterator[Claim]:
    """Against our own kernels, both sides as the planner chooses."""
    for batch, names in NETWORKS.items():
        yield Claim(
            f"S-1.batch{batch}", f"speed-up of the network that gains most, batch {batch}", (1.63, 1.63), "published", 0.15,
            partial(fastest, names=names, batch=batch),
            f"abstract: up to 63 %; ours: T(volta-4tc) / T(sma3) of {', '.join(names)}, all launches executed on both, kernels as the planner "
            "chooses; interval: of that network",
            "units.tensor.interval",
        )  # fmt: skip
        for name in names:
            yield Claim(
                f"S-1.batch{batch}.{name}", f"speed-up of {name}, batch {batch}", (1.0, 1.63), "recalled", 0.0,
                partial(one, name=name, batch=batch), "recalled: every network gains; the abstract: by 63 % at most; ours: as above",
                "units.tensor.interval", swept=False,
            )  # fmt: skip


def against(lab: Lab, how: str) -> float:
    """A square product on 3 units against a baseline."""
    return baseline(lab, how) / product(lab, SMA3).cycles


def at_efficiency(lab: Lab, name: str, batch: int, how: str) -> float:
    """A network's speed-up if volta-4tc multiplied matrices as efficiently as a baseline, and did the rest as it does."""
    n = named(lab, name, batch)
    volta = lab.run(n, VOLTA)
    rate = lab.sizes.side(SIDES[-1]) ** 3 / baseline(lab, how)
    matrices = volta.useful_macs / rate + volta.products * volta.machine.launch_cycles
    seconds = volta.beside_matrices + matrices / volta.machine.clock_hz
    return seconds / lab.run(n, SMA3).seconds


def most(lab: Lab, batch: int, how: str) -> float:
    """Of the network that gains most then."""
    return max(at_efficiency(lab, name, batch, how) for name in NETWORKS[batch])


def efficient_speedups() -> Iterator[Claim]:
    """Networks, against Tensor Cores that reach the efficiency of a baseline in all their products."""
    for batch in NETWORKS:
        for how in (LOOP, CUTLASS_LIKE, BEST):
            yield Claim(
                f"S-1.batch{batch}.{how}", f"the same if volta-4tc's products had the efficiency of `{how}`, batch {batch}", (1.63, 1.63),
                "derived", 0.15, partial(most, batch=batch, how=how),
                "abstract: up to 63 %, against a baseline that it does not describe; ours: T(sma3) and what is no product on volta-4tc as executed, "
                "its products by their macs and the rate of the executed baseline at 4096³",
                "units.tensor.interval" if how == LOOP else "sma3:lsma_bubble", swept=False,
            )  # fmt: skip


def gemm_speedups() -> Iterator[Claim]:
    """The same gain in one product, against each baseline."""
    for how, paper, of in (
        (IDEAL, 1.21, "3/2 units, 88.9 % of slots, 90.8 % of cycles"),
        (LOOP, 1.64, "1.21 by 74 %, an HMMA loop on a V100"),
        (CUTLASS_LIKE, 2.09, "1.21 by 58 %, CUTLASS on a V100"),
        (BEST, 1.55, "1.21 by 78 %, cuBLAS on a V100"),
    ):
        yield Claim(
            f"S-1.gemm.{how}", f"speed-up of a product of 4096³ against the baseline `{how}`", (paper, paper), "derived", 0.2,
            partial(against, how=how), f"derived: {of}; ours: executed, the tile on sma3 as the planner chooses", "lsma_bubble",
        )  # fmt: skip


# --- S-2


def energy_ratio(lab: Lab, n: Network, table: str) -> float:
    """Energy on 3 units by energy on Tensor Cores, at a table's prices; prices that are moved stay moved."""
    mine, theirs = (lab.run(n, t) for t in (SMA3, VOLTA))
    return mine.joules(lab.priced(mine.machine, table)) / theirs.joules(
        lab.priced(theirs.machine, table)
    )


def mean_energy(lab: Lab, table: str, batch: int) -> float:
    """Geometric mean over networks."""
    return geometric_mean([energy_ratio(lab, named(lab, n, batch), table) for n in NETWORKS[batch]])


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def energies() -> Iterator[Claim]:
    """By table; only batch 1 has intervals, which take a replay of every network for every number."""
    for batch in (1, 16):
        for table in TABLES:
            yield Claim(
                f"S-2.batch{batch}.{table}", f"energy by that of volta-4tc, mean of networks, batch {batch}", (0.77, 0.77), "published", 0.1,
                partial(mean_energy, table=table, batch=batch),
                f"abstract: 23 % less; ours: E(sma3) / E(volta-4tc), geometric mean over the networks of S-1, energy table {table}",
                "energy.dram", swept=batch == 1,
            )  # fmt: skip


# --- S-3, S-4


def loop_efficiency(lab: Lab) -> float:
    """Share of the array's cycles in which A streams."""
    return ROWS / lsma(lab, SMA2, 2)


def gemm_efficiency(lab: Lab, side: int) -> float:
    """Of 2 units in a square product, launch included."""
    done = lab.sizes.side(side) ** 3 / peak(lab.machine(SMA2))
    return done / product(lab, SMA2, BLOCK, side).cycles


def efficiency() -> Iterator[Claim]:
    """Of 2 units."""
    yield Claim(
        "S-3.oracle", "share of the array's cycles that stream, 128 rows", (128 / 141, 128 / 141), "derived", 0.0, loop_efficiency,
        "128 of 128 + 8 (weights) + 5 (bubble); ours: a loop of LSMAs, executed", "lsma_bubble",
    )  # fmt: skip
    for side in SIDES:
        yield Claim(
            f"S-3.gemm{side}", f"efficiency of 2 units, {side}³", (0.9, 0.9), "recalled", 0.1, partial(gemm_efficiency, side=side),
            f"{RECALLED}: about 90 %; ours: macs / cycles / peak, launch included, blocks of 128×128×64", "lsma_bubble",
        )  # fmt: skip


def iso(lab: Lab, how: str) -> float:
    """A square product on 2 units against a baseline."""
    return baseline(lab, how) / product(lab, SMA2, BLOCK).cycles


def iso_flop() -> Iterator[Claim]:
    """2 units against 4 Tensor Cores: the same peak."""
    for how in (LOOP, CUTLASS_LIKE, BEST):
        yield Claim(
            f"S-4.{how}", f"2 units by 4 Tensor Cores, 4096³, baseline `{how}`", (1.3, 1.5), "recalled", 0.1, partial(iso, how=how),
            f"{RECALLED}, with little confidence: 1.3 to 1.5; ours: executed, blocks of 128×128×64", "lsma_bubble",
        )  # fmt: skip


# --- S-5, S-6


def streaming(lab: Lab, count: int) -> float:
    """Cycles that a row of A takes with the TPU's dataflow by those with SMA's."""
    target = f"sma{count}"
    each = (lsma(lab, t, count) - lsma(lab, t, count, ROWS // 2) for t in (f"{target}-ws", target))
    theirs, mine = each
    return theirs / mine


def ablation(lab: Lab, count: int) -> float:
    """The same of a square product as a whole: one program on both."""
    target, tile = f"sma{count}", BLOCK if count == 2 else WIDE
    program = CompiledFor(target, square(lab.sizes.side(SIDES[-1]), tile))
    return lab.run(program, f"{target}-ws").cycles / lab.run(program, target).cycles


def dataflow() -> Iterator[Claim]:
    """The TPU's dataflow on the same SM."""
    for count, slower, tile in (
        (2, 1.25, "blocks of 128×128×64"),
        (3, 1.75, "the tile that the planner chooses for strips of 3 units"),
    ):
        yield Claim(
            f"S-5.oracle{count}", f"a row of A by ws and by sbws, {count} units", (slower, slower), "derived", 0.0,
            partial(streaming, count=count),
            f"(8 + 16 · {count}) words by 32 banks; ours: loops of LSMAs of 128 and of 64 rows, executed", "shared_banks",
        )  # fmt: skip
        yield Claim(
            f"S-5.gemm{count}", f"4096³ by ws and by sbws, {count} units", (1.2, 1.4), "recalled", 0.1, partial(ablation, count=count),
            f"{RECALLED}: 20 to 40 % slower; ours: the same program on both, executed, {tile}", "shared_banks",
        )  # fmt: skip


def by_tile(lab: Lab, two: tuple[int, ...], three: tuple[int, ...]) -> float:
    """Cycles of a tile whose strips take 2 units each by those of strips of up to 3."""
    loops = ((SMA2, two), (SMA3, three))
    theirs, mine = (per_turn(lab, LsmaLoop(s, lab.sizes.turns), t) for t, s in loops)
    return theirs / mine


def by_product(lab: Lab) -> float:
    """Cycles of a square product on 2 units by those on 3."""
    return product(lab, SMA2).cycles / product(lab, SMA3).cycles


def units() -> Iterator[Claim]:
    """3 units by 2."""
    for columns, two, three in ((128, (2,) * 4, (3, 3, 2)), (192, (2,) * 6, (3,) * 4)):
        gain = len(two) / len(three)
        yield Claim(
            f"S-6.tn{columns}", f"3 units by 2, a tile of 128×{columns}", (gain, gain), "derived", 0.0,
            partial(by_tile, two=two, three=three),
            f"{len(two)} strips of columns by {len(three)}; ours: a warp a strip, LSMAs in a loop, executed", "sma3:lsma_bubble",
        )  # fmt: skip
    yield Claim(
        "S-6.gemm", "3 units by 2, 4096³", (4 / 3, 3 / 2), "derived", 0.1, by_product,
        "as above; ours: executed, tiles as the planner chooses", "sma3:lsma_bubble",
    )  # fmt: skip


# --- S-7


def hybrid_network(lab: Lab, name: str) -> Network:
    """A network of which a part is no matrix product."""
    return Network(name, 1, lab.sizes.hybrid)


def switching(lab: Lab, name: str) -> float:
    """Share of the SMs' time that switches of the mode take beside the drains."""
    r = lab.run(hybrid_network(lab, name), SMA3)
    working = sum(m.timing.active_sms * m.timing.cycles for m in r.launches)
    return r.stats.mode_switches * r.machine.mode_switch_cycles / working


def on_chip(lab: Lab, name: str) -> float:
    """Time beside matrix products, transfers included, on a host by that on sma3."""
    n = hybrid_network(lab, name)
    return lab.run(n, HOSTED).beside_matrices / lab.run(n, SMA3).beside_matrices


def hybrid_speedup(lab: Lab, name: str) -> float:
    """Of 3 units against Tensor Cores."""
    return speedup(lab, hybrid_network(lab, name))


def hybrid() -> Iterator[Claim]:
    """Networks that gain from staying on the chip."""
    for name in ("detector", "segmentation"):
        yield Claim(
            f"S-7.{name}.host", f"{name}: what is no matrix product, on a host by on sma3", (1.0, math.inf), "recalled", 0.0,
            partial(on_chip, name=name),
            "the paper's introduction gives the direction; ours: launches without multiply-accumulates and transfers, executed on systolic-host and "
            "sma3; what multiplies, depthwise convolutions too, stays on the host's array and is on neither side, "
            "as one array is not compared with 80 SMs",
            "host_microseconds",
        )  # fmt: skip
        yield Claim(
            f"S-7.{name}.switches", f"{name}: share of the time that switches of the mode take", (0.0, 0.01), "derived", 0.0,
            partial(switching, name=name),
            "a switch is 8 cycles, a launch thousands; ours: MODEs executed on sma3 that found the other mode, "
            "their cycles by those of all working SMs",
            "mode_switch_cycles",
        )  # fmt: skip
        yield Claim(
            f"S-7.{name}", f"{name}: speed-up of sma3 against volta-4tc", (1.0, math.inf), "recalled", 0.0, partial(hybrid_speedup, name=name),
            f"{RECALLED}: hybrid networks gain too; ours: executed on both, kernels as the planner chooses", "units.tensor.interval",
        )  # fmt: skip


# --- S-9


def loop_registers(lab: Lab, loop: HmmaLoop | LsmaLoop, target: str) -> float:
    """Bytes of registers that a turn moves for each of its multiply-accumulates."""
    moved = per_turn(lab, loop, target, lambda r: r.register_bytes)
    return moved / per_turn(lab, loop, target, macs)


def tensor_registers(lab: Lab) -> float:
    """Of HMMAs."""
    return loop_registers(lab, HmmaLoop(1, 4, 4, lab.sizes.loop), VOLTA)


def systolic_registers(lab: Lab) -> float:
    """Of LSMAs."""
    return loop_registers(lab, LsmaLoop((2,), lab.sizes.turns), SMA2)


def product_registers(lab: Lab, target: str) -> float:
    """Of a square product as a whole."""
    r = product(lab, target)
    return r.register_bytes / r.macs


def registers() -> Iterator[Claim]:
    """Register-file bytes a multiply-accumulate."""
    for target, bytes_, unit, ours, of, key in (
        (VOLTA, 2.5, "Tensor Cores", tensor_registers, "a set of HMMA steps: 512 B of A and B, 2 KB of C and D, 1,024 MAC", "tensor_operand_words"),
        (SMA2, 1.0, "systolic units", systolic_registers, "a row of C in and out: 128 B, 128 MAC", ""),
    ):  # fmt: skip
        yield Claim(
            f"S-9.{target}", f"bytes of registers a MAC, {unit}", (bytes_, bytes_), "derived", 0.0, ours,
            f"{of}; ours: events of a loop that was executed", key,
        )  # fmt: skip
        yield Claim(
            f"S-9.{target}.gemm", f"the same of 4096³ as a whole, {unit}", (bytes_, math.inf), "derived", 0.0,
            partial(product_registers, target=target),
            "as above, and what loads, addresses and the epilogue add; ours: all events of the executed product", key,
        )  # fmt: skip
