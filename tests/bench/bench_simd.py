"""SIMD kernels by way of TVM: what a worker and a group cost, and what the kernels execute. Not part of the test run.

    python tests/bench/bench_simd.py [--repeat 5] [--json]

A row is one group as networks have it: milliseconds TVM took to lower it (worker already running), milliseconds of translation to
instructions, instructions of the code, executed instructions (of a warp, 32 elements wide) for each 32 elements of the largest tensor,
and CPU milliseconds of one thread on the fast engine. First come the start of the worker with `import tvm`, and a warm cache.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / ".ns"))

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.codegen.generator import Group, generators
from knapper.compiler.driver import Options, finish
from knapper.compiler.groups import groups
from knapper.compiler.ir import DTYPES, Graph, Node, Type, infer
from knapper.compiler.tvm import client
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

MACHINE = Machine.load("volta-8tc")
POOL = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "layout": "NHWC"}


class Writer:
    """A graph of one group."""

    def __init__(self) -> None:
        self.types: dict[str, Type] = {}
        self.inputs: dict[str, Type] = {}
        self.nodes: list[Node] = []

    def value(self, dtype: str, *shape: int) -> str:
        name = f"v{len(self.types)}"
        self.types[name] = self.inputs[name] = Type(dtype, shape)
        return name

    def op(self, name: str, *operands: str, **attrs: Any) -> str:
        types = infer(name, [self.types[v] for v in operands], attrs)[:1]
        out = f"v{len(self.types)}"
        self.types[out] = types[0]
        self.nodes.append(Node(name, operands, (out,), types, attrs, loc=out, group="g"))
        return out

    def wide(self, *shape: int) -> str:
        """A stored f16 value as the f32 that is computed with."""
        return self.op("Cast", self.value("f16", *shape), to="f32")

    def stored(self, x: str) -> str:
        return self.op("Cast", x, to="f16")


CASES: dict[str, Callable[[Writer], str]] = {
    "ResNet input": lambda w: w.stored(
        w.op("Transpose", w.value("f32", 1, 3, 224, 224), perm=(0, 2, 3, 1))
    ),
    "ResNet max pool": lambda w: w.op("MaxPool", w.value("f16", 1, 112, 112, 64), **POOL),
    "ResNet average": lambda w: w.stored(
        w.op("GlobalAveragePool", w.wide(1, 7, 7, 2048), layout="NHWC")
    ),
    "ResNet output": lambda w: w.wide(1, 1000),
    "ResNet residual": lambda w: w.stored(
        w.op("Relu", w.op("Add", w.wide(1, 56, 56, 64), w.wide(1, 56, 56, 64)))
    ),
    "EfficientNet swish": lambda w: w.stored(w.op("Swish", w.wide(1, 56, 56, 96))),
    "EfficientNet scale": lambda w: w.stored(
        w.op("Mul", w.wide(1, 28, 28, 144), w.wide(1, 1, 1, 144))
    ),
    "BERT softmax": lambda w: w.stored(w.op("Softmax", w.wide(1, 12, 128, 128), axis=-1)),
    "BERT layer norm": lambda w: w.op(
        "LayerNormalization",
        w.stored(w.op("Add", w.wide(1, 128, 768), w.wide(1, 128, 768))),
        w.value("f16", 768),
        w.value("f16", 768),
    ),
    "BERT gelu": lambda w: w.stored(w.op("Gelu", w.wide(1, 128, 3072))),
    "BERT heads": lambda w: w.op("Transpose", w.value("f16", 1, 128, 12, 64), perm=(0, 2, 1, 3)),
    "BERT keys": lambda w: w.op("Transpose", w.value("f16", 1, 128, 12, 64), perm=(0, 2, 3, 1)),
}


@dataclass(frozen=True)
class Row:
    """One group."""

    name: str
    tvm_milliseconds: float
    translate_milliseconds: float
    kernels: int
    code: int
    registers: int
    executed: int
    executed_per_32_elements: float
    run_milliseconds: float


def graph_of(name: str) -> Graph:
    w = Writer()
    out = CASES[name](w)
    return Graph("bench", w.inputs, {"y": out}, tuple(w.nodes)).verify()


def group_of(name: str) -> Group:
    (group,) = groups(graph_of(name))
    return group


def milliseconds(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return 1e3 * (time.perf_counter() - start)


def measure(name: str, folder: Path, repeat: int) -> Row:
    group = group_of(name)
    tvm = milliseconds(lambda: client.fetch(group))
    translate = min(
        milliseconds(lambda: generators()["simd"].lower(group, {}, MACHINE)) for _ in range(repeat)
    )
    program = finish(graph_of(name), MACHINE, Options(cache=folder))
    session, rng = Session(program), np.random.default_rng(0)
    x = {v: rng.standard_normal(t.shape).astype(DTYPES[t.dtype]) for v, t in group.inputs.items()}
    stats = session.run(x, threads=1).stats.to_dict()
    executed = sum(stats["instructions"].values())
    run = min(milliseconds(lambda: session.run(x, threads=1)) for _ in range(repeat))
    kernels = [program.kernels[launch.kernel] for launch in program.launches]
    elements = max(t.count for t in (*group.inputs.values(), *group.outputs.values()))
    return Row(
        name, tvm, translate, len(kernels), sum(len(k.code) for k in kernels),
        max(k.registers for k in kernels), executed, 32 * executed / elements, run,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        os.environ["KNAPPER_CACHE"] = folder
        start = milliseconds(lambda: client.fetch(group_of("ResNet output")))
        rows = [measure(name, Path(folder), options.repeat) for name in CASES]
        client.forget()
        warm = milliseconds(lambda: [client.fetch(group_of(name)) for name in CASES])
        client.stop()
    if options.json:
        print(json.dumps({"start_ms": start, "warm_ms": warm, "rows": [asdict(r) for r in rows]}))
        return
    print(
        f"worker with import tvm and the first group: {start:.0f} ms; {len(rows)} groups from the disk: {warm:.1f} ms\n"
    )
    print(
        f"{'group':20}{'TVM ms':>8}{'our ms':>8}{'kernels':>9}{'code':>6}{'regs':>6}{'executed':>10}{'per 32':>8}{'run ms':>8}"
    )
    for r in rows:
        print(
            f"{r.name:20}{r.tvm_milliseconds:8.1f}{r.translate_milliseconds:8.1f}{r.kernels:9}{r.code:6}{r.registers:6}"
            f"{r.executed:10}{r.executed_per_32_elements:8.1f}{r.run_milliseconds:8.2f}"
        )


if __name__ == "__main__":
    main()
