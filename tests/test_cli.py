"""The command line, as users and their scripts meet it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import knapper
from knapper.frontends import cli
from knapper.frontends.commands.check import node_by_node
from knapper.frontends.onnx import read
from knapper.frontends.oracle import Oracle
from knapper.isa.errors import KnapperError

Array = NDArray[Any]
COMMANDS = [
    "demo",
    "compile",
    "run",
    "check",
    "dis",
    "asm",
    "inspect",
    "ops",
    "passes",
    "targets",
    "isa",
    "explain",
]
ROOT = Path(__file__).parent.parent
Knapper = Callable[..., tuple[int, str, str]]


def small_model() -> onnx.ModelProto:
    """Two inputs, one of them an index; three outputs; a symbolic batch."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3), np.float32),
        "t": rng.standard_normal((5, 4), np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"], "relu"),
        node("GlobalAveragePool", ["r"], ["g"], "gap"),
        node("Flatten", ["g"], ["mean"], "flatten"),
        node("Gather", ["t", "token"], ["row"], "embed"),
        node("Add", ["mean", "row"], ["sum"], "add"),
        node("ArgMax", ["sum"], ["best"], "argmax", axis=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("image", TensorProto.FLOAT, ["N", 3, 8, 8]), value("token", TensorProto.INT64, [1])],
        [value("sum", TensorProto.FLOAT, ["N", 4]), value("row", TensorProto.FLOAT, [1, 4]),
         value("best", TensorProto.INT64, ["N", 1])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.onnx and, compiled from it, small.elf."""
    folder = tmp_path_factory.mktemp("shop")
    onnx.save(small_model(), folder / "small.onnx")
    image = knapper.compile(folder / "small.onnx", shapes={"image": (1, 3, 8, 8)})
    image.save(folder / "small.elf")
    np.savez(folder / "in.npz", image=np.ones((1, 3, 8, 8), np.float32), token=np.array([2]))
    return folder


@pytest.fixture
def run(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Knapper:
    """`knapper …` in an empty folder, as (exit code, stdout, stderr); SHOP/ stands for the shop."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        argv = [w.replace("SHOP", str(shop)) for w in words]
        try:
            code = cli.run(argv)
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        out, err = capfd.readouterr()
        return code, out, err

    return call


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".ns")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


# --- start --------------------------------------------------------------------------------------------------------------


def test_help_names_every_command(run: Knapper) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert [c for c in COMMANDS if f"    {c} " in out] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_the_shared_options(run: Knapper, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "--traceback" in out
    assert "--plugin" in out


def test_help_loads_nothing_that_takes_time(tmp_path: Path) -> None:
    heavy = (
        "numpy onnx onnxruntime tvm rich lark networkx llvmlite knapper.compiler knapper.runtime"
    )
    done = python(
        "import sys; from knapper.frontends import cli\n"
        "try: cli.run(['--help'])\n"
        f"except SystemExit: print('loaded:', sorted(set({heavy.split()}) & set(sys.modules)))",
        tmp_path,
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_run_loads_neither_tvm_nor_onnx(tmp_path: Path, shop: Path) -> None:
    done = python(
        "import sys; from knapper.frontends import cli\n"
        f"code = cli.run(['run', '{shop}/small.elf', '--input', '{shop}/in.npz'])\n"
        "print(code, sorted({'tvm', 'onnx', 'onnxruntime', 'lark', 'networkx', 'rich'} & set(sys.modules)))",
        tmp_path,
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".ns")}
    command = f"set -o pipefail; {sys.executable} -m knapper ops --json | head -1"
    done = subprocess.run(
        ["bash", "-c", command], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[\n", "")


def test_version_names_what_knapper_stands_on(run: Knapper) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()][:3] == ["knapper", "numpy", "onnx"]


# --- compile ------------------------------------------------------------------------------------------------------------

SHAPE = ("--shape", "image=1,3,8,8")


def test_compile_writes_an_image_named_after_the_model(run: Knapper, tmp_path: Path) -> None:
    code, out, err = run("compile", "SHOP/small.onnx", *SHAPE)
    assert (code, out) == (0, "")
    assert err.startswith("small.elf: ")
    assert (tmp_path / "small.elf").read_bytes()[:4] == b"\x7fELF"


def test_two_compiles_give_the_same_bytes(run: Knapper, tmp_path: Path) -> None:
    for name in ("a.elf", "b.elf"):
        assert run("compile", "SHOP/small.onnx", *SHAPE, "-q", "-o", name) == (0, "", "")
    assert (tmp_path / "a.elf").read_bytes() == (tmp_path / "b.elf").read_bytes()


def test_every_level_can_be_written_and_fed_back(run: Knapper, tmp_path: Path) -> None:
    run("compile", "SHOP/small.onnx", *SHAPE, "-o", "whole.elf")
    source: tuple[str, ...] = ("SHOP/small.onnx",)
    for level, file in (("graph", "m.ir"), ("plan", "m.plan"), ("asm", "m.s"), ("image", "m.elf")):
        code, _, err = run(
            "compile", *source, *(SHAPE if len(source) == 1 else ()), "--emit", level, "-o", file
        )
        assert code == 0, err
        source = ("--from", file)
    whole, stepwise = (
        run("run", f, "--input", "SHOP/in.npz", "--json")[1] for f in ("whole.elf", "m.elf")
    )
    assert json.loads(whole)["instructions"] == json.loads(stepwise)["instructions"]


def test_a_plan_leaves_the_users_arrays_alone_and_a_run_leaves_the_plans(
    run: Knapper, tmp_path: Path
) -> None:
    """All have one stem, as files of one network do."""
    np.savez(tmp_path / "m.npz", image=np.ones((1, 3, 8, 8), np.float32), token=np.array([2]))
    mine = (tmp_path / "m.npz").read_bytes()
    _, _, err = run("compile", "SHOP/small.onnx", *SHAPE, "--emit", "plan", "-o", "m.plan")
    assert "m.plan.data: its constants" in err
    assert (tmp_path / "m.npz").read_bytes() == mine
    assert run("run", "SHOP/small.elf", "--input", "m.npz", "-o", "m.npz", "--no-timing")[0] == 0
    assert run("compile", "--from", "m.plan", "-o", "m.elf")[0] == 0


def test_an_image_of_edited_assembly_says_so_wherever_it_is_looked_at(
    run: Knapper, tmp_path: Path
) -> None:
    run("dis", "SHOP/small.elf", "-o", "m.s")
    text = (tmp_path / "m.s").read_text()
    (tmp_path / "m.s").write_text(re.sub(r"^    EXIT$", "    NOP\n    EXIT", text, flags=re.M))
    assert run("asm", "m.s", "-o", "m.elf")[0] == 0
    assert "\n  edited " in run("inspect", "m.elf")[1]
    words = ("--input", "random:0", "--no-timing", "--stats", "stats.json")
    assert run("run", "m.elf", *words)[0] == 0
    assert json.loads((tmp_path / "stats.json").read_text())["provenance"]["edited"] == "asm"


def test_both_doors_say_which_model_an_image_is_of(run: Knapper, shop: Path) -> None:
    run("compile", "SHOP/small.onnx", *SHAPE, "-o", "m.elf")
    typed = json.loads(run("inspect", "m.elf", "--json")[1])["meta"]
    for model in (shop / "small.onnx", str(shop / "small.onnx"), onnx.load(shop / "small.onnx")):
        assert knapper.compile(model, shapes={"N": 1}).program.meta == typed


def test_python_binds_symbolic_dimensions_by_name(shop: Path) -> None:
    image = knapper.compile(shop / "small.onnx", shapes={"N": 3})
    assert image.program.inputs[0].shape == (3, 3, 8, 8)
    with pytest.raises(
        KnapperError,
        match=r"E701: .*names 'M'; the model's inputs and open dimensions are: N, image, token",
    ):
        knapper.compile(shop / "small.onnx", shapes={"M": 3})


@pytest.mark.parametrize("present", [True, False])
def test_the_first_timed_run_says_that_it_compiles(
    run: Knapper, monkeypatch: pytest.MonkeyPatch, present: bool
) -> None:
    monkeypatch.setattr("knapper.runtime.timing.jit.present", lambda: present)
    code, _, err = run("run", "SHOP/small.elf", "--input", "random:0")
    assert code == 0, err
    assert ("compiling the timing core (first use" in err) is not present


def test_time_says_of_which_program_and_what_cycles_and_energy_are_made_of(run: Knapper) -> None:
    code, out, err = run("time", "SHOP/small.elf", "-t", "volta-8tc", "-t", "v100-pcie")
    assert code == 0, err
    first, _, _, *rows = out.splitlines()
    assert first == "one program on each machine: compiled for volta-8tc, not compiled again"
    for r in rows:
        cycles, launching, computing, _, *energy = (
            float(x.replace(",", "")) for x in r.split()[1:8]
        )
        assert launching + computing == cycles
        assert 0 < launching < cycles
        assert energy[0] == pytest.approx(energy[1] + energy[2], rel=1e-3)
    assert "busiest   the unit" in run("time", "--help")[1]


def test_passes_tells_all_about_one(run: Knapper) -> None:
    code, out, err = run("passes", "im2col")
    assert code == 0, err
    assert out.startswith("im2col\n\n")
    assert re.search("^option +type +default$", out, re.M)
    assert re.search("^mode ", out, re.M)
    assert "E704" in run("passes", "im2colour")[2]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("SHOP/small.onnx", "--input", "random:0"), "compile it first: knapper compile "),
        (("SHOP/small.elf", "--input", "random"), "hint: --input random:0"),
        (("SHOP/small.elf", "--input", "image=random"), "hint: --input image=random:0"),
    ],
)
def test_a_slip_gets_the_right_spelling(run: Knapper, words: tuple[str, ...], hint: str) -> None:
    code, _, err = run("run", *words)
    assert code == 2
    assert "E704" in err
    assert hint in err


