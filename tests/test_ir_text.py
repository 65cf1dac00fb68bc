"""The text of graphs: what is printed reads back, wherever the names and numbers come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapper.compiler import text
from knapper.compiler.ir import DTYPES, OPS, Array, Attr, Graph, Node, Type, op
from knapper.isa.errors import IRError, KnapperError


def TextAny(
    *xs: Type | None,
    shape: tuple[int, ...] = (2, 3),
    results: int = 1,
    i: int = 0,
    f: float = 0.0,
    s: str = "",
    b: bool = False,
    many: tuple[object, ...] = (),
) -> tuple[Type, ...]:
    """Takes anything; makes `results` tensors f32 of `shape`."""
    return (Type("f32", tuple(shape)),) * results


@pytest.fixture(scope="module", autouse=True)
def declared() -> Iterator[None]:
    """`TextAny` exists for these tests only."""
    op(TextAny)
    yield
    del OPS["TextAny"]


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
scalars = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=4), st.booleans()
)
attributes: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({}, optional={
    "i": st.integers(), "f": st.floats(allow_nan=False), "s": st.text(max_size=8), "b": st.booleans(),
    "many": st.recursive(st.lists(scalars, max_size=3).map(tuple),
                         lambda inner: st.lists(inner, max_size=2).map(tuple), max_leaves=4),
})  # fmt: skip


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """A constant of any type: any bits, NaNs and infinities among them."""
    dtype = np.dtype(DTYPES[draw(st.sampled_from(sorted(DTYPES)))])
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    size = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype == np.bool_:
        raw = bytes(b & 1 for b in raw)
    return np.frombuffer(raw, dtype).reshape(shape)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A graph with odd names, all kinds of attributes, absent operands and several results."""
    used = draw(st.lists(names, min_size=1, max_size=14, unique=True))
    inputs = {v: Type("f32", (2, 3)) for v in used[:1]}
    constants = {v: draw(arrays()) for v in used[1 : 1 + draw(st.integers(0, 3))]}
    values, nodes = [*inputs, *constants], []
    fresh = iter(used[1 + len(constants) :])
    for v in fresh:
        made = (v, *(w for w in [next(fresh, None)] if w and draw(st.booleans())))
        operands = draw(st.lists(st.sampled_from([*values, ""]), max_size=4))
        shape = (draw(st.integers(0, 3)),)
        attrs: dict[str, Attr] = {**draw(attributes), "results": len(made), "shape": shape}
        types = (Type("f32", shape),) * len(made)
        loc, group, place = (draw(st.text(max_size=5)) for _ in range(3))
        nodes.append(Node("TextAny", tuple(operands), made, types, attrs, loc, group, place))
        values += made
    outputs = {o: draw(st.sampled_from(values)) for o in draw(st.lists(names, max_size=3))}
    return Graph(draw(names), inputs, outputs, tuple(nodes), constants).verify()


@given(graphs())
def test_what_is_printed_reads_back(g: Graph) -> None:
    back = text.parse(text.show(g), blobs=text.blobs(g))
    assert back == g
    assert text.show(back) == text.show(g)


def test_a_graph_prints_a_node_a_line() -> None:
    g = text.parse(
        """
        graph @"a net"(%x: f32[2,3]) {  // comments are allowed
          const %half: f32[] = 0.5
          %y: f32[2,3], %"y:1": f32[2,3] = TextAny %x, _, %half {results=2,b=true} loc("conv 1")
          return %y as %prob, %"y:1" }
        """
    )
    assert text.show(g) == (
        'graph @"a net"(%x: f32[2,3]) {\n'
        "  const %half: f32[] = 0.5\n"
        '  %y: f32[2,3], %"y:1": f32[2,3] = TextAny %x, _, %half {b=true,results=2} loc("conv 1")\n'
        '  return %y as %prob, %"y:1"\n'
        "}\n"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("%y = TextAny %x", 'm.ir:2:1: cannot read this\n%y = TextAny %x\n^'),
        ("%y: f32[2,3] = TextAny %x {i=}", "m.ir:2:30: cannot read this\n"),
        ("%y: f32[2,3] = TextAny %x {i=1,", "m.ir:3:1: cannot read this\n}\n^"),
        ("const %c: f32[2] = [1.0] return %x", "%c is f32[2] and has 1 elements, not 2\nconst %c"),
        ("const %c: i8[1] = [300] return %x", "the elements of %c are not i8"),
        ("const %c: f32[99] = #0123456789abcdef return %x", "nothing beside the text has the hash #0123"),
        ("const %c: i8[] = 1 const %c: i8[] = 1 return %x", "m.ir:2:26: %c is there twice"),
    ],
)  # fmt: skip
def test_an_unreadable_line_is_shown_with_its_place(body: str, message: str) -> None:
    with pytest.raises(IRError) as caught:
        text.parse(f"graph @g(%x: f32[2,3]) {{\n{body}\n}}", "m.ir")
    assert caught.value.code == "E101"
    assert message in str(caught.value)


def test_a_text_that_ends_early_says_so() -> None:
    with pytest.raises(IRError, match=r"m\.ir:2:1: the text ends too early"):
        text.parse("graph @g(%x: f32[2,3]) {\n", "m.ir")


def test_every_wrong_node_is_named_with_its_line() -> None:
    wrong = """graph @g(%x: f32[2,3]) {
  %a: f32[9] = TextAny %x loc("conv 3")
  %b: f32[2,3] = TextAmy %x
  %c: f32[2,3] = TextAny %nothing
  %d: f32[2,3] = TextAny %x {k=1}
  return %e
}"""
    with pytest.raises(KnapperError) as caught:
        text.parse(wrong, "m.ir")
    assert str(caught.value).splitlines() == [
        "E102: m.ir:2:3: %a (node conv 3): TextAny makes f32[2,3], but the graph says f32[9]",
        "E102: m.ir:3:3: %b: no op named 'TextAmy' (hint: did you mean TextAny?)",
        "E102: m.ir:4:3: %c: TextAny uses %nothing before it is defined",
        "E102: m.ir:5:3: %d: TextAny has no attribute 'k'; it has shape, results, i, f, s, b, many",
        "E102: output 'e' is %e, which nothing defines",
    ]


def test_files_hold_text_and_constants(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 7), np.float32)
    constants = {"w": w, "v": w.astype(DTYPES["bf16"]), "s": np.array(3, np.float32), "same": w}
    g = Graph("g", {"x": Type("f32", (2, 3))}, {"x": "x"}, (), constants)
    text.save(g, tmp_path / "net.ir")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["net.ir", "net.ir.data"]
    assert text.load(tmp_path / "net.ir") == g
    with np.load(tmp_path / "net.ir.data") as f:
        assert len(f.files) == 3  # equal constants are stored once; the third is the mark
