"""Code before register allocation: virtual registers, and one small record an instruction.

A kernel of a thousand instructions must be built in milliseconds, so no `Instr` object is made here. What the class body of an instruction says about
its fields is compiled once into a `Shape` for each (class, modifiers) that occurs; a record is a shape and its operands.

    word      one 32-bit register's worth of a virtual value: the unit of liveness
    group     consecutive words that one `b.reg(words)` asked for: the unit of allocation
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self, cast

from knapper.isa.core import Instr
from knapper.isa.errors import CompileError
from knapper.isa.operands import Extent, Guard, Label, Modifier, Pred, Reg, Src, UReg

VECTOR, UNIFORM, PREDICATE = range(3)
FILES = {Reg: VECTOR, UReg: UNIFORM, Pred: PREDICATE, Guard: PREDICATE}
RZ, URZ, PT = Reg(255), UReg(63), Guard(7)
NAMED = {Reg: {255}, UReg: {63}, Pred: {7}, Guard: {7, 15}}
"""The only physical registers that code may name before allocation."""


@dataclass(frozen=True, slots=True)
class Virtual:
    """A virtual operand: `words` words from number `base` on, in one of the three register files."""

    base: int
    words: int = 1
    file: int = VECTOR
    negated: bool = False

    def __getitem__(self, key: int | slice) -> Self:
        """One word, or a sub-range of words."""
        lo, hi = (
            (key.start or 0, self.words if key.stop is None else key.stop)
            if isinstance(key, slice)
            else (key, key + 1)
        )
        if not 0 <= lo < hi <= self.words:
            raise IndexError(f"words {lo}:{hi} of a virtual register of {self.words}")
        return type(self)(self.base + lo, hi - lo, self.file, self.negated)


class VReg(Virtual):
    """Virtual vector registers."""

    __slots__ = ()


class VUReg(Virtual):
    """Virtual uniform registers."""

    __slots__ = ()


class VPred(Virtual):
    """A virtual predicate; `~p` is its negation, for guards."""

    __slots__ = ()

    def __invert__(self) -> VPred:
        return VPred(self.base, 1, PREDICATE, not self.negated)


FENCES = frozenset({"control", "barrier", "mode", "systolic"})
"""Units whose instructions nothing may pass."""


class VLabel:
    """A branch target; `at` is the index of the instruction it stands before, once placed."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = -1


@dataclass(frozen=True, slots=True)
class Slot:
    """One operand field: where its bits go and how it is used."""

    name: str
    kind: Any
    lo: int
    width: int
    use: str
    words: int
    low: int
    high: int
    """Bounds of an immediate."""


@dataclass(frozen=True, slots=True)
class Shape:
    """An instruction class with its modifiers chosen: all that does not depend on the operands."""

    cls: type[Instr]
    bits: int
    """Opcode and modifiers."""
    slots: tuple[Slot, ...]
    latency: int
    space: str
    """The memory it orders against: global, shared, local, accumulator; empty for none."""
    stores: bool
    operands: str
    """Another memory, of which it reads: values of sparse products lie in shared memory; empty for none."""
    fence: bool
    """Ends a basic block: control flow, convergence, barriers, and systolic commands, which act when another instruction says so."""
    wide: bool
    """Writes more than two words: its sources may not share registers with its result, unless they are the same value."""
    uniform: bool
    """Its writes touch every lane, active or not."""


@dataclass(slots=True)
class Record:
    """One instruction before allocation. `reads` and `writes` are word numbers;"""

    shape: Shape
    operands: tuple[Any, ...]
    guard: Any
    role: int
    reads: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    target: VLabel | None = None

    @property
    def guarded(self) -> bool:
        return isinstance(self.guard, Virtual)

    @property
    def condition(self) -> tuple[int, bool] | None:
        """The guard as (predicate word, negated); None if every active lane takes part."""
        return (self.guard.base, self.guard.negated) if isinstance(self.guard, Virtual) else None

    @property
    def name(self) -> str:
        return self.shape.cls.mnemonic


Signature = tuple[tuple[tuple[str, Any, Any], ...], tuple[int, ...], dict[str, Any]]
_SIGNATURES: dict[Any, Signature] = {}


def signature(cls: type[Instr]) -> Signature:
    """(fields in constructor order, positions of the modifiers and extents among them, defaults)."""
    return _SIGNATURES.get(cls) or _SIGNATURES.setdefault(cls, _signature(cls))


