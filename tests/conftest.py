"""Golden tests (`tests/ir/*.ir`), hypothesis profiles, where models and data are, and a folder to try commands in.

A golden file says its passes, a graph, and the graph that must come out, or the error:

    // passes: fold,dead
    // Why this must be so.
    graph @g(%x: f32[2]) { … }
    // ---- becomes                      or: // ---- fails
    graph @g(%x: f32[2]) { … }           or: E102: %0: …

`pytest --bless` rewrites the lower half with what came out.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings
from shop import Knapper, small_model

import knapper
from knapper.compiler import pipeline, text
from knapper.compiler.ir import Graph
from knapper.compiler.tvm import client
from knapper.frontends import cli
from knapper.isa.errors import KnapperError

SEPARATOR = re.compile(r"^// ---- (becomes|fails)\n", re.MULTILINE)
HERE = Path(__file__).parent

# these check for tests, whose failures are to show values
pytest.register_assert_rewrite("matrix_cases", "onnx_models", "systolic_programs", "timing_cases")

settings.register_profile("dev", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("KNAPPER_PROFILE", "ci" if "CI" in os.environ else "dev"))


def pytest_configure() -> None:
    """Ctrl-C is heard, here and in what tests start, also where a shell ran the tests in the background with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="accept what golden tests now give")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix == ".ir" and file_path.parent == HERE / "ir":
        return GoldenFile.from_parent(parent, path=file_path)
    return None


class GoldenFile(pytest.File):
    """One file, one test."""

    def collect(self) -> Iterator[pytest.Item]:
        yield GoldenTest.from_parent(self, name=self.path.stem)


class GoldenTest(pytest.Item):
    """Runs a file's passes over its graph and compares the text that comes out."""

    def runtest(self) -> None:
        before, kind, after = SEPARATOR.split(self.path.read_text())
        got_kind, got = _outcome(before, self.path.name)
        if self.config.getoption("--bless"):
            self.path.write_text(f"{before}// ---- {got_kind}\n{got}")
        else:
            assert (got_kind, got) == (kind, after), f"{self.path}: `pytest --bless` accepts this"

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"golden: {self.name}"


def _outcome(before: str, where: str) -> tuple[str, str]:
    passes = before.partition("\n")[0].removeprefix("// passes:").strip()
    try:
        return "becomes", text.show(pipeline.run(text.parse(before, where), pipeline.parse(passes)))
    except KnapperError as e:
        return "fails", "\n".join([str(e), *getattr(e, "__notes__", [])]) + "\n"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with models and data; skips where it is not there."""
    folder = Path(os.environ.get("KNAPPER_DATA", HERE.parent.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no models and data at {folder} (set KNAPPER_DATA)")
    return folder


@pytest.fixture(scope="session")
def read_onnx(data: Path) -> Callable[[str], Graph]:
    """Reads `name.onnx` from the data folder's models, or from a `models` folder beside it."""

    def read(name: str) -> Graph:
        from knapper.frontends import onnx

        places = [data / "models" / name, data.parent / "models" / name]
        found = next((p for p in places if p.is_file()), None)
        if found is None:
            pytest.skip(f"no {name} (make_models.py writes it)")
        return onnx.read(found)

    return read


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.onnx and, compiled from it, small.elf."""
    folder = tmp_path_factory.mktemp("shop")
    onnx.save(small_model(), folder / "small.onnx")
    image = knapper.compile(folder / "small.onnx", shapes={"image": (1, 3, 8, 8)})
    image.save(folder / "small.elf")
    np.savez(folder / "in.npz", image=np.ones((1, 3, 8, 8), np.float32), token=np.array([2]))
    return folder


@pytest.fixture
def run(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Knapper:
    """`knapper …` in an empty folder, as (exit code, stdout, stderr); SHOP/ stands for the shop."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        argv = [w.replace("SHOP", str(shop)) for w in words]
        try:
            code = cli.run(argv)
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache of kernels for this file, and one worker."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNAPPER_CACHE", str(folder))
        yield folder
    client.stop()
