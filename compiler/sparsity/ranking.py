"""Which units stay: all of one size or not, of all layers together, best first.

    mode exact   as many elements stay as asked for: the sorted units are cut where their sizes add up to it
    mode repo    the authors' code: the percentile of unit scores, as many units as asked for, whatever their size.
                 A score is norm / size there, so long units look worse, go first, and more than asked for goes

In exact mode the best unit of each layer stays, so that no layer is without weights. Not so of single elements: those of a layer
whose weights are all small may all go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir import Array

EXACT, REPO = "exact", "repo"


def choose(scores: Sequence[Array], sizes: Sequence[Array], elements: float) -> list[Array]:
    """Which units stay so that about `elements` elements do: per layer scores of its units, their sizes → booleans.

    >>> choose([np.array([3.0, 1.0]), np.array([2.0])], [np.array([4, 4]), np.array([2])], 6)
    [array([ True, False]), array([ True])]
    """
    first = [_raised(s) for s in scores]
    every, size = np.concatenate(first), np.concatenate([np.asarray(s) for s in sizes])
    order = np.argsort(-every, kind="stable")
    total = np.cumsum(size[order])
    count = int(np.searchsorted(total, elements))
    if count < len(total):  # the unit on the cut stays if more than half of it fits
        before = total[count - 1] if count else 0
        count += bool(2 * (elements - before) > size[order][count])
    kept = np.zeros(len(every), bool)
    kept[order[: max(count, sum(len(s) > 0 for s in scores))]] = True
    return np.split(kept, np.cumsum([len(s) for s in scores])[:-1])


def _raised(scores: Array) -> Array:
    """Scores, the best one above all other layers' so that it stays."""
    raised = scores.astype(np.float64)
    if len(raised):
        raised[int(np.argmax(raised))] = np.inf
    return raised


def percentile(scores: Sequence[Array], share: float) -> list[Array]:
    """Which units stay if `share` of them, by number, goes: those above the percentile."""
    limit = np.percentile(np.concatenate([s.reshape(-1) for s in scores]), 100 * share)
    return [s > limit for s in scores]


def single(scores: Sequence[Array], elements: float) -> list[Array]:
    """`choose` for units of one element: scores of any shape → booleans of the same shape."""
    every = np.concatenate([s.reshape(-1) for s in scores])
    count = min(max(round(elements), 0), every.size)
    kept = np.zeros(every.size, bool)
    if count:
        kept[np.argpartition(-every, count - 1)[:count]] = True
    parts = np.split(kept, np.cumsum([s.size for s in scores])[:-1])
    return [p.reshape(s.shape) for p, s in zip(parts, scores, strict=True)]


def root_mean_square(scores: Array, axis: int | tuple[int, ...]) -> Array:
    """What a unit is worth per element; 0 for a unit without any."""
    if not all(scores.shape[a] for a in (axis if isinstance(axis, tuple) else (axis,))):
        return np.asarray(np.sqrt(np.square(scores).sum(axis=axis)))
    return np.asarray(np.sqrt(np.square(scores.astype(np.float64)).mean(axis=axis)))


def norm_by_length(scores: Array, axis: int, length: int) -> Array:
    """The authors' score of a unit: its norm by its length, not by the root of it."""
    return np.asarray(np.sqrt(np.square(scores.astype(np.float64)).sum(axis=axis)) / max(length, 1))
