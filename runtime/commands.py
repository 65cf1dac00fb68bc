"""What systolic commands read from shared memory, and whose weights a group of them has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import Instr
from knapper.isa.instructions import LSMA, SMA_LDB
from knapper.isa.lanes import LaneType
from knapper.isa.systolic import WORD, Array

from .faults import KIND_BITS, READS, Kind, Trap, access


def extent(i: Instr, shape: Array) -> tuple[int, int]:
    """Rows that a command reads from shared memory, and bytes of one."""
    assert isinstance(i, (SMA_LDB, LSMA))
    type: LaneType = i.type.lane
    if isinstance(i, LSMA):
        return int(i.m), shape.rows * type.bits // 8
    return shape.rows, int(i.units) * shape.columns_of(type) * type.bits // 8


def in_bounds(address: int, rows: int, pitch: int, size: int, limit: int) -> None:
    """Trap if rows of `size` bytes do not begin at multiples of a word, or leave shared memory."""
    if (address | pitch) % WORD:
        raise Trap(Kind.MISALIGNED, value=address, aux=access("shared", WORD, READS))
    if (last := address + (rows - 1) * pitch) + size > limit:
        raise Trap(Kind.OUTSIDE, value=last, aux=access("shared", size, READS))


def same_kind(kinds: NDArray[np.uint8], active: NDArray[np.intp], i: Any) -> None:
    """Trap unless a product's units hold weights of its kind. kinds: [2, units], what they hold."""
    for u in range(int(i.units)):
        if (held := int(kinds[active[u], u])) != i.type.kind:
            raise Trap(Kind.OTHER_WEIGHTS, value=u, aux=held << KIND_BITS | i.type.kind)


@dataclass
class Brought:
    """Which units' weights a group brought itself, so far."""

    active: NDArray[np.bool_]
    shadow: NDArray[np.bool_]

    @staticmethod
    def none(units: int) -> Brought:
        return Brought(np.zeros(units, np.bool_), np.zeros(units, np.bool_))

    def load(self, units: int) -> None:
        self.shadow[:units] = True

    def swap(self, units: int) -> None:
        kept = self.active[:units].copy()
        self.active[:units] = self.shadow[:units]
        self.shadow[:units] = kept
