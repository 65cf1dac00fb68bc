"""One launch that goes wrong: which instruction wrote the first wrong element, and whether both engines agree that it does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapper.compiler.ir import Array
from knapper.isa.program import Launch
from knapper.runtime.lockstep import Apart, Lockstep, Place
from knapper.runtime.memory import Memory

from ..compare import EXACT
from .launches import Bad, Walk
from .subject import LIMITS


@dataclass(frozen=True)
class Site:
    """Where the first wrong element is from."""

    index: tuple[int, ...]
    ours: object
    theirs: object
    store: Place | None
    """The instruction that stored it; None if no block of the launch does."""
    apart: Apart | None
    """Where the engines part, if they do."""

    @property
    def place(self) -> Place | None:
        """The instruction to look at: where the engines part, else where the element was stored."""
        return self.apart.place if self.apart else self.store


def locate(walk: Walk, feed: dict[str, Array], bad: Bad) -> Site:
    """Find the instruction. `walk` goes through the launches before it again."""
    index = first_wrong(bad.ours, bad.theirs)
    shown = bad.ours[index].item(), bad.theirs[index].item()
    launch, before = _before(walk, feed, bad)
    operand = next((o for o in launch.operands if o.value == bad.value and "w" in o.use), None) if launch else None  # fmt: skip
    if launch is None or operand is None:
        return Site(index, *shown, None, None)
    size = bad.ours.itemsize
    offset = int(np.ravel_multi_index(index, bad.ours.shape)) * size if bad.ours.ndim else 0
    lockstep = Lockstep(walk.program, launch, before)
    block = lockstep.writer(operand.address + offset, size)
    if block is None:
        return Site(index, *shown, None, None)
    stored = lockstep.store(block, operand.address + offset, size)
    return Site(index, *shown, stored[0] if stored else None, lockstep.compare(block))


def first_wrong(ours: Array, theirs: Array) -> tuple[int, ...]:
    """The index of the first element that is wrong: of integers another one, of floats beyond what few roundings leave."""
    if ours.dtype.kind in "biu":
        wrong = ours != theirs
    else:
        y, r = (np.asarray(a, np.float64) for a in (ours, theirs))
        finite = np.isfinite(y) & np.isfinite(r)
        largest = float(np.abs(r[finite]).max(initial=0))
        limit = LIMITS.get(ours.dtype.name, EXACT) * (largest or 1)
        with np.errstate(invalid="ignore"):
            far = np.abs(y - r) > limit
        wrong = np.where(finite, far, ~((y == r) | (np.isnan(y) & np.isnan(r))))
    return tuple(map(int, np.unravel_index(int(np.argmax(wrong)), wrong.shape)))


def _before(walk: Walk, feed: dict[str, Array], bad: Bad) -> tuple[Launch | None, Memory]:
    """The launch that stores the value last, and memory as it finds it."""
    walk.begin(feed)
    for _, launches in walk.spans[: bad.index]:
        walk.run(launches)
    writes = [any(o.value == bad.value and "w" in o.use for o in x.operands) for x in bad.launches]
    if not any(writes):
        return None, walk.memory
    last = len(writes) - 1 - writes[::-1].index(True)
    walk.run(bad.launches[:last])
    return bad.launches[last], walk.memory
