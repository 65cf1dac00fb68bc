"""Products of encoded activations and constant weights on the dual-side sparse Tensor Core: zeros of either side cost nothing.

    activations   bitmap{pad=P}, as their producer's epilogue encoded them (`sparsity.bitmap`)
    weights       encoded at compile time, tile by tile
    result        dense, encoded, or both

A convolution of stride 1 whose output has the input's size is a shift of the encoded stream per tap; others are left to `hmma`. k goes as in
every other engine, (tap row, tap column, channel), so results have the same bits, but for what `knapper.isa.sparse` says of Inf and NaN.
"""

from __future__ import annotations

from collections.abc import Iterable

from knapper.isa.machine import Machine

from ....ir import Array
from ....ops.numeric import finish
from ...generator import Group, Options, register
from .. import evaluate
from ..engine import Emitter, Engine
from ..epilogue import refusal
from ..product import Product
from .cost import predicted
from .kernel import SparseKernel
from .shape import Operation, Shape, Tiles, operation, shapes


class Spwmma(Engine):
    """The generator."""

    kind = "spwmma"
    extensions = frozenset({"sparse", "conv"})

    def serves(self, group: Group, machine: Machine) -> str | None:
        if missing := self.extensions - set(machine.extensions):
            return f"{machine.name} has no extension {', '.join(sorted(missing))}"
        op = operation(group)
        if isinstance(op, str):
            return op
        if why := refusal(op.plain, op.p):
            return why
        found = next(iter(shapes(op, machine)), None)
        return f"no tile of its operands fits {machine.name}" if found is None else None

    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        return self.serves(group, machine)

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        for s in shapes(_of(group), machine):
            yield s.t.options

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        return predicted(Shape(_of(group), Tiles.of(options)), group, machine)

    def emitter(self, group: Group, options: Options, machine: Machine) -> Emitter:
        return SparseKernel(group, Shape(_of(group), Tiles.of(options)), machine)

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        op = _of(group)
        p, values = op.p, {"": None, **group.constants, **env}
        a, b = values[p.a], values[p.b]
        assert a is not None
        assert b is not None
        acc = evaluate.chain(evaluate.left(p, a, 0), evaluate.right(p, b, 0))
        bias = values[p.bias] if p.bias else None
        out = str(p.node.attrs.get("out", ""))
        values[p.node.outputs[0]] = finish(acc.reshape(p.out_type.shape), bias, out, a.dtype)
        return evaluate.rest(group, p, values)


def _of(group: Group) -> Operation:
    op = operation(group)
    assert isinstance(op, Operation)  # the plan asks `serves` first
    return op


def cheapest(group: Group, machine: Machine) -> float | None:
    """Predicted cycles of the best tile; None if the engine does not serve the group."""
    if SPWMMA_GENERATOR.serves(group, machine) is not None:
        return None
    op = _of(group)
    return min(predicted(s, group, machine) for s in shapes(op, machine))


SPWMMA_GENERATOR = register(Spwmma())
__all__ = ["SPWMMA_GENERATOR", "Spwmma", "cheapest"]
