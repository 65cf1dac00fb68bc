"""One network's way: dense, then stage after stage of pruning and training; and what each stage's network answers.

Runs in a process of its own. Nothing here knows of the others.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

import knapper
from knapper.compiler.sparsity import sidecar
from knapper.compiler.sparsity.sidecar import Mask

from .data import Data, Images, normal
from .export import model
from .network import Network
from .patterns import Masks, Pattern, Scores, density, masks
from .train import DENSE, FINE, Course, Report, accuracy, prepare, scores, train

TARGET, BATCH = "volta-8tc", 200
"""Where the pruned binary runs, and images a run."""


@dataclass(frozen=True)
class Stage:
    """Weights that go until its end, and epochs of training after."""

    sparsity: float
    epochs: float


STAGES = Stage(0.5, 0.5), Stage(0.75, 1), Stage(0.875, 0.5)


@dataclass(frozen=True)
class Plan:
    """What all networks share."""

    dir: Path
    data: Path
    dense: Course = DENSE
    stages: tuple[Stage, ...] = STAGES
    train_images: int = 60_000
    test_images: int = 10_000

    @staticmethod
    def quick(dir: Path, data: Path) -> Plan:
        short = replace(DENSE, epochs=4)
        return Plan(dir, data, short, STAGES[:2], 6_000, 1_000)

    def images(self) -> Data:
        both = Data.load(self.data)
        return Data(both.train[: self.train_images], both.test[: self.test_images])

    def file(self, seed: int, name: str, end: str = ".pt") -> Path:
        return self.dir / f"seed{seed}" / f"{name}{end}"


@dataclass(frozen=True)
class Job:
    """A chain: of a seed, with masks of one pattern."""

    seed: int
    pattern: Pattern

    def __str__(self) -> str:
        return f"seed {self.seed} {self.pattern}"

    def name(self, stage: Stage) -> str:
        """Of the stage's files: `tw-16-75`."""
        return f"{self.pattern}-{stage.sparsity * 100:g}".lower()


@dataclass(frozen=True)
class Outcome:
    """A network's row."""

    job: Job
    sparsity: float
    density: float
    energy: float
    """Share of the dense network's squared weights under masks of this density that are ranked by magnitude, in one step."""
    torch: float
    emulator: float
    """Accuracy on the test images, of each."""
    training: float
    """Seconds in the stage, of one thread."""
    seconds: float
    """Of the emulator, on all test images."""
    differ: int
    """Test images to which torch and emulator give different classes."""


@dataclass(frozen=True)
class Trained:
    """What a stage hands to the next one, and its file holds."""

    network: Network
    taylor: Scores
    masks: Masks
    seconds: float
    """Of training."""

    def save(self, file: Path, settings: str) -> None:
        """Write the file as a whole, or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        held = {
            "state": self.network.state_dict(),
            "taylor": self.taylor,
            "masks": self.masks,
            "seconds": self.seconds,
            "settings": settings,
        }
        torch.save(held, new)
        new.replace(file)

    @staticmethod
    def load(file: Path, settings: str) -> Trained | None:
        """From a file of the same settings."""
        if not file.exists():
            return None
        held: dict[str, Any] = torch.load(file, weights_only=False)
        if held["settings"] != settings:
            return None
        network = Network()
        network.load_state_dict(held["state"])
        return Trained(network, held["taylor"], held["masks"], held["seconds"])


_told: Any = None


def prepare_worker(told: Any) -> None:
    """Called in each process; told takes (name, share done)."""
    global _told
    _told = told
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, and ends this one


def reporter(name: str, start: float, end: float) -> Report:
    def report(done: float) -> None:
        if _told is not None:
            _told.put((name, start + (end - start) * done))

    return report


def dense(plan: Plan, seed: int) -> list[Outcome]:
    """Train the dense network, unless its file is there; its outcome is `chain`'s affair."""
    _dense(plan, seed)
    return []


def _dense(plan: Plan, seed: int) -> Trained:
    file, settings = plan.file(seed, "dense"), repr((plan.dense, plan.train_images))
    if found := Trained.load(file, settings):
        return found
    prepare(seed)
    network, started = Network(), time.perf_counter()
    images = plan.images().train
    taylor = train(network, images, plan.dense, seed, report=reporter(f"seed {seed}", 0, 1))
    made = Trained(network, taylor, {}, time.perf_counter() - started)
    made.save(file, settings)
    return made


