"""How far two tensors are apart, by what their type can mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from knapper.compiler.ir import Array
from knapper.isa.errors import KnapperError

from .tables import table

COSINE = 0.9995
"""What outputs computed in 16-bit storage must reach."""
EXACT = 1e-4
"""Largest max |y-r| / max |r| of outputs computed in float32 (sums in another order)."""


@dataclass(frozen=True)
class Difference:
    """One output against its reference."""

    name: str
    count: int
    """Elements compared."""
    equal: float
    """Share of elements that are the same; any two NaNs are."""
    max_abs: float
    max_rel: float
    """max |y-r| / max |r|."""
    cosine: float
    numeric: bool
    """Floats; integers and booleans have no distance that means something."""

    def fits(self, tolerance: float | None, exact: bool) -> bool:
        """Integers must be equal; floats within the tolerance, or what their storage allows."""
        if not self.count:
            return False
        if not self.numeric:
            return self.equal == 1
        if tolerance is not None or exact:
            return self.max_rel <= (EXACT if tolerance is None else tolerance)
        return self.cosine >= COSINE


def difference(name: str, ours: Array, theirs: Array) -> Difference:
    """Compare two arrays; KnapperError E706 if their types differ."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        spelled = [f"{a.dtype}[{','.join(map(str, a.shape))}]" for a in (ours, theirs)]
        raise KnapperError(
            "E706", f"output {name!r} is {spelled[0]}, onnxruntime gives {spelled[1]}"
        )
    numeric = ours.dtype.kind not in "biu"
    y, r = (np.asarray(a, np.float64).ravel() for a in (ours, theirs))
    same = (y == r) | (np.isnan(y) & np.isnan(r))
    y, r = (
        np.where(same, 0, y) + np.where(same & np.isfinite(r), r, 0),
        np.where(same & ~np.isfinite(r), 0, r),
    )
    with np.errstate(all="ignore"):
        max_abs = float(np.abs(y - r).max(initial=0))
        largest = float(np.abs(r).max(initial=0))
        length = float(np.linalg.norm(y) * np.linalg.norm(r))
        cosine = float(y @ r) / length if length else float(max_abs == 0)
    rel = max_abs / largest if largest else max_abs
    equal = float(same.mean()) if same.size else 0.0
    return Difference(name, ours.size, equal, max_abs, rel, cosine, numeric)


def differences(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> list[Difference]:
    """Compare outputs by name; KnapperError E706 if nothing was compared or one is missing."""
    if missing := theirs.keys() - ours.keys():
        raise KnapperError("E706", f"output {sorted(missing)[0]!r} was not computed")
    found = [difference(name, ours[name], r) for name, r in theirs.items()]
    if not any(d.count for d in found):
        raise KnapperError(
            "E706", "nothing was compared: the model has no outputs, or only empty ones"
        )
    return found


def as_table(found: list[Difference]) -> str:
    """The comparison, one output a line."""
    head = ["output", "elements", "equal", "max |y-r|", "/ max |r|", "cosine"]
    return table(map(_row, found), head)


def _row(d: Difference) -> tuple[object, ...]:
    metrics = (
        (f"{d.max_abs:.3g}", f"{d.max_rel:.3g}", f"{d.cosine:.7f}") if d.numeric else ("", "", "")
    )
    return (d.name, d.count, f"{d.equal:.2%}", *metrics)


def failures(
    found: list[Difference], tolerance: float | None, exact: bool, where: str
) -> Iterator[KnapperError]:
    """An E706 for each output that is too far off."""
    for d in found:
        if not d.fits(tolerance, exact):
            distance = f"max |y-r| / max |r| is {d.max_rel:.3g}, cosine {d.cosine:.6f}"
            what = distance if d.numeric else f"{1 - d.equal:.2%} of its elements differ"
            yield KnapperError(
                "E706", f"output {d.name!r} differs from onnxruntime's: {what}", where=where
            )
