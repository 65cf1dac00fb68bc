"""What an engine counts at each instruction of a launch, and what follows from it. Both engines count the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .memory import aligned

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
        )
    ]
)
"""One instruction's counts. `executed`: times a warp issued it; `lanes`: lanes active then, summed; `skipped`: times the
guard left none. Then bytes. Global accesses are counted as the coalescer sees them: neighbouring lanes in one 32-byte sector
share a request."""


def counters(instructions: int) -> NDArray[Any]:
    """Zeros, one entry an instruction."""
    return aligned(instructions, COUNTER)


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
