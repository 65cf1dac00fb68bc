"""What instructions compute, on both engines, against oracles in plain integers and rationals that know nothing of lanes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from knapper.isa import instructions as i
from knapper.isa import lanes
from knapper.isa.core import Instr
from knapper.isa.lanes import TYPES, LaneType
from knapper.isa.modifiers import (
    SR,
    Bits32,
    Cmp,
    Direction,
    FloatType,
    Half,
    IntType,
    Logic,
    MinMax,
    Rounding,
    Scalar,
    Shuffle,
    Vote,
    Width,
)
from knapper.isa.operands import Guard, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE, Kernel, Launch, Port, Program
from knapper.runtime.session import EngineName, Session

A, B, C, D = Reg(8), Reg(12), Reg(16), Reg(24)
ENGINES: dict[EngineName, int] = {"reference": 96, "fast": 2048}
"""Cases to try on each."""
FORMATS = {
    "F16": (11, -14, 15),
    "BF16": (8, -126, 127),
    "F32": (24, -126, 127),
    "F64": (53, -1022, 1023),
}
"""Significand bits, least and greatest exponent."""


def apply(
    code: Sequence[Instr], operands: Sequence[Sequence[int]], engine: EngineName
) -> list[int]:
    """Run code on raw 64-bit operands in A, B, C, one thread each; the raw 64 bits in D."""
    count = len(operands[0])
    blocks = -(-count // 32)
    size = 8 * 32 * blocks
    body: list[Instr] = [
        i.S2R(SR.TID_X, Reg(0)), i.S2R(SR.CTAID_X, Reg(1)), i.IMAD(IntType.U32, Reg(0), Reg(1), Src.of(32), Reg(0)),
        i.SHF(Direction.L, IntType.U32, Reg(0), Reg(0), Src.of(3)), i.ULDC(Bits32._64, UReg(0), Unsigned(0)),
    ]  # fmt: skip
    body += [
        i.LDG(Width._64, r, UReg(0), Reg(0), Signed(size * n)) for n, r in enumerate((A, B, C))
    ]
    body += [i.MOV(D, Src.of(0)), i.MOV(Reg(D + 1), Src.of(0)), *code]
    body += [i.STG(Width._64, UReg(0), Reg(0), Signed(size * 3), D), i.EXIT()]
    kernel = Kernel("k", Kernel.encode(body), (0,) * len(body), (32, 1, 1), 32)
    launch = Launch("k", (blocks, 1, 1), (BASE,), ("n",))
    x, y = Port("x", "u64", (3 * size // 8,), BASE), Port("y", "u64", (size // 8,), BASE + 3 * size)
    program = Program(
        {"extensions": ()}, {"k": kernel}, (launch,), (x,), (y,), arena_bytes=4 * size
    )
    columns = np.zeros((3, size // 8), np.uint64)
    for n, values in enumerate(operands):
        columns[n, :count] = np.array(values, np.uint64)
    return [
        int(v)
        for v in Session(program).run({"x": columns.ravel()}, engine=engine).outputs["y"][:count]
    ]


# --- numbers as bits


def fits(value: int, type: LaneType) -> int:
    """An integer wrapped to a type's range."""
    value &= (1 << type.bits) - 1
    return value - (1 << type.bits) if type.kind == "s" and value >> type.bits - 1 else value


def in_register(value: int, type: LaneType) -> int:
    """An integer's bits in a register or pair."""
    return value & ((1 << max(type.bits, 32)) - 1)


def number(bits: int, type: LaneType) -> Fraction | float:
    """A float's bits as a rational; infinities and NaN as floats."""
    p, emin, emax = FORMATS[type.name]
    sign = -1 if bits >> type.bits - 1 & 1 else 1
    exponent, significand = bits >> p - 1 & (1 << type.bits - p) - 1, bits & (1 << p - 1) - 1
    if exponent == emax * 2 + 1:
        return math.nan if significand else sign * math.inf
    if exponent == 0:
        return sign * Fraction(significand) * Fraction(2) ** (emin - p + 1)
    return sign * Fraction(significand | 1 << p - 1) * Fraction(2) ** (exponent - 1 + emin - p + 1)


