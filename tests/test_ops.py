"""Every op, on every one of its examples: inference against reference, reference against onnxruntime, lowering against reference.

f16 and bf16 operands are widened to f32 for onnxruntime and its result rounded once: that is what our references promise.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from knapper.compiler import ops  # noqa: F401  declares the ops
from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import DTYPES, NAMES, OPS, Graph, IRError, Node, Type, infer
from knapper.compiler.ops import table
from knapper.isa.errors import KnapperError
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

HERE = Path(__file__).parent
CASES = [(name, i) for name in sorted(OPS) for i in range(len(table.examples(OPS[name])))]
ROUNDING = {"f16": 2**-10, "bf16": 2**-7, "f32": 2e-6, "f64": 1e-13}
"""Relative tolerance: one unit in the last place for what is rounded once; a few for f32, whose kernels differ."""
LOOSER = {
    "AveragePool": 1e-6,
    "BatchNormalization": 1e-6,
    "Conv": 2e-5,
    "ConvTranspose": 2e-5,
    "CumSum": 1e-6,
    "Gemm": 2e-5,
    "Gelu": 1e-6,
    "InstanceNormalization": 1e-5,
    "GroupNormalization": 1e-5,
    "LayerNormalization": 1e-5,
    "LogSoftmax": 1e-6,
    "MatMul": 2e-5,
    "Mish": 1e-6,
    "ReduceLogSumExp": 1e-6,
    "ReduceSum": 1e-6,
    "Resize": 5e-6,
    "Selu": 1e-6,
}
"""Absolute tolerance of f32 results that come out of a cancellation."""


def case(name: str, i: int) -> tuple[list[Any], dict[str, Any]]:
    return table.examples(OPS[name])[i]


def reference(name: str, operands: list[Any], attrs: dict[str, Any]) -> tuple[Any, ...]:
    y = OPS[name].facets["reference"](*operands, **attrs)
    return y if isinstance(y, tuple) else (y,)


def assert_close(name: str, got: Any, want: Any) -> None:
    """Equal for integers and booleans; within the stated tolerance for floats."""
    assert got.shape == want.shape
    dtype = NAMES[got.dtype]
    if dtype not in ROUNDING:
        np.testing.assert_array_equal(got, want)
    else:
        loose = LOOSER.get(name, 1e-7) * (1e-6 if dtype == "f64" else 1)
        a, b = got.astype(np.float64), want.astype(np.float64)
        np.testing.assert_allclose(a, b, ROUNDING[dtype], loose)


# --- the declarations


@pytest.mark.parametrize("name", sorted(OPS))
def test_op_is_documented_and_has_its_facets(name: str) -> None:
    o = OPS[name]
    assert o.infer.__doc__, "no docstring"
    assert {"reference", "example"} <= set(o.facets)
    assert o.name[0].isupper()


@pytest.mark.parametrize(("name", "i"), CASES)
def test_reference_gives_what_inference_says(name: str, i: int) -> None:
    operands, attrs = case(name, i)
    want = infer(name, [None if a is None else Type.of(a) for a in operands], attrs)
    dense = tuple(t.dense for t in want)
    assert tuple(map(Type.of, reference(name, operands, attrs))) == dense


def test_importing_the_ops_is_light() -> None:
    code = "import sys, numpy, ml_dtypes; before = set(sys.modules); import knapper.compiler.ops; print(*sys.modules.keys() - before)"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(HERE.parent / ".ns")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    heavy = {"onnx", "tvm", "torch", "scipy", "onnxruntime"}
    assert not heavy & {m.partition(".")[0] for m in loaded.split()}


# --- onnxruntime as the oracle

NOT_IN_ONNXRUNTIME = {
    *("Cast[2]", "Gemm[4]", "Mean[2]", "Where[3]"),  # bf16 result; i32; f64; bool
    "QuantizeLinear[6]",  # i32
    *(f"BitShift[{i}]" for i in range(4, 12)),  # signed integers, since opset 28
    *(f"CumProd[{i}]" for i in range(4)),
    *("Mod[3]", "Mod[4]", "SpaceToDepth[2]", "SpaceToDepth[3]"),  # floats; mode CRD
}
"""Cases that onnxruntime has no kernel for; the onnx reference evaluator stands in. It must fail on them: see the test."""


def as_operands(*names: str) -> Any:
    """ONNX passes these attributes as int64 operands after the others; an absent one is left out."""

    def convert(operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        rest = {k: v for k, v in attrs.items() if k not in names}
        return [
            *operands,
            *(np.array(attrs[n], np.int64) if n in attrs else None for n in names),
        ], rest

    return convert


def clip(operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    bounds = [np.array(attrs[n], operands[0].dtype) if n in attrs else None for n in ("min", "max")]
    return [*operands, *bounds], {}


def pad(operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    value = np.array(attrs.get("value", 0), operands[0].dtype)
    axes = np.array(attrs["axes"], np.int64) if "axes" in attrs else None
    return [*operands, np.array(attrs["pads"], np.int64), value, axes], {
        "mode": attrs.get("mode", "constant")
    }


def matmul(operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    a, b = (
        x.swapaxes(-1, -2) if attrs.get(t) else x
        for x, t in zip(operands, ("trans_a", "trans_b"), strict=True)
    )
    return [a, b], {}


def onehot(operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return [operands[0], np.array(attrs["depth"]), operands[1]], {"axis": attrs.get("axis", -1)}


def filled(operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    value = np.array([attrs.get("value", 0)], DTYPES[attrs.get("dtype", "f32")])
    return [np.array(attrs["shape"], np.int64)], {"value": onnx.numpy_helper.from_array(value)}


def counted(operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return [
        np.array(attrs[k], DTYPES[attrs.get("dtype", "i64")]) for k in ("start", "limit", "delta")
    ], {}


def onnx_dtype(key: str) -> Any:
    def convert(operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        to = (
            {key: onnx.helper.np_dtype_to_tensor_dtype(np.dtype(DTYPES[attrs[key]]))}
            if attrs.get(key)
            else {}
        )
        return operands, {k: v for k, v in attrs.items() if k != key} | to

    return convert


def resize(operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    roi = np.array(attrs["roi"], np.float32) if "roi" in attrs else None
    scales = np.array(attrs["scales"], np.float32) if "scales" in attrs else None
    sizes = np.array(attrs["sizes"], np.int64) if "sizes" in attrs else None
    rest = {k: v for k, v in attrs.items() if k not in ("roi", "scales", "sizes")}
    return [*operands, roi, scales, sizes], rest


def quantized(operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    attrs = {k: v for k, v in attrs.items() if k != "to"} | {"output_dtype": attrs.get("to", "u8")}
    return onnx_dtype("output_dtype")(operands, attrs)


REDUCTIONS = [name for name in OPS if name.startswith("Reduce")]
CONVERT: dict[str, Any] = {
    "Reshape": as_operands("shape"),
    "Squeeze": as_operands("axes"),
    "Unsqueeze": as_operands("axes"),
    "Expand": as_operands("shape"),
    "Tile": as_operands("repeats"),
    "Slice": as_operands("starts", "ends", "axes", "steps"),
    "Split": as_operands("split"),
    "CumSum": as_operands("axis"),
    "CumProd": as_operands("axis"),
    "Trilu": as_operands("k"),
    "TopK": lambda x, attrs: as_operands("k")(x, attrs | {"k": (attrs["k"],)}),
    "NonZero": lambda x, attrs: (x, {}),
    **{name: as_operands("axes") for name in REDUCTIONS},
    "Clip": clip,
    "Resize": resize,
    "Pad": pad,
    "MatMul": matmul,
    "OneHot": onehot,
    "ConstantOfShape": filled,
    "Range": counted,
    "EyeLike": onnx_dtype("dtype"),
    "Cast": onnx_dtype("to"),
    "QuantizeLinear": quantized,
    "DequantizeLinear": lambda x, attrs: (x, {k: v for k, v in attrs.items() if k != "to"}),
}


def channels_first(name: str, operands: list[Any]) -> list[Any]:
    """NHWC operands as ONNX has them."""
    x, *rest = operands
    if name == "Conv":
        rest[0] = np.moveaxis(rest[0], (-1, -2), (0, 1))
    return [np.moveaxis(x, -1, 1), *rest]


def widened(a: Any) -> Any:
    return (
        a.astype(np.float32) if a is not None and a.dtype in (np.float16, ml_dtypes.bfloat16) else a
    )


def model(
    name: str, operands: list[Any], attrs: dict[str, Any], results: int, opset: int = 24
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A network of one node, its operands as inputs."""
    while operands and operands[-1] is None:
        operands = operands[:-1]
    names = [f"x{i}" if a is not None else "" for i, a in enumerate(operands)]
    outputs = [f"y{i}" for i in range(results)]
    node = onnx.helper.make_node(name, names, outputs, **attrs)
    feeds = {n: a for n, a in zip(names, operands, strict=True) if n}
    inputs = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
        )
        for n, a in feeds.items()
    ]
    graph = onnx.helper.make_graph(
        [node], name, inputs, [onnx.helper.make_empty_tensor_value_info(n) for n in outputs]
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=11), feeds


