"""The fast engine: decoded kernels, compiled handlers, blocks dealt to threads.

A launch's blocks are handed out in chunks, lowest first. A chunk is one call into compiled code, without Python's lock.
The calling thread only waits, so a keyboard interrupt reaches it; it then raises a flag that running warps see when they
branch, and before a block begins. Each thread has a `State`, registers, shared memory and counters of its own; what all share is global memory and
the maps of touched sectors. After a fault no further chunk is handed out, and since those handed out are all lower or
finish, the fault that is reported is the one of the lowest block: the same in every run.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.instructions import SPWMMA
from knapper.isa.lanes import LANES
from knapper.isa.program import BASE, Kernel, Launch, Program
from knapper.isa.systolic import Array

from .. import budget
from ..counters import Counts, counters
from ..decode import RECORD, ROW, SPARE, Decoded
from ..engine import UNBOUNDED, Tick, silent
from ..faults import Kind, Place, Trap, describe
from ..memory import SECTOR, Memory, aligned
from . import queues
from .handlers import END, Builders
from .layout import CONTEXT, COUNTS, CROWDED, FAULT, PAGE, PASSES, PREDS, TIMED, UNKNOWN, UREGS
from .recording import TALLY, Log, Readers, Recorder
from .scratch import Scratch
from .units import Host, Notice, Units

RUN = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)
INTERRUPT = 0.2
"""Seconds after which a waiting thread looks for a keyboard interrupt that another thread received."""
CHUNKS = 8
"""Chunks a thread gets of a launch, about: few enough to cost nothing, enough to even out."""


@dataclass
class Process:
    """What all engines of the process share: compiled code, and how to write more."""

    builders: Builders
    units: Units
    lock: threading.Lock = field(default_factory=threading.Lock)


_FIRST = threading.Lock()


def process() -> Process:
    """Made on first use, once, whichever threads ask."""
    with _FIRST:
        return _process()


@cache
def _process() -> Process:
    builders = Builders()
    return Process(builders, Units(Host.detect(), builders))


class FastEngine:
    """Runs launches of one program on one memory."""

    def __init__(
        self,
        program: Program,
        memory: Memory,
        decoded: Decoded,
        *,
        checked: bool,
        threads: int,
        limit: int,
        notice: Notice | None = None,
    ) -> None:
        self.program, self.memory, self.decoded, self.checked, self.limit = (
            program,
            memory,
            decoded,
            checked,
            limit,
        )
        self.code: dict[str, NDArray[Any]] = {}
        self.systolic: dict[str, bool] = {}
        """Which kernels have systolic commands."""
        self.stores: dict[str, bool] = {}
        """Which kernels store to shared memory."""
        self.banks: dict[str, bool] = {}
        """Which kernels use the banks of an accumulation buffer."""
        self.run = self._link(notice)
        self.scratch = [Scratch() for _ in range(threads)]
        self.pool = ThreadPoolExecutor(threads, "knapper")
        sectors = -(-len(memory.data) // SECTOR) + 64
        self.touched = {"touched_read": aligned(sectors), "touched_write": aligned(sectors)}
        self.epoch = 0
        self.stop = np.zeros(1, np.uint32)

    def _link(self, notice: Notice | None) -> Any:
        """Compile what is missing and put handlers into records; gives the entry point."""
        shared = process()
        with shared.lock:
            names = [shared.builders.add(v, self.checked) for v in self.decoded.variants]
            entry = "run_blocks" + ".checked" * self.checked
            found = shared.units.addresses([*names, entry, END, "tally"], notice)
        self.readers = Readers(len(self.memory.data), TALLY(found["tally"]))
        handlers = np.array([found[n] for n in names], np.uint64)
        for kernel, span in self.decoded.spans.items():
            records = aligned(span.stop - span.start + 1, RECORD)
            records[:-1] = self.decoded.records[span]
            records["handler"][:-1] = handlers[self.decoded.variant[span]] if len(handlers) else 0
            records["guard"][-1], records["handler"][-1] = (
                7 * 4,
                found[END],
            )  # whoever runs off the end meets this one
            self.code[kernel], self.systolic[kernel] = records, queues.concerns(records)
            self.stores[kernel] = queues.stores(records)
            self.banks[kernel] = bool((records["kind"] == SPWMMA.opcode).any())
        return RUN(found[entry])

    def launch(
        self, launch: Launch, left: int = UNBOUNDED, tick: Tick = silent, timing: bool = False
    ) -> Counts:
        """As `Engine.launch`."""
        kernel = self.program.kernels[launch.kernel]
        self._next_epoch()
        self.stop[:] = 0
        limit = min(self.limit, left)
        blocks = prod(launch.grid)
        log = Log(blocks, self.readers) if timing else None
        threads = [Setup(self, s, kernel, launch, limit, log) for s in self.scratch]
        chunks = Chunks(blocks, len(threads))

        def look() -> None:
            budget.spend(sum(t.executed for t in threads), left, launch)
            tick(min(chunks.next / chunks.total, 1))

        self._work(threads, chunks, look)
        faults = sorted((t.fault for t in threads if t.fault is not None), key=lambda f: f[1].block)
        if faults:
            raise describe(*faults[0])
        look()
        read, written = (
            SECTOR * sum(int(t.state[n]) for t in threads) for n in ("dram_read", "dram_write")
        )
        total = Counts(collect(threads), read, written)
        return total if log is None else log.told(total)

    def _work(self, threads: list[Setup], chunks: Chunks, look: Callable[[], None]) -> None:
        """Wait for the threads; the waiting thread looks now and then, can be interrupted, and then stops them."""
        running = [self.pool.submit(t.work, chunks) for t in threads[: chunks.count]]
        try:
            while wait(running, timeout=INTERRUPT, return_when=FIRST_EXCEPTION).not_done:
                look()
            for done in running:
                done.result()
        except BaseException:
            chunks.close()
            self.stop[:] = 1
            wait(running)
            raise

    def collector(self, kernel: Kernel) -> tuple[int, int]:
        """The function that counts the cycles of the accumulation buffer's banks, and its window; 0 if the kernel has no use for them."""
        if not self.banks[kernel.name]:
            return 0, 0
        from ..timing.banks import address  # loads numba

        return address(), int(self.program.target["collector_window"]["value"])

    def _next_epoch(self) -> None:
        """Sectors touched in earlier launches count as untouched."""
        self.epoch += 1
        if self.epoch == 256:
            self.epoch = 1
            for touched in self.touched.values():
                touched[:] = 0

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()


