"""One class body an instruction gives bits, text, operand sets, manual and meaning: these tests hold them together."""

from fractions import Fraction
from pathlib import Path
from random import Random

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapper.isa import instructions as I
from knapper.isa import manual, tensor
from knapper.isa.core import (
    BY_NAME,
    CUSTOM,
    READ,
    TABLE,
    WRITE,
    Access,
    Guard,
    Instr,
    Label,
    Pred,
    Reg,
    Signed,
    Src,
    Unsigned,
    UReg,
    bits,
    misplaced,
)
from knapper.isa.errors import IsaError
from knapper.isa.generate import instruction
from knapper.isa.lanes import S32, U32, U64, canonical
from knapper.isa.modifiers import (
    Bits32,
    Cmp,
    FloatType,
    Half,
    IntType,
    Logic,
    MinMax,
    Rounding,
    Scalar,
    Shuffle,
    Space,
    Start,
    Trans,
    Vote,
    Width,
)

ALL = sorted(TABLE.values(), key=lambda c: c.opcode)
LANE = np.arange(32, dtype=np.uint32)


# --- encoding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.mnemonic)
def test_every_instruction_decodes_to_what_was_encoded(cls):
    rng = Random(cls.mnemonic)
    for _ in range(50):
        i = instruction(rng, [cls])
        assert Instr.decode(i.encode()) == i


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.mnemonic)
def test_any_word_decodes_and_encodes_to_itself_or_is_refused(cls):
    rng, decoded = Random(cls.mnemonic), 0
    for _ in range(300):
        word = instruction(rng, [cls]).encode()
        for _ in range(rng.randrange(4)):
            word ^= 1 << rng.randrange(128)
        try:
            i = Instr.decode(word)
        except IsaError as e:
            assert e.code in ("E503", "E505")  # noqa: PT017
        else:
            assert i.encode() == word
            decoded += 1
    assert decoded


@given(st.integers(0, 2**128 - 1), st.sampled_from(ALL))
def test_noise_is_decoded_exactly_or_refused(noise, cls):
    try:
        i = Instr.decode(noise & cls.used & ~0x3FF | cls.opcode)
    except IsaError:
        return
    assert i.encode() == noise & cls.used & ~0x3FF | cls.opcode


def test_a_bit_that_no_field_has_is_refused():
    word = I.NOP().encode()
    assert word == 7 << 10
    for bit in range(14, 128):
        with pytest.raises(IsaError, match="E503"):
            Instr.decode(word | 1 << bit)
    with pytest.raises(IsaError, match="E503"):
        Instr.decode(0x3FF)


def test_overlapping_bits_and_taken_opcodes_are_refused_at_the_declaration():
    with pytest.raises(IsaError, match=r"BAD\.b: bits 31:24 overlap"):

        class Bad(Instr, opcode=CUSTOM[0], unit="alu"):
            a: Reg = bits(26, 19)
            b: Reg = bits(31, 24)

    with pytest.raises(IsaError, match="outside the word"):

        class Wide(Instr, opcode=CUSTOM[0], unit="alu"):
            a: Unsigned = bits(128, 120)

    with pytest.raises(IsaError, match="already taken"):

        class Again(Instr, opcode=I.FADD.opcode, unit="alu"):
            pass

    assert not {"BAD", "WIDE", "AGAIN"} & BY_NAME.keys()
    assert CUSTOM[0] not in TABLE


def test_a_plugins_instruction_needs_one_class_body():
    try:

        class Triple(Instr, opcode=CUSTOM[5], unit="alu", extension="custom"):
            """d = 3 a."""

            d: Reg = bits(33, 26, use=WRITE)
            a: Reg = bits(41, 34, use=READ)

        i = Triple(Reg(1), Reg(2), guard=Guard(8))
        assert Instr.decode(i.encode()) == i
        assert str(i) == "@!P0 TRIPLE R1, R2"
        assert "#### TRIPLE\n\n`TRIPLE d, a`\n\nd = 3 a." in manual.manual()
        assert "TRIPLE" not in manual.encodings()
    finally:
        del TABLE[CUSTOM[5]], BY_NAME["TRIPLE"]


