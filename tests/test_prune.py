"""Pruned networks: the pass, the command, and the same bits whichever kernels skip the zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

import knapper
from knapper.compiler.ir import Graph, evaluate
from knapper.compiler.passes.prune import Prune, weights
from knapper.compiler.pipeline import parse
from knapper.compiler.pipeline import run as run_passes
from knapper.compiler.sparsity import sidecar
from knapper.frontends import cli
from knapper.frontends.networks.sketch import Sketch, he
from knapper.frontends.onnx import read
from knapper.isa.errors import KnapperError

Array = NDArray[Any]


def network() -> onnx.ModelProto:
    """Three convolutions of which one is strided, ReLUs, a residual, and a classifier."""
    s = Sketch("pruned")

    def conv(x: str, k: int, n: int, stride: int = 1) -> str:
        w = s.constant(he(s.rng, (n, k, 3, 3), 9 * k))
        b = s.constant(s.rng.standard_normal(n, np.float32) * np.float32(0.1))
        return s.node("Conv", x, w, b, pads=[1] * 4, strides=[stride] * 2)

    x = s.node("Relu", conv("input", 16, 32))
    y = s.node("Relu", s.node("Add", conv(s.node("Relu", conv(x, 32, 32)), 32, 32), x))
    z = s.node("Relu", conv(y, 32, 64, 2))
    flat = s.node("Flatten", s.node("GlobalAveragePool", z), axis=1)
    out = s.node("MatMul", flat, s.constant(he(s.rng, (64, 48), 64)))
    return s.model({"input": (2, 16, 12, 12)}, {"output": (out, TensorProto.FLOAT, (2, 48))})


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network()


@pytest.fixture(scope="module")
def graph(model: onnx.ModelProto) -> Graph:
    return read(model)


@pytest.fixture(scope="module")
def x() -> dict[str, Array]:
    return {"input": np.random.default_rng(0).standard_normal((2, 16, 12, 12), np.float32)}


def answer(model: onnx.ModelProto, pipeline: str, target: str, x: dict[str, Array]) -> Array:
    image = knapper.compile(model, target=target, pipeline=pipeline)
    found: Array = image.run(x, timing=False).outputs["output"]
    return found


# --- the pass


def test_pruning_is_multiplying_by_masks(graph: Graph, x: dict[str, Array]) -> None:
    pruned = Prune("tw", 0.5, 16).run(graph)
    by_hand = {
        n: np.where(pruned.constants[n] != 0, w, 0).astype(w.dtype)
        for n, w in graph.constants.items()
    }
    theirs = evaluate(graph.with_(constants=by_hand), x)["output"]
    assert (evaluate(pruned, x)["output"] == theirs).all()
    sizes = [(np.count_nonzero(pruned.constants[w.name]), w.array.size) for w in weights(graph)]
    assert len(sizes) == 5
    assert sum(n for n, _ in sizes) / sum(n for _, n in sizes) == pytest.approx(0.5, abs=0.01)


def test_layers_can_be_left_out(graph: Graph) -> None:
    pruned = Prune("ew", 0.5, layers="Conv").run(graph)
    assert {w.node.op for w in weights(pruned) if (w.array == 0).any()} == {"Conv"}
    with pytest.raises(KnapperError, match="no weights are called"):
        Prune("ew", layers="fc9").run(graph)


def test_zeros_are_named_in_the_types_of_what_is_compiled(graph: Graph) -> None:
    done = run_passes(graph, parse("prune{pattern=tw,sparsity=0.7,granularity=16},fp16"))
    named = {str(e) for e in done.encodings.values()}
    assert "tw{tile=16}" in named
    assert not run_passes(graph, parse("fp16")).encodings


# --- the same bits everywhere

PATTERNS = {
    "ew": "", "vw": "", "nm": "", "bw": ",block=[16,16]", "tw": ",granularity=16", "tew": ",granularity=16,delta=0.02", "tvw": ",granularity=32",
}  # fmt: skip
TARGETS = {"volta-8tc": "", "sma3": "", "tpu-v2": "", "ampere": "", "dstc": ",bitmap{force=true}"}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pruned_networks_have_the_bits_of_dense_ones(
    pattern: str, model: onnx.ModelProto, x: dict[str, Array]
) -> None:
    prune = f"prune{{pattern={pattern},sparsity=0.7{PATTERNS[pattern]}}}"
    unnamed = "fold,dead,simplify,bn,idioms,products,fold,simplify,layout,precision,fold,dead,fuse"
    dense = answer(model, f"{prune},{unnamed}", "volta-8tc", x)
    assert np.isfinite(dense).all()
    for target, more in TARGETS.items():
        assert (answer(model, f"{prune},fp16{more}", target, x) == dense).all(), target


# --- the command


def knap(*args: object) -> int:
    return cli.run([str(a) for a in args])


def test_a_model_is_pruned_and_its_masks_prune_it_again(
    model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, pruned, again, masks = (tmp_path / n for n in ("m.onnx", "p.onnx", "q.onnx", "m.json"))
    onnx.save(model, dense)
    assert knap("prune", dense, "--sparsity", 0.6, "-g", 16, "-o", pruned, "--masks", masks) == 0
    assert "tw{tile=16}" in capsys.readouterr().out
    assert knap("prune", dense, "--apply", masks, "-o", again) == 0
    assert pruned.read_bytes() == again.read_bytes()
    before, after = (onnx.load(f) for f in (dense, pruned))
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
    onnx.checker.check_model(after)


def test_masks_are_those_that_were_given_or_chosen(model: onnx.ModelProto, tmp_path: Path) -> None:
    """Not what is zero: a weight that stays may be a zero."""
    dense, chosen, again = (tmp_path / n for n in ("m.onnx", "a.json", "b.json"))
    zeros = onnx.ModelProto.FromString(model.SerializeToString())
    first = zeros.graph.initializer[0]
    w = onnx.numpy_helper.to_array(first).copy()
    w[:, :4] = 0
    first.CopyFrom(onnx.numpy_helper.from_array(w, first.name))
    onnx.save(zeros, dense)
    assert knap("prune", dense, "--pattern", "vw", "--sparsity", 0.25, "--masks", chosen) == 0
    read = sidecar.read(chosen)
    assert all(m.mask.mean() == pytest.approx(0.75, abs=0.01) for m in read.values())
    assert knap("prune", dense, "--apply", chosen, "--masks", again) == 0
    assert again.read_bytes() == chosen.read_bytes()


def test_open_sizes_are_chosen_and_stay_open_in_what_is_written(
    model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = onnx.ModelProto.FromString(model.SerializeToString())
    for port in (*opened.graph.input, *opened.graph.output):
        port.type.tensor_type.shape.dim[0].dim_param = "batch"
    dense, pruned = tmp_path / "m.onnx", tmp_path / "p.onnx"
    onnx.save(opened, dense)
    assert knap("prune", dense, "-o", pruned) != 0
    assert "--shape" in capsys.readouterr().err
    assert knap("prune", dense, "--shape", "batch=2", "-o", pruned) == 0
    dim = onnx.load(pruned).graph.input[0].type.tensor_type.shape.dim[0]
    assert dim.dim_param == "batch"


def recurrent() -> onnx.ModelProto:
    """An LSTM, a matrix behind it, and a small one whose weights are tiny."""
    s = Sketch("recurrent")

    def drawn(*shape: int, scale: float = 1.0) -> str:
        return s.constant(s.rng.standard_normal(shape, np.float32) * np.float32(scale))

    y = s.node("LSTM", "input", drawn(1, 64, 8), drawn(1, 64, 16), hidden_size=16)
    flat = s.node("Reshape", y, s.constant(np.array([5, 16], np.int64)))
    z = s.node("MatMul", flat, drawn(16, 64))
    out = s.node("MatMul", z, drawn(64, 4, scale=1e-4))
    return s.model({"input": (5, 1, 8)}, {"output": (out, TensorProto.FLOAT, (5, 4))})


def test_what_is_left_alone_or_wiped_out_is_told(
    model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(recurrent(), tmp_path / "m.onnx")
    assert knap("prune", tmp_path / "m.onnx", "--pattern", "ew", "--sparsity", 0.5) == 0
    told = capsys.readouterr().err
    assert "1,536 weights of LSTM are left as they are" in told
    assert "has no weight left" in told
    onnx.save(model, tmp_path / "n.onnx")
    assert knap("prune", tmp_path / "n.onnx", "--sparsity", 0.5, "-g", 16) == 0
    assert not capsys.readouterr().err


def test_an_exported_program_is_pruned_into_an_onnx_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    program = torch.export.export(net.eval(), (torch.zeros(4, 32),))
    torch.export.save(program, tmp_path / "m.pt2")
    done = tmp_path / "p.onnx"
    assert knap("prune", tmp_path / "m.pt2", "--pattern", "ew", "-o", done) == 0
    held = [onnx.numpy_helper.to_array(i) for i in onnx.load(done).graph.initializer]
    zeros = [np.mean(w == 0) for w in held if w.ndim == 2]
    assert np.average(zeros) == pytest.approx(0.75, abs=0.01)
    assert knap("prune", tmp_path / "m.pt2", "-o", tmp_path / "q.pt2") != 0


@pytest.mark.parametrize(
    ("args", "code"),
    [(("--pattern", "wt"), "E305"), (("--apply", "none.json"), "E302"), (("--layers", "fc9"), "E304"), (("--scores", "none.npz"), "E305")],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_pruned(
    args: tuple[str, str], code: str, model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    assert knap("prune", tmp_path / "m.onnx", *args, "-o", tmp_path / "p.onnx") != 0
    assert code in capsys.readouterr().err
    assert not (tmp_path / "p.onnx").exists()


def test_a_file_without_masks_prunes_nothing(model: onnx.ModelProto, tmp_path: Path) -> None:
    dense, pruned, masks = (tmp_path / n for n in ("m.onnx", "p.onnx", "m.json"))
    onnx.save(model, dense)
    masks.write_text('{"format": "knapper.masks/1", "weights": {}}')
    assert knap("prune", dense, "--apply", masks, "-o", pruned) == 0
    before, after = (onnx.load(f).graph.initializer for f in (dense, pruned))
    assert [i.SerializeToString() for i in before] == [i.SerializeToString() for i in after]


@pytest.mark.parametrize("name", ["array.npy", "broken.npz"])
def test_scores_are_arrays_by_name(name: str, graph: Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(KnapperError, match="E305"):
        Prune("tw", scores=str(tmp_path / name)).run(graph)
