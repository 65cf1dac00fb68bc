"""Claims: a number that somebody published, measured or derived, and how ours is obtained from executed programs.

A claim's `ours` asks a Lab for runs of workloads on targets. The Lab executes each once; asked again with a number of the machines moved,
it replays. So a row's interval takes no second execution, and a test can see that the row depends on the machine at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

from knapper.isa.errors import KnapperError
from knapper.isa.machine import Machine
from knapper.isa.parameters import NUMBERS
from knapper.isa.program import Program
from knapper.runtime.timing.record import Record

from .recording import Replay, executed

CLASSES = {
    "published": "a paper's result",
    "silicon": "a measurement on hardware that set no number of ours",
    "derived": "arithmetic on the model's own rules: what the model must give",
    "analytic": "a result of a paper's own analytic model, which ours is another version of: no emulation on either side",
    "recalled": "remembered from a paper, not read: no evidence",
    "calibrated": "a measurement that set a number of ours",
    "fitted": "a number of ours was chosen to meet it",
    "input": "a number of ours, shown for its effect",
}
"""Where the number that a row compares with is from."""
EVIDENCE = ("published", "silicon")
"""Classes whose rows must pass."""
UNSURE = ("assumed", "recalled")
"""Provenances whose numbers an interval moves."""
SHAPE = (
    "systolic_units",
    "array_rows",
    "array_columns",
    "accumulator_bytes",
    "register_banks",
    "registers_per_thread",
)
"""Numbers that decide which programs there are: they cannot be moved under a recorded one."""
PRICES = ("energy.", "sm_milliwatts", "constant_milliwatts")
"""How the keys of numbers begin that change prices and no times."""
SPREAD = 0.3


class Workload(Protocol):
    """Something to execute. Workloads that are equal are executed once."""

    def program(self, machine: Machine) -> Program:
        """The program for a machine."""


@dataclass(frozen=True)
class Sizes:
    """How large the experiments are: `FULL` for the table, smaller for tests."""

    shrink: int = 1
    """What sides of products are divided by."""
    rows: int = 12800
    """Of B-1."""
    loop: int = 64
    """Turns of a microbenchmark's loop, …"""
    turns: int = 8
    """… and of one whose body is long."""
    chunks: int = 2560
    """Chunks that a copy from or to DRAM moves."""
    network: str = ""
    """The network that stands for all, if one does."""
    batch: int = 64
    """The largest batch."""
    image: int = 0
    """Side of a network's images; 0: the network's own."""
    hybrid: int = 0
    """The same of networks that are not matrix products alone."""
    products: int | None = None
    """How many products are compared with another simulator; None: all."""

    def side(self, full: int) -> int:
        """The side of a square product."""
        return full // self.shrink


FULL = Sizes()


@dataclass
class Lab:
    """Executed workloads, and machines with some numbers moved: key → factor. A key `sma3:lsma_bubble` moves one target's only."""

    sizes: Sizes = FULL
    moved: Mapping[str, float] = field(default_factory=dict)
    records: dict[tuple[Workload, str], Record] = field(default_factory=dict)
    replays: dict[tuple[Workload, str, str], Replay] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    """Targets that were asked for."""

    def machine(self, target: str) -> Machine:
        """A target, with what is moved."""
        self.asked.add(target)
        return _machine(target, self._moved(target))

    def _moved(self, target: str, prices: bool = True) -> tuple[tuple[str, float], ...]:
        """The factors that concern a target: those of keys `TARGET:key` only if it is that one."""
        named = {k.rpartition(":"): f for k, f in self.moved.items()}
        mine = [(key, f) for (only, _, key), f in named.items() if only in ("", target)]
        return tuple((k, f) for k, f in mine if prices or not k.startswith(PRICES))

    def run(self, workload: Workload, target: str) -> Replay:
        """A workload on a target."""
        machine = self.machine(target)
        timed = _machine(target, self._moved(target, prices=False))
        key = (workload, target, timed.hash)
        if key not in self.replays:
            self.replays[key] = Replay.of(self.record(workload, target), timed)
        return replace(self.replays[key], machine=machine)

    def record(self, workload: Workload, target: str) -> Record:
        """A workload compiled for a target as it is, and executed."""
        key = (workload, target)
        if key not in self.records:
            program = workload.program(_machine(target))
            self.records[key] = executed(program)
        return self.records[key]

    def moving(self, key: str, factor: float) -> Lab:
        """The same executions on machines with a number multiplied."""
        return replace(self, moved={**self.moved, key: factor}, asked=set())

    def still(self) -> Lab:
        """The same executions on machines as they are."""
        return replace(self, moved={}, asked=set())

    def priced(self, machine: Machine, table: str) -> Machine:
        """A machine at another table's prices, of which those that are moved stay moved."""
        plain = machine.with_(energy=table)
        moved = {k: f for k, f in self.moved.items() if k.startswith("energy.")}
        return plain.with_(**_scaled(plain, moved)) if moved else plain

    def unsure(self) -> Iterator[str]:
        """Keys of the numbers that nobody but us stands for, of all machines asked for."""
        machines = [_machine(t) for t in sorted(self.asked)]
        keys = {k: None for m in machines for k, p in m.provenance.items() if p.kind in UNSURE}
        return (k for k in sorted(keys) if k not in SHAPE)


