"""A recorded run: what timing needs of it, in one file, to be timed on other machines without executing again.

    Record.of(program, stats).save(path)      Record.load(path).time(machine) -> Stats, as a run on that machine would give it

The file is an .npz without pickled objects: the program as an image whose weights are zeros (they compress to nothing), each launch's
counters, and the paths of its classes of blocks. What a machine may differ in is numbers: the instructions stay those that ran, even where
the compiler would take other tiles, or another kind of kernel, for that machine. So a replay tells what a number is worth to one
program; what a machine is worth to a network is told by compiling for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa import files, image
from knapper.isa.errors import IsaError, UsageError, raise_all
from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.isa.systolic import Array

from ..counters import COUNTER, Counts
from ..decode import Decoded, decode
from ..paths import END, EVENT, WORK, Paths
from ..stats import KernelFacts, LaunchStats, Stats
from .fit import misfits
from .meter import Meter
from .tables import Structure

SCHEMA = "knapper.record/4"
ARRAYS: dict[str, Any] = {
    "meta": "u1", "image": "u1", "counts": COUNTER, "totals": "i8", "gaps": "u8", "reach": "i8", "of_block": "u4", "classes": "i8",
    "lengths": "i8", "events": EVENT,
}  # fmt: skip
"""The file's arrays. Of each launch in order: `counts` of its instructions, `totals` (bytes of DRAM read and written), its `gaps` and how
many these are (`reach`), the class `of_block`, the number of `classes`; `lengths` of the warps' events in each of these; all `events`."""


