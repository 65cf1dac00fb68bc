"""What quantizing ResNet-18's weights takes: SQuant and ANT's search beside rounding to the nearest in numpy, CPU seconds and ratios.

PYTHONPATH=.ns python tests/bench/bench_quantization.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.compiler.quantization import ant, squant

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


def main() -> None:
    """Print a row a method."""
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


if __name__ == "__main__":
    main()
