"""Sparse weights: which elements a network can do without (`masks`), and along which lines its zeros lie (`recognise`).

Everything here is numpy on arrays; a graph is not needed:

    kept = masks({"conv1": w1, "fc": w2}, pattern="tw", sparsity=0.75, granularity=16)     # name → booleans, True: it stays
    kept = masks(weights, pattern="tew", sparsity=0.9, delta=0.05, scores=taylor, previous=kept)
    w1 = np.where(kept["conv1"], w1, 0)

`weights` lie as in ONNX files and torch: [O, C, KH, KW] or [N, K]. Options are described at `masks` and `Recipe`.
"""

from .masks import masks as masks
from .masks import schedule as schedule
from .patterns import PATTERNS as PATTERNS
from .patterns import Recipe as Recipe
from .view import View as View
