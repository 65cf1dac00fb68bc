"""Which formats of four bits hold all the values of a constant of bytes.

A graph's integers are plain numbers: that weights need four bits, flint's or another format's, their values say. Kernels then store codes.

    [-64, -3, 8]      flint4            [0, 1, 2, 7]      i4, u4, flint4, uflint4
"""

from __future__ import annotations

import numpy as np

from knapper.isa.formats import FORMATS
from knapper.isa.modifiers import Nibble

from .codegen.generator import Group
from .ir import NAMES, Array

BYTES = ("i8", "u8")


def held(a: Array) -> tuple[str, ...]:
    """The formats, in the order of the machine's types, integers first."""
    count = np.bincount(a.reshape(-1).view(np.uint8), minlength=256)
    values = np.flatnonzero(count).astype(np.uint8).view(a.dtype)
    names = (t.format.name for t in Nibble)
    return tuple(name for name in names if FORMATS[name].holds(values))


def of(group: Group) -> dict[str, tuple[str, ...]]:
    """Of each constant of bytes of a group."""
    if "narrow" not in group.found:
        bytes_ = {v: a for v, a in group.constants.items() if NAMES[a.dtype] in BYTES}
        group.found["narrow"] = {v: held(np.ascontiguousarray(a)) for v, a in bytes_.items()}
    known: dict[str, tuple[str, ...]] = group.found["narrow"]
    return known
