"""Predicted cycles of a sparse product: OHMMAs that are expected of the weights as they are and activations of an assumed density.

A step of k of a warp tile takes ceil(nA / 8) · ceil(nB / 16) OHMMAs. nB is known; nA is binomial of 32, if zeros are spread evenly, so the
expected number of OHMMAs is E[ceil(nA / 8)] · Σ ceil(nB / 16), over all rows of tiles.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np

from knapper.isa.machine import Machine
from knapper.isa.sparse import COLUMNS, ROWS, TILE

from ...sparsity.bitmap import HEADER, tiled
from ..generator import Group
from . import cost
from .spwmma_shape import Shape, weights

DENSITY = 0.5
"""Of activations of which nothing is known: assumed, about what a ReLU leaves."""


@lru_cache(maxsize=256)
def groups_of(density: float, size: int = ROWS) -> float:
    """E[ceil(Bin(32, density) / size)].

    >>> round(groups_of(0.5) / 4, 3), round(groups_of(0.5, 16) / 2, 3)
    (0.607, 0.715)
    """
    chances = (comb(TILE, n) * density**n * (1 - density) ** (TILE - n) for n in range(TILE + 1))
    return float(sum(-(-n // size) * p for n, p in enumerate(chances)))


def predicted(s: Shape, group: Group, machine: Machine, density: float | None = None) -> float:
    """Cycles of a launch; `density` of the activations."""
    op, t, units = s.op, s.t, machine.units
    density = DENSITY if density is None else density
    counts = row_counts(group, s)
    blocks = s.grid[0] * s.grid[1]
    # a warp tile's OHMMAs, on average over columns of tiles
    ohmma = float((-(-counts // COLUMNS)).sum()) / op.columns * groups_of(density)
    pitch = units["tensor"].interval / 32
    resident = max(
        1,
        min(
            machine.accumulator_bytes // (4096 * t.warps),
            machine.shared_bytes_per_sm // s.shared_bytes,
            machine.registers_per_sm // (32 * t.warps * s.registers),
            -(-blocks // machine.sms),
        ),
    )
    warps = resident * t.warps / machine.subcores
    multiply = max(warps, 1.0) * ohmma * pitch / s.steps
    each = 46 * s.slots / t.warps + (8 if s.halo else 3) * 2 * t.depth + 14
    issue = max(warps, 1.0) * each
    record_a = HEADER + 2 * TILE * TILE * density + 24
    record_b = HEADER + 2.0 * float(counts.sum()) / (op.columns * op.taps * op.groups) + 24
    nbytes = t.depth * ((t.wm + s.halo) * record_a / (op.taps**0.5) + t.wn * record_b)
    move = resident * nbytes / cost.rate(blocks, machine)
    wait = (machine.l2_latency + 150) / 3
    step = max(multiply, issue, move, wait)
    epilogue = 32 * max(1.0, warps) * 2 * (8 + len(group.nodes))
    epilogue += 32 * max(1.0, warps) * 2 * 6 if op.encoded else 0
    block: float = 3 * machine.l2_latency + s.steps * step + epilogue

    def rounds(n: int) -> float:
        return block if n == resident else block * max(n / resident, 0.7)

    total = cost.in_rounds(blocks, resident, machine, rounds)
    cycles: float = machine.launch_cycles + total + cost.WEIGHT * blocks * t.warps * s.steps * each
    return cycles


def row_counts(group: Group, s: Shape) -> np.ndarray:
    """Values of each row of each tile of B. [columns of tiles, rows of tiles · 16]"""
    key = "spwmma counts"
    if key not in group.found:
        values = tiled(weights(s.op, group.constants[s.op.p.b]), s.op.taps) != 0
        group.found[key] = values.sum(-1).reshape(s.op.columns, -1)
    found: np.ndarray = group.found[key]
    return found
