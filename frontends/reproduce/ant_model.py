"""The analytic cost model of the ANT paper (arXiv 2208.14286). It is no emulator: nothing is compiled and nothing executes.

    layer, bits ──► tiles × orders of five loops ──► cycles and energy of each ──► the fastest; of equal ones the most frugal

Its lineage is BitFusion and DNNWeaver. Each layer is a matrix product after im2col, on an array of `rows` × `columns` processing elements that
make (most / bits)² products a cycle. A tile of b images, o × o positions, ic and oc channels, powers of two up to the whole, must leave its
weights and activations in half of their buffers. The loops over tiles are walked from the inside; a tensor stays in its buffer while it fits
half of it, and from there on every further loop moves it again. DRAM and array work at the same time but for the first tile's way in and the
last one's way out:

    cycles = compute + max(0, ⌈middle / 1024⌉ − compute) + ⌈first / 1024⌉ + ⌈last / 1024⌉

Numbers, layers, and the published table are in `ant.toml`. `quirks` keeps what their program does and its description would not say: a kernel
is as wide as it is high; results that stay in their buffer leave it at no cost at the end; BitFusion alone has ViT's patch embedding.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

DATA: dict[str, Any] = tomllib.loads(Path(__file__).with_name("ant.toml").read_text())
SYSTEM: dict[str, Any] = DATA["system"]
NETWORKS = tuple(DATA["networks"])
DESIGNS = tuple(DATA["designs"])
PARTS = ("static", "dram", "buffer", "core")
"""Of energy, in the order in which they are published."""
TENSORS = ("act", "wgt", "out")
LOOPS = ("b", "ow", "oh", "ic", "oc")
DEPENDS = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 1, 1], [1, 1, 1, 0, 1]], bool)
"""Whether a tensor is another one in the next turn of a loop."""
ORDERS = np.array([p for p in itertools.permutations(range(5)) if p.index(1) < p.index(2)])
"""Loops from the inside. Width and height have the same tiles, so of the 120 orders those that differ in these two alone cost the same."""


class Layer(NamedTuple):
    """A product: `batch` images of `side`² positions, channels in and out, taps of the kernel."""

    batch: int
    side: int
    taps: int
    inputs: int
    outputs: int
    bits: int


@dataclass(frozen=True)
class Design:
    """An accelerator."""

    name: str
    rows: int
    columns: int
    most: int
    least: int
    stationary: str
    """`output` or `weight`."""
    bits: str
    """Whose list of bits it runs."""
    leak_nw: float
    dynamic_nw: float

    def faster(self, bits: int) -> int:
        """How many operands of so few bits a processing element takes where it takes one of `most`."""
        return self.most // max(bits, self.least)


@dataclass(frozen=True)
class Cost:
    """Of a layer, or of several."""

    cycles: int = 0
    stalls: int = 0
    parts: tuple[float, ...] = (0.0,) * len(PARTS)
    """Energy in nJ."""

    @property
    def energy(self) -> float:
        """In nJ."""
        return sum(self.parts)

    def __add__(self, other: Cost) -> Cost:
        parts = tuple(a + b for a, b in zip(self.parts, other.parts, strict=True))
        return Cost(self.cycles + other.cycles, self.stalls + other.stalls, parts)


@cache
def design(name: str) -> Design:
    """One of `DESIGNS`."""
    return Design(name, **DATA["designs"][name])


def layers(network: str, of: Design, quirks: bool = True) -> Iterator[Layer]:
    """The layers that a design's benchmark of a network has."""
    table = DATA["networks"][network]
    lists = [table["bits"][d.bits] for d in (map(design, DESIGNS) if not quirks else (of,))]
    for i, (shape, bits) in enumerate(zip(table["layers"], table["bits"][of.bits], strict=True)):
        if any(digits[i] == "-" for digits in lists):
            continue
        if len(shape) == 3:
            rows, inputs, outputs = shape
            yield Layer(SYSTEM["batch"] * rows, 1, 1, inputs, outputs, int(bits))
            continue
        side, _, height, width, inputs, outputs = shape
        taps = height * (height if quirks else width)
        yield Layer(SYSTEM["batch"], side, taps, inputs, outputs, int(bits))


