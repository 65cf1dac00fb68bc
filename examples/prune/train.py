"""Training: SGD with Nesterov's momentum on the cross entropy; pruned weights are set to zero after every step.

One thread a process: then the order of every sum is fixed, and the same seed gives the same network, however many run beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .data import Images, normal
from .network import Matrices, Network, masked, matrix

BATCH, MOMENTUM, DECAY, SMOOTHING = 256, 0.9, 5e-4, 0.05
SCORED = 100
"""Steps at the end of a training over which Taylor scores are summed."""

Report = Callable[[float], None]
"""Called with the share of the work that is done."""


@dataclass(frozen=True)
class Course:
    """How long, and how fast: the rate rises in a line for a share of the steps, then falls as a cosine."""

    epochs: float
    rate: float
    rise: float

    def rate_at(self, done: float) -> float:
        if done < self.rise:
            return self.rate * done / self.rise
        return self.rate * 0.5 * (1 + math.cos(math.pi * (done - self.rise) / (1 - self.rise)))


DENSE = Course(epochs=10, rate=0.2, rise=0.2)
FINE = Course(epochs=1, rate=0.05, rise=0.05)
"""After a stage of pruning."""


def prepare(seed: int) -> None:
    """Make what follows in this process repeatable."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def train(
    network: Network,
    images: Images,
    course: Course,
    seed: int,
    masks: Mapping[str, NDArray[np.bool_]] | None = None,
    report: Report = lambda done: None,
) -> Matrices:
    """Train in place; gives the Taylor score of each weight that may go: (∂L/∂mask)² = (w·∂L/∂w)², summed over the last steps."""
    rng = np.random.default_rng(seed)
    network.train()
    held = masked(network, masks or {})
    hold(held)
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    sgd = torch.optim.SGD(groups, lr=course.rate, momentum=MOMENTUM, nesterov=True)
    pixels, labels = (
        torch.from_numpy(normal(images.pixels)),
        torch.from_numpy(images.labels.astype(np.int64)),
    )
    scores = {name: torch.zeros_like(conv.weight) for name, conv in network.pruned()}
    steps = round(course.epochs * (len(images) // BATCH))
    for step in range(steps):
        at = step % (len(images) // BATCH) * BATCH
        if at == 0:
            order = torch.from_numpy(rng.permutation(len(images)))
        some = order[at : at + BATCH]
        for group in sgd.param_groups:
            group["lr"] = course.rate_at(step / steps)
        sgd.zero_grad()
        F.cross_entropy(
            network(augment(rng, pixels[some])), labels[some], label_smoothing=SMOOTHING
        ).backward()  # type: ignore[no-untyped-call]  # torch's
        if step >= steps - SCORED:
            accumulate(network, scores)
        sgd.step()
        hold(held)
        report((step + 1) / steps)
    return {name: matrix(s) for name, s in scores.items()}


@torch.no_grad()
def hold(held: list[tuple[Tensor, Tensor]]) -> None:
    """Set pruned weights to zero."""
    for weight, mask in held:
        weight.mul_(mask)


@torch.no_grad()
def accumulate(network: Network, scores: Mapping[str, Tensor]) -> None:
    """Add this step's Taylor scores."""
    for name, conv in network.pruned():
        assert conv.weight.grad is not None
        scores[name].add_((conv.weight.grad * conv.weight) ** 2)


def augment(rng: np.random.Generator, x: Tensor) -> Tensor:
    """Mirror half of the images, and shift all of them alike by up to two pixels."""
    mirrored = torch.where(
        torch.from_numpy(rng.random(len(x)) < 0.5)[:, None, None, None], x.flip(3), x
    )
    dy, dx = rng.integers(0, 5, 2)
    return F.pad(mirrored, (2, 2, 2, 2), mode="replicate")[:, :, dy : dy + 28, dx : dx + 28]


@torch.no_grad()
def scores(network: Network, images: Images) -> NDArray[np.float32]:
    """The network's scores of every image. [n, 10]"""
    network.eval()
    parts = [
        network(torch.from_numpy(normal(images[i : i + 500].pixels)))
        for i in range(0, len(images), 500)
    ]
    return torch.cat(parts).numpy()


def accuracy(scores: NDArray[np.float32], images: Images) -> float:
    """The share of images whose class has the highest score."""
    return float((scores.argmax(1) == images.labels).mean())
