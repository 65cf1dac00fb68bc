"""Products of integers, with all that makes 8 bits of their sums: on every target the integers of the ops' references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import integers, known, matmul_of
from integer_networks import residual
from matrix_cases import DEPTHWISE, MACHINE, Case, Writer, cache, check, draw, group_of, same

from knapper.compiler import launches, plan_text
from knapper.compiler.codegen.generator import GENERATORS
from knapper.compiler.codegen.matrix.imma import coded
from knapper.compiler.codegen.scalar import CHOOSING, INTEGER
from knapper.compiler.driver import Options as CompileOptions
from knapper.compiler.driver import finish
from knapper.compiler.ir import DTYPES, evaluate
from knapper.compiler.pipeline import parse, preset, run
from knapper.compiler.schedule import Scheduler, schedule
from knapper.isa.formats import FORMATS, unpack
from knapper.isa.machine import Machine
from knapper.runtime.session import EngineName, Session

__all__ = ["cache"]  # the fixture

CONVS: dict[str, dict[str, Any]] = {
    "1x1": {"x": (1, 7, 7, 32), "o": 48, "k": 1},
    "1x1, channels that fill no step": {"x": (1, 9, 9, 40), "o": 24, "k": 1, "after": "sums"},
    "3x3": {"x": (1, 9, 7, 32), "o": 32, "k": 3, "pad": 1, "after": "residual"},
    "3x3 with stride, batch": {"x": (2, 9, 7, 16), "o": 24, "k": 3, "stride": 2, "pad": 1},
    "RGB": {"x": (2, 12, 11, 3), "o": 20, "k": 7, "stride": 2, "pad": 3, "types": ("i8", "i8")},
    "groups": {"x": (1, 8, 8, 64), "o": 64, "k": 3, "pad": 1, "group": 4, "after": "residual"},
    "ragged groups": {"x": (1, 6, 5, 12), "o": 20, "k": 3, "pad": 1, "group": 2, "out": "i8"},
    "weights that are computed": {"x": (1, 6, 6, 24), "o": 24, "k": 3, "pad": 1, "known": False},
    "dilated": {"x": (1, 9, 9, 16), "o": 24, "k": 3, "pad": 2, "dilation": 2, "types": ("i8", "u8")},
    "a zero point around": {"x": (1, 9, 7, 32), "o": 32, "k": 3, "pad": 1, "pad_value": 131},
    "a negative one, taps mixed": {"x": (2, 7, 6, 3), "o": 20, "k": 5, "pad": 2, "types": ("i8", "i8"), "pad_value": -3},
}  # fmt: skip
MATMULS: dict[str, dict[str, Any]] = {
    "plain": {"a": (33, 40), "b": (40, 24)},
    "known": {"a": (33, 40), "b": (40, 24), "known": True, "after": "relu"},
    "both transposed": {"a": (40, 32), "b": (24, 40), "trans_a": True, "trans_b": True},
    "B transposed, batch": {"a": (3, 2, 17, 64), "b": (2, 20, 64), "trans_b": True},
    "rows folded": {"a": (3, 5, 16), "b": (16, 20), "known": True, "after": "residual"},
    "odd everything": {"a": (35, 33), "b": (33, 21), "types": ("u8", "u8")},
    "vector by vector": {"a": (50,), "b": (50,)},
}


@pytest.mark.parametrize("name", CONVS)
def test_simd_lanes_convolve_bytes(name: str, cache: Path) -> None:
    check(integers(**CONVS[name]), "ffma", cache, count=1)


@pytest.mark.parametrize("name", CONVS)
def test_tensor_core_convolves_bytes(name: str, cache: Path) -> None:
    check(integers(**CONVS[name]), "imma", cache, count=4)


@pytest.mark.parametrize("name", [n for n in MATMULS if n != "odd everything"])
@pytest.mark.parametrize("types", [("u8", "u8"), ("i8", "u8")])
def test_tensor_core_multiplies_bytes(name: str, types: tuple[str, str], cache: Path) -> None:
    check(matmul_of(**{**MATMULS[name], "types": types}), "imma", cache, count=3)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (
            MATMULS["odd everything"],
            "B is not known and lies row by row, and its rows are no words",
        ),
        ({"a": (40, 33), "b": (24, 40), "trans_a": True, "trans_b": True}, "A lies transposed"),
        ({"a": (4, 4), "b": (4, 4), "types": ("i16", "i16")}, "operands are i16 and i16"),
    ],
)
def test_what_the_tensor_core_does_not_take(how: dict[str, Any], why: str) -> None:
    graph, _ = matmul_of(**how)
    assert why in str(GENERATORS["imma"].serves(group_of(graph), MACHINE))
    assert GENERATORS["ffma"].serves(group_of(graph), MACHINE) is None


def test_nothing_but_bytes_lies_around_an_image() -> None:
    graph, _ = integers((1, 6, 6, 4), 8, 3, pad=1, types=("i16", "i16"), pad_value=-7)
    for kind in ("imma", "ffma", "direct"):
        why = str(GENERATORS[kind].serves(group_of(graph), MACHINE))
        assert "around i16 lies -7" in why


@settings(max_examples=15)
@given(st.data())
def test_any_convolution_of_bytes(cache: Path, data: Any) -> None:
    def pick(*choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    group = pick(1, 1, 1, 2, 3)
    case = integers(
        (pick(1, 2), pick(5, 8), pick(5, 6), group * pick(1, 4, 6, 16, 32)), group * pick(1, 7, 16), pick(1, 2, 3), stride=pick(1, 2),
        pad=pick(0, 1), dilation=pick(1, 2), group=group, pad_value=pick(0, 0, 9), types=(pick("u8", "i8"), pick("u8", "i8")),
        after=pick("sums", "relu", "residual"),
    )  # fmt: skip
    check(case, pick("imma", "imma", "ffma"), cache, count=2)


@settings(max_examples=15)
@given(st.data())
def test_any_product_of_bytes(cache: Path, data: Any) -> None:
    size, types = st.integers(1, 70), st.sampled_from(["u8", "i8"])
    m, k, n = data.draw(size), data.draw(size), data.draw(size)
    a, b = data.draw(types), data.draw(types)
    ta, tb = data.draw(st.booleans()), data.draw(st.booleans())
    if data.draw(st.booleans()):
        case = matmul_of((m, k), (k, n), types=(a, b), known=True)
    else:
        m, n = (4 * m if ta else m), (n if tb else 4 * n)
        left, right = ((2, k, m) if ta else (2, m, k)), ((2, n, k) if tb else (2, k, n))
        case = matmul_of(left, right, types=(a, b), trans_a=ta, trans_b=tb)
    check(case, "imma", cache, count=2)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("imma", integers(**CONVS["ragged groups"])),
        ("imma", matmul_of((2, 17, 33), (2, 18, 33), trans_b=True)),
        ("imma", matmul_of((2, 33, 24), (2, 33, 20), trans_a=True)),
        ("direct", integers(**DEPTHWISE["with stride, batch"])),
        ("ffma", matmul_of(**MATMULS["odd everything"])),
    ],
)
def test_the_checking_engine_finds_nothing_to_complain_of(
    kind: str, case: Case, cache: Path
) -> None:
    check(case, kind, cache, count=2, engine="reference")


@pytest.mark.parametrize("name", DEPTHWISE)
@pytest.mark.parametrize("types", [("u8", "i8"), ("i8", "u8")])
def test_bytes_are_filtered_by_channel(name: str, types: tuple[str, str], cache: Path) -> None:
    check(integers(**DEPTHWISE[name], types=types, pad_value=99), "direct", cache, count=2)


@pytest.mark.parametrize("name", MATMULS)
def test_simd_lanes_multiply_bytes(name: str, cache: Path) -> None:
    check(matmul_of(**MATMULS[name]), "ffma", cache, count=1)


@pytest.mark.parametrize("to", ["i8", "u8", "i16", "u16", "i32"])
def test_sums_become_any_integer(to: str, cache: Path) -> None:
    """Wrapping from i32, saturating and truncating from fp32; with a Clip to less than the type has, or to more."""
    for low, high in ((-np.inf, np.inf), (-1000.0, 70.0), (-1e9, 1e9), (0.0, 255.0)):
        w = Writer()
        y = w.op("MatMul", w.value(draw((20, 32), "i8")), w.value(draw((32, 16), "i8")), out="i32")
        a = w.op("Cast", w.op("Abs", w.op("Neg", y)), to=to)
        x = w.op("Mul", w.op("Cast", y, to="f32"), known(w, 0.01))
        b = w.op("Cast", w.op("Clip", x, min=low, max=high), to=to)
        c = w.op("Cast", w.op("Clip", w.op("Round", w.op("Relu", x)), min=low, max=high), to=to)
        check(w.case(a, b, c), "ffma", cache, count=1)


@pytest.mark.parametrize("dtype", ["i8", "u8", "i32"])
def test_integers_beside_sums(dtype: str, cache: Path) -> None:
    """An operand of integers, by row and by column; what wraps, wraps."""
    w = Writer()
    y = w.op("MatMul", w.value(draw((20, 32), "i8")), w.value(draw((32, 16), "i8")), out="i32")
    row, column = w.value(draw((20, 1), dtype)), w.value(draw((16,), dtype))
    row, column = (w.op("Cast", w.op("Clip", v, min=-5, max=99), to="i32") for v in (row, column))
    z = w.op("Add", w.op("Mul", y, row), column)
    z = w.op("Sub", z, w.op("Min", z, w.value(draw((20, 16), "i32"))))
    check(w.case(w.op("Clip", z, min=-(2**31), max=2**20), w.op("Cast", z, to="f16")), "ffma", cache, count=1)  # fmt: skip


QUANTIZED: dict[str, dict[str, Any]] = {
    "plain": {},
    "signed, zero points by channel": {"to": "i8", "zero": (16,), "scales": (16,)},
    "four bits": {"to": "i8", "format": "i4"},
    "flint": {"to": "u8", "format": "uflint4"},
    "signed flint with a zero point": {"to": "i8", "format": "flint4", "zero": ()},
    "powers of two": {"to": "i8", "format": "pot4", "scales": (16,)},
    "borders": {"format": "u4", "border": (3,)},
    "borders by channel": {"to": "i8", "border": (3, 16), "zero": (), "scales": (1,)},
    "a small float": {"to": "f32", "format": "f4e2m1"},
}
"""How QuantizeLinear is called."""


def quantize(w: Writer, y: str, how: dict[str, Any]) -> str:
    to, rng = how.get("to", "u8"), np.random.default_rng(3)
    scale = known(w, np.exp2(rng.integers(-3, 2, how.get("scales", ()))) * how.get("by", 1))
    zero = (
        w.value(rng.integers(0, 9, how["zero"]).astype(DTYPES[to]), True) if "zero" in how else ""
    )
    border = (known(w, rng.standard_normal(how["border"]) * 0.1),) if "border" in how else ()
    attrs = {"to": to, "format": how.get("format", ""), "axis": -1}
    return w.op("QuantizeLinear", y, scale, *((zero, *border) if zero or border else ()), **attrs)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("direct", [False, True])
def test_sums_are_quantized_as_the_op_says(name: str, direct: bool, cache: Path) -> None:
    """Scaled first, to many halves, or the sums themselves."""
    w, rng = Writer(), np.random.default_rng(1)
    a, b = (
        rng.integers(-9, 9, (40, 32)).astype(np.int8),
        rng.integers(-9, 9, (32, 16)).astype(np.int8),
    )
    y = w.op("MatMul", w.value(a), w.value(b, True), out="i32")
    if not direct:
        y = w.op("Mul", w.op("Cast", y, to="f32"), known(w, 0.125))
    graph, inputs = w.case(quantize(w, y, QUANTIZED[name] | {"by": 16.0 if direct else 1.0}))
    (fuse,) = parse("fuse")
    assert {n.group for n in fuse.run(graph).nodes} == {"matmul_0"}
    for kind in ("imma", "ffma"):
        check((graph, inputs), kind, cache, count=1)


def test_scales_along_rows_are_another_launch() -> None:
    w = Writer()
    y = w.op("MatMul", w.value(draw((6, 32), "i8")), w.value(draw((32, 6), "i8")), out="i32")
    attrs = {"to": "u8", "axis": 0}
    y = w.op("QuantizeLinear", w.op("Cast", y, to="f32"), known(w, np.ones(6)), **attrs)
    graph, _ = w.case(y)
    (fuse,) = parse("fuse")
    named = {n.op: n.group for n in fuse.run(graph).nodes}
    assert named["QuantizeLinear"] != named["MatMul"]
    assert "not the last" in str(GENERATORS["ffma"].serves(group_of(graph), MACHINE))


def test_epilogues_of_integers_have_lowerings() -> None:
    assert launches.INTEGERS - {"Cast"} <= INTEGER.keys()
    assert launches.CHOOSING - {"Cast"} <= CHOOSING <= INTEGER.keys()
    assert {*launches.BYTES, *launches.REGISTER, "i32"} <= DTYPES.keys()


@pytest.mark.parametrize("after", ["relu", "residual"])
def test_a_product_takes_all_that_makes_bytes_of_its_sums(after: str) -> None:
    graph, _ = integers((1, 6, 6, 16), 16, 3, pad=1, after=after)
    (fuse,) = parse("fuse")
    assert {n.group for n in fuse.run(graph).nodes} == {"conv_0"}


def test_products_of_floats_make_bytes_too(cache: Path) -> None:
    """And add what they read as bytes, on engines of floats."""
    w = Writer()
    y = w.op(
        "MatMul", w.value(draw((40, 32), "f16")), w.value(draw((32, 48), "f16"), True), out="f32"
    )
    r = w.op("Mul", w.op("Cast", w.value(draw((40, 48), "i8")), to="f32"), known(w, 0.1))
    y = w.op("Round", w.op("Mul", w.op("Add", y, r), known(w, 20)))
    graph, inputs = w.case(w.op("Cast", w.op("Clip", y, min=0.0, max=255.0), to="u8"))
    (fuse,) = parse("fuse")
    assert {n.group for n in fuse.run(graph).nodes} == {"matmul_0"}
    check((graph, inputs), "hmma", cache, count=2)
    for target in ("sma3", "tpu-v2", "dstc", "systolic-ws"):
        machine = Machine.load(target)
        got = Session(finish(graph, machine, CompileOptions(cache=cache))).run(inputs).outputs
        assert all(same(got[v], want) for v, want in evaluate(graph, inputs).items())


def test_what_others_read_too_is_not_made_in_an_epilogue() -> None:
    graph, _ = integers((1, 6, 6, 16), 16, 3, pad=1, after="residual")
    scaled = next(n for n in graph.nodes if n.op == "Sub").outputs[0]
    (fuse,) = parse("fuse")
    shown = graph.with_(outputs={**graph.outputs, "r": scaled})
    named = {n.op: n.group for n in fuse.run(shown).nodes}
    assert named["Sub"] == "sub_0"
    assert named["Round"] == named["Conv"]


def test_what_a_product_of_floats_reads_is_widened_before_it(cache: Path) -> None:
    """A model may say so: no generator makes an operand of a product in the product's launch."""
    w = Writer()
    a, b = (w.op("Cast", w.value(draw(s, "f16")), to="f32") for s in ((20, 32), (32, 16)))
    graph, inputs = w.case(w.op("Relu", w.op("MatMul", a, b)))
    network = run(graph, preset("fp32"))
    named = [n.group.partition("_")[0] for n in network.nodes]
    assert named == ["cast", "cast", "matmul", "matmul"]
    got = Session(finish(network, MACHINE, CompileOptions(cache=cache))).run(inputs).outputs
    assert all(same(got[v], y) for v, y in evaluate(graph, inputs).items())


