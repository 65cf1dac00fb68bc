"""Tables leave knapper as CSV, Markdown or LaTeX: from every command that prints one, and with numbers that programs can read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shop import SHAPE, Knapper

from knapper.frontends.tables import Table

COMMANDS = (
    ("ops",),
    ("ops", "Conv"),
    ("passes",),
    ("passes", "im2col"),
    ("targets",),
    ("targets", "sma3"),
    ("isa",),
    ("isa", "EXIT"),
    ("explain", "E2"),
    ("inspect", "SHOP/small.elf"),
    ("run", "SHOP/small.elf", "--input", "random:0"),
    ("time", "SHOP/small.elf"),
    ("conformance", "--select", "test_relu"),
    ("prune", "SHOP/small.onnx", *SHAPE, "--pattern", "ew"),
    ("check", "SHOP/small.onnx", *SHAPE),
    ("check", "SHOP/small.onnx", *SHAPE, "--nodes"),
    ("cache", "info"),
)
CELLS = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), st.integers()),
    min_size=1,
)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda w: " ".join(w[:2]))
def test_every_table_has_every_format(run: Knapper, words: tuple[str, ...]) -> None:
    code, out, err = run(*words, "--format", "csv")
    assert (code, err) == (0, "")
    for block in out.rstrip("\n").split("\n\n"):
        head, *rows = csv.reader(line for line in block.splitlines() if not line.startswith("# "))
        assert {len(r) for r in rows} <= {len(head)}
    _, out, _ = run(*words, "--format", "latex")
    assert out.count("\\begin{tabular}") == out.count("\\end{tabular}") > 0
    _, out, _ = run(*words, "--format", "markdown")
    assert "|---" in out
    assert {line[0] for line in out.splitlines() if line} <= {"|", "*"}
    assert json.loads(run(*words, "--format", "json")[1])


def test_csv_has_numbers_as_they_are() -> None:
    one = Table([("a", 1234567, 1 / 3, True, None)], ("name", "n", "x", "yes", "none"))
    assert one.csv() == f"name,n,x,yes,none\na,1234567,{1 / 3},true,"
    assert "1,234,567" in one.text()


@given(CELLS)
def test_csv_comes_back_as_it_was(rows: list[tuple[str, int]]) -> None:
    found = list(csv.reader(io.StringIO(Table(rows, ("a", "b")).csv() + "\n", newline="")))
    assert [(a, int(b)) for a, b in found[1:]] == rows


@given(CELLS)
def test_no_cell_breaks_a_row_of_markdown_or_latex(rows: list[tuple[str, int]]) -> None:
    clean = [(" ".join(a.split()), b) for a, b in rows]
    one = Table(clean, ("a", "b"))
    for line in one.markdown().splitlines()[2:]:
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3
    for line in one.latex().splitlines()[4:-2]:
        body = line.removesuffix(r" \\").replace(r"\&", "")
        assert body.count("&") == 1


def test_statistics_of_launches_are_a_table_by_the_files_ending(
    run: Knapper, tmp_path: Path
) -> None:
    words = ("run", "SHOP/small.elf", "--input", "random:0", "-q", "--stats")
    assert run(*words, "s.csv") == (0, "", "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text())))
    assert run(*words, "s.json") == (0, "", "")
    stats = json.loads((tmp_path / "s.json").read_text())
    assert [int(r["cycles"]) for r in rows] == [k["cycles"] for k in stats["kernels"]]
    assert [r["dram_bytes.read"] for r in rows] == [
        str(k["dram_bytes"]["read"]) for k in stats["kernels"]
    ]
    code, _, err = run(*words, "s.xml")
    assert (code, err) == (
        2,
        "error E704: s.xml: which format? Endings are .json, .csv, .md, .tex\n",
    )


def test_a_format_and_json_are_not_both_possible(run: Knapper) -> None:
    assert run("ops", "--json", "--format", "csv")[0] == 2
