"""Fashion-MNIST: 60,000 training and 10,000 test images of 28x28 in ten classes, from the Debian package `dataset-fashion-mnist`."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..train_demo import PIXEL_MEAN, PIXEL_STD, idx

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("usr/share/datasets/fashion-mnist")
"""Where the package has its files, from the root."""


class DataError(Exception):
    """The images are not there and cannot be fetched."""


@dataclass(frozen=True)
class Images:
    """What is shown to the network, and what it should say."""

    pixels: NDArray[np.uint8]
    """[n, 28, 28]"""
    labels: NDArray[np.uint8]
    """[n]"""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, some: slice | NDArray[np.int64]) -> Images:
        return Images(self.pixels[some], self.labels[some])


@dataclass(frozen=True)
class Data:
    """Both sets."""

    train: Images
    test: Images

    @staticmethod
    def load(folder: Path) -> Data:
        return Data(Images(*idx(folder, "train")), Images(*idx(folder, "t10k")))


def normal(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the network takes. [n, 1, 28, 28]"""
    return ((pixels[:, None] / 255 - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)


def find(given: Path | None, work: Path) -> Path:
    """The folder with the four files: the given one, the installed package, or the package unpacked into `work`."""
    unpacked = work / "data" / INSTALLED
    for folder in [given] if given else [Path("/") / INSTALLED, unpacked]:
        if (folder / "t10k-images-idx3-ubyte.gz").exists():
            return folder
    if given:
        raise DataError(f"{given} has no t10k-images-idx3-ubyte.gz")
    if not shutil.which("apt-get"):
        raise DataError(
            f"no {Path('/') / INSTALLED}: get Fashion-MNIST's four .gz files (github.com/zalandoresearch/fashion-mnist), and say --data FOLDER"
        )
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "-qq", "download", PACKAGE], cwd=work, check=True)
    package = next(work.glob(f"{PACKAGE}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", package, work / "data"], check=True)
    package.unlink()
    return unpacked
