"""Every way to hold it wrong ends in one clear line a problem, an exit code that says so, and nothing half-written."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import knapper
from knapper.frontends import cli, start
from knapper.isa.errors import CODES, KnapperError

ROOT = Path(__file__).parent.parent
Knapper = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Knapper:
    """`knapper …` in a folder of its own, as (exit code, lines of stderr); stdout must stay empty."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, list[str]]:
        code = cli.run(words)
        out, err = capfd.readouterr()
        assert out == ""
        return code, err.splitlines()

    return call


def relu(dtype: int, shape: list[int | str], op: str = "Relu", domain: str = "") -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, dtype, shape) for n in "xy")
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], "the_node", domain=domain)], "net", [x], [y]
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("my.domain", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def mismatch() -> onnx.ModelProto:
    proto = relu(TensorProto.FLOAT, [1, 8])
    proto.graph.node[0].op_type = "MatMul"
    proto.graph.node[0].input.append("w")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((7, 4), np.float32), "w"))
    return proto


F32 = TensorProto.FLOAT
BAD_MODELS: dict[str, tuple[bytes, str]] = {
    "custom op": (
        relu(F32, [1, 8], "FancyOp", "my.domain").SerializeToString(),
        "error E203: net.onnx: node 'the_node' (FancyOp): knapper has no operator FancyOp of domain my.domain (version 1) "
        "(hint: a plugin can add it: --plugin FILE.py)",
    ),
    "unsupported op": (
        relu(F32, [1, 4, 4], "DeformConv").SerializeToString(),
        "error E203: net.onnx: node 'the_node' (DeformConv): operator DeformConv is not supported "
        "(hint: `knapper ops` lists those that are)",
    ),
    "symbolic batch": (
        relu(F32, ["N", 8]).SerializeToString(),
        "error E205: net.onnx: input 'x': has shape [N,8] with N open; knapper compiles static shapes "
        "(hint: --shape x=1,8)",
    ),
    "shapes that do not match": (
        mismatch().SerializeToString(),
        "error E206: net.onnx: node 'the_node' (MatMul): MatMul: inner sizes differ: f32[1,8] by f32[7,4]: 8 and 7",
    ),
    "strings": (
        relu(TensorProto.STRING, [1], "Identity").SerializeToString(),
        "error E202: net.onnx: input 'x': element type string is not supported; knapper has f16, bf16, f32, f64, "
        "i8, i16, i32, i64, u8, u16, u32, u64, bool",
    ),
    "truncated": (
        mismatch().SerializeToString()[:-30],
        "error E201: net.onnx: this is no ONNX model, or not all of one (196 bytes) (hint: is the download complete?)",
    ),
    "empty": (b"", "error E201: net.onnx: the file is empty"),
}


@pytest.mark.parametrize("what", BAD_MODELS)
def test_a_bad_model_is_one_line(run: Knapper, tmp_path: Path, what: str) -> None:
    content, line = BAD_MODELS[what]
    (tmp_path / "net.onnx").write_bytes(content)
    code, lines = run("compile", "net.onnx")
    assert code == 1
    assert [re.sub(r"\(\d+ bytes\)", "(196 bytes)", found) for found in lines] == [line]
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(
    ("proto", "options"),
    [(relu(F32, ["N", 8]), ["--shape", "N=3"]), (relu(TensorProto.DOUBLE, [1, 8]), [])],
    ids=["symbolic batch, bound", "float64"],
)
def test_odd_but_legal_models_work(
    run: Knapper, tmp_path: Path, proto: onnx.ModelProto, options: list[str]
) -> None:
    onnx.save(proto, tmp_path / "net.onnx")
    assert run("compile", "net.onnx", *options, "-q") == (0, [])
    assert run("run", "net.elf", "--input", "random:0", "-q", "-o", "out.npz") == (0, [])
    with np.load(tmp_path / "out.npz") as z:
        assert (z["y"] >= 0).all()


