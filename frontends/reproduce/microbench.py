"""Small kernels that measure one number of a machine each, as people measure it on hardware.

A loop's cost is the difference of two lengths, so that what happens once (launch, first loads) drops out. A chase is a chain of loads, each at
the address that the one before it gave: nothing can overlap, so its time by its length is the latency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from knapper.compiler.codegen.builder import RZ, KernelBuilder, VReg, VUReg
from knapper.compiler.codegen.matrix.code import (
    fixed,
    lane_id,
    mul,
    param,
    special,
    thread_id,
    ucompare,
    umov,
    umul,
)
from knapper.compiler.codegen.matrix.code import move_base as move
from knapper.isa.instructions import (
    BRA,
    EXIT,
    HMMA,
    HMMA_F16,
    LDG,
    LDS,
    LSMA,
    MODE,
    MOV,
    SMA_COMMIT,
    SMA_LDB,
    SMA_SWAP,
    SMA_WAIT,
    STG,
    STS,
    UIADD,
    UIREM,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, Element, Half, Mode, Space, Start, Width
from knapper.isa.program import BASE, Kernel, Launch, Object, Operand, Port, Program

from .claims import Lab, Workload
from .recording import Replay

UNROLL = 16
"""Loads of a chase in a turn of its loop."""
SECTOR = 32
ROWS = 128
"""Rows of A that an LSMA streams: the tile height of SMA's kernels."""
DEPTH = 8
"""LSMAs in a turn: 64 of k, a step of our kernels."""
CHUNK = 1 << 16
"""Bytes that a block of a copy moves."""
THREADS = 256


def program(machine: Machine, kernel: Kernel, launches: tuple[Launch, ...], **more: Any) -> Program:
    """A program of one kernel."""
    return Program(
        machine.to_dict(), {kernel.name: kernel}, launches, more.pop("inputs", ()), (), **more
    )


@contextmanager
def turns(b: KernelBuilder, count: int) -> Iterator[None]:
    """What is emitted inside runs `count` times."""
    left, top = umov(b, count), b.label()
    b.place(top)
    yield
    b.emit(UIADD, Bits32._32, left, left, -1)
    b.emit(BRA, top, guard=ucompare(b, Cmp.NE, left, 0))


@contextmanager
def only(b: KernelBuilder, warp: VUReg, number: int) -> Iterator[None]:
    """What is emitted inside is for one warp."""
    over = b.label()
    b.emit(BRA, over, guard=ucompare(b, Cmp.NE, warp, number))
    yield
    b.place(over)


class Loop(Workload, Protocol):
    """A workload that repeats something `turns` times."""

    @property
    def turns(self) -> int: ...


L = TypeVar("L", bound=Any)


def per_turn(
    lab: Lab, loop: L, target: str, of: Callable[[Replay], float] = lambda r: r.cycles
) -> float:
    """What a turn adds: cycles, or another number of a run."""
    longer = replace(loop, turns=2 * loop.turns)
    more: float = (of(lab.run(longer, target)) - of(lab.run(loop, target))) / loop.turns
    return more


# --- matrix units


@dataclass(frozen=True)
class HmmaLoop:
    """HMMAs on registers and nothing else: `chains` independent ones a turn in each of `warps` warps of each block."""

    blocks: int
    warps: int
    chains: int
    turns: int
    half: bool = False
    """fp16 accumulators."""

    def program(self, machine: Machine) -> Program:
        b = KernelBuilder("hmma_loop", (32 * self.warps, 1, 1), machine, matrix=True)
        x, y = zeros(b, 4), zeros(b, 4)
        sums = [zeros(b, 4 if self.half else 8) for _ in range(self.chains)]
        with turns(b, self.turns):
            for c in sums:
                operands: tuple[Any, ...] = (c, x, y, c) if self.half else (Half.F16, c, x, y, c)
                b.emit(HMMA_F16 if self.half else HMMA, *operands)
        b.emit(EXIT)
        return program(
            machine, b.finish(), (Launch("hmma_loop", (self.blocks, 1, 1), (), ("loop",)),)
        )


