"""Tiles of output pixels for `patch`: which may pay and fit the machine, and what a launch of them does.

What a patch takes of shared memory decides: where lines of a whole image do not fit with all their channels the tile shrinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from knapper.isa.machine import Machine

from ..cuts import widths
from ..hmma import ELEMENT, Fragments
from ..product import Product
from . import cost as patch_cost
from .shape import PLACE, Patch

FLIGHT = 16
"""Loads of a thread that are issued together while the patch is fetched; as many wait to be stored."""


@dataclass(frozen=True)
class Patches(Fragments):
    """A tile of th × tw output `pixels` of one image, cut into warps as fragments are."""

    pixels: tuple[int, int]

    @property
    def lanes(self) -> int:
        """Places that a block fetches at once: two lanes carry one."""
        return 16 * self.count

    def turns(self, patch: Patch) -> int:
        """Times that a block goes over the places of a plane."""
        return -(-patch.places(self.bm // 16) // self.lanes)


def patch_of(p: Product, pixels: tuple[int, int]) -> Patch:
    """What th × tw output pixels of a convolution read."""
    assert p.window is not None
    return Patch.of(p.window, p.channels, pixels)


def patch_bytes(patch: Patch, fragments: int) -> int:
    """Of shared memory, if so many fragments of rows are read."""
    return patch.places(fragments) * PLACE * (patch.channels // 16)


def unfit(p: Product, machine: Machine) -> str | None:
    """Why no tile fits, or None."""
    patch, limit = patch_of(p, (1, 1)), machine.shared_bytes_per_block
    if (least := patch_bytes(patch, 1)) <= limit:
        return None
    return f"the patch of one output pixel takes {least:,} bytes of shared memory, a block has {limit:,}"


def _parts(n: int, most: int) -> list[int]:
    """Sizes up to `most` of equal parts of n."""
    sizes = dict.fromkeys(-(-n // parts) for parts in range(-(-n // most), n + 1))
    return [*sizes]


LINES, COLUMNS = 28, 64
"""The largest tile that is tried, in output pixels."""
ROWS, TURNS = 16, 20
"""The most fragments of rows in a tile, and times that a block goes over the places of a plane, for each of which a thread holds two registers."""


def tilings(p: Product, machine: Machine, packed: bool) -> Iterator[Patches]:
    """Tiles that may pay: those whose patch fits."""
    w = p.window
    assert w is not None
    wide = [bn // 16 for bn in widths(p.n, 16, (8, 4, 2, 1))]
    depths = [bk for bk in (256, 128, 64, 32, 16) if p.channels % bk == 0][:3]
    for tw in _columns(p, machine):
        for th in _parts(w.oh, LINES):
            patch = patch_of(p, (th, tw))
            for wm in (1, 2, 4):
                fm = -(-patch.fragments // wm)
                if wm * fm > ROWS or not _linear(patch, wm, fm):
                    continue
                for width in wide:
                    for wn in (w for w in (8, 4, 2, 1) if width % w == 0):
                        for bk in depths:
                            t = Patches(16 * wm * fm, 16 * width, bk, (wm, wn), (th, tw))
                            if _fits(p, t, packed, machine):
                                yield t


def _columns(p: Product, machine: Machine) -> list[int]:
    """The widest three tiles of which a line fits."""
    w = p.window
    assert w is not None
    lines = {tw: patch_of(p, (1, tw)) for tw in _parts(w.ow, COLUMNS)}
    limit = machine.shared_bytes_per_block
    return [tw for tw, line in lines.items() if patch_bytes(line, line.fragments) <= limit][:3]


def _linear(patch: Patch, wm: int, fm: int) -> bool:
    """Whether rows of warps lie evenly spaced in the patch."""
    return wm == 1 or patch.width == patch.pitch or 16 * fm % patch.width == 0


def _fits(p: Product, t: Patches, packed: bool, machine: Machine) -> bool:
    """Whether a block has the warps, the registers and the shared memory."""
    return (
        t.count <= 8
        and t.turns(patch_of(p, t.pixels)) <= TURNS
        and registers(p, t) <= 232
        and shared_bytes(p, t, packed) <= machine.shared_bytes_per_block
    )


def shared_bytes(p: Product, t: Patches, packed: bool) -> int:
    """Of a block: the patch, and two tiles of B that is not packed."""
    staged = 0 if packed else 2 * t.bn * t.bk * ELEMENT
    return patch_bytes(patch_of(p, t.pixels), t.bm // 16) + staged


def registers(p: Product, t: Patches) -> int:
    """Roughly what a thread needs: weights, and while the patch is fetched loads and table entries, then accumulators and fragments."""
    fetching = 2 * 4 * FLIGHT + 2 * t.turns(patch_of(p, t.pixels))
    return 4 * t.fn * t.kk + max(fetching, 8 * t.fm * t.fn + 4 * t.fm) + 20


def work(p: Product, t: Patches, packed: bool, known: bool, epilogue: int) -> patch_cost.Work:
    """What a launch does; a result costs `epilogue` instructions, and `known` says whether B is when compiling."""
    patch = patch_of(p, t.pixels)
    down, across = patch.tiles
    return patch_cost.Work(
        blocks=patch.window.images * down * across * -(-p.n // t.bn) * p.batch,
        warps=t.count,
        steps=p.k // t.bk,
        multiplies=t.fm * t.fn * t.kk,
        chain=t.kk,
        fragments=t.fm * t.kk,
        weights=t.fn * t.kk,
        distinct=t.wn * t.fn * t.kk,
        staged=not packed,
        patch=patch.distinct * p.channels * ELEMENT,
        moves=t.turns(patch) * p.channels // 16,
        lines=8 * t.fm,
        results=8 * t.fm * t.fn,
        epilogue=epilogue,
        known=p.b_type.bytes if known else 0,
        registers=min(registers(p, t), 255),
        shared=shared_bytes(p, t, packed),
    )
