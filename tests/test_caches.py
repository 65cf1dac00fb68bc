"""What is kept on disk: who fills it at once, who empties it meanwhile, where it goes if it cannot be at its place."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from shop import ROOT, Knapper, outputs

from knapper.isa import caches
from knapper.runtime.fast import engine

COMMAND = (sys.executable, "-m", "knapper")


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("KNAPPER")}
    return {**kept, "PYTHONPATH": str(ROOT / ".ns"), **more}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KNAPPER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- the command --------------------------------------------------------------------------------------------------------


def test_info_counts_what_is_there(run: Knapper, cache: Path) -> None:
    code, out, _ = run("cache", "info")
    assert code == 0
    assert out.startswith(f"{cache} ($KNAPPER_CACHE)\neach up to 512.0 MiB")
    entries(cache / "timing", 3)
    found = json.loads(run("cache", "info", "--json")[1])
    assert (found["folder"], found["limit"]) == (str(cache), 512 << 20)
    assert {c["cache"]: c["bytes"] for c in found["caches"]} == {
        "kernels": 0, "tir": 0, "machine-code": 0, "timing": 300,
    }  # fmt: skip


def test_clear_removes_what_is_named_and_what_an_interrupted_one_left(
    run: Knapper, cache: Path
) -> None:
    for kind in caches.KINDS:
        entries(cache / kind, 2)
    entries(cache / f"{caches.GONE}abc", 1)
    assert run("cache", "clear", "tir", "timing")[1] == f"{cache}: 4 files removed, 400 B\n"
    assert sorted(p.name for p in cache.iterdir()) == ["kernels", "machine-code"]
    assert run("cache", "clear", "-q")[0] == 0
    assert not [*cache.iterdir()]
    code, _, err = run("cache", "clear", "kernel")
    assert (code, err.startswith("error E704: there is no cache 'kernel' (hint: ")) == (2, True)


def test_what_is_warm_is_compiled_no_more(
    run: Knapper, cache: Path, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("knapper.frontends.warm.timing_core", lambda: None)  # that takes too long
    engine._process.cache_clear()
    image = str(shop / "small.elf")
    first = json.loads(run("cache", "warm", image, "-t", "ampere", "--json")[1])
    assert first["parts"] > 20
    words = (*COMMAND, "run", image, "--input", "random:0", "--no-timing", "-v")
    done = subprocess.run(
        words, env=environment(KNAPPER_CACHE=str(cache)), capture_output=True, text=True, check=True
    )
    assert "emulator core" not in done.stderr


# --- many at once -------------------------------------------------------------------------------------------------------


def test_processes_that_start_cold_while_another_clears_all_get_it_right(
    tmp_path: Path, shop: Path, cache: Path
) -> None:
    words = (*COMMAND, "run", str(shop / "small.elf"), "--input", "random:0", "--no-timing", "-q")
    env = environment(KNAPPER_CACHE=str(cache))
    started = [
        subprocess.Popen(
            [*words, "-o", f"{n}.npz"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for n in range(3)
    ]  # fmt: skip
    while any(p.poll() is None for p in started):
        for kind in caches.KINDS:
            caches.clear(kind)
        time.sleep(0.1)
    assert [(p.communicate()[0], p.returncode) for p in started] == [(b"", 0)] * 3
    first, *rest = (outputs(tmp_path / f"{n}.npz") for n in range(3))
    for other in rest:
        assert {n: a.tobytes() for n, a in other.items()} == {
            n: a.tobytes() for n, a in first.items()
        }
    assert not [*cache.rglob(f"{caches.GONE}*")]


# --- where --------------------------------------------------------------------------------------------------------------


def test_a_home_that_cannot_be_written_is_said_once_and_a_temporary_folder_taken(
    tmp_path: Path, shop: Path
) -> None:
    (tmp_path / "home").touch()  # not a folder: root may write to any of those
    (tmp_path / "tmp").mkdir()
    env = environment(XDG_CACHE_HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path / "tmp"))
    words = (*COMMAND, "run", str(shop / "small.elf"), "--input", "random:0", "--no-timing")
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    (said,) = (line for line in done.stderr.splitlines() if "emulator core" not in line)
    place = tmp_path / "tmp" / f"knapper-{os.getuid()}"
    assert said.startswith(f"{tmp_path / 'home' / 'knapper'} cannot be written: what is compiled ")
    assert str(place) in said
    assert "KNAPPER_CACHE" in said
    assert [*place.rglob("*.units")]
    chosen = {**env, "KNAPPER_CACHE": str(tmp_path / "mine")}
    done = subprocess.run(words, env=chosen, capture_output=True, text=True, check=True)
    assert "cannot be written" not in done.stderr
    assert [*(tmp_path / "mine").rglob("*.units")]


@pytest.mark.parametrize("trap", ["others may write", "a link"])
def test_a_temporary_folder_of_somebody_else_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = tmp_path / f"knapper-{os.getuid()}"
    if trap == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
        place.chmod(0o777)
    assert caches.temporary() not in (place, tmp_path / "elsewhere")


def test_without_any_place_nothing_is_kept_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Path:
        raise FileNotFoundError

    (tmp_path / "file").touch()
    monkeypatch.setattr(caches, "temporary", none)
    with caplog.at_level(logging.WARNING, "knapper"):
        for _ in range(2):
            assert caches._usual(tmp_path / "file" / "knapper") == tmp_path / "file" / "knapper"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("nothing compiled can be kept")


# --- how large ----------------------------------------------------------------------------------------------------------


def entries(folder: Path, count: int) -> list[Path]:
    """Files of 100 bytes, in order of their last use."""
    folder.mkdir(parents=True)
    made = [folder / f"{n}.json" for n in range(count)]
    for n, f in enumerate(made):
        f.write_bytes(bytes(100))
        os.utime(f, (n, n))
    return made


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    made = entries(tmp_path / "cache", 10)
    assert caches.trim(tmp_path / "cache", 1000) == 0
    caches.used(made[0])
    assert caches.trim(tmp_path / "cache", 999) == 3
    assert sorted(tmp_path.rglob("*.json")) == sorted([made[0], *made[4:]])


def test_processes_that_trim_one_folder_do_not_mind_each_other(tmp_path: Path) -> None:
    made = entries(tmp_path / "cache", 400)
    with ThreadPoolExecutor(4) as pool:
        removed = sum(pool.map(lambda _: caches.trim(tmp_path / "cache", 10_000), range(8)))
    left = [f for f in made if f.exists()]
    assert removed == len(made) - len(left)
    assert left == made[-75:]


def test_the_emulator_core_is_trimmed_like_the_rest(tmp_path: Path, shop: Path) -> None:
    old = entries(tmp_path / "machine-code", 3)
    env = environment(KNAPPER_CACHE=str(tmp_path), KNAPPER_CACHE_MB="0")
    words = (*COMMAND, "run", str(shop / "small.elf"), "--input", "random:0", "--no-timing", "-q")
    subprocess.run(words, env=env, check=True)
    assert not any(f.exists() for f in old)
