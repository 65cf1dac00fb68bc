"""Number formats: the published tables, nearest values against a search of the whole grid, parts, packing, blocks."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from knapper.isa.formats import FORMATS, TIES, Format, mx, pack, unpack
from knapper.isa.formats.format import SHARED

ALL = list(FORMATS.values())
INTEGRAL = [f for f in ALL if f.integral]
FLINT4 = FORMATS["flint4"]
UFLINT4 = FORMATS["uflint4"]

GRIDS: dict[str, list[float]] = {
    "uflint4": [0, 1, 2, 3, 4, 5, 6, 7, 64, 32, 16, 24, 8, 10, 12, 14],
    "uflint3": [0, 1, 2, 3, 16, 8, 4, 6],
    "uflint2": [0, 1, 4, 2],
    "flint4": [0, 1, 2, 3, 16, 8, 4, 6, 0, -1, -2, -3, -16, -8, -4, -6],
    "flint3": [0, 1, 4, 2, 0, -1, -4, -2],
    "uflint5": [*range(16), 256, 128, 64, 96, 32, 40, 48, 56, *range(16, 32, 2)],
    "i4": [*range(8), *range(-8, 0)],
    "i3": [0, 1, 2, 3, -4, -3, -2, -1],
    "u4": [*range(16)],
    "pot3": [0, 1, 2, 4, 0, -1, -2, -4],
    "pot4": [0, *(2**e for e in range(7)), 0, *(-(2**e) for e in range(7))],
    "upot4": [0, *(2**e for e in range(15))],
    "ufloat4": [0, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96],
    "float4": [0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64],
    "f4e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6],
}
"""By code, as published."""


@pytest.mark.parametrize("name", GRIDS)
def test_grid_is_the_published_one(name):
    assert FORMATS[name].grid.tolist() == GRIDS[name]


def test_sorted_values_of_signed_formats():
    assert FLINT4.values.tolist() == [-16, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 16]
    sizes = [*range(9), 10, 12, 14, 16, 24, 32, 64]
    assert FORMATS["flint5"].values.tolist() == [*(-x for x in sizes[:0:-1]), *sizes]
    assert FORMATS["pot3"].values.tolist() == FORMATS["flint3"].values.tolist()
    for name, largest in (("f8e4m3", 448), ("f8e5m2", 57344), ("f6e3m2", 28), ("f6e2m3", 7.5)):
        assert FORMATS[name].largest == largest == -FORMATS[name].smallest


@pytest.mark.parametrize("n", range(2, 9))
def test_flint_has_the_intervals_of_its_definition(n):
    """0 … T - 1 in steps of 1, [T, 2T) of 2, [2T, 4T) of 8, [4T, 8T) of 32, …, and T² as the largest."""
    top = 1 << n - 1
    want = [*range(top)]
    for k in range(n - 1):
        want += range(top << k, top << k + 1, 2 << 2 * k)
    assert FORMATS[f"uflint{n}"].values.tolist() == [*want, top * top]


def test_nearest_flint4():
    vectors = [(0.4, 0, 0), (0.5, 1, 1), (2.5, 3, 3), (7.4, 7, 7), (7.5, 12, 8), (9, 13, 10), (11, 14, 12), (13, 15, 14),
               (15, 10, 16), (20, 11, 24), (28, 9, 32), (40, 9, 32), (48, 8, 64), (100, 8, 64)]  # fmt: skip
    x, codes, values = map(list, zip(*vectors, strict=True))
    assert UFLINT4.encode(x).tolist() == codes
    assert UFLINT4.round(x).tolist() == values
    middles = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 9, 11, 13, 15, 20, 28, 48]
    assert UFLINT4.round(middles).tolist() == UFLINT4.values[1:].tolist()
    below = np.nextafter(middles, 0)
    assert UFLINT4.round(below).tolist() == UFLINT4.values[:-1].tolist()


def test_nearest_signed_flint4_with_a_scale():
    w = np.array([0.9, -0.35, 0.12, 0.05, -1.6, 0.61, 0, -0.049, 0.72, -1.25, 0.449, 2.0])
    codes = [0b0101, 0b1011, 1, 1, 0b1100, 0b0111, 0, 0, 0b0101, 0b1100, 0b0110, 0b0100]
    # the vectors' w / 0.1; in binary -0.35 / 0.1 is not half way
    x = np.round(w * 1000) / 100
    x[1] = np.nextafter(-3.5, 0)
    assert FLINT4.encode(x).tolist() == codes
    assert FLINT4.encode(w / 0.1).tolist() == codes
    want = [0.8, -0.3, 0.1, 0.1, -1.6, 0.6, 0, 0, 0.8, -1.6, 0.4, 1.6]
    np.testing.assert_allclose(FLINT4.round(x) * 0.1, want, rtol=1e-15)


def test_flint4_parts_are_those_of_the_table():
    parts = {0: (0, 0), 7: (7, 0), 12: (8, 0), 13: (10, 0), 14: (12, 0), 15: (14, 0),
             10: (4, 2), 11: (6, 2), 9: (2, 4), 8: (1, 6)}  # fmt: skip
    sign, base, exponent = UFLINT4.parts(list(parts))
    assert set(sign) == {1}
    assert list(zip(base.tolist(), exponent.tolist(), strict=True)) == list(parts.values())
    for name, most in (("uflint4", 6), ("flint4", 4), ("pot4", 6), ("upot4", 14)):
        assert FORMATS[name].parts(range(16))[2].max() == most


@pytest.mark.parametrize("f", INTEGRAL, ids=str)
def test_every_code_is_its_parts(f):
    codes = np.arange(1 << f.bits)
    sign, base, exponent = f.parts(codes)
    assert set(np.unique(sign)) <= {-1, 1}
    assert base.min() >= 0
    assert base.max() < 1 << f.bits
    for c in codes.tolist() if f.bits <= 8 else (*range(300), *range(len(codes) - 300, len(codes))):
        assert int(sign[c]) * (int(base[c]) << int(exponent[c])) == f.grid[c]
    assert np.array_equal(f.values, np.rint(f.values))


def test_floats_have_no_parts():
    with pytest.raises(ValueError, match="f4e2m1 is not integral"):
        FORMATS["f4e2m1"].parts([0])


@pytest.mark.parametrize("a", [f for f in INTEGRAL if f.bits <= 5], ids=str)
def test_products_of_all_codes_by_base_and_exponent(a):
    """A multiplier of two bases and one shift: what the processing element does."""
    for b in (f for f in INTEGRAL if f.bits <= 4):
        (sa, ba, ea), (sb, bb, eb) = (f.parts(np.arange(1 << f.bits)) for f in (a, b))
        product = (sa[:, None] * sb) * ((ba[:, None] * bb) << (ea[:, None] + eb))
        assert np.array_equal(product, a.grid[:, None] * b.grid)


def test_products_of_bytes_by_nibbles():
    """Four products of nibbles, of which the high ones of signed bytes are signed."""
    x, y = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    nibbles = [((v >> 4, 4), (v & 15, 0)) for v in (x, y)]
    total = sum((p * q) << (e + g) for p, e in nibbles[0] for q, g in nibbles[1])
    assert np.array_equal(total, x * y)


def nearest(f: Format, x: float, ties: str) -> set[float]:
    """By a search of all values: the nearest one, or for ties the one that is asked for."""
    distance = [abs(Fraction(v) - Fraction(x)) for v in f.values]
    best = [v for v, d in zip(f.values, distance, strict=True) if d == min(distance)]
    if len(best) == 1 or ties == "up":
        return {max(best)}
    sizes = sorted({abs(v) for v in f.values})
    return {v for v in best if sizes.index(abs(v)) % 2 == 0}


SMALL = [f for f in ALL if f.bits <= 8]


@given(f=st.sampled_from(SMALL), ties=st.sampled_from(TIES), data=st.data())
def test_code_is_that_of_the_nearest_value(f, ties, data):
    middles = ((f.values[1:] + f.values[:-1]) / 2).tolist()
    x = data.draw(
        st.sampled_from(middles)
        | st.integers(-300, 300).map(lambda n: n / 2)
        | st.sampled_from(f.values.tolist())
        | st.floats(f.smallest * 1.1, f.largest * 1.1)
    )
    assert {float(f.round(x, ties))} == nearest(f, x, ties)


@pytest.mark.parametrize("f", ALL, ids=str)
@pytest.mark.parametrize("ties", TIES)
def test_middles_and_their_neighbours(f, ties):
    low, high = f.values[:-1], f.values[1:]
    middle = (low + high) / 2
    assert np.array_equal(f.round(np.nextafter(middle, -np.inf), ties), low)
    assert np.array_equal(f.round(np.nextafter(middle, np.inf), ties), high)
    if ties == "up":
        assert np.array_equal(f.round(middle, ties), high)
    elif f.kind == "int":
        assert np.array_equal(f.round(middle, ties), np.rint(middle))


@pytest.mark.parametrize("f", ALL, ids=str)
def test_round_trip_and_ends(f):
    finite = np.isfinite(f.grid)
    codes = np.flatnonzero(finite)
    again = f.encode(f.grid[finite])
    assert np.array_equal(f.decode(again), f.grid[finite])
    other = again != codes
    assert np.all(f.grid[finite][other] == 0), "only a zero has two codes"
    assert f.encode([np.inf, 1e300, f.largest]).tolist() == [f.encode(f.largest)] * 3
    assert f.encode([-np.inf, -1e300]).tolist() == [f.encode(f.smallest)] * 2
    assert f.holds(f.values)
    assert not f.holds([f.largest * 1.01])
    assert not f.holds([f.values[1] + (f.values[2] - f.values[1]) / 3])
    assert not f.holds([np.nan])
    assert f.holds([])
    nan = f.decode(f.encode([np.nan, 1.0]))
    assert nan[1] == 1
    assert np.isnan(nan[0]) if np.isnan(f.grid).any() else nan[0] == f.round(0)
    assert again.dtype == (np.uint8 if f.bits <= 8 else np.uint16)


@pytest.mark.parametrize("name", [n for n in SHARED if n != "f8e8m0"])
def test_floats_round_as_ml_dtypes(name):
    """Inside the range: there conversions of ml_dtypes go to the nearest even, and keep the sign of zero."""
    f = FORMATS[name]
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 20000) * 2.0 ** rng.uniform(-12, np.log2(f.largest), 20000)
    x = np.concatenate([x, (f.values[1:] + f.values[:-1]) / 2, [0.0, -0.0]]).astype(np.float32)
    assert np.array_equal(f.encode(x, "even"), x.astype(SHARED[name]).view(np.uint8))


def test_integers_are_those_of_ml_dtypes():
    for name in ("int2", "int4", "uint2", "uint4"):
        f = FORMATS[name.replace("nt", "") if name[0] == "i" else f"u{name[4:]}"]
        codes = np.arange(1 << f.bits).astype(np.uint8)
        stored = f.grid.astype(getattr(ml_dtypes, name)).view(np.uint8) & ((1 << f.bits) - 1)
        assert np.array_equal(stored, codes)


def test_what_is_no_tie():
    with pytest.raises(ValueError, match="up or even"):
        FLINT4.encode([1], ties="down")


# --- packing -------------------------------------------------------------------------------------------------------------------


def test_the_first_nibble_is_the_low_one():
    assert pack([1, 2, 3], 4).tolist() == [0x21, 0x03]
    assert unpack([0x21, 0x03], 4).tolist() == [1, 2, 3, 0]
    assert pack([[1, 2, 3], [3, 2, 1]], 2).tolist() == [[0b111001], [0b011011]]
    assert pack([0x1234, 0xFFFF], 16).tolist() == [0x34, 0x12, 0xFF, 0xFF]


@given(
    bits=st.integers(1, 16),
    rows=st.integers(0, 3),
    count=st.integers(0, 40),
    seed=st.integers(0, 9),
)
@example(bits=3, rows=2, count=5, seed=0)
def test_pack_and_unpack(bits, rows, count, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count))
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-count * bits // 8))
    assert packed.dtype == np.uint8
    assert np.array_equal(unpack(packed, bits, count), codes)
    whole = sum(int(c) << i * bits for i, c in enumerate(codes[0])) if rows else 0
    assert not rows or int.from_bytes(packed[0].tobytes(), "little") == whole


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a code of 4 bits is below 16, not 16"):
        pack([16], 4)
    with pytest.raises(ValueError, match="rows of 2 bytes hold 5 codes of 3 bits, not 6"):
        unpack([0, 0], 3, 6)


# --- blocks that share a scale ---------------------------------------------------------------------------------------------------

BLOCK = np.array([0.11, -0.52, 1.3, 2.9, -3.7, 5.1, -6.4, 7.9] + [0] * 24)
MX = {
    "f4e2m1": (127, [0, 9, 3, 5, 14, 7, 15, 7], [0, -0.5, 1.5, 3, -4, 6, -6, 6]),
    "f6e2m3": (127, [1, 36, 10, 20, 55, 26, 61, 31], [0.125, -0.5, 1.25, 3, -3.75, 5, -6.5, 7.5]),
    "f6e3m2": (125, [7, 48, 21, 26, 59, 29, 62, 31], [0.109375, -0.5, 1.25, 3, -3.5, 5, -6, 7]),
    "f8e4m3": (121, [78, 224, 106, 116, 247, 122, 253, 126], [0.109375, -0.5, 1.25, 3, -3.75, 5, -6.5, 7]),
    "f8e5m2": (114, [99, 236, 113, 118, 247, 121, 250, 123], [0.109375, -0.5, 1.25, 3, -3.5, 5, -6, 7]),
    "i8": (129, [2, 248, 21, 46, 197, 82, 154, 126], [0.125, -0.5, 1.3125, 2.875, -3.6875, 5.125, -6.375, 7.875]),
}  # fmt: skip


@pytest.mark.parametrize("name", MX)
def test_mx_block(name):
    scale, codes, values = MX[name]
    got = mx.encode(BLOCK, FORMATS[name])
    assert got[0].tolist() == [scale]
    assert got[1].tolist() == codes + [0] * 24
    assert mx.decode(*got, FORMATS[name]).tolist() == values + [0] * 24


def test_mx_rows_short_blocks_zeros_and_nan():
    element = FORMATS["f8e4m3"]
    x = np.zeros((3, 40))
    x[0], x[1, 3], x[2, 39] = 1.0, np.nan, -(2.0**-136)
    scales, codes = mx.encode(x, element)
    assert scales.shape == (3, 2)
    assert codes.shape == (3, 40)
    assert scales.tolist() == [[119, 119], [255, 0], [0, 0]]
    back = mx.decode(scales, codes, element)
    assert np.array_equal(back[0], x[0])
    assert np.isnan(back[1, :32]).all()
    assert not back[1, 32:].any()
    assert back[2, 39] == x[2, 39]


@given(seed=st.integers(0, 1000), name=st.sampled_from(list(MX)), size=st.floats(-100, 100))
def test_mx_is_within_half_a_step_unless_it_saturates(seed, name, size):
    element = FORMATS[name]
    x = np.random.default_rng(seed).standard_normal(32) * 2.0**size
    scales, codes = mx.encode(x, element)
    back = mx.decode(scales, codes, element)
    unit = 2.0 ** (int(scales[0]) - mx.BIAS) * mx.unit(element)
    inside = np.abs(x) <= element.largest * unit
    step = (element.values[-1] - element.values[-2]) * unit
    assert np.all(np.abs(back - x)[inside] <= step / 2)
    assert np.array_equal(np.abs(back[~inside]), np.full(sum(~inside), element.largest * unit))
    assert np.abs(x).max() < 2.0 ** (np.floor(np.log2(element.largest)) + 1) * unit
