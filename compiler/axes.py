"""Permutations of axes: how a tensor that is stored in one order stands for itself in another.

`perm` always means: the tensor is Transpose(stored, perm), its axis i is the stored axis perm[i].

    x [N,C,H,W] = Transpose(stored [N,H,W,C], (0,3,1,2))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Ints = tuple[int, ...]


def compose(first: Ints, then: Ints) -> Ints:
    """Transpose by `first`, then by `then`, as one.

    >>> compose((0, 3, 1, 2), (0, 2, 3, 1))
    (0, 1, 2, 3)
    """
    return tuple(first[i] for i in then)


def inverse(perm: Ints) -> Ints:
    """The permutation that undoes it.

    >>> inverse((0, 3, 1, 2))
    (0, 2, 3, 1)
    """
    return tuple(perm.index(i) for i in range(len(perm)))


def identity(rank: int) -> Ints:
    """The permutation that does nothing."""
    return tuple(range(rank))


def channels_last(rank: int) -> Ints:
    """How [N,C,…] is stored as [N,…,C].

    >>> channels_last(4)
    (0, 3, 1, 2)
    """
    return (0, rank - 1, *range(1, rank - 1)) if rank > 2 else identity(rank)


def permuted(values: Sequence[int], perm: Ints) -> Ints:
    """What is given for each axis, for the stored axes: their sizes, repeats, scales.

    >>> permuted((1, 64, 56, 48), channels_last(4))
    (1, 56, 48, 64)
    """
    return tuple(values[i] for i in inverse(perm))


def without(perm: Ints, axes: Sequence[int]) -> Ints:
    """The permutation that is left when axes (of the tensor) are reduced away.

    >>> without((0, 3, 1, 2), (2, 3))
    (0, 1)
    """
    left = [p for i, p in enumerate(perm) if i not in axes]
    return tuple(sorted(left).index(p) for p in left)


def moves_nothing(perm: Ints, sizes: Sequence[int]) -> bool:
    """Whether only axes of size 1 move (`sizes` are those of the tensor), so that memory is the same.

    >>> moves_nothing((0, 3, 1, 2), (1, 64, 1, 1)), moves_nothing((0, 3, 1, 2), (1, 64, 1, 2))
    (True, False)
    """
    moved = [p for p, n in zip(perm, sizes, strict=True) if n != 1]
    return moved == sorted(moved)


def reshaped(perm: Ints, old: Ints, new: Ints) -> tuple[Ints, Ints] | None:
    """A Reshape from sizes `old` to `new`, done on what is stored.

    Gives the stored result's sizes and its permutation; None if the reshape merges axes that are not
    neighbours in memory, or splits a group of them in another way.

    >>> reshaped((0, 3, 1, 2), (2, 64, 7, 5), (2, 64, 35))          # [2,7,5,64] → [2,35,64]
    ((2, 35, 64), (0, 2, 1))
    >>> reshaped((0, 3, 1, 2), (2, 64, 7, 5), (2, 2240)) is None    # channels are not outermost
    True
    """
    groups = _groups(old, new)
    if groups is None:
        return None
    parts = []
    for axes, made in groups:
        places = [perm[i] for i in axes]
        if not _neighbours(places, perm, old):
            return None
        parts.append((places[0], made))
    order = _with_ones([j for _, made in sorted(parts) for j in made], new)
    return tuple(new[j] for j in order), tuple(order.index(j) for j in range(len(new)))


def arranged(perm: Ints, old: Ints, new: Ints) -> Ints | None:
    """The order to store a tensor in so that the Reshape can be done, near to that of `perm`.

    Axes that are merged or split together are put together, and what is innermost stays innermost.

    >>> arranged((0, 4, 3, 1, 2), (2, 8, 2, 7, 5), (2, 16, 7, 5))   # [2,7,5,2,8] → [2,7,5,8,2]
    (0, 3, 4, 1, 2)
    """
    groups = _groups(old, new)
    if groups is None:
        return None
    inner = sorted((max(perm[i] for i in axes), axes) for axes, _ in groups)
    order = _with_ones([i for _, axes in inner for i in axes], old)
    return tuple(order.index(i) for i in range(len(old)))


def _with_ones(order: list[int], sizes: Ints) -> list[int]:
    """An order of the axes longer than 1 with the others: leading ones first, the rest last."""
    first = next((i for i, n in enumerate(sizes) if n != 1), len(sizes))
    ones = [i for i, n in enumerate(sizes) if n == 1]
    return [i for i in ones if i < first] + order + [i for i in ones if i > first]


def _neighbours(places: list[int], perm: Ints, old: Ints) -> bool:
    """Whether stored axes follow one another, not counting axes of size 1."""
    used = sorted(p for p, n in zip(perm, old, strict=True) if n != 1)
    start = used.index(places[0])
    return used[start : start + len(places)] == places


def _groups(old: Ints, new: Ints) -> list[tuple[list[int], list[int]]] | None:
    """Which axes longer than 1 of two shapes stand for the same elements, least groups first."""
    if 0 in old:
        return None
    found = []
    left, right = _long(old), _long(new)
    for i in left:
        axes, made = [i], [next(right)]
        a, b = old[i], new[made[0]]
        while a != b:
            if a < b:
                axes.append(next(left))
                a *= old[axes[-1]]
            else:
                made.append(next(right))
                b *= new[made[-1]]
        found.append((axes, made))
    return found


def _long(sizes: Ints) -> Iterator[int]:
    return (i for i, n in enumerate(sizes) if n != 1)
