"""Kinds of kernel chosen by hand: `place` in a pipeline, in a graph's text, and what is said where it cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knapper.compiler import driver, pipeline, text
from knapper.compiler import ops as _ops  # noqa: F401  declares the op set
from knapper.compiler.ir import Graph, Node, Type, evaluate, infer
from knapper.compiler.schedule import schedule
from knapper.isa.errors import KnapperError, Problems
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

MACHINE = Machine.load("volta-8tc")
RNG = np.random.default_rng(0)


def network() -> Graph:
    """A convolution, a Relu in its launch, a pooling, a product."""
    weights = {"w": RNG.standard_normal((8, 3, 3, 3), np.float32), "f": RNG.standard_normal((128, 4), np.float32)}  # fmt: skip
    types = {"x": Type("f32", (1, 3, 8, 8))} | {n: Type.of(a) for n, a in weights.items()}
    nodes = []
    for op, inputs, out, loc, attrs in (
        ("Conv", ("x", "w"), "c", "conv1", {"pads": (1, 1, 1, 1)}),
        ("Relu", ("c",), "r", "relu1", {}),
        ("MaxPool", ("r",), "p", "pool1", {"kernel_shape": (2, 2), "strides": (2, 2)}),
        ("Reshape", ("p",), "v", "flat", {"shape": (1, 128)}),
        ("MatMul", ("v", "f"), "y", "fc", {}),
    ):
        made = infer(op, [types[v] for v in inputs], attrs)[:1]
        types[out] = made[0]
        nodes.append(Node(op, inputs, (out,), made, attrs, loc))
    return Graph("net", {"x": types["x"]}, {"y": "y"}, tuple(nodes), weights).verify()


def kinds(pipe: str) -> dict[str, str]:
    """Node → the kind of the launch that computes it."""
    plan = schedule(driver.optimize(network(), driver.Options(pipe)), MACHINE)
    return {n.loc: s.kind for s in plan.steps for n in s.group.nodes if n.op not in ("Cast", "Transpose")}  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "conv", "fc"),
    [
        (",nodes=conv1", "ffma", "hmma"),
        (",nodes=fc", "hmma", "ffma"),
        (",nodes=conv1|fc", "ffma", "ffma"),
        (",nodes=relu*", "ffma", "hmma"),
        (",nodes=Conv", "ffma", "hmma"),
        (',nodes="matmul_*"', "hmma", "ffma"),
        ("", "ffma", "ffma"),
    ],
)
def test_launches_are_meant_by_node_operator_or_pattern(nodes: str, conv: str, fc: str) -> None:
    made = kinds(f"fp16,place{{kind=ffma{nodes}}}")
    assert (made["conv1"], made["fc"], made["pool1"]) == (conv, fc, "simd")


def test_several_places_each_say_their_own_and_the_last_says_most() -> None:
    pipe = "fp16,place{kind=ffma},place{kind=hmma,nodes=fc}"
    made = kinds(pipe)
    assert (made["conv1"], made["relu1"], made["fc"]) == ("ffma", "ffma", "hmma")


def test_what_is_placed_computes_the_same(tmp_path: Path) -> None:
    g, x = network(), {"x": RNG.standard_normal((1, 3, 8, 8), np.float32)}
    free, placed = (
        Session(driver.compile_graph(g, MACHINE, pipe, cache=tmp_path)).run(x)
        for pipe in ("fp16", "fp16,place{kind=ffma}")
    )
    np.testing.assert_array_equal(free.outputs["y"], placed.outputs["y"])
    np.testing.assert_allclose(placed.outputs["y"], evaluate(g, x)["y"], atol=0.05)
    assert free.stats.instructions["HMMA.161616.F32"] > 0
    assert placed.stats.instructions["HMMA.161616.F32"] == 0


def test_a_place_goes_with_the_graphs_text(tmp_path: Path) -> None:
    g = driver.optimize(network(), driver.Options("fp16,place{kind=ffma,nodes=fc}"))
    text.save(g, tmp_path / "net.ir")
    back = text.load(tmp_path / "net.ir")
    assert back == g
    assert [n.place for n in back.nodes if n.op == "MatMul"] == ["ffma"]
    assert ' group("matmul_' in text.show(back)
    assert ' place("ffma")' in text.show(back)
    assert back.meta["pipeline"].endswith(',fuse,bitmap,place{kind="ffma",nodes="fc"}')


@pytest.mark.parametrize(
    ("pipe", "message"),
    [
        ("fp16,place{kind=simd,nodes=fc}", r"E412: launch matmul_\d: simd does not serve MatMul fc.*: MatMul must add .*\(hint: .*hmma would\)"),
        ("fp16,place{kind=hmma,nodes=pool1}", r"E412: launch maxpool_\d: hmma does not serve .*MaxPool pool1.*: has 0 .*\(hint: simd would\)"),
        ("fp32,place{kind=hmma}", r"E412: net: hmma serves no launch: .*operands are f32"),
        ("fp16,place{kind=systolc}", r"E412: net: no generator of kind 'systolc'; there are .*ffma.*simd"),
        ("fp16,place{kind=ffma,nodes=cnv1}", r"E304: place: no launch has a node 'cnv1' \(hint: there are conv1, .*\)"),
        ("place{kind=ffma},fp16", r'E304: place\{kind="ffma"\} is not at the end'),
        ("fold,place{kind=ffma}", r"E304: there are no launches yet \(hint: put fuse before place\)"),
        ("fp16,place", r"E302: place needs a kind"),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_is_named_with_the_reason(pipe: str, message: str) -> None:
    with pytest.raises(KnapperError, match=message) as e:
        kinds(pipe)
    assert not isinstance(e.value, Problems)


def test_every_node_that_a_kind_does_not_serve_is_named_at_once() -> None:
    with pytest.raises(Problems) as e:
        kinds("fp16,place{kind=simd,nodes=conv1|fc}")
    assert ["conv1" in str(p) or "fc" in str(p) for p in e.value.problems] == [True, True]


def test_launches_cannot_be_of_two_kinds() -> None:
    g = driver.optimize(network())
    mixed = g.with_(nodes=tuple(
        n.with_(place={"Conv": "ffma", "Relu": "hmma"}.get(n.op, "")) for n in g.nodes
    ))  # fmt: skip
    with pytest.raises(KnapperError, match=r"E412: launch conv_\d: its nodes are placed as ffma and hmma"):  # fmt: skip
        schedule(mixed, MACHINE)


def test_a_precision_in_a_pipeline_is_its_preset() -> None:
    for name, preset in pipeline.PRESETS.items():
        assert pipeline.parse(f"{name},place{{kind=ffma}}")[:-1] == pipeline.parse(preset)


@pytest.mark.parametrize("word", ["info", "nan_1", "true_1", "a.b/c:d|e*", "inf"])
def test_words_in_a_pipeline_need_no_quotes(word: str) -> None:
    if word == "inf":
        with pytest.raises(KnapperError, match="E302: pass place: kind must be str, not inf"):
            pipeline.parse("place{kind=inf}")
        return
    assert pipeline.parse(f"place{{kind={word}}}") == pipeline.parse(f'place{{kind="{word}"}}')