def rounded(x: Fraction | float, type: LaneType, zero_sign: int = 0) -> int:
    """The bits of a rational rounded to nearest even."""
    p, emin, emax = FORMATS[type.name]
    top, infinite = type.bits - 1, (2 * emax + 1) << p - 1
    if isinstance(x, float) and math.isfinite(x):
        return rounded(Fraction(x), type, int(math.copysign(1, x) < 0))
    if isinstance(x, float):
        return infinite | (1 << p - 2) if math.isnan(x) else infinite | (x < 0) << top
    if x == 0:
        return zero_sign << top
    sign, x = int(x < 0), abs(x)
    exponent = max(floor_log2(x), emin)
    units = x / Fraction(2) ** (exponent - p + 1)
    whole, rest = divmod(units, 1)
    whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1)
    if whole * Fraction(2) ** (exponent - p + 1) >= Fraction(2) ** (emax + 1):
        return infinite | sign << top
    return sign << top | int(whole) + ((exponent - emin) << p - 1)


def floor_log2(x: Fraction) -> int:
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def is_nan(bits: int, type: LaneType) -> bool:
    return isinstance(x := number(bits, type), float) and math.isnan(x)


def ints(rng: random.Random, type: LaneType, count: int) -> list[int]:
    edge = [0, 1, -1, 2, 31, 32, 33, 63, 64, 1 << type.bits - 1, (1 << type.bits - 1) - 1]
    return [
        rng.choice([rng.choice(edge), rng.getrandbits(type.bits), rng.getrandbits(5)])
        & ((1 << type.bits) - 1)
        for _ in range(count)
    ]


def floats(rng: random.Random, type: LaneType, count: int) -> list[int]:
    """Bits of any kind, near 1, and the hard ones."""
    p, _, emax = FORMATS[type.name]
    one, inf, sign = emax << p - 1, (2 * emax + 1) << p - 1, 1 << type.bits - 1
    edge = [
        0,
        1,
        one,
        one + 1,
        one - 1,
        inf,
        inf - 1,
        inf | 1 << p - 2,
        inf | 1,
        (1 << p - 1) - 1,
        1 << p - 1,
    ]
    near = [one + rng.randrange(-(8 << p - 1) if emax > 15 else 0, 8 << p - 1) for _ in range(8)]
    return [
        (
            rng.choice([rng.choice(edge), rng.getrandbits(type.bits), rng.choice(near)])
            | rng.choice([0, sign])
        )
        for _ in range(count)
    ]


def ieee(
    op: Callable[..., Any], special: Callable[..., float], type: LaneType, *operands: int
) -> int:
    """An operation on rationals, rounded; where an operand is infinite or NaN, or a zero's sign is asked for, what doubles do."""
    values = [number(b, type) for b in operands]
    rough = special(
        *(
            v if isinstance(v, float) else signed_float(v, b, type)
            for v, b in zip(values, operands, strict=True)
        )
    )
    if any(isinstance(v, float) for v in values):
        return rounded(rough, type)
    try:
        exact = op(*values)
    except ZeroDivisionError:
        return rounded(rough, type)
    return rounded(exact, type, zero_sign=int(math.copysign(1, rough) < 0))


def signed_float(x: Fraction, bits: int, type: LaneType) -> float:
    """A double of the same sign; tiny and huge values only keep that."""
    if x == 0:
        return -0.0 if bits >> type.bits - 1 else 0.0
    return math.copysign(2.0 ** max(-300, min(300, floor_log2(abs(x)))), x)


def quotient(a: float, b: float) -> float:
    if b != 0:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)


Oracle = Callable[..., int]
Case = tuple[Sequence[Instr], Sequence[LaneType], Oracle]


