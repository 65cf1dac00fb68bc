"""Predicted cycles of a `channel_first` launch, phase by phase.

    phase     max(array, fetch and sums side by side + commands, bytes / HBM)
    launch    first fetch + Σ phases + last sums

Phases differ in what they fetch: rows with a strip's first tick, weights by how long they stay; and a job's sums come with one of its ticks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from knapper.isa.systolic import LANES

from ...generator import Group
from ..cost import ADDRESSES, WEIGHT
from ..epilogue import BYTES, varying_operands
from .shape import WORDS, Tiles

ISSUE, ROLLED = 4, 60
"""Cycles in which a warp sends the commands of a pass, and what a loop over them takes besides: one uniform operation after the other.

These, PIECE and PHASE are fitted to executed kernels on tpu-v2. The planner alone reads them.
"""
PIECE = 50
"""Cycles of a piece besides: its loop, bounds and bases."""
WIDTH = 1.02
"""What a word of neighbours along the width must save: predictions do not know that strides leave parts of such words unused."""
PHASE = 300
"""Cycles of a phase besides: two barriers, counters, a commit on its way."""


@dataclass(frozen=True)
class Costs:
    """What a launch of a group is made of."""

    group: Group
    t: Tiles

    @property
    def rows(self) -> float:
        """Of a strip on average, as the array sees them."""
        return self.t.pixels / self.t.strips * self.t.wn

    @property
    def speed(self) -> float:
        """Bytes of HBM a cycle."""
        return self.t.machine.dram_bytes_per_second / self.t.machine.clock_hz

    @property
    def latency(self) -> int:
        """Cycles from a transfer's last byte to its arrival."""
        return self.t.machine.dram_latency + self.t.machine.units["dma"].latency

    @cached_property
    def array(self) -> float:
        """Cycles of a tick: a pass of few rows waits for the sums of the one before."""
        each = max(self.rows, self.t.rows) + self.t.machine.lsma_bubble
        return self.t.passes * each / self.t.chunks

    @cached_property
    def sums(self) -> float:
        """Cycles of a job's sums: rounds of pieces, whose operands are loaded ahead."""
        t, machine = self.t, self.t.machine
        rounds = -(-t.walk.strip // (t.piece * t.workers))
        registers = t.piece * t.wn * t.columns // LANES
        converts = sum(n.op == "Cast" for n in self.group.nodes) * machine.units["cvt"].interval
        issued = 1 + len(self.group.nodes) + len(varying_operands(self.group, t.p))
        share = -(-t.workers // machine.subcores)
        return float(rounds * share * (registers * max(converts, issued) + PIECE) + PIECE)

    @cached_property
    def traffic(self) -> float:
        """Bytes of a job's results, and of operands that differ by row."""
        values = [self.group.inputs[v] for v in varying_operands(self.group, self.t.p)]
        each = sum(BYTES[x.dtype] for x in (*values, *self.group.outputs.values()))
        return self.rows * min(self.t.columns, self.t.p.n) * each

    def phase(self, fetched: float, sums: bool) -> float:
        """Cycles of a phase that fetches so many bytes."""
        fetch = fetched / self.speed + self.latency if fetched else 0.0
        issue = self.t.chunk * (ISSUE if self.t.unrolled else ISSUE + ROLLED)
        beside = max(fetch, self.sums if sums else 0.0) + issue + PHASE
        return max(self.array, beside, (fetched + (self.traffic if sums else 0.0)) / self.speed)

    def fetches(self) -> list[tuple[int, float]]:
        """How many ticks fetch how many bytes, or what takes as long as so many."""
        t = self.t
        visits = t.sections * t.strips
        rows = t.stored / visits * max(_row_bytes(t), _row_words(t) * self.speed)
        weights = self.t.chunk * t.tile_bytes
        with_weights = {"all": t.blocks * t.chunks, "block": t.blocks, "chunk": t.ticks}[t.kept]
        both = visits if t.kept == "chunk" else 1
        found = [(both, rows + weights), (visits - both, rows), (with_weights - both, weights)]
        return [*found, (t.ticks - sum(n for n, _ in found), 0.0)]

    @property
    def launch(self) -> float:
        t, parts = self.t, self.fetches()
        often = 1 / t.chunks
        phases = sum(
            n * (often * self.phase(x, True) + (1 - often) * self.phase(x, False)) for n, x in parts
        )
        block = parts[0][1] / self.speed + self.latency + phases + t.machine.lsma_fill + self.sums
        each = self.rows * t.columns / LANES * (1 + len(self.group.nodes)) / t.workers
        executed = 2 * t.ticks + t.jobs * (ADDRESSES + each)
        total = t.machine.launch_cycles + t.p.batch * block + WEIGHT * executed
        return float(total * WIDTH if t.walk.word == WORDS[1] else total)


def _row_words(t: Tiles) -> float:
    """Cycles of vector memory's port that a stored row takes, each of its copies."""
    x = t.descriptor.layout
    return float(x.columns * x.blocks * t.taps * t.size / 2)


def _row_bytes(t: Tiles) -> float:
    """Bytes of global memory that a stored row comes from: none for a row of padding, or one that no window reads."""
    d = t.descriptor
    read = min(1.0, t.span / t.down) * d.height / d.layout.padded_h
    return float(d.width * d.channels * t.size * t.wn * read)