@pytest.mark.parametrize(
    ("i", "message"),
    [
        (I.MOV(Reg(256), Src.of(0)), "E502: MOV: d: R256 is outside [0, 255]"),
        (I.MOV(Reg(0), Src.of(Reg(256))), "E503: MOV: a: not a source operand"),
        (I.MOV(Reg(0), Src.of(UReg(64))), "E503: MOV: a: not a source operand"),
        (
            I.IADD(IntType.S64, Reg(1), Reg(2), Src.of(0)),
            "E505: IADD.S64 R1, R2, 0x0: d: R1 is not a multiple of 2",
        ),
        (I.IADD(IntType.S64, Reg(2), Reg(2), Src.of(Reg(3))), "b: R3 is not a multiple of 2"),
        (I.LDG(Width._128, Reg(6), UReg(0), Reg(0), Signed(0)), "d: R6 is not a multiple of 4"),
        (
            I.LDG(Width._32, Reg(6), UReg(62), Reg(0), Signed(0)),
            "base: UR62 and the 1 after it reach past UR62",
        ),
        (
            I.HMMA(Half.F16, Reg(248), Reg(0), Reg(4), Reg(255)),
            "d: R248 and the 7 after it reach past R254",
        ),
        (
            I.STG(Width.S8, UReg(0), Reg(0), Signed(0), Reg(1)),
            "width is one of U8, U16, 32, 64, 128, not S8",
        ),
        (
            I.UISETP(Cmp.LT, IntType.S64, Pred(0), UReg(0), Src.of(0)),
            "type is one of S32, U32, not S64",
        ),
        (
            I.SHFL(Shuffle.UP, Reg(0), Reg(0), Src.of(1), Unsigned(3)),
            "segment is one of 1, 2, 4, 8, 16, 32, not 3",
        ),
        (I.UMOV(UReg(0), Src.of(Reg(1))), "R1 is not uniform"),
        (I.UMOV(UReg(0), Src.of(1), guard=Guard(0)), "a uniform instruction takes no guard"),
        (
            I.CVT(Scalar.F16, Scalar.F32, Rounding.RZ, Reg(0), Reg(1)),
            "only float to integer takes another rounding",
        ),
        (I.LDG(Width._32, Reg(0), UReg(0), Reg(0), Signed(1 << 23)), "offset: 8388608 is outside"),
    ],
)
def test_what_does_not_exist_is_not_encoded(i, message):
    with pytest.raises(IsaError) as e:
        i.encode()
    assert message in str(e.value)


def test_register_rows_are_aligned_and_end_before_rz():
    assert (
        misplaced(Reg(252), 1)
        == misplaced(Reg(252), 2)
        == misplaced(Reg(248), 4)
        == misplaced(Reg(244), 8)
        == ""
    )
    assert misplaced(Reg(255), 8) == misplaced(UReg(63), 2) == ""
    assert misplaced(Reg(252), 4)
    assert misplaced(Reg(2), 4)


# --- the table that interfaces rest on -----------------------------------------------------------------------------------------


BUILT_IN = """
    NOP EXIT BRA BSSY BSYNC BAR S2R S2UR ULDC UMOV UIADD UISUB UIMAD UIMNMX UIDIV UIREM ULOP USHF UISETP R2UR MOV IADD ISUB
    IMUL IDIV IREM IMAD IMULHI IMNMX IABS LOP SHF ISETP POPC FLO BREV SEL PLOP FADD FMUL FDIV FFMA FMNMX FSETP FRND MUFU CVT
    HADD2 HMUL2 HMNMX2 PACK2 LDG STG LDS STS LDL STL SHFL VOTE BALLOT LDSM HMMA.161616.F32 HMMA.161616.F16 LDG.IM2COL
    MODE SMA.LDB SMA.SWAP LSMA SMA.COMMIT SMA.WAIT ACC.LD ACC.ST CONVDESC FILL.DUP IM2COL.PUSH DMA.LD
"""


def test_the_built_in_table_is_complete():
    assert {c.mnemonic for c in ALL} == {*BUILT_IN.split()}
    assert not {c.opcode for c in ALL} & {*CUSTOM}
    assert {*I.__all__} == {c.__name__ for c in ALL}


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.mnemonic)
def test_every_instruction_is_documented_in_sentences(cls):
    doc = cls.__doc__ or ""
    assert not doc.startswith(cls.__name__ + "(")  # what a dataclass writes when there is nothing
    assert doc.rstrip().endswith((".", "?"))


