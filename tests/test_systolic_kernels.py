"""Products on systolic arrays: whatever the operands, the tile and the number of units, the bits of the Tensor Core and of the references.

The cases are those of the other matrix kernels. Each is a fused graph of one group, compiled for `sma2` and `sma3` with a tile that the
test forces, and for `volta-8tc` as the schedule likes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_cases import (
    CONVS,
    MATMULS,
    Case,
    Writer,
    conv,
    draw,
    group_of,
    matmul,
    same,
    some,
)

from knapper.compiler.codegen.generator import GENERATORS, modes_of
from knapper.compiler.codegen.matrix import cost
from knapper.compiler.codegen.matrix.blocks import product
from knapper.compiler.codegen.matrix.systolic import Strips
from knapper.compiler.driver import Options as CompileOptions
from knapper.compiler.driver import finish
from knapper.compiler.ir import Array, Graph, evaluate
from knapper.compiler.schedule import schedule
from knapper.isa.core import SIMD
from knapper.isa.machine import Machine
from knapper.runtime.session import Result, Session

VOLTA = Machine.load("volta-8tc")
SMA = {name: Machine.load(name) for name in ("sma2", "sma3")}
Options = dict[str, Any]


def offers(graph: Graph, machine: Machine) -> list[Options]:
    """What the generator offers a launch that finds the SM in SIMD mode."""
    generator, group = GENERATORS["systolic"], group_of(graph)
    assert generator.serves(group, machine) is None
    found = [dict(o) for o in generator.candidates(group, machine)]
    return [o for o in found if modes_of(o)[0] == SIMD]


def run(case: Case, machine: Machine, cache: Path, forced: Options, **how: Any) -> Result:
    graph, inputs = case
    options = CompileOptions(forced={"g": forced}, cache=cache)
    return Session(finish(graph, machine, options)).run(inputs, **how)


def check(case: Case, cache: Path, count: int = 2, exact: bool = True, **how: Any) -> None:
    """On both machines with a few tilings: Volta's bits, the reference's too if that is `exact`, and every multiply-add."""
    graph, inputs = case
    want = run(case, VOLTA, cache, {}).outputs
    assert not exact or all(same(want[v], y) for v, y in evaluate(graph, inputs).items())
    for machine in SMA.values():
        for options in some(offers(graph, machine), count):
            agree(case, machine, cache, options, want, **how)


def agree(
    case: Case,
    machine: Machine,
    cache: Path,
    options: Options,
    want: Mapping[str, Array],
    **how: Any,
) -> None:
    got = run(case, machine, cache, {"kind": "systolic", **options}, **how)
    for v, y in want.items():
        assert same(got.outputs[v], y), f"{machine.name} {options}: %{v} differs"
    assert got.stats.macs == product(group_of(case[0])).macs <= got.stats.macs_executed


def check_one(case: Case, cache: Path, data: Any) -> None:
    """A machine and a tiling that are drawn, against the reference."""
    machine = SMA[data.draw(st.sampled_from([*SMA]))]
    options = data.draw(st.sampled_from(offers(case[0], machine)))
    agree(case, machine, cache, options, evaluate(*case))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


# --- the bits


@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name: str, cache: Path) -> None:
    check(conv(**CONVS[name]), cache)


@pytest.mark.parametrize("name", MATMULS)
def test_matrix_products(name: str, cache: Path) -> None:
    check(matmul(**MATMULS[name]), cache)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("name", ["RGB", "3x3", "ragged groups"])
def test_convolutions_of_other_types(name: str, dtype: str, cache: Path) -> None:
    check(conv(**CONVS[name], dtype=dtype), cache, count=1)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("name", ["both transposed", "batch", "odd everything, a column added"])
def test_matrix_products_of_other_types(name: str, dtype: str, cache: Path) -> None:
    check(matmul(**MATMULS[name], dtype=dtype), cache, count=1)


@settings(max_examples=12)
@given(st.data())
def test_any_matrix_product(cache: Path, data: Any) -> None:
    """Odd sizes, batches that broadcast, transposed and computed operands."""
    m, k, n = (data.draw(st.one_of(st.integers(1, 9), st.integers(1, 140))) for _ in range(3))
    ta, tb, known = (data.draw(st.booleans()) for _ in range(3))
    lead_a, lead_b = data.draw(
        st.sampled_from([((), ()), ((2,), ()), ((3, 1), (2,)), ((2,), (2,))])
    )
    a, b = (*lead_a, *((k, m) if ta else (m, k))), (*lead_b, *((n, k) if tb else (k, n)))
    dtype = data.draw(st.sampled_from(["f16", "bf16", "f32"]))
    check_one(matmul(a, b, dtype=dtype, known=known, trans_a=ta, trans_b=tb), cache, data)


@settings(max_examples=10)
@given(st.data())
def test_any_convolution(cache: Path, data: Any) -> None:
    def pick(*choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    group, k = pick(1, 1, 2, 3), pick(1, 2, 3)
    x = (pick(1, 2), pick(5, 8), pick(5, 6), group * pick(1, 4, 8, 16))
    case = conv(
        x, group * pick(1, 7, 16), k, pick(1, 2), pick(0, 1), pick(1, 2), group, pick("f16", "bf16", "f32"),
        pick("relu", "residual"), pick(True, False),
    )  # fmt: skip
    check_one(case, cache, data)


def test_tiles_of_all_sizes(cache: Path) -> None:
    """Also those that cost says nobody should take; three k steps, the last one ragged, rows and columns too."""
    case, machine = matmul((100, 150), (150, 90), known=True), SMA["sma3"]
    want, found = evaluate(*case), offers(case[0], machine)
    assert {o["units"] for o in found} == {1, 2, 3}
    for options in found[::2]:
        agree(case, machine, cache, options, want)


EPILOGUES: dict[str, list[tuple[Any, ...]]] = {
    "nothing": [],
    "bias": [("Add", (48,))],
    "residual": [("Add", (36, 48))],
    "a column": [("Mul", (36, 1))],
    "Sigmoid": [("Add", (48,)), ("Sigmoid",)],
    "two residuals, clipped": [("Add", (36, 48)), ("Relu",), ("Add", (36, 48)), ("Neg",)],
}


@pytest.mark.parametrize(
    ("name", "stored"), [*itertools.product(EPILOGUES, ["f32", "f16"]), ("residual", "bf16")]
)
def test_epilogues(name: str, stored: str, cache: Path) -> None:
    w = Writer()
    a, b = w.value(draw((36, 72), "f16")), w.value(draw((72, 48), "f16"), True)
    y = w.op("MatMul", a, b, out="f32")
    for op, *plus in EPILOGUES[name]:
        y = w.op(op, y, *(w.value(draw(shape, "f32")) for shape in plus))
    case = w.case(y if stored == "f32" else w.op("Cast", y, to=stored))
    check(case, cache, count=1, exact="Sigmoid" not in name)


def test_two_results_of_one_launch(cache: Path) -> None:
    w = Writer()
    y = w.op("MatMul", w.value(draw((20, 32), "f16")), w.value(draw((32, 16), "f16")), out="f32")
    half = w.op("Cast", y, to="f16")
    check(w.case(half, w.op("Cast", w.op("Relu", y), to="bf16")), cache)


def test_infinities_next_to_edges_stay_what_they_are(cache: Path) -> None:
    """Rows, columns and k that do not exist are zero on both sides: 0 · Inf would leave NaN where the reference has none."""
    w = Writer()
    a, b = draw((17, 19), "f16"), draw((19, 18), "f16")
    a[-1, -1] = b[-1, -1] = np.inf
    check(w.case(w.op("MatMul", w.value(a), w.value(b), out="f32")), cache)


# --- both engines, and what a checked run would find

SMALL = {
    "3x3": conv((1, 5, 4, 16), 24, 3, pad=1, after="residual"),
    "RGB": conv((1, 6, 5, 3), 20, 3, pad=1, stride=2),
    "ragged": matmul((19, 70), (70, 37), (19, 37)),
    "both transposed": matmul((40, 24), (20, 40), trans_a=True, trans_b=True),
    "f32, batch": matmul((2, 9, 33), (2, 33, 17), dtype="f32"),
    "one k step": matmul((8, 8), (8, 16), dtype="bf16", known=True),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_reference_engine_agrees_and_finds_nothing_to_complain_of(
    name: str, cache: Path
) -> None:
    """No race, no stale C, no weights of another warp, no access outside of a buffer."""
    check(SMALL[name], cache, count=1, engine="reference")


@pytest.mark.parametrize("name", SMALL)
def test_a_checked_run_finds_nothing_to_complain_of(name: str, cache: Path) -> None:
    check(SMALL[name], cache, count=2, checked=True)


@pytest.mark.parametrize("name", SMALL)
def test_a_launch_in_numpy_has_the_same_bits(name: str) -> None:
    graph, inputs = SMALL[name]
    want = evaluate(graph, inputs)
    for machine in SMA.values():
        for options in some(offers(graph, machine), 2):
            plan = schedule(graph, machine, {"g": {"kind": "systolic", **options}})
            got = plan.evaluate(inputs)
            assert all(same(got[v], want[v]) for v in want)


# --- what is executed


@pytest.mark.parametrize("machine", SMA.values(), ids=[*SMA])
@pytest.mark.parametrize(
    "case",
    [matmul((128, 128), (128, 96), known=True), conv((1, 8, 8, 64), 96, 3, pad=1)],
    ids=["product", "convolution"],
)
def test_executed_macs_are_the_useful_ones_where_sizes_divide(
    case: Case, machine: Machine, cache: Path
) -> None:
    """96 columns are strips of two units and of three."""
    p, found = product(group_of(case[0])), offers(case[0], machine)
    dividing = [o for o in found if not any(n % b for n, b in zip((p.m, p.n, p.k), o["tile"], strict=True))]  # fmt: skip
    assert len(dividing) > 5
    for options in some(dividing, 3):
        stats = run(case, machine, cache, {"kind": "systolic", **options}).stats
        assert stats.macs == stats.macs_executed == p.macs


HUNGRY: dict[str, Case] = {
    "residual": conv((1, 15, 15, 64), 200, 3, pad=1, after="residual"),
    "RGB": conv((2, 33, 31, 3), 72, 7, 2, 3, after="residual"),
    "12 channels": conv((2, 26, 25, 12), 50, 3, pad=1, after="residual"),
    "f32": conv((1, 15, 15, 32), 100, 3, pad=1, after="residual", dtype="f32"),
    "odd": matmul((257, 301), (301, 201), (257, 201)),
    "both transposed": matmul((301, 257), (201, 301), (257, 1), trans_a=True, trans_b=True),
}


@pytest.mark.parametrize("name", HUNGRY)
def test_what_is_offered_has_enough_registers(name: str) -> None:
    """Of the tilings with most accumulators each can be lowered: C, the next tiles and the epilogue's operands fit."""
    generator, group, machine = GENERATORS["systolic"], group_of(HUNGRY[name][0]), SMA["sma3"]
    found = [o for o in offers(HUNGRY[name][0], machine) if modes_of(o) == (SIMD, SIMD)]
    most = max(o["tile"][0] * o["units"] for o in found)
    big = [o for o in found if o["tile"][0] * o["units"] >= most / 2 and o["tile"][2] <= 64]
    assert len(big) > 3
    for options in some(big, 8):
        (launch,) = generator.lower(group, options, machine).launches
        assert launch.kernel.registers <= 255


