"""Products whose pruned weights are followed tile by tile: the bits of dense ones, whatever the mask, on Tensor Cores and on arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matrix_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrix_cases import Case, conv, group_of, matmul, program, same, some

from knapper.compiler.codegen.generator import GENERATORS
from knapper.compiler.codegen.matrix.blocks import product
from knapper.compiler.codegen.matrix.tilewise import plan as tilewise_plan
from knapper.compiler.codegen.matrix.tilewise.tables import ITEM, balanced, deltas
from knapper.compiler.driver import Options, plan
from knapper.compiler.encoding import Encoding
from knapper.compiler.ir import Array, evaluate
from knapper.isa.gather import TILE
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

MACHINES = {"hmma": "volta-8tc", "systolic": "sma3"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=[*MACHINES])
def kind(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine; cases are compiled for a machine that has it."""
    monkeypatch.setattr(cases, "MACHINE", Machine.load(MACHINES[request.param]))
    return str(request.param)


def masked(w: Array, tile: int, rows: float, columns: float, seed: int = 0) -> Array:
    """Weights [..., n] of which a part of the columns is left, and in each tile a part of the rows."""
    rng, m = np.random.default_rng(seed), w.reshape(-1, w.shape[-1]).copy()
    kept = rng.random(m.shape[1]) < columns
    m[:, ~kept] = 0
    for i in range(0, kept.sum(), tile):
        some_ = np.flatnonzero(kept)[i : i + tile]
        m[np.ix_(rng.random(len(m)) >= rows, some_)] = 0
    return m.reshape(w.shape)


def pruned(
    case: Case, tile: int, rows: float = 0.5, columns: float = 0.7, name: str = "tw", seed: int = 0
) -> Case:
    """The case with its weights pruned, and an encoding that says so."""
    graph, inputs = case
    p = product(group_of(graph))
    w = graph.constants[p.b]
    kept = (
        masked(w.T, tile, rows, columns, seed).T
        if p.trans_b
        else masked(w, tile, rows, columns, seed)
    )
    constants = {**graph.constants, p.b: np.ascontiguousarray(kept)}
    made = replace(graph, constants=constants, encodings={p.b: Encoding(name, {"tile": tile})})
    return made.verify(), inputs


def tilewise(graph: Any, kind: str) -> list[dict[str, Any]]:
    """Ways to launch it that follow tiles, from a machine in SIMD mode."""
    found = [o for o in cases.offers(graph, kind) if o["access"] == "tilewise"]
    return [o for o in found if o.get("modes", ("simd",))[0] == "simd"]


def check(case: Case, kind: str, cache: Path, count: int = 2) -> None:
    """The reference's bits, from kernels and from their description in numpy."""
    graph, inputs = case
    want = evaluate(graph, inputs)
    for options in some(tilewise(graph, kind), count):
        got = Session(program(graph, kind, options, cache)).run(inputs).outputs
        also = GENERATORS[kind].evaluate(group_of(graph), options, inputs)
        for name, y in want.items():
            assert same(got[name], y), f"{options}: %{name} differs from dense"
            assert same(also[name], y), f"{options}: %{name} differs in numpy"


CASES: dict[str, Any] = {
    "ragged": lambda: pruned(matmul((100, 96), (96, 72), known=True), 16),
    "a bias of columns": lambda: pruned(matmul((128, 96), (96, 64), plus=(64,), known=True), 64),
    "a residual": lambda: pruned(matmul((33, 40), (40, 24), plus=(33, 24), known=True), 8),
    "A transposed": lambda: pruned(matmul((96, 128), (96, 64), known=True, trans_a=True), 32),
    "both transposed": lambda: pruned(
        matmul((96, 104), (64, 96), known=True, trans_a=True, trans_b=True), 32
    ),
    "bf16": lambda: pruned(matmul((32, 64), (64, 48), dtype="bf16", known=True), 16),
    "batches of A": lambda: pruned(matmul((3, 48, 40), (48, 24), known=True, trans_a=True), 16),
    "pads": lambda: pruned(conv((1, 9, 9, 16), 40, 3, pad=1), 16),
    "strides": lambda: pruned(conv((2, 9, 9, 24), 40, 3, stride=2, after="residual"), 8),
    "dilated": lambda: pruned(conv((1, 9, 9, 3), 24, 3, pad=2, dilation=2), 16),
    "groups": lambda: pruned(conv((2, 9, 9, 16), 40, 3, pad=1, group=2), 8),
    "pointwise": lambda: pruned(conv((2, 7, 7, 32), 48, 1), 16),
    "all columns gone": lambda: pruned(conv((1, 5, 5, 16), 24, 3), 16, columns=0.0),
    "all rows gone": lambda: pruned(
        matmul((17, 32), (32, 24), plus=(24,), known=True), 8, rows=0.0
    ),
    "nothing gone": lambda: pruned(
        matmul((17, 32), (32, 24), known=True), 8, rows=1.1, columns=1.1
    ),
    "one row in a tile": lambda: pruned(matmul((17, 32), (32, 24), known=True), 8, rows=0.04),
}


@pytest.mark.parametrize("name", CASES)
def test_tiles_of_pruned_weights_have_the_bits_of_dense_ones(
    name: str, kind: str, cache: Path
) -> None:
    check(CASES[name](), kind, cache)


