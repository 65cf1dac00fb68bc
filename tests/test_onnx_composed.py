"""Operators that the door writes out in others, against onnxruntime and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_models import agrees, f32, model, node

from knapper.compiler.ir import evaluate
from knapper.frontends.onnx import read
from knapper.isa.errors import FrontendError


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_samples_of_an_image_are_onnxruntimes(mode: str, padding: str, corners: int) -> None:
    """At places well outside of it too."""
    at = np.random.default_rng(1).uniform(-2, 2, (2, 5, 3, 2)).astype(np.float32)
    sample = node(
        "GridSample", ["x", "grid"], ["y"], mode=mode, padding_mode=padding, align_corners=corners
    )
    proto = model([sample], {"x": (2, 3, 4, 6), "grid": (2, 5, 3, 2)}, opset=20)
    agrees(proto, 1e-4, x=f32(2, 3, 4, 6), grid=at)


def test_an_unknown_mode_of_sampling_is_told() -> None:
    sample = node("GridSample", ["x", "grid"], ["y"], "s", mode="fancy")
    with pytest.raises(FrontendError, match="no mode 'fancy'"):
        read(model([sample], {"x": (1, 1, 2, 2), "grid": (1, 1, 1, 2)}, opset=20))


@pytest.mark.parametrize("length", [5, 8, 12])
@pytest.mark.parametrize("onesided", [0, 1])
def test_spectra_are_onnxruntimes(length: int, onesided: int) -> None:
    """Cut, whole, or filled up with zeros."""
    n = {"n": np.array(length, np.int64)}
    dft = node("DFT", ["x", "n"], ["y"], axis=1, onesided=onesided)
    agrees(model([dft], {"x": (2, 8, 1)}, weights=n, opset=17), 1e-4, x=f32(2, 8, 1))


def test_an_inverse_gives_back_what_was_transformed() -> None:
    nodes = [node("DFT", ["x"], ["f"], axis=1), node("DFT", ["f"], ["y"], axis=1, inverse=1)]
    agrees(model(nodes, {"x": (2, 7, 2)}, opset=17), 1e-4, x=f32(2, 7, 2))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_determinants_of_small_matrices_are_onnxruntimes(n: int) -> None:
    agrees(model([node("Det", ["x"], ["y"])], {"x": (3, n, n)}), 1e-4, x=f32(3, n, n))


def test_determinants_of_large_matrices_are_refused() -> None:
    with pytest.raises(FrontendError, match="up to 4 rows"):
        read(model([node("Det", ["x"], ["y"])], {"x": (5, 5)}))


def test_unpooling_puts_values_back() -> None:
    pool = node("MaxPool", ["x"], ["p", "i"], kernel_shape=[2, 2], strides=[2, 2])
    back = node("MaxUnpool", ["p", "i"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    agrees(model([pool, back], {"x": (1, 1, 4, 4)}), x=f32(1, 1, 4, 4))


def test_columns_add_up_to_an_image() -> None:
    sizes = {"s": np.array([4, 5], np.int64), "k": np.array([2, 3], np.int64)}
    fold = node("Col2Im", ["x", "s", "k"], ["y"], pads=[0, 1, 0, 1])
    agrees(model([fold], {"x": (1, 12, 15)}, weights=sizes, opset=18), x=f32(1, 12, 15))


def test_a_cast_to_a_small_integer_keeps_its_low_bits() -> None:
    cast = node("Cast", ["x"], ["y"], to=TensorProto.INT4)
    graph = read(model([cast], {"x": (4,)}, opset=25))
    (y,) = evaluate(graph, {"x": np.array([7, 8, -9, 2.9], np.float32)}).values()
    assert y.tolist() == [7, -8, 7, 2]


@pytest.mark.parametrize(("group", "parts"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_taps_that_are_moved_see_what_onnxs_reference_sees(group: int, parts: int) -> None:
    conv = node(
        "DeformConv", ["x", "w", "o", "b", "m"], ["y"],
        group=group, offset_group=parts, strides=[1, 2], pads=[1, 0, 1, 0], dilations=[2, 1],
    )  # fmt: skip
    feeds = {
        "x": f32(2, 4, 5, 6), "w": f32(4, 4 // group, 2, 3), "o": f32(2, parts * 12, 5, 2), "b": f32(4), "m": f32(2, parts * 6, 5, 2),
    }  # fmt: skip
    proto = model([conv], {n: a.shape for n, a in feeds.items()}, opset=19)
    (want,) = ReferenceEvaluator(proto).run(None, feeds)
    np.testing.assert_allclose(evaluate(read(proto), feeds)["y"], want, 1e-4, 1e-4)


def test_a_scan_of_opset_8_goes_over_each_element_of_a_batch() -> None:
    add, keep = node("Add", ["s", "r"], ["t"]), node("Identity", ["t"], ["u"])
    value = helper.make_tensor_value_info
    ports = [[value(n, 1, [2]) for n in names] for names in ("sr", "tu")]
    body = helper.make_graph([add, keep], "body", *ports)
    scan = node(
        "Scan", ["", "x", "y"], ["last", "all"], num_scan_inputs=1, body=body, directions=[1]
    )
    proto = model([scan], {"x": (3, 2), "y": (3, 4, 2)}, ["last", "all"], opset=8)
    x, y = f32(3, 2), f32(3, 4, 2)
    got = evaluate(read(proto), {"x": x, "y": y})
    sums = x[:, None] + np.cumsum(y[:, ::-1], 1)
    np.testing.assert_allclose(got["all"], sums, 1e-5, 1e-5)
    np.testing.assert_allclose(got["last"], sums[:, -1], 1e-5, 1e-5)
