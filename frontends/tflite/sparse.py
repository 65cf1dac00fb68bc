"""Sparse tensors of TFLite as dense ones.

A tensor is walked in `traversalOrder`, one level an axis, and axes that are cut into blocks have a level more, inside. A dense level has all its
`denseSize` places; a sparse one those in `arrayIndices`, of which a parent p has segments[p] to segments[p+1]:

    weights [4,2], order (0,1)      level 0 dense, 4 rows
      0 5                           level 1 sparse     segments 0 1 1 3 3    a row's part of ...
      0 0                                              indices  1 0 1        ... the columns that are stored
      7 2
      0 0                           values 5 7 2
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from knapper.compiler.ir import Array

SPARSE = 1
"""DimensionType.SPARSE_CSR."""


def dense(values: Array, shape: Sequence[int], sparsity: Any) -> Array:
    """All elements of a sparse tensor, flat. ValueError or IndexError if its parts do not fit."""
    order = [int(a) for a in sparsity.traversalOrder]
    blocks = sparsity.blockMap
    blocked = [] if blocks is None else [int(a) for a in blocks]
    levels = sparsity.dimMetadata
    rank = len(shape)
    if sorted(order) != list(range(rank + len(blocked))) or len(levels) != len(order):
        raise ValueError("levels that are not the tensor's")
    if prod(shape) > max(1 << 31, values.size):
        raise ValueError("a sparse tensor of more than 2^31 elements")
    at = {axis: np.zeros(1, np.int64) for axis in order}
    for axis, level in zip(order, levels, strict=True):
        parents = len(at[axis])
        count, places = _level(level, parents, prod(shape))
        at = {a: np.repeat(p, count) for a, p in at.items()}
        at[axis] = places
    for i, axis in enumerate(blocked):
        size = int(levels[order.index(rank + i)].denseSize)
        at[axis] = at[axis] * size + at[rank + i]
    where = np.ravel_multi_index([at[a] for a in range(rank)], tuple(shape))
    if len(where) > values.size:
        raise ValueError("fewer values than places")
    found = np.zeros(prod(shape), values.dtype)
    found[where] = values[: len(where)]
    return found


def _level(level: Any, parents: int, most: int) -> tuple[Array, Array]:
    """(how many places each parent has, all places)"""
    if level.format != SPARSE:
        size = int(level.denseSize)
        if not 0 <= parents * size <= most:
            raise ValueError("a level of more places than the tensor has")
        return np.full(parents, size), np.tile(np.arange(size), parents)
    segments = np.asarray(level.arraySegments.values, np.int64)
    places = np.asarray(level.arrayIndices.values, np.int64)
    count = np.diff(segments)
    if len(count) != parents or (count < 0).any() or count.sum() != len(places):
        raise ValueError("segments that are not those of the level before")
    return count, places
