"""Loads and stores: global (one flat 64-bit space), shared (a block's), local (a thread's).

Every access is a multiple of its own size, `.128` 16 bytes; anything else, or an address outside the space, is a fault.
Lanes that the guard leaves out touch nothing. If several lanes store to one address, the highest lane wins.
"""

from __future__ import annotations

from typing import Any

from ..core import Instr
from ..lanes import S32, S64, U32, U64, Value, bitcast, convert
from ..modifiers import STORES, Width
from ..operands import READ, WRITE, Reg, Signed, UReg, bits
from .algebra import by_access, nth


def load(
    m: Any, space: str, address: Value, width: Width, d: Reg, where: Value | None = None
) -> None:
    """Registers from d on = memory from `address` on."""
    for i, value in enumerate(m.load(space, address, width.lane, width.words, where)):
        m.write(nth(d, i), value)


def store(m: Any, space: str, address: Value, width: Width, s: Reg) -> None:
    """Memory from `address` on = registers from s on."""
    m.store(space, address, [m.read(nth(s, i), width.lane) for i in range(width.words)])


def global_address(m: Any, base: UReg, a: Reg, offset: Signed) -> Value:
    """A uniform 64-bit base, a signed 32-bit byte offset a lane, a constant; U64, the sum wraps."""
    lane = convert(m.read(a, S32), S64) + int(offset)
    return m.uniform(base, U64) + bitcast(lane, U64)


def shared_address(m: Any, base: UReg, a: Reg, offset: Signed) -> Value:
    """A uniform 32-bit base, a 32-bit byte offset a lane, a constant; U32, the sum wraps."""
    return m.uniform(base, U32) + local_address(m, a, offset)


def local_address(m: Any, a: Reg, offset: Signed) -> Value:
    """A 32-bit byte offset a lane and a constant; U32, the sum wraps."""
    return m.read(a, U32) + (int(offset) & 0xFFFFFFFF)


class LDG(Instr, opcode=0x060, unit="lsu_global"):
    """d = global memory at base + a + offset. Narrow types are extended to 32 bits."""

    width: Width = bits(16, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_access)
    base: UReg = bits(63, 58, use=READ, words=2)
    a: Reg = bits(41, 34, use=READ)
    offset: Signed = bits(127, 104)

    syntax = "{d}, [{base}+{a}+{offset}]"

    def execute(self, m: Any) -> None:
        load(m, "global", global_address(m, self.base, self.a, self.offset), self.width, self.d)


class STG(Instr, opcode=0x061, unit="lsu_global"):
    """Global memory at base + a + offset = s. Narrow types take the low bits."""

    width: Width = bits(16, 14, only=STORES)
    base: UReg = bits(63, 58, use=READ, words=2)
    a: Reg = bits(41, 34, use=READ)
    offset: Signed = bits(127, 104)
    s: Reg = bits(49, 42, use=READ, words=by_access)

    syntax = "[{base}+{a}+{offset}], {s}"

    def execute(self, m: Any) -> None:
        store(m, "global", global_address(m, self.base, self.a, self.offset), self.width, self.s)


class LDS(Instr, opcode=0x062, unit="lsu_shared"):
    """d = shared memory at base + a + offset."""

    width: Width = bits(16, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_access)
    base: UReg = bits(63, 58, use=READ)
    a: Reg = bits(41, 34, use=READ)
    offset: Signed = bits(127, 104)

    syntax = "{d}, [{base}+{a}+{offset}]"

    def execute(self, m: Any) -> None:
        load(m, "shared", shared_address(m, self.base, self.a, self.offset), self.width, self.d)


class STS(Instr, opcode=0x063, unit="lsu_shared"):
    """Shared memory at base + a + offset = s."""

    width: Width = bits(16, 14, only=STORES)
    base: UReg = bits(63, 58, use=READ)
    a: Reg = bits(41, 34, use=READ)
    offset: Signed = bits(127, 104)
    s: Reg = bits(49, 42, use=READ, words=by_access)

    syntax = "[{base}+{a}+{offset}], {s}"

    def execute(self, m: Any) -> None:
        store(m, "shared", shared_address(m, self.base, self.a, self.offset), self.width, self.s)


class LDL(Instr, opcode=0x064, unit="lsu_local"):
    """d = the thread's local memory at a + offset."""

    width: Width = bits(16, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_access)
    a: Reg = bits(41, 34, use=READ)
    offset: Signed = bits(127, 104)

    syntax = "{d}, [{a}+{offset}]"

    def execute(self, m: Any) -> None:
        load(m, "local", local_address(m, self.a, self.offset), self.width, self.d)


class STL(Instr, opcode=0x065, unit="lsu_local"):
    """The thread's local memory at a + offset = s."""

    width: Width = bits(16, 14, only=STORES)
    a: Reg = bits(41, 34, use=READ)
    offset: Signed = bits(127, 104)
    s: Reg = bits(49, 42, use=READ, words=by_access)

    syntax = "[{a}+{offset}], {s}"

    def execute(self, m: Any) -> None:
        store(m, "local", local_address(m, self.a, self.offset), self.width, self.s)
