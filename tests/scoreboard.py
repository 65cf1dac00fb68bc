"""The oracle of the timing pass: an SM cycle by cycle, in dicts and plain loops, with nothing shared but the machine's numbers.

`runtime/timing` knows when a result will be ready the moment an instruction issues, and skips cycles in which nothing happens.
Here every cycle is visited, every sub-core looks at every warp, and every warp at every register.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from math import ceil
from typing import Any

from knapper.isa.core import Instr, Pred, Reg, UReg
from knapper.isa.machine import Machine

TICK = 256
STEADY = 1_000_000
"""Cycles after which a program counts as hung."""


@dataclass(frozen=True)
class Step:
    """One instruction that a warp came to."""

    pc: int
    skipped: bool
    """Its guard left no lane."""
    jumped: bool
    """The next step is not the instruction behind it."""


@dataclass(frozen=True)
class Memory:
    """Where global accesses hit: the shares that miss, and the ticks that a sector takes of the SM's bandwidths."""

    l1_misses: Fraction
    l2_misses: Fraction
    written_back: Fraction
    l2_ticks: float
    dram_ticks: float


@dataclass(eq=False)
class Warp:
    age: tuple[int, int]
    place: int
    subcore: int
    steps: list[Step]
    at: int = 0
    """The next step."""
    since: int = 0
    """The first cycle in which it may issue, as far as branches, barriers and its last issue decide."""
    ready: dict[Any, int] = field(default_factory=lambda: defaultdict(int))
    waits: bool = False
    commands: list[Any] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)


