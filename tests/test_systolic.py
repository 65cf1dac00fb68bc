"""The systolic extension: numbers against a chain of fused multiply-adds, asynchrony, hazards, modes.

Every test runs both engines and asks for the same outcome, whether that is numbers or a fault.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pytest

from knapper.isa import asm, generate, image
from knapper.isa import instructions as i
from knapper.isa.core import Extent, Guard, Instr, Label, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.errors import IsaError, KnapperError
from knapper.isa.lanes import BF16, F16, F32, LaneType
from knapper.isa.machine import Machine
from knapper.isa.modifiers import (
    SR,
    Bits32,
    Cmp,
    Direction,
    Element,
    FloatType,
    Half,
    IntType,
    Mode,
    Space,
    Start,
    Trans,
    Width,
)
from knapper.isa.program import BASE, Kernel, Launch, Port, Program
from knapper.isa.systolic import MOST, QUEUE
from knapper.isa.verify import code_problems, problems, verify
from knapper.runtime.session import Result, Session

RZ, URZ = Reg(255), UReg(63)
EXIT = i.EXIT()
SYSTOLIC, SIMD = i.MODE(Mode.SYSTOLIC), i.MODE(Mode.SIMD)
COMMIT = i.SMA_COMMIT()
ALWAYS_ON = Guard(7)
TYPES = {Element.F16: F16, Element.BF16: BF16, Element.F32: F32}
VOLTA, SMA = (Machine.load(name).to_dict() for name in ("volta-8tc", "sma3"))
TARGET: dict[str, Any] = {
    **VOLTA,
    **SMA,
    "extensions": ["base", "systolic", "tensor"],
    "units": {**VOLTA["units"], **SMA["units"]},
}
"""A machine with Tensor Cores as well, so that the two can be compared in one kernel."""
INPUT, OUTPUT, SHARED = 65536, 65536, 32768
IN, OUT, LANE, THREAD = UReg(0), UReg(2), Reg(0), Reg(1)
A, B = 0, 16384
"""Where operands lie, in input and in shared memory alike."""


def wait(n: int = 0) -> Instr:
    return i.SMA_WAIT(Unsigned(n))


def ldb(type: Element, units: int = 1, at: int = B, pitch: int = 64) -> Instr:
    return i.SMA_LDB(type, Extent(units), URZ, Signed(at), Unsigned(pitch))


def swap(units: int = 1) -> Instr:
    return i.SMA_SWAP(Extent(units))


def lsma(
    type: Element, m: int, units: int = 1, c: int = 8, start: Start = Start.SET, at: int = A, pitch: int = 64
) -> Instr:  # fmt: skip
    return i.LSMA(
        type, start, Space.REG, Src.of(Reg(c)), Extent(units), Extent(m), URZ, Signed(at), Unsigned(pitch),
    )  # fmt: skip


def group(type: Element, m: int, units: int = 1, **lsma_fields: Any) -> list[Instr]:
    """Weights, then a product, as a group."""
    return [ldb(type, units), swap(units), lsma(type, m, units, **lsma_fields), COMMIT]


def begin(registers: Iterable[int] = (), filler: Guard = ALWAYS_ON) -> list[Instr]:
    """Addresses; shared memory = the first half of the input; registers = words of the input behind it."""
    fill = [
        j
        for n in range(0, SHARED, 512)
        for j in (
            i.LDG(Width._128, Reg(4), IN, LANE, Signed(n)),
            i.STS(Width._128, URZ, LANE, Signed(n), Reg(4), guard=filler),
        )
    ]
    return [
        i.ULDC(Bits32._64, IN, Unsigned(0)), i.ULDC(Bits32._64, OUT, Unsigned(8)), i.S2R(SR.LANEID, LANE),
        i.SHF(Direction.L, IntType.U32, LANE, LANE, Src.of(4)), *fill, i.SHF(Direction.R, IntType.U32, LANE, LANE, Src.of(2)),
        *(i.LDG(Width._32, Reg(r), IN, LANE, Signed(SHARED + 128 * n)) for n, r in enumerate(registers)),
    ]  # fmt: skip


def end(first: int, count: int) -> list[Instr]:
    """Output = registers."""
    stores = [i.STG(Width._32, OUT, LANE, Signed(128 * n), Reg(first + n)) for n in range(count)]
    return [*stores, EXIT]


def systolic(commands: list[Instr]) -> list[Instr]:
    return [SYSTOLIC, *commands, SIMD]


def program(
    code: list[Instr], threads: int = 32, target: dict[str, Any] | None = None, **kernel: Any
) -> Program:
    settings = {"registers": 216, "shared_bytes": SHARED, "matrix": True, **kernel}
    k = Kernel("k", Kernel.encode(code), (0,) * len(code), (threads, 1, 1), **settings)
    launch = Launch("k", (1, 1, 1), (BASE, BASE + INPUT), ("conv",))
    x, y = Port("x", "u8", (INPUT,), BASE), Port("y", "u8", (OUTPUT,), BASE + INPUT)
    return Program(target or TARGET, {"k": k}, (launch,), (x,), (y,), arena_bytes=INPUT + OUTPUT)


def run(code: list[Instr], x: Any = None, engine: Any = "fast", **settings: Any) -> Result:
    checked = settings.pop("checked", False)
    data = np.zeros(INPUT, np.uint8) if x is None else x
    return Session(program(code, **settings)).run(
        {"x": data}, engine=engine, checked=checked, threads=1
    )


def both(code: list[Instr], x: Any = None, **settings: Any) -> np.ndarray[Any, Any]:
    """The output of all engines, which are equal, and so are their counters."""
    first = run(code, x, "reference", **settings)
    for checked in (False, True):
        other = run(code, x, "fast", checked=checked, **settings)
        assert (first.outputs["y"] == other.outputs["y"]).all()
        for column in first.stats.launches[0].counts.instructions.dtype.names or ():
            counts = [r.stats.launches[0].counts.instructions[column] for r in (first, other)]
            assert (counts[0] == counts[1]).all(), column
    return first.outputs["y"]


@dataclass
class Operands:
    """Random A, B and C of a product, and the input that puts them where `group` looks for them."""

    type: LaneType
    m: int
    n: int
    seed: int = 0
    steps: int = 1
    x: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(INPUT, np.uint8))

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        k = 8 * self.steps
        self.a, self.b = (self.some(rng, s) for s in ((self.m, k), (k, self.n)))
        self.c = rng.standard_normal((self.m, self.n)).astype(np.float32)
        self.put(A, self.a)
        self.put(B, self.b)
        self.x[SHARED:][: 4 * self.c.size] = self.c.view(np.uint8).ravel()

    def some(self, rng: np.random.Generator, shape: tuple[int, int]) -> Any:
        values = rng.standard_normal(shape) * 2.0 ** rng.integers(-12, 5, shape)
        return values.astype(self.type.dtype)

    def put(self, at: int, rows: Any, pitch: int | None = None) -> None:
        pitch = pitch or self.pitch(rows.shape[1])
        for r, row in enumerate(rows):
            raw = np.ascontiguousarray(row).view(np.uint8)
            self.x[at + r * pitch :][: len(raw)] = raw

    def pitch(self, elements: int) -> int:
        """Of rows that lie with a gap."""
        return elements * self.type.bits // 8 + 8

    def chain(self, set_: bool, k: slice = slice(None)) -> np.ndarray[Any, Any]:
        """The contract, in numpy: one rounding a step. Products of these values are exact in float64, and so nearly are the sums."""
        c = np.zeros_like(self.c) if set_ else self.c
        for a, b in zip(self.a.T[k], self.b[k], strict=True):
            wide = np.longdouble(1) * a.astype(np.float64)[:, None] * b.astype(np.float64)[None]
            c = (wide + c.astype(np.longdouble)).astype(np.float32)
        return c


def product(o: Operands, type: Element, units: int, start: Start) -> list[Instr]:
    """C (+)= A · B, in groups of eight steps."""
    size, code = o.type.bits // 8, []
    for s in range(o.steps):
        b, a = o.pitch(o.n), o.pitch(8 * o.steps)
        code += [
            ldb(type, units, B + 8 * s * b, b), swap(units),
            lsma(type, o.m, units, start=start if s == 0 else Start.ADD, at=A + 8 * s * size, pitch=a), COMMIT,
        ]  # fmt: skip
    return [*code, wait()]


@pytest.mark.parametrize("start", Start)
@pytest.mark.parametrize("m", [1, 7, 16, 61])
@pytest.mark.parametrize("units", [1, 2, 3])
@pytest.mark.parametrize("type", Element)
def test_a_product_is_a_chain_of_fused_multiply_adds(
    type: Element, units: int, m: int, start: Start
) -> None:
    n = units * (8 if type is Element.F32 else 16)
    o = Operands(TYPES[type], m, n, seed=m, steps=2)
    words = -(-m * n // 32)
    code = [*begin(range(8, 8 + words)), *systolic(product(o, type, units, start)), *end(8, words)]
    y = both(code, o.x)[: 4 * m * n].view(np.float32).reshape(m, n)
    assert (y == o.chain(start is Start.SET)).all()


HARD = np.array([0, 1, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC12345, 0x7F7FFFFF], np.uint32)


@pytest.mark.parametrize("half", Half)
@pytest.mark.parametrize("hard", [False, True])
def test_two_commands_of_eight_steps_are_one_hmma(half: Half, hard: bool) -> None:
    element = Element[half.name]
    o = Operands(TYPES[element], 16, 16, steps=2)
    pitch = o.pitch(16)
    if hard:  # zeros, infinities, NaNs and the largest number among A, B and C
        o.x[A : A + 16 * pitch : 46] = 0x7C
        o.x[SHARED:][: 4 * o.c.size].view(np.uint32)[::5] = np.resize(HARD, 52)
    fragments = [
        i.LDSM(Trans.N, Reg(48), URZ, Signed(A), Unsigned(pitch)),
        i.LDSM(Trans.N, Reg(52), URZ, Signed(B), Unsigned(pitch)),
        i.HMMA(half, Reg(16), Reg(48), Reg(52), Reg(8)),
    ]
    chain = systolic(product(o, element, 1, Start.ADD))
    y = both([*begin(range(8, 16)), *fragments, *chain, *end(8, 16)], o.x)
    assert (y[:1024] == y[1024:2048]).all()
    assert len(np.unique(y[:1024].view(np.uint32))) > 50


def test_hmma_with_fp16_accumulators_rounds_once_at_the_end() -> None:
    o = Operands(F16, 16, 16, steps=2)
    c = o.c.astype(np.float16)
    o.x[SHARED:][:512] = c.view(np.uint8).ravel()
    fragments = [
        i.LDSM(Trans.N, Reg(48), URZ, Signed(A), Unsigned(o.pitch(16))),
        i.LDSM(Trans.N, Reg(52), URZ, Signed(B), Unsigned(o.pitch(16))),
        i.HMMA_F16(Reg(16), Reg(48), Reg(52), Reg(8)),
    ]
    y = both([*begin(range(8, 12)), *fragments, *end(16, 4)], o.x)[:512]
    o.c = c.astype(np.float32)
    assert (y.view(np.float16).reshape(16, 16) == o.chain(False).astype(np.float16)).all()


# --- asynchrony ---------------------------------------------------------------------------------------------------------------


ONE = Element.F16
PLAIN = group(ONE, 16)
"""C of 16 × 16 in R8 … R15."""


def sum_of(o: Operands) -> np.ndarray[Any, Any]:
    """What PLAIN computes."""
    return o.chain(True)


def plain() -> Operands:
    """Operands of PLAIN, which wants rows of 64 bytes."""
    o = Operands(F16, 16, 16)
    o.x[:SHARED] = 0
    o.put(A, o.a, 64)
    o.put(B, o.b, 64)
    return o


def matrix(y: np.ndarray[Any, Any], at: int = 0) -> np.ndarray[Any, Any]:
    return y[at : at + 1024].view(np.float32).reshape(16, 16)


def hazard(code: list[Instr], x: Any = None, **settings: Any) -> str:
    """The fault, which both checking engines tell alike."""
    told = []
    for engine in ("reference", "fast"):
        with pytest.raises(KnapperError) as e:
            run(code, x, engine, checked=True, **settings)
        told.append(f"{e.value} {e.value.hint}")
    assert told[0] == told[1]
    return told[0]


STORE = [i.STG(Width._32, OUT, LANE, Signed(128 * n), Reg(8 + n)) for n in range(8)]


def test_a_forgotten_wait_gives_stale_numbers_and_is_found_by_a_checked_run() -> None:
    o = plain()
    code = [*begin(range(8, 16)), SYSTOLIC, *PLAIN, *STORE, SIMD, EXIT]
    assert (matrix(run(code, o.x).outputs["y"]) == o.c).all()
    told = hazard(code, o.x)
    assert "E615" in told
    assert "AsyncHazard: the warp reads R8, which a pending LSMA writes" in told
    assert "SMA.WAIT" in told


def test_a_wait_for_all_but_n_leaves_the_newest_pending() -> None:
    o = plain()
    second = lsma(ONE, 16, c=16)
    commands = [*PLAIN, second, COMMIT, wait(1)]
    y = both([*begin(), *systolic([*commands, *STORE]), EXIT], o.x)
    assert (matrix(y) == sum_of(o)).all()
    stale = [*begin(range(8, 24)), *systolic([*commands, *end(16, 8)[:-1]]), EXIT]
    assert (matrix(run(stale, o.x).outputs["y"]) != sum_of(o)).any()
    assert "reads R16" in hazard(stale, o.x)


def test_a_mode_switch_completes_what_is_pending() -> None:
    o = plain()
    code = [*begin(range(8, 16)), SYSTOLIC, *PLAIN, SIMD, *end(8, 8)]
    assert (matrix(both(code, o.x)) == sum_of(o)).all()


def test_operands_are_read_when_the_group_is_executed() -> None:
    o = plain()
    overwrite = i.STS(Width._32, URZ, LANE, Signed(A), RZ)
    code = [*begin(), SYSTOLIC, *PLAIN, overwrite, wait(), SIMD, *end(8, 8)]
    o.a[:2] = 0  # 128 bytes are two rows
    assert (matrix(run(code, o.x).outputs["y"]) == sum_of(o)).all()
    told = hazard(code, o.x)
    assert (
        "AsyncHazard: lane 0 writes 4 bytes of shared memory at 0x0, which a pending systolic command reads"
        in told
    )


def test_weights_load_behind_the_ones_in_use() -> None:
    """Two sets of weights are loaded before either is used."""
    o = plain()
    o.put(B + 1024, -o.b, 64)
    commands = [
        ldb(ONE), swap(), ldb(ONE, at=B + 1024), lsma(ONE, 16), swap(), lsma(ONE, 16, c=16), COMMIT, wait(),
    ]  # fmt: skip
    y = both([*begin(), *systolic(commands), *end(8, 16)], o.x)
    assert (matrix(y) == sum_of(o)).all()
    assert (matrix(y, 1024) == -sum_of(o)).all()


def test_groups_may_reuse_their_own_warps_weights() -> None:
    o = plain()
    commands = [*PLAIN, lsma(ONE, 16, c=16), COMMIT, wait(1), wait(0)]
    y = both([*begin(), *systolic(commands), *end(8, 16)], o.x)
    assert (matrix(y, 1024) == sum_of(o)).all()


def test_empty_groups_count() -> None:
    o = plain()
    commands = [*PLAIN, COMMIT, COMMIT, wait(2)]
    y = both([*begin(), *systolic([*commands, *STORE]), EXIT], o.x)
    assert (matrix(y) == sum_of(o)).all()


def test_counters_tell_multiply_adds_and_traffic() -> None:
    o = Operands(F32, 5, 16)
    code = [*begin(), *systolic(product(o, Element.F32, 2, Start.SET)), EXIT]
    launch = run(code, o.x).stats.launches[0]
    assert launch.macs_executed == 5 * 8 * 16
    reads = launch.counts.instructions["smem_read"]
    assert {code[n].mnemonic: int(reads[n]) for n in np.flatnonzero(reads)} == {
        "SMA.LDB": 8 * 16 * 4,
        "LSMA": 5 * 8 * 4,
    }


# --- hazards and faults: a few instructions that meet one -------------------------------------------------------------------------


P0 = Pred(0)
WARP_ZERO = [
    i.S2R(SR.WARPID, THREAD),
    i.ISETP(Cmp.EQ, IntType.U32, P0, THREAD, Src.of(0)),
]
ZERO, OTHERS = Guard(0), Guard(8)
BAR = i.BAR(Unsigned(0))
LOAD = [ldb(ONE), swap(), COMMIT, wait()]
USE = [lsma(ONE, 16), COMMIT, wait()]


def only(warp: Guard, commands: list[Instr], at: int) -> list[Instr]:
    """Commands of the warps that the guard picks, to be placed at an index of the code."""
    other = ZERO if warp == OTHERS else OTHERS
    return [i.BRA(Label(at + 1 + len(commands)), guard=other), *commands]


def parted(
    first: list[Instr], second: list[Instr], between: list[Instr] | None = None
) -> list[Instr]:
    """Warp 0 does one thing, warp 1 another, after shared memory was filled."""
    code = [*WARP_ZERO, *begin(filler=ZERO), BAR, SYSTOLIC]
    code += only(ZERO, first, len(code))
    code += between or []
    code += only(OTHERS, second, len(code))
    return [*code, SIMD, EXIT]


HAZARDS: dict[str, tuple[list[Instr], str, dict[str, Any]]] = {
    "read of C": ([*PLAIN, i.MOV(Reg(30), Src.of(Reg(15))), wait()], "reads R15, which a pending LSMA writes", {}),
    "write of C": ([*PLAIN, i.MOV(Reg(9), Src.of(1)), wait()], "writes R9, which a pending LSMA writes", {}),
    "uncommitted C": ([*PLAIN[:3], i.MOV(Reg(9), Src.of(1)), COMMIT, wait()], "writes R9", {}),
    "load into C": ([*PLAIN, i.LDG(Width._32, Reg(8), IN, LANE, Signed(0)), wait()], "writes R8", {}),
    "write of B": ([*PLAIN, i.STS(Width._32, URZ, LANE, Signed(B), RZ), wait()], f"at {B:#x}, which a pending systolic command reads", {}),
    "no commit": ([*PLAIN[:3], wait()], "AsyncHazard: 3 commands that no SMA.COMMIT follows", {}),
    "no commit before a switch": (PLAIN[:3], "AsyncHazard: 3 commands that no SMA.COMMIT follows", {}),
    "weights never loaded": (USE, "E606: kernel k, block (0, 0, 0), warp 0, pc", {}),
    "shadows only": ([ldb(ONE), *USE], "weights of unit 0 are used, where no SMA.LDB and SMA.SWAP put any", {}),
    "too few units loaded": ([ldb(ONE, 1), swap(2), lsma(ONE, 8, 2), COMMIT, wait()], "weights of unit 1 are used", {}),
    "C never written": ([*group(ONE, 3, start=Start.ADD), wait()], "R8 is read in lane 0, where nothing wrote it", {}),
    "C half written": (
        [i.MOV(Reg(8), Src.of(1)), i.MOV(Reg(9), Src.of(1)), *group(ONE, 5, start=Start.ADD), wait()], "R10 is read in lane 0", {}),
    "misaligned": ([ldb(ONE, at=2)], "E602: kernel k, block (0, 0, 0), warp 0", {}),
    "misaligned pitch": ([ldb(ONE, pitch=18)], "4 bytes of shared memory at 0x4000, which is not a multiple of 4", {}),
    "outside": ([ldb(ONE, at=SHARED - 480, pitch=64)], "reads 32 bytes of shared memory at 0x7fe0, which lies outside", {"shared_bytes": SHARED - 8}),
    "far outside": ([lsma(ONE, 200, pitch=65532)], "reads 16 bytes of shared memory at 0xc6fce4", {}),
    "too many": ([ldb(ONE)] * QUEUE + [COMMIT], "E616: kernel k, block (0, 0, 0), warp 0, pc", {}),
    "part of a warp": ([COMMIT], "lane 20 is not active, but a systolic command is the whole warp's", {"threads": 20}),
}  # fmt: skip
ALWAYS = {"misaligned", "misaligned pitch", "outside", "far outside", "too many", "part of a warp"}
"""Found without `checked` as well."""


@pytest.mark.parametrize("name", HAZARDS)
def test_hazards_and_faults(name: str) -> None:
    commands, message, settings = HAZARDS[name]
    fill = [] if settings else begin()
    code = [*fill, *systolic(commands), EXIT]
    told = hazard(code, **settings)
    assert message in told
    if name in ALWAYS:
        with pytest.raises(KnapperError, match="E6"):
            run(code, **settings)
    else:
        run(code, **settings)


def test_a_warp_may_not_end_with_groups_pending() -> None:
    code = [*begin(), SYSTOLIC, *PLAIN, EXIT]
    assert "AsyncHazard: the warp ends with 1 groups pending" in hazard(code, mode_exit="systolic")
    code = [*begin(), SYSTOLIC, *PLAIN[:2], EXIT]
    assert "AsyncHazard: 2 commands that no SMA.COMMIT follows" in hazard(
        code, mode_exit="systolic"
    )


def test_operands_that_nobody_wrote() -> None:
    told = hazard([*systolic([*PLAIN, wait()]), EXIT])
    assert "lane 0 reads 32 bytes of shared memory at 0x4000, where nothing wrote" in told


CLASHES: dict[str, tuple[list[Instr], list[Instr], list[Instr], str]] = {
    "another warp loads, then this one computes": (LOAD, [*LOAD, *USE], [], "weights of an earlier group are used, but warp 0 may load others"),
    "this one computes, then another loads": ([*LOAD, *USE], LOAD, [], "warp 0 may load others"),
    "the load lies before a barrier": ([*LOAD], USE, [BAR], "warp 0 may load others"),
    "a store into another's A": (
        [BAR, i.STS(Width._32, URZ, LANE, Signed(A), RZ)], [*PLAIN, BAR, wait()], [], "which a pending systolic command reads"),
    "a store after another's wait": (
        [*PLAIN, wait()], [i.STS(Width._32, URZ, LANE, Signed(A), RZ)], [],
        "a race: lane 0 writes shared memory at 0x0, which warp 0 read since the last barrier"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASHES)
def test_clashes_between_warps(name: str) -> None:
    first, second, between, message = CLASHES[name]
    assert message in hazard(parted(first, second, between), threads=64)


def test_groups_that_bring_their_weights_do_not_clash() -> None:
    both(parted([*PLAIN, wait()], [*PLAIN, *PLAIN, wait()]), threads=64)


def test_rz_swallows_c() -> None:
    commands = [*group(ONE, 16, c=255, start=Start.ADD), i.MOV(RZ, Src.of(1)), wait(), *STORE]
    o = plain()
    assert (matrix(both([*begin(range(8, 16)), *systolic(commands), EXIT], o.x)) == o.c).all()


def lanes_part(then: list[Instr]) -> list[Instr]:
    """Nine lanes come to what follows by another way than the rest."""
    head = [i.S2R(SR.LANEID, LANE), i.ISETP(Cmp.LT, IntType.U32, P0, LANE, Src.of(9))]
    return [*head, i.BRA(Label(4), guard=ZERO), i.NOP(), *then, EXIT]


def test_a_switch_is_a_block_barrier() -> None:
    told = hazard(lanes_part([SYSTOLIC, SIMD]))
    assert "E608" in told
    assert "lane 9 is live but does not come to MODE.SYSTOLIC with the others" in told
    code = [*WARP_ZERO, i.BRA(Label(5), guard=ZERO), BAR, BAR, SYSTOLIC, SIMD, EXIT]
    told = hazard(code, threads=64)
    assert "waits at MODE.SYSTOLIC, but warp 1 of the block waits at another" in told


def test_lanes_that_parted_send_no_commands() -> None:
    told = hazard(lanes_part([swap()]), mode_entry="systolic", mode_exit="systolic")
    assert "E616" in told
    assert "lane 9 is not active, but a systolic command is the whole warp's" in told


# --- modes ----------------------------------------------------------------------------------------------------------------------


ADD = i.FADD(FloatType.F32, Reg(8), RZ, Src.of(RZ))
SMA2 = Machine.load("sma2")


def told(code: list[Instr], machine: Machine = SMA2, **settings: Any) -> list[str]:
    """What the verifier says of a kernel, which the engines refuse as well."""
    p = program(code, target=machine.to_dict(), **settings)
    found = [str(e) for e in code_problems(p.kernels["k"], machine)]
    with pytest.raises(KnapperError, match="E601"):
        Session(p).run({"x": np.zeros(INPUT, np.uint8)})
    return found


@pytest.mark.parametrize(
    "i_",
    [ADD, i.FADD(FloatType.F64, Reg(8), RZ, Src.of(RZ)), i.HADD2(Half.F16, Reg(8), RZ, Src.of(RZ)), i.IDIV(IntType.S32, Reg(8), RZ, Src.of(1))],
    ids=str,
)  # fmt: skip
def test_what_the_array_displaces_is_illegal_in_systolic_mode(i_: Instr) -> None:
    (problem,) = told([i.NOP(), SYSTOLIC, i_, SIMD, EXIT])
    assert f"kernel k: instruction 2: {i_}: {i_.mnemonic} is illegal in mode 'systolic'" in problem


@pytest.mark.parametrize("i_", [*PLAIN, wait()], ids=str)
def test_systolic_commands_are_illegal_in_simd_mode(i_: Instr) -> None:
    (problem,) = told([SYSTOLIC, SIMD, i_, EXIT])
    assert f"instruction 2: {i_}: {i_.mnemonic} is illegal in mode 'simd'" in problem


def test_integers_memory_and_branches_run_in_both_modes() -> None:
    legal = {
        cls.unit for cls in vars(i).values() if isinstance(cls, type) and "systolic" in cls.modes
    }
    assert legal == {
        "control", "barrier", "sreg", "uniform", "alu", "imul", "cvt", "lsu_global", "lsu_shared", "lsu_local", "mode", "systolic", "dma",
    }  # fmt: skip


def test_an_instruction_has_one_mode_on_all_paths() -> None:
    code = [i.BRA(Label(2), guard=ZERO), SYSTOLIC, i.NOP(), SIMD, EXIT]
    assert any("instruction 2: NOP: it is reached in both modes" in t for t in told(code))
    loop = [SYSTOLIC, *PLAIN, wait(), SIMD, ADD, i.BRA(Label(0), guard=ZERO), EXIT]
    assert not [*code_problems(program(loop).kernels["k"], SMA2)]
    unreachable = [i.BRA(Label(2)), *PLAIN[:1], EXIT]
    assert not [*code_problems(program(unreachable).kernels["k"], SMA2)]


def test_a_kernel_ends_in_the_mode_that_it_declares() -> None:
    (problem,) = told([SYSTOLIC, EXIT])
    assert "it ends in mode 'systolic', but the kernel is to end in 'simd'" in problem
    assert told([EXIT], mode_exit="systolic")
    assert not [
        *code_problems(
            program([EXIT], mode_entry="systolic", mode_exit="systolic").kernels["k"], SMA2
        )
    ]


def launches(grid: int, *kernels: tuple[str, str], machine: Machine = SMA2) -> list[str]:
    """What the verifier says of launches of kernels that go from mode to mode."""
    made = {
        f"k{n}": Kernel(f"k{n}", Kernel.encode([i.MODE(Mode[leave.upper()]), EXIT]), (0, 0), (32, 1, 1), 8, mode_entry=entry, mode_exit=leave)
        for n, (entry, leave) in enumerate(kernels)
    }  # fmt: skip
    p = Program(
        machine.to_dict(), made, tuple(Launch(k, (grid, 1, 1), (), ()) for k in made), (), ()
    )
    return [str(e) for e in problems(p)]


def test_launches_find_the_mode_that_the_one_before_left() -> None:
    assert not launches(
        SMA2.sms, ("simd", "systolic"), ("systolic", "systolic"), ("systolic", "simd")
    )
    (problem,) = launches(1, ("simd", "systolic"), ("simd", "simd"))
    assert "launch 1 of k1: it starts in mode simd, but finds systolic" in problem
    assert "starts in mode systolic, but finds simd" in launches(1, ("systolic", "systolic"))[0]


def test_more_blocks_than_sms_need_one_mode() -> None:
    (problem,) = launches(SMA2.sms + 1, ("simd", "systolic"))
    assert (
        f"{SMA2.sms + 1} blocks on {SMA2.sms} SMs: a block starts in the mode in which another ends"
        in problem
    )
    assert not launches(SMA2.sms + 1, ("simd", "simd"))


def test_a_machine_without_arrays_knows_one_mode() -> None:
    volta = Machine.load("volta-8tc")
    assert (
        "modes 'simd' and 'systolic', expected simd"
        in launches(1, ("simd", "systolic"), machine=volta)[0]
    )
    assert "has no extension 'systolic'" in next(
        map(str, code_problems(program([SYSTOLIC, SIMD, EXIT]).kernels["k"], volta))
    )


def test_c_has_to_fit() -> None:
    assert MOST * 32 == 384 * 16
    lsma(ONE, 384).encode()
    for m, units in ((385, 1), (193, 2), (0, 1)):
        with pytest.raises(IsaError, match="E505"):
            lsma(ONE, m, units).encode()
    with pytest.raises(IsaError, match="reach past R254"):
        lsma(ONE, 384, c=64).encode()
    with pytest.raises(IsaError, match="RZ stands for 8 registers at most, not for 9"):
        lsma(ONE, 18, c=255).encode()
    k = program([SYSTOLIC, lsma(ONE, 384, c=32), SIMD, EXIT], threads=320, registers=224)
    assert "10 warps of 224 registers exceed the SM's 65536" in next(
        map(str, problems(Program(**{**k.__dict__, "target": SMA2.to_dict()})))
    )


def test_units_are_the_machines() -> None:
    (problem,) = told([SYSTOLIC, swap(3), SIMD, EXIT])
    assert "the machine has 2 systolic units" in problem
    (problem,) = told([SYSTOLIC, LSMA_ACC, SIMD, EXIT])
    assert "the machine has no accumulator memory" in problem


def test_a_kernel_may_live_in_systolic_mode() -> None:
    o = plain()
    code = [*begin(), *PLAIN, wait(), *end(8, 8)]
    y = both(code, o.x, mode_entry="systolic", mode_exit="systolic")
    assert (matrix(y) == sum_of(o)).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", ["sma2", "sma3", "systolic-ws"])
def test_random_programs_survive_image_and_assembly(target: str, seed: int) -> None:
    p = generate.program(Random(seed), target=target)
    verify(p)
    data = image.write(p)
    assert image.write(image.read(data, "again")) == data
    assert image.write(asm.assemble(*asm.disassemble(p), "text")) == data


# --- accumulator memory, and arrays of another shape -----------------------------------------------------------------------------


def lsma_acc(type: Element, m: int, c: Src, start: Start, pitch: int, at: int = A) -> Instr:
    return i.LSMA(type, start, Space.ACC, c, Extent(1), Extent(m), URZ, Signed(at), Unsigned(pitch))


LSMA_ACC = lsma_acc(ONE, 4, Src.of(0), Start.SET, 64)


def wide(rows: int, columns: int, words: int) -> dict[str, Any]:
    """A target with other arrays, and accumulators."""
    numbers = {"array_rows": rows, "array_columns": columns, "accumulator_bytes": 4 * words}
    return {
        **TARGET,
        **{key: {"value": n, "provenance": "assumed"} for key, n in numbers.items()},
    }


@pytest.mark.parametrize("type", Element)
@pytest.mark.parametrize("rows", [8, 32])
def test_accumulator_memory_holds_c_of_any_array(type: Element, rows: int) -> None:
    n, m = 32 * 16 // TYPES[type].bits, 21
    o = Operands(TYPES[type], m, n, steps=rows // 8)
    at, words, registers = 40, m * n, -(-m * n // 32)
    move = i.UMOV(UReg(8), Src.of(at))
    commands = [
        move, i.ACC_ST(Extent(registers), UReg(8), Signed(0), Reg(8)),
        ldb(type, 1, pitch=o.pitch(n)), swap(),
        lsma_acc(type, m, Src.of(UReg(8)), Start.ADD, o.pitch(rows)), COMMIT, wait(),
        i.ACC_LD(Extent(registers), Reg(100), UReg(8), Signed(0)),
    ]  # fmt: skip
    code = [*begin(range(8, 8 + registers)), *systolic(commands), *end(100, registers)]
    target = wide(rows, 32, at + 32 * registers)
    y = both(code, o.x, target=target)[: 4 * words]
    assert run(code, o.x, target=target).stats.macs_executed == m * n * rows
    assert (y.view(np.float32).reshape(m, n) == o.chain(False)).all()


ACCUMULATORS: dict[str, tuple[list[Instr], str]] = {
    "outside": ([i.ACC_LD(Extent(1), Reg(8), URZ, Signed(1000))], "reads 4 bytes of accumulator memory at 0xfa0, which lies outside"),
    "product outside": ([lsma_acc(ONE, 4, Src.of(950), Start.SET, 64)], "writes 512 bytes of accumulator memory at 0xed8, which lies outside"),
    "never written": ([i.ACC_LD(Extent(1), Reg(8), URZ, Signed(0))], "accumulator memory at 0x0, where nothing wrote"),
    "C never written": ([ldb(ONE), swap(), lsma_acc(ONE, 4, Src.of(8), Start.ADD, 64), COMMIT, wait()], "accumulator memory at 0x20, where nothing"),
    "pending": (
        [ldb(ONE), swap(), lsma_acc(ONE, 4, Src.of(8), Start.SET, 64), COMMIT, i.ACC_LD(Extent(1), Reg(8), URZ, Signed(0)), wait()],
        "lane 8 reads 4 bytes of accumulator memory at 0x20, which a pending systolic command writes"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_faults_of_accumulator_memory(name: str) -> None:
    commands, message = ACCUMULATORS[name]
    assert message in hazard([*begin(), *systolic(commands), EXIT], target=wide(8, 32, 1000))


def test_c_in_registers_needs_arrays_of_the_isas_shape() -> None:
    p = program([*systolic([lsma(ONE, 4)]), EXIT], target=wide(16, 16, 0))
    with pytest.raises(
        KnapperError, match="C in registers needs units of 8 × 16, the machine's have 16 × 16"
    ):
        Session(p).run({"x": np.zeros(INPUT, np.uint8)})
