"""RoiAlign and NonMaxSuppression: the references and both engines against onnxruntime, bit for bit.

The cases are those of the ONNX backend suite and a hundred random ones. Kernels run with every check on: a read of what was never
written, a race between warps, an access beside an operand would be a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, helper, numpy_helper
from onnx.backend.test.case import node as suite

from knapper.compiler.codegen.detection import sort
from knapper.compiler.codegen.detection.boxes import Sizes
from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import OPS, Array, Graph, Node, Type, infer
from knapper.compiler.ops import table
from knapper.compiler.ops.detection import HALF, OUTPUT_HALF, random_boxes
from knapper.compiler.schedule import schedule
from knapper.frontends.onnx import read
from knapper.isa import image
from knapper.isa.errors import CompileError, IRError, IsaError
from knapper.isa.machine import Machine
from knapper.isa.program import Program
from knapper.runtime.session import Session

Feeds = dict[str, Array]
ENGINES: tuple[Any, ...] = ("reference", "fast")
NMS, ROI = "NonMaxSuppression", "RoiAlign"


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    ort.set_default_logger_severity(4)  # it warns of what RoiAlign's mode max is going to mean


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.load("volta-8tc")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


Build = Callable[[Graph | ModelProto], Program]


@pytest.fixture(scope="module")
def build(machine: Machine, cache: Path) -> Build:
    """Compiles a Graph as it is, a model through all passes in fp32."""

    def compiled(network: Graph | ModelProto) -> Program:
        if isinstance(network, Graph):
            return compile_graph(network, machine, "fuse", cache=cache)
        return compile_graph(read(network), machine, precision="fp32", cache=cache)

    return compiled


def onnxruntime(model: ModelProto, feeds: Feeds) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, feeds)
    return np.asarray(y)


def network(
    op: str, feeds: Feeds, constants: Feeds, opset: int, operands: list[str], **attrs: Any
) -> ModelProto:
    """One node; `operands` are names of feeds and constants, "" for none."""
    graph = helper.make_graph(
        [helper.make_node(op, operands, ["y"], **attrs)],
        op,
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        ],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def op_graph(op: str, operands: list[Array | None], attrs: dict[str, Any]) -> tuple[Graph, Feeds]:
    """A Graph of one op, all operands inputs and all results outputs."""
    names = tuple("" if a is None else f"x{i}" for i, a in enumerate(operands))
    feeds = {n: a for n, a in zip(names, operands, strict=True) if a is not None}
    types = infer(op, [None if a is None else Type.of(a) for a in operands], attrs)
    results = tuple(f"y{i}" for i in range(len(types)))
    node = Node(op, names, results, types, attrs, "node")
    inputs = {n: Type.of(a) for n, a in feeds.items()}
    return Graph("g", inputs, {v: v for v in results}, (node,)), feeds


def run(program: Program, feeds: Feeds, i: int) -> Array:
    """The one output of a random case; of ten cases three run on the reference engine too, which takes its time."""
    if i < 3:
        (y,) = run_everywhere(program, feeds).values()
    else:
        (y,) = Session(program).run(feeds, checked=True).outputs.values()
    return y


def run_everywhere(program: Program, feeds: Feeds) -> dict[str, Array]:
    """The outputs, the same from both engines."""
    found = [Session(program).run(feeds, engine=e, checked=True).outputs for e in ENGINES]
    for name, a in found[0].items():
        np.testing.assert_array_equal(a, found[1][name])
    return found[0]


# --- the suite


def suite_cases() -> list[Any]:
    import onnx.backend.test.case.node.nonmaxsuppression
    import onnx.backend.test.case.node.roialign  # noqa: F401  importing a module makes its cases

    names = ("nonmaxsuppression", "roialign")
    return [c for c in suite._NodeTestCases if any(n in c.name for n in names)]


def named(case: Any) -> tuple[Feeds, Array]:
    """A case's operands by name, and its result."""
    ((inputs, (want,)),) = case.data_sets
    names = [i.name for i in case.model.graph.input]
    return dict(zip(names, map(np.asarray, inputs), strict=True)), want


SUITE = suite_cases()


def test_the_suite_has_cases_of_both() -> None:
    assert {c.model.graph.node[0].op_type for c in SUITE} == {NMS, ROI}
    assert len(SUITE) >= 13


