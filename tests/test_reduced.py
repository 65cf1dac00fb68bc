"""What a node says of its reduction: how many elements a thread takes one after the other."""

from __future__ import annotations

from typing import Any

import pytest

from knapper.compiler.codegen.simd.reduced import serial
from knapper.compiler.ir import Node, Type, infer

CASES: list[tuple[str, tuple[int, ...], dict[str, Any], int]] = [
    ("GlobalAveragePool", (16, 28, 28, 128), {"layout": "NHWC"}, 49),
    ("GlobalAveragePool", (16, 128, 28, 28), {"layout": "NCHW"}, 25),
    ("Softmax", (12, 128), {"axis": -1}, 4),
    ("ReduceSum", (12, 128), {"axes": (1,)}, 4),
    ("ReduceLogSumExp", (12, 128), {"axes": (1,)}, 4),
    ("ReduceLogSumExp", (128, 12), {"axes": (0,)}, 8),
    ("ReduceSum", (12, 16), {"axes": (1,)}, 16),
    ("Relu", (12, 128), {}, 1),
]


@pytest.mark.parametrize(("op", "shape", "attrs", "steps"), CASES, ids=str)
def test_threads_share_what_is_long(
    op: str, shape: tuple[int, ...], attrs: dict[str, Any], steps: int
) -> None:
    x = Type("f32", shape)
    assert serial(Node(op, ("x",), ("y",), infer(op, [x], attrs), attrs), {"x": x}) == steps
