"""Operators that move, choose or make elements: quantized ones stay the integers that they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from knapper.isa.errors import FrontendError

from .convert import BIG, Call, converts
from .elementwise import activated
from .file import DTYPES

END = np.iinfo(np.int64).max


def moved(call: Call, v: str, i: int = 0) -> None:
    """A result whose elements are the operand's: as stored, if both mean the same by integers."""
    if call.same_scales(i) or (call.tensor(i).scales is None and call.result().scales is None):
        call.keep(v)
    else:
        s, t = call.tensor(i).scales, call.tensor(i)
        call.give(v if s is None else call.dequantized(v, s, t, s.axis))


@converts("RESHAPE")
def _(call: Call) -> None:
    if call.has(1):
        shape = call.as_int64(1)
    else:
        new = call.option("newShape", ())
        shape = call.int64(*(int(n) for n in (() if new is None else new)))
    moved(call, call.node("Reshape", call.stored(0), shape, allowzero=0))


@converts("SQUEEZE")
def _(call: Call) -> None:
    given = call.option("squeezeDims", ())
    axes = [call.axis(int(a)) for a in (() if given is None else given)]
    axes = axes or [k for k, n in enumerate(call.shape(0)) if n == 1]
    moved(call, call.node("Squeeze", call.stored(0), call.int64(*axes)))


@converts("EXPAND_DIMS")
def _(call: Call) -> None:
    (axis,) = call.ints(1)
    at = call.int64(call.axis(axis, extra=1))
    moved(call, call.node("Unsqueeze", call.stored(0), at))


@converts("TRANSPOSE")
def _(call: Call) -> None:
    moved(call, call.stored(0, [call.axis(a) for a in call.ints(1)]))


@converts("SLICE")
def _(call: Call) -> None:
    begin, size = call.ints(1), call.ints(2)
    ends = [END if n < 0 else b + n for b, n in zip(begin, size, strict=True)]
    _sliced(call, list(begin), ends, [1] * len(ends))


def _sliced(call: Call, begin: Sequence[int], end: Sequence[int], step: Sequence[int]) -> None:
    moved(call, _slice(call, call.stored(0), begin, end, step))


def _slice(
    call: Call, v: str, begin: Sequence[int], end: Sequence[int], step: Sequence[int]
) -> str:
    axes = call.int64(*range(len(begin)))
    return call.node("Slice", v, call.int64(*begin), call.int64(*end), axes, call.int64(*step))


@converts("STRIDED_SLICE")
def _(call: Call) -> None:
    """Bits of the masks: take all, the axes that are left out, a new axis, one element for the axis."""
    begins, ends, steps = (list(call.ints(i)) for i in (1, 2, 3))
    masks = {n: int(call.option(f"{n}Mask", 0)) for n in ("begin", "end", "ellipsis", "newAxis", "shrinkAxis")}  # fmt: skip

    def bit(mask: str, i: int) -> int:
        return masks[mask] >> i & 1

    if call.option("offset", False):
        ends = [b + e for b, e in zip(begins, ends, strict=True)]
    count = len(begins)
    taken = sum(not bit("newAxis", i) and not bit("ellipsis", i) for i in range(count))
    left = call.rank(0) - taken
    if left < 0 or not len(ends) == len(steps) == count or 0 in steps:
        raise FrontendError("E206", f"a slice of {taken} axes of {call.rank(0)}")
    at = [list[int](), list[int](), list[int]()]
    new, lost, axis = list[int](), list[int](), 0
    for i in range(count):
        if bit("ellipsis", i):
            for part, whole in zip(at, (0, END, 1), strict=True):
                part += [whole] * left
            axis += left
        elif bit("newAxis", i):
            new.append(axis - len(lost) + len(new))
        else:
            b, e, s = begins[i], ends[i], steps[i]
            if bit("shrinkAxis", i):
                e, s = (b + 1 if b != -1 else END), 1
                lost.append(axis)
            else:
                b = (0 if s > 0 else END) if bit("begin", i) else b
                e = (END if s > 0 else -END) if bit("end", i) else e
            for part, n in zip(at, (b, e, s), strict=True):
                part.append(n)
            axis += 1
    v = _slice(call, call.stored(0), *at) if at[0] else call.stored(0)
    v = call.node("Squeeze", v, call.int64(*lost)) if lost else v
    v = call.node("Unsqueeze", v, call.int64(*new)) if new else v
    moved(call, v)


