"""Weights of four bits in the systolic arrays: ILSMA.N against products in 64-bit integers, twice the columns of ILSMA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from systolic_programs import (
    COMMIT,
    EXIT,
    INPUT,
    SHARED,
    TARGET,
    URZ,
    A,
    B,
    begin,
    both,
    end,
    run,
    swap,
    systolic,
    wait,
)

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import KnapperError
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Beside, Nibble, Pair, Space, Start
from knapper.isa.operands import Extent, Reg, Signed, Src, Unsigned
from knapper.isa.systolic import Array
from knapper.runtime.energy import cost
from knapper.runtime.timing.commands import work

FUSED, TYPED = (
    {**TARGET, "extensions": [*TARGET["extensions"], "fusion", *more]} for more in ([], ["types"])
)
BYTES: dict[Beside, Any] = {Beside.S8: np.int8, Beside.U8: np.uint8}


def lsma(a: Beside, m: int, units: int, start: Start, at: int, pitch: int) -> Instr:
    where = URZ, Signed(at), Unsigned(pitch)
    return i.ILSMA_N(a, start, Space.REG, Src.of(Reg(8)), Extent(units), Extent(m), *where)


def ldb(b: Nibble, units: int, at: int, pitch: int) -> Instr:
    return i.ISMA_LDB_N(b, Extent(units), URZ, Signed(at), Unsigned(pitch))


@pytest.mark.parametrize("start", Start)
@pytest.mark.parametrize(("m", "units"), [(1, 1), (17, 2), (40, 3)])
@pytest.mark.parametrize("b_type", Nibble)
@pytest.mark.parametrize("a_type", Beside)
def test_a_product_is_exact_and_wraps(
    a_type: Beside, b_type: Nibble, m: int, units: int, start: Start
) -> None:
    n, steps, rng = 32 * units, 2, np.random.default_rng(m)
    a = rng.integers(-128, 128, (m, 16 * steps)).astype(np.int8).view(BYTES[a_type])
    codes = rng.integers(0, 16, (16 * steps, n)).astype(np.uint8)
    codes[0, :16] = range(16)
    c = rng.integers(-(2**31), 2**31, (m, n)).astype(np.int32)
    c[0, :8] = 2**31 - 1
    x, pitch = np.zeros(INPUT, np.uint8), n + 8
    for r, row in enumerate(a):
        x[A + 40 * r :][: row.size] = row.view(np.uint8)
    for r, row in enumerate(codes[::2] | codes[1::2] << 4):
        x[B + pitch * r :][:n] = row
    x[SHARED:][: c.nbytes] = c.view(np.uint8).ravel()
    code: list[Instr] = []
    for s in range(steps):
        first = start if s == 0 else Start.ADD
        loads = [ldb(b_type, units, B + 8 * s * pitch, pitch), swap(units)]
        code += [*loads, lsma(a_type, m, units, first, A + 16 * s, 40), COMMIT]
    words = -(-m * n // 32)
    whole = [*begin(range(8, 8 + words)), *systolic([*code, wait()]), *end(8, words)]
    y = both(whole, x, target=TYPED)
    w = b_type.format.decode(codes).astype(np.int64)
    want = a.astype(np.int64) @ w + (c if start is Start.ADD else 0)
    assert np.array_equal(y[: 4 * m * n].view(np.uint32).reshape(m, n), want.astype(np.uint32))


def test_half_the_multipliers_are_twice_the_products_in_the_same_time() -> None:
    machine, fields = Machine.load("sma3"), (Start.ADD, Space.REG, Src.of(Reg(8)), Extent(2), Extent(32), URZ, Signed(0), Unsigned(16))  # fmt: skip
    wide, narrow = i.ILSMA(Pair.S8, *fields), i.ILSMA_N(Beside.S8, *fields)
    assert narrow.macs(32) == 2 * wide.macs(32)
    assert work(narrow, machine) == work(wide, machine)
    (few, many) = (dict(cost(x, machine).issue) for x in (narrow, wide))
    assert few["mac8_systolic"] == many["mac8_systolic"]
    assert few["rf_write"] == 2 * many["rf_write"]
    assert few["a_broadcast"] == many["a_broadcast"]
    assert str(narrow) == "ILSMA.N.S8.ADD.REG R8, 2, 32, [URZ+0], 16"
    assert Instr.decode(narrow.encode()) == narrow
    assert Array.of(machine.to_dict()).columns_of(Beside.S8.across) == 32


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_weights_are_of_the_products_kind(engine: str, checked: bool) -> None:
    nibbles = [ldb(Nibble.S4, 2, B, 64), swap(2)]
    bytes_ = [i.ISMA_LDB(Pair.S8, Extent(1), URZ, Signed(B), Unsigned(64)), swap(1)]
    where = Space.REG, Src.of(Reg(8)), Extent(2), Extent(3), URZ, Signed(A), Unsigned(16)
    sums, on_bytes = lsma(Beside.U8, 3, 2, Start.SET, A, 16), i.ILSMA(Pair.U8, Start.SET, *where)
    for code, told in (
        ([*nibbles, on_bytes], "unit 0 holds weights of nibbles, the product is one of bytes"),
        ([*nibbles, *bytes_, on_bytes], "unit 1 holds weights of nibbles, the product is one of bytes"),
        ([*nibbles, *bytes_, sums], "unit 0 holds weights of bytes, the product is one of nibbles"),
    ):  # fmt: skip
        with pytest.raises(KnapperError, match=f"E619.*{told}"):
            run([*begin(), *systolic([*code, COMMIT, wait()]), EXIT], engine=engine, checked=checked, target=FUSED)  # fmt: skip


def test_flint_needs_decoders() -> None:
    code = [*begin(), *systolic([ldb(Nibble.FLINT4, 1, B, 32), swap(), COMMIT, wait()]), EXIT]
    with pytest.raises(KnapperError, match="it takes extension 'types'"):
        run(code, target=FUSED)
    run(code, target=TYPED)
