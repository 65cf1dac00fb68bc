"""The ONNX door: every spelling of every opset becomes the same Graph, its shapes decided, its inputs bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_models import IMAGE, Array, agrees, f32, ints, model, node, number, ops

from knapper.frontends.onnx import read
from knapper.isa.errors import FrontendError, Problems, UsageError

# --- one meaning, several spellings -------------------------------------------------------------------------------------
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
        {"auto_pad": "SAME_UPPER", "strides": [4, 5]},
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
