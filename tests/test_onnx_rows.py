"""NonZero, Compress and Unique have onnxruntime's rows, however many those are; what would look at rows that are not meant is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import knapper
from knapper.frontends.onnx import read
from knapper.isa.errors import KnapperError

Array = np.ndarray[Any, Any]


def model(
    nodes: list[Any],
    feeds: dict[str, Array],
    consts: dict[str, Array] | None = None,
    outputs: str = "y",
) -> ModelProto:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
    ]
    made = [helper.make_empty_tensor_value_info(n) for n in outputs.split()]
    weights = [numpy_helper.from_array(a, n) for n, a in (consts or {}).items()]
    graph = helper.make_graph(nodes, "rows", inputs, made, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compared(m: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    session = ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, feeds)
    got = knapper.compile(m).run(feeds).outputs
    assert list(got) == [o.name for o in m.graph.output]
    for y, r in zip(got.values(), want, strict=True):
        assert (y.dtype, y.shape) == (r.dtype, r.shape)
        np.testing.assert_array_equal(y, r)
    return want


def values(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    """Few different numbers, some of them zero."""
    return np.random.default_rng(seed).integers(-1 - seed, 2, shape).astype(dtype)


NODES = {
    "NonZero": [helper.make_node("NonZero", ["x"], ["y"])],
    "x[mask]": [
        helper.make_node("Greater", ["x", "zero"], ["m"]), helper.make_node("NonZero", ["m"], ["i"]),
        helper.make_node("Transpose", ["i"], ["t"]), helper.make_node("GatherND", ["x", "t"], ["g"]),
        helper.make_node("Mul", ["g", "two"], ["y"]),
    ],
    "Compress": [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BOOL), helper.make_node("Reshape", ["b", "flat"], ["c"]),
        helper.make_node("Compress", ["x", "c"], ["z"]), helper.make_node("Unsqueeze", ["z", "ends"], ["y"]),
    ],
    "Unique": [helper.make_node("Unique", ["x"], ["y", "i", "j", "k"])],
    "Unique, unsorted": [helper.make_node("Unique", ["x"], ["y", "i", "j", "k"], sorted=0)],
    "Unique of rows": [helper.make_node("Unique", ["x"], ["y", "i", "j", "k"], axis=0)],
    "Unique of columns": [helper.make_node("Unique", ["x"], ["y", "i", "j", "k"], axis=-1)],
}  # fmt: skip
CONSTS = {
    "zero": np.float32(0).reshape(()), "two": np.float32([2]), "flat": np.array([-1]), "ends": np.array([0, 2]), "one": np.array(1),
    "most": np.array([2]),
}  # fmt: skip


def chain(name: str, nodes: list[Any], x: Array) -> ModelProto:
    used = {v for n in nodes for v in n.input}
    outputs = "y i j k" if name.startswith("Unique") else "y"
    return model(nodes, {"x": x}, {n: a for n, a in CONSTS.items() if n in used}, outputs)


@pytest.mark.parametrize("name", NODES)
def test_there_are_as_many_rows_as_the_data_decides(name: str) -> None:
    counts = set()
    for seed, shape in enumerate([(4, 6), (4, 6), (4, 6), (7, 2)]):
        x = values(seed, *shape)
        counts.add(compared(chain(name, NODES[name], x), {"x": x})[0].shape)
    assert len(counts) > 1, "numbers that differ"


@pytest.mark.parametrize("name", ["Unique", "Unique, unsorted"])
def test_a_nan_is_unique_once_and_behind_all_others(name: str) -> None:
    """As numpy and ONNX's reference have it; onnxruntime gives one element."""
    nan, inf = np.nan, np.inf
    x = np.array([nan, 1, nan, -0.0, 0, inf, -inf, 1, 2, nan], np.float32)
    m = chain(name, NODES[name], x)
    got = knapper.compile(m, precision="fp32").run({"x": x}).outputs
    want = dict(zip("yijk", ReferenceEvaluator(m).run(None, {"x": x}), strict=True))
    assert all(np.array_equal(got[n], want[n], equal_nan=True) for n in want)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_none_and_all(fill: float) -> None:
    for name in ("NonZero", "x[mask]", "Compress", "Unique"):
        x = np.full((3, 5), fill, np.float32)
        compared(chain(name, NODES[name], x), {"x": x})


def test_rows_that_are_known_are_cut_when_compiling() -> None:
    x = values(5, 3, 4)
    for name in ("NonZero", "Unique", "Compress"):
        g = read(chain(name, NODES[name], x), consts={"x": x})
        assert not g.nodes


REFUSED = {
    "their number": [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Shape", ["i"], ["y"])],
    "their sum": [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("ReduceSum", ["i"], ["y"])],
    "the last": [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Gather", ["i", "one"], ["y"], axis=1)],
    "from the end": [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Softmax", ["f"], ["y"], axis=1)],
    "in another order": [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Reshape", ["i", "columns"], ["y"])],
    "of each other": [
        helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Transpose", ["i"], ["t"]),
        helper.make_node("ScatterND", ["x", "t", "rows"], ["y"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_nothing_looks_at_rows_that_are_not_meant(what: str) -> None:
    nodes = REFUSED[what]
    if what == "from the end":
        nodes = [nodes[0], helper.make_node("Cast", ["i"], ["f"], to=1), nodes[1]]
    x = values(1, 4, 6)
    consts = {"one": np.array(1), "columns": np.array([-1, 2]), "rows": np.zeros(24, np.float32)}
    used = {v for n in nodes for v in n.input}
    m = model(nodes, {"x": x}, {n: a for n, a in consts.items() if n in used})
    with pytest.raises(KnapperError, match="as many rows as the data decides"):
        read(m)
