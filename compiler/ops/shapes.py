"""Shape arithmetic shared by the declarations; every function raises IRError E102 naming the op."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..ir import DTYPES, Type, require
from .numeric import FLOATS

INTEGERS = frozenset({"i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"})
SIGNED = frozenset({"i8", "i16", "i32", "i64"}) | FLOATS
NUMBERS = FLOATS | INTEGERS
INDICES = frozenset({"i32", "i64"})
LAYOUTS = ("NCHW", "NHWC")


def of_kind(name: str, kinds: Iterable[str], *operands: Type | None) -> None:
    """Require that every operand has one of these dtypes."""
    for i, t in enumerate(operands):
        if t is not None:
            allowed = " ".join(d for d in DTYPES if d in set(kinds))
            require(t.dtype in kinds, f"{name}: operand {i} is {t}, expected one of {allowed}")


def same_dtype(name: str, *operands: Type | None) -> str:
    """Require one dtype for all operands; gives it."""
    present = [t for t in operands if t is not None]
    text = ", ".join(map(str, present))
    require(
        len({t.dtype for t in present}) == 1,
        f"{name}: operands differ in dtype: {text}",
        "insert a Cast",
    )
    return present[0].dtype


def broadcast(name: str, *operands: Type) -> tuple[int, ...]:
    """The numpy-broadcast shape of the operands."""
    rank = max(t.rank for t in operands)
    shape = []
    for column in zip(*([1] * (rank - t.rank) + list(t.shape) for t in operands), strict=True):
        sizes = {n for n in column if n != 1}
        text = " with ".join(map(str, operands))
        require(len(sizes) <= 1, f"{name}: cannot broadcast {text}")
        shape.append(sizes.pop() if sizes else 1)
    return tuple(shape)


def axis_of(name: str, axis: int, rank: int) -> int:
    """A possibly negative axis as 0 … rank-1."""
    require(-rank <= axis < rank, f"{name}: axis {axis} is outside a tensor of rank {rank}")
    return axis % rank


def axes_of(name: str, axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes as sorted, distinct 0 … rank-1."""
    found = sorted(axis_of(name, a, rank) for a in axes)
    require(len(set(found)) == len(found), f"{name}: axes {tuple(axes)} name one axis twice")
    return tuple(found)


def channel_axis(layout: str, rank: int) -> int:
    """Where the channels are: 1 in NCHW, last in NHWC, whatever the rank."""
    return 1 if layout == "NCHW" else rank - 1


def spatial_axes(layout: str, rank: int) -> range:
    """The spatial axes of an image tensor [N, C, …] or [N, …, C]."""
    return range(2, rank) if layout == "NCHW" else range(1, rank - 1)


def image(name: str, x: Type, layout: str, ranks: range = range(3, 6)) -> tuple[int, ...]:
    """Require an image tensor of this layout (1 to 3 spatial axes); gives the spatial sizes."""
    require(layout in LAYOUTS, f"{name}: layout {layout!r}, expected NCHW or NHWC")
    require(x.rank in ranks, f"{name}: {x} is no image tensor of rank {ranks[0]} to {ranks[-1]}")
    return tuple(x.shape[i] for i in spatial_axes(layout, x.rank))


def image_shape(layout: str, n: int, spatial: Sequence[int], c: int) -> tuple[int, ...]:
    """[N, C, *spatial] or [N, *spatial, C]."""
    return (n, c, *spatial) if layout == "NCHW" else (n, *spatial, c)


def per_axis(name: str, what: str, values: Sequence[int], default: int, n: int) -> tuple[int, ...]:
    """An attribute with one value for each of n axes; () means the default for all."""
    require(
        len(values) in (0, n),
        f"{name}: {what} {tuple(values)} has {len(values)} values, expected {n}",
    )
    return tuple(values) if values else (default,) * n


def window_sizes(
    name: str,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: bool = False,
) -> tuple[int, ...]:
    """Output sizes of a sliding window; pads are (begins…, ends…) as in ONNX.

    With `ceil_mode` a last partial window counts unless it would start in the padding behind the image.
    """
    n = len(sizes)
    require(
        min([*kernel, *strides, *dilations]) >= 1,
        f"{name}: kernel, strides and dilations must be at least 1",
    )
    require(min(pads) >= 0, f"{name}: negative pads {tuple(pads)}", "slice the operand")
    out = []
    for i in range(n):
        room = sizes[i] + pads[i] + pads[n + i] - (dilations[i] * (kernel[i] - 1) + 1)
        require(
            room > (-strides[i] if ceil_mode else -1),
            f"{name}: window {tuple(kernel)} does not fit into sizes {tuple(sizes)} with pads {tuple(pads)}",
        )
        steps = -(-room // strides[i]) if ceil_mode else room // strides[i]
        if ceil_mode and steps * strides[i] >= sizes[i] + pads[i]:
            steps -= 1
        out.append(steps + 1)
    return tuple(out)
