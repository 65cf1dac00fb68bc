"""PyTorch modules whose exports are networks of the suite: as their papers have them, in small, with random weights.

    module, example = MODULES["swin"]()          what `torch.onnx.export` takes

They are written as people write PyTorch: `torch.roll`, `view` and `permute`, `nn.MultiheadAttention`, `F.interpolate`. What an
exporter makes of that, shape arithmetic included, is what is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class VisionTransformer(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """ViT: an image as words of 8×8 pixels, two blocks normalized before each part, classes from the first word."""

    def __init__(self, size: int = 32, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // 8) ** 2 + 1, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            layer, 2, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.classes = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.classes(self.blocks(x)[:, 0])


class WindowAttention(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Attention inside windows of side², with a learned bias by the distance of two positions."""

    def __init__(self, width: int, side: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn((2 * side - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
        apart = (at.flatten(1)[:, :, None] - at.flatten(1)[:, None]).permute(1, 2, 0) + side - 1
        self.register_buffer("index", apart[..., 0] * (2 * side - 1) + apart[..., 1])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        scores = q @ k.transpose(-2, -1)
        scores = scores + self.bias[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1)[None]
        if mask is not None:
            windows = mask.shape[0]
            scores = scores.view(b // windows, windows, self.heads, n, n) + mask[None, :, None]
            scores = scores.view(-1, self.heads, n, n)
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(b, n, c))


class WindowBlock(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """A Swin block: f32[batch, size, size, width]; with `shift` the windows are those of the rolled image, and its borders are masked."""

    def __init__(self, size: int, width: int, side: int, heads: int, shift: int) -> None:
        super().__init__()
        self.side, self.shift = side, shift
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, side, heads)
        grown = nn.Linear(width, 4 * width)
        self.dense = nn.Sequential(grown, nn.GELU(), nn.Linear(4 * width, width))
        self.register_buffer("mask", self._mask(size) if shift else None)

    def _mask(self, size: int) -> Tensor:
        """-100 between positions of one window that are not neighbours in the image."""
        regions, n = torch.zeros(1, size, size, 1), 0
        parts = (slice(0, -self.side), slice(-self.side, -self.shift), slice(-self.shift, None))
        for rows in parts:
            for columns in parts:
                regions[:, rows, columns], n = n, n + 1
        flat = self._windows(regions).squeeze(-1)
        return torch.where(flat[:, None] == flat[:, :, None], 0.0, -100.0)

    def _windows(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.view(b, h // self.side, self.side, w // self.side, self.side, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.side * self.side, c)

    def _image(self, windows: Tensor, h: int, w: int) -> Tensor:
        n = h // self.side * (w // self.side)
        x = windows.view(
            windows.shape[0] // n, h // self.side, w // self.side, self.side, self.side, -1
        )
        return x.permute(0, 1, 3, 2, 4, 5).reshape(windows.shape[0] // n, h, w, -1)

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        y = torch.roll(self.before(x), (-self.shift, -self.shift), (1, 2))
        y = self._image(self.attention(self._windows(y), self.mask), h, w)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.dense(self.after(x))


class Merging(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Half the resolution: four neighbours, side by side, through one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        four = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(four, -1)))


def swin() -> nn.Module:
    """Swin: a block of windows, one of shifted windows, half the resolution."""
    return nn.Sequential(
        WindowBlock(8, 32, 4, 2, shift=0), WindowBlock(8, 32, 4, 2, shift=2), Merging(32)
    )


def twice(before: int, after: int) -> nn.Sequential:
    """Two 3×3 convolutions, normalized and rectified."""
    layers: list[nn.Module] = []
    for c in (before, after):
        layers += [nn.Conv2d(c, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """U-Net: down twice by max pooling, up by a transposed convolution and by bilinear Resize, with what lies across beside it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.second = twice(3, width), twice(width, 2 * width)
        self.bottom = twice(2 * width, 4 * width)
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.third, self.fourth = twice(4 * width, 2 * width), twice(3 * width, width)
        self.labels = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(functional.max_pool2d(a, 2))
        y = self.third(torch.cat([self.up(self.bottom(functional.max_pool2d(b, 2))), b], 1))
        y = functional.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
        return self.labels(self.fourth(torch.cat([y, a], 1)))


class Pyramid(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """DeepLab's head: the features at several dilations and their mean over the image, scores, and bilinear Resize to the image."""

    def __init__(self, channels: int = 32, width: int = 32, labels: int = 21) -> None:
        super().__init__()
        plain = [nn.Conv2d(channels, width, 1, bias=False)]
        plain += [
            nn.Conv2d(channels, width, 3, padding=r, dilation=r, bias=False) for r in (2, 4, 6)
        ]
        self.branches = nn.ModuleList(
            nn.Sequential(c, nn.BatchNorm2d(width), nn.ReLU()) for c in plain
        )
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1), nn.ReLU())
        self.mean = nn.Sequential(*pooled)
        joined = nn.Conv2d(5 * width, width, 1, bias=False)
        self.scores = nn.Sequential(
            joined, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, labels, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        h, w = features.shape[2:]
        mean = functional.interpolate(self.mean(features), (h, w), mode="bilinear")
        joined = torch.cat([*(b(features) for b in self.branches), mean], 1)
        return functional.interpolate(self.scores(joined), (8 * h, 8 * w), mode="bilinear")


class Sequences(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Two layers of GRU in both directions over 12 steps, and classes from the mean of the states."""

    def __init__(self) -> None:
        super().__init__()
        self.states = nn.GRU(16, 32, 2, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.states(x)[0].mean(1))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vit": (VisionTransformer, (2, 3, 32, 32)),
    "swin": (swin, (1, 8, 8, 32)),
    "unet": (UNet, (1, 3, 32, 32)),
    "deeplab_head": (Pyramid, (1, 32, 8, 8)),
    "gru": (Sequences, (2, 12, 16)),
}
"""Name → module and the shape of its input."""


def made(name: str) -> tuple[nn.Module, Tensor]:
    """The module in eval mode and an example: the same each time."""
    build, shape = MODULES[name]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module: Any = build().eval()
        _settle(module)
        return module, torch.randn(shape)


def _settle(module: nn.Module) -> None:
    """Statistics as of a trained network, not those that normalize nothing."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, 0, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.1)
