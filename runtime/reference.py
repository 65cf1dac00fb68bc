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

from knapper.isa.core import Instr
from knapper.isa.instructions import DMA_LD, FILL_DUP, IM2COL_PUSH, LDSM, SPWMMA
from knapper.isa.lanes import LANES, LaneType, Value
from knapper.isa.modifiers import Mode
from knapper.isa.operands import Guard, Src
from knapper.isa.program import Launch, Program
from knapper.isa.sparse import PASS, WORDS, Outer
from knapper.isa.systolic import WORD, Array

from . import budget
from .collector import bank_cycles
from .counters import Counts, counters, row_wavefronts
from .engine import UNBOUNDED, Tick, silent
from .faults import READS, SWITCH, WRITES, Kind, Place, Trap, access, describe
from .memory import SECTOR, Memory
from .paths import END, Paths, Trail, Warps, share, work
from .spaces import LANE, NONE, Context, Mask, Shared, Spaces, lowest
from .systolic import Queue
from .words import coordinate, immediate, words_of


class Block(Shared):
    """A block that runs: its warps, each to a barrier, then all on."""

    def __init__(self, context: Context, number: int) -> None:
        super().__init__(context)
        self.number = number
        self.warps = [RefWarp(self, w) for w in range(context.kernel.warps)]

    def run(self) -> Warps:
        """All warps to their end; gives their paths."""
        while True:
            for warp in self.warps:
                warp.run()
            if all(w.done for w in self.warps):
                self.tally()
                return tuple(w.trail.events() for w in self.warps)
            self.meet()

    def tally(self) -> None:
        """Count, for each sector that was read, how many blocks ago that happened last."""
        for sector in self.sectors:
            last = self.context.readers.get(sector, self.number)
            self.context.gaps[self.number - last] += 1
            self.context.readers[sector] = self.number

    def meet(self) -> None:
        """Every warp has stopped, some at a barrier: let them go on together."""
        waiting = next(w for w in self.warps if not w.done)
        for other in self.warps:
            if other.done:
                waiting.stop(Kind.BARRIER_EXITED, value=waiting.waits, aux=other.number)
            if other.waits != waiting.waits:
                waiting.stop(Kind.BARRIER_OTHER, value=waiting.waits, aux=other.number)
        self.forget()
        for warp in self.warps:
            warp.pc += 1


@dataclass
class Region:
    """An open convergence barrier: the lanes it names, the ones parked, its BSYNC, and its BSSY."""

    lanes: Mask
    end: int
    start: int
    parked: Mask = field(default_factory=NONE.copy)


class RefWarp(Spaces):
    """A warp: `knapper.isa.lanes.Warp`, and its control flow."""

    block: Block

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
            if isinstance(instr, Outer):
                self.tally(instr, counts)
        self.after()
        if self.context.timing:
            self.record(pc)

    def record(self, pc: int) -> None:
        """Add to the path what came of the instruction at `pc`, if it was an event."""
        to, skipped, stands = END if self.done else self.pc, not self.mask.any(), self.waits >= 0
        if not skipped and isinstance(instr := self.context.code[pc], SPWMMA):
            bitmaps = self.bitmaps(instr)
            cycles = bank_cycles(bitmaps, self.context.window)
            done = instr.work(bitmaps)
            to = work(cycles, done.issued, -(-done.values // PASS))
        if (skipped or to != pc + 1) and not stands and not self.trail.add(pc, to):
            self.pc = pc
            raise Trap(Kind.PATH, value=self.trail.most)

    def fetch(self, instr: LDSM) -> int:
        """Wavefronts of an LDSM."""
        origin = self.uniform_word(instr.base) + int(instr.offset)
        return row_wavefronts(origin & 0xFFFFFFFF, int(instr.pitch))

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

    # --- products of condensed vectors

    def bitmaps(self, instr: Outer) -> NDArray[np.uint32]:
        return self.word(instr.bm)

    def tally(self, instr: Outer, counts: Any) -> None:
        """Count what a product does."""
        done = instr.work(self.bitmaps(instr))
        counts["ohmma"] += done.issued
        counts["products"] += done.macs

    def whole(self) -> None:
        if not self.mask.all():
            raise Trap(Kind.WARP_SPLIT, lane=lowest(~self.mask))

    def tile(self, word: int) -> None:
        aux, size = access("accumulator", WORD * WORDS, WRITES), len(self.block.arrays.accumulators)
        if word % WORDS:
            raise Trap(Kind.MISALIGNED, value=WORD * word, aux=aux)
        if WORD * (word + WORDS) > size:
            raise Trap(Kind.OUTSIDE, value=WORD * word, aux=aux)

    # --- systolic commands

    def send(self, command: Instr, address: int = 0, c: int = 0) -> None:
        self.queue.send(command, address, c)

    def describe(self, number: int, words: list[int]) -> None:
        self.queue.describe(number, words)

    def fill(self, command: FILL_DUP, first: int, rows: int) -> None:
        self.queue.fill(command, first, rows)

    def push(self, command: IM2COL_PUSH, c: int, tap: int, first: int, rows: int) -> None:
        self.queue.push(command, c, tap, first, rows)

    def describe_tile(self, number: int, words: list[int]) -> None:
        self.queue.describe_tile(number, words)

    def copy(self, command: DMA_LD, target: int, source: int, size: int) -> None:
        self.queue.copy(command, target, source, size)

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
        array = Array.of(self.program.target).of_block(kernel.accumulators)
        window = int(self.program.target.get("collector_window", {"value": 0})["value"])
        context = Context(kernel, launch, self.memory, counts, limit, timing, array, window)
        with np.errstate(all="ignore"):
            paths = Paths.of(self._blocks(context, left, tick))
        read, written = (int(np.count_nonzero(t)) * SECTOR for t in context.touched)
        gaps = np.trim_zeros(context.gaps, "b")
        return Counts(counts, read, written, gaps, paths if timing else None)

    def _blocks(self, context: Context, left: int, tick: Tick) -> Iterator[Warps]:
        """Run all blocks, in order; their paths."""
        total = prod(context.launch.grid)
        for number in range(total):
            yield Block(context, number).run()
            budget.spend(int(context.counts["executed"].sum()), left, context.launch)
            tick((number + 1) / total)

    def close(self) -> None:
        """Nothing to let go of."""
