"""The pass `quantize`: which nodes it makes, whose options they follow, and what it says of options that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from knapper.compiler import pipeline
from knapper.compiler.ir import Graph, Node, Type, evaluate, infer
from knapper.compiler.passes.quantize import Quantize, SQuant
from knapper.compiler.quantization.datafree import normalized, observe
from knapper.compiler.quantization.layers import decibels
from knapper.compiler.quantization.ranges import Ranges
from knapper.compiler.quantization.report import report
from knapper.compiler.quantization.simulate import Simulation
from knapper.isa.errors import PassError

Array = NDArray[Any]


class Net:
    """A graph, node by node."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.types = {n: Type("f32", s) for n, s in inputs.items()}
        self.inputs, self.nodes, self.constants = dict(self.types), list[Node](), dict[str, Array]()
        self.rng = np.random.default_rng(0)

    def weight(self, name: str, *shape: int, scale: float = 0.3) -> str:
        self.constants[name] = self.rng.normal(0, scale, shape).astype(np.float32)
        self.types[name] = Type("f32", shape)
        return name

    def op(self, name: str, v: str, *operands: str, **attrs: Any) -> str:
        types = infer(name, [self.types[o] for o in operands], attrs)
        self.nodes.append(Node(name, operands, (v,), types[:1], attrs, loc=f"node_{v}"))
        self.types[v] = types[0]
        return v

    def graph(self, *outputs: str) -> Graph:
        return Graph("net", self.inputs, {f"out_{v}": v for v in outputs}, tuple(self.nodes), self.constants).verify()  # fmt: skip


def residual() -> Graph:
    """conv1 → relu → conv2 → (+ relu) → pool → matrix."""
    n = Net(x=(1, 3, 8, 8))
    n.op("Conv", "c1", "x", n.weight("w1", 8, 3, 3, 3), n.weight("b1", 8), pads=(1, 1, 1, 1))
    n.op("Relu", "r1", "c1")
    n.op("Conv", "c2", "r1", n.weight("w2", 8, 8, 3, 3), n.weight("b2", 8), pads=(1, 1, 1, 1))
    n.op("Add", "sum", "c2", "r1")
    n.op("Relu", "r2", "sum")
    n.op("Conv", "c3", "r2", n.weight("w3", 8, 1, 3, 3), group=8)
    n.op("GlobalAveragePool", "p", "c3")
    n.op("Reshape", "flat", "p", shape=(1, 8))
    n.op("Gemm", "y", "flat", n.weight("w4", 5, 8), n.weight("b4", 5), transB=1)
    return n.graph("y")


