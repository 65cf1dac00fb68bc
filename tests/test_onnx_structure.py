"""What a model is made of becomes a Graph: names, constants, branches, functions. Then the problems, which are all said at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_models import IMAGE, agrees, f32, ints, model, node, number, ops

from knapper.compiler.ir import evaluate
from knapper.frontends.onnx import read
from knapper.isa.errors import FrontendError, Problems

# --- structure ----------------------------------------------------------------------------------------------------------


def test_outputs_keep_their_names_whatever_they_are() -> None:
    nodes = [
        node("Identity", ["x"], ["same"]),
        node("Relu", ["x"], ["a b:0"]),
        node("Dropout", ["w"], ["c"]),
    ]
    graph = read(model(nodes, {"x": (2,)}, ["same", "a b:0", "c"], {"w": f32(3)})).verify()
    assert list(graph.outputs) == ["same", "a b:0", "c"]
    assert graph.outputs["same"] == "x"
    assert graph.outputs["c"] in graph.constants
    assert ops(graph) == ["Relu"]


def test_nodes_keep_their_names_and_get_distinct_ones() -> None:
    nodes = [
        node("Relu", ["x"], ["a"], "twin"),
        node("Relu", ["a"], ["b"], "twin"),
        node("Relu", ["b"], ["y"]),
    ]
    assert [n.loc for n in read(model(nodes, {"x": (2,)})).nodes] == ["twin", "twin_2", "y"]


@pytest.mark.parametrize(
    "attrs",
    [
        {"value": numpy_helper.from_array(np.array([2, 3], np.float32))},
        {"value_floats": [2.0, 3.0]},
        {"value_float": 2.5},
        {"value_int": 2},
        {"value_ints": [2, 3]},
    ],
    ids=lambda a: next(iter(a)),
)
def test_constants_have_five_forms(attrs: dict[str, Any]) -> None:
    nodes = [
        node("Constant", [], ["c"], **attrs),
        node("Cast", ["c"], ["f"], to=1),
        node("Add", ["x", "f"], ["y"]),
    ]
    agrees(model(nodes, {"x": (2,)}), x=f32(2))


@pytest.mark.parametrize("taken", [True, False])
def test_an_if_that_is_decided_is_its_branch(taken: bool) -> None:
    then = helper.make_graph(
        [node("Relu", ["x"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")]
    )
    other = helper.make_graph(
        [node("Neg", ["x"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")]
    )
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Equal", ["s", "two"], ["same"]),
        node("Squeeze", ["same"], ["c"]),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    proto = model(nodes, {"x": (2,)}, weights={"two": ints(2 if taken else 3)})
    assert ops(agrees(proto, x=f32(2))) == ["Relu" if taken else "Neg"]


def test_an_if_on_data_is_an_error() -> None:
    branch = helper.make_graph(
        [node("Relu", ["x"], ["t"])], "b", [], [onnx.ValueInfoProto(name="t")]
    )
    nodes = [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["c"], to=9)]
    nodes.append(node("If", ["c"], ["y"], "choose", then_branch=branch, else_branch=branch))
    with pytest.raises(
        FrontendError, match=r"E204: net: node 'choose' \(If\): the condition of If is computed"
    ):
        read(model(nodes, {"x": (2,)}))


def scaled(body: Sequence[NodeProto], name: str = "Scaled") -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_function("mine", name, ["a"], ["b"], body, opsets, ["factor"])


def test_a_model_local_function_is_opened_up() -> None:
    factor = node("Constant", [], ["f"])
    factor.attribute.append(
        onnx.AttributeProto(name="value_float", ref_attr_name="factor", type="FLOAT")
    )
    f = scaled([factor, node("Mul", ["a", "f"], ["b"], "times")])
    call = node("Scaled", ["x"], ["y"], "outer", domain="mine", factor=3.0)
    graph = read(model([call], {"x": (2,)}, functions=[f])).verify()
    assert [(n.op, n.loc) for n in graph.nodes] == [("Mul", "outer/times")]
    np.testing.assert_array_equal(evaluate(graph, {"x": np.array([1, 2], np.float32)})["y"], [3, 6])


def test_a_function_that_calls_itself_is_an_error() -> None:
    f = scaled([node("Scaled", ["a"], ["b"], domain="mine")])
    with pytest.raises(FrontendError, match=r"E209.*nested more than 32 deep"):
        read(model([node("Scaled", ["x"], ["y"], domain="mine")], {"x": (2,)}, functions=[f]))


def test_operators_that_are_functions_come_from_their_definition() -> None:
    proto = model([node("MeanVarianceNormalization", ["x"], ["y"], "mvn")], {"x": IMAGE}, opset=13)
    graph = agrees(proto, 1e-4, x=f32(*IMAGE))
    assert {n.loc for n in graph.nodes} == {"mvn"}
    assert "MeanVarianceNormalization" not in ops(graph)


# --- problems -----------------------------------------------------------------------------------------------------------


def test_every_problem_is_said_at_once_and_only_once() -> None:
    nodes = [
        node("FancyOp", ["x"], ["a"], "fancy", domain="mine"),
        node("Relu", ["a"], ["b"], "after"),
        node("Bernoulli", ["x"], ["c"], "coin"),
        node("MatMul", ["x", "w"], ["d"], "mm"),
        node("Relu", ["nowhere"], ["e"], "lost"),
        node("Sotfmax", ["b"], ["y"], "typo"),
    ]
    with pytest.raises(Problems) as e:
        read(model(nodes, {"x": (3, 3)}, weights={"w": f32(4, 3)}))
    assert [(p.code, p.where) for p in e.value.problems] == [
        ("E203", "net: node 'fancy' (FancyOp)"),
        ("E203", "net: node 'coin' (Bernoulli)"),
        ("E206", "net: node 'mm' (MatMul)"),
        ("E209", "net: node 'lost' (Relu)"),
        ("E203", "net: node 'typo' (Sotfmax)"),
    ]
    assert "did you mean Softmax?" in str(e.value)


def test_a_value_defined_twice_is_an_error() -> None:
    twice = [node("Relu", ["x"], ["y"], "one"), node("Neg", ["x"], ["y"], "two")]
    with pytest.raises(
        FrontendError, match=r"E209: net: node 'two' \(Neg\): value 'y' is defined twice"
    ):
        read(model(twice, {"x": (2,)}))


def test_sparse_initializers_are_refused() -> None:
    proto = model([node("Relu", ["w"], ["y"])], {})
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(ints(2)), [4])
    )
    with pytest.raises(
        FrontendError, match=r"E202: net: initializer 'w' is sparse.*hint: store it dense"
    ):
        read(proto)


def test_opsets_from_the_future_are_refused() -> None:
    with pytest.raises(FrontendError, match="E208: net: opset 999 is not between 1 and"):
        read(model([node("Relu", ["x"], ["y"])], {"x": (2,)}, opset=999))


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (lambda: model([node("Relu", ["x"], ["y"])], {"x": (2,)}, dtype=TensorProto.STRING), "type string is not"),
        (lambda: model([node("Relu", ["x"], ["y"])], {"x": (2,)}, dtype=TensorProto.COMPLEX64), "complex64 is not"),
        (lambda: model([node("Dropout", ["x", "r", "t"], ["y"])], {"x": (2,)},
                       weights={"r": number(0.5), "t": number(True)}), "Dropout in training mode"),
    ],
    ids=["string", "complex", "training"],
)  # fmt: skip
def test_what_knapper_lacks_is_named(proto: Callable[[], ModelProto], message: str) -> None:
    with pytest.raises(FrontendError, match=message):
        read(proto())


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(TensorProto.INT64, 2.5), (TensorProto.UINT8, 300), (TensorProto.INT32, -1e20), (TensorProto.INT64, float("nan")), (TensorProto.BOOL, 2)],
    ids=str,
)  # fmt: skip
def test_a_bound_number_that_the_type_has_not_is_refused(dtype: int, value: float) -> None:
    proto = model([node("Identity", ["x"], ["y"])], {"x": ()}, dtype=dtype)
    with pytest.raises((FrontendError, Problems), match="E702"):
        read(proto, {}, {"x": value})
    assert read(proto, {}, {"x": 1}).constants
