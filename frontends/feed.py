"""Samples as a network takes them: its layout, its element type, pixels in its scale.

u8[n,32,32,3] ─ channels first ─► u8[n,3,32,32] ─ (scale·pixel − mean) / std ─► f32[n,3,32,32]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from knapper.compiler.ir import DTYPES, NAMES, Array, Type
from knapper.isa.errors import UsageError

from .dataset import Data

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Pixels:
    """What a network that takes floats makes of a value: (scale·value − mean) / std, the last two alike or one a channel."""

    scale: float | None = None
    """None: 1/255 for 8-bit pixels, 1 for anything else."""
    mean: Numbers = (0.0,)
    std: Numbers = (1.0,)
    bgr: bool = False
    """Channels the other way round."""

    def __post_init__(self) -> None:
        if not all(self.std):
            raise UsageError("E704", "--std 0: nothing can be divided by it")

    @property
    def given(self) -> bool:
        """Whether it says anything."""
        return self != Pixels()

    def factor(self, dtype: np.dtype[np.generic]) -> float:
        """The scale of values of a type."""
        return self.scale if self.scale is not None else 1 / 255 if dtype == np.uint8 else 1.0

    def of(self, x: Array, dtype: np.dtype[np.generic], axis: int | None) -> Array:
        """Values [n, …] with channels along `axis`; computed in double precision, rounded once."""
        if self.bgr:
            x = np.flip(x, axis)
        if x.dtype == np.uint8:
            return self._looked_up(x, dtype, axis)
        mean, std = (self._along(v, x.ndim, axis) for v in (self.mean, self.std))
        made: Array = ((x.astype(np.float64) * self.factor(x.dtype) - mean) / std).astype(dtype)
        return made

    def _looked_up(self, x: Array, dtype: np.dtype[np.generic], axis: int | None) -> Array:
        """Eight bits have 256 values."""
        values = np.arange(256) * self.factor(x.dtype)
        if max(len(self.mean), len(self.std)) == 1:
            one: Array = ((values - self.mean[0]) / self.std[0]).astype(dtype)[x]
            return one
        mean, std = (self._along(v, 2, 0) for v in (self.mean, self.std))
        made = np.empty(x.shape, dtype)
        assert axis is not None  # or `Feed` has refused it
        for c, row in enumerate(((values - mean) / std).astype(dtype)):
            where: tuple[slice | int, ...] = (*[slice(None)] * axis, c)
            made[where] = row[x[where]]
        return made

    @staticmethod
    def _along(v: Numbers, rank: int, axis: int | None) -> Array:
        like = [1] * rank
        if axis is not None and len(v) > 1:
            like[axis] = -1
        return np.array(v).reshape(like) if len(v) > 1 else np.array(v[0])

    def show(self, dtype: np.dtype[np.generic]) -> str:
        """What becomes of values of a type, as in `(x/255 − 0.5) / 0.25`."""
        factor = self.factor(dtype)
        x = "x" if factor == 1 else "x/255" if factor == 1 / 255 else f"{factor:g}·x"
        shifted = x if self.mean == (0.0,) else f"({x} − {_show(self.mean)})"
        return shifted if self.std == (1.0,) else f"{shifted} / {_show(self.std)}"


def _show(v: Numbers) -> str:
    return f"{v[0]:g}" if len(v) == 1 else f"[{' '.join(f'{x:g}' for x in v)}]"


@dataclass(frozen=True)
class Feed:
    """A network's inputs from samples."""

    data: Data
    inputs: Mapping[str, Type]
    pixels: Pixels = Pixels()

    def __post_init__(self) -> None:
        floats = [n for n, t in self.inputs.items() if np.dtype(DTYPES[t.dtype]).kind in "fV"]
        if self.pixels.given and len(floats) != 1:
            problem = (
                f"--mean, --std and --scale are for one float input; the network has {len(floats)}"
            )
            raise UsageError("E704", problem)

    @property
    def batch(self) -> int:
        """Samples that the network takes at once."""
        return max(1, min((t.shape[0] for t in self.inputs.values() if t.rank), default=1))

    def take(self, which: Sequence[int]) -> dict[str, Array]:
        """Inputs with these samples along the first axis, as many as there are.

        Raises UsageError E721 or E722 if they do not fit, E735 if some are no numbers.
        """
        raw = self.data.take(which)
        for name in self.inputs:
            _check_numbers(name, raw[name], which)
        return {name: self._fit(name, raw[name], t) for name, t in self.inputs.items()}

    def _fit(self, name: str, x: Array, t: Type) -> Array:
        placed, want = placed_as(x, t), np.dtype(DTYPES[t.dtype])
        if placed is None:
            got = f"{NAMES.get(x.dtype, x.dtype)}[{','.join(map(str, x.shape[1:]))}]"
            problem = f"input {name!r} is {t}, its first axis samples; one sample is {got}"
            raise UsageError("E721", problem)
        if want.kind in "fV":
            return self.pixels.of(placed, want, self._channels(t))
        if x.dtype.kind not in "biu":
            raise UsageError("E722", f"input {name!r} is {t}, the samples are {x.dtype}")
        if want.kind in "iu" and x.size:
            least, most = int(x.min()), int(x.max())
            if not np.iinfo(want).min <= least <= most <= np.iinfo(want).max:
                problem = f"input {name!r} is {t}, the samples have {least} to {most}"
                raise UsageError("E722", problem)
        return placed.astype(want)

    def _channels(self, t: Type) -> int | None:
        """The axis of channels; UsageError E704 for numbers of another count than there are."""
        axis = channels(t)
        counts = {len(v) for v in (self.pixels.mean, self.pixels.std)} - {1}
        have = 1 if axis is None else t.shape[axis]
        if counts - {have}:
            problem = f"--mean and --std have {max(counts)} numbers, the images {have} channels"
            raise UsageError("E704", problem)
        if self.pixels.bgr and have != 3:
            raise UsageError("E704", f"--bgr: the images have {have} channels")
        return axis


def _check_numbers(name: str, x: Array, which: Sequence[int]) -> None:
    """UsageError E735 names the first sample that has none. Infinities are numbers: attention masks have them."""
    if x.dtype.kind in "fV" and (broken := np.isnan(x.astype(np.float32, copy=False))).any():
        first = which[int(broken.reshape(len(x), -1).any(1).argmax())]
        problem = f"input {name!r}: sample {first:,} is no number (nan) in places"
        raise UsageError("E735", problem, hint="counted from 0, in the order of the data")


def channels(t: Type) -> int | None:
    """Which axis of an input has the channels of images, if it is for images."""
    return next((a for a in (1, 3) if t.rank == 4 and t.shape[a] in (1, 3, 4)), None)


def placed_as(x: Array, t: Type) -> Array | None:
    """Samples [n, …] in the layout of an input [batch, …]; None if they are not of its size.

    Channels go where the input has them, and grey images get the one that they have.
    """
    want = t.shape[1:]
    if x.shape[1:] == want:
        return x
    if x.shape[1:] == t.shape and t.shape[0] == 1:
        return x[:, 0]
    for order in ((0, 3, 1, 2), (0, 2, 3, 1)):
        if x.ndim == t.rank == 4 and tuple(x.shape[i] for i in order[1:]) == want:
            return x.transpose(order)
    several = x.ndim == 4 and min(x.shape[1], x.shape[3]) > 1
    if x.ndim > 1 and x[:1].size == np.prod(want) and not several:  # nothing to put in order
        return x.reshape(len(x), *want)
    return None
