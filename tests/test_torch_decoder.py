"""A decoder of PyTorch with its cache as inputs and outputs: knapper keeps the cache on the device, and generates what PyTorch does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import knapper
from knapper.frontends.api import Image
from knapper.isa.errors import KnapperError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its parts among each other

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

WORDS, WIDTH, HEADS, SHARED, ROOM, LAYERS = 96, 64, 4, 2, 32, 2
HEAD = WIDTH // HEADS


def turned(x: Any, at: Any) -> Any:
    """Rotary positions."""
    speed = 10_000.0 ** (-torch.arange(0, HEAD, 2) / HEAD)
    angle = at[:, None] * speed
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
    half = torch.cat([-x[..., HEAD // 2 :], x[..., : HEAD // 2]], -1)
    return x * cos + half * sin


class Layer(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, SHARED * HEAD, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, 128, bias=False) for _ in range(2))
        self.down = nn.Linear(128, WIDTH, bias=False)
        self.before, self.between = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)

    def forward(self, x: Any, at: Any, past_k: Any, past_v: Any) -> Any:
        h = self.before(x)
        q, k, v = (p(h).unflatten(-1, (-1, HEAD)).transpose(1, 2) for p in (self.q, self.k, self.v))
        past_k = past_k.index_copy(2, at, turned(k, at))
        past_v = past_v.index_copy(2, at, v)
        seen = torch.arange(ROOM)[None] <= at[:, None]
        mixed = F.scaled_dot_product_attention(turned(q, at), past_k, past_v, seen, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        h = self.between(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h)), past_k, past_v


class Decoder(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)

    def forward(self, tokens: Any, at: Any, k0: Any, v0: Any, k1: Any, v1: Any) -> Any:
        x, k0, v0 = self.layers[0](self.words(tokens), at, k0, v0)
        x, k1, v1 = self.layers[1](x, at, k1, v1)
        return self.norm(x) @ self.words.weight.T, k0, v0, k1, v1


CACHES = ("k0", "v0", "k1", "v1")


def empty() -> list[Any]:
    return [torch.zeros(1, SHARED, ROOM, HEAD) for _ in CACHES]


@pytest.fixture(scope="module")
def module() -> Any:
    torch.manual_seed(1)
    made = Decoder().eval()
    with torch.no_grad():
        made.words.weight *= 0.1
        for layer in made.layers:
            for p in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down):
                p.weight *= 3
    return made


@pytest.fixture(scope="module")
def program(module: Any) -> Any:
    return torch.export.export(module, (torch.tensor([[5]]), torch.tensor([0]), *empty()))


@pytest.fixture(scope="module")
def state(program: Any) -> dict[str, str]:
    """Each cache and what comes of it."""
    outputs = [p.name for p in knapper.compile(program, "sma3").program.outputs]
    return dict(zip(CACHES, outputs[1:], strict=True))


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def image(program: Any, state: dict[str, str], request: pytest.FixtureRequest) -> Image:
    return knapper.compile(program, "sma3", request.param, state=state)


def test_it_generates_what_pytorch_does(module: Any, image: Image) -> None:
    exact = image.program.meta["precision"] == "fp32"
    token, caches = 5, empty()
    logits = next(p.name for p in image.program.outputs)
    said = list[int]()
    with image.session() as session, torch.no_grad():
        for at in range(12):
            theirs, *caches = module(torch.tensor([[token]]), torch.tensor([at]), *caches)
            ours = session.run({"tokens": np.array([[token]]), "at": np.array([at])}).outputs[
                logits
            ]
            y, r = ours.ravel().astype(np.float64), theirs.numpy().ravel().astype(np.float64)
            assert y @ r / np.sqrt((y @ y) * (r @ r)) >= 0.999
            if exact:
                assert np.abs(y - r).max() <= 1e-4 * np.abs(r).max()
            assert y.argmax() == r.argmax()
            said.append(token := int(y.argmax()))
        for name, cache in zip(CACHES, caches, strict=True):
            np.testing.assert_allclose(
                session.state[name], cache.numpy(), atol=1e-5 if exact else 2e-2
            )
    assert len({*said}) > 3, "a text that shows something"


def test_caches_are_updated_in_place(image: Image) -> None:
    """PyTorch's exporter turns a cache around for `index_copy`, and back; nothing of that is left."""
    with image.session() as session:
        stats = session.run({"tokens": np.array([[5]]), "at": np.array([3])}).stats
    size = 4 if image.program.meta["precision"] == "fp32" else 2
    present = dict(image.program.state)
    wrote = [
        s.counts.dram_write
        for s in stats.launches
        for o in s.launch.operands
        if o.value in present.values() and "w" in o.use
    ]
    assert wrote == [SHARED * HEAD * size] * len(CACHES)
    assert max(s.counts.dram_write for s in stats.launches) < SHARED * ROOM * HEAD * size


def test_names_that_are_not_there_are_told(program: Any) -> None:
    with pytest.raises(KnapperError, match=r"E104: .*no output 'k0_next'.*there are"):
        knapper.compile(program, "sma3", state={"k0": "k0_next"})
