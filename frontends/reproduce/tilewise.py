"""Tile-wise sparsity (arXiv 2008.13006): rows T1 … T7, of which T2 are B-2's.

Of the paper the abstract was at hand: 1.95 times as fast as dense on Tensor Cores. The authors' repository gives three products of BERT on a
V100-PCIE, dense and with 75 % of the weights gone; those are measurements that set no number of ours. A model of few parameters that was
fitted to exactly these six numbers is shown beside ours as `fitted`. TVW is arXiv 2402.10876, of which the abstract was at hand too.

    T1   the numbers of a dense product           T5   what patterns keep of the weights' energy
    T2   BERT's products on a V100                T6   asked for and got
    T3   the speed-up in general                  T7   tile-wise and 2:4 on ampere
    T4   what gathering costs where little is pruned

Both sides of a ratio accumulate in fp32, and both leave their kernel to the planner, but that one is tile-wise. A lies transposed, as the authors'
kernels have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from .claims import Claim, Lab
from .sma import geometric_mean
from .sparse import PrunedNetwork, TileGemm, equal, kept, products
from .workloads import Network, Tile

PCIE, VOLTA, AMPERE = "v100-pcie", "volta-8tc", "ampere"
SHAPES = {
    (768, 768): (252.665, 118.173, 122.2),
    (768, 3072): (831.652, 298.622, 306.0),
    (3072, 768): (849.863, 417.428, 397.1),
}
"""n and k of BERT's products → µs dense, tile-wise at 75 %, and what the fitted model gives for that. m is 12,800: 100 sequences of 128."""
LAYER = {(768, 768): 4, (768, 3072): 1, (3072, 768): 1}
"""How many of each a layer has."""
SPARSITY = 0.75
TILEWISE: Tile = (("access", "tilewise"),)
"""The kernel must be tile-wise."""
README = "the authors' repository, V100-PCIE, CUDA 10.2"
ABSTRACT = "abstract: 1.95 times as fast as dense"
BITS = "bits are compared, which no number of a machine changes"
WEIGHTS = "it is of weights, and of no machine"


def rows() -> Iterator[Claim]:
    """All of them."""
    yield from same()
    yield from bert()
    yield from general()
    yield from little()
    yield from patterns()
    yield from densities()
    yield from vector_wise()


# --- what rows ask


def gemm(lab: Lab, n: int, k: int, sparsity: float = SPARSITY) -> TileGemm:
    """A product of BERT, pruned."""
    return TileGemm(lab.sizes.rows, n, k, sparsity, transposed=True, options=TILEWISE)


def dense(pruned: TileGemm) -> TileGemm:
    """The same product with all its weights."""
    return replace(pruned, pattern="", sparsity=0.0, options=())


def microseconds(lab: Lab, n: int, k: int) -> float:
    """Of a tile-wise product's launch."""
    return 1e6 * products(lab.run(gemm(lab, n, k), PCIE)) / lab.machine(PCIE).clock_hz


def speedup(lab: Lab, pruned: TileGemm, target: str = PCIE) -> float:
    """Against dense."""
    return products(lab.run(dense(pruned), target)) / products(lab.run(pruned, target))


# --- T1


def unchanged(lab: Lab, one: TileGemm) -> float:
    """The share of a product's bytes that are those of the dense kernel."""
    return equal(one, replace(one, options=(("access", "dense"),)), VOLTA)


def same() -> Iterator[Claim]:
    """Bits."""
    for name, transposed in (("rows", False), ("transposed", True)):
        one = TileGemm(
            256, 384, 256, SPARSITY, granularity=64, transposed=transposed, options=TILEWISE
        )
        yield Claim(
            f"T1.{name}", f"share of results with the bits of the dense product, A {name}", (1.0, 1.0), "derived", 0.0,
            partial(unchanged, one=one),
            "skipped terms are 0; ours: both kernels executed on the same pruned weights, 256×384×256", "", swept=False, still=BITS,
        )  # fmt: skip


