"""Both engines side by side, instruction by instruction: where does a launch write what it should not.

    fast engine     handler ─► hook ─► the handler itself ─► registers, shared and global memory as they are now
                                │                                              ║ equal?
    reference engine            └► the same warp steps to the same instruction ╝

The fast engine calls a handler an instruction. `Lockstep` puts a hook in a handler's place, in a copy of the kernel's records, so that
the compiled code that runs is the one that always runs, block by block on one thread. A reference block follows it step by step.

    site = Lockstep(program, launch, before)          before: a memory with what the launch finds
    block = site.writer(address, 2)                   the last block that stores there
    site.store(block, address, 2)                     the instruction that does
    site.compare(block)                               the first instruction after which the engines differ, or None
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import Instr
from knapper.isa.errors import MachineFault
from knapper.isa.lanes import LANES
from knapper.isa.program import BASE, Kernel, Launch, Program
from knapper.isa.systolic import Array as Units

from .counters import counters
from .decode import RECORD, ROW, SPARE
from .fast.engine import FastEngine, Setup
from .fast.layout import FAULT, UREGS
from .fast.layout import PREDS as MASKS
from .faults import Kind, Trap
from .memory import Memory, aligned
from .reference import Block, RefWarp
from .session import Session
from .spaces import Context

HANDLER = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
STOP = FAULT + Kind.LIMIT
"""What a hook returns to end the run."""
MOST = 100_000
"""Warp instructions of a block that are compared; the reference engine takes some twenty seconds for them."""
LIMIT = 1 << 32
UNIFORMS, PREDICATES = 63, 7
REGISTERS = frozenset(
    {"uniform", "sreg", "fma", "sfu", "cvt", "alu", "imul", "tensor", "tensor_f16", "tensor_int"}
)
"""Units whose instructions touch nothing else."""


@dataclass(frozen=True)
class Place:
    """An instruction as a warp executed it."""

    kernel: Kernel
    launch: Launch
    block: int
    warp: int
    pc: int

    @property
    def instr(self) -> Instr:
        return self.kernel.code[self.pc]

    @property
    def node(self) -> str:
        """The graph node that the instruction works for."""
        return self.launch.nodes[self.kernel.roles[self.pc]] if self.launch.nodes else ""

    def __str__(self) -> str:
        node = f", node {self.node}" if self.node else ""
        return f"kernel {self.kernel.name}, instruction {self.pc} `{self.instr}`{node}, block {self.block}, warp {self.warp}"


@dataclass(frozen=True)
class Apart:
    """The first instruction after which the engines differ, and in what."""

    place: Place
    what: str


class Lockstep:
    """A launch on what it finds in memory, as often as wanted."""

    def __init__(self, program: Program, launch: Launch, before: Memory) -> None:
        self.program, self.launch, self.before = program, launch, before
        self.kernel = program.kernels[launch.kernel]
        for o in launch.operands:  # the fast engine does not note what it writes
            before.written[o.address - BASE : o.address - BASE + o.bytes] |= "r" in o.use
        self.session = Session(program)
        engine = self.session.engine("fast", False, 1, LIMIT)
        assert isinstance(engine, FastEngine)
        self.engine = engine
        self.records = engine.code[self.kernel.name]
        self.code = self.kernel.code
        self.stores = frozenset(i for i, x in enumerate(self.code) if _stores(x))

    # --- who writes an address

    def writer(self, address: int, size: int) -> int | None:
        """The last block that stores to one of these bytes; None if none does."""
        setup, found = self._ready(self.records), None
        for block in range(prod(self.launch.grid)):
            if self._changes(setup, block, address, size) is not None:
                found = block
        return found

    def store(self, block: int, address: int, size: int) -> tuple[Place, bytes] | None:
        """The last instruction of a block that stores to one of these bytes, and what is there then."""
        final = self._changes(self._ready(self.records), block, address, size)
        if final is None:
            return None
        at = slice(address - BASE, address - BASE + size)
        data = self.session.memory.data
        found: list[tuple[Place, bytes]] = []
        seen = b""

        def look(pc: int, warp: int, mask: int) -> bool:
            nonlocal seen
            if (now := data[at].tobytes()) != seen:
                seen = now
                found.append((self._place(block, warp, pc), now))
            return True

        setup = self._ready(self._hooked(self.stores, look))
        if not self._reads(at):
            data[at] = ~np.frombuffer(final, np.uint8)
        seen = data[at].tobytes()
        self._run(setup, block)
        return found[-1] if found else None

    def _changes(self, setup: Setup, block: int, address: int, size: int) -> bytes | None:
        """What a block stores to one of these bytes, seen by its changing one of two values there; None if it does not."""
        at = slice(address - BASE, address - BASE + size)
        data = self.session.memory.data
        for _ in range(2):
            before = data[at].copy()
            self._run(setup, block)
            if (data[at] != before).any():
                return data[at].tobytes()
            if self._reads(at):
                return None
            data[at] ^= 0xFF
        return None

    def _reads(self, at: slice) -> bool:
        """Whether the launch may read these bytes, so that nothing else may lie there."""
        reads = (o for o in self.launch.operands if "r" in o.use)
        return any(
            o.address - BASE < at.stop and at.start < o.address - BASE + o.bytes for o in reads
        )

    # --- where engines part

    def compare(self, block: int) -> Apart | None:
        """Run a block on both engines; None if they agree as far as they were compared."""
        follower = Follower(self, block)
        setup = self._ready(self._hooked(range(len(self.code)), follower.step))
        follower.attach(setup)
        self._run(setup, block)
        return follower.found

    # --- the fast engine

    def _place(self, block: int, warp: int, pc: int) -> Place:
        return Place(self.kernel, self.launch, block, warp, pc)

    def _ready(self, records: NDArray[Any]) -> Setup:
        """A thread made ready to run these records on what the launch finds."""
        memory, engine = self.session.memory, self.engine
        memory.data[:], memory.written[:] = self.before.data, self.before.written
        engine.stop[:] = 0
        engine.code[self.kernel.name] = records
        try:
            return Setup(engine, engine.scratch[0], self.kernel, self.launch, LIMIT, None)
        finally:
            engine.code[self.kernel.name] = self.records

    def _run(self, setup: Setup, block: int) -> None:
        """A fault of the block ends it; what it did until then counts."""
        self.problem: Exception | None = None
        self.engine.run(setup.scratch.state.ctypes.data, block, 1)
        if self.problem is not None:
            raise self.problem

    def _hooked(self, pcs: Iterable[int], look: Callable[[int, int, int], bool]) -> NDArray[Any]:
        """A copy of the records in which `look(pc, warp, mask)` is called behind these instructions; False ends the run."""
        records = aligned(len(self.records), RECORD)
        records[:] = self.records
        first, each = records.ctypes.data, RECORD.itemsize
        own = {int(a): HANDLER(int(a)) for a in set(self.records["handler"].tolist())}
        handlers = [own[int(a)] for a in self.records["handler"]]
        state = self.engine.scratch[0].state[0]

        def hook(where: int, record: int, mask: int) -> int:
            pc = (record - first) // each
            status: int = handlers[pc](where, record, mask)
            try:
                return status if look(pc, int(state["warp"]), mask) else STOP
            except Exception as e:  # nothing may be thrown through compiled code
                self.problem = e
                return STOP

        self.kept = HANDLER(hook)  # as long as compiled code may call it
        address = ctypes.cast(self.kept, ctypes.c_void_p).value
        records["handler"][list(pcs)] = address
        return records


class Follower:
    """A block in the reference engine that goes where the fast engine goes."""

    def __init__(self, site: Lockstep, block: int) -> None:
        program, kernel = site.program, site.kernel
        memory = Memory(program)
        memory.data[:], memory.written[:] = site.before.data, site.before.written
        array = Units.of(program.target).of_block(kernel.accumulators)
        counts = counters(len(site.code))
        context = Context(kernel, site.launch, memory, counts, LIMIT, False, array)
        self.site, self.number, self.memory = site, block, memory
        self.block = Block(context, block)
        self.go()
        self.found: Apart | None = None
        self.left = MOST

    def attach(self, setup: Setup) -> None:
        """Where the fast engine's block is."""
        kernel, buffers = self.site.kernel, setup.scratch.buffers
        rows = kernel.registers + 2 * SPARE

        def words(name: str, each: int) -> NDArray[Any]:
            raw = buffers[name][: 4 * kernel.warps * each].view(np.uint32)
            return raw.reshape(kernel.warps, each)

        self.regs = words("all_regs", rows * ROW // 4).reshape(kernel.warps, rows, LANES)
        self.uregs, self.preds = words("all_uregs", UREGS), words("all_preds", MASKS)
        self.shared = buffers["shared"][: kernel.shared_bytes]
        self.fast = self.site.session.memory.data

    def step(self, pc: int, warp: int, mask: int) -> bool:
        """Follow one instruction; False once the engines differ."""
        if self.left == 0:
            return False
        self.left -= 1
        try:
            with np.errstate(all="ignore"):
                what = self.follow(pc, warp, mask)
        except MachineFault as e:
            what = f"the reference engine stops: {e.message}"
        if what:
            self.found = Apart(self.site._place(self.number, warp, pc), what)
        return not what

    def follow(self, pc: int, number: int, mask: int) -> str:
        """Step the reference warp over an instruction; how it differs then."""
        warp = self.block.warps[number]
        if warp.waits >= 0:
            self.block.meet()
            self.go()
        while warp.pc != pc:
            if warp.done:
                return "the warp has ended in the reference engine"
            other = warp.pc
            self.advance(warp)
            if warp.mask.any():
                return f"the reference engine is at instruction {other} `{self.site.code[other]}`"
        self.advance(warp)
        if _packed(warp.mask[None])[0] != mask:
            return f"lanes {mask:#x} execute it, {int(_packed(warp.mask[None])[0]):#x} in the reference engine"
        return self.registers(warp, number) or (self.memories() if pc in self.site.stores else "")

    def go(self) -> None:
        """No warp stands at a barrier."""
        for w in self.block.warps:
            w.waits = -1

    def advance(self, warp: RefWarp) -> None:
        try:
            warp.step()
        except Trap as trap:
            warp.stop(trap.kind, trap.lane, trap.value, trap.aux)

    def registers(self, warp: RefWarp, number: int) -> str:
        """How the warp's registers differ."""
        files: tuple[tuple[str, NDArray[Any], NDArray[Any]], ...] = (
            ("R", self.regs[number, : self.site.kernel.registers], warp.regs),
            ("UR", self.uregs[number, :UNIFORMS], warp.uregs),
            ("P", self.preds[number, :PREDICATES], _packed(warp.preds)),
        )
        for prefix, ours, theirs in files:
            if not np.array_equal(ours, theirs):
                at = tuple(map(int, np.argwhere(ours != theirs)[0]))
                lane = f" of lane {at[1]}" if len(at) > 1 else ""
                return _told(f"{prefix}{at[0]}{lane}", ours[at], theirs[at])
        return ""

    def memories(self) -> str:
        """How shared or global memory differs."""
        ours, theirs = self.shared, self.block.shared
        if not np.array_equal(ours, theirs):
            at = int(np.argmax(ours != theirs))
            return _told(f"byte {at:#x} of shared memory", ours[at], theirs[at])
        for o in self.site.launch.operands:
            if "w" in o.use:
                span = slice(o.address - BASE, o.address - BASE + o.bytes)
                ours, theirs = self.fast[span], self.memory.data[span]
                if not np.array_equal(ours, theirs):
                    at = int(np.argmax(ours != theirs))
                    return _told(f"byte {at:#x} of %{o.value}", ours[at], theirs[at])
        return ""


def _stores(instr: Instr) -> bool:
    """Whether it may change memory."""
    loads = instr.unit.startswith("lsu") and any("w" in a.use for a in instr.accesses())
    return not loads and instr.unit not in REGISTERS


def _packed(lanes: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Lanes as bits of a word."""
    return np.packbits(lanes, axis=-1, bitorder="little").view(np.uint32)[..., 0]


def _told(what: str, ours: Any, theirs: Any) -> str:
    return f"{what} is {int(ours):#x} in the fast engine, {int(theirs):#x} in the reference engine"
