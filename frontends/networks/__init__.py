"""The networks of the papers' experiments, as functions: a name and a size give an `onnx.ModelProto`, no files needed.

    network = NETWORKS["resnet50"]
    model = network.build(batch=16)
    write("resnet50", "resnet50.onnx")           # or: python -m knapper.frontends.networks resnet50 -o resnet50.onnx

Weights are random and seeded: what a machine spends on a dense network does not depend on what it has learned, and no
trained weights could be shipped. Where the data decides how much work there is (how many boxes a detector keeps), the
numbers are those of this seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from knapper.isa.errors import UsageError

from .classifiers import alexnet, resnet18, resnet50, vgg16
from .detectors import detector, detector_head
from .inception import inception_v1
from .segmenters import segmentation
from .transformers import bert_base, minilm


@dataclass(frozen=True)
class Network:
    """A row of the table: `builder(batch, size)`, the size that papers use, and what the size is of."""

    builder: Callable[[int, int], ModelProto]
    size: int
    of: str = "image"

    @property
    def doc(self) -> str:
        """What it is, in a line."""
        return (self.builder.__doc__ or "").partition("\n")[0]

    def build(self, batch: int = 1, size: int | None = None) -> ModelProto:
        """The model, with images of size×size or sequences of that length."""
        return self.builder(batch, size or self.size)


NETWORKS: dict[str, Network] = {
    "alexnet": Network(alexnet, 227),
    "vgg16": Network(vgg16, 224),
    "inception_v1": Network(inception_v1, 224),
    "resnet18": Network(resnet18, 224),
    "resnet50": Network(resnet50, 224),
    "bert_base": Network(bert_base, 128, "sequence"),
    "minilm": Network(minilm, 128, "sequence"),
    "detector": Network(detector, 256),
    "detector_head": Network(detector_head, 16, "feature map"),
    "segmentation": Network(segmentation, 128),
}


def build(name: str, batch: int = 1, size: int | None = None) -> ModelProto:
    """A network by name; UsageError E707 if there is none of that name."""
    if name not in NETWORKS:
        raise UsageError("E707", f"no network {name!r}", hint=f"there are {', '.join(NETWORKS)}")
    return NETWORKS[name].build(batch, size)


def write(name: str, path: str | Path, batch: int = 1, size: int | None = None) -> None:
    """Write a network to an .onnx file, for `knapper compile`."""
    from ..files import write as write_file

    write_file(path, build(name, batch, size).SerializeToString())