@pytest.mark.parametrize("case", SUITE, ids=lambda c: c.name)
def test_suite_case_is_what_onnxruntime_computes(case: Any, machine: Machine, cache: Path) -> None:
    feeds, want = named(case)
    limit = {n: a for n, a in feeds.items() if n == "max_output_boxes_per_class"}
    graph = read(case.model, consts=limit)
    program = compile_graph(graph, machine, precision="fp32", cache=cache)
    rest = {n: a for n, a in feeds.items() if n not in limit}
    (got,) = run_everywhere(program, rest).values()
    older = onnx.ModelProto()
    older.CopyFrom(case.model)
    older.opset_import[
        0
    ].version = 16  # onnxruntime has no RoiAlign of opset 22, which only added bfloat16
    np.testing.assert_array_equal(got, onnxruntime(older, feeds))
    np.testing.assert_allclose(got, want, 1e-3)  # the suite's own numbers have four digits


# --- random ones


def random_nms(rng: np.random.Generator) -> tuple[Feeds, Feeds, dict[str, Any]]:
    """Feeds, constants, attributes; scores repeat, so that ties are broken by index; some boxes are inside out, some empty."""
    batch, classes, boxes = *rng.integers(1, 3, 2), int(2 ** rng.uniform(0, 6.2))
    corners = random_boxes(rng, (batch, boxes), float(rng.choice([1, 10])))
    if rng.integers(2):
        corners = rng.uniform(-1, 1, (batch, boxes, 4)).astype(np.float32)
    scores = ((rng.integers(0, 30, (batch, classes, boxes)) - 10) / 12).astype(np.float32)
    thresholds = {"iou": rng.uniform(0, 1, 1).astype(np.float32)}
    if rng.integers(2):
        thresholds["least"] = rng.uniform(0, 0.6, 1).astype(np.float32)
    limit = {"limit": np.array([rng.integers(1, 40)])}
    attrs = {"center_point_box": int(rng.integers(2))}
    return {"boxes": corners, "scores": scores, **thresholds}, limit, attrs


@pytest.mark.parametrize("seed", range(5))
def test_random_boxes_are_chosen_as_onnxruntime_chooses(seed: int, build: Build) -> None:
    rng = np.random.default_rng(seed)
    for i in range(10):
        feeds, limit, attrs = random_nms(rng)
        operands = ["boxes", "scores", "limit", *(n for n in ("iou", "least") if n in feeds)]
        model = network(NMS, feeds, limit, 11, operands, **attrs)
        got = run(build(model), feeds, i)
        np.testing.assert_array_equal(got, onnxruntime(model, feeds))


def random_regions(rng: np.random.Generator) -> tuple[list[Array | None], dict[str, Any]]:
    """Operands in onnxruntime's order and attributes; regions lie inside, across the border, and outside."""
    batch, channels, height, width, n = (int(rng.integers(1, k)) for k in (3, 5, 14, 14, 6))
    corners = np.sort(
        rng.uniform(-4, 20, (n, 2, 2)), 1
    )  # onnxruntime refuses some that are inside out
    operands: list[Array | None] = [
        rng.standard_normal((batch, channels, height, width), np.float32),
        corners.reshape(n, 4).astype(np.float32),
        rng.integers(0, batch, n),
    ]
    return operands, {
        "mode": str(rng.choice(["avg", "max"])),
        "output_height": int(rng.integers(1, 5)),
        "output_width": int(rng.integers(1, 5)),
        "sampling_ratio": int(rng.integers(0, 4)),
        "spatial_scale": float(rng.choice([1, 0.5, 0.25])),
        "coordinate_transformation_mode": str(rng.choice([HALF, OUTPUT_HALF])),
    }


@pytest.mark.parametrize("seed", range(5))
def test_random_regions_are_pooled_as_onnxruntime_pools(seed: int, build: Build) -> None:
    rng = np.random.default_rng(seed)
    for i in range(10):
        operands, attrs = random_regions(rng)
        graph, feeds = op_graph(ROI, operands, attrs)
        got = run(build(graph), feeds, i)
        want = onnxruntime(network(ROI, feeds, {}, 16, list(feeds), **attrs), feeds)
        np.testing.assert_array_equal(got, want)


def test_before_opset_16_nothing_is_shifted_by_half_a_pixel() -> None:
    operands, attrs = random_regions(np.random.default_rng(1))
    _, feeds = op_graph(ROI, operands, attrs)
    del attrs["coordinate_transformation_mode"]
    (old,), (new,) = (
        read(network(ROI, feeds, {}, v, list(feeds), **attrs)).nodes for v in (10, 16)
    )
    assert old.attr("coordinate_transformation_mode") == OUTPUT_HALF
    assert new.attr("coordinate_transformation_mode") == HALF


# --- the ops' own examples: both layouts, 16-bit operands


EXAMPLES = [(op, i) for op in (NMS, ROI) for i in range(len(table.examples(OPS[op])))]


