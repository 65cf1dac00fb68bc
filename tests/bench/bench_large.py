"""A model over 2 GB, with its weights in a file beside it: compile and run it, and say what memory that takes. Not part of the test run.

    python tests/bench/bench_large.py [--layers 35] [--precision fp16] [--target volta-8tc] [--dir DIR] [--json]

The model is a chain of Gemm and Relu, 64 MiB of float32 weights each; 35 are 2.19 GiB. It is written layer by layer, compiled and run
by processes of their own. Their memory is what the kernel says of them, 50 times a second: anonymous pages, which must be in RAM or swap,
and pages of mapped files, which need not stay there. The result is compared with numpy's, a layer at a time; a process that takes more
than `LIMIT` says, or a wrong result, is an error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / ".ns"))
K = 4096
LAYER = K * K * 4
LIMIT = {"compile": 3.2, "run": 1.2}
"""Anonymous memory, in units of the weights as they are stored, beside what knapper takes for itself."""
OWN = 0.4
"""GiB of it."""
RUN = """
import sys, numpy as np, knapper
image = knapper.load(sys.argv[1])
result = image.run({"x": np.load(sys.argv[2])})
np.save(sys.argv[3], result.outputs["y"])
"""


@dataclass(frozen=True)
class Taken:
    """What a process took: GiB and seconds of CPU."""

    what: str
    anonymous: float
    mapped: float
    cpu: float


def weights(i: int) -> np.ndarray[Any, Any]:
    """A layer's; He's variance, so that the values keep their size."""
    rng = np.random.default_rng(i)
    return rng.standard_normal((K, K), np.float32) * np.float32((2 / K) ** 0.5)


def write(folder: Path, layers: int) -> Path:
    """model.onnx and model.data."""
    tensors, nodes = [], []
    with (folder / "model.data").open("wb") as file:
        for i in range(layers):
            t = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[K, K], data_location=TensorProto.EXTERNAL)  # fmt: skip
            for key, value in (("location", "model.data"), ("offset", file.tell()), ("length", LAYER)):  # fmt: skip
                t.external_data.add(key=key, value=str(value))
            file.write(weights(i).data)
            tensors.append(t)
            nodes.append(helper.make_node("Gemm", [f"r{i}" if i else "x", t.name], [f"g{i}"]))
            nodes.append(helper.make_node("Relu", [f"g{i}"], [f"r{i + 1}" if i + 1 < layers else "y"]))  # fmt: skip
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, K)) for n in "xy"]
    graph = helper.make_graph(nodes, "large", ports[:1], ports[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def measured(what: str, *command: str | Path) -> Taken:
    """Run a command and watch its memory."""
    started = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    most, cpu = {"RssAnon": 0, "RssFile": 0}, 0.0
    while started.poll() is None:
        try:
            status = Path(f"/proc/{started.pid}/status").read_text()
            ticks = Path(f"/proc/{started.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            break
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name in most:
                most[name] = max(most[name], int(value.split()[0]))
        cpu = (int(ticks[11]) + int(ticks[12])) / 100
        time.sleep(0.02)
    if started.wait():
        raise SystemExit(f"{what} failed")
    return Taken(what, most["RssAnon"] / 2**20, most["RssFile"] / 2**20, cpu)


def expected(x: np.ndarray[Any, Any], layers: int) -> np.ndarray[Any, Any]:
    """By numpy, with one layer in memory."""
    for i in range(layers):
        x = np.maximum(x @ weights(i), 0)
    return x


def main() -> None:
    """The command."""
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--layers", type=int, default=35)
    p.add_argument("--precision", default="fp16")
    p.add_argument("--target", default="volta-8tc")
    p.add_argument("--dir")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    with tempfile.TemporaryDirectory(dir=a.dir) as name:
        folder = Path(name)
        model, elf, fed, made = write(folder, a.layers), folder / "m.elf", folder / "x.npy", folder / "y.npy"  # fmt: skip
        np.save(fed, np.random.default_rng(99).standard_normal((1, K), np.float32))
        knapper = Path(sys.executable).with_name("knapper")
        options = ("-t", a.target, "--precision", a.precision, "-o", elf)
        taken = [
            measured("compile", knapper, "compile", model, *options),
            measured("run", sys.executable, "-c", RUN, elf, fed, made),
        ]
        y, r = np.load(made).astype(np.float64), expected(np.load(fed), a.layers)
    cosine = float((y * r).sum() / np.sqrt((y * y).sum() * (r * r).sum()))
    stored = a.layers * LAYER / 2**30 / (1 if a.precision == "fp32" else 2)
    found = {
        "GiB of float32 weights": a.layers * LAYER / 2**30,
        "GiB stored": stored,
        "cosine": cosine,
    }
    print(json.dumps(found | {t.what: asdict(t) for t in taken}, indent=1) if a.json else found)
    for t in taken:
        if not a.json:
            print(f"{t.what:8} {t.anonymous:.2f} GiB anonymous, {t.mapped:.2f} GiB of files, {t.cpu:.1f} s of CPU")  # fmt: skip
        if t.anonymous > LIMIT[t.what] * stored + OWN:
            raise SystemExit(f"{t.what}: more than {LIMIT[t.what]} times the weights")
    if cosine < 0.999:
        raise SystemExit("the result is wrong")


if __name__ == "__main__":
    main()
