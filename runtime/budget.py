"""How much a run may do, so that no image, however hostile, runs for ever.

Work is counted in warp instructions. Before the first launch the blocks are counted: starting one takes about the time of
`BLOCK` instructions, and of one more for every `CLEARED` bytes of registers and memory that it finds empty. While a launch
runs, its engine compares what was executed with what is left.
"""

from __future__ import annotations

from math import prod
from typing import Literal

from knapper.isa.errors import MachineFault
from knapper.isa.lanes import LANES
from knapper.isa.program import Kernel, Launch, Program

EngineName = Literal["fast", "reference"]
WORK: dict[EngineName, int] = {"fast": 1 << 36, "reference": 1 << 30}
"""Warp instructions of a run, by default: half an hour in the fast engine (a ResNet-50 has 2^23), half a day in the other."""
LIMIT = 1 << 32
"""Warp instructions of one warp in one launch, by default."""
BLOCK = 256
"""Warp instructions that a block counts as, at least."""
CLEARED = 256
"""Bytes that are cleared in about the time of a warp instruction."""
BLOCKS = 1 << 32
"""Blocks of a launch, at most, whatever the limit: engines number them in 32 bits."""
HINT = "an endless loop? --limit N allows more"


def check(program: Program, work: int) -> None:
    """MachineFault E613 if the blocks of a program alone are more than `work` warp instructions."""
    blocks = [prod(launch.grid) for launch in program.launches]
    cost = {name: _block(kernel) for name, kernel in program.kernels.items()}
    total = sum(n * cost[x.kernel] for n, x in zip(blocks, program.launches, strict=True))
    most = max(blocks, default=0)
    if total > work or most > BLOCKS:
        here = blocks.index(most)
        raise MachineFault(
            "E613",
            f"{most:,} blocks, {sum(blocks):,} in the whole run, which may execute {work:,} warp instructions",
            where=f"launch {here} of kernel {program.launches[here].kernel}",
            hint=f"a block counts as {BLOCK} of them, at least; --limit N allows more",
        )


def _block(kernel: Kernel) -> int:
    """What a block counts as."""
    words = kernel.registers + -(-kernel.local_bytes // 4)
    return BLOCK + (kernel.warps * words * 4 * LANES + kernel.shared_bytes) // CLEARED


def spend(executed: int, left: int, launch: Launch) -> None:
    """MachineFault E613 if a launch has executed more warp instructions than were left of the run's."""
    if executed > left:
        what = f"has executed {executed:,} warp instructions, and {left:,} were left of the run's"
        raise MachineFault("E613", what, where=f"kernel {launch.kernel}", hint=HINT)