# --- images -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("image") / "net.elf"
    knapper.compile(relu(F32, [1, 8])).save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b"", "error E5"),
        (lambda b: b[: len(b) // 2], "error E5"),
        (lambda b: b[:-1], "error E5"),
        (lambda b: b"\x7fELF" + b"\xff" * 60, "error E5"),
        (lambda b: b[:300] + bytes([b[300] ^ 1]) + b[301:], "error E5"),
        (lambda b: b"hello\n", "error E5"),
    ],
    ids=["empty", "half", "one byte short", "hostile header", "one bit flipped", "text"],
)
@pytest.mark.parametrize(
    "command", [["run", "--input", "random:0"], ["dis"], ["inspect"]], ids=lambda c: c[0]
)
def test_a_damaged_image_is_one_line(
    run: Knapper,
    tmp_path: Path,
    image: bytes,
    command: list[str],
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    (tmp_path / "net.elf").write_bytes(damage(image))
    code, lines = run(command[0], "net.elf", *command[1:])
    assert code == 1
    assert lines
    assert all(line.startswith(message) and "net.elf" in line for line in lines)


def test_no_flipped_bit_goes_unnoticed_or_crashes(tmp_path: Path, image: bytes) -> None:
    rng = random.Random(0)
    path = tmp_path / "net.elf"
    for _ in range(300):
        bits = bytearray(image)
        bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
        path.write_bytes(bits)
        with pytest.raises(KnapperError, match=r"^E5\d\d: "):
            knapper.load(path)


# --- how it is called ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ([], "E701: no inputs given; the network takes x f32[1,8]"),
        (["--input", "nothing.npy"], "which input is it for?"),
        (["--input", "x=nothing.npy"], "E705: nothing.npy: cannot read: No such file or directory"),
        (["--input", "x=text.npy"], "E702: text.npy: is no .npy or .npz file"),
        (["--input", "z=wrong_shape.npy"], "there is no input 'z'"),
        (["--input", "x=wrong_shape.npy"], "input 'x': expected f32[1,8], got f32[2,8]"),
        (
            ["--input", "x=wrong_type.npy"],
            "input 'x': expected f32[1,8], got float64[1,8] (hint: convert it: ",
        ),
        (["--input", "random:many"], "E704: 'random:many' is no seed"),
        (
            ["--input", "random:0", "--input", "random:1"],
            "E704: --input random:0: nothing is left of it (hint: leave it out; ",
        ),
    ],
    ids=lambda o: " ".join(o) if isinstance(o, list) else "",
)
def test_wrong_inputs_are_named(
    run: Knapper, tmp_path: Path, image: bytes, option: list[str], line: str
) -> None:
    (tmp_path / "net.elf").write_bytes(image)
    (tmp_path / "text.npy").write_text("not numpy")
    if option == ["--input", "nothing.npy"]:
        np.save(tmp_path / "nothing.npy", np.zeros(1))
    np.save(tmp_path / "wrong_shape.npy", np.zeros((2, 8), np.float32))
    np.save(tmp_path / "wrong_type.npy", np.zeros((1, 8)))
    code, lines = run("run", "net.elf", *option)
    assert code == 2
    assert any(line in found for found in lines), lines


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["compile"], "error E704: give a MODEL, or --from FILE"),
        (["compile", "nowhere.onnx"], "error E705: nowhere.onnx: cannot read: No such file or directory"),
        (["compile", "net.onnx", "-t", "volta"], "volta-8tc"),
        (["compile", "net.onnx", "-t", "mine.toml"], "mine.toml"),
        (["compile", "net.onnx", "--precision", "fp17"], "E303"),
        (["compile", "net.onnx", "--pipeline", "fold,fodl"], "E301"),
        (["compile", "net.onnx", "--pipeline", "fold("], "error E"),
        (["compile", "net.onnx", "--shape", "x"], "E704: --shape x: expected NAME=VALUE"),
        (["compile", "net.onnx", "--shape", "x=a,b"], "E704: --shape x=a,b: expected sizes such as 1,3,224,224"),
        (["compile", "net.onnx", "--shape", "x=1", "--shape", "x=2"], "E704: --shape x=2: x is 1 already"),
        (["compile", "net.onnx", "--pipeline", "fp61"], "did you mean fp16?"),
        (["compile", "net.onnx", "--shape", "xx=1"], "(hint: did you mean x?)"),
        (["reproduce", "S-33"], "hint: did you mean S-3"),
        (["time", "net.onnx", "--input", "random:0"], "E704: --input does not apply: net.onnx is a run already"),
        (["compile", "net.onnx", "--shape", "z=1"], "E701: net.onnx: --shape names 'z'; the model's inputs and open dimensions are: x"),
        (["compile", "net.onnx", "--const", "x=abc"], "E704: --const: 'abc' is not a number"),
        (["compile", "net.onnx", "-o", "net.onnx/sub/out.elf"], "E705: net.onnx/sub/out.elf: cannot write: Not a directory"),
        (["compile", "--from", "net.onnx"], "E704: --from takes an .ir, .plan or .s file"),
        (["compile", "--from", "net.s", "--emit", "graph"], "E704: --emit graph comes before"),
        (["compile", "net.onnx", "--plugin", "nowhere.py"], "E420"),
        (["asm", "nowhere.s", "-o", "out.elf"], "E705: nowhere.s: cannot read: No such file"),
        (["run", "nowhere.elf"], "E705: nowhere.elf: cannot read: No such file or directory"),
        (["explain", "E999"], "E704: there is no error code 'E999'"),
        (["demo", "--images", "0"], "E704: --images 0: expected 1 to 100"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else "",
)  # fmt: skip
def test_wrong_calls_are_one_line(
    run: Knapper, tmp_path: Path, words: list[str], line: str
) -> None:
    onnx.save(relu(F32, [1, 8]), tmp_path / "net.onnx")
    code, lines = run(*words)
    assert code == 2
    assert [found for found in lines if found.startswith("error ")] == lines[:1]
    assert line in lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["complie"], "there is no command 'complie'; did you mean compile?"),
        (["run"], "the following arguments are required: IMAGE"),
        (["compile", "--emit", "elf"], "there is no value 'elf'; there are onnx, graph, plan, asm, image"),
        (["compile", "m.onnx", "--precison", "fp16"], "there is no option --precison; did you mean --precision?"),
        (["compile", "m.onnx", "-t", "sma2", "-t", "sma3"], "-t is given twice"),
        (["run", "m.elf", "-o", "a.npz", "--output", "b.npz"], "--output is given twice"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else "",
)  # fmt: skip
def test_unknown_words_show_the_usage_and_what_was_meant(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as e:
        cli.run(words)
    assert e.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_an_interrupt_before_there_is_a_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parser", interrupted)
    with pytest.raises(SystemExit) as e:
        start.main()
    assert (e.value.code, capsys.readouterr().err) == (130, "interrupted\n")


# --- codes --------------------------------------------------------------------------------------------------------------


def raised() -> Iterator[str]:
    """Every error code that the sources mention outside its row in CODES."""
    for top in ("isa", "compiler", "runtime", "frontends"):
        for f in (ROOT / top).rglob("*.py"):
            text = f.read_text()
            if f.name == "errors.py" and top == "isa":
                text = re.sub(r'^    "E\d{3}": .*$', "", text, flags=re.MULTILINE)
            yield from re.findall(r'"(E\d{3})"', text)


def test_every_code_is_explained_and_used() -> None:
    assert set(raised()) == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_an_explanation_is_a_sentence(code: str) -> None:
    assert CODES[code][0].isupper()
    assert CODES[code].endswith(".")
