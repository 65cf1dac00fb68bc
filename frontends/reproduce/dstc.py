"""The dual-side sparse Tensor Core (arXiv 2105.09564): rows D-1 … D-11, on dstc, against volta-8tc.

Of the paper the abstract was at hand, whose one number is "up to one order of magnitude". The rest is from people's notes on it and from the
figure that Sparseloop's artifact digitised (`recalled`: read at second hand), or follows from the rule that a step of k takes
⌈non-zeros of A's column / 8⌉ · ⌈non-zeros of B's row / 16⌉ outer products (`derived`).

A 16×16×16 product takes 32 cycles at the ideal pitch of 8 cycles a set, 40 at the measured one of 10. An OHMMA is a 32nd of that on
dstc. Rows say at which pitch they are, always the same on both machines; where none is said it is the measured one.

    D-1   figure 21   tiles of random zeros, cycles by those of a dense tile        D-6    where a sparse product overtakes the dense one
    D-2   steps       exactly 24, 16, 8 of 32 values                                D-8    what making a tile from an image costs
    D-3   example     3 of 8 OHMMAs are left                                        D-9    the collector's window
    D-4   rates       OHMMA, OWMMA, HMMA                                            D-10   zeros on one side only
    D-5   speed-up    95 % zeros on both sides                                      D-11   the whole of figure 21
                    D-7   area        of the accumulation buffers                 D-12   networks
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from .claims import Claim, Lab, Table
from .microbench import per_turn
from .outer import DENSE, OuterLoop, Tiles, WarpLoop
from .recording import Replay
from .sparse import PrunedNetwork, SparseGemm, products
from .sparse_tiles import TileLoop
from .workloads import Network

DSTC, VOLTA = "dstc", "volta-8tc"
TILES = 60
"""Random tiles of a turn."""
PITCH = "units.tensor.interval"
IDEAL = 0.8
"""Of the measured pitch."""
NOTES = "third-party notes on the paper"
FIGURE = "figure 21 as Sparseloop's artifact digitised it"
FIGURE_21 = {
    (1.0, 0.4): 2500, (0.9, 1.0): 4160, (0.9, 0.4): 2300, (0.7, 1.0): 3300, (0.7, 0.4): 1820,
    (0.5, 1.0): 2690, (0.5, 0.4): 1480, (0.3, 1.0): 1930, (0.3, 0.4): 1100,
}  # fmt: skip
"""Density of A and of B → time, in units of which a dense product takes `FIGURE_DENSE`."""
FIGURE_DENSE = 4600
COLLECTOR = {
    (0.5, 1.0): {1: 1.091, 2: 1.091, 4: 0.894, 8: 0.788, 16: 0.711, 0: 0.618},
    (0.5, 0.5): {1: 1.314, 2: 0.967, 4: 0.791, 8: 0.654, 16: 0.552, 0: 0.440},
    (0.25, 0.25): {1: 0.516, 2: 0.393, 4: 0.292, 8: 0.221, 16: 0.196, 0: 0.176},
}  # fmt: skip
"""Densities → window (0: all of a tile) → cycles by those of a dense tile, a Monte-Carlo of 60 trials."""

FITTED = "numbers of machines cancel but those that it was fitted with, of which 0 stays 0 when it is multiplied; a test moves these"
CANCEL = "numbers of machines cancel: whole OHMMAs are compared"
PLAN = "it was decided when compiling, which no replay does again"
SLOW = "an interval would replay many products, or a network, for each of some 70 numbers"


def rows() -> Iterator[Claim]:
    """All of them."""
    yield from figure()
    yield from steps()
    yield from rates()
    yield from speedups()
    yield from collector()
    yield from one_side()
    yield from making()
    yield from area()
    yield from networks()


# --- what rows ask


def ideal(lab: Lab) -> Lab:
    """Both machines at the ideal pitch."""
    return lab.moving(PITCH, IDEAL * lab.moved.get(PITCH, 1.0))


def measured(lab: Lab) -> Lab:
    """Both as they are."""
    return lab


def at_pitch(lab: Lab, at: Callable[[Lab], Lab], of: Callable[[Lab], float]) -> float:
    """A row's number at a pitch."""
    return of(at(lab))


def cycles(lab: Lab, tiles: Tiles, target: str = DSTC) -> float:
    """Of an average tile."""
    return per_turn(lab, OuterLoop(tiles, lab.sizes.turns), target) / tiles.count


def relative(lab: Lab, a: float, b: float) -> float:
    """Cycles of tiles of random zeros by those of a dense one."""
    return cycles(lab, Tiles(a, b, TILES)) / cycles(lab, Tiles(1.0, 1.0))


# --- D-1, D-11


