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

from knapper.isa import asm, generate, image
from knapper.isa import instructions as i
from knapper.isa.core import Extent, Guard, Instr, Label, Pred, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.errors import KnapperError
from knapper.isa.machine import Machine
from knapper.isa.modifiers import (
    SR,
    Bits32,
    Cmp,
    Direction,
    Element,
    FloatType,
    IntType,
    Start,
    Width,
)
from knapper.isa.program import BASE, Kernel, Launch, Operand, Port, Program
from knapper.isa.vector_memory import ConvDesc
from knapper.isa.verify import code_problems, verify
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
        """Weights by pass, [passes, P, columns], NaN where a bank holds nothing that counts."""
        d, tiles = self.d, []
        for r, q, cb in self.passes():
            tile = np.full((d.banks, self.columns), np.nan, self.w.dtype)
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
        units = rng.choice((1, 2))
        columns = machine.array_columns * 2 // d.bytes * units
        if d.check(WEIGHTS) or d.layout.rows * columns > OUTPUT // 16 or d.layout.rows > 400:
            continue
        return Case(type, machine, d, units, seed)


@pytest.mark.parametrize("seed", range(24))
def test_pushes_of_all_passes_are_the_convolution(seed: int) -> None:
    c = case(seed)
    convolves(c, Random(seed).choice((c.d.layout.rows, 7, 40)))


def test_an_array_of_a_tpu_convolves() -> None:
    """128 banks: two words of channels, and taps side by side."""
    for channels, t in ((136, 1), (40, 3)):
        d = ConvDesc.of(
            image=BASE, base=0, height=2, width=4, channels=channels, images=2, r=1, s=3, t=t, pad=(0, 1, 0, 1)
        )  # fmt: skip
        convolves(Case(Element.BF16, TPU, d), 16)


def convolves(c: Case, chunk: int) -> None:
    """All engines compute the oracle's numbers."""
    y, _ = agreed(program(c.kernel(chunk), c.machine), c.x)
    expected = c.oracle()
    got = y[: 4 * expected.size].view(np.float32).reshape(expected.shape)
    assert (got == expected).all()


# --- hazards and faults, told alike by both checking engines --------------------------------------------------------------------------


def fault(code: list[Instr], engines: tuple[str, ...] = ENGINES[::2], **settings: Any) -> str:
    """The fault of a program."""
    told = []
    x = np.arange(INPUT, dtype=np.uint32).astype(np.uint8)
    for engine in engines:
        with pytest.raises(KnapperError) as e:
            run(program(code, **settings), x, engine)
        told.append(f"{e.value} {e.value.hint}")
    assert {*told} == {told[0]}
    return told[0]


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


def lds(at: int) -> Instr:
    return i.LDS(Width._32, Reg(4), URZ, Reg(255), Signed(at))


def sts(at: int) -> Instr:
    return i.STS(Width._32, URZ, Reg(255), Signed(at), Reg(255))


