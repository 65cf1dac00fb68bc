"""The papers' networks: their multiply-accumulates against closed forms, their values against onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import Array, Graph
from knapper.frontends.compare import COSINE
from knapper.frontends.networks import NETWORKS, build, segmenters, sketch, transformers, write
from knapper.frontends.networks.detectors import PROPOSALS
from knapper.frontends.onnx import read
from knapper.isa.errors import UsageError
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

SMALL: dict[str, Any] = {
    "alexnet": partial(build, "alexnet", size=67),
    "vgg16": partial(build, "vgg16", size=32),
    "inception_v1": partial(build, "inception_v1"),
    "resnet18": partial(build, "resnet18", size=32),
    "resnet50": partial(build, "resnet50", size=32),
    "bert_base": lambda batch=1: transformers.bert_base(batch, 16, layers=2),
    "minilm": lambda batch=1: transformers.minilm(batch, 16, layers=2),
    "detector": partial(build, "detector", size=64),
    "detector_head": partial(build, "detector_head"),
    "segmentation": partial(build, "segmentation", size=32),
}
"""Every network at a size that is quick to build and run."""


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.load("volta-8tc")


def feeds(model: ModelProto, seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input
    }
    return {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}


def onnxruntime(model: ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))


def cosine(a: Array, b: Array) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


# --- multiply-accumulates


def macs(g: Graph) -> int:
    """Of convolutions and matrix products, from the types alone."""
    t, total = g.types(), 0
    for n in g.nodes:
        if n.op in ("Conv", "Gemm", "MatMul"):
            a, b = (t[v].shape for v in n.inputs[:2])
            k = np.prod(b[1:]) if n.op == "Conv" else a[-1]
            total += n.types[0].count * int(k)
    return total


def alexnet_macs() -> int:
    filters = [(55, 96, 3, 11), (27, 256, 96, 5), (13, 384, 256, 3), (13, 384, 384, 3), (13, 256, 384, 3)]  # fmt: skip
    convolutions = sum(side**2 * o * c * k**2 for side, o, c, k in filters)
    return convolutions + 6**2 * 256 * 4096 + 4096 * 4096 + 4096 * 1000


def vgg16_macs() -> int:
    total, c = 0, 3
    for stage, (layers, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        for _ in range(layers):
            total, c = total + (224 >> stage) ** 2 * width * c * 9, width
    return total + 7**2 * 512 * 4096 + 4096 * 4096 + 4096 * 1000


def resnet50_macs() -> int:
    total, c, side = 112**2 * 64 * 3 * 49, 64, 56
    for stage, (blocks, w) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            before, side = side, side // 2 if stage and not block else side
            total += before**2 * c * w + side**2 * w * w * 9 + side**2 * w * 4 * w
            total += side**2 * c * 4 * w if not block else 0
            c = 4 * w
    return total + c * 1000


def encoder_macs(h: int, layers: int) -> int:
    s = 128
    return layers * (4 * s * h * h + 2 * s * s * h + 2 * s * h * 4 * h)


CLOSED_FORMS: dict[str, Any] = {
    "alexnet": alexnet_macs,
    "vgg16": vgg16_macs,
    "resnet50": resnet50_macs,
    "resnet18": lambda: 1_814_073_344,
    "bert_base": partial(encoder_macs, 768, 12),
    "minilm": partial(encoder_macs, 384, 6),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_multiply_accumulates_are_those_of_the_paper_s_layers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sketch, transformers):  # at full size, where weights of zeros are quicker
        monkeypatch.setattr(module, "he", lambda rng, shape, *_: np.zeros(shape, np.float32))
    assert macs(read(build(name))) == CLOSED_FORMS[name]()


# --- values


@pytest.mark.parametrize("name", SMALL)
def test_network_is_legal_and_its_weights_are_the_same_each_time(name: str) -> None:
    model = SMALL[name]()
    onnx.checker.check_model(model)
    assert model.SerializeToString() == SMALL[name]().SerializeToString()


@pytest.mark.parametrize("name", [n for n in SMALL if n != "detector"])
def test_network_computes_what_onnxruntime_computes(
    name: str, machine: Machine, tmp_path: Path
) -> None:
    model = SMALL[name]()
    inputs = feeds(model)
    want = onnxruntime(model, inputs)
    got = Session(compile_graph(read(model), machine, cache=tmp_path)).run(inputs).outputs
    assert got.keys() == want.keys()
    for output, y in want.items():
        assert len(np.unique(y)) > 1, "a constant would agree with anything"
        if y.dtype.kind == "f":
            assert cosine(got[output], y) > COSINE
        else:
            assert (got[output] == y).mean() > 0.98


def stricter(model: ModelProto, least: float) -> ModelProto:
    """The detector with another threshold for scores."""
    nms = next(n for n in model.graph.node if n.op_type == "NonMaxSuppression")
    (old,) = (t for t in model.graph.initializer if t.name == nms.input[4])
    old.CopyFrom(onnx.numpy_helper.from_array(np.array(least, np.float32), old.name))
    return model


@pytest.mark.parametrize("least", [0.8, 0.05])
def test_detector_chooses_and_classifies_what_onnxruntime_does(
    least: float, machine: Machine, tmp_path: Path
) -> None:
    model = stricter(SMALL["detector"](), least)
    inputs = feeds(model)
    want = onnxruntime(model, inputs)
    assert (1 < len(want["boxes"]) < PROPOSALS) == (least == 0.8), "the data decides how many"
    program = compile_graph(read(model), machine, precision="fp32", cache=tmp_path)
    got = Session(program).run(inputs).outputs
    for output, y in want.items():
        assert got[output].shape == y.shape
        assert cosine(got[output], y) > COSINE


def test_in_fp16_the_detector_chooses_nearly_the_same_boxes(
    machine: Machine, tmp_path: Path
) -> None:
    """Scores that are closer than f16 can tell may change places, and then which of two boxes suppresses the other."""
    model = SMALL["detector"]()
    inputs = feeds(model)
    want = onnxruntime(model, inputs)["boxes"]
    got = Session(compile_graph(read(model), machine, cache=tmp_path)).run(inputs).outputs["boxes"]
    apart = np.abs(want[:, None] - got[None]).max(-1)  # pixels
    assert (apart.min(1) < 0.5).mean() > 0.8


@pytest.mark.parametrize("name", ["inception_v1", "bert_base", "detector", "segmentation"])
def test_a_batch_is_as_many_times_one(name: str) -> None:
    two = SMALL[name](batch=2)
    inputs = feeds(two)
    together = onnxruntime(two, inputs)
    first = onnxruntime(SMALL[name](), {n: a[:1] for n, a in inputs.items()})
    for output, y in first.items():
        np.testing.assert_allclose(together[output][: len(y)], y, 2e-2, 1e-4)


def test_every_network_of_the_table_is_tested() -> None:
    assert SMALL.keys() == NETWORKS.keys()
    assert all(n.doc for n in NETWORKS.values())


# --- parts


def test_gaussians_sum_to_one_and_fall() -> None:
    for sigma, reach, distance in segmenters.FILTERS.values():
        taps = segmenters.gaussian(sigma, reach, distance)
        assert len(taps) == 2 * reach + 1
        assert taps.sum() == pytest.approx(1)
        assert (np.diff(taps[: reach + 1]) > 0).all()


def test_the_field_makes_a_lone_label_yield_to_its_neighbours() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(SMALL["segmentation"]())
    crf = next(n for n in model.graph.node if n.op_type == "MeanField")
    constants = [t for t in model.graph.initializer if t.name in crf.input]
    unary = np.zeros((1, segmenters.LABELS, 15, 15), np.float32)
    unary[:, 3] = 2
    unary[:, :, 7, 7] = 0
    unary[:, 5, 7, 7] = 3  # one pixel that says otherwise
    lone = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node(
                    "MeanField", ["unary", *crf.input[1:]], ["q"], domain="knapper"
                )
            ],
            "crf",
            [onnx.helper.make_tensor_value_info("unary", 1, unary.shape)],
            [onnx.helper.make_empty_tensor_value_info("q")],
            constants,
        ),
        opset_imports=model.opset_import,
        functions=model.functions,
        ir_version=model.ir_version,
    )
    (q,) = onnxruntime(lone, {"unary": unary}).values()
    assert unary.argmax(1)[0, 7, 7] == 5
    assert (q.argmax(1) == 3).all()


# --- the ways to get one


def test_a_network_is_written_for_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "segmentation.onnx"
    arguments = ["segmentation", "-o", str(path), "--size", "32"]
    subprocess.run(
        [sys.executable, "-m", "knapper.frontends.networks", *arguments],
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parent.parent / ".ns")},
    )
    written = path.read_bytes()
    write("segmentation", path, size=32)
    assert path.read_bytes() == written
    assert str(read(path)) == str(read(onnx.load(path)))


def test_what_there_is_not_is_told() -> None:
    with pytest.raises(UsageError, match="no network 'lenet'"):
        build("lenet")
    with pytest.raises(UsageError, match="224×224, not 64×64"):
        build("inception_v1", size=64)
