"""A launch in numpy, block tile by block tile: what the kernel will compute, with the same chain over k.

Edges are filled with zeros as the kernel fills them, so that an operand's Inf never meets an invented zero in a stored result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ...ir import OPS, Array
from ...ops.numeric import accumulate, accumulator, finish
from ..generator import Group
from .product import Product
from .tilewise.tables import Chunk


class Tiles(Protocol):
    """The block tile."""

    @property
    def bm(self) -> int: ...
    @property
    def bn(self) -> int: ...


def tiled(group: Group, p: Product, t: Tiles, env: dict[str, Array]) -> dict[str, Array]:
    """The group's outputs."""
    values: dict[str, Any] = {"": None, **group.constants, **env}
    out = np.zeros((p.batch, p.m, p.n), accumulator(values[p.a].dtype))
    for z in range(p.batch):
        a, b = left(p, values[p.a], z), right(p, values[p.b], z)
        for m in range(0, p.m, t.bm):
            for n in range(0, p.n, t.bn):
                out[z, m : m + t.bm, n : n + t.bn] = chain(a[m : m + t.bm], b[:, n : n + t.bn])
    return finished(group, p, out, values)


def tilewise(
    group: Group, p: Product, t: Tiles, chunks: Sequence[Chunk], env: dict[str, Array]
) -> dict[str, Array]:
    """The group's outputs, its weights being given as tiles: of A only the columns are read that meet rows of a tile."""
    values: dict[str, Any] = {"": None, **group.constants, **env}
    out = np.zeros((p.batch, p.m, p.n), accumulator(values[p.a].dtype))
    for c in chunks:
        for z in c.batch:
            a = left(p, values[p.a], z)[:, c.rows]
            for m in range(0, p.m, t.bm):
                out[z, m : m + t.bm, c.columns] = chain(a[m : m + t.bm], c.weights).T
    return finished(group, p, out, values)


def finished(group: Group, p: Product, out: Array, values: dict[str, Any]) -> dict[str, Array]:
    """The group's outputs after its sums [z, m, n]."""
    shaped = out.transpose(1, 0, 2) if p.window else out
    bias = values[p.bias] if p.bias else None
    values[p.node.outputs[0]] = finish(
        shaped.reshape(p.out_type.shape), bias, str(p.node.attrs.get("out", "")), values[p.a].dtype
    )
    return rest(group, p, values)


def rest(group: Group, p: Product, values: dict[str, Any]) -> dict[str, Array]:
    """The nodes around the product, by their references."""
    for n in group.nodes:
        if n is not p.node:
            result = OPS[n.op].facets["reference"](*(values[v] for v in n.inputs), **n.attrs)
            values |= zip(
                n.outputs, result if isinstance(result, tuple) else (result,), strict=False
            )
    return {v: values[v] for v in group.outputs}


def chain(a: Array, b: Array) -> Array:
    """a[m, k] · b[k, n], k increasing, one rounding a step."""
    return accumulate(
        (a.shape[0], b.shape[1]),
        a,
        b,
        lambda x, y: ((x[:, k, None], y[k]) for k in range(x.shape[1])),
    )


def coordinates(p: Product, z: int) -> tuple[int, ...]:
    """Batch number → a coordinate on each axis."""
    return (
        tuple(int(i) for i in np.unravel_index(z, [axis.size for axis in p.axes])) if p.axes else ()
    )


def left(p: Product, a: Array, z: int) -> Array:
    """A[m, k] of one batch index, the image walked tap by tap where there is one."""
    if p.window is not None:
        return pixels(p, a, z)
    at = sum(i * axis.a for i, axis in zip(coordinates(p, z), p.axes, strict=True))
    flat = a.reshape(-1)[at : at + p.m * p.k]
    return flat.reshape(p.k, p.m).T if p.trans_a else flat.reshape(p.m, p.k)


def right(p: Product, b: Array, z: int) -> Array:
    """B[k, n] of one batch index."""
    if p.window is not None:
        return b.reshape(p.k, p.batch, p.n)[:, z]
    at = sum(i * axis.b for i, axis in zip(coordinates(p, z), p.axes, strict=True))
    flat = b.reshape(-1)[at : at + p.n * p.k]
    return flat.reshape(p.n, p.k).T if p.trans_b else flat.reshape(p.k, p.n)


def pixels(p: Product, x: Array, z: int) -> Array:
    """The pixels under each tap, [m, taps · channels], zero (or what the image is padded with) outside."""
    w = p.window
    assert w is not None
    c = p.channels
    image = (
        x.reshape(w.images, w.h, w.w, -1)[..., z * c : (z + 1) * c]
        if p.axes
        else x.reshape(w.images, w.h, w.w, c)
    )
    columns = []
    for i in range(w.kh):
        for j in range(w.kw):
            y, xx = (
                np.arange(w.oh) * w.sy + i * w.dy - w.py,
                np.arange(w.ow) * w.sx + j * w.dx - w.px,
            )
            inside = ((y >= 0) & (y < w.h))[:, None] & ((xx >= 0) & (xx < w.w))
            taken = image[:, y.clip(0, w.h - 1)][:, :, xx.clip(0, w.w - 1)]
            columns.append(np.where(inside[..., None], taken, x.dtype.type(w.fill)).reshape(p.m, c))
    return np.concatenate(columns, 1)
