"""What an SM's warps and its DMA engine share: L2's and DRAM's bandwidth, and the port of the vector memory. Each serves who asked first."""

from __future__ import annotations

from typing import Any

from .jit import compiled


@compiled
def memory(sm: Any, op: Any, start: int) -> int:
    """An operation asks L2 and DRAM for what it moves at `start`; when both are done with it."""
    done = start
    if op.l2 > 0:
        sm.l2 = max(start, sm.l2) + op.l2
        done = max(done, sm.l2)
    if op.dram > 0:
        sm.dram = max(start, sm.dram) + op.dram
        done = max(done, sm.dram)
    return done


@compiled
def vector_port(sm: Any, start: int, ticks: int) -> int:
    """The vector memory's port is asked for some ticks of work at `start`; when it is done with them."""
    if ticks > 0:
        sm.vector = max(sm.vector, start) + ticks
        done: int = sm.vector
        return done
    return start
