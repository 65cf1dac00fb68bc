"""States on the command line, and what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from shop import Knapper
from state_models import cache, rows

import knapper
from knapper.isa.errors import CODES, KnapperError


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"past": "y"}, "a state has one type"),
        ({"past": "nothing"}, "no output 'nothing'"),
        ({"nothing": "present"}, "no input 'nothing'"),
        ({"past": "present", "new": "present"}, "two inputs"),
    ],
)
def test_states_that_are_none(state: dict[str, str], words: str) -> None:
    with pytest.raises(KnapperError) as e:
        knapper.compile(cache(), "volta-8tc", "fp32", state=state)
    assert words in str(e.value)
    assert "E104" in CODES


def test_the_command_line(run: Knapper, tmp_path: Path) -> None:
    model, out = str(tmp_path / "cache.onnx"), str(tmp_path / "cache.elf")
    onnx.save(cache(), model)
    state = ("--state", "past=present")
    code, _, err = run("compile", model, *state, "--precision", "fp32", "-o", out)
    assert code == 0, err
    assert "past = present" in run("inspect", out)[1]
    feed, made = str(tmp_path / "in.npz"), str(tmp_path / "out.npz")
    np.savez(feed, **rows(0))
    code, _, err = run("run", out, "--input", feed, "-o", made)
    assert code == 0, err
    with np.load(made) as outputs:
        assert outputs["present"][0, 0].all()
    for precision in ("fp32", "fp16"):
        code, _, err = run("check", model, *state, "--precision", precision, "--input", feed)  # fmt: skip
        assert code == 0, err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--state", "past"), "expected NAME=VALUE"),
        (("--state", "past=present", "--state", "past=y"), "past is present already"),
        (("--state", "past=nothing"), "E104"),
        (("--state", "past=present", "--emit", "onnx"), "an ONNX file cannot say it"),
    ],
)
def test_mistakes_on_the_command_line(run: Knapper, tmp_path: Path, words: Any, told: str) -> None:
    model = str(tmp_path / "cache.onnx")
    onnx.save(cache(), model)
    code, _, err = run("compile", model, *words, "-o", str(tmp_path / "x.elf"))
    assert code
    assert told in err


def test_a_level_that_is_decided_takes_no_states(run: Knapper, tmp_path: Path) -> None:
    plan = str(tmp_path / "net.plan")
    Path(plan).write_text("")
    code, _, err = run("compile", "--from", plan, "--state", "a=b")
    assert code
    assert "--state does not apply" in err
