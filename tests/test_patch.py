"""Convolutions whose blocks fetch each pixel once: the bits of `hmma`, what is loaded, and what is chosen and refused.

Cases are made and run as in `matrix_cases`. The golden file is `plan/patch.plan`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product as pairs
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrix_cases import MACHINE, cache, check, conv, group_of, offers, program, same

from knapper.compiler import plan_text
from knapper.compiler import text as ir_text
from knapper.compiler.codegen.generator import GENERATORS
from knapper.compiler.codegen.matrix.patch.shape import Phases
from knapper.compiler.schedule import schedule
from knapper.frontends.reproduce import im2col
from knapper.frontends.reproduce.claims import Lab
from knapper.frontends.reproduce.workloads import Tile
from knapper.isa.errors import KnapperError
from knapper.isa.instructions import LDG_IM2COL
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

__all__ = ["cache"]  # the fixture

GOLDEN = Path(__file__).parent / "plan" / "patch.plan"
CASES: dict[str, dict[str, Any]] = {
    "3x3": {"x": (1, 9, 7, 32), "o": 32, "k": 3, "pad": 1, "after": "residual"},
    "stride, batch": {"x": (3, 9, 8, 16), "o": 24, "k": 3, "stride": 2, "pad": 1},
    "dilated": {"x": (1, 9, 19, 16), "o": 24, "k": 3, "pad": 2, "dilation": 2},
    "stride and dilation that share a factor": {"x": (1, 22, 19, 16), "o": 8, "k": 3, "stride": 4, "dilation": 2},
    "dilation that skips phases": {"x": (1, 24, 20, 16), "o": 16, "k": 3, "stride": 3, "dilation": 4},
    "more stride than taps": {"x": (2, 21, 18, 16), "o": 16, "k": 2, "stride": 4, "pad": 1},
    "7x7": {"x": (1, 20, 21, 16), "o": 16, "k": 7, "stride": 2, "pad": 3, "after": "residual"},
    "bf16": {"x": (1, 5, 18, 16), "o": 24, "k": 3, "pad": 1, "dtype": "bf16"},
    "groups": {"x": (1, 8, 8, 64), "o": 64, "k": 3, "pad": 1, "group": 4, "after": "residual"},
    "weights that are computed": {"x": (1, 6, 5, 32), "o": 24, "k": 3, "pad": 1, "known": False},
    "more taps than image": {"x": (1, 3, 2, 16), "o": 16, "k": 5, "pad": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_convolutions_have_the_references_bits(name: str, cache: Path) -> None:
    check(conv(**CASES[name]), "patch", cache, count=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("stride, batch", {"pixels": (3, 4), "warps": (1, 2)}),
        ("bf16", {"pixels": (3, 18), "warps": (2, 1)}),
        ("weights that are computed", {"pixels": (3, 5), "warps": (1, 2)}),
    ],
)
def test_the_checking_engine_counts_the_same_and_finds_nothing(
    name: str, options: dict[str, Any], cache: Path
) -> None:
    """No race, no read of what was never written: places that no tap reads are zero."""
    graph, inputs = conv(**CASES[name])
    full = next(o for o in offers(graph, "patch") if options.items() <= o.items())
    session = Session(program(graph, "patch", full, cache))
    fast, slow = (session.run(inputs, engine=e) for e in ("fast", "reference"))
    assert all(same(fast.outputs[v], slow.outputs[v]) for v in fast.outputs)
    assert fast.stats.instructions == slow.stats.instructions


@settings(max_examples=20)
@given(st.data())
def test_any_convolution_has_the_bits_of_hmma(cache: Path, data: Any) -> None:
    def pick(*choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    group, k, dilation = pick(1, 1, 2), pick(2, 3, 5), pick(1, 2, 3)
    x = (pick(1, 2), pick(7, 12, 18), pick(6, 13, 20), group * pick(16, 32))
    pad = pick(0, 1, 2)
    assume(min(x[1:3]) + 2 * pad > dilation * (k - 1))
    graph, inputs = conv(
        x, group * pick(7, 16, 40), k, pick(1, 2, 3, 4), pad, dilation, group, pick("f16", "bf16"), pick("relu", "residual"), pick(True, True, False),
    )  # fmt: skip
    want = Session(program(graph, "hmma", {}, cache)).run(inputs).outputs
    got = Session(program(graph, "patch", pick(*offers(graph, "patch")), cache)).run(inputs).outputs
    assert all(same(got[v], want[v]) for v in want)


# --- what is loaded


RATIOS = {(1, 3): 6.4, (1, 5): 13.33, (1, 7): 20.36, (2, 3): 2.05, (2, 5): 4.81, (2, 7): 8.07, (4, 3): 1.0}  # fmt: skip
"""(stride, taps) → pixels that a tile of 8 × 16 loads tap by tap, by distinct ones."""
KERNELS: dict[str, Tile] = {
    "hmma": (("kind", "hmma"),),
    "patch": (("kind", "patch"), ("pixels", (8, 16))),
}


@pytest.mark.parametrize(("stride", "taps"), RATIOS)
def test_each_pixel_of_a_tile_is_loaded_once(stride: int, taps: int) -> None:
    """Two tiles, one below the other, in the middle of an image."""
    lines, columns = (len({y * stride + t for y in range(n) for t in range(taps)}) for n in (8, 16))
    got = {kind: im2col.loaded(Lab(), stride, taps, kernel) for kind, kernel in KERNELS.items()}
    pixel = 16 * 2
    assert got == {"hmma": 2 * taps**2 * 8 * 16 * pixel, "patch": 2 * lines * columns * pixel}
    assert got["hmma"] / got["patch"] == pytest.approx(RATIOS[stride, taps], abs=0.005)
    assert im2col.distinct(stride, taps) == got["hmma"] / got["patch"]


def test_pixels_outside_of_the_image_are_not_loaded(cache: Path) -> None:
    graph, inputs = conv((1, 8, 16, 32), 16, 3, pad=1)
    options = next(o for o in offers(graph, "patch") if o["pixels"] == (8, 16))
    (launch,) = Session(program(graph, "patch", options, cache)).run(inputs).stats.launches
    own = launch.facts.opcodes == LDG_IM2COL.opcode
    assert launch.counts.instructions["l2_read"][own].sum() == inputs["v0"].nbytes


@pytest.mark.parametrize(("stride", "dilation"), [*pairs(range(1, 5), range(1, 5))])
def test_phases_hold_the_pixels_of_every_tap(stride: int, dilation: int) -> None:
    for taps, size in pairs((1, 2, 3, 5, 7), (1, 4, 9)):
        axis = Phases(size, taps, stride, dilation)
        pixels, read = axis.pixels(), set[int]()
        for tap in range(taps):
            phase, first = axis.place(tap)
            under = tap * dilation + stride * np.arange(size)
            assert (pixels[phase, first : first + size] == under).all()
            read |= {*under.tolist()}
        assert sorted(pixels[pixels >= 0].tolist()) == sorted(read)


# --- what is chosen, and what is refused


def test_the_text_of_a_plan(request: pytest.FixtureRequest) -> None:
    """Layers of ResNet-50: one whose patch pays, and one that takes it because it is told to; without the predicted cycles."""
    texts = []
    for shape, stride, forced in (((1, 14, 14, 256), 1, {}), ((1, 28, 28, 128), 2, {"kind": "patch"})):  # fmt: skip
        graph, _ = conv(shape, shape[-1], 3, stride, 1)
        text = plan_text.show(schedule(graph, MACHINE, {"g": forced}))
        texts += [line.split("  //")[0] for line in text.splitlines() if line.startswith("launch")]
    text = "\n".join(texts) + "\n"
    if request.config.getoption("--bless"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ({"x": (1, 8, 8, 32), "o": 16, "k": 1}, "has one tap: no pixel is read twice"),
        ({"x": (1, 8, 8, 32), "o": 32, "k": 3, "group": 32}, "1 channels of a group fill no fragments of 16"),
        ({"x": (1, 8, 8, 24), "o": 16, "k": 3}, "24 channels of a group fill no fragments of 16"),
        ({"x": (1, 8, 8, 16), "o": 16, "k": 3, "dtype": "f32"}, "operands are f32, the Tensor Core takes f16 and bf16"),
        ({"x": (1, 5, 5, 4096), "o": 16, "k": 3}, "the patch of one output pixel takes 196,608 bytes of shared memory, a block has 98,304"),
        ({"x": (1, 41, 41, 16), "o": 16, "k": 41}, "no tile's patch is one that the threads of a block can carry"),
    ],
)  # fmt: skip
def test_what_it_does_not_serve_is_told(case: dict[str, Any], why: str) -> None:
    graph, _ = conv(**case)
    assert str(GENERATORS["patch"].serves(group_of(graph), MACHINE)).startswith(why)


def test_an_error_shows_the_ways_that_are_near_and_counts_the_others() -> None:
    graph, _ = conv((1, 14, 14, 256), 256, 3, 1, 1)
    near = r"hint: legal are (patch \{.*warps=\[2,2\]\}; ){3}and [\d,]+ more"
    with pytest.raises(KnapperError, match=near) as e:
        schedule(graph, MACHINE, {"g": {"kind": "patch", "warps": (2, 2), "tile": (1, 2, 3)}})
    assert len(str(e.value)) < 500
    plan = schedule(graph, MACHINE)
    text, blobs = plan_text.show(plan).replace("tile=[", "tile=[1"), ir_text.blobs(plan.graph)
    with pytest.raises(KnapperError, match=r"legal are .*; and [\d,]+ more") as e:
        plan_text.parse(text, MACHINE, blobs=blobs)
    assert len(str(e.value)) < 500


def test_a_machine_without_tensor_cores_is_told() -> None:
    graph, _ = conv((1, 8, 8, 16), 16, 3)
    bare = replace(MACHINE, extensions=("base", "conv"))
    assert GENERATORS["patch"].serves(group_of(graph), bare) == "volta-8tc has no extension tensor"
    assert "tensor" not in Machine.load("sma3").extensions


def test_where_a_big_patch_does_not_fit_tiles_are_small() -> None:
    wide, narrow = ({o["pixels"] for o in offers(conv((1, 14, 28, c), 16, 3, 2, 1)[0], "patch")} for c in (64, 512))  # fmt: skip
    assert max(wide) > max(narrow)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((1, 14, 14, 256), 1), ((1, 28, 28, 256), 2), ((1, 56, 56, 64), 1), ((1, 7, 7, 512), 1)],
)
def test_predicted_cycles_are_near_the_executed_ones(shape: Any, stride: int, cache: Path) -> None:
    graph, inputs = conv(shape, shape[-1], 3, stride, 1)
    generator, group = GENERATORS["patch"], group_of(graph)
    options = min(generator.candidates(group, MACHINE), key=lambda o: generator.cost(group, o, MACHINE))  # fmt: skip
    run = Session(program(graph, "patch", options, cache)).run(inputs, timing=True)
    (launch,) = run.stats.launches
    assert launch.measured is not None
    cycles = launch.measured.timing.cycles
    assert generator.cost(group, options, MACHINE) == pytest.approx(cycles, rel=0.25)
