"""What it costs to make a tile of A, 32 positions by 16 columns of the lowered matrix, from an image in three formats.

    dense      two 16-byte loads a lane, two stores: the tile is there as it is
    bitmap     lane = column: two neighbouring bitmaps, BMSLICE, two additions: `start` and bitmap of an SPWMMA, values stay where they are
    csr        lane = position: for each of 16 columns a binary search among the position's entries, then its value, or 0, is stored

One warp, operands in shared memory. A turn makes one tile. The search takes the steps that a row of `entries` needs, whatever it finds; rows
have an odd pitch, so lanes do not wait for each other's banks by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

from knapper.compiler.codegen.builder import KernelBuilder, VReg, VUReg
from knapper.compiler.codegen.matrix.code import S32, U32, add, fixed, lane_id, mul, umov
from knapper.isa.instructions import BMSLICE, EXIT, IADD, ISETP, LDS, SEL, SHF, STS
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Bits32, Cmp, Direction, Width
from knapper.isa.program import Launch, Program

from .microbench import fill, program, turns

COLUMNS = 16
SHIFT = 5
"""Positions by which a tap is ahead."""
FORMATS = ("dense", "bitmap", "csr")


@dataclass(frozen=True)
class TileLoop:
    """A turn makes a tile from `format`; a position has up to `entries` entries."""

    format: str
    turns: int
    entries: int = 64

    def program(self, machine: Machine) -> Program:
        b = KernelBuilder("tile_loop", (32, 1, 1), machine)
        b.shared(32 * (self.entries + 1) * 4)
        fill(b, b.shared_bytes)
        make = {"dense": self._dense, "bitmap": self._bitmap, "csr": self._csr}[self.format]
        target = b.shared(32 * COLUMNS * 2, 512)
        base, lane = umov(b, 0), lane_id(b)
        with turns(b, self.turns):
            make(b, base, lane, target)
        b.emit(EXIT)
        return program(machine, b.finish(), (Launch("tile_loop", (1, 1, 1), (), ("loop",)),))

    def _dense(self, b: KernelBuilder, base: VUReg, lane: VReg, target: int) -> None:
        at = mul(b, lane, 16)
        for i in range(2):
            data = b.reg(4)
            b.emit(LDS, Width._128, data, base, at, 512 * i)
            b.emit(STS, Width._128, base, at, target + 512 * i, data)

    def _bitmap(self, b: KernelBuilder, base: VUReg, lane: VReg, target: int) -> None:
        bits, window, at = b.reg(2), b.reg(2), mul(b, lane, 8)
        b.emit(LDS, Width._64, bits, base, at, 0)
        b.emit(BMSLICE, window, bits, SHIFT)
        start = b.reg(2)
        b.emit(IADD, S32, start[0], window[1], mul(b, lane, 64))
        b.emit(IADD, S32, start[1], start[0], 64 * COLUMNS)
        b.emit(STS, Width._64, base, at, target, start)
        b.emit(STS, Width._32, base, mul(b, lane, 4), target + 256, window[0])

    def _csr(self, b: KernelBuilder, base: VUReg, lane: VReg, target: int) -> None:
        begin, half = mul(b, lane, self.entries + 1), Width.U16
        for k in range(COLUMNS):
            low, high = add(b, begin, 0), add(b, begin, self.entries)
            for _ in range(self.entries.bit_length() - 1):
                middle, found, less = b.reg(), b.reg(), b.pred()
                b.emit(IADD, S32, middle, low, high)
                b.emit(SHF, Direction.R, U32, middle, middle, 1)
                b.emit(LDS, half, found, base, mul(b, middle, 4), 0)
                b.emit(ISETP, Cmp.LE, S32, less, found, k)
                smaller, larger = b.reg(), b.reg()
                b.emit(SEL, Bits32._32, smaller, middle, low, less)
                b.emit(SEL, Bits32._32, larger, high, middle, less)
                low, high = smaller, larger
            entry, column, value, there = mul(b, low, 4), b.reg(), b.reg(), b.pred()
            b.emit(LDS, half, column, base, entry, 0)
            b.emit(LDS, half, value, base, entry, 2)
            b.emit(ISETP, Cmp.EQ, S32, there, column, k)
            b.emit(SEL, Bits32._32, value, value, fixed(b, 0), there)
            b.emit(STS, half, base, mul(b, lane, 2 * COLUMNS), target + 2 * k, value)
