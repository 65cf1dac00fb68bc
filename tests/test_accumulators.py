"""Matrix products on arrays with accumulator memory: the references' bits whatever the array's shape and dataflow, and its cycles.

Cases and their checks are those of `matrix_cases`; what is counted of the array is compared with other simulators' numbers.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_cases import CONVS, MATMULS, Case, conv, group_of, matmul, same

from knapper.compiler.codegen.generator import GENERATORS, Options, modes_of
from knapper.compiler.codegen.matrix.blocks import product
from knapper.compiler.driver import Options as CompileOptions
from knapper.compiler.driver import finish
from knapper.compiler.ir import Graph, evaluate
from knapper.compiler.schedule import schedule
from knapper.frontends.reproduce.claims import Lab
from knapper.frontends.reproduce.simulators import Reference, references
from knapper.isa.errors import CompileError
from knapper.isa.instructions import LSMA
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Space, Start
from knapper.isa.program import Program
from knapper.runtime.budget import EngineName
from knapper.runtime.session import Session

WS, OS = (Machine.load(f"systolic-{dataflow}") for dataflow in ("ws", "os"))
SMALL = WS.with_(array_rows=8, array_columns=16, accumulator_bytes=4096, sms=4)
"""Arrays of the ISA's own shape, but with accumulators, on several SMs."""
WIDE = WS.with_(array_rows=24, array_columns=48, systolic_units=2, weight_double_buffer=1)
"""No powers of two, two units side by side, weights that load beside the stream."""
MACHINES = {"ws": WS, "os": OS, "8×16": SMALL, "2 of 24×48": WIDE}
ENGINE = GENERATORS["accumulating"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def offers(graph: Graph, machine: Machine) -> list[Options]:
    """The tiles that a launch by itself can have: the SMs begin in SIMD mode."""
    group = group_of(graph)
    assert ENGINE.serves(group, machine) is None
    return [o for o in ENGINE.candidates(group, machine) if modes_of(o)[0] == "simd"]


def program(graph: Graph, machine: Machine, options: Options, cache: Path) -> Program:
    forced = {"g": {"kind": "accumulating", **options}}
    return finish(graph, machine, CompileOptions(forced=forced, cache=cache))


def check(
    case: Case, machine: Machine, cache: Path, count: int = 2, engine: EngineName = "fast"
) -> None:
    """The first, the last and some tiles between have the reference's bits."""
    graph, inputs = case
    want, legal = evaluate(graph, inputs), offers(graph, machine)
    for options in (legal[0], *legal[1 :: max(1, len(legal) // count)][: count - 1], legal[-1]):
        session = Session(program(graph, machine, options, cache))
        result = session.run(inputs, engine=engine)
        session.close()
        for name, y in want.items():
            assert same(result.outputs[name], y), f"{options}: %{name} differs from the reference"
        assert result.stats.macs == product(group_of(graph)).macs


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", CONVS)
def test_convolutions_have_the_references_bits(name: str, machine: str, cache: Path) -> None:
    dtype = {"ws": "f16", "os": "bf16", "8×16": "f32"}.get(machine, "f16")
    check(conv(**CONVS[name], dtype=dtype), MACHINES[machine], cache)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", MATMULS)
def test_matrix_products_have_the_references_bits(name: str, machine: str, cache: Path) -> None:
    dtype = {"ws": "f32", "os": "f16", "8×16": "bf16"}.get(machine, "f32")
    check(matmul(**MATMULS[name], dtype=dtype), MACHINES[machine], cache)


@settings(max_examples=15)
@given(st.data())
def test_any_matrix_product_on_any_array(cache: Path, data: Any) -> None:
    def pick(*choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    machine = WS.with_(
        dataflow=pick("ws", "os", "sbws"), array_rows=pick(8, 16, 40), array_columns=pick(16, 32, 80),
        systolic_units=pick(1, 3), accumulator_bytes=pick(2048, 10000, 65536), weight_double_buffer=pick(0, 1),
    )  # fmt: skip
    m, k, n = (data.draw(st.integers(1, 90)) for _ in range(3))
    ta, tb, known = (data.draw(st.booleans()) for _ in range(3))
    a, b = ((k, m) if ta else (m, k)), ((n, k) if tb else (k, n))
    dtype = pick("f16", "bf16", "f32")
    check(matmul(a, b, dtype=dtype, trans_a=ta, trans_b=tb, known=known), machine, cache, count=1)


@pytest.mark.parametrize("machine", ["ws", "os", "2 of 24×48"])
@pytest.mark.parametrize(
    "case",
    [
        conv((1, 4, 5, 16), 20, 3, pad=1, after="residual"),
        conv((1, 3, 4, 12), 20, 3, pad=1, group=2),
        matmul((40, 20), (24, 40), trans_a=True, trans_b=True),
        matmul(**MATMULS["odd everything, a column added"], dtype="f32"),
        matmul((9, 100), (100, 20)),
    ],
    ids=["3x3", "groups", "transposed", "odd", "deep"],
)
def test_the_checking_engine_finds_nothing_to_complain_of(
    case: Case, machine: str, cache: Path
) -> None:
    """No hazard of a pending command, no race, no accumulator that is read before it is written."""
    check(case, MACHINES[machine], cache, count=1, engine="reference")


def test_a_launch_in_numpy_has_the_same_bits() -> None:
    graph, inputs = matmul(**MATMULS["odd everything, a column added"])
    for options in offers(graph, WS)[:2]:
        plan = schedule(graph, WS, {"g": {"kind": "accumulating", **options}})
        got, want = plan.evaluate(inputs), evaluate(graph, inputs)
        assert all(same(got[v], want[v]) for v in want)


# --- what the commands are


def commands(program: Program) -> list[LSMA]:
    (kernel,) = program.kernels.values()
    return [i for i in kernel.code if isinstance(i, LSMA)]


def test_chains_begin_with_set_and_lie_in_accumulators(cache: Path) -> None:
    """Output stationary, the array knows a tile's beginning by its `.SET`; nothing is cleared beforehand."""
    graph, _ = matmul((16, 512), (512, 16), known=True)
    for tile, starts in (
        ((16, 16, 512), {Start.SET: 1, Start.ADD: 31}),
        # the loop's body and the step after it, which may be a chain's first or not, and the last step
        ((16, 16, 128), {Start.SET: 2, Start.ADD: 2 * (7 + 1) + 8}),
    ):
        legal = next(o for o in offers(graph, OS) if o["tile"] == tile)
        found = commands(program(graph, OS, legal, cache))
        assert Counter(i.start for i in found) == starts
        assert {i.space for i in found} == {Space.ACC}


def test_a_fold_of_weights_streams_as_many_rows_as_there_are() -> None:
    graph, _ = matmul((196, 64), (64, 32))
    assert max(o["tile"][0] for o in offers(graph, WS)) == 196  # type: ignore[index]  # a tile


def test_c_fits_the_accumulators() -> None:
    for machine in MACHINES.values():
        for shape in ((1, 64, 16), (700, 64, 700), (5000, 32, 32)):
            graph, _ = matmul(shape[:2], shape[1:])
            for options in offers(graph, machine):
                tile: Any = options["tile"]
                bm, bn, _ = tile
                assert 4 * bm * bn <= machine.accumulator_bytes
                assert bm <= machine.array_rows or machine.dataflow != "os"


def test_executed_multiply_accumulates_are_those_of_the_machines_array(cache: Path) -> None:
    """Sizes that divide the array waste nothing; one more row of k costs a fold."""
    for machine, n, k in ((WS, 32, 64), (OS, 16, 64), (SMALL, 48, 64)):
        for more in (0, 1):
            graph, inputs = matmul((16, k + more), (k + more, n))
            smallest = min(offers(graph, machine), key=lambda o: o["tile"][2])  # type: ignore[index]
            stats = Session(program(graph, machine, smallest, cache)).run(inputs).stats
            assert stats.macs_executed >= stats.macs
            assert (stats.macs_executed == stats.macs) == (not more)


def test_machines_without_accumulators_and_odd_arrays_are_refused() -> None:
    group = group_of(matmul((16, 16), (16, 16))[0])
    assert "no accumulator memory" in str(ENGINE.serves(group, Machine.load("sma3")))
    odd = WS.with_(array_rows=12)
    assert "units of 12 × 32" in str(ENGINE.serves(group, odd))
    tiny = WS.with_(accumulator_bytes=4)
    assert "no tile" in str(ENGINE.serves(group, tiny))
    double = group_of(matmul((16, 16), (16, 16), dtype="f64")[0])
    assert "operands are f64" in str(ENGINE.serves(double, WS))
    with pytest.raises(CompileError, match="E412"):
        schedule(matmul((8, 8), (8, 8), dtype="f64")[0], WS, {"g": {"kind": "accumulating"}})


def test_the_plan_gives_products_to_the_array() -> None:
    for machine in (WS, OS):
        plan = schedule(conv((1, 28, 28, 128), 128, 3, pad=1)[0], machine)
        assert [s.kind for s in plan.steps] == ["accumulating"]


# --- the array's cycles, beside other simulators'

LAB = Lab()


@pytest.mark.parametrize("row", [*references()], ids=lambda r: f"{r.simulator} {r.gemm}")
def test_arrays_work_as_long_as_other_simulators_say(row: Reference) -> None:
    """SCALE-Sim numbers its last cycle from 0, so its count is one less; of the shortest product that is more than the tolerance."""
    if row.simulator == "scale-sim":
        assert row.ours(LAB) == row.cycles + 1
    else:
        assert abs(row.difference(LAB)) <= row.tolerance


def test_arrays_that_differ_do_not_agree() -> None:
    """The comparison can fail: a fill that is a tenth shorter is seen in all but the largest products."""
    fill = LAB.moving("lsma_fill", 0.9)
    seen = [abs(r.difference(fill)) > r.tolerance for r in references("scale-sim")]
    assert sum(seen) > 15


@pytest.mark.parametrize("shape", [(784, 128, 1152), (784, 128, 128), (512, 256, 256), (1, 256, 512)])  # fmt: skip
@pytest.mark.parametrize("machine", [WS, OS], ids=["ws", "os"])
def test_predictions_are_near_what_is_timed(
    machine: Machine, shape: tuple[int, int, int], cache: Path
) -> None:
    m, n, k = shape
    graph, inputs = matmul((m, k), (k, n), known=True)
    options = min(offers(graph, machine), key=lambda o: ENGINE.cost(group_of(graph), o, machine))
    result = Session(program(graph, machine, options, cache)).run(inputs, timing=True)
    (launch,) = result.stats.launches
    assert launch.measured
    predicted = ENGINE.cost(group_of(graph), options, machine)
    assert predicted == pytest.approx(launch.measured.timing.cycles, rel=0.25)


def test_what_a_launch_takes_is_more_than_what_its_array_takes() -> None:
    row = next(iter(references("scale-sim")))
    (launch,) = LAB.run(row.gemm, row.target).launches
    busy = launch.timing.array_cycles / (launch.timing.cycles - WS.launch_cycles)
    assert launch.timing.busy["array"] == pytest.approx(busy)
    assert np.all(0 < busy < 1)