G = residual()
RNG = np.random.default_rng(1)
BATCHES = [{"x": RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(6)]


def observed() -> Ranges:
    r = Ranges()
    for batch in BATCHES:
        s = Simulation(G, [batch])
        for n in G.nodes:
            s.step(n)
        r = r.with_(
            {v: a for v, a in s.envs[0].items() if a is not None and v not in G.constants and v}
        )
    return r


RANGES = observed()


def quantized(**options: Any) -> Graph:
    return Quantize(observed=RANGES, **options).run(G).verify()


def nodes(g: Graph, op: str) -> list[Node]:
    return [n for n in g.nodes if n.op == op]


def quality(g: Graph) -> float:
    """Signal to noise of the output, in dB."""
    pairs = [(evaluate(G, b)["out_y"], evaluate(g, b)["out_y"]) for b in BATCHES[:3]]
    return decibels(*map(np.concatenate, zip(*pairs, strict=True)))


def test_products_read_integers() -> None:
    g = quantized()
    makers = g.producers()
    for n in (n for n in g.nodes if n.op in ("Conv", "Gemm")):
        x, w, *bias = (makers[v] for v in n.inputs)
        assert (x.op, w.op) == ("DequantizeLinear", "DequantizeLinear")
        assert makers[x.inputs[0]].op == "QuantizeLinear"
        assert g.constants[w.inputs[0]].dtype == np.int8
        for b in bias:
            assert g.constants[b.inputs[0]].dtype == np.int32
            assert g.constants[b.inputs[1]] == pytest.approx(g.constants[w.inputs[1]] * g.constants[x.inputs[1]])  # fmt: skip
    assert quality(g) > 30


def test_readers_share_a_pair_and_registers_are_not_rounded() -> None:
    g = quantized()
    # x, r1 (conv2 and the sum), r2, c3 (a grouped product behind which the mean is another launch's), flat
    rounded = [n.inputs[0] for n in nodes(g, "QuantizeLinear")]
    assert rounded.count("r1") == 1
    assert "c2" not in rounded
    assert set(rounded) >= {"x", "r1", "r2", "flat"}
    (add,) = nodes(g, "Add")
    assert add.inputs[0] == "c2"


def test_sums_stay_wide_where_products_are_narrow() -> None:
    g = quantized(weights="i4", activations="u4")
    formats = {n.inputs[0]: [] for n in nodes(g, "QuantizeLinear")}  # type: ignore[var-annotated]
    for n in nodes(g, "QuantizeLinear"):
        formats[n.inputs[0]].append(n.attrs.get("format", n.attr("to")))
    assert formats["r1"] == ["u4", "u8"]
    assert formats["x"] == ["u4"]
    assert len(nodes(quantized(weights="i4", activations="u4", between="float"), "QuantizeLinear")) < len(nodes(g, "QuantizeLinear"))  # fmt: skip


def test_what_calibration_has_to_observe() -> None:
    wanted = Quantize().wanted(G)
    assert set(wanted) == {n.inputs[0] for n in nodes(quantized(), "QuantizeLinear")}
    some = Ranges({v: RANGES[v] for v in wanted})
    assert Quantize(observed=some).run(G) == quantized()


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"weights": "i4", "weight_method": "squant"}, 8),
        ({"weights": "i4", "weight_method": "squant", "weight_scale": "minmax"}, 8),
        ({"weights": "i4", "weight_method": "ant"}, 8),
        ({"weights": "flint4"}, 8),
        ({"weights": "pot4", "activations": "uflint4", "between": "u8"}, 3),
        ({"weights": "i8", "activations": "i8", "symmetric": True}, 25),
        ({"per_channel": False}, 25),
        ({"weights": "i4", "weight_method": "ant", "activations": "ant4", "first_last": "i8"}, 5),
        ({"activations": "ant4", "first_last": "i16", "between": "i16"}, 5),
        ({"activations": "ant2"}, 0),
        ({"method": "percentile"}, 20),
        ({"bias": False}, 30),
        ({"bias_correction": True, "weights": "i4"}, 8),
    ],
)
def test_other_recipes(options: dict[str, Any], least: float) -> None:
    assert quality(quantized(**options)) > least


def test_weights_only_needs_no_ranges() -> None:
    g = Quantize(weights="i4", activations="float").run(G).verify()
    assert not nodes(g, "QuantizeLinear")
    assert len(nodes(g, "DequantizeLinear")) == 4
    assert [n for n in SQuant(4).run(G).nodes if n.op == "DequantizeLinear"]
    assert SQuant(4, scale="mse").run(G) == Quantize("i4", "float", weight_method="squant-ekc").run(G)  # fmt: skip


def formats(g: Graph) -> dict[str, str]:
    """Product → the type of its weights."""
    makers = g.producers()
    found = {}
    for n in (n for n in g.nodes if n.op in ("Conv", "Gemm", "MatMul")):
        w = makers.get(n.inputs[1])
        found[n.outputs[0]] = "float" if w is None else w.inputs[0].rpartition(".")[2]
    return found


def test_who_is_meant(tmp_path: Path) -> None:
    assert formats(quantized(exclude="node_c2|Gemm")) == {"c1": "i8", "c2": "float", "c3": "i8", "y": "float"}  # fmt: skip
    assert formats(quantized(include="w1|c3")) == {
        "c1": "i8",
        "c2": "float",
        "c3": "i8",
        "y": "float",
    }
    ends = quantized(weights="i4", first_last="i8")
    assert formats(ends) == {"c1": "i8", "c2": "i4", "c3": "i4", "y": "i8"}
    given = ("node_c*: weights=i8 activations=u8", "node_c2: float")
    assert formats(quantized(weights="i4", overrides=given)) == {"c1": "i8", "c2": "float", "c3": "i8", "y": "i4"}  # fmt: skip
    (tmp_path / "o.toml").write_text('["*c3"]\nweights = "i6"\n')
    (tmp_path / "o.json").write_text(json.dumps({"Gemm": "float"}))
    files = (str(tmp_path / "o.toml"), str(tmp_path / "o.json"))
    assert formats(quantized(weights="i4", overrides=files)) == {"c1": "i4", "c2": "i4", "c3": "i6", "y": "float"}  # fmt: skip


