"""cache: what was compiled once and is kept, looked at, made ahead, and removed.

knapper cache info                       where it is, and how much there is of what
knapper cache warm -t sma3 model.elf     in the recipe of a container, say: no later run compiles a core
knapper cache clear kernels tir
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence

from knapper.isa import caches
from knapper.isa.caches import KINDS, Usage
from knapper.isa.errors import UsageError

from ..progress import Progress
from ..tables import Table, plural, show, size
from .options import TARGET

log = logging.getLogger("knapper")
HEAD = ("cache", "holds", "files", "size", "oldest use")
ALL = "all"


def cache(a: argparse.Namespace) -> None:
    """`knapper cache`."""
    what = {"info": info, "warm": warm, "clear": clear}[a.what]
    if a.names and a.what == "info":
        raise UsageError("E704", f"{a.names[0]} does not apply: info shows all caches")
    if a.target and a.what != "warm":
        raise UsageError("E704", "--target does not apply: only warm compiles")
    what(a)


def info(a: argparse.Namespace) -> None:
    """Where caches are, and what they hold."""
    held, most = [caches.usage(kind) for kind in KINDS], caches.limit()
    first = f"{caches.root()} ({_why()})\neach up to {size(most)}, least recently used out first\n"
    raw = [(u.kind, KINDS[u.kind], u.files, u.bytes, _day(u)) for u in held]
    shown = [(*r[:3], size(u.bytes), r[4]) for r, u in zip(raw, held, strict=True)]
    show(
        a,
        lambda: {"folder": str(caches.root()), "limit": most, "caches": _facts(held)},
        [Table(raw, HEAD)],
        lambda: f"{first}\n{Table(shown, HEAD).text()}",
    )


def warm(a: argparse.Namespace) -> None:
    """Compile ahead."""
    from knapper.isa.machine import known

    from ..warm import Warming

    targets = sorted(known()) if ALL in a.target else a.target or [TARGET]
    warming, started = Warming(targets, a.names), time.perf_counter()
    with Progress("compiling", quiet=a.quiet > 0) as progress:
        warming.run(progress)
    seconds = time.perf_counter() - started
    show(
        a,
        lambda: {"folder": str(caches.root()), "parts": warming.parts, "seconds": seconds},
        [Table([("emulator core", warming.parts)], ("cache", "parts compiled"))],
        lambda: (
            f"{caches.root()}: the timing core is there, {_compiled(warming.parts)} the emulator core; {seconds:.1f} s"
        ),
    )


def clear(a: argparse.Namespace) -> None:
    """Remove all caches, or those that are named."""
    for name in a.names:
        if name not in KINDS:
            raise UsageError(
                "E704", f"there is no cache {name!r}", hint=f"known: {', '.join(KINDS)}"
            )
    gone = [caches.clear(kind) for kind in KINDS if not a.names or kind in a.names]
    files, bytes = sum(u.files for u in gone), sum(u.bytes for u in gone)
    show(
        a,
        lambda: {"folder": str(caches.root()), "removed": _facts(gone)},
        [Table([(u.kind, u.files, u.bytes) for u in gone], ("cache", "files", "bytes"))],
        lambda: f"{caches.root()}: {plural(files, 'file')} removed, {size(bytes)}",
    )


def _compiled(parts: int) -> str:
    return f"{plural(parts, 'part')} were compiled of" if parts else "nothing was missing of"


def _facts(held: Sequence[Usage]) -> list[dict[str, object]]:
    return [{"cache": u.kind, "files": u.files, "bytes": u.bytes, "oldest": u.oldest} for u in held]


def _day(u: Usage) -> str | None:
    return None if u.oldest is None else time.strftime("%Y-%m-%d", time.localtime(u.oldest))


def _why() -> str:
    """Why caches are where they are."""
    if os.environ.get("KNAPPER_CACHE"):
        return "$KNAPPER_CACHE"
    return "a temporary folder" if caches.fell_back() else "the user's cache folder"
