"""Ranges without data: from what batch normalizations say of their results, or from random inputs.

A normalization's result has, in each channel, the mean `bias` and the deviation `scale` that it was trained to have. So numbers are drawn
for each channel, and go through what comes behind: activations as they are, sums with what is taken for independent of it, pooling of
independent draws, until the next product. (SQuant's code observes uniform random inputs instead: `uniform`.)

    BatchNormalization ─► draws [256, C] ─► Relu ─► MaxPool ─► Statistics of what the next product reads

What comes from no normalization, such as the network's input, is not known, and not rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from knapper.isa.errors import PassError

from ..ir import Array, Graph, Node, compute
from ..ops.shapes import channel_axis
from .ranges import Ranges
from .simulate import Simulation
from .statistics import Statistics

DRAWS = 256
INPUTS = 4
"""Random inputs that are observed."""
ELEMENTWISE = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Softplus", "Identity", "Gelu", "Mish"}
)  # fmt: skip
MEANS = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"})
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Pad", "Slice"})


def normalized(g: Graph, method: str = "gauss", seed: int = 0) -> Ranges:
    """Of values behind normalizations, by name; PassError E306 if there are none."""
    rng = np.random.default_rng(seed)
    draws: dict[str, Array] = {}
    for n in g.nodes:
        found = _drawn(g, n, draws, rng)
        if found is not None:
            draws[n.outputs[0]] = found
    if not draws:
        hint = "--calib DATA; or ranges=uniform, from random inputs. In a pipeline quantize{ranges=bn} comes before bn"
        raise PassError(
            "E306", "quantize: no batch normalizations say what ranges there are", hint=hint
        )
    types = g.types()
    images = {v: types[v].rank > 2 for v in draws}
    return Ranges(
        {v: Statistics.of(d.T[None] if images[v] else d) for v, d in draws.items()}, method
    )


def _drawn(g: Graph, n: Node, draws: dict[str, Array], rng: np.random.Generator) -> Array | None:
    """Draws [DRAWS, C] of a node's result; None if it is not known."""
    if n.op == "BatchNormalization":
        scale, bias = (g.constants.get(v) for v in n.inputs[1:3])
        if scale is None or bias is None:
            return None
        made: Array = (bias + np.abs(scale) * rng.standard_normal((DRAWS, len(bias)))).astype(
            np.float32
        )
        return made
    known = [draws.get(v) for v in n.inputs if v]
    if not known or known[0] is None:
        return None
    x = known[0]
    if n.op in ELEMENTWISE and len(known) == 1:
        return compute(n, {n.inputs[0]: x})[0]
    if (
        n.op in ("Add", "Mul")
        and len(known) == 2
        and known[1] is not None
        and known[1].shape == x.shape
    ):
        other = rng.permuted(known[1], axis=0)
        both: Array = x + other if n.op == "Add" else x * other
        return both
    if n.op == "MaxPool":
        window = int(np.prod(n.attr("kernel_shape")))
        most: Array = np.maximum.reduce([rng.permuted(x, axis=0) for _ in range(window)])
        return most
    if n.op in MEANS:
        return np.broadcast_to(x.mean(0), x.shape)
    if (
        n.op == "Concat"
        and all(k is not None for k in known)
        and n.attr("axis") == channel_axis("NCHW", n.types[0].rank)
    ):
        return np.concatenate([k for k in known if k is not None], 1)
    return x if n.op in VIEWS and len(known) == 1 else None


def uniform(g: Graph, names: list[str], method: str = "gauss", seed: int = 0) -> Ranges:
    """Of named values, on inputs that are random, uniform, with mean 0 and deviation 1."""
    rng = np.random.default_rng(seed)
    end = np.sqrt(3)
    return observe(g, [
        {v: rng.uniform(-end, end, t.shape).astype(np.float32) for v, t in g.inputs.items()} for _ in range(INPUTS)
    ], names, method)  # fmt: skip


def observe(
    g: Graph, batches: Sequence[Mapping[str, Array]], names: Sequence[str], method: str = "mse"
) -> Ranges:
    """Ranges of some values of a float network on its inputs."""
    ranges = Ranges(method=method)
    for batch in batches:
        sim = Simulation(g, [batch])
        left, env = set(names), sim.envs[0]
        seen = {v: a for v in names if (a := env.get(v)) is not None}
        for n in g.nodes:
            sim.step(n)
            seen |= {v: a for v in n.outputs if v in left and (a := env[v]) is not None}
            sim.forget(n)
        ranges = ranges.with_(seen)
    return ranges
