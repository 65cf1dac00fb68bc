"""reproduce: what papers and hardware say, ours beside it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from knapper.isa.errors import KnapperError, raise_all

from .. import files
from ..progress import Progress
from ..reproduce import claims
from ..reproduce.claims import Claim, Lab, Row
from ..reproduce.report import HEAD, cells, markdown
from ..tables import Table
from ..tables import show as show_tables

WIDTH = 120
"""Columns of a table that no terminal shows."""


def reproduce(a: argparse.Namespace) -> None:
    """`knapper reproduce`."""
    if a.markdown:
        files.check_place(a.markdown)
    chosen = claims(a.names)
    rows, broken = measured(chosen, Lab(), not a.no_interval, a.quiet)
    if a.markdown:
        files.write(a.markdown, markdown(rows).encode())
    if a.json or a.format != "table":
        show_tables(a, lambda: [r.to_dict() for r in rows], [numbers(rows), *parts(rows)])
    else:
        show(rows)
    raise_all([*broken, *failures(rows)])


def measured(
    chosen: Sequence[Claim], lab: Lab, interval: bool, quiet: int
) -> tuple[list[Row], list[KnapperError]]:
    """The rows of claims, and why there is none of some, told about as they come."""
    rows, broken = list[Row](), list[KnapperError]()
    with Progress("reproduce", bool(quiet)) as progress:
        for i, c in enumerate(chosen):
            progress(i, len(chosen), c.name)
            try:
                rows.append(c.row(lab, interval))
            except KnapperError as e:
                broken.append(unmeasured(c, e))
    return rows, broken


def unmeasured(c: Claim, why: KnapperError) -> KnapperError:
    """The error of a row whose programs cannot be made or run."""
    return KnapperError("E708", f"no row: {why.code}: {why.where}: {why.message}", where=c.name)


NUMBERS = ("claim", "what", "theirs", "to", "ours", "ratio", "class", "±", "result", "from", "to ")


def numbers(rows: Sequence[Row]) -> Table:
    """The rows for other programs: a number a cell; the last two are the interval."""
    return Table([_numbers(r) for r in rows], NUMBERS, "rows")


def _numbers(r: Row) -> tuple[object, ...]:
    c = r.claim
    name, *_, verdict, _ = cells(r)
    ends = (r.interval.low, r.interval.high) if r.interval else (None, None)
    return (name, c.what, *map(float, c.paper), float(r.ours), float(r.ratio), c.kind, c.tolerance, verdict, *ends)  # fmt: skip


def parts(rows: Sequence[Row]) -> list[Table]:
    """What rows consist of: layers, say."""
    return [
        Table(r.parts[1:], [str(t) for t in r.parts[0]], f"{r.claim.name}: {r.claim.what}")
        for r in rows
        if r.parts
    ]


def show(rows: Sequence[Row]) -> None:
    """A table on the terminal; a row that fails stands out."""
    from rich.console import Console
    from rich.table import Table as Rich

    table = Rich(box=None, pad_edge=False, header_style="bold")
    for name in HEAD:
        table.add_column(
            name, justify="left" if name in ("claim", "class", "") else "right", no_wrap=True
        )
    for r in rows:
        table.add_row(*cells(r), style="red" if r.fails else None if r.passes else "yellow")
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    for part in parts(rows):
        print(f"\n{part.title}\n{part.plain()}")


def failures(rows: Sequence[Row]) -> Iterator[KnapperError]:
    """An E708 for every row that counts as evidence and is missed; one as well if there is no row."""
    if not rows:
        yield KnapperError("E708", "nothing was compared")
    for r in rows:
        if r.fails:
            low, high = r.claim.paper
            problem = f"expected {low:g}{f' to {high:g}' if high != low else ''} ± {r.claim.tolerance:.0%}, got {r.ours:g}"
            yield KnapperError("E708", problem, where=r.claim.name)
