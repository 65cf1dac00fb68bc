"""How a value lies in memory if not element by element, and where a weight's zeros are: the part of a type after its shape.

    const %w: f16[64,128] tw{tile=16}                   the zeros of a constant: what pruning left, or somebody else's
    %y: f16[1,28,28,64] bitmap{pad=1} = BitmapEncode …  a value that is stored as non-zero values under bitmaps
    … bitmap{density=0.9,pad=1}                         the share of them that is expected, if it is not a half: for predictions

Of a weight, seen as the matrix [K, N] of its product (K in the order tap row, tap column, channel):

    ew                        single elements
    vw{keep=4,vector=16}      at most 4 of 16 consecutive elements of a column
    nm{m=4,n=2}               at most 2 of 4: the same, of the sparse tensor core
    bw{block=[32,32]}         blocks of K × N
    tw{tile=16}               whole columns; and of each 16 that are left, whole rows
    tew{tile=16}              tw, and single elements beside it
    tvw{tile=16}              tw, and at most 2 of 4 along the rows that a tile kept

A weight is stored dense all the same, and its zeros are the mask; only `bitmap` says how bytes lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OPTIONS: dict[str, dict[str, type]] = {
    "ew": {},
    "vw": {"vector": int, "keep": int},
    "nm": {"n": int, "m": int},
    "bw": {"block": tuple},
    "tw": {"tile": int},
    "tew": {"tile": int},
    "tvw": {"tile": int},
    "bitmap": {"pad": int},
}
"""What each encoding must say."""
OPTIONAL: dict[str, dict[str, type]] = {"bitmap": {"density": float}}
"""What it may say besides."""
DENSITY = 0.5
"""Of values under bitmaps that say nothing else: assumed, about what a ReLU leaves."""
SEGMENT = 32
"""Positions under one bitmap word."""
CHANNELS = 32
"""Of a record: as many columns as a warp tile of a product has, whose result is one."""
HEADER = 4 * CHANNELS + CHANNELS
"""Bytes of a record before its values: bitmaps, and where the values of every second channel begin."""
SLOT = HEADER + 2 * SEGMENT * CHANNELS
"""Bytes of a record without zeros."""
ALIGNMENT = 256


@dataclass(frozen=True)
class Encoding:
    """A name and its options.

    >>> Encoding("tw", {"tile": 16}) == Encoding("tw", {"tile": 16})
    True
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.name, *sorted(self.options.items())))

    def __getitem__(self, option: str) -> Any:
        """An option's value."""
        return self.options[option]

    def __str__(self) -> str:
        shown = ((k, str(v).replace(" ", "")) for k, v in sorted(self.options.items()))
        options = ",".join(f"{k}={v}".translate({40: "[", 41: "]"}) for k, v in shown)
        return f"{self.name}{{{options}}}" if options else self.name

    @property
    def problem(self) -> str:
        """What is wrong with it; "" for nothing.

        >>> Encoding("tw", {"size": 16}).problem
        'tw needs tile'
        """
        if self.name not in OPTIONS:
            return f"there is no encoding {self.name!r}: there are {', '.join(OPTIONS)}"
        want = OPTIONS[self.name]
        if missing := [o for o in want if type(self.options.get(o)) is not want[o]]:
            return f"{self.name} needs {', '.join(missing)}"
        may = OPTIONAL.get(self.name, {})
        if unknown := self.options.keys() - want.keys() - may.keys():
            return f"{self.name} has no option {min(unknown)!r}"
        if not 0 <= self.density <= 1:
            return f"{self.name}: density is {self.density}, not between 0 and 1"
        return self._range()

    @property
    def density(self) -> float:
        """The share of a value under bitmaps that is expected not to be zero."""
        return float(self.options.get("density", DENSITY))

    def _range(self) -> str:
        small = 0 if self.name == "bitmap" else 1
        given = [self.options[o] for o in OPTIONS[self.name]]
        sizes = [s for v in given for s in (v if isinstance(v, tuple) else (v,))]
        if any(type(s) is not int or s < small for s in sizes):
            return f"{self.name}: its numbers must be integers of at least {small}"
        if self.name == "bw" and len(self["block"]) != 2:
            return "bw: a block has two sizes, along K and N"
        kept, of = {"vw": ("keep", "vector"), "nm": ("n", "m")}.get(self.name, ("", ""))
        return f"{self.name}: {kept} is larger than {of}" if of and self[kept] > self[of] else ""


def bitmap_sections(shape: tuple[int, ...], pad: int) -> tuple[int, int]:
    """Bytes of the two sections of a bitmap-encoded value, each a multiple of 256: records and their entries.

    A matrix [M, C] or an image [N, H, W, C], channels last, of 16-bit elements. Channels go in 32s and positions in segments
    of 32; an image's rows lie W + pad apart and its planes H + pad rows, behind a lead of zeros. One segment of zeros ends it.

    >>> bitmap_sections((64, 20), 0)
    (6656, 256)
    """
    if len(shape) == 4 and shape[1] * shape[2] > 0:
        images, height, width, _ = shape
        pitch = width + pad
        positions = pad * pitch + pad + images * (height + pad) * pitch
    else:
        positions = math.prod(shape[:-1])
    records = (-(-positions // SEGMENT) + 1) * -(-shape[-1] // CHANNELS)
    values, entries = (-(-n // ALIGNMENT) * ALIGNMENT for n in (records * SLOT, records * 4))
    return values, entries