def oracle(
    name: str, i: int, operands: list[Any], attrs: dict[str, Any], results: int
) -> list[Any]:
    nhwc = attrs.get("layout") == "NHWC"
    attrs = {k: v for k, v in attrs.items() if k not in ("layout", "out")}
    operands = channels_first(name, operands) if nhwc else operands
    operands, attrs = CONVERT.get(name, lambda x, a: (x, a))([widened(a) for a in operands], attrs)
    integers = name == "MatMul" and operands[0].dtype.itemsize == 1
    proto, feeds = model("MatMulInteger" if integers else name, operands, attrs, results)
    if f"{name}[{i}]" in NOT_IN_ONNXRUNTIME:
        with pytest.raises(
            (RuntimeError, ort_errors.NotImplemented, ort_errors.InvalidGraph, ort_errors.Fail)
        ):
            ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
                None, feeds
            )
        newest = onnx.defs.onnx_opset_version()
        proto, feeds = model(name, operands, attrs, results, newest)
        found = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)
    else:
        found = ort.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, feeds)
    return [np.moveaxis(y, 1, -1) if nhwc else y for y in found]


DETECTION = {"NonMaxSuppression", "RoiAlign"}  # bit for bit, in test_detection.py


# Not in ONNX: in test_im2col.py and test_bitmap.py; BitCast is newer than onnxruntime, and in ONNX's own suite.
OURS = {"Im2col", "BitmapEncode", "BitCast"}


