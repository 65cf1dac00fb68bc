"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from knapper.isa.errors import UsageError


def write(path: str | Path, content: bytes | str) -> None:
    """Write a file next to its place and move it there; UsageError E705 if that cannot be done."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # /dev/stdout, a pipe: nothing to move over
            return
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
            temporary = Path(f.name)
            try:
                f.write(data)
                f.close()
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as e:
        raise UsageError("E705", f"cannot write: {e.strerror}", where=str(path)) from None


def read(path: str | Path) -> bytes:
    """A file's bytes; UsageError E705 if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise UsageError("E705", f"cannot read: {e.strerror}", where=str(path)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
