"""Systolic commands in the reference engine: queues of warps, the arrays of a block, and every hazard that there is.

A command is checked when it is sent (alignment, bounds, races), then waits in its warp's queue. When `SMA.WAIT` or `MODE` completes its
group it is executed, and reads its operands as they are then; until then what it will write and read is claimed:

    registers of C      nobody but another LSMA of the warp may touch them
    accumulators of C   no ACC.LD or ACC.ST may touch them
    A and B             nobody may write there

Weights are claimed by warps in turn. Since groups of different warps come in no known order, a group that uses weights which it did
not bring itself clashes with every other warp's load in the same stretch between barriers: it is a race, and found like one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import Instr
from knapper.isa.instructions import LSMA, SMA_LDB, SMA_SWAP
from knapper.isa.lanes import LANES
from knapper.isa.modifiers import Space, Start
from knapper.isa.systolic import QUEUE, WORD, Array, chain

from .faults import READS, WRITES, Kind, Trap, access

if TYPE_CHECKING:
    from .reference import Block, RefWarp

Bytes = NDArray[np.int64]
NOBODY = -1


@dataclass(frozen=True)
class Sent:
    """A command in a queue: `address` is its first row's in shared memory, `c` where C begins (a register, or an accumulator)."""

    instr: Instr
    address: int
    c: int


@dataclass
class Arrays:
    """The systolic units of the SM that runs a block, and its accumulator memory."""

    shape: Array
    shared_bytes: int
    weights: NDArray[np.float32] = field(init=False)
    """[2, units, rows, columns]; `active` says which half each unit computes with."""

    def __post_init__(self) -> None:
        units, words = self.shape.units, self.shape.accumulators
        self.weights = np.zeros((2, units, self.shape.rows, self.shape.columns), np.float32)
        self.loaded = np.zeros((2, units), np.bool_)
        self.active = np.zeros(units, np.intp)
        self.accumulators = np.zeros(WORD * words, np.uint8)
        self.written = np.zeros(WORD * words, np.bool_)
        # how many pending commands claim a byte of shared memory, and one of the accumulators
        self.claims = np.zeros(self.shared_bytes, np.int64)
        self.sums = np.zeros(WORD * words, np.int64)
        self.owner = NOBODY
        self.meet()

    def meet(self) -> None:
        """A barrier: what warps did with weights before it is ordered."""
        self.loaders: set[int] = set()
        self.users: set[int] = set()

    def change(self, warp: int) -> None:
        """A warp loads or swaps weights."""
        self.clash(self.users - {warp})
        self.loaders.add(warp)
        self.owner = warp

    def use(self, warp: int) -> None:
        """A warp uses weights that are there from an earlier group."""
        self.clash(self.loaders - {warp} or {self.owner} - {warp, NOBODY})
        self.users.add(warp)

    @staticmethod
    def clash(others: set[int]) -> None:
        if others:
            raise Trap(Kind.ASYNC_WEIGHTS, aux=min(others))


def extent(i: Instr, shape: Array) -> tuple[int, int]:
    """Rows that a command reads from shared memory, and bytes of one."""
    assert isinstance(i, (SMA_LDB, LSMA))
    type = i.type.lane
    if isinstance(i, LSMA):
        return int(i.m), shape.rows * type.bits // 8
    return shape.rows, int(i.units) * shape.columns_of(type) * type.bits // 8


def in_bounds(address: int, rows: int, pitch: int, size: int, limit: int) -> None:
    """Trap if rows of `size` bytes do not begin at multiples of a word, or leave shared memory."""
    if (address | pitch) % WORD:
        raise Trap(Kind.MISALIGNED, value=address, aux=access("shared", WORD, READS))
    if (last := address + (rows - 1) * pitch) + size > limit:
        raise Trap(Kind.OUTSIDE, value=last, aux=access("shared", size, READS))


