"""docs/prune.md and the files that are kept, from the outcomes."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from knapper.frontends import demo

from .chain import TARGET, Job, Outcome, Plan, emulate
from .data import Images
from .patterns import PATTERNS, RESIDUE, Pattern

GOAL, SHOWN = 0.75, (0.75, 0.875)
"""The sparsity at which tile-wise networks must be good, and those of the table."""
ORDER = ("EW", "VW"), ("EW", "TEW-64"), ("VW", "TW-64"), ("TEW-64", "TW-64"), ("TW-64", "BW-32")
"""What is expected to be better than what."""
KEPT = Pattern("TW", 16), Pattern("TW", 64)
"""Patterns whose network of seed 0 is kept, at the goal."""


@dataclass(frozen=True)
class Numbers:
    """One number of each seed."""

    of: Mapping[int, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.of.values())

    @property
    def deviation(self) -> float:
        """Of a seed's number; nan if there is only one."""
        return statistics.stdev(self.of.values()) if len(self.of) > 1 else float("nan")

    def __sub__(self, other: Numbers) -> Numbers:
        """Seed by seed, of those that both have."""
        return Numbers({s: a - other.of[s] for s, a in self.of.items() if s in other.of})

    def text(self, digits: int = 2) -> str:
        """In per cent."""
        mean = f"{self.mean * 100:.{digits}f}"
        return f"{mean} ± {self.deviation * 100:.{digits}f}" if len(self.of) > 1 else mean


@dataclass(frozen=True)
class Table:
    """Outcomes by what they are of."""

    outcomes: Sequence[Outcome]
    patterns: Sequence[Pattern]
    plan: Plan

    def numbers(self, field: str, pattern: str, sparsity: float) -> Numbers:
        """Of all seeds; the dense network is in every pattern's outcomes, at sparsity 0."""
        return Numbers(
            {
                o.job.seed: getattr(o, field)
                for o in self.outcomes
                if str(o.job.pattern) == pattern and o.sparsity == sparsity
            }
        )

    def accuracy(self, pattern: str, sparsity: float) -> Numbers:
        return self.numbers("emulator", pattern, sparsity)

    @property
    def dense(self) -> Numbers:
        return self.accuracy(str(self.patterns[0]), 0.0)

    def loss_of_tiles(self) -> float:
        """The most that the mean accuracy of a tile-wise network is below the dense one at the goal."""
        names = [str(p) for p in self.patterns if p.kind == "TW"]
        return max((self.dense - self.accuracy(n, GOAL)).mean for n in names)

    def rows(self, sparsity: float) -> Iterator[str]:
        yield "| weights | seeds | density | energy kept | accuracy, torch | accuracy, emulator | points lost |"
        yield "|---|---|---|---|---|---|---|"
        first = str(self.patterns[0])
        exact = self.numbers("torch", first, 0.0).text(), self.dense.text()
        yield f"| dense | {len(self.dense.of)} | 1 | 1 | {exact[0]} | {exact[1]} | |"
        for name in map(str, self.patterns):
            density, energy, torch = (
                self.numbers(f, name, sparsity) for f in ("density", "energy", "torch")
            )
            found = self.accuracy(name, sparsity)
            lost = (self.dense - found).text()
            yield f"| {name} | {len(found.of)} | {density.mean:.4f} | {energy.mean:.3f} | {torch.text()} | {found.text()} | {lost} |"

    def orders(self, sparsity: float) -> Iterator[str]:
        yield "| expected | energy | accuracy, points | claimed |"
        yield "|---|---|---|---|"
        for better, worse in ORDER:
            apart = self.accuracy(better, sparsity) - self.accuracy(worse, sparsity)
            energy = self.numbers("energy", better, sparsity) - self.numbers(
                "energy", worse, sparsity
            )
            claims = [word for word, n in (("energy", energy), ("accuracy", apart)) if beyond(n)]
            yield (
                f"| {better} > {worse} | {energy.mean:+.3f} ± {energy.deviation:.3f} | {apart.text()} | {', '.join(claims) or 'no'} |"
            )


def beyond(n: Numbers) -> bool:
    """Whether a difference is larger than two standard deviations of its own, over the seeds."""
    return len(n.of) > 2 and n.mean > 2 * n.deviation


def page(t: Table) -> str:
    """docs/prune.md."""
    seeds = sorted({o.job.seed for o in t.outcomes})
    several = len(seeds) > 2
    emulated = statistics.fmean(o.seconds for o in t.outcomes)
    differ = [o.differ for o in t.outcomes]
    shown = [s for s in SHOWN if any(o.sparsity == s for o in t.outcomes)]
    stages = ", ".join(f"{s.sparsity:.1%} and {s.epochs:g} epochs" for s in t.plan.stages)
    loss = t.loss_of_tiles() * 100
    parts = [
        INTRODUCTION.format(
            train=f"{t.plan.train_images:,}",
            test=f"{t.plan.test_images:,}",
            epochs=f"{t.plan.dense.epochs:g}",
            stages=stages,
            loss=f"{loss:.2f}",
            residue=f"{RESIDUE:.0%}",
            target=TARGET,
        )
    ]
    for s in shown:
        parts += [f"## {s:.1%} of the weights gone\n", "\n".join(t.rows(s)), ""]
        if several and set(t.patterns) == set(PATTERNS):
            parts += [ORDERS, "\n".join(t.orders(s)), ""]
    if set(t.patterns) == set(PATTERNS):
        parts += [f"{both_wanted(t, shown)}\n"]
    parts.append(RANKED)
    parts.append(
        TIMES.format(
            seeds=", ".join(map(str, seeds)),
            sd="± is the standard deviation of a seed. " if len(seeds) > 1 else "",
            dense=f"{minutes(t, sparsity=0.0):.0f}",
            each=f"{minutes(t):.0f}",
            emulated=f"{emulated:.1f}",
            test=f"{t.plan.test_images:,}",
            most=max(differ),
            mean=f"{statistics.fmean(differ):.1f}",
        )
    )
    return "\n".join(parts)