def accuracy(lab: Lab) -> float:
    """Mean of 1 - |ours / theirs - 1| over the figure."""
    off = [abs(relative(lab, a, b) * FIGURE_DENSE / t - 1) for (a, b), t in FIGURE_21.items()]
    return 1 - sum(off) / len(off)


def figure() -> Iterator[Claim]:
    """Point by point, and as a whole."""
    for (a, b), t in FIGURE_21.items():
        theirs = t / FIGURE_DENSE
        yield Claim(
            f"D-1.{a:g}x{b:g}", f"cycles by those of a dense tile, densities {a:g} and {b:g}", (theirs, theirs), "fitted", 0.1 / theirs,
            partial(relative, a=a, b=b),
            f"{FIGURE}; chose collector_window, pred_off_percent, bohmma_percent; ours: {TILES} tiles of random zeros, executed", "",
            swept=False, still=FITTED,
        )  # fmt: skip
    yield Claim(
        "D-11", "the figure as a whole: mean of 1 − |ours / theirs − 1|", (0.925, 1.0), "fitted", 0.0, accuracy,
        "theirs: what Sparseloop's own model of the figure reaches, 92.5 %; ours: the rows of D-1", "", swept=False, still=FITTED,
    )  # fmt: skip


# --- D-2, D-3


def steps() -> Iterator[Claim]:
    """Whole numbers of non-zeros."""
    for side, per, of in (("A", 8, (24, 16, 8)), ("B", 16, (16,))):
        for n in of:
            tiles = Tiles(n, 32) if side == "A" else Tiles(32, n)
            yield Claim(
                f"D-2.{side}{n}", f"{n} of 32 values of every vector of {side}: cycles by dense", (n / 32, n / 32), "derived", 0.0,
                partial(exactly, tiles=tiles), f"{NOTES}: steps of {per} values; ours: executed", "",
                swept=False, still=CANCEL,
            )  # fmt: skip
    yield Claim(
        "D-3", "OHMMAs left of 8 where A's column has 20 non-zeros, B's row 10", (3, 3), "derived", 0.0,
        lambda lab: 8 * exactly(lab, Tiles(20, 10)), f"{NOTES}: 5 of 8 are skipped; ours: cycles of a tile of such steps, executed",
        "", swept=False, still=CANCEL,
    )  # fmt: skip


def exactly(lab: Lab, tiles: Tiles) -> float:
    """Cycles of a tile by those of one without zeros."""
    return cycles(lab, tiles) / cycles(lab, Tiles(32, 32))


# --- D-4


def one(lab: Lab, what: str) -> float:
    """Cycles of an instruction at the ideal pitch."""
    lab = ideal(lab)
    if what == "OHMMA":
        return per_turn(lab, OuterLoop(Tiles(32, 32), lab.sizes.turns, singly=True), DSTC) / DENSE
    if what == "SPWMMA":
        return cycles(lab, Tiles(32, 32))
    loop = WarpLoop(what == "OWMMA", lab.sizes.loop)
    return per_turn(lab, loop, DSTC) / loop.chains


def rates() -> Iterator[Claim]:
    """The table of cycles: the same rate by inner and by outer products."""
    for what, n, of in (
        ("OHMMA", 1, "8×16×1"), ("SPWMMA", 128, "32×32×16 without zeros"), ("OWMMA", 32, "16×16×16"), ("HMMA", 32, "16×16×16"),
    ):  # fmt: skip
        yield Claim(
            f"D-4.{what}", f"cycles of {what}, {of}, at the ideal pitch", (n, n), "derived", 0.02, partial(one, what=what),
            f"{NOTES}: 128 multiply-accumulates a cycle on two Tensor Cores, wired either way; ours: a loop, executed", PITCH,
        )  # fmt: skip


# --- D-5, D-6


def speedup(lab: Lab, gemm: SparseGemm) -> float:
    """Of a product's launch on dstc against volta-8tc."""
    return products(lab.run(gemm, VOLTA)) / products(lab.run(gemm, DSTC))


def most(lab: Lab) -> float:
    """Speed-up with 95 % zeros on both sides."""
    return speedup(lab, square(lab, 0.95))


def crossover(lab: Lab) -> float:
    """The share of zeros on both sides at which the sparse product overtakes the dense one; between two that were executed, on a line."""
    before = (0.0, 0.0)
    for zeros in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        gain = math.log(speedup(lab, square(lab, zeros)))
        if gain > 0:
            share = -before[1] / (gain - before[1]) if zeros else 0.0
            return before[0] + share * (zeros - before[0])
        before = zeros, gain
    return math.inf


def square(lab: Lab, zeros: float, weights_only: bool = False) -> SparseGemm:
    """A product with so many zeros."""
    side = lab.sizes.side(SIDE)
    return SparseGemm(side, side, side, 1.0 if weights_only else 1 - zeros, 1 - zeros)


