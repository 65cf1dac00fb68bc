"""Convolutions and products from vector memory: the references' bits however the walk goes, and what the walk fetches and counts.

Small machines, an array of 8 × 16 with little memory, force what takes large layers otherwise: strips, rings of rows, weights in chunks.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_cases import (
    CONVS,
    MATMULS,
    Case,
    Writer,
    conv,
    draw,
    group_of,
    matmul,
    same,
    some,
)
from test_im2col import onnx_cases

from knapper.compiler import plan_text
from knapper.compiler.codegen.generator import GENERATORS
from knapper.compiler.codegen.matrix.blocks import product
from knapper.compiler.codegen.matrix.channel_first import shape as channel_first_shape
from knapper.compiler.codegen.matrix.channel_first.shape import Tiles, Walk
from knapper.compiler.codegen.matrix.engine import Engine
from knapper.compiler.driver import Options as CompileOptions
from knapper.compiler.driver import compile_graph, finish, optimize
from knapper.compiler.groups import groups
from knapper.compiler.ir import Array, Graph, evaluate
from knapper.compiler.schedule import schedule
from knapper.isa.instructions import CONVDESC, DMA_LD, FILL_DUP, IM2COL_PUSH, SMA_LDB, SMA_SWAP
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Start
from knapper.isa.program import Program
from knapper.runtime.budget import EngineName
from knapper.runtime.session import Result, Session

TPU = Machine.load("tpu-v2")
SMALL = TPU.with_(
    array_rows=8, array_columns=16, accumulator_bytes=4096, warps_per_sm=4,
    shared_bytes_per_block=1 << 16, shared_bytes_per_sm=1 << 16,
)  # fmt: skip
TINY = SMALL.with_(accumulator_bytes=2048, shared_bytes_per_block=9 << 10)
"""Sums of 8 words of pixels, memory for a few rows."""
OTHERS = [Machine.load(name) for name in ("volta-8tc", "sma3")]
GOLDEN = Path(__file__).parent / "plan"
Options = dict[str, Any]
ENGINE = GENERATORS["channel_first"]
KNOWN = [name for name, how in CONVS.items() if how.get("known", True)]
PLAIN = [n for n, how in MATMULS.items() if not how.get("trans_a") and "batch" not in n]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def offers(graph: Graph, machine: Machine) -> list[Options]:
    assert ENGINE.serves(group_of(graph), machine) is None
    return [dict(o) for o in ENGINE.candidates(group_of(graph), machine)]


def tiles(graph: Graph, machine: Machine, options: Options) -> Tiles:
    return Tiles(product(group_of(graph)), Walk.of(options), machine)


def program(graph: Graph, machine: Machine, options: Options, cache: Path) -> Program:
    forced = {"g": {"kind": "channel_first", **options}}
    return finish(graph, machine, CompileOptions(forced=forced, cache=cache))


def run(case: Case, machine: Machine, options: Options, cache: Path, **how: Any) -> Result:
    return Session(program(case[0], machine, options, cache)).run(case[1], **how)


def check(case: Case, machine: Machine, cache: Path, chosen: Iterable[Options], engine: EngineName = "fast") -> None:  # fmt: skip
    graph, inputs = case
    want = evaluate(graph, inputs)
    for options in chosen:
        result = run(case, machine, options, cache, engine=engine)
        for v, y in want.items():
            assert same(result.outputs[v], y), f"{options}: %{v} differs from the reference"
        assert result.stats.macs == product(group_of(graph)).macs <= result.stats.macs_executed


def check_some(case: Case, machine: Machine, cache: Path, count: int = 3, engine: EngineName = "fast") -> None:  # fmt: skip
    check(case, machine, cache, some(offers(case[0], machine), count), engine)


# --- the bits


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("name", KNOWN)
def test_convolutions_have_the_references_bits(name: str, dtype: str, cache: Path) -> None:
    check_some(conv(**CONVS[name], dtype=dtype), SMALL, cache, 3 if dtype == "f16" else 2)


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("name", PLAIN)
def test_products_have_the_references_bits(name: str, dtype: str, cache: Path) -> None:
    check_some(matmul(**{**MATMULS[name], "known": True}, dtype=dtype), SMALL, cache)


@pytest.mark.parametrize("name", ["3x3", "3x3 with stride, batch", "RGB", "groups"])
def test_the_bits_are_those_of_other_machines(name: str, cache: Path) -> None:
    """Tensor Cores, arrays in the lanes, and a TPU's array."""
    for dtype in ("f16", "bf16"):
        case = conv(**CONVS[name], dtype=dtype)
        options = min(offers(case[0], TPU), key=lambda o: ENGINE.cost(group_of(case[0]), o, TPU))
        got = run(case, TPU, options, cache).outputs
        for machine in OTHERS:
            want = Session(finish(case[0], machine, CompileOptions(cache=cache))).run(case[1])
            assert all(same(got[v], y) for v, y in want.outputs.items())


