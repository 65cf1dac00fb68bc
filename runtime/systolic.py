"""Systolic commands in the reference engine: queues of warps, the arrays of a block, and every hazard that there is.

A command is checked when it is sent (alignment, bounds, races), then waits in its warp's queue. When `SMA.WAIT` or `MODE` completes its
group it is executed, and reads its operands as they are then; until then what it will write and read is claimed:

    registers of C      nobody but another LSMA of the warp may touch them
    accumulators of C   no ACC.LD or ACC.ST may touch them
    A and B             nobody may write there
    what a copy writes  nobody may read or write there, nor send a command that will

Weights are claimed by warps in turn. Since groups of different warps come in no known order, a group that uses weights which it did
not bring itself clashes with every other warp's load in the same stretch between barriers: it is a race, and found like one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa import gather
from knapper.isa.core import Instr
from knapper.isa.dma import LINE
from knapper.isa.instructions import (
    DMA_LD,
    FILL_DUP,
    GATHK_PUSH,
    IM2COL_PUSH,
    LSMA,
    SMA_LDB,
    SMA_SWAP,
)
from knapper.isa.lanes import LANES
from knapper.isa.modifiers import Space, Start
from knapper.isa.systolic import QUEUE, WORD, multiplied, words
from knapper.isa.vector_memory import DESCRIPTORS, Broken, ConvDesc

from .arrays import Arrays
from .commands import Brought, extent, in_bounds, same_kind
from .faults import READS, TOLD, WRITES, Kind, Trap, access
from .vector_memory import (
    NOTHING,
    Fetch,
    Fill,
    Gathered,
    Pieces,
    Push,
    Tile,
    aligned,
    lines,
    refuse,
)

if TYPE_CHECKING:
    from .reference import Block, RefWarp


@dataclass(frozen=True)
class Sent:
    """A command in a queue: `address` is its first row's in shared memory, `c` where C begins (a register, or an accumulator)."""

    instr: Instr
    address: int = 0
    c: int = 0
    what: Fill | Push | Gathered | None = None
    """Of a command that uses a descriptor."""
    source: int = 0
    size: int = 0
    """Of a DMA.LD."""

    @property
    def rows(self) -> int:
        """Of C."""
        return self.what.rows if isinstance(self.what, (Push, Gathered)) else int(self.instr.m)  # type: ignore[attr-defined]  # a product


