"""IMMA against products in Python's integers: all pairs of types, all pairs of codes, wrapping, masks; engines and processors alike."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bare_warp import LANE, Bare
from hypothesis import given
from hypothesis import strategies as st

from knapper.isa import instructions as I
from knapper.isa import verify
from knapper.isa.core import Instr
from knapper.isa.errors import IsaError, KnapperError
from knapper.isa.formats import pack
from knapper.isa.machine import Machine
from knapper.isa.modifiers import (
    SR,
    Bits32,
    Byte,
    Cmp,
    Direction,
    Few,
    IntType,
    Nibble,
    Trans,
    Width,
)
from knapper.isa.operands import Guard, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE, Kernel, Launch, Port, Program
from knapper.runtime.energy import cost
from knapper.runtime.session import Session

AMPERE = Machine.load("ampere")
TYPED = AMPERE.with_(extensions=[*AMPERE.extensions, "types"])
BYTES = [(I.IMMA, a, b) for a in Byte for b in Few]
NIBBLES = [(I.IMMA_4, a, b) for a in Nibble for b in Nibble]
PAIRS = [*BYTES, *NIBBLES]
NAMES = [f"{cls.mnemonic}.{a}.{b}" for cls, a, b in PAIRS]


def depth(cls):
    return 32 if cls is I.IMMA else 64


def words(codes, f):
    """[16, K] codes → registers, [n, 32]"""
    return pack(codes, f.bits).reshape(-1, 128).view(np.uint32)


def value(f, code):
    """By its parts, in Python's integers."""
    sign, base, exponent = (int(x) for x in f.parts(code))
    return sign * (base << exponent)


def product(cls, a_type, b_type, a, b, c, mask=None, zero=False):
    """d of an IMMA on codes a[16, K] and b[16, K], c[16, 16]."""
    m = Bare()
    for first, codes, type in ((0, a, a_type), (4, b, b_type)):
        given = words(codes, type.format)
        m.regs[first : first + len(given)] = given
    m.regs[8:16] = c.astype(np.int64).astype(np.uint32).reshape(8, 32)
    if mask is not None:
        m.mask = mask
    cls(a_type, b_type, Reg(8), Reg(0), Reg(4), Reg(255 if zero else 8)).execute(m)
    return m.regs[8:16].view(np.int32).reshape(16, 16)


def drawn(cls, a_type, b_type, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 1 << t.format.bits, (16, depth(cls))) for t in (a_type, b_type))
    return a, b, rng.integers(-(2**31), 2**31, (16, 16))


@pytest.mark.parametrize(("cls", "a_type", "b_type"), PAIRS, ids=NAMES)
def test_it_is_the_product_of_what_the_codes_stand_for(cls, a_type, b_type):
    a, b, c = drawn(cls, a_type, b_type, 1)
    got = product(cls, a_type, b_type, a, b, c)
    for m, n in ((0, 0), (3, 11), (15, 2), (7, 15)):
        total = int(c[m, n])
        for x, y in zip(a[m].tolist(), b[n].tolist(), strict=True):
            total += value(a_type.format, x) * value(b_type.format, y)
        assert got[m, n] == (total + 2**31) % 2**32 - 2**31
    left, right = (t.format.decode(x).astype(np.int64) for t, x in ((a_type, a), (b_type, b)))
    assert np.array_equal(got, (c + left @ right.T).astype(np.uint32).view(np.int32))


@pytest.mark.parametrize(("a_type", "b_type"), [p[1:] for p in NIBBLES], ids=NAMES[len(BYTES) :])
def test_all_pairs_of_codes(a_type, b_type):
    a, b = np.zeros((16, 64), int), np.zeros((16, 64), int)
    a[:, 5], b[:, 5] = range(16), range(16)
    got = product(I.IMMA_4, a_type, b_type, a, b, np.zeros((16, 16)), zero=True)
    for m in range(16):
        for n in range(16):
            assert got[m, n] == value(a_type.format, m) * value(b_type.format, n)


