"""Number formats of few bits: which values their codes have, the nearest code of a number, and what a multiplier needs to know of a code.

The one place that says it, for passes, reference semantics, emulator and manual alike. `FORMATS` has them by name; `pack` and `unpack` are
how codes lie in memory, `mx` the block formats that share a scale.

    FORMATS["uflint4"].decode([7, 12, 10, 8])     → 7, 8, 16, 64
    FORMATS["uflint4"].encode([7.5, 13, 40])      → codes 12, 15, 9 (8, 14, 32)
    FORMATS["flint4"].parts([0b1100])             → sign -1, base 1, exponent 4: -(1 << 4)
    pack([1, 2, 3], 4)                            → bytes 0x21, 0x03
"""

from . import mx
from .format import FORMATS, TIES, Format
from .packing import pack, unpack

__all__ = ["FORMATS", "TIES", "Format", "mx", "pack", "unpack"]