def in_memory(i: Instr) -> bool:
    """Whether C lies in accumulator memory."""
    return isinstance(i, IM2COL_PUSH) or (isinstance(i, LSMA) and i.space is Space.ACC)


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

    def count(self, **amounts: int) -> None:
        """Add to counters of the instruction that runs."""
        for column, amount in amounts.items():
            self.warp.context.counts[self.warp.pc][column] += amount

    def time(self, **amounts: int) -> None:
        """Likewise to those that only timing needs."""
        if self.warp.context.timing:
            self.count(**amounts)

    def send(self, instr: Instr, address: int = 0, c: int = 0) -> None:
        """SMA.LDB, SMA.SWAP, LSMA."""
        self.join()
        sent = Sent(instr, address, c)
        if not isinstance(instr, SMA_SWAP):
            rows, size = extent(instr, self.arrays.shape)
            in_bounds(address, rows, int(instr.pitch), size, len(self.block.shared))  # type: ignore[attr-defined]  # it has rows
            self.visit(READS, *self.reads(sent))
            self.count(smem_read=rows * size)
            self.time(vector_reads=self.accesses(rows * size))
        self.take(sent)

    def accesses(self, size: int) -> int:
        """Words of vector memory that so many bytes take at least."""
        word = 2 * self.arrays.shape.rows * self.arrays.shape.word
        return -(-size // word) if word else 0

    def fill(self, instr: FILL_DUP, first: int, rows: int) -> None:
        """FILL.DUP."""
        self.join()
        fill = Fill(self.use(instr), first, rows)
        fill.check()
        fetch = self.fetch(fill)
        fetch.check()
        self.visit(WRITES, fill.pieces)
        self.written(fill.pieces.index.size, fill.writes, fetch)
        self.take(Sent(instr, what=fill))

    def copy(self, instr: DMA_LD, target: int, source: int, size: int) -> None:
        """DMA.LD."""
        self.join()
        aligned(target, source, size)
        pieces = Pieces(lines(target, size), LINE)
        if (outside := pieces.starts > len(self.block.shared) - LINE).any():
            aux = access("shared", LINE, WRITES)
            raise Trap(Kind.OUTSIDE, value=int(pieces.starts[outside][0]), aux=aux)
        sent = Sent(instr, target, source=source, size=size)
        fetch = self.lines(sent)
        fetch.check()
        self.visit(WRITES, pieces)
        self.written(size, self.accesses(size), fetch)
        self.take(sent)

    def push(self, instr: IM2COL_PUSH, c: int, tap: int, first: int, rows: int) -> None:
        """IM2COL.PUSH."""
        self.join()
        if isinstance(instr, GATHK_PUSH):
            self.gather(instr, c, tap, first, rows)
            return
        push = Push(self.use(instr), tap, first, rows)
        bytes_ = instr.type.lane.bits // 8
        push.check(bytes_)
        self.visit(READS, push.pieces)
        self.count(smem_read=rows * self.arrays.shape.rows * bytes_)
        self.time(vector_reads=len(push.pieces.starts) * bytes_ // 2, rows=rows)
        self.take(Sent(instr, c=c, what=push))

    def gather(self, instr: GATHK_PUSH, c: int, which: int, first: int, rows: int) -> None:
        """GATHK.PUSH."""
        conv, (td, begin) = self.use(instr), divmod(which, 1 << 16)
        refuse(td >= DESCRIPTORS, Broken.KEPT, which)
        tile = self.arrays.descriptors.use(DESCRIPTORS + td, self.warp.number)
        assert isinstance(tile, Tile)
        refuse(begin > tile.kept, Broken.KEPT, which)
        Push(conv, 0, first, rows).check(bytes_ := instr.type.lane.bits // 8)
        steps, size = min(tile.kept - begin, self.arrays.shape.rows), gather.ENTRY.itemsize
        listed = Pieces(tile.at + size * (begin + np.arange(steps, dtype=np.int64)), size)
        self.visit(READS, listed)
        kept = self.shared_bytes(READS, listed).view(gather.ENTRY).ravel()
        rows_of_b = [int(x) + begin + j for j, x in enumerate(kept)]
        for row in rows_of_b:
            refuse(row >= conv.r * conv.s * conv.channels, Broken.ENTRY, row)
        what = Gathered(conv, listed, tuple(rows_of_b), first, rows)
        self.visit(READS, *what.pieces)
        self.count(smem_read=(rows * bytes_ + size) * steps)
        self.time(vector_reads=what.accesses * bytes_ // 2, rows=rows)
        self.take(Sent(instr, c=c, what=what, address=DESCRIPTORS + td))

    def use(self, instr: FILL_DUP | IM2COL_PUSH) -> ConvDesc:
        """The descriptor of a convolution that a command names."""
        conv = self.arrays.descriptors.use(int(instr.cd), self.warp.number)
        assert isinstance(conv, ConvDesc)
        return conv

    def describe_tile(self, number: int, words: list[int]) -> None:
        """TWDESC."""
        self.whole()
        self.arrays.descriptors.change_tile(number, words, self.warp.number)

    def describe(self, number: int, words: list[int]) -> None:
        """CONVDESC."""
        self.whole()
        self.arrays.descriptors.change(number, words, self.warp.number)

    def fetch(self, fill: Fill) -> Fetch:
        """The pixels that a fill fetches."""
        return Fetch(self.warp, fill.pixels, fill.conv.channels * fill.conv.bytes)

    def lines(self, sent: Sent) -> Fetch:
        """The lines that a DMA.LD fetches."""
        return Fetch(self.warp, lines(sent.source, sent.size), LINE)

    def written(self, size: int, accesses: int, fetch: Fetch) -> None:
        """Count what a copy will do."""
        self.count(smem_write=size)
        self.time(vector_writes=accesses)
        fetch.count()

    def take(self, sent: Sent) -> None:
        """A command that nothing is wrong with."""
        self.sums_inside(sent)
        self.open.append(sent)
        self.claim(sent, 1)

    def visit(self, use: int, *pieces: Pieces) -> None:
        """Races on what a command will read or write, and other commands' claims."""
        for some in pieces:
            self.race(some, use)
        for claims, claim in self.arrays.rivals(use):
            for some in pieces:
                if (bad := claims[some.index].any(axis=1)).any():
                    aux = access("shared", some.size, use, claim)
                    raise Trap(Kind.ASYNC_MEMORY, value=int(some.starts[bad][0]), aux=aux)

    def race(self, pieces: Pieces, use: int) -> None:
        index = pieces.index
        self.warp.races(index, np.zeros(len(index), np.intp), use)

    def reads(self, sent: Sent) -> list[Pieces]:
        """What a command reads from shared memory."""
        if isinstance(sent.what, Push):
            return [sent.what.pieces]
        if isinstance(sent.what, Gathered):
            return sent.what.pieces
        if not isinstance(sent.instr, (SMA_LDB, LSMA)):
            return []
        rows, size = extent(sent.instr, self.arrays.shape)
        return [Pieces(sent.address + np.arange(rows) * int(sent.instr.pitch), size)]

    def writes(self, sent: Sent) -> Pieces:
        """What it writes there."""
        if isinstance(sent.what, Fill):
            return sent.what.pieces
        if isinstance(sent.instr, DMA_LD):
            return Pieces(lines(sent.address, sent.size), LINE)
        return NOTHING

    def sums_inside(self, sent: Sent) -> None:
        i = sent.instr
        if isinstance(i, (LSMA, IM2COL_PUSH)) and in_memory(i):
            rows, columns = self.shape_of(sent)
            size, limit = WORD * rows * columns, len(self.arrays.sums)
            if WORD * sent.c + size > limit:
                aux = access("accumulator", min(size, TOLD), WRITES)
                raise Trap(Kind.OUTSIDE, value=WORD * sent.c, aux=aux)

    def shape_of(self, sent: Sent) -> tuple[int, int]:
        """Rows and columns of C."""
        i: Any = sent.instr
        return sent.rows, int(i.units) * self.arrays.shape.columns_of(i.type.across)

    def claim(self, sent: Sent, n: int) -> None:
        """What a command reads and writes is claimed once more, or once less."""
        i, arrays = sent.instr, self.arrays
        for pieces in self.reads(sent):
            np.add.at(arrays.claims, pieces.index, n)
        np.add.at(arrays.filled, self.writes(sent).index, n)
        if isinstance(i, (FILL_DUP, IM2COL_PUSH)):
            arrays.descriptors.all[int(i.cd)].pending += n
        if isinstance(i, GATHK_PUSH):
            arrays.descriptors.all[sent.address].pending += n
        if isinstance(i, (LSMA, IM2COL_PUSH)):
            rows, columns = self.shape_of(sent)
            if in_memory(i):
                arrays.sums[WORD * sent.c :][: WORD * rows * columns] += n
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
            if isinstance(i, (FILL_DUP, DMA_LD)):
                self.store(sent)
                continue
            if isinstance(i, (LSMA, IM2COL_PUSH)):
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

    def store(self, sent: Sent) -> None:
        """FILL.DUP or DMA.LD."""
        pieces, fill = self.writes(sent), sent.what
        self.race(pieces, WRITES)
        data = (self.fetch(fill) if isinstance(fill, Fill) else self.lines(sent)).read()
        self.block.shared[pieces.index] = fill.stored(data) if isinstance(fill, Fill) else data
        self.block.written[pieces.index] = True

    def shared_bytes(self, use: int, pieces: Pieces) -> NDArray[np.uint8]:
        """What pieces hold, [pieces, bytes]."""
        data: NDArray[np.uint8] = self.block.shared[self.readable(use, pieces)]
        return np.ascontiguousarray(data)

    def readable(self, use: int, *pieces: Pieces) -> Any:
        """Races, and whether it was written; the addresses of the first pieces' bytes."""
        for some in pieces:
            self.race(some, use)
        for some in pieces:
            missing = ~self.block.written[some.index].all(axis=1)
            if missing.any():
                aux = access("shared", some.size, READS)
                raise Trap(Kind.UNWRITTEN_MEMORY, value=int(some.starts[missing][0]), aux=aux)
        return pieces[0].index

    def operand(self, sent: Sent, dtype: Any) -> NDArray[Any]:
        """A command's rows as elements, [rows, elements]."""
        index = self.readable(READS, *self.reads(sent))
        if isinstance(sent.what, (Push, Gathered)):
            places, bytes_ = sent.what.elements, sent.what.conv.bytes
            rows, steps = places.shape
            index = (places[:, :, None] + np.arange(bytes_)).reshape(rows, steps * bytes_)
        elements: NDArray[Any] = np.ascontiguousarray(self.block.shared[index]).view(dtype)
        return elements

    def load(self, sent: Sent, i: SMA_LDB) -> None:
        columns = self.arrays.shape.columns_of(i.type.across)
        b = words(self.operand(sent, i.type.lane.dtype), i.type)
        for u in range(int(i.units)):
            shadow = 1 - self.arrays.active[u]
            self.arrays.weights[shadow, u, :, :columns] = b[:, columns * u :][:, :columns]
            self.arrays.loaded[shadow, u] = True
            self.arrays.kinds[shadow, u] = i.type.kind

    def multiply(self, sent: Sent, i: LSMA | IM2COL_PUSH) -> None:
        rows, columns = self.shape_of(sent)
        w = np.concatenate([*self.weights(i)], axis=1)
        same_kind(self.arrays.kinds, self.arrays.active, i)
        a = words(self.operand(sent, i.type.lane.dtype), i.type)
        c = np.zeros((rows, columns), np.uint32)
        if i.start is Start.ADD:
            c = self.sums(sent, rows * columns).reshape(rows, columns)
        self.put(sent, multiplied(a, w[: a.shape[1]], c, i.type).ravel())

    def weights(self, i: LSMA | IM2COL_PUSH) -> Iterator[NDArray[np.uint32]]:
        """Each unit's active weights, [rows, columns]."""
        for u in range(int(i.units)):
            active = self.arrays.active[u]
            if not self.arrays.loaded[active, u]:
                raise Trap(Kind.UNWRITTEN_WEIGHTS, value=u)
            yield self.arrays.weights[active, u, :, : self.arrays.shape.columns_of(i.type.across)]

    def sums(self, sent: Sent, words: int) -> NDArray[np.uint32]:
        """C as it is."""
        if in_memory(sent.instr):
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

    def put(self, sent: Sent, words: NDArray[np.uint32]) -> None:
        """C as it becomes."""
        if in_memory(sent.instr):
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
