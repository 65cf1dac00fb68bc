"""Explicit and implicit convolution: the same bits, what the lowered matrix takes, and what `auto` chooses.

The golden files are `ir/im2col_*.ir`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from knapper.compiler import driver, pipeline
from knapper.compiler.footprint import Footprint, closed_form, planned
from knapper.compiler.ir import OPS, Array, Graph, Node, Type, evaluate, infer
from knapper.compiler.ops import table
from knapper.compiler.passes.im2col import Im2col
from knapper.compiler.plan import Plan
from knapper.frontends.onnx import read
from knapper.isa.errors import IRError, KnapperError
from knapper.isa.machine import Machine
from knapper.runtime.session import Result, Session

MACHINES = {name: Machine.load(name) for name in ("volta-8tc", "sma3")}
VOLTA = MACHINES["volta-8tc"]


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def convolution(operands: list[Array], constants: bool = True, **attrs: Any) -> Graph:
    """A graph of one Conv of x0 by x1 plus x2; weights are constants or inputs."""
    values = {f"x{i}": a for i, a in enumerate(operands)}
    types = infer("Conv", [*map(Type.of, operands)], attrs)
    known = {v: a for v, a in values.items() if v != "x0"} if constants else {}
    inputs = {v: Type.of(a) for v, a in values.items() if v not in known}
    node = Node("Conv", tuple(values), ("y",), types, attrs, "conv")
    return Graph("g", inputs, {"y": "y"}, (node,), known).verify()


def plan(g: Graph, pipe: str, machine: Machine = VOLTA) -> Plan:
    options = driver.Options(pipe, machine=machine)
    return driver.plan(driver.optimize(g, options), machine, options)


def run(g: Graph, feeds: dict[str, Array], pipe: str, machine: Machine = VOLTA) -> Result:
    return Session(driver.compile_graph(g, machine, pipe)).run(feeds)


def feeds_of(g: Graph, operands: list[Array]) -> dict[str, Array]:
    return {v: a for i, a in enumerate(operands) if (v := f"x{i}") in g.inputs}


def assert_both_ways_agree(g: Graph, feeds: dict[str, Array], pipe: str, machine: Machine) -> None:
    ways = [run(g, feeds, f"{pipe},im2col{{mode={mode}}}", machine) for mode in ("implicit", "explicit")]  # fmt: skip
    for name, y in ways[0].outputs.items():
        np.testing.assert_array_equal(ways[1].outputs[name], y, err_msg=f"{name}, {pipe}, {machine.name}")  # fmt: skip
    assert ways[0].stats.macs == ways[1].stats.macs


# --- the lowered matrix -------------------------------------------------------------------------


def by_hot_weights(x: Array, kernel_shape: tuple[int, ...], **attrs: Any) -> Array:
    """onnxruntime's convolution of x[N,…,C] by weights that pick one tap of one channel each."""
    channels, taps = x.shape[-1], math.prod(kernel_shape)
    hot = np.eye(taps * channels, dtype=np.float32).reshape(-1, *kernel_shape, channels)
    weights = np.moveaxis(hot, -1, 1)
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attrs)
    image = np.moveaxis(x, -1, 1).astype(np.float32)
    inputs = [value("x", 1, image.shape), value("w", 1, weights.shape)]
    proto = onnx.helper.make_graph([node], "g", inputs, [value("y", 1, None)])
    model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 10
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.moveaxis(session.run(None, {"x": image, "w": weights})[0], 1, -1)


