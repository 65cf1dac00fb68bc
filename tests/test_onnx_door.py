"""The ONNX door: every spelling of every opset becomes the same Graph, or an error that says why not."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from knapper.compiler.ir import Graph, evaluate
from knapper.frontends.onnx import read
from knapper.frontends.oracle import Oracle
from knapper.isa.errors import FrontendError, KnapperError, Problems, UsageError

Array = NDArray[Any]
RNG = np.random.default_rng(0)
node = helper.make_node
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def f32(*shape: int) -> Array:
    return RNG.standard_normal(shape, np.float32)


def number(value: float | bool) -> Array:
    return np.array(value, np.bool_ if isinstance(value, bool) else np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, dtype, s) for n, s in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def ops(g: Graph) -> list[str]:
    return [n.op for n in g.nodes]


def agrees(proto: ModelProto, tolerance: float = 1e-5, **inputs: Array) -> Graph:
    """The imported graph, once its reference values are onnxruntime's."""
    graph = read(proto).verify()
    expected = Oracle(proto.SerializeToString()).run(inputs)
    for name, y in evaluate(graph, inputs).items():
        assert y.shape == expected[name].shape
        np.testing.assert_allclose(y, expected[name], rtol=tolerance, atol=tolerance)
    return graph


# --- one meaning, several spellings -------------------------------------------------------------------------------------

