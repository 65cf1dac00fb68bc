"""Quantization: products read integers. What comes out is a float network with the roundings in it, for `integers` to compute exactly.

    x ─► QuantizeLinear ─► DequantizeLinear ─► Conv ─► …          weights: integer constant ─► DequantizeLinear(scale[O]) ─► Conv
         u8                                                        bias: i32 constant ─► DequantizeLinear(scale of x · scale[O])

    quantize{ranges="r.json"}                                    W8A8: every Conv, MatMul and Gemm with constant weights
    quantize{weights=i4,activations=u8,weight_method=squant,ranges="r.json"}
    quantize{weights=i4,activations=float,weight_method=ant}     weights only: needs no data
    quantize{weights=i4,activations=ant4,weight_method=ant,…}    ANT: types of both operands by what they lose
    quantize{weights=i4,activations=u4,first_last=i8,ranges=…}   wider ends
    quantize{promote=i8,budget=4.5,weights=i4,…}                 the worst layers get 8 bits, 4.5 on average
    quantize{ranges=bn}                                          data-free, by batch normalizations: before `bn`; or ranges=uniform
    quantize{include="layer*|Gemm",exclude="layer3*",overrides=["layer1*: weights=i8", "layers.toml"]}
    squant{bits=4}                                               weights only, data-free

Formats, methods and scales are described in `quantization/weights.py` and `quantization/ranges.py`, which also says what a file of ranges
is. A value has one pair of nodes for all who read it in the same format. Sums, averages and what else goes from one launch to the next is
rounded to `between` (u8), whatever the products' formats: but not where it is a product's own result that the next step takes from a
register. Batch normalizations must have been folded (`bn`) before, but with ranges=bn, which folds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from knapper.isa.errors import PassError
from knapper.isa.formats import FORMATS, Format

from ..ir import NAMES, Array, Graph, Node
from ..quantization.datafree import normalized, uniform
from ..quantization.layers import PRODUCTS, Plan, Product, fingerprint, products, promoted
from ..quantization.quantized import Quantized, rows, storage
from ..quantization.ranges import Range, Ranges, choose, typed
from ..quantization.recipe import ACTIVATIONS, ANT, FLOAT, WEIGHTS, Layer, overrides
from ..quantization.statistics import Statistics
from ..quantization.weights import quantize
from ..rewrite import Writer
from .base import Pass
from .bn import Bn

BN, UNIFORM = "bn", "uniform"
"""In place of a file of ranges (`quantization/datafree.py`)."""
WHENCE = "--calib DATA, or --ranges FILE.json that `knapper calibrate` wrote"
"""Ranges come from."""
BETWEEN = ("Add", "Mul", "GlobalAveragePool", "AveragePool", "ReduceMean")
"""Ops whose operands are rounded as well, where they come from memory."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Round weights and activations to few bits."""

    name = "quantize"
    weights: str = "i8"
    activations: str = "u8"
    method: str = ""
    weight_method: str = "nearest"
    weight_scale: str = "mse"
    ranges: str = ""
    include: str = "*"
    exclude: str = ""
    first_last: str = ""
    overrides: tuple[str, ...] = ()
    between: str = "u8"
    promote: str = ""
    budget: float = 0.0
    per_channel: bool = True
    symmetric: bool = False
    bias: bool = True
    bias_correction: bool = False
    observed: Ranges | None = field(default=None, repr=False, compare=False)
    """Ranges that are at hand, instead of a file."""

    def run(self, g: Graph) -> Graph:
        """One walk forward."""
        ranges = self.held(g)
        if ranges is not None and ranges.weights not in ("", fingerprint(g)):
            problem = "quantize: the ranges are those of a network with other weights"
            hint = "knapper calibrate MODEL --data DATA makes this one's, behind the same passes"
            raise PassError("E306", problem, where=self.ranges, hint=hint)
        if self.bias_correction and ranges is None:
            hint = f"{WHENCE}: they have the means of inputs"
            raise PassError("E306", "quantize: bias_correction has no ranges", hint=hint)
        if self.ranges == BN:
            g = Bn().run(g)
        layers = self._known(g, self.layers(g), ranges)
        if all(layer.weights == layer.activations == FLOAT for layer in layers.values()):
            raise PassError(
                "E304",
                "quantize: no product with constant float weights is meant",
                hint=_products(g),
            )
        w = _Quantizer(g, self, layers, ranges)
        for n in w.old.nodes:
            w.convert(n)
        return w.graph()

    def layers(self, g: Graph) -> dict[str, Layer]:
        """What becomes of each product, by its result; PassError E306 for options that are none."""
        usual = Layer(
            self.weights, self.activations, self.method, self.weight_method, self.weight_scale
        ).checked()
        for option, known in (
            ("first_last", ("", FLOAT, *WEIGHTS)),
            ("promote", ("", *WEIGHTS)),
            ("between", ("", FLOAT, *ACTIVATIONS)),
        ):
            _known_format(option, getattr(self, option), known)
        if bool(self.promote) != (self.budget > 0):
            raise PassError(
                "E306",
                f"quantize: promote={self.promote!r}, budget={self.budget:g}",
                hint='together: promote="i8",budget=4.5 is 4.5 bits a weight on average',
            )
        found = list(products(g))
        plan = Plan(usual, self.include, self.exclude, self.first_last, overrides(self.overrides))
        layers = plan.layers(g, found)
        _finite(p for p in found if layers[p.node.outputs[0]].weights != FLOAT)
        if not self.promote:
            return layers
        return promoted(layers, found, self.promote, self.budget, per_channel=self.per_channel)

    def held(self, g: Graph) -> Ranges | None:
        """The ranges, if any are given."""
        if self.observed is not None:
            return self.observed
        if self.ranges == BN:
            return normalized(g)
        if self.ranges == UNIFORM:
            return uniform(g, self.wanted(g))
        return Ranges.load(self.ranges) if self.ranges else None

    def _known(self, g: Graph, layers: dict[str, Layer], ranges: Ranges | None) -> dict[str, Layer]:
        """An input that is infinite somewhere is not rounded; nor, where normalizations tell the ranges, one that they do not know of."""
        if ranges is None:
            return layers
        inputs = {n.outputs[0]: n.inputs[0] for n in g.nodes}

        def rounded(v: str) -> bool:
            return v not in ranges.infinite and (self.ranges != BN or v in ranges)

        return {
            v: layer if rounded(inputs[v]) else replace(layer, activations=FLOAT)
            for v, layer in layers.items()
        }

    def wanted(self, g: Graph) -> list[str]:
        """The values whose ranges are asked for: what calibration has to observe."""
        quick = replace(self, weight_method="nearest", weight_scale="absmax", promote="")
        w = _Quantizer(g, quick, quick.layers(g), _Anything())
        for n in w.old.nodes:
            w.convert(n)
        return list(dict.fromkeys([*(v for v, _, _ in w.pairs), *w.corrected]))


