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

from knapper.isa.core import Instr
from knapper.isa.machine import Machine
from knapper.isa.operands import Pred, Reg, UReg

TICK = 256
LOADS = ("SMA.LDB", "ISMA.LDB", "ISMA.LDB.N")
COMMANDS = (*LOADS, "SMA.SWAP", "LSMA", "ILSMA", "ILSMA.N")
"""What joins a queue and is of the array alone."""
TRANSFERS = ("FILL.DUP", "DMA.LD")
PRODUCTS = ("SPWMMA.323216.F32", "OHMMA.8161.F32")
PUSHES = ("IM2COL.PUSH", "IM2COL.IPUSH", "GATHK.PUSH")
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
    work: tuple[int, int, int] | None = None
    """Of an SPWMMA: cycles of the accumulation buffer's banks, OHMMAs, and passes over shared memory."""


@dataclass(frozen=True)
class Memory:
    """Where global accesses hit: the shares that miss, and the ticks that a sector takes of the SM's bandwidths."""

    l1_misses: Fraction
    l2_misses: Fraction
    written_back: Fraction
    l2_ticks: float
    dram_ticks: float


@dataclass(frozen=True)
class Command:
    """What a command to an engine takes: of the array or of DRAM, and of the vector memory's port, in ticks."""

    work: int = 0
    dram: int = 0
    l2: int = 0
    port: int = 0


@dataclass(eq=False)
class Group:
    """Commands that a warp committed; done at a tick that is known once its engine has come to its end."""

    commands: list[Any]
    arrival: int
    begun: int | None = None
    done: int | None = None


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
    groups: list[Group] = field(default_factory=list)