class Chunks:
    """Deals blocks 0 … total − 1 in chunks, lowest first, to whichever thread asks."""

    def __init__(self, total: int, threads: int) -> None:
        self.total, self.size, self.next = total, max(1, total // (threads * CHUNKS)), 0
        self.lock = threading.Lock()

    @property
    def count(self) -> int:
        return -(-self.total // self.size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        while True:
            with self.lock:
                first, self.next = self.next, self.next + self.size
            if first >= self.total:
                return
            yield first, min(self.size, self.total - first)

    def close(self) -> None:
        """Deal no more."""
        with self.lock:
            self.next = self.total


class Setup:
    """A thread made ready for a launch."""

    def __init__(
        self,
        engine: FastEngine,
        scratch: Scratch,
        kernel: Kernel,
        launch: Launch,
        limit: int,
        log: Log | None,
    ) -> None:
        self.engine, self.scratch, self.kernel, self.launch = engine, scratch, kernel, launch
        self.limit = limit
        self.records = engine.code[kernel.name]
        self.counts = aligned(len(self.records), COUNTS)
        self.passes = aligned(len(self.records), PASSES)
        self.params = np.array([*launch.params, 0], np.uint64)
        self.tids = thread_numbers(kernel)
        self.state = scratch.state[0]
        self.fault: tuple[Trap, Place] | None = None
        self.fill()
        self.recorder: Recorder | None = None
        if log is not None:
            size = len(engine.memory.data)
            self.recorder = Recorder(log, scratch, kernel, size)

    @property
    def executed(self) -> int:
        """Warp instructions so far; while the thread runs, about so many."""
        return int(self.counts["executed"][:-1].sum())

    def fill(self) -> None:
        """Write the state."""
        s, kernel, launch, engine = self.state, self.kernel, self.launch, self.engine
        memory = engine.memory
        warps, rows = kernel.warps, kernel.registers + 2 * SPARE
        s["zeros"] = 0
        s["dram_read"] = s["dram_write"] = s["timing"] = 0
        s["code"] = self.records.ctypes.data
        for name, counts in (("counters", self.counts), ("passes", self.passes)):
            s[name] = (counts.ctypes.data - self.records.ctypes.data) % (1 << 64)
        s["params"], s["param_bytes"] = self.params.ctypes.data, 8 * len(launch.params)
        s["reg_bytes"], s["local_bytes_warp"] = rows * ROW, -(-kernel.local_bytes // 4) * ROW
        s["shared_bytes"], s["local_bytes"] = kernel.shared_bytes, kernel.local_bytes
        s["warp_count"], s["threads"] = warps, kernel.threads
        buffer = self.scratch.buffer
        for name, size in (
            ("all_regs", warps * rows * ROW), ("all_uregs", warps * UREGS * 4), ("all_preds", warps * PREDS * 4),
            ("all_local", warps * int(s["local_bytes_warp"])), ("shared", kernel.shared_bytes), ("warps", warps * CONTEXT.itemsize),
        ):  # fmt: skip
            s[name] = buffer(name, size)
        s["all_tids"] = self.tids.ctypes.data
        s["memory"] = (memory.data.ctypes.data - BASE) % (1 << 64)
        s["memory_end"], s["writable"] = BASE + len(memory.data), BASE + memory.writable
        for name, touched in engine.touched.items():
            s[name] = (touched.ctypes.data - BASE // SECTOR) % (1 << 64)
        s["epoch"], s["stop"], s["limit"] = engine.epoch, engine.stop.ctypes.data, self.limit
        for axis, n, size in zip("xyz", launch.grid, kernel.block, strict=True):
            s[f"nctaid_{axis}"], s[f"ntid_{axis}"] = n, size
        s["shared_stores"] = kernel.shared_bytes * engine.stores[kernel.name]
        s["bank_cycles"], s["collector_window"] = engine.collector(kernel)
        if engine.checked:
            self.shadows(warps, rows)
        for name in queues.POINTERS:
            s[name] = 0
        if engine.systolic[kernel.name]:
            array = Array.of(engine.program.target).of_block(kernel.accumulators)
            queues.prepare(s, kernel, array, buffer, engine.checked)

    def shadows(self, warps: int, rows: int) -> None:
        """The checked engine's bookkeeping."""
        s, kernel, buffer = self.state, self.kernel, self.scratch.buffer
        s["has_reg_bytes"], pages = rows * 4, -(-kernel.shared_bytes // PAGE)
        for name, size in (
            ("all_has_reg", warps * rows * 4), ("all_has_ureg", warps * UREGS * 4), ("all_has_pred", warps * PREDS * 4),
            ("all_has_local", warps * int(s["local_bytes_warp"])), ("has_shared", kernel.shared_bytes),
            ("readers", 4 * PAGE * pages), ("writers", 4 * PAGE * pages), ("pages", pages),
        ):  # fmt: skip
            s[name] = buffer(name, size)
        s["has_memory"] = (self.engine.memory.written.ctypes.data - BASE) % (1 << 64)
        self.declared = declared(self.launch, len(self.engine.memory.data))
        s["operands"] = (
            0 if self.declared is None else (self.declared.ctypes.data - BASE) % (1 << 64)
        )

    def work(self, chunks: Chunks) -> None:
        """Run chunks until there are no more, or one faults."""
        address = self.scratch.state.ctypes.data
        for first, count in chunks:
            status = self.run(address, first, first + count)
            if status:
                chunks.close()
                self.scratch.drop(queues.CLAIMS)
                if status >= FAULT:
                    self.fault = self.trap(Kind(status - FAULT))
                return

    def run(self, address: int, first: int, end: int) -> int:
        """A chunk of blocks; where a path is new, note it and go on, and hand over what was read."""
        done = first
        while done < end:
            status: int = self.engine.run(address, done, end - done)
            if self.recorder is None or status not in (0, UNKNOWN, CROWDED):
                return status
            done = int(self.state["fault_block"]) + 1
            if status == UNKNOWN:
                self.recorder.learn(done - 1)
            if done == end or self.recorder.crowded:
                self.recorder.take(first, done)
                first = done
        return 0

    def trap(self, kind: Kind) -> tuple[Trap, Place]:
        s = self.state
        trap = Trap(kind, int(s["fault_lane"]), int(s["fault_value"]), int(s["fault_aux"]))
        place = Place(
            self.kernel,
            self.launch,
            int(s["fault_block"]),
            int(s["fault_warp"]),
            int(s["fault_pc"]),
        )
        return trap, place


def collect(threads: list[Setup]) -> NDArray[Any]:
    """The counters of all threads, summed."""
    total = counters(len(threads[0].counts) - 1)
    for name in COUNTS.names or ():
        total[name] = sum(t.counts[name][:-1] for t in threads)
    for name in TIMED[1:]:
        total[name] = sum(t.passes[name][:-1] for t in threads)
    if threads[0].recorder is not None:
        local = sum(t.passes["sectors"][:-1] for t in threads)
        total["sectors"] = (total["l2_read"] + total["l2_write"]) // SECTOR + local
    return total


def declared(launch: Launch, size: int) -> NDArray[np.uint8] | None:
    """Per byte of global memory: 1 if the launch declares to read it, 2 to write it. None if it declares nothing."""
    if not launch.operands:
        return None
    allowed = np.zeros(size, np.uint8)
    for operand in launch.operands:
        where = slice(operand.address - BASE, operand.address - BASE + operand.bytes)
        allowed[where] |= ("r" in operand.use) | ("w" in operand.use) << 1
    return allowed


@cache
def _thread_numbers(block: tuple[int, int, int], warps: int) -> NDArray[np.uint32]:
    x, y, _ = block
    linear = np.arange(warps * LANES)
    axes = np.stack([linear % x, linear // x % y, linear // (x * y)])
    table = aligned(warps * 3 * LANES, np.uint32)
    table[:] = axes.reshape(3, warps, LANES).transpose(1, 0, 2).reshape(-1)
    return table


def thread_numbers(kernel: Kernel) -> NDArray[np.uint32]:
    """TID_X, TID_Y, TID_Z of every lane of every warp, [warps · 3 · 32]."""
    return _thread_numbers(kernel.block, kernel.warps)
