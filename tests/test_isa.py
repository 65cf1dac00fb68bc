"""One class body an instruction gives bits, text, operand sets and manual: these tests hold them together."""

from pathlib import Path
from random import Random

import pytest
from bare_warp import ALL
from hypothesis import given
from hypothesis import strategies as st

from knapper.isa import instructions as I
from knapper.isa import manual
from knapper.isa.core import BY_NAME, CUSTOM, TABLE, Access, Instr
from knapper.isa.errors import IsaError
from knapper.isa.generate import instruction
from knapper.isa.modifiers import (
    Bits32,
    Cmp,
    FloatType,
    Half,
    IntType,
    Logic,
    Rounding,
    Scalar,
    Shuffle,
    Width,
)
from knapper.isa.operands import (
    READ,
    WRITE,
    Guard,
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
    HADD2 HMUL2 HMNMX2 PACK2 LDG STG LDS STS LDL STL SHFL VOTE BALLOT LDSM HMMA.161616.F32 HMMA.161616.F16
    IMMA.161632.S32 IMMA.161664.S32 HMMA.SP.161632.F32 LDG.IM2COL LDG.IM2COL.FILL
    MODE SMA.LDB SMA.SWAP LSMA SMA.COMMIT SMA.WAIT ACC.LD ACC.ST CONVDESC FILL.DUP IM2COL.PUSH DMA.LD
    ISMA.LDB ILSMA IM2COL.IPUSH ISMA.LDB.N ILSMA.N
    SPWMMA.323216.F32 OHMMA.8161.F32 BOHMMA.32321 OWMMA.161616.F32 BMENC BMSLICE BTST TWDESC GATHK.PUSH
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
    pages = [line[5:] for line in text.splitlines() if line.startswith("#### ")]
    assert sorted(pages) == sorted(c.mnemonic for c in ALL)
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
