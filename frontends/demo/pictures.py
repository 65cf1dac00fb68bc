"""Small grey images on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from knapper.compiler.ir import Array

SHADES = " .:-=+*#%@"


def picture(pixels: Array, colours: bool) -> list[str]:
    """A uint8 image [h, w] as h/2 lines: half blocks in grey, or characters by darkness.

    >>> import numpy as np
    >>> picture(np.array([[0, 255], [0, 255]], np.uint8), colours=False)
    [' @']
    """
    pairs = list(zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True))
    if colours:
        return [
            "".join(_half_block(a, b) for a, b in zip(*rows, strict=True)) + "\x1b[0m"
            for rows in pairs
        ]
    return [
        "".join(SHADES[(a + b) * 5 // 256] for a, b in zip(*rows, strict=True)) for rows in pairs
    ]


def _half_block(upper: int, lower: int) -> str:
    """One character for two pixels, in the 24 greys of the 256-colour palette (232 to 255)."""
    return f"\x1b[38;5;{232 + upper * 24 // 256};48;5;{232 + lower * 24 // 256}m▀"


def side_by_side(pictures: Sequence[Sequence[str]], width: int, gap: str = "  ") -> str:
    """Pictures of `width` columns in a row; colour codes take no width, so only the last line is padded."""
    lines = [[line if "\x1b" in line else line.ljust(width) for line in p] for p in pictures]
    return "\n".join(gap.join(row).rstrip() for row in zip(*lines, strict=True))
