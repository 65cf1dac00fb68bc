"""The sparse extension: numbers against chains of fused multiply-adds, counts against popcounts, and the same on both engines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_programs import (
    BITMAPS,
    DTYPES,
    RECORD,
    SHARED,
    STARTS,
    SUMS,
    VALUES,
    Body,
    kernel,
    ohmmas,
    program,
    record,
    spwmma,
)
from test_engines import differences

from knapper.isa import instructions as i
from knapper.isa.errors import MachineFault
from knapper.isa.modifiers import SR, Cmp, Direction, Half, IntType, Memory, Width
from knapper.isa.sparse import BMENC, BMSLICE, BOHMMA, BTST, OWMMA, Work
from knapper.runtime.collector import bank_cycles
from knapper.runtime.paths import END, WORK, work
from knapper.runtime.session import Session

Array = np.ndarray[Any, Any]
TYPES = pytest.mark.parametrize("type", Half)


def sides(rng: np.random.Generator, density: float, other: float) -> Any:
    """A and B, each (values, mask)."""
    return [
        (rng.standard_normal(shape), rng.random(shape) < d)
        for shape, d in (((32, 16), density), ((16, 32), other))
    ]


def expected(a: Any, b: Any, c: Array, type: Half) -> Array:
    """C after the product: where both sides are there a fused multiply-add."""
    left, right = (x[0].astype(DTYPES[type]).astype(np.float64) for x in (a, b))
    total = c.astype(np.float32)
    with np.errstate(all="ignore"):
        for k in range(16):
            there = a[1][:, k : k + 1] & b[1][k]
            more = (total.astype(np.float64) + left[:, k : k + 1] * right[k]).astype(np.float32)
            total = np.where(there, more, total)
    return total


def everywhere(session: Session, x: Array) -> Any:
    """The reference engine's result, which the others' are equal to."""
    reference = session.run({"x": x}, engine="reference", timing=True)
    for checked in (False, True):
        fast = session.run({"x": x}, checked=checked, timing=True)
        assert differences(reference, fast) == []
    return reference


def tiles(result: Any) -> Array:
    """C of each record. [records, 32, 32]"""
    return result.outputs["y"].view(np.float32).transpose(0, 2, 1)


SESSIONS = {type: Session(program(kernel(spwmma(type), 2), 2)) for type in Half}
DENSITIES = st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0])


@TYPES
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=DENSITIES, other=DENSITIES)
def test_a_product_is_a_chain_where_both_sides_have_a_bit(
    type: Half, seed: int, density: float, other: float
) -> None:
    rng = np.random.default_rng(seed)
    cases = [(*sides(rng, density, other), rng.standard_normal((32, 32))) for _ in range(4)]
    records = [record(rng, *case, type, SHARED * (n % 2)) for n, case in enumerate(cases)]
    result = everywhere(SESSIONS[type], np.concatenate(records))
    for got, case in zip(tiles(result), cases, strict=True):
        assert (got == expected(*case, type)).all()
    counts = result.stats.launches[0].counts
    assert counts.instructions["ohmma"].sum() == sum(issued(a, b) for a, b, _ in cases)
    products = sum(int((a[1].sum(0) * b[1].sum(1)).sum()) for a, b, _ in cases)
    (launch,) = result.stats.launches
    assert counts.instructions["products"].sum() == products
    assert launch.macs[launch.facts.opcodes == i.SPWMMA.opcode].sum() == products
    assert launch.sparse["ohmma_skipped"] == 4 * 128 - launch.sparse["ohmma_issued"]


def issued(a: Any, b: Any) -> int:
    """OHMMAs of a tile, as a product of matrices of popcounts: CA @ CB."""
    ca, cb = -(-a[1].sum(axis=0) // 8)[None], -(-b[1].sum(axis=1) // 16)[:, None]
    return int((ca @ cb)[0, 0])


def test_every_product_is_an_event_with_its_own_counts() -> None:
    rng = np.random.default_rng(3)
    cases = [sides(rng, d, e) for d, e in ((0.5, 0.5), (0, 1), (1, 1), (0.05, 0.9))]
    zero = np.zeros((32, 32))
    records = [record(rng, *c, zero, Half.F16, SHARED * (n % 2)) for n, c in enumerate(cases)]
    (launch,) = everywhere(SESSIONS[Half.F16], np.concatenate(records)).stats.launches
    paths = launch.counts.paths
    assert paths.of_block.tolist() == [0, 1]
    warps = [w for block in paths.warps for w in block]
    read = 0
    for warp, case, one in zip(warps, cases, records, strict=True):
        (event,) = [e for e in warp["next"].tolist() if e & WORK and e != END]
        bitmaps = one[BITMAPS:STARTS].view(np.uint32)
        values = sum(
            a.sum() + b.sum()
            for a, b in zip(case[0][1].T, case[1][1], strict=True)
            if a.any() and b.any()
        )
        assert event == work(bank_cycles(bitmaps, 0), issued(*case), -(-2 * values // 128))
        read += 2 * values
        assert Work.of(bitmaps).issued == issued(*case)
    products = launch.facts.opcodes == i.SPWMMA.opcode
    assert launch.counts.instructions["smem_read"][products].sum() == read  # of what is multiplied


@TYPES
def test_ohmmas_do_what_an_spwmma_does(type: Half) -> None:
    rng = np.random.default_rng(5)
    case = (*sides(rng, 0.6, 0.4), rng.standard_normal((32, 32)))
    result = everywhere(Session(program(kernel(ohmmas(type)), 1)), record(rng, *case, type))
    assert (tiles(result)[0] == expected(*case, type)).all()
    counts = result.stats.launches[0].counts.instructions
    assert (counts["ohmma"].sum(), counts["products"].sum()) == (
        128,
        int((case[0][1].sum(0) * case[1][1].sum(1)).sum()),
    )


def test_infinities_meet_no_zeros_and_minus_zero_stays() -> None:
    rng = np.random.default_rng(7)
    a, b = sides(rng, 0.5, 0.5)
    a[0][::3], b[0][:, ::5] = np.inf, np.nan
    c = np.full((32, 32), -0.0)
    c[::7] = np.nan
    x = np.concatenate([record(rng, a, b, c, Half.F16, SHARED * (n % 2)) for n in range(4)])
    x[SUMS:VALUES].view(np.uint32)[5] = 0xFFC12345  # a NaN with a payload
    c[5, 0] = np.nan
    got = tiles(everywhere(SESSIONS[Half.F16], x))[0]
    want = expected(a, b, c, Half.F16)
    assert (
        got.view(np.uint32) == np.where(np.isnan(want), np.float32(np.nan), want).view(np.uint32)
    ).all()
    there = a[1].astype(int) @ b[1].astype(int)
    assert np.signbit(got[(there == 0) & ~np.isnan(c)]).all()
    dense = [np.where(x[1], x[0], 0) for x in (a, b)]
    with np.errstate(invalid="ignore"):
        assert np.isnan(dense[0] @ dense[1]).sum() > np.isnan(got[~np.isnan(c)]).sum()


# --- faults


def faults(session: Session, x: Array) -> str:
    """What both engines say, that check everything."""
    told = []
    for how in ({"engine": "reference"}, {"checked": True}):
        with pytest.raises(MachineFault) as e:
            session.run({"x": x}, **how)  # type: ignore[arg-type]
        told.append(str(e.value))
    assert told[0] == told[1]
    return told[0]


def spoiled(n: int, word: int, value: int) -> Array:
    """Records of which one's vector n begins elsewhere."""
    rng = np.random.default_rng(9)
    zero = np.zeros((32, 32))
    records = [record(rng, *sides(rng, 0.5, 0.5), zero, Half.F16, SHARED * w) for w in (0, 1)]
    starts = records[0][STARTS:SUMS].view(np.uint32).reshape(2, 32)
    starts[0, n] &= 0xFFFFFF
    starts[word, n] = value
    return np.concatenate(records * 2)


