"""Bytes in the systolic arrays: ILSMA against products in 64-bit integers, from registers, accumulator memory and vector memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vector_programs as vector
from systolic_programs import (
    COMMIT,
    EXIT,
    INPUT,
    SHARED,
    URZ,
    A,
    B,
    begin,
    both,
    end,
    ldb,
    lsma,
    run,
    swap,
    systolic,
    wait,
)
from vector_programs import FILTER, WEIGHTS

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import KnapperError
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Element, Pair, Space, Start
from knapper.isa.operands import Extent, Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE
from knapper.isa.vector_memory import ConvDesc
from knapper.runtime.energy import cost

TYPES: dict[Pair, Any] = {Pair.S8: np.int8, Pair.U8: np.uint8}


def drawn(type: Pair, shape: tuple[int, int], seed: int, extreme: bool) -> Any:
    rng, limits = np.random.default_rng(seed), np.iinfo(TYPES[type])
    values = (
        [limits.min, limits.max, 0, limits.max] if extreme else range(limits.min, limits.max + 1)
    )
    return rng.choice(np.array(values, TYPES[type]), shape)


def paired(b: Any) -> Any:
    """Weights [k, n] as rows of pairs, [k / 2, 2 n]."""
    k, n = b.shape
    return np.ascontiguousarray(b.reshape(k // 2, 2, n).transpose(0, 2, 1)).reshape(k // 2, 2 * n)


def placed(a: Any, b: Any, c: Any) -> tuple[Any, int, int]:
    """Input with A, B as it is loaded, and C; their pitches."""
    x, pairs = np.zeros(INPUT, np.uint8), paired(b)
    pitches = a.shape[1] + 8, pairs.shape[1] + 8
    for at, rows, pitch in ((A, a, pitches[0]), (B, pairs, pitches[1])):
        for r, row in enumerate(rows):
            x[at + r * pitch :][: len(row)] = row.view(np.uint8)
    x[SHARED:][: 4 * c.size] = c.view(np.uint8).ravel()
    return x, *pitches


def product(
    a: Pair, b: Pair, m: int, units: int, steps: int, start: Start, pitches: tuple[int, int]
) -> list[Instr]:
    """C (+)= A · B, 16 of k at a time."""
    code: list[Instr] = []
    for s in range(steps):
        code += [
            i.ISMA_LDB(b, Extent(units), URZ, Signed(B + 8 * s * pitches[1]), Unsigned(pitches[1])),
            swap(units),
            i.ILSMA(
                a, start if s == 0 else Start.ADD, Space.REG, Src.of(Reg(8)), Extent(units), Extent(m), URZ,
                Signed(A + 16 * s), Unsigned(pitches[0]),
            ),
            COMMIT,
        ]  # fmt: skip
    return [*code, wait()]


@pytest.mark.parametrize("start", Start)
@pytest.mark.parametrize(("m", "units"), [(1, 1), (16, 2), (61, 3)])
@pytest.mark.parametrize("b_type", Pair)
@pytest.mark.parametrize("a_type", Pair)
def test_a_product_is_exact_and_wraps(
    a_type: Pair, b_type: Pair, m: int, units: int, start: Start
) -> None:
    n, steps = 16 * units, 3
    a = drawn(a_type, (m, 16 * steps), m, m % 2 == 0)
    b = drawn(b_type, (16 * steps, n), m + 1, m % 2 == 0)
    c = np.random.default_rng(2).integers(-(2**31), 2**31, (m, n)).astype(np.int32)
    c[0, :8] = 2**31 - 1
    x, *pitches = placed(a, b, c)
    words = -(-m * n // 32)
    code = product(a_type, b_type, m, units, steps, start, (pitches[0], pitches[1]))
    y = both([*begin(range(8, 8 + words)), *systolic(code), *end(8, words)], x)
    want = a.astype(np.int64) @ b.astype(np.int64) + (c if start is Start.ADD else 0)
    assert np.array_equal(y[: 4 * m * n].view(np.uint32).reshape(m, n), want.astype(np.uint32))


def test_a_command_on_bytes_costs_what_it_does_on_halves_but_for_the_multipliers() -> None:
    machine = Machine.load("sma3")
    fields = (
        Start.ADD,
        Space.REG,
        Src.of(Reg(8)),
        Extent(3),
        Extent(64),
        URZ,
        Signed(0),
        Unsigned(16),
    )
    integers, floats = i.ILSMA(Pair.S8, *fields), i.LSMA(Element.F16, *fields)
    assert integers.macs(32) == 2 * floats.macs(32) == 2 * 64 * 8 * 48
    (ours, theirs) = (dict(cost(x, machine).issue) for x in (integers, floats))
    assert ours.pop("mac8_systolic") == 2 * theirs.pop("fma16_systolic")
    assert ours == theirs
    assert str(integers) == "ILSMA.S8.ADD.REG R8, 3, 64, [URZ+0], 16"
    assert Instr.decode(integers.encode()) == integers


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_weights_are_of_the_products_kind(engine: str, checked: bool) -> None:
    bytes_ = [i.ISMA_LDB(Pair.S8, Extent(2), URZ, Signed(B), Unsigned(64)), swap(2)]
    floats = [ldb(Element.BF16, 2), swap(2)]
    sums = i.ILSMA(Pair.U8, Start.SET, Space.REG, Src.of(Reg(8)), Extent(2), Extent(3), URZ, Signed(A), Unsigned(16))  # fmt: skip
    again = [*floats, i.ISMA_LDB(Pair.U8, Extent(1), URZ, Signed(B), Unsigned(64)), swap(1)]
    for code, told in (
        ([*bytes_, lsma(Element.F16, 8, 1)], "unit 0 holds weights of bytes, the product is one of floats"),
        ([*floats, sums], "unit 0 holds weights of floats, the product is one of bytes"),
        ([*again, sums], "unit 1 holds weights of floats, the product is one of bytes"),
    ):  # fmt: skip
        with pytest.raises(KnapperError, match=f"E619.*{told}"):
            run(
                [*begin(), *systolic([*code, COMMIT, wait()]), EXIT], engine=engine, checked=checked
            )


# --- vector memory: an image of bytes is one of pairs of channels ------------------------------------------------------------------


def convolution(d: ConvDesc, machine: Machine, types: tuple[Pair, Pair], seed: int) -> None:
    """All engines compute the sums. d's channels are pairs."""
    a_type, b_type = types
    x, columns, layout = np.zeros(vector.INPUT, np.uint8), machine.array_columns, d.layout
    image = drawn(a_type, (d.images * d.height * d.width, 2 * d.pitch), seed, seed % 2 == 0)
    w = drawn(b_type, (d.r * d.s * 2 * d.channels, columns), seed + 1, seed % 2 == 0)
    x[: image.size] = image.view(np.uint8).ravel()
    code, size = [*vector.describe(d), *vector.fill(0, layout.stored), COMMIT, wait()], 0
    passes = [(r, q, cb) for r in range(d.r) for q in range(d.s) for cb in range(layout.blocks)]
    for n, (r, q, cb) in enumerate(passes):
        taps = w.reshape(d.r, d.s, -1, columns)[r, q, 2 * cb * d.banks : 2 * (cb + 1) * d.banks]
        tile = np.full((d.banks, 2 * columns), 77, w.dtype)  # 77 where a bank holds nothing
        tile[: len(taps) // 2] = paired(taps)
        size = tile.size
        x[FILTER + n * size :][:size] = tile.view(np.uint8).ravel()
        code += [
            *vector.copy(WEIGHTS, FILTER + n * size, size), COMMIT, wait(), vector.umov(27, WEIGHTS),
            i.ISMA_LDB(b_type, Extent(1), UReg(27), Signed(0), Unsigned(2 * columns)), swap(),
            vector.umov(30, 0), vector.umov(31, layout.rows),
            i.IM2COL_IPUSH(
                a_type, Start.ADD if n else Start.SET, Src.of(0), Extent(1), Unsigned(0),
                Src.of(cb << 16 | r << 8 | q), UReg(30), UReg(31),
            ),
            COMMIT, wait(),
        ]  # fmt: skip
    code += [*vector.store(layout.rows * columns), EXIT]
    y, _ = vector.agreed(vector.program(code, machine), x)
    padded = np.zeros((d.images, layout.padded_h, layout.padded_w, 2 * d.channels), np.int64)
    shape = (d.images, d.height, d.width, 2 * d.pitch)
    inside = image.reshape(shape)[..., : 2 * d.channels]
    padded[:, d.pad_t :, d.pad_l :][:, : d.height, : d.width] = inside
    want = np.zeros((d.images, d.out_h, d.out_w, columns), np.int64)
    for r in range(d.r):
        for s in range(d.s):
            window = padded[:, r :: d.stride_h, s :: d.stride_w][:, : d.out_h, : d.out_w]
            want += window @ w.reshape(d.r, d.s, -1, columns)[r, s].astype(np.int64)
    flat = want.transpose(1, 2, 0, 3).reshape(-1, columns)  # images of a group run fastest
    got = y[: 4 * layout.rows * columns].view(np.int32).reshape(-1, layout.wn, columns)
    assert np.array_equal(got[:, : d.images].reshape(-1, columns), flat)


@pytest.mark.parametrize("types", [(a, b) for a in Pair for b in Pair])
def test_pushes_of_bytes_are_the_convolution(types: tuple[Pair, Pair]) -> None:
    d = ConvDesc.of(
        image=BASE, base=64, height=4, width=5, channels=11, images=3, r=2, s=3, pad=(1, 0, 1, 2),
        stride=(1, 2), pitch=12, wn=4, banks=8,
    )  # fmt: skip
    convolution(d, vector.SMALL, types, 2 * types[0] + types[1])


def test_an_array_of_a_tpu_convolves_bytes() -> None:
    d = ConvDesc.of(
        image=BASE, base=0, height=2, width=3, channels=136, images=2, r=1, s=2, pad=(0, 1, 0, 0)
    )
    convolution(d, vector.TPU, (Pair.U8, Pair.S8), 1)
