"""Number formats of 2 to 16 bits.

A format is a grid: the value of each code. Integers are in two's complement; other signed ones have the sign in the top bit, a magnitude below.

| kind | names | magnitude of code c, in n bits |
|---|---|---|
| integer | `i2` … `i16`, `u2` … `u16` | c |
| power of two | `pot3` … `pot8`, `upot3` … `upot8` | 0 for c = 0, else 2^(c - 1) |
| flint | `flint3` … `flint8`, `uflint2` … `uflint8` | below |
| ANT's float | `float4`, `ufloat4` | no mantissa, that is `pot4`; E3M1, from 0 in steps of ½ |
| small floats | `f4e2m1`, `f6e2m3`, `f6e3m2`, `f8e4m3`, `f8e5m2`, `f8e8m0`, `f8e4m3fnuz`, `f8e5m2fnuz` | as ml_dtypes has them |

**flint** finds the exponent at the first one behind the top bit, so the mantissa is as wide as numbers of that size need. T = 2^(n-1):

    0 b b b     c < T      the integer c                         0 … 7
    1 1 m m     c ≥ T      r = c - T has z leading zeros         8, 10, 12, 14
    1 0 1 m                in n - 1 bits: r << (1 + 2z)          16, 24
    1 0 0 1                                                      32
    1 0 0 0                r = 0: 2^(2 (n-1))                    64

**Parts.** A value of the first three kinds is sign · (base << exponent), base below 2^n: what a multiplier of integers with a shifter behind it
takes, so that one multiplier serves operands of any two of these types. For flint base is r << 1, exponent 2z (ANT's integer-based decoder).

**Nearest value.** Beyond the ends it is the end, for infinities too. A number half way between two goes to the larger one (ties `up`, as in ANT's
quantizer), or (`even`) to that whose magnitude is at an even place among all magnitudes: the even integer, the float with the even mantissa. Zero
is +0, but small floats that have -0 keep its sign. A NaN is the format's NaN, or 0 where it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Codes = NDArray[np.unsignedinteger[Any]]
Parts = tuple[Ints, Ints, Ints]

INT, POT, FLINT, FLOAT = "int", "pot", "flint", "float"
TIES = ("up", "even")
SHARED = {
    "f4e2m1": ml_dtypes.float4_e2m1fn,
    "f6e2m3": ml_dtypes.float6_e2m3fn,
    "f6e3m2": ml_dtypes.float6_e3m2fn,
    "f8e4m3": ml_dtypes.float8_e4m3fn,
    "f8e5m2": ml_dtypes.float8_e5m2,
    "f8e8m0": ml_dtypes.float8_e8m0fnu,
    "f8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "f8e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
"""Formats that ml_dtypes has: the one source of their grids."""


@dataclass(frozen=True)
class Format:
    """A number format: `bits` a code; `kind` says how a code is read."""

    name: str
    bits: int
    signed: bool
    kind: str

    def __str__(self) -> str:
        return self.name

    @property
    def integral(self) -> bool:
        """All values are integers, and have parts."""
        return self.kind != FLOAT

    @property
    def code_type(self) -> type[np.unsignedinteger[Any]]:
        """The numpy type of codes."""
        return np.uint8 if self.bits <= 8 else np.uint16

    @cached_property
    def grid(self) -> Floats:
        """The value of each code, [2**bits]; NaN and infinities where a float has them."""
        if self.name in SHARED:
            codes = np.arange(1 << self.bits, dtype=np.uint8)
            return _constant(codes.view(SHARED[self.name]).astype(np.float64))
        if self.kind == FLOAT:
            return _constant(_float(np.arange(1 << self.bits)))
        sign, base, exponent = self._table
        return _constant(np.ldexp((sign * base).astype(np.float64), exponent))

    @cached_property
    def values(self) -> Floats:
        """The finite values, each once, ascending."""
        grid = self.grid[np.isfinite(self.grid)]
        return _constant(np.unique(grid + 0.0))  # -0 and +0 are one value

    @property
    def largest(self) -> float:
        """The last finite value."""
        return float(self.values[-1])

    @property
    def smallest(self) -> float:
        """The first finite value."""
        return float(self.values[0])

    def encode(self, x: ArrayLike, ties: str = "up") -> Codes:
        """The code of the value nearest to each number; of several codes of a value the first."""
        numbers = np.asarray(x, np.float64)
        codes = self._codes[self._nearest(numbers, ties)]
        if self.kind == FLOAT and self.signed and not np.isnan(self.grid[1 << self.bits - 1]):
            sign = self.code_type(1 << self.bits - 1)
            codes = np.where((codes == 0) & np.signbit(numbers), sign, codes)
        nan = np.isnan(numbers)
        return np.where(nan, self._nan, codes) if nan.any() else codes

    def decode(self, codes: ArrayLike) -> Floats:
        """The value of each code."""
        return self.grid[np.asarray(codes, np.intp)]

    def round(self, x: ArrayLike, ties: str = "up") -> Floats:
        """The nearest value of each number."""
        return self.decode(self.encode(x, ties))

    def parts(self, codes: ArrayLike) -> Parts:
        """(sign, base, exponent) of each code: its value is sign · (base << exponent), the sign ±1. Only for integral formats."""
        sign, base, exponent = (part[np.asarray(codes, np.intp)] for part in self._table)
        return sign, base, exponent

    def holds(self, array: ArrayLike) -> bool:
        """Each number of the array is a value of this format."""
        numbers = np.asarray(array, np.float64)
        if self.kind == INT:
            inside = (numbers >= self.smallest) & (numbers <= self.largest)
            return bool(np.all(inside & (numbers == np.rint(numbers))))
        place = np.searchsorted(self.values, numbers)
        return bool(np.all(self.values[np.minimum(place, len(self.values) - 1)] == numbers))

    def _nearest(self, numbers: Floats, ties: str) -> NDArray[np.intp]:
        """Places among `values`; a NaN's means nothing."""
        if ties not in TIES:
            raise ValueError(f"ties go {' or '.join(TIES)}, not {ties!r}")
        if self.kind == INT:  # a search among 65,536 values is slow
            return self._nearest_integer(numbers, ties)
        above = np.searchsorted(self._middles, numbers, side="right")
        if ties == "up":
            return above
        below = np.searchsorted(self._middles, numbers, side="left")
        return np.where(self._even[above], above, below)

    def _nearest_integer(self, numbers: Floats, ties: str) -> NDArray[np.intp]:
        near = np.rint(np.nan_to_num(np.clip(numbers, self.smallest, self.largest)))
        if ties == "up":
            near = np.where(numbers - near == 0.5, near + 1, near)
        return (np.minimum(near, self.largest) - self.smallest).astype(np.intp)

    @cached_property
    def _middles(self) -> Floats:
        """Half way between neighbours; exact, as no two neighbours are far apart in size."""
        return _constant((self.values[1:] + self.values[:-1]) / 2)

    @cached_property
    def _even(self) -> NDArray[np.bool_]:
        """Which values ties go to."""
        sizes = np.unique(np.abs(self.values))
        return _constant(np.searchsorted(sizes, np.abs(self.values)) % 2 == 0)

    @cached_property
    def _codes(self) -> Codes:
        """The first code of each value."""
        finite = np.flatnonzero(np.isfinite(self.grid))
        _, first = np.unique(self.grid[finite] + 0.0, return_index=True)
        return _constant(finite[first].astype(self.code_type))

    @cached_property
    def _nan(self) -> np.unsignedinteger[Any]:
        """The code of a NaN: ml_dtypes' one, or 0."""
        if not np.isnan(self.grid).any():
            return self.code_type(0)
        return self.code_type(np.array(np.nan, SHARED[self.name]).view(np.uint8))

    @cached_property
    def _table(self) -> Parts:
        """The parts of every code."""
        codes = np.arange(1 << self.bits, dtype=np.int64)
        if self.kind == FLOAT:
            raise ValueError(f"{self} is not integral: its codes have no parts")
        if not self.signed:
            return np.ones_like(codes), *_magnitude(self.kind, codes, self.bits)
        half = 1 << self.bits - 1
        sign = np.where(codes < half, 1, -1)
        if self.kind == INT:
            return sign, np.abs(np.where(codes < half, codes, codes - 2 * half)), 0 * codes
        return sign, *_magnitude(self.kind, codes % half, self.bits - 1)