def reads(i):
    return {(str(a.first), a.words) for a in i.accesses() if "r" in a.use}


def writes(i):
    return {(str(a.first), a.words) for a in i.accesses() if "w" in a.use}


def test_accesses_count_pairs_and_fragments_and_leave_out_zero_registers():
    i = I.LDG(Width._128, Reg(4), UReg(2), Reg(1), Signed(0), guard=Guard(8))
    assert (reads(i), writes(i)) == ({("P0", 1), ("UR2", 2), ("R1", 1)}, {("R4", 4)})
    i = I.CVT(Scalar.S64, Scalar.F16, Rounding.RN, Reg(2), Reg(5))
    assert (reads(i), writes(i)) == ({("R5", 1)}, {("R2", 2)})
    i = I.HMMA(Half.F16, Reg(8), Reg(0), Reg(4), Reg(255))
    assert (reads(i), writes(i)) == ({("R0", 4), ("R4", 4)}, {("R8", 8)})
    i = I.IADD(IntType.U64, Reg(255), Reg(255), Src.of(UReg(4)))
    assert (reads(i), writes(i)) == ({("UR4", 2)}, set())
    i = I.SEL(Bits32._32, Reg(1), Reg(2), Src.of(3), Guard(9))
    assert (reads(i), writes(i)) == ({("R2", 1), ("P1", 1)}, {("R1", 1)})
    assert list(I.PLOP(Logic.AND, Pred(7), Guard(7), Guard(15)).accesses()) == []
    assert list(I.STS(Width._64, UReg(63), Reg(255), Signed(0), Reg(2)).accesses()) == [
        Access("s", Reg(2), 2, READ)
    ]


def test_multiply_accumulates_are_counted_by_lane():
    ffma = [I.FFMA(t, Reg(0), Reg(0), Src.of(Reg(0)), Reg(0)) for t in FloatType]
    assert [i.macs(7) for i in ffma] == [7, 7]
    imad = {t: I.IMAD(t, Reg(0), Reg(0), Src.of(Reg(0)), Reg(0)).macs(7) for t in IntType}
    assert [t for t, n in imad.items() if n != 7] == [IntType.S32]  # of which addresses are made
    hmma = I.HMMA(Half.F16, Reg(0), Reg(8), Reg(12), Reg(0))
    assert (hmma.macs(32), hmma.macs(16)) == (4096, 2048)
    assert I.FMUL(FloatType.F32, Reg(0), Reg(0), Src.of(Reg(0))).macs(32) == 0


# --- what instructions do: a warp with nothing but registers, which notes what is touched ------------------------------------------


