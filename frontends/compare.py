"""How far two tensors are apart, by what their type can mean.

integers, booleans   the same bits or not
floats               ulp (largest, 99th percentile), max |y-r| / max |r|, cosine, SQNR in dB
NaN, Inf             the same NaN or infinity is equal; one against a number is a stray, which no tolerance excuses
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from knapper.compiler.ir import NAMES, Array
from knapper.isa.errors import KnapperError

from .tables import Table

COSINE = 0.9995
"""What outputs computed in 16-bit storage must reach."""
EXACT = 1e-4
"""Largest max |y-r| / max |r| of outputs computed in float32 (sums in another order)."""
PERCENTILE = 99
ORACLE = "onnxruntime"
HEAD = ("elements", "equal", "ulp", "ulp 99%", "max |y-r|", "/ max |r|", "cosine", "SQNR dB")


@dataclass(frozen=True)
class Difference:
    """One tensor against its reference."""

    name: str
    count: int
    """Elements compared."""
    equal: float
    """Share of elements that are the same; any two NaNs are."""
    max_abs: float
    max_rel: float
    """max |y-r| / max |r|."""
    cosine: float
    sqnr: float
    """Signal to quantization noise in dB, 10 log10(Σr² / Σ(y-r)²); infinite if nothing differs."""
    ulp: float
    """The largest distance in units in the last place of r, in the type that it was stored in."""
    ulp_99: float
    """What 99 % of the elements do not exceed."""
    strays: int
    """Elements that are NaN or infinite on one side, and something else on the other."""
    numeric: bool
    """Floats; integers and booleans have no distance that means something."""

    def fits(self, tolerance: float | None, exact: bool) -> bool:
        """Integers must be equal; floats within the tolerance, or what their storage allows."""
        if not self.count or self.strays:
            return False
        if not self.numeric:
            return self.equal == 1
        if tolerance is not None or exact:
            return self.max_rel <= (EXACT if tolerance is None else tolerance)
        return self.cosine >= COSINE

    def row(self) -> tuple[object, ...]:
        """Cells below HEAD."""
        first = (self.count, f"{self.equal:.2%}")
        if not self.numeric:
            return (*first, *[""] * (len(HEAD) - 2))
        strays = f"{self.strays} NaN or Inf" if self.strays else f"{self.max_abs:.3g}"
        ulp = (f"{self.ulp:.3g}", f"{self.ulp_99:.3g}")
        return (*first, *ulp, strays, f"{self.max_rel:.3g}", f"{self.cosine:.7f}", _db(self.sqnr))

    def to_dict(self) -> dict[str, Any]:
        """For --json, which knows no infinity: null where there is no finite number."""
        found = {k: getattr(self, k) for k in self.__dataclass_fields__}
        return {k: _finite(v) for k, v in found.items()}

    def __str__(self) -> str:
        """In words."""
        if not self.count:
            return "it has no elements"
        if not self.numeric:
            return f"{1 - self.equal:.2%} of its elements differ"
        if self.strays:
            return f"{self.strays} of {self.count} elements are NaN or Inf on one side only"
        return f"max |y-r| / max |r| is {self.max_rel:.3g}, cosine {self.cosine:.6f}, SQNR {_db(self.sqnr)} dB"


def difference(
    name: str, ours: Array, theirs: Array, whose: str = ORACLE, stored: Any = None
) -> Difference:
    """Compare two arrays; KnapperError E706 if their types differ. `stored`: the type whose ulps are counted, if not their own."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        spelled = [f"{a.dtype}[{','.join(map(str, a.shape))}]" for a in (ours, theirs)]
        raise KnapperError("E706", f"output {name!r} is {spelled[0]}, {whose} gives {spelled[1]}")
    if ours.dtype.kind in "biu":
        equal = float((ours == theirs).mean()) if ours.size else 0.0
        apart = float(equal < 1)
        return Difference(name, ours.size, equal, apart, apart, equal, 0, 0, 0, 0, False)
    with np.errstate(all="ignore"):  # a NaN may be a signalling one
        y, r = (np.asarray(a, np.float64).ravel() for a in (ours, theirs))
    same = (y == r) | (np.isnan(y) & np.isnan(r))
    strays = int(np.count_nonzero(~same & ~(np.isfinite(y) & np.isfinite(r))))
    finite = np.isfinite(y) & np.isfinite(r)
    equal = float(same.mean()) if same.size else 0.0
    if strays and not finite.any():  # nothing has a distance
        return Difference(
            name,
            ours.size,
            equal,
            math.inf,
            math.inf,
            0,
            -math.inf,
            math.inf,
            math.inf,
            strays,
            True,
        )
    return _distances(name, y[finite], r[finite], ours, stored or ours.dtype, equal, strays)


