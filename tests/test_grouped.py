"""Heads that share keys and values, and rows written to a cache between two transpositions: rewritten, they mean the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapper.compiler import pipeline, text
from knapper.compiler.ir import Array, Graph, evaluate
from knapper.compiler.passes.grouped import FEW

SMALL = st.integers(1, 3)


def rewritten(g: Graph) -> Graph:
    return pipeline.run(g, pipeline.parse("products,simplify"))


def feeds(g: Graph, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {v: rng.standard_normal(t.shape, np.float32) for v, t in g.inputs.items() if t.dtype == "f32"}  # fmt: skip


def attention(b: int, g: int, times: int, s: int, n: int, d: int, flat: bool) -> Graph:
    """`flat`: keys are turned around as PyTorch's exporter does it, batches and heads being one axis."""
    h = g * times
    turned = f"  %t: f32[{b},{h},{d},{n}] = Transpose %keys {{perm=[0,1,3,2]}}\n  %kt: f32[{b},{h},{d},{n}] = Mul %t, %scale"
    if flat:
        turned = f"""  %f: f32[{b * h},{n},{d}] = Reshape %keys {{shape=[{b * h},{n},{d}]}}
  %ft: f32[{b * h},{d},{n}] = Transpose %f {{perm=[0,2,1]}}
  %t: f32[{b},{h},{d},{n}] = Reshape %ft {{shape=[{b},{h},{d},{n}]}}
  %kt: f32[{b},{h},{d},{n}] = Mul %t, %scale"""
    return text.parse(f"""graph @attention(%q: f32[{b},{h},{s},{d}], %k: f32[{b},{g},{n},{d}], %v: f32[{b},{g},{n},{d}]) {{
  const %scale: f32[] = 0.7
  %k1: f32[{b},{g},1,{n},{d}] = Reshape %k {{shape=[{b},{g},1,{n},{d}]}}
  %k2: f32[{b},{g},{times},{n},{d}] = Expand %k1 {{shape=[{b},{g},{times},{n},{d}]}}
  %keys: f32[{b},{h},{n},{d}] = Reshape %k2 {{shape=[{b},{h},{n},{d}]}}
  %v1: f32[{b},{g},1,{n},{d}] = Reshape %v {{shape=[{b},{g},1,{n},{d}]}}
  %v2: f32[{b},{g},{times},{n},{d}] = Expand %v1 {{shape=[{b},{g},{times},{n},{d}]}}
  %values: f32[{b},{h},{n},{d}] = Reshape %v2 {{shape=[{b},{h},{n},{d}]}}
  %qs: f32[{b},{h},{s},{d}] = Mul %q, %scale
{turned}
  %scores: f32[{b},{h},{s},{n}] = MatMul %qs, %kt
  %shares: f32[{b},{h},{s},{n}] = Softmax %scores
  %y: f32[{b},{h},{s},{d}] = MatMul %shares, %values
  return %y
}}
""")


@given(SMALL, SMALL, st.integers(2, 4), st.integers(1, 6), st.integers(2, 9), SMALL, st.booleans())
def test_shared_heads_are_rows_of_one_product(
    b: int, g: int, times: int, s: int, n: int, d: int, flat: bool
) -> None:
    before = attention(b, g, times, s, n, d, flat)
    after = rewritten(before)
    assert not [x for x in after.nodes if x.op == "Expand"]
    products = [x for x in after.nodes if x.op == "MatMul"]
    assert {x.types[0].shape[:2] for x in products} == {(b, g)}
    if (
        times * s > FEW or times * s < n
    ):  # else the keys are the smaller operand, and take the factor
        assert products[0].attr("trans_b") == (times * s <= FEW)
    x = feeds(before)
    np.testing.assert_allclose(
        evaluate(after, x)["y"], evaluate(before, x)["y"], rtol=1e-5, atol=1e-6
    )


@given(
    st.permutations(range(4)),
    st.permutations(range(4)),
    st.integers(1, 4),
    st.sampled_from(["none", "add"]),
)
def test_rows_that_are_written_are_written_where_they_lie(
    there: list[int], back: list[int], count: int, how: str
) -> None:
    shape = (3, 4, 5, 6)
    turned = tuple(shape[i] for i in there)
    rows = (count, *turned[1:])
    last = tuple(turned[i] for i in back)

    def show(sizes: object) -> str:
        return str(list(sizes)).replace(" ", "")  # type: ignore[call-overload]

    g = text.parse(f"""graph @cache(%past: f32{show(shape)}, %at: i64[{count},1], %new: f32{show(rows)}) {{
  %a: f32{show(turned)} = Transpose %past {{perm={show(there)}}}
  %b: f32{show(turned)} = ScatterND %a, %at, %new {{reduction="{how}"}}
  %c: f32{show(last)} = Transpose %b {{perm={show(back)}}}
  return %c
}}
""")
    after = rewritten(g)
    returns = [there[i] for i in back] == [*range(4)]
    assert ("ScatterElements" in {n.op for n in after.nodes}) == returns
    at = np.random.default_rng(1).permutation(turned[0])[:count]
    at = np.resize(at, count) if how == "add" else at
    if len(at) < count:
        return  # places that are written twice have no value
    x = feeds(g) | {"at": at.reshape(count, 1)}
    np.testing.assert_array_equal(evaluate(after, x)["c"], evaluate(g, x)["c"])


@given(st.permutations(range(4)))
def test_the_way_back_is_found(there: list[int]) -> None:
    back = [there.index(i) for i in range(4)]
    test_rows_that_are_written_are_written_where_they_lie.hypothesis.inner_test(
        there, back, 2, "none"
    )


def test_keys_that_are_repeated_another_way_are_left() -> None:
    """Another shape at the end means another thing, though there are as many numbers in it."""
    g = text.parse("""graph @other(%q: f32[2,6,7,4], %k: f32[2,3,4,5]) {
  %k1: f32[2,3,1,4,5] = Reshape %k {shape=[2,3,1,4,5]}
  %k2: f32[2,3,2,4,5] = Expand %k1 {shape=[2,3,2,4,5]}
  %keys: f32[1,6,4,10] = Reshape %k2 {shape=[1,6,4,10]}
  %y: f32[2,6,7,10] = MatMul %q, %keys
  return %y
}
""")
    x = feeds(g)
    np.testing.assert_array_equal(evaluate(rewritten(g), x)["y"], evaluate(g, x)["y"])


@pytest.mark.parametrize(("c", "d", "q"), [(1e30, 1e30, 0.0), (1e-30, 1e-30, 1e38)])
def test_factors_whose_product_is_no_number_stay_two(c: float, d: float, q: float) -> None:
    g = text.parse(f"""graph @factors(%q: f32[4,6]) {{
  const %c: f32[] = {c}
  const %d: f32[] = {d}
  %a: f32[4,6] = Mul %q, %c
  %b: f32[24] = Reshape %a {{shape=[24]}}
  %y: f32[24] = Mul %b, %d
  return %y
}}
""")
    x = {"q": np.full((4, 6), q, np.float32)}
    np.testing.assert_array_equal(evaluate(rewritten(g), x)["y"], evaluate(g, x)["y"])