@pytest.mark.parametrize(("m", "n", "blocks"), [(3136, 64, 80), (784, 128, 80), (196, 256, 80), (49, 512, 72)])  # fmt: skip
def test_tiles_are_offered_that_fill_the_sms_in_one_round(m: int, n: int, blocks: int) -> None:
    """The rows of ResNet's images: none is a multiple of a round height."""
    graph, _ = matmul((m, 64), (64, n), known=True)
    tiles = {o["tile"][:2] for o in offers(graph, SMA["sma3"])}
    grids = {(bm, bn): -(-m // bm) * -(-n // bn) for bm, bn in tiles}
    assert max(count for count in grids.values() if count <= 80) >= blocks
    wasted = min(-(-m // bm) * bm * -(-n // bn) * bn / (m * n) for bm, bn in tiles)
    assert wasted < 1.03


def test_rereads_that_go_beyond_l2_are_predicted() -> None:
    """A round of 80 blocks of 128 × 128 reads 10,240 rows of A and a column of tiles; the next round reads the same rows again."""
    machine, k = SMA["sma3"], 1024
    t = Strips(128, 128, 64, 3, 4)

    def again(m: int, n: int, at_once: int = 80) -> float:
        p = product(group_of(matmul((m, k), (k, n))[0]))
        return cost.read_again(p, t, at_once, machine) / (2 * k)

    assert again(1024, 1024) == 0, "4 MB fit"
    beyond = 1 - machine.l2_bytes / (2 * k * (10240 + 512))
    assert again(10240, 512) == pytest.approx(3 * 10240 * beyond)
    assert again(10240, 512, 320) == 0, "one round"


@pytest.mark.parametrize("name", SMA)
def test_a_product_that_memory_bounds_keeps_memory_busy(name: str, cache: Path) -> None:
    """One block an SM, and its loads never pause: neither at a step's barriers nor while the arrays work on it."""
    case, machine = matmul((8, 6144), (6144, 80 * 16), known=True), SMA[name]
    (launch,) = run(case, machine, cache, {"tile": (8, 16, 256)}, timing=True).stats.launches
    assert launch.measured is not None
    assert launch.measured.timing.busy["dram"] > 0.95


def test_why_a_product_is_refused() -> None:
    generator = GENERATORS["systolic"]
    graph, _ = matmul((8, 8), (8, 8))
    assert generator.serves(group_of(graph), VOLTA) == "volta-8tc has no extension systolic"
    ints, _ = matmul((8, 8), (8, 8), dtype="i8")
    assert "operands are i8 and i8" in str(generator.serves(group_of(ints), SMA["sma2"]))
    wide = Machine.load("sma2").with_(array_columns=32)
    assert generator.serves(group_of(graph), wide) == "sma2 has units of 8 × 32, not 8 × 16"