def test_sums_wrap():
    full = np.full((16, 32), 255)
    c = np.full((16, 16), 2**31 - 1)
    got = product(I.IMMA, Byte.U8, Few.U8, full, full, c)
    assert (got == 32 * 255 * 255 - 2**31 - 1).all()
    low = np.full((16, 32), 0x80)
    got = product(I.IMMA, Byte.S8, Few.S8, low, low, -c - 1)
    assert (got == 32 * 128 * 128 - 2**31).all()


def test_in_place_and_under_a_mask():
    a, b, c = drawn(I.IMMA, Byte.S8, Few.S8, 2)
    whole = product(I.IMMA, Byte.S8, Few.S8, a, b, c)
    half = product(I.IMMA, Byte.S8, Few.S8, a, b, c, LANE < 16)  # even rows
    assert np.array_equal(half[::2], whole[::2])
    assert np.array_equal(half[1::2], c[1::2])


def test_the_fragments_are_those_of_ldsm():
    """LDSM.N of rows of 32 bytes loads A, and B as it is transposed."""
    m = Bare()
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-128, 128, (16, 32)).astype(np.int8) for _ in range(2))
    for start, matrix in ((0, a), (2048, b)):
        for row in range(16):
            m.memory[start + 48 * row :][:32] = matrix[row].view(np.uint8)
    m.uregs[5] = 0
    for d, start in ((0, 0), (4, 2048)):
        I.LDSM(Trans.N, Reg(d), UReg(5), Signed(start), Unsigned(48)).execute(m)
    I.IMMA(Byte.S8, Few.S8, Reg(8), Reg(0), Reg(4), Reg(255)).execute(m)
    got = m.regs[8:16].view(np.int32).reshape(16, 16)
    assert np.array_equal(got, a.astype(int) @ b.T.astype(int))


def test_text_and_macs():
    i = I.IMMA(Byte.U8, Few.FLINT4, Reg(16), Reg(0), Reg(6), Reg(255))
    assert str(i) == "IMMA.161632.S32.U8.FLINT4 R16, R0, R6, RZ"
    assert Instr.decode(i.encode()) == i
    assert [(a.field, a.words) for a in i.accesses()] == [("d", 8), ("a", 4), ("b", 2)]
    four = I.IMMA_4(Nibble.S4, Nibble.UPOT4, Reg(16), Reg(0), Reg(4), Reg(8))
    assert str(four) == "IMMA.161664.S32.S4.UPOT4 R16, R0, R4, R8"
    assert (i.macs(32), four.macs(32)) == (2 * 4096, 4 * 4096)
    with pytest.raises(IsaError, match="R6 is not a multiple of 4"):
        I.IMMA(Byte.U8, Few.U8, Reg(16), Reg(0), Reg(6), Reg(255)).encode()


def test_types_beyond_integers_are_an_extension():
    for cls, a, b in PAIRS:
        i = cls(a, b, Reg(16), Reg(0), Reg(4), Reg(8))
        assert bool(i.needed()) == (("FLINT" in f"{a}{b}") or ("POT" in f"{a}{b}"))
    verify.verify(programmed(BYTES[:4], AMPERE))
    verify.verify(programmed(PAIRS, TYPED))
    typed = programmed([(I.IMMA, Byte.U8, Few.FLINT4)], AMPERE)
    with pytest.raises(KnapperError, match=r"E522: .*: ampere has no extension 'types'"):
        verify.verify(typed)
    with pytest.raises(KnapperError, match="takes extension 'types', which the target lacks"):
        Session(typed).run(inputs(0))


def test_energy_is_by_width():
    given = {
        I.IMMA(Byte.U8, Few.S8, Reg(16), Reg(0), Reg(4), Reg(8)): ("mac8_tensor", 8192, 512 + 1024),
        I.IMMA(Byte.U8, Few.S4, Reg(16), Reg(0), Reg(4), Reg(255)): ("mac8_tensor", 8192, 384),
        I.IMMA_4(Nibble.S4, Nibble.S4, Reg(16), Reg(0), Reg(4), Reg(8)): ("mac4_tensor", 16384, 512 + 1024),
    }  # fmt: skip
    for i, (event, macs, reads) in given.items():
        assert cost(i, AMPERE).issue == {event: macs, "rf_read": reads, "rf_write": 1024}


