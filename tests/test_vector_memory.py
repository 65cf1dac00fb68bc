"""Vector memory: convolution by fills and pushes against numpy, the layout, and counters.

The oracle knows nothing of words, banks, rings or taps: a padded image, windows, and a chain of fused multiply-adds in the order (r, q, c).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import pytest
from vector_programs import (
    BYTES,
    COMMIT,
    DONE,
    EXIT,
    F16,
    FILLED,
    FILTER,
    INPUT,
    OUTPUT,
    PLAIN,
    ROW,
    SET,
    SMALL,
    TPU,
    URZ,
    WEIGHED,
    WEIGHTS,
    WIDE,
    agreed,
    copy,
    describe,
    fill,
    program,
    push,
    store,
    umov,
    wait,
)

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import KnapperError
from knapper.isa.machine import Machine
from knapper.isa.modifiers import (
    SR,
    Bits32,
    Direction,
    Element,
    IntType,
    Start,
    Width,
)
from knapper.isa.operands import Extent, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE
from knapper.isa.vector_memory import ConvDesc
from knapper.runtime.session import Session

SPECIAL = (-0.0, np.inf, -np.inf, np.nan, 1e-30, -1e-30)


@dataclass
class Case:
    """A convolution of random numbers, its descriptor, and the oracle."""

    type: Element
    machine: Machine
    d: ConvDesc
    units: int = 1
    seed: int = 0
    special: bool = False
    """Whether there are numbers in it with which a step too many or too few shows."""
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
        for a in (self.image, self.w) if self.special else ():
            with np.errstate(over="ignore"):
                a.ravel()[rng.integers(0, a.size, 3)] = rng.choice(SPECIAL, 3).astype(a.dtype)
        self.store()

    def store(self) -> None:
        """Image and weights are the input."""
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

    @np.errstate(all="ignore")
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
        return Case(type, machine, d, units, seed, special=seed % 2 == 1)


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


@pytest.mark.parametrize(("channels", "t"), [(3, 2), (3, 1), (11, 1)])
def test_only_steps_of_the_filter_happen(channels: int, t: int) -> None:
    """Sums that vanished to -0 stay so, beside banks that hold nothing, taps behind the line, and weights of NaN for all of them."""
    d = ConvDesc.of(image=BASE, base=0, height=3, width=5, channels=channels, images=2, r=2, s=3, t=t, banks=8)  # fmt: skip
    c = Case(Element.BF16, SMALL, d)
    c.image[:], c.w[:] = -1e-30, 1e-30
    c.store()
    assert (bits(c.oracle()) == 1 << 31).all()
    convolves(c, 7)


def convolves(c: Case, chunk: int) -> None:
    """All engines compute the oracle's numbers."""
    y, _ = agreed(program(c.kernel(chunk), c.machine), c.x)
    expected = c.oracle()
    got = y[: 4 * expected.size].view(np.float32).reshape(expected.shape)
    assert (bits(got) == bits(expected)).all()


def bits(y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """All NaNs are one."""
    return np.where(np.isnan(y), np.float32(np.nan), y).view(np.uint32)


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


@pytest.mark.parametrize("first", [0, 3, 32])
def test_a_command_may_do_nothing(first: int) -> None:
    """A fill and a push of no rows, wherever they begin, and a transfer of no bytes."""
    copies = [*fill(first % 6, 0), *copy(WEIGHTS, 0, 0)]
    assert counted([*describe(PLAIN), *copies, *DONE]) == {}
    pushed = push(F16, SET, 0, 0, first, 0)
    assert "IM2COL.PUSH" not in counted([*FILLED, *WEIGHED, *pushed, *DONE])


@pytest.mark.parametrize("matrix", [True, False])
def test_multiply_accumulates_of_a_push_are_counted(matrix: bool) -> None:
    """Those of kernels that are matrix products, like all others."""
    made = program([*FILLED, *WEIGHED, *push(F16, SET, 0, 0, 0, 32), *DONE, EXIT])
    made = replace(made, kernels={"k": replace(made.kernels["k"], matrix=matrix)})
    for engine in ("reference", "fast"):
        name: Any = engine
        stats = Session(made).run({"x": np.zeros(INPUT, np.uint8)}, engine=name).stats
        assert stats.macs_executed == (32 * 8 * 16 if matrix else 0)