def chain(plan: Plan, job: Job) -> list[Outcome]:
    """All stages of a job; outcomes of the dense network and of every stage."""
    prepare(job.seed)
    images = plan.images()
    at = _dense(plan, job.seed)
    squares = {name: w**2 for name, w in at.network.matrices().items()}
    outcomes = [outcome(plan, job, None, at, squares, images.test)]
    settings = repr((plan.dense, plan.train_images))
    for i, stage in enumerate(plan.stages):
        settings += repr((stage, FINE))
        file = plan.file(job.seed, job.name(stage))
        found = Trained.load(file, settings)
        if not found:
            n = len(plan.stages)
            found = prune(at, job, stage, images.train, i, reporter(str(job), i / n, (i + 1) / n))
            found.save(file, settings)
        at = found
        outcomes.append(outcome(plan, job, stage, at, squares, images.test))
    return outcomes


def prune(
    at: Trained, job: Job, stage: Stage, images: Images, number: int, report: Report
) -> Trained:
    """Rank by the Taylor scores of the training before, mask, and train."""
    started = time.perf_counter()
    kept = masks(job.pattern, at.taylor, 1 - stage.sparsity)
    course = replace(FINE, epochs=stage.epochs)
    seed = 100 * (number + 1) + job.seed
    taylor = train(at.network, images, course, seed, kept, report)
    return Trained(at.network, taylor, kept, time.perf_counter() - started)


def outcome(
    plan: Plan, job: Job, stage: Stage | None, at: Trained, squares: Scores, test: Images
) -> Outcome:
    """Export a network, run it, and say what came out; kept in a file beside it."""
    name = job.name(stage) if stage else "dense"
    file = plan.file(job.seed, name, ".npz")
    path = plan.file(job.seed, name, ".onnx")
    made = model(at.network)
    raw = made.SerializeToString()
    if not (file.exists() and path.exists() and path.read_bytes() == raw):
        path.write_bytes(raw)
        if stage:
            write_masks(path.with_suffix(".masks.json"), job, stage, at.masks)
        answers, seconds = emulate(made, test)
        said = scores(at.network, test)
        np.savez_compressed(file, emulator=answers, torch=said, seconds=seconds)
    kept = np.load(file)
    answers, said = kept["emulator"], kept["torch"]
    return Outcome(
        job,
        stage.sparsity if stage else 0.0,
        density(at.masks) if stage else 1.0,
        energy(job.pattern, squares, 1 - stage.sparsity) if stage else 1.0,
        accuracy(said, test),
        accuracy(answers, test),
        at.seconds,
        float(kept["seconds"]),
        int((answers.argmax(1) != said.argmax(1)).sum()),
    )


def energy(pattern: Pattern, squares: Scores, keep: float) -> float:
    """The share of squared weights that masks ranked by them keep."""
    kept = masks(pattern, squares, keep)
    return float(
        sum((squares[n] * m).sum() for n, m in kept.items())
        / sum(a.sum() for a in squares.values())
    )


def emulate(
    network: onnx.ModelProto, test: Images, target: str = TARGET, batch: int = BATCH
) -> tuple[NDArray[np.float32], float]:
    """Scores of every image as the binary computes them [n, 10], and the emulator's seconds."""
    image = knapper.compile(network, target, "fp16", shapes={"image": (batch, 1, 28, 28)})
    started = time.perf_counter()
    parts = [
        image.run({"image": normal(test[i : i + batch].pixels)}).outputs["scores"]
        for i in range(0, len(test), batch)
    ]
    return np.concatenate(parts), time.perf_counter() - started


def write_masks(file: Path, job: Job, stage: Stage, kept: Masks) -> None:
    """The sidecar that `knapper prune --apply` reads."""
    masks = {
        f"{name}.weight": Mask(m, job.pattern.of(m, stage.sparsity)) for name, m in kept.items()
    }
    file.write_text(sidecar.show(masks))
