"""Models as files: weights in them and beside them, what is no model, and what is damaged."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnx_models import IMAGE, f32, ints, model, node

from knapper.frontends.onnx import read
from knapper.isa.errors import FrontendError, KnapperError


def saved(proto: ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    w = f32(64, 64)
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 64)}, weights={"w": w})
    graph = read(saved(proto, tmp_path / "net.onnx"))
    (found,) = graph.constants.values()
    np.testing.assert_array_equal(found, w)
    assert not found.flags.owndata
    assert not found.flags.writeable


def external(tmp_path: Path) -> ModelProto:
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 64)}, weights={"w": f32(64, 64)})
    onnx.save(
        proto,
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="net.bin",
        size_threshold=0,
    )
    return onnx.load(tmp_path / "net.onnx", load_external_data=False)


def test_external_data_is_found_beside_the_model(tmp_path: Path) -> None:
    external(tmp_path)
    graph = read(tmp_path / "net.onnx").verify()
    assert [c.shape for c in graph.constants.values()] == [(64, 64)]


def test_external_data_that_is_missing_or_short_is_named(tmp_path: Path) -> None:
    external(tmp_path)
    (tmp_path / "net.bin").write_bytes(b"short")
    with pytest.raises(
        FrontendError, match=r"E207: .*tensor 'w': .*net.bin has 5 bytes, not 16384 from 0 on"
    ):
        read(tmp_path / "net.onnx")
    (tmp_path / "net.bin").unlink()
    with pytest.raises(FrontendError, match=r"E207: .*tensor 'w': cannot read .*net.bin"):
        read(tmp_path / "net.onnx")


def test_external_data_outside_the_models_folder_is_refused(tmp_path: Path) -> None:
    proto = external(tmp_path)
    proto.graph.initializer[0].external_data[0].value = "../../etc/passwd"
    with pytest.raises(FrontendError, match=r"E207.*points outside the model's folder"):
        read(saved(proto, tmp_path / "hostile.onnx"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\x7fELF\x02\x01\x01", "an ELF file; `knapper run`"),
        (b"PK\x03\x04 zip", "a zip archive"),
        (b"\x1c\x00\x00\x00TFL3 flat", "a TFLite model"),
        (b"hello, I am a model\n", "a text file"),
        (b"\x08\x08", "no ONNX model, or not all of one (2 bytes)"),
        (b"\xff" * 64, "no ONNX model, or not all of one"),
    ],
    ids=["empty", "elf", "zip", "tflite", "text", "no graph", "noise"],
)
def test_what_is_no_model_is_recognized(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(
        FrontendError, match=rf"^E201: {re.escape(str(path))}: .*{re.escape(reason)}"
    ):
        read(path)


def _outcome(path: Path) -> str:
    try:
        read(path)
    except KnapperError as e:
        return "error" if str(path) in str(e) else f"error without a place: {e}"
    return "graph"


def test_damaged_files_give_errors_and_never_crash(tmp_path: Path) -> None:
    """Cut off at every length and with thousands of flipped bits: a Graph or a KnapperError."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Shape", ["c"], ["s"], "shape"),
        node("Slice", ["s", "zero", "two"], ["b"], "slice"),
        node("Concat", ["b", "minus"], ["t"], "concat", axis=0),
        node("Reshape", ["c", "t"], ["r"], "reshape"),
        node("Softmax", ["r"], ["y"], "softmax", axis=2),
    ]
    weights = {"w": f32(3, 2, 3, 3), "zero": ints(0), "two": ints(2), "minus": ints(-1)}
    whole = model(nodes, {"x": IMAGE}, weights=weights, opset=11).SerializeToString()
    path = tmp_path / "net.onnx"
    rng, outcomes = random.Random(0), {"graph": 0, "error": 0}
    damaged = [whole[:n] for n in range(1, len(whole), 3)]
    for _ in range(1500):
        bits = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 4])):
            bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(bits))
    for content in damaged:
        path.write_bytes(content)
        outcomes[_outcome(path)] += 1
    assert outcomes["error"] > 500
    assert outcomes["graph"] > 50
