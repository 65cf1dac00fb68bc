"""Loops of outer products on registers that hold bitmaps: what the dual-side sparse Tensor Core takes for tiles of given zeros.

A turn multiplies `Tiles` one after the other, each 32×32×16 and into the same accumulators, so that only the unit's own time is left. All values
are zeros that the bitmaps call non-zero: what a product's values are changes no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from knapper.compiler.codegen.builder import KernelBuilder, VReg
from knapper.compiler.codegen.matrix.code import lane_id, mul, param
from knapper.isa.instructions import EXIT, HMMA, LDG, MOV, OHMMA, OWMMA, SPWMMA
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Half, Width
from knapper.isa.program import BASE, Launch, Object, Operand, Program

from .microbench import fill, program, turns, zeros

SIDE, DEPTH = 32, 16
"""Rows and columns of a warp tile, and its steps of k."""
ROWS, COLUMNS = 8, 16
"""Of an OHMMA."""
SETS = SIDE // ROWS * SIDE // COLUMNS
"""OHMMAs of a step of k of a tile without zeros."""
DENSE = DEPTH * SETS
"""OHMMAs of a tile without zeros."""
SINGLE_RUN = 63 << 24
"""Of a `start`: all values lie one after the other."""
SEED = 0
ZEROS = 512
"""Bytes of shared memory that all values are."""


@dataclass(frozen=True)
class Tiles:
    """Bitmaps of warp tiles. Densities say how likely a value is non-zero, whole numbers how many of each 32 are (the first ones)."""

    a: float | int
    b: float | int
    count: int = 1

    def words(self) -> NDArray[np.uint32]:
        """What registers hold: a word for each of A's 16 columns and of B's 16 rows. [count, 32]"""
        rng = np.random.default_rng(SEED)
        sides = [self._bits(rng, d) for d in (self.a, self.b)]
        packed = np.packbits(np.concatenate(sides, 1), -1, "little")
        return np.ascontiguousarray(packed).view(np.uint32)[..., 0]

    def _bits(self, rng: np.random.Generator, d: float | int) -> NDArray[np.bool_]:
        shape = (self.count, DEPTH, SIDE)
        if isinstance(d, int):
            return np.broadcast_to(np.arange(SIDE) < d, shape)
        return rng.random(shape) < d


@dataclass(frozen=True)
class OuterLoop:
    """A turn is an SPWMMA for each tile, or all its OHMMAs `singly`; one warp has the chip to itself."""

    tiles: Tiles
    turns: int
    singly: bool = False

    def program(self, machine: Machine) -> Program:
        b = KernelBuilder("outer_loop", (32, 1, 1), machine, matrix=True, accumulators=SIDE**2)
        start, bitmaps = _operands(b, self.tiles)
        with turns(b, self.turns):
            for bitmap in bitmaps:
                if not self.singly:
                    b.emit(SPWMMA, Half.F16, 0, start, bitmap)
                    continue
                for k, i, j in product(range(DEPTH), range(SIDE // ROWS), range(SIDE // COLUMNS)):
                    b.emit(OHMMA, Half.F16, 0, start, bitmap, k, i, j)
        b.emit(EXIT)
        return _program(machine, b, self.tiles)


@dataclass(frozen=True)
class WarpLoop:
    """A turn is `chains` independent 16×16×16 products of one warp: OWMMAs, or HMMAs where the wiring is that of inner products."""

    outer: bool
    turns: int
    chains: int = 4

    def program(self, machine: Machine) -> Program:
        b = KernelBuilder("warp_loop", (32, 1, 1), machine, matrix=True)
        x, y = zeros(b, 4), zeros(b, 4)
        sums = [zeros(b, 8) for _ in range(self.chains)]
        with turns(b, self.turns):
            for c in sums:
                b.emit(OWMMA if self.outer else HMMA, Half.F16, c, x, y, c)
        b.emit(EXIT)
        return program(machine, b.finish(), (Launch("warp_loop", (1, 1, 1), (), ("loop",)),))


def _operands(b: KernelBuilder, tiles: Tiles) -> tuple[VReg, list[VReg]]:
    """A `start` that points every lane at zeros in shared memory, and a register of bitmaps a tile."""
    b.shared(ZEROS)
    fill(b, ZEROS)
    start = b.reg(2)
    for word, value in enumerate((SINGLE_RUN, 0)):
        b.emit(MOV, start[word], value)
    base, lane = param(b, 0), mul(b, lane_id(b), 4)
    found = []
    for t in range(tiles.count):
        found.append(b.reg())
        b.emit(LDG, Width._32, found[-1], base, lane, 4 * SIDE * t)
    return start, found


def _program(machine: Machine, b: KernelBuilder, tiles: Tiles) -> Program:
    words = tiles.words()
    kernel = b.finish()
    operand = Operand("bitmaps", BASE, words.nbytes, "r")
    launch = Launch(kernel.name, (1, 1, 1), (BASE,), ("loop",), (operand,))
    objects = (Object("bitmaps", BASE, words.nbytes),)
    return program(machine, kernel, (launch,), rodata=words.tobytes(), objects=objects)
