"""Which way warps went: all that the timing of a launch needs of control flow, kept once for each class of blocks that went alike.

A warp's path is the list of places where it did not simply issue an instruction and go on to the next. With the code it says which
instructions the warp met, in order, and which of them its guard left out:

    0  ISETP          (1, 2)  × 1     1 was left out: its guard was false in every lane
    1  @P0 MOV        (4, 0)  × 9     4 jumped to 0 nine times, and nothing else happened between
    …                 (7, END) × 1    7 ended the warp
    4  @P1 BRA 0
    …
    7  EXIT

Runs of one event are one entry, so that an innermost loop is. Both engines record the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

EVENT = np.dtype([("pc", "u4"), ("next", "u4"), ("count", "u4")])
"""The warp ran straight on from where it was to `pc`, and went to `next`; that `count` times in a row.

An event is a jump that lands anywhere but behind itself; a BSYNC, EXIT or BRA after which another path of the warp runs; an
instruction that was guarded off for all lanes (`next` = `pc` + 1, and nothing else has that); the end of the warp (`next` = END).
A barrier is no event. What an SPWMMA did is one as well: WORK.
"""
WORK = 1 << 31
"""Set in `next` of an SPWMMA that was executed, each of which is an event: WORK | passes << 24 | bank cycles << 8 | OHMMAs (`work`). The warp goes
on behind it. No code is so long that an instruction has this number."""
END = 0xFFFFFFFF
"""`next` of a warp's last event."""
MOST = 0xFFFFFFFF
"""The highest `count`; the next in a row begins a new entry."""
EVENTS = 1 << 22
"""Entries that the warps of a block may have, shared out evenly among them: a limit of both engines."""
Warps = tuple[NDArray[Any], ...]
"""`EVENT` entries of each warp of a block."""


def share(warps: int) -> int:
    """Entries that each of a block's warps may have."""
    return EVENTS // warps


@dataclass(frozen=True)
class Paths:
    """The paths of a launch's blocks. Blocks whose warps went the same ways are one class; classes are numbered by their lowest block."""

    warps: tuple[Warps, ...]
    """Per class, per warp of the block: `EVENT` entries."""
    of_block: NDArray[np.uint32]
    """The class of each block, in launch order. [blocks]"""

    @staticmethod
    def of(blocks: Iterable[Warps]) -> Paths:
        """From the paths of all blocks, in order."""
        numbers: dict[tuple[bytes, ...], int] = {}
        classes, of_block = list[Warps](), list[int]()
        for warps in blocks:
            number = numbers.setdefault(tuple(w.tobytes() for w in warps), len(classes))
            if number == len(classes):
                classes.append(warps)
            of_block.append(number)
        return Paths(tuple(classes), np.array(of_block, np.uint32))

    @staticmethod
    def of_hashes(hashes: NDArray[np.uint64], known: dict[int, Warps]) -> Paths:
        """From a hash a block, in order, and the paths that each hash stands for."""
        if len(known) == 1:
            return Paths(tuple(known.values()), np.zeros(len(hashes), np.uint32))
        found = np.sort(np.array(list(known), np.uint64))
        which = found.searchsorted(hashes)
        first = np.empty(len(found), np.int64)
        first[which[::-1]] = np.arange(len(hashes))[::-1]  # of equal places the last one stays
        order = first.argsort()
        number = np.empty(len(order), np.uint32)
        number[order] = np.arange(len(order))
        return Paths(tuple(known[h] for h in found[order].tolist()), number[which])

    @cached_property
    def flat(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The events of all classes in one array, and where each warp of each class begins. [events], [classes, warps]"""
        lengths = np.array([[len(w) for w in c] for c in self.warps], np.int64)
        ends = lengths.cumsum().reshape(lengths.shape)
        # joining records takes ten times as long as joining words
        words = [w.view(np.uint32) for c in self.warps for w in c]
        return np.concatenate(words).view(EVENT), ends - lengths


def work(cycles: int, ohmmas: int, passes: int = 0) -> int:
    """`next` of an SPWMMA that issued so many OHMMAs, whose sums took the accumulation buffer so many cycles (`collector`), and whose values
    are so many passes over shared memory, 0 to 16.
    """
    return WORK | passes << 24 | cycles << 8 | ohmmas


class Trail:
    """A warp's path while it grows."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.entries: list[list[int]] = []

    def add(self, pc: int, next: int) -> bool:
        """One event; False if there is no room for it."""
        last = self.entries[-1] if self.entries else [END, END, 0]
        if last[:2] == [pc, next] and last[2] < MOST:
            last[2] += 1
        elif len(self.entries) == self.most:
            return False
        else:
            self.entries.append([pc, next, 1])
        return True

    def events(self) -> NDArray[Any]:
        """As `EVENT` entries."""
        return np.array([tuple(e) for e in self.entries], EVENT)