class Bare:
    """A warp of 32 active lanes over one flat memory; `read_set` and `write_set` note registers as `accesses` spells them."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.regs = rng.integers(0, 2**32, (256, 32), np.uint32)
        self.uregs = rng.integers(0, 2**32, 64, np.uint32)
        self.preds = rng.integers(0, 2, (8, 32)).astype(bool)
        self.regs[255], self.uregs[63], self.preds[7] = 0, 0, True
        self.mask = np.ones(32, bool)
        self.memory = rng.integers(0, 256, 1 << 16).astype(np.uint8)
        self.read_set, self.write_set = set(), set()

    def note(self, to, prefix, n, words, zero):
        to |= {f"{prefix}{n + k}" for k in range(words) if n != zero}

    def value(self, words, type):
        low = words[0].astype(np.uint64)
        wide = low | words[1].astype(np.uint64) << np.uint64(32) if len(words) > 1 else low
        return (wide & np.uint64(2**type.bits - 1)).astype(f"u{type.bits // 8}").view(type.dtype)

    def read(self, reg, type):
        words = max(type.bits // 32, 1)
        self.note(self.read_set, "R", int(reg), words, 255)
        return self.value([self.regs[reg if reg == 255 else reg + k] for k in range(words)], type)

    def uniform(self, src, type):
        if isinstance(src, Src) and src.kind == Src.IMM:
            raw = (
                src.payload << 32
                if type.name == "F64"
                else src.payload - (1 << 32) * (src.payload >> 31 and type.bits == 64)
            )
            return np.full(32, raw & 2**type.bits - 1, f"u{type.bits // 8}").view(type.dtype)
        reg, words = int(src.value if isinstance(src, Src) else src), max(type.bits // 32, 1)
        self.note(self.read_set, "UR", reg, words, 63)
        return self.value(
            [np.full(32, self.uregs[reg if reg == 63 else reg + k]) for k in range(words)], type
        )

    def source(self, src, type):
        return self.read(src.value, type) if src.kind == Src.REG else self.uniform(src, type)

    def words(self, value):
        value = canonical(value)
        size = value.dtype.itemsize
        if size == 8:
            return list(np.ascontiguousarray(value).view(np.uint32).reshape(32, 2).T)
        signed = value.dtype.kind == "i"
        return [
            value.astype(np.int32).view(np.uint32)
            if signed
            else value.view(f"u{size}").astype(np.uint32)
        ]

    def write(self, reg, value):
        words = self.words(value)
        self.note(self.write_set, "R", int(reg), len(words), 255)
        for k, w in enumerate(words):
            if reg != 255:
                self.regs[reg + k] = np.where(self.mask, w, self.regs[reg + k])

    def set_uniform(self, reg, value):
        words = self.words(value)
        self.note(self.write_set, "UR", int(reg), len(words), 63)
        for k, w in enumerate(words):
            if reg != 63:
                self.uregs[reg + k] = w[0]

    def predicate(self, p):
        n, negated = (p.pred, p.negated) if isinstance(p, Guard) else (p, False)
        self.note(self.read_set, "P", int(n), 1, 7)
        return self.preds[n] ^ negated

    def set_predicate(self, p, value):
        assert value.dtype == bool
        self.note(self.write_set, "P", int(p), 1, 7)
        if p != 7:
            self.preds[p] = np.where(self.mask, value, self.preds[p])

    set_uniform_predicate = set_predicate

    def send(self, command, address=0, c=0):
        """What an LSMA will do to registers once its group is executed."""
        if isinstance(command, I.LSMA) and command.space is Space.REG:
            reads = [self.read_set] if command.start is Start.ADD else []
            words = -(-command.macs(32) // (8 * 32))
            for to in [self.write_set, *reads]:
                self.note(to, "R", c, words, None if c != 255 else c)

    commit = wait = switch = describe = fill = push = copy = lambda self, *operand: None

    def load(self, space, address, type, words=1, where=None):
        lanes = self.mask if where is None else self.mask & where
        size, out = type.bits // 8, []
        for k in range(words):
            raw = np.zeros((32, size), np.uint8)
            for lane in np.flatnonzero(lanes):
                start = int(address[lane]) % (len(self.memory) - 64) + k * size
                raw[lane] = self.memory[start : start + size]
            out.append(raw.view(type.dtype)[:, 0])
        return out

    def store(self, space, address, values):
        for k, v in enumerate(values):
            size = v.dtype.itemsize
            for lane in np.flatnonzero(self.mask):
                start = int(address[lane]) % (len(self.memory) - 64) + k * size
                self.memory[start : start + size] = v[lane : lane + 1].view(np.uint8)

    def lane(self):
        return LANE.copy()

    def active(self):
        return self.mask

    def special(self, name):
        return LANE + np.uint32(100)

    def shuffle(self, value, lane):
        return value[lane]

    def ballot(self, value):
        return np.full(32, np.packbits(value & self.mask, bitorder="little").view(np.uint32)[0])

    def first(self, value):
        return np.full(32, value[np.flatnonzero(self.mask)[0]])

    def branch(self, target): ...
    def exit(self): ...
    def barrier(self, number): ...

    def push_convergence(self, barrier, target):
        self.write_set.add(f"B{barrier}")

    def converge(self, barrier):
        self.read_set.add(f"B{barrier}")


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


# --- the tensor extension -----------------------------------------------------------------------------------------------------


def exact_fma(a, b, c):
    """One rounding, in exact rationals."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if not exact:
        return np.float32(np.float32(a) * np.float32(b) + np.float32(c))
    near = np.float32(float(exact))
    around = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    finite = [x for x in around if np.isfinite(x)]
    return min(finite, key=lambda x: (abs(Fraction(float(x)) - exact), x.view(np.uint32) & 1))


