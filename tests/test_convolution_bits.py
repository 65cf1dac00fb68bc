"""A convolution has the same bits on every target, with and without the lowered matrix, in fp16 and bf16: those of the reference.

Targets differ in everything that could show: Tensor Cores in steps of 16, arrays of 8 rows in the lanes, an array of 128 rows fed from
vector memory. Operands hold what tells a wrong step from a right one: -0, infinities, NaNs, numbers whose products vanish.

`make deep` takes 2,000 random ones of each precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_channel_first import known
from test_im2col import drawn, onnx_cases

from knapper.compiler import driver
from knapper.compiler.codegen.generator import generators
from knapper.compiler.groups import groups
from knapper.compiler.ir import Array, Graph, Node, Type, evaluate, infer
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

TARGETS = {name: Machine.load(name) for name in ("volta-8tc", "sma3", "tpu-v2")}
TPU = TARGETS["tpu-v2"]
SMALL = TPU.with_(array_rows=8, array_columns=16)
VECTORED = generators()["channel_first"]
MODES, PRECISIONS = ("implicit", "explicit"), ("fp16", "bf16")
SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 65504.0)
Options = dict[str, Any]
Pick = Callable[[list[Options]], Options]
SAFE = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""Conversions of special numbers, and onnx's own generators."""


def bits(y: Array) -> Array:
    """As integers; all NaNs are one."""
    return np.where(np.isnan(y), np.float32(np.nan), y.astype(np.float32)).view(np.uint32)


def assert_same(got: dict[str, Array], want: dict[str, Array], who: str) -> None:
    for v, y in want.items():
        np.testing.assert_array_equal(bits(got[v]), bits(y), err_msg=f"%{v}, {who}")


def first(walks: list[Options]) -> Options:
    return walks[0]


def vectored(g: Graph, machine: Machine, pick: Pick) -> dict[str, Options]:
    """All that can be fed from vector memory is, by the walks that are picked."""
    served = [x for x in groups(g) if VECTORED.serves(x, machine) is None]
    walks = {x.name: [dict(w) for w in VECTORED.candidates(x, machine)] for x in served}
    return {name: {"kind": VECTORED.kind, **pick(found)} for name, found in walks.items()}


def run(
    g: Graph, feeds: dict[str, Array], machine: Machine, pick: Pick = first
) -> dict[str, Array]:
    """What a fused graph computes on a machine."""
    forced = vectored(g, machine, pick) if machine.vector_word else {}
    return Session(driver.finish(g, machine, driver.Options(forced=forced))).run(feeds).outputs


def assert_bits_agree(g: Graph, x: Array, precision: str, pick: Pick = first) -> None:  # fmt: skip
    """Of all targets both ways; weights are known."""
    feeds = {next(iter(g.inputs)): x}
    made = {m: driver.optimize(g, driver.Options(f"{precision},im2col{{mode={m}}}")) for m in MODES}
    want = evaluate(made["implicit"], feeds)
    for mode, fused in made.items():
        for name, machine in TARGETS.items():
            assert_same(run(fused, feeds, machine, pick), want, f"{precision}, {mode} on {name}")


# --- cases


def graph(op: str, operands: list[Array], attrs: Options) -> Graph:
    """Of one node, whose weights are known."""
    values = {f"x{i}": a for i, a in enumerate(operands)}
    types = infer(op, [*map(Type.of, operands)], attrs)
    node = Node(op, tuple(values), ("y",), types, attrs, "conv")
    constants = {v: a for v, a in values.items() if v != "x0"}
    return Graph("g", {"x0": Type.of(operands[0])}, {"y": "y"}, (node,), constants).verify()


