"""Other people's models: the classic topologies and every case of ONNX's own suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto
from onnx_models import Array

from knapper.compiler.ir import Graph, evaluate
from knapper.frontends.onnx import read
from knapper.isa.errors import KnapperError

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


# --- other people's models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_the_classic_topologies_are_read(file: Path) -> None:
    graph = read(file).verify()
    stored = TensorProto.FromString(file.with_name(f"{file.stem}_output_0.pb").read_bytes())
    (output,) = graph.outputs.values()
    assert graph.types()[output].shape == tuple(stored.dims)


UNLIKE_ONNXRUNTIME = {
    # onnxruntime, and we, align the corners of whole output sizes; the suite those of scale × size
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}


# onnx's own generators divide by zero and overflow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_onnx_own_cases_have_onnx_values() -> None:
    """Every case of ONNX's suite that imports evaluates to its stored outputs; most do import."""
    from onnx.backend.test.case.node import collect_testcases

    imported = 0
    for case in collect_testcases(None):
        inputs, outputs = case.data_sets[0] if case.data_sets else ((), ())
        if case.model is None or not all(
            isinstance(a, np.ndarray | np.generic) for a in (*inputs, *outputs)
        ):
            continue
        if case.name in UNLIKE_ONNXRUNTIME:
            continue
        graph = _imported(case.model, inputs)
        if graph is None or any(0 in t.shape for t in graph.inputs.values()):
            continue
        names = [i.name for i in case.model.graph.input]
        got = evaluate(graph, dict(zip(names, inputs, strict=False)))
        imported += 1
        for y, expected in zip(got.values(), outputs, strict=False):
            bits = 2 if expected.dtype.itemsize == 2 else 4
            _close(case.name, np.asarray(y), expected, {2: 1e-2, 4: 1e-4}[bits])
    assert imported > 1100


def _imported(proto: ModelProto, inputs: Sequence[Array]) -> Graph | None:
    """The case's graph; operands that decide shapes become constants. None if it does not import."""
    given = dict(zip((i.name for i in proto.graph.input), inputs, strict=False))
    first = dict(list(given.items())[:1])
    for consts in ({}, {n: a for n, a in given.items() if n not in first}, given):
        try:
            return read(proto, {n: a.shape for n, a in given.items() if n not in consts}, consts)
        except KnapperError as e:
            if "E204" not in str(e):
                return None
    return None


def _close(name: str, y: Array, expected: Array, tolerance: float) -> None:
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype), name
    got, want = (a if a.dtype.kind == "b" else a.astype(np.float64) for a in (y, expected))
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=name)
