"""Pages with commands tell the truth, as the README does: they run, one after the other, and print what is shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import CONSOLE, ROOT, shape, steps

PAGES = ["quantization.md"]


def printed(command: str, folder: Path) -> str:
    """What a command prints."""
    knapper = folder / "bin" / "knapper"
    knapper.parent.mkdir(exist_ok=True)
    knapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m knapper "$@"\n')
    knapper.chmod(0o755)
    path = os.pathsep.join([str(knapper.parent), os.environ["PATH"]])
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".ns"), "PATH": path, "COLUMNS": "110"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"$ {command}\n{done.stdout}"
    lines = done.stdout.splitlines(keepends=True)
    return "".join(x for x in lines if not re.search("(emulator|timing) core", x))


@pytest.mark.parametrize("name", PAGES)
def test_every_command_prints_what_the_page_shows(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    page = ROOT / "docs" / name
    found = {command: printed(command, tmp_path) for command, _ in steps(page.read_text())}
    if request.config.getoption("--bless"):
        text = page.read_text()
        for block in CONSOLE.findall(text):
            commands = re.findall(r"^\$ (.*)$", block, re.MULTILINE)
            new = "".join(f"$ {c}\n{found[c]}" for c in commands)
            text = text.replace(f"```console\n{block}```", f"```console\n{new}```")
        page.write_text(text)
    for command, shown in steps(page.read_text()):
        assert shape(found[command]) == shape(shown), f"$ {command}: `pytest --bless` accepts this"
