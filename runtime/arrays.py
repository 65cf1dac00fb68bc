"""The systolic units of an SM while a block runs on it: weights, accumulator memory, and what pending commands claim of both memories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.systolic import WORD, Array

from .faults import READS, WRITES, Kind, Trap
from .vector_memory import (
    Descriptors,
)

NOBODY = -1


@dataclass
class Arrays:
    """The systolic units of the SM that runs a block, and its accumulator memory."""

    shape: Array
    shared_bytes: int
    weights: NDArray[np.uint32] = field(init=False)
    """[2, units, rows, 2 · columns, which nibbles fill], fp32 or two S16 each; `active` says which half each unit computes with."""

    def __post_init__(self) -> None:
        units, words = self.shape.units, self.shape.accumulators
        self.weights = np.zeros((2, units, self.shape.rows, 2 * self.shape.columns), np.uint32)
        self.loaded = np.zeros((2, units), np.bool_)
        self.kinds = np.zeros((2, units), np.uint8)  # of weights: FLOATS, BYTES, NIBBLES
        self.active = np.zeros(units, np.intp)
        self.accumulators = np.zeros(WORD * words, np.uint8)
        self.written = np.zeros(WORD * words, np.bool_)
        # how many pending commands will read a byte of shared memory, or write it, or sum up in one of the accumulators
        self.claims = np.zeros(self.shared_bytes, np.int16)
        self.filled = np.zeros(self.shared_bytes, np.int16)
        self.sums = np.zeros(WORD * words, np.int16)
        self.descriptors = Descriptors(self.shape, self.shared_bytes)
        self.owner = NOBODY
        self.meet()

    def meet(self) -> None:
        """A barrier: what warps did with weights before it is ordered."""
        self.loaders: set[int] = set()
        self.users: set[int] = set()
        self.descriptors.meet()

    def change(self, warp: int) -> None:
        """A warp loads or swaps weights."""
        self.clash(self.users - {warp})
        self.loaders.add(warp)
        self.owner = warp

    def use(self, warp: int) -> None:
        """A warp uses weights that are there from an earlier group."""
        self.clash(self.loaders - {warp} or {self.owner} - {warp, NOBODY})
        self.users.add(warp)

    def rivals(self, use: int) -> Iterator[tuple[NDArray[Any], int]]:
        """Claims that a use of shared memory clashes with, and what they are for."""
        yield self.filled, WRITES
        if use == WRITES:
            yield self.claims, READS

    @staticmethod
    def clash(others: set[int]) -> None:
        if others:
            raise Trap(Kind.ASYNC_WEIGHTS, aux=min(others))
