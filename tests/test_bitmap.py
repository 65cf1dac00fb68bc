"""Values under bitmaps: the op, the launch that encodes, and the pass that chooses which products are sparse."""

import json
from pathlib import Path

import numpy as np
import pytest

from knapper.compiler import text
from knapper.compiler.codegen.generator import Group, generators
from knapper.compiler.driver import Options, generate, optimize, plan
from knapper.compiler.ir import DTYPES, Graph, Node, Type, infer
from knapper.compiler.passes.bitmap import Bitmap
from knapper.compiler.pipeline import parse, show_passes
from knapper.compiler.plan import Plan
from knapper.compiler.schedule import Scheduler
from knapper.compiler.sparsity.bitmap import HEADER, SLOT, Layout
from knapper.isa.errors import CompileError, KnapperError
from knapper.isa.machine import Machine
from knapper.isa.program import BASE, Launch, Operand, Port, Program
from knapper.runtime.session import Session

DSTC = Machine.load("dstc")
DENSE = 'fp16,bitmap{layers="!*"}'
SHAPES = [
    ((70, 64), 0), ((33, 48), 0), ((5, 3), 0), ((2, 3, 40), 0), ((1, 7, 9, 16), 1),
    ((2, 5, 6, 80), 1), ((3, 4, 3, 34), 2), ((1, 6, 5, 20), 0), ((1, 1, 1, 1), 3),
]  # fmt: skip


