"""How the sides of a product are cut into tiles: evenly, so that no tile is padded more than another, and so that blocks fill the SMs.

m = 196, heights of about 64 in steps of 16:  4 tiles of 64, the last of which has 4 rows    ✗
                                              4 tiles of 49, padded to 64                    ✗ nothing gained
                                              n is cut into 16, 80 SMs: 5 tiles of 48        one round of blocks
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from knapper.isa.machine import Machine

from .product import Product

ROUNDS = (1, 2)
"""Of blocks over the SMs: small products gain by filling the last one."""


def even(n: int, most: int) -> int:
    """The size, up to `most`, that cuts n into the fewest parts, which are as equal as can be."""
    return -(-n // -(-n // most))


def widths(n: int, unit: int, most: Iterable[int]) -> list[int]:
    """Multiples of `unit` that cut n evenly, of up to each of `most` units."""
    needed = -(-n // unit)
    return list(dict.fromkeys(unit * even(needed, each) for each in most))


def heights(p: Product, bn: int, unit: int, about: Sequence[int], machine: Machine) -> list[int]:
    """Multiples of `unit` that cut m evenly: into tiles of `about` so many rows, and so that blocks fill the SMs in whole rounds.

    None is higher than the first of `about`.
    """
    across = -(-p.n // bn) * p.batch
    parts = [-(-p.m // h) for h in about]
    parts += [rounds * machine.sms // across for rounds in ROUNDS]
    cuts = (-(-p.m // (n * unit)) * unit for n in parts if n)
    return list(dict.fromkeys(h for h in cuts if h <= about[0]))
