"""Where accesses hit: shares worked out by hand, and L2 beside a cache that is simulated line by line."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from knapper.isa.machine import Machine
from knapper.runtime.timing.footprint import Footprint, Reuse, Traffic, footprint

SECTOR = 32
MACHINE = Machine.load("v100-sxm2")
Blocks = Sequence[Sequence[int]]
"""The sectors that each block reads, in order."""


def gaps(blocks: Sequence[Collection[int]]) -> NDArray[np.uint64]:
    """What an engine counts of blocks in launch order."""
    out, last = np.zeros(len(blocks), np.uint64), dict[int, int]()
    for number, sectors in enumerate(blocks):
        for s in set(sectors):
            out[number - last.get(s, number)] += 1
            last[s] = number
    return out


def from_dram(blocks: Blocks, wave: int, room: int, written: int = 0) -> float:
    """What the model says: sectors."""
    reuse = Reuse.of(Traffic(0, 0, written, gaps(blocks)), len(blocks), wave)
    return reuse.first + reuse.misses(SECTOR * room, 0)


def lru(blocks: Blocks, wave: int, room: int) -> int:
    """Misses of a cache of `room` sectors that drops the least recent; blocks of a wave read in turns."""
    cache, misses = OrderedDict[int, None](), 0
    for start in range(0, len(blocks), wave):
        running = blocks[start : start + wave]
        for step in range(max(map(len, running))):
            for s in (b[step] for b in running if step < len(b)):
                misses += s not in cache
                cache[s] = None
                cache.move_to_end(s)
                if len(cache) > room:
                    cache.popitem(last=False)
    return misses


def tiles(m: int, n: int, k: int) -> list[list[int]]:
    """A product of m × n tiles, row by row: at each of k steps a block reads a sector of A and one of B."""
    return [
        [s for step in range(k) for s in (i * k + step, (m + j) * k + step)]
        for i, j in product(range(m), range(n))
    ]


SHAPES = {
    "square": (tiles(12, 12, 40), 24), "few columns": (tiles(40, 4, 40), 16), "few rows": (tiles(4, 40, 40), 16),
    "one wave": (tiles(6, 6, 40), 36), "a ragged wave": (tiles(11, 7, 40), 30), "blocks one by one": (tiles(5, 5, 40), 1),
    "one buffer": ([list(range(300))] * 24, 8),
}  # fmt: skip
"""Blocks, and how many run at once."""


@pytest.mark.parametrize("name", SHAPES)
def test_sectors_from_dram_are_those_that_a_cache_misses(name: str) -> None:
    """From room for what a wave asks for within two steps to room for all."""
    blocks, wave = SHAPES[name]
    for room in (4 * wave, 200, 700, 1200, 10**6):
        assert from_dram(blocks, wave, room) == pytest.approx(lru(blocks, wave, room), rel=0.09)


def test_blocks_that_ask_for_the_same_at_other_times_are_taken_to_share_it() -> None:
    """A limit: a block's last sectors are the next one's first, and have left a small cache by the time that it asks for them."""
    stencil = [list(range(50 * b, 50 * b + 62)) for b in range(60)]
    assert from_dram(stencil, 8, 600) == lru(stencil, 8, 600) == 60 * 50 + 12
    assert from_dram(stencil, 8, 32) < 0.85 * lru(stencil, 8, 32)


@pytest.mark.parametrize("wave", [1, 5, 8, 24])
def test_pairs_of_blocks_in_two_waves(wave: int) -> None:
    reuse = Reuse.of(Traffic(0, 0, 0, np.ones(24, np.uint64)), 24, wave)
    for apart, share in enumerate(reuse.across().tolist()):
        pairs = [(b - apart) // wave != b // wave for b in range(apart, 24)]
        assert share == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize("seed", range(4))
def test_what_passes_while_some_blocks_run(seed: int) -> None:
    """Blocks that read what any of 500 sectors holds: the mean over windows, the launch's first reads spread over all of it."""
    rng = random.Random(seed)
    blocks = [rng.sample(range(500), 20) for _ in range(2000)]
    reuse = Reuse.of(Traffic(0, 0, 4000, gaps(blocks)), len(blocks), 1)
    for window in (1, 2, 10, 60):
        means = [len(set().union(*blocks[b : b + window])) for b in range(2001 - window)]
        assert reuse.passed(window) == pytest.approx(np.mean(means) + 2 * window, rel=0.01)
    assert reuse.passed(10**6) == 500 + 4000


def foot(**numbers: int) -> Footprint:
    """1,000 loads of 100 sectors by one block, half of which fit L1; L2 holds a quarter of what is read."""
    machine = MACHINE.with_(l1_bytes=1600 + 4096, **numbers)
    return footprint(
        machine, Traffic(loads=1000, stores=50, written=20, gaps=np.array([100], np.uint64)),
        blocks=1, resident=1, active=1, shared_bytes=4096, held=0.25, evicted=320,
    )  # fmt: skip


def test_where_accesses_hit() -> None:
    all = foot(l2_bytes=120 * SECTOR)
    assert all.l1_misses == pytest.approx((100 + 900 * 0.5) / 1000)
    assert all.l2_misses == pytest.approx(100 * 0.75 / 550)
    assert all.written_back == pytest.approx(10 / 50)
    assert all.l2_ticks == pytest.approx(256 * 32 / MACHINE.sm_bytes_per_cycle)  # one SM: its port
    for too_small in (120 * SECTOR - 1, 1):  # for what is read and written
        assert foot(l2_bytes=too_small).l2_misses == pytest.approx((75 + 450) / 550)


def test_blocks_of_a_wave_fetch_together_what_they_read_again() -> None:
    """Four blocks at once read 100 sectors twice each: two fetches of each, or one if L2 keeps them."""
    traffic = Traffic(loads=800, stores=0, written=0, gaps=np.array([100, 300], np.uint64))
    for room, fetched in ((99, 200), (100, 100)):
        machine = MACHINE.with_(l1_bytes=0, l2_bytes=room * SECTOR)
        got = footprint(
            machine, traffic, blocks=4, resident=1, active=4, shared_bytes=0, held=0.0, evicted=0
        )
        assert got.l1_misses == 1
        assert got.l2_misses * 800 == pytest.approx(fetched)
