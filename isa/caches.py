"""Caches on disk: where they are, how large they may become, and how they go. Compiler and emulator keep theirs side by side.

    $KNAPPER_CACHE, or knapper in the user's cache folder
      kernels/       of groups of nodes, a file each              compiler/cache.py
      tir/           TVM's lowering of groups, a file each        compiler/tvm/cache.py
      machine-code/  the emulator core: units, some a file        runtime/fast/units.py
      timing/        the timing core: a folder a version          runtime/timing/jit.py

Any number of processes use them at once, without locks. Writing goes through a temporary name and a rename; an entry that is
gone, cut short or another's is a miss. So entries may go at any time: what was used least recently does when a cache is larger than
it may be, and `clear` takes a whole cache out of the way with one rename.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import platformdirs

from .errors import UsageError

log = logging.getLogger("knapper")
KINDS = {
    "kernels": "compiled kernels, by group of nodes",
    "tir": "what TVM lowered, by group of nodes",
    "machine-code": "the emulator core",
    "timing": "the timing core",
}
MEBIBYTES = 512
"""What a cache may hold, unless `$KNAPPER_CACHE_MB` says another size: some hundred networks."""
ROOM = 0.75
"""The share of it that is left when a cache was trimmed, so that not every compile trims."""
EVERY = 3600
"""Seconds between two looks at what a cache holds: with many thousand files that takes a second."""
STAMP, GONE = ".trimmed", ".cleared-"
"""A file that says when a cache was looked at; how folders are called that are about to go."""


# --- where --------------------------------------------------------------------------------------------------------------


def folder(kind: str) -> Path:
    """Where a cache is, or will be."""
    return root() / kind


def root() -> Path:
    """`$KNAPPER_CACHE`; else the user's cache folder; else, if nothing can be written there, a temporary one, which is said once."""
    chosen = os.environ.get("KNAPPER_CACHE")
    return Path(chosen) if chosen else _usual(Path(platformdirs.user_cache_dir("knapper")))


def fell_back() -> bool:
    """Whether caches are in a temporary folder."""
    usual = Path(platformdirs.user_cache_dir("knapper"))
    return not os.environ.get("KNAPPER_CACHE") and root() != usual


@cache
def _usual(place: Path) -> Path:
    if writable(place):
        return place
    hint = "KNAPPER_CACHE=FOLDER names another"
    try:
        other = temporary()
    except OSError:
        log.warning("nothing compiled can be kept: %s cannot be written (%s)", place, hint)
        return place
    log.warning("%s cannot be written: what is compiled is kept in %s (%s)", place, other, hint)
    return other


def writable(place: Path) -> bool:
    """Whether files can be made in a folder, which is made if need be."""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK | os.X_OK)


def temporary() -> Path:
    """A folder for what cannot be kept elsewhere. It holds machine code, so a folder that others can write to is not taken."""
    user = os.getuid()
    place = Path(tempfile.gettempdir()) / f"knapper-{user}"
    place.mkdir(mode=0o700, exist_ok=True)
    about = place.lstat()
    ours = stat.S_ISDIR(about.st_mode) and about.st_uid == user and not about.st_mode & 0o022
    return place if ours else Path(tempfile.mkdtemp(prefix="knapper-"))


# --- how large ----------------------------------------------------------------------------------------------------------


def limit() -> int:
    """Bytes that a cache may hold; UsageError E704 if the environment says no number."""
    text = os.environ.get("KNAPPER_CACHE_MB") or str(MEBIBYTES)
    if not text.isdecimal():
        raise UsageError("E704", f"$KNAPPER_CACHE_MB is {text!r}: expected a number of mebibytes")
    return int(text) << 20


def used(path: Path) -> None:
    """Note that an entry was read."""
    with contextlib.suppress(OSError):
        os.utime(path)


def tidy(place: Path, most: int) -> None:
    """Trim a cache, if nobody did within the hour."""
    stamp = place / STAMP
    with contextlib.suppress(OSError):
        if not stamp.exists() or time.time() - stamp.stat().st_mtime > EVERY:
            place.mkdir(parents=True, exist_ok=True)
            stamp.touch()
            trim(place, most)


def trim(place: Path, most: int) -> int:
    """Remove the files used least recently if a cache holds more than `most` bytes; gives how many went.

    Several processes may do so at once: a file that is gone already is as good as removed.
    """
    files = sorted(_files(place), reverse=True)
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


def _files(place: Path) -> Iterator[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of every file; those that go meanwhile are left out."""
    for path in place.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and path.name != STAMP:
                about = path.stat()
                yield about.st_mtime, about.st_size, path


# --- what there is, and how it goes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """What a cache holds."""

    kind: str
    files: int
    bytes: int
    oldest: float | None
    """When the file was last used that was used least recently, in seconds since 1970; None of an empty cache."""


def usage(kind: str) -> Usage:
    """Look through a cache."""
    files = [*_files(folder(kind))]
    oldest = min((when for when, _, _ in files), default=None)
    return Usage(kind, len(files), sum(size for _, size, _ in files), oldest)


def clear(kind: str) -> Usage:
    """Empty a cache; gives what it held.

    Nobody sees half of it: it gets another name first. Who has a file open goes on reading; who looks for one finds none, and makes it again.
    """
    held, place = usage(kind), folder(kind)
    if place.is_dir():
        aside = Path(tempfile.mkdtemp(prefix=GONE, dir=place.parent))
        place.rename(aside / kind)
    for old in place.parent.glob(f"{GONE}*"):  # also of those who were interrupted
        shutil.rmtree(old, ignore_errors=True)
    return held
