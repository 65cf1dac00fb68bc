"""A network on several inputs at once, node by node, fast: what data-driven quantizers look at.

Convolutions and matrix products go through BLAS, and so have its order of additions: near enough to choose borders and to report errors, and
not the numeric contract. Everything else is computed by the ops' references.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ..ir import Array, Graph, Node, compute

Env = dict[str, Array | None]


class Simulation:
    """A graph under way on a list of inputs; a value is forgotten when its last reader has run."""

    def __init__(self, g: Graph, inputs: Sequence[Mapping[str, Array]]) -> None:
        self.graph = g
        self.envs: list[Env] = [{"": None, **g.constants, **x} for x in inputs]
        self._left = Counter(v for n in g.nodes for v in n.inputs) + Counter(g.outputs.values())

    def step(self, n: Node) -> None:
        """Run a node on all inputs."""
        for env in self.envs:
            env |= {v: a for v, a in zip(n.outputs, run(n, env), strict=False) if v}

    def forget(self, n: Node) -> None:
        """A node is done with its operands."""
        self._left.subtract(v for v in n.inputs if v)
        dead = [v for v in n.inputs if v and self._left[v] <= 0 and v not in self.graph.constants]
        for env in self.envs:
            for v in dead:
                env.pop(v, None)

    def values(self, name: str) -> list[Array]:
        """A value's arrays, one an input."""
        return [a for env in self.envs if (a := env[name]) is not None]

    def run(self) -> list[dict[str, Array]]:
        """All the nodes; the network's outputs, one dict an input."""
        for n in self.graph.nodes:
            self.step(n)
            self.forget(n)
        found = {name: self.values(v) for name, v in self.graph.outputs.items()}
        return [{name: arrays[i] for name, arrays in found.items()} for i in range(len(self.envs))]


def run(n: Node, env: Mapping[str, Array | None]) -> tuple[Array, ...]:
    """A node's results."""
    operands = [env[v] for v in n.inputs]
    x, w = (*operands, None, None)[:2]
    if x is None or w is None or x.dtype != np.float32 or n.attrs.get("out"):
        return compute(n, env)
    if n.op == "Conv" and n.attr("layout") == "NCHW" and x.ndim == 4:
        y = convolve(n, x, w)
        return (y if len(operands) < 3 or operands[2] is None else y + operands[2][:, None, None],)
    if n.op == "MatMul" and x.ndim > 1 and w.ndim > 1:
        a, b = (
            np.swapaxes(m, -1, -2) if n.attr(t) else m for m, t in ((x, "trans_a"), (w, "trans_b"))
        )
        return (np.matmul(a, b),)
    return compute(n, env)


def convolve(n: Node, x: Array, w: Array) -> Array:
    """The node's convolution of x [N, C, H, W], without its bias."""
    patches = windows(n, x, w.shape[2:])  # [N, C, OH, OW, kh, kw]
    batch, c, high, wide = patches.shape[:4]
    group, o, per_group = n.attr("group"), len(w), w.shape[1]
    if per_group == 1 and o == c:
        y = np.zeros((batch, o, high, wide), np.float32)
        for i, j in np.ndindex(*w.shape[2:]):
            y += patches[..., i, j] * w[:, 0, i, j, None, None]
        return y
    made = np.empty((batch, o, high * wide), np.float32)
    for k in range(group):
        part = patches[:, k * per_group : (k + 1) * per_group].transpose(0, 1, 4, 5, 2, 3)
        columns = part.reshape(batch, -1, high * wide)
        rows = slice(k * o // group, (k + 1) * o // group)
        made[:, rows] = w[rows].reshape(o // group, -1) @ columns
    return made.reshape(batch, o, high, wide)


def windows(n: Node, x: Array, kernel: Sequence[int], fill: float = 0.0) -> Array:
    """What each output of a convolution looks at: a view [N, C, OH, OW, kh, kw] of x, padded."""
    pads = n.attr("pads") or (0,) * 4
    (sy, sx), (dy, dx) = n.attr("strides") or (1, 1), n.attr("dilations") or (1, 1)
    padded = np.pad(
        x, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])], constant_values=fill
    )
    span = ((kernel[0] - 1) * dy + 1, (kernel[1] - 1) * dx + 1)
    view = np.lib.stride_tricks.sliding_window_view(padded, span, (2, 3))
    return view[:, :, ::sy, ::sx, ::dy, ::dx]
