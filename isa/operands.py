"""What an instruction's fields can be: registers, predicates, immediates, labels, modifiers; each knows its encoding and its text.

    d: Reg = bits(26, 19, use=WRITE)        R4          bits 26 to 19 of the word
    b: Src = bits(68, 35, use=READ)         R4, 7, c[0x10]

A field's place and use are `Bits`; `core.py` makes instructions of them.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from .errors import IsaError

READ, WRITE, UPDATE = "r", "w", "rw"

ZEROS = 8
"""Registers that RZ can stand for at once: the widest fragment."""


@dataclass(frozen=True)
class Bits:
    """Where a field lives in the word, inclusive, as in a hardware manual: bits[26:19], and how it is used.

    `words` is how many consecutive registers the operand spans: a number, or a function of the instruction.
    """

    hi: int
    lo: int
    use: str = ""
    words: int | Callable[[Any], int] = 1
    only: tuple[Any, ...] = ()
    """The values that exist, if not all that the kind offers."""

    @property
    def width(self) -> int:
        return self.hi - self.lo + 1

    @property
    def mask(self) -> int:
        return ((1 << self.width) - 1) << self.lo


def bits(
    hi: int,
    lo: int | None = None,
    *,
    use: str = "",
    words: int | Callable[[Any], int] = 1,
    only: tuple[Any, ...] = (),
    default: Any = dataclasses.MISSING,
    kw_only: bool = False,
) -> Any:
    """Declare a field: ``d: Reg = bits(26, 19, use=WRITE)``."""
    where = Bits(hi, hi if lo is None else lo, use, words, only)
    kw = {} if default is dataclasses.MISSING else {"default": default}
    return field(metadata={"bits": where}, kw_only=kw_only, **kw)


NUMBER = re.compile(r"-?(0x[0-9a-fA-F]{1,32}|[0-9]{1,40})")


def integer(text: str) -> int:
    """A number as assembly spells it: decimal, or hexadecimal behind 0x.

    >>> integer("-0x10"), integer("007")
    (-16, 7)
    """
    return int(text, 16 if "x" in text else 10)


# --- operand kinds: a value knows its range, its spelling and its bits -------------------------------------------------


class Operand(int):
    """A field value: an integer with a spelling."""

    prefix: ClassVar[str] = ""
    signed: ClassVar[bool] = False
    special: ClassVar[dict[int, str]] = {}
    """Numbers with a name of their own, such as RZ."""

    def __str__(self) -> str:
        return self.special.get(int(self), f"{self.prefix}{int(self)}")

    def __repr__(self) -> str:
        return str(self)

    @classmethod
    def parse(cls, text: str) -> Self:
        for number, name in cls.special.items():
            if text == name:
                return cls(number)
        if (m := re.fullmatch(re.escape(cls.prefix) + f"({NUMBER.pattern})", text)) is None:
            raise IsaError(
                "E501",
                f"expected {cls.prefix or 'a number'}{'N' if cls.prefix else ''}, got {text!r}",
            )
        return cls(integer(m[1]))

    @classmethod
    def bounds(cls, width: int) -> tuple[int, int]:
        return (-(1 << width - 1), (1 << width - 1) - 1) if cls.signed else (0, (1 << width) - 1)

    def pack(self, width: int) -> int:
        lo, hi = self.bounds(width)
        if not lo <= self <= hi:
            raise IsaError("E502", f"{self} is outside [{lo}, {hi}]")
        return int(self) & ((1 << width) - 1)

    @classmethod
    def unpack(cls, raw: int, width: int) -> Self:
        return cls(raw - (1 << width) if cls.signed and raw >> width - 1 else raw)


class Reg(Operand):
    """A vector register: 32 lanes of 32 bits. RZ reads as zero and swallows writes. 64-bit values take an even pair."""

    prefix = "R"
    special: ClassVar[dict[int, str]] = {255: "RZ"}


class UReg(Operand):
    """A uniform register: one 32-bit scalar a warp. URZ reads as zero. 64-bit values take an even pair."""

    prefix = "UR"
    special: ClassVar[dict[int, str]] = {63: "URZ"}


class Pred(Operand):
    """A predicate register: one bit a lane. PT is always true; writing it does nothing."""

    prefix = "P"
    special: ClassVar[dict[int, str]] = {7: "PT"}


class Guard(Operand):
    """A predicate as a condition: `P0`, `!P0`. Bit 3 negates."""

    special: ClassVar[dict[int, str]] = {
        n + 8 * neg: "!" * neg + ("PT" if n == 7 else f"P{n}") for n in range(8) for neg in (0, 1)
    }

    @property
    def pred(self) -> Pred:
        return Pred(self & 7)

    @property
    def negated(self) -> bool:
        return bool(self & 8)


class Convergence(Operand):
    """A convergence barrier, B0 to B15."""

    prefix = "B"


class Unsigned(Operand):
    """An unsigned immediate."""


class Extent(Unsigned):
    """An unsigned immediate that says how many registers some operand takes, or how much work an instruction is."""


class Signed(Operand):
    """A signed immediate."""

    signed = True


class Label(Operand):
    """A branch target: the index of an instruction in its kernel. Assembly shows it as `L12` and defines it as `L12:`."""

    prefix = "L"


class Src(int):
    """A source operand: a register, a uniform register or a 32-bit immediate. 34 bits: kind, payload.

    >>> Src.of(Reg(5)), Src.of(UReg(3)), Src.of(0x10), Src.of(-1)
    (R5, UR3, 0x10, 0xffffffff)
    """

    REG, UREG, IMM = range(3)

    @classmethod
    def of(cls, value: Reg | UReg | int) -> Self:
        """Wrap a register, or an integer taken modulo 2**32."""
        if isinstance(value, Src):
            return cls(value)
        kind = (
            cls.REG if isinstance(value, Reg) else cls.UREG if isinstance(value, UReg) else cls.IMM
        )
        return cls(kind << 32 | int(value) & 0xFFFFFFFF)

    @property
    def kind(self) -> int:
        return int(self) >> 32

    @property
    def payload(self) -> int:
        return int(self) & 0xFFFFFFFF

    @property
    def value(self) -> Reg | UReg | int:
        """The register, or the immediate as an unsigned integer."""
        return (Reg, UReg, int)[self.kind](self.payload)

    def __str__(self) -> str:
        return hex(self.payload) if self.kind == self.IMM else str(self.value)

    def __repr__(self) -> str:
        return str(self)

    @classmethod
    def parse(cls, text: str) -> Self:
        kind = UReg if text.startswith("U") else Reg if text.startswith("R") else None
        if kind is not None:
            return cls.of(kind.parse(text))
        if NUMBER.fullmatch(text) is None:
            raise IsaError(
                "E501", f"expected a register, a uniform register or a number, got {text!r}"
            )
        if not -(1 << 31) <= (number := integer(text)) < 1 << 32:
            raise IsaError("E502", f"{text} does not fit 32 bits")
        return cls.of(number)

    @classmethod
    def bounds(cls, width: int) -> tuple[int, int]:
        return 0, (cls.IMM + 1 << 32) - 1

    def pack(self, width: int) -> int:
        return int(self.unpack(int(self), width))

    @classmethod
    def unpack(cls, raw: int, width: int) -> Self:
        largest = {cls.REG: 0xFF, cls.UREG: 0x3F, cls.IMM: 0xFFFFFFFF}.get(raw >> 32, -1)
        if width != 34 or raw & 0xFFFFFFFF > largest:
            raise IsaError("E503", f"not a source operand: {raw:#x}")
        return cls(raw)


class Modifier(enum.IntEnum):
    """A suffix of the mnemonic, `.LT` or `.F32`. Member values are the encoding; member names are the spelling.

    A name that starts with an underscore is spelled without it (`_64` is `.64`).
    """

    def __str__(self) -> str:
        return self.name.removeprefix("_")

    @classmethod
    def parse(cls, text: str) -> Self:
        for member in cls:
            if str(member) == text:
                return member
        raise IsaError("E501", f"expected one of .{' .'.join(map(str, cls))}, got .{text}")

    def pack(self, width: int) -> int:
        return int(self)

    @classmethod
    def unpack(cls, raw: int, width: int) -> Self:
        try:
            return cls(raw)
        except ValueError:
            raise IsaError("E503", f"{cls.__name__} has no member {raw}") from None


def alignment(words: int) -> int:
    """What the first of so many registers is a multiple of: 4 for three or more."""
    return min(words, 2) if words < 3 else 4


def misplaced(first: Reg | UReg | int, words: int) -> str:
    """Why `words` registers cannot start at `first`, or "": they are aligned (`alignment`) and end before RZ or URZ.

    >>> misplaced(Reg(5), 2), misplaced(Reg(252), 8), misplaced(Reg(255), 8)
    ('R5 is not a multiple of 2', 'R252 and the 7 after it reach past R254', '')
    >>> misplaced(Reg(255), 9)
    'RZ stands for 8 registers at most, not for 9'
    """
    if not isinstance(first, (Reg, UReg)):
        return ""
    if int(first) in first.special:
        return (
            f"{first} stands for {ZEROS} registers at most, not for {words}"
            if words > ZEROS
            else ""
        )
    if first % (align := alignment(words)):
        return f"{first} is not a multiple of {align}"
    last = min(first.special) - 1
    return (
        f"{first} and the {words - 1} after it reach past {type(first)(last)}"
        if first + words - 1 > last
        else ""
    )