@dataclass(frozen=True)
class Record:
    """A run that can be timed."""

    program: Program
    """Its weights are zeros if it was loaded."""
    counts: tuple[Counts, ...]
    """One a launch."""
    provenance: Mapping[str, Any]

    @staticmethod
    def of(program: Program, stats: Stats) -> Record:
        """From a timed run. UsageError E725 if it was not timed."""
        counts = tuple(s.counts for s in stats.launches)
        if any(c.paths is None for c in counts):
            raise UsageError(
                "E725", "a run without timing has no record", hint="run it with timing"
            )
        digest = hashlib.sha256(image.write(program)).hexdigest()
        return Record(program, counts, {**stats.provenance, "image": digest})

    # --- on disk

    def to_bytes(self) -> bytes:
        """The file."""
        bare = replace(self.program, rodata=bytes(len(self.program.rodata)))
        meta = json.dumps({"schema": SCHEMA, "provenance": dict(self.provenance)}).encode()
        paths = [c.paths for c in self.counts if c.paths is not None]
        warps = [w for p in paths for c in p.warps for w in c]
        columns = {
            "meta": np.frombuffer(meta, np.uint8),
            "image": np.frombuffer(image.write(bare), np.uint8),
            "counts": _joined([c.instructions for c in self.counts], COUNTER),
            "totals": np.array([_totals(c) for c in self.counts], np.int64).reshape(-1, 2),
            "gaps": _joined([c.gaps for c in self.counts], np.uint64),
            "reach": np.array([len(c.gaps) for c in self.counts], np.int64),
            "of_block": _joined([p.of_block for p in paths], np.uint32),
            "classes": np.array([len(p.warps) for p in paths], np.int64),
            "lengths": np.array([len(w) for w in warps], np.int64),
            "events": _joined(warps, EVENT),
        }
        file = io.BytesIO()
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]  # no keyword is an option
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the file, which appears whole or not at all."""
        files.write(path, self.to_bytes())

    @staticmethod
    def load(path: str | Path) -> Record:
        """Read a file; IsaError E524 if it is no record, or a damaged one."""
        try:
            raw = Path(path).read_bytes()
            if not zipfile.is_zipfile(io.BytesIO(raw)):  # numpy would take it for a pickle
                raise ValueError("no archive of numpy's (.npz)")
            with np.load(io.BytesIO(raw), allow_pickle=False) as file:
                columns = {name: file[name] for name in ARRAYS}
            meta = json.loads(columns["meta"].tobytes())
            if meta["schema"] != SCHEMA:
                raise ValueError(f"schema {meta['schema']!r}, expected {SCHEMA!r}")
            program = image.read(columns["image"].tobytes(), str(path))
            return Record(program, tuple(_launches(program, columns)), dict(meta["provenance"]))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
            raise IsaError("E524", f"not a record of a run: {e}", where=str(path)) from None

    # --- replay

    @cached_property
    def decoded(self) -> Decoded:
        """The kernels that ran."""
        target = self.program.target
        kernels = list(self.program.kernels.values())
        return decode(kernels, tuple(target["extensions"]), Array.of(target))

    @cached_property
    def _structure(self) -> Structure:
        return Structure.of(self.decoded, self.program.kernels)

    @cached_property
    def _facts(self) -> dict[str, KernelFacts]:
        return {name: KernelFacts.of(k, self.decoded) for name, k in self.program.kernels.items()}

    def time(self, machine: Machine, jump: bool = True) -> Stats:
        """What the run would have been on a machine: of the same program, not of what would be compiled for that machine.

        UsageError E726 for everything that the machine lacks to run it (`fit.py`).
        """
        raise_all(misfits(self.program, self.decoded, machine))
        kernels = self.program.kernels
        metering = Meter.of(machine, kernels, self.decoded, self._structure).start(jump)
        launches = tuple(
            LaunchStats(x, kernels[x.kernel], self._facts[x.kernel], c, metering.launch(x, c))
            for x, c in zip(self.program.launches, self.counts, strict=True)
        )
        return Stats(machine.name, launches, self.provenance, machine.clock_hz)


def time_record(record: Record, machine: Machine) -> Stats:
    """What a recorded run would have been on a machine."""
    return record.time(machine)


def _totals(c: Counts) -> tuple[int, int]:
    return c.dram_read, c.dram_write


def _joined(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)


def _launches(program: Program, columns: Mapping[str, NDArray[Any]]) -> Iterator[Counts]:
    """The counts of all launches; ValueError if the arrays do not fit the program."""
    for name, dtype in ARRAYS.items():
        if columns[name].dtype != np.dtype(dtype):
            raise ValueError(f"{name} holds {columns[name].dtype}")
    if any(len(columns[name]) != len(program.launches) for name in ("classes", "totals", "reach")):
        raise ValueError(f"{len(columns['classes'])} launches, expected {len(program.launches)}")
    take = {
        name: _Reader(name, columns[name])
        for name in ("counts", "gaps", "of_block", "lengths", "events")
    }
    each = (columns[name].tolist() for name in ("classes", "totals", "reach"))
    for launch, classes, (read, written), reach in zip(program.launches, *each, strict=True):
        kernel = program.kernels[launch.kernel]
        counts, of_block = (
            take["counts"](len(kernel.words) // 16),
            take["of_block"](prod(launch.grid)),
        )
        lengths = take["lengths"](classes * kernel.warps).tolist()
        warps = [take["events"](n) for n in lengths]
        if of_block.max(initial=0) >= classes or not all(sound(w, len(counts)) for w in warps):
            raise ValueError("a block of no class, or a path that does not lie in its kernel")
        paths = [tuple(warps[i : i + kernel.warps]) for i in range(0, len(warps), kernel.warps)]
        gaps = take["gaps"](reach)
        if reach > len(of_block):
            raise ValueError("blocks farther apart than the launch has")
        yield Counts(counts, read, written, gaps, Paths(tuple(paths), of_block))


def sound(events: NDArray[Any], instructions: int) -> bool:
    """Whether a warp's path stays inside the code: each event lies ahead of where the warp is, and only the last one ends it."""
    if not len(events) or events["next"][-1] != END or not events["count"].all():
        return False
    pc, to = events["pc"].astype(np.int64), events["next"].astype(np.int64)
    to = np.where((to >= WORK) & (to != END), pc + 1, to)
    ahead = pc >= np.concatenate([[0], to[:-1]])
    again = (events["count"] == 1) | (to <= pc)
    return bool(
        (pc < instructions).all() and (to[:-1] < instructions).all() and ahead.all() and again.all()
    )


class _Reader:
    """Takes an array apart, front to back."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self.name, self.array, self.at = name, array, 0

    def __call__(self, n: int) -> NDArray[Any]:
        part = self.array[self.at : self.at + n]
        if n < 0 or len(part) != n:
            raise ValueError(f"{self.name} ends early")
        self.at += n
        return part