def known(graph: Graph, arrays: list[Array]) -> Graph:
    """All inputs but the first are constants."""
    values = dict(zip(graph.inputs, arrays, strict=True))
    x = next(iter(values))
    constants = graph.constants | {v: a for v, a in values.items() if v != x}
    return replace(graph, inputs={x: graph.inputs[x]}, constants=constants)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of onnx's own generators
def test_the_onnx_suites_convolutions_have_the_bits_of_the_tensor_core() -> None:
    """All that can be on the array are; those over three axes come as products, depthwise ones have a kernel of their own."""
    ours = 0
    for graph, arrays in onnx_cases():
        g = known(graph, arrays)
        launched = groups(optimize(g, CompileOptions("fp16", machine=TPU)))
        wish = {
            x.name: {"kind": "channel_first"} for x in launched if ENGINE.serves(x, TPU) is None
        }
        made = compile_graph(g, TPU, "fp16", forced=wish)
        got, want = (
            Session(p).run({next(iter(g.inputs)): arrays[0]}).outputs
            for p in (made, compile_graph(g, OTHERS[0], "fp16"))
        )
        assert all(same(got[v], y) for v, y in want.items())
        ours += len(wish)
    assert ours > 30


@pytest.mark.parametrize("images", [1, 2, 3, 5, 8, 9])
def test_any_number_of_images(images: int, cache: Path) -> None:
    """Words that hold 1, 2, 4 and 8 images, the last of which may not exist; images of one pixel too."""
    for x in ((images, 5, 6, 11), (images, 1, 1, 11)):
        check_some(conv(x, 20, 3, pad=1, after="residual"), SMALL, cache)