@pytest.mark.parametrize("i", range(len(table.examples(OPS["Im2col"]))))
def test_columns_are_what_onnxruntime_picks_from_the_image(i: int) -> None:
    (x,), attrs = table.examples(OPS["Im2col"])[i]
    assert x is not None
    got = OPS["Im2col"].facets["reference"](x, **attrs)
    rest = {k: v for k, v in attrs.items() if k not in ("group", "order")}
    picked = by_hot_weights(x, **rest)
    group, channels = attrs.get("group", 1), x.shape[-1]
    parts = picked.reshape(*picked.shape[:-1], -1, group, channels // group)  # taps, groups, rest
    last = attrs.get("order") == "channel_last"
    want = np.moveaxis(parts, -3, -1 if last else -2).reshape(picked.shape)
    np.testing.assert_array_equal(got.astype(np.float32), want)


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"kernel_shape": (3, 3), "order": "rows"}, "order 'rows', expected channel_first or channel_last"),
        ({"kernel_shape": (3, 3), "group": 2}, "3 channels of .* do not divide into 2 groups"),
        ({"kernel_shape": (7, 3)}, r"window \(7, 3\) does not fit"),
    ],
)  # fmt: skip
def test_a_window_that_cannot_be_is_told(attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(IRError, match=message):
        infer("Im2col", [Type("f32", (1, 5, 5, 3))], attrs)


# --- the same bits ------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn, axes: int = 2) -> tuple[Graph, list[Array]]:
    """A small convolution over 1 to `axes` axes, with all that a Conv can say."""
    n = draw(st.integers(1, axes))

    def numbers(low: int, high: int, count: int = n) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(count))

    group = draw(st.sampled_from([1, 1, 2, 3]))
    channels = group * draw(st.sampled_from([1, 2, 5]))
    outputs = group * draw(st.integers(1, 3))
    sizes, kernel, strides, dilations = numbers(1, 7), numbers(1, 3), numbers(1, 3), numbers(1, 2)
    pads = numbers(0, 2, 2 * n)
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    assume(all(s + pads[i] + pads[n + i] > reach[i] for i, s in enumerate(sizes)))
    shapes = [(draw(st.integers(1, 2)), channels, *sizes), (outputs, channels // group, *kernel), (outputs,)]  # fmt: skip
    operands = drawn(*shapes[: draw(st.integers(2, 3))], seed=draw(st.integers(0, 99)))
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    return convolution(operands, draw(st.booleans()), **attrs), operands


@settings(max_examples=100)
@given(convolutions(axes=3), st.sampled_from(["", "layout", "products", "products,layout"]))
def test_the_lowered_graph_has_the_bits_of_the_convolution(case: Any, before: str) -> None:
    """Wherever the pass stands, and over one, two or three axes."""
    g, operands = case
    passes = pipeline.parse(",".join(filter(None, [before, "im2col{mode=explicit}"])))
    lowered = pipeline.run(g, passes)
    feeds = feeds_of(g, operands)
    np.testing.assert_array_equal(evaluate(lowered, feeds)["y"], evaluate(g, feeds)["y"])


@given(convolutions(), st.sampled_from(["fp16", "fp32"]), st.sampled_from([*MACHINES]))
def test_random_convolutions_have_the_same_bits_both_ways(case: Any, pipe: str, on: str) -> None:
    g, operands = case
    assert_both_ways_agree(g, feeds_of(g, operands), pipe, MACHINES[on])


def onnx_cases() -> Iterator[tuple[Graph, list[Array]]]:
    """The suite's cases of one convolution: graph and inputs, with the operator's own examples and those taken from PyTorch."""
    from onnx.backend.test.case.node import collect_testcases

    # onnx makes its cases once a process: asked for one operator's it would have no others for later tests
    for case in collect_testcases(None) or ():
        if case.model and case.data_sets and {n.op_type for n in case.model.graph.node} == {"Conv"}:
            yield read(case.model), [*map(np.asarray, case.data_sets[0][0])]
    suite = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for folder in sorted(suite.glob("pytorch-*/test_*[Cc]onv*")):
        data = folder / "test_data_set_0" / "input_0.pb"
        x = onnx.numpy_helper.to_array(onnx.load_tensor(data))
        yield read(onnx.load(folder / "model.onnx")), [x]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of onnx's own generators
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("pipe", ["fp16", "fp32"])
def test_onnx_cases_have_the_same_bits_both_ways(pipe: str, machine: Machine) -> None:
    cases = list(onnx_cases())
    assert len(cases) == 6 + 28 + 2
    for g, arrays in cases:
        assert_both_ways_agree(g, dict(zip(g.inputs, arrays, strict=True)), pipe, machine)


def test_a_convolution_over_three_axes_is_lowered_in_front_of_products() -> None:
    operands = drawn((1, 4, 4, 5, 5), (6, 2, 2, 3, 2), (6,))
    g = convolution(operands, strides=(1, 2, 1), pads=(1, 1, 0, 0, 1, 1), group=2)
    early = pipeline.PRESETS["fp32"].replace("products", "im2col{mode=explicit},products")
    y = run(g, feeds_of(g, operands), early).outputs["y"]
    np.testing.assert_array_equal(y, evaluate(g, feeds_of(g, operands))["y"])


def test_another_order_of_columns_is_another_chain() -> None:
    operands = drawn((1, 8, 9, 9), (16, 8, 3, 3))
    g = convolution(operands, pads=(1, 1, 1, 1))
    first, last = (
        run(g, feeds_of(g, operands), f"fp32,im2col{{mode=explicit,layout={layout}}}").outputs["y"]
        for layout in ("channel_first", "channel_last")
    )
    assert (first != last).any()
    np.testing.assert_allclose(last, first, atol=1e-5)


def test_on_sma_a_matrix_is_made_without_leaving_systolic_mode() -> None:
    """The arrays have the fp32 lanes there, and a gather needs integers, loads and stores only."""
    g, sma3 = two_layers(relu=False), MACHINES["sma3"]
    feeds = {"x": drawn((1, 8, 10, 10))[0]}
    modes = {"matmul_2": "simd systolic", "im2col_3": "systolic systolic", "matmul_4": "systolic simd"}  # fmt: skip
    forced = {name: {"modes": tuple(m.split())} for name, m in modes.items()}
    chained = driver.compile_graph(g, sma3, "fp16,im2col{mode=explicit}", forced=forced)
    want = run(g, feeds, "fp16", sma3).outputs["y"]
    np.testing.assert_array_equal(Session(chained).run(feeds).outputs["y"], want)


# --- which are lowered --------------------------------------------------------------------------


def two_layers(relu: bool = True) -> Graph:
    """Two convolutions, with a Relu between or without."""
    weights = dict(zip("vw", drawn((16, 8, 3, 3), (8, 16, 3, 3)), strict=True))
    x, mid = Type("f32", (1, 8, 10, 10)), Type("f32", (1, 16, 10, 10))
    pads = {"pads": (1, 1, 1, 1)}
    between = Node("Relu" if relu else "Identity", ("c",), ("r",), (mid,), {}, "between")
    first = Node("Conv", ("x", "v"), ("c",), (mid,), pads, "conv1")
    last = Node("Conv", ("r", "w"), ("y",), (x,), pads, "conv2")
    return Graph("net", {"x": x}, {"y": "y"}, (first, between, last), weights).verify()


@pytest.mark.parametrize(
    ("nodes", "lowered"),
    [("", ["conv1", "conv2"]), ("conv2", ["conv2"]), ("c|y", ["conv1", "conv2"]), ("conv_1", ["conv1"])],
)  # fmt: skip
def test_convolutions_are_meant_by_name_value_or_launch(nodes: str, lowered: list[str]) -> None:
    made = plan(two_layers(), f'fp16,im2col{{mode=explicit,nodes="{nodes}"}}').graph
    assert [n.loc for n in made.nodes if n.op == "Im2col"] == lowered


def test_implicit_leaves_the_plan_alone() -> None:
    plain, implicit = (plan(two_layers(), p) for p in ("fp16", "fp16,im2col{mode=implicit}"))
    chosen = [[(s.name, s.kind, s.options) for s in p.steps] for p in (plain, implicit)]
    assert chosen[0] == chosen[1]
    assert plain.buffers == implicit.buffers
    assert implicit.graph.meta["pipeline"].endswith(",fuse,bitmap,im2col")


def test_auto_takes_what_the_cost_model_says_is_faster() -> None:
    plans = {m: plan(two_layers(), f"fp16,im2col{{mode={m}}}") for m in ("implicit", "explicit", "auto")}  # fmt: skip
    cycles = {m: sum(map(p.cycles, p.steps)) for m, p in plans.items()}
    assert cycles["auto"] == min(cycles.values()) < max(cycles.values())
    assert plans["auto"].graph.meta["pipeline"].endswith(',im2col{mode="auto"}')


def test_auto_decides_for_each_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a model in which nothing walks the first image at less than ten times the cost."""
    from knapper.compiler.codegen.generator import Group, Options, generators

    def dearer(honest: Any) -> Any:
        def cost(self: Any, group: Group, options: Options, machine: Machine) -> float:
            walks = any(n.op == "Conv" and n.loc == "conv1" for n in group.nodes)
            return float(honest(self, group, options, machine) * (10 if walks else 1))

        return cost

    for kind in {type(g) for g in generators().values()}:
        monkeypatch.setattr(kind, "cost", dearer(kind.cost))
    made = driver.optimize(two_layers(), driver.Options("fp16,im2col{mode=auto}", machine=VOLTA))
    assert [n.loc for n in made.nodes if n.op == "Im2col"] == ["conv1"]


def test_auto_needs_launches() -> None:
    passes = [p.on(VOLTA) for p in pipeline.parse("im2col{mode=auto},fuse")]
    with pytest.raises(
        KnapperError, match=r"E304: im2col: mode auto asks .*put fuse before im2col"
    ):
        pipeline.run(two_layers(), passes)


def test_a_text_says_no_machine() -> None:
    assert str(Im2col("auto").on(VOLTA)) == 'im2col{mode="auto"}'
    with pytest.raises(KnapperError, match="E302: pass im2col has no option 'machine'"):
        pipeline.parse("im2col{machine=sma3}")


# --- what it takes ------------------------------------------------------------------------------

LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], float]] = {
    "3x3": ((1, 8, 10, 10), (16, 8, 3, 3), {"pads": (1,) * 4}, 9.0),
    "3x3, stride 2, batch": ((2, 8, 8, 8), (16, 8, 3, 3), {"pads": (1,) * 4, "strides": (2, 2)}, 9 / 4),
    "11x11, stride 4": ((1, 3, 47, 47), (4, 3, 11, 11), {"strides": (4, 4)}, 121 * 100 / 47**2),
    "one axis": ((1, 4, 20), (6, 4, 3), {}, 3 * 18 / 20),
    "depthwise": ((1, 6, 9, 9), (6, 1, 3, 3), {"group": 6, "pads": (1,) * 4}, 9.0),
    "1x1": ((1, 8, 6, 6), (4, 8, 1, 1), {}, 1.0),
    "1x1, stride 2": ((1, 8, 6, 6), (4, 8, 1, 1), {"strides": (2, 2)}, 1 / 4),
}  # fmt: skip
"""Image, weights, attributes, matrix ÷ image."""


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_plans_buffers_are_the_closed_form(layer: str, machine: Machine) -> None:
    x, w, attrs, ratio = LAYERS[layer]
    g = convolution(drawn(x, w), **attrs)
    implicit, explicit = (plan(g, f"fp16,im2col{{mode={m}}}", machine) for m in ("implicit", "explicit"))  # fmt: skip
    want = closed_form(implicit.graph)
    assert planned(explicit) == want
    assert want.ratio == pytest.approx(ratio)
    assert want.image == math.prod(x) * 2
    one_tap = layer == "1x1"
    assert planned(implicit) == Footprint(want.image, want.matrix if one_tap else 0)
    assert explicit.arena_bytes >= want.matrix


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_the_matrix_is_written_and_read_in_dram(machine: Machine) -> None:
    x, w, attrs, _ = LAYERS["3x3"]
    operands = drawn(x, w)
    g = convolution(operands, **attrs)
    size = closed_form(plan(g, "fp16").graph)
    result = run(g, feeds_of(g, operands), "fp16,im2col{mode=explicit}", machine)
    made = [s for s in result.stats.launches if s.kernel.name.startswith("im2col")]
    (lowering,) = made
    assert lowering.bytes("dram_bytes") == {"read": size.image, "write": size.matrix}
    assert lowering.bytes("l2_bytes")["write"] == size.matrix
    product = next(s for s in result.stats.launches if s.launch.macs)
    assert product.bytes("dram_bytes")["read"] >= size.matrix


# Types alone: the paper's networks, images of 224 (AlexNet in one column: 227)
VGG16 = [(224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256), *[(56, 256, 256)] * 2,
         (28, 256, 512), *[(28, 512, 512)] * 2, *[(14, 512, 512)] * 3]  # fmt: skip
ALEXNET = [(227, 3, 96, 11, 4, 0), (27, 96, 256, 5, 1, 2), (13, 256, 384), (13, 384, 384), (13, 384, 256)]  # fmt: skip


def typed(layers: Sequence[tuple[int, ...]]) -> Graph:
    """Convs of (size, channels, outputs, taps, stride, pad), each on an image of its own."""
    inputs: dict[str, Type] = {}
    nodes: list[Node] = []
    for i, (size, c, o, *window) in enumerate(layers):
        k, s, p = window or (3, 1, 1)
        x, w = Type("bf16", (1, c, size, size)), Type("bf16", (o, c, k, k))
        inputs |= {f"x{i}": x, f"w{i}": w}
        attrs: dict[str, Any] = {"strides": (s, s), "pads": (p,) * 4}
        nodes.append(
            Node("Conv", (f"x{i}", f"w{i}"), (f"y{i}",), infer("Conv", [x, w], attrs), attrs)
        )
    return Graph("g", inputs, {f"y{i}": f"y{i}" for i in range(len(nodes))}, tuple(nodes)).verify()


def test_ratios_of_whole_networks() -> None:
    vgg, alex = closed_form(typed(VGG16)), closed_form(typed(ALEXNET))
    assert (round(vgg.ratio, 2), round(alex.ratio, 2)) == (9.00, 11.08)
    assert (round(vgg.image / 2**20, 2), round(vgg.matrix / 2**20, 1)) == (17.32, 155.9)
    assert (round(alex.image / 2**20, 3), round(alex.matrix / 2**20, 2)) == (0.758, 8.40)


def test_ratio_of_resnet50(read_onnx: Any) -> None:
    size = closed_form(read_onnx("resnet50.onnx"))
    assert round(size.ratio, 2) == 2.05
    assert round(size.image / 4 * 2 / 2**20, 2) == 20.34