# --- four bits, networks, targets


FOUR = {"i4": "i8", "u4": "u8", "flint4": "i8", "uflint4": "u8", "pot4": "i8", "upot4": "u8"}
"""Format → type of the integers that a graph has instead."""
TYPED = MACHINE.with_(extensions=[*MACHINE.extensions, "types"])
"""A machine that decodes them all."""


def few(format: str, **how: Any) -> Case:
    """A convolution whose weights a format holds."""
    graph, inputs = integers((1, 9, 7, 48), 40, 3, pad=1, types=("u8", FOUR[format]), **how)
    (w,) = (v for v, a in graph.constants.items() if a.ndim == 4)
    values = FORMATS[format].values
    values = values[values <= 255]
    drawn = np.random.default_rng(0).choice(values, graph.constants[w].shape)
    return graph.with_(constants={**graph.constants, w: drawn.astype(DTYPES[FOUR[format]])}), inputs


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("format", FOUR)
def test_weights_that_four_bits_hold_are_stored_as_codes(
    format: str, engine: EngineName, cache: Path
) -> None:
    graph, inputs = few(format)
    group = group_of(graph)
    offered = [*GENERATORS["imma"].candidates(group, TYPED)]
    assert {o["b"] for o in offered} == {format, FOUR[format]}
    sizes, results = {}, {}
    for b in (format, FOUR[format]):
        options = next(o for o in offered if o["b"] == b)
        made = CompileOptions(forced={"g": {"kind": "imma", **options}}, cache=cache)
        program = finish(graph, TYPED, made)
        results[b] = Session(program).run(inputs, engine=engine).outputs
        (weights,) = (
            a
            for v, a in GENERATORS["imma"].lower(group, options, TYPED).constants.items()
            if "taps" not in v
        )
        sizes[b] = weights.nbytes
    assert 2 * sizes[format] == sizes[FOUR[format]]
    for v, y in evaluate(graph, inputs).items():
        assert same(results[format][v], y)
        assert same(results[FOUR[format]][v], y)


