"""Masks of a network's weights: `masks` for one stage, `schedule` for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from knapper.isa.errors import UsageError

from ..ir import Array
from .patterns import PATTERNS, Recipe
from .view import View

Groups = Sequence[Sequence[str]]


def masks(
    weights: Mapping[str, Array],
    *,
    pattern: str = "tw",
    sparsity: float = 0.75,
    granularity: int = 128,
    groups: Groups = (),
    scores: Mapping[str, Array] | None = None,
    previous: Mapping[str, Array] | None = None,
    views: Mapping[str, View] | None = None,
    **options: Any,
) -> dict[str, Array]:
    """True where an element stays, by weight and in its shape.

    Weights lie as in ONNX files and torch: [O, C, KH, KW] or [N, K]; `views` says so of those that do not. `groups` are
    weights that are ranked together; all others make one more group. `scores` are of the weights' shapes, and without them
    magnitudes count. `previous` are masks of an earlier stage: what is gone counts 0, as a weight does that training kept at
    zero. `options` are those of `Recipe`: mode, delta, vector, block, n, m, apriori.
    """
    recipe = Recipe(pattern, sparsity, granularity, **options)
    worth = {name: _scores(name, w, scores, previous) for name, w in weights.items()}
    view = {name: _view(name, w, views or {}) for name, w in weights.items()}
    found: dict[str, Array] = {}
    for names in grouped(weights, groups):
        matrices = [view[name].matrix(worth[name]) for name in names]
        for name, mask in zip(names, PATTERNS[pattern](matrices, recipe), strict=True):
            found[name] = view[name].back(mask, weights[name].shape)
    return {name: found[name] for name in weights}


def schedule(
    weights: Mapping[str, Array], stages: Sequence[float], **options: Any
) -> dict[str, Array]:
    """The masks after several stages, each ranked under the mask of the one before. (Training between them is the caller's.)"""
    previous = options.pop("previous", None)
    for sparsity in stages:
        previous = masks(weights, sparsity=sparsity, previous=previous, **options)
    return dict(previous or {})


def grouped(weights: Mapping[str, Array], groups: Groups) -> list[list[str]]:
    """The groups, and what is in none of them as one more; UsageError E305 for a name that is in two, or of no weight."""
    listed = [name for names in groups for name in names]
    wrong = [n for n in listed if n not in weights or listed.count(n) > 1]
    if wrong:
        there = "is in two groups" if wrong[0] in weights else "is no weight that is pruned"
        raise UsageError("E305", f"groups: {wrong[0]} {there}", hint=", ".join(weights))
    rest = [name for name in weights if name not in listed]
    return [list(names) for names in (*groups, rest) if names]


def _scores(
    name: str,
    w: Array,
    scores: Mapping[str, Array] | None,
    previous: Mapping[str, Array] | None,
) -> Array:
    worth = np.abs(w.astype(np.float32)) if scores is None else scores.get(name)
    if worth is None:
        raise UsageError("E305", f"there are no scores of {name}", hint=", ".join(scores or ()))
    if worth.shape != w.shape:
        problem = f"scores of {name} are {list(worth.shape)}, the weight is {list(w.shape)}"
        raise UsageError("E305", problem)
    if not np.isfinite(worth).all() or (scores is not None and worth.min(initial=0) < 0):
        raise UsageError("E305", f"scores of {name} are not all finite and positive or 0")
    if previous is None or name not in previous:
        return worth
    return np.where(previous[name], worth, np.float32(0))


def _view(name: str, w: Array, given: Mapping[str, View]) -> View:
    if w.ndim < 2:
        raise UsageError("E305", f"{name} is {list(w.shape)}: only matrices and kernels are pruned")
    return given.get(name) or View.outputs_first(w.ndim)
