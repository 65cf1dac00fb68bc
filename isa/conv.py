"""The conv extension: loads that know the image, so that convolution needs no materialised im2col.

A convolution is a matrix product whose left operand is addressed, never stored: row = output pixel, column = (tap, channel).
A lane holds its output pixel's top left input coordinate in `pix`; a tap moves it, and what falls outside the image is zero.

      pix ─┐                 x →  0            W
           ▼             y ↓  · · ┌────────────┐
      (−1, −1) + tap      pix → ▫ ▫            │     ▫ = (y, x) outside: zero or a byte, memory untouched
      (y, x) of pix            · ▫│■           │     ■ = inside: load base + a + offset
"""

from __future__ import annotations

from typing import Any

from .base.algebra import by_access, nth
from .base.memory import global_address, load
from .core import Instr
from .lanes import S16, S32, U32, LaneType, Value, bitcast, convert, select, shr
from .modifiers import Width
from .operands import READ, WRITE, Reg, Signed, Src, Unsigned, UReg, bits


class LDG_IM2COL(Instr, opcode=0x140, name="LDG.IM2COL", unit="lsu_global", extension="conv"):
    """d = global memory at base + a + offset where pix + tap lies in the image, else 0 with no access.

    `pix` and `tap` are (y << 16) | (x & 0xffff), signed 16-bit halves that are added separately in 32 bits; `size` is
    (H << 16) | W, unsigned. Inside means 0 <= y < H and 0 <= x < W.
    """

    width: Width = bits(16, 14)
    d: Reg = bits(33, 26, use=WRITE, words=by_access)
    base: UReg = bits(63, 58, use=READ, words=2)
    a: Reg = bits(41, 34, use=READ)
    offset: Signed = bits(127, 112)
    pix: Reg = bits(57, 50, use=READ)
    tap: Src = bits(97, 64, use=READ)
    size: UReg = bits(103, 98, use=READ)

    syntax = "{d}, [{base}+{a}+{offset}], {pix}, {tap}, {size}"

    def execute(self, m: Any) -> None:
        address = global_address(m, self.base, self.a, self.offset)
        load(m, "global", address, self.width, self.d, self.inside(m))

    def inside(self, m: Any) -> Value:
        """Booleans: which lanes' taps are in the image."""
        (y, x), (dy, dx) = (
            coordinates(w) for w in (m.read(self.pix, U32), m.source(self.tap, U32))
        )
        size = m.uniform(self.size, U32)
        height, width = (bitcast(n, S32) for n in (shr(size, 16), size & 0xFFFF))
        y, x = y + dy, x + dx
        return (y >= 0) & (y < height) & (x >= 0) & (x < width)


class LDG_IM2COL_FILL(
    LDG_IM2COL, opcode=0x141, name="LDG.IM2COL.FILL", unit="lsu_global", extension="conv"
):
    """LDG.IM2COL, but what lies outside of the image has `fill` in each byte: integers are padded with the number that means zero.

    Tensor copies of GPUs fill in the same place, with zeros or NaN; the byte is assumed.
    """

    fill: Unsigned = bits(111, 104)

    syntax = "{d}, [{base}+{a}+{offset}], {pix}, {tap}, {size}, {fill}"

    def execute(self, m: Any) -> None:
        address, type = global_address(m, self.base, self.a, self.offset), self.width.lane
        inside, outside = self.inside(m), filled(int(self.fill), type)
        found = m.load("global", address, type, self.width.words, inside)
        for i, value in enumerate(found):
            m.write(nth(self.d, i), select(inside, value, outside))


def filled(fill: int, type: LaneType) -> int:
    """The number of a type that has a byte in each of its bytes.

    >>> filled(0x80, S16), hex(filled(0x80, U32))
    (-32640, '0x80808080')
    """
    word = fill * 0x01010101 & (1 << type.bits) - 1
    return word - (word >> type.bits - 1 << type.bits) if type.kind == "s" else word


def coordinates(word: Value) -> tuple[Value, Value]:
    """(y, x) of a packed pair, as S32."""
    return shr(bitcast(word, S32), 16), convert(convert(word, S16), S32)
