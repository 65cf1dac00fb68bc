"""What quantization costs trained networks: labels that they still get right, and errors of their outputs, method by method.

    float network ─► ranges of its values, from training images ─► quantize{…} ─► emulated on test images ─► top-1, error
                                                                             └─► simulated ─► the same labels

Weights are i2 … i8, activations u2 … u8, with `ant` integers or flint on both sides; one scale a channel and one an activation; the first and the
last layer have 8 bits, as in the papers. All methods but SQuant's `minmax` search their scales for the least squared error, so that what they
differ in is the rounding.
The rounded networks run in integers on the emulator, every instruction of them. The float network, what its values' ranges are and what is
learned are simulated, in float32 by BLAS, whose sums are not bit-exact; a row a set compares both. onnxruntime's own quantization of the same model,
on the same images, stands beside them.

The networks and images are not part of the project but for the example's; rows of the others exist where `KNAPPER_DATA` has them, and those of
Fashion-MNIST's other test images where Debian's package `dataset-fashion-mnist` is installed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np

from knapper.compiler import pipeline
from knapper.compiler.driver import compile_graph
from knapper.compiler.ir import Array, Graph
from knapper.compiler.passes.aquant import AQuant
from knapper.compiler.passes.quantize import Quantize
from knapper.compiler.quantization.datafree import observe
from knapper.compiler.quantization.ranges import Ranges
from knapper.compiler.quantization.simulate import Simulation
from knapper.isa.machine import Machine

from .. import demo
from ..api import Image
from ..calibrate import split
from ..dataset import Choice, open_data
from ..evaluate import InOnnxruntime
from ..feed import Feed, Pixels
from ..onnx.door import read
from .claims import Claim, Lab

Batch = Mapping[str, Array]
DEMO = Path(demo.__file__).parent
BITS = ((8, 8), (6, 6), (4, 8), (4, 4), (3, 3), (2, 4), (2, 2))
"""Of weights and of activations."""
METHODS = {
    "nearest": ("nearest", "mse", "u"), "squant": ("squant", "mse", "u"), "minmax": ("squant", "minmax", "u"), "ant": ("ant", "ant", "ant"),
    "aquant": ("nearest", "mse", "u"), "learned": ("nearest", "mse", "u"),
}  # fmt: skip
"""Name here → options `weight_method` and `weight_scale`, and the kind of activations: integers, or integers or flint (`ant`). `aquant` learns
borders as well, `learned` the weights' roundings, too."""
LEARNING = ("aquant", "learned")
THREADS = 2
TARGET = "volta-8tc"
"""Where rounded networks run. Integers are the same everywhere."""
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Of the package `dataset-fashion-mnist`: 60,000 and 10,000 images."""


@dataclass(frozen=True)
class Subject:
    """A network and its images."""

    name: str
    model: str
    data: str
    floats: float
    """Top-1 in float32, of the images that are taken."""
    images: int
    training: int
    batch: int
    pixels: Pixels = field(default=Pixels(), hash=False)
    folder: Path | None = None
    """None: `KNAPPER_DATA`'s."""
    bits: tuple[tuple[int, int], ...] = BITS
    apart: bool = True
    """Whether it is judged by other images than it is calibrated on."""

    @property
    def paths(self) -> tuple[Path, Path]:
        """Of model and data."""
        if self.folder is not None:
            return self.folder / self.model, self.folder / self.data
        root = Path(os.environ.get("KNAPPER_DATA", "../shared"))
        return root / "models" / self.model, root / "data" / self.data

    @property
    def here(self) -> bool:
        """Whether there is anything to measure."""
        return all(p.exists() for p in self.paths)


