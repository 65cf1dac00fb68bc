"""Caches on disk do not grow for ever: what was used least recently goes when a folder is larger than it may be.

An entry is used when it is read or written; its modification time says when. Several processes may trim one folder at once: each
removes whole files, a file that is gone already is as good as removed, and a reader to whom one is lost takes it for a miss.
Looking through a folder of many thousand files takes a second, so `tidy` does it once an hour.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from knapper.isa.errors import UsageError

MEBIBYTES = 512
"""What a folder may hold, unless `$KNAPPER_CACHE_MB` says another size: some hundred networks."""
ROOM = 0.75
"""The share of it that is left when a folder was trimmed, so that not every compile trims."""


EVERY = 3600
"""Seconds."""


def limit() -> int:
    """Bytes that a folder may hold; UsageError E704 if the environment says no number."""
    text = os.environ.get("KNAPPER_CACHE_MB") or str(MEBIBYTES)
    if not text.isdecimal():
        raise UsageError("E704", f"$KNAPPER_CACHE_MB is {text!r}: expected a number of mebibytes")
    return int(text) << 20


def used(path: Path) -> None:
    """Note that an entry was read."""
    with contextlib.suppress(OSError):
        os.utime(path)


def tidy(folder: Path, most: int) -> None:
    """Trim a folder, if nobody did within the hour."""
    stamp = folder / ".trimmed"
    with contextlib.suppress(OSError):
        if not stamp.exists() or time.time() - stamp.stat().st_mtime > EVERY:
            folder.mkdir(parents=True, exist_ok=True)
            stamp.touch()
            trim(folder, most)


def trim(folder: Path, most: int) -> int:
    """Remove the files used least recently if a folder holds more than `most` bytes; gives how many went."""
    files = sorted(_files(folder), reverse=True)
    if sum(size for _, size, _ in files) <= most:
        return 0
    kept = removed = 0
    for _, size, path in files:
        kept += size
        if kept > most * ROOM:
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of every file; those that go meanwhile are left out."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
    return found
