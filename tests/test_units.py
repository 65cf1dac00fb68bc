"""The emulator core's compiled units: files that others left, and threads that come first at once."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from knapper.runtime.fast import engine
from knapper.runtime.fast.units import Host, ObjectFile, Units


def test_files_that_need_each_other_are_not_loaded(tmp_path: Path) -> None:
    units = Units(Host.detect(), lambda name: lambda module, features, need: None)
    code = b"no object file: it must not be adopted"
    for mine in ("a", "b"):
        (tmp_path / mine).write_bytes(b"{}\n" + code)
    checksum = hashlib.sha256(code).hexdigest()
    shelf = [
        ObjectFile(tmp_path / "a", ("a",), ("b",), checksum),
        ObjectFile(tmp_path / "b", ("b",), ("a",), checksum),
    ]
    assert not units.find("a", shelf)
    assert not units.symbols


def test_all_threads_share_one_core() -> None:
    engine._process.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda _: id(engine.process()), range(64))]
    assert len({*found}) == 1
