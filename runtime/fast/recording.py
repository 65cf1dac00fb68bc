"""What the fast engine records for timing, on Python's side.

Compiled code leaves the events of a block's warps in a buffer, hashes them when the block ends, and looks the hash up in its
thread's table. Python is asked only when it is not there: it copies the events, once a class and thread. So what is kept is small
however many blocks there are. Two paths of a launch with the same 64 bits would be taken for one; with a million classes that
has a chance of one in 30 million.

What blocks read first they log, and the logs are counted in launch order, whichever thread ran the blocks. So both engines, and any
number of threads, count the same.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from knapper.isa.program import BASE, Kernel

from ..counters import Counts
from ..memory import SECTOR, aligned, require
from ..paths import EVENT, Paths, Warps, share
from .accesses import ENTRY, WIDE
from .layout import CONTEXT
from .scratch import Scratch

STAMPS = (1 << 32) - 1
"""The highest number that the map can hold."""
LEAST = 4096
"""Entries that the log has beyond those."""
PER_BLOCK = 40
"""Bytes that numbering a block's class takes, about, for a while."""


TALLY = ctypes.CFUNCTYPE(
    ctypes.c_int32, *[ctypes.c_void_p] * 2, *[ctypes.c_uint64] * 2, ctypes.c_uint32
)


class Readers:
    """Which block read a sector last, in launch order. Blocks are numbered through all launches, so it is seldom cleared."""

    def __init__(self, memory: int, tally: Callable[..., int]) -> None:
        self.map = aligned(-(-memory // SECTOR) + WIDE, np.uint32)
        self.tally, self.next = tally, 1
        self.spare: list[NDArray[np.uint8]] = []
        """Logs that have been counted, to be written again."""
        self.place = (self.map.ctypes.data - BASE // SECTOR * 4) % (1 << 64)

    def launch(self, blocks: int) -> int:
        """The mark of a launch's first block."""
        if self.next + blocks > STAMPS:
            self.map[:], self.next = 0, 1
        self.next += blocks
        return self.next - blocks


class Log:
    """What the threads of a launch write together."""

    def __init__(self, blocks: int, readers: Readers) -> None:
        require(PER_BLOCK * blocks, f"recording the paths of {blocks:,} blocks")
        self.hashes = np.zeros(blocks, np.uint64)
        self.known: dict[int, Warps] = {}
        self.readers, self.base = readers, readers.launch(blocks)
        self.gaps = np.zeros(blocks, np.uint64)
        self.places = readers.place, self.gaps.ctypes.data
        self.waiting: dict[int, tuple[int, NDArray[np.uint8], int]] = {}
        self.next = 0
        """The first block whose reads are not counted yet."""
        self.lock = threading.Lock()

    def reads(self, first: int, end: int, log: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """What some blocks read first: `size` bytes of a log, for which another one is given.

        It is counted in launch order, so what comes early waits. Most of a log is never touched, and takes no memory.
        """
        spare = self.readers.spare
        with self.lock:
            self.waiting[first] = end, log, size
            while self.next in self.waiting:
                self.next, counted, size = self.waiting.pop(self.next)
                self.count(counted, size)
                spare.append(counted)
            return spare.pop() if spare else aligned(len(log))

    def count(self, log: NDArray[np.uint8], size: int) -> None:
        """Of the next blocks."""
        begin = log.ctypes.data
        self.readers.tally(*self.places, begin, begin + size, self.base)

    def told(self, counts: Counts) -> Counts:
        """What a launch did, when all blocks have ended."""
        there = self.gaps.nonzero()[0]
        gaps = self.gaps[: int(there[-1]) + 1 if len(there) else 0]
        read = SECTOR * int(self.gaps[0])
        return replace(counts, dram_read=read, gaps=gaps, paths=self.paths())

    def paths(self) -> Paths:
        """Likewise."""
        return Paths.of_hashes(self.hashes, self.known)


class Recorder:
    """A thread's part of it: made ready in the thread's state."""

    def __init__(self, log: Log, scratch: Scratch, kernel: Kernel, memory: int) -> None:
        self.log, self.scratch, self.warps = log, scratch, kernel.warps
        self.table = np.zeros(64, np.uint64)
        self.count = 0
        self.stride = (share(kernel.warps) + 1) * EVENT.itemsize
        s = scratch.state[0]
        s["timing"] = 1
        s["events"] = scratch.buffer("events", kernel.warps * self.stride)
        s["event_bytes"], s["hashes"] = self.stride, log.hashes.ctypes.data
        self.look_in(self.table)
        sectors = -(-memory // SECTOR) + 1
        self.stamps(sectors)
        self.entries(sectors)

    def entries(self, sectors: int) -> None:
        """The log: room for some blocks, of which each may read every sector."""
        self.room = ENTRY * (sectors + LEAST // 2)
        self.scratch.buffer("log", 2 * self.room)
        self.write_to(self.scratch.buffers["log"])

    def write_to(self, log: NDArray[np.uint8]) -> None:
        """Begin a log."""
        s, self.scratch.buffers["log"], self.start = self.scratch.state[0], log, log.ctypes.data
        s["log"], s["log_full"] = self.start, self.start + self.room

    @property
    def crowded(self) -> bool:
        """Whether the log may have no room for a block."""
        s = self.scratch.state[0]
        return bool(s["log"] > s["log_full"])

    def take(self, first: int, end: int) -> None:
        """Blocks have run: hand over what they read."""
        size = int(self.scratch.state[0]["log"]) - self.start
        self.write_to(self.log.reads(first, end, self.scratch.buffers["log"], size))

    def stamps(self, sectors: int) -> None:
        """The map of which block read a sector last. Blocks are numbered through all launches, so it is seldom cleared."""
        s = self.scratch.state[0]
        place = self.scratch.buffer("fetched", 4 * sectors)
        if int(s["stamp"]) + len(self.log.hashes) > STAMPS:
            self.scratch.buffers["fetched"][:], s["stamp"] = 0, 0
        s["fetched"] = (place - BASE // SECTOR * 4) % (1 << 64)

    def look_in(self, table: NDArray[np.uint64]) -> None:
        """Let compiled code use a table: open addressing, a power of two of slots, at most half of them taken."""
        self.table, s = table, self.scratch.state[0]
        s["known"], s["known_mask"] = table.ctypes.data, len(table) - 1

    def learn(self, block: int) -> None:
        """Note the path of the block that ended last."""
        hash = int(self.log.hashes[block])
        if hash not in self.log.known:  # another thread may have met it before
            self.log.known[hash] = self.events()
        self.count += 1
        if 2 * self.count > len(self.table):
            known = self.table[self.table != 0].tolist()
            self.look_in(np.zeros(4 * len(self.table), np.uint64))
            for h in known:
                self.put(h)
        self.put(hash)

    def put(self, hash: int) -> None:
        """Into the table, as `Blocks.classify` looks for it."""
        mask = len(self.table) - 1
        place = hash & mask
        while self.table[place]:
            place = place + 1 & mask
        self.table[place] = hash

    def events(self) -> Warps:
        """A copy of what the block's warps left."""
        contexts = self.scratch.buffers["warps"][: self.warps * CONTEXT.itemsize].view(CONTEXT)
        events, start = self.scratch.buffers["events"], int(self.scratch.state["events"][0])
        begin = [w * self.stride + EVENT.itemsize for w in range(self.warps)]
        end = [int(last) - start + EVENT.itemsize for last in contexts["event"]]
        return tuple(events[a:b].copy().view(EVENT) for a, b in zip(begin, end, strict=True))