def test_only_machines_with_types_decode_flint() -> None:
    for format, found in (("i4", {"i4", "i8"}), ("flint4", {"i8"})):
        offered = GENERATORS["imma"].candidates(group_of(few(format)[0]), MACHINE)
        assert {o["b"] for o in offered} == found


def test_equal_launches_choose_by_what_their_weights_need() -> None:
    """The scheduler remembers choices by structure."""
    scheduler = Scheduler(TYPED)
    for format in ("i4", "flint4"):
        (best,) = scheduler.choices(group_of(few(format)[0])).best.values()
        assert best.options["b"] == format


def test_codes_of_weights() -> None:
    w = np.array([0, 1, -1, 7, -8, 3], np.int8).reshape(1, 6, 1)
    assert coded(w, "i4").ravel().tolist() == [0x10, 0x7F, 0x38]
    flints = FORMATS["flint4"]
    values = flints.values[:14].astype(np.int8).reshape(1, 14, 1)
    assert (
        flints.decode(unpack(coded(values, "flint4").reshape(1, -1), 4)) == values.ravel()
    ).all()


@pytest.mark.parametrize("format", ["i8", "i4"])
def test_a_network_of_integers_has_the_same_bits_everywhere(format: str, cache: Path) -> None:
    graph = residual(format=format)
    x = {"x": np.random.default_rng(1).integers(0, 256, graph.inputs["x"].shape, np.uint8)}
    want = evaluate(run(graph, preset("fp32")), x)["y"]
    results = []
    for target in ("volta-8tc", "ampere", "sma3", "tpu-v2", "dstc", "systolic-host"):
        machine = Machine.load(target)
        network = run(graph, preset("fp32"))
        made = finish(network, machine, CompileOptions(cache=cache))
        results.append(Session(made).run(x).outputs["y"])
    assert all(same(y, results[0]) for y in results)
    assert np.abs(results[0] - want).max() <= 1e-5 * np.abs(want).max()  # an average in f32


