"""AQuant: borders worked by hand, that they are the best there are, and what learned ones are worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from knapper.compiler.ir import OPS, Graph, Node, Type, evaluate
from knapper.compiler.passes.aquant import AQuant
from knapper.compiler.passes.quantize import Quantize
from knapper.compiler.quantization import aquant, borders, squant
from knapper.compiler.quantization.aquant import Grid, Learned, Options, Rounding, Task
from knapper.compiler.quantization.datafree import observe
from knapper.compiler.quantization.layers import products
from knapper.compiler.quantization.ranges import choose
from knapper.compiler.quantization.simulate import Simulation, convolve
from knapper.compiler.quantization.statistics import Statistics
from knapper.isa.errors import PassError
from knapper.isa.formats import FORMATS

Array = NDArray[Any]


def line(w: float, wq: float) -> Array:
    """The border of a single product."""
    return np.array([[0.5], [(wq - w) / wq], [0]], np.float32)


@pytest.mark.parametrize(
    ("w", "wq", "x", "border", "q"), [(0.62, 0.70, 2.3, 0.7629, 2), (0.40, 0.35, 5.2, -0.243, 6)]
)
def test_by_hand(w: float, wq: float, x: float, border: float, q: int) -> None:
    b0, b1, _ = line(w, wq)[:, 0]
    assert b0 + b1 * x == pytest.approx(border, abs=1e-3)
    made = Grid(1.0, 0, 0, 15).round(np.array([[x]], np.float32), line(w, wq))
    assert made.item() == q


def test_no_rounding_of_a_single_product_is_better() -> None:
    """Of all pairs of weights and activations: floor or floor + 1, whichever product is nearer."""
    rng = np.random.default_rng(0)
    wq = rng.integers(1, 8, 50_000) * 0.1
    w = wq + rng.uniform(-0.05, 0.05, 50_000)
    x = rng.uniform(0, 14, 50_000)
    b = np.stack([np.full_like(x, 0.5), (wq - w) / wq, np.zeros_like(x)])
    down = np.floor(x)
    q = np.floor(x - (b[2] * x + b[1]) * x - b[0] + 1)
    up = q > down
    better = np.abs(wq * (down + 1) - w * x) < np.abs(wq * down - w * x)
    assert (up == better).all()
    chosen = np.where(up, down + 1, down)
    plain = np.square(wq * np.floor(x + 0.5) - w * x).mean()
    assert np.square(wq * chosen - w * x).mean() < plain


def test_the_nearest_is_the_nearest_and_the_op_agrees() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7, 1)).astype(np.float32)
    grid = Grid(0.13, 3, 0, 15)
    assert (grid.round(x, aquant.nearest(7)) == np.clip(np.floor(x / np.float32(0.13) + 0.5) + 3, 0, 15)).all()  # fmt: skip
    border = np.stack([rng.uniform(0, 1, 7), rng.normal(size=7) * 0.05, rng.normal(size=7) * 0.01])
    border = border.astype(np.float32)
    op = OPS["QuantizeLinear"].facets["reference"]
    made = op(x[..., 0], np.float32(0.13).reshape(()), np.array(3, np.uint8), border, format="u4")
    assert (made == grid.round(x, border)[..., 0]).all()


def layer(
    seed: int, weights: int, activations: int, n: int = 1600
) -> tuple[Task, Grid, Array, Any]:
    """A matrix behind a Relu, rounded weights, the target of the float ones."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.1, (48, 48)).astype(np.float32)
    x = np.maximum(rng.normal(size=(n, 48)), 0).astype(np.float32)
    q = squant.quantize(w, weights, "e")
    f = FORMATS[f"u{activations}"]
    scale, zero = choose(Statistics.of(x), "mse", f).scale(f)
    grid = Grid(float(scale), zero, 0, int(f.largest))
    return Task(x[:, :, None], x @ w.T, q.real[:, :, None]), grid, w, q


def learned(seed: int, weights: int, activations: int, **options: Any) -> Learned:
    task, grid, _, _ = layer(seed, weights, activations)
    return aquant.learn([task], grid, Options(steps=250, batch=128, rate=2e-2, **options))


@pytest.mark.parametrize(("weights", "activations", "most"), [(2, 2, 0.92), (2, 4, 0.75), (3, 3, 1.0)])  # fmt: skip
def test_held_out_errors_shrink(weights: int, activations: int, most: float) -> None:
    assert learned(0, weights, activations).ratio <= most


def test_a_line_is_better_than_a_constant() -> None:
    constant, linear = (learned(1, 2, 4, degree=d).ratio for d in (0, 1))
    assert linear < constant < 1


def test_what_does_not_help_is_not_kept() -> None:
    """Exact weights: nothing is better than the nearest."""
    task, grid, w, _ = layer(0, 4, 4)
    found = aquant.learn([replace(task, w=w[:, :, None])], grid, Options(steps=40, rate=0.2))
    assert found.border is None
    assert found.ratio == 1


def test_weights_are_learned_along() -> None:
    task, grid, w, q = layer(0, 2, 4)
    r = Rounding(w[:, :, None], q.scale, q.zero_point, *squant.bounds(2))
    held = np.clip(w, q.real.min(1, keepdims=True), q.real.max(1, keepdims=True))
    off = np.abs(r.soft()[0][:, :, 0] - held) / q.scale[:, None]
    assert np.median(off) < 0.02
    found = aquant.learn([task], grid, Options(steps=300, batch=128, weights=True, rate=2e-2), [r])
    assert found.ratio < 0.9
    (made,) = found.rounding
    whole = made[:, :, 0] / q.scale[:, None] + q.zero_point[:, None]
    assert whole == pytest.approx(np.rint(whole), abs=1e-4)
    assert np.abs(whole - (w / q.scale[:, None] + q.zero_point[:, None])).max() < 1.01


