"""The async extension: a DMA engine that copies from global to shared memory while warps do something else.

A copy joins the warp's queue like a systolic command (`SMA.COMMIT` and `SMA.WAIT` see to its group as well), and is executed at the wait that
completes its group. Until then what it will write is claimed: nobody may read or write it, and no other command may use it. FILL.DUP copies an image
as vector memory holds it, DMA.LD copies bytes as they are.
"""

from __future__ import annotations

from typing import Any

from .lanes import U32, U64
from .operands import READ, Signed, Src, Unsigned, UReg, bits
from .vector_memory import Vector

LINE = 16
"""A transfer's addresses and size are multiples of it."""


class FILL_DUP(Vector, opcode=0x160, name="FILL.DUP", unit="dma", extension="async"):
    """Stored rows v0 … v0 + rows - 1 of descriptor cd's image, at most a ring of them, with the halo and the copies.

    Element (v, x, cb, lane, e) = image n = g · wn + e mod wn, line y - padT, column x - padL, channel cb · P + lane; with T > 1 lane
    t · C + c gets channel c of column x - padL + t · dW. It is 0 outside the image and in lanes that hold nothing. A pixel is fetched
    once, however many its copies.
    """

    cd: Unsigned = bits(15, 14)
    v0: UReg = bits(63, 58, use=READ)
    rows: UReg = bits(57, 52, use=READ)

    def execute(self, m: Any) -> None:
        m.fill(self, int(m.uniform(self.v0, U32)[0]), int(m.uniform(self.rows, U32)[0]))


class DMA_LD(Vector, opcode=0x161, name="DMA.LD", unit="dma", extension="async"):
    """Shared memory from s + offset on = `bytes` bytes of global memory from base on. Addresses and size are multiples of 16."""

    s: UReg = bits(63, 58, use=READ)
    offset: Signed = bits(127, 104)
    base: UReg = bits(57, 52, use=READ, words=2)
    bytes: Src = bits(97, 64, use=READ)

    syntax = "[{s}+{offset}], [{base}], {bytes}"

    def refusal(self) -> str:
        if self.bytes.kind == Src.REG:
            return f"bytes is no register, but {self.bytes}"
        return super().refusal()

    def execute(self, m: Any) -> None:
        target = int(m.uniform(self.s, U32)[0]) + int(self.offset) & 0xFFFFFFFF
        source, size = int(m.uniform(self.base, U64)[0]), int(m.uniform(self.bytes, U32)[0])
        m.copy(self, target, source, size)
