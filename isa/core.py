"""Declare an instruction once: one class body gives encoder, decoder, text, operand sets, manual and semantics.

    127            96 95             64 63                       14 13   10 9      0
    +----------------+-----------------+--------------------------+-------+---------+
    |  fields, immediates: wherever the class body puts them      | guard | opcode  |
    +----------------+-----------------+--------------------------+-------+---------+

    class Fadd(Instr, opcode=0x40, unit="fma"):
        '''rd = a + b, rounded to nearest even.'''
        type: FloatType = bits(18, 14)
        d: Reg = bits(26, 19, use=WRITE, words=by_type)
        a: Reg = bits(34, 27, use=READ, words=by_type)
        b: Src = bits(68, 35, use=READ, words=by_type)

        def execute(self, m): m.write(self.d, m.read(self.a, self.type.lane) + m.source(self.b, self.type.lane))

`execute` is the specification. It is written in the lane algebra (`lanes.py`), so the reference engine runs it on numpy
arrays of 32 lanes and the fast engine traces the very same function into vector machine code.

Text: modifiers (fields whose kind is a `Modifier`) are suffixes of the mnemonic, the other fields follow in order:
`@!P0 FADD.F32 R4, R5, 0x3f800000`. A class may give `syntax` (`"{d}, [{base}+{a}+{offset}]"`); brackets and plus signs are
decoration, reading goes by position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform, get_type_hints

from .errors import IsaError
from .operands import (
    READ,
    Bits,
    Convergence,
    Guard,
    Modifier,
    Pred,
    Reg,
    Src,
    UReg,
    bits,
    misplaced,
)

WORD = 128
OPCODE_BITS = 10
CUSTOM = range(0x300, 0x400)
"""Opcodes that no built-in instruction uses: plugins live here."""

MODES = SIMD, SYSTOLIC = "simd", "systolic"
"""The modes of an SM. Machines without the systolic extension know only the first."""
TAKEN = frozenset({"fma", "sfu", "fp64", "tensor", "tensor_f16", "tensor_int", "outer"})
"""Units whose lanes, or whose place, the systolic array takes in systolic mode."""

# --- the instruction ---------------------------------------------------------------------------------------------------

TABLE: dict[int, type[Instr]] = {}
BY_NAME: dict[str, type[Instr]] = {}


@dataclass(frozen=True)
class Access:
    """One operand as hazards see it: the field, its first register, how many, and whether it is read or written."""

    field: str
    first: Reg | UReg | Pred | Convergence
    words: int
    use: str


@dataclass_transform(frozen_default=True, field_specifiers=(bits,))
class Declared:
    """Tells type checkers that the classes below it are dataclasses whose fields `bits` declares (the marked class itself is not)."""


class Instr(Declared):
    """Base of every instruction. Subclass it to add one; nothing else needs to change.

    Class keywords: `opcode`; `name` (default: the class name in capitals); `extension` ("base", "tensor", …, which a target
    must list); `unit`, the row of the machine description that holds latency and issue interval. Without `opcode` the class
    is a family: a base for instructions that share rules.
    """

    guard: Guard = bits(13, 10, use=READ, default=Guard(7), kw_only=True)

    opcode: ClassVar[int]
    mnemonic: ClassVar[str]
    extension: ClassVar[str]
    also: ClassVar[tuple[str, ...]] = ()
    """Other extensions that have it as well."""
    unit: ClassVar[str]
    syntax: ClassVar[str] = ""
    modes: ClassVar[frozenset[str]] = frozenset(MODES)
    """SM modes in which the instruction is legal: SIMD alone if its unit is TAKEN in the other, unless the class says."""
    layout: ClassVar[dict[str, tuple[Any, Bits]]]
    used: ClassVar[int]
    limits: ClassVar[tuple[tuple[str, tuple[Any, ...]], ...]]
    """Fields that do not take every value of their kind."""
    spans: ClassVar[tuple[tuple[str, Bits], ...]]
    """Operands that may take several registers."""

    def __init_subclass__(
        cls,
        *,
        opcode: int | None = None,
        unit: str = "",
        name: str = "",
        extension: str = "base",
        **kw: Any,
    ) -> None:
        super().__init_subclass__(**kw)
        if unit:
            cls.unit = unit
            if unit in TAKEN:
                cls.modes = frozenset({SIMD})
        if (
            opcode is None
        ):  # a family: shared rules for the instructions below it, no instruction itself
            return
        dataclass(frozen=True)(cls)
        cls.opcode, cls.mnemonic, cls.extension = opcode, name or cls.__name__.upper(), extension
        kinds = get_type_hints(cls)
        fields = [f for f in dataclasses.fields(cls) if "bits" in f.metadata]
        cls.layout = {
            f.name: (kinds[f.name], f.metadata["bits"])
            for f in sorted(fields, key=lambda f: f.name != "guard")
        }
        cls.used = (1 << OPCODE_BITS) - 1
        for field_name, (_, b) in cls.layout.items():
            if b.hi >= WORD or b.hi < b.lo or cls.used & b.mask:
                raise IsaError(
                    "E504",
                    f"{cls.mnemonic}.{field_name}: bits {b.hi}:{b.lo} overlap or fall outside the word",
                )
            cls.used |= b.mask
        cls.limits = tuple((n, b.only) for n, (_, b) in cls.layout.items() if b.only)
        cls.spans = tuple((n, b) for n, (_, b) in cls.layout.items() if b.use and b.words != 1)
        if opcode >> OPCODE_BITS or opcode in TABLE or cls.mnemonic in BY_NAME:
            raise IsaError("E504", f"{cls.mnemonic}: opcode {opcode:#05x} or name already taken")
        TABLE[opcode], BY_NAME[cls.mnemonic] = cls, cls

    @classmethod
    def within(cls, extensions: Iterable[str]) -> bool:
        """Whether a machine with these extensions has the instruction."""
        return cls.extension == "base" or not {cls.extension, *cls.also}.isdisjoint(extensions)

    @classmethod
    def modifiers(cls) -> dict[str, type[Modifier]]:
        """The suffix fields, in order."""
        return {n: k for n, (k, _) in cls.layout.items() if issubclass(k, Modifier)}

    @classmethod
    def operands(cls) -> dict[str, tuple[Any, Bits]]:
        """Every field but guard and suffixes, in order."""
        return {
            n: kb
            for n, kb in cls.layout.items()
            if n != "guard" and not issubclass(kb[0], Modifier)
        }

    def encode(self) -> int:
        """The 128-bit word; IsaError if a field is out of its range."""
        word = self.opcode
        for name, (_, b) in self.layout.items():
            try:
                word |= getattr(self, name).pack(b.width) << b.lo
            except IsaError as e:
                raise IsaError(e.code, f"{self.mnemonic}: {name}: {e.message}") from None
        self.check()
        return word

    @staticmethod
    def decode(word: int) -> Instr:
        """The instruction in a word; IsaError for anything that `encode` would not have written."""
        cls = TABLE.get(word & (1 << OPCODE_BITS) - 1)
        if cls is None or word & ~cls.used:
            raise IsaError("E503", f"not an instruction: {word:#034x}")
        it = cls(
            **{
                n: kind.unpack((word & b.mask) >> b.lo, b.width)
                for n, (kind, b) in cls.layout.items()
            }
        )
        it.check()
        return it

    def check(self) -> None:
        """IsaError if every field fits its bits and yet there is no such instruction: see `refusal`."""
        if reason := next(self._refusals(), "") or self.refusal():
            raise IsaError("E505", f"{self}: {reason}")

    def refusal(self) -> str:
        """Why this combination of fields does not exist, or "". A subclass states its own rule here, if it has one."""
        return ""

    def _refusals(self) -> Iterator[str]:
        for name, only in self.limits:
            if (value := getattr(self, name)) not in only:
                yield f"{name} is one of {', '.join(map(str, only))}, not {value}"
        for name, b in self.spans:
            value = getattr(self, name)
            words = b.words if isinstance(b.words, int) else b.words(self)
            if words > 1 and (
                reason := misplaced(value.value if isinstance(value, Src) else value, words)
            ):
                yield f"{name}: {reason}"

    def accesses(self) -> Iterator[Access]:
        """What the instruction reads and writes: registers, uniform registers, predicates (the guard included).

        RZ, URZ and PT are left out. The engines, liveness, scheduling and timing all ask here and nowhere else.
        """
        for name, (_, b) in self.layout.items():
            value = getattr(self, name)
            if not b.use:
                continue
            if isinstance(value, Src):
                value = value.value
            if isinstance(value, Guard):
                value = value.pred
            if isinstance(value, (Reg, UReg, Pred)) and int(value) in value.special:
                continue
            if isinstance(value, (Reg, UReg, Pred, Convergence)):
                words = b.words if isinstance(b.words, int) else b.words(self)
                yield Access(name, value, words if isinstance(value, (Reg, UReg)) else 1, b.use)

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard != 7 else ""
        suffix = "".join(f".{getattr(self, n)}" for n in self.modifiers())
        names = self.operands()
        text = (self.syntax or ", ".join(f"{{{n}}}" for n in names)).format(
            **{n: getattr(self, n) for n in names}
        )
        return f"{guard}{self.mnemonic}{suffix} {text.replace('+-', '-')}".rstrip()

    def execute(self, m: Any) -> None:
        """What the instruction does to a warp (`knapper.isa.lanes.Warp`)."""
        raise NotImplementedError(f"{self.mnemonic} has no semantics")

    def needed(self) -> str:
        """An extension that this use of it takes beside its class's own, or ""."""
        return ""

    def resource(self) -> str:
        """The row of the machine's unit table that this instruction occupies; `unit` unless its type decides."""
        return self.unit

    def macs(self, lanes: int) -> int:
        """Multiply-accumulates done when `lanes` lanes are active."""
        return 0


dataclass(frozen=True)(Instr)  # for its one field, guard; its subclasses see to themselves


def by_type(i: Any) -> int:
    """Registers an operand of the instruction's own type takes: two for a 64-bit type, else one."""
    return 2 if i.type.lane.bits == 64 else 1
