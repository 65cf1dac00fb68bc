"""The command line, as users and their scripts meet it: help, tables, errors. Each command has a file of its own beside this one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from shop import ROOT, Knapper, python

from knapper.frontends import cli

COMMANDS = [
    "demo",
    "compile",
    "run",
    "check",
    "calibrate",
    "eval",
    "dis",
    "asm",
    "inspect",
    "ops",
    "passes",
    "targets",
    "isa",
    "explain",
]


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


def test_passes_tells_all_about_one(run: Knapper) -> None:
    code, out, err = run("passes", "im2col")
    assert code == 0, err
    assert out.startswith("im2col\n\n")
    assert re.search("^option +type +default$", out, re.M)
    assert re.search("^mode ", out, re.M)
    assert "E704" in run("passes", "im2colour")[2]
    assert "observed" not in run("passes", "quantize")[1]  # no text can give it


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


@pytest.mark.parametrize("command", ["ops", "passes", "targets", "isa", "explain"])
def test_listings_print_tables_and_json(run: Knapper, command: str) -> None:
    code, out, _ = run(command)
    assert code == 0
    assert len(out.splitlines()) > 1
    code, out, _ = run(command, "--json")
    assert code == 0
    assert json.loads(out)


def test_targets_says_what_each_machine_is(run: Knapper) -> None:
    code, out, _ = run("targets", "--json")
    assert code == 0
    about = {row["target"]: row["about"] for row in json.loads(out)}
    assert about["tpu-v2"] == "One core of a TPU v2"
    assert about["sma2"] == "SMA with 2 units"
    assert all(about.values())


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
