"""Kernels for convolutions and matrix products: on both engines the bits of the ops' references, whatever the tile."""

from __future__ import annotations

from dataclasses import replace
from itertools import product as pairs
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_cases import (
    CONVS,
    DEPTHWISE,
    MACHINE,
    MATMULS,
    Case,
    Writer,
    cache,
    check,
    conv,
    draw,
    group_of,
    matmul,
    offers,
    program,
    same,
    some,
)

from knapper.compiler.codegen.generator import GENERATORS, Options
from knapper.compiler.codegen.matrix import hmma
from knapper.compiler.codegen.matrix.blocks import product
from knapper.compiler.codegen.matrix.geometry import dealt
from knapper.compiler.codegen.matrix.product import Broadcast, broadcast_of
from knapper.compiler.ir import NAMES, Type, evaluate
from knapper.compiler.schedule import schedule
from knapper.isa.instructions import HMMA
from knapper.isa.program import Kernel, Program
from knapper.runtime.session import Session

__all__ = ["cache"]  # the fixture


@pytest.mark.parametrize("name", CONVS)
def test_tensor_core_convolutions_have_the_references_bits(name: str, cache: Path) -> None:
    check(conv(**CONVS[name]), "hmma", cache)


@pytest.mark.parametrize("name", MATMULS)
def test_tensor_core_matrix_products_have_the_references_bits(name: str, cache: Path) -> None:
    check(matmul(**MATMULS[name]), "hmma", cache)


@pytest.mark.parametrize("name", CONVS)
def test_fp32_convolutions_have_the_references_bits(name: str, cache: Path) -> None:
    check(conv(**CONVS[name], dtype="f32"), "ffma", cache, count=2)


@pytest.mark.parametrize("name", MATMULS)
def test_fp32_matrix_products_have_the_references_bits(name: str, cache: Path) -> None:
    check(matmul(**MATMULS[name], dtype="f32"), "ffma", cache, count=2)


@pytest.mark.parametrize(
    "dtype", ["f16", "bf16", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"]
)
@pytest.mark.parametrize("known", [False, True])
def test_simd_lanes_multiply_every_type(dtype: str, known: bool, cache: Path) -> None:
    check(matmul((33, 20), (20, 24), dtype=dtype, known=known), "ffma", cache, count=2)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_convolutions_have_the_references_bits(
    name: str, dtype: str, cache: Path
) -> None:
    check(conv(**DEPTHWISE[name], dtype=dtype), "direct", cache, count=2)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("hmma", conv(**CONVS["3x3"])),
        ("hmma", conv(**CONVS["ragged groups"])),
        ("hmma", matmul(**MATMULS["both transposed"])),
        ("hmma", matmul(**MATMULS["odd everything, a column added"])),
        ("ffma", matmul(**MATMULS["plain"], dtype="f32")),
        ("direct", conv(**DEPTHWISE["with stride, batch"])),
    ],
)
def test_the_checking_engine_finds_nothing_to_complain_of(
    kind: str, case: Case, cache: Path
) -> None:
    """No race, no read of what was never written, no access outside of a buffer."""
    check(case, kind, cache, count=2, engine="reference")