class _Anything(Ranges):
    """Ranges of whatever is asked for."""

    def __contains__(self, name: str) -> bool:
        return True

    def __getitem__(self, name: str) -> Statistics:
        return Statistics.of(np.ones(1))


@dataclass(frozen=True)
class SQuant(Pass):
    """Round weights so that errors cancel; activations stay."""

    name = "squant"
    bits: int = 4
    mode: str = "ekc"
    scale: str = "minmax"
    first_last: str = ""

    def run(self, g: Graph) -> Graph:
        """As `quantize`."""
        return Quantize(
            f"i{self.bits}",
            FLOAT,
            weight_method=f"squant-{self.mode}",
            weight_scale=self.scale,
            first_last=self.first_last,
        ).run(g)


class _Quantizer(Writer):
    """The new graph. `pairs` has the dequantized stand-in of (old value, format, method), `corrected` inputs whose means were asked for."""

    def __init__(
        self, g: Graph, options: Quantize, layers: dict[str, Layer], ranges: Ranges | None
    ) -> None:
        super().__init__(g)
        self.options, self.layers, self.ranges = options, layers, ranges
        self.products = {p.node.outputs[0]: p for p in products(self.old)}
        self.pairs: dict[tuple[str, str, str], tuple[str, np.float32]] = {}
        self.shared: dict[tuple[str, Layer], tuple[str, Quantized]] = {}
        self.corrected: list[str] = []
        self.users, self.makers = self.old.users(), self.old.producers()
        self.place = {v: i for i, n in enumerate(self.old.nodes) for v in n.outputs}

    def convert(self, n: Node) -> None:
        """Carry a node over, on rounded operands."""
        layer = self.layers.get(n.outputs[0])
        if layer is not None and layer.weights != FLOAT:
            self.begin(n)
            self.let(n, (self._product(self.products[n.outputs[0]], layer),))
        elif layer is None and n.op in BETWEEN and self._reads_integers(n):
            self.begin(n)
            operands = [self._between(n, v) for v in n.inputs]
            self.let(n, self.ops(len(n.outputs), n.op, *operands, **n.attrs))
        else:
            self.visit(n)

    # --- products

    def _product(self, p: Product, layer: Layer) -> str:
        n = p.node
        x, scale = self.now(n.inputs[0]), None
        if layer.activations != FLOAT:
            x, scale = self._pair(n.inputs[0], layer.activations, layer.method)
        weights, q = self._weights(p, layer)
        bias = self._bias(p, q, scale)
        if n.op == "MatMul":
            y = self.again(n, x, weights)
            return self.op("Add", y, bias) if bias else y
        return self.again(n, x, weights, bias)

    def _weights(self, p: Product, layer: Layer) -> tuple[str, Quantized]:
        """The dequantized weights; those that several products share are stored once."""
        name = p.node.inputs[1]
        key = (name, layer)
        if key not in self.shared:
            q = quantize(p.weights, p.axis, layer, per_channel=self.options.per_channel)
            values = self.constant(q.values, name, q.format)
            scale = self.constant(q.scale, name, "scale")
            zero = (
                [self.constant(q.zero_point.astype(q.values.dtype), name, "zero")]
                if q.zero_point.any()
                else []
            )
            self.shared[key] = self.op("DequantizeLinear", values, scale, *zero, axis=p.axis), q
        return self.shared[key]

    def _bias(self, p: Product, q: Quantized, scale: np.float32 | None) -> str:
        """The bias, corrected, in steps of the accumulator's scale if it is quantized; "" if there is none."""
        n = p.node
        name = n.inputs[2] if len(n.inputs) > 2 else ""
        held = self.old.constants.get(name)
        if name and (held is None or held.shape != q.scale.shape):
            return self.now(name)  # computed, or a matrix
        shift = self._shift(p, q) if self.options.bias_correction else None
        if shift is None and held is None:
            return ""
        b = np.zeros(q.scale.shape) if held is None else held.astype(np.float64)
        b = b if shift is None else b + shift
        near = name or n.outputs[0]
        if scale is not None and self.options.bias and n.op != "MatMul":
            step = (q.scale * scale).astype(np.float32)
            whole = np.rint(b / step)
            if np.abs(whole).max() < 1 << 30:
                made = self.constant(whole.astype(np.int32), near, "i32")
                return self.op("DequantizeLinear", made, self.constant(step, near, "scale"), axis=0)
        return self.constant(b.astype(np.float32), near, "bias")

    def _shift(self, p: Product, q: Quantized) -> Array | None:
        """What rounding the weights takes from each output on average, by the means of the input's channels."""
        v = p.node.inputs[0]
        self.corrected.append(v)
        means = (
            self.ranges[v].means(p.channels)
            if self.ranges is not None and v in self.ranges
            else None
        )
        lost = (rows(p.weights, p.axis) - rows(q.real, p.axis)).sum(2, np.float64)  # [O, C/group]
        if means is None or len(means) % lost.shape[1]:
            return None
        group = len(means) // lost.shape[1]
        per_group = np.repeat(means.reshape(group, -1), len(lost) // group, 0)
        shift: Array = (lost * per_group).sum(1)
        return shift

    # --- activations

    def _pair(self, v: str, name: str, method: str) -> tuple[str, np.float32]:
        """(a value rounded to a format, its scale)."""
        key = (v, name, method)
        if key not in self.pairs:
            f = (
                typed(self._seen(v), int(name.removeprefix("ant")))
                if name in ANT
                else FORMATS[name]
            )
            scale, zp = self._range(v, f, method).scale(f)
            dtype = np.dtype(storage(f.smallest, f.largest)).type
            stored = NAMES[np.dtype(dtype)]
            operands = [
                self.constant(np.asarray(scale), v, "scale"),
                self.constant(np.asarray(zp, dtype), v, "zero"),
            ]
            grid = {} if f.name == stored else {"format": f.name}
            codes = self.op("QuantizeLinear", self.now(v), *operands, to=stored, **grid)
            self.pairs[key] = self.op("DequantizeLinear", codes, *operands), scale
        return self.pairs[key]

    def _range(self, v: str, f: Format, method: str) -> Range:
        seen, usual = self._seen(v), self.ranges.method if self.ranges is not None else ""
        return choose(seen, method or usual, f, symmetric=self.options.symmetric)

    def _seen(self, v: str) -> Statistics:
        """What was observed of a value."""
        if self.ranges is None:
            hint = f"{WHENCE}; or weights alone: --quantize i8,float"
            raise PassError("E306", "quantize: activations have no ranges", hint=hint)
        if v not in self.ranges:
            known = ", ".join(list(self.ranges.values)[:6])
            hint = f"there are {known}, …: of another network, or calibrated behind other passes?"
            raise PassError("E306", f"quantize: there is no range of %{v}", hint=hint)
        return self.ranges[v]

    def _reads_integers(self, n: Node) -> bool:
        """Whether there is anything to round for a node that is no product: floats, in a network whose activations are rounded."""
        rounds = self.options.between not in ("", FLOAT) and self.options.activations != FLOAT
        return rounds and n.types[0].dtype == "f32" and any(v in self.place for v in n.inputs)

    def _between(self, n: Node, v: str) -> str:
        """An operand from memory, rounded; one from a register, or a constant, as it is."""
        endless = self.ranges is not None and v in self.ranges.infinite
        unknown = self.options.ranges == BN and self.ranges is not None and v not in self.ranges
        if v not in self.place or unknown or endless or self._register(n, v):
            return self.now(v)
        return self._pair(v, self.options.between, "")[0]

    def _register(self, n: Node, v: str) -> bool:
        """Whether a product makes a value for this node alone, in the launch that the node will be in: of several, the last."""
        mine = [x for x in n.inputs if x in self.place and self._only_of_a_product(x)]
        return v in mine and v == max(mine, key=lambda x: self.place[x])

    def _only_of_a_product(self, v: str) -> bool:
        """Whether a value comes from a product by steps that nothing else reads."""
        while len(self.users.get(v, ())) == 1 and v not in self.old.outputs.values():
            n = self.makers.get(v)
            if n is None:
                return False
            if n.op in PRODUCTS:
                return True
            if (
                n.op not in ("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh")
                or len([x for x in n.inputs if x in self.place]) != 1
            ):
                return False
            v = next(x for x in n.inputs if x in self.place)
        return False


def _known_format(option: str, name: str, known: Sequence[str]) -> None:
    """PassError E306 for a format that an option cannot be."""
    if name not in known:
        hint = f"known: {', '.join(filter(None, known))}"
        raise PassError("E306", f"quantize: {option}={name!r}: no format for it", hint=hint)


def _finite(found: Iterable[Product]) -> None:
    """PassError E306 for weights that no scale serves."""
    for p in found:
        if not np.isfinite(p.weights).all():
            problem = f"quantize: weights of {p.name} are not finite"
            raise PassError("E306", problem, hint=f'exclude="{p.name}"')


def _products(g: Graph) -> str:
    names: Sequence[str] = [p.name for p in products(g)]
    return (
        f"there are {', '.join(names[:8])}"
        if names
        else "there are none: batch normalizations and casts are folded first?"
    )
