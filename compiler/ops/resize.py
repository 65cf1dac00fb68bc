"""Resize: every output element is a weighted sum of input elements along each axis in turn, and the weights are constants.

    x_original = transform(j)         nearest: 1 tap    linear: 2 taps    cubic: 4 taps    antialias: as wide as the shrinking

Coordinates are computed in f32 in onnxruntime's order of operations, since `nearest` decides by their last bit; so index and
weight tables are the same for the reference and for the lowering, which is made of takes, multiplies and adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..ir import Array, Type, op, require
from .elementwise import Example, Rng, draw
from .lowering import dtype_of, emit, is_float, rank_of, shape_of, wide
from .numeric import FLOATS, rounded
from .shapes import axes_of, of_kind

Ints = tuple[int, ...]
Floats = tuple[float, ...]
F = np.float32
NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - F(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + F(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}
TRANSFORMS: dict[str, Callable[..., Array]] = {
    "half_pixel": lambda j, a: (j + F(0.5)) / a.scale - F(0.5),
    "asymmetric": lambda j, a: j / a.scale,
    "pytorch_half_pixel": lambda j, a: (j + F(0.5)) / a.scale - F(0.5) if a.after > 1 else j * F(0),
    "tf_half_pixel_for_nn": lambda j, a: (j + F(0.5)) / a.scale,
    "align_corners": lambda j, a: j * F(a.before - 1) / F(a.after - 1) if a.after > 1 else j * F(0),
    "half_pixel_symmetric": lambda j, a: a.symmetric_offset + (j + F(0.5)) / a.scale - F(0.5),
    "tf_crop_and_resize": lambda j, a: a.crop(j),
}


class Axis:
    """One axis that is resized: sizes before and after, the scale as given, and the region of interest."""

    def __init__(self, before: int, after: int, scale: float, roi: tuple[float, float]) -> None:
        self.before, self.after, self.scale, self.roi = before, after, F(scale), roi

    @property
    def symmetric_offset(self) -> Any:
        """How far half_pixel_symmetric moves the coordinates so that the centre stays the centre."""
        return F(self.before) / F(2) * (F(1) - F(self.after) / (self.scale * F(self.before)))

    def crop(self, j: Array) -> Array:
        """Coordinates inside the region of interest."""
        start, end = map(F, self.roi)
        last = F(self.before - 1)
        if self.after == 1:
            return j * F(0) + F(0.5) * (start + end) * last
        return np.asarray(start * last + j * (end - start) * last / F(self.after - 1))

    def coordinates(self, mode: str) -> Array:
        """x_original of every output index, f32 [after]."""
        return np.asarray(TRANSFORMS[mode](np.arange(self.after, dtype=F), self), F)


def _cubic(x: Array, a: float) -> Array:
    """Keys's cubic kernel."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _taps(x: Array, axis: Axis, linear: bool, a: float, antialias: bool) -> tuple[Array, Array]:
    """Indices (perhaps outside the image) and weights [after, taps] around coordinates x."""
    reach = 1 if linear else 2
    shrink = min(float(axis.scale), 1.0) if antialias else 1.0
    start = math.floor(-reach / shrink) + 1
    offsets = np.arange(start, 1 - start + 1)
    floor = np.floor(x)
    distance = (offsets[None, :] - (x - floor)[:, None].astype(np.float64)) * shrink
    weights = np.clip(1 - np.abs(distance), 0, 1) if linear else _cubic(distance, a)
    return floor[:, None].astype(np.int64) + offsets, weights / weights.sum(1, keepdims=True)


def table(axis: Axis, attrs: dict[str, Any]) -> tuple[Array, Array]:
    """Indices into the axis and their weights, both [after, taps]."""
    mode = attrs.get("mode", "nearest")
    x = axis.coordinates(attrs.get("coordinate_transformation_mode", "half_pixel"))
    last = axis.before - 1
    if mode == "nearest":
        index = NEAREST[attrs.get("nearest_mode", "round_prefer_floor")](x).astype(np.int64)
        return np.clip(index, 0, last)[:, None], np.ones((axis.after, 1))
    antialias = bool(attrs.get("antialias", 0))
    if mode == "linear" and not antialias:
        x = np.clip(x, 0, F(last))
    index, weight = _taps(x, axis, mode == "linear", attrs.get("cubic_coeff_a", -0.75), antialias)
    if attrs.get("exclude_outside", 0):
        weight = np.where((index >= 0) & (index <= last), weight, 0)
        weight = weight / weight.sum(1, keepdims=True)
    used = (weight != 0).any(0)
    return np.clip(index[:, used], 0, last), weight[:, used]


