"""Tiles of a group's pruned weights, and what a launch that follows them costs.

A tile is cut into chunks of bn columns, each a block for some rows of C. A cost is that of a dense product that is like the tiles: as many batches as
there are tiles, as wide as one, k what they keep on average. Tiles that keep nothing are a step long there, which is more than they take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from knapper.isa.machine import Machine

from ....ir import Array
from ....sparsity.tilewise import Tile, split, tiles
from ...generator import Group
from .. import evaluate
from ..product import Axis, Product
from .tables import Chunk

ENCODINGS = frozenset({"tw", "tew", "tvw"})


@dataclass(frozen=True)
class Part:
    """A tile's rows and weights in the order of the chain, and the batch indices that it is for."""

    batch: tuple[int, ...]
    rows: Array
    columns: Array
    weights: Array
    """[rows, columns]"""


class Pruned:
    """The tiles of a group's weights."""

    def __init__(self, p: Product, width: int, parts: list[Part]) -> None:
        self.p, self.width, self.parts = p, width, parts
        self.made: dict[int, list[Chunk]] = {}

    def chunks(self, bn: int) -> list[Chunk]:
        """What blocks compute."""
        if bn not in self.made:
            self.made[bn] = [
                Chunk(part.batch, part.rows, columns, part.weights[:, at])
                for part in self.parts
                for at, columns in ((at, part.columns[at]) for at in _slices(len(part.columns), bn))
            ]
        return self.made[bn]

    def tiles(self, bn: int) -> int:
        """How many there are, batch indices counted."""
        return sum(len(c.batch) for c in self.chunks(bn))

    @property
    def product(self) -> Product:
        """A product like all of them, for the choice of tiles."""
        return self._like(self.parts)

    def _like(self, parts: list[Part]) -> Product:
        count = sum(len(x.batch) for x in parts)
        kept = sum(len(x.rows) * len(x.columns) * len(x.batch) for x in parts)
        wide = sum(len(x.columns) * len(x.batch) for x in parts)
        a = max((axis.a for axis in self.p.axes), default=0)
        width = min(self.width, max(len(x.columns) for x in parts))
        k, axes = max(-(-kept // wide), 1), (Axis(count, a, 0, 0),)
        return replace(self.p, n=width, k=k, axes=axes, listed=min(k / self.p.k, 1.0))

    def cycles(self, t: Any, machine: Machine, dense: Callable[[Product], float]) -> float:
        """Of a launch, `dense` being what a product of this kind costs."""
        full, empty = (
            [x for x in self.parts if (len(x.rows) > 0) is some] for some in (True, False)
        )
        found = dense(self._like(full)) if full else float(machine.launch_cycles)
        if empty:
            found += dense(replace(self._like(empty), k=t.bk, listed=1.0)) - machine.launch_cycles
        return found


def _slices(length: int, bn: int) -> list[slice]:
    return [slice(i, i + bn) for i in range(0, length, bn)]


def listed(p: Product) -> Product:
    """The product, its k listed: all of it, so far."""
    return replace(p, listed=1.0)


def of(group: Group, p: Product) -> Pruned | None:
    """The tiles of the group's weights, if their type says that there are any."""
    if "tilewise" not in group.found:
        group.found["tilewise"] = _found(group, p)
    known: Pruned | None = group.found["tilewise"]
    return known


def chunks(group: Group, p: Product, bn: int) -> list[Chunk]:
    """What blocks compute of a group that has tiles."""
    pruned = of(group, p)
    assert pruned is not None
    return pruned.chunks(bn)


def _found(group: Group, p: Product) -> Pruned | None:
    encoding = p.b_type.encoding
    known = p.b in group.constants and (p.window is not None or all(x.b == 0 for x in p.axes))
    if encoding is None or encoding.name not in ENCODINGS or not known or p.k > 0x7FFF:
        return None
    width, w, every = int(encoding["tile"]), group.constants[p.b], tuple(range(p.batch))
    batches = [(z,) for z in every] if p.window is not None else [every]
    parts = [
        part
        for batch in batches
        for part in _parts(evaluate.right(p, w, batch[0]), width, encoding.name, batch)
    ]
    return Pruned(p, width, parts)


def _parts(matrix: Array, width: int, name: str, batch: tuple[int, ...]) -> list[Part]:
    """The tiles of one matrix [k, n]. A residue adds rows to its tiles, in their place among them: the chain is that of the dense product."""
    own = split(matrix, width)[0] if name == "tew" else matrix
    return [_part(t, matrix, batch) for t in tiles(own, width)]


def _part(t: Tile, matrix: Array, batch: tuple[int, ...]) -> Part:
    rows = np.flatnonzero((matrix[:, t.columns] != 0).any(axis=1))
    return Part(batch, rows, t.columns, matrix[np.ix_(rows, t.columns)])
