"""Train the pulse finder, from nothing but numpy: `python -m examples.pmt.train` writes weights.npz.

It sees crops with pulses of every charge, shape, noise and overshoot that a tube may have, drawn here; it never sees a tube.
Seed and order of operations are fixed; on one machine two runs write the same weights, and elsewhere they measure alike.

Adam on the squared error of charge (in 80 mV·ns) and offset (in 4 ns, of crops with a pulse); the rate falls as a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from . import network
from .network import ALIGN, CHARGE_UNIT, CROP, STRIDE, WAVE_UNIT, Weights
from .pulses import Floats, Shape

F32 = NDArray[np.float32]
SEED, STEPS, BATCH, RATE = 0, 4000, 256, 2e-3
OFFSET_UNIT = 4.0
"""ns, in the loss."""
TEMPLATE = 48, 20
"""Taps of the matched filters, and which of them is a pulse's maximum."""
RISES, FALLS = (4.0, 5.5, 7.0, 8.5), (8.5, 11.5, 14.5, 17.5)
"""Of the matched filters' pulses, ns: each rise with each fall."""


@dataclass(frozen=True)
class Crops:
    """Waveforms around a maximum and what is in them."""

    x: F32
    """mV/8. [n, 64]"""
    y: F32
    """Charge in 80 mV·ns; when the larger pulse has its maximum, ns from the crop's first sample. [n, 2]"""
    weight: F32
    """What counts of y: the time of no pulse does not. [n, 2]"""


def draw(rng: np.random.Generator, n: int) -> Crops:
    """Crops with one pulse; 15 % with two, 10 % with none."""
    kind = rng.random(n)
    first = np.exp(rng.uniform(np.log(0.12), np.log(4), n)) * (kind > 0.1)
    second = first * rng.uniform(0.1, 1, n) * (kind > 0.85)
    wander = np.where(rng.random(n) < 0.15, rng.uniform(-12, 12, n), 2 * rng.standard_normal(n))
    at = ALIGN + 0.5 + wander
    other = at + 8 * rng.standard_normal(n)
    volts = _pulses(_shapes(rng, n), (first, at), (second, other))
    volts += rng.uniform(0.15, 0.5, (n, 1)) * rng.standard_normal((n, CROP))
    y = np.stack([first + second, at], 1)
    weight = np.stack([np.ones(n), first > 0], 1)
    return Crops(*(np.asarray(a, np.float32) for a in (volts / WAVE_UNIT, y, weight)))


def _shapes(rng: np.random.Generator, n: int) -> Shape:
    rise, fall = rng.uniform(3.5, 8.5, (n, 1)), rng.uniform(8, 19, (n, 1))
    return Shape(rise, fall, rng.uniform(0.005, 0.015, (n, 1)))


def _pulses(shape: Shape, *pulses: tuple[Floats, Floats]) -> Floats:
    """Millivolts of pulses, each with its charges and times. [n, 64]"""
    t = np.arange(float(CROP))
    return sum(
        (CHARGE_UNIT * q[:, None] * shape(t - at[:, None]) for q, at in pulses),
        np.zeros((len(pulses[0][0]), CROP)),
    )


def initial(rng: np.random.Generator) -> Weights:
    """He's scale; the short cut begins as an integral: the charge is right from the start, for a long pulse."""
    w = {
        "conv1": rng.standard_normal((16, 1, 32)) * np.sqrt(2 / 32),
        "bias1": np.zeros(16),
        "conv2": rng.standard_normal((32, 16, 8)) * np.sqrt(2 / 128),
        "bias2": np.zeros(32),
        "dense": rng.standard_normal((224, 2)) * 0.01,
        "bias": np.array([0, ALIGN]),
        "skip": np.full((CROP, 2), [WAVE_UNIT / CHARGE_UNIT, 0]),
    }
    return {name: np.asarray(a, np.float32) for name, a in w.items()}


def windows(x: F32, k: int, stride: int) -> F32:
    """x[n, c, t] as a convolution reads it: [n, t', c·k]."""
    view = sliding_window_view(x, k, 2)[:, :, ::stride]
    return view.transpose(0, 2, 1, 3).reshape(len(x), view.shape[2], -1)


def mish(x: F32) -> tuple[F32, F32]:
    """Mish and its derivative."""
    e = np.exp(np.minimum(x, 20))
    n = e * (e + 2)
    tanh = n / (n + 2)
    return x * tanh, tanh + x * e / (1 + e) * (1 - tanh * tanh)


def forward(w: Weights, x: F32) -> tuple[F32, dict[str, F32]]:
    """Charge and offset of crops [n, 64], and what the way back needs."""
    c1 = windows(x[:, None], 32, 1)
    a1, d1 = mish(c1 @ w["conv1"].reshape(16, -1).T + w["bias1"])
    c2 = windows(a1.transpose(0, 2, 1), 8, STRIDE)
    a2, d2 = mish(c2 @ w["conv2"].reshape(32, -1).T + w["bias2"])
    flat = a2.transpose(0, 2, 1).reshape(len(x), -1)
    y = flat @ w["dense"] + w["bias"] + x @ w["skip"]
    return y, {"x": x, "c1": c1, "d1": d1, "c2": c2, "d2": d2, "flat": flat}


