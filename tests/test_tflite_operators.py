"""Each operator of TFLite against the interpreter: floats to rounding, integers that are moved exactly, others to one step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from knapper.compiler.ir import evaluate
from knapper.frontends import doors
from knapper.frontends.onnx import read

litert = pytest.importorskip("ai_edge_litert.interpreter", reason="needs ai-edge-litert")
from tflite_models import TYPES, File, schema  # noqa: E402

Array = NDArray[Any]
RNG = np.random.default_rng(0)
PLAIN = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def interpreted(path: Path, feed: dict[str, Array]) -> dict[str, Array]:
    """By TFLite's own kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        it = litert.Interpreter(str(path), experimental_op_resolver_type=PLAIN, num_threads=1)
    it.allocate_tensors()
    for d in it.get_input_details():
        it.set_tensor(d["index"], feed[d["name"]])
    it.invoke()
    return {d["name"]: it.get_tensor(d["index"]) for d in it.get_output_details()}


def compared(
    f: File, outputs: Sequence[str], path: Path, steps: int | None = None, feed: dict[str, Array] | None = None
) -> None:  # fmt: skip
    path.write_bytes(f.bytes(*outputs))
    feed = feed or {f.tensors[i].name: values(f.tensors[i]) for i in f.inputs}
    theirs = interpreted(path, feed)
    graph = read(doors.opened(path))
    ours = evaluate(graph, {k: v for k, v in feed.items() if k in graph.inputs})
    for name in outputs:
        y, r = ours[name], theirs[name]
        assert (y.shape, y.dtype) == (r.shape, r.dtype), (name, y.shape, r.shape, y.dtype, r.dtype)
        if y.dtype.kind == "f":
            np.testing.assert_allclose(y, r, rtol=2e-5, atol=2e-5)
        elif steps:
            assert np.abs(y.astype(int) - r.astype(int)).max() <= steps
        else:
            np.testing.assert_array_equal(y, r)


def values(t: Any) -> Array:
    kind = {v: k for k, v in TYPES.items()}[t.type]
    if kind == np.float32:
        return RNG.standard_normal(t.shape, np.float32)
    if kind == np.bool_:
        return RNG.integers(0, 2, t.shape).astype(np.bool_)
    return RNG.integers(*((-128, 128) if kind == np.int8 else (0, 5)), t.shape).astype(kind)


def ints(*v: int) -> Array:
    return np.array(v, np.int32)


CASES: dict[str, Callable[[File], Sequence[str]]] = {}


def whole(v: int) -> Array:
    return np.array(v, np.int32)


def number(v: float) -> Array:
    return np.array(v, np.float32)


def case(name: str) -> Callable[[Any], Any]:
    def register(f: Any) -> Any:
        CASES[name] = f
        return f

    return register


def one(
    op: str, shape: Sequence[int], result: Sequence[int], kind: str = "", *,
    more: Sequence[Array | None] = (), order: Sequence[int] = (), results: int = 1,
    dtype: Any = np.float32, out: Any = None, **options: Any,
) -> Callable[[File], Sequence[str]]:  # fmt: skip
    """An operator of one input, and constants."""

    def build(f: File) -> Sequence[str]:
        names = [f.input("x", *shape, dtype=dtype)]
        for i, a in enumerate(more):
            names.append("" if a is None else f.constant(f"c{i}", a))
        names = [names[i] for i in order] if order else names
        ys = [f.tensor(f"y{i}", result, dtype if out is None else out) for i in range(results)]
        f.op(op, names, ys, kind, **options)
        return ys

    return build


def f32(*shape: int) -> Array:
    return RNG.standard_normal(shape, np.float32)


