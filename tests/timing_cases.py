"""Random programs on random machines for the timing pass: code, what each warp comes to, what an engine would have counted."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from scoreboard import Memory, Scoreboard, Step

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.machine import Machine
from knapper.isa.modifiers import (
    SR,
    Beside,
    Bits32,
    Byte,
    Cmp,
    Element,
    Few,
    FloatType,
    Fn,
    Half,
    IntType,
    Mode,
    Nibble,
    Pair,
    Rounding,
    Scalar,
    Space,
    Start,
    Trans,
    Width,
)
from knapper.isa.modifiers import Memory as Place
from knapper.isa.operands import Extent, Guard, Label, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import Kernel, Launch
from knapper.isa.systolic import Array
from knapper.runtime.counters import Counts, counters
from knapper.runtime.decode import decode
from knapper.runtime.paths import END, Paths, Trail, work
from knapper.runtime.timing.launch import Run, Timer

REGISTERS = 64
LONGEST = 10_000
"""Instructions of a random case: the oracle is slow."""
UNGUARDED = Guard(7)


@dataclass
class Program:
    """Straight code, loops and branches being written, and a walk through it for each warp."""

    rng: random.Random
    tensor: bool = True
    systolic: bool = False
    sparse: bool = False
    code: list[Instr | Callable[[], Instr]] = field(default_factory=list)
    walks: list[Callable[[random.Random, list[Step]], None]] = field(default_factory=list)

    def emit(self, instr: Instr, skippable: bool = False) -> None:
        """An instruction that every warp comes to, and that some skip."""
        pc = len(self.code)
        self.code.append(instr)

        def walk(rng: random.Random, steps: list[Step]) -> None:
            work = None
            if isinstance(instr, i.SPWMMA):
                ohmmas = rng.choice((0, 5, 24, 128))
                work = (ohmmas + rng.choice((0, 3, 100)), ohmmas, rng.choice((0, 1, 7, 16)))
            steps.append(Step(pc, skippable and rng.random() < 0.3, False, work))

        self.walks.append(walk)

    def some(self) -> None:
        """A few random instructions."""
        for _ in range(self.rng.randrange(1, 7)):
            guard = Guard(self.rng.randrange(6)) if self.rng.random() < 0.2 else UNGUARDED
            instr = self.instruction(guard)
            self.emit(instr, skippable=instr.guard != 7)

    def block(
        self, inside: Callable[[], None]
    ) -> list[Callable[[random.Random, list[Step]], None]]:
        """Write something; its walks, taken out of the list."""
        outer, self.walks = self.walks, []
        inside()
        inner, self.walks = self.walks, outer
        return inner

    def loop(self, inside: Callable[[], None], trips: Callable[[random.Random], int]) -> None:
        start = len(self.code)
        inner = self.block(inside)
        end = len(self.code)
        self.code.append(i.BRA(target=Label(start), guard=Guard(self.rng.randrange(6))))

        def walk(rng: random.Random, steps: list[Step]) -> None:
            n = trips(rng)
            for trip in range(n):
                for w in inner:
                    w(rng, steps)
                steps.append(Step(end, trip == n - 1, trip < n - 1))

        self.walks.append(walk)

    def branch(self, inside: Callable[[], None]) -> None:
        at = len(self.code)
        self.code.append(i.NOP())
        inner = self.block(inside)
        end = len(self.code)
        self.code[at] = i.BRA(target=Label(end), guard=Guard(self.rng.randrange(6)))
        self.emit(i.NOP())  # so that the target is not the instruction behind the branch

        def walk(rng: random.Random, steps: list[Step]) -> None:
            over = rng.random() < 0.5
            steps.append(Step(at, not over, over))
            if not over:
                for w in inner:
                    w(rng, steps)

        self.walks.insert(len(self.walks) - 1, walk)

    def walk(self, rng: random.Random) -> list[Step]:
        """What one warp comes to."""
        steps: list[Step] = []
        for w in self.walks:
            w(rng, steps)
        return steps

    # --- random operands

    def reg(self, words: int = 1) -> Reg:
        return Reg(self.rng.randrange(0, REGISTERS - words + 1, min(words, 4)))

    def ureg(self, words: int = 1) -> UReg:
        return UReg(self.rng.randrange(0, 16, words))

    def src(self) -> Src:
        return Src.of(self.rng.choice((self.reg(), self.ureg(), 7)))

    def instruction(self, guard: Guard) -> Instr:
        rng, R, U, S = self.rng, self.reg, self.ureg, self.src
        width = rng.choice((Width._32, Width._64, Width._128))
        both: list[Callable[[], Instr]] = [
            lambda: i.IADD(type=IntType.S32, d=R(), a=R(), b=S(), guard=guard),
            lambda: i.IMUL(type=IntType.U32, d=R(), a=R(), b=S(), guard=guard),
            lambda: i.ISETP(cmp=Cmp.LT, type=IntType.S32, p=Pred(rng.randrange(6)), a=R(), b=S(), guard=guard),
            lambda: i.CVT(to=Scalar.F16, frm=Scalar.F32, rounding=Rounding.RN, d=R(), a=R(), guard=guard),
            lambda: i.UIADD(width=Bits32._64, d=U(2), a=U(2), b=Src.of(1)),
            lambda: i.S2R(sr=SR.LANEID, d=R(), guard=guard),
            lambda: i.LDG(width=width, d=R(width.words), base=U(2), a=R(), offset=Signed(0), guard=guard),
            lambda: i.STG(width=width, base=U(2), a=R(), offset=Signed(0), s=R(width.words), guard=guard),
            lambda: i.LDS(width=width, d=R(width.words), base=U(), a=R(), offset=Signed(0), guard=guard),
            lambda: i.STS(width=width, base=U(), a=R(), offset=Signed(0), s=R(width.words), guard=guard),
            lambda: i.LDL(width=width, d=R(width.words), a=R(), offset=Signed(0), guard=guard),
        ]  # fmt: skip
        simd: list[Callable[[], Instr]] = [
            lambda: i.FFMA(type=FloatType.F32, d=R(), a=R(), b=S(), c=R(), guard=guard),
            lambda: i.FADD(type=FloatType.F64, d=R(2), a=R(2), b=Src.of(R(2)), guard=guard),
            lambda: i.MUFU(fn=Fn.EX2, type=FloatType.F32, d=R(), a=R(), guard=guard),
        ]
        tensor: list[Callable[[], Instr]] = [
            lambda: i.HMMA(type=Half.F16, d=R(8), a=R(4), b=R(4), c=R(8), guard=guard),
            lambda: i.IMMA(Byte.U8, Few.S8, d=R(8), a=R(4), b=R(4), c=R(8), guard=guard),
            lambda: i.LDSM(
                trans=Trans.N, d=R(4), base=U(), offset=Signed(0), pitch=Unsigned(32), guard=guard
            ),
        ]
        chosen = both + simd * (not self.systolic) + tensor * self.tensor
        return rng.choice(chosen + self.outer(guard) * self.sparse)()

    def outer(self, guard: Guard) -> list[Callable[[], Instr]]:
        """Products of condensed vectors, and what goes with them."""
        rng, R, U = self.rng, self.reg, self.ureg

        def vectors() -> dict[str, Any]:
            start, bm = R(2), R()
            return {"type": Half.F16, "c": Src.of(1024), "start": start, "bm": bm, "guard": guard}

        def step() -> dict[str, Any]:
            return {"k": Unsigned(3), "i": Unsigned(rng.randrange(4)), "j": Unsigned(1)}

        count = Extent(rng.choice((1, 8, 32)))
        return [
            lambda: i.SPWMMA(**vectors()),
            lambda: i.SPWMMA(**vectors()),
            lambda: i.OHMMA(**vectors(), **step()),
            lambda: i.OHMMA(**vectors(), **step()),
            lambda: i.BOHMMA(d=R(), bm=R(), k=Unsigned(2), guard=guard),
            lambda: i.OWMMA(type=Half.F16, d=R(8), a=R(4), b=R(4), c=R(8), guard=guard),
            lambda: i.BMENC(memory=Place.S, d=R(), base=U(), a=R(), offset=Signed(0), v=R(), guard=guard),
            lambda: i.BMENC(memory=Place.G, d=R(), base=U(2), a=R(), offset=Signed(0), v=R(), guard=guard),
            lambda: i.BMSLICE(d=R(2), a=R(2), s=Src.of(3), guard=guard),
            lambda: i.BTST(p=Pred(rng.randrange(6)), a=U(), bit=Src.of(4)),
            lambda: i.ACC_LD(count=count, d=R(int(count)), base=U(), offset=Signed(0), guard=guard),
            lambda: i.ACC_ST(count=count, s=R(int(count)), base=U(), offset=Signed(0), guard=guard),
        ]  # fmt: skip

    def groups(self) -> None:
        """Systolic commands on floats, bytes or nibbles, a COMMIT, perhaps a WAIT."""
        rng = self.rng
        load, weights, product, type, across = rng.choice(
            (
                (i.SMA_LDB, Element.F16, i.LSMA, Element.F16, 16),
                (i.ISMA_LDB, Pair.S8, i.ILSMA, Pair.S8, 16),
                (i.ISMA_LDB_N, Nibble.S4, i.ILSMA_N, Beside.U8, 32),
            )
        )
        for _ in range(rng.randrange(1, 4)):
            at: dict[str, Any] = {"base": self.ureg(), "offset": Signed(0), "pitch": Unsigned(16)}
            units, m = Extent(rng.randrange(1, 3)), Extent(rng.choice((1, 2, 16, 640 // across)))
            if rng.random() < 0.7:
                self.emit(load(type=weights, units=units, **at))
                self.emit(i.SMA_SWAP(units=units))
            words = -(-int(m) * across * int(units) // 32)
            c = Src.of(Reg(rng.randrange(0, REGISTERS - words + 1, min(words, 4))))
            start = rng.choice((Start.ADD, Start.SET))
            self.emit(product(type=type, start=start, space=Space.REG, c=c, units=units, m=m, **at))
        self.emit(i.SMA_COMMIT())
        if rng.random() < 0.5:
            self.emit(i.SMA_WAIT(n=Unsigned(rng.randrange(3))))


def random_program(rng: random.Random, systolic: bool, sparse: bool = False) -> Program:
    """Loops, branches and barriers around random instructions; with modes, one stretch of systolic mode."""
    p = Program(rng, tensor=not systolic, sparse=sparse)

    def inside() -> None:
        for _ in range(rng.randrange(1, 3)):
            rng.choice((p.some, p.some, lambda: p.branch(p.some)))()
        if p.systolic:
            p.groups()

    def stretch() -> None:
        long = rng.choice((0, 0, 8))
        steady = rng.randrange(1, 4) + long // 2
        kind = rng.randrange(4)
        if kind == 0:
            p.some()
        elif kind == 1:
            p.loop(inside, lambda walk: walk.randrange(1, 5) + long)
        elif kind == 2:
            p.loop(lambda: p.loop(p.some, lambda walk: steady), lambda walk: steady)
        else:  # a barrier in a loop: all warps go round as often

            def body() -> None:
                inside()
                p.emit(i.BAR(id=Unsigned(0)))

            p.loop(body, lambda walk: steady)

    for _ in range(rng.randrange(1, 4)):
        stretch()
    if systolic:
        p.emit(i.MODE(mode=Mode.SYSTOLIC))
        p.systolic = True
        for _ in range(rng.randrange(1, 4)):
            stretch()
        p.emit(i.MODE(mode=Mode.SYSTOLIC))
        p.emit(i.MODE(mode=Mode.SIMD))
        p.systolic = False
        p.some()
    p.emit(i.EXIT())
    return p


@dataclass
class Case:
    """A random program on a random machine, walked by some blocks."""

    machine: Machine
    kernel: Kernel
    blocks: list[list[list[Step]]]
    counts: Counts

    @property
    def code(self) -> list[Instr]:
        return list(self.kernel.code)

    def run(self, jump: bool = True) -> Run:
        array = Array.of(self.machine.to_dict())
        decoded = decode([self.kernel], self.machine.extensions, array)
        timer = Timer.of(self.machine, decoded, {"k": self.kernel}, jump)
        launch = Launch("k", (len(self.blocks), 1, 1), (), ())
        return Run(timer, launch, self.counts, 0.0, 0)


def random_machine(rng: random.Random, base: str) -> Machine:
    """One SM with numbers of its own."""
    machine = Machine.load(base)
    values: dict[str, Any] = {"sms": 1, "launch_cycles": 0}
    for name, unit in machine.units.items():
        if rng.random() < 0.3:
            values[f"units.{name}.latency"] = rng.choice((1, unit.latency, 2 * unit.latency, 37))
        if rng.random() < 0.3:
            values[f"units.{name}.interval"] = rng.choice((1, 2, unit.interval, 9))
    for key in ("l1_latency", "l2_latency", "dram_latency"):
        values[key] = rng.choice((1, 30, 200))
    values["register_banks"], values["register_bank_reads"] = rng.choice(
        ((2, 2), (2, 1), (4, 1), (1, 1))
    )
    values["subcores"] = rng.choice((1, 2, 4))
    values["blocks_per_sm"] = rng.choice((1, 2, 3, 32))
    if "sparse" in machine.extensions:
        values |= {
            "pred_off_percent": rng.choice((0, 33, 100)),
            "bohmma_percent": rng.choice((0, 25, 100)),
        }
    if "systolic" in machine.extensions:
        values |= {
            "weight_double_buffer": rng.randrange(2),
            "lsma_queue": rng.choice((1, 2, 8)),
            "lsma_fill": rng.choice((0, 11)),
        }
        values |= {"lsma_bubble": rng.choice((0, 5)), "mode_switch_cycles": rng.choice((0, 8, 100))}
    return machine.with_(**values)


def random_case(seed: int, sparse: bool = False) -> Case:
    rng = random.Random(seed)
    systolic = rng.random() < 0.4 and not sparse
    machine = random_machine(rng, "dstc" if sparse else "sma2" if systolic else "volta-8tc")
    if systolic:  # and nibbles
        machine = replace(machine, extensions=(*machine.extensions, "fusion"))
    p = random_program(rng, systolic, sparse)
    warps = rng.choice((1, 2, 3, 4, 6, 9))
    kinds = []
    for _ in range(rng.randrange(1, 3)):
        alike = rng.random() < 0.5
        walk_seed = rng.random()
        kinds.append(
            [p.walk(random.Random(walk_seed if alike else rng.random())) for _ in range(warps)]
        )
    blocks = [
        rng.choice(kinds) for _ in range(rng.choice((1, 2, 5) if warps > 3 else (1, 2, 5, 12)))
    ]
    if sum(len(steps) for block in blocks for steps in block) > LONGEST:
        return random_case(seed + 1000, sparse)
    kernel = Kernel("k", Kernel.encode(p.code), (0,) * len(p.code), (32 * warps, 1, 1), REGISTERS)
    return Case(machine, kernel, blocks, count(p.code, blocks, rng))


def count(code: list[Any], blocks: list[list[list[Step]]], rng: random.Random) -> Counts:
    """What an engine would have counted, with made-up sectors and wavefronts."""
    c = counters(len(code))
    for block in blocks:
        for steps in block:
            for step in steps:
                c["executed"][step.pc] += 1
                c["skipped"][step.pc] += step.skipped
    issued = c["executed"] - c["skipped"]
    for pc, instr in enumerate(code):
        if instr.unit in ("lsu_global", "lsu_local") or getattr(instr, "memory", None) is Place.G:
            c["sectors"][pc] = rng.choice((1, 4, 16, 32)) * issued[pc]
        elif instr.unit == "lsu_shared" or isinstance(instr, i.BMENC):
            c["wavefronts"][pc] = rng.choice((1, 2, 5)) * issued[pc]
    loads = sum(int(c["sectors"][pc]) for pc, instr in enumerate(code) if isinstance(instr, i.LDG))
    unique = rng.randrange(loads + 1)
    distinct = rng.randrange(unique + 1)
    return Counts(
        c,
        32 * distinct,
        32 * rng.randrange(50),
        np.array([distinct, unique - distinct], np.uint64)[: len(blocks)],
        Paths.of(tuple(map(path, b)) for b in blocks),
    )


def path(steps: list[Step]) -> Any:
    """The events of a walk."""
    trail = Trail(1 << 20)
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        following = END if after is None else after.pc
        if step.skipped or following != step.pc + 1:
            assert trail.add(step.pc, following)
        elif step.work is not None:
            assert trail.add(step.pc, work(*step.work))
    return trail.events()


def accesses(case: Case, run: Run) -> tuple[dict[int, int], dict[int, int], Memory]:
    """Sectors and wavefronts of an instruction each time, and where they hit: shares are the run's, which have tests of their own."""
    c, foot = case.counts.instructions, run.foot
    issued = np.maximum(c["executed"] - c["skipped"], 1)
    sectors, wavefronts = (dict(enumerate((c[name] // issued).tolist())) for name in ("sectors", "wavefronts"))  # fmt: skip
    shares = (Fraction(x) for x in (foot.l1_misses, foot.l2_misses, foot.written_back))
    return sectors, wavefronts, Memory(*shares, foot.l2_ticks, foot.dram_ticks)


def oracle(case: Case, run: Run) -> Scoreboard:
    """The scoreboard of a case."""
    modes = [pc for pc, instr in enumerate(case.code) if isinstance(instr, i.MODE)]
    inside = frozenset(range(modes[0] + 1, modes[2])) if modes else frozenset()
    switches = frozenset((modes[0], modes[2])) if modes else frozenset()
    resident = min(run.residents.blocks, len(case.blocks))
    return Scoreboard(
        case.machine, case.code, case.blocks, resident, *accesses(case, run), inside, switches
    )


def agrees(case: Case, oracle: Callable[[Case, Run], Scoreboard]) -> None:
    """Without jumps, cycles and issues are those of the scoreboard that `oracle` makes of a case and its run."""
    run = case.run(jump=False)
    timing, expected = run.timing(), oracle(case, run)
    assert timing.cycles == expected.run()
    assert timing.stalls["issued"] == len(expected.issued)


def jumps_alike(case: Case) -> None:
    """Jumping over what repeats itself changes no number."""
    fast, slow = (case.run(jump).timing() for jump in (True, False))
    assert fast.to_dict() == slow.to_dict()
    assert (fast.by_pc == slow.by_pc).all()
