"""What a session asks of an engine."""

from __future__ import annotations

from typing import Protocol

from knapper.isa.program import Launch

from .counters import Counts


class Engine(Protocol):
    """Runs launches of one program on one memory."""

    def launch(self, launch: Launch) -> Counts:
        """Run all blocks; MachineFault if one stops."""

    def close(self) -> None:
        """Let go of threads and scratch."""
