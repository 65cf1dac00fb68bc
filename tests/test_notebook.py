"""What a notebook shows of an image, a result and its statistics; and statistics as frames of pandas."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import knapper
from knapper.isa.errors import UsageError
from knapper.runtime import html
from knapper.runtime.session import Result


class Balanced(HTMLParser):
    """Tags must close in the order in which they open; texts are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.seen.add(tag)
        assert {name for name, _ in attrs} <= {"style", "colspan"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> Balanced:
    found = Balanced()
    found.feed(page)
    found.close()
    assert not found.open
    assert found.seen <= {"table", "thead", "tbody", "tr", "th", "td"}
    return found


@pytest.fixture(scope="module")
def image(shop: Path) -> knapper.Image:
    return knapper.load(shop / "small.elf")


@pytest.fixture(scope="module")
def result(image: knapper.Image, shop: Path) -> Result:
    with np.load(shop / "in.npz") as inputs:
        return image.run(dict(inputs), timing=True)


def test_an_image_shows_what_goes_in_and_out_and_its_launches(image: knapper.Image) -> None:
    texts = read(image._repr_html_()).texts
    assert {"input image", "f32[1,3,8,8]", "output best", "i64[1,1]"} <= {*texts}
    assert {n.kernel for n in image.program.launches} <= {*texts}


def test_a_result_shows_outputs_and_totals_and_statistics_the_launches(result: Result) -> None:
    texts = read(result._repr_html_()).texts
    assert {"sum", "row", "best", "cycles", f"{result.stats.cycles:,}"} <= {*texts}
    texts = read(result.stats._repr_html_()).texts
    assert {s.kernel.name for s in result.stats.launches} <= {*texts}
    assert len(result.stats._repr_html_()) < 10_000


@given(st.text())
def test_no_text_becomes_markup(text: str) -> None:
    page = html.page({text: 1}, html.Table([text], [(text,)]))
    assert "".join(read(page).texts) == f"{text}1{text}{text}"


def test_of_many_rows_the_first_are_shown() -> None:
    page = html.Table(["n"], [(n,) for n in range(1000)]).show()
    assert page.count("<tr>") == 2 + html.MOST
    assert read(page).texts[-1] == "… 980 more"


def test_rows_are_flat_and_add_up(result: Result) -> None:
    stats = result.stats
    launches = stats.rows()
    assert [r["launch"] for r in launches] == [*range(len(stats.launches))]
    assert sum(r["cycles"] for r in launches) == stats.cycles
    assert sum(r["dram_bytes.read"] for r in launches) == stats.bytes("dram_bytes")["read"]
    assert {type(v) for r in launches for v in r.values()} <= {int, float, str, type(None)}
    assert sum(r["instructions"] for r in stats.rows("node")) <= sum(stats.instructions.values())
    assert {
        r["instruction"]: r["executed"] for r in stats.rows("instruction")
    } == stats.instructions
    with pytest.raises(UsageError, match="E704: rows by 'kernel': expected launch, node, instruc"):
        stats.rows("kernel")  # type: ignore[arg-type]  # that is the point


def test_frames_are_the_rows(result: Result) -> None:
    pytest.importorskip("pandas")
    frame = result.stats.to_frame()
    assert (frame.index.name, len(frame)) == ("launch", len(result.stats.launches))
    assert int(frame["cycles"].sum()) == result.stats.cycles
    assert result.stats.to_frame("node").index.tolist() == [*result.stats.nodes]
    assert result.stats.to_frame("instruction")["executed"].to_dict() == result.stats.instructions


def test_without_pandas_the_message_says_what_to_install(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"E710: .*pip install 'knapper\[frames\]'"):
        result.stats.to_frame()
