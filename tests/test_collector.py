"""The accumulation buffer's banks: a definition of the collector's window, checked against the tabulated ablation."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapper.runtime.collector import DENSE, STEPS, bank_cycles, ohmma_counts
from knapper.runtime.timing import banks

WINDOWS = (1, 2, 4, 8, 16, 0)
TABLE = {
    # density of A and of B: OHMMAs, then cycles by window; all relative to dense
    (1.0, 1.0): (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    (0.75, 1.0): (0.860, 1.427, 1.427, 1.161, 1.010, 0.950, 0.864),
    (0.5, 1.0): (0.609, 1.091, 1.091, 0.894, 0.788, 0.711, 0.618),
    (0.25, 1.0): (0.352, 0.649, 0.649, 0.531, 0.448, 0.403, 0.358),
    (1.0, 0.5): (0.718, 1.215, 0.997, 0.997, 0.938, 0.862, 0.728),
    (0.5, 0.5): (0.437, 1.314, 0.967, 0.791, 0.654, 0.552, 0.440),
    (0.3, 0.4): (0.226, 0.750, 0.578, 0.448, 0.354, 0.286, 0.237),
    (0.25, 0.25): (0.173, 0.516, 0.393, 0.292, 0.221, 0.196, 0.176),
    (0.1, 0.1): (0.117, 0.192, 0.143, 0.124, 0.117, 0.117, 0.117),
}
"""From the facts on the dual-side sparse Tensor Core, §2.4: 60 random tiles each."""


def packed(bits):
    """[n, 32] of bool → [n] words."""
    return np.packbits(bits, axis=-1, bitorder="little").view(np.uint32)[..., 0]


def tiles(rng, a, b, n):
    """Bitmaps of n random tiles. [n, 32]"""
    density = np.repeat([a, b], STEPS)[:, None]
    return packed(rng.random((n, 2 * STEPS, 32)) < density)


def native(bitmaps, window):
    """The machine code through its address, as the fast engine calls it."""
    call = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)(banks.address())
    return call(np.ascontiguousarray(bitmaps).ctypes.data, window)


def one_by_one(bitmaps, window):
    """Every product, one at a time."""
    groups, group = [], []
    for k in range(16):
        rows, columns = ([p for p in range(32) if int(word) >> p & 1] for word in bitmaps[k::16])
        for i in range(0, len(rows), 8):
            for j in range(0, len(columns), 16):
                group.append(
                    [(r % 8, c % 16) for r in rows[i : i + 8] for c in columns[j : j + 16]]
                )
                if len(group) == window:
                    groups.append(group)
                    group = []
    groups.append(group)
    total = 0
    for g in groups:
        banks_used = [bank for ohmma in g for bank in ohmma]
        total += max([len(g), *(banks_used.count(bank) for bank in set(banks_used))])
    return total


@pytest.mark.parametrize(("densities", "row"), TABLE.items(), ids=str)
def test_random_tiles_reproduce_the_ablation(densities, row):
    rng = np.random.default_rng(7)
    all = tiles(rng, *densities, 1000)
    ohmmas = ohmma_counts(all.T).sum(axis=0)
    got = [ohmmas.mean(), *(np.mean([native(t, w) for t in all]) for w in WINDOWS)]
    assert np.array(got) / (DENSE * STEPS) == pytest.approx(np.array(row), rel=0.03)


words = st.one_of(
    st.sampled_from([0, 1, 0xFFFFFFFF, 0x01010101, 0x80000000]), st.integers(0, 0xFFFFFFFF)
)


@given(st.lists(words, min_size=32, max_size=32), st.sampled_from((*WINDOWS, 3, 128)))
def test_both_forms_count_what_one_by_one_does(bitmaps, window):
    bitmaps = np.array(bitmaps, np.uint32)
    expected = one_by_one(bitmaps, window)
    assert bank_cycles(bitmaps, window) == expected == native(bitmaps, window)
    assert expected >= ohmma_counts(bitmaps).sum()


def test_a_wide_window_is_all_of_a_tile():
    for tile in tiles(np.random.default_rng(1), 0.5, 0.5, 20):
        assert bank_cycles(tile, 128) == bank_cycles(tile, 0) <= bank_cycles(tile, 16)
