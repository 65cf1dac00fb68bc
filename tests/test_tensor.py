"""The tensor extension: HMMA against a chain of exact fused steps, LDSM against the layout of a tile."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from bare_warp import LANE, Bare

from knapper.isa import instructions as I
from knapper.isa import tensor
from knapper.isa.modifiers import Half, Trans
from knapper.isa.operands import Reg, Signed, Unsigned, UReg


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