def sparse(shape: tuple[int, ...], dtype: str, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(DTYPES[dtype])
    x[rng.random(shape) >= density] = 0
    x[rng.random(shape) < 0.05] = -0.0
    return x


def encoded(x: np.ndarray, dtype: str, pad: int, engine: str) -> np.ndarray:
    """The bytes that the kernel writes."""
    shape = ",".join(map(str, x.shape))
    g = text.parse(f"""graph @n(%x: {dtype}[{shape}]) {{
      %d: {dtype}[{shape}], %b: {dtype}[{shape}] bitmap{{pad={pad}}} = BitmapEncode %x {{pad={pad}}} group("e")
      %y: {dtype}[{shape}] = Relu %x group("r")
      return %y
    }}
    """)
    node = g.nodes[0]
    types = g.types()
    group = Group("e", (node,), {"x": types["x"]}, {"b": types["b"]})
    encode = generators()["encode"]
    assert encode.serves(group, DSTC) is None
    assert encode.cost(group, {}, DSTC) > 0
    (e,) = encode.lower(group, {}, DSTC).launches
    size, out = x.nbytes, -(-x.nbytes // 256) * 256
    total = types["b"].bytes
    assert total == Layout(x.shape, pad).bytes
    operands = (Operand("x", BASE, size, "r"), Operand("b", BASE + out, total, "w"))
    launch = Launch(e.kernel.name, e.grid, (BASE, BASE + out), ("e",), operands)
    program = Program(
        target=DSTC.to_dict(), kernels={e.kernel.name: e.kernel}, launches=(launch,),
        inputs=(Port("x", dtype, x.shape, BASE),), outputs=(Port("b", "u8", (total,), BASE + out),),
        rodata=b"", objects=(), arena_bytes=out + total, meta={},
    )  # fmt: skip
    session = Session(program)
    return session.run({"x": x}, engine=engine).outputs["b"]


def touched(x: np.ndarray, layout: Layout) -> np.ndarray:
    """The bytes that mean something: of each record its header and its values, and all entries."""
    written = np.zeros(layout.bytes, bool)
    nnz = (layout.tiles(x) != 0).sum((-1, -2)).reshape(-1, 1)
    written[: nnz.size * SLOT] = (np.arange(SLOT) < HEADER + 2 * nnz).reshape(-1)
    entries = layout.sections[0]
    written[entries : entries + 4 * nnz.size] = True
    return written


@pytest.mark.parametrize(("shape", "pad"), SHAPES)
@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_the_kernel_writes_what_numpy_encodes(
    shape: tuple[int, ...], pad: int, engine: str
) -> None:
    dtype = "bf16" if len(shape) == 3 else "f16"
    x = sparse(shape, dtype, 0.4)
    layout = Layout(shape, pad)
    got, where = encoded(x, dtype, pad, engine), touched(x, layout)
    np.testing.assert_array_equal(got[where], layout.encode(x)[where])
    np.testing.assert_array_equal(
        layout.decode(got, x.dtype), np.where(x == 0, 0, x).astype(x.dtype)
    )


def test_what_is_no_product_reads_elements() -> None:
    with pytest.raises(KnapperError, match="Reshape reads elements") as e:
        text.parse("""graph @n(%x: f16[8,32], %w: f16[32,16]) {
          %d: f16[8,32], %b: f16[8,32] bitmap{pad=0} = BitmapEncode %x
          %y: f16[8,16] = MatMul %b, %w
          %v: f16[16,16] = Reshape %b {shape=[16,16]}
          return %y, %v
        }
        """)
    assert "first result of BitmapEncode" in str(e.value)


# --- the pass: two residual blocks behind a stem, with pruned weights


def network(batch: int, size: int, channels: int, density: float) -> Graph:
    """conv ─ relu ┬─ conv ─ relu ─ conv ─┬─ relu … ─ mean ─ fully connected"""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def conv(name: str, y: str, x: str, c: int) -> str:
        w = rng.standard_normal((channels, c, 3, 3)) * np.sqrt(2 / (9 * c * density))
        w[rng.random(w.shape) >= density] = 0
        weights[f"w{name}"] = w.astype(np.float32)
        weights[f"b{name}"] = (rng.standard_normal(channels) / 10).astype(np.float32)
        return f'%{y}: {image} = Conv %{x}, %w{name}, %b{name} {{pads=[1,1,1,1]}} loc("{name}")'

    image = f"f32[{batch},{channels},{size},{size}]"
    lines = [conv("stem", "s", "x", 3), f"%r0: {image} = Relu %s"]
    for i in range(2):
        lines += [
            conv(f"a{i}", f"p{i}", f"r{i}", channels),
            f"%q{i}: {image} = Relu %p{i}",
            conv(f"b{i}", f"t{i}", f"q{i}", channels),
            f"%u{i}: {image} = Add %t{i}, %r{i}",
            f"%r{i + 1}: {image} = Relu %u{i}",
        ]
    weights["fc"] = rng.standard_normal((channels, 10)).astype(np.float32)
    lines += [
        f"%g: f32[{batch},{channels},1,1] = GlobalAveragePool %r2",
        f"%f: f32[{batch},{channels}] = Reshape %g {{shape=[{batch},{channels}]}}",
        f'%y: f32[{batch},10] = MatMul %f, %fc loc("fc")',
    ]
    inputs = [f"%x: f32[{batch},3,{size},{size}]"]
    inputs += [f"%{v}: {Type.of(a)}" for v, a in weights.items()]
    body = "\n".join(lines)
    g = text.parse(f"graph @net({', '.join(inputs)}) {{\n{body}\nreturn %y\n}}\n")
    return g.with_(inputs={"x": g.inputs["x"]}, constants=weights)


def planned(g: Graph, target: str, pipeline: str | None = None) -> Plan:
    machine = Machine.load(target)
    options = Options(pipeline=pipeline, machine=machine)
    return plan(optimize(g, options), machine, options).verify()


def kinds(p: Plan) -> list[str]:
    return [s.kind for s in p.steps if s.kind != "simd"]


def cycles(p: Plan) -> float:
    return sum(map(p.cycles, p.steps))


def test_a_chain_of_sparse_products_encodes_for_itself_and_has_the_bits_of_dense(
    tmp_path: Path,
) -> None:
    g = network(1, 9, 24, 0.3)
    x = {"x": np.random.default_rng(1).standard_normal((1, 3, 9, 9)).astype(np.float32)}
    p, dense = planned(g, "dstc", "fp16,bitmap{force=true}"), planned(g, "volta-8tc")
    assert kinds(p) == ["encode", *["spwmma"] * 5, "encode", "spwmma"]
    text.save(p.graph, tmp_path / "net.ir")
    assert text.load(tmp_path / "net.ir") == p.graph
    options = Options(cache=tmp_path)
    want = Session(generate(dense, options)).run(x).outputs["y"]
    np.testing.assert_array_equal(Session(generate(p, options)).run(x).outputs["y"], want)
    np.testing.assert_array_equal(p.evaluate(x)["y"], want)


def test_a_value_has_the_pad_of_the_products_that_encode_for_each_other() -> None:
    p = planned(network(1, 9, 24, 0.3), "dstc", "fp16,bitmap{force=true}")
    pads = [n.attr("pad") for n in p.graph.nodes if n.op == "BitmapEncode"]
    assert pads == [1, 1, 1, 1, 1, 0]
    dense_too = [n.outputs[0] for n in p.graph.nodes if n.op == "BitmapEncode"]
    read = {v for n in p.graph.nodes for v in n.inputs}
    assert [v in read for v in dense_too] == [False, True, False, True, False, False]


@pytest.mark.parametrize(("batch", "size", "channels", "density"), [(1, 9, 24, 0.3), (1, 14, 64, 1.0), (32, 28, 128, 0.2)])  # fmt: skip
def test_the_choice_is_never_slower_by_prediction(
    batch: int, size: int, channels: int, density: float
) -> None:
    g = network(batch, size, channels, density)
    chosen, dense = planned(g, "dstc"), planned(g, "dstc", DENSE)
    assert "spwmma" not in kinds(dense)
    assert cycles(chosen) <= cycles(dense)
    found = kinds(chosen)
    if batch == 1:
        assert found == kinds(dense)
    else:
        assert found == ["hmma", "encode", *["spwmma"] * 4, "hmma"]


def test_a_product_that_nothing_serves_dense_is_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is predicted to take."""
    fused = optimize(network(1, 9, 24, 1.0), Options(DENSE, machine=DSTC))
    assert Bitmap(machine=DSTC).run(fused) is fused

    def refuse(*_: object) -> None:
        raise CompileError("E410", "no generator serves it")

    monkeypatch.setattr(Scheduler, "choices", refuse)
    chosen = Bitmap(machine=DSTC).run(fused)
    every = Bitmap(machine=DSTC, force=True).run(fused)
    assert [n.place for n in chosen.nodes] == [n.place for n in every.nodes]


def test_of_several_choices_the_last_one_counts() -> None:
    passes = show_passes(parse('fp16,bitmap{layers="a"},bitmap{force=true}'))
    assert passes.count("bitmap") == 1
    assert passes.endswith("fuse,bitmap{force=true}")


def test_a_type_says_which_density_was_expected(tmp_path: Path) -> None:
    """And tiles are chosen for it."""
    file, g = tmp_path / "d.json", network(32, 28, 128, 0.5)
    file.write_text(json.dumps(dict.fromkeys(["r0", "q0", "r1", "q1"], 0.1)))
    thin = planned(g, "dstc", f'fp16,bitmap{{force=true,densities="{file}"}}')
    half, full = (planned(g, "dstc", f"fp16,bitmap{{force=true,density={d}}}") for d in (0.5, 1.0))
    assert "bitmap{density=0.1,pad=1}" in text.show(thin.graph)
    assert "bitmap{pad=1}" in text.show(half.graph)
    costs = [[p.cycles(s) for s in p.steps if s.kind == "spwmma"][1] for p in (thin, half, full)]
    assert costs[0] < costs[1] < costs[2]


def test_layers_are_named_and_left_out() -> None:
    g = network(1, 9, 24, 0.3)
    only = planned(g, "dstc", 'fp16,bitmap{force=true,layers="a0|fc"}')
    assert kinds(only) == ["hmma", "encode", "spwmma", *["hmma"] * 3, "encode", "spwmma"]
    without = planned(g, "dstc", 'fp16,bitmap{force=true,layers="!fc|!stem"}')
    assert kinds(without) == ["hmma", "encode", *["spwmma"] * 4, "hmma"]


def test_measured_densities_decide(tmp_path: Path) -> None:
    g, file = network(32, 28, 128, 0.5), tmp_path / "d.json"
    file.write_text(json.dumps(dict.fromkeys(["r0", "q0", "r1", "q1"], 1.0)))
    full = planned(g, "dstc", f'fp16,bitmap{{densities="{file}"}}')
    file.write_text(json.dumps(dict.fromkeys(["r0", "q0", "r1", "q1"], 0.1)))
    empty = planned(g, "dstc", f'fp16,bitmap{{densities="{file}"}}')
    assert "spwmma" not in kinds(full)
    assert kinds(empty).count("spwmma") == 4


def test_other_machines_have_no_encoding() -> None:
    g = network(1, 9, 24, 0.3)
    assert kinds(planned(g, "volta-8tc", "fp16,bitmap{force=true}")) == kinds(
        planned(g, "volta-8tc")
    )


@pytest.mark.parametrize(
    ("held", "code"), [('{"r0": 2}', "E302"), ('{"r0": NaN}', "E302"), ("[]", "E302"), ('{"other": 0.5}', "E304")]
)  # fmt: skip
def test_densities_are_of_this_network(held: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    file.write_text(held)
    with pytest.raises(KnapperError, match=code):
        planned(network(1, 9, 24, 0.3), "dstc", f'fp16,bitmap{{densities="{file}"}}')


@pytest.mark.parametrize("shape", [(0, 64), (64,)])
def test_what_has_no_rows_is_not_encoded(shape: tuple[int, ...]) -> None:
    w, x = np.ones((64, 32), np.float32), Type("f32", shape)
    types = infer("MatMul", [x, Type.of(w)], {})
    product = Node("MatMul", ("x", "w"), ("y",), types)
    g = Graph("n", {"x": x}, {"y": "y"}, (product,), {"w": w}).verify()
    assert "spwmma" not in kinds(planned(g, "dstc", "fp16,bitmap{force=true}"))
