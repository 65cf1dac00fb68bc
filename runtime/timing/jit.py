"""numba, imported when a run asks for cycles and not before, and told where to keep what it compiles.

numba looks at the file of a function to see whether its compiled form is still good, and not at the files of the functions that
it calls; so the folder's name is a hash of all of them. `KNAPPER_CACHE` moves it, as it moves the emulator core's.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.core.config
import platformdirs

config: Any = numba.core.config
njit: Any = numba.njit  # `_nrt` is in no annotation
log = logging.getLogger("knapper.runtime")
F = TypeVar("F", bound=Callable[..., Any])
SOURCES = ("jit.py", "state.py", "shares.py", "sm.py", "steady.py", "systolic.py", "banks.py")
"""The files whose functions are compiled."""


def cache_directory() -> Path:
    """Where compiled timing code lives."""
    here, digest = Path(__file__).parent, hashlib.sha256(numba.__version__.encode())
    for name in SOURCES:
        digest.update((here / name).read_bytes())
    root = os.environ.get("KNAPPER_CACHE") or platformdirs.user_cache_dir("knapper")
    return Path(root) / "timing" / digest.hexdigest()[:16]


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """numba puts the functions declared inside into `folder`; others keep their place."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        log.warning("cannot keep compiled code in %s: %s", folder, e)
        return False
    return os.access(folder, os.W_OK)


FOLDER = cache_directory()
KEEP = writable(FOLDER)


def compiled(function: F) -> F:
    """Compile on first call, run without Python's lock, keep the machine code.

    Without reference counts: the caller holds the arrays, and counting them took more than half of a simulation's time. So no array can be made.
    """
    with kept_in(FOLDER):
        made: Any = njit(nogil=True, cache=KEEP, _nrt=False)(function)
    return made  # type: ignore[no-any-return]  # it is called as the function is


def allocating(function: F) -> F:
    """As `compiled`, for functions that make arrays."""
    with kept_in(FOLDER):
        made: Any = njit(nogil=True, cache=KEEP)(function)
    return made  # type: ignore[no-any-return]  # it is called as the function is


def inlined(function: F) -> F:
    """Compile into whoever calls it: what happens at every instruction, since a call with ten arrays takes as long as the work."""
    made: Any = njit(nogil=True, forceinline=True, _nrt=False)(function)
    return made  # type: ignore[no-any-return]  # it is called as the function is


def present() -> bool:
    """Whether this machine has compiled the code before."""
    return KEEP and any(FOLDER.rglob("*.nbc"))