def test_the_public_names_can_be_listed_before_they_are_imported(tmp_path: Path) -> None:
    done = python("import knapper; print(dir(knapper)); print(knapper.Result.__name__)", tmp_path)
    for name in ("Image", "KnapperError", "Result", "compile", "load"):
        assert repr(name) in done.stdout


def test_a_model_is_not_overwritten_by_what_is_made_of_it(run: Knapper, tmp_path: Path) -> None:
    onnx.save(small_model(), tmp_path / "m.onnx")
    assert "E704" in run("compile", "m.onnx", *SHAPE, "-o", "m.onnx")[2]
    onnx.load(tmp_path / "m.onnx")


def test_dump_dir_has_every_level(run: Knapper, tmp_path: Path) -> None:
    run("compile", "SHOP/small.onnx", *SHAPE, "--dump-dir", "levels")
    found = {p.suffix for p in (tmp_path / "levels").iterdir()}
    assert {".ir", ".data", ".plan", ".s", ".elf"} <= found


def test_const_and_shape_bind_inputs(run: Knapper) -> None:
    code, _, err = run(
        "compile", "SHOP/small.onnx", "--shape", "N=2", "--const", "token=3", "-o", "n2.elf"
    )
    assert code == 0, err
    ports = json.loads(run("inspect", "n2.elf", "--json")[1])["inputs"]
    assert [(p["name"], p["shape"]) for p in ports] == [("image", [2, 3, 8, 8])]