def _axes(shape: Ints, attrs: dict[str, Any]) -> dict[int, Axis]:
    """The axes that Resize touches."""
    axes = [a % len(shape) for a in attrs.get("axes", ()) or range(len(shape))]
    sizes, scales = attrs.get("sizes", ()), attrs.get("scales", ())
    roi = attrs.get("roi", ()) or (*[0.0] * len(axes), *[1.0] * len(axes))
    if sizes:
        sizes, scales = _policy(
            [shape[a] for a in axes], sizes, attrs.get("keep_aspect_ratio_policy", "stretch")
        )
    else:
        sizes = [math.floor(F(s) * F(shape[a])) for s, a in zip(scales, axes, strict=True)]
    parts = zip(axes, sizes, scales, roi, roi[len(axes) :], strict=False)
    return {a: Axis(shape[a], size, scale, (start, end)) for a, size, scale, start, end in parts}


def _policy(before: list[int], sizes: Ints, policy: str) -> tuple[list[int], list[float]]:
    """Sizes and scales after keep_aspect_ratio_policy."""
    scales = [s / n for s, n in zip(sizes, before, strict=True)]
    if policy == "stretch":
        return list(sizes), scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [math.floor(scale * n + 0.5) for n in before], [scale] * len(before)


@op
def Resize(
    x: Type,
    *,
    sizes: tuple[int, ...] = (),
    scales: tuple[float, ...] = (),
    axes: tuple[int, ...] = (),
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    antialias: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    roi: tuple[float, ...] = (),
) -> Type:
    """x resampled to `sizes`, or by `scales`, along axes (all if none are named), by nearest, linear or cubic interpolation.

    `roi` (starts, then ends, as fractions) and extrapolation_value belong to tf_crop_and_resize.
    """
    require((len(sizes) > 0) != (len(scales) > 0), "Resize: give either sizes or scales")
    require(0 not in x.shape, f"Resize: {x} has an empty axis")
    named = axes_of("Resize", axes, x.rank) if axes else range(x.rank)
    n = len(sizes) or len(scales)
    require(n == len(named), f"Resize: {n} sizes or scales for {len(named)} axes of {x}")
    require(
        mode in ("nearest", "linear", "cubic"),
        f"Resize: mode {mode!r}, expected nearest, linear or cubic",
    )
    require(
        coordinate_transformation_mode in TRANSFORMS,
        f"Resize: no coordinate mode {coordinate_transformation_mode!r}",
    )
    require(
        nearest_mode in NEAREST,
        f"Resize: nearest_mode {nearest_mode!r}, expected one of {', '.join(NEAREST)}",
    )
    require(len(roi) in (0, 2 * n), f"Resize: roi has {len(roi)} values, expected {2 * n}")
    if mode != "nearest":
        of_kind("Resize", FLOATS, x)
    policy = keep_aspect_ratio_policy
    require(
        policy in ("stretch", "not_larger", "not_smaller"),
        f"Resize: no keep_aspect_ratio_policy {policy!r}",
    )
    given = {"sizes": sizes, "scales": scales, "axes": axes, "keep_aspect_ratio_policy": policy}
    found = _axes(x.shape, given)
    shape = tuple(found[i].after if i in found else size for i, size in enumerate(x.shape))
    require(min(shape, default=1) >= 1, f"Resize: {x} to {shape}: an axis vanishes")
    return Type(x.dtype, shape)


def _outside(axis: Axis, attrs: dict[str, Any]) -> Array | None:
    """Where tf_crop_and_resize reads beyond the image [after]; None if nowhere."""
    if attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        return None
    x = axis.coordinates("tf_crop_and_resize")
    beyond = (x < 0) | (x > axis.before - 1)
    return beyond if beyond.any() else None


def _along(v: Array, axis: int, rank: int) -> Array:
    """A vector reshaped to lie along an axis."""
    return v.reshape([-1 if i == axis else 1 for i in range(rank)])