def backward(w: Weights, kept: dict[str, F32], dy: F32) -> Weights:
    """Gradients by name, from the gradient of the outputs [n, 2]."""
    g = {"skip": kept["x"].T @ dy, "bias": dy.sum(0), "dense": kept["flat"].T @ dy}
    d2 = (dy @ w["dense"].T).reshape(len(dy), 32, -1).transpose(0, 2, 1) * kept["d2"]
    g["bias2"] = d2.sum((0, 1))
    g["conv2"] = np.tensordot(d2, kept["c2"], ((0, 1), (0, 1))).reshape(32, 16, 8)
    columns = (d2 @ w["conv2"].reshape(32, -1)).reshape(len(dy), -1, 16, 8)
    d1 = np.zeros_like(kept["d1"])
    for t in range(columns.shape[1]):
        d1[:, t * STRIDE : t * STRIDE + 8] += columns[:, t].transpose(0, 2, 1)
    d1 *= kept["d1"]
    g["bias1"] = d1.sum((0, 1))
    g["conv1"] = np.tensordot(d1, kept["c1"], ((0, 1), (0, 1))).reshape(16, 1, 32)
    return g


def gradient(w: Weights, crops: Crops) -> tuple[float, Weights]:
    """The loss of a batch and its gradients."""
    y, kept = forward(w, crops.x)
    scale: F32 = crops.weight * np.array([1, 1 / OFFSET_UNIT], np.float32)
    error = (y - crops.y) * scale
    return float((error**2).mean()), backward(
        w, kept, np.asarray(error * scale / len(y), np.float32)
    )


def train(rng: np.random.Generator, steps: int) -> Weights:
    """Adam, with the usual constants."""
    w = initial(rng)
    mean, square = ({name: np.zeros_like(a) for name, a in w.items()} for _ in range(2))
    for i in range(1, steps + 1):
        loss, g = gradient(w, draw(rng, BATCH))
        rate = RATE * 0.5 * (1 + math.cos(math.pi * i / steps))
        for name, d in g.items():
            mean[name] += 0.1 * (d - mean[name])
            square[name] += 0.001 * (d * d - square[name])
            step = mean[name] / (1 - 0.9**i) / (np.sqrt(square[name] / (1 - 0.999**i)) + 1e-8)
            w[name] = (w[name] - rate * step).astype(np.float32)
        if i % 500 == 0:
            print(f"step {i}: loss {loss:.5f}", flush=True)
    return w


def templates() -> F32:
    """The matched filters: pulses from all over the family, of unit energy. [16, 48]"""
    taps, peak = TEMPLATE
    rise, fall = np.meshgrid(RISES, FALLS, indexing="ij")
    shape = Shape(rise.reshape(-1, 1), fall.reshape(-1, 1), 0.0)
    pulses = shape(np.arange(float(taps)) - peak)
    return np.asarray(pulses / np.sqrt((pulses**2).sum(1, keepdims=True)), np.float32)


def errors(w: Weights, rng: np.random.Generator, shapes: int = 200, pulses: int = 200) -> Floats:
    """How the network errs on pulses of one photo-electron, charge (80 mV·ns) and offset (ns): random, and by shape.

    A tube's pulses have one shape: what the network errs for it is the same for each of them, and blurs nothing. Gives the
    standard deviation within a shape and its spread over shapes, then mean and spread of a shape's mean. [4, 2]
    """
    off = []
    for shape in range(shapes):
        one = _shapes(np.random.default_rng(shape), 1)
        at = CROP + rng.random((pulses, 1))
        volts = CHARGE_UNIT * one(np.arange(2.0 * CROP) - at)
        x, start = _aligned(volts + 0.3 * rng.standard_normal(volts.shape))
        y, _ = forward(w, x)
        off.append(y - np.hstack([np.ones_like(at), at - start]))
    deviation, mean = np.std(off, 1), np.mean(off, 1)
    return np.stack([deviation.mean(0), deviation.std(0), mean.mean(0), mean.std(0)])


def _aligned(volts: Floats) -> tuple[F32, NDArray[np.int64]]:
    """The crop around the matched filters' maximum, mV/8, and the sample where it starts. [n, 64], [n, 1]"""
    taps, peak = TEMPLATE
    filtered = sliding_window_view(volts, taps, 1) @ templates().T
    start = filtered.max(2).argmax(1)[:, None] + peak - ALIGN
    crop = np.take_along_axis(volts, start + np.arange(CROP), 1)
    return np.asarray(crop / WAVE_UNIT, np.float32), start


def main() -> None:
    """Write weights.npz."""
    rng = np.random.default_rng(SEED)
    w = train(rng, STEPS)
    errs = errors(w, rng)
    for name, (charge, time) in zip(("blur", "± shapes", "bias", "± shapes"), errs, strict=True):
        print(f"{name:<9} {charge:8.4f} (charge) {time:8.3f} ns")
    provenance = (
        f"examples/pmt/train.py, numpy {np.__version__}, seed {SEED}, {STEPS} steps of {BATCH} crops; "
        "synthetic pulses of examples/pmt/pulses.py, no measured data"
    )
    told = {"provenance": np.array(provenance), "errors": errs, "templates": templates()}
    kept: dict[str, Any] = {**told, **w}
    np.savez_compressed(network.WEIGHTS, **kept)


if __name__ == "__main__":
    main()
