"""Say how far long work has come: a line that moves on a terminal, nothing in a pipe or a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

PATIENCE = 0.5
"""Seconds of work before the first sign."""


class Progress:
    """Called with (done, of how many, what comes next). rich is loaded when there is something to show."""

    def __init__(self, title: str, quiet: bool = False) -> None:
        self.title = title
        self.shown = sys.stderr.isatty() and not quiet
        self.started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: float, total: int, what: str) -> None:
        if not self.shown or time.monotonic() - self.started < PATIENCE:
            return
        if self._bar is None:
            self._start(total)
        self._bar.update(
            self._task, completed=done, total=total, description=f"{self.title} {what}"
        )

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bar

        self._bar = Bar(console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self.title, total=total)
        self._bar.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
