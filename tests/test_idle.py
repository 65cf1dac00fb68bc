"""A machine whose matrix units no generator serves is told of, once, on the way to a plan."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from knapper.compiler import driver
from knapper.compiler.idle import idle_units
from knapper.compiler.ir import Graph, Node, Type
from knapper.frontends import cli
from knapper.isa.machine import Machine, known
from knapper.isa.systolic import ARRAY


def products() -> Graph:
    """Two products and what follows them."""
    t = Type("f16", (16, 16))
    weights = {"w": np.ones(t.shape, np.float16)}
    nodes = (
        Node("MatMul", ("x", "w"), ("h",), (t,), {}, "first", group="first"),
        Node("MatMul", ("h", "w"), ("y",), (t,), {}, "second", group="second"),
    )
    return Graph("g", {"x": t}, {"y": "y"}, nodes, weights)


@pytest.mark.parametrize("name", known())
def test_every_known_machine_has_kernels_for_its_matrix_units(name: str) -> None:
    assert list(idle_units(Machine.load(name))) == []


def test_an_array_that_no_engine_serves_is_told_of_with_the_sizes_that_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = Machine.load("sma3").with_(name="odd", array_rows=12)
    with caplog.at_level(logging.WARNING, "knapper"):
        plan = driver.plan(products(), odd)
    assert {s.kind for s in plan.steps} == {"ffma"}
    (warning,) = caplog.messages
    assert warning.startswith("warning: no kernel uses the systolic array of odd, products run on ")
    assert f"systolic: odd has units of 12 × 16, not {ARRAY.rows} × {ARRAY.columns}" in warning
    assert "accumulating: odd has no accumulator memory" in warning


def test_legal_sizes_are_those_of_each_engine() -> None:
    (line,) = idle_units(Machine.load("tpu-v2").with_(name="wide", array_columns=100))
    assert (
        "accumulating: wide has units of 128 × 100: rows are a multiple of 8, columns of 16" in line
    )
    assert "columns a power of two from 16 on" in line


def test_a_network_without_products_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    t = Type("f16", (16, 16))
    node = Node("Relu", ("x",), ("y",), (t,), {}, "relu", group="relu")
    odd = Machine.load("sma3").with_(array_rows=12)
    with caplog.at_level(logging.WARNING, "knapper"):
        driver.plan(Graph("g", {"x": t}, {"y": "y"}, (node,), {}), odd)
    assert not caplog.messages


def test_the_command_line_says_it_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target, source = tmp_path / "odd.toml", tmp_path / "g.ir"
    target.write_text(
        'name = "odd"\nbase = "sma3"\narray_rows = { value = 12, provenance = "assumed" }\n'
    )
    driver.Files(tmp_path)("g", products())
    words = ["compile", "--from", str(source), "-t", str(target), "-o", str(tmp_path / "g.elf")]
    assert cli.run(words) == 0
    assert capfd.readouterr().err.count("warning: no kernel uses the systolic array of odd") == 1
