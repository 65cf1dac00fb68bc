"""ResNet-50's convolutions on the fast engine, beside numpy's sgemm in the same process. Not part of the test run.

    python tests/bench/bench_matrix.py [--kind hmma|imma|ffma] [--repeat 3] [--all-tiles SHAPE] [--json]

A row is one distinct convolution with bias, Relu and its cast (scales by channel besides, for bytes): how often it occurs, CPU time of one
thread, useful GMAC a second, instructions for each HMMA (or IMMA, FFMA), the share of executed multiply-adds that are useful, and the tile
that the cost model takes. The last rows add up the network. `--all-tiles` shows every tile on offer for one shape, such as
14,256,256,3,1,1 (image, channels, outputs, taps, stride, pad). `--builder` times code generation instead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = (
    "1"  # before numpy: idle threads of the pool would spin on our clock
)

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / ".ns"))

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.codegen.generator import GENERATORS, Group, Options, generators
from knapper.compiler.driver import Options as CompileOptions
from knapper.compiler.driver import finish
from knapper.compiler.groups import groups
from knapper.compiler.ir import DTYPES, Array, Graph, Node, Type, infer
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

MACHINE = Machine.load("volta-8tc")
MULTIPLIES = {"hmma": "HMMA.161616.F32", "imma": "IMMA.161632.S32", "ffma": "FFMA"}
TYPES = {"hmma": "f16", "imma": "i8", "ffma": "f32"}
Shape = tuple[int, int, int, int, int, int]
"""Image side, input channels, output channels, taps a side, stride, pad."""


@dataclass(frozen=True)
class Row:
    """One convolution."""

    shape: str
    count: int
    options: str
    predicted_cycles: float
    milliseconds: float
    gmac_per_second: float
    instructions_per_multiply: float
    useful: float


def resnet50() -> Counter[Shape]:
    """Its convolutions, and how often each occurs."""
    found: Counter[Shape] = Counter({(224, 3, 64, 7, 2, 3): 1})
    c, side = 64, 56
    for planes, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            stride = first if i == 0 else 1
            found[side, c, planes, 1, 1, 0] += 1
            found[side, planes, planes, 3, stride, 1] += 1
            found[side // stride, planes, 4 * planes, 1, 1, 0] += 1
            if i == 0:
                found[side, c, 4 * planes, 1, stride, 0] += 1
            c, side = 4 * planes, side // stride
    return found


def convolution(shape: Shape, dtype: str) -> tuple[Graph, dict[str, Array]]:
    """A fused graph of one launch, with random data."""
    side, c, o, k, stride, pad = shape
    rng, whole = np.random.default_rng(0), dtype == "i8"
    x = drawn(rng, (1, side, side, c), "u8" if whole else dtype)
    known = {
        "w": drawn(rng, (k, k, c, o), dtype),
        "b": np.zeros(o, np.int32 if whole else np.float32),
    }
    known |= {"m": np.full(o, 1e-4, np.float32)} if whole else {}
    types = {"x": Type.of(x)} | {v: Type.of(a) for v, a in known.items()}
    attrs: dict[str, Any] = {
        "strides": (stride,) * 2,
        "pads": (pad,) * 4,
        "layout": "NHWC",
        "out": "i32" if whole else "f32",
    }
    scaled = [("Cast", ("y",), "f", {"to": "f32"}), ("Mul", ("f", "m"), "s", {})]
    scaled += [("Relu", ("s",), "p", {}), ("Round", ("p",), "q", {})]
    scaled += [("Clip", ("q",), "r", {"min": 0.0, "max": 255.0})]
    nodes, after = [], scaled if whole else [("Relu", ("y",), "r", {})]
    for op, operands, out, at in (
        ("Conv", ("x", "w", "b"), "y", attrs),
        *after,
        ("Cast", ("r",), "o", {"to": "u8" if whole else dtype}),
    ):
        types |= {out: infer(op, [types[v] for v in operands], at)[0]}
        nodes.append(Node(op, operands, (out,), (types[out],), at, group="g"))
    return Graph("g", {"x": types["x"]}, {"o": "o"}, tuple(nodes), known), {"x": x}


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Random numbers of a type."""
    if dtype[0] in "iu":
        limits = np.iinfo(DTYPES[dtype])
        return rng.integers(limits.min, limits.max, shape, DTYPES[dtype], endpoint=True)
    return rng.standard_normal(shape).astype(DTYPES[dtype])


def best(group: Group, kind: str) -> Options:
    """The tile that a plan would take."""
    g = GENERATORS[kind]
    return min(g.candidates(group, MACHINE), key=lambda o: g.cost(group, o, MACHINE))