def test_the_worst_layers_get_more_bits() -> None:
    sizes = {
        n.outputs[0]: G.constants[n.inputs[1]].size for n in G.nodes if n.op in ("Conv", "Gemm")
    }
    none, some, all_ = (formats(quantized(weights="i4", promote="i8", budget=b)) for b in (4, 5, 8))
    assert set(none.values()) == {"i4"}
    assert set(all_.values()) == {"i8"}
    bits = sum(size * int(some[v][1:]) for v, size in sizes.items()) / sum(sizes.values())
    assert 4 < bits <= 5


def test_corrected_biases_have_no_shift() -> None:
    def shift(**options: Any) -> float:
        g = quantized(weights="i3", activations="float", **options)
        a, b = (
            np.stack([evaluate(x, batch)["out_y"] for batch in BATCHES]).mean(0) for x in (G, g)
        )
        return float(np.abs(a - b).mean())

    assert shift(bias_correction=True) < 0.8 * shift()
    asking = Quantize(weights="i3", activations="float", bias_correction=True)
    assert asking.wanted(G) == ["x", "r1", "r2", "flat"]
    with pytest.raises(PassError, match="E306: quantize: bias_correction has no ranges"):
        asking.run(G)


def test_in_a_pipeline() -> None:
    (p,) = pipeline.parse('quantize{weights="i4",activations="float",overrides=["fc: float"]}')
    assert isinstance(p, Quantize)
    assert str(p) == 'quantize{activations="float",overrides=["fc: float"],weights="i4"}'
    g = pipeline.run(G, pipeline.parse("squant{bits=4}"))
    assert quality(g) > 8


def test_a_table_of_layers() -> None:
    text = report(G, quantized(weights="i4", first_last="i8"), RANGES)
    rows = [line.split() for line in text.splitlines()]
    assert [r[0] for r in rows[1:5]] == ["node_c1", "node_c2", "node_c3", "node_y"]
    assert [r[1] for r in rows[1:5]] == ["i8", "i4", "i4", "i8"]
    assert float(rows[1][2]) > float(rows[2][2]) + 10


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"weights": "i1"}, "no format for weights"),
    "float format": ({"weights": "f8e4m3"}, "no format for weights"),
    "weights without a sign": ({"weights": "u8"}, "weights='u8'"),
    "weights beyond 32 bits": ({"weights": "pot7"}, "weights='pot7'"),
    "activations beyond 16 bits": ({"activations": "upot5"}, "activations='upot5'"),
    "types of two bits": ({"weights": "i2", "weight_method": "ant"}, "no format flint2"),
    "ends without a sign": ({"first_last": "u4"}, "first_last='u4'"),
    "sums beyond 16 bits": ({"between": "upot7"}, "between='upot7'"),
    "promotion to float": ({"promote": "float", "budget": 8.0}, "promote='float'"),
    "promotion without a budget": ({"promote": "i8"}, "promote='i8', budget=0"),
    "budget without a promotion": ({"budget": 4.5}, "promote='', budget=4.5"),
    "ends that SQuant cannot have": (
        {"weights": "i4", "weight_method": "squant", "first_last": "flint4"},
        "squant chooses integers",
    ),
    "method": ({"weight_method": "best"}, "weight_method='best' is none"),
    "scale": ({"weight_scale": "best"}, "weight_scale='best' is none"),
    "range": ({"method": "best"}, "method='best' is none"),
    "ends": ({"first_last": "x"}, "first_last='x'"),
    "between": ({"between": "f8e4m3"}, "between='f8e4m3'"),
    "squant of flint": ({"weights": "flint4", "weight_method": "squant"}, "chooses integers"),
    "override": ({"overrides": ("fc",)}, "no override"),
    "override's option": ({"overrides": ("*: colour=red",)}, "no option of a layer"),
    "override's format": ({"overrides": ("*: weights=i99",)}, "no format for weights"),
    "no file": ({"overrides": ("none.toml",)}, "no overrides"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_options_that_are_none(wrong: str) -> None:
    options, text = WRONG[wrong]
    with pytest.raises(PassError, match="E306") as e:
        quantized(**options)
    assert text in str(e.value)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["nearest", "squant", "ant"])