def is_ours(name: str, i: int) -> bool:
    """Whether ONNX has no such case: formats, borders, numbers around an image: in test_quantize_ops.py."""
    operands, attrs = case(name, i)
    return not attrs.keys().isdisjoint({"format", "pad_value"}) or len(operands) == 4


ONNX = [c for c in CASES if c[0] not in DETECTION | OURS and not is_ours(*c)]


@pytest.mark.parametrize(("name", "i"), ONNX)
def test_reference_agrees_with_onnxruntime(name: str, i: int) -> None:
    operands, attrs = case(name, i)
    got = reference(name, operands, attrs)
    want = oracle(name, i, operands, attrs, len(got))
    for g, w in zip(got, want, strict=True):
        with np.errstate(over="ignore"):
            assert_close(name, g, np.asarray(w).astype(g.dtype))


# --- lowering to Relax

FOLDED = {"NonZero", "Shape", "Size"}  # see compiler/ops/constant.py
PRODUCTS = {"ConvTranspose", "Einsum"}  # see compiler/passes/products.py
RECURRENT = {"GRU", "LSTM", "RNN"}  # written out by a pass
WITHOUT_LOWERING = FOLDED | PRODUCTS | DETECTION | RECURRENT | {"BitmapEncode"}


def test_only_folded_ops_products_and_detectors_ops_have_no_lowering() -> None:
    assert {name for name, o in OPS.items() if "relax" not in o.facets} == WITHOUT_LOWERING


def lowering_problems(*arguments: str) -> dict[str, str]:
    script = [sys.executable, str(HERE / "relax_lowerings.py"), *arguments]
    env = {"PYTHONPATH": str(HERE.parent / ".ns")}
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_lowerings_compute_what_the_references_do() -> None:
    problems = lowering_problems("--first")
    assert len(problems) == len(OPS) - len(WITHOUT_LOWERING)
    assert {k: v for k, v in problems.items() if v} == {}


@pytest.mark.slow
def test_lowerings_compute_what_the_references_do_in_every_example() -> None:
    problems = lowering_problems()
    assert len(problems) == sum(name not in WITHOUT_LOWERING for name, _ in CASES)
    assert {k: v for k, v in problems.items() if v} == {}


# --- all the way: compiled for volta-8tc, run on the emulator

NOT_COMPILED = {
    "Conv[10]",  # three spatial axes, channels last: not what the door makes
}
"""Examples for which no kernel generator exists: the compile says so."""


def compiled(name: str, operands: list[Any], attrs: dict[str, Any]) -> Session:
    """A session of the one-node network."""
    inputs = tuple(f"x{k}" if a is not None else "" for k, a in enumerate(operands))
    types = infer(name, [None if a is None else Type.of(a) for a in operands], attrs)
    outputs = tuple(f"y{k}" for k in range(len(types)))
    node = Node(name, inputs, outputs, types, attrs, loc=name)
    arguments = {v: Type.of(a) for v, a in zip(inputs, operands, strict=True) if v}
    graph = Graph(name, arguments, {v: v for v in outputs}, (node,))
    return Session(compile_graph(graph, Machine.load("volta-8tc"), precision="fp32"))


def assert_runs(name: str, i: int) -> None:
    operands, attrs = case(name, i)
    if f"{name}[{i}]" in NOT_COMPILED:
        with pytest.raises(KnapperError, match="E410"):
            compiled(name, operands, attrs)
        return
    feeds = {f"x{k}": a for k, a in enumerate(operands) if a is not None}
    found = compiled(name, operands, attrs).run(feeds, threads=1).outputs
    assert found
    for k, want in enumerate(reference(name, operands, attrs)[: len(found)]):
        got, tolerance = found[f"y{k}"], EMULATED.get(NAMES[want.dtype], 0)
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(
            got.astype(np.float64), want.astype(np.float64), tolerance, tolerance
        )