@pytest.mark.parametrize("target", ["v100-sxm2", "ampere", "sma3", "tpu-v2", "dstc", "systolic-ws"])
def test_every_target_has_the_references_integers(target: str, cache: Path) -> None:
    machine = Machine.load(target)
    for case in (
        integers(**CONVS["3x3"]),
        integers(**CONVS["ragged groups"]),
        integers(**CONVS["a zero point around"]),
        integers(**DEPTHWISE["3x3"]),
        matmul_of(**MATMULS["rows folded"]),
        matmul_of(**MATMULS["plain"]),
    ):
        graph, inputs = case
        got = Session(finish(graph, machine, CompileOptions(cache=cache))).run(inputs).outputs
        assert all(same(got[v], y) for v, y in evaluate(graph, inputs).items())


def test_the_plan_of_a_network_of_integers(request: pytest.FixtureRequest) -> None:
    """A launch a product, bytes between them, weights in the bits that they need."""
    text = plan_text.show(schedule(run(residual(format="i4"), preset("fp16")), MACHINE))
    golden = Path(__file__).parent / "plan" / "integers.plan"
    if request.config.getoption("--bless"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_launch_in_numpy_has_the_same_integers() -> None:
    for (graph, inputs), kind in (
        (integers(**CONVS["groups"]), "imma"),
        (integers(**CONVS["a negative one, taps mixed"]), "ffma"),
        (integers(**DEPTHWISE["5x5"], pad_value=7), "direct"),
    ):
        want, plan = evaluate(graph, inputs), schedule(graph, MACHINE, {"g": {"kind": kind}})
        assert all(same(plan.evaluate(inputs)[v], want[v]) for v in want)