def nearest(ticks: Fraction) -> int:
    """The nearest whole number, a half up."""
    return int(ticks + Fraction(1, 2))


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
        takes: dict[int, Command] | None = None,
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
        self.takes, self.vector, self.dma, self.landed = takes or {}, 0, 0, 0
        self.queues: dict[str, list[Group]] = {"array": [], "dma": []}
        self.all: dict[str, list[Group]] = {"array": [], "dma": []}
        self.issued: list[tuple[int, int, int]] = []

    # --- the clock

    def run(self) -> int:
        """Cycles until the last warp has issued its last instruction and the queues are empty."""
        for place in range(self.resident):
            self.start(place, 0)
        for t in count():
            assert t < STEADY, "it hangs"
            if not self.warps:
                self.engines(None)
                return ceil(Fraction(max(t * TICK, self.l2, self.dram, self.vector), TICK))
            self.engines(t * TICK)
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
            idle = not self.left_out(i) or self.port[self.port_of(i, w)] < (t + 1) * TICK
            return idle and (i.guard in (7, 15) or w.ready["P", int(i.guard.pred)] <= t * TICK)
        if any(w.ready[r] > t * TICK for r, _ in self.registers(i)):
            return False
        waits = "stored" if i.mnemonic in PRODUCTS else "sums" if i.mnemonic == "ACC.LD" else ""
        if waits and w.ready[waits] > t * TICK:
            return False
        if i.mnemonic == "SMA.WAIT":
            earlier = w.groups[: len(w.groups) - i.n]
            if any(g.done is None or g.done > t * TICK for g in earlier):
                return False
        if i.mnemonic == "SMA.COMMIT":
            groups = self.all[self.engine_of(w.commands)]
            queued = [g for g in groups if g.begun is None or g.begun >= (t + 1) * TICK]
            return len(queued) < self.m.lsma_queue
        return self.port[self.port_of(i, w)] < (t + 1) * TICK

    def registers(self, i: Instr) -> list[tuple[Any, bool]]:
        """Each register that it names, and whether its result goes there in the scoreboard's sense."""
        quiet = i.mnemonic in (*COMMANDS, *PUSHES)
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
        elif ticks := self.left_out(i):
            port = self.port_of(i, w)
            self.port[port] = max(t * TICK, self.port[port]) + ticks
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
        if i.mnemonic == "ACC.ST":
            w.ready["stored"] = done
        if i.mnemonic in PRODUCTS:
            w.ready["sums"] = self.port[self.port_of(i, w)] + self.turn(i, step)[1]
        if step.jumped:
            w.since = max(w.since, ceil(Fraction(done, TICK)))
        if i.mnemonic in ("BAR", "MODE"):
            self.barrier(w, i, step, t)
        if i.mnemonic in (*COMMANDS, *TRANSFERS, *PUSHES):
            w.commands.append((i, step.pc))
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
        one, latency = self.turn(i, step)
        if step.pc in self.systolic_pcs and i.resource() == "lsu_shared":
            one = one * self.m.shared_banks // (self.m.shared_banks - self.m.systolic_banks)
        passes = max(
            Fraction(self.sectors.get(step.pc, 0), 4),
            Fraction(self.wavefronts.get(step.pc, 0)),
            Fraction(1),
        )
        memory = i.resource().startswith("lsu_") or i.mnemonic == "BMENC"
        takes = round(one * passes) if memory else one
        begins = max(start, self.port[port])
        self.port[port] = begins + takes
        if reads := self.reads(i, step):
            shared = ("lsu_shared", "sm")
            begun = max(begins, self.port[shared])
            self.port[shared] = begun + int(reads * self.m.units["lsu_shared"].interval * TICK)
            self.port[port] = max(self.port[port], self.port[shared])
        taken = self.pass_port(begins, step.pc) if memory else begins
        if not self.is_global(i):
            return taken + takes - one + latency - start
        loads = i.mnemonic != "BMENC" and any(written for _, written in self.registers(i))
        misses = self.memory.l1_misses if loads else Fraction(1)
        to_dram = self.memory.l2_misses if loads else self.memory.written_back
        s = self.sectors.get(step.pc, 0)
        if ticks := round(float(s * misses) * self.memory.l2_ticks):
            self.l2 = max(begins, self.l2) + ticks
            taken = max(taken, self.l2)
        if ticks := round(float(s * misses * to_dram) * self.memory.dram_ticks):
            self.dram = max(begins, self.dram) + ticks
            taken = max(taken, self.dram)
        if i.mnemonic == "BMENC":  # a bitmap comes from no memory
            return begins + takes - one + latency - start
        return taken + takes - one + (self.latency() if loads else latency) - start

    def is_global(self, i: Any) -> bool:
        """Whether it loads from global memory or stores there."""
        return i.resource() == "lsu_global" or (i.mnemonic == "BMENC" and i.memory.name == "G")

    def ohmma(self) -> Fraction:
        """Ticks of one: a product of 16×16×16, on whichever wiring, takes as long as 32."""
        m = self.m
        return Fraction(TICK * m.units["tensor"].interval * m.units["outer"].interval, 32)

    def reads(self, i: Instr, step: Step) -> Fraction:
        """Passes over shared memory for the values of a product of condensed vectors."""
        if i.mnemonic == "OHMMA.8161.F32":
            return Fraction(1, 8)
        return Fraction(step.work[2] if step.work else 0)

    def left_out(self, i: Instr) -> int:
        """Ticks that an instruction takes its port though its guard leaves it out."""
        percent = self.m.pred_off_percent if i.mnemonic == "OHMMA.8161.F32" else 0
        return nearest(self.ohmma() * percent / 100) if percent else 0

    def turn(self, i: Any, step: Step) -> tuple[int, int]:
        """Ticks that an instruction takes its port, and until its result."""
        m, unit = self.m, self.m.units[i.resource()]
        interval, latency, name = unit.interval * TICK, unit.latency * TICK, i.mnemonic
        if name == "SPWMMA.323216.F32":
            cycles, issued, _ = step.work or (0, 0, 0)
            busy = max(issued + Fraction(m.pred_off_percent * (128 - issued), 100), cycles)
            return nearest(self.ohmma() * (busy + Fraction(16 * m.bohmma_percent, 100))), latency
        if name == "OHMMA.8161.F32":
            return int(self.ohmma()), latency
        if name == "OWMMA.161616.F32":
            return int(32 * self.ohmma()), latency + int(32 * self.ohmma())
        if name == "BOHMMA.32321":
            return nearest(self.ohmma() * m.bohmma_percent / 100), latency
        if name in ("ACC.LD", "ACC.ST") and "sparse" in m.extensions:
            return i.count * interval, latency + (i.count - 1) * interval
        turns = 1 + (name == "BMENC")
        return turns * interval, turns * latency

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
            self.engines(None)
            done = [g.done or 0 for v in block for g in v.groups]
            pending = [*done, *(r for v in block for r in v.ready.values())]
            at = max([at, *(ceil(Fraction(p, TICK)) for p in pending)])
            latency += self.m.mode_switch_cycles if step.pc in self.switches else 0
        for v in block:
            v.waits, v.since = False, max(t + 1, at + latency)

    def commit(self, w: Warp, arrival: int) -> None:
        engine = self.engine_of(w.commands)
        group = Group(w.commands, arrival)
        w.groups.append(group)
        self.all[engine].append(group)
        self.queues[engine].append(group)
        w.commands = []
        if not self.m.vector_word:
            self.engines(None)

    def engine_of(self, commands: list[Any]) -> str:
        """Whose queue a group joins."""
        moves = commands and all(i.mnemonic in TRANSFERS for i, _ in commands)
        return "dma" if moves else "array"

    # --- engines

    def engines(self, until: int | None) -> None:
        """Take up every command whose time has come; None: all there are. The array is first where both come to something."""
        while True:
            due = {
                engine: self.start_of(groups[0]) for engine, groups in self.queues.items() if groups
            }
            if not due:
                return
            engine = min(due, key=lambda name: (due[name], name))
            if until is not None and due[engine] > until:
                return
            self.take_up(engine, due[engine])

    def start_of(self, g: Group) -> int:
        """When the first command that is left of a group begins."""
        if not g.commands:
            return g.arrival
        kind = g.commands[0][0].mnemonic
        if kind in LOADS and self.m.weight_double_buffer:
            return max(g.arrival, self.weights, self.swapped)
        if kind in TRANSFERS:
            return max(g.arrival, self.dma)
        if kind == "SMA.SWAP" and self.m.weight_double_buffer:
            return g.arrival
        return max(g.arrival, self.array)

    def take_up(self, engine: str, start: int) -> None:
        g = self.queues[engine][0]
        if g.begun is None:
            if engine == "array":
                g.begun = self.array = max(self.array, g.arrival)
            else:
                g.begun = max(self.dma, g.arrival)
        if not g.commands:
            self.queues[engine].pop(0)
            fill = 0 if self.m.dataflow == "ws" and self.drained_by_pass() else self.m.lsma_fill
            g.done = self.array + fill * TICK if engine == "array" else self.landed
            return
        i, pc = g.commands.pop(0)
        takes = self.takes.get(pc, Command())
        if i.mnemonic in TRANSFERS:
            self.move(engine, i, pc, start, takes)
        elif i.mnemonic == "SMA.SWAP":
            if self.m.weight_double_buffer:
                self.array = self.swapped = max(self.array, self.weights)
        elif i.mnemonic in LOADS and self.m.weight_double_buffer:
            self.pass_port(start, pc)
            self.weights = start + max(self.m.array_rows * TICK, takes.port)
        else:
            self.pass_port(start, pc)
            self.array = start + max(self.work(i, takes), takes.port)

    def work(self, i: Instr, takes: Command) -> int:
        """Ticks that a pass takes of the array by itself."""
        if i.mnemonic in LOADS:
            return self.m.array_rows * TICK
        if i.mnemonic in PUSHES:
            return takes.work
        rows = int(i.m)
        if self.m.dataflow == "ws":
            alone = rows + self.m.lsma_fill
            rows = max(rows, self.m.array_rows) if self.m.weight_double_buffer else alone
        return (rows + self.m.lsma_bubble) * TICK

    def drained_by_pass(self) -> bool:
        return self.m.accumulator_bytes > 0 and not self.m.weight_double_buffer

    def pass_port(self, start: int, pc: int) -> int:
        """The vector memory's port serves an instruction that asks at `start`; when it is done."""
        ticks = self.takes.get(pc, Command()).port
        if not ticks:
            return start
        self.vector = max(self.vector, start) + ticks
        return self.vector

    def move(self, engine: str, i: Instr, pc: int, start: int, takes: Command) -> None:
        unit = self.m.units["dma"]
        end = max(start + unit.interval * TICK, self.pass_port(start, pc))
        if takes.l2:
            self.l2 = max(start, self.l2) + takes.l2
            end = max(end, self.l2)
        if takes.dram:
            self.dram = max(start, self.dram) + takes.dram
            end = max(end, self.dram)
        self.dma = end
        self.landed = end + (unit.latency + self.m.dram_latency) * TICK
        if engine == "array":
            self.array = max(self.array, self.landed)
            self.weights = max(self.weights, self.landed)