@pytest.mark.parametrize("n", [0, 7, 20])
@pytest.mark.parametrize(
    ("word", "value", "code"),
    [(0, 63 << 24 | 0x7FFFFE, "E603"), (0, 63 << 24 | 2 * SHARED - 2, "E603"), (1, 0xFFFFFFF0, "E603"), (1, 3, "E602")],
)  # fmt: skip
def test_values_outside_shared_memory_are_a_fault(n: int, word: int, value: int, code: str) -> None:
    x = spoiled(n, word, value)
    session = SESSIONS[Half.F16]
    with pytest.raises(MachineFault, match=code) as plain:
        session.run({"x": x})
    assert str(plain.value) == faults(session, x)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (lambda b, c, s, m: b.emit(i.SPWMMA, Half.F16, 1 << 20, s, m), "E603"),
        (lambda b, c, s, m: (b.emit(i.UIADD, 0, c, c, 512), b.emit(i.SPWMMA, Half.F16, c, s, m)), "E602"),
        (lambda b, c, s, m: split(b, c, s, m), "E616"),
    ],
)  # fmt: skip
def test_a_tile_is_where_it_may_be_and_the_warp_is_whole(body: Body, code: str) -> None:
    x = np.concatenate([spoiled(0, 0, 63 << 24)[:RECORD]])
    assert code in faults(Session(program(kernel(body), 1)), x)


