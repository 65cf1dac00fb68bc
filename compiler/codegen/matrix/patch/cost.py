"""Predicted cycles of a launch whose blocks hold a patch of the image: fetch it, walk over k, store.

    cycles = launch + rounds · (addresses + two latencies + patch + max(steps · max(units, warp, latency), weights) + results)

The first of the two latencies is the table's that says where pixels lie. Blocks that run on an SM together fetch together, so nothing
hides the patch.
"""

from __future__ import annotations

from dataclasses import dataclass

from knapper.isa.machine import Machine

from ..cost import ADDRESSES, WEIGHT, beyond_l1, in_rounds, latency, rate, residency
from ..geometry import FRAGMENT

LINE = 12
"""Instructions of a warp to find a row of fragments in the result."""
OTHERS = 16
"""Uniform instructions of a warp in a k step."""


@dataclass(frozen=True)
class Work:
    """A launch. In a k step a warp multiplies `multiplies` times, `chain` of which wait for one another, on `fragments` of the patch and
    `weights` of B, a block's `distinct` ones; these are `staged` in shared memory, or not.

    A patch has `patch` bytes, which a thread carries in so many `moves`; a warp has `lines` rows of `results` results a thread, and a result
    costs `epilogue` instructions; `known` bytes of B come from DRAM, no launch having made them. A thread takes `registers`, a block `shared` bytes.
    """

    blocks: int
    warps: int
    steps: int
    multiplies: int
    chain: int
    fragments: int
    weights: int
    distinct: int
    staged: bool
    patch: int
    moves: int
    lines: int
    results: int
    epilogue: int
    known: int
    registers: int
    shared: int

    @property
    def passes(self) -> int:
        """Over shared memory or L1 in a step, by all warps: of 128 bytes."""
        own = self.warps * (self.fragments + self.weights)
        return (own + 2 * self.distinct * self.staged) * FRAGMENT // 128

    @property
    def issued(self) -> int:
        """Instructions of a warp in a step."""
        return self.multiplies + self.fragments + self.weights + OTHERS

    @property
    def instructions(self) -> int:
        """Executed in a launch, by all warps."""
        fetch, results = 2 * self.moves, self.lines * LINE + self.results * self.epilogue
        each = ADDRESSES + fetch + self.steps * self.issued + results
        return self.blocks * self.warps * each


def cycles(w: Work, machine: Machine) -> float:
    """The launch's cycles."""
    resident = residency(w.blocks, w.warps, w.registers, w.shared, machine)
    computing = in_rounds(w.blocks, resident, machine, lambda n: _round(w, n, machine))
    return machine.launch_cycles + computing + WEIGHT * w.instructions


def _round(w: Work, resident: int, machine: Machine) -> float:
    """Cycles of blocks that run on an SM together."""
    distinct = w.steps * w.distinct * FRAGMENT
    loaded = distinct if w.staged else w.steps * w.warps * w.weights * FRAGMENT
    nbytes = beyond_l1(w.patch + loaded, w.patch + distinct, resident * w.shared, resident, machine)
    missing = min(w.known / (w.blocks * nbytes), 1.0)
    speed, wait = rate(w.blocks, machine, missing), latency(machine, missing)
    share = max(1.0, resident * w.warps / machine.subcores)
    fetch = resident * (w.patch / speed + w.patch / 128) + 2 * wait
    results = w.lines * LINE * 2 + w.results * max(machine.units["cvt"].interval, 2 * w.epilogue)
    weights = resident * (nbytes - w.patch) / speed
    steps = max(weights, w.steps * step(w, resident, wait, machine))
    return 2 * ADDRESSES * share + fetch + steps + share * results


def step(w: Work, resident: int, wait: float, machine: Machine) -> float:
    """Cycles of a k step of all resident blocks: the busiest unit, or a warp that waits for itself or for weights."""
    tensor, shared = machine.units["tensor"], machine.units["lsu_shared"]
    share = -(-resident * w.warps // machine.subcores)
    busy = max(
        share * w.multiplies * tensor.interval,
        resident * w.passes * shared.interval,
        share * w.issued,
    )
    working = max((w.multiplies - 1) * tensor.interval + tensor.latency, w.chain * tensor.latency)
    return max(busy, working + shared.latency, wait)
