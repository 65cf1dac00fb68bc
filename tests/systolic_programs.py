"""Programs of systolic commands for tests: an instruction a line, operands and their product in numpy, and all engines' outcome.

Every program runs on both engines, which are asked for the same outcome, whether that is numbers or a fault.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import KnapperError
from knapper.isa.lanes import BF16, F16, F32, LaneType
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Direction, Element, IntType, Mode, Space, Start, Width
from knapper.isa.operands import Extent, Guard, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE, Kernel, Launch, Port, Program
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
ZERO, OTHERS = Guard(0), Guard(8)


def lsma_acc(type: Element, m: int, c: Src, start: Start, pitch: int, at: int = A) -> Instr:
    return i.LSMA(type, start, Space.ACC, c, Extent(1), Extent(m), URZ, Signed(at), Unsigned(pitch))


LSMA_ACC = lsma_acc(ONE, 4, Src.of(0), Start.SET, 64)
