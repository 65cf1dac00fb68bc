"""Decode whole kernels at once, in numpy: words → records that the engines' loops run, and refuse what may not run.

Instructions that differ only in register numbers share a `Variant`, for which the fast engine has one handler:

    word ── opcode, modifiers, kinds of sources, …  ─────────► variant
         └─ register numbers, offsets, immediates ─► slots ──► record of the instruction

A slot holds what a handler needs at run time: for a register the byte offset of its row in the warp's register file, for a
predicate the byte offset of its mask (and for a guard a second slot with the mask to flip it by), else the value itself. RZ is
a row of zeros when read and a row of waste when written, so handlers know no special cases; likewise URZ and PT.

    register file of a warp: R0 … R(n-1) | 8 rows of zeros | 8 rows of waste
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import OPCODE_BITS, SIMD, TABLE, Instr
from knapper.isa.errors import IsaError, MachineFault, raise_all
from knapper.isa.instructions import (
    BAR,
    BRA,
    BSSY,
    BSYNC,
    CONVDESC,
    DMA_LD,
    FILL_DUP,
    GATHK_PUSH,
    ILSMA,
    ILSMA_N,
    IM2COL_IPUSH,
    IM2COL_PUSH,
    ISMA_LDB,
    ISMA_LDB_N,
    LDG,
    LDG_IM2COL,
    LDG_IM2COL_FILL,
    LDL,
    LDS,
    LDSM,
    LSMA,
    MODE,
    OHMMA,
    SMA_LDB,
    STG,
    STL,
    STS,
    ULDC,
)
from knapper.isa.operands import (
    ZEROS,
    Bits,
    Extent,
    Guard,
    Label,
    Modifier,
    Operand,
    Pred,
    Reg,
    Src,
    UReg,
    alignment,
)
from knapper.isa.program import Kernel
from knapper.isa.systolic import ARRAY, Array
from knapper.isa.verify import mode_problems

from .faults import SWITCH

ROW = 128
"""Bytes of a register: 32 lanes of 32 bits."""
SPARE = ZEROS
"""Rows of zeros, and rows of waste: as many registers as RZ stands for."""
SLOTS = 10
RECORD = np.dtype(
    [
        ("handler", "u8"),
        ("pc", "u4"),
        ("guard", "u4"),
        ("flip", "u4"),
        ("kind", "u4"),
        ("slot", "i4", SLOTS),
    ],
    align=True,
)
"""An instruction ready to run, 64 bytes. `kind` is the opcode, for people."""
assert RECORD.itemsize == 64
WORDS = NDArray[np.uint64]
OPEN: set[type[Instr]] = {
    BRA,
    BSSY,
    BSYNC,
    BAR,
    ULDC,
    LDG,
    STG,
    LDS,
    STS,
    LDL,
    STL,
    LDSM,
    LDG_IM2COL,
    LDG_IM2COL_FILL,
    SMA_LDB,
    LSMA,
    ISMA_LDB,
    ILSMA,
    ISMA_LDB_N,
    ILSMA_N,
    OHMMA,
    CONVDESC,
    FILL_DUP,
    IM2COL_PUSH,
    IM2COL_IPUSH,
    GATHK_PUSH,
    DMA_LD,
}
"""Instructions whose immediates are slots, extents excepted. Of others they belong to the variant: constants of its handler."""


@dataclass(frozen=True)
class Variant:
    """What a handler is compiled for: one instruction with the register numbers left open."""

    instr: Instr = field(hash=False, compare=False)
    """A representative. Register fields are whatever the first such instruction had."""
    slots: dict[str, int] = field(hash=False, compare=False)
    """The slot of each field that is read at run time."""
    key: str
    """Equal for equal variants, in every process."""


@dataclass(frozen=True)
class Decoded:
    """Kernels ready to run; `records[spans[name]]` are one kernel's."""

    records: NDArray[Any]
    variants: tuple[Variant, ...]
    variant: NDArray[np.intp]
    """The index into `variants` of every instruction."""
    spans: dict[str, slice]
    array: Array = ARRAY
    """The target's systolic units."""


