"""The networks that run on the accelerator, as ONNX: one finds and measures pulses, the other counts them.

    wave[n,1,512] ── matched filters, Conv1D 1→16, k=48 ── the best of them ── the maximum in each gate ─┐
         └────────────────────────────────────────────── GatherElements: 64 samples around it: crop[2n,1,64]
    crop ─┬─ Conv1D 1→16, k=32 ─ Mish ─ Conv1D 16→32, k=8, stride 4 ─ Mish ─ dense ─(+)─ charge, offset
          └──────────────────────── dense ───────────────────────────────────────────┘

The filters and the first convolution of a crop have one input channel: tap by tap, a systolic array of 128 rows would use one
row. Taps side by side use as many rows as there are taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .conditions import Conditions

Weights = dict[str, NDArray[np.float32]]

WEIGHTS = Path(__file__).parent / "weights.npz"
CROP, ALIGN = 64, 22
"""Samples of a crop, and which of them is where the matched filter has its maximum."""
STRIDE = 4
"""Of the second convolution."""
TRAINED = "conv1", "bias1", "conv2", "bias2", "dense", "bias", "skip"
CHARGE_UNIT, WAVE_UNIT = 80.0, 8.0
"""The network is trained on mV/8, and on charges in 80 mV·ns: numbers near 1."""
FILTERS = "filters"
"""The name of the convolution with the templates."""
OPSET, IR_VERSION = 18, 8


@dataclass(frozen=True)
class Error:
    """How the network errs on pulses of one photo-electron, mV·ns or ns: a tube's pulses have one shape."""

    blur: float
    """Standard deviation on pulses of one shape."""
    bias: float
    """Mean, of all shapes in the family."""
    spread: float
    """Standard deviation over shapes of a shape's mean."""

    @classmethod
    def of(cls, weights: Weights, column: int, unit: float) -> Error:
        """Of charge (column 0) or time (1), as the training script measured it."""
        blur, _, bias, spread = weights["errors"][:, column] * unit
        return cls(float(blur), float(bias), float(spread))


class Sketch:
    """Collects nodes and constants of a model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op: str, *inputs: str, out: str = "", name: str = "", **attributes: Any) -> str:
        name = name or f"{op.lower()}{len(self.nodes)}"
        out = out or f"{name}_out"
        self.nodes.append(helper.make_node(op, inputs, [out], name, **attributes))
        return out

    def model(self, name: str, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def load(path: Path = WEIGHTS) -> Weights:
    """The trained weights; `provenance` says how they came about."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def finder(weights: Weights, conditions: Conditions, batch: int) -> onnx.ModelProto:
    """The network that finds the largest pulse of each gate.

    wave f32[batch, 1, samples], mV/8, without pedestal → for the dark gate's pulses, then the light gate's:
    charge f32[2·batch], in 80 mV·ns; start i64[2·batch] and offset f32[2·batch]: the time is their sum, ns. (One
    number of 16 bits would keep half a nanosecond.)
    """
    s = Sketch()
    filtered = matched_filter(s, weights)
    starts = [_start(s, filtered, gate) for gate in (conditions.dark, conditions.light)]
    crops = s.node("Concat", *(_crop(s, start) for start in starts), axis=0)
    y = measure(s, weights, crops)
    flat = s.constant([-1], np.int64)
    for i, name in enumerate(("charge", "offset")):
        column = s.node("Gather", y, s.constant(i, np.int64), axis=1)
        s.node("Reshape", column, flat, out=name)
    s.node("Reshape", s.node("Concat", *starts, axis=0), flat, out="start")
    wave = helper.make_tensor_value_info("wave", TensorProto.FLOAT, [batch, 1, conditions.samples])
    kinds = {"charge": TensorProto.FLOAT, "offset": TensorProto.FLOAT, "start": TensorProto.INT64}
    outputs = [helper.make_tensor_value_info(n, kind, [2 * batch]) for n, kind in kinds.items()]
    return s.model("pulse_finder", [wave], outputs)


