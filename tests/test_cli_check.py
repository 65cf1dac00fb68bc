"""`knapper check`: against onnxruntime."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from shop import SHAPE, Knapper

from knapper.frontends.checking.nodes import intermediates, node_by_node
from knapper.frontends.onnx import read
from knapper.frontends.oracle import Oracle
from knapper.isa.errors import KnapperError


def test_check_agrees_with_onnxruntime(run: Knapper) -> None:
    for precision in ("fp16", "fp32"):
        code, out, err = run("check", "SHOP/small.onnx", *SHAPE, "--precision", precision)
        assert code == 0, err
        *rows, last = out.splitlines()
        assert [line.split()[0] for line in rows] == ["output", "sum", "row", "best"]
        assert re.match(r"\d nodes compared with onnxruntime's; farthest is ", last)


def test_check_compares_node_by_node(run: Knapper) -> None:
    """By the name of the model's node, whatever its launch stores: integers by their bits, floats by all that can be told."""
    code, out, _ = run("check", "SHOP/small.onnx", *SHAPE, "--nodes")
    assert code == 0
    head = next(line for line in out.splitlines() if line.startswith("node "))
    assert head.split()[:5] == ["node", "op", "launch", "elements", "equal"]
    assert re.search(r"^relu +Relu +conv_1 +256 ", out, re.MULTILINE)
    code, out, _ = run("check", "SHOP/small.onnx", *SHAPE, "--json")
    told = json.loads(out)
    assert [d["name"] for d in told["outputs"]] == ["sum", "row", "best"]
    assert told["first"] is None
    nodes = {n["node"]: n for n in told["nodes"]}
    assert nodes.keys() >= {"relu", "gap", "add", "argmax"}
    assert nodes["argmax"]["numeric"] is False
    assert nodes["argmax"]["equal"] == 1
    assert 0 < nodes["relu"]["ulp_99"] < nodes["relu"]["ulp"]
    assert nodes["relu"]["sqnr"] > 50


def test_within_their_precision_all_levels_are_right(run: Knapper) -> None:
    """Where no level does more than it may, the pass is named that changes most."""
    code, _, err = run("check", "SHOP/small.onnx", *SHAPE, "--tolerance", "1e-9")
    assert code == 1
    assert "E706: " in err
    assert "output 'sum' differs from onnxruntime's" in err
    assert "every level is within what its precision allows; most comes of pass precision" in err
    assert "--precision fp32 passes" in err
    code, _, err = run("check", "SHOP/small.onnx", *SHAPE, "--levels")
    assert code == 0, err


def test_what_16_bits_cannot_hold_is_known_to_pass_in_fp32(run: Knapper, tmp_path: Path) -> None:
    """Sixteen bits of an integer, which a 16-bit float has not: near 1000 it tells halves apart."""
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "d"),
        node("Add", ["d", "offset"], ["a"], "add"),
        node("MatMul", ["a", "w"], ["y"], "product"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])
    signs = np.where(np.arange(16)[:, None] < 8, 1, -1) * np.ones((16, 8))
    constants = {
        "scale": np.float32(2**-8),
        "zero": np.int16(0),
        "offset": np.float32(1000),
        "w": signs.astype(np.float32),
    }
    held = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "qdq", [x], [y], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(made, tmp_path / "qdq.onnx")
    code, _, err = run("check", "qdq.onnx")
    assert code == 1
    assert "pass precision is the first that changes values" in err
    assert "--precision fp32 passes)" in err
    code, _, err = run("check", "qdq.onnx", "--precision", "fp32")
    assert code == 0, err


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
    assert "pass precision is the first that changes values" in err
    assert "output 'picked' is float32[4,4], the graph before it gives float32[3,4]" in err
    assert "--precision fp32 passes" in err
    graph = read(path)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)}
    theirs = intermediates(path, graph, feed)
    compared = {d.node.op: d.of.max_rel for d in node_by_node(graph, feed, theirs)}
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


def test_comparing_nothing_fails(run: Knapper, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [0, 8]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "empty", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(made, tmp_path / "empty.onnx")
    code, _, err = run("check", "empty.onnx")
    assert code == 1
    assert err == "error E706: nothing was compared: the model has no outputs, or only empty ones\n"


def test_a_reproducer_is_an_ir_file(run: Knapper) -> None:
    code, _, err = run("check", "SHOP/small.onnx", *SHAPE, "--reproducer", "fault.onnx")
    assert (code, "E704" in err) == (2, True)
    code, _, err = run("check", "SHOP/small.onnx", *SHAPE, "--reproducer", "no/fault.ir")
    assert (code, "E705" in err) == (2, True)
    code, _, err = run("check", "SHOP/small.onnx", *SHAPE, "--reproducer", "fault.ir")
    assert (code, "fault.ir: not written, since every level is within its precision" in err) == (
        0,
        True,
    )
    assert not Path("fault.ir").exists()
