"""`knapper check`: against onnxruntime."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from shop import SHAPE, Knapper

from knapper.frontends.commands.check import node_by_node
from knapper.frontends.onnx import read
from knapper.frontends.oracle import Oracle
from knapper.isa.errors import KnapperError


def test_check_agrees_with_onnxruntime(run: Knapper) -> None:
    for precision in ("fp16", "fp32"):
        code, out, err = run("check", "SHOP/small.onnx", *SHAPE, "--precision", precision)
        assert code == 0, err
        assert [line.split()[0] for line in out.splitlines()] == ["output", "sum", "row", "best"]


def test_check_says_where_a_difference_starts(run: Knapper) -> None:
    code, _, err = run("check", "SHOP/small.onnx", *SHAPE, "--tolerance", "1e-9")
    assert code == 1
    assert "E706: " in err
    assert "output 'sum' differs from onnxruntime's" in err
    assert "the passes change outputs" in err


def test_check_knows_that_the_data_decides_how_many_rows_there_are(
    run: Knapper, tmp_path: Path
) -> None:
    """In 16-bit storage another box is chosen; every node is compared all the same, by the rows that onnxruntime has."""
    path = tmp_path / "boxes.onnx"
    onnx.save(choosing_model(), path)
    for target in ("volta-8tc", "sma3"):
        code, out, err = run("check", str(path), "--precision", "fp32", "-t", target)
        assert code == 0, err
        assert re.search(r"^picked +12 ", out, re.MULTILINE)
    code, _, err = run("check", str(path))
    assert code == 1
    assert "E706" in err
    assert "output 'picked' is float32[4,4], onnxruntime gives float32[3,4]" in err
    assert "the passes change how many boxes are chosen, as --precision may" in err
    graph = read(path)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)}
    compared = {d.op: d.max_rel for d in node_by_node(path, graph, feed)}
    assert compared.keys() == {n.op for n in graph.nodes}
    assert max(compared.values()) < 1e-5


def choosing_model() -> onnx.ModelProto:
    """Boxes, of which the data decides how many are chosen; outputs are those chosen."""
    rng = np.random.default_rng(0)
    boxes = 32
    weights = {
        "w": 0.3 * rng.standard_normal((boxes * 4, 3, 3, 3)).astype(np.float32),
        "v": 0.3 * rng.standard_normal((boxes * 3, 3, 3, 3)).astype(np.float32),
        "as_boxes": np.array([1, boxes, 4]),
        "as_scores": np.array([1, 3, boxes]),
        "most": np.array([5]),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([0.1], np.float32),
        "first": np.array([0]),
        "second": np.array([1]),
        "third": np.array([2]),
    }
    node = helper.make_node
    nodes = [
        node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["chosen"],
             "nms", center_point_box=1),
        node("Gather", ["chosen", "third"], ["column"], "column", axis=1),
        node("Squeeze", ["column", "second"], ["rows"], "rows"),
        node("Squeeze", ["boxes", "first"], ["all"], "all"),
        node("Gather", ["all", "rows"], ["picked"], "picked"),
    ]  # fmt: skip
    for weight, value in (("v", "scores"), ("w", "boxes")):
        nodes[:0] = [
            node("Conv", ["x", weight], [f"{value}.c"], f"{value}.conv", pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", [f"{value}.c"], [f"{value}.p"], f"{value}.pool"),
            node("Sigmoid", [f"{value}.p"], [f"{value}.s"], f"{value}.sigmoid"),
            node("Reshape", [f"{value}.s", f"as_{value}"], [value], f"{value}.shape"),
        ]
    value_info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "boxes",
        [value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [value_info("picked", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_onnxruntime_refuses_is_one_error() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    with pytest.raises(KnapperError, match="E706: onnxruntime cannot run the model"):
        Oracle(made.SerializeToString()).run({"x": np.zeros((1, 9), np.float32)})