def _signature(cls: type[Instr]) -> Signature:
    fields = tuple((n, kind, b) for n, (kind, b) in cls.layout.items() if n != "guard")
    modifiers = tuple(
        i for i, (_, kind, _) in enumerate(fields) if issubclass(kind, (Modifier, Extent))
    )
    defaults = {n: getattr(cls, n) for n, _, _ in fields if hasattr(cls, n)}
    return fields, modifiers, defaults


WRITERS = frozenset({"outer", "bitmap"})
"""Units whose instructions write memory, though they may give a register besides."""


def space_of(cls: type[Instr], chosen: Mapping[str, Any]) -> str:
    """The memory an instruction orders against. Products in accumulator memory follow each other as they are written: k increases."""
    if cls.unit == "outer":
        return "accumulator" if "start" in cls.layout else ""
    if "offset" not in cls.layout:
        return ""
    if cls.unit == "bitmap":
        return "global" if chosen["memory"].name == "G" else "shared"
    if cls.mnemonic in ("ACC.LD", "ACC.ST"):
        return "accumulator"
    return cls.unit.removeprefix("lsu_") if cls.unit.startswith("lsu_") else ""


def shape(
    cls: type[Instr], modifiers: tuple[int, ...], latencies: dict[str, int], where: str
) -> Shape:
    """Compile a class body for chosen modifiers; CompileError E430 if they do not exist. `where` names the kernel."""
    fields, positions, _ = signature(cls)
    chosen = {fields[i][0]: fields[i][1](m) for i, m in zip(positions, modifiers, strict=True)}
    stand_in = SimpleNamespace(unit=cls.unit, **chosen)
    word, slots = cls.opcode, []
    for name, kind, b in fields:
        if name in chosen:
            if b.only and chosen[name] not in b.only:
                raise CompileError(
                    "E430",
                    f"{name} is one of {', '.join(map(str, b.only))}, got {chosen[name]}",
                    where=where,
                )
            word |= chosen[name].pack(b.width) << b.lo
            continue
        words = b.words if isinstance(b.words, int) else b.words(stand_in)
        low, high = kind.bounds(b.width)
        slots.append(Slot(name, kind, b.lo, b.width, b.use, words, low, high))
    registers = [s for s in slots if "w" in s.use and s.kind in (Reg, UReg, Pred)]
    resource = cls.resource(cast(Instr, stand_in))
    memory = space_of(cls, chosen)
    writes = not registers or cls.unit in WRITERS
    return Shape(
        cls, word, tuple(slots), latencies.get(resource, 1), memory, bool(memory) and writes,
        operands="shared" if memory == "accumulator" and cls.unit == "outer" else "",
        fence=cls.unit in FENCES and not registers and cls.mnemonic != "NOP",
        wide=any(s.words > 2 for s in registers), uniform=cls.unit == "uniform" or any(s.kind is UReg for s in registers),
    )  # fmt: skip


def registers_of(slot: Slot, value: Any) -> range:
    """The virtual words that an operand touches."""
    if isinstance(value, Virtual) and slot.use:
        return range(value.base, value.base + (slot.words if value.file != PREDICATE else 1))
    return range(0)


def check(slot: Slot, value: Any, where: str) -> Any:
    """The operand in the form that encoding wants, or CompileError E430 naming the field."""
    kind = slot.kind
    if isinstance(value, Virtual):
        if _fits(slot, value):
            return value
    elif kind is Label:
        if isinstance(value, VLabel):
            return value
    elif kind in FILES:
        if int(value) in NAMED[kind]:
            return int(value)
    elif kind is Src:
        if not isinstance(value, (Reg, UReg)) or int(value) in value.special:
            return int(Src.of(value))
    elif slot.low <= value <= slot.high:
        return int(value) & ((1 << slot.width) - 1)
    expected = (
        f"{slot.words} words of {kind.__name__}"
        if slot.use
        else f"a number in [{slot.low}, {slot.high}]"
    )
    raise CompileError("E430", f"{slot.name} takes {expected}, got {value!r}", where=where)


def _fits(slot: Slot, value: Virtual) -> bool:
    if slot.kind is Src:
        return value.file != PREDICATE and value.words >= slot.words
    if value.file == PREDICATE:
        return slot.kind is Guard or (slot.kind is Pred and not value.negated)
    return FILES.get(slot.kind) == value.file and value.words >= slot.words