SIDE = 2048


def speedups() -> Iterator[Claim]:
    """Of the unit alone, and of whole products: encoded operands in memory, kernels with loads and epilogue."""
    yield Claim(
        "D-5.unit", "the unit alone: cycles of a dense tile by those of tiles with 95 % zeros on both sides", (12.3, 12.3), "derived", 0.03,
        lambda lab: 1 / relative(lab, 0.05, 0.05), f"expected ceilings of random zeros; ours: {TILES} tiles, cycles, executed", "",
        swept=False, still=CANCEL,
    )  # fmt: skip
    pitches: dict[str, Callable[[Lab], Lab]] = {"measured": measured, "ideal": ideal}
    for pitch, at in pitches.items():
        yield Claim(
            f"D-5.{pitch}", f"a whole product of {SIDE}³ with its memory, 95 % zeros on both sides: speed-up, {pitch} pitch",
            (10, math.inf), "published", 0.0,
            partial(at_pitch, at=at, of=most),
            "abstract: up to one order of magnitude; ours: the product's launch on volta-8tc by that on dstc, both executed", "launch_cycles",
        )  # fmt: skip
        yield Claim(
            f"D-6.{pitch}", f"zeros on both sides from which dstc is faster, {SIDE}³, {pitch} pitch", (0.0, 0.25), "recalled", 0.0,
            partial(at_pitch, at=at, of=crossover), f"{NOTES}: about 25 %, recalled from the paper; ours: executed at steps of 10 %", "launch_cycles",
            swept=False, still=SLOW,
        )  # fmt: skip


# --- D-9


def windowed(lab: Lab, a: float, b: float, window: int) -> float:
    """Cycles by those of a dense tile, with a collector of a window."""
    target = f"{DSTC}+collector_window={window}"
    ours, dense = (cycles(lab, t, target) for t in (Tiles(a, b, TILES), Tiles(1.0, 1.0)))
    return ours / dense


def collector() -> Iterator[Claim]:
    """Windows of 1 … 16 OHMMAs, and of all of a tile."""
    for (a, b), table in COLLECTOR.items():
        for window, theirs in table.items():
            yield Claim(
                f"D-9.{a:g}x{b:g}.{window or 'inf'}",
                f"densities {a:g} and {b:g}, a collector of {window or 'all'} OHMMAs: cycles by dense", (theirs, theirs), "derived", 0.03,
                partial(windowed, a=a, b=b, window=window), f"a Monte-Carlo of the banks; ours: {TILES} tiles, executed", "", swept=False,
                still=CANCEL,
            )  # fmt: skip


# --- D-10


def one_side() -> Iterator[Claim]:
    """Dense activations, as BERT's."""
    yield Claim(
        "D-10.steps", "90 % zeros in one operand, none in the other: cycles by dense", (0.242, 0.242), "derived", 0.03,
        lambda lab: relative(lab, 0.1, 1.0), f"expected ceilings; ours: {TILES} tiles, executed", "", swept=False, still=CANCEL,
    )  # fmt: skip
    yield Claim(
        "D-10.gemm", f"speed-up of {SIDE}³, 90 % zeros in the weights only", (1.0, math.inf), "recalled", 0.0,
        lambda lab: speedup(lab, square(lab, 0.9, weights_only=True)),
        f"{NOTES}: BERT gains too; ours: executed", PITCH,
    )  # fmt: skip


# --- D-8


def made(lab: Lab, how: str) -> float:
    """Cycles of making a tile of A by those of making it from a dense image."""
    ours, dense = (per_turn(lab, TileLoop(f, lab.sizes.loop), DSTC) for f in (how, "dense"))
    return ours / dense


def making() -> Iterator[Claim]:
    """A tile of 32 positions by 16 columns, all in shared memory."""
    for how, paper, what in (
        ("csr", (10.0, 100.0), "searched for entry by entry"), ("bitmap", (0.0, 1.0), "cut out of bitmaps"),
    ):  # fmt: skip
        yield Claim(
            f"D-8.{how}", f"making a tile of A from an image, {what}: cycles by dense", paper, "recalled", 0.0, partial(made, how=how),
            f"{NOTES}: sparse im2col is 10 to 100 times as slow without bitmaps, recalled from the paper; ours: one warp, loops, executed",
            "units.lsu_shared.latency",
        )  # fmt: skip


# --- D-7

DIE = 815.0
"""mm² of a GV100."""
BIT = 0.25e-6
"""mm² of a bit of a small memory of many banks at 12 nm, its periphery included; assumed."""


