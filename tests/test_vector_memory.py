"""Vector memory: convolution by fills and pushes against numpy, the layout, counters, and every hazard and fault that there is.

The oracle knows nothing of words, banks, rings or taps: a padded image, windows, and a chain of fused multiply-adds in the order (r, q, c).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import pytest

from knapper.isa import instructions as i
from knapper.isa.core import Extent, Guard, Instr, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, Direction, Element, IntType, Start, Width
from knapper.isa.program import BASE, Kernel, Launch, Operand, Port, Program
from knapper.isa.vector_memory import ConvDesc
from knapper.runtime.budget import LIMIT
from knapper.runtime.counters import COUNTER, Counts
from knapper.runtime.session import Session

SMALL = Machine.load("tpu-v2").with_(array_rows=8, array_columns=16)
WIDE = SMALL.with_(array_rows=16, array_columns=32)
URZ = UReg(63)
EXIT, COMMIT, BAR = i.EXIT(), i.SMA_COMMIT(), i.BAR(Unsigned(0))
WEIGHTS, SHARED = 1 << 16, 1 << 17
"""Where weights lie in shared memory, and its size. Below is room for the ring."""
INPUT, OUTPUT = 1 << 17, 1 << 17
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


# --- a convolution, and how it is computed ----------------------------------------------------------------------------------------


@dataclass
class Case:
    """A convolution of random numbers, its descriptor, and the oracle."""

    type: Element
    machine: Machine
    d: ConvDesc
    units: int = 1
    seed: int = 0
    x: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(INPUT, np.uint8))

    def __post_init__(self) -> None:
        d, rng = self.d, np.random.default_rng(self.seed)
        self.columns = self.units * self.machine.array_columns * 16 // self.type.lane.bits
        shape = (d.images, d.height, d.width, d.pitch)
        self.image = (rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 4, shape)).astype(
            self.type.lane.dtype
        )
        self.w = rng.standard_normal((d.r, d.s, d.channels, self.columns)).astype(
            self.type.lane.dtype
        )
        self.put(self.d.image - BASE, self.image)
        self.put(FILTER, self.packed())

    def put(self, at: int, a: np.ndarray[Any, Any]) -> None:
        raw = np.ascontiguousarray(a).view(np.uint8).ravel()
        assert at + len(raw) <= INPUT
        self.x[at:][: len(raw)] = raw

    def passes(self) -> Iterator[tuple[int, int, int]]:
        """(r, q, cb) in the order that makes the chain."""
        d = self.d
        for r in range(d.r):
            for q in range(0, d.s, d.t):
                yield from ((r, q, cb) for cb in range(d.layout.blocks))

    def packed(self) -> np.ndarray[Any, Any]:
        """Weights by pass, [passes, P, columns], zeros where a bank holds nothing that counts."""
        d, tiles = self.d, []
        for r, q, cb in self.passes():
            tile = np.zeros((d.banks, self.columns), self.w.dtype)
            for t in range(min(d.t, d.s - q)):
                part = self.w[r, q + t, cb * d.banks : (cb + 1) * d.banks]
                tile[t * d.channels :][: len(part)] = part
            tiles.append(tile)
        return np.array(tiles)

    def oracle(self) -> np.ndarray[Any, Any]:
        """Rows of the result in the order of the patch matrix, [rows, columns]."""
        d, x = self.d, self.d.layout
        image = np.zeros((x.groups * x.wn, x.padded_h, x.padded_w, d.channels), self.w.dtype)
        image[: d.images, d.pad_t :, d.pad_l :][:, : d.height, : d.width] = self.image[
            ..., : d.channels
        ]
        out = np.zeros((len(image), d.out_h, d.out_w, self.columns), np.float32)
        for r in range(d.r):
            for s in range(d.s):
                y, z = r * d.dilation_h, s * d.dilation_w
                window = image[:, y :: d.stride_h, z :: d.stride_w][:, : d.out_h, : d.out_w]
                for c in range(d.channels):
                    product = np.longdouble(1) * window[..., c, None].astype(np.float64) * self.w[r, s, c].astype(np.float64)  # fmt: skip
                    out = (product + out).astype(np.float32)
        grouped = out.reshape(x.groups, x.wn, d.out_h, d.out_w, -1)
        return grouped.transpose(0, 2, 3, 1, 4).reshape(-1, self.columns)

    # --- the kernel: one warp does everything

    def chunk(self, first: int, rows: int) -> list[Instr]:
        """All passes of some rows of the patch matrix."""
        size, code = self.d.banks * self.columns * BYTES[self.type], []
        for n, (r, q, cb) in enumerate(self.passes()):
            start = Start.ADD if n else Start.SET
            code += [
                *copy(WEIGHTS, FILTER + n * size, size, offset=16 * (n % 3)), COMMIT, wait(),
                umov(27, WEIGHTS), i.SMA_LDB(self.type, Extent(self.units), UReg(27), Signed(0), Unsigned(size // self.d.banks)),
                i.SMA_SWAP(Extent(self.units)),
                *push(self.type, start, first * self.columns, cb << 16 | r << 8 | q, first, rows, self.units), COMMIT, wait(),
            ]  # fmt: skip
        return code

    def kernel(self, chunk: int) -> list[Instr]:
        """Everything in memory if it fits, chunks of rows; else output line by output line, through the ring."""
        d, x = self.d, self.d.layout
        code = describe(d)
        if d.ring >= x.stored:
            code += [*fill(0, x.stored // 2), *fill(x.stored // 2, x.stored - x.stored // 2), COMMIT, wait()]  # fmt: skip
            for first in range(0, x.rows, chunk):
                code += self.chunk(first, min(chunk, x.rows - first))
        else:
            line, tall = d.out_w * x.wn, (d.r - 1) * d.dilation_h + 1
            for n in range(x.groups * d.out_h):
                v = n // d.out_h * x.padded_h + n % d.out_h * d.stride_h
                code += [*fill(v, tall), COMMIT, wait(), *self.chunk(n * line, line)]
        return [*code, *store(x.rows * self.columns), EXIT]


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


def case(seed: int) -> Case:
    """A random convolution that fits everything."""
    rng = Random(seed)
    while True:
        machine, type = rng.choice((SMALL, SMALL, WIDE)), rng.choice(list(Element))
        r, s = rng.choice((1, 2, 3)), rng.choice((1, 2, 3, 5))
        t = rng.randrange(1, s + 1)
        channels = rng.choice((1, 3, 5, 8, 11, 16, 20)) if t == 1 else rng.randrange(1, 5)
        if t * channels > machine.array_rows and t > 1:
            continue
        d = ConvDesc.of(
            image=BASE + 4 * rng.randrange(16), base=16 * rng.randrange(4), height=rng.randrange(1, 8), width=rng.randrange(1, 12),
            channels=channels, images=rng.choice((1, 1, 2, 3, 8, 9)), r=r, s=s, t=t,
            pad=tuple(rng.randrange(3) for _ in range(4)), stride=(rng.randrange(1, 4), rng.randrange(1, 4)),
            dilation=(rng.randrange(1, 3), rng.randrange(1, 3)), wn=rng.choice((None, 1, 2, 4, 8)),
            pitch=channels + rng.choice((0, 0, 3)), bytes=BYTES[type], banks=machine.array_rows,
        )  # fmt: skip
        if d.out_h < 1 or d.out_w < 1:
            continue
        ring = rng.choice((d.ring, d.ring, (d.r - 1) * d.dilation_h + 1 + rng.randrange(3)))
        d = replace(d, ring=min(ring, d.ring))
        columns = machine.array_columns * 32 // (8 * d.bytes) // 2
        units = 1
        if d.check(WEIGHTS) or d.layout.rows * columns > OUTPUT // 16 or d.layout.rows > 400:
            continue
        return Case(type, machine, d, units, seed)


@pytest.mark.parametrize("seed", range(24))
def test_pushes_of_all_passes_are_the_convolution(seed: int) -> None:
    c = case(seed)
    rng = Random(seed)
    code = c.kernel(rng.choice((c.d.layout.rows, 7, 40)))
    y, _ = agreed(program(code, c.machine), c.x, ENGINES[: 1 + 2 * (FAST)])
    expected = c.oracle()
    got = y[: 4 * expected.size].view(np.float32).reshape(expected.shape)
    assert (got == expected).all()


FAST = True
