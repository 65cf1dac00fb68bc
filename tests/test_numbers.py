"""docs/machines.md: the numbers of all built-in machines, as their files have them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from knapper.isa import numbers
from knapper.isa.description import EVENTS, TABLES, TARGETS
from knapper.isa.machine import Machine

made = cache(numbers.page)  # it reads all files
PAGE = Path(__file__).parents[1] / "docs" / "machines.md"


def test_the_page_of_numbers_is_fresh(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--bless"):
        PAGE.write_text(numbers.page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == numbers.page(), (
        "docs/machines.md is stale: run `pytest --bless tests/test_numbers.py`"
    )


@pytest.mark.parametrize("path", sorted(TARGETS[0].glob("*.toml")), ids=lambda p: p.stem)
def test_a_target_has_a_section_with_what_it_changes(path: Path) -> None:
    """Laid over the sections of its bases, its section gives the machine."""
    rows: dict[str, str] = {}
    for name in chain(path.stem):
        rows |= section(name)
    machine = Machine.load(path.stem)
    for key, provenance in machine.provenance.items():
        if not key.startswith("energy."):
            _, value, _, kind, note = (part.strip() for part in rows[key].split(" | "))
            assert (int(value.replace(",", "")), kind) == (number(machine, key), provenance.kind)
            assert note.removesuffix("|").strip() == provenance.note


@pytest.mark.parametrize("path", sorted(TABLES[0].glob("*.toml")), ids=lambda p: p.stem)
def test_an_energy_table_has_a_section_with_all_events(path: Path) -> None:
    assert section(f"Energy: {path.stem}").keys() == EVENTS.keys()


def chain(name: str) -> list[str]:
    """A target and its bases, the farthest first, as the page links them."""
    text = body(name)
    base = text.partition("All else as [")[2].partition("]")[0]
    return [*(chain(base) if base else []), name]


def body(title: str) -> str:
    return made().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def section(title: str) -> dict[str, str]:
    """The rows of a section's table by key."""
    lines = [line for line in body(title).splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in lines}


def number(machine: Machine, key: str) -> int:
    if key.startswith("units."):
        _, unit, what = key.split(".")
        return int(getattr(machine.units[unit], what))
    return int(getattr(machine, key))