@converts("REVERSE_V2")
def _(call: Call) -> None:
    axes = [call.axis(a) for a in call.ints(1)]
    n = len(axes)
    where = [call.int64(*v) for v in ([END] * n, [-END] * n, axes, [-1] * n)]
    moved(call, call.node("Slice", call.stored(0), *where))


@converts("REVERSE_SEQUENCE")
def _(call: Call) -> None:
    axes = {"batch_axis": call.option("batchDim", 0), "time_axis": call.option("seqDim", 0)}
    y = call.node("ReverseSequence", call.stored(0), call.as_int64(1), **axes)
    moved(call, y)


# --- several


@converts("CONCATENATION")
def _(call: Call) -> None:
    every = range(len(call.op.inputs))
    axis = call.axis(int(call.option("axis")))
    if call.same_scales(*every) and call.tensor(0).scales is not None:
        return call.keep(call.node("Concat", *map(call.stored, every), axis=axis))
    return call.give(activated(call, call.node("Concat", *map(call.real, every), axis=axis)))


@converts("PACK")
def _(call: Call) -> None:
    every = range(len(call.op.inputs))
    axis = call.axis(int(call.option("axis", 0)), extra=1)
    at, exact = call.int64(axis), call.same_scales(*every)
    operands = [call.stored(i) if exact else call.real(i) for i in every]
    parts = [call.node("Unsqueeze", v, at) for v in operands]
    y = call.node("Concat", *parts, axis=axis)
    (call.keep if exact else call.give)(y)


@converts("UNPACK")
def _(call: Call) -> None:
    axis = call.axis(int(call.option("axis", 0)))
    _split(call, 0, axis, [1] * len(call.op.outputs), squeeze=True)


