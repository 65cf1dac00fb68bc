"""Work dealt to threads: jobs are drawn one by one, results are taken in the jobs' order, an interrupt is heard at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

J = TypeVar("J")
R = TypeVar("R")
LOOK = 0.2
"""Seconds between two looks at how far the workers are."""


class Stopped(Exception):
    """A worker was told to end."""


Open = Callable[[threading.Event], Callable[[J], R]]
"""Makes a worker; what it makes may raise `Stopped` once the event is set."""


def spread(
    open_worker: Open[J, R],
    jobs: Iterable[J],
    workers: int,
    take: Callable[[R], None],
    tell: Callable[[int], None] = lambda done: None,
) -> None:
    """Every job's result to `take`, or the first error; `tell` hears now and then how many are done.

    Jobs may come from anywhere and be without end: no more of them are drawn than are worked at.
    """
    deal = _Deal(iter(jobs), take)
    with ThreadPoolExecutor(workers, "worker") as pool:
        running = [pool.submit(deal.work, open_worker) for _ in range(workers)]
        try:
            while (state := wait(running, LOOK)).not_done:
                tell(deal.taken)
                if any(f.exception() for f in state.done):
                    break
        finally:
            deal.stop.set()
        wait(running)
    _raise_first(running)


class _Deal(Generic[J, R]):
    """Hands out jobs, and results in their order."""

    def __init__(self, jobs: Iterable[J], take: Callable[[R], None]) -> None:
        self.jobs, self.take = enumerate(jobs), take
        self.stop, self.draw, self.lock = threading.Event(), threading.Lock(), threading.Lock()
        self.waiting: dict[int, R] = {}
        self.taken = 0

    def work(self, open_worker: Open[J, R]) -> None:
        """What a thread does."""
        worker = open_worker(self.stop)
        while not self.stop.is_set():
            with self.draw:
                job = next(self.jobs, None)
            if job is None:
                return
            self.done(job[0], worker(job[1]))

    def done(self, i: int, result: R) -> None:
        """Take all that is complete from the front."""
        with self.lock:
            self.waiting[i] = result
            while self.taken in self.waiting:
                self.take(self.waiting.pop(self.taken))
                self.taken += 1


def _raise_first(running: list[Future[None]]) -> None:
    """The error that ended the work; that others were stopped is none."""
    errors = [e for f in running if (e := f.exception()) is not None]
    for e in sorted(errors, key=lambda e: isinstance(e, Stopped)):
        raise e
