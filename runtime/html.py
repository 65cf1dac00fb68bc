"""Results in a notebook: small tables of HTML, everything escaped, nothing fetched from anywhere.

Stats                                     target      volta-8tc
                                          cycles         55,981
kernel   nodes   instructions   macs …    (the first launches; how many more there are)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 20
"""Rows that are shown."""
RIGHT = ' style="text-align:right"'


@dataclass(frozen=True)
class Table:
    """Rows under a head; numbers stand to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]

    def show(self) -> str:
        """HTML.

        >>> Table(["node"], [("<b>",)]).show()
        '<table><thead><tr><th>node</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
        """
        head = "".join(f"<th>{escape(h)}</th>" for h in self.head)
        body = "".join(_row(r) for r in self.rows[:MOST])
        if (rest := len(self.rows) - MOST) > 0:
            body += f'<tr><td colspan="{len(self.head)}">… {rest:,} more</td></tr>'
        start = f"<thead><tr>{head}</tr></thead>" if self.head else ""
        return f"<table>{start}<tbody>{body}</tbody></table>"


def page(*parts: Mapping[str, object] | Table) -> str:
    """Tables, and facts by name, one below the other; those without rows are left out."""
    shown = (p if isinstance(p, Table) else Table((), [*p.items()]) for p in parts)
    return "".join(t.show() for t in shown if t.rows)


def spread(arrays: Mapping[str, NDArray[Any]]) -> Table:
    """A line an array: its type, and between what its values lie."""
    head = ("output", "type", "min", "max", "mean")
    return Table(head, [(name, *_spread(a)) for name, a in arrays.items()])


def _spread(a: NDArray[Any]) -> tuple[object, ...]:
    kind = f"{a.dtype}[{','.join(map(str, a.shape))}]"
    if not a.size:
        return kind, "", "", ""
    wide = a.astype(np.float64)
    return kind, float(wide.min()), float(wide.max()), float(wide.mean())


def _row(cells: Sequence[object]) -> str:
    return f"<tr>{''.join(map(_cell, cells))}</tr>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"<td{RIGHT}>{value:.4g}</td>"
    if isinstance(value, int):
        return f"<td{RIGHT}>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"
