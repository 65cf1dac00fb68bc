"""One operator at the edges of its types, from an ONNX model to the emulator's result: infinities, NaN, large arguments, nothing.

onnxruntime is the oracle. Where it does not say anything stable (NaN in a maximum) the expected values are IEEE 754's or numpy's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

import knapper
from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import Graph, Node, Type, infer
from knapper.compiler.launches import EPILOGUE
from knapper.isa.errors import KnapperError
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

Array = np.ndarray[Any, Any]
INF, NAN = math.inf, math.nan


def model(
    op: str,
    operands: Iterable[Array | None],
    consts: Iterable[int] = (),
    results: int = 1,
    **attrs: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A network of one node and its feeds; the operands numbered in `consts` are initializers."""
    values = {f"x{i}": a for i, a in enumerate(operands)}
    fixed = {f"x{i}" for i in consts}
    feeds = {n: a for n, a in values.items() if a is not None and n not in fixed}
    node = helper.make_node(
        op,
        [n if a is not None else "" for n, a in values.items()],
        [f"y{i}" for i in range(results)],
        name=f"net/{op}",
        **attrs,
    )
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(results)]
    weights = [
        onnx.numpy_helper.from_array(a, n)
        for n, a in values.items()
        if n in fixed and a is not None
    ]
    graph = helper.make_graph([node], op, inputs, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made), feeds


