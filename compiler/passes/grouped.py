"""Attention whose heads share keys and values, without a copy of them for every head: rules of the pass `products`.

    repeat(k) = Reshape(Expand(Reshape(k)))        k [B, g, L, D], each head's keys h / g times

    q [B, h, S, D] · repeat(k)   →   q [B, g, h/g · S, D] · k          the heads of a group are rows of one product

What is done to all heads alike goes before the repetition, a factor goes to the smaller operand, and keys that few rows meet
are read as they lie instead of being turned around first. So a step of a language model reads its cache once, and copies nothing
of it; and what it writes to a cache it writes where that lies. Sums keep their order over k; only a factor is multiplied elsewhere,
and rounds there.
"""

from __future__ import annotations

import numpy as np

from ..rewrite import Bound, Const, P, Rule, Var, Writer

q, k, c = Var("q"), Var("k"), Const("c")
split, spread, joined, perm = Bound("split"), Bound("spread"), Bound("joined"), Bound("perm")
FEW = 16
"""Rows of a product that take as long to compute as the other operand to turn around."""
Ints = tuple[int, ...]

REPEATED = P.Reshape(P.Expand(P.Reshape(k, shape=split), shape=spread), shape=joined)


def repeats(w: Writer, k: str, split: Ints, spread: Ints, joined: Ints) -> bool:
    """Whether the shapes mean: each head, axis 1 of four, several times in a row."""
    shape = w.type(k).shape
    if len(shape) != 4 or len(split) != 5 or len(spread) != 5 or len(joined) != 4:
        return False
    batch, heads, *rest = shape
    return (
        split == (batch, heads, 1, *rest)
        and spread[:2] == (batch, heads)
        and spread[3:] == (*rest,)
        and joined == (batch, heads * spread[2], *rest)
    )


def repeat(w: Writer, k: str, times: int) -> str:
    """Each head of k, `times` times in a row."""
    batch, heads, *rest = w.type(k).shape
    apart = w.op("Reshape", k, shape=(batch, heads, 1, *rest))
    many = w.op("Expand", apart, shape=(batch, heads, times, *rest))
    return w.op("Reshape", many, shape=(batch, heads * times, *rest))


def scaled(w: Writer, k: str, c: str, split: Ints, spread: Ints, joined: Ints) -> str | None:
    """repeat(k) · c = repeat(k · c)"""
    if w.known(c).size != 1 or not repeats(w, k, split, spread, joined):
        return None
    return repeat(w, w.op("Mul", k, c), spread[2])


def turned(w: Writer, k: str, perm: Ints, split: Ints, spread: Ints, joined: Ints) -> str | None:
    """repeat(k)ᵀ = repeat(kᵀ), of each head"""
    if perm != (0, 1, 3, 2) or not repeats(w, k, split, spread, joined):
        return None
    return repeat(w, w.op("Transpose", k, perm=perm), spread[2])


def apart(w: Writer, k: str, perm: Ints, joined: Ints) -> str | None:
    """(k as batches)ᵀ as heads = (k as heads)ᵀ, which is how PyTorch's exporter spells it"""
    shape, whole = w.type(k).shape, w.root.types[0].shape
    if perm != (0, 2, 1) or len(joined) != 4 or whole[2:] != shape[:0:-1]:
        return None
    while (made := w.maker(k)) is not None and made.op == "Reshape":
        k = made.inputs[0]
    heads = w.op("Reshape", k, shape=(*whole[:2], *shape[1:]))
    return w.op("Transpose", heads, perm=(0, 1, 3, 2))


def grouped(w: Writer, q: str, k: str, split: Ints, spread: Ints, joined: Ints) -> str | None:
    """q · repeat(k): the heads of a group are rows of one product"""
    n, shape = w.root, w.type(q).shape
    fits = len(shape) == 4 and shape[:2] == (spread[0], spread[1] * spread[2])
    if (
        not fits
        or n.attr("trans_a")
        or n.attr("trans_b")
        or not repeats(w, k, split, spread, joined)
    ):
        return None
    rows = w.op("Reshape", q, shape=(*spread[:2], spread[2] * shape[2], shape[3]))
    made = w.op("MatMul", rows, k, out=n.attr("out"))
    return w.op("Reshape", made, shape=n.types[0].shape)


def factor(w: Writer, q: str, k: str, c: str, perm: Ints = ()) -> str | None:
    """q · (k · c) = (q · c) · k where q is the smaller one"""
    if w.known(c).size != 1 or w.type(q).count >= w.type(k).count or w.array(k) is not None:
        return None
    other = w.op("Transpose", k, perm=perm) if perm else k
    return w.again(w.root, w.op("Mul", q, c), other)


def once(w: Writer, q: str, c: str, d: str, joined: Ints) -> str | None:
    """A view of q · c, times d, is the view of q · (c · d)"""
    if w.known(c).size != 1 or w.known(d).size != 1:
        return None
    one, other = (np.abs(w.known(v).reshape(())) for v in (c, d))
    with np.errstate(under="ignore"):
        both = w.known(c).reshape(()) * w.known(d).reshape(()) if max(one, other) <= 1 else one * 0
    # neither q · c nor c · d may overflow, and c · d must have all its digits
    if not np.abs(both) >= np.finfo(np.float32).tiny:
        return None
    return w.op("Reshape", w.op("Mul", q, w.constant(np.asarray(both), c)), shape=joined)


def as_it_lies(w: Writer, q: str, k: str, perm: Ints) -> str | None:
    """q · kᵀ by a product that reads k across, where few rows meet it"""
    n, rank = w.root, w.type(k).rank
    across = perm == (*range(rank - 2), rank - 1, rank - 2)
    if (
        not across
        or n.attr("trans_b")
        or n.types[0].shape[-2:-1] > (FEW,)
        or w.array(k) is not None
    ):
        return None
    return w.again(n, q, k, trans_b=True)


def scatter_rows(
    w: Writer, k: str, at: str, new: str, split: Ints, perm: Ints, how: str
) -> str | None:
    """Whole slices of k turned around and back: a scatter along the axis that was in front meanwhile (PyTorch's index_put)"""
    count, *tuples = w.type(at).shape
    if tuples != [1] or not split or tuple(split[i] for i in perm) != (*range(len(split)),):
        return None
    axis, turned = split[0], w.op("Transpose", new, perm=perm)
    shape = tuple(count if i == axis else 1 for i in range(len(split)))
    places = w.op("Reshape", at, shape=shape)
    spread = w.op("Expand", places, shape=w.type(turned).shape)
    return w.op("ScatterElements", k, spread, turned, axis=axis, reduction=how)


RULES: list[Rule] = [
    P.Mul(REPEATED, c) >> scaled,
    P.Reshape(P.Transpose(k, perm=perm), shape=joined) >> apart,
    P.Transpose(REPEATED, perm=perm) >> turned,
    P.MatMul(q, REPEATED) >> grouped,
    P.Mul(P.Reshape(P.Mul(q, c), shape=joined), Const("d")) >> once,
    P.MatMul(q, P.Transpose(P.Mul(k, c), perm=perm)) >> factor,
    P.MatMul(q, P.Mul(k, c)) >> factor,
    P.MatMul(q, P.Transpose(k, perm=perm)) >> as_it_lies,
    P.Transpose(
        P.ScatterND(P.Transpose(k, perm=split), Var("at"), Var("new"), reduction=Bound("how")),
        perm=perm,
    )
    >> scatter_rows,
]
