"""Pipelines are text, name what they do not know, and are watched by hooks."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapper.compiler import pipeline, text
from knapper.compiler.ir import Graph
from knapper.compiler.passes import PASSES, Pass
from knapper.isa.errors import IRError, KnapperError, PassError, UsageError


@dataclass(frozen=True)
class Demo(Pass):
    """A pass with an option of each kind."""

    name = "demo"
    bits: int = 4
    ratio: float = 0.5
    mode: str = "a"
    deep: bool = False
    tile: tuple[int, ...] = ()

    def run(self, g: Graph) -> Graph:
        """Break the graph if asked to."""
        return g.with_(outputs={"y": "nothing"}) if self.mode == "break" else g


@given(
    st.lists(
        st.builds(
            Demo,
            st.integers(),
            st.floats(allow_nan=False),
            st.text(),
            st.booleans(),
            st.lists(st.integers()).map(tuple),
        )
    )
)
def test_a_pipeline_reads_back(passes: list[Demo]) -> None:
    assert list(pipeline.parse(pipeline.show_passes(passes))) == passes


def test_options_are_the_fields_that_differ_from_their_defaults() -> None:
    passes = pipeline.parse('fold, demo{tile=[64, 32],bits=3,mode="x{,}"}')
    assert pipeline.show_passes(passes) == 'fold,demo{bits=3,mode="x{,}",tile=[64,32]}'
    assert passes[1] == Demo(bits=3, mode="x{,}", tile=(64, 32))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("foold", "E301: no pass named 'foold' (hint: did you mean fold? known: "),
        ("demo{bit=3}", "E302: pass demo has no option 'bit' (hint: did you mean bits? known: bits, deep"),
        ('demo{bits="3"}', "E302: pass demo: bits must be int, not '3'"),
        ("demo{deep=1}", "E302: pass demo: deep must be bool, not 1"),
        ("fold dead", "E101: pipeline:1:6: cannot read this\nfold dead\n     ^"),
    ],
)  # fmt: skip
def test_a_wrong_pipeline_says_what_there_is(spec: str, message: str) -> None:
    with pytest.raises(KnapperError) as caught:
        pipeline.parse(spec)
    assert str(caught.value).startswith(message)


def small() -> Graph:
    return text.parse("""graph @g(%x: f32[2]) {
        %0: f32[2] = Identity %x
        %1: f32[2] = Relu %0
        return %1 }""")


def test_hooks_see_every_step(tmp_path: Path) -> None:
    clock, out = pipeline.Clock(), io.StringIO()
    hooks: list[pipeline.Hook] = [pipeline.Dump(tmp_path), clock, pipeline.Diff(out)]
    g = pipeline.run(small(), pipeline.parse("fold,simplify,dead"), hooks, stop_after="simplify")
    assert [r[0] for r in clock.rows] == ["import", "fold", "simplify"]
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "00-import.ir",
        "01-fold.ir",
        "02-simplify.ir",
    ]
    assert text.load(tmp_path / "02-simplify.ir") == g
    assert "-  %0: f32[2] = Identity %x\n" in out.getvalue()


def test_a_pass_that_breaks_the_graph_is_named_and_its_input_kept(tmp_path: Path) -> None:
    passes = pipeline.parse('simplify,demo{mode="break"},dead')
    with pytest.raises(IRError) as caught:
        pipeline.run(small(), passes, [pipeline.Dump(tmp_path)])
    assert caught.value.__notes__ == ['while running pass demo{mode="break"}']
    crash = (tmp_path / "crash.ir").read_text()
    assert crash.startswith('// passes: demo{mode="break"},dead\ngraph @g(')


def test_every_pass_says_what_it_does() -> None:
    for name, cls in PASSES.items():
        assert cls.__doc__, name
        assert cls() == pipeline.parse(name)[0]


@pytest.mark.parametrize("precision", pipeline.PRESETS)
def test_presets_end_with_every_node_in_a_launch(precision: str) -> None:
    g = pipeline.run(small(), pipeline.preset(precision))
    assert [(n.op, n.group) for n in g.nodes] == [("Relu", "relu_0")]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match=r"E303: no precision 'fp61'.*did you mean fp16"):
        pipeline.preset("fp61")


def test_precision_refuses_an_unknown_type() -> None:
    with pytest.raises(PassError, match="E302"):
        pipeline.run(small(), pipeline.parse('precision{type="fp8"}'))