def test_an_image_says_where_it_is_from_whatever_level_it_was_made_of(
    run: Knapper, tmp_path: Path
) -> None:
    """Every way there gives the same bytes, provenance included; what was edited by hand says so."""
    run(
        "compile",
        "SHOP/small.onnx",
        *SHAPE,
        "--precision",
        "fp32",
        "--dump-dir",
        "all",
        "-o",
        "m.elf",
    )
    whole = (tmp_path / "m.elf").read_bytes()
    for source in ("all/00-import.ir", "all/plan.plan", "all/program.s"):
        fresh = ("--precision", "fp32") if "import" in source else ()
        assert run("compile", "--from", source, *fresh, "-q", "-o", "again.elf") == (0, "", "")
        assert (tmp_path / "again.elf").read_bytes() == whole, source
    plan = tmp_path / "all" / "plan.plan"
    plan.write_text(plan.read_text() + "// by hand\n")
    run("compile", "--from", "all/plan.plan", "-q", "-o", "edited.elf")
    meta, edited = (
        json.loads(run("inspect", f, "--json")[1])["meta"] for f in ("m.elf", "edited.elf")
    )
    assert set(meta) == {"knapper", "model", "pipeline", "precision"}
    assert meta["precision"] == "fp32"
    assert edited == {**meta, "edited": "plan"}