@cache
def _machine(target: str, factors: tuple[tuple[str, float], ...] = ()) -> Machine:
    """A target with some of its numbers multiplied; keys that it has not are left out.

    `dstc+collector_window=4` is a target with a number of its own, for what programs are recorded with.
    """
    if not factors:
        name, *own = target.split("+")
        pairs = (setting.split("=") for setting in own)
        return Machine.load(name).with_(**{key: int(value) for key, value in pairs})
    machine = _machine(target)
    return machine.with_(**_scaled(machine, dict(factors)))


def _scaled(machine: Machine, factors: Mapping[str, float]) -> dict[str, Any]:
    """Values for `Machine.with_`, of the keys that the machine has."""
    flat = _numbers(machine)
    return {key: scaled(key, flat[key], f) for key, f in factors.items() if key in flat}


def _numbers(machine: Machine) -> dict[str, float]:
    units = {
        f"units.{n}.{k}": getattr(u, k)
        for n, u in machine.units.items()
        for k in ("latency", "interval")
    }
    energy = {f"energy.{event}": pj for event, pj in machine.energy.items()}
    own = {key: getattr(machine, key) for key in NUMBERS}
    return {k: v for k, v in {**own, **units, **energy}.items() if k in machine.provenance}


def scaled(key: str, value: float, factor: float) -> float:
    """A number multiplied. Whole ones are rounded away from where they were, and stay legal; a switch is flipped.

    >>> scaled("sms", 80, 1.3), scaled("units.alu.latency", 1, 1.3), scaled("energy.l2", 60.0, 0.5)
    (104, 2, 30.0)
    >>> scaled("units.alu.latency", 1, 0.7), scaled("weight_double_buffer", 1, 0.7)
    (1, 0)
    """
    if key.startswith("energy."):
        return value * factor
    least, most = (NUMBERS.get(key, {"least": 1, "most": math.inf})[k] for k in ("least", "most"))
    if most == 1:
        return 1 - value
    rounded = math.ceil(value * factor) if factor > 1 else math.floor(value * factor)
    return int(min(max(rounded, least), most))


Table = Sequence[Sequence[str | int | float]]
"""Titles, then rows."""


@dataclass(frozen=True)
class Claim:
    """A row to be."""

    name: str
    what: str
    """What is compared, with its unit."""
    paper: tuple[float, float]
    """The number, as a range; one end is infinite where only a direction is claimed."""
    kind: str
    """One of CLASSES."""
    tolerance: float
    """By how much ours may lie outside, relative to the nearest end."""
    ours: Callable[[Lab], float]
    how: str
    """How ours is obtained, and where theirs is from."""
    moves: str
    """Key of a number of the machines that the row depends on; "" if it depends on the shape of the arrays only."""
    swept: bool = True
    """Whether the row has an interval."""
    still: str = ""
    """Why no number moves it, or why it has no interval."""
    parts: Callable[[Lab], Table] | None = None
    """What the number is made of."""

    def row(self, lab: Lab, interval: bool = True) -> Row:
        """Ours beside theirs; `interval`: with one, if the row is swept."""
        fresh = replace(lab, asked=set())
        ours = self.ours(fresh)
        swept = self.interval(fresh, ours) if interval and self.swept else None
        return Row(self, ours, swept, self.parts(lab) if self.parts else ())

    def interval(self, lab: Lab, ours: float) -> Interval:
        """The range of ours as each number that nobody but us stands for moves by `SPREAD`, one at a time.

        It stays where the machine could no longer execute the recorded programs (E726).
        """
        found = Interval(ours, ours)
        for key, factor in itertools.product(lab.unsure(), (1 - SPREAD, 1 + SPREAD)):
            try:
                found = found.including(self.ours(lab.moving(key, factor)), key)
            except KnapperError as e:
                if e.code != "E726":
                    raise
        return found


@dataclass(frozen=True)
class Interval:
    """A range, and which numbers make its ends."""

    low: float
    high: float
    low_by: str = ""
    high_by: str = ""

    def including(self, value: float, by: str) -> Interval:
        """The range that holds a value as well."""
        if value < self.low:
            return replace(self, low=value, low_by=by)
        if value > self.high:
            return replace(self, high=value, high_by=by)
        return self


@dataclass(frozen=True)
class Row:
    """A claim and what came out."""

    claim: Claim
    ours: float
    interval: Interval | None = None
    parts: Table = ()

    @property
    def ratio(self) -> float:
        """Ours by the nearest end of theirs; 1 inside."""
        low, high = self.claim.paper
        nearest = min(max(self.ours, low), high)
        return self.ours / nearest if nearest else math.inf

    @property
    def passes(self) -> bool:
        """Whether ours is theirs, within the tolerance."""
        return math.isfinite(self.ours) and abs(self.ratio - 1) <= self.claim.tolerance + ROUNDING

    @property
    def fails(self) -> bool:
        """Whether a number that counts as evidence is missed."""
        return self.claim.kind in EVIDENCE and not self.passes

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        low, high = (x if math.isfinite(x) else None for x in self.claim.paper)
        return {
            "claim": f"{self.claim.name}: {self.claim.what}",
            "paper": low if low == high else [low, high],
            "ours": self.ours,
            "ratio": self.ratio,
            "class": self.claim.kind,
            "tolerance": self.claim.tolerance,
            "pass": self.passes,
            "how": self.claim.how,
            "interval": [self.interval.low, self.interval.high] if self.interval else None,
            **({"parts": self.parts} if self.parts else {}),
        }


ROUNDING = 1e-9
"""Of a ratio that is exact on paper."""