@converts("SPLIT")
def _(call: Call) -> None:
    (axis,) = call.ints(0)
    axis, count = call.axis(axis, 1), len(call.op.outputs)
    size = call.shape(1)[axis]
    if not count or size % count:
        raise FrontendError("E206", f"{size} elements in {count} parts")
    _split(call, 1, axis, [size // count] * count)


@converts("SPLIT_V")
def _(call: Call) -> None:
    sizes, (axis,) = list(call.ints(1)), call.ints(2)
    axis = call.axis(axis)
    if -1 in sizes:
        rest = call.shape(0)[axis] - sum(n for n in sizes if n >= 0)
        sizes = [rest if n < 0 else n for n in sizes]
    _split(call, 0, axis, sizes)


def _split(call: Call, i: int, axis: int, sizes: Sequence[int], *, squeeze: bool = False) -> None:
    if len(sizes) != len(call.op.outputs) or min(sizes, default=0) < 0:
        raise FrontendError("E206", f"{len(call.op.outputs)} parts of sizes {list(sizes)}")
    s, t = call.tensor(i).scales, call.tensor(i)
    parts = call.nodes("Split", [call.stored(i), call.int64(*sizes)], len(sizes), axis=axis)
    for k, part in enumerate(parts):
        v = call.node("Squeeze", part, call.int64(axis)) if squeeze else part
        if s is None or call.result(k).scales == s:
            call.keep(v, k)
        else:
            call.give(call.dequantized(v, s, t, s.axis), k)


# --- padding and repeating


@converts("PAD", "PADV2")
def _(call: Call) -> None:
    pads = call.array(1).reshape(-1, 2)
    if len(pads) != call.rank(0):
        raise FrontendError("E206", f"{len(pads)} axes of padding for {call.rank(0)}")
    around = call.int64(*map(int, pads[:, 0]), *map(int, pads[:, 1]))
    s, t = call.tensor(0).scales, call.tensor(0)
    if call.has(2):
        return moved(call, call.node("Pad", call.stored(0), around, call.stored(2)))
    if s is None:
        return moved(call, call.node("Pad", call.stored(0), around))
    zero = call.constant(s.zero.astype(DTYPES[t.type]).reshape(()), "zero")
    return moved(call, call.node("Pad", call.stored(0), around, zero))


@converts("MIRROR_PAD")
def _(call: Call) -> None:
    """By index: ONNX has no padding that repeats the edge."""
    mode = call.named("MirrorPadMode", "mode").lower()
    pads, v = call.array(1).reshape(-1, 2), call.stored(0)
    for axis, (before, after) in enumerate(pads.tolist()):
        n = call.shape(0)[axis]
        if before or after:
            if not call.known(0, axis) or max(before, after) > n - (mode == "reflect"):
                raise FrontendError("E206", f"padding of {before} and {after} beside {n} elements")
            where = np.pad(np.arange(n), (before, after), mode)  # type: ignore[call-overload]
            v = call.node("Gather", v, call.int64(*where.tolist()), axis=axis)
    moved(call, v)


@converts("TILE")
def _(call: Call) -> None:
    moved(call, call.node("Tile", call.stored(0), call.as_int64(1)))


@converts("BROADCAST_TO")
def _(call: Call) -> None:
    moved(call, call.node("Expand", call.stored(0), call.as_int64(1)))


@converts("FILL")
def _(call: Call) -> None:
    call.keep(call.node("Expand", call.stored(1), call.as_int64(0)))


@converts("ZEROS_LIKE")
def _(call: Call) -> None:
    zero = call.constant(DTYPES[call.result().type](0), "zero")
    call.keep(call.node("Expand", zero, call.node("Shape", call.stored(0))))


@converts("RANGE")
def _(call: Call) -> None:
    call.keep(call.node("Range", *(call.node("Reshape", call.stored(i), call.int64()) for i in range(3))))  # fmt: skip


@converts("SHAPE")
def _(call: Call) -> None:
    call.keep(call.cast(call.node("Shape", call.stored(0)), call.result().type))


@converts("RANK")
def _(call: Call) -> None:
    call.keep_array(np.array(call.rank(0), np.int32))


# --- by index


@converts("GATHER")
def _(call: Call) -> None:
    axis, batch = call.axis(int(call.option("axis", 0))), int(call.option("batchDims", 0))
    if not batch:
        return moved(call, call.node("Gather", call.stored(0), call.as_int64(1), axis=axis))
    if axis != batch or call.rank(1) < batch:
        raise FrontendError("E203", f"axis {axis} with {batch} batch axes is not supported")
    column = call.node("Unsqueeze", call.as_int64(1), call.int64(-1))
    if call.is_known(1):
        column = call.constant(call.array(1).astype(np.int64)[..., None], "indices")
    return moved(call, call.node("GatherND", call.stored(0), column, batch_dims=batch))


@converts("GATHER_ND")
def _(call: Call) -> None:
    where = call.cast(call.stored(1), "INT64")
    moved(call, call.node("GatherND", call.stored(0), where))


@converts("EMBEDDING_LOOKUP")
def _(call: Call) -> None:
    ids = call.cast(call.stored(0), "INT64")
    moved(call, call.node("Gather", call.stored(1), ids, axis=0), 1)


@converts("SCATTER_ND")
def _(call: Call) -> None:
    """What goes to one place is added up."""
    zero = call.constant(DTYPES[call.tensor(1).type](0), "zero")
    empty = call.node("Expand", zero, call.as_int64(2))
    where = call.cast(call.stored(0), "INT64")
    call.keep(call.node("ScatterND", empty, where, call.stored(1), reduction="add"))


@converts("ONE_HOT")
def _(call: Call) -> None:
    axis, depth = int(call.option("axis")), call.ints(1)
    values = [call.node("Reshape", call.stored(i), call.int64(1)) for i in (3, 2)]
    off_on = call.node("Concat", *values, axis=0)
    ids = call.cast(call.stored(0), "INT64")
    call.keep(call.node("OneHot", ids, call.int64(*depth), off_on, axis=axis))


@converts("TOPK_V2")
def _(call: Call) -> None:
    k = call.int64(*call.ints(1))
    values, where = call.nodes("TopK", [call.stored(0), k], 2, axis=-1)
    call.keep(values)
    call.keep(call.cast(where, call.result(1).type), 1)


# --- blocks of space


@converts("SPACE_TO_BATCH_ND")
def _(call: Call) -> None:
    """Each place of a block is an image of its own, the first place's images first."""
    blocks, pads = call.ints(1), call.array(2).reshape(-1, 2).tolist()
    n, size, rest = _blocks(call, blocks)
    padded = [p + a + b for p, (a, b) in zip(size, pads, strict=True)]
    if any(p % b for p, b in zip(padded, blocks, strict=True)):
        raise FrontendError("E206", f"blocks of {list(blocks)} do not divide {padded}")
    s, t, m = call.tensor(0).scales, call.tensor(0), len(blocks)
    around = call.int64(0, *(a for a, _ in pads), *[0] * (len(rest) + 1), *(b for _, b in pads), *[0] * len(rest))  # fmt: skip
    zero = 0 if s is None else int(s.zero[0])
    v = call.node("Pad", call.stored(0), around, call.constant(DTYPES[t.type](zero), "zero"))
    cut = chain.from_iterable((p // b, b) for p, b in zip(padded, blocks, strict=True))
    v = call.node("Reshape", v, call.int64(n, *cut, *rest))
    inner, outer = [2 + 2 * k for k in range(m)], [1 + 2 * k for k in range(m)]
    v = call.node("Transpose", v, perm=[*inner, 0, *outer, *range(2 * m + 1, 2 * m + 1 + len(rest))])  # fmt: skip
    new = [p // b for p, b in zip(padded, blocks, strict=True)]
    moved(call, call.node("Reshape", v, call.int64(n * int(np.prod(blocks)), *new, *rest)))


@converts("BATCH_TO_SPACE_ND")
def _(call: Call) -> None:
    """The opposite."""
    blocks, crops = call.ints(1), call.array(2).reshape(-1, 2).tolist()
    n, size, rest = _blocks(call, blocks)
    m, product = len(blocks), int(np.prod(blocks))
    if n % product:
        raise FrontendError("E206", f"{n} images for blocks of {list(blocks)}")
    v = call.node("Reshape", call.stored(0), call.int64(*blocks, n // product, *size, *rest))
    pairs = chain.from_iterable((m + 1 + k, k) for k in range(m))
    perm = [m, *pairs, *range(2 * m + 1, 2 * m + 1 + len(rest))]
    v = call.node("Transpose", v, perm=perm)
    whole = [p * b for p, b in zip(size, blocks, strict=True)]
    v = call.node("Reshape", v, call.int64(n // product, *whole, *rest))
    ends = [p - b for p, (_, b) in zip(whole, crops, strict=True)]
    moved(call, _slice(call, v, [0, *(a for a, _ in crops)], [END, *ends], [1] * (m + 1)))


def _blocks(call: Call, blocks: Sequence[int]) -> tuple[int, list[int], list[int]]:
    """(images, their sizes, what comes behind)"""
    if not call.known(0, *range(call.rank(0))):
        raise FrontendError("E204", "a size is open")
    if len(blocks) >= call.rank(0) or min(blocks, default=0) < 1 or np.prod(blocks) > BIG:
        raise FrontendError("E206", f"blocks of {list(blocks)} for {call.rank(0)} axes")
    n, *rest = call.shape(0)
    return n, rest[: len(blocks)], rest[len(blocks) :]