@pytest.mark.parametrize(("op", "i"), EXAMPLES)
def test_kernels_compute_what_the_reference_says(op: str, i: int, build: Build) -> None:
    operands, attrs = table.examples(OPS[op])[i]
    graph, feeds = op_graph(op, operands, attrs)
    want = OPS[op].facets["reference"](*operands, **attrs)
    got = run_everywhere(build(graph), feeds)
    for y, w in zip(got.values(), want if isinstance(want, tuple) else (want,), strict=True):
        np.testing.assert_array_equal(y, w)


def test_a_plan_evaluates_to_the_same(machine: Machine) -> None:
    operands, attrs = table.examples(OPS[NMS])[1]
    graph, feeds = op_graph(NMS, operands, attrs)
    fused = graph.with_(nodes=(graph.nodes[0].with_(group="nms"),))
    plan = schedule(fused, machine)
    assert [s.kind for s in plan.steps] == ["detection"]
    want = OPS[NMS].facets["reference"](*operands, **attrs)
    for y, w in zip(plan.evaluate(feeds).values(), want, strict=True):
        np.testing.assert_array_equal(y, w)


# --- scores at the edges


def chosen(scores: list[float], limit: int, build: Build, least: float | None = None) -> list[int]:
    """The boxes chosen of disjoint ones, in order."""
    n = len(scores)
    at = np.arange(n, dtype=np.float32)
    boxes = np.stack([at, at, at + np.float32(0.5), at + np.float32(0.5)], -1)[None]
    operands: list[Array | None] = [boxes, np.array(scores, np.float32)[None, None], None]
    if least is not None:
        operands.append(np.array(least, np.float32))
    graph, feeds = op_graph(NMS, operands, {"max_output_boxes_per_class": limit})
    outputs = run_everywhere(build(graph), feeds)
    count = int(outputs["y1"])
    assert not outputs["y0"][count:].any(), "rows behind the number are zeros"
    return [int(box) for _, _, box in outputs["y0"][:count]]


def test_equal_scores_go_by_index_and_zeros_are_equal_whatever_their_sign(build: Build) -> None:
    assert chosen([0.0, -0.0, 1.0, 1.0, 0.0], 5, build) == [2, 3, 0, 1, 4]


def test_infinite_and_negative_scores_are_scores(build: Build) -> None:
    assert chosen([-1.0, np.inf, -np.inf, 1e-45, -1e-45], 5, build) == [1, 3, 4, 0, 2]


def test_a_score_that_is_no_number_is_never_chosen(build: Build) -> None:
    assert chosen([np.nan, 1.0, np.nan, 2.0], 4, build) == [3, 1]


def test_a_score_must_be_above_the_threshold(build: Build) -> None:
    assert chosen([0.5, 0.25, 0.75, 0.5], 4, build, least=0.5) == [2]


def test_a_list_stops_at_its_limit(build: Build) -> None:
    assert chosen([0.1, 0.9, 0.5, 0.7], 2, build) == [1, 3]


def test_nothing_is_chosen_when_nothing_may_be(build: Build) -> None:
    assert chosen([0.1, 0.2], 2, build, least=0.9) == []
    assert chosen([0.1, 0.2], 0, build) == []


def test_a_thousand_boxes_take_more_words_than_a_warp_has_lanes(build: Build) -> None:
    rng = np.random.default_rng(0)
    operands: list[Array | None] = [
        np.float32(0.1) * random_boxes(rng, (1, 1100), 30)
        + rng.uniform(0, 30, (1, 1100, 1)).astype(np.float32),
        rng.standard_normal((1, 1, 1100), np.float32),
        np.array(0.2, np.float32),
    ]
    attrs = {"max_output_boxes_per_class": 300}
    graph, feeds = op_graph(NMS, operands, attrs)
    got = Session(build(graph)).run(feeds, checked=True).outputs
    rows, count = OPS[NMS].facets["reference"](*operands, **attrs)
    assert 50 < count == got["y1"]
    np.testing.assert_array_equal(got["y0"], rows)


def test_the_network_sorts_in_as_many_passes_as_batcher_says() -> None:
    assert [sort.passes(Sizes(1, 1, n, 1)) for n in (64, 65, 1024)] == [21, 28, 55]


# --- rows that are meant