def split(b: Any, c: Any, start: Any, bm: Any) -> None:
    """Lane 0 is left out."""
    lane, some = b.reg(), b.pred()
    b.emit(i.S2R, SR.LANEID, lane)
    b.emit(i.ISETP, Cmp.NE, IntType.U32, some, lane, 0)
    b.emit(i.SPWMMA, Half.F16, c, start, bm, guard=some)


def test_sums_and_values_that_nobody_wrote_are_faults() -> None:
    x = spoiled(0, 0, 63 << 24)[:RECORD]
    assert "E606" in faults(Session(program(kernel(spwmma(Half.F16), stored=False), 1)), x)
    more = replace(kernel(spwmma(Half.F16)), shared_bytes=2 * SHARED)
    rng = np.random.default_rng(1)
    unwritten = record(rng, *sides(rng, 0.5, 0.5), np.zeros((32, 32)), Half.F16, SHARED)
    assert "E606" in faults(Session(program(more, 1)), unwritten)


def test_values_that_another_warp_wrote_are_a_race() -> None:
    rng = np.random.default_rng(2)
    one = record(rng, *sides(rng, 0.5, 0.5), np.zeros((32, 32)), Half.F16, 0)
    assert "E607" in faults(SESSIONS[Half.F16], np.concatenate([one] * 4))


# --- bitmaps


def small(body: Any, words: int) -> Session:
    """Word 0 … of a lane's 128 bytes behind the record's C come in as registers; results go to the tile."""

    def inside(b: Any, c: Any, start: Any, bm: Any) -> None:
        out = body(b, start, bm)
        for n in range(words):
            b.emit(i.ACC_ST, 1, c, 32 * n, out[n])

    return Session(program(kernel(inside), 1))


def words_of(bm: Array, start: Array) -> Array:
    """A record of these registers."""
    x = np.zeros(RECORD, np.uint8)
    x[BITMAPS:STARTS].view(np.uint32)[:], x[STARTS:SUMS].view(np.uint32)[:] = bm, start.ravel()
    return x


RNG = np.random.default_rng(11)
BM, START = RNG.integers(0, 2**32, 32, np.uint32), RNG.integers(0, 2**32, (2, 32), np.uint32)


def results(session: Session, words: int) -> Array:
    """[words, 32] as u32"""
    return everywhere(session, words_of(BM, START)).outputs["y"][0, :words]


