"""The network: residual, 290,026 parameters, widths that a tile of 64 columns fits into.

image 28x28 ─ conv 5x5 /2, 32 ─┬─ conv 3x3 /2, 64 ─ conv 3x3, 64 ─(+)─┬─ conv 3x3 /2, 128 ─ conv 3x3, 128 ─(+)─ mean ─ 10 classes
                               └────── conv 1x1 /2, 64 ────────────┘  └──────── conv 1x1 /2, 128 ───────────┘

A batch norm follows each convolution, a ReLU all but the shortcuts. `Network.pruned` are the six convolutions of the blocks, 286,720 weights.
The first one (25 weights a column) and the classifier (ten columns) stay dense, as in the authors' scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Matrices = dict[str, NDArray[np.float32]]
"""Weights, scores or masks of the pruned convolutions as matrices [K, N], K in the order (row, column, channel)."""


class Conv(nn.Module):
    """A convolution without bias, and its batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights [N, C, R, S] and bias [N] of the convolution that does both; zeros stay zeros."""
        n = self.norm
        assert n.running_var is not None
        assert n.running_mean is not None
        scale = n.weight / torch.sqrt(n.running_var + n.eps)
        return self.conv.weight * scale[:, None, None, None], n.bias - n.running_mean * scale


class Residual(nn.Module):
    """Two convolutions, the first of stride 2, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Conv(inputs, outputs, 3, 2)
        self.second = Conv(outputs, outputs, 3, 1)
        self.shortcut = Conv(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x), inplace=True)
        return F.relu(self.second(y) + self.shortcut(x), inplace=True)


class Network(nn.Module):
    """Scores of ten classes, [n, 10], of images [n, 1, 28, 28]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(1, 32, 5, 2)
        self.block1 = Residual(32, 64)
        self.block2 = Residual(64, 128)
        self.classes = nn.Linear(128, 10)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a keyword of its own overload

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        x = self.block2(self.block1(x))
        scores: Tensor = self.classes(x.mean((2, 3)))
        return scores

    def pruned(self) -> Iterator[tuple[str, nn.Conv2d]]:
        """The convolutions whose weights may go, by name."""
        for block in ("block1", "block2"):
            for part in ("first", "second", "shortcut"):
                yield f"{block}.{part}", getattr(self, block).get_submodule(part).conv

    def matrices(self) -> Matrices:
        """The weights that may go."""
        return {name: matrix(conv.weight) for name, conv in self.pruned()}


def matrix(weight: Tensor) -> NDArray[np.float32]:
    """[N, C, R, S] → [R·S·C, N]"""
    w = weight.detach().permute(2, 3, 1, 0)
    return np.ascontiguousarray(w.reshape(-1, w.shape[3]).numpy())


def tensor(matrix: NDArray[np.generic], like: Tensor) -> Tensor:
    """[R·S·C, N] → [N, C, R, S], in the shape and layout of a weight."""
    n, c, r, s = like.shape
    w = torch.from_numpy(np.asarray(matrix, np.float32)).reshape(r, s, c, n).permute(3, 2, 0, 1)
    return w.contiguous(memory_format=torch.channels_last)


def masked(network: Network, masks: Mapping[str, NDArray[np.bool_]]) -> list[tuple[Tensor, Tensor]]:
    """Weights beside their masks, 0 or 1."""
    return [
        (conv.weight, tensor(masks[name], conv.weight))
        for name, conv in network.pruned()
        if name in masks
    ]