@cache
def network_cost(network: str, name: str, quirks: bool = True) -> Cost:
    """Of a network on one of `DESIGNS`."""
    of = design(name)
    return sum((layer_cost(one, of, quirks) for one in layers(network, of, quirks)), Cost())


@cache
def layer_cost(layer: Layer, of: Design, quirks: bool = True) -> Cost:
    """Of the best tile and order."""
    tiles = Tiles.fitting(layer, of)
    # A bound, so that most tiles are seen in one order only: what an order gives is never less than the array's cycles and the first tile.
    bound = tiles.schedules(ORDERS[:1], quirks).cycles.min()
    return tiles.where(tiles.least_cycles() <= bound).schedules(ORDERS, quirks).best()


def ceil(a: Integers, b: Integers | int) -> Integers:
    """⌈a / b⌉."""
    return np.negative(np.negative(a) // b)


def powers(most: int) -> list[int]:
    """Sizes of tiles.

    >>> powers(7)
    [1, 2, 4, 7]
    """
    return [min(1 << i, most) for i in range((most - 1).bit_length() + 1)]


@dataclass(frozen=True)
class Tiles:
    """Tiles of a layer that fit the buffers, T of them."""

    layer: Layer
    on: Design
    size: Integers
    """[T, 5] along `LOOPS`."""
    turns: Integers
    """[T, 5]: of each loop."""

    @staticmethod
    def fitting(layer: Layer, on: Design) -> Tiles:
        """All that fit."""
        whole = (layer.batch, layer.side, layer.side, layer.inputs, layer.outputs)
        sides = powers(layer.side)
        every = itertools.product(
            powers(layer.batch), sides, powers(layer.inputs), powers(layer.outputs)
        )
        size = np.array([(b, o, o, ic, oc) for b, o, ic, oc in every], np.int64)
        tiles = Tiles(layer, on, size, ceil(np.array(whole), size))
        bits = tiles.bits()
        return tiles.where((bits[0] <= half("act")) & (bits[1] <= half("wgt")))

    def where(self, keep: NDArray[np.bool_]) -> Tiles:
        """Some of them."""
        return Tiles(self.layer, self.on, self.size[keep], self.turns[keep])

    def bits(self) -> Integers:
        """[3, T]: what a tile of each of `TENSORS` takes; depth is padded to what the array takes at once."""
        b, o, _, ic, oc = self.size.T
        bits, depth = self.layer.bits, self.layer.taps * ic
        deep, wide = (n * self.on.faster(bits) for n in (self.on.rows, self.on.columns))
        act = o * o * ceil(depth, wide) * wide * b * bits
        wgt = ceil(depth, deep) * deep * oc * bits
        return np.stack([act, wgt, o * o * oc * b * SYSTEM["output_bits"]])

    def compute(self) -> Integers:
        """[T]: cycles that the array works."""
        b, o, _, ic, oc = self.size.T
        depth = self.layer.taps * ic
        rows, columns = (
            n * self.on.faster(self.layer.bits) for n in (self.on.rows, self.on.columns)
        )
        if self.on.stationary == "weight":
            positions, deep = b * o * o, ceil(depth, rows)
        else:
            positions, deep = ceil(b * o * o, rows), depth
        return np.asarray(self.count() * positions * ceil(oc, columns) * deep)

    def count(self) -> Integers:
        """[T]: how many tiles the layer has."""
        return np.asarray(self.turns.prod(axis=1))

    def least_cycles(self) -> Integers:
        """[T]: no order takes fewer."""
        act, wgt, _ = self.bits()
        return self.compute() + ceil(act + wgt, SYSTEM["dram_bits_per_cycle"])

    def schedules(self, orders: Integers, quirks: bool) -> Schedules:
        """In each of P orders."""
        moved = np.repeat(self.bits()[:, :, None], len(orders), axis=2)
        first = moved.copy()
        stays = np.ones(moved.shape, bool)
        limit = np.array([half(t) for t in TENSORS])[:, None, None]
        for loop in orders.T:
            turns, depends = self.turns[:, loop], DEPENDS[:, loop][:, None, :]
            moved *= np.where(stays & ~depends, 1, turns)
            fits = moved <= limit
            first = np.where(stays & depends & fits, moved, first)
            stays &= fits | ~depends
        if quirks:
            first[2][self._kept(orders)] = 0
        return Schedules(self, moved, first)

    def _kept(self, orders: Integers) -> NDArray[np.bool_]:
        """[T, P]: whether the results of the innermost loop that they depend on fit half their buffer."""
        inner = np.array([next(i for i in order if DEPENDS[2][i]) for order in orders])
        return np.asarray(self.bits()[2][:, None] * self.turns[:, inner] <= half("out"))


def half(tensor: str) -> int:
    """Bits of half a tensor's buffer."""
    return int(SYSTEM["buffer_bytes"][tensor]) * 8 // 2


@dataclass(frozen=True)
class Schedules:
    """T tiles in P orders."""

    tiles: Tiles
    moved: Integers
    """[3, T, P]: bits of each of `TENSORS` that cross DRAM's interface; activations and weights come, results go."""
    first: Integers
    """[3, T, P]: those among them that nothing hides."""

    @property
    def stalls(self) -> Integers:
        """[T, P]."""
        width = SYSTEM["dram_bits_per_cycle"]
        middle = self.moved.sum(axis=0) - self.first.sum(axis=0)
        latency = ceil(self.first[:2].sum(axis=0), width) + ceil(self.first[2], width)
        waits = ceil(middle, width) - self.tiles.compute()[:, None]
        return np.asarray(np.maximum(0, waits) + latency)

    @property
    def cycles(self) -> Integers:
        """[T, P]."""
        return self.tiles.compute()[:, None] + self.stalls

    def energies(self, prices: str) -> Floats:
        """[4, T, P]: `PARTS` in nJ, at the prices `reported` or `choosing`; the latter's `buffer` includes leakage."""
        dram, buffers, on = SYSTEM["dram"][prices], SYSTEM["buffers"], self.tiles.on
        cycles, stalls = self.cycles, self.stalls
        read, written = self._buffer_bits()
        buffer: Floats = np.zeros(cycles.shape)
        for i, t in enumerate(TENSORS):
            p = buffers[t]
            buffer += (read[i] * p["read"] + written[i] * p["write"]) / p["per_bits"]
        if prices == "choosing":
            leak = sum(p["leak_mw"] for p in buffers.values()) * 1e6 / SYSTEM["clock_hz"]
            buffer += cycles * leak
        leak, work = (
            nw * on.rows * on.columns / SYSTEM["clock_hz"] for nw in (on.leak_nw, on.dynamic_nw)
        )
        return np.stack([
            cycles * dram["cycle"],
            ((self.moved[0] + self.moved[1]) * dram["read"] + self.moved[2] * dram["write"]) / 1024,
            buffer,
            cycles * leak + (cycles - stalls) * work,
        ])  # fmt: skip

    def _buffer_bits(self) -> tuple[Integers, Integers]:
        """Two of [3, T, P]: bits read from each buffer and written to it."""
        b, o, _, ic, oc = self.tiles.size.T
        bits, out = self.tiles.layer.bits, SYSTEM["output_bits"]
        results = (self.tiles.count() * b * o * o * oc)[:, None]
        products = results * (self.tiles.layer.taps * ic)[:, None]
        act, wgt, stored = self.moved
        if self.tiles.on.stationary == "weight":
            weights = products // (b * o * o)[:, None]
            read = [products * bits, weights * bits, products * out + stored]
            return np.stack(np.broadcast_arrays(*read)), np.stack(
                [act, wgt, act * 0 + products * out]
            )
        read = [products * bits, products * bits, results * out + stored]
        return np.stack(np.broadcast_arrays(*read)), np.stack([act, wgt, act * 0 + results * out])

    def best(self) -> Cost:
        """The fastest, and of equally fast ones the one that takes the least energy at the prices `choosing`."""
        cycles = self.cycles
        fast = cycles == cycles.min()
        energy = np.where(fast, self.energies("choosing").sum(axis=0), np.inf)
        at = np.unravel_index(energy.argmin(), energy.shape)
        parts = self.energies("reported")[:, at[0], at[1]]
        return Cost(int(cycles[at]), int(self.stalls[at]), tuple(parts.tolist()))