def test_a_plan_remembers_its_machine(run: Knapper, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "volta-8tc"\nname = "mine"\n')
    run(
        "compile",
        "SHOP/small.onnx",
        *SHAPE,
        "-t",
        "mine.toml",
        "--emit",
        "plan",
        "-q",
        "-o",
        "m.plan",
    )
    code, _, err = run("compile", "--from", "m.plan", "-o", "m.elf")
    assert (code, "E510" in err) == (1, True) or (code, "E510" in err) == (2, True)
    assert run("compile", "--from", "m.plan", "-t", "mine.toml", "-q", "-o", "m.elf")[0] == 0
    assert (
        json.loads(run("compile", "--from", "m.plan", "-t", "volta-8tc", "--json")[1])["target"]
        == "volta-8tc"
    )


@pytest.mark.parametrize(
    ("source", "option"),
    [
        *(("m.ir", o) for o in ("--precision fp32", "--shape N=1", "--const x=1")),
        *(("m.plan", o) for o in ("--precision fp32", "--pipeline fold", "--shape N=1", "--const x=1")),
        *(("m.s", o) for o in ("--precision fp32", "--pipeline fold", "--shape N=1", "--const x=1", "-t volta-8tc", "--dump-dir d")),
    ],
)  # fmt: skip
def test_an_option_that_comes_too_late_is_refused(
    run: Knapper, tmp_path: Path, source: str, option: str
) -> None:
    level = {".ir": "graph", ".plan": "plan", ".s": "asm"}[Path(source).suffix]
    run("compile", "SHOP/small.onnx", *SHAPE, "--emit", level, "-q", "-o", source)
    before = sorted(tmp_path.iterdir())
    code, _, err = run("compile", "--from", source, *option.split(), "-o", "m.elf")
    name = {"-t": "--target"}.get(option.split()[0], option.split()[0])
    assert (code, sorted(tmp_path.iterdir())) == (2, before)
    assert err.startswith(f"error E704: {name} does not apply: {source} has it decided already")


@pytest.mark.parametrize("command", ["compile", "check"])
def test_a_shape_contradicts_no_fixed_dimension(run: Knapper, command: str) -> None:
    code, out, err = run(command, "SHOP/small.onnx", "--shape", "image=1,3,9,8")
    assert (code, out) == (2, "")
    assert "error E703: " in err
    assert "input 'image' is [N,3,8,8], --shape says [1,3,9,8]" in err


@pytest.mark.parametrize("command", ["compile", "check"])
def test_precision_and_pipeline_do_not_go_together(run: Knapper, command: str) -> None:
    words = (command, "SHOP/small.onnx", *SHAPE, "--precision", "fp32", "--pipeline", "fold,fuse")
    code, _, err = run(*words)
    assert (code, err) == (
        2,
        "error E704: --precision does not apply: --pipeline decides it "
        '(hint: the pass says it: precision{type="fp32"})\n',
    )


@pytest.mark.parametrize("emit", ["graph", "plan", "asm", "image"])
def test_compile_says_in_json_what_it_made(run: Knapper, tmp_path: Path, emit: str) -> None:
    code, out, err = run(
        "compile",
        "SHOP/small.onnx",
        *SHAPE,
        "--emit",
        emit,
        "-o",
        "made.s" if emit == "asm" else "made",
        "--json",
    )
    assert (code, err) == (0, "")
    said = json.loads(out)
    data = Path(said["path"]).read_bytes()
    assert said.pop("seconds") > 0
    assert said == {
        "path": "made.s" if emit == "asm" else "made",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "target": None if emit == "graph" else "volta-8tc",
        "precision": "fp16",
        "launches": None if emit == "graph" else said["launches"],
        "macs": None if emit == "graph" else 3 * 9 * 4 * 64,
        "data": said["data"],
        "warnings": [],
    }
    assert said["data"] is None if emit == "image" else Path(said["data"]).is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("run", "SHOP/small.elf", "--input", "SHOP/in.npz", "-o", "no/folder/out"),
        ("run", "SHOP/small.elf", "--input", "SHOP/in.npz", "--stats", "no/folder/out"),
        ("compile", "SHOP/small.onnx", *SHAPE, "-o", "no/folder/out"),
        ("compile", "SHOP/small.onnx", *SHAPE, "--emit", "plan", "-o", "no/folder/out"),
        ("compile", "SHOP/small.onnx", *SHAPE, "--dump-dir", "no/folder/out"),
        ("dis", "SHOP/small.elf", "-o", "no/folder/out"),
        ("asm", "SHOP/small.s", "-o", "no/folder/out"),
        ("demo", "--dir", "no/folder/out"),
    ],
)
def test_no_command_makes_folders_on_the_way(
    run: Knapper, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert run(*words) == (
        2,
        "",
        "error E705: no/folder/out: cannot write: No such file or directory (hint: make the folder no/folder first)\n",
    )
    assert not list(tmp_path.iterdir())


def test_a_failed_compile_leaves_the_old_file(run: Knapper, tmp_path: Path) -> None:
    (tmp_path / "small.elf").write_text("precious")
    assert run("compile", "SHOP/small.onnx")[0] == 1
    assert (tmp_path / "small.elf").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["small.elf"]


# --- run ----------------------------------------------------------------------------------------------------------------


def outputs(path: Path) -> dict[str, Array]:
    with np.load(path) as z:
        return {n: z[n] for n in z.files}


def test_run_writes_outputs_by_name_and_every_counter(run: Knapper, tmp_path: Path) -> None:
    code, out, _ = run(
        "run", "SHOP/small.elf", "--input", "SHOP/in.npz", "-o", "out.npz", "--stats", "stats.json"
    )
    assert code == 0
    assert {n: (str(a.dtype), a.shape) for n, a in outputs(tmp_path / "out.npz").items()} == {
        "sum": ("float32", (1, 4)),
        "row": ("float32", (1, 4)),
        "best": ("int64", (1, 1)),
    }
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert {
        "schema",
        "provenance",
        "target",
        "instructions",
        "macs",
        "macs_executed",
        "kernels",
        "nodes",
    } <= set(stats)
    assert stats["cycles"] > 0
    assert stats["macs"] == 3 * 9 * 4 * 64
    assert "macs executed" in out


def test_a_run_without_timing_has_no_cycles_rather_than_none_of_them(
    run: Knapper, tmp_path: Path, shop: Path
) -> None:
    words = ("run", "SHOP/small.elf", "--input", "SHOP/in.npz", "--no-timing", "--stats", "s.json")
    code, out, _ = run(*words)
    assert code == 0
    assert "cycles" not in out
    stats = json.loads((tmp_path / "s.json").read_text())
    assert [stats[k] for k in ("cycles", "seconds_at_clock", "energy_pj")] == [None] * 3
    with np.load(shop / "in.npz") as inputs:
        untimed = knapper.load(shop / "small.elf").run(dict(inputs), timing=False).stats
    assert (untimed.cycles, untimed.seconds_at_clock, untimed.energy_pj) == (None, None, {})


def test_inputs_come_from_files_by_name_or_at_random(run: Knapper, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((1, 3, 8, 8), np.float32))
    np.save(tmp_path / "token.npy", np.array([2]))
    by_name = ["--input", "image=image.npy", "--input", "token=token.npy"]
    for name, words in (("a", by_name), ("b", ["--input", "SHOP/in.npz"]), ("c", ["--input", "random:7"]),
                        ("d", ["--input", "random:7"]), ("e", ["--input", "random:8"])):  # fmt: skip
        assert run("run", "SHOP/small.elf", *words, "-q", "-o", f"{name}.npz") == (0, "", "")
    a, b, c, d, e = (outputs(tmp_path / f"{n}.npz")["sum"] for n in "abcde")
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(c, d)
    assert (c != e).any()


def test_engines_print_the_same_counters(run: Knapper) -> None:
    fast, reference = (
        json.loads(
            run("run", "SHOP/small.elf", "--input", "SHOP/in.npz", "--json", "--engine", e)[1]
        )
        for e in ("fast", "reference")
    )
    for key in ("instructions", "macs", "macs_executed", "dram_bytes", "nodes"):
        assert fast[key] == reference[key]


# --- dis, asm, inspect --------------------------------------------------------------------------------------------------


def test_dis_then_asm_gives_the_same_file(run: Knapper, tmp_path: Path, shop: Path) -> None:
    code, _, err = run("dis", "SHOP/small.elf", "-o", "prog.s")
    (blob,) = tmp_path.glob("*.blob")
    assert (code, err.splitlines()[1].split(": ")[0]) == (0, blob.name)
    assert run("asm", "prog.s", "-o", "again.elf")[0] == 0
    assert (tmp_path / "again.elf").read_bytes() == (shop / "small.elf").read_bytes()


def test_numpys_advice_to_unpickle_is_not_passed_on(run: Knapper, tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("not numpy")
    for file, said in (
        ("objects", "holds Python objects, which are not read; save numbers"),
        ("text", "is no .npy or .npz file"),
    ):
        code, _, err = run("run", "SHOP/small.elf", "--input", f"image={file}.npy")
        assert (code, err) == (2, f"error E702: {file}.npy: {said}\n")


def test_dis_prints_without_a_file(run: Knapper, tmp_path: Path) -> None:
    code, out, _ = run("dis", "SHOP/small.elf")
    assert code == 0
    assert "EXIT" in out
    assert not list(tmp_path.iterdir())


def test_inspect_shows_what_there_is(run: Knapper) -> None:
    code, out, _ = run("inspect", "SHOP/small.elf")
    assert code == 0
    for word in (
        "volta-8tc",
        "provenance",
        "f32[1,3,8,8]",
        "i64[1]",
        "kernels",
        "launches",
        "arena",
        "argmax",
    ):
        assert word in out


# --- check --------------------------------------------------------------------------------------------------------------


def test_check_agrees_with_onnxruntime(run: Knapper) -> None:
    for precision in ("fp16", "fp32"):
        code, out, err = run("check", "SHOP/small.onnx", *SHAPE, "--precision", precision)
        assert code == 0, err
        assert [line.split()[0] for line in out.splitlines()] == ["output", "sum", "row", "best"]


def test_check_says_where_a_difference_starts(run: Knapper) -> None:
    code, _, err = run("check", "SHOP/small.onnx", *SHAPE, "--tolerance", "1e-9")
    assert code == 1
    assert "E706: " in err
    assert "output 'sum' differs from onnxruntime's" in err
    assert "the passes change outputs" in err


# --- tables -------------------------------------------------------------------------------------------------------------


def test_check_knows_that_the_data_decides_how_many_rows_there_are(
    run: Knapper, tmp_path: Path
) -> None:
    """In 16-bit storage another box is chosen; every node is compared all the same, by the rows that onnxruntime has."""
    path = tmp_path / "boxes.onnx"
    onnx.save(choosing_model(), path)
    for target in ("volta-8tc", "sma3"):
        code, out, err = run("check", str(path), "--precision", "fp32", "-t", target)
        assert code == 0, err
        assert re.search(r"^picked +12 ", out, re.MULTILINE)
    code, _, err = run("check", str(path))
    assert code == 1
    assert "E706" in err
    assert "output 'picked' is float32[4,4], onnxruntime gives float32[3,4]" in err
    assert "the passes change how many boxes are chosen, as --precision may" in err
    graph = read(path)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)}
    compared = {d.op: d.max_rel for d in node_by_node(path, graph, feed)}
    assert compared.keys() == {n.op for n in graph.nodes}
    assert max(compared.values()) < 1e-5


