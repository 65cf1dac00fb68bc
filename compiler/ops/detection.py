"""What detectors do between their convolutions: pick boxes, and sample features under them.

Both are written down operation by operation in f32, as onnxruntime computes them, so that a box which lies on a threshold falls
to the same side everywhere. TVM has no lowering for them: `codegen/detection` has kernels of our own.

NonMaxSuppression's result has as many rows as boxes are chosen, which the data decides. Here it has the rows that it can have at
most, and a second result says how many are meant; the rest are zeros. What reads it inside a network sees all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..ir import Array, Type, op, require
from .elementwise import Example, Rng, draw
from .shapes import channel_axis, image, image_shape, of_kind, same_dtype

STORED = frozenset({"f16", "bf16", "f32"})
HALF, OUTPUT_HALF = "half_pixel", "output_half_pixel"
F = np.float32


# --- NonMaxSuppression ----------------------------------------------------------------------------


@op
def NonMaxSuppression(
    boxes: Type,
    scores: Type,
    iou_threshold: Type | None = None,
    score_threshold: Type | None = None,
    *,
    max_output_boxes_per_class: int = 0,
    center_point_box: int = 0,
) -> tuple[Type, Type]:
    """Boxes by falling score that overlap no chosen one by more than a threshold: [bound,3] of (batch, class, box), and their number.

    boxes is [batch,boxes,4]: two opposite corners (y, x, y, x), or with center_point_box (x, y, width, height); scores is
    [batch,classes,boxes]. Of equal scores the box of lower index goes first; a score must be above score_threshold, and one that is
    NaN never is. Rows behind the number are zeros.
    """
    of_kind("NonMaxSuppression", STORED, boxes, scores, iou_threshold, score_threshold)
    fits = boxes.rank == 3 == scores.rank and boxes.shape[2] == 4
    fits = fits and (scores.shape[0], scores.shape[2]) == boxes.shape[:2]
    require(fits, f"NonMaxSuppression: boxes {boxes} and scores {scores} do not fit")
    for t in (iou_threshold, score_threshold):
        require(t is None or t.count == 1, f"NonMaxSuppression: a threshold is {t}, not one number")
    require(
        center_point_box in (0, 1),
        f"NonMaxSuppression: center_point_box is {center_point_box}, expected 0 or 1",
    )
    batch, classes, count = scores.shape
    kept = min(max(max_output_boxes_per_class, 0), count)
    return Type("i64", (batch * classes * kept, 3)), Type("i64", ())


@NonMaxSuppression.reference
def _(
    boxes: Array,
    scores: Array,
    iou_threshold: Array | None = None,
    score_threshold: Array | None = None,
    max_output_boxes_per_class: int = 0,
    center_point_box: int = 0,
) -> tuple[Array, Array]:
    overlap = F(0 if iou_threshold is None else iou_threshold.ravel()[0])
    least = None if score_threshold is None else F(score_threshold.ravel()[0])
    kept = min(max(max_output_boxes_per_class, 0), scores.shape[2])
    rows: list[tuple[int, int, int]] = []
    for n, k in np.ndindex(scores.shape[:2]):
        extents = _extents(boxes[n].astype(F), bool(center_point_box))
        chosen = _choose(extents, _ranked(scores[n, k].astype(F), least), overlap, kept)
        rows += ((n, k, i) for i in chosen)
    out = np.zeros((scores.shape[0] * scores.shape[1] * kept, 3), np.int64)
    out[: len(rows)] = np.array(rows, np.int64).reshape(-1, 3)
    return out, np.array(len(rows), np.int64)


def _ranked(scores: Array, least: Any) -> list[int]:
    """Indices of the boxes that may be chosen, best first."""
    with np.errstate(invalid="ignore"):
        may = scores == scores if least is None else scores > least
    return sorted(np.flatnonzero(may).tolist(), key=lambda i: (-scores[i], i))


def _extents(boxes: Array, centered: bool) -> Array:
    """Boxes [n,4] as (low, high) of two axes, f32[n,4]."""
    with np.errstate(all="ignore"):
        if centered:
            middle, half = boxes[:, :2], boxes[:, 2:] / F(2)
            low, high = middle - half, middle + half
        else:
            low, high = (
                np.minimum(boxes[:, :2], boxes[:, 2:]),
                np.maximum(boxes[:, :2], boxes[:, 2:]),
            )
    return np.concatenate([low, high], 1)


def _choose(extents: Array, ranked: list[int], overlap: Any, kept: int) -> list[int]:
    chosen: list[int] = []
    for i in ranked:
        if len(chosen) == kept:
            break
        if not any(_suppresses(extents[j], extents[i], overlap) for j in chosen):
            chosen.append(i)
    return chosen


def _suppresses(a: Array, b: Array, overlap: Any) -> bool:
    """Whether two boxes share more than `overlap` of their union; one without area shares nothing."""
    with np.errstate(all="ignore"):
        low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
        shared = (high[0] - low[0]) * (high[1] - low[1])
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        union = areas[0] + areas[1] - shared
        real = (high > low).all() and shared > 0 and min(areas) > 0 and union > 0
        return bool(real and shared / union > overlap)


def random_boxes(rng: Rng, shape: tuple[int, ...], extent: float) -> Array:
    """Boxes f32[…,4] as (low, low, high, high) inside a square."""
    low = rng.uniform(0, 0.7 * extent, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(0.1, 0.5, (*shape, 2)) * extent], -1).astype(F)


@NonMaxSuppression.example
def _(rng: Rng) -> Iterator[Example]:
    def scores(*shape: int) -> Array:
        return np.asarray(rng.integers(0, 50, shape) / 50, F)  # with equal ones among them

    half, some = np.array([0.5], F), np.array([0.3], F)
    most = {"max_output_boxes_per_class": 5}
    yield [random_boxes(rng, (1, 20), 1), scores(1, 1, 20), half, None], most
    yield [random_boxes(rng, (2, 40), 8), scores(2, 3, 40), half, some], most
    yield (
        [random_boxes(rng, (1, 12), 8), scores(1, 2, 12), None, some],
        {"max_output_boxes_per_class": 40},
    )
    centered = {"max_output_boxes_per_class": 9, "center_point_box": 1}
    yield [random_boxes(rng, (1, 30), 2), scores(1, 2, 30), some, None], centered
    yield [random_boxes(rng, (1, 6), 1), scores(1, 1, 6), half, None], {}


# --- RoiAlign -------------------------------------------------------------------------------------


@op
def RoiAlign(
    x: Type,
    rois: Type,
    batch_indices: Type,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    coordinate_transformation_mode: str = HALF,
    layout: str = "NCHW",
) -> Type:
    """x under regions of interest, cut into output_height × output_width bins of interpolated samples.

    rois is [n,4] of (left, top, right, bottom), times spatial_scale in pixels of the image that batch_indices names, which must be
    one of x. A bin has sampling_ratio² samples, or with 0 as many as it has pixels, rounded up. Their mean counts, or with mode "max"
    the greatest of their four weighted neighbours. "output_half_pixel" is how it was before opset 16: nothing is shifted by
    half a pixel, and a region has at least one pixel.
    """
    of_kind("RoiAlign", STORED, x, rois)
    same_dtype("RoiAlign", x, rois)
    of_kind("RoiAlign", {"i64"}, batch_indices)
    image("RoiAlign", x, layout, range(4, 5))
    fits = rois.rank == 2 and rois.shape[1] == 4 and batch_indices.shape == rois.shape[:1]
    require(fits, f"RoiAlign: rois {rois} and batch_indices {batch_indices} do not fit")
    require(mode in ("avg", "max"), f"RoiAlign: mode {mode!r}, expected avg or max")
    known = coordinate_transformation_mode in (HALF, OUTPUT_HALF)
    require(
        known, f"RoiAlign: no coordinate_transformation_mode {coordinate_transformation_mode!r}"
    )
    require(
        output_height > 0 < output_width and sampling_ratio >= 0,
        f"RoiAlign: {output_height}×{output_width} bins of {sampling_ratio} samples a side",
    )
    channels = x.shape[channel_axis(layout, 4)]
    return Type(
        x.dtype, image_shape(layout, rois.shape[0], (output_height, output_width), channels)
    )


@RoiAlign.reference
def _(
    x: Array,
    rois: Array,
    batch_indices: Array,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    coordinate_transformation_mode: str = HALF,
    layout: str = "NCHW",
) -> Array:
    images = (np.moveaxis(x, 1, -1) if layout == "NCHW" else x).astype(F)
    half = coordinate_transformation_mode == HALF
    out = np.zeros((len(rois), output_height, output_width, images.shape[-1]), F)
    with np.errstate(all="ignore"):
        for r, roi in enumerate(rois.astype(F)):
            corners = roi * F(spatial_scale) - F(0.5 if half else 0)
            rows = _axis(corners[1], corners[3], output_height, sampling_ratio, half)
            columns = _axis(corners[0], corners[2], output_width, sampling_ratio, half)
            for i, j in np.ndindex(output_height, output_width):
                out[r, i, j] = _bin(images[batch_indices[r]], rows[i], columns[j], mode)
    return np.asarray(np.moveaxis(out, -1, 1) if layout == "NCHW" else out).astype(x.dtype)


def _axis(start: Any, end: Any, bins: int, ratio: int, half: bool) -> list[list[Any]]:
    """Where the samples of each bin are on one axis."""
    length = end - start if half else max(end - start, F(1))
    size = length / F(bins)
    samples = ratio or max(int(np.ceil(size)), 0)
    inner = [F(s + 0.5) * size / F(samples) for s in range(samples)]
    return [[start + F(i) * size + at for at in inner] for i in range(bins)]


def _bin(x: Array, rows: list[Any], columns: list[Any], mode: str) -> Array:
    """One bin over all channels of x [H,W,C]."""
    samples = [_sample(x, y, xx) for y in rows for xx in columns]
    if not samples:
        return np.zeros(x.shape[-1], F)
    if mode == "max":
        return np.asarray(np.max([np.max(s, 0) for s in samples], 0))
    total = np.zeros(x.shape[-1], F)
    for a, b, c, d in samples:
        total = total + (a + b + c + d)
    return np.asarray(total / F(len(samples)))


def _sample(x: Array, y: Any, xx: Any) -> list[Array]:
    """The four neighbours of a point, weighted; zeros for a point outside the image."""
    height, width, channels = x.shape
    if not (-1 <= y <= height and -1 <= xx <= width):
        return [np.zeros(channels, F)] * 4
    (top, bottom, down), (left, right, along) = _neighbours(y, height), _neighbours(xx, width)
    up, back = F(1) - down, F(1) - along
    return [
        up * back * x[top, left],
        up * along * x[top, right],
        down * back * x[bottom, left],
        down * along * x[bottom, right],
    ]


def _neighbours(at: Any, size: int) -> tuple[int, int, Any]:
    """The pixels before and behind a point, and how far it is from the first to the second."""
    low = int(max(at, F(0)))
    if low >= size - 1:
        return size - 1, size - 1, F(0)
    return low, low + 1, max(at, F(0)) - F(low)


@RoiAlign.example
def _(rng: Rng) -> Iterator[Example]:
    def operands(shape: tuple[int, ...], n: int, dtype: str = "f32") -> list[Array | None]:
        rois = random_boxes(rng, (n,), 16) - F(1)  # some reach outside
        x = draw(rng, shape, dtype)
        return [x, rois.astype(x.dtype), rng.integers(0, shape[0], n)]

    bins = {"output_height": 3, "output_width": 2}
    old = {"coordinate_transformation_mode": OUTPUT_HALF}
    yield operands((2, 3, 10, 12), 4), {**bins, "sampling_ratio": 2}
    yield operands((1, 2, 16, 16), 5), {**bins, "spatial_scale": 0.5}
    yield operands((2, 3, 9, 9), 4), {**bins, **old, "mode": "max"}
    yield operands((2, 12, 10, 5), 6, "f16"), {**bins, "sampling_ratio": 3, "layout": "NHWC"}
    yield operands((1, 2, 7, 8), 3), {**old, "spatial_scale": 0.25}
