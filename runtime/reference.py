"""The reference engine: plain Python over numpy arrays of 32 lanes. It is the specification, and always checks everything.

A launch is its blocks one after the other; a block is its warps, each run until it comes to a barrier or ends; when all have
stopped, either all have ended, or all wait at one barrier and go on. Blocks and warps cannot see in which order they run
unless they race, and a race is a fault.

Divergence. A warp has live lanes, active lanes (the path it is on), and a stack of paths not yet taken:

    BRA      lanes part: the ones that fall through go on the stack, the ones that jump run on
    BSSY b   barrier b names the active lanes and its BSYNC
    BSYNC b  the active lanes park at b; if all that b names and that live are parked, they go on together, else the
             path on top of the stack runs
    EXIT     lanes end; if no active lane is left, the path on top of the stack runs

Paths on the stack are disjoint sets of lanes, so the stack never holds more than 31.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import Guard, Instr, Src
from knapper.isa.instructions import LDSM
from knapper.isa.lanes import LANES, LaneType, Value, canonical
from knapper.isa.modifiers import Mode
from knapper.isa.program import BASE, Kernel, Launch, Program
from knapper.isa.systolic import ARRAY, Array

from . import budget
from .counters import Counts, counters, local_sectors, requests, row_wavefronts, wavefronts
from .engine import UNBOUNDED, Tick, silent
from .faults import READS, SWITCH, WRITES, Kind, Place, Trap, access, describe, race
from .memory import SECTOR, Memory
from .paths import END, Paths, Trail, Warps, share
from .systolic import Arrays, Queue
from .words import coordinate, immediate, words_of

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
    unique: int = 0
    """Sectors that blocks read, counted once a block."""
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
        if self.launch.operands:
            self.allowed = (np.zeros(size, np.bool_), np.zeros(size, np.bool_))
            for operand in self.launch.operands:
                where = slice(operand.address - BASE, operand.address - BASE + operand.bytes)
                for use, bytes_ in zip("rw", self.allowed, strict=True):
                    bytes_[where] |= use in operand.use


class Block:
    """Shared memory, and who touched which byte of it since the last barrier."""

    def __init__(self, context: Context, number: int) -> None:
        kernel = context.kernel
        self.context, self.number = context, number
        self.shared = np.zeros(kernel.shared_bytes, np.uint8)
        self.written = np.zeros(kernel.shared_bytes, np.bool_)
        self.readers = np.zeros((kernel.warps, kernel.shared_bytes), np.bool_)
        self.writers = np.zeros((kernel.warps, kernel.shared_bytes), np.bool_)
        self.arrays = Arrays(context.array, kernel.shared_bytes)
        self.sectors: set[int] = set()
        """Of global memory, that were read."""
        self.warps = [RefWarp(self, w) for w in range(kernel.warps)]

    def run(self) -> Warps:
        """All warps to their end; gives their paths."""
        while True:
            for warp in self.warps:
                warp.run()
            if all(w.done for w in self.warps):
                self.context.unique += len(self.sectors)
                return tuple(w.trail.events() for w in self.warps)
            self.meet()

    def meet(self) -> None:
        """Every warp has stopped, some at a barrier: let them go on together."""
        waiting = next(w for w in self.warps if not w.done)
        for other in self.warps:
            if other.done:
                waiting.stop(Kind.BARRIER_EXITED, value=waiting.waits, aux=other.number)
            if other.waits != waiting.waits:
                waiting.stop(Kind.BARRIER_OTHER, value=waiting.waits, aux=other.number)
        self.readers[:], self.writers[:] = False, False
        self.arrays.meet()
        for warp in self.warps:
            warp.pc += 1


@dataclass
class Region:
    """An open convergence barrier: the lanes it names, the ones parked, its BSYNC, and its BSSY."""

    lanes: Mask
    end: int
    start: int
    parked: Mask = field(default_factory=NONE.copy)


class RefWarp:
    """A warp: `knapper.isa.lanes.Warp`, and its control flow."""

    def __init__(self, block: Block, number: int) -> None:
        kernel = block.context.kernel
        self.block, self.number, self.context = block, number, block.context
        self.regs = np.zeros((kernel.registers, LANES), np.uint32)
        self.uregs = np.zeros(63, np.uint32)
        self.preds = np.zeros((7, LANES), np.bool_)
        self.locals = np.zeros((LANES, kernel.local_bytes), np.uint8)
        self.has_reg, self.has_ureg = np.zeros_like(self.regs, np.bool_), np.zeros(63, np.bool_)
        self.has_pred, self.has_local = (
            np.zeros_like(self.preds),
            np.zeros_like(self.locals, np.bool_),
        )
        self.pc, self.waits, self.done, self.steps = 0, 0, False, 0
        self.live: Mask = number * LANES + LANE < kernel.threads
        self.path: Mask = self.live
        self.mask: Mask = self.live
        self.paths: list[tuple[int, Mask]] = []
        self.regions: dict[int, Region] = {}
        self.after: Callable[[], None] = self.next
        self.trail = Trail(share(kernel.warps))
        self.queue = Queue(self)

    # --- control flow

    def run(self) -> None:
        """To the next barrier or the end."""
        self.waits = -1
        while not self.done and self.waits < 0:
            try:
                self.step()
            except Trap as trap:
                self.stop(trap.kind, trap.lane, trap.value, trap.aux)

    def stop(self, kind: Kind, lane: int = 0, value: int = 0, aux: int = 0) -> None:
        place = Place(
            self.context.kernel, self.context.launch, self.block.number, self.number, self.pc
        )
        raise describe(Trap(kind, lane, value, aux), place) from None

    def step(self) -> None:
        """One instruction."""
        if self.pc == len(self.context.code):
            raise Trap(Kind.OFF_THE_END)
        if self.steps == self.context.limit:
            raise Trap(Kind.LIMIT, value=self.steps)
        self.steps += 1
        pc = self.pc
        instr, counts = self.context.code[pc], self.context.counts[pc]
        self.mask = self.path
        self.mask = self.path & self.predicate(instr.guard)
        counts["executed"] += 1
        counts["lanes"] += self.mask.sum()
        counts["skipped"] += not self.mask.any()
        self.after = self.next
        if self.mask.any():
            instr.execute(self)
            if self.context.timing and isinstance(instr, LDSM):
                counts["wavefronts"] += self.fetch(instr)
        self.after()
        if self.context.timing:
            self.record(pc)

    def record(self, pc: int) -> None:
        """Add to the path what came of the instruction at `pc`, if it was an event."""
        to, skipped, stands = END if self.done else self.pc, not self.mask.any(), self.waits >= 0
        if (skipped or to != pc + 1) and not stands and not self.trail.add(pc, to):
            self.pc = pc
            raise Trap(Kind.PATH, value=self.trail.most)

    def next(self) -> None:
        self.pc += 1

    def branch(self, target: int) -> None:
        def jump() -> None:
            if (rest := self.path & ~self.mask).any():
                self.paths.append((self.pc + 1, rest))
            self.pc, self.path = target, self.mask

        self.after = jump

    def push_convergence(self, barrier: int, target: int) -> None:
        self.together()
        if barrier in self.regions:
            raise Trap(Kind.REGION_OPEN, value=barrier, aux=self.regions[barrier].start)
        self.regions[barrier] = Region(self.path, target, self.pc)

    def together(self) -> None:
        """The guard may not part the active lanes here."""
        if (out := self.path & ~self.mask).any():
            raise Trap(Kind.REGION_SPLIT, lane=lowest(out))

    def converge(self, barrier: int) -> None:
        self.together()
        region = self.regions.get(barrier)
        strangers = (
            self.path if region is None or region.end != self.pc else self.path & ~region.lanes
        )
        if region is None or strangers.any():
            raise Trap(Kind.REGION_CLOSED, lane=lowest(strangers), value=barrier)
        region.parked = region.parked | self.path
        self.after = self.resume
        if (region.parked == region.lanes & self.live).all():
            self.paths.append((self.pc + 1, region.parked))
            del self.regions[barrier]

    def resume(self) -> None:
        """Take the path on top of the stack."""
        if self.paths:
            self.pc, self.path = self.paths.pop()
        elif self.live.any():
            barrier, region = next(
                (b, r) for b, r in sorted(self.regions.items()) if r.parked.any()
            )
            raise Trap(
                Kind.REGION_STUCK,
                lane=lowest(region.lanes & self.live & ~region.parked),
                value=barrier,
            )
        else:
            self.done = True

    def exit(self) -> None:
        if (self.live & ~self.mask).any():
            for barrier, region in sorted(self.regions.items()):
                if (lost := region.lanes & self.mask).any():
                    raise Trap(Kind.REGION_EXIT, lane=lowest(lost), value=barrier)
        else:
            self.queue.leave()
        self.live = self.live & ~self.mask
        self.path = self.path & ~self.mask
        self.after = self.next if self.path.any() else self.resume

    def barrier(self, number: int) -> None:
        if (missing := self.live & ~self.mask).any():
            raise Trap(Kind.BARRIER_DIVERGED, lane=lowest(missing), value=number)

        def wait() -> None:
            self.waits = number

        self.after = wait

    # --- systolic commands

    def send(self, command: Instr, address: int = 0, c: int = 0) -> None:
        self.queue.send(command, address, c)

    def commit(self) -> None:
        self.queue.commit()

    def wait(self, groups: int) -> None:
        self.queue.wait(groups)

    def switch(self, mode: Mode) -> None:
        self.barrier(SWITCH + mode)
        self.queue.drain(0)

    # --- registers

    def read(self, reg: Any, type: LaneType) -> Value:
        if type.bits == 64:
            low, high = self.word(reg), self.word(reg if reg == 255 else reg + 1)
            return (low | high.astype(np.uint64) << np.uint64(32)).view(type.dtype)
        return self.word(reg).astype(f"u{type.bits // 8}").view(type.dtype)

    def word(self, reg: int) -> NDArray[np.uint32]:
        if reg == 255:
            return np.zeros(LANES, np.uint32)
        self.queue.touch(reg, READS)
        if (missing := self.mask & ~self.has_reg[reg]).any():
            raise Trap(Kind.UNWRITTEN_REGISTER, lowest(missing), int(reg))
        word: NDArray[np.uint32] = self.regs[reg].copy()
        return word

    def source(self, src: Any, type: LaneType) -> Value:
        if src.kind == Src.REG:
            return self.read(src.value, type)
        return self.uniform(src, type)

    def uniform(self, reg: Any, type: LaneType) -> Value:
        if isinstance(reg, Src):
            if reg.kind == Src.IMM:
                return np.full(LANES, immediate(reg.payload, type))
            reg = reg.value
        low = self.uniform_word(reg)
        if type.bits == 64:
            low |= self.uniform_word(reg if reg == 63 else reg + 1) << 32
        return np.full(
            LANES, np.array(low & (1 << type.bits) - 1, f"u{type.bits // 8}").view(type.dtype)
        )

    def uniform_word(self, reg: int) -> int:
        if reg == 63:
            return 0
        if not self.has_ureg[reg]:
            raise Trap(Kind.UNWRITTEN_UNIFORM, value=int(reg))
        return int(self.uregs[reg])

    def write(self, reg: Any, value: Value) -> None:
        for i, word in enumerate(words_of(value)):
            if reg != 255:
                self.queue.touch(reg + i, WRITES)
                self.regs[reg + i] = np.where(self.mask, word, self.regs[reg + i])
                self.has_reg[reg + i] |= self.mask

    def set_uniform(self, reg: Any, value: Value) -> None:
        for i, word in enumerate(words_of(value)):
            if reg != 63:
                self.uregs[reg + i] = word[0]
                self.has_ureg[reg + i] = True

    def predicate(self, p: Any) -> Value:
        number, negated = (p.pred, p.negated) if isinstance(p, Guard) else (p, False)
        if number == 7:
            return np.full(LANES, not negated)
        if (missing := self.mask & ~self.has_pred[number]).any():
            raise Trap(Kind.UNWRITTEN_PREDICATE, lowest(missing), int(number))
        return self.preds[number] ^ negated

    def set_predicate(self, p: Any, value: Value) -> None:
        if p != 7:
            self.preds[p] = np.where(self.mask, value, self.preds[p])
            self.has_pred[p] |= self.mask

    def set_uniform_predicate(self, p: Any, value: Value) -> None:
        if p != 7:
            self.preds[p] = value[0]
            self.has_pred[p] = True

    # --- between lanes, and what a lane knows of itself

    def lane(self) -> Value:
        return LANE.copy()

    def active(self) -> Value:
        return self.mask

    def special(self, name: str) -> Value:
        thread = self.number * LANES + LANE
        sizes = {"NTID": self.context.kernel.block, "NCTAID": self.context.launch.grid}
        kind, _, axis = name.partition("_")
        if kind in sizes:
            return np.full(LANES, sizes[kind]["XYZ".index(axis)], np.uint32)
        if kind == "TID":
            return coordinate(thread, self.context.kernel.block, axis)
        if kind == "CTAID":
            return coordinate(
                np.full(LANES, self.block.number, np.uint32), self.context.launch.grid, axis
            )
        return {"LANEID": LANE.copy(), "WARPID": np.full(LANES, self.number, np.uint32)}[kind]

    def shuffle(self, value: Value, lane: Value) -> Value:
        return value[lane % LANES]

    def ballot(self, value: Value) -> Value:
        return np.full(LANES, np.packbits(value & self.mask, bitorder="little").view(np.uint32)[0])

    def first(self, value: Value) -> Value:
        return np.full(LANES, value[lowest(self.mask)])

    # --- memory

    def load(
        self, space: str, address: Value, type: LaneType, words: int = 1, where: Value | None = None
    ) -> list[Value]:
        lanes = self.mask if where is None else self.mask & where
        lanes = ALL if space == "param" else lanes
        size = words * type.bits // 8
        raw = np.zeros((LANES, size), np.uint8)
        raw[lanes] = self.touch(space, address, size, lanes, READS)
        return list(np.ascontiguousarray(raw.view(type.dtype).T))

    def store(self, space: str, address: Value, values: list[Value]) -> None:
        columns = [canonical(v).view(np.uint8).reshape(LANES, -1) for v in values]
        raw = np.concatenate(columns, axis=1)
        self.touch(space, address, raw.shape[1], self.mask, WRITES, raw[self.mask])

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
        if use == WRITES:
            self.unclaimed(self.block.arrays.claims[index], lanes, where, aux)
        return self.transfer(
            self.block.shared, self.block.written, index, where, lanes, aux, values
        )

    def passes(self, where: NDArray[np.int64], lanes: NDArray[np.intp], size: int) -> int:
        """Wavefronts of a load or store. Those of LDSM are counted for the whole instruction."""
        instr = self.context.code[self.pc]
        return 0 if isinstance(instr, LDSM) else wavefronts(where, lanes, size)

    def fetch(self, instr: LDSM) -> int:
        """Wavefronts of an LDSM."""
        origin = self.uniform_word(instr.base) + int(instr.offset)
        return row_wavefronts(origin & 0xFFFFFFFF, int(instr.pitch))

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
        others = (np.arange(len(block.warps)) != self.number)[:, None, None]
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


setattr(RefWarp, "global", RefWarp.global_)  # the space's name is a keyword


def lowest(lanes: Mask) -> int:
    """The number of the first lane."""
    return int(np.flatnonzero(lanes)[0])


def check(bad: Mask, kind: Kind, value: Value, aux: int) -> None:
    """Trap the lowest bad lane."""
    if bad.any():
        raise Trap(kind, lowest(bad), int(value[lowest(bad)]), aux)


class ReferenceEngine:
    """Runs launches block by block, instruction by instruction."""

    def __init__(self, program: Program, memory: Memory, limit: int) -> None:
        self.program, self.memory, self.limit = program, memory, limit

    def launch(
        self, launch: Launch, left: int = UNBOUNDED, tick: Tick = silent, timing: bool = False
    ) -> Counts:
        """As `Engine.launch`."""
        kernel, limit = self.program.kernels[launch.kernel], min(self.limit, left)
        counts = counters(len(kernel.words) // 16)
        array = Array.of(self.program.target)
        context = Context(kernel, launch, self.memory, counts, limit, timing, array)
        with np.errstate(all="ignore"):
            paths = Paths.of(self._blocks(context, left, tick))
        read, written = (int(np.count_nonzero(t)) * SECTOR for t in context.touched)
        return Counts(counts, read, written, context.unique, paths if timing else None)

    def _blocks(self, context: Context, left: int, tick: Tick) -> Iterator[Warps]:
        """Run all blocks, in order; their paths."""
        total = prod(context.launch.grid)
        for number in range(total):
            yield Block(context, number).run()
            budget.spend(int(context.counts["executed"].sum()), left, context.launch)
            tick((number + 1) / total)

    def close(self) -> None:
        """Nothing to let go of."""
