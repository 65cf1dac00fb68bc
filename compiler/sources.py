"""What decides about something in a cache: source files, by their place and content, and versions of distributions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def digest(files: Iterable[Path]) -> str:
    """A hash of files: their paths below the folder that they share, and their bytes; "" of none. The order does not matter."""
    found = sorted({*files})
    if not found:
        return ""
    h = hashlib.blake2b(digest_size=20)
    top = os.path.commonpath([f.parent for f in found])
    for f in found:
        for part in (f.relative_to(top).as_posix().encode(), f.read_bytes()):
            h.update(b"%d:" % len(part) + part)
    return h.hexdigest()


def versions(distributions: Iterable[str]) -> str:
    """Installed versions, as `name=version` each; nothing after the sign for what is not installed."""
    return ",".join(f"{d}={_version(d)}" for d in distributions)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
