"""What a session asks of an engine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from knapper.isa.program import Launch

from .counters import Counts

Tick = Callable[[float], None]
"""Called now and then during a launch, with the share of its blocks that were begun."""
UNBOUNDED = sys.maxsize


def silent(share: float) -> None:
    """A tick for whoever does not look."""


class Engine(Protocol):
    """Runs launches of one program on one memory."""

    def launch(
        self, launch: Launch, left: int = UNBOUNDED, tick: Tick = silent, timing: bool = False
    ) -> Counts:
        """Run all blocks; MachineFault if one stops, or if they execute more than `left` warp instructions.

        With `timing`, the counts have what timing needs: paths, sectors, wavefronts, `gaps`.
        """

    def close(self) -> None:
        """Let go of threads and scratch."""
