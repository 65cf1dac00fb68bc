"""Memory as the reference engine has it: every access is checked, counted, and done byte by byte.

touch ── param         the launch's parameters, read-only
  ├───── local         a thread's own
  ├───── shared        a block's: races between warps
  ├───── accumulator   sums of systolic units
  └───── global        bounds, operands, requests of the coalescer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import Instr
from knapper.isa.instructions import LDSM
from knapper.isa.lanes import LANES, LaneType, Value, canonical
from knapper.isa.program import BASE, Kernel, Launch
from knapper.isa.sparse import Outer
from knapper.isa.systolic import ARRAY, Array

from .arrays import Arrays
from .counters import NO_GAPS, local_sectors, requests, wavefronts
from .faults import READS, WRITES, Kind, Trap, access, race
from .memory import SECTOR, Memory

Mask = NDArray[np.bool_]
LANE = np.arange(LANES, dtype=np.uint32)
NONE = np.zeros(LANES, np.bool_)
ALL = np.ones(LANES, np.bool_)


@dataclass
class Context:
    """What all blocks of a launch share."""

    kernel: Kernel
    launch: Launch
    memory: Memory
    counts: NDArray[Any]
    limit: int
    timing: bool = False
    """Whether to record what timing needs."""
    array: Array = ARRAY
    """The machine's systolic units."""
    window: int = 0
    """Of the collector before the accumulation buffer."""
    gaps: NDArray[np.uint64] = field(default_factory=NO_GAPS.copy)
    """As in `Counts`, for all blocks."""
    readers: dict[int, int] = field(default_factory=dict)
    """Which block read a sector last."""
    code: tuple[Instr, ...] = ()
    touched: tuple[Mask, Mask] = (NONE, NONE)
    """Which sectors of global memory were read, and written."""
    allowed: tuple[Mask, Mask] | None = None
    """Which bytes the launch declares to read, and to write; None: it declares nothing."""

    def __post_init__(self) -> None:
        size = len(self.memory.data)
        self.code = self.kernel.code
        self.touched = (
            np.zeros(-(-size // SECTOR), np.bool_),
            np.zeros(-(-size // SECTOR), np.bool_),
        )
        self.gaps = np.zeros(prod(self.launch.grid), np.uint64)
        if self.launch.operands:
            self.allowed = (np.zeros(size, np.bool_), np.zeros(size, np.bool_))
            for operand in self.launch.operands:
                where = slice(operand.address - BASE, operand.address - BASE + operand.bytes)
                for use, bytes_ in zip("rw", self.allowed, strict=True):
                    bytes_[where] |= use in operand.use


class Shared:
    """Shared memory, and who touched which byte of it since the last barrier."""

    def __init__(self, context: Context) -> None:
        kernel = context.kernel
        self.context = context
        self.shared = np.zeros(kernel.shared_bytes, np.uint8)
        self.written = np.zeros(kernel.shared_bytes, np.bool_)
        self.readers, self.writers = self.nobody(), self.nobody()
        self.arrays = Arrays(context.array, kernel.shared_bytes)
        self.sectors: set[int] = set()
        """Of global memory, that were read."""

    def forget(self) -> None:
        """A barrier: who touched what before it no longer matters."""
        self.readers, self.writers = self.nobody(), self.nobody()
        self.arrays.meet()

    def nobody(self) -> Mask:
        """A fresh map of warps and bytes: what nobody touches of it takes neither time nor memory. [warps, bytes]"""
        kernel = self.context.kernel
        return np.zeros((kernel.warps, kernel.shared_bytes), np.bool_)


class Spaces:
    """The loads and stores of a warp."""

    context: Context
    block: Shared
    number: int
    pc: int
    mask: Mask
    locals: NDArray[np.uint8]
    has_local: Mask
    """Which bytes of `locals`, [lanes, bytes], were written."""

    def load(
        self, space: str, address: Value, type: LaneType, words: int = 1, where: Value | None = None
    ) -> list[Value]:
        lanes = self.mask if where is None else self.mask & where
        lanes = ALL if space == "param" else lanes
        size = words * type.bits // 8
        raw = np.zeros((LANES, size), np.uint8)
        raw[lanes] = self.touch(space, address, size, lanes, READS)
        return list(np.ascontiguousarray(raw.view(type.dtype).T))

    def store(
        self, space: str, address: Value, values: list[Value], where: Value | None = None
    ) -> None:
        lanes = self.mask if where is None else self.mask & where
        columns = [canonical(v).view(np.uint8).reshape(LANES, -1) for v in values]
        raw = np.concatenate(columns, axis=1)
        self.touch(space, address, raw.shape[1], lanes, WRITES, raw[lanes])

    def touch(
        self,
        space: str,
        address: Value,
        size: int,
        lanes: Mask,
        use: int,
        values: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Read or write `size` bytes a lane: check, count, do. Gives the bytes read, [lanes, size]."""
        where = address.astype(np.int64)
        check(lanes & (where % size != 0), Kind.MISALIGNED, address, access(space, size, use))
        visit: Callable[..., NDArray[np.uint8]] = getattr(self, space)
        return visit(where[lanes], np.flatnonzero(lanes), size, use, values)

    def inside(
        self, where: NDArray[np.int64], lanes: NDArray[np.intp], limit: int, aux: int, base: int = 0
    ) -> NDArray[np.int64]:
        """The bytes of every lane, [lanes, size], if all lie in [base, limit)."""
        size = aux >> 8
        self.refuse((where < base) | (where > limit - size), lanes, Kind.OUTSIDE, where, aux)
        return (where - base)[:, None] + np.arange(size)

    def refuse(
        self, bad: Any, lanes: NDArray[np.intp], kind: Kind, where: NDArray[np.int64], aux: int
    ) -> None:
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise Trap(kind, int(lanes[i]), int(where[i]) & (1 << 64) - 1, aux)

    def param(self, where: Any, lanes: Any, size: int, use: int, values: Any) -> NDArray[np.uint8]:
        bank = np.array(self.context.launch.params, np.uint64).view(np.uint8)
        return bank[self.inside(where, lanes, len(bank), access("param", size, use))]

    def local(self, where: Any, lanes: Any, size: int, use: int, values: Any) -> NDArray[np.uint8]:
        aux = access("local", size, use)
        index = (lanes[:, None], self.inside(where, lanes, self.locals.shape[1], aux))
        self.context.counts[self.pc]["local"] += index[1].size
        if self.context.timing:
            self.context.counts[self.pc]["sectors"] += local_sectors(where, lanes, size)
        return self.transfer(self.locals, self.has_local, index, where, lanes, aux, values)

    def shared(self, where: Any, lanes: Any, size: int, use: int, values: Any) -> NDArray[np.uint8]:
        aux = access("shared", size, use)
        index = self.inside(where, lanes, len(self.block.shared), aux)
        self.context.counts[self.pc]["smem_read" if use == READS else "smem_write"] += index.size
        if self.context.timing:
            self.context.counts[self.pc]["wavefronts"] += self.passes(where, lanes, size)
        self.races(index, lanes, use)
        for claims, claim in self.block.arrays.rivals(use):
            told = access("shared", size, use, claim)
            self.unclaimed(claims[index], lanes, where, told)
        return self.transfer(
            self.block.shared, self.block.written, index, where, lanes, aux, values
        )

    def passes(self, where: NDArray[np.int64], lanes: NDArray[np.intp], size: int) -> int:
        """Wavefronts of a load or store. Those of LDSM are counted for the whole instruction; products of condensed vectors have none."""
        instr = self.context.code[self.pc]
        return 0 if isinstance(instr, (LDSM, Outer)) else wavefronts(where, lanes, size)

    def accumulator(
        self, where: Any, lanes: Any, size: int, use: int, values: Any
    ) -> NDArray[np.uint8]:
        arrays, aux = self.block.arrays, access("accumulator", size, use)
        index = self.inside(where, lanes, len(arrays.accumulators), aux)
        self.unclaimed(arrays.sums[index], lanes, where, aux)
        return self.transfer(arrays.accumulators, arrays.written, index, where, lanes, aux, values)

    def unclaimed(self, claims: Any, lanes: Any, where: Any, aux: int) -> None:
        """No pending command may use these bytes, [lanes, size]."""
        self.refuse(claims.any(axis=1), lanes, Kind.ASYNC_MEMORY, where, aux)

    def races(self, index: NDArray[np.int64], lanes: NDArray[np.intp], use: int) -> None:
        """A write after another warp's access, or a read after another warp's write: lane by lane, byte by byte."""
        block = self.block
        others = (np.arange(len(block.writers)) != self.number)[:, None, None]
        written, read = block.writers[:, index] & others, block.readers[:, index] & others
        clash = written | read if use == WRITES else written
        if clash.any():
            lane, byte = np.argwhere(clash.any(axis=0))[0]
            before = WRITES if written[:, lane, byte].any() else READS
            warp = lowest((written if before == WRITES else read)[:, lane, byte])
            raise Trap(Kind.RACE, int(lanes[lane]), int(index[lane, byte]), race(use, before, warp))
        (block.writers if use == WRITES else block.readers)[self.number, index] = True

    def global_(
        self, where: Any, lanes: Any, size: int, use: int, values: Any
    ) -> NDArray[np.uint8]:
        memory, context, aux = self.context.memory, self.context, access("global", size, use)
        index = self.inside(where, lanes, BASE + len(memory.data), aux, BASE)
        if use == WRITES:
            self.refuse(index[:, 0] < memory.writable, lanes, Kind.READ_ONLY, where, aux)
        if context.allowed is not None:
            self.refuse(
                ~context.allowed[use][index].all(axis=1), lanes, Kind.UNDECLARED, where, aux
            )
        sectors = index[:, 0] // SECTOR
        context.touched[use][sectors] = True
        sent, counts = requests(sectors), context.counts[self.pc]
        counts["l2_read" if use == READS else "l2_write"] += sent * SECTOR
        if context.timing:
            counts["sectors"] += sent
            self.block.sectors.update(sectors.tolist() if use == READS else ())
        return self.transfer(memory.data, memory.written, index, where, lanes, aux, values)

    def transfer(
        self,
        data: Any,
        written: Any,
        index: Any,
        where: Any,
        lanes: Any,
        aux: int,
        values: NDArray[np.uint8] | None,
    ) -> NDArray[np.uint8]:
        if values is None:
            self.refuse(~written[index].all(axis=1), lanes, Kind.UNWRITTEN_MEMORY, where, aux)
        else:
            data[index], written[index] = values, True
        read: NDArray[np.uint8] = data[index]
        return read


setattr(Spaces, "global", Spaces.global_)  # the space's name is a keyword


def lowest(lanes: Mask) -> int:
    """The number of the first lane."""
    return int(np.flatnonzero(lanes)[0])


def check(bad: Mask, kind: Kind, value: Value, aux: int) -> None:
    """Trap the lowest bad lane."""
    if bad.any():
        raise Trap(kind, lowest(bad), int(value[lowest(bad)]), aux)
