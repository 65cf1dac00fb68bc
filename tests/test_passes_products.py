"""Transposed convolutions, einsums and convolutions over three axes run as Conv and MatMul: the contract's bits, counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from knapper.compiler import pipeline
from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import OPS, Array, Graph, Node, Type, evaluate, infer
from knapper.frontends.onnx import read
from knapper.isa.errors import IRError
from knapper.isa.machine import Machine
from knapper.runtime.session import Result, Session

MACHINE = Machine.load("volta-8tc")


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def one(op: str, operands: list[Array], constants: bool, **attrs: Any) -> Graph:
    """A graph of one op; all operands but the first are constants, or all are inputs."""
    names = [f"x{i}" for i in range(len(operands))]
    types = infer(op, [*map(Type.of, operands)], attrs)
    values = dict(zip(names, operands, strict=True))
    known = {v: values[v] for v in names[1:]} if constants else {}
    inputs = {v: Type.of(a) for v, a in values.items() if v not in known}
    node = Node(op, tuple(names), ("y",), types, attrs, op)
    return Graph("g", inputs, {"y": "y"}, (node,), known).verify()


def run(g: Graph, operands: list[Array], precision: str) -> Result:
    feeds = {v: a for i, a in enumerate(operands) if (v := f"x{i}") in g.inputs}
    return Session(compile_graph(g, MACHINE, precision=precision)).run(feeds)


def in_f16(op: str, operands: list[Array], **attrs: Any) -> Array:
    """The op's own reference: factors in f16, the bias in f32, one rounding."""
    factors = [a.astype(np.float16) for a in operands[:2]]
    y: Array = OPS[op].facets["reference"](*factors, *operands[2:], **attrs)
    return y.astype(np.float32)


def onnxruntime_of(op: str, operands: list[Array], **attrs: Any) -> Array:
    names = [f"x{i}" for i in range(len(operands))]
    value = onnx.helper.make_tensor_value_info
    inputs = [value(v, 1, a.shape) for v, a in zip(names, operands, strict=True)]
    node = onnx.helper.make_node(op, names, ["y"], **attrs)
    proto = onnx.helper.make_graph([node], "g", inputs, [value("y", 1, None)])
    model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 10
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y: Array = session.run(None, dict(zip(names, operands, strict=True)))[0]
    return y


def close(got: Array, want: Array) -> bool:
    return got.shape == want.shape and bool(np.allclose(got, want, 1e-5, 1e-5))


# --- ConvTranspose ------------------------------------------------------------------------------

TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "2x2, stride 2": ((2, 8, 4, 5), (8, 12, 2, 2), {"strides": (2, 2)}),
    "3x3, stride 2, odd": ((1, 4, 5, 6), (4, 6, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "4x4, depthwise": (
        (1, 6, 5, 4),
        (6, 1, 4, 4),
        {"strides": (2, 2), "pads": (1, 1, 1, 1), "group": 6},
    ),
    "groups, dilated, output padding": (
        (1, 4, 4, 3),
        (4, 3, 3, 2),
        {"strides": (3, 2), "dilations": (2, 3), "output_padding": (2, 1), "group": 2},
    ),
    "stride 1": ((1, 3, 4, 4), (3, 2, 3, 3), {"pads": (1, 0, 0, 1)}),
    "fewer taps than stride": ((1, 4, 3, 3), (4, 2, 1, 2), {"strides": (3, 2)}),
    "pads that cut pixels off": ((1, 2, 4, 4), (2, 2, 2, 2), {"pads": (2, 1, 0, 3)}),
    "one axis": ((2, 3, 7), (3, 4, 5), {"strides": (2,), "pads": (1, 2)}),
    "three axes": ((1, 2, 2, 3, 3), (2, 2, 2, 3, 1), {"strides": (2, 1, 1)}),
}


@pytest.mark.parametrize("constants", [True, False], ids=["weights", "computed"])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_a_transposed_convolution_has_the_bits_of_its_reference(case: str, constants: bool) -> None:
    x, w, attrs = TRANSPOSED[case]
    operands = drawn(x, w, (w[1] * attrs.get("group", 1),))
    g = one("ConvTranspose", operands, constants, **attrs)
    wide, narrow = (run(g, operands, p) for p in ("fp32", "fp16"))
    assert (wide.outputs["y"] == OPS["ConvTranspose"].facets["reference"](*operands, **attrs)).all()
    assert (narrow.outputs["y"] == in_f16("ConvTranspose", operands, **attrs)).all()
    assert 0 < narrow.stats.macs <= narrow.stats.macs_executed


@pytest.mark.parametrize(
    "attrs",
    [
        *(attrs for _, w, attrs in TRANSPOSED.values() if len(w) == 4),
        {"auto_pad": "SAME_UPPER", "strides": (2, 3)},
        {"auto_pad": "SAME_LOWER", "strides": (2, 2)},
        {"output_shape": (9, 7), "strides": (2, 2)},
    ],
    ids=str,
)
def test_onnxruntime_agrees(attrs: dict[str, Any]) -> None:
    x, w = (1, 6, 4, 3), (6, 2, 3, 3)
    operands = drawn(x, w, (2 * attrs.get("group", 1),))
    want = onnxruntime_of("ConvTranspose", operands, **attrs)
    node = onnx.helper.make_node("ConvTranspose", ["x0", "x1", "x2"], ["y"], **attrs)
    value = onnx.helper.make_tensor_value_info
    inputs = [value(f"x{i}", 1, a.shape) for i, a in enumerate(operands)]
    proto = onnx.helper.make_graph([node], "g", inputs, [value("y", 1, want.shape)])
    model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", 17)])
    assert close(run(read(model), operands, "fp32").outputs["y"], want)


def scattered(x: Array, w: Array, s: Any, d: Any, extra: Any, pads: Any, group: int) -> Array:
    """Every pixel times every tap, added where it goes: the definition, in exact integers."""
    n, (images, c, *sizes), (_, per_group, *kernel) = len(s), x.shape, w.shape
    full = [s[i] * (sizes[i] - 1) + extra[i] + d[i] * (kernel[i] - 1) + 1 for i in range(n)]
    y = np.zeros((images, per_group * group, *full), np.float32)
    for i, t in ((i, t) for i in np.ndindex(*sizes) for t in np.ndindex(*kernel)):
        o = tuple(i[a] * s[a] + t[a] * d[a] for a in range(n))
        taken = x[(..., *i)].reshape(images, group, -1)
        tap = w[(..., *t)].reshape(group, c // group, per_group)
        y[(..., *o)] += np.einsum("ngc,gco->ngo", taken, tap).reshape(images, -1)
    kept = [slice(pads[i], full[i] - pads[n + i]) for i in range(n)]
    return y[(slice(None), slice(None), *kept)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_phases_meet_every_pixel_by_every_tap_once(data: st.DataObject) -> None:
    n, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))

    def numbers(low: int, high: int, count: int = n) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(count))

    sizes, kernel, s, d = (numbers(1, 4) for _ in range(4))
    extra = tuple(data.draw(st.integers(0, max(a, b) - 1)) for a, b in zip(s, d, strict=True))
    pads, per_group = numbers(0, 4, 2 * n), data.draw(st.integers(1, 2))
    rng = np.random.default_rng(math.prod(sizes))
    x = rng.integers(-3, 4, (2, 2 * group, *sizes)).astype(np.float32)
    w = rng.integers(-3, 4, (2 * group, per_group, *kernel)).astype(np.float32)
    want = scattered(x, w, s, d, extra, pads, group)
    assume(want.size)
    attrs = {"strides": s, "dilations": d, "pads": pads, "output_padding": extra, "group": group}
    g = one("ConvTranspose", [x, w], True, **attrs)
    lowered = pipeline.run(g, pipeline.parse("products"))
    assert "ConvTranspose" not in {n.op for n in lowered.nodes}
    assert (evaluate(g, {"x0": x})["y"] == want).all()
    assert (evaluate(lowered, {"x0": x})["y"] == want).all()


def test_where_strides_meet_no_padding_the_macs_are_those_of_the_definition() -> None:
    x, w = (2, 16, 8, 8), (16, 16, 2, 2)
    operands = drawn(x, w)
    result = run(one("ConvTranspose", operands, True, strides=(2, 2)), operands, "fp16")
    assert result.stats.macs == math.prod(x) * math.prod(w[1:])