def matched_filter(s: Sketch, weights: Weights) -> str:
    """The correlation with the template that fits best; it is largest where the pulse is. f32[batch, 1, samples]"""
    bank = weights["templates"]
    ahead = int(bank[0].argmax())
    pads = [ahead, bank.shape[1] - 1 - ahead]
    scores = s.node("Conv", "wave", s.constant(bank[:, None]), name=FILTERS, pads=pads)
    return s.node("ReduceMax", scores, s.constant([1], np.int64), keepdims=1)


def _start(s: Sketch, filtered: str, gate: tuple[int, int]) -> str:
    """The first sample of the crop around a gate's maximum. i64[batch, 1, 1]"""
    begin, end, axis = (s.constant([x], np.int64) for x in (*gate, 2))
    at = s.node("ArgMax", s.node("Slice", filtered, begin, end, axis), axis=2, keepdims=1)
    return s.node("Add", at, s.constant(gate[0] - ALIGN, np.int64))


def _crop(s: Sketch, start: str) -> str:
    """The samples from there on. f32[batch, 1, 64]"""
    indices = s.node("Add", start, s.constant(np.arange(CROP)[None, None], np.int64))
    return s.node("GatherElements", "wave", indices, axis=2)


def measure(s: Sketch, weights: Weights, crops: str) -> str:
    """Charge and offset of the pulse in each crop. f32[crops, 2]"""
    w = {name: s.constant(weights[name]) for name in TRAINED}
    x = mish(s, s.node("Conv", crops, w["conv1"], w["bias1"], name="conv1"))
    x = mish(s, s.node("Conv", x, w["conv2"], w["bias2"], name="conv2", strides=[STRIDE]))
    deep = s.node("Gemm", s.node("Flatten", x), w["dense"], w["bias"])
    return s.node("Add", deep, s.node("MatMul", s.node("Flatten", crops), w["skip"]))


def mish(s: Sketch, x: str) -> str:
    """x · tanh(log(1 + eˣ))"""
    return s.node("Mul", x, s.node("Tanh", s.node("Softplus", x)))


def poisson(cases: int) -> onnx.ModelProto:
    """The network that takes μ = −ln(N0/N): N cases, in N0 of which a Poisson distribution gave 0.

    hits i32[cases] (N − N0), of i32[cases] (N) → means f32[cases], compiled in fp32.
    """
    s = Sketch()
    none = s.node("Cast", s.node("Sub", "of", "hits"), to=TensorProto.FLOAT)
    part = s.node("Div", none, s.node("Cast", "of", to=TensorProto.FLOAT))
    s.node("Neg", s.node("Log", part), out="means")
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT32, [cases]) for n in ("hits", "of")]
    means = helper.make_tensor_value_info("means", TensorProto.FLOAT, [cases])
    return s.model("poisson", inputs, [means])


def histogram(values: int, bins: int) -> onnx.ModelProto:
    """The network that counts: for the SIMD lanes, there is nothing in it that an array could do.

    values f32[values], low f32[1], per_bin f32[1] (bins per unit) → counts i32[bins + 2]: [0] is what is below `low`,
    [bins + 1] what is above. It is compiled in fp32, and counts in integers: bin edges and counts are exact.
    """
    s = Sketch()
    scaled = s.node("Mul", s.node("Sub", "values", "low"), "per_bin")
    bounded = s.node("Clip", s.node("Floor", scaled), s.constant(-1), s.constant(bins))
    column = s.node(
        "Unsqueeze", s.node("Cast", bounded, to=TensorProto.INT32), s.constant([0], np.int64)
    )
    which = s.constant(np.arange(-1, bins + 1)[:, None], np.int32)
    hit = s.node("Cast", s.node("Equal", column, which), to=TensorProto.INT32)
    axis = s.constant([1], np.int64)
    s.node("ReduceSum", hit, axis, out="counts", keepdims=0)
    sizes = {"values": [values], "low": [1], "per_bin": [1]}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in sizes.items()]
    counts = helper.make_tensor_value_info("counts", TensorProto.INT32, [bins + 2])
    return s.model("histogram", inputs, [counts])