def nms_model(
    *tail: Any, outputs: tuple[str, ...] = ("y",), limit: int = 6
) -> tuple[ModelProto, Feeds]:
    """NonMaxSuppression of 12 boxes, and what comes after it."""
    rng = np.random.default_rng(3)
    feeds = {
        "boxes": random_boxes(rng, (1, 12), 2),
        "scores": rng.standard_normal((1, 1, 12), np.float32),
    }
    constants = {
        "limit": np.array([limit]), "iou": np.array([0.1], np.float32), "least": np.array([0.0], np.float32),
        "two": np.array([2]), "flat": np.array([-1, 2]), "fixed": np.array([6, 1]), "last": np.array([2]),
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node(NMS, ["boxes", "scores", "limit", "iou", "least"], ["rows"], "nms"),
            *tail,
        ],
        "tail",
        [helper.make_tensor_value_info(n, 1, a.shape) for n, a in feeds.items()],
        [helper.make_empty_tensor_value_info(n) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8), feeds


def tails() -> Iterator[Any]:
    """Nodes between the chosen rows and the output."""
    yield [helper.make_node("Identity", ["rows"], ["y"])]
    yield [helper.make_node("Cast", ["rows"], ["c"], to=1), helper.make_node("Relu", ["c"], ["y"])]
    yield [helper.make_node("Gather", ["rows", "two"], ["y"], axis=1)]
    yield [
        helper.make_node("Gather", ["rows", "two"], ["g"], axis=1),
        helper.make_node("Concat", ["g", "g"], ["h"], axis=1),
        helper.make_node("Reshape", ["h", "flat"], ["y"]),
    ]


@pytest.mark.parametrize("tail", list(tails()), ids=lambda t: "-".join(n.op_type for n in t))
def test_an_output_has_the_rows_that_are_meant(tail: list[Any], build: Build) -> None:
    model, feeds = nms_model(*tail)
    want = onnxruntime(model, feeds)
    assert 0 < len(want) < 6, "a case that is cut"
    result = Session(build(model)).run(feeds)
    assert list(result.outputs) == ["y"]
    np.testing.assert_array_equal(result.outputs["y"], want)


def test_an_output_of_another_size_is_left_as_it_is(build: Build) -> None:
    total = helper.make_node("ReduceMax", ["rows"], ["y"], axes=[0], keepdims=0)
    model, feeds = nms_model(total)
    assert "y#rows" not in read(model).outputs
    got = Session(build(model)).run(feeds).outputs["y"]
    np.testing.assert_array_equal(got, onnxruntime(model, feeds))


def test_rows_that_are_known_when_compiling_are_cut_then() -> None:
    model, feeds = nms_model(helper.make_node("Identity", ["rows"], ["y"]))
    g = read(model, consts=feeds)
    np.testing.assert_array_equal(g.constants[g.outputs["y"]], onnxruntime(model, feeds))


def test_an_image_whose_companion_is_no_number_is_refused(build: Build) -> None:
    model, _ = nms_model(helper.make_node("Identity", ["rows"], ["y"]))
    program = build(model)
    rows, number = program.outputs
    assert (rows.name, number.name) == ("y", "y#rows")
    wrong = type(number)(number.name, "i32", (), number.address)
    broken = Program(**{**vars(program), "outputs": (rows, wrong)})
    with pytest.raises(IsaError, match="expected one i64 that counts rows"):
        image.read(image.write(broken))


# --- what does not fit


def test_more_boxes_than_shared_memory_holds_are_an_error(build: Build) -> None:
    operands: list[Array | None] = [
        np.zeros((1, 9000, 4), np.float32),
        np.zeros((1, 1, 9000), np.float32),
    ]
    graph, _ = op_graph(NMS, operands, {"max_output_boxes_per_class": 10})
    with pytest.raises(CompileError, match="it sorts at most 8,192 boxes, not 9,000"):
        build(graph)


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "message"),
    [
        (NMS, [(1, 5, 4), (1, 1, 6)], {}, "do not fit"),
        (NMS, [(1, 5, 4), (1, 1, 5), (2,)], {}, "not one number"),
        (NMS, [(1, 5, 4), (1, 1, 5)], {"center_point_box": 2}, "expected 0 or 1"),
        (ROI, [(1, 2, 5, 5), (3, 5)], {}, "do not fit"),
        (ROI, [(1, 2, 5, 5), (3, 4)], {"mode": "sum"}, "expected avg or max"),
        (ROI, [(1, 2, 5, 5), (3, 4)], {"output_height": 0}, "0×1 bins"),
        (ROI, [(1, 2, 5, 5), (3, 4)], {"coordinate_transformation_mode": "x"}, "no coordinate"),
    ],
)
def test_operands_that_do_not_fit_are_told(
    op: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any], message: str
) -> None:
    types: list[Type | None] = [Type("f32", s) for s in shapes]
    if op == ROI:
        types.append(Type("i64", (3,)))
    with pytest.raises(IRError, match=message):
        infer(op, types, attrs)