def ours(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    found = knapper.compile(proto, precision="fp32").run(feeds).outputs
    return [found[v.name] for v in proto.graph.output]


def theirs(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found


def run(op: str, *operands: Array | None, consts: Iterable[int] = (), **attrs: Any) -> Array:
    """The one result of an operator on the emulator."""
    (found,) = ours(*model(op, operands, consts, **attrs))
    return found


def assert_agrees(
    op: str, *operands: Array | None, consts: Iterable[int] = (), results: int = 1, **attrs: Any
) -> None:
    """Equal in type, shape, NaNs and infinities; finite values within the rounding of f32 functions."""
    proto, feeds = model(op, operands, consts, results, **attrs)
    for got, want in zip(ours(proto, feeds), theirs(proto, feeds), strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(got, want, 2e-6, 1e-7)


def rows(n: int, dtype: Any = np.float32) -> Array:
    """Eight rows of normal numbers: one all -inf, one all inf, three with one of them, or both."""
    x = np.random.default_rng(3).normal(size=(8, n)).astype(dtype)
    x[0], x[1], x[2, n - 1], x[3, 0], x[4, 1], x[4, 2] = -INF, INF, -INF, INF, INF, -INF
    return x


ONE = np.array([1])
LENGTHS = [pytest.param(n, id=f"{n} elements") for n in (5, 64, 3000)]
"""Reduced by one thread, by a warp, by a block."""

# --- reductions


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceLogSumExp"])
def test_reductions_of_infinities(op: str, n: int) -> None:
    assert_agrees(op, rows(n), ONE, consts=[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_an_extreme_of_nothing_but_the_types_end_is_the_end(op: str, dtype: Any) -> None:
    ends = (
        (-INF, INF) if np.dtype(dtype).kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    )
    for end in ends:
        for n in (5, 64):
            assert_agrees(op, np.full((2, n), end, dtype), ONE, consts=[1])


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_an_extreme_is_nan_wherever_the_nan_stands(op: str, n: int) -> None:
    """IEEE 754-2019's maximum. onnxruntime gives NaN only for some places."""
    x = np.tile(rows(n)[5], (4, 1))
    x[0, 0] = x[1, n // 2] = x[2, n - 1] = NAN
    assert np.isnan(run(op, x, ONE, consts=[1])[:, 0]).tolist() == [True, True, True, False]


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_places_of_infinities(op: str, n: int, last: int) -> None:
    assert_agrees(op, rows(n), axis=1, select_last_index=last)
    assert_agrees(op, rows(n).T.copy(), axis=0, select_last_index=last)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_the_place_of_the_types_end_is_a_place(op: str, dtype: Any) -> None:
    ends = (-INF, INF) if dtype == np.float64 else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    for end in ends:
        assert_agrees(op, np.full((2, 40), end, dtype), axis=1)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_the_place_of_nan_is_the_first_as_in_numpy(op: str, n: int) -> None:
    x = np.tile(rows(n)[5], (3, 1))
    x[0, [1, n - 1]] = x[1] = NAN
    want = {"ArgMax": np.argmax, "ArgMin": np.argmin}[op]
    assert run(op, x, axis=1).tolist() == want(x, 1, keepdims=True).tolist()
    assert run(op, x, axis=1, select_last_index=1)[:2, 0].tolist() == [n - 1, n - 1]


@pytest.mark.parametrize("n", [5, 64])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_of_infinities(op: str, n: int) -> None:
    assert_agrees(op, rows(n), axis=1)


# --- pooling


def test_a_window_of_minus_infinity_is_minus_infinity() -> None:
    """In onnxruntime the windows that meet the padding give the least finite number."""
    x = np.full((1, 2, 6, 6), -INF, np.float32)
    x[0, 1, 3, 3], x[0, 0, 2, 2] = 1, NAN
    y = run("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    want = np.full((1, 2, 3, 3), -INF, np.float32)
    want[0, 1, 1:, 1:], want[0, 0, 1, 1] = 1, NAN
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(run("GlobalMaxPool", x[:, 1:]), [[[[1]]]])
    np.testing.assert_array_equal(run("GlobalMaxPool", x[:, 1:, :2]), [[[[-INF]]]])


WINDOWS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 3, 8, 7), {"kernel_shape": [2, 3], "dilations": [2, 1]}),
    ((2, 3, 8, 7), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ((2, 3, 1, 7), {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((2, 3, 9), {"kernel_shape": [3], "pads": [1, 0]}),
    ((2, 2, 4, 5, 6), {"kernel_shape": [2, 2, 2], "strides": [2, 1, 2]}),
]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(("shape", "attrs"), WINDOWS)
def test_max_pool_says_where(shape: tuple[int, ...], attrs: dict[str, Any], order: int) -> None:
    x = np.round(np.random.default_rng(1).normal(size=shape) * 2)  # many are equal
    assert_agrees("MaxPool", x.astype(np.float32), results=2, storage_order=order, **attrs)
    assert_agrees("MaxPool", (x + 99).astype(np.uint8), results=2, storage_order=order, **attrs)


# --- element by element


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


EDGES = f32(
    0,
    -0.0,
    1,
    -1,
    0.5,
    2,
    -2,
    INF,
    -INF,
    NAN,
    1e-45,
    1e20,
    -1e20,
    3e38,
    1e-10,
    0.99999994,
    1.0000001,
    88.8,
    -104,
)
UNARY = "Abs Neg Sign Floor Ceil Round Exp Log Sqrt Reciprocal Tan Erf Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Sin Cos Tanh Sigmoid Softplus Relu"


@pytest.mark.parametrize("op", UNARY.split())
def test_functions_at_their_edges(op: str) -> None:
    """The poles, the ends of the domain and what lies outside, numbers that overflow or vanish, angles of any size."""
    assert_agrees(op, EDGES)


@pytest.mark.parametrize("op", ["Sin", "Cos", "Tan"])
def test_large_angles_are_reduced_by_all_of_pi(op: str) -> None:
    x = f32(1e6, 12345678.9, 2.0**24, 1e10, 1e15, -1e20, 1e30, 3e38)
    truth, wide = getattr(np, op.lower()), x.astype(np.float64) * 1e200
    np.testing.assert_allclose(run(op, x), truth(x.astype(np.float64)), 3e-7)
    np.testing.assert_allclose(run(op, wide), truth(wide), 1e-14)


def test_the_sign_of_an_unsigned_number() -> None:
    np.testing.assert_array_equal(run("Sign", np.array([0, 1, 255], np.uint8)), [0, 1, 1])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_sign_of_nan_is_nan(dtype: Any) -> None:
    np.testing.assert_array_equal(run("Sign", np.array([NAN, -INF, 0, 3], dtype)), [NAN, -1, 0, 1])


def test_an_operator_has_the_same_bits_behind_a_product_and_alone() -> None:
    """x · 1 is x (but for −0); what follows it is done by the matrix kernel, and by a kernel of its own."""
    x = EDGES[EDGES.view(np.int32) != f32(-0.0).view(np.int32)[0], None]
    feeds = {"x": x, "k": x[::-1].copy()}
    nodes, types = [], {n: Type.of(a) for n, a in (*feeds.items(), ("w", ones(1, 1)))}

    def add(op: str, operands: tuple[str, ...], out: str, **attrs: Any) -> None:
        (types[out],) = made = infer(op, [types[v] for v in operands], attrs)
        nodes.append(Node(op, operands, (out,), made, attrs, out))

    names = sorted(EPILOGUE - {"Cast"})
    for op in names:
        more = ("k",) if op in {"Add", "Div", "Max", "Min", "Mul", "PRelu", "Sub"} else ()
        attrs = {"min": -1.0, "max": 2.0} if op == "Clip" else {}
        add("MatMul", ("x", "w"), f"{op}.product")
        add(op, (f"{op}.product", *more), f"{op}.behind", **attrs)
        add(op, ("x", *more), f"{op}.alone", **attrs)
    outputs = {v: v for op in names for v in (f"{op}.behind", f"{op}.alone")}
    graph = Graph("net", {n: types[n] for n in feeds}, outputs, tuple(nodes), {"w": ones(1, 1)})
    program = compile_graph(graph.verify(), Machine.load("volta-8tc"), precision="fp32")
    assert len(program.launches) == 2 * len(names)
    y = Session(program).run(feeds).outputs
    for op in names:
        np.testing.assert_array_equal(y[f"{op}.behind"], y[f"{op}.alone"], op)


POWERS = (0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, -3, INF, -INF, NAN)


def test_special_powers_are_those_of_c() -> None:
    x, y = np.meshgrid(f32(*POWERS), f32(*POWERS, 1e20, 2.0**24 + 2))
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y).astype(np.float32)
    got = run("Pow", x, y)
    np.testing.assert_allclose(got, want, 2e-7)
    np.testing.assert_array_equal(
        np.signbit(got)[~np.isnan(want)], np.signbit(want)[~np.isnan(want)]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_broken_power_of_a_negative_number_is_nan_however_large(dtype: Any) -> None:
    x = np.array([-1e38, -1e10, -1e-10, -1e-38], dtype)
    assert np.isnan(run("Pow", x, np.array([88.5], dtype))).all()
    assert np.isnan(run("Pow", x, np.array([-88.5], dtype))).all()


@pytest.mark.parametrize("y", [0.0, -1.0, 0.5, 2.0, 3.0, INF, -INF, NAN])
def test_special_powers_by_a_constant(y: float) -> None:
    assert_agrees("Pow", f32(*POWERS), f32(y), consts=[1])


DIVIDENDS = (1e38, 5.3, -5.3, 0, -0.0, 1, 3e38, 1e-40, 1e30, -7, INF, NAN, 1)
DIVISORS = (1.5, 2, -2, 0.1, 1e-45, 7, 3e38, INF, 0, NAN)


@pytest.mark.parametrize("size", [np.float32(1), np.float64(1e200)])
def test_fmod_is_exact_whatever_the_quotient(size: Any) -> None:
    x, y = np.meshgrid(np.array(DIVIDENDS) * size, np.array(DIVISORS) / size)
    x, y = x.astype(size.dtype), y.astype(size.dtype)
    with np.errstate(all="ignore"):
        want = np.fmod(x, y)
    got = run("Mod", x, y, fmod=1)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        np.signbit(got)[~np.isnan(want)], np.signbit(want)[~np.isnan(want)]
    )


@pytest.mark.parametrize("op", ["Add", "Mul", "Max", "Min"])
@pytest.mark.parametrize("value", [INF, -INF])
def test_an_infinite_constant_is_a_constant(op: str, value: float) -> None:
    assert_agrees(op, EDGES[EDGES == EDGES], f32(value), consts=[1])


def test_a_mask_of_minus_infinity() -> None:
    x = rows(8)[5:]
    assert_agrees("Where", x > 0, x, f32(-INF).reshape(1, 1), consts=[2])


# --- nothing


def empty(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def case(
    op: str, *operands: Array, consts: Iterable[int] = (), results: int = 1, **attrs: Any
) -> Any:
    """Arguments of `assert_agrees`, under a name that shows the shapes."""
    shapes = ",".join("x".join(map(str, a.shape)) for a in operands)
    return pytest.param(
        op, operands, {"consts": consts, "results": results, **attrs}, id=f"{op}-{shapes}"
    )


SUMS_OF_NOTHING = [
    case("MatMul", empty(3, 0), empty(0, 4)),
    case("MatMul", empty(2, 3, 0), empty(2, 0, 4), consts=[1]),
    case("Gemm", empty(0, 3), empty(4, 0), ones(4), consts=[1, 2], transA=1, transB=1, beta=3.0),
    case("Gemm", empty(3, 0), empty(0, 4)),
    case("Conv", empty(1, 0, 5, 5), empty(4, 0, 3, 3), ones(4), consts=[1, 2]),
    case("Conv", empty(1, 0, 5, 5), empty(4, 0, 3, 3), consts=[1]),
    case("Einsum", empty(3, 0), empty(0, 4), equation="ij,jk->ik"),
    *(case(op, empty(3, 0), ints(1), consts=[1]) for op in ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2"]),
    case("ReduceSum", empty(3, 0)),
    case("ReduceLogSumExp", empty(3, 0), ints(1), consts=[1]),
]  # fmt: skip

EMPTY_TENSORS = [
    case("Relu", empty(0, 3)),
    case("Add", empty(0, 3), ones(3)),
    case("Slice", ones(4, 3), ints(2), ints(2), ints(0), consts=[1, 2, 3]),
    case("Split", ones(7, 2), ints(7, 0), consts=[1], results=2),
    case("Split", ones(7, 2), ints(0, 7), consts=[1], results=2),
    case("Conv", empty(0, 3, 5, 5), ones(4, 3, 3, 3), ones(4), consts=[1, 2]),
    case("Conv", ones(1, 3, 5, 5), empty(0, 3, 3, 3), consts=[1]),
    case("MaxPool", empty(0, 3, 6, 6), kernel_shape=[2, 2], results=2),
    case("Tile", ones(2, 3), ints(0, 2), consts=[1]),
    case("Reshape", empty(0, 3), ints(3, 0), consts=[1], allowzero=1),
    case("Concat", empty(0, 3), ones(2, 3), axis=0),
    case("Concat", ones(2, 3), empty(2, 0), ones(2, 1), consts=[1], axis=1),
    case("Concat", ones(1, 3), empty(0, 3), ones(2, 3), axis=0),
    case("MatMul", empty(0, 4), ones(4, 5)),
    case("MatMul", ones(3, 4), empty(4, 0)),
    case("Softmax", empty(3, 0)),
    case("Gather", ones(4, 3), ints(), axis=1),
    case("Pad", empty(0, 3), ints(1, 0, 1, 0), consts=[1]),
    case("ArgMax", empty(0, 3), axis=1),
    case("TopK", ones(2, 3), ints(0), consts=[1], results=2),
    case("ScatterElements", ones(4, 3), np.zeros((0, 3), np.int64), empty(0, 3)),
    case("ScatterND", ones(4, 3), np.zeros((0, 1), np.int64), empty(0, 3)),
]


@pytest.mark.parametrize(("op", "operands", "rest"), SUMS_OF_NOTHING)
def test_a_sum_of_nothing(op: str, operands: tuple[Array, ...], rest: dict[str, Any]) -> None:
    """Zeros, or the bias: what a reduction starts with."""
    assert_agrees(op, *operands, **rest)


@pytest.mark.parametrize(("op", "operands", "rest"), EMPTY_TENSORS)
def test_empty_tensors(op: str, operands: tuple[Array, ...], rest: dict[str, Any]) -> None:
    assert_agrees(op, *operands, **rest)


def test_an_integer_product_of_nothing_is_zero() -> None:
    y = run("MatMul", np.zeros((3, 0), np.int32), np.zeros((0, 4), np.int32))
    np.testing.assert_array_equal(y, np.zeros((3, 4), np.int32))


def test_the_place_of_nothing_is_refused() -> None:
    with pytest.raises(KnapperError, match=r"net/ArgMax.*axis 0 of f32\[0,3\] is empty"):
        run("ArgMax", empty(0, 3), axis=0)


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("exclusive", [0, 1])
def test_a_running_sum_of_one_row(shape: tuple[int, ...], exclusive: int) -> None:
    x = np.arange(1, 1 + np.prod(shape), dtype=np.int64).reshape(shape)
    for axis in (0, 1):
        assert_agrees("CumSum", x, np.array(axis), consts=[1], exclusive=exclusive)


@pytest.mark.parametrize("shape", [(5,), (2, 7), (2, 3, 2), (1, 2, 3, 2), (4, 16, 24)], ids=str)
def test_a_tensor_is_normalised_as_one_row(shape: tuple[int, ...]) -> None:
    """One pass over it: what reduces and what reads the result are in one launch, once."""
    x, scale = np.random.default_rng(2).normal(size=(2, *shape)).astype(np.float32)
    proto, feeds = model("LayerNormalization", (x, scale), consts=[1], axis=0)
    image = knapper.compile(proto, precision="fp32")
    np.testing.assert_allclose(image.run(feeds).outputs["y0"], theirs(proto, feeds)[0], 1e-5, 1e-6)
    assert len(image.program.launches) == 1


@pytest.mark.parametrize("p", [1, 2])
def test_the_norm_of_one_number(p: int) -> None:
    assert_agrees("LpNormalization", f32(3, -2, 0)[:, None], axis=1, p=p)


def test_an_empty_value_inside_a_launch() -> None:
    """Concat of a Relu of nothing, fused."""
    nodes = [
        helper.make_node("Relu", ["x0"], ["a"]),
        helper.make_node("Neg", ["x1"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["y0"], axis=0),
    ]
    feeds = {"x0": empty(0, 3), "x1": ones(2, 3)}
    inputs = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in feeds.items()
    ]
    graph = helper.make_graph(nodes, "net", inputs, [helper.make_empty_tensor_value_info("y0")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (y,) = ours(onnx.shape_inference.infer_shapes(proto), feeds)
    np.testing.assert_array_equal(y, -ones(2, 3))


GUARDS = {
    "a clamp": [("Clip", ["n", "least"])],
    "a clamp of the square": [("Mul", ["n", "n"]), ("Clip", ["v0", "square"]), ("Sqrt", ["v1"])],
    "an addend": [("Add", ["n", "least"])],
}
"""How networks keep a norm from zero, by less than f16 has."""


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_row_of_zeros_is_normalised_to_zeros(guard: str, precision: str) -> None:
    """x / max(|x|, 1e-12) in every stored type: the divisor is not rounded to 0 on its way through memory."""
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    x[1] = 0
    steps = GUARDS[guard]
    nodes = [helper.make_node("ReduceL2", ["x", "axes"], ["n"], keepdims=1)]
    nodes += [helper.make_node(op, names, [f"v{i}"]) for i, (op, names) in enumerate(steps)]
    nodes.append(helper.make_node("Div", ["x", f"v{len(steps) - 1}"], ["y"]))
    weights = {"axes": np.array([1]), "least": np.float32(1e-12), "square": np.float32(1e-24)}  # fmt: skip
    used = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        "normalize",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items() if n in used],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    y = knapper.compile(proto, precision=precision).run({"x": x}).outputs["y"]
    norm = np.sqrt((x * x).sum(1, keepdims=True))
    np.testing.assert_allclose(y, x / np.maximum(norm, 1e-12), rtol=0.02, atol=1e-6)