@pytest.mark.parametrize("s", [0, 1, 13, 31])
def test_a_slice_is_a_window_over_two_bitmaps(s: int) -> None:
    def body(b: Any, start: Any, bm: Any) -> Any:
        d = b.reg(2)
        b.emit(BMSLICE, d, start, s)
        return d

    got = results(small(body, 2), 2)
    window = (
        START[0].astype(np.uint64) | START[1].astype(np.uint64) << np.uint64(32)
    ) >> np.uint64(s)
    assert (got[0] == window.astype(np.uint32)).all()
    low, first = START[0] & np.uint32((1 << s) - 1), START[0] >> np.uint32(s)
    count = np.bitwise_count(low).astype(np.uint32), np.bitwise_count(first).astype(np.uint32)
    assert (got[1] == (2 * count[0] | count[1] << 24)).all()


@pytest.mark.parametrize("k", [0, 15])
def test_bitmaps_multiply(k: int) -> None:
    def body(b: Any, start: Any, bm: Any) -> Any:
        d = b.reg()
        b.emit(BOHMMA, d, bm, k)
        return [d]

    rows = BM[k] >> np.arange(32, dtype=np.uint32) & 1
    assert (results(small(body, 1), 1)[0] == np.where(rows, BM[16 + k], 0)).all()


@pytest.mark.parametrize("memory", Memory)
def test_condensing_leaves_zeros_out(memory: Memory) -> None:
    def body(b: Any, start: Any, bm: Any) -> Any:
        d, lane, value, at = b.reg(), b.reg(), b.reg(), b.reg()
        base, odd = b.ureg(2), b.pred()
        b.emit(i.S2R, SR.LANEID, lane)
        b.emit(i.ISETP, Cmp.NE, IntType.U32, odd, lane, 5)
        b.emit(i.MOV, d, 0)
        b.emit(i.LOP, 0, 0, value, bm, 0x8001)  # 0, 1, -0 and a number
        b.emit(i.ULDC, 1, base, 8)
        b.emit(i.MOV, at, 0)
        if memory is Memory.S:
            b.emit(BMENC, memory, d, _zero(b), at, 256, value, guard=odd)
            b.emit(i.SHF, Direction.L, IntType.U32, lane, lane, 1)
            b.emit(i.LDS, Width.U16, value, _zero(b), lane, 256)
            return [d, value]
        b.emit(BMENC, memory, d, base, at, 4 * 32 * 20, value, guard=odd)
        return [d]

    def _zero(b: Any) -> Any:
        u = b.ureg()
        b.emit(i.UMOV, u, 0)
        return u

    stored = [v for n, v in enumerate((BM & 0x8001).tolist()) if v & 0x7FFF and n != 5]
    bits = sum(1 << n for n, v in enumerate((BM & 0x8001).tolist()) if v & 0x7FFF and n != 5)
    lanes = np.arange(32) != 5
    if memory is Memory.S:
        got = results(small(body, 2), 2)
        assert got[1, : len(stored)].tolist() == stored
        assert (got[1, len(stored) :] == 0).all()
    else:
        got = results(small(body, 1), 1)
    assert (got[0] == np.where(lanes, bits, 0)).all()


def test_a_bit_of_a_uniform_register_is_a_predicate() -> None:
    def body(b: Any, start: Any, bm: Any) -> Any:
        u, p, d = b.ureg(), b.pred(), b.reg(4)
        b.emit(i.UMOV, u, 0b1010)
        for n in range(4):
            b.emit(BTST, p, u, n)
            b.emit(i.SEL, 0, d[n], bm, 0, p)
        return [d[n] for n in range(4)]

    got = results(small(body, 4), 4)
    assert (got == np.array([[0], [1], [0], [1]], np.uint32) * BM).all()


@TYPES
def test_an_owmma_is_an_hmma(type: Half) -> None:
    def body(cls: Any) -> Any:
        def inside(b: Any, start: Any, bm: Any) -> Any:
            a, c, d = b.reg(4), b.reg(8), b.reg(8)
            for n in range(4):
                b.emit(i.SHF, Direction.R, IntType.U32, a[n], bm, n)
            for n in range(8):
                b.emit(i.MOV, c[n], 0)
            b.emit(cls, type, d, a, a, c)
            return [d[n] for n in range(8)]

        return inside

    one, other = (results(small(body(cls), 8), 8) for cls in (OWMMA, i.HMMA))
    assert (one == other).all()