RELU6 = schema.ActivationFunctionType.RELU6
SAME, VALID = 0, 1
for padding, stride, dilation, size in ((SAME, 1, 1, 7), (SAME, 2, 1, 7), (SAME, 2, 1, 8), (VALID, 2, 1, 7), (SAME, 1, 2, 9), (VALID, 1, 2,
    9)):  # fmt: skip
    out = -(-size // stride) if padding == SAME else -(-(size - 2 * dilation) // stride)
    how: dict[str, Any] = {
        "padding": padding,
        "strideW": stride,
        "strideH": stride,
        "dilationWFactor": dilation,
        "dilationHFactor": dilation,
    }
    key = f"{padding}{stride}{dilation}{size}"
    CASES[f"CONV_2D {key}"] = one("CONV_2D", (1, size, size, 3), (1, out, out, 4), "Conv2D", more=[f32(4, 3, 3, 3), f32(4)],
        fusedActivationFunction=RELU6, **how)  # fmt: skip
    CASES[f"DEPTHWISE {key}"] = one("DEPTHWISE_CONV_2D", (2, size, size, 3), (2, out, out, 6), "DepthwiseConv2D", more=[f32(1, 3, 3, 6),
        f32(6)], depthMultiplier=2, **how)  # fmt: skip
CASES["CONV_2D groups"] = one("CONV_2D", (1, 5, 5, 4), (1, 5, 5, 6), "Conv2D", more=[f32(6, 3, 3, 2), f32(6)], strideW=1, strideH=1)  # fmt: skip
for padding, stride, size, k in ((SAME, 2, 8, 3), (SAME, 2, 7, 3), (VALID, 2, 9, 3), (SAME, 2, 8, 2), (SAME, 1, 4, 3), (SAME, 3, 10, 2)):  # fmt: skip
    small = -(-size // stride) if padding == SAME else (size - k) // stride + 1
    CASES[f"TRANSPOSE_CONV {padding}{stride}{size}{k}"] = one("TRANSPOSE_CONV", (1, small, small, 3), (1, size, size, 4), "TransposeConv",
        more=[ints(1, size, size, 4), f32(4, k, k, 3), f32(4)], order=(1, 2, 0, 3), padding=padding, strideW=stride, strideH=stride)  # fmt: skip
CASES["CONV_3D"] = one("CONV_3D", (1, 4, 5, 5, 2), (1, 2, 3, 3, 3), "Conv3D", more=[f32(3, 3, 3, 2, 3), f32(3)], padding=SAME, strideD=2,
    strideH=2, strideW=2)  # fmt: skip
CASES["FULLY_CONNECTED"] = one(
    "FULLY_CONNECTED",
    (2, 3, 4),
    (6, 5),
    "FullyConnected",
    more=[f32(5, 4), f32(5)],
    fusedActivationFunction=1,
)
CASES["FULLY_CONNECTED flat"] = one("FULLY_CONNECTED", (2, 3, 4), (2, 5), "FullyConnected", more=[f32(5, 12)])  # fmt: skip
CASES["FULLY_CONNECTED kept"] = one("FULLY_CONNECTED", (2, 3, 4), (2, 3, 5), "FullyConnected", more=[f32(5, 4), None], keepNumDims=True)  # fmt: skip
CASES["BATCH_MATMUL"] = one("BATCH_MATMUL", (2, 3, 4), (2, 3, 5), "BatchMatMul", more=[f32(2, 5, 4)], adjY=True)  # fmt: skip
CASES["BATCH_MATMUL x"] = one("BATCH_MATMUL", (2, 4, 3), (2, 3, 5), "BatchMatMul", more=[f32(2, 4, 5)], adjX=True)  # fmt: skip
for op in ("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"):
    CASES[f"{op} same"] = one(
        op,
        (1, 7, 7, 3),
        (1, 4, 4, 3),
        "Pool2D",
        padding=SAME,
        strideW=2,
        strideH=2,
        filterWidth=3,
        filterHeight=3,
    )
    CASES[f"{op} valid"] = one(op, (1, 7, 7, 3), (1, 3, 3, 3), "Pool2D", padding=VALID, strideW=2, strideH=2, filterWidth=2,
        filterHeight=2, fusedActivationFunction=1)  # fmt: skip
for op in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"):
    kind = {"RESIZE_BILINEAR": "ResizeBilinear"}.get(op, "ResizeNearestNeighbor")
    for corners, half in ((0, 0), (1, 0), (0, 1)):
        for size in (9, 3):
            CASES[f"{op} {corners}{half} {size}"] = one(op, (1, 5, 5, 2), (1, size, size, 2), kind, more=[ints(size, size)],
                alignCorners=bool(corners), halfPixelCenters=bool(half))  # fmt: skip
CASES |= {
    "RESHAPE": one("RESHAPE", (2, 3, 4), (6, 4), "Reshape", more=[ints(-1, 4)]),
    "RESHAPE option": one("RESHAPE", (2, 3, 4), (6, 4), "Reshape", newShape=[6, 4]),
    "SQUEEZE": one("SQUEEZE", (1, 3, 1, 4), (3, 4), "Squeeze"),
    "SQUEEZE axes": one("SQUEEZE", (1, 3, 1, 4), (1, 3, 4), "Squeeze", squeezeDims=[2]),
    "EXPAND_DIMS": one("EXPAND_DIMS", (3, 4), (3, 4, 1), more=[ints(-1)]),
    "TRANSPOSE": one("TRANSPOSE", (2, 3, 4), (4, 2, 3), more=[ints(2, 0, 1)]),
    "SLICE": one("SLICE", (4, 5), (2, 4), more=[ints(1, 1), ints(2, -1)]),
    "STRIDED_SLICE": one("STRIDED_SLICE", (4, 5, 6), (2, 5, 2), "StridedSlice", more=[ints(1, 0, 5), ints(3, 0, 1), ints(1, 1, -2)],
        beginMask=2, endMask=2),
    "STRIDED_SLICE ends": one("STRIDED_SLICE", (4, 5, 6), (5, 1, 3), "StridedSlice", more=[ints(-1, 0, 0, 0), ints(0, 0, 0, 6), ints(1, 1,
        1, 2)], shrinkAxisMask=1, newAxisMask=4, beginMask=2, endMask=2),
    "STRIDED_SLICE dots": one("STRIDED_SLICE", (4, 5, 6), (4, 5), "StridedSlice", more=[ints(0, 2), ints(0, 3), ints(1, 1)],
        ellipsisMask=1, shrinkAxisMask=2),
    "REVERSE_V2": one("REVERSE_V2", (3, 4), (3, 4), more=[ints(1)]),
    "SPLIT": one("SPLIT", (4, 6), (4, 2), "Split", more=[ints(1)], order=(1, 0), results=3, numSplits=3),
    "UNPACK": one("UNPACK", (3, 4), (4,), "Unpack", results=3, num=3, axis=0),
    "PAD": one("PAD", (2, 3), (5, 4), more=[np.array([[1, 2], [0, 1]], np.int32)]),
    "PADV2": one("PADV2", (2, 3), (5, 4), more=[np.array([[1, 2], [0, 1]], np.int32), number(7)]),
    "MIRROR_PAD reflect": one("MIRROR_PAD", (4, 3), (7, 5), "MirrorPad", more=[np.array([[1, 2], [1, 1]], np.int32)], mode=0),
    "MIRROR_PAD symmetric": one("MIRROR_PAD", (4, 3), (7, 6), "MirrorPad", more=[np.array([[1, 2], [3, 0]], np.int32)], mode=1),
    "TILE": one("TILE", (2, 3), (4, 9), more=[ints(2, 3)]),
    "BROADCAST_TO": one("BROADCAST_TO", (1, 3), (4, 3), more=[ints(4, 3)], version=2),
    "SHAPE": one("SHAPE", (2, 3), (2,), "Shape", out=np.int32, outType=2),
    "GATHER": one("GATHER", (4, 5), (4, 3), "Gather", more=[ints(3, 0, 1)], axis=1),
    "GATHER batch": one("GATHER", (2, 5, 3), (2, 2, 3), "Gather", more=[np.array([[0, 4], [2, 1]], np.int32)], axis=1, batchDims=1),
    "GATHER_ND": one("GATHER_ND", (3, 4), (2,), more=[np.array([[0, 1], [2, 3]], np.int32)]),
    "DEPTH_TO_SPACE": one("DEPTH_TO_SPACE", (1, 2, 3, 8), (1, 4, 6, 2), "DepthToSpace", blockSize=2),
    "SPACE_TO_DEPTH": one("SPACE_TO_DEPTH", (1, 4, 6, 2), (1, 2, 3, 8), "SpaceToDepth", blockSize=2),
    "SPACE_TO_BATCH_ND": one("SPACE_TO_BATCH_ND", (1, 5, 4, 3), (6, 2, 3, 3), more=[ints(3, 2), np.array([[1, 0], [1, 1]], np.int32)]),
    "BATCH_TO_SPACE_ND": one("BATCH_TO_SPACE_ND", (6, 2, 3, 3), (1, 5, 4, 3), more=[ints(3, 2), np.array([[1, 0], [1, 1]], np.int32)]),
    "PRELU": one("PRELU", (1, 3, 3, 4), (1, 3, 3, 4), more=[f32(1, 1, 4)]),
    "LEAKY_RELU": one("LEAKY_RELU", (3, 4), (3, 4), "LeakyRelu", alpha=0.1),
    "SOFTMAX": one("SOFTMAX", (3, 4), (3, 4), "Softmax", beta=0.5),
    "GELU": one("GELU", (3, 4), (3, 4), "Gelu", approximate=True),
    "L2_NORMALIZATION": one("L2_NORMALIZATION", (3, 4), (3, 4), "L2Norm"),
    "LOCAL_RESPONSE_NORMALIZATION": one("LOCAL_RESPONSE_NORMALIZATION", (1, 3, 3, 6), (1, 3, 3, 6), "LocalResponseNormalization", radius=2,
        bias=1.0, alpha=0.3, beta=0.7),
    "CUMSUM": one("CUMSUM", (3, 4), (3, 4), "Cumsum", more=[whole(1)], exclusive=True, reverse=True),
    "ARG_MAX": one("ARG_MAX", (3, 4), (3,), "ArgMax", more=[whole(-1)], out=np.int32, outputType=2),
    "CAST": one("CAST", (3, 4), (3, 4), "Cast", out=np.int32, outDataType=2),
    "FAKE_QUANT": one("FAKE_QUANT", (3, 4), (3, 4), "FakeQuant", min=-1.3, max=1.9, numBits=4),
    "ONE_HOT": one("ONE_HOT", (3,), (3, 5), "OneHot", more=[whole(5), number(2), number(-1)], dtype=np.int32, out=np.float32, axis=-1),
    "FILL": one("FILL", (), (2, 3), more=[ints(2, 3)], order=(1, 0)),
    "RELU of i32": one("ADD", (3,), (3,), "Add", more=[ints(-4, 0, 5)], dtype=np.int32, fusedActivationFunction=1),
    "FLOOR_DIV": one("FLOOR_DIV", (5,), (5,), more=[ints(-2, 3, -3, 2, 5)], dtype=np.int32),
    "FLOOR_MOD": one("FLOOR_MOD", (5,), (5,), more=[ints(-2, 3, -3, 2, 5)], dtype=np.int32),
    "FLOOR_MOD f": one("FLOOR_MOD", (5,), (5,), more=[f32(5)]),
    "SCATTER_ND": one("SCATTER_ND", (3,), (6,), more=[np.array([[0], [4], [0]], np.int32), ints(6)], order=(1, 0, 2)),
    "EMBEDDING_LOOKUP": one("EMBEDDING_LOOKUP", (3,), (3, 4), more=[f32(5, 4)], dtype=np.int32, out=np.float32),
    "ADD_N": one("ADD_N", (3, 4), (3, 4), more=[f32(3, 4), f32(3, 4)]),
    "REVERSE_SEQUENCE": one("REVERSE_SEQUENCE", (2, 4), (2, 4), "ReverseSequence", more=[ints(2, 4)], seqDim=1, batchDim=0),
}  # fmt: skip
for op in ("RELU", "RELU6", "RELU_N1_TO_1", "ELU", "LOGISTIC", "TANH", "HARD_SWISH", "ABS", "NEG", "EXP", "SIN", "COS", "FLOOR", "CEIL",
    "ROUND", "SQUARE", "SIGN", "LOG_SOFTMAX", "ZEROS_LIKE", "RELU_0_TO_1"):  # fmt: skip
    CASES[op] = one(op, (3, 8), (3, 8))
for op in ("ADD", "SUB", "MUL", "DIV"):
    CASES[op] = one(op, (1, 3, 1, 4), (2, 3, 5, 4), op.title(), more=[f32(2, 1, 5, 1)], fusedActivationFunction=RELU6)  # fmt: skip
for op in ("MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"):
    CASES[op] = one(op, (3, 4), (3, 4), more=[f32(4)])
for op in ("LESS", "GREATER_EQUAL", "NOT_EQUAL", "EQUAL"):
    CASES[op] = one(op, (3, 4), (3, 4), more=[f32(3, 4)], out=np.bool_)
for op in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"):
    CASES[op] = one(op, (2, 3, 4), (2, 1, 1), "Reducer", more=[ints(1, -1)], keepDims=True)
    CASES[f"{op} less"] = one(op, (2, 3, 4), (2, 4), "Reducer", more=[ints(1)])
CASES["REDUCE_ANY"] = one("REDUCE_ANY", (2, 3), (2,), "Reducer", more=[ints(1)], dtype=np.bool_)


@case("SQRT, RSQRT, LOG, POW")
def _(f: File) -> Sequence[str]:
    f.input("x", 3, 4)
    for name in ("a", "b", "c", "d", "e"):
        f.tensor(name, (3, 4))
    f.op("EXP", ["x"], ["a"])
    f.op("SQRT", ["a"], ["b"])
    f.op("RSQRT", ["a"], ["c"])
    f.op("LOG", ["a"], ["d"])
    f.op("POW", ["a", f.constant("p", number(1.7))], ["e"], "Pow")
    return ["b", "c", "d", "e"]


@case("CONCATENATION, PACK, SPLIT_V")
def _(f: File) -> Sequence[str]:
    f.input("x", 2, 3)
    f.input("z", 2, 3)
    ys = [f.tensor(n, s) for n, s in (("a", (2, 6)), ("b", (2, 2, 3)), ("c", (2, 1)), ("d", (2, 5)))]  # fmt: skip
    f.op("CONCATENATION", ["x", "z"], ["a"], "Concatenation", axis=-1)
    f.op("PACK", ["x", "z"], ["b"], "Pack", axis=1, valuesCount=2)
    sizes, axis = f.constant("s", ints(1, -1)), f.constant("axis", whole(1))
    f.op("SPLIT_V", ["a", sizes, axis], ["c", "d"], "SplitV", numSplits=2)
    return ys


@case("TOPK_V2, RANGE")
def _(f: File) -> Sequence[str]:
    f.input("x", 2, 6)
    f.tensor("y", (2, 3))
    f.tensor("where", (2, 3), np.int32)
    f.op("TOPK_V2", ["x", f.constant("k", whole(3))], ["y", "where"], "TopKV2")
    f.op("RANGE", [f.constant(n, whole(v)) for n, v in (("b", 1), ("e", 4), ("s", 1))], [f.tensor("r", (3,), np.int32)], "Range")  # fmt: skip
    f.op("MUL", ["where", "r"], [f.tensor("z", (2, 3), np.int32)], "Mul")
    return ["y", "where", "z"]


@case("SELECT, LOGICAL")
def _(f: File) -> Sequence[str]:
    f.input("q", 3, dtype=np.bool_)
    f.input("x", 3, 4)
    f.input("z", 3, 4)
    for name, shape, kind in (("a", (3, 4), np.float32), ("b", (3, 4), np.float32), ("n", (3,), np.bool_), ("o", (3,), np.bool_)):  # fmt: skip
        f.tensor(name, shape, kind)
    f.op("SELECT", ["q", "x", "z"], ["a"], "Select")
    f.op("LOGICAL_NOT", ["q"], ["n"], "LogicalNot")
    f.op("LOGICAL_OR", ["q", "n"], ["o"], "LogicalOr")
    f.tensor("column", (3, 1), np.bool_)
    f.op("EXPAND_DIMS", ["q", f.constant("one", whole(1))], ["column"], "ExpandDims")
    f.op("SELECT_V2", ["column", "x", "z"], ["b"])
    return ["a", "n", "o", "b"]


@case("fp16 and DEQUANTIZE, sparse and DENSIFY")
def _(f: File) -> Sequence[str]:
    f.input("x", 2, 4)
    w = f32(3, 4).astype(np.float16)
    f.constant("w16", w)
    f.op("DEQUANTIZE", ["w16"], [f.tensor("w", (3, 4))])
    f.op("FULLY_CONNECTED", ["x", "w", ""], [f.tensor("y", (2, 3))], "FullyConnected")
    s = np.array([[0, 1, 0, 0, 0, 0, 2, 3], [0] * 8, [4, 0, 0, 0, 0, 5, 0, 6]], np.float32)
    f.constant("sparse", s)
    t = f.tensors[f.names["sparse"]]
    t.sparsity = p = schema.SparsityParametersT()
    p.traversalOrder, p.blockMap = [0, 1], []
    rows, columns = schema.DimensionMetadataT(), schema.DimensionMetadataT()
    rows.format, rows.denseSize, columns.format = 0, 3, 1
    columns.arraySegmentsType = columns.arrayIndicesType = schema.SparseIndexVector.Int32Vector
    columns.arraySegments, columns.arrayIndices = schema.Int32VectorT(), schema.Int32VectorT()
    columns.arraySegments.values = np.array([0, 3, 3, 6], np.int32)
    columns.arrayIndices.values = np.array([1, 6, 7, 0, 5, 7], np.int32)
    p.dimMetadata = [rows, columns]
    f.buffers[t.buffer].data = np.frombuffer(s[s != 0].tobytes(), np.uint8)
    f.op("DENSIFY", ["sparse"], [f.tensor("d", (3, 8))], "Densify")
    f.op("MUL", ["d", "d"], [f.tensor("square", (3, 8))], "Mul")
    return ["y", "square"]


@pytest.mark.parametrize("name", CASES)
def test_floats_are_the_interpreters(name: str, tmp_path: Path) -> None:
    f = File()
    compared(f, CASES[name](f), tmp_path / "one.tflite")


# --- integers


def q8(f: File, name: str, *shape: int, scale: float = 0.05, zero: int = -3) -> str:
    return f.tensor(name, shape, np.int8, scale=scale, zero=zero)


def quantized(
    op: str, shape: Sequence[int], result: Sequence[int], kind: str = "", *,
    more: Sequence[Array] = (), scale: float = 0.05, zero: int = -3, **options: Any,
) -> Callable[[File], Sequence[str]]:  # fmt: skip
    """An operator of one int8 input, and constants; the result's scale and zero point may be others."""

    def build(f: File) -> Sequence[str]:
        names = [f.input("x", *shape, dtype=np.int8, scale=0.05, zero=-3)]
        names += [f.constant(f"c{i}", a) for i, a in enumerate(more)]
        f.op(op, names, [q8(f, "y", *result, scale=scale, zero=zero)], kind, **options)
        return ["y"]

    return build


EXACT = {
    "RESHAPE": quantized("RESHAPE", (2, 6), (3, 4), "Reshape", newShape=[3, 4]),
    "TRANSPOSE": quantized("TRANSPOSE", (2, 6), (6, 2), more=[ints(1, 0)]),
    "SLICE": quantized("SLICE", (2, 6), (1, 3), more=[ints(1, 2), ints(1, 3)]),
    "PAD": quantized("PAD", (2, 3), (5, 4), more=[np.array([[1, 2], [0, 1]], np.int32)]),
    "MIRROR_PAD": quantized("MIRROR_PAD", (4, 3), (5, 3), "MirrorPad", more=[np.array([[1, 0], [0, 0]], np.int32)], mode=0),
    "MAX_POOL_2D": quantized("MAX_POOL_2D", (1, 7, 7, 3), (1, 4, 4, 3), "Pool2D", padding=SAME, strideW=2, strideH=2, filterWidth=3, filterHeight=3),
    "GATHER": quantized("GATHER", (4, 5), (4, 2), "Gather", more=[ints(3, 0)], axis=1),
    "DEPTH_TO_SPACE": quantized("DEPTH_TO_SPACE", (1, 2, 3, 8), (1, 4, 6, 2), "DepthToSpace", blockSize=2),
    "SPACE_TO_BATCH_ND": quantized("SPACE_TO_BATCH_ND", (1, 5, 4, 3), (6, 2, 3, 3), more=[ints(3, 2), np.array([[1, 0], [1, 1]], np.int32)]),
    "RESIZE_NEAREST_NEIGHBOR": quantized("RESIZE_NEAREST_NEIGHBOR", (1, 5, 5, 2), (1, 9, 9, 2), "ResizeNearestNeighbor", more=[ints(9, 9)]),
    "RELU": quantized("RELU", (3, 8), (3, 8)),
    "REDUCE_MAX": quantized("REDUCE_MAX", (2, 3, 4), (2, 4), "Reducer", more=[ints(1)]),
}  # fmt: skip
NEAR = {
    "AVERAGE_POOL_2D": quantized("AVERAGE_POOL_2D", (1, 7, 7, 3), (1, 4, 4, 3), "Pool2D", padding=SAME, strideW=2, strideH=2,
        filterWidth=3, filterHeight=3),
    "RESIZE_BILINEAR": quantized("RESIZE_BILINEAR", (1, 5, 5, 2), (1, 9, 9, 2), "ResizeBilinear", more=[ints(9, 9)], halfPixelCenters=True),
    "LOGISTIC": quantized("LOGISTIC", (3, 8), (3, 8), scale=1 / 256, zero=-128),
    "TANH": quantized("TANH", (3, 8), (3, 8), scale=1 / 128, zero=0),
    "HARD_SWISH": quantized("HARD_SWISH", (3, 8), (3, 8), scale=0.03, zero=-110),
    "LEAKY_RELU": quantized("LEAKY_RELU", (3, 8), (3, 8), "LeakyRelu", alpha=0.1, scale=0.04, zero=-90),
    "SOFTMAX": quantized("SOFTMAX", (3, 8), (3, 8), "Softmax", beta=1.0, scale=1 / 256, zero=-128),
    "MEAN": quantized("MEAN", (2, 3, 4), (2, 4), "Reducer", more=[ints(1)], scale=0.03, zero=5),
    "SUM": quantized("SUM", (2, 3, 4), (2, 4), "Reducer", more=[ints(1)], scale=0.15, zero=5),
    "QUANTIZE": quantized("QUANTIZE", (3, 8), (3, 8), "Quantize", scale=0.07, zero=11),
}  # fmt: skip
for op in ("ADD", "SUB", "MUL", "MAXIMUM"):

    def _two(f: File, op: str = op) -> Sequence[str]:
        scale = 0.05 if op == "MAXIMUM" else 0.07
        f.input("x", 2, 9, dtype=np.int8, scale=0.05, zero=-3)
        f.input("z", 2, 9, dtype=np.int8, scale=scale, zero=-3 if op == "MAXIMUM" else 7)
        y = q8(f, "y", 2, 9, scale=scale, zero=-3)
        f.op(op, ["x", "z"], [y], "MaximumMinimum" if op == "MAXIMUM" else op.title())
        return [y]

    (EXACT if op == "MAXIMUM" else NEAR)[op] = _two


@pytest.mark.parametrize("name", EXACT)
def test_integers_that_are_moved_or_chosen_are_exact(name: str, tmp_path: Path) -> None:
    f = File()
    compared(f, EXACT[name](f), tmp_path / "one.tflite")


@pytest.mark.parametrize("name", NEAR)
def test_integers_that_are_computed_are_within_a_step(name: str, tmp_path: Path) -> None:
    f = File()
    compared(f, NEAR[name](f), tmp_path / "one.tflite", steps=1)


def test_concatenation_brings_integers_to_one_scale(tmp_path: Path) -> None:
    f = File()
    f.input("x", 2, 3, dtype=np.int8, scale=0.05, zero=-3)
    f.input("z", 2, 3, dtype=np.int8, scale=0.05, zero=-3)
    f.op("CONCATENATION", ["x", "z"], [q8(f, "y", 2, 6)], "Concatenation", axis=1)
    f.op("SPLIT", [f.constant("axis", whole(1)), "y"], [q8(f, "a", 2, 3), q8(f, "b", 2, 3)], "Split", numSplits=2)  # fmt: skip
    f.op("DEQUANTIZE", ["b"], [f.tensor("real", (2, 3))], "Dequantize")
    f.op("QUANTIZE", ["real"], [f.tensor("again", (2, 3), np.uint8, scale=0.1, zero=100)], "Quantize")  # fmt: skip
    compared(f, ["y", "a", "real", "again"], tmp_path / "one.tflite")


@pytest.mark.parametrize("op", ["FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"])
def test_products_of_integers_are_within_a_step(op: str, tmp_path: Path) -> None:
    f = File()
    bias = RNG.integers(-500, 500, 4).astype(np.int32)
    if op == "FULLY_CONNECTED":
        f.input("x", 5, 8, dtype=np.int8, scale=0.05, zero=-3)
        w = RNG.integers(-127, 128, (4, 8)).astype(np.int8)
        s = RNG.uniform(0.001, 0.01, 4).astype(np.float32)
        operands = ["x", f.constant("w", w, scale=s), f.constant("b", bias, scale=s * np.float32(0.05))]  # fmt: skip
        f.op(op, operands, [q8(f, "y", 5, 4, scale=0.03)], "FullyConnected", fusedActivationFunction=1)  # fmt: skip
    elif op == "TRANSPOSE_CONV":
        f.input("x", 1, 4, 4, 3, dtype=np.int8, scale=0.05, zero=-3)
        w = RNG.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
        s = RNG.uniform(0.001, 0.01, 4).astype(np.float32)
        operands = [f.constant("size", ints(1, 8, 8, 4)), f.constant("w", w, scale=s), "x"]
        operands.append(f.constant("b", bias, scale=s * np.float32(0.05)))
        f.op(op, operands, [q8(f, "y", 1, 8, 8, 4, scale=0.03)], "TransposeConv", padding=SAME, strideW=2, strideH=2)  # fmt: skip
    else:
        f.input("x", 2, 3, 4, dtype=np.int8, scale=0.05, zero=-3)
        f.input("z", 2, 4, 5, dtype=np.int8, scale=0.05, zero=9)
        f.op(op, ["x", "z"], [q8(f, "y", 2, 3, 5, scale=0.2)], "BatchMatMul")
    compared(f, ["y"], tmp_path / "one.tflite", steps=1)


# --- what is kept between runs


def zeros(f: File, **feed: Array) -> dict[str, Array]:
    states = {t.name: np.zeros(t.shape, np.float32) for t in f.tensors if t.isVariable}
    return {**feed, **states}


def test_an_lstm_keeps_its_state_as_an_input_and_an_output(tmp_path: Path) -> None:
    f = File()
    f.input("x", 2, 5, 3)
    operands = ["x", *(f.constant(f"w{i}", f32(4, 3)) for i in range(4))]
    operands += [f.constant(f"r{i}", f32(4, 4)) for i in range(4)]
    operands += [""] * 3 + [f.constant(f"b{i}", f32(4)) for i in range(4)] + [""] * 2
    operands += [f.tensor(n, (2, 4), variable=True) for n in ("h", "c")]
    f.op(
        "UNIDIRECTIONAL_SEQUENCE_LSTM", [*operands, *[""] * 4], [f.tensor("y", (2, 5, 4))],
        "UnidirectionalSequenceLSTM", fusedActivationFunction=schema.ActivationFunctionType.TANH,
    )  # fmt: skip
    compared(f, ["y"], path := tmp_path / "one.tflite", feed=zeros(f, x=f32(2, 5, 3)))
    graph = read(doors.opened(path))
    assert list(graph.inputs) == ["x", "h", "c"]
    assert list(graph.outputs) == ["y", "h.next", "c.next"]


def test_an_svdf_keeps_its_features(tmp_path: Path) -> None:
    f = File()
    f.input("x", 2, 3)
    w, over, b = (f.constant(n, a) for n, a in (("w", f32(8, 3)), ("t", f32(8, 5)), ("b", f32(4))))
    f.op("SVDF", ["x", w, over, b, f.tensor("s", (2, 40), variable=True)], [f.tensor("y", (2, 4))], "SVDF", rank=2)  # fmt: skip
    compared(f, ["y"], path := tmp_path / "one.tflite", feed=zeros(f, x=f32(2, 3)))
    graph = read(doors.opened(path))
    feed = zeros(f, x=f32(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        it = litert.Interpreter(str(path), experimental_op_resolver_type=PLAIN)
    it.allocate_tensors()
    for _ in range(3):
        it.set_tensor(0, feed["x"])
        it.invoke()
        ours = evaluate(graph, feed)
        np.testing.assert_allclose(ours["y"], it.get_tensor(f.names["y"]), rtol=1e-4, atol=1e-5)
        feed = {"x": f32(2, 3), "s": ours["s.next"]}


def test_an_rnn(tmp_path: Path) -> None:
    f = File()
    f.input("x", 2, 5, 3)
    w, r, b = (f.constant(n, a) for n, a in (("w", f32(4, 3)), ("r", f32(4, 4)), ("b", f32(4))))
    f.op(
        "UNIDIRECTIONAL_SEQUENCE_RNN", ["x", w, r, b, f.tensor("h", (2, 4), variable=True)], [f.tensor("y", (2, 5, 4))],
        "SequenceRNN", fusedActivationFunction=schema.ActivationFunctionType.TANH,
    )  # fmt: skip
    compared(f, ["y"], tmp_path / "one.tflite", feed=zeros(f, x=f32(2, 5, 3)))
