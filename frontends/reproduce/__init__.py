"""`knapper reproduce`: numbers of papers and of hardware, ours beside each, and how ours was obtained.

    baseline ─┐                                          claims     what a row is, and the lab that it asks
    sma ──────┤
    im2col ───┤
    tilewise ─┤
    dstc ─────┤
    ant ──────┤
    squant ───┤
    aquant ───┴─► Claim.ours(lab) ─► Row ─► report       recording  a program executed once, replayed on any machine
                        │                                workloads · microbench · cutlass · simulators    what is executed
                        └── lab.run(workload, target)

A set is a module with a function `rows`. To add one, list it in `SETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from knapper.isa.description import did_you_mean
from knapper.isa.errors import UsageError

from . import ant, aquant, baseline, dstc, im2col, sma, squant, tilewise
from .claims import Claim, Lab, Row

SETS: dict[str, Callable[[], Iterable[Claim]]] = {
    "baseline": baseline.rows,
    "sma": sma.rows,
    "im2col": im2col.rows,
    "tilewise": tilewise.rows,
    "dstc": dstc.rows,
    "ant": ant.rows,
    "squant": squant.rows,
    "aquant": aquant.rows,
}
"""By name, in the order in which they are shown."""


def claims(names: Sequence[str] = ()) -> list[Claim]:
    """The claims of some sets, or of those whose names begin so (`S-3`); all by default. UsageError E704 if a name means none."""
    every = [(name, c) for name, rows in SETS.items() for c in rows()]
    for wanted in names:
        if not any(_meant(wanted, of, c) for of, c in every):
            near = did_you_mean(wanted, [*SETS, *(c.name.partition(".")[0] for _, c in every)])
            hint = near or f"there are {', '.join(SETS)}, and rows such as {every[0][1].name}"
            raise UsageError("E704", f"no claim is called {wanted!r}", hint=hint)
    return [c for of, c in every if not names or any(_meant(w, of, c) for w in names)]


def _meant(wanted: str, of: str, claim: Claim) -> bool:
    return wanted == of or claim.name == wanted or claim.name.startswith(f"{wanted}.")


def reproduce(chosen: Sequence[Claim], lab: Lab, interval: bool = True) -> Iterator[Row]:
    """The rows of some claims, one by one."""
    for c in chosen:
        yield c.row(lab, interval)
