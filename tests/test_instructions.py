"""What instructions do, one at a time, to a warp with nothing but registers; and that they touch what they declare."""

from random import Random

import ml_dtypes
import numpy as np
import pytest
from bare_warp import ALL, LANE, Bare

from knapper.isa import instructions as I
from knapper.isa.generate import instruction
from knapper.isa.lanes import S32, U32, U64
from knapper.isa.modifiers import (
    Cmp,
    FloatType,
    Half,
    IntType,
    MinMax,
    Rounding,
    Scalar,
    Shuffle,
    Vote,
    Width,
)
from knapper.isa.operands import Guard, Pred, Reg, Signed, Src, Unsigned, UReg


def run(i, **state):
    """The registers after one instruction."""
    m = Bare()
    for name, value in state.items():
        kind, n = (
            (m.uregs, int(name[2:]))
            if name.startswith("UR")
            else (m.preds if name[0] == "P" else m.regs, int(name[1:]))
        )
        raw = np.asarray(value)
        kind[n] = raw.view(np.uint32) if raw.dtype in (np.float32, np.int32) else raw
    with np.errstate(all="ignore"):
        i.execute(m)
    return m


def spelled(accesses, use):
    return {
        f"{a.first.prefix or 'P'}{int(a.first) + k}"
        for a in accesses
        if use in a.use and a.field != "guard"
        for k in range(a.words)
    }


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.mnemonic)
def test_an_instruction_touches_exactly_what_it_declares(cls):
    rng = Random(cls.mnemonic)
    for seed in range(40):
        i, m = instruction(rng, [cls]), Bare(seed)
        with np.errstate(all="ignore"):
            i.execute(m)
        assert m.read_set == spelled(i.accesses(), "r"), str(i)
        assert m.write_set == spelled(i.accesses(), "w"), str(i)


def test_inactive_lanes_keep_their_registers():
    m = Bare()
    m.mask = LANE % 2 == 0
    before = m.regs[3].copy()
    I.MOV(Reg(3), Src.of(7)).execute(m)
    assert (m.regs[3] == np.where(m.mask, 7, before)).all()


def test_integer_rules():
    least = np.int32(-(2**31))
    s32 = IntType.S32
    cases = [
        (
            I.IDIV(s32, Reg(0), Reg(1), Src.of(Reg(2))),
            (7, -7, 7, least, 5),
            (2, 2, 0, -1, -2),
            (3, -3, -1, least, -2),
        ),
        (
            I.IREM(s32, Reg(0), Reg(1), Src.of(Reg(2))),
            (7, -7, 7, least, 5),
            (2, 2, 0, -1, -2),
            (1, -1, 7, 0, 1),
        ),
        (I.IABS(s32, Reg(0), Reg(1)), (5, -5, least), (0, 0, 0), (5, 5, least)),
        (I.IADD(s32, Reg(0), Reg(1), Src.of(Reg(2))), (2**31 - 1,), (1,), (least,)),
    ]
    for i, a, b, expected in cases:
        pad = lambda xs: np.array([*xs, *[1] * (32 - len(xs))], np.int32)  # noqa: E731
        m = run(i, R1=pad(a), R2=pad(b))
        assert m.read(Reg(0), S32)[: len(expected)].tolist() == list(expected), str(i)


def test_a_64_bit_immediate_is_sign_extended_and_an_f64_one_is_the_high_word():
    m = run(I.IADD(IntType.S64, Reg(2), Reg(255), Src.of(-2)))
    assert m.read(Reg(2), U64)[0] == 2**64 - 2
    m = run(I.FADD(FloatType.F64, Reg(2), Reg(255), Src.of(0x3FF80000)))
    assert m.regs[3][0] == 0x3FF80000
    assert m.regs[2][0] == 0


def test_minimum_with_a_nan_is_nan_and_minus_zero_is_smaller():
    a = np.array([np.nan, 1, -0.0, 0.0] * 8, np.float32)
    b = np.array([2, np.nan, 0.0, -0.0] * 8, np.float32)
    m = run(I.FMNMX(MinMax.MIN, FloatType.F32, Reg(0), Reg(1), Src.of(Reg(2))), R1=a, R2=b)
    assert m.read(Reg(0), U32)[:4].tolist() == [0x7FC00000, 0x7FC00000, 0x80000000, 0x80000000]


def test_comparisons_with_nan_hold_for_not_equal_only():
    a = np.full(32, np.nan, np.float32)
    for cmp in Cmp:
        m = run(I.FSETP(cmp, FloatType.F32, Pred(0), Reg(1), Src.of(Reg(1))), R1=a)
        assert m.preds[0].all() == (cmp is Cmp.NE)


