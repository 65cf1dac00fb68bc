"""What can go wrong while a program runs, and how it is told.

An engine that meets a fault knows four numbers: the kind, the lane, a value (an address, a register number, a barrier) and
one more (`aux`). Both engines raise them as a `Trap`; `describe` turns a trap and the place where it happened into the one
line that a user sees. So a fault reads the same whichever engine met it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from knapper.isa.errors import MachineFault
from knapper.isa.gather import TILE_RULES
from knapper.isa.modifiers import Mode
from knapper.isa.program import Kernel, Launch
from knapper.isa.vector_memory import COMMANDS, DESCRIPTORS, RULES, Broken

SPACES = ("global", "shared", "local", "param", "accumulator")
READS, WRITES = 0, 1
SWITCH = 16
"""MODE is a block barrier: its number is this and the mode's. BAR's are below."""


class Kind(enum.IntEnum):
    """The kinds of fault. The fast engine's compiled code uses the numbers."""

    MISALIGNED = 1
    OUTSIDE = 2
    READ_ONLY = 3
    UNDECLARED = 4
    UNWRITTEN_REGISTER = 5
    UNWRITTEN_UNIFORM = 6
    UNWRITTEN_PREDICATE = 7
    UNWRITTEN_MEMORY = 8
    RACE = 9
    BARRIER_DIVERGED = 10
    BARRIER_EXITED = 11
    BARRIER_OTHER = 12
    REGION_SPLIT = 13
    REGION_OPEN = 14
    REGION_CLOSED = 15
    REGION_STUCK = 16
    REGION_EXIT = 17
    OFF_THE_END = 18
    LIMIT = 19
    PATH = 20
    COMMAND_SPLIT = 21
    QUEUE_FULL = 22
    UNWRITTEN_WEIGHTS = 23
    ASYNC_REGISTER = 24
    ASYNC_MEMORY = 25
    ASYNC_WEIGHTS = 26
    ASYNC_OPEN = 27
    ASYNC_EXIT = 28
    BAD_DESCRIPTOR = 29
    BAD_COMMAND = 30
    NO_DESCRIPTOR = 31
    ASYNC_DESCRIPTOR = 32
    DESCRIPTOR_RACE = 33
    WARP_SPLIT = 34
    OTHER_WEIGHTS = 35


@dataclass(frozen=True)
class Trap(Exception):
    """A fault as an engine meets it, without its place."""

    kind: Kind
    lane: int = 0
    value: int = 0
    aux: int = 0


