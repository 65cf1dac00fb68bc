"""Files that appear whole or not at all, with the permissions that the user's umask gives; and one error for those that cannot be read."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from .errors import UsageError

MANY = 1 << 20
"""Bytes from which on a file is mapped."""
Writer = Callable[[IO[bytes]], object]
"""Writes a file's content."""


def write(path: str | Path, content: bytes | Writer) -> None:
    """Write a file beside its place, then move it there. OSError if that cannot be done; then nothing has changed."""
    path = Path(path)
    put: Writer = content if callable(content) else lambda f: f.write(content)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:  # /dev/stdout, a pipe: nothing to move over
            put(file)
        return
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as made:
        temporary = Path(made.name)
        try:
            put(made.file)
            made.close()
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:  # an interrupt leaves nothing behind either; it goes on
            temporary.unlink(missing_ok=True)
            raise


def read(path: str | Path) -> bytes:
    """A file's bytes; UsageError E705 if the system does not give them."""
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise unreadable(path, e) from None


def mapped(path: str | Path) -> bytes | memoryview:
    """A file's bytes, which stay in the file if they are many; UsageError E705 if the system does not give them.

    Whoever writes a file with `write` leaves the old one to those who have it mapped.
    """
    try:
        with Path(path).open("rb") as f:
            if Path(path).is_file() and os.fstat(f.fileno()).st_size >= MANY:
                return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
            return f.read()
    except OSError as e:
        raise unreadable(path, e) from None


def unreadable(path: str | Path, why: OSError) -> UsageError:
    """What to say of a file that the system does not give: whoever named it can name another."""
    return UsageError("E705", f"cannot read: {why.strerror or why}", where=str(path))


def refuse_stranger(path: str | Path, ours: Callable[[IO[bytes]], bool]) -> None:
    """UsageError E709 if there is a file that `ours` does not know: nobody asked for it to be written over."""
    path = Path(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        if not path.is_file() or not ours(file):
            hint = "move it away, or give the output another name"
            raise UsageError("E709", "is not knapper's to write over", where=str(path), hint=hint)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
