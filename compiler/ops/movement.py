"""Ops that move elements without computing: reorder, join, cut, repeat, pad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..ir import Array, Type, op, require
from .elementwise import Example, Rng, draw
from .lowering import dtype_of, emit, rank_of, shape_of
from .shapes import LAYOUTS, axes_of, axis_of, broadcast, same_dtype

Ints = tuple[int, ...]


@op
def Transpose(x: Type, *, perm: tuple[int, ...] = ()) -> Type:
    """Axis i of the result is axis perm[i] of x; without perm the axes are reversed."""
    require(
        not perm or sorted(perm) == list(range(x.rank)),
        f"Transpose: perm {perm} is no permutation of the axes of {x}",
    )
    return Type(x.dtype, tuple(x.shape[i] for i in perm) if perm else x.shape[::-1])


Transpose.reference(lambda x, perm=(): np.ascontiguousarray(x.transpose(perm or None)))
Transpose.relax(lambda R, x, perm=(): R.op.permute_dims(x, list(perm) or None))


@Transpose.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3, 4, 5), "f32")], {"perm": (0, 2, 3, 1)}
    yield [draw(rng, (2, 3, 4), "f16")], {}
    yield [draw(rng, (2, 3), "i64")], {"perm": (1, 0)}


@op
def Concat(*xs: Type, axis: int) -> Type:
    """The operands joined along an axis."""
    require(len(xs) >= 1, "Concat: needs at least one operand")
    d, a = same_dtype("Concat", *xs), axis_of("Concat", axis, xs[0].rank)
    rest = {(*x.shape[:a], 0, *x.shape[a + 1 :]) for x in xs}
    require(len(rest) == 1, f"Concat: {', '.join(map(str, xs))} differ outside axis {a}")
    return Type(d, (*xs[0].shape[:a], sum(x.shape[a] for x in xs), *xs[0].shape[a + 1 :]))


Concat.reference(lambda *xs, axis: np.concatenate(xs, axis))
Concat.relax(lambda R, *xs, axis: R.op.concat(list(xs), axis))


@Concat.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, n, 4), "f32") for n in (1, 3, 2)], {"axis": 1}
    yield [draw(rng, (2, 3), "f16") for _ in range(2)], {"axis": -1}
    yield [draw(rng, (3,), "i64")], {"axis": 0}


@op
def Split(x: Type, *, split: tuple[int, ...], axis: int = 0) -> tuple[Type, ...]:
    """The operand cut along an axis into parts of these sizes."""
    a = axis_of("Split", axis, x.rank)
    require(
        sum(split) == x.shape[a] and min(split, default=0) >= 0,
        f"Split: sizes {split} do not add up to axis {a} of {x}",
    )
    return tuple(Type(x.dtype, (*x.shape[:a], n, *x.shape[a + 1 :])) for n in split)


@Split.reference
def _(x: Array, split: Ints, axis: int = 0) -> tuple[Array, ...]:
    return tuple(np.ascontiguousarray(p) for p in np.split(x, np.cumsum(split)[:-1], axis))


@Split.relax
def _(R: Any, x: Any, split: Ints, axis: int = 0) -> Any:
    ends = [int(n) for n in np.cumsum(split)]
    a = axis % rank_of(x)
    return [
        R.op.strided_slice(x, [a], [end - n], [end]) for n, end in zip(split, ends, strict=True)
    ]


@Split.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 6, 3), "f32")], {"split": (1, 3, 2), "axis": 1}
    yield [draw(rng, (4, 3), "i64")], {"split": (2, 2)}
    yield [draw(rng, (4, 6), "f16")], {"split": (3, 3), "axis": -1}


def slices(
    name: str, x: Type, starts: Ints, ends: Ints, axes: Ints, steps: Ints
) -> list[tuple[int, int, int]]:
    """(start, count, step) for every axis of x, clamped as ONNX clamps."""
    axes, steps = axes or tuple(range(len(starts))), steps or (1,) * len(starts)
    same = len(starts) == len(ends) == len(axes) == len(steps)
    require(
        same, f"{name}: starts {starts}, ends {ends}, axes {axes}, steps {steps} differ in length"
    )
    require(0 not in steps, f"{name}: a step is 0")
    axes_of(name, axes, x.rank)
    found = [(0, n, 1) for n in x.shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        # Python's slice has a sentinel where ONNX has a large negative end for a negative step
        stop = None if step < 0 and end < -size else end
        r = range(*slice(start, stop, step).indices(size))
        found[axis % x.rank] = (r.start, len(r), step)
    return found


def _slice_objects(parts: Sequence[tuple[int, int, int]]) -> tuple[slice, ...]:
    ends = [start + count * step for start, count, step in parts]
    return tuple(
        slice(start, None if end < 0 else end, step) if count else slice(0, 0)
        for (start, count, step), end in zip(parts, ends, strict=True)
    )


@op
def Slice(
    x: Type,
    *,
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    axes: tuple[int, ...] = (),
    steps: tuple[int, ...] = (),
) -> Type:
    """x[start:end:step] along axes (the first ones if none are named); negative and too large bounds as in Python."""
    return Type(x.dtype, tuple(n for _, n, _ in slices("Slice", x, starts, ends, axes, steps)))


@Slice.reference
def _(x: Array, starts: Ints, ends: Ints, axes: Ints = (), steps: Ints = ()) -> Array:
    return np.ascontiguousarray(
        x[_slice_objects(slices("Slice", Type.of(x), starts, ends, axes, steps))]
    )


@Slice.relax
def _(R: Any, x: Any, starts: Ints, ends: Ints, axes: Ints = (), steps: Ints = ()) -> Any:
    """Backward steps are a forward slice, flipped."""
    parts = slices("Slice", Type("f32", shape_of(x)), starts, ends, axes, steps)
    first = [start if step > 0 else start + (n - 1) * step for start, n, step in parts]
    last = [max(start, start + (n - 1) * step) + 1 for start, n, step in parts]
    y = R.op.strided_slice(
        x, list(range(len(parts))), first, last, [abs(step) for _, _, step in parts]
    )
    for axis, (_, _, step) in enumerate(parts):
        if step < 0:
            y = R.op.flip(emit(R, y), axis)
    return y


@Slice.example
def _(rng: Rng) -> Iterator[Example]:
    x: list[Array | None] = [draw(rng, (5, 6, 7), "f32")]
    yield x, {"starts": (1, 0), "ends": (4, 5), "steps": (1, 2)}
    yield x, {"starts": (-3,), "ends": (2**63 - 1,), "axes": (1,)}
    yield x, {"starts": (-1, 5), "ends": (-(2**63), 1), "axes": (0, 2), "steps": (-1, -2)}
    yield [draw(rng, (5, 6), "f16")], {"starts": (2,), "ends": (-1,), "axes": (-1,)}
    yield [draw(rng, (4,), "i64")], {"starts": (1,), "ends": (3,), "axes": (0,)}


@op
def Expand(x: Type, *, shape: tuple[int, ...]) -> Type:
    """x broadcast with a shape, both ways as numpy does."""
    return Type(x.dtype, broadcast("Expand", x, Type(x.dtype, tuple(shape))))


Expand.reference(
    lambda x, shape: np.ascontiguousarray(
        np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape)))
    )
)
Expand.relax(
    lambda R, x, shape: R.op.broadcast_to(x, np.broadcast_shapes(shape_of(x), tuple(shape)))
)


@Expand.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (3, 1), "f32")], {"shape": (2, 1, 4)}
    yield [draw(rng, (2, 3), "f16")], {"shape": (1, 1)}
    yield [np.array(3, np.int64)], {"shape": (2, 2)}


@op
def Tile(x: Type, *, repeats: tuple[int, ...]) -> Type:
    """x repeated along every axis."""
    require(len(repeats) == x.rank, f"Tile: repeats {repeats} for {x}: expected {x.rank} values")
    return Type(x.dtype, tuple(n * r for n, r in zip(x.shape, repeats, strict=True)))


Tile.reference(lambda x, repeats: np.tile(x, repeats))
Tile.relax(lambda R, x, repeats: R.op.tile(x, list(repeats)))


@Tile.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3), "f32")], {"repeats": (2, 3)}
    yield [draw(rng, (2, 1, 3), "i64")], {"repeats": (1, 4, 1)}


PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _pad_widths(name: str, x: Type, pads: Ints, axes: Ints) -> list[tuple[int, int]]:
    """(before, after) for every axis; negative widths crop."""
    axes = axes or tuple(range(x.rank))
    require(
        len(pads) == 2 * len(axes),
        f"{name}: pads {pads} for axes {axes} of {x}: expected {2 * len(axes)} values",
    )
    axes_of(name, axes, x.rank)
    widths = [(0, 0)] * x.rank
    for i, axis in enumerate(axes):
        widths[axis % x.rank] = (pads[i], pads[len(axes) + i])
    return widths


@op
def Pad(
    x: Type,
    *,
    pads: tuple[int, ...],
    mode: str = "constant",
    value: float = 0.0,
    axes: tuple[int, ...] = (),
) -> Type:
    """x with elements put before and behind along axes (begins then ends): a constant, or x mirrored, held, or continued."""
    require(mode in PAD_MODES, f"Pad: mode {mode!r}, expected one of {', '.join(PAD_MODES)}")
    widths = _pad_widths("Pad", x, pads, axes)
    shape = tuple(n + a + b for n, (a, b) in zip(x.shape, widths, strict=True))
    require(min(shape, default=0) >= 0, f"Pad: pads {pads} cut more than {x} has")
    room = zip(x.shape, widths, strict=True)
    fits = mode in ("constant", "edge") or all(
        max(a, b) < n + (mode == "wrap") for n, (a, b) in room
    )
    require(fits, f"Pad: mode {mode} cannot take {pads} out of {x}")
    return Type(x.dtype, shape)


@Pad.reference
def _(x: Array, pads: Ints, mode: str = "constant", value: float = 0.0, axes: Ints = ()) -> Array:
    widths = _pad_widths("Pad", Type.of(x), pads, axes)
    kept = x[
        tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.shape, widths, strict=True))
    ]
    grown = [(max(0, a), max(0, b)) for a, b in widths]
    if mode == "constant":
        return np.pad(kept, grown, constant_values=x.dtype.type(value))
    return np.asarray(np.pad(kept, grown, mode=mode))  # type: ignore[call-overload]  # one of PAD_MODES


def _source_indices(n: int, before: int, after: int, mode: str) -> Array:
    """For each place along a padded axis of size n the index it copies."""
    return np.asarray(np.pad(np.arange(n), (before, after), mode=mode))  # type: ignore[call-overload]  # one of PAD_MODES


@Pad.relax
def _(
    R: Any, x: Any, pads: Ints, mode: str = "constant", value: float = 0.0, axes: Ints = ()
) -> Any:
    shape = shape_of(x)
    widths = _pad_widths("Pad", Type("f32", shape), pads, axes)
    if any(min(w) < 0 for w in widths):
        begin = [max(0, -a) for a, _ in widths]
        end = [n - max(0, -b) for n, (_, b) in zip(shape, widths, strict=True)]
        x = emit(R, R.op.strided_slice(x, list(range(len(shape))), begin, end))
    grown = [(max(0, a), max(0, b)) for a, b in widths]
    if mode == "constant":
        return R.op.nn.pad(x, [n for w in grown for n in w], pad_value=value)
    for axis, (before, after) in enumerate(grown):
        if before or after:
            x = _relax_copy_pad(R, x, axis, before, after, mode)
    return x


def _relax_copy_pad(R: Any, x: Any, axis: int, before: int, after: int, mode: str) -> Any:
    """Join x with the runs of itself that pad it: a mirrored or continued run is one slice, a held one a broadcast."""
    n = shape_of(x)[axis]
    source = _source_indices(n, before, after, mode)
    parts = [
        x if part is None else _relax_run(R, x, axis, part)
        for part in (source[:before], None, source[before + n :])
    ]
    return emit(R, R.op.concat([p for p in parts if p is not None], axis))


def _relax_run(R: Any, x: Any, axis: int, source: Array) -> Any:
    """x[source] along an axis, source being a rising, falling or constant run."""
    if len(source) == 0:
        return None
    y = emit(R, R.op.strided_slice(x, [axis], [int(source.min())], [int(source.max()) + 1]))
    if len(set(source.tolist())) < len(source):
        return R.op.broadcast_to(
            y, [len(source) if i == axis else n for i, n in enumerate(shape_of(y))]
        )
    return y if source[0] <= source[-1] else R.op.flip(y, axis)


@Pad.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3), "f32")], {"pads": (1, 0, 2, 3), "value": 1.5}
    yield [draw(rng, (1, 2, 4, 5), "f16")], {"pads": (1, 2, 1, 0), "axes": (2, 3)}
    yield [draw(rng, (2, 4, 5), "f32")], {"pads": (0, 1, 2, 0, 3, 1), "mode": "reflect"}
    yield [draw(rng, (3, 4), "f32")], {"pads": (1, 2, 0, 2), "mode": "edge"}
    yield [draw(rng, (3, 4), "f32")], {"pads": (1, 2, 0, 2), "mode": "wrap"}
    yield [draw(rng, (4, 5), "f32")], {"pads": (-1, 1, 0, -2)}
    yield [draw(rng, (3,), "i64")], {"pads": (1, 1), "value": -7.0}


def _blocks(name: str, x: Type, blocksize: int, layout: str) -> tuple[int, int, int, int]:
    """(N, C, H, W) of a 4-axis image tensor."""
    require(x.rank == 4, f"{name}: {x}: expected 4 axes")
    require(layout in LAYOUTS, f"{name}: layout {layout!r}, expected NCHW or NHWC")
    require(blocksize >= 1, f"{name}: blocksize is {blocksize}")
    n, *rest = x.shape
    c, h, w = rest if layout == "NCHW" else (rest[2], rest[0], rest[1])
    return n, c, h, w


def _block_type(x: Type, layout: str, n: int, c: int, h: int, w: int) -> Type:
    return Type(x.dtype, (n, c, h, w) if layout == "NCHW" else (n, h, w, c))


@op
def DepthToSpace(x: Type, *, blocksize: int, mode: str = "DCR", layout: str = "NCHW") -> Type:
    """Channels to blocks of pixels; channels are (row, column, depth) in mode DCR, (depth, row, column) in CRD."""
    n, c, h, w = _blocks("DepthToSpace", x, blocksize, layout)
    require(mode in ("DCR", "CRD"), f"DepthToSpace: mode {mode!r}, expected DCR or CRD")
    require(
        c % blocksize**2 == 0,
        f"DepthToSpace: {c} channels do not divide into {blocksize}x{blocksize} blocks",
    )
    return _block_type(x, layout, n, c // blocksize**2, h * blocksize, w * blocksize)


@op
def SpaceToDepth(x: Type, *, blocksize: int, mode: str = "DCR", layout: str = "NCHW") -> Type:
    """Blocks of pixels to channels (row, column, depth), or (depth, row, column) in mode CRD."""
    n, c, h, w = _blocks("SpaceToDepth", x, blocksize, layout)
    require(mode in ("DCR", "CRD"), f"SpaceToDepth: mode {mode!r}, expected DCR or CRD")
    require(
        h % blocksize == 0 and w % blocksize == 0,
        f"SpaceToDepth: {x} does not divide into {blocksize}x{blocksize} blocks",
    )
    return _block_type(x, layout, n, c * blocksize**2, h // blocksize, w // blocksize)


def _depth_to_space(shape: Ints, b: int, mode: str, layout: str) -> tuple[Ints, Ints, Ints]:
    """The op as reshape, transpose, reshape."""
    n, *rest = shape
    if layout == "NCHW":
        c, h, w = rest
        split, perm = (
            ((n, b, b, c // b**2, h, w), (0, 3, 4, 1, 5, 2))
            if mode == "DCR"
            else ((n, c // b**2, b, b, h, w), (0, 1, 4, 2, 5, 3))
        )
        return split, perm, (n, c // b**2, h * b, w * b)
    h, w, c = rest
    split, perm = (
        ((n, h, w, b, b, c // b**2), (0, 1, 3, 2, 4, 5))
        if mode == "DCR"
        else ((n, h, w, c // b**2, b, b), (0, 1, 4, 2, 5, 3))
    )
    return split, perm, (n, h * b, w * b, c // b**2)


def _space_to_depth(shape: Ints, b: int, mode: str, layout: str) -> tuple[Ints, Ints, Ints]:
    n, *rest = shape
    if layout == "NCHW":
        c, h, w = rest
        perm = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
        return (n, c, h // b, b, w // b, b), perm, (n, c * b * b, h // b, w // b)
    h, w, c = rest
    perm = (0, 1, 3, 2, 4, 5) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return (n, h // b, b, w // b, b, c), perm, (n, h // b, w // b, c * b * b)


def _apply(x: Array, split: Ints, perm: Ints, final: Ints) -> Array:
    return np.ascontiguousarray(x.reshape(split).transpose(perm).reshape(final))


def _relax_apply(R: Any, x: Any, split: Ints, perm: Ints, final: Ints) -> Any:
    return R.op.reshape(R.op.permute_dims(R.op.reshape(x, split), list(perm)), final)


DepthToSpace.reference(
    lambda x, blocksize, mode="DCR", layout="NCHW": _apply(
        x, *_depth_to_space(x.shape, blocksize, mode, layout)
    )
)
DepthToSpace.relax(
    lambda R, x, blocksize, mode="DCR", layout="NCHW": _relax_apply(
        R, x, *_depth_to_space(shape_of(x), blocksize, mode, layout)
    )
)
SpaceToDepth.reference(
    lambda x, blocksize, mode="DCR", layout="NCHW": _apply(
        x, *_space_to_depth(x.shape, blocksize, mode, layout)
    )
)
SpaceToDepth.relax(
    lambda R, x, blocksize, mode="DCR", layout="NCHW": _relax_apply(
        R, x, *_space_to_depth(shape_of(x), blocksize, mode, layout)
    )
)


@DepthToSpace.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 8, 3, 4), "f32")], {"blocksize": 2}
    yield [draw(rng, (2, 8, 3, 4), "f16")], {"blocksize": 2, "mode": "CRD"}
    yield [draw(rng, (2, 3, 4, 8), "f32")], {"blocksize": 2, "layout": "NHWC"}
    yield [draw(rng, (2, 3, 4, 8), "f32")], {"blocksize": 2, "mode": "CRD", "layout": "NHWC"}


@SpaceToDepth.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 3, 4, 6), "f32")], {"blocksize": 2}
    yield [draw(rng, (2, 4, 6, 3), "f16")], {"blocksize": 2, "layout": "NHWC"}
    for layout in ("NCHW", "NHWC"):
        yield [draw(rng, (2, 4, 6, 8), "f32")], {"blocksize": 2, "mode": "CRD", "layout": layout}


@op
def Trilu(x: Type, *, upper: int = 1, k: int = 0) -> Type:
    """The upper (or lower) triangle of the last two axes from diagonal k on; the rest is zero."""
    require(x.rank >= 2, f"Trilu: {x} is no matrix")
    return x


Trilu.reference(lambda x, upper=1, k=0: np.triu(x, k) if upper else np.tril(x, k))


@Trilu.relax
def _(R: Any, x: Any, upper: int = 1, k: int = 0) -> Any:
    if dtype_of(x) == "bool":
        return R.op.astype((R.op.triu if upper else R.op.tril)(R.op.astype(x, "int32"), k), "bool")
    return R.op.triu(x, k) if upper else R.op.tril(x, k)


@Trilu.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (2, 4, 5), "f32")], {}
    yield [draw(rng, (4, 5), "f16")], {"k": 1}
    yield [draw(rng, (4, 5), "i64")], {"upper": 0, "k": -1}


@op
def ReverseSequence(x: Type, lengths: Type, *, batch_axis: int = 1, time_axis: int = 0) -> Type:
    """The first lengths[b] steps of each batch element reversed in time."""
    require(
        {batch_axis, time_axis} == {0, 1} and x.rank >= 2,
        f"ReverseSequence: batch and time must be axes 0 and 1 of {x}",
    )
    fits = lengths == Type("i64", (x.shape[batch_axis],))
    require(fits, f"ReverseSequence: lengths is {lengths}, expected i64[{x.shape[batch_axis]}]")
    return x


@ReverseSequence.reference
def _(x: Array, lengths: Array, batch_axis: int = 1, time_axis: int = 0) -> Array:
    y = np.moveaxis(x, batch_axis, 0).copy()
    for b, n in enumerate(lengths):
        y[b, :n] = y[b, :n][::-1].copy()
    return np.ascontiguousarray(np.moveaxis(y, 0, batch_axis))


@ReverseSequence.relax
def _(R: Any, x: Any, lengths: Any, batch_axis: int = 1, time_axis: int = 0) -> Any:
    return R.op.reverse_sequence(x, lengths, time_axis, batch_axis)


@ReverseSequence.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (4, 3, 2), "f32"), np.array([4, 1, 2], np.int64)], {}
    yield (
        [draw(rng, (3, 4), "f32"), np.array([2, 4, 3], np.int64)],
        {"batch_axis": 0, "time_axis": 1},
    )