# --- T2


def faster(lab: Lab, n: int, k: int) -> float:
    """Speed-up of a product of BERT."""
    return speedup(lab, gemm(lab, n, k))


def layer(lab: Lab) -> float:
    """Speed-up of a layer's products, one after the other."""
    whole = pruned = 0
    for (n, k), count in LAYER.items():
        tiles = gemm(lab, n, k)
        whole += count * products(lab.run(dense(tiles), PCIE))
        pruned += count * products(lab.run(tiles, PCIE))
    return whole / pruned


def bert() -> Iterator[Claim]:
    """B-2."""
    for (n, k), (whole, theirs, model) in SHAPES.items():
        what = f"12800×{n}×{k} (m×n×k), {SPARSITY:.0%} pruned by tiles of 128"
        ours = partial(microseconds, n=n, k=k)
        yield Claim(
            f"T2.{n}x{k}", f"{what}, µs", (theirs, theirs), "silicon", 0.2, ours,
            f"{README}, a stream a tile; ours: one launch, executed; fp32 accumulators for their fp16", "units.tensor.interval",
        )  # fmt: skip
        yield Claim(
            f"T2.{n}x{k}.model", f"{what}, µs, of the fitted model", (model, model), "fitted", 0.2, ours,
            "theirs: a model of launches, a gather factor and the time of a k step, fitted to the six numbers; ours: as above",
            "units.tensor.interval",
        )  # fmt: skip
        yield Claim(
            f"T2.{n}x{k}.speedup", f"{what}: speed-up", (whole / theirs,) * 2, "silicon", 0.2,
            partial(faster, n=n, k=k), f"{README}; ours: both executed", "units.tensor.interval",
        )  # fmt: skip
    yield Claim(
        "T2.layer", "speed-up of the six products of a layer", (2.265, 2.265), "silicon", 0.15, layer,
        f"{README}: about 2.26; ours: executed", "units.tensor.interval",
    )  # fmt: skip


# --- T3


def network(lab: Lab, name: str, sparsity: float) -> PrunedNetwork:
    """One of our networks."""
    return PrunedNetwork(
        Network(lab.sizes.network or name, 1, lab.sizes.image), sparsity, "tw", 128
    )


def everywhere(lab: Lab) -> float:
    """Geometric mean of the speed-ups of BERT's layer and of VGG-16's products."""
    pruned, whole = (products(lab.run(network(lab, "vgg16", s), VOLTA)) for s in (SPARSITY, 0.0))
    return geometric_mean([layer(lab), whole / pruned])


def general() -> Iterator[Claim]:
    """The abstract's number."""
    yield Claim(
        "T3", "speed-up, mean of BERT's layer and VGG-16's products, 75 %", (1.95, 1.95), "published", 0.15, everywhere,
        f"{ABSTRACT}, of sparsities that it does not say; ours: 75 %, executed on v100-pcie and volta-8tc, VGG-16 at batch 1",
        "units.tensor.interval",
    )  # fmt: skip


# --- T4

SWEEP = (0.0, 0.2, 0.4, 0.5, 0.6)


def overhead(lab: Lab) -> float:
    """Time beside dense of a tile-wise kernel that skips nothing."""
    return 1 / speedup(lab, gemm(lab, 768, 3072, 0.0)) - 1


def break_even(lab: Lab) -> float:
    """Where tile-wise is as fast as dense; between two sparsities that were executed, on a line."""
    before = (0.0, -math.inf)
    for s in SWEEP:
        gain = speedup(lab, gemm(lab, 768, 3072, s)) - 1
        if gain >= 0:
            return s if not s else before[0] + before[1] / (before[1] - gain) * (s - before[0])
        before = s, gain
    return math.inf