def test_conversions_round_saturate_and_wrap():
    a = np.array([2.5, -2.5, 1e30, np.nan] * 8, np.float32)
    told = {
        r: run(I.CVT(Scalar.S8, Scalar.F32, r, Reg(0), Reg(1)), R1=a).read(Reg(0), S32)[:4].tolist()
        for r in Rounding
    }
    assert told == {
        Rounding.RN: [2, -2, 127, 0],
        Rounding.RM: [2, -3, 127, 0],
        Rounding.RP: [3, -2, 127, 0],
        Rounding.RZ: [2, -2, 127, 0],
    }
    m = run(
        I.CVT(Scalar.S8, Scalar.S32, Rounding.RN, Reg(0), Reg(1)), R1=np.full(32, 200, np.int32)
    )
    assert m.read(Reg(0), S32)[0] == -56


def test_halves_are_computed_apart():
    a = np.array([1.5, 65504.0] * 32, np.float16).view(np.uint32)
    m = run(I.HADD2(Half.F16, Reg(0), Reg(1), Src.of(Reg(1))), R1=a)
    assert m.regs[0].view(np.float16)[:2].tolist() == [3.0, np.inf]
    b = np.array([1.5, -2.0] * 32, ml_dtypes.bfloat16).view(np.uint32)
    m = run(I.HMUL2(Half.BF16, Reg(0), Reg(1), Src.of(Reg(1))), R1=b)
    assert m.regs[0].view(ml_dtypes.bfloat16)[:2].astype(float).tolist() == [2.25, 4.0]
    m = run(
        I.PACK2(Reg(0), Reg(1), Reg(2)),
        R1=np.full(32, 0xAAAA1111, np.uint32),
        R2=np.full(32, 0xBBBB2222, np.uint32),
    )
    assert m.regs[0][0] == 0x22221111


@pytest.mark.parametrize("segment", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("mode", Shuffle)
@pytest.mark.parametrize("b", [0, 1, 3, 31, 0xFFFFFFFF])
def test_shuffles_stay_in_their_segment(mode, segment, b):
    m = run(I.SHFL(mode, Reg(0), Reg(1), Src.of(b), Unsigned(segment)), R1=LANE)
    for lane in range(32):
        start, place = lane - lane % segment, lane % segment
        source = {
            Shuffle.IDX: b % segment,
            Shuffle.UP: place - b,
            Shuffle.DOWN: place + b,
            Shuffle.BFLY: place ^ b,
        }[mode]
        assert m.regs[0][lane] == (start + source if 0 <= source < segment else lane)


def test_votes_ask_the_active_lanes():
    m = Bare()
    m.mask = LANE < 4
    m.preds[0] = LANE < 4
    I.VOTE(Vote.ALL, Pred(1), Guard(0)).execute(m)
    I.VOTE(Vote.ANY, Pred(2), Guard(8)).execute(m)
    I.BALLOT(Reg(0), Guard(7)).execute(m)
    assert m.preds[1][:4].all()
    assert not m.preds[2][:4].any()
    assert m.regs[0][:4].tolist() == [15] * 4


def test_addresses_add_a_signed_lane_offset_to_a_wide_base():
    m = Bare()
    seen = []
    m.load = lambda space, address, type, words=1, where=None: (
        seen.append((space, address[0])) or [np.zeros(32, np.uint32)] * words
    )
    m.uregs[2:4], m.regs[1] = (0x10, 0x1), np.uint32(2**32 - 8)
    I.LDG(Width._32, Reg(0), UReg(2), Reg(1), Signed(-4)).execute(m)
    I.LDS(Width._32, Reg(0), UReg(2), Reg(1), Signed(-4)).execute(m)
    I.LDL(Width._32, Reg(0), Reg(1), Signed(4)).execute(m)
    assert seen == [("global", 0x1_0000_0010 - 12), ("shared", 4), ("local", 2**32 - 4)]


def test_im2col_loads_are_zero_outside_the_image():
    pix = np.array(
        [(y << 16 | x & 0xFFFF) & 0xFFFFFFFF for y in range(-2, 2) for x in range(-4, 4)], np.uint32
    )
    m = Bare()
    m.regs[1], m.regs[2], m.uregs[6] = pix, 0, 3 << 16 | 5
    m.memory[:] = 1
    I.LDG_IM2COL(
        Width.U8, Reg(0), UReg(2), Reg(2), Signed(0), Reg(1), Src.of(1 << 16 | 2), UReg(6)
    ).execute(m)
    inside = [0 <= y + 1 < 3 and 0 <= x + 2 < 5 for y in range(-2, 2) for x in range(-4, 4)]
    assert m.regs[0].tolist() == [int(x) for x in inside]
    assert 0 < sum(inside) < 32
    operands = Reg(0), UReg(2), Reg(2), Signed(0), Reg(1), Src.of(1 << 16 | 2), UReg(6)
    for width, fill, outside in (
        (Width.U8, 0x90, 0x90), (Width.S8, 0x90, 0xFFFFFF90), (Width.U16, 0x70, 0x7070), (Width._32, 0x90, 0x90909090)
    ):  # fmt: skip
        I.LDG_IM2COL_FILL(width, *operands, Unsigned(fill)).execute(m)
        one = int.from_bytes(bytes([1] * width.bytes), "little")
        assert m.regs[0].tolist() == [one if x else outside for x in inside]
