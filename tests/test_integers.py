"""The pass `integers`: what a quantized graph says and what is computed differ by a step at most, by nothing for powers of two."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapper.compiler import pipeline
from knapper.compiler.ir import DTYPES, Array, Graph, Node, Type, evaluate, infer
from knapper.compiler.ops.quantize import QUANTIZED

PASSES = pipeline.parse("fold,dead,simplify,bn,idioms,products,fold,simplify,integers,dead")


class Net:
    """A graph that grows by named nodes."""

    def __init__(self, seed: int = 0, exact: bool = True) -> None:
        self.rng, self.exact = np.random.default_rng(seed), exact
        self.inputs: dict[str, Type] = {}
        self.constants: dict[str, Array] = {}
        self.nodes: list[Node] = []
        self.types: dict[str, Type] = {}

    def input(self, dtype: str, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = self.types[name] = Type(dtype, shape)
        return name

    def constant(self, a: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(a)
        self.types[name] = Type.of(self.constants[name])
        return name

    def op(self, op: str, *operands: str, **attrs: Any) -> str:
        while operands and not operands[-1]:
            operands = operands[:-1]
        types = infer(op, [self.types[v] if v else None for v in operands], attrs)
        v = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, operands, (v,), types[:1], attrs))
        self.types[v] = types[0]
        return v

    def scale(self, *shape: int, about: float = 0.1) -> Array:
        s = np.asarray(self.rng.uniform(0.5, 2, shape) * about, np.float32)
        return np.exp2(np.rint(np.log2(s))).astype(np.float32) if self.exact else s

    def real(self, q: str, zero: int | Array = 0, *shape: int, axis: int = 1) -> str:
        dtype = DTYPES[self.types[q].dtype]
        z = self.constant(np.broadcast_to(np.asarray(zero, dtype), shape))
        return self.op("DequantizeLinear", q, self.constant(self.scale(*shape)), z, axis=axis)

    def rounded(self, v: str, to: str = "u8", zero: int = 0, about: float = 0.5) -> str:
        z = self.constant(np.asarray(zero, DTYPES[to]))
        return self.op("QuantizeLinear", v, self.constant(self.scale(about=about)), z, to=to)

    def bytes(self, dtype: str, *shape: int) -> Array:
        if dtype == "f32":
            return self.rng.integers(-9, 9, shape).astype(np.float32)
        info = np.iinfo(DTYPES[dtype])
        low, high = max(info.min, -200), min(info.max, 300)
        return self.rng.integers(low, high, shape, endpoint=True).astype(DTYPES[dtype])

    def graph(self, *outputs: str) -> Graph:
        return Graph(
            "g", self.inputs, {v: v for v in outputs}, tuple(self.nodes), self.constants
        ).verify()

    def feed(self) -> dict[str, Array]:
        return {v: self.bytes(t.dtype, *t.shape) for v, t in self.inputs.items()}


def both(net: Net, *outputs: str) -> tuple[Graph, list[Array], list[Array]]:
    """(the graph in integers, what the model says, what it computes)"""
    g = net.graph(*outputs)
    h, feed = pipeline.run(g, PASSES), net.feed()
    said, computed = (list(evaluate(x, feed).values()) for x in (g, h))
    return h, said, computed


def in_integers(g: Graph) -> bool:
    products = [n for n in g.nodes if n.op in ("Conv", "MatMul", "Gemm")]
    types = g.types()
    narrow = all({types[v].dtype for v in n.inputs[:2]} <= set(QUANTIZED) for n in products)
    left = {n.op for n in g.nodes} & {"DequantizeLinear"}
    return bool(products) and narrow and not left


DTYPE = st.sampled_from(["i8", "u8"])
SEED = st.integers(0, 2**32 - 1)


@given(SEED, DTYPE, DTYPE, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=60)
def test_convolutions(
    seed: int, x: str, w: str, channels: bool, exact: bool, residual: bool, group: int
) -> None:
    """Any zero points of both; padded; a bias in steps of the sums, one in float, a residual, a Relu."""
    net = Net(seed, exact)
    rng = net.rng
    image = net.real(net.input(x, 1, 4, 5, 5), int(rng.integers(0, 100)))
    shape = (4,) if channels else ()
    zero = rng.integers(0, 100, shape) * int(rng.integers(0, 2))
    weights = net.real(net.constant(net.bytes(w, 4, 4 // group, 3, 3)), zero, *shape, axis=0)
    bias = net.constant(net.scale(4))
    attrs: dict[str, Any] = {"pads": (1, 0, 1, 1), "strides": (2, 1)}
    v = net.op("Conv", image, weights, bias, **attrs, group=group)
    if residual:
        v = net.op("Add", v, net.real(net.input("u8", *net.types[v].shape), 77))
    y = net.rounded(net.op("Relu", v), about=2.0, zero=int(rng.integers(0, 60)))
    h, (said,), (computed,) = both(net, y)
    assert in_integers(h)
    assert np.abs(said.astype(int) - computed).max() <= (0 if exact else 1)


@given(SEED, DTYPE, DTYPE, st.booleans(), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_products_of_values(
    seed: int, a: str, b: str, exact: bool, left: bool, right: bool
) -> None:
    """Attention's: both operands computed, with zero points, transposed first or not."""
    net = Net(seed, exact)
    zeros = [int(z) for z in net.rng.integers(0, 100, 2) * net.rng.integers(0, 2, 2)]
    x = net.real(net.input(a, *((2, 6, 3) if left else (2, 3, 6))), zeros[0])
    y = net.real(net.input(b, *((2, 5, 6) if right else (2, 6, 5))), zeros[1])
    z = net.rounded(net.op("MatMul", x, y, trans_a=left, trans_b=right), "i8", 3, about=8.0)
    h, (said,), (computed,) = both(net, z)
    assert in_integers(h)
    assert np.abs(said.astype(int) - computed).max() <= (0 if exact else 1)


