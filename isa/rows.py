"""Outputs whose number of rows the data decides.

All sizes in a program are fixed. Such an output `y` has room for as many rows as there can be, and a companion: the output
`y#rows`, one i64, says how many of them are meant; `y#rows1` where the rows lie along axis 1, and so on. Whoever gives outputs to a user
gives those rows, and no companion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

ROWS = "#rows"
"""What a companion's name has behind that of its output, and then the axis if that is not the first."""


def companion(name: str, axis: int = 0) -> str:
    """The name of what says how many rows an output has.

    >>> companion("boxes"), companion("places", 1)
    ('boxes#rows', 'places#rows1')
    """
    return f"{name}{ROWS}{axis or ''}"


def trimmed(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Outputs without the rows that are not meant, and without the companions.

    >>> import numpy as np
    >>> boxes, places = np.zeros((8, 4), np.float32), np.zeros((2, 5))
    >>> told = {"boxes": boxes, "boxes#rows": np.array(3), "places": places, "places#rows1": np.array(2)}
    >>> {name: a.shape for name, a in trimmed(told).items()}
    {'boxes': (3, 4), 'places': (2, 2)}
    """
    given = dict(outputs)
    for name, a in outputs.items():
        for axis in range(a.ndim):
            if (rows := given.pop(companion(name, axis), None)) is not None and name in given:
                given[name] = given[name][(slice(None),) * axis + (slice(max(int(rows), 0)),)]
    return given
