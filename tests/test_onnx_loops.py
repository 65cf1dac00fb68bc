"""Loop and Scan are written out, turn by turn, where the number of turns is known."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper
from onnx_models import agrees, f32, model, node, number, ops

from knapper.frontends.onnx import loops, read
from knapper.isa.errors import FrontendError

FLOAT = TensorProto.FLOAT


def value(name: str, *shape: int, dtype: int = FLOAT) -> object:
    return helper.make_tensor_value_info(name, dtype, shape)


def body(nodes: list[object], inputs: list[object], outputs: list[object]) -> GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs)  # type: ignore[arg-type]  # protobuf's classes


def doubling(condition: list[object]) -> GraphProto:
    """x ← x + x, and y collects each x."""
    numbers = [value("i", dtype=TensorProto.INT64), value("go", dtype=TensorProto.BOOL)]
    return body(
        [
            node("Add", ["x_in", "x_in"], ["x_out"]),
            node("Identity", ["x_out"], ["row"]),
            *condition,
        ],
        [*numbers, value("x_in", 3)],
        [value("go_on", dtype=TensorProto.BOOL), value("x_out", 3), value("row", 3)],
    )


def looped(inner: GraphProto, trips: int) -> ModelProto:
    nodes = [node("Loop", ["trips", "go0", "x"], ["last", "y"], "loop", body=inner)]
    weights = {"trips": np.array(trips, np.int64), "go0": number(True)}
    return model(nodes, {"x": [3]}, ["last", "y"], weights)


def test_a_loop_is_written_out() -> None:
    inner = doubling([node("Identity", ["go"], ["go_on"])])
    graph = agrees(looped(inner, 3), x=f32(3))
    assert ops(graph).count("Add") == 3


def test_a_condition_on_known_numbers_ends_it() -> None:
    limit = helper.make_tensor("limit", TensorProto.INT64, [], [1])
    condition = [
        node("Constant", [], ["most"], value=limit),
        node("Less", ["i", "most"], ["go_on"]),
    ]
    assert ops(agrees(looped(doubling(condition), 9), x=f32(3))).count("Add") == 2


def test_a_condition_on_data_is_refused() -> None:
    total = node("ReduceSum", ["x_out"], ["sum"], keepdims=0)
    zero = node("Constant", [], ["zero"], value=helper.make_tensor("zero", FLOAT, [], [0.0]))
    inner = doubling([total, zero, node("Less", ["zero", "sum"], ["go_on"])])
    with pytest.raises(
        FrontendError, match=r"E204: net: node 'loop' \(Loop\): the condition of Loop is computed"
    ):
        read(looped(inner, 3))


def test_turns_that_data_count_are_refused() -> None:
    inner = doubling([node("Identity", ["go"], ["go_on"])])
    proto = looped(inner, 3)
    proto.graph.node.insert(0, node("Cast", ["x"], ["whole"], to=TensorProto.INT64))
    proto.graph.node.insert(1, node("ReduceMax", ["whole"], ["counted"], keepdims=0))
    proto.graph.node[2].input[0] = "counted"
    with pytest.raises(FrontendError, match="how often Loop turns is computed"):
        read(proto)


@pytest.mark.parametrize("back", [0, 1])
def test_a_scan_walks_its_axes(back: int) -> None:
    """A running sum over axis 1 of x, from either end, collected along axis 1."""
    inner = body(
        [node("Add", ["s_in", "row"], ["s_out"]), node("Identity", ["s_out"], ["seen"])],
        [value("s_in", 2), value("row", 2)],
        [value("s_out", 2), value("seen", 2)],
    )
    scan = node(
        "Scan", ["s", "x"], ["last", "y"], "scan", body=inner, num_scan_inputs=1,
        scan_input_axes=[1], scan_output_axes=[1], scan_input_directions=[back], scan_output_directions=[back],
    )  # fmt: skip
    graph = agrees(model([scan], {"s": [2], "x": [2, 4]}, ["last", "y"]), s=f32(2), x=f32(2, 4))
    assert ops(graph).count("Add") == 4


def test_a_body_sees_what_is_around_it() -> None:
    inner = body(
        [node("Mul", ["s_in", "outer"], ["s_out"])],
        [value("s_in", 2), value("t", 2)],
        [value("s_out", 2)],
    )
    nodes = [
        node("Exp", ["s"], ["outer"]),
        node("Scan", ["s", "x"], ["y"], "scan", body=inner, num_scan_inputs=1),
    ]
    agrees(model(nodes, {"s": [2], "x": [3, 2]}), s=f32(2), x=f32(3, 2))


def test_sequences_of_two_lengths_are_refused() -> None:
    inner = body(
        [node("Add", ["a", "b"], ["y_out"])], [value("a", 2), value("b", 2)], [value("y_out", 2)]
    )
    scan = node("Scan", ["p", "q"], ["y"], "scan", body=inner, num_scan_inputs=2)
    with pytest.raises(FrontendError, match="sequences of 3, 4 elements"):
        read(model([scan], {"p": [3, 2], "q": [4, 2]}))


def test_a_loop_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "TURNS_LIMIT", 20)
    proto = looped(doubling([node("Identity", ["go"], ["go_on"])]), 1)
    proto.graph.node[0].input[0] = ""
    with pytest.raises(FrontendError, match="turns more than"):
        read(proto)
