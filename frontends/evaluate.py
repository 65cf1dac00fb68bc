"""How often a network is right, and how far it is from another: metrics over labelled samples, on all cores.

    found = evaluate(Emulated(image), data, pixels, reference=InOnnxruntime("model.onnx"))
    found.right("top1")              Share(right=1768, of=2000); .interval is Wilson's, 95 %

A worker a core, each with a network of its own and one emulator thread: small networks spend their time between launches, and
images do not wait for each other. Nothing but a few numbers a sample is kept.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from knapper.compiler.ir import NAMES, Array, Type
from knapper.isa.errors import KnapperError, UsageError
from knapper.runtime.budget import EngineName

from .api import Image
from .dataset import Data
from .feed import Feed, Pixels
from .inputs import needed
from .workers import Stopped, spread

Values = Mapping[str, Array]
Run = Callable[[Values], Values]
Tell = Callable[[float, int, str], None]
Z = 1.959964
"""Of a normal distribution, 95 % is within so many deviations."""
PLAIN = Pixels()
WRONG = 1 << 30
"""The rank of a label whose scores are not numbers."""


class Network(Protocol):
    """What computes outputs from inputs whose first axis is samples."""

    @property
    def inputs(self) -> Mapping[str, Type]: ...

    @property
    def outputs(self) -> Sequence[str]: ...

    def open(self, stop: threading.Event) -> Run:
        """One for a thread; it ends with an exception of its own when `stop` is set."""


@dataclass(frozen=True)
class Emulated:
    """An image on the emulator."""

    image: Image
    engine: EngineName = "fast"

    @property
    def inputs(self) -> Mapping[str, Type]:
        return {p.name: Type(p.dtype, p.shape) for p in needed(self.image.program)}

    @property
    def outputs(self) -> Sequence[str]:
        return [p.name for p in self.image.program.outputs]

    def open(self, stop: threading.Event) -> Run:
        session = self.image.session()

        def tick(done: float, total: int, what: str) -> None:
            if stop.is_set():
                raise Stopped

        return lambda x: session.once(x, engine=self.engine, threads=1, progress=tick).outputs


class InOnnxruntime:
    """A model in onnxruntime. Inputs have the shapes of `like` where the model leaves them open."""

    def __init__(self, model: str | Path | bytes, like: Mapping[str, Type] = {}) -> None:
        from .oracle import NUMPY, Oracle

        self.oracle = Oracle(model)
        self.inputs = {
            i.name: Type(NAMES[np.dtype(NUMPY[i.type])], _closed(i.name, i.shape, like))
            for i in self.oracle.session.get_inputs()
        }
        self.outputs = [o.name for o in self.oracle.session.get_outputs()]

    def open(self, stop: threading.Event) -> Run:
        def run(x: Values) -> Values:
            if stop.is_set():
                raise Stopped
            return self.oracle.run(x)

        return run


def _closed(name: str, shape: Sequence[object], like: Mapping[str, Type]) -> tuple[int, ...]:
    known = like[name].shape if name in like and like[name].rank == len(shape) else ()
    found = [
        d if isinstance(d, int) else k
        for d, k in zip(shape, known or [None] * len(shape), strict=True)
    ]
    if found and found[0] is None:
        found[0] = 1
    if None in found:
        problem = f"input {name!r} of the reference has open dimensions: {list(shape)}"
        raise UsageError("E732", problem, hint="give them sizes in the model")
    return tuple(d for d in found if d is not None)


# --- metrics ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    right: int
    of: int

    @property
    def value(self) -> float:
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share of all images is with 95 % confidence, by Wilson's score.

        >>> [round(x, 4) for x in Share(1768, 2000).interval]
        [0.8692, 0.8973]
        """
        n, p, z = self.of, self.value, Z
        middle, half = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@dataclass(frozen=True)
