"""Every number of every built-in target and energy table, with where it is from: docs/machines.md, generated from the TOML files.

A target with a base is shown as what it says beside its base, as its file is. `tests/test_numbers.py` fails when the page is stale; `pytest --bless`
rewrites it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .description import EVENTS, TABLES, TARGETS, Flat, comment, parse, read
from .machine import Machine
from .parameters import NUMBERS, PROVENANCES

OPENING = """\
# Every number of every machine

Written by `pytest --bless tests/test_numbers.py` from `isa/targets` and `isa/energy`; what the numbers do is in [model.md](model.md).
The provenances: `published` by a paper, data sheet or simulator's configuration; `silicon`, measured on hardware; `derived` by arithmetic on those;
`recalled`, from memory and unchecked; `assumed`, ours; `fitted` to some result. Cycles are core cycles.

A target with a base has all numbers of its base but those listed, and of its base's extensions only what it has itself.
"""
UNIT = {"latency": "cycles to the result", "interval": "cycles to the next instruction"}
"""What the numbers of a unit are; of load/store units per 128 bytes."""


def page() -> str:
    """The whole page, Markdown."""
    targets, tables = (sorted(folders[0].glob("*.toml")) for folders in (TARGETS, TABLES))
    parts = [OPENING, _summary(targets), *map(_target, by_base(targets)), *map(_energy, tables)]
    return "\n".join(parts)


def by_base(targets: Iterable[Path]) -> list[Path]:
    """Each target right behind its base."""
    paths = {p.stem: p for p in targets}

    def line(name: str) -> list[str]:
        base = parse(paths[name]).get("base")
        return [*(line(base) if base else []), name]

    return [paths[name] for name in sorted(paths, key=line)]


def _summary(targets: Iterable[Path]) -> str:
    """How many numbers of each provenance a target has, its energy table included."""
    rows = []
    for path in by_base(targets):
        m = Machine.load(path.stem)
        counts = (m.provenances[kind] for kind in PROVENANCES)
        rows.append((f"[{m.name}](#{m.name})", *counts, sum(m.provenances.values())))
    return _table(("target", *PROVENANCES, "all"), rows)


def _target(path: Path) -> str:
    """A section: why the target is so, which the head of its file says, and what its file gives."""
    base = parse(path).get("base")
    flat = {k: leaf for k, leaf in read(path.stem).items() if not leaf.inherited}
    head = f"## {path.stem}\n\n{comment(path)}\n"
    note = f"\nAll else as [{base}](#{base}).\n" if base else ""
    return head + note + "\n" + _table(("number", "value", "what", "from", "note"), _rows(flat))


def _rows(flat: Flat) -> Iterator[tuple[str, ...]]:
    """Everything but energies, which have sections of their own."""
    for key, leaf in flat.items():
        if key == "name" or (key.startswith("energy.") and key != "energy.table"):
            continue
        if isinstance(leaf.value, Mapping):
            yield (f"`{key}`", *_number(key, leaf.value))
        else:
            value = ", ".join(leaf.value) if isinstance(leaf.value, list) else str(leaf.value)
            yield f"`{key}`", value, "", "", ""


def _number(key: str, given: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """(value, what, provenance, note)."""
    what = str(NUMBERS[key]["doc"]) if key in NUMBERS else UNIT[key.rpartition(".")[2]]
    return f"{given['value']:,}", what, given["provenance"], given.get("note", "")


def _energy(path: Path) -> str:
    """A section: an energy table."""
    given = parse(path)
    rows = [
        (f"`{event}`", given[event]["value"], what, given[event]["provenance"], given[event]["source"])
        for event, what in EVENTS.items()
    ]  # fmt: skip
    head = f"## Energy: {path.stem}\n\n{comment(path)}\n\n"
    return head + _table(("event", "pJ", "what", "from", "source"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(x).replace('|', '¦') for x in row)} |\n" for row in lines)