def spice(draw: st.DrawFn, a: Array) -> None:
    """A few special numbers at random places."""
    places = st.tuples(st.integers(0, a.size - 1), st.sampled_from(SPECIAL))
    for at, value in draw(st.lists(places, max_size=4)):
        a.reshape(-1)[at] = value


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Graph, Array]:
    """A Conv or ConvTranspose over one to three axes, with all that it can say; channels and outputs above and below an array's."""
    n = draw(st.integers(1, 3))
    transposed = draw(st.sampled_from([False, False, False, True]))

    def numbers(low: int, high: int, count: int = n) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(count))

    group = draw(st.sampled_from([1, 1, 1, 2, 3]))
    each = draw(st.sampled_from([1, 1, 2, 9] if group > 1 else [1, 2, 3, 5, 8, 16, 21, 130]))
    outs = draw(st.sampled_from([1, 2, 3] if group > 1 else [1, 3, 16, 17, 40]))
    images = draw(st.sampled_from([1, 1, 2, 3, 8, 9]))
    sizes, kernel = numbers(1, (14, 7, 4)[n - 1]), numbers(1, (9, 4, 2)[n - 1])
    strides, dilations, pads = numbers(1, 3), numbers(1, 2), numbers(0, 2, 2 * n)
    for i, (size, k) in enumerate(zip(sizes, kernel, strict=True)):
        reach, padding = dilations[i] * (k - 1), pads[i] + pads[n + i]
        widened = (size - 1) * strides[i] + reach - padding if transposed else size + padding - reach - 1  # fmt: skip
        assume(widened >= 0)
    weights = (group * each, outs) if transposed else (group * outs, each)
    shapes = [(images, group * each, *sizes), (*weights, *kernel), (group * outs,)]
    operands = drawn(*shapes[: draw(st.integers(2, 3))], seed=draw(st.integers(0, 99)))
    for a in operands[:2]:
        spice(draw, a)
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    return graph("ConvTranspose" if transposed else "Conv", operands, attrs), operands[0]


# --- the bits


@SAFE
@pytest.mark.parametrize("precision", PRECISIONS)
@given(convolutions(), st.integers(0, 999))
def test_random_convolutions(precision: str, case: tuple[Graph, Array], walk: int) -> None:
    assert_bits_agree(*case, precision, lambda found: found[walk % len(found)])


@SAFE
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_onnx_suites_convolutions(precision: str) -> None:
    for g, arrays in onnx_cases():
        assert_bits_agree(known(g, arrays), arrays[0], precision)


def right_of_windows(stride: int) -> tuple[Graph, Array]:
    """A convolution by 5 taps, with Inf and NaN where some windows do not see them, and in some weights."""
    x, w = drawn((9, 3, 4, 11), (7, 3, 2, 5))
    x[0, :, 1, 10], x[0, 1, 3, 0], w[2, 1, 0, 4], w[3, 0, 1, 0] = np.inf, np.nan, -np.inf, np.inf
    return graph("Conv", [x, w], {"strides": (1, stride)}), x


@SAFE
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("word", ["batch", "width"])
@pytest.mark.parametrize("machine", [TPU, SMALL], ids=["128 × 128", "8 × 16"])
def test_taps_side_by_side_see_no_more_than_the_window(
    machine: Machine, word: str, precision: str
) -> None:
    """Whatever their number: also where it does not divide the taps of a line."""
    for stride in (1, 3):
        g, x = right_of_windows(stride)
        fused = driver.optimize(g, driver.Options(precision))
        want = run(fused, {"x0": x}, TARGETS["volta-8tc"])
        assert 0.5 < np.isfinite(want["y"]).mean() < 1
        for t in range(1, 1 + min(5, machine.array_rows // 3)):
            chosen = partial(side_by_side, t, word)
            got = run(fused, {"x0": x}, machine, chosen)
            assert_same(got, want, f"{t} taps in words of {word}")


def side_by_side(taps: int, word: str, walks: list[Options]) -> Options:
    """A walk with so many taps in a pass."""
    return next(w for w in walks if (w["multi_tile"], w["word"]) == (taps, word))


@SAFE
def test_sums_that_vanished_keep_their_sign() -> None:
    """Negative products of no size: -0 on every target, whatever it fills up channels and taps with."""
    for channels, taps in ((3, 3), (8, 1), (16, 1), (24, 3), (130, 1)):
        x, w = np.full((2, channels, 6, 6), -1e-30, np.float32), np.full((9, channels, taps, taps), 1e-30, np.float32)  # fmt: skip
        g = graph("Conv", [x, w], {})
        assert (bits(evaluate(driver.optimize(g, driver.Options("bf16")), {"x0": x})["y"]) == 1 << 31).all()  # fmt: skip
        assert_bits_agree(g, x, "bf16")
