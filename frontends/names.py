"""Names that nothing else has."""

from __future__ import annotations


def unique(stem: str, taken: set[str]) -> str:
    """The stem, numbered if it must be; taken from then on.

    >>> taken = {"y"}
    >>> unique("x", taken), unique("y", taken), unique("y", taken)
    ('x', 'y_2', 'y_3')
    """
    name, n = stem, 1
    while name in taken:
        n += 1
        name = f"{stem}_{n}"
    taken.add(name)
    return name
