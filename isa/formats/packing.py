"""Codes of a few bits in bytes.

Along the last axis code i has bits i·n … i·n + n - 1 of the row, where bit j of a row is bit j % 8 of byte j // 8. So of two nibbles in a byte the
low one is the first. A row begins at a byte; its last bits are zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pack(codes: ArrayLike, bits: int) -> NDArray[np.uint8]:
    """[…, n] codes → […, ceil(n · bits / 8)] bytes."""
    given = np.asarray(codes)
    if np.any(given >> bits):
        raise ValueError(f"a code of {bits} bits is below {1 << bits}, not {given.max()}")
    *rows, count = given.shape
    each = np.unpackbits(given.astype("<u2")[..., None].view(np.uint8), axis=-1, bitorder="little")
    return np.packbits(each[..., :bits].reshape(*rows, count * bits), axis=-1, bitorder="little")


def unpack(packed: ArrayLike, bits: int, count: int | None = None) -> NDArray[Any]:
    """The inverse: the first `count` codes of each row, as many as are whole if it is None. uint8, or uint16 beyond 8 bits."""
    rows = np.asarray(packed, np.uint8)
    whole = 8 * rows.shape[-1] // bits
    if count is not None and count > whole:
        raise ValueError(
            f"rows of {rows.shape[-1]} bytes hold {whole} codes of {bits} bits, not {count}"
        )
    count = whole if count is None else count
    flat = np.unpackbits(rows, axis=-1, bitorder="little")[..., : count * bits]
    each = flat.reshape(*rows.shape[:-1], count, bits)
    codes = np.packbits(each, axis=-1, bitorder="little")
    if bits <= 8:
        return codes[..., 0]
    return codes[..., 0] | codes[..., 1].astype(np.uint16) << np.uint16(8)