EMULATED = {"f16": 2**-9, "bf16": 2**-6, "f32": 1e-5, "f64": 1e-6}
LOWERED = [(name, i) for name, i in CASES if name not in FOLDED | {"BitmapEncode"}]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "i"), LOWERED)
def test_every_example_runs_on_the_emulator(name: str, i: int) -> None:
    assert_runs(name, i)


# --- messages

WRONG = [
    ("MatMul", ["f32[4,3]", "f32[4,3]"], {}, "inner sizes differ: f32[4,3] by f32[4,3]: 3 and 4"),
    ("MatMul", ["u8[4,3]", "u8[3,4]"], {}, "8 and 16 bit integers accumulate in i32"),
    ("Add", ["f32[2,3]", "f32[2]"], {}, "Add: cannot broadcast f32[2,3] with f32[2]"),
    ("Add", ["f32[2]", "i64[2]"], {}, "operands differ in dtype: f32[2], i64[2]"),
    (
        "Conv",
        ["f32[1,3,8,8]", "f32[4,4,3,3]"],
        {},
        "has 3 channels, weights f32[4,4,3,3] with group=1 take 4",
    ),
    ("Conv", ["f32[1,3,2,2]", "f32[4,3,3,3]"], {}, "window (3, 3) does not fit into sizes (2, 2)"),
    (
        "Conv",
        ["f32[1,3,8,8]", "f32[4,3,3,3]"],
        {"strides": (2,)},
        "strides (2,) has 1 values, expected 2",
    ),
    ("Reshape", ["f32[2,3]"], {"shape": (4, -1)}, "has 6 elements, which do not fit (4, -1)"),
    ("Concat", ["f32[2,3]", "f32[3,3]"], {"axis": 1}, "differ outside axis 1"),
    ("Softmax", ["i64[2,3]"], {}, "operand 0 is i64[2,3], expected one of f16 bf16 f32 f64"),
    ("Softmax", ["f32[2,3]"], {"axis": 2}, "axis 2 is outside a tensor of rank 2"),
    ("Cast", ["f32[2]"], {"to": "f8"}, "no dtype 'f8'"),
    ("TopK", ["f32[2,3]"], {"k": 4}, "k is 4, but axis 1 of f32[2,3] has 3 elements"),
    ("Relu", ["f32[2]"], {"alpha": 1.0}, "Relu has no attribute 'alpha'"),
    (
        "MaxPool",
        ["f32[1,3,8]"],
        {"kernel_shape": (2, 2)},
        "kernel_shape (2, 2) has 2 values, expected 1",
    ),
]


def parsed(text: str) -> Type:
    dtype, _, sizes = text.rstrip("]").partition("[")
    return Type(dtype, tuple(map(int, filter(None, sizes.split(",")))))


@pytest.mark.parametrize(("name", "operands", "attrs", "message"), WRONG)
def test_wrong_use_is_one_clear_error(
    name: str, operands: list[str], attrs: dict[str, Any], message: str
) -> None:
    with pytest.raises(IRError) as e:
        infer(name, [parsed(t) for t in operands], attrs)
    assert e.value.code == "E102"
    assert message in str(e.value)


def mutated(rng: np.random.Generator, t: Type) -> Type:
    """The type with another dtype, rank or size."""
    match rng.integers(5):
        case 0:
            return Type(str(rng.choice(list(DTYPES))), t.shape)
        case 1:
            return Type(t.dtype, t.shape[1:])
        case 2:
            return Type(t.dtype, (*t.shape, int(rng.integers(4))))
        case 3:
            return Type(t.dtype, tuple(int(n) for n in rng.permutation(t.shape)))
        case _:
            return Type(t.dtype, tuple(int(rng.integers(1 + n)) for n in t.shape))


@pytest.mark.parametrize("name", sorted(OPS))
def test_inference_of_wrong_operands_gives_a_type_or_an_ir_error(name: str) -> None:
    rng = np.random.default_rng(4)
    for operands, attrs in table.examples(OPS[name]):
        types = [None if a is None else Type.of(a) for a in operands]
        for _ in range(20):
            wrong = [mutated(rng, t) if t is not None and rng.random() < 0.6 else t for t in types]
            try:
                found = infer(name, wrong, attrs)
            except IRError:
                continue
            assert all(n >= 0 for t in found for n in t.shape)


def test_table_lists_what_is_declared() -> None:
    row = next(r for r in table.rows() if r.name == "Conv")
    assert (
        row.signature == "Conv(x, w, b?; strides, pads, dilations, group, layout, out, pad_value)"
    )
    assert row.attrs["layout"] == "'NCHW'"
    assert row.facets == ("reference", "example", "relax")
    assert len(table.rows()) == len(OPS)
