"""DFT against numpy's transforms: odd lengths, lengths that cut or fill up, halves of spectra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from knapper.compiler.ir import evaluate
from knapper.frontends.onnx import read
from knapper.isa.errors import FrontendError


def spectrum(shape: tuple[int, ...], length: int | None, **attrs: int) -> ModelProto:
    """A DFT along axis 1."""
    numbers = {"axis": 1} | ({} if length is None else {"length": length})
    operands = ["x", "length" if length is not None else "", "axis"]
    graph = helper.make_graph(
        [helper.make_node("DFT", operands, ["y"], **attrs)],
        "spectrum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(n, np.int64), name) for name, n in numbers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def parts(z: Any) -> Any:
    """Complex numbers as ONNX has them; real ones are without the other part."""
    return np.stack([z.real, z.imag], -1) if np.iscomplexobj(z) else z[..., None]


@given(st.integers(1, 13), st.none() | st.integers(1, 16), st.sampled_from(["fft", "ifft", "rfft", "irfft"]))  # fmt: skip
def test_transforms_are_those_of_numpy(n: int, length: int | None, kind: str) -> None:
    if kind == "irfft" and n == 1 and length is None:
        n = 2
    rng = np.random.default_rng(n)
    x = rng.standard_normal((2, n, 3, 1 if kind == "rfft" else 2), np.float32)
    z = x[..., 0] if kind == "rfft" else x[..., 0] + 1j * x[..., 1]
    attrs = {"inverse": int(kind in ("ifft", "irfft")), "onesided": int("r" in kind)}
    got = evaluate(read(spectrum(x.shape, length, **attrs)), {"x": x})["y"]
    want = parts(getattr(np.fft, kind)(z, length, axis=1))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "length"), [(1, None), (4, 0)])
def test_a_transform_of_no_length_is_refused(n: int, length: int | None) -> None:
    with pytest.raises(FrontendError, match="length 0"):
        read(spectrum((2, n, 3, 2), length, inverse=1, onesided=1))
