"""What quantizing takes, CPU seconds and ratios, the least of three.

    weights       of ResNet-18: SQuant and ANT's search beside rounding to the nearest, in numpy
    compiling     ResNet-18 and ResNet-50 with caches that are warm: floats, weights rounded to the nearest, by SQuant
    emulating     ResNet-50 in int8 beside fp16, a thread

PYTHONPATH=.ns python tests/bench/bench_quantization.py [weights] [compiling] [emulating]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import knapper
from knapper.compiler.quantization import ant, squant
from knapper.frontends.networks import build

Array = NDArray[Any]
STAGES = ((64, 64, 4), (128, 64, 1), (128, 128, 3), (256, 128, 1), (256, 256, 3), (512, 256, 1), (512, 512, 3))  # fmt: skip
"""Outputs, inputs and number of the 3x3 convolutions."""


def weights() -> list[Array]:
    """Of 11.7 million elements, in 21 layers."""
    rng = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (1000, 512)]
    shapes += [(o, c, 3, 3) for o, c, n in STAGES for _ in range(n)]
    shapes += [(o, c, 1, 1) for o, c in ((128, 64), (256, 128), (512, 256))]
    return [rng.normal(0, 0.05, s).astype(np.float32) for s in shapes]


def seconds(work: Callable[[Array], object], layers: list[Array]) -> tuple[float, float]:
    """(wall, CPU), the best of three."""
    found = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        for w in layers:
            work(w)
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(found)


def least(work: Callable[[], object]) -> float:
    """CPU seconds, the best of three."""
    return seconds(lambda _: work(), [np.zeros(0)])[1]


def of_weights() -> None:
    """A row a method."""
    layers = weights()
    methods: dict[str, Callable[[Array], object]] = {
        "nearest": lambda w: squant.quantize(w, 4, "e"),
        "squant ek": lambda w: squant.quantize(w, 4, "ek"),
        "squant ekc": lambda w: squant.quantize(w, 4, "ekc"),
        "ant int flint pot": lambda w: ant.quantize(w, 4),
    }
    base = 0.0
    print(f"{'method':<18} {'wall s':>7} {'CPU s':>7} {'of nearest':>11}")
    for name, work in methods.items():
        wall, cpu = seconds(work, layers)
        base = base or cpu
        print(f"{name:<18} {wall:7.2f} {cpu:7.2f} {cpu / base:10.1f}x")


HOW = {
    "fp16": None,
    "i4, nearest": "i4,float",
    "i4, squant": "i4,float,weight_method=squant",
    "i4, squant's own scales": "i4,float,weight_method=squant,weight_scale=minmax",
}


def of_compiling() -> None:
    """A row a network and a way; weights alone, which needs no data."""
    print(f"\n{'compiling':<36} {'CPU s':>7}")
    for network in ("resnet18", "resnet50"):
        model = build(network)
        for name, how in HOW.items():
            knapper.compile(model, quantize=how)
            cpu = least(partial(knapper.compile, model, quantize=how))
            print(f"{network + ' ' + name:<36} {cpu:7.2f}")


def of_emulating() -> None:
    """A row a precision."""
    model, base = build("resnet50"), 0.0
    x = {"input": np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)}
    print(f"\n{'ResNet-50 on volta-8tc':<36} {'CPU s':>7} {'of fp16':>9}")
    for name, how in (("fp16", None), ("i8", "i8,ranges=uniform")):
        with knapper.compile(model, quantize=how).session() as session:
            session.run(x, threads=1)
            cpu = least(partial(session.run, x, threads=1))
        base = base or cpu
        print(f"{name:<36} {cpu:7.3f} {cpu / base:8.2f}x")


PARTS = {"weights": of_weights, "compiling": of_compiling, "emulating": of_emulating}


def main() -> None:
    """What is named, or everything."""
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