CIFAR = Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
FASHION = Pixels(mean=(demo.MEAN,), std=(demo.STD,))
SUBJECTS = (
    Subject("fashion", "fashion.onnx", "fashion.npz", 0.89, 100, 100, 50, FASHION, DEMO, apart=False),
    Subject("fashion10k", "fashion.onnx", str(DEBIAN), 0.926, 1000, 500, 50, FASHION, DEMO),
    Subject("resnet20", "resnet20_cifar10.onnx", "cifar10_small.npz", 0.874, 500, 240, 50, CIFAR),
    Subject("lite0", "efficientnet_lite0.onnx", "imagenet_120.npz", 0.875, 120, 24, 8, Pixels(1, (127,), (128,)), bits=((8, 8), (4, 8))),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Bench:
    """A network that was read, with its batches and ranges."""

    graph: Graph
    tests: Sequence[Batch]
    labels: Array
    training: Sequence[Batch]
    ranges: Ranges

    @cached_property
    def floats(self) -> Array:
        """Outputs of the network as it is."""
        return self.outputs(self.graph)

    def quantized(self, weights: int, activations: int, method: str) -> Graph:
        """Rounded."""
        how, scale, kind = METHODS[method]
        plain = Quantize(
            f"i{weights}", f"{kind}{activations}", weight_method=how, weight_scale=scale, first_last="i8", observed=self.ranges,
        )  # fmt: skip
        if method not in LEARNING:
            return plain.run(self.graph)
        options = {f.name: getattr(plain, f.name) for f in fields(plain)}
        learning = AQuant(**options, batches=self.training, learn_weights=method == "learned")
        return learning.run(self.graph)

    def outputs(self, g: Graph) -> Array:
        """[images, classes] of a network of the same inputs."""
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(partial(_outputs, g), self.tests))
        return np.concatenate(found)

    def emulated(self, g: Graph) -> Array:
        """[images, classes] as `outputs`, of a rounded network, in integers on the emulator."""
        _, behind = split(pipeline.preset("fp32"))
        image = Image(compile_graph(g, Machine.load(TARGET), ",".join(map(str, behind))))
        with image.session() as session:
            found = [session.run(x, threads=THREADS).outputs for x in self.tests]
        return np.concatenate([y.reshape(len(y), -1) for (y,) in map(dict.values, found)])

    def right(self, outputs: Array) -> float:
        """The share of images."""
        return float((outputs.argmax(axis=1) == self.labels[: len(outputs)]).mean())


def _outputs(g: Graph, x: Batch) -> Array:
    (outputs,) = Simulation(g, [x]).run()
    y = next(iter(outputs.values()))
    return y.reshape(len(y), -1)


@cache
def bench(subject: Subject, images: int) -> Bench:
    """A subject, so many test images."""
    model, data = subject.paths
    shapes = {n: (subject.batch, *t.shape[1:]) for n, t in read(model).inputs.items()}
    before, _ = split(pipeline.preset("fp32"))
    g = pipeline.run(read(model, shapes, replace_fixed=True), before)
    tests, labels = _batches(g, subject, data, Choice(limit=images))
    training, _ = _batches(g, subject, data, Choice(split="train", limit=subject.training))
    ranges = observe(g, training, Quantize().wanted(g))
    return Bench(g, tests, labels, training, ranges)


def _batches(g: Graph, subject: Subject, data: Path, choice: Choice) -> tuple[list[Batch], Array]:
    """Whole batches, and labels."""
    found = open_data(data, g.inputs, choice)
    feed = Feed(found, g.inputs, subject.pixels)
    starts = range(0, len(found) - feed.batch + 1, feed.batch)
    labels = found.labels
    assert labels is not None
    return [feed.take(range(i, i + feed.batch)) for i in starts], labels


# --- what rows ask


def subjects() -> Iterator[Subject]:
    """Those that are here."""
    return (s for s in SUBJECTS if s.here)


