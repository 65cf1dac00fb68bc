"""From fp32 to integers in an epilogue: a Cast that takes in the Round and the Clip before it, and QuantizeLinear, step by step as the op says.

Relu ─ Round ─ Clip(0, 255) ─ Cast(u8)                      one CVT.U8.F32.RN
QuantizeLinear on a grid of steps 1, 2, 8, 32               v · (1 / step) rounded, times the step that |v| selects: all exact
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from knapper.isa.formats import Format
from knapper.isa.instructions import FADD, FMUL
from knapper.isa.modifiers import Cmp, Rounding, Scalar

from ...ir import DTYPES, Node, Type
from ...ops.quantize import bounds, on_grid, runs, ties
from ..builder import KernelBuilder, VReg
from ..generator import Group
from ..scalar import (
    INTEGERS,
    SCALAR,
    arith,
    choose,
    clipped,
    compare,
    constant,
    convert,
    f32,
    plus,
)
from .product import Product

QUANTIZE = "QuantizeLinear"
BORDER = ("b0", "b1", "b2")
"""The forms of a border's three numbers."""


def conversions(group: Group, p: Product) -> int:
    """Of a result, on the way from its sum to memory. A float takes one, at the end."""
    if p.out_type.dtype not in INTEGERS:
        return 1
    maker = {v: n for n in group.nodes for v in n.outputs}
    casts = [n for n in group.nodes if n.op == "Cast"]
    ways = [from_float(n, maker)[1] for n in casts if n.types[0].dtype in INTEGERS]
    each = {"Cast": 1, "Round": 1, QUANTIZE: 2}
    return sum(each.get(n.op, 0) for n in group.nodes) - ways.count(Rounding.RN)


def from_float(n: Node, maker: Mapping[str, Node]) -> tuple[str, Rounding]:
    """What a Cast from fp32 to an integer converts, and how.

    CVT saturates. So a Clip to the type's own range is nothing besides, nor a Round before that, nor a Relu where no number is negative.
    """
    info, rounding, x = np.iinfo(DTYPES[n.types[0].dtype]), Rounding.RZ, n.inputs[0]

    def before(op: str) -> Node | None:
        m = maker.get(x)
        return m if m is not None and m.op == op and m.types[0].dtype == "f32" else None

    if m := before("Clip"):
        low, high = (m.attr(name) for name in ("min", "max"))
        if low <= info.min and high >= info.max:
            x = m.inputs[0]
    if m := before("Round"):
        x, rounding = m.inputs[0], Rounding.RN
        if info.min == 0 and (m := before("Relu")):
            x = m.inputs[0]
    return x, rounding


# --- QuantizeLinear


def border_of(n: Node) -> str:
    """The value that is the node's border, or ""."""
    return n.inputs[3] if n.op == QUANTIZE and len(n.inputs) > 3 else ""


def part(border: Type) -> Type:
    """One of a border's three numbers, or three rows of numbers by channel."""
    return Type(border.dtype, border.shape[1:])


def refusal(n: Node, types: Mapping[str, Type]) -> str | None:
    """Why a QuantizeLinear is no epilogue, or None."""
    x, scale = (types[v] for v in n.inputs[:2])
    if n.attr("block_size"):
        return f"{n.op} has scales by block"
    along = n.attr("axis") % max(x.rank, 1) == x.rank - 1
    if any(types[v].count > 1 and not along for v in n.inputs[1:3] if v):
        return f"{n.op} has scales along axis {n.attr('axis')}, which is not the last"
    if border_of(n) and types[border_of(n)].rank > 1 and not along:
        return f"{n.op} has borders along axis {n.attr('axis')}, which is not the last"
    known = {x.dtype, scale.dtype} <= {"f32", "f16", "bf16", "i32"}
    return None if known else f"{n.op} works on {x} and {scale}"


def quantized(
    b: KernelBuilder, n: Node, v: VReg, zero: VReg | None, border: Sequence[VReg]
) -> VReg:
    """A QuantizeLinear's result; v is x / scale, zero point and border are fp32."""
    to, format = str(n.attr("to")), str(n.attr("format"))
    low, high = bounds(to, format)
    grid = on_grid(format)
    rounding = Rounding.RZ
    if grid is not None:
        v = _nearest(b, grid, v if zero is None else arith(b, FADD, v, zero))
    elif border or zero is not None:
        v = _bordered(b, v, border) if border else SCALAR["Round"](b, v)
        v = v if zero is None else arith(b, FADD, v, zero)
    else:
        rounding = Rounding.RN
    if to == "f32":
        return clipped(b, v, low, high)
    saturates = not format or (low, high) == bounds(to, "")
    v = v if saturates or grid is not None else clipped(b, v, low, high)
    return convert(b, v, INTEGERS[to], Scalar.F32, rounding)


def _bordered(b: KernelBuilder, v: VReg, border: Sequence[VReg]) -> VReg:
    """floor(((v - ((b2·v + b1)·v)) - b0) + 1)"""
    b0, b1, b2 = border
    slope = arith(b, FADD, arith(b, FMUL, b2, v), b1)
    moved = SCALAR["Sub"](b, SCALAR["Sub"](b, v, arith(b, FMUL, slope, v)), b0)
    return SCALAR["Floor"](b, plus(b, moved, 1))


def _nearest(b: KernelBuilder, f: Format, v: VReg) -> VReg:
    """The nearest value of a format: a multiple of the step of its magnitude's run. Steps are powers of two, so only rounding rounds."""
    v = clipped(b, v, f.smallest, f.largest)
    (_, first), *rest = runs(f)
    size = SCALAR["Abs"](b, v)
    step, inverse = constant(b, first), constant(b, 1 / first)
    for start, width in rest:
        there = compare(b, Cmp.GE, size, f32(start))
        step, inverse = (
            choose(b, there, constant(b, x), y) for x, y in ((width, step), (1 / width, inverse))
        )
    t = arith(b, FMUL, v, inverse)
    r = SCALAR["Round"](b, t)
    if ties(f) == "up":
        half = compare(b, Cmp.EQ, SCALAR["Sub"](b, t, r), f32(0.5))
        r = choose(b, half, plus(b, r, 1), r)
    return arith(b, FMUL, r, step)
