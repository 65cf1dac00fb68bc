"""`knapper compile`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from shop import SHAPE, Knapper, small_model


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


def test_a_model_comes_out_quantized(run: Knapper, tmp_path: Path) -> None:
    """Weights only: that needs no data. What comes out is compiled as any model is, and onnxruntime runs it."""
    quantize = ("--quantize", "i4,float", "--emit", "onnx", "-o", "few.onnx")
    code, _, err = run("compile", "SHOP/small.onnx", *SHAPE, *quantize)
    assert (code, err.startswith("few.onnx: ")) == (0, True), err
    model = onnx.load(tmp_path / "few.onnx")
    onnx.checker.check_model(model)
    types = {t.data_type for t in model.graph.initializer}
    assert onnx.TensorProto.INT4 in types
    assert run("compile", "few.onnx", "-q", "-o", "few.elf") == (0, "", "")
    code, out, err = run("check", "few.onnx", "--precision", "fp32", "--input", "SHOP/in.npz")
    assert code == 0, (out, err)


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


def test_a_folder_is_no_model(run: Knapper) -> None:
    code, _, err = run("compile", ".")
    assert (code, err) == (2, "error E704: . is a folder, expected a file\n")
