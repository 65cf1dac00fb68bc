"""What an engine counts at each instruction of a launch, and what follows from it. Both engines count the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.lanes import LANES

from .memory import SECTOR, aligned
from .paths import Paths

COUNTER = np.dtype(
    [
        (n, "u8")
        for n in (
            "executed",
            "lanes",
            "skipped",
            "l2_read",
            "l2_write",
            "smem_read",
            "smem_write",
            "local",
            "sectors",
            "wavefronts",
            "vector_reads",
            "vector_writes",
            "rows",
            "ohmma",
            "products",
        )
    ]
)
"""One instruction's counts. `executed`: times a warp issued it; `lanes`: lanes active then, summed; `skipped`: times the
guard left none. Then bytes. Global accesses are counted as the coalescer sees them: neighbouring lanes in one 32-byte sector
share a request.

The others are counted for timing only, and are 0 without. `sectors`: those requests, and likewise those of local memory, which
keeps the lanes' words side by side (`local_sectors`). `wavefronts`: passes over shared memory (`wavefronts`, `row_wavefronts`).
Of commands that work on vector memory: `vector_reads`, `vector_writes`, words of it, all banks wide, that one access of its port moves;
`rows`: rows of A that a pass streamed whose length the code does not say.

`ohmma`, `products`: OHMMAs that were issued for products of condensed vectors, and multiplications in them. With timing or without."""
BANKS = 32
"""Words that shared memory serves in one pass, each from a bank of its own."""
WORD = 4
"""Bytes of a bank's word."""


def counters(instructions: int) -> NDArray[Any]:
    """Zeros, one entry an instruction."""
    return aligned(instructions, COUNTER)


NO_GAPS: NDArray[np.uint64] = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Counts:
    """What one launch did.

    DRAM bytes: every 32-byte sector that the launch reads counts once, every one that it writes once, as if the L2 cache held
    all that a launch touches and nothing from one launch to the next.
    """

    instructions: NDArray[Any]
    """`COUNTER` entries, one an instruction of the kernel."""
    dram_read: int
    dram_write: int
    gaps: NDArray[np.uint64] = field(default_factory=NO_GAPS.copy)
    """How far apart, in launch order, the blocks are that read one sector of global memory. Every sector that a block reads counts once
    in that block: in `gaps[g]` if the block that read it last is the one g before, in `gaps[0]` if none has read it yet. So
    `gaps[0]` are the sectors of `dram_read`. As long as there are such; empty without timing."""
    paths: Paths | None = None
    """Which way the warps went. None without timing."""

    @property
    def l1_unique(self) -> int:
        """Distinct sectors (not bytes) that a block reads, summed over blocks: what an L1 cache of any size must fetch."""
        return int(self.gaps.sum())


def wavefronts(addresses: NDArray[np.int64], lanes: NDArray[np.intp], size: int) -> int:
    """Passes that one shared-memory access takes: `addresses` of the active `lanes`, `size` bytes each, aligned.

    Accesses of 8 and 16 bytes go in phases of 16 and 8 lanes, smaller ones in one of 32, so that a phase asks for at most a word a
    bank. A phase takes as many passes as there are distinct words wanted from one bank; lanes that want the same word share it.
    An access's words are neighbours and aligned, so they conflict where their first ones do. [active] each
    """
    width = max(size, WORD)
    group = BANKS * WORD // width
    places, total = addresses // width, 0
    for phase in np.unique(lanes // group):
        distinct = np.unique(places[lanes // group == phase])
        total += int(np.bincount(distinct % group).max())
    return total


ROWS, ROW_WORDS = 16, 8
"""Rows of a fragment that LDSM fetches, and words of a row."""


def row_wavefronts(origin: int, pitch: int) -> int:
    """Passes of an LDSM: its rows in four phases of four whole rows, whichever lanes are active; 4 where none conflict.

    A row is the eight words from the one that holds its first byte. `.T` is counted alike: the rows pass through a transposer, as
    GPUs' matrix loads do.
    """
    rows = origin + pitch * np.arange(ROWS)[:, None] + WORD * np.arange(ROW_WORDS)
    lanes = np.arange(BANKS)
    return sum(wavefronts(phase, lanes, WORD) for phase in rows.reshape(-1, BANKS))


def local_sectors(addresses: NDArray[np.int64], lanes: NDArray[np.intp], size: int) -> int:
    """Requests of one access to local memory: a word of eight neighbouring threads is a sector, and counted as in global memory.

    An access of several words makes its requests for each. [active] each
    """
    words = SECTOR // WORD
    sectors = addresses // WORD * (LANES // words) + lanes // words
    return requests(sectors) * max(size // WORD, 1)


def requests(sectors: NDArray[np.int64]) -> int:
    """What the coalescer sends for the sectors of the active lanes, in order: one for each run. [active]"""
    return 1 + int(np.count_nonzero(np.diff(sectors))) if len(sectors) else 0