@dataclass(frozen=True)
class Place:
    """Where a warp was: `block` counts in launch order, x fastest."""

    kernel: Kernel
    launch: Launch
    block: int
    warp: int
    pc: int

    def __str__(self) -> str:
        x, y, _ = self.launch.grid
        block = (self.block % x, self.block // x % y, self.block // (x * y))
        where = f"kernel {self.kernel.name}, block {block}, warp {self.warp}, pc {self.pc}"
        if self.pc >= len(self.kernel.code):
            return where
        roles = self.kernel.roles
        node = (
            f", node {self.launch.nodes[roles[self.pc]]}"
            if self.pc < len(roles) and roles[self.pc] < len(self.launch.nodes)
            else ""
        )
        return f"{where} `{self.kernel.code[self.pc]}`{node}"


TOLD = (1 << 24) - 1
"""Bytes of an access that its `aux` can tell, at most."""
USE = 4
"""The bit of an access's `aux` that says what it is: READS or WRITES."""
CLAIM = 5
"""The bit of an access's `aux` that says what the pending command does that claims the place: READS or WRITES."""


def access(space: str, size: int, use: int, claim: int = READS) -> int:
    """The `aux` of a memory fault: which space, how many bytes, read or write."""
    return SPACES.index(space) | use << USE | claim << CLAIM | size << 8


def _memory(t: Trap) -> str:
    verb = ("reads", "writes")[t.aux >> USE & 1]
    return f"lane {t.lane} {verb} {t.aux >> 8} bytes of {SPACES[t.aux & 15]} memory at {t.value:#x}"


KIND_BITS = 2
KINDS = ("floats", "bytes", "nibbles")
"""`aux` of weights of another kind: those of the product, theirs above; 2 bits each."""
RACES = ("writes", "reads")
"""`aux` of a race: bit 0 what this warp does, bit 1 what the other one did, the other warp's number above."""


def race(now: int, before: int, warp: int) -> int:
    """The `aux` of a race; `now` and `before` are READS or WRITES."""
    return (now == READS) | (before == READS) << 1 | warp << 2


def _race(t: Trap) -> str:
    now, before = RACES[t.aux & 1], ("wrote", "read")[t.aux >> 1 & 1]
    return f"a race: lane {t.lane} {now} shared memory at {t.value:#x}, which warp {t.aux >> 2} {before} since the last barrier"


def _barrier(t: Trap) -> str:
    return f"barrier {t.value}" if t.value < SWITCH else f"MODE.{Mode(t.value - SWITCH)}"


def _claimed(t: Trap) -> str:
    claim = "writes" if SPACES[t.aux & 15] == "accumulator" or t.aux >> CLAIM & 1 else "reads"
    return f"AsyncHazard: {_memory(t)}, which a pending systolic command {claim}"


@dataclass(frozen=True)
class Text:
    """How a kind is told."""

    code: str
    message: Callable[[Trap], str]
    hint: str = ""


def _descriptor(t: Trap) -> str:
    """Tiles' descriptors are counted behind the convolutions'."""
    if t.value < DESCRIPTORS:
        return f"descriptor {t.value}"
    return f"tile descriptor {t.value - DESCRIPTORS}"


def _describer(t: Trap) -> str:
    return "CONVDESC" if t.value < DESCRIPTORS else "TWDESC"


COMPLETE = "SMA.WAIT 0 completes the warp's groups"
WAIT = "open a region with BSSY before lanes part, and send every path to its BSYNC"
FAULTS: Mapping[Kind, Text] = {
    Kind.MISALIGNED: Text(
        "E602", lambda t: f"{_memory(t)}, which is not a multiple of {t.aux >> 8}"
    ),
    Kind.OUTSIDE: Text("E603", lambda t: f"{_memory(t)}, which lies outside it"),
    Kind.READ_ONLY: Text("E604", lambda t: f"{_memory(t)}, which is read-only"),
    Kind.UNDECLARED: Text(
        "E605", lambda t: f"{_memory(t)}, which is no operand of the launch that allows it"
    ),
    Kind.UNWRITTEN_REGISTER: Text(
        "E606", lambda t: f"R{t.value} is read in lane {t.lane}, where nothing wrote it"
    ),
    Kind.UNWRITTEN_UNIFORM: Text("E606", lambda t: f"UR{t.value} is read, and nothing wrote it"),
    Kind.UNWRITTEN_PREDICATE: Text(
        "E606", lambda t: f"P{t.value} is read in lane {t.lane}, where nothing wrote it"
    ),
    Kind.UNWRITTEN_MEMORY: Text("E606", lambda t: f"{_memory(t)}, where nothing wrote"),
    Kind.RACE: Text("E607", _race, "a BAR between the two accesses"),
    Kind.BARRIER_DIVERGED: Text(
        "E608",
        lambda t: f"lane {t.lane} is live but does not come to {_barrier(t)} with the others",
    ),
    Kind.BARRIER_EXITED: Text(
        "E608", lambda t: f"waits at {_barrier(t)}, but warp {t.aux} of the block has exited"
    ),
    Kind.BARRIER_OTHER: Text(
        "E608",
        lambda t: f"waits at {_barrier(t)}, but warp {t.aux} of the block waits at another",
    ),
    Kind.REGION_SPLIT: Text(
        "E609",
        lambda t: (
            f"the guard leaves lane {t.lane} out, but all active lanes enter and leave a region together"
        ),
    ),
    Kind.REGION_OPEN: Text("E609", lambda t: f"B{t.value} is open already, since pc {t.aux}"),
    Kind.REGION_CLOSED: Text(
        "E609", lambda t: f"no BSSY sends lane {t.lane} here with B{t.value}", WAIT
    ),
    Kind.REGION_STUCK: Text(
        "E609", lambda t: f"lanes wait at B{t.value} for lane {t.lane}, which waits elsewhere", WAIT
    ),
    Kind.REGION_EXIT: Text(
        "E609",
        lambda t: f"lane {t.lane} exits inside the region of B{t.value}, where others wait for it",
        WAIT,
    ),
    Kind.OFF_THE_END: Text("E610", lambda t: "the code ends without EXIT"),
    Kind.LIMIT: Text(
        "E611",
        lambda t: f"the warp has executed {t.value} instructions",
        "an endless loop, or raise the limit",
    ),
    Kind.PATH: Text(
        "E614",
        lambda t: f"the warp's path has more than the {t.value:,} entries that timing keeps",
        "run without timing: --no-timing, or timing=False",
    ),
    Kind.ASYNC_REGISTER: Text(
        "E615",
        lambda t: (
            f"AsyncHazard: the warp {('reads', 'writes')[t.aux]} R{t.value}, which a pending LSMA writes"
        ),
        COMPLETE,
    ),
    Kind.ASYNC_MEMORY: Text("E615", _claimed, f"{COMPLETE}; then a barrier for the others"),
    Kind.ASYNC_WEIGHTS: Text(
        "E615",
        lambda t: (
            f"AsyncHazard: weights of an earlier group are used, but warp {t.aux} may load others"
        ),
        "let every group begin with its own SMA.LDB and SMA.SWAP",
    ),
    Kind.ASYNC_OPEN: Text(
        "E615", lambda t: f"AsyncHazard: {t.value} commands that no SMA.COMMIT follows"
    ),
    Kind.ASYNC_EXIT: Text(
        "E615", lambda t: f"AsyncHazard: the warp ends with {t.value} groups pending", COMPLETE
    ),
    Kind.COMMAND_SPLIT: Text(
        "E616", lambda t: f"lane {t.lane} is not active, but a systolic command is the whole warp's"
    ),
    Kind.WARP_SPLIT: Text(
        "E616", lambda t: f"lane {t.lane} is not active, but the product is the whole warp's"
    ),
    Kind.QUEUE_FULL: Text(
        "E616", lambda t: f"{t.value} systolic commands of the warp are pending: its queue is full"
    ),
    Kind.BAD_DESCRIPTOR: Text(
        "E618", lambda t: f"a descriptor breaks a rule: {(*RULES, *TILE_RULES)[t.value]}"
    ),
    Kind.BAD_COMMAND: Text(
        "E618", lambda t: f"{t.aux:#x} breaks a rule: {COMMANDS[Broken(t.value)]}"
    ),
    Kind.NO_DESCRIPTOR: Text(
        "E606", lambda t: f"{_descriptor(t)} is used, where no {_describer(t)} put any"
    ),
    Kind.ASYNC_DESCRIPTOR: Text(
        "E615",
        lambda t: f"AsyncHazard: {_descriptor(t)} changes, which a pending command uses",
        COMPLETE,
    ),
    Kind.DESCRIPTOR_RACE: Text(
        "E607",
        lambda t: (
            f"a race: {_descriptor(t)}, with which warp {t.aux} had to do since the last barrier"
        ),
        "a BAR between the two",
    ),
    Kind.UNWRITTEN_WEIGHTS: Text(
        "E606",
        lambda t: f"weights of unit {t.value} are used, where no SMA.LDB and SMA.SWAP put any",
    ),
    Kind.OTHER_WEIGHTS: Text(
        "E619",
        lambda t: (
            f"unit {t.value} holds weights of {KINDS[t.aux >> KIND_BITS]}, the product is one of {KINDS[t.aux & ~(~0 << KIND_BITS)]}"
        ),
        "SMA.LDB loads for LSMA and pushes of floats, ISMA.LDB for ILSMA and pushes of bytes, ISMA.LDB.N for ILSMA.N",
    ),
}


def describe(trap: Trap, place: Place) -> MachineFault:
    """The fault that a user sees."""
    text = FAULTS[trap.kind]
    return MachineFault(text.code, text.message(trap), where=str(place), hint=text.hint)
