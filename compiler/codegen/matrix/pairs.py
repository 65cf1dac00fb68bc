"""Products of bytes on systolic arrays: two steps of k are one of 16 bits, so all is as for floats of that size but the commands.

    A     k k k k …                        in memory as it is: pairs of neighbouring channels
    W     row k, row k + 1 ─► pairs        packed at compile time, or rows of k in memory

A group is seen as one of pairs (`paired`): k, pitches and channels are halved, weights are pairs already. Engines then tile, price and emit it. A
product whose runs of k are odd, or whose bytes of a pair do not lie side by side, is refused; so SIMD lanes have it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import numpy as np

from knapper.isa.core import Instr, Modifier
from knapper.isa.instructions import ILSMA, ISMA_LDB
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Pair

from ...ir import Array, Type
from ..generator import Emitted, Group, Options, register
from . import accumulating, blocks, systolic
from .engine import TiledEngine, TiledKernel
from .product import BYTES, Product, product_of
from .systolic import Strips

WORD = "f16"
"""What a pair is as long as."""
TYPES = {t.format.name: t for t in Pair}


def paired(group: Group) -> Group | str:
    """A group of bytes as one of pairs, or why it is none."""
    if "paired" not in group.found:
        p = product_of(group)
        why = p if isinstance(p, str) else refusal(group, p)
        group.found["paired"] = why if why or isinstance(p, str) else _paired(group, p)
    made: Group | str = group.found["paired"]
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


def _paired(group: Group, p: Product) -> Group:
    packed = blocks.packs(group, p)
    halved = replace(
        p, dtype=WORD, k=p.k // 2, a_pitch=p.a_pitch // 2, b_pitch=p.b_pitch if packed else p.b_pitch // 2,
        axes=tuple(replace(x, a=x.a // 2, b=x.b if packed else x.b // 2) for x in p.axes),
        a_type=Type(WORD, (p.a_type.count // 2,)), b_type=Type(WORD, (p.b_type.count // 2,)),
    )  # fmt: skip
    constants = dict(group.constants)
    if packed:
        constants[p.b] = pairs(group.constants[p.b], p)
    made = replace(group, constants=constants)
    made.found["product"] = halved
    return made


def pairs(w: Array, p: Product) -> Array:
    """Weights of bytes as i16 whose low byte is the first of two k: [k / 2, n], or [n, k / 2] if they lie transposed.

    A group's channels of a convolution are side by side in a row of n.
    """
    if p.trans_b:
        return np.ascontiguousarray(w).reshape(p.n, p.k).view(np.int16)
    rows = w.reshape(p.k // 2, 2, -1)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).view(np.int16)[..., 0]


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


class _OfBytes(TiledEngine[Strips]):
    """What differs in a generator: it is asked about bytes, and asks about pairs, of which a tile's k tells the number."""

    tilewise = False

    def serves(self, group: Group, machine: Machine) -> str | None:
        made = paired(group)
        return made if isinstance(made, str) else super().serves(made, machine)

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        return super().candidates(_of(group), machine)

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        return super().cost(_of(group), options, machine)

    def emitter(self, group: Group, options: Options, machine: Machine) -> TiledKernel[Strips]:
        return super().emitter(_of(group), options, machine)


def _of(group: Group) -> Group:
    """A group of pairs, be it seen so already."""
    made = paired(group)
    return group if isinstance(made, str) else made


class ISystolic(_OfBytes, systolic.Systolic):
    """The generator of sums in registers."""

    kind = "isystolic"
    kernel = InRegisters


class IAccumulating(_OfBytes, accumulating.Accumulating):
    """The generator of sums in accumulator memory."""

    kind = "iaccumulating"
    kernel = InMemory

    def streaming(self, group: Group, options: Options, machine: Machine) -> int:
        return super().streaming(_of(group), options, machine)


register(ISystolic())
register(IAccumulating())
