"""TIR on disk, by structure: the same group of any network is lowered by TVM once.

An entry is `<key>.z`: a zlib stream of JSON, which checks itself. Writing goes through a temporary name and a rename; whatever cannot
be read is a miss and is written anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import zlib
from functools import cache
from pathlib import Path

from knapper.isa import caches

from ..sources import digest, versions
from .tir import Json

SOURCES = ("tvm/**/*.py", "ops/**/*.py", "ir.py")
"""What decides about the TIR of a group, beside TVM itself; relative to `compiler/`."""


def folder() -> Path:
    """Where TIR is kept."""
    return caches.folder("tir")


def key(*parts: str) -> str:
    """The name of an entry: a hash of what makes it."""
    h = hashlib.blake2b(_origin().encode(), digest_size=20)
    for part in parts:
        h.update(f"{len(part)}:{part}".encode())
    return h.hexdigest()


def get(name: str) -> Json | None:
    """The entry; None if there is none that is whole."""
    caches.used(_path(name))
    try:
        return json.loads(zlib.decompress(_path(name).read_bytes()))
    except (OSError, zlib.error, ValueError):
        return None


def put(name: str, value: Json) -> None:
    """Keep an entry. A folder that cannot be written is no error: the next compile asks TVM again."""
    path = _path(name)
    body = zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 3)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as f:
            f.write(body)
        Path(f.name).replace(path)


def _path(name: str) -> Path:
    return folder() / name[:2] / f"{name}.z"


@cache
def _origin() -> str:
    """The sources, and the version of TVM, which is not imported for it."""
    top = Path(__file__).parent.parent
    return digest(f for pattern in SOURCES for f in top.glob(pattern)) + versions(["apache-tvm"])