@pytest.mark.parametrize(
    ("half", "dtype"), [(Half.F16, np.float16), (Half.BF16, ml_dtypes.bfloat16)]
)
def test_hmma_is_the_chain_of_fused_steps(half, dtype):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((16, 16)).astype(dtype) for _ in range(2))
    c = rng.standard_normal((16, 16)).astype(np.float32)
    m = Bare()
    m.regs[0:4], m.regs[4:8] = (x.reshape(4, 64).view(np.uint32) for x in (a, b))
    m.regs[8:16] = c.reshape(8, 32).view(np.uint32)
    I.HMMA(half, Reg(16), Reg(0), Reg(4), Reg(8)).execute(m)
    got = m.regs[16:24].view(np.float32).reshape(16, 16)
    for i in range(0, 16, 5):
        for j in range(0, 16, 3):
            acc = c[i, j]
            for k in range(16):
                acc = exact_fma(a[i, k], b[k, j], acc)
            assert got[i, j].view(np.uint32) == acc.view(np.uint32)


def test_hmma_keeps_bf16_products_beyond_the_range_of_fp32():
    a, b, c = np.zeros((16, 16)), np.zeros((16, 16)), np.full((16, 16), -(2.0**127), np.float32)
    a[:, 0], b[0] = 2.0**64, 2.0**64  # 2**128 alone is infinite in fp32, the sum is not
    assert (tensor.chain(a, b, c) == np.float32(2.0**127)).all()
    a[:, 0], b[0] = (
        2.0**-75,
        2.0**-75,
    )  # 2**-150 alone rounds to zero; beside an odd last bit it is half of one
    c = np.full((16, 16), np.float32(2.0**-149))
    assert (tensor.chain(a, b, c) == np.float32(2.0**-148)).all()


def test_hmma_in_place_and_under_a_mask():
    m = Bare()
    m.regs[0:8] = np.float32(1).astype(np.float16).view(np.uint16).astype(np.uint32) * 0x10001
    m.regs[8:16] = np.full((8, 32), 2, np.float32).view(np.uint32)
    m.mask = LANE < 16  # rows 0, 2, 4, …
    I.HMMA(Half.F16, Reg(8), Reg(0), Reg(4), Reg(8)).execute(m)
    assert m.regs[8:16].view(np.float32)[:, :16].tolist() == [[18.0] * 16] * 8
    assert m.regs[8:16].view(np.float32)[:, 16:].tolist() == [[2.0] * 16] * 8


@pytest.mark.parametrize("trans", Trans)
def test_ldsm_lays_a_tile_out_row_major_over_register_lane_and_half(trans):
    m = Bare()
    pitch, base, offset = 48, 4096, -32
    tile = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for row in range(16):
        start = base + offset + row * pitch
        m.memory[start : start + 32] = tile[row].view(np.uint8)
    m.uregs[5] = base
    I.LDSM(trans, Reg(4), UReg(5), Signed(offset), Unsigned(pitch)).execute(m)
    got = m.regs[4:8].view(np.uint16).reshape(16, 16)
    assert (got == (tile if trans is Trans.N else tile.T)).all()


# --- generated documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"), [("MANUAL.md", manual.manual), ("ENCODINGS.txt", manual.encodings)]
)
def test_generated_documents_are_fresh(request, name, text):
    path = Path(manual.__file__).parent / name
    if request.config.getoption("--bless", default=False):
        path.write_text(text(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text(), (
        f"isa/{name} is stale: run `pytest --bless tests/test_isa.py`"
    )


def test_the_manual_has_a_page_for_every_instruction():
    text = manual.manual()
    assert [line[5:] for line in text.splitlines() if line.startswith("#### ")] == [
        c.mnemonic for c in ALL
    ]
    assert "fp32 accumulators" in text
    assert manual.encodings().count("\n") > 3 * len(ALL)


def test_labels_and_immediates_print_as_they_are_read():
    assert str(I.BRA(Label(3), guard=Guard(8))) == "@!P0 BRA L3"
    assert (
        str(I.LDG(Width._128, Reg(4), UReg(2), Reg(255), Signed(-16))) == "LDG.128 R4, [UR2+RZ-16]"
    )
    assert [str(Src.parse(t)) for t in ("-1", "0x10", "R7", "URZ", "RZ")] == [
        "0xffffffff",
        "0x10",
        "R7",
        "URZ",
        "RZ",
    ]
    for bad in ("4294967296", "-2147483649", "P0", "", "0x", "R-1x"):
        with pytest.raises(IsaError):
            Src.parse(bad)