def test_weights_that_are_no_numbers(broken: float, method: str) -> None:
    w = G.constants["w2"].copy()
    w[3, 1, 0, 2] = broken
    g = G.with_(constants={**G.constants, "w2": w})
    options = {"weights": "i4", "activations": "float", "weight_method": method}
    with pytest.raises(PassError, match="E306: quantize: weights of node_c2 are not finite"):
        Quantize(**options).run(g)
    Quantize(**options, exclude="node_c2").run(g)


def test_what_is_missing() -> None:
    with pytest.raises(PassError, match="activations have no ranges"):
        Quantize().run(G)
    with pytest.raises(PassError, match="no range of %x"):
        Quantize(observed=Ranges()).run(G)
    with pytest.raises(PassError, match="no product"):
        quantized(include="nothing")


def with_norms() -> Graph:
    """Two normalized convolutions of which the normalizations say the truth: their moments are those of random inputs."""
    n = Net(x=(4, 3, 10, 10))
    n.op("Conv", "c1", "x", n.weight("w1", 16, 3, 3, 3), pads=(1, 1, 1, 1))
    for k in ("scale1", "bias1", "scale2", "bias2"):
        n.weight(k, 16, scale=0.7)
    x = np.random.default_rng(0).normal(size=(4, 3, 10, 10)).astype(np.float32)

    def moments(v: str, k: int) -> None:
        for name in (f"mean{k}", f"var{k}"):
            n.weight(name, 16)
        g = Graph("part", n.inputs, {"v": v}, tuple(n.nodes), n.constants)
        y = Simulation(g, [{"x": x}]).run()[0]["v"]
        n.constants[f"mean{k}"][:], n.constants[f"var{k}"][:] = y.mean((0, 2, 3)), y.var((0, 2, 3))

    moments("c1", 1)
    n.op("BatchNormalization", "n1", "c1", "scale1", "bias1", "mean1", "var1")
    n.op("Relu", "r1", "n1")
    n.op("Conv", "c2", "r1", n.weight("w2", 16, 16, 3, 3), pads=(1, 1, 1, 1))
    moments("c2", 2)
    n.op("BatchNormalization", "n2", "c2", "scale2", "bias2", "mean2", "var2")
    n.op("Add", "sum", "n2", "r1")
    n.op("Relu", "r2", "sum")
    n.op("MaxPool", "m", "r2", kernel_shape=(2, 2), strides=(2, 2))
    n.op("GlobalAveragePool", "p", "m")
    n.op("Reshape", "flat", "p", shape=(4, 16))
    n.op("Gemm", "y", "flat", n.weight("w3", 5, 16), transB=1)
    return n.graph("y")


def test_normalizations_know_ranges() -> None:
    g = with_norms()
    rng = np.random.default_rng(8)
    fresh = [{"x": rng.normal(size=(4, 3, 10, 10)).astype(np.float32)} for _ in range(3)]
    told, seen = normalized(g), observe(g, fresh, ["r1", "r2", "m", "flat"])
    for v in seen.values:
        assert told[v].mean == pytest.approx(seen[v].mean, rel=0.15)
    for v in ("r1", "r2"):
        assert told[v].positive_std == pytest.approx(seen[v].positive_std, rel=0.15)
    made = Quantize(ranges="bn").run(g).verify()
    rounded = [n.inputs[0] for n in nodes(made, "QuantizeLinear")]
    assert "x" not in rounded
    assert {"r1", "flat"} <= set(rounded)
    assert not nodes(made, "BatchNormalization")
    batch = fresh[0]
    assert decibels(evaluate(g, batch)["out_y"], evaluate(made, batch)["out_y"]) > 20
    with pytest.raises(PassError, match=r"quantize{ranges=bn} comes before bn"):
        Quantize(ranges="bn").run(G)


def test_random_inputs_tell_ranges() -> None:
    assert quality(Quantize(ranges="uniform").run(G).verify()) > 20
