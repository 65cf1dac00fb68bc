"""Mask R-CNN's shape in small: what a detector asks of a machine beside convolutions.

    image ─ backbone ─ features ─┬─ scores, deltas ─ decode ─ NonMaxSuppression ─ chosen boxes
                                 └───────────────────────────── RoiAlign ◄───────────┘
                                                                   ├─ dense ─ classes, box corrections
                                                                   └─ convolutions ─ masks

How many boxes are chosen depends on the data: every output has that many rows.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from knapper.isa.errors import UsageError

from .sketch import Array, Sketch, windows

WIDTHS = (32, 64, 128, 128)
"""Channels of the backbone's four stages, each of stride 2."""
ASPECTS, SCALES = (0.5, 1.0, 2.0), (2.0, 4.0)
"""Anchors at each position: height by width, and size in strides of the features."""
CLASSES = 20
PROPOSALS = 32
"""Boxes that NonMaxSuppression keeps of an image, at most."""
POOLED, MASK = 7, 14
"""Samples a side that RoiAlign takes for the classes, and for the masks."""


def detector(batch: int = 1, size: int = 256) -> ModelProto:
    """f32[batch, 3, size, size] to `boxes` [n, 4], `classes` [n, 20], `corrections` [n, 80] and `masks` [n, 20, 28, 28]."""
    s = Sketch("detector")
    features, side = _backbone(s, size)
    scores, boxes = _proposals(s, features, side, size, batch)
    chosen = s.node(
        "NonMaxSuppression",
        boxes,
        scores,
        s.ints(PROPOSALS),
        s.scalar(0.7),
        s.scalar(0.05),
    )
    rois = s.node("GatherND", boxes, s.node("Gather", chosen, s.ints(0, 2), axis=1))
    image = s.node("Squeeze", s.node("Gather", chosen, s.ints(0), axis=1), s.ints(1))
    classes, corrections = _heads(s, features, rois, image, side / size)
    masks = _masks(s, features, rois, image, side / size)
    f, n = TensorProto.FLOAT, "n"
    return s.model(
        {"input": (batch, 3, size, size)},
        {
            "boxes": (rois, f, (n, 4)),
            "classes": (classes, f, (n, CLASSES)),
            "corrections": (corrections, f, (n, 4 * CLASSES)),
            "masks": (masks, f, (n, CLASSES, 2 * MASK, 2 * MASK)),
        },
    )


STRIDE, BEST = 16, 200
"""Of `detector_head`: pixels between positions, and boxes that TopK hands to NonMaxSuppression."""


def detector_head(batch: int = 1, size: int = 16) -> ModelProto:
    """What follows a detector's convolutions: scores, deltas and features to `boxes`, `classes`, `corrections`, by way of the 200 best.

    Raises UsageError E707 for more than one image: TopK's indices are then those of one.
    """
    if batch != 1:
        raise UsageError("E707", f"detector_head takes one image, not {batch}")
    s, side = Sketch("detector_head"), size * STRIDE
    anchors = anchor_boxes(size, STRIDE)
    scores = s.node("Sigmoid", "scores")
    best, at = s.two("TopK", scores, s.ints(BEST), axis=2, largest=1, sorted=1)
    boxes = _decoded(s, s.node("Mul", "deltas", s.scalar(0.15)), anchors, side)
    boxes = s.node("Gather", boxes, s.node("Reshape", at, s.ints(-1)), axis=1)
    limits = (s.ints(PROPOSALS), s.scalar(0.7), s.scalar(0.05))
    chosen = s.node("NonMaxSuppression", boxes, best, *limits)
    rois = s.node("GatherND", boxes, s.node("Gather", chosen, s.ints(0, 2), axis=1))
    image = s.node("Squeeze", s.node("Gather", chosen, s.ints(0), axis=1), s.ints(1))
    classes, corrections = _heads(s, "features", rois, image, 1 / STRIDE)
    widths = {"boxes": 4, "classes": CLASSES, "corrections": 4 * CLASSES}
    values = zip(widths.items(), (rois, classes, corrections), strict=True)
    inputs = {"features": (1, WIDTHS[-1], size, size), "scores": (1, 1, len(anchors))}
    return s.model(
        {**inputs, "deltas": (1, len(anchors), 4)},
        {n: (v, TensorProto.FLOAT, ("n", w)) for (n, w), v in values},
    )