@settings(max_examples=20)
@given(st.data())
def test_any_convolution(cache: Path, data: Any) -> None:
    def pick(*choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    group, k = pick(1, 1, 1, 2), pick(1, 2, 3)
    x = (pick(1, 2, 3, 8, 10), pick(4, 7), pick(4, 9), group * pick(2, 3, 8, 9, 17))
    case = conv(
        x, group * pick(1, 7, 16, 40), k, pick(1, 2, 3), pick(0, 1, 2), pick(1, 2), group, pick("f16", "bf16", "f32"),
        pick("relu", "residual"),
    )  # fmt: skip
    machine = pick(SMALL, TINY)
    if ENGINE.serves(group_of(case[0]), machine) is None:
        check(case, machine, cache, [data.draw(st.sampled_from(offers(case[0], machine)))])


@pytest.mark.parametrize("m", [48, 84, 17 * 6])
def test_rows_that_are_too_many_images_are_pixels(
    m: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_first_shape, "IMAGES", 16)
    case = matmul((m, 19), (19, 20), (m, 20), known=True)
    assert {tiles(case[0], SMALL, o).wn for o in offers(case[0], SMALL)} == {math.gcd(m, 8)}
    check_some(case, SMALL, cache)


def waveforms(images: int, length: int, taps: int, o: int) -> Case:
    """One channel along one axis: the extreme of taps side by side."""
    w = Writer()
    x, k = w.value(draw((images, length, 1), "f16")), w.value(draw((taps, 1, o), "f16"), True)
    y = w.op("Conv", x, k, strides=(1,), pads=(taps // 2, 0), layout="NHWC", out="f32")
    return w.case(w.op("Cast", y, to="f16"))


@pytest.mark.parametrize("machine", [SMALL, TPU], ids=["8×16", "128×128"])
def test_one_axis_and_one_channel(machine: Machine, cache: Path) -> None:
    case = waveforms(8, 70, 48, 16)
    found = [o for o in offers(case[0], machine) if o["word"] == "batch"]
    most = max(o["multi_tile"] for o in found)
    assert most == min(machine.array_rows, 48)
    assert min(tiles(case[0], machine, o).passes for o in found) == 48 // most
    check(case, machine, cache, [found[0], found[-1]])


@pytest.mark.parametrize("images", [1, 8])
def test_lines_whose_sums_are_too_many_are_cut(images: int, cache: Path) -> None:
    case = conv((images, 2, 50, 3), 9, 3, pad=1)
    found = offers(case[0], TINY)
    assert all(o["strip"] < 50 for o in found if o["word"] == "batch" or images == 1)
    check(case, TINY, cache, some(found, 3))


SMALL_CASES = {
    "3x3": conv((1, 5, 4, 16), 24, 3, pad=1, after="residual"),
    "batch of 9": conv((9, 5, 4, 3), 20, 3, pad=1, stride=2),
    "groups": conv((2, 4, 5, 6), 8, 3, pad=1, group=2),
    "product": matmul((19, 70), (70, 37), (19, 37), known=True),
    "f32": conv((1, 4, 5, 9), 10, 3, pad=1, dtype="f32"),
}


@pytest.mark.parametrize("name", SMALL_CASES)
def test_the_reference_engine_agrees_and_finds_nothing_to_complain_of(
    name: str, cache: Path
) -> None:
    """No race, no hazard of a pending fill or pass, no memory that nobody wrote, one descriptor."""
    check_some(SMALL_CASES[name], TINY if name == "3x3" else SMALL, cache, engine="reference")


@pytest.mark.parametrize("name", SMALL_CASES)
def test_a_checked_run_finds_nothing_to_complain_of(name: str, cache: Path) -> None:
    case = SMALL_CASES[name]
    for options in some(offers(case[0], SMALL), 3):
        run(case, SMALL, options, cache, checked=True)


@pytest.mark.parametrize("name", SMALL_CASES)
def test_a_launch_in_numpy_has_the_same_bits(name: str) -> None:
    graph, inputs = SMALL_CASES[name]
    want = evaluate(graph, inputs)
    for options in some(offers(graph, SMALL), 3):
        got = schedule(graph, SMALL, {"g": {"kind": "channel_first", **options}}).evaluate(inputs)
        assert all(same(got[v], want[v]) for v in want)


# --- the walk


def test_every_order_and_word_is_offered() -> None:
    graph, _ = conv((2, 12, 4, 3), 40, 3, pad=1)
    found = offers(graph, SMALL)
    assert {o["order"] for o in found} == {"image", "weights", "neither"}
    assert {o["word"] for o in found} == {"batch", "width"}
    assert {o["multi_tile"] for o in found} == {1, 2}
    assert len({o["strip"] for o in found}) > 2
    assert len({o["chunk"] for o in found}) > 1


def test_walks_fit_their_memories() -> None:
    for x, o, k in (((8, 30, 31, 24), 50, 3), ((1, 60, 7, 3), 40, 5), ((3, 9, 9, 100), 30, 1)):
        graph, _ = conv(x, o, k, pad=k // 2)
        for machine in (SMALL, TPU):
            for options in offers(graph, machine):
                t = tiles(graph, machine, options)
                assert t.shared_bytes <= machine.shared_bytes_per_block
                assert 2 * 4 * t.walk.strip * t.wn * t.columns <= machine.accumulator_bytes


def test_a_ring_holds_the_rows_of_two_strips_and_no_more() -> None:
    graph, _ = conv((8, 20, 6, 8), 16, 3, pad=1)
    ringed = [o for o in offers(graph, TINY) if o["order"] == "weights"]
    assert ringed
    assert all(o["ring"] < 22 for o in ringed)
    for options in ringed:
        t = tiles(graph, TINY, options)
        edges = [t.under(0, s) for s in range(t.strips)]
        for (first, _), (_, after) in itertools.pairwise(edges):
            assert after - first <= t.walk.ring


def test_large_layers_have_a_walk() -> None:
    """A product of 25,088 steps of k, the largest image of VGG-16 in a batch, ResNet-50's last 3 × 3, 48 taps of one channel."""
    products = [matmul((n, 25088), (25088, 128), known=True)[0] for n in (1, 8)]
    images = [
        conv(x, o, k, pad=k // 2)[0]
        for x, o, k in (((8, 224, 224, 64), 64, 3), ((8, 7, 7, 512), 512, 3), ((8, 1, 4000, 1), 16, 7))
    ]  # fmt: skip
    for graph in (*products, *images):
        assert offers(graph, TPU)


# --- what is executed


def test_warps_have_roles(cache: Path) -> None:
    """One descriptor, one fill, one transfer of weights in loops; the passes of a job written out, the first of which begins chains."""
    graph, _ = conv((8, 6, 6, 16), 40, 3, pad=1)
    for options in offers(graph, SMALL):
        (kernel,) = program(graph, SMALL, options, cache).kernels.values()
        found = Counter(type(i) for i in kernel.code)
        assert found[CONVDESC] == found[FILL_DUP] == found[DMA_LD] == 1
        pushes = [i for i in kernel.code if isinstance(i, IM2COL_PUSH)]
        assert (
            len(pushes) == found[SMA_LDB] == found[SMA_SWAP] == tiles(graph, SMALL, options).passes
        )
        assert [i.start for i in pushes] == [Start.SET] + [Start.ADD] * (len(pushes) - 1)


def test_very_many_passes_are_a_loop(cache: Path) -> None:
    case = conv((1, 3, 4, 72), 20, 5, pad=2)
    for options in some(offers(case[0], SMALL), 2):
        assert tiles(case[0], SMALL, options).passes == 225
        (kernel,) = program(case[0], SMALL, options, cache).kernels.values()
        assert Counter(type(i) for i in kernel.code)[IM2COL_PUSH] == 2
        check(case, SMALL, cache, [options])


def test_pixels_are_fetched_once(cache: Path) -> None:
    """And weights: once if they are resident, once a strip if neither is."""
    case = conv((8, 12, 6, 8), 48, 3, pad=1)
    image, weights, rest = 8 * 12 * 6 * 8 * 2, 9 * 8 * 48 * 2, 48 * 4
    found = offers(case[0], SMALL)
    for order in ("image", "weights", "neither"):
        options = next(o for o in found if o["order"] == order and o["multi_tile"] == 1)
        (launch,) = run(case, SMALL, options, cache).stats.launches
        assert launch.bytes("dram_bytes")["read"] == image + weights + rest, order


def test_rows_between_windows_are_not_fetched(cache: Path) -> None:
    """Every third line, whole; of images whose one window is their corner that corner's line."""
    for x, lines in (((8, 10, 6, 8), 4), ((40, 3, 3, 8), 1)):
        case = conv(x, 16, 1, stride=3)
        for options in some(offers(case[0], SMALL), 3):
            (launch,) = run(case, SMALL, options, cache).stats.launches
            read = launch.bytes("dram_bytes")["read"] - 8 * 16 * 2 - 16 * 4
            assert x[0] * lines * x[2] * 8 * 2 <= read <= x[0] * lines * (x[2] * 8 * 2 + 32)
            check(case, SMALL, cache, [options])


def test_few_channels_share_a_pass(cache: Path) -> None:
    """T taps side by side divide the passes: the array works ⌈S / T⌉ times a line of taps."""
    case = conv((1, 8, 8, 2), 16, 3, pad=1)
    executed = {}
    for options in offers(case[0], SMALL):
        result = run(case, SMALL, options, cache)
        executed[options["multi_tile"]] = result.stats.macs_executed
    assert executed == {1: 64 * 9 * 128, 2: 64 * 6 * 128, 3: 64 * 3 * 128}


def test_why_a_product_is_refused() -> None:
    def why(case: Case, machine: Machine = TPU) -> str | None:
        return ENGINE.serves(group_of(case[0]), machine)

    assert "has no vector memory" in str(why(conv((1, 4, 4, 8), 8, 3), SMALL.with_(vector_word=0)))
    assert "is not one matrix that is known now" in str(why(matmul((8, 8), (8, 8))))
    assert "A is transposed" in str(why(matmul((8, 8), (8, 8), known=True, trans_a=True)))
    assert "depthwise" in str(why(conv((1, 4, 4, 8), 8, 3, group=8)))
    assert "operands are i8" in str(why(matmul((8, 8), (8, 8), dtype="i8", known=True)))
    assert "stride_h is 300" in str(why(conv((1, 400, 400, 8), 8, 1, stride=300)))
    assert "no strip" in str(why(conv((1, 4, 4000, 64), 8, 3), SMALL))
    assert "units of 8 × 48" in str(why(conv((1, 4, 4, 8), 8, 3), SMALL.with_(array_columns=48)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"warps_per_sm": 1}, "1 warps, of which array and DMA take 2"),
        ({"warps_per_sm": 2}, "2 warps, of which array and DMA take 2"),
        ({"vector_word": 4}, "words of 4 elements: only 8 are emulated"),
        ({"vector_word": 16}, "words of 16 elements: only 8 are emulated"),
        ({"separate_array": 0}, "an array made of its lanes"),
    ],
)
def test_machines_that_no_kernel_of_it_runs_on_are_refused(
    other: dict[str, int], message: str
) -> None:
    graph, _ = conv((1, 4, 4, 8), 8, 3)
    assert message in str(ENGINE.serves(group_of(graph), SMALL.with_(**other)))


@pytest.mark.parametrize("kind", ["accumulating", "systolic"])
def test_what_no_array_emulates_has_no_kernels_of_any_engine(kind: str) -> None:
    group = group_of(conv((1, 4, 4, 8), 8, 3)[0])
    assert GENERATORS[kind].serves(group, SMALL.with_(warps_per_sm=8)) is None
    odd = SMALL.with_(vector_word=4)
    assert "words of 4 elements" in str(GENERATORS[kind].serves(group, odd))


PRODUCTS = [kind for kind, g in GENERATORS.items() if isinstance(g, Engine)]


@pytest.mark.parametrize("other", [{"warps_per_sm": 3}, {"shared_bytes_per_block": 10_000}])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_blocks_fit_small_machines(kind: str, other: dict[str, int]) -> None:
    """What a generator of products offers has no more warps than an SM, and no more shared memory than a block may have."""
    group, machine, generator = group_of(conv((1, 4, 4, 8), 8, 3)[0]), SMALL.with_(**other), GENERATORS[kind]  # fmt: skip
    if generator.serves(group, machine) is None:
        for options in generator.candidates(group, machine):
            for made in generator.lower(group, options, machine).launches:
                assert made.kernel.warps <= machine.warps_per_sm
                assert made.kernel.shared_bytes <= machine.shared_bytes_per_block


def test_the_plan_and_the_program_read_like_this(
    cache: Path, request: pytest.FixtureRequest
) -> None:
    """But for predictions, which other generators make too, and for constants, whose hashes are those of drawn numbers."""
    graph, _ = conv((8, 12, 6, 8), 48, 3, pad=1, after="residual")
    p = schedule(graph, SMALL, {"g": {"kind": "channel_first"}})
    (step,) = p.steps
    (kernel,) = program(graph, SMALL, dict(step.options), cache).kernels.values()
    lines = [line for line in plan_text.show(p).splitlines() if " = #" not in line]
    plan = [line.split("//")[0].rstrip() for line in lines]
    code = [f"{i:4}  {instr}" for i, instr in enumerate(kernel.code)]
    text, golden = "\n".join([*plan, *code, ""]), GOLDEN / "channel_first.plan"
    if request.config.getoption("--bless"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize(
    "case",
    [
        conv((8, 14, 14, 128), 128, 3, pad=1),
        conv((8, 14, 14, 64), 256, 1, after="residual"),
        matmul((8, 2048), (2048, 256), known=True),
        conv((1, 32, 32, 3), 64, 7, stride=2, pad=3),
    ],
    ids=["3x3", "1x1", "product", "RGB"],
)
def test_predictions_are_near_what_is_timed(case: Case, cache: Path) -> None:
    group = group_of(case[0])
    options = min(offers(case[0], TPU), key=lambda o: ENGINE.cost(group, o, TPU))
    (launch,) = run(case, TPU, options, cache, timing=True).stats.launches
    assert launch.measured
    predicted = ENGINE.cost(group, options, TPU)
    assert predicted == pytest.approx(launch.measured.timing.cycles, rel=0.25)


def test_the_array_of_a_large_layer_hardly_waits(cache: Path) -> None:
    """Fetches, sums and commands are beside it: it works as long as the product takes, all but a beginning and an end."""
    case = conv((8, 28, 28, 128), 128, 3, pad=1)
    options = min(offers(case[0], TPU), key=lambda o: ENGINE.cost(group_of(case[0]), o, TPU))
    (launch,) = run(case, TPU, options, cache, timing=True).stats.launches
    assert launch.measured
    timing = launch.measured.timing
    assert timing.array_cycles == 8 * 28 * 28 * 9
    assert timing.cycles < 1.04 * timing.array_cycles
