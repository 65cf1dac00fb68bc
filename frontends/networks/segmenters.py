"""DeepLab's shape in small: dilated convolutions, then a conditional random field that sharpens the labels.

    image ─ backbone, stride 8 ─ atrous pyramid ─ logits ─ Resize ×8 ─ MeanField ─ ArgMax

`MeanField` is an ONNX function of domain `knapper`: mean-field inference (Krähenbühl and Koltun, 2011). There the messages
between pixels go through a permutohedral lattice, which filters by position and colour in time linear in the pixels. Here
two Gaussian filters over position take its place, a narrow and a wide one, each as a row and a column pass. The traffic
and the arithmetic are of the kind that a CRF brings, depthwise and elementwise; the edges of the image play no part.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

from .classifiers import bottleneck
from .sketch import DOMAIN, OPSET, Array, Sketch

LABELS = 21
ITERATIONS = 10
RATES = (2, 4, 6)
"""Dilations of the pyramid's 3×3 convolutions, in pixels of the features; DeepLab's 6, 12, 18 are for images of 513²."""
FILTERS = {"narrow": (1.0, 3, 1), "wide": (4.0, 5, 2)}
"""Message passing: the Gaussian's σ in pixels, its taps to each side, their distance."""
OPERANDS = (
    "unary", "narrow.column", "narrow.row", "wide.column", "wide.row", "narrow.weight", "wide.weight", "compatibility",
)  # fmt: skip


def segmentation(batch: int = 1, size: int = 128) -> ModelProto:
    """f32[batch, 3, size, size] to `labels`, i64[batch, size, size], and `probabilities` [batch, 21, size, size]; size is a multiple of 8."""
    s = Sketch("segmentation")
    x, c = _backbone(s)
    logits = _pyramid(s, x, c)
    sizes = s.ints(batch, LABELS, size, size)
    grown = s.node(
        "Resize", logits, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel"
    )
    probabilities = _field(s, grown)
    labels = s.node("ArgMax", probabilities, axis=1, keepdims=0)
    return s.model(
        {"input": (batch, 3, size, size)},
        {
            "labels": (labels, TensorProto.INT64, (batch, size, size)),
            "probabilities": (probabilities, TensorProto.FLOAT, (batch, LABELS, size, size)),
        },
    )


def _backbone(s: Sketch) -> tuple[str, int]:
    """Bottleneck stages; the later ones dilate where a classifier would go down in resolution."""
    x = s.relu(s.norm(s.conv("input", (3, 64), 7, stride=2, pad=3, bias=False), 64))
    x, c = s.max_pool(x, 3, 2, 1), 64
    for width, stride, dilation in ((64, 1, 1), (64, 2, 1), (128, 1, 2), (128, 1, 4)):
        for block in range(2):
            x = bottleneck(s, x, c, width, 1 if block else stride, dilation)
            c = 4 * width
    return x, c


def _pyramid(s: Sketch, x: str, c: int) -> str:
    """The features at several dilations side by side, then a score for each label."""
    branches = [s.relu(s.conv(x, (c, 64), 1))]
    branches += [s.relu(s.conv(x, (c, 64), 3, pad=r, dilation=r)) for r in RATES]
    joined = s.node("Concat", *branches, axis=1)
    return s.conv(s.relu(s.conv(joined, (64 * len(branches), 64), 1)), (64, LABELS), 1)


# --- the conditional random field ---------------------------------------------------------------


def _field(s: Sketch, unary: str) -> str:
    """Call the function, with Gaussian filters and Potts compatibility: labels that differ cost 1."""
    s.functions.append(mean_field(ITERATIONS))
    operands = {"unary": unary}
    for name, (sigma, reach, distance) in FILTERS.items():
        taps = gaussian(sigma, reach, distance)
        weights = np.broadcast_to(taps, (LABELS, 1, len(taps)))
        operands[f"{name}.column"] = s.constant(weights[..., None].copy(), f"{name}.column")
        operands[f"{name}.row"] = s.constant(weights[:, :, None].copy(), f"{name}.row")
    operands["narrow.weight"], operands["wide.weight"] = s.scalar(3.0), s.scalar(5.0)
    potts = 1 - np.eye(LABELS, dtype=np.float32)
    operands["compatibility"] = s.constant(potts[..., None, None], "compatibility")
    return s.node("MeanField", *(operands[o] for o in OPERANDS), domain=DOMAIN, name="crf")


def gaussian(sigma: float, reach: int, distance: int) -> Array:
    """Weights at -reach … reach steps of `distance` pixels; they sum to 1.

    >>> gaussian(1.0, 1, 1).round(3).tolist()
    [0.27399998903274536, 0.4519999921321869, 0.27399998903274536]
    """
    at = np.arange(-reach, reach + 1) * distance
    taps = np.exp(-0.5 * (at / sigma) ** 2)
    return np.asarray(taps / math.fsum(taps), np.float32)


def mean_field(iterations: int) -> FunctionProto:
    """Q = softmax(unary), then `iterations` times Q = softmax(unary - compatibility · Σ weight · filter(Q))."""
    nodes = [helper.make_node("Softmax", ["unary"], ["q0"], "softmax0", axis=1)]
    for i in range(iterations):
        nodes += _iteration(i, "probabilities" if i + 1 == iterations else f"q{i + 1}")
    opset = helper.make_opsetid("", OPSET)
    return helper.make_function(DOMAIN, "MeanField", OPERANDS, ["probabilities"], nodes, [opset])


def _iteration(i: int, result: str) -> list[NodeProto]:
    node = helper.make_node
    nodes = [n for name in FILTERS for n in _message(name, i)]
    return [
        *nodes,
        node("Add", [f"narrow{i}", f"wide{i}"], [f"message{i}"], f"message{i}"),
        node(
            "Conv",
            [f"message{i}", "compatibility"],
            [f"penalty{i}"],
            f"compatibility{i}",
            kernel_shape=[1, 1],
        ),
        node("Sub", ["unary", f"penalty{i}"], [f"energy{i}"], f"energy{i}"),
        node("Softmax", [f"energy{i}"], [result], f"softmax{i + 1}", axis=1),
    ]


def _message(name: str, i: int) -> list[NodeProto]:
    """One filter: down the columns, along the rows, weighted."""
    _, reach, distance = FILTERS[name]
    node, taps, pad = helper.make_node, 2 * reach + 1, reach * distance
    column, row = f"{name}.column{i}", f"{name}.row{i}"
    return [
        node(
            "Conv", [f"q{i}", f"{name}.column"], [column], column,
            kernel_shape=[taps, 1], pads=[pad, 0, pad, 0], dilations=[distance, 1], group=LABELS,
        ),
        node(
            "Conv", [column, f"{name}.row"], [row], row,
            kernel_shape=[1, taps], pads=[0, pad, 0, pad], dilations=[1, distance], group=LABELS,
        ),
        node("Mul", [row, f"{name}.weight"], [f"{name}{i}"], f"{name}{i}"),
    ]  # fmt: skip