def both_wanted(t: Table, shown: Sequence[float]) -> str:
    """Whether there is a sparsity at which single weights lose a point at most, and blocks five or more."""
    lost = {
        s: [100 * (t.dense - t.accuracy(name, s)).mean for name in ("EW", "BW-32")] for s in shown
    }
    found = [f"{s:.1%}" for s, (ew, bw) in lost.items() if ew <= 1 and bw >= 5]
    which = f"At {', '.join(found)}" if found else "At no sparsity among these"
    each = "; ".join(f"{ew:.2f} and {bw:.2f} at {s:.1%}" for s, (ew, bw) in lost.items())
    return f"{which} single weights lose a point at most and blocks of 32 five or more: {each}."


def minutes(t: Table, sparsity: float | None = None) -> float:
    """Of training a seed, with one core: everything, or what led to this sparsity. A dense network is trained once."""
    seeds = {o.job.seed for o in t.outcomes}
    first = t.patterns[0]
    counted = [o for o in t.outcomes if o.sparsity or o.job.pattern == first]
    some = [o.training for o in counted if sparsity is None or o.sparsity == sparsity]
    return sum(some) / 60 / len(seeds)


INTRODUCTION = """# Pruned networks that keep their accuracy

`python -m examples.prune` writes this page. It needs the extra `train` (torch), and fetches Fashion-MNIST by itself where there is
apt-get.

A residual CNN (`examples/prune/network.py`: 32, 64, 128 channels, 290,026 parameters) is trained on {train} images for {epochs}
epochs. Then, stage by stage (sparsity {stages}),
weights are ranked and masked, and what is left is trained on, with the masks applied after every step. The 286,720 weights of the six
convolutions in the blocks may go; density is theirs. They are ranked by Taylor scores, (w·∂L/∂w)² summed over the last 100 steps of
the training before, over all layers together. A weight that is pruned has the score 0 from then on. Each network is exported with
its batch norms folded and its weights in fp16, compiled for `{target}`, and run on the emulator with all {test} test images.

**Tile-wise networks at 75 % lose {loss} points**, the worse of G = 16 and G = 64.

EW: single weights. VW: the best of each 16 along K. TW-G: columns, then rows in tiles of G columns. TEW-64: TW-64, and a residue of
single weights, {residue} of all that are kept. TVW-64: TW-64, and 2 of 4 along a tile's rows. BW-b: blocks of b x b. Energy kept: the
share of the dense network's squared weights under masks ranked by magnitude in one step; no training is in it.
"""

ORDERS = """Differences seed by seed, mean and standard deviation; an order is claimed where the mean is beyond two standard deviations.
"""

RANKED = """`examples/prune/patterns.py` ranks, single weights and vectors by `knapper.compiler.sparsity`, as `knapper prune` does. It says how the
two differ in the other patterns.
"""

TIMES = """## How, and how long

Seeds {seeds}. {sd}Every process has one thread, so that a seed fixes the order of every sum. Training
took {each} minutes of one core a seed, {dense} of them for the dense network; as many cores as there are work at it.
The emulator takes {emulated} s for {test} images on one core; {mean} of them, on average, and {most} at most, are
classified other than by torch, which computes in fp32.

`examples/prune/` keeps the two tile-wise networks of seed 0 at 75 % (`tw-16-75.onnx`, `tw-64-75.onnx`), their masks, and the
emulator's answers.
"""


def keep_files(plan: Plan, t: Table, to: Path) -> None:
    """Networks and masks of `KEPT`, and what the emulator answers: classes of all test images, scores of the demo's hundred."""
    (stage,) = (s for s in plan.stages if s.sparsity == GOAL)
    shown = np.load(demo.HERE / "fashion.npz")
    answers: dict[str, NDArray[Any]] = {}
    for pattern in KEPT:
        job = Job(min(o.job.seed for o in t.outcomes), pattern)
        name = job.name(stage)
        for end in (".onnx", ".masks.json"):
            shutil.copyfile(plan.file(job.seed, name, end), to / f"{name}{end}")
        said = np.load(plan.file(job.seed, name, ".npz"))["emulator"]
        hundred, _ = emulate(
            onnx.load(to / f"{name}.onnx"), Images(shown["images"], shown["labels"]), batch=100
        )
        answers |= {f"{name}.classes": said.argmax(1).astype(np.uint8), f"{name}.scores": hundred}
    np.savez_compressed(to / "answers.npz", **answers)  # type: ignore[arg-type]  # a name may be `allow_pickle`