IMAGE = (1, 2, 5, 6)
SPELLINGS: dict[str, Callable[[], list[tuple[int, list[NodeProto], dict[str, Array]]]]] = {
    "Clip": lambda: [
        (7, [node("Clip", ["x"], ["y"], min=-0.5, max=0.25)], {}),
        (13, [node("Clip", ["x", "lo", "hi"], ["y"])], {"lo": number(-0.5), "hi": number(0.25)}),
    ],
    "Pad": lambda: [
        (7, [node("Pad", ["x"], ["y"], pads=[0, 0, 1, 0, 0, 0, 0, 2], value=1.5)], {}),
        (13, [node("Pad", ["x", "p", "v"], ["y"])],
         {"p": ints(0, 0, 1, 0, 0, 0, 0, 2), "v": number(1.5)}),
        (18, [node("Pad", ["x", "p", "v", "a"], ["y"])],
         {"p": ints(1, 0, 0, 2), "v": number(1.5), "a": ints(2, -1)}),
    ],
    "Slice": lambda: [
        (9, [node("Slice", ["x"], ["y"], starts=[1, 0], ends=[9, -1], axes=[2, 3])], {}),
        (13, [node("Slice", ["x", "s", "e", "a"], ["y"])],
         {"s": ints(1, 0), "e": ints(9, -1), "a": ints(2, 3)}),
        (13, [node("Slice", ["x", "s", "e", "a", "t"], ["y"])],
         {"s": ints(1, 0), "e": ints(9, -1), "a": ints(2, 3), "t": ints(1, 1)}),
    ],
    "Squeeze": lambda: [
        (7, [node("Squeeze", ["x"], ["y"])], {}),
        (11, [node("Squeeze", ["x"], ["y"], axes=[0])], {}),
        (13, [node("Squeeze", ["x", "a"], ["y"])], {"a": ints(-4)}),
    ],
    "Unsqueeze": lambda: [
        (11, [node("Unsqueeze", ["x"], ["y"], axes=[0, 5])], {}),
        (13, [node("Unsqueeze", ["x", "a"], ["y"])], {"a": ints(0, 5)}),
    ],
    "ReduceSum": lambda: [
        (11, [node("ReduceSum", ["x"], ["y"], axes=[2, 3], keepdims=0)], {}),
        (13, [node("ReduceSum", ["x", "a"], ["y"], keepdims=0)], {"a": ints(2, -1)}),
    ],
    "Split": lambda: [
        (11, [node("Split", ["x"], ["y", "z"], axis=3, split=[3, 3])], {}),
        (13, [node("Split", ["x", "s"], ["y", "z"], axis=3)], {"s": ints(3, 3)}),
        (13, [node("Split", ["x"], ["y", "z"], axis=3)], {}),
        (18, [node("Split", ["x"], ["y", "z"], axis=-1, num_outputs=2)], {}),
    ],
    "TopK": lambda: [
        (9, [node("TopK", ["x"], ["y", "i"], k=2)], {}),
        (13, [node("TopK", ["x", "k"], ["y", "i"], sorted=1)], {"k": ints(2)}),
    ],
    "Softmax that flattens": lambda: [
        (11, [node("Softmax", ["x"], ["y"], axis=2)], {}),
        (13, [node("Reshape", ["x", "flat"], ["f"]), node("Softmax", ["f"], ["s"], axis=1),
              node("Reshape", ["s", "back"], ["y"])],
         {"flat": ints(2, 30), "back": ints(*IMAGE)}),
    ],
    "Dropout": lambda: [
        (7, [node("Dropout", ["x"], ["y"], ratio=0.5)], {}),
        (13, [node("Dropout", ["x", "r", "t"], ["y"])], {"r": number(0.5), "t": number(False)}),
        (13, [node("Identity", ["x"], ["y"])], {}),
    ],
    "Reshape": lambda: [
        (13, [node("Reshape", ["x", "s"], ["y"])], {"s": ints(0, -1, 6)}),
        (14, [node("Reshape", ["x", "s"], ["y"], allowzero=1)], {"s": ints(1, 10, 6)}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", SPELLINGS)
def test_every_opset_spells_one_graph(what: str) -> None:
    x = f32(*IMAGE)
    graphs = []
    for opset, nodes, weights in SPELLINGS[what]():
        graphs.append(agrees(model(nodes, {"x": IMAGE}, ["y"], weights, opset), x=x))
    kept = [[(n.op, n.types, dict(n.attrs)) for n in g.nodes] for g in graphs]
    assert all(k == kept[0] for k in kept)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
def test_auto_pad_becomes_pads(op: str, mode: str) -> None:
    weights = {"w": f32(4, 2, 3, 2)} if op == "Conv" else {}
    window = node(op, ["x", *weights], ["y"], auto_pad=mode, strides=[2, 1], kernel_shape=[3, 2])
    graph = agrees(model([window], {"x": IMAGE}, weights=weights), x=f32(*IMAGE))
    assert len(graph.nodes[0].attrs.get("pads", (0,) * 4)) == 4  # type: ignore[arg-type]  # it is a tuple


@pytest.mark.parametrize(
    "attrs",
    [
        {"output_shape": [10, 12], "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"pads": [1, 0, 1, 0], "output_padding": [1, 0], "strides": [2, 1]},
    ],
    ids=str,
)
def test_transposed_convolution_says_its_pads_in_three_ways(attrs: dict[str, Any]) -> None:
    conv = node("ConvTranspose", ["x", "w"], ["y"], kernel_shape=[3, 3], **attrs)
    agrees(model([conv], {"x": IMAGE}, weights={"w": f32(2, 3, 3, 3)}), x=f32(*IMAGE))


def test_old_batch_normalization_lists_results_that_inference_lacks() -> None:
    statistics = {n: np.abs(f32(2)) + 0.5 for n in "sbmv"}
    norm = node(
        "BatchNormalization", ["x", *"sbmv"], ["y", "a", "c", "d", "e"], epsilon=1e-3, momentum=0.9
    )
    graph = read(model([norm], {"x": IMAGE}, weights=statistics, opset=8))
    assert ops(graph) == ["BatchNormalization"]
    norm.output.extend([])
    reader = node("Relu", ["a"], ["z"])
    with pytest.raises(
        FrontendError, match=r"E203.*node that makes 'z' \(Relu\): reads 'a', but result 1"
    ):
        read(model([norm, reader], {"x": IMAGE}, ["z"], statistics, 8))


def test_old_group_normalization_scales_groups() -> None:
    weights = {"s": f32(2), "b": f32(2)}
    norm = node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)
    graph = agrees(model([norm], {"x": (2, 6, 5)}, weights=weights, opset=18), x=f32(2, 6, 5))
    assert ops(graph) == ["GroupNormalization"]
    norm.attribute[0].i = 3
    with pytest.raises(FrontendError, match=r"E206.*should have 3 elements, one a group"):
        read(model([norm], {"x": (2, 6, 5)}, weights=weights, opset=18))


def test_a_clip_with_computed_bounds_is_max_and_min() -> None:
    bound = node("ReduceMax", ["x"], ["hi"], keepdims=0)
    graph = agrees(
        model([bound, node("Clip", ["x", "", "hi"], ["y"])], {"x": IMAGE}), x=f32(*IMAGE)
    )
    assert ops(graph) == ["ReduceMax", "Min"]


# --- shapes are decided here --------------------------------------------------------------------------------------------


def test_shape_arithmetic_leaves_no_trace() -> None:
    """What torch exports for x.view(x.size(0), -1, 6), and for a dynamic expand."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Unsqueeze", ["batch", "axis"], ["batch1"]),
        node("Constant", [], ["rest"], value_ints=[-1, 6]),
        node("Concat", ["batch1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
        node("Cast", ["batch"], ["f"], to=TensorProto.FLOAT),
        node("Sqrt", ["f"], ["root"]),
        node("Div", ["y", "root"], ["z"]),
    ]
    weights = {"zero": np.array(0, np.int64), "axis": ints(0)}
    graph = agrees(model(nodes, {"x": (4, 2, 3)}, ["z"], weights), x=f32(4, 2, 3))
    assert ops(graph) == ["Reshape", "Div"]
    assert graph.nodes[0].attrs["shape"] == (4, 1, 6)
    assert list(graph.constants.values()) == [number(2)]


def test_nonzero_of_a_constant_is_a_constant() -> None:
    nodes = [
        node("ConstantOfShape", ["three"], ["ones"], value=numpy_helper.from_array(ints(1))),
        node("NonZero", ["ones"], ["where"]),
        node("Cast", ["where"], ["f"], to=TensorProto.FLOAT),
        node("Add", ["x", "f"], ["y"]),
    ]
    graph = agrees(model(nodes, {"x": (1, 3)}, weights={"three": ints(3)}), x=f32(1, 3))
    assert ops(graph) == ["Add"]


def test_a_weight_of_zeros_takes_no_memory() -> None:
    nodes = [node("ConstantOfShape", ["s"], ["w"]), node("MatMul", ["x", "w"], ["y"])]
    graph = read(model(nodes, {"x": (1, 30_000)}, weights={"s": ints(30_000, 30_000)}))
    (w,) = graph.constants.values()
    assert w.shape == (30_000, 30_000)
    assert w.strides == (0, 0)


def test_a_shape_computed_from_data_needs_const() -> None:
    proto = model([node("Reshape", ["x", "s"], ["y"])], {"x": (2, 3)})
    proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.INT64, [1]))
    with pytest.raises(FrontendError, match=r"E204.*operand 'shape' decides.*--const"):
        read(proto)
    graph = read(proto, consts={"s": [6]})
    assert list(graph.inputs) == ["x"]
    assert graph.nodes[0].types[0].shape == (6,)


# --- inputs -------------------------------------------------------------------------------------------------------------


def symbolic() -> ModelProto:
    return model([node("Add", ["a", "b"], ["y"])], {"a": ("batch", 3), "b": ("batch", 3)})


@pytest.mark.parametrize(
    "shapes", [{"a": (5, 3)}, {"batch": (5,)}, {"a": (5, 3), "b": (5, 3)}], ids=str
)
def test_a_symbol_is_bound_by_name_or_by_an_input_that_has_it(
    shapes: dict[str, tuple[int, ...]],
) -> None:
    assert [t.shape for t in read(symbolic(), shapes).inputs.values()] == [(5, 3), (5, 3)]


def test_open_dimensions_are_all_named() -> None:
    with pytest.raises(Problems) as e:
        read(symbolic())
    assert [p.code for p in e.value.problems] == ["E205", "E205"]
    assert "has shape [batch,3] with batch open" in str(e.value)
    assert "--shape a=1,3" in str(e.value)


def test_a_fixed_batch_can_be_replaced() -> None:
    flat = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"], ["y"])]
    proto = model(flat, {"x": (1, 2, 3)}, weights={"w": f32(6, 4)})
    graph = read(proto, {"x": (8, 2, 3)}, replace_fixed=True)
    assert graph.types()[graph.outputs["y"]].shape == (8, 4)
    with pytest.raises(UsageError, match=r"E703: .*input 'x' is \[1,2,3\], --shape says \[8,2,3\]"):
        read(proto, {"x": (8, 2, 3)})


def test_a_shape_of_another_rank_is_refused() -> None:
    with pytest.raises(
        FrontendError, match=r"input 'a': has 2 dimensions \[batch,3\], --shape gives 1"
    ):
        read(symbolic(), {"a": (5,)})


def test_unknown_names_in_options_are_refused() -> None:
    with pytest.raises(Problems) as e:
        read(symbolic(), {"c": (1,), "batch": (2,)}, {"d": 1})
    assert {p.message for p in e.value.problems} == {
        "--shape names 'c'; the model's inputs and open dimensions are: a, b, batch",
        "--const names 'd'; the model's inputs are: a, b",
    }


def test_an_initializer_that_is_also_an_input_is_a_constant() -> None:
    proto = model([node("Mul", ["x", "w"], ["y"])], {"x": (2,), "w": (2,)}, weights={"w": f32(2)})
    assert list(read(proto).inputs) == ["x"]


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


# --- files --------------------------------------------------------------------------------------------------------------


def saved(proto: ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    w = f32(64, 64)
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 64)}, weights={"w": w})
    graph = read(saved(proto, tmp_path / "net.onnx"))
    (found,) = graph.constants.values()
    np.testing.assert_array_equal(found, w)
    assert not found.flags.owndata
    assert not found.flags.writeable


def external(tmp_path: Path) -> ModelProto:
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 64)}, weights={"w": f32(64, 64)})
    onnx.save(
        proto,
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="net.bin",
        size_threshold=0,
    )
    return onnx.load(tmp_path / "net.onnx", load_external_data=False)


def test_external_data_is_found_beside_the_model(tmp_path: Path) -> None:
    external(tmp_path)
    graph = read(tmp_path / "net.onnx").verify()
    assert [c.shape for c in graph.constants.values()] == [(64, 64)]


def test_external_data_that_is_missing_or_short_is_named(tmp_path: Path) -> None:
    external(tmp_path)
    (tmp_path / "net.bin").write_bytes(b"short")
    with pytest.raises(
        FrontendError, match=r"E207: .*tensor 'w': .*net.bin has 5 bytes, not 16384 from 0 on"
    ):
        read(tmp_path / "net.onnx")
    (tmp_path / "net.bin").unlink()
    with pytest.raises(FrontendError, match=r"E207: .*tensor 'w': cannot read .*net.bin"):
        read(tmp_path / "net.onnx")


def test_external_data_outside_the_models_folder_is_refused(tmp_path: Path) -> None:
    proto = external(tmp_path)
    proto.graph.initializer[0].external_data[0].value = "../../etc/passwd"
    with pytest.raises(FrontendError, match=r"E207.*points outside the model's folder"):
        read(saved(proto, tmp_path / "hostile.onnx"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\x7fELF\x02\x01\x01", "an ELF file; `knapper run`"),
        (b"PK\x03\x04 zip", "a zip archive"),
        (b"\x1c\x00\x00\x00TFL3 flat", "a TFLite model"),
        (b"hello, I am a model\n", "a text file"),
        (b"\x08\x08", "no ONNX model, or not all of one (2 bytes)"),
        (b"\xff" * 64, "no ONNX model, or not all of one"),
    ],
    ids=["empty", "elf", "zip", "tflite", "text", "no graph", "noise"],
)
def test_what_is_no_model_is_recognized(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(
        FrontendError, match=rf"^E201: {re.escape(str(path))}: .*{re.escape(reason)}"
    ):
        read(path)


def _outcome(path: Path) -> str:
    try:
        read(path)
    except KnapperError as e:
        return "error" if str(path) in str(e) else f"error without a place: {e}"
    return "graph"


def test_damaged_files_give_errors_and_never_crash(tmp_path: Path) -> None:
    """Cut off at every length and with thousands of flipped bits: a Graph or a KnapperError."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Shape", ["c"], ["s"], "shape"),
        node("Slice", ["s", "zero", "two"], ["b"], "slice"),
        node("Concat", ["b", "minus"], ["t"], "concat", axis=0),
        node("Reshape", ["c", "t"], ["r"], "reshape"),
        node("Softmax", ["r"], ["y"], "softmax", axis=2),
    ]
    weights = {"w": f32(3, 2, 3, 3), "zero": ints(0), "two": ints(2), "minus": ints(-1)}
    whole = model(nodes, {"x": IMAGE}, weights=weights, opset=11).SerializeToString()
    path = tmp_path / "net.onnx"
    rng, outcomes = random.Random(0), {"graph": 0, "error": 0}
    damaged = [whole[:n] for n in range(1, len(whole), 3)]
    for _ in range(1500):
        bits = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 4])):
            bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(bits))
    for content in damaged:
        path.write_bytes(content)
        outcomes[_outcome(path)] += 1
    assert outcomes["error"] > 500
    assert outcomes["graph"] > 50