@dataclass(frozen=True)
class Limits:
    """What an instruction may refer to, one entry an instruction."""

    registers: NDArray[np.int64]
    length: NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """How a class's words are taken apart."""

    cls: type[Instr]
    keyed: int
    """The bits that tell variants apart."""
    slots: dict[str, int]

    @staticmethod
    def of(cls: type[Instr]) -> Shape:
        keyed, slots, n = (1 << OPCODE_BITS) - 1, {}, 0
        for name, (kind, b) in cls.layout.items():
            immediate = issubclass(kind, Operand) and not issubclass(kind, (Reg, UReg, Pred, Guard))
            if name == "guard":
                keyed |= (
                    b.mask if cls.refusal is not Instr.refusal else 0
                )  # `refusal` may look at it
            elif issubclass(kind, (Modifier, Extent)) or (immediate and cls not in OPEN):
                keyed |= b.mask
            else:
                keyed |= 3 << b.hi - 1 if kind is Src else 0
                slots[name], n = n, n + (2 if kind is Guard else 1)
        if n > SLOTS:
            raise IsaError(
                "E504", f"{cls.mnemonic} has more operands than the {SLOTS} slots of a record"
            )
        return Shape(cls, keyed, slots)


def words_of(kernel: Kernel) -> WORDS:
    """The words of a kernel as pairs of 64-bit halves, [n, 2], low half first."""
    return np.frombuffer(kernel.words, "<u8").reshape(-1, 2)


def bits_of(words: WORDS, b: Bits) -> NDArray[np.int64]:
    """A field of every word, as raw bits (at most 62)."""
    low, high = words[:, 0], words[:, 1]
    mask = np.uint64((1 << b.width) - 1)
    if b.lo >= 64:
        return ((high >> np.uint64(b.lo - 64)) & mask).view(np.int64)
    value = low >> np.uint64(b.lo)
    if b.hi >= 64:
        value = value | (high << np.uint64(64 - b.lo))
    return (value & mask).view(np.int64)


def _halves(mask: int) -> NDArray[np.uint64]:
    return np.array([mask & (1 << 64) - 1, mask >> 64], np.uint64)