# --- Conv over three axes -----------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2])
def test_a_convolution_over_three_axes_has_the_bits_of_its_reference(group: int) -> None:
    operands = drawn((1, 4, 4, 5, 5), (6, 4 // group, 2, 3, 2), (6,))
    attrs: dict[str, Any] = {
        "strides": (1, 2, 1),
        "dilations": (2, 1, 1),
        "pads": (1, 1, 0, 0, 1, 1),
        "group": group,
    }
    result = run(one("Conv", operands, True, **attrs), operands, "fp16")
    assert (result.outputs["y"] == in_f16("Conv", operands, **attrs)).all()
    assert close(
        run(one("Conv", operands, True, **attrs), operands, "fp32").outputs["y"],
        onnxruntime_of("Conv", operands, **attrs),
    )
    assert result.stats.macs == result.outputs["y"].size * math.prod(operands[1].shape[1:])


# --- Einsum -------------------------------------------------------------------------------------

CONTRACTIONS = {
    "bhqd,bhkd->bhqk": 2 * 3 * 4 * 5 * 6,
    "bqhd,bkhd->bhqk": 2 * 3 * 4 * 5 * 6,
    "bhqk,bhkd->bqhd": 2 * 3 * 4 * 5 * 6,
    "...qd,de->...qe": 2 * 3 * 4 * 6 * 6,
    "qk,kd": 4 * 5 * 6,
    "kq,dk->dq": 4 * 5 * 6,
    "bqk,bqk->b": 2 * 4 * 5,
    "k,k->": 5,
    "qkd,dk->q": 4 * 5 * 6,
    "bk,kq->": 2 * 4 * 5,
    "qk,d->qd": 4 * 5 * 6,
    "qkk,kd->qd": 4 * 5 * 6,
}
"""Equation → multiply-accumulates."""
SIZES = {"b": 2, "h": 3, "q": 4, "k": 5, "d": 6, "e": 6}


def shapes_of(equation: str) -> list[tuple[int, ...]]:
    terms = equation.split("->")[0].replace("...", "bh").split(",")
    return [tuple(SIZES[c] for c in t) for t in terms]


@pytest.mark.parametrize("equation", CONTRACTIONS)
def test_a_contraction_has_the_bits_of_its_reference(equation: str) -> None:
    operands = drawn(*shapes_of(equation))
    g = one("Einsum", operands, False, equation=equation)
    wide, narrow = (run(g, operands, p) for p in ("fp32", "fp16"))
    assert (
        wide.outputs["y"] == OPS["Einsum"].facets["reference"](*operands, equation=equation)
    ).all()
    assert close(wide.outputs["y"], np.einsum(equation, *operands))
    rounded = [a.astype(np.float16).astype(np.float32) for a in operands]
    chain = OPS["Einsum"].facets["reference"](*rounded, equation=equation)
    stored = chain.astype(np.float16)  # where a Transpose follows
    assert any((narrow.outputs["y"] == want).all() for want in (chain, stored))
    assert narrow.stats.macs == wide.stats.macs == CONTRACTIONS[equation]
    assert min(r.stats.macs_executed for r in (wide, narrow)) >= narrow.stats.macs


@pytest.mark.parametrize("equation", ["kk,kk->k", "q,k->kq", "bq,bqd->bqd"])
def test_a_product_that_sums_nothing_is_no_matrix_product(equation: str) -> None:
    operands = drawn(*shapes_of(equation))
    result = run(one("Einsum", operands, False, equation=equation), operands, "fp32")
    assert (result.outputs["y"] == np.einsum(equation, *operands)).all()
    assert result.stats.macs == 0


@pytest.mark.parametrize(
    "equation",
    ["qk,kd,db->qb", "bq,kd,qk->bd", "q,k,d->qkd", "qk->kq", "bqk->kb", "kk", "qkqk->kq"],
)
def test_chains_sums_and_diagonals_agree_with_onnxruntime(equation: str) -> None:
    operands = drawn(*shapes_of(equation))
    g = one("Einsum", operands, False, equation=equation)
    got = run(g, operands, "fp32").outputs["y"]
    assert close(got, onnxruntime_of("Einsum", operands, equation=equation))


@pytest.mark.parametrize(
    "equation", ["qk,kd->qd", "qk,dk->qd", "kq,kd->qd", "qk,kd->dq", "bqk,bkd->bqd"]
)
def test_what_lies_ready_is_not_moved(equation: str) -> None:
    """MatMul swaps the last axes of its operands by itself, and may take them in either order."""
    g = one("Einsum", drawn(*shapes_of(equation)), False, equation=equation)
    made = pipeline.run(g, pipeline.parse("products,simplify"))
    assert [n.op for n in made.nodes] == ["MatMul"]


def test_no_kernel_computes_what_the_pass_did_not_lower() -> None:
    """TVM would multiply and add with two roundings, in an order that it does not promise."""
    assert not {"relax"} & (OPS["Einsum"].facets.keys() | OPS["ConvTranspose"].facets.keys())


def test_an_einsum_of_wrong_sizes_says_which() -> None:
    with pytest.raises(IRError, match="'k' is 5 in one place and 4 in another"):
        infer("Einsum", [Type("f32", (2, 5)), Type("f32", (4, 2))], {"equation": "qk,kd->qd"})