@settings(max_examples=40)
@given(st.data())
def test_any_convolution(cache: Path, data: Any) -> None:
    def pick(*choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    group = pick(1, 1, 1, 2, 3)
    k, dilation = pick(1, 2, 3), pick(1, 2)
    x = (pick(1, 2), pick(5, 8), pick(5, 6), group * pick(1, 4, 8, 16))
    case = conv(
        x,
        group * pick(1, 7, 16),
        k,
        pick(1, 2),
        pick(0, 1),
        dilation,
        group,
        pick("f16", "bf16"),
        pick("relu", "residual"),
    )
    check(case, "hmma", cache, count=2)


@settings(max_examples=40)
@given(st.data())
def test_any_matrix_product(cache: Path, data: Any) -> None:
    size = st.integers(1, 70)
    m, k, n = data.draw(size), data.draw(size), data.draw(size)
    ta, tb, known = (data.draw(st.booleans()) for _ in range(3))
    a, b = ((k, m) if ta else (m, k)), ((n, k) if tb else (k, n))
    check(matmul(a, b, trans_a=ta, trans_b=tb, known=known), "hmma", cache, count=2)


@settings(max_examples=40)
@given(st.data())
def test_any_small_or_batched_product(cache: Path, data: Any) -> None:
    """Rows, columns and k of one, vectors, batch axes that broadcast, are missing, or are one."""

    def pick(*choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    m, k, n = (pick(1, 1, 2, 3, 8, 17, 33) for _ in range(3))
    batch = [pick(1, 2, 3) for _ in range(pick(0, 1, 2))]
    lead_a, lead_b = (tuple(pick(1, size) for size in batch)[pick(0, -1) :] for _ in range(2))
    ta, tb, known = (pick(False, True) for _ in range(3))
    a, b = (*lead_a, *((k, m) if ta else (m, k))), (*lead_b, *((n, k) if tb else (k, n)))
    if pick(False, False, True):
        (a, ta), (b, tb) = pick((((k,), False), (b, tb)), ((a, ta), ((k,), False)))
    dtype, kind = pick(("f16", "hmma"), ("f16", "ffma"), ("f32", "ffma"))
    case = matmul(a, b, dtype=dtype, known=known, trans_a=ta, trans_b=tb)
    check(case, kind, cache, count=2)
    graph, inputs = case
    got, want = schedule(graph, MACHINE).evaluate(inputs), evaluate(graph, inputs)
    assert all(same(got[v], want[v]) for v in want)


def test_every_number_of_warps_carries_any_tile_with_one_guard_a_move() -> None:
    for rows, cols, warps in pairs(range(1, 13), range(1, 9), (1, 2, 3, 4, 6, 8)):
        down, across = dealt(rows, cols, warps)
        assert down * across == warps
        assert rows % down == 0 or cols % across == 0
        assert -(-rows // down) * -(-cols // across) <= -(-rows // warps) * cols


@pytest.mark.parametrize("tile", [(48, 48, 32), (96, 48, 32), (112, 32, 32), (176, 32, 32)])
def test_tiles_need_not_be_powers_of_two(tile: tuple[int, int, int], cache: Path) -> None:
    graph, inputs = conv((1, 21, 31, 64), 48, 3, pad=1)
    want = evaluate(graph, inputs)
    for options in some([o for o in offers(graph, "hmma") if o["tile"] == tile], 3):
        got = Session(program(graph, "hmma", options, cache)).run(inputs).outputs
        assert all(same(got[v], want[v]) for v in want)


@pytest.mark.parametrize("warps", [(1, 2, 4, 8), (1, 3)])
def test_threads_read_entries_of_a_table_of_taps_that_are_there(
    warps: tuple[int, ...], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile that is 32 deep has two columns of fragments: of three warps the last carries none, and its entries lie behind the table."""
    monkeypatch.setattr(hmma, "WARPS", warps)
    graph, inputs = conv((2, 2, 2, 56), 48, 3, pad=1)
    chosen = [o for o in offers(graph, "hmma") if o["access"] == "gather"]
    assert chosen
    for options in chosen:
        got = Session(program(graph, "hmma", options, cache)).run(inputs, checked=True).outputs
        assert all(same(got[v], want) for v, want in evaluate(graph, inputs).items())


def test_a_launch_in_numpy_has_the_same_bits() -> None:
    for case, kind in (
        (conv(**CONVS["RGB"]), "hmma"),
        (matmul(**MATMULS["batch"], dtype="f32"), "ffma"),
        (conv(**DEPTHWISE["5x5"]), "direct"),
    ):
        graph, inputs = case
        want = evaluate(graph, inputs)
        for options in some(offers(graph, kind), 2):
            plan = schedule(graph, MACHINE, {"g": {"kind": kind, **options}})
            got = plan.evaluate(inputs)
            assert all(same(got[v], want[v]) for v in want)


# --- what is computed, and what is counted


def test_infinities_next_to_edges_stay_what_they_are(cache: Path) -> None:
    """Padding, missing rows and missing k are zero on both sides: 0 · Inf would leave NaN where the reference has none."""
    w = Writer()
    a, b = draw((17, 19), "f16"), draw((19, 18), "f16")
    a[-1, -1] = b[-1, -1] = np.inf
    y = w.op("MatMul", w.value(a), w.value(b), out="f32")
    check(w.case(y), "hmma", cache)


def test_two_results_of_one_launch(cache: Path) -> None:
    w = Writer()
    y = w.op(
        "MatMul", w.value(draw((20, 32), "f16")), w.value(draw((32, 16), "f16"), True), out="f32"
    )
    half = w.op("Cast", y, to="f16")
    z = w.op("Cast", w.op("Relu", w.op("Mul", y, w.value(draw((16,), "f32"), True))), to="f16")
    check(w.case(half, z), "hmma", cache)


def test_rounding_happens_where_a_cast_says(cache: Path) -> None:
    """f16 + f16 in a launch rounds as f16 addition does, not once at the end."""
    w = Writer()
    y = w.op("MatMul", w.value(draw((20, 32), "f16")), w.value(draw((32, 16), "f16"), True))
    r = w.value(draw((20, 16), "f16"))
    check(w.case(w.op("Mul", w.op("Add", y, r), r)), "hmma", cache)


DIVIDING = conv((1, 8, 8, 32), 64, 3, pad=1)


def dividing(cache: Path) -> Program:
    """A convolution whose sizes divide the tile."""
    graph, _ = DIVIDING
    options: Options = {"tile": (64, 64, 32), "warps": (1, 4), "access": "im2col"}
    assert options in offers(graph, "hmma")
    return program(graph, "hmma", options, cache)


def test_executed_macs_are_the_useful_ones_where_sizes_divide_the_tile(cache: Path) -> None:
    stats = Session(dividing(cache)).run(DIVIDING[1]).stats
    assert stats.macs == stats.macs_executed == 64 * 64 * 32 * 9


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64", "i8", "u16", "i32", "u32", "i64", "u64"])
def test_multiply_adds_of_every_type_are_counted(dtype: str, cache: Path) -> None:
    graph, inputs = matmul((64, 32), (32, 64), dtype=dtype)
    options = next(o for o in offers(graph, "ffma") if o["tile"][:2] == (64, 64))
    stats = Session(program(graph, "ffma", options, cache)).run(inputs).stats
    assert stats.macs == stats.macs_executed == 64 * 64 * 32


def test_a_deleted_step_is_missing_from_the_count(cache: Path) -> None:
    """The count comes from what ran. The step after the loop is the tail of the code: 2 of 18 steps of 16 k."""
    p = dividing(cache)
    ((name, kernel),) = p.kernels.items()
    code = list(kernel.code)
    branch = max(i for i, c in enumerate(code) if c.mnemonic == "BRA")
    keep = [i for i, c in enumerate(code) if not (isinstance(c, HMMA) and i > branch)]
    cut = replace(
        kernel,
        words=Kernel.encode(code[i] for i in keep),
        roles=tuple(kernel.roles[i] for i in keep),
    )
    stats = Session(replace(p, kernels={name: cut})).run(DIVIDING[1]).stats
    assert stats.macs == 64 * 64 * 32 * 9
    assert stats.macs_executed == 64 * 64 * 32 * 8


def test_rows_that_do_not_exist_are_not_multiplied(cache: Path) -> None:
    """49 rows take 4 of a tile's 8 rows of fragments."""
    graph, inputs = conv((1, 7, 7, 32), 32, 1)
    options = next(o for o in offers(graph, "hmma") if o["tile"][0] == 64 and o["tile"][1] == 32)
    stats = Session(program(graph, "hmma", options, cache)).run(inputs).stats
    assert stats.macs_executed == 64 * 32 * 32


def test_the_dense_loop_multiplies_most_of_the_time() -> None:
    """Of a big tile's instructions in the loop at least two of five are HMMA, and none is per-lane arithmetic."""
    graph, _ = conv((1, 32, 32, 64), 128, 3, pad=1)
    options = next(
        o
        for o in offers(graph, "hmma")
        if o["tile"][0] == 64 and o["warps"] == (1, 2) and o["tile"][1] == 128
    )
    (launch,) = GENERATORS["hmma"].lower(group_of(graph), options, MACHINE).launches
    code = launch.kernel.code
    jumps = [i for i, c in enumerate(code) if c.mnemonic == "BRA"]
    loop = code[int(code[jumps[0]].target) : jumps[0] + 1]  # type: ignore[attr-defined]
    assert sum(isinstance(c, HMMA) for c in loop) / len(loop) >= 0.4
    assert not [c for c in loop if type(c).unit in ("alu", "imul", "fma", "cvt")]
    assert len(code) <= 1500


def test_equal_groups_give_equal_kernels() -> None:
    """Names say content, and weights do not enter it."""
    options: Options = {"tile": (64, 32, 32), "warps": (1, 2), "access": "im2col"}
    graphs = [conv(**CONVS["3x3"])[0] for _ in range(2)]
    first, second = (GENERATORS["hmma"].lower(group_of(g), options, MACHINE) for g in graphs)
    assert first.launches[0].kernel == second.launches[0].kernel
    packed = [[a.tobytes() for a in x.constants.values()] for x in (first, second)]
    assert packed[0] != packed[1]


def test_a_row_of_very_many_taps_is_not_held_in_registers(cache: Path) -> None:
    """As of a short-time Fourier transform, which exporters write as a convolution of one channel."""
    w = Writer()
    taps = w.value(draw((1, 256, 1, 24), "f32"), True)
    y = w.op("Conv", w.value(draw((1, 1, 700, 1), "f32")), taps, strides=(1, 128), layout="NHWC")
    graph, _ = case = w.case(y)
    check(case, "ffma", cache, count=1)
    assert "256 taps" in str(GENERATORS["direct"].serves(group_of(graph), MACHINE))


@pytest.mark.parametrize("kind", ["hmma", "ffma", "direct"])
def test_weights_can_be_packed_without_code(kind: str) -> None:
    graph, _ = conv(**(DEPTHWISE["3x3"] if kind == "direct" else CONVS["RGB"]))
    generator, group = GENERATORS[kind], group_of(graph)
    for options in offers(graph, kind):
        packed = generator.pack(group, options, MACHINE)  # type: ignore[attr-defined]
        lowered = generator.lower(group, options, MACHINE)
        assert packed.keys() == lowered.constants.keys()
        assert all((packed[v] == lowered.constants[v]).all() for v in packed)


# --- what is chosen, and what is refused


@pytest.mark.parametrize(
    ("shape", "o", "k", "stride", "pad"),
    [
        ((1, 56, 56, 64), 256, 1, 1, 0),
        ((1, 14, 14, 256), 256, 3, 1, 1),
        ((1, 7, 7, 512), 512, 3, 1, 1),
        ((1, 28, 28, 256), 256, 3, 2, 1),
    ],
)
def test_small_images_get_small_tiles(shape: Any, o: int, k: int, stride: int, pad: int) -> None:
    """Fragments that hold no row at all waste work, blocks that are too few waste the machine."""
    graph, _ = conv(shape, o, k, stride, pad)
    generator, group = GENERATORS["hmma"], group_of(graph)
    best = min(
        generator.candidates(group, MACHINE), key=lambda c: generator.cost(group, c, MACHINE)
    )
    tile: Any = best["tile"]
    bm, bn, bk = tile
    p = product(group)
    rows = -(-p.m // 16) * 16
    assert p.k % bk == 0
    assert p.n % bn == 0
    assert -(-rows // bm) * (p.n // bn) >= 24
    assert rows * p.n * p.k <= 1.31 * p.macs


def test_each_kind_says_why_it_does_not_serve() -> None:
    reasons = {
        kind: GENERATORS[kind].serves(group_of(matmul((4, 4), (4, 4), dtype="f32")[0]), MACHINE)
        for kind in ("hmma", "ffma", "direct")
    }
    assert reasons == {
        "hmma": "operands are f32, the Tensor Core takes f16 and bf16",
        "ffma": None,
        "direct": "is no depthwise convolution",
    }
    bare = replace(MACHINE, extensions=("base", "custom"))
    assert (
        GENERATORS["hmma"].serves(group_of(matmul((4, 4), (4, 4))[0]), bare)
        == "volta-8tc has no extension conv, tensor"
    )


def test_an_epilogue_that_lies_unevenly_is_refused() -> None:
    graph, _ = matmul((2, 3, 16), (16, 8), plus=(2, 1, 8), known=True)
    assert "broadcasts along some of the rows" in str(
        GENERATORS["hmma"].serves(group_of(graph), MACHINE)
    )


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((3, 2, 17, 20), (20, 1, (680, 340))),
        ((20,), (0, 1, (0, 0))),
        ((3, 1, 1, 20), (0, 1, (20, 0))),
        ((17, 1), (1, 0, (0, 0))),
        ((), (0, 0, (0, 0))),
    ],
)
def test_how_an_operand_lies_over_the_result(shape: Any, strides: Any) -> None:
    p = product(group_of(matmul((3, 2, 17, 16), (2, 16, 20))[0]))
    way = broadcast_of(p, Type("f32", shape))
    assert way == Broadcast(*strides)


def test_draws_are_of_the_types_they_say() -> None:
    assert NAMES[draw((2,), "bf16").dtype] == "bf16" == NAMES[np.dtype(ml_dtypes.bfloat16)]
