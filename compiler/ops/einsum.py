"""Einstein summation, by the numeric contract of matrix products.

    "bhqd,bhkd->bhqk"     every operand becomes [out letters…, summed letters…] with size 1 where it lacks a letter;
                          then acc = fma(a[…, k], b[…, k], acc) over the summed letters, row-major in order of appearance
    "ab,bc,cd->ad"        two operands at a time, each result stored in the operands' type
    "ii->i"               the diagonal first

An ellipsis stands for letters that the equation does not use. No kernel computes an Einsum: the pass `products` makes it a
MatMul, a Mul or a ReduceSum.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..ir import Array, Type, op, require
from .elementwise import Example, Rng, draw
from .linear import product_type
from .numeric import accumulate, finish


def terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The operands' letters and the result's, ellipses and an absent result spelled out."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    require(
        len(operands) == len(ranks),
        f"Einsum: {equation!r} is about {len(operands)} operands, given are {len(ranks)}",
    )
    free = [c for c in string.ascii_letters if c not in equation]
    hidden = max(
        (rank - len(t) + 3 for t, rank in zip(operands, ranks, strict=True) if "..." in t),
        default=0,
    )
    letters = "".join(free[: max(0, hidden)])
    operands = [
        t.replace("...", letters[len(letters) - (rank - len(t) + 3) :]) if "..." in t else t
        for t, rank in zip(operands, ranks, strict=True)
    ]
    if not arrow:
        once = sorted(
            c
            for c in set("".join(operands))
            if "".join(operands).count(c) == 1 and c not in letters
        )
        result = letters + "".join(once)
    return operands, result.replace("...", letters)


def letter_sizes(operands: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """Letter → size; every use must agree."""
    sizes: dict[str, int] = {}
    for letters, shape in zip(operands, shapes, strict=True):
        require(
            len(letters) == len(shape),
            f"Einsum: {letters!r} does not name the {len(shape)} axes of an operand",
        )
        for c, n in zip(letters, shape, strict=True):
            require(
                sizes.setdefault(c, n) == n,
                f"Einsum: {c!r} is {sizes[c]} in one place and {n} in another",
            )
    return sizes


def distinct(letters: str) -> str:
    """Each letter once, in order of appearance.

    >>> distinct("ijik")
    'ijk'
    """
    return "".join(dict.fromkeys(letters))


def next_pair(operands: Sequence[str], result: str) -> tuple[int, str]:
    """Which of the others the first operand is multiplied with, and the letters of what that makes.

    The first one that shares a letter, else simply the next; letters that nothing needs any more are summed.

    >>> next_pair(["ab", "cd", "bc"], "ad")
    (2, 'ac')
    """
    first, *others = operands
    partner = next((i for i, t in enumerate(others, 1) if set(t) & set(first)), 1)
    needed = "".join(t for i, t in enumerate(others, 1) if i != partner) + result
    return partner, "".join(c for c in distinct(first + operands[partner]) if c in needed)


@op
def Einsum(*xs: Type, equation: str) -> Type:
    """Sum of products over the letters that the result lacks, as numpy.einsum."""
    require(len(xs) >= 1, "Einsum: no operands")
    dtype = product_type("Einsum", xs[0], xs[-1], "")
    require(all(x.dtype == dtype for x in xs), "Einsum: operands differ in dtype", "insert a Cast")
    operands, result = terms(equation, [x.rank for x in xs])
    sizes = letter_sizes(operands, [x.shape for x in xs])
    known = set(result) <= set(sizes) and len(set(result)) == len(result)
    require(known, f"Einsum: the result {result!r} has a letter that no operand has, or one twice")
    return Type(dtype, tuple(sizes[c] for c in result))


def _aligned(x: Array, letters: str, order: str) -> Array:
    """x with axes in this order, size 1 where it has no such axis."""
    present = [c for c in order if c in letters]
    moved = x.transpose([letters.index(c) for c in present])
    return moved.reshape([x.shape[letters.index(c)] if c in letters else 1 for c in order])


def _contracted(xs: Sequence[Array], operands: Sequence[str], result: str) -> Array:
    """One or two operands without diagonals, by one chain of fma."""
    sizes = letter_sizes(operands, [x.shape for x in xs])
    summed = "".join(c for c in distinct("".join(operands)) if c not in result)
    a, *rest = (_aligned(x, t, result + summed) for x, t in zip(xs, operands, strict=True))
    b = rest[0] if rest else np.ones((1,) * a.ndim, a.dtype)

    def at(x: Array, k: tuple[int, ...]) -> Array:
        """The summed axes, which come last, at k; an axis of one is broadcast."""
        last = zip(k, x.shape[len(result) :], strict=True)
        where: tuple[Any, ...] = (..., *(i if n > 1 else 0 for i, n in last))
        return np.asarray(x[where])

    def pairs(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
        for k in np.ndindex(*(sizes[c] for c in summed)):
            yield at(a, k), at(b, k)

    acc = accumulate(tuple(sizes[c] for c in result), a, b, pairs)
    return finish(acc, None, "", xs[0].dtype)


@Einsum.reference
def _(*xs: Array, equation: str) -> Array:
    operands, result = terms(equation, [x.ndim for x in xs])
    left = [
        (np.einsum(f"{t}->{distinct(t)}", x), distinct(t))
        for x, t in zip(xs, operands, strict=True)
    ]
    while len(left) > 2:
        partner, made = next_pair([t for _, t in left], result)
        (x, a), (y, b) = left[0], left.pop(partner)
        left[0] = _contracted((x, y), (a, b), made), made
    return _contracted([x for x, _ in left], [t for _, t in left], result)


@Einsum.example
def _(rng: Rng) -> Iterator[Example]:
    def of(*shapes: tuple[int, ...], d: str = "f32") -> list[Array | None]:
        return [draw(rng, s, d) for s in shapes]

    yield of((2, 3, 4, 5), (2, 3, 6, 5)), {"equation": "bhqd,bhkd->bhqk"}
    yield of((2, 4, 5), (5, 3), d="f16"), {"equation": "...d,de->...e"}
    yield of((3, 4), (4, 2)), {"equation": "ij, jk"}
    yield of((2, 3, 4)), {"equation": "bij->jb"}
    yield of((3,), (4,)), {"equation": "i,j->ij"}
    yield of((2, 5, 3), (4, 5, 2)), {"equation": "bka,ckb->bca"}
    yield of((3, 4), (4, 2), (2, 5), d="f16"), {"equation": "ab,bc,cd->ad"}
    yield of((4, 3, 4), (4,)), {"equation": "iji,i->j"}
    yield of((3, 4), (4, 2)), {"equation": "ij,jk->k"}
