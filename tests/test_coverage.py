"""What is not served is said in one line that names node and operator, and what to do instead; README and table agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper
from onnx import helper as h

import knapper
from knapper.compiler import ops as _ops  # noqa: F401  declares the op set
from knapper.compiler.ir import OPS
from knapper.frontends.onnx import read
from knapper.frontends.onnx.unserved import FAMILIES, INSTEAD
from knapper.isa.errors import KnapperError, Problems

README = (Path(__file__).parent.parent / "README.md").read_text()
F, I64, U8, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL
Kinds = dict[str, tuple[int, list[int]]]
X: Kinds = {"x": (F, [1, 8])}
SEQUENCE: Kinds = {"x": (F, [3, 1, 2])}


def model(
    op: str, inputs: Kinds, weights: dict[str, np.ndarray | np.generic], order: str, **attrs: object
) -> onnx.ModelProto:
    """A model of one node, `the_node`, that reads the values of `order`."""
    node = helper.make_node(op, order.split(), ["y"], "the_node", **attrs)
    graph = helper.make_graph(
        [node], "net", [helper.make_tensor_value_info(n, *k) for n, k in inputs.items()],
        [helper.make_tensor_value_info("y", F, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def value(name: str, kind: int, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branch(op: str) -> GraphProto:
    return h.make_graph([h.make_node(op, ["x"], [op])], op, [], [value(op, F, [1, 8])])


TINY = {
    "SequenceConstruct": model("SequenceConstruct", X, {}, "x"),
    "SplitToSequence": model("SplitToSequence", X, {}, "x", axis=1),
    "RandomNormalLike": model("RandomNormalLike", X, {}, "x"),
    "StringNormalizer": model("StringNormalizer", X, {}, "x"),
}  # fmt: skip


@pytest.mark.parametrize("op", TINY)
def test_a_model_with_an_unserved_operator_is_told_in_one_line(op: str) -> None:
    with pytest.raises(KnapperError) as e:
        read(TINY[op])
    assert not isinstance(e.value, Problems)
    assert e.value.code == "E203"
    assert "node 'the_node'" in e.value.where
    assert op in str(e.value)
    assert e.value.hint == INSTEAD[op]


def test_a_branch_that_the_network_chooses_is_told() -> None:
    proto = model("If", {**X, "c": (BOOL, [])}, {}, "c", then_branch=branch("Relu"), else_branch=branch("Neg"))  # fmt: skip
    with pytest.raises(KnapperError, match=r"E204: .*'the_node' \(If\): .*choose with Where"):
        read(proto)
    assert [n.op for n in read(proto, consts={"c": False}).nodes] == ["Neg"]


@pytest.mark.parametrize("op", [op for op in INSTEAD if op in OPS])
def test_what_is_served_is_not_called_unserved(op: str) -> None:
    assert f"`{op}`" not in README.split("Not served yet")[1].split("Where ONNX")[0]


def test_the_readme_names_what_is_not_served() -> None:
    listed = README.split("Not served yet")[1].split("Where ONNX")[0]
    for op in TINY:
        family = next(f for f in FAMILIES if op in f.ops)
        words = ("strings", "sequences", "random numbers")
        assert any(f"`{o}`" in listed for o in family.ops) or any(w in family.instead for w in words)  # fmt: skip


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks_are_served(rank: int) -> None:
    kinds: Kinds = {"x": (F, [1, 2, *[4] * rank])}
    proto = model("Conv", kinds, {"w": np.ones((3, 2, *[2] * rank), np.float32)}, "x w")
    y = knapper.compile(proto, precision="fp32").run(
        {"x": np.ones((1, 2, *[4] * rank), np.float32)}
    )
    np.testing.assert_array_equal(y.outputs["y"], np.full((1, 3, *[3] * rank), 2.0 * 2**rank))


def test_casts_and_pads_do_what_the_readme_says() -> None:
    x = np.array([[np.nan, -2.7, 2.7, 1e20, -1e20, np.inf, 300, -0.0]], np.float32)
    cast = knapper.compile(model("Cast", X, {}, "x", to=TensorProto.INT32)).run({"x": x})
    low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    assert cast.outputs["y"].tolist() == [[0, -2, 2, high, low, high, 300, 0]]
    cut = model("Pad", X, {"p": np.array([0, -1, 0, -2])}, "x p")
    y = knapper.compile(cut, precision="fp32").run({"x": x}).outputs["y"]
    np.testing.assert_array_equal(y, x[:, 1:-2])