def little() -> Iterator[Claim]:
    """12800×768×3072."""
    yield Claim(
        "T4.overhead", "time of a tile-wise kernel beside dense where nothing is pruned, 12800×768×3072", (0.31, 0.37), "recalled", 0.0, overhead,
        "recalled from the paper: about 35 %, and 34 % by the fitted model; ours: both executed", "units.tensor.interval",
    )  # fmt: skip
    yield Claim(
        "T4.even", "sparsity from which tile-wise is faster than dense, 12800×768×3072", (0.4, 0.5), "recalled", 0.06, break_even,
        f"recalled from the paper: about 40 %; ours: executed at {', '.join(f'{s:.0%}' for s in SWEEP)}", "",
        still="it is 0 as long as T4.overhead is not above 0",
    )  # fmt: skip


# --- T5, T6

SEEDS = (0, 1, 2)
ORDER = (("ew", "vw"), ("vw", "tw"), ("tew", "tw"), ("tw", "bw"))


def apart(lab: Lab, more: str, less: str) -> float:
    """How much more energy a pattern keeps than another, in standard deviations over seeds."""
    gaps = [kept(more, SPARSITY, seed)[1] - kept(less, SPARSITY, seed)[1] for seed in SEEDS]
    return float(np.mean(gaps) / np.std(gaps, ddof=1))


def patterns() -> Iterator[Claim]:
    """Of a layer of BERT with random weights of heavy tails."""
    for more, less in ORDER:
        yield Claim(
            f"T5.{more}-{less}", f"energy kept by {more.upper()} beyond {less.upper()}'s at 75 %, in standard deviations", (2.0, math.inf),
            "recalled", 0.0, partial(apart, more=more, less=less),
            "recalled from the paper: EW > VW ≈ TEW > TW ≫ BW in accuracy; ours: sum of squares of the weights that stay, three seeds; for "
            "accuracy see docs/prune.md", "", swept=False, still=WEIGHTS,
        )  # fmt: skip


def left(lab: Lab, mode: str) -> float:
    """The density that pruning leaves."""
    return kept("tw", SPARSITY, 0, mode)[0]


def densities() -> Iterator[Claim]:
    """What is left."""
    for mode, theirs, tolerance in (("exact", 0.25, 0.001), ("repo", 0.193, 0.05)):
        yield Claim(
            f"T6.{mode}", f"density where 75 % is asked for, mode {mode}", (theirs, theirs), "derived", tolerance,
            partial(left, mode=mode),
            "measured on such weights with the authors' rule, which counts units and not elements; ours: BERT's shapes, random weights",
            "", swept=False, still=WEIGHTS,
        )  # fmt: skip


# --- T7


def tvw(lab: Lab, n: int, k: int) -> TileGemm:
    """Tile-wise 50 %, and 2:4 of what is left."""
    return replace(gemm(lab, n, k), pattern="tvw", options=())


def vector_wise() -> Iterator[Claim]:
    """On ampere."""
    yield Claim(
        "T7.dense", "TVW at 75 % by dense, BERT's products on ampere, mean", (1.85, 1.85), "published", 0.25,
        lambda lab: geometric_mean([speedup(lab, tvw(lab, n, k), AMPERE) for n, k in SHAPES]),
        "abstract of arXiv 2402.10876: 1.85 times on average, networks and sparsities not said; ours: executed", "units.tensor.interval",
    )  # fmt: skip
    yield Claim(
        "T7.block", "TVW by BW of 32×32, both at 75 %, mean", (2.75, 2.75), "recalled", 0.25,
        lambda lab: geometric_mean([block_wise(lab, n, k) for n, k in SHAPES]),
        "the paper's abstract: 2.75 times a block-sparse kernel of theirs; ours: blocks run as tiles of 32, executed",
        "units.tensor.interval", swept=False, still="an interval would take as long as those of all other rows here",
    )  # fmt: skip


def block_wise(lab: Lab, n: int, k: int) -> float:
    """TVW against blocks."""
    mine = tvw(lab, n, k)
    blocks = replace(mine, pattern="bw", granularity=32)
    return products(lab.run(blocks, AMPERE)) / products(lab.run(mine, AMPERE))