def buffers(lab: Lab) -> float:
    """The share of the die that accumulation buffers take."""
    machine = lab.machine(DSTC)
    return 8 * machine.accumulator_bytes * machine.sms * BIT / DIE


def area() -> Iterator[Claim]:
    """What the description says of it: the size of the buffers."""
    yield Claim(
        "D-7", "share of the die of the accumulation buffers", (0.0, 0.015), "recalled", 0.0, buffers,
        f"{NOTES}: 1.5 % for all that is added, 1.6 % of the power, recalled from the paper; ours: bytes by {BIT * 1e6:g} µm² a bit, which is "
        "assumed; adders and bitmap units are left out, and power is", "accumulator_bytes",
    )  # fmt: skip


# --- D-12

PRUNED = 0.8
NETWORKS = {
    "vgg16": (1,),
    "resnet18": (1, 16, 64),
    "resnet50": (1, 16),
    "bert_base": (1,),
    "minilm": (1, 16, 64),
}
"""Batches of each."""


def network(lab: Lab, name: str, batch: int, target: str) -> Replay:
    """A network with pruned weights, kernels as the planner chooses."""
    whole = Network(lab.sizes.network or name, min(batch, lab.sizes.batch), lab.sizes.image)
    return lab.run(PrunedNetwork(whole, PRUNED), target)


def gain(lab: Lab, name: str, batch: int, of: Callable[[Replay], float]) -> float:
    """What a network takes on volta-8tc by what it takes on dstc."""
    theirs, mine = (of(network(lab, name, batch, t)) for t in (VOLTA, DSTC))
    return theirs / mine


def cycles_in_all(run: Replay) -> float:
    """Encodings and what multiplies nothing included."""
    return run.cycles


def joules(run: Replay) -> float:
    """At its machine's prices."""
    return run.joules(run.machine)


def fallback(lab: Lab, name: str, batch: int) -> float:
    """The share of the launches that multiply that run dense."""
    launches = [s for s in network(lab, name, batch, DSTC).stats.launches if s.launch.macs]
    return sum(not s.sparse for s in launches) / len(launches)


def layers(lab: Lab, name: str, batch: int) -> Table:
    """The launches that multiply, in order; a launch on volta-8tc is the one that has a node in common."""
    run, dense = (network(lab, name, batch, t) for t in (DSTC, VOLTA))
    theirs = {
        node: m.timing.cycles
        for s, m in zip(dense.stats.launches, dense.launches, strict=True)
        if s.launch.macs
        for node in s.launch.nodes
    }
    table: list[tuple[str | int | float, ...]] = [
        ("layer", VOLTA, DSTC, "times as fast", "kernel", "OHMMAs left out")
    ]
    for s, m in zip(run.stats.launches, run.launches, strict=True):
        if not s.launch.macs:
            continue
        node = next(n for n in s.launch.nodes if n in theirs)
        done = s.sparse
        left = done["ohmma_skipped"] / (done["ohmma_skipped"] + done["ohmma_issued"]) if done else 0
        speed, kind = theirs[node] / m.timing.cycles, "sparse" if done else "dense"
        share = f"{left:.0%}" if done else ""
        table.append((node, theirs[node], m.timing.cycles, speed, kind, share))
    return table


def networks() -> Iterator[Claim]:
    """Random weights, of which single ones are pruned; activations as ReLUs leave them, BERT's and MiniLM's dense."""
    for name, batch in ((n, b) for n, batches in NETWORKS.items() for b in batches):
        what = f"{name}, batch {batch}, {PRUNED:.0%} of the weights pruned"
        one = f"D-12.{name}.batch{batch}"
        ours: list[tuple[str, str, Callable[[Replay], float], str]] = [
            ("", "speed-up of its products", products, "launches that multiply"),
            (".whole", "speed-up of all of it", cycles_in_all, "all launches, encodings among them"),
            (".energy", "energy", joules, "all launches"),
        ]  # fmt: skip
        for suffix, of_it, of, launches in ours:
            yield Claim(
                one + suffix, f"{what}: {of_it}, volta-8tc by dstc", (1.0, math.inf), "recalled", 0.0, partial(gain, name=name, batch=batch, of=of),
                f"{NOTES}: networks gain, recalled from the paper; ours: {launches}, executed on both, sparse or dense layer by layer as predicted",
                "dstc:units.tensor.interval", swept=False, still=SLOW,
                parts=None if suffix else partial(layers, name=name, batch=batch),
            )  # fmt: skip
        yield Claim(
            f"{one}.dense", f"{what}: share of its products that fall back to dense kernels", (0.0, 1.0), "input", 0.0,
            partial(fallback, name=name, batch=batch), "ours: launches without an OHMMA", "", swept=False, still=PLAN,
        )  # fmt: skip
