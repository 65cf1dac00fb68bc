"""Memory plans: buffers share places, never while both are needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapper.compiler.memory import ALIGN, Buffer, collisions, lower_bound, peak, place


@st.composite
def wanted(draw: st.DrawFn, most: int = 40) -> list[Buffer]:
    """Buffers of a network of up to 20 launches."""
    count = draw(st.integers(0, most))
    spans = draw(
        st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=count, max_size=count)
    )
    sizes = draw(st.lists(st.integers(0, 100_000), min_size=count, max_size=count))
    return [
        Buffer(f"b{i}", size, min(s), max(s))
        for i, (s, size) in enumerate(zip(spans, sizes, strict=True))
    ]


@given(wanted())
def test_no_two_buffers_that_meet_overlap(buffers: list[Buffer]) -> None:
    placed = place(buffers)
    for i, a in enumerate(placed):
        for b in placed[i + 1 :]:
            assert not (a.meets(b) and a.covers(b)), (a, b)
    assert [b.name for b in placed] == [b.name for b in buffers]
    assert all(b.offset % ALIGN == 0 and b.offset >= 0 for b in placed)


@given(wanted())
def test_the_lower_bound_is_the_worst_launch(buffers: list[Buffer]) -> None:
    worst = max(
        (sum(b.room for b in buffers if b.first <= t <= b.last) for t in range(21)), default=0
    )
    assert lower_bound(buffers) == worst
    assert peak(place(buffers)) >= worst


@given(wanted(12), wanted(12))
def test_placing_around_what_is_fixed_moves_nothing(
    first: list[Buffer], second: list[Buffer]
) -> None:
    fixed = place(first)
    others = [Buffer(f"s{b.name}", b.bytes, b.first, b.last) for b in second]
    assert not list(collisions([*fixed, *place(others, fixed)]))


@given(wanted())
def test_collisions_finds_exactly_the_pairs_that_do(buffers: list[Buffer]) -> None:
    at_zero = {frozenset((a.name, b.name)) for a, b in collisions(buffers)}
    meeting = {
        frozenset((a.name, b.name)) for a in buffers for b in buffers if a != b and a.meets(b)
    }
    assert at_zero == meeting


def test_a_chain_needs_two_buffers() -> None:
    chain = [Buffer(f"v{i}", 1024, i, i + 1) for i in range(50)]
    assert peak(place(chain)) == 2048


def test_a_residual_keeps_its_place_while_others_pass() -> None:
    held = Buffer("skip", 512, 0, 9)
    chain = [Buffer(f"v{i}", 512, i, i + 1) for i in range(9)]
    placed = place([held, *chain])
    assert peak(placed) == lower_bound(placed) == 3 * 512


@pytest.mark.parametrize("size", [0, 1, 255, 256])
def test_every_buffer_has_an_address_of_its_own(size: int) -> None:
    a, b = place([Buffer("a", size, 0, 0), Buffer("b", size, 0, 0)])
    assert abs(a.offset - b.offset) == ALIGN