def test_groups_and_padding() -> None:
    """A grouped product is that of each group; what is padding stays zero whatever the border."""
    rng = np.random.default_rng(0)
    x, w = rng.uniform(0, 2, (9, 6, 4)).astype(np.float32), rng.normal(size=(4, 3, 4)).astype(np.float32)  # fmt: skip
    inside = rng.uniform(size=x.shape) < 0.7
    task = Task(x, np.zeros((9, 4), np.float32), w, inside, group=2)
    grid = Grid(0.1, 0, 0, 15)
    border = np.full((3, 6), -0.4, np.float32)
    real = task.rounded(grid, border)
    assert not real[~inside].any()
    expected = np.concatenate([real[:, g * 3 : g * 3 + 3].reshape(9, -1) @ w[g * 2 : g * 2 + 2].reshape(2, -1).T for g in (0, 1)], 1)  # fmt: skip
    assert task.product(real, task.matrix) == pytest.approx(expected, abs=1e-5)


def network() -> Graph:
    """Two convolutions, of which the second looks beyond edges, and a matrix behind Relus."""
    rng = np.random.default_rng(5)
    w = {"w1": (6, 2, 3, 3), "w2": (8, 6, 3, 3), "w3": (32, 5)}
    constants = {n: rng.normal(0, 0.4 if n != "w3" else 0.2, s).astype(np.float32) for n, s in w.items()}  # fmt: skip
    nodes = [
        Node("Conv", ("x", "w1"), ("c1",), (Type("f32", (1, 6, 6, 6)),), {"pads": (1, 1, 1, 1)}, "c1"),
        Node("Relu", ("c1",), ("r1",), (Type("f32", (1, 6, 6, 6)),)),
        Node("Conv", ("r1", "w2"), ("c2",), (Type("f32", (1, 8, 2, 2)),), {"strides": (3, 3), "pads": (1, 1, 0, 0)}, "c2"),
        Node("Relu", ("c2",), ("r2",), (Type("f32", (1, 8, 2, 2)),)),
        Node("Reshape", ("r2",), ("flat",), (Type("f32", (1, 32)),), {"shape": (1, 32)}),
        Node("MatMul", ("flat", "w3"), ("y",), (Type("f32", (1, 5)),), {}, "fc"),
    ]  # fmt: skip
    return Graph("net", {"x": Type("f32", (1, 2, 6, 6))}, {"y": "y"}, tuple(nodes), constants).verify()  # fmt: skip


def samples(n: int, seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 2, 6, 6)).astype(np.float32)} for _ in range(n)]


def off(g: Graph, rounded: Graph) -> float:
    """Mean squared error of the outputs on samples that nobody has learned from."""
    fresh = samples(100, 9)
    a, b = (np.stack([y["y"] for y in Simulation(x, fresh).run()]) for x in (g, rounded))
    return float(np.square(a - b).mean())


@pytest.mark.parametrize("weights", [False, True])
def test_a_network_with_borders_errs_less(weights: bool, tmp_path: Path) -> None:
    g = network()
    file = tmp_path / "x.npz"
    np.savez(file, x=np.concatenate([b["x"] for b in samples(160, 3)]))
    recipe = {"weights": "i3", "activations": "u3", "between": "float"}
    nearest = Quantize(observed=observe(g, samples(160, 3), ["x", "r1", "flat"]), **recipe).run(g)
    p = AQuant(data=str(file), learn_weights=weights, steps=100, rate=2e-2, **recipe)
    made = p.run(g).verify()
    bordered = [n for n in made.nodes if n.op == "QuantizeLinear" and len(n.inputs) == 4]
    assert bordered
    assert off(g, made) < (0.92 if weights else 0.97) * off(g, nearest)
    inputs = samples(1, 4)[0]
    exact, simulated = evaluate(made, inputs)["y"], Simulation(made, [inputs]).run()[0]["y"]
    assert exact == pytest.approx(simulated, abs=0.2 * float(np.abs(exact).max()))
    assert p.run(g) == made  # the same seed, the same borders
    axes = {n.inputs[0]: n.attr("axis") for n in bordered}
    assert all(axis == (-1 if v == "flat" else 1) for v, axis in axes.items())


def test_windows_are_what_convolutions_see() -> None:
    """Of sampled places, the product of windows and weights is the convolution's result there."""
    g = network()
    conv = g.nodes[2]
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 6)).astype(np.float32)
    (p,) = (p for p in products(g) if p.node is conv)
    pair = borders.Pair(p, conv)
    y = borders._outputs(p, convolve(conv, x, g.constants["w2"]))
    at = np.arange(len(y))
    seen = borders._windows(pair, x, at)
    assert seen.reshape(len(at), -1) @ g.constants["w2"].reshape(8, -1).T == pytest.approx(
        y, abs=1e-4
    )
    inside = borders._inside(pair, x, at)
    assert not seen[~inside].any()
    assert inside.mean() < 1


@pytest.mark.parametrize("what", ["no file", "no array", "shape", "text", "empty"])
def test_samples_that_do_not_fit(what: str, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    if what == "text":
        file.write_text("samples")
    elif what != "no file":
        shape = {"shape": (4, 2, 6, 7), "empty": (0, 2, 6, 6)}.get(what, (4, 2, 6, 6))
        np.savez(file, **{"y" if what == "no array" else "x": np.zeros(shape, np.float32)})
    with pytest.raises(PassError, match="E306"):
        AQuant(data=str(file)).run(network())
    with pytest.raises(PassError, match="no samples to learn from"):
        AQuant().run(network())
