"""Train, prune, train again; then run what came out on the emulator, and write docs/prune.md.

A network of one seed and pattern is a chain of stages; chains run side by side, each in a process of one thread. The end of each stage
is kept in a file, and whoever starts again goes on from there: Ctrl-C costs a stage at most.

Exit codes: 0, tile-wise networks at 75 % are within two points of dense; 1, one is not; 2, it was asked for wrongly; 130, it was stopped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import data
from .chain import Job, Outcome, Plan, chain, dense, prepare_worker
from .patterns import PATTERNS, Pattern
from .table import Table, keep_files, page

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs" / "prune.md"
ALLOWED = 0.02
"""Accuracy that a tile-wise network may lose at 75 %."""
QUICK = Pattern("EW"), Pattern("TW", 16), Pattern("TW", 64)


def main(argv: Sequence[str] | None = None) -> int:
    a = arguments().parse_args(argv)
    console = Console(stderr=True)
    try:
        folder = data.find(a.data, a.dir)
    except (data.DataError, OSError) as e:
        console.print(f"error: {e}", markup=False)
        return 2
    plan = Plan.quick(a.dir / "quick", folder) if a.quick else Plan(a.dir, folder)
    patterns = QUICK if a.quick else PATTERNS
    try:
        outcomes = run(plan, patterns, range(a.seeds), a.jobs, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return 130
    found = Table(outcomes, patterns, plan)
    text = page(found)
    print(text)
    if not a.quick:
        DOCS.write_text(text)
        keep_files(plan, found, Path(__file__).parent)
    return 0 if a.quick or found.loss_of_tiles() <= ALLOWED else 1


def arguments() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m examples.prune", description=__doc__)
    p.add_argument("--seeds", type=int, default=3, metavar="N", help="networks of each row (3)")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    p.add_argument("--data", type=Path, metavar="FOLDER", help="Fashion-MNIST's four .gz files")
    p.add_argument(
        "--dir",
        type=Path,
        default=Path("build/prune"),
        metavar="FOLDER",
        help="stages and ONNX files",
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the images, few rows, only printed: to see that it works",
    )
    return p


def run(
    plan: Plan, patterns: Sequence[Pattern], seeds: Sequence[int], jobs: int, console: Console
) -> list[Outcome]:
    """The dense networks, then every chain; in the order of the jobs, whichever ended first."""
    wanted = [Job(seed, pattern) for seed in seeds for pattern in patterns]
    spawn = multiprocessing.get_context("spawn")
    told: multiprocessing.queues.Queue[tuple[str, float]] = spawn.Queue()
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with (
        Progress(*columns, console=console) as bars,
        ProcessPoolExecutor(jobs, spawn, prepare_worker, (told,)) as pool,
    ):
        try:
            first = {pool.submit(dense, plan, seed): f"seed {seed}" for seed in seeds}
            for _ in watch(first, told, bars):
                pass
            futures = {pool.submit(chain, plan, job): str(job) for job in wanted}
            ended = {found[0].job: found for found in watch(futures, told, bars)}
        except BaseException:  # Ctrl-C, too: nobody waits for the other jobs
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return [o for job in wanted for o in ended[job]]


def _next(told: multiprocessing.queues.Queue[tuple[str, float]]) -> tuple[str, float]:
    """What a job says; ("", 0) if none has said anything for a while."""
    try:
        return told.get(timeout=0.3)
    except queue.Empty:
        return "", 0.0


def watch(
    futures: dict[Future[list[Outcome]], str],
    told: multiprocessing.queues.Queue[tuple[str, float]],
    bars: Progress,
) -> Iterator[list[Outcome]]:
    """Results as they come; meanwhile, a bar for each job that runs."""
    tasks = {name: bars.add_task(name, total=1.0, visible=False) for name in futures.values()}
    waiting = set(futures)
    while waiting:
        name, done = _next(told)
        if name in tasks:
            bars.update(tasks[name], completed=done, visible=True)
        for f in [f for f in waiting if f.done()]:
            waiting.remove(f)
            bars.update(tasks[futures[f]], visible=False)
            bars.console.print(f"{futures[f]} is done", markup=False)
            yield f.result()


if __name__ == "__main__":
    sys.exit(main())