def decode(kernels: Sequence[Kernel], extensions: Sequence[str], array: Array = ARRAY) -> Decoded:
    """Records and variants of all kernels; MachineFault E601 for every instruction that may not run.

    `extensions` and `array` are the target's.
    """
    lengths = [len(k.words) // 16 for k in kernels]
    words = (
        np.concatenate([words_of(k) for k in kernels]) if kernels else np.zeros((0, 2), np.uint64)
    )
    limits = Limits(
        np.repeat(np.array([k.registers for k in kernels], np.int64), lengths),
        np.repeat(np.array(lengths, np.int64), lengths),
    )
    starts = np.cumsum([0, *lengths])
    out = _Decoder(words, limits, tuple(extensions), array)
    out.run()
    for kernel, start in zip(kernels, starts.tolist(), strict=False):
        out.modes(kernel, start)
    owner = np.repeat(np.arange(len(kernels)), lengths)
    raise_all(
        _refused(kernels[owner[i]], int(i - starts[owner[i]]), why)
        for i, why in sorted(out.refused.items())
    )
    out.records["pc"] = np.arange(len(words)) - np.repeat(starts[:-1], lengths)
    spans = {
        k.name: slice(int(a), int(b)) for k, a, b in zip(kernels, starts, starts[1:], strict=False)
    }
    return Decoded(out.records, tuple(out.numbers), out.variant, spans, array)


def _refused(kernel: Kernel, pc: int, why: str) -> MachineFault:
    return MachineFault("E601", why, where=f"kernel {kernel.name}, pc {pc}")


class _Decoder:
    """One pass over the words of all kernels, opcode by opcode."""

    def __init__(
        self, words: WORDS, limits: Limits, extensions: tuple[str, ...], array: Array
    ) -> None:
        self.words, self.limits, self.extensions, self.array = words, limits, extensions, array
        self.records = np.zeros(len(words), RECORD)
        self.variant = np.zeros(len(words), np.intp)
        self.numbers: dict[Variant, int] = {}
        self.refused: dict[int, str] = {}

    def run(self) -> None:
        opcodes = (self.words[:, 0] & np.uint64((1 << OPCODE_BITS) - 1)).astype(np.int64)
        order = np.argsort(opcodes, kind="stable")
        cuts = np.flatnonzero(np.diff(opcodes[order])) + 1
        for group in np.split(order, cuts) if len(order) else []:
            opcode = int(opcodes[group[0]])
            if (cls := TABLE.get(opcode)) is None:
                self.refuse(group, f"not an instruction: opcode {opcode:#05x}")
            else:
                self.opcode(cls, group)

    def modes(self, kernel: Kernel, start: int) -> None:
        """Refuse what is illegal in its mode. A kernel in SIMD mode that never leaves it needs no look at its paths."""
        span = slice(start, start + len(kernel.words) // 16)
        illegal = {cls.opcode for cls in TABLE.values() if SIMD not in cls.modes} | {MODE.opcode}
        calm = not np.isin(self.records["kind"][span], [*illegal]).any()
        if self.refused or (calm and kernel.mode_entry == kernel.mode_exit == SIMD):
            return
        for pc, why in mode_problems(kernel, self.array.separate):
            self.refused.setdefault(start + pc, why)

    def refuse(self, where: NDArray[np.intp], why: str) -> None:
        for i in where.tolist():
            self.refused.setdefault(i, why)

    def opcode(self, cls: type[Instr], group: NDArray[np.intp]) -> None:
        """All instructions of one class."""
        if not cls.within(self.extensions):
            self.refuse(
                group,
                f"{cls.mnemonic} belongs to extension {cls.extension!r}, which the target lacks",
            )
            return
        words, shape = self.words[group], shape_of(cls)
        self.refuse(
            group[(words & ~_halves(cls.used) != 0).any(axis=1)],
            f"{cls.mnemonic}: unused bits are set",
        )
        for member, instr in self.split(shape, words, group):
            self.fields(shape, instr, words[member], group[member])

    def split(
        self, shape: Shape, words: WORDS, group: NDArray[np.intp]
    ) -> Iterator[tuple[NDArray[np.intp], Instr]]:
        """The variants among words of one class, each with a representative that decodes."""
        keys = words & _halves(shape.keyed)
        whole = np.ascontiguousarray(keys).view([("low", keys.dtype), ("high", keys.dtype)])[:, 0]
        _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
        for v, at in enumerate(first.tolist()):
            member = np.flatnonzero(inverse == v)
            try:
                instr = Instr.decode(_word(words[at]))
            except IsaError:
                self.explain(words[member], group[member])
                continue
            if (more := instr.needed()) and more not in self.extensions:
                self.refuse(
                    group[member], f"{instr}: it takes extension {more!r}, which the target lacks"
                )
            if reason := self.array.refusal(instr):
                self.refuse(group[member], f"{instr.mnemonic}: {reason}")
            self.variant[group[member]] = self.number(variant(shape, instr))
            yield member, instr

    def explain(self, words: WORDS, group: NDArray[np.intp]) -> None:
        """A representative was refused: look at its kin one by one."""
        for word, i in zip(words, group.tolist(), strict=True):
            try:
                Instr.decode(_word(word))
            except IsaError as e:
                self.refused.setdefault(i, e.message)

    def number(self, v: Variant) -> int:
        return self.numbers.setdefault(v, len(self.numbers))

    def fields(self, shape: Shape, instr: Instr, words: WORDS, group: NDArray[np.intp]) -> None:
        """Fill the slots of instructions of one variant."""
        records = self.records[group]
        records["kind"] = shape.cls.opcode
        if isinstance(instr, MODE):  # a barrier, whose number a record has in its first slot
            records["slot"][:, 0] = SWITCH + instr.mode
        for name, (kind, b) in shape.cls.layout.items():
            raw = bits_of(words, b)
            if name == "guard":
                records["guard"], records["flip"] = (raw & 7) * 4, -(raw >> 3) & 0xFFFFFFFF
                continue
            if name not in shape.slots:
                continue
            slot = shape.slots[name]
            if kind is Guard:
                records["slot"][:, slot + 1] = -(raw >> 3)
            records["slot"][:, slot] = self.slot(instr, name, kind, b, raw, group)
        self.records[group] = records

    def slot(
        self,
        instr: Instr,
        name: str,
        kind: type[Any],
        b: Bits,
        raw: NDArray[np.int64],
        group: NDArray[np.intp],
    ) -> NDArray[np.int64]:
        """What the slot of a field holds."""
        words = b.words if isinstance(b.words, int) else b.words(instr)
        if kind is Src:
            kind = (Reg, UReg, int)[getattr(instr, name).kind]
            raw = raw & 0xFFFFFFFF
        if b.only and not issubclass(kind, Modifier):
            self.refuse(
                group[~np.isin(raw, [int(v) & ((1 << b.width) - 1) for v in b.only])],
                f"{name} is none of {b.only}",
            )
        if kind is Reg:
            return self.register(name, raw, words, b.use, group)
        if kind is UReg:
            return self.uniform(name, raw, words, b.use, group)
        if kind is Guard or kind is Pred:
            return np.where((raw & 7 == 7) & ("w" in b.use), 8, raw & 7) * 4
        if kind is Label:
            self.refuse(
                group[raw >= self.limits.length[group]], f"{name} lies behind the end of the code"
            )
        if issubclass(kind, Operand) and kind.signed:
            return raw - ((raw >> b.width - 1) << b.width)
        return raw.astype(np.uint32).view(np.int32).astype(np.int64)

    def register(
        self, name: str, raw: NDArray[np.int64], words: int, use: str, group: NDArray[np.intp]
    ) -> NDArray[np.int64]:
        have, none = self.limits.registers[group], raw == 255
        self.refuse(
            group[~none & (raw % alignment(words) != 0)],
            f"{name} is not a multiple of {alignment(words)}",
        )
        if words > SPARE:
            self.refuse(group[none], f"{name} takes {words} registers: RZ stands for {SPARE}")
        self.refuse(
            group[~none & (raw + words > have)],
            f"{name} lies beyond the registers that the kernel declares",
        )
        return np.where(none, have + (SPARE if "w" in use else 0), raw) * ROW

    def uniform(
        self, name: str, raw: NDArray[np.int64], words: int, use: str, group: NDArray[np.intp]
    ) -> NDArray[np.int64]:
        none = raw == 63
        odd = (raw % alignment(words) != 0) | (raw + words > 63)
        self.refuse(
            group[odd & ~none | none & (words > SPARE)],
            f"{name} is no tuple of {words} uniform registers",
        )
        return np.where(none, 65 if "w" in use else 63, raw) * 4


_SHAPES: dict[type[Instr], Shape] = {}


def shape_of(cls: type[Instr]) -> Shape:
    """How to take words of a class apart."""
    if cls not in _SHAPES:
        _SHAPES[cls] = Shape.of(cls)
    return _SHAPES[cls]


def _word(halves: NDArray[np.uint64]) -> int:
    return int(halves[0]) | int(halves[1]) << 64


def variant(shape: Shape, instr: Instr) -> Variant:
    """The variant that an instruction belongs to."""
    parts = [shape.cls.mnemonic]
    for name, (kind, _) in shape.cls.layout.items():
        if kind is Src:
            parts.append(f"{name}=" + ("reg", "ureg", "imm")[getattr(instr, name).kind])
        elif name != "guard" and name not in shape.slots:
            parts.append(f"{name}={getattr(instr, name)}")
    return Variant(instr, shape.slots, " ".join(parts))