class Queue:
    """A warp's commands: groups that are pending, and the one that no COMMIT has closed."""

    def __init__(self, warp: RefWarp) -> None:
        self.warp = warp
        self.groups: deque[list[Sent]] = deque()
        self.open: list[Sent] = []
        self.registers = np.zeros(256, np.int64)
        """How many pending commands claim a register."""

    @property
    def block(self) -> Block:
        return self.warp.block

    @property
    def arrays(self) -> Arrays:
        return self.warp.block.arrays

    def join(self) -> None:
        """A command, or the end of a group, takes an entry."""
        self.whole()
        if sum(len(g) + 1 for g in self.groups) + len(self.open) == QUEUE:
            raise Trap(Kind.QUEUE_FULL, value=QUEUE)

    def send(self, instr: Instr, address: int = 0, c: int = 0) -> None:
        self.join()
        sent = Sent(instr, address, c)
        if not isinstance(instr, SMA_SWAP):
            self.visit(sent)
            rows = self.rows(sent)
            self.warp.context.counts[self.warp.pc]["smem_read"] += rows.size
        self.sums_inside(sent)
        self.open.append(sent)
        self.claim(sent, 1)

    def visit(self, sent: Sent) -> None:
        """The bounds of a command's rows, and races on them."""
        rows, size = extent(sent.instr, self.arrays.shape)
        in_bounds(sent.address, rows, int(sent.instr.pitch), size, len(self.block.shared))  # type: ignore[attr-defined]  # it has rows
        self.race(sent)

    def race(self, sent: Sent) -> None:
        rows = self.rows(sent)
        self.warp.races(rows, np.zeros(len(rows), np.intp), READS)

    def rows(self, sent: Sent) -> Bytes:
        """The addresses of the bytes that a command reads, [rows, bytes]."""
        rows, size = extent(sent.instr, self.arrays.shape)
        starts = sent.address + np.arange(rows) * int(sent.instr.pitch)  # type: ignore[attr-defined]  # it has rows
        index: Bytes = starts[:, None] + np.arange(size)
        return index

    def sums_inside(self, sent: Sent) -> None:
        i = sent.instr
        if isinstance(i, LSMA) and i.space is Space.ACC:
            size, limit = WORD * self.shape_of(i)[0] * self.shape_of(i)[1], len(self.arrays.sums)
            if WORD * sent.c + size > limit:
                aux = access("accumulator", size, WRITES)
                raise Trap(Kind.OUTSIDE, value=WORD * sent.c, aux=aux)

    def shape_of(self, i: LSMA) -> tuple[int, int]:
        """Rows and columns of C."""
        return int(i.m), int(i.units) * self.arrays.shape.columns_of(i.type.lane)

    def claim(self, sent: Sent, n: int) -> None:
        """What a command reads and writes is claimed once more, or once less."""
        i = sent.instr
        if isinstance(i, (SMA_LDB, LSMA)):
            np.add.at(self.arrays.claims, self.rows(sent), n)
        if isinstance(i, LSMA):
            rows, columns = self.shape_of(i)
            if i.space is Space.ACC:
                self.arrays.sums[WORD * sent.c :][: WORD * rows * columns] += n
            elif sent.c != 255:
                self.registers[sent.c :][: -(-rows * columns // LANES)] += n

    def commit(self) -> None:
        self.join()
        self.groups.append(self.open)
        self.open = []

    def whole(self) -> None:
        """A command is the whole warp's."""
        if not self.warp.mask.all():
            raise Trap(Kind.COMMAND_SPLIT, lane=int(np.flatnonzero(~self.warp.mask)[0]))

    def wait(self, n: int) -> None:
        """SMA.WAIT."""
        self.whole()
        self.drain(n)

    def drain(self, n: int) -> None:
        """Execute all groups but the newest n."""
        self.closed()
        while len(self.groups) > n:
            self.execute(self.groups.popleft())

    def closed(self) -> None:
        if self.open:
            raise Trap(Kind.ASYNC_OPEN, value=len(self.open))

    def leave(self) -> None:
        """The warp ends."""
        self.closed()
        if self.groups:
            raise Trap(Kind.ASYNC_EXIT, value=len(self.groups))

    # --- what a group does

    def execute(self, group: list[Sent]) -> None:
        brought = Brought.none(self.arrays.shape.units)
        for sent in group:
            self.claim(sent, -1)
            i = sent.instr
            if isinstance(i, LSMA):
                if not brought.active[: int(i.units)].all():
                    self.arrays.use(self.warp.number)
                self.multiply(sent, i)
                continue
            self.arrays.change(self.warp.number)
            if isinstance(i, SMA_LDB):
                self.load(sent, i)
                brought.load(int(i.units))
            elif isinstance(i, SMA_SWAP):
                self.arrays.active[: int(i.units)] ^= 1
                brought.swap(int(i.units))

    def operand(self, sent: Sent, dtype: Any) -> NDArray[Any]:
        """A command's rows as elements, [rows, elements]."""
        self.race(sent)
        index = self.rows(sent)
        missing = ~self.block.written[index].all(axis=1)
        if missing.any():
            aux = access("shared", index.shape[1], READS)
            raise Trap(Kind.UNWRITTEN_MEMORY, value=int(index[missing][0, 0]), aux=aux)
        elements: NDArray[Any] = np.ascontiguousarray(self.block.shared[index]).view(dtype)
        return elements

    def load(self, sent: Sent, i: SMA_LDB) -> None:
        columns = self.arrays.shape.columns_of(i.type.lane)
        b = self.operand(sent, i.type.lane.dtype).astype(np.float32)
        for u in range(int(i.units)):
            shadow = 1 - self.arrays.active[u]
            self.arrays.weights[shadow, u, :, :columns] = b[:, columns * u :][:, :columns]
            self.arrays.loaded[shadow, u] = True

    def multiply(self, sent: Sent, i: LSMA) -> None:
        rows, columns = self.shape_of(i)
        w = np.concatenate([*self.weights(i)], axis=1)
        a = self.operand(sent, i.type.lane.dtype)
        c = np.zeros((rows, columns), np.float32)
        if i.start is Start.ADD:
            c = self.sums(sent, i, rows * columns).view(np.float32).reshape(rows, columns)
        self.put(sent, i, chain(a, w, c).view(np.uint32).ravel())

    def weights(self, i: LSMA) -> Iterator[NDArray[np.float32]]:
        """Each unit's active weights, [rows, columns]."""
        for u in range(int(i.units)):
            active = self.arrays.active[u]
            if not self.arrays.loaded[active, u]:
                raise Trap(Kind.UNWRITTEN_WEIGHTS, value=u)
            yield self.arrays.weights[active, u, :, : self.arrays.shape.columns_of(i.type.lane)]

    def sums(self, sent: Sent, i: LSMA, words: int) -> NDArray[np.uint32]:
        """C as it is."""
        if i.space is Space.ACC:
            where = slice(WORD * sent.c, WORD * (sent.c + words))
            if not self.arrays.written[where].all():
                first = int(np.flatnonzero(~self.arrays.written[where])[0]) // WORD * WORD
                aux = access("accumulator", WORD, READS)
                raise Trap(Kind.UNWRITTEN_MEMORY, value=WORD * sent.c + first, aux=aux)
            return self.arrays.accumulators[where].view(np.uint32)
        if sent.c == 255:
            return np.zeros(words, np.uint32)
        missing = ~self.warp.has_reg[sent.c :].ravel()[:words]
        if missing.any():
            register, lane = divmod(int(np.flatnonzero(missing)[0]), LANES)
            raise Trap(Kind.UNWRITTEN_REGISTER, lane, sent.c + register)
        return self.warp.regs[sent.c :].ravel()[:words]

    def put(self, sent: Sent, i: LSMA, words: NDArray[np.uint32]) -> None:
        """C as it becomes."""
        if i.space is Space.ACC:
            where = slice(WORD * sent.c, WORD * (sent.c + len(words)))
            self.arrays.accumulators[where] = words.view(np.uint8)
            self.arrays.written[where] = True
        elif sent.c != 255:
            self.warp.regs[sent.c :].reshape(-1)[: len(words)] = words
            self.warp.has_reg[sent.c :].reshape(-1)[: len(words)] = True

    # --- others who touch what is claimed

    def touch(self, register: int, use: int) -> None:
        """The warp reads or writes a register."""
        if self.registers[register]:
            raise Trap(Kind.ASYNC_REGISTER, value=int(register), aux=use)


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
