"""Products of bytes on systolic arrays: two steps of k are one of 16 bits, so all is as for floats of that size but the commands.

    A     k k k k …                        in memory as it is: pairs of neighbouring channels
    W     row k, row k + 1 ─► pairs        packed at compile time, or rows of k in memory

Where weights have codes of four bits and the arrays multipliers for them (extension `fusion`), a pair is a byte, option `b=flint4` of a plan.

    W     row k, row k + 1 of i4 ─► u8, the first in the low nibble           twice the columns in the same cycles

A group is seen as one of pairs (`paired`): k, pitches and channels are halved, weights are pairs already. Engines then tile, price and emit it. A
product whose runs of k are odd, or whose bytes of a pair do not lie side by side, is refused; so SIMD lanes have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from knapper.isa.core import Instr
from knapper.isa.formats import FORMATS
from knapper.isa.instructions import ILSMA, ILSMA_N, ISMA_LDB, ISMA_LDB_N
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Beside, Nibble, Pair
from knapper.isa.operands import Modifier

from ... import narrow
from ...ir import DTYPES, Array, Attr, Type
from ..generator import Emitted, Group, Options, register
from . import accumulating, blocks, systolic
from .blocks import product
from .engine import TiledEngine, TiledKernel
from .product import BYTES, Product, product_of
from .systolic import PAIRS, Strips

WORD = "f16"
"""What a pair is as long as."""
TYPES = {t.format.name: t for t in Pair}
LEFT, RIGHT = {t.format.name: t for t in Beside}, {t.format.name: t for t in Nibble}
"""Types of A, and of B, where B's codes are of 4 bits."""
FUSION = ILSMA_N.extension
"""Of machines with ILSMA.N."""


def paired(group: Group, b: str = "") -> Group | str:
    """A group of bytes as one of pairs, or why it is none; `b`: of which format of four bits B's codes are."""
    key = f"paired{b}"
    if key not in group.found:
        p = product_of(group)
        why = p if isinstance(p, str) else refusal(group, p)
        group.found[key] = why if why or isinstance(p, str) else _paired(group, p, b)
    made: Group | str = group.found[key]
    return made


def refusal(group: Group, p: Product) -> str | None:
    """Why the bytes of a product are no pairs, or None."""
    if not {p.a_type.dtype, p.b_type.dtype} <= BYTES:
        return f"operands are {p.a_type.dtype} and {p.b_type.dtype}, not bytes"
    if p.channels % 2 or p.a_pitch % 2 or any(x.a % 2 or x.b % 2 for x in p.axes):
        return f"its runs of k are of {p.channels} bytes, or begin at odd ones"
    if p.trans_a:
        return "A lies transposed: bytes of a pair are not neighbours"
    if not blocks.packs(group, p) and not (p.trans_b and p.b_pitch % 2 == 0):
        return "B is not known and lies row by row: bytes of a pair are not neighbours"
    return None


