"""demo: a trained network, compiled for a modeled accelerator and run on the emulator, beside onnxruntime.

The network (a small residual CNN for Fashion-MNIST, 91 % of the test set) and a hundred labelled test images ship
with the package; `examples/train_demo.py` trained it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from knapper.compiler.ir import Array
from knapper.isa.errors import UsageError

from .. import api, files
from ..commands.build import describe, write_assembly
from ..commands.execute import how, mnemonics_table
from ..compare import difference
from ..oracle import Oracle
from ..progress import Progress
from ..tables import table
from .pictures import picture, side_by_side

if TYPE_CHECKING:
    from knapper.runtime.stats import Stats

HERE = Path(__file__).parent
CLASSES = [
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]
MEAN, STD = 0.2860, 0.3530
"""Of a pixel, 0 to 1, over the training set: what the network was trained on."""


@dataclass(frozen=True)
class Scores:
    """The scores of every image, [n, 10]."""

    ours: Array
    theirs: Array
    labels: Array

    def right(self, scores: Array) -> int:
        """How many images were classified correctly."""
        return int((scores.argmax(1) == self.labels).sum())

    @property
    def agreement(self) -> int:
        """How many images both give the same class."""
        return int((self.ours.argmax(1) == self.theirs.argmax(1)).sum())


def demo(a: argparse.Namespace) -> None:
    """`knapper demo`."""
    if not 1 <= a.images <= 100:
        raise UsageError("E704", f"--images {a.images}: expected 1 to 100")
    folder = files.make_folder(a.dir)
    data = np.load(HERE / "fashion.npz")
    images, labels = data["images"][: a.images], data["labels"][: a.images]
    files.write(folder / "model.onnx", (HERE / "fashion.onnx").read_bytes())
    files.write(folder / "images.npz", (HERE / "fashion.npz").read_bytes())

    started = time.perf_counter()
    image = api.compile(folder / "model.onnx", a.target, a.precision or "fp16")
    seconds = time.perf_counter() - started
    image.save(folder / "model.elf")
    write_assembly(image.program, folder / "prog.s")
    print(
        f"compiled a network of {_parameters(folder)} parameters for {a.target} in {seconds:.1f} s:"
    )
    print(f"  {describe(image.program)}\n")

    scores, stats, seconds = _classify(image, images, labels, folder, a)
    files.write(folder / "stats.json", json.dumps(stats.to_dict(), indent=1) + "\n")
    print(_gallery(images, scores), end="\n\n")
    print(_report(scores, stats, seconds))
    print(_next_steps(folder))


def _parameters(folder: Path) -> str:
    from ..onnx import read

    graph = read(folder / "model.onnx")
    return f"{sum(c.size for c in graph.constants.values()):,}"


def batch(image: Array) -> Array:
    """A uint8 image [28, 28] as what the network takes, f32 [1, 1, 28, 28]."""
    return ((image[None, None] / 255 - MEAN) / STD).astype(np.float32)


def _classify(
    image: api.Image, images: Array, labels: Array, folder: Path, a: argparse.Namespace
) -> tuple[Scores, Stats, float]:
    """Run every image on the emulator and in onnxruntime; the counters and seconds are one image's."""
    oracle = Oracle(folder / "model.onnx")
    ours, theirs = [], []
    seconds = float("inf")
    with Progress("running images", quiet=a.quiet > 0) as progress:
        for i, pixels in enumerate(images):
            progress(i, len(images), "")
            x = {"image": batch(pixels)}
            started = time.perf_counter()
            result = image.default_session.run(x, **how(a))
            seconds = min(seconds, time.perf_counter() - started)
            ours.append(result.outputs["scores"][0])
            theirs.append(oracle.run(x)["scores"][0])
    return Scores(np.stack(ours), np.stack(theirs), labels), result.stats, seconds


def _gallery(images: Array, scores: Scores, count: int = 4) -> str:
    """The first images and what the emulator takes them for; the last one is a mistake, if there is any."""
    guesses = scores.ours.argmax(1)
    wrong = np.flatnonzero(guesses != scores.labels)[:1].tolist()
    chosen = [i for i in range(len(images)) if i not in wrong][: count - len(wrong)] + wrong
    colours = sys.stdout.isatty()
    return side_by_side(
        [
            [*picture(images[i], colours), _verdict(CLASSES[guesses[i]], CLASSES[scores.labels[i]])]
            for i in chosen
        ],
        28,
    )


def _verdict(guess: str, truth: str) -> str:
    return guess if guess == truth else f"{guess}? a {truth}!"


def _report(scores: Scores, stats: Stats, seconds: float) -> str:
    n = len(scores.labels)
    d = difference("scores", scores.ours, scores.theirs)
    share = f" ({stats.macs / stats.macs_executed:.0%} useful)" if stats.macs_executed else ""
    rows = [
        ("right, on the emulator", f"{scores.right(scores.ours)} of {n}"),
        ("right, in onnxruntime", f"{scores.right(scores.theirs)} of {n}"),
        ("both say the same", f"{scores.agreement} of {n}"),
        (
            "largest difference",
            f"{d.max_abs:.3g} in scores up to {np.abs(scores.theirs).max():.3g}",
        ),
        ("useful MACs an image", f"{stats.macs:,}"),
        ("executed MACs", f"{stats.macs_executed:,}{share}"),
        ("emulation", f"{seconds * 1000:.1f} ms an image"),
    ]
    return f"{table(rows)}\n\none image takes\n{mnemonics_table(stats)}\n"


def _next_steps(folder: Path) -> str:
    steps = [
        (f"knapper inspect {folder}/model.elf", "what is in the image"),
        (f"less {folder}/prog.s", "its instructions"),
        (f"knapper check {folder}/model.onnx", "the outputs against onnxruntime"),
        (f"knapper compile {folder}/model.onnx --dump-dir levels", "every level on the way"),
        (f"readelf -a {folder}/model.elf", "it is an ordinary ELF file"),
    ]
    written = ", ".join(sorted(f.name for f in folder.iterdir() if f.suffix not in ("", ".blob")))
    return f"in {folder}: {written}\nnext:\n{table(steps, indent='  ')}"
