"""Programs of vector memory commands for tests: an instruction a line, what they run on, what all engines agree upon."""

from __future__ import annotations

from typing import Any

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.machine import Machine
from knapper.isa.modifiers import (
    SR,
    Bits32,
    Cmp,
    Direction,
    Element,
    IntType,
    Start,
    Width,
)
from knapper.isa.operands import Extent, Guard, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE, Kernel, Launch, Operand, Port, Program
from knapper.isa.vector_memory import ConvDesc
from knapper.runtime.budget import LIMIT
from knapper.runtime.counters import COUNTER, Counts
from knapper.runtime.session import Session

TPU = Machine.load("tpu-v2")
SMALL = TPU.with_(array_rows=8, array_columns=16, systolic_units=2)
WIDE = SMALL.with_(array_rows=16, array_columns=32)
URZ = UReg(63)
EXIT, COMMIT, BAR = i.EXIT(), i.SMA_COMMIT(), i.BAR(Unsigned(0))
WEIGHTS, SHARED = 1 << 16, 1 << 17
"""Where weights lie in shared memory, and its size. Below is room for the ring."""
INPUT, OUTPUT = 1 << 18, 1 << 17
FILTER = 1 << 16
"""Where weights begin in the input; the image is in front."""
BYTES = {Element.F16: 2, Element.BF16: 2, Element.F32: 4}


def umov(d: int, value: int) -> Instr:
    return i.UMOV(UReg(d), Src.of(value))


def wait(n: int = 0) -> Instr:
    return i.SMA_WAIT(Unsigned(n))


def describe(d: ConvDesc | list[int], cd: int = 0) -> list[Instr]:
    """A descriptor by UR12 … UR23."""
    words = d.words() if isinstance(d, ConvDesc) else d
    return [*(umov(12 + k, w) for k, w in enumerate(words)), i.CONVDESC(Unsigned(cd), UReg(12))]


def fill(first: int, rows: int, cd: int = 0) -> list[Instr]:
    return [umov(24, first), umov(25, rows), i.FILL_DUP(Unsigned(cd), UReg(24), UReg(25))]


def copy(target: int, source: int, size: int, offset: int = 0) -> list[Instr]:
    """A DMA.LD of bytes of the input."""
    at = [umov(26, target - offset & 0xFFFFFFFF), umov(28, (BASE + source) & 0xFFFFFFFF), umov(29, BASE + source >> 32)]  # fmt: skip
    return [*at, i.DMA_LD(UReg(26), Signed(offset), UReg(28), Src.of(size))]


def push(
    type: Element, start: Start, c: int, tap: int, first: int, rows: int, units: int = 1, cd: int = 0
) -> list[Instr]:  # fmt: skip
    return [
        umov(30, first), umov(31, rows),
        i.IM2COL_PUSH(type, start, Src.of(c), Extent(units), Unsigned(cd), Src.of(tap), UReg(30), UReg(31)),
    ]  # fmt: skip


def program(
    code: list[Instr], machine: Machine = SMALL, threads: int = 32, operands: tuple[Operand, ...] = ()
) -> Program:  # fmt: skip
    kernel = Kernel(
        "k", Kernel.encode(code), (0,) * len(code), (threads, 1, 1), registers=32, shared_bytes=SHARED, matrix=True
    )  # fmt: skip
    launch = Launch("k", (1, 1, 1), (BASE, BASE + INPUT), ("conv",), operands)
    x, y = Port("x", "u8", (INPUT,), BASE), Port("y", "u8", (OUTPUT,), BASE + INPUT)
    return Program(machine.to_dict(), {"k": kernel}, (launch,), (x,), (y,), arena_bytes=INPUT + OUTPUT)  # fmt: skip


ENGINES = ("reference", "fast", "checked")


def run(program: Program, x: Any, engine: str) -> tuple[Any, Counts]:
    """The output, and counters, those for timing included."""
    session, checked = Session(program), engine == "checked"
    session.memory.put(program.inputs[0], x)
    name: Any = "fast" if checked else engine
    counts = session.engine(name, checked, 1, LIMIT).launch(program.launches[0], timing=True)
    session.close()
    return session.memory.get(program.outputs[0]), counts


def agreed(program: Program, x: Any, engines: tuple[str, ...] = ENGINES) -> tuple[Any, Counts]:
    """What all engines give."""
    (y, counts), *others = [run(program, x, e) for e in engines]
    for z, other in others:
        assert (y == z).all()
        for column in COUNTER.names or ():
            assert (counts.instructions[column] == other.instructions[column]).all(), column
        for total in ("dram_read", "dram_write", "l1_unique"):
            assert getattr(counts, total) == getattr(other, total), total
    return y, counts


def store(words: int) -> list[Instr]:
    """The output = accumulators."""
    code: list[Instr] = [
        i.ULDC(Bits32._64, UReg(2), Unsigned(8)), i.S2R(SR.LANEID, Reg(0)),
        i.ISETP(Cmp.LT, IntType.U32, Pred(0), Reg(0), Src.of(words % 32)),
        i.SHF(Direction.L, IntType.U32, Reg(0), Reg(0), Src.of(2)),
    ]  # fmt: skip
    for n in range(-(-words // 32)):
        guard = Guard(7 if 32 * (n + 1) <= words else 0)
        code += [
            i.ACC_LD(Extent(1), Reg(1), URZ, Signed(32 * n), guard=guard),
            i.STG(Width._32, UReg(2), Reg(0), Signed(128 * n), Reg(1), guard=guard),
        ]
    return code


# --- a small convolution

PLAIN = ConvDesc.of(
    image=BASE,
    base=64,
    height=4,
    width=4,
    channels=8,
    images=8,
    r=3,
    s=3,
    pad=(1, 1, 1, 1),
    banks=8,
)
"""6 stored rows of 6 words of 128 bytes; an output line is 32 rows of the patch matrix."""
ROW = PLAIN.layout.row_bytes
F16, SET, ADD = Element.F16, Start.SET, Start.ADD
BEGIN, DONE = describe(PLAIN), [COMMIT, wait()]
FILLED = [*BEGIN, *fill(0, 6), *DONE]
WEIGHED = [
    *copy(WEIGHTS, 0, 256), *DONE, umov(27, WEIGHTS),
    i.SMA_LDB(F16, Extent(1), UReg(27), Signed(0), Unsigned(32)), i.SMA_SWAP(Extent(1)), *DONE,
]  # fmt: skip
PUSH = push(F16, SET, 0, 0, 0, 32)
