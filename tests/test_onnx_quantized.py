"""Quantized models through the ONNX door: ONNX's own cases exactly, onnxruntime's operators, QONNX's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from knapper.compiler.ir import DTYPES, evaluate
from knapper.frontends.onnx import read
from knapper.isa.errors import KnapperError

F32 = np.float32
OPS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
}


def array(a: Any) -> Any:
    return numpy_helper.to_array(a) if isinstance(a, TensorProto) else np.asarray(a)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_onnx_own_cases_exactly() -> None:
    """Elements of a few bits are values in wider ones; everything is equal, float8 and int2 included."""
    from onnx.backend.test.case.node import collect_testcases

    seen = set[str]()
    for case in collect_testcases(None):
        if case.model is None or OPS.isdisjoint(n.op_type for n in case.model.graph.node):
            continue
        inputs, outputs = case.data_sets[0]
        g = read(case.model)
        types = list(g.inputs.values())
        fed = [array(a).astype(DTYPES[t.dtype]) for a, t in zip(inputs, types, strict=True)]
        got = evaluate(g, dict(zip(g.inputs, fed, strict=True)))
        for y, want in zip(got.values(), outputs, strict=True):
            np.testing.assert_array_equal(
                np.asarray(y).astype(float), array(want).astype(float), case.name
            )
        seen.update(n.op_type for n in case.model.graph.node)
    assert seen >= OPS


def model(
    op: str,
    operands: dict[str, Any],
    output: int,
    domain: str = "com.microsoft",
    **attrs: Any,
) -> onnx.ModelProto:
    """One node; arrays of operands whose names begin with x are inputs, others constants."""
    node = helper.make_node(op, list(operands), ["y"], domain=domain, **attrs)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in operands.items()
        if n and n.startswith("x")
    ]
    constants = [
        numpy_helper.from_array(a, n) for n, a in operands.items() if not n.startswith("x")
    ]
    y = helper.make_tensor_value_info("y", output, None)
    graph = helper.make_graph([node], op, inputs, [y], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def both(proto: onnx.ModelProto, operands: dict[str, Any]) -> tuple[Any, Any]:
    """(ours, onnxruntime's)"""
    feed = {n: a for n, a in operands.items() if n.startswith("x")}
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (ours,) = evaluate(read(proto), feed).values()
    return np.asarray(ours), session.run(None, feed)[0]


def scalar(value: float, dtype: Any = F32) -> Any:
    return np.array(value, dtype)


def bytes_(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def parts(name: str, scale: float, zero: int) -> dict[str, Any]:
    return {f"{name}s": scalar(scale), f"{name}z": scalar(zero, np.uint8)}


X = {"x": bytes_(0, 2, 3, 6, 5), **{f"_{k}": v for k, v in parts("x", 0.1, 100).items()}}
Y = parts("y", 0.13, 90)
ONNXRUNTIME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "QLinearAdd": (X | {"x2": bytes_(1, 2, 3, 6, 5)} | parts("b", 0.07, 30) | Y, {}),
    "QLinearMul": (X | {"x2": bytes_(1, 3, 1, 1)} | parts("b", 0.07, 30) | Y, {}),
    "QLinearSigmoid": (X | parts("y", 1 / 256, 0), {}),
    "QLinearLeakyRelu": (X | Y, {"alpha": 0.2}),
    "QLinearGlobalAveragePool": (X | Y, {}),
    "QLinearAveragePool": (X | Y, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "QLinearSoftmax": (X | parts("y", 1 / 256, 0), {"axis": -1, "opset": 13}),
    "QLinearConcat": (
        Y | X | {"x2": bytes_(1, 2, 2, 6, 5)} | parts("b", 0.07, 30),
        {"axis": 1},
    ),
}


@pytest.mark.parametrize("op", sorted(ONNXRUNTIME))
def test_onnxruntime_s_operators(op: str) -> None:
    """One step at most: onnxruntime's kernels multiply by reciprocals."""
    operands, attrs = ONNXRUNTIME[op]
    ours, theirs = both(model(op, operands, TensorProto.UINT8, **attrs), operands)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    off = np.abs(ours.astype(int) - theirs.astype(int))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.02


@pytest.mark.parametrize("whole", [False, True])
def test_a_quantized_gemm(whole: bool) -> None:
    rng = np.random.default_rng(3)
    operands = {"x": bytes_(0, 4, 9), "_xs": scalar(0.1), "_xz": scalar(100, np.uint8)}
    operands |= {"w": rng.integers(-128, 128, (5, 9)).astype(np.int8)}
    operands |= {"ws": rng.uniform(0.01, 0.1, 5).astype(F32), "wz": np.zeros(5, np.int8)}
    operands |= {"c": rng.integers(-999, 999, 5).astype(np.int32)}
    operands |= parts("y", 0.9, 90) if whole else {}
    proto = model(
        "QGemm", operands, TensorProto.UINT8 if whole else TensorProto.FLOAT, transB=1, alpha=1.0
    )
    ours, theirs = both(proto, operands)
    np.testing.assert_allclose(ours.astype(float), theirs.astype(float), 1e-6, whole * 1.0)


# --- QONNX

VALUES = np.array([[-2.6, -2.5, -1.5, -0.5, -0.1], [0.0, 0.5, 1.5, 2.5, 99.0]], F32)


def qonnx(op: str, *numbers: float, domain: str = "qonnx.custom_op.general", **attrs: Any) -> Any:
    operands = {"x": VALUES} | {f"n{i}": scalar(n) for i, n in enumerate(numbers)}
    proto = model(op, operands, TensorProto.FLOAT, domain, **attrs)
    (y,) = evaluate(read(proto), {"x": VALUES}).values()
    return np.asarray(y).ravel().tolist()


MODES = {
    "ROUND": [-3, -2, -2, 0, 0, 0, 0, 2, 2, 3],
    "CEIL": [-2, -2, -1, 0, 0, 0, 1, 2, 3, 3],
    "FLOOR": [-3, -3, -2, -1, -1, 0, 0, 1, 2, 3],
    "UP": [-3, -3, -2, -1, -1, 0, 1, 2, 3, 3],
    "DOWN": [-2, -2, -1, 0, 0, 0, 0, 1, 2, 3],
    "HALF_UP": [-3, -3, -2, -1, 0, 0, 1, 2, 3, 3],
    "HALF_DOWN": [-3, -2, -1, 0, 0, 0, 0, 1, 2, 3],
}


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("domain", ["qonnx.custom_op.general", "finn.custom_op.general"])
def test_integers_by_every_rounding(mode: str, domain: str) -> None:
    op = "Quant" if domain.startswith("finn") else "IntQuant"
    made = qonnx(op, 1, 0, 3, domain=domain, signed=1, narrow=0, rounding_mode=mode)
    assert made == MODES[mode]


def test_other_quantizers() -> None:
    assert qonnx("IntQuant", 0.5, 0, 3, signed=1, narrow=1)[:2] == [-1.5, -1.5]
    asymmetric = qonnx("IntQuant", 0.5, 2, 2, signed=0, narrow=0)
    assert asymmetric == [-1, -1, -1, -0.5, 0, 0, 0.5, 0.5, 0.5, 0.5]
    assert qonnx("BipolarQuant", 0.25) == [-0.25] * 5 + [0.25] * 5
    assert qonnx("FloatQuant", 1, 2, 1, 1, 6) == [-3, -2, -1.5, -0.5, 0, 0, 0.5, 1.5, 2, 6]
    assert qonnx("Trunc", 0.5, 0, 8, 7, rounding_mode="FLOOR")[:4] == [-1.5, -1.5, -1, -0.5]
    with pytest.raises(KnapperError, match="FloatQuant with 3 bits of exponent, 1 of mantissa"):
        qonnx("FloatQuant", 1, 3, 1, 3, 6)


CHANNELS, ROWS = (1, 3, 1, 1), (1, 1, 3, 1)


@pytest.mark.parametrize(
    ("scales", "zeros"),
    [(CHANNELS, CHANNELS), (CHANNELS, ()), (CHANNELS, ROWS), ((), CHANNELS), ((4,), (4,))],
)
def test_scales_and_zero_points_lie_as_numpy_broadcasts_them(scales: Any, zeros: Any) -> None:
    rng = np.random.default_rng(0)
    s = np.exp2(rng.integers(-3, 1, scales)).astype(F32)
    z = np.asarray(rng.integers(0, 3, zeros) * 2, F32)
    x = rng.normal(0, 2, (2, 3, 3, 4)).astype(F32)
    domain = "qonnx.custom_op.general"
    node = helper.make_node("Quant", ["x", "s", "z", "bits"], ["y"], domain=domain, signed=1)
    info = [helper.make_tensor_value_info(v, TensorProto.FLOAT, x.shape) for v in "xy"]
    numbers = {"s": s, "z": z, "bits": F32(4)}
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in numbers.items()]
    graph = helper.make_graph([node], "g", info[:1], info[1:], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    (y,) = evaluate(read(helper.make_model(graph, opset_imports=opsets)), {"x": x}).values()
    np.testing.assert_array_equal(y, (np.rint(np.clip(x / s + z, -8, 7)) - z) * s)
