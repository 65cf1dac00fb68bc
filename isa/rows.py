"""Outputs whose number of rows the data decides.

All sizes in a program are fixed. Such an output `y` has room for as many rows as there can be, and a companion: the output
`y#rows`, one i64, says how many of them are meant. Whoever gives outputs to a user gives those rows, and no companion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

ROWS = "#rows"
"""What a companion's name ends in."""


def trimmed(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Outputs without the rows that are not meant, and without the companions.

    >>> import numpy as np
    >>> boxes = np.zeros((8, 4), np.float32)
    >>> {name: a.shape for name, a in trimmed({"boxes": boxes, "boxes#rows": np.array(3)}).items()}
    {'boxes': (3, 4)}
    """
    rows = {n: outputs[n + ROWS] for n in outputs if n + ROWS in outputs}
    companions = {n + ROWS for n in rows}
    return {
        n: a[: max(int(rows[n]), 0)] if n in rows else a
        for n, a in outputs.items()
        if n not in companions
    }
