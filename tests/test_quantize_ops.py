"""Quantization's ops where ONNX has nothing to compare with: formats, borders, what is no number, numbers around an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from knapper.compiler import ops  # noqa: F401  declares the ops
from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import DTYPES, OPS, Graph, IRError, Node, Type, infer
from knapper.compiler.ops.quantize import runs, ties
from knapper.isa.formats import FORMATS
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

F32 = np.float32
STORED = [
    (f.name, to)
    for f in FORMATS.values()
    for to in ("i8", "u8", "i16", "u16")
    if f.integral
    and np.iinfo(DTYPES[to]).min <= f.smallest
    and f.largest <= np.iinfo(DTYPES[to]).max
]
SMALL_FLOATS = ("ufloat4", "f4e2m1", "f6e2m3", "f6e3m2", "f8e4m3", "f8e5m2")


def quantized(x: Any, **attrs: Any) -> Any:
    return OPS["QuantizeLinear"].facets["reference"](x, np.array(1, F32), None, None, **attrs)


def on_the_emulator(name: str, operands: list[Any], attrs: dict[str, Any]) -> Any:
    inputs = tuple(f"x{k}" if a is not None else "" for k, a in enumerate(operands))
    types = infer(name, [None if a is None else Type.of(a) for a in operands], attrs)
    node = Node(name, inputs, ("y",), types, attrs, loc=name)
    arguments = {v: Type.of(a) for v, a in zip(inputs, operands, strict=True) if v}
    graph = Graph(name, arguments, {"y": "y"}, (node,))
    session = Session(compile_graph(graph, Machine.load("volta-8tc"), precision="fp32"))
    return session.run({v: a for v, a in zip(inputs, operands, strict=True) if v}).outputs["y"]


def awkward(values: Any) -> Any:
    """A format's values, what lies half way between them, the neighbours of both, and beyond the ends."""
    v = np.concatenate([values, (values[1:] + values[:-1]) / 2]).astype(F32)
    near = [v, np.nextafter(v, F32(np.inf)), np.nextafter(v, F32(-np.inf)), -v]
    special = [np.array([np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0], F32)]
    return np.concatenate(near + special)


@pytest.mark.parametrize(("name", "to"), STORED)
def test_values_of_formats_are_the_nearest(name: str, to: str) -> None:
    f = FORMATS[name]
    x = awkward(f.values)
    want = f.round(x, "up" if f.kind != "int" else "even")
    np.testing.assert_array_equal(quantized(x, to=to, format=name).astype(float), want)


@pytest.mark.parametrize("name", ["uflint4", "flint4", "pot4", "upot3", "u2", "i4", *SMALL_FLOATS])
def test_formats_have_the_same_bits_on_the_emulator(name: str) -> None:
    """Ties, neighbours of ties, infinities; NaN is 0, or stays one where floats are stored."""
    f = FORMATS[name]
    to = "f32" if name in SMALL_FLOATS else "i8" if f.signed else "u8"
    x = np.append(awkward(f.values), F32(np.nan)).reshape(1, -1)
    attrs = {"to": to, "format": name}
    got = on_the_emulator("QuantizeLinear", [x, np.array(1, F32)], attrs)
    np.testing.assert_array_equal(got, quantized(x, **attrs))
    assert np.isnan(got[0, -1]) if to == "f32" else got[0, -1] == 0


@pytest.mark.parametrize("name", [f.name for f in FORMATS.values() if f.kind != "int"])
def test_a_format_is_runs_of_multiples_of_powers_of_two(name: str) -> None:
    """What the lowering stands on."""
    if name == "f8e8m0":
        return  # no zero, and no number is rounded to it here
    f = FORMATS[name]
    for start, step in runs(f):
        assert np.frexp(step)[0] == 0.5
        assert start % step == 0
    assert ties(f) in ("up", "even")


def test_a_border_says_what_is_rounded_up() -> None:
    """AQuant's two examples: 2.3 is rounded down by the border .7629, 5.2 up by -.243."""
    x = np.array([2.3, 5.2], F32)
    a = np.array([[0.5, 0.5], [0.08 / 0.70, -0.05 / 0.35], [0, 0]], F32)
    q = OPS["QuantizeLinear"].facets["reference"](x, np.array(1, F32), None, a, axis=0)
    assert q.tolist() == [2, 6]
    half_up = np.array([0.5, 0, 0], F32)
    x = np.array([0.5, 1.5, 2.5, 2.4], F32)
    q = OPS["QuantizeLinear"].facets["reference"](x, np.array(1, F32), None, half_up, axis=0)
    assert q.tolist() == [1, 2, 3, 2]


def test_a_border_has_the_same_bits_on_the_emulator() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 30, (1, 8, 5, 6)).astype(F32)
    border = rng.uniform([[0.2], [-0.05], [-0.01]], [[0.8], [0.05], [0.01]], (3, 8)).astype(F32)
    operands = [x, np.array(0.37, F32), np.array(3, np.uint8), border]
    got = on_the_emulator("QuantizeLinear", operands, {"format": "u6"})
    want = OPS["QuantizeLinear"].facets["reference"](*operands, format="u6")
    np.testing.assert_array_equal(got, want)
    assert len(np.unique(got)) > 40


def test_a_number_around_an_image_is_a_pad() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (2, 4, 5, 6)).astype(np.uint8)
    w = rng.integers(-128, 128, (4, 2, 3, 2)).astype(np.int8)
    attrs = {"out": "i32", "group": 2}
    conv = OPS["Conv"].facets["reference"]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 2), (0, 1)), constant_values=77)
    got = conv(x, w, pads=(1, 0, 2, 1), pad_value=77, **attrs)
    np.testing.assert_array_equal(got, conv(padded, w, **attrs))
    with pytest.raises(IRError, match="only integers are padded"):
        infer("Conv", [Type("f32", x.shape), Type("f32", w.shape)], {"pad_value": 1, "group": 2})


WRONG = [
    (["f32[2,3]", "f32[2]"], {}, "a parameter is f32[2], expected [3]"),
    (["f32[2,3]", "f32[]"], {"to": "i32"}, "to='i32'"),
    (["f32[2,3]", "f32[]", "i8[]"], {}, "the zero point is i8[]"),
    (["f32[2,3]", "f32[]"], {"format": "uflint5", "to": "u8"}, "u8 does not hold the values"),
    (["f32[2,3]", "f32[]"], {"format": "flint9"}, "no format 'flint9'"),
    (["f32[2,3]", "f32[2,1]"], {"block_size": 2}, "expected [2,2]"),
    (["f32[2,3]", "f32[]", "u8[]", "f32[3,2]"], {}, "the border is f32[3,2], expected f32(3, 3)"),
]


@pytest.mark.parametrize(("operands", "attrs", "message"), WRONG)
def test_wrong_use_is_one_clear_error(
    operands: list[str], attrs: dict[str, Any], message: str
) -> None:
    def parsed(text: str) -> Type:
        dtype, _, sizes = text.rstrip("]").partition("[")
        return Type(dtype, tuple(map(int, filter(None, sizes.split(",")))))

    with pytest.raises(IRError) as e:
        infer("QuantizeLinear", [parsed(t) for t in operands], attrs)
    assert message in str(e.value)
