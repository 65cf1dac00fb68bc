"""Masks as a JSON file beside a model, for training code to multiply with.

    {"format": "knapper.masks/1",
     "weights": {"fc1": {"encoding": "tw{tile=64}", "shape": [256, 512], "density": 0.25, "mask": "ff00…"}}}

A mask is of the weight's matrix [K, N]: K in the order tap row, tap column, channel of a convolution, N its outputs. Its bits follow each other
row by row, the first in the highest bit of the first byte, in hexadecimal digits: `np.unpackbits(np.frombuffer(bytes.fromhex(m), np.uint8))`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from knapper.isa.errors import KnapperError, PassError, reason

from ..encoding import Encoding
from ..ir import Array
from ..text import parse_passes
from .fits import fits

FORMAT = "knapper.masks/1"


@dataclass(frozen=True, eq=False)
class Mask:
    """What stays of a weight, [K, N], and its pattern."""

    mask: Array
    encoding: Encoding

    @property
    def shape(self) -> list[int]:
        return list(self.mask.shape)


def show(masks: Mapping[str, Mask]) -> str:
    """The file's text."""
    weights = {
        name: {
            "encoding": str(m.encoding),
            "shape": m.shape,
            "density": round(float(m.mask.mean()), 6),
            "mask": np.packbits(m.mask).tobytes().hex(),
        }
        for name, m in masks.items()
    }
    return json.dumps({"format": FORMAT, "weights": weights}, indent=1) + "\n"


def read(path: str | Path) -> dict[str, Mask]:
    """Masks by weight; PassError E302 for what is none."""
    try:
        held = json.loads(Path(path).read_text())
        if held.get("format") != FORMAT:
            raise ValueError(f"format is {held.get('format')!r}, not {FORMAT!r}")
        return {name: _mask(m) for name, m in held["weights"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, KnapperError) as e:
        raise PassError("E302", f"no masks: {reason(e)}", where=str(path)) from None


def _mask(held: Mapping[str, object]) -> Mask:
    shape, digits = held["shape"], held["mask"]
    if not isinstance(shape, list) or not isinstance(digits, str) or len(shape) != 2:
        raise ValueError("a mask has a shape [K, N] and digits")
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))
    if not 0 <= len(bits) - prod(shape) < 8:
        raise ValueError(f"{len(bits)} bits for {shape}")
    ((name, options),) = parse_passes(str(held["encoding"]))
    mask, encoding = bits[: prod(shape)].reshape(shape).astype(bool), Encoding(name, options)
    if problem := encoding.problem:
        raise ValueError(problem)
    if encoding.name == "bitmap" or not fits(mask, encoding):
        raise ValueError(f"a mask {shape} is not {encoding}")
    return Mask(mask, encoding)
