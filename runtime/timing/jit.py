"""numba, imported when a run asks for cycles and not before, and told where to keep what it compiles.

numba looks at the file of a function to see whether its compiled form is still good, and not at the files of the functions that
it calls; so the folder's name is a hash of all of them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.core.config

from knapper.isa import caches

config: Any = numba.core.config
njit: Any = numba.njit  # `_nrt` is in no annotation
F = TypeVar("F", bound=Callable[..., Any])
SOURCES = ("jit.py", "state.py", "shares.py", "sm.py", "steady.py", "systolic.py", "banks.py")
"""The files whose functions are compiled."""


def cache_directory() -> Path:
    """Where compiled timing code lives."""
    here, digest = Path(__file__).parent, hashlib.sha256(numba.__version__.encode())
    for name in SOURCES:
        digest.update((here / name).read_bytes())
    return _usable(caches.folder("timing") / digest.hexdigest()[:16])


def _usable(folder: Path) -> Path:
    """The folder, or where it cannot be written a copy of it: numba reads none in which it cannot write."""
    if not folder.is_dir() or caches.writable(folder):
        return folder
    copy = caches.temporary() / "timing" / folder.name
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    return copy


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """numba puts the functions declared inside into `folder`; others keep their place."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


FOLDER = cache_directory()
KEEP = caches.writable(FOLDER)
for _file in FOLDER.rglob("*.nb?"):
    caches.used(_file)


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
