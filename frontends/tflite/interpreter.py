"""TFLite's own interpreter, to compare a conversion with.

`knapper check model.tflite` compares the emulator with onnxruntime, node by node, on the ONNX model that the file became; and that
model's outputs with the interpreter's here, by TFLite's own kernels. So what is wrong is either the conversion or what comes after it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from knapper.compiler.ir import Array
from knapper.isa.errors import KnapperError

LEAST = 0.99
"""Cosine below which a conversion is wrong. Quantized activations of a deep network leave 0.999 or so, floats 1."""


def agreement(path: Path, feed: Mapping[str, Array], converted: Mapping[str, Array]) -> str:
    """How far the conversion's outputs are from the interpreter's, in words; KnapperError E706 if they are others."""
    try:
        expected = run(path, feed)
    except (LookupError, RuntimeError, ValueError) as e:
        return f"TFLite's interpreter does not run it: {next(iter(str(e).splitlines()), '')}"
    if expected is None:
        return "not compared with TFLite's interpreter, whose states begin as zeros"
    said = []
    for name, r in expected.items():
        y = converted[name]
        if y.shape != r.shape or y.dtype != r.dtype:
            spelled = [f"{a.dtype}{list(a.shape)}" for a in (y, r)]
            problem = f"output {name!r} is converted to {spelled[0]}, TFLite's is {spelled[1]}"
            raise KnapperError("E706", problem, where=str(path))
        cosine, words = _apart(y, r)
        if not cosine >= LEAST:
            problem = f"output {name!r} of the conversion is not TFLite's: cosine {cosine:.4f}, {words}"  # fmt: skip
            raise KnapperError("E706", problem, where=str(path))
        said.append(f"{name} {words}")
    return f"the conversion in onnxruntime against TFLite's interpreter: {'; '.join(said)}"


def run(path: Path, feed: Mapping[str, Array]) -> dict[str, Array] | None:
    """Outputs by tensor name; None if a state that is fed is not what the interpreter begins with."""
    litert: Any = import_module("ai_edge_litert.interpreter")
    plain = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        it = litert.Interpreter(str(path), experimental_op_resolver_type=plain, num_threads=1)
    inputs = {d["name"]: d["index"] for d in it.get_input_details()}
    if any(np.any(a) for n, a in feed.items() if n not in inputs):
        return None
    for name, index in inputs.items():
        it.resize_tensor_input(index, feed[name].shape)
    it.allocate_tensors()
    for name, index in inputs.items():
        it.set_tensor(index, feed[name])
    it.invoke()
    return {d["name"]: it.get_tensor(d["index"]) for d in it.get_output_details()}


def _apart(y: Array, r: Array) -> tuple[float, str]:
    """(cosine, the largest distance in words)"""
    a, b = (np.asarray(v, np.float64).ravel() for v in (y, r))
    far = float(np.abs(a - b).max(initial=0))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / length if length else float(far == 0)
    if np.array_equal(a, b, equal_nan=True):
        return 1.0, "the same"
    if y.dtype.kind in "iu":
        return cosine, f"{far:.0f} steps at most, {np.mean(a != b):.2%} of elements"
    return cosine, f"max |y-r| {far:.3g}"
