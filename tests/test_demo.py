"""`knapper demo`: what ships is trained, labelled, small, and classified alike by the emulator and onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from knapper.frontends import cli, demo
from knapper.frontends.demo.pictures import picture, side_by_side
from knapper.frontends.oracle import Oracle

FILES = demo.HERE / "fashion.onnx", demo.HERE / "fashion.npz"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo of 20 images: its folder and what it prints."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        assert cli.run(["demo", "--images", "20", "--dir", str(folder)]) == 0
    return folder, "\n".join(lines)


def test_what_ships_is_small() -> None:
    sizes = [f.stat().st_size for f in FILES]
    assert sizes[0] < 150_000
    assert sizes[1] < 200_000


def test_the_network_is_a_residual_cnn() -> None:
    kinds = {n.op_type for n in onnx.load(FILES[0]).graph.node}
    assert kinds >= {
        "Conv",
        "BatchNormalization",
        "Relu",
        "MaxPool",
        "Add",
        "GlobalAveragePool",
        "Gemm",
    }


def test_the_images_are_ten_of_each_class() -> None:
    data = np.load(FILES[1])
    assert data["images"].shape == (100, 28, 28)
    assert np.bincount(data["labels"]).tolist() == [10] * 10
    assert len(demo.CLASSES) == 10


def test_the_network_is_trained() -> None:
    data = np.load(FILES[1])
    oracle = Oracle(FILES[0])
    guesses = [oracle.run({"image": demo.batch(i)})["scores"].argmax() for i in data["images"]]
    assert (np.array(guesses) == data["labels"]).mean() >= 0.85


def test_the_emulator_classifies_as_onnxruntime_does(shown: tuple[Path, str]) -> None:
    rows = dict(line.rsplit("  ", 1) for line in shown[1].splitlines() if line.endswith("of 20"))
    counts = {k.strip(): int(v.split()[0]) for k, v in rows.items()}
    assert counts["right, on the emulator"] == counts["right, in onnxruntime"] >= 17
    assert counts["both say the same"] == 20


def test_the_demo_shows_instructions_and_where_its_files_are(shown: tuple[Path, str]) -> None:
    folder, text = shown
    for word in ("executed MACs", "HMMA.161616.F32", "model.elf", "knapper inspect", str(folder)):
        assert word in text
    assert {"model.onnx", "model.elf", "prog.s", "stats.json", "images.npz"} <= {
        p.name for p in folder.iterdir()
    }
    assert json.loads((folder / "stats.json").read_text())["macs"] == 1_919_552


def test_pictures_are_grey_half_blocks_or_characters() -> None:
    pixels = np.array([[0, 255, 128], [0, 255, 128]], np.uint8)
    assert picture(pixels, colours=False) == [" @+"]
    (line,) = picture(pixels, colours=True)
    assert line.count("▀") == 3
    assert line.endswith("\x1b[0m")
    assert side_by_side([["ab", "c"], ["de", "f"]], 3) == "ab   de\nc    f"
