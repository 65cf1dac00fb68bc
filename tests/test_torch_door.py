"""PyTorch models: what they compute on the emulator is what PyTorch computes, and their modules' names come through."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shop import Knapper, python

import knapper
from knapper.frontends import doors
from knapper.frontends.onnx import read
from knapper.isa.errors import CODES, FrontendError, KnapperError, UsageError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its parts among each other

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

Make = Callable[[], Any]


class Small(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8, 5)

    def forward(self, image: Any) -> Any:
        x = self.pool(torch.relu(self.bn1(self.conv1(image))))
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self, c: int, d: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, d, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(d)
        self.conv2 = nn.Conv2d(d, d, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(d)
        down = nn.Sequential(nn.Conv2d(c, d, 1, stride, bias=False), nn.BatchNorm2d(d))
        self.down = nn.Identity() if c == d else down

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.down(x) + self.bn2(self.conv2(y)))


def residual() -> Any:
    blocks = nn.Sequential(Block(4, 4, 1), Block(4, 8, 2))
    return nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def depthwise() -> Any:
    first = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish()]
    second = [nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.SiLU()]
    return nn.Sequential(*first, *second, nn.Conv2d(8, 16, 1))


class Recurrent(nn.Module):  # type: ignore[misc]
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.rnn = kind(6, 8, 2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        return self.fc(self.rnn(x)[0])


class Words(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, ids: Any) -> Any:
        x = self.table(ids)
        return x + self.mlp(self.norm(x))


class Decoder(nn.Module):  # type: ignore[misc]
    """A block as language models have it: RMSNorm, rotated positions, causal attention, SwiGLU."""

    def __init__(self, c: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, half = heads, c // heads // 2
        self.norm1, self.norm2 = nn.RMSNorm(c), nn.RMSNorm(c)
        self.qkv, self.out = nn.Linear(c, 3 * c, bias=False), nn.Linear(c, c, bias=False)
        self.gate, self.up = (nn.Linear(c, 2 * c, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * c, c, bias=False)
        angle = torch.outer(torch.arange(32.0), 10000.0 ** (-torch.arange(0.0, half) / half))
        self.register_buffer("cos", torch.cat([angle.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([angle.sin()] * 2, -1))

    def rotated(self, x: Any) -> Any:
        n, (a, b) = x.shape[-2], x.chunk(2, -1)
        return x * self.cos[:n] + torch.cat([-b, a], -1) * self.sin[:n]

    def forward(self, x: Any) -> Any:
        b, n, c = x.shape
        split = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in split)
        y = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, c))
        z = self.norm2(x)
        return x + self.down(F.silu(self.gate(z)) * self.up(z))


def encoder() -> Any:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)


def example(*shape: int, words: int = 0) -> Any:
    made = torch.Generator().manual_seed(1)
    if words:
        return torch.randint(0, words, shape, generator=made)
    return torch.randn(shape, generator=made)


NETWORKS: dict[str, tuple[Make, Any]] = {
    "convolution and normalization": (Small, example(2, 3, 12, 12)),
    "residual blocks": (residual, example(1, 4, 8, 8)),
    "depthwise convolution": (depthwise, example(1, 3, 8, 8)),
    "LSTM": (lambda: Recurrent(nn.LSTM), example(2, 5, 6)),
    "GRU": (lambda: Recurrent(nn.GRU), example(2, 5, 6)),
    "encoder layer": (encoder, example(2, 6, 16)),
    "embedding": (Words, example(2, 5, words=20)),
    "decoder block": (Decoder, example(1, 7, 16)),
}
QUICK = ("convolution and normalization", "embedding")
CASES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]


@pytest.mark.parametrize("name", CASES)
def test_networks_compute_what_pytorch_computes(name: str) -> None:
    make, x = NETWORKS[name]
    torch.manual_seed(0)
    module = make().eval()
    expected = module(x).detach().numpy()
    program = torch.export.export(module, (x,))
    for target, precision, tolerance in (
        ("volta-8tc", "fp32", 1e-4), ("sma3", "fp32", 1e-4), ("sma3", "fp16", 3e-2),
    ):  # fmt: skip
        image = knapper.compile(program, target, precision)
        (port,) = image.program.inputs
        (y,) = image.run({port.name: x.numpy()}).outputs.values()
        assert y.shape == expected.shape
        assert np.abs(y - expected).max() <= tolerance * np.abs(expected).max()


# --- names --------------------------------------------------------------------------------------------------------------


def test_nodes_are_called_after_modules() -> None:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("layer1", nn.Sequential(Block(4, 8, 2)))
    net.add_module("rnn", nn.LSTM(4, 2))
    graph = read(doors.opened(net[0], example(1, 4, 8, 8)))
    assert {n.loc for n in graph.nodes} == {
        "0.conv1", "0.bn1", "0.conv2", "0.bn2", "0.down.0", "0.down.1", "0/relu", "0/relu_1", "0/add",
    }  # fmt: skip
    assert graph.name == "Sequential"
    cells = read(doors.opened(net.rnn, example(3, 1, 4)))
    assert [n.op for n in cells.nodes if n.op == "LSTM"] == ["LSTM"]


def test_nothing_of_the_exporting_machine_stays() -> None:
    model = doors.opened(Small(), example(1, 3, 8, 8))
    assert str(Path(__file__).parent).encode() not in model.proto.SerializeToString()


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for 1 to 8 images."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("saved") / "net.pt2"
    batch = {0: torch.export.Dim("batch", min=1, max=8)}
    x = example(2, 3, 12, 12)
    torch.export.save(torch.export.export(Small().eval(), (x,), dynamic_shapes=(batch,)), path)
    return path


def test_files_are_compiled_and_compared_as_those_of_onnx(run: Knapper, saved: Path) -> None:
    shape = ("--shape", "image=4,3,12,12")
    assert run("compile", str(saved), *shape, "-o", "net.elf")[0] == 0
    assert os.listdir() == ["net.elf"]
    assert run("run", "net.elf", "--input", "random:0")[0] == 0
    code, out, err = run("check", str(saved), *shape, "--precision", "fp32")
    assert (code, err) == (0, "")
    assert "linear" in out


def test_files_are_evaluated_calibrated_and_quantized(run: Knapper, saved: Path) -> None:
    x = np.random.default_rng(0).standard_normal((6, 3, 12, 12), np.float32)
    np.savez("data.npz", images=x)
    shape = ("--shape", "image=1,3,12,12")
    for engine in ("emulator", "onnxruntime"):
        how = ("--data", "data.npz", "--engine", engine)
        code, out, err = run("calibrate", str(saved), *shape, *how, "-o", f"{engine}.json")
        assert code == 0, err
        assert "image" in out
    metric = ("--metric", "sqnr", "--reference", "onnxruntime")
    code, out, err = run(
        "eval", str(saved), *shape, "--data", "data.npz", "--precision", "fp32", *metric
    )
    assert code == 0, err
    assert "sqnr" in out
    assert run("compile", str(saved), *shape, "--ranges", "emulator.json", "-o", "q.elf")[0] == 0


def test_an_export_is_for_the_sizes_that_it_was_made_for(saved: Path) -> None:
    for shape, reason in (
        ((16, 3, 12, 12), "is 16; the model was exported for 1 to 8"),
        ((1, 3, 20, 20), "export it with dynamic_shapes"),
    ):
        with pytest.raises(KnapperError, match=rf"E703: .*net\.pt2: .*{reason}"):
            knapper.compile(saved, shapes={"image": shape})
    with pytest.raises(FrontendError, match=r"E205: .* --shape image=1,3,12,12"):
        knapper.compile(saved)


def damaged(good: bytes) -> dict[str, bytes]:
    at = good.index(b"weights/weight_0") + 200
    return {
        "no file of torch.export.save": b"weights",
        "or not all of one": good[: len(good) // 2],
        "has another checksum": good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :],
        "E201": b"",
    }


def test_damaged_files_are_refused(saved: Path, tmp_path: Path) -> None:
    for reason, data in damaged(saved.read_bytes()).items():
        (tmp_path / "bad.pt2").write_bytes(data)
        with pytest.raises(FrontendError, match=rf"E201: .*bad\.pt2: .*|{reason}") as e:
            knapper.compile(tmp_path / "bad.pt2")
        assert reason in str(e.value)
    torch.save({"w": torch.zeros(2)}, tmp_path / "state.pt2")
    with pytest.raises(FrontendError, match=r"E201: .* without an exported program"):
        knapper.compile(tmp_path / "state.pt2")
    with pytest.raises(UsageError, match=r"E705: .* cannot read: No such file"):
        knapper.compile(tmp_path / "none.pt2")
    with pytest.raises(UsageError, match=r"E704: .* compile it first"):
        knapper.load(saved)


# --- what cannot be exported --------------------------------------------------------------------------------------------


class Eigen(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return torch.linalg.eigh(x)[0]


class Branching(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


def test_an_operator_that_onnx_lacks_is_named_with_its_module() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Eigen()))
    with pytest.raises(FrontendError) as e:
        knapper.compile(net, (example(4, 4),))
    assert e.value.code == "E203"
    assert e.value.where == "Sequential: node '1.0/_linalg_eigh' (aten._linalg_eigh.default)"


def test_what_python_decides_by_values_is_refused() -> None:
    with pytest.raises(FrontendError, match=r"E211: Branching: torch.export cannot export it"):
        knapper.compile(Branching(), (example(4, 4),))


def test_a_program_in_training_mode_is_refused_and_a_module_left_in_it() -> None:
    x, module = example(2, 3, 12, 12), Small()
    with pytest.raises(FrontendError, match=r"E203: .*the program writes 'bn1.running_mean'"):
        knapper.compile(torch.export.export(module, (x,)))
    image = knapper.compile(module, x, precision="fp32")
    assert module.training
    assert module.bn1.training
    expected = module.eval()(x).detach().numpy()
    np.testing.assert_allclose(
        image.run({"image": x.numpy()}).outputs["linear"], expected, atol=1e-5
    )


def test_examples_and_targets_have_their_places() -> None:
    x = example(1, 3, 8, 8)
    with pytest.raises(UsageError, match=r"E704: .*needs example inputs .*compile\(module, \(x,\)"):
        knapper.compile(Small())
    with pytest.raises(UsageError, match=r"E704: .*two targets"):
        knapper.compile(Small(), "sma3", example_inputs=x, target="volta-8tc")
    with pytest.raises(UsageError, match=r"E704: .*for a torch\.nn\.Module"):
        knapper.compile("model.onnx", (x,))
    image = knapper.compile(Small(), {"image": x}, target="sma3")
    assert image.program.target["name"] == "sma3"


def test_without_the_extra_the_message_names_it(saved: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnxscript'] = None\n"
        f"import knapper\ntry: knapper.compile({str(saved)!r})\nexcept knapper.KnapperError as e: print(e)"
    )
    said = python(code, tmp_path).stdout
    assert "E210" in said
    assert "pip install 'knapper[torch]'" in said
    assert "E210" in CODES


def test_nodes_have_names_of_their_own() -> None:
    """onnxruntime loads no model with two nodes of one name; a module that is called twice makes such."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = nn.GroupNorm(2, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.n(self.n(x) + 1)

    proto = doors.proto(doors.opened(Twice(), example(1, 4, 6, 6)))
    names = [n.name for n in proto.graph.node if n.name]
    assert len(names) == len(set(names)) > 2
