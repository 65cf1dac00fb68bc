"""Implicit channel-first im2col (arXiv 2110.03901): rows C2 … C7, on tpu-v2, on its variant of 256×256, and on volta-8tc.

Of the paper the abstract was at hand. It claims that a convolution runs as the product that it is, at practically no cost in time and memory,
strided ones included. These are the `published` rows; the abstract gives no number, and half a per cent stands for "practically". The others are
derived: what the scheme's loops must execute, beside what was counted when they did.

    C2   memory    bytes of the lowered matrix, and bytes that fills read instead
    C3   time      against the product of the same size, and against making the matrix first
    C4   stride    words of vector memory read for each vector pushed: images share a word, or neighbours along a line do
    C5   tiles     vectors pushed, by how many taps share a pass
    C6   arrays    what useful work fills of arrays of 128 rows and of 256, for whole networks
    C7   tensor    pixels that a block of a Tensor Core kernel loads: for each tap, or once for all
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from knapper.isa.instructions import FILL_DUP, IM2COL_PUSH, LDG_IM2COL
from knapper.isa.machine import Machine
from knapper.runtime.stats import LaunchStats

from .claims import Claim, Lab
from .layers import Layer, total
from .recording import Replay
from .workloads import Network, Tile

TPU, TPU_256, VOLTA = "tpu-v2", "tpu-v2-256", "volta-8tc"
PRACTICALLY = 0.005
"""What "practically zero" may be."""
NETWORKS = {"vgg16": "VGG-16", "alexnet": "AlexNet of one column", "resnet50": "ResNet-50"}
LAYER = Layer(8, 56, 128, 128, 3, pad=1)
"""Nine passes of 25,088 rows."""
STRIDES = (1, 2, 4)
P = 128
"""Rows and columns of the array."""
FIRST = {
    "vgg16": Layer(1, 224, 3, 64, 3, pad=1),
    "alexnet": Layer(1, 227, 3, 96, 11, 4),
    "resnet50": Layer(1, 224, 3, 64, 7, 2, 3),
}
"""First layers: three channels."""
RATIOS = {"vgg16": 9.0, "alexnet": 11.0787, "resnet50": 2.0459}
"""Closed form: bytes of lowered matrices by those of images."""
KERNEL = "channel_first"
PIXELS = 8, 16
"""Lines and columns of results of a Tensor Core kernel's tile."""
CHANNELS = 16
"""As many as a fragment has."""
SINGLE: Tile = (("kind", KERNEL), ("multi_tile", 1))


def rows() -> Iterator[Claim]:
    """All of them."""
    yield from memory()
    yield from time()
    yield from strides()
    yield from tiles()
    yield from arrays()
    yield from reuse()


# --- what rows ask


def named(lab: Lab, name: str, **how: Any) -> Network:
    """A network at batch 1, as large as the lab has it."""
    return replace(Network(lab.sizes.network or name, 1, lab.sizes.image), **how)


def convolutions(run: Replay) -> list[LaunchStats]:
    """The launches of a network's convolutions."""
    return [s for s in run.stats.launches if s.launch.macs and s.kernel.name.startswith("conv")]


def filled(launches: list[LaunchStats]) -> int:
    """Bytes of images that fills read from HBM."""
    return total(launches, FILL_DUP, "l2_read")


def pushed(launches: list[LaunchStats]) -> int:
    """Vectors that went through the array."""
    return total(launches, IM2COL_PUSH, "rows")


def share(useful: float, steps: float, machine: Machine) -> float:
    """What useful multiply-accumulates fill of steps of the whole array."""
    return useful / (steps * machine.array_rows * machine.array_columns)


def counted(
    name: str, what: str, paper: float, kind: str, tolerance: float, ours: Callable[[Lab], float], how: str
) -> Claim:  # fmt: skip
    """A row of counts, which no number of a machine moves but the shape of its array."""
    return Claim(name, what, (paper, paper), kind, tolerance, ours, how, "", swept=False)


# --- C2


def lowered(lab: Lab, name: str) -> float:
    """Bytes that fills read of lowered matrices, by those of the images."""
    implicit = convolutions(lab.run(named(lab, name), TPU))
    nodes = {n for s in implicit for n in s.launch.nodes}
    explicit = named(lab, name, explicit=True)
    launches = lab.run(explicit, TPU).stats.launches
    products = [s for s in launches if s.launch.macs and nodes & {*s.launch.nodes}]
    return filled(products) / explicit.images()


def fetched(lab: Lab, name: str) -> float:
    """Bytes that fills read by those of the images."""
    network = named(lab, name)
    return filled(convolutions(lab.run(network, TPU))) / network.images()


def memory() -> Iterator[Claim]:
    """Batch 1, and words of eight neighbours."""
    for name, ratio in RATIOS.items():
        title = NETWORKS[name]
        yield counted(
            f"C2.{name}.lowered", f"{title}: lowered matrices by images, bytes, batch 1", ratio, "derived", PRACTICALLY,
            partial(lowered, name=name),
            "derived: taps by stride², over convolutions; ours: bytes that fills read of explicit matrices, made by a launch each",
        )  # fmt: skip
        yield Claim(
            f"C2.{name}.implicit", f"{title}: bytes read for images by their size, batch 1", (0.0, 1.0), "published", PRACTICALLY,
            partial(fetched, name=name),
            "abstract: practically no memory overhead, by our reading 0.5 %; ours: bytes that fills read; lines between strided windows are not read",
            "", swept=False,
        )  # fmt: skip