def _paired(group: Group, p: Product, b: str) -> Group:
    packed = blocks.packs(group, p)
    halved = replace(
        p, dtype=WORD, k=p.k // 2, a_pitch=p.a_pitch // 2, b_pitch=p.b_pitch if packed else p.b_pitch // 2,
        axes=tuple(replace(x, a=x.a // 2, b=x.b if packed else x.b // 2) for x in p.axes),
        a_type=Type(WORD, (p.a_type.count // 2,)), b_type=Type(PAIRS if b else WORD, (p.b_type.count // 2,)),
    )  # fmt: skip
    constants = dict(group.constants)
    if packed:
        both = pairs(group.constants[p.b], p)
        constants[p.b] = codes(both, b, p.b_type.dtype) if b else both
    made = replace(group, constants=constants)
    made.found["product"], made.found["bytes"] = halved, group
    return made


def pairs(w: Array, p: Product) -> Array:
    """Weights of bytes as i16 whose low byte is the first of two k: [k / 2, n], or [n, k / 2] if they lie transposed.

    A group's channels of a convolution are side by side in a row of n.
    """
    if p.trans_b:
        return np.ascontiguousarray(w).reshape(p.n, p.k).view(np.int16)
    rows = w.reshape(p.k // 2, 2, -1)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).view(np.int16)[..., 0]


def codes(both: Array, format: str, dtype: str) -> Array:
    """Pairs of bytes as pairs of codes, the first one low.

    >>> codes(np.array([-2 << 8 | 1], np.int16), "i4", "i8").item()
    225
    """
    every = np.arange(256, dtype=np.uint8)
    table = FORMATS[format].encode(every.view(DTYPES[dtype])).astype(np.uint8)
    two = table[both[..., None].view(np.uint8)]
    made: Array = two[..., 0] | two[..., 1] << 4
    return made


@dataclass(frozen=True)
class Coded(Strips):
    """Strips, and how B is stored where there is a choice: as codes of four bits, or as bytes."""

    b: str = ""

    @classmethod
    def of(cls, options: Options) -> Self:
        return super().of({**options, "b": options.get("b", "")})

    @property
    def options(self) -> dict[str, Attr]:
        own = super().options
        return own if self.b else {n: v for n, v in own.items() if n != "b"}


class _Pairs(systolic.Kernel):
    """What differs in a launch: commands, their types, and how many multiply-accumulates a pair is."""

    ldb: ClassVar[type[Instr]] = ISMA_LDB
    lsma: ClassVar[type[Instr]] = ILSMA

    def __init__(self, group: Group, t: Strips, way: str, machine: Machine) -> None:
        super().__init__(group, t, way, machine)
        self.block.pack_as("pairs")

    @property
    def stored(self) -> str:
        return "i16"

    @property
    def types(self) -> tuple[Modifier, Modifier]:
        a, b = (TYPES[self.group.inputs[v].dtype] for v in (self.p.a, self.p.b))
        return a, b

    def emit(self) -> Emitted:
        return replace(super().emit(), macs=2 * self.p.macs)


class InRegisters(_Pairs):
    """A launch whose sums are in registers."""


class InMemory(_Pairs, accumulating.Kernel):
    """A launch whose sums are in accumulator memory."""


class Narrow(InMemory):
    """The same of weights that are codes."""

    ldb, lsma = ISMA_LDB_N, ILSMA_N

    def __init__(self, group: Group, t: Strips, way: str, machine: Machine) -> None:
        super().__init__(group, t, way, machine)
        self.block.pack_as(self.format)

    @property
    def format(self) -> str:
        """Of the codes."""
        return str(getattr(self.t, "b", ""))

    @property
    def stored(self) -> str:
        return PAIRS

    @property
    def types(self) -> tuple[Modifier, Modifier]:
        return LEFT[self.group.inputs[self.p.a].dtype], RIGHT[self.format]


class _OfBytes(TiledEngine[Strips]):
    """What differs in a generator: it is asked about bytes, and asks about pairs, of which a tile's k tells the number."""

    tilewise = False

    def serves(self, group: Group, machine: Machine) -> str | None:
        made = paired(group)
        return made if isinstance(made, str) else super().serves(made, machine)

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        return super().candidates(_of(group), machine)

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        return super().cost(_of(group, options), options, machine)

    def emitter(self, group: Group, options: Options, machine: Machine) -> TiledKernel[Strips]:
        return super().emitter(_of(group, options), options, machine)


def stored_as(t: Strips, b: str) -> Coded:
    """A tiling with B stored so."""
    return Coded(t.bm, t.bn, t.bk, t.units, t.warps, t.modes, b)


def code_of(options: Options) -> str:
    """The format of four bits of B's codes, or "": bytes."""
    b = str(options.get("b", ""))
    return b if b in RIGHT else ""


def _of(group: Group, options: Options | None = None) -> Group:
    """A group of pairs, be it seen so already."""
    made = paired(group, code_of(options or {}))
    return group if isinstance(made, str) else made


class ISystolic(_OfBytes, systolic.Systolic):
    """The generator of sums in registers."""

    kind = "isystolic"
    kernel = InRegisters


class IAccumulating(_OfBytes, accumulating.Accumulating):
    """The generator of sums in accumulator memory."""

    kind = "iaccumulating"
    tiling, kernel = Coded, InMemory

    def tilings(self, group: Group, p: Product, machine: Machine) -> Iterator[Strips]:
        b = coding(group.found["bytes"], p, machine)
        for t in super().tilings(group, p, machine):
            yield stored_as(t, group.inputs[p.b].dtype if b else "")
        if b:
            made = _of(group.found["bytes"], {"b": b})
            for t in super().tilings(made, product(made), machine):
                yield stored_as(t, b)

    def emitter(self, group: Group, options: Options, machine: Machine) -> TiledKernel[Strips]:
        if not code_of(options):
            return super().emitter(group, options, machine)
        made = _of(group, options)
        return Narrow(made, Coded.of(options), str(options["access"]), machine)

    def streaming(self, group: Group, options: Options, machine: Machine) -> int:
        return super().streaming(_of(group, options), options, machine)


def coding(group: Group, p: Product, machine: Machine) -> str:
    """The first format of four bits that holds all weights and that the machine multiplies by, or ""."""
    if FUSION not in machine.extensions or not blocks.packs(group, p):
        return ""
    known = narrow.of(group)[p.b]
    return next((n for n in known if RIGHT[n].extension in ("", *machine.extensions)), "")


register(ISystolic())
register(IAccumulating())