# --- engines -----------------------------------------------------------------------------------------------------------------------

GLOBAL, OUT, OFFSET = UReg(0), UReg(2), Reg(0)
A, B, C, D = 8, 12, 16, 28
BEHIND = C + 4
INPUT = 16 * 128


def programmed(pairs, machine=TYPED):
    """x: the registers of a, b, c, in turn → y[pair, 2, 8, 32]: d with all lanes; then half over c, in turn with some lanes and with all."""
    code = [
        I.ULDC(Bits32._64, GLOBAL, Unsigned(0)),
        I.ULDC(Bits32._64, OUT, Unsigned(8)),
        I.S2R(SR.LANEID, Reg(1)),
        I.SHF(Direction.L, IntType.U32, OFFSET, Reg(1), Src.of(2)),
        I.ISETP(Cmp.LT, IntType.U32, Pred(0), Reg(1), Src.of(23)),
        *(I.LDG(Width._32, Reg(A + n), GLOBAL, OFFSET, Signed(128 * (n % 16))) for n in range(20)),
    ]
    for n, (cls, a, b) in enumerate(pairs):
        code += [
            I.LDG(Width._32, Reg(C + r), GLOBAL, OFFSET, Signed(1024 + 128 * r)) for r in range(8)
        ]
        code.append(cls(a, b, Reg(D), Reg(A), Reg(B), Reg(C)))
        some = Guard(7 * (n % 2))
        code.append(cls(a, b, Reg(BEHIND), Reg(A), Reg(B), Reg(C), guard=some))
        for r in range(8):
            for half, first in enumerate((D, BEHIND)):
                at = 128 * (16 * n + 8 * half + r)
                code.append(I.STG(Width._32, OUT, OFFSET, Signed(at), Reg(first + r)))
    code.append(I.EXIT())
    size = 128 * 16 * len(pairs)
    kernel = Kernel("imma", Kernel.encode(code), (0,) * len(code), (32, 1, 1), 40, matrix=True)
    launch = Launch("imma", (1, 1, 1), (BASE, BASE + INPUT), ("n",))
    ports = [
        Port("x", "u32", (16, 32), BASE),
        Port("y", "u32", (len(pairs), 2, 8, 32), BASE + INPUT),
    ]
    return Program(
        machine.to_dict(), {"imma": kernel}, (launch,), (ports[0],), (ports[1],),
        arena_bytes=INPUT + size,
    )  # fmt: skip


EXTREMES = [0, 0x80808080, 0x7F7F7F7F, 0xFFFFFFFF, 0x88888888, 0x77777777, 0x80FF7F01]


def inputs(seed):
    """Anything, or what is at the ends of the types."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2**32, (16, 32), np.uint32)
    if seed % 2:
        x[:8] = rng.choice(np.array(EXTREMES, np.uint32), (8, 32))
    return {"x": x}


@pytest.fixture(scope="module")
def session():
    return Session(programmed(PAIRS))


@given(seed=st.integers(0, 999))
def test_engines_agree_on_all_types(session, seed):
    reference = session.run(inputs(seed), engine="reference")
    fast = session.run(inputs(seed))
    for n, name in enumerate(NAMES):
        assert np.array_equal(reference.outputs["y"][n], fast.outputs["y"][n]), name
    assert reference.stats.instructions == fast.stats.instructions
    checked = session.run(inputs(seed), checked=True)
    assert np.array_equal(checked.outputs["y"], fast.outputs["y"])


def digest():
    """Of what the fast engine computes."""
    made = Session(programmed(PAIRS))
    runs = [made.run(inputs(seed)).outputs["y"].tobytes() for seed in range(4)]
    return hashlib.sha256(b"".join(runs)).hexdigest()


@pytest.mark.parametrize("cpu", ["generic"])
def test_the_processor_does_not_matter(cpu):
    tests = Path(__file__).parent
    env = {
        **os.environ,
        "KNAPPER_CPU": cpu,
        "PYTHONPATH": os.pathsep.join(map(str, (tests.parent / ".ns", tests))),
    }
    script = "import test_integer_tensor as t; print(t.digest())"
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest()
