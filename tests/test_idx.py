"""MNIST's files: a folder of them is samples and labels, and what is none is said."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from knapper.compiler.ir import Type
from knapper.frontends.dataset import Choice, open_data
from knapper.isa.errors import UsageError

INPUTS = {"x": Type("f32", (1, 1, 4, 3))}


def written(x: np.ndarray) -> bytes:
    return bytes((0, 0, 8, x.ndim)) + np.array(x.shape, ">u4").tobytes() + x.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, count in (("train", 9), ("t10k", 5)):
        images = rng.integers(0, 256, (count, 4, 3)).astype(np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        packed = gzip.compress(written(images))
        tmp_path.joinpath(f"{name}-images-idx3-ubyte.gz").write_bytes(packed)
        tmp_path.joinpath(f"{name}-labels-idx1-ubyte").write_bytes(written(labels))
    return tmp_path


def test_a_folder_has_samples_of_both_splits(folder: Path) -> None:
    test, train = (open_data(folder, INPUTS, Choice(split=s)) for s in ("test", "train"))  # type: ignore[arg-type]
    assert (len(test), len(train)) == (5, 9)
    assert test.labels is not None
    assert test.labels.tolist() == [0, 1, 2, 3, 4]
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 3))
    assert (train.take([2, 7])["x"] == images[[2, 7]]).all()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0d\x01\0\0\0\0",
        b"\0\0\x08\x03\0\0\0\x05",
        written(np.zeros((5, 2), np.uint8))[:-1],
        gzip.compress(b"\0\0\x08\x00"),
    ],
)
def test_what_is_no_idx(folder: Path, content: bytes) -> None:
    folder.joinpath("t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(UsageError, match="no IDX file") as found:
        open_data(folder, INPUTS)
    assert found.value.code == "E730"


def test_what_is_no_gzip(folder: Path) -> None:
    folder.joinpath("t10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b\x08 not all")
    with pytest.raises(UsageError, match="no gzip"):
        open_data(folder, INPUTS)
