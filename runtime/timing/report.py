"""What a launch took, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Roofline:
    """Where a launch stands between what it computes and what it moves."""

    flops_per_byte: float
    """Of DRAM."""
    flops_per_second: float
    peak_flops_per_second: float
    """Of the unit that does most of its multiply-accumulates."""
    bound: str
    """The resource that is busiest: a unit, l2 or dram."""

    def to_dict(self) -> dict[str, Any]:
        """For `stats.json`."""
        return {
            "flops_per_byte": self.flops_per_byte,
            "flops_per_second": self.flops_per_second,
            "peak_flops_per_second": self.peak_flops_per_second,
            "bound": self.bound,
        }


@dataclass(frozen=True)
class Timing:
    """One launch. Sums go over all SMs that had a block."""

    cycles: int
    """From the launch to the last SM's end, `launch_cycles` included."""
    stalls: Mapping[str, int]
    """Issue slots (sub-core × cycle) by what became of them: `state.REASONS`."""
    busy: Mapping[str, float]
    """Share of the cycles, launch excluded, that each unit that worked at all, `array`, `l2` and `dram` were busy, on average; where there
    are such, `dma` (its transfers, not its commands) and `port`, that of the vector memory."""
    occupancy: float
    """Resident warps by what an SM can hold, on average over the cycles of the active SMs."""
    blocks_per_sm: int
    """Resident blocks an SM."""
    limited_by: str
    """What allows no more of them: registers, warps, shared memory, accumulators, blocks, or the mode: the array is one block's, too."""
    active_sms: int
    """SMs that had a block."""
    l2_sectors: int
    """Sectors of 32 bytes between L1 and L2: loads that missed, and stores."""
    dram_sectors: int
    """Sectors between L2 and DRAM."""
    array_cycles: int
    """Cycles that the systolic arrays streamed operands, weights without a buffer of their own included. How long is in `knapper.isa.dataflow`."""
    port_stalls: int
    """Cycles that transfers and passes took longer than HBM and the array did, because of the vector memory's port."""
    by_pc: NDArray[np.int64]
    """Issue slots that each instruction took or that went by before it could issue."""
    roofline: Roofline

    def to_dict(self) -> dict[str, Any]:
        """For `stats.json`."""
        return {
            "cycles": self.cycles,
            "stalls": dict(self.stalls),
            "utilisation": {k: round(v, 6) for k, v in self.busy.items()},
            "occupancy": round(self.occupancy, 6),
            "blocks_per_sm": self.blocks_per_sm,
            "limited_by": self.limited_by,
            "array_cycles": self.array_cycles,
            "port_stalls": self.port_stalls,
            "roofline": self.roofline.to_dict(),
        }