def measure(
    shape: Shape, count: int, kind: str, repeat: int, options: Options | None = None
) -> Row:
    """Compile and run one convolution, one thread; the least CPU time of a few launches."""
    graph, inputs = convolution(shape, TYPES[kind])
    (group,) = groups(graph)
    options = options or best(group, kind)
    with TemporaryDirectory() as folder:
        forced = {"g": {"kind": kind, **options}}
        program = finish(graph, MACHINE, CompileOptions(forced=forced, cache=Path(folder)))
    session = Session(program)
    stats = session.run(inputs, threads=1).stats  # translates the kernel as well
    engine = session.engine("fast", False, 1, 1 << 32)
    seconds = least(lambda: engine.launch(program.launches[0]), repeat)
    executed = sum(stats.instructions.values())
    return Row(
        ",".join(map(str, shape)), count, " ".join(f"{k}={v}" for k, v in options.items()),
        GENERATORS[kind].cost(group, options, MACHINE), seconds * 1e3, stats.macs / seconds / 1e9,
        executed / stats.instructions[MULTIPLIES[kind]], stats.macs / stats.macs_executed,
    )  # fmt: skip


def least(f: Callable[[], object], repeat: int) -> float:
    """CPU seconds of the fastest call."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        f()
        times.append(time.process_time() - start)
    return min(times)


def sgemm(shape: Shape, repeat: int) -> float:
    """CPU seconds of the convolution as one fp32 product in numpy, the operand's im2col not counted."""
    side, c, o, k, stride, pad = shape
    m = ((side + 2 * pad - k) // stride + 1) ** 2
    a, b = np.ones((m, k * k * c), np.float32), np.ones((k * k * c, o), np.float32)
    return least(lambda: a @ b, repeat)


def builder_times() -> Iterator[tuple[str, int, float]]:
    """(kernel, instructions, milliseconds to build it) of the biggest kernels of the network."""
    for shape in resnet50():
        graph, _ = convolution(shape, "f16")
        (group,) = groups(graph)
        options = max(GENERATORS["hmma"].candidates(group, MACHINE), key=str)
        (launch,) = GENERATORS["hmma"].lower(group, options, MACHINE).launches
        seconds = least(partial(GENERATORS["hmma"].lower, group, options, MACHINE), 3)
        yield ",".join(map(str, shape)), len(launch.kernel.roles), seconds * 1e3


def show(r: Row) -> None:
    """A line for people."""
    print(
        f"{r.shape:>22} ×{r.count}  {r.milliseconds:7.2f} ms  {r.gmac_per_second:5.1f} GMAC/s  "
        f"{r.instructions_per_multiply:6.2f} instr/mul  useful {r.useful:4.0%}  {r.predicted_cycles:9,.0f} cycles  {r.options}"
    )


def main() -> None:
    """Parse the command line, print rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=MULTIPLIES, default="hmma")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--all-tiles", metavar="SHAPE")
    parser.add_argument("--builder", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    generators()
    if args.builder:
        for name, instructions, ms in builder_times():
            print(
                f"{name:>22}  {instructions:5} instructions  {ms:6.1f} ms  {1e3 * ms / instructions:5.1f} µs each"
            )
        return
    if args.all_tiles:
        side, c, o, k, stride, pad = map(int, args.all_tiles.split(","))
        shape = (side, c, o, k, stride, pad)
        (group,) = groups(convolution(shape, TYPES[args.kind])[0])
        for options in GENERATORS[args.kind].candidates(group, MACHINE):
            show(measure(shape, 1, args.kind, args.repeat, options))
        return
    rows = [measure(shape, n, args.kind, args.repeat) for shape, n in resnet50().items()]
    numpy_seconds = sum(n * sgemm(shape, args.repeat) for shape, n in resnet50().items())
    if args.json:
        print(json.dumps([asdict(r) for r in rows], indent=1))
        return
    for r in rows:
        show(r)
    seconds = sum(r.count * r.milliseconds for r in rows) / 1e3
    macs = sum(r.count * r.milliseconds * r.gmac_per_second for r in rows) / 1e3
    useful = macs / sum(r.count * r.milliseconds * r.gmac_per_second / r.useful for r in rows) * 1e3
    print(
        f"all convolutions: {seconds * 1e3:.0f} ms CPU, {macs / seconds:.1f} GMAC/s, {useful:.1%} of executed multiply-adds useful"
    )
    print(
        f"numpy sgemm:      {numpy_seconds * 1e3:.0f} ms CPU, ratio {seconds / numpy_seconds:.2f}"
    )


if __name__ == "__main__":
    main()
