"""Device memory on the host: one array from `BASE` on, weights first, then the arena."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from knapper.isa.errors import MachineFault
from knapper.isa.program import BASE, Port, Program

Array = NDArray[Any]
SECTOR = 32
"""Bytes of a DRAM sector: the unit that memory moves."""
LINE = 64
"""Alignment of host buffers: a cache line, and the widest vector."""
DTYPES: dict[str, Any] = {
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64,
    "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "bool": np.bool_,
}  # fmt: skip


def aligned(count: int, dtype: Any = np.uint8) -> Array:
    """Zeros that start at a multiple of `LINE`, with a line to spare behind them."""
    size = count * np.dtype(dtype).itemsize
    raw = np.zeros(size + 2 * LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size].view(dtype)


def require(size: int, what: str) -> None:
    """MachineFault E612 if this computer has no `size` bytes of memory, asked before anything is allocated."""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > have:
        raise MachineFault("E612", f"{what} takes {size:,} bytes, this computer has {have:,}")


class Memory:
    """Global memory of a program: `data[address - BASE]`, writable from `BASE + writable` on.

    `kept` are the places of the program's states, which `clear` leaves alone. `written` marks the bytes that hold something
    (weights, inputs, states, what kernels stored): reading another is a fault in the checked engines.
    """

    def __init__(self, program: Program) -> None:
        kept = {past for past, _ in program.state}
        self.constant, self.inputs = len(program.rodata), program.inputs
        self.kept = tuple(port for port in program.inputs if port.name in kept)
        self.writable = program.arena_address - BASE
        size = self.writable + program.arena_bytes
        require(2 * size + 2 * size // SECTOR, f"emulating the network's {size:,} bytes of memory")
        try:
            self.data = aligned(size)
        except MemoryError:  # there is as much, but not for this process
            raise MachineFault("E612", f"{size:,} bytes of memory are not to be had") from None
        self.data[: len(program.rodata)] = np.frombuffer(program.rodata, np.uint8)

    @cached_property
    def written(self) -> NDArray[np.bool_]:
        """A flag a byte. It is made for the first launch of a checked run: then there are weights, inputs and states."""
        flags = np.zeros(len(self.data), np.bool_)
        flags[: self.constant] = True
        for port in self.inputs:
            flags[self._bytes(port)] = True
        return flags

    def _mark(self, where: slice, holds: bool) -> None:
        if "written" in self.__dict__:
            self.written[where] = holds

    def clear(self) -> None:
        """Forget what an earlier run left in the arena, but for the states."""
        at = self.writable
        for keep in sorted(map(self._bytes, self.kept), key=lambda s: s.start):
            self._forget(slice(at, keep.start))
            at = keep.stop
        self._forget(slice(at, len(self.data)))

    def reset(self) -> None:
        """Make the states zero, as they are at the beginning."""
        for where in map(self._bytes, self.kept):
            self.data[where] = 0

    def _forget(self, where: slice) -> None:
        self.data[where] = 0
        self._mark(where, False)

    def _bytes(self, port: Port) -> slice:
        start = port.address - BASE
        return slice(start, start + port.count * np.dtype(DTYPES[port.dtype]).itemsize)

    def put(self, port: Port, value: Array) -> None:
        """Copy an input of the port's shape and dtype to its place."""
        where = self._bytes(port)
        self.data[where] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        self._mark(where, True)

    def get(self, port: Port) -> Array:
        """A copy of an output."""
        flat: Array = self.data[self._bytes(port)].copy().view(DTYPES[port.dtype])
        shaped: Array = flat.reshape(port.shape)
        return shaped
