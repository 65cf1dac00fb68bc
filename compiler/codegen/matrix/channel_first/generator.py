"""Convolutions and products on an array that is fed from vector memory, channel first.

    shape     how a product lies in vector memory, and the walks that fit
    kernel    DMA and array; with nest, the loops, and epilogue, the other warps
    cost      what a walk takes

How operators map:

    2-D convolution     as it is: stride, dilation and padding are the address generator's
    1-D convolution     an image of one line; with few channels T taps share a pass
    MatMul, Gemm        a convolution by one tap whose images are the rows of A
    grouped             a block a group of channels, one after the other; refused where a group has one channel, for which `direct` is made
    3-D, transposed     come as products: an explicit lowering, and a product whose rows are scattered

One array works, where a machine has several. B must be known at compile time and A must not be transposed; what else there is goes
through `accumulating`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from knapper.isa.machine import Machine
from knapper.isa.systolic import STEP

from ....ir import Array
from ...generator import Group, Options, register
from .. import blocks, evaluate
from ..accumulating import units_of
from ..engine import Engine
from ..product import Product
from ..systolic import ELEMENTS
from .cost import Costs
from .kernel import Kernel
from .shape import ROLES, Tiles, Walk, descriptor, unaddressable, walks

WARPS = 32
"""Of a block, as many as there can be: what they wait for in the epilogue passes together."""


def warps(machine: Machine) -> int:
    """Of a block on this machine."""
    return min(WARPS, machine.warps_per_sm)


@dataclass(frozen=True)
class Strip:
    """What `evaluate` takes at once."""

    bm: int
    bn: int


class ChannelFirst(Engine):
    """The generator."""

    kind = "channel_first"
    extensions = frozenset({"async", "systolic", "conv"})

    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        if why := self._machine_refuses(machine):
            return f"{machine.name} has {why}"
        if p.dtype not in ELEMENTS or p.a_type.dtype != p.b_type.dtype:
            return f"operands are {p.a_type.dtype} and {p.b_type.dtype}, the array takes f16, bf16 and f32"
        if not blocks.packs(group, p):
            return "B is not one matrix that is known now"
        return self._shape_refuses(p, machine)

    def _machine_refuses(self, machine: Machine) -> str | None:
        """What is in the way of its kernels."""
        rows, columns = machine.array_rows, machine.array_columns
        if not machine.vector_word or not machine.accumulator_bytes:
            return "no vector memory"
        if not machine.separate_array:
            return "an array made of its lanes, which the other warps need meanwhile"
        if rows % STEP or columns % (2 * STEP) or columns & (columns - 1):
            legal = f"rows are a multiple of {STEP}, columns a power of two from {2 * STEP} on"
            return f"units of {rows} × {columns}: {legal}"
        if warps(machine) <= ROLES:
            return f"{warps(machine)} warps, of which array and DMA take {ROLES}"
        return units_of(machine).unfit or None

    def _shape_refuses(self, p: Product, machine: Machine) -> str | None:
        if p.trans_a or (p.window is None and p.axes):
            return "A is transposed" if p.trans_a else "A is a batch of matrices"
        if p.axes and p.channels == 1:
            return "is depthwise: a group would use one row of the array"
        if why := unaddressable(descriptor(p, machine, 1, "batch")):
            return why
        if next(walks(p, machine, warps(machine)), None) is None:
            return f"no strip of its rows fits {machine.name}"
        return None

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        for walk in walks(blocks.product(group), machine, warps(machine)):
            yield asdict(walk)

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        tiles = Tiles(blocks.product(group), Walk.of(options), machine)
        return Costs(group, tiles).launch

    def emitter(self, group: Group, options: Options, machine: Machine) -> Kernel:
        return Kernel(group, Walk.of(options), machine)

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        p, walk = blocks.product(group), Walk.of(options)
        return evaluate.tiled(group, p, Strip(walk.strip, p.n), env)


register(ChannelFirst())