def trunc_div(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


def integer_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    b = Src.of(B)
    for t in IntType:
        lane = t.lane
        of: dict[str, tuple[Instr, Callable[..., int]]] = {
            "IADD": (i.IADD(t, D, A, b), lambda x, y, z: x + y),
            "ISUB": (i.ISUB(t, D, A, b), lambda x, y, z: x - y),
            "IMUL": (i.IMUL(t, D, A, b), lambda x, y, z: x * y),
            "IMAD": (i.IMAD(t, D, A, b, C), lambda x, y, z: x * y + z),
            "IMULHI": (i.IMULHI(t, D, A, b), lambda x, y, z, n=lane.bits: x * y >> n),
            "IDIV": (i.IDIV(t, D, A, b), lambda x, y, z: trunc_div(x, y)),
            "IREM": (i.IREM(t, D, A, b), lambda x, y, z: x - y * trunc_div(x, y) if y else x),
            "IMNMX.MIN": (i.IMNMX(MinMax.MIN, t, D, A, b), lambda x, y, z: min(x, y)),
            "IMNMX.MAX": (i.IMNMX(MinMax.MAX, t, D, A, b), lambda x, y, z: max(x, y)),
        }  # fmt: skip
        for name, (instr, f) in of.items():
            cases[f"{name}.{t}"] = (
                [instr],
                (lane,) * 3,
                lambda x, y, z, f=f, lane=lane: in_register(
                    f(*(fits(v, lane) for v in (x, y, z))), lane
                ),
            )
        for way, shift in SHIFTS.items():
            cases[f"SHF.{way}.{t}"] = (
                [i.SHF(way, t, D, A, b)], (lane, TYPES["U32"]),
                lambda x, n, shift=shift, lane=lane: in_register(shift(fits(x, lane), min(n, 64)), lane))  # fmt: skip
        for cmp, holds in COMPARE.items():
            code = [
                i.ISETP(cmp, t, Pred(0), A, b),
                i.SEL(Bits32._32, D, Reg(255), Src.of(1), Guard(8)),
            ]
            cases[f"ISETP.{cmp}.{t}"] = (
                code,
                (lane, lane),
                lambda x, y, holds=holds, lane=lane: int(holds(fits(x, lane), fits(y, lane))),
            )
    for t in (IntType.S32, IntType.S64):
        cases[f"IABS.{t}"] = (
            [i.IABS(t, D, A)],
            (t.lane,),
            lambda x, lane=t.lane: in_register(abs(fits(x, lane)), lane),
        )
    for op, f in ((Logic.AND, int.__and__), (Logic.OR, int.__or__), (Logic.XOR, int.__xor__)):
        cases[f"LOP.{op}"] = (
            [i.LOP(op, Bits32._64, D, A, b)],
            (TYPES["U64"],) * 2,
            lambda x, y, f=f: f(x, y),
        )
    word = (TYPES["U32"],)
    cases["POPC"] = ([i.POPC(D, A)], word, lambda x: x.bit_count())
    cases["FLO"] = ([i.FLO(D, A)], word, lambda x: 32 - x.bit_length())
    cases["BREV"] = ([i.BREV(D, A)], word, lambda x: int(f"{x:032b}"[::-1], 2))
    cases["PACK2"] = ([i.PACK2(D, A, B)], word * 2, lambda x, y: x & 0xFFFF | (y & 0xFFFF) << 16)
    return cases


SHIFTS: dict[Direction, Callable[[int, int], int]] = {
    Direction.L: lambda x, n: x << n,
    Direction.R: lambda x, n: x >> n,
}
COMPARE: dict[Cmp, Callable[[Any, Any], bool]] = {
    Cmp.EQ: lambda x, y: x == y, Cmp.NE: lambda x, y: x != y, Cmp.LT: lambda x, y: x < y,
    Cmp.LE: lambda x, y: x <= y, Cmp.GT: lambda x, y: x > y, Cmp.GE: lambda x, y: x >= y,
}  # fmt: skip


def extreme(op: MinMax, type: LaneType, x: int, y: int) -> int:
    """NaN with a NaN; -0 below +0."""
    if is_nan(x, type) or is_nan(y, type):
        return rounded(math.nan, type)
    order = sorted((x, y), key=lambda b: (number(b, type), -(b >> type.bits - 1)))
    return order[0 if op is MinMax.MIN else 1]


def integral(rounding: str, x: Fraction) -> int:
    to_integer: dict[str, Callable[[Fraction], int]] = {
        "RN": round,
        "RM": math.floor,
        "RP": math.ceil,
        "RZ": math.trunc,
    }
    return to_integer[rounding](x)


def frnd(rounding: Rounding, type: LaneType, x: int) -> int:
    value = number(x, type)
    if isinstance(value, float):
        return rounded(value, type)
    return rounded(Fraction(integral(rounding.name, value)), type, x >> type.bits - 1)


def float_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    b = Src.of(B)
    for t in FloatType:
        lane = t.lane
        of: dict[str, tuple[Instr, int, Callable[..., Any], Callable[..., float]]] = {
            "FADD": (i.FADD(t, D, A, b), 2, lambda x, y: x + y, lambda x, y: x + y),
            "FMUL": (i.FMUL(t, D, A, b), 2, lambda x, y: x * y, lambda x, y: x * y),
            "FDIV": (i.FDIV(t, D, A, b), 2, lambda x, y: x / y, quotient),
            "FFMA": (i.FFMA(t, D, A, b, C), 3, lambda x, y, z: x * y + z, lambda x, y, z: x * y + z),
        }  # fmt: skip
        for name, (instr, n, op, special) in of.items():
            cases[f"{name}.{t}"] = (
                [instr],
                (lane,) * n,
                lambda *xs, op=op, special=special, lane=lane: ieee(op, special, lane, *xs),
            )
        for pick in MinMax:
            cases[f"FMNMX.{pick}.{t}"] = (
                [i.FMNMX(pick, t, D, A, b)],
                (lane, lane),
                lambda x, y, pick=pick, lane=lane: extreme(pick, lane, x, y),
            )
        for r in Rounding:
            cases[f"FRND.{r}.{t}"] = (
                [i.FRND(r, t, D, A)],
                (lane,),
                lambda x, r=r, lane=lane: frnd(r, lane, x),
            )
        for cmp, holds in COMPARE.items():
            code = [
                i.FSETP(cmp, t, Pred(0), A, b),
                i.SEL(Bits32._32, D, Reg(255), Src.of(1), Guard(8)),
            ]
            cases[f"FSETP.{cmp}.{t}"] = (
                code,
                (lane, lane),
                lambda x, y, holds=holds, lane=lane: int(holds(number(x, lane), number(y, lane))),
            )
    for h in Half:
        cases |= half_cases(h)
    return cases


def half_cases(h: Half) -> dict[str, Case]:
    """Packed arithmetic: the low halves are the case, the high ones the same swapped."""
    lane, swap = h.lane, [i.PACK2(Reg(4), A, B), i.PACK2(Reg(5), B, A)]
    both: dict[str, tuple[Instr, Callable[[int, int], int]]] = {
        "HADD2": (i.HADD2(h, D, Reg(4), Src.of(Reg(5))), lambda x, y: ieee(lambda p, q: p + q, lambda p, q: p + q, lane, x, y)),
        "HMUL2": (i.HMUL2(h, D, Reg(4), Src.of(Reg(5))), lambda x, y: ieee(lambda p, q: p * q, lambda p, q: p * q, lane, x, y)),
        "HMNMX2.MIN": (i.HMNMX2(MinMax.MIN, h, D, Reg(4), Src.of(Reg(5))), lambda x, y: extreme(MinMax.MIN, lane, x, y)),
        "HMNMX2.MAX": (i.HMNMX2(MinMax.MAX, h, D, Reg(4), Src.of(Reg(5))), lambda x, y: extreme(MinMax.MAX, lane, x, y)),
    }  # fmt: skip
    return {
        f"{name}.{h}": ([*swap, instr], (lane, lane), lambda x, y, f=f: f(x, y) | f(y, x) << 16)
        for name, (instr, f) in both.items()
    }


def converted(source: LaneType, target: LaneType, rounding: str, x: int) -> int:
    """CVT."""
    value = number(x, source) if source.kind == "f" else Fraction(fits(x, source))
    if target.kind == "f":
        return rounded(value, target, zero_sign=x >> source.bits - 1 if source.kind == "f" else 0)
    if source.kind != "f":
        return in_register(fits(int(value), target), target)
    low, high = (
        (-(1 << target.bits - 1), (1 << target.bits - 1) - 1)
        if target.kind == "s"
        else (0, (1 << target.bits) - 1)
    )
    if isinstance(value, float):
        return in_register(0 if math.isnan(value) else high if value > 0 else low, target)
    return in_register(min(max(integral(rounding, value), low), high), target)


def conversion_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for to in Scalar:
        for frm in Scalar:
            roundings = Rounding if frm.lane.kind == "f" and to.lane.kind != "f" else [Rounding.RN]
            for r in roundings:
                cases[f"CVT.{to}.{frm}.{r}"] = (
                    [i.CVT(to, frm, r, D, A)], (frm.lane,), lambda x, s=frm.lane, t=to.lane, r=r: converted(s, t, r.name, x))  # fmt: skip
    return cases


CASES = {**integer_cases(), **float_cases(), **conversion_cases()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_an_instruction_is_its_oracle(name: str, engine: EngineName) -> None:
    code, types, oracle = CASES[name]
    rng, count = random.Random(name), ENGINES[engine] // (4 if name.startswith("CVT") else 1)
    operands = [(floats if t.kind == "f" else ints)(rng, t, count) for t in types]
    got = apply(code, operands, engine)
    wrong = [
        (list(map(hex, xs)), hex(g), hex(w))
        for *xs, g in zip(*operands, got, strict=True)
        if (w := oracle(*xs)) != g
    ]
    assert not wrong, wrong[:3]


# --- between lanes


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("segment", [4, 32])
@pytest.mark.parametrize("mode", Shuffle)
def test_shuffles_stay_in_their_segment(mode: Shuffle, segment: int, engine: EngineName) -> None:
    rng = random.Random(segment)
    values, deltas = (
        [rng.getrandbits(32) for _ in range(64)],
        [rng.choice([0, 1, 2, 3, 5, 31, 40]) for _ in range(64)],
    )
    got = apply([i.SHFL(mode, D, A, Src.of(B), Unsigned(segment))], [values, deltas], engine)

    def origin(lane: int, by: int) -> int:
        first, place = lane - lane % segment, lane % segment
        if mode is Shuffle.IDX:
            return first + by % segment
        moved = {Shuffle.UP: place - by, Shuffle.DOWN: place + by, Shuffle.BFLY: place ^ by}[mode]
        return first + moved if 0 <= moved < segment else lane

    assert got == [values[n - n % 32 + origin(n % 32, deltas[n])] for n in range(64)]


@pytest.mark.parametrize("engine", ENGINES)
def test_votes_count_active_lanes_only(engine: EngineName) -> None:
    values = [n % 3 for n in range(32)]
    code = [
        i.ISETP(Cmp.NE, IntType.U32, Pred(0), A, Src.of(0)), i.ISETP(Cmp.NE, IntType.U32, Pred(1), A, Src.of(1)),
        i.BALLOT(D, Guard(0), guard=Guard(1)),
        i.PLOP(Logic.AND, Pred(2), Guard(7), Guard(15)), i.PLOP(Logic.AND, Pred(3), Guard(7), Guard(15)),
        i.VOTE(Vote.ALL, Pred(2), Guard(0), guard=Guard(0)), i.VOTE(Vote.ANY, Pred(3), Guard(0), guard=Guard(8)),
        i.SEL(Bits32._32, Reg(4), A, Src.of(0), Guard(2)), i.SEL(Bits32._32, Reg(5), Reg(255), Src.of(8), Guard(11)),
        i.IADD(IntType.U32, Reg(25), Reg(4), Src.of(Reg(5))),
    ]  # fmt: skip
    got = apply(code, [values], engine)
    ballot = sum(1 << n for n, v in enumerate(values) if v == 2)
    assert [g & 0xFFFFFFFF for g in got] == [ballot if v != 1 else 0 for v in values]
    assert [g >> 32 for g in got] == values  # ALL holds where it was asked, ANY nowhere


# --- the algebra's own edges


def test_fma_rounds_once_where_two_roundings_go_wrong() -> None:
    one = np.full(32, 1 + 2.0**-12, np.float32)
    assert (lanes.fma(one, one, -np.ones(32, np.float32)) == np.float32(2.0**-11 + 2.0**-24)).all()


def test_an_algebra_value_takes_python_numbers_of_its_own_type() -> None:
    x = np.full(32, 3, np.uint32)
    assert lanes.type_of(lanes.minimum(x, 2)) is lanes.U32
    assert lanes.type_of(lanes.select(x == 3, 1, x)) is lanes.U32


def test_a_nan_has_one_pattern_of_bits() -> None:
    for dtype, bits in (
        (np.float16, 0x7E00),
        (ml_dtypes.bfloat16, 0x7FC0),
        (np.float32, 0x7FC00000),
    ):
        x = np.full(32, -np.nan, dtype)
        assert (lanes.bitcast(x, {16: lanes.U16, 32: lanes.U32}[8 * x.itemsize]) == bits).all()