# --- problems -----------------------------------------------------------------------------------------------------------


def test_every_problem_is_said_at_once_and_only_once() -> None:
    nodes = [
        node("FancyOp", ["x"], ["a"], "fancy", domain="mine"),
        node("Relu", ["a"], ["b"], "after"),
        node("Det", ["x"], ["c"], "det"),
        node("MatMul", ["x", "w"], ["d"], "mm"),
        node("Relu", ["nowhere"], ["e"], "lost"),
        node("Sotfmax", ["b"], ["y"], "typo"),
    ]
    with pytest.raises(Problems) as e:
        read(model(nodes, {"x": (3, 3)}, weights={"w": f32(4, 3)}))
    assert [(p.code, p.where) for p in e.value.problems] == [
        ("E203", "net: node 'fancy' (FancyOp)"),
        ("E203", "net: node 'det' (Det)"),
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
        (lambda: model([node("Relu", ["x"], ["y"])], {"x": (2,)}, dtype=TensorProto.FLOAT8E5M2), "float8e5m2 is not"),
        (lambda: model([node("Dropout", ["x", "r", "t"], ["y"])], {"x": (2,)},
                       weights={"r": number(0.5), "t": number(True)}), "Dropout in training mode"),
    ],
    ids=["string", "float8", "training"],
)  # fmt: skip
def test_what_knapper_lacks_is_named(proto: Callable[[], ModelProto], message: str) -> None:
    with pytest.raises(FrontendError, match=message):
        read(proto())