def _magnitude(kind: str, codes: Ints, bits: int) -> tuple[Ints, Ints]:
    """(base, exponent) of codes of an unsigned format."""
    if kind == INT:
        return codes, 0 * codes
    if kind == POT:
        return np.minimum(codes, 1), np.maximum(codes - 1, 0)
    top = 1 << bits - 1
    r = codes - top
    zeros = bits - 1 - np.frexp(r)[1].astype(np.int64)  # leading ones of r in bits - 1 bits
    base = np.where(r < 0, codes, np.where(r == 0, 1, 2 * r))
    exponent = np.where(r < 0, 0, np.where(r == 0, 2 * (bits - 1), 2 * zeros))
    return base, exponent


def _float(codes: Ints) -> Floats:
    """The values of ANT's unsigned float of 4 bits: 3 of exponent, 1 of mantissa, no bias: ½ is the least."""
    exponent, mantissa = codes >> 1, codes & 1
    normal = np.ldexp(1 + mantissa / 2, exponent - 1)
    return np.where(exponent == 0, mantissa / 2, normal)


def _constant(array: NDArray[Any]) -> NDArray[Any]:
    """Not to be written: all users of a format share it."""
    array.flags.writeable = False
    return array


def _named(kind: str, prefix: str, widths: range) -> dict[str, Format]:
    names = ((bits, f"{prefix}{bits}") for bits in widths)
    return {name: Format(name, bits, not prefix.startswith("u"), kind) for bits, name in names}


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        **_named(INT, "i", range(2, 17)),
        **_named(INT, "u", range(2, 17)),
        **_named(POT, "pot", range(3, 9)),
        **_named(POT, "upot", range(3, 9)),
        **_named(FLINT, "flint", range(3, 9)),
        **_named(FLINT, "uflint", range(2, 9)),
        "float4": Format("float4", 4, True, POT),  # a float of one bit of significand
        "ufloat4": Format("ufloat4", 4, False, FLOAT),
        **{name: Format(name, int(name[1]), name != "f8e8m0", FLOAT) for name in SHARED},
    }
)
"""Every format by name."""