class Scoreboard:
    """`code`, what each warp of each block does (`blocks[b][w]`), and how many sectors and wavefronts an access of each takes."""

    def __init__(
        self,
        machine: Machine,
        code: list[Instr],
        blocks: list[list[list[Step]]],
        resident: int,
        sectors: dict[int, int],
        wavefronts: dict[int, int],
        memory: Memory,
        systolic_pcs: frozenset[int] = frozenset(),
        switches: frozenset[int] = frozenset(),
    ) -> None:
        self.m, self.code, self.blocks, self.resident = machine, code, blocks, resident
        self.sectors, self.wavefronts, self.memory = sectors, wavefronts, memory
        self.systolic_pcs, self.switches = systolic_pcs, switches
        self.warps: list[Warp] = []
        self.waiting = list(enumerate(blocks))
        self.last: dict[int, Warp] = {}
        self.port: dict[Any, int] = defaultdict(int)
        self.blocked: dict[int, int] = defaultdict(int)
        self.l2 = self.dram = 0
        self.array = self.weights = self.swapped = 0
        self.begun: list[int] = []
        self.issued: list[tuple[int, int, int]] = []

    # --- the clock

    def run(self) -> int:
        """Cycles until the last warp has issued its last instruction and the queues are empty."""
        for place in range(self.resident):
            self.start(place, 0)
        for t in count():
            assert t < STEADY, "it hangs"
            if not self.warps:
                return ceil(Fraction(max(t * TICK, self.l2, self.dram), TICK))
            ended: list[int] = []
            for s in range(self.m.subcores):
                if self.blocked[s] <= t and (warp := self.pick(s, t)):
                    self.issue(warp, t, ended)
            for place in ended:
                self.start(place, t + 1)
        raise AssertionError

    def start(self, place: int, t: int) -> None:
        if not self.waiting:
            return
        number, warps = self.waiting.pop(0)
        for i, steps in enumerate(warps):
            subcore = (place * len(warps) + i) % self.m.subcores
            self.warps.append(Warp((number, i), place, subcore, steps, since=t))

    def pick(self, s: int, t: int) -> Warp | None:
        mine = sorted((w for w in self.warps if w.subcore == s), key=lambda w: w.age)
        last = self.last.get(s)
        if last in mine and self.can_issue(last, t):
            return last
        return next((w for w in mine if self.can_issue(w, t)), None)

    # --- may it issue?

    def can_issue(self, w: Warp, t: int) -> bool:
        if w.waits or w.since > t:
            return False
        step = w.steps[w.at]
        i = self.code[step.pc]
        if step.skipped:
            return i.guard in (7, 15) or w.ready["P", int(i.guard.pred)] <= t * TICK
        if any(w.ready[r] > t * TICK for r, _ in self.registers(i)):
            return False
        if i.mnemonic == "SMA.WAIT" and len(w.groups) > i.n and w.groups[-1 - i.n] > t * TICK:
            return False
        if i.mnemonic == "SMA.COMMIT":
            queued = [g for g in self.begun if g >= (t + 1) * TICK]
            return len(queued) < self.m.lsma_queue
        return self.port[self.port_of(i, w)] < (t + 1) * TICK

    def registers(self, i: Instr) -> list[tuple[Any, bool]]:
        """Each register that it names, and whether its result goes there in the scoreboard's sense."""
        quiet = i.mnemonic in ("LSMA", "SMA.LDB", "SMA.SWAP")
        return [
            ((type(a.first).prefix or "P", int(a.first) + n), "w" in a.use and not quiet)
            for a in i.accesses()
            if isinstance(a.first, (Reg, UReg, Pred))
            for n in range(a.words)
        ]

    def port_of(self, i: Instr, w: Warp) -> Any:
        unit = self.m.units[i.resource()]
        return (unit.port or i.resource(), w.subcore if unit.per == "subcore" else "sm")

    # --- issue

    def issue(self, w: Warp, t: int, ended: list[int]) -> None:
        step = w.steps[w.at]
        i = self.code[step.pc]
        self.issued.append((t, w.subcore, step.pc))
        self.last[w.subcore] = w
        w.at += 1
        w.since = t + 1
        if not step.skipped:
            self.execute(w, i, step, t)
        if w.at == len(w.steps):
            self.warps.remove(w)
            del self.last[w.subcore]
            if not any(v.age[0] == w.age[0] for v in self.warps):
                ended.append(w.place)

    def execute(self, w: Warp, i: Instr, step: Step, t: int) -> None:
        late = self.conflicts(i)
        self.blocked[w.subcore] = w.since = t + 1 + late
        start = (t + late) * TICK
        done = start + self.access(w, i, step, start)
        for r, written in self.registers(i):
            if written:
                w.ready[r] = done
        if step.jumped:
            w.since = max(w.since, ceil(Fraction(done, TICK)))
        if i.mnemonic in ("BAR", "MODE"):
            self.barrier(w, i, step, t)
        if i.mnemonic in ("SMA.LDB", "SMA.SWAP", "LSMA"):
            w.commands.append(i)
        if i.mnemonic == "SMA.COMMIT":
            self.commit(w, done)

    def conflicts(self, i: Instr) -> int:
        """Cycles for registers of one bank that do not come with the issue; operands wider than a pair are not counted."""
        read = {
            int(a.first) + n
            for a in i.accesses()
            if type(a.first) is Reg and a.use == "r" and a.words <= 2
            for n in range(a.words)
        }
        banks = [
            sum(r % self.m.register_banks == b for r in read) for b in range(self.m.register_banks)
        ]
        return max(0, ceil(Fraction(max(banks), self.m.register_bank_reads)) - 1)

    def access(self, w: Warp, i: Instr, step: Step, start: int) -> int:
        """Take what the instruction needs from `start` on; ticks until its result."""
        unit, port = self.m.units[i.resource()], self.port_of(i, w)
        if i.mnemonic == "SMA.COMMIT":
            return unit.latency * TICK
        one = unit.interval * TICK
        if step.pc in self.systolic_pcs and i.resource() == "lsu_shared":
            one = one * self.m.shared_banks // (self.m.shared_banks - self.m.systolic_banks)
        passes = max(
            Fraction(self.sectors.get(step.pc, 0), 4),
            Fraction(self.wavefronts.get(step.pc, 0)),
            Fraction(1),
        )
        takes = round(one * passes) if i.resource().startswith("lsu_") else one
        begins = max(start, self.port[port])
        self.port[port] = begins + takes
        if i.resource() != "lsu_global":
            return begins + takes - one + unit.latency * TICK - start
        loads = any(written for _, written in self.registers(i))
        misses = self.memory.l1_misses if loads else Fraction(1)
        to_dram = self.memory.l2_misses if loads else self.memory.written_back
        s, taken = self.sectors.get(step.pc, 0), begins
        if ticks := round(float(s * misses) * self.memory.l2_ticks):
            self.l2 = max(begins, self.l2) + ticks
            taken = max(taken, self.l2)
        if ticks := round(float(s * misses * to_dram) * self.memory.dram_ticks):
            self.dram = max(begins, self.dram) + ticks
            taken = max(taken, self.dram)
        return taken + takes - one + (self.latency() if loads else unit.latency * TICK) - start

    def latency(self) -> int:
        m, l1, l2 = self.m, self.memory.l1_misses, self.memory.l2_misses
        cycles = (1 - l1) * m.l1_latency + l1 * (1 - l2) * m.l2_latency + l1 * l2 * m.dram_latency
        return round(TICK * float(cycles))

    # --- barriers and groups

    def barrier(self, w: Warp, i: Instr, step: Step, t: int) -> None:
        w.waits = True
        block = [v for v in self.warps if v.age[0] == w.age[0]]
        if not all(v.waits for v in block):
            return
        at = t
        latency = self.m.units[i.resource()].latency
        if i.mnemonic == "MODE":
            pending = [r for v in block for r in [*v.ready.values(), *v.groups]]
            at = max([at, *(ceil(Fraction(p, TICK)) for p in pending)])
            latency += self.m.mode_switch_cycles if step.pc in self.switches else 0
        for v in block:
            v.waits, v.since = False, max(t + 1, at + latency)

    def commit(self, w: Warp, arrival: int) -> None:
        now = begins = max(arrival, self.array)
        for i in w.commands:
            if i.mnemonic == "LSMA":
                now += (int(i.m) + self.m.lsma_bubble) * TICK
            elif i.mnemonic == "SMA.LDB" and self.m.weight_double_buffer:
                self.weights = max(arrival, self.weights, self.swapped) + self.m.array_rows * TICK
            elif i.mnemonic == "SMA.LDB":
                now += self.m.array_rows * TICK
            elif self.m.weight_double_buffer:
                now = self.swapped = max(now, self.weights)
        self.array = now
        self.begun.append(begins)
        w.commands = []
        w.groups.append(now + self.m.lsma_fill * TICK)