# --- other people's models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_the_classic_topologies_are_read(file: Path) -> None:
    graph = read(file).verify()
    stored = TensorProto.FromString(file.with_name(f"{file.stem}_output_0.pb").read_bytes())
    (output,) = graph.outputs.values()
    assert graph.types()[output].shape == tuple(stored.dims)


UNLIKE_ONNXRUNTIME = {
    # onnxruntime, and we, align the corners of whole output sizes; the suite those of scale × size
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}


# onnx's own generators divide by zero and overflow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_onnx_own_cases_have_onnx_values() -> None:
    """Every case of ONNX's suite that imports evaluates to its stored outputs; most do import."""
    from onnx.backend.test.case.node import collect_testcases

    imported = 0
    for case in collect_testcases(None):
        inputs, outputs = case.data_sets[0] if case.data_sets else ((), ())
        if case.model is None or not all(
            isinstance(a, np.ndarray | np.generic) for a in (*inputs, *outputs)
        ):
            continue
        if case.name in UNLIKE_ONNXRUNTIME:
            continue
        graph = _imported(case.model, inputs)
        if graph is None or any(0 in t.shape for t in graph.inputs.values()):
            continue
        names = [i.name for i in case.model.graph.input]
        got = evaluate(graph, dict(zip(names, inputs, strict=False)))
        imported += 1
        for y, expected in zip(got.values(), outputs, strict=False):
            bits = 2 if expected.dtype.itemsize == 2 else 4
            _close(case.name, np.asarray(y), expected, {2: 1e-2, 4: 1e-4}[bits])
    assert imported > 1100


def _imported(proto: ModelProto, inputs: Sequence[Array]) -> Graph | None:
    """The case's graph; operands that decide shapes become constants. None if it does not import."""
    given = dict(zip((i.name for i in proto.graph.input), inputs, strict=False))
    first = dict(list(given.items())[:1])
    for consts in ({}, {n: a for n, a in given.items() if n not in first}, given):
        try:
            return read(proto, {n: a.shape for n, a in given.items() if n not in consts}, consts)
        except KnapperError as e:
            if "E204" not in str(e):
                return None
    return None


def _close(name: str, y: Array, expected: Array, tolerance: float) -> None:
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype), name
    got, want = (a if a.dtype.kind == "b" else a.astype(np.float64) for a in (y, expected))
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=name)