@Resize.reference
@rounded
def _(x: Array, **attrs: Any) -> Array:
    found = _axes(x.shape, attrs)
    for i, axis in found.items():
        index, weight = table(axis, attrs)
        if attrs.get("mode", "nearest") == "nearest":
            x = np.take(x, index[:, 0], i)
        else:
            x = sum(
                np.take(x, k, i) * _along(w, i, x.ndim)
                for k, w in zip(index.T, weight.T, strict=True)
            )
    for i, axis in found.items():
        if (beyond := _outside(axis, attrs)) is not None:
            x = np.where(_along(beyond, i, x.ndim), attrs.get("extrapolation_value", 0.0), x)
    return x


def _identity(index: Array, weight: Array, axis: Axis) -> bool:
    """Whether a table copies the axis as it is."""
    return axis.before == axis.after and bool(
        (weight.max(1) == 1).all() and (index[:, weight[0].argmax()] == np.arange(axis.after)).all()
    )


@Resize.relax
@wide
def _(R: Any, x: Any, **attrs: Any) -> Any:
    found = _axes(shape_of(x), attrs)
    for i, axis in found.items():
        index, weight = table(axis, attrs)
        if not _identity(index, weight, axis):
            x = emit(R, _relax_axis(R, x, i, index, weight))
    for i, axis in found.items():
        if (beyond := _outside(axis, attrs)) is not None:
            value = R.const(attrs.get("extrapolation_value", 0.0), dtype_of(x))
            mask = R.const(_along(beyond, i, rank_of(x)), "bool")
            x = emit(R, R.op.where(mask, value, x))
    return x


def _relax_axis(R: Any, x: Any, i: int, index: Array, weight: Array) -> Any:
    """The weighted sum of takes along one axis."""
    taken = [R.op.take(x, R.const(k.astype(np.int32), "int32"), i) for k in index.T]
    if weight.shape[1] == 1 or not is_float(x):
        return taken[0]
    d = dtype_of(x)
    terms = [
        R.op.multiply(t, R.const(_along(w, i, rank_of(x)).astype(d), d))
        for t, w in zip(taken, weight.T, strict=True)
    ]
    y = terms[0]
    for term in terms[1:]:
        y = R.op.add(y, term)
    return y


@Resize.example
def _(rng: Rng) -> Iterator[Example]:
    x = draw(rng, (1, 2, 4, 5), "f32")
    up: dict[str, Any] = {"scales": (1.0, 1.0, 2.0, 1.5)}
    yield (
        [x],
        {
            "scales": (1.0, 1.0, 2.0, 2.0),
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
    )
    yield [x], {"sizes": (1, 2, 7, 3)}
    for nearest in ("round_prefer_ceil", "ceil"):
        yield [x], up | {"nearest_mode": nearest, "coordinate_transformation_mode": "half_pixel"}
    for transform in (
        "half_pixel",
        "align_corners",
        "asymmetric",
        "pytorch_half_pixel",
        "half_pixel_symmetric",
    ):
        yield [x], up | {"mode": "linear", "coordinate_transformation_mode": transform}
    yield [draw(rng, (1, 2, 4, 4), "f16")], {"sizes": (8, 6), "axes": (2, 3), "mode": "linear"}
    yield [x], {"sizes": (1, 2, 9, 8), "mode": "cubic"}
    yield [x], {"sizes": (1, 2, 9, 8), "mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}
    yield [x], {"sizes": (1, 2, 2, 3), "mode": "linear", "antialias": 1}
    yield [x], {"sizes": (1, 2, 2, 3), "mode": "cubic", "antialias": 1, "exclude_outside": 1}
    crop = {
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "roi": (0.0, 0.0, 0.2, 0.4, 1.0, 1.0, 1.2, 0.8),
        "extrapolation_value": 7.0,
    }
    yield [x], {"sizes": (1, 2, 3, 4), "mode": "linear", **crop}
    yield [draw(rng, (1, 2, 6), "f32")], {"sizes": (1, 2, 9), "mode": "linear"}
    yield (
        [draw(rng, (1, 4, 5, 2), "f32")],
        {"sizes": (1, 8, 10, 2), "mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    )
    yield [draw(rng, (1, 1, 4, 4), "u8", 0, 99)], {"scales": (1.0, 1.0, 2.0, 2.0)}