def _bench(lab: Lab, subject: Subject) -> Bench:
    return bench(subject, max(subject.batch, subject.images // lab.sizes.shrink))


@cache
def _measured(at: Bench, weights: int, activations: int, method: str) -> tuple[float, float]:
    """(top-1, mean squared error of the outputs beside the float network's); of floats themselves for 0 bits."""
    if not weights:
        return at.right(at.floats), 0.0
    y = at.emulated(at.quantized(weights, activations, method))
    return at.right(y), float(np.square(y - at.floats).mean())


def top1(lab: Lab, subject: Subject, weights: int, activations: int, method: str) -> float:
    """Of a quantized network."""
    return _measured(_bench(lab, subject), weights, activations, method)[0]


def error(lab: Lab, subject: Subject, weights: int, activations: int, method: str) -> float:
    """Of the outputs, by that of rounding to the nearest."""
    at = _bench(lab, subject)
    both = (_measured(at, weights, activations, m)[1] for m in (method, "nearest"))
    mine, nearest = both
    return mine / nearest


def alike(lab: Lab, subject: Subject, weights: int, activations: int, method: str) -> float:
    """The share of labels that are the same emulated and simulated."""
    at = _bench(lab, subject)
    g = at.quantized(weights, activations, method)
    found = (y.argmax(axis=1) for y in (at.emulated(g), at.outputs(g)))
    return float(np.equal(*found).mean())


def recovered(
    lab: Lab, subject: Subject, weights: int, activations: int, methods: Sequence[str]
) -> float:
    """How much of what rounding to the nearest loses the best of some methods does not lose; 1 if that loses nothing."""
    at = _bench(lab, subject)
    floats, nearest = (
        _measured(at, w, a, m)[0] for w, a, m in ((0, 0, ""), (weights, activations, "nearest"))
    )
    best = max(_measured(at, weights, activations, m)[0] for m in methods)
    return (best - nearest) / (floats - nearest) if floats > nearest else 1.0


def rows(
    prefix: str, methods: Sequence[str], some: Sequence[tuple[int, int]] = BITS
) -> Iterator[Claim]:
    """Top-1 of every network that is here, at some numbers of bits, by some methods; 8 bits may cost a point."""
    for subject in subjects():
        for weights, activations in (pair for pair in subject.bits if pair in some):
            for method in methods:
                yield Claim(
                    f"{prefix}.{subject.name}.w{weights}a{activations}.{method}",
                    f"top-1 of {subject.name} at W{weights}A{activations}, {method}, beside floats'", (subject.floats,) * 2, "input",
                    0.01 / subject.floats if (weights, activations) == (8, 8) else 0.05,
                    partial(top1, subject=subject, weights=weights, activations=activations, method=method),
                    f"floats on the same {subject.images:,} images; ours: {_how(subject)}", "", swept=False,
                )  # fmt: skip


def _how(subject: Subject) -> str:
    on = f"{subject.training} other" if subject.apart else "the same"
    return f"calibrated on {on} images, emulated in integers on {TARGET}"


def emulations(prefix: str, weights: int, activations: int, method: str) -> Iterator[Claim]:
    """That what is emulated is what is simulated: labels of the example."""
    subject = SUBJECTS[0]
    yield Claim(
        f"{prefix}.{subject.name}.w{weights}a{activations}.{method}.emulated",
        f"share of {subject.name}'s labels that are the same emulated and simulated, W{weights}A{activations}, {method}", (1.0, 1.0), "derived", 0.01,
        partial(alike, subject=subject, weights=weights, activations=activations, method=method),
        "the same network in float32, by BLAS, whose sums round otherwise: an image may differ; "
        f"ours: {subject.images} images, in integers on {TARGET}", "", swept=False,
    )  # fmt: skip


def gaps(prefix: str, methods: Sequence[str]) -> Iterator[Claim]:
    """What the best of some methods recovers of rounding to the nearest at W4A8."""
    for subject in (s for s in subjects() if s.apart):
        yield Claim(
            f"{prefix}.{subject.name}.recovered", f"{subject.name} at W4A8: share of what rounding to the nearest loses that the best method keeps",
            (0.5, np.inf), "input", 0.0, partial(recovered, subject=subject, weights=4, activations=8, methods=tuple(methods)),
            f"a target of ours; ours: best of {', '.join(methods)}; {_how(subject)}", "", swept=False,
        )  # fmt: skip


def peers(prefix: str) -> Iterator[Claim]:
    """onnxruntime's own."""
    for subject in subjects():
        yield Claim(
            f"{prefix}.{subject.name}.w8a8.onnxruntime", f"top-1 of {subject.name} at W8A8, quantized and run by onnxruntime, beside floats'",
            (subject.floats,) * 2, "input", 0.01 / subject.floats, partial(peer, subject=subject),
            f"floats on the same {subject.images:,} images; ours: none, it is the peer: quantize_static by channel, extremes of the same images", "",
            swept=False,
        )  # fmt: skip


def errors(prefix: str, methods: Sequence[str], some: Sequence[tuple[int, int]]) -> Iterator[Claim]:
    """Errors of outputs on images that nothing was learned from, by those of rounding to the nearest; 5 % less is the target."""
    for subject in (s for s in subjects() if s.apart):
        for weights, activations in (pair for pair in subject.bits if pair in some):
            for method in methods:
                yield Claim(
                    f"{prefix}.{subject.name}.w{weights}a{activations}.{method}.error",
                    f"squared error of {subject.name}'s outputs at W{weights}A{activations}, {method}, by that of rounding to the nearest",
                    (0.0, 0.95), "input", 0.0, partial(error, subject=subject, weights=weights, activations=activations, method=method),
                    f"a target of ours; ours: {_how(subject)}", "", swept=False,
                )  # fmt: skip


# --- onnxruntime


class _Reader:
    """What `quantize_static` reads calibration data from."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.left = iter(batches)

    def get_next(self) -> Batch | None:
        return next(self.left, None)


def peer(lab: Lab, subject: Subject) -> float:
    """Top-1 of what onnxruntime makes of the model: 8 bits, weights by channel, ranges by extremes."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    at = _bench(lab, subject)
    model = onnx.load(str(subject.paths[0]))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = subject.batch
    del model.graph.value_info[:]
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, rounded = (f"{folder}/{n}.onnx" for n in ("plain", "ready", "rounded"))
        onnx.save(model, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready, rounded, _Reader(at.training), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        network = InOnnxruntime(rounded)
        (first,) = network.outputs[:1]
        return at.right(np.concatenate([network.oracle.run(x)[first] for x in at.tests]))