# --- C3


def strided(stride: int, **how: Any) -> Layer:
    """The layer with pixels of its image so far apart: as many results, and the same product."""
    return replace(LAYER, image=LAYER.image * stride, stride=stride, **how)


def product_of(layer: Layer) -> Layer:
    """The product that a convolution is, its matrix given: a convolution by one tap."""
    return replace(layer, image=layer.side, channels=layer.k, taps=1, stride=1, pad=0)


def by_product(lab: Lab, layer: Layer) -> float:
    """Cycles of a convolution by those of its product."""
    return lab.run(layer, TPU).cycles / lab.run(product_of(layer), TPU).cycles


def streaming(lab: Lab) -> float:
    """Cycles in which vectors enter the array."""
    (launch,) = lab.run(LAYER, TPU).launches
    return launch.timing.array_cycles


def by_matrix(lab: Lab) -> float:
    """Cycles with the matrix made first by those without."""
    return lab.run(replace(LAYER, explicit=True), TPU).cycles / lab.run(LAYER, TPU).cycles


def made_first(cycles: int) -> float:
    """Closed form: a product of so many cycles after its matrix was written and read, by the product alone."""
    machine, matrix = Machine.load(TPU), 2 * LAYER.rows * LAYER.k
    moving = 2 * matrix / machine.dram_bytes_per_second
    return 1 + moving * machine.clock_hz / cycles


def time() -> Iterator[Claim]:
    """Batch 8: eight images share a word."""
    what, vectors = "3×3, C = K = 128, to 56×56, batch 8", LAYER.taps**2 * LAYER.rows
    for stride in STRIDES:
        layer = strided(stride)
        yield Claim(
            f"C3.stride{stride}", f"{what}, stride {stride}: cycles by those of the product {layer.rows}×{layer.k}×128", (0.0, 1.0),
            "published", PRACTICALLY, partial(by_product, layer=layer),
            "abstract: practically no performance overhead, by our reading 0.5 %; ours: both executed, the product with its matrix given",
            "dram_bytes_per_second",
        )  # fmt: skip
    yield counted(
        "C3.array", f"{what}: cycles in which vectors enter the array", vectors, "derived", 0.0, streaming,
        f"derived: {LAYER.taps**2} passes of {LAYER.rows:,} rows; ours: executed",
    )  # fmt: skip
    yield Claim(
        "C3.cycles", f"{what}: cycles", (vectors + 3 * P - 1,) * 2, "derived", PRACTICALLY,
        lambda lab: lab.run(LAYER, TPU).cycles,
        f"derived: as above, {P} to load the first weights, {2 * P - 1} to drain; ours: executed, launch, first fill and last epilogue included",
        "lsma_fill",
    )  # fmt: skip
    yield Claim(
        "C3.explicit", f"{what}: with the matrix made first by without, cycles", (made_first(vectors),) * 2, "derived", 0.2, by_matrix,
        "derived: to write and read the matrix at HBM's rate, beside the product's time; ours: both executed", "dram_bytes_per_second",
    )  # fmt: skip


# --- C4


def reads(lab: Lab, stride: int, word: str) -> float:
    """Words read for each vector pushed."""
    layer = strided(stride, options=(("kind", KERNEL), ("word", word)))
    launches = list(lab.run(layer, TPU).stats.launches)
    return total(launches, IM2COL_PUSH, "vector_reads") / pushed(launches)


def useful(lab: Lab, stride: int) -> float:
    """What a word of eight images needs of reads by what one of eight neighbours does."""
    return reads(lab, stride, "batch") / reads(lab, stride, "width")


def strides() -> Iterator[Claim]:
    """3×3, C = K = 128, to 56×56, batch 8; words of eight elements."""
    for stride in STRIDES:
        yield counted(
            f"C4.first.stride{stride}", f"words read for a vector, stride {stride}, a word holds 8 images", 1 / 8, "derived", 0.02,
            partial(reads, stride=stride, word="batch"), "derived: a word serves its eight images whatever the stride; ours: counted, batch 8",
        )  # fmt: skip
        yield counted(
            f"C4.last.stride{stride}", f"reads with 8 images in a word by those with 8 neighbours of a line, stride {stride}",
            1 / stride, "derived", 0.15, partial(useful, stride=stride),
            "derived: 1 / stride of a line's neighbours are of use, as with planes, channel last; ours: counted, words at a line's ends included",
        )  # fmt: skip


# --- C5


def fewer(lab: Lab, name: str, taps: int) -> float:
    """Vectors pushed one tap a pass by those with several."""
    single, several = (
        list(lab.run(replace(FIRST[name], options=options), TPU).stats.launches)
        for options in (SINGLE, (*SINGLE[:1], ("multi_tile", taps)))
    )
    return pushed(single) / pushed(several)


