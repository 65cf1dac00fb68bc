"""Kernels on disk: what was lowered once, on this machine description and by these sources, is not lowered again.

An entry is one text file, `<key>.json`: a checksum line, then JSON with the kernels' words. Writing goes through a temporary name
and a rename, so readers and writers in several processes need no lock; whatever cannot be read is a miss. Nothing is executed
or unpickled. `isa.caches` says where the folder is, and how large it may become.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from knapper.isa import caches, core
from knapper.isa.program import Kernel

from .codegen.generator import Emitted, Lowered
from .ir import DTYPES, Array, Type
from .sources import digest, versions

SOURCES = ("*.py", "*.toml")
PACKAGES = ("apache-tvm",)
"""Distributions whose version decides what kernels look like."""


def folder() -> Path:
    """Where kernels are kept."""
    return caches.folder("kernels")


@dataclass(frozen=True)
class KernelCache:
    """A folder of lowered groups. `extra` are source files, such as plugins, that decide about kernels beside knapper's own."""

    folder: Path
    extra: tuple[Path, ...] = ()

    def key(self, *parts: str) -> str:
        """The name of an entry: a hash of the parts and of every source that had a say."""
        h = hashlib.blake2b(_sources().encode(), digest_size=20)
        for part in (*parts, digest(self.extra)):
            h.update(f"{len(part)}:{part}".encode())
        return h.hexdigest()

    def get(self, key: str) -> Lowered | None:
        """The entry; None if there is none that is whole."""
        path = self._path(key)
        try:
            checksum, _, body = path.read_text().partition("\n")
        except (OSError, UnicodeDecodeError):
            return None
        caches.used(path)
        return _read(json.loads(body)) if checksum == _checksum(body) else None

    def put(self, key: str, lowered: Lowered) -> None:
        """Keep an entry. A folder that cannot be written is no error: the next compile lowers again."""
        body = json.dumps(_written(lowered))
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=path.parent, suffix=".tmp", delete=False
            ) as f:
                f.write(f"{_checksum(body)}\n{body}")
            Path(f.name).replace(path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()


@cache
def _sources() -> str:
    """The compiler's and the ISA's sources, and the packages that they stand on."""
    tops = (Path(__file__).parent, Path(core.__file__).parent)
    found = (digest(f for pattern in SOURCES for f in top.rglob(pattern)) for top in tops)
    return ",".join((*found, versions(PACKAGES)))


# --- JSON ---------------------------------------------------------------------------------------------------------------


def _written(lowered: Lowered) -> dict[str, Any]:
    return {
        "launches": [asdict(e) | {"kernel": _kernel_out(e.kernel)} for e in lowered.launches],
        "constants": {name: _array_out(a) for name, a in lowered.constants.items()},
        "scratch": lowered.scratch,
    }


def _read(d: dict[str, Any]) -> Lowered:
    return Lowered(
        tuple(_launch_in(e) for e in d["launches"]),
        {name: _array_in(a) for name, a in d["constants"].items()},
        d["scratch"],
    )


def _launch_in(d: dict[str, Any]) -> Emitted:
    grid = (d["grid"][0], d["grid"][1], d["grid"][2])
    return Emitted(
        _kernel_in(d["kernel"]), grid, tuple(d["params"]), d["uses"], tuple(d["nodes"]), d["macs"]
    )


def _kernel_out(k: Kernel) -> dict[str, Any]:
    return asdict(k) | {"words": base64.b64encode(k.words).decode()}


def _kernel_in(d: dict[str, Any]) -> Kernel:
    tuples = {"roles": tuple(d["roles"]), "block": tuple(d["block"])}
    return Kernel(**d | tuples | {"words": base64.b64decode(d["words"])})


def _array_out(a: Array) -> dict[str, Any]:
    t = Type.of(a)
    return {"dtype": t.dtype, "shape": t.shape, "data": base64.b64encode(a.tobytes()).decode()}


def _array_in(d: dict[str, Any]) -> Array:
    return np.frombuffer(base64.b64decode(d["data"]), DTYPES[d["dtype"]]).reshape(d["shape"])