@given(SEED, DTYPE, DTYPE, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_dense_layers(seed: int, x: str, w: str, channels: bool, exact: bool) -> None:
    net = Net(seed, exact)
    rows = net.real(net.input(x, 3, 7), int(net.rng.integers(0, 100)))
    zero = net.rng.integers(0, 100, (4,) if channels else ())
    weights = net.real(net.constant(net.bytes(w, 4, 7)), zero, *((4,) if channels else ()), axis=0)
    y = net.op("Gemm", rows, weights, net.constant(net.scale(4)), transB=1)
    h, (said,), (computed,) = both(net, net.rounded(y, "i8", about=4.0))
    assert in_integers(h)
    assert np.abs(said.astype(int) - computed).max() <= (0 if exact else 1)


def test_moves_are_of_bytes() -> None:
    """Between two layers nothing wider than 8 bits is moved, and a value that is rounded as it was is what it was."""
    net = Net()
    scale, zero = net.constant(np.float32(0.5)), net.constant(np.uint8(7))
    x = net.op("DequantizeLinear", net.input("u8", 1, 4, 6, 6), scale, zero)
    v = net.op("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2))
    v = net.op("Concat", v, net.op("Relu", v), axis=1)
    v = net.op("Pad", v, pads=(0, 0, 1, 1, 0, 0, 0, 0))
    v = net.op(
        "Transpose", net.op("Slice", v, starts=(2,), ends=(8,), axes=(1,)), perm=(0, 2, 3, 1)
    )
    v = net.op("Reshape", v, shape=(16, 6))
    h, (said,), (computed,) = both(net, net.op("QuantizeLinear", v, scale, zero))
    np.testing.assert_array_equal(said, computed)
    assert {t.dtype for n in h.nodes for t in n.types} == {"u8"}


def test_weights_that_are_moved_stay_constants() -> None:
    """A transposed convolution is several of parts of its weights, a product may have them transposed."""
    net = Net()
    x = net.real(net.input("u8", 1, 4, 5, 5), 9)
    weights = net.real(net.constant(net.bytes("i8", 4, 6, 3, 3)))
    v = net.op("ConvTranspose", x, weights, strides=(2, 2))
    h, (said,), (computed,) = both(net, net.rounded(v, about=8.0))
    products = [n for n in h.nodes if n.op == "Conv"]
    assert len(products) == 4
    assert all(n.inputs[1] in h.constants for n in products)
    assert in_integers(h)
    np.testing.assert_array_equal(said, computed)
    net = Net()
    turned = net.op("Transpose", net.real(net.constant(net.bytes("i8", 7, 6))), perm=(1, 0))
    v = net.op("MatMul", net.real(net.input("u8", 5, 6), 9), turned)
    h, (said,), (computed,) = both(net, net.rounded(v, about=8.0))
    (product,) = (n for n in h.nodes if n.op == "MatMul")
    assert product.inputs[1] in h.constants
    assert in_integers(h)
    np.testing.assert_array_equal(said, computed)


@pytest.mark.parametrize("x", ["i8", "u8", "i16", "u16"])
@pytest.mark.parametrize("w", ["i8", "u8", "i16", "u16"])
@pytest.mark.parametrize("zero", [0, 7, 32700])
def test_types_that_kernels_multiply(x: str, w: str, zero: int) -> None:
    """Bytes by bytes, or both alike: constants become what their operand is, or the product stays in float."""
    net = Net()
    image = net.real(net.input(x, 1, 2, 4, 4), 5)
    weights = net.constant(
        np.minimum(np.abs(net.bytes(w, 3, 2, 3, 3).astype(int)), 100).astype(DTYPES[w])
    )
    zero = min(zero, np.iinfo(DTYPES[w]).max)
    v = net.op("Conv", image, net.real(weights, zero, 3, axis=0), pads=(1, 1, 1, 1))
    h, (said,), (computed,) = both(net, net.rounded(v, "i16", about=999.0))
    types, (first, *_) = h.types(), (n for n in h.nodes if n.op == "Conv")
    for n in (n for n in h.nodes if n.op == "Conv"):
        a, b = (types[v].dtype for v in n.inputs[:2])
        assert a == b or {a, b} <= {"i8", "u8"}
        assert {a, b} <= {"i8", "u8"} or not n.attr("pad_value")
    if zero == 0:
        exact = x == w or x not in ("i8", "u8") or w in ("i8", "u8")
        assert in_integers(h) == exact
    assert np.abs(said.astype(int) - computed).max() <= (0 if first.types[0].dtype == "i32" else 1)


@pytest.mark.parametrize("strides", [1, 3])
def test_factors_behind_an_average_stay_there(strides: int) -> None:
    """Of each pixel of the result, not of the image that it is an average of."""
    net = Net()
    weights = net.real(net.constant(net.bytes("i8", 4, 4, 1, 1)))
    v = net.op("Conv", net.real(net.input("u8", 1, 4, 6, 6), 7), weights)
    pads = (1, 1, 1, 1) if strides == 1 else (0, 0, 0, 0)
    v = net.op("AveragePool", v, kernel_shape=(3, 3), pads=pads, strides=(strides, strides))
    size = net.types[v].shape[-1]
    v = net.op("Mul", v, net.constant(net.scale(1, 1, size, size, about=4.0)))
    h, (said,), (computed,) = both(net, net.rounded(v, about=8.0, zero=99))
    assert in_integers(h)
    np.testing.assert_array_equal(said, computed)
    assert len(np.unique(said)) > 4


@pytest.mark.parametrize("scale", [-2.0, 0.0, 1e-40, np.inf, np.nan])
def test_scales_that_are_no_factors_divide(scale: float) -> None:
    """A negative one turns a Relu round; others have no inverse in f32."""
    net = Net()
    weights = net.real(net.constant(net.bytes("i8", 4, 4, 1, 1)))
    v = net.op("Relu", net.op("Conv", net.real(net.input("u8", 1, 4, 3, 3), 7), weights))
    zero = net.constant(np.uint8(128))
    y = net.op("QuantizeLinear", v, net.constant(np.float32(scale)), zero)
    h, (said,), (computed,) = both(net, y)
    assert in_integers(h)
    np.testing.assert_array_equal(said, computed)


def test_sums_that_may_overflow_stay_in_float(caplog: pytest.LogCaptureFixture) -> None:
    """The weights decide: 2^16 · 2^15 · 4 is too much, with small weights it is not."""
    for size, fits in ((32767, False), (300, True)):
        net = Net()
        x = net.real(net.input("u16", 2, 4))
        weights = net.constant(np.full((4, 3), size, np.int16))
        v = net.op("MatMul", x, net.real(weights))
        with caplog.at_level(logging.INFO, "knapper"):
            h, (said,), (computed,) = both(net, net.rounded(v, "i16", about=999.0))
        assert in_integers(h) == fits
        np.testing.assert_array_equal(said, computed)
    assert "stays in float: its sums may reach 8589" in caplog.text


def test_a_bias_that_leaves_no_room_is_added_in_float() -> None:
    """As quantizers make them for channels whose weights are all zero."""
    net = Net()
    sx, sw = net.constant(np.float32(0.5)), net.constant(np.exp2(np.float32([-2, -30])))
    step = net.constant(np.exp2(np.float32([-3, -31])))
    x = net.op("DequantizeLinear", net.input("u8", 1, 2, 3, 3), sx)
    w = net.constant(np.array([3, -5, 1, 0], np.int8).reshape(2, 2, 1, 1))
    weights = net.op("DequantizeLinear", w, sw, axis=0)
    bias = net.op("DequantizeLinear", net.constant(np.int32([77, 2**31 - 128])), step, axis=0)
    y = net.rounded(net.op("Conv", x, weights, bias), "i8", about=4.0)
    h, (said,), (computed,) = both(net, y)
    assert in_integers(h)
    np.testing.assert_array_equal(said, computed)


def test_weights_alone_are_computed_here() -> None:
    net = Net()
    w = net.constant(net.bytes("i8", 4, 3))
    v = net.op("MatMul", net.input("f32", 2, 4), net.real(w, 0, 3))
    h, (said,), (computed,) = both(net, v)
    np.testing.assert_array_equal(said, computed)
    assert [n.op for n in h.nodes] == ["MatMul"]


def test_a_graph_without_quantization_is_left_alone() -> None:
    net = Net()
    g = net.graph(net.op("Relu", net.input("f32", 2)))
    (integers,) = pipeline.parse("integers")
    assert integers.run(g) is g


@pytest.mark.parametrize("rounded_before", [False, True])
def test_a_normalization_between_roundings_is_part_of_the_products_launch(
    rounded_before: bool,
) -> None:
    """Its weights are bytes, so it cannot be folded into them: into the factor behind the sums, or one epilogue with two roundings."""
    net = Net(exact=False)
    x, w = net.input("u8", 1, 4, 6, 6), net.constant(net.bytes("i8", 8, 4, 3, 3))
    y = net.op("Conv", net.real(x, 3), net.real(w, 0, 8, axis=0), pads=(1, 1, 1, 1))
    if rounded_before:
        y = net.real(net.rounded(y, about=20.0))
    vectors = [net.constant(net.rng.uniform(0.5, 2, 8).astype(np.float32)) for _ in range(4)]
    y = net.op("Relu", net.op("BatchNormalization", y, *vectors))
    g = net.graph(net.rounded(y, about=20.0))
    made = pipeline.run(g, pipeline.preset("fp32"))
    (conv,) = (n for n in made.nodes if n.op == "Conv")
    assert conv.types[0].dtype == "i32"
    assert {n.group for n in made.nodes if n.op != "Transpose"} == {conv.group}
    feed = {x: net.rng.integers(0, 256, (1, 4, 6, 6)).astype(np.uint8)}
    (want,), (got,) = (list(evaluate(h, feed).values()) for h in (g, made))
    assert np.abs(want.astype(int) - got.astype(int)).max() <= 1
