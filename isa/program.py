"""What passes from compiler to runtime, in memory: kernels, launches, data. `image.py` turns it into ELF and back.

Device memory is one flat space. Addresses start at `BASE`, so that null is never valid. Read-only data (weights) comes first, at
`BASE`; inputs, outputs and scratch buffers follow in the arena, placed by the compiler's memory plan.

    BASE ─ rodata ─┬─ arena (inputs, outputs, scratch; `arena_bytes`) ─┐

An input and an output at one address may be a state (`Program.state`): a cache that grows, the hidden vector of a recurrent network.

All sizes are fixed. `rows` has what becomes of outputs whose number of rows the data decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from . import instructions  # noqa: F401  # fills the table that decoding needs
from .core import Instr
from .errors import IsaError

BASE = 0x1000_0000
ALIGN = 256
"""Buffers and rodata objects start at multiples of this."""

decode = lru_cache(1 << 16)(Instr.decode)
"""Kernels share most of their instructions: each is decoded once."""


@dataclass(frozen=True)
class Kernel:
    """Code that one launch or many run.

    `roles[i]` is the index into a launch's `nodes` that instruction i works for (the line table, shared by all launches).
    """

    name: str
    words: bytes
    """The encoded instructions, 16 bytes each, little-endian."""
    roles: tuple[int, ...]
    block: tuple[int, int, int]
    """Threads a block (x, y, z); x·y·z is a multiple of 32 after rounding up: spare lanes of the last warp are inactive."""
    registers: int
    """Vector registers a warp uses."""
    shared_bytes: int = 0
    local_bytes: int = 0
    """Local memory a thread."""
    mode_entry: str = "simd"
    mode_exit: str = "simd"
    matrix: bool = False
    """Its multiply-accumulates count as `macs_executed`."""
    accumulators: int = 0
    """Words of accumulator memory a block; 0: whatever the SM has."""

    @cached_property
    def code(self) -> tuple[Instr, ...]:
        """The decoded instructions; IsaError for a word that is none."""
        return tuple(self._decode(i) for i in range(len(self.words) // 16))

    def _decode(self, i: int) -> Instr:
        try:
            return decode(int.from_bytes(self.words[16 * i : 16 * i + 16], "little"))
        except IsaError as e:
            raise IsaError(
                e.code, e.message, where=f"kernel {self.name}: instruction {i}"
            ) from None

    @staticmethod
    def encode(code: Iterable[Instr]) -> bytes:
        """Instructions → `words`."""
        return b"".join(i.encode().to_bytes(16, "little") for i in code)

    @property
    def threads(self) -> int:
        x, y, z = self.block
        return x * y * z

    @property
    def warps(self) -> int:
        return -(-self.threads // 32)


@dataclass(frozen=True)
class Operand:
    """A buffer that a launch touches, for range checks and byte counts: `use` is r, w or rw."""

    value: str
    address: int
    bytes: int
    use: str


@dataclass(frozen=True)
class Offload:
    """A launch that the host computes, on machines whose `nonmatrix` is "host". The kernel says which values come out; the machine's host and
    link say how long it takes.

    What launches of the host that follow each other make for one another stays with it.
    """

    sent: int
    """Bytes over the link before it: what it reads, and the host does not have."""
    received: int
    """Bytes over the link after it: what it makes, and launches behind the host's, or the network's results, need."""
    asked: bool
    """The launch before it was the accelerator's, so that the host must be asked."""


@dataclass(frozen=True)
class Launch:
    """One kernel over one grid. `params` are 64-bit words, the constant bank that `ULDC` reads from offset 0 on."""

    kernel: str
    grid: tuple[int, int, int]
    params: tuple[int, ...]
    nodes: tuple[str, ...]
    """Graph nodes it computes; `Kernel.roles` indexes them."""
    operands: tuple[Operand, ...] = ()
    macs: int = 0
    """Useful multiply-accumulates (of convolutions and matrix products)."""
    note: str = ""
    """The plan's line, for people."""
    host: Offload | None = None
    """None: the accelerator computes it."""


@dataclass(frozen=True)
class Port:
    """An input or output of the network."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    address: int

    @property
    def count(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n


@dataclass(frozen=True)
class Object:
    """A read-only tensor in rodata."""

    name: str
    address: int
    bytes: int


@dataclass(frozen=True)
class Program:
    """A whole compiled network."""

    target: Mapping[str, Any]
    """The resolved machine description, as plain data (`Machine.to_dict`)."""
    kernels: Mapping[str, Kernel]
    launches: tuple[Launch, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    rodata: bytes | memoryview = b""
    """A reader gives a view of the file: nothing is copied."""
    objects: tuple[Object, ...] = ()
    arena_bytes: int = 0
    meta: Mapping[str, str] = field(default_factory=dict)
    """Provenance: pipeline text, model hash, knapper version, precision."""
    state: tuple[tuple[str, str], ...] = ()
    """Inputs and outputs that are one place in memory: what a run leaves there, the next one finds."""

    @property
    def arena_address(self) -> int:
        return BASE + -(-len(self.rodata) // ALIGN) * ALIGN
