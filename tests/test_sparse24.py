"""Two of four: HMMA.SP against HMMA on what the compressed weights stand for, and the kernels made of it against dense ones."""

import ml_dtypes
import numpy as np
import pytest
from bare_warp import LANE, Bare

from knapper.isa import instructions as I
from knapper.isa import sparse24, tensor
from knapper.isa.core import Reg, Unsigned
from knapper.isa.modifiers import Half

DTYPES = {Half.F16: np.float16, Half.BF16: ml_dtypes.bfloat16}


def product(type, a, b, e, c, half=0, mask=None):
    """d of HMMA.SP. a: [16, 32], b: [16, 16] compressed, e: [32] words"""
    m = Bare()
    for n in (0, 1):
        m.regs[4 * n : 4 * n + 4] = a[:, 16 * n : 16 * n + 16].reshape(4, 64).view(np.uint32)
    m.regs[8:12], m.regs[12] = b.reshape(4, 64).view(np.uint32), e
    m.regs[16:24] = c.reshape(8, 32).view(np.uint32)
    if mask is not None:
        m.mask = mask
    I.HMMA_SP(type, Reg(16), Reg(0), Reg(8), Reg(16), Reg(12), Unsigned(half)).execute(m)
    return m.regs[16:24].view(np.float32).reshape(16, 16)


def operands(type, seed):
    rng = np.random.default_rng(seed)
    a, b, c = (rng.standard_normal(s).astype(DTYPES[type]) for s in ((16, 32), (16, 16), (16, 16)))
    index = np.sort(rng.permuted(np.tile(np.arange(4), (8, 16, 1)), axis=2)[..., :2], axis=2)
    return a, b, c.astype(np.float32), index.transpose(0, 2, 1).reshape(16, 16)


def spread(b, index):
    """b[32, 16], element by element."""
    full = np.zeros((32, 16), b.dtype)
    for s in range(16):
        for j in range(16):
            full[4 * (s // 2) + index[s, j], j] = b[s, j]
    return full


@pytest.mark.parametrize("type", Half)
@pytest.mark.parametrize("half", [0, 1])
def test_it_is_two_dense_products_of_the_weights_it_stands_for(type, half):
    a, b, c, index = operands(type, half)
    e = sparse24.metadata(index, half) | sparse24.metadata(3 - index, 1 - half)
    assert (sparse24.indices(e, half) == index).all()
    full, expected = spread(b, index).astype(np.float64), c
    for n in (0, 16):
        expected = tensor.chain(a[:, n : n + 16].astype(np.float64), full[n : n + 16], expected)
    got = product(type, a, b, e, c, half)
    assert (got.view(np.uint32) == expected.view(np.uint32)).all()
    some = product(type, a, b, e, c, half, LANE < 16)  # even rows
    assert (some[::2] == expected[::2]).all()
    assert (some[1::2] == c[1::2]).all()


def test_what_is_not_kept_is_not_multiplied_and_a_k_named_twice_is_once():
    a, b, c, index = operands(Half.F16, 5)
    index[:] = 1
    a[:, np.arange(32) % 4 != 1] = np.inf
    expected, first = c, b[::2].astype(np.float64)
    for k in range(8):
        step = expected + a[:, 4 * k + 1, None].astype(np.float64) * first[k]
        expected = step.astype(np.float32)
    got = product(Half.F16, a, b, sparse24.metadata(index), c)
    assert (got == expected).all()
