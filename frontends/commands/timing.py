"""time: a run, or what was recorded of one, on other machines."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from knapper.isa.errors import UsageError
from knapper.isa.machine import Machine

from .. import files
from ..api import load
from ..inputs import gather, needed
from ..progress import Progress
from ..tables import Table, show
from ..warm import timing_core

if TYPE_CHECKING:
    from knapper.runtime.stats import Stats
    from knapper.runtime.timing.record import Record

ELF = b"\x7fELF"
HEAD = (
    "target",
    "cycles",
    "launching",
    "computing",
    "ms",
    "mJ",
    "static",
    "dynamic",
    "busiest",
    "seconds to time",
)


def time_file(a: argparse.Namespace) -> None:
    """`knapper time`."""
    machines = [Machine.load(name) for name in a.target]
    record = read(a)
    rows = []
    for machine in machines or [Machine.from_dict(record.program.target)]:
        started = time.perf_counter()
        stats = record.time(machine, jump=not a.no_jump)
        rows.append((machine, stats, time.perf_counter() - started))
    compiled_for = record.program.target["name"]
    first = f"one program on each machine: compiled for {compiled_for}, not compiled again\n"
    found = Table([row(*measured) for measured in rows], HEAD)
    show(
        a,
        lambda: [stats.to_dict() for _, stats, _ in rows],
        [found],
        lambda: f"{first}\n{found.text()}",
    )


def read(a: argparse.Namespace) -> Record:
    """The record in a file; of an image, one is made by running it. Once the file is read, the timing core is there too."""
    from knapper.runtime.timing.record import Record

    if files.read(a.file)[: len(ELF)] != ELF:
        if a.input:
            raise UsageError("E704", f"--input does not apply: {a.file} is a run already")
        record = Record.load(a.file)
        timing_core()
        return record
    image = load(a.file)
    arrays = gather(needed(image.program), a.input or ["random:0"])
    timing_core()
    with Progress("running", quiet=a.quiet > 0) as progress:
        result = image.default_session.once(
            arrays, timing=True, jump=not a.no_jump, progress=progress
        )
    return Record.of(image.program, result.stats)


def row(machine: Machine, stats: Stats, seconds: float) -> tuple[Any, ...]:
    """One machine; launching is what each launch costs before its first block begins."""
    from knapper.runtime.energy import COMPONENTS

    assert stats.cycles is not None  # it was timed
    launching = machine.launch_cycles * sum(s.launch.host is None for s in stats.launches)
    spent = stats.energy_pj
    static = sum(spent.get(event, 0.0) for event in COMPONENTS["static"])
    return (
        stats.target,
        stats.cycles,
        launching,
        stats.cycles - launching,
        1e3 * stats.cycles / stats.clock_hz,
        *(1e-9 * pj for pj in (spent["total"], static, spent["total"] - static)),
        busiest(stats),
        seconds,
    )


def busiest(stats: Stats) -> str:
    """The resource that bounds the launches that take most of the time, and their share of it."""
    share: dict[str, int] = {}
    for s in stats.launches:
        if s.measured is not None:
            timing = s.measured.timing
            share[timing.roofline.bound] = share.get(timing.roofline.bound, 0) + timing.cycles
    name = max(share, key=lambda bound: share[bound], default="")
    return f"{name} ({share[name] / sum(share.values()):.0%})" if name else ""