class Scored:
    """What is kept of samples; every array is [n]."""

    rank: Array
    """How many classes score higher than the label's, or the same and come first. 0: top-1."""
    best: Array
    power: Array
    """Σ y² of the outputs."""
    other: Scored | None = None
    noise: Array | None = None
    """Σ (y − other)²."""

    @staticmethod
    def of(scores: Array, labels: Array | None) -> Scored:
        """Of outputs [n, …]."""
        y = scores.reshape(len(scores), -1).astype(np.float64)
        broken = np.isnan(y).any(1)
        rank = np.full(len(y), WRONG)
        if labels is not None:
            mine = y[np.arange(len(y)), labels][:, None]
            before = np.arange(y.shape[1]) < labels[:, None]
            rank = np.where(broken, WRONG, ((y > mine) | (y == mine) & before).sum(1))
        best = np.where(broken, -1, y.argmax(1)) if y.shape[1] else np.full(len(y), -1)
        return Scored(rank, best, np.square(y).sum(1))

    def against(self, scores: Array, theirs: Array, labels: Array | None) -> Scored:
        """Beside another network's outputs of the same samples; UsageError E732 if they have another size."""
        if scores.shape != theirs.shape:
            shapes = [list(a.shape[1:]) for a in (scores, theirs)]
            raise UsageError("E732", f"outputs are {shapes[0]}, the reference's {shapes[1]}")
        off = scores.astype(np.float64) - theirs.astype(np.float64)
        noise = np.square(off).reshape(len(off), -1).sum(1)
        return replace(self, other=Scored.of(theirs, labels), noise=noise)

    @staticmethod
    def joined(parts: Sequence[Scored]) -> Scored:
        others = [p.other for p in parts if p.other is not None]
        noise = [p.noise for p in parts if p.noise is not None]
        return Scored(
            np.concatenate([p.rank for p in parts]),
            np.concatenate([p.best for p in parts]),
            np.concatenate([p.power for p in parts]),
            Scored.joined(others) if others else None,
            np.concatenate(noise) if noise else None,
        )


