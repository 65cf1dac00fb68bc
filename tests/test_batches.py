"""A model for several samples: a first axis that it leaves open is the number of them."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from knapper.frontends.batches import Importer
from knapper.isa.errors import FrontendError


def model(*first: str | int | None) -> onnx.ModelProto:
    """y = x0 + x1 + …, with such first axes; None is an open one without a name."""
    inputs = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [n, 8])
        for i, n in enumerate(first)
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Sum", [i.name for i in inputs], ["y"])
    return helper.make_model(
        helper.make_graph([node], "g", inputs, [y]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


@pytest.mark.parametrize("first", [("N",), (None,), ("N", "N"), ("N", "M"), ("N", None), (1,)])
def test_an_open_first_axis_is_the_batch(first: tuple[str | int | None, ...]) -> None:
    graph = Importer(model(*first))(4)
    assert [t.shape for t in graph.inputs.values()] == [(4, 8)] * len(first)


def test_what_the_user_says_of_it_comes_first() -> None:
    graph = Importer(model("N", "M"), {"N": (4,)})(4)
    assert [t.shape for t in graph.inputs.values()] == [(4, 8)] * 2
    graph = Importer(model("N"), {"x0": (4, 8)})(4)
    assert [t.shape for t in graph.inputs.values()] == [(4, 8)]


def test_as_many_as_keep_launches_busy_need_no_shape_either() -> None:
    (only,) = Importer(model("N")).batched().inputs.values()
    assert only.shape[0] > 1


def test_without_a_batch_it_stays_open() -> None:
    with pytest.raises(FrontendError, match="E205"):
        Importer(model("N"))()
