"""`knapper reproduce`: every row depends on the machine, is judged by its class, and comes from programs that do what they say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from knapper.compiler.driver import Options, optimize
from knapper.compiler.footprint import closed_form
from knapper.compiler.ir import Graph
from knapper.frontends import cli
from knapper.frontends.commands import reproduce as command
from knapper.frontends.reproduce import SETS, claims, dstc, im2col, outer, sma, tilewise
from knapper.frontends.reproduce.claims import (
    CLASSES,
    EVIDENCE,
    SHAPE,
    Claim,
    Interval,
    Lab,
    Row,
    Sizes,
)
from knapper.frontends.reproduce.cutlass import CutlassGemm
from knapper.frontends.reproduce.microbench import (
    ROWS,
    Copy,
    GlobalChase,
    HmmaLoop,
    LsmaLoop,
    SharedChase,
    after_launch,
    per_turn,
)
from knapper.frontends.reproduce.recording import Replay, executed
from knapper.frontends.reproduce.report import markdown
from knapper.frontends.reproduce.workloads import Gemm, Network, square
from knapper.isa.errors import CODES, KnapperError
from knapper.isa.instructions import LSMA
from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.runtime.energy import cost
from knapper.runtime.session import Session

Array = NDArray[Any]
SMALL = Sizes(
    shrink=8, rows=256, loop=8, turns=2, chunks=256, network="alexnet", batch=2, image=67, hybrid=32, products=2
)  # fmt: skip
EVERY = claims()


@pytest.fixture(scope="module")
def lab() -> Lab:
    """Small experiments, each executed once for all tests."""
    return Lab(SMALL)


# --- every row


MOVABLE = [c for c in EVERY if c.moves]


@pytest.mark.parametrize("claim", MOVABLE, ids=[c.name for c in MOVABLE])
def test_a_row_moves_with_the_machine(claim: Claim, lab: Lab) -> None:
    assert claim.ours(lab) != claim.ours(lab.moving(claim.moves, 2.0))


def test_registers_of_systolic_units_depend_on_their_shape_alone() -> None:
    still = [c.name for c in EVERY if not c.moves and c.swept and not c.still]
    assert still == ["S-9.sma2", "S-9.sma2.gemm"]
    kernel = PROGRAMS["lsma"].kernels["lsma_loop"]
    instr = next(i for i in kernel.code if isinstance(i, LSMA))

    def words_per_mac(machine: Machine) -> float:
        events = cost(instr, machine).issue
        return (events["rf_read"] + events["rf_write"]) / events["fma16_systolic"]

    sma2 = Machine.load("sma2")
    assert words_per_mac(sma2) == 1 / 4
    assert words_per_mac(sma2.with_(array_rows=16)) == 1 / 8


@pytest.mark.parametrize("claim", [*dstc.rows(), *tilewise.rows()], ids=lambda c: c.name)
def test_a_row_that_nothing_moves_says_why(claim: Claim) -> None:
    assert claim.moves or claim.still
    assert claim.swept or claim.still


def test_the_figure_moves_with_what_was_fitted_to_it(lab: Lab) -> None:
    """D-1 and D-11: numbers that are 0, and so cannot be multiplied."""
    tiles = outer.Tiles(0.3, 0.4, dstc.TILES)
    plain = dstc.cycles(lab, tiles)
    for own in ("collector_window=1", "pred_off_percent=50", "bohmma_percent=50"):
        assert dstc.cycles(lab, tiles, f"dstc+{own}") > plain


def test_layers_of_a_network_add_up(lab: Lab) -> None:
    (claim,) = (c for c in EVERY if c.name == "D-12.vgg16.batch1")
    row = claim.row(lab, interval=False)
    titles, *lines = row.parts
    theirs, ours = (sum(int(line[n]) for line in lines) for n in (1, 2))
    assert theirs / ours == pytest.approx(row.ours)
    assert titles[1:3] == ("volta-8tc", "dstc")
    page = markdown([row])
    assert "## D-12.vgg16.batch1" in page
    assert all(f"| {line[0]} | " in page for line in lines)


@pytest.mark.parametrize("claim", EVERY, ids=[c.name for c in EVERY])
def test_a_row_says_what_it_compares_and_how(claim: Claim) -> None:
    assert claim.kind in CLASSES
    assert claim.paper[0] <= claim.paper[1]
    assert "ours: " in claim.how
    if claim.kind == "recalled":
        assert "the paper" in claim.what + claim.how or "recalled" in claim.how
    if claim.kind in EVIDENCE:
        assert not re.search(r"\bsets\b", claim.how), "it set a number of ours"


def test_rows_have_names_of_their_own() -> None:
    assert len({c.name for c in EVERY}) == len(EVERY)


def test_what_the_model_must_give_it_gives_exactly(lab: Lab) -> None:
    exact = [
        c for c in EVERY if c.kind == "derived" and c.tolerance == 0 and c.paper[0] == c.paper[1]
    ]
    assert {c.name for c in exact} == {
        "S-3.oracle", "S-5.oracle2", "S-5.oracle3", "S-6.tn128", "S-6.tn192", "S-9.volta-4tc", "S-9.sma2",
        "C3.array", "C5.vgg16.3", "C5.resnet50.4", "C5.resnet50.5", "C5.resnet50.6", "C5.resnet50.7", "C5.alexnet.6", "C5.alexnet.10",
        "C5.alexnet.11", "C7.stride1.taps3", "C7.stride1.taps5", "C7.stride1.taps7", "C7.stride2.taps3", "C7.stride2.taps5",
        "C7.stride2.taps7", "C7.stride4.taps3", "D-2.A24", "D-2.A16", "D-2.A8", "D-2.B16", "D-3", "T1.rows", "T1.transposed", "AN7.types",
    }  # fmt: skip
    for c in exact:
        assert c.row(lab, interval=False).passes, c.name


def utilisation(g: Graph, side: int, single: bool) -> float:
    """Useful multiply-accumulates of convolutions by those of the vectors that they push through an array."""
    types, macs, steps = g.types(), 0, 0
    for n in (n for n in g.nodes if n.op == "Conv"):
        (r, s, c, k), pixels = types[n.inputs[1]].shape, math.prod(n.types[0].shape[:3])
        taps = 1 if single else max(1, min(side // c, s))
        passes = r * math.ceil(s / taps) * math.ceil(c / side) * math.ceil(k / side)
        macs, steps = macs + pixels * r * s * c * k, steps + pixels * passes * side**2
    return macs / steps


@pytest.mark.parametrize("name", im2col.NETWORKS)
def test_closed_forms_of_networks_follow_from_their_shapes(name: str) -> None:
    g = optimize(Network(name).graph(), Options(precision="fp16"))
    assert im2col.RATIOS[name] == pytest.approx(closed_form(g).ratio, rel=1e-4)
    forms = [utilisation(g, side, single) for side in (128, 256) for single in (True, False)]
    assert im2col.UTILISATION[name] == pytest.approx(forms, abs=6e-5)


# --- how a row is judged


def claim(paper: tuple[float, float], tolerance: float = 0.0, kind: str = "published") -> Claim:
    return Claim("X-1", "x", paper, kind, tolerance, lambda lab: 1.0, "ours: made up", "sms")


@pytest.mark.parametrize(
    ("paper", "tolerance", "ours", "ratio", "passes"),
    [
        ((10, 10), 0.1, 10.9, 1.09, True),
        ((10, 10), 0.1, 11.1, 1.11, False),
        ((10, 10), 0.1, 8.9, 0.89, False),
        ((10, 20), 0.0, 15, 1.0, True),
        ((10, 20), 0.1, 21.9, 1.095, True),
        ((10, 20), 0.1, 22.1, 1.105, False),
        ((1, math.inf), 0.0, 1e9, 1.0, True),
        ((1, math.inf), 0.0, 0.99, 0.99, False),
        ((0, 0.01), 0.0, 0.02, 2.0, False),
        ((10, 10), 0.1, math.nan, math.nan, False),
    ],
)
def test_ratio_and_verdict(
    paper: tuple[float, float], tolerance: float, ours: float, ratio: float, passes: bool
) -> None:
    row = Row(claim(paper, tolerance), ours)
    assert row.ratio == pytest.approx(ratio, nan_ok=True)
    assert row.passes is passes


@pytest.mark.parametrize("kind", CLASSES)
def test_only_evidence_fails(kind: str) -> None:
    row = Row(claim((10, 10), 0.1, kind), 20.0)
    assert not row.passes
    assert row.fails == (kind in ("published", "silicon"))


def test_a_row_as_json() -> None:
    row = Row(claim((10, math.inf), 0.1), 20.0, Interval(19.0, 22.0, "sms", "sms"))
    assert row.to_dict() == {
        "claim": "X-1: x", "paper": [10, None], "ours": 20.0, "ratio": 1.0, "class": "published", "tolerance": 0.1, "pass": True,
        "how": "ours: made up", "interval": [19.0, 22.0],
    }  # fmt: skip


# --- moved numbers


def test_an_interval_goes_over_all_that_is_unsure_and_names_its_ends(lab: Lab) -> None:
    (oracle,) = (c for c in EVERY if c.name == "S-3.oracle")
    row = oracle.row(lab)
    bubble = 128 / (128 + 8 + 7)  # 5 · 1.3, outward
    assert row.interval == Interval(bubble, 128 / 133, "lsma_bubble", "weight_double_buffer")


def test_an_interval_moves_no_number_that_somebody_stands_for_and_no_shape(lab: Lab) -> None:
    alone = lab.still()
    alone.machine("sma3")
    keys = set(alone.unsure())
    assert {"lsma_bubble", "mode_switch_cycles", "energy.rf_read", "units.cvt.latency"} <= keys
    assert not keys & {"clock_hz", "sms", "l2_latency", *SHAPE}


def test_a_number_can_be_moved_of_one_target_only(lab: Lab) -> None:
    moved = lab.moving("sma3:lsma_bubble", 2.0)
    assert (moved.machine("sma3").lsma_bubble, moved.machine("sma2").lsma_bubble) == (10, 5)
    assert moved.machine("volta-4tc") == lab.machine("volta-4tc")


def test_a_price_that_moves_needs_no_timing_and_stays_moved_with_another_table(lab: Lab) -> None:
    work = LsmaLoop((2,), SMALL.turns)
    plain = lab.run(work, "sma2")
    before = len(lab.replays)
    moved = lab.moving("energy.fma16_systolic", 2.0).run(work, "sma2")
    assert len(lab.replays) == before
    table = Machine.load("sma2").with_(energy="aladdin").energy["fma16_systolic"]
    priced = lab.moving("energy.fma16_systolic", 2.0).priced(moved.machine, "aladdin")
    assert priced.energy["fma16_systolic"] == 2 * table
    assert moved.joules(moved.machine) > plain.joules(plain.machine)


def test_a_replay_is_the_run(lab: Lab) -> None:
    program = square(128).program(Machine.load("sma2"))
    x = np.ones((128, 128), np.float16)
    stats = Session(program).run({"a": x, "b": x}, timing=True).stats
    replay = Replay.of(executed(program), Machine.load("sma2"))
    assert (replay.cycles, replay.macs) == (stats.cycles, stats.macs_executed)
    assert replay.joules(replay.machine) == pytest.approx(1e-12 * stats.energy_pj["total"])


# --- what is executed


def programs() -> Iterator[tuple[str, Program]]:
    """Every microbenchmark, short."""
    volta, sms = Machine.load("volta-4tc"), Machine.load("sma3")
    yield "hmma", HmmaLoop(2, 2, 3, 2).program(volta)
    yield "hmma f16", HmmaLoop(2, 2, 3, 2, half=True).program(volta)
    yield "lsma", LsmaLoop((3, 3, 2), 2, ROWS // 2).program(sms)
    yield "shared", SharedChase(2).program(volta)
    yield "global", GlobalChase(32, 64, 2).program(volta)
    yield "read", Copy(3, 2).program(volta)
    yield "write", Copy(2, 2, writes=True).program(volta)


PROGRAMS = dict(programs())


@pytest.mark.parametrize("name", PROGRAMS)
def test_microbenchmarks_break_no_rule(name: str) -> None:
    program = PROGRAMS[name]
    inputs = {p.name: np.zeros(p.shape, np.uint8) for p in program.inputs}
    assert Session(program).run(inputs, checked=True).stats.instructions


def test_a_loop_costs_what_the_unit_table_says(lab: Lab) -> None:
    unit = lab.machine("volta-4tc").units["tensor"]
    assert per_turn(lab, HmmaLoop(1, 1, 1, 8), "volta-4tc") == unit.latency
    assert per_turn(lab, HmmaLoop(1, 1, 4, 8), "volta-4tc") == 4 * unit.interval


def test_a_chase_walks_the_ring(lab: Lab) -> None:
    replay = lab.run(GlobalChase(16384, 16384, 2), "v100-pcie")
    cold, warm = (after_launch(replay, i) / 16384 for i in (0, 1))
    assert (round(cold), round(warm)) == (409, 215)  # DRAM's and L2's latency, and the port


def halves(a: Array, b: Array) -> Array:
    """The product with sums that are rounded to fp16 every 16 steps of k."""
    c = np.zeros((a.shape[0], b.shape[1]), np.float16)
    for k in range(0, a.shape[1], 16):
        acc = c.astype(np.float32)
        for i in range(k, k + 16):
            exact = a[:, i : i + 1].astype(np.float64) * b[i].astype(np.float64)
            acc = (acc.astype(np.float64) + exact).astype(np.float32)
        c = acc.astype(np.float16)
    return c


def test_cutlass_kernel_multiplies() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float16) for s in ((256, 96), (96, 128)))
    program = CutlassGemm(256, 128, 96).program(Machine.load("v100-pcie"))
    result = Session(program).run({"a": a, "b": b}, checked=True)
    assert np.array_equal(result.outputs["c"], halves(a, b))
    assert result.stats.macs_executed == 256 * 128 * 96


def test_products_multiply() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float16) for s in ((64, 96), (96, 128)))
    outputs = [
        Session(Gemm(64, 128, 96).program(Machine.load(t))).run({"a": a, "b": b}).outputs["c"]
        for t in ("volta-4tc", "sma3", "sma3-ws")
    ]
    assert np.allclose(outputs[0], a.astype(np.float32) @ b.astype(np.float32), atol=0.05)
    assert all(np.array_equal(outputs[0], c) for c in outputs)


def test_peaks_are_those_of_the_paper() -> None:
    assert [sma.peak(Machine.load(t)) for t in ("volta-4tc", "sma2", "sma3")] == [
        256 * 80, 256 * 80, 384 * 80,
    ]  # fmt: skip


# --- the command


def test_sets_and_rows_are_chosen_by_name() -> None:
    assert [c.name for c in claims(["S-6"])] == ["S-6.tn128", "S-6.tn192", "S-6.gemm"]
    assert [c.name for c in claims(["B-3", "wmma.pitch"])] == ["B-3", "wmma.pitch"]
    assert len(claims(list(SETS))) == len(EVERY)
    with pytest.raises(KnapperError, match="E704: no claim is called 'S-11'"):
        claims(["S-1", "S-11"])


def test_the_exit_code_is_by_the_rows(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["reproduce", "wmma", "S-6.tn192", "--no-interval", "--json"]) == cli.OK
    rows = json.loads(capfd.readouterr().out)
    assert [r["ratio"] for r in rows] == pytest.approx([1, 1, 1, 1])
    assert all(r["interval"] is None for r in rows)
    assert cli.run(["reproduce", "bandwidth.l2-write", "--no-interval"]) == cli.FAILED
    out, err = capfd.readouterr()
    assert "FAIL" in out
    assert err.splitlines()[-1].startswith(
        "error E708: bandwidth.l2-write: expected 1167.16 ± 20%, got"
    )


def test_nothing_compared_is_a_failure() -> None:
    (problem,) = command.failures([])
    assert (problem.code, problem.message) == ("E708", "nothing was compared")
    assert "E708" in CODES


def test_the_page_is_deterministic_and_has_every_row(lab: Lab, tmp_path: Path) -> None:
    chosen = claims(["S-6.tn192", "S-9", "wmma"])
    pages = [markdown([c.row(replace(lab)) for c in chosen]) for _ in range(2)]
    assert pages[0] == pages[1]
    for c in chosen:
        assert f"| {c.name} | {c.what} |" in pages[0]
        assert f"- **{c.name}** {c.how}." in pages[0]
    page = tmp_path / "page.md"
    assert cli.run(["reproduce", "wmma.pitch", "-q", "--json", "--markdown", str(page)]) == cli.OK
    assert "| wmma.pitch |" in page.read_text()