@given(st.data())
def test_any_mask(cache: Path, data: Any) -> None:
    """Zeros anywhere, whole tiles without any weight included."""
    m, k, n = (data.draw(st.integers(1, most)) for most in (70, 80, 50))
    tile, rows, columns = (
        data.draw(st.sampled_from([4, 16, 32])),
        data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.1])),
        data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.1])),
    )
    dtype, seed = data.draw(st.sampled_from(["f16", "bf16"])), data.draw(st.integers(0, 99))
    case = pruned(
        matmul((m, k), (k, n), plus=(n,), dtype=dtype, known=True), tile, rows, columns, seed=seed
    )
    check(case, "hmma", cache, 1)


def test_a_residue_is_in_its_place_in_the_chain(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bits of the dense product on Tensor Cores, on arrays and in numpy, in fewer steps than all of k."""
    graph, inputs = pruned(matmul((48, 96), (96, 64), known=True), 16, name="tew")
    b = product(group_of(graph)).b
    w = graph.constants[b].copy()
    w[np.random.default_rng(3).random(w.shape) < 0.04] = 0.5
    graph = replace(graph, constants={b: w})
    (want,) = evaluate(graph, inputs).values()
    got = []
    for kind, machine in MACHINES.items():
        monkeypatch.setattr(cases, "MACHINE", Machine.load(machine))
        options = tilewise(graph, kind)[0]
        got += Session(program(graph, kind, options, cache)).run(inputs).outputs.values()
        got += GENERATORS[kind].evaluate(group_of(graph), options, inputs).values()
    assert all(same(y, want) for y in got)
    p = product(group_of(graph))
    pruned_ = tilewise_plan.of(group_of(graph), p)
    assert pruned_
    assert sum(x.weights.size for x in pruned_.parts) < 0.9 * w.size


def test_kernels_do_not_depend_on_the_mask(kind: str, cache: Path) -> None:
    graphs = [pruned(matmul((64, 64), (64, 32), known=True), 32, seed=s)[0] for s in (1, 2)]
    words = []
    for graph in graphs:
        options = next(o for o in tilewise(graph, kind))
        (kernel,) = program(graph, kind, options, cache).kernels.values()
        words.append(kernel.words)
    assert words[0] == words[1]


def test_sharing_a_launch_is_not_sharing_a_choice(cache: Path) -> None:
    """Two groups that differ only in zeros each have tiles of their own in the plan."""
    counts = set()
    for columns in (0.2, 1.1):
        graph, _ = pruned(matmul((64, 64), (64, 128), known=True), 16, columns=columns)
        made = plan(graph, Machine.load("volta-8tc"), Options(forced={"g": {"access": "tilewise"}}))
        counts.add(made.steps[0].options["tiles"])
    assert len(counts) == 2


def test_a_sparse_layer_is_followed_and_a_full_one_is_not() -> None:
    machine = Machine.load("volta-8tc")
    for rows, columns, way in ((0.3, 0.3, "tilewise"), (1.1, 1.1, "dense")):
        graph, _ = pruned(
            matmul((768, 2048), (768, 512), known=True, trans_a=True), 128, rows, columns
        )
        assert plan(graph, machine, Options()).steps[0].options["access"] == way


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 9))
def test_work_is_dealt_evenly(weights: list[int], sms: int) -> None:
    order = balanced(weights, sms)
    assert sorted(order) == list(range(len(weights)))
    loads = [sum(weights[i] for i in order[s::sms]) for s in range(min(sms, len(weights)))]
    counts = [len(order[s::sms]) for s in range(min(sms, len(weights)))]
    assert max(counts) - min(counts) <= 1
    assert max(loads) - min(loads) <= 2 * max(weights)  # one item too many, and one place too few
    for s in range(len(loads)):
        mine = [weights[i] for i in order[s::sms]]
        assert mine == sorted(mine, reverse=True)


def test_an_offset_list_says_how_many_were_dropped_before() -> None:
    assert deltas(np.array([0, 1, 3, 6]), 6, 8).tolist() == [0, 0, 1, 3, 4, 3]


def test_a_buffer_holds_every_tile_once() -> None:
    graph, _ = pruned(matmul((48, 64), (64, 40), known=True), 16)
    group, machine = group_of(graph), Machine.load("volta-8tc")
    options = next(
        o for o in GENERATORS["hmma"].candidates(group, machine) if o["access"] == "tilewise"
    )
    (data,) = GENERATORS["hmma"].lower(group, options, machine).constants.values()
    tile: Any = options["tile"]
    blocks = int(options["tiles"]) * -(-48 // tile[0])  # type: ignore[arg-type]
    items = data[: blocks * ITEM.itemsize].view(ITEM)
    assert len({(i["tile"], i["rows"]) for i in items}) == blocks
    columns = list[int]()
    for at in sorted({int(i["tile"]) for i in items}):
        (t,) = data[at : at + TILE.itemsize].view(TILE)
        kept = data[int(t["n"]) :][: 4 * int(t["n_len"])].view("<i4") + np.arange(t["n_len"])
        columns += kept.tolist()
    assert sorted(columns) == list(range(40))
