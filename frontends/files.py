"""Files as the command line reads and writes them: what the system says against it is an error of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knapper.isa import files
from knapper.isa.errors import UsageError


def write(path: str | Path, content: bytes | str | files.Writer) -> None:
    """Write a file next to its place and move it there; UsageError E705 if that cannot be done."""
    data = content.encode() if isinstance(content, str) else content
    with told(path):
        files.write(path, data)


def check_place(path: str | Path) -> None:
    """UsageError E705 if a file cannot be at a path for want of a folder: said before long work, not after it."""
    with told(path):
        os.stat(os.path.join(Path(path).parent, ""))


def make_folder(path: str | Path) -> Path:
    """A folder for many files, made if only it itself is missing; UsageError E705 if that cannot be done."""
    with told(path):
        Path(path).mkdir(exist_ok=True)
    return Path(path)


@contextmanager
def told(path: str | Path) -> Iterator[None]:
    """What the system says against writing a file, as UsageError E705."""
    try:
        yield
    except OSError as e:
        missing = isinstance(e, FileNotFoundError)
        hint = f"make the folder {Path(path).parent} first" if missing else ""
        problem = f"cannot write: {e.strerror}"
        raise UsageError("E705", problem, where=str(path), hint=hint) from None


read, mapped = files.read, files.mapped