def choosing_model() -> onnx.ModelProto:
    """Boxes, of which the data decides how many are chosen; outputs are those chosen."""
    rng = np.random.default_rng(0)
    boxes = 32
    weights = {
        "w": 0.3 * rng.standard_normal((boxes * 4, 3, 3, 3)).astype(np.float32),
        "v": 0.3 * rng.standard_normal((boxes * 3, 3, 3, 3)).astype(np.float32),
        "as_boxes": np.array([1, boxes, 4]),
        "as_scores": np.array([1, 3, boxes]),
        "most": np.array([5]),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([0.1], np.float32),
        "first": np.array([0]),
        "second": np.array([1]),
        "third": np.array([2]),
    }
    node = helper.make_node
    nodes = [
        node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["chosen"],
             "nms", center_point_box=1),
        node("Gather", ["chosen", "third"], ["column"], "column", axis=1),
        node("Squeeze", ["column", "second"], ["rows"], "rows"),
        node("Squeeze", ["boxes", "first"], ["all"], "all"),
        node("Gather", ["all", "rows"], ["picked"], "picked"),
    ]  # fmt: skip
    for weight, value in (("v", "scores"), ("w", "boxes")):
        nodes[:0] = [
            node("Conv", ["x", weight], [f"{value}.c"], f"{value}.conv", pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", [f"{value}.c"], [f"{value}.p"], f"{value}.pool"),
            node("Sigmoid", [f"{value}.p"], [f"{value}.s"], f"{value}.sigmoid"),
            node("Reshape", [f"{value}.s", f"as_{value}"], [value], f"{value}.shape"),
        ]
    value_info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "boxes",
        [value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [value_info("picked", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("command", ["ops", "passes", "targets", "isa", "explain"])
def test_listings_print_tables_and_json(run: Knapper, command: str) -> None:
    code, out, _ = run(command)
    assert code == 0
    assert len(out.splitlines()) > 1
    code, out, _ = run(command, "--json")
    assert code == 0
    assert json.loads(out)


def test_listings_know_one_entry_by_name_or_beginning(run: Knapper) -> None:
    assert "Convolution" in run("ops", "conv")[1]
    assert "accumulate" in run("isa", "HMMA")[1].lower()
    assert "provenance" in run("targets", "volta-8tc")[1]
    assert "--const" in run("explain", "e204")[1]
    assert len(run("explain", "E2")[1].splitlines()) > 5


def test_listings_guess_what_was_meant(run: Knapper) -> None:
    code, _, err = run("ops", "Sotfmax")
    assert code == 2
    assert "did you mean Softmax" in err


# --- when things go wrong -----------------------------------------------------------------------------------------------


def test_a_bug_is_one_line_and_exit_70(run: Knapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_call", lambda a: 1 / 0)
    code, out, err = run("ops")
    assert (code, out) == (70, "")
    assert (
        err
        == "internal error: ZeroDivisionError: division by zero (please report it, with --traceback)\n"
    )
    with pytest.raises(ZeroDivisionError):
        run("ops", "--traceback")


def test_an_interrupt_is_130(run: Knapper, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(a: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_call", interrupted)
    assert run("ops") == (130, "", "interrupted\n")


def test_traceback_shows_where_an_error_arose(run: Knapper) -> None:
    assert "Traceback" not in run("compile", "nowhere.onnx")[2]
    assert "Traceback" in run("compile", "nowhere.onnx", "--traceback")[2]


def test_errors_are_json_on_request(run: Knapper) -> None:
    code, _, err = run("run", "SHOP/small.elf", "--input", "random:x", "--json")
    assert code == 2
    assert json.loads(err) == {
        "code": "E704",
        "where": "",
        "message": "'random:x' is no seed",
        "hint": "random:0",
    }


# --- Python -------------------------------------------------------------------------------------------------------------


def test_the_python_door_does_the_same(shop: Path, tmp_path: Path) -> None:
    image = knapper.compile(small_model(), target="volta-8tc", precision="fp32", shapes={"N": (1,)})
    image.save(tmp_path / "model.elf")
    inputs = outputs(shop / "in.npz")
    result = knapper.load(tmp_path / "model.elf").run(inputs)
    direct = image.run(inputs, engine="reference")
    np.testing.assert_array_equal(result.outputs["sum"], direct.outputs["sum"])
    assert result.stats.to_dict()["macs"] == 3 * 9 * 4 * 64


def test_an_image_shows_what_it_is(shop: Path) -> None:
    shown = repr(knapper.load(shop / "small.elf"))
    assert shown.startswith("Image(image: f32[1,3,8,8], token: i64[1] -> sum: f32[1,4], row:")
    assert shown.endswith(" launches for volta-8tc)")


def test_importing_knapper_loads_nothing(tmp_path: Path) -> None:
    done = python(
        "import sys, knapper; print('numpy' in sys.modules, knapper.__version__)", tmp_path
    )
    assert done.stdout == f"False {knapper.__version__}\n"


def test_the_version_is_said_once() -> None:
    assert f'version = "{knapper.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_what_onnxruntime_refuses_is_one_error() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    with pytest.raises(KnapperError, match="E706: onnxruntime cannot run the model"):
        Oracle(made.SerializeToString()).run({"x": np.zeros((1, 9), np.float32)})
