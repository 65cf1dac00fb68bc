"""Predicted cycles of a launch whose blocks hold a patch of the image: fetch it, walk over k, store.

    cycles = launch + rounds · (addresses + two latencies + patch + steps · max(units, weights, warp, latency) + results)

The first of the two latencies is the table's that says where pixels lie. Blocks that run on an SM together fetch together, so nothing
hides the patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from knapper.isa.machine import Machine

from .cost import ADDRESSES, WEIGHT, rate
from .geometry import FRAGMENT

LINE = 12
"""Instructions of a warp to find a row of fragments in the result."""
OTHERS = 16
"""Uniform instructions of a warp in a k step."""


@dataclass(frozen=True)
class Work:
    """A launch. In a k step a warp multiplies `multiplies` times, `chain` of which wait for one another, on `fragments` of the patch and
    `weights` of B, a block's `distinct` ones; these are `staged` in shared memory, or not.

    A patch has `patch` bytes, which a thread carries in so many `moves`; a warp has `lines` rows of `results` results a thread, and a result
    costs `epilogue` instructions. A thread takes `registers`, a block `shared` bytes.
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
    resident = residency(w, machine)
    rounds = math.ceil(w.blocks / (machine.sms * resident))
    speed, share = rate(w.blocks, machine), max(1.0, resident * w.warps / machine.subcores)
    fetch = resident * (w.patch / speed + w.patch / 128) + 2 * machine.l2_latency
    results = w.lines * LINE * 2 + w.results * max(machine.units["cvt"].interval, 2 * w.epilogue)
    block = 2 * ADDRESSES * share + fetch + w.steps * step(w, resident, machine) + share * results
    return machine.launch_cycles + rounds * block + WEIGHT * w.instructions


def residency(w: Work, machine: Machine) -> int:
    """Blocks of an SM."""
    limits = (
        machine.registers_per_sm // (32 * w.warps * w.registers),
        machine.warps_per_sm // w.warps,
        machine.shared_bytes_per_sm // w.shared,
        machine.blocks_per_sm,
        math.ceil(w.blocks / machine.sms),
    )
    return max(1, min(limits))


def step(w: Work, resident: int, machine: Machine) -> float:
    """Cycles of a k step of all resident blocks: the busiest unit, the weights' way, or a warp that waits for itself or for weights."""
    tensor, shared = machine.units["tensor"], machine.units["lsu_shared"]
    share = math.ceil(resident * w.warps / machine.subcores)
    busy = max(
        share * w.multiplies * tensor.interval,
        resident * w.passes * shared.interval,
        share * w.issued,
    )
    weights = resident * w.distinct * FRAGMENT / rate(w.blocks, machine)
    working = max((w.multiplies - 1) * tensor.interval + tensor.latency, w.chain * tensor.latency)
    return max(busy, weights, working + shared.latency, machine.l2_latency)