@dataclass(frozen=True)
class Evaluation:
    """What was found."""

    scored: Scored
    classes: int
    """Values an output has for a sample."""
    labelled: bool

    def __len__(self) -> int:
        return len(self.scored.rank)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that can be told."""
        top = ("top1", "top5")[: 2 if self.classes > 5 else 1] if self.labelled else ()
        return (*top, *(("agreement", "sqnr") if self.scored.other else ()))

    def right(self, metric: str, reference: bool = False) -> Share:
        """top1 and top5 of the network, or of the reference; agreement of both."""
        mine, other = self.scored, self.scored.other
        if metric == "agreement":
            assert other is not None
            return Share(int(((mine.best == other.best) & (mine.best >= 0)).sum()), len(self))
        chosen = other if reference else mine
        assert chosen is not None
        return Share(int((chosen.rank < int(metric.removeprefix("top"))).sum()), len(self))

    def lost(self, metric: str) -> tuple[float, float, float]:
        """By how much the reference is right more often, and the 95 % interval of that: Agresti's and Min's, for pairs."""
        most, other = int(metric.removeprefix("top")), self.scored.other
        assert other is not None
        mine, theirs = self.scored.rank < most, other.rank < most
        worse, better, n = int((theirs & ~mine).sum()), int((mine & ~theirs).sum()), len(self)
        b, c, m = worse + 0.5, better + 0.5, n + 2
        half = Z * math.sqrt(b + c - (b - c) ** 2 / m) / m
        return (worse - better) / n, (b - c) / m - half, (b - c) / m + half

    @property
    def broken(self) -> int:
        """Samples whose scores are no numbers: they count as wrong."""
        return int((self.scored.best < 0).sum()) if self.classes else 0

    @property
    def sqnr(self) -> float:
        """10·log10(Σ r² / Σ (y − r)²) over all outputs of all samples, in dB; infinite if all are equal, nan if some are no numbers."""
        assert self.scored.other is not None
        assert self.scored.noise is not None
        noise, power = float(self.scored.noise.sum()), float(self.scored.other.power.sum())
        if noise == 0:
            return math.inf
        return 10 * math.log10(power / noise) if power else -math.inf


def evaluate(
    network: Network,
    data: Data,
    pixels: Pixels = PLAIN,
    *,
    reference: Network | None = None,
    output: str = "",
    theirs: str = "",
    workers: int = 1,
    tell: Tell = lambda done, total, what: None,
) -> Evaluation:
    """Every sample through the network, and through the reference.

    Args:
        network: what is judged.
        data: samples; with labels there are top1 and top5.
        pixels: what becomes of the samples' values.
        reference: with one there are agreement and sqnr, too.
        output: the output that has the scores (the first).
        theirs: the reference's (that of the same name, or its first).
        workers: threads, each with networks of its own.
        tell: called with samples done, samples in all, a word.

    Raises UsageError E721, E722 and E730 to E732 for what does not fit together, KnapperError E706 if there are no samples.
    """
    if not len(data):
        raise KnapperError("E706", "nothing was evaluated: there are no samples")
    mine = _named(output, network.outputs)
    other = (
        _named(
            theirs or (mine if reference and mine in reference.outputs else ""), reference.outputs
        )
        if reference
        else ""
    )
    feed = Feed(data, network.inputs, pixels)
    beside = Feed(data, reference.inputs, pixels) if reference else None
    classes: list[int] = []

    def worker(stop: threading.Event) -> Callable[[range], Scored]:
        run, run_other = network.open(stop), reference.open(stop) if reference else None

        def score(which: range) -> Scored:
            labels = None if data.labels is None else data.labels[which.start : which.stop]
            y = batched(run, feed, which)[mine]
            classes.append(y[:1].size)
            check_labels(labels, classes[-1])
            found = Scored.of(y, labels)
            if run_other is None or beside is None:
                return found
            return found.against(y, batched(run_other, beside, which)[other], labels)

        return score

    count, size, parts = len(data), feed.batch, list[Scored]()
    chunks = [range(i, min(i + size, count)) for i in range(0, count, size)]
    spread(
        worker,
        chunks,
        min(workers, len(chunks)),
        parts.append,
        lambda done: tell(min(done * size, count), count, ""),
    )
    return Evaluation(Scored.joined(parts), classes[0], data.labels is not None)


def _named(name: str, outputs: Sequence[str]) -> str:
    if not outputs or (name and name not in outputs):
        raise UsageError(
            "E732", f"there is no output {name!r}", hint=f"there are {', '.join(outputs)}"
        )
    return name or outputs[0]


def check_labels(labels: Array | None, classes: int) -> None:
    """UsageError E731 for classes that a network does not have."""
    if labels is not None and not (labels.min() >= 0 and labels.max() < classes):
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        hint = "--offset 1 if class 0 is the background; --scores NAME for another output"
        raise UsageError("E731", f"class {wrong}, the network scores {classes}", hint=hint)


def batched(run: Run, feed: Feed, which: range) -> dict[str, Array]:
    """A network's outputs for samples, as many at once as it takes; the last sample fills the last batch."""
    parts = list[Values]()
    for first in range(which.start, which.stop, feed.batch):
        some = range(first, min(first + feed.batch, which.stop))
        x = feed.take(some)
        lacking = feed.batch - len(some)
        if lacking:
            x = {n: np.concatenate([a, np.repeat(a[-1:], lacking, 0)]) for n, a in x.items()}
        parts.append({n: a[: len(some)] for n, a in _by_sample(run(x), feed.batch).items()})
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


def _by_sample(outputs: Values, batch: int) -> Values:
    """Outputs [batch, …]; a network of one sample may leave the axis out."""
    found = {
        n: a[None] if batch == 1 and (not a.ndim or len(a) != 1) else a for n, a in outputs.items()
    }
    for name, a in found.items():
        if not a.ndim or len(a) != batch:
            raise UsageError(
                "E732", f"output {name!r} has not the {batch} samples along its first axis"
            )
    return found
