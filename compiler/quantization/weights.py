"""Weights as integers: how the scale is found, and how each one is rounded.

scale     absmax    the greatest magnitude is the grid's end
          mse       the least mean squared error, freely searched
          ant       likewise, within the authors' 75 to 150 %
          minmax    the least and the greatest element are the ends: needs a zero point (SQuant's own)
method    nearest   the nearest value of the grid
          squant    errors cancel over kernels and channels, whatever the scale (squant-ek, …: some of its stages)
          ant       the type is chosen too, from int, flint and pot
"""

from __future__ import annotations

import numpy as np

from knapper.isa.formats import Format
from knapper.isa.formats.format import INT

from ..ir import Array
from . import ant, squant
from .quantized import Quantized, from_rows, rows, storage
from .recipe import Layer
from .search import ANT, EXACT, FREE, Bounds, best

NEAR = Bounds(60, 101)
"""Above six bits the best scale is near the greatest magnitude."""


def quantize(w: Array, axis: int, layer: Layer, *, per_channel: bool = True) -> Quantized:
    """Weights with the output channels along `axis`, as a layer's options say."""
    f, method = layer.format, layer.weight_method
    mode = {"nearest": "e", "squant": "ekc"}.get(method, method.removeprefix("squant-"))
    if layer.weight_scale == "minmax" and f.kind == INT and f.signed and method != "ant":
        q = squant.quantize(w, f.bits, mode, axis, zero=True)
        return q.stored()
    bounds = {"absmax": EXACT, "ant": ANT}.get(layer.weight_scale, FREE if f.bits <= 6 else NEAR)
    r = rows(w, axis)
    x = r.reshape(len(r) if per_channel else 1, -1)
    if method == "ant":
        chosen = ant.select(x, f.bits, bounds=bounds)
        return ant.on_grid(w, chosen.format, _all(chosen.scale, len(r)), axis)
    scale = _all(best(x, f.values, bounds)[0], len(r))
    if mode == "e" or f.kind != INT:
        return ant.on_grid(w, f, scale, axis)
    return _flipped(w, r, f, scale.astype(np.float32), axis, mode)


def _all(scale: Array, channels: int) -> Array:
    return np.broadcast_to(scale, channels)


def _flipped(w: Array, r: Array, f: Format, scale: Array, axis: int, mode: str) -> Quantized:
    x = r.astype(np.float32) / scale[:, None, None]
    q = squant.flip(x, int(f.smallest), int(f.largest), mode).astype(storage(f.smallest, f.largest))
    zero = np.zeros(len(scale), np.int64)
    return Quantized(from_rows(q, w.shape, axis), scale, zero, axis, w.shape, f.name)
