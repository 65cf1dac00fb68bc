"""Predicted cycles of a sparse product: OHMMAs that are expected of the weights as they are and activations of the density that their type says.

A step of k of a warp tile takes ceil(nA / 8) · ceil(nB / 16) OHMMAs. nB is known; nA is binomial of 32, if zeros are spread evenly, so the
expected number of OHMMAs is E[ceil(nA / 8)] · Σ ceil(nB / 16), over all rows of tiles. The other units of an SM are asked as the
kernel asks them: issue slots, the port of shared memory, L2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import comb

import numpy as np

from knapper.isa.machine import Machine
from knapper.isa.sparse import COLUMNS, PASS, ROWS, STEPS, TILE, WORDS

from ....sparsity.bitmap import HEADER, LINE, tiled
from ...encode.record import INSTRUCTIONS
from ...generator import Group
from .. import cost
from .shape import HALVES, Shape, weights

NORM = 4
"""Chosen, after products and layers that were executed (docs/reproduce-notes.md)."""
WEIGHT = cost.WEIGHT / 10
"""Of an executed instruction: there are many for each multiplication, of which the time is known."""
WAIT = 25
"""Cycles of a step that nothing hides: the barrier, and what follows it."""
FIRST = 4
"""Latencies of L2 before the first product."""
RESULT = 2
"""Instructions of a row of results and a node: of a warp by itself, each waits for the one before."""


@lru_cache(maxsize=256)
def groups_of(density: float, size: int = ROWS) -> float:
    """E[ceil(Bin(32, density) / size)].

    >>> round(groups_of(0.5) / 4, 3), round(groups_of(0.5, 16) / 2, 3)
    (0.607, 0.715)
    """
    chances = (comb(TILE, n) * density**n * (1 - density) ** (TILE - n) for n in range(TILE + 1))
    return float(sum(-(-n // size) * p for n, p in enumerate(chances)))


def predicted(s: Shape, group: Group, machine: Machine) -> float:
    """Cycles of a launch."""
    op, t = s.op, s.t
    blocks = s.grid[0] * s.grid[1]
    resident = cost.residency(blocks, s.warps, s.registers, s.shared_bytes, machine)
    resident = max(1, min(resident, machine.accumulator_bytes // (4 * WORDS * t.warps)))
    w = _Work(s, group, machine, op.density, resident)
    waits = machine.l2_latency + 2 * machine.units["lsu_shared"].latency
    results = RESULT * (2 + len(group.nodes)) * TILE + (INSTRUCTIONS if op.encoded else 0)
    alu = machine.units["alu"]
    epilogue = results * max(alu.latency, alu.interval * resident * t.warps / machine.subcores)
    block = FIRST * waits + s.steps * w.step + epilogue + resident * w.drained

    def rounds(n: int) -> float:
        return block if n == resident else block * max(n / resident, 0.7)

    total = cost.in_rounds(blocks, resident, machine, rounds)
    executed = blocks * s.steps * s.warps * w.issued
    moved = (w.dram.read + w.dram.written) * machine.clock_hz / machine.dram_bytes_per_second
    return float(machine.launch_cycles + max(total, moved) + WEIGHT * executed)


@dataclass(frozen=True)
class Dram:
    """Bytes of a launch."""

    read: float
    written: float


def record(density: float) -> float:
    """Bytes that are read of a record."""
    return HEADER + 2 * TILE * TILE * density + LINE


def apart(gap: int, blocks: int, wave: int) -> float:
    """The share of blocks that run in another wave than the one so many before them."""
    waves, rest = divmod(blocks, wave)
    together = waves * max(0, wave - gap) + max(0, rest - gap)
    return 1 - together / (blocks - gap) if blocks > gap else 0.0


@dataclass(frozen=True)
class _Work:
    """What a step of the blocks that an SM runs together takes of each unit, in cycles."""

    s: Shape
    group: Group
    machine: Machine
    density: float
    resident: int

    @cached_property
    def step(self) -> float:
        """None of them is ever quite busy while others are nearly so: a norm of all."""
        busy = (self.multiplying, self.issue, self.shared, self.l2, self.from_dram)
        return float(sum(n**NORM for n in busy) ** (1 / NORM)) + WAIT

    @property
    def products(self) -> int:
        """SPWMMAs of a warp."""
        return HALVES * self.s.t.depth

    @property
    def multiplying(self) -> float:
        """OHMMAs of the warps of a sub-core."""
        s, m = self.s, self.machine
        # a warp tile's, on average over columns of tiles
        ohmma = float((-(-self.counts // COLUMNS)).sum()) / s.op.columns * groups_of(self.density)
        warps = max(self.resident * s.t.warps / m.subcores, 1.0)
        return warps * ohmma * m.units["tensor"].interval / 32 / s.steps

    @property
    def issued(self) -> float:
        """Instructions of a warp."""
        s = self.s
        multiply = s.t.warps * (self.products * (8 if s.halo else 2) + 6)
        tiers = sum(3 * (self.fill > 1 / 8 * n) * n for n in (1, 2, 4))
        return (multiply + s.slots * (44 + 2 * tiers)) / s.warps

    @property
    def issue(self) -> float:
        warps = self.resident * self.s.warps / self.machine.subcores
        return max(warps, 1.0) * self.issued

    @property
    def shared(self) -> float:
        """Passes: descriptors read, values read, both written."""
        s = self.s
        values = STEPS * TILE * (self.density + self.weight) / PASS
        read = s.t.warps * self.products * ((4 if s.halo else 2) + max(values, 1.0))
        written = s.slots * (4 + 32 * self.fill)
        return self.resident * (read + written)

    @property
    def l2(self) -> float:
        """Records: those of A once more for each tap, as far as L1 does not hold them."""
        s, m = self.s, self.machine
        a, b = (record(d) for d in (self.density, self.weight))
        loaded = s.t.depth * ((s.t.wm + s.halo) * a + s.t.wn * b)
        once = s.t.depth * (
            min(s.t.wm + self._beside, s.t.wm * s.op.taps) * a / s.op.taps + s.t.wn * b
        )
        held = self.resident * s.shared_bytes
        distinct = once * s.steps
        nbytes = cost.beyond_l1(loaded * s.steps, distinct, held, self.resident, m) / s.steps
        blocks = s.grid[0] * s.grid[1]
        return self.resident * nbytes / cost.rate(blocks, m)

    @property
    def _beside(self) -> int:
        """Segments that taps read beside a block's own."""
        shifts = self.s.op.shifts
        return -(-(max(shifts) - min(shifts)) // TILE)

    @property
    def from_dram(self) -> float:
        """What of a step's records L2 does not hold."""
        return self.resident * self.dram.read / self.s.steps / self._blocks / self._dram_rate

    @property
    def drained(self) -> float:
        """Cycles in which a block's results, or what they replace in L2, go to DRAM."""
        return self.dram.written / self._blocks / self._dram_rate

    @property
    def _blocks(self) -> int:
        return self.s.grid[0] * self.s.grid[1]

    @property
    def _dram_rate(self) -> float:
        """Bytes a cycle, of an SM."""
        m = self.machine
        return m.dram_bytes_per_second / m.clock_hz / min(self._blocks, m.sms)

    @cached_property
    def dram(self) -> Dram:
        """Bytes of a launch that go to and from DRAM.

        Blocks go down the rows of C: a wave that ends before the column does reads A, the next column reads it again, and that
        hits if no more than L2 holds has passed meanwhile. A was made just before, and lies in L2 with its whole buffer, whatever is used of it.
        """
        s, op, m, l2 = self.s, self.s.op, self.machine, self.machine.l2_bytes
        down, across, _ = s.grid
        a = op.layout.segments * op.groups * record(self.density)
        b = op.columns * op.taps * op.groups * HEADER + 2.0 * float(self.counts.sum())
        beside, stored = self._operands, sum(t.bytes for t in self.group.outputs.values())
        wave = min(self._blocks, m.sms * self.resident)
        window = max(down, wave)
        passed = a + b * min(1, window / self._blocks) + (beside + stored) * window / self._blocks
        crossing = apart(down, self._blocks, wave) if across > 1 and passed > l2 else 0.0
        recent = op.layout.bytes + beside
        missing = max(0.0, 1 - l2 / recent)
        read = (a + beside) * missing + b + (across - 1) * a * crossing
        return Dram(read, max(0.0, recent + stored - l2))

    @property
    def _operands(self) -> int:
        """Bytes of what the epilogue reads besides."""
        g, op = self.group, self.s.op
        return sum(t.bytes for v, t in g.inputs.items() if v not in g.constants and v != op.p.a)

    @property
    def counts(self) -> np.ndarray:
        return row_counts(self.group, self.s)

    @property
    def weight(self) -> float:
        """Density of the weights."""
        return float(self.counts.mean()) / TILE

    @property
    def fill(self) -> float:
        """Of a record."""
        return (self.density + self.weight) / 2


def row_counts(group: Group, s: Shape) -> np.ndarray:
    """Values of each row of each tile of B. [columns of tiles, rows of tiles · 16]"""
    key = "spwmma counts"
    if key not in group.found:
        values = tiled(weights(s.op, group.constants[s.op.p.b]), s.op.taps) != 0
        group.found[key] = values.sum(-1).reshape(s.op.columns, -1)
    found: np.ndarray = group.found[key]
    return found
