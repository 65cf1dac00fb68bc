"""AlexNet, VGG-16, ResNet-18 and -50: convolutions, then classes."""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto, TensorProto

from .sketch import Sketch, windows

CLASSES = 1000


def alexnet(batch: int = 1, size: int = 227, lrn: bool = True) -> ModelProto:
    """One-column AlexNet: 96-256-384-384-256 filters without groups, three dense layers.

    `lrn`: local response normalization after the first two layers, as published in 2012; many later versions leave it out.
    """
    s = Sketch("alexnet")
    x, side = s.relu(s.conv("input", (3, 96), 11, stride=4)), windows(size, 11, 4)
    x, side = s.max_pool(_lrn(s, x, lrn), 3, 2), windows(side, 3, 2)
    x = s.relu(s.conv(x, (96, 256), 5, pad=2))
    x, side = s.max_pool(_lrn(s, x, lrn), 3, 2), windows(side, 3, 2)
    for channels in ((256, 384), (384, 384), (384, 256)):
        x = s.relu(s.conv(x, channels, 3, pad=1))
    x, side = s.max_pool(x, 3, 2), windows(side, 3, 2)
    return _classes(s, x, 256 * side * side, batch, size)


def _lrn(s: Sketch, x: str, wanted: bool) -> str:
    """AlexNet's constants: k = 2, n = 5, α = 1e-4, β = 0.75; ONNX divides α by n itself."""
    return s.node("LRN", x, size=5, alpha=5e-4, beta=0.75, bias=2.0) if wanted else x


def vgg16(batch: int = 1, size: int = 224) -> ModelProto:
    """VGG-16 (configuration D): thirteen 3×3 convolutions in five stages, three dense layers."""
    s = Sketch("vgg16")
    x, c = "input", 3
    for layers, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(layers):
            x, c = s.relu(s.conv(x, (c, width), 3, pad=1)), width
        x = s.max_pool(x, 2, 2)
    return _classes(s, x, c * (size // 32) ** 2, batch, size)


def _classes(s: Sketch, x: str, features: int, batch: int, size: int) -> ModelProto:
    """Two hidden dense layers of 4,096 and the class probabilities."""
    x = s.node("Flatten", x, axis=1)
    for k in (features, 4096):
        x = s.relu(s.dense(x, (k, 4096)))
    return _softmax(s, s.dense(x, (4096, CLASSES)), batch, size)


def _softmax(s: Sketch, logits: str, batch: int, size: int) -> ModelProto:
    probabilities = s.node("Softmax", logits, axis=-1)
    return s.model(
        {"input": (batch, 3, size, size)},
        {"output": (probabilities, TensorProto.FLOAT, (batch, CLASSES))},
    )


def resnet18(batch: int = 1, size: int = 224) -> ModelProto:
    """ResNet-18: blocks of two 3×3 convolutions, BatchNormalization unfolded."""
    return _resnet(Sketch("resnet18"), basic, 1, (2, 2, 2, 2), batch, size)


def resnet50(batch: int = 1, size: int = 224) -> ModelProto:
    """ResNet-50 v1.5 (the stride in the 3×3 convolution), BatchNormalization unfolded."""
    return _resnet(Sketch("resnet50"), bottleneck, 4, (3, 4, 6, 3), batch, size)


def _resnet(
    s: Sketch, made: Callable[..., str], wider: int, stages: tuple[int, ...], batch: int, size: int
) -> ModelProto:
    """Stages of so many blocks, whose results are `wider` times 64, 128, 256, 512 channels."""
    x = s.relu(s.norm(s.conv("input", (3, 64), 7, stride=2, pad=3, bias=False), 64))
    x, c = s.max_pool(x, 3, 2, 1), 64
    for stage, blocks in enumerate(stages):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            x, c = made(s, x, c, width, stride), wider * width
    x = s.node("Flatten", s.node("GlobalAveragePool", x), axis=1)
    return _softmax(s, s.dense(x, (c, CLASSES), gain=0.5), batch, size)


def basic(s: Sketch, x: str, c: int, width: int, stride: int = 1) -> str:
    """Two 3×3 convolutions beside a shortcut, as `bottleneck` has it."""
    y = s.relu(s.norm(s.conv(x, (c, width), 3, stride, pad=1, bias=False), width))
    y = s.norm(s.conv(y, (width, width), 3, pad=1, bias=False, gain=0.5), width)
    if stride > 1 or c != width:
        x = s.norm(s.conv(x, (c, width), 1, stride, bias=False, gain=0.7), width)
    return s.relu(s.node("Add", y, x))


def bottleneck(s: Sketch, x: str, c: int, width: int, stride: int = 1, dilation: int = 1) -> str:
    """1×1, 3×3, 1×1 to 4 · width channels, beside a shortcut that is a 1×1 convolution where the shape changes.

    The last convolution has half the gain: the sum with the shortcut then grows slowly from block to block.
    """
    y = s.relu(s.norm(s.conv(x, (c, width), 1, bias=False), width))
    y = s.conv(y, (width, width), 3, stride, pad=dilation, dilation=dilation, bias=False)
    y = s.relu(s.norm(y, width))
    y = s.norm(s.conv(y, (width, 4 * width), 1, bias=False, gain=0.5), 4 * width)
    if stride > 1 or c != 4 * width:
        x = s.norm(s.conv(x, (c, 4 * width), 1, stride, bias=False, gain=0.7), 4 * width)
    return s.relu(s.node("Add", y, x))
