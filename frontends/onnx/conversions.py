"""Cast, CastLike and BitCast: also to elements of a few bits, which the Graph holds as wider ones.

to i4, u2 …       the low bits of the whole part, kept in a byte
to f8e4m3 …       QuantizeLinear by a scale of one: the nearest value, as f32; beyond the largest it is the largest, or with
                  saturate=0 what the format has for that: NaN, or an infinity
to f8e8m0         the exponent's bits of the f32, rounded by its fraction's
"""

from __future__ import annotations

import numpy as np

from knapper.compiler.ir import DTYPES, Attr
from knapper.isa.errors import FrontendError
from knapper.isa.formats import FORMATS

from .builder import Builder, Call
from .forms import form
from .tensors import FEW, dtype_of

FRACTION = (1 << 23) - 1
"""The bits of an f32 below its exponent."""
POWERS = "f8e8m0"


@form("Cast")
def _(b: Builder, call: Call) -> Call | list[str]:
    few = FEW.get(call.integer("to"))
    return call.now(drop=["saturate", "round_mode"]) if few is None else to_few(b, call, *few)


@form("CastLike", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    like = call.operand(1)
    to = b.type(like).dtype
    if like in b.formats:
        return to_few(b, call, to, b.formats[like])
    return b.emit("Cast", [call.operand(0)], {"to": to}, call.outputs, call.loc)


@form("BitCast")
def _(b: Builder, call: Call) -> Call:
    few = FEW.get(call.integer("to"))
    if few is not None or call.operand(0) in b.formats:
        names = few[1] if few else b.formats[call.operand(0)]
        hint = (
            "elements of a few bits are held in wider ones: only whole bytes have bits to look at"
        )
        raise FrontendError("E203", f"BitCast of {names} is not supported", hint=hint)
    return call.now(to=dtype_of(call.integer("to")))


def to_few(b: Builder, call: Call, dtype: str, name: str) -> list[str]:
    """A value of a few bits in the dtype that holds it."""
    if name[0] in "iu":
        (whole,) = b.emit("Cast", [call.operand(0)], {"to": "i32"}, loc=call.loc)
        low = _low_bits(b, call, whole, name)
        found = b.emit("Cast", [low], {"to": dtype}, call.outputs, call.loc)
    else:
        (wide,) = b.emit("Cast", [call.operand(0)], {"to": "f32"}, loc=call.loc)
        y = _power(b, call, wide) if name == POWERS else _nearest(b, call, wide, name)
        found = b.emit("Identity", [y], {}, call.outputs, call.loc)
    b.formats[found[0]] = name
    return found


def _low_bits(b: Builder, call: Call, whole: str, name: str) -> str:
    """An integer wrapped to few bits."""
    below, count = -int(FORMATS[name].smallest), 1 << FORMATS[name].bits
    shift, turn = (b.constant(np.array(n, np.int32), "wrap") for n in (below, count))
    (up,) = b.emit("Add", [whole, shift], loc=call.loc)
    (held,) = b.emit("Mod", [up, turn], loc=call.loc)
    return b.emit("Sub", [held, shift], loc=call.loc)[0]


def _nearest(b: Builder, call: Call, wide: str, name: str) -> str:
    """The nearest value of a small float."""
    f = FORMATS[name]
    x = wide
    if not np.isnan(f.grid).any():
        (lost,) = b.emit("IsNaN", [wide], loc=call.loc)
        (x,) = b.emit("Where", [lost, _number(b, 0), wide], loc=call.loc)
    attrs: dict[str, Attr] = {"to": "f32", "format": name}
    (y,) = b.emit("QuantizeLinear", [x, _number(b, 1)], attrs, loc=call.loc)
    if call.integer("saturate", 1) or np.isfinite(f.grid).all():
        return y
    (size,) = b.emit("Abs", [wide], loc=call.loc)
    (beyond,) = b.emit("GreaterOrEqual", [size, _number(b, _overflow(name))], loc=call.loc)
    outside = _number(b, np.nan)
    if np.isinf(f.grid).any():
        (outside,) = b.emit("Mul", [wide, _number(b, np.inf)], loc=call.loc)
    return b.emit("Where", [beyond, outside, y], loc=call.loc)[0]


def _overflow(name: str) -> float:
    """The least number that rounds to more than the largest value: half a step above it, or the next one if a tie goes down."""
    f = FORMATS[name]
    tie = np.float32(f.largest + (f.largest - float(f.values[-2])) / 2)
    down = int(f.encode([f.largest])[0]) % 2 == 0
    return float(np.nextafter(tie, np.float32(np.inf)) if down else tie)


def _power(b: Builder, call: Call, wide: str) -> str:
    """A power of two, by round_mode up, down or nearest; the exponent alone says what becomes of negative numbers and of 0."""
    mode = str(call.attrs.get("round_mode", "up"))

    def op(name: str, *operands: str, **attrs: Attr) -> str:
        return b.emit(name, operands, attrs, loc=call.loc)[0]

    def bits(n: int) -> str:
        return b.constant(np.array(n, np.uint32), "bits")

    code = op("BitCast", wide, to="u32")
    exponent = op("BitwiseAnd", op("BitShift", code, bits(23), direction="RIGHT"), bits(0xFF))
    fraction = op("BitwiseAnd", code, bits(FRACTION))
    most = 0xFE if call.integer("saturate", 1) else 0xFF
    if mode in ("up", "nearest"):
        half = 1 << 22
        more = op("Greater", fraction, bits(0 if mode == "up" else half))
        if mode == "nearest":
            tie = op("And", op("Equal", fraction, bits(half)), op("Greater", exponent, bits(0)))
            more = op("Or", more, tie)
        more = op("And", more, op("Less", exponent, bits(most)))
        exponent = op("Add", exponent, op("Cast", more, to="u32"))
    elif mode != "down":
        raise FrontendError("E206", f"Cast has no round_mode {mode!r}")
    power = op("BitShift", exponent, bits(23), direction="LEFT")
    power = op("Where", op("Equal", exponent, bits(0)), bits(1 << 22), power)
    power = op("Where", op("Equal", exponent, bits(0xFF)), bits(0x7FC00000), power)
    return op("BitCast", power, to="f32")


def _number(b: Builder, value: float) -> str:
    return b.constant(np.array(value, DTYPES["f32"]), "number")