PENDING = "which a pending systolic command"
HAZARDS: dict[str, tuple[list[Instr], str]] = {
    "a load of what a fill writes": (
        [*BEGIN, *fill(1, 1), COMMIT, lds(64 + ROW)],
        f"lane 0 reads 4 bytes of shared memory at {64 + ROW:#x}, {PENDING} writes",
    ),
    "a store into what a transfer writes": (
        [*copy(512, 0, 64), COMMIT, sts(512)],
        f"lane 0 writes 4 bytes of shared memory at 0x200, {PENDING} writes",
    ),
    "a store into what a push reads": (
        [*FILLED, *WEIGHED, *PUSH, COMMIT, sts(64)],
        f"lane 0 writes 4 bytes of shared memory at 0x40, {PENDING} reads",
    ),
    "a push of what a fill of its own group writes": (
        [*FILLED, *WEIGHED, *fill(0, 1), *PUSH, *DONE],
        f"lane 0 reads 128 bytes of shared memory at 0x40, {PENDING} writes",
    ),
    "a fill of what a push reads": (
        [*FILLED, *WEIGHED, *PUSH, COMMIT, *fill(0, 1), *DONE],
        f"lane 0 writes 128 bytes of shared memory at 0x40, {PENDING} reads",
    ),
    "two fills of a row": (
        [*BEGIN, *fill(0, 2), *fill(1, 1), *DONE],
        f"lane 0 writes 128 bytes of shared memory at {64 + ROW:#x}, {PENDING} writes",
    ),
    "two transfers to a place": (
        [*copy(0, 0, 64), *copy(48, 0, 32), *DONE],
        f"lane 0 writes 16 bytes of shared memory at 0x30, {PENDING} writes",
    ),
    "weights that a transfer writes": (
        [*copy(WEIGHTS, 0, 256), umov(27, WEIGHTS), i.SMA_LDB(F16, Extent(1), UReg(27), Signed(0), Unsigned(32)), *DONE],
        f"lane 0 reads 32 bytes of shared memory at {WEIGHTS:#x}, {PENDING} writes",
    ),
    "sums of a push": (
        [*FILLED, *WEIGHED, *PUSH, COMMIT, i.ACC_LD(Extent(1), Reg(1), URZ, Signed(0))],
        f"accumulator memory at 0x0, {PENDING} writes",
    ),
    "a descriptor that a fill uses": (
        [*BEGIN, *fill(0, 1), *BEGIN],
        "AsyncHazard: descriptor 0 changes, which a pending command uses",
    ),
    "a fill at the end": ([*BEGIN, *fill(0, 1), COMMIT], "the warp ends with 1 groups pending"),
    "a transfer without a group": ([*copy(0, 0, 16)], "1 commands that no SMA.COMMIT follows"),
    "a push of rows that nobody filled": (
        [*BEGIN, *fill(0, 2), *DONE, *WEIGHED, *push(F16, SET, 0, 2 << 8, 0, 32), *DONE],
        f"lane 0 reads 128 bytes of shared memory at {64 + 2 * ROW:#x}, where nothing wrote",
    ),
    "a push without weights": ([*FILLED, *PUSH, *DONE], "weights of unit 0 are used"),
    "a push on sums that nobody set": (
        [*FILLED, *WEIGHED, *push(F16, ADD, 0, 0, 0, 32), *DONE],
        "lane 0 reads 4 bytes of accumulator memory at 0x0, where nothing wrote",
    ),
    "a transfer of what nobody wrote": (
        [*copy(0, INPUT, 32), *DONE],
        f"lane 0 reads 16 bytes of global memory at {BASE + INPUT:#x}, where nothing wrote",
    ),
    "a fill of what nobody wrote": (
        [*describe(replace(PLAIN, image=BASE + INPUT - 16)), *fill(0, 6), *DONE],
        f"lane 0 reads 16 bytes of global memory at {BASE + INPUT:#x}, where nothing wrote",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HAZARDS)
def test_hazards_are_found(name: str) -> None:
    code, expected = HAZARDS[name]
    assert expected in fault([*code, EXIT])


def parted(first: list[Instr], second: list[Instr], between: list[Instr]) -> list[Instr]:
    """Warp 0 does one thing, warp 1 another, one after the other if a barrier lies between."""
    p, zero, other = Pred(0), Guard(0), Guard(8)
    code: list[Instr] = [i.S2R(SR.WARPID, Reg(0)), i.ISETP(Cmp.EQ, IntType.U32, p, Reg(0), Src.of(0))]  # fmt: skip
    code += [i.BRA(Label(len(code) + 1 + len(first)), guard=other), *first, *between]
    code += [i.BRA(Label(len(code) + 1 + len(second)), guard=zero), *second]
    return [*code, EXIT]


SHARING: dict[str, tuple[list[Instr], list[Instr], str]] = {
    "a descriptor of another warp": (
        BEGIN, [*fill(0, 1), *DONE],
        "a race: descriptor 0, with which warp 0 had to do since the last barrier",
    ),
    "a descriptor that another warp uses": (
        [*BEGIN, *fill(0, 1), *DONE], BEGIN,
        "a race: descriptor 0, with which warp 0 had to do since the last barrier",
    ),
    "two warps' transfers to a place": (
        [*copy(0, 0, 16), *DONE], [*copy(0, 0, 16), *DONE],
        "a race: lane 0 writes shared memory at 0x0, which warp 0 wrote since the last barrier",
    ),
    "a load of what another warp transferred": (
        [*copy(0, 0, 16), *DONE], [lds(0)],
        "a race: lane 0 reads shared memory at 0x0, which warp 0 wrote since the last barrier",
    ),
    "a transfer to what another warp loads": (
        [*copy(0, 0, 16), *DONE, lds(0)], [*copy(16, 0, 16), *copy(0, 0, 16), *DONE],
        "a race: lane 0 writes shared memory at 0x0, which warp 0 wrote since the last barrier",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARING)
def test_warps_share_vector_memory_and_descriptors_across_barriers(name: str) -> None:
    first, second, expected = SHARING[name]
    assert expected in fault(parted(first, second, []), threads=64)
    agreed(program(parted(first, second, [BAR]), threads=64), np.zeros(INPUT, np.uint8))


# --- what contradicts itself: found in unchecked runs as well

BAD: dict[str, list[int]] = {}
for text, changes in {
    "an element has 2 or 4 bytes": {"bytes": 3},
    "sizes, strides and dilations are at least 1": {"stride_w": 0},
    "wn · wx is the number of elements in a word": {"wx_log2": 1},
    "T is at most S, and T copies of the channels fit the banks": {"t": 2},
    "the windows lie in the padded image": {"out_h": 5},
    "the pitch is at least the channels": {"pitch": 7},
    "the image begins at a multiple of its element": {"image": BASE + 1},
    "a stored row fits shared memory": {"width": 65535, "pad_l": 255},
    "the ring begins at a multiple of 16 and fits shared memory": {"ring": 1000},
}.items():
    BAD[text] = replace(PLAIN, **changes).words()  # type: ignore[arg-type]  # numbers


@pytest.mark.parametrize("text", BAD)
def test_a_descriptor_that_contradicts_itself_is_a_fault(text: str) -> None:
    told = fault([*describe(BAD[text]), EXIT], ENGINES)
    assert f"a descriptor breaks a rule: {text}" in told
    assert ConvDesc.from_words(BAD[text], 8).check(SHARED).startswith(text)
    assert not PLAIN.check(SHARED)


ASKED: dict[str, tuple[list[Instr], str]] = {
    "a fill beyond the stored rows": ([*BEGIN, *fill(5, 2)], "0x5 breaks a rule: a fill begins"),
    "a fill of more than the ring": (
        [*describe(replace(PLAIN, ring=3)), *fill(0, 4)],
        "0x0 breaks a rule: a fill begins and ends among the stored rows, and has at most a ring of them",
    ),
    "a push beyond the patch matrix": (
        [*FILLED, *push(F16, SET, 0, 0, 100, 29)], "0x64 breaks a rule: a push begins",
    ),
    "a tap beyond the filter": ([*FILLED, *push(F16, SET, 0, 3, 0, 1)], "0x3 breaks a rule: a tap"),
    "channels beyond the image": (
        [*FILLED, *push(F16, SET, 0, 1 << 16, 0, 1)], "0x10000 breaks a rule: a tap",
    ),
    "elements of another size": (
        [*FILLED, *push(Element.F32, SET, 0, 0, 0, 1)], "0x4 breaks a rule: a push has elements",
    ),
    "a transfer of half a line": ([*copy(0, 0, 24)], "0x18 breaks a rule: a transfer is a multiple"),
    "a transfer to half a line": (
        [*copy(8, 0, 16)], "writes 16 bytes of shared memory at 0x8, which is not a multiple of 16",
    ),
    "a transfer out of shared memory": (
        [*copy(SHARED - 16, 0, 32)], f"shared memory at {SHARED:#x}, which lies outside it",
    ),
    "a transfer from behind global memory": (
        [*copy(0, INPUT + OUTPUT - 16, 32)],
        f"global memory at {BASE + INPUT + OUTPUT:#x}, which lies outside it",
    ),
    "an image before global memory": (
        [*describe(replace(PLAIN, image=BASE - 32)), *fill(1, 1)],
        f"lane 0 reads 16 bytes of global memory at {BASE - 32:#x}, which lies outside it",
    ),
    "an image that ends behind global memory": (
        [*describe(replace(PLAIN, image=BASE + INPUT + OUTPUT - 16)), *fill(1, 1)],
        f"global memory at {BASE + INPUT + OUTPUT:#x}, which lies outside it",
    ),
    "sums out of accumulator memory": (
        [*FILLED, *push(F16, SET, SMALL.accumulator_bytes // 4 - 16, 0, 0, 2)],
        "writes 128 bytes of accumulator memory",
    ),
    "a descriptor that nobody loaded": ([*fill(0, 1, cd=3)], "descriptor 3 is used"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_a_command_that_asks_for_what_is_not_there_is_a_fault(name: str) -> None:
    code, expected = ASKED[name]
    assert expected in fault([*code, *DONE, EXIT], ENGINES)


def test_a_part_of_a_warp_cannot_send() -> None:
    code = [i.S2R(SR.LANEID, Reg(0)), i.ISETP(Cmp.EQ, IntType.U32, Pred(0), Reg(0), Src.of(0)), i.EXIT(guard=Guard(0))]  # fmt: skip
    for command in (BEGIN, copy(0, 0, 16)):
        assert "lane 0 is not active" in fault([*code, *command, EXIT], ENGINES)


def test_a_launch_declares_what_its_copies_read() -> None:
    allowed = (Operand("x", BASE, 256, "r"), Operand("y", BASE + INPUT, OUTPUT, "w"))
    for code in ([*BEGIN, *fill(1, 1)], copy(0, 240, 32)):
        told = fault([*code, *DONE, EXIT], operands=allowed)
        assert f"global memory at {BASE + 256:#x}, which is no operand" in told


# --- machines

VOLTA = Machine.load("volta-8tc")


def refusals(code: list[Instr], machine: Machine) -> list[str]:
    (kernel,) = program([*code, EXIT], machine).kernels.values()
    return [p.message for p in code_problems(replace(kernel, shared_bytes=0), machine)]


def test_a_machine_without_vector_memory_refuses_its_commands() -> None:
    plain = SMALL.with_(vector_word=0)
    for command in (BEGIN[-1], fill(0, 1)[-1], copy(0, 0, 16)[-1], PUSH[-1]):
        (told,) = refusals([command], plain)
        assert "the machine has no vector memory" in told
        assert any("extension" in t for t in refusals([command], VOLTA))
    (told,) = refusals([PUSH[-1]], SMALL.with_(accumulator_bytes=0))
    assert "no accumulator memory" in told
    (told,) = refusals([PUSH[-1]], SMALL.with_(vector_word=4))
    assert "words of 4 elements: only 8 are emulated" in told


def test_beside_an_array_of_its_own_no_instruction_is_illegal() -> None:
    code = [PUSH[-1], i.FADD(FloatType.F32, Reg(1), Reg(2), Src.of(Reg(3)))]
    assert not refusals(code, SMALL)
    (told,) = refusals(code, SMALL.with_(separate_array=0))
    assert "IM2COL.PUSH is illegal in mode 'simd'" in told


def test_random_programs_for_it_verify_and_survive_assembly() -> None:
    for seed in range(4):
        p = generate.program(Random(seed), kernels=2, length=40, target="tpu-v2")
        verify(p)
        data = image.write(p)
        assert image.write(asm.assemble(*asm.disassemble(p), "text")) == data


# --- counters


def counted(code: list[Instr]) -> dict[str, dict[str, int]]:
    """Counters that are not 0, by mnemonic."""
    _, counts = agreed(program([*code, EXIT]), np.zeros(INPUT, np.uint8))
    table: dict[str, dict[str, int]] = {}
    names = (
        "l2_read",
        "smem_read",
        "smem_write",
        "vector_reads",
        "vector_writes",
        "rows",
        "sectors",
    )
    for instr, row in zip(code, counts.instructions, strict=False):
        found = {n: int(row[n]) for n in names if row[n]}
        if found:
            table[instr.mnemonic] = found
    return table


def test_words_of_a_port_access_are_counted() -> None:
    """A word of 8 banks and 8 elements is 128 bytes; 32 rows of the patch matrix are 4 pixels of 8 images: 4 words."""
    assert counted([*FILLED, *WEIGHED, *push(F16, SET, 0, 0, 0, 32), *DONE]) == {
        "FILL.DUP": {"l2_read": 2048, "smem_write": 6 * ROW, "vector_writes": 36, "sectors": 64},
        "DMA.LD": {"l2_read": 256, "smem_write": 256, "vector_writes": 2, "sectors": 8},
        "SMA.LDB": {"smem_read": 256, "vector_reads": 2},
        "IM2COL.PUSH": {"smem_read": 512, "vector_reads": 4, "rows": 32},
    }


def test_copies_are_written_each_and_fetched_once() -> None:
    """2 copies of 4 channels. With one image a word is 8 columns; a stride of 2 keeps it for 4 outputs, of which a line has 2."""
    d = replace(PLAIN, channels=4, images=1, t=2, wn_log2=0, wx_log2=3, pitch=4, stride_h=2, stride_w=2, out_h=2, out_w=2, ring=6)  # fmt: skip
    table = counted([*describe(d), *fill(0, 6), *DONE, *WEIGHED, *push(F16, SET, 0, 0, 0, 4), *DONE])  # fmt: skip
    assert table["FILL.DUP"] == {
        "l2_read": 128,
        "smem_write": 768,
        "vector_writes": 12,
        "sectors": 4,
    }
    assert table["IM2COL.PUSH"] == {"smem_read": 64, "vector_reads": 2, "rows": 4}


def test_elements_of_fp32_take_two_accesses() -> None:
    d = ConvDesc.of(image=BASE, base=0, height=1, width=3, channels=8, images=8, bytes=4, banks=8)
    weights = [
        *(*copy(WEIGHTS, 0, 256), *DONE, umov(27, WEIGHTS)),
        i.SMA_LDB(Element.F32, Extent(1), UReg(27), Signed(0), Unsigned(32)),
        *(i.SMA_SWAP(Extent(1)), *DONE),
    ]
    table = counted([*describe(d), *fill(0, 1), *DONE, *weights, *push(Element.F32, SET, 0, 0, 0, 24), *DONE])  # fmt: skip
    assert table["FILL.DUP"]["vector_writes"] == 6
    assert table["IM2COL.PUSH"]["vector_reads"] == 6
    assert table["SMA.LDB"]["vector_reads"] == 2


def test_multiply_accumulates_of_a_push_are_counted() -> None:
    code = [*FILLED, *WEIGHED, *push(F16, SET, 0, 0, 0, 32), *DONE, EXIT]
    for engine in ("reference", "fast"):
        name: Any = engine
        stats = Session(program(code)).run({"x": np.zeros(INPUT, np.uint8)}, engine=name).stats
        assert stats.macs_executed == 32 * 8 * 16


# --- the layout


def test_the_layout_is_what_a_fill_writes() -> None:
    """Every element of vector memory, read back word by word, is where `element_offset` says."""
    rng = np.random.default_rng(0)
    d = ConvDesc.of(
        image=BASE, base=32, height=3, width=5, channels=11, images=3, pad=(1, 2, 0, 1), wn=2, ring=5, banks=8
    )  # fmt: skip
    x = np.zeros(INPUT, np.uint8)
    image = rng.integers(1, 1 << 16, (3, 3, 5, 11)).astype(np.uint16)
    x[: 2 * image.size] = image.view(np.uint8).ravel()
    words = d.ring_bytes // 4
    loads: list[Instr] = [
        i.ULDC(Bits32._64, UReg(2), Unsigned(8)), i.S2R(SR.LANEID, Reg(0)), i.SHF(Direction.L, IntType.U32, Reg(0), Reg(0), Src.of(2)),
    ]  # fmt: skip
    for n in range(words // 32):
        loads += [
            i.LDS(Width._32, Reg(1), URZ, Reg(0), Signed(32 + 128 * n)),
            i.STG(Width._32, UReg(2), Reg(0), Signed(128 * n), Reg(1)),
        ]
    y, _ = agreed(program([*describe(d), *fill(2, 5), *DONE, *loads, EXIT]), x)
    stored = y[: d.ring_bytes].view(np.uint16)
    expected = np.zeros_like(stored)
    for v in range(2, 7):
        g, yp = divmod(v, d.layout.padded_h)
        for xs in range(2, 7):
            for n in range(2 * g, min(2 * g + 2, 3)):
                for c in range(11):
                    if 1 <= yp <= 3:
                        at = d.element_offset(v, xs, c // 8, c % 8, n) - 32
                        expected[at // 2] = image[n, yp - 1, xs - 2, c]
    assert (stored == expected).all()


def test_words_of_a_descriptor_say_it_all() -> None:
    for seed in range(20):
        d = case(seed).d
        assert ConvDesc.from_words(d.words(), d.banks) == d
    with pytest.raises(KnapperError, match="E502"):
        replace(PLAIN, pad_t=256).words()