def tiles() -> Iterator[Claim]:
    """Of first layers, batch 1."""
    for name, taps in (("vgg16", (3,)), ("resnet50", (4, 5, 6, 7)), ("alexnet", (6, 10, 11))):
        side = FIRST[name].taps
        for t in taps:
            gain = side / math.ceil(side / t)
            yield counted(
                f"C5.{name}.{t}", f"{NETWORKS[name]}, first layer: passes of one tap by passes of {t}", gain, "derived", 0.0,
                partial(fewer, name=name, taps=t), f"derived: {side} taps a line, {math.ceil(side / t)} passes; ours: vectors pushed, counted",
            )  # fmt: skip


# --- C6


def filling(lab: Lab, name: str, target: str, single: bool = False) -> float:
    """What a network's convolutions fill of the array while vectors are pushed.

    The first layer has as many taps a pass as the scheme says, also where the planner would take fewer.
    """
    most: Tile = (("kind", KERNEL), ("multi_tile", FIRST[name].taps))
    forced = (("conv*", SINGLE),) if single else (("conv_1", most),)
    launches = convolutions(lab.run(named(lab, name, forced=forced), target))
    macs = sum(s.launch.macs for s in launches)
    return share(macs, pushed(launches), lab.machine(target))


def executing(lab: Lab, name: str, target: str) -> float:
    """The same of all cycles that its convolutions take."""
    launches = convolutions(lab.run(named(lab, name), target))
    cycles = sum(s.measured.timing.cycles for s in launches if s.measured)
    return share(sum(s.launch.macs for s in launches), cycles, lab.machine(target))


UTILISATION = {
    "vgg16": (0.5268, 0.7267, 0.1794, 0.4031),
    "alexnet": (0.1513, 0.6464, 0.0414, 0.2914),
    "resnet50": (0.2649, 0.6454, 0.0780, 0.3010),
}
"""Closed form: useful multiply-accumulates by passes · M · P²; on 128×128 one tap a pass and several, on 256×256 likewise."""


def arrays() -> Iterator[Claim]:
    """Of whole networks, batch 1."""
    for name, closed in UTILISATION.items():
        of = zip(closed, (TPU, TPU, TPU_256, TPU_256), (True, False) * 2, strict=True)
        for theirs, target, single in of:
            side, how = (128 if target == TPU else 256), "one tap" if single else "several taps"
            yield counted(
                f"C6.{name}.{side}.{'single' if single else 'multi'}", f"{NETWORKS[name]}: use of {side}×{side} by vectors pushed, {how} a pass",
                theirs, "derived", 0.01, partial(filling, name=name, target=target, single=single),
                "derived: passes · M, batch 1; ours: vectors pushed, counted; the first layer has as many taps a pass as the scheme says",
            )  # fmt: skip
        for theirs, target in ((closed[1], TPU), (closed[3], TPU_256)):
            side = 128 if target == TPU else 256
            yield Claim(
                f"C6.{name}.{side}.executed", f"{NETWORKS[name]}: use of {side}×{side} over all cycles of its convolutions",
                (0.0, theirs), "derived", 0.0, partial(executing, name=name, target=target),
                "at most what vectors fill; ours: executed, batch 1: words of eight neighbours; launches, fills, drains", "dram_bytes_per_second",
                swept=False,
            )  # fmt: skip


# --- C7


def loaded(lab: Lab, stride: int, taps: int, kernel: Tile) -> int:
    """Bytes that the blocks of two tiles, one below the other, load of an image."""
    two = Layer(
        1, PIXELS[1] * stride - stride + taps, CHANNELS, CHANNELS, taps, stride, options=kernel
    )
    return total(lab.run(two, VOLTA).stats.launches, LDG_IM2COL, "l2_read")


def reduction(lab: Lab, stride: int, taps: int) -> float:
    """What they load one tap after the other by what they load once."""
    each, once = ((("kind", "hmma"),), (("kind", "patch"), ("pixels", PIXELS)))
    return loaded(lab, stride, taps, each) / loaded(lab, stride, taps, once)


def distinct(stride: int, taps: int) -> float:
    """Closed form: pixels that results of a tile read under all taps, by those on some tap's lines and columns."""
    lines, columns = (len({r * stride + t for r in range(n) for t in range(taps)}) for n in PIXELS)
    return taps**2 * math.prod(PIXELS) / (lines * columns)


def reuse() -> Iterator[Claim]:
    """Tiles of 8×16 results, on Tensor Cores."""
    for stride, taps in ((1, 3), (1, 5), (1, 7), (2, 3), (2, 5), (2, 7), (4, 3)):
        yield counted(
            f"C7.stride{stride}.taps{taps}", f"pixels loaded tap by tap by those loaded once, {taps}×{taps}, stride {stride}",
            distinct(stride, taps), "derived", 0.0, partial(reduction, stride=stride, taps=taps),
            "derived: distinct pixels under a tile of 8×16; ours: loads of both kernels, executed on volta-8tc, all of 16 channels",
        )  # fmt: skip