def _backbone(s: Sketch, size: int) -> tuple[str, int]:
    """The features, stride 16, and their side."""
    x, c = "input", 3
    for width in WIDTHS:
        x, size = s.relu(s.conv(x, (c, width), 3, stride=2, pad=1)), windows(size, 3, 2, 1)
        x, c = s.relu(s.conv(x, (width, width), 3, pad=1)), width
    return x, size


def _proposals(s: Sketch, features: str, side: int, size: int, batch: int) -> tuple[str, str]:
    """Scores [batch, 1, boxes] and boxes [batch, boxes, 4] as (left, top, right, bottom), clipped to the image."""
    anchors, c = len(ASPECTS) * len(SCALES), WIDTHS[-1]
    x = s.relu(s.conv(features, (c, c), 3, pad=1))
    flat = s.node("Transpose", s.conv(x, (c, anchors), 1, gain=0.7), perm=[0, 2, 3, 1])
    scores = s.node("Sigmoid", s.node("Reshape", flat, s.ints(batch, 1, -1)))
    deltas = s.node("Transpose", s.conv(x, (c, 4 * anchors), 1, gain=0.15), perm=[0, 2, 3, 1])
    deltas = s.node("Reshape", deltas, s.ints(batch, -1, 4))
    return scores, _decoded(s, deltas, anchor_boxes(side, size / side), size)


def anchor_boxes(side: int, stride: float) -> Array:
    """Centre and size of every anchor, f32[side · side · 6, 4] as (x, y, width, height), in the order of the scores."""
    shapes = [(stride * k * a**-0.5, stride * k * a**0.5) for k in SCALES for a in ASPECTS]
    centres = [((i + 0.5) * stride, (j + 0.5) * stride) for j in range(side) for i in range(side)]
    return np.array([(*c, *shape) for c in centres for shape in shapes], np.float32)


def _decoded(s: Sketch, deltas: str, anchors: Array, size: int) -> str:
    """Corners of the anchors, moved by deltas · size and grown by e^delta."""
    centre, extent = (s.constant(anchors[None, :, i : i + 2]) for i in (0, 2))
    moves = s.node("Slice", deltas, s.ints(0), s.ints(2), s.ints(2))
    grows = s.node("Slice", deltas, s.ints(2), s.ints(4), s.ints(2))
    middle = s.node("Add", centre, s.node("Mul", moves, extent))
    half = s.node("Mul", s.node("Mul", extent, s.node("Exp", grows)), s.scalar(0.5))
    corners = s.node("Concat", s.node("Sub", middle, half), s.node("Add", middle, half), axis=2)
    return s.node("Clip", corners, s.scalar(0), s.scalar(size))


def _heads(s: Sketch, features: str, rois: str, image: str, scale: float) -> tuple[str, str]:
    """Class probabilities and box corrections of every region."""
    x = s.node("Flatten", _aligned(s, features, rois, image, POOLED, scale), axis=1)
    x = s.relu(s.dense(x, (WIDTHS[-1] * POOLED * POOLED, 256)))
    x = s.relu(s.dense(x, (256, 256)))
    classes = s.node("Softmax", s.dense(x, (256, CLASSES)), axis=1)
    return classes, s.dense(x, (256, 4 * CLASSES), gain=0.2)


def _masks(s: Sketch, features: str, rois: str, image: str, scale: float) -> str:
    """For every region and class how likely each of 28×28 points is inside."""
    c, half = WIDTHS[-1], 64
    x = _aligned(s, features, rois, image, MASK, scale)
    for _ in range(2):
        x = s.relu(s.conv(x, (c, c), 3, pad=1))
    grow = s.constant(s._drawn((c, half, 2, 2), 0.5))
    x = s.relu(s.node("ConvTranspose", x, grow, kernel_shape=[2, 2], strides=[2, 2]))
    return s.node("Sigmoid", s.conv(x, (half, CLASSES), 1))


def _aligned(s: Sketch, features: str, rois: str, image: str, samples: int, scale: float) -> str:
    return s.node(
        "RoiAlign",
        features,
        rois,
        image,
        output_height=samples,
        output_width=samples,
        sampling_ratio=2,
        spatial_scale=scale,
    )