@dataclass(frozen=True)
class LsmaLoop:
    """LSMAs of `rows` rows, each with weights of its own: a turn is `DEPTH` of them in each warp of each block.

    Warp w uses `strips[w]` units side by side. So a block's tile is 16 · sum(strips) columns wide.
    """

    strips: tuple[int, ...]
    turns: int
    rows: int = ROWS
    blocks: int = 1

    def program(self, machine: Machine) -> Program:
        threads = 32 * len(self.strips)
        b = KernelBuilder("lsma_loop", (threads, 1, 1), machine, matrix=True)
        pitch, wide = 2 * machine.array_rows, 2 * machine.array_columns * max(self.strips)
        a = b.shared(self.rows * pitch + machine.array_rows * wide)
        warp, a_at, w_at = special(b, SR.WARPID), umov(b, a), umov(b, a + self.rows * pitch)
        with only(b, warp, 0):
            fill(b, b.shared_bytes)
        c = zeros(b, self.rows * machine.array_columns * max(self.strips) // 32)
        b.emit(MODE, Mode.SYSTOLIC)
        for w, units in enumerate(self.strips):
            with only(b, warp, w), turns(b, self.turns):
                self._turn(b, units, c, a_at, pitch, w_at, wide)
        b.emit(MODE, Mode.SIMD)
        b.emit(EXIT)
        launch = Launch("lsma_loop", (self.blocks, 1, 1), (), ("loop",))
        return program(machine, b.finish(), (launch,))

    def _turn(
        self, b: KernelBuilder, units: int, c: VReg, a: VUReg, pitch: int, w: VUReg, wide: int
    ) -> None:
        for _ in range(DEPTH):
            b.emit(SMA_LDB, Element.F16, units, w, 0, wide)
            b.emit(SMA_SWAP, units)
            b.emit(LSMA, Element.F16, Start.ADD, Space.REG, c, units, self.rows, a, 0, pitch)
        b.emit(SMA_COMMIT)
        b.emit(SMA_WAIT, 1)


def zeros(b: KernelBuilder, words: int) -> VReg:
    """Registers that hold 0."""
    r = b.reg(words)
    for i in range(words):
        b.emit(MOV, r[i], RZ)
    return r


def fill(b: KernelBuilder, nbytes: int) -> None:
    """Shared memory from 0 on = 0, by one warp."""
    zero, base, lane = zeros(b, 4), umov(b, 0), mul(b, lane_id(b), 16)
    for at in range(0, nbytes, 512):
        b.emit(STS, Width._128, base, lane, at, zero)
    b.shared(-nbytes % 512)


# --- latencies


@dataclass(frozen=True)
class GlobalChase:
    """One warp walks a ring of `sectors` sectors of 32 bytes, `steps` loads a launch."""

    sectors: int
    steps: int
    launches: int = 1

    def program(self, machine: Machine) -> Program:
        b = KernelBuilder("chase", (32, 1, 1), machine)
        base, at = param(b, 0), fixed(b, 0)
        self._walk(b, base, at)
        ring = np.zeros((self.sectors, SECTOR // 4), np.uint32)
        ring[:, 0] = (np.arange(self.sectors) + 1) % self.sectors * SECTOR
        launch = Launch(
            "chase", (1, 1, 1), (BASE,), ("loop",), (Operand("ring", BASE, ring.nbytes, "r"),)
        )
        objects = (Object("ring", BASE, ring.nbytes),)
        return program(
            machine, b.finish(), (launch,) * self.launches, rodata=ring.tobytes(), objects=objects
        )

    def _walk(self, b: KernelBuilder, base: VUReg, at: VReg) -> None:
        with turns(b, self.steps // UNROLL):
            for _ in range(UNROLL):
                b.emit(LDG, Width._32, at, base, at, 0)
        b.emit(EXIT)


@dataclass(frozen=True)
class SharedChase:
    """One warp loads from shared memory, over and over, the address that it loads from."""

    turns: int

    def program(self, machine: Machine) -> Program:
        b = KernelBuilder("chase", (32, 1, 1), machine)
        base, at = umov(b, b.shared(512)), fixed(b, 0)
        b.emit(STS, Width._32, base, at, 0, at)
        with turns(b, self.turns):
            for _ in range(UNROLL):
                b.emit(LDS, Width._32, at, base, at, 0)
        b.emit(EXIT)
        return program(machine, b.finish(), (Launch("chase", (1, 1, 1), (), ("loop",)),))


def after_launch(replay: Replay, launch: int = -1) -> float:
    """Cycles of one of a run's launches, the last if not said, from its first instruction on."""
    return replay.launches[launch].timing.cycles - replay.machine.launch_cycles


# --- bandwidths


@dataclass(frozen=True)
class Copy:
    """Every block loads (or stores) a chunk of 64 KB, 16 bytes a lane; block i takes chunk i mod `chunks`."""

    blocks: int
    chunks: int
    writes: bool = False
    launches: int = 1

    def program(self, machine: Machine) -> Program:
        b = KernelBuilder("copy", (THREADS, 1, 1), machine)
        base, chunk = param(b, 0), b.ureg()
        b.emit(UIREM, chunk, special(b, SR.CTAID_X), self.chunks)
        move(b, base, umul(b, chunk, CHUNK))
        transfer(b, base, mul(b, thread_id(b), 16), self.writes)
        b.emit(EXIT)
        nbytes = self.chunks * CHUNK
        ports = () if self.writes else (Port("data", "u8", (nbytes,), BASE),)
        operand = Operand("data", BASE, nbytes, "w" if self.writes else "r")
        launch = Launch("copy", (self.blocks, 1, 1), (BASE,), ("copy",), (operand,))
        return program(
            machine, b.finish(), (launch,) * self.launches, inputs=ports, arena_bytes=nbytes
        )


@dataclass(frozen=True)
class Sweeps:
    """Every block loads all chunks, again and again: blocks that run at once ask for the same."""

    blocks: int
    chunks: int
    sweeps: int

    def program(self, machine: Machine) -> Program:
        b, nbytes = KernelBuilder("sweeps", (THREADS, 1, 1), machine), self.chunks * CHUNK
        base, at = param(b, 0), mul(b, thread_id(b), 16)
        with turns(b, self.sweeps):
            with turns(b, self.chunks):
                transfer(b, base, at, writes=False)
                b.emit(UIADD, Bits32._64, base, base, CHUNK)
            b.emit(UIADD, Bits32._64, base, base, -nbytes)
        b.emit(EXIT)
        operand = Operand("data", BASE, nbytes, "r")
        launch = Launch("sweeps", (self.blocks, 1, 1), (BASE,), ("sweeps",), (operand,))
        ports = (Port("data", "u8", (nbytes,), BASE),)
        return program(machine, b.finish(), (launch,), inputs=ports, arena_bytes=nbytes)


def transfer(b: KernelBuilder, base: VUReg, at: VReg, writes: bool) -> None:
    """A chunk, 16 bytes a lane."""
    value = zeros(b, 4)
    for offset in range(0, CHUNK, 16 * THREADS):
        if writes:
            b.emit(STG, Width._128, base, at, offset, value)
        else:
            b.emit(LDG, Width._128, b.reg(4), base, at, offset)


def bandwidth(lab: Lab, copy: Copy, target: str) -> float:
    """Bytes a second of the last launch."""
    r = lab.run(copy, target)
    return copy.blocks * CHUNK * r.machine.clock_hz / after_launch(r)