def _distances(
    name: str, y: NDArray[Any], r: NDArray[Any], ours: Array, stored: Any, equal: float, strays: int
) -> Difference:
    """The metrics of the finite elements."""
    with np.errstate(over="ignore"):
        apart = y - r
        max_abs = float(np.abs(apart).max(initial=0))
        largest = float(np.abs(r).max(initial=0))
        noise, signal = float(apart @ apart), float(r @ r)
        length = math.sqrt(signal) * math.sqrt(float(y @ y))
        cosine = float(y @ r) / length if length else float(max_abs == 0)
    rel = max_abs / largest if largest else max_abs
    sqnr = 10 * math.log10(signal / noise) if noise and signal else math.inf if not noise else -math.inf  # fmt: skip
    steps = ulps(y, r, stored)
    worst = float(steps.max(initial=0))
    most = float(np.percentile(steps, PERCENTILE)) if steps.size else 0.0
    return Difference(name, ours.size, equal, max_abs, rel, cosine, sqnr, worst, most, strays, True)


def ulps(y: NDArray[Any], r: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """|y-r| in units in the last place that `dtype` has at r; below its normal numbers, in its smallest.

    >>> ulps(np.array([1 + 2**-10, 4.0]), np.array([1.0, 2.0]), np.float16).tolist()
    [1.0, 1024.0]
    """
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]  # the package has no annotation for it
    _, exponent = np.frexp(r)
    step = np.where(r == 0, 0, np.ldexp(1.0, exponent - 1 - int(info.nmant)))
    apart: NDArray[Any] = np.abs(y - r) / np.maximum(step, float(info.smallest_subnormal))
    return apart


def differences(
    ours: Mapping[str, Array],
    theirs: Mapping[str, Array],
    whose: str = ORACLE,
    stored: Any = None,
) -> list[Difference]:
    """Compare outputs by name; KnapperError E706 if nothing was compared or one is missing."""
    if missing := theirs.keys() - ours.keys():
        raise KnapperError("E706", f"output {sorted(missing)[0]!r} was not computed")
    found = [difference(name, ours[name], r, whose, stored) for name, r in theirs.items()]
    if not any(d.count for d in found):
        raise KnapperError(
            "E706", "nothing was compared: the model has no outputs, or only empty ones"
        )
    return found


def as_table(found: list[Difference], what: str = "output") -> Table:
    """The comparison, one tensor a line."""
    return Table([(d.name, *d.row()) for d in found], (what, *HEAD))


def failures(
    found: list[Difference],
    tolerance: float | None,
    exact: bool,
    where: str,
    whose: str = ORACLE,
) -> Iterator[KnapperError]:
    """An E706 for each output that is too far off."""
    for d in found:
        if not d.fits(tolerance, exact):
            yield KnapperError(
                "E706", f"output {d.name!r} differs from {whose}'s: {d}", where=where
            )


def _db(x: float) -> str:
    return f"{x:.1f}" if math.isfinite(x) else "inf" if x > 0 else "-inf"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def typed(a: Array) -> str:
    """An array's type: `f16[1,8]`."""
    return f"{NAMES[a.dtype]}[{','.join(map(str, a.shape))}]"
