"""Random instructions, kernels and programs, from the same declarations as everything else: what property tests and fuzzers draw from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

from . import instructions  # fills the table
from .base.uniform import Uniform
from .core import SYSTOLIC, TABLE, Instr
from .errors import IsaError
from .machine import Machine
from .modifiers import Mode
from .operands import Bits, Extent, Guard, Label, Reg, Src, UReg, alignment
from .program import ALIGN, BASE, Kernel, Launch, Object, Operand, Port, Program
from .systolic import Array, Command, Needy


def instruction(rng: Random, classes: Iterable[type[Instr]] = (), labels: int = 1 << 24) -> Instr:
    """Any legal instruction of the classes (default: of all). Label fields are below `labels`."""
    cls = rng.choice(list(classes) or list(TABLE.values()))
    draw = _Draw(rng, labels, issubclass(cls, Uniform), issubclass(cls, (Uniform, Command)))
    while True:
        i = draw.instruction(cls)
        try:
            i.check()
        except IsaError:  # a rule that spans fields, such as CVT's rounding: draw again
            continue
        return i


@dataclass(frozen=True)
class _Draw:
    """Draws the fields of one instruction."""

    rng: Random
    labels: int
    uniform: bool
    unguarded: bool

    def instruction(self, cls: type[Instr]) -> Instr:
        """Suffixes and extents first: they decide how many registers an operand takes, and so where it may begin."""
        first = {
            n: self.rng.choice(cls.layout[n][1].only or list(k)) for n, k in cls.modifiers().items()
        }
        extents = {n: kb for n, kb in cls.operands().items() if issubclass(kb[0], Extent)}
        first |= {n: self.extent(b) for n, (_, b) in extents.items()}
        so_far = SimpleNamespace(**first)
        operands = {
            n: self.operand(kind, b, _words(b, so_far))
            for n, (kind, b) in cls.operands().items()
            if n not in first
        }
        return cls(
            **first, **operands, guard=Guard(7 if self.unguarded else self.rng.randrange(16))
        )

    def extent(self, b: Bits) -> Extent:
        """Mostly small: an operand has to fit the register file."""
        return Extent(self.rng.choice(b.only or range(1, min(1 << b.width, 100))))

    def operand(self, kind: Any, b: Bits, words: int) -> Any:
        """A value of a kind that takes `words` registers, if it is registers."""
        if b.only:
            return self.rng.choice(b.only)
        if kind is Src:
            return self.source(words)
        if kind in (Reg, UReg):
            return self.register(kind, words)
        if kind is Label:
            return Label(self.rng.randrange(self.labels))
        low, high = kind.bounds(b.width)
        return kind(self.rng.choice((low, high, self.rng.randint(low, high))))

    def source(self, words: int) -> Src:
        """A register, a uniform register or an immediate."""
        kind = self.rng.choice((UReg, int) if self.uniform else (Reg, UReg, int))
        return Src.of(self.rng.getrandbits(32) if kind is int else self.register(kind, words))

    def register(self, kind: Any, words: int) -> Any:
        """The first of `words` registers, or now and then RZ."""
        zero = min(kind.special)
        if self.rng.random() < 0.1:
            return kind(zero)
        return kind(self.rng.randrange(0, max(zero - words + 1, 1), alignment(words)))


def _words(b: Bits, i: Any) -> int:
    return b.words if isinstance(b.words, int) else b.words(i)


def kernel(
    rng: Random, name: str, length: int, nodes: int = 1, target: str = "volta-8tc"
) -> Kernel:
    """A kernel of random instructions that verifies on a target; running it would end in a fault soon."""
    machine = Machine.load(target)
    array = Array.of(machine.to_dict())
    legal = [c for c in TABLE.values() if c.within(machine.extensions)]
    if "systolic" in machine.extensions and rng.random() < 0.5:
        code = stretch(rng, legal, length - 1, machine)
    else:
        calm = [c for c in legal if (array.separate or not issubclass(c, Needy)) and c is not instructions.MODE]  # fmt: skip
        code = doable((instruction(rng, calm, labels=length) for _ in range(length - 1)), machine)
    return Kernel(
        name=name,
        words=Kernel.encode([*code, instructions.EXIT()]),
        roles=tuple(sorted(rng.randrange(nodes) for _ in range(length))),
        block=(rng.choice((1, 32, 100)), rng.choice((1, 2)), 1),
        registers=255,
        shared_bytes=16 * rng.randrange(1024),
        local_bytes=4 * rng.randrange(64),
        matrix=rng.random() < 0.5,
    )


def doable(code: Iterable[Instr], machine: Machine) -> list[Instr]:
    """Instructions, with NOPs instead of those that the machine cannot do."""
    array, has = Array.of(machine.to_dict()), ("", *machine.extensions)
    return [instructions.NOP() if array.refusal(i) or i.needed() not in has else i for i in code]


def stretch(
    rng: Random, legal: Iterable[type[Instr]], length: int, machine: Machine
) -> list[Instr]:
    """Into systolic mode, straight through what is legal there on the machine, and out."""
    straight = [
        c
        for c in legal
        if SYSTOLIC in c.modes
        and c not in (instructions.MODE, instructions.EXIT)
        and not any(kind is Label for kind, _ in c.layout.values())
    ]
    inside = doable((instruction(rng, straight) for _ in range(length - 2)), machine)
    return [instructions.MODE(Mode.SYSTOLIC), *inside, instructions.MODE(Mode.SIMD)]


def program(
    rng: Random,
    kernels: int = 3,
    length: int = 50,
    weights: int = 4096,
    target: str = "volta-8tc",
) -> Program:
    """A program that verifies: random kernels, launched in turn, over random weights with a gap between two objects."""
    gap, machine = bytes(ALIGN), Machine.load(target).to_dict()
    rodata = rng.randbytes(weights) + gap + rng.randbytes(weights // 2)
    arena = Program(machine, {}, (), (), (), rodata).arena_address
    code = {
        name: kernel(rng, name, length, 2, target) for name in (f"conv_{i}" for i in range(kernels))
    }
    operands = (Operand("w", BASE, weights, "r"), Operand("a", arena, 256, "rw"))
    launches = [
        Launch(
            name,
            (1 + i, 2, 1),
            (BASE, arena, 2**64 - 1),
            (f"/layer{i}/Conv", "Relu"),
            operands,
            1000 * i,
            f"tile={i}",
        )
        for i, name in enumerate(code)
    ]
    return Program(
        target=machine,
        kernels=code,
        launches=(*launches, *launches[:1]),
        inputs=(Port("x", "f32", (1, 3, 8, 8), arena),),
        outputs=(Port("probabilités", "f16", (1, 10), arena + 1024), Port("w", "u8", (16,), BASE)),
        rodata=rodata,
        objects=(
            Object("conv.weight", BASE, weights),
            Object("conv.bias", BASE + weights + ALIGN, weights // 2),
        ),
        arena_bytes=4096,
        meta={
            "pipeline": "fold,layout{inside=nhwc}",
            "model": 'a "quoted" \\ name',
            "knapper": "0.1.0",
        },
    )
