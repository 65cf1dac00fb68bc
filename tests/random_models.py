"""Random ONNX models that are valid, and that onnxruntime gives one answer to.

    seed ─► Writer ─► 2 to 12 nodes, each on values that are there ─► ModelProto + inputs ─► compile, emulate │ onnxruntime ─► compare

Shapes and types of results are those of ONNX's own inference, node by node. Nodes are those of
`random_nodes`, `random_types` and `random_layers`; what writes them is `random_writer`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import random_layers  # these three register nodes
import random_nodes
import random_types
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from random_writer import OPSETS, Writer

Array = NDArray[Any]
__all__ = [
    "Case",
    "differences",
    "draw",
    "error",
    "narrow",
    "random_layers",
    "random_nodes",
    "random_types",
]


@dataclass(frozen=True)
class Case:
    """A model and inputs for it."""

    model: ModelProto
    inputs: dict[str, Array]

    def __repr__(self) -> str:
        return onnx.printer.to_text(self.model)


# --- models -------------------------------------------------------------------------------------------------------------


def draw(rng: random.Random, smooth: bool = False) -> Case:
    """A model of 2 to 12 nodes; its outputs are what nothing reads, and some of the rest."""
    w = Writer(rng, smooth, rng.choice(OPSETS))
    wanted = rng.randrange(2, 13)
    for _ in range(1000):
        if sum(n.op_type != "Constant" for n in w.nodes) >= wanted:
            break
        w.step()
    return _case(w)


def _case(w: Writer) -> Case:
    written = {o for n in w.nodes if n.op_type != "Constant" for o in n.output}
    read = {i for n in w.nodes for i in n.input} | w.reads
    made = [v for v in w.values if v.name in written]
    outputs = [v for v in made if v.name not in read or w.flip(6)]
    ports = [v for v in w.ports if v.name in read]
    infos = [
        [helper.make_tensor_value_info(v.name, v.dtype, v.shape) for v in vs]
        for vs in (ports, outputs)
    ]
    infos[1] += w.finals
    weights = [numpy_helper.from_array(a, n) for n, a in w.weights.items() if n in read]
    nodes = [n for n in w.nodes if n.op_type != "Constant" or n.output[0] in read]
    graph = helper.make_graph(nodes, "net", *infos, weights)
    opsets = [helper.make_opsetid("", w.opset)]
    version = helper.find_min_ir_version_for(opsets)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=max(version, 8))
    return Case(model, {v.name: w.inputs[v.name] for v in ports})


# --- comparing ----------------------------------------------------------------------------------------------------------


def differences(got: Mapping[str, Array], want: Mapping[str, Array], bound: float) -> list[str]:
    """What is not as it should be: floats within `bound` of the largest, others equal."""
    found = []
    for name, r in want.items():
        y = got[name]
        if (y.shape, y.dtype) != (r.shape, r.dtype):
            found.append(f"{name}: {y.dtype}{list(y.shape)}, not {r.dtype}{list(r.shape)}")
        elif r.dtype.kind != "f":
            if n := np.count_nonzero(y != r):
                found.append(f"{name}: {n} of {r.size} differ")
        elif r.size and not (e := error(y, r)) <= bound:
            found.append(f"{name}: error {e:.2e} of the largest")
    return found


def narrow(model: ModelProto) -> bool:
    """Whether there are values of 16 bits in it."""
    to = (a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute)
    return TensorProto.FLOAT16 in to


def error(y: Array, r: Array) -> float:
    """The largest error, relative to the largest value; infinite where one is NaN and the other is not.

    >>> error(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    0.5
    """
    if not np.array_equal(np.isfinite(y), np.isfinite(r)):
        return float("inf")
    good = np.isfinite(r)
    largest = float(np.abs(r[good]).max(initial=0)) or 1.0
    return float(np.abs(y[good].astype(np.float64) - r[good]).max(initial=0)) / max(largest, 1e-3)
