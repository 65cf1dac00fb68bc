"""The README tells the truth: its commands run, and print what it shows.

A `console` block has lines `$ command`, each followed by what it prints. They run one after the other in one folder. Numbers may
differ (times do); words and layout may not. `pytest --bless tests/test_readme.py` writes what they print now.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps(text: str) -> list[tuple[str, str]]:
    """(command, output) of each step of each block."""
    found = []
    for block in CONSOLE.findall(text):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = step.partition("\n")
            found.append((command, output))
    return found


def shape(output: str) -> str:
    """An output without what another compiler version may change: numbers, hashes, registers, which instructions are frequent.

    The widths that these give to columns, and pictures, do not count either.
    """
    lines = [line for line in output.splitlines() if not re.fullmatch(r"[ .:\-=+*#%@]*", line)]
    text = re.sub(r"0x[0-9a-f]+|[0-9a-f]{12,}|\bU?R(\d+|Z)\b", "N", "\n".join(lines))
    text = re.sub(r"(?<![a-z_])-?\d[\d,.]*(e-?\d+)?", "N", text)
    text = re.sub(r"^[A-Z][A-Z.N]+( +N)", r"INSTRUCTION\1", text, flags=re.MULTILINE)
    return re.sub(r"[ \t]+", " ", text).strip()


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """(command, what it prints) of every step."""
    folder = tmp_path_factory.mktemp("readme")
    knapper = folder / "bin" / "knapper"
    knapper.parent.mkdir()
    knapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m knapper "$@"\n')
    knapper.chmod(0o755)
    path = os.pathsep.join([str(knapper.parent), os.environ["PATH"]])
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".ns"), "PATH": path, "COLUMNS": "110"}
    found = []
    for command, _ in steps(README.read_text()):
        done = subprocess.run(
            ["bash", "-c", f"set -eo pipefail; {command}"],
            cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        lines = [
            x
            for x in done.stdout.splitlines(keepends=True)
            if not re.search("(emulator|timing) core", x)
        ]
        found.append((command, "".join(lines)))
    return found


def test_every_command_prints_what_the_readme_shows(
    printed: list[tuple[str, str]], request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--bless"):
        _bless(printed)
    for (command, shown), (_, output) in zip(steps(README.read_text()), printed, strict=True):
        assert shape(output) == shape(shown), f"$ {command}: `pytest --bless` accepts this"


def _bless(printed: list[tuple[str, str]]) -> None:
    text = README.read_text()
    for block in CONSOLE.findall(text):
        commands = re.findall(r"^\$ (.*)$", block, re.MULTILINE)
        outputs = [next(o for c, o in printed if c == command) for command in commands]
        new = "".join(f"$ {c}\n{o}" for c, o in zip(commands, outputs, strict=True))
        text = text.replace(f"```console\n{block}```", f"```console\n{new}```")
    README.write_text(text)


def test_two_lines_set_knapper_up() -> None:
    lines = re.findall(r"^```sh\n(.*)\n```$", README.read_text(), re.MULTILINE)
    assert [re.sub(r"\S*bin/", "", line).split(" && ")[-1] for line in lines] == [
        "knapper demo",
        "python -m pytest",
    ]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert "dev" in extras


def test_ci_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script
    for tool in ("ruff check", "ruff format --check", "mypy"):
        assert tool in script


@pytest.mark.parametrize("path", re.findall(r"\]\(([\w./]+)\)", README.read_text()))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    "path",
    re.findall(r"`((?:isa|compiler|runtime|frontends|tests|examples)/[\w/]*)`", README.read_text()),
)
def test_folders_that_are_named_exist(path: str) -> None:
    assert (ROOT / path).is_dir()
